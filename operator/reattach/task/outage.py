"""Measures an outage of the external system: its duration, when to log it, and the delay before the next try."""

import logging

from reattach.task.client import QUIET_SECONDS, REMINDER_SECONDS, Timing

logger = logging.getLogger("reattach")

DELAY_SECONDS_FIRST = 1.0


class OutageBackoff:
    """One outage, described by `what` ("External job 'load' can't be looked up"). It has no time limit of its own."""

    def __init__(self, waits: Timing, what: str, *, quiet_seconds: float = QUIET_SECONDS) -> None:
        self._waits = waits
        self._what = what
        self._quiet = quiet_seconds
        self._since = waits.clock()
        self._delay = DELAY_SECONDS_FIRST
        self._said_at: float | None = None

    @property
    def seconds(self) -> float:
        """Return how long the outage has lasted."""
        return self._waits.clock() - self._since

    def wait(self, why: str, longest: float) -> float:
        """Return the seconds before the next try: growing, with jitter, at most `longest`."""
        now = self._waits.clock()
        lasting = now - self._since
        if lasting >= self._quiet and (self._said_at is None or now - self._said_at >= REMINDER_SECONDS):
            self._said_at = now
            logger.warning("%s, for %.0f s now (%s). Trying again.", self._what, lasting, why)
        wait = min(self._delay, longest) * (0.5 + self._waits.chance() / 2)
        self._delay = min(self._delay * 2, longest)
        return wait

    def end(self) -> None:
        """End the outage, and log that if its begin was logged."""
        if self._said_at is not None:
            logger.warning("%s: over, after %.0f s.", self._what, self.seconds)
