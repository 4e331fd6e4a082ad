"""Suspending and resuming a run: what is written and stopped, in which order, and what it costs."""

from typing import Any

import pytest

from builders import (
    SEALED,
    APod,
    ATaskRun,
    a_job,
    a_pod,
    a_state,
    a_summary,
    a_taskrun,
    actions_of,
    at,
    condition_of,
    decision_of,
    hold_of,
    last_attempt_of,
    plan_of,
    progress_of,
    status_of,
)
from reattach.api.objects import Condition
from reattach.api.reasons import ConditionType
from reattach.api.state import JobState, Seal, SealPurpose
from reattach.api.taskrun import Suspension
from reattach.planner.plan import (
    AbsentState,
    CreatePod,
    DeletePod,
    EmitEvent,
    Plan,
    ProtectTaskRun,
    ReadState,
    ReleasePod,
    SealState,
    StopPod,
    UnreadableState,
)

SUSPENDED = a_taskrun(suspend=True)
SEAL = Seal(through_attempt=1, purpose=SealPurpose.SUSPEND)
STOPPED = a_pod().running().deleted().exited(143, seconds=8)
STOP = ("Suspended", "The TaskRun was suspended. Its pod was stopped.")


def after(taskrun: ATaskRun, *pods: APod, **seen: Any) -> ATaskRun:
    """Return the TaskRun with the status that is written next."""
    return taskrun.with_status(status_of(plan_of(taskrun, *pods, **seen)))


def resumed(taskrun: ATaskRun) -> ATaskRun:
    return taskrun.with_spec(suspend=False)


def reasons(plan: Plan) -> list[str]:
    return [event.reason for event in actions_of(plan, EmitEvent)]


def suspended_condition(plan: Plan) -> Condition:
    return next(one for one in status_of(plan).conditions if one.type == ConditionType.SUSPENDED)


STOPPING = after(SUSPENDED.with_state(), a_pod().running(), summary=a_summary(1), state=a_state(1))
"""Suspended while attempt 1, which has a state, runs."""
AT_REST = after(STOPPING, STOPPED, state=a_state(1, seal=SEAL), summary=a_summary(1, seal=SEAL), now=20)


# -- the order of writes ---------------------------------------------------------------------------


def test_taskrun_that_is_created_suspended_gets_one_status_write_and_no_pod() -> None:
    plan = plan_of(SUSPENDED)
    status = status_of(plan)
    assert (status.suspension, status.start_time) == (Suspension(start_time=at(10)), at(10))
    assert progress_of(plan) == (
        "Suspended",
        "The TaskRun is suspended. Set spec.suspend to false to start the next attempt. No external job runs.",
    )
    assert (suspended_condition(plan).status, reasons(plan)) == ("True", ["Suspended"])
    assert {one.type for one in status.conditions} == {"Succeeded", "Suspended", "Reconciling"}
    assert actions_of(plan, CreatePod) == []
    later = plan_of(SUSPENDED.with_status(status), now=9999)
    assert (later.status, later.actions, later.requeue_at) == (None, (), None)


def test_suspended_taskrun_with_a_cleanup_command_gets_its_finalizer_only_when_it_is_resumed() -> None:
    taskrun = after(SUSPENDED.with_spec(cleanup={"command": ["stop"]}))
    assert plan_of(taskrun).actions == ()
    assert actions_of(plan_of(resumed(taskrun)), ProtectTaskRun) == [ProtectTaskRun()]


