"""What the reconciler asks and does when what it sees is late, refused, or belongs to nobody any more.

The one fake is the client: it answers from a dictionary of objects, and notes what it was asked.
"""

import asyncio
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from builders import to_taskrun
from reattach.api.names import (
    ANNOTATION_SUMMARY,
    ANNOTATION_TEMPLATE_HASH,
    FINALIZER_ATTEMPT,
    FINALIZER_EXTERNAL_JOBS,
    FINALIZER_STATE,
    LABEL_ATTEMPT,
    LABEL_ORPHANS,
    LABEL_PURPOSE,
    LABEL_TASKRUN,
)
from reattach.api.objects import (
    ContainerState,
    ContainerStatus,
    ContainerTerminated,
    ObjectMeta,
    OwnerReference,
    PartialObject,
    Pod,
    PodSpec,
    PodStatus,
)
from reattach.api.orphans import OrphanedJob, OrphanRecord
from reattach.api.reasons import EventReason, Reason
from reattach.api.state import JobState, JobSummary, StateView
from reattach.api.taskrun import AttemptPurpose
from reattach.cluster import (
    BadRequestError,
    ClusterError,
    ConflictError,
    ForbiddenError,
    InvalidError,
    NotFoundError,
    Reference,
    TooManyRequestsError,
    UnavailableError,
    paths,
)
from reattach.planner.decide import decide
from reattach.planner.plan import (
    Action,
    CreatePod,
    DeletePod,
    EmitEvent,
    EndHolds,
    NodeFacts,
    Observed,
    Plan,
    PodDefaults,
    PodRejection,
    PodRejectionKind,
    ProtectTaskRun,
    ReadState,
    ReleaseTaskRun,
    StopPod,
)
from reattach.planner.pods import pod_creation
from reattach.runtime.metrics import OperatorMetrics
from reattach.runtime.unreadable import UnreadableObjects, reference_of
from reattach.runtime.workqueue import Key, WorkQueue
from reattach.state.codec import DurableState, to_data
from reattach.state.operations import Session, complete, open_state
from reattach.taskrun.executor import is_expected_pod
from reattach.taskrun.node_reader import NodeReader
from reattach.taskrun.orphan_records import orphan_store
from reattach.taskrun.owned_stores import pod_store, state_store
from reattach.taskrun.pod_event_reader import PodEventReader
from reattach.taskrun.quota_backoff import QuotaBackoff
from reattach.taskrun.reconciler import Reconciler, Stores
from reattach.taskrun.taskrun_events import taskrun_event_recorder
from reattach.taskrun.taskrun_store import TaskRunStore

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
KEY = Key("team", "load")
OLD, NEW = "0ld00-uid", "new00-uid"
JSON = dict[str, Any]
EMPTY_STATE = to_data(DurableState())
ENDING = {
    "outcome": "Cancelled",
    "reason": "Cancelled",
    "message": "The TaskRun was cancelled.",
    "time": "2026-01-02T03:04:05Z",
    "cleanupDeadline": "2026-01-02T03:19:05Z",
}


HELD_VIEW = StateView(
    uid="cm",
    resource_version="5",
    jobs=(JobSummary(key="load", generation=1, state=JobState.INTENDED, held=True, holds=1, submitters=(1,)),),
)


@dataclass
class FakeClient:
    """Cluster and writer at once. `refuse` names the paths that are answered with 403; `pause` holds answers back."""

    objects: dict[str, Any] = field(default_factory=dict)
    refuse: tuple[str, ...] = ()
    conflicts: int = 0
    failing: Exception | None = None
    """Raised by each patch."""
    failing_creation: Exception | None = None
    failing_template: Exception | None = None
    """Raised by the dry run of a PodTemplate."""
    failing_deletion: Exception | None = None
    failing_get: Exception | None = None
    patches: list[JSON] = field(default_factory=list)
    asked: list[tuple[str, str]] = field(default_factory=list)
    pause: asyncio.Event | None = None
    metadata_reads: list[str] = field(default_factory=list)

    async def get(self, path: str, *, metadata_only: bool = False, **_query: Any) -> bytes:
        self.asked.append(("GET", path))
        if metadata_only:
            self.metadata_reads.append(path)
        if self.failing_get is not None:
            raise self.failing_get
        found = self.objects.get(path)
        if self.pause is not None:
            await self.pause.wait()
        if found is None:
            raise NotFoundError(404, "NotFound", path)
        return msgspec.json.encode(found)

    async def create(self, path: str, body: JSON | bytes, **_query: Any) -> bytes:
        body = msgspec.json.decode(body) if isinstance(body, bytes) else body
        self.asked.append(("POST", f"{path}/{body['metadata']['name']}"))
        if path.endswith("/podtemplates"):
            if self.failing_template is not None:
                raise self.failing_template
            return b"{}"
        if self.failing_creation is not None:
            raise self.failing_creation
        about = {"uid": "made", "resourceVersion": "90", **body["metadata"]}
        return msgspec.json.encode({**body, "metadata": about})

    async def merge_patch(self, path: str, body: JSON, **_query: Any) -> bytes:
        self.asked.append(("PATCH", path))
        if path.startswith(self.refuse):
            raise ForbiddenError(403, "Forbidden", "a policy refuses")
        if self.failing is not None:
            raise self.failing
        stored = self.objects.get(path.removesuffix("/status"))
        version = body["metadata"].get("resourceVersion")
        is_old = version is not None and isinstance(stored, dict) and version != stored["metadata"]["resourceVersion"]
        if self.conflicts or is_old:
            self.conflicts = max(self.conflicts - 1, 0)
            raise ConflictError(409, "Conflict", "it has changed")
        self.patches.append(body)
        found = msgspec.to_builtins(self.objects.get(path.removesuffix("/status"), {}))
        return msgspec.json.encode({**found, "metadata": {**found.get("metadata", {}), **body["metadata"]}})

    async def delete(self, path: str, **_options: Any) -> bytes:
        self.asked.append(("DELETE", path))
        if self.failing_deletion is not None:
            raise self.failing_deletion
        return msgspec.json.encode(self.objects.get(path, {"kind": "Status"}))


