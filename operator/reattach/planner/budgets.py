"""Which budget pays for an attempt's end, and what is left of it."""

from types import MappingProxyType

import msgspec

from reattach.api.reasons import Budget, Cause, Reason
from reattach.api.taskrun import Budgets, Charged, Counts

CHARGED_TO = MappingProxyType(
    {
        Cause.SUCCEEDED: None,
        Cause.STOPPED: None,
        Cause.PERMANENT: None,
        Cause.APPLICATION: Budget.APPLICATION,
        Cause.RESOURCE: Budget.APPLICATION,
        Cause.DEADLINE: Budget.APPLICATION,
        Cause.DISRUPTION: Budget.DISRUPTION,
        Cause.FENCED: Budget.DISRUPTION,
        Cause.HELD: Budget.DISRUPTION,
        Cause.NEVER_STARTED: Budget.NEVER_STARTED,
    }
)

_FIELDS = MappingProxyType(
    {
        Budget.APPLICATION: "application",
        Budget.DISRUPTION: "disruption",
        Budget.NEVER_STARTED: "never_started",
    }
)

FAILURES = MappingProxyType(
    {
        Budget.APPLICATION: Reason.APPLICATION_FAILED,
        Budget.DISRUPTION: Reason.DISRUPTED_TOO_OFTEN,
        Budget.NEVER_STARTED: Reason.NEVER_STARTED,
    }
)
"""Why a TaskRun failed whose budget is used up."""


def charge(counts: Counts, budget: Budget | None) -> Counts:
    """The counts with one more end charged to `budget`."""
    if budget is None:
        return counts
    charged = msgspec.structs.replace(counts.charged, **{_FIELDS[budget]: amount(counts.charged, budget) + 1})
    return msgspec.structs.replace(counts, charged=charged)


def amount(of: Charged | Budgets, budget: Budget) -> int:
    """How much was charged to a budget, or how much it allows."""
    return int(getattr(of, _FIELDS[budget]))


def exhausted(counts: Counts, budgets: Budgets, grants: int = 0) -> Budget | None:
    """The budget that was charged with more than it allows. Each of `grants` allows once more what `budgets` do, but for `application`."""
    return next((one for one in Budget if amount(counts.charged, one) > _allowed(budgets, one, grants)), None)


def _allowed(budgets: Budgets, budget: Budget, grants: int) -> int:
    allowed = amount(budgets, budget)
    return allowed if budget is Budget.APPLICATION else allowed + grants * (allowed + 1)
