"""Check of this replica's clock against the API server's."""

import asyncio
import logging
import math
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

from reattach.cluster import ClusterError

log = logging.getLogger(__name__)

SAMPLES_MAX = 12
"""Samples that a decision is made from, the newest ones."""
PROOFS_MIN = 3
"""Samples that must show a difference beyond the limit."""
FIRST_PAUSE_SECONDS = 0.1
FIRST_SECONDS_MAX = 3.0
"""Time limit for the first samples, because the API server may be unavailable."""
PAUSE_SECONDS = 5.0


@dataclass(frozen=True)
class ClockSample:
    """Bounds of the difference between this clock and the API server's, in seconds.

    The difference is positive if this clock is ahead.
    """

    least: float
    most: float

    @classmethod
    def of(cls, sent: float, received: float, date: float) -> "ClockSample":
        """Return the bounds from the times of a request and the `Date` of its response.

        `Date` has whole seconds: the API server's clock was between `date` and `date` + 1 when it
        responded, between `sent` and `received`. So latency can't cause a false alarm.
        """
        return cls(least=sent - date - 1, most=received - date)

    def shows_more_than(self, limit: float) -> bool:
        """Return whether the difference is more than `limit` for certain."""
        return self.least > limit or self.most < -limit


class ClockCheck:
    """Decides whether this replica's clock is too far from the API server's.

    It is if several of the last samples prove that and none contradicts another. Samples contradict
    each other after one of the clocks was set, and if there are several API servers whose clocks
    differ. A decision stands until no sample proves it any longer, so that it doesn't alternate.
    """

    def __init__(self, limit: float) -> None:
        """Accept a difference of up to `limit` seconds. 0 accepts all."""
        self._limit = limit
        self._samples: deque[ClockSample] = deque(maxlen=SAMPLES_MAX)
        self.is_skewed = False

    def add(self, sample: ClockSample) -> None:
        """Add a sample and decide again."""
        self._samples.append(sample)
        proofs = sum(known.shows_more_than(self._limit) for known in self._samples)
        if self._limit == 0 or proofs == 0 or self._least > self._most:
            self.is_skewed = False
        elif proofs >= PROOFS_MIN:
            self.is_skewed = True

    @property
    def difference(self) -> float:
        """The middle of what all samples allow, in seconds. NaN without a sample."""
        return (self._least + self._most) / 2 if self._samples else math.nan

    @property
    def _least(self) -> float:
        return max(known.least for known in self._samples)

    @property
    def _most(self) -> float:
        return min(known.most for known in self._samples)


class ClockMonitor:
    """Takes samples, and logs when the decision changes."""

    def __init__(
        self, date: Callable[[], Awaitable[datetime | None]], limit: float, *, clock: Callable[[], float] = time.time
    ) -> None:
        """`date` returns the API server's `Date`. `clock` is this replica's."""
        self._date = date
        self._limit = limit
        self._clock = clock
        self.check = ClockCheck(limit)

    async def start(self) -> None:
        """Take the first samples, so that a skewed replica refuses the first calls too."""
        with suppress(TimeoutError):
            async with asyncio.timeout(FIRST_SECONDS_MAX):
                for number in range(PROOFS_MIN):
                    await asyncio.sleep(FIRST_PAUSE_SECONDS if number else 0)
                    await self.sample()

    async def watch(self) -> None:
        """Take a sample every few seconds, forever."""
        while True:
            # At random, because the bounds depend on the part of a second that has passed.
            await asyncio.sleep(PAUSE_SECONDS * random.uniform(0.8, 1.2))  # noqa: S311 -- spreads the samples
            await self.sample()

    async def sample(self) -> None:
        """Take one sample. Without a response the last decision stands."""
        sent = self._clock()
        try:
            date = await self._date()
        except ClusterError:
            return
        received = self._clock()
        if date is None or received < sent:
            return
        before = self.check.is_skewed
        self.check.add(ClockSample.of(sent, received, date.timestamp()))
        if self.check.is_skewed and not before:
            log.error(
                "this replica's clock is %+.1f seconds from the API server's; it must be within %g seconds. The replica"
                " refuses new sessions, intents and cancellations. Check the time synchronization of this node and of the control plane",
                self.check.difference,
                self._limit,
            )
        elif before and not self.check.is_skewed:
            log.info("the clocks of this replica and the API server agree again")
