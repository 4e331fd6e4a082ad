"""`orphans`: external jobs that ended TaskRuns left running, and the dismissal of their records.

Each record is a ConfigMap with the label `reattach.dev/orphans`. Users may edit it, so one that
can't be read is a row that says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import msgspec

from reattach.api.names import LABEL_ORPHANS
from reattach.api.objects import ObjectMeta, PartialObject, Shape, Time
from reattach.api.orphans import FORMAT_VERSION, RECORD, OrphanedJob, OrphanRecord
from reattach.api.text import one_line, shell_command
from reattach.cli.connection import ClusterConnection
from reattach.cli.errors import CommandError
from reattach.cli.flags import PagePrinter, say
from reattach.cli.pages import ObjectSelection, read_pages
from reattach.cli.text import NOTHING, Cell, ago, count, duration
from reattach.cluster import ConflictError, NotFoundError, paths

_HANDLE_SHOWN = 60
_WHY_SHOWN = 200


class OrphanRow(Shape, frozen=True, omit_defaults=False):
    """One job that was left running, also with `-o json`.

    `taskrun`: the name in the label of the record. `record`: the name of its ConfigMap. `reason`
    and `time`: those of the end of the TaskRun. `error`: the record can't be read, and why.
    """

    namespace: str
    taskrun: str
    record: str
    uid: str | None = None
    key: str | None = None
    generation: int | None = None
    handle: str | None = None
    adapter: str | None = None
    url: str | None = None
    cancel_requested_time: Time | None = None
    why: str | None = None
    reason: str | None = None
    time: Time | None = None
    created: Time | None = None
    error: str | None = None


class Dismissal(Shape, frozen=True):
    """One record that was deleted. `jobs`: those that it listed, as text."""

    name: str
    namespace: str
    taskrun: str
    message: str
    jobs: tuple[str, ...] = ()


@dataclass(frozen=True)
class FoundRecord:
    """One record as read. `name`: of its ConfigMap. `rows`: its jobs, or its error."""

    metadata: ObjectMeta
    rows: tuple[OrphanRow, ...]

    @property
    def name(self) -> str:
        return self.metadata.name


class _RecordObject(Shape, frozen=True):
    metadata: ObjectMeta
    data: dict[str, str] | None = None


def selection_of(names: Sequence[str] = (), *, all_namespaces: bool = False) -> ObjectSelection:
    """Return the selection of the records of these TaskRuns; of all without names."""
    labels = LABEL_ORPHANS
    if names:
        labels += f"={names[0]}" if len(names) == 1 else f" in ({','.join(names)})"
    return ObjectSelection(path_of=paths.configmaps, all_namespaces=all_namespaces, labels=labels)


async def print_orphans(
    connection: ClusterConnection, selection: ObjectSelection, names: Sequence[str], now: datetime, output: str | None
) -> None:
    """Print a row for each job in the records, page by page."""
    everywhere = selection.all_namespaces
    printer = PagePrinter(titles_of(all_namespaces=everywhere), output)
    missing = dict.fromkeys(names)
    async for page in read_pages(connection, selection, decode_record):
        rows = [row for record in page for row in record.rows]
        printer.print_page([cells_of(row, now, all_namespaces=everywhere) for row in rows], rows)
        for row in rows:
            missing.pop(row.taskrun, None)
    printer.end()
    where = "" if everywhere else f" in namespace {connection.namespace}"
    if names:
        for name in missing:
            say(f"TaskRun {name} has no record of orphaned jobs{where}.")
    elif printer.is_empty and output is None:
        say(f"No records of orphaned jobs found{where}.")


async def read_records(connection: ClusterConnection, names: Sequence[str]) -> list[FoundRecord]:
    """Read the records of these TaskRuns in the namespace.

    Raises `CommandError` if one of them has none, because its name may be mistyped.
    """
    found = await find_records(connection, names)
    known = {record.metadata.labels.get(LABEL_ORPHANS) for record in found}
    for name in names:
        if name not in known:
            raise CommandError(
                f"TaskRun {name} has no record of orphaned jobs in namespace {connection.namespace}. "
                "Nothing was changed; kubectl reattach orphans lists the records."
            )
    return found


async def find_records(connection: ClusterConnection, names: Sequence[str]) -> list[FoundRecord]:
    """Read the records of these TaskRuns in the namespace; one without a record is no error."""
    pages = read_pages(connection, selection_of(names), decode_record)
    return [record async for page in pages for record in page]


async def read_orphaned_jobs(connection: ClusterConnection, name: str) -> tuple[OrphanedJob, ...]:
    """Read the jobs in the ConfigMap of this name.

    They are empty if it was dismissed or can't be read. Raises `ClusterError`.
    """
    try:
        body = await connection.cluster.get(paths.configmaps(connection.namespace, name))
    except NotFoundError:
        return ()
    record = _record_of(msgspec.json.decode(body, type=_RecordObject))
    return () if isinstance(record, str) else record.jobs


async def dismiss(connection: ClusterConnection, record: FoundRecord) -> Dismissal:
    """Delete the record, unless it changed since it was read. Safe to repeat."""
    about = record.metadata
    path = paths.configmaps(connection.namespace, about.name)
    try:
        await connection.cluster.delete(path, uid=about.uid, resource_version=about.resource_version)
    except NotFoundError:
        return _dismissal_of(record, "is gone already, so there was nothing to dismiss.", ())
    except ConflictError:
        raise CommandError(
            f"configmap/{about.name} changed after it was read, so it was not dismissed; list it again."
        ) from None
    jobs = tuple(_job_text(row) for row in record.rows)
    return _dismissal_of(record, f"was dismissed. Forgotten: {_what_of(record.rows)}", jobs)


async def list_orphan_taskruns(connection: ClusterConnection) -> list[str]:
    """List the names of TaskRuns that have a record in the namespace, at most 500."""
    path = paths.configmaps(connection.namespace)
    body = await connection.cluster.list(path, metadata_only=True, labelSelector=LABEL_ORPHANS, limit=500)
    items = msgspec.json.decode(body).get("items") or []
    return [msgspec.convert(item, PartialObject).metadata.labels.get(LABEL_ORPHANS, "") for item in items]


# -- pure ------------------------------------------------------------------------------------------


def decode_record(body: bytes) -> FoundRecord:
    """Decode the ConfigMap of a record. One that can't be read has a row with the error."""
    found = msgspec.json.decode(body, type=_RecordObject)
    about = found.metadata
    row = OrphanRow(
        namespace=about.namespace,
        taskrun=about.labels.get(LABEL_ORPHANS, ""),
        record=about.name,
        created=about.creation_timestamp,
    )
    record = _record_of(found)
    if isinstance(record, str):
        return FoundRecord(about, (msgspec.structs.replace(row, error=record),))
    row = msgspec.structs.replace(row, uid=record.uid, reason=record.reason, time=record.time)
    return FoundRecord(about, tuple(_row_of(row, job) for job in record.jobs))


