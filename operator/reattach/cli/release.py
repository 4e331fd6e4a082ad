"""`release`: the way out. Reattach's finalizers go, and every external job that may still run is named."""

from collections.abc import Container, Sequence
from dataclasses import dataclass

import msgspec

from reattach.api.names import FINALIZER_ATTEMPT, FINALIZER_EXTERNAL_JOBS, FINALIZER_STATE, LABEL_TASKRUN
from reattach.api.objects import ObjectMeta, PartialObject, Shape
from reattach.api.state import JobState, JobSummary
from reattach.api.taskrun import ExternalJobStatus, TaskRun
from reattach.cli.connection import ClusterConnection
from reattach.cli.errors import CommandError, NoSuchTaskRunError
from reattach.cli.hold_options import held_condition_of
from reattach.cli.queries import NoState, items_of, stored_of, taskrun_of
from reattach.cli.resolve import FIELD_MANAGER
from reattach.cli.text import one_line
from reattach.cluster import ConflictError, ForbiddenError, NotFoundError, paths
from reattach.planner.external_jobs import UNWATCHED, job_id
from reattach.state.codec import from_configmap, view_of
from reattach.state.errors import RequestRejectedError

_TRIES = 8


class LeftJob(Shape, frozen=True):
    """An external job that nobody looks after any more. `state`: as in `status.externalJobs`, or `Stray`, a second handle, or `GivenUp`, failed
    because nobody could tell what became of it.
    """

    key: str
    generation: int
    state: str
    handle: str | None = None
    url: str | None = None


