"""Loopback proxy before the API server, which can refuse all requests with 429."""

import asyncio
import contextlib
import json
import ssl
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from aiohttp import web

from bench.installation import Installation

_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length", "host", "content-encoding"})
_RETRY_AFTER_SECONDS = 1
_REFUSAL = {
    "apiVersion": "v1",
    "kind": "Status",
    "status": "Failure",
    "reason": "TooManyRequests",
    "message": "Too many requests, please try again later.",
    "code": 429,
}


class ThrottlingProxy:
    """The proxy. It forwards the client's token, and never refuses requests for Leases.

    The API server serves Leases at a priority of their own, too.
    """

    def __init__(self, url: str, ca_file: Path) -> None:
        self._url = url
        self._ca_file = ca_file
        self.is_throttling = False
        self.responses: Counter[int] = Counter()
        """Number of responses by status, without those for Leases."""
        self.port = 0

    @contextlib.asynccontextmanager
    async def serving(self) -> Any:
        """Serve within the `with` block."""
        connector = aiohttp.TCPConnector(ssl=ssl.create_default_context(cafile=self._ca_file), limit=0)
        timeout = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, trust_env=False) as session:
            application = web.Application(client_max_size=8 * 1024 * 1024)

            async def handle(request: web.Request) -> web.StreamResponse:
                return await self._respond(session, request)

            application.router.add_route("*", "/{path:.*}", handle)
            runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
            await runner.setup()
            try:
                await web.TCPSite(runner, "127.0.0.1", 0).start()
                self.port = runner.addresses[0][1]
                yield
            finally:
                await runner.cleanup()

    async def _respond(self, session: aiohttp.ClientSession, request: web.Request) -> web.StreamResponse:
        # An empty body would add a Content-Type, for which the API server rejects a GET.
        body = await request.read() or None
        is_lease = "/leases" in request.path
        if self.is_throttling and not is_lease:
            self.responses[429] += 1
            headers = {"Retry-After": str(_RETRY_AFTER_SECONDS)}
            return web.json_response(_REFUSAL, status=429, headers=headers, dumps=json.dumps)
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP}
        try:
            async with session.request(
                request.method, self._url + request.raw_path, data=body, headers=headers
            ) as answer:
                self.responses[answer.status] += not is_lease
                kept = {name: value for name, value in answer.headers.items() if name.lower() not in _HOP}
                response = web.StreamResponse(status=answer.status, headers=kept)
                await response.prepare(request)
                async for chunk in answer.content.iter_any():
                    await response.write(chunk)
                await response.write_eof()
                return response
        except (aiohttp.ClientError, ConnectionError) as error:
            # One connection is closed, so the other one is closed too.
            if request.transport is not None:
                request.transport.abort()
            raise web.HTTPBadGateway from error

    def write_kubeconfig(self, source: Path, path: Path) -> Path:
        """Write a kubeconfig with the credentials of `source` for the proxy."""
        config = yaml.safe_load(source.read_text())
        config["clusters"][0]["cluster"] = {"server": f"http://127.0.0.1:{self.port}"}
        path.write_text(yaml.safe_dump(config))
        return path


@contextlib.contextmanager
def throttling_proxy(installation: Installation) -> Iterator[ThrottlingProxy]:
    """Run a proxy on a thread of its own within the `with` block."""
    proxy = ThrottlingProxy(installation.control_plane.url, installation.control_plane.ca_file)
    loop = asyncio.new_event_loop()
    started, stopped = threading.Event(), asyncio.Event()

    async def serve() -> None:
        async with proxy.serving():
            started.set()
            await stopped.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), name="throttle", daemon=True)
    thread.start()
    try:
        if not started.wait(30):
            raise RuntimeError("the proxy must start within 30 s")
        yield proxy
    finally:
        loop.call_soon_threadsafe(stopped.set)
        thread.join(30)
        loop.close()
