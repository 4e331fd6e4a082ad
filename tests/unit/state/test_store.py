"""What two replicas make of one state between two requests of one of them."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from reattach.api.messages import ProblemCode
from reattach.api.names import ANNOTATION_SUMMARY, API_VERSION, KIND, LABEL_TASKRUN, state_name
from reattach.api.objects import ObjectMeta, PartialObject
from reattach.api.state import SealPurpose
from reattach.api.taskrun import StateMetadata
from reattach.cluster import ForbiddenError, NotFoundError
from reattach.cluster.paths import configmaps, taskruns
from reattach.runtime.metrics import OperatorMetrics
from reattach.runtime.unreadable import UnreadableObjects
from reattach.state.codec import DurableState, StateEntry, StoredState, from_data
from reattach.state.errors import RequestRejectedError
from reattach.state.operations import Session, Set, change, complete
from reattach.state.state_copy import copy_of
from reattach.state.store import RunReference, Store
from reattach.taskrun.key_expiry import KeyExpiry, is_due
from reattach.testing.memory_api import InMemoryCluster

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SESSION = Session(attempt=1, pod_uid="pod-1", id="session-1")


class Interrupted(InMemoryCluster):
    """With `seals`, another replica seals the state right after it is created, before whoever created it goes on."""

    def __init__(self) -> None:
        super().__init__(lambda: NOW)
        self.seals = False

    async def create(self, path: str, body: Mapping[str, Any], **query: str | int | None) -> bytes:
        made = await super().create(path, body, **query)
        if self.seals and path == configmaps("demo"):
            self.seals = False
            await Store(self).seal(run_of(json.loads(await self.get(taskruns("demo", "load")))), 1, SealPurpose.END)
        return made


class Ended(InMemoryCluster):
    """The TaskRun's outcome is written right before somebody else would write its status."""

    def __init__(self) -> None:
        super().__init__(lambda: NOW)
        self.ends = True

    async def merge_patch(self, path: str, body: Mapping[str, Any], **query: str | int | None) -> bytes:
        if self.ends and path == taskruns("demo", "load", "status"):
            self.ends = False
            await super().merge_patch(path, {"status": {"outcome": "Cancelled"}})
        return await super().merge_patch(path, body, **query)


def run_of(taskrun: dict[str, Any]) -> RunReference:
    return RunReference("demo", "load", taskrun["metadata"]["uid"])


async def create_run(cluster: InMemoryCluster) -> RunReference:
    body = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "load"}, "spec": {}}
    return run_of(json.loads(await cluster.create(taskruns("demo"), body)))


async def test_open_sealed_after_its_write_still_succeeds() -> None:
    cluster = Interrupted()
    run = await create_run(cluster)
    cluster.seals = True
    store = Store(cluster)
    assert await store.open(run, SESSION, NOW)
    state = await store.read(run)
    assert state.epoch is not None
    assert state.seal is not None
    # Asked again it is told that the run is being ended, as everybody is from now on.
    with pytest.raises(RequestRejectedError) as refused:
        await store.open(run, SESSION, NOW)
    assert refused.value.code is ProblemCode.CLOSING


class DeepTaskRuns(InMemoryCluster):
    """TaskRuns have a template of 9,000 levels, which the API server accepts."""

    async def get(self, path: str, *, metadata_only: bool = False, **query: str | int | None) -> bytes:
        text = await super().get(path, metadata_only=metadata_only, **query)
        spec = b'{"template":' + b'{"a":' * 9000 + b"1" + b"}" * 9000 + b"}"
        return text.replace(b'"spec":{}', b'"spec":' + spec)


async def test_taskrun_with_a_deep_template_opens_and_seals_its_state() -> None:
    cluster = DeepTaskRuns(lambda: NOW)
    run, store = await create_run(cluster), Store(cluster)
    assert await store.open(run, SESSION, NOW)
    await store.seal(run, 1, SealPurpose.END)
    assert (await store.read(run)).seal is not None


