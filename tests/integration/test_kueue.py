"""Runs whose pods wait in a queue of Kueue.

The API server, the operator, the state API and Kueue with its webhooks are real. The test plays
the node and the task. Only `make test-all` (REATTACH_ALL=1) builds Kueue.
"""

import base64
import contextlib
import os
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from controlplane import CACHE, ControlPlane, ControlPlaneError, RunningControlPlane, running
from operator_process import CONTAINER, Containers, Operators, Stage, kubelet_of, run_on, stage_of
from ports import free_port
from reattach.api.names import LABEL_ATTEMPT, LABEL_PURPOSE
from reattach.cluster.paths import taskruns
from stateapi import Servers
from taskscripts import Tasks, first_then
from waiting import wait_until

JSON = dict[str, Any]
SECONDS = 90
PROGRAM = CACHE / "bin/kueue"
MANIFESTS = CACHE / "kueue"
NAMESPACE = "kueue-system"
QUEUE = "kueue.x-k8s.io/queue-name"
WEBHOOKS = {f"{kind}{of}.kb.io" for kind in "mv" for of in ("pod", "workload", "clusterqueue", "resourceflavor")}
"""Webhooks of the kinds that exist here."""

pytestmark = pytest.mark.skipif(not os.environ.get("REATTACH_ALL"), reason="REATTACH_ALL=1 builds Kueue and runs it")


@pytest.fixture(scope="module")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningControlPlane]:
    """Yield an API server whose pods Kueue queues. Other tests must not share it."""
    with (
        running(Path(tmp_path_factory.mktemp("control-plane"))) as control_plane,
        kueue_beside(control_plane, tmp_path_factory.mktemp("kueue")),
    ):
        yield control_plane


