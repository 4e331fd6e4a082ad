"""Simulated process of a task: a thread that runs the real SDK and can be frozen or killed."""

import logging
import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import httpx

from reattach.adapters.base import Adapter
from reattach.api.names import CA_FILE, ENV_PHASE, LABEL_ATTEMPT, PHASE_CLEANUP, TOKEN_FILE
from reattach.task.cleanup import CleanupTask
from reattach.task.client import Timing
from reattach.task.context import Task, TaskContext
from reattach.task.settings import TaskSettings
from reattach.testing.clocks import TICK, Clock, Turn

JSON = dict[str, Any]
SIGKILL = 137
REQUEST_SECONDS = 30.0

CA = """-----BEGIN CERTIFICATE-----
MIIBCzCBs6ADAgECAgEBMAoGCCqGSM49BAMCMA8xDTALBgNVBAMMBHRlc3QwIBcN
MjYwMTAxMDAwMDAwWhgPMjA1NjAxMDEwMDAwMDBaMA8xDTALBgNVBAMMBHRlc3Qw
WTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAATp/JYwevDuPE2L0SZgcVXz4nsQEyAs
gPOrTlkrmIeotGTW8mUHh/vY0upfZ35Snv288Kow6bHOGmJLIB8a1IdCMAoGCCqG
SM49BAMCA0cAMEQCIBfy5Y99lUG0F2yVBQv1tf8C1URKcU1y6YEKueM3HQ2MAiBo
wvDtR4tKN2HEPO6zcp9YJRFkSwbafnM3TOHVNlaLNA==
-----END CERTIFICATE-----
"""
"""The SDK requires a CA even for loopback HTTP. The CA is not used, and its key was discarded."""

log = logging.getLogger("reattach.testing")


class Killed(BaseException):
    """Ends the thread of a killed process. Calls of its `finally` blocks have no effect."""


