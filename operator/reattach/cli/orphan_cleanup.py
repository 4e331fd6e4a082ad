"""`orphans --cancel`: a TaskRun that only cancels the jobs that another one left running.

The TaskRun has the template of the other one, is cancelled from the start, and adopts the jobs. The
records of the jobs are dismissed once each of their jobs has ended.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from reattach.api.messages import JOBS_MAX
from reattach.api.names import ANNOTATION_CLEANUP_OF, API_VERSION, KIND, NAME_MAX
from reattach.api.objects import Shape
from reattach.api.state import OPEN_JOB_STATES
from reattach.api.taskrun import TaskRun
from reattach.api.text import one_line
from reattach.cli.connection import ClusterConnection
from reattach.cli.errors import CommandError, NoSuchTaskRunError
from reattach.cli.orphans import FoundRecord, OrphanRow, dismiss, find_records, read_records
from reattach.cli.pages import ObjectSelection, read_pages
from reattach.cli.queries import MissingState, read_state, read_taskrun, read_taskrun_json, to_taskrun, watch_taskrun
from reattach.cli.rerun import OVER, check_ended, check_readable, create_taskrun, describe_job, user_metadata_of
from reattach.cli.retry import Say
from reattach.cli.run_list import UNFINISHED
from reattach.planner.conditions import progress_condition

JSON = dict[str, Any]
Jobs = Mapping[tuple[str | None, str | None], str]
"""States of jobs by adapter and handle."""

_RUNS_MAX = 20
_KEY_MAX = 128
_KEPT_CLEANUP = ("command", "resources", "budget", "deadlineSeconds")


class CancelledJob(Shape, frozen=True):
    """One job that the other TaskRun left. `state`: how it ended; None if it may still run."""

    key: str
    handle: str | None
    adapter: str | None
    state: str | None = None


class OrphanCancellation(Shape, frozen=True):
    """The jobs after the cleanup, and the ConfigMaps of the records that were dismissed."""

    taskrun: str
    cleanup: str
    jobs: tuple[CancelledJob, ...]
    dismissed: tuple[str, ...] = ()

    @property
    def is_complete(self) -> bool:
        """Return whether each job has ended."""
        return all(job.state is not None for job in self.jobs)


@dataclass(frozen=True)
class _Source:
    """The TaskRun that left the jobs, as JSON and decoded, and the records with its name."""

    body: JSON
    taskrun: TaskRun
    records: tuple[FoundRecord, ...]

    @property
    def rows(self) -> list[OrphanRow]:
        return [row for record in self.records for row in record.rows]


async def cancel_orphans(connection: ClusterConnection, name: str, say: Say) -> OrphanCancellation:
    """Cancel the jobs that the TaskRun left, wait until they have ended, and dismiss their records.

    Safe to repeat: a TaskRun that already cancels them is awaited. Raises `CommandError` if the
    jobs can't be cancelled this way, and `ClusterError`.
    """
    source = await _read_source(connection, name)
    await _check_can_clean_up(connection, source.taskrun)
    adopt = adoptions_of(source.rows)
    await _check_unwatched(connection, name, source.rows)
    cleanup = await _start(connection, source, adopt, say)
    ended = cleanup if cleanup.status.outcome is not None else await _await_end(connection, cleanup, say)
    jobs = ended_jobs_of(ended)
    dismissed = await _dismiss_ended(connection, name, cleanup.metadata.name, source.records, jobs)
    return OrphanCancellation(
        taskrun=name,
        cleanup=cleanup.metadata.name,
        jobs=tuple(
            CancelledJob(
                key=row.key or "", handle=row.handle, adapter=row.adapter, state=jobs.get((row.adapter, row.handle))
            )
            for row in source.rows
        ),
        dismissed=dismissed,
    )


async def cancel_left_jobs(connection: ClusterConnection, name: str, say: Say) -> None:
    """Cancel the jobs that the TaskRun left, if it left any.

    Raises `CommandError` unless each of them has ended.
    """
    if not await find_records(connection, [name]):
        return
    result = await cancel_orphans(connection, name, say)
    for line in format_cancellation(result):
        say(line)
    if not result.is_complete:
        raise CommandError(f"A job of {name} may still run, so the task was not run again.")


async def _read_source(connection: ClusterConnection, name: str) -> _Source:
    records = tuple(await read_records(connection, [name]))
    check_readable([row for record in records for row in record.rows])
    try:
        body = await read_taskrun_json(connection, name)
    except NoSuchTaskRunError:
        raise CommandError(
            f"The TaskRun {name} was deleted, and only its template can cancel its jobs; cancel them in the external system, "
            f"and then run: kubectl reattach orphans -n {connection.namespace} --dismiss {name}"
        ) from None
    taskrun = to_taskrun(body)
    check_ended(taskrun)
    return _Source(json.loads(body), taskrun, records)


async def _check_can_clean_up(connection: ClusterConnection, taskrun: TaskRun) -> None:
    """Raise `CommandError` unless the template is known to cancel jobs in a cleanup pod.

    The pod of another template would run the task.
    """
    if taskrun.spec.cleanup.command:
        return
    name, stored = taskrun.metadata.name, await read_state(connection, taskrun)
    if isinstance(stored, MissingState):
        raise CommandError(f"{stored.why} So it is not known whether its task can cancel jobs; nothing was created.")
    if stored.state.epoch is None or not stored.state.epoch.can_cleanup:
        raise CommandError(
            f"The task of {name} registered no adapter and no cleanup handler, and spec.cleanup.command is unset, so no pod "
            "can cancel its jobs; nothing was created. Cancel them in the external system."
        )


async def _check_unwatched(connection: ClusterConnection, name: str, rows: Sequence[OrphanRow]) -> None:
    """Raise `CommandError` if an unfinished TaskRun has taken one of the jobs over."""
    wanted = {row.handle: row for row in rows if row.handle is not None}
    selection = ObjectSelection(fields=UNFINISHED)
    async for page in read_pages(connection, selection, to_taskrun):
        for taskrun in page:
            if taskrun.metadata.annotations.get(ANNOTATION_CLEANUP_OF) == name:
                continue
            watched = {job.handle for job in taskrun.status.external_jobs if job.state in OPEN_JOB_STATES}
            for handle in watched | {job.handle for job in taskrun.spec.adopt}:
                if handle in wanted:
                    raise CommandError(
                        f"{describe_job(wanted[handle])} belongs to the unfinished TaskRun {taskrun.metadata.name} now, so it is "
                        "not cancelled; nothing was created."
                    )


async def _start(connection: ClusterConnection, source: _Source, adopt: Sequence[JSON], say: Say) -> TaskRun:
    """Create the TaskRun, or return one that cancels the jobs already."""
    name = source.taskrun.metadata.name
    for number in range(1, _RUNS_MAX + 1):
        manifest = build_cleanup(source.body, adopt, cleanup_name(name, number))
        created_name = manifest["metadata"]["name"]
        if await create_taskrun(connection, manifest) is not None:
            say(f"taskrun/{created_name} was created. It cancels the jobs; you can stop this command and repeat it.")
            return await read_taskrun(connection, created_name)
        found = await read_taskrun(connection, created_name)
        if found.metadata.annotations.get(ANNOTATION_CLEANUP_OF) != name:
            continue
        if found.status.outcome is None:
            say(f"taskrun/{created_name} cancels the jobs already.")
            return found
        if all((one["adapter"], one["handle"]) in ended_jobs_of(found) for one in adopt):
            return found
    raise CommandError(
        f"{_RUNS_MAX} TaskRuns named {cleanup_name(name, 1)} and so on exist already; delete those that have ended."
    )


async def _await_end(connection: ClusterConnection, cleanup: TaskRun, say: Say) -> TaskRun:
    """Wait for the outcome, and print each change of the progress."""
    name, said = cleanup.metadata.name, ""
    async with aclosing(watch_taskrun(connection, cleanup, say)) as versions:
        async for version in versions:
            if version is None:
                break
            shown = progress_condition(version.status)
            text = f"{name}: {shown.reason}: {one_line(shown.message)}" if shown is not None else ""
            if text and text != said:
                say(text)
                said = text
            if version.status.outcome is not None:
                return version
    raise CommandError(f"{name} was deleted before its jobs had ended. Their record stays; repeat the command.")


async def _dismiss_ended(
    connection: ClusterConnection, name: str, cleanup: str, records: Sequence[FoundRecord], jobs: Jobs
) -> tuple[str, ...]:
    """Delete each record of these TaskRuns whose jobs have all ended."""
    first = cleanup_name(name, 1)
    numbered = [cleanup_name(name, number) for number in range(2, _RUNS_MAX + 1)]
    earlier = await find_records(connection, [first, *numbered]) if cleanup != first else []
    dismissed = []
    for record in (*records, *earlier):
        if all(row.error is None and (row.adapter, row.handle) in jobs for row in record.rows):
            await dismiss(connection, record)
            dismissed.append(record.name)
    return tuple(dismissed)


# -- pure ------------------------------------------------------------------------------------------


def cleanup_name(name: str, number: int) -> str:
    """Return the name of the n-th TaskRun that cancels the jobs of this one."""
    end = "-cleanup" if number == 1 else f"-cleanup-{number}"
    return name[: NAME_MAX - len(end)].rstrip("-") + end


def adoptions_of(rows: Sequence[OrphanRow]) -> list[JSON]:
    """Return `spec.adopt` for the jobs that can be cancelled, each once.

    Several jobs may have one key, and an entry of `spec.adopt` needs a key of its own. Raises
    `CommandError` if no job can be cancelled.
    """
    entries: dict[tuple[str, str], JSON] = {}
    keys: set[str] = set()
    for row in rows:
        if not row.handle or not row.adapter or (row.adapter, row.handle) in entries or len(entries) == JOBS_MAX:
            continue
        key, number = row.key or "", 1
        while key in keys:
            number += 1
            end = f" #{number}"
            key = (row.key or "")[: _KEY_MAX - len(end)] + end
        keys.add(key)
        entries[row.adapter, row.handle] = {"key": key, "handle": row.handle, "adapter": row.adapter}
    if not entries:
        raise CommandError(
            f"{describe_job(rows[0])} has no known handle or adapter, so no pod can cancel it; nothing was created. Look it up "
            "in the external system."
        )
    return list(entries.values())


def build_cleanup(body: JSON, adopt: Sequence[JSON], name: str) -> JSON:
    """Return the TaskRun that only cancels these jobs, from the one that left them."""
    before, about = body["spec"], body["metadata"]
    cleanup = {key: value for key, value in before.get("cleanup", {}).items() if key in _KEPT_CLEANUP}
    deadlines = {key: value for key, value in before.get("deadlines", {}).items() if key != "runSeconds"}
    spec: JSON = {
        "template": before["template"],
        "cancel": True,
        "adopt": list(adopt),
        "cleanup": {**cleanup, "onCancel": "Cancel", "adopted": "Cancel"},
        **({"deadlines": deadlines} if deadlines else {}),
        **{key: before[key] for key in ("container", "managedBy") if key in before},
    }
    users = user_metadata_of(about, {ANNOTATION_CLEANUP_OF: about["name"]}, keeps_queue=False)
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": name, "namespace": about["namespace"], **users},
        "spec": spec,
    }


def ended_jobs_of(taskrun: TaskRun) -> Jobs:
    """Return the jobs of the TaskRun that have ended."""
    return {(job.adapter, job.handle): job.state for job in taskrun.status.external_jobs if job.state in OVER}


def format_cancellation(result: OrphanCancellation) -> list[str]:
    """Return the result as lines of text."""
    lines = []
    for job in result.jobs:
        ended = f"ended as {job.state}" if job.state is not None else "may still run, and stays recorded"
        lines.append(f"{one_line(job.handle or 'handle not known')} ({one_line(job.key)}) {ended}.")
    return [*lines, *(f"configmap/{name} was dismissed." for name in result.dismissed)]
