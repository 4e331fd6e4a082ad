"""The end of a TaskRun, last things last."""

from typing import Any

import pytest

from builders import (
    SEALED,
    SETTINGS,
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
    observed,
    plan_of,
    progress_of,
    status_of,
    teardown_plan_of,
)
from reattach.api.reasons import ConditionType
from reattach.api.state import JobState, Seal, SealPurpose
from reattach.api.taskrun import TaskRunStatus
from reattach.planner.decide import decide
from reattach.planner.plan import (
    AbsentState,
    CreatePod,
    DeletePod,
    EmitEvent,
    Plan,
    ReadState,
    ReleasePod,
    ReleaseState,
    ReleaseTaskRun,
    SealState,
    StopPod,
    UnreadableState,
)

CANCELLED = a_taskrun(cancel=True).with_state()
STOPPED = a_pod().running().deleted().exited(143, seconds=8)


def told(plan: Plan) -> list[str]:
    return [said.reason for said in actions_of(plan, EmitEvent)]


def shown(plan: Plan | TaskRunStatus) -> list[tuple[str, str | None, str]]:
    status = plan if isinstance(plan, TaskRunStatus) else status_of(plan)
    return [(job.key, job.handle, job.state) for job in status.external_jobs]


def with_jobs(taskrun: ATaskRun, *jobs: Any) -> ATaskRun:
    """As status shows them while the first attempt runs."""
    before = taskrun.with_spec(cancel=False)
    plan = teardown_plan_of(before, a_pod().running(), summary=a_summary(1, jobs=jobs), state=a_state(1, jobs=jobs))
    return taskrun.with_finalizer().with_status(status_of(plan))


# -- cancel ----------------------------------------------------------------------------------------


def test_a_run_that_is_cancelled_before_it_began_ends_at_once() -> None:
    plan = teardown_plan_of(a_taskrun(cancel=True))
    assert (status_of(plan).outcome, progress_of(plan)[0], told(plan)) == ("Cancelled", "Cancelled", ["Cancelled"])
    assert actions_of(plan, EmitEvent)[0].warning is False
    assert not actions_of(plan, CreatePod)


def test_cancel_reads_then_records_the_ending_then_seals_then_stops_the_pod() -> None:
    seen = observed(CANCELLED, a_pod().running(), summary=a_summary(1))
    assert decide(seen, SETTINGS, at(10)) == ReadState()
    plan = plan_of(CANCELLED, a_pod().running(), state=a_state(1))
    assert (status_of(plan).ending is not None, plan.actions, plan.requeue_at) == (True, (), at(10))
    begun = CANCELLED.with_status(status_of(plan))
    assert decision_of(begun, a_pod().running(), state=a_state(1)) == SealState(1, SealPurpose.END)
    plan = teardown_plan_of(CANCELLED, a_pod().running(), state=a_state(1, seal=SEALED))
    assert (progress_of(plan)[0], actions_of(plan, DeletePod)) == ("Ending", [DeletePod("load-01234-1", "pod-1")])
    assert progress_of(plan)[1] == "The TaskRun was cancelled. Its pod is being stopped."


def test_a_pod_that_was_asked_to_go_is_waited_for_until_it_counts_as_lost() -> None:
    pod = a_pod().running().deleted(4, 30)
    plan = teardown_plan_of(CANCELLED, pod, state=a_state(1, seal=SEALED), now=44)
    assert (actions_of(plan, DeletePod), plan.requeue_at) == ([], at(34 + 300))


def test_a_seal_for_a_suspension_is_not_enough_for_the_end() -> None:
    suspended = a_state(1, seal=Seal(through_attempt=1, purpose=SealPurpose.SUSPEND))
    begun = CANCELLED.with_status(status_of(plan_of(CANCELLED, a_pod().running(), state=suspended)))
    assert decision_of(begun, a_pod().running(), state=suspended) == SealState(1, SealPurpose.END)


