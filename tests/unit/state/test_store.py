"""What two replicas make of one state between two requests of one of them."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from reattach.api.messages import ProblemCode
from reattach.api.names import API_VERSION, KIND, state_name
from reattach.api.objects import PartialObject
from reattach.api.state import SealPurpose
from reattach.cluster.paths import configmaps, taskruns
from reattach.runtime.metrics import OperatorMetrics
from reattach.runtime.unreadable import UnreadableObjects
from reattach.state.errors import RequestRejectedError
from reattach.state.operations import Session, Set, change
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
