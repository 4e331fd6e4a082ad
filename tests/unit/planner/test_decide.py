"""Each step of the ladder, as a reader would ask for it."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from builders import (
    NAME,
    STATE_UID,
    TEMPLATE,
    UID,
    APod,
    ATaskRun,
    a_pod,
    a_state,
    a_summary,
    a_taskrun,
    actions_of,
    at,
    decision_of,
    hold_of,
    last_attempt_of,
    observed,
    plan_of,
    progress_of,
    stamp,
    status_of,
)
from reattach.api.names import ANNOTATION_TEMPLATE_HASH, state_name
from reattach.api.taskrun import StateReference, TaskRunStatus
from reattach.planner import decide
from reattach.planner.plan import (
    AbsentState,
    CopyState,
    CreatePod,
    DeletePod,
    EmitEvent,
    Plan,
    PodRejection,
    PodRejectionKind,
    ReadState,
    ReleasePod,
    ReleaseState,
    StopPod,
    UnreadableState,
)
from reattach.planner.pods import TEMPLATE_LEVELS_MAX, template_hash

RETRIED = a_taskrun().with_budgets(application=3)
"""May fail three times; its waits have no jitter."""


def told(plan: Plan) -> list[str]:
    return [said.reason for said in actions_of(plan, EmitEvent)]


def released(plan: Plan) -> list[str]:
    return [action.pod.metadata.name for action in actions_of(plan, ReleasePod)]


def stopped(plan: Plan) -> list[str]:
    return [action.name for action in actions_of(plan, StopPod)]


def deleted(plan: Plan) -> list[str]:
    return [action.name for action in actions_of(plan, DeletePod)]


def created(plan: Plan) -> list[int]:
    return [action.attempt for action in actions_of(plan, CreatePod)]


def nothing(plan: Plan) -> bool:
    return plan.status is None and not plan.actions


# -- nothing to do ---------------------------------------------------------------------------------


def test_a_taskrun_of_another_manager_is_left_alone() -> None:
    assert plan_of(a_taskrun(managedBy="kueue.x-k8s.io/multikueue"), a_pod().exited(0)) == Plan()


def test_a_finished_taskrun_is_left_alone() -> None:
    finished = a_taskrun().with_state().with_status(outcome="Failed")
    assert plan_of(finished, a_pod().exited(1), a_pod(3).running()) == Plan()


def test_of_a_deleted_taskrun_pods_that_are_over_are_released_and_none_is_made() -> None:
    gone = a_taskrun().with_metadata(deletionTimestamp="2026-03-01T12:00:00Z")
    assert nothing(plan_of(gone))
    plan = plan_of(gone, a_pod().exited(1), a_pod(2).running().deleted(5, 0))
    assert (plan.status, released(plan), len(plan.actions)) == (None, ["load-01234-1"], 1)
    assert plan.requeue_at == at(5 + 300)


def test_a_pod_that_only_looks_like_ours_is_none_of_ours() -> None:
    stranger = a_pod(7).with_metadata(name="load-99999-7").running()
    assert created(plan_of(a_taskrun(), stranger)) == [1]
    assert created(plan_of(a_taskrun(), a_pod().with_metadata(name="load-01234-1-x"))) == [1]


# -- start and happy end ---------------------------------------------------------------------------


def test_a_new_taskrun_gets_its_first_pod_and_no_write_before() -> None:
    plan = plan_of(a_taskrun())
    assert (plan.status, created(plan), len(plan.actions)) == (None, [1], 1)
    assert actions_of(plan, CreatePod)[0].name == "load-01234-1"


def test_a_pod_that_starts_swiftly_is_not_shown_as_pending() -> None:
    plan = plan_of(a_taskrun(), a_pod().waiting("ContainerCreating"), now=3)
    assert nothing(plan)
    assert plan.requeue_at == at(10)


def test_a_task_is_shown_as_running_when_there_is_time_to_show_it() -> None:
    assert nothing(plan_of(a_taskrun(), a_pod().running(1), now=2))
    assert plan_of(a_taskrun(), a_pod().running(1), now=2).requeue_at == at(3)
    plan = plan_of(a_taskrun(), a_pod().running(1), now=3)
    assert progress_of(plan)[0] == "Running"
    attempt = last_attempt_of(plan)
    assert (attempt.number, attempt.pod_uid, attempt.node, attempt.finish_time) == (1, "pod-1", "node-1", None)
    assert (status_of(plan).counts.attempts, status_of(plan).start_time, plan.actions) == (1, at(0), ())


def test_a_task_that_runs_since_nobody_knows_when_is_shown_as_running() -> None:
    assert progress_of(plan_of(a_taskrun(), a_pod().running(None), now=3))[0] == "Running"


def test_a_task_that_is_shown_as_running_is_left_alone() -> None:
    shown = a_taskrun().with_status(status_of(plan_of(a_taskrun(), a_pod().running(1))))
    assert plan_of(shown, a_pod().running(1), now=5000) == Plan()


def test_start_of_a_later_attempt_emits_one_event() -> None:
    taskrun = a_taskrun().with_failed_attempt(1)
    pod = a_pod(2).running(10)
    assert told(plan_of(taskrun, pod, now=11)) == []
    plan = plan_of(taskrun, pod, now=12)
    [event] = actions_of(plan, EmitEvent)
    assert (event.reason, event.warning) == ("AttemptStarted", False)
    assert event.note == "Attempt 2 runs in pod load-01234-2 on node node-1."
    shown = taskrun.with_status(status_of(plan))
    refused = StateReference(message="denied")
    assert told(plan_of(shown.with_status(state=refused), pod, now=100)) == []


def test_start_of_the_first_attempt_emits_no_event() -> None:
    assert told(plan_of(a_taskrun(), a_pod().running(1), now=3)) == []


@pytest.mark.parametrize(
    "cause, budget, reasons",
    [
        ("Waiting", None, []),
        ("NotReady", "notReady", []),
        ("Application", "notReady", []),
        ("NotReady", "application", ["AttemptStarted"]),
        ("Disruption", "disruption", ["AttemptStarted"]),
    ],
)
def test_start_of_an_attempt_that_checks_again_emits_no_event(
    cause: str, budget: str | None, reasons: list[str]
) -> None:
    taskrun = a_taskrun().with_attempt(1, cause=cause, charged_to=budget, finish_time=at(1))
    assert told(plan_of(taskrun, a_pod(2).running(10), now=12)) == reasons


def test_attempt_that_does_not_open_the_state_of_an_earlier_one_says_so_after_a_minute() -> None:
    taskrun = a_taskrun().with_failed_attempt(1, "Disruption", "disruption").with_state()
    pod, opened_before = a_pod(2).running(10), a_summary(1)
    plan = plan_of(taskrun, pod, now=12, summary=opened_before)
    assert (progress_of(plan)[1], plan.requeue_at) == ("Attempt 2 is running.", at(70))
    shown = taskrun.with_status(status_of(plan))
    assert nothing(plan_of(shown, pod, now=69, summary=opened_before))
    late = plan_of(shown, pod, now=70, summary=opened_before)
    message = (
        "Attempt 2 is running, but has not opened the state, which attempt 1 did. If it waits for the state API, "
        "its pod must be allowed to connect to https://reattach.example:8443."
    )
    assert progress_of(late) == ("Running", message)
    assert late.requeue_at is None
    unopened = taskrun.with_status(status_of(late))
    assert nothing(plan_of(unopened, pod, now=99, summary=opened_before))
    assert progress_of(plan_of(unopened, pod, now=100, summary=a_summary(2)))[1] == "Attempt 2 is running."
    assert nothing(plan_of(shown, pod, now=100, summary=a_summary(2)))


def test_refusal_of_the_configmap_of_the_state_is_shown_until_the_state_exists() -> None:
    refused = a_taskrun().with_status(state=StateReference(message="every ConfigMap must have the label team"))
    pod = a_pod().running(1)
    plan = plan_of(refused, pod, now=9)
    message = (
        "Attempt 1 is running, but the ConfigMap of its state is refused: every ConfigMap must have the label team"
    )
    assert progress_of(plan) == ("Running", message)
    shown = refused.with_status(status_of(plan))
    assert nothing(plan_of(shown, pod, now=99))
    created = plan_of(shown.with_state(), pod, now=99, summary=a_summary(1))
    assert progress_of(created)[1] == "Attempt 1 is running."


def test_state_that_could_not_be_created_is_not_lost() -> None:
    failed = a_taskrun().with_budgets(application=1).with_failed_attempt(1)
    refused = failed.with_status(state=StateReference(message="refused"), next_attempt_time=at(5))
    assert [action.attempt for action in actions_of(plan_of(refused, now=9), CreatePod)] == [2]
    unread = msgspec.structs.replace(refused.status, next_attempt_time=at(50))
    assert decision_of(refused.with_status(unread), now=9, state=None) != ReadState()


def test_a_running_container_that_is_reported_as_waiting_for_a_moment_changes_nothing() -> None:
    shown = a_taskrun().with_status(status_of(plan_of(a_taskrun(), a_pod().running(1))))
    assert plan_of(shown, a_pod().waiting("ContainerCreating"), now=20) == Plan()


def test_success_is_one_write_then_the_finalizers_go() -> None:
    plan = plan_of(a_taskrun().with_state(), a_pod().exited(0), state=a_state(1, completed_by=1, result='{"rows":3}'))
    status = status_of(plan)
    assert (status.outcome, status.completion_time, status.result) == ("Succeeded", at(10), '{"rows":3}')
    assert (status.start_time, status.next_attempt_time) == (at(0), None)
    assert progress_of(status) == ("Succeeded", "Attempt 1 completed the task.")
    assert [(one.type, one.status) for one in status.conditions] == [("Succeeded", "True")]
    assert (released(plan), actions_of(plan, ReleaseState), told(plan)) == (
        ["load-01234-1"],
        [ReleaseState(state_name(NAME, UID))],
        [],
    )


def test_without_a_state_no_state_is_released() -> None:
    assert actions_of(plan_of(a_taskrun(), a_pod().exited(0)), ReleaseState) == []


def test_a_state_that_status_does_not_name_yet_is_released_as_well() -> None:
    plan = plan_of(a_taskrun(completion="ExitCode"), a_pod().exited(0), summary=a_summary())
    assert len(actions_of(plan, ReleaseState)) == 1


def test_reported_end_of_an_attempt_without_a_state_is_recorded_without_a_read() -> None:
    for pod in (a_pod().exited(0), a_pod().exited(1)):
        decision = decision_of(RETRIED, pod, state=None)
        assert isinstance(decision, Plan)
        assert status_of(decision).attempts[0].finish_time is not None


@pytest.mark.parametrize(
    "taskrun, pod, seen",
    [
        (a_taskrun().with_state(), a_pod().exited(0), {}),
        (a_taskrun(), a_pod().exited(0), {"summary": a_summary()}),
        (a_taskrun().with_attempt(1), None, {}),
        (a_taskrun().being_deleted().with_finalizer(), a_pod().exited(0), {}),
    ],
)
def test_state_is_read_if_the_end_does_not_prove_that_there_is_none(
    taskrun: ATaskRun, pod: APod | None, seen: dict[str, Any]
) -> None:
    assert decision_of(taskrun, *([pod] if pod else []), state=None, **seen) == ReadState()


def test_progress_of_a_first_attempt_may_be_written_later_and_other_writes_may_not() -> None:
    running = plan_of(a_taskrun(), a_pod().running(), now=10)
    assert running.write_by == at(1) + decide.SHOW_RUNNING_AFTER + decide.SHOW_WITHIN
    pending = plan_of(a_taskrun(), a_pod().scheduled(), now=10)
    assert pending.write_by == at(0) + decide.SHOW_PENDING_AFTER + decide.SHOW_WITHIN
    assert plan_of(a_taskrun(), a_pod().exited(1)).write_by is None
    second = RETRIED.with_failed_attempt(1)
    assert plan_of(second, a_pod(2).running(), now=10).write_by is None  # with an event
    shown = a_taskrun().with_status(status_of(pending))
    assert plan_of(shown, a_pod().running(), now=20).write_by is None


# -- retry -----------------------------------------------------------------------------------------


def test_an_end_is_recorded_before_the_finalizer_goes_and_before_the_next_pod() -> None:
    plan = plan_of(RETRIED, a_pod().exited(1))
    status = status_of(plan)
    assert (status.outcome, status.counts.charged.application, status.next_attempt_time) == (None, 1, at(15))
    assert progress_of(status)[0] == "BackingOff"
    assert progress_of(status)[1].endswith("The next attempt starts at 2026-03-01T12:00:15Z.")
    assert (released(plan), created(plan), told(plan)) == (["load-01234-1"], [], ["AttemptFailed"])
    assert plan.requeue_at == at(15)


def test_back_off_is_waited_out_neither_shortened_nor_repeated() -> None:
    failed = RETRIED.with_status(status_of(plan_of(RETRIED, a_pod().exited(1))))
    for now in (11, 14.9):
        early = plan_of(failed, a_pod().exited(1).released(), now=now)
        assert nothing(early)
        assert early.requeue_at == at(15)
    assert created(plan_of(failed, a_pod().exited(1).released(), now=15)) == [2]


def test_an_end_recorded_late_starts_the_next_attempt_in_the_same_look() -> None:
    plan = plan_of(RETRIED, a_pod().exited(1), now=500)
    assert status_of(plan).attempts[0].finish_time == at(5)
    assert [type(action).__name__ for action in plan.actions] == ["EmitEvent", "ReleasePod", "CreatePod"]


def test_the_task_may_ask_for_a_delay() -> None:
    message = '{"reattach":"v1","kind":"RetryLater","retryAfterSeconds":3600}'
    assert status_of(plan_of(RETRIED, a_pod().exited(1, message=message))).next_attempt_time == at(5 + 3600)


@pytest.mark.parametrize(
    "budgets, pod, reason",
    [
        ({}, a_pod(2).exited(1), "ApplicationFailed"),
        ({"application": 1}, a_pod(2).exited(1), "ApplicationFailed"),
        ({"application": 5, "disruption": 0}, a_pod(2).deleted().exited(1), "DisruptedTooOften"),
        ({"application": 5, "neverStarted": 0}, a_pod(2).deleted(), "NeverStarted"),
        ({"application": 5}, a_pod(2).exited(1, message='{"reattach":"v1","kind":"Permanent"}'), "PermanentFailure"),
    ],
)
def test_the_run_fails_when_a_budget_is_used_up(budgets: dict[str, int], pod: Any, reason: str) -> None:
    taskrun = a_taskrun().with_budgets(**budgets).with_failed_attempt(1)
    plan = plan_of(taskrun, pod)
    status = status_of(plan)
    assert (status.outcome, progress_of(status)[0], status.next_attempt_time) == ("Failed", reason, None)
    assert "Attempt 2 ended by" in progress_of(status)[1]
    assert (told(plan), released(plan), created(plan)) == ([reason], ["load-01234-2"], [])


def test_a_disruption_costs_the_application_budget_nothing() -> None:
    plan = plan_of(a_taskrun().with_budgets(application=0), a_pod().disrupted().deleted().exited(143))
    charged = status_of(plan).counts.charged
    assert (status_of(plan).outcome, charged.application, charged.disruption) == (None, 0, 1)


def test_a_budget_that_was_lowered_counts_at_the_next_look() -> None:
    taskrun = RETRIED.with_failed_attempt(1).with_failed_attempt(2).with_status(next_attempt_time=at(60))
    assert created(plan_of(taskrun, now=60)) == [3]
    lowered = plan_of(taskrun.with_budgets(application=1), now=20)
    assert (status_of(lowered).outcome, progress_of(lowered)[0]) == ("Failed", "ApplicationFailed")


def test_a_budget_may_be_used_up_by_attempts_that_are_no_longer_listed() -> None:
    taskrun = a_taskrun(historyLimit=1).with_failed_attempt(1).with_failed_attempt(2, "Disruption", "disruption")
    taskrun = taskrun.with_status(attempts=taskrun.status.attempts[1:])
    plan = plan_of(taskrun)
    assert progress_of(plan) == (
        "ApplicationFailed",
        "The task failed more often than spec.retry.budgets.application allows.",
    )


# -- numbers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "taskrun, seen, number",
    [
        (RETRIED.with_failed_attempt(1), {}, 2),
        (RETRIED.with_status(counts=msgspec.convert({"attempts": 4}, type(TaskRunStatus().counts))), {}, 5),
        (RETRIED.with_failed_attempt(1), {"summary": a_summary(1)}, 2),
    ],
)
def test_a_number_is_never_used_twice(taskrun: ATaskRun, seen: dict[str, Any], number: int) -> None:
    assert created(plan_of(taskrun, **seen)) == [number]


def test_an_attempt_of_which_only_the_epoch_tells_has_ended_and_its_number_is_used() -> None:
    plan = plan_of(RETRIED.with_failed_attempt(1), summary=a_summary(4), state=a_state(4), now=20)
    attempt = last_attempt_of(plan)
    assert (attempt.number, attempt.pod_uid, attempt.end, attempt.cause) == (4, "pod-4", "Presumed", "Disruption")
    again = plan_of(RETRIED.with_status(status_of(plan)), summary=a_summary(4), now=60)
    assert created(again) == [5]


def test_an_attempt_of_which_only_the_epoch_tells_may_have_completed() -> None:
    plan = plan_of(a_taskrun(), summary=a_summary(1, 1), state=a_state(1, completed_by=1, result="1"))
    assert (status_of(plan).outcome, status_of(plan).result) == ("Succeeded", "1")


def test_a_listed_attempt_whose_pod_is_gone_is_presumed_to_have_ended() -> None:
    attempt = last_attempt_of(plan_of(RETRIED.with_attempt(1, node="node-1")))
    assert (attempt.end, attempt.cause, attempt.reason) == ("Presumed", "Disruption", "PodGone")
    assert (attempt.pod_uid, attempt.node, attempt.start_time, attempt.finish_time) == (
        "pod-1",
        "node-1",
        at(0),
        at(10),
    )


def test_the_pod_of_an_attempt_that_left_the_list_is_not_recorded_again() -> None:
    taskrun = RETRIED.with_failed_attempt(1).with_failed_attempt(2)
    taskrun = taskrun.with_status(attempts=taskrun.status.attempts[1:])
    plan = plan_of(taskrun, a_pod(1).exited(1), a_pod(2).exited(1).released())
    assert (plan.status, released(plan), created(plan)) == (None, ["load-01234-1"], [3])


def test_that_an_end_was_presumed_is_known_after_the_attempt_left_the_list() -> None:
    taskrun = a_taskrun(historyLimit=1).with_budgets(application=9)
    lost = status_of(plan_of(taskrun, a_pod().running().deleted(-400, 0)))
    assert (lost.attempts[0].end, lost.counts.last_presumed) == ("Presumed", 1)
    status = status_of(plan_of(taskrun.with_status(lost), a_pod(2).exited(1)))
    assert ([attempt.number for attempt in status.attempts], status.counts.last_presumed) == ([2], 1)


# -- what else is in the pod -----------------------------------------------------------------------


def test_a_sidecar_that_goes_on_is_stopped_after_the_end_is_recorded() -> None:
    plan = plan_of(RETRIED, a_pod().with_sidecar().exited(1))
    assert (last_attempt_of(plan).cause, progress_of(plan)[0]) == ("Application", "Ending")
    assert (deleted(plan), released(plan), created(plan)) == ([], [], [])
    assert actions_of(plan, StopPod) == [StopPod("load-01234-1", "pod-1", at(10))]


def test_the_next_pod_waits_until_the_sidecar_has_ended() -> None:
    ending = RETRIED.with_status(status_of(plan_of(RETRIED, a_pod().with_sidecar().exited(1))))
    stopping = plan_of(ending, a_pod().with_sidecar().exited(1).deleted(11), now=30)
    assert nothing(stopping)
    assert stopping.requeue_at == at(11 + 30 + 10)
    over = plan_of(ending, a_pod().with_sidecar().exited(1).deleted(11).failed(""), now=30)
    assert (over.status, released(over), created(over)) == (None, ["load-01234-1"], [2])
    hanging = plan_of(ending, a_pod().with_sidecar().exited(1).deleted(11), now=341)
    assert (released(hanging), created(hanging)) == (["load-01234-1"], [2])


def test_success_with_a_sidecar_comes_when_the_pod_is_over() -> None:
    first = plan_of(a_taskrun(), a_pod().with_sidecar().exited(0), state=a_state(1, completed_by=1, result="7"))
    assert (status_of(first).outcome, progress_of(first)[0], told(first)) == (None, "Ending", [])
    ending = a_taskrun().with_status(status_of(first))
    pod = a_pod().with_sidecar().exited(0).deleted(11)
    assert nothing(plan_of(ending, pod, now=12))
    done = plan_of(ending, pod.failed(""), now=14)
    assert (status_of(done).outcome, status_of(done).result, status_of(done).attempts[0].finish_time) == (
        "Succeeded",
        "7",
        at(5),
    )
    assert told(done) == []


def test_a_pod_that_is_about_to_be_over_is_not_deleted() -> None:
    waits = plan_of(a_taskrun(), a_pod().exited(0).not_over(), now=6)
    assert nothing(waits)
    assert waits.requeue_at == at(65)
    overdue = plan_of(a_taskrun(), a_pod().exited(0).not_over(), now=65)
    assert (progress_of(overdue)[0], stopped(overdue)) == ("Ending", ["load-01234-1"])


def test_an_end_without_a_time_is_not_waited_for() -> None:
    pod = a_pod().scheduled().with_container("task", terminated={"exitCode": 0}).with_status(phase="Running")
    assert stopped(plan_of(a_taskrun(), pod)) == ["load-01234-1"]


def test_a_pod_of_an_ended_attempt_that_comes_back_is_stopped() -> None:
    presumed = RETRIED.with_status(status_of(plan_of(RETRIED.with_attempt(1))))
    plan = plan_of(presumed, a_pod().running(), now=60)
    assert (deleted(plan), created(plan)) == (["load-01234-1"], [])


def test_the_named_container_is_the_tasks() -> None:
    template = {"spec": {"containers": [{"name": "proxy"}, {"name": "task"}]}}
    taskrun = a_taskrun(template=template, container="task").with_budgets(application=1)
    pod = a_pod(template=template).exited(0, container="proxy").running()
    assert last_attempt_of(plan_of(taskrun, pod)).finish_time is None
    assert last_attempt_of(plan_of(taskrun, pod.exited(1))).cause == "Application"


# -- lost pods -------------------------------------------------------------------------------------


def test_a_pod_that_hangs_on_a_lost_node_is_presumed_to_have_ended_after_a_while() -> None:
    pod = a_pod().running().disrupted("DeletionByTaintManager").deleted(4, 30)
    shown = RETRIED.with_status(status_of(plan_of(RETRIED, a_pod().running())))
    waits = plan_of(shown, pod, now=333)
    assert nothing(waits)
    assert waits.requeue_at == at(334)
    plan = plan_of(shown, pod, now=334)
    attempt = last_attempt_of(plan)
    assert (attempt.end, attempt.cause, attempt.reason) == ("Presumed", "Disruption", "DeletionByTaintManager")
    assert (released(plan), created(plan)) == ([], []), "the kubelet may still report the end"
    after = plan_of(shown.with_status(status_of(plan)), pod.released(), now=400)
    assert created(after) == [2]


def test_how_long_a_pod_may_hang_can_be_chosen() -> None:
    taskrun = a_taskrun(deadlines={"lostSeconds": 5})
    assert last_attempt_of(plan_of(taskrun, a_pod().running().deleted(4, 1))).reason == "NodeLost"


def test_a_deleted_pod_whose_container_has_ended_is_waited_for() -> None:
    pod = a_pod().with_sidecar().exited(143, 8).deleted(4)
    assert nothing(plan_of(a_taskrun(), pod))
    assert last_attempt_of(plan_of(a_taskrun(), pod.failed(""))).reason == "Deleted"


# -- pending ---------------------------------------------------------------------------------------


def test_a_pod_that_takes_its_time_is_shown_as_pending() -> None:
    plan = plan_of(a_taskrun(), a_pod().waiting("ContainerCreating"), now=10)
    assert progress_of(plan)[0] == "Pending"
    assert plan.requeue_at == at(30)
    assert last_attempt_of(plan).number == 1


TROUBLES = {
    "Unschedulable": (a_pod().unschedulable(), "No node can take the pod: 0/3 nodes"),
    "SchedulerError": (a_pod().with_condition("PodScheduled", "False", "SchedulerError"), "The pod can't be scheduled."),
    "ErrImagePull": (a_pod().waiting("ErrImagePull", 'image "nope:1" not found'), 'The image of container task can\'t be pulled: image "nope:1"'),
    "CreateContainerConfigError": (a_pod().waiting("CreateContainerConfigError", "no secret"), "Container task can't be created: no secret"),
    "Frozen": (a_pod().waiting("Frozen", "cold"), "Container task waits (Frozen): cold"),
    "init": (a_pod().waiting("PodInitializing").waiting("ImagePullBackOff", "back-off", container="prepare", init=True), "The image of container prepare can't"),
}  # fmt: skip


@pytest.mark.parametrize("trouble", TROUBLES)
def test_why_a_pod_does_not_start_is_shown_at_once(trouble: str) -> None:
    pod, message = TROUBLES[trouble]
    reason, shown = progress_of(plan_of(a_taskrun(), pod, now=1))
    assert reason == "Pending"
    assert shown.startswith(message)


def test_reasons_that_take_turns_are_one_write() -> None:
    shown = a_taskrun().with_status(
        status_of(plan_of(a_taskrun(), a_pod().waiting("ErrImagePull", "not found"), now=1))
    )
    assert nothing(plan_of(shown, a_pod().waiting("ImagePullBackOff", "Back-off pulling"), now=20))
    other = plan_of(shown, a_pod().waiting("CreateContainerConfigError", "no secret"), now=20)
    assert progress_of(other)[1].startswith("Container task can't be created")
    gone = plan_of(shown, a_pod().waiting("ContainerCreating"), now=20)
    assert progress_of(gone)[1] == "The pod of the current attempt has not started yet."


def test_a_pod_pending_for_too_long_is_deleted_and_says_why() -> None:
    pod = a_pod().waiting("ImagePullBackOff", "not found")
    plan = plan_of(RETRIED, pod, now=900)
    assert deleted(plan) == ["load-01234-1"]
    why = "The pod was pending for longer than spec.deadlines.pendingSeconds (900 s). The image of container task can't be pulled: not found"
    assert progress_of(plan) == ("Pending", why)
    given_up = RETRIED.with_status(status_of(plan))
    assert deleted(plan_of(given_up, pod, now=901)) == ["load-01234-1"]
    assert plan_of(given_up, pod, now=901).status is None
    gone = a_pod().scheduled().with_container("task", terminated={"exitCode": 137, "reason": "ContainerStatusUnknown"})
    ended = plan_of(given_up, gone.deleted(901).failed(""), now=905)
    attempt = last_attempt_of(ended)
    assert (attempt.cause, attempt.reason, attempt.message) == ("NeverStarted", "ImagePullBackOff", why)
    assert status_of(ended).next_attempt_time == at(915)


def test_a_pod_pending_for_too_long_without_a_word_says_that() -> None:
    taskrun = a_taskrun(deadlines={"pendingSeconds": 5}).with_budgets()
    plan = plan_of(taskrun, a_pod(), now=5)
    assert deleted(plan) == ["load-01234-1"]
    attempt = last_attempt_of(plan_of(taskrun.with_status(status_of(plan)), a_pod().deleted(5, 0), now=6))
    assert (attempt.cause, attempt.reason) == ("NeverStarted", "PendingTooLong")


def test_a_pod_that_starts_while_it_is_given_up_runs() -> None:
    given_up = a_taskrun().with_status(status_of(plan_of(a_taskrun(), a_pod(), now=900)))
    attempt = last_attempt_of(plan_of(given_up, a_pod().running(901), now=904))
    assert (attempt.reason, attempt.finish_time) == (None, None)


def test_a_gated_pod_waits_for_ever_and_its_clock_stands_still() -> None:
    plan = plan_of(a_taskrun(), a_pod().gated(), now=1)
    reason, message = progress_of(plan)
    assert reason == "WaitingForGates"
    assert "kueue.x-k8s.io/admission" in message
    shown = a_taskrun().with_status(status_of(plan))
    assert plan_of(shown, a_pod().gated(), now=99999) == Plan()
    # The condition still says SchedulingGated; the gate is gone.
    free = plan_of(shown, a_pod().gated().with_spec(schedulingGates=[]), now=100_000)
    assert (progress_of(free)[0], last_attempt_of(free).start_time) == ("Pending", at(100_000))
    assert free.requeue_at == at(100_030)
    assert deleted(plan_of(shown.with_status(status_of(free)), a_pod().unschedulable(), now=100_899)) == []
    assert deleted(plan_of(shown.with_status(status_of(free)), a_pod().unschedulable(), now=100_900)) == [
        "load-01234-1"
    ]


def test_an_init_container_that_works_is_no_waiting() -> None:
    init = a_pod().with_init().waiting("PodInitializing")
    works = init.with_container("prepare", init=True, running={"startedAt": "2026-03-01T12:00:01Z"})
    assert deleted(plan_of(a_taskrun(), works, now=5000)) == []
    assert plan_of(a_taskrun(), works, now=5).requeue_at == at(10)
    done = init.with_container("prepare", init=True, terminated={"finishedAt": "2026-03-01T13:00:00Z"})
    assert plan_of(a_taskrun(), done, now=4400).requeue_at == at(3600 + 900)


def test_a_sidecar_that_runs_does_not_stop_the_clock() -> None:
    pod = a_pod().with_init("proxy", "Always").waiting("ImagePullBackOff")
    pod = pod.with_container("proxy", init=True, running={"startedAt": "2026-03-01T12:00:01Z"})
    assert deleted(plan_of(a_taskrun(), pod, now=900)) == ["load-01234-1"]


def test_a_pod_without_a_time_of_creation_is_taken_as_new() -> None:
    pod = a_pod().with_metadata(creationTimestamp=None)
    assert nothing(plan_of(a_taskrun(), pod, now=5000))


# -- the state -------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [AbsentState(), a_state(1, uid="another")])
@pytest.mark.parametrize("message", ['{"reattach":"v1","kind":"Held","message":"state-lost"}', "boom"])
def test_a_run_whose_state_is_lost_is_held(state: Any, message: str) -> None:
    taskrun = a_taskrun().with_budgets(application=0, disruption=0).with_state()
    plan = plan_of(taskrun, a_pod().exited(1, message=message), state=state)
    attempt = last_attempt_of(plan)
    assert (attempt.cause, attempt.charged_to) == ("Held", "disruption")
    assert (status_of(plan).outcome, hold_of(plan), progress_of(plan)[0]) == (None, ("True", "StateLost"), "StateLost")
    assert (released(plan), created(plan), told(plan)) == (["load-01234-1"], [], ["StateLost"])
    assert "{held: StateLost, action: StartEmpty}" in progress_of(plan)[1]
    held = taskrun.with_status(status_of(plan))
    assert plan_of(held, a_pod().exited(1).released(), now=99999) == Plan()
    assert plan_of(held, a_pod().exited(1).released(), now=99999, summary=a_summary(), state=a_state()) == Plan()


def test_a_held_run_stops_what_is_left_of_its_pod() -> None:
    taskrun = a_taskrun().with_state()
    held = status_of(plan_of(taskrun, a_pod().with_sidecar().exited(1)))
    plan = plan_of(taskrun.with_status(held), a_pod().with_sidecar().exited(1), now=12)
    assert (plan.status, stopped(plan)) == (None, ["load-01234-1"])


def test_by_exit_code_success_needs_no_state() -> None:
    plan = plan_of(a_taskrun(completion="ExitCode").with_state(), a_pod().exited(0))
    assert status_of(plan).outcome == "Succeeded"


def test_a_state_found_lost_before_the_next_pod_holds_the_run() -> None:
    taskrun = RETRIED.with_failed_attempt(1).with_state()
    assert decision_of(taskrun, state=None) == ReadState()
    plan = plan_of(taskrun, state=AbsentState())
    assert (hold_of(plan), created(plan), told(plan)) == (("True", "StateLost"), [], ["StateLost"])


def test_a_state_that_the_watch_does_not_show_is_read_before_the_next_pod() -> None:
    taskrun = RETRIED.with_failed_attempt(1).with_state()
    assert created(plan_of(taskrun, state=a_state(1))) == [2]
    assert created(plan_of(taskrun, summary=a_summary(1), state=None)) == [2]


def test_a_run_whose_state_can_not_be_read_waits_visibly() -> None:
    taskrun = RETRIED.with_state()
    plan = plan_of(taskrun, a_pod().exited(1), state=UnreadableState("formatVersion 9"))
    assert (hold_of(plan), status_of(plan).attempts, released(plan)) == (("True", "StateUnreadable"), (), [])
    assert progress_of(plan)[1].endswith("formatVersion 9")
    assert plan.requeue_at == at(40)
    waiting = taskrun.with_status(status_of(plan))
    assert nothing(plan_of(waiting, a_pod().exited(1), state=UnreadableState("formatVersion 9"), now=40))

    readable = plan_of(waiting, a_pod().exited(1), state=a_state(1), now=70)
    assert (hold_of(readable), last_attempt_of(readable).cause) == (("False", "NotHeld"), "Application")
    assert (
        plan_of(
            taskrun.with_status(status_of(readable)), a_pod().exited(1).released(), now=15, summary=a_summary()
        ).status
        is None
    )


# -- the state before the first attempt ------------------------------------------------------------


COPIED = a_taskrun(stateFrom="earlier")
PROBLEM = "TaskRun earlier must be over; it is unfinished."


def test_state_of_another_taskrun_is_copied_and_named_before_the_first_pod() -> None:
    assert decision_of(COPIED) == CopyState("earlier")
    plan = plan_of(COPIED, state=a_state(None))
    named = StateReference(config_map=state_name(NAME, UID), uid=STATE_UID)
    assert (status_of(plan).state, plan.actions, plan.requeue_at) == (named, (), at(10))
    begun = COPIED.with_status(status_of(plan))
    assert created(plan_of(begun, summary=a_summary(None))) == [1]


def test_state_that_exists_is_named_before_the_next_pod_even_without_a_summary_of_it() -> None:
    imported = plan_of(a_taskrun(), summary=a_summary(None), state=a_state(None))
    assert (status_of(imported).state, created(imported)) != (None, [1])
    later = plan_of(RETRIED.with_failed_attempt(1), summary=a_summary(None), state=a_state(None))
    assert (status_of(later).state is not None, created(later)) == (True, [])
    gone = plan_of(a_taskrun(), summary=a_summary(None), state=AbsentState())
    assert (gone.status, created(gone)) == (None, [1])


def test_copied_state_that_is_deleted_before_the_first_pod_is_lost_and_not_copied_again() -> None:
    begun = COPIED.with_status(status_of(plan_of(COPIED, state=a_state(None))))
    lost = plan_of(begun, state=AbsentState())
    assert (hold_of(lost), created(lost)) == (("True", "StateLost"), [])
    given_up = begun.with_status(status_of(lost)).with_resolution("StateLost", "StartEmpty")
    empty = given_up.with_status(status_of(plan_of(given_up, state=AbsentState())))
    assert created(plan_of(empty)) == [1]


def test_no_state_is_copied_after_the_first_attempt_or_while_paused() -> None:
    assert created(plan_of(COPIED.with_budgets(application=3).with_failed_attempt(1))) == [2]
    gone = plan_of(COPIED.with_budgets(application=3).with_failed_attempt(1), summary=a_summary(None))
    assert created(gone) == [2]
    assert progress_of(plan_of(COPIED, paused=True))[0] == "Paused"


def test_suspended_run_copies_and_names_no_state_until_it_is_resumed() -> None:
    plan = plan_of(COPIED.with_spec(suspend=True), state=a_state(None))
    suspended = COPIED.with_spec(suspend=True).with_status(status_of(plan))
    assert (progress_of(plan)[0], status_of(plan).state) == ("Suspended", None)
    imported = {"summary": a_summary(None), "state": a_state(None)}
    assert nothing(plan_of(suspended, **imported))
    resumed = plan_of(suspended.with_spec(suspend=False), **imported)
    assert (status_of(resumed).state is not None, created(resumed)) == (True, [])
    assert decision_of(suspended.with_spec(suspend=False)) == CopyState("earlier")


def test_run_whose_state_can_not_be_copied_is_held_until_it_can() -> None:
    plan = plan_of(COPIED, copy_problem=PROBLEM)
    assert (hold_of(plan), created(plan), plan.requeue_at) == (("True", "StateSourceUnavailable"), [], at(40))
    assert PROBLEM in progress_of(plan)[1]
    assert told(plan) == ["StateSourceUnavailable"]
    held = COPIED.with_status(status_of(plan))
    assert nothing(plan_of(held, copy_problem=PROBLEM, now=40))
    copied = plan_of(held, state=a_state(None), now=70)
    assert (hold_of(copied), progress_of(copied)[0]) == (("False", "NotHeld"), "Pending")


def test_run_that_waits_for_a_state_to_copy_can_be_cancelled_and_has_a_deadline() -> None:
    held = COPIED.with_status(status_of(plan_of(COPIED, copy_problem=PROBLEM)))
    plan = plan_of(held.with_spec(cancel=True))
    assert (status_of(plan).outcome, status_of(plan).state) == ("Cancelled", None)
    late = plan_of(held.with_spec(deadlines={"runSeconds": 60}), now=99)
    assert progress_of(late)[0] == "RunDeadlineExceeded"


def test_a_wait_is_not_cut_short_by_a_state_that_can_not_be_read_for_a_while() -> None:
    taskrun = a_taskrun().with_budgets(application=3).with_state()
    backing_off = taskrun.with_status(status_of(plan_of(taskrun, a_pod().exited(1), state=a_state(1))))
    until = backing_off.build().status.next_attempt_time
    plan = plan_of(backing_off, a_pod().exited(1).released(), state=UnreadableState("formatVersion 9"), now=11)
    assert (hold_of(plan)[0], status_of(plan).next_attempt_time) == ("True", until)
    assert until is not None


def test_a_record_that_came_after_the_end_was_recorded_ends_the_run() -> None:
    taskrun = RETRIED.with_failed_attempt(1).with_state()
    late: dict[str, Any] = {"summary": a_summary(1, 1), "state": a_state(1, completed_by=1, result="9")}
    plan = plan_of(taskrun, **late)
    assert (status_of(plan).outcome, status_of(plan).result, created(plan)) == ("Succeeded", "9", [])
    by_exit_code = a_taskrun(completion="ExitCode", retry={"budgets": {"application": 3}})
    assert created(plan_of(by_exit_code.with_failed_attempt(1).with_state(), **late)) == [2]
    assert created(plan_of(by_exit_code.with_failed_attempt(1).with_state(), state=late["state"])) == [2]


def test_a_summary_that_claims_too_much_is_not_believed() -> None:
    taskrun = RETRIED.with_failed_attempt(1).with_state()
    assert created(plan_of(taskrun, summary=a_summary(1, 1), state=a_state(1))) == [2]
    assert created(plan_of(taskrun, summary=a_summary(1, 1), state=a_state(1, completed_by=1, pod_uid="another"))) == [
        2
    ]


# -- restored --------------------------------------------------------------------------------------


def test_a_restored_taskrun_is_held_until_a_person_says_otherwise() -> None:
    restored = a_taskrun().with_metadata(labels={"velero.io/restore-name": "monday"})
    assert plan_of(restored) == plan_of(replace(restored, status=TaskRunStatus())), "an earlier schema has no default"
    plan = plan_of(restored)
    assert (hold_of(plan), created(plan), told(plan)) == (("True", "Restored"), [], ["Restored"])
    held = restored.with_status(status_of(plan))
    assert nothing(plan_of(held, now=5000))
    freed = plan_of(held.with_metadata(labels={}), now=60)
    assert (hold_of(freed), created(freed)) == (("False", "NotHeld"), [1])


def test_a_taskrun_that_has_a_status_goes_on_whatever_its_labels() -> None:
    restored = RETRIED.with_failed_attempt(1).with_metadata(labels={"velero.io/restore-name": "monday"})
    assert created(plan_of(restored)) == [2]


# -- refusals and templates ------------------------------------------------------------------------


def a_rejection(kind: PodRejectionKind, message: str = "no", *, attempt: int = 1, retry_at: float = 20) -> PodRejection:
    return PodRejection(kind, attempt, message, at(retry_at))


@pytest.mark.parametrize(
    "kind, reason",
    [
        (PodRejectionKind.QUOTA, "QuotaExceeded"),
        (PodRejectionKind.FORBIDDEN, "PodRefused"),
        (PodRejectionKind.NAME_TAKEN, "PodNameTaken"),
        (PodRejectionKind.ERROR, "PodRefused"),
    ],
)
def test_a_pod_that_is_refused_for_now_is_asked_for_again_and_uses_no_attempt(
    kind: PodRejectionKind, reason: str
) -> None:
    plan = plan_of(a_taskrun(), rejection=a_rejection(kind, "used 3 of 3"))
    assert (progress_of(plan)[0], told(plan), created(plan)) == (reason, [reason], [])
    assert (plan.requeue_at, status_of(plan).counts.attempts, status_of(plan).attempts) == (at(20), 0, ())
    assert progress_of(plan)[1].endswith("used 3 of 3")
    waiting = a_taskrun().with_status(status_of(plan))
    assert nothing(plan_of(waiting, rejection=a_rejection(kind, "used 4 of 4"), now=12))
    again = plan_of(waiting, rejection=a_rejection(kind), now=20)
    assert (again.status, created(again)) == (None, [1])


KEPT = RETRIED.with_failed_attempt(1).with_failed_attempt(2)
ENDED = tuple(a_pod(number).running().exited(1) for number in (1, 2))
FULL = PodRejection(PodRejectionKind.QUOTA, 3, "exceeded quota: objects", at(600), 1)


def test_oldest_kept_pod_is_deleted_if_a_quota_counts_it() -> None:
    plan = plan_of(KEPT, *ENDED, rejection=FULL)
    (deletion,) = actions_of(plan, DeletePod)
    assert (deletion.name, deletion.makes_room) == ("load-01234-1", True)
    (event,) = actions_of(plan, EmitEvent)
    assert event.reason == "KeptPodDeleted"
    assert event.note == (
        "Deleting the kept pods of ended attempts (load-01234-1), because the quota has no room for the next pod. "
        "exceeded quota: objects"
    )
    assert (created(plan), plan.status, plan.requeue_at) == ([], None, at(600))


def test_as_many_kept_pods_are_deleted_as_the_quota_has_too_many() -> None:
    plan = plan_of(KEPT, *ENDED, rejection=replace(FULL, excess_pods=5))
    assert [action.name for action in actions_of(plan, DeletePod)] == ["load-01234-1", "load-01234-2"]


@pytest.mark.parametrize(
    "pods, excess",
    [
        ((), 1),
        (ENDED, 0),
        ((a_pod(1).running().exited(1).with_metadata(deletionTimestamp=stamp(5)),), 1),
    ],
    ids=["none is kept", "a pod less does not help", "it is being deleted already"],
)
def test_quota_without_a_kept_pod_to_delete_is_shown_and_waited_for(pods: tuple[APod, ...], excess: int) -> None:
    plan = plan_of(KEPT, *pods, rejection=replace(FULL, excess_pods=excess))
    assert (progress_of(plan)[0], actions_of(plan, DeletePod)) == ("QuotaExceeded", [])


def test_another_reason_to_refuse_the_pod_is_shown() -> None:
    waiting = a_taskrun().with_status(
        status_of(plan_of(a_taskrun(), rejection=a_rejection(PodRejectionKind.FORBIDDEN, "runs as root")))
    )
    plan = plan_of(waiting, rejection=a_rejection(PodRejectionKind.FORBIDDEN, "mounts the host"))
    assert progress_of(plan)[1].endswith("mounts the host")
    assert plan_of(waiting, rejection=a_rejection(PodRejectionKind.ERROR, "time-out")).status is None


def test_a_pod_that_was_made_after_all_is_no_longer_said_to_be_refused() -> None:
    waiting = a_taskrun().with_status(status_of(plan_of(a_taskrun(), rejection=a_rejection(PodRejectionKind.QUOTA))))
    assert progress_of(plan_of(waiting, a_pod(), now=1))[0] == "Pending"


def test_a_template_that_no_pod_can_be_made_from_ends_the_run() -> None:
    message = 'Pod in version "v1" cannot be handled: unknown field "spec.nodeSelektor"'
    plan = plan_of(a_taskrun(), rejection=a_rejection(PodRejectionKind.INVALID, message))
    status = status_of(plan)
    assert (status.outcome, progress_of(status)[0], status.counts.attempts) == ("Failed", "InvalidTemplate", 0)
    assert "spec.nodeSelektor" in progress_of(status)[1]
    assert (status.start_time, told(plan), created(plan)) == (at(10), ["InvalidTemplate"], [])


@pytest.mark.parametrize("levels", [TEMPLATE_LEVELS_MAX, 900, 100_000])
def test_decide_on_template_that_is_nested_too_deeply_fails_the_run(levels: int) -> None:
    template = b'{"spec":{"containers":[{"name":"task"}],"x":' + b"[" * levels + b"]" * levels + b"}}"
    taskrun = a_taskrun().build()
    spec = msgspec.structs.replace(taskrun.spec, template=msgspec.Raw(template))
    plan = plan_of(msgspec.structs.replace(taskrun, spec=spec))
    status = status_of(plan)
    assert (status.outcome, progress_of(status)[0], status.counts.attempts) == ("Failed", "InvalidTemplate", 0)
    assert progress_of(status)[1].endswith("spec.template must be nested at most 100 levels deep.")
    assert created(plan) == []


def test_a_refusal_of_an_earlier_attempts_pod_is_history() -> None:
    plan = plan_of(RETRIED.with_failed_attempt(1), rejection=a_rejection(PodRejectionKind.INVALID, attempt=1))
    assert created(plan) == [2]


# -- a paused installation -------------------------------------------------------------------------


@pytest.mark.parametrize("taskrun", [a_taskrun(), RETRIED.with_failed_attempt(1)], ids=["first", "retry"])
def test_paused_installation_creates_no_pod_and_shows_why(taskrun: ATaskRun) -> None:
    plan = plan_of(taskrun, paused=True)
    assert (progress_of(plan)[0], created(plan), told(plan)) == ("Paused", [], [])
    assert "operator.paused" in progress_of(plan)[1]
    assert (status_of(plan).counts.attempts, plan.requeue_at) == (taskrun.status.counts.attempts, None)
    waiting = taskrun.with_status(status_of(plan))
    assert nothing(plan_of(waiting, paused=True, now=20))
    assert created(plan_of(waiting, now=30)) == [taskrun.status.counts.attempts + 1]
    assert progress_of(plan_of(waiting, a_pod(taskrun.status.counts.attempts + 1), now=1))[0] == "Pending"


def test_paused_installation_records_the_end_of_a_running_attempt() -> None:
    plan = plan_of(RETRIED, a_pod().exited(1), paused=True)
    assert (last_attempt_of(plan).cause, progress_of(plan)[0]) == ("Application", "BackingOff")
    assert released(plan) == ["load-01234-1"]
    assert status_of(plan_of(a_taskrun(), a_pod().exited(0), paused=True)).outcome == "Succeeded"


def test_paused_installation_ends_a_cancelled_run() -> None:
    assert status_of(plan_of(a_taskrun(cancel=True), paused=True)).outcome == "Cancelled"


REPAIRED = {"spec": {"containers": [{"name": "task", "image": "task:2"}], "nodeSelector": {"disk": "ssd"}}}
CHANGED = {"spec": {"containers": [{"name": "task", "image": "task:2", "command": ["run"]}]}}


def test_a_run_whose_template_was_changed_ends_where_it_would_need_another_pod() -> None:
    changed = a_taskrun(template=CHANGED).with_budgets(application=3)
    running = plan_of(changed, a_pod().running())
    assert progress_of(running)[0] == "Running"
    failed = plan_of(changed, a_pod().exited(1))
    assert (status_of(failed).outcome, progress_of(failed)[0]) == (None, "BackingOff")
    plan = plan_of(changed.with_status(status_of(failed)), a_pod().exited(1).released(), now=30)
    assert (status_of(plan).outcome, progress_of(plan)[0], created(plan)) == ("Failed", "TemplateChanged", [])


def test_a_repaired_template_makes_the_next_pod_and_each_attempt_names_its_template() -> None:
    repaired = a_taskrun(template=REPAIRED).with_budgets(application=3)
    failed = plan_of(repaired, a_pod().exited(1))
    plan = plan_of(repaired.with_status(status_of(failed)), a_pod().exited(1).released(), now=30)
    assert (created(plan), last_attempt_of(failed).template_hash) == ([2], template_hash(TEMPLATE))
    pods = (a_pod().exited(1).released(), a_pod(2, template=REPAIRED).running())
    running = plan_of(repaired.with_status(status_of(failed)), *pods, now=60)
    assert [one.template_hash for one in status_of(running).attempts] == [
        template_hash(TEMPLATE),
        template_hash(REPAIRED),
    ]


@pytest.mark.parametrize("found", [None, "", "x" * 16, "0" * 17, "\x1b[2J"])
def test_text_that_is_no_hash_of_a_template_is_not_shown(found: str | None) -> None:
    pod = a_pod().with_metadata(annotations={} if found is None else {ANNOTATION_TEMPLATE_HASH: found})
    assert last_attempt_of(plan_of(RETRIED, pod.exited(1))).template_hash is None


def test_template_of_an_attempt_stays_known_after_its_pod_is_gone() -> None:
    running = RETRIED.with_status(status_of(plan_of(RETRIED, a_pod().running(), now=3)))
    assert last_attempt_of(plan_of(running, now=60)).template_hash == template_hash(TEMPLATE)


def test_pod_of_an_earlier_release_does_not_prevent_a_repair() -> None:
    pod = a_pod().exited(1).released().with_metadata(annotations={ANNOTATION_TEMPLATE_HASH: template_hash(TEMPLATE)})
    repaired = a_taskrun(template=REPAIRED).with_budgets(application=3).with_failed_attempt(1)
    assert created(plan_of(repaired, pod)) == [2]


def test_success_from_the_template_it_began_with_counts() -> None:
    assert status_of(plan_of(a_taskrun(template=CHANGED), a_pod().exited(0))).outcome == "Succeeded"


def test_a_pod_whose_hash_was_taken_away_proves_nothing() -> None:
    pod = a_pod().exited(1).released().with_metadata(annotations={})
    assert created(plan_of(RETRIED.with_failed_attempt(1), pod)) == [2]
    assert TEMPLATE != CHANGED


# -- what is written -------------------------------------------------------------------------------


def test_a_condition_keeps_its_time_until_its_status_changes() -> None:
    running = status_of(plan_of(RETRIED, a_pod().running(), now=3))
    failed = status_of(plan_of(RETRIED.with_status(running), a_pod().exited(1), now=6))
    assert {one.last_transition_time for one in (*running.conditions, *failed.conditions)} == {at(3)}
    ended = status_of(plan_of(RETRIED.with_status(failed), a_pod(2).exited(0), now=30))
    assert ended.conditions[0].last_transition_time == at(30)


def test_a_new_generation_is_acknowledged_once() -> None:
    shown = a_taskrun().with_status(status_of(plan_of(a_taskrun(), a_pod().running())))
    edited = shown.with_metadata(generation=2)
    status = status_of(plan_of(edited, a_pod().running()))
    assert (status.observed_generation, status.conditions[0].observed_generation) == (2, 2)
    assert plan_of(edited.with_status(status), a_pod().running()).status is None
    assert plan_of(a_taskrun().with_metadata(generation=2), a_pod().running(9)).status is None


def test_what_the_state_api_wrote_is_kept() -> None:
    status = status_of(plan_of(RETRIED.with_state(), a_pod().exited(1), state=a_state(1)))
    assert status.state is not None
    assert status.state.uid == STATE_UID


def test_times_are_whole_seconds_and_a_wait_is_never_shortened_by_that() -> None:
    plan = plan_of(RETRIED, a_pod().running(None).failed(""), now=10.4)
    status = status_of(plan)
    assert (status.attempts[0].finish_time, status.next_attempt_time) == (at(10), at(21))


def test_what_was_said_is_only_said_with_the_write_that_says_it() -> None:
    plan = plan_of(RETRIED, a_pod().exited(1))
    again = plan_of(RETRIED.with_status(status_of(plan)), a_pod().exited(1))
    assert (told(plan), told(again), released(again)) == (["AttemptFailed"], [], ["load-01234-1"])


def test_the_same_is_decided_for_the_same() -> None:
    taskrun = a_taskrun(retry={"budgets": {"application": 3}, "backoff": {"jitterPercent": 50}})
    first, second = (plan_of(taskrun, a_pod().exited(1)) for _ in range(2))
    assert first == second
    assert status_of(first).next_attempt_time is not None
    assert timedelta(seconds=5) <= status_of(first).next_attempt_time - at(5) <= timedelta(seconds=16)  # type: ignore[operator]
    assert observed(taskrun) == observed(taskrun)


def test_an_end_found_late_is_recorded_beside_the_attempt_that_runs() -> None:
    plan = plan_of(RETRIED, a_pod(1).exited(1), a_pod(2).running())
    assert [(attempt.number, attempt.cause) for attempt in status_of(plan).attempts] == [(1, "Application"), (2, None)]
    assert (progress_of(plan)[0], released(plan), created(plan)) == ("Running", ["load-01234-1"], [])


def test_an_end_found_late_does_not_say_that_the_run_backs_off_while_an_attempt_runs() -> None:
    shown = RETRIED.with_attempt(2).with_status(conditions=status_of(plan_of(RETRIED, a_pod().running())).conditions)
    shown = shown.with_status(counts=TaskRunStatus().counts)
    plan = plan_of(shown, a_pod(1).exited(1), a_pod(2).running())
    assert (progress_of(plan)[0], created(plan)) == ("Running", [])


def test_a_gate_that_goes_soon_starts_the_clock_at_once() -> None:
    shown = a_taskrun().with_status(status_of(plan_of(a_taskrun(), a_pod().gated(), now=1)))
    free = plan_of(shown, a_pod().scheduled(), now=3)
    assert (progress_of(free)[0], last_attempt_of(free).start_time) == ("Pending", at(3))
