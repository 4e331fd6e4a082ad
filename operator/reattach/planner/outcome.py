"""Whether and how a TaskRun ends: by what its attempts came to, or because somebody wants it to."""

from dataclasses import dataclass

from reattach.api.reasons import SENTENCES, Budget, Cause, Outcome, Reason
from reattach.api.state import StateView
from reattach.api.taskrun import TaskRunSpec, TaskRunStatus
from reattach.planner import conditions as statuses
from reattach.planner import external_jobs, holds, textformat
from reattach.planner.budgets import FAILURES
from reattach.planner.context import DecisionContext


@dataclass(frozen=True, slots=True)
class FinalOutcome:
    """How a TaskRun ends. `outcome` None: it is being deleted, and has none. `result` None: the one in status stays."""

    outcome: Outcome | None
    reason: Reason
    message: str
    result: str | None = None


def ending_of(look: DecisionContext) -> FinalOutcome | None:
    """How the TaskRun ends now, if it does. What was achieved stays so, whatever anybody wants meanwhile."""
    done = None
    if look.current is None and not statuses.is_held_for_good(look.status):
        done = _late_success(look) or conclusion_of(look.spec, look.status)
    if done is not None and done.outcome is Outcome.SUCCEEDED:
        return done
    return wanted(look) or done or _begun(look)


def _late_success(look: DecisionContext) -> FinalOutcome | None:
    """Whether the last attempt's record came after its end was recorded: it may have gone on where nobody saw it."""
    last, read = statuses.last_end_of(look.status), look.observed.state
    record = read.completion if isinstance(read, StateView) and not look.state_lost else None
    if last is None or record is None or look.spec.completion == "ExitCode":
        return None
    if last.cause == Cause.SUCCEEDED or (record.attempt, record.pod_uid) != (last.number, last.pod_uid):
        return None
    message = f"Attempt {last.number} recorded its completion before it was stopped."
    return FinalOutcome(Outcome.SUCCEEDED, Reason.SUCCEEDED, message, record.result)


def wanted(look: DecisionContext) -> FinalOutcome | None:
    """How somebody wants the TaskRun to end, be it that an attempt runs."""
    if look.about.deletion_timestamp is not None:
        return FinalOutcome(None, Reason.ENDING, "The TaskRun is being deleted.")
    if look.spec.cancel:
        return FinalOutcome(Outcome.CANCELLED, Reason.CANCELLED, SENTENCES[Reason.CANCELLED])
    if (job := holds.failed(look)) is not None:
        return FinalOutcome(*holds.by_resolution(f"external job {external_jobs.name_of(job)}"))
    if holds.answer_to_loss(look.spec, look.status) == holds.FAIL:
        return FinalOutcome(*holds.by_resolution("its lost state"))
    return None


def _begun(look: DecisionContext) -> FinalOutcome | None:
    """The end that was begun, although a budget has been raised since: no further attempt could open the state."""
    last = statuses.last_end_of(look.status)
    if not look.is_sealed or look.current is not None or last is None:
        return None
    reason = FAILURES[Budget(last.charged_to)] if last.charged_to else Reason.APPLICATION_FAILED
    message = f"{SENTENCES[reason]} {textformat.how_it_ended(last)} That it may go on came after its end was begun."
    return FinalOutcome(Outcome.FAILED, reason, message)


def conclusion_of(spec: TaskRunSpec, status: TaskRunStatus) -> FinalOutcome | None:
    """How the TaskRun ends by what is recorded of its attempts, if it does."""
    for attempt in status.attempts:
        if attempt.cause == Cause.SUCCEEDED:
            return FinalOutcome(Outcome.SUCCEEDED, Reason.SUCCEEDED, f"Attempt {attempt.number} completed the task.")
        if attempt.cause == Cause.PERMANENT:
            message = f"{SENTENCES[Reason.PERMANENT_FAILURE]} {textformat.how_it_ended(attempt)}"
            return FinalOutcome(Outcome.FAILED, Reason.PERMANENT_FAILURE, message)
    budget, is_failed = holds.spent_budget(spec, status.counts)
    if budget is None or holds.is_held_by_budget(spec, status):
        return None
    if is_failed:
        return FinalOutcome(*holds.by_resolution(f"its budget {budget}"))
    reason = FAILURES[budget]
    charged = [attempt for attempt in status.attempts if attempt.charged_to == budget]
    message = f"{SENTENCES[reason]} {textformat.how_it_ended(charged[-1])}" if charged else SENTENCES[reason]
    return FinalOutcome(Outcome.FAILED, reason, message)
