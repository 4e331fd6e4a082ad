"""`reattach-server`: the state API as a process."""

import argparse
import asyncio
import logging
import signal
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path

from aiohttp import web

from reattach.cluster import Cluster
from reattach.server.application import Traffic, build_application, build_health_application
from reattach.server.metrics import Metrics
from reattach.server.settings import Rate, Settings
from reattach.server.tls import Certificate
from reattach.state.operations import RETENTION_SECONDS_MAX

log = logging.getLogger("reattach.server")

_KEEPALIVE_SECONDS = 75.0
"""How long a connection without a request is kept. aiohttp's own is an hour, of which a replica would hold one for each pod."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until SIGTERM or SIGINT."""
    settings, level, kubeconfig = from_arguments(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        asyncio.run(serve(settings, kubeconfig))
    except OSError as error:
        sys.exit(f"reattach-server: {error}")


def from_arguments(arguments: Sequence[str]) -> tuple[Settings, str, str | None]:
    """Settings, log level and kubeconfig, from the command line."""
    parser = argparse.ArgumentParser(
        prog="reattach-server", description="The state API of Reattach, for the pods of tasks."
    )
    add = parser.add_argument
    add("--tls-cert", type=Path, required=True, help="PEM file with the certificate chain; read again when it changes")
    add("--tls-key", type=Path, required=True, help="PEM file with its key")
    add("--host", default=None, help="address to listen on (default: all, IPv4 and IPv6)")
    add("--port", type=int, default=Settings.port, help="port of the state API (%(default)s)")
    add(
        "--health-port",
        type=int,
        default=Settings.health_port,
        help="port of /healthz, /readyz, /metrics (%(default)s)",
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
        default=Settings.default_retention_seconds,
        help="seconds until a key expires that was set without a retention; 0: never (%(default)s)",
    )
    add(
        "--taskrun-rate",
        type=_rate,
        default=Settings.taskrun_rate,
        help="PER_SECOND:BURST requests of one TaskRun (20:100)",
    )
    add("--namespace-rate", type=_rate, default=Settings.namespace_rate, help="the same of one namespace (200:500)")
    add(
        "--refused-token-rate",
        type=_rate,
        default=Settings.refused_token_rate,
        help="the same of tokens from one address that are refused (1:20)",
    )
    add("--request-timeout", type=float, default=Settings.request_seconds, help="seconds for one request (%(default)s)")
    add("--drain", type=float, default=Settings.drain_seconds, help="seconds to go on after SIGTERM (%(default)s)")
    add(
        "--tls-reload",
        type=float,
        default=Settings.tls_reload_seconds,
        help="seconds between looks at the files (%(default)s)",
    )
    add("--kubeconfig", default=None, help="default: the pod's service account, else $KUBECONFIG")
    add("--log-level", choices=["DEBUG", "INFO", "WARNING", "ERROR"], default="INFO", help="(%(default)s)")
    given = parser.parse_args(arguments)
    settings = Settings(
        tls_cert=given.tls_cert,
        tls_key=given.tls_key,
        host=given.host,
        port=given.port,
        health_port=given.health_port,
        watch_namespaces=given.watch_namespaces,
        default_retention_seconds=given.default_retention,
        taskrun_rate=given.taskrun_rate,
        namespace_rate=given.namespace_rate,
        refused_token_rate=given.refused_token_rate,
        request_seconds=given.request_timeout,
        drain_seconds=given.drain,
        tls_reload_seconds=given.tls_reload,
    )
    return settings, given.log_level, given.kubeconfig


async def serve(settings: Settings, kubeconfig: str | None = None) -> None:
    """Serve until SIGTERM or SIGINT; then answer what was asked before, and end."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    certificate, metrics = Certificate(settings.tls_cert, settings.tls_key), Metrics()
    traffic = Traffic()
    async with AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(await Cluster.connect(kubeconfig, timeout=settings.request_seconds))
        health = build_health_application(metrics, lambda: not stop.is_set())
        await _listen(stack, health, settings, settings.health_port)
        application = build_application(cluster, settings, metrics, traffic)
        site = await _listen(stack, application, settings, settings.port, certificate)
        watching = asyncio.create_task(certificate.watch(settings.tls_reload_seconds))
        stack.callback(watching.cancel)
        log.info("serving on port %d, health on port %d", settings.port, settings.health_port)
        await stop.wait()
        log.info("stopping in %g seconds", settings.drain_seconds)
        traffic.ending = True
        await asyncio.sleep(settings.drain_seconds)
        await site.stop()
        # aiohttp's own end of a connection drops what is still to come of a request.
        with suppress(TimeoutError):
            await asyncio.wait_for(traffic.wait_for_idle(), settings.request_seconds)


async def _listen(
    stack: AsyncExitStack,
    application: web.Application,
    settings: Settings,
    port: int,
    certificate: Certificate | None = None,
) -> web.TCPSite:
    runner = web.AppRunner(
        application,
        access_log=None,
        shutdown_timeout=settings.request_seconds,
        keepalive_timeout=_KEEPALIVE_SECONDS,
    )
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    site = web.TCPSite(runner, settings.host, port, ssl_context=certificate.context if certificate else None)
    await site.start()
    return site


def _names(text: str) -> frozenset[str]:
    return frozenset(name.strip() for name in text.split(",") if name.strip())


def _seconds(text: str) -> int:
    seconds = int(text)
    if not 0 <= seconds <= RETENTION_SECONDS_MAX:
        raise argparse.ArgumentTypeError(f"must be 0 to {RETENTION_SECONDS_MAX}")
    return seconds


def _rate(text: str) -> Rate:
    per_second, _, burst = text.partition(":")
    rate = Rate(float(per_second), int(burst))
    if rate.per_second <= 0 or rate.burst < 1:
        raise argparse.ArgumentTypeError("must be PER_SECOND:BURST, such as 20:100")
    return rate


if __name__ == "__main__":
    main()
