"""What a run is held for, and what each answer does."""

from typing import Any

import pytest

from builders import (
    SEALED,
    ATaskRun,
    a_job,
    a_pod,
    a_state,
    a_summary,
    a_taskrun,
    actions_of,
    hold_of,
    last_attempt_of,
    plan_of,
    progress_of,
    status_of,
    teardown_plan_of,
)
from reattach.api.state import JobOrigin, JobState
from reattach.planner.plan import AbsentState, CreatePod, DeletePod, EmitEvent, Plan, ReleaseTaskRun, StopPod

HELD = '{"reattach":"v1","kind":"Held","message":"nobody can tell"}'
RUN = a_taskrun().with_budgets(application=3, disruption=3).with_state().with_finalizer()
WAITS = a_job(None, held=True, holds=1, message="the lookup found nothing, and nobody can tell whether it will")
ASKED = a_state(1, jobs=[WAITS])


def told(plan: Plan) -> list[str]:
    return [said.reason for said in actions_of(plan, EmitEvent)]


def created(plan: Plan) -> list[int]:
    return [action.attempt for action in actions_of(plan, CreatePod)]


def held(taskrun: ATaskRun = RUN) -> ATaskRun:
    return taskrun.with_status(status_of(teardown_plan_of(taskrun, a_pod().exited(85, message=HELD), state=ASKED)))


# -- SubmissionUnknown -----------------------------------------------------------------------------


def test_an_attempt_that_says_held_is_believed_if_the_state_agrees() -> None:
    plan = teardown_plan_of(RUN, a_pod().exited(85, message=HELD), state=ASKED)
    attempt = last_attempt_of(plan)
    assert (attempt.cause, attempt.charged_to, attempt.message) == ("Held", "disruption", "nobody can tell")
    assert (hold_of(plan), told(plan)) == (("True", "SubmissionUnknown"), ["SubmissionUnknown"])
    message = progress_of(plan)[1]
    assert "load (no handle known): the lookup found nothing" in message
    command = "kubectl reattach resolve load -n data --key load --generation 1 --adopt HANDLE | --resubmit | --fail"
    assert f"To resolve: {command};" in message
    assert '{held: SubmissionUnknown, key: "load", generation: 1, action: Adopt, handle: …}' in message
    assert status_of(plan).next_attempt_time is None


def test_running_job_of_another_request_is_shown_with_the_command_that_takes_it_over() -> None:
    job = a_job(held=True, holds=1, message="the job was submitted with another request")
    plan = teardown_plan_of(RUN, a_pod().exited(85, message=HELD), state=a_state(1, jobs=[job]))
    assert hold_of(plan) == ("True", "SubmissionUnknown")
    message = progress_of(plan)[1]
    assert message.startswith("An external job has another request than the task. Manual resolution required. External")
    assert f"--adopt {job.handle} | --resubmit | --fail;" in message
    assert status_of(plan).external_jobs[0].state == "Active"


def test_however_much_is_held_the_message_tells_how_to_answer() -> None:
    jobs = [a_job(None, key=f"{number}" * 128, held=True, holds=1, message="why " * 100) for number in range(9)]
    message = progress_of(teardown_plan_of(RUN, a_pod().exited(85, message=HELD), state=a_state(1, jobs=jobs)))[1]
    assert f"--key {'0' * 128} --generation 1 --adopt HANDLE | --resubmit | --fail;" in message
    assert len(message.encode()) <= 1024


@pytest.mark.parametrize("state", [a_state(1), a_state(1, jobs=[a_job()]), AbsentState()])
def test_an_attempt_that_says_held_is_not_believed_if_the_state_does_not_agree(state: Any) -> None:
    taskrun = a_taskrun().with_budgets(application=3)
    plan = teardown_plan_of(taskrun, a_pod().exited(85, message=HELD), state=state)
    assert (last_attempt_of(plan).cause, progress_of(plan)[0]) == ("Application", "BackingOff")


def test_a_hold_that_settled_itself_before_the_operator_looked_is_no_failure_of_the_task() -> None:
    job = a_job(holds=1, origin=JobOrigin.REPORTED)
    plan = teardown_plan_of(a_taskrun(), a_pod().exited(85, message=HELD), state=a_state(1, jobs=[job]))
    assert (last_attempt_of(plan).cause, progress_of(plan)[0]) == ("Held", "BackingOff")
    assert status_of(plan).next_attempt_time is not None


