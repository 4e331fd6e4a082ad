"""Carries out what was decided. Each of these may be done again, by this process or the next, and does no harm."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import msgspec

from reattach.api.names import (
    ANNOTATION_TEMPLATE_HASH,
    FINALIZER_ATTEMPT,
    FINALIZER_EXTERNAL_JOBS,
    FINALIZER_STATE,
    KIND,
    LABEL_ATTEMPT,
    LABEL_TASKRUN,
    OPERATOR_NAME,
)
from reattach.api.objects import ObjectMeta, PartialObject, Pod
from reattach.api.taskrun import TaskRun
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
from reattach.cluster.errors import NO_REASON
from reattach.planner.plan import CreatePod, DeletePod, PodRejection, PodRejectionKind, SealState
from reattach.runtime.object_store import ObjectStore
from reattach.runtime.workqueue import Key
from reattach.runtime.writer import Writer
from reattach.state import RequestRejectedError, RunReference, Store

_ASK_AGAIN_SECONDS = 2.0
_ASK_AGAIN_SECONDS_MAX = 60.0
_TOO_LARGE = 413

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Rejection:
    """The last refusal, of which TaskRun, and how many there were in a row."""

    uid: str
    refusal: PodRejection
    times: int


class PlanExecutor:
    """The effects on pods and states, and the memory of which pods were refused."""

    def __init__(
        self,
        cluster: Cluster,
        writer: Writer,
        pods: ObjectStore[Pod],
        states: ObjectStore[PartialObject],
        clock: Callable[[], datetime],
    ) -> None:
        self._cluster = cluster
        self._writer = writer
        self._pods = pods
        self._states = states
        self._clock = clock
        # The calls that a Store makes, under the rules of all our writes.
        self._store = Store(writer, field_manager=OPERATOR_NAME)
        self._refused: dict[Key, _Rejection] = {}

    def refusal(self, key: Key, taskrun: TaskRun) -> PodRejection | None:
        """The API server's last answer to the creation of this TaskRun's next pod, if it was a refusal."""
        refused = self._refused.get(key)
        return refused.refusal if refused and refused.uid == taskrun.metadata.uid else None

    def forget(self, key: Key) -> None:
        """There is no unfinished TaskRun of this key any more."""
        self._refused.pop(key, None)

    # -- pods --------------------------------------------------------------------------------------

    async def create(self, key: Key, taskrun: TaskRun, action: CreatePod) -> bool:
        """Create the pod; false if it was refused, which `refusal` then tells.

        Raises `UnavailableError` if it isn't known whether it was made: asking again finds it.
        """
        about = taskrun.metadata
        try:
            made = await self._writer.create(paths.pods(about.namespace), action.body, fieldValidation="Strict")
        except AlreadyExistsError as error:
            if not await self._claim(taskrun, action):
                self._refuse(key, taskrun, action, PodRejectionKind.NAME_TAKEN, error)
                return False
        except (UnauthorizedError, TooManyRequestsError):
            raise
        except ClusterError as error:
            if error.status == 0:
                raise
            self._refuse(key, taskrun, action, kind_of(error), error)
            return False
        else:
            self._pods.upsert(msgspec.json.decode(made, type=Pod))
        self._refused.pop(key, None)
        return True

    async def delete(self, taskrun: TaskRun, action: DeletePod) -> None:
        """Delete the pod, if it is still this one."""
        try:
            left = await self._writer.delete(paths.pods(taskrun.metadata.namespace, action.name), uid=action.uid)
        except NotFoundError:
            self._pods.delete(action.uid)
            return
        except ConflictError:
            # Another pod has the name by now; or somebody's webhook refused, as it likes.
            path = paths.pods(taskrun.metadata.namespace, action.name)
            if await self._learn_anew(path, ObjectMeta(uid=action.uid), self._pods, Pod) is not None:
                raise
            return
        pod = msgspec.json.decode(left, type=Pod)
        if pod.metadata.uid == action.uid:  # else it is gone, and the answer a Status
            self._pods.upsert(pod)

    async def release_pod(self, pod: Pod) -> None:
        """Take our finalizer off. If the pod has changed since it was seen, only learn how: the next look decides anew."""
        await self._release(
            paths.pods(pod.metadata.namespace, pod.metadata.name), pod.metadata, FINALIZER_ATTEMPT, self._pods, Pod
        )

    async def find(self, taskrun: TaskRun, name: str) -> None:
        """Look for a pod of this TaskRun that no watch shows; if it is there, put its labels back, so that the watch does."""
        try:
            pod = await self._get(taskrun.metadata.namespace, name)
        except NotFoundError:
            return
        if controller_of(pod.metadata, KIND) == taskrun.metadata.uid:
            await self._label(pod, labels_of(taskrun, pod.metadata.name.rpartition("-")[2]))

    async def _claim(self, taskrun: TaskRun, action: CreatePod) -> bool:
        """Whether the pod of that name is the one that we meant to make, made before the answer was lost."""
        try:
            pod = await self._get(taskrun.metadata.namespace, action.body["metadata"]["name"])
        except NotFoundError:
            raise UnavailableError(
                0, "Vanished", f"pod {action.body['metadata']['name']} was there and is gone"
            ) from None
        if not is_meant(pod, taskrun, action.body):
            return False
        await self._label(pod, labels_of(taskrun, str(action.attempt)))
        return True

    async def _label(self, pod: Pod, labels: Mapping[str, str]) -> None:
        if any(pod.metadata.labels.get(name) != value for name, value in labels.items()):
            _log.warning("Pod %s/%s had lost its labels; they are put back.", pod.metadata.namespace, pod.metadata.name)
            path = paths.pods(pod.metadata.namespace, pod.metadata.name)
            body = {"metadata": {"uid": pod.metadata.uid, "labels": labels}}
            pod = msgspec.json.decode(await self._writer.merge_patch(path, body), type=Pod)
        self._pods.upsert(pod)

    async def _get(self, namespace: str, name: str) -> Pod:
        return msgspec.json.decode(await self._cluster.get(paths.pods(namespace, name)), type=Pod)

    def _refuse(
        self, key: Key, taskrun: TaskRun, action: CreatePod, kind: PodRejectionKind, error: ClusterError
    ) -> None:
        before = self._refused.get(key)
        again = before is not None and before.uid == taskrun.metadata.uid and before.refusal.attempt == action.attempt
        times = before.times + 1 if before and again else 1
        wait = max(min(_ASK_AGAIN_SECONDS * 2 ** min(times - 1, 10), _ASK_AGAIN_SECONDS_MAX), error.retry_after or 0)
        refusal = PodRejection(kind, action.attempt, error.message, self._clock() + timedelta(seconds=wait))
        self._refused[key] = _Rejection(taskrun.metadata.uid, refusal, times)

    # -- the TaskRun itself ------------------------------------------------------------------------

    async def release_taskrun(self, taskrun: TaskRun) -> TaskRun | None:
        """Take our finalizer off, and give what is left; None if it is gone.

        Raises `ConflictError` if the TaskRun has changed since it was seen: there may be a new external job.
        """
        about = taskrun.metadata
        others = [name for name in about.finalizers if name != FINALIZER_EXTERNAL_JOBS]
        body = {"metadata": {"uid": about.uid, "resourceVersion": about.resource_version, "finalizers": others}}
        try:
            left = await self._writer.merge_patch(paths.taskruns(about.namespace, about.name), body)
        except NotFoundError:
            return None
        return msgspec.json.decode(left, type=TaskRun)

    # -- states ------------------------------------------------------------------------------------

    async def seal(self, taskrun: TaskRun, action: SealState) -> None:
        """Seal the state. A refusal tells that it is lost, unreadable or gone: what is read next says so."""
        about = taskrun.metadata
        run = RunReference(about.namespace, about.name, about.uid)
        try:
            await self._store.seal(run, action.through_attempt, action.purpose)
        except RequestRejectedError as error:
            _log.warning("The state of TaskRun %s/%s could not be sealed: %s", about.namespace, about.name, error)

    async def release_state(self, owner: ObjectMeta, name: str) -> None:
        """Take our finalizer off the state of that name, if it is this TaskRun's."""
        seen = [state for state in self._states.by_key(Key(owner.namespace, owner.name)) if state.metadata.name == name]
        try:
            state = seen[0] if seen else await self._get_state(paths.configmaps(owner.namespace, name))
        except NotFoundError:
            return
        if controller_of(state.metadata, KIND) == owner.uid:
            await self.release(state)

    async def release(self, state: PartialObject) -> None:
        """Take our finalizer off a state. If it has changed since it was seen, only learn how."""
        about = state.metadata
        path = paths.configmaps(about.namespace, about.name)
        await self._release(path, about, FINALIZER_STATE, self._states, PartialObject)

    async def _get_state(self, path: str) -> PartialObject:
        return msgspec.json.decode(await self._cluster.get(path, metadata_only=True), type=PartialObject)

    async def _release(
        self, path: str, about: ObjectMeta, finalizer: str, cache: ObjectStore[Any], kind: type[Any]
    ) -> None:
        if finalizer not in about.finalizers:
            return
        others = [name for name in about.finalizers if name != finalizer]
        body = {"metadata": {"uid": about.uid, "resourceVersion": about.resource_version, "finalizers": others}}
        try:
            left = await self._writer.merge_patch(path, body)
        except NotFoundError:
            cache.delete(about.uid)
        except ConflictError:
            found = await self._learn_anew(path, about, cache, kind)
            if found is not None and LABEL_TASKRUN not in found.metadata.labels:
                # No watch will show it again.
                await self._release(path, found.metadata, finalizer, cache, kind)
        else:
            released = msgspec.json.decode(left, type=kind)
            if LABEL_TASKRUN in released.metadata.labels:
                cache.upsert(released)

    async def _learn_anew(self, path: str, about: ObjectMeta, cache: ObjectStore[Any], kind: type[Any]) -> Any | None:
        """What is at `path` now, if it still is this object. One that has lost our label is not kept: it belongs to no key."""
        try:
            content = await self._cluster.get(path, metadata_only=kind is PartialObject)
            found = msgspec.json.decode(content, type=kind)
        except NotFoundError:
            cache.delete(about.uid)
            return None
        if found.metadata.uid != about.uid:
            cache.delete(about.uid)
            return None
        if LABEL_TASKRUN in found.metadata.labels:
            cache.upsert(found)
        else:
            cache.delete(about.uid, version=found.metadata.resource_version)
        return found


