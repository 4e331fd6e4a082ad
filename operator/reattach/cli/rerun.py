"""`rerun`: create another TaskRun from one that has ended, but never beside a job that may run."""

import json
import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reattach.api.names import ANNOTATION_CLEANUP_OF, ANNOTATION_RERUN_OF, API_VERSION, KIND, NAME_MAX
from reattach.api.objects import Shape
from reattach.api.state import JobState
from reattach.api.taskrun import ExternalJobStatus, TaskRun
from reattach.api.text import one_line, shell_command
from reattach.cli.connection import ClusterConnection
from reattach.cli.errors import CommandError
from reattach.cli.orphans import FoundRecord, OrphanRow, find_records
from reattach.cli.queries import read_taskrun_json, to_taskrun
from reattach.cli.resolve import FIELD_MANAGER
from reattach.cli.text import listed
from reattach.cluster import ConflictError, paths
from reattach.planner.conditions import has_unrecorded_orphans, progress_condition

JSON = dict[str, Any]

_NAMED = 5
"""Number of jobs that one sentence names."""
OVER = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})
_MULTIKUEUE = "kueue.x-k8s.io/multikueue"
_OBJECTS = "kubernetes-"
"""Start of the names of adapters whose jobs are objects of a Kubernetes API."""
_OF_ONE_RUN = ("cancel", "suspend", "resolutions", "adopt", "stateFrom")
"""Fields of the spec that were decisions about the earlier run."""

# Tools own the objects that these mark, and may change or prune a second object with their marks.
_TOOLS = frozenset(
    {
        "reattach.dev",
        "kubectl.kubernetes.io",
        "applyset.kubernetes.io",
        "kueue.x-k8s.io",
        "helm.sh",
        "argoproj.io",
        "fluxcd.io",
        "cattle.io",
        "k14s.io",
        "velero.io",
    }
)
_TOOL_KEYS = frozenset({"app.kubernetes.io/managed-by", "app.kubernetes.io/instance"})
_QUEUE_KEYS = frozenset({"kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class"})
"""Keys that users set, although their domain is one of a tool."""


@dataclass(frozen=True, kw_only=True)
class RerunRequest:
    """Request to create a TaskRun. `name` None: the next number.

    `keep_state`: start with the keys of the earlier run. `adopt`: reattach to its orphaned jobs.
    `cancel_first`: its orphaned jobs were just cancelled.
    """

    source: str
    name: str | None = None
    keep_state: bool = False
    adopt: bool = False
    cancel_first: bool = False
    dry_run: bool = False


class RerunResult(Shape, frozen=True):
    """The TaskRun as the API server returned it, and sentences about it."""

    name: str
    taskrun: JSON
    message: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class EndedRun:
    """A TaskRun that has ended, as JSON and decoded, and the records of jobs that its name left."""

    body: JSON
    taskrun: TaskRun
    records: tuple[FoundRecord, ...]

    @property
    def rows(self) -> tuple[OrphanRow, ...]:
        """Return the jobs in the records."""
        return tuple(row for record in self.records for row in record.rows)

    @property
    def without_record(self) -> tuple[ExternalJobStatus, ...]:
        """Return the jobs that were left running and that no record lists (any more)."""
        recorded = {(row.uid, row.key, row.generation) for row in self.rows}
        about, jobs = self.taskrun.metadata, self.taskrun.status.external_jobs
        left = (job for job in jobs if job.state == JobState.ORPHANED)
        return tuple(job for job in left if (about.uid, job.key, job.generation) not in recorded)

    @property
    def is_unrecorded(self) -> bool:
        """Return whether the operator could not store the record. Then no job was dismissed."""
        return has_unrecorded_orphans(self.taskrun.status)


async def read_ended(connection: ClusterConnection, name: str) -> EndedRun:
    """Read a TaskRun that has ended, and then the records of its jobs.

    The operator writes the record before the outcome, so a job that is in no record was not left,
    or its record was dismissed. Raises `CommandError` if the TaskRun is unfinished.
    """
    body = await read_taskrun_json(connection, name)
    taskrun = to_taskrun(body)
    check_ended(taskrun)
    return EndedRun(json.loads(body), taskrun, tuple(await find_records(connection, [name])))


