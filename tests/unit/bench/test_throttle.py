"""Proxy that returns 429 in place of the API server."""

import asyncio
from pathlib import Path

import aiohttp
import certifi
import yaml
from aiohttp import web

from bench.throttle import ThrottlingProxy

PODS, LEASES = "/api/v1/pods", "/apis/coordination.k8s.io/v1/namespaces/reattach/leases/reattach-operator"


async def requests_through(throttling: bool) -> tuple[list[tuple[int, str | None]], list[str], dict[int, int]]:
    """Request pods and a Lease. Return the responses, the requests that arrived, and the counts."""
    arrived: list[str] = []

    async def serve(request: web.Request) -> web.Response:
        arrived.append(f"{request.method} {request.path} {request.headers.get('Authorization')}")
        return web.json_response({})

    application = web.Application()
    application.router.add_route("*", "/{path:.*}", serve)
    runner = web.AppRunner(application)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        proxy = ThrottlingProxy(f"http://127.0.0.1:{runner.addresses[0][1]}", Path(certifi.where()))
        async with proxy.serving(), aiohttp.ClientSession(headers={"Authorization": "Bearer t"}) as session:
            proxy.is_throttling = throttling
            responses = []
            for path in (PODS, LEASES):
                async with session.get(f"http://127.0.0.1:{proxy.port}{path}") as response:
                    responses.append((response.status, response.headers.get("Retry-After")))
    finally:
        await runner.cleanup()
    return responses, arrived, dict(proxy.responses)


def test_proxy_forwards_requests_with_their_token() -> None:
    responses, arrived, counts = asyncio.run(requests_through(throttling=False))
    assert responses == [(200, None), (200, None)]
    assert arrived == [f"GET {PODS} Bearer t", f"GET {LEASES} Bearer t"]
    assert counts == {200: 1}


def test_throttling_proxy_rejects_all_requests_except_those_for_leases() -> None:
    responses, arrived, counts = asyncio.run(requests_through(throttling=True))
    assert responses == [(429, "1"), (200, None)]
    assert arrived == [f"GET {LEASES} Bearer t"]
    assert counts[429] == 1


def test_kubeconfig_of_the_proxy_keeps_the_token_and_names_the_proxy(tmp_path: Path) -> None:
    source = {"clusters": [{"name": "c", "cluster": {"server": "https://x"}}], "users": [{"user": {"token": "t"}}]}
    (tmp_path / "source").write_text(yaml.safe_dump(source))
    proxy = ThrottlingProxy("https://x", Path(certifi.where()))
    proxy.port = 1234
    written = yaml.safe_load(proxy.write_kubeconfig(tmp_path / "source", tmp_path / "config").read_text())
    assert written["clusters"][0]["cluster"] == {"server": "http://127.0.0.1:1234"}
    assert written["users"] == source["users"]
