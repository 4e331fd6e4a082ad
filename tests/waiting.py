"""Wait for a condition with a bound, in place of a sleep."""

import asyncio
import subprocess
import threading
import time
from collections.abc import Awaitable, Callable
from typing import IO, TypeVar

T = TypeVar("T")


def wait_until(condition: Callable[[], T | None], *, seconds: float, what: str, every: float = 0.05) -> T:
    """Call the condition until its result is true, and return the result.

    Raises:
        AssertionError: the time is over. The message has `what` and the last result.
    """
    end = time.monotonic() + seconds
    while not (result := condition()):
        if time.monotonic() > end:
            raise AssertionError(f"Not within {seconds:g} s: {what}. The last result was {result!r}")
        time.sleep(every)
    return result


async def until(condition: Callable[[], Awaitable[T | None]], *, seconds: float, what: str, every: float = 0.05) -> T:
    """`wait_until` for a coroutine function."""
    end = time.monotonic() + seconds
    while not (result := await condition()):
        if time.monotonic() > end:
            raise AssertionError(f"Not within {seconds:g} s: {what}. The last result was {result!r}")
        await asyncio.sleep(every)
    return result


def read_until(process: subprocess.Popen[str], output: IO[str] | None, text: str, *, seconds: float = 60) -> str:
    """Return the first line of `output` that contains `text`.

    Kill the process if the time is over.
    """
    assert output is not None
    watchdog = threading.Timer(seconds, process.kill)
    watchdog.start()
    lines: list[str] = []
    try:
        for line in iter(output.readline, ""):
            if text in line:
                return line
            lines.append(line)
    finally:
        watchdog.cancel()
    raise AssertionError(f"no {text!r} within {seconds} s, but: {''.join(lines)}")
