"""`suspend` and `resume`: set `spec.suspend`, and say what continues meanwhile."""

from typing import Any

import msgspec

from reattach.api.objects import Shape
from reattach.api.taskrun import TaskRun
from reattach.cli.connection import ClusterConnection
from reattach.cli.endings import job_list
from reattach.cli.errors import CommandError
from reattach.cli.hold_options import find_held_condition
from reattach.cli.next_steps import describe_suspension, known_jobs
from reattach.cli.queries import read_snapshot_of_state, read_taskrun, to_taskrun
from reattach.cli.resolve import FIELD_MANAGER
from reattach.cli.snapshot import Snapshot
from reattach.cluster import ConflictError, InvalidError, NotFoundError, paths


class SuspensionResult(Shape, frozen=True):
    """Result for one TaskRun. `next`: sentences about what happens next."""

    name: str
    namespace: str
    message: str
    next: tuple[str, ...] = ()


async def set_suspended(connection: ClusterConnection, name: str, *, suspended: bool) -> SuspensionResult:
    """Set `spec.suspend`. Safe to repeat.

    Raises `CommandError` if the TaskRun is over, ends or was replaced, and `ClusterError`.
    """
    taskrun = await read_taskrun(connection, name)
    verb = "suspended" if suspended else "resumed"
    check_continues(taskrun, verb)
    if taskrun.spec.suspend is suspended:
        return await _result_of(connection, taskrun, suspended=suspended, is_repeated=True)
    written = await patch_taskrun(connection, taskrun, {"spec": {"suspend": suspended}})
    check_continues(written, verb)
    return await _result_of(connection, written, suspended=suspended, is_repeated=False)


async def patch_taskrun(
    connection: ClusterConnection, taskrun: TaskRun, patch: dict[str, Any], **metadata: Any
) -> TaskRun:
    """Apply a merge patch and changes of the metadata to the TaskRun that was read, and return it.

    Raises `CommandError` if it was deleted or replaced, and `ClusterError`.
    """
    name, uid = taskrun.metadata.name, taskrun.metadata.uid
    body = {"metadata": {"uid": uid, **metadata}, **patch}
    path = paths.taskruns(connection.namespace, name)
    try:
        return to_taskrun(await connection.cluster.merge_patch(path, body, fieldManager=FIELD_MANAGER))
    except NotFoundError:
        raise CommandError(f"{name} was deleted in the meantime.") from None
    except (ConflictError, InvalidError):
        if (await read_taskrun(connection, name)).metadata.uid != uid:
            raise CommandError(
                f"{name} was deleted, and another TaskRun has its name now, which was not changed."
            ) from None
        raise


async def _result_of(
    connection: ClusterConnection, taskrun: TaskRun, *, suspended: bool, is_repeated: bool
) -> SuspensionResult:
    about = taskrun.metadata
    result = SuspensionResult(name=about.name, namespace=about.namespace, message="is not suspended.")
    if is_repeated and not suspended:
        return result
    snapshot = await read_snapshot_of_state(connection, taskrun)
    if suspended:
        message = "is already suspended." if is_repeated else "will be suspended."
        return msgspec.structs.replace(result, message=message, next=describe_suspension(snapshot))
    return msgspec.structs.replace(result, message="will be resumed.", next=describe_resumption(snapshot))


# -- pure ------------------------------------------------------------------------------------------


def check_continues(taskrun: TaskRun, verb: str) -> None:
    """Raise `CommandError` unless the TaskRun is unfinished and is not about to end.

    `verb`: a participle, for the message about what can't be done.
    """
    name, status = taskrun.metadata.name, taskrun.status
    if status.outcome is not None:
        raise CommandError(f"{name} has ended ({status.outcome}), so it can't be {verb}.")
    if taskrun.metadata.deletion_timestamp is not None:
        raise CommandError(f"{name} is being deleted, so it can't be {verb}.")
    if status.ending is not None or taskrun.spec.cancel:
        outcome = status.ending.outcome if status.ending is not None else None
        raise CommandError(f"{name} is ending as {outcome or 'Cancelled'}, so it can't be {verb}.")


def describe_resumption(snapshot: Snapshot) -> tuple[str, ...]:
    """Return what the next attempt of a resumed run does."""
    held = find_held_condition(snapshot.taskrun.status)
    if held is not None:
        name = snapshot.taskrun.metadata.name
        return (f"It is held for {held.reason}; kubectl reattach explain {name} shows how to resolve it.",)
    if not (jobs := known_jobs(snapshot)):
        return ("The next attempt starts once no pod of an earlier attempt runs.",)
    return (f"The next attempt starts once no pod of an earlier attempt runs, and reattaches to {job_list(jobs)}.",)


def format_suspension(result: SuspensionResult) -> list[str]:
    """Return the result as lines of text."""
    return [f"taskrun/{result.name} {result.message}", *result.next]
