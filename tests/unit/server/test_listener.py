"""Listener of the state API with real sockets and an aiohttp server."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from aiohttp import web
from cryptography import x509

from reattach.server.connections import ConnectionTable, LimitReached
from reattach.server.listener import BUFFER_BYTES, WRITE_BUFFER_BYTES, Listener, _TLSProtocol
from reattach.server.tls import Certificate
from stateapi import free_port, write_certificate


def test_expiry_is_that_of_the_newest_certificate_on_disk(tmp_path: Path) -> None:
    write_certificate(tmp_path)
    certificate = Certificate(tmp_path / "tls.crt", tmp_path / "tls.key")
    for is_first in (True, False):
        if not is_first:
            write_certificate(tmp_path)
            assert certificate.reload()
        found = x509.load_pem_x509_certificate((tmp_path / "tls.crt").read_bytes())
        assert certificate.expires_at == found.not_valid_after_utc.timestamp()


class Served:
    """A listener with room for 4 connections, and its clients."""

    def __init__(self, directory: Path) -> None:
        self.client_context = write_certificate(directory)
        self.certificate = Certificate(directory / "tls.crt", directory / "tls.key")
        self.table = ConnectionTable(per_address=4, total=4, first_request_seconds=60, idle_seconds=60)
        self.port = free_port()
        self.may_end = asyncio.Event()
        self.running = self.most = 0
        self.protocols: list[asyncio.BaseProtocol] = []
        self.listener: Listener

    async def handle(self, request: web.BaseRequest) -> web.Response:
        assert isinstance(request, web.Request)
        assert request.transport is not None
        with self.listener.request(request):
            self.running += 1
            self.most = max(self.most, self.running)
            self.protocols.append(request.transport._ssl_protocol)  # type: ignore[attr-defined]
            try:
                await self.may_end.wait()
            finally:
                self.running -= 1
        return web.Response(text="ok")

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port, ssl=self.client_context)


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    served = Served(tmp_path)
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", served.handle)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=1)
    await runner.setup()
    assert runner.server is not None
    served.listener = Listener(
        runner.server,
        served.certificate.context,
        served.table,
        handshake_seconds=60,
        limits=dict.fromkeys(LimitReached, ""),
    )
    await served.listener.start("127.0.0.1", served.port)
    yield served
    served.may_end.set()
    await served.listener.close()
    await runner.cleanup()


REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


async def becomes(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 -- the condition is of any kind
            await asyncio.sleep(0.01)


async def test_a_tls_connection_has_small_buffers(served: Served) -> None:
    _, writer = await served.connect()
    writer.write(REQUEST)
    await becomes(lambda: bool(served.protocols))
    protocol = served.protocols[0]
    assert isinstance(protocol, _TLSProtocol)
    assert len(protocol._ssl_buffer) == BUFFER_BYTES  # type: ignore[attr-defined]
    assert protocol._incoming_high_water == BUFFER_BYTES  # type: ignore[attr-defined]
    assert protocol._outgoing_high_water == WRITE_BUFFER_BYTES  # type: ignore[attr-defined]
    writer.close()


async def test_requests_whose_clients_disconnect_keep_their_slots_until_they_end(served: Served) -> None:
    for _ in range(30):
        try:
            _, writer = await served.connect()
        except OSError:
            continue
        writer.write(REQUEST)
        await asyncio.sleep(0.02)
        writer.transport.abort()
    await becomes(lambda: served.running == 4)
    assert (served.most, len(served.table)) == (4, 4)
    served.may_end.set()
    await becomes(lambda: len(served.table) == 0)


async def test_a_request_whose_client_has_disconnected_at_once_is_not_handled_without_a_slot(served: Served) -> None:
    for _ in range(20):
        try:
            _, writer = await served.connect()
        except OSError:
            continue
        writer.write(REQUEST)
        writer.transport.abort()
    await asyncio.sleep(0.2)
    assert served.running == len(served.table) <= 4


async def test_a_connection_whose_headers_never_end_is_closed_after_48_kib(served: Served) -> None:
    reader, writer = await served.connect()
    writer.write(REQUEST[:-2])
    sent = 0
    while sent < 100 * 1024 and not reader.at_eof() and not writer.transport.is_closing():
        writer.write(b"X: %s\r\n" % (b"a" * 4000))
        sent += 4000
        await asyncio.sleep(0.01)
    await becomes(lambda: len(served.table) == 0)
    assert sent <= 48 * 1024
    writer.close()


async def test_a_request_whose_headers_have_14_kib_and_whose_body_has_1_mib_is_handled(served: Served) -> None:
    served.may_end.set()
    reader, writer = await served.connect()
    head = b"".join(b"X-%d: %s\r\n" % (number, b"a" * 3500) for number in range(4))
    for _ in range(3):
        writer.write(REQUEST[:-2] + head + b"Content-Length: 1048576\r\n\r\n" + b" " * 1048576)
        async with asyncio.timeout(10):
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
            while await reader.readline() != b"\r\n":
                pass
            assert await reader.readexactly(2) == b"ok"
    writer.close()


async def test_a_connection_carries_more_requests_than_fit_into_the_headers_of_one(served: Served) -> None:
    served.may_end.set()
    reader, writer = await served.connect()
    for _ in range(100):
        writer.write(REQUEST[:-2] + b"X: %s\r\n\r\n" % (b"a" * 1000))
        async with asyncio.timeout(10):
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
            while await reader.readline() != b"\r\n":
                pass
            assert await reader.readexactly(2) == b"ok"
    writer.close()
