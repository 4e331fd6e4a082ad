"""The state in the cluster: every read is one quorum read, every change one compare-and-set on the resourceVersion.

No value is ever kept in memory, so any number of replicas may serve the same TaskRun. What is kept is which ConfigMap is a TaskRun's
state (`status.state.uid`, which never changes once set): with it a call needs to look at nothing but the ConfigMap.
"""

import asyncio
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import msgspec

from reattach.api.messages import ProblemCode
from reattach.api.names import (
    ANNOTATION_SUMMARY,
    API_VERSION,
    FINALIZER_EXTERNAL_JOBS,
    FINALIZER_STATE,
    KIND,
    LABEL_TASKRUN,
    OPERATOR_NAME,
    state_name,
)
from reattach.api.state import JobCounts, SealPurpose
from reattach.cluster import ConflictError, KubernetesClient, NotFoundError
from reattach.cluster.paths import configmaps, taskruns
from reattach.state.codec import DurableState, StoredState, from_configmap, summary_annotation_of, to_configmap, to_data
from reattach.state.errors import RequestRejectedError, UnreadableError
from reattach.state.operations import Session, expire, open_state, seal
from reattach.state.owner import Owner

TRIES = 12
"""How often a change is tried against writers on other replicas; those on this one wait for each other."""
KNOWN_MAX = 10_000
_FIRST_PAUSE, _LONGEST_PAUSE = 0.01, 0.5
STATE_API_NAME = OPERATOR_NAME.replace("operator", "state-api")
"""The field manager of the state API's writes."""

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class RunReference:
    """Which TaskRun a caller belongs to."""

    namespace: str
    name: str
    uid: str


