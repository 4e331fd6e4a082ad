"""Effects of a plan on pods, states and the TaskRun. Each one may be repeated after a crash."""

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import msgspec

from reattach.api.names import (
    ANNOTATION_STOP_TIME,
    ANNOTATION_TEMPLATE_HASH,
    FINALIZER_ATTEMPT,
    FINALIZER_EXTERNAL_JOBS,
    FINALIZER_STATE,
    LABEL_ATTEMPT,
    LABEL_PURPOSE,
    LABEL_TASKRUN,
    OPERATOR_NAME,
)
from reattach.api.objects import ObjectMeta, PartialObject, Pod
from reattach.api.taskrun import AttemptPurpose, TaskRun
from reattach.cluster import (
    AlreadyExistsError,
    BadRequestError,
    Cluster,
    ClusterError,
    ConflictError,
    ForbiddenError,
    InvalidError,
    NotFoundError,
    TooManyRequestsError,
    UnauthorizedError,
    UnavailableError,
    paths,
)
from reattach.cluster.errors import is_too_large, is_webhook_denial
from reattach.planner.plan import CreatePod, DeletePod, EndHolds, PodRejection, PodRejectionKind, SealState, StopPod
from reattach.planner.pods import template_of_pod
from reattach.planner.retention import is_kept
from reattach.runtime.object_store import ObjectStore
from reattach.runtime.workqueue import Key
from reattach.runtime.writer import Writer
from reattach.state import RequestRejectedError, RunReference, Store
from reattach.taskrun.pod_rejections import describe_template_error, excess_pods_of, rejection_kind_of
from reattach.taskrun.quota_backoff import QuotaBackoff

_RETRY_SECONDS = 2.0
_RETRY_SECONDS_MAX = 60.0
_LONG_WAIT = timedelta(minutes=10)
"""Wait for a full quota, and for a pod that is too large to be stored.

The end of a pod or a probe usually ends the wait for a quota sooner.
"""