async def rerun(connection: ClusterConnection, request: RerunRequest) -> RerunResult:
    """Create the TaskRun.

    Raises `CommandError` if it must not be created, or if its name is taken, and `ClusterError`.
    """
    ended = await read_ended(connection, request.source)
    manifest = build_rerun(ended, request)
    await _check_name_left_no_job(connection, manifest["metadata"]["name"], request.source)
    created = await create_taskrun(connection, manifest, dry_run=request.dry_run)
    name = manifest["metadata"]["name"]
    if created is None:
        raise CommandError(
            f"taskrun/{name} exists already; nothing was created. Run kubectl reattach rerun {name} once it has ended, "
            "or choose another name with --name."
        )
    how = "would be created (dry run)." if request.dry_run else "was created."
    return RerunResult(name=name, taskrun=created, message=f"taskrun/{name} {how}", notes=notes_of(ended, request))


async def _check_name_left_no_job(connection: ClusterConnection, name: str, source: str) -> None:
    """Raise `CommandError` if a job may run that an earlier TaskRun of the new name left.

    That TaskRun may have been a rerun of the same task, and was deleted since.
    """
    rows = [] if name == source else [row for record in await find_records(connection, [name]) for row in record.rows]
    check_readable(rows)
    if rows:
        raise CommandError(
            f"{_subject([describe_job(row) for row in rows])} of an earlier TaskRun {name} may run; nothing was created.",
            lines=["Once it does not run, or if it may run beside the new one, run:", _dismissal(rows[0])],
        )


async def create_taskrun(connection: ClusterConnection, manifest: JSON, *, dry_run: bool = False) -> JSON | None:
    """Create a TaskRun, and return it without its managed fields; None if the name is taken."""
    query = {"dryRun": "All"} if dry_run else {}
    path = paths.taskruns(connection.namespace)
    try:
        body = await connection.cluster.create(
            path, manifest, fieldManager=FIELD_MANAGER, fieldValidation="Strict", **query
        )
    except ConflictError:
        return None
    created: JSON = json.loads(body)
    created["metadata"].pop("managedFields", None)
    return created


# -- pure ------------------------------------------------------------------------------------------


def check_ended(taskrun: TaskRun) -> None:
    """Raise `CommandError` unless the TaskRun has ended."""
    if taskrun.status.outcome is not None:
        return
    name, shown = taskrun.metadata.name, progress_condition(taskrun.status)
    status = f" ({shown.reason})" if shown is not None else ""
    raise CommandError(
        f"{name} is unfinished{status}, so its external jobs may run; nothing was created. Wait for its end "
        f"(kubectl reattach wait {name}), or cancel it (kubectl reattach cancel {name})."
    )


def build_rerun(ended: EndedRun, request: RerunRequest) -> JSON:
    """Return the TaskRun to create.

    Raises `CommandError` if a job of the earlier run may run and is not adopted.
    """
    _check_runs_task(ended)
    _check_recorded(ended)
    adopted = adoptions_of(ended, request.source) if request.adopt else []
    if not request.adopt:
        _check_nothing_runs(ended)
    spec: JSON = {key: value for key, value in ended.body["spec"].items() if key not in _OF_ONE_RUN}
    submission = {key: value for key, value in spec.pop("submission", {}).items() if key != "idempotencyKey"}
    if submission:
        spec["submission"] = submission
    if adopted:
        spec["adopt"] = adopted
    if request.keep_state:
        spec["stateFrom"] = request.source
    root, number = series_of(ended.taskrun)
    metadata = {
        "name": request.name or _numbered(root, number + 1),
        "namespace": ended.taskrun.metadata.namespace,
        **user_metadata_of(ended.body["metadata"], {ANNOTATION_RERUN_OF: root}),
    }
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": spec}