class Scene:
    """A reconciler over a fake client, with nothing known yet."""

    def __init__(self, *refuse: str) -> None:
        self.queue = queue = WorkQueue()
        metrics = OperatorMetrics()
        self.client = FakeClient(refuse=refuse)
        self.taskruns = TaskRunStore(self.client, (), queue.add, UnreadableObjects(metrics))  # type: ignore[arg-type]
        self.pods = pod_store(queue.add)
        self.states = state_store(queue.add)
        self.orphans = orphan_store()
        self.metrics = metrics
        self.reconciler = Reconciler(
            cluster=self.client,  # type: ignore[arg-type]
            writer=self.client,  # type: ignore[arg-type]
            stores=Stores(taskruns=self.taskruns, pods=self.pods, states=self.states, orphans=self.orphans),
            queue=queue,
            event_recorder=SimpleNamespace(emit=lambda *_: None),  # type: ignore[arg-type]
            metrics=metrics,
            decide=decide,
            pod_defaults=lambda: PodDefaults(url="https://state", ca=""),
            nodes=NodeReader(self.client, clock=lambda: NOW, enabled=True),  # type: ignore[arg-type]
            pod_events=PodEventReader(self.client, clock=lambda: NOW),  # type: ignore[arg-type]
            clock=lambda: NOW,
        )

    def has_taskrun(self, uid: str, version: str = "10", **status: Any) -> None:
        raw = taskrun(uid, version, **status)
        self.client.objects[paths.taskruns(*KEY)] = raw
        if "outcome" not in status:
            self.is_seen(raw)

    def is_seen(self, raw: JSON) -> None:
        """The reflector brings it, and kopf's watch tells of it."""
        found = to_taskrun(raw)
        self.taskruns.upsert(found)
        self.taskruns.on_event(reference_of(found.metadata))

    def asked(self, verb: str) -> list[str]:
        return [path for asked, path in self.client.asked if asked == verb]


def taskrun(uid: str, version: str, **status: Any) -> JSON:
    about = {"name": KEY.name, "namespace": KEY.namespace, "uid": uid, "resourceVersion": version, "generation": 1}
    return {"metadata": about, "spec": {"template": {"spec": {"containers": [{"name": "task"}]}}}, "status": status}


def owned(name: str, uid: str, owner: str | None, finalizer: str, **more: Any) -> ObjectMeta:
    references = OwnerReference(api_version="reattach.dev/v1alpha1", kind="TaskRun", uid=owner or "", controller=True)
    return ObjectMeta(
        name=name,
        namespace=KEY.namespace,
        uid=uid,
        resource_version="3",
        labels={LABEL_TASKRUN: KEY.name},
        finalizers=(finalizer,),
        owner_references=(references,) if owner else (),
        **more,
    )


def state(owner: str | None, **more: Any) -> PartialObject:
    return PartialObject(metadata=owned("load-0ld00-state", "cm", owner, FINALIZER_STATE, **more))


async def test_a_pod_that_only_the_epoch_tells_of_is_asked_for_before_it_is_called_gone() -> None:
    scene = Scene()
    scene.has_taskrun(OLD)
    summary = {ANNOTATION_SUMMARY: '{"epoch": {"attempt": 1, "podUID": "p1"}}'}
    scene.states.upsert(state(OLD, annotations=summary))
    pod = paths.pods(KEY.namespace, "load-0ld00-1")
    scene.client.objects[pod] = Pod(
        metadata=owned("load-0ld00-1", "p1", OLD, FINALIZER_ATTEMPT),
        spec=PodSpec(node_name="node"),
        status=PodStatus(phase="Running"),
    )

    await scene.reconciler.reconcile(KEY)

    assert pod in scene.asked("GET")
    assert scene.asked("POST") == []
    assert [known.metadata.uid for known in scene.pods.by_key(KEY)] == ["p1"]


async def test_end_is_recorded_with_the_completion_of_a_state_that_was_opened_after_the_taskrun_was_seen() -> None:
    scene = Scene()
    scene.has_taskrun(OLD)
    exited = ContainerState(terminated=ContainerTerminated(exit_code=1, finished_at=NOW))
    scene.pods.upsert(
        Pod(
            metadata=owned("load-0ld00-1", "p1", OLD, FINALIZER_ATTEMPT, creation_timestamp=NOW),
            status=PodStatus(phase="Failed", container_statuses=(ContainerStatus(name="task", state=exited),)),
        )
    )
    named = {"configMap": "load-0ld00-state", "uid": "cm"}
    scene.client.objects[paths.taskruns(*KEY)] = taskrun(OLD, "11", state=named)
    session = Session(attempt=1, pod_uid="p1", id="s")
    opened = open_state(DurableState(), session, NOW)[0]
    completed = complete(opened, session, None, NOW)
    stored = msgspec.to_builtins(state(OLD))
    scene.client.objects[paths.configmaps(KEY.namespace, "load-0ld00-state")] = {**stored, "data": to_data(completed)}

    await scene.reconciler.reconcile(KEY)
    assert scene.client.patches == []
    await scene.reconciler.reconcile(KEY)

    [recorded] = [patch["status"] for patch in scene.client.patches if "status" in patch]
    assert (recorded["outcome"], recorded["attempts"][0]["cause"]) == ("Succeeded", "Succeeded")


async def test_created_pod_is_decided_about_after_a_second_unless_an_event_of_it_comes_before() -> None:
    scene = Scene()
    scene.has_taskrun(NEW)
    assert await scene.queue.get() == KEY
    again = await scene.reconciler.reconcile(KEY)
    scene.queue.done(KEY)
    assert scene.asked("POST") == [paths.pods(KEY.namespace, "load-new00-1")]
    assert (again, scene.queue.depth) == (NOW + timedelta(seconds=1), 0)

    [pod] = scene.pods.by_key(KEY)
    newer = msgspec.structs.replace(pod.metadata, resource_version="91")
    scene.pods.upsert(msgspec.structs.replace(pod, metadata=newer, status=PodStatus(phase="Running")))
    assert scene.queue.depth == 1


async def test_deadline_within_a_second_after_the_creation_of_a_pod_is_kept() -> None:
    scene = Scene()
    raw = taskrun(NEW, "10")
    raw["metadata"]["creationTimestamp"] = "2026-01-02T03:04:05Z"
    raw["status"] = {"startTime": "2026-01-02T03:03:05.5Z"}
    raw["spec"]["deadlines"] = {"runSeconds": 60}
    scene.client.objects[paths.taskruns(*KEY)] = raw
    scene.is_seen(raw)
    again = await scene.reconciler.reconcile(KEY)
    assert scene.asked("POST") == [paths.pods(KEY.namespace, "load-new00-1")]
    assert again == NOW + timedelta(seconds=0.5)


