"""The operator's own reconciler and planner over the stand-in for the Kubernetes API: no kopf, no watch, no Lease, no process."""

from collections.abc import Callable
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any

import msgspec

from reattach.api.names import LABEL_TASKRUN
from reattach.api.objects import ObjectMeta, PartialObject, Pod
from reattach.api.taskrun import TaskRun
from reattach.cluster import ClusterError
from reattach.planner.decide import decide as the_planners
from reattach.planner.plan import EmitEvent, PodDefaults
from reattach.runtime.metrics import OperatorMetrics
from reattach.runtime.object_store import ObjectStore
from reattach.runtime.rate_limiter import RateLimiter
from reattach.runtime.unreadable import UnreadableObjects, reference_of
from reattach.runtime.workqueue import Key, WorkQueue
from reattach.runtime.writer import Writer
from reattach.taskrun.owned_stores import pod_store, state_store
from reattach.taskrun.reconciler import Decide, Reconciler, Stores
from reattach.taskrun.taskrun_store import TaskRunStore
from reattach.testing.memory_api import InMemoryCluster, ObjectChange

CA = "no certificate: loopback HTTP\n"
_PER_SECOND = 1e6
_TRY_AGAIN = timedelta(seconds=1)


class InProcessOperator:
    """Looks at what has changed in the cluster, and at what it meant to look at now. `said` has all that it announced."""

    def __init__(self, cluster: InMemoryCluster, now: Callable[[], datetime], decide: Decide = the_planners) -> None:
        self._cluster = cluster
        self._now = now
        self._again: dict[Key, datetime] = {}
        self._queue = WorkQueue()
        metrics = OperatorMetrics()
        self._taskruns = TaskRunStore(cluster, (), self._queue.add, UnreadableObjects(metrics))
        self._pods = pod_store(self._queue.add)
        self._states = state_store(self._queue.add)
        self.said: list[tuple[str, EmitEvent]] = []
        writer = Writer(cluster, RateLimiter(per_second=_PER_SECOND, at_once=64), lambda: True, metrics)
        self._reconciler = Reconciler(
            cluster=cluster,
            writer=writer,
            stores=Stores(taskruns=self._taskruns, pods=self._pods, states=self._states),
            queue=self._queue,
            event_recorder=SimpleNamespace(emit=self._emit),  # type: ignore[arg-type]
            decide=decide,
            pod_defaults=lambda: PodDefaults(url="https://reattach.invalid", ca=CA),
            clock=now,
        )

    async def settle(self) -> datetime | None:
        """Look until nothing is left to look at; when to come again, if nothing changes."""
        while True:
            self._learn()
            for key in [key for key, at in self._again.items() if at <= self._now()]:
                del self._again[key]
                self._queue.add(key)
            if self._queue.depth == 0:
                return min(self._again.values(), default=None)
            await self._look(await self._queue.get())

    async def _look(self, key: Key) -> None:
        try:
            again = await self._reconciler.reconcile(key)
        except ClusterError:
            again = self._now() + _TRY_AGAIN
        finally:
            self._queue.done(key)
        self._again.pop(key, None)
        if again is not None:
            self._again[key] = again

    def _emit(self, about: ObjectMeta, said: EmitEvent) -> None:
        self.said.append((about.uid, said))

    def _learn(self) -> None:
        """What watches would have told."""
        changes, self._cluster.changes = self._cluster.changes, []
        for change in changes:
            if change.resource == "taskruns":
                self._learn_taskrun(change)
            elif change.resource == "pods":
                _learn(self._pods, change, Pod)
            elif change.resource == "configmaps":
                _learn(self._states, change, PartialObject)

    def _learn_taskrun(self, change: ObjectChange) -> None:
        found = msgspec.json.decode(change.raw, type=TaskRun)
        if change.kind == "DELETED" or found.status.outcome is not None:
            self._taskruns.on_deleted(reference_of(found.metadata))
        else:
            self._taskruns.upsert(found)
            self._taskruns.on_event(reference_of(found.metadata))


def _learn(cache: ObjectStore[Any], change: ObjectChange, kind: type[Any]) -> None:
    found = msgspec.json.decode(change.raw, type=kind)
    if change.kind == "DELETED":
        cache.delete(found.metadata.uid)
    elif LABEL_TASKRUN in found.metadata.labels:
        cache.upsert(found)
