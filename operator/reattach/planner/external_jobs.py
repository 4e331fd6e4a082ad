"""External jobs as `status.externalJobs` shows them, and what is news about them."""

import msgspec

from reattach.api.messages import JOBS_MAX
from reattach.api.reasons import EventReason
from reattach.api.state import JobOrigin, JobState, JobSummary, StateView, Summary
from reattach.api.taskrun import ExternalJobStatus, TaskRunStatus
from reattach.planner import textformat
from reattach.planner.plan import EmitEvent

_OPEN = frozenset({JobState.INTENDED, JobState.ACTIVE, JobState.UNKNOWN, JobState.NOT_FOUND})
LEFT = frozenset({JobState.ORPHANED, JobState.DETACHED})
"""Of jobs that nobody looks after, and that may run."""

_HOW = {
    JobOrigin.EXISTED: "was there already when it was submitted",
    JobOrigin.FOUND: "was found by looking it up",
    JobOrigin.REPORTED: "was reported by an attempt that had been overtaken",
    JobOrigin.ADOPTED: "was taken over, as a person said",
}


def id_of(job: JobSummary | ExternalJobStatus) -> tuple[str, int]:
    """What tells a job from the others of its TaskRun."""
    return job.key, job.generation


def is_open(job: ExternalJobStatus) -> bool:
    """Whether something may run over there for which nobody has said that it may be forgotten."""
    return job.state in _OPEN


def with_jobs(status: TaskRunStatus, view: StateView | Summary) -> TaskRunStatus:
    """The status that shows the jobs as the state has them, in its order. What was left running by a state that is lost stays shown as
    that, unless the state that was begun anew has a job of that name again.

    Counts never go back, whatever somebody did to the state.
    """
    known = {id_of(job) for job in view.jobs}
    left = [job for job in status.external_jobs if job.state in LEFT and id_of(job) not in known]
    shown = [_shown_of(job) for job in view.jobs]
    counts = msgspec.structs.replace(
        status.counts,
        submissions=max(status.counts.submissions, view.counts.submissions),
        reattachments=max(status.counts.reattachments, view.counts.reattachments),
        duplicates_averted=max(status.counts.duplicates_averted, view.counts.duplicates_averted),
    )
    return msgspec.structs.replace(status, external_jobs=(*left, *shown)[-JOBS_MAX:], counts=counts)


def has_news(status: TaskRunStatus, summary: Summary) -> bool:
    """Whether the summary says something else of the jobs than status does. URLs are left out of a large summary."""
    return _without_urls(with_jobs(status, summary)) != _without_urls(status)


def news_of(before: TaskRunStatus, view: StateView) -> tuple[EmitEvent, ...]:
    """What happened to the jobs since `before` was written."""
    known = {id_of(job): job.handle for job in before.external_jobs}
    told = [_how_known(job) for job in view.jobs if job.handle is not None and job.handle != known.get(id_of(job))]
    if view.counts.reattachments > before.counts.reattachments and view.epoch is not None:
        names = ", ".join(name_of(job) for job in view.jobs if job.handle is not None)
        note = f"Attempt {view.epoch.attempt} reattached to what runs already: external job {names}."
        told.append(EmitEvent(EventReason.REATTACHED, textformat.start_of(note)))
    return tuple(told)


def name_of(job: JobSummary | ExternalJobStatus) -> str:
    """How people are told of a job: its key, its generation unless it is the first, its handle and where to look at it."""
    parts = [f"generation {job.generation}"] if job.generation > 1 else []
    parts += [f"handle {job.handle}" if job.handle is not None else "no handle known"]
    parts += [job.url] if job.url else []
    return f"{job.key} ({', '.join(parts)})"


def _shown_of(job: JobSummary) -> ExternalJobStatus:
    since = job.submitted_time
    return ExternalJobStatus(
        key=job.key,
        generation=job.generation,
        state=job.state.value,
        adapter=job.adapter,
        handle=job.handle,
        url=job.url,
        submitted_time=since.replace(microsecond=0) if since else None,
        submitted_by_attempt=job.submitted_by_attempt,
    )


def _without_urls(status: TaskRunStatus) -> TaskRunStatus:
    plain = tuple(msgspec.structs.replace(job, url=None) for job in status.external_jobs)
    return msgspec.structs.replace(status, external_jobs=plain)


def _how_known(job: JobSummary) -> EmitEvent:
    name = f"External job {name_of(job)}"
    if job.origin in _HOW:
        return EmitEvent(EventReason.ADOPTED, textformat.start_of(f"{name} {_HOW[job.origin]}."))
    again = job.origin is JobOrigin.RESUBMITTED
    by = f" by attempt {job.submitted_by_attempt}" if job.submitted_by_attempt else ""
    note = f"{name} was submitted{' again' if again else ''}{by}."
    return EmitEvent(EventReason.RESUBMITTED if again else EventReason.SUBMITTED, textformat.start_of(note))
