"""Rate limits of callers."""

import time
from collections.abc import Callable

from reattach.server.config import Rate

KEYS_MAX = 10_000


class RateLimit:
    """A token bucket for every key.

    A bucket is stored as the time at which it is full again (the generic cell rate algorithm).
    """

    def __init__(self, rate: Rate, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval = 1 / rate.per_second
        self._tolerance = self._interval * (rate.burst - 1)
        self._clock = clock
        self._full_at: dict[str, float] = {}

    def take(self, key: str) -> float:
        """Take one token and return 0.0, or return the seconds until a token is available."""
        if wait := self.wait_of(key):
            return wait
        now = self._clock()
        if len(self._full_at) >= KEYS_MAX:
            self._forget(now)
        self._full_at[key] = max(self._full_at.get(key, now), now) + self._interval
        return 0.0

    def wait_of(self, key: str) -> float:
        """Return the seconds until `take` succeeds."""
        now = self._clock()
        return max(0.0, self._full_at.get(key, now) - self._tolerance - now)

    def _forget(self, now: float) -> None:
        self._full_at = {key: full_at for key, full_at in self._full_at.items() if full_at > now}