@contextlib.contextmanager
def kueue_beside(control_plane: RunningControlPlane, directory: Path) -> Iterator[None]:
    """Run Kueue within the block. Its webhooks listen on a port of this machine."""
    port = free_port()
    control_plane.call("POST", "/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
    for path in sorted((MANIFESTS / "crd/bases").glob("*.yaml")):
        control_plane.apply(path.read_text())
    control_plane.kubectl("wait", "--for=condition=Established", "--timeout=60s", "crd", "--all")
    process = start_kueue(control_plane, directory, port)
    try:
        wait_until(
            lambda: has_started(control_plane, process, directory), seconds=SECONDS, what="Kueue has started", every=0.5
        )
        control_plane.apply(yaml.safe_dump_all(webhooks_at(port, control_plane.ca_file.read_text())))
        yield
    finally:
        process.kill()
        process.wait()


def start_kueue(control_plane: RunningControlPlane, directory: Path, port: int) -> subprocess.Popen[bytes]:
    """Start Kueue in a mount namespace of its own.

    It reads the certificate of its metrics below /etc, and has no option for another path.
    """
    certificate, key = control_plane.server_certificate("kueue")
    for folder in (directory / "webhook", directory / "etc/kueue/metrics/certs"):
        folder.mkdir(parents=True)
        (folder / "tls.crt").write_bytes(certificate)
        (folder / "tls.key").write_bytes(key)
    config = {
        "apiVersion": "config.kueue.x-k8s.io/v1beta2",
        "kind": "Configuration",
        "namespace": NAMESPACE,
        "health": {"healthProbeBindAddress": f"127.0.0.1:{free_port()}"},
        "metrics": {"bindAddress": f"127.0.0.1:{free_port()}"},
        "webhook": {"host": "127.0.0.1", "port": port, "certDir": str(directory / "webhook")},
        "leaderElection": {"leaderElect": False},
        "internalCertManagement": {"enable": False},
        "integrations": {"frameworks": ["pod"]},
        "featureGates": {"VisibilityOnDemand": False},
    }
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    program = shlex.join([str(PROGRAM), f"--config={directory / 'config.yaml'}", "--zap-log-level=1"])
    bind = shlex.join(["mount", "--bind", str(directory / "etc"), "/etc"])
    with (directory / "log").open("wb") as log:
        return subprocess.Popen(
            ["unshare", "--map-root-user", "--mount", "--kill-child", "sh", "-c", f"{bind} && exec {program}"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, "KUBECONFIG": str(control_plane.kubeconfig())},
        )


def has_started(control_plane: ControlPlane, process: subprocess.Popen[bytes], directory: Path) -> bool:
    """Return whether Kueue has reconciled a queue, which it does after its caches are filled."""
    if process.poll() is not None:
        raise ControlPlaneError(f"Kueue ended:\n{(directory / 'log').read_text()[-3000:]}")
    control_plane.apply(yaml.safe_dump_all(queue_objects(NAMESPACE)))
    queue = control_plane.call("GET", "/apis/kueue.x-k8s.io/v1beta2/clusterqueues/one-cpu")
    conditions = queue.get("status", {}).get("conditions", [])
    return any((each["type"], each["status"]) == ("Active", "True") for each in conditions)


def queue_objects(namespace: str) -> list[JSON]:
    """Return a queue of one CPU that pods of this namespace wait in."""
    version = "kueue.x-k8s.io/v1beta2"
    quota = {"name": "default", "resources": [{"name": "cpu", "nominalQuota": "1"}]}
    groups = [{"coveredResources": ["cpu"], "flavors": [quota]}]
    return [
        {"apiVersion": version, "kind": "ResourceFlavor", "metadata": {"name": "default"}},
        {
            "apiVersion": version,
            "kind": "ClusterQueue",
            "metadata": {"name": "one-cpu"},
            "spec": {"namespaceSelector": {}, "resourceGroups": groups},
        },
        {
            "apiVersion": version,
            "kind": "LocalQueue",
            "metadata": {"name": "queue", "namespace": namespace},
            "spec": {"clusterQueue": "one-cpu"},
        },
    ]


def webhooks_at(port: int, ca: str) -> Iterator[JSON]:
    """Yield Kueue's webhook configurations, at this port."""
    for found in yaml.safe_load_all((MANIFESTS / "webhook/manifests.yaml").read_text()):
        found["webhooks"] = [each for each in found["webhooks"] if each["name"] in WEBHOOKS]
        for each in found["webhooks"]:
            path = each["clientConfig"]["service"]["path"]
            each["clientConfig"] = {"url": f"https://127.0.0.1:{port}{path}", "caBundle": encoded(ca)}
        yield found


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.fixture
def queued(control_plane: RunningControlPlane, tmp_path: Path) -> Iterator[tuple[Stage, Tasks]]:
    """Yield a stage whose namespace has the queue."""
    operators = Operators(control_plane, tmp_path / "operators")
    servers = Servers(control_plane, tmp_path / "state-api")
    with kubelet_of(control_plane) as kubelet, stage_of(control_plane, operators, kubelet) as stage:
        control_plane.apply(yaml.safe_dump_all(queue_objects(stage.namespace)))
        yield stage, Tasks(control_plane, servers.start())
    servers.stop()
    operators.stop()


def template() -> JSON:
    container = {**CONTAINER, "resources": {"requests": {"cpu": "1"}}}
    return {"metadata": {"labels": {QUEUE: "queue"}}, "spec": {"containers": [container]}}


def workloads(stage: Stage) -> dict[str, bool]:
    """Return whether Kueue has admitted each pod."""
    found = stage.control_plane.call("GET", f"/apis/kueue.x-k8s.io/v1beta2/namespaces/{stage.namespace}/workloads")
    return {
        owner["name"]: any((c["type"], c["status"]) == ("Admitted", "True") for c in each["status"]["conditions"])
        for each in found["items"]
        for owner in each["metadata"].get("ownerReferences", [])
        if each.get("status", {}).get("conditions")
    }


def test_run_that_waits_in_a_full_queue_cancels_its_job_all_the_same(queued: tuple[Stage, Tasks]) -> None:
    stage, tasks = queued

    def pod_of(name: str, attempt: int) -> str:
        """Return the name of an attempt's pod, as soon as it exists."""
        about = wait_until(
            lambda: next(
                (
                    pod["metadata"]
                    for pod in stage.cluster.pods(name)
                    if pod["metadata"]["labels"][LABEL_ATTEMPT] == str(attempt)
                ),
                None,
            ),
            seconds=SECONDS,
            what=f"attempt {attempt} of {name} has a pod",
        )
        return str(about["name"])

    def evicted_when_another_waits(containers: Containers) -> None:
        other = pod_of("other", 1)
        wait_until(lambda: other in workloads(stage), seconds=SECONDS, what="another pod waits")
        containers.evict()

    submit = tasks.submit_registered_and(evicted_when_another_waits)
    stage.run("loses", first_then(submit, tasks.clean_up), template=template())
    first = pod_of("loses", 1)
    wait_until(lambda: workloads(stage).get(first), seconds=SECONDS, what="attempt 1 has the queue")
    stage.run("other", lambda _: run_on, template=template())
    other = pod_of("other", 1)
    wait_until(lambda: workloads(stage).get(other), seconds=SECONDS, what="the other run has the queue")
    name = pod_of("loses", 2)
    wait_until(lambda: workloads(stage).get(name) is False, seconds=SECONDS, what="attempt 2 waits in the queue")
    stage.cluster.wait_for_reason("loses", "WaitingForGates", seconds=SECONDS)

    stage.control_plane.call("PATCH", taskruns(stage.namespace, "loses"), {"spec": {"cancel": True}})
    status = stage.cluster.wait_for_outcome("loses", seconds=SECONDS)
    assert status["outcome"] == "Cancelled"
    assert [(job["handle"], job["state"]) for job in status["externalJobs"]] == [("job-1", "Cancelled")]
    assert status["attempts"][-1]["purpose"] == "Cleanup"
    assert status["attempts"][-1]["cause"] == "Succeeded"
    cleanup = next(
        pod for pod in stage.cluster.pods("loses") if pod["metadata"]["labels"].get(LABEL_PURPOSE) == "Cleanup"
    )
    assert not any(key.startswith("kueue.x-k8s.io/") for key in cleanup["metadata"]["labels"])
    assert workloads(stage)[other], "the other run has kept the queue"