def test_a_state_that_never_was_is_not_sealed() -> None:
    plan = teardown_plan_of(a_taskrun(cancel=True), a_pod().running(), state=AbsentState())
    assert len(actions_of(plan, DeletePod)) == 1


def test_who_was_stopped_is_charged_to_nothing_and_the_run_is_cancelled() -> None:
    plan = teardown_plan_of(CANCELLED, STOPPED, state=a_state(1, seal=SEALED))
    attempt = last_attempt_of(plan)
    assert (attempt.cause, attempt.charged_to, attempt.reason) == ("Stopped", None, "Cancelled")
    assert attempt.message == "The TaskRun was cancelled. Its pod was stopped."
    status = status_of(plan)
    assert (status.outcome, status.counts.charged.disruption) == ("Cancelled", 0)
    assert told(plan) == ["Cancelled"]
    assert actions_of(plan, ReleaseState)


def test_an_attempt_that_failed_by_itself_before_it_was_stopped_is_charged() -> None:
    plan = teardown_plan_of(CANCELLED, a_pod().exited(3), state=a_state(1))
    assert (last_attempt_of(plan).cause, last_attempt_of(plan).charged_to) == ("Application", "application")
    assert status_of(plan).outcome == "Cancelled"


@pytest.mark.parametrize("pod", [a_pod().exited(0), STOPPED])
def test_what_was_completed_before_the_end_of_a_cancellation_is_a_success(pod: Any) -> None:
    plan = teardown_plan_of(CANCELLED, pod, state=a_state(1, completed_by=1, result="7", seal=SEALED))
    assert (status_of(plan).outcome, status_of(plan).result) == ("Succeeded", "7")


def test_a_completion_that_came_after_its_attempts_end_was_recorded_counts_though_the_run_is_cancelled() -> None:
    late = CANCELLED.with_failed_attempt(1, cause="Disruption", charged_to="disruption")
    plan = teardown_plan_of(late, state=a_state(1, completed_by=1, result="7"))
    assert (status_of(plan).outcome, status_of(plan).result) == ("Succeeded", "7")


def test_cancel_stops_what_is_left_of_earlier_attempts_too() -> None:
    taskrun = CANCELLED.with_failed_attempt(1)
    leftover = a_pod(1).with_sidecar().exited(1)
    plan = teardown_plan_of(taskrun, leftover, a_pod(2).running(), state=a_state(2, seal=SEALED))
    assert actions_of(plan, StopPod) == [StopPod("load-01234-1", "pod-1", at(10))]
    assert actions_of(plan, DeletePod) == [DeletePod("load-01234-2", "pod-2")]


def test_a_state_that_can_not_be_read_does_not_keep_the_pod_of_a_cancelled_run_running() -> None:
    plan = teardown_plan_of(CANCELLED, a_pod().running(), state=UnreadableState("formatVersion"))
    assert (hold_of(plan), actions_of(plan, DeletePod)) == (
        ("True", "StateUnreadable"),
        [DeletePod("load-01234-1", "pod-1")],
    )
    leftover = a_pod(1).with_sidecar().exited(1)
    plan = teardown_plan_of(CANCELLED.with_failed_attempt(1), leftover, state=UnreadableState("formatVersion"))
    assert (len(actions_of(plan, StopPod)), actions_of(plan, DeletePod)) == (1, [])
    plan = teardown_plan_of(a_taskrun(), a_pod().exited(1), state=UnreadableState("formatVersion"))
    assert actions_of(plan, DeletePod) == []


def test_a_restored_run_can_be_cancelled() -> None:
    restored = a_taskrun(cancel=True).with_metadata(labels={"velero.io/restore-name": "monday"})
    assert status_of(teardown_plan_of(restored)).outcome == "Cancelled"


# -- when a seal is needed -------------------------------------------------------------------------

FAILED_ONCE = a_taskrun().with_state().with_failed_attempt(1)