class TaskProcess:
    """One process of a task.

    `main(process, task)` is the task. `adapters(process)` and `on_cleanup(process, cleanup)` are
    what it registers for its cleanup. `on_step(process, step)` is called at each step of the
    protocol: before each call of the state API (`before POST /v1/open`) and after it (`after POST
    /v1/open`), when the process has not received the response yet.

    is_cleanup: whether the pod's environment starts a cleanup attempt.
    code, message: exit code and termination message of an ended process.
    result: return value of the task.
    """

    def __init__(
        self,
        pod: JSON,
        *,
        token: str,
        state_api: httpx.Client,
        clock: Clock,
        main: Callable[["TaskProcess", Task], Any],
        adapters: Callable[["TaskProcess"], Iterable[Adapter]],
        on_cleanup: Callable[["TaskProcess", CleanupTask], Any] | None,
        on_step: Callable[["TaskProcess", str], None],
        jitter: Callable[[], float],
    ) -> None:
        self.pod = pod
        self.attempt = int(pod["metadata"]["labels"][LABEL_ATTEMPT])
        self.is_cleanup = _environment_of(pod).get(ENV_PHASE) == PHASE_CLEANUP
        self.code: int | None = None
        self.message = ""
        self.result: Any = None
        self.error: BaseException | None = None
        self.is_dead = False
        """Set when the process is killed. Its thread may still be running."""
        self.steps: list[str] = []
        self.response: httpx.Response | None = None
        """Last response of the state API, which a killed process may never have received."""
        self.on_end: Callable[[], None] = lambda: None
        self._token = token
        self._state_api = state_api
        self._clock = clock
        self._main = main
        self._adapters = adapters
        self._on_cleanup = on_cleanup
        self._on_step = on_step
        self._jitter = jitter
        self._thread: int | None = None
        """Thread that is within a step."""
        self._sleeper: Turn | None = None
        self._ended = threading.Event()

    @property
    def uid(self) -> str:
        """Return the UID of the pod."""
        return str(self.pod["metadata"]["uid"])

    @property
    def has_ended(self) -> bool:
        """Return whether the thread has ended."""
        return self._ended.is_set()

    def start(self) -> None:
        """Start the process. It runs as soon as the calling thread sleeps."""
        self._clock.start(self._run, self.pod["metadata"]["name"])

    def kill(self) -> None:
        """Kill the process. A call within one of its steps does not return."""
        self.is_dead = True
        if self._thread == threading.get_ident():
            raise Killed
        if self._sleeper is not None:
            self._clock.wake(self._sleeper)

    def freeze(self, seconds: float) -> None:
        """Freeze the process within one of its steps. It can be killed meanwhile."""
        self.sleep(seconds)

    def sleep(self, seconds: float) -> None:
        """Sleep as the SDK does, and end the thread if the process is killed meanwhile."""
        self.check_alive()
        end = self._clock.monotonic() + max(TICK, seconds)
        while (left := end - self._clock.monotonic()) > 0:
            self._sleeper = self._clock.current()
            self._clock.sleep(left)
            self._sleeper = None
            self.check_alive()

    def check_alive(self) -> None:
        """Raise `Killed` if the process was killed."""
        if self.is_dead:
            raise Killed

    def step(self, name: str) -> None:
        """Report a step of the protocol."""
        self.check_alive()
        self.steps.append(name)
        self._thread = threading.get_ident()
        try:
            self._on_step(self, name)
        finally:
            self._thread = None
        self.check_alive()

    # -- what runs on the thread -------------------------------------------------------------------

    def _run(self) -> None:
        with tempfile.TemporaryDirectory(prefix="reattach-") as path:
            directory = Path(path)
            (directory / TOKEN_FILE).write_text(self._token)
            (directory / CA_FILE).write_text(CA)
            termination_log = directory / "termination-log"
            termination_log.touch()
            code = self._run_task(directory, termination_log)
            self.message = "" if self.is_dead else termination_log.read_text()
        self.code = SIGKILL if self.is_dead else code
        self._ended.set()
        self.on_end()

    def _run_task(self, directory: Path, termination_log: Path) -> int:
        metadata = self.pod["metadata"]
        settings = TaskSettings(
            url="http://state-api.invalid",
            namespace=metadata["namespace"],
            taskrun=metadata["ownerReferences"][0]["name"],
            attempt=self.attempt,
            is_cleanup=self.is_cleanup,
            directory=directory,
            termination_log=termination_log,
        )
        try:
            self.result = self._context(settings).run(lambda task: self._main(self, task))
        except Killed:
            return SIGKILL
        except SystemExit as end:
            self.error = end if end.code else None
            return end.code if isinstance(end.code, int) else 1
        except Exception as error:  # noqa: BLE001 -- a process with this error exits with code 1
            self.error = error
            log.info("Attempt %d ends: %r", self.attempt, error)
            return 1
        return 0

    def _context(self, settings: TaskSettings) -> TaskContext:
        on_cleanup = self._on_cleanup
        return TaskContext(
            settings,
            adapters=self._adapters(self),
            on_cleanup=None if on_cleanup is None else lambda cleanup: on_cleanup(self, cleanup),
            transport=httpx.MockTransport(self._call),
            timing=Timing(
                clock=self._clock.monotonic,
                sleep=self.sleep,
                async_sleep=self._async_sleep,
                jitter=self._jitter,
                on_step=self.step,
            ),
            environment={},
            end_process=lambda _: None,
        )

    def _async_sleep(self, seconds: float) -> Awaitable[None]:
        async def sleep() -> None:
            self.sleep(seconds)

        return sleep()

    def _call(self, request: httpx.Request) -> httpx.Response:
        """Call the state API over loopback HTTP."""
        what = f"{request.method} {request.url.path}"
        self.step(f"before {what}")
        response = self._state_api.request(
            request.method,
            request.url.raw_path.decode(),
            content=request.content,
            headers={name: value for name, value in request.headers.items() if name not in {"host", "content-length"}},
        )
        seen = httpx.Response(
            response.status_code, headers=_response_headers(response.headers), content=response.content
        )
        self.response = seen
        self.step(f"after {what}")
        return seen


def _environment_of(pod: JSON) -> dict[str, str]:
    variables = pod["spec"]["containers"][0].get("env") or ()
    return {one["name"]: one["value"] for one in variables if "value" in one}


def _response_headers(headers: httpx.Headers) -> dict[str, str]:
    return {name: headers[name] for name in ("Content-Type", "Retry-After") if name in headers}
