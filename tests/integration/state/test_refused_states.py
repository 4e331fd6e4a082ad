"""A state whose ConfigMap is refused: shown, and created once the author adds the missing label."""

from collections.abc import Iterator

import pytest

from controlplane import ControlPlane, ControlPlaneError
from reattach.api.names import LABEL_TASKRUN
from reattach.cluster.paths import configmaps, taskruns
from stateapi import Servers, Task
from waiting import wait_until

POLICIES = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies"
BINDINGS = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings"
MESSAGE = "every ConfigMap must have the label team"


@pytest.fixture
def _policy(control_plane: ControlPlane, task: Task) -> Iterator[None]:
    """Require a label on each ConfigMap of the namespace, as policies of organisations do."""
    name = f"team-{task.namespace}"
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"]}
    selector = {"matchLabels": {"kubernetes.io/metadata.name": task.namespace}}
    check = {"expression": "has(object.metadata.labels) && 'team' in object.metadata.labels", "message": MESSAGE}
    policy = {"matchConstraints": {"namespaceSelector": selector, "resourceRules": [rule]}, "validations": [check]}
    binding = {"policyName": name, "validationActions": ["Deny"]}
    control_plane.call("POST", POLICIES, {"metadata": {"name": name}, "spec": policy})
    control_plane.call("POST", BINDINGS, {"metadata": {"name": name}, "spec": binding})

    def is_in_force() -> bool:
        try:
            control_plane.call("POST", configmaps(task.namespace), {"metadata": {"name": "probe"}}, dryRun="All")
        except ControlPlaneError as error:
            return MESSAGE in str(error)
        return False

    wait_until(is_in_force, seconds=60, what="the policy is in force")
    yield
    for path in (BINDINGS, POLICIES):
        control_plane.call("DELETE", f"{path}/{name}")


@pytest.mark.usefixtures("_policy")
def test_refused_state_is_shown_until_the_author_adds_the_label_that_a_policy_requires(
    control_plane: ControlPlane, servers: Servers, task: Task
) -> None:
    path, attempt = taskruns(task.namespace, task.name), task.attempt(servers.start(), opened=False)
    since = control_plane.audit_mark()
    for _ in range(3):
        assert attempt.open().status_code == 503
    shown = control_plane.call("GET", path)["status"]["state"]
    assert MESSAGE in shown["message"]
    assert "uid" not in shown
    writes = [event for event in control_plane.audit(since) if event["objectRef"].get("subresource") == "status"]
    assert len(writes) == 1
    control_plane.call("PATCH", path, {"spec": {"state": {"metadata": {"labels": {"team": "data"}}}}})
    assert attempt.open().status_code == 200
    state = control_plane.call("GET", path)["status"]["state"]
    assert state.keys() == {"configMap", "uid"}
    made = control_plane.call("GET", configmaps(task.namespace, state["configMap"]))
    assert made["metadata"]["labels"] == {"team": "data", LABEL_TASKRUN: task.name}
    assert attempt.set("a", 1).status_code == 200
