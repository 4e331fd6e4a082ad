"""HTTP server for the kubelet and Prometheus: /healthz, /readyz, and /metrics if it is enabled."""

import logging
from collections.abc import Callable

from aiohttp import web

from reattach.runtime.metrics import OperatorMetrics

_log = logging.getLogger(__name__)


class Health:
    """Small HTTP server.

    /healthz shows that the event loop runs. It needs no other check, because the process exits
    when it loses the Lease, and failed loops are restarted. /readyz shows that start-up is done:
    the API server was reached, the schema is right, and this replica leads with full stores, or
    stands by. Without `metrics`, /metrics does not exist.
    """

    def __init__(self, metrics: OperatorMetrics | None, not_ready: Callable[[], str]) -> None:
        self._not_ready = not_ready
        application = web.Application()
        application.router.add_get("/healthz", self._healthz)
        application.router.add_get("/readyz", self._readyz)
        if metrics is not None:

            async def metrics_text(_: web.Request) -> web.Response:
                return web.Response(body=metrics.text(), content_type="text/plain", charset="utf-8")

            application.router.add_get("/metrics", metrics_text)
        self._runner = web.AppRunner(application, access_log=None)

    async def start(self, host: str, port: int) -> None:
        """Listen, and log the port. Port 0 selects a free one."""
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port)
        await site.start()
        _log.info("Health on port %s.", self._runner.addresses[0][1])

    async def stop(self) -> None:
        """Stop listening."""
        await self._runner.cleanup()

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, _: web.Request) -> web.Response:
        missing = self._not_ready()
        return web.Response(status=503 if missing else 200, text=f"{missing or 'ok'}\n")