@pytest.mark.parametrize(
    "taskrun, state, needed",
    [
        (FAILED_ONCE, a_state(1), False),  # its kubelet reported the end
        (FAILED_ONCE.with_attempt(2, finish_time=at(9), end="Presumed"), a_state(1), True),
        (FAILED_ONCE.with_attempt(2, finish_time=at(9), end="Presumed"), a_state(2, completed_by=2), False),
        (FAILED_ONCE.with_attempt(2, finish_time=at(9), end="Presumed"), a_state(None), True),
        (FAILED_ONCE.with_status(attempts=()), a_state(1), True),  # nobody knows any more
        (FAILED_ONCE.with_status(attempts=()), a_state(1, seal=SEALED), False),
    ],
)
def test_it_is_sealed_only_if_somebody_may_be_alive_who_could_use_it(
    taskrun: ATaskRun, state: Any, *, needed: bool
) -> None:
    assert isinstance(decision_of(taskrun, state=state), SealState) is needed


def test_the_presumed_end_of_a_fenced_attempt_needs_no_seal() -> None:
    taskrun = a_taskrun().with_state().with_attempt(1, finish_time=at(3), end="Presumed").with_failed_attempt(2)
    assert status_of(teardown_plan_of(taskrun, state=a_state(2))).outcome == "Failed"


# -- external jobs at the end ----------------------------------------------------------------------

OPEN = a_job(url="https://ray.example/job-1")


def test_an_open_job_is_named_before_the_finalizer_goes_and_the_outcome_comes_last() -> None:
    taskrun = with_jobs(CANCELLED, OPEN)
    state = a_state(1, seal=SEALED, jobs=[OPEN])
    plan = teardown_plan_of(taskrun, STOPPED, state=state)
    status = status_of(plan)
    assert (status.outcome, shown(plan)) == (None, [("load", "job-1", "Orphaned")])
    reason, message = condition_of(plan, ConditionType.ORPHANED)
    assert (reason, "load (handle job-1, https://ray.example/job-1)" in message) == ("JobsOrphaned", True)
    assert (told(plan), actions_of(plan, EmitEvent)[0].warning) == (["Orphaned"], True)
    assert "job-1, https://ray.example/job-1" in actions_of(plan, EmitEvent)[0].note
    said = actions_of(plan, EmitEvent)
    [release] = actions_of(plan, ReleaseTaskRun)
    assert plan.actions == (*said, ReleasePod(STOPPED.build()), release), "the events can't be sent after the release"
    # Who died before saying it says it afterwards.
    again = teardown_plan_of(taskrun.with_status(status), STOPPED.released(), state=state)
    assert again == Plan(actions=(*said, release), requeue_at=at(910))
    ended = teardown_plan_of(
        taskrun.with_status(status).with_metadata(finalizers=[]), STOPPED.released(), state=state, now=12
    )
    assert (status_of(ended).outcome, shown(ended), told(ended)) == (
        "Cancelled",
        [("load", "job-1", "Orphaned")],
        ["Cancelled"],
    )


@pytest.mark.parametrize("has_record, reason", [(True, "JobsOrphaned"), (False, "OrphansUnrecorded")])
def test_outcome_says_that_no_record_of_the_orphans_could_be_stored(has_record: bool, reason: str) -> None:
    taskrun, state = with_jobs(CANCELLED, OPEN), a_state(1, seal=SEALED, jobs=[OPEN])
    named = taskrun.with_status(status_of(teardown_plan_of(taskrun, STOPPED, state=state)))
    released = named.with_metadata(finalizers=[])
    ended = teardown_plan_of(released, STOPPED.released(), state=state, has_record=has_record)
    assert status_of(ended).outcome == "Cancelled"
    shown_reason, message = condition_of(ended, ConditionType.ORPHANED)
    assert (shown_reason, "load (handle job-1" in message) == (reason, True)