def series_of(taskrun: TaskRun) -> tuple[str, int]:
    """Return the name that the numbers are appended to, and the number of this TaskRun, from 1.

    The name of a first run may end with a number, such as a date. The annotation that a rerun has
    shows which part of its name is the number.
    """
    about = taskrun.metadata
    root = about.annotations.get(ANNOTATION_RERUN_OF, "")
    found = re.fullmatch(re.escape(root) + "-([1-9][0-9]{0,5})", about.name) if root else None
    return (root, int(found[1])) if found else (about.name, 1)


def _numbered(root: str, number: int) -> str:
    name = f"{root}-{number}"
    if len(name) > NAME_MAX:
        raise CommandError(f"The name {name} has more than {NAME_MAX} characters; choose one with --name.")
    return name


def user_metadata_of(metadata: JSON, annotations: Mapping[str, str], *, keeps_queue: bool = True) -> JSON:
    """Return the labels and annotations that users set, and these annotations.

    `keeps_queue`: also those that select a queue of Kueue.
    """
    kept = _QUEUE_KEYS if keeps_queue else frozenset[str]()
    labels = _of_users(metadata.get("labels", {}), kept)
    merged = {**_of_users(metadata.get("annotations", {}), kept), **annotations}
    return {**({"labels": labels} if labels else {}), **({"annotations": merged} if merged else {})}


def _of_users(entries: Mapping[str, str], kept: Container[str]) -> dict[str, str]:
    return {key: value for key, value in entries.items() if key in kept or not _is_of_tool(key)}


def _is_of_tool(key: str) -> bool:
    domain = key.partition("/")[0] if "/" in key else ""
    parents = (domain, *(domain[at + 1 :] for at, letter in enumerate(domain) if letter == "."))
    return key in _TOOL_KEYS or any(parent in _TOOLS for parent in parents)


def adoptions_of(ended: EndedRun, name: str) -> list[JSON]:
    """Return `spec.adopt` for the jobs that may run.

    Raises `CommandError` without such a job, or if one of them can't be adopted.
    """
    check_readable(ended.rows)
    _check_none_open(ended)
    if not ended.rows:
        raise CommandError(f"{name} left no external job running that could be adopted; leave out --adopt.")
    entries: dict[str, JSON] = {}
    for row in ended.rows:
        if row.handle is None:
            raise CommandError(
                f"{describe_job(row)} has no handle, so it can't be adopted; nothing was created. Find out whether it runs, "
                f"and then run: {_dismissal(row)}"
            )
        key = row.key or ""
        if key in entries and entries[key]["handle"] != row.handle:
            raise CommandError(
                f"{name} left two jobs of the key {one_line(key)}, and only one can be adopted; nothing was created. Cancel the "
                f"others, and then run: {_dismissal(row)}"
            )
        entries[key] = {"key": key, "handle": row.handle} | ({"adapter": row.adapter} if row.adapter else {})
    return list(entries.values())


def _check_nothing_runs(ended: EndedRun) -> None:
    """Raise `CommandError` if a job may run, with its handle and the ways out."""
    check_readable(ended.rows)
    _check_none_open(ended)
    if not ended.rows:
        return
    name = ended.taskrun.metadata.name
    about = ["-n", ended.taskrun.metadata.namespace]
    raise CommandError(
        f"{_subject([describe_job(row) for row in ended.rows])} of {name} may run; nothing was created.",
        lines=[
            "To reattach to it, run:",
            shell_command(["kubectl", "reattach", "rerun", name, *about, "--adopt"]),
            "To cancel it, and then run the task again, run:",
            shell_command(["kubectl", "reattach", "rerun", name, *about, "--cancel-first"]),
            "If it does not run, or may run beside the new one, forget it first:",
            _dismissal(ended.rows[0]),
        ],
    )


def _check_runs_task(ended: EndedRun) -> None:
    """Raise `CommandError` unless another TaskRun can run the task from this spec.

    One of `orphans --cancel` runs no task. One of MultiKueue requires an idempotency key, which a
    rerun must not share. Its records are in the cluster that ran it, too.
    """
    about = ended.taskrun.metadata
    if ended.taskrun.spec.managed_by == _MULTIKUEUE:
        raise CommandError(
            f"MultiKueue manages {about.name}, so another TaskRun needs an idempotency key of its own; nothing was created. Find "
            "out in the cluster that ran it whether its jobs run, and create the TaskRun from a manifest with a new key."
        )
    if (source := about.annotations.get(ANNOTATION_CLEANUP_OF)) is not None:
        raise CommandError(
            f"{about.name} only cancelled jobs of {one_line(source)} and ran no task, so it can't be run again; nothing was "
            f"created. Name {one_line(source)} instead."
        )


