"""Accounting of open connections: which are admitted, and which are closed to make room."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum

SETTLING_SECONDS = 1.0
"""Idle time after which a new connection from the same address may evict a connection."""
GRACE_SECONDS = 2.0
"""Time beyond the idle timeout, at which aiohttp closes a connection, before it is aborted."""


class LimitReached(StrEnum):
    """Reason to close a connection as soon as it is accepted."""

    ADDRESS = "address"
    """The peer's address is at its limit, and no connection of it can be evicted."""
    TOTAL = "total"
    """The replica has as many connections as it may hold, and none of them can be evicted."""


class CloseReason(StrEnum):
    """Reason to close a connection that was admitted."""

    EVICTED = "evicted"
    """It was idle or its body was still arriving, and a new connection needed its slot."""
    NO_REQUEST = "no-request"
    """It sent no complete request in time."""
    IDLE = "idle"
    """It sent no further request in time, or did not read the response."""


@dataclass(eq=False)
class PeerConnection:
    """One admitted connection. It is idle while no request of it is being handled."""

    address: str
    abort: Callable[[], None]
    idle_since: float
    """Time of the accept, of the last request's headers, or of its end; the latest counts."""
    requests: int = 0
    is_lost: bool = False
    """The peer has disconnected."""
    handled: list[Callable[[], bool]] = field(default_factory=list)
    """For each request that is being handled, whether its body has arrived."""

    @property
    def is_idle(self) -> bool:
        return not self.handled

    @property
    def is_evictable(self) -> bool:
        """Return whether no request has arrived completely, so that closing costs only a retry."""
        return not self.is_lost and not any(has_arrived() for has_arrived in self.handled)


class ConnectionTable:
    """Open connections of a replica, limited per address and in all.

    At a limit, a new connection evicts an idle one, because clients reconnect without an error
    while a refused client has to wait. A connection whose request body is still arriving can be
    evicted too, so that slow bodies can't hold all slots. If there is neither, the new connection
    is refused. At the limit of an address, a connection is evicted only after `SETTLING_SECONDS`,
    so that it gets the time to send its request.
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
        """Count an accepted connection, and evict another one if the slot is needed.

        `abort` closes the connection at once.
        """
        now = self._clock()
        if self._by_address[address] >= self._per_address:
            latest = now - self._settling_seconds
            settled = [known for known in self._evictable_of(address) if known.idle_since <= latest]
            if not settled:
                return LimitReached.ADDRESS
            self._close(min(settled, key=_idle_since), CloseReason.EVICTED)
        elif len(self._open) >= self._total:
            candidate = self._eviction_candidate()
            if candidate is None:
                return LimitReached.TOTAL
            self._close(candidate, CloseReason.EVICTED)
        connection = PeerConnection(address, abort, now)
        self._open[connection] = None
        self._by_address[address] += 1
        return connection

    def lose(self, connection: PeerConnection) -> None:
        """Record that the peer disconnected. Release the slot once no request is being handled.

        The requests of a lost connection run to their end, so they still need the slot.
        """
        connection.is_lost = True
        if connection.is_idle:
            self.remove(connection)

    def remove(self, connection: PeerConnection) -> None:
        """Release the connection's slot. Removing the connection again changes nothing."""
        if connection not in self._open:
            return
        del self._open[connection]
        self._by_address[connection.address] -= 1
        if self._by_address[connection.address] == 0:
            del self._by_address[connection.address]

    @contextmanager
    def request(self, connection: PeerConnection, has_arrived: Callable[[], bool] = lambda: True) -> Iterator[None]:
        """Count a request until the block ends.

        `has_arrived` returns whether its body is complete.
        """
        connection.requests += 1
        connection.handled.append(has_arrived)
        connection.idle_since = self._clock()
        try:
            yield
        finally:
            connection.handled.remove(has_arrived)
            connection.idle_since = self._clock()
            if connection.is_lost and connection.is_idle:
                self.remove(connection)

    def close_overdue(self) -> None:
        """Close connections that sent no first request in time or were idle for too long."""
        now = self._clock()
        for connection in [known for known in self._open if known.is_idle]:
            idle = now - connection.idle_since
            if connection.requests == 0:
                if idle >= self._first_request_seconds:
                    self._close(connection, CloseReason.NO_REQUEST)
            elif idle >= self._idle_seconds + GRACE_SECONDS:
                self._close(connection, CloseReason.IDLE)

    def _evictable_of(self, address: str) -> list[PeerConnection]:
        return [known for known in self._open if known.address == address and known.is_evictable]

    def _eviction_candidate(self) -> PeerConnection | None:
        """Return the longest idle connection of the address with the most evictable ones."""
        evictable = [known for known in self._open if known.is_evictable]
        by_address = Counter(known.address for known in evictable)
        return min(evictable, key=lambda known: (-by_address[known.address], known.idle_since), default=None)

    def _close(self, connection: PeerConnection, closure: CloseReason) -> None:
        self.remove(connection)
        self._on_close(closure)
        connection.abort()


def _idle_since(connection: PeerConnection) -> float:
    return connection.idle_since
