"""Proxy in front of a real system, which injects faults of that system."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator

import httpx
from aiohttp import web

from reattach.testing import Fault
from reattach.testing.loopback_server import LoopbackServer

OperationsOf = Callable[[str, str], tuple[str, ...]]
"""Returns the operations of a method and path: `submit`, `look-up`, `status`.

An API of AWS has one path. Its header X-Amz-Target, which names the operation, takes the place.
"""
_HOP_HEADERS = {"host", "content-length", "connection", "accept-encoding"}


def by_method(method: str, _path: str) -> tuple[str, ...]:
    """Return the operations of an API of objects, in which a GET is both lookup and status."""
    return {"POST": ("submit",), "GET": ("look-up", "status")}.get(method, ())


class BrokenApi:
    """Forwards requests by `client` and its credentials, except those with a fault."""

    def __init__(self, client: httpx.Client, operations_of: OperationsOf) -> None:
        self._client = client
        self._operations_of = operations_of
        self._fault: Fault | None = None

    def fail(self, fault: Fault | None) -> None:
        """Put a fault in force, in place of an earlier one."""
        self._fault = fault

    async def forward(self, request: web.Request) -> web.StreamResponse:
        fault = self._next_fault(request)
        if fault is not None and fault.how == "error":
            return _error()
        response = await asyncio.to_thread(
            self._client.request,
            request.method,
            request.raw_path,
            content=await request.read(),
            headers={name: value for name, value in request.headers.items() if name.lower() not in _HOP_HEADERS},
        )
        if fault is None:
            return web.Response(status=response.status_code, body=response.content, content_type="application/json")
        if fault.how == "half":
            return _error()
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    def _next_fault(self, request: web.Request) -> Fault | None:
        fault = self._fault
        path = request.headers.get("X-Amz-Target", request.path)
        if fault is None or fault.on not in self._operations_of(request.method, path):
            return None
        if fault.how != "error" and "dryRun" in request.query:
            return None  # a dry run makes no job, so the fault is that of the creation
        if fault.once:
            self._fault = None
        return fault


def _error() -> web.Response:
    return web.Response(status=500, text="something went wrong\n")


@contextlib.contextmanager
def broken_api(client: httpx.Client, operations_of: OperationsOf = by_method) -> Iterator[tuple[str, BrokenApi]]:
    """Yield the address of a proxy, and the proxy."""
    broken = BrokenApi(client, operations_of)
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", broken.forward)
    with LoopbackServer() as service:
        yield service.serve(application), broken
