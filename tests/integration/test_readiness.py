"""Readiness of TaskRuns, as tools that wait for them compute it."""

import contextlib
import copy
import json
import re
import secrets
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from controlplane import CACHE, CRD, HELM, REPOSITORY, ControlPlane
from operator_process import (
    Cluster,
    Containers,
    Operators,
    Stage,
    condition,
    fail,
    kubelet_of,
    run_on,
    stage_of,
)
from reattach.cluster.paths import taskruns
from stateapi import Servers
from taskscripts import Tasks, stay, wait_in
from waiting import wait_until

JSON = dict[str, Any]
DEFAULT: list[JSON] = yaml.safe_load(CRD.read_text())["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"][
    "status"
]["properties"]["conditions"]["default"]
SUCCEEDED = {
    "type": "Succeeded",
    "status": "True",
    "reason": "Succeeded",
    "message": "The task completed.",
    "lastTransitionTime": "2026-01-01T00:00:02Z",
}


# -- the default of the conditions -----------------------------------------------------------------


@pytest.fixture
def cluster(control_plane: ControlPlane, namespace: str) -> Cluster:
    """Return a namespace that no operator serves."""
    return Cluster(control_plane, namespace)


def listed(cluster: Cluster, **query: str) -> dict[str, JSON]:
    found = cluster.control_plane.call("GET", taskruns(cluster.namespace), **query)["items"]
    return {one["metadata"]["name"]: one.get("status", {}) for one in found}


def write_status(cluster: Cluster, name: str, status: JSON) -> JSON:
    path = taskruns(cluster.namespace, name, "status")
    written: JSON = cluster.control_plane.call("PATCH", path, {"status": status})["status"]
    return written


def test_default_is_in_every_first_read(cluster: Cluster) -> None:
    created = cluster.create("load")
    watched = cluster.control_plane.client().get(
        taskruns(cluster.namespace), params={"watch": 1, "timeoutSeconds": 1, "resourceVersion": "0"}
    )
    [event] = [json.loads(line) for line in watched.text.splitlines()]
    statuses = [created["status"], cluster.status("load"), listed(cluster)["load"], event["object"]["status"]]
    assert statuses == [{"conditions": DEFAULT}] * 4


def test_default_leaves_the_field_selector_as_it_is(cluster: Cluster) -> None:
    for name in ("new", "ended"):
        cluster.create(name)
    write_status(cluster, "ended", {"outcome": "Succeeded", "conditions": [SUCCEEDED]})
    assert set(listed(cluster, fieldSelector="status.outcome=Succeeded")) == {"ended"}
    assert set(listed(cluster, fieldSelector="status.outcome=")) == {"new"}


def test_default_is_replaced_by_the_first_conditions(cluster: Cluster) -> None:
    cluster.create("load")
    assert write_status(cluster, "load", {"conditions": [SUCCEEDED]})["conditions"] == [SUCCEEDED]
    assert cluster.status("load") == {"conditions": [SUCCEEDED]}


def test_default_stays_when_the_state_api_writes_first(cluster: Cluster) -> None:
    cluster.create("load")
    reference = {"state": {"configMap": "load-state", "uid": "u"}}
    write_status(cluster, "load", reference)
    assert cluster.status("load") == {"conditions": DEFAULT, **reference}


