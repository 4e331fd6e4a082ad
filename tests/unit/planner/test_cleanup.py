"""Cleanup attempts: the pods that cancel external jobs after the run has begun to end."""

import json
from typing import Any

import msgspec

from builders import (
    SEALED,
    ATaskRun,
    a_job,
    a_pod,
    a_state,
    a_taskrun,
    actions_of,
    at,
    condition_of,
    last_attempt_of,
    progress_of,
    status_of,
    teardown_plan_of,
)
from reattach.api.reasons import ConditionType
from reattach.api.state import JobState
from reattach.api.taskrun import AttemptPurpose
from reattach.planner.plan import CreatePod, DeletePod, ReleaseTaskRun

STOPPED = a_pod().running().deleted().exited(143, seconds=8).released()
JOB = a_job(adapter="ray", url="https://ray.example/job-1")


def can_cancel(*jobs: Any, opened_by: int = 1, **more: Any) -> Any:
    """Return a sealed state whose task has registered adapters."""
    return a_state(opened_by, seal=SEALED, jobs=jobs, can_cleanup=True, **more)


def cancelled(**cleanup: Any) -> ATaskRun:
    """Return a cancelled TaskRun whose first attempt has ended, with its ending recorded."""
    taskrun = a_taskrun(cancel=True, cleanup=cleanup).with_state().with_finalizer()
    return taskrun.with_status(status_of(teardown_plan_of(taskrun, STOPPED, state=can_cancel(JOB))))


def a_cleanup_pod(number: int = 2) -> Any:
    return a_pod(number).with_metadata(labels={"reattach.dev/purpose": "Cleanup"})


def test_cleanup_pod_is_created_once_the_ending_is_recorded_and_the_state_sealed() -> None:
    plan = teardown_plan_of(cancelled(), STOPPED, state=can_cancel(JOB))
    [creation] = actions_of(plan, CreatePod)
    assert (creation.attempt, creation.purpose) == (2, AttemptPurpose.CLEANUP)
    assert plan.requeue_at == at(10 + 900)
    pod = json.loads(creation.body)
    assert pod["metadata"]["labels"]["reattach.dev/purpose"] == "Cleanup"
    assert pod["spec"]["activeDeadlineSeconds"] == 900
    assert {"name": "REATTACH_PHASE", "value": "cleanup"} in pod["spec"]["containers"][0]["env"]


def test_run_is_cancelled_only_after_its_jobs_have_ended() -> None:
    taskrun, pod = cancelled(), a_cleanup_pod()
    plan = teardown_plan_of(taskrun, STOPPED, pod, state=can_cancel(JOB))
    assert progress_of(plan) == ("Ending", "Cleanup attempt 2 was started. Open external jobs: 1.")
    assert (last_attempt_of(plan).number, last_attempt_of(plan).purpose) == (2, "Cleanup")
    taskrun = taskrun.with_status(status_of(plan))
    asked = msgspec.structs.replace(JOB, cancel_requested_time=at(12.5))
    plan = teardown_plan_of(taskrun, STOPPED, pod.running(), state=can_cancel(asked, opened_by=2), now=13)
    [job] = status_of(plan).external_jobs
    assert (job.state, job.cancel_requested_time) == ("Cancelling", at(12))
    assert not actions_of(plan, ReleaseTaskRun)
    over = msgspec.structs.replace(asked, state=JobState.CANCELLED)
    ended, taskrun = pod.exited(0, seconds=20), taskrun.with_status(status_of(plan))
    plan = teardown_plan_of(taskrun, STOPPED, ended, state=can_cancel(over, opened_by=2), now=20)
    assert actions_of(plan, ReleaseTaskRun) == [ReleaseTaskRun()]
    taskrun = taskrun.with_metadata(finalizers=[])
    plan = teardown_plan_of(taskrun, STOPPED, ended, state=can_cancel(over, opened_by=2), now=20)
    status = status_of(plan)
    assert (status.outcome, status.orphaned, [job.state for job in status.external_jobs]) == (
        "Cancelled",
        False,
        ["Cancelled"],
    )
    assert (last_attempt_of(plan).cause, status.counts.charged.cleanup) == ("Succeeded", 0)


def test_run_ends_at_the_deadline_of_its_cleanup_although_the_pod_still_runs() -> None:
    taskrun, pod = cancelled(), a_cleanup_pod().running()
    taskrun = taskrun.with_status(status_of(teardown_plan_of(taskrun, STOPPED, pod, state=can_cancel(JOB))))
    plan = teardown_plan_of(taskrun, STOPPED, pod, state=can_cancel(JOB), now=910)
    last = last_attempt_of(plan)
    assert (last.cause, last.end, last.charged_to) == ("Stopped", "Presumed", "cleanup")
    assert [delete.name for delete in actions_of(plan, DeletePod)] == ["load-01234-2"]
    [release] = actions_of(plan, ReleaseTaskRun)
    assert release.orphans is not None
    assert release.orphans.jobs[0].why == "The time for the cleanup was over (spec.cleanup.deadlineSeconds is 900)."
    assert (status_of(plan).orphaned, status_of(plan).next_attempt_time) == (True, None)
    assert (
        "External job load (handle job-1, https://ray.example/job-1): " in condition_of(plan, ConditionType.ORPHANED)[1]
    )
