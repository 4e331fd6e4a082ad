"""Operations that record the handle and the outcome of external jobs.

Pure. `reattach.state.intents` handles the step before.

A rejected handle is still stored as evidence (a stray), so this module returns such a rejection
instead of raising it.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from urllib.parse import urlsplit

import msgspec

from reattach.api.messages import (
    HANDLE_BYTES_MAX,
    JOB_KEY_CHARACTERS_MAX,
    JOB_MESSAGE_BYTES_MAX,
    URL_BYTES_MAX,
    HandleRequest,
    OutcomeRequest,
    ProblemCode,
)
from reattach.api.state import JobOrigin, JobState
from reattach.api.text import line_within
from reattach.state.codec import DurableState
from reattach.state.errors import RequestRejectedError
from reattach.state.job_record import JobName, JobRecord, fits, in_order, newest_of
from reattach.state.operations import (
    Session,
    check_current,
    check_not_final,
    cleanup_only,
    invalid,
    is_current,
    quote,
)
from reattach.state.values import check_key, stored_result_of, to_json

STRAYS_MAX = 8


class JobEvent(StrEnum):
    """Decision about an external job, as counted for Prometheus."""

    SUBMITTED = "submitted"
    RESUBMITTED = "resubmitted"
    REATTACHED = "reattached"
    ADOPTED = "adopted"
    FOUND = "found"
    EXISTED = "existed"
    REPORTED = "reported"
    HELD = "held"
    OVER = "over"


@dataclass(frozen=True)
class RecordResult:
    """The new record, the event to count (if any), and the rejection for the caller (if any)."""

    job: JobRecord
    counted: JobEvent | None = None
    refused: RequestRejectedError | None = None


def check_job_key(key: str) -> str:
    """Return `key`. Reject it unless it has 1-128 Unicode characters."""
    if len(key) > JOB_KEY_CHARACTERS_MAX:
        detail = (
            f"the key of an external job must have 1 to {JOB_KEY_CHARACTERS_MAX} characters; this one has {len(key)}"
        )
        raise RequestRejectedError(ProblemCode.KEY_INVALID, detail)
    return check_key(key)


def check_new_job_key(key: str) -> None:
    """Reject a key of a new job that is not printable, because commands and messages contain it.

    Jobs that a former version stored keep their keys.
    """
    if not key.isprintable():
        detail = f"the key of an external job must have printable characters only; this one is {quote(key)}"
        raise RequestRejectedError(ProblemCode.KEY_INVALID, detail)


def checked_handle(handle: str) -> str:
    """Return `handle`. Reject it if it cannot be stored.

    Any characters are accepted, because the handle is evidence of a job that may be running. Text
    for users contains it with escapes.
    """
    if not handle:
        raise invalid("a handle must have at least one character")
    return _bounded("handle", handle, HANDLE_BYTES_MAX)


def checked_adoption(handle: str, named_in: str) -> str:
    """Return a handle that the TaskRun names.

    The schema limits its characters, and this limit is in bytes.
    """
    try:
        return checked_handle(handle)
    except RequestRejectedError as error:
        raise RequestRejectedError(
            error.code, f"{named_in} must name a handle that can be stored: {error.detail}"
        ) from None


def list_jobs(state: DurableState, session: Session) -> tuple[JobRecord, ...]:
    """Return all generations of all jobs, in the order of their intents."""
    check_current(state, session)
    return in_order(state.jobs)


def get_job(state: DurableState, session: Session, key: str, generation: int | None = None) -> JobRecord:
    """Return one generation of a job; without a number, the newest."""
    check_current(state, session)
    check_job_key(key)
    if generation is not None:
        return _existing(state, (key, generation))
    if (newest := newest_of(state.jobs, key)) is None:
        raise _absent(key)
    return newest


def with_job(state: DurableState, record: JobRecord) -> DurableState:
    """Return the state with this record."""
    return msgspec.structs.replace(state, jobs={**state.jobs, record.name: record})


def with_counter(
    state: DurableState, *, submissions: int = 0, reattachments: int = 0, duplicates_averted: int = 0
) -> DurableState:
    """Return the state with its counters increased."""
    before = state.counts
    counts = msgspec.structs.replace(
        before,
        submissions=before.submissions + submissions,
        reattachments=before.reattachments + reattachments,
        duplicates_averted=before.duplicates_averted + duplicates_averted,
    )
    return msgspec.structs.replace(state, counts=counts)


def record_handle(
    state: DurableState, session: Session, key: str, request: HandleRequest, now: datetime
) -> tuple[DurableState, RecordResult]:
    """Record the handle of a job.

    Accept it also from a session that has been fenced, sealed or completed since, if that process
    was allowed to submit: the handle is evidence. A handle that arrives after the job's end, or a
    second handle, names a job without a watcher. It is stored as a stray and rejected.
    """
    record = state.jobs.get((check_job_key(key), request.generation))
    checked_handle(request.handle)
    if record is None or not _was_allowed_to_submit(record, request.submitter, session):
        check_current(state, session)
    if session.cleans_up and request.origin != "Found":
        raise cleanup_only("handles that it found by a lookup (origin Found)")
    if record is None:
        raise _absent(key, request.generation)
    if record.handle == request.handle or request.handle in record.strays:
        return state, RecordResult(record, refused=None if record.handle == request.handle else _handle_differs(record))
    if record.handle is not None or record.is_over:
        return _with_stray(state, record, request)
    return _with_handle(state, session, record, request, now)


def end_holds(state: DurableState, jobs: Collection[JobName]) -> DurableState:
    """Return the state in which these jobs are not held.

    The next attempt resolves their submissions again. A job that is held once more waits for the
    same resolution, because none was used.
    """
    held = (state.jobs[name] for name in jobs if name in state.jobs and state.jobs[name].held)
    for record in held:
        state = with_job(state, msgspec.structs.replace(record, held=False, message=""))
    return state


def record_outcome(
    state: DurableState,
    session: Session,
    key: str,
    request: OutcomeRequest,
    now: datetime,
    *,
    resolution_count: int = 0,
) -> tuple[DurableState, RecordResult]:
    """Record the status of a job. An outcome is final.

    `resolution_count`: the number of resolutions that exist for this job. A hold waits for the next
    one, so that no resolution is used twice.
    """
    check_current(state, session)
    check_not_final(state, session)
    if session.cleans_up and request.hold:
        raise cleanup_only("outcomes without hold; the operator holds the run if a job stays unresolved")
    record = _existing(state, (check_job_key(key), request.generation))
    result = _checked_result(request)
    wanted = JobState(request.state)
    if record.is_over:
        if (record.state, record.result) != (wanted, result):
            raise RequestRejectedError(
                ProblemCode.JOB_OVER, f"the job {quote(key)} has ended as {record.state}; an outcome is final"
            )
        return state, RecordResult(record)
    _check_fits_job(record, request)
    if wanted in {JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED}:
        ended = with_end(record, wanted, request.message, session, now)
        ended = msgspec.structs.replace(ended, result=result, given_up=request.given_up)
        return _with_message(state, ended), RecordResult(ended)
    if request.hold:
        return _with_hold(state, record, request, resolution_count)
    # If the external system responds again and has the job, the hold needs no resolution any more.
    is_held = record.held and wanted is not JobState.ACTIVE
    seen = msgspec.structs.replace(
        record,
        state=JobState.INTENDED if record.handle is None else wanted,
        held=is_held,
        message=record.message if is_held else line_within(request.message, JOB_MESSAGE_BYTES_MAX),
    )
    return (state, RecordResult(record)) if seen == record else (_with_message(state, seen), RecordResult(seen))


def with_end(record: JobRecord, state: JobState, message: str, session: Session, now: datetime) -> JobRecord:
    """Return the record with the end of the job."""
    return msgspec.structs.replace(
        record,
        state=state,
        message=line_within(message, JOB_MESSAGE_BYTES_MAX),
        held=False,
        ended_at=now,
        ended_by_attempt=session.attempt,
    )


def _with_handle(
    state: DurableState, session: Session, record: JobRecord, request: HandleRequest, now: datetime
) -> tuple[DurableState, RecordResult]:
    origin = _origin_of(state, session, record, request)
    known = msgspec.structs.replace(
        record,
        handle=request.handle,
        origin=origin,
        state=JobState.ACTIVE,
        recorded_at=now,
        submitted_by_attempt=(
            record.intended_by_attempt if origin in {JobOrigin.FOUND, JobOrigin.EXISTED} else session.attempt
        ),
        session=session.id,
        held=False,
        message="",
    )
    if request.url is not None:
        with_url = msgspec.structs.replace(known, url=request.url)
        # The URL is only for users: drop it if it is no web page or does not fit, so that the
        # handle is stored.
        known = with_url if _is_web_page(request.url) and fits(with_job(state, with_url).jobs) else known
    is_ours = not known.is_preexisting
    # An attempt that finds the job of an earlier one takes it over, as if its handle was stored.
    is_taken_over = origin in {JobOrigin.FOUND, JobOrigin.EXISTED} and session.attempt > record.intended_by_attempt
    state = with_counter(
        with_job(state, known),
        submissions=is_ours,
        reattachments=is_ours and is_taken_over,
        duplicates_averted=is_ours and origin not in {JobOrigin.SUBMITTED, JobOrigin.RESUBMITTED},
    )
    return state, RecordResult(known, counted=JobEvent(origin.lower()))


def _is_web_page(url: str) -> bool:
    """Return whether a browser or terminal may open the URL: http or https, printable and short."""
    if not url.isprintable() or len(to_json(url)) - 2 > URL_BYTES_MAX:
        return False
    try:
        parts = urlsplit(url)
        return parts.scheme in {"http", "https"} and bool(parts.hostname)
    except ValueError:
        return False


def _with_stray(state: DurableState, record: JobRecord, request: HandleRequest) -> tuple[DurableState, RecordResult]:
    refused = _handle_differs(record)
    stray = msgspec.structs.replace(record, strays=(*record.strays, request.handle))
    after = with_job(state, stray)
    if len(stray.strays) > STRAYS_MAX or not fits(after.jobs):
        return state, RecordResult(record, refused=refused)
    return with_counter(after, submissions=request.origin == "Submitted"), RecordResult(stray, refused=refused)


def _with_hold(
    state: DurableState, record: JobRecord, request: OutcomeRequest, resolution_count: int
) -> tuple[DurableState, RecordResult]:
    if record.held:
        return state, RecordResult(record)
    held = msgspec.structs.replace(
        record,
        state=JobState.INTENDED if record.handle is None else JobState(request.state),
        held=True,
        holds=resolution_count + 1,
        message=line_within(request.message, JOB_MESSAGE_BYTES_MAX),
    )
    return _with_message(state, held), RecordResult(held, counted=JobEvent.HELD)


def _with_message(state: DurableState, record: JobRecord) -> DurableState:
    after = with_job(state, record)
    return after if fits(after.jobs) else with_job(state, msgspec.structs.replace(record, message=""))


def _origin_of(state: DurableState, session: Session, record: JobRecord, request: HandleRequest) -> JobOrigin:
    if not is_current(state, session):
        return JobOrigin.REPORTED
    origin = JobOrigin(request.origin)
    return JobOrigin.RESUBMITTED if origin is JobOrigin.SUBMITTED and record.repeated else origin


def _was_allowed_to_submit(record: JobRecord, submitter: str, session: Session) -> bool:
    process = (submitter, session.attempt, session.pod_uid)
    return any((allowed.id, allowed.attempt, allowed.pod_uid) == process for allowed in record.submitters)


def _checked_result(request: OutcomeRequest) -> msgspec.Raw | msgspec.UnsetType:
    if request.result is msgspec.UNSET:
        return msgspec.UNSET
    if request.state != "Succeeded":
        raise invalid("result requires state Succeeded")
    return msgspec.Raw(stored_result_of(request.result))


def _check_fits_job(record: JobRecord, request: OutcomeRequest) -> None:
    if request.given_up and request.state != "Failed":
        raise invalid("givenUp requires state Failed")
    if request.hold:
        wanted = ("Unknown",) if record.handle is None else ("NotFound", "Active")
        if request.state not in wanted:
            raise invalid(
                f"to hold a job {'without' if record.handle is None else 'with'} a handle, state must be {' or '.join(wanted)}"
            )
    elif record.handle is None and request.state not in {"Failed", "Cancelled", "Unknown"}:
        raise invalid(f"a job must have a handle to be {request.state}: PUT /v1/jobs/{{key}}/handle")


def _bounded(what: str, text: str, most: int) -> str:
    if (size := len(to_json(text)) - 2) > most:
        detail = f"the {what} must have at most {most} bytes as JSON; this one has {size}"
        raise RequestRejectedError(ProblemCode.VALUE_TOO_LARGE, detail)
    return text


def _existing(state: DurableState, name: JobName) -> JobRecord:
    if (record := state.jobs.get(name)) is None:
        raise _absent(*name)
    return record


def _absent(key: str, generation: int | None = None) -> RequestRejectedError:
    which = "" if generation is None else f" in generation {generation}"
    return RequestRejectedError(ProblemCode.JOB_NOT_FOUND, f"no intent is stored for the job {quote(key)}{which}")


def _handle_differs(record: JobRecord) -> RequestRejectedError:
    if record.is_over:
        return RequestRejectedError(
            ProblemCode.JOB_OVER, f"the job {quote(record.key)} is over; this handle is stored as a stray"
        )
    detail = f"the job {quote(record.key)} has the handle {quote(record.handle or '')}; this one is stored as a stray"
    return RequestRejectedError(ProblemCode.HANDLE_DIFFERS, detail)
