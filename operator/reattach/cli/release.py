"""`release`: remove Reattach's finalizers, and list every external job that may still run."""

from collections.abc import Container, Sequence
from contextlib import suppress
from dataclasses import dataclass

import msgspec

from reattach.api.names import FINALIZER_ATTEMPT, FINALIZER_EXTERNAL_JOBS, FINALIZER_STATE, LABEL_TASKRUN
from reattach.api.objects import ObjectMeta, PartialObject, Shape
from reattach.api.state import JobState, JobSummary
from reattach.api.taskrun import ExternalJobStatus, TaskRun
from reattach.cli.connection import ClusterConnection
from reattach.cli.errors import CommandError, NoSuchTaskRunError
from reattach.cli.hold_options import find_held_condition, is_ending
from reattach.cli.queries import MissingState, items_of, read_state, read_taskrun
from reattach.cli.resolve import FIELD_MANAGER
from reattach.cli.retry import retry_conflicts
from reattach.cluster import ConflictError, ForbiddenError, NotFoundError, paths
from reattach.planner.external_jobs import UNWATCHED, job_id
from reattach.state.codec import from_configmap, view_of
from reattach.state.errors import RequestRejectedError


class LeftJob(Shape, frozen=True):
    """An external job that nothing tracks any more.

    `state`: as in `status.externalJobs`, or `Stray` (a second handle of one submission), or
    `GivenUp` (failed by policy, because its outcome was unknown).
    """

    key: str
    generation: int
    state: str
    handle: str | None = None
    url: str | None = None


