"""A cleanup attempt against a fake state API, which decides with the real pure functions."""

import contextlib
import dataclasses
import itertools
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

import reattach
from fakepod import Pod, a_problem
from fakesystem import LOOK_UP, REQUEST, RESULT, LostError, System, fails
from reattach.adapter import Active, Cancelled, Capabilities, Failed, JobStatus, Lookup, Submitted, Succeeded
from reattach.adapters.base import MARGIN
from reattach.adapters.http_client import CallError
from reattach.api.messages import Job, Unresolved
from reattach.api.names import ENV_SESSION
from reattach.api.state import JobOrigin, JobState
from reattach.api.taskrun import AttemptPurpose
from reattach.task import termination
from reattach.task.cleanup import (
    ASK_AGAIN_SECONDS,
    CANCEL_AGAIN_SECONDS,
    CancelAndWatch,
    CleanupInput,
    CleanupResult,
    CleanupStep,
    JobEnded,
    LeaveOpen,
    RecordNeverSubmitted,
    RequestCancellation,
    next_step,
)
from reattach.task.resolution import AbsenceEvidence, LookUpStep, TimeBounds

INTENDED = datetime(2026, 11, 30, 12, 0, tzinfo=UTC)
REQUEST_TIME = timedelta(seconds=30)
SETTLES = timedelta(seconds=20)
KEEPS = timedelta(hours=1)
ABLE = Capabilities(look_up=Lookup(settling=SETTLES, retention=KEEPS))
OUTCOME = "/v1/jobs/load/outcome"
CANCELLATION = "/v1/jobs/load/cancellation"


