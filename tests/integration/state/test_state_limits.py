"""Limits on connections, bodies and their time, while other tasks are served."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from controlplane import ControlPlane
from peers import LARGE_HEADERS, Peer, head_of, metric, observed, resident_bytes
from reattach.api.messages import KEY_CHARACTERS_MAX, VALUE_BYTES_MAX
from reattach.server.bodies import BATCH_BYTES_MAX, BODY_BYTES_MAX, SMALL_BYTES_MAX
from reattach.state.codec import StateEntry, records_to_data
from stateapi import Attempt, Server, Servers, Task, code_of
from waiting import wait_until

MIB = 1024 * 1024
NOW = datetime(2026, 1, 1, tzinfo=UTC)
SLOW_PARSER_SERVER = Path(__file__).with_name("slow_parser_server.py")
LARGE_LENGTH = "Content-Length: 30000"
DEEP = b"[" * 90 + b"]" * 90


@pytest.fixture
def peers() -> Iterator[list[Peer]]:
    held: list[Peer] = []
    yield held
    for peer in held:
        peer.close()


@pytest.fixture
def bystander(control_plane: Any, namespace: str, server: Server) -> Attempt:
    """Return a task of another TaskRun, which has stored a key."""
    attempt = Task.create(control_plane, namespace, "bystander").attempt(server)
    assert attempt.set("k", 1).status_code == 200
    return attempt


class TestConnections:
    def test_an_address_beyond_its_connections_is_refused_and_others_are_served(
        self, servers: Servers, task: Task, peers: list[Peer]
    ) -> None:
        server = servers.start(
            "--connections-per-address", "8", "--first-request-timeout", "60", "--idle-timeout", "60"
        )
        attempt = task.attempt(server)
        peers += [Peer.connect(server, "127.0.0.2", tls=False) for _ in range(40)]
        wait_until(lambda: sum(not peer.is_closed for peer in peers) <= 8, seconds=10, what="only 8 are open")
        refused = metric(server, 'reattach_server_refused_connections_total{reason="address"}')
        evicted = metric(server, 'reattach_server_closed_connections_total{reason="evicted"}')
        assert refused + evicted == 32
        assert metric(server, "reattach_server_connections") == 9
        assert attempt.on(server).set("k", 1).status_code == 200
        assert "refused a connection from ('127.0.0.2'" in server.log

    def test_an_idle_connection_makes_room_for_a_new_one_of_its_address(
        self, servers: Servers, task: Task, peers: list[Peer]
    ) -> None:
        server = servers.start("--connections-per-address", "4", "--first-request-timeout", "60")
        peers += [Peer.connect(server) for _ in range(4)]
        attempt = task.attempt(server, opened=False)
        wait_until(lambda: _answers(attempt), seconds=10, what="the task takes the slot of an idle connection")
        assert [peer.is_closed for peer in peers].count(True) == 1

    def test_all_addresses_together_beyond_the_total_leave_room_for_a_task(
        self, servers: Servers, task: Task, peers: list[Peer]
    ) -> None:
        server = servers.start(
            "--connections", "20", "--connections-per-address", "10", "--first-request-timeout", "60"
        )
        attempt = task.attempt(server)
        for address in range(2, 8):
            peers += [Peer.connect(server, f"127.0.0.{address}") for _ in range(10)]
            started = time.monotonic()
            assert attempt.on(server).set("k", address).status_code == 200
            assert httpx.get(f"{server.health_url}/readyz", trust_env=False, timeout=5).status_code == 200
            assert time.monotonic() - started < 5
        wait_until(lambda: sum(not peer.is_closed for peer in peers) <= 20, seconds=10, what="only 20 are open")
        assert metric(server, "reattach_server_connections") <= 20
        assert attempt.get("k").json()["value"] == 7

    def test_700_idle_connections_leave_the_memory_bounded(
        self, servers: Servers, task: Task, peers: list[Peer]
    ) -> None:
        server = servers.start("--first-request-timeout", "60")
        attempt = task.attempt(server)
        before = resident_bytes(server)
        peak = 0
        for number in range(700):
            peers.append(Peer.connect(server, f"127.0.0.{2 + number // 60}"))
            peak = max(peak, resident_bytes(server)) if number % 20 == 0 else peak
        assert 390 <= metric(server, "reattach_server_connections") <= 400
        assert attempt.on(server).set("k", 1).status_code == 200
        peak = max(peak, resident_bytes(server))
        assert peak - before < 80 * MIB

    @pytest.mark.parametrize("tls", [True, False], ids=["after the handshake", "before the handshake"])
    def test_a_connection_without_a_request_is_closed_in_time(self, servers: Servers, tls: bool) -> None:
        server = servers.start("--first-request-timeout", "1", "--idle-timeout", "60")
        peer = Peer.connect(server, tls=tls)
        wait_until(lambda: peer.is_closed, seconds=8, what="it is closed")
        peer.close()

    def test_a_first_request_may_take_longer_than_the_idle_timeout(self, servers: Servers, task: Task) -> None:
        server = servers.start("--first-request-timeout", "60", "--idle-timeout", "0.2")
        attempt = task.attempt(server)
        peer = Peer.connect(server)
        time.sleep(3.5)
        peer.send(head_of(attempt, "GET", "/v1/state"))
        assert peer.response()[0] == 200
        peer.close()

    @pytest.mark.parametrize("requests_before", [0, 1])
    def test_headers_that_come_byte_by_byte_are_cut_off_in_time(
        self, servers: Servers, task: Task, requests_before: int
    ) -> None:
        server = servers.start("--first-request-timeout", "2", "--idle-timeout", "2")
        attempt = task.attempt(server)
        peer = Peer.connect(server)
        head = head_of(attempt, "GET", "/v1/state")
        for _ in range(requests_before):
            peer.send(head)
            assert peer.response()[0] == 200
        sent = iter(head)

        def is_cut_off() -> bool:
            with contextlib.suppress(OSError):
                peer.send(bytes([next(sent)]))
            return peer.is_closed

        wait_until(is_cut_off, seconds=15, what="it is closed", every=0.3)
        peer.close()

    def test_a_connection_that_stays_idle_after_a_request_is_closed_in_time(self, servers: Servers, task: Task) -> None:
        server = servers.start("--idle-timeout", "3")
        attempt = task.attempt(server)
        peer = Peer.connect(server)
        peer.send(head_of(attempt, "GET", "/v1/state"))
        assert peer.response()[0] == 200
        assert not peer.is_closed
        wait_until(lambda: peer.is_closed, seconds=12, what="it is closed")
        peer.close()

    def test_a_response_that_nobody_reads_does_not_hold_its_connection(
        self, servers: Servers, task: Task, peers: list[Peer]
    ) -> None:
        server = servers.start("--idle-timeout", "1")
        attempt = task.attempt(server)
        for number in range(7):
            assert attempt.set(f"k{number}", "x" * (VALUE_BYTES_MAX - 10)).status_code == 200
        attempt.client.close()
        peer = Peer.connect(server)
        peers.append(peer)
        assert peer.socket is not None
        peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        for _ in range(20):
            peer.send(head_of(attempt, "GET", "/v1/state"))

        def is_given_up() -> bool:
            return metric(server, 'reattach_server_closed_connections_total{reason="idle"}') >= 1

        wait_until(is_given_up, seconds=15, what="the connection is closed")
        assert metric(server, "reattach_server_connections") == 0

    def test_every_way_to_end_releases_the_slot(self, servers: Servers, task: Task) -> None:
        """The timeouts are long, so that none of them releases a slot."""
        server = servers.start("--first-request-timeout", "60", "--idle-timeout", "60")
        attempt = task.attempt(server)
        attempt.client.close()
        for number in range(24):
            peer = Peer.connect(server, tls=number % 2 == 0)
            if number % 3 == 0:
                peer.send(b"\0" * 100)  # no HTTP, or no TLS
            if number % 4 == 0:
                peer.send(head_of(attempt, "GET", "/v1/state")[: 10 * number])
            peer.close()

        def slots() -> float:
            return metric(server, "reattach_server_connections")

        wait_until(lambda: slots() == 0, seconds=20, what="no connection is counted")
        assert attempt.on(server).set("k", 1).status_code == 200
        assert server.process.poll() is None


class TestHeaders:
    def test_large_headers_and_pipelined_requests_leave_the_memory_bounded(
        self, servers: Servers, task: Task, peers: list[Peer]
    ) -> None:
        server = servers.start()
        attempt = task.attempt(server)
        before = peak = resident_bytes(server)
        start = b"GET /v1/state HTTP/1.1\r\nHost: x\r\n"
        largest = LARGE_HEADERS[:-2]
        excessive = b"".join(b"X-%03d: %s\r\n" % (number, b"a" * 8000) for number in range(120))
        for number in range(90):
            peer = Peer.connect(server, f"127.0.0.{2 + number % 3}")
            peers.append(peer)
            assert peer.socket is not None
            peer.socket.settimeout(1)
            with contextlib.suppress(OSError):
                for _ in range(30 if number % 3 == 2 else 0):
                    peer.send(start + LARGE_HEADERS + b"\r\n")
                peer.send(start + (excessive if number % 3 == 1 else largest))
            peak = max(peak, resident_bytes(server))
        assert attempt.set("k", 1).status_code == 200
        assert max(peak, resident_bytes(server)) - before < 40 * MIB

    @pytest.mark.parametrize("headers", [33, 1], ids=["too many", "too long"])
    def test_headers_beyond_the_limits_are_refused(self, server: Server, peers: list[Peer], headers: int) -> None:
        peer = Peer.connect(server)
        peers.append(peer)
        value = "a" * (10 if headers > 1 else 4097)
        peer.send(b"GET /v1/state HTTP/1.1\r\nHost: x\r\n")
        peer.send("".join(f"X-{number}: {value}\r\n" for number in range(headers)).encode() + b"\r\n")
        assert peer.status() == 400

    def test_the_longest_key_in_a_path_is_served(self, server: Server, task: Task) -> None:
        attempt = task.attempt(server)
        key = "\N{GRINNING FACE}" * KEY_CHARACTERS_MAX
        assert attempt.set(key, 1).status_code == 200
        assert attempt.get(key).json()["value"] == 1


class TestHealthPort:
    def test_idle_connections_and_large_headers_leave_the_memory_bounded_and_probes_served(
        self, servers: Servers, peers: list[Peer]
    ) -> None:
        server = servers.start()
        port = int(server.health_url.rpartition(":")[2])
        before = peak = resident_bytes(server)
        for number in range(300):
            peer = Peer.connect(server, f"127.0.0.{1 + number % 6}", tls=False, port=port)
            peers.append(peer)
            if number % 2:
                with contextlib.suppress(OSError):
                    peer.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + LARGE_HEADERS[:-2])
            if number % 30 == 0:
                # A slot of the own address becomes free only after a while.
                wait_until(lambda: _is_healthy(server), seconds=2, what="a probe is served", every=0.1)
                peak = max(peak, resident_bytes(server))
        assert max(peak, resident_bytes(server)) - before < 30 * MIB
        wait_until(lambda: sum(not peer.is_closed for peer in peers) <= 64, seconds=4, what="only 64 are open")
        wait_until(lambda: all(peer.is_closed for peer in peers), seconds=10, what="the idle ones are closed")
        assert _is_healthy(server)

    def test_headers_beyond_16_kib_close_the_connection(self, server: Server, peers: list[Peer]) -> None:
        for tls, port in [(True, None), (False, int(server.health_url.rpartition(":")[2]))]:
            peer = Peer.connect(server, tls=tls, port=port)
            peers.append(peer)
            with contextlib.suppress(OSError):  # the server does not read all of them
                peer.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + LARGE_HEADERS)
                time.sleep(0.5)
                peer.send(b"\r\n")
            wait_until(lambda: peer.is_closed, seconds=3, what="the connection is closed")  # noqa: B023 -- called at once
            assert peer.received == b""

    def test_headers_of_15_kib_are_served_on_the_health_port(self, server: Server, peers: list[Peer]) -> None:
        peer = Peer.connect(server, tls=False, port=int(server.health_url.rpartition(":")[2]))
        peers.append(peer)
        for _ in range(3):
            peer.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + LARGE_HEADERS[: 3 * 4088] + b"\r\n")
            assert peer.status() == 200


class TestReads:
    def test_reads_of_large_states_neither_delay_another_namespace_nor_fill_the_memory(
        self, control_plane: ControlPlane, server: Server, bystander: Attempt
    ) -> None:
        namespace = control_plane.create_namespace("hostile")
        hostile = [Task.create(control_plane, namespace, f"task-{number}") for number in range(10)]
        attempts = [task.attempt(server) for task in hostile]
        entry = StateEntry(
            key="", value=msgspec.Raw(b"1"), version=1, attempt=1, pod_uid="0" * 36, updated_at=NOW, expires_at=None
        )
        records = {f"{number}": msgspec.structs.replace(entry, key=f"{number}") for number in range(6500)}
        for task in hostile:
            task.patch_configmap(data={"lastVersion": "1", **records_to_data(records)})
        over = threading.Event()

        def read(number: int) -> int:
            peer, reads = Peer.connect(server, f"127.0.0.{2 + number % 4}"), 0
            with contextlib.suppress(OSError, AssertionError):
                while not over.is_set():
                    peer.send(head_of(attempts[number % len(attempts)], "GET", "/v1/state/1"))
                    reads += peer.response()[0] == 200
            peer.close()
            return reads

        with ThreadPoolExecutor(160) as pool, observed(server, bystander) as seen:
            reading = [pool.submit(read, number) for number in range(160)]
            time.sleep(8)
            over.set()
            assert sum(each.result() for each in reading) > 50
        assert seen.rounds >= 2
        assert seen.get < 5
        assert seen.probe < 5
        assert seen.resident < 200 * MIB


class TestBodies:
    @pytest.mark.parametrize("route", BODY_BYTES_MAX, ids=" ".join)
    def test_a_declared_length_beyond_the_limit_is_refused_before_the_body_is_sent(
        self, server: Server, task: Task, peers: list[Peer], route: tuple[str, str]
    ) -> None:
        method, path = route
        peer = Peer.connect(server)
        peers.append(peer)
        length = BODY_BYTES_MAX[route] + 1
        peer.send(head_of(task.attempt(server), method, path.format(key="k"), f"Content-Length: {length}"))
        status, headers, problem = peer.response()
        assert (status, problem["code"]) == (413, "request-too-large")
        assert str(BODY_BYTES_MAX[route]) in problem["detail"]
        assert (headers.get("connection") == "close") == (length > SMALL_BYTES_MAX)
        wait_until(lambda: peer.is_closed, seconds=10, what="the connection is closed")

    @pytest.mark.parametrize("method, path", [("GET", "/v1/state"), ("DELETE", "/v1/state/k"), ("GET", "/v1/jobs")])
    def test_a_route_without_a_body_refuses_one(
        self, server: Server, task: Task, peers: list[Peer], method: str, path: str
    ) -> None:
        peer = Peer.connect(server)
        peers.append(peer)
        peer.send(head_of(task.attempt(server), method, path, "Content-Length: 7"))
        status, _, problem = peer.response()
        assert (status, problem["code"], problem["detail"]) == (413, "request-too-large", "this route takes no body")
        peer.send(b"a body!" + head_of(task.attempt(server, 2), "GET", "/v1/state"))
        assert peer.response()[0] == 200

    def test_a_chunked_body_is_read_no_further_than_its_limit(
        self, server: Server, task: Task, peers: list[Peer]
    ) -> None:
        peer = Peer.connect(server)
        peers.append(peer)
        peer.send(head_of(task.attempt(server), "POST", "/v1/open", "Transfer-Encoding: chunked"))
        peer.send(b"2000\r\n" + b" " * 0x2000 + b"\r\n")
        status, _, problem = peer.response()
        assert (status, problem["code"]) == (413, "request-too-large")

    def test_the_largest_value_is_stored_however_it_is_escaped(self, server: Server, task: Task) -> None:
        attempt = task.attempt(server)
        escaped = "\\u0061" * (VALUE_BYTES_MAX - 2)
        body = f'{{"value": "{escaped}", "retentionSeconds": 3153600000, "ifAbsent": true}}'
        assert len(body) > 390_000
        assert attempt.client.put("/v1/state/k", content=body).status_code == 200
        assert attempt.get("k").json()["value"] == "a" * (VALUE_BYTES_MAX - 2)

    def test_a_compressed_body_is_not_unpacked(self, server: Server, task: Task) -> None:
        attempt = task.attempt(server)
        response = attempt.client.put("/v1/state/k", content=b"x\x9c\x03", headers={"Content-Encoding": "deflate"})
        assert code_of(response) == (400, "invalid")

    def test_slow_small_bodies_on_all_connections_leave_room_for_a_task(
        self, servers: Servers, task: Task, bystander: Attempt, peers: list[Peer]
    ) -> None:
        server = servers.start("--connections", "8", "--connections-per-address", "8")
        attempt = task.attempt(server)
        head = head_of(attempt, "PUT", "/v1/state/slow", "Content-Length: 1000")
        over = threading.Event()

        def dribble() -> None:
            held: list[Peer] = []
            while not over.wait(0.1):
                held = [peer for peer in held if not peer.is_closed]
                with contextlib.suppress(OSError):
                    while len(held) < 8:
                        held.append(Peer.connect(server))
                        peers.append(held[-1])
                        if held[-1].socket is None:
                            break
                        held[-1].send(head)
                    for peer in [peer for peer in held if peer.socket]:
                        peer.send(b" ")

        with ThreadPoolExecutor(1) as pool:
            dribbling = pool.submit(dribble)
            try:
                time.sleep(1.5)
                for value in range(5):
                    started = time.monotonic()
                    wait_until(lambda: _stores(bystander.on(server), value), seconds=4, what="the task is served")  # noqa: B023 -- called at once
                    assert time.monotonic() - started < 4
            finally:
                over.set()
            dribbling.result()
        assert metric(server, 'reattach_server_closed_connections_total{reason="evicted"}') > 0

    def test_100_large_nested_bodies_at_once_keep_nobody_else_waiting(
        self, server: Server, task: Task, bystander: Attempt
    ) -> None:
        attempt = task.attempt(server)
        value = b"[" + b",".join([DEEP] * (BATCH_BYTES_MAX // 181 - 2)) + b"]"
        body = b'{"operations":[{"op":"set","key":"k","value":' + value + b"}]}"
        assert BATCH_BYTES_MAX - 1024 < len(body) <= BATCH_BYTES_MAX

        def send(_number: int) -> tuple[int, str]:
            try:
                with server.client(attempt.token, attempt.session) as client:
                    return code_of(client.post("/v1/state", content=body))
            except httpx.TransportError:  # the server evicted the connection, or closed it before it read all
                return 429, "rate-limited"

        with observed(server, bystander) as seen, ThreadPoolExecutor(20) as pool:
            answers = set(pool.map(send, range(100)))
        assert answers <= {(413, "value-too-large"), (429, "rate-limited")}
        assert (413, "value-too-large") in answers
        assert seen.rounds >= 5
        assert seen.get < 8
        assert seen.probe < 4
        assert seen.resident < 200 * MIB, seen

    def test_a_body_that_takes_long_to_parse_keeps_nobody_else_waiting(
        self, servers: Servers, task: Task, bystander: Attempt
    ) -> None:
        server = servers.start(program=(str(SLOW_PARSER_SERVER),))
        attempt = task.attempt(server)
        started = time.monotonic()
        with observed(server, bystander) as seen:
            assert attempt.set("k", "x" * 60_000).status_code == 200
            assert time.monotonic() - started >= 6
        assert seen.get < 4
        assert seen.probe < 4

    def test_100_large_bodies_held_open_by_a_byte_hold_no_memory_and_no_slots(
        self, server: Server, task: Task, bystander: Attempt, peers: list[Peer]
    ) -> None:
        attempt = task.attempt(server)
        head = head_of(attempt, "POST", "/v1/state", f"Content-Length: {BATCH_BYTES_MAX}")

        def hold(number: int) -> Peer:
            peer = Peer.connect(server, f"127.0.0.{2 + number // 50}")
            assert peer.socket is not None
            peer.socket.settimeout(3)
            with contextlib.suppress(OSError):  # the server doesn't read all of it
                peer.send(head + b" " * (BATCH_BYTES_MAX - 1))
            return peer

        large = "x" * (VALUE_BYTES_MAX - 2)
        with observed(server, bystander) as seen, ThreadPoolExecutor(50) as pool:
            holding = [pool.submit(hold, number) for number in range(100)]
            started = time.monotonic()
            assert bystander.set("large", large).status_code == 200
            assert time.monotonic() - started < 4
            peers += [held.result() for held in holding]
            wait_until(lambda: all(peer.is_closed for peer in peers), seconds=30, what="none is held any longer")
        assert seen.get < 4
        assert seen.probe < 2
        assert seen.resident < 200 * MIB, seen
        assert attempt.set("large", large).status_code == 200

    def test_a_body_that_comes_byte_by_byte_is_given_up_in_time(
        self, server: Server, task: Task, peers: list[Peer]
    ) -> None:
        attempt = task.attempt(server)
        peer = Peer.connect(server)
        peers.append(peer)
        peer.send(head_of(attempt, "PUT", "/v1/state/k", "Content-Length: 1000"))
        over = threading.Event()

        def dribble() -> None:
            with contextlib.suppress(OSError):
                while not over.wait(0.2):
                    peer.send(b" ")

        with ThreadPoolExecutor(1) as pool:
            pool.submit(dribble)
            started = time.monotonic()
            try:
                status, headers, problem = peer.response()
            finally:
                over.set()
        assert (status, problem["code"], headers["retry-after"]) == (429, "rate-limited", "1")
        assert problem["detail"].startswith("the body did not arrive within 5 seconds")
        assert time.monotonic() - started < 12
        wait_until(lambda: peer.is_closed, seconds=10, what="the connection is closed")

    def test_a_taskrun_with_two_large_bodies_on_the_way_waits_and_another_does_not(
        self, server: Server, task: Task, bystander: Attempt, peers: list[Peer]
    ) -> None:
        attempt = task.attempt(server)
        large = "x" * 30_000
        head = head_of(attempt, "PUT", "/v1/state/k", "Content-Length: 30000")

        def is_refused() -> bool:
            holders = [peer for peer in peers if not peer.is_closed]
            for _ in range(6 - len(holders)):  # each slot is taken again as soon as it is free
                peers.append(Peer.connect(server))
                peers[-1].send(head)
            return code_of_large(attempt, large) == 429

        wait_until(is_refused, seconds=30, what="all slots of the TaskRun are taken")
        assert attempt.set("small", 1).status_code == 200
        assert bystander.set("large", large).status_code == 200

    def test_three_namespaces_with_slow_large_bodies_leave_a_slot_to_another_namespace(
        self, control_plane: ControlPlane, server: Server, bystander: Attempt
    ) -> None:
        heads = [
            head_of(Task.create(control_plane, namespace, name).attempt(server), "PUT", "/v1/state/k", LARGE_LENGTH)
            for namespace in [control_plane.create_namespace(f"hostile-{number}") for number in range(3)]
            for name in ("one", "two")
        ]
        over = threading.Event()

        def hold(head: bytes) -> None:
            while not over.is_set():
                peer = Peer.connect(server, f"127.0.0.{10 + heads.index(head)}")
                with contextlib.suppress(OSError, AssertionError):
                    peer.send(head)
                    while not over.wait(0.2) and not peer.is_closed:
                        peer.send(b" ")
                peer.close()

        with ThreadPoolExecutor(24) as pool:
            holding = [pool.submit(hold, head) for head in heads * 4]
            try:
                time.sleep(2)
                for _ in range(6):
                    started = time.monotonic()
                    assert bystander.set("large", "x" * 30_000).status_code == 200
                    assert time.monotonic() - started < 2
                    time.sleep(0.4)
            finally:
                over.set()
            for held in holding:
                held.result()


def code_of_large(attempt: Attempt, value: str) -> int:
    return attempt.set("large", value).status_code


def _answers(attempt: Attempt) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return attempt.open().is_success
    return False


def _is_healthy(server: Server) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{server.health_url}/healthz", trust_env=False, timeout=2).is_success
    return False


def _stores(attempt: Attempt, value: int) -> bool:
    """Store a value by a new connection, and return whether that succeeded."""
    with attempt.client, contextlib.suppress(httpx.TransportError):
        return attempt.set("k", value).is_success
    return False
