"""Cache of TaskRuns: kopf's watch wakes the workers, the reflector brings objects, and no end is believed without a GET."""

import json
from copy import deepcopy
from itertools import permutations
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import to_taskrun
from reattach.api.names import ANNOTATION_WAKE
from reattach.api.taskrun import TaskRun, TaskRunStatus
from reattach.cluster import Cluster, NotFoundError, Reference, UnavailableError
from reattach.cluster.references import ReferencePage
from reattach.runtime.metrics import OperatorMetrics
from reattach.runtime.unreadable import UnreadableObjects
from reattach.runtime.workqueue import Key
from reattach.taskrun.taskrun_store import (
    GRACE_SECONDS,
    TEMPLATE_BYTES_KEPT,
    TaskRunStore,
    UnreadableTaskRunError,
)

JSON = dict[str, Any]
KEY = Key("default", "load")
NESTED = b'{"a":' * 5000 + b"1" + b"}" * 5000


def made(uid: str = "u1", version: int = 5, **status: Any) -> JSON:
    return {
        "metadata": {"name": "load", "namespace": "default", "uid": uid, "resourceVersion": str(version)},
        "spec": {"template": {"spec": {"containers": [{"name": "task"}]}}},
        "status": status,
    }


def taskrun(uid: str = "u1", version: int = 5) -> TaskRun:
    return to_taskrun(made(uid, version))


def reference(uid: str = "u1", version: int = 5) -> Reference:
    return Reference("default", "load", uid, str(version))


class Server:
    """Answers GET and LIST with what is there."""

    def __init__(self) -> None:
        self.there: JSON | bytes | Exception | None = None
        self.gets = 0
        self.meanwhile = lambda: None

    async def get(self, _: str) -> bytes:
        self.gets += 1
        self.meanwhile()
        if isinstance(self.there, Exception):
            raise self.there
        if self.there is None:
            raise NotFoundError(404, "NotFound", "not found")
        return self.there if isinstance(self.there, bytes) else json.dumps(self.there).encode()

    async def list_references(self, _: str, **__: Any) -> ReferencePage:
        items = () if self.there is None else (reference(),)
        return ReferencePage(items, "100", "")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def marked() -> list[Key]:
    return []


@pytest.fixture
def metrics() -> OperatorMetrics:
    return OperatorMetrics()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def taskruns(server: Server, marked: list[Key], metrics: OperatorMetrics, clock: Clock) -> TaskRunStore:
    return TaskRunStore(
        cast("Cluster", server), (), marked.append, UnreadableObjects(metrics, own_plural="taskruns"), clock
    )


def uid_of(taskruns: TaskRunStore) -> str | None:
    known = taskruns.get(KEY)
    return known.metadata.uid if known else None


def see(taskruns: TaskRunStore, uid: str = "u1", version: int = 5) -> None:
    """The reflector brings a TaskRun, and kopf's watch tells of it."""
    taskruns.upsert(taskrun(uid, version))
    taskruns.on_event(reference(uid, version))


# -- waking the workers ----------------------------------------------------------------------------


def test_an_object_that_no_event_of_kopf_announced_wakes_no_worker(taskruns: TaskRunStore, marked: list[Key]) -> None:
    taskruns.upsert(taskrun())
    assert marked == []
    assert uid_of(taskruns) == "u1"


@pytest.mark.parametrize("object_first", [True, False])
def test_an_object_and_its_event_wake_the_workers_once_in_either_order(
    taskruns: TaskRunStore, marked: list[Key], *, object_first: bool
) -> None:
    steps = [lambda: taskruns.upsert(taskrun()), lambda: taskruns.on_event(reference())]
    for step in steps if object_first else reversed(steps):
        assert marked == []
        step()
    assert marked == [KEY]
    taskruns.on_event(reference())  # kopf lists again
    assert marked == [KEY]


