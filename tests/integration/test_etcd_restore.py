"""etcd restored from an older snapshot, by the steps of docs/install.md.

The control plane, the operator and the state API are real. A puppet of the kubelet moves the pods.
"""

import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from controlplane import ControlPlane, RunningControlPlane
from operator_process import Cluster, Containers, Kubelet, Operator, Operators, kubelet_of
from reattach.api.names import FINALIZER_ATTEMPT, LABEL_TASKRUN
from reattach.cluster.paths import pods, taskruns
from stateapi import Server, Servers
from taskscripts import Tasks, stay

JSON = dict[str, Any]
SECONDS = 90
INSTALL = Path(__file__).parents[2] / "docs/install.md"
SUBMITTED = r"reattach\.server\.audit: (intent|handle|outcome|complete) "
"""Pattern with which docs/install.md searches the log of the state API."""


@pytest.fixture
def kubelet(private_control_plane: RunningControlPlane) -> Iterator[Kubelet]:
    with kubelet_of(private_control_plane) as kubelet:
        yield kubelet


@pytest.fixture
def operators(private_control_plane: RunningControlPlane, tmp_path: Path) -> Iterator[Operators]:
    operators = Operators(private_control_plane, tmp_path / "operators")
    yield operators
    operators.stop()


@pytest.fixture
def servers(private_control_plane: RunningControlPlane, tmp_path: Path) -> Iterator[Servers]:
    servers = Servers(private_control_plane, tmp_path / "state-api")
    yield servers
    servers.stop()


def delete_task_pods(control_plane: ControlPlane, namespace: str, *, count: int) -> None:
    """Delete the task pods, which then wait for the operator."""
    control_plane.call("DELETE", pods(namespace), labelSelector=LABEL_TASKRUN)
    held = control_plane.call("GET", pods(namespace), labelSelector=LABEL_TASKRUN)["items"]
    assert len(held) == count
    for pod in held:
        assert "deletionTimestamp" in pod["metadata"]
        assert FINALIZER_ATTEMPT in pod["metadata"]["finalizers"]


def start_paused(operator: Operator) -> None:
    command = operator.command
    operator.command = [*command, "--paused"]
    operator.start()
    operator.command = command


class Submission:
    """A task whose first attempt opens its state, and submits once the test lets it."""

    def __init__(self, control_plane: ControlPlane, server: Server) -> None:
        self.tasks = Tasks(control_plane, server)
        self.opened = threading.Event()
        self.may_submit = threading.Event()
        self.submitted = threading.Event()

    def __call__(self, containers: Containers) -> None:
        containers.run()
        process = self.tasks.opened(containers)
        self.opened.set()
        assert self.may_submit.wait(SECONDS)
        response = process.intend()
        assert response.json()["decision"] == "Submit"
        self.tasks.intents[containers.pod["metadata"]["labels"][LABEL_TASKRUN], containers.attempt] = response.json()
        assert process.handle(f"job-of-{containers.name}").status_code == 204
        self.submitted.set()
        stay(containers)


def test_restored_cluster_that_is_held_by_the_documented_steps_submits_no_second_job(
    private_control_plane: RunningControlPlane,
    kubelet: Kubelet,
    operators: Operators,
    servers: Servers,
    tmp_path: Path,
) -> None:
    control_plane = private_control_plane
    namespace = control_plane.create_namespace("restored")
    cluster = Cluster(control_plane, namespace)
    operator, server = operators.start(namespaces=[namespace]), servers.start()
    first = {name: Submission(control_plane, server) for name in ("unprotected", "named")}
    kubelet.play(namespace, lambda name, _: first[name])
    for name, task in first.items():
        cluster.create(name, retry={"backoff": {"initialSeconds": 1, "jitterPercent": 0}})
        assert task.opened.wait(SECONDS), name
    kubelet.is_paused = True
    with control_plane.without_control_plane() as etcd:
        shutil.copytree(etcd, tmp_path / "snapshot")
    for task in first.values():
        task.may_submit.set()
        assert task.submitted.wait(SECONDS)
    handle = f"job-of-{cluster.pods('unprotected')[0]['metadata']['name']}"
    assert f"grep -E '{SUBMITTED}'" in INSTALL.read_text()
    log = [line for line in server.log.splitlines() if re.search(SUBMITTED, line)]

    # Both Deployments are scaled to 0, and the kubelets are stopped.
    operator.kill()
    server.kill()
    with control_plane.without_control_plane() as etcd:
        shutil.rmtree(etcd)
        shutil.copytree(tmp_path / "snapshot", etcd)
    delete_task_pods(control_plane, namespace, count=2)

    # The intents are forgotten in the cluster, and the log still names the job.
    unfinished = control_plane.call("GET", taskruns(namespace), fieldSelector="status.outcome=")["items"]
    assert {found["metadata"]["name"] for found in unfinished} == {"unprotected", "named"}
    assert all("externalJobs" not in found.get("status", {}) for found in unfinished)
    token = first["unprotected"].tasks.intents["unprotected", 1]["job"]["token"]
    assert any("taskrun=unprotected" in line and "decision=Submit" in line and token in line for line in log)
    assert any("taskrun=unprotected" in line and f"handle='{handle}'" in line for line in log)

    # Settle the run whose external system would accept the job twice.
    control_plane.call("PATCH", taskruns(namespace, "unprotected"), {"spec": {"cancel": True}})
    kubelet.is_paused = False
    again = Tasks(control_plane, servers.start())
    kubelet.play(namespace, lambda _name, _attempt: again.finish)
    start_paused(operator)
    assert cluster.wait_for_outcome("unprotected", seconds=SECONDS)["outcome"] == "Cancelled"
    cluster.wait_for_reason("named", "Paused", seconds=SECONDS)
    assert again.intents == {}
    operator.kill()
    operator.start()
    cluster.create("successor", adopt=[{"key": "load", "handle": handle}])
    assert cluster.wait_for_outcome("successor", seconds=SECONDS)["outcome"] == "Succeeded"
    assert again.intents["successor", 1]["decision"] == "Reattach"
    assert again.intents["successor", 1]["job"]["handle"] == handle
    assert ("unprotected", 2) not in again.intents

    # The other run submits again with the same token, so a name or a token protects its job.
    status = cluster.wait_for_outcome("named", seconds=SECONDS)
    assert again.intents["named", 2]["decision"] == "Submit"
    assert again.intents["named", 2]["job"]["token"] == first["named"].tasks.intents["named", 1]["job"]["token"]
    assert [attempt.get("chargedTo") for attempt in status["attempts"]] == ["disruption", None]
