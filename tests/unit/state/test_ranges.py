"""A state with a value that `status` can't hold is unreadable, so that no status write fails forever."""

import json
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from reattach.api.names import ANNOTATION_SUMMARY
from reattach.api.objects import COUNT_MAX
from reattach.api.state import Completion, JobCounts, JobState, Seal, SealPurpose
from reattach.state.codec import (
    DurableState,
    Opening,
    StateEntry,
    from_data,
    summary_annotation_of,
    summary_of,
    to_data,
)
from reattach.state.data_names import job_name_of
from reattach.state.errors import UnreadableError
from reattach.state.job_record import JobRecord
from reattach.state.operations import RETENTION_SECONDS_MAX

AT = datetime(2026, 3, 1, tzinfo=UTC)
JOB = JobRecord(
    key="load",
    generation=1,
    adapter="ray",
    token="t",
    digest="d",
    state=JobState.ACTIVE,
    intended_at=AT,
    intended_by_attempt=1,
    handle="job-1",
    url="https://ray.example/job-1",
    submitted_by_attempt=1,
    recorded_at=AT,
    holds=1,
    token_seconds=RETENTION_SECONDS_MAX,
)
STATE = DurableState(
    epoch=Opening(attempt=1, pod_uid="p", session="s", time=AT, first_attempt=1),
    completion=Completion(attempt=1, pod_uid="p", time=AT, result="1"),
    seal=Seal(through_attempt=1, purpose=SealPurpose.END),
    counts=JobCounts(submissions=1),
    jobs={JOB.name: JOB},
)
JOB_NAME = job_name_of("load", 1)
WRONG: list[tuple[str, str, Any]] = [
    *((name, "attempt", value) for name in ("epoch", "completion") for value in (0, -1, 2**31, 10**20, 1.5)),
    *((name, "podUID", "p" * 129) for name in ("epoch", "completion")),
    *((name, "time", "2020-01-01T00:00:00") for name in ("epoch", "completion")),
    ("completion", "result", "1" * 4097),
    ("seal", "throughAttempt", 2**31),
    ("counts", "submissions", -1),
    ("counts", "submissions", 2**31),
    (JOB_NAME, "adapter", "a" * 64),
    (JOB_NAME, "handle", "h" * 1025),
    (JOB_NAME, "url", "u" * 2049),
    (JOB_NAME, "submittedByAttempt", 0),
    (JOB_NAME, "submittedByAttempt", COUNT_MAX + 1),
    (JOB_NAME, "recordedAt", "2020-01-01T00:00:00"),
    (JOB_NAME, "holds", 2**31),
    (JOB_NAME, "tokenSeconds", 10**20),
]


def test_from_data_of_a_state_within_the_ranges_returns_it() -> None:
    assert from_data(to_data(STATE)) == STATE


def test_from_data_with_a_key_that_a_user_wrote_returns_it() -> None:
    # `kubectl reattach state set` writes attempt 0.
    key = StateEntry(
        key="a", value=msgspec.Raw(b"1"), version=1, attempt=0, pod_uid="cli:eve", updated_at=AT, expires_at=None
    )
    state = msgspec.structs.replace(STATE, records={"a": key}, last_version=1)
    assert from_data(to_data(state)) == state


@pytest.mark.parametrize("name, field, value", WRONG)
def test_from_data_with_a_value_that_status_can_not_hold_raises_unreadable(name: str, field: str, value: Any) -> None:
    data = to_data(STATE)
    content = json.loads(data[name])
    assert field in content
    data[name] = json.dumps({**content, field: value})
    with pytest.raises(UnreadableError, match="is damaged"):
        from_data(data)


@pytest.mark.parametrize("digits", ["9" * 20, "9" * 5000, "-1", "1e3"])
def test_from_data_with_a_last_version_out_of_range_raises_unreadable(digits: str) -> None:
    with pytest.raises(UnreadableError):
        from_data({**to_data(STATE), "lastVersion": digits})


@pytest.mark.parametrize(
    "change",
    [
        {"epoch": {"attempt": 2**31, "podUID": "p"}},
        {"completedAttempt": 2**31},
        {"counts": {"submissions": 10**20}},
        {"nextExpiry": "2020-01-01T00:00:00"},
        {"jobs": [{"key": "k" * 129, "generation": 1, "state": "Active"}]},
        {"jobs": [{"key": "k", "generation": 1, "state": "Active", "handle": "h" * 1025}]},
    ],
)
def test_summary_of_an_annotation_with_a_value_that_status_can_not_hold_is_none(change: dict[str, Any]) -> None:
    text = summary_annotation_of(STATE)
    assert summary_of({ANNOTATION_SUMMARY: text}) is not None
    assert summary_of({ANNOTATION_SUMMARY: json.dumps({**json.loads(text), **change})}) is None
