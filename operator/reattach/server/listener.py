"""Listener of the state API and the health port, with few connections and little memory for each.

asyncio's own TLS server allocates 256 KiB for each connection before the handshake. It waits 60
seconds for the handshake and 30 seconds for the peer's close_notify. It does not limit the number
of connections. Peers without a token could exhaust the memory of a replica.
"""

import asyncio
import logging
import ssl
from asyncio import sslproto
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from aiohttp import web
from typing_extensions import override

from reattach.server.connections import ConnectionTable, LimitReached, PeerConnection

log = logging.getLogger(__name__)

BUFFER_BYTES = 32 * 1024
"""Receive buffer of one connection: two TLS records."""
WRITE_BUFFER_BYTES = 64 * 1024
"""Unsent part of a response at which its connection takes no more. asyncio's default is 512 KiB."""
HEAD_BYTES_MAX = 16 * 1024
"""Bytes after which the headers must be complete, plus at most one receive buffer."""
PLAIN_BUFFER_BYTES = 4 * 1024
"""Receive buffer of one connection without TLS."""
ACCEPT_BACKLOG = 512
"""Connections that wait for the accept. A client beyond them waits seconds for its next SYN."""
SHUTDOWN_SECONDS = 2.0
"""Time limit for the peer's close_notify."""
SWEEP_SECONDS = 0.5
LOG_SECONDS = 60.0
"""Pause between two log lines about refused connections, for each limit."""


class Listener:
    """Accepts connections, with TLS if there is a context, and hands them to an aiohttp server."""

    def __init__(
        self,
        server: web.Server,
        context: ssl.SSLContext | None,
        connections: ConnectionTable,
        *,
        handshake_seconds: float,
        on_refuse: Callable[[LimitReached], None] = lambda _: None,
        limits: Mapping[LimitReached, str],
    ) -> None:
        """Listen later. `limits` names each limit in the log."""
        self._server = server
        self._context = context
        self._connections = connections
        self._handshake_seconds = handshake_seconds
        self._on_refuse = on_refuse
        self._limits = limits
        self._handlers: dict[asyncio.BaseProtocol, PeerConnection] = {}
        self._logged_at: dict[LimitReached, float] = {}
        self._listening: asyncio.Server | None = None
        self._sweeping: asyncio.Task[None] | None = None

    async def start(self, host: str | None, port: int) -> None:
        """Listen on `host` (None: all addresses, IPv4 and IPv6). Raises `OSError`."""
        loop = asyncio.get_running_loop()
        self._listening = await loop.create_server(lambda: _Accepted(self._admit), host, port, backlog=ACCEPT_BACKLOG)
        self._sweeping = asyncio.create_task(self._sweep())

    def stop(self) -> None:
        """Accept no more connections. Those that are open stay so, within their limits."""
        if self._listening is not None:
            self._listening.close()

    async def close(self) -> None:
        """Stop accepting, and stop closing idle connections."""
        self.stop()
        if self._sweeping is not None:
            self._sweeping.cancel()
            await asyncio.gather(self._sweeping, return_exceptions=True)

    @contextmanager
    def request(self, request: web.Request) -> Iterator[None]:
        """Count a request on its connection until the block ends.

        Raises `HTTPBadRequest` if the client has disconnected already: that response has no reader.
        """
        connection = self._handlers.get(request.protocol)
        if connection is None:
            raise web.HTTPBadRequest
        with self._connections.request(connection, request.content.is_eof):
            yield

    def _admit(self, transport: asyncio.Transport) -> None:
        peer = transport.get_extra_info("peername")
        admitted = self._connections.admit(peer[0] if peer else "", transport.abort)
        if isinstance(admitted, LimitReached):
            transport.abort()
            self._on_refuse(admitted)
            self._log_refused(admitted, peer)
            return
        handler = self._server()

        def release() -> None:
            self._connections.lose(admitted)
            self._handlers.pop(handler, None)

        protocol: asyncio.BaseProtocol
        if self._context is None:
            protocol = _PlainProtocol(handler, on_lost=release)
        else:
            protocol = _TLSProtocol(handler, self._context, handshake_seconds=self._handshake_seconds, on_lost=release)
        self._handlers[handler] = admitted
        transport.set_protocol(protocol)
        protocol.connection_made(transport)

    def _log_refused(self, refusal: LimitReached, peer: Any) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._logged_at.get(refusal, -LOG_SECONDS) >= LOG_SECONDS:
            self._logged_at[refusal] = now
            limit = self._limits[refusal]
            log.warning(
                "refused a connection from %s: all slots of %s are in use; raise it or find the client", peer, limit
            )

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            self._connections.close_overdue()


