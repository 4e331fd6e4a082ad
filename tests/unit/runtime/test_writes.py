"""What is written, and how fast."""

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, cast

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from controlplane import CRD
from reattach.api.objects import ObjectMeta
from reattach.api.reasons import HOLDS, EventReason, Reason
from reattach.cluster import Cluster, TooManyRequestsError
from reattach.planner.plan import EmitEvent
from reattach.runtime.event_recorder import (
    _REMEMBERED_MAX,
    _WAITING_MAX,
    _WAITING_MAX_WITH_URGENT,
    NOTE_MAX,
    EventRecorder,
)
from reattach.runtime.mergepatch import merge_patch_of
from reattach.runtime.metrics import OperatorMetrics
from reattach.runtime.rate_limiter import RateLimiter
from reattach.runtime.writer import NotLeadingError, Writer
from reattach.taskrun.schema import missing_from
from reattach.taskrun.taskrun_events import taskrun_event_recorder

JSON = dict[str, Any]
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
ABOUT = ObjectMeta(name="load", namespace="default", uid="u1")

documents = st.recursive(
    st.booleans() | st.integers() | st.text(max_size=3) | st.lists(st.integers(), max_size=2),
    lambda inner: st.dictionaries(st.sampled_from("abcd"), inner, max_size=4),
    max_leaves=12,
)