class Store:
    """Reads and changes the states of TaskRuns.

    Raises `RequestRejectedError`, and of the errors of `reattach.cluster` those that say nothing about the state (unavailable, forbidden, too
    many requests): whether a change was carried out is then not known, and the same request may be asked again under its id.
    """

    def __init__(
        self,
        client: KubernetesClient,
        *,
        on_conflict: Callable[[], None] = lambda: None,
        field_manager: str = STATE_API_NAME,
    ) -> None:
        self._client = client
        self._on_conflict = on_conflict
        self._field_manager = field_manager
        self._known: dict[str, str] = {}  # TaskRun UID -> UID of its ConfigMap
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def open(self, run: RunReference, writer: Session, now: datetime, *, can_cleanup: bool = False) -> bool:
        """`operations.open_state`, on a state that is created if there never was one. Acknowledged only once `status.state` names it."""
        async with self._lock(run):
            for number in range(TRIES):
                try:
                    return await self._try_open(run, writer, now, can_cleanup=can_cleanup)
                except ConflictError:
                    # Another replica was faster, with the TaskRun or the ConfigMap (AlreadyExists).
                    await self._pause(number)
        raise _too_many_writers()

    async def read(self, run: RunReference) -> DurableState:
        """The state as of now."""
        return (await self._read(run)).state

    async def change(self, run: RunReference, act: Callable[[DurableState], tuple[DurableState, Answer]]) -> Answer:
        """Do `act` (called again after each lost race) on the newest state. If it changes nothing, nothing is written."""
        async with self._lock(run):
            for number in range(TRIES):
                stored = await self._read(run)
                state, answer = act(stored.state)
                if state == stored.state:
                    return answer
                try:
                    await self._replace(run, stored, state)
                except ConflictError:
                    await self._pause(number)
                except NotFoundError:
                    # Gone since it was read: the next read tells why.
                    self._known.pop(run.uid, None)
                else:
                    return answer
        raise _too_many_writers()

    async def change_with_owner(
        self, run: RunReference, act: Callable[[DurableState, Owner], tuple[DurableState, Answer]]
    ) -> Answer:
        """`change`, for what also depends on the TaskRun, which is read before the state.

        Before a state with an open external job is stored, the TaskRun gets the finalizer that keeps it until somebody has said what
        becomes of the job. None that is being deleted can get it any more; `intend` begins nothing for such a one.
        """
        async with self._lock(run):
            for number in range(TRIES):
                owner = await self._taskrun(run)
                stored = await self._of(run, owner)
                state, answer = act(stored.state, owner)
                if state == stored.state:
                    return answer
                try:
                    if any(record.is_open for record in state.jobs.values()) and not owner.is_over:
                        await self._claim(run, owner)
                    await self._replace(run, stored, state)
                except ConflictError:
                    await self._pause(number)
                except NotFoundError:
                    self._known.pop(run.uid, None)
                else:
                    return answer
        raise _too_many_writers()

    async def seal(self, run: RunReference, through: int, purpose: SealPurpose) -> None:
        """`operations.seal`, on a state that is created if there never was one, so that no attempt can open it later. Asked again it
        changes nothing. Raises `RequestRejectedError`: `state-lost`, `format-unknown`, or `closing` if the TaskRun is gone.
        """
        async with self._lock(run):
            for number in range(TRIES):
                try:
                    await self._try_seal(run, through, purpose)
                except ConflictError:
                    await self._pause(number)
                except NotFoundError:
                    self._known.pop(run.uid, None)
                else:
                    return
        raise _too_many_writers()

    async def sweep(self, run: RunReference, now: datetime) -> int:
        """Remove the keys that have expired from the state of a run that is over, which our finalizer's absence tells; how many.

        Whoever writes it meanwhile, be it a person, is not in the way: the next sweep does what this one could not.
        """
        stored = await self._configmap(run)
        if stored is None or FINALIZER_STATE in stored.metadata.finalizers:
            return 0
        swept = expire(stored.state, now)
        if swept == stored.state:
            return 0
        try:
            await self._replace(run, stored, swept)
        except (ConflictError, NotFoundError):
            return 0
        return len(stored.state.records) - len(swept.records)

    async def _try_seal(self, run: RunReference, through: int, purpose: SealPurpose) -> None:
        owner = await self._taskrun(run)
        stored = await self._configmap(run)
        _check_not_lost(owner, stored)
        await self._keep(run, owner, stored, seal(_before(owner, stored), through, purpose))

    async def _try_open(self, run: RunReference, writer: Session, now: datetime, *, can_cleanup: bool) -> bool:
        # The TaskRun before the ConfigMap: what `status.state` names existed then, so its absence afterwards is loss.
        taskrun = await self._taskrun(run)
        if taskrun.status.outcome is not None or taskrun.is_being_deleted:
            raise RequestRejectedError(
                ProblemCode.CLOSING, "the TaskRun is over or being deleted; no attempt may begin"
            )
        stored = await self._configmap(run)
        _check_not_lost(taskrun, stored)
        state, first = open_state(_before(taskrun, stored), writer, now, can_cleanup=can_cleanup)
        await self._keep(run, taskrun, stored, state)
        return first

    async def _keep(self, run: RunReference, taskrun: Owner, stored: StoredState | None, state: DurableState) -> None:
        """Store it, in a ConfigMap that is made if there was none, and have `status.state` name it."""
        if stored is None:
            stored = await self._create(run, state)
        elif state != stored.state:
            await self._replace(run, stored, state)
        if taskrun.state_uid is None:
            await self._announce(run, taskrun, stored)
        self._remember(run, stored)

    async def _read(self, run: RunReference) -> StoredState:
        stored = await self._configmap(run)
        if stored is not None and self._known.get(run.uid) == stored.metadata.uid:
            return stored
        taskrun = await self._taskrun(run)
        if stored is not None and taskrun.state_uid == stored.metadata.uid:
            self._remember(run, stored)
            return stored
        return await self._of(run, taskrun)

    async def _of(self, run: RunReference, taskrun: Owner) -> StoredState:
        """The state that a TaskRun, which was read before it, names."""
        stored = await self._configmap(run)
        _check_not_lost(taskrun, stored)
        if stored is None or taskrun.state_uid is None:
            raise RequestRejectedError(ProblemCode.NOT_OPEN, "this pod must open the state first: POST /v1/open")
        self._remember(run, stored)
        return stored

    async def _configmap(self, run: RunReference) -> StoredState | None:
        try:
            text = await self._client.get(configmaps(run.namespace, state_name(run.name, run.uid)))
        except NotFoundError:
            return None
        stored = from_configmap(text)
        if not any(owner.controller and owner.uid == run.uid for owner in stored.metadata.owner_references):
            name = stored.metadata.name
            raise UnreadableError(f"the ConfigMap {name} must have the TaskRun as its controller")
        return stored

    async def _taskrun(self, run: RunReference) -> Owner:
        try:
            taskrun = msgspec.json.decode(await self._client.get(taskruns(run.namespace, run.name)), type=Owner)
        except NotFoundError:
            taskrun = None
        if taskrun is None or taskrun.metadata.uid != run.uid:
            raise RequestRejectedError(ProblemCode.CLOSING, "the TaskRun of this pod is gone")
        return taskrun

    async def _create(self, run: RunReference, state: DurableState) -> StoredState:
        body = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": state_name(run.name, run.uid),
                "namespace": run.namespace,
                "labels": {LABEL_TASKRUN: run.name},
                "annotations": {ANNOTATION_SUMMARY: summary_annotation_of(state)},
                "finalizers": [FINALIZER_STATE],
                "ownerReferences": [
                    {"apiVersion": API_VERSION, "kind": KIND, "name": run.name, "uid": run.uid, "controller": True}
                ],
            },
            "data": to_data(state),
        }
        return from_configmap(
            await self._client.create(configmaps(run.namespace), body, fieldManager=self._field_manager)
        )

    async def _replace(self, run: RunReference, stored: StoredState, state: DurableState) -> None:
        path = configmaps(run.namespace, stored.metadata.name)
        await self._client.replace(path, to_configmap(stored, state), fieldManager=self._field_manager)

    async def _announce(self, run: RunReference, taskrun: Owner, stored: StoredState) -> None:
        """Have `status.state` name it. What was stored stays so, and its answer with it, whoever else writes the TaskRun meanwhile."""
        for number in range(TRIES):
            # Bound to the version in which no state was named: a late one never names an object that was replaced since.
            body = {
                "metadata": {"resourceVersion": taskrun.metadata.resource_version},
                "status": {"state": {"configMap": stored.metadata.name, "uid": stored.metadata.uid}},
            }
            try:
                await self._patch_taskrun(taskruns(run.namespace, run.name, "status"), body)
            except ConflictError:
                await self._pause(number)
                taskrun = await self._taskrun(run)
                if taskrun.status.outcome is not None:
                    raise RequestRejectedError(
                        ProblemCode.CLOSING, "the TaskRun is over; no attempt may begin"
                    ) from None
                if taskrun.state_uid is None:
                    continue
                if taskrun.state_uid != stored.metadata.uid:
                    raise  # that one was stored since: begin anew with it
            return
        raise _too_many_writers()

    async def _claim(self, run: RunReference, taskrun: Owner) -> None:
        # Bound to the version that was read, in which it was not being deleted.
        before = taskrun.metadata.finalizers
        if FINALIZER_EXTERNAL_JOBS in before:
            return
        body = {
            "metadata": {
                "resourceVersion": taskrun.metadata.resource_version,
                "finalizers": [*before, FINALIZER_EXTERNAL_JOBS],
            }
        }
        await self._patch_taskrun(taskruns(run.namespace, run.name), body)

    async def _patch_taskrun(self, path: str, body: Mapping[str, Any]) -> None:
        try:
            await self._client.merge_patch(path, body, fieldManager=self._field_manager)
        except NotFoundError:
            raise RequestRejectedError(ProblemCode.CLOSING, "the TaskRun of this pod is gone") from None

    def _remember(self, run: RunReference, stored: StoredState) -> None:
        if len(self._known) >= KNOWN_MAX and run.uid not in self._known:
            del self._known[next(iter(self._known))]
        self._known[run.uid] = stored.metadata.uid

    def _lock(self, run: RunReference) -> asyncio.Lock:
        return self._locks.setdefault(run.uid, asyncio.Lock())

    async def _pause(self, number: int) -> None:
        self._on_conflict()
        longest = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**number)
        await asyncio.sleep(random.uniform(0, longest))  # noqa: S311 -- only spreads the writers


def _before(taskrun: Owner, stored: StoredState | None) -> DurableState:
    """What a change begins with. One that is begun anew after a loss goes on counting: its totals are of the TaskRun's whole life."""
    if stored is not None:
        return stored.state
    counts = {name: getattr(taskrun.status.counts, name) for name in JobCounts.__struct_fields__}
    return DurableState(counts=JobCounts(**counts))


def _check_not_lost(taskrun: Owner, stored: StoredState | None) -> None:
    if taskrun.state_uid is not None and (stored is None or stored.metadata.uid != taskrun.state_uid):
        detail = f"the ConfigMap with UID {taskrun.state_uid}, which held the state, was deleted by force"
        raise RequestRejectedError(ProblemCode.STATE_LOST, detail)


def _too_many_writers() -> RequestRejectedError:
    return RequestRejectedError(ProblemCode.CONFLICT, "too many writers at once; ask again")
