"""Decision about an external job: submit, reattach, or resolve an earlier submission. Pure.

A task submits a job only after its intent is stored. An intent without a handle is *unresolved*:
the job may have been submitted. The job is submitted again only if the process names grounds for
it, which this module checks as far as it can.
"""

import re
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import msgspec

from reattach.api.messages import (
    ADAPTER_CHARACTERS_MAX,
    DIGEST_CHARACTERS_MAX,
    FIELD_DIGESTS_MAX,
    SESSION_CHARACTERS_MAX,
    Decision,
    Grounds,
    IntentRequest,
    ProblemCode,
    Unresolved,
)
from reattach.api.reasons import OWN_FAILURES
from reattach.api.state import JobOrigin, JobState
from reattach.api.taskrun import Resolution
from reattach.state.codec import DurableState
from reattach.state.errors import RequestRejectedError
from reattach.state.job_operations import (
    JobEvent,
    check_job_key,
    check_new_job_key,
    checked_adoption,
    with_counter,
    with_end,
    with_job,
)
from reattach.state.job_record import JobRecord, Submitter, check_room, fits, newest_of, token_of
from reattach.state.operations import (
    RETENTION_SECONDS_MAX,
    OperationRequest,
    Session,
    check_current,
    check_not_final,
    check_not_sealed,
    check_runs_task,
    invalid,
    quote,
)
from reattach.state.owner import Owner

SUBMITTERS_MAX = 16
_ID = re.compile(r"[-._A-Za-z0-9]+")
_PRINTABLE = re.compile(r"[ -~]+")


@dataclass(frozen=True)
class IntentResult:
    """The decision about `job`, and the event to count, if any."""

    decision: Decision
    job: JobRecord
    unresolved: Unresolved | None = None
    counted: JobEvent | None = None


@dataclass(frozen=True)
class _IntentContext:
    """Everything that the decision depends on."""

    state: DurableState
    session: Session
    key: str
    intent: IntentRequest
    request: OperationRequest | None
    owner: Owner
    now: datetime


def intend(
    state: DurableState,
    session: Session,
    key: str,
    intent: IntentRequest,
    *,
    owner: Owner,
    now: datetime,
    request: OperationRequest | None = None,
) -> tuple[DurableState, IntentResult]:
    """Store an intent, or return the decision about the intent that is stored.

    A repeated `request` returns `Submit` again as long as nothing else has happened to the job,
    because the first response may be lost. Any other repeated request is decided from the current
    state, and no change is applied twice.
    """
    check_current(state, session)
    check_runs_task(session)
    check_not_final(state, session)
    check_not_sealed(state, session)
    if owner.is_ending:
        raise RequestRejectedError(
            ProblemCode.CLOSING, "the TaskRun is over, ending, cancelled or being deleted; nothing new may begin"
        )
    _check_request(key, intent)
    context = _IntentContext(state, session, key, intent, request, owner, now)
    newest = newest_of(state.jobs, key)
    if newest is None:
        check_new_job_key(key)
        return _adopt(context) or _begin(context, 1)
    already_granted = _already_granted(newest, context)
    wants_new = intent.new_generation and not already_granted and not _already_begun(context)
    if newest.is_over:
        return _handle_ended_job(context, newest, wanted=wants_new)
    if wants_new and _absent_by_policy(context, newest):
        return _replace_generation(context, newest, "not found; submitted again by spec.submission.onNotFound")
    if wants_new:
        raise _job_open(newest)
    if newest.held and (resolution := _resolution_of(context, newest)) is not None:
        return _apply_resolution(context, newest, resolution)
    if not _is_same_request(newest, intent):
        raise _digest_changed(newest, intent)
    if newest.held:
        return state, IntentResult(Decision.RESOLVE, newest, unresolved=_unresolved(context, newest))
    if newest.handle is not None:
        return _reattach(context, newest)
    if already_granted:
        return state, IntentResult(Decision.SUBMIT, newest)
    if intent.again is None:
        return state, IntentResult(Decision.RESOLVE, newest, unresolved=_unresolved(context, newest))
    _check_grounds(context, newest, intent.again)
    return _submit_again(context, newest)


