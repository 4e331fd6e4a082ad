"""A proxy in front of a real system that fails as the suite says, so that an adapter sees errors of that system itself."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator

import httpx
from aiohttp import web

from reattach.testing import Fault
from reattach.testing.loopback_server import LoopbackServer

OperationsOf = Callable[[str, str], tuple[str, ...]]
"""What an adapter does by this method and path: `submit`, `look-up`, `status`; several where one call is both."""
_NOT_PASSED_ON = {"host", "content-length", "connection", "accept-encoding"}


def by_method(method: str, _path: str) -> tuple[str, ...]:
    """Where jobs are objects: a GET by name says what is found and how it stands."""
    return {"POST": ("submit",), "GET": ("look-up", "status")}.get(method, ())


class BrokenApi:
    """Passes on what comes to `client`, whose credentials count, if it has any; but for what is to go wrong."""

    def __init__(self, client: httpx.Client, operations_of: OperationsOf) -> None:
        self._client = client
        self._operations_of = operations_of
        self._fault: Fault | None = None

    def fail(self, fault: Fault | None) -> None:
        """This goes wrong from now on, and nothing else."""
        self._fault = fault

    async def pass_on(self, request: web.Request) -> web.StreamResponse:
        fault = self._strike(request.method, request.path)
        if fault is not None and fault.how == "error":
            return _error()
        answer = await asyncio.to_thread(
            self._client.request,
            request.method,
            request.raw_path,
            content=await request.read(),
            headers={name: value for name, value in request.headers.items() if name.lower() not in _NOT_PASSED_ON},
        )
        if fault is None:
            return web.Response(status=answer.status_code, body=answer.content, content_type="application/json")
        if fault.how == "half":
            return _error()
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    def _strike(self, method: str, path: str) -> Fault | None:
        fault = self._fault
        if fault is None or fault.on not in self._operations_of(method, path):
            return None
        if fault.once:
            self._fault = None
        return fault


def _error() -> web.Response:
    return web.Response(status=500, text="something went wrong\n")


@contextlib.contextmanager
def broken_api(client: httpx.Client, operations_of: OperationsOf = by_method) -> Iterator[tuple[str, BrokenApi]]:
    """Its address, and itself."""
    broken = BrokenApi(client, operations_of)
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", broken.pass_on)
    with LoopbackServer() as service:
        yield service.serve(application), broken