@pytest.fixture(autouse=True)
def _ends_soon(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(termination, "END_SECONDS", 0.01)
    yield
    # The timer last, because the thread of a job may be about to start it.
    for thread in [one for one in threading.enumerate() if one.name.startswith("cleanup-")]:
        thread.join(5)
    for thread in threading.enumerate():
        if isinstance(thread, threading.Timer):
            thread.join(5)


class OtherSystem(System):
    """A second kind of external system."""

    name = "other"


@pytest.fixture
def system() -> System:
    """External system whose jobs end as Cancelled once they were cancelled."""
    system = System(statuses=[Active("half of it")])
    end_when_cancelled(system)
    return system


def end_when_cancelled(system: System) -> None:
    def cancelled() -> None:
        system.statuses = [Cancelled("as requested")]

    system.before_cancel = [cancelled]


def note_cancel_requests(pod: Pod, system: System) -> list[datetime | None]:
    """Note, each time the system is called, when the cancellation was requested."""
    requested: list[datetime | None] = []
    before_cancel, system.before_cancel = system.before_cancel, []

    def noted(then: Callable[[], None]) -> Callable[[], None]:
        def note() -> None:
            requested.append(pod.api.jobs.record().cancel_requested_at)
            then()

        return note

    system.before_cancel = [noted(then) for then in before_cancel]
    return requested


def never_runs(_: reattach.Task) -> None:
    raise AssertionError("a cleanup attempt must not call main")


def clean_up(pod: Pod, *adapters: System, on_cleanup: Any = None) -> None:
    """Run one cleanup attempt that ends as it should."""
    with pytest.raises(SystemExit) as end:
        pod.context(adapters=adapters, on_cleanup=on_cleanup).run(never_runs)
    assert end.value.code == 0
    assert pod.termination_log.read_bytes() == b""


def leave_job_running(pod: Pod, system: System, key: str = "load") -> None:
    """Run an attempt that submits a job and dies."""
    leave_intent(pod, system, key, dies_at="after-handle")


def leave_intent(pod: Pod, system: System, key: str = "load", *, dies_at: str = "after-submit") -> None:
    """Run an attempt that dies at a step, by default before it stores the handle."""
    pod.time.on_step[dies_at] = fails(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        pod.context(adapters=[system]).run(lambda task: task.submit_once(key, system, REQUEST))
    forget(pod)


def forget(pod: Pod) -> None:
    """Forget the requests, steps and message of earlier attempts."""
    pod.api.requests.clear()
    pod.time.steps.clear()
    pod.termination_log.write_bytes(b"")


def state_of(pod: Pod, key: str = "load") -> tuple[JobState, str | None]:
    record = pod.api.jobs.record(key)
    return record.state, record.handle


def intents(pod: Pod) -> list[str]:
    return [path for path in pod.api.paths() if path.endswith("/intent")]


class TestNextStep:
    """The decisions for one job."""

    @staticmethod
    def job(**fields: Any) -> Job:
        job = Job("load", 1, "thing", "t-1", "d", JobState.ACTIVE, detached=False, intended_at=INTENDED, handle="job-1")
        return type(job)(**{**{name: getattr(job, name) for name in job.__struct_fields__}, **fields})

    @classmethod
    def known(cls, **fields: Any) -> CleanupInput:
        defaults: dict[str, Any] = {
            "job": cls.job(),
            "is_registered": True,
            "capabilities": ABLE,
            "request": REQUEST_TIME,
            "is_requested": True,
        }
        return CleanupInput(**{**defaults, **fields})

    @classmethod
    def unresolved(cls, *, all_ended: bool = True, may_resolve: bool = False, **fields: Any) -> CleanupInput:
        defaults: dict[str, Any] = {
            "job": cls.job(handle=None, state=JobState.INTENDED),
            "unresolved": Unresolved(all_ended=all_ended, quiet_since=None, attempts=(1,)),
            "may_resolve": may_resolve,
            "quiet_since": None if may_resolve else INTENDED,
            "now": TimeBounds(INTENDED + timedelta(minutes=5), INTENDED + timedelta(minutes=5)),
        }
        return cls.known(**{**defaults, **fields})

    @staticmethod
    def looked_up(after: timedelta) -> AbsenceEvidence:
        return AbsenceEvidence(INTENDED + after, INTENDED + after)

    @pytest.mark.parametrize("state", [JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.DETACHED])
    def test_a_job_that_is_not_open_needs_nothing(self, state: JobState) -> None:
        assert next_step(self.known(job=self.job(state=state), is_requested=False)) == JobEnded()

    @pytest.mark.parametrize("state", [JobState.ACTIVE, JobState.UNKNOWN, JobState.NOT_FOUND])
    def test_an_open_job_is_cancelled_after_the_request_is_stored(self, state: JobState) -> None:
        job = self.job(state=state)
        assert next_step(self.known(job=job, is_requested=False)) == RequestCancellation()
        assert next_step(self.known(job=job)) == CancelAndWatch()

    def test_a_kept_job_is_left(self) -> None:
        assert next_step(self.known(kept="it existed before")) == LeaveOpen("it existed before")

    def test_a_job_whose_adapter_is_not_registered_is_left(self) -> None:
        step = next_step(self.known(is_registered=False, is_requested=False))
        assert isinstance(step, LeaveOpen)
        assert "no adapter named 'thing'" in step.why

    def test_an_intent_is_looked_up_first_even_while_its_submitter_runs(self) -> None:
        assert next_step(self.unresolved()) == LookUpStep()
        assert next_step(self.unresolved(all_ended=False, may_resolve=True)) == LookUpStep()

    def test_an_intent_is_read_again_while_its_submitter_may_still_report(self) -> None:
        absent = self.looked_up(timedelta())
        again = RequestCancellation(ASK_AGAIN_SECONDS)
        assert next_step(self.unresolved(all_ended=False, may_resolve=True, absence=absent)) == again
        unable = Capabilities()
        assert next_step(self.unresolved(all_ended=False, may_resolve=True, capabilities=unable)) == again

    @pytest.mark.parametrize("all_ended", [True, False])
    def test_an_early_lookup_is_repeated_after_the_settling_time(self, *, all_ended: bool) -> None:
        settled = REQUEST_TIME + MARGIN + SETTLES
        early = self.looked_up(settled - timedelta(seconds=1))
        assert next_step(self.unresolved(all_ended=all_ended, absence=early)) == LookUpStep(INTENDED + settled)

    def test_absence_is_proven_only_if_all_submitters_have_ended(self) -> None:
        late = self.looked_up(REQUEST_TIME + MARGIN + SETTLES)
        assert next_step(self.unresolved(absence=late)) == RecordNeverSubmitted()
        step = next_step(self.unresolved(all_ended=False, absence=late))
        assert isinstance(step, LeaveOpen)
        assert "have not ended (attempt 1)" in step.why

    def test_absence_is_not_proven_after_the_system_may_have_forgotten_the_job(self) -> None:
        late = self.looked_up(KEEPS)
        assert isinstance(next_step(self.unresolved(absence=late)), LeaveOpen)

    def test_absence_is_not_proven_by_a_lookup_that_finds_only_open_jobs(self) -> None:
        open_jobs = Capabilities(look_up=Lookup(settling=SETTLES, while_open=True))
        settled = REQUEST_TIME + MARGIN + SETTLES
        early, late = self.looked_up(settled - timedelta(seconds=1)), self.looked_up(settled)
        assert next_step(self.unresolved(capabilities=open_jobs, absence=early)) == LookUpStep(INTENDED + settled)
        step = next_step(self.unresolved(capabilities=open_jobs, absence=late))
        assert isinstance(step, LeaveOpen)
        assert "finds only open jobs" in step.why

    def test_an_intent_without_a_lookup_is_left(self) -> None:
        assert isinstance(next_step(self.unresolved(capabilities=Capabilities())), LeaveOpen)

    def test_no_combination_leads_to_a_submission(self) -> None:
        kinds: set[type[CleanupStep]] = set()
        for handle, registered, requested, all_ended, may_resolve, able, absent in itertools.product(
            ["job-1", None], *[[True, False]] * 6
        ):
            known = self.unresolved(
                all_ended=all_ended,
                may_resolve=may_resolve,
                job=self.job(handle=handle, state=JobState.ACTIVE if handle else JobState.INTENDED),
                is_registered=registered,
                is_requested=requested,
                capabilities=ABLE if able else Capabilities(),
                absence=self.looked_up(timedelta(minutes=3)) if absent else None,
            )
            kinds.add(type(next_step(known)))
        assert kinds == {LeaveOpen, RequestCancellation, CancelAndWatch, LookUpStep, RecordNeverSubmitted}


class TestJobsWithHandle:
    def test_a_job_is_cancelled_and_watched_until_it_has_ended(self, pod: Pod, system: System) -> None:
        leave_job_running(pod, system)
        pod.begin_cleanup()
        requested = note_cancel_requests(pod, system)
        clean_up(pod, system)

        assert requested[0] is not None, "the request must be stored before the system is called"
        assert state_of(pod) == (JobState.CANCELLED, "job-1")
        assert pod.api.jobs.record().message == "as requested"
        assert system.cancelled == ["job-1"]
        assert len(system.submissions) == 1
        assert intents(pod) == []
        assert pod.api.completed == []
        assert ENV_SESSION not in pod.environment

    @pytest.mark.parametrize(
        "status,state", [(Succeeded(RESULT), JobState.SUCCEEDED), (Failed("out of memory"), JobState.FAILED)]
    )
    def test_a_job_that_ended_otherwise_is_recorded_as_that(
        self, pod: Pod, system: System, status: JobStatus, state: JobState
    ) -> None:
        leave_job_running(pod, system)
        pod.begin_cleanup()
        system.statuses, system.before_cancel = [Active(), status], []
        clean_up(pod, system)
        assert state_of(pod)[0] is state

    def test_a_job_that_ignores_the_cancellation_is_cancelled_again(self, pod: Pod, system: System) -> None:
        leave_job_running(pod, system)
        pod.begin_cleanup()

        def ignored() -> None: ...

        system.before_cancel = [ignored, ignored, *system.before_cancel]
        start = pod.time.now
        clean_up(pod, system)
        assert system.cancelled == ["job-1"] * 3
        assert 2 * CANCEL_AGAIN_SECONDS <= pod.time.now - start < 3 * CANCEL_AGAIN_SECONDS
        assert state_of(pod)[0] is JobState.CANCELLED

    def test_a_failed_cancellation_is_repeated(self, pod: Pod, system: System) -> None:
        leave_job_running(pod, system)
        pod.begin_cleanup()
        system.before_cancel = [fails(LostError("timed out"))] * 20 + system.before_cancel
        clean_up(pod, system)
        assert len(system.cancelled) == 21
        assert state_of(pod)[0] is JobState.CANCELLED

    def test_retry_after_delays_the_next_cancellation(self, pod: Pod, system: System) -> None:
        leave_job_running(pod, system)
        pod.begin_cleanup()
        system.before_cancel = [fails(CallError("429", retry_after=100)), *system.before_cancel]
        start = pod.time.now
        clean_up(pod, system)
        assert system.cancelled == ["job-1"] * 2
        assert pod.time.now - start >= 100
        assert state_of(pod)[0] is JobState.CANCELLED

    def test_a_job_is_not_cancelled_again_once_the_run_is_over(self, pod: Pod, system: System) -> None:
        leave_job_running(pod, system)
        pod.begin_cleanup()

        def over() -> None:
            pod.api.down = a_problem(409, "closing", "the TaskRun is over")

        system.before_cancel = [over, *system.before_cancel]
        with pytest.raises(reattach.Closing):
            pod.context(adapters=[system]).run(never_runs)
        assert system.cancelled == ["job-1"], "the next run may have taken the job over"

    def test_a_job_that_must_be_kept_from_now_on_is_not_cancelled_again(self, pod: Pod, system: System) -> None:
        leave_job_running(pod, system)
        pod.begin_cleanup()
        system.before_cancel = [lambda: pod.api.jobs.change(origin=JobOrigin.ADOPTED), *system.before_cancel]
        seen: list[CleanupResult] = []
        clean_up(pod, system, on_cleanup=lambda cleanup: seen.extend(cleanup.jobs))
        assert system.cancelled == ["job-1"]
        assert "did not submit it" in seen[0].why_open

    def test_the_end_of_a_job_is_seen_although_every_cancellation_fails(self, pod: Pod, system: System) -> None:
        leave_job_running(pod, system)
        pod.begin_cleanup()
        system.before_cancel = [fails(LostError("timed out"))] * 100
        system.statuses = [Active(), Active(), Succeeded(RESULT)]
        clean_up(pod, system)
        assert state_of(pod)[0] is JobState.SUCCEEDED

    def test_an_unreachable_system_is_polled_until_it_responds(self, pod: Pod, system: System) -> None:
        leave_job_running(pod, system)
        pod.begin_cleanup()
        system.before_status = [fails(LostError("timed out"))] * 30
        clean_up(pod, system)
        assert state_of(pod)[0] is JobState.CANCELLED

    def test_an_absent_job_is_over(self, pod: Pod, system: System) -> None:
        leave_job_running(pod, system)
        pod.begin_cleanup()
        system.before_cancel = [system.jobs.clear]
        clean_up(pod, system)
        record = pod.api.jobs.record()
        assert record.state is JobState.CANCELLED
        assert "does not know it" in record.message
        assert len(system.asked) >= 2

    @pytest.mark.parametrize("policy", ["Hold", "Fail", "Resubmit"])
    def test_the_policies_for_absent_jobs_do_not_apply(self, pod: Pod, system: System, policy: str) -> None:
        pod.api.jobs.rules(on_not_found=policy)
        leave_job_running(pod, system)
        pod.begin_cleanup()
        system.jobs.clear()
        clean_up(pod, system)
        assert state_of(pod)[0] is JobState.CANCELLED
        assert len(system.submissions) == 1

    def test_a_kept_job_is_not_cancelled(self, pod: Pod, system: System) -> None:
        leave_job_running(pod, system)
        pod.api.jobs.change(origin=JobOrigin.ADOPTED)
        pod.begin_cleanup()
        seen: list[CleanupResult] = []
        clean_up(pod, system, on_cleanup=lambda cleanup: seen.extend(cleanup.jobs))
        assert system.cancelled == []
        assert state_of(pod)[0] is JobState.ACTIVE
        [result] = seen
        assert "did not submit it" in result.why_open

    def test_a_job_without_a_registered_adapter_is_not_cancelled(self, pod: Pod, system: System) -> None:
        leave_job_running(pod, system)
        pod.begin_cleanup()
        clean_up(pod, OtherSystem())
        assert system.cancelled == []
        assert pod.api.bodies(CANCELLATION) == []
        assert pod.api.jobs.record().cancel_requested_at is None

    def test_each_job_is_cancelled_by_the_adapter_of_its_name(self, pod: Pod, system: System) -> None:
        other = OtherSystem(statuses=[Active()])
        end_when_cancelled(other)
        other.name_of = "other-{}".format
        leave_job_running(pod, system, "first")
        leave_job_running(pod, other, "second")
        pod.begin_cleanup()
        clean_up(pod, system, other)
        assert (system.cancelled, other.cancelled) == (["job-1"], ["other-1"])
        assert state_of(pod, "first")[0] is state_of(pod, "second")[0] is JobState.CANCELLED

    def test_a_hanging_system_does_not_keep_the_jobs_of_another(self, pod: Pod, system: System) -> None:
        other = OtherSystem(statuses=[Active()])
        end_when_cancelled(other)
        hangs = threading.Event()
        leave_job_running(pod, system, "first")
        leave_job_running(pod, other, "second")
        pod.begin_cleanup()
        system.before_cancel = [lambda: hangs.wait(30) and None]

        def release_after_the_other_has_ended() -> None:
            for _ in range(2000):
                if state_of(pod, "second")[0] is JobState.CANCELLED:
                    break
                threading.Event().wait(0.01)
            system.statuses = [Cancelled()]
            hangs.set()

        thread = threading.Thread(target=release_after_the_other_has_ended)
        thread.start()
        clean_up(pod, system, other)
        thread.join()
        assert hangs.is_set()
        assert state_of(pod, "first")[0] is state_of(pod, "second")[0] is JobState.CANCELLED

    def test_an_error_of_one_adapter_does_not_stop_the_others(self, pod: Pod, system: System) -> None:
        other = OtherSystem(statuses=[Active()])
        end_when_cancelled(other)
        leave_job_running(pod, system, "first")
        leave_job_running(pod, other, "second")
        pod.begin_cleanup()
        system.statuses, system.before_cancel = ["CANCELLED"], []  # type: ignore[list-item]
        called: list[reattach.CleanupTask] = []
        with pytest.raises(ExceptionGroup, match=r"'first' \(TypeError"):
            pod.context(adapters=[system, other], on_cleanup=called.append).run(never_runs)
        assert state_of(pod, "second")[0] is JobState.CANCELLED
        assert len(called) == 1
        assert pod.message()["kind"] == "Failed"


class TestIntentsWithoutHandle:
    def test_a_job_that_the_lookup_finds_is_cancelled(self, pod: Pod, system: System) -> None:
        system.can = Capabilities(look_up=LOOK_UP)
        leave_intent(pod, system)
        pod.begin_cleanup()
        clean_up(pod, system)
        record = pod.api.jobs.record()
        assert (record.state, record.handle, record.origin) == (JobState.CANCELLED, "job-1", JobOrigin.FOUND)
        assert record.cancel_requested_at is not None
        assert system.cancelled == ["job-1"]
        assert len(system.submissions) == 1

    def test_a_job_that_is_found_only_later_is_cancelled(self, pod: Pod, system: System) -> None:
        system.can, system.hidden_for = Capabilities(look_up=LOOK_UP), 1
        leave_intent(pod, system)
        pod.begin_cleanup()
        clean_up(pod, system)
        assert state_of(pod) == (JobState.CANCELLED, "job-1")

    def test_a_job_that_was_never_submitted_is_recorded_after_the_settling_time(self, pod: Pod, system: System) -> None:
        system.can = Capabilities(look_up=LOOK_UP)
        leave_intent(pod, system, dies_at="before-submit")
        pod.begin_cleanup()
        start = pod.time.now
        clean_up(pod, system)
        record = pod.api.jobs.record()
        assert (record.state, record.handle, record.message) == (JobState.CANCELLED, None, "it was never submitted")
        settled = timedelta(seconds=system.request_seconds) + MARGIN + LOOK_UP.settling
        assert pod.time.now - start >= settled.total_seconds()
        assert system.submissions == []
        assert system.cancelled == []

    @pytest.mark.parametrize(
        "system_can",
        [
            Capabilities(),
            Capabilities(look_up=Lookup(timedelta(), timedelta())),
            Capabilities(look_up=Lookup(timedelta(), while_open=True)),
        ],
    )
    def test_an_intent_that_nothing_settles_is_left(self, pod: Pod, system: System, system_can: Capabilities) -> None:
        system.can = system_can
        leave_intent(pod, system, dies_at="before-submit")
        pod.begin_cleanup()
        seen: list[CleanupResult] = []
        clean_up(pod, system, on_cleanup=lambda cleanup: seen.extend(cleanup.jobs))
        assert state_of(pod) == (JobState.INTENDED, None)
        assert "may have been submitted" in seen[0].why_open
        assert system.submissions == []

    def test_a_handle_that_the_last_attempt_reports_late_is_cancelled(self, pod: Pod, system: System) -> None:
        leave_intent(pod, system, dies_at="before-submit")
        pod.begin_cleanup(end=None)
        pod.time.at(
            2 * ASK_AGAIN_SECONDS,
            lambda: pod.api.jobs.change(
                handle="job-7", state=JobState.ACTIVE, origin=JobOrigin.REPORTED, recorded_at=pod.time.server_time()
            ),
        )
        system.jobs["job-7"] = system.submissions[0] if system.submissions else None  # type: ignore[assignment]
        clean_up(pod, system)
        assert state_of(pod) == (JobState.CANCELLED, "job-7")
        assert pod.api.jobs.record().cancel_requested_at is not None

    def test_the_settling_time_begins_when_the_last_submitter_has_ended(self, pod: Pod, system: System) -> None:
        system.can = Capabilities(look_up=LOOK_UP)
        leave_intent(pod, system, dies_at="before-submit")
        number = pod.api.jobs.attempt
        pod.begin_cleanup(end=None)
        ended: list[float] = []

        def end() -> None:
            ended.append(pod.time.now)
            pod.api.jobs.record_end(number)

        pod.time.at(100, end)
        clean_up(pod, system)
        assert state_of(pod)[0] is JobState.CANCELLED
        settled = timedelta(seconds=system.request_seconds) + MARGIN + LOOK_UP.settling
        assert pod.time.now - ended[0] >= settled.total_seconds()

    @pytest.mark.parametrize("is_found_later", [True, False])
    def test_behind_a_presumed_end_a_late_lookup_can_find_the_job_but_not_prove_its_absence(
        self, pod: Pod, system: System, *, is_found_later: bool
    ) -> None:
        system.can = Capabilities(look_up=LOOK_UP)
        leave_intent(pod, system, dies_at="after-submit" if is_found_later else "before-submit")
        system.hidden_for = 1
        pod.begin_cleanup(end="Presumed")
        clean_up(pod, system)
        expected = (JobState.CANCELLED, "job-1") if is_found_later else (JobState.INTENDED, None)
        assert state_of(pod) == expected

    def test_a_handle_that_is_reported_while_the_settling_time_passes_is_cancelled(
        self, pod: Pod, system: System
    ) -> None:
        system.can = Capabilities(look_up=LOOK_UP)
        leave_intent(pod, system)
        system.hidden_for = 1000
        pod.begin_cleanup(end="Presumed")
        reported = {"handle": "job-1", "state": JobState.ACTIVE, "recorded_at": pod.time.server_time()}
        pod.time.at(20, lambda: pod.api.jobs.change(**reported))
        clean_up(pod, system)
        assert state_of(pod) == (JobState.CANCELLED, "job-1")

    def test_a_held_submission_is_looked_up(self, pod: Pod, system: System) -> None:
        leave_intent(pod, system)
        pod.api.jobs.change(held=True, holds=1)
        pod.begin_cleanup()
        system.can = Capabilities(look_up=LOOK_UP)
        clean_up(pod, system)
        assert state_of(pod) == (JobState.CANCELLED, "job-1")

    @pytest.mark.parametrize("handle", ["x" * 5000, None, ""])
    def test_job_whose_handle_cant_be_stored_is_cancelled_and_left_to_the_user(
        self, pod: Pod, system: System, handle: Any
    ) -> None:
        system.can = Capabilities(look_up=LOOK_UP)
        leave_intent(pod, system)
        system.look_up = lambda _: Submitted(handle)  # type: ignore[method-assign,assignment]
        pod.begin_cleanup()
        with pytest.raises(ExceptionGroup, match="may be running") as caught:
            clean_up(pod, system)
        assert isinstance(caught.value.exceptions[0], reattach.InvalidValue)
        assert system.cancelled == ([handle] if handle else [])
        assert state_of(pod) == (JobState.INTENDED, None)

    def test_a_failed_lookup_is_repeated(self, pod: Pod, system: System) -> None:
        system.can = Capabilities(look_up=LOOK_UP)
        leave_intent(pod, system)
        pod.begin_cleanup()
        system.before_look_up = [fails(LostError("timed out"))] * 3
        system.before_capabilities = [fails(LostError("timed out"))] * 3
        clean_up(pod, system)
        assert state_of(pod) == (JobState.CANCELLED, "job-1")


STAGES = [
    *("before-cancellation", "after-cancellation", "before-cancel", "after-cancel", "after-handle", "watching"),
    *("before-outcome", "after-outcome", "before-handler", "after-handler"),
]


@pytest.mark.parametrize("kind", ["handle", "found", "absent"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_cleanup_that_dies_at_any_step_is_continued_by_the_next(
    pod: Pod, system: System, stage: str, kind: str
) -> None:
    system.can = Capabilities(look_up=LOOK_UP)
    if kind == "handle":
        leave_job_running(pod, system)
    else:
        leave_intent(pod, system, dies_at="after-submit" if kind == "found" else "before-submit")
    pod.begin_cleanup()
    pod.time.on_step[stage] = fails(KeyboardInterrupt())
    registered: dict[str, Any] = {"adapters": [system], "on_cleanup": lambda _: None}
    with contextlib.suppress(KeyboardInterrupt, SystemExit):
        pod.context(**registered).run(never_runs)
    pod.api.jobs.next_attempt()
    forget(pod)

    clean_up(pod, system, on_cleanup=registered["on_cleanup"])

    record = pod.api.jobs.record()
    assert record.state is JobState.CANCELLED
    assert record.handle == (None if kind == "absent" else "job-1")
    assert len(system.submissions) == (0 if kind == "absent" else 1)
    assert len(system.jobs) == len(system.submissions)


class TestHandler:
    def test_it_is_called_with_the_state_after_the_jobs_have_ended(self, pod: Pod, system: System) -> None:
        leave_job_running(pod, system)
        pod.api.values = {"job_id": "job-7", "rows": 1}
        pod.begin_cleanup()
        seen: list[Any] = []

        def on_cleanup(cleanup: reattach.CleanupTask) -> None:
            seen.append((cleanup.namespace, cleanup.name, cleanup.attempt))
            seen.append((cleanup.state.get("job_id"), cleanup.state.list()))
            seen.extend(cleanup.jobs)

        clean_up(pod, system, on_cleanup=on_cleanup)
        assert seen == [
            ("demo", "load", 3),
            ("job-7", ["job_id", "rows"]),
            CleanupResult("load", 1, "thing", "job-1", "https://thing.test", JobState.CANCELLED),
        ]

    def test_it_may_be_async(self, pod: Pod) -> None:
        pod.api.values = {"job_id": "job-7"}
        pod.begin_cleanup()
        seen: list[Any] = []

        async def on_cleanup(cleanup: reattach.CleanupTask) -> None:
            seen.append(await cleanup.state.aget("job_id"))

        clean_up(pod, on_cleanup=on_cleanup)
        assert seen == ["job-7"]

    @pytest.mark.parametrize("is_async", [False, True])
    def test_it_can_end_a_job_that_has_no_adapter(self, pod: Pod, system: System, *, is_async: bool) -> None:
        leave_job_running(pod, system)
        pod.begin_cleanup()
        requested: list[Any] = []

        def on_cleanup(cleanup: reattach.CleanupTask) -> None:
            for job in cleanup.jobs:
                assert cleanup.request_cancellation(job.key, job.generation)
                requested.append(pod.api.jobs.record().cancel_requested_at)
                cleanup.outcome(job.key, job.generation, "Cancelled", message="stopped by hand")

        async def aon_cleanup(cleanup: reattach.CleanupTask) -> None:
            for job in cleanup.jobs:
                assert await cleanup.arequest_cancellation(job.key, job.generation)
                requested.append(pod.api.jobs.record().cancel_requested_at)
                await cleanup.aoutcome(job.key, job.generation, "Cancelled", message="stopped by hand")

        clean_up(pod, on_cleanup=aon_cleanup if is_async else on_cleanup)
        assert requested[0] is not None
        assert (state_of(pod)[0], pod.api.jobs.record().message) == (JobState.CANCELLED, "stopped by hand")

    def test_it_learns_that_a_job_must_be_left(self, pod: Pod, system: System) -> None:
        leave_job_running(pod, system)
        pod.api.jobs.change(origin=JobOrigin.ADOPTED)
        pod.begin_cleanup()
        may: list[bool] = []
        clean_up(pod, on_cleanup=lambda cleanup: may.append(cleanup.request_cancellation("load", 1)))
        assert may == [False]

    @pytest.mark.parametrize("error", [ValueError("no such job"), reattach.PermanentFailure("no"), SystemExit(3)])
    def test_its_error_ends_the_process(self, pod: Pod, error: BaseException) -> None:
        pod.begin_cleanup()
        with pytest.raises(type(error)) as raised:
            pod.context(on_cleanup=lambda _: fails(error)()).run(never_runs)
        assert raised.value is error
        assert pod.message()["kind"] in {"Failed", "Permanent"}

    @pytest.mark.parametrize("code", [0, None])
    @pytest.mark.parametrize("is_async", [False, True])
    def test_its_exit_with_code_0_is_a_return(
        self, pod: Pod, system: System, *, code: int | None, is_async: bool
    ) -> None:
        async def aexit(_: reattach.CleanupTask) -> None:
            sys.exit(code)

        on_cleanup = aexit if is_async else lambda _: sys.exit(code)
        leave_job_running(pod, system)
        pod.begin_cleanup()
        system.statuses, system.before_cancel = ["CANCELLED"], []  # type: ignore[list-item]
        with pytest.raises(ExceptionGroup, match="these external jobs may be running: 'load'"):
            pod.context(adapters=[system], on_cleanup=on_cleanup).run(never_runs)

        pod.termination_log.write_bytes(b"")
        system.statuses = [Cancelled()]
        clean_up(pod, system, on_cleanup=on_cleanup)

    def test_an_error_that_ends_the_attempt_and_that_it_caught_is_no_success(self, pod: Pod) -> None:
        pod.begin_cleanup()

        def on_cleanup(cleanup: reattach.CleanupTask) -> None:
            pod.api.down = a_problem(409, "fenced", "attempt 4 took over")
            with contextlib.suppress(SystemExit):
                cleanup.state.get("job_id")

        with pytest.raises(reattach.Fenced):
            pod.context(on_cleanup=on_cleanup).run(never_runs)

    def test_a_change_of_the_state_is_an_error_of_the_call(self, pod: Pod) -> None:
        pod.begin_cleanup()

        def on_cleanup(cleanup: reattach.CleanupTask) -> None:
            pod.api.script = [a_problem(409, "cleanup-only", "this is a cleanup attempt")]
            cleanup.state.set("job_id", "job-8")

        with pytest.raises(reattach.InvalidCall, match="this is a cleanup attempt"):
            pod.context(on_cleanup=on_cleanup).run(never_runs)


class TestProgramsThatRegisteredNothing:
    @pytest.mark.parametrize("way", ["run", "with"])
    def test_their_code_does_not_run(self, pod: Pod, way: str) -> None:
        pod.begin_cleanup()
        context = pod.context()
        with pytest.raises(reattach.CleanupOnly, match="registered nothing") as refused:
            context.run(never_runs) if way == "run" else context.__enter__()
        assert refused.value.code == 86
        assert pod.api.requests == []
        assert pod.message()["kind"] == "Failed"

    async def test_their_async_code_does_not_run(self, pod: Pod) -> None:
        pod.begin_cleanup()
        with pytest.raises(reattach.CleanupOnly):
            async with pod.context() as task:
                never_runs(task)

    def test_the_process_ends_even_if_it_catches_the_error(self, pod: Pod) -> None:
        pod.begin_cleanup()
        with contextlib.suppress(SystemExit), pod.context() as task:
            never_runs(task)
        for thread in threading.enumerate():
            if isinstance(thread, threading.Timer):
                thread.join(5)
        assert pod.ended == [86]

    def test_a_child_of_the_process_that_cleans_up_does_not_clean_up_too(self, pod: Pod, system: System) -> None:
        pod.begin_cleanup()
        child = dataclasses.replace(pod.settings, session="parents-session")
        with pytest.raises(reattach.CleanupOnly, match="child"):
            pod.context(child, adapters=[system]).run(never_runs)
        assert pod.api.requests == []


class TestBlocks:
    def test_entering_a_block_cleans_up_and_ends_the_process(self, pod: Pod, system: System) -> None:
        leave_job_running(pod, system)
        pod.begin_cleanup()
        with pytest.raises(SystemExit) as end, pod.context(adapters=[system]) as task:
            never_runs(task)
        assert end.value.code == 0
        assert state_of(pod)[0] is JobState.CANCELLED

    async def test_entering_an_async_block_does_too(self, pod: Pod, system: System) -> None:
        leave_job_running(pod, system)
        pod.begin_cleanup()
        called: list[Any] = []

        async def on_cleanup(cleanup: reattach.CleanupTask) -> None:
            called.append(await cleanup.state.alist())

        with pytest.raises(SystemExit) as end:
            async with pod.context(adapters=[system], on_cleanup=on_cleanup) as task:
                never_runs(task)
        assert end.value.code == 0
        assert called == [[]]
        assert state_of(pod)[0] is JobState.CANCELLED


class TestPhase:
    def test_a_pod_that_cleans_up_does_not_run_the_task_whatever_its_environment_has(self, pod: Pod) -> None:
        pod.api.purpose = AttemptPurpose.CLEANUP
        with pytest.raises(reattach.CleanupOnly, match="REATTACH_PHASE"):
            pod.context().run(never_runs)

    def test_a_pod_that_runs_the_task_does_not_clean_up(self, pod: Pod, system: System) -> None:
        leave_job_running(pod, system)
        pod.begin_cleanup()
        pod.api.purpose = AttemptPurpose.RUN
        with pytest.raises(reattach.ProtocolError, match="runs the task"):
            pod.context(adapters=[system]).run(never_runs)
        assert system.cancelled == []


class TestRegistration:
    @pytest.mark.parametrize(
        "adapters,on_cleanup,body",
        [
            ([], None, {}),
            ([System()], None, {"canCleanup": True}),
            ([], lambda _: None, {"canCleanup": True, "cleanupHandler": True}),
            ([System(), OtherSystem()], lambda _: None, {"canCleanup": True, "cleanupHandler": True}),
        ],
    )
    def test_it_is_sent_when_the_state_is_opened(self, pod: Pod, adapters: Any, on_cleanup: Any, body: Any) -> None:
        pod.context(adapters=adapters, on_cleanup=on_cleanup).run(lambda _: None)
        [opened] = pod.api.bodies("/v1/open")
        opened.pop("session")
        assert opened == body

    @pytest.mark.parametrize(
        "adapters,on_cleanup,error,text",
        [
            ([System(), System()], None, ValueError, "different names, .* two have the name 'thing'"),
            ([System], None, TypeError, "instances of reattach.adapter.Adapter"),
            (["ray"], None, TypeError, "instances of reattach.adapter.Adapter"),
            (System(), None, TypeError, "a list of adapters"),
            (7, None, TypeError, "a list of adapters"),
            ([], "cancel", TypeError, "a function with one argument"),
            ([], lambda: None, TypeError, "a function with one argument"),
            ([], lambda a, b: None, TypeError, "a function with one argument"),  # noqa: ARG005
        ],
    )
    def test_a_wrong_one_is_an_error_before_the_state_is_opened(
        self, pod: Pod, adapters: Any, on_cleanup: Any, error: type[Exception], text: str
    ) -> None:
        with pytest.raises(error, match=text):
            pod.context(adapters=adapters, on_cleanup=on_cleanup)
        assert pod.api.requests == []

    def test_a_handler_without_a_signature_is_accepted(self, pod: Pod) -> None:
        pod.context(on_cleanup=print).run(lambda _: None)


class TestCancelInARun:
    def cancel(self, pod: Pod, system: System, script: Callable[[], None] = lambda: None) -> None:
        with pod.context() as task:
            job = task.submit_once("load", system, REQUEST)
            script()
            job.cancel()
            with pytest.raises(reattach.JobFailed):
                job.wait()

    def test_the_cancellation_is_reported_first(self, pod: Pod, system: System) -> None:
        requested = note_cancel_requests(pod, system)
        self.cancel(pod, system)
        assert requested[0] is not None
        assert pod.api.bodies(CANCELLATION) == [{"generation": 1}]

    @pytest.mark.parametrize(
        "response",
        [
            a_problem(404, "route-unknown"),
            a_problem(409, "completed"),
            a_problem(503, "unavailable"),
            httpx.ConnectError("connection refused"),
        ],
    )
    def test_it_is_cancelled_although_the_report_fails(self, pod: Pod, system: System, response: Any) -> None:
        self.cancel(pod, system, lambda: pod.api.script.append(response))
        assert system.cancelled == ["job-1"]
        assert pod.ended == []

    def test_a_long_outage_of_the_state_api_does_not_delay_it_for_long(self, pod: Pod, system: System) -> None:
        cancelled_at: list[float] = []
        end = system.before_cancel[0]

        def cancel() -> None:
            cancelled_at.append(pod.time.now)
            pod.api.down = None
            end()

        system.before_cancel = [cancel]
        start = pod.time.now
        self.cancel(pod, system, lambda: setattr(pod.api, "down", httpx.ConnectError("connection refused")))
        assert cancelled_at[0] - start < 10

    def test_a_fenced_attempt_does_not_cancel(self, pod: Pod, system: System) -> None:
        def main(task: reattach.Task) -> None:
            job = task.submit_once("load", system, REQUEST)
            pod.api.script = [a_problem(409, "fenced", "attempt 3 took over")]
            with contextlib.suppress(reattach.Fenced):
                job.cancel()

        with pytest.raises(reattach.Fenced):
            pod.context().run(main)
        assert system.cancelled == []
        assert pod.message()["kind"] == "Fenced"
