"""Requests that each account may and may not make under the chart's RBAC and policies.

docs/security.md has the same table.
"""

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import httpx
import pytest
import yaml

from admission import OPERATOR, RELEASE, SERVER, install_admission, pod
from controlplane import ControlPlaneError, RunningControlPlane, helm_template
from reattach.api.names import ANNOTATION_CA, ANNOTATION_SUMMARY, TOKEN_AUDIENCE, pod_name, state_name
from waiting import wait_until

Object = dict[str, Any]
Request: TypeAlias = tuple[str, str, Object | None]
"""Method, path and body."""

RBAC = "rbac.authorization.k8s.io"
TASK, EDIT, RESPONDER = "task", "edith", "rita"
KINDS = {"ServiceAccount", "Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding"}


@dataclass
class Scene:
    """A tenant with a run and with objects of its own, and the namespaces of others."""

    cluster: RunningControlPlane
    tenant: str
    other: str
    uid: str = ""

    def groups(self, account: str) -> tuple[str, ...]:
        """Return the groups of a service account; a user has none."""
        if not account.startswith("system:"):
            return ("system:authenticated",)
        return ("system:serviceaccounts", f"system:serviceaccounts:{account.split(':')[2]}", "system:authenticated")

    def call(self, account: str, request: Request, **query: str) -> Object:
        user = f"system:serviceaccount:{self.tenant}:default" if account == TASK else account
        return self.cluster.call(*request, user=user, groups=self.groups(user), **query)

    def core(self, path: str, namespace: str | None = None) -> str:
        return f"/api/v1/namespaces/{namespace or self.tenant}/{path}"

    def taskruns(self, path: str = "", namespace: str | None = None) -> str:
        return f"/apis/reattach.dev/v1alpha1/namespaces/{namespace or self.tenant}/taskruns{path}"

    @property
    def attempt_path(self) -> str:
        return self.core(f"pods/{pod_name('load', self.uid, 1)}")

    @property
    def state_path(self) -> str:
        return self.core(f"configmaps/{state_name('load', self.uid)}")

    @property
    def _owner(self) -> Object:
        return {
            "apiVersion": "reattach.dev/v1alpha1",
            "kind": "TaskRun",
            "name": "load",
            "uid": self.uid,
            "controller": True,
        }

    def attempt(self, number: int, **metadata: Any) -> Object:
        """Return a pod as the operator creates it."""
        return pod(
            **{
                "name": pod_name("load", self.uid, number),
                "labels": {"reattach.dev/taskrun": "load", "reattach.dev/attempt": str(number)},
                "annotations": {"reattach.dev/template-hash": "a", ANNOTATION_CA: "b"},
                "ownerReferences": [self._owner],
                "finalizers": ["reattach.dev/attempt"],
                **metadata,
            }
        )

    def state(self, **metadata: Any) -> Object:
        """Return a ConfigMap as the state API creates it."""
        ours = {
            "name": state_name("load", self.uid),
            "labels": {"reattach.dev/taskrun": "load"},
            "annotations": {ANNOTATION_SUMMARY: "{}"},
            "ownerReferences": [self._owner],
            "finalizers": ["reattach.dev/state"],
        }
        return {"metadata": {**ours, **metadata}, "data": {"a": "b"}}

    def new_image(self, path: str) -> Object:
        """Return a patch that replaces the image of a pod, and nothing else."""
        (container,) = self.cluster.call("GET", path)["spec"]["containers"]
        return {"spec": {"containers": [container | {"image": "registry.example/evil:1"}]}}


def a_taskrun(name: str) -> Object:
    spec = {"template": {"spec": {"containers": [{"name": "task", "image": "registry.example/task:1"}]}}}
    return {
        "apiVersion": "reattach.dev/v1alpha1",
        "kind": "TaskRun",
        "metadata": {"name": name, "labels": {"velero.io/restore-name": "monday"}},
        "spec": spec,
    }


