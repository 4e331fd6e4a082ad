"""Install, upgrade, rollback and uninstall by the real helm, with tasks running all the while."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from controlplane import CHART, HELM
from realcluster import IMAGE, RELEASE_NAMESPACE, Cluster, ClusterError
from waiting import wait_until

OURS = "reattach.dev/"
# Whatever a release consists of, but for the CRD.
KINDS = (
    "clusterroles,clusterrolebindings,flowschemas,validatingadmissionpolicies,validatingadmissionpolicybindings,"
    "roles,rolebindings,serviceaccounts,secrets,leases,services,deployments,replicasets,jobs,pods,poddisruptionbudgets"
)

# Counts in its state until its annotation says "done"; the pod sees it through a volume.
WAITING = """
import pathlib, time, reattach

def main(task):
    ticks = task.state.get("ticks", 0)
    while pathlib.Path("/order/go").read_text() != "end":
        ticks += 1
        task.state.set("ticks", ticks)
        time.sleep(0.5)
    return {"attempt": task.attempt, "ticks": ticks}

reattach.run(main)
"""


def waiting_taskrun(name: str) -> str:
    """A TaskRun that runs until the annotation `go` of its pod says `end`."""
    container = {
        "name": "task",
        "image": IMAGE,
        "command": ["python", "-u", "-c", WAITING],
        "volumeMounts": [{"name": "order", "mountPath": "/order"}],
    }
    order = {"path": "go", "fieldRef": {"fieldPath": "metadata.annotations['go']"}}
    spec = {
        "terminationGracePeriodSeconds": 1,
        "containers": [container],
        "volumes": [{"name": "order", "downwardAPI": {"items": [order]}}],
    }
    template = {"metadata": {"annotations": {"go": "on"}}, "spec": spec}
    body = {"apiVersion": "reattach.dev/v1alpha1", "kind": "TaskRun", "metadata": {"name": name}}
    return json.dumps({**body, "spec": {"template": template}})


class Release:
    """Reattach in the cluster, as helm sees it."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    def helm(self, command: str, *arguments: str, seconds: float = 300) -> str:
        """What helm prints; `ClusterError` if it fails."""
        place = ["--namespace", RELEASE_NAMESPACE, "--kubeconfig", str(self.cluster.kind.kubeconfig_path)]
        process = subprocess.run(
            [str(HELM), command, *arguments, *place],
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds,
            # helm's own folders are none of the test's business.
            env={name: value for name, value in os.environ.items() if not name.startswith("HELM_")},
        )
        if process.returncode:
            raise ClusterError(f"helm {command}: {process.stderr.strip()}")
        return process.stdout

    def install(self, chart: Path, **values: Any) -> None:
        """Install or upgrade, and wait until everything is ready."""
        name, _, tag = IMAGE.rpartition(":")
        flags = [f"--set={key}={value}" for key, value in values.items()]
        flags += [f"--set=image.repository={name},image.tag={tag}", "--create-namespace", "--hide-notes"]
        self.helm("upgrade", "reattach", str(chart), "--install", "--wait", "--timeout=3m", *flags)

    def uninstall(self) -> None:
        """If there is something to uninstall."""
        if "reattach" in self.helm("list", "--short").split():
            self.helm("uninstall", "reattach", "--wait", "--timeout=4m")

    def revision(self) -> int:
        found: list[dict[str, Any]] = json.loads(self.helm("list", "--output=json"))
        return int(found[0]["revision"])

    def columns(self) -> list[str]:
        """The CRD's printer columns."""
        crd = json.loads(self.cluster.kubectl("get", "crd", "taskruns.reattach.dev", "--output=json"))
        return [column["name"] for column in crd["spec"]["versions"][0]["additionalPrinterColumns"]]

    def replicas(self, deployment: str) -> int:
        found = self.cluster.get("deployment", deployment, RELEASE_NAMESPACE) or {}
        return int(found["status"].get("readyReplicas", 0))

    def leftovers(self) -> set[str]:
        """What there is of the release, cluster-wide and in its namespace."""
        text = self.cluster.kubectl(
            "get", KINDS, "--selector=app.kubernetes.io/part-of=reattach", "--output=name", namespace=RELEASE_NAMESPACE
        )
        made_by_the_operator = self.cluster.kubectl(
            "get", "leases,secrets", "--output=name", namespace=RELEASE_NAMESPACE
        )
        return set(text.split()) | {name for name in made_by_the_operator.split() if "reattach" in name}


