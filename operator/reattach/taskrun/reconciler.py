"""Reconciliation of one TaskRun: observe → decide → record → act.

There is no second path for retries or recovery.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TypeAlias, assert_never

import msgspec

from reattach.api.names import (
    FINALIZER_ATTEMPT,
    FINALIZER_EXTERNAL_JOBS,
    FINALIZER_STATE,
    LABEL_ORPHANS,
    LABEL_TASKRUN,
    orphans_name,
    pod_name,
    state_name,
)
from reattach.api.objects import ObjectMeta, PartialObject, Pod
from reattach.api.reasons import EventReason
from reattach.api.state import Epoch, StateView
from reattach.api.taskrun import AttemptPurpose, TaskRun, TaskRunStatus
from reattach.cluster import (
    Cluster,
    ClusterError,
    ConflictError,
    ForbiddenError,
    InvalidError,
    NotFoundError,
    UnavailableError,
    paths,
)
from reattach.cluster.errors import is_too_large
from reattach.planner.plan import (
    AbsentState,
    Action,
    CopyState,
    CreatePod,
    Decision,
    DeletePod,
    EmitEvent,
    EndHolds,
    Observed,
    Plan,
    PodDefaults,
    ProtectTaskRun,
    ReadEvents,
    ReadEvictions,
    ReadNodes,
    ReadState,
    ReleasePod,
    ReleaseState,
    ReleaseTaskRun,
    SealState,
    StopPod,
    UnreadableState,
)
from reattach.planner.podstatus import is_terminal
from reattach.runtime.event_recorder import EventRecorder
from reattach.runtime.mergepatch import merge_patch_of
from reattach.runtime.metrics import OperatorMetrics
from reattach.runtime.object_store import ObjectStore
from reattach.runtime.unreadable import reference_of
from reattach.runtime.workqueue import Key, WorkQueue
from reattach.runtime.writer import Writer
from reattach.state import UnreadableError, summary_of, view_of
from reattach.taskrun.eviction_reader import EvictionReader
from reattach.taskrun.executor import PlanExecutor
from reattach.taskrun.node_reader import NodeReader
from reattach.taskrun.orphan_records import OrphanRecords
from reattach.taskrun.pod_event_reader import PodEventReader
from reattach.taskrun.taskrun_store import TaskRunStore, UnreadableTaskRunError, is_ours

Decide: TypeAlias = Callable[[Observed, PodDefaults, datetime], Decision]

_NEEDS_MAX = 8
"""Needs of one reconciliation: state of an ended attempt, Nodes, events, ended holds, the seal."""
_QUOTA_PROBE_SECONDS = 0.25
_TOO_LARGE_SECONDS = 600.0
_RETRY_LEFTOVERS = timedelta(seconds=60)
_AFTER_CREATION = timedelta(seconds=1)
"""Pause before the next decision about a pod that was just created.

