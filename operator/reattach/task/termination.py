"""The end of a task's process: the termination message, SIGTERM, and a forced exit.

The operator reads the termination message. The SDK forces an exit if the attempt must end and the
task does not end by itself.
"""

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import msgspec

from reattach.api.messages import EndKind, TerminationMessage
from reattach.errors import (
    AttemptOver,
    CredentialsRefused,
    Fenced,
    Held,
    PodReleased,
    Refused,
    StateLost,
    Terminated,
    Unavailable,
)
from reattach.task.end_report import end_of

logger = logging.getLogger("reattach")

MESSAGE_BYTES_MAX = 4096
"""The kubelet cuts a longer message, and half a JSON object can't be decoded."""
END_SECONDS = 10.0
"""Seconds that a process may take to end by itself after its attempt is over."""
END_DELAY_SECONDS = 60.0
"""Additional seconds while a thread is between submitting a job and storing its handle."""


def message_of(error: BaseException) -> TerminationMessage:
    """Return the message for the operator about an attempt that ends by `error`.

    An error that is also reported to the state API has the same content here.
    """
    if (end := end_of(error)) is not None:
        return TerminationMessage(
            reattach="v1",
            kind="Permanent" if end.kind is EndKind.PERMANENT else "RetryLater",
            message=end.message,
            retry_after_seconds=end.retry_after_seconds,
            not_ready=end.kind is EndKind.NOT_READY,
        )
    match error:
        case Fenced():
            return TerminationMessage(reattach="v1", kind="Fenced", message=_describe(error))
        case StateLost() | Held():
            return TerminationMessage(reattach="v1", kind="Held", message=_describe(error))
        case Unavailable() | Refused() | PodReleased():
            # An operator that does not read a recorded end starts the next attempt.
            return TerminationMessage(
                reattach="v1",
                kind="Unavailable",
                message=_describe(error),
                credentials_refused=isinstance(error, CredentialsRefused),
            )
        case _:
            return TerminationMessage(reattach="v1", kind="Failed", message=_describe(error))