def kind_of(error: ClusterError) -> PodRejectionKind:
    """What a refusal of a pod means for the next try.

    An admission policy or webhook refuses by 400, 403 or 422 as it likes; policies change, so that is never the template's end.
    """
    if "ValidatingAdmissionPolicy" in error.message or "admission webhook" in error.message:
        return PodRejectionKind.FORBIDDEN
    if isinstance(error, ForbiddenError):
        return PodRejectionKind.QUOTA if "exceeded quota" in error.message else PodRejectionKind.FORBIDDEN
    is_final = isinstance(error, BadRequestError | InvalidError) or error.status == _TOO_LARGE
    # Without a reason it is the word of something in between, such as a proxy.
    return PodRejectionKind.INVALID if is_final and error.reason != NO_REASON else PodRejectionKind.ERROR


def is_meant(pod: Pod, taskrun: TaskRun, body: Mapping[str, Any]) -> bool:
    """Whether `pod`, which has the name of `body`, was made from it: by its controller and the hash of the template."""
    wanted = body["metadata"]["annotations"][ANNOTATION_TEMPLATE_HASH]
    return (
        controller_of(pod.metadata, KIND) == taskrun.metadata.uid
        and pod.metadata.annotations.get(ANNOTATION_TEMPLATE_HASH) == wanted
    )


def labels_of(taskrun: TaskRun, attempt: str) -> dict[str, str]:
    """The labels by which a pod is found."""
    return {LABEL_TASKRUN: taskrun.metadata.name, LABEL_ATTEMPT: attempt}


def controller_of(about: ObjectMeta, kind: str) -> str | None:
    """The UID of the controller, if it is of this kind."""
    return next((owner.uid for owner in about.owner_references if owner.controller and owner.kind == kind), None)
