"""Operation that records that an attempt cancels an external job. Pure.

It is recorded before the request to the external system, so that every request that may have been
sent is known.
"""

from dataclasses import dataclass
from datetime import datetime

import msgspec

from reattach.api.messages import CancellationRequest, ProblemCode, Unresolved
from reattach.state.codec import DurableState
from reattach.state.errors import RequestRejectedError
from reattach.state.job_operations import get_job, with_job
from reattach.state.job_record import JobRecord, to_summary
from reattach.state.operations import Session, check_current, check_not_final, quote
from reattach.state.owner import Owner


@dataclass(frozen=True)
class CancellationResult:
    """The job. For an open job without a handle, also its submitters (`CancellationResponse`)."""

    job: JobRecord
    unresolved: Unresolved | None = None
    may_resolve: bool = False


def request_cancellation(
    state: DurableState, session: Session, key: str, request: CancellationRequest, *, owner: Owner, now: datetime
) -> tuple[DurableState, CancellationResult]:
    """Record the first cancellation of a job.

    A job that is over, or that was cancelled before, stays as it is. For a job without a handle,
    return what is known about its submitters.

    In a cleanup session, reject the cancellation of a job that must be kept, and any cancellation
    once the run has its outcome: the next run may have taken the job over. A task may cancel any
    job that it knows.
    """
    check_current(state, session)
    check_not_final(state, session)
    if session.cleans_up and owner.status.outcome is not None:
        raise RequestRejectedError(
            ProblemCode.CLOSING, "the TaskRun is over; its external jobs must be left as they are"
        )
    record = get_job(state, session, key, request.generation)
    if record.is_over:
        return state, CancellationResult(record)
    if session.cleans_up:
        _check_not_kept(record, owner)
    if record.handle is None:
        return state, _unresolved(record, owner, now)
    if record.cancel_requested_at is not None:
        return state, CancellationResult(record)
    requested = msgspec.structs.replace(record, cancel_requested_at=now, cancel_requested_by_attempt=session.attempt)
    return with_job(state, requested), CancellationResult(requested)


def _check_not_kept(record: JobRecord, owner: Owner) -> None:
    job, has_key = to_summary(record), owner.spec.submission.idempotency_key is not None
    if not record.is_open:
        why = "the task completed and left it running on purpose"
    elif owner.spec.cleanup.adopted != "Cancel" and job.is_of_another_run:
        why = "this run did not submit it, and spec.cleanup.adopted is not Cancel"
    elif owner.spec.cleanup.adopted != "Cancel" and has_key and job.may_be_of_another_run:
        why = (
            "another run with the same spec.submission.idempotencyKey may have submitted it, and spec.cleanup.adopted is"
            " not Cancel"
        )
    else:
        return
    raise RequestRejectedError(ProblemCode.JOB_KEPT, f"the job {quote(record.key)} must not be cancelled: {why}")


def _unresolved(record: JobRecord, owner: Owner, now: datetime) -> CancellationResult:
    all_ended = all(owner.has_certain_end(submitter.attempt, submitter.pod_uid) for submitter in record.submitters)
    unresolved = Unresolved(
        all_ended=all_ended,
        # The time at which the state was opened proves nothing here, because a cleanup attempt may
        # begin before the other attempts have ended.
        quiet_since=now if all_ended else None,
        attempts=tuple(dict.fromkeys(submitter.attempt for submitter in record.submitters)),
    )
    may_resolve = not all(owner.has_recorded_end(submitter.attempt) for submitter in record.submitters)
    return CancellationResult(record, unresolved, may_resolve)
