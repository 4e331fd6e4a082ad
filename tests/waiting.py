"""Wait for a condition, with a bound; nothing in the tests sleeps and hopes."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(condition: Callable[[], T | None], *, seconds: float, what: str, every: float = 0.05) -> T:
    """Ask until the answer is true, and return it.

    Raises:
        AssertionError: not within so many seconds; the message names `what` and shows the last answer.
    """
    end = time.monotonic() + seconds
    while not (answer := condition()):
        if time.monotonic() > end:
            raise AssertionError(f"Not within {seconds:g} s: {what}. The last answer was {answer!r}")
        time.sleep(every)
    return answer


async def until(condition: Callable[[], Awaitable[T | None]], *, seconds: float, what: str, every: float = 0.05) -> T:
    """`wait_until` for a coroutine function."""
    end = time.monotonic() + seconds
    while not (answer := await condition()):
        if time.monotonic() > end:
            raise AssertionError(f"Not within {seconds:g} s: {what}. The last answer was {answer!r}")
        await asyncio.sleep(every)
    return answer
