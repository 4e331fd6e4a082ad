"""The adapter for Kubernetes Jobs against the local cluster, with its controllers and kubelets."""

import json
import secrets
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from reattach.adapters.base import NotFound
from reattach.adapters.kubernetes import JOB, Access, KubernetesObjects
from systems.cleanup import MOMENTS, cancel_run
from systems.conftest import CACHE
from systems.released_pods import run_without_pod
from waiting import wait_until

JSON = dict[str, Any]
KUBECONFIG = CACHE / "kubeconfig"


def kubectl(*arguments: str) -> str:
    command = [str(CACHE / "bin/kubectl"), "--kubeconfig", str(KUBECONFIG), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


@pytest.fixture
def namespace() -> Iterator[str]:
    if not KUBECONFIG.exists():
        pytest.fail(f"{KUBECONFIG} must exist: make cluster-up")
    name = f"systems-{secrets.token_hex(4)}"
    kubectl("create", "namespace", name)
    yield name
    kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture(scope="module")
def image() -> str:
    """Image that each kubelet has: that of the pods' sandboxes, whose program sleeps."""
    names = kubectl("get", "nodes", "--output", "jsonpath={.items[*].status.images[*].names[*]}").split()
    return next(name for name in names if "/pause:" in name)


def a_job(image: str) -> JSON:
    container = {"name": "main", "image": image, "imagePullPolicy": "Never"}
    pod = {"restartPolicy": "Never", "terminationGracePeriodSeconds": 1, "containers": [container]}
    return {"apiVersion": "batch/v1", "kind": "Job", "spec": {"backoffLimit": 0, "template": {"spec": pod}}}


@pytest.mark.parametrize("moment", MOMENTS)
def test_cleanup_of_a_cancelled_run_ends_its_job_and_the_pod(namespace: str, image: str, moment: str) -> None:
    def phases() -> list[str]:
        pods = json.loads(kubectl("get", "pods", "--namespace", namespace, "--output", "json"))["items"]
        return [pod["status"]["phase"] for pod in pods]

    job = cancel_run(
        lambda: KubernetesObjects(JOB, access=Access.from_kubeconfig(KUBECONFIG), namespace=namespace),
        a_job(image),
        moment,
        until=lambda: phases() == ["Running"],
    )
    assert isinstance(job.status, NotFound), "the adapter cancels a Job by its deletion"
    wait_until(lambda: not phases(), seconds=60, what="the pod of the Job is gone")
    assert not json.loads(kubectl("get", "jobs", "--namespace", namespace, "--output", "json"))["items"]


def test_run_waits_for_its_job_without_a_pod(namespace: str, image: str) -> None:
    job = a_job(image)
    # The program exits with 0 on SIGTERM, which this probe leads to.
    probe = {"tcpSocket": {"port": 1}, "initialDelaySeconds": 10, "periodSeconds": 1, "failureThreshold": 1}
    job["spec"]["template"]["spec"]["containers"][0]["livenessProbe"] = probe
    access = Access.from_kubeconfig(KUBECONFIG)
    run_without_pod(lambda: KubernetesObjects(JOB, access=access, namespace=namespace), job)
    [made] = json.loads(kubectl("get", "jobs", "--namespace", namespace, "--output", "json"))["items"]
    assert made["status"]["succeeded"] == 1
