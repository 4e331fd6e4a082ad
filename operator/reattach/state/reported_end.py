"""Operation that records how an attempt ends, as its task reports it. Pure."""

from datetime import datetime

import msgspec

from reattach.api.messages import END_MESSAGE_BYTES_MAX, RETRY_AFTER_SECONDS_MAX, EndKind, EndRequest, ProblemCode
from reattach.api.state import ReportedEnd
from reattach.api.text import without_middle
from reattach.state.codec import DurableState
from reattach.state.errors import RequestRejectedError
from reattach.state.operations import Session, check_current, check_not_final, invalid


def parse_end(request: EndRequest) -> EndRequest:
    """Return the request as it is stored, after checking it.

    The message is cut and not refused, because the kind must not be lost.
    """
    seconds = request.retry_after_seconds
    if request.kind is EndKind.WAITING:
        raise RequestRejectedError(ProblemCode.NOT_IMPLEMENTED, "this version does not accept the kind Waiting")
    if seconds is not None and request.kind is EndKind.PERMANENT:
        raise invalid("retryAfterSeconds must be absent if the kind is Permanent, because no attempt follows")
    if seconds is not None and not 0 <= seconds <= RETRY_AFTER_SECONDS_MAX:
        raise invalid(f"retryAfterSeconds must be 0 to {RETRY_AFTER_SECONDS_MAX} or null; it is {seconds}")
    return msgspec.structs.replace(request, message=without_middle(request.message, END_MESSAGE_BYTES_MAX))


def record_end(state: DurableState, session: Session, request: EndRequest, now: datetime) -> DurableState:
    """Record the end of the attempt. `request`: the result of `parse_end`.

    Repeating it with the same content changes nothing. A completion that was recorded before wins.
    A seal does not refuse the end, because it begins nothing.
    """
    check_current(state, session)
    end = ReportedEnd(
        attempt=session.attempt,
        pod_uid=session.pod_uid,
        time=now,
        kind=request.kind.value,
        message=request.message,
        retry_after_seconds=request.retry_after_seconds,
    )
    if state.end is not None and msgspec.structs.replace(end, time=state.end.time) == state.end:
        return state
    check_not_final(state, session)
    return msgspec.structs.replace(state, end=end)