class _Accepted(asyncio.Protocol):
    """Protocol of a connection between accept and admission. It allocates no TLS state."""

    def __init__(self, admit: Callable[[asyncio.Transport], None]) -> None:
        self._admit = admit

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._admit(transport)


class _HeadLimit:
    """Limit for the bytes before the headers of a request are complete.

    aiohttp limits each header, but all of them together only to 128 KiB, and holds them twice.
    """

    def __init__(self, handler: asyncio.Protocol) -> None:
        self._handler = handler
        self._waiter: asyncio.Future[None] | None = None
        self._bytes = 0

    def is_exceeded(self, nbytes: int) -> bool:
        """Count received bytes, and return whether there were too many before them."""
        # aiohttp's handler has a pending `_waiter`, a new one for each request, exactly while it
        # waits for the headers.
        waiter = getattr(self._handler, "_waiter", None)
        if waiter is not self._waiter:
            self._waiter, self._bytes = waiter, 0
        if waiter is None or waiter.done():
            return False
        exceeded = self._bytes > HEAD_BYTES_MAX
        self._bytes += nbytes
        return exceeded


class _PlainProtocol(asyncio.BufferedProtocol):
    """Protocol of a connection without TLS, with a small buffer.

    Calls `on_lost` when the connection ends.
    """

    def __init__(self, handler: asyncio.Protocol, *, on_lost: Callable[[], None]) -> None:
        self._handler = handler
        self._head = _HeadLimit(handler)
        self._transport: asyncio.BaseTransport | None = None
        self._on_lost = on_lost
        self._buffer = memoryview(bytearray(PLAIN_BUFFER_BYTES))
        self.pause_writing = handler.pause_writing  # type: ignore[method-assign]
        self.resume_writing = handler.resume_writing  # type: ignore[method-assign]
        self.eof_received = handler.eof_received  # type: ignore[method-assign]

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._handler.connection_made(transport)

    @override
    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    @override
    def buffer_updated(self, nbytes: int) -> None:
        if self._head.is_exceeded(nbytes):
            assert isinstance(self._transport, asyncio.Transport)
            self._transport.abort()
            return
        self._handler.data_received(bytes(self._buffer[:nbytes]))

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        try:
            self._handler.connection_lost(exc)
        finally:
            self._on_lost()


class _TLSProtocol(sslproto.SSLProtocol):
    """asyncio's TLS protocol with small buffers.

    Calls `on_lost` when the connection ends, also during the handshake.
    """

    max_size = BUFFER_BYTES

    def __init__(
        self,
        handler: asyncio.Protocol,
        context: ssl.SSLContext,
        *,
        handshake_seconds: float,
        on_lost: Callable[[], None],
    ) -> None:
        super().__init__(
            asyncio.get_running_loop(),
            handler,
            context,
            waiter=None,  # type: ignore[arg-type]  # the handshake is not awaited
            server_side=True,
            ssl_handshake_timeout=handshake_seconds,  # type: ignore[arg-type]  # typeshed wants an int; asyncio takes a float
            ssl_shutdown_timeout=SHUTDOWN_SECONDS,
        )
        self._head = _HeadLimit(handler)
        self._on_lost = on_lost
        self._set_read_buffer_limits(high=BUFFER_BYTES)  # type: ignore[attr-defined]  # not in typeshed
        self._set_write_buffer_limits(high=WRITE_BUFFER_BYTES)  # type: ignore[attr-defined]  # not in typeshed

    @override
    def buffer_updated(self, nbytes: int) -> None:
        if self._head.is_exceeded(nbytes):
            assert isinstance(self._transport, asyncio.Transport)
            self._transport.abort()
            return
        super().buffer_updated(nbytes)

    @override
    def connection_lost(self, exc: BaseException | None) -> None:
        try:
            super().connection_lost(exc)
        finally:
            self._on_lost()
