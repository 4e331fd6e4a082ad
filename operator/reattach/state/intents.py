"""What is to be done about an external job: submit it, take it up, or find out first. Pure; the one place where that is decided.

Nothing is submitted unless an intent is stored, and an intent that was stored without a handle following it is *unresolved*: it may have
been submitted. It is submitted once more only on grounds that speak for it, which the asking process names and this checks as far as it can.
"""

import re
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import msgspec

from reattach.api.messages import (
    ADAPTER_CHARACTERS_MAX,
    DIGEST_CHARACTERS_MAX,
    SESSION_CHARACTERS_MAX,
    Decision,
    Grounds,
    IntentRequest,
    ProblemCode,
    Unresolved,
)
from reattach.api.reasons import Budget
from reattach.api.state import JobOrigin, JobState
from reattach.state.codec import DurableState
from reattach.state.errors import RequestRejectedError
from reattach.state.job_operations import JobEvent, check_job_key, checked_handle, counting, with_end, with_job
from reattach.state.job_record import JobRecord, Submitter, check_room, newest_of, token_of
from reattach.state.operations import (
    RETENTION_SECONDS_MAX,
    OperationRequest,
    Session,
    check_current,
    check_not_completed,
    check_not_sealed,
    invalid,
    shown,
)
from reattach.state.owner import Owner

SUBMITTERS_MAX = 16
_ID = re.compile(r"[-._A-Za-z0-9]+")
_PRINTABLE = re.compile(r"[ -~]+")


@dataclass(frozen=True)
class IntentResult:
    """What is to be done about `job`, and what is to be counted, if anything."""

    decision: Decision
    job: JobRecord
    unresolved: Unresolved | None = None
    counted: JobEvent | None = None


@dataclass(frozen=True)
class _Question:
    """All that an answer follows from."""

    state: DurableState
    writer: Session
    key: str
    asked: IntentRequest
    request: OperationRequest | None
    owner: Owner
    now: datetime


def intend(
    state: DurableState,
    writer: Session,
    key: str,
    asked: IntentRequest,
    *,
    owner: Owner,
    now: datetime,
    request: OperationRequest | None = None,
) -> tuple[DurableState, IntentResult]:
    """Store an intent, or tell what is known of the one that is stored.

    The same request asked again (`request`) is told to submit again, as long as nothing else has happened to the job: its first answer
    may have been lost. Everything else that is asked again follows anew from the state, and changes nothing twice.
    """
    check_current(state, writer)
    check_not_completed(state, writer)
    check_not_sealed(state, writer)
    if owner.is_ending:
        raise RequestRejectedError(
            ProblemCode.CLOSING, "the TaskRun is over, cancelled or being deleted; nothing new may begin"
        )
    _check_request(key, asked)
    question = _Question(state, writer, key, asked, request, owner, now)
    newest = newest_of(state.jobs, key)
    if newest is None:
        return _adopt(question) or _begin(question, 1)
    was_told = _was_told(newest, question)
    wants_new = asked.new_generation and not was_told and not _has_begun_one(question)
    if newest.is_over:
        return _after_the_end(question, newest, wanted=wants_new)
    if wants_new and _is_gone_by_policy(question, newest):
        return _anew(question, newest, "not found; submitted anew by spec.submission.onNotFound")
    _check_same(newest, asked, wants_new=wants_new)
    if newest.held:
        return _as_a_person_decided(question, newest)
    if newest.handle is not None:
        return _reattach(question, newest)
    if was_told:
        return state, IntentResult(Decision.SUBMIT, newest)
    if asked.again is None:
        return state, IntentResult(Decision.RESOLVE, newest, unresolved=_unresolved(question, newest))
    _check_grounds(question, newest, asked.again)
    return _submit_again(question, newest)


def _adopt(question: _Question) -> tuple[DurableState, IntentResult] | None:
    adoption = next((adoption for adoption in question.owner.spec.adopt if adoption.key == question.key), None)
    if adoption is None:
        return None
    intended = msgspec.structs.replace(_new_record(question, 1), submitters=())
    return _with_adopted(question, intended, adoption.handle, "spec.adopt")


def _begin(question: _Question, generation: int) -> tuple[DurableState, IntentResult]:
    record = _new_record(question, generation)
    state = with_job(question.state, record)
    check_room(state.jobs)
    return state, IntentResult(Decision.SUBMIT, record)


def _after_the_end(question: _Question, record: JobRecord, *, wanted: bool) -> tuple[DurableState, IntentResult]:
    # What was given up may run: its failure is the run's, also if the attempt that was to say so is lost.
    is_paid = record.state is not JobState.SUCCEEDED and not record.given_up and _was_charged(question, record)
    if wanted or is_paid:
        return _begin(question, record.generation + 1)
    if record.state is JobState.SUCCEEDED and not _is_of_same_request(record, question.asked):
        # Its result is not that of what is asked for now, as in a loop that forgot to make the key of the day.
        detail = (
            f"the job {shown(record.key)} succeeded with another request; use another key, or ask for a new generation"
            " (task.resubmit)"
        )
        raise RequestRejectedError(ProblemCode.DIGEST_CHANGED, detail)
    return question.state, IntentResult(Decision.OVER, record, counted=JobEvent.OVER)