def test_suspension_records_the_stop_then_seals_then_deletes_the_pod_and_records_its_end() -> None:
    taskrun, pod = SUSPENDED.with_state(), a_pod().running()
    plan = plan_of(taskrun, pod, summary=a_summary(1), state=a_state(1))
    assert (actions_of(plan, DeletePod), plan.requeue_at, progress_of(plan)[0]) == ([], at(10), "Suspended")
    open_entry = last_attempt_of(plan)
    assert (open_entry.reason, open_entry.message, open_entry.finish_time) == (*STOP, None)

    taskrun = taskrun.with_status(status_of(plan))
    assert decision_of(taskrun, pod, summary=a_summary(1), state=a_state(1)) == SealState(1, SealPurpose.SUSPEND)
    plan = plan_of(taskrun, pod, summary=a_summary(1), state=a_state(1, seal=SEAL))
    assert (plan.status, plan.actions) == (None, (DeletePod("load-01234-1", "pod-1"),))
    plan = plan_of(taskrun, a_pod().running().deleted(), summary=a_summary(1, seal=SEAL))
    assert (plan.status, plan.actions, plan.requeue_at) == (None, (), at(34 + 10))

    plan = plan_of(taskrun, STOPPED, summary=a_summary(1, seal=SEAL), state=a_state(1, seal=SEAL), now=20)
    ended = last_attempt_of(plan)
    assert (ended.cause, ended.charged_to, ended.end, ended.exit_code) == ("Stopped", None, "Reported", 143)
    assert (ended.reason, ended.message) == STOP
    assert [type(action) for action in plan.actions] == [ReleasePod], "no event, because nothing failed"
    assert (status_of(plan).next_attempt_time, progress_of(plan)[0]) == (None, "Suspended")
    rest = plan_of(taskrun.with_status(status_of(plan)), STOPPED.released(), summary=a_summary(1, seal=SEAL), now=9999)
    assert (rest.status, rest.actions, rest.requeue_at) == (None, (), None)


@pytest.mark.parametrize("seal", [SEAL, SEALED])
def test_sealed_state_is_not_sealed_again(seal: Seal) -> None:
    plan = plan_of(STOPPING, a_pod().running(), summary=a_summary(1, seal=seal))
    assert plan.actions == (DeletePod("load-01234-1", "pod-1"),)


def test_state_is_read_before_it_is_sealed_because_the_watch_may_be_late() -> None:
    assert decision_of(STOPPING, a_pod().running(), summary=a_summary(1), state=None) == ReadState()


def test_state_is_sealed_against_an_attempt_that_is_only_presumed_to_have_ended() -> None:
    taskrun = after(
        SUSPENDED.with_state().with_budgets(disruption=3).with_failed_attempt(1, "Disruption", "disruption")
    )
    seen = {"summary": a_summary(1), "state": a_state(1)}
    assert decision_of(taskrun, **seen) == SealState(1, SealPurpose.SUSPEND)


def test_state_of_a_run_without_attempts_is_neither_read_nor_sealed() -> None:
    imported = {"summary": a_summary(None), "state": None}
    taskrun = after(SUSPENDED, **imported)
    assert plan_of(taskrun, **imported).actions == ()


@pytest.mark.parametrize("state", [AbsentState(), a_state(1, uid="another")])
def test_absent_or_lost_state_is_not_sealed(state: Any) -> None:
    plan = plan_of(STOPPING, a_pod().running(), state=state)
    assert actions_of(plan, DeletePod) == [DeletePod("load-01234-1", "pod-1")]


def test_pod_without_a_state_is_stopped_without_a_read() -> None:
    taskrun = after(SUSPENDED, a_pod().running())
    assert decision_of(taskrun, a_pod().running(), state=None) == plan_of(taskrun, a_pod().running())
    assert actions_of(plan_of(taskrun, a_pod().running()), DeletePod) == [DeletePod("load-01234-1", "pod-1")]


@pytest.mark.parametrize("pod", [a_pod(), a_pod().gated(), a_pod().unschedulable(), a_pod().waiting("ErrImagePull")])
def test_pod_that_has_not_started_is_stopped_and_charged_to_nothing(pod: APod) -> None:
    taskrun = after(SUSPENDED, pod)
    assert actions_of(plan_of(taskrun, pod), DeletePod) == [DeletePod("load-01234-1", "pod-1")]
    plan = plan_of(taskrun, pod.deleted(4, 0).failed(""))
    assert (last_attempt_of(plan).cause, last_attempt_of(plan).charged_to) == ("Stopped", None)


def test_pod_whose_creation_was_delayed_is_stopped_too() -> None:
    taskrun = after(SUSPENDED)
    taskrun = after(taskrun, a_pod().running())
    assert taskrun.status.attempts[0].reason == "Suspended"
    assert actions_of(plan_of(taskrun, a_pod().running()), DeletePod) == [DeletePod("load-01234-1", "pod-1")]


