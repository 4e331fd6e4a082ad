"""Orphaned jobs: external jobs that the end of a TaskRun leaves running, and where they are named.

They are listed in `status.externalJobs`, in the condition Orphaned, in an event for each, and in a
record that outlives the TaskRun.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from reattach.api.objects import Condition
from reattach.api.orphans import OrphanedJob, OrphanRecord
from reattach.api.reasons import SENTENCES, ConditionType, EventReason, Outcome, Reason
from reattach.api.state import JobState, JobSummary
from reattach.api.taskrun import ExternalJobStatus, TaskRunStatus
from reattach.api.text import printable
from reattach.planner import cleanup, conditions, external_jobs, holds, textformat
from reattach.planner.context import DecisionContext
from reattach.planner.outcome import DELETED, FinalOutcome
from reattach.planner.plan import EmitEvent

_STRAY = "Its submission reported a second handle, and no attempt watches that job."
_GIVEN_UP = "The policy Fail of spec.submission, or a resolution, gave it up."


@dataclass(frozen=True, slots=True)
class _Orphan:
    """External job, or stray handle of one, that may run after the end of the TaskRun.

    `given_up`: the policy `onUnknown: Fail`, or a resolution, closed it although it may run.
    """

    name: str
    job: OrphanedJob
    given_up: bool = False

    @property
    def listed(self) -> str:
        """Its name in the condition's message."""
        return f"{self.name}, which was given up and may run" if self.given_up else self.name


def with_orphans(context: DecisionContext, final: FinalOutcome | None) -> DecisionContext:
    """Return the context with the final state of each open job; the same one if no job is open.

    `final`: None if the run continues without its lost state.
    """
    known, outcome = _known_jobs(context), final.outcome if final else None
    jobs = context.status.external_jobs
    if final is not None and final.outcome is not Outcome.SUCCEEDED:
        jobs += _never_adopted(context)
    after = tuple(_at_end(context, job, known.get(external_jobs.job_id(job)), outcome) for job in jobs)
    named = context.with_status(msgspec.structs.replace(context.status, external_jobs=after))
    new = _unreported(named, final)
    if not new:
        return named if named.status != context.status else context
    status = conditions.with_orphaned(named.status, _message_with(named, new), context.now)
    return context.with_status(status, *(orphaned_event(one) for one in new))


def _never_adopted(context: DecisionContext) -> tuple[ExternalJobStatus, ...]:
    """Return the jobs that a cleanup attempt would have adopted, if no attempt did."""
    listed = {external_jobs.job_id(job) for job in context.status.external_jobs}
    return tuple(
        ExternalJobStatus(
            key=job.key, generation=1, state=JobState.ACTIVE.value, adapter=job.adapter or "", handle=job.handle
        )
        for job in cleanup.adoptions(context)
        if (job.key, 1) not in listed
    )


def orphans_of(context: DecisionContext, final: FinalOutcome | None) -> list[_Orphan]:
    """Return the jobs that status lists as orphaned, and those that no attempt ever watched."""
    return _left_running(context, final) + _unwatched(context)


def orphaned_event(orphan: _Orphan) -> EmitEvent:
    """Return the event that names this job."""
    how = "" if orphan.given_up else " is left running by the end of the TaskRun"
    note = f"External job {orphan.listed}{how}; Reattach no longer watches it. {orphan.job.why}"
    return EmitEvent(EventReason.ORPHANED, textformat.head(note), warning=True)


def record_of(context: DecisionContext, final: FinalOutcome, orphans: Sequence[_Orphan]) -> OrphanRecord | None:
    """Return the record that outlives the TaskRun; None if no job is orphaned."""
    if not orphans:
        return None
    ending, shown = context.status.ending, _condition(context)
    since = shown.last_transition_time if shown else None
    return OrphanRecord(
        taskrun=context.metadata.name,
        uid=context.metadata.uid,
        reason=final.reason.value if final.outcome else DELETED,
        time=ending.time if ending else since or context.now.replace(microsecond=0),
        jobs=tuple(one.job for one in orphans),
    )


def _known_jobs(context: DecisionContext) -> dict[tuple[str, int], JobSummary]:
    return {external_jobs.job_id(job): job for job in context.jobs}


