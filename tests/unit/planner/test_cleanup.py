"""Cleanup attempts: the pods that cancel external jobs after the run has begun to end."""

import json
from dataclasses import replace
from typing import Any

import msgspec
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
    last_attempt_of,
    plan_of,
    progress_of,
    status_of,
    teardown_plan_of,
)
from reattach.api.names import FINALIZER_EXTERNAL_JOBS
from reattach.api.reasons import ConditionType
from reattach.api.state import JobOrigin, JobState, JobSummary, SealPurpose
from reattach.api.taskrun import AttemptPurpose
from reattach.planner.history import with_folded
from reattach.planner.plan import (
    AbsentState,
    CreatePod,
    DeletePod,
    EmitEvent,
    Plan,
    PodRejection,
    PodRejectionKind,
    ProtectTaskRun,
    ReleaseTaskRun,
    SealState,
)

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


def test_number_of_open_jobs_is_shown_anew_although_the_old_one_begins_with_the_same_digit() -> None:
    jobs = [a_job(key=f"load-{number}") for number in range(10)]
    taskrun, pod = cancelled(), a_cleanup_pod().running()
    plan = teardown_plan_of(taskrun, STOPPED, pod, state=can_cancel(*jobs))
    assert progress_of(plan)[1] == "Cleanup attempt 2 was started. Open external jobs: 10."
    taskrun = taskrun.with_status(status_of(plan))
    others = [msgspec.structs.replace(job, state=JobState.CANCELLED) for job in jobs[1:]]
    plan = teardown_plan_of(taskrun, STOPPED, pod, state=can_cancel(jobs[0], *others))
    assert progress_of(plan)[1] == "Cleanup attempt 2 was started. Open external jobs: 1."


def test_run_ends_at_the_deadline_of_its_cleanup_although_the_pod_still_runs() -> None:
    taskrun, pod = cancelled(), a_cleanup_pod().running()
    taskrun = taskrun.with_status(status_of(teardown_plan_of(taskrun, STOPPED, pod, state=can_cancel(JOB))))
    plan = teardown_plan_of(taskrun, STOPPED, pod, state=can_cancel(JOB), now=910)
    last = last_attempt_of(plan)
    assert (last.cause, last.end, last.charged_to) == ("Stopped", "Presumed", "cleanup")
    assert [delete.name for delete in actions_of(plan, DeletePod)] == ["load-01234-2"]
    assert (actions_of(plan, ReleaseTaskRun), plan.requeue_at) == ([], at(910)), "its pod is deleted first"
    taskrun = taskrun.with_status(status_of(plan))
    plan = teardown_plan_of(taskrun, STOPPED, pod.deleted(910), state=can_cancel(JOB), now=910)
    [release] = actions_of(plan, ReleaseTaskRun)
    assert release.orphans is not None
    assert release.orphans.jobs[0].why == "The time for the cleanup was over (spec.cleanup.deadlineSeconds is 900)."
    assert (status_of(plan).orphaned, status_of(plan).next_attempt_time) == (True, None)
    assert (
        "External job load (handle job-1, https://ray.example/job-1): " in condition_of(plan, ConditionType.ORPHANED)[1]
    )


# -- when a cleanup starts -------------------------------------------------------------------------


def ending(taskrun: ATaskRun, *pods: APod, **seen: Any) -> ATaskRun:
    """Return the TaskRun after its ending is recorded."""
    plan = plan_of(taskrun, *pods, **seen)
    assert status_of(plan).ending is not None
    return taskrun.with_status(status_of(plan))


def with_jobs(taskrun: ATaskRun) -> ATaskRun:
    return taskrun.with_state().with_finalizer()


def creates(plan: Plan) -> list[int]:
    return [creation.attempt for creation in actions_of(plan, CreatePod)]


def reasons_of(plan: Plan) -> list[str]:
    """Return why the jobs are left running."""
    [release] = actions_of(plan, ReleaseTaskRun)
    return [job.why for job in release.orphans.jobs] if release.orphans else []


@pytest.mark.parametrize(
    "job",
    [
        a_job(origin=JobOrigin.ADOPTED),
        a_job(origin=JobOrigin.EXISTED, preexisting=True),
    ],
)
def test_cleanup_keeps_job_of_another_run_unless_the_spec_requests_it(job: JobSummary) -> None:
    taskrun = with_jobs(a_taskrun(cancel=True))
    plan = teardown_plan_of(taskrun, STOPPED, state=can_cancel(job))
    assert (creates(plan), reasons_of(plan)) == (
        [],
        ["This TaskRun did not submit it, and spec.cleanup.adopted is not Cancel."],
    )
    taskrun = taskrun.with_spec(cleanup={"adopted": "Cancel"})
    assert creates(teardown_plan_of(taskrun, STOPPED, state=can_cancel(job))) == [2]


@pytest.mark.parametrize("origin", [JobOrigin.EXISTED, JobOrigin.FOUND, JobOrigin.REPORTED])
def test_cleanup_keeps_job_that_another_run_with_the_same_key_may_have_submitted(origin: JobOrigin) -> None:
    taskrun = with_jobs(a_taskrun(cancel=True)).with_spec(submission={"idempotencyKey": "orders"})
    state = can_cancel(a_job(origin=origin))
    plan = teardown_plan_of(taskrun, STOPPED, state=state)
    why = "Another TaskRun with the same idempotencyKey may have submitted it, and spec.cleanup.adopted is not Cancel."
    assert (creates(plan), reasons_of(plan)) == ([], [why])
    taskrun = taskrun.with_spec(cleanup={"adopted": "Cancel"})
    assert creates(teardown_plan_of(taskrun, STOPPED, state=state)) == [2]