def test_remaining_containers_of_an_ended_attempt_are_stopped() -> None:
    taskrun = after(SUSPENDED.with_budgets(application=3).with_failed_attempt(1))
    plan = plan_of(taskrun, a_pod().with_sidecar().exited(1))
    assert (plan.status, [type(action) for action in plan.actions]) == (None, [StopPod])
    assert progress_of(taskrun.status)[0] == "Suspended"


# -- how the attempt ends --------------------------------------------------------------------------


@pytest.mark.parametrize("code", [80, 1, 0])
def test_task_that_exits_because_the_state_is_sealed_is_charged_to_nothing(code: int) -> None:
    """Exit long before the pod is deleted, because the operator crashed after the seal."""
    taskrun = STOPPING.with_spec(retry={"budgets": {"application": 0}})
    plan = plan_of(taskrun, a_pod().exited(code), state=a_state(1, seal=SEAL), now=600)
    assert (last_attempt_of(plan).cause, last_attempt_of(plan).charged_to) == ("Stopped", None)
    assert status_of(plan).outcome is None


def test_completion_before_the_seal_makes_the_run_succeed() -> None:
    state = a_state(1, completed_by=1, result="7", seal=SEAL)
    plan = plan_of(STOPPING, STOPPED, summary=a_summary(1, 1), state=state)
    assert (last_attempt_of(plan).cause, status_of(plan).outcome, status_of(plan).result) == (
        "Succeeded",
        "Succeeded",
        "7",
    )
    assert status_of(plan).suspension == Suspension()
    assert (suspended_condition(plan).status, suspended_condition(plan).reason) == ("False", "Resumed")


def test_exit_with_zero_before_the_deletion_makes_a_run_without_state_succeed() -> None:
    taskrun = after(SUSPENDED, a_pod().running())
    exited = a_pod().running().exited(0, seconds=5)
    assert status_of(plan_of(taskrun, exited, now=20)).outcome == "Succeeded"
    ambiguous = exited.not_over().deleted(6, 30)
    assert last_attempt_of(plan_of(taskrun, ambiguous.with_status(phase="Succeeded"), now=20)).cause == "Stopped"


def test_permanent_failure_before_the_deletion_fails_the_run() -> None:
    message = '{"reattach":"v1","kind":"Permanent","message":"no such table"}'
    plan = plan_of(STOPPING, a_pod().exited(1, message=message), state=a_state(1, seal=SEAL), now=60)
    assert (last_attempt_of(plan).cause, status_of(plan).outcome) == ("Permanent", "Failed")


def test_attempt_that_ended_before_the_suspension_is_charged_and_not_stopped() -> None:
    taskrun = SUSPENDED.with_budgets(application=3)
    plan = plan_of(taskrun, a_pod().exited(1))
    assert (last_attempt_of(plan).cause, last_attempt_of(plan).charged_to) == ("Application", "application")
    assert (status_of(plan).next_attempt_time, progress_of(plan)[0]) == (None, "Suspended")
    failed = next(event for event in actions_of(plan, EmitEvent) if event.reason == "AttemptFailed")
    assert "The next attempt starts" not in failed.note


def test_attempt_that_is_about_to_be_recorded_is_not_marked() -> None:
    exiting = a_pod().running().exited(0, seconds=9).not_over()
    taskrun = after(SUSPENDED, exiting)
    assert taskrun.status.attempts == ()
    assert status_of(plan_of(taskrun, exiting.with_status(phase="Succeeded"), now=30)).outcome == "Succeeded"


def test_evicted_attempt_keeps_its_cause() -> None:
    evicted = a_pod().running().disrupted().deleted()
    taskrun = after(SUSPENDED.with_budgets(disruption=3), evicted)
    assert taskrun.status.attempts == ()
    plan = plan_of(taskrun, evicted.exited(143, seconds=8), now=20)
    assert (last_attempt_of(plan).cause, progress_of(plan)[0]) == ("Disruption", "Suspended")


def test_exhausted_budget_ends_a_suspended_run_if_no_job_is_open() -> None:
    plan = plan_of(SUSPENDED, a_pod().exited(1))
    assert (status_of(plan).outcome, progress_of(plan)[0]) == ("Failed", "ApplicationFailed")
    assert suspended_condition(plan).status == "False"