def _was_charged(question: _Question, record: JobRecord) -> bool:
    """Whether an attempt before this one paid for the failure, so that each failed job costs one and no more.

    Not always the one that recorded it: that may have been lost before it failed of it, and then the next one did.
    """
    ended_by = record.ended_by_attempt or 0
    since = range(ended_by, question.writer.attempt)
    paid = any(a.number in since and a.charged_to == Budget.APPLICATION for a in question.owner.status.attempts)
    return paid or (ended_by in since and question.owner.attempt(ended_by) is None)


def _as_a_person_decided(question: _Question, record: JobRecord) -> tuple[DurableState, IntentResult]:
    """The answer to the n-th hold is the n-th one that was given for this job."""
    answers = question.owner.answers_for(*record.name)
    if len(answers) < record.holds:
        return question.state, IntentResult(Decision.RESOLVE, record, unresolved=_unresolved(question, record))
    answer = answers[record.holds - 1]
    free = msgspec.structs.replace(record, held=False, message="")
    if answer.action == "Adopt" and answer.handle:
        state, adopted = _with_adopted(question, free, answer.handle, "spec.resolutions")
        return counting(state, submissions=record.handle is None, duplicates_averted=1), adopted
    if answer.action == "Resubmit":
        if record.handle is None:
            return _submit_again(question, free)
        return _anew(question, free, "not found; a person decided to submit again")
    failed = with_end(free, JobState.FAILED, "a person decided that it has failed", question.writer, question.now)
    return with_job(question.state, failed), IntentResult(Decision.OVER, failed, counted=JobEvent.OVER)


def _is_gone_by_policy(question: _Question, record: JobRecord) -> bool:
    is_gone = record.state is JobState.NOT_FOUND and not record.held
    return is_gone and question.owner.spec.submission.on_not_found == "Resubmit"


def _anew(question: _Question, record: JobRecord, why: str) -> tuple[DurableState, IntentResult]:
    """The end of one generation and the begin of the next in one write: nobody comes between and takes the first for a failure."""
    gone = with_end(record, JobState.FAILED, why, question.writer, question.now)
    return _begin(replace(question, state=with_job(question.state, gone)), record.generation + 1)


def _reattach(question: _Question, record: JobRecord) -> tuple[DurableState, IntentResult]:
    if record.session == question.writer.session and record.is_open:
        return question.state, IntentResult(Decision.REATTACH, record)
    state = JobState.ACTIVE if record.state is JobState.DETACHED else record.state
    taken_up = msgspec.structs.replace(record, session=question.writer.session, state=state)
    after = counting(with_job(question.state, taken_up), reattachments=1)
    return after, IntentResult(Decision.REATTACH, taken_up, counted=JobEvent.REATTACHED)


def _submit_again(question: _Question, record: JobRecord) -> tuple[DurableState, IntentResult]:
    alive = tuple(submitter for submitter in record.submitters if not _has_ended(question, submitter))
    submitters = (*alive, _submitter(question))
    if len(submitters) > SUBMITTERS_MAX:
        detail = f"at most {SUBMITTERS_MAX} processes may be about to submit one job; more of them must be known to have ended"
        raise RequestRejectedError(ProblemCode.STATE_FULL, detail)
    told = msgspec.structs.replace(record, submitters=submitters, repeated=True)
    state = with_job(question.state, told)
    check_room(state.jobs)
    return state, IntentResult(Decision.SUBMIT, told)


def _with_adopted(
    question: _Question, record: JobRecord, handle: str, named_in: str
) -> tuple[DurableState, IntentResult]:
    try:
        checked_handle(handle)
    except RequestRejectedError as error:
        # The schema counts characters.
        raise RequestRejectedError(
            error.code, f"{named_in} must name a handle that can be kept: {error.detail}"
        ) from None
    adopted = msgspec.structs.replace(
        record,
        handle=handle,
        origin=JobOrigin.ADOPTED,
        state=JobState.ACTIVE,
        recorded_at=question.now,
        session=question.writer.session,
        strays=tuple(stray for stray in record.strays if stray != handle),
    )
    state = with_job(question.state, adopted)
    check_room(state.jobs)
    return state, IntentResult(Decision.REATTACH, adopted, counted=JobEvent.ADOPTED)


def _new_record(question: _Question, generation: int) -> JobRecord:
    asked, about = question.asked, question.owner
    return JobRecord(
        key=question.key,
        generation=generation,
        adapter=asked.adapter,
        token=token_of(about.spec.submission.idempotency_key or about.metadata.uid, question.key, generation),
        digest=asked.digest,
        state=JobState.INTENDED,
        intended_at=question.now,
        intended_by_attempt=question.writer.attempt,
        token_seconds=asked.token_seconds,
        detached=asked.detached,
        submitters=(_submitter(question),),
        begun_by=question.request.id if question.request and asked.new_generation else "",
    )


