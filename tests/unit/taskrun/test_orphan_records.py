"""Records of orphaned jobs: written once, replaced if they differ, no obstacle to a run's end."""

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from reattach.api.names import LABEL_ORPHANS
from reattach.api.objects import ObjectMeta, PartialObject
from reattach.api.orphans import OrphanedJob, OrphanRecord
from reattach.cluster import (
    AlreadyExistsError,
    BadRequestError,
    ClusterError,
    ConflictError,
    ForbiddenError,
    InvalidError,
    NotFoundError,
    TooManyRequestsError,
    UnauthorizedError,
    UnavailableError,
)
from reattach.runtime.metrics import OperatorMetrics
from reattach.runtime.workqueue import Key
from reattach.taskrun.orphan_records import OrphanRecords, orphan_store, record_of

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
NAME = "load-new00-orphans"
JOB = OrphanedJob(key="load", generation=1, why="The policy is Orphan.", adapter="http", handle="job-1")
RECORD = OrphanRecord(taskrun="load", uid="new00-uid", reason="Deleted", time=NOW, jobs=(JOB,))
JSON = dict[str, Any]


@dataclass
class FakeWriter:
    """ConfigMaps in a dictionary. `error` is raised by creations, `conflict` by replacements."""

    objects: dict[str, JSON] = field(default_factory=dict)
    error: ClusterError | None = None
    conflict: bool = False
    calls: list[str] = field(default_factory=list)

    async def create(self, path: str, body: JSON) -> bytes:
        self.calls.append("create")
        if self.error is not None:
            raise self.error
        if (name := f"{path}/{body['metadata']['name']}") in self.objects:
            raise AlreadyExistsError(409, "AlreadyExists", name)
        return self._store(name, body)

    async def get(self, path: str) -> bytes:
        self.calls.append("get")
        if path not in self.objects:
            raise NotFoundError(404, "NotFound", path)
        return json.dumps(self.objects[path]).encode()

    async def replace(self, path: str, body: JSON) -> bytes:
        self.calls.append("replace")
        if self.conflict or body["metadata"]["resourceVersion"] != self.objects[path]["metadata"]["resourceVersion"]:
            raise ConflictError(409, "Conflict", path)
        return self._store(path, body)

    def _store(self, path: str, body: JSON) -> bytes:
        version = str(len(self.calls) + 10)
        self.objects[path] = {**body, "metadata": {**body["metadata"], "uid": "u", "resourceVersion": version}}
        return json.dumps(self.objects[path]).encode()

    @property
    def record(self) -> OrphanRecord | None:
        return record_of(self.objects[f"/api/v1/namespaces/team/configmaps/{NAME}"]["data"])


class Scene:
    def __init__(self) -> None:
        self.writer, self.store, self.metrics = FakeWriter(), orphan_store(), OperatorMetrics()
        self.records = OrphanRecords(self.writer, self.store, self.metrics)  # type: ignore[arg-type]

    @property
    def unstored(self) -> float:
        return float(self.metrics.unstored_orphan_records._value.get())


async def test_record_is_a_labelled_configmap_without_owner_and_finalizer() -> None:
    scene = Scene()
    await scene.records.write("team", RECORD)
    [stored] = scene.writer.objects.values()
    assert stored["metadata"] == {
        "name": NAME,
        "namespace": "team",
        "labels": {LABEL_ORPHANS: "load"},
        "uid": "u",
        "resourceVersion": "11",
    }
    assert json.loads(stored["data"]["record"]) == {
        "taskrun": "load",
        "uid": "new00-uid",
        "reason": "Deleted",
        "time": "2026-01-02T03:04:05Z",
        "formatVersion": 1,
        "jobs": [
            {"key": "load", "generation": 1, "why": "The policy is Orphan.", "adapter": "http", "handle": "job-1"}
        ],
    }


async def test_record_that_is_stored_already_is_not_written_again() -> None:
    scene = Scene()
    await scene.records.write("team", RECORD)
    await scene.records.write("team", RECORD)
    assert scene.writer.calls == ["create", "create", "get"]


async def test_record_that_differs_is_replaced() -> None:
    scene = Scene()
    await scene.records.write("team", RECORD)
    more = msgspec.structs.replace(RECORD, jobs=(JOB, msgspec.structs.replace(JOB, generation=2)))
    await scene.records.write("team", more)
    assert scene.writer.record == more
    assert scene.unstored == 0


@pytest.mark.parametrize("data", [{"record": "not JSON"}, {"record": '{"taskrun":1}'}, {}, {"record": "[" * 5000}])
async def test_record_that_a_user_made_unreadable_is_replaced(data: JSON) -> None:
    scene = Scene()
    await scene.records.write("team", RECORD)
    [stored] = scene.writer.objects.values()
    stored["data"] = data
    await scene.records.write("team", RECORD)
    assert scene.writer.record == RECORD