def test_an_attempt_that_failed_otherwise_after_its_job_was_held_is_charged_for_that_and_the_run_is_held() -> None:
    plan = teardown_plan_of(RUN, a_pod().exited(1), state=ASKED)
    assert (last_attempt_of(plan).cause, hold_of(plan)) == ("Application", ("True", "SubmissionUnknown"))
    assert (status_of(plan).next_attempt_time, told(plan)) == (None, ["SubmissionUnknown"])


def test_no_pod_is_made_before_an_answer_though_the_summary_is_late() -> None:
    late = a_summary(1)
    assert teardown_plan_of(held(), a_pod().exited(85).released(), summary=late, state=ASKED, now=5000) == Plan()


def test_the_hold_is_kept_while_the_rest_of_its_pod_is_stopped() -> None:
    pod = a_pod().with_sidecar().exited(85, message=HELD)
    plan = teardown_plan_of(RUN, pod, state=ASKED)
    assert (hold_of(plan), len(actions_of(plan, StopPod))) == (("True", "SubmissionUnknown"), 1)
    stopping = RUN.with_status(status_of(plan))
    again = teardown_plan_of(stopping, pod.deleted(20), state=ASKED, now=21)
    assert (again.status, created(again)) == (None, [])


def test_a_job_that_the_other_side_does_not_know_is_asked_about_with_its_handle() -> None:
    job = a_job(state=JobState.NOT_FOUND, held=True, holds=1)
    plan = teardown_plan_of(RUN, a_pod().exited(85, message=HELD), state=a_state(1, jobs=[job]))
    assert "load (handle job-1): the external system does not have it" in progress_of(plan)[1]


def test_what_is_held_besides_is_told_when_it_is_known() -> None:
    other = a_job(None, key="other", held=True, holds=1)
    plan = teardown_plan_of(held(), a_pod().exited(85).released(), state=a_state(1, jobs=[WAITS, other]))
    assert ("other (no handle known): it may have been submitted" in progress_of(plan)[1], told(plan)) == (
        True,
        ["SubmissionUnknown"],
    )


@pytest.mark.parametrize("answer", [{"action": "Adopt", "handle": "job-7"}, {"action": "Resubmit"}])
def test_an_answer_that_the_next_attempt_heeds_makes_its_pod_at_once(answer: dict[str, str]) -> None:
    answered = held().with_resolution("SubmissionUnknown", **answer)
    plan = teardown_plan_of(answered, a_pod().exited(85).released(), state=ASKED)
    assert (created(plan), hold_of(plan)) == ([2], ("False", "NotHeld"))


def test_a_hold_that_came_after_the_answer_needs_another_one() -> None:
    again = a_state(1, jobs=[a_job(None, held=True, holds=2)])
    taskrun = RUN.with_resolution("SubmissionUnknown", "Resubmit")
    assert hold_of(teardown_plan_of(taskrun, a_pod().exited(85, message=HELD), state=again)) == (
        "True",
        "SubmissionUnknown",
    )


def test_the_answer_to_another_job_or_generation_is_none() -> None:
    for about in ({"key": "other"}, {"generation": 2}):
        answered = held().with_resolution("SubmissionUnknown", "Resubmit", **about)
        assert created(teardown_plan_of(answered, a_pod().exited(85).released(), state=ASKED)) == []


def test_the_answer_fail_ends_the_run_and_nothing_of_it_is_left_open() -> None:
    answered = held().with_resolution("SubmissionUnknown", "Fail")
    plan = teardown_plan_of(answered, a_pod().exited(85).released(), state=ASKED)
    assert [(job.state, job.handle) for job in status_of(plan).external_jobs] == [("Failed", None)]
    assert actions_of(plan, ReleaseTaskRun)
    ended = answered.with_status(status_of(plan)).with_metadata(finalizers=[])
    plan = teardown_plan_of(ended, a_pod().exited(85).released(), state=ASKED)
    assert (status_of(plan).outcome, progress_of(plan)[0]) == ("Failed", "FailedByResolution")
    assert "external job load" in progress_of(plan)[1]


def test_the_answer_fail_stops_an_attempt_that_runs_on() -> None:
    answered = RUN.with_resolution("SubmissionUnknown", "Fail")
    plan = plan_of(answered, a_pod().running(), summary=a_summary(1, jobs=(WAITS,)), state=ASKED)
    assert (status_of(plan).ending is not None, plan.actions) == (True, ())
    sealed = a_state(1, seal=SEALED, jobs=[WAITS])
    plan = teardown_plan_of(answered, a_pod().running(), summary=a_summary(1, jobs=(WAITS,)), state=sealed)
    assert len(actions_of(plan, DeletePod)) == 1
    stopped = a_pod().running().deleted().exited(143, seconds=8)
    plan = teardown_plan_of(answered, stopped, summary=a_summary(1, jobs=(WAITS,)), state=sealed)
    assert (last_attempt_of(plan).cause, last_attempt_of(plan).reason) == ("Stopped", "FailedByResolution")


