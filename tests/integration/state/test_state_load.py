"""One replica with the chart's limits, under connections, bodies and tokens of peers that send as much as they can.

`make test` runs a tenth of it, with a tenth of the connections. REATTACH_ALL=1 runs all of it.
"""

import contextlib
import http.client
import os
import re
import resource
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import yaml

from controlplane import ControlPlane
from peers import Peer, head_of, metric
from reattach.server.bodies import BATCH_BYTES_MAX
from reattach.server.config import ServerConfig
from reattach.server.peer_log import TOTAL_RATE
from stateapi import Attempt, Server, Servers, Task

ALL = bool(os.environ.get("REATTACH_ALL"))
SCALE = 1.0 if ALL else 0.1
IDLE_CONNECTIONS = int(2000 * SCALE)
SLOW_BODIES = int(1000 * SCALE)
LARGE_BODIES = int(200 * SCALE)
BAD_TOKENS = int(10_000 * SCALE)
ADDRESSES = 20
"""Addresses that send bad tokens. Each may cost 20 TokenReviews, and one more each second."""
CALL_SECONDS = 20.0
"""Limit for one call of the innocent task, with its retries. The load has the same cores as the server."""
VALUES = Path(__file__).parents[3] / "charts/reattach/values.yaml"
PROBE_SECONDS = 5.0
"""The probes of the chart have this timeout."""
DEEP = b"[" * 90 + b"]" * 90
LINE_BYTES = 500


def memory_limit() -> int:
    limit = yaml.safe_load(VALUES.read_text())["server"]["resources"]["limits"]["memory"]
    assert limit.endswith("Mi")
    return int(limit[:-2]) * 1024 * 1024