@pytest.mark.parametrize("api_version", ["tekton.dev/v1", "v1", "reattach.dev.example.com/v1"])
async def test_pod_of_a_taskrun_of_another_group_is_no_attempt(api_version: str) -> None:
    scene = Scene()
    scene.has_taskrun(NEW)
    metadata = owned("load-new00-1", "p1", NEW, FINALIZER_ATTEMPT)
    [owner] = metadata.owner_references
    foreign = msgspec.structs.replace(owner, api_version=api_version)
    metadata = msgspec.structs.replace(metadata, owner_references=(foreign,))
    scene.pods.upsert(Pod(metadata=metadata, status=PodStatus(phase="Succeeded")))
    scene.client.objects[paths.pods(KEY.namespace, "load-new00-1")] = Pod(metadata=metadata)

    await scene.reconciler.reconcile(KEY)

    assert scene.asked("POST") == [paths.pods(KEY.namespace, "load-new00-1")]


async def test_pod_of_another_version_of_our_taskrun_is_an_attempt() -> None:
    scene = Scene()
    scene.has_taskrun(NEW)
    metadata = owned("load-new00-1", "p1", NEW, FINALIZER_ATTEMPT)
    [owner] = metadata.owner_references
    later = msgspec.structs.replace(owner, api_version="reattach.dev/v1")
    scene.pods.upsert(Pod(metadata=msgspec.structs.replace(metadata, owner_references=(later,))))

    await scene.reconciler.reconcile(KEY)

    assert scene.asked("POST") == []


async def test_a_leftover_that_can_not_be_let_go_of_does_not_keep_a_new_taskrun_waiting() -> None:
    scene = Scene(paths.configmaps(KEY.namespace))
    scene.states.upsert(state(None))
    scene.has_taskrun(NEW)

    again = await scene.reconciler.reconcile(KEY)

    assert scene.asked("POST") == [paths.pods(KEY.namespace, "load-new00-1")]
    assert again is not None
    assert again > NOW


async def test_what_is_left_of_ours_is_let_go_of_though_its_name_is_now_somebody_elses() -> None:
    scene = Scene()
    foreign = taskrun(NEW, "20")
    foreign["spec"]["managedBy"] = "example.com/other"
    scene.client.objects[paths.taskruns(*KEY)] = foreign
    scene.is_seen(foreign)
    scene.pods.upsert(lost_pod())

    await scene.reconciler.reconcile(KEY)

    assert scene.asked("PATCH") == [paths.pods(KEY.namespace, "load-0ld00-1")]
    assert scene.asked("POST") == []


async def test_a_state_that_can_not_be_sealed_for_now_is_tried_again_and_no_defect() -> None:
    scene = Scene()
    scene.has_taskrun(OLD)
    scene.reconciler._decide = lambda *_: ReadState()
    with pytest.raises(UnavailableError, match="as fast as it is read or sealed"):
        await scene.reconciler.reconcile(KEY)


async def test_a_pod_that_can_not_be_let_go_of_does_not_keep_the_next_attempt_waiting() -> None:
    scene = Scene(paths.pods(KEY.namespace))
    ended = {"number": 1, "podName": "load-0ld00-1", "podUID": "p1", "finishTime": NOW - timedelta(hours=1)}
    charged = {"application": 0, "disruption": 1, "neverStarted": 0, "cleanup": 0}
    why = {"cause": "Disruption", "chargedTo": "disruption", "end": "Reported"}
    scene.has_taskrun(OLD, attempts=[{**ended, **why}], counts={"attempts": 1, "charged": charged})
    scene.pods.upsert(
        Pod(
            metadata=owned("load-0ld00-1", "p1", OLD, FINALIZER_ATTEMPT),
            spec=PodSpec(node_name="node"),
            status=PodStatus(phase="Failed"),
        )
    )

    with pytest.raises(ForbiddenError, match="a policy refuses"):
        await scene.reconciler.reconcile(KEY)

    assert scene.asked("PATCH") == [paths.pods(KEY.namespace, "load-0ld00-1")]
    assert scene.asked("POST") == [paths.pods(KEY.namespace, "load-0ld00-2")]


async def test_executor_pod_whose_deadline_can_not_be_lowered_is_deleted() -> None:
    path = paths.pods(KEY.namespace, "load-0ld00-1")
    scene = Scene(path)
    scene.has_taskrun(OLD)
    scene.reconciler._decide = lambda *_: Plan(actions=(StopPod("load-0ld00-1", "p1", NOW),))

    await scene.reconciler.reconcile(KEY)

    assert (scene.asked("PATCH"), scene.asked("DELETE")) == ([path], [path])


@pytest.mark.parametrize("status, kind", [(400, BadRequestError), (422, InvalidError), (429, TooManyRequestsError)])
async def test_executor_pod_that_a_webhook_does_not_let_us_stop_is_deleted(
    status: int, kind: type[ClusterError]
) -> None:
    scene = scene_with(StopPod("load-0ld00-1", "p1", NOW))
    scene.client.failing = kind(status, "Denied", 'admission webhook "pods.example" denied the request')
    await scene.reconciler.reconcile(KEY)
    assert scene.asked("DELETE") == [paths.pods(KEY.namespace, "load-0ld00-1")]


async def test_executor_pod_whose_stop_fails_for_now_is_not_deleted() -> None:
    scene = scene_with(StopPod("load-0ld00-1", "p1", NOW))
    scene.client.failing = UnavailableError(503, "Unavailable", "try again")
    with pytest.raises(UnavailableError):
        await scene.reconciler.reconcile(KEY)
    assert scene.asked("DELETE") == []


async def test_executor_pod_is_stopped_by_its_deadline_and_not_deleted() -> None:
    scene = Scene()
    scene.has_taskrun(OLD)
    scene.reconciler._decide = lambda *_: Plan(actions=(StopPod("load-0ld00-1", "p1", NOW),))

    await scene.reconciler.reconcile(KEY)

    stop = {"reattach.dev/stop-time": "2026-01-02T03:04:05+00:00"}
    assert scene.client.patches == [
        {"metadata": {"uid": "p1", "annotations": stop}, "spec": {"activeDeadlineSeconds": 1}}
    ]
    assert scene.asked("DELETE") == []


