"""Outages of the external system: their duration, their log lines and the delays between tries."""

import logging
from collections.abc import Callable

from reattach.task.client import QUIET_SECONDS, REMINDER_SECONDS, Timing

logger = logging.getLogger("reattach")

DELAY_SECONDS_FIRST = 1.0
REPORT_SECONDS = 30.0
"""Seconds without progress before `status.externalJobs` shows the reason."""
REPORT_AGAIN_SECONDS = 60.0
"""Shortest interval of two reports, because each one is a write of the state and one of status."""


class ReasonReporter:
    """Reports why a job makes no progress, once for each reason.

    `send` stores a reason, and returns whether it is stored.
    """

    def __init__(self, timing: Timing, send: Callable[[str], bool]) -> None:
        self._timing = timing
        self._send = send
        self._due = timing.clock() + REPORT_SECONDS
        self._stored: str | None = None

    def observe(self, why: str) -> None:
        """Store the reason, unless it is stored already or was not there for long."""
        now = self._timing.clock()
        if why == self._stored or now < self._due:
            return
        self._due = now + REPORT_AGAIN_SECONDS
        if self._send(why):
            self._stored = why


class OutageTimer:
    """One outage of the external system, without a time limit of its own.

    `what` starts each log line, for example "External job 'load' can't be looked up".
    """

    def __init__(self, timing: Timing, what: str, *, quiet_seconds: float = QUIET_SECONDS) -> None:
        self._timing = timing
        self._what = what
        self._quiet = quiet_seconds
        self._since = timing.clock()
        self._delay = DELAY_SECONDS_FIRST
        self._logged_at: float | None = None

    @property
    def seconds(self) -> float:
        """Return how long the outage has lasted."""
        return self._timing.clock() - self._since

    def wait(self, why: str, longest: float) -> float:
        """Return the seconds before the next try: growing, with jitter, at most `longest`."""
        now = self._timing.clock()
        seconds = now - self._since
        if seconds >= self._quiet and (self._logged_at is None or now - self._logged_at >= REMINDER_SECONDS):
            self._logged_at = now
            logger.warning("%s, for %.0f s now (%s). Trying again.", self._what, seconds, why)
        wait = min(self._delay, longest) * (0.5 + self._timing.jitter() / 2)
        self._delay = min(self._delay * 2, longest)
        return wait

    def end(self) -> None:
        """End the outage, and log that if its start was logged."""
        if self._logged_at is not None:
            logger.warning("%s: over, after %.0f s.", self._what, self.seconds)