def peak_bytes(server: Server) -> int:
    """Return the most memory that the process ever had."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) * 1024


@dataclass
class Load:
    """Threads that send requests until they are done or the test ends."""

    server: Server
    hostile: list[Attempt]
    over: threading.Event = field(default_factory=threading.Event)
    responses: list[tuple[str, int]] = field(default_factory=list)
    """Kind of the request, and the status. To append is atomic."""
    opened: list[str] = field(default_factory=list)

    def connect(self, kind: str, address: str) -> Peer:
        self.opened.append(kind)
        peer = Peer.connect(self.server, address)
        if peer.socket is not None:
            peer.socket.settimeout(15)
        return peer

    def hold_idle(self, number: int) -> None:
        """Hold 50 connections of one address without a request. Those that the server closes are not replaced."""
        peers = [self.connect("idle", f"127.1.0.{1 + number}") for _ in range(50)]
        self.over.wait(60)
        for peer in peers:
            peer.close()

    def send_slow_bodies(self, number: int) -> None:
        """Send 20 bodies, a byte each time, until the server closes the connection or responds."""
        attempt = self.hostile[number % len(self.hostile)]
        head = head_of(attempt, "PUT", "/v1/state/slow", "Content-Length: 1000")
        peers = [self.connect("slow", f"127.2.0.{1 + number}") for _ in range(20)]
        for peer in peers:
            with contextlib.suppress(OSError, AssertionError):
                peer.send(head)
        while peers and not self.over.wait(0.2):
            for peer in list(peers):
                with contextlib.suppress(OSError, AssertionError):
                    peer.send(b" ")
                if peer.is_closed or peer.received:
                    peers.remove(peer)
                    peer.close()
        for peer in peers:
            peer.close()

    def send_large_body(self, number: int) -> None:
        attempt = self.hostile[number % len(self.hostile)]
        value = b"[" + b",".join([DEEP] * (BATCH_BYTES_MAX // 181 - 2)) + b"]"
        body = b'{"operations":[{"op":"set","key":"k","value":' + value + b"}]}"
        peer = self.connect("large", f"127.3.0.{1 + number % 50}")
        with contextlib.suppress(OSError, AssertionError):
            peer.send(head_of(attempt, "POST", "/v1/state", f"Content-Length: {len(body)}") + body)
            self.responses.append(("large", peer.response()[0]))
        peer.close()

    def send_bad_tokens(self, number: int) -> None:
        """Send the tokens of one address, on a new connection each time that the server closes one."""
        peer = Peer(None)
        for token in range(BAD_TOKENS // ADDRESSES):
            head = f"GET /v1/state HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer bad-{number}-{token}\r\n\r\n"
            for _ in range(20):
                with contextlib.suppress(OSError, AssertionError):
                    if peer.socket is None:
                        peer = self.connect("bad", f"127.4.0.{1 + number}")
                    peer.send(head.encode())
                    self.responses.append(("bad", peer.response()[0]))
                    break
                peer.close()
                peer = Peer(None)
        peer.close()


@dataclass
class Innocent:
    """A task that counts, by a new connection each time, with the retries of the SDK."""

    attempt: Attempt
    slowest: float = 0.0
    slowest_probe: float = 0.0
    calls: int = 0

    def call(self) -> None:
        self.calls += 1
        started = time.monotonic()
        while True:
            with contextlib.suppress(httpx.TransportError):
                with self.attempt.server.client(self.attempt.token, self.attempt.session) as client:
                    response = client.put(
                        "/v1/state/k", json={"value": self.calls}, headers={"Reattach-Request-Id": f"r-{self.calls}"}
                    )
                if response.is_success:
                    assert response.json()["version"] == self.calls
                    break
                assert response.status_code in {429, 503}, response.text
            assert time.monotonic() - started < 30
            time.sleep(0.2)
        self.slowest = max(self.slowest, time.monotonic() - started)

    def probe(self) -> None:
        for path in ("/healthz", "/readyz"):
            started = time.monotonic()
            connection = http.client.HTTPConnection(urlsplit(self.attempt.server.health_url).netloc, timeout=30)
            with contextlib.closing(connection):
                connection.request("GET", path)
                assert connection.getresponse().status == 200
            self.slowest_probe = max(self.slowest_probe, time.monotonic() - started)


@contextlib.contextmanager
def many_files() -> Iterator[None]:
    """Raise the limit of open files of this process, as far as is allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard >= IDLE_CONNECTIONS + SLOW_BODIES + 500, "raise `ulimit -Hn`"
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, IDLE_CONNECTIONS + SLOW_BODIES + 500), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_state_api_under_load_stays_within_its_limits_and_serves_another_task(
    control_plane: ControlPlane, servers: Servers, task: Task, record_property: Callable[[str, object], None]
) -> None:
    rates = ServerConfig(tls_cert=Path(), tls_key=Path())
    flags = {
        "--taskrun-rate": rates.taskrun_rate,
        "--namespace-rate": rates.namespace_rate,
        "--namespace-bytes-rate": rates.namespace_bytes_rate,
        "--refused-token-rate": rates.refused_token_rate,
    }
    defaults = [text for name, rate in flags.items() for text in (name, f"{rate.per_second}:{rate.burst}")]
    connections = ("--connections", str(int(rates.connections * SCALE)))
    with many_files():
        server = servers.start(*defaults, *connections)
        innocent = Innocent(task.attempt(server))
        hostile = [
            Task.create(control_plane, namespace, name).attempt(server)
            for namespace in [control_plane.create_namespace(f"hostile-{number}") for number in range(4)]
            for name in ("one", "two")
        ]
        for attempt in [innocent.attempt, *hostile]:
            attempt.client.close()
        load = Load(server, hostile)
        started = time.monotonic()
        with ThreadPoolExecutor(max_workers=160) as pool:
            running: list[Future[None]] = []
            finite: list[Future[None]] = []
            running += [pool.submit(load.hold_idle, number) for number in range(IDLE_CONNECTIONS // 50)]
            running += [pool.submit(load.send_slow_bodies, number) for number in range(SLOW_BODIES // 20)]
            finite += [pool.submit(load.send_bad_tokens, number) for number in range(ADDRESSES)]
            finite += [pool.submit(load.send_large_body, number) for number in range(LARGE_BODIES)]
            try:
                for round_ in count():
                    innocent.call()
                    innocent.probe()
                    if round_ >= 10 and all(sent.done() for sent in finite):
                        break
            finally:
                load.over.set()
            for sent in [*running, *finite]:
                sent.result()
        seconds = time.monotonic() - started
    reviews = metric(server, 'reattach_server_token_reviews_total{result="refused"}')
    lines = [line for line in server.log.splitlines() if "server.audit" not in line]
    opened, statuses = Counter(load.opened), Counter(load.responses)
    measured = {
        "seconds": round(seconds, 1),
        "peak MiB": peak_bytes(server) >> 20,
        "refused TokenReviews": reviews,
        "log lines": len(lines),
        "log bytes": sum(map(len, lines)),
        "innocent calls": innocent.calls,
        "slowest call": round(innocent.slowest, 2),
        "slowest probe": round(innocent.slowest_probe, 2),
        "opened": dict(opened),
        "statuses": {f"{kind} {status}": number for (kind, status), number in sorted(statuses.items())},
    }
    for name, value in measured.items():
        record_property(name, value)
    print(measured)  # noqa: T201 -- pytest shows it with -s and after a failure
    assert opened["idle"] == IDLE_CONNECTIONS
    assert opened["slow"] == SLOW_BODIES
    assert opened["large"] == LARGE_BODIES
    assert sum(number for (kind, _), number in statuses.items() if kind == "bad") > BAD_TOKENS * 0.9
    assert peak_bytes(server) < memory_limit()
    assert reviews <= ADDRESSES * (rates.refused_token_rate.burst + seconds * rates.refused_token_rate.per_second + 1)
    assert len(lines) < TOTAL_RATE.burst + TOTAL_RATE.per_second * seconds + 50
    assert max(map(len, lines)) < LINE_BYTES
    assert innocent.slowest < CALL_SECONDS
    assert innocent.slowest_probe < PROBE_SECONDS
    assert innocent.attempt.on(server).get("k").json()["value"] == innocent.calls
