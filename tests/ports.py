"""Ports for servers that tests start."""

import contextlib
import secrets
import socket

_FIRST, _LAST = 12_000, 29_999
"""Range below the ports that Linux gives to outgoing connections.

Such a connection could take a port before its server listens, or while the server restarts.
"""


def free_port() -> int:
    """Return a free port of 127.0.0.1, chosen at random, because several workers choose at once."""
    while True:
        port = _FIRST + secrets.randbelow(_LAST - _FIRST + 1)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
