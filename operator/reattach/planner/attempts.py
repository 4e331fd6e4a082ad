"""The ends of attempts: which are not recorded yet, and what is recorded of them."""

from datetime import datetime

import msgspec

from reattach.api.names import pod_name
from reattach.api.objects import Pod
from reattach.api.reasons import Cause, EventReason, Reason
from reattach.api.state import StateView
from reattach.api.taskrun import Attempt, TaskRunStatus
from reattach.planner import conditions as statuses
from reattach.planner import holds, outcome, podstatus, textformat
from reattach.planner.backoff import next_attempt_time
from reattach.planner.budgets import CHARGED_TO, amount, charge
from reattach.planner.classification import Classification, EndedAttempt, cause_of, finish_time_of, how_known
from reattach.planner.context import AttemptView, DecisionContext
from reattach.planner.outcome import conclusion_of
from reattach.planner.plan import EmitEvent


def unrecorded(look: DecisionContext) -> tuple[AttemptView, ...]:
    """The attempts that have ended and whose end is not in status."""
    return tuple(known for known in look.attempts if not known.recorded and _has_ended(look, known.pod))


def record(look: DecisionContext) -> DecisionContext:
    """The look after the end of each attempt that has ended is put into status, with what follows from it."""
    recorded = []
    for known in unrecorded(look):
        ended = _ended_of(look, known)
        verdict = cause_of(ended)
        entry = _entry_of(look, known, ended, verdict)
        look = look.with_status(_with_end(look, ended, verdict, entry))
        recorded.append(entry)
    if not recorded or outcome.wanted(look) is not None:
        return look
    if look.state_lost and any(entry.cause == Cause.HELD for entry in recorded):
        return holds.with_hold(look, Reason.STATE_LOST, holds.question_about_loss(look))
    if waiting := holds.unanswered(look):
        return holds.with_hold(look, Reason.SUBMISSION_UNKNOWN, holds.question_about(look, waiting))
    if conclusion_of(look.spec, look.status) is None:
        announced = (_announcement_of(entry, look.status) for entry in recorded)
        look = look.with_status(backing_off(look.status, look.now), *announced)
    return look


def backing_off(status: TaskRunStatus, now: datetime) -> TaskRunStatus:
    """The status that says how the last attempt ended and when the next one starts."""
    last = statuses.last_end_of(status)
    if last is None:
        return status
    return statuses.with_progress(status, Reason.BACKING_OFF, _sentence_of(last, status), now)


def _has_ended(look: DecisionContext, pod: Pod | None) -> bool:
    ends_at = look.now if pod is None else look.ends_at(pod)
    return ends_at is not None and ends_at <= look.now


def _ended_of(look: DecisionContext, known: AttemptView) -> EndedAttempt:
    pod, entry = known.pod, known.entry
    state = look.observed.state
    is_last = look.current is not None and look.current.number == known.number
    over = pod is None or podstatus.is_over(pod) or podstatus.terminated_of(pod, look.container) is not None
    return EndedAttempt(
        number=known.number,
        pod_uid=_pod_uid_of(look, known),
        pod=pod,
        container=look.container,
        completion=look.spec.completion,
        state=state if isinstance(state, StateView) else None,
        state_lost=look.state_lost,
        presumed=not over,
        expected=(entry.reason, entry.message or "") if entry and entry.reason else None,
        shown_running=is_last and entry is not None and statuses.shows(look.status, Reason.RUNNING),
        stopped=_why_stopped(look),
    )


def _why_stopped(look: DecisionContext) -> tuple[str, str] | None:
    ending = outcome.wanted(look)
    if ending is None:
        return None
    return (ending.reason if ending.outcome else "Deleted"), f"{ending.message} Its pod was stopped."


def _pod_uid_of(look: DecisionContext, known: AttemptView) -> str:
    if known.pod is not None:
        return known.pod.metadata.uid
    if known.entry is not None and known.entry.pod_uid:
        return known.entry.pod_uid
    return look.epoch.pod_uid if look.epoch and look.epoch.attempt == known.number else ""


def _entry_of(look: DecisionContext, known: AttemptView, ended: EndedAttempt, verdict: Classification) -> Attempt:
    made = known.pod.metadata.creation_timestamp if known.pod else None
    budget = CHARGED_TO[verdict.cause]
    return Attempt(
        number=known.number,
        pod_name=pod_name(look.about.name, look.about.uid, known.number),
        pod_uid=ended.pod_uid,
        node=known.pod.spec.node_name if known.pod else known.entry.node if known.entry else "",
        start_time=(known.entry.start_time if known.entry else None) or made,
        finish_time=finish_time_of(ended, look.now).replace(microsecond=0),
        end=how_known(ended).value,
        cause=verdict.cause.value,
        charged_to=budget.value if budget else None,
        reason=textformat.start_of(verdict.reason),
        exit_code=ended.exit_code,
        message=textformat.start_of(verdict.message),
    )


def _with_end(look: DecisionContext, ended: EndedAttempt, verdict: Classification, entry: Attempt) -> TaskRunStatus:
    budget = CHARGED_TO[verdict.cause]
    status = statuses.with_attempt(look.status, entry, look.spec.history_limit)
    status = msgspec.structs.replace(status, counts=charge(status.counts, budget))
    if verdict.cause is Cause.SUCCEEDED and ended.recorded_completion:
        assert ended.state is not None
        assert ended.state.completion is not None
        status = msgspec.structs.replace(status, result=ended.state.completion.result)
    is_last = conclusion_of(look.spec, status) is not None or holds.is_held_by_budget(look.spec, status)
    if budget is None or is_last or holds.unanswered(look):
        return msgspec.structs.replace(status, next_attempt_time=None)
    again = next_attempt_time(
        look.spec.retry.backoff,
        ended=finish_time_of(ended, look.now),
        charged=amount(status.counts.charged, budget),
        uid=look.about.uid,
        attempt=ended.number,
        asked_seconds=verdict.retry_after_seconds,
    )
    return msgspec.structs.replace(status, next_attempt_time=again)


def _announcement_of(entry: Attempt, status: TaskRunStatus) -> EmitEvent:
    return EmitEvent(EventReason.ATTEMPT_FAILED, textformat.start_of(_sentence_of(entry, status)), warning=True)


def _sentence_of(entry: Attempt, status: TaskRunStatus) -> str:
    again = status.next_attempt_time
    then = f" The next attempt starts at {textformat.clock_of(again)}." if again else ""
    return textformat.how_it_ended(entry) + then