def test_an_event_of_a_newer_version_waits_for_that_version_while_the_reflector_comes_closer(
    taskruns: TaskRunStore, marked: list[Key], clock: Clock
) -> None:
    see(taskruns)
    marked.clear()
    taskruns.on_event(reference(version=9))
    assert marked == []
    clock.now = 0.9 * GRACE_SECONDS
    taskruns.upsert(taskrun(version=7))
    assert marked == [KEY]
    clock.now = 1.8 * GRACE_SECONDS
    taskruns.check_overdue()
    assert not taskruns.is_suspect(KEY)
    taskruns.upsert(taskrun(version=9))
    assert marked == [KEY, KEY]


def test_the_event_of_our_own_write_wakes_nobody_again(taskruns: TaskRunStore, marked: list[Key]) -> None:
    see(taskruns)
    taskruns.on_event(reference(version=6))  # before its answer
    taskruns.apply_response(taskrun(version=6))
    marked.clear()
    taskruns.upsert(taskrun(version=6))
    taskruns.on_event(reference(version=6))
    assert marked == []
    assert not taskruns.is_suspect(KEY)


async def test_an_object_that_does_not_come_in_time_is_read(
    taskruns: TaskRunStore, server: Server, clock: Clock
) -> None:
    see(taskruns)
    taskruns.on_event(reference(version=9))
    taskruns.check_overdue()
    assert not taskruns.is_suspect(KEY)
    clock.now = GRACE_SECONDS
    taskruns.check_overdue()
    assert taskruns.is_suspect(KEY)
    server.there = made(version=9)
    await taskruns.refresh(KEY)
    assert not taskruns.is_suspect(KEY)
    assert server.gets == 1


def test_everything_that_the_first_list_brought_is_announced_once(taskruns: TaskRunStore, marked: list[Key]) -> None:
    taskruns.upsert(taskrun())
    taskruns.enqueue_all()
    taskruns.on_event(reference())
    assert marked == [KEY]


# -- doubts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_kopf", [True, False])
async def test_a_deleted_event_is_a_doubt_until_the_api_server_says_the_same(
    taskruns: TaskRunStore, server: Server, *, by_kopf: bool
) -> None:
    see(taskruns)
    if by_kopf:
        taskruns.on_deleted(reference(version=6))
    else:
        taskruns.delete("u1", version="6")
    assert taskruns.is_suspect(KEY)
    assert taskruns.get(KEY) is None
    server.there = None
    assert await taskruns.refresh(KEY) is None
    assert not taskruns.is_suspect(KEY)
    assert len(taskruns) == 0


async def test_a_deleted_event_of_one_that_is_still_there_changes_nothing(
    taskruns: TaskRunStore, server: Server
) -> None:
    see(taskruns)
    taskruns.on_deleted(reference(version=6))
    server.there = made(version=7)
    assert (await taskruns.refresh(KEY)) is not None
    assert uid_of(taskruns) == "u1"


async def test_a_doubt_stays_when_the_api_server_can_not_be_asked(taskruns: TaskRunStore, server: Server) -> None:
    see(taskruns)
    taskruns.on_deleted(reference(version=6))
    server.there = UnavailableError(503, "ServiceUnavailable", "away")
    with pytest.raises(UnavailableError):
        await taskruns.refresh(KEY)
    assert taskruns.is_suspect(KEY)


async def test_one_that_we_finished_needs_no_question_when_it_leaves_the_watch(
    taskruns: TaskRunStore, server: Server, marked: list[Key]
) -> None:
    see(taskruns)
    server.there = made(version=6, outcome="Succeeded")
    await taskruns.refresh(KEY)
    marked.clear()
    taskruns.on_deleted(reference(version=6))
    taskruns.delete("u1", version="6")
    assert not taskruns.is_suspect(KEY)
    assert marked == []


async def test_one_that_we_finished_does_not_come_back_by_a_late_event(
    taskruns: TaskRunStore, server: Server, clock: Clock
) -> None:
    see(taskruns)
    server.there = made(version=6, outcome="Succeeded")
    await taskruns.refresh(KEY)
    taskruns.upsert(taskrun(version=5))
    taskruns.on_event(reference(version=5))
    clock.now = GRACE_SECONDS
    taskruns.check_overdue()
    assert taskruns.get(KEY) is None
    assert not taskruns.is_suspect(KEY)


