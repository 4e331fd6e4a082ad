"""Reasons why a pod does not start that its status alone does not show."""

import pytest

from builders import (
    SETTINGS,
    APod,
    a_pod,
    a_taskrun,
    actions_of,
    at,
    last_attempt_of,
    observed,
    plan_of,
    progress_of,
    status_of,
)
from reattach.planner.decide import decide
from reattach.planner.plan import DeletePod, PodEvent, PodEvents, ReadEvents

CREATING = a_pod().waiting("ContainerCreating")
MISSING = PodEvent("FailedMount", 'MountVolume.SetUp failed for volume "v" : secret "never" not found')
SHOWN = f"The pod has not started (FailedMount): {MISSING.note}"


def sidecar(*, started: bool = False, ended: int | None = None, message: str = "", **state: object) -> APod:
    last = {} if ended is None else {"terminated": {"exitCode": ended, "message": message}}
    status = {"name": "proxy", "started": started, "state": state or {"running": {}}, "lastState": last}
    return CREATING.with_init("proxy", "Always").with_status(initContainerStatuses=[status])


def test_events_of_a_pod_are_read_once_it_is_pending_for_30_seconds() -> None:
    def needs_events(pod: APod, now: float, **spec: object) -> bool:
        return decide(observed(a_taskrun(**spec), pod), SETTINGS, at(now)) == ReadEvents(pod.build())

    assert not needs_events(CREATING, 29)
    assert needs_events(CREATING, 30)
    assert needs_events(CREATING, 20, deadlines={"pendingSeconds": 20})
    assert not needs_events(a_pod().waiting("ErrImagePull"), 30)
    assert not needs_events(a_pod().gated(), 30)
    assert not needs_events(CREATING.with_init().with_container("prepare", init=True, running={}), 30)


def test_newest_event_of_a_pod_is_shown_and_read_again_until_the_deadline() -> None:
    plan = plan_of(a_taskrun(), CREATING, now=30, events=PodEvents(MISSING, at(90)))
    assert progress_of(plan) == ("Pending", SHOWN)
    assert plan.requeue_at == at(90)
    shown = a_taskrun().with_status(status_of(plan))
    again = plan_of(shown, CREATING, now=90, events=PodEvents(PodEvent("FailedMount", "timed out"), at(150)))
    assert (again.status, again.requeue_at) == (None, at(150))
    late = plan_of(shown, CREATING, now=870, events=PodEvents(MISSING, at(930)))
    assert late.requeue_at == at(900)


def test_event_that_can_not_be_read_costs_no_further_wake_up() -> None:
    plan = plan_of(a_taskrun(), CREATING, now=30, events=PodEvents())
    assert progress_of(plan) == ("Pending", "The pod of the current attempt has not started yet.")
    assert plan.requeue_at == at(900)


def test_event_is_in_the_message_of_a_pod_that_is_given_up_but_is_not_its_reason() -> None:
    taskrun = a_taskrun(deadlines={"pendingSeconds": 20}).with_budgets()
    plan = plan_of(taskrun, CREATING, now=20, events=PodEvents(MISSING))
    assert len(actions_of(plan, DeletePod)) == 1
    entry = last_attempt_of(plan)
    assert entry.reason == "PendingTooLong"
    assert (entry.message or "").endswith(SHOWN)


def test_sidecar_without_a_successful_startup_probe_is_named_with_the_event_about_it() -> None:
    assert plan_of(a_taskrun(), sidecar(), now=1).status is None
    probe = PodEvent("Unhealthy", "Startup probe failed: connection refused")
    message = "Sidecar proxy runs, but its startup probe has not succeeded"
    for event, detail in ((probe, f": {probe.note}"), (None, ".")):
        plan = plan_of(a_taskrun(), sidecar(), now=30, events=PodEvents(event))
        assert progress_of(plan) == ("Pending", f"{message}{detail}")
    started = plan_of(a_taskrun(), sidecar(started=True), now=30, events=PodEvents(MISSING))
    assert progress_of(started) == ("Pending", SHOWN)


@pytest.mark.parametrize(
    "pod",
    [
        sidecar(ended=1, message="start\nproxy: no control plane\n"),
        sidecar(ended=1, message="start\nproxy: no control plane\n", waiting={"reason": "CrashLoopBackOff"}),
        sidecar(terminated={"exitCode": 1, "message": "start\nproxy: no control plane\n"}),
    ],
    ids=["restarted", "waits", "ended"],
)
def test_sidecar_that_crashes_is_named_at_once_with_its_last_log_line(pod: APod) -> None:
    plan = plan_of(a_taskrun(), pod, now=1)
    assert progress_of(plan)[1] == (
        "Sidecar proxy ended before it was ready, and is restarted: exit code 1, proxy: no control plane (after: start)"
    )
    shown = a_taskrun().with_status(status_of(plan))
    other = sidecar(ended=2, waiting={"reason": "CrashLoopBackOff"})
    assert plan_of(shown, other, now=60).status is None


def test_sidecar_that_became_ready_after_a_restart_is_no_problem() -> None:
    assert plan_of(a_taskrun(), sidecar(started=True, ended=1), now=1).status is None


def test_crash_of_a_sidecar_is_the_reason_of_a_pod_that_never_started() -> None:
    taskrun = a_taskrun(deadlines={"pendingSeconds": 20}).with_budgets()
    entry = last_attempt_of(plan_of(taskrun, sidecar(ended=3), now=20))
    assert entry.reason == "SidecarCrashed"
    assert (entry.message or "").endswith("and is restarted: exit code 3")
