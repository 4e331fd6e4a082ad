"""The reflector, over a script of what the API server answers."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any, cast

from reattach.api.objects import PartialObject
from reattach.cluster import Cluster, GoneError, UnavailableError
from reattach.controller.cache import Cache
from reattach.controller.reflector import Reflector
from reattach.controller.workqueue import Key

JSON = dict[str, Any]


def made(uid: str, version: int, **metadata: Any) -> JSON:
    return {"metadata": {"name": uid, "namespace": "default", "uid": uid, "resourceVersion": str(version), **metadata}}


def event(kind: str, about: JSON) -> JSON:
    return {"type": kind, "object": about}


ERROR_410 = event("ERROR", {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"})
ERROR_500 = event("ERROR", {"kind": "Status", "code": 500, "reason": "InternalError", "message": "etcd has trouble"})


class Script:
    """Answers lists and watches in order, notes from where each watch went on, and then hangs, as a quiet watch does.

    An exception stands for the call that fails; within a watch, for the stream that breaks there.
    """

    def __init__(self, lists: Sequence[JSON | Exception], watches: Sequence[Sequence[JSON | Exception]]) -> None:
        self._lists = list(lists)
        self._watches = list(watches)
        self.pages: list[str | None] = []
        self.watched_from: list[str] = []
        self.quiet = asyncio.Event()

    async def list(self, _: str, **query: Any) -> bytes:
        self.pages.append(query["continue"])
        return encoded(self._lists.pop(0))

    async def watch(self, _: str, *, resource_version: str, **__: Any) -> AsyncIterator[bytes]:
        self.watched_from.append(resource_version)
        if not self._watches:
            self.quiet.set()
            await asyncio.Event().wait()
        for line in self._watches.pop(0):
            yield encoded(line)


def encoded(answer: JSON | Exception) -> bytes:
    if isinstance(answer, Exception):
        raise answer
    return json.dumps(answer).encode()


def page(version: int, *items: JSON, more: str = "") -> JSON:
    return {"metadata": {"resourceVersion": str(version), "continue": more}, "items": list(items)}


async def uids_after(script: Script) -> tuple[set[str], list[Key]]:
    """What is in the cache once the reflector has nothing more to read, and what was marked."""
    marked: list[Key] = []
    cache: Cache[PartialObject] = Cache(lambda found: Key("default", found.metadata.name), marked.append)
    reflector = Reflector(cast("Cluster", script), "/pods", PartialObject, cache, label_selector="a")
    running = asyncio.ensure_future(reflector.run())
    async with asyncio.timeout(10):
        await script.quiet.wait()
    running.cancel()
    assert reflector.synced.is_set()
    return {found.metadata.uid for found in cache.all()}, marked


async def test_a_list_is_read_page_by_page() -> None:
    script = Script([page(7, made("u1", 3), more="next"), page(7, made("u2", 4))], [])
    uids, _ = await uids_after(script)
    assert uids == {"u1", "u2"}
    assert script.pages == [None, "next"]
    assert script.watched_from == ["7"]


async def test_a_list_whose_pages_grew_too_old_begins_again() -> None:
    gone = GoneError(410, "Expired", "the continue token is too old")
    script = Script([page(7, made("u1", 3), more="next"), gone, page(9, made("u2", 8))], [])
    assert (await uids_after(script))[0] == {"u2"}
    assert script.pages == [None, "next", None]


async def test_a_list_of_metadata_without_items_is_empty() -> None:
    script = Script([{"metadata": {"resourceVersion": "7"}, "items": None}], [])
    assert (await uids_after(script))[0] == set()


async def test_a_broken_watch_goes_on_from_the_last_event_or_bookmark() -> None:
    bookmark = event("BOOKMARK", {"metadata": {"resourceVersion": "30"}})
    broken = UnavailableError(0, "WatchBroken", "the connection broke")
    script = Script([page(7)], [[event("ADDED", made("u1", 8)), bookmark, broken], [event("ADDED", made("u2", 31))]])
    assert (await uids_after(script))[0] == {"u1", "u2"}
    assert script.watched_from == ["7", "30", "31"]


async def test_after_410_a_deletion_that_no_watch_told_is_found_by_the_list() -> None:
    script = Script([page(7, made("u1", 3), made("u2", 4)), page(50, made("u2", 4))], [[ERROR_410]])
    uids, marked = await uids_after(script)
    assert uids == {"u2"}
    assert marked.count(Key("default", "u1")) == 2  # seen, and gone


async def test_410_as_the_answer_to_the_watch_itself_means_the_same() -> None:
    script = Script([page(7, made("u1", 3)), page(50)], [[GoneError(410, "Expired", "too old")]])
    assert (await uids_after(script))[0] == set()


async def test_another_error_within_the_stream_is_no_reason_to_list_again() -> None:
    script = Script([page(7, made("u1", 3))], [[ERROR_500], [event("DELETED", made("u1", 9))]])
    assert (await uids_after(script))[0] == set()
    assert script.watched_from == ["7", "7", "9"]


async def test_a_list_that_fails_is_tried_again() -> None:
    script = Script([UnavailableError(503, "ServiceUnavailable", "starting"), page(7, made("u1", 3))], [])
    assert (await uids_after(script))[0] == {"u1"}


async def test_an_object_that_left_the_selector_with_its_finalizer_may_come_back() -> None:
    stays = made("u1", 9, finalizers=["reattach.dev/attempt"])
    script = Script([page(7, made("u1", 3))], [[event("DELETED", stays), event("ADDED", made("u1", 12))]])
    assert (await uids_after(script))[0] == {"u1"}
