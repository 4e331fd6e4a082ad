"""Reads from the API server: a TaskRun and its versions, its state, its pods, its events."""

import asyncio
import difflib
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

import msgspec

from reattach.api.names import LABEL_TASKRUN, orphans_name, state_name
from reattach.api.objects import ObjectMeta, PartialObject, Pod, Shape, Time
from reattach.api.state import JobSummary
from reattach.api.taskrun import TaskRun
from reattach.cli.connection import ClusterConnection
from reattach.cli.error_messages import describe_missing_right
from reattach.cli.errors import CommandError, NoSuchTaskRunError
from reattach.cli.orphans import read_orphaned_jobs
from reattach.cli.retry import RETRY_SECONDS, Say, retry_unavailable
from reattach.cli.snapshot import Event, FieldWriter, JobSubmission, Snapshot
from reattach.cluster import ClusterError, ForbiddenError, NotFoundError, paths
from reattach.cluster.client import raise_error_event
from reattach.state.codec import StoredState, from_configmap, view_of
from reattach.state.errors import UnreadableError
from reattach.state.job_record import JobRecord, in_order

_NAMES_MAX = 500

Item = TypeVar("Item")


class _Series(Shape, frozen=True):
    last_observed_time: datetime | None = None


class _EventBody(Shape, frozen=True):
    metadata: ObjectMeta = ObjectMeta()
    type: str = ""
    reason: str = ""
    message: str = ""
    event_time: datetime | None = None
    last_timestamp: datetime | None = None
    series: _Series | None = None

    @property
    def time(self) -> datetime | None:
        last = self.series.last_observed_time if self.series else None
        return last or self.last_timestamp or self.event_time or self.metadata.creation_timestamp


class _TaskRunEvent(Shape, frozen=True):
    type: str
    object: msgspec.Raw


class _ManagedEntry(Shape, frozen=True):
    manager: str = ""
    time: Time | None = None
    fields: Any = msgspec.field(default=None, name="fieldsV1")

    def has_field(self, path: Sequence[str]) -> bool:
        found = self.fields
        for name in path:
            if not isinstance(found, dict) or name not in found:
                return False
            found = found[name]
        return True


class _ManagedMeta(Shape, frozen=True):
    managed_fields: tuple[_ManagedEntry, ...] = ()


class _Managed(Shape, frozen=True):
    metadata: _ManagedMeta = _ManagedMeta()


@dataclass(frozen=True)
class MissingState:
    """No usable state exists; `why` is a sentence. `lost`: a state existed before."""

    why: str
    lost: bool = False


# -- a TaskRun -------------------------------------------------------------------------------------


async def read_taskrun(connection: ClusterConnection, name: str) -> TaskRun:
    """Read the TaskRun.

    Raises `NoSuchTaskRunError` with similar names, `CommandError` if it can't be decoded, and
    `ClusterError`.
    """
    return to_taskrun(await read_taskrun_json(connection, name))


async def read_taskrun_json(connection: ClusterConnection, name: str) -> bytes:
    """Read the TaskRun as JSON, including fields that this version does not know."""
    try:
        return await connection.cluster.get(paths.taskruns(connection.namespace, name))
    except NotFoundError:
        raise await _no_such(connection, name) from None


def to_taskrun(body: bytes) -> TaskRun:
    """Decode a TaskRun.

    Raises `CommandError` if a newer version wrote it and this version can't decode it.
    """
    try:
        return msgspec.json.decode(body, type=TaskRun)
    except msgspec.ValidationError as error:
        raise CommandError(f"This version of kubectl reattach can't read the TaskRun ({error}); upgrade it.") from None


def items_of(body: bytes, kind: type[Item]) -> tuple[Item, ...]:
    """Decode the items of a list."""
    # `items` is null, not an empty list, if only metadata was requested and the list is empty.
    items = msgspec.json.decode(body).get("items") or []
    return tuple(msgspec.convert(item, kind) for item in items)


async def list_taskruns(connection: ClusterConnection) -> list[str]:
    """List the names of the TaskRuns in the namespace, at most `_NAMES_MAX`."""
    path = paths.taskruns(connection.namespace)
    body = await connection.cluster.list(path, metadata_only=True, limit=_NAMES_MAX)
    return [one.metadata.name for one in items_of(body, PartialObject)]


