"""Operations of the state API as pure functions. Each returns the new state and a result.

A rejected call raises `RequestRejectedError` and changes nothing.

Operations only record when a key expires. Keys are removed only after the TaskRun has finished, and
only pods of unfinished TaskRuns call. So no task sees a key vanish, not even after a pause of a
month, when the task needs the handle in it most.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import msgspec

from reattach.api.messages import BATCH_OPERATIONS_MAX, STATE_BYTES_MAX, BatchResult, Operation, ProblemCode
from reattach.api.state import Completion, JobState, Seal, SealPurpose
from reattach.api.taskrun import AttemptPurpose
from reattach.state.codec import DurableState, Opening, StateEntry, StoredResponse, records_to_data
from reattach.state.errors import RequestRejectedError
from reattach.state.job_record import JobRecord, Jobs
from reattach.state.values import check_key, stored_value_of

REQUESTS_REMEMBERED = 64
REMEMBERED_BYTES_MAX = 64 * 1024
"""Limit for all stored responses, so that a full state fits into a ConfigMap.

Responses of large batches push out older ones earlier.
"""
FENCED_SESSIONS_REMEMBERED = 64
RETENTION_SECONDS_MAX = 100 * 365 * 24 * 3600


@dataclass(frozen=True)
class Session:
    """A caller: one process, or a group of processes, in the pod of an attempt.

    `id` is chosen by the client. `purpose` follows from the pod.
    """

    attempt: int
    pod_uid: str
    id: str
    purpose: AttemptPurpose = AttemptPurpose.RUN

    @property
    def cleans_up(self) -> bool:
        """True for a session that may only read, and record what it finds and cancels."""
        return self.purpose is AttemptPurpose.CLEANUP


@dataclass(frozen=True)
class OperationRequest:
    """The request id of a change.

    `digest` shows whether a request with the same id has the same content.
    """

    id: str
    digest: str


@dataclass(frozen=True)
class Set:
    """Store `text` (JSON) under `key`. With `retention` None the key never expires."""

    key: str
    text: bytes
    retention: timedelta | None
    if_absent: bool = False
    if_version: int | None = None


@dataclass(frozen=True)
class Delete:
    """Remove `key`. An absent key is no error unless `if_version` is set."""

    key: str
    if_version: int | None = None


@dataclass(frozen=True)
class Clear:
    """Remove all keys. External jobs and the completion record stay."""


Step = Set | Delete | Clear


def parse_operation(operation: Operation, default_retention_seconds: int) -> Step:
    """Return an operation as a step, after checking it."""
    match operation.op:
        case "set":
            if operation.key is None or operation.value is msgspec.UNSET:
                raise invalid("a set must have key and value")
            if operation.if_absent and operation.if_version is not None:
                raise invalid("ifAbsent and ifVersion must not be used together")
            return Set(
                key=check_key(operation.key),
                text=stored_value_of(operation.value),
                retention=_retention_of(operation.retention_seconds, default_retention_seconds),
                if_absent=operation.if_absent,
                if_version=_checked_version(operation.if_version),
            )
        case "delete":
            if operation.key is None:
                raise invalid("a delete must have a key")
            _check_no_other_fields(
                operation, Operation(op="delete", key=operation.key, if_version=operation.if_version)
            )
            return Delete(key=check_key(operation.key), if_version=_checked_version(operation.if_version))
        case "clear":
            _check_no_other_fields(operation, Operation(op="clear"))
            return Clear()


def parse_operations(operations: Sequence[Operation], default_retention_seconds: int) -> tuple[Step, ...]:
    """Return the checked steps of a batch of 1 to `BATCH_OPERATIONS_MAX` operations."""
    if not 1 <= len(operations) <= BATCH_OPERATIONS_MAX:
        raise invalid(f"a batch must have 1 to {BATCH_OPERATIONS_MAX} operations; this one has {len(operations)}")
    return tuple(parse_operation(operation, default_retention_seconds) for operation in operations)


def open_state(
    state: DurableState,
    session: Session,
    now: datetime,
    *,
    can_cleanup: bool = False,
    cleanup_handler: bool = False,
) -> tuple[DurableState, bool]:
    """Make `session` the current one.

    Return also whether this attempt was the first to open the state.

    A repeated call of the current session changes nothing. These sessions are fenced for good:
    every lower attempt, every earlier session of the same pod (the last 64 are known), and any
    other pod that claims the same attempt. For sessions that run the task, the seal `End` rejects
    all, and `Suspend` the attempts up to its number. A cleanup session needs the seal `End`.

    A cleanup session keeps what the attempt before it registered, because its own process does not
    know whether the task would have registered more. Without an attempt before it, its registration
    counts for the jobs that it adopts.
    """
    epoch = state.epoch
    fenced_sessions: tuple[str, ...] = ()
    if epoch is None:
        first = session.attempt
    elif epoch.attempt < session.attempt:
        first = epoch.first_attempt
    elif _is_current(epoch, session) and not _is_final(state, session):
        _check_seal_admits(state, session)
        return state, epoch.first_attempt == session.attempt
    else:
        _check_may_take_over(state, epoch, session)
        first = epoch.first_attempt
        fenced_sessions = (*epoch.fenced_sessions, epoch.session)[-FENCED_SESSIONS_REMEMBERED:]
    _check_seal_admits(state, session)
    if session.cleans_up and epoch is not None:
        can_cleanup, cleanup_handler = epoch.can_cleanup, epoch.cleanup_handler
    elif session.cleans_up and not state.jobs:
        can_cleanup = cleanup_handler = False
    opening = Opening(
        attempt=session.attempt,
        pod_uid=session.pod_uid,
        session=session.id,
        time=now,
        first_attempt=first,
        purpose=session.purpose,
        can_cleanup=can_cleanup,
        cleanup_handler=cleanup_handler,
        fenced_sessions=fenced_sessions,
    )
    # Drop the stored responses: every client that could repeat those requests is fenced now.
    return msgspec.structs.replace(state, epoch=opening, requests=()), first == session.attempt


def check_current(state: DurableState, session: Session) -> None:
    """Reject a session that is not the one that opened the state last."""
    epoch = state.epoch
    if epoch is None or epoch.attempt < session.attempt:
        raise RequestRejectedError(ProblemCode.NOT_OPEN, "this pod must open the state first: POST /v1/open")
    if not _is_current(epoch, session):
        raise _fenced(epoch)


def is_current(state: DurableState, session: Session) -> bool:
    """Return whether the session is the one that opened the state last."""
    return state.epoch is not None and _is_current(state.epoch, session)


def check_runs_task(session: Session) -> None:
    """Reject a call that only an attempt that runs the task may make."""
    if session.cleans_up:
        raise cleanup_only("reads, looked-up handles (origin Found), cancellations and outcomes")


def check_not_sealed(state: DurableState, session: Session) -> None:
    """Reject new work after a seal.

    `End` rejects every attempt, `Suspend` the attempts up to its number.
    """
    seal = state.seal
    if seal is None or (seal.purpose is SealPurpose.SUSPEND and seal.through_attempt < session.attempt):
        return
    what = "ended" if seal.purpose is SealPurpose.END else "suspended"
    raise RequestRejectedError(
        ProblemCode.CLOSING, f"the run is being {what}; attempt {session.attempt} may begin nothing new"
    )


def seal(state: DurableState, through: int, purpose: SealPurpose) -> DurableState:
    """Return the state sealed for all attempts up to `through`.

    A seal only grows: its attempt number never decreases, and Suspend may become End.
    """
    before = state.seal or Seal(through_attempt=0, purpose=SealPurpose.SUSPEND)
    grown = Seal(
        through_attempt=max(before.through_attempt, through),
        purpose=SealPurpose.END if SealPurpose.END in {before.purpose, purpose} else SealPurpose.SUSPEND,
    )
    return msgspec.structs.replace(state, seal=grown)


def expire(state: DurableState, now: datetime) -> DurableState:
    """Return the state without the expired keys. Call it only for finished runs."""
    kept = {
        key: record for key, record in state.records.items() if record.expires_at is None or record.expires_at > now
    }
    return state if len(kept) == len(state.records) else msgspec.structs.replace(state, records=kept)


def check_not_final(state: DurableState, session: Session) -> None:
    """Reject a change by an attempt that has recorded its completion or its end."""
    if _has_completed(state, session):
        raise _completed(session)
    if _has_ended(state, session):
        raise RequestRejectedError(
            ProblemCode.ENDED, f"attempt {session.attempt} reported its end; its state is final, and it must exit"
        )


def get(state: DurableState, session: Session, key: str) -> StateEntry:
    """Return the record of `key`, even if it has expired."""
    check_current(state, session)
    check_key(key)
    if (record := state.records.get(key)) is None:
        raise RequestRejectedError(ProblemCode.NOT_FOUND, f"nothing is stored under {quote(key)}")
    return record


def list_records(
    state: DurableState, session: Session, *, prefix: str = "", limit: int | None = None, offset: int = 0
) -> tuple[tuple[StateEntry, ...], int]:
    """Return one page of the records whose keys start with `prefix`, and their total number.

    They are sorted by key.
    """
    check_current(state, session)
    found = [state.records[key] for key in sorted(state.records) if key.startswith(prefix)]
    end = None if limit is None else offset + limit
    return tuple(found[offset:end]), len(found)


def change(
    state: DurableState, session: Session, steps: Sequence[Step], now: datetime
) -> tuple[DurableState, tuple[BatchResult, ...]]:
    """Apply all steps in order, or none of them.

    Each step sees the effects of earlier steps. Return one result for each.
    """
    check_current(state, session)
    check_runs_task(session)
    check_not_final(state, session)
    records, version, results = dict(state.records), state.last_version, []
    for step in steps:
        match step:
            case Set():
                _check_set(records.get(step.key), step)
                version += 1
                records[step.key] = _record_of(step, session, version, now)
                results.append(BatchResult(version=version))
            case Delete():
                _check_version(records.get(step.key), step.key, step.if_version)
                results.append(BatchResult(deleted=0 if records.pop(step.key, None) is None else 1))
            case Clear():
                results.append(BatchResult(deleted=len(records)))
                records.clear()
    if version > state.last_version:
        _check_size(records)
    return msgspec.structs.replace(state, records=records, last_version=version), tuple(results)


def complete(state: DurableState, session: Session, result: bytes | None, now: datetime) -> DurableState:
    """Record the completion of the task, with its `result` (JSON text).

    Repeating it with the same result changes nothing.

    Reject the completion while an external job is open, except for detached jobs with a handle,
    which become `Detached`.
    """
    check_current(state, session)
    check_runs_task(session)
    text = None if result is None else result.decode()
    if _has_completed(state, session):
        if state.completion is None or state.completion.result != text:
            raise _completed(session)
        return state
    check_not_final(state, session)
    _check_none_open(state.jobs)
    completion = Completion(attempt=session.attempt, pod_uid=session.pod_uid, time=now, result=text)
    jobs = {name: _detached(record) if record.is_open else record for name, record in state.jobs.items()}
    return msgspec.structs.replace(state, completion=completion, jobs=jobs)


def find_response(state: DurableState, session: Session, request: OperationRequest | None) -> bytes | None:
    """Return the stored response (JSON text) if the state has one for this request id.

    Refuse a session that is not current.
    """
    check_current(state, session)
    if request is None:
        return None
    for stored in state.requests:
        if stored.id == request.id:
            if stored.digest != request.digest:
                raise invalid("a request id must not be used again for another request")
            return bytes(stored.answer)
    return None


def with_response(state: DurableState, request: OperationRequest | None, response: bytes) -> DurableState:
    """Return the state with the response (JSON text) stored under its request id.

    Without an id, nothing is stored.
    """
    if request is None:
        return state
    stored = StoredResponse(id=request.id, digest=request.digest, answer=msgspec.Raw(response))
    return msgspec.structs.replace(state, requests=_newest_responses((*state.requests, stored)))


def idempotent(
    state: DurableState,
    session: Session,
    request: OperationRequest | None,
    act: Callable[[DurableState], tuple[DurableState, bytes]],
) -> tuple[DurableState, bytes]:
    """Apply `act`, which returns JSON text.

    For a request id that was applied before, return the stored response and change nothing.
    """
    if (stored := find_response(state, session, request)) is not None:
        return state, stored
    state, response = act(state)
    return with_response(state, request, response), response


def size_of(records: Mapping[str, StateEntry]) -> int:
    """Return the stored size of all records in bytes: names, values and their writers."""
    return sum(len(name) + len(text.encode()) for name, text in records_to_data(records).items())


def _newest_responses(requests: tuple[StoredResponse, ...]) -> tuple[StoredResponse, ...]:
    requests = requests[-REQUESTS_REMEMBERED:]
    while len(msgspec.json.encode(requests)) > REMEMBERED_BYTES_MAX:
        requests = requests[1:]
    return requests


def _check_none_open(jobs: Jobs) -> None:
    names = [
        f"{quote(record.key)} (generation {record.generation}, {record.state})"
        for record in jobs.values()
        if record.is_open and (record.handle is None or not record.detached)
    ]
    if names:
        more = "" if len(names) <= 5 else f" and {len(names) - 5} more"
        detail = (
            f"every external job must be over or detached before the task completes; open: {', '.join(names[:5])}{more}"
        )
        raise RequestRejectedError(ProblemCode.JOBS_OPEN, detail)


def _detached(record: JobRecord) -> JobRecord:
    return msgspec.structs.replace(record, state=JobState.DETACHED, held=False)


def _is_current(epoch: Opening, session: Session) -> bool:
    # The purpose too, so that a changed label of a live pod does not turn its session into another.
    opened_by = (epoch.attempt, epoch.pod_uid, epoch.session, epoch.purpose)
    return opened_by == (session.attempt, session.pod_uid, session.id, session.purpose)


def _check_seal_admits(state: DurableState, session: Session) -> None:
    """Reject a session that may not open the state, by its seal."""
    if not session.cleans_up:
        check_not_sealed(state, session)
    elif state.seal is None or state.seal.purpose is not SealPurpose.END:
        raise RequestRejectedError(
            ProblemCode.CLOSING,
            f"a cleanup attempt may open the state only after the run began to end; attempt {session.attempt} came too early",
        )


def _has_completed(state: DurableState, session: Session) -> bool:
    return state.completion is not None and state.completion.attempt == session.attempt


def _has_ended(state: DurableState, session: Session) -> bool:
    return state.end is not None and state.end.attempt == session.attempt


def _is_final(state: DurableState, session: Session) -> bool:
    return _has_completed(state, session) or _has_ended(state, session)


def _check_may_take_over(state: DurableState, epoch: Opening, session: Session) -> None:
    if epoch.attempt > session.attempt or session.id in epoch.fenced_sessions:
        raise _fenced(epoch)
    if epoch.pod_uid != session.pod_uid:
        raise RequestRejectedError(
            ProblemCode.FENCED, f"attempt {epoch.attempt} is another pod, with UID {epoch.pod_uid}"
        )
    if epoch.purpose is not session.purpose:
        raise RequestRejectedError(
            ProblemCode.FENCED, f"the pod opened the state with the purpose {epoch.purpose}, which must not change"
        )
    check_not_final(state, session)


def _check_set(record: StateEntry | None, step: Set) -> None:
    if step.if_absent and record is not None:
        detail = f"{quote(step.key)} must be absent; it has version {record.version}"
        raise RequestRejectedError(ProblemCode.EXISTS, detail)
    _check_version(record, step.key, step.if_version)


def _check_version(record: StateEntry | None, key: str, version: int | None) -> None:
    if version is None or (record is not None and record.version == version):
        return
    seen = "is absent" if record is None else f"has version {record.version}"
    raise RequestRejectedError(ProblemCode.VERSION_MISMATCH, f"{quote(key)} must have version {version}; it {seen}")


def _check_size(records: Mapping[str, StateEntry]) -> None:
    if (size := size_of(records)) > STATE_BYTES_MAX:
        detail = f"all keys together must have at most {STATE_BYTES_MAX} bytes; with this change they have {size}"
        raise RequestRejectedError(ProblemCode.STATE_FULL, detail)


def _record_of(step: Set, session: Session, version: int, now: datetime) -> StateEntry:
    return StateEntry(
        key=step.key,
        value=msgspec.Raw(step.text),
        version=version,
        attempt=session.attempt,
        pod_uid=session.pod_uid,
        updated_at=now,
        expires_at=None if step.retention is None else now + step.retention,
    )


def _retention_of(seconds: int | msgspec.UnsetType | None, default_seconds: int) -> timedelta | None:
    if seconds is msgspec.UNSET:
        seconds = default_seconds
    if seconds is None or seconds == 0:
        return None
    if not 0 < seconds <= RETENTION_SECONDS_MAX:
        raise invalid(f"retentionSeconds must be 0 to {RETENTION_SECONDS_MAX} or null; 0 and null mean never")
    return timedelta(seconds=seconds)


def _checked_version(version: int | None) -> int | None:
    if version is not None and version < 1:
        raise invalid("ifVersion must be at least 1; to require that a key is absent use ifAbsent")
    return version


def _check_no_other_fields(operation: Operation, allowed: Operation) -> None:
    if operation != allowed:
        takes = "key and ifVersion" if operation.op == "delete" else "no fields"
        raise invalid(f"a {operation.op} takes {takes}; other fields are only for a set")


def quote(key: str) -> str:
    """Return a key as one quoted line for a message, shortened if it is long."""
    return repr(key if len(key) <= 80 else key[:80] + "…")


def invalid(detail: str) -> RequestRejectedError:
    """Return the rejection of a malformed request."""
    return RequestRejectedError(ProblemCode.INVALID, detail)


def cleanup_only(allowed: str) -> RequestRejectedError:
    """Return the rejection of a call that a cleanup session may not make."""
    return RequestRejectedError(
        ProblemCode.CLEANUP_ONLY, f"this is a cleanup attempt of a run that ends; it may make only {allowed}"
    )


def _fenced(epoch: Opening) -> RequestRejectedError:
    return RequestRejectedError(
        ProblemCode.FENCED, f"a later session took over; the state is open for attempt {epoch.attempt}"
    )


def _completed(session: Session) -> RequestRejectedError:
    return RequestRejectedError(
        ProblemCode.COMPLETED, f"attempt {session.attempt} recorded its completion; its state is final"
    )
