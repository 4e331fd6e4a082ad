"""Loopback proxy in front of the API server, which kills the operator at a chosen write.

It kills the operator before it forwards the write, or after the API server has executed the write
and before the response is forwarded. Each history has a door (a port) of its own. All doors run on
one thread.
"""

import asyncio
import contextlib
import os
import signal
import ssl
import threading
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import yaml
from aiohttp import web
from typing_extensions import override

from controlplane import ControlPlane
from operator_process import GROUP

T = TypeVar("T")

_READS = {"GET", "HEAD"}
_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "host", "content-encoding"}


class When(Enum):
    """Side of the write at which the operator is killed."""

    BEFORE = "before"
    AFTER = "after"


EVENTS = "POST events"


def kind_of(write: str) -> str:
    """Return the kind of a write.

    For `PATCH /apis/…/namespaces/demo/taskruns/load/status`, it is `PATCH taskruns/status`.
    """
    method, _, path = write.partition(" ")
    resource, _, rest = path.partition("/namespaces/")[2].partition("/")[2].partition("/")
    subresource = rest.partition("/")[2]
    return f"{method} {resource}/{subresource}" if subresource else f"{method} {resource}"


@dataclass(frozen=True)
class Point:
    """The n-th write, counted from 1 and without those of the Lease.

    `kind`: only writes of this kind are counted. Without it, all except Events are counted, because
    the order of Events is not fixed.
    """

    number: int
    when: When
    kind: str | None = None

    @override
    def __str__(self) -> str:
        return f"{self.when.value} write {self.number}{f' of {self.kind}' if self.kind else ''}"

    def counts(self, write: str) -> bool:
        kind = kind_of(write)
        return kind == self.kind if self.kind else kind != EVENTS


@dataclass
class Door:
    """One port of the proxy. `pid` returns the id of the operator's process."""

    user: str
    kubeconfig: Path
    pid: Callable[[], int]
    point: Point | None = None
    struck: str | None = None
    """The write at which the operator is killed, once it was received."""
    is_over: bool = False
    """Set to end the counting and the kills."""
    writes: list[str] = field(default_factory=list)
    runner: web.AppRunner | None = None

    def count(self, method: str, path: str) -> When | None:
        """Count the write. Return the side of it at which to kill, or None."""
        if method in _READS or "/leases" in path or self.is_over:
            return None
        write = f"{method} {path}"
        self.writes.append(write)
        point = self.point
        if point is None or self.struck is not None or not point.counts(write):
            return None
        if sum(map(point.counts, self.writes)) != point.number:
            return None
        self.struck = write
        return point.when

    def kill(self) -> None:
        """Kill the operator by SIGKILL, so that no handler runs and nothing is flushed."""
        os.kill(self.pid(), signal.SIGKILL)


class Proxy:
    """The proxy's thread."""

    def __init__(self, control_plane: ControlPlane, directory: Path) -> None:
        self._control_plane = control_plane
        self._directory = directory
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._sessions: dict[str, aiohttp.ClientSession] = {}

    def open(self, user: str, pid: Callable[[], int], point: Point | None) -> Door:
        """Open a door whose requests are those of `user`, with the operator's rights."""
        return self._wait(self._open(user, pid, point))

    def close(self, door: Door) -> None:
        self._wait(self._close(door))

    async def _open(self, user: str, pid: Callable[[], int], point: Point | None) -> Door:
        door = Door(user, self._directory / f"{user}.kubeconfig", pid, point)
        session = self._session_of(user)

        async def handle(request: web.Request) -> web.StreamResponse:
            return await self._pass_on(door, session, request)

        application = web.Application(client_max_size=8 * 1024 * 1024)
        application.router.add_route("*", "/{path:.*}", handle)
        door.runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
        await door.runner.setup()
        await web.TCPSite(door.runner, "127.0.0.1", 0).start()
        _write_kubeconfig(door.kubeconfig, door.runner.addresses[0][1])
        return door

    async def _close(self, door: Door) -> None:
        assert door.runner is not None
        await door.runner.cleanup()
        await self._sessions.pop(door.user).close()

    async def _pass_on(self, door: Door, session: aiohttp.ClientSession, request: web.Request) -> web.StreamResponse:
        # An empty body would add a Content-Type, for which the API server rejects a GET.
        body = await request.read() or None
        side = door.count(request.method, request.path)
        if side is When.BEFORE:
            door.kill()
            raise web.HTTPBadGateway
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP}
        url = self._control_plane.url + request.raw_path
        try:
            async with session.request(request.method, url, data=body, headers=headers) as answer:
                if side is When.AFTER:
                    await answer.read()
                    door.kill()
                    raise web.HTTPBadGateway
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

    def _session_of(self, user: str) -> aiohttp.ClientSession:
        secret = yaml.safe_load(self._control_plane.kubeconfig(user, (GROUP,)).read_text())["users"][0]["user"]
        context = ssl.create_default_context(cafile=self._control_plane.ca_file)
        context.load_cert_chain(_pem(self._directory / f"{user}.pem", secret))
        connector = aiohttp.TCPConnector(ssl=context, limit=0)
        timeout = aiohttp.ClientTimeout(total=None)
        self._sessions[user] = aiohttp.ClientSession(
            connector=connector, timeout=timeout, auto_decompress=True, trust_env=False
        )
        return self._sessions[user]

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def __enter__(self) -> "Proxy":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        async def close() -> None:
            for session in self._sessions.values():
                await session.close()
            others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        self._wait(close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


def _pem(path: Path, secret: dict[str, str]) -> Path:
    import base64

    path.write_bytes(b"".join(base64.b64decode(secret[f"client-{part}-data"]) for part in ("certificate", "key")))
    return path


def _write_kubeconfig(path: Path, port: int) -> None:
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "proxy",
        "clusters": [{"name": "proxy", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "users": [{"name": "proxy", "user": {}}],
        "contexts": [{"name": "proxy", "context": {"cluster": "proxy", "user": "proxy"}}],
    }
    path.write_text(yaml.safe_dump(config))


@contextlib.contextmanager
def proxy_to(control_plane: ControlPlane, directory: Path) -> Iterator[Proxy]:
    """Run a proxy during the block."""
    with Proxy(control_plane, directory) as proxy:
        yield proxy