@pytest.fixture(scope="module")
def installed(cluster: Cluster) -> Iterator[Release]:
    """No release at first; in the end the one that other tests use."""
    release = Release(cluster)
    release.uninstall()
    yield release
    cluster.install()


@pytest.fixture(scope="module")
def older_chart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chart as an earlier version might have been: its CRD knows one printer column less."""
    chart = tmp_path_factory.mktemp("older") / "reattach"
    shutil.copytree(CHART, chart)
    crd = yaml.safe_load((chart / "files/taskruns.yaml").read_text())
    columns = crd["spec"]["versions"][0]["additionalPrinterColumns"]
    crd["spec"]["versions"][0]["additionalPrinterColumns"] = [each for each in columns if each["name"] != "Result"]
    (chart / "files/taskruns.yaml").write_text("# older\n" + yaml.safe_dump(crd, sort_keys=False))
    return chart


@pytest.fixture(scope="module")
def work(cluster: Cluster) -> Iterator[str]:
    """A namespace for TaskRuns, which lives as long as this module's story."""
    name = cluster.create_namespace("chart")
    yield name
    cluster.delete_namespace(name)


def ticks(cluster: Cluster, namespace: str, taskrun: str) -> int:
    """How often the task has written its state so far."""
    states = cluster.items("configmaps", namespace, f"reattach.dev/taskrun={taskrun}")
    records = [json.loads(state["data"].get("key.ticks", "{}")) for state in states]
    return sum(int(record.get("value", 0)) for record in records)


def goes_on(cluster: Cluster, namespace: str, taskrun: str) -> int:
    """Wait until the task has written its state since now."""
    before = ticks(cluster, namespace, taskrun)
    return wait_until(
        lambda: count if (count := ticks(cluster, namespace, taskrun)) > before else 0,
        # Two minutes until the kubelet has brought a new CA into the pod, at most.
        seconds=180,
        what=f"{taskrun} writes its state",
        every=0.5,
    )


def order_end(cluster: Cluster, namespace: str, taskrun: str) -> None:
    (pod,) = cluster.pods_of(taskrun, namespace)
    cluster.kubectl("annotate", "pod", pod["metadata"]["name"], "go=end", "--overwrite", namespace=namespace)


def finalizers(cluster: Cluster, namespace: str) -> list[str]:
    """Our finalizers in the namespace."""
    return [
        f"{found['kind']} {found['metadata']['name']}: {finalizer}"
        for found in cluster.items("taskruns,pods,configmaps", namespace)
        for finalizer in found["metadata"].get("finalizers", [])
        if finalizer.startswith(OURS)
    ]


