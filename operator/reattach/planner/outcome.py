"""Outcome of a TaskRun: from its recorded attempts, or as a user requested it."""

from dataclasses import dataclass

from reattach.api.reasons import SENTENCES, Budget, Cause, Outcome, Reason
from reattach.api.taskrun import Attempt, AttemptPurpose, TaskRunSpec, TaskRunStatus
from reattach.planner import conditions, external_jobs, holds, textformat
from reattach.planner.budgets import FAILURES
from reattach.planner.context import DecisionContext
from reattach.planner.rules import is_failed_by_rule

DELETED = "Deleted"
"""Reason of an ending, and of a stopped attempt, if the TaskRun is being deleted."""


@dataclass(frozen=True, slots=True)
class FinalOutcome:
    """End of a TaskRun.

    `outcome`: None if it is being deleted. `result`: None keeps the result in status.
    """

    outcome: Outcome | None
    reason: Reason
    message: str
    result: str | None = None


def final_outcome(context: DecisionContext) -> FinalOutcome | None:
    """Return how the TaskRun ends now; None if it continues.

    A success is final, even if a user has requested another outcome since.
    """
    natural = None
    if context.current is None and not conditions.is_held_for_lost_state(context.status):
        natural = _success_after_end(context) or natural_outcome(context.spec, context.status)
    if natural is not None and natural.outcome is Outcome.SUCCEEDED:
        return natural
    return requested_outcome(context) or natural or _outcome_in_progress(context)


def _success_after_end(context: DecisionContext) -> FinalOutcome | None:
    """Return success if the last attempt recorded its completion after its end was recorded.

    This happens on an unreachable node, where the attempt continues unobserved.
    """
    last = conditions.last_ended_attempt(context.status)
    completion = context.state.completion if context.state is not None else None
    if last is None or completion is None or context.spec.completion == "ExitCode":
        return None
    if last.cause == Cause.SUCCEEDED or (completion.attempt, completion.pod_uid) != (last.number, last.pod_uid):
        return None
    message = f"Attempt {last.number} recorded its completion before it was stopped."
    return FinalOutcome(Outcome.SUCCEEDED, Reason.SUCCEEDED, message, completion.result)


def requested_outcome(context: DecisionContext) -> FinalOutcome | None:
    """Return the outcome that the run ends with even while an attempt runs.

    A user requested it (deletion, cancel, resolution), the run's deadline has passed, or the run
    has begun to end with it.
    """
    if context.metadata.deletion_timestamp is not None:
        return FinalOutcome(None, Reason.ENDING, "The TaskRun is being deleted.")
    if (recorded := _recorded_outcome(context.status)) is not None:
        return recorded
    if context.spec.cancel:
        return FinalOutcome(Outcome.CANCELLED, Reason.CANCELLED, SENTENCES[Reason.CANCELLED])
    if context.is_past_run_deadline:
        reason = Reason.RUN_DEADLINE_EXCEEDED
        return FinalOutcome(Outcome.FAILED, reason, SENTENCES[reason])
    if (job := holds.job_failed_by_resolution(context)) is not None:
        return _failed_by_resolution(f"external job {external_jobs.describe_job(job)}")
    if holds.resolution_for_loss(context.spec, context.status) == holds.FAIL:
        return _failed_by_resolution("its lost state")
    return None


def _recorded_outcome(status: TaskRunStatus) -> FinalOutcome | None:
    """Return the outcome that the run has begun to end with.

    An ending that a deletion began has none. One that can't be read was not written by this
    version, and is decided again.
    """
    ending = status.ending
    if ending is None or ending.outcome is None:
        return None
    try:
        return FinalOutcome(Outcome(ending.outcome), Reason(ending.reason), ending.message)
    except ValueError:
        return None


def _failed_by_resolution(held_for: str) -> FinalOutcome:
    reason = Reason.FAILED_BY_RESOLUTION
    return FinalOutcome(Outcome.FAILED, reason, f"{SENTENCES[reason]} It was held for {held_for}.")


def _outcome_in_progress(context: DecisionContext) -> FinalOutcome | None:
    """Return the failure that the state was sealed for, even if the budget was raised since.

    No further attempt could open the state. This is a run that had nothing to stop or cancel, so
    its ending was not recorded.
    """
    last = conditions.last_ended_attempt(context.status)
    if not context.is_sealed_for_end or context.current is not None or last is None:
        return None
    failure = FAILURES.get(Budget(last.charged_to)) if last.charged_to else None
    reason = failure or Reason.APPLICATION_FAILED
    end = textformat.describe_end(last)
    message = f"{SENTENCES[reason]} {end} The budget was raised after the run had already begun to end."
    return FinalOutcome(Outcome.FAILED, reason, message)


def natural_outcome(spec: TaskRunSpec, status: TaskRunStatus) -> FinalOutcome | None:
    """Return how the TaskRun ends by its recorded run attempts; None if it continues."""
    for attempt in status.attempts:
        if attempt.purpose is not AttemptPurpose.RUN:
            continue
        if attempt.cause == Cause.SUCCEEDED:
            return FinalOutcome(Outcome.SUCCEEDED, Reason.SUCCEEDED, f"Attempt {attempt.number} completed the task.")
        if (reason := _final_failure_of(attempt)) is not None:
            return FinalOutcome(Outcome.FAILED, reason, f"{SENTENCES[reason]} {textformat.describe_end(attempt)}")
    budget, is_failed = holds.exhausted_budget(spec, status.counts)
    if budget is None or holds.is_held_by_budget(spec, status):
        return None
    if is_failed:
        return _failed_by_resolution(f"its budget {budget}")
    reason = FAILURES[budget]
    charged = [attempt for attempt in status.attempts if attempt.charged_to == budget]
    message = f"{SENTENCES[reason]} {textformat.describe_end(charged[-1])}" if charged else SENTENCES[reason]
    return FinalOutcome(Outcome.FAILED, reason, message)


def _final_failure_of(attempt: Attempt) -> Reason | None:
    """Return the reason of the TaskRun if the end of this attempt excludes another one."""
    if attempt.cause == Cause.PERMANENT:
        return Reason.PERMANENT_FAILURE
    return Reason.FAILED_BY_RULE if is_failed_by_rule(attempt) else None
