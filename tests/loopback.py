"""Loopback servers with scripted connections, and a tunnel, for tests of what leaves a client."""

import select
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

Script = Callable[[socket.socket], None]
"""Behavior of one connection. The connection is closed afterwards."""

SECONDS = 60.0
"""Longest wait of a script. The client gives up sooner in every test."""


@dataclass
class Loopback:
    """A server on 127.0.0.1. `received`: the bytes of each connection that a script has read."""

    port: int
    received: list[bytes] = field(default_factory=list)
    connections: list[socket.socket] = field(default_factory=list)
    closed: threading.Event = field(default_factory=threading.Event)
    """Set after the first connection was closed."""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def tls_address(self) -> str:
        return f"https://127.0.0.1:{self.port}"


@contextmanager
def serving(script: Callable[[socket.socket, Loopback], None]) -> Iterator[Loopback]:
    """Run the script for each connection, in threads that have ended when this returns."""
    threads: list[threading.Thread] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        loopback = Loopback(server.getsockname()[1])

        def serve(connection: socket.socket) -> None:
            connection.settimeout(SECONDS)
            with connection, suppress(OSError):
                script(connection, loopback)
            loopback.closed.set()

        def accept() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    loopback.connections.append(connection)
                    threads.append(threading.Thread(target=serve, args=(connection,), daemon=True))
                    threads[-1].start()

        acceptor = threading.Thread(target=accept, daemon=True)
        acceptor.start()
        try:
            yield loopback
        finally:
            server.shutdown(socket.SHUT_RDWR)
            acceptor.join()
            for connection in loopback.connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()


def reset(connection: socket.socket) -> None:
    """Close the connection with a RST."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def read_head(connection: socket.socket) -> bytes:
    """Read a request's headers, and what arrived with them."""
    head = b""
    while b"\r\n\r\n" not in head and (part := connection.recv(65536)):
        head += part
    return head


def read_request(connection: socket.socket) -> bytes:
    """Read a request with its body."""
    head, _, body = read_head(connection).partition(b"\r\n\r\n")
    length = next((int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0)
    while len(body) < length and (part := connection.recv(65536)):
        body += part
    return head + b"\r\n\r\n" + body


def in_tls(context: ssl.SSLContext, script: Callable[[ssl.SSLSocket, Loopback], None]) -> Callable[..., None]:
    """Return a script that runs another one inside of TLS."""

    def run(connection: socket.socket, loopback: Loopback) -> None:
        with context.wrap_socket(connection, server_side=True) as wrapped:
            script(wrapped, loopback)

    return run


def tunnel(
    connection: socket.socket,
    target: tuple[str, int],
    ending: threading.Event | None = None,
    end: Callable[[socket.socket], None] = lambda _connection: None,
) -> None:
    """Copy bytes between a client and a target until one of them closes, or until `ending`.

    `ending` calls `end` with the client's connection.
    """
    with socket.create_connection(target) as upstream:
        sides = {connection: upstream, upstream: connection}
        while True:
            readable, _, _ = select.select(list(sides), [], [], 0.01)
            if ending is not None and ending.is_set():
                end(connection)
                return
            for side in readable:
                if not (part := side.recv(65536)):
                    return
                sides[side].sendall(part)
