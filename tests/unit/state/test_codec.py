"""The format of the ConfigMap: nothing is lost on the way there and back, and nothing unreadable passes for absent."""

import json
import re
from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reattach.api.names import ANNOTATION_SUMMARY
from reattach.api.state import (
    Completion,
    Epoch,
    JobCounts,
    JobOrigin,
    JobState,
    JobSummary,
    Seal,
    SealPurpose,
    Summary,
)
from reattach.state.codec import (
    DurableState,
    Opening,
    StateEntry,
    StoredResponse,
    from_configmap,
    from_data,
    summary_annotation_of,
    summary_of,
    to_data,
    view_of,
)
from reattach.state.data_names import DATA_NAME_MAX, data_name_of, job_name_of
from reattach.state.errors import UnreadableError
from reattach.state.job_record import JobRecord, Submitter
from stored_states import KEYS, states

PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # on a busy machine
NOW = datetime(2026, 7, 30, 12, 0, 0, 123456, tzinfo=UTC)


def configmap_of(state: DurableState, **annotations: str) -> bytes:
    metadata = {"name": "load-abcde-state", "uid": "u-1", "resourceVersion": "7", "annotations": annotations}
    return json.dumps({"kind": "ConfigMap", "metadata": metadata, "data": to_data(state)}).encode()


def a_state() -> DurableState:
    record = StateEntry(
        key="job_id",
        value=msgspec.Raw(b'"job-7"'),
        version=3,
        attempt=1,
        pod_uid="pod-1",
        updated_at=NOW,
        expires_at=None,
    )
    epoch = Opening(attempt=2, pod_uid="pod-2", session="s", time=NOW, first_attempt=1)
    return DurableState(epoch=epoch, last_version=17, records={"job_id": record})


@PATIENT
@given(states())
def test_whatever_is_stored_is_read_back(state: DurableState) -> None:
    assert from_configmap(configmap_of(state)).state == state


@PATIENT
@given(states())
def test_every_name_in_the_configmap_is_one_that_kubernetes_accepts(state: DurableState) -> None:
    for name in to_data(state):
        assert re.fullmatch(r"[-._a-zA-Z0-9]+", name)
        assert len(name) <= DATA_NAME_MAX
        assert not name.startswith("..")


@PATIENT
@given(st.lists(KEYS, unique=True, min_size=2, max_size=20))
def test_two_keys_never_share_a_name(keys: list[str]) -> None:
    assert len({data_name_of(key) for key in keys}) == len(keys)


@PATIENT
@given(st.sets(st.tuples(KEYS, st.integers(1, 12)), min_size=2, max_size=20))
def test_two_jobs_or_generations_never_share_a_name_nor_take_one_of_a_key(names: set[tuple[str, int]]) -> None:
    taken = {job_name_of(*name) for name in names}
    assert len(taken) == len(names)
    assert not taken & {data_name_of(key) for key, _ in names}


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
        {"formatVersion": "3"},
        {"formatVersion": "02"},
        {"formatVersion": "²"},
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
def test_unreadable_data_raises_and_is_never_treated_as_absent(change: dict[str, str | None]) -> None:
    data = {name: text for name, text in {**to_data(a_state()), **change}.items() if text is not None}
    with pytest.raises(UnreadableError):
        from_data(data)


def a_job(**changes: object) -> JobRecord:
    record = JobRecord(
        key="load",
        generation=1,
        adapter="ray",
        token="t",
        digest="d",
        state=JobState.ACTIVE,
        intended_at=NOW,
        intended_by_attempt=1,
        handle="job-7",
        origin=JobOrigin.SUBMITTED,
        recorded_at=NOW,
        submitted_by_attempt=1,
        submitters=(Submitter(id="p", attempt=1, pod_uid="pod-1", session="s", time=NOW),),
    )
    return msgspec.structs.replace(record, **changes)


def with_jobs(*records: JobRecord) -> DurableState:
    return msgspec.structs.replace(a_state(), jobs={record.name: record for record in records})


def test_an_external_job_reads_well_in_kubectl() -> None:
    data = to_data(with_jobs(a_job(), a_job(key="a/b", generation=2)))
    assert data["job.1.load"] == (
        '{"key":"load","generation":1,"adapter":"ray","token":"t","digest":"d","state":"Active",'
        '"intendedAt":"2026-07-30T12:00:00.123456Z","intendedByAttempt":1,"submitters":[{"id":"p","attempt":1,'
        '"podUID":"pod-1","session":"s","time":"2026-07-30T12:00:00.123456Z"}],"handle":"job-7","origin":"Submitted",'
        '"recordedAt":"2026-07-30T12:00:00.123456Z","submittedByAttempt":1}'
    )
    assert "job-escaped.2.a_2Fb" in data
    assert data["counts"] == '{"submissions":0,"reattachments":0,"duplicatesAverted":0,"jobs":2}'


