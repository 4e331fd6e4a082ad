"""Rate limit for writes that follows the 429 responses of the API server."""

import asyncio
import time
from collections.abc import Callable

from reattach.round_robin import RoundRobin


class RateLimiter:
    """Token bucket with a limit of concurrent writes, in which namespaces take turns.

    A write takes its token when it is sent, not when it begins to wait. So a write of an idle
    namespace waits for at most one write of each other namespace, besides those in flight.

    The limit of concurrent writes halves with each 429 and grows again with success.

    Args:
        per_second: writes per second on average; twice as many may be sent at once after a pause.
        at_once: maximum of concurrent writes.
        clock: seconds, monotonic.
    """

    def __init__(self, *, per_second: float, at_once: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_second
        self._most = at_once
        self._clock = clock
        self._tokens = self._burst = max(2 * per_second, 1.0)
        self._counted_at = clock()
        self._closed_until = 0.0
        self._window = float(at_once)
        self._running = 0
        self._waiting = RoundRobin[str, asyncio.Future[None]]()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def window(self) -> int:
        """Number of writes that may be in flight now."""
        return max(1, int(self._window))

    def seconds_to_next(self) -> float:
        """Return the seconds until the next write may be sent."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._counted_at) * self._per_second)
        self._counted_at = now
        return max(0.0, (1 - self._tokens) / self._per_second, self._closed_until - now)

    def on_throttled(self, retry_after: float | None) -> None:
        """Halve the concurrent writes after a 429, and pause for `retry_after` seconds.

        Without `retry_after`, pause for one second.
        """
        self._window = max(1.0, self._window / 2)
        self._closed_until = max(self._closed_until, self._clock() + (1.0 if retry_after is None else retry_after))

    def on_success(self) -> None:
        """Allow slightly more concurrent writes after a success."""
        self._window = min(float(self._most), self._window + 1 / self._window)

    async def acquire(self, namespace: str) -> None:
        """Wait until one write may be sent. The caller sends it, and then calls `release`.

        `namespace`: empty for writes of cluster-scoped objects, which have turns of their own.
        """
        turn = asyncio.get_running_loop().create_future()
        self._waiting.put(namespace, turn)
        self._grant_turns()
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                self.release()
            raise

    def release(self) -> None:
        """Let the next write be sent, because one has ended."""
        self._running -= 1
        self._grant_turns()

    def _grant_turns(self) -> None:
        """Let as many waiting writes be sent as the limits allow, and come back for the rest."""
        while self._waiting and self._running < self.window:
            if (seconds := self.seconds_to_next()) > 0:
                self._grant_later(seconds)
                return
            turn = self._waiting.pop()
            if turn.done():  # its task was cancelled
                continue
            self._tokens -= 1
            self._running += 1
            turn.set_result(None)

    def _grant_later(self, seconds: float) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(seconds, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._grant_turns()
