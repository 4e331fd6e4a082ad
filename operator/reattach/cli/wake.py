"""`wake`: let the next attempt of a run that waits without a pod start now."""

from datetime import datetime

from reattach.api.names import ANNOTATION_WAKE
from reattach.api.objects import Shape
from reattach.api.taskrun import TaskRun
from reattach.cli.connection import ClusterConnection
from reattach.cli.errors import CommandError
from reattach.cli.queries import read_taskrun
from reattach.cli.suspend import check_continues, patch_taskrun
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
    written = await patch_taskrun(connection, taskrun, {}, annotations={ANNOTATION_WAKE: now.isoformat()})
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
