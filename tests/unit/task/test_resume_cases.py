"""Airflow's acceptance cases for resuming a job (its ResumableJobMixin, and what its Kubernetes operator reattaches to), by their numbers.

`docs/reference/airflow-cases.md` says what each asks for, and why those that are not here don't apply.
"""

import logging
import os
import signal
from collections.abc import Callable
from typing import Any

import httpx
import pytest

import reattach
from fakepod import Pod
from fakesystem import LOOK_UP, NAME, REQUEST, RESULT, System
from reattach.adapter import Active, Cancelled, Capabilities, Failed, JobStatus, NotFound, Succeeded, Unknown
from reattach.api.state import JobState


@pytest.fixture
def system() -> System:
    return System()


def an_attempt(pod: Pod, system: System) -> Any:
    """What a task does, in Airflow `execute_resumable`."""
    return pod.context().run(lambda task: task.submit_once("load", system, REQUEST).wait())


def an_earlier_attempt_submitted(pod: Pod, system: System, charged_to: str = "disruption") -> None:
    """And died while it polled."""

    def die() -> None:
        raise KeyboardInterrupt

    pod.time.on_step["watching"] = die
    with pytest.raises(KeyboardInterrupt):
        an_attempt(pod, system)
    pod.api.jobs.next_attempt(charged_to=charged_to)
    system.asked.clear()


def test_airflow_01_without_prior_state_it_is_submitted_once_polled_and_its_result_returned(
    pod: Pod, system: System
) -> None:
    system.statuses = [Succeeded(RESULT)]
    assert an_attempt(pod, system) == RESULT
    assert (len(system.submissions), system.asked) == (1, ["job-1"])


def test_airflow_02_the_id_is_stored_before_polling_begins(pod: Pod, system: System) -> None:
    stored: list[str | None] = []
    system.before_status = [lambda: stored.append(pod.api.jobs.record().handle)]
    an_attempt(pod, system)
    assert stored == ["job-1"]


@pytest.mark.parametrize(
    "active", [pytest.param(Active("RUNNING"), id="03-running"), pytest.param(Active("PENDING"), id="04-pending")]
)
def test_airflow_03_04_a_stored_job_that_is_active_is_polled_and_none_submitted(
    pod: Pod, system: System, active: JobStatus
) -> None:
    an_earlier_attempt_submitted(pod, system)
    system.statuses = [active, active, Succeeded(RESULT)]
    assert an_attempt(pod, system) == RESULT
    assert (len(system.submissions), system.asked) == (1, ["job-1"] * 3)


def test_airflow_05_a_stored_job_that_succeeded_gives_its_result_and_none_is_submitted(
    pod: Pod, system: System
) -> None:
    an_earlier_attempt_submitted(pod, system)
    system.statuses = [Succeeded(RESULT)]
    assert an_attempt(pod, system) == RESULT
    assert (len(system.submissions), system.asked) == (1, ["job-1"])
    # Found over, it is not even asked.
    pod.api.jobs.next_attempt()
    assert an_attempt(pod, system) == RESULT
    assert (len(system.submissions), system.asked) == (1, ["job-1"])


@pytest.mark.parametrize("ended", [Failed("FAILED"), Failed("ERROR"), Cancelled("KILLED")])
def test_airflow_06_a_stored_job_that_failed_is_submitted_anew_by_the_attempt_after_the_one_that_paid_for_it(
    pod: Pod, system: System, ended: JobStatus
) -> None:
    an_earlier_attempt_submitted(pod, system)
    system.statuses = [ended]
    with pytest.raises(reattach.JobFailed):
        an_attempt(pod, system)
    pod.api.jobs.next_attempt(charged_to="application")
    system.statuses = [Succeeded(RESULT)]
    assert an_attempt(pod, system) == RESULT
    assert (len(system.submissions), system.asked[-1]) == (2, "job-2")
    assert pod.api.jobs.record(generation=2).state is JobState.SUCCEEDED


def test_airflow_06_unknown_is_no_failure_and_submits_nothing(pod: Pod, system: System) -> None:
    an_earlier_attempt_submitted(pod, system)
    system.statuses = [*[Unknown("UNKNOWN")] * 50, Succeeded(RESULT)]
    assert an_attempt(pod, system) == RESULT
    assert len(system.submissions) == 1


@pytest.mark.parametrize("nothing", [None, ""])
def test_airflow_07_where_submitting_gives_no_id_none_is_stored(pod: Pod, system: System, nothing: Any) -> None:
    system.name_of = lambda _: nothing
    with pytest.raises(reattach.Held, match="a handle must be"):
        an_attempt(pod, system)
    assert (pod.api.jobs.record().handle, pod.api.jobs.record().held) == (None, True)


def test_airflow_08_a_key_of_ones_own_serves_for_storing_and_for_finding(pod: Pod, system: System) -> None:
    for _ in range(2):
        with pod.context() as task:
            assert task.submit_once("my/own key", system, REQUEST, detached=True).handle == "job-1"
        pod.api.jobs.next_attempt()
    assert len(system.submissions) == 1


