"""From a key and a request to one job with a handle: each answer of the state API, each way in which an adapter can fail."""

import asyncio
import contextlib
import dataclasses
import hashlib
import itertools
import json
import logging
import os
import signal
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import httpx
import pytest

import reattach
from fakepod import Pod, a_problem
from fakesystem import LOOK_UP, NAME, REQUEST, RESULT, TOKEN, LostError, System, fails
from reattach.adapter import (
    Active,
    Capabilities,
    ClientName,
    Failed,
    Lookup,
    Rejected,
    Submission,
    SubmissionToken,
    Submitted,
)
from reattach.adapters.http_client import CallError
from reattach.api.messages import Grounds
from reattach.api.names import ENV_SESSION
from reattach.api.state import JobState
from reattach.task import termination
from reattach.task.submission import (
    CREDENTIALS_SECONDS,
    LATE_RESPONSES_MAX,
    LOOK_UP_SECONDS_MAX,
    STALE_SECONDS,
    WAIT_SECONDS_MAX,
)
from waiting import wait_until

REFUSED = httpx.ConnectError("connection refused")
INTENT = "/v1/jobs/load/intent"
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
    """One that can do nothing but submit."""
    return System()


def submit(pod: Pod, system: System, **more: Any) -> reattach.ExternalJob:
    with pod.context() as task:
        job = task.submit_once("load", system, REQUEST, **more)
        job.wait()
        return job


def an_attempt_dies(pod: Pod, system: System, at: str, **end: Any) -> None:
    """An attempt that is gone at a step; then the next one's turn."""

    def die() -> None:
        raise KeyboardInterrupt

    pod.time.on_step[at] = die
    with pytest.raises(KeyboardInterrupt), pod.context() as task:
        task.submit_once("load", system, REQUEST)
    pod.api.jobs.next_attempt(**end)


def a_submission() -> Submission:
    """Of somebody else."""
    return Submission("t-0", REQUEST, "load", 1, "demo", "load")


def asked(pod: Pod) -> list[httpx.Request]:
    return [request for request in pod.api.requests if request.url.path == INTENT]


def agains(pod: Pod) -> list[Any]:
    """On which grounds was asked, each time."""
    return [body.get("again") for body in pod.api.bodies(INTENT)]