def test_default_of_objects_from_before_the_upgrade_fills_only_absent_conditions(
    control_plane: ControlPlane, namespace: str
) -> None:
    """The schema under another group, first as earlier versions had it, then as it is now."""
    group = f"upgrade-{secrets.token_hex(4)}.example.com"
    crd = yaml.safe_load(CRD.read_text())
    crd["metadata"]["name"] = f"taskruns.{group}"
    crd["spec"]["group"] = group
    del crd["spec"]["names"]["shortNames"], crd["spec"]["names"]["categories"]
    status = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]
    del status["default"]
    default = status["properties"]["conditions"].pop("default")
    definition = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/taskruns.{group}"
    control_plane.apply(yaml.safe_dump(crd))
    control_plane.kubectl("wait", "--for=condition=Established", f"crd/taskruns.{group}")
    path = f"/apis/{group}/v1alpha1/namespaces/{namespace}/taskruns"
    statuses: dict[str, JSON] = {
        "new": {},
        "opened": {"state": {"configMap": "a", "uid": "u"}},
        "running": {"observedGeneration": 1, "conditions": [{**SUCCEEDED, "status": "Unknown", "reason": "Running"}]},
        "ended": {"outcome": "Succeeded", "conditions": [SUCCEEDED]},
    }
    try:
        for name, stored in statuses.items():
            body = {
                "apiVersion": f"{group}/v1alpha1",
                "kind": "TaskRun",
                "metadata": {"name": name},
                "spec": {"template": {"spec": {"containers": [{"name": "task", "image": "task:1"}]}}},
            }
            assert "status" not in control_plane.call("POST", path, body), "the default is gone"
            control_plane.call("PATCH", f"{path}/{name}/status", {"status": stored})
        status["default"] = {}
        status["properties"]["conditions"]["default"] = default
        control_plane.call("PATCH", definition, {"spec": crd["spec"]})

        def read() -> dict[str, JSON]:
            return {name: control_plane.call("GET", f"{path}/{name}").get("status", {}) for name in statuses}

        wait_until(lambda: "conditions" in read()["new"], seconds=30, what="the new schema is in force")
        with_default = {"conditions": DEFAULT}
        assert read() == {
            **statuses,
            "new": with_default,
            "opened": {**statuses["opened"], **with_default},
        }
    finally:
        control_plane.call("DELETE", definition)


# -- every version of TaskRuns, as kstatus and the health check of Argo CD read it -----------------

READINESS = CACHE / "bin/readiness"
SECONDS = 60
IN_PROGRESS, DONE, BAD = ("InProgress", "Progressing"), ("Current", "Healthy"), ("Failed", "Degraded")
"""Results of kstatus and of Argo CD."""


@dataclass(frozen=True)
class Version:
    """One version of a TaskRun, as the watch sent it, and what the tools compute from it."""

    taskrun: JSON
    kstatus: str
    kstatus_message: str
    health: str
    health_message: str

    @property
    def status(self) -> JSON:
        found: JSON = self.taskrun.get("status", {})
        return found

    @property
    def reason(self) -> str:
        return str(condition(self.status, "Succeeded").get("reason", ""))

    @property
    def results(self) -> tuple[str, str]:
        return self.kstatus, self.health

    @property
    def expected(self) -> tuple[str, str]:
        if outcome := self.status.get("outcome"):
            return DONE if outcome == "Succeeded" else BAD
        return BAD if condition(self.status, "Held").get("status") == "True" else IN_PROGRESS


