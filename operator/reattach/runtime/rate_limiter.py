"""Rate limit for writes that follows the 429 responses of the API server."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager


class RateLimiter:
    """Token bucket with a limit of concurrent writes.

    The limit halves with each 429 and grows again with success.

    Args:
        per_second: writes per second on average; twice as many may be sent at once after a pause.
        at_once: maximum of concurrent writes.
        clock: seconds, monotonic.
    """

    def __init__(self, *, per_second: float, at_once: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_second
        self._most = at_once
        self._clock = clock
        self._tokens = 2 * per_second
        self._counted_at = clock()
        self._closed_until = 0.0
        self._window = float(at_once)
        self._running = 0
        self._freed = asyncio.Condition()

    @property
    def window(self) -> int:
        """Number of writes that may be in flight now."""
        return max(1, int(self._window))

    def wait_seconds(self) -> float:
        """Take a token. Return how long to wait before using it."""
        now = self._clock()
        self._tokens = min(2 * self._per_second, self._tokens + (now - self._counted_at) * self._per_second)
        self._counted_at = now
        self._tokens -= 1
        return max(0.0, -self._tokens / self._per_second, self._closed_until - now)

    def on_throttled(self, retry_after: float | None) -> None:
        """Halve the concurrent writes after a 429, and pause for `retry_after` seconds.

        Without `retry_after`, pause for one second.
        """
        self._window = max(1.0, self._window / 2)
        self._closed_until = max(self._closed_until, self._clock() + (1.0 if retry_after is None else retry_after))

    def on_success(self) -> None:
        """Allow slightly more concurrent writes after a success."""
        self._window = min(float(self._most), self._window + 1 / self._window)

    @asynccontextmanager
    async def acquire(self) -> AsyncIterator[None]:
        """Wait until one write may be sent. The caller sends it within the context."""
        async with self._freed:
            await self._freed.wait_for(lambda: self._running < self.window)
            self._running += 1
        try:
            await asyncio.sleep(self.wait_seconds())
            yield
        finally:
            self._running -= 1
            async with self._freed:
                self._freed.notify()