_RECOUNT_SECONDS = timedelta(seconds=15)
"""Time in which the quota controller counts a deleted pod. Usually it takes less than a second."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _RecordedRejection:
    """Last rejection of a TaskRun's next pod. `times`: rejections of this pod in a row.

    `template_hash` and `response`: what was rejected, and the API server's message; empty if the
    template must be checked again. `room_at`: when kept pods were last deleted to make room.
    """

    uid: str
    rejection: PodRejection
    purpose: AttemptPurpose
    times: int
    template_hash: str
    response: str
    room_at: datetime | None = None

    def is_about_next(self, taskrun: TaskRun) -> bool:
        """Return whether the next pod is of the same kind.

        Once the run ends, the next pod has the same number but is a cleanup pod.
        """
        is_ending = taskrun.status.ending is not None
        purpose = AttemptPurpose.CLEANUP if is_ending else AttemptPurpose.RUN
        return (self.uid, self.purpose) == (taskrun.metadata.uid, purpose)

    def is_of(self, taskrun: TaskRun, action: CreatePod) -> bool:
        """Return whether this pod was rejected."""
        rejected = (self.uid, self.rejection.attempt, self.purpose, self.template_hash)
        return rejected == (taskrun.metadata.uid, action.attempt, action.purpose, action.template_hash)


class PlanExecutor:
    """Carries out the actions of plans, and remembers which pods were rejected."""

    def __init__(
        self,
        cluster: Cluster,
        writer: Writer,
        pods: ObjectStore[Pod],
        states: ObjectStore[PartialObject],
        *,
        enqueue: Callable[[Key], None],
        clock: Callable[[], datetime],
    ) -> None:
        self._cluster = cluster
        self._writer = writer
        self._pods = pods
        self._states = states
        self._enqueue = enqueue
        self._clock = clock
        self._quota = QuotaBackoff()
        self._store = Store(writer, field_manager=OPERATOR_NAME)
        self._rejections: dict[Key, _RecordedRejection] = {}

    def rejection(self, key: Key, taskrun: TaskRun) -> PodRejection | None:
        """Return the rejection of this TaskRun's next pod, if the last creation was rejected."""
        recorded = self._rejections.get(key)
        if recorded is None or not recorded.is_about_next(taskrun):
            return None
        if recorded.rejection.kind is PodRejectionKind.QUOTA and not self._quota.is_waiting(key):
            return replace(recorded.rejection, retry_at=self._clock())
        return recorded.rejection

    def forget(self, key: Key) -> None:
        """Forget the rejection of a TaskRun that is finished or gone."""
        self._rejections.pop(key, None)
        self._quota.forget(key)

    def admit_quota_probes(self) -> None:
        """Enqueue the TaskRuns that may try again whether the quota of their namespace has room."""
        self._enqueue_all(self._quota.due())

    def _enqueue_all(self, keys: Iterable[Key]) -> None:
        for key in keys:
            self._enqueue(key)

    # -- pods --------------------------------------------------------------------------------------

    async def create(self, key: Key, taskrun: TaskRun, action: CreatePod) -> bool:
        """Create the pod. Return False if it was rejected; `rejection` then returns why.

        A created pod does not enqueue its TaskRun. The caller must reconcile it again soon.

        Raises `UnavailableError` if the response was lost. A retry finds the pod if it exists.
        """
        namespace = taskrun.metadata.namespace
        if not self._quota.may_create(key, action.quota_size):
            message = f"Another pod was rejected: {self._quota.message_of(namespace)}"
            self._record_rejection(key, taskrun, action, PodRejectionKind.QUOTA, message=message)
            return False
        try:
            created = await self._writer.create(paths.pods(namespace), action.body, fieldValidation="Strict")
        except AlreadyExistsError as error:
            if not await self._accept_existing(taskrun, action):
                self._record_rejection(key, taskrun, action, PodRejectionKind.NAME_TAKEN, message=error.message)
                return False
        except ClusterError as error:
            if _is_of_the_call(error):
                raise
            await self._on_rejected(key, taskrun, action, error)
            return False
        else:
            self._pods.upsert(msgspec.json.decode(created, type=Pod), notify=False)
        self._rejections.pop(key, None)
        self._enqueue_all(self._quota.on_created(key))
        return True

    async def delete(self, namespace: str, action: DeletePod) -> Pod | None:
        """Delete the pod, unless another pod has its name. Return it; None if it is gone."""
        path = paths.pods(namespace, action.name)
        return await self._write_pod(path, action.uid, self._writer.delete(path, uid=action.uid))

    async def make_room(self, key: Key, action: DeletePod) -> None:
        """Delete a kept pod, so that the quota has room, and try the next pod soon.

        If the deletion is refused, for example by a policy, wait for the quota like others.
        """
        is_deleted = True
        try:
            await self.delete(key.namespace, action)
        except ClusterError as error:
            if _is_of_the_call(error):
                raise
            is_deleted = False
            _log.warning("Could not delete the kept pod %s/%s: %s", key.namespace, action.name, error)
        if (last := self._rejections.get(key)) is not None:
            left = max(last.rejection.excess_pods - 1, 0) if is_deleted else 0
            rejection = replace(last.rejection, excess_pods=left)
            self._rejections[key] = replace(last, rejection=rejection, room_at=self._clock())
        if is_deleted:
            self._enqueue_all(self._quota.on_room_made(key))

    async def stop(self, namespace: str, action: StopPod) -> None:
        """Let the kubelet end the pod, without a deletion, which would remove the pod and its log.

        The pod is deleted if that is refused, for example by a policy or a webhook of the cluster.
        """
        body = {
            "metadata": {"uid": action.uid, "annotations": {ANNOTATION_STOP_TIME: action.time.isoformat()}},
            "spec": {"activeDeadlineSeconds": 1},
        }
        path = paths.pods(namespace, action.name)
        try:
            await self._write_pod(path, action.uid, self._writer.merge_patch(path, body))
        except ClusterError as error:
            is_refused = isinstance(error, BadRequestError | ForbiddenError | InvalidError)
            if not is_refused and not is_webhook_denial(error):
                raise
            _log.warning("Deleting pod %s/%s, because it can't be kept: %s", namespace, action.name, error)
            await self.delete(namespace, DeletePod(action.name, action.uid))

    async def _write_pod(self, path: str, uid: str, write: Awaitable[bytes]) -> Pod | None:
        """Send a write with a precondition on the pod's UID. Return the pod; None if it is gone."""
        try:
            response = await write
        except NotFoundError:
            self._pods.delete(uid)
            return None
        except ConflictError:
            # Another pod has the name, or an admission webhook rejected the write with 409.
            if await self._refresh(path, ObjectMeta(uid=uid), self._pods, Pod) is not None:
                raise
            return None
        pod = msgspec.json.decode(response, type=Pod)
        if pod.metadata.uid != uid:  # the pod is gone, and the response is a Status
            return None
        self._pods.upsert(pod)
        return pod

    async def release_pod(self, pod: Pod) -> None:
        """Remove our finalizer from the pod, and delete the pod before if it is not kept.

        If the pod has changed since it was read, only read it again, because a new decision is
        needed. A pod without an owner (after kubectl delete --cascade=orphan) is not deleted.
        """
        metadata = pod.metadata
        is_ours = FINALIZER_ATTEMPT in metadata.finalizers and metadata.taskrun_uid is not None
        if is_ours and metadata.deletion_timestamp is None and not is_kept(pod):
            deleted = await self.delete(metadata.namespace, DeletePod(metadata.name, metadata.uid))
            if deleted is None:
                return
            pod = deleted
        path = paths.pods(pod.metadata.namespace, pod.metadata.name)
        if await self._release(path, pod.metadata, FINALIZER_ATTEMPT, self._pods, Pod):
            self._enqueue_all(self._quota.on_pod_ended(pod.metadata.namespace))

    async def find_unlabelled(self, taskrun: TaskRun, name: str, purpose: AttemptPurpose) -> None:
        """Read a pod of this TaskRun that the watch does not show, and restore its labels."""
        try:
            pod = await self._get(taskrun.metadata.namespace, name)
        except NotFoundError:
            return
        if pod.metadata.taskrun_uid == taskrun.metadata.uid:
            await self._label(pod, labels_of(taskrun, pod.metadata.name.rpartition("-")[2], purpose))

    async def _accept_existing(self, taskrun: TaskRun, action: CreatePod) -> bool:
        """Return whether the existing pod is the one to create, and restore its labels if so.

        An earlier creation, whose response was lost, may have created it.
        """
        try:
            pod = await self._get(taskrun.metadata.namespace, action.name)
        except NotFoundError:
            raise UnavailableError(0, "Vanished", f"pod {action.name} existed and was deleted meanwhile") from None
        if not is_expected_pod(pod, taskrun, action):
            return False
        await self._label(pod, labels_of(taskrun, str(action.attempt), action.purpose))
        return True

    async def _label(self, pod: Pod, labels: Mapping[str, str]) -> None:
        if any(pod.metadata.labels.get(name) != value for name, value in labels.items()):
            _log.warning("Pod %s/%s had lost its labels. Restoring them.", pod.metadata.namespace, pod.metadata.name)
            path = paths.pods(pod.metadata.namespace, pod.metadata.name)
            body = {"metadata": {"uid": pod.metadata.uid, "labels": labels}}
            pod = msgspec.json.decode(await self._writer.merge_patch(path, body), type=Pod)
        self._pods.upsert(pod)

    async def _get(self, namespace: str, name: str) -> Pod:
        return msgspec.json.decode(await self._cluster.get(paths.pods(namespace, name)), type=Pod)

    async def _on_rejected(self, key: Key, taskrun: TaskRun, action: CreatePod, error: ClusterError) -> None:
        kind, message, is_decided = rejection_kind_of(error, action.name), error.message, True
        if kind is PodRejectionKind.INVALID:
            kind, message, is_decided = await self._kind_by_template(key, taskrun, action, error)
        if kind is PodRejectionKind.QUOTA:
            self._quota.on_rejected(key, action.quota_size, error.message)
        else:
            self._quota.forget(key)
        self._record_rejection(key, taskrun, action, kind, message=message, error=error, is_decided=is_decided)

    async def _kind_by_template(
        self, key: Key, taskrun: TaskRun, action: CreatePod, error: ClusterError
    ) -> tuple[PodRejectionKind, str, bool]:
        """Return whether the template itself is invalid, the message to show, and if that is final.

        Defaults of a LimitRange, and webhooks that change pods, can make a pod invalid whose
        template is valid. They don't apply to a PodTemplate, so its dry run shows the difference.
        The check is not repeated while the API server rejects the pod with the same message, unless
        the check failed.
        """
        last = self._rejections.get(key)
        if last is not None and last.is_of(taskrun, action) and last.response == error.message:
            return last.rejection.kind, last.rejection.message, True
        path = paths.podtemplates(taskrun.metadata.namespace)
        try:
            await self._writer.create(path, template_of_pod(action.body), dryRun="All", fieldValidation="Strict")
        except ClusterError as refusal:
            if _is_of_the_call(refusal):
                raise
            kind = rejection_kind_of(refusal, action.name, "podtemplates")
            if kind is PodRejectionKind.INVALID:
                return kind, describe_template_error(refusal), True
            _log.warning(
                "Could not check the template of TaskRun %s/%s, so its rejected pod does not end it: %s", *key, refusal
            )
            return PodRejectionKind.FORBIDDEN, error.message, kind is not PodRejectionKind.ERROR
        return PodRejectionKind.FORBIDDEN, error.message, True

    def _record_rejection(
        self,
        key: Key,
        taskrun: TaskRun,
        action: CreatePod,
        kind: PodRejectionKind,
        *,
        message: str,
        error: ClusterError | None = None,
        is_decided: bool = True,
    ) -> None:
        """Record a rejection. `error`: of this creation; None if it was not sent."""
        now, last = self._clock(), self._rejections.get(key)
        if last is not None and not last.is_of(taskrun, action):
            last = None
        times = last.times + 1 if last else 1
        at_least = (error.retry_after if error else None) or 0
        wait = timedelta(seconds=max(min(_RETRY_SECONDS * 2 ** min(times - 1, 10), _RETRY_SECONDS_MAX), at_least))
        is_patient = kind is PodRejectionKind.QUOTA or (error is not None and is_too_large(error))
        retry_at = now + (_LONG_WAIT if is_patient else wait)
        room_at = last.room_at if last else None
        is_counted = room_at is None or room_at + _RECOUNT_SECONDS <= now
        excess = excess_pods_of(error, action.name) if error and is_counted else 0
        self._rejections[key] = _RecordedRejection(
            taskrun.metadata.uid,
            PodRejection(kind, action.attempt, message, retry_at, excess),
            action.purpose,
            times,
            action.template_hash,
            error.message if error and is_decided else "",
            room_at,
        )

    # -- the TaskRun itself ------------------------------------------------------------------------

    async def protect_taskrun(self, taskrun: TaskRun) -> bytes | None:
        """Add our finalizer to the TaskRun. Return its JSON; None if it is gone.

        Raises `ConflictError` if the TaskRun has changed since it was read, and `InvalidError` if
        it is being deleted.
        """
        metadata = taskrun.metadata
        body = _with_finalizers(metadata, [*metadata.finalizers, FINALIZER_EXTERNAL_JOBS])
        try:
            return await self._writer.merge_patch(paths.taskruns(metadata.namespace, metadata.name), body)
        except NotFoundError:
            return None

    async def release_taskrun(self, taskrun: TaskRun) -> bytes | None:
        """Remove our finalizer from the TaskRun. Return its JSON; None if it is gone.

        Raises `ConflictError` if the TaskRun has changed since it was read, because it may have a
        new external job.
        """
        metadata = taskrun.metadata
        path = paths.taskruns(metadata.namespace, metadata.name)
        try:
            return await self._writer.merge_patch(path, _without_finalizer(metadata, FINALIZER_EXTERNAL_JOBS))
        except NotFoundError:
            return None

    # -- states ------------------------------------------------------------------------------------

    async def seal(self, taskrun: TaskRun, action: SealState) -> None:
        """Seal the state.

        A rejection is only logged. It means that the state is lost, unreadable or gone, which the
        following read shows.
        """
        run = _run_of(taskrun)
        try:
            await self._store.seal(run, action.through_attempt, action.purpose)
        except RequestRejectedError as error:
            _log.warning("Could not seal the state of TaskRun %s/%s: %s", run.namespace, run.name, error)

    async def end_holds(self, taskrun: TaskRun, action: EndHolds) -> None:
        """End the holds of external jobs in the state. A rejection is only logged, as by `seal`."""
        run = _run_of(taskrun)
        try:
            await self._store.end_holds(run, action.jobs)
        except RequestRejectedError as error:
            _log.warning("Could not end a hold of TaskRun %s/%s: %s", run.namespace, run.name, error)

    async def copy_state(self, taskrun: TaskRun, source: str) -> str | None:
        """Create the state with the keys of another TaskRun, unless the state exists.

        Return why not, as a sentence about what must hold.
        """
        return await self._store.copy(_run_of(taskrun), source, self._clock(), taskrun.spec.state.metadata)

    async def release_state(self, owner: ObjectMeta, name: str) -> None:
        """Remove our finalizer from the state of that name, if it is this TaskRun's."""
        states = self._states.by_key(Key(owner.namespace, owner.name))
        cached = next((state for state in states if state.metadata.name == name), None)
        try:
            state = cached or await self._get_state(paths.configmaps(owner.namespace, name))
        except NotFoundError:
            return
        if state.metadata.taskrun_uid == owner.uid:
            await self.release(state)

    async def release(self, state: PartialObject) -> None:
        """Remove our finalizer from a state.

        If the state has changed since it was read, only read it again.
        """
        path = paths.configmaps(state.metadata.namespace, state.metadata.name)
        await self._release(path, state.metadata, FINALIZER_STATE, self._states, PartialObject)

    async def _get_state(self, path: str) -> PartialObject:
        return msgspec.json.decode(await self._cluster.get(path, metadata_only=True), type=PartialObject)

    async def _release(
        self, path: str, metadata: ObjectMeta, finalizer: str, store: ObjectStore[Any], kind: type[Any]
    ) -> bool:
        """Remove a finalizer. Return whether this call removed it."""
        if finalizer not in metadata.finalizers:
            return False
        try:
            response = await self._writer.merge_patch(path, _without_finalizer(metadata, finalizer))
        except NotFoundError:
            store.delete(metadata.uid)
            return False
        except ConflictError:
            found = await self._refresh(path, metadata, store, kind)
            if found is None or LABEL_TASKRUN in found.metadata.labels:
                return False
            # The watch does not show it, so no event would lead to another try.
            return await self._release(path, found.metadata, finalizer, store, kind)
        released = msgspec.json.decode(response, type=kind)
        if LABEL_TASKRUN in released.metadata.labels:
            store.upsert(released)
        return True

    async def _refresh(self, path: str, metadata: ObjectMeta, store: ObjectStore[Any], kind: type[Any]) -> Any | None:
        """Read an object again into its store. Return it; None if it is gone.

        An object without our label leaves the store, because the label gives its key.
        """
        try:
            content = await self._cluster.get(path, metadata_only=kind is PartialObject)
            found = msgspec.json.decode(content, type=kind)
        except NotFoundError:
            store.delete(metadata.uid)
            return None
        if found.metadata.uid != metadata.uid:
            store.delete(metadata.uid)
            return None
        if LABEL_TASKRUN in found.metadata.labels:
            store.upsert(found)
        else:
            store.delete(metadata.uid, version=found.metadata.resource_version)
        return found