@pytest.mark.parametrize("job", [a_job(), a_job(origin=JobOrigin.RESUBMITTED), a_job(None)])
def test_cleanup_cancels_its_own_job_also_with_a_key(job: JobSummary) -> None:
    taskrun = with_jobs(a_taskrun(cancel=True)).with_spec(submission={"idempotencyKey": "orders"})
    assert creates(teardown_plan_of(taskrun, STOPPED, state=can_cancel(job))) == [2]


def test_cleanup_cancels_job_that_an_earlier_submission_of_the_run_created() -> None:
    job = a_job(origin=JobOrigin.EXISTED)
    assert creates(teardown_plan_of(with_jobs(a_taskrun(cancel=True)), STOPPED, state=can_cancel(job))) == [2]


FAILED = a_pod().exited(1).released()
KEY = {"submission": {"idempotencyKey": "orders"}}


@pytest.mark.parametrize(
    "spec, pod, deleted, why",
    [
        ({"cancel": True, "cleanup": {"onCancel": "Orphan"}}, STOPPED, False, "spec.cleanup.onCancel is Orphan."),
        ({"cancel": True, "cleanup": {"onFailure": "Orphan", "onDelete": "Orphan"}}, STOPPED, False, None),
        ({"cleanup": {"onFailure": "Orphan"}}, FAILED, False, "spec.cleanup.onFailure is Orphan."),
        ({"cleanup": {"onCancel": "Orphan", "onDelete": "Orphan"}}, FAILED, False, None),
        ({"cleanup": {"onDelete": "Orphan"}}, STOPPED, True, "spec.cleanup.onDelete is Orphan."),
        ({"cleanup": {"onCancel": "Orphan", "onFailure": "Orphan"}}, STOPPED, True, None),
        ({**KEY, "cleanup": {"onDelete": "Cancel"}}, STOPPED, True, None),
        (
            KEY,
            STOPPED,
            True,
            "The next TaskRun with the same spec.submission.idempotencyKey takes it over (spec.cleanup.onDelete).",
        ),
    ],
)  # fmt: skip
def test_policy_of_an_ending_decides_whether_jobs_are_cancelled(
    spec: dict[str, Any], pod: APod, *, deleted: bool, why: str | None
) -> None:
    taskrun = with_jobs(a_taskrun(**spec))
    taskrun = taskrun.being_deleted() if deleted else taskrun
    plan = teardown_plan_of(taskrun, pod, state=can_cancel(JOB))
    assert creates(plan) == ([2] if why is None else [])
    assert why is None or reasons_of(plan) == [why]


def test_policy_is_the_one_of_the_ending_although_the_run_is_deleted_since() -> None:
    taskrun = cancelled(onCancel="Cancel", onDelete="Orphan").being_deleted()
    plan = teardown_plan_of(taskrun, STOPPED, state=can_cancel(JOB))
    assert creates(plan) == [2]
    assert status_of(plan).ending if plan.status else True


def test_success_starts_no_cleanup_and_stops_one_that_runs() -> None:
    taskrun = with_jobs(a_taskrun(completion="ExitCode"))
    plan = teardown_plan_of(taskrun, a_pod().exited(0).released(), state=can_cancel(JOB))
    assert (creates(plan), reasons_of(plan)) == ([], ["A success cancels no job."])
    assert status_of(plan).ending is None

    # The node of the first attempt was lost when the run was cancelled, and reports its exit later.
    taskrun, lost = cancelled(), a_pod().exited(0, seconds=3).released()
    completed = can_cancel(opened_by=2, completed_by=1, pod_uid="pod-1")
    plan = teardown_plan_of(taskrun, lost, a_cleanup_pod().running(), state=completed)
    assert [delete.name for delete in actions_of(plan, DeletePod)] == ["load-01234-2"]
    plan = teardown_plan_of(taskrun, lost, a_cleanup_pod().running().deleted(), state=completed)
    assert (actions_of(plan, DeletePod), actions_of(plan, ReleaseTaskRun)) == ([], [])


def test_task_that_registered_nothing_gets_no_cleanup_pod() -> None:
    plan = teardown_plan_of(with_jobs(a_taskrun(cancel=True)), STOPPED, state=a_state(1, seal=SEALED, jobs=[JOB]))
    why = "The task registered no adapter and no cleanup handler, and spec.cleanup.command is unset."
    assert (creates(plan), reasons_of(plan)) == ([], [why])


def test_namespace_that_is_being_deleted_gets_no_cleanup_pod() -> None:
    taskrun = with_jobs(a_taskrun()).being_deleted()
    plan = teardown_plan_of(taskrun, STOPPED, state=can_cancel(JOB), namespace_ends=True)
    assert (creates(plan), reasons_of(plan)) == ([], ["The namespace is being deleted, so no cleanup pod can start."])