@pytest.mark.parametrize("policy, deletions", [("Failed", 0), ("None", 1)])
async def test_reconciler_pod_that_is_not_kept_is_deleted_before_its_release_when_its_taskrun_is_finished(
    policy: str, deletions: int
) -> None:
    scene = Scene()
    scene.has_taskrun(OLD, outcome="Failed")
    retention = {"reattach.dev/pod-retention": policy, "reattach.dev/container": "task"}
    metadata = owned("load-0ld00-1", "p1", OLD, FINALIZER_ATTEMPT, annotations=retention)
    pod = Pod(metadata=metadata, spec=PodSpec(node_name="node"), status=PodStatus(phase="Failed"))
    path = paths.pods(KEY.namespace, "load-0ld00-1")
    scene.client.objects[path] = pod
    scene.pods.upsert(pod)

    await scene.reconciler.reconcile(KEY)

    writes = [verb for verb, asked in scene.client.asked if asked == path and verb != "GET"]
    assert writes == ["DELETE"] * deletions + ["PATCH"]


async def test_reconciler_pod_that_has_no_owner_any_more_is_released_and_not_deleted() -> None:
    scene = Scene()
    retention = {"reattach.dev/pod-retention": "None", "reattach.dev/container": "task"}
    metadata = owned("load-0ld00-1", "p1", None, FINALIZER_ATTEMPT, annotations=retention)
    scene.pods.upsert(Pod(metadata=metadata, spec=PodSpec(node_name="node"), status=PodStatus(phase="Failed")))

    await scene.reconciler.reconcile(KEY)

    assert (scene.asked("DELETE"), scene.asked("PATCH")) == ([], [paths.pods(KEY.namespace, "load-0ld00-1")])


async def test_a_pod_lost_with_its_node_is_let_go_of_when_its_taskrun_is_gone() -> None:
    scene = Scene()
    scene.pods.upsert(lost_pod())

    await scene.reconciler.reconcile(KEY)

    assert scene.asked("PATCH") == [paths.pods(KEY.namespace, "load-0ld00-1")]


async def test_a_pod_lost_with_its_node_is_let_go_of_when_its_taskrun_is_finished() -> None:
    scene = Scene()
    scene.has_taskrun(OLD, outcome="Failed")
    scene.pods.upsert(lost_pod())

    await scene.reconciler.reconcile(KEY)

    assert scene.asked("PATCH") == [paths.pods(KEY.namespace, "load-0ld00-1")]


async def test_an_answer_about_an_older_taskrun_does_not_hide_the_one_made_meanwhile() -> None:
    scene = Scene()
    scene.is_seen(taskrun(OLD, "5"))
    scene.taskruns.on_deleted(Reference(*KEY, OLD, "6"))
    scene.client.pause = asyncio.Event()

    looking = asyncio.create_task(scene.reconciler.reconcile(KEY))
    await asyncio.sleep(0)
    scene.has_taskrun(NEW)
    scene.client.pause.set()
    await looking

    known = scene.taskruns.get(KEY)
    assert known is not None
    assert known.metadata.uid == NEW


def lost_pod() -> Pod:
    """On a node that nobody hears of; somebody deleted it by force three days ago."""
    about = owned(
        "load-0ld00-1",
        "p1",
        OLD,
        FINALIZER_ATTEMPT,
        deletion_timestamp=NOW - timedelta(days=3),
        deletion_grace_period_seconds=0,
    )
    return Pod(metadata=about, spec=PodSpec(node_name="dead"), status=PodStatus(phase="Running"))


# -- the end of a TaskRun with external jobs -------------------------------------------------------


def ending(**status: Any) -> JSON:
    """Cancelled, never begun, with our finalizer and another's."""
    raw = taskrun(NEW, "10", **status)
    raw["metadata"]["finalizers"] = ["example.com/theirs", FINALIZER_EXTERNAL_JOBS]
    raw["spec"]["cancel"] = True
    return raw


async def test_only_our_finalizer_is_taken_off_a_taskrun_and_only_as_it_was_seen() -> None:
    scene = Scene()
    scene.client.objects[paths.taskruns(*KEY)] = ending()
    scene.is_seen(ending())
    await scene.reconciler.reconcile(KEY)
    [patch] = scene.client.patches
    assert patch == {"metadata": {"uid": NEW, "resourceVersion": "10", "finalizers": ["example.com/theirs"]}}


async def test_a_taskrun_that_changed_meanwhile_is_looked_at_anew_before_it_is_let_go() -> None:
    scene = Scene()
    scene.client.conflicts = 1
    scene.client.objects[paths.taskruns(*KEY)] = ending()
    scene.is_seen(ending())
    await scene.reconciler.reconcile(KEY)
    assert scene.client.patches == []
    assert paths.taskruns(*KEY) in scene.asked("GET")


async def test_a_state_that_a_person_gave_up_is_named_in_status_no_more_and_another_stays_named() -> None:
    lost = {"type": "Held", "status": "True", "reason": "StateLost", "message": "lost"}
    raw = taskrun(NEW, "10", state={"configMap": "gone", "uid": "gone"}, conditions=[lost])
    raw["spec"]["resolutions"] = [{"held": "StateLost", "action": "StartEmpty"}]
    scene = Scene()
    scene.client.objects[paths.taskruns(*KEY)] = raw
    scene.is_seen(raw)
    await scene.reconciler.reconcile(KEY)
    [patch] = scene.client.patches
    assert patch["status"]["state"] is None
    assert patch["status"]["counts"]["stateLosses"] == 1
    other = Scene()
    other.has_taskrun(NEW, state={"configMap": "there", "uid": "there"})
    await other.reconciler.reconcile(KEY)
    assert [patch["status"].get("state", "left alone") for patch in other.client.patches] == ["left alone"]


async def test_state_is_copied_and_then_named_before_the_first_pod() -> None:
    scene = Scene()
    raw = taskrun(NEW, "10")
    raw["spec"]["stateFrom"] = "earlier"
    scene.client.objects[paths.taskruns(*KEY)] = raw
    about = {"name": "earlier", "namespace": KEY.namespace, "uid": "earli-uid"}
    scene.client.objects[paths.taskruns(KEY.namespace, "earlier")] = {
        "metadata": about,
        "status": {"outcome": "Succeeded"},
    }
    scene.is_seen(raw)
    with pytest.raises(UnavailableError, match="as fast as it is read"):  # because the fake client stores nothing
        await scene.reconciler.reconcile(KEY)
    assert set(scene.asked("POST")) == {paths.configmaps(KEY.namespace, "load-new00-state")}

    state = {"metadata": owned("load-new00-state", "cm", NEW, FINALIZER_STATE), "data": EMPTY_STATE}
    scene.client.objects[paths.configmaps(KEY.namespace, "load-new00-state")] = state
    await scene.reconciler.reconcile(KEY)
    assert [patch["status"]["state"] for patch in scene.client.patches] == [
        {"configMap": "load-new00-state", "uid": "cm"}
    ]
    assert paths.pods(KEY.namespace, "load-new00-1") not in scene.asked("POST")


