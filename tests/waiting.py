"""Wait for a condition, with a bound; nothing in the tests sleeps and hopes."""

import asyncio
import subprocess
import threading
import time
from collections.abc import Awaitable, Callable
from typing import IO, TypeVar

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


def read_until(process: subprocess.Popen[str], output: IO[str] | None, text: str, *, seconds: float = 60) -> str:
    """The first line of `output` with `text` in it; the lines before it are passed over. A process that says nothing is killed then."""
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
