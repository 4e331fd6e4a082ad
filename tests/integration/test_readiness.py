"""Readiness of TaskRuns, as tools that wait for them compute it."""

import json
import secrets
from typing import Any

import pytest
import yaml

from controlplane import CRD, ControlPlane
from operator_process import Cluster
from reattach.cluster.paths import taskruns
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