class LetGo(Shape, frozen=True):
    """What was, or is to be, let go: objects as `kind/name`, and the jobs that are left."""

    name: str
    namespace: str
    objects: tuple[str, ...]
    jobs: tuple[LeftJob, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Held:
    """An object that carries a finalizer of ours."""

    kind: str
    path: str
    metadata: ObjectMeta
    finalizer: str


@dataclass(frozen=True)
class Release:
    """What `prepare` found; `carry_out` does it."""

    plan: LetGo
    held: tuple[_Held, ...]
    taskrun: TaskRun | None


async def prepare(connection: ClusterConnection, name: str, *, force: bool = False) -> Release:
    """See what is held back, without changing anything. Raises `CommandError` if nothing is, or if it should go on by itself."""
    try:
        taskrun: TaskRun | None = await taskrun_of(connection, name)
    except NoSuchTaskRunError:
        taskrun = None  # its pods and its state may be there still
        held = await _leftovers(connection, name, None)
        if not held:
            raise
    else:
        if taskrun is not None and not force:
            _check_may_go(taskrun)
        held = await _leftovers(connection, name, taskrun)
    if not held:
        raise CommandError(f"{name} carries no finalizer of Reattach; nothing keeps it.")
    jobs, notes = await _jobs_left(connection, name, taskrun, held)
    objects = tuple(f"{one.kind}/{one.metadata.name}" for one in held)
    return Release(
        LetGo(name=name, namespace=connection.namespace, objects=objects, jobs=jobs, notes=notes), held, taskrun
    )


async def carry_out(connection: ClusterConnection, release: Release) -> None:
    """Take the finalizers off, the TaskRun's first. Nothing else is changed; safe to repeat. Raises `ClusterError`."""
    for held in release.held:
        await _remove(connection, held)


def lines_of(plan: LetGo) -> list[str]:
    """What is let go and what is left, for people."""
    lines = [f"Finalizers of Reattach on {', '.join(plan.objects)}."]
    if plan.jobs:
        lines.append("External jobs that may still run, and that nobody looks after then:")
        lines += [
            f"  {one_line(job.key)}, generation {job.generation}: {one_line(job.handle or 'handle not known')} ({job.state})"
            + (f" {one_line(job.url)}" if job.url else "")
            for job in plan.jobs
        ]
    elif not plan.notes:
        lines.append("No external job is known to be left.")
    return lines + list(plan.notes)


def _check_may_go(taskrun: TaskRun) -> None:
    about, status = taskrun.metadata, taskrun.status
    ending = about.deletion_timestamp is not None or taskrun.spec.cancel or status.outcome is not None
    if not ending and held_condition_of(status) is None:
        raise CommandError(
            f"{about.name} is neither being deleted nor cancelled nor held, so it would go on without what protects its jobs; "
            f"first kubectl delete trun {about.name} -n {about.namespace} --wait=false, or say --force."
        )


async def _leftovers(connection: ClusterConnection, name: str, taskrun: TaskRun | None) -> tuple[_Held, ...]:
    cluster, namespace = connection.cluster, connection.namespace
    held = []
    if taskrun is not None and FINALIZER_EXTERNAL_JOBS in taskrun.metadata.finalizers:
        held.append(_Held("taskrun", paths.taskruns(namespace, name), taskrun.metadata, FINALIZER_EXTERNAL_JOBS))
    kinds = (("pod", paths.pods, FINALIZER_ATTEMPT), ("configmap", paths.configmaps, FINALIZER_STATE))
    for kind, path_of, finalizer in kinds:
        body = await cluster.list(path_of(namespace), metadata_only=True, labelSelector=f"{LABEL_TASKRUN}={name}")
        held += [
            _Held(kind, path_of(namespace, one.metadata.name), one.metadata, finalizer)
            for one in items_of(body, PartialObject)
            if finalizer in one.metadata.finalizers and _belongs(one.metadata, taskrun)
        ]
    return tuple(held)


def _belongs(metadata: ObjectMeta, taskrun: TaskRun | None) -> bool:
    return taskrun is None or any(owner.uid == taskrun.metadata.uid for owner in metadata.owner_references)


async def _jobs_left(
    connection: ClusterConnection, name: str, taskrun: TaskRun | None, held: tuple[_Held, ...]
) -> tuple[tuple[LeftJob, ...], tuple[str, ...]]:
    """The jobs that may run, by the state where it can be read, else by the status."""
    known: tuple[JobSummary, ...] | None = None
    note = ""
    try:
        if taskrun is not None:
            stored = await stored_of(connection, taskrun)
            known = None if isinstance(stored, NoState) else view_of(msgspec.json.encode(stored.body)).jobs
            note = stored.why if isinstance(stored, NoState) and stored.lost else ""
        elif state := next((one for one in held if one.kind == "configmap"), None):
            known = view_of(msgspec.json.encode(from_configmap(await connection.cluster.get(state.path)).body)).jobs
    except (ForbiddenError, CommandError, RequestRejectedError) as error:
        note = f"The state of {name} can't be read ({error}): look over there for jobs that are not named here."
    listed = taskrun.status.external_jobs if taskrun is not None else ()
    if known is not None:
        # Of a state that was lost, and begun anew, the jobs are in the status alone.
        ids = {job_id(job) for job in known}
        return _left_by_state(known) + _left_by_status(UNWATCHED, [job for job in listed if job_id(job) not in ids]), ()
    may_run = set(JobState) - {JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED}
    jobs = _left_by_status(may_run, listed)
    if taskrun is not None and "Fail" in {taskrun.spec.submission.on_unknown, taskrun.spec.submission.on_not_found}:
        # The status does not tell which of them were given up.
        jobs += _left_by_status({JobState.FAILED}, listed, "Failed, or given up")
    return jobs, (note,) if note else ()


def _left_by_state(known: Sequence[JobSummary]) -> tuple[LeftJob, ...]:
    """The open ones, what was reported beside them, and what was given up: that may run too."""
    jobs = tuple(_left(job, job.state.value) for job in known if job.is_open)
    strays = tuple(
        LeftJob(key=job.key, generation=job.generation, state="Stray", handle=stray)
        for job in known
        for stray in job.strays
    )
    return jobs + strays + tuple(_left(job, "GivenUp") for job in known if job.given_up)


def _left_by_status(
    states: Container[str], listed: Sequence[ExternalJobStatus], state: str | None = None
) -> tuple[LeftJob, ...]:
    return tuple(_left(job, state or job.state) for job in listed if job.state in states)


def _left(job: JobSummary | ExternalJobStatus, state: str) -> LeftJob:
    return LeftJob(key=job.key, generation=job.generation, state=state, handle=job.handle, url=job.url)


async def _remove(connection: ClusterConnection, held: _Held) -> None:
    metadata = held.metadata
    for _ in range(_TRIES):
        left = [name for name in metadata.finalizers if name != held.finalizer]
        patch = {"metadata": {"uid": metadata.uid, "resourceVersion": metadata.resource_version, "finalizers": left}}
        try:
            await connection.cluster.merge_patch(held.path, patch, fieldManager=FIELD_MANAGER)
        except NotFoundError:
            return
        except ConflictError:
            try:
                body = await connection.cluster.get(held.path, metadata_only=True)
            except NotFoundError:
                return
            newer = msgspec.json.decode(body, type=PartialObject).metadata
            if newer.uid != metadata.uid:
                return  # another object has the name by now
            metadata = newer
        else:
            return
    raise CommandError(f"{held.kind}/{metadata.name} is being changed all the time; try again.")
