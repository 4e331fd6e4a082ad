"""A relay between a task and the state API, which can be cut or moved to another replica."""

import contextlib
import socket
import threading
from types import TracebackType

CHUNK = 64 * 1024


class Relay:
    """Forwards bytes in both directions. If `upstream` is None, connections are closed."""

    def __init__(self, upstream: int | None) -> None:
        self.upstream = upstream
        self.connections = 0
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def lead_to(self, upstream: int | None) -> None:
        """Cut all connections, and connect new ones to this port, or close them if it is None."""
        self.upstream = upstream
        self.cut()

    def cut(self) -> None:
        with self._lock:
            sockets, self._open = self._open, set()
        for one in sockets:
            _close(one)

    def __enter__(self) -> "Relay":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _close(self._listener)
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            try:
                if self.upstream is None:
                    raise ConnectionRefusedError
                server = socket.create_connection(("127.0.0.1", self.upstream))
            except OSError:
                _close(client)
                continue
            with self._lock:
                self._open |= {client, server}
            for ends in ((client, server), (server, client)):
                threading.Thread(target=_pass_on, args=ends, daemon=True).start()


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(CHUNK):
            target.sendall(data)
    _close(source)
    _close(target)


def _close(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()
