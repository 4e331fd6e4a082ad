"""Reader of events about pods: how often it lists, and how it reads events that users wrote."""

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from reattach.api.objects import ObjectMeta
from reattach.cluster import ForbiddenError, UnavailableError
from reattach.planner.plan import PodEvent, PodEvents
from reattach.taskrun.pod_event_reader import PodEventReader

NOW = datetime(2026, 1, 2, tzinfo=UTC)


def event(uid: str, note: str, seconds: int = 0, **more: Any) -> dict[str, Any]:
    time = (NOW + timedelta(seconds=seconds)).isoformat()
    named = {"reason": "FailedMount", "note": note, "regarding": {"kind": "Pod", "uid": uid}}
    return {**named, "deprecatedLastTimestamp": time, **more}


@dataclass
class Scene:
    """A reader over a list of events that a test sets."""

    items: list[Any] = field(default_factory=list)
    continue_: str = ""
    error: Exception | None = None
    now: datetime = NOW
    selectors: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.reader = PodEventReader(self, clock=lambda: self.now)  # type: ignore[arg-type]

    async def list(self, path: str, *, bytes_max: int, limit: int, fieldSelector: str) -> bytes:  # noqa: N803 -- the parameter of the API
        assert path.startswith("/apis/events.k8s.io/v1/namespaces/")
        assert bytes_max > 0
        assert limit > 0
        self.selectors.append(fieldSelector)
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        return msgspec.json.encode({"metadata": {"continue": self.continue_}, "items": self.items})

    async def read(self, uid: str = "a", namespace: str = "data") -> PodEvents:
        return await self.reader.read(ObjectMeta(namespace=namespace, uid=uid))

    async def newest(self, uid: str = "a") -> str | None:
        found = (await self.read(uid)).newest
        return None if found is None else found.note


async def test_namespace_is_listed_once_a_minute_for_all_its_pods() -> None:
    scene = Scene([event("a", "one"), event("b", "two")])
    found = await asyncio.gather(*(scene.read(uid) for uid in "abcabc"))
    assert [one.newest and one.newest.note for one in found] == ["one", "two", None] * 2
    assert {one.again_at for one in found} == {NOW + timedelta(seconds=60)}
    scene.now += timedelta(seconds=59)
    await scene.read()
    assert scene.selectors == ["type=Warning,regarding.kind=Pod"]
    await scene.read(namespace="other")
    scene.now += timedelta(seconds=1)
    await scene.read()
    assert len(scene.selectors) == 3
    scene.now += timedelta(seconds=120)
    await scene.read("x", "third")
    assert set(scene.reader._reads) == {"third"}


async def test_newest_event_about_the_start_is_returned_whatever_its_kind_of_time() -> None:
    series = {"series": {"lastObservedTime": (NOW + timedelta(seconds=9)).isoformat()}}
    for newest in (
        event("a", "new", 9),
        event("a", "new", **series),
        event("a", "new", eventTime=(NOW + timedelta(9)).isoformat()),
    ):
        assert await Scene([event("a", "old", 5), newest, event("a", "older", 3)]).newest() == "new"
    scheduling = event("a", "no node", 8, reason="FailedScheduling")
    assert await Scene([event("a", "mount", 5), scheduling]).newest() == "mount"


async def test_crowded_namespace_is_listed_for_one_pod_every_other_time() -> None:
    scene = Scene([event("b", "two")], continue_="more")
    assert await scene.newest() is None
    scene.now += timedelta(seconds=60)
    scene.items, scene.continue_ = [event("a", "one")], ""
    assert await scene.newest() == "one"
    scene.now += timedelta(seconds=60)
    await scene.read()
    everything = "type=Warning,regarding.kind=Pod"
    assert scene.selectors == [everything, "type=Warning,regarding.uid=a", everything]


async def test_event_that_a_user_wrote_hides_no_other_event_and_is_printable() -> None:
    hostile = [
        {"regarding": 1},
        "text",
        event("a", "x", deprecatedLastTimestamp="yesterday"),
        event("a", "\x1b[31mred\n" + "x" * 5000, 1, reason="R" * 1000),
    ]
    found = (await Scene([*hostile, event("b", "two")]).read()).newest
    assert found is not None
    assert found.note.isprintable()
    assert (len(found.note.encode()), len(found.reason.encode())) == (1024, 128)
    assert await Scene([*hostile, event("b", "two")]).newest("b") == "two"


async def test_missing_right_is_logged_once_and_leads_to_no_further_read(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene(error=ForbiddenError(403, "Forbidden", "no right"))
    for _ in range(3):
        assert await scene.read() == PodEvents()
        scene.now += timedelta(seconds=60)
    assert len([record for record in caplog.records if "no right" in record.message]) == 1
    scene.error = UnavailableError(0, "NoAnswer", "away")
    assert await scene.read() == PodEvents(None, scene.now + timedelta(seconds=60))


async def test_worker_that_ends_does_not_end_the_list_of_the_others() -> None:
    scene = Scene([event("a", "one")])
    first, second = (asyncio.create_task(scene.read()) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    assert (await second).newest == PodEvent("FailedMount", "one")
