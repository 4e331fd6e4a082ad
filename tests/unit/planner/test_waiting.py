"""A run waits for an external job without a pod, and checks it again."""

from typing import Any

import msgspec
import pytest

from builders import (
    APod,
    ATaskRun,
    a_job,
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
)
from reattach.api.names import ANNOTATION_WAKE
from reattach.api.reasons import Cause
from reattach.api.state import JobCounts, JobReference, JobState, ReportedEnd, StateView
from reattach.planner.conditions import find_condition
from reattach.planner.plan import CreatePod, DeletePod, EmitEvent, Plan, ReleasePod, SealState

JOB = a_job("job-1", submitted_time=at(1))
RELEASED_CODE = 87
NO_BUDGETS = {"application": 0, "disruption": 0, "neverStarted": 0, "notReady": 0}


def an_end(attempt: int = 1, **fields: Any) -> ReportedEnd:
    known = {
        "attempt": attempt,
        "pod_uid": f"pod-{attempt}",
        "time": at(4),
        "kind": "Waiting",
        "message": "Waits for job-1.",
        "retry_after_seconds": 600,
        "job": JobReference(key="load", generation=1),
    }
    return ReportedEnd(**{**known, **fields})


def a_waiting_state(attempt: int = 1, *, job: Any = JOB, **end: Any) -> StateView:
    return msgspec.structs.replace(a_state(attempt, jobs=[job]), end=an_end(attempt, **end))


def a_waiting_run(**spec: Any) -> ATaskRun:
    """Return a TaskRun whose first attempt waits since 5 s, and whose next check is at 605 s."""
    taskrun = a_taskrun(**spec).with_budgets(**NO_BUDGETS).with_state().with_finalizer()
    return taskrun.with_status(status_of(plan_of(taskrun, ENDED, state=a_waiting_state())))


ENDED = a_pod().exited(RELEASED_CODE)


def seen(taskrun: ATaskRun, *pods: APod, **more: Any) -> Plan:
    """Return the plan for a run whose state exists."""
    known = {"summary": a_summary(1, jobs=(JOB,)), "state": a_waiting_state()}
    return plan_of(taskrun, *pods, **{**known, **more})


def conditions_of(plan: Plan, kind: str) -> str | None:
    found = find_condition(status_of(plan).conditions, kind)
    return found.status if found else None


def woken(taskrun: ATaskRun, value: str) -> ATaskRun:
    return taskrun.with_metadata(annotations={ANNOTATION_WAKE: value})


# -- the end of an attempt -------------------------------------------------------------------------


def test_attempt_that_waits_is_charged_to_nothing_and_its_pod_is_deleted() -> None:
    taskrun = a_taskrun().with_budgets(**NO_BUDGETS).with_state()
    plan = seen(taskrun, ENDED, state=a_waiting_state())
    status, attempt = status_of(plan), last_attempt_of(plan)
    assert (attempt.cause, attempt.charged_to, attempt.reason, attempt.message) == (
        "Waiting",
        None,
        "Waiting",
        "Waits for job-1.",
    )
    assert (status.counts.waiting, status.counts.charged) == (1, type(status.counts.charged)())
    assert (status.next_attempt_time, plan.requeue_at) == (at(605), at(605))
    assert [action.pod.metadata.uid for action in actions_of(plan, ReleasePod)] == ["pod-1"]
    assert actions_of(plan, DeletePod) == [DeletePod("load-01234-1", "pod-1")]
    assert [one.reason for one in actions_of(plan, EmitEvent)] == ["Submitted"], "no failure is reported"


def test_condition_of_a_waiting_run_names_the_job_since_when_it_runs_and_the_next_check() -> None:
    plan = plan_of(a_taskrun().with_state(), ENDED, state=a_waiting_state())
    reason, message = progress_of(plan)
    assert reason == "Waiting"
    assert message == (
        "No pod runs while an external job runs. The next attempt checks it at status.nextAttemptTime. "
        "External jobs: load (handle job-1) since 2026-03-01T12:00:01Z. The next check is at 2026-03-01T12:10:05Z."
    )
    assert conditions_of(plan, "Reconciling") == "True"


