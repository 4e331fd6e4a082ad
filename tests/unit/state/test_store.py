"""What two replicas make of one state between two requests of one of them."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest

from reattach.api.messages import ProblemCode
from reattach.api.names import API_VERSION, KIND
from reattach.api.state import SealPurpose
from reattach.cluster.paths import configmaps, taskruns
from reattach.state.operations import Writer
from reattach.state.refusals import RefusedError
from reattach.state.store import Run, Store
from reattach.testing.memory import MemoryCluster

NOW = datetime(2026, 1, 1, tzinfo=UTC)
WRITER = Writer(attempt=1, pod_uid="pod-1", session="session-1")


class Interrupted(MemoryCluster):
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


class Ended(MemoryCluster):
    """The TaskRun's outcome is written right before somebody else would write its status."""

    def __init__(self) -> None:
        super().__init__(lambda: NOW)
        self.ends = True

    async def merge_patch(self, path: str, body: Mapping[str, Any], **query: str | int | None) -> bytes:
        if self.ends and path == taskruns("demo", "load", "status"):
            self.ends = False
            await super().merge_patch(path, {"status": {"outcome": "Cancelled"}})
        return await super().merge_patch(path, body, **query)


def run_of(taskrun: dict[str, Any]) -> Run:
    return Run("demo", "load", taskrun["metadata"]["uid"])


async def create_run(cluster: MemoryCluster) -> Run:
    body = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "load"}, "spec": {}}
    return run_of(json.loads(await cluster.create(taskruns("demo"), body)))


async def test_an_open_that_was_stored_is_answered_so_although_the_seal_came_before_the_answer() -> None:
    cluster = Interrupted()
    run = await create_run(cluster)
    cluster.seals = True
    store = Store(cluster)
    assert await store.open(run, WRITER, NOW)
    state = await store.read(run)
    assert state.epoch is not None
    assert state.seal is not None
    # Asked again it is told that the run is being ended, as everybody is from now on.
    with pytest.raises(RefusedError) as refused:
        await store.open(run, WRITER, NOW)
    assert refused.value.code is ProblemCode.CLOSING


async def test_a_taskrun_that_ended_meanwhile_is_not_made_to_name_a_state() -> None:
    cluster = Ended()
    run = await create_run(cluster)
    with pytest.raises(RefusedError) as refused:
        await Store(cluster).open(run, WRITER, NOW)
    assert refused.value.code is ProblemCode.CLOSING
    status = json.loads(await cluster.get(taskruns("demo", "load")))["status"]
    assert status == {"outcome": "Cancelled"}