async def test_state_that_can_not_be_copied_holds_the_run_and_is_looked_at_again() -> None:
    scene = Scene()
    raw = taskrun(NEW, "10")
    raw["spec"]["stateFrom"] = "earlier"
    scene.client.objects[paths.taskruns(*KEY)] = raw
    scene.is_seen(raw)
    assert await scene.reconciler.reconcile(KEY) == NOW + timedelta(seconds=30)
    [patch] = scene.client.patches
    held = next(one for one in patch["status"]["conditions"] if one["type"] == "Held")
    assert held["reason"] == "StateSourceUnavailable"
    assert "TaskRun earlier must exist in this namespace" in held["message"]
    assert scene.asked("POST") == []


async def test_held_taskruns_are_counted_by_reason() -> None:
    held = {"type": "Held", "status": "True", "reason": "StateLost", "message": "lost"}
    scene = Scene()
    scene.has_taskrun(NEW, conditions=[held])
    assert [scene.taskruns.held(reason) for reason in (Reason.STATE_LOST, Reason.BUDGET_EXHAUSTED)] == [1, 0]


def test_an_orphan_is_counted_and_said_in_the_log_once_however_often_it_is_announced(
    caplog: pytest.LogCaptureFixture,
) -> None:
    metrics = OperatorMetrics()
    recorder = taskrun_event_recorder(SimpleNamespace(), "pod-1", metrics, lambda _: "Cancelled")  # type: ignore[arg-type]
    about = ObjectMeta(name=KEY.name, namespace=KEY.namespace, uid=NEW)

    async def announce() -> None:
        for number in (1, 1, 2):
            note = f"External job load (handle job-{number}) is left running."
            recorder.emit(about, EmitEvent(EventReason.ORPHANED, note, warning=True))
        recorder.emit(about, EmitEvent(EventReason.SUBMITTED, "External job load was submitted."))

    asyncio.run(announce())
    assert b'reattach_orphaned_jobs_total{reason="Cancelled"} 2.0' in metrics.text()
    assert [record.getMessage() for record in caplog.records] == [
        "TaskRun team/load: External job load (handle job-1) is left running.",
        "TaskRun team/load: External job load (handle job-2) is left running.",
    ]


async def test_release_of_state_after_conflict_reads_only_metadata() -> None:
    scene = Scene()
    scene.client.objects[paths.configmaps(KEY.namespace, "load-0ld00-state")] = state(None)
    scene.states.upsert(state(None))
    scene.client.conflicts = 1
    await scene.reconciler.reconcile(KEY)
    assert scene.client.metadata_reads == [paths.configmaps(KEY.namespace, "load-0ld00-state")]


# -- how a run ends --------------------------------------------------------------------------------

RECORD = OrphanRecord(
    taskrun=KEY.name,
    uid=NEW,
    reason="Cancelled",
    time=NOW,
    jobs=(OrphanedJob(key="load", generation=1, why="No adapter is registered."),),
)


def scene_with(*actions: Action, raw: JSON | None = None) -> Scene:
    """A scene whose next decision is these actions, and then nothing."""
    scene, decisions = Scene(), [Plan(actions=actions)]
    raw = raw or taskrun(NEW, "10")
    scene.client.objects[paths.taskruns(*KEY)] = raw
    scene.is_seen(raw)
    scene.reconciler._decide = lambda *_: decisions.pop() if decisions else Plan()
    return scene


async def test_protection_adds_our_finalizer_beside_others_and_only_to_the_version_that_was_seen() -> None:
    raw = taskrun(NEW, "10")
    raw["metadata"]["finalizers"] = ["example.com/theirs"]
    scene = scene_with(ProtectTaskRun(), raw=raw)
    await scene.reconciler.reconcile(KEY)
    finalizers = ["example.com/theirs", FINALIZER_EXTERNAL_JOBS]
    assert scene.client.patches == [{"metadata": {"uid": NEW, "resourceVersion": "10", "finalizers": finalizers}}]


@pytest.mark.parametrize(
    "error", [ConflictError(409, "Conflict", "it has changed"), InvalidError(422, "Invalid", "no new finalizers")]
)
async def test_protection_of_a_taskrun_that_changed_or_is_being_deleted_reads_it_again(error: Exception) -> None:
    scene = scene_with(ProtectTaskRun())
    deleted = taskrun(NEW, "11")
    deleted["metadata"]["deletionTimestamp"] = "2026-01-02T03:04:05Z"
    scene.client.objects[paths.taskruns(*KEY)] = deleted
    scene.client.failing = error
    await scene.reconciler.reconcile(KEY)
    known = scene.taskruns.get(KEY)
    assert known is not None
    assert known.metadata.deletion_timestamp is not None


async def test_protection_that_is_rejected_for_another_reason_is_an_error() -> None:
    scene = scene_with(ProtectTaskRun())
    scene.client.failing = InvalidError(422, "Invalid", "the stored object breaks a rule")
    with pytest.raises(InvalidError):
        await scene.reconciler.reconcile(KEY)


async def test_protection_of_a_taskrun_that_is_gone_counts_as_done() -> None:
    scene = scene_with(ProtectTaskRun())
    scene.client.failing = NotFoundError(404, "NotFound", "gone")
    await scene.reconciler.reconcile(KEY)
    assert scene.taskruns.is_suspect(KEY)


async def test_record_of_orphans_is_stored_before_the_finalizer_is_removed() -> None:
    scene = scene_with(ReleaseTaskRun(RECORD), raw=ending())
    await scene.reconciler.reconcile(KEY)
    writes = [path for verb, path in scene.client.asked if verb in {"POST", "PATCH"}]
    assert writes == [paths.configmaps(KEY.namespace, "load-new00-orphans"), paths.taskruns(*KEY)]
    assert [each.metadata.name for each in scene.orphans.by_key(KEY)] == ["load-new00-orphans"]


async def test_finalizer_stays_while_the_record_of_orphans_can_not_be_stored() -> None:
    scene = scene_with(ReleaseTaskRun(RECORD), raw=ending())
    scene.client.failing_creation = UnavailableError(503, "ServiceUnavailable", "no")
    with pytest.raises(UnavailableError):
        await scene.reconciler.reconcile(KEY)
    assert scene.client.patches == []


