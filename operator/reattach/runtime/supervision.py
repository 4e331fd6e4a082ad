"""Supervision of the loops of the process. A failed loop is restarted, and the others continue."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from reattach.runtime.metrics import OperatorMetrics
from reattach.runtime.unreadable import describe

_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 60.0
_FRAMES = 20

_log = logging.getLogger(__name__)


async def keep_running(
    name: str,
    loop: Callable[[], Awaitable[None]],
    metrics: OperatorMetrics,
    *,
    first_pause_seconds: float = _FIRST_PAUSE_SECONDS,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Run `loop` until this task is cancelled.

    Restart it when it fails or returns, after a pause that doubles up to a minute.

    The pause is short again after a run that was longer than the longest pause.
    """
    pause = first_pause_seconds
    while True:
        began = clock()
        error: BaseException | None = None
        try:
            await loop()
        except asyncio.CancelledError as cancelled:
            error = cancelled  # may be of a future that the loop awaited
        except Exception as caught:  # noqa: BLE001 -- no error of one loop ends the process
            error = caught
        if is_cancelled():
            raise asyncio.CancelledError
        if clock() - began > _LONGEST_PAUSE_SECONDS:
            pause = first_pause_seconds
        metrics.restarted_loops.labels(name).inc()
        what = "it returned" if error is None else describe(error)
        _log.error("%s ended, and restarts in %g s: %s", name, pause, what, exc_info=error and shortened(error))
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)


def is_cancelled() -> bool:
    """Return whether the current task was cancelled."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def shortened(error: BaseException) -> BaseException:
    """Return the error with only the last frames of its traceback.

    The traceback of a recursion has thousands of frames.
    """
    frames = []
    traceback = error.__traceback__
    while traceback is not None:
        frames.append(traceback)
        traceback = traceback.tb_next
    return error.with_traceback(frames[-_FRAMES]) if len(frames) > _FRAMES else error
