"""Time for the harness: made up, so that hours pass in milliseconds, or real, where the other side has a clock of its own.

With made-up time only one thread runs at a moment. It runs until it waits; then whoever has the earliest time runs, and time jumps there. So a
run of threads is the same each time, and a wait costs nothing. What answers requests while a thread waits for the answer (the state API,
a job server) runs on threads of its own, and only reads the time.
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
"""When made-up time begins."""


TICK = 0.001
"""The shortest wait: time that is too short for a number's precision would never pass."""


class Turn:
    """One thread's right to run. `wake` of the clock ends its wait early."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.number = 0
        """Of its current wait: what was planned for an earlier one is void."""


class Clock(ABC):
    """What every part of the harness is given instead of the time."""

    @abstractmethod
    def monotonic(self) -> float:
        """Seconds that never go back."""

    @abstractmethod
    def now(self) -> datetime:
        """The time of day, aware."""

    @abstractmethod
    def sleep(self, seconds: float) -> None:
        """Wait in this thread, which `start` made or which made the clock."""

    @abstractmethod
    def start(self, run: Callable[[], None], name: str) -> Turn:
        """Run this on a thread of its own, as soon as this one waits."""

    @abstractmethod
    def current(self) -> Turn:
        """Of the thread that calls this."""

    @abstractmethod
    def wake(self, turn: Turn) -> None:
        """End that thread's wait."""

    def wait(self, condition: Callable[[], bool], seconds: float, every: float = 1.0) -> bool:
        """Ask until it holds, for at most so many seconds; whether it does."""
        end = self.monotonic() + seconds
        while not condition():
            if self.monotonic() >= end:
                return False
            self.sleep(every)
        return True


class VirtualClock(Clock):
    """Time that passes only when every thread waits."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._plans: list[tuple[float, int, int, Turn]] = []
        self._lock = threading.Lock()
        """Of the plans: a thread that answers requests may wake others while the one that asked waits for its answer."""
        self._order = itertools.count()
        self._here = threading.local()

    @override
    def monotonic(self) -> float:
        return self._seconds

    @override
    def now(self) -> datetime:
        return EPOCH + timedelta(seconds=self._seconds)

    @override
    def sleep(self, seconds: float) -> None:
        turn = self.current()
        self._plan(turn, self._seconds + (max(TICK, seconds) if seconds > 0 else 0.0))
        following = self._next()
        if following is not turn:
            following.event.set()
            turn.event.wait()
        turn.event.clear()
        turn.number += 1

    @override
    def start(self, run: Callable[[], None], name: str) -> Turn:
        turn = Turn()

        def live() -> None:
            turn.event.wait()
            turn.event.clear()
            turn.number += 1
            self._here.turn = turn
            try:
                run()
            finally:
                turn.number += 1
                self._next().event.set()

        self._plan(turn, self._seconds)
        threading.Thread(target=live, name=name, daemon=True).start()
        return turn

    @override
    def current(self) -> Turn:
        return _turn_of(self._here)

    @override
    def wake(self, turn: Turn) -> None:
        self._plan(turn, self._seconds)

    def _plan(self, turn: Turn, at: float) -> None:
        with self._lock:
            heapq.heappush(self._plans, (at, next(self._order), turn.number, turn))

    def _next(self) -> Turn:
        with self._lock:
            while True:
                at, _, number, turn = heapq.heappop(self._plans)
                if number == turn.number:
                    self._seconds = max(self._seconds, at)
                    return turn


class RealClock(Clock):
    """Time as it passes, with threads that run side by side."""

    def __init__(self) -> None:
        self._here = threading.local()

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

        def live() -> None:
            self._here.turn = turn
            run()

        threading.Thread(target=live, name=name, daemon=True).start()
        return turn

    @override
    def current(self) -> Turn:
        return _turn_of(self._here)

    @override
    def wake(self, turn: Turn) -> None:
        turn.event.set()


def _turn_of(here: threading.local) -> Turn:
    if not hasattr(here, "turn"):
        here.turn = Turn()
    found: Turn = here.turn
    return found