def _record_of(found: _RecordObject) -> OrphanRecord | str:
    """Return the record, or why it can't be read."""
    try:
        record = msgspec.json.decode((found.data or {}).get(RECORD, ""), type=OrphanRecord)
    except msgspec.DecodeError as error:
        return str(error)
    except RecursionError:
        return "its JSON is nested too deeply"
    if record.format_version > FORMAT_VERSION:
        return f"a newer version wrote it (formatVersion {record.format_version}); upgrade kubectl reattach"
    return record if record.jobs else "it lists no job"


def _row_of(row: OrphanRow, job: OrphanedJob) -> OrphanRow:
    return msgspec.structs.replace(
        row,
        key=job.key,
        generation=job.generation,
        handle=job.handle,
        adapter=job.adapter,
        url=job.url,
        cancel_requested_time=job.cancel_requested_time,
        why=job.why,
    )


def titles_of(*, all_namespaces: bool = False) -> tuple[str, ...]:
    """Return the titles of the columns."""
    namespace = ("NAMESPACE",) if all_namespaces else ()
    return (*namespace, "TASKRUN", "KEY", "HANDLE", "ADAPTER", "CANCEL REQUESTED", "AGE", "WHY")


def cells_of(row: OrphanRow, now: datetime, *, all_namespaces: bool = False) -> tuple[str | Cell, ...]:
    """Return the row of a job. The last column may be long, so it has the reason."""
    why = row.why or NOTHING if row.error is None else f"The record {row.record} can't be read: {row.error}"
    generation = f" (generation {row.generation})" if (row.generation or 1) > 1 else ""
    return (
        *((row.namespace,) if all_namespaces else ()),
        row.taskrun,
        f"{one_line(row.key or NOTHING, _HANDLE_SHOWN)}{generation}",
        one_line(row.handle or NOTHING, _HANDLE_SHOWN),
        one_line(row.adapter or NOTHING, _HANDLE_SHOWN),
        ago(row.cancel_requested_time, now) if row.cancel_requested_time else NOTHING,
        duration(now - row.created) if row.created else NOTHING,
        Cell(one_line(why, _WHY_SHOWN), "yellow" if row.error is not None else None),
    )


def describe_dismissal(records: Sequence[FoundRecord], names: Sequence[str], namespace: str) -> list[str]:
    """Return what a dismissal would forget, and the command that does it."""
    rows = [row for record in records for row in record.rows]
    command = ["kubectl", "reattach", "orphans", "-n", namespace, "--dismiss", *dict.fromkeys(names), "--yes"]
    return [
        f"Nothing was changed. To delete {count(len(records), 'record')}, and so forget {_what_of(rows)}, run:",
        shell_command(command),
    ]


def format_dismissal(result: Dismissal) -> list[str]:
    """Return the result as lines of text."""
    return [f"configmap/{result.name} {result.message}", *(f"  {job}" for job in result.jobs)]


def _dismissal_of(record: FoundRecord, message: str, jobs: tuple[str, ...]) -> Dismissal:
    about = record.metadata
    taskrun = about.labels.get(LABEL_ORPHANS, "")
    return Dismissal(name=about.name, namespace=about.namespace, taskrun=taskrun, message=message, jobs=jobs)


def _what_of(rows: Sequence[OrphanRow]) -> str:
    jobs, unreadable = sum(row.error is None for row in rows), sum(row.error is not None for row in rows)
    parts = [count(jobs, "job")] if jobs or not unreadable else []
    return " and ".join([*parts, *([count(unreadable, "record") + " that can't be read"] if unreadable else [])])


def _job_text(row: OrphanRow) -> str:
    if row.error is not None:
        return one_line(f"unreadable: {row.error}", _WHY_SHOWN)
    generation = f", generation {row.generation}" if (row.generation or 1) > 1 else ""
    url = f" {one_line(row.url)}" if row.url else ""
    return f"{one_line(row.key or NOTHING)}{generation}: {one_line(row.handle or 'handle not known')}{url}"
