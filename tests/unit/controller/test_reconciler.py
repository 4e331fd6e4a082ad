"""What the reconciler asks and does when what it sees is late, refused, or belongs to nobody any more.

The one fake is the client: it answers from a dictionary of objects, and notes what it was asked.
"""

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from reattach.api.names import ANNOTATION_SUMMARY, FINALIZER_ATTEMPT, FINALIZER_STATE, LABEL_TASKRUN
from reattach.api.objects import ObjectMeta, OwnerReference, PartialObject, Pod, PodSpec, PodStatus
from reattach.cluster import ForbiddenError, NotFoundError, paths
from reattach.controller.cache import Cache
from reattach.controller.metrics import Metrics
from reattach.controller.reconciler import Caches, Reconciler, key_by_label
from reattach.controller.taskruns import TaskRuns
from reattach.controller.workqueue import Key, WorkQueue
from reattach.planner.decide import decide
from reattach.planner.plan import Settings

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
KEY = Key("team", "load")
OLD, NEW = "0ld00-uid", "new00-uid"
JSON = dict[str, Any]


@dataclass
class FakeClient:
    """Cluster and writer at once. `refuse` names the paths that are answered with 403; `pause` holds answers back."""

    objects: dict[str, Any] = field(default_factory=dict)
    refuse: tuple[str, ...] = ()
    asked: list[tuple[str, str]] = field(default_factory=list)
    pause: asyncio.Event | None = None

    async def get(self, path: str, **_query: Any) -> bytes:
        self.asked.append(("GET", path))
        found = self.objects.get(path)
        if self.pause is not None:
            await self.pause.wait()
        if found is None:
            raise NotFoundError(404, "NotFound", path)
        return msgspec.json.encode(found)

    async def create(self, path: str, body: JSON, **_query: Any) -> bytes:
        self.asked.append(("POST", f"{path}/{body['metadata']['name']}"))
        about = {"uid": "made", "resourceVersion": "90", **body["metadata"]}
        return msgspec.json.encode({**body, "metadata": about})

    async def merge_patch(self, path: str, body: JSON, **_query: Any) -> bytes:
        self.asked.append(("PATCH", path))
        if path.startswith(self.refuse):
            raise ForbiddenError(403, "Forbidden", "a policy refuses")
        found = msgspec.to_builtins(self.objects.get(path.removesuffix("/status"), {}))
        return msgspec.json.encode({**found, "metadata": {**found.get("metadata", {}), **body["metadata"]}})

    async def delete(self, path: str, **_options: Any) -> bytes:
        self.asked.append(("DELETE", path))
        return b'{"kind": "Status"}'


class Scene:
    """A reconciler over a fake client, with nothing known yet."""

    def __init__(self, *refuse: str) -> None:
        queue, metrics = WorkQueue(), Metrics()
        self.client = FakeClient(refuse=refuse)
        self.taskruns = TaskRuns(self.client, (), queue.mark, metrics)  # type: ignore[arg-type]
        self.pods: Cache[Pod] = Cache(key_by_label, queue.mark)
        self.states: Cache[PartialObject] = Cache(key_by_label, queue.mark)
        self.reconciler = Reconciler(
            cluster=self.client,  # type: ignore[arg-type]
            writer=self.client,  # type: ignore[arg-type]
            caches=Caches(taskruns=self.taskruns, pods=self.pods, states=self.states),
            queue=queue,
            announcer=SimpleNamespace(announce=lambda *_: None),  # type: ignore[arg-type]
            decide=decide,
            settings=lambda: Settings(url="https://state", ca=""),
            clock=lambda: NOW,
        )

    def has_taskrun(self, uid: str, version: str = "10", **status: Any) -> None:
        raw = taskrun(uid, version, **status)
        self.client.objects[paths.taskruns(*KEY)] = raw
        if "outcome" not in status:
            self.taskruns.saw(raw)

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
    scene.states.learn(state(OLD, annotations=summary))
    pod = paths.pods(KEY.namespace, "load-0ld00-1")
    scene.client.objects[pod] = Pod(
        metadata=owned("load-0ld00-1", "p1", OLD, FINALIZER_ATTEMPT),
        spec=PodSpec(node_name="node"),
        status=PodStatus(phase="Running"),
    )

    await scene.reconciler.reconcile(KEY)

    assert pod in scene.asked("GET")
    assert scene.asked("POST") == []
    assert [known.metadata.uid for known in scene.pods.of(KEY)] == ["p1"]


async def test_a_leftover_that_can_not_be_let_go_of_does_not_keep_a_new_taskrun_waiting() -> None:
    scene = Scene(paths.configmaps(KEY.namespace))
    scene.states.learn(state(None))
    scene.has_taskrun(NEW)

    again = await scene.reconciler.reconcile(KEY)

    assert scene.asked("POST") == [paths.pods(KEY.namespace, "load-new00-1")]
    assert again is not None
    assert again > NOW


async def test_a_pod_that_can_not_be_let_go_of_does_not_keep_the_next_attempt_waiting() -> None:
    scene = Scene(paths.pods(KEY.namespace))
    ended = {"number": 1, "podName": "load-0ld00-1", "podUID": "p1", "finishTime": NOW - timedelta(hours=1)}
    charged = {"application": 0, "disruption": 1, "neverStarted": 0, "cleanup": 0}
    why = {"cause": "Disruption", "chargedTo": "disruption", "end": "Reported"}
    scene.has_taskrun(OLD, attempts=[{**ended, **why}], counts={"attempts": 1, "charged": charged})
    scene.pods.learn(
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


async def test_a_pod_lost_with_its_node_is_let_go_of_when_its_taskrun_is_gone() -> None:
    scene = Scene()
    scene.pods.learn(lost_pod())

    await scene.reconciler.reconcile(KEY)

    assert scene.asked("PATCH") == [paths.pods(KEY.namespace, "load-0ld00-1")]


async def test_a_pod_lost_with_its_node_is_let_go_of_when_its_taskrun_is_finished() -> None:
    scene = Scene()
    scene.has_taskrun(OLD, outcome="Failed")
    scene.pods.learn(lost_pod())

    await scene.reconciler.reconcile(KEY)

    assert scene.asked("PATCH") == [paths.pods(KEY.namespace, "load-0ld00-1")]


async def test_an_answer_about_an_older_taskrun_does_not_hide_the_one_made_meanwhile() -> None:
    scene = Scene()
    scene.taskruns.saw(taskrun(OLD, "5"))
    scene.taskruns.lost(taskrun(OLD, "6"))
    scene.client.pause = asyncio.Event()

    looking = asyncio.create_task(scene.reconciler.reconcile(KEY))
    await asyncio.sleep(0)
    scene.has_taskrun(NEW)
    scene.client.pause.set()
    await looking

    known = scene.taskruns.known(KEY)
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
