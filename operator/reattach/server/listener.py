"""TLS listener of the state API with limits on connections and little memory for each.

asyncio's own TLS server allocates 256 KiB for each connection before the handshake, waits 60
seconds for the handshake and 30 seconds for the peer's close_notify, and limits no number. Peers
without a token could exhaust the memory of a replica.
"""

import asyncio
import logging
import ssl
from asyncio import sslproto
from collections.abc import Callable
from typing import Any

from aiohttp import web
from typing_extensions import override

from reattach.server.connections import ConnectionTable, LimitReached, PeerConnection

log = logging.getLogger(__name__)

BUFFER_BYTES = 32 * 1024
"""Receive buffer of one connection: two TLS records."""
SHUTDOWN_SECONDS = 2.0
"""Time that the peer has to answer close_notify."""
SWEEP_SECONDS = 0.5
LOG_SECONDS = 60.0
"""Pause between two log lines about refused connections, for each limit."""


class Listener:
    """Accepts TLS connections and hands their requests to an aiohttp server."""

    def __init__(
        self,
        server: web.Server,
        context: ssl.SSLContext,
        connections: ConnectionTable,
        *,
        handshake_seconds: float,
        on_refuse: Callable[[LimitReached], None] = lambda _: None,
    ) -> None:
        self._server = server
        self._context = context
        self._connections = connections
        self._handshake_seconds = handshake_seconds
        self._on_refuse = on_refuse
        self._handlers: dict[asyncio.BaseProtocol, PeerConnection] = {}
        self._logged_at: dict[LimitReached, float] = {}
        self._listening: asyncio.Server | None = None
        self._sweeping: asyncio.Task[None] | None = None

    async def start(self, host: str | None, port: int) -> None:
        """Listen on `host` (None: all addresses, IPv4 and IPv6). Raises `OSError`."""
        loop = asyncio.get_running_loop()
        self._listening = await loop.create_server(lambda: _Accepted(self._admit), host, port, backlog=128)
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

    def connection_of(self, request: web.Request) -> PeerConnection | None:
        """Return the connection that carries a request."""
        return self._handlers.get(request.protocol)

    def _admit(self, transport: asyncio.Transport) -> None:
        peer = transport.get_extra_info("peername")
        admitted = self._connections.admit(peer[0] if peer else "", transport.abort)
        if isinstance(admitted, LimitReached):
            transport.abort()
            self._on_refuse(admitted)
            self._log_refused(admitted, peer)
            return
        handler = self._server()

        def give_back() -> None:
            self._connections.remove(admitted)
            self._handlers.pop(handler, None)

        protocol = _TLSProtocol(handler, self._context, handshake_seconds=self._handshake_seconds, on_lost=give_back)
        self._handlers[handler] = admitted
        transport.set_protocol(protocol)
        protocol.connection_made(transport)

    def _log_refused(self, refusal: LimitReached, peer: Any) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._logged_at.get(refusal, -LOG_SECONDS) >= LOG_SECONDS:
            self._logged_at[refusal] = now
            limit = "--connections-per-address" if refusal is LimitReached.ADDRESS else "--connections"
            log.warning("refused a connection from %s: as many are in use as %s allows", peer, limit)

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
            waiter=None,  # type: ignore[arg-type]  # nobody waits for the handshake
            server_side=True,
            ssl_handshake_timeout=handshake_seconds,  # type: ignore[arg-type]  # typeshed wants an int; asyncio takes a float
            ssl_shutdown_timeout=SHUTDOWN_SECONDS,
        )
        self._on_lost = on_lost
        self._set_read_buffer_limits(high=BUFFER_BYTES)  # type: ignore[attr-defined]  # not in typeshed

    @override
    def connection_lost(self, exc: BaseException | None) -> None:
        try:
            super().connection_lost(exc)
        finally:
            self._on_lost()