def computed(found: list[JSON], directory: Path) -> list[Version]:
    """Run kstatus and the health check of docs/gitops.md over TaskRuns."""
    assert READINESS.exists(), f"{READINESS} is missing. Build it: make control-plane"
    page = (REPOSITORY / "docs/gitops.md").read_text()
    [manifest] = [block for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL) if "argocd-cm" in block]
    script = directory / "health.lua"
    script.write_text(yaml.safe_load(manifest)["data"]["resource.customizations.health.reattach.dev_TaskRun"])
    lines = "".join(json.dumps(one) + "\n" for one in found)
    process = subprocess.run([READINESS, script], input=lines, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    results = [json.loads(line) for line in process.stdout.splitlines()]
    return [
        Version(one, each["kstatus"], each["kstatusMessage"], each["health"], each["healthMessage"])
        for one, each in zip(found, results, strict=True)
    ]


@pytest.fixture(scope="module")
def stage(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    operators = Operators(control_plane, tmp_path_factory.mktemp("operators"))
    with kubelet_of(control_plane) as kubelet, stage_of(control_plane, operators, kubelet) as stage:
        yield stage
    operators.stop()


@pytest.fixture(scope="module")
def versions(stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Version]]:
    """Run one TaskRun of each kind, and return every version of each, by name."""
    control_plane, cluster = stage.control_plane, stage.cluster
    servers = Servers(control_plane, tmp_path_factory.mktemp("state-api"))
    tasks = Tasks(control_plane, servers.start())
    since = control_plane.call("GET", taskruns(stage.namespace))["metadata"]["resourceVersion"]

    def without_image(containers: Containers) -> None:
        containers.wait(reason="ImagePullBackOff", message="no such image")

    def run_until_shown(containers: Containers) -> None:
        containers.run()
        cluster.wait_for_reason("succeeded", "Running")
        containers.end(0)

    stage.run("elsewhere", managedBy="example.com/other")
    stage.run("pending", lambda _: without_image)
    stage.run("backing-off", lambda _: fail(), retry={"budgets": {"application": 1}})
    stage.run("held", lambda _: tasks.ask)
    stage.run("succeeded", lambda _: run_until_shown)
    stage.run("quick")
    stage.run("failed", lambda _: fail())
    stage.run("cancelled", lambda _: run_on)
    stage.run("orphaned", lambda _: tasks.submit_and(stay))
    cluster.wait_for_reason("pending", "Pending", seconds=SECONDS)
    cluster.wait_for_reason("backing-off", "BackingOff", seconds=SECONDS)
    cluster.wait_for_reason("held", "SubmissionUnknown", seconds=SECONDS)
    for name in ("cancelled", "orphaned"):
        cluster.wait_for_reason(name, "Running", seconds=SECONDS)
        control_plane.call("PATCH", taskruns(stage.namespace, name), {"spec": {"cancel": True}})
    for name in ("succeeded", "quick", "failed", "cancelled", "orphaned"):
        cluster.wait_for_outcome(name, seconds=SECONDS)
    servers.stop()
    watched = control_plane.client().get(
        taskruns(stage.namespace), params={"watch": 1, "timeoutSeconds": 2, "resourceVersion": since}
    )
    found = [json.loads(line)["object"] for line in watched.text.splitlines()]
    by_name: dict[str, list[Version]] = {}
    for version in computed(found, tmp_path_factory.mktemp("readiness")):
        by_name.setdefault(version.taskrun["metadata"]["name"], []).append(version)
    return by_name


def test_readiness_of_every_version_fits_the_run(versions: dict[str, list[Version]]) -> None:
    every = [version for each in versions.values() for version in each]
    wrong = [f"{one.results}, not {one.expected}: {one.taskrun}" for one in every if one.results != one.expected]
    assert not wrong, "\n".join(wrong)
    ends = {"Succeeded", "ApplicationFailed", "Cancelled"}
    assert {one.reason for one in every} >= {"", "Pending", "Running", "BackingOff", "SubmissionUnknown", *ends}


@pytest.mark.parametrize(
    "name, results, reason",
    [
        ("elsewhere", IN_PROGRESS, ""),
        ("pending", IN_PROGRESS, "Pending"),
        ("backing-off", IN_PROGRESS, "BackingOff"),
        ("held", BAD, "SubmissionUnknown"),
        ("succeeded", DONE, "Succeeded"),
        ("quick", DONE, "Succeeded"),
        ("failed", BAD, "ApplicationFailed"),
        ("cancelled", BAD, "Cancelled"),
        ("orphaned", BAD, "Cancelled"),
    ],
)
def test_readiness_at_last(
    versions: dict[str, list[Version]], name: str, results: tuple[str, str], reason: str
) -> None:
    first, last = versions[name][0], versions[name][-1]
    assert first.results == IN_PROGRESS
    assert first.kstatus_message == first.health_message == "The operator has not written a status yet."
    assert (last.results, last.reason) == (results, reason)
    if message := condition(last.status, "Succeeded").get("message"):
        assert last.health_message == f"{reason}: {message}"
        assert last.kstatus_message == (message if results != DONE else "Resource is current")


def test_readiness_with_an_unobserved_generation_is_in_progress(
    versions: dict[str, list[Version]], tmp_path: Path
) -> None:
    """A resolution that the operator has not read yet ends the failure that kstatus reports."""
    resolved = copy.deepcopy(versions["held"][-1].taskrun)
    resolved["metadata"]["generation"] += 1
    [version] = computed([resolved], tmp_path)
    assert (version.kstatus, versions["held"][-1].kstatus) == ("InProgress", "Failed")


def test_readiness_while_being_deleted_is_terminating(versions: dict[str, list[Version]], tmp_path: Path) -> None:
    deleted = copy.deepcopy(versions["held"][-1].taskrun)
    deleted["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    [version] = computed([deleted], tmp_path)
    assert version.kstatus == "Terminating"


def test_readiness_suspended_is_in_progress(versions: dict[str, list[Version]], tmp_path: Path) -> None:
    suspended = copy.deepcopy(versions["backing-off"][-1].taskrun)
    suspended["status"]["conditions"].append({**SUCCEEDED, "type": "Suspended", "reason": "Suspended"})
    [version] = computed([suspended], tmp_path)
    assert version.results == ("InProgress", "Suspended")


# -- helm install --wait ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Release:
    """A chart with one TaskRun, and the namespace in which it is installed."""

    stage: Stage
    chart: Path

    @contextlib.contextmanager
    def install(self, name: str, *flags: str) -> Iterator[subprocess.Popen[str]]:
        """Install the chart inside the `with`. The release and the TaskRun have the same name."""
        where = ["--namespace", self.stage.namespace, "--kubeconfig", str(self.stage.control_plane.kubeconfig())]
        with subprocess.Popen(
            [str(HELM), "install", name, str(self.chart), *where, "--timeout", f"{SECONDS}s", *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as helm:
            try:
                yield helm
            finally:
                helm.kill()


@pytest.fixture
def release(stage: Stage, tmp_path: Path) -> Release:
    chart = tmp_path / "chart"
    (chart / "templates").mkdir(parents=True)
    (chart / "Chart.yaml").write_text("{apiVersion: v2, name: migration, version: 0.1.0}\n")
    (chart / "templates/taskrun.yaml").write_text(
        """
apiVersion: reattach.dev/v1alpha1
kind: TaskRun
metadata: {name: "{{ .Release.Name }}"}
spec: {template: {spec: {containers: [{name: task, image: "task:1"}]}}}
"""
    )
    return Release(stage, chart)


@pytest.mark.parametrize("exit_code, outcome", [(0, "Succeeded"), (1, "Failed")])
def test_helm_wait_returns_after_the_end_with_its_result(
    stage: Stage, release: Release, exit_code: int, outcome: str
) -> None:
    name = f"helm-{outcome.lower()}"
    may_end = threading.Event()

    def script(containers: Containers) -> None:
        containers.run()
        wait_in(may_end)(containers)
        containers.end(exit_code)

    stage.play(name, lambda _: script)
    with release.install(name, "--wait") as helm:
        wait_until(lambda: stage.cluster.status_if_there(name), seconds=SECONDS, what="helm has created the TaskRun")
        stage.cluster.wait_for_reason(name, "Running", seconds=SECONDS)
        assert helm.poll() is None, "helm did not wait for the end of the run"
        may_end.set()
        output, _ = helm.communicate(timeout=SECONDS)
    status = stage.cluster.status(name)
    assert status["outcome"] == outcome
    assert (helm.returncode == 0) == (outcome == "Succeeded"), output
    message = condition(status, "Succeeded")["message"]
    refusal = f"resource TaskRun/{stage.namespace}/{name} not ready. status: Failed, message: {message}"
    assert (refusal in output) == (outcome == "Failed"), output
    assert "deadline exceeded" not in output


def test_helm_wait_legacy_does_not_wait(stage: Stage, release: Release) -> None:
    stage.play("helm-legacy", lambda _: run_on)
    with release.install("helm-legacy", "--wait=legacy") as helm:
        output, _ = helm.communicate(timeout=SECONDS)
    assert helm.returncode == 0, output
    assert "outcome" not in stage.cluster.status("helm-legacy")