async def test_decision_receives_the_records_of_earlier_taskruns_of_the_name() -> None:
    scene = scene_with()
    seen: list[Observed] = []

    def note(observed: Observed, *_: Any) -> Plan:
        seen.append(observed)
        return Plan()

    scene.reconciler._decide = note
    about = ObjectMeta(name="load-old00-orphans", namespace=KEY.namespace, uid="r", labels={LABEL_ORPHANS: KEY.name})
    scene.orphans.upsert(PartialObject(metadata=about))
    await scene.reconciler.reconcile(KEY)
    assert [observed.predecessors for observed in seen] == [("load-old00-orphans",)]


@pytest.mark.parametrize("shown", [False, True])
@pytest.mark.parametrize("stored", [False, True])
async def test_decision_about_the_outcome_receives_whether_the_record_of_orphans_is_stored(
    shown: bool, stored: bool
) -> None:
    scene = scene_with(raw=taskrun(NEW, "10", orphaned=True))
    seen: list[Observed] = []

    def note(observed: Observed, *_: Any) -> Plan:
        seen.append(observed)
        return Plan()

    scene.reconciler._decide = note
    about = ObjectMeta(name="load-new00-orphans", namespace=KEY.namespace, uid="r", labels={LABEL_ORPHANS: KEY.name})
    if shown:
        scene.orphans.upsert(PartialObject(metadata=about))
    if stored:
        path = paths.configmaps(KEY.namespace, about.name)
        scene.client.objects[path] = {"metadata": msgspec.to_builtins(about)}
    await scene.reconciler.reconcile(KEY)
    assert [observed.has_record for observed in seen] == [shown or stored]


@pytest.mark.parametrize("finalizer", [FINALIZER_EXTERNAL_JOBS, "example.com/theirs"])
async def test_namespace_of_an_ending_run_that_we_protect_is_read(finalizer: str) -> None:
    raw = taskrun(NEW, "10", ending=ENDING)
    raw["metadata"]["finalizers"] = [finalizer]
    scene = scene_with(raw=raw)
    await scene.reconciler.reconcile(KEY)
    is_read = paths.namespace_of(KEY.namespace) in scene.asked("GET")
    assert is_read == (finalizer == FINALIZER_EXTERNAL_JOBS)


async def test_progress_is_shown_once_no_other_taskrun_waits_or_it_is_due() -> None:
    scene = scene_with(raw=taskrun(NEW, "10"))
    shown = to_taskrun(taskrun(NEW, "10", observedGeneration=1)).status
    scene.reconciler._decide = lambda *_: Plan(status=shown, write_by=NOW + timedelta(seconds=30))
    other = Key("team", "other")
    scene.reconciler._queue.add(other)
    assert await scene.reconciler.reconcile(KEY) == NOW + timedelta(seconds=5)
    deadline = NOW + timedelta(seconds=2)
    scene.reconciler._decide = lambda *_: Plan(status=shown, write_by=NOW + timedelta(seconds=30), requeue_at=deadline)
    assert await scene.reconciler.reconcile(KEY) == deadline
    assert scene.client.patches == []
    scene.reconciler._decide = lambda *_: Plan(status=shown, write_by=NOW)
    await scene.reconciler.reconcile(KEY)
    assert len(scene.client.patches) == 1

    idle = scene_with(raw=taskrun(NEW, "10"))
    idle.reconciler._decide = lambda *_: Plan(status=shown, write_by=NOW + timedelta(seconds=30))
    await idle.reconciler.reconcile(await idle.reconciler._queue.get())
    assert len(idle.client.patches) == 1


async def test_ended_cleanup_attempt_is_counted_once_by_its_cause() -> None:
    run = {"number": 1, "cause": "Stopped"}
    ended = {"number": 2, "purpose": "Cleanup", "cause": "Application", "chargedTo": "cleanup"}
    other = {"number": 3, "purpose": "Cleanup", "cause": "Succeeded"}
    scene = scene_with(raw=taskrun(NEW, "10", attempts=[run, ended]))
    found = to_taskrun(taskrun(NEW, "10", attempts=[run, ended, other]))
    scene.reconciler._decide = lambda *_: Plan(status=found.status)
    await scene.reconciler.reconcile(KEY)
    counted = [line for line in scene.metrics.text().decode().splitlines() if line.startswith("reattach_cleanups_tot")]
    assert counted == ['reattach_cleanups_total{result="Succeeded"} 1.0']


@pytest.mark.parametrize("label", [None, "Cleanup"])
@pytest.mark.parametrize("purpose", list(AttemptPurpose))
async def test_existing_pod_of_another_purpose_is_not_the_expected_one(
    label: str | None, purpose: AttemptPurpose
) -> None:
    creation = replace(pod_creation(to_taskrun(taskrun(NEW, "10")), 2, PodDefaults(url="", ca="")), purpose=purpose)
    labels = {LABEL_TASKRUN: KEY.name, LABEL_ATTEMPT: "2"} | ({LABEL_PURPOSE: label} if label else {})
    annotations = {ANNOTATION_TEMPLATE_HASH: creation.template_hash}
    about = owned("load-new00-2", "p", NEW, FINALIZER_ATTEMPT, annotations=annotations)
    pod = Pod(metadata=msgspec.structs.replace(about, labels=labels))
    expected = (label == "Cleanup") == (purpose is AttemptPurpose.CLEANUP)
    assert is_expected_pod(pod, to_taskrun(taskrun(NEW, "10")), creation) == expected


async def test_cleanup_pod_that_lost_its_labels_gets_all_of_them_back() -> None:
    attempts = [{"number": 2, "purpose": "Cleanup", "podName": "load-new00-2", "podUID": "p"}]
    scene = scene_with(raw=taskrun(NEW, "10", attempts=attempts))
    about = msgspec.structs.replace(owned("load-new00-2", "p", NEW, FINALIZER_ATTEMPT), labels={})
    scene.client.objects[paths.pods(KEY.namespace, "load-new00-2")] = Pod(metadata=about)
    await scene.reconciler.reconcile(KEY)
    labels = {LABEL_TASKRUN: KEY.name, LABEL_ATTEMPT: "2", LABEL_PURPOSE: "Cleanup"}
    assert scene.client.patches == [{"metadata": {"uid": "p", "labels": labels}}]


REJECTED_POD = b'{"metadata": {"name": "load-new00-1", "namespace": "team", "labels": {}, "annotations": {}}, "spec": {"containers": []}}'


