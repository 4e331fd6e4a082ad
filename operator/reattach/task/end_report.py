"""Sends the report about the end of the attempt to the state API, right before the process ends.

The report is sent by a thread of its own, so that neither an outage nor a slow name server keeps
the process. SIGTERM interrupts the wait for it. The termination message and the exit code follow in
any case, for an operator that gets no report.
"""

import asyncio
import contextlib
import dataclasses
import logging
import math
import threading
from collections.abc import Callable

from reattach.api.messages import END_MESSAGE_BYTES_MAX, RETRY_AFTER_SECONDS_MAX, EndKind, EndRequest
from reattach.api.text import without_middle
from reattach.errors import (
    AlreadyCompleted,
    AttemptOver,
    Fenced,
    NotReady,
    PermanentFailure,
    ReattachError,
    RetryLater,
    StateLost,
    Terminated,
)
from reattach.task.client import Call, Client

logger = logging.getLogger("reattach")

REPORT_SECONDS = 10.0
"""Seconds for which the end of the process waits for the report."""


def end_of(error: BaseException) -> EndRequest | None:
    """Return the report about an attempt that ends by `error`, or None if it needs no report.

    In an exception group, `PermanentFailure` has precedence, and then the longest `RetryLater`. A
    group is not ready only if it contains nothing but `NotReady`, because anything else failed.
    """
    inner = _flatten(error)
    for one in inner:
        if isinstance(one, PermanentFailure):
            return EndRequest(kind=EndKind.PERMANENT, message=_cut(one))
    if later := [one for one in inner if isinstance(one, RetryLater)]:
        return _with_delay(EndKind.RETRY_LATER, max(later, key=lambda one: one.seconds))
    waiting = [one for one in inner if isinstance(one, NotReady)]
    if waiting and len(waiting) == len(inner):
        return _with_delay(EndKind.NOT_READY, max(waiting, key=lambda one: one.seconds))
    return None


class EndReporter:
    """Sends one report, and waits for it at most `REPORT_SECONDS`.

    `on_attempt_over` is called if the response shows that another session took over, or that the
    state is lost. No other error changes how the process ends.
    """

    def __init__(self, client: Client) -> None:
        self._on_attempt_over = client.on_attempt_over
        self._client = dataclasses.replace(client, patience=REPORT_SECONDS, on_attempt_over=self._take_over)
        self._failure: BaseException | None = None
        self._done = threading.Event()

    def report(self, end: EndRequest) -> None:
        """Send the report, and wait."""
        with contextlib.suppress(Terminated):
            if self._start(end, self._done.set):
                self._finish(is_done=self._done.wait(REPORT_SECONDS))

    async def areport(self, end: EndRequest) -> None:
        """`report` for async code. Other tasks of the event loop keep running."""
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def set_done() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nothing waits any more
                loop.call_soon_threadsafe(done.set)

        with contextlib.suppress(Terminated, TimeoutError, asyncio.CancelledError):
            if self._start(end, set_done):
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(done.wait(), REPORT_SECONDS)
                self._finish(is_done=done.is_set())

    def _start(self, end: EndRequest, on_done: Callable[[], None]) -> bool:
        def send() -> None:
            try:
                self._client.call(Call("POST", "/v1/end", type(None), end))
            except BaseException as failure:  # noqa: BLE001 -- the waiting thread handles it
                self._failure = failure
            finally:
                on_done()

        try:
            threading.Thread(target=send, name="reattach-end", daemon=True).start()
        except RuntimeError as error:  # the container has too many threads
            _log_not_reported(error)
            return False
        return True

    def _finish(self, *, is_done: bool) -> None:
        failure = self._failure
        if not is_done:
            _log_not_reported(f"no response within {REPORT_SECONDS:g} s")
        elif isinstance(failure, Fenced | StateLost | AlreadyCompleted):
            return  # The attempt has ended otherwise, so the report does not count.
        elif isinstance(failure, AttemptOver | ReattachError):
            _log_not_reported(failure)
        elif failure is not None:
            raise failure

    def _take_over(self, over: AttemptOver) -> None:
        if isinstance(over, Fenced | StateLost):
            self._on_attempt_over(over)


def _log_not_reported(why: object) -> None:
    logger.warning(
        "The state API did not record how this attempt ends (%s). The termination message and the exit code do.", why
    )


def _with_delay(kind: EndKind, error: RetryLater | NotReady) -> EndRequest:
    seconds = math.ceil(min(error.seconds, RETRY_AFTER_SECONDS_MAX))
    return EndRequest(kind=kind, message=_cut(error), retry_after_seconds=seconds)


def _cut(error: BaseException) -> str:
    return without_middle(str(error), END_MESSAGE_BYTES_MAX)


def _flatten(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [one for inner in error.exceptions for one in _flatten(inner)]
    return [error]
