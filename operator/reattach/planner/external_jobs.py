"""External jobs in `status.externalJobs`, and the events about them."""

import msgspec

from reattach.api import text
from reattach.api.messages import JOBS_MAX
from reattach.api.reasons import Cause, EventReason
from reattach.api.state import OPEN_JOB_STATES, JobOrigin, JobState, JobSummary, StateView, Summary
from reattach.api.taskrun import ExternalJobStatus, TaskRunStatus
from reattach.api.text import printable
from reattach.planner import textformat
from reattach.planner.plan import EmitEvent

MESSAGE_BYTES_MAX = 512
"""Limit for the message of one job, of which status lists up to 64."""
UNWATCHED = frozenset({JobState.ORPHANED, JobState.DETACHED})
"""States of jobs that may run although no attempt watches them."""

_KNOWN_BY = {
    JobOrigin.EXISTED: "already existed when it was submitted again",
    JobOrigin.FOUND: "was found by a lookup",
    JobOrigin.REPORTED: "was reported by a fenced attempt",
    JobOrigin.ADOPTED: "was adopted, as the TaskRun's spec requests",
}


def job_id(job: JobSummary | ExternalJobStatus) -> tuple[str, int]:
    """Return key and generation, which identify a job of a TaskRun."""
    return job.key, job.generation


def is_open(job: ExternalJobStatus) -> bool:
    """Return whether the job may run and no resolution has closed it."""
    return job.state in OPEN_JOB_STATES


def with_jobs(status: TaskRunStatus, view: StateView | Summary) -> TaskRunStatus:
    """Return the status with the jobs of the state, in its order.

    A job that a lost state left running stays listed, unless the new state has the same key and
    generation. Counts never decrease, whatever was written to the state.
    """
    known = {job_id(job) for job in view.jobs}
    left = [job for job in status.external_jobs if job.state in UNWATCHED and job_id(job) not in known]
    listed = [_to_status(job, is_ending=status.ending is not None) for job in view.jobs]
    counts = msgspec.structs.replace(
        status.counts,
        submissions=max(status.counts.submissions, view.counts.submissions),
        reattachments=max(status.counts.reattachments, view.counts.reattachments),
        duplicates_averted=max(status.counts.duplicates_averted, view.counts.duplicates_averted),
        preexisting_jobs=max(status.counts.preexisting_jobs, sum(job.preexisting for job in view.jobs)),
    )
    return msgspec.structs.replace(status, external_jobs=(*left, *listed)[-JOBS_MAX:], counts=counts)


def has_changes(status: TaskRunStatus, summary: Summary) -> bool:
    """Return whether the summary differs from status. A large summary omits messages and URLs.

    Without any message in the summary, a message in status is shown until its job changes.
    """
    messages = any(job.message for job in summary.jobs)
    return _without_urls(with_jobs(status, summary), messages=messages) != _without_urls(status, messages=messages)


def events_since(before: TaskRunStatus, view: StateView, idempotency_key: str | None) -> tuple[EmitEvent, ...]:
    """Return the events about the jobs since `before` was written."""
    known = {job_id(job): job.handle for job in before.external_jobs}
    # A held job that is orphaned is listed with the handle of its resolution. It was named already.
    orphaned = {job_id(job) for job in before.external_jobs if job.state in UNWATCHED}
    events = [
        _handle_event(job, idempotency_key)
        for job in view.jobs
        if job.handle is not None
        and job.handle != known.get(job_id(job))
        and not (job.held and job_id(job) in orphaned)
    ]
    # An attempt that checks the job of a waiting run always reattaches.
    newest_ended = next((one for one in reversed(before.attempts) if one.finish_time is not None), None)
    is_check = newest_ended is not None and newest_ended.cause == Cause.WAITING
    if view.counts.reattachments > before.counts.reattachments and view.epoch is not None and not is_check:
        names = ", ".join(describe_job(job) for job in view.jobs if job.handle is not None)
        note = f"Attempt {view.epoch.attempt} reattached to external job {names}."
        events.append(EmitEvent(EventReason.REATTACHED, textformat.head(note)))
    return tuple(events)


def describe_job(job: JobSummary | ExternalJobStatus) -> str:
    """Return key, generation (unless it is the first), handle and URL of a job as text."""
    parts = [f"generation {job.generation}"] if job.generation > 1 else []
    parts += [f"handle {printable(job.handle)}" if job.handle is not None else "no handle known"]
    parts += [printable(job.url)] if job.url else []
    return f"{printable(job.key)} ({', '.join(parts)})"


def describe_age(job: ExternalJobStatus) -> str:
    """Return a job as text, with the time of its submission if it is known."""
    since = f" since {textformat.format_time(job.submitted_time)}" if job.submitted_time is not None else ""
    return describe_job(job) + since


def short_handle_of(handle: str | None) -> str | None:
    """Return the value of `shortHandle`, which is set only for a long handle."""
    return text.short_handle(handle) if handle is not None and len(handle) > text.HANDLE_CHARACTERS else None


def _to_status(job: JobSummary, *, is_ending: bool) -> ExternalJobStatus:
    since, requested = job.submitted_time, job.cancel_requested_time
    is_cancelling = is_ending and job.is_open and requested is not None
    return ExternalJobStatus(
        key=job.key,
        generation=job.generation,
        state=JobState.CANCELLING.value if is_cancelling else job.state.value,
        adapter=job.adapter,
        handle=job.handle,
        short_handle=short_handle_of(job.handle),
        url=job.url,
        submitted_time=since.replace(microsecond=0) if since else None,
        submitted_by_attempt=job.submitted_by_attempt,
        cancel_requested_time=requested.replace(microsecond=0) if requested else None,
        message=textformat.head(job.message, MESSAGE_BYTES_MAX) or None,
    )


def _without_urls(status: TaskRunStatus, *, messages: bool = True) -> TaskRunStatus:
    left_out: dict[str, None] = {"url": None} if messages else {"url": None, "message": None}
    plain = tuple(msgspec.structs.replace(job, **left_out) for job in status.external_jobs)
    return msgspec.structs.replace(status, external_jobs=plain)


def _handle_event(job: JobSummary, idempotency_key: str | None) -> EmitEvent:
    name = f"External job {describe_job(job)}"
    if job.preexisting:
        return _preexisting_event(name, idempotency_key)
    if job.origin in _KNOWN_BY:
        return EmitEvent(EventReason.ADOPTED, textformat.head(f"{name} {_KNOWN_BY[job.origin]}."))
    again = job.origin is JobOrigin.RESUBMITTED
    by = f" by attempt {job.submitted_by_attempt}" if job.submitted_by_attempt else ""
    note = f"{name} was submitted{' again' if again else ''}{by}."
    return EmitEvent(EventReason.RESUBMITTED if again else EventReason.SUBMITTED, textformat.head(note))


def _preexisting_event(name: str, idempotency_key: str | None) -> EmitEvent:
    # Only another run with the same idempotency key may have submitted it. Without a key, the name
    # or token is not unique in the external system.
    if idempotency_key is not None:
        by = "another TaskRun with the same spec.submission.idempotencyKey submitted it"
    else:
        by = "this TaskRun did not submit it; check whose job it is"
    note = f"{name} existed before this TaskRun's first submission: {by}."
    return EmitEvent(EventReason.EXISTED, textformat.head(note), warning=idempotency_key is None)