def _adopt(context: _IntentContext) -> tuple[DurableState, IntentResult] | None:
    adoption = next((adoption for adoption in context.owner.spec.adopt if adoption.key == context.key), None)
    if adoption is None:
        return None
    if adoption.adapter not in {None, context.intent.adapter}:
        raise invalid(
            f"spec.adopt names the adapter {quote(adoption.adapter or '')} for the job {quote(context.key)}, so the task must"
            f" use that one; it uses {quote(context.intent.adapter)}"
        )
    intended = msgspec.structs.replace(_new_record(context, 1), submitters=())
    return _with_adopted(context, intended, adoption.handle, "spec.adopt")


def _begin(context: _IntentContext, generation: int) -> tuple[DurableState, IntentResult]:
    record = _new_record(context, generation)
    state = _with_room(with_job(context.state, record))
    return state, IntentResult(Decision.SUBMIT, record)


def _handle_ended_job(context: _IntentContext, record: JobRecord, *, wanted: bool) -> tuple[DurableState, IntentResult]:
    # A job that was given up may be running. Its failure fails the run, even if the attempt that
    # should report it is lost.
    is_charged = record.state is not JobState.SUCCEEDED and not record.given_up and _was_charged(context, record)
    if wanted or is_charged:
        return _begin(context, record.generation + 1)
    if record.state is JobState.SUCCEEDED and not _is_same_request(record, context.intent):
        # The stored result is not the result of this request, for example if a loop uses one key
        # for every day.
        raise _digest_changed(record, context.intent)
    return context.state, IntentResult(Decision.OVER, record, counted=JobEvent.OVER)


def _was_charged(context: _IntentContext, record: JobRecord) -> bool:
    """Return whether an earlier attempt was already charged for this job's failure.

    Each failure is charged once.

    It need not be the attempt that recorded the failure, because that attempt may have been lost
    first.
    """
    ended_by = record.ended_by_attempt or 0
    since = range(ended_by, context.session.attempt)
    # The newest such attempt is never folded.
    return any(a.number in since and a.cause in OWN_FAILURES for a in context.owner.status.attempts)


def _resolution_of(context: _IntentContext, record: JobRecord) -> Resolution | None:
    """Return the resolution of a held job. The n-th one for the job settles its n-th hold."""
    answers = context.owner.resolutions_for(*record.name)
    return answers[record.holds - 1] if len(answers) >= record.holds else None


def _apply_resolution(
    context: _IntentContext, record: JobRecord, answer: Resolution
) -> tuple[DurableState, IntentResult]:
    """Apply the resolution of a held job.

    The job then belongs to the current request, even if it was submitted with another one. A user
    named the job, or decided that it does not exist.
    """
    intent = context.intent
    free = msgspec.structs.replace(
        record,
        held=False,
        message="",
        adapter=intent.adapter,
        digest=intent.digest,
        field_digests=intent.field_digests,
    )
    if answer.action == "Adopt" and answer.handle:
        state, adopted = _with_adopted(context, free, answer.handle, "spec.resolutions")
        counts = {"submissions": record.handle is None, "reattachments": 1, "duplicates_averted": 1}
        return with_counter(state, **counts), adopted
    if answer.action == "Resubmit":
        if record.handle is None:
            return _submit_again(context, free)
        why = "not found" if record.state is JobState.NOT_FOUND else "given up"
        return _replace_generation(context, free, f"{why}; submitted again by spec.resolutions")
    failed = _given_up(context, free, "failed by spec.resolutions")
    return with_job(context.state, failed), IntentResult(Decision.OVER, failed, counted=JobEvent.OVER)


def _absent_by_policy(context: _IntentContext, record: JobRecord) -> bool:
    is_gone = record.state is JobState.NOT_FOUND and not record.held
    return is_gone and context.owner.spec.submission.on_not_found == "Resubmit"


def _replace_generation(context: _IntentContext, record: JobRecord, why: str) -> tuple[DurableState, IntentResult]:
    """End this generation and begin the next in one write, so no client sees the first fail."""
    gone = _given_up(context, record, why)
    return _begin(replace(context, state=with_job(context.state, gone)), record.generation + 1)


def _given_up(context: _IntentContext, record: JobRecord, why: str) -> JobRecord:
    """Return the record of a job that counts as failed.

    One with a handle that the external system knows may run, so the end of the run names it.
    """
    ended = with_end(record, JobState.FAILED, why, context.session, context.now)
    may_run = record.handle is not None and record.state is not JobState.NOT_FOUND
    return msgspec.structs.replace(ended, given_up=may_run)