@pytest.mark.parametrize(
    "template, why",
    [
        (
            {"spec": {"containers": [{"name": "task", "image": "task:1", "command": ["other"]}]}},
            "spec.template changed in a field that can't be changed after the first attempt. No cleanup pod is made from it.",
        ),
        ({"spec": {"containers": "none"}}, "No cleanup pod can be built: spec.template must be a pod template: "),
    ],
)
def test_template_that_cannot_be_used_gets_no_cleanup_pod(template: dict[str, Any], why: str) -> None:
    taskrun = cancelled().with_spec(template=template)
    plan = teardown_plan_of(taskrun, STOPPED, state=can_cancel(JOB))
    assert creates(plan) == []
    assert reasons_of(plan)[0].startswith(why)


def test_foreground_deletion_is_awaited_before_the_cleanup_starts() -> None:
    taskrun = with_jobs(a_taskrun()).being_deleted()
    foreground = taskrun.with_metadata(finalizers=["foregroundDeletion", FINALIZER_EXTERNAL_JOBS])
    plan = teardown_plan_of(foreground, STOPPED, state=can_cancel(JOB))
    assert (creates(plan), actions_of(plan, ReleaseTaskRun), plan.requeue_at) == ([], [], at(910))
    assert "foreground deletion" in progress_of(plan)[1]
    begun = taskrun.with_status(status_of(plan))
    assert creates(teardown_plan_of(begun, STOPPED, state=can_cancel(JOB), now=60)) == [2]


def test_paused_installation_starts_no_cleanup_pod_until_the_deadline() -> None:
    taskrun = cancelled()
    plan = teardown_plan_of(taskrun, STOPPED, state=can_cancel(JOB), paused=True)
    assert (creates(plan), plan.requeue_at) == ([], at(910))
    assert "operator.paused" in progress_of(plan)[1]
    plan = teardown_plan_of(taskrun, STOPPED, state=can_cancel(JOB), paused=True, now=910)
    assert reasons_of(plan) == ["The time for the cleanup was over (spec.cleanup.deadlineSeconds is 900)."]


def test_job_with_a_handle_is_cancelled_while_the_pod_of_the_run_still_terminates() -> None:
    stopping = a_pod().running().deleted()
    taskrun = ending(with_jobs(a_taskrun(cancel=True)), stopping, state=can_cancel(JOB))
    plan = teardown_plan_of(taskrun, stopping, state=can_cancel(JOB))
    assert creates(plan) == [2]
    assert [(one.number, one.finish_time) for one in status_of(plan).attempts] == [(1, None)], (
        "an attempt below the newest one that is not listed counts as ended"
    )


def test_handler_waits_for_the_end_of_the_task_although_a_job_could_be_cancelled() -> None:
    stopping = a_pod().running().deleted()
    state = can_cancel(JOB, cleanup_handler=True)
    taskrun = ending(with_jobs(a_taskrun(cancel=True)), stopping, state=state)
    assert creates(teardown_plan_of(taskrun, stopping, state=state)) == []
    assert creates(teardown_plan_of(taskrun, STOPPED, state=state)) == [2]


def test_job_that_is_reported_after_a_cleanup_attempt_is_cancelled_by_another_one() -> None:
    plan = failed_cleanup(a_pod(2).exited(0, seconds=18))
    taskrun = cancelled().with_status(status_of(plan))
    for reported, created in [(17, []), (30, [3])]:
        job = a_job(origin=JobOrigin.REPORTED, submitted_time=at(reported))
        assert creates(teardown_plan_of(taskrun, STOPPED, state=can_cancel(job), now=40)) == created


def test_stopped_pod_is_deleted_before_the_cleanup_and_the_operator_continues_at_once() -> None:
    taskrun = with_jobs(a_taskrun(cancel=True))
    plan = teardown_plan_of(taskrun, a_pod().running(), state=can_cancel(JOB))
    assert (len(actions_of(plan, DeletePod)), plan.requeue_at) == (1, at(10))
    plan = teardown_plan_of(taskrun, a_pod().running(), state=can_cancel())
    assert (len(actions_of(plan, DeletePod)), plan.requeue_at) == (1, at(910))


@pytest.mark.parametrize("handler", [True, False])
def test_intent_and_handler_wait_until_no_pod_of_the_run_runs(handler: bool) -> None:
    state = can_cancel(*([] if handler else [a_job(None)]), cleanup_handler=handler)
    taskrun = ending(with_jobs(a_taskrun(cancel=True)), a_pod().running(), state=state)
    plan = teardown_plan_of(taskrun, a_pod().running().deleted(), state=state)
    assert (creates(plan), actions_of(plan, ReleaseTaskRun)) == ([], [])
    assert creates(teardown_plan_of(taskrun, STOPPED, state=state)) == [2]


def test_registered_adapters_alone_start_no_cleanup_without_an_open_job() -> None:
    over = msgspec.structs.replace(JOB, state=JobState.FAILED)
    plan = teardown_plan_of(a_taskrun(cancel=True).with_state(), STOPPED, state=can_cancel(over))
    assert (status_of(plan).outcome, status_of(plan).ending, creates(plan)) == ("Cancelled", None, [])


@pytest.mark.parametrize("action, created", [("Fail", []), ("Resubmit", []), ("Adopt", [2])])
def test_job_that_a_resolution_denies_gets_no_cleanup(action: str, created: list[int]) -> None:
    held = a_job(None, held=True, holds=1)
    resolution = {"action": action, **({"handle": "job-7"} if action == "Adopt" else {})}
    taskrun = with_jobs(a_taskrun(cancel=True)).with_resolution("SubmissionUnknown", **resolution)
    assert creates(teardown_plan_of(taskrun, STOPPED, state=can_cancel(held))) == created