def encode(message: TerminationMessage) -> bytes:
    """Return JSON of at most `MESSAGE_BYTES_MAX` bytes.

    The middle of a longer text is cut, because its start names the error and its end the cause.
    """
    text = message.message.encode(errors="replace").decode()
    keep = len(text)
    while True:
        shown = text if keep >= len(text) else f"{text[: keep // 2]} … {text[len(text) - keep // 2 :]}"
        encoded = msgspec.json.encode(msgspec.structs.replace(message, message=shown))
        if len(encoded) <= MESSAGE_BYTES_MAX:
            return encoded
        keep = min(keep - 1, keep * MESSAGE_BYTES_MAX // len(encoded))


def write_message(path: Path, message: TerminationMessage) -> None:
    """Write the termination message file. If the file does not exist, log the message instead."""
    try:
        # Not created, because only a file that the kubelet has mounted is read.
        descriptor = os.open(path, os.O_WRONLY | os.O_TRUNC)
        with os.fdopen(descriptor, "wb") as file:
            file.write(encode(message))
    except OSError as error:
        logger.warning("The termination message can't be written (%s). It would be: %s", error, message)


class TerminationHandler:
    """Ends one process, and reports why.

    over: the first error that ended the attempt, or None.
    after_sigterm: the sentence about the jobs in the log line.
    """

    def __init__(
        self,
        termination_log: Path,
        end_process: Callable[[int], None] = os._exit,
        after_sigterm: str = "External jobs keep running.",
    ) -> None:
        self.over: AttemptOver | None = None
        self._termination_log = termination_log
        self._end_process = end_process
        self._after_sigterm = after_sigterm
        self._process = os.getpid()
        self._is_installed = False
        self._is_ending = False
        self._is_sigterm_deferred = False
        self._delays = 0
        self._idle = threading.Condition()

    def install_handler(self) -> None:
        """Raise `Terminated` in the main thread on SIGTERM, unless the task has set a handler.

        Without a handler, the kernel ignores SIGTERM for the first process of a container.
        """
        if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, self._on_sigterm)
            self._is_installed = True

    def remove_handler(self) -> None:
        if self._is_installed and signal.getsignal(signal.SIGTERM) == self._on_sigterm:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self._is_installed = False

    def on_attempt_over(self, over: AttemptOver) -> None:
        """Write the termination message, and end the process, even if the task catches the error.

        `Unavailable` and `Terminated` do not force an exit, because the task may handle them.
        """
        if isinstance(over, Unavailable | Terminated) or self._is_ending:
            return
        self._is_ending = True
        self.over = over
        level = logging.INFO if isinstance(over, PodReleased) else logging.CRITICAL
        logger.log(level, "%s: %s. This process ends.", type(over).__name__, over)
        self.write_message_of(over)
        watchdog = threading.Timer(END_SECONDS, self._end, [over.exit_code])
        watchdog.daemon = True
        watchdog.start()

    def check(self) -> None:
        """Raise the error that ended the attempt, if there is one.

        SIGTERM interrupts only the main thread, and the task may have caught the error.
        """
        if self.over is not None:
            raise self.over

    @contextlib.contextmanager
    def sigterm_deferred(self) -> Iterator[None]:
        """Raise `Terminated` only at the end of this block, to use the grace period for the handle.

        Only for the main thread, because SIGTERM does not interrupt others.
        """
        self.check()
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._is_sigterm_deferred = True
        try:
            yield
        finally:
            self._is_sigterm_deferred = False
            self.check()

    @contextlib.contextmanager
    def end_delayed(self) -> Iterator[None]:
        """Delay a forced exit during this block, in which a job is submitted and its handle stored.

        The block also starts after SIGTERM, but not after another error that ended the attempt.
        """
        if not isinstance(self.over, Terminated):
            self.check()
        with self._idle:
            self._delays += 1
        try:
            yield
        finally:
            with self._idle:
                self._delays -= 1
                self._idle.notify_all()

    def _end(self, code: int) -> None:
        with self._idle:
            self._idle.wait_for(lambda: self._delays == 0, timeout=END_DELAY_SECONDS)
        self._end_process(code)

    def interruptible(self, sleep: Callable[[float], None]) -> Callable[[float], None]:
        """Return a `sleep` that SIGTERM interrupts in the main thread, even if it is deferred.

        A sleep of another thread does not change what the main thread defers.
        """

        def interrupted(seconds: float) -> None:
            if threading.current_thread() is not threading.main_thread():
                self.check()
                sleep(seconds)
                return
            deferring, self._is_sigterm_deferred = self._is_sigterm_deferred, False
            try:
                self.check()
                sleep(seconds)
            finally:
                self._is_sigterm_deferred = deferring

        return interrupted

    def log(self, error: BaseException) -> None:
        """Log why the process ends, if that is not logged yet and no traceback shows it."""
        match self.over or error:
            case Terminated():
                logger.warning("SIGTERM: this pod is being stopped. %s", self._after_sigterm)
            case Unavailable() as unavailable:
                logger.error("Unavailable: %s. This attempt ends.", unavailable)
            case _:
                pass

    def write_message_of(self, error: BaseException) -> None:
        """Write the termination message, for `over` rather than for an error that followed it."""
        write_message(self._termination_log, message_of(self.over or error))

    def _on_sigterm(self, number: int, _frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a forked child is not the task
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif self.over is None:  # only once, because a second one must not interrupt the cleanup
            self.over = Terminated("SIGTERM: the pod is being stopped")
            if not self._is_sigterm_deferred:
                raise self.over


def _describe(error: BaseException) -> str:
    if isinstance(error, SystemExit) and not isinstance(error, AttemptOver):
        if error.code in {None, 0}:
            return "SystemExit: the task called sys.exit() before it returned, so its completion was not recorded"
        return f"SystemExit: {error.code}"
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