# -- StateLost -------------------------------------------------------------------------------------


def lost(*jobs: Any) -> ATaskRun:
    """Held for the loss of a state that knew of these jobs."""
    plan = teardown_plan_of(RUN, a_pod().running(), summary=a_summary(1, jobs=jobs), state=a_state(1, jobs=jobs))
    running = RUN.with_status(status_of(plan))
    return running.with_status(status_of(teardown_plan_of(running, a_pod().exited(1), state=AbsentState())))


def test_a_lost_state_is_given_up_when_a_person_says_so_and_its_open_jobs_are_named() -> None:
    taskrun = lost(a_job())
    assert teardown_plan_of(taskrun, a_pod().exited(1).released(), now=5000) == Plan()
    plan = teardown_plan_of(taskrun.with_resolution("StateLost", "StartEmpty"), a_pod().exited(1).released())
    status = status_of(plan)
    assert (status.state, status.counts.state_losses, hold_of(plan)) == (None, 1, ("False", "NotHeld"))
    assert [(job.handle, job.state) for job in status.external_jobs] == [("job-1", "Orphaned")]
    assert (told(plan), created(plan)) == (["Orphaned"], [])
    again = teardown_plan_of(
        taskrun.with_resolution("StateLost", "StartEmpty").with_status(status), a_pod().exited(1).released()
    )
    assert created(again) == [2]


def test_each_loss_needs_an_answer_of_its_own() -> None:
    taskrun = lost().with_resolution("StateLost", "StartEmpty")
    once = taskrun.with_status(counts=taskrun.status.counts.__class__(attempts=1, state_losses=1))
    assert teardown_plan_of(once, a_pod().exited(1).released()) == Plan()
    twice = once.with_resolution("StateLost", "StartEmpty")
    assert status_of(teardown_plan_of(twice, a_pod().exited(1).released())).counts.state_losses == 2


def test_the_job_of_a_lost_state_stays_named_beside_those_of_the_new_one() -> None:
    taskrun = lost(a_job()).with_resolution("StateLost", "StartEmpty")
    empty = taskrun.with_status(status_of(teardown_plan_of(taskrun, a_pod().exited(1).released())))
    jobs = (a_job("job-2", key="other"),)
    new = a_state(2, uid="new-uid", jobs=jobs)
    plan = teardown_plan_of(empty, a_pod(2).running(), summary=a_summary(2, jobs=jobs), state=new)
    assert [(job.handle, job.state) for job in status_of(plan).external_jobs] == [
        ("job-1", "Orphaned"),
        ("job-2", "Active"),
    ]


@pytest.mark.parametrize("job", [a_job("job-2"), a_job(), a_job(None)], ids=["another", "the same", "not known yet"])
def test_a_job_of_the_new_state_by_the_name_of_a_lost_one_is_what_counts_from_then_on(job: Any) -> None:
    taskrun = lost(a_job()).with_resolution("StateLost", "StartEmpty")
    empty = taskrun.with_status(status_of(teardown_plan_of(taskrun, a_pod().exited(1).released())))
    new = {"summary": a_summary(2, jobs=(job,)), "state": a_state(2, uid="new-uid", jobs=(job,), seal=SEALED)}
    plan = teardown_plan_of(empty, a_pod(2).running(), **new)
    assert [(job.handle, job.state) for job in status_of(plan).external_jobs] == [(job.handle, job.state)]
    cancelled = empty.with_status(status_of(plan)).with_spec(cancel=True)
    end = teardown_plan_of(cancelled, a_pod(2).running().deleted().exited(143, 8), **new)
    if job.handle is None:
        assert (hold_of(end)[0], actions_of(end, ReleaseTaskRun)) == ("True", [])
        return
    assert told(end) == ["Orphaned"]
    named = next(one.message for one in status_of(end).conditions if one.type == "Orphaned")
    assert "handle job-1" in named, "the lost one is named still"
    assert f"handle {job.handle}" in named
    spent = empty.with_status(status_of(plan)).with_budgets(disruption=0)
    unsealed = {**new, "state": a_state(2, uid="new-uid", jobs=(job,))}
    assert hold_of(teardown_plan_of(spent, a_pod(2).disrupted().exited(143), **unsealed))[1] == "BudgetExhausted"