@pytest.fixture(scope="module")
def scene(private_control_plane: RunningControlPlane) -> Scene:
    cluster = private_control_plane
    install_admission(cluster)
    for found in yaml.safe_load_all(helm_template()):
        if found and found["kind"] in KINDS:
            cluster.apply(yaml.safe_dump(found), namespace="reattach")
    made = Scene(cluster, cluster.create_namespace("tenant"), cluster.create_namespace("other"))
    for user, role in ((EDIT, "edit"), (RESPONDER, "view"), (RESPONDER, "reattach-reattach-responder")):
        cluster.call(
            "POST",
            f"/apis/{RBAC}/v1/namespaces/{made.tenant}/rolebindings",
            {
                "metadata": {"name": f"{user}-{role}"},
                "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": role},
                "subjects": [{"apiGroup": RBAC, "kind": "User", "name": user}],
            },
        )
    made.uid = cluster.call("POST", made.taskruns(), a_taskrun("load"))["metadata"]["uid"]
    for namespace in (made.tenant, made.other):
        cluster.call("POST", made.core("pods", namespace), pod("web"))
        cluster.call("POST", made.core("configmaps", namespace), {"metadata": {"name": "settings"}})
        cluster.call("POST", made.core("secrets", namespace), {"metadata": {"name": "password"}})
    cluster.call("POST", made.taskruns(namespace=made.other), a_taskrun("theirs"))

    def granted() -> bool:
        try:
            for account in (OPERATOR, SERVER, RELEASE, EDIT, RESPONDER):
                made.call(account, ("GET", made.taskruns("/load"), None))
        except ControlPlaneError as error:
            if not str(error).startswith("403"):
                raise
            return False
        return True

    wait_until(granted, seconds=30, what="the API server knows the rights of all accounts")
    made.call(OPERATOR, ("POST", made.core("pods"), made.attempt(1)))
    made.call(SERVER, ("POST", made.core("configmaps"), made.state()))
    return made


# -- allowed: each account works, so the refusals below have another reason -----------------------


ALLOWED: dict[str, list[Callable[[Scene], Request]]] = {
    OPERATOR: [
        lambda it: ("POST", it.core("pods"), it.attempt(2)),
        lambda it: ("PATCH", it.attempt_path, {"metadata": {"annotations": {ANNOTATION_CA: "c"}}}),
        lambda it: ("PATCH", it.state_path, {"data": {"a": "c"}}),
        lambda it: ("PATCH", it.taskruns("/load/status"), {"status": {"counts": {"attempts": 1}}}),
        lambda it: ("DELETE", it.attempt_path, None),
    ],
    SERVER: [
        lambda it: ("GET", it.attempt_path, None),
        lambda it: ("PUT", it.state_path, it.state() | {"data": {"a": "c"}}),
        lambda it: ("PATCH", it.taskruns("/load"), {"metadata": {"finalizers": ["reattach.dev/external-jobs"]}}),
    ],
    RELEASE: [
        lambda it: ("PATCH", it.attempt_path, {"metadata": {"finalizers": None}}),
        lambda it: ("PATCH", it.state_path, {"metadata": {"finalizers": None}}),
    ],
    EDIT: [
        lambda it: ("POST", it.taskruns(), a_taskrun("mine")),
        lambda it: (
            "PATCH",
            it.state_path,
            {"data": {"a": "c"}, "metadata": {"annotations": {ANNOTATION_SUMMARY: ""}}},
        ),
        lambda it: ("DELETE", it.attempt_path, None),
        lambda it: ("PATCH", it.taskruns("/load"), {"metadata": {"labels": {"velero.io/restore-name": None}}}),
    ],
    RESPONDER: [
        lambda it: ("GET", it.state_path, None),
        lambda it: ("PATCH", it.taskruns("/load"), {"spec": {"cancel": True}}),
        lambda it: (
            "PATCH",
            it.taskruns("/load"),
            {"spec": {"resolutions": [{"held": "StateLost", "action": "Fail"}]}},
        ),
    ],
}


@pytest.mark.parametrize(
    "account, request_of", [(account, one) for account, requests in ALLOWED.items() for one in requests]
)
def test_account_may_do_its_work(scene: Scene, account: str, request_of: Callable[[Scene], Request]) -> None:
    scene.call(account, request_of(scene), dryRun="All")


# -- forbidden -------------------------------------------------------------------------------------