def test_one_life_of_a_release_does_not_disturb_the_tasks(
    installed: Release, older_chart: Path, cluster: Cluster, work: str
) -> None:
    """One story, since each step starts from what the one before left."""
    # Install an older version; a task starts.
    installed.install(older_chart)
    assert "Result" not in installed.columns()
    cluster.apply(waiting_taskrun("nightly"), work)
    goes_on(cluster, work, "nightly")
    (pod,) = cluster.pods_of("nightly", work)
    first = installed.revision()

    # Upgrade, with other values. The CRD follows, the task goes on in its pod, a new one runs from start to end.
    installed.install(CHART, **{"operator.replicas": 2, "logLevel": "debug"})
    assert "Result" in installed.columns()
    assert installed.replicas("reattach-operator") == 2
    goes_on(cluster, work, "nightly")
    cluster.apply(waiting_taskrun("second"), work)
    goes_on(cluster, work, "second")
    order_end(cluster, work, "second")
    assert cluster.finished("second", work)["status"]["outcome"] == "Succeeded"

    # Roll back. The CRD follows again.
    installed.helm("rollback", "reattach", str(first), "--wait", "--timeout=3m")
    assert "Result" not in installed.columns()
    assert installed.replicas("reattach-operator") == 1
    goes_on(cluster, work, "nightly")

    # Uninstall, with one task unfinished, and one pod that somebody has deleted meanwhile.
    cluster.apply(waiting_taskrun("deleted"), work)
    goes_on(cluster, work, "deleted")
    assert len(finalizers(cluster, work)) >= 4  # pod and state of each
    cluster.kubectl("delete", "taskrun", "deleted", "--wait=false", namespace=work)
    installed.uninstall()
    assert finalizers(cluster, work) == []
    assert installed.leftovers() == set()
    wait_until(lambda: not cluster.pods_of("deleted", work), seconds=30, what="the deleted pod is gone", every=0.5)
    assert installed.columns(), "the CRD is kept"
    assert cluster.get("taskrun", "nightly", work), "so are the TaskRuns"
    (still,) = cluster.pods_of("nightly", work)
    assert still["metadata"]["uid"] == pod["metadata"]["uid"]
    assert still["status"]["phase"] == "Running"

    # Install anew: the unfinished task goes on in the same pod, through a state API with another CA, and ends.
    installed.install(CHART)
    goes_on(cluster, work, "nightly")
    order_end(cluster, work, "nightly")
    status = cluster.finished("nightly", work)["status"]
    assert status["outcome"] == "Succeeded"
    assert json.loads(status["result"])["attempt"] == 1


def test_an_uninstall_that_fails_can_be_taken_back_by_a_rollback(installed: Release, cluster: Cluster) -> None:
    """A pod of the operator doesn't end, as on a lost node."""
    installed.install(CHART, **{"uninstall.timeoutSeconds": 30})
    pods = cluster.items("pods", RELEASE_NAMESPACE, "app.kubernetes.io/component=operator")
    name = pods[0]["metadata"]["name"]
    cluster.kubectl(
        "patch",
        "pod",
        name,
        "--patch",
        '{"metadata":{"finalizers":["example.com/stuck"]}}',
        namespace=RELEASE_NAMESPACE,
    )
    try:
        with pytest.raises(ClusterError, match="reattach-release"):
            installed.uninstall()
        log = cluster.kubectl("logs", "job/reattach-release", namespace=RELEASE_NAMESPACE)
        assert f"pod {name}" in log
        assert cluster.get("service", "reattach-server", RELEASE_NAMESPACE), "nothing else was removed"
    finally:
        cluster.kubectl(
            "patch", "pod", name, "--patch", '{"metadata":{"finalizers":null}}', namespace=RELEASE_NAMESPACE
        )
    installed.helm("rollback", "reattach", str(installed.revision()), "--wait", "--timeout=3m")
    assert installed.replicas("reattach-operator") == 1
    assert installed.replicas("reattach-server") == 2


def test_the_lease_is_renewed_past_the_queue_of_our_own_writes(installed: Release, cluster: Cluster) -> None:
    """Which FlowSchema took a request is in the header of its answer."""
    installed.install(CHART)
    who = f"--as=system:serviceaccount:{RELEASE_NAMESPACE}:reattach-operator"

    def schema_of(*request: str) -> str:
        process = subprocess.run(
            [str(cluster.kind.kubectl_path), "--kubeconfig", str(cluster.kind.kubeconfig_path), *request, who, "-v=8"],
            capture_output=True,
            text=True,
            check=True,
        )
        lines = [line for line in process.stderr.splitlines() if "x-kubernetes-pf-flowschema-uid" in line.lower()]
        return lines[-1].split()[-1]

    schema = json.loads(cluster.kubectl("get", "flowschema", "reattach-reattach-lease", "--output=json"))
    lease = ("get", "lease", "reattach-operator", "--namespace", RELEASE_NAMESPACE)
    assert schema_of(*lease) == schema["metadata"]["uid"]
    assert schema_of("get", "pods", "--all-namespaces") != schema["metadata"]["uid"]
