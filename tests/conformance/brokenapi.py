"""A proxy in front of a real API server that fails as the suite says, so that an adapter sees errors of Kubernetes itself."""

import asyncio
import contextlib
from collections.abc import Iterator

from aiohttp import web

from controlplane import ControlPlane
from reattach.testing import Fault
from reattach.testing.service import Service

OPERATIONS = {"POST": ("submit",), "GET": ("look-up", "status")}
"""What an adapter does by a method. A GET by name is both: what is found, and how it stands."""


class BrokenApi:
    """Whoever comes is an administrator."""

    def __init__(self, control_plane: ControlPlane) -> None:
        self._control_plane = control_plane
        self._fault: Fault | None = None

    def fail(self, fault: Fault | None) -> None:
        """This goes wrong from now on, and nothing else."""
        self._fault = fault

    async def pass_on(self, request: web.Request) -> web.StreamResponse:
        fault = self._strike(request.method)
        if fault is not None and fault.how == "error":
            return _error()
        answer = await asyncio.to_thread(
            self._control_plane.client().request,
            request.method,
            request.raw_path,
            content=await request.read(),
            headers={"Content-Type": request.headers.get("Content-Type", "application/json")},
        )
        if fault is None:
            return web.Response(status=answer.status_code, body=answer.content, content_type="application/json")
        if fault.how == "half":
            return _error()
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    def _strike(self, method: str) -> Fault | None:
        fault = self._fault
        if fault is None or fault.on not in OPERATIONS.get(method, ()):
            return None
        if fault.once:
            self._fault = None
        return fault


def _error() -> web.Response:
    return web.Response(status=500, text="something went wrong\n")


@contextlib.contextmanager
def broken_api(control_plane: ControlPlane) -> Iterator[tuple[str, BrokenApi]]:
    """Its address, and itself."""
    broken = BrokenApi(control_plane)
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", broken.pass_on)
    with Service() as service:
        yield service.serve(application), broken