def _of_every_workload(it: Scene) -> dict[str, Request]:
    """Return what no account of Reattach's own may do."""
    review = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    binding = {
        "metadata": {"name": "me"},
        "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "User", "name": "me", "apiGroup": RBAC}],
    }
    policies = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies"
    return {
        "run a pod of its own": ("POST", it.core("pods"), pod(spec={"hostNetwork": True})),
        "change the image of a pod": ("PATCH", it.core("pods/web"), it.new_image(it.core("pods/web"))),
        "change the image of an attempt": ("PATCH", it.attempt_path, it.new_image(it.attempt_path)),
        "mark a pod as an attempt": (
            "PATCH",
            it.core("pods/web"),
            {"metadata": {"labels": it.attempt(1)["metadata"]["labels"]}},
        ),
        "delete a pod": ("DELETE", it.core("pods/web"), None),
        "enter a container": ("POST", it.attempt_path + "/exec?command=sh&container=task&stdin=true", None),
        "add a container": ("PATCH", it.attempt_path + "/ephemeralcontainers", {"spec": {}}),
        "write the status of a pod": ("PATCH", it.attempt_path + "/status", {"status": {"phase": "Failed"}}),
        "evict a pod": ("POST", it.core("pods/web/eviction"), {"metadata": {"name": "web"}}),
        "read a log": ("GET", it.attempt_path + "/log", None),
        "get a token of a service account": ("POST", it.core("serviceaccounts/default/token"), review),
        "read a Secret": ("GET", it.core("secrets/password"), None),
        "read all Secrets": ("GET", "/api/v1/secrets", None),
        "write a ConfigMap": ("PATCH", it.core("configmaps/settings"), {"data": {"a": "b"}}),
        "create a ConfigMap": ("POST", it.core("configmaps"), {"metadata": {"name": "a"}}),
        "delete a ConfigMap": ("DELETE", it.core("configmaps/settings"), None),
        "delete a state": ("DELETE", it.state_path, None),
        "mark a ConfigMap as a state": (
            "PATCH",
            it.core("configmaps/settings"),
            {"metadata": it.state(name="settings")["metadata"]},
        ),
        "create a TaskRun": ("POST", it.taskruns(), a_taskrun("a")),
        "delete a TaskRun": ("DELETE", it.taskruns("/load"), None),
        "change a spec": ("PATCH", it.taskruns("/load"), {"spec": {"retry": {"budgets": {"application": 9}}}}),
        "cancel a run": ("PATCH", it.taskruns("/load"), {"spec": {"cancel": True}}),
        "run a restored TaskRun": (
            "PATCH",
            it.taskruns("/load"),
            {"metadata": {"labels": {"velero.io/restore-name": None}}},
        ),
        "delete a policy": ("DELETE", f"{policies}/reattach-reattach-pods", None),
        "give itself a role": ("POST", f"/apis/{RBAC}/v1/clusterrolebindings", binding),
    }


def _of_operator(it: Scene) -> dict[str, Request]:
    namespaces = ("kube-system", "kube-public", "kube-node-lease", "reattach")
    return {
        **_of_every_workload(it),
        **{f"run an attempt in {name}": ("POST", it.core("pods", name), it.attempt(2)) for name in namespaces},
        "run an attempt without its finalizer": ("POST", it.core("pods"), it.attempt(2, finalizers=[])),
        "create a state": ("POST", it.core("configmaps"), it.state(name="load-00000-state")),
    }


def _of_server(it: Scene) -> dict[str, Request]:
    return {
        **_of_every_workload(it),
        "run an attempt": ("POST", it.core("pods"), it.attempt(2)),
        "list the pods": ("GET", it.core("pods"), None),
        "list the ConfigMaps": ("GET", it.core("configmaps"), None),
        "create a ConfigMap of any name": ("POST", it.core("configmaps"), it.state(name="settings-2")),
        "set an outcome": ("PATCH", it.taskruns("/load/status"), {"status": {"outcome": "Succeeded"}}),
        "read its own key": ("GET", it.core("secrets/reattach-ca", "reattach"), None),
    }


def _of_release(it: Scene) -> dict[str, Request]:
    return {
        **_of_every_workload(it),
        "delete an attempt": ("DELETE", it.attempt_path, None),
        "write a state": ("PATCH", it.state_path, {"data": {"a": "c"}}),
        "set an outcome": ("PATCH", it.taskruns("/load/status"), {"status": {"outcome": "Succeeded"}}),
        "read the CA's key": ("GET", it.core("secrets/reattach-ca", "reattach"), None),
        "delete another Deployment": ("DELETE", "/apis/apps/v1/namespaces/reattach/deployments/other", None),
    }


def _of_task(it: Scene) -> dict[str, Request]:
    return {
        **_of_every_workload(it),
        "read its TaskRun": ("GET", it.taskruns("/load"), None),
        "read its pod": ("GET", it.attempt_path, None),
        "read its state": ("GET", it.state_path, None),
    }


