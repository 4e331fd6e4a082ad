"""What the pod's environment says, read once when a task begins."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from reattach.api.names import (
    CA_FILE,
    ENV_ATTEMPT,
    ENV_NAMESPACE,
    ENV_SESSION,
    ENV_TASKRUN,
    ENV_URL,
    MOUNT_PATH,
    TOKEN_FILE,
)
from reattach.errors import NotInPod

ENV_DIRECTORY = "REATTACH_DIRECTORY"
"""Where `token` and `ca.crt` are, if not at the usual place: for tests outside a pod."""
ENV_TERMINATION_LOG = "REATTACH_TERMINATION_LOG"
"""The termination message file, if not at Kubernetes' usual place: for tests outside a pod."""

TERMINATION_LOG = "/dev/termination-log"

PATIENCE_SECONDS = 3600.0
REQUEST_SECONDS = 30.0


@dataclass(frozen=True)
class TaskSettings:
    """Where the state API is, who this process is, and how long to wait.

    `session` is set in a process whose parent opened the state. `patience` is in seconds, for one call; `request_seconds` is how long one
    request may take before it is asked again.
    """

    url: str
    namespace: str
    taskrun: str
    attempt: int
    session: str | None = None
    directory: Path = Path(MOUNT_PATH)
    termination_log: Path = Path(TERMINATION_LOG)
    patience: float = PATIENCE_SECONDS
    request_seconds: float = REQUEST_SECONDS

    @property
    def token_file(self) -> Path:
        return self.directory / TOKEN_FILE

    @property
    def ca_file(self) -> Path:
        return self.directory / CA_FILE

    def with_timeouts(self, seconds: float) -> "TaskSettings":
        """The same with another patience.

        Raises:
            ValueError: not a positive number.
        """
        if not seconds > 0:
            raise ValueError(f"patience must be more than 0 seconds, not {seconds}")
        return dataclasses.replace(self, patience=seconds)


def from_environment(environment: Mapping[str, str]) -> TaskSettings:
    """The settings of a process in a task's container.

    Raises:
        NotInPod: a variable or file is missing or wrong; the message says which, and what to do.
    """
    if not environment.get(ENV_URL):
        raise NotInPod(
            f"{ENV_URL} is not set: this process was not started by Reattach, or in another container than the task's. "
            "Run it as the container of a TaskRun (`spec.container`); to try your function without a cluster, "
            "pass it a stand-in for `task`."
        )
    if not environment[ENV_URL].startswith("https://"):
        raise NotInPod(f"{ENV_URL} must start with https://, not be {environment[ENV_URL]!r}")
    missing = [name for name in (ENV_NAMESPACE, ENV_TASKRUN, ENV_ATTEMPT) if not environment.get(name)]
    if missing:
        raise NotInPod(f"{', '.join(missing)} must be set where {ENV_URL} is")
    if not environment[ENV_ATTEMPT].isdecimal():
        raise NotInPod(f"{ENV_ATTEMPT} must be a number, not {environment[ENV_ATTEMPT]!r}")
    settings = TaskSettings(
        url=environment[ENV_URL].rstrip("/"),
        namespace=environment[ENV_NAMESPACE],
        taskrun=environment[ENV_TASKRUN],
        attempt=int(environment[ENV_ATTEMPT]),
        session=environment.get(ENV_SESSION) or None,
        directory=Path(environment.get(ENV_DIRECTORY) or MOUNT_PATH),
        termination_log=Path(environment.get(ENV_TERMINATION_LOG) or TERMINATION_LOG),
    )
    for file in (settings.token_file, settings.ca_file):
        if not file.is_file():
            raise NotInPod(f"{file} is missing: only the task's container (`spec.container`) of a TaskRun has it")
    return settings
