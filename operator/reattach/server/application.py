"""The aiohttp applications, and the middleware around every handler."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime

from aiohttp import web

from reattach.api.messages import ProblemCode
from reattach.cluster import Cluster, ClusterError
from reattach.server.authentication import Authenticator, PodIdentity, TokenRefusedError
from reattach.server.bodies import BodyReader, has_short_rest
from reattach.server.config import ServerConfig
from reattach.server.metrics import ServerMetrics
from reattach.server.peer_log import PeerLog
from reattach.server.problems import ClockSkewedError, RateLimitedError, response_of
from reattach.server.rate_limit import RateLimit
from reattach.server.reads import FairReads
from reattach.server.routes import CALLER, Routes
from reattach.server.write_budget import DEBT_BYTES_MAX, RESERVE_BYTES, MeteredClient
from reattach.state import RequestRejectedError, Store

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_METHODS = {"GET", "PUT", "POST", "DELETE", "HEAD", "OPTIONS", "PATCH"}
_LOGGED = {
    ProblemCode.UNAUTHENTICATED,
    ProblemCode.NOT_A_TASK_POD,
    ProblemCode.ROUTE_UNKNOWN,
    ProblemCode.FENCED,
    ProblemCode.STATE_LOST,
    ProblemCode.FORMAT_UNKNOWN,
    ProblemCode.CONFLICT,
    ProblemCode.RATE_LIMITED,
    ProblemCode.HANDLE_DIFFERS,
}
"""Problems that are logged at WARNING."""


EVIDENCE_ROUTES = {
    ("PUT", "/v1/jobs/{key}/handle"),
    ("PUT", "/v1/jobs/{key}/outcome"),
    ("POST", "/v1/jobs/{key}/cancellation"),
    ("POST", "/v1/complete"),
    ("POST", "/v1/end"),
}
"""Routes whose requests record that a job exists or is cancelled, or how a job, the run or an
attempt ended."""
CLOCK_ROUTES = {
    ("POST", "/v1/open"),
    ("POST", "/v1/jobs/{key}/intent"),
    ("POST", "/v1/jobs/{key}/cancellation"),
}
"""Routes that return the server's time or decide by it, so a wrong clock makes them unavailable."""
RESERVED_PART = 0.1
"""Part of each burst of requests that only evidence may use."""


class InFlight:
    """Counter of the requests in progress.

    Once `ending` is set, every response closes its connection.
    """

    def __init__(self) -> None:
        self.ending = False
        self._running = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def __enter__(self) -> None:
        self._running += 1
        self._idle.clear()

    def __exit__(self, *_error: object) -> None:
        self._running -= 1
        if self._running == 0:
            self._idle.set()

    async def wait_for_idle(self) -> None:
        """Wait until no request is in progress."""
        await self._idle.wait()


def build_application(
    cluster: Cluster,
    settings: ServerConfig,
    metrics: ServerMetrics,
    traffic: InFlight,
    peers: PeerLog | None = None,
    *,
    clock: Callable[[], datetime] | None = None,
    is_skewed: Callable[[], bool] = lambda: False,
    in_flight: Callable[[web.Request], AbstractContextManager[None]] = lambda _: nullcontext(),
) -> web.Application:
    """Build the state API as an aiohttp application.

    `clock` is for tests; it also drives rate limits and the token cache. `is_skewed` returns
    whether the clock differs from the API server's. `in_flight` marks the connection of a request
    as in use.
    """
    monotonic = time.monotonic if clock is None else lambda: clock().timestamp()
    gate = AuthGate(cluster, settings, metrics, monotonic)
    peers = peers or PeerLog(settings.refused_token_rate, clock=monotonic)
    bodies = BodyReader()
    written = RateLimit(settings.namespace_bytes_rate, debt_max=DEBT_BYTES_MAX, clock=monotonic)
    reads = FairReads()

    def metered(least: float) -> MeteredClient:
        return MeteredClient(cluster, written, reads, least=least, on_write=metrics.written_bytes.inc)

    store = Store(metered(RESERVE_BYTES), on_conflict=metrics.conflicts.inc)
    routes = Routes(
        store,
        bodies,
        evidence=store.with_client(metered(1)),
        default_retention_seconds=settings.default_retention_seconds,
        clock=clock or (lambda: datetime.now(UTC)),
        count=lambda decision: metrics.job_decisions.labels(decision).inc(),
        count_end=metrics.count_ended_job,
    )

    @web.middleware
    async def serve(request: web.Request, handler: Handler) -> web.StreamResponse:
        started = time.monotonic()
        route = request.match_info.route.resource.canonical if request.match_info.route.resource else "unknown"
        with traffic, in_flight(request):
            try:
                async with asyncio.timeout(settings.request_seconds):
                    code, response = "", await _dispatch(request, handler, gate, bodies, is_skewed)
            except Exception as error:  # noqa: BLE001 -- every error becomes a problem response, and a bug is logged
                code, response = response_of(error, is_authenticated=CALLER in request)
                _log_error(peers, request, code, error)
        if traffic.ending or not has_short_rest(request):
            response.force_close()
        method = request.method if request.method in _METHODS else "other"
        metrics.requests.labels(route, method, str(response.status), code).inc()
        metrics.seconds.labels(route, method).observe(time.monotonic() - started)
        return response

    async def close_bodies(_application: web.Application) -> AsyncIterator[None]:
        yield
        bodies.close()

    application = web.Application(middlewares=[serve])
    application.cleanup_ctx.append(close_bodies)
    application.add_routes(routes.table())
    return application