@pytest.mark.parametrize("action", ["Fail", "Resubmit"])
def test_running_job_of_another_request_is_cancelled_or_named_because_no_resolution_denies_it(action: str) -> None:
    running = msgspec.structs.replace(JOB, held=True, holds=1)
    taskrun = with_jobs(a_taskrun(cancel=action == "Resubmit")).with_resolution("SubmissionUnknown", action)
    assert creates(teardown_plan_of(taskrun, STOPPED, state=can_cancel(running))) == [2]
    unable = a_state(1, seal=SEALED, jobs=[running])
    plan = teardown_plan_of(taskrun, STOPPED, state=unable)
    assert [(job.handle, job.state) for job in status_of(plan).external_jobs] == [("job-1", "Orphaned")]
    assert [release.orphans is not None for release in actions_of(plan, ReleaseTaskRun)] == [True]


def test_job_that_is_not_found_is_denied_by_a_resolution() -> None:
    absent = msgspec.structs.replace(JOB, state=JobState.NOT_FOUND, held=True, holds=1)
    taskrun = with_jobs(a_taskrun()).with_resolution("SubmissionUnknown", "Fail")
    assert creates(teardown_plan_of(taskrun, STOPPED, state=can_cancel(absent))) == []


COMMAND = {"command": ["sh", "-c", "stop-all"]}


@pytest.mark.parametrize(
    "taskrun, runs",
    [
        (a_taskrun().with_failed_attempt(1), True),
        (a_taskrun().with_failed_attempt(1, "NeverStarted", "neverStarted"), False),
        (a_taskrun().with_failed_attempt(1, "NeverStarted", "neverStarted").with_state(), True),
        (a_taskrun().with_failed_attempt(1).with_failed_attempt(2, "NeverStarted", "neverStarted"), True),
        (
            a_taskrun()
            .with_failed_attempt(1, "NotReady", "notReady")
            .with_failed_attempt(2, "NeverStarted", "neverStarted"),
            True,
        ),
        (
            a_taskrun()
            .with_attempt(1, finish_time=at(1), end="Reported", cause="Stopped", reason="Suspended")
            .with_failed_attempt(2, "NeverStarted", "neverStarted"),
            True,
        ),
        (a_taskrun(), False),
    ],
)
def test_command_runs_if_a_run_attempt_may_have_started(taskrun: ATaskRun, *, runs: bool) -> None:
    wanted = taskrun.with_spec(cancel=True, cleanup=COMMAND)
    folded = wanted.with_status(with_folded(wanted.status, 1))
    for one in (wanted, folded):
        plan = teardown_plan_of(one, state=a_state(1, seal=SEALED) if one.status.state else AbsentState())
        assert bool(creates(plan)) is runs
        assert (status_of(plan).ending is not None) is runs


def test_command_pod_has_the_command_of_the_cleanup() -> None:
    taskrun = a_taskrun(cancel=True, cleanup=COMMAND).with_failed_attempt(1)
    plan = teardown_plan_of(taskrun, now=10.5)
    assert status_of(plan).ending is not None
    [creation] = actions_of(teardown_plan_of(taskrun.with_status(status_of(plan)), now=909.5), CreatePod)
    spec = json.loads(creation.body)["spec"]
    assert (spec["containers"][0]["command"], spec["activeDeadlineSeconds"]) == (["sh", "-c", "stop-all"], 1)


# -- while a cleanup runs --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pod, message",
    [
        (a_pod(2), "Cleanup attempt 2 was started. Open external jobs: 1."),
        (a_pod(2).gated(), "Cleanup attempt 2 waits for the scheduling gates of its pod."),
        (
            a_pod(2).waiting("ErrImagePull", "not found"),
            "Cleanup attempt 2 can't start. The image of container task can't be pulled: not found",
        ),
        (
            a_pod(2).unschedulable(""),
            "Cleanup attempt 2 can't start. No node can take the pod.",
        ),
    ],
)
def test_cleanup_pod_that_does_not_start_is_shown_at_once_and_not_written_again(pod: APod, message: str) -> None:
    taskrun = cancelled()
    pod = pod.with_metadata(labels={"reattach.dev/purpose": "Cleanup"})
    plan = teardown_plan_of(taskrun, STOPPED, pod, state=can_cancel(JOB))
    assert (progress_of(plan), plan.requeue_at) == (("Ending", message), at(910))
    again = teardown_plan_of(taskrun.with_status(status_of(plan)), STOPPED, pod, state=can_cancel(JOB), now=30)
    assert again == Plan(requeue_at=at(910))


def failed_cleanup(pod: APod, **cleanup: Any) -> Plan:
    """Return the plan after the end of the first cleanup attempt."""
    taskrun = cancelled(**cleanup)
    started = teardown_plan_of(taskrun, STOPPED, a_cleanup_pod(), state=can_cancel(JOB))
    taskrun = taskrun.with_status(status_of(started))
    labelled = pod.with_metadata(labels={"reattach.dev/purpose": "Cleanup"})
    return teardown_plan_of(taskrun, STOPPED, labelled, state=can_cancel(JOB), now=20)


