"""Changes of users to keys, with the operations, format and compare-and-set of the state API.

The writer of such a key is attempt 0, and `cli:<user>` in place of the pod's UID. External jobs,
the completion record and the epoch stay as they are.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, TypeAlias

import msgspec

from reattach.api.messages import DEFAULT_RETENTION_SECONDS, BatchResult
from reattach.api.names import LABEL_ATTEMPT
from reattach.api.objects import Pod, Shape
from reattach.api.taskrun import TaskRun
from reattach.api.text import printable_json
from reattach.cli.connection import ClusterConnection, read_username
from reattach.cli.errors import CommandError
from reattach.cli.queries import MissingState, read_pods, read_state, read_taskrun
from reattach.cli.resolve import FIELD_MANAGER
from reattach.cli.retry import retry_conflicts
from reattach.cli.text import clock, count
from reattach.cluster import ForbiddenError, paths
from reattach.state.codec import (
    DurableState,
    Opening,
    StateEntry,
    StoredState,
    to_configmap,
    to_new_configmap,
)
from reattach.state.errors import RequestRejectedError
from reattach.state.operations import Clear, Session, Set, Step, change, expire
from reattach.state.values import check_key, from_json, stored_value_of, to_json

FORMAT = "reattach-state/v1"
PERSON_ATTEMPT = 0
_USER_CHARACTERS_MAX = 240


StepsOf: TypeAlias = Callable[[DurableState, datetime], Sequence[Step]]


class ExportedEntry(Shape, frozen=True, omit_defaults=False):
    """One key. Only `key`, `value` and `expires_at` (None: never) are imported."""

    key: str
    value: Any
    version: int = 0
    attempt: int = 0
    pod_uid: str = msgspec.field(default="", name="podUID")
    updated_at: datetime | None = None
    expires_at: Annotated[datetime, msgspec.Meta(tz=True)] | None = None


class Export(Shape, frozen=True, omit_defaults=False):
    """All keys of a TaskRun, as `state export` writes and `state import` reads them."""

    format: str
    namespace: str
    taskrun: str
    exported_at: datetime
    entries: tuple[ExportedEntry, ...]


# -- pure ------------------------------------------------------------------------------------------


def edit(
    state: DurableState, steps: Sequence[Step], user: str, now: datetime
) -> tuple[DurableState, tuple[BatchResult, ...]]:
    """Return the state after all steps. Raises `RequestRejectedError` if one is rejected."""
    writer = Session(attempt=PERSON_ATTEMPT, pod_uid=f"cli:{user}"[:_USER_CHARACTERS_MAX], id="cli")
    # The operations require that the caller has opened the state; only the changed keys are kept.
    opening = Opening(
        attempt=writer.attempt,
        pod_uid=writer.pod_uid,
        session=writer.id,
        time=now,
        first_attempt=writer.attempt,
    )
    changed, results = change(msgspec.structs.replace(state, epoch=opening, completion=None), writer, steps, now)
    return msgspec.structs.replace(state, records=changed.records, last_version=changed.last_version), results


def running_attempt_of(taskrun: TaskRun, pods: Sequence[Pod]) -> int | None:
    """Return the attempt that runs or is about to; None if no attempt can use the state now."""
    if taskrun.status.outcome is not None:
        return None
    alive = [pod for pod in pods if pod.status.phase not in {"Succeeded", "Failed"}]
    if alive:
        number = alive[-1].metadata.labels.get(LABEL_ATTEMPT, "")
        return int(number) if number.isdigit() else 0
    listed = [attempt.number for attempt in taskrun.status.attempts if attempt.finish_time is None]
    return listed[-1] if listed else None


def retention_of(state: DurableState, key: str, asked: timedelta | None, *, never: bool) -> timedelta | None:
    """Return how long a key is kept; None: forever.

    Without a given retention, a key that never expires stays so, and any other key gets the
    default.
    """
    if never:
        return None
    if asked is not None:
        return asked
    known = state.records.get(key)
    if known is not None and known.expires_at is None:
        return None
    return timedelta(seconds=DEFAULT_RETENTION_SECONDS)


def parse_value(text: str, *, is_string: bool) -> bytes:
    """Return the JSON text to store.

    Raises `CommandError` if the text is not JSON, and `RequestRejectedError` if it may not be
    stored.
    """
    if is_string:
        return stored_value_of(text)
    try:
        return stored_value_of(from_json(text.encode()))
    except RequestRejectedError as error:
        if error.code != "invalid":
            raise
        raise CommandError(
            f"{text[:60]!r} is not JSON; to store it as a string, use --string (or quote it: '\"{text[:20]}\"')."
        ) from None


def build_export(taskrun: TaskRun, state: DurableState, now: datetime) -> bytes:
    """Return all keys as JSON. Numbers keep all their digits."""
    entries = [
        {
            "key": record.key,
            "value": record.value,
            "version": record.version,
            "attempt": record.attempt,
            "podUID": record.pod_uid,
            "updatedAt": record.updated_at,
            "expiresAt": record.expires_at,
        }
        for _, record in sorted(state.records.items())
    ]
    exported = {
        "format": FORMAT,
        "namespace": taskrun.metadata.namespace,
        "taskrun": taskrun.metadata.name,
        "exportedAt": clock(now),
        "entries": entries,
    }
    return printable_json(msgspec.json.format(msgspec.json.encode(exported), indent=2).decode()).encode()


def parse_export(text: bytes, now: datetime, *, replace: bool) -> tuple[Step, ...]:
    """Return the steps that store an export.

    Raises `CommandError` for another format, and `RequestRejectedError`.
    """
    try:
        export = msgspec.convert(from_json(text), Export)
    except (RequestRejectedError, msgspec.ValidationError) as error:
        why = error.detail if isinstance(error, RequestRejectedError) else str(error)
        raise CommandError(f"The file is not an export of kubectl reattach state export: {why}.") from None
    if export.format != FORMAT:
        raise CommandError(f"The export must have the format {FORMAT!r}; it has {export.format!r}.")
    sets = tuple(
        Set(
            key=check_key(entry.key),
            text=stored_value_of(entry.value),
            retention=None if entry.expires_at is None else max(entry.expires_at - now, timedelta()),
        )
        for entry in export.entries
    )
    return (Clear(), *sets) if replace else sets


def to_output(record: StateEntry) -> dict[str, Any]:
    """Return a key as `-o json` prints it."""
    return {
        "key": record.key,
        "value": record.value,
        "version": record.version,
        "attempt": record.attempt,
        "podUID": record.pod_uid,
        "updatedAt": record.updated_at,
        "expiresAt": record.expires_at,
    }


def format_value(value: bytes) -> str:
    """Return a value as indented JSON."""
    return printable_json(msgspec.json.format(to_json(from_json(value)), indent=2).decode())


def rejection_error(error: RequestRejectedError) -> CommandError:
    """Return the rejection of the state as a sentence."""
    detail = error.detail[:1].upper() + error.detail[1:]
    return CommandError(detail if detail.endswith(".") else f"{detail}.")


# -- effects ---------------------------------------------------------------------------------------


async def read(connection: ClusterConnection, name: str) -> tuple[TaskRun, StoredState]:
    """Read the TaskRun and its state, after the end without expired keys.

    Raises `CommandError` without a state.
    """
    taskrun = await read_taskrun(connection, name)
    return taskrun, _check_found(taskrun, await read_state(connection, taskrun))


def _check_found(taskrun: TaskRun, stored: StoredState | MissingState) -> StoredState:
    if isinstance(stored, MissingState):
        more = f" kubectl reattach explain {taskrun.metadata.name} shows what to do." if stored.lost else ""
        raise CommandError(stored.why + more)
    if taskrun.status.outcome is not None:
        return msgspec.structs.replace(stored, state=expire(stored.state, datetime.now(UTC)))
    return stored


async def write(
    connection: ClusterConnection, name: str, steps_of: StepsOf, *, force: bool = False, creates: bool = False
) -> tuple[DurableState, tuple[BatchResult, ...]]:
    """Write the steps of `steps_of(state, now)` by compare-and-set.

    With `creates`, create the state of an unfinished TaskRun whose task has not opened it yet.

    Raises `CommandError` and `ClusterError`.
    """
    user = await read_username(connection.cluster)

    async def attempt() -> tuple[DurableState, tuple[BatchResult, ...]]:
        # Read the state before the attempts: an attempt that starts after this read changes or
        # creates the state when it opens it, which is a conflict.
        taskrun, stored = await (_read_or_none if creates else read)(connection, name)
        if not force:
            await _check_idle(connection, taskrun)
        before, now = DurableState() if stored is None else stored.state, datetime.now(UTC)
        try:
            state, results = edit(before, steps_of(before, now), user, now)
        except RequestRejectedError as error:
            raise rejection_error(error) from None
        if stored is None:
            await _create(connection, taskrun, state)
        elif state != before:
            await _replace(connection, stored, state)
        return state, results

    return await retry_conflicts(f"The state of {name}", attempt)


async def _read_or_none(connection: ClusterConnection, name: str) -> tuple[TaskRun, StoredState | None]:
    """Read the TaskRun and its state; None if the state may be created."""
    taskrun = await read_taskrun(connection, name)
    stored, counts = await read_state(connection, taskrun), taskrun.status.counts
    if isinstance(stored, StoredState) or stored.lost or taskrun.status.outcome is not None:
        return taskrun, _check_found(taskrun, stored)
    if taskrun.metadata.deletion_timestamp is not None or taskrun.spec.cancel:
        raise CommandError(f"{name} is being ended, so no attempt would read an imported state.")
    if taskrun.spec.state_from is not None and counts.attempts == 0 and counts.state_losses == 0:
        raise CommandError(
            f"{name} gets a copy of the state of {taskrun.spec.state_from} before its first attempt (spec.stateFrom);"
            " import a file after that, or create the TaskRun without spec.stateFrom."
        )
    return taskrun, None


async def _check_idle(connection: ClusterConnection, taskrun: TaskRun) -> None:
    try:
        pods = await read_pods(connection, taskrun)
    except ForbiddenError:
        pods = ()  # the status shows running attempts, too, a little later
    if (attempt := running_attempt_of(taskrun, pods)) is not None:
        raise CommandError(
            f"Attempt {attempt} of {taskrun.metadata.name} is running, and may already have read the key; wait until it has ended, or use --force."
        )


async def _create(connection: ClusterConnection, taskrun: TaskRun, state: DurableState) -> None:
    # The TaskRun that was read is named, so the garbage collector removes the ConfigMap of a
    # TaskRun that was deleted meanwhile.
    about, given = taskrun.metadata, taskrun.spec.state.metadata
    body = to_new_configmap(connection.namespace, about.name, about.uid, state, given)
    await connection.cluster.create(paths.configmaps(connection.namespace), body, fieldManager=FIELD_MANAGER)


async def _replace(connection: ClusterConnection, stored: StoredState, state: DurableState) -> None:
    path = paths.configmaps(connection.namespace, stored.metadata.name)
    await connection.cluster.replace(path, to_configmap(stored, state), fieldManager=FIELD_MANAGER)


def summarize(results: Sequence[BatchResult]) -> str:
    """Return how many keys were stored and removed."""
    stored = sum(result.version is not None for result in results)
    deleted = sum(result.deleted for result in results)
    parts = [count(stored, "key") + " stored"] if stored else []
    parts += [count(deleted, "key") + " removed"] if deleted else []
    return " and ".join(parts) or "nothing changed"
