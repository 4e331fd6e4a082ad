"""A hold for a presumed end on the real API server: it ends once the Node is tainted."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from controlplane import ControlPlane
from operator_process import NODE, Containers, Kubelet, Operators, Stage, condition, kubelet_of, stage_of
from reattach.cluster.paths import node, pods
from stateapi import Servers
from taskscripts import Tasks
from waiting import wait_until

JSON = dict[str, Any]
SLOW = 90
TAINT = {"key": "node.kubernetes.io/out-of-service", "value": "nodeshutdown", "effect": "NoExecute"}


@pytest.fixture
def kubelet(control_plane: ControlPlane) -> Iterator[Kubelet]:
    with kubelet_of(control_plane) as kubelet:
        yield kubelet


@pytest.fixture
def stage(control_plane: ControlPlane, kubelet: Kubelet, tmp_path: Path) -> Iterator[Stage]:
    operators = Operators(control_plane, tmp_path)
    with stage_of(control_plane, operators, kubelet, "--read-nodes") as stage:
        yield stage
    operators.stop()


@pytest.fixture
def tasks(control_plane: ControlPlane, tmp_path: Path) -> Iterator[Tasks]:
    servers = Servers(control_plane, tmp_path / "state-api")
    yield Tasks(control_plane, servers.start())
    servers.stop()


@pytest.fixture
def lost(control_plane: ControlPlane) -> Iterator[str]:
    """Create the Node of all pods, which no kubelet reports as ready."""
    control_plane.call("POST", "/api/v1/nodes", {"metadata": {"name": NODE}})
    yield node(NODE)
    control_plane.call("DELETE", node(NODE))


def vanish(stage: Stage, containers: Containers) -> None:
    """Remove the pod as an administrator does by force, once status shows its node."""

    def shown() -> bool:
        return any(attempt.get("node") for attempt in stage.cluster.status("lost").get("attempts", []))

    wait_until(shown, seconds=SLOW, what="status shows the node of the attempt")
    path, uid = pods(containers.namespace, containers.name), containers.uid
    stage.control_plane.call("PATCH", path, {"metadata": {"uid": uid, "finalizers": []}})
    stage.control_plane.call("DELETE", path, {"gracePeriodSeconds": 0, "preconditions": {"uid": uid}})


def test_hold_for_a_presumed_end_ends_once_the_node_is_tainted(stage: Stage, tasks: Tasks, lost: str) -> None:
    answers: dict[int, JSON] = {}

    def begin(containers: Containers) -> None:
        containers.run()
        tasks.intended(containers)
        vanish(stage, containers)

    def settle(containers: Containers) -> None:
        containers.run()
        process, answers[3] = tasks.intended(containers)
        assert process.intend(again="Absent").json()["decision"] == "Submit"
        assert process.handle("job-3").status_code == 204
        assert process.outcome("Succeeded").status_code == 204
        assert process.complete(result=None).status_code == 204
        containers.end(0)

    scripts = {1: begin, 2: tasks.ask, 3: settle}
    stage.run("lost", lambda attempt: scripts[attempt], retry={"backoff": {"initialSeconds": 1, "jitterPercent": 0}})

    def held() -> bool:
        return condition(stage.cluster.status("lost"), "Held").get("status") == "True"

    wait_until(held, seconds=SLOW, what="the TaskRun is held")
    status = stage.cluster.status("lost")
    assert [(attempt["end"], attempt["cause"]) for attempt in status["attempts"]] == [
        ("Presumed", "Disruption"),
        ("Reported", "Held"),
    ]
    assert tasks.intents["lost", 2]["unresolved"]["allEnded"] is False
    assert f"kubectl taint node {NODE} {TAINT['key']}" in condition(status, "Held")["message"]

    # The operator would read the Node again within 30 s. After a restart it reads it at once.
    stage.operator.kill()
    stage.control_plane.call("PATCH", lost, {"spec": {"taints": [TAINT]}})
    stage.operator.start()
    status = stage.cluster.wait_for_outcome("lost", seconds=SLOW)
    first = status["attempts"][0]
    assert (status["outcome"], status["counts"]["lastPresumed"], len(status["attempts"])) == ("Succeeded", 0, 3)
    assert (first["end"], first["reportedAtAttempt"]) == ("Reported", 2)
    assert first["message"].endswith(f"Node {NODE} has the taint {TAINT['key']}, so no container runs on it.")
    assert answers[3]["unresolved"]["allEnded"] is True
    assert [job["handle"] for job in status["externalJobs"]] == ["job-3"]
