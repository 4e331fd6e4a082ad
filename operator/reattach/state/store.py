"""Compare-and-set store of the states of TaskRuns.

Every read is one quorum read, every change one compare-and-set on the ConfigMap's resourceVersion.

The store keeps no value in memory, so any number of replicas may serve the same TaskRun. It caches
only the UID of each TaskRun's ConfigMap, so that most calls read no TaskRun. `status.state.uid`
never changes once set.
"""

import asyncio
import contextlib
import copy
import random
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self, TypeVar
from weakref import WeakValueDictionary

import msgspec

from reattach.api.messages import ProblemCode
from reattach.api.names import FINALIZER_EXTERNAL_JOBS, FINALIZER_STATE, OPERATOR_NAME, state_name
from reattach.api.state import JobCounts, SealPurpose
from reattach.api.taskrun import AttemptPurpose, StateMetadata
from reattach.api.text import line_within
from reattach.clock import monotonic
from reattach.cluster import (
    AlreadyExistsError,
    ClusterError,
    ConflictError,
    ForbiddenError,
    InvalidError,
    KubernetesClient,
    NotFoundError,
)
from reattach.cluster.nesting import cut_deep_values
from reattach.cluster.paths import configmaps, taskruns
from reattach.state import state_copy
from reattach.state.admission import check_may_open, check_needs_cleanup
from reattach.state.adoption import adopt_at_end
from reattach.state.codec import DurableState, StoredState, from_configmap, to_configmap, to_new_configmap
from reattach.state.errors import RequestRejectedError, UnreadableError
from reattach.state.job_operations import end_holds
from reattach.state.job_record import JobName
from reattach.state.operations import Session, expire, open_state, seal
from reattach.state.owner import Owner

TRIES = 12
"""Number of attempts of one change.

Only writers on other replicas cause conflicts, because those on this replica share a lock.
"""
KNOWN_MAX = 10_000
REFUSAL_BYTES_MAX = 512
"""Limit for the API server's message in `status.state.message`."""
_REPORT_SECONDS = 60.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.01, 0.5
STATE_API_NAME = OPERATOR_NAME.replace("operator", "state-api")
"""The field manager of the state API's writes."""

Found = TypeVar("Found")
Result = TypeVar("Result")


@dataclass(frozen=True)
class RunReference:
    """The TaskRun that a caller belongs to."""

    namespace: str
    name: str
    uid: str