def test_airflow_09_each_path_counts_once(pod: Pod, system: System) -> None:
    system.can = Capabilities(NAME)
    an_earlier_attempt_submitted(pod, system)
    counts = pod.api.jobs.state.counts
    assert (counts.submissions, counts.reattachments, counts.duplicates_averted) == (1, 0, 0)
    an_attempt(pod, system)
    counts = pod.api.jobs.state.counts
    assert (counts.submissions, counts.reattachments, counts.duplicates_averted) == (1, 1, 0)


def test_airflow_10_the_decision_is_told_with_the_id_before_polling(
    pod: Pod, system: System, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "reattach")
    told: list[str] = []
    system.before_submit = [lambda: told.append(caplog.text)]
    system.before_status = [lambda: told.append(caplog.text)] * 2
    an_earlier_attempt_submitted(pod, system)
    an_attempt(pod, system)
    assert "job-1" not in told[0]
    assert "Reattached to external job 'load' (generation 1): job-1, last known as Active." in told[-1]


def test_airflow_11_must_not_hold_without_a_store_nothing_is_submitted(
    pod: Pod, system: System, caplog: pytest.LogCaptureFixture
) -> None:
    def main(task: reattach.Task) -> None:
        pod.api.down = httpx.ConnectError("connection refused")
        task.submit_once("load", system, REQUEST)

    with pytest.raises(reattach.Unavailable):
        pod.context().run(main)
    assert system.submissions == []
    assert "The state API has been unavailable for" in caplog.text


def test_airflow_35_a_crash_after_the_job_was_made_and_before_it_was_stored_makes_no_second_one(
    pod: Pod, system: System
) -> None:
    system.can = Capabilities(look_up=LOOK_UP)

    def die() -> None:
        raise KeyboardInterrupt

    pod.time.on_step["after-submit"] = die
    with pytest.raises(KeyboardInterrupt):
        an_attempt(pod, system)
    pod.api.jobs.next_attempt()
    assert an_attempt(pod, system) == RESULT
    assert len(system.jobs) == 1
    assert pod.api.jobs.record().origin == "Found"


def test_airflow_36_a_stored_job_that_is_gone_is_a_question_for_a_person_unless_the_author_said_otherwise(
    pod: Pod, system: System
) -> None:
    an_earlier_attempt_submitted(pod, system)
    system.statuses = [NotFound("404")]
    with pytest.raises(reattach.Held):
        an_attempt(pod, system)
    assert len(system.submissions) == 1

    pod.api.jobs.rules(on_not_found="Resubmit")
    pod.api.jobs.change(state=JobState.ACTIVE, held=False)
    pod.api.jobs.next_attempt()
    system.before_status = [lambda: None, lambda: setattr(system, "statuses", [NotFound("404"), Succeeded(RESULT)])]
    assert an_attempt(pod, system) == RESULT
    assert len(system.submissions) == 2


def test_airflow_39_a_job_that_an_earlier_attempt_saw_fail_is_not_taken_for_the_new_one(
    pod: Pod, system: System
) -> None:
    system.can = Capabilities(NAME)
    system.statuses = [Failed("out of memory")]
    with pytest.raises(reattach.JobFailed):
        an_attempt(pod, system)
    pod.api.jobs.next_attempt(charged_to="application")
    system.statuses = [Succeeded(RESULT)]
    assert an_attempt(pod, system) == RESULT
    assert [submission.generation for submission in system.submissions] == [1, 2]
    assert len({submission.name for submission in system.submissions}) == 2


@pytest.mark.parametrize("when", ["before-submit", "watching"])
def test_airflow_40_sigterm_never_ends_as_success_and_never_cancels_the_job(
    pod: Pod, system: System, when: str
) -> None:
    pod.time.on_step[when] = lambda: os.kill(os.getpid(), signal.SIGTERM)

    def main(task: reattach.Task) -> str:
        try:
            task.submit_once("load", system, REQUEST).wait()
        except BaseException:  # noqa: BLE001
            return "as if nothing had happened"
        return "not reached"

    with pytest.raises(reattach.Terminated):
        pod.context().run(main)
    assert pod.api.completed == []
    assert system.cancelled == []
    pod.api.jobs.next_attempt()
    assert an_attempt(pod, system) == RESULT
    assert len(system.submissions) == 1


@pytest.mark.parametrize(
    "trouble",
    [lambda pod: setattr(pod.api, "lost", 1), lambda pod: setattr(pod.api, "script", [httpx.ReadError("reset")])],
    ids=["stored", "not stored"],
)
def test_the_window_that_airflow_leaves_open_is_closed_also_without_a_crash(
    pod: Pod, system: System, trouble: Callable[[Pod], None]
) -> None:
    """There, an id that can't be stored after submitting fails the attempt, and the next one submits again."""
    system.after_submit = [lambda: trouble(pod)]
    assert an_attempt(pod, system) == RESULT
    assert len(system.submissions) == 1