async def list_namespaces(connection: ClusterConnection) -> list[str]:
    """List the names of the cluster's namespaces, at most `_NAMES_MAX`."""
    body = await connection.cluster.list(paths.core("namespaces", None), metadata_only=True, limit=_NAMES_MAX)
    return [one.metadata.name for one in items_of(body, PartialObject)]


async def _no_such(connection: ClusterConnection, name: str) -> NoSuchTaskRunError:
    there_is_none = f"There is no TaskRun {name!r} in namespace {connection.namespace}"
    try:
        names = await list_taskruns(connection)
    except NotFoundError:
        return NoSuchTaskRunError("This cluster has no TaskRuns; install Reattach's chart, or use another --context.")
    except ForbiddenError:
        return NoSuchTaskRunError(f"{there_is_none}.")
    if similar := difflib.get_close_matches(name, names, n=3, cutoff=0.5):
        return NoSuchTaskRunError(f"{there_is_none}. Did you mean {' or '.join(similar)}?")
    if not names:
        return NoSuchTaskRunError(f"{there_is_none}, which has no TaskRuns; select the namespace with -n.")
    return NoSuchTaskRunError(f"{there_is_none}; kubectl get trun -n {connection.namespace} lists them.")


async def watch_taskrun(
    connection: ClusterConnection, first: TaskRun, say: Say
) -> AsyncGenerator[TaskRun | None, None]:
    """Yield the TaskRun now and after each change; last None, if it was deleted or replaced.

    While the API server is away, say so once and wait for it.
    """
    name = first.metadata.name
    path = paths.taskruns(connection.namespace, name)
    while True:
        try:
            taskrun = to_taskrun(await retry_unavailable(connection, say, lambda: connection.cluster.get(path)))
        except NotFoundError:
            yield None
            return
        if taskrun.metadata.uid != first.metadata.uid:
            yield None
            return
        yield taskrun
        try:
            async with aclosing(_changes(connection, name, taskrun.metadata.resource_version)) as changes:
                async for newer in changes:
                    yield newer
        except ClusterError:
            # You may not watch, or the watch broke; reading again is enough in both cases.
            await asyncio.sleep(RETRY_SECONDS)


async def _changes(connection: ClusterConnection, name: str, version: str) -> AsyncGenerator[TaskRun, None]:
    """Yield the changes after `version`, until the watch ends or the TaskRun is deleted.

    Raises `ClusterError`.
    """
    path, selector = paths.taskruns(connection.namespace), f"metadata.name={name}"
    lines = connection.cluster.watch(path, resource_version=version, fieldSelector=selector)
    async with aclosing(lines):
        async for line in lines:
            if not line:  # too long to be read from a watch
                return
            event = msgspec.json.decode(line, type=_TaskRunEvent)
            if event.type in {"ADDED", "MODIFIED"}:
                yield to_taskrun(bytes(event.object))
            elif event.type == "DELETED":
                return
            elif event.type == "ERROR":
                raise_error_event(msgspec.json.decode(bytes(event.object)))


# -- what belongs to it ----------------------------------------------------------------------------


async def read_state(connection: ClusterConnection, taskrun: TaskRun) -> StoredState | MissingState:
    """Read the state's ConfigMap.

    Raises `CommandError` if it can't be decoded, and `ClusterError`.
    """
    about, named = taskrun.metadata, taskrun.status.state
    try:
        stored = from_configmap(
            await connection.cluster.get(paths.configmaps(connection.namespace, state_name(about.name, about.uid)))
        )
    except NotFoundError:
        stored = None
    except UnreadableError as error:
        raise CommandError(f"The state of {about.name} can't be read: {error.detail}.") from None
    if named is not None and named.uid and (stored is None or stored.metadata.uid != named.uid):
        return MissingState(f"The state of {about.name} was deleted by force.", lost=True)
    if stored is None:
        if taskrun.status.outcome is not None:
            return MissingState(f"{about.name} has ended, and its task never opened a state.")
        return MissingState(
            f"{about.name} has no state; the task's first call creates it, or before that, kubectl reattach state import."
        )
    if stored.metadata.taskrun_uid != about.uid:
        raise CommandError(
            f"The ConfigMap {stored.metadata.name} does not belong to {about.name}, because its owner reference was changed."
        )
    return stored


async def read_jobs(connection: ClusterConnection, taskrun: TaskRun) -> tuple[JobSummary, ...]:
    """Read the external jobs in the state; empty without a state. Raises as `read_state`."""
    stored = await read_state(connection, taskrun)
    return view_of(msgspec.json.encode(stored.body)).jobs if isinstance(stored, StoredState) else ()