def test_job_that_is_named_only_with_the_outcome_is_in_no_record() -> None:
    taskrun, state = with_jobs(CANCELLED, OPEN).with_metadata(finalizers=[]), a_state(1, seal=SEALED, jobs=[OPEN])
    ended = teardown_plan_of(taskrun, STOPPED.released(), state=state)
    assert status_of(ended).outcome == "Cancelled"
    assert condition_of(ended, ConditionType.ORPHANED)[0] == "OrphansUnrecorded"


def test_a_success_lets_go_of_the_taskrun_before_the_outcome_and_writes_nothing_between() -> None:
    over = a_job(state=JobState.SUCCEEDED)
    taskrun, state = with_jobs(a_taskrun().with_state(), over), a_state(1, completed_by=1, jobs=[over])
    assert teardown_plan_of(taskrun, a_pod().exited(0), state=state) == Plan(actions=(ReleaseTaskRun(),))
    ended = teardown_plan_of(taskrun.with_metadata(finalizers=[]), a_pod().exited(0), state=state)
    assert (status_of(ended).outcome, shown(ended)) == ("Succeeded", [("load", "job-1", "Succeeded")])
    assert len(actions_of(ended, ReleasePod)) == 1


def test_a_terminal_failure_names_what_it_leaves_running() -> None:
    plan = teardown_plan_of(with_jobs(a_taskrun().with_state(), OPEN), a_pod().exited(1), state=a_state(1, jobs=[OPEN]))
    assert (shown(plan), last_attempt_of(plan).cause) == ([("load", "job-1", "Orphaned")], "Application")
    assert actions_of(plan, ReleaseTaskRun)


def test_success_by_exit_code_leaves_a_detached_job_as_the_task_wanted_and_orphans_another() -> None:
    jobs = [a_job(detached=True), a_job("job-2", key="other")]
    taskrun = with_jobs(a_taskrun(completion="ExitCode").with_state(), *jobs)
    plan = teardown_plan_of(taskrun, a_pod().exited(0), state=a_state(1, jobs=jobs))
    assert shown(plan) == [("load", "job-1", "Detached"), ("other", "job-2", "Orphaned")]
    plan = teardown_plan_of(with_jobs(CANCELLED, jobs[0]), STOPPED, state=a_state(1, seal=SEALED, jobs=jobs[:1]))
    assert shown(plan) == [("load", "job-1", "Orphaned")]


def test_a_stray_is_named_though_its_job_is_over() -> None:
    job = a_job(state=JobState.SUCCEEDED, strays=("job-9",))
    taskrun, state = with_jobs(a_taskrun().with_state(), job), a_state(1, completed_by=1, jobs=[job])
    plan = teardown_plan_of(taskrun, a_pod().exited(0), state=state)
    assert told(plan) == ["Orphaned"]
    assert "also handle job-9" in condition_of(plan, ConditionType.ORPHANED)[1]
    named = taskrun.with_status(status_of(plan))
    released = (*actions_of(plan, EmitEvent), *actions_of(plan, ReleaseTaskRun))
    assert teardown_plan_of(named, a_pod().exited(0).released(), state=state) == Plan(actions=released)


@pytest.mark.parametrize("handle, who", [(None, "no handle known"), ("job-1", "handle job-1")])
def test_a_job_that_was_given_up_is_named_because_it_may_run(handle: str | None, who: str) -> None:
    job = a_job(handle, state=JobState.FAILED, given_up=True)
    taskrun, state = with_jobs(a_taskrun().with_state(), job), a_state(1, jobs=[job])
    plan = teardown_plan_of(taskrun, a_pod().exited(1), state=state)
    assert (told(plan), shown(plan)) == (["Orphaned"], [("load", handle, "Failed")])
    assert f"load ({who}), which was given up and may run" in condition_of(plan, ConditionType.ORPHANED)[1]
    assert f"load ({who}), which was given up and may run; Reattach" in actions_of(plan, EmitEvent)[0].note
    named = taskrun.with_status(status_of(plan))
    released = (*actions_of(plan, EmitEvent), *actions_of(plan, ReleaseTaskRun))
    assert teardown_plan_of(named, a_pod().exited(1).released(), state=state) == Plan(actions=released)


