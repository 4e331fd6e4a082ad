"""The format of the ConfigMap: nothing is lost on the way there and back, and nothing unreadable passes for absent."""

import json
import re
from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reattach.api.names import ANNOTATION_SUMMARY
from reattach.api.state import Completion, Epoch, Summary
from reattach.state.codec import (
    DATA_NAME_MAX,
    Opening,
    Record,
    Remembered,
    State,
    data_name_of,
    from_configmap,
    from_data,
    summary_annotation_of,
    summary_of,
    to_data,
    view_of,
)
from reattach.state.refusals import UnreadableError
from reattach.state.values import to_json

PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # on a busy machine
NOW = datetime(2026, 7, 30, 12, 0, 0, 123456, tzinfo=UTC)
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
def states(draw: st.DrawFn) -> State:
    keys = draw(st.lists(KEYS, unique=True, max_size=5))
    records = {
        key: Record(
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
        fenced_sessions=st.lists(TEXT, max_size=3).map(tuple),
    )
    completion = st.builds(
        Completion, attempt=st.integers(1, 9), pod_uid=TEXT, time=TIMES, result=st.none() | VALUES.map(json.dumps)
    )
    request = st.builds(Remembered, id=TEXT, digest=TEXT, answer=VALUES.map(to_json).map(msgspec.Raw))
    return State(
        epoch=draw(st.none() | epoch),
        last_version=draw(st.integers(50, 10**9)),
        completion=draw(st.none() | completion),
        requests=tuple(draw(st.lists(request, max_size=3))),
        records=records,
        jobs=draw(st.dictionaries(st.from_regex(r"job\.[a-z]{1,5}", fullmatch=True), TEXT, max_size=2)),
    )


def configmap_of(state: State, **annotations: str) -> bytes:
    metadata = {"name": "load-abcde-state", "uid": "u-1", "resourceVersion": "7", "annotations": annotations}
    return json.dumps({"kind": "ConfigMap", "metadata": metadata, "data": to_data(state)}).encode()


def a_state() -> State:
    record = Record(
        key="job_id",
        value=msgspec.Raw(b'"job-7"'),
        version=3,
        attempt=1,
        pod_uid="pod-1",
        updated_at=NOW,
        expires_at=None,
    )
    epoch = Opening(attempt=2, pod_uid="pod-2", session="s", time=NOW, first_attempt=1)
    return State(epoch=epoch, last_version=17, records={"job_id": record})


@PATIENT
@given(states())
def test_whatever_is_stored_is_read_back(state: State) -> None:
    assert from_configmap(configmap_of(state)).state == state


@PATIENT
@given(states())
def test_every_name_in_the_configmap_is_one_that_kubernetes_accepts(state: State) -> None:
    for name in to_data(state):
        assert re.fullmatch(r"[-._a-zA-Z0-9]+", name)
        assert len(name) <= DATA_NAME_MAX
        assert not name.startswith("..")


@PATIENT
@given(st.lists(KEYS, unique=True, min_size=2, max_size=20))
def test_two_keys_never_share_a_name(keys: list[str]) -> None:
    assert len({data_name_of(key) for key in keys}) == len(keys)


@pytest.mark.parametrize(
    "key, name",
    [
        ("job_id", "key.job_id"),
        ("A.b-c", "key.A.b-c"),
        ("..", "key..."),
        ("a/b", "key-escaped.a_2Fb"),
        ("a_2Fb", "key.a_2Fb"),
        ("a_/b", "key-escaped.a_5F_2Fb"),
        ("é", "key-escaped._C3_A9"),
        ("x" * 249, "key." + "x" * 249),
        ("x" * 250, "key-hashed."),
        ("/" * 81, "key-hashed."),
    ],
)
def test_plain_keys_stay_readable_and_others_are_encoded(key: str, name: str) -> None:
    if name == "key-hashed.":
        assert re.fullmatch(r"key-hashed\.[0-9a-f]{64}", data_name_of(key))
    else:
        assert data_name_of(key) == name


def test_a_record_reads_well_in_kubectl() -> None:
    assert to_data(a_state())["key.job_id"] == (
        '{"key":"job_id","value":"job-7","version":3,"attempt":1,"podUID":"pod-1",'
        '"updatedAt":"2026-07-30T12:00:00.123456Z","expiresAt":null}'
    )


def test_numbers_keep_all_their_digits() -> None:
    text = b"[123456789012345678901234567890,0.1,1e300,-0.0]"
    record = msgspec.structs.replace(a_state().records["job_id"], value=msgspec.Raw(text))
    state = msgspec.structs.replace(a_state(), records={"job_id": record})
    assert bytes(from_configmap(configmap_of(state)).state.records["job_id"].value) == text


RECORD = to_data(a_state())["key.job_id"]


@pytest.mark.parametrize(
    "change",
    [
        {"formatVersion": "2"},
        {"formatVersion": None},
        {"formatVersion": ""},
        {"key.job_id": RECORD[:-1]},
        {"key.job_id": ""},
        {"key.job_id": "{}"},
        {"key.job_id": RECORD.replace('"version":3', '"version":"3"')},
        {"key.job_id": RECORD.replace('"job-7"', "null")},
        {"key.job_id": RECORD.replace('"job-7"', "NaN")},
        {"key.other": RECORD},
        {"key-escaped.job_id": RECORD},
        {"kye.job_id": RECORD},
        {"lastVersion": "2"},
        {"lastVersion": None},
        {"lastVersion": "x"},
        {"epoch": "{}"},
        {"requests": "{}"},
        {"completion": "{"},
    ],
)
def test_what_cannot_be_read_is_said_and_never_taken_for_absent(change: dict[str, str | None]) -> None:
    data = {name: text for name, text in {**to_data(a_state()), **change}.items() if text is not None}
    with pytest.raises(UnreadableError):
        from_data(data)


@pytest.mark.parametrize("configmap", [b"[]", b"{}", b'{"metadata":{},"data":{"a":1}}', b'{"metadata":{}}'])
def test_what_is_no_state_is_unreadable(configmap: bytes) -> None:
    with pytest.raises(UnreadableError):
        from_configmap(configmap)


def test_the_operator_sees_epoch_and_completion() -> None:
    completion = Completion(attempt=2, pod_uid="pod-2", time=NOW, result='{"rows": 1}')
    state = msgspec.structs.replace(a_state(), completion=completion)
    view = view_of(configmap_of(state))
    assert (view.uid, view.resource_version) == ("u-1", "7")
    assert view.epoch == Epoch(attempt=2, pod_uid="pod-2")
    assert view.completion == completion
    annotations = {ANNOTATION_SUMMARY: summary_annotation_of(state)}
    assert summary_of(annotations) == Summary(epoch=Epoch(attempt=2, pod_uid="pod-2"), completed_attempt=2)
    assert summary_of({ANNOTATION_SUMMARY: summary_annotation_of(a_state())}) == Summary(
        epoch=Epoch(attempt=2, pod_uid="pod-2")
    )


@pytest.mark.parametrize("annotations", [{}, {ANNOTATION_SUMMARY: ""}, {ANNOTATION_SUMMARY: '{"epoch": 1}'}])
def test_a_summary_that_says_nothing_sends_the_operator_to_the_state(annotations: dict[str, str]) -> None:
    assert summary_of(annotations) is None
