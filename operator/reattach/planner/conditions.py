"""Status transitions: each function takes a status and returns the next one."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

import msgspec

from reattach.api.objects import Condition
from reattach.api.reasons import OWN_FAILURES, SENTENCES, ConditionType, End, Outcome, Reason
from reattach.api.taskrun import Attempt, AttemptPurpose, TaskRunStatus
from reattach.planner import textformat

_TRUE, _FALSE, _UNKNOWN = "True", "False", "Unknown"
_READINESS = frozenset({ConditionType.RECONCILING, ConditionType.STALLED})
_SCHEMA_DEFAULT_TIME = datetime(1970, 1, 1, tzinfo=UTC)
"""The lastTransitionTime of the schema's default: a default can't contain the time of creation."""


def find_condition(conditions: Iterable[Condition], kind: str) -> Condition | None:
    """Return the condition of this type."""
    return next((condition for condition in conditions if condition.type == kind), None)


def progress_condition(status: TaskRunStatus) -> Condition | None:
    """Return the condition Succeeded, whose reason users see as the status of the TaskRun."""
    return find_condition(status.conditions, ConditionType.SUCCEEDED)


def shows(status: TaskRunStatus, reason: Reason) -> bool:
    """Return whether the condition Succeeded has this reason."""
    condition = progress_condition(status)
    return condition is not None and condition.reason == reason


def shows_message(status: TaskRunStatus, reason: Reason, start: str) -> bool:
    """Return whether the condition Succeeded has this reason, and a message that starts so.

    No field of status names the problem of a pod, so the start of the message is compared.
    """
    condition = progress_condition(status)
    start = textformat.head(start).removesuffix("…")
    return condition is not None and condition.reason == reason and condition.message.startswith(start)


def is_held(status: TaskRunStatus, reason: Reason) -> bool:
    """Return whether the TaskRun is held for this reason."""
    condition = held_condition(status)
    return condition is not None and condition.reason == reason


def held_condition(status: TaskRunStatus) -> Condition | None:
    """Return the condition Held of a TaskRun that is held."""
    condition = find_condition(status.conditions, ConditionType.HELD)
    return condition if condition is not None and condition.status == _TRUE else None


def is_held_for_lost_state(status: TaskRunStatus) -> bool:
    """Return whether only a resolution can end the hold: a lost state does not come back."""
    return is_held(status, Reason.STATE_LOST)


def is_untouched(status: TaskRunStatus) -> bool:
    """Return whether neither operator nor state API has written this status.

    The API server adds the condition Reconciling to every status without conditions.
    """
    return progress_condition(status) is None and msgspec.structs.replace(status, conditions=()) == TaskRunStatus()


def with_progress(status: TaskRunStatus, reason: Reason, message: str, now: datetime) -> TaskRunStatus:
    """Return the status of an unfinished TaskRun with this reason and message."""
    return _with_condition(status, ConditionType.SUCCEEDED, _UNKNOWN, (reason, message), now)


def with_hold(status: TaskRunStatus, reason: Reason, message: str, now: datetime) -> TaskRunStatus:
    """Return the status of a held TaskRun.

    A hold that can end without a resolution (StateUnreadable) keeps the time of the next attempt,
    so that the wait is not shortened.
    """
    status = _with_condition(status, ConditionType.HELD, _TRUE, (reason, message), now)
    until = status.next_attempt_time if reason is Reason.STATE_UNREADABLE else None
    return msgspec.structs.replace(with_progress(status, reason, message, now), next_attempt_time=until)


def without_hold(status: TaskRunStatus, now: datetime) -> TaskRunStatus:
    """Return the status with the condition Held set to False, if the TaskRun was held."""
    if held_condition(status) is None:
        return status
    return _with_condition(status, ConditionType.HELD, _FALSE, (Reason.NOT_HELD, SENTENCES[Reason.NOT_HELD]), now)


def with_suspended(status: TaskRunStatus, message: str, now: datetime) -> TaskRunStatus:
    """Return the status with the condition Suspended set to True."""
    return _with_condition(status, ConditionType.SUSPENDED, _TRUE, (Reason.SUSPENDED, message), now)


def without_suspended(status: TaskRunStatus, now: datetime) -> TaskRunStatus:
    """Return the status with the condition Suspended set to False."""
    shown = (Reason.RESUMED, SENTENCES[Reason.RESUMED])
    return _with_condition(status, ConditionType.SUSPENDED, _FALSE, shown, now)


def with_orphaned(status: TaskRunStatus, message: str, now: datetime) -> TaskRunStatus:
    """Return the status with the condition Orphaned set to True."""
    status = _with_condition(status, ConditionType.ORPHANED, _TRUE, (Reason.JOBS_ORPHANED, message), now)
    return msgspec.structs.replace(status, orphaned=True)


def with_unrecorded_orphans(status: TaskRunStatus, now: datetime) -> TaskRunStatus:
    """Return the status whose condition Orphaned says that no record lists the jobs."""
    shown = find_condition(status.conditions, ConditionType.ORPHANED)
    if shown is None or shown.status != _TRUE:
        return status
    named = shown.message.removeprefix(SENTENCES[Reason.JOBS_ORPHANED])
    message = textformat.head(f"{SENTENCES[Reason.ORPHANS_UNRECORDED]}{named}")
    return _with_condition(status, ConditionType.ORPHANED, _TRUE, (Reason.ORPHANS_UNRECORDED, message), now)


def has_unrecorded_orphans(status: TaskRunStatus) -> bool:
    """Return whether no record lists the orphaned jobs, because it could not be stored."""
    shown = find_condition(status.conditions, ConditionType.ORPHANED)
    return shown is not None and shown.reason == Reason.ORPHANS_UNRECORDED


def with_predecessors(status: TaskRunStatus, message: str, now: datetime) -> TaskRunStatus:
    """Return the status with the condition PredecessorOrphaned set to True."""
    shown = (Reason.PREDECESSOR_LEFT_JOBS, message)
    return _with_condition(status, ConditionType.PREDECESSOR_ORPHANED, _TRUE, shown, now)


def with_outcome(status: TaskRunStatus, outcome: Outcome, reason: Reason, message: str, now: datetime) -> TaskRunStatus:
    """Return the status of a finished TaskRun."""
    value = _TRUE if outcome is Outcome.SUCCEEDED else _FALSE
    status = _with_condition(status, ConditionType.SUCCEEDED, value, (reason, message), now)
    return msgspec.structs.replace(
        status, outcome=outcome.value, completion_time=now.replace(microsecond=0), next_attempt_time=None
    )


def with_attempt(status: TaskRunStatus, attempt: Attempt) -> TaskRunStatus:
    """Return the status with this entry."""
    others = [other for other in status.attempts if other.number != attempt.number]
    listed = sorted([*others, attempt], key=lambda one: one.number)
    counts = msgspec.structs.replace(status.counts, attempts=max(status.counts.attempts, attempt.number))
    if attempt.end == End.PRESUMED:
        counts = msgspec.structs.replace(counts, last_presumed=max(counts.last_presumed, attempt.number))
    start = status.start_time or attempt.start_time
    return msgspec.structs.replace(status, attempts=tuple(listed), counts=counts, start_time=start)


def last_attempt(attempts: Sequence[Attempt], purpose: AttemptPurpose = AttemptPurpose.RUN) -> Attempt | None:
    """Return the newest attempt with this purpose."""
    return next((one for one in reversed(attempts) if one.purpose is purpose), None)


def is_own_failure(attempt: Attempt) -> bool:
    """Return whether this run attempt failed by itself."""
    return attempt.purpose is AttemptPurpose.RUN and attempt.cause in OWN_FAILURES


def last_ended_attempt(status: TaskRunStatus) -> Attempt | None:
    """Return the newest run attempt, if it has ended."""
    last = last_attempt(status.attempts)
    return last if last is not None and last.finish_time is not None else None


def to_write(before: TaskRunStatus, after: TaskRunStatus, generation: int, now: datetime) -> TaskRunStatus | None:
    """Return the complete status to write; None if nothing changed."""
    if after == before and before.observed_generation in {None, generation}:
        return None
    start = after.start_time or now.replace(microsecond=0)
    after = msgspec.structs.replace(after, observed_generation=generation, start_time=start)
    if progress_condition(after) is None:
        return after  # with the conditions of the schema's default, which need not be sent
    after = _with_readiness(after, now)
    conditions = tuple(msgspec.structs.replace(one, observed_generation=generation) for one in after.conditions)
    return msgspec.structs.replace(after, conditions=conditions)


def _with_readiness(status: TaskRunStatus, now: datetime) -> TaskRunStatus:
    """Return the status with Reconciling or Stalled, from which kstatus computes the readiness.

    An unfinished TaskRun is Reconciling. One that is held, or that ended without success, is
    Stalled. A succeeded one has neither: kstatus reads an absent condition as False.
    Both repeat reason and message of the condition Succeeded, because tools show them.
    """
    shown = progress_condition(status)
    assert shown is not None
    kind = _readiness_of(status, shown)
    kept = tuple(one for one in status.conditions if one.type not in _READINESS - {kind})
    status = msgspec.structs.replace(status, conditions=kept)
    return status if kind is None else _with_condition(status, kind, _TRUE, (shown.reason, shown.message), now)


def _readiness_of(status: TaskRunStatus, shown: Condition) -> ConditionType | None:
    if shown.status == _TRUE:
        return None
    is_held = held_condition(status) is not None
    return ConditionType.STALLED if is_held or shown.status == _FALSE else ConditionType.RECONCILING


def _with_condition(
    status: TaskRunStatus, kind: ConditionType, value: str, shown: tuple[str, str], now: datetime
) -> TaskRunStatus:
    reason, message = shown
    before = find_condition(status.conditions, kind)
    is_kept = before is not None and before.status == value and before.last_transition_time != _SCHEMA_DEFAULT_TIME
    since = before.last_transition_time if before and is_kept else now.replace(microsecond=0)
    condition = Condition(
        type=kind.value,
        status=value,
        reason=str(reason),
        message=textformat.head(message),
        last_transition_time=since,
        observed_generation=before.observed_generation if before else None,
    )
    others = [one for one in status.conditions if one.type != kind]
    listed = sorted([*others, condition], key=lambda one: one.type, reverse=True)  # Succeeded before Held
    return msgspec.structs.replace(status, conditions=tuple(listed))
