"""Pods of ended attempts: which are kept for their logs, and how the rest of them is stopped."""

import json

import msgspec
import pytest

from builders import (
    SETTINGS,
    APod,
    ATaskRun,
    a_pod,
    a_state,
    a_taskrun,
    actions_of,
    at,
    plan_of,
    status_of,
    teardown_plan_of,
)
from reattach.api.names import ANNOTATION_CONTAINER, ANNOTATION_POD_RETENTION, ANNOTATION_STOP_TIME, LABEL_PURPOSE
from reattach.api.taskrun import Ending
from reattach.planner.plan import CreatePod, DeletePod, NodeFacts, ReleasePod, StopPod
from reattach.planner.pods import pod_creation
from reattach.planner.retention import is_kept

RETRIED = a_taskrun().with_budgets(application=3)
LEFTOVER = a_pod().with_sidecar().exited(1)
STOP = [StopPod("load-01234-1", "pod-1", at(10))]
DELETE = [DeletePod("load-01234-1", "pod-1")]


def ended(taskrun: ATaskRun, pod: APod) -> ATaskRun:
    """Return the TaskRun after the end of the pod's attempt is recorded."""
    return taskrun.with_status(status_of(plan_of(taskrun, pod)))


# -- which pods are kept ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pod, kept_if_failed",
    [
        (a_pod().exited(0), False),
        (a_pod().exited(1), True),
        (a_pod().exited(0, reason="ContainerStatusUnknown"), True),
        (a_pod().running(), True),
        (a_pod().failed("Evicted"), True),
        (a_pod().with_status(phase="Succeeded"), False),
        # The kubelet failed the pod after the task had succeeded, because it stopped the sidecar.
        (a_pod().with_sidecar().exited(0).failed("DeadlineExceeded"), False),
    ],
)
def test_is_kept_policy_of_the_annotation_decides(pod: APod, kept_if_failed: bool) -> None:
    kept = {policy: is_kept(pod.retained(policy).build()) for policy in ("Failed", "None")}
    assert kept == {"Failed": kept_if_failed, "None": False}
    assert is_kept(pod.build()), "a pod without the annotation is kept"


@pytest.mark.parametrize("policy", ["Failed", "None"])
def test_pod_creation_policy_other_than_all_is_on_the_pod_with_the_container(policy: str) -> None:
    body = json.loads(pod_creation(a_taskrun(podRetention=policy).build(), 1, SETTINGS).body)
    annotations = body["metadata"]["annotations"]
    assert (annotations[ANNOTATION_POD_RETENTION], annotations[ANNOTATION_CONTAINER]) == (policy, "task")


def test_pod_creation_policy_all_adds_nothing_and_takes_nothing_of_ours_from_the_template() -> None:
    ours = (ANNOTATION_POD_RETENTION, ANNOTATION_CONTAINER, ANNOTATION_STOP_TIME)
    spec = {"containers": [{"name": "task", "image": "task:1"}]}
    template = {"metadata": {"annotations": {"a": "b", **dict.fromkeys(ours, "None")}}, "spec": spec}
    body = json.loads(pod_creation(a_taskrun(template=template).build(), 1, SETTINGS).body)
    assert body["metadata"]["annotations"].keys() & {"a", *ours} == {"a"}


def test_spec_pod_retention_default_is_all() -> None:
    assert a_taskrun().build().spec.pod_retention == "All"


# -- how the rest of a pod is stopped --------------------------------------------------------------


def test_decide_leftover_of_a_kept_pod_is_stopped_once_and_deleted_if_that_does_not_end_it() -> None:
    taskrun = ended(RETRIED, LEFTOVER)
    assert actions_of(plan_of(taskrun, LEFTOVER), StopPod) == STOP
    stopped = LEFTOVER.stopped(11)
    waits = plan_of(taskrun, stopped, now=60)
    assert (waits.status, waits.actions, waits.requeue_at) == (None, (), at(11 + 30 + 60))
    overdue = plan_of(taskrun, stopped, now=101)
    assert (list(overdue.actions), overdue.requeue_at) == (DELETE, at(11 + 30 + 300))
    waits = plan_of(taskrun, stopped.deleted(101), now=102)
    assert (waits.status, waits.actions, waits.requeue_at) == (None, (), at(11 + 30 + 300))