def test_a_lost_state_is_the_end_when_a_person_says_so() -> None:
    answered = lost().with_resolution("StateLost", "Fail").with_metadata(finalizers=[])
    plan = teardown_plan_of(answered, a_pod().exited(1).released())
    assert (status_of(plan).outcome, progress_of(plan)[0], hold_of(plan)[0]) == (
        "Failed",
        "FailedByResolution",
        "False",
    )
    assert "its lost state" in progress_of(plan)[1]


# -- BudgetExhausted -------------------------------------------------------------------------------

SCARCE = a_taskrun().with_budgets(disruption=0, neverStarted=0).with_state().with_finalizer()
EVICTED = a_pod().running().disrupted().deleted().exited(143, seconds=8)


def spent(*jobs: Any) -> Plan:
    return teardown_plan_of(SCARCE, EVICTED, state=a_state(1, jobs=jobs))


def test_a_run_out_of_pods_is_held_while_its_job_goes_on() -> None:
    plan = spent(a_job())
    assert (last_attempt_of(plan).cause, hold_of(plan)) == ("Disruption", ("True", "BudgetExhausted"))
    assert (status_of(plan).outcome, created(plan), status_of(plan).next_attempt_time) == (None, [], None)
    assert "disruption" in progress_of(plan)[1]
    assert "load (handle job-1)" in progress_of(plan)[1]
    waiting = SCARCE.with_status(status_of(plan))
    assert teardown_plan_of(waiting, EVICTED.released(), summary=a_summary(1, jobs=(a_job(),)), now=5000) == Plan()


def test_a_run_out_of_pods_fails_if_no_job_goes_on() -> None:
    plan = spent(a_job(state=JobState.SUCCEEDED))
    assert plan == Plan(actions=(ReleaseTaskRun(),))
    ended = teardown_plan_of(SCARCE.with_metadata(finalizers=[]), EVICTED, state=a_state(1))
    assert (status_of(ended).outcome, progress_of(ended)[0]) == ("Failed", "DisruptedTooOften")


def test_a_task_that_failed_too_often_fails_though_its_job_goes_on() -> None:
    plan = teardown_plan_of(SCARCE, a_pod().exited(1), state=a_state(1, jobs=[a_job()]))
    assert [job.state for job in status_of(plan).external_jobs] == ["Orphaned"]
    answered = SCARCE.with_resolution("BudgetExhausted", "Continue")
    plan = teardown_plan_of(answered, a_pod().exited(1), state=a_state(1, jobs=[a_job()]))
    assert [job.state for job in status_of(plan).external_jobs] == ["Orphaned"]


def test_each_continue_grants_the_whole_budget_once_more() -> None:
    scarce = SCARCE.with_budgets(disruption=1, neverStarted=0)
    summary, state = a_summary(4, jobs=(a_job(),)), a_state(4, jobs=[a_job()])
    shown = status_of(teardown_plan_of(scarce, a_pod().running(), summary=summary, state=state))
    taskrun = scarce.with_status(external_jobs=shown.external_jobs)
    for number in range(1, 5):
        taskrun = taskrun.with_failed_attempt(number, cause="Disruption", charged_to="disruption")
    for continues, goes_on in [(0, False), (1, False), (2, True)]:
        answered = taskrun
        for _ in range(continues):
            answered = answered.with_resolution("BudgetExhausted", "Continue")
        plan = teardown_plan_of(answered, summary=summary, state=state, now=5000)
        assert bool(created(plan)) is goes_on, continues


def test_continue_makes_the_next_pod_and_fail_names_the_job_and_ends_the_run() -> None:
    waiting = SCARCE.with_status(status_of(spent(a_job())))
    seen = {"summary": a_summary(1, jobs=(a_job(),)), "state": a_state(1, jobs=[a_job()])}
    plan = teardown_plan_of(waiting.with_resolution("BudgetExhausted", "Continue"), EVICTED.released(), **seen)
    assert (created(plan), hold_of(plan)) == ([2], ("False", "NotHeld"))
    failed = waiting.with_resolution("BudgetExhausted", "Fail")
    plan = teardown_plan_of(failed, EVICTED.released(), **seen)
    assert [job.state for job in status_of(plan).external_jobs] == ["Orphaned"]
    ended = failed.with_status(status_of(plan)).with_metadata(finalizers=[])
    plan = teardown_plan_of(ended, EVICTED.released(), **seen)
    assert (status_of(plan).outcome, progress_of(plan)[0]) == ("Failed", "FailedByResolution")
    assert "its budget disruption" in progress_of(plan)[1]