def test_a_job_is_not_taken_for_named_because_another_ones_name_ends_like_its_own() -> None:
    unasked = CANCELLED.with_spec(submission={"onUnknown": "Fail"})
    first, second = a_job(None, key="preload"), a_job(None)
    named = with_jobs(unasked, first)
    named = named.with_status(status_of(teardown_plan_of(named, STOPPED, state=a_state(1, seal=SEALED, jobs=[first]))))
    plan = teardown_plan_of(named, STOPPED.released(), state=a_state(1, seal=SEALED, jobs=[first, second]))
    message = condition_of(plan, ConditionType.ORPHANED)[1]
    assert "External job preload (no handle known): " in message
    assert "Also external job load (no handle known): " in message


def test_a_handle_that_is_reported_after_its_job_was_named_is_shown() -> None:
    # Nobody may wait for it any more: the finalizer was taken off by hand.
    taskrun = with_jobs(CANCELLED, a_job(None)).with_metadata(finalizers=[])
    plan = teardown_plan_of(taskrun, STOPPED, state=a_state(1, seal=SEALED, jobs=[a_job(None)]))
    assert (status_of(plan).outcome, shown(plan)) == ("Cancelled", [("load", None, "Orphaned")])
    orphaned = taskrun.with_status(status_of(plan), outcome=None)
    plan = teardown_plan_of(orphaned, STOPPED.released(), state=a_state(1, seal=SEALED, jobs=[a_job()]))
    assert shown(plan) == [("load", "job-1", "Orphaned")]


UNRESOLVED = a_state(1, seal=SEALED, jobs=[a_job(None)])


def test_an_intent_that_nobody_can_tell_of_holds_the_end_until_a_person_has_answered() -> None:
    taskrun = with_jobs(CANCELLED, a_job(None))
    plan = teardown_plan_of(taskrun, STOPPED, state=UNRESOLVED)
    assert (hold_of(plan), told(plan)) == (("True", "SubmissionUnknown"), ["SubmissionUnknown"])
    assert 'key: "load", generation: 1' in progress_of(plan)[1]
    assert not actions_of(plan, ReleaseTaskRun)
    held = taskrun.with_status(status_of(plan))
    assert teardown_plan_of(held, STOPPED.released(), state=UNRESOLVED) == Plan(requeue_at=at(910))
    reported = a_state(1, seal=SEALED, jobs=[a_job()])
    assert shown(teardown_plan_of(held, STOPPED.released(), state=reported)) == [("load", "job-1", "Orphaned")]


@pytest.mark.parametrize(
    "answer, after",
    [
        ({"action": "Adopt", "handle": "job-7"}, ("load", "job-7", "Orphaned")),
        ({"action": "Resubmit"}, ("load", None, "Failed")),
        ({"action": "Fail"}, ("load", None, "Failed")),
    ],
)
def test_each_answer_lets_the_end_go_on(answer: dict[str, str], after: tuple[str, str | None, str]) -> None:
    taskrun = with_jobs(CANCELLED, a_job(None))
    held = taskrun.with_status(status_of(teardown_plan_of(taskrun, STOPPED, state=UNRESOLVED)))
    answered = held.with_resolution("SubmissionUnknown", **answer)
    plan = teardown_plan_of(answered, STOPPED.released(), state=UNRESOLVED)
    assert shown(plan) == [after]
    assert actions_of(plan, ReleaseTaskRun)
    ended = answered.with_status(status_of(plan)).with_metadata(finalizers=[])
    plan = teardown_plan_of(ended, STOPPED.released(), state=UNRESOLVED)
    assert (status_of(plan).outcome, hold_of(plan)[0], shown(plan)) == ("Cancelled", "False", [after])