Nothing about it is shown for seconds, and an event of the pod ends the pause. So the decision for
its creation is saved if it starts at once.
"""
_SHOW_LATER = timedelta(seconds=5)
"""Pause before a write that only shows progress, while other TaskRuns wait for a worker."""

_log = logging.getLogger(__name__)


def key_by_label(found: Pod | PartialObject) -> Key:
    """Return the key of the TaskRun that the label of a pod or state names."""
    return Key(found.metadata.namespace, found.metadata.labels.get(LABEL_TASKRUN, ""))


@dataclass(frozen=True, slots=True, kw_only=True)
class Stores:
    """Caches of the objects that a reconciliation reads."""

    taskruns: TaskRunStore
    pods: ObjectStore[Pod]
    states: ObjectStore[PartialObject]
    orphans: ObjectStore[PartialObject]
    """Records of orphaned jobs."""


class Reconciler:
    """Reconciles TaskRuns. The work queue never hands out one key twice at once."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        writer: Writer,
        stores: Stores,
        queue: WorkQueue,
        event_recorder: EventRecorder,
        metrics: OperatorMetrics,
        decide: Decide,
        pod_defaults: Callable[[], PodDefaults],
        nodes: NodeReader,
        pod_events: PodEventReader,
        paused: bool = False,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._cluster = cluster
        self._writer = writer
        self._taskruns = stores.taskruns
        self._pods = stores.pods
        self._states = stores.states
        self._queue = queue
        self._event_recorder = event_recorder
        self._metrics = metrics
        self._orphan_records = OrphanRecords(writer, stores.orphans, metrics)
        self._decide = decide
        self._pod_defaults = pod_defaults
        self._nodes = nodes
        self._evictions = EvictionReader(cluster)
        self._pod_events = pod_events
        self._paused = paused
        self._clock = clock
        self._executor = PlanExecutor(cluster, writer, stores.pods, stores.states, enqueue=queue.add, clock=clock)

    async def reconcile(self, key: Key) -> datetime | None:
        """Reconcile one TaskRun. Return when to do it again, if nothing changes before."""
        taskrun = self._taskruns.get(key)
        if self._taskruns.is_suspect(key) or self._has_leftovers(key, taskrun):
            taskrun = await self._refresh(key)
        if taskrun is not None and taskrun.status.outcome is not None and is_ours(taskrun):
            taskrun = None
        leftovers_at = await self._release_leftovers(key, taskrun)
        self._evict_released(key, taskrun)
        if taskrun is None or not is_ours(taskrun):
            self._executor.forget(key)
            self._orphan_records.forget(key)
            return leftovers_at
        try:
            requeue_at = await self._reconcile_unfinished(key, taskrun)
        except ClusterError as error:
            if is_too_large(error):
                self._report_too_large(taskrun, error)
            raise
        return min((time for time in (leftovers_at, requeue_at) if time is not None), default=None)

    async def run_quota_probes(self) -> None:
        """Retry pods in namespaces whose quota is full, for ever."""
        while True:
            await asyncio.sleep(_QUOTA_PROBE_SECONDS)
            self._executor.admit_quota_probes()

    async def _refresh(self, key: Key) -> TaskRun | None:
        """Read the TaskRun.

        If it can't be decoded, emit a Warning event on it and raise `UnreadableTaskRunError`.
        """
        try:
            return await self._taskruns.refresh(key)
        except UnreadableTaskRunError as error:
            if error.reference.uid:
                about = ObjectMeta(namespace=key.namespace, name=key.name, uid=error.reference.uid)
                note = f"Reattach does nothing with this TaskRun, because {error}. Change it, or delete it."
                self._event_recorder.emit(about, EmitEvent(EventReason.UNREADABLE, note, warning=True))
            raise

    def _report_too_large(self, taskrun: TaskRun, error: ClusterError) -> None:
        """Emit an Event, because the status can't show that an object is too large to be stored.

        The next try is due when the TaskRun changes, or after a long pause.
        """
        error.retry_after = max(error.retry_after or 0, _TOO_LARGE_SECONDS)
        note = (
            "Reattach does not continue with this TaskRun, because it or its state is too large to be stored: "
            f"{error.message}. Delete the TaskRun, and create it with a smaller spec and fewer annotations."
        )
        self._event_recorder.emit(taskrun.metadata, EmitEvent(EventReason.TOO_LARGE, note, warning=True))

    async def _reconcile_unfinished(self, key: Key, taskrun: TaskRun) -> datetime | None:
        summary = next(
            (summary_of(s.metadata.annotations) for s in self._states.by_key(key) if _is_of(s.metadata, taskrun)), None
        )
        await self._find_unlabelled(taskrun, summary.epoch if summary else None)
        observed = Observed(
            taskrun=taskrun,
            pods=self._pods_of(key, taskrun),
            summary=summary,
            rejection=self._executor.rejection(key, taskrun),
            namespace_ends=await self._namespace_ends(taskrun),
            paused=self._paused,
            predecessors=self._orphan_records.predecessors(taskrun.metadata),
            has_record=await self._has_record(taskrun),
        )
        plan = await self._decide_with_state(key, observed)
        if plan.write_by is not None and self._clock() < plan.write_by and self._queue.depth > 0:
            return min(plan.write_by, plan.requeue_at or plan.write_by, self._clock() + _SHOW_LATER)
        if plan.status is not None:
            try:
                taskrun = await self._record(taskrun, plan.status)
            except (ConflictError, NotFoundError):
                await self._refresh(key)
                self._queue.add(key)
                return None
        await self._act_on_all(key, taskrun, plan.actions)
        if any(isinstance(action, CreatePod) for action in plan.actions):
            again = self._clock() + _AFTER_CREATION
            return min(plan.requeue_at or again, again)
        return plan.requeue_at

    async def _decide_with_state(self, key: Key, observed: Observed) -> Plan:
        """Meet each need and decide again, until the decision is a plan."""
        taskrun = observed.taskrun
        decision = self._decide(observed, self._pod_defaults(), self._clock())
        for _ in range(_NEEDS_MAX):
            match decision:
                case Plan():
                    break
                case ReadNodes(names=names):
                    observed = replace(observed, nodes={**observed.nodes, **await self._nodes.read(names)})
                case ReadEvictions(pods=pods):
                    evictions = await self._evictions.read(key.namespace, pods)
                    observed = replace(observed, evictions={**observed.evictions, **evictions})
                case ReadEvents(pod=pod):
                    observed = replace(observed, events=await self._pod_events.read(pod.metadata))
                case ReadState():
                    observed = await self._with_state(key, observed)
                case SealState():
                    await self._executor.seal(taskrun, decision)
                    observed = await self._with_state(key, observed)
                case CopyState(source=source):
                    problem = await self._executor.copy_state(taskrun, source)
                    observed = replace(await self._with_state(key, observed), copy_problem=problem)
                case EndHolds():
                    await self._executor.end_holds(taskrun, decision)
                    observed = await self._with_state(key, observed)
                case _:
                    assert_never(decision)
            decision = self._decide(observed, self._pod_defaults(), self._clock())
        if not isinstance(decision, Plan):
            raise UnavailableError(0, "StateChanging", "the state changes as fast as it is read or sealed")
        return decision

    async def _with_state(self, key: Key, observed: Observed) -> Observed:
        """Return the observation with the state, and with the pod of the attempt that opened it."""
        state = await self._read_state(observed.taskrun)
        if isinstance(state, StateView):
            await self._find_unlabelled(observed.taskrun, state.epoch)
        return replace(observed, state=state, pods=self._pods_of(key, observed.taskrun))

    async def _act_on_all(self, key: Key, taskrun: TaskRun, actions: Sequence[Action]) -> None:
        """Carry out all actions, then raise the first error.

        So an old pod whose finalizer can't be removed does not keep the next pod from starting.
        """
        first: ClusterError | None = None
        for action in actions:
            try:
                await self._act(key, taskrun, action)
            except ClusterError as error:
                first = first or error
        if first is not None:
            raise first

    def _pods_of(self, key: Key, taskrun: TaskRun) -> tuple[Pod, ...]:
        return tuple(pod for pod in self._pods.by_key(key) if _is_of(pod.metadata, taskrun))

    async def _act(self, key: Key, taskrun: TaskRun, action: Action) -> None:
        match action:
            case CreatePod():
                if not await self._executor.create(key, taskrun, action):
                    self._queue.add(key)
            case DeletePod(makes_room=True):
                await self._executor.make_room(key, action)
            case DeletePod():
                await self._executor.delete(key.namespace, action)
            case StopPod():
                await self._executor.stop(key.namespace, action)
            case ReleasePod(pod=pod):
                await self._executor.release_pod(pod)
            case ReleaseState(name=name):
                await self._executor.release_state(taskrun.metadata, name)
            case ProtectTaskRun():
                await self._protect_taskrun(key, taskrun)
            case ReleaseTaskRun(orphans=orphans):
                if orphans is not None:
                    await self._orphan_records.write(key.namespace, orphans)
                await self._release_taskrun(key, taskrun)
            case EmitEvent():
                self._event_recorder.emit(taskrun.metadata, action)
            case _:
                assert_never(action)

    async def _protect_taskrun(self, key: Key, taskrun: TaskRun) -> None:
        try:
            protected = await self._executor.protect_taskrun(taskrun)
        except ConflictError:
            await self._refresh(key)
        except InvalidError:
            # The API server refuses a new finalizer on an object that is being deleted.
            found = await self._refresh(key)
            if found is not None and found.metadata.deletion_timestamp is None:
                raise
        else:
            await self._apply_patched(taskrun, protected)
        self._queue.add(key)

    async def _release_taskrun(self, key: Key, taskrun: TaskRun) -> None:
        try:
            released = await self._executor.release_taskrun(taskrun)
        except ConflictError:
            await self._refresh(key)
        else:
            await self._apply_patched(taskrun, released)
        self._queue.add(key)

    async def _apply_patched(self, taskrun: TaskRun, response: bytes | None) -> None:
        """Store the response to a patch of the TaskRun; None: the TaskRun is gone."""
        if response is None:
            self._taskruns.suspect(taskrun.metadata.uid)
        else:
            self._taskruns.apply_response(await self._taskruns.decode(response, reference_of(taskrun.metadata)))

    async def _record(self, taskrun: TaskRun, status: TaskRunStatus) -> TaskRun:
        """Write the fields of status that differ."""
        patch = merge_patch_of(msgspec.to_builtins(taskrun.status), msgspec.to_builtins(status))
        if not patch:
            return taskrun
        metadata = taskrun.metadata
        body = {"metadata": {"resourceVersion": metadata.resource_version, "uid": metadata.uid}, "status": patch}
        path = paths.taskruns(metadata.namespace, metadata.name, "status")
        response = await self._writer.merge_patch(path, body)
        recorded = await self._taskruns.decode(response, reference_of(metadata))
        self._taskruns.apply_response(recorded)
        self._count_cleanups(taskrun.status, status)
        return recorded

    def _count_cleanups(self, before: TaskRunStatus, after: TaskRunStatus) -> None:
        counted = {attempt.number for attempt in before.attempts if attempt.cause is not None}
        for attempt in after.attempts:
            is_new = attempt.cause is not None and attempt.number not in counted
            if is_new and attempt.purpose is AttemptPurpose.CLEANUP:
                self._metrics.cleanups.labels(result=attempt.cause).inc()

    async def _read_state(self, taskrun: TaskRun) -> StateView | AbsentState | UnreadableState:
        metadata = taskrun.metadata
        try:
            found = await self._cluster.get(
                paths.configmaps(metadata.namespace, state_name(metadata.name, metadata.uid))
            )
        except NotFoundError:
            return AbsentState()
        if not _is_of(msgspec.json.decode(found, type=PartialObject).metadata, taskrun):
            return AbsentState()
        try:
            return view_of(found)
        except UnreadableError as error:
            return UnreadableState(str(error))

    async def _namespace_ends(self, taskrun: TaskRun) -> bool:
        metadata = taskrun.metadata
        is_ending = metadata.deletion_timestamp is not None or taskrun.status.ending is not None
        if not is_ending or FINALIZER_EXTERNAL_JOBS not in metadata.finalizers:
            return False
        try:
            found = await self._cluster.get(paths.namespace_of(metadata.namespace), metadata_only=True)
        except NotFoundError:
            return True
        except ForbiddenError as error:
            _log.warning("Could not read whether namespace %s is being deleted: %s", metadata.namespace, error)
            return False
        return msgspec.json.decode(found, type=PartialObject).metadata.deletion_timestamp is not None

    async def _has_record(self, taskrun: TaskRun) -> bool:
        """Return whether a record lists the external jobs that this TaskRun left running.

        Read it if the watch does not show it, but only for a TaskRun that is about to get its
        outcome: its status names such a job, and our finalizer is removed.
        """
        metadata = taskrun.metadata
        if not taskrun.status.orphaned or FINALIZER_EXTERNAL_JOBS in metadata.finalizers:
            return True
        if self._orphan_records.is_shown(metadata):
            return True
        path = paths.configmaps(metadata.namespace, orphans_name(metadata.name, metadata.uid))
        try:
            found = await self._cluster.get(path, metadata_only=True)
        except NotFoundError:
            return False
        return msgspec.json.decode(found, type=PartialObject).metadata.labels.get(LABEL_ORPHANS) == metadata.name

    async def _find_unlabelled(self, taskrun: TaskRun, epoch: Epoch | None) -> None:
        """Read the pod of each attempt that began, has no recorded end, and no pod in the cache.

        The pod may still run: it may have lost its label, or the watch of pods may lag.
        """
        metadata, status = taskrun.metadata, taskrun.status
        cached = self._pods.by_key(Key(metadata.namespace, metadata.name))
        uids, names = ({pod.metadata.uid for pod in cached}, {pod.metadata.name for pod in cached})
        for attempt in status.attempts:
            if attempt.finish_time is None and attempt.pod_uid and attempt.pod_uid not in uids:
                await self._executor.find_unlabelled(taskrun, attempt.pod_name, attempt.purpose)
        listed = {attempt.number for attempt in status.attempts}
        if epoch is None or epoch.attempt <= status.counts.attempts or epoch.attempt in listed:
            return
        if (name := pod_name(metadata.name, metadata.uid, epoch.attempt)) not in names:
            await self._executor.find_unlabelled(taskrun, name, epoch.purpose)

    def _has_leftovers(self, key: Key, taskrun: TaskRun | None) -> bool:
        return any(
            FINALIZER_ATTEMPT in pod.metadata.finalizers and not _is_of(pod.metadata, taskrun)
            for pod in self._pods.by_key(key)
        ) or any(
            FINALIZER_STATE in state.metadata.finalizers and not _is_of(state.metadata, taskrun)
            for state in self._states.by_key(key)
        )

    async def _release_leftovers(self, key: Key, taskrun: TaskRun | None) -> datetime | None:
        """Remove our finalizer from pods and states whose TaskRun is finished or gone.

        Return when to retry. A failure does not delay a new TaskRun of the same name.
        """
        failed = False
        for pod in self._pods.by_key(key):
            if not _is_of(pod.metadata, taskrun):
                failed |= not await self._try_release(key, self._executor.release_pod(pod))
        for state in self._states.by_key(key):
            if not _is_of(state.metadata, taskrun):
                failed |= not await self._try_release(key, self._executor.release(state))
        return self._clock() + _RETRY_LEFTOVERS if failed else None

    def _evict_released(self, key: Key, taskrun: TaskRun | None) -> None:
        """Evict pods and states without our finalizers whose TaskRun is finished or gone.

        Those of an unfinished TaskRun stay, because `reattach-operator release` or a user may have
        removed the finalizer of a pod whose end is not recorded yet.
        """
        for pod in self._pods.by_key(key):
            is_released = FINALIZER_ATTEMPT not in pod.metadata.finalizers and is_terminal(pod)
            if is_released and not _is_of(pod.metadata, taskrun):
                self._pods.evict(pod.metadata.uid)
        for state in self._states.by_key(key):
            if FINALIZER_STATE not in state.metadata.finalizers and not _is_of(state.metadata, taskrun):
                self._states.evict(state.metadata.uid)

    @staticmethod
    async def _try_release(key: Key, release: Awaitable[None]) -> bool:
        try:
            await release
        except ClusterError as error:
            _log.warning("Could not release a leftover of TaskRun %s/%s: %s", *key, error)
            return False
        return True


def _is_of(metadata: ObjectMeta, taskrun: TaskRun | None) -> bool:
    return taskrun is not None and metadata.taskrun_uid == taskrun.metadata.uid
