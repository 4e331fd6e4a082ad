"""Rate limits of callers."""

import time
from collections.abc import Callable

from reattach.server.config import Rate

KEYS_MAX = 10_000


class RateLimit:
    """A token bucket for every key.

    A bucket is stored as the time at which it is full again (the generic cell rate algorithm). It
    owes at most `debt_max` tokens, whatever is taken.
    """

    def __init__(
        self, rate: Rate, *, debt_max: float = float("inf"), clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._interval = 1 / rate.per_second
        self.burst = rate.burst
        self._debt_max = debt_max
        self._clock = clock
        self._full_at: dict[str, float] = {}

    def take(self, key: str, cost: float = 1, *, least: float = 1) -> float:
        """Take `cost` tokens and return 0.0, or return the seconds until `take` would succeed.

        Succeed if the bucket has at least `least` tokens. With a `cost` above `least` the bucket
        may go into debt, which the next calls wait for.
        """
        now = self._clock()
        full_at = max(self._full_at.get(key, now), now)
        if (wait := full_at - now - (self.burst - least) * self._interval) > 0:
            return wait
        if len(self._full_at) >= KEYS_MAX:
            self._forget(now)
        self._full_at[key] = min(full_at + cost * self._interval, now + (self.burst + self._debt_max) * self._interval)
        return 0.0

    def give_back(self, key: str, cost: float = 1) -> None:
        """Return tokens that were taken."""
        if key in self._full_at:
            self._full_at[key] -= cost * self._interval

    def _forget(self, now: float) -> None:
        """Drop full buckets, and the fuller half of the others if that is not enough."""
        kept = {key: full_at for key, full_at in self._full_at.items() if full_at > now}
        if len(kept) > KEYS_MAX // 2:
            kept = dict(sorted(kept.items(), key=lambda item: item[1])[-KEYS_MAX // 2 :])
        self._full_at = kept
