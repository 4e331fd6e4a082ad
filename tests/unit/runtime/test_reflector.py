"""The reflector, over a script of what the API server answers."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any, cast

import pytest

from reattach.api.objects import PartialObject
from reattach.cluster import Cluster, GoneError, NotFoundError, ResponseTooLargeError, UnavailableError
from reattach.cluster.references import Reference, ReferencePage
from reattach.runtime import pager
from reattach.runtime.metrics import OperatorMetrics
from reattach.runtime.object_store import ObjectStore
from reattach.runtime.reflector import Reflector
from reattach.runtime.unreadable import UnreadableObjects
from reattach.runtime.workqueue import Key

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

    def __init__(
        self, lists: Sequence[JSON | bytes | Exception], watches: Sequence[Sequence[JSON | bytes | Exception]]
    ) -> None:
        self._lists = list(lists)
        self._watches = list(watches)
        self.references: list[ReferencePage] = []
        self.objects: dict[str, bytes] = {}
        self.pages: list[str | None] = []
        self.limits: list[int] = []
        self.watched_from: list[str] = []
        self.quiet = asyncio.Event()

    async def list(self, _: str, **query: Any) -> bytes:
        self.pages.append(query["continue"])
        self.limits.append(query["limit"])
        return encoded(self._lists.pop(0))

    async def watch(self, _: str, *, resource_version: str, **__: Any) -> AsyncIterator[bytes]:
        self.watched_from.append(resource_version)
        if not self._watches:
            self.quiet.set()
            await asyncio.Event().wait()
        for line in self._watches.pop(0):
            yield encoded(line)

    async def get(self, path: str, **_: Any) -> bytes:
        if path not in self.objects:
            raise NotFoundError(404, "NotFound", "gone")
        return self.objects[path]

    async def list_references(self, _: str, **query: Any) -> ReferencePage:
        """The references on a page that can't be decoded."""
        assert query["limit"] == self.limits[-1]
        return self.references.pop(0)


def encoded(answer: JSON | bytes | Exception) -> bytes:
    if isinstance(answer, Exception):
        raise answer
    return answer if isinstance(answer, bytes) else json.dumps(answer).encode()


def page(version: int, *items: JSON, more: str = "") -> JSON:
    return {"metadata": {"resourceVersion": str(version), "continue": more}, "items": list(items)}


async def uids_after(script: Script, metrics: OperatorMetrics | None = None) -> tuple[set[str], list[Key]]:
    """What is in the cache once the reflector has nothing more to read, and what was marked."""
    marked: list[Key] = []
    unreadable = UnreadableObjects(metrics or OperatorMetrics())
    cache: ObjectStore[PartialObject] = ObjectStore(lambda found: Key("default", found.metadata.name), marked.append)
    reflector = Reflector(cast("Cluster", script), "/pods", PartialObject, cache, unreadable, label_selector="a")
    running = asyncio.ensure_future(reflector.run())
    async with asyncio.timeout(10):
        await script.quiet.wait()
    running.cancel()
    assert reflector.synced.is_set()
    return {found.metadata.uid for found in cache.list()}, marked


async def test_a_list_is_read_page_by_page() -> None:
    script = Script([page(7, made("u1", 3), more="next"), page(7, made("u2", 4))], [])
    uids, _ = await uids_after(script)
    assert uids == {"u1", "u2"}
    assert script.pages == [None, "next"]
    assert script.watched_from == ["7"]


async def test_a_list_whose_pages_grew_too_old_begins_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pager, "_GONE_PAUSE_SECONDS", 0)
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


# -- objects that can't be read --------------------------------------------------------------------

NESTED = b'{"a":' * 5000 + b"1" + b"}" * 5000
DEEP = b'{"metadata":{"name":"deep","uid":"deep","resourceVersion":"8","managedFields":[' + NESTED + b"]}}"
DAMAGED = DEEP.replace(b'"uid":"deep"', b'"uid":5')
DEEP_EVENT = b'{"type":"ADDED","object":' + DEEP + b"}"


