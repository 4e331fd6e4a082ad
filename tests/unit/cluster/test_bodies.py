"""Bodies that the client sends."""

import json
from typing import Any

import pytest
from aiohttp import web
from kubernetes.aio import client

from reattach.cluster import Cluster


@pytest.mark.parametrize(
    "body, sent",
    [
        (b'{"a": 1.0,  "b": "\\u00e4"}', b'{"a": 1.0,  "b": "\\u00e4"}'),
        ({"a": "ä", "b": [None, True]}, '{"a":"ä","b":[null,true]}'.encode()),
        ({"a": 2**70}, b'{"a":1180591620717411303424}'),
        ({"a": "half \ud83d"}, b'{"a": "half \\ud83d"}'),
    ],
    ids=["JSON text", "JSON", "a large integer", "half of a surrogate pair"],
)
async def test_body_is_sent_as_json_and_json_text_is_sent_unchanged(body: Any, sent: bytes) -> None:
    received = []

    async def answer(request: web.Request) -> web.Response:
        received.append((request.content_type, await request.read()))
        return web.Response(text="{}")

    application = web.Application()
    application.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    configuration = client.Configuration()
    configuration.host = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        async with Cluster(configuration) as cluster:
            await cluster.create("/api/v1/namespaces/a/pods", body)
            await cluster.merge_patch("/api/v1/namespaces/a/pods/b", {"c": 1})
    finally:
        await runner.cleanup()
    assert received == [("application/json", sent), ("application/merge-patch+json", b'{"c":1}')]
    json.loads(sent)
