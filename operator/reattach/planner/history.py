"""History of a run: the newest attempts are listed, and the others are folded into counts by cause.

A folded attempt has no pod: its pod is deleted after the status that folds it is written. So status
and decisions stay small, however many attempts a run has.
"""

from collections.abc import Iterable

from msgspec.structs import replace

from reattach.api.taskrun import Attempt, FoldedAttempts, TaskRunStatus
from reattach.planner.conditions import is_own_failure, last_attempt


def with_folded(status: TaskRunStatus, history_limit: int) -> TaskRunStatus:
    """Return the status in which the oldest ended attempts beyond the limit are folded.

    Never fold the newest run attempt, because it may still become the success of the run. Never
    fold the newest one that failed by itself, because it pays for the failures of external jobs.

    A finished TaskRun folds nothing more. It is not watched, so nothing would delete the pods after
    a crash. Its list may be longer by the attempts that the last write recorded.
    """
    surplus = len(status.attempts) - history_limit
    if surplus <= 0 or status.outcome is not None:
        return status
    newest_failure = next((one for one in reversed(status.attempts) if is_own_failure(one)), None)
    kept = (last_attempt(status.attempts), newest_failure)
    ended = [one for one in status.attempts[:-1] if one.cause is not None and one not in kept]
    old = ended[:surplus]
    listed = tuple(one for one in status.attempts if one not in old)
    return replace(status, attempts=listed, folded_attempts=_fold(status.folded_attempts, old))


def _fold(folded: Iterable[FoldedAttempts], attempts: Iterable[Attempt]) -> tuple[FoldedAttempts, ...]:
    """Return one entry for each cause, in the order of the first numbers."""
    by_cause = {one.cause: one for one in folded}
    for attempt in attempts:
        cause, number = str(attempt.cause), attempt.number
        before = by_cause.get(cause, FoldedAttempts(cause, number, number, 0))
        by_cause[cause] = FoldedAttempts(
            cause=cause,
            first_number=min(before.first_number, number),
            last_number=max(before.last_number, number),
            count=before.count + 1,
        )
    return tuple(sorted(by_cause.values(), key=lambda one: one.first_number))
