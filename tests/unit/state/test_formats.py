"""Both formats of a stored state: what an earlier version wrote, and what a newer one adds.

`formats/format-1.json` was written by version 0.1 before it read format 2. `formats/format-2.json`
has each field of the table in docs/decisions/005-formats-and-upgrades.md. Nothing in these files
changes; a new row of the table adds its field.
"""

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from time import process_time
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reattach.api.messages import BatchResponse, EntryList, JobList, OpenResponse, OutcomeRequest, Problem
from reattach.api.objects import Time
from reattach.api.state import SealPurpose, Summary
from reattach.api.taskrun import AttemptPurpose, TaskRunStatus
from reattach.state.codec import DurableState, StateEntry, from_configmap, from_data, to_configmap, to_data
from reattach.state.errors import UnreadableError
from reattach.state.formats import FORMAT_1, known_part
from reattach.state.job_operations import record_outcome
from reattach.state.job_record import JobRecord
from reattach.state.operations import Session, Set, change, open_state, seal
from stored_states import VALUES, states

DECISION = Path(__file__).parents[3] / "docs/decisions/005-formats-and-upgrades.md"
FILES = {number: Path(__file__).parent / f"formats/format-{number}.json" for number in (1, 2)}
DATA: dict[int, dict[str, str]] = {number: json.loads(file.read_text()) for number, file in FILES.items()}
NOW = datetime(2026, 11, 30, 13, tzinfo=UTC)
CALLER = Session(attempt=2, pod_uid="pod-2", id="s-2")
FIELDS = st.from_regex(r"[a-z][a-zA-Z]{0,8}New", fullmatch=True)


def rewritten(data: dict[str, str], state: DurableState | None = None) -> dict[str, str]:
    """Return the data after a write by this version. Without `state`, nothing else changes."""
    body = {"metadata": {"name": "load-abcde-state"}, "data": data}
    stored = from_configmap(json.dumps(body).encode())
    after: dict[str, str] = to_configmap(stored, stored.state if state is None else state)["data"]
    return after


def fields_of(text: str) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(text)
    return fields


def listed_in(data: dict[str, str]) -> set[str]:
    return set(json.loads(data.get("optional", "[]")))


def test_state_of_an_earlier_version_is_read_and_stays_in_its_format() -> None:
    state = from_data(DATA[1])
    assert state.epoch is not None
    assert (state.epoch.attempt, state.last_version, len(state.jobs), len(state.records)) == (2, 17, 4, 3)
    assert rewritten(DATA[1]) == DATA[1]
    changed = rewritten(DATA[1], seal(state, 3, SealPurpose.END))
    assert (changed["formatVersion"], "optional" in changed) == ("1", False)


def test_optional_field_of_2000_keys_makes_a_read_at_most_5_times_slower() -> None:
    state, _ = open_state(DurableState(), CALLER, NOW)
    state, _ = change(state, CALLER, [Set(f"k{number}", b"1", None) for number in range(2000)], NOW)
    plain = to_data(state)
    listed = {**plain, "formatVersion": "2", "optional": json.dumps([f"key.f{number}" for number in range(64)])}

    def seconds(data: dict[str, str]) -> float:
        started = process_time()
        from_data(data)
        return process_time() - started

    assert min(seconds(listed) for _ in range(5)) < 5 * min(seconds(plain) for _ in range(5))


def test_state_of_a_newer_version_is_read_as_its_known_part() -> None:
    state, before = from_data(DATA[2]), from_data(DATA[1])
    assert before.epoch is not None
    opened = msgspec.structs.replace(before.epoch, purpose=AttemptPurpose.CLEANUP, cleanup_handler=True)
    job = msgspec.structs.replace(
        before.jobs["load", 2],
        cancel_requested_at=datetime(2026, 11, 30, 12, 2, tzinfo=UTC),
        cancel_requested_by_attempt=2,
        field_digests={"entrypoint": "01234567"},
    )
    assert state.end is not None
    assert (state.end.attempt, state.end.kind, state.end.retry_after_seconds) == (1, "Waiting", 600)
    assert state == msgspec.structs.replace(before, epoch=opened, jobs={**before.jobs, job.name: job}, end=state.end)
    assert rewritten(DATA[2]) == DATA[2]


