"""What is done with a job once it has a handle: each answer of the other side, at each place."""

import contextlib
import itertools
import json
import logging
import threading
from datetime import timedelta
from functools import reduce
from typing import Any

import httpx
import pytest

import reattach
from fakepod import Pod, a_problem
from fakesystem import NAME, REQUEST, RESULT, LostError, System, fails
from reattach.adapter import (
    Active,
    Cancelled,
    Capabilities,
    Failed,
    JobStatus,
    Lookup,
    NotFound,
    Rejected,
    Succeeded,
    Unknown,
)
from reattach.api.state import JobState
from reattach.task import termination

OUTCOME = "/v1/jobs/load/outcome"


@pytest.fixture(autouse=True)
def _ends_soon(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(termination, "END_SECONDS", 0.01)
    yield
    for thread in threading.enumerate():
        if isinstance(thread, threading.Timer):
            thread.join(5)


@pytest.fixture
def system() -> System:
    return System()


def wait(pod: Pod, system: System, poll_seconds: float | None = None) -> Any:
    """One attempt."""
    return pod.context().run(lambda task: task.submit_once("load", system, REQUEST).wait(poll_seconds))


def states(pod: Pod) -> list[Any]:
    """The outcomes that were sent."""
    return [body["state"] for body in pod.api.bodies(OUTCOME)]


class TestTheResult:
    RESULTS = [  # noqa: RUF012 -- read only
        RESULT,
        None,
        "text é✓",
        "",
        0,
        -7,
        2**70,
        1.0,
        1e-7,
        True,
        False,
        [],
        {},
        [1, {"a": [None, "b"]}],
        {"z": 1, "a": [1, 2]},
    ]

    @pytest.mark.parametrize("result", RESULTS)
    def test_it_is_the_same_object_on_every_path(self, pod: Pod, system: System, result: Any) -> None:
        system.statuses = [Active(), Succeeded(result)]
        with pod.context() as task:
            job = task.submit_once("load", system, REQUEST)
            seen = [job.wait(), job.wait()]  # watched; asked once more
            status = job.status()
            assert isinstance(status, Succeeded)
            seen.append(status.result)
            seen.append(task.submit_once("load", system, REQUEST).wait())  # in the same process, over
        pod.api.jobs.next_attempt()
        with pod.context() as task:
            seen.append(task.submit_once("load", system, REQUEST).wait())  # found over by the next attempt

        other = Pod(pod.settings.directory)  # reattached to
        system.statuses = [Active(), Succeeded(result)]
        with contextlib.suppress(RuntimeError), other.context() as task:
            task.submit_once("load", system, REQUEST)
            raise RuntimeError
        other.api.jobs.next_attempt()
        seen.append(wait(other, system))

        assert len({repr(one) for one in seen}) == 1, seen
        assert seen[0] == result

    def test_it_is_plain_json_whatever_the_adapter_made_it_of(self, pod: Pod, system: System) -> None:
        system.statuses = [Succeeded({"state": JobState.SUCCEEDED})]
        assert repr(wait(pod, system)) == repr({"state": "Succeeded"})

    @pytest.mark.parametrize(
        "result, why",
        [
            (object(), "not object"),
            (1e999, "finite"),
            ("x" * 4096, "this one has 4098"),
            (reduce(lambda inner, _: [inner], range(101), 1), "nested"),
            ({1: 2}, "strings as names"),
            ({1, 2}, "store it as a list"),
        ],
    )
    def test_one_that_can_not_be_stored_is_none_on_every_path_since_the_job_has_succeeded(
        self, pod: Pod, system: System, result: Any, why: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        system.statuses = [Succeeded(result)]
        for _ in range(2):
            assert wait(pod, system) is None
            pod.api.jobs.next_attempt()
        assert pod.api.jobs.record().state is JobState.SUCCEEDED
        assert pod.api.jobs.record().message.startswith("its result is dropped: ")
        [said] = [record for record in caplog.records if record.levelname == "ERROR"]
        assert "'load' (job-1) succeeded; its result is dropped" in said.getMessage()
        assert why in said.getMessage()

    def test_reason_why_a_result_is_missing_is_stored_as_the_message_of_the_job(
        self, pod: Pod, system: System, caplog: pytest.LogCaptureFixture
    ) -> None:
        status = Succeeded(None, "no result, because the response has no rows")
        system.statuses = [status]
        for _ in range(2):
            assert wait(pod, system) is None
            pod.api.jobs.next_attempt()
        with pod.context() as task:
            assert task.submit_once("load", system, REQUEST).status() == status
        assert pod.api.jobs.record().state is JobState.SUCCEEDED
        assert pod.api.jobs.record().message == "no result, because the response has no rows"
        assert len(pod.api.bodies(OUTCOME)) == 1
        [logged] = [record for record in caplog.records if record.levelname == "WARNING"]
        assert "'load' (job-1) succeeded: no result, because the response has no rows" in logged.getMessage()

    def test_it_is_stored_before_it_is_returned(self, pod: Pod, system: System) -> None:
        with pod.context() as task:
            task.submit_once("load", system, REQUEST).wait()
            assert pod.api.jobs.record().state is JobState.SUCCEEDED

    def test_it_is_stored_once_however_often_the_answer_is_lost(self, pod: Pod, system: System) -> None:
        pod.time.on_step["before-outcome"] = lambda: setattr(pod.api, "lost", 3)
        assert wait(pod, system) == RESULT

    def test_while_it_can_not_be_stored_the_task_waits(self, pod: Pod, system: System) -> None:
        def away() -> None:
            pod.api.down = httpx.ConnectError("refused")
            pod.time.at(600, lambda: setattr(pod.api, "down", None))

        pod.time.on_step["before-outcome"] = away
        assert wait(pod, system) == RESULT

    def test_what_another_process_stored_first_counts(self, pod: Pod, system: System) -> None:
        pod.time.on_step["before-outcome"] = lambda: pod.api.jobs.change(
            state=JobState.FAILED, message="said somebody else"
        )
        with pytest.raises(reattach.JobFailed, match="said somebody else"):
            wait(pod, system)


class TestFailures:
    @pytest.mark.parametrize(
        "status,words",
        [
            (Failed("out of memory"), "failed: out of memory"),
            (Failed(), "failed"),
            (Cancelled("by ops"), "was cancelled: by ops"),
            (Failed("é" * 2000), "failed: " + "é" * 256),
        ],
    )
    def test_a_job_without_success_is_an_error_that_reads_the_same_on_every_path(
        self, pod: Pod, system: System, status: JobStatus, words: str
    ) -> None:
        system.statuses = [Active(), status]
        errors = []
        for _ in range(2):
            with pytest.raises(reattach.JobFailed) as raised:
                wait(pod, system)
            errors.append(raised.value)
            pod.api.jobs.next_attempt(charged_to="disruption")
        first, second = errors
        assert str(first) == f"external job 'load' (generation 1, job-1) {words}"
        assert (str(first), vars(first)) == (str(second), vars(second))
        assert first.cancelled is isinstance(status, Cancelled)
        assert pod.message()["kind"] == "Failed"


class TestUnknown:
    @pytest.mark.parametrize(
        "trouble", [LostError("503"), TimeoutError(), ValueError("no JSON"), KeyError("state"), Rejected("?")]
    )
    def test_nothing_is_concluded_from_what_can_not_be_asked(
        self, pod: Pod, system: System, trouble: Exception
    ) -> None:
        system.before_status = [fails(trouble)] * 50
        assert wait(pod, system) == RESULT
        assert len(system.submissions) == 1
        assert len(system.asked) == 52

    def test_people_are_told_once_and_told_when_it_is_over(
        self, pod: Pod, system: System, caplog: pytest.LogCaptureFixture
    ) -> None:
        system.before_status = [fails(LostError("503"))] * 20
        shown: list[Any] = []
        system.statuses = [Active(), Active(), Succeeded(RESULT)]
        system.before_status[-1:] = [lambda: shown.append(pod.api.jobs.record().state)]
        assert wait(pod, system) == RESULT
        assert shown == [JobState.UNKNOWN]
        assert states(pod) == ["Unknown", "Active", "Succeeded"]
        assert pod.api.bodies(OUTCOME)[0]["message"] == "LostError: 503"
        said = [record.getMessage() for record in caplog.records]
        assert "can't be polled, for 3 s now (LostError: 503)" in said[0]
        assert 3 <= len(said) <= 6  # after 3 s, each minute, and at the end
        assert "can't be polled: over, after" in said[-1]

    def test_reason_is_shown_within_a_minute_and_again_only_when_it_changes(self, pod: Pod, system: System) -> None:
        began = pod.time.now
        word, away = Unknown("the word EXPIRED is not listed"), Unknown("503")
        system.statuses = [word]
        shown: list[tuple[str, float]] = []

        def note(_: Any = None) -> None:
            if (message := pod.api.jobs.record().message) and message not in [text for text, _ in shown]:
                shown.append((message, pod.time.now - began))

        system.before_status = [note] * 1000
        pod.time.at(3000, lambda: setattr(system, "statuses", [away]))
        pod.time.at(6000, lambda: setattr(system, "statuses", [Active(), Succeeded(RESULT)]))
        assert wait(pod, system, 10) == RESULT
        assert [text for text, _ in shown] == [word.message, away.message]
        assert 30 <= shown[0][1] < 60
        assert [(one["state"], one.get("message", "")) for one in pod.api.bodies(OUTCOME)] == [
            ("Unknown", word.message),
            ("Unknown", away.message),
            ("Active", ""),
            ("Succeeded", ""),
        ]

    def test_a_short_one_is_not_worth_a_word(self, pod: Pod, system: System, caplog: pytest.LogCaptureFixture) -> None:
        system.statuses = [Unknown("moved"), Active(), Succeeded(RESULT)]
        wait(pod, system)
        assert states(pod) == ["Succeeded"]
        assert caplog.records == []

    def test_a_state_api_that_is_away_too_does_not_keep_the_job_from_being_asked(
        self, pod: Pod, system: System
    ) -> None:
        system.before_status = [fails(LostError("503"))] * 30
        system.before_status[0] = lambda: setattr(pod.api, "down", httpx.ConnectError("refused"))
        system.statuses = [Unknown(), Active(), Succeeded(RESULT)]
        pod.time.at(3000, lambda: setattr(pod.api, "down", None))
        pod.time.at(2000, system.before_status.clear)
        assert wait(pod, system) == RESULT

    def test_the_other_side_may_be_away_for_days(self, pod: Pod, system: System) -> None:
        began = pod.time.now
        system.statuses = [Unknown("away")]
        pod.time.at(3 * 86400, lambda: setattr(system, "statuses", [Succeeded(RESULT)]))
        assert wait(pod, system, 600) == RESULT
        assert pod.time.now - began >= 3 * 86400

    def test_retry_after_delays_the_next_poll(self, pod: Pod, system: System) -> None:
        times: list[float] = []
        system.before_status = [lambda: times.append(pod.time.now)] * 3
        system.statuses = [Unknown("429", 100), Unknown("429", 1e9), Succeeded(RESULT)]
        wait(pod, system, 1)
        assert [round(later - earlier) for earlier, later in itertools.pairwise(times)] == pytest.approx(
            [100, 300], abs=2
        )

    def test_what_is_none_of_the_six_answers_is_the_adapters_mistake(self, pod: Pod, system: System) -> None:
        system.statuses = ["RUNNING"]  # type: ignore[list-item]
        with pytest.raises(TypeError, match="one of the six kinds of JobStatus, not 'RUNNING'"):
            wait(pod, system)


class TestAJobOfAnotherRunWithTheSameKey:
    """The name or token is taken, because another TaskRun has the same idempotency key."""

    @pytest.fixture
    def system(self, pod: Pod) -> System:
        system = System(Capabilities(NAME))
        wait(pod, system)
        pod.api.jobs.state = type(pod.api.jobs.state)()
        return system

    def test_one_that_was_cancelled_before_costs_no_attempt_and_the_next_generation_is_submitted(
        self, pod: Pod, system: System, caplog: pytest.LogCaptureFixture
    ) -> None:
        system.statuses = [Cancelled("by the other run"), Succeeded(RESULT)]
        assert wait(pod, system) == RESULT
        first, second = (pod.api.jobs.record(generation=number) for number in (1, 2))
        assert (first.state, first.handle, first.origin) == (JobState.CANCELLED, "job-1", "Existed")
        assert (second.state, second.handle, second.origin) == (JobState.SUCCEEDED, "job-2", "Submitted")
        assert len(system.jobs) == 2
        assert "it was cancelled before this TaskRun first saw it. Submitting it again." in caplog.text

    def test_one_that_is_cancelled_while_it_is_watched_fails_the_attempt(self, pod: Pod, system: System) -> None:
        system.statuses = [Active(), Cancelled("by a user")]
        with pytest.raises(reattach.JobFailed, match="by a user"):
            wait(pod, system)
        assert len(system.jobs) == 1

    def test_one_that_failed_before_fails_the_attempt(self, pod: Pod, system: System) -> None:
        system.statuses = [Failed("out of memory")]
        with pytest.raises(reattach.JobFailed, match="out of memory"):
            wait(pod, system)
        assert len(system.jobs) == 1

    def test_a_job_of_this_run_that_was_cancelled_fails_the_attempt(self, pod: Pod, system: System) -> None:
        system.jobs.clear()
        system.after_submit = [fails(LostError("timed out"))]
        system.statuses = [Cancelled("by a user")]
        with pytest.raises(reattach.JobFailed, match="by a user"):
            wait(pod, system)
        assert pod.api.jobs.record().origin == "Existed"
        assert len(system.jobs) == 1


class TestResultOfTheTaskThatCannotBeStored:
    @staticmethod
    def run(pod: Pod, system: System) -> str:
        def main(task: reattach.Task) -> Any:
            return {"rows": task.submit_once("load", system, REQUEST).wait(), "sets": {1}}

        with pytest.raises(reattach.InvalidResult, match=r"result\['sets'\] must be JSON") as raised:
            pod.context().run(main)
        return str(raised.value)

    def test_finished_job_is_named_with_its_result_and_how_to_take_it_over(self, pod: Pod, system: System) -> None:
        text = self.run(pod, system)
        assert f"'load' (generation 1, job-1) with the result {json.dumps(RESULT)}" in text
        adoption = text.partition("spec.adopt: ")[2].partition(". It takes")[0]
        assert json.loads(adoption) == [{"key": "load", "handle": "job-1", "adapter": system.name}]

    def test_job_without_a_result_and_a_long_result_are_named_too(self, pod: Pod, system: System) -> None:
        system.statuses = [Succeeded(None)]
        assert "'load' (generation 1, job-1) without a result. To use" in self.run(pod, system)
        other = Pod(pod.settings.directory)
        system.statuses = [Succeeded("x" * 4000)]
        assert f"{'x' * 299}…. To use them" in self.run(other, system)

    def test_only_the_first_of_many_jobs_are_named(self, pod: Pod, system: System) -> None:
        def main(task: reattach.Task) -> Any:
            return {task.submit_once(f"part-{number}", system, REQUEST).wait() and number for number in range(6)}

        with pytest.raises(reattach.InvalidResult, match=r"'part-3'.*, and 2 more\. To use them"):
            pod.context().run(main)


class TestNotFound:
    @pytest.fixture
    def gone(self, system: System) -> System:
        """A system that forgets its job as soon as it has it."""
        system.before_status = [system.jobs.clear]
        return system

    def test_a_person_is_asked(self, pod: Pod, gone: System) -> None:
        with pytest.raises(reattach.Held, match="does not know it: no job-1 here") as raised:
            wait(pod, gone)
        assert "kubectl reattach resolve" in str(raised.value)
        record = pod.api.jobs.record()
        assert (record.state, record.held, record.handle) == (JobState.NOT_FOUND, True, "job-1")
        assert pod.message()["kind"] == "Held"
        pod.api.jobs.next_attempt()
        with pytest.raises(reattach.Held, match="does not know it"):
            wait(pod, gone)

    def test_or_the_run_fails(self, pod: Pod, gone: System) -> None:
        pod.api.jobs.rules(on_not_found="Fail")
        with pytest.raises(reattach.PermanentFailure, match="does not know it"):
            wait(pod, gone)
        assert pod.api.jobs.record().state is JobState.FAILED

    def test_and_still_does_if_the_attempt_that_found_out_is_gone_before_it_could_say_so(
        self, pod: Pod, gone: System
    ) -> None:
        def die() -> None:
            raise KeyboardInterrupt

        pod.api.jobs.rules(on_not_found="Fail")
        pod.time.on_step["after-outcome"] = die
        with pytest.raises(KeyboardInterrupt):
            wait(pod, gone)
        errors = set()
        for _ in range(2):
            pod.api.jobs.next_attempt(charged_to="application")
            with pytest.raises(reattach.PermanentFailure) as raised:
                wait(pod, gone)
            errors.add(str(raised.value))
        assert errors == {
            "external job 'load' (generation 1, job-1): the external system does not know it: no job-1 here",
        }
        assert len(gone.submissions) == 1

    def test_or_it_is_submitted_anew_as_a_new_generation(
        self, pod: Pod, gone: System, caplog: pytest.LogCaptureFixture
    ) -> None:
        pod.api.jobs.rules(on_not_found="Resubmit")
        with pod.context() as task:
            job = task.submit_once("load", gone, REQUEST)
            assert job.wait() == RESULT
            assert (job.generation, job.state) == (2, JobState.SUCCEEDED)
        assert [pod.api.jobs.record(generation=n).state for n in (1, 2)] == [JobState.FAILED, JobState.SUCCEEDED]
        assert len({submission.token for submission in gone.submissions}) == 2
        assert "Submitting it again, because spec.submission.onNotFound is Resubmit" in caplog.text

    @pytest.mark.parametrize("at", ["after-outcome", "before-intent", "after-intent"])
    def test_which_goes_on_wherever_an_attempt_dies_and_costs_no_attempt(self, pod: Pod, gone: System, at: str) -> None:
        def die() -> None:
            raise KeyboardInterrupt

        gone.can = Capabilities(NAME)
        pod.api.jobs.rules(on_not_found="Resubmit")
        first = gone.before_status[0]
        gone.before_status = [lambda: (pod.time.on_step.update({at: die}), first())]
        with pytest.raises(KeyboardInterrupt):
            wait(pod, gone)
        pod.api.jobs.next_attempt(charged_to="disruption")
        assert wait(pod, gone) == RESULT
        assert [pod.api.jobs.record(generation=n).state for n in (1, 2)] == [JobState.FAILED, JobState.SUCCEEDED]
        assert len({submission.token for submission in gone.submissions}) == 2

    def test_it_is_believed_only_when_it_is_seen_twice(self, pod: Pod, system: System) -> None:
        system.statuses = [NotFound(), Active(), NotFound(), Active(), Succeeded(RESULT)]
        assert wait(pod, system) == RESULT

    def test_and_not_before_the_job_would_be_found(self, pod: Pod, system: System) -> None:
        system.can = Capabilities(look_up=Lookup(settling=timedelta(minutes=5)))
        system.statuses = [*[NotFound()] * 29, Active(), Succeeded(RESULT)]  # 290 s
        assert wait(pod, system) == RESULT

        system.statuses = [NotFound()]
        pod.api.jobs.state = type(pod.api.jobs.state)()
        began = pod.time.now
        with pytest.raises(reattach.Held):
            wait(pod, system)
        assert 300 <= pod.time.now - began <= 320

    def test_and_not_while_nobody_can_tell_when_it_would_be_found(self, pod: Pod, system: System) -> None:
        system.before_capabilities = [lambda: None] + [fails(LostError("503"))] * 9
        system.statuses = [*[NotFound()] * 9, Active(), Succeeded(RESULT)]
        assert wait(pod, system) == RESULT

    def test_what_another_process_stored_meanwhile_counts(self, pod: Pod, gone: System) -> None:
        for rule in ("Hold", "Fail", "Resubmit"):
            pod.api.jobs.rules(on_not_found=rule)
            gone.before_status = [gone.jobs.clear]
            pod.time.on_step["before-outcome"] = lambda: pod.api.jobs.change(state=JobState.CANCELLED)
            with pytest.raises(reattach.JobFailed, match="was cancelled"):
                wait(pod, gone)
            pod.api.jobs.state = type(pod.api.jobs.state)()


class TestWatching:
    def test_the_log_tells_how_far_it_is_when_that_changes(
        self, pod: Pod, system: System, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "reattach")
        system.statuses = [*[Active("10 %")] * 50, *[Active("20 %")] * 70, Succeeded(RESULT)]
        wait(pod, system)
        said = [record.getMessage() for record in caplog.records if "is active" in record.getMessage()]
        assert said == [
            "External job 'load' (job-1) is active: 10 %",
            "External job 'load' (job-1) is active: 20 %",
            "External job 'load' (job-1) is active: 20 %",  # 10 minutes later
        ]

    def test_it_is_asked_as_often_as_its_adapter_says_or_the_task(self, pod: Pod, system: System) -> None:
        system.statuses = [*[Active()] * 3, Succeeded(RESULT)]
        wait(pod, system)
        assert pod.time.waited == [10.0] * 3
        pod.time.waited.clear()
        pod.api.jobs.state = type(pod.api.jobs.state)()
        system.statuses = [*[Active()] * 2, Succeeded(RESULT)]
        wait(pod, system, 25)
        assert pod.time.waited == [10.0, 10.0, 5.0] * 2

    @pytest.mark.parametrize("poll_seconds", [0, -1, float("nan")])
    def test_that_is_a_positive_number(self, pod: Pod, system: System, poll_seconds: float) -> None:
        with pytest.raises(ValueError, match="more than 0"):
            wait(pod, system, poll_seconds)

    def test_an_attempt_that_must_end_stops_watching(self, pod: Pod, system: System) -> None:
        system.statuses = [Active()]

        def main(task: reattach.Task) -> None:
            job = task.submit_once("load", system, REQUEST)
            pod.time.at(60, lambda: task._client.on_attempt_over(reattach.Fenced("another took over")))
            job.wait()

        with pytest.raises(reattach.Fenced):
            pod.context().run(main)
        assert pod.time.now - pod.time.start <= 70

    def test_so_does_async_code(self, pod: Pod, system: System) -> None:
        system.statuses = [Active()]

        async def main(task: reattach.Task) -> None:
            job = await task.asubmit_once("load", system, REQUEST)
            task._client.on_attempt_over(reattach.Fenced("another took over"))
            await job.await_()

        with pytest.raises(reattach.Fenced):
            pod.context().run(main)
        assert system.asked == []

    def test_many_threads_may_wait_for_one_job(self, pod: Pod, system: System) -> None:
        results: list[Any] = []
        with pod.context() as task:
            job = task.submit_once("load", system, REQUEST)
            threads = [threading.Thread(target=lambda: results.append(job.wait())) for _ in range(5)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert results == [RESULT] * 5
        assert states(pod) == ["Succeeded"]

    def test_a_job_that_is_over_is_not_asked_again(self, pod: Pod, system: System) -> None:
        wait(pod, system)
        asked = len(system.asked)
        pod.api.jobs.next_attempt()
        assert wait(pod, system) == RESULT
        assert len(system.asked) == asked

    def test_it_shows_who_it_is(self, pod: Pod, system: System) -> None:
        with pod.context() as task:
            job = task.submit_once("load", system, REQUEST)
            assert repr(job) == "<ExternalJob 'load' generation=1 handle='job-1' state=Active>"
            job.wait()


class TestStatus:
    def test_it_asks_once_and_stores_an_end(self, pod: Pod, system: System) -> None:
        system.statuses = [Active("1"), Unknown("x"), NotFound("y"), Succeeded(RESULT)]
        with pod.context() as task:
            job = task.submit_once("load", system, REQUEST)
            assert [job.status() for _ in range(5)] == [
                Active("1"),
                Unknown("x"),
                NotFound("y"),
                Succeeded(RESULT),
                Succeeded(RESULT),
            ]
            assert job.state is JobState.SUCCEEDED
        assert len(system.asked) == 4
        assert pod.api.completed == [None]

    def test_a_failure_is_an_answer_here(self, pod: Pod, system: System) -> None:
        system.statuses = [Cancelled("by ops")]
        with pod.context() as task:
            job = task.submit_once("load", system, REQUEST)
            assert job.status() == job.status() == Cancelled("by ops")
            assert job.state is JobState.CANCELLED


class TestCancelling:
    def test_it_asks_for_the_end_and_the_watch_tells_of_it(self, pod: Pod, system: System) -> None:
        system.statuses = [Active(), Cancelled("on request")]
        with pod.context() as task:
            job = task.submit_once("load", system, REQUEST)
            job.cancel()
            with pytest.raises(reattach.JobFailed, match="was cancelled: on request"):
                job.wait()
            job.cancel()
        assert system.cancelled == ["job-1"]
        assert [step for step in pod.time.steps if "cancel" in step] == ["before-cancel", "after-cancel"]

    def test_what_the_adapter_raises_is_raised(self, pod: Pod, system: System, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(System, "cancel", lambda *_: fails(LostError("503"))())
        with pod.context() as task:
            job = task.submit_once("load", system, REQUEST)
            with pytest.raises(LostError):
                job.cancel()
            job.wait()


@pytest.mark.parametrize(
    "status,code,error",
    [(409, "fenced", reattach.Fenced), (409, "state-lost", reattach.StateLost), (400, "invalid", reattach.InvalidCall)],
)
def test_a_refused_outcome_is_raised(
    pod: Pod, system: System, status: int, code: str, error: type[BaseException]
) -> None:
    pod.time.on_step["before-outcome"] = lambda: pod.api.script.append(a_problem(status, code))
    with pytest.raises(error):
        wait(pod, system)
