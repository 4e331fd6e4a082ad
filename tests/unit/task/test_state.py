"""`task.state`: what goes over the wire, and what comes back."""

from datetime import timedelta
from typing import Any

import httpx
import pytest

import reattach
from fakepod import Pod, a_problem
from reattach import NEVER_EXPIRE

BAD_KEYS = ["", "x" * 513]


def operations(pod: Pod) -> list[dict[str, Any]]:
    return [operation for body in pod.api.bodies("/v1/state") for operation in body["operations"]]


class TestReading:
    def test_a_missing_key_gives_the_default(self, pod: Pod) -> None:
        state = pod.state()
        assert state.get("job_id") is None
        assert state.get("job_id", "none yet") == "none yet"
        assert state.get_entry("job_id") is None

    @pytest.mark.parametrize("value", ["", 0, False, [], {}])
    def test_a_falsy_value_is_not_absent(self, pod: Pod, value: Any) -> None:
        state = pod.state()
        state.set("key", value)
        assert state.get("key", "default") == value

    @pytest.mark.parametrize(
        "key", ["a/b", "a/../b", "..", ".", "a//b", "/", "a b", "50%", "%2F", "é", "a?b#c", "a;b", "a+b"]
    )
    def test_any_key_is_found_again(self, pod: Pod, key: str) -> None:
        state = pod.state()
        state.set(key, "here")
        assert state.get(key) == "here"
        # Nothing on the way may take a part of the key for a part of the path.
        assert pod.api.requests[-1].url.raw_path.count(b"/") == 3

    def test_an_entry_tells_version_and_writer(self, pod: Pod) -> None:
        state = pod.state()
        version = state.set("key", "value")
        entry = state.get_entry("key")
        assert entry is not None
        assert (entry.value, entry.version, entry.attempt, entry.expires_at) == ("value", version, 1, None)

    def test_list_and_entries_take_a_prefix(self, pod: Pod) -> None:
        state = pod.state()
        for key in ("page/2", "page/1", "other"):
            state.set(key, 1)
        assert state.list() == ["other", "page/1", "page/2"]
        assert [entry.key for entry in state.entries("page/")] == ["page/1", "page/2"]


class TestWriting:
    def test_retention_left_out_leaves_the_choice_to_the_state_api(self, pod: Pod) -> None:
        state = pod.state()
        state.set("a", 1)
        state.set("b", 1, retention=NEVER_EXPIRE)
        state.set("c", 1, retention=timedelta(days=7))
        first, second, third = operations(pod)
        assert "retentionSeconds" not in first
        assert second["retentionSeconds"] is None
        assert third["retentionSeconds"] == 7 * 86400

    def test_conditions_go_along(self, pod: Pod) -> None:
        state = pod.state()
        state.set("a", 1, if_absent=True)
        state.set("a", 2, if_version=4)
        state.delete("a", if_version=5)
        first, second, third = operations(pod)
        assert first["ifAbsent"] is True
        assert second["ifVersion"] == 4
        assert third["ifVersion"] == 5

    def test_delete_and_clear_tell_what_they_found(self, pod: Pod) -> None:
        state = pod.state()
        state.set("a", 1)
        state.set("b", 1)
        assert state.delete("a") is True
        assert state.delete("a") is False
        assert state.clear() == 1
        assert state.clear() == 0

    @pytest.mark.parametrize("key", BAD_KEYS)
    def test_mistakes_cost_no_round_trip(self, pod: Pod, key: str) -> None:
        state = pod.state()
        calls = [lambda: state.get(key), lambda: state.set(key, 1), lambda: state.delete(key)]
        for call in calls:
            with pytest.raises(reattach.InvalidKey):
                call()
        with pytest.raises(reattach.InvalidValue):
            state.set("key", None)
        with pytest.raises(reattach.InvalidCall, match="together"):
            state.set("key", 1, if_absent=True, if_version=3)
        with pytest.raises(reattach.InvalidCall, match="must be a version"):
            state.set("key", 1, if_version=0)
        assert pod.api.requests == []


class TestBatch:
    def test_all_changes_go_in_one_call_when_the_block_is_left(self, pod: Pod) -> None:
        state = pod.state()
        state.set("old", 1)
        with state.batch() as batch:
            batch.set("a", 1)
            batch.delete("old")
            assert len(pod.api.requests) == 1
        assert pod.api.values == {"a": 1}
        assert len(pod.api.requests) == 2
        assert [result.deleted for result in batch.results] == [0, 1]

    def test_a_block_left_by_an_exception_sends_nothing(self, pod: Pod) -> None:
        def leave_by_an_exception() -> None:
            with pod.state().batch() as batch:
                batch.set("a", 1)
                raise KeyError

        with pytest.raises(KeyError):
            leave_by_an_exception()
        assert pod.api.requests == []

    def test_an_empty_batch_is_no_call(self, pod: Pod) -> None:
        with pod.state().batch():
            pass
        assert pod.api.requests == []

    def test_more_than_100_changes_are_refused_here(self, pod: Pod) -> None:
        batch = pod.state().batch()
        for index in range(101):
            batch.set(f"key-{index}", index)
        with pytest.raises(reattach.InvalidCall, match="1 to 100 changes; this one has 101"):
            batch.__exit__(None, None, None)
        assert pod.api.requests == []

    def test_a_clear_comes_before_what_is_set_after_it(self, pod: Pod) -> None:
        state = pod.state()
        state.set("old", 1)
        with state.batch() as batch:
            batch.clear()
            batch.set("new", 1)
        assert pod.api.values == {"new": 1}


async def test_every_method_has_an_async_twin_that_does_the_same(pod: Pod) -> None:
    state = pod.state()
    assert await state.aset("a", 1) == 1
    assert await state.aget("a") == 1
    assert await state.aget("b", "default") == "default"
    entry = await state.aget_entry("a")
    assert entry is not None
    assert entry.version == 1
    assert await state.alist() == ["a"]
    assert [entry.value for entry in await state.aentries()] == [1]
    assert await state.adelete("a") is True
    async with state.batch() as batch:
        batch.set("b", 2)
    assert await state.aclear() == 1
    pod.api.script = [httpx.ReadError("lost"), a_problem(409, "fenced")]
    with pytest.raises(reattach.Fenced):
        await state.aget("a")
    twins = {name for name in dir(state) if not name.startswith("_") and name != "batch"}
    plain = {name for name in twins if f"a{name}" in twins}
    assert twins == plain | {f"a{name}" for name in plain}