@pytest.mark.parametrize(
    "pod, cause",
    [
        (a_pod(2).exited(1, seconds=18), "Application"),
        (a_pod(2).running().deleted(12).disrupted().exited(0, seconds=18), "Disruption"),
        (a_pod(2).running().deleted(12).exited(143, seconds=18), "Disruption"),
        (a_pod(2).exited(137, seconds=18).failed("DeadlineExceeded"), "Deadline"),
        (a_pod(2).unschedulable().deleted(12, 0), "NeverStarted"),
    ],
)
def test_cleanup_attempt_that_fails_is_charged_and_followed_by_another_after_a_backoff(pod: APod, cause: str) -> None:
    plan = failed_cleanup(pod)
    last, status = last_attempt_of(plan), status_of(plan)
    assert (last.purpose, last.cause, last.charged_to, status.counts.charged.cleanup) == (
        "Cleanup",
        cause,
        "cleanup",
        1,
    )
    assert [event.reason for event in actions_of(plan, EmitEvent)] == ["AttemptFailed"]
    assert status.next_attempt_time is not None
    assert (creates(plan), plan.requeue_at) == ([], status.next_attempt_time)
    assert "The next cleanup attempt starts at" in progress_of(plan)[1]
    later = cancelled().with_status(status)
    again = teardown_plan_of(later, STOPPED, pod.released(), state=can_cancel(JOB), now=40)
    assert creates(again) == [3]


def test_cleanup_attempt_that_exits_with_zero_is_the_last_one() -> None:
    plan = failed_cleanup(a_pod(2).exited(0, seconds=18))
    last = last_attempt_of(plan)
    assert (last.cause, last.charged_to, creates(plan)) == ("Succeeded", None, [])
    assert reasons_of(plan) == ["Cleanup attempt 2 ended without cancelling it; it may have no adapter for the job."]
    assert status_of(plan).outcome is None, "the exit code of a cleanup attempt is no success of the run"


def test_cleanup_ends_once_its_budget_is_used_up() -> None:
    plan = failed_cleanup(a_pod(2).exited(1, seconds=18, message="no route"), budget=1)
    [why] = reasons_of(plan)
    assert why.startswith("No cleanup attempt is left (spec.cleanup.budget is 1). Attempt 2 ended by Application")
    assert status_of(plan).next_attempt_time is None
    plan = teardown_plan_of(cancelled(budget=0), STOPPED, state=can_cancel(JOB))
    assert reasons_of(plan) == ["No cleanup attempt is left (spec.cleanup.budget is 0)."]


def test_orphaned_job_whose_cancellation_was_requested_is_named_with_the_time() -> None:
    asked = msgspec.structs.replace(JOB, cancel_requested_time=at(12.5))
    plan = teardown_plan_of(cancelled(), STOPPED, state=can_cancel(asked, opened_by=2), now=910)
    why = "Its cancellation was requested at 2026-03-01T12:00:12Z, and its end is not known."
    assert reasons_of(plan) == [why]
    [release] = actions_of(plan, ReleaseTaskRun)
    assert release.orphans is not None
    [job] = release.orphans.jobs
    assert (job.adapter, job.handle, job.cancel_requested_time) == ("ray", "job-1", at(12))
    assert why in actions_of(plan, EmitEvent)[0].note
    assert (release.orphans.reason, release.orphans.time) == ("Cancelled", at(10))


def test_unscheduled_cleanup_pod_is_presumed_to_have_ended_at_the_deadline() -> None:
    plan = teardown_plan_of(cancelled(), STOPPED, a_cleanup_pod().unschedulable(), state=can_cancel(JOB), now=910)
    assert (last_attempt_of(plan).cause, last_attempt_of(plan).end) == ("Stopped", "Presumed")


def test_run_waits_for_other_containers_of_a_cleanup_pod_only_before_the_deadline() -> None:
    over = msgspec.structs.replace(JOB, state=JobState.CANCELLED)
    pod = a_cleanup_pod().with_sidecar().exited(0, seconds=18)
    plan = teardown_plan_of(cancelled(), STOPPED, pod, state=can_cancel(over, opened_by=2), now=20)
    assert (last_attempt_of(plan).cause, actions_of(plan, ReleaseTaskRun)) == ("Succeeded", [])
    plan = teardown_plan_of(cancelled(), STOPPED, pod.deleted(20), state=can_cancel(over, opened_by=2), now=910)
    assert actions_of(plan, ReleaseTaskRun)


def test_deadline_of_the_cleanup_wakes_the_operator_although_the_lost_node_would_be_awaited_longer() -> None:
    over = msgspec.structs.replace(JOB, state=JobState.CANCELLED)
    state, pod = can_cancel(over, opened_by=2), a_cleanup_pod().with_sidecar().exited(0, seconds=18)
    taskrun = cancelled().with_spec(deadlines={"lostSeconds": 5000})
    taskrun = taskrun.with_status(status_of(teardown_plan_of(taskrun, STOPPED, pod, state=state, now=20)))
    plan = teardown_plan_of(taskrun, STOPPED, pod.deleted(21), state=state, now=62)
    assert (plan.status, plan.actions, plan.requeue_at) == (None, (), at(910))


