"""Clients of the state API that hold connections, and what a task sees meanwhile."""

import contextlib
import http.client
import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from stateapi import Attempt, Server

LARGE_HEADERS = b"".join(b"X-%02d: %s\r\n" % (number, b"a" * 4080) for number in range(30))
"""Each within the limits of the server, without the line that ends the headers."""


@dataclass
class Peer:
    """A client that holds a connection. `socket` is None if the server refused the connection."""

    socket: socket.socket | None
    received: bytes = b""
    """Data that `is_closed` read."""

    @classmethod
    def connect(cls, server: Server, source: str = "127.0.0.1", *, tls: bool = True, port: int | None = None) -> "Peer":
        to = ("127.0.0.1", port or port_of(server))
        raw = socket.create_connection(to, timeout=30, source_address=(source, 0))
        if not tls:
            return cls(raw)
        try:
            return cls(server.ca.wrap_socket(raw, server_hostname="127.0.0.1"))
        except (ssl.SSLError, OSError):
            raw.close()
            return cls(None)

    @property
    def is_closed(self) -> bool:
        """Return whether the server closed the connection, without waiting."""
        if self.socket is None:
            return True
        self.socket.settimeout(0)
        try:
            data = self.socket.recv(4096)
        except (ssl.SSLWantReadError, BlockingIOError):
            return False
        except OSError:
            return True
        finally:
            self.socket.settimeout(30)
        self.received += data
        return data == b""

    def send(self, data: bytes) -> None:
        assert self.socket is not None
        self.socket.sendall(data)

    def response(self) -> tuple[int, dict[str, str], Any]:
        """Read one response: status, headers in lower case, and the JSON body."""
        assert self.socket is not None
        received = b""
        while b"\r\n\r\n" not in received:
            received += self._received()
        head, _, body = received.partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        while len(body) < int(headers["content-length"]):
            body += self._received()
        return int(status.split(" ")[1]), headers, json.loads(body)

    def status(self) -> int:
        """Read the status of one response."""
        return int(self._received().split(b" ")[1])

    def close(self) -> None:
        if self.socket is not None:
            self.socket.close()

    def _received(self) -> bytes:
        assert self.socket is not None
        data = self.socket.recv(65536)
        assert data, "the server closed the connection without a response"
        return data


def port_of(server: Server) -> int:
    return int(server.url.rpartition(":")[2])


def resident_bytes(server: Server) -> int:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) * 1024


def metric(server: Server, line: str) -> float:
    """Return the value of one line of the server's metrics, named with its labels."""
    return next(
        float(known.rpartition(" ")[2]) for known in server.metrics.splitlines() if known.startswith(f"{line} ")
    )


def head_of(attempt: Attempt, method: str, path: str, *more: str) -> bytes:
    """Return the head of a request of this task."""
    lines = (
        f"{method} {path} HTTP/1.1",
        "Host: state-api",
        f"Authorization: Bearer {attempt.token}",
        f"Reattach-Session: {attempt.session}",
        *more,
    )
    return "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n"


@dataclass
class Observed:
    """Slowest responses, in seconds, and most memory, in bytes, under load."""

    get: float = 0.0
    probe: float = 0.0
    resident: int = 0
    rounds: int = 0


@contextlib.contextmanager
def observed(server: Server, bystander: Attempt) -> Iterator[Observed]:
    """Read a key by new connections, and call both probes, until the block ends."""
    seen, over = Observed(), threading.Event()

    def observe() -> None:
        while not over.is_set():
            started = time.monotonic()
            with server.client(bystander.token, bystander.session) as client:
                assert client.get("/v1/state/k").status_code == 200
            seen.get = max(seen.get, time.monotonic() - started)
            for path in ("/healthz", "/readyz"):
                started = time.monotonic()
                probe = http.client.HTTPConnection(urlsplit(server.health_url).netloc, timeout=30)
                with contextlib.closing(probe):
                    probe.request("GET", path)
                    assert probe.getresponse().status == 200
                seen.probe = max(seen.probe, time.monotonic() - started)
            seen.resident = max(seen.resident, resident_bytes(server))
            seen.rounds += 1
            over.wait(0.05)

    with ThreadPoolExecutor(1) as pool:
        observing = pool.submit(observe)
        try:
            yield seen
        finally:
            over.set()
            observing.result()
