"""Operation that records how an attempt ends, as its task reports it. Pure."""

from datetime import datetime

import msgspec

from reattach.api.messages import END_MESSAGE_BYTES_MAX, RETRY_AFTER_SECONDS_MAX, EndKind, EndRequest, ProblemCode
from reattach.api.state import ReportedEnd
from reattach.api.text import without_middle
from reattach.state.codec import DurableState
from reattach.state.errors import RequestRejectedError
from reattach.state.job_operations import get_job
from reattach.state.job_record import JobRecord
from reattach.state.operations import Session, check_current, check_not_final, check_runs_task, invalid, quote


def parse_end(request: EndRequest) -> EndRequest:
    """Return the request as it is stored, after checking it.

    The message is cut and not refused, because the kind must not be lost.
    """
    seconds = request.retry_after_seconds
    is_waiting = request.kind is EndKind.WAITING
    if is_waiting is not (request.job is not None):
        raise invalid(f"job must be {'set' if is_waiting else 'absent'} if the kind is {request.kind}")
    if is_waiting and not seconds:
        raise invalid("retryAfterSeconds must be at least 1 if the kind is Waiting")
    if seconds is not None and request.kind is EndKind.PERMANENT:
        raise invalid("retryAfterSeconds must be absent if the kind is Permanent, because no attempt follows")
    if seconds is not None and not 0 <= seconds <= RETRY_AFTER_SECONDS_MAX:
        raise invalid(f"retryAfterSeconds must be 0 to {RETRY_AFTER_SECONDS_MAX} or null; it is {seconds}")
    return msgspec.structs.replace(request, message=without_middle(request.message, END_MESSAGE_BYTES_MAX))


def record_end(state: DurableState, session: Session, request: EndRequest, now: datetime) -> DurableState:
    """Record the end of the attempt. `request`: the result of `parse_end`.

    Repeating it with the same content changes nothing. A completion that was recorded before wins.
    A seal does not refuse the end, because it begins nothing. A task can wait only for a job that
    the next attempt finds: it is open and has a handle.
    """
    check_current(state, session)
    end = ReportedEnd(
        attempt=session.attempt,
        pod_uid=session.pod_uid,
        time=now,
        kind=request.kind.value,
        message=request.message,
        retry_after_seconds=request.retry_after_seconds,
        job=request.job,
    )
    if state.end is not None and msgspec.structs.replace(end, time=state.end.time) == state.end:
        return state
    check_not_final(state, session)
    if request.job is not None:
        check_runs_task(session)
        _check_can_wait(get_job(state, session, request.job.key, request.job.generation))
    return msgspec.structs.replace(state, end=end)


def _check_can_wait(job: JobRecord) -> None:
    if job.is_over:
        raise RequestRejectedError(ProblemCode.JOB_OVER, f"the job {quote(job.key)} has ended as {job.state}")
    if job.handle is None or not job.is_open or job.held:
        raise invalid(f"to wait for the job {quote(job.key)}, it must be open, have a handle and not be held")