def test_attempt_on_a_lost_node_is_recorded_as_presumed_and_charged_to_nothing() -> None:
    plan = plan_of(STOPPING, a_pod().running().deleted(4, 30), state=a_state(1, seal=SEAL), now=400)
    assert (last_attempt_of(plan).cause, last_attempt_of(plan).end) == ("Stopped", "Presumed")
    assert (last_attempt_of(plan).charged_to, status_of(plan).counts.last_presumed) == (None, 1)


# -- external jobs ---------------------------------------------------------------------------------


def test_condition_names_the_jobs_that_continue() -> None:
    jobs = [a_job(), a_job(None, key="export"), a_job("job-3", key="old", state=JobState.SUCCEEDED)]
    seen = {"summary": a_summary(1, jobs=tuple(jobs)), "state": a_state(1, jobs=jobs)}
    plan = plan_of(SUSPENDED.with_state(), a_pod().running(), **seen)
    reason, message = condition_of(plan, ConditionType.SUSPENDED)
    assert (reason, progress_of(plan)) == ("Suspended", (reason, message))
    assert message == (
        "The TaskRun is suspended. Set spec.suspend to false to start the next attempt. External jobs that continue: "
        "load (handle job-1) since 2026-03-01T12:00:02Z, export (no handle known)."
    )


def test_condition_follows_a_job_that_is_reported_late() -> None:
    before = {
        "summary": a_summary(1, jobs=(a_job(None),), seal=SEAL),
        "state": a_state(1, jobs=[a_job(None)], seal=SEAL),
    }
    taskrun = after(AT_REST, STOPPED.released(), now=30, **before)
    late = {"summary": a_summary(1, jobs=(a_job(),), seal=SEAL), "state": a_state(1, jobs=[a_job()], seal=SEAL)}
    plan = plan_of(taskrun, STOPPED.released(), now=31, **late)
    assert "load (handle job-1)" in condition_of(plan, ConditionType.SUSPENDED)[1]
    assert "load (handle job-1)" in progress_of(plan)[1]


def test_list_of_jobs_is_bounded() -> None:
    jobs = [a_job("h" * 1000, key=f"key-{number}") for number in range(20)]
    seen = {"summary": a_summary(1, jobs=tuple(jobs)), "state": a_state(1, jobs=jobs)}
    message = progress_of(plan_of(SUSPENDED.with_state(), a_pod().running(), **seen))[1]
    assert (len(message) < 600, message.endswith("….")) == (True, True)


# -- resume ----------------------------------------------------------------------------------------


def test_resumption_is_one_write_and_the_next_attempt_in_the_same_plan() -> None:
    plan = plan_of(resumed(AT_REST), STOPPED.released(), summary=a_summary(1, seal=SEAL), now=110)
    assert status_of(plan).suspension == Suspension(total_seconds=100)
    assert (suspended_condition(plan).status, suspended_condition(plan).reason) == ("False", "Resumed")
    assert (progress_of(plan)[0], reasons(plan)) == ("Pending", ["Resumed"])
    assert [creation.attempt for creation in actions_of(plan, CreatePod)] == [2]
    assert {one.type for one in status_of(plan).conditions} == {"Succeeded", "Suspended", "Reconciling"}


def test_times_of_several_suspensions_add_up() -> None:
    taskrun = after(resumed(AT_REST), STOPPED.released(), now=110).with_spec(suspend=True)
    taskrun = after(taskrun, STOPPED.released(), now=200)
    assert taskrun.status.suspension == Suspension(start_time=at(200), total_seconds=100)
    assert after(resumed(taskrun), STOPPED.released(), now=205).status.suspension == Suspension(total_seconds=105)


def test_clock_that_goes_back_shortens_nothing() -> None:
    assert after(resumed(AT_REST), STOPPED.released(), now=5).status.suspension == Suspension()


