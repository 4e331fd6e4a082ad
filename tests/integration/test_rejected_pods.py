"""Rejected pods: their template is invalid, or the cluster does not admit them now.

The operator, the API server and its admission are real; the test plays the node.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from apicalls import call_of
from controlplane import ControlPlaneError
from operator_process import CONTAINER, Script, Stage, condition, fail, succeed
from reattach.cluster.paths import core
from waiting import wait_until

JSON = dict[str, Any]
RETRY = {"budgets": {"application": 1}, "backoff": {"initialSeconds": 1, "jitterPercent": 0}}
LIMITED = {"spec": {"containers": [{**CONTAINER, "resources": {"requests": {"memory": "64Mi"}}}]}}
"""A container that a default memory limit below 64Mi makes invalid."""


def fail_first(attempt: int) -> Script:
    return fail(7) if attempt == 1 else succeed


def calls(stage: Stage, mark: int, resource: str) -> list[JSON]:
    """Return the operator's creations of this resource in the namespace of the stage."""
    found = stage.control_plane.audit(mark, user=stage.operator.user, namespace=stage.namespace)
    return [event for event in found if call_of(event).startswith(f"create {resource}")]


def test_operator_limitrange_that_came_later_is_waited_for_and_ends_no_run(stage: Stage) -> None:
    defaults = {"type": "Container", "default": {"memory": "32Mi"}, "defaultRequest": {"memory": "16Mi"}}
    limits = core("limitranges", stage.namespace)
    stage.kubelet.is_paused = True
    stage.run("limited", fail_first, template=LIMITED, retry=RETRY)
    wait_until(lambda: stage.cluster.pods("limited"), seconds=30, what="the pod of attempt 1 is created")
    stage.control_plane.call("POST", limits, {"metadata": {"name": "low"}, "spec": {"limits": [defaults]}})
    mark = stage.control_plane.audit_mark()
    stage.kubelet.is_paused = False
    try:
        status = stage.cluster.wait_for_reason("limited", "PodRefused")
        message = condition(status, "Succeeded")["message"]
        assert "must be less than or equal to memory limit of 32Mi" in message
        wait_until(lambda: len(calls(stage, mark, "pods")) > 1, seconds=60, what="the pod is tried again")
        (check,) = calls(stage, mark, "podtemplates")
        assert "dryRun=All" in check["requestURI"]
        assert check["responseStatus"]["code"] == 201
    finally:
        stage.control_plane.call("DELETE", f"{limits}/low")
    status = stage.cluster.wait_for_outcome("limited", seconds=60)
    assert status["outcome"] == "Succeeded"
    assert [attempt["cause"] for attempt in status["attempts"]] == ["Application", "Succeeded"]
    assert stage.control_plane.call("GET", core("podtemplates", stage.namespace))["items"] == []


@pytest.fixture
def mutated(stage: Stage) -> Iterator[None]:
    """Have the API server change each pod of an operator so that it becomes invalid."""
    name, registration = f"mutated-{stage.namespace}", "/apis/admissionregistration.k8s.io/v1"
    change = "Object{spec: Object.spec{activeDeadlineSeconds: -1}}"
    policy = {
        "failurePolicy": "Fail",
        "reinvocationPolicy": "Never",
        "matchConstraints": {
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": stage.namespace}},
            "resourceRules": [
                {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}
            ],
        },
        "mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": change}}],
    }
    kinds = {"mutatingadmissionpolicies": policy, "mutatingadmissionpolicybindings": {"policyName": name}}
    for plural, spec in kinds.items():
        stage.control_plane.call("POST", f"{registration}/{plural}", {"metadata": {"name": name}, "spec": spec})
    yield
    for plural in kinds:
        stage.control_plane.call("DELETE", f"{registration}/{plural}/{name}")


def is_mutated(stage: Stage) -> bool:
    probe = {"metadata": {"name": "probe"}, "spec": {"containers": [CONTAINER]}}
    try:
        stage.control_plane.call("POST", core("pods", stage.namespace), probe, dryRun="All")
    except ControlPlaneError as error:
        return "activeDeadlineSeconds" in str(error)
    return False


@pytest.mark.usefixtures("mutated")
def test_operator_pod_that_a_mutation_makes_invalid_is_waited_for(stage: Stage) -> None:
    wait_until(lambda: is_mutated(stage), seconds=30, what="the API server changes pods")
    stage.run("mutated")
    status = stage.cluster.wait_for_reason("mutated", "PodRefused")
    assert "activeDeadlineSeconds: Invalid value: -1" in condition(status, "Succeeded")["message"]
    assert "outcome" not in status


def test_operator_creates_pods_from_templates_with_null_fields(stage: Stage) -> None:
    """The templates that `manifests/accepted.yaml` lists as those that a Job accepts."""
    cases = yaml.safe_load((Path(__file__).parent / "manifests/accepted.yaml").read_text())
    templates = [case["patch"]["spec"]["template"] for case in cases if "null fields of" in case["claim"]]
    templates += [{"metadata": None}, {"metadata": {"labels": {"team": None}, "annotations": {"note": None}}}]
    for number, given in enumerate(templates):
        template = {"spec": {"containers": [CONTAINER]}, **given}
        template["spec"].setdefault("containers", [CONTAINER])
        stage.run(f"nulls-{number}", template=template)
    assert len(templates) >= 6
    for number in range(len(templates)):
        status = stage.cluster.wait_for_outcome(f"nulls-{number}", seconds=60)
        assert status["outcome"] == "Succeeded", (templates[number], status)


@pytest.mark.parametrize(
    "name, container, message",
    [
        ("misspelt", {"comand": ["x"]}, 'unknown field "spec.template.spec.containers[0].comand"'),
        (
            "limit",
            {"resources": {"limit": {"memory": "1Gi"}}},
            'unknown field "spec.template.spec.containers[0].resources.limit"',
        ),
        (
            "variable",
            {"env": [{"name": "A", "value": "a"}, {"name": "B", "valu": "b"}]},
            'unknown field "spec.template.spec.containers[0].env[1].valu"',
        ),
        ("no-image", {"image": None}, "spec.template.spec.containers[0].image: Required value"),
        (
            "policy",
            {"imagePullPolicy": "Sometimes"},
            'spec.template.spec.containers[0].imagePullPolicy: Unsupported value: "Sometimes"',
        ),
        (
            "resize",
            {"resizePolicy": [{"resourceName": "memory", "restartPolicy": "RestartContainer"}]},
            "spec.template.spec.containers[0].resizePolicy: Invalid value",
        ),
        (
            "mount",
            {"volumeMounts": [{"name": "data", "mountPath": "/data"}]},
            'spec.template.spec.containers[0].volumeMounts[0].name: Not found: "data"',
        ),
        (
            "type",
            {"stdin": "yes"},
            "cannot unmarshal string into field spec.template.spec.containers.stdin of type bool",
        ),
    ],
)
def test_operator_invalid_template_ends_the_run_and_its_field_is_named(
    stage: Stage, name: str, container: JSON, message: str
) -> None:
    name = f"invalid-{name}"
    stage.run(name, template={"spec": {"containers": [{**CONTAINER, **container}]}})
    status = stage.cluster.wait_for_outcome(name)
    succeeded = condition(status, "Succeeded")
    assert (status["outcome"], succeeded["reason"]) == ("Failed", "InvalidTemplate")
    assert message in succeeded["message"]
    assert stage.cluster.pods(name) == []
