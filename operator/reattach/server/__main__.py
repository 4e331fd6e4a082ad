"""`reattach-server`: the process of the state API."""

import argparse
import asyncio
import gc
import logging
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

from aiohttp import web, web_protocol

from reattach.cluster import Cluster
from reattach.logs import PlainFormatter, set_up_logs
from reattach.server.application import InFlight, build_application, build_health_application
from reattach.server.clock_check import ClockMonitor
from reattach.server.config import Rate, ServerConfig
from reattach.server.connections import CloseReason, ConnectionTable, LimitReached
from reattach.server.listener import Listener
from reattach.server.metrics import ServerMetrics
from reattach.server.peer_log import MalformedRequests, PeerLog
from reattach.server.routes import audit
from reattach.server.tls import Certificate
from reattach.server.write_budget import BURST_BYTES_MIN
from reattach.state.operations import RETENTION_SECONDS_MAX

log = logging.getLogger("reattach.server")
_HTTP_LOG = logging.getLogger("reattach.server.http")
"""Log of aiohttp."""

_HEALTH_CONNECTIONS = 64
_HEALTH_CONNECTIONS_PER_ADDRESS = 16
_HEALTH_FIRST_REQUEST_SECONDS = 5.0
_HEALTH_IDLE_SECONDS = 10.0
_HEALTH_SETTLING_SECONDS = 0.1
"""Probes send their request immediately.

So they get a slot of an address with young connections.
"""
_BODY_BUFFER_BYTES = 16 * 1024
"""Half of aiohttp's buffer for a body before a handler reads it. The default is 256 KiB."""
_HEADERS_MAX = 32
_HEADER_BYTES_MAX = 4096
"""Name and value of one header. A pod token has 1 to 2 KiB."""
_OBJECTS_PER_COLLECTION = 20_000
"""New objects between two searches for reference cycles.

Python's default of 700 doubles the time to parse a large body.
"""
_LINGERING_SECONDS = 2.0
"""Time to discard the rest of a refused body.

A client that is still sending might miss the response.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until SIGTERM or SIGINT."""
    settings, level, kubeconfig = from_arguments(sys.argv[1:] if arguments is None else arguments)
    _configure_logs(level)
    gc.set_threshold(_OBJECTS_PER_COLLECTION, 20, 20)
    try:
        asyncio.run(serve(settings, kubeconfig))
    except OSError as error:
        sys.exit(f"reattach-server: {error}")


def _configure_logs(level: str) -> None:
    set_up_logs("plain", level)
    # Audit lines have a stream of their own, because some handles are recorded nowhere else.
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(PlainFormatter())
    audit.addHandler(handler)
    audit.setLevel(logging.INFO)
    audit.propagate = False