def test_an_answer_that_an_attempt_used_does_not_answer_what_the_end_asks() -> None:
    used = a_state(1, seal=SEALED, jobs=[a_job(None, holds=1)])
    taskrun = with_jobs(CANCELLED, a_job(None)).with_resolution("SubmissionUnknown", "Resubmit")
    assert hold_of(teardown_plan_of(taskrun, STOPPED, state=used)) == ("True", "SubmissionUnknown")
    twice = taskrun.with_resolution("SubmissionUnknown", "Fail")
    assert shown(teardown_plan_of(twice, STOPPED, state=used)) == [("load", None, "Failed")]
    waiting = a_state(1, seal=SEALED, jobs=[a_job(None, held=True, holds=1)])
    assert shown(teardown_plan_of(taskrun, STOPPED, state=waiting)) == [("load", None, "Failed")]


@pytest.mark.parametrize("policy", ["Fail", "Resubmit"])
def test_where_nobody_is_to_be_asked_the_end_waits_for_nobody_and_names_the_job(policy: str) -> None:
    taskrun = with_jobs(CANCELLED.with_spec(submission={"onUnknown": policy}), a_job(None))
    plan = teardown_plan_of(taskrun, STOPPED, state=UNRESOLVED)
    assert (shown(plan), told(plan)) == ([("load", None, "Orphaned")], ["Orphaned"])
    assert actions_of(plan, ReleaseTaskRun)


@pytest.mark.parametrize("seen", ["summary", "state"])
def test_an_end_that_was_begun_goes_on_though_the_budget_is_raised_since(seen: str) -> None:
    failed = a_taskrun().with_state().with_finalizer()
    job = a_job(None, held=True, holds=1)
    waiting = failed.with_status(
        status_of(teardown_plan_of(failed, a_pod().exited(1), state=a_state(1, jobs=[job], seal=SEALED)))
    )
    raised = waiting.with_budgets(application=5).with_resolution("SubmissionUnknown", "Adopt", handle="job-7")
    known = {"summary": a_summary(1, jobs=(job,), seal=SEALED)} if seen == "summary" else {}
    plan = teardown_plan_of(
        raised, a_pod().exited(1).released(), state=a_state(1, jobs=[job], seal=SEALED), now=5000, **known
    )
    assert (actions_of(plan, CreatePod), len(actions_of(plan, ReleaseTaskRun))) == ([], 1)


def test_a_lost_state_does_not_keep_the_run_from_ending_and_what_was_known_is_named() -> None:
    taskrun = with_jobs(CANCELLED, OPEN, a_job(None, key="other"))
    plan = teardown_plan_of(taskrun, STOPPED, state=AbsentState())
    assert (last_attempt_of(plan).cause, len(status_of(plan).conditions)) == ("Stopped", 3)
    assert shown(plan) == [("load", "job-1", "Orphaned"), ("other", None, "Orphaned")]
    assert actions_of(plan, ReleaseTaskRun)


# -- delete ----------------------------------------------------------------------------------------


def test_a_deleted_run_is_sealed_and_stopped_and_its_jobs_are_named_then_it_goes() -> None:
    taskrun = with_jobs(a_taskrun().with_state(), OPEN).being_deleted()
    begun = taskrun.with_status(status_of(plan_of(taskrun, a_pod().running(), state=a_state(1, jobs=[OPEN]))))
    assert isinstance(decision_of(begun, a_pod().running(), state=a_state(1, jobs=[OPEN])), SealState)
    sealed = a_state(1, seal=SEALED, jobs=[OPEN])
    plan = teardown_plan_of(taskrun, a_pod().running(), state=sealed)
    assert (progress_of(plan), len(actions_of(plan, DeletePod))) == (
        ("Ending", "The TaskRun is being deleted. Its pod is being stopped."),
        1,
    )
    plan = teardown_plan_of(taskrun, STOPPED, state=sealed)
    assert (shown(plan), last_attempt_of(plan).reason, told(plan)) == (
        [("load", "job-1", "Orphaned")],
        "Deleted",
        ["Orphaned"],
    )
    assert status_of(plan).outcome is None
    assert [type(action) for action in plan.actions] == [EmitEvent, ReleasePod, ReleaseTaskRun]
    named = taskrun.with_status(status_of(plan))
    again = teardown_plan_of(named, STOPPED.released(), state=sealed)
    actions = (*actions_of(plan, EmitEvent), *actions_of(plan, ReleaseTaskRun))
    assert again == Plan(actions=actions, requeue_at=at(910))


