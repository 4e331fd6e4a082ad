"""Every write of the operator: only while it leads, no faster than agreed, slower when the API server asks for it."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from reattach.cluster import Cluster, ConflictError, TooManyRequestsError
from reattach.runtime.metrics import OperatorMetrics


class NotLeadingError(Exception):
    """This replica does not hold the Lease (any more): it must not write."""


class RateLimiter:
    """A token bucket, and a number of writes at once that halves with each 429 and grows again with success.

    Args:
        per_second: writes per second on average; twice as many may go at once after a pause.
        at_once: the most writes that wait for their answer at the same time.
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
        """How many writes may wait for their answer now."""
        return max(1, int(self._window))

    def wait_seconds(self) -> float:
        """Take a token; the answer is how long to wait before using it."""
        now = self._clock()
        self._tokens = min(2 * self._per_second, self._tokens + (now - self._counted_at) * self._per_second)
        self._counted_at = now
        self._tokens -= 1
        return max(0.0, -self._tokens / self._per_second, self._closed_until - now)

    def slow_down(self, retry_after: float | None) -> None:
        """The API server said 429."""
        self._window = max(1.0, self._window / 2)
        self._closed_until = max(self._closed_until, self._clock() + (1.0 if retry_after is None else retry_after))

    def speed_up(self) -> None:
        """A write was answered."""
        self._window = min(float(self._most), self._window + 1 / self._window)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """One write is made inside."""
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


class Writer:
    """The writes of `Cluster`, under these rules. Raises `NotLeadingError` besides the errors of `Cluster`."""

    def __init__(
        self, cluster: Cluster, pace: RateLimiter, may_write: Callable[[], bool], metrics: OperatorMetrics
    ) -> None:
        self._cluster = cluster
        self._pace = pace
        self._may_write = may_write
        self._metrics = metrics

    async def get(self, path: str) -> bytes:
        """GET, which is free."""
        return await self._cluster.get(path)

    async def create(self, path: str, body: Mapping[str, Any], **query: str) -> bytes:
        """POST."""
        async with self._write("create", path):
            return await self._cluster.create(path, body, **query)

    async def replace(self, path: str, body: Mapping[str, Any], **query: str) -> bytes:
        """PUT."""
        async with self._write("update", path):
            return await self._cluster.replace(path, body, **query)

    async def merge_patch(self, path: str, body: Mapping[str, Any], **query: str) -> bytes:
        """PATCH, RFC 7386."""
        async with self._write("patch", path):
            return await self._cluster.merge_patch(path, body, **query)

    async def delete(self, path: str, *, uid: str) -> bytes:
        """DELETE of this very object."""
        async with self._write("delete", path):
            return await self._cluster.delete(path, uid=uid)

    @asynccontextmanager
    async def _write(self, verb: str, path: str) -> AsyncIterator[None]:
        async with self._pace.turn():
            if not self._may_write():
                raise NotLeadingError("this replica does not lead (any more); it writes nothing")
            self._metrics.writes.labels(verb=verb, resource=_resource_of(path)).inc()
            try:
                yield
            except TooManyRequestsError as error:
                self._metrics.throttled.inc()
                self._pace.slow_down(error.retry_after)
                raise
            except ConflictError:
                self._metrics.conflicts.inc()
                raise
            self._pace.speed_up()


def _resource_of(path: str) -> str:
    """`pods` or `taskruns/status`, of a namespaced path."""
    _, _, rest = path.partition("/namespaces/")
    parts = rest.split("/")
    return "/".join(parts[1:4:2])
