"""The loops of the process: one that fails is started again, and the others go on."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from reattach.controller.metrics import Metrics

_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 60.0
_FRAMES = 20

_log = logging.getLogger(__name__)


async def keep_running(
    name: str,
    loop: Callable[[], Awaitable[None]],
    metrics: Metrics,
    *,
    first_pause_seconds: float = _FIRST_PAUSE_SECONDS,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Run `loop`, and start it again when it fails, after a pause that doubles up to a minute. Return when `loop` does.

    The pause is short again after a run that was longer than the longest pause.
    """
    pause = first_pause_seconds
    while True:
        began = clock()
        try:
            await loop()
        except Exception as error:  # noqa: BLE001 -- no error of one loop ends the process
            if clock() - began > _LONGEST_PAUSE_SECONDS:
                pause = first_pause_seconds
            metrics.restarted_loops.labels(name).inc()
            _log.error(
                "%s failed and starts again in %g s: %r", name, pause, error, exc_info=shortened(error), stacklevel=2
            )
        else:
            return
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)


def shortened(error: BaseException) -> BaseException:
    """Return the error with the last frames of its traceback, because a recursion has thousands of them."""
    frames = []
    traceback = error.__traceback__
    while traceback is not None:
        frames.append(traceback)
        traceback = traceback.tb_next
    return error.with_traceback(frames[-_FRAMES]) if len(frames) > _FRAMES else error