def test_resumption_before_the_stop_still_stops_the_attempt_and_charges_nothing() -> None:
    taskrun, seen = resumed(STOPPING), {"summary": a_summary(1), "state": a_state(1)}
    assert decision_of(taskrun, a_pod().running(), **seen) == SealState(1, SealPurpose.SUSPEND)
    seen = {"summary": a_summary(1), "state": a_state(1, seal=SEAL)}
    plan = plan_of(taskrun, a_pod().running(), **seen)
    assert actions_of(plan, DeletePod) == [DeletePod("load-01234-1", "pod-1")]
    assert (actions_of(plan, CreatePod), reasons(plan)) == ([], ["Resumed"])
    assert progress_of(plan) == (
        "Pending",
        "The TaskRun is not suspended any more. The next attempt starts once the pod of attempt 1 has ended.",
    )

    taskrun = taskrun.with_status(status_of(plan))
    plan = plan_of(taskrun, STOPPED, now=20, **seen)
    assert (last_attempt_of(plan).cause, last_attempt_of(plan).charged_to) == ("Stopped", None)
    assert [creation.attempt for creation in actions_of(plan, CreatePod)] == [2]


def test_suspension_while_the_pod_is_still_being_stopped_waits_for_the_same_pod() -> None:
    deleted, seen = a_pod().running().deleted(), {"summary": a_summary(1, seal=SEAL)}
    taskrun = after(resumed(STOPPING), deleted, now=12, **seen).with_spec(suspend=True)
    taskrun = after(taskrun, deleted, now=15, **seen)
    assert taskrun.status.suspension == Suspension(start_time=at(15), total_seconds=2)
    plan = plan_of(taskrun, STOPPED, now=20, summary=a_summary(1, seal=SEAL), state=a_state(1, seal=SEAL))
    assert (last_attempt_of(plan).cause, actions_of(plan, CreatePod)) == ("Stopped", [])


def test_suspension_and_resumption_that_the_operator_missed_change_nothing() -> None:
    running = a_taskrun().with_state()
    taskrun = after(running, a_pod().running())
    assert plan_of(taskrun, a_pod().running(), summary=a_summary(1)).status is None


def test_backoff_is_not_resumed() -> None:
    taskrun = a_taskrun().with_budgets(application=3)
    taskrun = after(taskrun, a_pod().exited(1)).with_spec(suspend=True)
    assert taskrun.status.next_attempt_time is not None
    taskrun = after(taskrun, a_pod().exited(1).released(), now=11)
    assert taskrun.status.next_attempt_time is None
    plan = plan_of(resumed(taskrun), a_pod().exited(1).released(), now=11)
    assert [creation.attempt for creation in actions_of(plan, CreatePod)] == [2]


# -- deadline of the run ---------------------------------------------------------------------------


def test_clock_of_the_run_stands_still_while_it_is_suspended() -> None:
    limited = AT_REST.with_spec(deadlines={"runSeconds": 60}).with_status(start_time=at(0))
    rest = plan_of(limited, STOPPED.released(), summary=a_summary(1, seal=SEAL), now=9999)
    assert (rest.status, rest.requeue_at) == (None, None)
    taskrun = after(resumed(limited), STOPPED.released(), now=110)  # suspended from 10 to 110
    assert taskrun.status.ending is None
    assert plan_of(taskrun, a_pod(2).running(100), now=150).requeue_at == at(160)
    assert status_of(plan_of(taskrun, a_pod(2).running(100), now=160)).ending is not None


def test_time_of_a_suspension_whose_end_is_not_recorded_counts() -> None:
    limited = resumed(AT_REST).with_spec(deadlines={"runSeconds": 60}).with_status(start_time=at(0))
    assert status_of(plan_of(limited, STOPPED.released(), now=159)).ending is None
    assert status_of(plan_of(limited, STOPPED.released(), now=9999)).outcome is None


def test_run_whose_time_was_up_before_it_was_suspended_ends_when_it_is_resumed() -> None:
    late = a_taskrun(suspend=True, deadlines={"runSeconds": 5}).with_status(start_time=at(0))
    taskrun = after(late, now=10)
    assert (taskrun.status.outcome, progress_of(taskrun.status)[0]) == (None, "Suspended")
    assert progress_of(plan_of(resumed(taskrun), now=20))[0] == "RunDeadlineExceeded"


# -- other ends ------------------------------------------------------------------------------------


def test_cancelled_suspended_run_ends_as_usual() -> None:
    plan = plan_of(AT_REST.with_spec(cancel=True), STOPPED.released(), state=a_state(1, seal=SEALED), now=30)
    assert (status_of(plan).outcome, status_of(plan).suspension) == ("Cancelled", Suspension(total_seconds=20))
    assert (suspended_condition(plan).status, reasons(plan)) == ("False", ["Cancelled"])