class ReleasePlan(Shape, frozen=True):
    """Objects that lose their finalizers, as `kind/name`, and the jobs that may still run."""

    name: str
    namespace: str
    objects: tuple[str, ...]
    jobs: tuple[LeftJob, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _FinalizedObject:
    """An object that carries a finalizer of ours."""

    kind: str
    path: str
    metadata: ObjectMeta
    finalizer: str


@dataclass(frozen=True)
class PreparedRelease:
    """Result of `prepare` and input of `carry_out`."""

    plan: ReleasePlan
    objects: tuple[_FinalizedObject, ...]
    taskrun: TaskRun | None


async def prepare(connection: ClusterConnection, name: str, *, force: bool = False) -> PreparedRelease:
    """Find our finalizers without changing anything.

    Raises `CommandError` if no object has one, or if the run continues.
    """
    try:
        taskrun: TaskRun | None = await read_taskrun(connection, name)
    except NoSuchTaskRunError:
        taskrun = None  # its pods and its state may be there still
        objects = await _find_finalized(connection, name, None)
        if not objects:
            raise
    else:
        if taskrun is not None and not force:
            _check_is_ending(taskrun)
        objects = await _find_finalized(connection, name, taskrun)
    if not objects:
        raise CommandError(f"{name}, its pods and its state have no finalizer of Reattach, so nothing keeps them.")
    jobs, notes = await _jobs_left(connection, name, taskrun, objects)
    names = tuple(f"{one.kind}/{one.metadata.name}" for one in objects)
    return PreparedRelease(
        ReleasePlan(name=name, namespace=connection.namespace, objects=names, jobs=jobs, notes=notes),
        objects,
        taskrun,
    )


async def carry_out(connection: ClusterConnection, release: PreparedRelease) -> None:
    """Remove the finalizers, the TaskRun's first, and change nothing else.

    Safe to repeat. Raises `ClusterError`.
    """
    for finalized in release.objects:
        await _remove_finalizer(connection, finalized)


def format_plan(plan: ReleasePlan) -> list[str]:
    """Return the plan as lines of text."""
    lines = [f"Remove Reattach's finalizers from {', '.join(plan.objects)}."]
    if plan.jobs:
        lines.append("External jobs that may still run, and that nothing tracks then:")
        lines += [
            f"  {job.key}, generation {job.generation}: {job.handle or 'handle not known'} ({job.state})"
            + (f" {job.url}" if job.url else "")
            for job in plan.jobs
        ]
    elif not plan.notes:
        lines.append("No external job is known that may still run.")
    return lines + list(plan.notes)


def _check_is_ending(taskrun: TaskRun) -> None:
    about, status = taskrun.metadata, taskrun.status
    if not is_ending(taskrun) and status.outcome is None and find_held_condition(status) is None:
        raise CommandError(
            f"{about.name} is neither being deleted nor cancelled nor held, so it would continue without the finalizers that protect its jobs; "
            f"first run kubectl delete trun {about.name} -n {about.namespace} --wait=false, or repeat with --force."
        )


async def _find_finalized(
    connection: ClusterConnection, name: str, taskrun: TaskRun | None
) -> tuple[_FinalizedObject, ...]:
    cluster, namespace = connection.cluster, connection.namespace
    objects = []
    if taskrun is not None and FINALIZER_EXTERNAL_JOBS in taskrun.metadata.finalizers:
        objects.append(
            _FinalizedObject("taskrun", paths.taskruns(namespace, name), taskrun.metadata, FINALIZER_EXTERNAL_JOBS)
        )
    kinds = (("pod", paths.pods, FINALIZER_ATTEMPT), ("configmap", paths.configmaps, FINALIZER_STATE))
    for kind, path_of, finalizer in kinds:
        body = await cluster.list(path_of(namespace), metadata_only=True, labelSelector=f"{LABEL_TASKRUN}={name}")
        objects += [
            _FinalizedObject(kind, path_of(namespace, one.metadata.name), one.metadata, finalizer)
            for one in items_of(body, PartialObject)
            if finalizer in one.metadata.finalizers and _is_owned_by(one.metadata, taskrun)
        ]
    return tuple(objects)


def _is_owned_by(metadata: ObjectMeta, taskrun: TaskRun | None) -> bool:
    return taskrun is None or metadata.taskrun_uid == taskrun.metadata.uid


async def _jobs_left(
    connection: ClusterConnection, name: str, taskrun: TaskRun | None, objects: tuple[_FinalizedObject, ...]
) -> tuple[tuple[LeftJob, ...], tuple[str, ...]]:
    """Return the jobs that may run, from the state if it can be read, else from the status."""
    known: tuple[JobSummary, ...] | None = None
    note = ""
    try:
        if taskrun is not None:
            stored = await read_state(connection, taskrun)
            known = None if isinstance(stored, MissingState) else view_of(msgspec.json.encode(stored.body)).jobs
            note = stored.why if isinstance(stored, MissingState) and stored.lost else ""
        elif state := next((one for one in objects if one.kind == "configmap"), None):
            known = view_of(msgspec.json.encode(from_configmap(await connection.cluster.get(state.path)).body)).jobs
    except (ForbiddenError, CommandError, RequestRejectedError) as error:
        note = (
            f"The state of {name} can't be read ({error}): check the external system for jobs that are not listed here."
        )
    in_status = taskrun.status.external_jobs if taskrun is not None else ()
    if known is not None:
        # The jobs of a lost state that was started again are only in the status.
        ids = {job_id(job) for job in known}
        return _left_by_state(known) + _left_by_status(
            UNWATCHED, [job for job in in_status if job_id(job) not in ids]
        ), ()
    may_run = set(JobState) - {JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED}
    jobs = _left_by_status(may_run, in_status)
    if taskrun is not None and "Fail" in {taskrun.spec.submission.on_unknown, taskrun.spec.submission.on_not_found}:
        # The status does not show which of them were given up.
        jobs += _left_by_status({JobState.FAILED}, in_status, "Failed, or given up")
    return jobs, (note,) if note else ()


def _left_by_state(known: Sequence[JobSummary]) -> tuple[LeftJob, ...]:
    """Return the jobs that may run: open ones, stray handles, and jobs that were given up."""
    jobs = tuple(_left(job, job.state.value) for job in known if job.is_open)
    strays = tuple(
        LeftJob(key=job.key, generation=job.generation, state="Stray", handle=stray)
        for job in known
        for stray in job.strays
    )
    return jobs + strays + tuple(_left(job, "GivenUp") for job in known if job.given_up)


def _left_by_status(
    states: Container[str], in_status: Sequence[ExternalJobStatus], state: str | None = None
) -> tuple[LeftJob, ...]:
    return tuple(_left(job, state or job.state) for job in in_status if job.state in states)


def _left(job: JobSummary | ExternalJobStatus, state: str) -> LeftJob:
    return LeftJob(key=job.key, generation=job.generation, state=state, handle=job.handle, url=job.url)


async def _remove_finalizer(connection: ClusterConnection, finalized: _FinalizedObject) -> None:
    metadata = finalized.metadata

    async def write() -> None:
        nonlocal metadata
        left = [name for name in metadata.finalizers if name != finalized.finalizer]
        patch = {"metadata": {"uid": metadata.uid, "resourceVersion": metadata.resource_version, "finalizers": left}}
        try:
            await connection.cluster.merge_patch(finalized.path, patch, fieldManager=FIELD_MANAGER)
        except ConflictError:
            body = await connection.cluster.get(finalized.path, metadata_only=True)
            metadata = msgspec.json.decode(body, type=PartialObject).metadata
            if metadata.uid != finalized.metadata.uid:
                return  # the name belongs to another object now
            raise

    with suppress(NotFoundError):
        await retry_conflicts(f"{finalized.kind}/{metadata.name}", write)
