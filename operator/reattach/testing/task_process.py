"""A task's process in the pod of one attempt: a thread with the real SDK in it, that can be frozen and killed wherever it gets to."""

import logging
import tempfile
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx

from reattach.api.names import CA_FILE, LABEL_ATTEMPT, TOKEN_FILE
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
"""The SDK wants one, also for loopback HTTP. Nobody uses it; its key was thrown away."""

log = logging.getLogger("reattach.testing")


class Killed(BaseException):
    """The process is dead: not a line of it runs on. What cleans up on the way out of the thread reaches nobody."""


class TaskProcess:
    """One process. `main(process, task)` is the task; `on_step(process, step)` is called at each step of the protocol, before each call of the
    state API (`before POST /v1/open`) and after it (`after POST /v1/open`, before the answer is seen).

    `code` and `message`: how it ended, once it has. `result`: what it returned.
    """

    def __init__(
        self,
        pod: JSON,
        *,
        token: str,
        state_api: httpx.Client,
        clock: Clock,
        main: Callable[["TaskProcess", Task], Any],
        on_step: Callable[["TaskProcess", str], None],
        jitter: Callable[[], float],
    ) -> None:
        self.pod = pod
        self.attempt = int(pod["metadata"]["labels"][LABEL_ATTEMPT])
        self.code: int | None = None
        self.message = ""
        self.result: Any = None
        self.error: BaseException | None = None
        self.is_dead = False
        """It was killed; the thread may not have noticed yet."""
        self.steps: list[str] = []
        self.answer: httpx.Response | None = None
        """The state API's last one; at the step after a call it is that call's, also if the process never sees it."""
        self.on_end: Callable[[], None] = lambda: None
        self._token = token
        self._state_api = state_api
        self._clock = clock
        self._main = main
        self._on_step = on_step
        self._jitter = jitter
        self._thread: int | None = None
        """Which is within a step."""
        self._waiting: Turn | None = None
        self._ended = threading.Event()

    @property
    def uid(self) -> str:
        """Of its pod."""
        return str(self.pod["metadata"]["uid"])

    @property
    def has_ended(self) -> bool:
        """Nothing of it runs any more."""
        return self._ended.is_set()

    def start(self) -> None:
        """Begin; it runs as soon as whoever calls this waits."""
        self._clock.start(self._live, self.pod["metadata"]["name"])

    def kill(self) -> None:
        """SIGKILL, from outside or from within one of its steps (which then does not return)."""
        self.is_dead = True
        if self._thread == threading.get_ident():
            raise Killed
        if self._waiting is not None:
            self._clock.wake(self._waiting)

    def freeze(self, seconds: float) -> None:
        """Called within one of its steps: nothing of it happens for so long, while time goes on. It may be killed meanwhile."""
        self.sleep(seconds)

    def sleep(self, seconds: float) -> None:
        """How the SDK waits in here."""
        self.check_alive()
        end = self._clock.monotonic() + max(TICK, seconds)
        while (left := end - self._clock.monotonic()) > 0:
            self._waiting = self._clock.current()
            self._clock.sleep(left)
            self._waiting = None
            self.check_alive()

    def check_alive(self) -> None:
        """Raises what ends the thread, once it is killed."""
        if self.is_dead:
            raise Killed

    def step(self, name: str) -> None:
        """The SDK got to a step of the protocol."""
        self.check_alive()
        self.steps.append(name)
        self._thread = threading.get_ident()
        try:
            self._on_step(self, name)
        finally:
            self._thread = None
        self.check_alive()

    # -- what runs on the thread -------------------------------------------------------------------

    def _live(self) -> None:
        with tempfile.TemporaryDirectory(prefix="reattach-") as directory:
            place = Path(directory)
            (place / TOKEN_FILE).write_text(self._token)
            (place / CA_FILE).write_text(CA)
            termination_log = place / "termination-log"
            termination_log.touch()
            code = self._run(place, termination_log)
            self.message = "" if self.is_dead else termination_log.read_text()
        self.code = SIGKILL if self.is_dead else code
        self._ended.set()
        self.on_end()

    def _run(self, place: Path, termination_log: Path) -> int:
        about = self.pod["metadata"]
        settings = TaskSettings(
            url="http://state-api.invalid",
            namespace=about["namespace"],
            taskrun=about["ownerReferences"][0]["name"],
            attempt=self.attempt,
            directory=place,
            termination_log=termination_log,
        )
        try:
            self.result = self._context(settings).run(lambda task: self._main(self, task))
        except Killed:
            return SIGKILL
        except SystemExit as end:
            self.error = end
            return end.code if isinstance(end.code, int) else 1
        except Exception as error:  # noqa: BLE001 -- as of a process, whose traceback only people read
            self.error = error
            log.info("Attempt %d ends: %r", self.attempt, error)
            return 1
        return 0

    def _context(self, settings: TaskSettings) -> TaskContext:
        return TaskContext(
            settings,
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
        """Over loopback HTTP to the state API."""
        what = f"{request.method} {request.url.path}"
        self.step(f"before {what}")
        answer = self._state_api.request(
            request.method,
            request.url.raw_path.decode(),
            content=request.content,
            headers={name: value for name, value in request.headers.items() if name not in {"host", "content-length"}},
        )
        answered = httpx.Response(answer.status_code, headers=_kept(answer.headers), content=answer.content)
        self.answer = answered
        self.step(f"after {what}")
        return answered


def _kept(headers: httpx.Headers) -> dict[str, str]:
    return {name: headers[name] for name in ("Content-Type", "Retry-After") if name in headers}