def test_decide_stopped_pod_on_a_lost_node_counts_as_over_from_its_stop() -> None:
    taskrun = ended(RETRIED, LEFTOVER)
    for pod in (LEFTOVER.stopped(11), LEFTOVER.stopped(11).deleted(101)):
        plan = plan_of(taskrun, pod, now=341)
        assert (len(actions_of(plan, ReleasePod)), len(actions_of(plan, CreatePod))) == (1, 1)
    assert actions_of(plan_of(taskrun, LEFTOVER.stopped(11), now=341), DeletePod) == DELETE


def test_decide_stopped_pod_on_a_node_out_of_service_is_over_at_once() -> None:
    nodes = {"node-1": NodeFacts(created=at(-100), out_of_service=True)}
    plan = plan_of(ended(RETRIED, LEFTOVER), LEFTOVER.stopped(11), now=60, nodes=nodes)
    assert (len(actions_of(plan, ReleasePod)), len(actions_of(plan, CreatePod))) == (1, 1)


def test_decide_pod_that_ends_after_its_stop_is_released_and_its_end_stays_as_recorded() -> None:
    taskrun = ended(RETRIED, LEFTOVER)
    over = LEFTOVER.stopped(11).failed("DeadlineExceeded", "Pod was active longer than the specified deadline")
    plan = plan_of(taskrun, over, now=20)
    assert (len(actions_of(plan, ReleasePod)), actions_of(plan, DeletePod), plan.status) == (1, [], None)
    (attempt,) = taskrun.status.attempts
    assert (attempt.cause, attempt.exit_code, attempt.end) == ("Application", 1, "Reported")


@pytest.mark.parametrize("text", ["", "soon", "2026-03-01T12:00:11"])
def test_decide_unreadable_stop_time_counts_as_not_stopped(text: str) -> None:
    pod = LEFTOVER.with_annotation(ANNOTATION_STOP_TIME, text)
    assert actions_of(plan_of(ended(RETRIED, LEFTOVER), pod), StopPod) == STOP


def test_decide_leftover_of_a_pod_that_is_not_kept_is_deleted() -> None:
    for policy, code, actions in [("None", 1, DELETE), ("Failed", 0, DELETE), ("Failed", 1, STOP)]:
        pod = a_pod().with_sidecar().exited(code).retained(policy)
        plan = plan_of(RETRIED, pod)
        assert [*actions_of(plan, DeletePod), *actions_of(plan, StopPod)] == actions


def test_decide_task_that_still_runs_after_its_end_was_presumed_is_deleted() -> None:
    presumed = RETRIED.with_status(status_of(plan_of(RETRIED.with_attempt(1))))
    assert actions_of(plan_of(presumed, a_pod().running()), DeletePod) == DELETE


def test_teardown_late_cleanup_pod_is_deleted_before_the_outcome_because_nothing_waits_for_it() -> None:
    ending = Ending(outcome="Failed", reason="ApplicationFailed", message="m", time=at(0), cleanup_deadline=at(9))
    taskrun = a_taskrun().with_failed_attempt(1)
    taskrun = taskrun.with_status(status_of(plan_of(taskrun)), outcome=None, ending=ending)
    cleanup = a_pod(2).with_metadata(labels={LABEL_PURPOSE: "Cleanup"}).with_sidecar().exited(0)
    plan = teardown_plan_of(taskrun, cleanup, state=a_state(1))
    assert (actions_of(plan, DeletePod), actions_of(plan, StopPod)) == ([DeletePod("load-01234-2", "pod-2")], [])
    in_time = taskrun.with_status(ending=msgspec.structs.replace(ending, cleanup_deadline=at(99)))
    plan = teardown_plan_of(in_time, cleanup, state=a_state(1))
    assert (actions_of(plan, DeletePod), len(actions_of(plan, StopPod))) == ([], 1)


def test_teardown_run_with_a_late_cleanup_waits_for_a_stopped_pod_without_a_loop() -> None:
    ending = Ending(outcome="Cancelled", reason="Cancelled", message="m", time=at(0), cleanup_deadline=at(9))
    taskrun = a_taskrun(cancel=True).with_failed_attempt(1).with_status(ending=ending)
    stopped = LEFTOVER.stopped(8)
    plan = teardown_plan_of(taskrun, stopped, state=a_state(1), now=50)
    assert (plan.actions, plan.requeue_at) == ((), at(8 + 30 + 60))
