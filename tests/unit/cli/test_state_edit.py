"""Changes of users to a state, and the parts that stay as they are."""

import json
from datetime import timedelta

import msgspec
import pytest

from builders import a_pod, a_taskrun, at
from reattach.api.names import LABEL_ATTEMPT
from reattach.api.state import Completion, Seal, SealPurpose
from reattach.cli import state_edit
from reattach.cli.errors import CommandError
from reattach.state.codec import DurableState, Opening
from reattach.state.errors import RequestRejectedError
from reattach.state.operations import Clear, Delete, Set


def a_state() -> DurableState:
    epoch = Opening(attempt=3, pod_uid="pod-3", session="s", time=at(0), first_attempt=1)
    stored, _ = state_edit.edit(DurableState(), [Set("kept", b"1", None)], "ann", at(1))
    return msgspec.structs.replace(
        stored,
        epoch=epoch,
        completion=Completion(attempt=3, pod_uid="pod-3", time=at(2)),
        seal=Seal(through_attempt=3, purpose=SealPurpose.END),
    )


def test_edit_records_the_command_line_and_the_user_as_writer() -> None:
    state, _ = state_edit.edit(DurableState(), [Set("job_id", b'"job-7"', None)], "ann@example.com", at(5))
    record = state.records["job_id"]
    assert (record.attempt, record.pod_uid, record.updated_at) == (0, "cli:ann@example.com", at(5))


def test_edit_keeps_epoch_seal_completion_and_versions() -> None:
    before = a_state()
    after, _ = state_edit.edit(before, [Set("new", b"2", None), Delete("kept")], "ann", at(9))
    assert set(after.records) == {"new"}
    assert after.records["new"].version == before.last_version + 1
    assert msgspec.structs.replace(after, records=before.records, last_version=before.last_version) == before


def test_edit_checks_the_version_conditions_of_its_steps() -> None:
    with pytest.raises(RequestRejectedError, match="must have version 9; it has version 1"):
        state_edit.edit(a_state(), [Set("kept", b"2", None, if_version=9)], "ann", at(9))
    with pytest.raises(RequestRejectedError, match="must be absent"):
        state_edit.edit(a_state(), [Set("kept", b"2", None, if_absent=True)], "ann", at(9))


def test_edit_of_several_steps_does_all_or_none() -> None:
    before = a_state()
    with pytest.raises(RequestRejectedError):
        state_edit.edit(before, [Clear(), Delete("absent", if_version=1)], "ann", at(9))
    assert set(before.records) == {"kept"}


@pytest.mark.parametrize(
    "text, is_string, stored",
    [
        ("7", False, b"7"),
        ('"a"', False, b'"a"'),
        ("a b", True, b'"a b"'),
        ("12345678901234567890123", False, b"12345678901234567890123"),
    ],
)
def test_parse_value_reads_json_or_on_request_a_string(text: str, is_string: bool, stored: bytes) -> None:
    assert state_edit.parse_value(text, is_string=is_string) == stored


def test_value_that_is_not_json_is_refused_with_the_flag_for_strings() -> None:
    with pytest.raises(CommandError, match=r"'job-7' is not JSON; to store it as a string, use --string"):
        state_edit.parse_value("job-7", is_string=False)
    with pytest.raises(RequestRejectedError, match="null"):
        state_edit.parse_value("null", is_string=False)


def test_key_that_never_expires_stays_so_unless_a_retention_is_given() -> None:
    state, month, day = a_state(), timedelta(days=30), timedelta(days=1)
    assert state_edit.retention_of(state, "kept", None, never=False) is None
    assert state_edit.retention_of(state, "kept", day, never=False) == day
    assert state_edit.retention_of(state, "new", None, never=False) == month
    assert state_edit.retention_of(state, "new", None, never=True) is None


def test_an_export_can_be_imported_and_keeps_every_digit() -> None:
    before, _ = state_edit.edit(
        DurableState(),
        [Set("a", b'{"n":123456789012345678901}', None), Set("b/ü", b"[1.5]", timedelta(days=2))],
        "ann",
        at(0),
    )
    text = state_edit.build_export(a_taskrun().build(), before, at(60))
    steps = state_edit.parse_export(text, at(60), replace=True)
    after, _ = state_edit.edit(a_state(), steps, "bob", at(60))
    assert {key: bytes(record.value) for key, record in after.records.items()} == {
        "a": b'{"n":123456789012345678901}',
        "b/ü": b"[1.5]",
    }
    assert after.records["a"].expires_at is None
    assert after.records["b/ü"].expires_at == before.records["b/ü"].expires_at
    assert after.records["a"].pod_uid == "cli:bob"


def test_import_keeps_other_keys_unless_replace_is_given() -> None:
    text = state_edit.build_export(a_taskrun().build(), DurableState(), at(0))
    assert state_edit.parse_export(text, at(0), replace=False) == ()
    assert state_edit.parse_export(text, at(0), replace=True) == (Clear(),)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b'{"job_id": "job-7"}',
        b'{"format":"reattach-state/v9","namespace":"n","taskrun":"t","exportedAt":"2026-03-01T12:00:00Z","entries":[]}',
        # Of which time zone is it?
        b'{"format":"reattach-state/v1","namespace":"n","taskrun":"t","exportedAt":"2026-03-01T12:00:00Z","entries":[{"key":"a","value":1,"expiresAt":"2026-03-02T12:00:00"}]}',
    ],
)
def test_import_of_another_format_is_refused(text: bytes) -> None:
    with pytest.raises(CommandError, match="export"):
        state_edit.parse_export(text, at(0), replace=True)


def test_export_is_json_with_the_writer_of_each_key() -> None:
    [entry] = json.loads(state_edit.build_export(a_taskrun().build(), a_state(), at(60)))["entries"]
    assert entry == {
        "key": "kept",
        "value": 1,
        "version": 1,
        "attempt": 0,
        "podUID": "cli:ann",
        "updatedAt": "2026-03-01T12:00:01Z",
        "expiresAt": None,
    }


def test_attempt_counts_as_running_while_its_pod_runs_or_its_end_is_not_recorded() -> None:
    idle = a_taskrun().with_failed_attempt(1).build()
    labelled = a_pod(2).with_metadata(labels={LABEL_ATTEMPT: "2"})
    assert state_edit.running_attempt_of(idle, []) is None
    assert state_edit.running_attempt_of(idle, [labelled.exited(1).build()]) is None
    assert state_edit.running_attempt_of(idle, [labelled.running().build()]) == 2
    assert state_edit.running_attempt_of(idle, [labelled.build()]) == 2
    assert state_edit.running_attempt_of(a_taskrun().with_attempt(1).build(), []) == 1
    over = (
        a_taskrun()
        .with_attempt(1)
        .with_status(outcome="Succeeded", attempts=a_taskrun().with_attempt(1).status.attempts)
    )
    assert state_edit.running_attempt_of(over.build(), [labelled.running().build()]) is None
