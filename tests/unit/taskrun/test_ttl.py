"""Time at which ended TaskRuns are deleted, and how many are kept in memory."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from reattach.api.objects import Condition, ObjectMeta
from reattach.api.taskrun import TaskRun, TaskRunSpec, TaskRunStatus, Ttl
from reattach.cluster import UnavailableError
from reattach.runtime.metrics import OperatorMetrics
from reattach.runtime.rate_limiter import RateLimiter
from reattach.runtime.unreadable import UnreadableObjects
from reattach.runtime.workqueue import Key
from reattach.runtime.writer import Writer
from reattach.taskrun import ttl
from reattach.taskrun.orphan_records import orphan_store
from reattach.taskrun.ttl import PENDING_MAX, TtlController, expiry_of

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ENDED = NOW - timedelta(minutes=1)
UNRECORDED = Condition(type="Orphaned", status="True", reason="OrphansUnrecorded", last_transition_time=NOW)
EACH = Ttl(succeeded_seconds=1, failed_seconds=2, cancelled_seconds=3)


def ended(name: str = "load", *, namespace: str = "demo", seconds: int | None = 0, **status: Any) -> TaskRun:
    spec = TaskRunSpec(template=msgspec.Raw(b"{}"), ttl=Ttl(failed_seconds=seconds))
    given = {"outcome": "Failed", "completion_time": ENDED, **status}
    return TaskRun(
        metadata=ObjectMeta(name=name, namespace=namespace, uid=f"uid-{name}", resource_version="1"),
        spec=spec,
        status=TaskRunStatus(**given),
    )


def with_spec(taskrun: TaskRun, **spec: Any) -> TaskRun:
    return msgspec.structs.replace(taskrun, spec=msgspec.structs.replace(taskrun.spec, **spec))


@pytest.mark.parametrize("outcome, seconds", [("Succeeded", 1), ("Failed", 2), ("Cancelled", 3)])
def test_expiry_depends_on_the_field_of_the_outcome(outcome: str, seconds: int) -> None:
    taskrun = with_spec(ended(outcome=outcome), ttl=EACH)
    assert expiry_of(taskrun) == ENDED + timedelta(seconds=seconds)
    assert expiry_of(with_spec(taskrun, ttl=Ttl())) is None


@pytest.mark.parametrize(
    "taskrun",
    [
        with_spec(ended(outcome=None), ttl=EACH),
        with_spec(ended(outcome="Unheard"), ttl=EACH),
        ended(completion_time=None),
        ended(orphaned=True, conditions=(UNRECORDED,)),
        ended(completion_time=datetime.max.replace(tzinfo=UTC), seconds=1),
        with_spec(ended(), managed_by="example.com/other"),
        msgspec.structs.replace(ended(), metadata=ObjectMeta(name="load", deletion_timestamp=NOW)),
    ],
)
def test_expiry_of_a_taskrun_that_is_not_deleted_is_none(taskrun: TaskRun) -> None:
    assert expiry_of(taskrun) is None


class Server:
    """API server with ended TaskRuns.

    Deletions in `slow` namespaces never return, those in `broken` ones fail.
    """

    def __init__(self, *taskruns: TaskRun) -> None:
        self.taskruns = list(taskruns)
        self.deleted: list[str] = []
        self.slow: set[str] = set()
        self.broken: set[str] = set()
        self.selectors: list[str] = []

    async def list(self, path: str, **query: Any) -> bytes:  # noqa: ARG002 -- as the client's
        selector = query["fieldSelector"]
        self.selectors.append(selector)
        start, limit = int(query["continue"] or 0), query["limit"]
        found = self.taskruns if selector == "status.outcome=Failed,spec.ttl.failedSeconds!=" else []
        token = str(start + limit) if len(found) > start + limit else ""
        page = {"metadata": {"continue": token}, "items": found[start : start + limit]}
        return msgspec.json.encode(page)

    async def delete(self, path: str, **_: Any) -> bytes:
        *_, namespace, _, name = path.split("/")
        await asyncio.sleep(0)
        if namespace in self.slow:
            await asyncio.Event().wait()
        if namespace in self.broken:
            raise UnavailableError(500, "InternalError", "failed calling webhook")
        self.deleted.append(name)
        return b"{}"


class Scene:
    def __init__(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ttl, "_ROOM_SECONDS", 0.2)
        self.server, self.now, self.metrics = server, NOW, OperatorMetrics()
        cluster: Any = server
        limiter = RateLimiter(per_second=100_000, at_once=64)
        self.controller = TtlController(
            cluster,
            Writer(cluster, limiter, lambda: True, self.metrics),
            (),
            orphan_store(),
            unreadable=UnreadableObjects(self.metrics),
            metrics=self.metrics,
            sweep_seconds=300,
            clock=lambda: self.now,
        )

    @asynccontextmanager
    async def deleting(self) -> AsyncIterator[None]:
        """Run the workers, and not the sweeps."""
        loops = [self.controller.run_worker, self.controller.run_worker, self.controller._queue.run_delays]
        tasks = [asyncio.create_task(loop()) for loop in loops]
        yield
        async with asyncio.timeout(10):
            while self.controller._queue.depth or self.controller._queue._active:  # noqa: ASYNC110 -- no event
                await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_sweep_of_more_than_fit_in_memory_deletes_all(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(Server(*(ended(f"load-{number}") for number in range(2 * PENDING_MAX + 1))), monkeypatch)
    highest = 0
    delete = scene.server.delete

    async def counting(path: str, **how: Any) -> bytes:
        nonlocal highest
        highest = max(highest, len(scene.controller))
        return await delete(path, **how)

    monkeypatch.setattr(scene.server, "delete", counting)
    async with scene.deleting():
        await scene.controller.sweep()
    assert sorted(scene.server.deleted) == sorted(each.metadata.name for each in scene.server.taskruns)
    assert 0 < highest <= PENDING_MAX
    assert len(scene.controller) == 0


async def test_namespace_with_slow_deletions_delays_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    many = [ended(f"slow-{number}", namespace="a") for number in range(PENDING_MAX + 100)]
    scene = Scene(Server(*many, ended("quick", namespace="b")), monkeypatch)
    scene.server.slow = {"a"}
    async with asyncio.timeout(10):
        loops = [scene.controller.run_worker] * 3 + [scene.controller._queue.run_delays]
        tasks = [asyncio.create_task(loop()) for loop in loops]
        await scene.controller.sweep()
        while not scene.server.deleted:  # noqa: ASYNC110 -- the server has no event for that
            await asyncio.sleep(0.01)
    assert scene.server.deleted == ["quick"]
    assert len(scene.controller) == PENDING_MAX
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_taskruns_that_are_due_later_take_only_a_share_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    later = [ended(f"later-{number}", seconds=120) for number in range(PENDING_MAX)]
    scene = Scene(Server(*later, ended("now")), monkeypatch)
    async with scene.deleting():
        await scene.controller.sweep()
    assert scene.server.deleted == ["now"]
    assert 0 < len(scene.controller) < PENDING_MAX
    assert scene.controller._is_incomplete.is_set(), "the next sweep comes sooner"


async def test_taskrun_that_is_due_after_the_next_sweeps_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(Server(ended("soon", seconds=300), ended("much-later", seconds=3600)), monkeypatch)
    await scene.controller.sweep()
    assert len(scene.controller) == 1
    scene.controller.on_finished(ended("ends-now", seconds=60 + 30))
    assert len(scene.controller) == 2


async def test_ttl_that_is_extended_after_it_was_scheduled_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(Server(), monkeypatch)
    scene.controller.on_finished(ended())
    scene.controller.on_finished(ended(seconds=90))
    scene.controller._queue.add(Key("demo", "load"))  # its first time has come already
    async with scene.deleting():
        await asyncio.sleep(0)
    assert scene.server.deleted == []
    assert len(scene.controller) == 1
    scene.now += timedelta(seconds=31)
    async with scene.deleting():
        await asyncio.sleep(0.05)
    assert scene.server.deleted == ["load"]


async def test_failed_deletions_are_counted_and_left_to_the_next_sweep(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scene = Scene(Server(*(ended(f"load-{number}") for number in range(9))), monkeypatch)
    scene.server.broken = {"demo"}
    async with scene.deleting():
        await scene.controller.sweep()
    assert len(scene.controller) == 0
    assert b"reattach_ttl_failures_total 9.0" in scene.metrics.text()
    assert len([line for line in caplog.messages if "Can't delete TaskRun" in line]) == 1
    scene.server.broken.clear()
    async with scene.deleting():
        await scene.controller.sweep()
    assert len(scene.server.deleted) == 9