def _reattach(context: _IntentContext, record: JobRecord) -> tuple[DurableState, IntentResult]:
    if record.session == context.session.id and record.is_open:
        return context.state, IntentResult(Decision.REATTACH, record)
    state = JobState.ACTIVE if record.state is JobState.DETACHED else record.state
    taken_up = msgspec.structs.replace(record, session=context.session.id, state=state)
    after = with_counter(with_job(context.state, taken_up), reattachments=1)
    return after, IntentResult(Decision.REATTACH, taken_up, counted=JobEvent.REATTACHED)


def _submit_again(context: _IntentContext, record: JobRecord) -> tuple[DurableState, IntentResult]:
    alive = tuple(submitter for submitter in record.submitters if not _has_ended(context, submitter))
    submitters = (*alive, _new_submitter(context))
    if len(submitters) > SUBMITTERS_MAX:
        detail = f"at most {SUBMITTERS_MAX} processes may be allowed to submit one job at a time; wait until the kubelet reports more of them ended"
        raise RequestRejectedError(ProblemCode.STATE_FULL, detail)
    granted = msgspec.structs.replace(record, submitters=submitters, repeated=True)
    state = _with_room(with_job(context.state, granted))
    return state, IntentResult(Decision.SUBMIT, granted)


def _with_adopted(
    context: _IntentContext, record: JobRecord, handle: str, named_in: str
) -> tuple[DurableState, IntentResult]:
    adopted = msgspec.structs.replace(
        record,
        handle=checked_adoption(handle, named_in),
        origin=JobOrigin.ADOPTED,
        state=JobState.ACTIVE,
        recorded_at=context.now,
        session=context.session.id,
        strays=tuple(stray for stray in record.strays if stray != handle),
    )
    state = _with_room(with_job(context.state, adopted))
    return state, IntentResult(Decision.REATTACH, adopted, counted=JobEvent.ADOPTED)


def _with_room(state: DurableState) -> DurableState:
    """Return the state, in which digests of fields give way if the jobs would not fit.

    They only name what differs in a changed request. Reject jobs that do not fit without them.
    """
    if not fits(state.jobs):
        jobs = {name: msgspec.structs.replace(job, field_digests={}) for name, job in state.jobs.items()}
        state = msgspec.structs.replace(state, jobs=jobs)
    check_room(state.jobs)
    return state


def _new_record(context: _IntentContext, generation: int) -> JobRecord:
    intent, owner = context.intent, context.owner
    return JobRecord(
        key=context.key,
        generation=generation,
        adapter=intent.adapter,
        token=token_of(owner.token_seed, context.key, generation),
        digest=intent.digest,
        state=JobState.INTENDED,
        intended_at=context.now,
        intended_by_attempt=context.session.attempt,
        token_seconds=intent.token_seconds,
        field_digests=intent.field_digests,
        detached=intent.detached,
        submitters=(_new_submitter(context),),
        begun_by=context.request.id if context.request and intent.new_generation else "",
    )


def _new_submitter(context: _IntentContext) -> Submitter:
    session, request = context.session, context.request
    return Submitter(
        id=context.intent.submitter,
        attempt=session.attempt,
        pod_uid=session.pod_uid,
        session=session.id,
        time=context.now,
        request_id=request.id if request else "",
        request_digest=request.digest if request else "",
    )


def _already_granted(record: JobRecord, context: _IntentContext) -> bool:
    """Return whether this request received `Submit` before."""
    if context.request is None:
        return False
    for submitter in record.submitters:
        if (submitter.request_id, submitter.session) == (context.request.id, context.session.id):
            if (submitter.request_digest, submitter.id) != (context.request.digest, context.intent.submitter):
                raise invalid("a request id must not be used again for another request")
            return True
    return False


def _already_begun(context: _IntentContext) -> bool:
    """Return whether this request began a generation before.

    A late repetition may arrive after that generation was resolved.
    """
    request_id = context.request.id if context.request else ""
    return bool(request_id) and any(
        job.begun_by == request_id for job in context.state.jobs.values() if job.key == context.key
    )


def _has_ended(context: _IntentContext, submitter: Submitter) -> bool:
    """Return whether a submitter can no longer submit.

    The calling process has ended its own earlier call. For another process only evidence of its
    end counts, because a frozen one may still submit.
    """
    if submitter.id == context.intent.submitter and submitter.pod_uid == context.session.pod_uid:
        return True
    return context.owner.has_certain_end(submitter.attempt, submitter.pod_uid)


