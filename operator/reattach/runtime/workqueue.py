"""Work queue of the keys to reconcile, and a heap of the keys to reconcile later."""

import asyncio
import heapq
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import NamedTuple

from reattach.round_robin import RoundRobin


class Key(NamedTuple):
    """Namespace and name of an object.

    A new object with the name of a deleted one has the same key, so both are never reconciled at
    once.
    """

    namespace: str
    name: str


class DelayingHeap:
    """Keys to reconcile later, each at the time that was set last.

    Times are seconds since the epoch.
    """

    def __init__(self) -> None:
        self._times: dict[Key, float] = {}
        self._heap: list[tuple[float, Key]] = []

    def __len__(self) -> int:
        return len(self._times)

    def set(self, key: Key, at: float) -> None:
        """Set the time of `key` to `at`."""
        if self._times.get(key) != at:
            self._times[key] = at
            heapq.heappush(self._heap, (at, key))
            self._tidy()

    def drop(self, key: Key) -> None:
        """Forget the time of `key`, if it has one."""
        self._times.pop(key, None)
        self._tidy()

    def next_at(self) -> float | None:
        """Return the earliest time."""
        return self._heap[0][0] if self._heap else None

    def pop_due(self, now: float) -> list[Key]:
        """Remove and return the keys whose time has come, earliest first."""
        due = []
        while self._heap and self._heap[0][0] <= now:
            _, key = heapq.heappop(self._heap)
            del self._times[key]
            due.append(key)
            self._tidy()
        return due

    def _tidy(self) -> None:
        """Remove outdated entries from the top of the heap.

        Rebuild the heap once it is over twice as long as the number of keys.
        """
        while self._heap and self._times.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        if len(self._heap) > 2 * len(self._times) + 64:
            self._heap = [(at, key) for key, at in self._times.items()]
            heapq.heapify(self._heap)


class WorkQueue:
    """Keys to reconcile, each at most once.

    Namespaces take turns. Within a namespace, keys are returned in the order in which they were
    added. So the number of one tenant's TaskRuns does not delay those of another.

    No key is returned while a worker has it. A key that is added meanwhile is returned afterwards,
    so no change is missed.

    Args:
        per_namespace: maximum of workers that one namespace occupies, so that its slow calls, for
            example to an admission webhook, leave some to the others. The default is no maximum.
        clock: seconds since the epoch.
    """

    LOOK_AT_CLOCK_SECONDS = 5.0
    """Longest wait before the wall clock is read again, because it may be changed."""

    def __init__(self, *, per_namespace: int | None = None, clock: Callable[[], float] = time.time) -> None:
        self._per_namespace = per_namespace
        self._clock = clock
        self._ready = RoundRobin[str, Key]()
        self._queued_since: dict[Key, float] = {}
        self._active: set[Key] = set()
        self._workers_of: Counter[str] = Counter()
        self._idle: deque[asyncio.Future[None]] = deque()
        self._delays = DelayingHeap()
        self._changed = asyncio.Event()

    @property
    def depth(self) -> int:
        """Number of keys that wait for a worker."""
        return len(self._queued_since)

    @property
    def delayed(self) -> int:
        """Number of keys that are reconciled again at a later time."""
        return len(self._delays)

    def oldest_age(self) -> float:
        """Return the seconds that the oldest key has waited."""
        return max(0.0, self._clock() - next(iter(self._queued_since.values()))) if self._queued_since else 0.0

    def add(self, key: Key) -> None:
        """Enqueue `key`, because an object of it changed."""
        if key in self._queued_since:
            return
        self._queued_since[key] = self._clock()
        if key not in self._active:
            self._put_ready(key)

    def add_at(self, key: Key, at: float | None) -> None:
        """Enqueue `key` at `at`, instead of at the time set before (None: at no time)."""
        if at is None:
            self._delays.drop(key)
        else:
            self._delays.set(key, at)
            self._changed.set()

    async def get(self) -> Key:
        """Return the next key. The caller must call `done` with it."""
        while not self._ready:
            await self._wait_for_wakeup()
        key = self._ready.pop()
        del self._queued_since[key]
        self._active.add(key)
        self._workers_of[key.namespace] += 1
        if self._workers_of[key.namespace] == self._per_namespace:
            self._ready.suspend(key.namespace)
        return key

    def done(self, key: Key) -> None:
        """Accept `key` back from a worker."""
        self._active.remove(key)
        if self._workers_of[key.namespace] == self._per_namespace:
            self._ready.resume(key.namespace)
        self._workers_of[key.namespace] -= 1
        if not self._workers_of[key.namespace]:
            del self._workers_of[key.namespace]
        if key in self._queued_since:
            self._put_ready(key)
        elif self._ready:
            self._wake_worker()

    async def run_delays(self) -> None:
        """Enqueue the keys whose time has come, forever."""
        while True:
            self._changed.clear()
            now = self._clock()
            for key in self._delays.pop_due(now):
                self.add(key)
            next_at = self._delays.next_at()
            wait = self.LOOK_AT_CLOCK_SECONDS if next_at is None else min(next_at - now, self.LOOK_AT_CLOCK_SECONDS)
            try:
                async with asyncio.timeout(max(wait, 0)):
                    await self._changed.wait()
            except TimeoutError:
                pass

    def _put_ready(self, key: Key) -> None:
        self._ready.put(key.namespace, key)
        self._wake_worker()

    async def _wait_for_wakeup(self) -> None:
        wakeup = asyncio.get_running_loop().create_future()
        self._idle.append(wakeup)
        try:
            await wakeup
        except asyncio.CancelledError:
            if not wakeup.cancelled():
                self._wake_worker()  # pass the wake-up on
            raise

    def _wake_worker(self) -> None:
        """Wake one idle worker, if there is one."""
        while self._idle:
            wakeup = self._idle.popleft()
            if not wakeup.done():
                wakeup.set_result(None)
                return
