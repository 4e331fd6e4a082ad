"""Budgets: which one an attempt's end is charged to, and whether it is exhausted."""

from types import MappingProxyType

import msgspec

from reattach.api.reasons import Budget, Cause, Reason
from reattach.api.taskrun import AttemptPurpose, Budgets, Charged, Counts

_CHARGED_TO = MappingProxyType(
    {
        Cause.SUCCEEDED: None,
        Cause.STOPPED: None,
        Cause.PERMANENT: None,
        Cause.WAITING: None,
        Cause.APPLICATION: Budget.APPLICATION,
        Cause.RESOURCE: Budget.APPLICATION,
        Cause.DEADLINE: Budget.APPLICATION,
        Cause.DISRUPTION: Budget.DISRUPTION,
        Cause.FENCED: Budget.DISRUPTION,
        Cause.HELD: Budget.DISRUPTION,
        Cause.NEVER_STARTED: Budget.NEVER_STARTED,
        Cause.NOT_READY: Budget.NOT_READY,
    }
)

_FIELDS = MappingProxyType(
    {
        Budget.APPLICATION: "application",
        Budget.DISRUPTION: "disruption",
        Budget.NEVER_STARTED: "never_started",
        Budget.NOT_READY: "not_ready",
        Budget.CLEANUP: "cleanup",
    }
)

FAILURES = MappingProxyType(
    {
        Budget.APPLICATION: Reason.APPLICATION_FAILED,
        Budget.DISRUPTION: Reason.DISRUPTED_TOO_OFTEN,
        Budget.NEVER_STARTED: Reason.NEVER_STARTED,
    }
)
"""Reason of a TaskRun that failed because this budget is exhausted. Its keys are the budgets of
run attempts that can be exhausted: nothing is charged to `notReady` beyond what it allows.
"""


def budget_of(cause: Cause, purpose: AttemptPurpose) -> Budget | None:
    """Return the budget that the end of an attempt is charged to."""
    if purpose is AttemptPurpose.CLEANUP:
        return None if cause is Cause.SUCCEEDED else Budget.CLEANUP
    return _CHARGED_TO[cause]


def charge(counts: Counts, budget: Budget | None) -> Counts:
    """Return the counts with one more end charged to `budget`."""
    if budget is None:
        return counts
    charged = msgspec.structs.replace(counts.charged, **{_FIELDS[budget]: amount(counts.charged, budget) + 1})
    return msgspec.structs.replace(counts, charged=charged)


def amount(of: Charged | Budgets, budget: Budget) -> int:
    """Return how much was charged to a budget, or how much the budget allows."""
    value: int | msgspec.UnsetType = getattr(of, _FIELDS[budget])
    return 0 if value is msgspec.UNSET else value


def exhausted(counts: Counts, budgets: Budgets, grants: int = 0) -> Budget | None:
    """Return the budget that was charged more than it allows.

    Each of `grants` adds the allowance of each budget once more, except for `application`.
    """
    return next((one for one in FAILURES if amount(counts.charged, one) > _allowed(budgets, one, grants)), None)


def _allowed(budgets: Budgets, budget: Budget, grants: int) -> int:
    allowed = amount(budgets, budget)
    return allowed if budget is Budget.APPLICATION else allowed + grants * (allowed + 1)
