"""How long to wait before the next attempt."""

import hashlib
from datetime import datetime, timedelta

from reattach.api.taskrun import Backoff

RETRY_AFTER_SECONDS_MAX = 365 * 24 * 3600
"""The longest delay that a task may ask for."""


def next_attempt_time(
    backoff: Backoff, *, ended: datetime, charged: int, uid: str, attempt: int, asked_seconds: int | None = None
) -> datetime:
    """When the attempt after `attempt` may start, in whole seconds.

    `charged` is how many ends its budget was charged with, this one included. What the task asked for counts as it is.
    """
    if asked_seconds is not None:
        wait = timedelta(seconds=min(max(asked_seconds, 0), RETRY_AFTER_SECONDS_MAX))
    else:
        wait = _wait(backoff, charged) * (1 + _swing(uid, attempt) * backoff.jitter_percent / 100)
    return whole_second_after(ended + wait)


def whole_second_after(time: datetime) -> datetime:
    """`time`, rounded up to what Kubernetes stores: a wait is never shortened by that."""
    whole = time.replace(microsecond=0)
    return whole if whole == time else whole + timedelta(seconds=1)


def _wait(backoff: Backoff, charged: int) -> timedelta:
    wait: float = backoff.initial_seconds
    for _ in range(charged - 1):
        if wait >= backoff.max_seconds:
            break
        wait = wait * backoff.factor_percent / 100
    return timedelta(seconds=min(wait, backoff.max_seconds))


def _swing(uid: str, attempt: int) -> float:
    """Between -1 and 1: another one for each TaskRun and attempt, and the same whenever it is asked for."""
    digest = hashlib.sha256(f"{uid}/{attempt}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / (2**63) - 1
