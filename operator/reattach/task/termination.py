"""How a task's process ends: the termination message for the operator, SIGTERM, and an end for those that must not go on."""

import contextlib
import logging
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import msgspec

from reattach.api.messages import TerminationMessage
from reattach.errors import (
    AttemptOver,
    Fenced,
    Held,
    PermanentFailure,
    Refused,
    RetryLater,
    StateLost,
    Terminated,
    Unavailable,
)

logger = logging.getLogger("reattach")

MESSAGE_BYTES_MAX = 4096
"""The kubelet cuts what is longer, and half a JSON object says nothing."""
END_SECONDS = 10.0
"""How long a process that must not go on may take to end by itself."""
SPARED_SECONDS = 60.0
"""How much longer, while a thread is between submitting a job and storing its handle."""


def message_of(error: BaseException) -> TerminationMessage:
    """What the operator is told about an attempt that ends by `error`. Of a group, what asks for most counts."""
    inner = list(_flatten(error))
    for one in inner:
        if isinstance(one, PermanentFailure):
            return TerminationMessage(reattach="v1", kind="Permanent", message=str(one))
    delays = [one for one in inner if isinstance(one, RetryLater)]
    if delays:
        longest = max(delays, key=lambda one: one.seconds)
        return TerminationMessage(
            reattach="v1", kind="RetryLater", message=str(longest), retry_after_seconds=math.ceil(longest.seconds)
        )
    match error:
        case Fenced():
            return TerminationMessage(reattach="v1", kind="Fenced", message=_text_of(error))
        case StateLost() | Held():
            return TerminationMessage(reattach="v1", kind="Held", message=_text_of(error))
        case Unavailable() | Refused():
            return TerminationMessage(reattach="v1", kind="Unavailable", message=_text_of(error))
        case _:
            return TerminationMessage(reattach="v1", kind="Failed", message=_text_of(error))


def encode(message: TerminationMessage) -> bytes:
    """JSON of at most `MESSAGE_BYTES_MAX` bytes. A message that is too long loses its middle: what happened is at its start, why at its end."""
    text = message.message.encode(errors="replace").decode()
    keep = len(text)
    while True:
        shown = text if keep >= len(text) else f"{text[: keep // 2]} … {text[len(text) - keep // 2 :]}"
        encoded = msgspec.json.encode(msgspec.structs.replace(message, message=shown))
        if len(encoded) <= MESSAGE_BYTES_MAX:
            return encoded
        keep = min(keep - 1, keep * MESSAGE_BYTES_MAX // len(encoded))


def write_message(path: Path, message: TerminationMessage) -> None:
    """Replace what the termination message file says. Where there is no such file, the log says it instead."""
    try:
        # Never created: the kubelet did that, or nobody will read it.
        descriptor = os.open(path, os.O_WRONLY | os.O_TRUNC)
        with os.fdopen(descriptor, "wb") as file:
            file.write(encode(message))
    except OSError as error:
        logger.warning("The termination message can't be written (%s). It would be: %s", error, message)


class TerminationHandler:
    """Watches over the end of one process. `over` is what made it end, if something did: the first such thing counts."""

    def __init__(self, termination_log: Path, end_process: Callable[[int], None] = os._exit) -> None:
        self.over: AttemptOver | None = None
        self._termination_log = termination_log
        self._end_process = end_process
        self._process = os.getpid()
        self._handling = False
        self._watched = False
        self._deferring = False
        self._spared = 0
        self._idle = threading.Condition()

    def listen(self) -> None:
        """From now on SIGTERM raises `Terminated` in the main thread. The first process of a container would not even notice it otherwise.
        A handler that you set yourself stays.
        """
        if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, self._on_sigterm)
            self._handling = True

    def stop_listening(self) -> None:
        if self._handling and signal.getsignal(signal.SIGTERM) == self._on_sigterm:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self._handling = False

    def on_attempt_over(self, over: AttemptOver) -> None:
        """The state API said that this attempt must end. Said to the operator at once; and unless the task may go on without an answer,
        the process ends even if its code catches everything, or waits in another thread.
        """
        if isinstance(over, Unavailable | Terminated) or self._watched:
            return
        self._watched = True
        self.over = over
        logger.critical("%s: %s. This process ends.", type(over).__name__, over)
        self.tell(over)
        watchdog = threading.Timer(END_SECONDS, self._end, [over.exit_code])
        watchdog.daemon = True
        watchdog.start()

    def check(self) -> None:
        """Raise what made the process end, if something did: for threads, which SIGTERM does not reach, and code that caught it."""
        if self.over is not None:
            raise self.over

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """SIGTERM in this block counts at its end: between submitting and storing the handle, the rest of the grace period is better used
        for the handle. For the main thread; in others SIGTERM raises nothing anyway.
        """
        self.check()
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False
            self.check()

    @contextlib.contextmanager
    def spared(self) -> Iterator[None]:
        """A process that must end is left alone in this block for a while: a job is being submitted, and its handle is to be stored.
        SIGTERM lets the block begin; all else that ended the attempt does not.
        """
        if not isinstance(self.over, Terminated):
            self.check()
        with self._idle:
            self._spared += 1
        try:
            yield
        finally:
            with self._idle:
                self._spared -= 1
                self._idle.notify_all()

    def _end(self, code: int) -> None:
        with self._idle:
            self._idle.wait_for(lambda: self._spared == 0, timeout=SPARED_SECONDS)
        self._end_process(code)

    def interruptible(self, sleep: Callable[[float], None]) -> Callable[[float], None]:
        """`sleep`, during which SIGTERM counts at once although it is deferred. In the main thread: a wait in another one is no reason to
        interrupt what that defers.
        """

        def interrupted(seconds: float) -> None:
            if threading.current_thread() is not threading.main_thread():
                self.check()
                sleep(seconds)
                return
            deferring, self._deferring = self._deferring, False
            try:
                self.check()
                sleep(seconds)
            finally:
                self._deferring = deferring

        return interrupted

    def log(self, error: BaseException) -> None:
        """Say why the process ends, where nobody has: a `SystemExit` has no traceback, and what the state API said was said at once."""
        match self.over or error:
            case Terminated():
                logger.warning("SIGTERM: this pod is being stopped; an external job goes on.")
            case Unavailable() as unavailable:
                logger.error("Unavailable: %s. This attempt ends.", unavailable)
            case _:
                pass

    def tell(self, error: BaseException) -> None:
        """Write the termination message. What made the process end counts more than what broke on the way out."""
        write_message(self._termination_log, message_of(self.over or error))

    def _on_sigterm(self, number: int, _frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a forked child: it is not the task
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif self.over is None:  # once: what is being released must not be interrupted
            self.over = Terminated("SIGTERM: the pod is being stopped")
            if not self._deferring:
                raise self.over


def _flatten(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _flatten(inner)
    else:
        yield error


def _text_of(error: BaseException) -> str:
    if isinstance(error, SystemExit) and not isinstance(error, AttemptOver):
        if error.code in {None, 0}:
            return "SystemExit: the task was left by sys.exit() before it returned, so nothing was recorded as done"
        return f"SystemExit: {error.code}"
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