async def test_rejection_of_a_run_pod_says_nothing_about_the_cleanup_pod_of_the_same_number() -> None:
    scene = scene_with(CreatePod(1, "load-new00-1", "hash", "size", REJECTED_POD))
    scene.client.failing_creation = InvalidError(422, "Invalid", "no such priority class")
    await scene.reconciler.reconcile(KEY)
    executor = scene.reconciler._executor
    assert executor.rejection(KEY, to_taskrun(taskrun(NEW, "10"))) is not None
    assert executor.rejection(KEY, to_taskrun(taskrun(NEW, "10", ending=ENDING))) is None


INVALID_POD = InvalidError(422, "Invalid", 'Pod "load-new00-1" is invalid: spec.containers[0].image: Required value')
NO_IMAGE = InvalidError(
    422,
    "Invalid",
    'PodTemplate "load-new00-1" is invalid: template.spec.containers[0].image: Required value',
    ({"field": "template.spec.containers[0].image", "message": "Required value"},),
)


async def rejected(pod: Exception, template: Exception | None, *, times: int = 1) -> tuple[Scene, PodRejection]:
    """Create a pod that the API server rejects as often as this. Return the scene and the rejection."""
    creation = CreatePod(1, "load-new00-1", "hash", "size", REJECTED_POD)
    scene = scene_with()
    scene.client.failing_creation, scene.client.failing_template = pod, template
    for _ in range(times):
        assert not await scene.reconciler._executor.create(KEY, to_taskrun(taskrun(NEW, "10")), creation)
    rejection = scene.reconciler._executor.rejection(KEY, to_taskrun(taskrun(NEW, "10")))
    assert rejection is not None
    return scene, rejection


async def test_rejected_pod_with_an_invalid_template_is_invalid_and_names_the_field() -> None:
    _, rejection = await rejected(INVALID_POD, NO_IMAGE)
    expected = (PodRejectionKind.INVALID, "spec.template.spec.containers[0].image: Required value")
    assert (rejection.kind, rejection.message) == expected


@pytest.mark.parametrize(
    "template",
    [
        None,
        ForbiddenError(403, "Forbidden", 'podtemplates is forbidden: User "operator" cannot create resource'),
        ForbiddenError(403, "Forbidden", 'podtemplates "load-new00-1" is forbidden: exceeded quota: few'),
        InvalidError(422, "Invalid", 'admission webhook "w" denied the request'),
        InvalidError(
            422, "Invalid", "podtemplates \"load-new00-1\" is forbidden: ValidatingAdmissionPolicy 'p' denied"
        ),
        UnavailableError(500, "InternalError", 'failed calling webhook "w"'),
    ],
    ids=["valid", "no right", "quota", "webhook", "policy", "failed webhook"],
)
async def test_rejected_pod_whose_template_is_not_refused_waits_with_the_message(template: Exception | None) -> None:
    _, rejection = await rejected(INVALID_POD, template)
    assert (rejection.kind, rejection.message) == (PodRejectionKind.FORBIDDEN, INVALID_POD.message)


async def test_rejected_pod_without_an_answer_about_its_template_is_an_error() -> None:
    with pytest.raises(UnavailableError):
        await rejected(INVALID_POD, UnavailableError(0, "NoAnswer", "connection reset"))


async def test_template_is_checked_once_for_each_message_of_a_rejection() -> None:
    scene, rejection = await rejected(INVALID_POD, None, times=3)
    checks = [path for _, path in scene.client.asked if "podtemplates" in path]
    assert len(checks) == 1
    assert rejection.retry_at == NOW + timedelta(seconds=8)
    scene.client.failing_creation = InvalidError(422, "Invalid", "another field")
    creation = CreatePod(1, "load-new00-1", "hash", "size", REJECTED_POD)
    assert not await scene.reconciler._executor.create(KEY, to_taskrun(taskrun(NEW, "10")), creation)
    checks = [path for _, path in scene.client.asked if "podtemplates" in path]
    assert len(checks) == 2


async def test_template_is_checked_again_if_the_check_failed() -> None:
    scene, rejection = await rejected(INVALID_POD, UnavailableError(500, "InternalError", 'failed calling webhook "w"'))
    assert rejection.kind is PodRejectionKind.FORBIDDEN
    scene.client.failing_template = NO_IMAGE
    creation = CreatePod(1, "load-new00-1", "hash", "size", REJECTED_POD)
    assert not await scene.reconciler._executor.create(KEY, to_taskrun(taskrun(NEW, "10")), creation)
    rejection = scene.reconciler._executor.rejection(KEY, to_taskrun(taskrun(NEW, "10")))
    assert rejection is not None
    assert rejection.kind is PodRejectionKind.INVALID


FULL_QUOTA = ForbiddenError(
    403,
    "Forbidden",
    'pods "load-new00-1" is forbidden: '
    "exceeded quota: few, requested: count/pods=1, used: count/pods=4, limited: count/pods=3",
)


async def test_kept_pods_are_deleted_once_for_each_count_of_the_quota() -> None:
    scene, rejection = await rejected(FULL_QUOTA, None)
    executor, run = scene.reconciler._executor, to_taskrun(taskrun(NEW, "10"))
    creation = CreatePod(1, "load-new00-1", "hash", "size", REJECTED_POD)
    assert rejection.excess_pods == 2

    def excess() -> int:
        found = executor.rejection(KEY, run)
        assert found is not None
        return found.excess_pods

    await executor.make_room(KEY, DeletePod("load-new00-0", "p0", makes_room=True))
    assert excess() == 1
    await executor.make_room(KEY, DeletePod("load-new00-9", "p9", makes_room=True))
    assert excess() == 0
    await executor.create(KEY, run, creation)  # the quota controller has not counted yet
    assert excess() == 0
    executor._clock = lambda: NOW + timedelta(seconds=15)
    executor._quota = QuotaBackoff()
    await executor.create(KEY, run, creation)
    assert excess() == 2


async def test_kept_pod_whose_deletion_is_refused_does_not_stop_the_wait_for_the_quota() -> None:
    scene, rejection = await rejected(FULL_QUOTA, None)
    executor, run = scene.reconciler._executor, to_taskrun(taskrun(NEW, "10"))
    scene.client.failing_deletion = ForbiddenError(403, "Forbidden", "a policy keeps pods")
    await executor.make_room(KEY, DeletePod("load-new00-0", "p0", makes_room=True))
    found = executor.rejection(KEY, run)
    assert found is not None
    assert (found.excess_pods, found.retry_at) == (0, rejection.retry_at)
    scene.client.failing_deletion = UnavailableError(0, "NoAnswer", "connection reset")
    with pytest.raises(UnavailableError):
        await executor.make_room(KEY, DeletePod("load-new00-0", "p0", makes_room=True))


