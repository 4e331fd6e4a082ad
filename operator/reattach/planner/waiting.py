"""Waiting without a pod: an attempt ended while its external job runs, and the next one checks it.

    the task reports its end -> the end is recorded, and the pod deleted -> wait until
        `status.nextAttemptTime`, or until a user wakes the run -> the next attempt reattaches

Such an attempt is charged to no budget. Only `spec.deadlines.runSeconds` bounds the wait.
"""

from datetime import datetime

import msgspec

from reattach.api.names import ANNOTATION_WAKE
from reattach.api.reasons import SENTENCES, Cause, Reason
from reattach.api.taskrun import Counts, TaskRunStatus
from reattach.planner import conditions, external_jobs, holds, textformat
from reattach.planner.context import DecisionContext

_WAKE_BYTES_MAX = 64


def is_waiting(status: TaskRunStatus) -> bool:
    """Return whether the newest run attempt ended while it waited for an external job."""
    last = conditions.last_ended_attempt(status)
    return last is not None and last.cause == Cause.WAITING


def with_wake(context: DecisionContext) -> DecisionContext:
    """Return the context in which the next attempt of a woken run starts now.

    Each value of the annotation is handled once. A value that is set while an attempt runs is
    handled when that attempt has ended, because the attempt may have checked before.
    """
    requested = context.metadata.annotations.get(ANNOTATION_WAKE)
    if requested is None or context.current is not None or not is_waiting(context.status):
        return context
    requested = textformat.head(requested, _WAKE_BYTES_MAX)
    if requested == context.status.last_handled_wake:
        return context
    status = msgspec.structs.replace(context.status, next_attempt_time=None, last_handled_wake=requested)
    return context.with_status(status)


def with_wait(status: TaskRunStatus, now: datetime) -> TaskRunStatus:
    """Return the status that names the external jobs, since when they run, and the next check."""
    jobs = [job for job in status.external_jobs if external_jobs.is_open(job) and job.handle is not None]
    names = textformat.head(", ".join(external_jobs.describe_age(job) for job in jobs), holds.NAMED_BYTES_MAX)
    again = status.next_attempt_time
    then = f" The next check is at {textformat.format_time(again)}." if again is not None else ""
    message = f"{SENTENCES[Reason.WAITING]} External jobs: {names}.{then}"
    return conditions.with_progress(status, Reason.WAITING, message, now)


def count(counts: Counts) -> Counts:
    """Return the counts with one more attempt that waited."""
    before = 0 if counts.waiting is msgspec.UNSET else counts.waiting
    return msgspec.structs.replace(counts, waiting=before + 1)