class Store:
    """Reads and changes the states of TaskRuns.

    Raises `RequestRejectedError`, and those errors of `reattach.cluster` that are not about the
    state (unavailable, forbidden, too many requests). After one of these, the change may or may not
    be stored; the caller may repeat the request under its id.
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
        self._configmap_uids: dict[str, str] = {}  # by the TaskRun's UID
        self._report_again_at: dict[str, float] = {}  # by the TaskRun's UID
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def with_client(self, client: KubernetesClient) -> Self:
        """Return this store with another client.

        Both share the locks, so that their changes of one TaskRun don't conflict.
        """
        other = copy.copy(self)
        other._client = client  # noqa: SLF001 -- of a copy
        return other

    async def open(
        self,
        run: RunReference,
        session: Session,
        now: datetime,
        *,
        can_cleanup: bool = False,
        cleanup_handler: bool = False,
    ) -> bool:
        """Apply `operations.open_state`.

        Create the state if there never was one, for a cleanup session with the seal `End` and the
        jobs that it adopts. Return once `status.state` names the ConfigMap.

        With `cleanup_handler`, the TaskRun gets our finalizer before the state is stored, so that a
        deletion waits for the cleanup.
        """

        async def load(run: RunReference) -> tuple[Owner, StoredState | None]:
            owner = await self._taskrun(run)
            check_may_open(owner, session)
            return await self._load_or_none_of_owner(run, owner)

        def act(found: tuple[Owner, StoredState | None]) -> tuple[DurableState, bool]:
            owner, stored = found
            state = _initial_state(owner, stored)
            if session.cleans_up:
                check_needs_cleanup(owner, None if stored is None else state)
            if session.cleans_up and stored is None:
                state = seal(state, session.attempt, SealPurpose.END)
            if session.cleans_up and state.epoch is None:
                state = adopt_at_end(state, owner, session, now)
            return open_state(state, session, now, can_cleanup=can_cleanup, cleanup_handler=cleanup_handler)

        return await self._compare_and_set(run, load, act, self._save_opened)

    async def read(self, run: RunReference) -> DurableState:
        """Return the current state."""
        return (await self._load(run)).state

    async def change(self, run: RunReference, act: Callable[[DurableState], tuple[DurableState, Result]]) -> Result:
        """Apply `act` to the current state, again after each conflict.

        Write nothing if the state stays the same.
        """
        return await self._compare_and_set(run, self._load, lambda stored: act(stored.state), self._replace)

    async def change_with_owner(
        self,
        run: RunReference,
        act: Callable[[DurableState, Owner], tuple[DurableState, Result]],
        *,
        adds_finalizer: bool = True,
    ) -> Result:
        """Apply `act`, which also depends on the TaskRun. The TaskRun is read before the state.

        Before a state with an open external job is stored, the TaskRun gets a finalizer. The
        finalizer stays until the job is resolved or recorded as orphaned. The API server refuses
        the finalizer on a TaskRun that is being deleted; `intend` begins nothing for one.

        Use `adds_finalizer=False` for a change that may come while the operator ends the run. A
        finalizer that is added after the operator removed it would stay for ever.
        """

        def act_on_pair(found: tuple[Owner, StoredState]) -> tuple[DurableState, Result]:
            owner, stored = found
            return act(stored.state, owner)

        write = self._replace_with_finalizer if adds_finalizer else self._replace_of_pair
        return await self._compare_and_set(run, self._load_with_owner, act_on_pair, write)

    async def seal(self, run: RunReference, through: int, purpose: SealPurpose) -> None:
        """Apply `operations.seal`.

        Create the state if there never was one, so that no attempt can open it later. Idempotent.

        Raises `RequestRejectedError`: `state-lost`, `format-unknown`, or `closing` if the TaskRun
        is gone.
        """

        def act(found: tuple[Owner, StoredState | None]) -> tuple[DurableState, None]:
            return seal(_initial_state(*found), through, purpose), None

        await self._compare_and_set(run, self._load_or_none, act, self._save)

    async def copy(
        self, run: RunReference, source: str, now: datetime, given: StateMetadata | None = None
    ) -> str | None:
        """Create the state with the keys of another TaskRun, unless the state exists.

        Return why not, as a sentence about what must hold; None once the state exists. It is
        created in one write, so an existing one is complete. `status.state` is not set. `given`:
        `spec.state.metadata` of the new TaskRun.
        """
        try:
            owner = await _decoded_owner(await self._client.get(taskruns(run.namespace, source)))
            stored = await self._configmap(RunReference(run.namespace, source, owner.metadata.uid))
        except NotFoundError:
            return state_copy.describe_absent(source)
        except msgspec.DecodeError as error:
            return state_copy.describe_unreadable(f"TaskRun {source}", str(error))
        except UnreadableError as error:
            return state_copy.describe_unreadable(f"state of TaskRun {source}", error.detail)
        if (problem := state_copy.find_problem(owner, stored)) is not None:
            return problem
        try:
            await self._create(run, state_copy.copy_of(source, stored, now), given)
        except AlreadyExistsError:
            return await self._problem_of_existing(run)
        except (ForbiddenError, InvalidError) as error:
            return f"The API server must accept the ConfigMap of the copy; it responds: {error.message}"
        return None

    async def _problem_of_existing(self, run: RunReference) -> str | None:
        try:
            await self._configmap(run)
        except UnreadableError as error:
            return state_copy.describe_unreadable("state of this TaskRun", error.detail)
        return None

    async def end_holds(self, run: RunReference, jobs: Collection[JobName]) -> None:
        """Apply `job_operations.end_holds`. Idempotent.

        Raises `RequestRejectedError`: `state-lost`, `format-unknown`, or `closing` if the TaskRun
        is gone.
        """
        await self.change(run, lambda state: (end_holds(state, jobs), None))

    async def sweep(self, run: RunReference, now: datetime) -> int:
        """Remove the expired keys of a finished run, and return their number.

        The state of a finished run lacks our finalizer.

        After a conflict the sweep gives up, because the next sweep removes the same keys.
        """
        stored = await self._configmap(run)
        if stored is None or FINALIZER_STATE in stored.metadata.finalizers:
            return 0
        swept = expire(stored.state, now)
        try:
            await self._replace(run, stored, swept)
        except (ConflictError, NotFoundError):
            return 0
        return len(stored.state.records) - len(swept.records)

    async def _compare_and_set(
        self,
        run: RunReference,
        read: Callable[[RunReference], Awaitable[Found]],
        act: Callable[[Found], tuple[DurableState, Result]],
        write: Callable[[RunReference, Found, DurableState], Awaitable[None]],
    ) -> Result:
        """Read, act and write, again from the read after each conflict."""
        async with self._lock(run):
            for number in range(TRIES):
                found = await read(run)
                state, result = act(found)
                try:
                    await write(run, found, state)
                except ConflictError:
                    # Another replica wrote the TaskRun or the ConfigMap first, or created it
                    # (AlreadyExists).
                    await self._pause(number)
                except NotFoundError:
                    # The ConfigMap was deleted after the read. The next read finds out why.
                    self._configmap_uids.pop(run.uid, None)
                else:
                    return result
        raise _too_many_writers()

    # -- reads --------------------------------------------------------------------------

    async def _load(self, run: RunReference) -> StoredState:
        """Return the open state. Read the TaskRun only if the ConfigMap's UID is not cached."""
        stored = await self._configmap(run)
        if stored is not None and self._configmap_uids.get(run.uid) == stored.metadata.uid:
            return stored
        owner = await self._taskrun(run)
        if stored is not None and owner.state_uid == stored.metadata.uid:
            self._remember(run, stored)
            return stored
        return await self._load_of_owner(run, owner)

    async def _load_with_owner(self, run: RunReference) -> tuple[Owner, StoredState]:
        owner = await self._taskrun(run)
        return owner, await self._load_of_owner(run, owner)

    async def _load_of_owner(self, run: RunReference, owner: Owner) -> StoredState:
        """Return the state that `owner.status.state` names. `owner` must have been read before."""
        stored = await self._configmap(run)
        _check_not_lost(owner, stored)
        if stored is None or owner.state_uid is None:
            raise RequestRejectedError(ProblemCode.NOT_OPEN, "this pod must open the state first: POST /v1/open")
        self._remember(run, stored)
        return stored

    async def _load_or_none(self, run: RunReference) -> tuple[Owner, StoredState | None]:
        return await self._load_or_none_of_owner(run, await self._taskrun(run))

    async def _load_or_none_of_owner(self, run: RunReference, owner: Owner) -> tuple[Owner, StoredState | None]:
        # The TaskRun was read before. The ConfigMap in `status.state` existed then, so if it is
        # absent now, it is lost.
        stored = await self._configmap(run)
        _check_not_lost(owner, stored)
        return owner, stored

    async def _configmap(self, run: RunReference) -> StoredState | None:
        try:
            text = await self._client.get(configmaps(run.namespace, state_name(run.name, run.uid)))
        except NotFoundError:
            return None
        stored = from_configmap(text)
        if stored.metadata.taskrun_uid != run.uid:
            name = stored.metadata.name
            raise UnreadableError(f"the ConfigMap {name} must have the TaskRun as its controller")
        return stored

    async def _taskrun(self, run: RunReference) -> Owner:
        try:
            taskrun = await _decoded_owner(await self._client.get(taskruns(run.namespace, run.name)))
        except NotFoundError:
            taskrun = None
        if taskrun is None or taskrun.metadata.uid != run.uid:
            raise RequestRejectedError(ProblemCode.CLOSING, "the TaskRun of this pod is gone")
        return taskrun

    # -- writes -------------------------------------------------------------------------

    async def _save_opened(
        self, run: RunReference, found: tuple[Owner, StoredState | None], state: DurableState
    ) -> None:
        """As `_save`, after the finalizer for a cleanup handler."""
        owner, stored = found
        epoch = state.epoch
        is_new = stored is None or state != stored.state
        if is_new and epoch is not None and epoch.cleanup_handler and epoch.purpose is AttemptPurpose.RUN:
            owner = await self._add_finalizer(run, owner)
        try:
            await self._save(run, (owner, stored), state)
        except (ForbiddenError, InvalidError) as error:
            if stored is None:
                await self._report_refusal(run, owner, error)
            raise

    async def _save(self, run: RunReference, found: tuple[Owner, StoredState | None], state: DurableState) -> None:
        """Store the state, create the ConfigMap if it is absent, and set `status.state`."""
        owner, stored = found
        if stored is None:
            stored = await self._create(run, state, owner.spec.state.metadata)
        else:
            await self._replace(run, stored, state)
        if owner.state_uid is None:
            await self._publish_reference(run, owner, stored)
        self._remember(run, stored)

    async def _create(self, run: RunReference, state: DurableState, given: StateMetadata | None) -> StoredState:
        body = to_new_configmap(run.namespace, run.name, run.uid, state, given)
        return from_configmap(
            await self._client.create(configmaps(run.namespace), body, fieldManager=self._field_manager)
        )

    async def _replace(self, run: RunReference, stored: StoredState, state: DurableState) -> None:
        if state != stored.state:
            path = configmaps(run.namespace, stored.metadata.name)
            await self._client.replace(path, to_configmap(stored, state), fieldManager=self._field_manager)

    async def _replace_of_pair(self, run: RunReference, found: tuple[Owner, StoredState], state: DurableState) -> None:
        await self._replace(run, found[1], state)

    async def _replace_with_finalizer(
        self, run: RunReference, found: tuple[Owner, StoredState], state: DurableState
    ) -> None:
        owner, stored = found
        if state == stored.state:
            return
        if any(record.is_open for record in state.jobs.values()) and not owner.is_over:
            await self._add_finalizer(run, owner)
        await self._replace(run, stored, state)

    async def _report_refusal(self, run: RunReference, owner: Owner, error: ClusterError) -> None:
        """Set `status.state.message`, so that the TaskRun shows why its state can't be created.

        The message may change with each try, so it is written at most once a minute. A failure is
        not reported, because the caller raises the refusal itself.
        """
        message = line_within(error.message, REFUSAL_BYTES_MAX)
        shown, now = owner.status.state.message if owner.status.state else "", monotonic()
        if owner.state_uid is not None or shown == message or now < self._report_again_at.get(run.uid, now):
            return
        if len(self._report_again_at) >= KNOWN_MAX:
            self._report_again_at.clear()
        self._report_again_at[run.uid] = now + _REPORT_SECONDS
        body = {
            "metadata": {"resourceVersion": owner.metadata.resource_version},
            "status": {"state": {"message": message}},
        }
        with contextlib.suppress(ClusterError, RequestRejectedError):
            await self._patch_taskrun(taskruns(run.namespace, run.name, "status"), body)

    async def _publish_reference(self, run: RunReference, owner: Owner, stored: StoredState) -> None:
        """Set `status.state`. Retry after a conflict, because the state is stored already."""
        for number in range(TRIES):
            # The resourceVersion of a TaskRun without `status.state`: a late patch never names a
            # ConfigMap that was replaced since.
            body = {
                "metadata": {"resourceVersion": owner.metadata.resource_version},
                "status": {
                    "state": {"configMap": stored.metadata.name, "uid": stored.metadata.uid, **_no_message(owner)}
                },
            }
            try:
                await self._patch_taskrun(taskruns(run.namespace, run.name, "status"), body)
            except ConflictError:
                await self._pause(number)
                owner = await self._taskrun(run)
                if owner.status.outcome is not None:
                    raise RequestRejectedError(
                        ProblemCode.CLOSING, "the TaskRun is over; no attempt may begin"
                    ) from None
                if owner.state_uid is None:
                    continue
                if owner.state_uid != stored.metadata.uid:
                    raise  # another ConfigMap became the state: start over with that one
            return
        raise _too_many_writers()

    async def _add_finalizer(self, run: RunReference, owner: Owner) -> Owner:
        """Add our finalizer, and return the TaskRun with it."""
        # With the resourceVersion that was read, because the TaskRun was not being deleted in that
        # version.
        finalizers = owner.metadata.finalizers
        if FINALIZER_EXTERNAL_JOBS in finalizers:
            return owner
        body = {
            "metadata": {
                "resourceVersion": owner.metadata.resource_version,
                "finalizers": [*finalizers, FINALIZER_EXTERNAL_JOBS],
            }
        }
        return await _decoded_owner(await self._patch_taskrun(taskruns(run.namespace, run.name), body))

    async def _patch_taskrun(self, path: str, body: Mapping[str, Any]) -> bytes:
        try:
            return await self._client.merge_patch(path, body, fieldManager=self._field_manager)
        except NotFoundError:
            raise RequestRejectedError(ProblemCode.CLOSING, "the TaskRun of this pod is gone") from None

    def _remember(self, run: RunReference, stored: StoredState) -> None:
        if len(self._configmap_uids) >= KNOWN_MAX and run.uid not in self._configmap_uids:
            del self._configmap_uids[next(iter(self._configmap_uids))]
        self._configmap_uids[run.uid] = stored.metadata.uid

    def _lock(self, run: RunReference) -> asyncio.Lock:
        return self._locks.setdefault(run.uid, asyncio.Lock())

    async def _pause(self, number: int) -> None:
        self._on_conflict()
        longest = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**number)
        await asyncio.sleep(random.uniform(0, longest))  # noqa: S311 -- spreads the writers