async def test_rejection_of_another_pod_of_the_namespace_deletes_no_kept_pod() -> None:
    _, rejection = await rejected(FULL_QUOTA, None, times=2)
    assert rejection.message.startswith("Another pod was rejected: ")
    assert rejection.excess_pods == 0


@pytest.mark.parametrize(
    "message",
    [
        "etcdserver: request is too large",
        "rpc error: code = ResourceExhausted desc = trying to send message larger than max (2200724 vs. 2097152)",
    ],
)
async def test_pod_that_is_too_large_to_be_stored_is_tried_again_after_a_long_pause(message: str) -> None:
    _, rejection = await rejected(UnavailableError(500, "Unknown", message), None)
    expected = (PodRejectionKind.ERROR, message, NOW + timedelta(minutes=10))
    assert (rejection.kind, rejection.message, rejection.retry_at) == expected


async def test_denial_by_admission_is_shown_without_a_check_of_the_template() -> None:
    denial = InvalidError(422, "Invalid", 'admission webhook "w" denied the request')
    scene, rejection = await rejected(denial, NO_IMAGE)
    assert rejection.kind is PodRejectionKind.FORBIDDEN
    assert [path for _, path in scene.client.asked if "podtemplates" in path] == []


NODE = paths.node("node-1")
TAINTED = {
    "metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"},
    "spec": {"taints": [{"key": "node.kubernetes.io/out-of-service", "effect": "NoExecute"}]},
    "status": {"conditions": [{"type": "Ready", "status": "Unknown"}]},
}


@dataclass
class Nodes:
    """A reader of nodes over the fake client, with a clock that a test sets."""

    client: FakeClient = field(default_factory=FakeClient)
    now: datetime = NOW

    def reader(self, **options: bool) -> NodeReader:
        return NodeReader(self.client, clock=lambda: self.now, **{"enabled": True, **options})  # type: ignore[arg-type]

    @property
    def reads(self) -> int:
        return self.client.asked.count(("GET", NODE))


async def test_node_is_read_once_in_2_seconds_for_all_taskruns() -> None:
    nodes = Nodes()
    nodes.client.objects[NODE] = TAINTED
    reader = nodes.reader()
    found = await asyncio.gather(*(reader.read(["node-1"]) for _ in range(20)))
    assert {facts["node-1"] for facts in found} == {NodeFacts(datetime(2026, 1, 1, tzinfo=UTC), out_of_service=True)}
    assert nodes.reads == 1
    nodes.now += timedelta(seconds=1.9)
    await reader.read(["node-1"])
    assert nodes.reads == 1
    nodes.now += timedelta(seconds=0.1)
    await reader.read(["node-1", "node-2"])
    assert (nodes.reads, len(reader._reads)) == (2, 2)


async def test_worker_that_ends_does_not_end_the_read_of_the_others() -> None:
    nodes = Nodes()
    nodes.client.objects[NODE], nodes.client.pause = TAINTED, asyncio.Event()
    reader = nodes.reader()
    first, second = (asyncio.create_task(reader.read(["node-1"])) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    nodes.client.pause.set()
    facts = (await second)["node-1"]
    assert facts is not None
    assert facts.out_of_service


async def test_facts_about_a_node_follow_from_taint_readiness_and_existence() -> None:
    nodes = Nodes()
    assert await nodes.reader().read(["node-1"]) == {"node-1": None}
    assert await nodes.reader(deletion_counts=True).read(["node-1"]) == {"node-1": NodeFacts(deletion_counts=True)}
    for node in (
        {**TAINTED, "status": {"conditions": [{"type": "Ready", "status": "True"}]}},
        {**TAINTED, "spec": {"taints": [{"key": "node.kubernetes.io/unreachable"}]}},
    ):
        nodes.client.objects[NODE] = node
        facts = (await nodes.reader().read(["node-1"]))["node-1"]
        assert facts is not None
        assert not facts.out_of_service


async def test_node_that_can_not_be_read_is_no_evidence_and_the_missing_right_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    nodes = Nodes()
    assert await nodes.reader(enabled=False).read(["node-1"]) == {"node-1": None}
    assert nodes.reads == 0
    for error, facts in (
        (ForbiddenError(403, "Forbidden", "no right"), None),
        (UnavailableError(0, "x", "y"), NodeFacts()),
    ):
        nodes.client.failing_get = error
        reader = nodes.reader()
        for _ in range(3):
            assert await reader.read(["node-1"]) == {"node-1": facts}
            nodes.now += timedelta(minutes=1)
    assert [record.message for record in caplog.records if "no right" in record.message] == [
        "Nodes are no evidence that a pod has ended, because they can't be read: 403 Forbidden: no right"
    ]


async def test_presumed_end_is_turned_and_its_hold_ended_in_the_state_before_the_next_attempt_starts() -> None:
    scene = Scene()
    ended = {"finishTime": "2026-01-02T03:00:00Z", "chargedTo": "disruption"}
    first = {"number": 1, "podUID": "p1", "node": "node-1", "end": "Presumed", "cause": "Disruption", **ended}
    second = {"number": 2, "podUID": "p2", "end": "Reported", "cause": "Held", **ended}
    counts = {"attempts": 2, "lastPresumed": 1}
    named = {"configMap": "load-0ld00-state", "uid": "cm"}
    scene.has_taskrun(OLD, attempts=[first, second], counts=counts, state=named)
    scene.client.objects[NODE] = TAINTED
    views = [HELD_VIEW, HELD_VIEW, msgspec.structs.replace(HELD_VIEW, jobs=())]
    ended_holds: list[EndHolds] = []

    async def read_state(_: Any) -> StateView:
        return views[min(len(ended_holds) * 2, 2)]

    async def end_holds(_: Any, action: EndHolds) -> None:
        ended_holds.append(action)

    scene.reconciler._read_state = read_state  # type: ignore[method-assign]
    scene.reconciler._executor.end_holds = end_holds  # type: ignore[method-assign]
    await scene.reconciler.reconcile(KEY)
    assert ended_holds == [EndHolds((("load", 1),))]
    written = scene.client.patches[0]["status"]
    assert [attempt["end"] for attempt in written["attempts"]] == ["Reported", "Reported"]
    assert written["counts"]["lastPresumed"] == 0
    assert [path for path in scene.asked("POST") if "pods" in path] == [f"{paths.pods(KEY.namespace)}/load-0ld00-3"]
