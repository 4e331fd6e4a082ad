"""Accounting of open connections: which are admitted, and which are closed to make room."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum

SETTLING_SECONDS = 1.0
"""Idle time after which a new connection from the same address may replace a connection."""
GRACE_SECONDS = 2.0
"""Time beyond the idle timeout, at which aiohttp closes a connection, before it is aborted."""


class LimitReached(StrEnum):
    """Reason to close a connection as soon as it is accepted."""

    ADDRESS = "address"
    """The peer's address has as many connections as it may have, and none of them is idle."""
    TOTAL = "total"
    """The replica has as many connections as it may hold, and none of them is idle."""


class CloseReason(StrEnum):
    """Reason to close a connection that was admitted."""

    REPLACED = "replaced"
    """It was idle, and a new connection needed its place."""
    NO_REQUEST = "no-request"
    """It sent no complete request in time."""
    IDLE = "idle"
    """It sent no further request in time, or did not read the response."""


@dataclass(eq=False)
class PeerConnection:
    """One admitted connection. It is idle while none of its requests is in flight."""

    address: str
    abort: Callable[[], None]
    idle_since: float
    requests: int = 0
    in_flight: int = 0

    @property
    def is_idle(self) -> bool:
        return self.in_flight == 0


class ConnectionTable:
    """Open connections of a replica, limited per address and in all.

    At a limit, a new connection replaces an idle one, because clients reconnect without an error
    while a refused client has to wait. The new connection is refused only if no other is idle. At
    the limit of an address, a connection younger than `SETTLING_SECONDS` is not replaced either, so
    that it gets the time to send its request.
    """

    def __init__(
        self,
        *,
        per_address: int,
        total: int,
        first_request_seconds: float,
        idle_seconds: float,
        settling_seconds: float = SETTLING_SECONDS,
        on_close: Callable[[CloseReason], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._per_address = per_address
        self._total = total
        self._first_request_seconds = first_request_seconds
        self._idle_seconds = idle_seconds
        self._settling_seconds = settling_seconds
        self._on_close = on_close
        self._clock = clock
        self._open: dict[PeerConnection, None] = {}  # in the order of their accept
        self._by_address: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._open)

    def count_of(self, address: str) -> int:
        """Return how many connections this address has."""
        return self._by_address[address]

    def admit(self, address: str, abort: Callable[[], None]) -> PeerConnection | LimitReached:
        """Count an accepted connection, and close an idle one if the place is needed.

        `abort` closes the connection at once.
        """
        now = self._clock()
        if self._by_address[address] >= self._per_address:
            latest = now - self._settling_seconds
            settled = [known for known in self._idle_of(address) if known.idle_since <= latest]
            if not settled:
                return LimitReached.ADDRESS
            self._close(min(settled, key=_idle_since), CloseReason.REPLACED)
        elif len(self._open) >= self._total:
            victim = self._longest_idle_of_the_largest()
            if victim is None:
                return LimitReached.TOTAL
            self._close(victim, CloseReason.REPLACED)
        connection = PeerConnection(address, abort, now)
        self._open[connection] = None
        self._by_address[address] += 1
        return connection

    def remove(self, connection: PeerConnection) -> None:
        """Give the place of a connection back. Removing it again changes nothing."""
        if connection not in self._open:
            return
        del self._open[connection]
        self._by_address[connection.address] -= 1
        if self._by_address[connection.address] == 0:
            del self._by_address[connection.address]

    @contextmanager
    def request(self, connection: PeerConnection) -> Iterator[None]:
        """Mark a request of this connection as in flight."""
        connection.requests += 1
        connection.in_flight += 1
        try:
            yield
        finally:
            connection.in_flight -= 1
            connection.idle_since = self._clock()

    def close_overdue(self) -> None:
        """Close connections that sent no first request in time or were idle for too long."""
        now = self._clock()
        for connection in [known for known in self._open if known.is_idle]:
            idle = now - connection.idle_since
            if connection.requests == 0 and idle >= self._first_request_seconds:
                self._close(connection, CloseReason.NO_REQUEST)
            elif idle >= self._idle_seconds + GRACE_SECONDS:
                self._close(connection, CloseReason.IDLE)

    def _idle_of(self, address: str) -> list[PeerConnection]:
        return [known for known in self._open if known.address == address and known.is_idle]

    def _longest_idle_of_the_largest(self) -> PeerConnection | None:
        """Return the longest idle connection of the address with the most idle ones."""
        idle = [known for known in self._open if known.is_idle]
        by_address = Counter(known.address for known in idle)
        return min(idle, key=lambda known: (-by_address[known.address], known.idle_since), default=None)

    def _close(self, connection: PeerConnection, closure: CloseReason) -> None:
        self.remove(connection)
        self._on_close(closure)
        connection.abort()


def _idle_since(connection: PeerConnection) -> float:
    return connection.idle_since
