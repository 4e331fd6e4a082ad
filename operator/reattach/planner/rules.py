"""Rules in `spec.retry.rules`: which one applies to the end of an attempt, and what follows."""

from collections.abc import Sequence
from dataclasses import dataclass

from reattach.api.reasons import OWN_FAILURES, Budget, Cause
from reattach.api.taskrun import Attempt, AttemptPurpose, RetryRule, RuleMatch
from reattach.planner import textformat
from reattach.planner.budgets import budget_of
from reattach.planner.classification import Classification, EndedAttempt
from reattach.planner.conditions import is_own_failure

TEXT_MAX = 4096
"""Length of the text that a pattern is matched against: the kubelet's limit of a message."""
PATTERN_MEMORY_MAX = 512 * 1024
"""Memory of one compiled pattern in bytes, which also bounds the time for each character."""
_NOTE_BYTES_MAX = 400
_WAITED_TOO_LONG = (
    "counts as a failure, because spec.retry.budgets.notReady or spec.deadlines.notReadySeconds is used up"
)


@dataclass(frozen=True, slots=True)
class Consequence:
    """Consequence of the end of an attempt.

    `budget`: None if nothing is charged. `delay_seconds`: the wait before the next attempt, in
    place of the backoff. `message`: the message of the end, and which rule applied. `waits`: the
    task waits for something that is not ready, whatever is charged.
    """

    cause: Cause
    budget: Budget | None
    delay_seconds: int | None
    message: str
    waits: bool = False


def consequence_of(
    rules: Sequence[RetryRule], ended: EndedAttempt, classification: Classification, *, may_wait: bool
) -> Consequence:
    """Return what follows from the end by the first rule that matches, or by its cause.

    `may_wait`: the budget `notReady` and its deadline allow another end. If they do not, an end
    that would be charged to it counts as a failure of the task.
    """
    cause, delay, notes = classification.cause, classification.retry_after_seconds, list[str]()
    waits = cause is Cause.NOT_READY and ended.purpose is AttemptPurpose.RUN
    if waits and not may_wait:
        cause = Cause.APPLICATION
        notes.append(_WAITED_TOO_LONG)
    budget = budget_of(cause, ended.purpose)
    if ended.purpose is AttemptPurpose.RUN and cause in OWN_FAILURES:
        rule, found = _first_match(rules, ended)
        notes.extend(found)
        if rule is not None:
            waits = waits or rule.action == "Wait"
            if rule.action == "Wait" and not may_wait:
                notes.append(_WAITED_TOO_LONG)
            budget = _budget_by(rule, may_wait=may_wait)
            # The task knows this failure better than the rule, so its delay is not shortened.
            delay = max((one for one in (delay, rule.delay_seconds) if one is not None), default=None)
    return Consequence(cause, budget, delay, _with_notes(classification.message, notes), waits)


def _budget_by(rule: RetryRule, *, may_wait: bool) -> Budget | None:
    if rule.action == "Fail":
        return None
    if rule.action == "Wait":
        return Budget.NOT_READY if may_wait else Budget.APPLICATION
    return Budget(rule.budget)


def _first_match(rules: Sequence[RetryRule], ended: EndedAttempt) -> tuple[RetryRule | None, list[str]]:
    """Return the first rule that matches, and sentences about the rules for the message."""
    notes: list[str] = []
    for index, rule in enumerate(rules):
        try:
            matches = _matches(rule.match, ended)
        except _PatternError as error:
            notes.append(
                f"spec.retry.rules[{index}] can't match, because its messagePattern can't be compiled: {error}"
            )
            continue
        if matches:
            return rule, [*notes, f"spec.retry.rules[{index}] applied: {rule.action}"]
    return None, notes


def is_failed_by_rule(attempt: Attempt) -> bool:
    """Return whether a rule with the action Fail applied to the end of the attempt.

    Every other end of a run attempt with one of these causes is charged to a budget.
    """
    return is_own_failure(attempt) and attempt.charged_to is None


def _matches(match: RuleMatch, ended: EndedAttempt) -> bool:
    """Return whether every field that is set matches. The pattern is matched last.

    Exit code, reason and message are those of the task's container, and not of an init container.
    """
    assert ended.pod is not None  # Otherwise the cause is Disruption.
    end = None if ended.failed_init is not None else ended.terminated
    if match.exit_codes is not None:
        code = ended.exit_code if end is not None else None
        listed = code in match.exit_codes.values
        if code in {None, 0} or listed != (match.exit_codes.operator == "In"):
            return False
    if match.reasons and not {ended.pod.status.reason, end.reason if end else ""} & set(match.reasons):
        return False
    if match.pod_conditions:
        found = {(one.type, one.status) for one in ended.pod.status.conditions}
        if not any((one.type, one.status) in found for one in match.pod_conditions):
            return False
    if match.message_pattern is None:
        return True
    reported = ended.report
    text = reported.text if reported is not None else end.message if end is not None else ""
    return _is_found(match.message_pattern, text[:TEXT_MAX])


class _PatternError(Exception):
    """The pattern can't be compiled."""


def _is_found(pattern: str, text: str) -> bool:
    """Return whether the pattern is found in the text, in time linear in its length."""
    import re2  # Only the operator matches patterns. The CLI imports this module without RE2.

    options = re2.Options()
    options.max_mem = PATTERN_MEMORY_MAX
    options.never_capture = True
    options.log_errors = False
    try:
        return re2.search(pattern, text, options) is not None
    except re2.error as error:
        why = error.args[0]
        raise _PatternError(why.decode() if isinstance(why, bytes) else str(why)) from error


def _with_notes(message: str, notes: Sequence[str]) -> str:
    """Return the message with the notes behind it, both as one line."""
    if not notes:
        return textformat.head(message)
    note = textformat.head("; ".join(notes), _NOTE_BYTES_MAX)
    start = textformat.head(message, textformat.BYTES_MAX - len(note.encode()) - len(" ()"))
    return f"{start} ({note})" if start else note