def test_end_of_a_run_attempt_does_not_shorten_the_backoff_of_the_cleanup() -> None:
    stopping = a_pod().running().deleted()
    taskrun = ending(with_jobs(a_taskrun(cancel=True)), stopping, state=can_cancel(JOB))
    taskrun = taskrun.with_status(status_of(teardown_plan_of(taskrun, stopping, state=can_cancel(JOB))))
    failed = a_cleanup_pod().exited(1, seconds=18)
    plan = teardown_plan_of(taskrun, stopping, failed, state=can_cancel(JOB), now=20)
    until = status_of(plan).next_attempt_time
    assert until is not None
    plan = teardown_plan_of(taskrun.with_status(status_of(plan)), STOPPED, failed, state=can_cancel(JOB), now=21)
    assert (last_attempt_of(plan).number, status_of(plan).next_attempt_time, creates(plan)) == (2, until, [])


def test_late_pod_of_a_run_attempt_is_deleted_and_its_number_is_not_used_again() -> None:
    late = a_pod(2).running()
    plan = teardown_plan_of(cancelled(), STOPPED, late, state=can_cancel(JOB))
    assert [delete.name for delete in actions_of(plan, DeletePod)] == ["load-01234-2"]
    plan = teardown_plan_of(cancelled(), STOPPED, late.deleted(), state=can_cancel(JOB))
    assert creates(plan) == [3]


def test_attempt_that_only_the_state_names_has_the_purpose_of_its_session() -> None:
    state = can_cancel(JOB, opened_by=2, purpose=AttemptPurpose.CLEANUP)
    plan = teardown_plan_of(cancelled(), STOPPED, state=state, now=20)
    last = last_attempt_of(plan)
    assert (last.number, last.purpose, last.cause, last.charged_to) == (2, "Cleanup", "Disruption", "cleanup")


# -- rejected pods ---------------------------------------------------------------------------------


def rejected(kind: PodRejectionKind, message: str = "exceeded quota: 1 of 2.") -> PodRejection:
    return PodRejection(kind, 2, message, at(30))


@pytest.mark.parametrize(
    "kind, reason",
    [
        (PodRejectionKind.QUOTA, "QuotaExceeded"),
        (PodRejectionKind.FORBIDDEN, "PodRefused"),
        (PodRejectionKind.NAME_TAKEN, "PodNameTaken"),
    ],
)
def test_rejected_cleanup_pod_is_shown_once_and_tried_again(kind: PodRejectionKind, reason: str) -> None:
    taskrun = cancelled()
    plan = teardown_plan_of(taskrun, STOPPED, state=can_cancel(JOB), rejection=rejected(kind))
    assert (creates(plan), plan.requeue_at) == ([], at(30))
    assert progress_of(plan)[1].startswith("No cleanup pod can be created. ")
    [event] = actions_of(plan, EmitEvent)
    assert (event.reason, event.warning) == (reason, True)
    again = rejected(kind, "exceeded quota: 2 of 2.")
    shown = taskrun.with_status(status_of(plan))
    plan = teardown_plan_of(shown, STOPPED, state=can_cancel(JOB), rejection=again)
    assert plan == Plan(requeue_at=at(30))
    assert creates(teardown_plan_of(shown, STOPPED, state=can_cancel(JOB), rejection=again, now=30)) == [2]


def test_kept_pod_makes_room_for_a_cleanup_pod() -> None:
    rejection = replace(rejected(PodRejectionKind.QUOTA), excess_pods=1)
    kept = a_pod().running().exited(1).released()
    plan = teardown_plan_of(cancelled(), kept, state=can_cancel(JOB), rejection=rejection)
    assert [(action.name, action.makes_room) for action in actions_of(plan, DeletePod)] == [("load-01234-1", True)]


def test_invalid_cleanup_pod_ends_the_cleanup() -> None:
    rejection = rejected(PodRejectionKind.INVALID, "spec.containers[0].image: Required value")
    plan = teardown_plan_of(cancelled(), STOPPED, state=can_cancel(JOB), rejection=rejection)
    why = "The API server rejected the cleanup pod: spec.containers[0].image: Required value."
    assert (creates(plan), reasons_of(plan)) == ([], [why])


# -- the ending ------------------------------------------------------------------------------------


def test_ending_decides_the_outcome_although_the_cancellation_is_withdrawn_or_the_budget_raised() -> None:
    taskrun = cancelled().with_spec(cancel=False).with_budgets(application=9)
    plan = teardown_plan_of(taskrun.with_metadata(finalizers=[]), STOPPED, state=can_cancel(JOB), now=950)
    assert (status_of(plan).outcome, status_of(plan).orphaned) == ("Cancelled", True)
    failed = with_jobs(a_taskrun())
    begun = ending(failed, FAILED, state=can_cancel(JOB))
    assert begun.status.ending is not None
    assert (begun.status.ending.outcome, begun.status.ending.reason) == ("Failed", "ApplicationFailed")
    raised = begun.with_budgets(application=9).with_metadata(finalizers=[])
    plan = teardown_plan_of(raised, FAILED, state=can_cancel(JOB), now=950)
    assert (status_of(plan).outcome, progress_of(plan)[0]) == ("Failed", "ApplicationFailed")


def test_sealed_run_without_anything_to_stop_keeps_its_failure_although_the_budget_is_raised() -> None:
    # The process ended after the seal and before it wrote the outcome.
    taskrun = a_taskrun().with_state().with_budgets(application=5).with_failed_attempt(1)
    plan = plan_of(taskrun, state=a_state(1, seal=SEALED), summary=a_summary(1, seal=SEALED), now=60)
    assert (status_of(plan).outcome, status_of(plan).ending) == ("Failed", None)
    assert "The budget was raised after the run had already begun to end." in progress_of(plan)[1]