JOB = to_data(with_jobs(a_job()))["job.1.load"]


@pytest.mark.parametrize(
    "change",
    [
        {"job.1.load": None},
        {"job.1.load": None, "job.1.other": JOB},
        {"job.1.load": None, "jbo.1.load": JOB},
        {"job.2.load": JOB},
        {"job.1.load": JOB[:-1]},
        {"job.1.load": "{}"},
        {"job.1.load": JOB.replace('"Active"', '"Running"')},
        {"job.1.load": JOB.replace('"Active"', '"Intended"')},
        {"job.1.load": JOB.replace(',"handle":"job-7"', "")},
        {"counts": None},
        {"counts": "{}"},
        {"counts": '{"jobs":2}'},
        {"seal": "{}"},
        {"seal": '{"throughAttempt":1,"purpose":"Pause"}'},
    ],
)
def test_a_job_that_is_damaged_or_missing_makes_the_state_unreadable(change: dict[str, str | None]) -> None:
    data = {name: text for name, text in {**to_data(with_jobs(a_job())), **change}.items() if text is not None}
    with pytest.raises(UnreadableError):
        from_data(data)


WITH_ALL = to_data(
    msgspec.structs.replace(
        with_jobs(a_job()),
        completion=Completion(attempt=1, pod_uid="pod-1", time=NOW),
        seal=Seal(through_attempt=1, purpose=SealPurpose.END),
        requests=(StoredResponse(id="r", digest="d", answer=msgspec.Raw(b"{}")),),
    )
)


@pytest.mark.parametrize(
    "name, inner",
    [
        *((name, '{"') for name in ("epoch", "completion", "seal", "counts", "requests", "key.job_id", "job.1.load")),
        ("job.1.load", '"submitters":[{"'),
    ],
)
def test_unknown_field_that_is_not_listed_as_optional_makes_the_state_unreadable(name: str, inner: str) -> None:
    assert from_data(WITH_ALL)
    text = WITH_ALL[name].replace(inner, f'{inner}new":1,"', 1)
    assert text != WITH_ALL[name]
    with pytest.raises(UnreadableError, match="unknown field `new`"):
        from_data({**WITH_ALL, name: text})


def test_a_state_from_before_there_were_jobs_is_read() -> None:
    data = to_data(a_state())
    del data["counts"]
    assert from_data(data) == a_state()


@pytest.mark.parametrize("configmap", [b"[]", b"{}", b'{"metadata":{},"data":{"a":1}}', b'{"metadata":{}}'])
def test_decoding_of_other_data_raises_unreadable(configmap: bytes) -> None:
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


def test_the_operator_sees_jobs_seal_and_counts() -> None:
    seal = Seal(through_attempt=2, purpose=SealPurpose.SUSPEND)
    counts = JobCounts(submissions=1, reattachments=2, duplicates_averted=3)
    state = msgspec.structs.replace(
        with_jobs(a_job(url="http://x", held=True, holds=2, message="why", strays=("job-8",))), seal=seal, counts=counts
    )
    view, summary = view_of(configmap_of(state)), summary_of({ANNOTATION_SUMMARY: summary_annotation_of(state)})
    assert summary is not None
    expected = JobSummary(
        key="load",
        generation=1,
        state=JobState.ACTIVE,
        adapter="ray",
        handle="job-7",
        url="http://x",
        origin=JobOrigin.SUBMITTED,
        submitted_time=NOW,
        submitted_by_attempt=1,
        held=True,
        holds=2,
        message="why",
        submitters=(1,),
        strays=("job-8",),
    )
    for seen in (view, summary):
        assert (seen.seal, seen.counts, seen.jobs) == (seal, counts, (expected,))


@pytest.mark.parametrize("annotations", [{}, {ANNOTATION_SUMMARY: ""}, {ANNOTATION_SUMMARY: '{"epoch": 1}'}])
def test_a_summary_that_says_nothing_sends_the_operator_to_the_state(annotations: dict[str, str]) -> None:
    assert summary_of(annotations) is None