def test_waiting_run_writes_nothing_until_its_next_check() -> None:
    taskrun = a_waiting_run()
    for now in (11, 300, 604):
        plan = seen(taskrun, now=now)
        assert (plan.status, plan.actions, plan.requeue_at) == (None, (), at(605))
    assert [one.attempt for one in actions_of(seen(taskrun, now=605), CreatePod)] == [2]


def test_each_check_waits_again_and_counts_once() -> None:
    taskrun = a_waiting_run()
    second = a_pod(2).exited(RELEASED_CODE, 610)
    status = status_of(seen(taskrun, second, now=611, state=a_waiting_state(2)))
    assert (status.counts.waiting, status.next_attempt_time) == (2, at(1210))
    assert [one.cause for one in status.attempts] == ["Waiting", "Waiting"]


def test_check_of_a_job_that_runs_emits_no_event_about_reattaching() -> None:
    state = a_waiting_state(2)
    state = msgspec.structs.replace(state, counts=JobCounts(submissions=1, reattachments=1))
    plan = seen(a_waiting_run(), a_pod(2).exited(RELEASED_CODE, 610), now=611, state=state)
    assert actions_of(plan, EmitEvent) == []


@pytest.mark.parametrize(
    "state",
    [
        a_waiting_state(job=a_job("job-1", state=JobState.FAILED)),
        a_waiting_state(job=a_job(None)),
        a_waiting_state(job=a_job("job-1", generation=2)),
        msgspec.structs.replace(a_waiting_state(), jobs=()),
    ],
)
def test_attempt_that_waits_without_an_open_job_is_an_application_error(state: StateView) -> None:
    attempt = last_attempt_of(plan_of(a_taskrun().with_state(), ENDED, state=state))
    assert (attempt.cause, attempt.charged_to, attempt.reason) == ("Application", "application", "NoOpenJob")


def test_termination_message_alone_does_not_make_a_run_wait() -> None:
    pod = a_pod().exited(RELEASED_CODE, message='{"reattach":"v1","kind":"Waiting","message":"w"}')
    attempt = last_attempt_of(plan_of(a_taskrun().with_state(), pod, state=a_state(1, jobs=[JOB])))
    assert attempt.cause == "Application"


def test_disruption_of_an_attempt_that_waits_is_charged_as_a_disruption() -> None:
    pod = ENDED.disrupted(seconds=2).deleted(2)
    attempt = last_attempt_of(plan_of(a_taskrun().with_state(), pod, now=100, state=a_waiting_state()))
    assert (attempt.cause, attempt.charged_to) == ("Disruption", "disruption")


def test_wait_does_not_interrupt_a_row_of_attempts_that_were_not_ready() -> None:
    taskrun = a_taskrun().with_state().with_status(not_ready_start_time=at(1))
    assert status_of(seen(taskrun, ENDED, state=a_waiting_state())).not_ready_start_time == at(1)


def test_pod_of_an_attempt_that_waited_is_deleted_after_a_crash_that_followed_the_status() -> None:
    plan = seen(a_waiting_run(), ENDED.released(), now=20)
    assert (plan.status, actions_of(plan, DeletePod)) == (None, [DeletePod("load-01234-1", "pod-1")])


# -- wake ------------------------------------------------------------------------------------------


def test_woken_run_starts_its_next_attempt_at_once() -> None:
    plan = seen(woken(a_waiting_run(), "now"), now=20)
    assert (status_of(plan).last_handled_wake, status_of(plan).next_attempt_time) == ("now", None)
    assert [one.attempt for one in actions_of(plan, CreatePod)] == [2]


