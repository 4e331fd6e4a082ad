"""Settings of a task, read once from the environment of its container."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from reattach.api.names import (
    CA_FILE,
    ENV_ADDRESS,
    ENV_ATTEMPT,
    ENV_NAMESPACE,
    ENV_PHASE,
    ENV_SESSION,
    ENV_TASKRUN,
    ENV_TERMINATION_LOG,
    ENV_URL,
    MOUNT_PATH,
    PHASE_CLEANUP,
    PHASE_RUN,
    TOKEN_FILE,
)
from reattach.errors import NotInPod

ENV_DIRECTORY = "REATTACH_DIRECTORY"
"""Directory of `token` and `ca.crt`, if it is not `MOUNT_PATH`: for tests outside a pod."""

TERMINATION_LOG = "/dev/termination-log"

PATIENCE_SECONDS = 3600.0
REQUEST_SECONDS = 30.0


@dataclass(frozen=True)
class TaskSettings:
    """Address of the state API, identity of this process, and timeouts.

    address: IP address of the host in `url`, if it is known.
    is_cleanup: this attempt cleans up, and must not run the task.
    session: set if the parent of this process opened the state.
    patience: seconds for which one call is retried.
    request_seconds: timeout of one request, after which it is sent again.
    """

    url: str
    namespace: str
    taskrun: str
    attempt: int
    address: str = ""
    is_cleanup: bool = False
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

    def with_patience(self, seconds: float) -> "TaskSettings":
        """Return a copy with another patience.

        Raises:
            ValueError: `seconds` is not a positive number.
        """
        if not seconds > 0:
            raise ValueError(f"patience must be more than 0 seconds, not {seconds}")
        return dataclasses.replace(self, patience=seconds)


def from_environment(environment: Mapping[str, str]) -> TaskSettings:
    """Return the settings of a process in a task's container.

    Raises:
        NotInPod: a variable or file is missing or wrong. The message names it, and what to do.
    """
    if not environment.get(ENV_URL):
        raise NotInPod(
            f"{ENV_URL} is not set, because Reattach did not start this process, or because this is another container "
            "than the task's. Run the process as the container of a TaskRun (`spec.container`). To try your function "
            "without a cluster, pass a fake `task` to it."
        )
    if not environment[ENV_URL].startswith("https://"):
        raise NotInPod(f"{ENV_URL} must start with https://, but it is {environment[ENV_URL]!r}")
    missing = [name for name in (ENV_NAMESPACE, ENV_TASKRUN, ENV_ATTEMPT) if not environment.get(name)]
    if missing:
        raise NotInPod(f"{', '.join(missing)} must also be set, because {ENV_URL} is set")
    if not environment[ENV_ATTEMPT].isdecimal():
        raise NotInPod(f"{ENV_ATTEMPT} must be a number, not {environment[ENV_ATTEMPT]!r}")
    phase = environment.get(ENV_PHASE) or PHASE_RUN
    if phase not in {PHASE_RUN, PHASE_CLEANUP}:
        raise NotInPod(f"{ENV_PHASE} must be {PHASE_RUN} or {PHASE_CLEANUP}, not {phase!r}")
    settings = TaskSettings(
        url=environment[ENV_URL].rstrip("/"),
        namespace=environment[ENV_NAMESPACE],
        taskrun=environment[ENV_TASKRUN],
        attempt=int(environment[ENV_ATTEMPT]),
        address=environment.get(ENV_ADDRESS) or "",
        is_cleanup=phase == PHASE_CLEANUP,
        session=environment.get(ENV_SESSION) or None,
        directory=Path(environment.get(ENV_DIRECTORY) or MOUNT_PATH),
        termination_log=Path(environment.get(ENV_TERMINATION_LOG) or TERMINATION_LOG),
    )
    for file in (settings.token_file, settings.ca_file):
        if not file.is_file():
            raise NotInPod(
                f"{file} is missing. Only the task's container (`spec.container`) of a TaskRun has this file"
            )
    return settings