async def test_two_of_the_same_name_are_doubtful_until_the_api_server_says_which(
    taskruns: TaskRunStore, server: Server
) -> None:
    see(taskruns, "u1", 5)
    see(taskruns, "u2", 9)
    assert taskruns.is_suspect(KEY)
    server.there = made("u2", 9)
    await taskruns.refresh(KEY)
    assert uid_of(taskruns) == "u2"


def test_one_that_ended_before_its_object_came_is_awaited_no_longer(taskruns: TaskRunStore, clock: Clock) -> None:
    taskruns.on_event(reference())
    taskruns.on_deleted(reference(version=6))
    clock.now = GRACE_SECONDS
    taskruns.check_overdue()
    assert not taskruns.is_suspect(KEY)


# -- the sweep -------------------------------------------------------------------------------------


async def test_a_sweep_finds_what_no_watch_told_the_end_of(taskruns: TaskRunStore, server: Server) -> None:
    see(taskruns)
    server.there = None
    await taskruns.resync()
    assert taskruns.is_suspect(KEY)


async def test_a_sweep_finds_what_no_watch_told_the_start_of(
    taskruns: TaskRunStore, server: Server, clock: Clock
) -> None:
    server.there = made()
    await taskruns.resync()
    clock.now = GRACE_SECONDS
    taskruns.check_overdue()
    assert taskruns.is_suspect(KEY)
    await taskruns.refresh(KEY)
    assert uid_of(taskruns) == "u1"


async def test_a_sweep_announces_what_the_reflector_brought_and_kopf_missed(
    taskruns: TaskRunStore, server: Server, marked: list[Key]
) -> None:
    taskruns.upsert(taskrun())
    server.there = made()
    await taskruns.resync()
    assert marked == [KEY]
    assert server.gets == 0


# -- what can't be read ----------------------------------------------------------------------------