async def finished(cluster: InMemoryCluster) -> tuple[RunReference, Store]:
    """A run with a key that never expires, one that has by a minute after `NOW`, and one that has not."""
    run, store = await create_run(cluster), Store(cluster)
    await store.open(run, SESSION, NOW)
    kept = {"never": None, "soon": timedelta(seconds=60), "later": timedelta(hours=1)}
    steps = [Set(key=key, text=b"1", retention=retention) for key, retention in kept.items()]
    await store.change(run, lambda state: change(state, SESSION, steps, NOW))
    return run, store


async def release(cluster: InMemoryCluster, run: RunReference) -> None:
    await cluster.merge_patch(configmaps("demo", state_name(run.name, run.uid)), {"metadata": {"finalizers": []}})


async def test_sweep_of_an_unfinished_run_removes_no_key() -> None:
    cluster = InMemoryCluster(lambda: NOW)
    run, store = await finished(cluster)
    assert await store.sweep(run, NOW + timedelta(days=9)) == 0
    assert {*(await store.read(run)).records} == {"never", "soon", "later"}


async def test_sweep_of_a_finished_run_removes_only_expired_keys() -> None:
    cluster = InMemoryCluster(lambda: NOW)
    run, store = await finished(cluster)
    await release(cluster, run)
    expiry, path = (
        KeyExpiry(cluster, ("demo",), store, UnreadableObjects(OperatorMetrics())),
        configmaps("demo", state_name(run.name, run.uid)),
    )

    async def due(after: timedelta) -> set[str]:
        listed = msgspec.json.decode(await cluster.get(path, metadata_only=True), type=PartialObject)
        before = await cluster.get(path)
        await expiry.sweep(NOW + after)
        assert (await cluster.get(path) != before) is is_due(listed, NOW + after), "read and written in vain"
        return {*(await store.read(run)).records}

    assert await due(timedelta(seconds=59)) == {"never", "soon", "later"}
    assert await due(timedelta(seconds=60)) == {"never", "later"}
    assert await due(timedelta(seconds=61)) == {"never", "later"}
    assert await due(timedelta(hours=2)) == {"never"}
    assert await due(timedelta(days=999)) == {"never"}


async def test_open_after_the_run_ended_writes_no_state_reference() -> None:
    cluster = Ended()
    run = await create_run(cluster)
    with pytest.raises(RequestRejectedError) as refused:
        await Store(cluster).open(run, SESSION, NOW)
    assert refused.value.code is ProblemCode.CLOSING
    status = json.loads(await cluster.get(taskruns("demo", "load")))["status"]
    assert status == {"outcome": "Cancelled"}


# -- copies ----------------------------------------------------------------------------------------

LATER = NOW + timedelta(minutes=5)


async def create_copy_run(cluster: InMemoryCluster) -> RunReference:
    body = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "next"}, "spec": {"stateFrom": "load"}}
    made = json.loads(await cluster.create(taskruns("demo"), body))
    return RunReference("demo", "next", made["metadata"]["uid"])


async def end(cluster: InMemoryCluster) -> None:
    await cluster.merge_patch(taskruns("demo", "load", "status"), {"status": {"outcome": "Succeeded"}})


async def data_of(cluster: InMemoryCluster, run: RunReference) -> dict[str, str] | None:
    try:
        found = await cluster.get(configmaps("demo", state_name(run.name, run.uid)))
    except NotFoundError:
        return None
    data: dict[str, str] = json.loads(found)["data"]
    return data


async def test_copy_has_the_keys_of_the_source_and_nothing_else_of_it() -> None:
    cluster = InMemoryCluster(lambda: NOW)
    run, store = await finished(cluster)
    await store.change(run, lambda state: (complete(state, SESSION, b'{"rows":1}', NOW), None))
    await store.seal(run, 1, SealPurpose.END)
    await end(cluster)
    copy = await create_copy_run(cluster)
    assert await store.copy(copy, "load", LATER) is None
    data = await data_of(cluster, copy)
    assert data is not None
    assert {*data} == {"formatVersion", "lastVersion", "requests", "counts", "key.never", "key.later"}
    assert (data["lastVersion"], data["requests"], from_data(data).jobs) == ("3", "[]", {})
    record = from_data(data).records["later"]
    assert (record.version, record.attempt, record.pod_uid) == (3, 0, "stateFrom:load")
    assert (record.updated_at, record.expires_at) == (LATER, LATER + timedelta(hours=1)), "its retention begins again"
    assert from_data(data).records["never"].expires_at is None
    # The first session of the copy finds the keys; none of the source is fenced or completed there.
    assert await store.open(copy, SESSION, LATER)
    assert {*(await store.read(copy)).records} == {"never", "later"}