def _is_of_the_call(error: ClusterError) -> bool:
    """Return whether the error is about the call or the connection, not about the object."""
    is_about_call = error.status == 0 or isinstance(error, UnauthorizedError | TooManyRequestsError)
    return is_about_call and not is_webhook_denial(error)


def is_expected_pod(pod: Pod, taskrun: TaskRun, creation: CreatePod) -> bool:
    """Return whether `pod`, which has the name of an attempt's pod, was created for the attempt.

    The controller, the hash of the template and the purpose are compared. A Run pod whose creation
    was delayed must not pass for a cleanup pod of the same number, because it would run the task.
    """
    return (
        pod.metadata.taskrun_uid == taskrun.metadata.uid
        and pod.metadata.annotations.get(ANNOTATION_TEMPLATE_HASH) == creation.template_hash
        and pod.metadata.labels.get(LABEL_PURPOSE, AttemptPurpose.RUN) == creation.purpose
    )


def _run_of(taskrun: TaskRun) -> RunReference:
    return RunReference(taskrun.metadata.namespace, taskrun.metadata.name, taskrun.metadata.uid)


def labels_of(taskrun: TaskRun, attempt: str, purpose: AttemptPurpose) -> dict[str, str]:
    """Return the labels by which the watch and the state API know a pod."""
    labels = {LABEL_TASKRUN: taskrun.metadata.name, LABEL_ATTEMPT: attempt}
    return labels if purpose is AttemptPurpose.RUN else {**labels, LABEL_PURPOSE: purpose.value}


def _without_finalizer(metadata: ObjectMeta, finalizer: str) -> dict[str, Any]:
    """Return the merge patch that removes a finalizer from exactly this version."""
    return _with_finalizers(metadata, [name for name in metadata.finalizers if name != finalizer])


def _with_finalizers(metadata: ObjectMeta, finalizers: Sequence[str]) -> dict[str, Any]:
    return {"metadata": {"uid": metadata.uid, "resourceVersion": metadata.resource_version, "finalizers": finalizers}}