async def test_one_that_can_not_be_read_is_named_once_and_is_never_taken_for_gone(
    taskruns: TaskRunStore, server: Server, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    server.there = made(attempts=[{"number": "one"}])
    taskruns.on_event(reference())
    clock.now = GRACE_SECONDS
    taskruns.check_overdue()
    for _ in range(3):
        with pytest.raises(UnreadableTaskRunError, match="number"):
            await taskruns.refresh(KEY)
        assert taskruns.is_suspect(KEY)
    assert len(caplog.records) == 1
    assert "Skipping taskruns default/load," in caplog.text


async def test_refresh_of_a_deeply_nested_taskrun_returns_it_without_its_deep_values(
    taskruns: TaskRunStore, server: Server
) -> None:
    server.there = (
        json.dumps(made(outcome="Failed")).replace('"containers"', f'"x": {NESTED.decode()}, "containers"').encode()
    )
    found = await taskruns.refresh(KEY)
    assert found is not None
    assert found.status.outcome == "Failed"
    assert b"null" in bytes(found.spec.template)


async def test_store_with_a_large_template_keeps_none_of_it_and_reads_it_again(
    taskruns: TaskRunStore, server: Server, marked: list[Key]
) -> None:
    large = made()
    large["spec"]["template"]["spec"]["x"] = "x" * TEMPLATE_BYTES_KEPT
    server.there = large
    taskruns.upsert(to_taskrun(large))
    taskruns.enqueue_all()
    assert marked == [KEY]
    for _ in range(2):
        assert taskruns.get(KEY) is None
        assert taskruns.is_suspect(KEY)
        found = await taskruns.refresh(KEY)
        assert found is not None
        assert len(found.spec.template) > TEMPLATE_BYTES_KEPT
    assert marked == [KEY], "a read of the same version wakes no worker"


def test_store_keeps_only_the_start_of_the_wake_annotation_because_users_decide_its_length(
    taskruns: TaskRunStore,
) -> None:
    large = made()
    large["metadata"]["annotations"] = {ANNOTATION_WAKE: "x" * 100_000, "other": "y"}
    taskruns.upsert(to_taskrun(large))
    found = taskruns.get(KEY)
    assert found is not None
    assert found.metadata.annotations == {ANNOTATION_WAKE: "x" * 256}


def test_store_with_a_taskrun_of_another_manager_keeps_only_what_identifies_it(
    taskruns: TaskRunStore, marked: list[Key]
) -> None:
    other = made(observedGeneration=1)
    other["spec"]["managedBy"] = "example.com/other"
    other["metadata"]["labels"] = {"a": "b"}
    taskruns.upsert(to_taskrun(other))
    found = taskruns.get(KEY)
    assert found is not None
    assert not found.spec.template
    assert (found.status, found.metadata.labels) == (TaskRunStatus(), {})
    taskruns.on_event(reference(version=6))
    taskruns.check_overdue()
    assert not taskruns.is_suspect(KEY), "a TaskRun never changes its manager, so no event needs a read"
    assert marked == []


# -- any order -------------------------------------------------------------------------------------


def test_a_change_by_others_is_not_lost_when_the_response_to_an_older_write_comes_last(
    taskruns: TaskRunStore, marked: list[Key]
) -> None:
    see(taskruns, version=2)
    taskruns.upsert(taskrun(version=3))  # our write
    taskruns.upsert(taskrun(version=4))  # somebody cancels
    taskruns.apply_response(taskrun(version=3))
    marked.clear()
    taskruns.on_event(reference(version=4))
    assert marked == [KEY]


def test_one_that_was_created_again_is_not_lost_when_late_events_of_the_first_come(
    taskruns: TaskRunStore, marked: list[Key]
) -> None:
    see(taskruns, "u1", 5)
    taskruns.on_event(reference("u2", 9))
    taskruns.on_event(reference("u1", 6))
    taskruns.upsert(taskrun("u1", 6))
    taskruns.on_deleted(reference("u1", 7))
    marked.clear()
    taskruns.upsert(taskrun("u2", 9))
    assert marked == [KEY]


async def test_one_that_we_finished_is_not_read_again_when_its_deletion_comes_before_the_response(
    taskruns: TaskRunStore,
) -> None:
    see(taskruns)
    taskruns.on_deleted(reference(version=6))
    taskruns.apply_response(to_taskrun(made(version=6, outcome="Succeeded")))
    assert not taskruns.is_suspect(KEY)


@pytest.mark.parametrize("order", list(permutations(("object", "event", "response"))), ids="-".join)
def test_our_own_write_wakes_the_workers_once_in_any_order(
    taskruns: TaskRunStore, marked: list[Key], order: tuple[str, ...]
) -> None:
    """The planner may need a pass after its write, which no other event brings."""
    see(taskruns, version=2)
    marked.clear()
    steps = {
        "object": lambda: taskruns.upsert(taskrun(version=3)),
        "event": lambda: taskruns.on_event(reference(version=3)),
        "response": lambda: taskruns.apply_response(taskrun(version=3)),
    }
    for step in order:
        steps[step]()
    assert marked == [KEY]


async def test_one_that_is_suspect_stays_so_when_another_of_its_name_is_confirmed_as_finished(
    taskruns: TaskRunStore, server: Server, clock: Clock
) -> None:
    see(taskruns, "u1", 5)
    taskruns.on_event(reference("u2", 9))
    clock.now = GRACE_SECONDS
    taskruns.check_overdue()
    taskruns.delete("u1", version="7")
    taskruns.apply_response(to_taskrun(made("u1", 6, outcome="Succeeded")))
    assert taskruns.is_suspect(KEY)
    server.there = made("u2", 9)
    await taskruns.refresh(KEY)
    assert uid_of(taskruns) == "u2"


async def test_one_that_is_deleted_while_its_first_get_is_under_way_does_not_stay(
    taskruns: TaskRunStore, server: Server, clock: Clock
) -> None:
    taskruns.on_event(reference())
    clock.now = GRACE_SECONDS
    taskruns.check_overdue()
    server.there = made()
    server.meanwhile = lambda: taskruns.on_deleted(reference(version=6))
    await taskruns.refresh(KEY)
    assert uid_of(taskruns) is None


@given(st.permutations([(kind, version) for kind in ("object", "event", "response") for version in (6, 7, 8)]))
def test_the_last_version_is_always_looked_at(steps: list[tuple[str, int]]) -> None:
    """Reflector, kopf and our own responses each tell of versions in any order; 8 is by others, and has no response of ours."""
    seen: list[str] = []
    clock = Clock()
    taskruns = TaskRunStore(cast("Cluster", None), (), lambda _: look(), UnreadableObjects(OperatorMetrics()), clock)

    def look() -> None:
        known = taskruns.get(KEY)
        seen.append(known.metadata.resource_version if known else "a GET")

    see(taskruns)
    for kind, version in steps:
        if kind == "object":
            taskruns.upsert(taskrun(version=version))
        elif kind == "event":
            if taskruns.is_needed("MODIFIED", reference(version=version)):
                taskruns.on_event(reference(version=version))
        elif version < 8:
            taskruns.apply_response(taskrun(version=version))
    clock.now = GRACE_SECONDS
    taskruns.check_overdue()
    assert "8" in seen


# -- events that kopf need not process -------------------------------------------------------------

_STEPS = st.tuples(
    st.sampled_from(["object", "event", "deleted", "response", "end", "overdue"]),
    st.sampled_from(["u1", "u2"]),
    st.integers(5, 9),
)


def test_deletion_of_a_run_that_this_process_ended_is_not_needed(taskruns: TaskRunStore) -> None:
    see(taskruns)
    assert taskruns.is_needed("DELETED", reference(version=6))
    taskruns.apply_response(to_taskrun(made(version=6, outcome="Succeeded")))
    assert not taskruns.is_needed("DELETED", reference(version=6))
    assert taskruns.is_needed("DELETED", reference("u2", 6))


def test_event_of_our_own_write_is_not_needed_and_of_a_later_write_is(taskruns: TaskRunStore) -> None:
    see(taskruns)
    taskruns.apply_response(taskrun(version=6))
    assert not taskruns.is_needed("MODIFIED", reference(version=6))
    assert taskruns.is_needed("MODIFIED", reference(version=7))


def test_event_of_an_unreadable_taskrun_is_needed(server: Server, metrics: OperatorMetrics) -> None:
    unreadable = UnreadableObjects(metrics)
    taskruns = TaskRunStore(cast("Cluster", server), (), lambda _: None, unreadable)
    see(taskruns)
    taskruns.apply_response(to_taskrun(made(version=6, outcome="Succeeded")))
    unreadable.report("taskruns", reference(), ValueError("deep"))
    assert taskruns.is_needed("DELETED", reference(version=6))


@given(st.lists(_STEPS, max_size=12), st.sampled_from(["event", "deleted"]), _STEPS)
def test_event_that_is_not_needed_changes_nothing(
    steps: list[tuple[str, str, int]], kind: str, last: tuple[str, str, int]
) -> None:
    """After any history, handling an event for which `is_needed` returns False has no effect."""
    marked: list[Key] = []
    clock = Clock()
    taskruns = TaskRunStore(cast("Cluster", None), (), marked.append, UnreadableObjects(OperatorMetrics()), clock)

    def handle(kind: str, uid: str, version: int) -> None:
        match kind:
            case "object":
                taskruns.upsert(taskrun(uid, version))
            case "event":
                taskruns.on_event(reference(uid, version))
            case "deleted":
                taskruns.on_deleted(reference(uid, version))
            case "response":
                taskruns.apply_response(taskrun(uid, version))
            case "end":
                taskruns.apply_response(to_taskrun(made(uid, version, outcome="Succeeded")))
            case _:
                clock.now += GRACE_SECONDS
                taskruns.check_overdue()

    def content() -> Any:
        cache = taskruns._cache
        return deepcopy((marked, taskruns._suspect, taskruns._enqueued, taskruns._awaited, cache._ended, cache.list()))

    for step in steps:
        handle(*step)
    _, uid, version = last
    before = content()
    if not taskruns.is_needed("DELETED" if kind == "deleted" else "MODIFIED", reference(uid, version)):
        handle(kind, uid, version)
        assert content() == before
