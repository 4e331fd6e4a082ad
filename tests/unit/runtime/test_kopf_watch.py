"""kopf itself, watching TaskRuns of an API server that misbehaves: no answer ends it, or has it idle."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web
from kubernetes.aio import client

from protobuf import encode_event, encode_field, encode_object, encode_page, encode_status
from reattach.api.names import GROUP, PLURAL, VERSION
from reattach.cluster import Cluster, Reference
from reattach.cluster.references import MEDIA_TYPE
from reattach.runtime import kopf_responses, kopf_watch
from reattach.runtime.kopf_responses import IsNeeded
from reattach.runtime.resource import Resource

JSON = dict[str, Any]
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]
TASKRUNS = Resource(group=GROUP, version=VERSION, kind="TaskRun", plural=PLURAL)
PATH = f"/apis/{GROUP}/{VERSION}"


@dataclass
class Events:
    """Records the references that kopf sends."""

    changed: list[Reference] = field(default_factory=list)
    deleted: list[Reference] = field(default_factory=list)

    def on_event(self, reference: Reference) -> None:
        self.changed.append(reference)

    def on_deleted(self, reference: Reference) -> None:
        self.deleted.append(reference)


@dataclass
class ApiServer:
    """Discovery, one list with the TaskRun `listed`, and watches. `failures` are answered first, by list, watch or discovery."""

    failures: dict[str, list[Answer]] = field(default_factory=dict)
    frames: asyncio.Queue[bytes] = field(default_factory=asyncio.Queue)
    calls: list[str] = field(default_factory=list)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        what = "other"
        if request.path == f"{PATH}/{PLURAL}":
            what = "watch" if request.query.get("watch") else "list"
        elif request.path == PATH:
            what = "discovery"
        self.calls.append(what)
        if failures := self.failures.get(what):
            return await failures.pop(0)(request)
        return await getattr(self, f"_{what}")(request)  # type: ignore[no-any-return]

    async def _other(self, request: web.Request) -> web.Response:
        """The kinds that kopf wants to know besides."""
        match request.path:
            case "/api":
                return web.json_response({"versions": ["v1"]})
            case "/apis":
                return web.json_response({"groups": [_group(GROUP, VERSION), _group("apiextensions.k8s.io", "v1")]})
            case "/api/v1":
                return _resources({"namespaces": "Namespace", "events": "Event"})
            case "/apis/apiextensions.k8s.io/v1":
                return _resources({"customresourcedefinitions": "CustomResourceDefinition"})
            case _:
                return web.json_response({"major": "1", "minor": "36"})

    async def _discovery(self, _: web.Request) -> web.Response:
        return _resources({PLURAL: "TaskRun"})

    async def _list(self, _: web.Request) -> web.Response:
        return web.Response(content_type=MEDIA_TYPE, body=encode_page(encode_object("listed", "5"), version="10"))

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": f"{MEDIA_TYPE};stream=watch"})
        await response.prepare(request)
        while True:
            await response.write(await self.frames.get())


def _group(name: str, version: str) -> JSON:
    found = {"groupVersion": f"{name}/{version}", "version": version}
    return {"name": name, "versions": [found], "preferredVersion": found}


def _resources(kinds: dict[str, str]) -> web.Response:
    verbs = ["get", "list", "watch", "patch", "create"]
    found = [
        {"name": plural, "singularName": "", "namespaced": plural in {PLURAL, "events"}, "kind": kind, "verbs": verbs}
        for plural, kind in kinds.items()
    ]
    return web.json_response({"resources": found})


@asynccontextmanager
async def kopf_watching(
    server: ApiServer, is_needed: IsNeeded = lambda _type, _reference: True
) -> AsyncIterator[tuple[Events, asyncio.Future[None]]]:
    """kopf runs; it is stopped at the end."""
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", server.answer)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    configuration = client.Configuration()
    configuration.host = f"http://127.0.0.1:{runner.addresses[0][1]}"
    events = Events()
    watched = kopf_watch.KopfWatch(
        resource=TASKRUNS,
        identity="test",
        on_event=events.on_event,
        on_deleted=events.on_deleted,
        is_needed=is_needed,
    )
    async with Cluster(configuration) as cluster:
        running = asyncio.ensure_future(kopf_watch.watch(watched, cluster))
        try:
            yield events, running
        finally:
            running.cancel()
            await asyncio.wait([running])
            await runner.cleanup()


async def until(condition: Callable[[], Any], seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 -- it is kopf's thread that changes it
            await asyncio.sleep(0.02)


async def changed(events: Events, name: str) -> None:
    await until(lambda: any(reference.name == name for reference in events.changed))


def error(status: int) -> Answer:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(status=status, content_type=MEDIA_TYPE, body=encode_status(status, "Some", "a reason"))

    return answer


def stream(*frames: bytes) -> Answer:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": f"{MEDIA_TYPE};stream=watch"})
        await response.prepare(request)
        for frame in frames:
            await response.write(frame)
        return response

    return answer


async def test_references_of_the_list_and_of_the_watch_arrive() -> None:
    server = ApiServer()
    deep = encode_field(17, b'{"f:a":' * 9900)  # managedFields
    server.frames.put_nowait(encode_event("MODIFIED", encode_object("deep", "11", deep)))
    server.frames.put_nowait(encode_event("BOOKMARK", encode_object("", "12")))
    server.frames.put_nowait(encode_event("DELETED", encode_object("deep", "13")))
    async with kopf_watching(server) as (events, running):
        await until(lambda: events.deleted)
        assert [reference[:4] for reference in events.changed] == [
            ("team-a", "listed", "uid-listed", "5"),
            ("team-a", "deep", "uid-deep", "11"),
        ]
        assert events.deleted[0][:4] == ("team-a", "deep", "uid-deep", "13")
        assert not running.done()


async def test_event_that_is_not_needed_does_not_reach_kopf() -> None:
    server = ApiServer()
    for event_type, name, version in [("ADDED", "kept", "11"), ("DELETED", "kept", "12"), ("ADDED", "last", "13")]:
        server.frames.put_nowait(encode_event(event_type, encode_object(name, version)))
    checked: list[tuple[str, str]] = []

    def is_needed(event_type: str, reference: Reference) -> bool:
        checked.append((event_type, reference.resource_version))
        return event_type != "DELETED"

    async with kopf_watching(server, is_needed) as (events, _):
        await changed(events, "last")
        assert [reference.name for reference in events.changed] == ["listed", "kept", "last"]
        assert events.deleted == []
    assert checked == [("ADDED", "11"), ("DELETED", "12"), ("ADDED", "13")]


async def test_kopf_keeps_no_memory_of_an_object() -> None:
    memories = kopf_watch.NoMemories()
    await memories.recall({"metadata": {"uid": "u1"}}, noticed_by_listing=True)
    assert list(memories.iter_all_memories()) == []


@pytest.mark.parametrize(
    "what, failure",
    [
        ("discovery", error(404)),
        ("list", error(403)),
        ("list", error(410)),
        ("list", error(500)),
        ("watch", error(403)),
        ("watch", error(410)),
        ("watch", stream(encode_event("ERROR", encode_status(410, "Expired", "too old")))),
        ("watch", stream(encode_event("ERROR", encode_status(500, "InternalError", "no leader")))),
        ("watch", stream(b"\xff\xff\xff\xff")),
        ("watch", stream(b"\x00\x00\x00\x03abc")),
    ],
    ids=[
        "discovery-404",
        "list-403",
        "list-410",
        "list-500",
        "watch-403",
        "watch-410",
        "gone-in-stream",
        "error-in-stream",
        "huge-frame",
        "damaged-frame",
    ],
)
async def test_kopf_goes_on_after_a_failure(what: str, failure: Answer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kopf_responses, "_PAUSE_SECONDS", 0.01)
    server = ApiServer({what: [failure, failure]})
    server.frames.put_nowait(encode_event("ADDED", encode_object("later", "11")))
    async with kopf_watching(server) as (events, running):
        await changed(events, "later")
        assert server.failures[what] == []
        assert not running.done()


async def test_kopf_that_lists_nothing_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    async def without_taskruns(_: web.Request) -> web.Response:
        return _resources({})

    monkeypatch.setattr(kopf_watch, "_LIST_WITHIN_SECONDS", 0.5)
    async with kopf_watching(ApiServer({"discovery": [without_taskruns]})) as (_, running):
        await asyncio.wait([running], timeout=20)
        with pytest.raises(kopf_watch.KopfEndedError, match=r"did not list taskruns within 0\.5 s"):
            running.result()


async def test_kopf_stops_soon_when_its_task_is_cancelled() -> None:
    loop = asyncio.get_running_loop()
    async with kopf_watching(ApiServer()) as (events, running):
        await changed(events, "listed")
        began = loop.time()
        running.cancel()
        await asyncio.wait([running])
        assert running.cancelled()
        assert loop.time() - began < kopf_watch._STOP_SECONDS


@pytest.mark.parametrize(
    "what", [stream(), stream(b"\x00\x00\x00\x03abc"), error(410)], ids=["empty", "damaged", "gone"]
)
async def test_kopf_pauses_before_it_watches_again(what: Answer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kopf_responses, "_PAUSE_SECONDS", 0.3)
    server = ApiServer({"watch": [what] * 1000})
    async with kopf_watching(server) as (events, _):
        await changed(events, "listed")
        await asyncio.sleep(1)
        assert 1 < server.calls.count("watch") < 6
