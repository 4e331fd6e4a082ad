"""What is written to a TaskRun's status: each of these takes a status and gives the next one."""

from datetime import datetime

import msgspec

from reattach.api.objects import Condition
from reattach.api.reasons import SENTENCES, ConditionType, End, Outcome, Reason
from reattach.api.taskrun import Attempt, TaskRunStatus
from reattach.planner import textformat

_YES, _NO, _UNKNOWN = "True", "False", "Unknown"


def condition_of(status: TaskRunStatus, kind: ConditionType) -> Condition | None:
    """The condition as it is stored."""
    return next((condition for condition in status.conditions if condition.type == kind), None)


def progress_of(status: TaskRunStatus) -> Condition | None:
    """Where the TaskRun stands, as people read it."""
    return condition_of(status, ConditionType.SUCCEEDED)


def shows(status: TaskRunStatus, reason: Reason) -> bool:
    """Whether people read this as the TaskRun's state."""
    condition = progress_of(status)
    return condition is not None and condition.reason == reason


def is_held(status: TaskRunStatus, reason: Reason) -> bool:
    """Whether the TaskRun waits for a person, for this reason."""
    condition = condition_of(status, ConditionType.HELD)
    return condition is not None and condition.status == _YES and condition.reason == reason


def with_progress(status: TaskRunStatus, reason: Reason, message: str, now: datetime) -> TaskRunStatus:
    """The TaskRun goes on, and this is where it stands."""
    return _with_condition(status, ConditionType.SUCCEEDED, _UNKNOWN, (reason, message), now)


def with_hold(status: TaskRunStatus, reason: Reason, message: str, now: datetime) -> TaskRunStatus:
    """The TaskRun waits for a person; and if that may end by itself, as long afterwards as it would have waited in any case."""
    status = _with_condition(status, ConditionType.HELD, _YES, (reason, message), now)
    until = status.next_attempt_time if reason is Reason.STATE_UNREADABLE else None
    return msgspec.structs.replace(with_progress(status, reason, message, now), next_attempt_time=until)


def is_held_for_good(status: TaskRunStatus) -> bool:
    """Whether only a person can end the hold: a state that was lost doesn't come back."""
    return is_held(status, Reason.STATE_LOST)


def with_orphans(status: TaskRunStatus, message: str, now: datetime) -> TaskRunStatus:
    """External jobs were left running."""
    return _with_condition(status, ConditionType.ORPHANED, _YES, (Reason.JOBS_ORPHANED, message), now)


def without_hold(status: TaskRunStatus, now: datetime) -> TaskRunStatus:
    """The TaskRun waits for nobody any more."""
    held = condition_of(status, ConditionType.HELD)
    if held is None or held.status == _NO:
        return status
    return _with_condition(status, ConditionType.HELD, _NO, (Reason.NOT_HELD, SENTENCES[Reason.NOT_HELD]), now)


def with_outcome(status: TaskRunStatus, outcome: Outcome, reason: Reason, message: str, now: datetime) -> TaskRunStatus:
    """The TaskRun has ended."""
    value = _YES if outcome is Outcome.SUCCEEDED else _NO
    status = _with_condition(status, ConditionType.SUCCEEDED, value, (reason, message), now)
    return msgspec.structs.replace(
        status, outcome=outcome.value, completion_time=now.replace(microsecond=0), next_attempt_time=None
    )


def with_attempt(status: TaskRunStatus, attempt: Attempt, history_limit: int) -> TaskRunStatus:
    """The attempt is listed as it is now. Of those that have ended, the oldest leave the list when it is full."""
    others = [other for other in status.attempts if other.number != attempt.number]
    listed = sorted([*others, attempt], key=lambda one: one.number)
    surplus = len(listed) - history_limit
    for old in [one for one in listed[:-1] if one.finish_time is not None][: max(surplus, 0)]:
        listed.remove(old)
    counts = msgspec.structs.replace(status.counts, attempts=max(status.counts.attempts, attempt.number))
    if attempt.end == End.PRESUMED:
        counts = msgspec.structs.replace(counts, last_presumed=max(counts.last_presumed, attempt.number))
    start = status.start_time or attempt.start_time
    return msgspec.structs.replace(status, attempts=tuple(listed), counts=counts, start_time=start)


def last_end_of(status: TaskRunStatus) -> Attempt | None:
    """The newest attempt, if it has ended."""
    last = status.attempts[-1] if status.attempts else None
    return last if last is not None and last.finish_time is not None else None


def to_write(before: TaskRunStatus, after: TaskRunStatus, generation: int, now: datetime) -> TaskRunStatus | None:
    """The status to be written, complete; None if there is nothing new to say."""
    if after == before and before.observed_generation in {None, generation}:
        return None
    conditions = tuple(msgspec.structs.replace(one, observed_generation=generation) for one in after.conditions)
    start = after.start_time or now.replace(microsecond=0)
    return msgspec.structs.replace(after, observed_generation=generation, conditions=conditions, start_time=start)


def _with_condition(
    status: TaskRunStatus, kind: ConditionType, value: str, said: tuple[Reason, str], now: datetime
) -> TaskRunStatus:
    reason, message = said
    before = condition_of(status, kind)
    since = before.last_transition_time if before and before.status == value else now.replace(microsecond=0)
    condition = Condition(
        type=kind.value,
        status=value,
        reason=reason.value,
        message=textformat.start_of(message),
        last_transition_time=since,
        observed_generation=before.observed_generation if before else None,
    )
    others = [one for one in status.conditions if one.type != kind]
    listed = sorted([*others, condition], key=lambda one: one.type, reverse=True)  # Succeeded before Held
    return msgspec.structs.replace(status, conditions=tuple(listed))