def test_cancellation_seals_for_the_end_and_stops_the_suspended_attempt() -> None:
    taskrun, pod = STOPPING.with_spec(cancel=True), a_pod().running()
    taskrun = after(taskrun, pod, state=a_state(1, seal=SEAL))
    assert taskrun.status.ending is not None
    assert (taskrun.status.suspension, taskrun.status.attempts[0].reason) == (Suspension(), "Suspended")
    assert decision_of(taskrun, pod, state=a_state(1, seal=SEAL)) == SealState(1, SealPurpose.END)
    plan = plan_of(taskrun, STOPPED, state=a_state(1, seal=SEALED))
    assert (last_attempt_of(plan).reason, last_attempt_of(plan).charged_to) == ("Cancelled", None)


def test_suspension_of_a_run_that_ends_changes_nothing() -> None:
    plan = plan_of(a_taskrun(cancel=True, suspend=True))
    assert (status_of(plan).outcome, status_of(plan).suspension) == ("Cancelled", None)


def test_deleted_suspended_run_is_released() -> None:
    plan = plan_of(AT_REST.being_deleted(), STOPPED)
    assert (plan.status, [type(action) for action in plan.actions]) == (None, [ReleasePod])


# -- holds -----------------------------------------------------------------------------------------


HELD_JOB = a_job(None, held=True, holds=1)


def test_hold_that_begins_while_the_attempt_is_stopped_is_shown_and_kept_after_the_resumption() -> None:
    seen = {"summary": a_summary(1, jobs=(HELD_JOB,), seal=SEAL), "state": a_state(1, jobs=[HELD_JOB], seal=SEAL)}
    plan = plan_of(STOPPING, STOPPED, now=20, **seen)
    assert (hold_of(plan), suspended_condition(plan).status) == (("True", "SubmissionUnknown"), "True")
    assert (last_attempt_of(plan).cause, progress_of(plan)[0]) == ("Stopped", "SubmissionUnknown")
    assert "Stalled" in {one.type for one in status_of(plan).conditions}

    taskrun = STOPPING.with_status(status_of(plan))
    assert plan_of(taskrun, STOPPED.released(), now=30, **seen).status is None
    plan = plan_of(resumed(taskrun), STOPPED.released(), now=40, **seen)
    assert (hold_of(plan), progress_of(plan)[0]) == (("True", "SubmissionUnknown"), "SubmissionUnknown")
    assert (suspended_condition(plan).status, actions_of(plan, CreatePod)) == ("False", [])


def test_hold_that_is_resolved_while_the_run_is_suspended_ends_and_no_pod_starts() -> None:
    seen = {"summary": a_summary(1, jobs=(HELD_JOB,), seal=SEAL), "state": a_state(1, jobs=[HELD_JOB], seal=SEAL)}
    taskrun = after(STOPPING, STOPPED, now=20, **seen).with_resolution("SubmissionUnknown", "Resubmit")
    plan = plan_of(taskrun, STOPPED.released(), now=30, **seen)
    assert (hold_of(plan), progress_of(plan)[0]) == (("False", "NotHeld"), "Suspended")
    assert actions_of(plan, CreatePod) == []


def test_suspension_keeps_the_hold_of_a_lost_state() -> None:
    held = after(a_taskrun().with_budgets(application=3).with_state(), a_pod().exited(1), state=AbsentState())
    taskrun = after(held.with_spec(suspend=True), a_pod().exited(1).released())
    assert (hold_of(taskrun.status), progress_of(taskrun.status)[0]) == (("True", "StateLost"), "StateLost")
    assert suspended_condition(Plan(taskrun.status)).status == "True"
    again = plan_of(taskrun, a_pod().exited(1).released())
    assert (again.status, again.actions) == (None, ())
    plan = plan_of(resumed(taskrun), a_pod().exited(1).released())
    assert (hold_of(plan), actions_of(plan, CreatePod)) == (("True", "StateLost"), [])