class TestTheFirstTime:
    def test_the_intent_is_stored_before_the_job_is_submitted_and_its_handle_before_it_is_watched(
        self, pod: Pod, system: System
    ) -> None:
        system.before_submit = [lambda: seen.append(pod.api.jobs.record())]
        system.before_status = [lambda: seen.append(pod.api.jobs.record())]
        seen: list[Any] = []

        job = submit(pod, system)

        assert [record.state for record in seen] == [JobState.INTENDED, JobState.ACTIVE]
        assert [record.handle for record in seen] == [None, "job-1"]
        assert (job.key, job.generation, job.handle, job.url) == ("load", 1, "job-1", "https://thing.test")
        assert job.state is JobState.SUCCEEDED
        assert job.token == pod.api.jobs.record().token
        assert pod.time.steps == [
            *("before-intent", "after-intent", "before-submit", "after-submit", "after-handle"),
            *("watching", "watching", "before-outcome", "after-outcome"),
        ]

    def test_the_adapter_gets_the_token_and_the_request_as_it_was_given(self, pod: Pod, system: System) -> None:
        job = submit(pod, system)
        [submission] = system.submissions
        assert (submission.token, submission.request) == (job.token, REQUEST)
        assert (submission.key, submission.generation) == ("load", 1)
        assert (submission.namespace, submission.taskrun) == ("demo", "load")

    def test_the_state_api_learns_how_long_the_token_counts_who_asks_and_what_for(self, pod: Pod) -> None:
        system = System(Capabilities(token=SubmissionToken(timedelta(seconds=90.7))))
        submit(pod, system, detached=True)
        [asked] = pod.api.bodies(INTENT)
        assert asked.pop("submitter")
        assert asked == {
            "adapter": "thing",
            "digest": system.digest(REQUEST),
            "tokenSeconds": 90,
            "detached": True,
            "fieldDigests": {name: system.digest(value)[:8] for name, value in REQUEST.items()},
        }

    def test_state_api_is_not_told_a_lifetime_of_a_token_that_ends_with_the_job(self, pod: Pod) -> None:
        system = System(Capabilities(token=SubmissionToken(timedelta(days=1), while_open=True)))
        submit(pod, system)
        assert "tokenSeconds" not in pod.api.bodies(INTENT)[0]

    def test_each_key_has_a_job_of_its_own(self, pod: Pod, system: System) -> None:
        with pod.context() as task:
            handles = [task.submit_once(key, system, REQUEST, detached=True).handle for key in ("a", "b/c", "..", "é ")]
        assert handles == ["job-1", "job-2", "job-3", "job-4"]
        assert len({submission.token for submission in system.submissions}) == 4

    def test_the_same_key_again_is_the_same_job(self, pod: Pod, system: System) -> None:
        with pod.context() as task:
            first, second = (task.submit_once("load", system, REQUEST) for _ in range(2))
            assert first.handle == second.handle == "job-1"
            assert first.wait() == second.wait() == RESULT
        assert len(system.submissions) == 1

    def test_many_threads_submit_one_key_once(self, pod: Pod, system: System) -> None:
        with pod.context() as task:
            handles: list[str] = []
            threads = [
                threading.Thread(target=lambda: handles.append(task.submit_once("load", system, REQUEST).handle))
                for _ in range(8)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert handles == ["job-1"] * 8
            task.submit_once("load", system, REQUEST).wait()

    @pytest.mark.parametrize("key", ["", "x" * 129, "\ud800", 7])
    def test_a_key_has_1_to_128_characters(self, pod: Pod, system: System, key: Any) -> None:
        with pod.context() as task, pytest.raises(reattach.InvalidKey):
            task.submit_once(key, system, REQUEST)
        assert system.submissions == []

    def test_a_request_that_has_no_digest_is_not_submitted(self, pod: Pod, system: System) -> None:
        with pod.context() as task, pytest.raises(TypeError, match="not JSON serializable"):
            task.submit_once("load", system, {"when": object()})
        assert system.submissions == []

    def test_handle_that_is_an_integer_is_stored_as_text(self, pod: Pod, system: System) -> None:
        system.name_of = lambda number: number
        with pod.context() as task:
            task.submit_once("load", system, REQUEST, detached=True)
        assert pod.api.jobs.record().handle == "1"

    def test_handle_with_control_characters_is_stored_unchanged(self, pod: Pod, system: System) -> None:
        system.name_of = "job\x00\n\x1b[2J-{}".format
        assert submit(pod, system).handle == pod.api.jobs.record().handle == "job\x00\n\x1b[2J-1"

    @pytest.mark.parametrize("url,kept", [(None, None), ("https://x/" + "y" * 1014, "https://x/" + "y" * 1014)])
    def test_a_url_is_kept_if_there_is_one(self, pod: Pod, system: System, url: str | None, kept: str | None) -> None:
        system.url = url
        submit(pod, system)
        assert pod.api.jobs.record().url == kept

    @pytest.mark.parametrize("url", ["https://x/" + "y" * 1015, "https://x/\ud800", "https://x/\n", 5, b"https://x"])
    def test_a_url_that_cant_be_stored_is_no_reason_to_lose_the_handle(
        self, pod: Pod, system: System, url: str
    ) -> None:
        system.url = url
        submit(pod, system)
        assert (pod.api.jobs.record().handle, pod.api.jobs.record().url) == ("job-1", None)


class TestNothingIsSubmittedWithoutAnIntent:
    def test_while_the_state_api_is_away_the_task_waits_and_says_so_and_then_goes_on(
        self, pod: Pod, system: System, caplog: pytest.LogCaptureFixture
    ) -> None:
        with pod.context() as task:
            pod.api.down = REFUSED
            pod.time.at(600, lambda: setattr(pod.api, "down", None))
            system.before_submit = [lambda: submitted_at.append(pod.time.now)]
            submitted_at: list[float] = []
            began = pod.time.now
            task.submit_once("load", system, REQUEST).wait()

        assert submitted_at[0] - began >= 600
        assert len(system.submissions) == 1
        assert "The state API has been unavailable for" in caplog.text
        assert "The state API is available again" in caplog.text

    def test_when_patience_is_over_nothing_was_submitted(self, pod: Pod, system: System) -> None:
        def main(task: reattach.Task) -> None:
            pod.api.down = REFUSED
            task.submit_once("load", system, REQUEST)

        with pytest.raises(reattach.Unavailable):
            pod.context().run(main)
        assert system.submissions == []

    @pytest.mark.parametrize(
        "status,code,error",
        [
            (409, "fenced", reattach.Fenced),
            (409, "closing", reattach.Closing),
            (409, "state-lost", reattach.StateLost),
            (409, "not-open", reattach.Refused),
            (403, "not-a-task-pod", reattach.Refused),
            (501, "not-implemented", reattach.ProtocolError),
            (409, "completed", reattach.AlreadyCompleted),
            (409, "digest-changed", reattach.DigestChanged),
            (409, "job-open", reattach.JobsOpen),
            (413, "state-full", reattach.StateFull),
            (422, "key-invalid", reattach.InvalidKey),
            (400, "invalid", reattach.InvalidCall),
            (409, "something-new", reattach.ProtocolError),
        ],
    )
    def test_a_refusal_is_raised_and_nothing_submitted(
        self, pod: Pod, system: System, status: int, code: str, error: type[BaseException]
    ) -> None:
        def main(task: reattach.Task) -> None:
            # An invalid call is sent again without the digests of the fields.
            pod.api.script = [a_problem(status, code)] * (2 if code == "invalid" else 1)
            task.submit_once("load", system, REQUEST)

        with pytest.raises(error):
            pod.context().run(main)
        assert system.submissions == []

    def test_an_answer_that_was_lost_is_asked_for_again_and_the_job_submitted_once(
        self, pod: Pod, system: System
    ) -> None:
        with pod.context() as task:
            pod.api.lost = 3
            task.submit_once("load", system, REQUEST).wait()
        assert agains(pod) == [None] * 4
        assert len(system.submissions) == 1

    def test_a_process_that_was_frozen_after_the_answer_asks_again_before_it_submits(
        self, pod: Pod, system: System
    ) -> None:
        pod.time.on_step["after-intent"] = lambda: pod.time.sleep(6)
        submit(pod, system)
        assert agains(pod) == [None, None]
        assert len({request.headers["Reattach-Request-Id"] for request in pod.api.requests[1:3]}) == 1
        assert len(system.submissions) == 1

    def test_a_process_that_was_frozen_while_another_attempt_took_over_does_not_submit(
        self, pod: Pod, system: System
    ) -> None:
        def freeze() -> None:
            pod.time.sleep(6)
            pod.api.down = a_problem(409, "fenced")

        pod.time.on_step["after-intent"] = freeze
        with pytest.raises(reattach.Fenced):
            submit(pod, system)
        assert system.submissions == []

    def test_a_state_api_that_is_slow_with_each_answer_does_not_keep_the_job_from_being_submitted(
        self, pod: Pod, system: System
    ) -> None:
        def slow() -> None:
            pod.time.sleep(6)
            pod.time.on_step["after-intent"] = slow

        pod.time.on_step["after-intent"] = slow
        submit(pod, system)
        assert len(system.submissions) == 1
        assert len(agains(pod)) == LATE_RESPONSES_MAX + 1

    def test_but_of_an_answer_that_is_minutes_old_nothing_follows_however_many_were_slow(
        self, pod: Pod, system: System
    ) -> None:
        waits = [*[6.0] * LATE_RESPONSES_MAX, 61.0, 3600.0]

        def slow() -> None:
            pod.time.sleep(waits.pop(0))
            if waits:
                pod.time.on_step["after-intent"] = slow

        pod.time.on_step["after-intent"] = slow
        submit(pod, system)
        assert len(system.submissions) == 1
        assert len(agains(pod)) == LATE_RESPONSES_MAX + 3

    def test_what_an_attempt_was_told_in_another_thread_keeps_it_from_submitting(
        self, pod: Pod, system: System
    ) -> None:
        def main(task: reattach.Task) -> None:
            pod.time.on_step["after-intent"] = lambda: task._client.on_attempt_over(
                reattach.Closing("the run is being ended")
            )
            task.submit_once("load", system, REQUEST)

        with pytest.raises(reattach.Closing):
            pod.context().run(main)
        assert system.submissions == []


class TestStoringTheHandle:
    def test_it_is_stored_however_long_the_state_api_is_away(self, pod: Pod, system: System) -> None:
        def away() -> None:
            pod.api.down = REFUSED
            pod.time.at(3000, lambda: setattr(pod.api, "down", None))

        system.after_submit = [away]
        assert submit(pod, system).handle == "job-1"
        assert len(system.submissions) == 1

    def test_the_log_has_it_before_it_is_stored(
        self, pod: Pod, system: System, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "reattach")
        system.after_submit = [lambda: setattr(pod.api, "down", REFUSED)]
        with pytest.raises(reattach.Unavailable):
            submit(pod, system)
        assert "submitted as job-1" in caplog.text

    def test_where_another_one_is_stored_that_is_the_job_and_the_log_names_the_stray(
        self, pod: Pod, system: System, caplog: pytest.LogCaptureFixture
    ) -> None:
        system.jobs["job-0"] = a_submission()
        system.after_submit = [lambda: pod.api.jobs.change(handle="job-0", state=JobState.ACTIVE)]
        assert submit(pod, system).handle == "job-0"
        assert {*system.asked} == {"job-0"}
        assert pod.api.jobs.record().strays == ("job-2",)
        assert "job-2 may run, and no TaskRun owns it" in caplog.text

    def test_of_a_job_that_a_person_ended_meanwhile_the_outcome_counts(
        self, pod: Pod, system: System, caplog: pytest.LogCaptureFixture
    ) -> None:
        system.after_submit = [lambda: pod.api.jobs.change(state=JobState.FAILED, ended_by_attempt=2)]
        with pytest.raises(reattach.JobFailed):
            submit(pod, system)
        assert "job-1 may run, and no TaskRun owns it" in caplog.text

    def test_a_fenced_attempt_still_reports_the_handle_and_then_ends(self, pod: Pod, system: System) -> None:
        def overtaken() -> None:
            pod.api.jobs.next_attempt(end="Presumed")
            with contextlib.suppress(ValueError), pod.context():
                raise ValueError

        system.after_submit = [overtaken]
        with pytest.raises(reattach.Fenced):
            submit(pod, system)
        record = pod.api.jobs.record()
        assert (record.handle, record.origin) == ("job-1", "Reported")

    def test_a_name_that_existed_is_told_apart(self, pod: Pod, system: System) -> None:
        system.can = Capabilities(NAME)
        an_attempt_dies(pod, system, "after-submit")
        submit(pod, system)
        assert pod.api.jobs.record().origin == "Existed"
        assert pod.api.jobs.state.counts.duplicates_averted == 1
        assert len(system.jobs) == 1


class TestLostSubmissions:
    """`submit` raised something: nobody knows whether there is a job. With and without one."""

    @pytest.fixture(params=["arrived", "did not arrive"])
    def lose(self, request: pytest.FixtureRequest, system: System) -> Callable[[int], None]:
        def lose(times: int) -> None:
            plan = [fails(LostError("timed out"))] * times
            if request.param == "arrived":
                system.after_submit = plan
            else:
                system.before_submit = plan

        return lose

    def test_with_an_enforced_name_it_is_submitted_again(
        self, pod: Pod, system: System, lose: Callable[[int], None], caplog: pytest.LogCaptureFixture
    ) -> None:
        system.can = Capabilities(NAME)
        lose(3)
        assert submit(pod, system).handle == "job-1"
        assert agains(pod) == [None, *[None, Grounds.CLIENT_NAME] * 3]
        assert len(system.jobs) == 1
        assert pod.time.waited[:3] == [1.0, 2.0, 4.0]
        assert "can't be submitted" in caplog.text
        assert "timed out" in caplog.text

    def test_with_a_token_that_counts_it_is_submitted_again(
        self, pod: Pod, system: System, lose: Callable[[int], None]
    ) -> None:
        system.can = Capabilities(token=TOKEN)
        lose(2)
        submit(pod, system)
        assert agains(pod) == [None, *[None, Grounds.TOKEN] * 2]
        assert len(system.jobs) == 1

    def test_when_the_token_is_over_a_person_is_asked(
        self, pod: Pod, system: System, lose: Callable[[int], None]
    ) -> None:
        system.can = Capabilities(token=SubmissionToken(timedelta(minutes=5)))
        lose(1000)
        with pytest.raises(reattach.Held):
            submit(pod, system)
        # As often as there was room for the request and the margin, and not once more.
        assert 265 - 60 <= pod.time.now - pod.time.start <= 265 + 60
        assert pod.api.jobs.record().held

    @pytest.mark.parametrize("can", [Capabilities(ClientName(timedelta(minutes=5))), Capabilities(token=TOKEN)])
    def test_when_it_is_too_late_the_adapter_is_told_before_the_request_leaves(
        self, pod: Pod, system: System, lose: Callable[[int], None], can: Capabilities
    ) -> None:
        """The process was frozen within the adapter, with its request about to leave."""
        system.can = can
        lose(1)

        def freeze() -> None:
            asked = system.submissions[-1]
            told.append(asked.may_leave())
            pod.time.now += timedelta(hours=2).total_seconds()
            told.append(asked.may_leave())
            raise Rejected("it was not sent", retriable=True)

        told: list[bool] = []
        system.before_submit = [*(system.before_submit or [lambda: None]), freeze]
        with pytest.raises(reattach.Held):
            submit(pod, system)
        assert told == [True, False]
        assert len(system.submissions) == 2
        assert pod.api.jobs.record().held

    def test_also_of_the_first_submission_since_another_attempt_may_have_made_the_job_meanwhile(
        self, pod: Pod, system: System
    ) -> None:
        """And its name have been forgotten."""

        def freeze() -> None:
            asked = system.submissions[-1]
            told.append(asked.may_leave())
            pod.time.now += STALE_SECONDS + 1
            told.append(asked.may_leave())
            raise Rejected("it was not sent", retriable=True)

        told: list[bool] = []
        system.before_submit = [freeze]
        submit(pod, system)
        assert told == [True, False]
        assert agains(pod) == [None, None]
        assert len(system.jobs) == 1

    def test_a_state_api_that_was_away_does_not_use_up_the_time_of_the_token(self, pod: Pod, system: System) -> None:
        system.can = Capabilities(token=SubmissionToken(timedelta(minutes=10)))
        an_attempt_dies(pod, system, "after-submit")

        def outage() -> None:
            pod.api.down = REFUSED
            pod.time.at(400, lambda: setattr(pod.api, "down", None))

        pod.time.on_step["before-intent"] = outage
        submit(pod, system)
        assert agains(pod)[-2:] == [None, Grounds.TOKEN]
        assert len(system.jobs) == 1

    def test_with_a_look_up_it_is_found_or_submitted_again_once_it_would_be_found(
        self, pod: Pod, system: System, lose: Callable[[int], None], caplog: pytest.LogCaptureFixture
    ) -> None:
        system.can = Capabilities(look_up=LOOK_UP)
        lose(1)
        assert submit(pod, system).handle == "job-1"
        assert len(system.jobs) == 1
        arrived = pod.api.jobs.record().origin == "Found"
        assert len(system.submissions) == (1 if arrived else 2)
        assert ("looked up again until it is found, for at most 65 s" in caplog.text) is not arrived
        # Every few seconds, although only the last lookup can prove that there is no job.
        assert system.look_ups == 1 if arrived else 7 <= system.look_ups <= 12

    def test_a_look_up_that_lags_is_waited_for(self, pod: Pod, system: System) -> None:
        system.can = Capabilities(look_up=LOOK_UP)
        system.after_submit = [fails(LostError())]
        system.hidden_for = 1
        submit(pod, system)
        assert pod.api.jobs.record().origin == "Found"
        assert len(system.jobs) == 1

    def test_lost_response_is_followed_by_lookups_that_find_the_job_within_seconds(
        self, pod: Pod, system: System
    ) -> None:
        system.can = Capabilities(look_up=Lookup(timedelta(hours=1)))
        system.after_submit = [fails(LostError())]
        start, found = pod.time.now, list[float]()
        pod.time.at(20, lambda: setattr(system, "hidden_for", 0))
        system.hidden_for = 1_000_000
        pod.time.on_step["after-handle"] = lambda: found.append(pod.time.now)
        submit(pod, system)
        assert len(system.jobs) == 1
        assert 20 <= found[0] - start <= 20 + LOOK_UP_SECONDS_MAX

    @pytest.mark.usefixtures("lose")
    def test_where_nothing_can_tell_a_person_is_asked(
        self, pod: Pod, system: System, lose: Callable[[int], None]
    ) -> None:
        lose(1)
        with pytest.raises(reattach.Held, match="reattach resolve NAME") as raised:
            submit(pod, system)
        assert raised.value.code == 85
        assert len(system.submissions) == 1
        record = pod.api.jobs.record()
        assert (record.held, record.holds, record.state) == (True, 1, JobState.INTENDED)
        assert "no way to find out" in record.message
        assert pod.message()["kind"] == "Held"
        assert "no way to find out" in pod.message()["message"]

    def test_or_the_run_fails(self, pod: Pod, system: System, lose: Callable[[int], None]) -> None:
        pod.api.jobs.rules(on_unknown="Fail")
        lose(1)
        with pytest.raises(reattach.PermanentFailure, match="no way to find out"):
            submit(pod, system)
        assert pod.api.jobs.record().state is JobState.FAILED
        assert pod.message()["kind"] == "Permanent"

    def test_and_still_does_if_the_attempt_that_gave_it_up_is_gone_before_it_could_say_so(
        self, pod: Pod, system: System, lose: Callable[[int], None]
    ) -> None:
        pod.api.jobs.rules(on_unknown="Fail")
        lose(1)
        an_attempt_dies(pod, system, "after-outcome")
        for _ in range(2):  # each of these was charged, as one whose word is lost again would be
            with pytest.raises(reattach.PermanentFailure, match="no way to find out"):
                submit(pod, system)
            pod.api.jobs.next_attempt(charged_to="application")
        assert len(system.submissions) == 1

    def test_or_it_is_submitted_again_by_policy(self, pod: Pod, system: System, lose: Callable[[int], None]) -> None:
        pod.api.jobs.rules(on_unknown="Resubmit")
        lose(1)
        submit(pod, system)
        assert agains(pod) == [None, None, Grounds.POLICY]
        assert len(system.submissions) == 2

    def test_what_ends_the_process_passes(self, pod: Pod, system: System) -> None:
        for error in (SystemExit(3), KeyboardInterrupt(), reattach.Unavailable("elsewhere")):
            system.before_submit = [fails(error)]
            with pytest.raises(type(error)), pod.context() as task:
                task.submit_once("load", system, REQUEST)
            pod.api.jobs.next_attempt()
            pod.api.jobs.state = type(pod.api.jobs.state)()


def fail_after(times: list[float], pod: Pod) -> None:
    """Fail with `retry_after`, and record the time."""
    times.append(pod.time.now)
    raise CallError("503 busy", retry_after=100)


class TestRefusedSubmissions:
    """`submit` raised `Rejected`: there surely is no job of this submission."""

    def test_for_good_is_a_failed_job(self, pod: Pod, system: System) -> None:
        system.before_submit = [fails(Rejected("no such queue"))]
        with pytest.raises(reattach.JobFailed, match="no such queue") as raised:
            submit(pod, system)
        assert (raised.value.key, raised.value.generation, raised.value.handle) == ("load", 1, None)
        record = pod.api.jobs.record()
        assert (record.state, record.message) == (JobState.FAILED, "no such queue")
        assert pod.message()["kind"] == "Failed"

    def test_for_now_is_tried_again_with_the_same_right(
        self, pod: Pod, system: System, caplog: pytest.LogCaptureFixture
    ) -> None:
        system.before_submit = [fails(Rejected("quota", retriable=True))] * 20
        submit(pod, system)
        assert len(system.submissions) == 21
        assert len(system.jobs) == 1
        assert agains(pod) == [None] * 21  # the same question each time
        assert len({request.headers["Reattach-Request-Id"] for request in asked(pod)}) == 1
        assert 4 < len([record for record in caplog.records if "can't be submitted" in record.getMessage()]) < 20

    def test_retry_after_delays_the_next_submission(self, pod: Pod, system: System) -> None:
        times: list[float] = []

        def refuse() -> None:
            times.append(pod.time.now)
            raise Rejected("busy", retriable=True, retry_after=100)

        system.before_submit = [refuse, refuse, refuse]
        submit(pod, system)
        assert all(100 <= later - earlier < 110 for earlier, later in itertools.pairwise(times))

    def test_retry_after_delays_the_lookup_of_a_lost_submission(self, pod: Pod, system: System) -> None:
        system.can = Capabilities(look_up=LOOK_UP)
        times: list[float] = []
        system.after_submit = [lambda: fail_after(times, pod)]
        system.before_look_up = [lambda: fail_after(times, pod), lambda: times.append(pod.time.now)]
        submit(pod, system)
        assert len(system.jobs) == 1
        assert [100 <= later - earlier < 110 for earlier, later in itertools.pairwise(times)] == [True, True]

    def test_credentials_refused_for_an_hour_end_the_attempt_and_not_the_job(self, pod: Pod, system: System) -> None:
        system.before_submit = [fails(Rejected("401 expired", credentials=True))] * 1000
        start = pod.time.now
        with pytest.raises(reattach.CredentialsRefused, match="401 expired") as raised:
            submit(pod, system)
        assert raised.value.code == 83
        assert CREDENTIALS_SECONDS <= pod.time.now - start <= CREDENTIALS_SECONDS + WAIT_SECONDS_MAX
        assert 60 <= len(system.submissions) <= 150
        assert pod.api.jobs.record().state is JobState.INTENDED
        assert (pod.message()["kind"], pod.message()["credentialsRefused"]) == ("Unavailable", True)

    def test_credentials_that_are_replaced_in_time_are_used(self, pod: Pod, system: System) -> None:
        refused = fails(Rejected("401 expired", credentials=True))
        # Another response in between shows that the credentials were good.
        system.before_submit = [*[refused] * 50, fails(Rejected("quota", retriable=True)), *[refused] * 50]
        submit(pod, system)
        assert len(system.jobs) == 1
        assert pod.time.now - 1000 > CREDENTIALS_SECONDS

    def test_reason_why_a_submission_has_not_left_is_shown_within_a_minute(self, pod: Pod, system: System) -> None:
        began, shown = pod.time.now, []

        def refuse() -> None:
            raise Rejected("401" if pod.time.now - began < 1000 else "quota", retriable=True)

        system.before_submit = [refuse] * 100
        for seconds in (59, 1999):
            pod.time.at(seconds, lambda: shown.append(pod.api.jobs.record()))
        pod.time.at(2000, system.before_submit.clear)
        submit(pod, system)
        assert [record.message for record in shown] == ["It can't be submitted: 401", "It can't be submitted: quota"]
        assert {record.state for record in shown} == {JobState.INTENDED}
        assert [body["state"] for body in pod.api.bodies(OUTCOME)] == ["Unknown", "Unknown", "Succeeded"]
        assert pod.api.jobs.record().message == ""

    def test_wait_for_a_job_that_is_not_found_is_shown_within_a_minute(self, pod: Pod, system: System) -> None:
        system.can = Capabilities(look_up=dataclasses.replace(LOOK_UP, settling=timedelta(minutes=5)))
        an_attempt_dies(pod, system, "before-submit")
        shown: list[str] = []
        pod.time.at(59, lambda: shown.append(pod.api.jobs.record().message))
        submit(pod, system)
        assert [text.partition(" until ")[0] for text in shown] == [
            "It may have been submitted, and is not found. Lookups go on"
        ]
        assert [body["state"] for body in pod.api.bodies(OUTCOME)] == ["Unknown", "Succeeded"]

    def test_reason_why_a_job_is_not_looked_up_is_shown_within_a_minute(self, pod: Pod, system: System) -> None:
        system.can = Capabilities(look_up=LOOK_UP)
        an_attempt_dies(pod, system, "after-submit")
        shown: list[str] = []
        system.before_look_up = [fails(LostError("503"))] * 100
        pod.time.at(59, lambda: shown.append(pod.api.jobs.record().message))
        pod.time.at(600, system.before_look_up.clear)
        submit(pod, system)
        assert shown == ["It can't be looked up: LostError: 503"]
        assert pod.api.jobs.record().message == ""

    def test_state_api_that_does_not_know_digests_of_fields_gets_the_intent_without_them(
        self, pod: Pod, system: System
    ) -> None:
        known, refused = pod.api.jobs.respond, []

        def respond(request: httpx.Request, path: str) -> httpx.Response:
            if path.endswith("/intent") and "fieldDigests" in json.loads(request.content):
                refused.append(request)
                return a_problem(400, "invalid", "unknown field fieldDigests")
            return known(request, path)

        pod.api.jobs.respond = respond  # type: ignore[method-assign]
        submit(pod, system)
        assert (len(system.jobs), len(refused)) == (1, 1)

    def test_state_api_that_does_not_know_the_report_of_a_reason_changes_nothing(
        self, pod: Pod, system: System
    ) -> None:
        known, refused = pod.api.jobs.respond, []

        def respond(request: httpx.Request, path: str) -> httpx.Response:
            if path == OUTCOME and json.loads(request.content)["state"] == "Unknown":
                refused.append(request)
                return a_problem(400, "invalid", "a job must have a handle to be Unknown")
            return known(request, path)

        pod.api.jobs.respond = respond  # type: ignore[method-assign]
        system.before_submit = [fails(Rejected("401", retriable=True))] * 20
        submit(pod, system)
        assert len(system.jobs) == 1
        assert 0 < len(refused) <= 20

    def test_for_now_ends_when_the_attempt_must(self, pod: Pod, system: System) -> None:
        system.before_submit = [fails(Rejected("quota", retriable=True))] * 1000
        pod.time.at(1000, lambda: setattr(pod.api, "down", a_problem(409, "closing")))
        with pytest.raises(reattach.Closing):
            submit(pod, system)
        assert len(system.submissions) < 40

    def test_of_a_repeated_submission_says_nothing_about_the_one_before(self, pod: Pod, system: System) -> None:
        for can in (Capabilities(NAME), Capabilities(token=TOKEN)):
            system.can = can
            an_attempt_dies(pod, system, "after-submit")
            system.before_submit = [fails(Rejected("no such queue"))]
            with pytest.raises(reattach.Held):
                submit(pod, system)
            assert pod.api.jobs.record().state is JobState.INTENDED
            pod.api.jobs.state = type(pod.api.jobs.state)()
            pod.api.jobs.next_attempt()

    def test_unless_the_one_before_is_surely_absent(self, pod: Pod, system: System) -> None:
        system.can = Capabilities(look_up=LOOK_UP)
        an_attempt_dies(pod, system, "before-submit")
        system.before_submit = [fails(Rejected("no such queue"))]
        with pytest.raises(reattach.JobFailed):
            submit(pod, system)

    def test_for_now_until_the_grounds_are_gone(self, pod: Pod, system: System) -> None:
        system.can = Capabilities(token=SubmissionToken(timedelta(minutes=5)))
        an_attempt_dies(pod, system, "after-submit")
        system.before_submit = [fails(Rejected("quota", retriable=True))] * 1000
        with pytest.raises(reattach.Held):
            submit(pod, system)
        assert len(system.jobs) == 1

    def test_the_message_is_cut_as_the_state_api_cuts_it(self, pod: Pod, system: System) -> None:
        system.before_submit = [fails(Rejected("é" * 2000))]
        with pytest.raises(reattach.JobFailed) as raised:
            submit(pod, system)
        assert raised.value.message == pod.api.jobs.record().message == "é" * 256

    def test_a_refused_job_reads_the_same_when_it_is_found_over(self, pod: Pod, system: System) -> None:
        system.before_submit = [fails(Rejected("no such queue"))]
        errors = []
        for _ in range(2):
            with pytest.raises(reattach.JobFailed) as raised:
                pod.context().run(lambda task: task.submit_once("load", system, REQUEST))
            errors.append(raised.value)
            pod.api.jobs.next_attempt(charged_to="disruption")
        assert vars(errors[0]) == vars(errors[1])
        assert str(errors[0]) == str(errors[1])
        assert len(system.submissions) == 1

    def test_one_that_was_settled_meanwhile_is_asked_about_again(self, pod: Pod, system: System) -> None:
        system.before_submit = [fails(Rejected("no such queue"))]
        pod.time.on_step["before-outcome"] = lambda: pod.api.jobs.change(
            state=JobState.CANCELLED, handle="job-0", ended_by_attempt=2
        )
        with pytest.raises(reattach.JobFailed, match="was cancelled"):
            submit(pod, system)


class TestTheNextAttempt:
    """What it does about an intent that it finds, by where the attempt before it died."""

    ABLE = {  # noqa: RUF012 -- read only
        "name": Capabilities(NAME),
        "token": Capabilities(token=TOKEN),
        "look-up": Capabilities(look_up=LOOK_UP),
        "all": Capabilities(NAME, TOKEN, LOOK_UP),
    }

    @pytest.mark.parametrize("can", ABLE)
    @pytest.mark.parametrize("at", ["before-intent", "after-intent", "before-submit", "after-submit", "after-handle"])
    def test_there_is_one_job(self, pod: Pod, system: System, can: str, at: str) -> None:
        system.can = self.ABLE[can]
        an_attempt_dies(pod, system, at)
        assert submit(pod, system).handle == "job-1"
        assert len(system.jobs) == 1
        assert pod.api.jobs.record().state is JobState.SUCCEEDED

    @pytest.mark.parametrize("at", ["after-intent", "before-submit", "after-submit"])
    def test_or_a_person_is_asked(self, pod: Pod, system: System, at: str) -> None:
        an_attempt_dies(pod, system, at)
        with pytest.raises(reattach.Held):
            submit(pod, system)
        assert len(system.jobs) <= 1

    @pytest.mark.parametrize("can", ["token", "look-up"])
    def test_one_that_may_still_submit_is_not_overtaken(self, pod: Pod, system: System, can: str) -> None:
        system.can = self.ABLE[can]
        an_attempt_dies(pod, system, "before-submit", end="Presumed")
        with pytest.raises(reattach.Held, match="may still submit it"):
            submit(pod, system)
        assert system.jobs == {}

    def test_a_replica_whose_clock_is_ahead_does_not_shorten_the_time_in_which_it_settles(
        self, pod: Pod, system: System
    ) -> None:
        system.can = Capabilities(look_up=LOOK_UP)
        an_attempt_dies(pod, system, "after-submit")
        system.hidden_for = 1
        with pod.context() as task:
            right = pod.api.jobs.clock
            pod.api.jobs.clock = lambda: right() + timedelta(minutes=5)
            task.submit_once("load", system, REQUEST).wait()
        assert (len(system.jobs), pod.api.jobs.record().origin) == (1, "Found")

    def test_it_reattaches_to_what_is_recorded(
        self, pod: Pod, system: System, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "reattach")
        an_attempt_dies(pod, system, "after-handle")
        assert submit(pod, system).handle == "job-1"
        assert len(system.submissions) == 1
        assert pod.api.jobs.state.counts.reattachments == 1
        assert "Reattached to external job 'load' (generation 1): job-1" in caplog.text

    @pytest.mark.parametrize("at", ["after-submit", "after-handle"])
    def test_another_request_holds_the_run_with_its_job_and_submits_nothing(
        self, pod: Pod, system: System, at: str
    ) -> None:
        an_attempt_dies(pod, system, at)
        with (
            pytest.raises(reattach.Held, match="another request, which differs in 'entrypoint'"),
            pod.context() as task,
        ):
            task.submit_once("load", system, {"entrypoint": "another"})
        record = pod.api.jobs.record()
        assert (record.held, record.is_over, len(system.submissions)) == (True, False, 1)
        assert pod.message()["kind"] == "Held"
        assert ("--adopt job-1 takes" in pod.message()["message"]) == (at == "after-handle")
        pod.api.jobs.resolve("Adopt", "job-1")
        pod.api.jobs.next_attempt()
        with pod.context() as task:
            assert task.submit_once("load", system, {"entrypoint": "another"}).wait() == RESULT
        assert len(system.submissions) == 1

    def test_another_request_by_the_same_process_fails_the_run_because_its_code_is_wrong(
        self, pod: Pod, system: System
    ) -> None:
        def main(task: reattach.Task) -> None:
            task.submit_once("load", system, REQUEST)
            task.submit_once("load", system, {"entrypoint": "another"})

        with pytest.raises(reattach.DigestChanged):
            pod.context().run(main)
        assert (pod.message()["kind"], len(system.submissions)) == ("Permanent", 1)

    def test_another_request_after_the_job_succeeded_fails_the_run(self, pod: Pod, system: System) -> None:
        with contextlib.suppress(RuntimeError), pod.context() as task:
            task.submit_once("load", system, REQUEST).wait()
            raise RuntimeError
        pod.api.jobs.next_attempt()
        with pytest.raises(reattach.DigestChanged, match="Only to submit a second job"), pod.context() as task:
            task.submit_once("load", system, {"entrypoint": "another"})
        assert pod.message()["kind"] == "Permanent"

    def test_job_that_ends_while_the_run_is_being_held_decides(self, pod: Pod, system: System) -> None:
        an_attempt_dies(pod, system, "after-handle")
        ended = {"state": JobState.FAILED, "message": "no disk", "ended_by_attempt": 1}
        pod.time.on_step["before-outcome"] = lambda: pod.api.jobs.change(**ended)
        with pytest.raises(reattach.JobFailed), pod.context() as task:
            task.submit_once("load", system, {"entrypoint": "another"}).wait()

    @pytest.mark.parametrize("request_", ["text", {"x" * 41: 1, "é": 2, "": 3}, [1]])
    def test_fields_that_can_not_be_named_are_left_out(self, pod: Pod, system: System, request_: Any) -> None:
        with pod.context() as task:
            task.submit_once("load", system, request_, detached=True)
        assert "fieldDigests" not in pod.api.bodies(INTENT)[0]

    @pytest.mark.parametrize("failure", [LostError("503"), TimeoutError(), OSError("no route"), ValueError("no JSON")])
    def test_a_look_up_that_fails_is_asked_again(
        self, pod: Pod, system: System, failure: Exception, caplog: pytest.LogCaptureFixture
    ) -> None:
        system.can = Capabilities(look_up=LOOK_UP)
        an_attempt_dies(pod, system, "after-submit")
        system.before_look_up = [fails(failure)] * 20
        assert submit(pod, system).handle == "job-1"
        assert system.look_ups == 21
        assert "can't be looked up" in caplog.text
        assert "can't be looked up: over, after" in caplog.text

    @pytest.mark.parametrize("can", ABLE)
    @pytest.mark.parametrize("at", ["after-intent", "after-submit"])
    def test_while_nobody_can_tell_what_is_promised_it_waits_and_no_person_is_asked(
        self, pod: Pod, system: System, can: str, at: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        system.can = self.ABLE[can]
        an_attempt_dies(pod, system, at)
        # The first is asked when the intent is read, and is no reason to wait.
        system.before_capabilities = [lambda: None] + [fails(LostError("503"))] * 9
        assert submit(pod, system).handle == "job-1"
        assert len(system.jobs) == 1
        assert "can't be submitted, for" in caplog.text

    def test_a_job_that_is_over_is_told_of_whatever_is_promised_now(self, pod: Pod, system: System) -> None:
        assert submit(pod, system).handle == "job-1"
        system.before_capabilities = [fails(LostError("503"))] * 100
        assert submit(pod, system).wait() == RESULT

    def test_a_look_up_that_is_declared_and_not_there_is_the_adapters_mistake(self, pod: Pod, system: System) -> None:
        system.can = Capabilities(look_up=LOOK_UP)
        an_attempt_dies(pod, system, "after-submit")
        system.before_look_up = [fails(NotImplementedError("declares a look-up"))]
        with pytest.raises(NotImplementedError, match="declares a look-up"):
            submit(pod, system)

    def test_a_state_api_that_knows_better_is_believed(self, pod: Pod, system: System) -> None:
        system.can = Capabilities(token=TOKEN)
        an_attempt_dies(pod, system, "after-submit")
        refusal = a_problem(409, "grounds-refused", "grounds Token require a token that is still valid")

        def main(task: reattach.Task) -> None:
            pod.time.on_step["before-intent"] = lambda: pod.time.on_step.update(
                {"before-intent": lambda: pod.api.script.append(refusal)}
            )
            task.submit_once("load", system, REQUEST)

        with pytest.raises(reattach.Held):
            pod.context().run(main)
        assert len(system.submissions) == 1


class TestTwoProcessesOfOneAttempt:
    """One has begun to submit, and a child of it or its parent comes with the same key."""

    @staticmethod
    def one_has_submitted(pod: Pod, system: System) -> None:
        """And is busy, before it has stored the handle."""

        def busy() -> None:
            raise KeyboardInterrupt

        child = dataclasses.replace(pod.settings, session=pod.environment[ENV_SESSION])
        pod.time.on_step["after-submit"] = busy
        with pytest.raises(KeyboardInterrupt), pod.context(child) as task:
            task.submit_once("load", system, REQUEST)

    @pytest.mark.parametrize("on_unknown", ["Hold", "Fail", "Resubmit"])
    def test_the_other_one_is_about_to_store_the_handle_and_is_waited_for(
        self, pod: Pod, system: System, on_unknown: str
    ) -> None:
        pod.api.jobs.rules(on_unknown=on_unknown)
        with pod.context() as task:
            self.one_has_submitted(pod, system)
            pod.time.at(12, lambda: pod.api.jobs.change(handle="job-1", state=JobState.ACTIVE))
            job = task.submit_once("load", system, REQUEST)
            assert (job.handle, job.wait()) == ("job-1", RESULT)
        assert len(system.submissions) == 1

    def test_or_its_job_is_found_meanwhile(self, pod: Pod, system: System) -> None:
        system.can = Capabilities(look_up=LOOK_UP)
        system.hidden_for = 2
        with pod.context() as task:
            self.one_has_submitted(pod, system)
            assert task.submit_once("load", system, REQUEST).wait() == RESULT
        assert pod.api.jobs.record().origin == "Found"
        assert len(system.submissions) == 1

    @pytest.mark.parametrize("on_unknown", ["Hold", "Fail", "Resubmit"])
    def test_if_it_never_does_the_attempt_ends_and_the_next_one_knows_that_it_is_over(
        self, pod: Pod, system: System, on_unknown: str
    ) -> None:
        system.can = Capabilities(token=TOKEN)
        pod.api.jobs.rules(on_unknown=on_unknown)

        def main(task: reattach.Task) -> None:
            self.one_has_submitted(pod, system)
            task.submit_once("load", system, REQUEST)

        with pytest.raises(reattach.Unavailable, match="another process of this attempt"):
            pod.context().run(main)
        assert 35 < pod.time.now - pod.time.start <= 40
        assert pod.message()["kind"] == "Unavailable"
        record = pod.api.jobs.record()
        assert (record.state, record.held) == (JobState.INTENDED, False)
        pod.api.jobs.next_attempt()
        assert submit(pod, system).handle == "job-1"
        assert len(system.jobs) == 1


HANDLES = ["", "x" * 1025, '"' * 600, True, 1.5, None, ("a", "b"), "job-\ud800", "\ud800" * 2000]


class TestHandlesThatCantBeStored:
    """The job exists, so the run is held, and no attempt submits it again by itself."""

    @pytest.mark.parametrize("handle", HANDLES, ids=lambda handle: f"{handle!r:.12}")
    def test_run_is_held_and_can_be_adopted(
        self, pod: Pod, system: System, handle: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        system.name_of = lambda _: handle
        with pytest.raises(reattach.Held, match="a handle must be a string of 1 to 1024 bytes"):
            submit(pod, system)
        record = pod.api.jobs.record()
        assert (record.held, record.handle, record.state) == (True, None, JobState.INTENDED)
        assert "--resubmit makes a second job" in record.message
        assert any(f"submitted as {Submitted(handle, url=system.url)!r}" in line for line in caplog.messages)
        pod.api.jobs.next_attempt()
        pod.api.jobs.resolve("Adopt", "job-1")
        system.jobs["job-1"] = a_submission()
        assert submit(pod, system).handle == "job-1"
        assert len(system.submissions) == 1

    @pytest.mark.parametrize("policy", ["Hold", "Fail", "Resubmit"])
    def test_policy_does_not_submit_it_again(self, pod: Pod, system: System, policy: Any) -> None:
        pod.api.jobs.rules(on_unknown=policy)
        system.name_of = lambda _: "x" * 5000
        for _ in range(3):
            with pytest.raises(reattach.Held):
                submit(pod, system)
            pod.api.jobs.next_attempt()
        assert (len(system.submissions), pod.api.jobs.record().holds) == (1, 1)

    def test_message_has_its_beginning_and_its_hash(self, pod: Pod, system: System) -> None:
        handle = "arn:aws:" + "x" * 3000
        system.name_of = lambda _: handle
        with pytest.raises(reattach.Held):
            submit(pod, system)
        digest = hashlib.sha256(handle.encode()).hexdigest()
        assert f"3008 bytes that begin with 'arn:aws:{'x' * 51} (SHA-256 {digest})" in pod.api.jobs.record().message

    @pytest.mark.parametrize("returned", [None, "job-1", {"id": "job-1"}])
    def test_submission_that_returns_something_else_is_held_too(self, pod: Pod, system: System, returned: Any) -> None:
        system.submit = lambda _: returned  # type: ignore[method-assign,assignment]
        with pytest.raises(reattach.Held, match=r"System\.submit must return Submitted, not"):
            submit(pod, system)
        assert pod.api.jobs.record().held

    def test_handle_that_a_lookup_finds_is_held_too(self, pod: Pod, system: System) -> None:
        system.can = Capabilities(look_up=LOOK_UP)
        system.name_of = lambda _: "x" * 5000
        an_attempt_dies(pod, system, "after-submit")
        with pytest.raises(reattach.Held, match="a handle must be"):
            submit(pod, system)
        assert len(system.submissions) == 1

    @pytest.mark.parametrize("found", ["job-1", False, []])
    def test_lookup_that_returns_something_else_is_no_evidence_of_absence(
        self, pod: Pod, system: System, found: Any
    ) -> None:
        system.can = Capabilities(look_up=LOOK_UP)
        an_attempt_dies(pod, system, "after-submit")
        system.look_up = lambda _: found  # type: ignore[method-assign,assignment]
        with pytest.raises(TypeError, match=r"look_up must return Submitted or None"):
            submit(pod, system)
        assert len(system.submissions) == 1

    def test_handle_that_another_process_stored_meanwhile_counts(self, pod: Pod, system: System) -> None:
        system.name_of = lambda _: "x" * 5000
        pod.time.on_step["before-outcome"] = lambda: pod.api.jobs.change(handle="job-1", state=JobState.ACTIVE)
        system.jobs["job-1"] = a_submission()
        assert submit(pod, system).handle == "job-1"


class TestHolds:
    def test_what_is_held_stays_held_until_a_person_answers(self, pod: Pod, system: System) -> None:
        an_attempt_dies(pod, system, "after-submit")
        for _ in range(3):
            with pytest.raises(reattach.Held):
                submit(pod, system)
            pod.api.jobs.next_attempt()
        assert pod.api.jobs.record().holds == 1

    def held(self, pod: Pod, system: System) -> None:
        an_attempt_dies(pod, system, "after-submit")
        with pytest.raises(reattach.Held):
            submit(pod, system)
        pod.api.jobs.next_attempt()

    def test_adopt(self, pod: Pod, system: System) -> None:
        self.held(pod, system)
        pod.api.jobs.resolve("Adopt", "job-1")
        assert submit(pod, system).handle == "job-1"
        assert len(system.submissions) == 1

    def test_resubmit(self, pod: Pod, system: System) -> None:
        self.held(pod, system)
        pod.api.jobs.resolve("Resubmit")
        assert submit(pod, system).handle == "job-2"
        assert len({submission.token for submission in system.submissions}) == 1

    def test_fail(self, pod: Pod, system: System) -> None:
        self.held(pod, system)
        pod.api.jobs.resolve("Fail")
        with pytest.raises(reattach.JobFailed, match=r"failed by spec\.resolutions"):
            submit(pod, system)
        assert len(system.submissions) == 1

    def test_each_hold_has_an_answer_of_its_own(self, pod: Pod, system: System) -> None:
        self.held(pod, system)
        pod.api.jobs.resolve("Resubmit")
        system.after_submit = [fails(LostError())]
        with pytest.raises(reattach.Held):
            submit(pod, system)
        assert pod.api.jobs.record().holds == 2

    def test_a_handle_that_is_reported_while_a_person_is_about_to_be_asked_is_taken(
        self, pod: Pod, system: System
    ) -> None:
        an_attempt_dies(pod, system, "after-submit")
        pod.time.on_step["before-outcome"] = lambda: pod.api.jobs.change(handle="job-1", state=JobState.ACTIVE)
        assert submit(pod, system).handle == "job-1"

    def test_a_hold_that_is_refused_for_another_reason_is_no_endless_loop(self, pod: Pod, system: System) -> None:
        def refuse() -> None:
            pod.api.script.append(a_problem(400, "invalid", "no"))
            pod.time.on_step["before-outcome"] = refuse

        an_attempt_dies(pod, system, "after-submit")
        pod.time.on_step["before-outcome"] = refuse
        with pytest.raises(reattach.InvalidCall):
            submit(pod, system)

    def test_a_process_that_catches_it_is_ended_and_no_success(self, pod: Pod, system: System) -> None:
        system.after_submit = [fails(LostError())]

        def main(task: reattach.Task) -> str:
            try:
                task.submit_once("load", system, REQUEST)
            except BaseException:  # noqa: BLE001
                return "as if nothing had happened"
            return "not reached"

        with pytest.raises(reattach.Held):
            pod.context().run(main)
        assert pod.api.completed == []
        for thread in threading.enumerate():
            if isinstance(thread, threading.Timer):
                thread.join(5)
        assert pod.ended == [85]


class TestSigterm:
    """Eviction detaches: the job is never cancelled, and what is between submitting and storing is finished."""

    @staticmethod
    def sigterm() -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    def run(self, pod: Pod, system: System) -> None:
        with pytest.raises(reattach.Terminated):
            submit(pod, system)
        assert pod.api.completed == []
        assert system.cancelled == []
        assert pod.message()["message"] == "Terminated: SIGTERM: the pod is being stopped"

    @pytest.mark.parametrize("at", ["after-intent", "before-submit", "after-submit"])
    def test_a_submission_that_has_begun_is_finished_and_its_handle_stored(
        self, pod: Pod, system: System, at: str
    ) -> None:
        pod.time.on_step[at] = self.sigterm
        self.run(pod, system)
        assert pod.api.jobs.record().handle == "job-1"
        assert system.asked == []

    def test_also_while_the_request_is_under_way(self, pod: Pod, system: System) -> None:
        system.before_submit = [self.sigterm]
        self.run(pod, system)
        assert pod.api.jobs.record().handle == "job-1"

    def test_one_that_has_not_is_not_begun(self, pod: Pod, system: System) -> None:
        def main(task: reattach.Task) -> None:
            pod.api.down = REFUSED
            pod.time.at(20, self.sigterm)
            task.submit_once("load", system, REQUEST)

        with pytest.raises(reattach.Terminated):
            pod.context().run(main)
        assert system.submissions == []
        assert pod.time.now - pod.time.start < 40

    def test_nobody_waits_for_a_refusal_or_a_look_up_then(self, pod: Pod, system: System) -> None:
        system.before_submit = [fails(Rejected("quota", retriable=True))] * 1000
        pod.time.at(100, self.sigterm)
        self.run(pod, system)
        assert pod.time.now - pod.time.start < 200

    def test_while_the_job_runs_it_is_left_alone(self, pod: Pod, system: System) -> None:
        pod.time.on_step["watching"] = self.sigterm
        self.run(pod, system)
        assert pod.api.jobs.record().state is JobState.ACTIVE
        pod.api.jobs.next_attempt()
        assert submit(pod, system).handle == "job-1"
        assert len(system.submissions) == 1

    def test_what_a_thread_submits_is_finished_too(self, pod: Pod, system: System) -> None:
        in_the_loop = threading.Event()

        async def main(task: reattach.Task) -> Any:
            submitting = asyncio.create_task(task.asubmit_once("load", system, REQUEST))
            await asyncio.sleep(0.01)
            in_the_loop.set()
            return await (await submitting).await_()

        system.before_submit = [lambda: self.sigterm() if in_the_loop.wait(30) else None]
        with pytest.raises(reattach.Terminated):
            pod.context().run(main)
        wait_until(lambda: pod.api.jobs.record().handle == "job-1", seconds=30, what="the handle is stored")
        assert pod.api.completed == []


class TestAsync:
    async def test_it_does_the_same(self, pod: Pod, system: System) -> None:
        async with pod.context() as task:
            job = await task.asubmit_once("load", system, REQUEST)
            assert await job.astatus() == Active("half of it")
            await job.acancel()
            assert await job.await_() == RESULT
            again = await task.aresubmit("load", system, REQUEST)
            assert again.generation == 2
            assert await again.await_() == RESULT
        assert system.cancelled == ["job-1"]

    async def test_other_coroutines_go_on_meanwhile(self, pod: Pod, system: System) -> None:
        going_on = threading.Event()
        system.before_submit = [lambda: None if going_on.wait(10) else pytest.fail("nothing else happened")]
        async with pod.context() as task:
            submitting = asyncio.create_task(task.asubmit_once("load", system, REQUEST))
            await asyncio.sleep(0.01)
            going_on.set()
            await (await submitting).await_()

    async def test_a_coroutine_that_is_cancelled_while_it_submits_leaves_nothing_half_done(
        self, pod: Pod, system: System
    ) -> None:
        begun, go_on = threading.Event(), threading.Event()

        def submitting_slowly() -> None:
            begun.set()
            go_on.wait(10)

        system.before_submit = [submitting_slowly]
        async with pod.context() as task:
            submitting = asyncio.create_task(task.asubmit_once("load", system, REQUEST))
            assert await asyncio.to_thread(begun.wait, 10)
            submitting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await submitting
            go_on.set()
            job = await task.asubmit_once("load", system, REQUEST)
            assert job.handle == "job-1"
            await job.await_()
        assert len(system.submissions) == 1

    async def test_what_nobody_waits_for_any_more_is_not_begun(self, pod: Pod, system: System) -> None:
        waiting, go_on = threading.Event(), threading.Event()

        def refuse_slowly() -> None:
            waiting.set()
            go_on.wait(10)
            raise Rejected("full", retriable=True)

        system.before_submit = [refuse_slowly]
        async with pod.context() as task:
            submitting = asyncio.create_task(task.asubmit_once("load", system, REQUEST))
            assert await asyncio.to_thread(waiting.wait, 10)
            submitting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await submitting
            go_on.set()
            # The lock is free as soon as the thread noticed.
            await asyncio.to_thread(task._job_client.lock_of("load").acquire, timeout=10)
            task._job_client.lock_of("load").release()
            assert len(system.submissions) == 1
            assert system.jobs == {}
            await task.jobs.aoutcome("load", 1, "Failed")

    async def test_held_leaves_the_event_loop(self, pod: Pod, system: System) -> None:
        system.after_submit = [fails(LostError())]
        with pytest.raises(reattach.Held):
            async with pod.context() as task:
                await task.asubmit_once("load", system, REQUEST)


class TestGenerations:
    def test_a_failed_job_is_submitted_anew_once_an_attempt_paid_for_it(self, pod: Pod, system: System) -> None:
        system.statuses = [Failed("out of memory")]
        for generation in (1, 2):
            with pytest.raises(reattach.JobFailed) as raised:
                submit(pod, system)
            assert raised.value.generation == generation
            pod.api.jobs.next_attempt(charged_to="application")
        assert len({submission.token for submission in system.submissions}) == 2

    def test_and_not_before(self, pod: Pod, system: System) -> None:
        system.statuses = [Failed("out of memory")]
        for _ in range(3):
            with pytest.raises(reattach.JobFailed, match="out of memory"):
                submit(pod, system)
            pod.api.jobs.next_attempt(charged_to="disruption")
        assert len(system.submissions) == 1

    def test_resubmit_is_a_new_generation_and_may_be_another_request(self, pod: Pod, system: System) -> None:
        with pod.context() as task:
            first = task.submit_once("load", system, REQUEST)
            assert first.wait() == RESULT
            second = task.resubmit("load", system, {"entrypoint": "another"})
            assert (second.generation, second.handle) == (2, "job-2")
            assert second.token != first.token
            assert second.wait() == RESULT
            assert task.submit_once("load", system, {"entrypoint": "another"}).generation == 2

    def test_a_key_that_was_meant_to_vary_does_not_give_the_first_result_to_each(
        self, pod: Pod, system: System
    ) -> None:
        with pod.context() as task:
            assert task.submit_once("load", system, {"day": 1}).wait() == RESULT
            with pytest.raises(reattach.DigestChanged, match="use another key"):
                task.submit_once("load", system, {"day": 2})
        assert len(system.submissions) == 1

    def test_resubmit_takes_that_the_newest_is_over(self, pod: Pod, system: System) -> None:
        with pod.context() as task:
            job = task.submit_once("load", system, REQUEST)
            with pytest.raises(reattach.JobsOpen, match="must be over"):
                task.resubmit("load", system, REQUEST)
            job.wait()
        assert len(system.submissions) == 1

    def test_resubmit_whose_submission_is_lost_is_not_one_more_generation(self, pod: Pod, system: System) -> None:
        system.can = Capabilities(NAME)
        with pod.context() as task:
            task.submit_once("load", system, REQUEST).wait()
            system.after_submit = [fails(LostError())]
            again = task.resubmit("load", system, REQUEST)
            assert (again.generation, again.handle) == (2, "job-2")
            again.wait()
        assert len(system.jobs) == 2


class TestCompletion:
    def test_a_task_is_not_done_while_a_job_of_it_is_open(self, pod: Pod, system: System) -> None:
        with pytest.raises(reattach.JobsOpen, match="over or detached"):
            pod.context().run(lambda task: task.submit_once("load", system, REQUEST).handle)
        assert pod.api.completed == []

    def test_unless_it_is_detached(self, pod: Pod, system: System) -> None:
        assert (
            pod.context().run(lambda task: task.submit_once("load", system, REQUEST, detached=True).handle) == "job-1"
        )
        assert pod.api.completed == ["job-1"]


class TestStepByStep:
    """`task.jobs`, for systems without an adapter."""

    def test_jobs_public_names_are_the_steps_of_the_protocol(self, pod: Pod) -> None:
        steps = {"intent", "record", "outcome", "get", "list"}
        with pod.context() as task:
            assert {name for name in dir(task.jobs) if not name.startswith("_")} == steps | {
                f"a{name}" for name in steps
            }

    def test_the_steps_are_those_of_the_protocol(self, pod: Pod) -> None:
        with pod.context() as task:
            assert task.jobs.get("load") is None
            answer = task.jobs.intent("load", adapter="ftp", digest="d1", token_seconds=60)
            assert (answer.decision, answer.job.generation) == ("Submit", 1)
            assert task.jobs.intent("load", adapter="ftp", digest="d1").decision == "Resolve"
            assert task.jobs.intent("load", adapter="ftp", digest="d1", again=Grounds.TOKEN).decision == "Submit"
            task.jobs.record("load", 1, "file-7", url="https://x.test", origin="Found")
            task.jobs.record("load", 1, "file-7")
            with pytest.raises(reattach.HandleDiffers):
                task.jobs.record("load", 1, "file-8")
            assert task.jobs.intent("load", adapter="ftp", digest="d1").decision == "Reattach"
            task.jobs.outcome("load", 1, "Unknown", message="away")
            task.jobs.outcome("load", 1, "Succeeded", {"rows": 1})
            task.jobs.outcome("load", 1, "Succeeded", {"rows": 1})
            with pytest.raises(reattach.JobOver):
                task.jobs.outcome("load", 1, "Failed")
            assert task.jobs.intent("load", adapter="ftp", digest="d2", new_generation=True).job.generation == 2
            task.jobs.outcome("load", 2, "Cancelled")
            assert [(job.key, job.generation, job.state) for job in task.jobs.list()] == [
                ("load", 1, "Succeeded"),
                ("load", 2, "Cancelled"),
            ]
            first, newest = task.jobs.get("load", 1), task.jobs.get("load")
            assert first is not None
            assert newest is not None
            assert (first.result, newest.generation) == ({"rows": 1}, 2)

    async def test_async_code_does_the_same(self, pod: Pod) -> None:
        async with pod.context() as task:
            assert await task.jobs.aget("load") is None
            answer = await task.jobs.aintent("load", adapter="ftp", digest="d1")
            assert answer.decision == "Submit"
            await task.jobs.arecord("load", 1, "file-7")
            await task.jobs.aoutcome("load", 1, "Succeeded", [1])
            [job] = await task.jobs.alist()
            assert (job.handle, job.result) == ("file-7", [1])

    async def test_what_was_never_intended_can_not_be_recorded(self, pod: Pod) -> None:
        async with pod.context() as task:
            with pytest.raises(reattach.InvalidCall, match="no intent"):
                task.jobs.record("load", 1, "file-7")
            with pytest.raises(reattach.InvalidCall, match="no intent"):
                await task.jobs.aoutcome("load", 1, "Failed")

    def test_a_result_is_json_of_at_most_4_kib(self, pod: Pod) -> None:
        with pod.context() as task:
            for result in (object(), float("nan"), "x" * 4096):
                with pytest.raises(reattach.InvalidValue):
                    task.jobs.outcome("load", 1, "Succeeded", result)

    def test_the_same_digest_is_refused_under_another_adapter(self, pod: Pod) -> None:
        with pod.context() as task:
            task.jobs.intent("load", adapter="ftp", digest="d1")
            with pytest.raises(reattach.DigestChanged):
                task.jobs.intent("load", adapter="sftp", digest="d1")
            task.jobs.outcome("load", 1, "Failed")