def test_change_keeps_unknown_entries_and_the_unknown_fields_of_what_is_changed_in_place() -> None:
    before = from_data(DATA[2])
    assert before.epoch is not None
    runs = msgspec.structs.replace(before, epoch=msgspec.structs.replace(before.epoch, purpose=AttemptPurpose.RUN))
    state, _ = record_outcome(runs, CALLER, "load", OutcomeRequest(generation=2, state="Succeeded"), NOW)
    state, _ = change(state, CALLER, [Set("job_id", b'"job-8"', None)], NOW)
    state = msgspec.structs.replace(state, epoch=before.epoch)
    after = rewritten(DATA[2], seal(state, 3, SealPurpose.END))
    assert from_data(after) == seal(state, 3, SealPurpose.END)
    for name in ("formatVersion", "optional", "end", "epoch", "completion", "job.1.load"):
        assert after[name] == DATA[2][name]
    job = fields_of(after["job.2.load"])
    assert (job["state"], job["cancelRequestedByAttempt"]) == ("Succeeded", 2)
    assert fields_of(after["seal"]) == {"throughAttempt": 3, "purpose": "End", "time": "2026-11-30T12:01:00Z"}


def test_next_epoch_has_no_unknown_fields_of_the_one_before() -> None:
    opened, _ = open_state(from_data(DATA[2]), Session(attempt=3, pod_uid="pod-3", id="s-3"), NOW)
    after = rewritten(DATA[2], opened)
    assert "purpose" not in fields_of(after["epoch"])
    assert json.loads(after["optional"]) == [
        "end",
        "job.cancelRequestedAt",
        "job.cancelRequestedByAttempt",
        "job.fieldDigests",
        "seal.time",
    ]


UNKNOWN = ("seal.time",)
"""The fields of the table that this version does not have yet."""


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown_field_that_is_not_listed_is_damage(name: str) -> None:
    listed = [other for other in json.loads(DATA[2]["optional"]) if other != name]
    with pytest.raises(UnreadableError, match=name.rpartition(".")[2]):
        from_data({**DATA[2], "optional": json.dumps(listed)})


@pytest.mark.parametrize(
    "change, message",
    [
        ({"formatVersion": "3"}, "a newer version of Reattach wrote the state"),
        ({"formatVersion": "99999999999999999999999"}, "a newer version of Reattach wrote the state"),
        ({"formatVersion": "9" * 5000}, "a newer version of Reattach wrote the state"),
        ({"formatVersion": "two"}, "must have formatVersion 1 or 2"),
        ({"formatVersion": "1"}, "a state of format 1 must not have 'optional'"),
        ({"optional": "{}"}, "'optional' in the state is damaged"),
        ({"optional": json.dumps([f"n{number}" for number in range(65)])}, "'optional' in the state is damaged"),
        ({"optional": "[" * 5000}, "'optional' in the state is damaged"),
        ({"sael": '{"throughAttempt":1,"purpose":"End"}'}, "does not know 'sael'"),
        ({"optional": '["lastVersion.x","requests.y"]', "end": ""}, "unknown|does not know"),
        ({"job.2.load": "["}, "'job.2.load' in the state is damaged"),
        ({"job.2.load": "[]"}, "'job.2.load' in the state is damaged"),
    ],
)
def test_damaged_state_is_told_from_a_newer_one(change: dict[str, str], message: str) -> None:
    with pytest.raises(UnreadableError, match=message):
        from_data({**DATA[2], **change})


class NewerJob(JobRecord, frozen=True):
    """A record with a field that a later version adds."""

    paused_at: Time | None = None


