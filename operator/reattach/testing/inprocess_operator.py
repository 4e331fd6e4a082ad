"""The operator's real reconciler and planner, without kopf, watches, a Lease and a process."""

from collections.abc import Callable
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any

import msgspec

from reattach.api.names import LABEL_ORPHANS, LABEL_TASKRUN
from reattach.api.objects import ObjectMeta, PartialObject, Pod
from reattach.api.taskrun import TaskRun
from reattach.cluster import ClusterError
from reattach.planner.decide import decide as planner_decide
from reattach.planner.plan import EmitEvent, PodDefaults
from reattach.runtime.metrics import OperatorMetrics
from reattach.runtime.object_store import ObjectStore
from reattach.runtime.rate_limiter import RateLimiter
from reattach.runtime.unreadable import UnreadableObjects, reference_of
from reattach.runtime.workqueue import Key, WorkQueue
from reattach.runtime.writer import Writer
from reattach.taskrun.node_reader import NodeReader
from reattach.taskrun.orphan_records import orphan_store
from reattach.taskrun.owned_stores import pod_store, state_store
from reattach.taskrun.pod_event_reader import PodEventReader
from reattach.taskrun.reconciler import Decide, Reconciler, Stores
from reattach.taskrun.taskrun_store import TaskRunStore
from reattach.testing.memory_api import InMemoryCluster, ObjectChange

CA = "no certificate: loopback HTTP\n"
_PER_SECOND = 1e6
_RETRY_DELAY = timedelta(seconds=1)


class InProcessOperator:
    """Reconciles the TaskRuns that changed or are due.

    events: emitted Kubernetes Events, with the UID of their TaskRun.
    """

    def __init__(self, cluster: InMemoryCluster, now: Callable[[], datetime], decide: Decide = planner_decide) -> None:
        self._cluster = cluster
        self._now = now
        self._requeue_times: dict[Key, datetime] = {}
        self._queue = WorkQueue()
        metrics = OperatorMetrics()
        self._taskruns = TaskRunStore(cluster, (), self._queue.add, UnreadableObjects(metrics))
        self._pods = pod_store(self._queue.add)
        self._states = state_store(self._queue.add)
        self._orphans = orphan_store()
        self.events: list[tuple[str, EmitEvent]] = []
        writer = Writer(cluster, RateLimiter(per_second=_PER_SECOND, at_once=64), lambda: True, metrics)
        self._reconciler = Reconciler(
            cluster=cluster,
            writer=writer,
            stores=Stores(taskruns=self._taskruns, pods=self._pods, states=self._states, orphans=self._orphans),
            queue=self._queue,
            event_recorder=SimpleNamespace(emit=self._emit),  # type: ignore[arg-type]
            metrics=metrics,
            decide=decide,
            pod_defaults=lambda: PodDefaults(url="https://reattach.invalid", ca=CA),
            nodes=NodeReader(cluster, clock=now),
            pod_events=PodEventReader(cluster, clock=now),
            clock=now,
        )

    async def settle(self) -> datetime | None:
        """Reconcile until the queue is empty. Return the time of the next requeue."""
        while True:
            self._deliver()
            for key in [key for key, at in self._requeue_times.items() if at <= self._now()]:
                del self._requeue_times[key]
                self._queue.add(key)
            if self._queue.depth == 0:
                return min(self._requeue_times.values(), default=None)
            await self._reconcile(await self._queue.get())

    async def _reconcile(self, key: Key) -> None:
        try:
            requeue_at = await self._reconciler.reconcile(key)
        except ClusterError:
            requeue_at = self._now() + _RETRY_DELAY
        finally:
            self._queue.done(key)
        self._requeue_times.pop(key, None)
        if requeue_at is not None:
            self._requeue_times[key] = requeue_at

    def _emit(self, about: ObjectMeta, event: EmitEvent) -> None:
        self.events.append((about.uid, event))

    def _deliver(self) -> None:
        """Deliver the changes to the stores, as watches do."""
        changes, self._cluster.changes = self._cluster.changes, []
        for change in changes:
            if change.resource == "taskruns":
                self._deliver_taskrun(change)
            elif change.resource == "pods":
                _deliver(self._pods, change, Pod, LABEL_TASKRUN)
            elif change.resource == "configmaps":
                _deliver(self._states, change, PartialObject, LABEL_TASKRUN)
                _deliver(self._orphans, change, PartialObject, LABEL_ORPHANS)

    def _deliver_taskrun(self, change: ObjectChange) -> None:
        found = msgspec.json.decode(change.raw, type=TaskRun)
        if change.kind == "DELETED" or found.status.outcome is not None:
            self._taskruns.on_deleted(reference_of(found.metadata))
        else:
            self._taskruns.upsert(found)
            self._taskruns.on_event(reference_of(found.metadata))


def _deliver(cache: ObjectStore[Any], change: ObjectChange, kind: type[Any], label: str) -> None:
    found = msgspec.json.decode(change.raw, type=kind)
    if change.kind == "DELETED":
        cache.delete(found.metadata.uid)
    elif label in found.metadata.labels:
        cache.upsert(found)