def test_wake_is_handled_once() -> None:
    taskrun = woken(a_waiting_run(), "now")
    taskrun = taskrun.with_status(status_of(seen(taskrun, now=20)))
    assert [one.attempt for one in actions_of(seen(taskrun, now=21), CreatePod)] == [2], "after a crash"
    second = a_pod(2).exited(RELEASED_CODE, 30)
    taskrun = taskrun.with_status(status_of(seen(taskrun, second, now=31, state=a_waiting_state(2))))
    plan = seen(taskrun, now=40)
    assert (plan.status, plan.actions, plan.requeue_at) == (None, (), at(630))
    again = seen(woken(taskrun, "again"), now=40)
    assert [one.attempt for one in actions_of(again, CreatePod)] == [3]


def test_wake_during_a_check_leads_to_another_check() -> None:
    taskrun, second = woken(a_waiting_run(), "now"), a_pod(2).running(606)
    running = seen(taskrun, second, now=610)
    assert status_of(running).last_handled_wake is None
    taskrun = taskrun.with_status(status_of(running))
    plan = seen(taskrun, a_pod(2).exited(RELEASED_CODE, 611), now=612, state=a_waiting_state(2))
    assert (status_of(plan).last_handled_wake, status_of(plan).next_attempt_time) == ("now", None)


def test_long_wake_is_cut_and_still_handled_once() -> None:
    taskrun = woken(a_waiting_run(), "\n" + "x" * 100_000)
    status = status_of(seen(taskrun, now=20))
    assert status.last_handled_wake is not None
    assert len(status.last_handled_wake.encode()) <= 64
    assert status.last_handled_wake.isprintable()
    assert seen(taskrun.with_status(status), now=21).status is None


@pytest.mark.parametrize("cause", [cause for cause in Cause if cause is not Cause.WAITING])
def test_wake_does_nothing_to_a_run_that_does_not_wait(cause: Cause) -> None:
    taskrun = a_taskrun().with_budgets(application=9).with_failed_attempt(1, cause.value)
    taskrun = woken(taskrun.with_status(next_attempt_time=at(600)), "now")
    decision = decision_of(taskrun, now=20)
    assert not isinstance(decision, Plan) or decision.status is None or decision.status.last_handled_wake is None


# -- other requests while no pod runs --------------------------------------------------------------


def test_suspended_waiting_run_starts_no_attempt_and_checks_once_it_is_resumed() -> None:
    taskrun = a_waiting_run().with_spec(suspend=True)
    plan = seen(taskrun, now=700)
    assert (progress_of(plan)[0], status_of(plan).next_attempt_time, actions_of(plan, CreatePod)) == (
        "Suspended",
        None,
        [],
    )
    taskrun = taskrun.with_status(status_of(plan)).with_spec(suspend=False)
    taskrun = taskrun.with_status(status_of(seen(taskrun, now=800)))
    assert [one.attempt for one in actions_of(seen(taskrun, now=801), CreatePod)] == [2]


def test_cancelled_waiting_run_seals_and_cleans_up() -> None:
    taskrun = a_waiting_run().with_spec(cancel=True)
    state = msgspec.structs.replace(a_waiting_state(), epoch=a_state(1, can_cleanup=True).epoch)
    plan = seen(taskrun, now=20, state=state)
    taskrun = taskrun.with_status(status_of(plan))
    assert isinstance(decision_of(taskrun, now=20, state=state), SealState)


def test_deadline_of_the_run_bounds_the_wait() -> None:
    taskrun = a_waiting_run(deadlines={"runSeconds": 100})
    assert seen(taskrun, now=20).requeue_at == at(100)
    assert status_of(seen(taskrun, now=100, state=a_waiting_state())).ending is not None


def test_waiting_attempts_fold() -> None:
    taskrun = a_waiting_run(historyLimit=1)
    second = a_pod(2).exited(RELEASED_CODE, 610)
    status = status_of(seen(taskrun, second, now=611, state=a_waiting_state(2)))
    assert [(one.cause, one.count) for one in status.folded_attempts] == [("Waiting", 1)]