async def test_state_that_exists_is_not_copied_over() -> None:
    cluster = InMemoryCluster(lambda: NOW)
    _, store = await finished(cluster)
    await end(cluster)
    copy = await create_copy_run(cluster)
    assert await store.copy(copy, "load", NOW) is None
    before = await data_of(cluster, copy)
    assert await store.copy(copy, "load", LATER) is None
    assert await data_of(cluster, copy) == before


async def test_source_that_never_had_a_state_is_copied_as_an_empty_one() -> None:
    cluster = InMemoryCluster(lambda: NOW)
    await create_run(cluster)
    await end(cluster)
    copy = await create_copy_run(cluster)
    assert await Store(cluster).copy(copy, "load", NOW) is None
    assert from_data(await data_of(cluster, copy) or {}) == DurableState()


@pytest.mark.parametrize(
    "damage, says",
    [
        ("absent", "TaskRun load must exist in this namespace; it does not."),
        ("unfinished", "TaskRun load must be over; it is unfinished."),
        ("lost", "The state of TaskRun load must exist; it was deleted by force."),
        ("replaced", "The state of TaskRun load must exist; it was deleted by force."),
        ("lost before", "The state of TaskRun load must exist; it was deleted by force."),
        ("newer", "The state of TaskRun load must be readable: a newer version of Reattach wrote the state"),
        ("foreign", "The state of TaskRun load must be readable: the ConfigMap"),
        ("undecodable", "The TaskRun load must be readable: "),
    ],
)
async def test_source_that_can_not_be_read_as_a_whole_is_a_problem_and_never_empty(damage: str, says: str) -> None:
    cluster = InMemoryCluster(lambda: NOW)
    run, store = await finished(cluster)
    path = configmaps("demo", state_name(run.name, run.uid))
    if damage != "unfinished":
        await end(cluster)
    match damage:
        case "absent":
            await cluster.delete(taskruns("demo", "load"), uid=run.uid)
        case "lost":
            await release(cluster, run)
            await cluster.delete(path, uid=json.loads(await cluster.get(path))["metadata"]["uid"])
        case "replaced":
            await cluster.merge_patch(taskruns("demo", "load", "status"), {"status": {"state": {"uid": "other"}}})
        case "lost before":
            await release(cluster, run)
            await cluster.delete(path, uid=json.loads(await cluster.get(path))["metadata"]["uid"])
            counts = {"stateLosses": 1}
            await cluster.merge_patch(taskruns("demo", "load", "status"), {"status": {"state": None, "counts": counts}})
        case "newer":
            await cluster.merge_patch(path, {"data": {"formatVersion": "9"}})
        case "foreign":
            await cluster.merge_patch(path, {"metadata": {"ownerReferences": None}})
        case "undecodable":
            await cluster.merge_patch(taskruns("demo", "load", "status"), {"status": {"counts": "many"}})
    copy = await create_copy_run(cluster)
    problem = await store.copy(copy, "load", NOW)
    assert problem is not None
    assert problem.startswith(says)
    assert await data_of(cluster, copy) is None


class Refusing(InMemoryCluster):
    """A quota has no room for another ConfigMap."""

    async def create(self, path: str, body: Mapping[str, Any], **query: str | int | None) -> bytes:
        if path == configmaps("demo"):
            raise ForbiddenError(403, "Forbidden", "exceeded quota: configmaps")
        return await super().create(path, body, **query)


async def test_copy_that_the_api_server_refuses_is_a_problem() -> None:
    cluster = Refusing(lambda: NOW)
    await create_run(cluster)
    await end(cluster)
    problem = await Store(cluster).copy(await create_copy_run(cluster), "load", NOW)
    assert problem is not None
    assert problem.endswith("it responds: exceeded quota: configmaps")


