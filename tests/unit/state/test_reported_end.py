"""Ends that attempts report to the state API."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from reattach.api.messages import END_MESSAGE_BYTES_MAX, RETRY_AFTER_SECONDS_MAX, EndKind, EndRequest, ProblemCode
from reattach.api.state import JobReference, JobState, Seal, SealPurpose
from reattach.api.taskrun import AttemptPurpose
from reattach.state.codec import DurableState, from_data, to_data
from reattach.state.errors import RequestRejectedError
from reattach.state.job_operations import with_job
from reattach.state.job_record import JobRecord
from reattach.state.operations import (
    OperationRequest,
    Session,
    Set,
    change,
    complete,
    get,
    idempotent,
    open_state,
    seal,
)
from reattach.state.reported_end import parse_end, record_end

NOW = datetime(2026, 7, 30, tzinfo=UTC)
LATER = NOW + timedelta(hours=1)
SESSION = Session(attempt=1, pod_uid="pod-1", id="a")
SAME_POD = Session(attempt=1, pod_uid="pod-1", id="b")
SECOND = Session(attempt=2, pod_uid="pod-2", id="c")
NO_SLOT = EndRequest(kind=EndKind.RETRY_LATER, message="no slot", retry_after_seconds=90)


def opened() -> DurableState:
    return open_state(DurableState(), SESSION, NOW)[0]


def ended() -> DurableState:
    return record_end(opened(), SESSION, NO_SLOT, NOW)


def refusal_of(state: DurableState, session: Session, request: EndRequest = NO_SLOT) -> ProblemCode:
    with pytest.raises(RequestRejectedError) as refused:
        record_end(state, session, request, LATER)
    return refused.value.code


def test_end_names_its_attempt_and_is_stored_as_an_optional_entry() -> None:
    data = to_data(ended())
    assert json.loads(data["end"]) == {
        "attempt": 1,
        "podUID": "pod-1",
        "time": "2026-07-30T00:00:00Z",
        "kind": "RetryLater",
        "message": "no slot",
        "retryAfterSeconds": 90,
    }
    assert (data["formatVersion"], data["optional"]) == ("2", '["end"]')
    assert from_data(data) == ended()


def test_same_end_again_changes_nothing() -> None:
    assert record_end(ended(), SESSION, NO_SLOT, LATER) == ended()


@pytest.mark.parametrize(
    "other",
    [
        EndRequest(kind=EndKind.PERMANENT, message="no slot"),
        EndRequest(kind=EndKind.RETRY_LATER, message="no slots", retry_after_seconds=90),
        EndRequest(kind=EndKind.RETRY_LATER, message="no slot", retry_after_seconds=91),
    ],
)
def test_another_end_of_the_attempt_is_refused(other: EndRequest) -> None:
    assert refusal_of(ended(), SESSION, other) is ProblemCode.ENDED


def test_completion_that_was_recorded_before_wins() -> None:
    completed = complete(opened(), SESSION, b"1", NOW)
    assert refusal_of(completed, SESSION) is ProblemCode.COMPLETED


def test_after_an_end_the_attempt_only_reads() -> None:
    state = record_end(change(opened(), SESSION, [Set("k", b"1", None)], NOW)[0], SESSION, NO_SLOT, NOW)
    for call in (
        lambda: change(state, SESSION, [Set("k", b"2", None)], NOW),
        lambda: complete(state, SESSION, None, NOW),
        lambda: open_state(state, SESSION, NOW),
        lambda: open_state(state, SAME_POD, NOW),
    ):
        with pytest.raises(RequestRejectedError) as refused:
            call()
        assert refused.value.code is ProblemCode.ENDED
    assert bytes(get(state, SESSION, "k").value) == b"1"


def test_next_attempt_reports_an_end_of_its_own() -> None:
    state, _ = open_state(ended(), SECOND, NOW)
    state, _ = change(state, SECOND, [Set("k", b"1", None)], NOW)
    permanent = EndRequest(kind=EndKind.PERMANENT)
    state = record_end(state, SECOND, permanent, NOW)
    assert state.end is not None
    assert (state.end.attempt, state.end.kind) == (2, "Permanent")


def test_fenced_session_reports_no_end() -> None:
    state, _ = open_state(opened(), SAME_POD, NOW)
    assert refusal_of(state, SESSION) is ProblemCode.FENCED
    state, _ = open_state(opened(), SECOND, NOW)
    assert refusal_of(state, SESSION) is ProblemCode.FENCED
    assert refusal_of(DurableState(), SESSION) is ProblemCode.NOT_OPEN


@pytest.mark.parametrize("purpose", SealPurpose)
def test_seal_does_not_refuse_an_end(purpose: SealPurpose) -> None:
    assert record_end(seal(opened(), 1, purpose), SESSION, NO_SLOT, NOW).end == ended().end


def test_cleanup_attempt_reports_its_end() -> None:
    session = Session(attempt=2, pod_uid="pod-2", id="c", purpose=AttemptPurpose.CLEANUP)
    sealed = DurableState(seal=Seal(through_attempt=1, purpose=SealPurpose.END))
    state, _ = open_state(sealed, session, NOW)
    assert record_end(state, session, NO_SLOT, NOW).end is not None


def test_repeated_request_is_one_change() -> None:
    request = OperationRequest("r-1", "d")

    def act(state: DurableState) -> tuple[DurableState, bytes]:
        return record_end(state, SESSION, NO_SLOT, NOW), b"{}"

    once, _ = idempotent(opened(), SESSION, request, act)
    assert idempotent(once, SESSION, request, act) == (once, b"{}")


@pytest.mark.parametrize(
    "kind, seconds", [("RetryLater", -1), ("NotReady", RETRY_AFTER_SECONDS_MAX + 1), ("Permanent", 5)]
)
def test_delay_that_can_not_be_kept_is_refused(kind: str, seconds: int) -> None:
    with pytest.raises(RequestRejectedError, match="retryAfterSeconds must be") as refused:
        parse_end(EndRequest(kind=EndKind(kind), retry_after_seconds=seconds))
    assert refused.value.code is ProblemCode.INVALID


LOAD = JobReference(key="load", generation=1)
WAITS = EndRequest(kind=EndKind.WAITING, message="waits", retry_after_seconds=600, job=LOAD)


def with_load(**fields: Any) -> DurableState:
    known = {"key": "load", "generation": 1, "adapter": "ray", "token": "t", "digest": "d", "intended_at": NOW}
    job = JobRecord(**{**known, "intended_by_attempt": 1, "state": JobState.ACTIVE, "handle": "job-1", **fields})
    return with_job(opened(), job)


def test_end_that_waits_names_an_open_job() -> None:
    state = record_end(with_load(), SESSION, parse_end(WAITS), NOW)
    assert json.loads(to_data(state)["end"])["job"] == {"key": "load", "generation": 1}
    assert from_data(to_data(state)) == state
    assert record_end(state, SESSION, parse_end(WAITS), LATER) == state


@pytest.mark.parametrize("state", [JobState.UNKNOWN, JobState.NOT_FOUND, JobState.ACTIVE])
def test_task_may_wait_for_a_job_whose_state_is_not_known(state: JobState) -> None:
    assert record_end(with_load(state=state), SESSION, WAITS, NOW).end is not None


@pytest.mark.parametrize(
    "fields, code",
    [
        ({"state": JobState.SUCCEEDED, "ended_at": NOW, "ended_by_attempt": 1}, ProblemCode.JOB_OVER),
        ({"handle": None, "state": JobState.INTENDED}, ProblemCode.INVALID),
        ({"held": True, "holds": 1, "state": JobState.NOT_FOUND}, ProblemCode.INVALID),
        ({"generation": 2}, ProblemCode.JOB_NOT_FOUND),
    ],
)
def test_end_that_waits_for_no_open_job_is_refused(fields: dict[str, Any], code: ProblemCode) -> None:
    state = with_load(**fields)
    assert refusal_of(state, SESSION, WAITS) is code
    assert state.end is None


def test_cleanup_attempt_does_not_wait() -> None:
    session = Session(attempt=2, pod_uid="pod-2", id="c", purpose=AttemptPurpose.CLEANUP)
    state, _ = open_state(seal(with_load(), 1, SealPurpose.END), session, NOW)
    assert refusal_of(state, session, WAITS) is ProblemCode.CLEANUP_ONLY


@pytest.mark.parametrize(
    "request_, says",
    [
        (EndRequest(kind=EndKind.WAITING, retry_after_seconds=60), "job must be set"),
        (EndRequest(kind=EndKind.NOT_READY, job=LOAD), "job must be absent"),
        (EndRequest(kind=EndKind.WAITING, job=LOAD), "retryAfterSeconds must be at least 1"),
        (EndRequest(kind=EndKind.WAITING, job=LOAD, retry_after_seconds=0), "retryAfterSeconds must be at least 1"),
    ],
)
def test_end_that_waits_has_a_job_and_a_delay(request_: EndRequest, says: str) -> None:
    with pytest.raises(RequestRejectedError, match=says):
        parse_end(request_)


@pytest.mark.parametrize("text", ["x" * 5000, "é" * 5000, '"' * 5000, "\n" * 5000, "\x00" * 5000, "\ud800" * 5000])
def test_middle_of_a_long_message_is_cut(text: str) -> None:
    message = parse_end(EndRequest(kind=EndKind.PERMANENT, message=f"start {text} end")).message
    assert (
        END_MESSAGE_BYTES_MAX - 60 < len(json.dumps(message, ensure_ascii=False).encode()) - 2 <= END_MESSAGE_BYTES_MAX
    )
    assert message.startswith("start ")
    assert " … " in message
    assert message.endswith(" end")


def test_message_that_fits_is_kept_as_it_is() -> None:
    text = "line 1\nline 2 " + "x" * (END_MESSAGE_BYTES_MAX - 15)
    assert parse_end(EndRequest(kind=EndKind.PERMANENT, message=text)).message == text