def _orphaned_jobs(status: TaskRunStatus) -> list[ExternalJobStatus]:
    return [job for job in status.external_jobs if job.state == JobState.ORPHANED]


def _left_running(context: DecisionContext, final: FinalOutcome | None) -> list[_Orphan]:
    known = _known_jobs(context)
    jobs = _orphaned_jobs(context.status)
    return [_listed(context, final, job, known.get(external_jobs.job_id(job))) for job in jobs]


def _listed(
    context: DecisionContext, final: FinalOutcome | None, job: ExternalJobStatus, known: JobSummary | None
) -> _Orphan:
    why = cleanup.STATE_LOST if final is None else cleanup.describe_orphaned(context, final, job, known)
    orphaned = OrphanedJob(
        key=job.key,
        generation=job.generation,
        why=textformat.head(why),
        adapter=job.adapter,
        handle=job.handle,
        url=job.url,
        cancel_requested_time=job.cancel_requested_time,
    )
    return _Orphan(external_jobs.describe_job(job), orphaned)


def _unwatched(context: DecisionContext) -> list[_Orphan]:
    named = [(job, external_jobs.describe_job(job)) for job in context.jobs]
    strays = [
        _Orphan(f"{name}, also handle {printable(stray)}", _unwatched_job(job, stray, _STRAY))
        for job, name in named
        for stray in job.strays
    ]
    given_up = [(job, name) for job, name in named if job.given_up]
    return strays + [_Orphan(name, _unwatched_job(job, job.handle, _GIVEN_UP), given_up=True) for job, name in given_up]


def _unwatched_job(job: JobSummary, handle: str | None, why: str) -> OrphanedJob:
    return OrphanedJob(key=job.key, generation=job.generation, why=why, adapter=job.adapter, handle=handle)


def _unreported(context: DecisionContext, final: FinalOutcome | None) -> list[_Orphan]:
    """Return the orphans that the stored status does not report yet.

    A job is reported if the stored status lists it as Orphaned with the same handle. Strays and
    jobs that were given up have no field in status: the condition's message names them.
    """
    stored = _orphaned_jobs(context.observed.taskrun.status)
    reported = {(job.key, job.generation, job.handle) for job in stored}
    message = _reported_message(context)
    jobs = [
        one
        for one in _left_running(context, final)
        if (one.job.key, one.job.generation, one.job.handle) not in reported
    ]
    return jobs + [one for one in _unwatched(context) if f" {one.listed}" not in message]


def _condition(context: DecisionContext) -> Condition | None:
    return conditions.find_condition(context.status.conditions, ConditionType.ORPHANED)


def _reported_message(context: DecisionContext) -> str:
    condition = _condition(context)
    return condition.message if condition else ""


def _message_with(context: DecisionContext, new: list[_Orphan]) -> str:
    """Return the message with these names added.

    The old names are kept, because jobs of a lost state may be named in this message only.
    """
    names = "; ".join(f"{one.listed}: {one.job.why.rstrip('.')}" for one in new)
    before = _reported_message(context)
    return (
        f"{before} Also external job {names}." if before else f"{SENTENCES[Reason.JOBS_ORPHANED]} External job {names}."
    )


def _at_end(
    context: DecisionContext, job: ExternalJobStatus, known: JobSummary | None, outcome: Outcome | None
) -> ExternalJobStatus:
    if not external_jobs.is_open(job):
        return job
    resolution = holds.resolution_at_end(context.spec, known) if known else None
    if known is not None and holds.is_denied_at_end(context.spec, known):
        return msgspec.structs.replace(job, state=JobState.FAILED.value)
    if resolution is not None and resolution.action == holds.ADOPT:
        short = external_jobs.short_handle_of(resolution.handle)
        state = JobState.ORPHANED.value
        return msgspec.structs.replace(job, state=state, handle=resolution.handle, short_handle=short)
    is_wanted = known is not None and known.detached and job.handle is not None
    left = JobState.DETACHED if is_wanted and outcome is Outcome.SUCCEEDED else JobState.ORPHANED
    return msgspec.structs.replace(job, state=left.value)
