"""`cancel`: set `spec.cancel`, and say what happens then."""

from datetime import UTC, datetime

from reattach.api.objects import Shape
from reattach.api.reasons import Outcome
from reattach.api.taskrun import TaskRun
from reattach.cli.changes import RunTarget
from reattach.cli.connection import ClusterConnection
from reattach.cli.errors import CommandError
from reattach.cli.hold_options import find_holds
from reattach.cli.next_steps import describe_next_steps
from reattach.cli.pages import ObjectSelection, read_pages
from reattach.cli.queries import read_snapshot_of_state, read_taskrun, to_taskrun
from reattach.cli.resolve import FIELD_MANAGER
from reattach.cli.run_list import UNFINISHED, ListedRun, decode_continuing
from reattach.cli.snapshot import Snapshot
from reattach.cluster import ConflictError, InvalidError, NotFoundError, paths


class CancelResult(Shape, frozen=True):
    """Result for one TaskRun. `next`: sentences about what happens next."""

    name: str
    namespace: str
    message: str
    next: tuple[str, ...] = ()


async def read_cancellable(connection: ClusterConnection, selector: str) -> list[ListedRun]:
    """Read the selected TaskRuns that are unfinished, and neither cancelled, deleted nor ending."""
    selection = ObjectSelection(labels=selector, fields=UNFINISHED)
    return [run async for page in read_pages(connection, selection, decode_continuing) for run in page if run]


async def cancel(connection: ClusterConnection, target: RunTarget) -> CancelResult:
    """Set `spec.cancel`. Safe to repeat.

    Raises `CommandError` if the TaskRun succeeded, failed or was replaced, and `ClusterError`.
    """
    name = target.name
    taskrun = await read_taskrun(connection, name)
    uid = target.uid or taskrun.metadata.uid
    _check_uid(taskrun, uid)
    if taskrun.status.outcome is not None:
        return _result_at_end(taskrun)
    if taskrun.metadata.deletion_timestamp is not None:
        return await _result_of(connection, taskrun, "is being deleted, which ends it; spec.cancel was not changed.")
    ending = taskrun.status.ending
    if ending is not None and ending.outcome != Outcome.CANCELLED:
        raise CommandError(f"{name} is already ending as {ending.outcome} ({ending.reason}), so it can't be cancelled.")
    if taskrun.spec.cancel or ending is not None:
        return await _result_of(connection, taskrun, "is already being cancelled.")
    body = {"metadata": {"uid": uid}, "spec": {"cancel": True}}
    path = paths.taskruns(connection.namespace, name)
    try:
        written = to_taskrun(await connection.cluster.merge_patch(path, body, fieldManager=FIELD_MANAGER))
    except NotFoundError:
        raise CommandError(f"{name} was deleted in the meantime.") from None
    except (ConflictError, InvalidError):
        _check_uid(await read_taskrun(connection, name), uid)
        raise
    if written.status.outcome is not None:
        return _result_at_end(written)
    return await _result_of(connection, written, "will be cancelled.")


async def _result_of(connection: ClusterConnection, taskrun: TaskRun, message: str) -> CancelResult:
    """Return the result, with what happens next to the jobs in the state."""
    snapshot = Snapshot(taskrun=taskrun, now=datetime.now(UTC))
    if taskrun.status.state is not None and taskrun.status.state.uid:
        snapshot = await read_snapshot_of_state(connection, taskrun)
    return _to_result(taskrun, message, describe_next_steps(snapshot, find_holds(taskrun, snapshot.jobs)))


def format_result(result: CancelResult) -> list[str]:
    """Return the result as lines of text."""
    return [f"taskrun/{result.name} {result.message}", *result.next]


# -- pure ------------------------------------------------------------------------------------------


def _check_uid(taskrun: TaskRun, uid: str) -> None:
    if taskrun.metadata.uid != uid:
        raise CommandError(
            f"{taskrun.metadata.name} was deleted, and another TaskRun has its name now, which was not cancelled."
        )


def _result_at_end(taskrun: TaskRun) -> CancelResult:
    name, outcome = taskrun.metadata.name, taskrun.status.outcome
    if outcome != Outcome.CANCELLED:
        raise CommandError(f"{name} has already ended ({outcome}), so it can't be cancelled.")
    return _to_result(taskrun, "was already cancelled.")


def _to_result(taskrun: TaskRun, message: str, steps: tuple[str, ...] = ()) -> CancelResult:
    about = taskrun.metadata
    return CancelResult(name=about.name, namespace=about.namespace, message=message, next=steps)