def _of_edit(it: Scene) -> dict[str, Request]:
    volume = {
        "name": "t",
        "projected": {"sources": [{"serviceAccountToken": {"path": "t", "audience": TOKEN_AUDIENCE}}]},
    }
    return {
        "set an outcome": ("PATCH", it.taskruns("/load/status"), {"status": {"outcome": "Succeeded"}}),
        "forge an attempt": ("POST", it.core("pods"), it.attempt(2)),
        "mark a pod as an attempt": (
            "PATCH",
            it.core("pods/web"),
            {"metadata": {"labels": it.attempt(1)["metadata"]["labels"]}},
        ),
        "run a pod with a token for the state API": ("POST", it.core("pods"), pod(spec={"volumes": [volume]})),
        "forge a state": ("POST", it.core("configmaps"), it.state(name="load-00000-state")),
        "mark a ConfigMap as a state": (
            "PATCH",
            it.core("configmaps/settings"),
            {"metadata": {"labels": {"reattach.dev/taskrun": "load"}}},
        ),
        "give a state to another run": (
            "PATCH",
            it.state_path,
            {"metadata": {"labels": {"reattach.dev/taskrun": "mine"}}},
        ),
        "read a TaskRun of others": ("GET", it.taskruns("/theirs", it.other), None),
        "cancel a run of others": ("PATCH", it.taskruns("/theirs", it.other), {"spec": {"cancel": True}}),
        "write a ConfigMap of others": ("PATCH", it.core("configmaps/settings", it.other), {"data": {"a": "b"}}),
        "read the CA's key": ("GET", it.core("secrets/reattach-ca", "reattach"), None),
        "delete the operator": ("DELETE", "/apis/apps/v1/namespaces/reattach/deployments/reattach-operator", None),
    }


def _of_responder(it: Scene) -> dict[str, Request]:
    adopt = {"held": "SubmissionUnknown", "key": "a", "generation": 1, "action": "Adopt", "handle": "b"}
    fail = {"held": "StateLost", "action": "Fail"}
    run = {"metadata": {"labels": {"velero.io/restore-name": None}}}
    mine = it.taskruns("/load")
    return {
        "create a TaskRun": ("POST", it.taskruns(), a_taskrun("a")),
        "delete a TaskRun": ("DELETE", mine, None),
        "set an outcome": ("PATCH", f"{mine}/status", {"status": {"outcome": "Succeeded"}}),
        "raise a budget": ("PATCH", mine, {"spec": {"retry": {"budgets": {"application": 9}}}}),
        "raise a budget while cancelling": (
            "PATCH",
            mine,
            {"spec": {"cancel": True, "retry": {"budgets": {"application": 9}}}},
        ),
        "adopt a job": ("PATCH", mine, {"spec": {"resolutions": [adopt]}}),
        "start with an empty state": (
            "PATCH",
            mine,
            {"spec": {"resolutions": [fail, {**fail, "action": "StartEmpty"}]}},
        ),
        "run a restored TaskRun": ("PATCH", mine, run),
        "run a restored TaskRun with a resolution": ("PATCH", mine, {**run, "spec": {"resolutions": [fail]}}),
        "write a state": ("PATCH", it.state_path, {"data": {"a": "c"}}),
        "run a pod": ("POST", it.core("pods"), pod()),
        "delete an attempt": ("DELETE", it.attempt_path, None),
        "read a TaskRun of others": ("GET", it.taskruns("/theirs", it.other), None),
    }


FORBIDDEN: dict[str, Callable[[Scene], dict[str, Request]]] = {
    OPERATOR: _of_operator,
    SERVER: _of_server,
    RELEASE: _of_release,
    TASK: _of_task,
    EDIT: _of_edit,
    RESPONDER: _of_responder,
}


@pytest.mark.parametrize("account", FORBIDDEN)
def test_stolen_token_is_refused_everything_else(scene: Scene, account: str) -> None:
    accepted = {}
    for what, (method, path, body) in FORBIDDEN[account](scene).items():
        query = {} if method == "GET" or "/exec" in path else {"dryRun": "All"}
        try:
            accepted[what] = str(scene.call(account, (method, path, body), **query))
        except ControlPlaneError as error:
            if not str(error).startswith("403:"):
                accepted[what] = str(error)
    assert accepted == {}


def test_token_of_a_task_is_none_for_the_api_server(scene: Scene) -> None:
    """The token in an attempt's pod has an audience of its own."""
    attempt = scene.cluster.call("GET", scene.attempt_path)
    token = scene.cluster.token(scene.tenant, audiences=[TOKEN_AUDIENCE], pod=attempt)
    trust = ssl.create_default_context(cafile=scene.cluster.ca_file)
    headers = {"Authorization": f"Bearer {token}"}
    with httpx.Client(base_url=scene.cluster.url, verify=trust, headers=headers, trust_env=False) as client:
        for path in ("/version", scene.taskruns("/load"), scene.attempt_path, scene.state_path):
            assert client.get(path).status_code == 401, path