def test_ending_that_this_version_cannot_read_is_decided_again() -> None:
    taskrun = cancelled()
    assert taskrun.status.ending is not None
    for change in ({"outcome": "Expired"}, {"reason": "NoLongerWanted"}, {"outcome": None}):
        unknown = taskrun.with_status(ending=msgspec.structs.replace(taskrun.status.ending, **change))
        plan = teardown_plan_of(unknown.with_metadata(finalizers=[]), STOPPED, state=can_cancel(JOB), now=950)
        assert (status_of(plan).outcome, progress_of(plan)[0]) == ("Cancelled", "Cancelled")


def test_completion_that_precedes_the_cleanup_makes_the_ending_a_success() -> None:
    taskrun = ending(a_taskrun(cancel=True).with_state(), a_pod().running(), state=a_state(1))
    plan = teardown_plan_of(taskrun, STOPPED, state=a_state(1, completed_by=1, result="7", seal=SEALED))
    assert (status_of(plan).outcome, status_of(plan).result) == ("Succeeded", "7")
    assert not creates(plan)


@pytest.mark.parametrize("pod, outcome", [(a_pod().exited(0), "Succeeded"), (a_pod().exited(1), "Failed")])
def test_plain_run_ends_in_one_write_without_an_ending(pod: APod, outcome: str) -> None:
    plan = plan_of(a_taskrun(), pod)
    status = status_of(plan)
    assert (status.outcome, status.ending, status.orphaned) == (outcome, None, False)


def test_state_is_sealed_once_the_ending_is_recorded_although_each_end_was_reported() -> None:
    state = a_state(1, jobs=[JOB], can_cleanup=True)
    taskrun = ending(with_jobs(a_taskrun()), FAILED, state=state)
    assert decision_of(taskrun, FAILED, state=state) == SealState(1, SealPurpose.END)


def test_newest_run_attempt_stays_listed_beside_cleanup_attempts() -> None:
    taskrun = cancelled().with_spec(historyLimit=1)
    plan = teardown_plan_of(taskrun, STOPPED, a_cleanup_pod().exited(1), state=can_cancel(JOB))
    assert [(one.number, one.purpose) for one in status_of(plan).attempts] == [(1, "Run"), (2, "Cleanup")]


# -- the deadline of the run -----------------------------------------------------------------------

LIMITED = a_taskrun(deadlines={"runSeconds": 60})


def test_run_fails_once_it_took_longer_than_its_deadline() -> None:
    assert plan_of(LIMITED, now=10).requeue_at == at(70), "it counts from the first status"
    started = LIMITED.with_status(start_time=at(0))
    plan = plan_of(started, a_pod().running(), now=10)
    assert plan.requeue_at == at(60)
    plan = teardown_plan_of(started.with_state(), a_pod().running(), now=60, state=a_state(1))
    assert (len(actions_of(plan, DeletePod)), plan.requeue_at) == (1, at(60 + 900))
    plan = teardown_plan_of(started.with_state(), STOPPED, now=60, state=a_state(1, seal=SEALED))
    assert (status_of(plan).outcome, progress_of(plan)[0]) == ("Failed", "RunDeadlineExceeded")
    assert (last_attempt_of(plan).cause, last_attempt_of(plan).reason) == ("Stopped", "RunDeadlineExceeded")


def test_run_deadline_comes_after_a_cancellation_and_before_a_resolution() -> None:
    late = LIMITED.with_status(start_time=at(0)).with_resolution("StateLost", "Fail")
    assert status_of(plan_of(late.with_spec(cancel=True), now=90)).outcome == "Cancelled"
    assert progress_of(plan_of(late, now=90))[0] == "RunDeadlineExceeded"


def test_success_after_the_run_deadline_waits_for_its_pod_without_a_timer() -> None:
    late = LIMITED.with_status(start_time=at(0))
    plan = plan_of(late, a_pod().with_sidecar().exited(0), now=90)
    assert (status_of(plan).ending, plan.requeue_at) == (None, None)


# -- before the first attempt ----------------------------------------------------------------------


def test_finalizer_is_added_before_the_first_pod_if_a_command_must_run() -> None:
    taskrun = a_taskrun(cleanup=COMMAND)
    assert plan_of(taskrun).actions == (ProtectTaskRun(),)
    assert creates(plan_of(taskrun.with_finalizer())) == [1]
    assert creates(plan_of(a_taskrun())) == [1]
    again = taskrun.with_budgets(application=3).with_failed_attempt(1)
    assert creates(plan_of(again, now=60)) == [2], "it was removed by hand since"


def test_jobs_of_an_earlier_taskrun_of_this_name_are_reported_once() -> None:
    records = ("load-aaaaa-orphans", "load-bbbbb-orphans")
    plan = plan_of(a_taskrun(), predecessors=records)
    reason, message = condition_of(plan, ConditionType.PREDECESSOR_ORPHANED)
    assert reason == "PredecessorLeftJobs"
    assert "load-aaaaa-orphans, load-bbbbb-orphans" in message
    assert "kubectl reattach orphans -n data" in message
    assert ([event.reason for event in actions_of(plan, EmitEvent)], creates(plan)) == (["PredecessorLeftJobs"], [1])
    again = plan_of(a_taskrun().with_status(status_of(plan)), predecessors=records)
    assert (again.status, [type(one) for one in again.actions]) == (None, [CreatePod])
    started = plan_of(a_taskrun().with_budgets(application=3).with_failed_attempt(1), predecessors=records, now=60)
    assert actions_of(started, EmitEvent) == []


