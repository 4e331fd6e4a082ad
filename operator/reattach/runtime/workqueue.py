"""The one queue of TaskRuns to look at, and the one heap of those to look at later."""

import asyncio
import heapq
import time
from collections.abc import Callable
from typing import NamedTuple


class Key(NamedTuple):
    """Which TaskRun. Two with the same name, one after the other, have the same key: they are never looked at side by side."""

    namespace: str
    name: str


class DelayingHeap:
    """What is to be looked at later: at most one time per key, the newest that was set. Times are seconds since the epoch."""

    def __init__(self) -> None:
        self._times: dict[Key, float] = {}
        self._heap: list[tuple[float, Key]] = []

    def __len__(self) -> int:
        return len(self._times)

    def set(self, key: Key, at: float) -> None:
        """Look at `key` at `at`, and not at the time set before."""
        if self._times.get(key) != at:
            self._times[key] = at
            heapq.heappush(self._heap, (at, key))
            self._tidy()

    def drop(self, key: Key) -> None:
        """Forget the time of `key`, if it has one."""
        self._times.pop(key, None)
        self._tidy()

    def next_at(self) -> float | None:
        """The earliest time."""
        return self._heap[0][0] if self._heap else None

    def pop_due(self, now: float) -> list[Key]:
        """Take out the keys whose time has come, earliest first."""
        due = []
        while self._heap and self._heap[0][0] <= now:
            _, key = heapq.heappop(self._heap)
            del self._times[key]
            due.append(key)
            self._tidy()
        return due

    def _tidy(self) -> None:
        """Keep the top of the heap true, and the heap no more than twice as long as what it stands for."""
        while self._heap and self._times.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        if len(self._heap) > 2 * len(self._times) + 64:
            self._heap = [(at, key) for key, at in self._times.items()]
            heapq.heapify(self._heap)


class WorkQueue:
    """Keys in the order in which they were marked; each at most once, and never handed out while it is being worked on.

    A key marked while it is being worked on comes again afterwards, so nothing that happened is missed.
    """

    LOOK_AT_CLOCK_SECONDS = 5.0
    """The wall clock may be set: no wait is longer than this without asking it again."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._ready: asyncio.Queue[Key] = asyncio.Queue()
        self._queued_since: dict[Key, float] = {}
        self._active: set[Key] = set()
        self._delays = DelayingHeap()
        self._changed = asyncio.Event()

    @property
    def depth(self) -> int:
        """How many keys wait to be worked on now."""
        return len(self._queued_since)

    @property
    def delayed(self) -> int:
        """How many keys have a time to be looked at."""
        return len(self._delays)

    def oldest_age(self) -> float:
        """Seconds since the longest waiting key was marked."""
        return max(0.0, self._clock() - next(iter(self._queued_since.values()))) if self._queued_since else 0.0

    def add(self, key: Key) -> None:
        """Something about `key` changed."""
        if key in self._queued_since:
            return
        self._queued_since[key] = self._clock()
        if key not in self._active:
            self._ready.put_nowait(key)

    def add_at(self, key: Key, at: float | None) -> None:
        """Look at `key` at `at`, instead of at the time set before; None: at no time."""
        if at is None:
            self._delays.drop(key)
        else:
            self._delays.set(key, at)
            self._changed.set()

    async def get(self) -> Key:
        """The next key, to be given back by `done`."""
        key = await self._ready.get()
        del self._queued_since[key]
        self._active.add(key)
        return key

    def done(self, key: Key) -> None:
        """`key` is no longer worked on."""
        self._active.remove(key)
        if key in self._queued_since:
            self._ready.put_nowait(key)

    async def run_delays(self) -> None:
        """Mark what is due, for ever."""
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
