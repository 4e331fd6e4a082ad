"""Progress of a run of the conformance suite on stderr, and the log of its simulated tasks."""

import logging
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from typing_extensions import override

from reattach.adapters.base import Capabilities
from reattach.testing.cases import CASES, absence_seconds, settling_of

LOG_LINES_MAX = 100
"""Lines of the log that are shown for a case with a problem."""
_FROZEN_SECONDS = 150.0
"""Time of the cases that freeze a process, in real time."""
_WAITING_CASES = 25
"""Cases in which the SDK waits until a lookup proves absence."""
_SECONDS_MIN = 360.0

ShowProgress = Callable[[str], None]


def print_line(line: str) -> None:
    """Print a line to stderr at once."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def estimated_seconds(capabilities: Capabilities, request_seconds: float, cases: int) -> float:
    """Return about how long the suite takes in real time, by what the adapter declares."""
    whole = max(_SECONDS_MIN, _FROZEN_SECONDS + _WAITING_CASES * absence_seconds(capabilities, request_seconds))
    return whole * cases / len(CASES)


def describe_start(capabilities: Capabilities, request_seconds: float, cases: int) -> str:
    """Return the first line of a run in real time."""
    minutes = max(1, round(estimated_seconds(capabilities, request_seconds, cases) / 60))
    settling = "" if capabilities.look_up is None else f" and a settling time of {settling_of(capabilities):g} s"
    return (
        f"{cases} cases, about {minutes} min in real time with request_seconds = {request_seconds:g}{settling}. The"
        " suite kills and freezes tasks; it shows their log only for a case with a problem."
    )


def describe_case(number: int, cases: int, name: str, ended: str, took: timedelta) -> str:
    """Return the line of a case that has ended."""
    return f"{number:>{len(str(cases))}}/{cases} {name}: {ended} ({took.total_seconds():.0f} s)"


class TaskLog(logging.Handler):
    """The last lines that the SDK logged in the simulated tasks."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("    %(levelname)s %(message)s"))
        self.lines: deque[str] = deque(maxlen=LOG_LINES_MAX)

    @override
    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@contextmanager
def captured_log() -> Iterator[TaskLog]:
    """Keep what the SDK logs off stderr, unless the program has configured logging."""
    logger, handler = logging.getLogger("reattach"), TaskLog()
    level = logger.level
    if level == logging.NOTSET and not logging.getLogger().handlers:
        logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield handler
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