async def read_pods(connection: ClusterConnection, taskrun: TaskRun) -> tuple[Pod, ...]:
    """Read the pods of the TaskRun that still exist, oldest first."""
    about = taskrun.metadata
    body = await connection.cluster.list(
        paths.pods(connection.namespace), labelSelector=f"{LABEL_TASKRUN}={about.name}"
    )
    pods = [pod for pod in items_of(body, Pod) if pod.metadata.taskrun_uid == about.uid]
    return tuple(
        sorted(pods, key=lambda pod: (pod.metadata.creation_timestamp or datetime.now(UTC), pod.metadata.name))
    )


async def read_events(connection: ClusterConnection, taskrun: TaskRun) -> tuple[Event, ...]:
    """Read the Events of the TaskRun, oldest first."""
    body = await connection.cluster.list(
        paths.core("events", connection.namespace), fieldSelector=f"involvedObject.uid={taskrun.metadata.uid}"
    )
    found = items_of(body, _EventBody)
    events = [Event(time=one.time, type=one.type, reason=one.reason, message=one.message) for one in found]
    return tuple(sorted(events, key=lambda event: event.time or datetime.min.replace(tzinfo=UTC)))


async def read_snapshot(connection: ClusterConnection, name: str) -> Snapshot:
    """Read all that you have the right to read; the notes name the rest."""
    body = await read_taskrun_json(connection, name)
    taskrun = to_taskrun(body)
    snapshot = await read_snapshot_of_state(connection, taskrun)
    notes: list[str] = []
    pods: tuple[Pod, ...] = ()
    try:
        pods = await read_pods(connection, taskrun)
    except ForbiddenError as error:
        notes.append(f"The pods: {describe_missing_right(error)}")
    events: tuple[Event, ...] = ()
    try:
        events = await read_events(connection, taskrun)
    except ForbiddenError as error:
        notes.append(f"The events: {describe_missing_right(error)}")
    try:
        record = orphans_name(name, taskrun.metadata.uid)
        orphans = await read_orphaned_jobs(connection, record) if taskrun.status.orphaned else ()
    except ForbiddenError as error:
        orphans = ()
        notes.append(f"The record of orphaned jobs: {describe_missing_right(error)}")
    return msgspec.structs.replace(
        snapshot,
        now=datetime.now(UTC),
        pods=pods,
        events=events,
        notes=tuple(notes),
        cancelled_by=find_writer(body, "f:spec", "f:cancel") if taskrun.spec.cancel else None,
        orphans=orphans,
    )


async def read_snapshot_of_state(connection: ClusterConnection, taskrun: TaskRun) -> Snapshot:
    """Read the state of the TaskRun, or why it can't be read, and nothing else.

    Raises `ClusterError`, except for a missing right.
    """
    state, note, is_lost = None, "", False
    submissions: tuple[JobSubmission, ...] = ()
    try:
        stored = await read_state(connection, taskrun)
        if isinstance(stored, StoredState):
            state = view_of(msgspec.json.encode(stored.body))
            submissions = tuple(_submission_of(record) for record in in_order(stored.state.jobs))
        elif stored.lost:
            note, is_lost = stored.why, True
    except ForbiddenError as error:
        note = f"The state: {describe_missing_right(error)}"
    except CommandError as error:
        note = str(error)
    return Snapshot(
        taskrun=taskrun,
        now=datetime.now(UTC),
        state=state,
        state_note=note,
        state_lost=is_lost,
        submissions=submissions,
    )


def find_writer(body: bytes, *path: str) -> FieldWriter | None:
    """Return the client that set the field at this path of managedFields last; None if unknown."""
    entries = msgspec.json.decode(body, type=_Managed).metadata.managed_fields
    found = [entry for entry in entries if entry.manager and entry.has_field(path)]
    oldest = datetime.min.replace(tzinfo=UTC)
    last = max(found, key=lambda entry: entry.time or oldest, default=None)
    return None if last is None else FieldWriter(manager=last.manager, time=last.time)


def _submission_of(record: JobRecord) -> JobSubmission:
    return JobSubmission(
        key=record.key,
        generation=record.generation,
        intended_time=record.intended_at,
        intended_by_attempt=record.intended_by_attempt,
        submitters=tuple((one.attempt, one.time) for one in record.submitters),
        cancel_requested_by_attempt=record.cancel_requested_by_attempt,
        ended_time=record.ended_at,
    )
