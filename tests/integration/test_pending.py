"""Pods that don't start on the real API server, while the test plays kubelet and users."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from controlplane import ControlPlane
from operator_process import Kubelet, Operators, Stage, condition, kubelet_of, stage_of
from reattach.cluster.paths import core
from waiting import wait_until

JSON = dict[str, Any]
SLOW = 90
MISSING = 'MountVolume.SetUp failed for volume "v" : secret "never" not found'


@pytest.fixture
def kubelet(control_plane: ControlPlane) -> Iterator[Kubelet]:
    with kubelet_of(control_plane) as kubelet:
        yield kubelet


@pytest.fixture
def stage(control_plane: ControlPlane, kubelet: Kubelet, tmp_path: Path) -> Iterator[Stage]:
    operators = Operators(control_plane, tmp_path)
    with stage_of(control_plane, operators, kubelet) as stage:
        yield stage
    operators.stop()


def event_about(pod: JSON, name: str, reason: str, message: str, **more: Any) -> JSON:
    """Return an Event as the kubelet writes it, in the group core."""
    about = {"kind": "Pod", **{key: pod["metadata"][key] for key in ("namespace", "name", "uid")}}
    return {
        "metadata": {"name": name, "namespace": about["namespace"]},
        "involvedObject": about,
        "reason": reason,
        "message": message,
        "type": "Warning",
        "firstTimestamp": "2026-01-01T00:00:00Z",
        "lastTimestamp": "2026-01-01T00:00:00Z",
        "source": {"component": "kubelet"},
        **more,
    }


def test_event_of_the_kubelet_is_shown_for_a_pod_that_does_not_start(stage: Stage) -> None:
    stage.kubelet.forget(stage.namespace)  # otherwise it would report an end of the container
    retry, deadlines = {"budgets": {"neverStarted": 0}}, {"pendingSeconds": 6}
    stage.cluster.create("slow", retry=retry, deadlines=deadlines)
    (pod,) = wait_until(lambda: stage.cluster.pods("slow"), seconds=SLOW, what="the pod exists")
    of_a_taskrun = {"kind": "TaskRun", "name": "slow", "namespace": stage.namespace, "uid": pod["metadata"]["uid"]}
    late = {"lastTimestamp": "2026-01-01T00:00:09Z"}
    for event in (
        event_about(pod, "mount", "FailedMount", MISSING),
        event_about(pod, "normal", "Pulled", "pulled", type="Normal", **late),
        event_about(pod, "other", "Forged", "about no pod", involvedObject=of_a_taskrun, **late),
    ):
        stage.control_plane.call("POST", core("events", stage.namespace), event)
    status = stage.cluster.wait_for_outcome("slow", seconds=SLOW)
    (attempt,) = status["attempts"]
    assert (attempt["cause"], attempt["reason"]) == ("NeverStarted", "PendingTooLong")
    assert attempt["message"].endswith(f"The pod has not started (FailedMount): {MISSING}")
    assert MISSING in condition(status, "Succeeded")["message"]