def from_arguments(arguments: Sequence[str]) -> tuple[ServerConfig, str, str | None]:
    """Return settings, log level and kubeconfig from the command line."""
    parser = argparse.ArgumentParser(
        prog="reattach-server", description="The state API of Reattach, for the pods of tasks."
    )
    add = parser.add_argument
    add("--tls-cert", type=Path, required=True, help="PEM file with the certificate chain; read again when it changes")
    add("--tls-key", type=Path, required=True, help="PEM file with its key")
    add("--host", default=None, help="address to listen on (default: all, IPv4 and IPv6)")
    add("--port", type=int, default=ServerConfig.port, help="port of the state API (%(default)s)")
    add(
        "--health-port",
        type=int,
        default=ServerConfig.health_port,
        help="port of /healthz and /readyz (%(default)s)",
    )
    add(
        "--serve-metrics",
        action="store_true",
        help="serve /metrics on the health port, to every client that can reach it",
    )
    add(
        "--watch-namespaces",
        type=_names,
        default=frozenset(),
        help="comma-separated namespaces to serve (default: all)",
    )
    add(
        "--default-retention",
        type=_seconds,
        default=ServerConfig.default_retention_seconds,
        help="seconds until a key without a retention of its own expires; 0: never (%(default)s)",
    )
    add(
        "--taskrun-rate",
        type=_rate,
        default=ServerConfig.taskrun_rate,
        help="limit for requests of one TaskRun, as PER_SECOND:BURST (20:100)",
    )
    add(
        "--namespace-rate",
        type=_rate,
        default=ServerConfig.namespace_rate,
        help="limit for requests of one namespace (200:500)",
    )
    add(
        "--namespace-bytes-rate",
        type=_bytes_rate,
        default=ServerConfig.namespace_bytes_rate,
        help="limit for the bytes of state that one namespace writes, as PER_SECOND:BURST (524288:8388608). The burst"
        f" must be at least {BURST_BYTES_MIN}",
    )
    add(
        "--refused-token-rate",
        type=_rate,
        default=ServerConfig.refused_token_rate,
        help="limit for requests of one address that are refused before a TaskRun is known, such as those with a bad"
        " token, and for the log lines about one peer (1:20)",
    )
    add(
        "--connections-per-address",
        type=_count,
        default=ServerConfig.connections_per_address,
        help="maximum number of connections from one address (%(default)s)",
    )
    add(
        "--connections",
        type=_count,
        default=ServerConfig.connections,
        help="maximum number of connections (%(default)s)",
    )
    add(
        "--first-request-timeout",
        type=_timeout,
        default=ServerConfig.first_request_seconds,
        help="seconds from a connection to the headers of its first request (%(default)s)",
    )
    add(
        "--idle-timeout",
        type=_timeout,
        default=ServerConfig.idle_seconds,
        help="seconds that a connection is kept without a request (%(default)s)",
    )
    add(
        "--request-timeout",
        type=float,
        default=ServerConfig.request_seconds,
        help="seconds for one request (%(default)s)",
    )
    add(
        "--drain",
        type=float,
        default=ServerConfig.drain_seconds,
        help="seconds to continue serving after SIGTERM (%(default)s)",
    )
    add(
        "--tls-reload",
        type=float,
        default=ServerConfig.tls_reload_seconds,
        help="seconds between checks of the certificate files (%(default)s)",
    )
    add(
        "--clock-difference",
        type=_difference,
        default=ServerConfig.clock_difference_seconds,
        help="seconds by which the clock may differ from the API server's; beyond, the replica refuses new sessions,"
        " intents and cancellations. 0: not checked (%(default)s)",
    )
    add("--kubeconfig", default=None, help="default: the pod's service account, else $KUBECONFIG")
    add("--log-level", choices=["DEBUG", "INFO", "WARNING", "ERROR"], default="INFO", help="(%(default)s)")
    given = parser.parse_args(arguments)
    settings = ServerConfig(
        tls_cert=given.tls_cert,
        tls_key=given.tls_key,
        host=given.host,
        port=given.port,
        health_port=given.health_port,
        serve_metrics=given.serve_metrics,
        watch_namespaces=given.watch_namespaces,
        default_retention_seconds=given.default_retention,
        taskrun_rate=given.taskrun_rate,
        namespace_rate=given.namespace_rate,
        namespace_bytes_rate=given.namespace_bytes_rate,
        refused_token_rate=given.refused_token_rate,
        connections_per_address=given.connections_per_address,
        connections=given.connections,
        first_request_seconds=given.first_request_timeout,
        idle_seconds=given.idle_timeout,
        request_seconds=given.request_timeout,
        drain_seconds=given.drain,
        tls_reload_seconds=given.tls_reload,
        clock_difference_seconds=given.clock_difference,
    )
    return settings, given.log_level, given.kubeconfig


async def serve(settings: ServerConfig, kubeconfig: str | None = None) -> None:
    """Serve until SIGTERM or SIGINT, then finish the requests in progress."""
    # Parsed requests that one connection queues. The SDK does not pipeline, and aiohttp's default
    # of 32 lets one connection hold 32 times the largest headers. With 1, aiohttp pauses a
    # connection after a malformed request, and then misses that the peer disconnects.
    web_protocol.MAX_MSG_QUEUE_SIZE = 2
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    certificate, metrics = Certificate(settings.tls_cert, settings.tls_key), ServerMetrics()
    traffic, peers = InFlight(), PeerLog(settings.refused_token_rate)
    _HTTP_LOG.addFilter(MalformedRequests(peers))

    async with AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(await Cluster.connect(kubeconfig, timeout=settings.request_seconds))
        clocks = ClockMonitor(cluster.date, settings.clock_difference_seconds)
        metrics.clock_difference.set_function(lambda: clocks.check.difference)
        metrics.certificate_expiry.set_function(lambda: certificate.expires_at)
        await clocks.start()
        await _serve_health(stack, settings, metrics, lambda: "shutting down" if stop.is_set() else "")
        listener = await _serve_api(
            stack,
            settings,
            metrics,
            traffic=traffic,
            peers=peers,
            cluster=cluster,
            certificate=certificate,
            is_skewed=lambda: clocks.check.is_skewed,
        )
        for loop in (certificate.watch(settings.tls_reload_seconds), peers.write_summaries(), clocks.watch()):
            stack.callback(asyncio.create_task(loop).cancel)
        log.info("serving on port %d, health on port %d", settings.port, settings.health_port)
        await stop.wait()
        log.info("stopping in %g seconds", settings.drain_seconds)
        traffic.ending = True
        await asyncio.sleep(settings.drain_seconds)
        listener.stop()
        # aiohttp drops the rest of an unfinished request when it closes a connection.
        with suppress(TimeoutError):
            await asyncio.wait_for(traffic.wait_for_idle(), settings.request_seconds)


