"""Which connection is admitted, refused or closed: the accounting alone, without sockets."""

import pytest

from reattach.server.connections import (
    GRACE_SECONDS,
    SETTLING_SECONDS,
    CloseReason,
    ConnectionTable,
    LimitReached,
    PeerConnection,
)


class Peers:
    """ConnectionTable with a clock of the test's own; `aborted` names what was closed, in order."""

    def __init__(self, *, per_address: int = 3, total: int = 6) -> None:
        self.now = 1000.0
        self.aborted: list[str] = []
        self.closures: list[CloseReason] = []
        self.connections = ConnectionTable(
            per_address=per_address,
            total=total,
            first_request_seconds=5,
            idle_seconds=10,
            on_close=self.closures.append,
            clock=lambda: self.now,
        )

    def connect(self, address: str, name: str = "") -> PeerConnection | LimitReached:
        return self.connections.admit(address, lambda: self.aborted.append(name or address))

    def connected(self, address: str, name: str = "") -> PeerConnection:
        connection = self.connect(address, name)
        assert isinstance(connection, PeerConnection)
        return connection

    def wait(self, seconds: float) -> None:
        self.now += seconds


def test_an_address_at_its_limit_with_young_connections_is_refused() -> None:
    peers = Peers()
    for _ in range(3):
        peers.connected("a")
    assert peers.connect("a") is LimitReached.ADDRESS
    assert peers.connected("b").address == "b"
    assert peers.aborted == []


def test_an_address_at_its_limit_loses_its_longest_idle_connection() -> None:
    peers = Peers()
    first = peers.connected("a", "first")
    peers.connected("a", "second")
    with peers.connections.request(first):
        peers.wait(1)
    peers.connected("a", "third")
    peers.wait(SETTLING_SECONDS)
    peers.connected("a", "fourth")
    assert peers.aborted == ["second"]
    assert peers.closures == [CloseReason.EVICTED]
    assert peers.connections.count_of("a") == 3


def test_a_connection_with_a_request_in_flight_is_never_evicted() -> None:
    peers = Peers(per_address=1, total=1)
    with peers.connections.request(peers.connected("a")):
        peers.wait(3600)
        assert peers.connect("a") is LimitReached.ADDRESS
        assert peers.connect("b") is LimitReached.TOTAL
        peers.connections.close_overdue()
    assert peers.aborted == []
    peers.connected("b")
    assert peers.aborted == ["a"]


def test_at_the_total_the_address_with_the_most_idle_connections_makes_room() -> None:
    peers = Peers()
    peers.connected("task")
    peers.wait(1)
    for name in ("a1", "a2", "a3"):
        peers.connected("a", name)
    peers.connected("b")
    peers.connected("b")
    peers.connected("new")
    assert peers.aborted == ["a1"]
    assert len(peers.connections) == 6


def test_a_slot_is_released_once() -> None:
    peers = Peers()
    gone, kept = peers.connected("a"), peers.connected("a")
    peers.connections.remove(gone)
    peers.connections.remove(gone)
    assert (len(peers.connections), peers.connections.count_of("a")) == (1, 1)
    peers.connections.remove(kept)
    assert (len(peers.connections), peers.connections.count_of("a")) == (0, 0)
    assert not peers.connections._by_address


def test_an_evicted_connection_that_ends_releases_no_second_slot() -> None:
    peers = Peers(per_address=1)
    evicted = peers.connected("a")
    peers.wait(SETTLING_SECONDS)
    peers.connected("a")
    peers.connections.lose(evicted)
    assert peers.connections.count_of("a") == 1


@pytest.mark.parametrize("requests, closed_after, closure", [(0, 5, CloseReason.NO_REQUEST), (1, 12, CloseReason.IDLE)])
def test_an_idle_connection_is_closed_when_its_time_is_over(
    requests: int, closed_after: float, closure: CloseReason
) -> None:
    peers = Peers()
    connection = peers.connected("a")
    for _ in range(requests):
        with peers.connections.request(connection):
            pass
    peers.wait(closed_after - 0.1)
    peers.connections.close_overdue()
    assert peers.closures == []
    peers.wait(0.1)
    peers.connections.close_overdue()
    assert (peers.closures, len(peers.connections)) == ([closure], 0)
    assert closed_after == (10 + GRACE_SECONDS if requests else 5)


def test_a_connection_whose_body_is_arriving_is_evicted_and_not_after_the_body() -> None:
    peers = Peers(per_address=1)
    has_arrived = False
    with peers.connections.request(peers.connected("a", "slow"), lambda: has_arrived):
        has_arrived = True
        peers.wait(SETTLING_SECONDS)
        assert peers.connect("a") is LimitReached.ADDRESS
        has_arrived = False
        peers.connections.close_overdue()
        assert peers.aborted == []
        peers.connected("a")
    assert peers.aborted == ["slow"]
    assert peers.connections.count_of("a") == 1


def test_a_lost_connection_keeps_its_slot_until_its_request_ends() -> None:
    peers = Peers(per_address=1)
    lost = peers.connected("a")
    with peers.connections.request(lost, lambda: False):
        peers.connections.lose(lost)
        peers.wait(3600)
        assert peers.connect("a") is LimitReached.ADDRESS
    assert len(peers.connections) == 0
    assert peers.aborted == []
