"""`spec.podReplacementPolicy`: when the next attempt starts beside a pod that is being deleted."""

from typing import Any

import pytest

from builders import (
    APod,
    ATaskRun,
    a_pod,
    a_state,
    a_summary,
    a_taskrun,
    actions_of,
    at,
    decision_of,
    last_attempt_of,
    plan_of,
    progress_of,
    status_of,
    teardown_plan_of,
)
from reattach.planner.plan import CreatePod, DeletePod, Plan, ReadState, ReleasePod

IMPATIENT = a_taskrun(podReplacementPolicy="TerminatingOrFailed")
OVERDUE = at(4 + 30 + 10)
"""When the Node of a pod that should have ended is read."""
TERMINATING = a_pod().running().deleted(4)


def ended(taskrun: ATaskRun, pod: APod, **seen: Any) -> ATaskRun:
    """Return the TaskRun after the end of the attempt is recorded, and its backoff is over."""
    status = status_of(plan_of(taskrun, pod, **seen))
    assert status.attempts[-1].finish_time is not None
    return taskrun.with_status(status, next_attempt_time=None)


def created(plan: Plan) -> list[int]:
    return [action.attempt for action in actions_of(plan, CreatePod)]


def test_decide_terminating_pod_is_replaced_and_its_end_is_presumed() -> None:
    assert decision_of(IMPATIENT, TERMINATING, state=None) == ReadState()
    plan = plan_of(IMPATIENT, TERMINATING)
    attempt = last_attempt_of(plan)
    assert (attempt.cause, attempt.reason, attempt.end) == ("Disruption", "Deleted", "Presumed")
    assert (attempt.charged_to, attempt.finish_time, status_of(plan).counts.last_presumed) == ("disruption", at(10), 1)
    assert progress_of(plan)[0] == "BackingOff"
    after = plan_of(ended(IMPATIENT, TERMINATING), TERMINATING, now=11)
    assert (created(after), actions_of(after, ReleasePod), actions_of(after, DeletePod)) == ([2], [], [])
    assert after.requeue_at == OVERDUE


def test_decide_terminating_pod_is_awaited_by_default() -> None:
    plan = plan_of(a_taskrun(), TERMINATING)
    assert (plan.status, plan.actions, plan.requeue_at) == (None, (), OVERDUE)


def test_decide_replaced_pod_is_released_once_its_end_is_reported() -> None:
    taskrun = ended(IMPATIENT, TERMINATING)
    plan = plan_of(taskrun, TERMINATING.exited(143, seconds=12), a_pod(2).running(), now=13)
    assert [action.pod.metadata.name for action in actions_of(plan, ReleasePod)] == ["load-01234-1"]
    status = status_of(plan)
    assert (status.attempts[0].end, status.counts.last_presumed) == ("Reported", 0)


def test_decide_leftover_that_is_not_deleted_is_awaited() -> None:
    leftover = a_pod().with_sidecar().exited(1)
    taskrun = ended(IMPATIENT.with_budgets(application=1), leftover)
    assert created(plan_of(taskrun, leftover.stopped(10), now=11)) == []
    assert created(plan_of(taskrun, leftover.stopped(10).deleted(11), now=12)) == [2]


def test_decide_terminating_pod_that_never_started_is_charged_for_that() -> None:
    pending = a_pod().waiting("ImagePullBackOff", "not found")
    given_up = IMPATIENT.with_status(status_of(plan_of(IMPATIENT, pending, now=900)))
    attempt = last_attempt_of(plan_of(given_up, pending.deleted(900), now=901))
    assert (attempt.cause, attempt.reason, attempt.end) == ("NeverStarted", "ImagePullBackOff", "Presumed")


def test_decide_terminating_pod_that_recorded_its_completion_is_awaited_because_no_attempt_follows() -> None:
    done = {"state": a_state(1, completed_by=1), "summary": a_summary(1, completed_by=1)}
    plan = plan_of(IMPATIENT.with_state(), TERMINATING, **done)
    assert (plan.status, created(plan), plan.requeue_at) == (None, [], OVERDUE)
    plan = plan_of(IMPATIENT.with_state(), TERMINATING.exited(143, seconds=12), now=13, **done)
    assert last_attempt_of(plan).cause == "Succeeded"


def test_decide_last_attempt_of_the_budget_is_awaited_because_it_may_still_complete() -> None:
    taskrun = IMPATIENT.with_budgets(disruption=0)
    plan = plan_of(taskrun, TERMINATING)
    assert (plan.status, plan.requeue_at) == (None, OVERDUE)
    plan = plan_of(taskrun, TERMINATING.exited(143, seconds=12).failed(""), now=13)
    assert (status_of(plan).outcome, last_attempt_of(plan).end) == ("Failed", "Reported")


@pytest.mark.parametrize("ending", [IMPATIENT.with_spec(cancel=True), IMPATIENT.with_finalizer().being_deleted()])
def test_teardown_policy_does_not_apply_to_the_end_of_a_run(ending: ATaskRun) -> None:
    plan = teardown_plan_of(ending.with_state(), TERMINATING, state=a_state(1))
    assert progress_of(plan)[0] == "Ending"
    assert (status_of(plan).outcome, status_of(plan).attempts) == (None, ())


def test_teardown_replaced_pod_is_awaited_before_the_outcome() -> None:
    taskrun = ended(IMPATIENT, TERMINATING)
    plan = teardown_plan_of(taskrun, TERMINATING, a_pod(2).exited(0), now=15)
    assert (status_of(plan).outcome, last_attempt_of(plan).cause) == (None, "Succeeded")
    plan = teardown_plan_of(taskrun, TERMINATING.exited(143, seconds=12), a_pod(2).exited(0), now=15)
    assert status_of(plan).outcome == "Succeeded"


def test_suspension_policy_does_not_apply_until_the_run_is_resumed() -> None:
    suspended = IMPATIENT.with_spec(suspend=True).with_attempt(1)
    suspended = suspended.with_status(status_of(plan_of(suspended, a_pod().running())))
    plan = plan_of(suspended, TERMINATING)
    assert (plan.status, plan.actions, created(plan)) == (None, (), [])

    resumed = suspended.with_spec(suspend=False)
    plan = plan_of(resumed, TERMINATING, now=11)
    attempt = last_attempt_of(plan)
    assert (attempt.cause, attempt.end, attempt.charged_to) == ("Stopped", "Presumed", None)
    assert created(plan_of(resumed.with_status(status_of(plan)), TERMINATING, now=12)) == [2]


def test_decide_terminating_pod_is_awaited_if_the_run_would_end_with_the_first_status() -> None:
    """The deadline of the run counts from the first attempt that status lists."""
    plan = plan_of(IMPATIENT.with_spec(deadlines={"runSeconds": 5}), TERMINATING)
    assert (plan.status, plan.actions) == (None, ())
