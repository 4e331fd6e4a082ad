"""The aiohttp applications, and the middleware around every handler."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime

from aiohttp import web

from reattach.api.messages import ProblemCode
from reattach.cluster import Cluster
from reattach.server.authentication import Authenticator, PodIdentity
from reattach.server.bodies import BodyReader, has_short_rest
from reattach.server.config import ServerConfig
from reattach.server.metrics import ServerMetrics
from reattach.server.problems import RateLimitedError, response_of
from reattach.server.rate_limit import RateLimit
from reattach.server.routes import CALLER, Routes
from reattach.state import RequestRejectedError, Store

log = logging.getLogger(__name__)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_METHODS = {"GET", "PUT", "POST", "DELETE", "HEAD", "OPTIONS", "PATCH"}
_LOGGED = {
    ProblemCode.UNAUTHENTICATED,
    ProblemCode.NOT_A_TASK_POD,
    ProblemCode.FENCED,
    ProblemCode.STATE_LOST,
    ProblemCode.FORMAT_UNKNOWN,
    ProblemCode.CONFLICT,
    ProblemCode.RATE_LIMITED,
    ProblemCode.HANDLE_DIFFERS,
}
"""Problems that are logged at WARNING."""


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
    *,
    clock: Callable[[], datetime] | None = None,
    in_flight: Callable[[web.Request], AbstractContextManager[None]] = lambda _: nullcontext(),
) -> web.Application:
    """Build the state API as an aiohttp application.

    `clock` is for tests; it also drives rate limits and the token cache. `in_flight` marks the
    connection of a request as in use.
    """
    gate = AuthGate(cluster, settings, metrics, time.monotonic if clock is None else lambda: clock().timestamp())
    bodies = BodyReader()
    routes = Routes(
        Store(cluster, on_conflict=metrics.conflicts.inc),
        bodies,
        default_retention_seconds=settings.default_retention_seconds,
        clock=clock or (lambda: datetime.now(UTC)),
        count=lambda decision: metrics.job_decisions.labels(decision).inc(),
    )

    @web.middleware
    async def serve(request: web.Request, handler: Handler) -> web.StreamResponse:
        started = time.monotonic()
        route = request.match_info.route.resource.canonical if request.match_info.route.resource else "unknown"
        with traffic, in_flight(request):
            code, response = await _dispatch(request, handler, gate, bodies, settings.request_seconds)
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
    metrics: ServerMetrics,
    is_ready: Callable[[], bool],
    *,
    in_flight: Callable[[web.Request], AbstractContextManager[None]] = lambda _: nullcontext(),
) -> web.Application:
    """Build the application for probes and metrics, which uses plain HTTP on a separate port."""

    @web.middleware
    async def count(request: web.Request, handler: Handler) -> web.StreamResponse:
        with in_flight(request):
            return await handler(request)

    async def healthz(_request: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def readyz(_request: web.Request) -> web.Response:
        return web.Response(text="ok") if is_ready() else web.Response(status=503, text="shutting down")

    async def metrics_text(_request: web.Request) -> web.Response:
        return web.Response(body=metrics.to_text(), headers={"Content-Type": "text/plain; version=0.0.4"})

    application = web.Application(middlewares=[count])
    application.add_routes(
        [web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", metrics_text)]
    )
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
        caller = await self._authenticated(request.headers.get("Authorization"), request.remote or "")
        if wait := self._taskruns.take(caller.run.uid):
            raise RateLimitedError(f"TaskRun {caller.run.name}", wait)
        if wait := self._namespaces.take(caller.run.namespace):
            raise RateLimitedError(f"namespace {caller.run.namespace}", wait)
        return caller

    async def _authenticated(self, authorization: str | None, address: str) -> PodIdentity:
        if caller := self._authenticator.cached(authorization):
            return caller
        if wait := self._refused_tokens.wait_of(address):
            raise RateLimitedError("this address (rejected tokens)", wait)
        try:
            return await self._authenticator.authenticate(authorization)
        except RequestRejectedError:
            self._refused_tokens.take(address)
            raise


async def _dispatch(
    request: web.Request, handler: Handler, gate: AuthGate, bodies: BodyReader, seconds: float
) -> tuple[str, web.StreamResponse]:
    try:
        async with asyncio.timeout(seconds):
            if request.match_info.http_exception is not None:
                return "", await handler(request)
            caller = request[CALLER] = await gate.admit(request)
            async with bodies.admit(request, caller.run.namespace, caller.run.uid):
                return "", await handler(request)
    except Exception as error:  # noqa: BLE001 -- every error becomes a problem response, and `response_of` logs a bug
        code, response = response_of(error)
        if code in _LOGGED:
            log.warning(
                "refused %s %s from %s: %s", request.method, repr(request.path), _describe_caller(request), error
            )
        return code, response


def _describe_caller(request: web.Request) -> str:
    caller = request.get(CALLER)
    return f"{caller.run.namespace}/{caller.pod_name}" if caller else str(request.remote)
