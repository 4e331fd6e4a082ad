"""Pause before the next attempt."""

import hashlib
from datetime import datetime, timedelta

from reattach.api.messages import RETRY_AFTER_SECONDS_MAX
from reattach.api.taskrun import Backoff


def next_attempt_time(
    backoff: Backoff, *, ended: datetime, charged: int, uid: str, attempt: int, requested_seconds: int | None = None
) -> datetime:
    """Return when the attempt after `attempt` may start, in whole seconds.

    `charged`: how many ends were charged to its budget, including this one. A delay that the task
    or a rule requested gets no jitter.
    """
    if requested_seconds is not None:
        wait = timedelta(seconds=min(max(requested_seconds, 0), RETRY_AFTER_SECONDS_MAX))
    else:
        wait = _wait(backoff, charged) * (1 + _jitter(uid, attempt) * backoff.jitter_percent / 100)
    return _next_whole_second(ended + wait)


def _next_whole_second(time: datetime) -> datetime:
    """Round up to the precision that Kubernetes stores, so that no wait becomes shorter."""
    whole = time.replace(microsecond=0)
    return whole if whole == time else whole + timedelta(seconds=1)


def _wait(backoff: Backoff, charged: int) -> timedelta:
    wait: float = backoff.initial_seconds
    for _ in range(charged - 1):
        if wait >= backoff.max_seconds:
            break
        wait = wait * backoff.factor_percent / 100
    return timedelta(seconds=min(wait, backoff.max_seconds))


def _jitter(uid: str, attempt: int) -> float:
    """Return a number from -1 to 1 that is the same for each call with one TaskRun and attempt."""
    digest = hashlib.sha256(f"{uid}/{attempt}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / (2**63) - 1