async def _serve_health(
    stack: AsyncExitStack, settings: ServerConfig, metrics: ServerMetrics, obstacle: Callable[[], str]
) -> None:
    connections = ConnectionTable(
        per_address=_HEALTH_CONNECTIONS_PER_ADDRESS,
        total=_HEALTH_CONNECTIONS,
        first_request_seconds=_HEALTH_FIRST_REQUEST_SECONDS,
        idle_seconds=_HEALTH_IDLE_SECONDS,
        settling_seconds=_HEALTH_SETTLING_SECONDS,
    )
    application = build_health_application(
        metrics if settings.serve_metrics else None,
        obstacle,
        in_flight=lambda request: listener.request(request),  # noqa: PLW0108 -- it is created below
    )
    runner = await _run(
        stack,
        application,
        settings,
        keepalive_timeout=_HEALTH_IDLE_SECONDS,
        lingering_time=_LINGERING_SECONDS,
        read_bufsize=_BODY_BUFFER_BYTES,
    )
    assert runner.server is not None
    listener = Listener(
        runner.server,
        None,
        connections,
        handshake_seconds=_HEALTH_FIRST_REQUEST_SECONDS,
        limits=dict.fromkeys(LimitReached, "the health port"),
    )
    await listener.start(settings.host, settings.health_port)
    stack.push_async_callback(listener.close)


async def _serve_api(
    stack: AsyncExitStack,
    settings: ServerConfig,
    metrics: ServerMetrics,
    *,
    traffic: InFlight,
    peers: PeerLog,
    cluster: Cluster,
    certificate: Certificate,
    is_skewed: Callable[[], bool],
) -> Listener:
    connections = ConnectionTable(
        per_address=settings.connections_per_address,
        total=settings.connections,
        first_request_seconds=settings.first_request_seconds,
        idle_seconds=settings.idle_seconds,
        on_close=lambda closure: metrics.closed_connections.labels(closure).inc(),
    )
    metrics.watch_connections(lambda: len(connections), refusals=LimitReached, closures=CloseReason)
    application = build_application(
        cluster,
        settings,
        metrics,
        traffic,
        peers,
        is_skewed=is_skewed,
        in_flight=lambda request: listener.request(request),  # noqa: PLW0108 -- it is created below
    )
    runner = await _run(
        stack,
        application,
        settings,
        # aiohttp applies this before the first request too; the sweep closes idle connections
        # earlier.
        keepalive_timeout=max(settings.first_request_seconds, settings.idle_seconds),
        lingering_time=_LINGERING_SECONDS,
        read_bufsize=_BODY_BUFFER_BYTES,
        auto_decompress=False,  # a small body may expand to any size
    )
    assert runner.server is not None
    listener = Listener(
        runner.server,
        certificate.context,
        connections,
        handshake_seconds=settings.first_request_seconds,
        on_refuse=lambda refusal: metrics.refused_connections.labels(refusal).inc(),
        limits={LimitReached.ADDRESS: "--connections-per-address", LimitReached.TOTAL: "--connections"},
    )
    await listener.start(settings.host, settings.port)
    stack.push_async_callback(listener.close)
    return listener


async def _run(
    stack: AsyncExitStack, application: web.Application, settings: ServerConfig, **options: Any
) -> web.AppRunner:
    runner = web.AppRunner(
        application,
        access_log=None,
        logger=_HTTP_LOG,
        shutdown_timeout=settings.request_seconds,
        max_headers=_HEADERS_MAX,
        max_field_size=_HEADER_BYTES_MAX,
        **options,
    )
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    return runner


def _names(text: str) -> frozenset[str]:
    return frozenset(name.strip() for name in text.split(",") if name.strip())


def _seconds(text: str) -> int:
    seconds = int(text)
    if not 0 <= seconds <= RETENTION_SECONDS_MAX:
        raise argparse.ArgumentTypeError(f"must be 0 to {RETENTION_SECONDS_MAX}")
    return seconds


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return count


def _timeout(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError("must be more than 0 seconds")
    return seconds


def _difference(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError("must be at least 0 seconds")
    return seconds


def _rate(text: str) -> Rate:
    per_second, _, burst = text.partition(":")
    rate = Rate(float(per_second), int(burst))
    if rate.per_second <= 0 or rate.burst < 1:
        raise argparse.ArgumentTypeError("must be PER_SECOND:BURST, such as 20:100")
    return rate


def _bytes_rate(text: str) -> Rate:
    if (rate := _rate(text)).burst < BURST_BYTES_MIN:
        raise argparse.ArgumentTypeError(f"the burst must be at least {BURST_BYTES_MIN}")
    return rate


if __name__ == "__main__":
    main()
