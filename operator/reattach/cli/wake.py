"""`wake`: let the next attempt of a run that waits without a pod start now."""

from datetime import datetime

from reattach.api.names import ANNOTATION_WAKE
from reattach.api.objects import Shape
from reattach.api.taskrun import TaskRun
from reattach.cli.connection import ClusterConnection
from reattach.cli.errors import CommandError
from reattach.cli.queries import read_taskrun, to_taskrun
from reattach.cli.resolve import FIELD_MANAGER
from reattach.cli.suspend import check_continues
from reattach.cluster import ConflictError, InvalidError, NotFoundError, paths
from reattach.planner.conditions import progress_condition
from reattach.planner.waiting import is_waiting


class WakeResult(Shape, frozen=True):
    """Result for one TaskRun. `next`: sentences about what happens next."""

    name: str
    namespace: str
    message: str
    next: tuple[str, ...] = ()


async def wake(connection: ClusterConnection, name: str, now: datetime) -> WakeResult:
    """Set the annotation `reattach.dev/wake` to the time. Each value starts at most one attempt.

    Raises `CommandError` if the TaskRun does not wait without a pod or was replaced, and
    `ClusterError`.
    """
    taskrun = await read_taskrun(connection, name)
    check_waits(taskrun)
    patch = {"metadata": {"uid": taskrun.metadata.uid, "annotations": {ANNOTATION_WAKE: now.isoformat()}}}
    path = paths.taskruns(connection.namespace, name)
    try:
        written = to_taskrun(await connection.cluster.merge_patch(path, patch, fieldManager=FIELD_MANAGER))
    except NotFoundError:
        raise CommandError(f"{name} was deleted in the meantime.") from None
    except (ConflictError, InvalidError):
        if (await read_taskrun(connection, name)).metadata.uid != taskrun.metadata.uid:
            raise CommandError(
                f"{name} was deleted, and another TaskRun has its name now, which was not changed."
            ) from None
        raise
    number = written.status.counts.attempts + 1
    return WakeResult(
        name=name,
        namespace=written.metadata.namespace,
        message="will check its external job now.",
        next=(f"Attempt {number} starts, and reattaches.",),
    )


# -- pure ------------------------------------------------------------------------------------------


def check_waits(taskrun: TaskRun) -> None:
    """Raise `CommandError` unless the next attempt would start now if the TaskRun is woken."""
    check_continues(taskrun, "woken")
    name, status = taskrun.metadata.name, taskrun.status
    if taskrun.spec.suspend:
        raise CommandError(f"{name} is suspended, so it can't be woken. Run: kubectl reattach resume {name}")
    if not is_waiting(status):
        shown = progress_condition(status)
        what = f"its STATUS is {shown.reason}" if shown is not None else "it has no STATUS yet"
        raise CommandError(f"{name} does not wait without a pod, so it can't be woken: {what}.")


def format_wake(result: WakeResult) -> list[str]:
    """Return the result as lines of text."""
    return [f"taskrun/{result.name} {result.message}", *result.next]