def patched(document: Any, patch: Any) -> Any:
    """RFC 7386, section 2."""
    if not isinstance(patch, dict):
        return patch
    result = dict(document) if isinstance(document, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = patched(result.get(name), value)
    return result


class TestMergePatch:
    @given(st.dictionaries(st.sampled_from("abcd"), documents), st.dictionaries(st.sampled_from("abcd"), documents))
    def test_the_patch_turns_the_one_into_the_other(self, before: JSON, after: JSON) -> None:
        assert patched(before, merge_patch_of(before, after)) == after

    def test_only_what_changed_is_in_it(self) -> None:
        before = {"outcome": "x", "counts": {"attempts": 1, "submissions": 0}, "next": "soon"}
        after = {"outcome": "x", "counts": {"attempts": 2, "submissions": 0}}
        assert merge_patch_of(before, after) == {"next": None, "counts": {"attempts": 2}}

    def test_without_a_change_it_is_empty(self) -> None:
        assert merge_patch_of({"a": [1, {"b": 2}]}, {"a": [1, {"b": 2}]}) == {}


class WritingNamespaces:
    """Writes of several namespaces through one limiter, in the order in which they were sent."""

    def __init__(self, limiter: RateLimiter) -> None:
        self.limiter = limiter
        self.sent: list[str] = []
        self.may_end = asyncio.Event()
        self.tasks: list[asyncio.Task[None]] = []

    async def start(self, namespace: str, count: int) -> None:
        """Start writes that stay in flight until `may_end`."""
        self.tasks += [asyncio.create_task(self._write(namespace)) for _ in range(count)]
        await asyncio.sleep(0)

    async def finish(self) -> None:
        self.may_end.set()
        async with asyncio.timeout(10):
            await asyncio.gather(*self.tasks)

    async def _write(self, namespace: str) -> None:
        await self.limiter.acquire(namespace)
        try:
            self.sent.append(namespace)
            await self.may_end.wait()
        finally:
            self.limiter.release()


class TestRateLimiter:
    async def test_limiter_after_pause_sends_two_seconds_of_writes_at_once(self) -> None:
        writes = WritingNamespaces(RateLimiter(per_second=10, at_once=100, clock=lambda: 0.0))
        await writes.start("a", 20)
        assert writes.limiter.seconds_to_next() == pytest.approx(0.1)
        assert len(writes.sent) == 20
        await writes.finish()

    async def test_limiter_without_token_sends_the_next_write_when_there_is_one(self) -> None:
        now = [0.0]
        writes = WritingNamespaces(RateLimiter(per_second=10, at_once=100, clock=lambda: now[0]))
        await writes.start("a", 21)
        assert len(writes.sent) == 20
        now[0] = 0.1
        await writes.finish()
        assert len(writes.sent) == 21

    def test_limiter_after_429_pauses_as_requested_and_halves_concurrent_writes(self) -> None:
        limiter = RateLimiter(per_second=10, at_once=8, clock=lambda: 0.0)
        limiter.on_throttled(7.0)
        assert limiter.seconds_to_next() == 7.0
        assert limiter.window == 4

    def test_limiter_after_successes_allows_all_concurrent_writes_again(self) -> None:
        limiter = RateLimiter(per_second=10, at_once=8, clock=lambda: 0.0)
        limiter.on_throttled(None)
        for _ in range(100):
            limiter.on_success()
        assert limiter.window == 8

    async def test_limiter_with_many_writes_sends_no_more_than_its_window_at_once(self) -> None:
        writes = WritingNamespaces(RateLimiter(per_second=1000, at_once=3))
        await writes.start("a", 20)
        assert len(writes.sent) == 3
        await writes.finish()
        assert len(writes.sent) == 20

    async def test_limiter_with_backlog_of_one_namespace_sends_write_of_another_next(self) -> None:
        writes = WritingNamespaces(RateLimiter(per_second=1000, at_once=3))
        await writes.start("a", 500)
        await writes.start("", 2)  # cluster-scoped
        await writes.start("b", 2)
        await writes.finish()
        assert writes.sent[:9] == ["a", "a", "a", "a", "", "b", "a", "", "b"]

    async def test_limiter_short_of_tokens_sends_write_of_another_namespace_next(self) -> None:
        now = [0.0]
        writes = WritingNamespaces(RateLimiter(per_second=1, at_once=100, clock=lambda: now[0]))
        await writes.start("a", 50)
        await writes.start("b", 1)
        assert writes.sent == ["a", "a"]
        now[0] = 2.0
        writes.limiter._grant_turns()
        await asyncio.sleep(0)
        assert writes.sent == ["a", "a", "a", "b"]
        for task in writes.tasks:
            task.cancel()

    async def test_limiter_with_cancelled_writes_loses_neither_slots_nor_turns(self) -> None:
        writes = WritingNamespaces(RateLimiter(per_second=1000, at_once=2))
        await writes.start("a", 6)
        granted, waiting = writes.tasks[0], writes.tasks[2:5]
        for task in (granted, *waiting):
            task.cancel()
        await asyncio.gather(granted, *waiting, return_exceptions=True)
        assert writes.sent == ["a"] * 3
        await writes.start("b", 1)
        writes.tasks = [task for task in writes.tasks if not task.cancelled()]
        await writes.finish()
        assert writes.sent == ["a"] * 3 + ["b"]

    async def test_limiter_with_write_cancelled_as_it_is_granted_frees_its_slot(self) -> None:
        writes = WritingNamespaces(RateLimiter(per_second=1000, at_once=1))
        await writes.start("a", 2)
        first, second = writes.tasks
        first.cancel()
        await asyncio.sleep(0)  # the slot is granted to the second, which has not run yet
        second.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
        writes.tasks = []
        await writes.start("b", 1)
        await writes.finish()
        assert writes.sent == ["a", "b"]


class TestWriter:
    async def test_a_replica_that_does_not_lead_writes_nothing(self) -> None:
        class Untouched:
            """No method: a call fails the test."""

        limiter = RateLimiter(per_second=10, at_once=8)
        writer = Writer(cast("Cluster", Untouched()), limiter, lambda: False, OperatorMetrics())
        with pytest.raises(NotLeadingError):
            await writer.create("/api/v1/namespaces/a/pods", {})

    async def test_429_slows_it_down_and_is_counted(self) -> None:
        class Busy:
            async def create(self, *_: Any, **__: Any) -> bytes:
                raise TooManyRequestsError(429, "TooManyRequests", "later", retry_after=3.0)

        limiter, metrics = RateLimiter(per_second=10, at_once=8), OperatorMetrics()
        writer = Writer(cast("Cluster", Busy()), limiter, lambda: True, metrics)
        with pytest.raises(TooManyRequestsError):
            await writer.create("/api/v1/namespaces/a/pods", {})
        assert limiter.window == 4
        text = metrics.text().decode()
        assert "reattach_throttled_total 1.0" in text
        assert 'reattach_writes_total{resource="pods",verb="create"} 1.0' in text

    async def test_429_of_an_admission_webhook_does_not_slow_down_other_namespaces(self) -> None:
        class Denied:
            async def create(self, *_: Any, **__: Any) -> bytes:
                message = 'admission webhook "w.team-a.example.com" denied the request: too many pods'
                raise TooManyRequestsError(429, "", message, retry_after=60.0)

        limiter, metrics = RateLimiter(per_second=10, at_once=8), OperatorMetrics()
        writer = Writer(cast("Cluster", Denied()), limiter, lambda: True, metrics)
        with pytest.raises(TooManyRequestsError):
            await writer.create("/api/v1/namespaces/a/pods", {})
        assert (limiter.window, limiter.seconds_to_next()) == (8, 0.0)
        assert "reattach_throttled_total 0.0" in metrics.text().decode()


def recorder_of(metrics: OperatorMetrics | None = None, clock: Callable[[], float] = lambda: 0.0) -> EventRecorder:
    return taskrun_event_recorder(cast("Writer", None), "a", metrics or OperatorMetrics(), lambda _: "", clock)


class TestEvents:
    def test_the_same_event_has_the_same_name_and_another_has_another(self) -> None:
        names = [
            recorder_of().body_of(ABOUT, said, NOW)["metadata"]["name"]
            for said in (EmitEvent("Ended", "one"), EmitEvent("Ended", "one"), EmitEvent("Ended", "two"))
        ]
        assert names[0] == names[1] != names[2]

    def test_a_note_is_cut_at_a_character_not_within_one(self) -> None:
        note = recorder_of().body_of(ABOUT, EmitEvent("Ended", "ü" * NOTE_MAX), NOW)["note"]
        assert note == "ü" * (NOTE_MAX // 2)

    def test_one_taskrun_can_announce_but_so_much_in_an_hour(self) -> None:
        metrics, clock = OperatorMetrics(), [0.0]
        recorder = recorder_of(metrics, lambda: clock[0])
        for number in range(50):
            recorder.emit(ABOUT, EmitEvent("Ended", f"attempt {number}"))
        assert recorder._waiting.count(ABOUT.namespace) == 20
        assert "reattach_events_dropped_total 30.0" in metrics.text().decode()
        clock[0] = 3600.0
        recorder.emit(ABOUT, EmitEvent("Ended", "attempt 51"))
        assert recorder._waiting.count(ABOUT.namespace) == 21

    def test_attempts_leave_room_for_what_a_person_must_know(self) -> None:
        recorder = recorder_of()
        for number in range(50):
            recorder.emit(ABOUT, EmitEvent(EventReason.ATTEMPT_STARTED, f"attempt {number}"))
            recorder.emit(ABOUT, EmitEvent(EventReason.ATTEMPT_FAILED, f"attempt {number}"))
            recorder.emit(ABOUT, EmitEvent(EventReason.REATTACHED, f"attempt {number}"))
        recorder.emit(ABOUT, EmitEvent(Reason.SUBMISSION_UNKNOWN, "it may have been submitted", warning=True))
        reasons = [json.loads(recorder._waiting.pop().body)["reason"] for _ in range(16)]
        assert reasons[-1] == Reason.SUBMISSION_UNKNOWN
        assert not recorder._waiting

    @pytest.mark.parametrize(
        "reason",
        [
            *HOLDS,
            EventReason.ORPHANED,
            EventReason.TOO_LARGE,
            EventReason.UNREADABLE,
            Reason.PREDECESSOR_LEFT_JOBS,
        ],
    )
    def test_events_that_require_an_action_are_not_crowded_out_on_their_taskrun(self, reason: str) -> None:
        recorder = recorder_of()
        for number in range(50):
            recorder.emit(ABOUT, EmitEvent(EventReason.ATTEMPT_STARTED, f"attempt {number}"))
            recorder.emit(ABOUT, EmitEvent(EventReason.SUBMITTED, f"job {number}"))
            recorder.emit(ABOUT, EmitEvent(Reason.POD_REFUSED, f"webhook {number}", warning=True))
        for number in range(50):
            recorder.emit(ABOUT, EmitEvent(reason, f"job {number}", warning=True))
        reasons = [json.loads(recorder._waiting.pop().body)["reason"] for _ in range(30)]
        assert not recorder._waiting
        assert reasons[20:] == [reason] * 10

    def test_events_that_require_an_action_are_not_crowded_out_by_their_namespace(self) -> None:
        metrics = OperatorMetrics()
        recorder = recorder_of(metrics)
        for number in range(_WAITING_MAX + 1):
            about = msgspec.structs.replace(ABOUT, uid=f"u{number}")
            recorder.emit(about, EmitEvent(Reason.APPLICATION_FAILED, "it failed", warning=True))
        for number in range(_WAITING_MAX):
            about = msgspec.structs.replace(ABOUT, uid=f"held{number}")
            recorder.emit(about, EmitEvent(Reason.SUBMISSION_UNKNOWN, "it may run", warning=True))
        waiting = [json.loads(recorder._waiting.pop().body)["reason"] for _ in range(_WAITING_MAX_WITH_URGENT)]
        assert not recorder._waiting
        assert waiting[_WAITING_MAX:] == [Reason.SUBMISSION_UNKNOWN] * (_WAITING_MAX_WITH_URGENT - _WAITING_MAX)
        dropped = 1 + _WAITING_MAX - (_WAITING_MAX_WITH_URGENT - _WAITING_MAX)
        assert f"reattach_events_dropped_total {dropped:.1f}" in metrics.text().decode()

    async def test_events_of_one_namespace_neither_drop_nor_delay_those_of_another(self) -> None:
        sent, done = list[str](), asyncio.Event()

        class Recording:
            async def create(self, path: str, *_: Any) -> bytes:
                sent.append(path.split("/")[-2])
                if "quiet" in sent:
                    done.set()
                await asyncio.sleep(0)
                return b"{}"

        metrics = OperatorMetrics()
        recorder = taskrun_event_recorder(cast("Writer", Recording()), "a", metrics, lambda _: "")
        for number in range(_WAITING_MAX + 700):
            noisy = msgspec.structs.replace(ABOUT, namespace="noisy", uid=f"u{number}")
            recorder.emit(noisy, EmitEvent("Ended", "it ended"))
        recorder.emit(msgspec.structs.replace(ABOUT, namespace="quiet", uid="quiet"), EmitEvent("Ended", "it ended"))
        assert "reattach_events_dropped_total 700.0" in metrics.text().decode()
        sending = asyncio.ensure_future(recorder.run())
        await asyncio.wait_for(done.wait(), 10)
        sending.cancel()
        assert sent[:2] == ["noisy", "quiet"]

    async def test_event_whose_call_does_not_return_delays_only_its_own_namespace(self) -> None:
        sent, done = list[str](), asyncio.Event()

        class Slow:
            async def create(self, path: str, *_: Any) -> bytes:
                sent.append(path.split("/")[-2])
                if "slow" in path:
                    await asyncio.Event().wait()
                done.set()
                return b"{}"

        recorder = taskrun_event_recorder(cast("Writer", Slow()), "a", OperatorMetrics(), lambda _: "")
        for namespace in ("slow", "slow", "other"):
            uid = f"{namespace}{recorder._waiting.count(namespace)}"
            about = msgspec.structs.replace(ABOUT, namespace=namespace, uid=uid)
            recorder.emit(about, EmitEvent("Ended", "it ended"))
        sending = asyncio.ensure_future(recorder.run())
        await asyncio.wait_for(done.wait(), 5)
        sending.cancel()
        assert sent == ["slow", "other"]

    def test_no_more_is_remembered_than_bounds_allow(self) -> None:
        clock = [0.0]
        recorder = recorder_of(clock=lambda: clock[0])
        for number in range(_REMEMBERED_MAX + 50):
            recorder.emit(msgspec.structs.replace(ABOUT, uid=f"u{number}"), EmitEvent("Ended", "it ended"))
        assert len(recorder._sent) <= _REMEMBERED_MAX + 1
        clock[0] = 3600.0
        recorder.emit(ABOUT, EmitEvent("Ended", "another one"))
        assert len(recorder._sent) == 1


class TestSchema:
    @pytest.fixture
    def crd(self) -> JSON:
        found: JSON = yaml.safe_load(CRD.read_text())
        return found

    def test_the_crd_of_this_version_has_all_that_is_written(self, crd: JSON) -> None:
        assert list(missing_from(crd)) == []

    def test_a_field_that_an_older_crd_lacks_is_named(self, crd: JSON) -> None:
        status = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"]
        del status["attempts"]["items"]["properties"]["chargedTo"]
        del status["counts"]["properties"]["charged"]["properties"]["disruption"]
        del status["state"]
        assert list(missing_from(crd)) == [
            ".status.attempts[].chargedTo",
            ".status.counts.charged.disruption",
            ".status.state",
        ]

    def test_selectable_fields_that_an_older_crd_lacks_are_named(self, crd: JSON) -> None:
        """Ended TaskRuns would never leave the watch, or the list by their ttl would fail."""
        crd["spec"]["versions"][0]["selectableFields"] = []
        assert list(missing_from(crd)) == [
            "the selectable field .status.outcome",
            "the selectable field .spec.ttl.succeededSeconds",
            "the selectable field .spec.ttl.failedSeconds",
            "the selectable field .spec.ttl.cancelledSeconds",
        ]

    def test_a_version_that_is_not_served_is_not_there(self, crd: JSON) -> None:
        crd["spec"]["versions"][0]["served"] = False
        assert list(missing_from(crd)) == ["the version v1alpha1"]