def exhausted(**more: Any) -> ATaskRun:
    """Return a TaskRun that is held by its budget while a job runs."""
    taskrun = a_taskrun().with_budgets(disruption=0).with_state()
    seen = {"summary": a_summary(1, jobs=(a_job(),)), "state": a_state(1, jobs=[a_job()])}
    evicted = a_pod().running().disrupted().deleted().exited(143, seconds=8)
    return after(taskrun.with_spec(**more), evicted, **seen)


def test_suspended_run_does_not_ask_for_a_budget_before_it_is_resumed() -> None:
    taskrun = exhausted(suspend=True)
    seen = {"summary": a_summary(1, jobs=(a_job(),), seal=SEAL)}
    assert plan_of(taskrun, now=20, **seen).status is None
    assert progress_of(taskrun.status)[0] == "Suspended"
    assert hold_of(plan_of(resumed(taskrun), now=20, **seen)) == ("True", "BudgetExhausted")


def test_suspension_keeps_the_hold_for_a_budget() -> None:
    taskrun, seen = exhausted(), {"summary": a_summary(1, jobs=(a_job(),), seal=SEAL)}
    assert hold_of(taskrun.status) == ("True", "BudgetExhausted")
    taskrun = after(taskrun.with_spec(suspend=True), now=20, **seen)
    plan = plan_of(taskrun, now=21, **seen)
    assert (hold_of(taskrun.status), plan.status) == (("True", "BudgetExhausted"), None)
    plan = plan_of(taskrun.with_resolution("BudgetExhausted", "Continue"), now=22, **seen)
    assert (hold_of(plan), progress_of(plan)[0]) == (("False", "NotHeld"), "Suspended")


def test_pod_is_stopped_even_if_the_state_is_unreadable() -> None:
    unreadable = UnreadableState("formatVersion 9")
    taskrun = after(SUSPENDED.with_state(), a_pod().running(), summary=a_summary(1))
    plan = plan_of(taskrun, a_pod().running(), summary=a_summary(1), state=unreadable)
    assert (hold_of(plan), actions_of(plan, CreatePod)) == (("True", "StateUnreadable"), [])
    assert actions_of(plan, DeletePod) == [DeletePod("load-01234-1", "pod-1")]


def test_stop_is_recorded_although_the_state_is_unreadable() -> None:
    unreadable, jobs = UnreadableState("formatVersion 9"), (a_job(),)
    plan = plan_of(SUSPENDED.with_state(), a_pod().running(), summary=a_summary(1, jobs=jobs), state=unreadable)
    assert (last_attempt_of(plan).reason, suspended_condition(plan).status) == ("Suspended", "True")
    assert actions_of(plan, DeletePod) == [DeletePod("load-01234-1", "pod-1")]
    ended = plan_of(SUSPENDED.with_state(), a_pod().exited(1), summary=a_summary(1, jobs=jobs), state=unreadable)
    assert status_of(ended).attempts == (), "an end that is not recorded yet is no stop"
    refused = plan_of(
        SUSPENDED.with_state(), a_pod().failed("OutOfcpu"), summary=a_summary(1, jobs=jobs), state=unreadable
    )
    assert status_of(refused).attempts == ()


def test_restored_taskrun_stays_held_whether_suspended_or_not() -> None:
    taskrun = SUSPENDED.with_metadata(labels={"velero.io/restore-name": "nightly"})
    assert hold_of(plan_of(taskrun)) == ("True", "Restored")
    assert actions_of(plan_of(taskrun), CreatePod) == []


def test_time_of_a_suspension_does_not_count_towards_the_wait_for_what_is_not_ready() -> None:
    late = {"deadlines": {"notReadySeconds": 100}}
    waiting = a_taskrun(suspend=True, **late).with_failed_attempt(1, "NotReady", "notReady")
    waiting = waiting.with_status(not_ready_start_time=at(5))
    again = after(resumed(after(waiting, now=10)), now=510)
    assert again.status.not_ready_start_time == at(505)
    message = (
        '{"reattach": "v1", "kind": "RetryLater", "message": "no input", "retryAfterSeconds": 5, "notReady": true}'
    )
    plan = plan_of(again, a_pod(2).exited(1, seconds=520, message=message), now=525)
    assert (last_attempt_of(plan).cause, last_attempt_of(plan).charged_to) == ("NotReady", "notReady")