@pytest.mark.parametrize("conflict", [True, False])
async def test_record_that_changes_or_vanishes_meanwhile_is_tried_again(conflict: bool) -> None:
    scene = Scene()
    await scene.records.write("team", RECORD)
    if conflict:
        scene.writer.conflict = True
    else:
        scene.writer.objects.clear()
        scene.writer.error = AlreadyExistsError(409, "AlreadyExists", NAME)
    more = msgspec.structs.replace(RECORD, reason="Cancelled")
    with pytest.raises(ConflictError if conflict else UnavailableError):
        await scene.records.write("team", more)
    assert scene.unstored == 0


@pytest.mark.parametrize(
    "stored",
    [
        {"metadata": {"labels": {}}, "data": {"a": "b"}},
        {
            "metadata": {"labels": {LABEL_ORPHANS: "load"}},
            "data": {"record": msgspec.json.encode(msgspec.structs.replace(RECORD, uid="new00-other")).decode()},
        },
    ],
    ids=["a ConfigMap of a user", "a record of another TaskRun"],
)
async def test_other_configmap_of_the_name_is_left_alone_and_the_jobs_are_logged(
    stored: JSON, caplog: pytest.LogCaptureFixture
) -> None:
    scene = Scene()
    scene.writer.objects[f"/api/v1/namespaces/team/configmaps/{NAME}"] = stored
    await scene.records.write("team", RECORD)
    assert scene.writer.calls == ["create", "get"]
    assert scene.unstored == 1
    assert "job-1" in caplog.text


async def test_record_that_cannot_be_stored_is_logged_again_and_counted_once_for_each_run(
    caplog: pytest.LogCaptureFixture,
) -> None:
    scene = Scene()
    stored: JSON = {"metadata": {"labels": {}}, "data": {"a": "b"}}
    scene.writer.objects[f"/api/v1/namespaces/team/configmaps/{NAME}"] = stored
    for _ in range(2):
        await scene.records.write("team", RECORD)
    assert (scene.unstored, caplog.text.count("job-1")) == (1, 2)
    scene.records.forget(Key("team", RECORD.taskrun))
    await scene.records.write("team", RECORD)
    assert scene.unstored == 2


POLICY = f'configmaps "{NAME}" is forbidden: ValidatingAdmissionPolicy denied request'


@pytest.mark.parametrize(
    "error",
    [
        ForbiddenError(403, "Forbidden", f'configmaps "{NAME}" is forbidden: unable to create new content'),
        ForbiddenError(403, "Forbidden", 'configmaps is forbidden: User "operator" cannot create resource'),
        NotFoundError(404, "NotFound", 'namespaces "team" not found'),
        InvalidError(422, "Invalid", "a policy rejects it"),
        BadRequestError(400, "BadRequest", "no"),
        ClusterError(413, "RequestEntityTooLarge", "too large"),
        UnauthorizedError(401, "Unauthorized", POLICY),
        TooManyRequestsError(429, "Unknown", 'admission webhook "quota.example" denied the request'),
    ],
    ids=lambda error: f"{error.status} {error.message[:50]}",
)
async def test_rejected_record_is_logged_and_counted_and_does_not_block_the_end(
    error: ClusterError, caplog: pytest.LogCaptureFixture
) -> None:
    scene = Scene()
    scene.writer.error = error
    await scene.records.write("team", RECORD)
    assert scene.unstored == 1
    [logged] = [record for record in caplog.records if record.levelname == "ERROR"]
    assert "TaskRun team/load" in logged.getMessage()
    assert '"handle":"job-1"' in logged.getMessage()


@pytest.mark.parametrize(
    "error",
    [
        UnavailableError(500, "InternalError", "failed calling webhook"),
        UnavailableError(0, "Timeout", "no response"),
        UnauthorizedError(401, "Unauthorized", "Unauthorized"),
        TooManyRequestsError(429, "TooManyRequests", "try again"),
        ForbiddenError(403, "Unknown", "HTTP 403 of a proxy"),
    ],
    ids=lambda error: f"{error.status} {error.message[:50]}",
)
async def test_record_after_a_transient_error_is_tried_again(error: ClusterError) -> None:
    scene = Scene()
    scene.writer.error = error
    with pytest.raises(type(error)):
        await scene.records.write("team", RECORD)
    assert scene.unstored == 0


async def test_predecessors_are_the_records_of_other_taskruns_of_this_name() -> None:
    scene = Scene()
    await scene.records.write("team", RECORD)
    for namespace, taskrun, uid in [("team", "load", "old00"), ("other", "load", "old01"), ("team", "other", "old02")]:
        name = f"{taskrun}-{uid}-orphans"
        about = ObjectMeta(name=name, namespace=namespace, uid=name, labels={LABEL_ORPHANS: taskrun})
        scene.store.upsert(PartialObject(metadata=about))
    assert scene.records.predecessors(ObjectMeta(name="load", namespace="team", uid="new00-uid")) == (
        "load-old00-orphans",
    )
    assert scene.records.predecessors(ObjectMeta(name="load", namespace="team", uid="third-uid")) == (
        "load-new00-orphans",
        "load-old00-orphans",
    )