def _unresolved(context: _IntentContext, record: JobRecord) -> Unresolved:
    all_ended = all(_has_ended(context, submitter) for submitter in record.submitters)
    # The time at which the state was opened proves nothing here, because the evidence that another
    # attempt has ended may have come after that.
    quiet_since = context.now if all_ended else None
    attempts = tuple(dict.fromkeys(submitter.attempt for submitter in record.submitters))
    return Unresolved(all_ended=all_ended, quiet_since=quiet_since, attempts=attempts)


def _check_grounds(context: _IntentContext, record: JobRecord, again: Grounds) -> None:
    if again in {Grounds.TOKEN, Grounds.ABSENT} and not _unresolved(context, record).all_ended:
        raise _grounds_refused(
            f"grounds {again} require that every earlier submitter has ended; one may still be running"
        )
    if again is Grounds.TOKEN:
        if record.token_seconds is None:
            raise _grounds_refused("grounds Token require an intent with tokenSeconds")
        if context.now >= record.intended_at + timedelta(seconds=record.token_seconds):
            raise _grounds_refused(
                f"grounds Token require a token that is still valid; its {record.token_seconds} seconds are over"
            )
    if again is Grounds.POLICY and context.owner.spec.submission.on_unknown != "Resubmit":
        raise _grounds_refused("grounds Policy require spec.submission.onUnknown: Resubmit")


def _job_open(record: JobRecord) -> RequestRejectedError:
    detail = f"the job {quote(record.key)} must be over before a new generation begins; it is {record.state}"
    return RequestRejectedError(ProblemCode.JOB_OPEN, detail)


def _digest_changed(record: JobRecord, intent: IntentRequest) -> RequestRejectedError:
    """Return the refusal of another request, with advice that leads to no second job."""
    handle = "no handle is known yet" if record.handle is None else f"handle {quote(record.handle)}"
    job = f"the job {quote(record.key)} (generation {record.generation}, {handle})"
    what = f"{'has succeeded' if record.is_over else 'was submitted'} with another request"
    gets = "To get its result" if record.is_over else "To take it over"
    detail = (
        f"{job} {what}{_differences(record, intent)}. Nothing was submitted. {gets}, send the same request in each attempt:"
        " leave out what changes, such as the time, or keep it in the state"
    )
    if record.is_over:
        detail += ". Only to submit a second job, use another key, or a new generation (task.resubmit)"
    return RequestRejectedError(ProblemCode.DIGEST_CHANGED, detail)


def _differences(record: JobRecord, intent: IntentRequest) -> str:
    """Return the names of the fields that are known to differ, as a part of a sentence."""
    if record.adapter != intent.adapter:
        return f", of the adapter {quote(record.adapter)}"
    before, after = record.field_digests, intent.field_digests
    is_complete = all(0 < len(one) < FIELD_DIGESTS_MAX for one in (before, after))
    names = before.keys() | after.keys() if is_complete else before.keys() & after.keys()
    differing = sorted(name for name in names if before.get(name) != after.get(name))
    return f", which differs in {', '.join(quote(name) for name in differing)}" if differing else ""


def _is_same_request(record: JobRecord, intent: IntentRequest) -> bool:
    return (record.digest, record.adapter) == (intent.digest, intent.adapter)


def _check_request(key: str, intent: IntentRequest) -> None:
    check_job_key(key)
    if not _ID.fullmatch(intent.submitter) or len(intent.submitter) > SESSION_CHARACTERS_MAX:
        raise invalid(f"submitter must have 1 to {SESSION_CHARACTERS_MAX} letters, digits, '-', '_' or '.'")
    for what, text, most in (
        ("adapter", intent.adapter, ADAPTER_CHARACTERS_MAX),
        ("digest", intent.digest, DIGEST_CHARACTERS_MAX),
    ):
        if not _PRINTABLE.fullmatch(text) or len(text) > most:
            raise invalid(f"{what} must have 1 to {most} printable ASCII characters")
    if intent.token_seconds is not None and not 0 <= intent.token_seconds <= RETENTION_SECONDS_MAX:
        raise invalid(f"tokenSeconds must be 0 to {RETENTION_SECONDS_MAX}, or null")


def _grounds_refused(detail: str) -> RequestRejectedError:
    return RequestRejectedError(ProblemCode.GROUNDS_REFUSED, detail)