ADOPTS = {"cancel": True, "adopt": [{"key": "load", "handle": "job-7", "adapter": "ray"}]}


def adopting(finalizer: bool = True, **spec: Any) -> ATaskRun:
    """Return a TaskRun that was created to cancel a job of another run."""
    taskrun = a_taskrun(**{"cleanup": {"adopted": "Cancel"}, **ADOPTS, **spec})
    return taskrun.with_finalizer() if finalizer else taskrun


def adopted(state: JobState = JobState.ACTIVE) -> Any:
    """Return the state that a cleanup session creates."""
    job = a_job("job-7", adapter="ray", origin=JobOrigin.ADOPTED, state=state, submitted_by_attempt=None)
    return a_state(1, seal=SEALED, jobs=(job,), can_cleanup=True, purpose=AttemptPurpose.CLEANUP)


def test_run_that_adopts_jobs_to_cancel_starts_with_a_cleanup_attempt() -> None:
    plan = plan_of(adopting(finalizer=False))
    ending = status_of(plan).ending
    assert ending is not None
    assert (ending.outcome, actions_of(plan, CreatePod)) == ("Cancelled", [])
    assert actions_of(teardown_plan_of(adopting(finalizer=False)), ProtectTaskRun) == [ProtectTaskRun()]
    [creation] = actions_of(teardown_plan_of(adopting()), CreatePod)
    assert (creation.attempt, creation.purpose) == (1, AttemptPurpose.CLEANUP)


def test_run_that_adopts_jobs_to_cancel_is_cancelled_once_they_have_ended() -> None:
    taskrun = adopting()
    taskrun = taskrun.with_status(status_of(teardown_plan_of(taskrun, a_cleanup_pod(1).running(), state=adopted())))
    assert [(job.handle, job.state) for job in taskrun.status.external_jobs] == [("job-7", "Active")]
    ended = a_cleanup_pod(1).exited(0, seconds=20)
    over = adopted(JobState.CANCELLED)
    plan = teardown_plan_of(taskrun, ended, state=over, now=20)
    assert actions_of(plan, ReleaseTaskRun) == [ReleaseTaskRun()]
    plan = teardown_plan_of(taskrun.with_metadata(finalizers=[]), ended, state=over, now=20)
    assert (status_of(plan).outcome, status_of(plan).orphaned) == ("Cancelled", False)
    assert [attempt.purpose for attempt in status_of(plan).attempts] == ["Cleanup"]


@pytest.mark.parametrize(
    "spec, pod, why",
    [
        ({"cleanup": {"adopted": "Cancel", "onCancel": "Orphan"}}, None, "spec.cleanup.onCancel is Orphan."),
        ({"cleanup": {"adopted": "Cancel", "budget": 0}}, None, "No cleanup attempt is left"),
        ({}, a_cleanup_pod(1).exited(0, seconds=8), "Cleanup attempt 1 ended without cancelling it"),
    ],
    ids=["policy", "budget", "attempt"],
)
def test_job_that_no_cleanup_attempt_adopted_is_recorded_as_orphaned_once(
    spec: dict[str, Any], pod: APod | None, why: str
) -> None:
    taskrun = adopting(**spec)
    pods = () if pod is None else (pod,)
    plan = teardown_plan_of(taskrun, *pods)
    [release] = actions_of(plan, ReleaseTaskRun)
    assert release.orphans is not None
    [job] = release.orphans.jobs
    assert (job.key, job.handle, job.adapter, job.why.startswith(why)) == ("load", "job-7", "ray", True)
    plan = teardown_plan_of(taskrun.with_status(status_of(plan)).with_metadata(finalizers=[]), *pods)
    assert [(one.handle, one.state) for one in status_of(plan).external_jobs] == [("job-7", "Orphaned")]
    assert (status_of(plan).outcome, status_of(plan).orphaned) == ("Cancelled", True)


@pytest.mark.parametrize(
    "spec",
    [
        {"cleanup": {}},
        {"adopt": [{"key": "load", "handle": "job-7"}]},
    ],
    ids=["kept by policy", "without an adapter"],
)
def test_job_that_the_run_may_not_cancel_starts_no_cleanup_attempt(spec: dict[str, Any]) -> None:
    status = status_of(plan_of(adopting(finalizer=False, **spec)))
    assert (status.outcome, status.ending, status.external_jobs) == ("Cancelled", None, ())


def test_run_that_succeeds_although_it_was_cancelled_leaves_the_adoption_alone() -> None:
    plan = teardown_plan_of(adopting(finalizer=False), a_pod().exited(0))
    assert (status_of(plan).outcome, status_of(plan).external_jobs) == ("Succeeded", ())


def test_finalizer_that_was_removed_after_the_first_cleanup_attempt_is_not_added_again() -> None:
    taskrun = adopting(finalizer=False)
    failed = a_cleanup_pod(1).exited(1, seconds=8)
    taskrun = taskrun.with_status(status_of(teardown_plan_of(taskrun, failed)))
    plan = teardown_plan_of(taskrun, failed, now=800)
    assert (actions_of(plan, ProtectTaskRun), len(actions_of(plan, CreatePod))) == ([], 1)