async def _decoded_owner(text: bytes) -> Owner:
    try:
        return msgspec.json.decode(text, type=Owner)
    except RecursionError:  # the template is too deep; nothing here reads it
        return msgspec.json.decode(await asyncio.to_thread(cut_deep_values, text), type=Owner)


def _initial_state(owner: Owner, stored: StoredState | None) -> DurableState:
    """Return the stored state, or an empty one.

    An empty one has the counts of `status.counts`, which survive the loss of a state.
    """
    if stored is not None:
        return stored.state
    counts = {name: getattr(owner.status.counts, name) for name in JobCounts.__struct_fields__}
    return DurableState(counts=JobCounts(**counts))


def _no_message(owner: Owner) -> dict[str, None]:
    """Return the patch that removes `status.state.message`, if it is set."""
    return {"message": None} if owner.status.state is not None and owner.status.state.message else {}


def _check_not_lost(owner: Owner, stored: StoredState | None) -> None:
    if owner.state_uid is not None and (stored is None or stored.metadata.uid != owner.state_uid):
        detail = f"the ConfigMap with UID {owner.state_uid}, which held the state, was deleted by force"
        raise RequestRejectedError(ProblemCode.STATE_LOST, detail)


def _too_many_writers() -> RequestRejectedError:
    return RequestRejectedError(ProblemCode.CONFLICT, "too many writers at once; try again")