async def test_name_of_the_copy_that_is_taken_is_a_problem() -> None:
    cluster = InMemoryCluster(lambda: NOW)
    await create_run(cluster)
    await end(cluster)
    copy = await create_copy_run(cluster)
    taken = {"metadata": {"name": state_name(copy.name, copy.uid)}, "data": {"formatVersion": "1", "lastVersion": "0"}}
    await cluster.create(configmaps("demo"), taken)
    problem = await Store(cluster).copy(copy, "load", NOW)
    assert problem is not None
    assert problem.startswith("The state of this TaskRun must be readable: the ConfigMap next-")


def test_retention_that_a_user_wrote_by_hand_is_bounded_in_a_copy() -> None:
    records = {
        key: StateEntry(key, msgspec.Raw(b"1"), 1, 1, "pod-1", updated, datetime(9999, 1, 1, tzinfo=UTC))
        for key, updated in {"far": NOW, "back": datetime(9999, 6, 1, tzinfo=UTC)}.items()
    }
    stored = StoredState(metadata=ObjectMeta(), state=DurableState(last_version=1, records=records), body={})
    copied = copy_of("load", stored, NOW).records
    assert copied["far"].expires_at == NOW + timedelta(days=36500)
    assert copied["back"].expires_at == NOW


def test_jobs_completion_seal_and_epoch_of_the_source_are_not_copied() -> None:
    data = json.loads((Path(__file__).parent / "formats/format-2.json").read_text())
    state = from_data(data)
    assert state.jobs
    assert state.epoch
    assert state.completion
    assert state.seal
    stored = StoredState(metadata=ObjectMeta(), state=state, body={})
    copied = copy_of("load", stored, NOW)
    assert copied == DurableState(last_version=state.last_version, records=copied.records)
    assert {key: record.value for key, record in copied.records.items()} == {
        key: record.value for key, record in state.records.items()
    }


class RefusingOnce(Refusing):
    """Every refusal has another message, as that of a quota."""

    refusals = 0

    async def create(self, path: str, body: Mapping[str, Any], **query: str | int | None) -> bytes:
        if path == configmaps("demo") and "team" not in body["metadata"]["labels"]:
            self.refusals += 1
            raise ForbiddenError(403, "Forbidden", f"must have the label team\n(used: {self.refusals})")
        return await InMemoryCluster.create(self, path, body, **query)


async def test_refused_state_is_reported_once_a_minute_and_created_with_the_labels_of_the_spec() -> None:
    cluster = RefusingOnce(lambda: NOW)
    run = await create_run(cluster)
    store = Store(cluster)
    for _ in range(3):
        with pytest.raises(ForbiddenError):
            await store.open(run, SESSION, NOW)
    path = taskruns("demo", "load")
    reported = json.loads(await cluster.get(path))
    assert reported["status"]["state"] == {"message": "must have the label team (used: 1)"}
    given = {"labels": {"team": "data"}, "annotations": {"note": "x"}}
    await cluster.merge_patch(path, {"spec": {"state": {"metadata": given}}})
    assert await store.open(run, SESSION, NOW)
    state = json.loads(await cluster.get(path))["status"]["state"]
    assert state.keys() == {"configMap", "uid"}
    made = json.loads(await cluster.get(configmaps("demo", state["configMap"])))["metadata"]
    assert made["labels"] == {"team": "data", LABEL_TASKRUN: "load"}
    assert made["annotations"].keys() == {"note", ANNOTATION_SUMMARY}


async def test_copy_has_the_labels_of_the_new_taskrun() -> None:
    cluster = InMemoryCluster(lambda: NOW)
    await create_run(cluster)
    await end(cluster)
    copy = await create_copy_run(cluster)
    assert await Store(cluster).copy(copy, "load", NOW, StateMetadata(labels={"team": "data"})) is None
    made = json.loads(await cluster.get(configmaps("demo", state_name(copy.name, copy.uid))))
    assert made["metadata"]["labels"] == {"team": "data", LABEL_TASKRUN: copy.name}