def test_what_is_left_running_is_said_again_and_nothing_else_as_long_as_the_finalizer_is_there() -> None:
    jobs = [a_job(), a_job("job-2", key="other", state=JobState.SUCCEEDED, strays=("job-9",))]
    taskrun, state = with_jobs(a_taskrun().with_state(), *jobs).being_deleted(), a_state(1, seal=SEALED, jobs=jobs)
    first = teardown_plan_of(taskrun, STOPPED, state=state)
    named, [release] = taskrun.with_status(status_of(first)), actions_of(first, ReleaseTaskRun)
    for seconds in (12, 90):
        plan = teardown_plan_of(named, STOPPED.released(), state=state, now=seconds)
        assert plan.status is None
        notes = [said.note for said in actions_of(plan, EmitEvent)]
        assert [handle in note for handle, note in zip(("job-1", "job-9"), notes, strict=True)] == [True, True]
        assert plan.actions[-1] == release


def test_of_a_deleted_run_whose_jobs_are_over_nothing_is_written_but_that_it_may_go() -> None:
    over = a_job(state=JobState.FAILED)
    taskrun = with_jobs(a_taskrun().with_state(), over).being_deleted()
    assert teardown_plan_of(taskrun, STOPPED, state=a_state(1, seal=SEALED, jobs=[over])) == Plan(
        actions=(ReleaseTaskRun(),)
    )


def test_a_deleted_run_is_held_too_by_an_intent_that_nobody_can_tell_of() -> None:
    taskrun = with_jobs(a_taskrun().with_state(), a_job(None)).being_deleted()
    plan = teardown_plan_of(taskrun, STOPPED, state=UNRESOLVED)
    assert (hold_of(plan), actions_of(plan, ReleaseTaskRun)) == (("True", "SubmissionUnknown"), [])
    assert plan.requeue_at == at(40)


@pytest.mark.parametrize("state", [UNRESOLVED, UnreadableState("formatVersion 9"), AbsentState()])
def test_where_the_namespace_is_being_deleted_too_nobody_is_waited_for_and_the_job_is_named(state: Any) -> None:
    taskrun = with_jobs(a_taskrun().with_state(), a_job(None)).being_deleted()
    plan = teardown_plan_of(taskrun, STOPPED, state=state, namespace_ends=True)
    assert (shown(plan), told(plan)) == ([("load", None, "Orphaned")], ["Orphaned"])
    assert len(actions_of(plan, ReleaseTaskRun)) == 1


# -- other ends ------------------------------------------------------------------------------------


def test_a_template_that_changed_ends_a_run_with_an_open_job_only_after_it_is_named() -> None:
    changed = {"spec": {"containers": [{"name": "task", "image": "task:1", "command": ["run"]}]}}
    taskrun = with_jobs(a_taskrun(template=changed).with_budgets(application=3).with_state(), OPEN)
    failed = taskrun.with_status(status_of(teardown_plan_of(taskrun, a_pod().exited(1), state=a_state(1, jobs=[OPEN]))))
    plan = teardown_plan_of(
        failed, a_pod().exited(1).released(), now=60, state=a_state(1, jobs=[OPEN]), summary=a_summary(1)
    )
    assert (shown(plan), status_of(plan).outcome, told(plan)) == ([("load", "job-1", "Orphaned")], None, ["Orphaned"])
    assert actions_of(plan, ReleaseTaskRun)
