"""Connections to the state API.

Each request reads the token and the CA from disk, because both rotate while a task runs.
"""

import asyncio
import os
import ssl
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

import httpx

from reattach.api.names import HEADER_REQUEST_ID, HEADER_SESSION
from reattach.task.settings import TaskSettings

CONNECTIONS_MAX = 100
CLEANUP_CONNECTIONS_MAX = 4
"""Connections of a cleanup attempt, in which up to 64 threads each work on one job.

All their calls change one ConfigMap, so more of them at once would only conflict.
"""

Identity = tuple[int, str]
"""The process and the CA that a client was made in and with."""


@dataclass(frozen=True)
class StateApiRequest:
    """One request. A retry sends the same one, with the same `request_id`."""

    method: str
    path: str
    content: bytes | None = None
    params: tuple[tuple[str, str], ...] = ()
    request_id: str | None = None


@dataclass(frozen=True)
class Route:
    """One way to the state API: by the name of its host, or by the address of the host.

    On both ways, the certificate must be valid for the name.
    """

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    extensions: Mapping[str, str] = field(default_factory=dict)


def routes_of(settings: TaskSettings) -> tuple[Route, ...]:
    """Return the route by name, and the one by address if it is known.

    A pod without the cluster's DNS search domains can't resolve the name, for example with
    `hostNetwork`.
    """
    by_name = Route(settings.url)
    if not settings.address:
        return (by_name,)
    url = httpx.URL(settings.url)
    by_address = Route(
        str(url.copy_with(host=settings.address)),
        headers={"Host": url.netloc.decode()},
        extensions={"sni_hostname": url.host},
    )
    return by_name, by_address


class UnreachableError(Exception):
    """No response arrived, so the request may or may not have been carried out.

    The message has the reason.
    """


class StateApiConnection:
    """Sends single requests, for plain and for async code.

    Safe to use from several threads and event loops, and after a fork.

    `transport` replaces the network in tests.
    """

    def __init__(self, settings: TaskSettings, session: str, transport: httpx.MockTransport | None = None) -> None:
        self._settings = settings
        self._session = session
        self._known_routes = routes_of(settings)
        self._newest_route = self._known_routes[0]
        """The route of the last response. It is tried first."""
        self._transport = transport
        self._limits = httpx.Limits(
            max_connections=CLEANUP_CONNECTIONS_MAX if settings.is_cleanup else CONNECTIONS_MAX,
            max_keepalive_connections=20,
        )
        # One lock per process, because a fork copies a lock that another thread holds as held for
        # ever.
        self._locks: dict[int, threading.Lock] = {}
        # The newest plain client is in use, and for each event loop its newest async client. Older
        # ones are not closed, because other threads may be using them. After a fork, their TLS
        # connections belong to the parent.
        self._plain: list[tuple[Identity, httpx.Client]] = []
        self._async: list[tuple[Identity, asyncio.AbstractEventLoop, httpx.AsyncClient]] = []

    def send(self, request: StateApiRequest) -> httpx.Response:
        """Return the response, whatever its status. Raises `UnreachableError`."""
        client: httpx.Client | None = None
        try:
            client = self._plain_client()
            first: httpx.TransportError | None = None
            for route in self._routes():
                try:
                    response = client.send(self._build(client, request, route))
                except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                    first = first or error
                    continue
                self._newest_route = route
                return response
            assert first is not None, "at least one route exists"
            raise first
        except (httpx.HTTPError, OSError) as error:
            raise UnreachableError(_why(error)) from error
        except RuntimeError as error:
            if client is None or not client.is_closed:
                raise
            # The task ended and closed the client while another thread was still sending.
            raise UnreachableError(_why(error)) from error

    async def asend(self, request: StateApiRequest) -> httpx.Response:
        """`send` for async code."""
        try:
            client = self._async_client()
            first: httpx.TransportError | None = None
            for route in self._routes():
                try:
                    response = await client.send(self._build(client, request, route))
                except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                    first = first or error
                    continue
                self._newest_route = route
                return response
            assert first is not None, "at least one route exists"
            raise first
        except (httpx.HTTPError, OSError) as error:
            raise UnreachableError(_why(error)) from error

    def _routes(self) -> tuple[Route, ...]:
        others = (route for route in self._known_routes if route is not self._newest_route)
        return self._newest_route, *others

    def _build(self, client: httpx.Client | httpx.AsyncClient, request: StateApiRequest, route: Route) -> httpx.Request:
        return client.build_request(
            request.method,
            route.url + request.path,
            content=request.content,
            params=request.params,
            headers={**self._headers(request), **route.headers},
            extensions=dict(route.extensions),
        )

    @property
    def _lock(self) -> threading.Lock:
        return self._locks.setdefault(os.getpid(), threading.Lock())

    def close(self) -> None:
        """Close the clients of plain code. The next request opens a new one."""
        with self._lock:
            clients, self._plain = self._plain, []
        for (pid, _), client in clients:
            if pid == os.getpid():
                client.close()

    async def aclose(self) -> None:
        """Close the clients of plain code and of this event loop."""
        self.close()
        here = asyncio.get_running_loop()
        with self._lock:
            clients = [client for (pid, _), loop, client in self._async if loop is here and pid == os.getpid()]
            self._async = [known for known in self._async if known[1] is not here]
        for client in clients:
            await client.aclose()

    def _plain_client(self) -> httpx.Client:
        with self._lock:
            identity = (os.getpid(), self._settings.ca_file.read_text())
            if not self._plain or self._plain[-1][0] != identity:
                client = httpx.Client(
                    verify=_tls(identity[1]),
                    timeout=self._settings.request_seconds,
                    limits=self._limits,
                    transport=self._transport,
                    trust_env=False,  # a proxy for outbound traffic can't reach a Service of the cluster
                )
                self._plain.append((identity, client))
            return self._plain[-1][1]

    def _async_client(self) -> httpx.AsyncClient:
        loop = asyncio.get_running_loop()
        with self._lock:
            identity = (os.getpid(), self._settings.ca_file.read_text())
            # With its loop, a client's connections are gone.
            self._async = [known for known in self._async if not known[1].is_closed()]
            for known_identity, known_loop, known in self._async:
                if known_identity == identity and known_loop is loop:
                    return known
            client = httpx.AsyncClient(
                verify=_tls(identity[1]),
                timeout=self._settings.request_seconds,
                transport=self._transport,
                trust_env=False,
            )
            self._async.append((identity, loop, client))
            return client

    def _headers(self, request: StateApiRequest) -> dict[str, str]:
        headers = {
            "Authorization": f"Bearer {self._settings.token_file.read_text().strip()}",
            HEADER_SESSION: self._session,
            "Content-Type": "application/json",
        }
        if request.request_id is not None:
            headers[HEADER_REQUEST_ID] = request.request_id
        return headers


def _tls(ca: str) -> ssl.SSLContext:
    # `create_default_context` trusts the CAs of the system if `ca` is empty.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(cadata=ca)
    except ValueError as error:
        raise OSError(f"ca.crt must hold certificates in PEM: {error}") from error
    return context


def _why(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
