"""Strategies of hypothesis for states as they are stored."""

import json
from datetime import UTC, datetime

import msgspec
from hypothesis import strategies as st

from reattach.api.state import Completion, JobCounts, JobOrigin, JobState, ReportedEnd, Seal, SealPurpose
from reattach.api.taskrun import AttemptPurpose
from reattach.state.codec import DurableState, Opening, StateEntry, StoredResponse
from reattach.state.job_record import JobRecord, Submitter
from reattach.state.values import to_json

TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40)
KEYS = st.one_of(
    st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1, max_size=512),
    st.text(alphabet="ab_/.-é", min_size=1, max_size=6),
    st.text(alphabet="ab_/", min_size=240, max_size=512),
)
VALUES = st.recursive(
    st.one_of(st.booleans(), st.integers(-(10**30), 10**30), st.floats(allow_nan=False, allow_infinity=False), TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXT, inner, max_size=4)),
    max_leaves=10,
)
TIMES = st.datetimes(timezones=st.just(UTC), min_value=datetime(1970, 1, 1))  # noqa: DTZ001 -- hypothesis adds the zone


@st.composite
def states(draw: st.DrawFn) -> DurableState:
    keys = draw(st.lists(KEYS, unique=True, max_size=5))
    records = {
        key: StateEntry(
            key=key,
            value=msgspec.Raw(to_json(draw(VALUES))),
            version=draw(st.integers(1, 50)),
            attempt=draw(st.integers(1, 9)),
            pod_uid=draw(TEXT),
            updated_at=draw(TIMES),
            expires_at=draw(st.none() | TIMES),
        )
        for key in keys
    }
    epoch = st.builds(
        Opening,
        attempt=st.integers(1, 9),
        pod_uid=TEXT,
        session=TEXT,
        time=TIMES,
        first_attempt=st.integers(1, 9),
        can_cleanup=st.booleans(),
        purpose=st.sampled_from(AttemptPurpose),
        cleanup_handler=st.booleans(),
        fenced_sessions=st.lists(TEXT, max_size=3).map(tuple),
    )
    completion = st.builds(
        Completion, attempt=st.integers(1, 9), pod_uid=TEXT, time=TIMES, result=st.none() | VALUES.map(json.dumps)
    )
    end = st.builds(
        ReportedEnd,
        attempt=st.integers(1, 9),
        pod_uid=TEXT,
        time=TIMES,
        kind=st.sampled_from(["Permanent", "RetryLater", "NotReady", "Waiting", "Unheard"]),
        message=TEXT,
        retry_after_seconds=st.none() | st.integers(0, 10**6),
    )
    request = st.builds(StoredResponse, id=TEXT, digest=TEXT, answer=VALUES.map(to_json).map(msgspec.Raw))
    return DurableState(
        epoch=draw(st.none() | epoch),
        last_version=draw(st.integers(50, 10**9)),
        completion=draw(st.none() | completion),
        end=draw(st.none() | end),
        requests=tuple(draw(st.lists(request, max_size=3))),
        records=records,
        seal=draw(st.none() | st.builds(Seal, through_attempt=st.integers(1, 9), purpose=st.sampled_from(SealPurpose))),
        counts=draw(st.builds(JobCounts, submissions=st.integers(0, 9), duplicates_averted=st.integers(0, 9))),
        jobs={record.name: record for record in draw(st.lists(jobs(), max_size=4))},
    )


@st.composite
def jobs(draw: st.DrawFn) -> JobRecord:
    handle = draw(st.none() | TEXT)
    over = [JobState.FAILED, JobState.CANCELLED]
    states = [JobState.INTENDED] if handle is None else [JobState.ACTIVE, JobState.NOT_FOUND, JobState.SUCCEEDED]
    submitter = st.builds(
        Submitter, id=TEXT, attempt=st.integers(1, 9), pod_uid=TEXT, session=TEXT, time=TIMES, request_id=TEXT
    )
    return JobRecord(
        key=draw(KEYS.map(lambda key: key[:128])),
        generation=draw(st.integers(1, 12)),
        adapter=draw(TEXT),
        token=draw(TEXT),
        digest=draw(TEXT),
        state=draw(st.sampled_from(states + over)),
        intended_at=draw(TIMES),
        intended_by_attempt=draw(st.integers(1, 9)),
        token_seconds=draw(st.none() | st.integers(0, 9)),
        submitters=tuple(draw(st.lists(submitter, max_size=3))),
        handle=handle,
        origin=draw(st.none() | st.sampled_from(JobOrigin)),
        recorded_at=draw(st.none() | TIMES),
        result=draw(VALUES.map(to_json).map(msgspec.Raw) | st.just(msgspec.UNSET)),
        message=draw(TEXT),
        held=draw(st.booleans()),
        holds=draw(st.integers(0, 3)),
        strays=tuple(draw(st.lists(TEXT, max_size=2))),
        given_up=draw(st.booleans()),
        cancel_requested_at=draw(st.none() | TIMES),
        cancel_requested_by_attempt=draw(st.none() | st.integers(1, 9)),
        field_digests=draw(st.dictionaries(st.sampled_from(["a", "entrypoint"]), st.just("0" * 8))),
    )