def _check_recorded(ended: EndedRun) -> None:
    """Raise `CommandError` if the run left jobs, and no record of them could be stored."""
    if not ended.is_unrecorded:
        return
    name = ended.taskrun.metadata.name
    names = _subject([describe_job(job) for job in ended.without_record] or ["that its condition Orphaned names"])
    raise CommandError(
        f"{names} of {name} may run, and the operator could not store the record of it, so it can't be dismissed; nothing was "
        f"created. Find out whether it runs, and then create another TaskRun from the manifest of {name}, with spec.adopt to "
        "reattach to it."
    )


def check_readable(rows: Sequence[OrphanRow]) -> None:
    for row in rows:
        if row.error is not None:
            raise CommandError(
                f"The record {row.record} of jobs that {row.taskrun} left can't be read ({one_line(row.error)}); nothing was "
                f"created. Repair it, or find out whether its jobs run, and then run: {_dismissal(row)}"
            )


def _check_none_open(ended: EndedRun) -> None:
    """Raise `CommandError` if the status has an open job.

    The operator leaves none in the status of an ended TaskRun.
    """
    left = {*OVER, JobState.ORPHANED, JobState.DETACHED}
    jobs = [job for job in ended.taskrun.status.external_jobs if job.state not in left]
    if jobs:
        names = _subject([f"{describe_job(job)} ({job.state})" for job in jobs])
        raise CommandError(f"{names} of {ended.taskrun.metadata.name} may run; nothing was created.")


def notes_of(ended: EndedRun, request: RerunRequest) -> tuple[str, ...]:
    """Return sentences about jobs of the earlier run that the new run does not wait for."""
    notes = []
    if request.adopt:
        adopted = listed([describe_job(row) for row in ended.rows[:_NAMED]])
        notes.append(f"The new run reattaches to {adopted} where it would submit.")
        if objects := [describe_job(row) for row in ended.rows if (row.adapter or "").startswith(_OBJECTS)]:
            name = ended.taskrun.metadata.name
            notes.append(
                f"Warning: If the adapter has owned=True, {name} owns {listed(objects[:_NAMED])}, which Kubernetes deletes with it. "
                f"Then delete neither {name} nor its record before the new run has ended; without the record, its spec.ttl "
                "deletes it."
            )
        notes.append(f"Once it watches them, run: {_dismissal(ended.rows[0])}")
    jobs = ended.taskrun.status.external_jobs
    if detached := [describe_job(job) for job in jobs if job.state == JobState.DETACHED]:
        notes.append(f"Warning: {_subject(detached)} was detached by the earlier run, and may run beside the new one.")
    dismissed = [] if request.cancel_first else [describe_job(job) for job in ended.without_record]
    if dismissed:
        notes.append(
            f"Warning: {_subject(dismissed)} was left running by the earlier run. It has no record any more, so it counts as dismissed."
        )
    return tuple(notes)


def format_rerun(result: RerunResult) -> list[str]:
    """Return the result as lines of text."""
    return [result.message, *result.notes]


def describe_job(job: OrphanRow | ExternalJobStatus) -> str:
    """Return the handle and the key of a job as a part of a sentence."""
    generation = f", generation {job.generation}" if (job.generation or 1) > 1 else ""
    return f"{one_line(job.handle or 'a job without a known handle')} ({one_line(job.key or '')}{generation})"


def _subject(names: Sequence[str]) -> str:
    more = [f"{len(names) - _NAMED} more"] if len(names) > _NAMED else []
    return f"External job {listed([*names[:_NAMED], *more])}"


def _dismissal(row: OrphanRow) -> str:
    return shell_command(["kubectl", "reattach", "orphans", "-n", row.namespace, "--dismiss", row.taskrun])