def _submitter(question: _Question) -> Submitter:
    writer, request = question.writer, question.request
    return Submitter(
        id=question.asked.submitter,
        attempt=writer.attempt,
        pod_uid=writer.pod_uid,
        session=writer.session,
        time=question.now,
        request_id=request.id if request else "",
        request_digest=request.digest if request else "",
    )


def _was_told(record: JobRecord, question: _Question) -> bool:
    """Whether this very request was answered with `Submit` before."""
    if question.request is None:
        return False
    for told in record.submitters:
        if (told.request_id, told.session) == (question.request.id, question.writer.session):
            if (told.request_digest, told.id) != (question.request.digest, question.asked.submitter):
                raise invalid("a request id must not be used again for another request")
            return True
    return False


def _has_begun_one(question: _Question) -> bool:
    """Whether this very request began a generation before. It may come late once more, when others have settled what became of that one."""
    began = question.request.id if question.request else ""
    return bool(began) and any(job.begun_by == began for job in question.state.jobs.values() if job.key == question.key)


def _has_ended(question: _Question, submitter: Submitter) -> bool:
    """A process that asks again says that its own call is over. Of another one only its kubelet can tell: a frozen one may still submit."""
    if submitter.id == question.asked.submitter and submitter.pod_uid == question.writer.pod_uid:
        return True
    return question.owner.has_reported_end(submitter.attempt, submitter.pod_uid)


def _unresolved(question: _Question, record: JobRecord) -> Unresolved:
    all_ended = all(_has_ended(question, submitter) for submitter in record.submitters)
    quiet_since = None
    if all_ended and question.state.epoch is not None:
        # The pods of the other attempts had ended when this one's was made, so before it opened the state.
        itself = any(submitter.id == question.asked.submitter for submitter in record.submitters)
        quiet_since = max(question.state.epoch.time, question.now) if itself else question.state.epoch.time
    attempts = tuple(dict.fromkeys(submitter.attempt for submitter in record.submitters))
    return Unresolved(all_ended=all_ended, quiet_since=quiet_since, attempts=attempts)


def _check_grounds(question: _Question, record: JobRecord, again: Grounds) -> None:
    if again in {Grounds.TOKEN, Grounds.ABSENT} and not _unresolved(question, record).all_ended:
        raise _refused(f"{again} takes that every earlier submitter is known to have ended, and one may still be alive")
    if again is Grounds.TOKEN:
        if record.token_seconds is None:
            raise _refused("Token takes that the other side honours the token, and the intent says nothing of that")
        if question.now >= record.intended_at + timedelta(seconds=record.token_seconds):
            raise _refused(
                f"Token takes that the token is honoured still, and its {record.token_seconds} seconds are over"
            )
    if again is Grounds.POLICY and question.owner.spec.submission.on_unknown != "Resubmit":
        raise _refused("Policy takes that spec.submission.onUnknown is Resubmit, and it is not")


def _check_same(record: JobRecord, asked: IntentRequest, *, wants_new: bool) -> None:
    if wants_new:
        detail = f"the job {shown(record.key)} must be over before it is submitted anew; it is {record.state}"
        raise RequestRejectedError(ProblemCode.JOB_OPEN, detail)
    if not _is_of_same_request(record, asked):
        detail = (
            f"the request under the key {shown(record.key)} must stay the same while its job is open; use another key"
        )
        raise RequestRejectedError(ProblemCode.DIGEST_CHANGED, detail)


def _is_of_same_request(record: JobRecord, asked: IntentRequest) -> bool:
    return (record.digest, record.adapter) == (asked.digest, asked.adapter)


def _check_request(key: str, asked: IntentRequest) -> None:
    check_job_key(key)
    if not _ID.fullmatch(asked.submitter) or len(asked.submitter) > SESSION_CHARACTERS_MAX:
        raise invalid(f"submitter must have 1 to {SESSION_CHARACTERS_MAX} letters, digits, '-', '_' or '.'")
    for what, text, most in (
        ("adapter", asked.adapter, ADAPTER_CHARACTERS_MAX),
        ("digest", asked.digest, DIGEST_CHARACTERS_MAX),
    ):
        if not _PRINTABLE.fullmatch(text) or len(text) > most:
            raise invalid(f"{what} must have 1 to {most} printable ASCII characters")
    if asked.token_seconds is not None and not 0 <= asked.token_seconds <= RETENTION_SECONDS_MAX:
        raise invalid(f"tokenSeconds must be 0 to {RETENTION_SECONDS_MAX}, or null")


def _refused(detail: str) -> RequestRejectedError:
    return RequestRejectedError(ProblemCode.GROUNDS_REFUSED, detail)
