"""What each call does to the state."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from reattach.api.messages import BATCH_OPERATIONS_MAX, STATE_BYTES_MAX, BatchResult, Operation, ProblemCode
from reattach.state.codec import DurableState, to_data
from reattach.state.errors import RequestRejectedError
from reattach.state.operations import (
    REMEMBERED_BYTES_MAX,
    REQUESTS_REMEMBERED,
    RETENTION_SECONDS_MAX,
    Clear,
    Delete,
    OperationRequest,
    Session,
    Set,
    Step,
    change,
    complete,
    get,
    idempotent,
    list_records,
    open_state,
    parse_operation,
    parse_operations,
    size_of,
)

NOW = datetime(2026, 7, 30, tzinfo=UTC)
LATER = NOW + timedelta(days=400)
SESSION = Session(attempt=1, pod_uid="pod-1", id="a")
DAY = 24 * 3600


def opened(session: Session = SESSION) -> DurableState:
    return open_state(DurableState(), session, NOW)[0]


def with_keys(**values: bytes) -> DurableState:
    return changed(opened(), [a_set(key, text) for key, text in values.items()])


def changed(state: DurableState, steps: Sequence[Step], session: Session = SESSION) -> DurableState:
    return change(state, session, steps, NOW)[0]


def a_set(key: str = "k", text: bytes = b"1", **more: Any) -> Set:
    return Set(key, text, more.pop("retention", None), **more)


def refusal(state: DurableState, *steps: Step) -> ProblemCode:
    with pytest.raises(RequestRejectedError) as refused:
        change(state, SESSION, steps, NOW)
    return refused.value.code


def value(state: DurableState, key: str) -> bytes:
    return bytes(get(state, SESSION, key).value)


class TestSet:
    def test_the_record_says_what_was_written_by_whom_and_when(self) -> None:
        record = get(changed(opened(), [a_set("k", b'"v"', retention=timedelta(days=7))]), SESSION, "k")
        assert (record.key, bytes(record.value), record.version) == ("k", b'"v"', 1)
        assert (record.attempt, record.pod_uid) == (1, "pod-1")
        assert (record.updated_at, record.expires_at) == (NOW, NOW + timedelta(days=7))

    def test_a_second_set_replaces_value_and_expiry(self) -> None:
        state = changed(changed(opened(), [a_set(retention=timedelta(1))]), [a_set(text=b"2")])
        assert value(state, "k") == b"2"
        assert get(state, SESSION, "k").expires_at is None
        assert get(state, SESSION, "k").version == 2

    def test_create_only_refuses_a_key_that_is_there(self) -> None:
        state = changed(opened(), [a_set(if_absent=True)])
        assert refusal(state, a_set(if_absent=True)) is ProblemCode.EXISTS
        assert changed(changed(state, [Delete("k")]), [a_set(if_absent=True)]).records["k"].version == 2

    @pytest.mark.parametrize("version", [1, 3])
    def test_if_version_refuses_any_other_version(self, version: int) -> None:
        state = changed(with_keys(k=b"1"), [a_set(text=b"2")])
        assert refusal(state, a_set(if_version=version)) is ProblemCode.VERSION_MISMATCH
        assert changed(state, [a_set(text=b"3", if_version=2)]).records["k"].version == 3

    def test_if_version_refuses_an_absent_key(self) -> None:
        assert refusal(opened(), a_set(if_version=1)) is ProblemCode.VERSION_MISMATCH

    def test_a_version_is_never_given_twice_not_even_after_a_delete(self) -> None:
        state = with_keys(k=b"1")
        for steps in ([Delete("k")], [a_set()], [Clear()], [a_set()]):
            state = changed(state, steps)
        assert state.records["k"].version == 3
        assert refusal(state, a_set(if_version=1)) is ProblemCode.VERSION_MISMATCH


class TestDeleteAndClear:
    def test_delete_removes_only_the_key_it_names(self) -> None:
        state, results = change(with_keys(a=b"1", b=b"2"), SESSION, [Delete("a"), Delete("a")], NOW)
        assert set(state.records) == {"b"}
        assert [result.deleted for result in results] == [1, 0]

    def test_delete_with_a_version_refuses_another_one_and_absence(self) -> None:
        assert refusal(with_keys(a=b"1"), Delete("a", if_version=2)) is ProblemCode.VERSION_MISMATCH
        assert refusal(opened(), Delete("a", if_version=1)) is ProblemCode.VERSION_MISMATCH
        assert changed(with_keys(a=b"1"), [Delete("a", if_version=1)]).records == {}

    def test_clear_removes_all_keys_and_nothing_else(self) -> None:
        state = msgspec.structs.replace(with_keys(a=b"1", b=b"2"), jobs={"job.load": "{}"})
        after, results = change(state, SESSION, [Clear(), Clear()], NOW)
        assert after.records == {}
        assert [result.deleted for result in results] == [2, 0]
        assert (after.jobs, after.epoch, after.last_version) == (state.jobs, state.epoch, state.last_version)


class TestBatch:
    def test_each_step_sees_what_the_ones_before_it_did(self) -> None:
        steps: list[Step] = [
            a_set(if_absent=True),
            a_set(text=b"2", if_version=1),
            Delete("k", if_version=2),
            a_set("l"),
        ]
        state, results = change(opened(), SESSION, steps, NOW)
        assert set(state.records) == {"l"}
        assert results == (
            BatchResult(version=1),
            BatchResult(version=2),
            BatchResult(deleted=1),
            BatchResult(version=3),
        )

    def test_if_one_step_is_refused_nothing_happened(self) -> None:
        state = with_keys(a=b"1")
        before = to_data(state)
        assert refusal(state, Clear(), a_set("b"), a_set("b", if_absent=True)) is ProblemCode.EXISTS
        assert to_data(state) == before


class TestLimits:
    def test_the_state_may_be_filled_to_the_byte(self) -> None:
        texts = {f"k{number}": b'"' + b"x" * 60_000 + b'"' for number in range(8)}
        state = with_keys(**texts)
        overhead = size_of(changed(state, [a_set("last", b'""')]).records)
        room = STATE_BYTES_MAX - overhead
        full = changed(state, [a_set("last", b'"' + b"x" * room + b'"')])
        assert size_of(full.records) == STATE_BYTES_MAX
        assert refusal(state, a_set("last", b'"' + b"x" * (room + 1) + b'"')) is ProblemCode.STATE_FULL

    def test_many_small_keys_fill_it_too_since_every_record_counts_as_stored(self) -> None:
        steps = [a_set(f"k{number}") for number in range(10_000)]
        assert refusal(opened(), *steps) is ProblemCode.STATE_FULL
        each = size_of(changed(opened(), steps[-1:]).records)
        assert 100 < each < 200
        assert len(changed(opened(), steps[: STATE_BYTES_MAX // 200]).records) == STATE_BYTES_MAX // 200

    def test_a_full_state_can_be_emptied(self) -> None:
        state = with_keys(**{f"k{number}": b'"' + b"x" * 60_000 + b'"' for number in range(8)})
        assert set(changed(state, [Delete("k0")]).records) == {f"k{number}" for number in range(1, 8)}


class TestReading:
    def test_an_absent_key_is_told_apart_from_everything_else(self) -> None:
        with pytest.raises(RequestRejectedError) as refused:
            get(opened(), SESSION, "k")
        assert refused.value.code is ProblemCode.NOT_FOUND

    def test_expiry_takes_nothing_from_a_running_task(self) -> None:
        state = changed(opened(), [a_set(retention=timedelta(seconds=1))])
        later, _ = open_state(state, Session(2, "pod-2", "b"), LATER)
        assert bytes(get(later, Session(2, "pod-2", "b"), "k").value) == b"1"

    @pytest.mark.parametrize(
        "arguments, keys, total",
        [
            ({}, ["a", "b/1", "b/2", "c"], 4),
            ({"prefix": "b/"}, ["b/1", "b/2"], 2),
            ({"limit": 2}, ["a", "b/1"], 4),
            ({"limit": 2, "offset": 3}, ["c"], 4),
            ({"offset": 9}, [], 4),
            ({"prefix": "b/", "limit": 1, "offset": 1}, ["b/2"], 2),
        ],
    )
    def test_keys_are_listed_in_order_page_by_page(self, arguments: Any, keys: list[str], total: int) -> None:
        state = changed(opened(), [a_set(key) for key in ("c", "b/2", "a", "b/1")])
        records, count = list_records(state, SESSION, **arguments)
        assert ([record.key for record in records], count) == (keys, total)


class TestComplete:
    def test_the_record_says_who_completed_with_what(self) -> None:
        completion = complete(opened(), SESSION, b'{"rows":1}', NOW).completion
        assert completion is not None
        assert (completion.attempt, completion.pod_uid, completion.time) == (1, "pod-1", NOW)
        assert completion.result == '{"rows":1}'

    def test_the_same_again_changes_nothing(self) -> None:
        state = complete(opened(), SESSION, b"1", NOW)
        assert complete(state, SESSION, b"1", LATER) == state

    @pytest.mark.parametrize("result", [b"2", None])
    def test_another_result_is_refused(self, result: bytes | None) -> None:
        with pytest.raises(RequestRejectedError) as refused:
            complete(complete(opened(), SESSION, b"1", NOW), SESSION, result, NOW)
        assert refused.value.code is ProblemCode.COMPLETED

    @pytest.mark.parametrize("step", [a_set(), Delete("a"), Clear()])
    def test_after_it_the_state_is_read_only_for_this_attempt(self, step: Step) -> None:
        state = complete(with_keys(a=b"1"), SESSION, None, NOW)
        assert refusal(state, step) is ProblemCode.COMPLETED
        assert value(state, "a") == b"1"

    def test_a_later_attempt_completes_anew(self) -> None:
        second = Session(2, "pod-2", "b")
        state, _ = open_state(complete(opened(), SESSION, b"1", NOW), second, NOW)
        state = changed(state, [a_set()], second)
        completion = complete(state, second, b"2", NOW).completion
        assert completion is not None
        assert (completion.attempt, completion.result) == (2, "2")

    def test_it_is_out_of_reach_of_delete_and_clear(self) -> None:
        second = Session(2, "pod-2", "b")
        state, _ = open_state(complete(opened(), SESSION, b"1", NOW), second, NOW)
        assert changed(state, [Clear(), Delete("completion")], second).completion == state.completion


class TestOnce:
    @staticmethod
    def count(state: DurableState) -> tuple[DurableState, bytes]:
        after, results = change(state, SESSION, [a_set("k", b"%d" % (state.last_version + 1))], NOW)
        return after, b"%d" % (results[0].version or 0)

    def test_the_same_request_is_done_once_and_answered_alike(self) -> None:
        request = OperationRequest("r", "d")
        state, answer = idempotent(opened(), SESSION, request, self.count)
        state, _ = idempotent(state, SESSION, OperationRequest("other", "d"), self.count)
        assert idempotent(state, SESSION, request, self.count) == (state, answer)

    def test_without_an_id_it_is_done_again(self) -> None:
        state, first = idempotent(opened(), SESSION, None, self.count)
        assert idempotent(state, SESSION, None, self.count)[1] != first

    def test_an_id_belongs_to_one_request(self) -> None:
        state, _ = idempotent(opened(), SESSION, OperationRequest("r", "d"), self.count)
        with pytest.raises(RequestRejectedError, match="must not be used again") as refused:
            idempotent(state, SESSION, OperationRequest("r", "e"), self.count)
        assert refused.value.code is ProblemCode.INVALID

    def test_the_last_64_are_remembered(self) -> None:
        state = opened()
        for number in range(REQUESTS_REMEMBERED + 1):
            state, _ = idempotent(state, SESSION, OperationRequest(str(number), "d"), self.count)
        assert idempotent(state, SESSION, OperationRequest("1", "d"), self.count) == (state, b"2")
        assert idempotent(state, SESSION, OperationRequest("0", "d"), self.count)[1] == b"66"

    def test_of_the_largest_answers_fewer_are_remembered(self) -> None:
        state = opened()
        answer = b'"' + b"x" * 10_000 + b'"'
        for number in range(REQUESTS_REMEMBERED):
            state, _ = idempotent(state, SESSION, OperationRequest(str(number), "d"), lambda now_is: (now_is, answer))
        assert [remembered.id for remembered in state.requests] == [str(number) for number in range(58, 64)]
        assert len(msgspec.json.encode(state.requests)) <= REMEMBERED_BYTES_MAX

    def test_a_refused_request_is_not_remembered(self) -> None:
        state = opened()
        with pytest.raises(RequestRejectedError):
            idempotent(
                state, SESSION, OperationRequest("r", "d"), lambda now_is: (changed(now_is, [a_set(if_version=5)]), b"")
            )
        assert idempotent(state, SESSION, OperationRequest("r", "d"), self.count)[1] == b"1"

    def test_idempotent_call_of_a_fenced_session_is_rejected(self) -> None:
        state, _ = idempotent(opened(), SESSION, OperationRequest("r", "d"), self.count)
        state, _ = open_state(state, Session(2, "pod-2", "b"), NOW)
        with pytest.raises(RequestRejectedError) as refused:
            idempotent(state, SESSION, OperationRequest("r", "d"), self.count)
        assert refused.value.code is ProblemCode.FENCED

    def test_a_change_after_completion_that_was_done_before_it_is_still_answered(self) -> None:
        state, answer = idempotent(opened(), SESSION, OperationRequest("r", "d"), self.count)
        state = complete(state, SESSION, None, NOW)
        assert idempotent(state, SESSION, OperationRequest("r", "d"), self.count) == (state, answer)


class TestSteps:
    @pytest.mark.parametrize(
        "seconds, default, retention",
        [
            (msgspec.UNSET, 7 * DAY, timedelta(days=7)),
            (msgspec.UNSET, 0, None),
            (None, 7 * DAY, None),
            (0, 7 * DAY, None),
            (1, 7 * DAY, timedelta(seconds=1)),
            (RETENTION_SECONDS_MAX, 1, timedelta(seconds=RETENTION_SECONDS_MAX)),
        ],
    )
    def test_retention_is_what_was_asked_for_else_the_default(
        self, seconds: Any, default: int, retention: timedelta | None
    ) -> None:
        step = parse_operation(Operation(op="set", key="k", value=1, retention_seconds=seconds), default)
        assert isinstance(step, Set)
        assert step.retention == retention

    @pytest.mark.parametrize(
        "operation",
        [
            Operation(op="set", key="k"),
            Operation(op="set", value=1),
            Operation(op="set", key="k", value=1, if_absent=True, if_version=1),
            Operation(op="set", key="k", value=1, if_version=0),
            Operation(op="set", key="k", value=1, retention_seconds=-1),
            Operation(op="set", key="k", value=1, retention_seconds=RETENTION_SECONDS_MAX + 1),
            Operation(op="delete"),
            Operation(op="delete", key="k", value=1),
            Operation(op="delete", key="k", if_absent=True),
            Operation(op="delete", key="k", if_version=-1),
            Operation(op="clear", key="k"),
            Operation(op="clear", if_version=1),
        ],
    )
    def test_an_operation_with_too_much_or_too_little_is_refused(self, operation: Operation) -> None:
        with pytest.raises(RequestRejectedError) as refused:
            parse_operation(operation, 0)
        assert refused.value.code is ProblemCode.INVALID

    @pytest.mark.parametrize("count", [0, BATCH_OPERATIONS_MAX + 1])
    def test_a_batch_has_1_to_100_operations(self, count: int) -> None:
        with pytest.raises(RequestRejectedError, match=f"this one has {count}"):
            parse_operations([Operation(op="clear")] * count, 0)
        assert len(parse_operations([Operation(op="clear")] * BATCH_OPERATIONS_MAX, 0)) == BATCH_OPERATIONS_MAX