def reference_to(name: str) -> Reference:
    return Reference("default", name, name, "8")


def deep_page(*, more: str) -> bytes:
    return b'{"metadata":{"resourceVersion":"9","continue":"%s"},"items":[%s]}' % (more.encode(), DEEP)


@pytest.mark.parametrize(
    "bad",
    [DEEP_EVENT, b"", b"<html>", b'{"type":"ADDED","object":{"metadata":{"name":5}}}'],
    ids=["deep", "too-long", "no-json", "other-shape"],
)
async def test_a_watch_with_an_unreadable_event_goes_on_with_the_next(bad: bytes) -> None:
    metrics = OperatorMetrics()
    script = Script([page(7)], [[bad, event("ADDED", made("u2", 9))]])
    assert (await uids_after(script, metrics))[0] == {"u2"}
    assert script.watched_from == ["7", "9"], "the stream was not begun again because of the event"
    assert 'reattach_unreadable_objects_total{resource="pods"} 1.0' in metrics.text().decode()


async def test_a_list_with_an_unreadable_object_lacks_it_alone(caplog: pytest.LogCaptureFixture) -> None:
    metrics = OperatorMetrics()
    script = Script([deep_page(more="2"), page(9, made("u3", 5))], [])
    names = ("damaged", "u2", "gone")
    script.references = [ReferencePage(tuple(map(reference_to, names)), "9", "2")]
    script.objects = {
        "/namespaces/default/pods/damaged": DAMAGED,
        "/namespaces/default/pods/u2": encoded(made("u2", 8)),
    }
    assert (await uids_after(script, metrics))[0] == {"u2", "u3"}
    assert script.pages == [None, "2"]
    assert "Skipping pods default/damaged, which can't be read: ValidationError" in caplog.text
    assert 'reattach_unreadable_objects_total{resource="pods"} 1.0' in metrics.text().decode()


async def test_list_with_a_deeply_nested_object_has_it_without_its_deep_values() -> None:
    script = Script([deep_page(more="")], [])
    script.references = [ReferencePage((reference_to("deep"),), "9", "")]
    script.objects = {"/namespaces/default/pods/deep": DEEP}
    assert (await uids_after(script))[0] == {"deep"}


async def test_a_page_that_is_too_large_is_asked_for_in_smaller_ones_that_grow_again() -> None:
    large = ResponseTooLargeError(0, "AnswerTooLarge", "more than 16 MiB")
    script = Script([large, page(7, made("u1", 3), more="next"), page(7, made("u2", 4))], [])
    assert (await uids_after(script))[0] == {"u1", "u2"}
    assert script.limits == [10, 1, 10]


async def test_list_of_large_objects_is_not_requested_with_a_limit_that_it_exceeds() -> None:
    large = ResponseTooLargeError(0, "AnswerTooLarge", "more than 16 MiB")
    huge = [page(7, made(f"u{number}", 3, filler="x" * 2_000_000), more="next") for number in range(2)]
    script = Script([large, *huge, page(7, made("u2", 4), more="next"), page(7)], [])
    await uids_after(script)
    assert script.limits == [10, 1, 1, 1, 10]


async def test_the_pages_of_a_long_list_grow() -> None:
    script = Script([page(7, made(f"u{number}", 3), more="next" if number < 3 else "") for number in range(4)], [])
    await uids_after(script)
    assert script.limits == [10, 100, 100, 100]


async def test_a_known_object_that_became_unreadable_is_not_taken_for_gone() -> None:
    deep = deep_page(more="")
    script = Script([page(7, made("deep", 3)), deep], [[ERROR_410]])
    script.references = [ReferencePage((reference_to("deep"),), "9", "")]
    script.objects = {"/namespaces/default/pods/deep": DAMAGED}
    assert (await uids_after(script))[0] == {"deep"}
