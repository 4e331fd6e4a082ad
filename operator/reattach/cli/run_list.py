"""`list`: one row for each TaskRun. Pure, except for `print_list`."""

from collections.abc import Sequence
from datetime import datetime

import msgspec

from reattach.api.objects import Condition, ObjectMeta, Shape, Time
from reattach.api.reasons import ConditionType, Outcome, Reason
from reattach.api.taskrun import Counts
from reattach.api.text import one_line, short_handle
from reattach.cli.connection import ClusterConnection
from reattach.cli.flags import WIDE, PagePrinter, say
from reattach.cli.pages import ObjectSelection, read_pages
from reattach.cli.text import NOTHING, Cell, duration
from reattach.planner.conditions import find_condition

UNFINISHED = "status.outcome="
ORPHANED = "status.orphaned=true"
_UNREADABLE = "Unreadable"
_COLOURS = {Outcome.SUCCEEDED: "green", Outcome.FAILED: "red", Outcome.CANCELLED: "yellow"}


class ListedRun(Shape, frozen=True, omit_defaults=False):
    """One TaskRun, also with `-o json`.

    `status`: the reason of the condition Succeeded. `job`: the handle of the newest external job.
    """

    name: str
    namespace: str
    uid: str = ""
    status: str = ""
    outcome: str | None = None
    attempts: int = 0
    job: str | None = None
    created: Time | None = None
    held: bool = False
    orphaned: bool = False


class _ListedJob(Shape, frozen=True):
    handle: str | None = None


class _ListedEnding(Shape, frozen=True):
    reason: str = ""


class _ListedStatus(Shape, frozen=True):
    outcome: str | None = None
    conditions: tuple[Condition, ...] = ()
    counts: Counts = Counts()
    external_jobs: tuple[_ListedJob, ...] = ()
    orphaned: bool = False
    ending: _ListedEnding | None = None


class _ListedSpec(Shape, frozen=True):
    cancel: bool = False


class _ListedTaskRun(Shape, frozen=True):
    metadata: ObjectMeta
    spec: _ListedSpec = _ListedSpec()
    status: _ListedStatus = _ListedStatus()


def decode_run(body: bytes) -> ListedRun:
    """Decode a TaskRun. One that can't be decoded keeps its name, with the status Unreadable."""
    try:
        taskrun = msgspec.json.decode(body, type=_ListedTaskRun)
    except msgspec.ValidationError:
        about = msgspec.json.decode(body)["metadata"]
        return ListedRun(name=about["name"], namespace=about["namespace"], status=_UNREADABLE)
    return _listed(taskrun)


def decode_continuing(body: bytes) -> ListedRun | None:
    """Decode an unfinished TaskRun. Return None if it is being cancelled or deleted, or ends."""
    try:
        taskrun = msgspec.json.decode(body, type=_ListedTaskRun)
    except msgspec.ValidationError:
        return decode_run(body)
    is_requested = taskrun.spec.cancel or taskrun.metadata.deletion_timestamp is not None
    return None if is_requested or taskrun.status.ending is not None else _listed(taskrun)


def _listed(taskrun: _ListedTaskRun) -> ListedRun:
    about, status = taskrun.metadata, taskrun.status
    progress = find_condition(status.conditions, ConditionType.SUCCEEDED)
    held = find_condition(status.conditions, ConditionType.HELD)
    return ListedRun(
        name=about.name,
        namespace=about.namespace,
        uid=about.uid,
        status=progress.reason if progress else "",
        outcome=status.outcome,
        attempts=status.counts.attempts,
        job=status.external_jobs[-1].handle if status.external_jobs else None,
        created=about.creation_timestamp,
        held=held is not None and held.status == "True",
        orphaned=status.orphaned,
    )


def titles_of(*, all_namespaces: bool = False) -> tuple[str, ...]:
    """Return the titles of the columns."""
    return (*(("NAMESPACE",) if all_namespaces else ()), "NAME", "STATUS", "ATTEMPTS", "JOB", "AGE")


def row_of(
    run: ListedRun, now: datetime, *, all_namespaces: bool = False, wide: bool = False
) -> tuple[str | Cell, ...]:
    """Return the row of a TaskRun. `wide`: with the whole handle."""
    job = one_line(run.job or NOTHING)
    return (
        *((run.namespace,) if all_namespaces else ()),
        run.name,
        Cell(run.status or NOTHING, _colour_of(run)),
        str(run.attempts),
        job if wide else short_handle(job),
        duration(now - run.created) if run.created else NOTHING,
    )


async def print_list(
    connection: ClusterConnection, selection: ObjectSelection, now: datetime, output: str | None, *, held: bool
) -> None:
    """Print the selected TaskRuns, page by page. `held`: only those that are held."""
    everywhere = selection.all_namespaces
    wide, output = output == WIDE, None if output == WIDE else output
    printer = PagePrinter(titles_of(all_namespaces=everywhere), output)
    async for page in read_pages(connection, selection, decode_run):
        runs = [run for run in page if run.held or not held]
        printer.print_page([row_of(run, now, all_namespaces=everywhere, wide=wide) for run in runs], runs)
    printer.end()
    if printer.is_empty and output is None:
        kind = "".join(word for word, is_given in _kinds_of(selection, held=held) if is_given)
        say(f"No {kind}TaskRuns found{'' if everywhere else f' in namespace {connection.namespace}'}.")


def _kinds_of(selection: ObjectSelection, *, held: bool) -> Sequence[tuple[str, bool]]:
    return (("held ", held), ("orphaned ", ORPHANED in (selection.fields or "")))


def _colour_of(run: ListedRun) -> str | None:
    if run.outcome is not None:
        return _COLOURS.get(Outcome(run.outcome)) if run.outcome in set(Outcome) else None
    if run.held or run.status == _UNREADABLE:
        return "yellow"
    return "cyan" if run.status == Reason.RUNNING else None
