"""Copy of a finished run's keys into the state of another TaskRun (`spec.stateFrom`). Pure.

External jobs, completion, seal and epoch belong to the run that they are about, so they are not
copied.
"""

from datetime import datetime, timedelta

import msgspec

from reattach.state.codec import DurableState, StateEntry, StoredState
from reattach.state.operations import RETENTION_SECONDS_MAX, expire
from reattach.state.owner import Owner

COPY_ATTEMPT = 0
_RETENTION_MAX = timedelta(seconds=RETENTION_SECONDS_MAX)


def find_problem(owner: Owner, stored: StoredState | None) -> str | None:
    """Return why the state of this TaskRun can't be copied, as a sentence about what must hold.

    `stored`: None if its ConfigMap is absent. It may have been absent always, which is an empty
    state, or it is lost.
    """
    name = owner.metadata.name
    if owner.status.outcome is None:
        return f"TaskRun {name} must be over; it is unfinished."
    uid = owner.state_uid
    if (uid is not None and (stored is None or stored.metadata.uid != uid)) or (
        stored is None and owner.status.counts.state_losses > 0
    ):
        return f"The state of TaskRun {name} must exist; it was deleted by force."
    return None


def copy_of(source: str, stored: StoredState | None, now: datetime) -> DurableState:
    """Return a state with the keys of `stored` that have not expired.

    The copy counts as the write of each key: versions stay, and retentions begin again. So a key
    that is copied from run to run does not expire on the way.
    """
    if stored is None:
        return DurableState()
    kept = expire(stored.state, now)
    records = {key: _copied(record, source, now) for key, record in kept.records.items()}
    return DurableState(last_version=kept.last_version, records=records)


def describe_absent(source: str) -> str:
    """Return the problem of a source that does not exist."""
    return f"TaskRun {source} must exist in this namespace; it does not."


def describe_unreadable(what: str, why: str) -> str:
    """Return the problem of a source that can't be read."""
    return f"The {what} must be readable: {why}."


def _copied(record: StateEntry, source: str, now: datetime) -> StateEntry:
    # Users may change the ConfigMap, so the difference is bounded.
    retention = None if record.expires_at is None else min(record.expires_at - record.updated_at, _RETENTION_MAX)
    return msgspec.structs.replace(
        record,
        attempt=COPY_ATTEMPT,
        pod_uid=f"stateFrom:{source}",
        updated_at=now,
        expires_at=None if retention is None else now + max(retention, timedelta()),
    )
