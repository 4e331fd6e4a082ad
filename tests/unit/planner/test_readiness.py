"""The conditions Reconciling and Stalled, from which tools that use kstatus compute the readiness."""

import pytest

from builders import NEW_STATUS, a_job, a_pod, a_state, a_summary, a_taskrun, at, plan_of, status_of
from reattach.api.reasons import ConditionType
from reattach.api.state import JobState
from reattach.api.taskrun import TaskRunStatus
from reattach.planner.plan import AbsentState

READINESS = {ConditionType.RECONCILING, ConditionType.STALLED}
RETRIED = a_taskrun().with_budgets(application=3)
RUNNING = status_of(plan_of(RETRIED, a_pod().running(), now=3))
HELD = status_of(plan_of(RETRIED.with_failed_attempt(1).with_state(), state=AbsentState()))
JOB = a_job()


def readiness_of(status: TaskRunStatus) -> list[tuple[str, str, str]]:
    """Return type, reason and message of each readiness condition that is True."""
    found = [one for one in status.conditions if one.type in READINESS]
    assert all(one.status == "True" for one in found)
    return [(one.type, one.reason, one.message) for one in found]


def test_readiness_running_is_reconciling() -> None:
    assert readiness_of(RUNNING) == [("Reconciling", "Running", "Attempt 1 is running.")]


def test_readiness_backing_off_is_reconciling() -> None:
    [(kind, reason, _)] = readiness_of(status_of(plan_of(RETRIED, a_pod().exited(1))))
    assert (kind, reason) == ("Reconciling", "BackingOff")


def test_readiness_held_is_stalled() -> None:
    [(kind, reason, message)] = readiness_of(HELD)
    assert (kind, reason) == ("Stalled", "StateLost")
    assert message == next(one.message for one in HELD.conditions if one.type == ConditionType.HELD)


def test_readiness_after_a_hold_is_reconciling() -> None:
    resolved = RETRIED.with_status(HELD).with_resolution("StateLost", "StartEmpty")
    [(kind, _, _)] = readiness_of(status_of(plan_of(resolved, state=AbsentState(), now=60)))
    assert kind == "Reconciling"


def test_readiness_succeeded_has_no_condition() -> None:
    for status in (NEW_STATUS, RUNNING):
        assert readiness_of(status_of(plan_of(RETRIED.with_status(status), a_pod().exited(0), now=30))) == []


def test_readiness_succeeded_after_a_hold_has_no_condition() -> None:
    taskrun = RETRIED.with_state()
    unknown = a_job(None, held=True, holds=1)
    held = taskrun.with_status(status_of(plan_of(taskrun, a_pod().exited(1), state=a_state(1, jobs=[unknown]))))
    completed = a_state(1, 1, jobs=[a_job(state=JobState.SUCCEEDED)])
    status = status_of(plan_of(held, a_pod().exited(1).released(), state=completed, summary=a_summary(1, 1), now=60))
    assert [kind for kind, _, _ in readiness_of(held.status)] == ["Stalled"]
    assert (status.outcome, readiness_of(status)) == ("Succeeded", [])


@pytest.mark.parametrize("status", [NEW_STATUS, RUNNING, HELD])
def test_readiness_cancelled_is_stalled(status: TaskRunStatus) -> None:
    cancelled = a_taskrun(cancel=True).with_status(status, attempts=(), state=None)
    plan = plan_of(cancelled)
    assert readiness_of(status_of(plan)) == [("Stalled", "Cancelled", "The TaskRun was cancelled.")]


def test_readiness_failed_is_stalled() -> None:
    [(kind, reason, _)] = readiness_of(status_of(plan_of(a_taskrun(), a_pod().exited(1))))
    assert (kind, reason) == ("Stalled", "ApplicationFailed")


def test_readiness_of_an_earlier_version_is_not_written_alone() -> None:
    earlier = RETRIED.with_status(
        RUNNING, conditions=tuple(one for one in RUNNING.conditions if one.type not in READINESS)
    )
    assert plan_of(earlier, a_pod().running(), now=60).status is None


def test_readiness_default_time_is_replaced_and_then_kept() -> None:
    times = {one.type: one.last_transition_time for one in RUNNING.conditions}
    assert times == {"Succeeded": at(3), "Reconciling": at(3)}
    failed = status_of(plan_of(RETRIED.with_status(RUNNING), a_pod().exited(1), now=6))
    assert {one.type: one.last_transition_time for one in failed.conditions} == times


def test_readiness_default_is_not_written_with_the_first_jobs() -> None:
    taskrun = RETRIED.with_state().with_finalizer()
    plan = plan_of(taskrun, a_pod(), summary=a_summary(1, jobs=(JOB,)), state=a_state(1, jobs=[JOB]), now=3)
    status = status_of(plan)
    assert (len(status.external_jobs), status.conditions) == (1, NEW_STATUS.conditions)
