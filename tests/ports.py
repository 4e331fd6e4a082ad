"""Ports for servers that tests start."""

import contextlib
import os
import secrets
import socket
import threading

_FIRST, _LAST = 12_000, 29_999
"""Range below the ports that Linux gives to outgoing connections.

Such a connection could take a port before its server listens, or while the server restarts.
"""
_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_given: set[int] = set()
_lock = threading.Lock()


def free_port() -> int:
    """Return a free port of 127.0.0.1 that no other test gets.

    A server listens some time after its port was chosen, and not while it restarts. So each worker
    has ports of its own, and gives none of them twice before half of them are used.
    """
    count = (_LAST - _FIRST + 1) // _WORKERS
    with _lock:
        if len(_given) > count // 2:
            _given.clear()
        while True:
            port = _FIRST + secrets.randbelow(count) * _WORKERS + _WORKER
            if port in _given:
                continue
            with socket.socket() as probe, contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                _given.add(port)
                return port
