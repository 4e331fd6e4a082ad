"""Clocks of the suite: a virtual one, in which hours pass in milliseconds, and the real one.

With virtual time, only one thread runs at a moment. When it sleeps, the thread with the earliest
time runs next, and the clock advances to that time. So threads run in the same order each time,
and a sleep costs no time. Servers (the state API, a job server) run on threads of their own, and
only read the time. A thread that waits for their response does not sleep.
"""

import heapq
import itertools
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from typing_extensions import override

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
"""Start of virtual time."""


TICK = 0.001
"""Shortest sleep in seconds, because a float can't represent an arbitrarily short one."""


class Turn:
    """The turn of one thread to run. `Clock.wake` ends its sleep early."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.number = 0
        """Number of its current sleep.

        A wakeup that was scheduled for an earlier sleep is ignored.
        """


class Clock(ABC):
    """Clock and threads of all parts of the suite."""

    @abstractmethod
    def monotonic(self) -> float:
        """Return seconds that never go back."""

    @abstractmethod
    def now(self) -> datetime:
        """Return the current time, with a time zone."""

    @abstractmethod
    def sleep(self, seconds: float) -> None:
        """Sleep in this thread, which was started by `start` or created the clock."""

    @abstractmethod
    def start(self, run: Callable[[], None], name: str) -> Turn:
        """Run a function on a new thread, as soon as this thread sleeps."""

    @abstractmethod
    def current(self) -> Turn:
        """Return the turn of the calling thread."""

    @abstractmethod
    def wake(self, turn: Turn) -> None:
        """End the sleep of a thread."""

    def wait(self, condition: Callable[[], bool], seconds: float, every: float = 1.0) -> bool:
        """Wait until the condition holds, at most `seconds`, and return whether it holds."""
        end = self.monotonic() + seconds
        while not condition():
            if self.monotonic() >= end:
                return False
            self.sleep(every)
        return True


class VirtualClock(Clock):
    """Time that passes only while all threads sleep."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._wakeups: list[tuple[float, int, int, Turn]] = []
        self._lock = threading.Lock()
        """Lock of the wakeups, because a server's thread may wake others."""
        self._order = itertools.count()
        self._local = threading.local()

    @override
    def monotonic(self) -> float:
        return self._seconds

    @override
    def now(self) -> datetime:
        return EPOCH + timedelta(seconds=self._seconds)

    @override
    def sleep(self, seconds: float) -> None:
        turn = self.current()
        self._schedule(turn, self._seconds + (max(TICK, seconds) if seconds > 0 else 0.0))
        upcoming = self._next()
        if upcoming is not turn:
            upcoming.event.set()
            turn.event.wait()
        turn.event.clear()
        turn.number += 1

    @override
    def start(self, run: Callable[[], None], name: str) -> Turn:
        turn = Turn()

        def run_turn() -> None:
            turn.event.wait()
            turn.event.clear()
            turn.number += 1
            self._local.turn = turn
            try:
                run()
            finally:
                turn.number += 1
                self._next().event.set()

        self._schedule(turn, self._seconds)
        threading.Thread(target=run_turn, name=name, daemon=True).start()
        return turn

    @override
    def current(self) -> Turn:
        return _turn_of(self._local)

    @override
    def wake(self, turn: Turn) -> None:
        self._schedule(turn, self._seconds)

    def _schedule(self, turn: Turn, at: float) -> None:
        with self._lock:
            heapq.heappush(self._wakeups, (at, next(self._order), turn.number, turn))

    def _next(self) -> Turn:
        with self._lock:
            while True:
                at, _, number, turn = heapq.heappop(self._wakeups)
                if number == turn.number:
                    self._seconds = max(self._seconds, at)
                    return turn


class RealClock(Clock):
    """Real time, with concurrent threads."""

    def __init__(self) -> None:
        self._local = threading.local()

    @override
    def monotonic(self) -> float:
        return time.monotonic()

    @override
    def now(self) -> datetime:
        return datetime.now(UTC)

    @override
    def sleep(self, seconds: float) -> None:
        event = self.current().event
        if event.wait(max(0.0, seconds)):
            event.clear()

    @override
    def start(self, run: Callable[[], None], name: str) -> Turn:
        turn = Turn()

        def run_turn() -> None:
            self._local.turn = turn
            run()

        threading.Thread(target=run_turn, name=name, daemon=True).start()
        return turn

    @override
    def current(self) -> Turn:
        return _turn_of(self._local)

    @override
    def wake(self, turn: Turn) -> None:
        turn.event.set()


def _turn_of(local: threading.local) -> Turn:
    if not hasattr(local, "turn"):
        local.turn = Turn()
    found: Turn = local.turn
    return found