def build_health_application(
    metrics: ServerMetrics | None,
    obstacle: Callable[[], str],
    *,
    in_flight: Callable[[web.Request], AbstractContextManager[None]] = lambda _: nullcontext(),
) -> web.Application:
    """Build the application for probes and metrics, which uses plain HTTP on a separate port.

    Without `metrics`, it has no /metrics. `obstacle` returns why this replica is not ready. An
    empty text means that it is.
    """

    @web.middleware
    async def count(request: web.Request, handler: Handler) -> web.StreamResponse:
        with in_flight(request):
            return await handler(request)

    async def healthz(_request: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def readyz(_request: web.Request) -> web.Response:
        why = obstacle()
        return web.Response(status=503, text=why) if why else web.Response(text="ok")

    application = web.Application(middlewares=[count])
    application.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz)])
    if metrics is not None:

        async def metrics_text(_request: web.Request) -> web.Response:
            return web.Response(body=metrics.to_text(), headers={"Content-Type": "text/plain; version=0.0.4"})

        application.router.add_get("/metrics", metrics_text)
    return application


class AuthGate:
    """Admits a request by its pod token and the rate limits."""

    def __init__(
        self,
        cluster: Cluster,
        settings: ServerConfig,
        metrics: ServerMetrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._authenticator = Authenticator(
            cluster,
            metrics,
            namespaces=settings.watch_namespaces,
            seconds=settings.authentication_seconds,
            clock=clock,
        )
        self._refused_tokens = RateLimit(settings.refused_token_rate, clock=clock)
        self._taskruns = RateLimit(settings.taskrun_rate, clock=clock)
        self._namespaces = RateLimit(settings.namespace_rate, clock=clock)

    async def admit(self, request: web.Request) -> PodIdentity:
        """Return the pod that sent the request. Raises `RequestRejectedError`."""
        authorization, charge = request.headers.get("Authorization"), self.charged(request)
        try:
            caller = self._authenticator.cached(authorization)
        except RequestRejectedError:
            with charge:
                raise
        if caller is None:
            caller = await self._authenticator.authenticate(authorization, charge)
        self._count(request, caller)
        return caller

    def known_caller(self, request: web.Request) -> PodIdentity | None:
        """Return the pod that sent the request if its token was accepted recently.

        Count the request against its rates. Raises `RateLimitedError`.
        """
        try:
            caller = self._authenticator.cached(request.headers.get("Authorization"))
        except RequestRejectedError:
            return None
        if caller is not None:
            self._count(request, caller)
        return caller

    def _count(self, request: web.Request, caller: PodIdentity) -> None:
        self._take(request, self._taskruns, caller.run.uid, f"TaskRun {caller.run.name}")
        self._take(request, self._namespaces, caller.run.namespace, f"namespace {caller.run.namespace}")

    def _take(self, request: web.Request, limit: RateLimit, key: str, whose: str) -> None:
        reserve = 0 if _route_of(request) in EVIDENCE_ROUTES else int(limit.burst * RESERVED_PART)
        if wait := limit.take(key, least=1 + reserve):
            raise RateLimitedError(f"too many requests of {whose}", wait)

    @contextmanager
    def charged(self, request: web.Request) -> Iterator[None]:
        """Charge the client's address for a request, and give that back if the block succeeds.

        The charge comes first, so that concurrent requests don't exceed the limit. It stays if the
        review fails, because that costs the API server as much. Raises `RateLimitedError`.
        """
        address = request.remote or ""
        if wait := self._refused_tokens.take(address):
            detail = "too many requests of this address whose token was refused, or could not be reviewed"
            raise RateLimitedError(detail, wait)
        yield
        self._refused_tokens.give_back(address)


def _route_of(request: web.Request) -> tuple[str, str]:
    resource = request.match_info.route.resource
    return request.method, resource.canonical if resource else ""


async def _dispatch(
    request: web.Request, handler: Handler, gate: AuthGate, bodies: BodyReader, is_skewed: Callable[[], bool]
) -> web.StreamResponse:
    if request.match_info.http_exception is not None:
        # A newer SDK calls a route that this version lacks, and must not use up the limit of its
        # address.
        if (caller := gate.known_caller(request)) is not None:
            request[CALLER] = caller
            return await handler(request)
        with gate.charged(request):
            return await handler(request)
    caller = request[CALLER] = await gate.admit(request)
    if _route_of(request) in CLOCK_ROUTES and is_skewed():
        raise ClockSkewedError
    async with bodies.admit(request, caller.run.namespace, caller.run.uid):
        return await handler(request)


def _log_error(peers: PeerLog, request: web.Request, code: ProblemCode, error: Exception) -> None:
    caller = request.get(CALLER)
    peer = f"{caller.run.namespace}/{caller.pod_name}" if caller else str(request.remote)
    what = f"{request.method} {request.path!r}"
    match error:
        case _ if code is ProblemCode.INTERNAL:
            peers.failed(peer, what, error)
        case ClusterError():
            peers.refused(peer, what, f"a call to the Kubernetes API failed: {error}")
        case TokenRefusedError(reason=reason) if reason:
            peers.refused(peer, what, f"{error}; the API server returned: {reason}")
        case _ if code in _LOGGED:
            peers.refused(peer, what, str(error))
        case _:
            pass