def test_version_that_adds_a_field_writes_format_2_only_where_the_field_is_used() -> None:
    before = from_data(DATA[1])
    newer = NewerJob(**msgspec.structs.asdict(before.jobs["load", 2]))
    unused = msgspec.structs.replace(before, jobs={**before.jobs, newer.name: newer})
    assert to_data(unused) == to_data(before)
    used_by = msgspec.structs.replace(newer, paused_at=NOW)
    used = to_data(msgspec.structs.replace(before, jobs={**before.jobs, newer.name: used_by}))
    assert (used["formatVersion"], used["optional"]) == ("2", '["job.pausedAt"]')
    assert from_data(used) == before
    assert rewritten(used) == used


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(states(), states(), st.data())
def test_whatever_a_newer_version_adds_is_ignored_and_kept(
    state: DurableState, after: DurableState, data: st.DataObject
) -> None:
    newer = to_data(state)
    entries = data.draw(st.dictionaries(FIELDS, VALUES.map(json.dumps), max_size=3))
    optional = set(entries) | listed_in(newer)
    added: dict[str, dict[str, Any]] = {}
    for name, text in newer.items():
        kind = "job" if name.startswith("job") else "key" if name.startswith("key") else name
        if FORMAT_1.get(kind):
            fields = data.draw(st.dictionaries(FIELDS, VALUES, max_size=2))
            optional |= {f"{kind}.{field}" for field in fields}
            added[name] = fields
            newer[name] = text[:-1] + "".join(f",{json.dumps(k)}:{json.dumps(v)}" for k, v in fields.items()) + "}"
    newer |= {**entries, "formatVersion": "2", "optional": json.dumps(sorted(optional))}

    assert from_data(newer) == state
    kept = rewritten(newer)
    assert from_data(kept) == state
    assert {name: kept[name] for name in newer if name not in {"formatVersion", "optional"}} == {
        name: text for name, text in newer.items() if name not in {"formatVersion", "optional"}
    }
    assert kept["formatVersion"] == ("2" if optional else "1")

    changed = rewritten(newer, after)
    assert from_data(changed) == after
    assert entries.items() <= changed.items()
    for name, fields in added.items():
        if name in changed and name.startswith(("job", "seal", "counts")):
            assert {field: fields_of(changed[name])[field] for field in fields} == fields
    assert set(entries) <= listed_in(changed) <= optional | listed_in(to_data(after))


def test_entry_without_a_field_to_ignore_is_decoded_only_once() -> None:
    """Users may change the list, and a state may have thousands of keys."""
    optional = frozenset({"key.new", *(f"n{number}" for number in range(63))})
    assert known_part("key.a", text := '{"key":"a"}', StateEntry, optional) is text
    assert known_part("key.a", '{"key":"a","new":1}', StateEntry, optional) == b'{"key":"a"}'


def test_decision_names_every_field_of_the_stored_state() -> None:
    section = DECISION.read_text().partition("### Stored state")[2].partition("###")[0]
    named = re.findall(r"^\| `([\w.]+)`", section, re.MULTILINE)
    assert sorted(named) == json.loads(DATA[2]["optional"])


@pytest.mark.parametrize("value", ["Sleeping", "Cancelling", "Orphaned"])
def test_unknown_value_of_a_stored_enum_makes_the_state_unreadable(value: str) -> None:
    text = DATA[2]["job.2.load"].replace('"Active"', f'"{value}"')
    with pytest.raises(UnreadableError, match=value):
        from_data({**DATA[2], "job.2.load": text})


@pytest.mark.parametrize(
    "kind, text",
    [
        (
            Summary,
            '{"seal":{"throughAttempt":1,"purpose":"End","new":1},"counts":{"new":1},"epoch":{"attempt":1,"podUID":"p"}}',
        ),
        (
            TaskRunStatus,
            '{"counts":{"charged":{"new":1}},"attempts":[{"number":1}],"externalJobs":[{"key":"a","generation":1,"state":"X"}]}',
        ),
        (
            OpenResponse,
            '{"namespace":"n","taskrun":"t","taskrunUID":"u","attempt":1,"first":true,"serverTime":"2026-11-30T12:00:00Z"}',
        ),
        (JobList, '{"items":[]}'),
        (EntryList, '{"items":[],"total":0}'),
        (BatchResponse, '{"results":[{"deleted":1}]}'),
        (Problem, '{"type":"t","title":"t","status":409,"code":"new-code","detail":"d"}'),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_readers_of_messages_and_status_ignore_unknown_fields(kind: type[msgspec.Struct], text: str) -> None:
    newer = text.replace("{", '{"unknown":{"x":1},').replace(",}", "}")
    assert msgspec.json.decode(newer, type=kind) == msgspec.json.decode(text, type=kind)
