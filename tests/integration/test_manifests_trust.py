"""Who may do what: the chart's admission policies against the real API server, with the rights that people and pods have."""

import copy
import secrets
import ssl
from collections.abc import Callable
from typing import Any, ClassVar

import httpx
import pytest
import yaml

from admission import OPERATOR, SERVER, install_admission, pod
from controlplane import CRD, ControlPlaneError, RunningControlPlane
from reattach.adapters.kubernetes.objects import ANNOTATION_JOB, ANNOTATION_TASKRUN, LABEL_TOKEN
from reattach.api.names import orphans_name, pod_name, state_name
from waiting import wait_until

Object = dict[str, Any]
ADMIN = ("system:masters",)
TASKRUNS = "/apis/reattach.dev/v1alpha1/namespaces/default/taskruns"
PODS = "/api/v1/namespaces/default/pods"
CONFIGMAPS = "/api/v1/namespaces/default/configmaps"


def a_taskrun(name: str) -> Object:
    container = {"name": "task", "image": "registry.example/task:1"}
    return {
        "apiVersion": "reattach.dev/v1alpha1",
        "kind": "TaskRun",
        "metadata": {"name": name},
        "spec": {"template": {"spec": {"containers": [container]}}},
    }


def owner(name: str = "load", uid: str = "0d1f2a3b-0000-4000-8000-000000000000") -> Object:
    return {"apiVersion": "reattach.dev/v1alpha1", "kind": "TaskRun", "name": name, "uid": uid, "controller": True}


def an_attempt(controller: Object, number: int = 1, **metadata: Any) -> Object:
    """Return a pod as the operator creates it."""
    ours = {
        "labels": {"reattach.dev/taskrun": controller["name"], "reattach.dev/attempt": str(number)},
        "annotations": {"reattach.dev/template-hash": "a", "reattach.dev/ca.crt": "b"},
        "ownerReferences": [controller],
        "finalizers": ["reattach.dev/attempt"],
    }
    name = pod_name(controller["name"], controller["uid"], number)
    return pod(spec=token_volume("reattach.dev"), **{"name": name, **ours, **metadata})


def a_state(controller: Object, **metadata: Any) -> Object:
    """Return a ConfigMap as the state API creates it."""
    ours = {
        "name": state_name(controller["name"], controller["uid"]),
        "labels": {"reattach.dev/taskrun": controller["name"]},
        "annotations": {"reattach.dev/summary": "{}"},
        "ownerReferences": [controller],
        "finalizers": ["reattach.dev/state"],
    }
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {**ours, **metadata}, "data": {"a": "b"}}


def an_orphan_record() -> Object:
    """Return a ConfigMap as the operator creates it for the jobs that a TaskRun left running."""
    taskrun = f"gone-{secrets.token_hex(4)}"
    name = orphans_name(taskrun, "0d1f2a3b-0000-4000-8000-000000000000")
    metadata = {"name": name, "labels": {"reattach.dev/orphans": taskrun}}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"record": "{}"}}


def token_volume(audience: str) -> Object:
    return {
        "volumes": [
            {"name": "t", "projected": {"sources": [{"serviceAccountToken": {"path": "t", "audience": audience}}]}}
        ]
    }


@pytest.fixture(scope="module")
def cluster(private_control_plane: RunningControlPlane) -> RunningControlPlane:
    """The API server with the policies. Our service accounts come as administrators here, so that only the policies can hold them."""
    install_admission(private_control_plane)
    return private_control_plane


@pytest.fixture(scope="module")
def load(cluster: RunningControlPlane) -> Object:
    """Owner reference to a TaskRun that exists: what has no owner left is collected."""
    return owner(uid=cluster.call("POST", TASKRUNS, a_taskrun("load"))["metadata"]["uid"])


@pytest.fixture
def grant(cluster: RunningControlPlane) -> Callable[..., None]:
    """Let a user do something in the namespace default; waits until the API server knows."""

    def allow(user: str, resources: list[str], verbs: list[str], group: str = "reattach.dev") -> None:
        name = f"{user}-{'-'.join(resources)}".replace(":", "-").replace("/", "-")
        rbac = "/apis/rbac.authorization.k8s.io/v1/namespaces/default"
        rules = [{"apiGroups": [group], "resources": resources, "verbs": verbs}]
        cluster.call("POST", f"{rbac}/roles", {"metadata": {"name": name}, "rules": rules})
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name}
        subjects = [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}]
        cluster.call(
            "POST", f"{rbac}/rolebindings", {"metadata": {"name": name}, "roleRef": role, "subjects": subjects}
        )
        resource, _, subresource = resources[0].partition("/")
        attributes = {
            "namespace": "default",
            "verb": verbs[0],
            "group": group,
            "resource": resource,
            "subresource": subresource,
        }
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {"user": user, "resourceAttributes": attributes},
        }
        path = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
        wait_until(
            lambda: cluster.call("POST", path, review)["status"]["allowed"], seconds=10, what="the right is known"
        )

    return allow


def objection(cluster: RunningControlPlane, method: str, path: str, body: Object | None = None, **who: Any) -> str:
    """What the API server says if it refuses the request; empty if it accepts."""
    try:
        cluster.call(method, path, body, **who)
    except ControlPlaneError as error:
        return str(error)
    return ""


def refused(cluster: RunningControlPlane, method: str, path: str, body: Object | None = None, **who: Any) -> str:
    """What the API server says when it refuses the request, as it must."""
    said = objection(cluster, method, path, body, **who)
    assert said, f"{method} {path} was accepted"
    return said


class TestWhoeverWritesASpec:
    """The operator makes pods on their behalf."""

    def test_must_be_allowed_to_create_pods(self, cluster: RunningControlPlane, grant: Callable[..., None]) -> None:
        grant("tara", ["taskruns"], ["create", "update", "patch", "get"])
        said = refused(cluster, "POST", TASKRUNS, a_taskrun("a"), user="tara")
        assert said.startswith("403:")
        assert "the author of a TaskRun spec must be allowed to create pods in its namespace" in said
        assert "tara is not allowed to create pods in default" in said

    def test_is_let_through_with_that_right(self, cluster: RunningControlPlane, grant: Callable[..., None]) -> None:
        grant("paula", ["taskruns"], ["create"])
        grant("paula", ["pods"], ["create"], group="")
        cluster.call("POST", TASKRUNS, a_taskrun("paulas"), user="paula")

    def test_may_otherwise_change_metadata_alone(
        self, cluster: RunningControlPlane, grant: Callable[..., None]
    ) -> None:
        grant("marc", ["taskruns"], ["patch"])
        cluster.call("POST", TASKRUNS, a_taskrun("changed"))
        path = f"{TASKRUNS}/changed"
        said = refused(cluster, "PATCH", path, {"spec": {"retry": {"budgets": {"application": 9}}}}, user="marc")
        assert "marc is not allowed to create pods in default" in said
        cluster.call("PATCH", path, {"metadata": {"labels": {"a": "b"}}}, user="marc")

    def test_may_otherwise_only_stop_a_run(self, cluster: RunningControlPlane, grant: Callable[..., None]) -> None:
        """Someone on call, who may not create pods, next to the author, who may."""
        grant("olga", ["taskruns"], ["patch"])
        grant("paul", ["taskruns"], ["patch"])
        grant("paul", ["pods"], ["create"], group="")
        restored = a_taskrun("stopped")
        restored["metadata"]["labels"] = {"velero.io/restore-name": "monday"}
        cluster.call("POST", TASKRUNS, restored)
        path = f"{TASKRUNS}/stopped"
        job = {"held": "SubmissionUnknown", "key": "load", "generation": 1}
        adopt = {**job, "action": "Adopt", "handle": "job-1"}
        fail = {**job, "action": "Fail"}
        cluster.call("PATCH", path, {"spec": {"resolutions": [adopt]}}, user="paul")
        run = {"metadata": {"labels": {"velero.io/restore-name": None}}}
        for patch in (
            {"spec": {"resolutions": [adopt, adopt]}},
            {"spec": {"resolutions": [adopt, {**job, "action": "Resubmit"}]}},
            {"spec": {"resolutions": [adopt, fail, {"held": "BudgetExhausted", "action": "Continue"}]}},
            {"spec": {"resolutions": [adopt, {"held": "StateLost", "action": "StartEmpty"}]}},
            {"spec": {"cancel": True, "retry": {"budgets": {"application": 9}}}},
            {"spec": {"cancel": True, "deadlines": {"pendingSeconds": 9}}},
            {"spec": {"suspend": True, "deadlines": {"pendingSeconds": 9}}},
            run,
            {**run, "spec": {"resolutions": [adopt, fail]}},
        ):
            said = refused(cluster, "PATCH", path, patch, user="olga")
            assert said.startswith("403:"), patch
            assert (
                "you may only set spec.cancel and spec.suspend to true, and append resolutions with the action Fail"
                in said
            ), patch
            cluster.call("PATCH", path, patch, user="paul", dryRun="All")
        cluster.call("PATCH", path, {"spec": {"resolutions": [adopt, fail]}}, user="olga")
        cluster.call("PATCH", path, {"spec": {"suspend": True}}, user="olga")
        for resumed in ({"suspend": False}, {"suspend": None}):
            said = refused(cluster, "PATCH", path, {"spec": resumed}, user="olga")
            assert said.startswith("403:"), resumed
            cluster.call("PATCH", path, {"spec": resumed}, user="paul", dryRun="All")
        lost = {"held": "StateLost", "action": "Fail"}
        cluster.call("PATCH", path, {"spec": {"cancel": True, "resolutions": [adopt, fail, lost]}}, user="olga")
        cluster.call("PATCH", path, run, user="paul")

    def test_may_not_write_the_status(self, cluster: RunningControlPlane, grant: Callable[..., None]) -> None:
        grant("steve", ["taskruns"], ["create", "update", "patch", "get"])
        cluster.call("POST", TASKRUNS, a_taskrun("forged"))
        forged = {"status": {"outcome": "Succeeded", "result": '"forged"'}}
        said = refused(cluster, "PATCH", f"{TASKRUNS}/forged/status", forged, user="steve")
        assert said.startswith("403:")
        answer = cluster.call("PATCH", f"{TASKRUNS}/forged", forged, user="steve")
        assert set(answer["status"]) == {"conditions"}, "the schema's default is all there is"


class TestPodsOfStrangers:
    """Nobody but the operator may make a pod look like an attempt, neither at once nor later."""

    @pytest.mark.parametrize(
        "metadata, spec, says",
        [
            pytest.param(
                {"labels": {"app": "a", "reattach.dev/taskrun": "load"}},
                {},
                "only Reattach's operator may set the label reattach.dev/taskrun on a pod; remove it",
                id="our label",
            ),
            pytest.param(
                {"labels": {"reattach.dev/of-tomorrow": ""}},
                {},
                "only Reattach's operator may set the label reattach.dev/of-tomorrow on a pod; remove it",
                id="any label under our domain",
            ),
            pytest.param(
                {"annotations": {"reattach.dev/ca.crt": "mine"}},
                {},
                "only Reattach's operator may set the annotation reattach.dev/ca.crt on a pod; remove it",
                id="our annotation",
            ),
            pytest.param(
                {"finalizers": ["reattach.dev/attempt"]},
                {},
                "only Reattach's operator may set the finalizer reattach.dev/attempt on a pod; remove it",
                id="our finalizer",
            ),
            pytest.param(
                {"ownerReferences": [owner()]},
                {},
                "only Reattach's operator may set a TaskRun as the owner of a pod; remove the owner reference",
                id="our owner reference",
            ),
            pytest.param(
                {"ownerReferences": [{**owner(), "apiVersion": "reattach.dev/v1", "controller": False}]},
                {},
                "only Reattach's operator may set a TaskRun as the owner of a pod; remove the owner reference",
                id="our owner reference of another version",
            ),
            pytest.param(
                {},
                token_volume("reattach.dev"),
                "only Reattach's operator may create a pod with a token for the audience reattach.dev; remove that volume",
                id="our audience",
            ),
        ],
    )
    def test_are_refused_with(self, cluster: RunningControlPlane, metadata: Object, spec: Object, says: str) -> None:
        said = refused(cluster, "POST", PODS, pod(spec=spec, **metadata), dryRun="All")
        assert said.startswith("403:")
        assert says in said

    def test_are_let_through_without(self, cluster: RunningControlPlane) -> None:
        labels = {"reattach": "a", "example.org/reattach.dev": "b"}
        other = {"apiVersion": "apps/v1", "kind": "TaskRun", "name": "a", "uid": "b"}
        harmless = pod(spec=token_volume("vault"), labels=labels, annotations=labels, ownerReferences=[other])
        cluster.call("POST", PODS, harmless, dryRun="All")
        cluster.call("POST", PODS, pod(), dryRun="All")

    def test_may_be_external_jobs_and_say_whose(self, cluster: RunningControlPlane) -> None:
        """As the adapter `kubernetes` makes them, or a controller that copies the labels and annotations of its object to its pods."""
        marks = {LABEL_TOKEN: "a", ANNOTATION_TASKRUN: "b", ANNOTATION_JOB: "c"}
        cluster.call("POST", PODS, pod("a-job", labels=marks, annotations=marks))
        cluster.call("PATCH", f"{PODS}/a-job", {"metadata": {"labels": {LABEL_TOKEN: "d"}}})
        forged = pod(labels={**marks, "reattach.dev/taskrun": "load"})
        assert "may set the label reattach.dev/taskrun on a pod" in refused(cluster, "POST", PODS, forged)

    def test_the_state_api_is_a_stranger_too(self, cluster: RunningControlPlane) -> None:
        forged = pod(labels={"reattach.dev/taskrun": "load"})
        assert "only Reattach's operator" in refused(cluster, "POST", PODS, forged, user=SERVER, groups=ADMIN)

    def test_a_deployment_does_not_get_around_it(self, cluster: RunningControlPlane) -> None:
        """Controllers make pods under service accounts of their own; those are strangers as well."""
        forged = pod(labels={"reattach.dev/taskrun": "load"})
        user = "system:serviceaccount:kube-system:replicaset-controller"
        assert "only Reattach's operator" in refused(cluster, "POST", PODS, forged, user=user, groups=ADMIN)

    @pytest.mark.parametrize("subresource", ["", "/status"])
    @pytest.mark.parametrize("kind", ["labels", "annotations"])
    def test_get_no_mark_of_ours_later(self, cluster: RunningControlPlane, kind: str, subresource: str) -> None:
        name = f"later-{kind}{subresource.replace('/', '-')}"
        cluster.call("POST", PODS, pod(name))
        said = refused(
            cluster, "PATCH", f"{PODS}/{name}{subresource}", {"metadata": {kind: {"reattach.dev/taskrun": "load"}}}
        )
        assert f"only Reattach's operator may set the {kind[:-1]} reattach.dev/taskrun on a pod" in said
        cluster.call("PATCH", f"{PODS}/{name}{subresource}", {"metadata": {kind: {"team": "data"}}})

    def test_get_no_taskrun_as_owner_later(self, cluster: RunningControlPlane) -> None:
        cluster.call("POST", PODS, pod("later-owner"))
        said = refused(cluster, "PATCH", f"{PODS}/later-owner", {"metadata": {"ownerReferences": [owner()]}})
        assert "only Reattach's operator may set a TaskRun as the owner of a pod" in said

    @pytest.mark.parametrize("path", [f"{PODS}/unbound/binding", "/api/v1/namespaces/default/bindings"])
    @pytest.mark.parametrize("kind", ["labels", "annotations"])
    def test_get_no_mark_of_ours_from_a_scheduler(self, cluster: RunningControlPlane, path: str, kind: str) -> None:
        """A binding copies its labels and annotations to the pod."""
        binding = {
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": "unbound", kind: {"reattach.dev/taskrun": "load"}},
            "target": {"kind": "Node", "name": "somewhere"},
        }
        said = refused(cluster, "POST", path, binding)
        assert f"only Reattach's operator may set the {kind[:-1]} reattach.dev/taskrun on a pod" in said


class TestPodsOfOurs:
    """Others may take our marks away and go on with their work, but change none."""

    @pytest.fixture
    def path(self, cluster: RunningControlPlane, load: Object) -> str:
        """A pod as the operator creates it."""
        ours = an_attempt(load, number=secrets.randbelow(10**6) + 1)
        cluster.call("POST", PODS, ours, user=OPERATOR, groups=ADMIN)
        return f"{PODS}/{ours['metadata']['name']}"

    @pytest.mark.parametrize(
        "kind, key", [("labels", "reattach.dev/attempt"), ("annotations", "reattach.dev/template-hash")]
    )
    def test_a_mark_can_be_removed_and_not_changed(
        self, cluster: RunningControlPlane, path: str, kind: str, key: str
    ) -> None:
        said = refused(cluster, "PATCH", path, {"metadata": {kind: {key: "2"}}})
        assert f"only Reattach's operator may set the {kind[:-1]} {key} on a pod" in said
        cluster.call("PATCH", path, {"metadata": {kind: {key: None}}})
        assert "only Reattach's operator" in refused(cluster, "PATCH", path, {"metadata": {kind: {key: "1"}}})

    def test_the_owner_can_be_removed_and_not_changed(self, cluster: RunningControlPlane, path: str) -> None:
        said = refused(cluster, "PATCH", path, {"metadata": {"ownerReferences": [owner(uid="another")]}})
        assert "only Reattach's operator may set a TaskRun as the owner of a pod" in said
        cluster.call("PATCH", path, {"metadata": {"ownerReferences": None}})

    def test_the_kubelet_and_people_go_on(self, cluster: RunningControlPlane, path: str) -> None:
        cluster.call("PATCH", f"{path}/status", {"status": {"phase": "Running"}})
        cluster.call("PATCH", path, {"metadata": {"labels": {"team": "data"}, "finalizers": None}})
        debugger = {"spec": {"ephemeralContainers": [{"name": "debug", "image": "registry.example/debug:1"}]}}
        cluster.call("PATCH", f"{path}/ephemeralcontainers", debugger)
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": path.rpartition("/")[2]}}
        cluster.call("POST", f"{path}/eviction", eviction)


class TestPodsThatTheOperatorWrites:
    """Its service account may write pods, and may create, change and delete only attempts; whatever RBAC gives it."""

    @pytest.fixture
    def ours(self, cluster: RunningControlPlane, load: Object) -> str:
        made = an_attempt(load, number=secrets.randbelow(10**6) + 1)
        cluster.call("POST", PODS, made, user=OPERATOR, groups=ADMIN)
        return f"{PODS}/{made['metadata']['name']}"

    def test_its_metadata_is_changed_and_it_is_deleted(self, cluster: RunningControlPlane, ours: str) -> None:
        labels = {"reattach.dev/taskrun": None, "reattach.dev/attempt": None}
        cluster.call("PATCH", ours, {"metadata": {"labels": labels}})
        for patch in (
            {"labels": {"reattach.dev/taskrun": "load", "reattach.dev/attempt": "1"}},
            {"annotations": {"reattach.dev/ca.crt": "rotated"}},
            {"finalizers": None},
        ):
            cluster.call("PATCH", ours, {"metadata": patch}, user=OPERATOR, groups=ADMIN)
        cluster.call("DELETE", ours, user=OPERATOR, groups=ADMIN)

    def test_its_containers_are_not_changed(self, cluster: RunningControlPlane, ours: str) -> None:
        (container,) = cluster.call("GET", ours)["spec"]["containers"]
        for spec in (
            {"containers": [container | {"image": "registry.example/another:1"}]},
            {"containers": [container | {"image": "registry.example/another:1"}], "activeDeadlineSeconds": 5},
            {"activeDeadlineSeconds": 5, "tolerations": [{"key": "any", "operator": "Exists"}]},
        ):
            cluster.call("PATCH", ours, {"spec": spec}, dryRun="All")
            said = refused(cluster, "PATCH", ours, {"spec": spec}, user=OPERATOR, groups=ADMIN)
            assert said.startswith("403:")
            assert "Reattach's operator may change only the metadata of a pod" in said

    def test_its_deadline_is_only_lowered(self, cluster: RunningControlPlane, ours: str) -> None:
        as_operator = {"user": OPERATOR, "groups": ADMIN}
        for seconds in (50, 1):
            patch = {"metadata": {"annotations": {"reattach.dev/stop-time": "now"}}}
            found = cluster.call("PATCH", ours, patch | {"spec": {"activeDeadlineSeconds": seconds}}, **as_operator)
            assert found["spec"]["activeDeadlineSeconds"] == seconds
        cluster.call("PATCH", ours, {"spec": {"activeDeadlineSeconds": 1}}, **as_operator)
        assert refused(cluster, "PATCH", ours, {"spec": {"activeDeadlineSeconds": 2}}, **as_operator)

    def test_its_retention_is_no_other_word(self, cluster: RunningControlPlane, load: Object) -> None:
        def attempt_with(policy: str) -> Object:
            made = an_attempt(load)
            made["metadata"]["annotations"]["reattach.dev/pod-retention"] = policy
            return made

        as_operator = {"user": OPERATOR, "groups": ADMIN}
        for policy in ("Failed", "None"):
            cluster.call("POST", PODS, attempt_with(policy), dryRun="All", **as_operator)
        said = refused(cluster, "POST", PODS, attempt_with("Some"), dryRun="All", **as_operator)
        assert "may set the annotation reattach.dev/pod-retention of a pod only to Failed or None" in said

    @pytest.mark.parametrize(
        "changed",
        [
            pytest.param({"name": "any"}, id="another name"),
            pytest.param({"name": "load-00000-1"}, id="a name with another UID"),
            pytest.param({"name": "load-{uid5}-0"}, id="a name with attempt 0"),
            pytest.param({"name": "load-{uid5}-a-1"}, id="a longer name"),
            pytest.param({"ownerReferences": []}, id="no owner"),
            pytest.param({"ownerReferences": [{"kind": "Other"}]}, id="an owner of another kind"),
            pytest.param({"ownerReferences": [{"apiVersion": "tekton.dev/v1"}]}, id="another project's TaskRun"),
            pytest.param({"ownerReferences": [{"controller": False}]}, id="an owner that is no controller"),
        ],
    )
    def test_another_pod_is_not_created(self, cluster: RunningControlPlane, load: Object, changed: Object) -> None:
        if "name" in changed:
            changed = {"name": changed["name"].format(uid5=load["uid"][:5])}
        else:
            changed = {"ownerReferences": [load | change for change in changed["ownerReferences"]]}
        made = an_attempt(load, **changed)
        said = refused(cluster, "POST", PODS, made, user=OPERATOR, groups=ADMIN, dryRun="All")
        assert said.startswith("403:")
        assert "Reattach's operator may write only pods that are attempts" in said

    @pytest.mark.parametrize(
        "changed",
        [
            {"finalizers": []},
            {"annotations": {"reattach.dev/ca.crt": "b"}},
            {"annotations": {"reattach.dev/template-hash": "a"}},
            {"labels": {}},
            {"labels": {"reattach.dev/taskrun": "load", "reattach.dev/attempt": "2"}},
            {"labels": {"reattach.dev/taskrun": "other", "reattach.dev/attempt": "1"}},
        ],
    )
    def test_a_pod_without_all_marks_is_not_created(
        self, cluster: RunningControlPlane, load: Object, changed: Object
    ) -> None:
        cluster.call("POST", PODS, an_attempt(load), user=OPERATOR, groups=ADMIN, dryRun="All")
        made = an_attempt(load, **changed)
        said = refused(cluster, "POST", PODS, made, user=OPERATOR, groups=ADMIN, dryRun="All")
        assert "Reattach's operator may create a pod only with the finalizer reattach.dev/attempt" in said

    def test_a_cleanup_pod_is_created_and_no_other_purpose(self, cluster: RunningControlPlane, load: Object) -> None:
        def attempt_for(purpose: str) -> Object:
            made = an_attempt(load)
            made["metadata"]["labels"]["reattach.dev/purpose"] = purpose
            return made

        as_operator = {"user": OPERATOR, "groups": ADMIN}
        cluster.call("POST", PODS, attempt_for("Cleanup"), dryRun="All", **as_operator)
        for purpose in ("Run", "cleanup", ""):
            said = refused(cluster, "POST", PODS, attempt_for(purpose), dryRun="All", **as_operator)
            assert "may set the label reattach.dev/purpose of a pod only to Cleanup" in said

    def test_a_purpose_other_than_cleanup_is_not_set_later(self, cluster: RunningControlPlane, ours: str) -> None:
        patch = {"metadata": {"labels": {"reattach.dev/purpose": "Run"}}}
        said = refused(cluster, "PATCH", ours, patch, user=OPERATOR, groups=ADMIN)
        assert "may set the label reattach.dev/purpose of a pod only to Cleanup" in said

    @pytest.mark.parametrize("namespace", ["kube-system", "kube-public", "kube-node-lease", "reattach"])
    def test_no_pod_is_created_in_a_protected_namespace(
        self, cluster: RunningControlPlane, load: Object, namespace: str
    ) -> None:
        path = f"/api/v1/namespaces/{namespace}/pods"
        said = refused(cluster, "POST", path, an_attempt(load), user=OPERATOR, groups=ADMIN, dryRun="All")
        assert f"Reattach's operator may not create pods in the namespace {namespace}" in said

    def test_a_foreign_one_is_not_changed_taken_over_or_deleted(
        self, cluster: RunningControlPlane, load: Object
    ) -> None:
        path = f"{PODS}/{pod_name('load', load['uid'], 7)}"
        cluster.call("POST", PODS, pod(path.rpartition("/")[2]))
        take_over = {"metadata": {"ownerReferences": [load]}}
        for method, body in [("PATCH", {"metadata": {"labels": {"a": "b"}}}), ("PATCH", take_over), ("DELETE", None)]:
            said = refused(cluster, method, path, body, user=OPERATOR, groups=ADMIN)
            assert "Reattach's operator may write only pods that are attempts" in said
        cluster.call("DELETE", path, gracePeriodSeconds=0)

    def test_an_orphan_loses_the_finalizer_and_nothing_else_is_done_to_it(
        self, cluster: RunningControlPlane, ours: str
    ) -> None:
        cluster.call("PATCH", ours, {"metadata": {"ownerReferences": None}})
        let_go = {"metadata": {"finalizers": None}}
        for body in (
            {"metadata": {"finalizers": None, "labels": {"a": "b"}}},
            {**let_go, "spec": {"activeDeadlineSeconds": 5}},
        ):
            refused(cluster, "PATCH", ours, body, user=OPERATOR, groups=ADMIN)
        assert not cluster.call("PATCH", ours, let_go, user=OPERATOR, groups=ADMIN)["metadata"].get("finalizers")


class TestPodTemplatesOfTheOperator:
    """It checks the template of a rejected pod with a dry run, and stores none."""

    BODY: ClassVar[Object] = {"metadata": {"name": "load"}, "template": {"spec": pod()["spec"]}}
    PATH = "/api/v1/namespaces/default/podtemplates"

    def test_dry_run_is_let_through(self, cluster: RunningControlPlane) -> None:
        cluster.call("POST", self.PATH, self.BODY, user=OPERATOR, groups=ADMIN, dryRun="All")

    def test_creation_change_and_deletion_are_refused(self, cluster: RunningControlPlane) -> None:
        cluster.call("POST", self.PATH, self.BODY)
        patch = {"metadata": {"labels": {"a": "b"}}}
        for method, name, body in (("POST", "", self.BODY), ("PATCH", "/load", patch), ("DELETE", "/load", None)):
            said = refused(cluster, method, f"{self.PATH}{name}", body, user=OPERATOR, groups=ADMIN)
            assert "Reattach's operator may create a PodTemplate only with dryRun=All" in said
        cluster.call("DELETE", f"{self.PATH}/load")


class TestConfigMapsOfStrangers:
    """Only Reattach may make a ConfigMap look like a state, at its creation or later."""

    @pytest.fixture
    def tenant(self, grant: Callable[..., None]) -> str:
        user = f"tina-{secrets.token_hex(4)}"
        grant(user, ["configmaps"], ["create", "delete", "get", "list", "patch", "update"], group="")
        return user

    @pytest.mark.parametrize(
        "metadata, says",
        [
            ({"labels": {"reattach.dev/taskrun": "x"}}, "the label reattach.dev/taskrun"),
            ({"labels": {"reattach.dev/of-tomorrow": ""}}, "the label reattach.dev/of-tomorrow"),
            ({"annotations": {"reattach.dev/summary": "{}"}}, "the annotation reattach.dev/summary"),
            ({"finalizers": ["reattach.dev/state"]}, "the finalizer reattach.dev/state"),
            ({"ownerReferences": [owner()]}, "a TaskRun as the controller"),
        ],
    )
    def test_get_no_mark_of_ours(self, cluster: RunningControlPlane, tenant: str, metadata: Object, says: str) -> None:
        path = f"{CONFIGMAPS}/{tenant}"
        said = refused(cluster, "POST", CONFIGMAPS, {"metadata": {"name": tenant, **metadata}}, user=tenant)
        assert said.startswith("403:")
        assert f"only Reattach may set {says}" in said
        cluster.call("POST", CONFIGMAPS, {"metadata": {"name": tenant}}, user=tenant)
        assert f"only Reattach may set {says}" in refused(cluster, "PATCH", path, {"metadata": metadata}, user=tenant)

    def test_are_let_through_without(self, cluster: RunningControlPlane, tenant: str, load: Object) -> None:
        marks = {LABEL_TOKEN: "a", ANNOTATION_TASKRUN: "b", ANNOTATION_JOB: "c", "team": "d"}
        owned = {**load, "controller": False}
        script = {"name": tenant, "labels": marks, "annotations": marks, "ownerReferences": [owned]}
        cluster.call("POST", CONFIGMAPS, {"metadata": script, "data": {"run.sh": ""}}, user=tenant)
        cluster.call("PATCH", f"{CONFIGMAPS}/{tenant}", {"metadata": {"labels": {"team": "e"}}}, user=tenant)
        said = refused(
            cluster, "PATCH", f"{CONFIGMAPS}/{tenant}", {"metadata": {"ownerReferences": [load]}}, user=tenant
        )
        assert "set an owner reference without controller, or remove it" in said

    def test_of_ours_are_edited_and_unmarked_and_not_marked_otherwise(
        self, cluster: RunningControlPlane, tenant: str
    ) -> None:
        """`kubectl reattach state set` writes the data and the summary."""
        about = cluster.call("POST", TASKRUNS, a_taskrun(tenant))["metadata"]
        ours = a_state(owner(tenant, about["uid"]))
        path = f"{CONFIGMAPS}/{ours['metadata']['name']}"
        cluster.call("POST", CONFIGMAPS, ours, user=SERVER, groups=ADMIN)
        edited = {"data": {"a": "c"}, "metadata": {"annotations": {"reattach.dev/summary": '{"x":1}'}}}
        cluster.call("PATCH", path, edited, user=tenant)
        cluster.call("PATCH", path, {"metadata": {"annotations": {"reattach.dev/summary": None}}}, user=tenant)
        cluster.call("PATCH", path, edited, user=tenant)
        for metadata in (
            {"labels": {"reattach.dev/taskrun": "other"}},
            {"annotations": {"reattach.dev/other": ""}},
            {"finalizers": ["reattach.dev/state", "reattach.dev/other"]},
            {"ownerReferences": [owner("other")]},
        ):
            assert "only Reattach may set" in refused(cluster, "PATCH", path, {"metadata": metadata}, user=tenant)
        for unmarked in (
            {"finalizers": None, "labels": None, "ownerReferences": None},
            {"annotations": {"reattach.dev/summary": None}},
        ):
            cluster.call("PATCH", path, {"metadata": unmarked}, user=tenant)
        assert "the annotation reattach.dev/summary" in refused(cluster, "PATCH", path, edited, user=tenant)
        cluster.call("DELETE", path, user=tenant)

    def test_are_restored_by_a_backup_tool(
        self, cluster: RunningControlPlane, tenant: str, grant: Callable[..., None]
    ) -> None:
        """It creates the whole object without its owner; the right to write the status of TaskRuns lets it."""
        backup = a_state(owner(tenant), ownerReferences=[])
        assert "to restore a backup, you need permission to update taskruns/status" in refused(
            cluster, "POST", CONFIGMAPS, backup, user=tenant
        )
        grant(tenant, ["taskruns/status"], ["update"])
        made = cluster.call("POST", CONFIGMAPS, backup, user=tenant)["metadata"]
        assert {name: made.get(name) for name in ("labels", "annotations", "finalizers")} == {
            name: backup["metadata"][name] for name in ("labels", "annotations", "finalizers")
        }
        cluster.call("PATCH", f"{CONFIGMAPS}/{made['name']}", {"metadata": {"finalizers": None}}, user=tenant)
        cluster.call("DELETE", f"{CONFIGMAPS}/{made['name']}", user=tenant)


class TestStatesThatUsersImport:
    """A user who may update a TaskRun may create its state, with nothing but keys."""

    KEYS: ClassVar[Object] = {
        "data": {"formatVersion": "1", "lastVersion": "1", "key.a": "{}", "key-escaped.a_2Fb": "{}"}
    }

    @pytest.fixture
    def tenant(self, grant: Callable[..., None]) -> str:
        user = f"iris-{secrets.token_hex(4)}"
        grant(user, ["configmaps"], ["create"], group="")
        return user

    def test_by_the_right_to_update_that_taskrun(
        self, cluster: RunningControlPlane, tenant: str, grant: Callable[..., None]
    ) -> None:
        about = cluster.call("POST", TASKRUNS, a_taskrun(tenant))["metadata"]
        state = {**a_state(owner(tenant, about["uid"])), **self.KEYS}
        assert "only Reattach may set" in refused(cluster, "POST", CONFIGMAPS, state, user=tenant)
        grant(tenant, ["taskruns"], ["get", "patch"])
        assert "only Reattach may set" in refused(cluster, "POST", CONFIGMAPS, state, user=tenant)
        grant_update(cluster, tenant, resource_name=tenant)
        cluster.call("POST", CONFIGMAPS, state, user=tenant)
        other = {**a_state(owner("load")), **self.KEYS}
        said = refused(cluster, "POST", CONFIGMAPS, other, user=tenant, dryRun="All")
        assert "only Reattach may set" in said, "it may update another TaskRun only"

    @pytest.mark.parametrize(
        "change",
        [
            pytest.param({"name": "load-00000-state"}, id="another name"),
            pytest.param({"labels": {}}, id="no label"),
            pytest.param({"labels": {"reattach.dev/taskrun": "other"}}, id="another label"),
            pytest.param(
                {"labels": {"reattach.dev/taskrun": "load", "reattach.dev/orphans": "load"}},
                id="a second label",
            ),
            pytest.param({"annotations": {"reattach.dev/other": ""}}, id="another annotation"),
            pytest.param({"finalizers": []}, id="no finalizer"),
            pytest.param(
                {"finalizers": ["reattach.dev/state", "reattach.dev/external-jobs"]},
                id="a second finalizer",
            ),
            pytest.param({"ownerReferences": []}, id="no owner"),
            pytest.param({"ownerReferences": [{**owner(), "controller": False}]}, id="no controller"),
            pytest.param({"ownerReferences": [{**owner(), "kind": "Other"}]}, id="an owner of another kind"),
            pytest.param({"data": {"job.1.load": "{}"}}, id="an external job"),
            pytest.param({"data": {"completion": "{}"}}, id="a completion"),
            pytest.param({"data": {"epoch": "{}"}}, id="an epoch"),
            pytest.param({"data": {"seal": "{}"}}, id="a seal"),
        ],
    )
    def test_as_nothing_else(
        self, cluster: RunningControlPlane, tenant: str, grant: Callable[..., None], change: Object
    ) -> None:
        grant(tenant, ["taskruns"], ["update"])
        data = {"data": {**self.KEYS["data"], **change.get("data", {})}}
        metadata = {name: value for name, value in change.items() if name != "data"}
        good, bad = ({**a_state(owner(), **each), **data} for each in ({}, metadata))
        said = refused(cluster, "POST", CONFIGMAPS, bad, user=tenant, dryRun="All")
        assert "only Reattach may set" in said
        if "data" not in change:
            cluster.call("POST", CONFIGMAPS, good, user=tenant, dryRun="All")

    def test_and_mark_no_configmap_that_exists(
        self, cluster: RunningControlPlane, tenant: str, grant: Callable[..., None]
    ) -> None:
        grant(tenant, ["taskruns"], ["update"])
        cluster.call("POST", CONFIGMAPS, {"metadata": {"name": tenant}})
        grant(f"{tenant}", ["configmaps", "events"], ["patch"], group="")
        uid = f"{secrets.token_hex(4)}-0000-4000-8000-000000000000"
        marked = a_state(owner(uid=uid))
        path = f"{CONFIGMAPS}/{marked['metadata']['name']}"
        cluster.call("POST", CONFIGMAPS, {"metadata": {"name": marked["metadata"]["name"]}})
        assert "only Reattach may set" in refused(cluster, "PATCH", path, {"metadata": marked["metadata"]}, user=tenant)


def grant_update(cluster: RunningControlPlane, user: str, *, resource_name: str) -> None:
    """Let a user update one TaskRun, and wait until the API server knows."""
    rbac, name = "/apis/rbac.authorization.k8s.io/v1/namespaces/default", f"{user}-updates"
    rule = {
        "apiGroups": ["reattach.dev"],
        "resources": ["taskruns"],
        "resourceNames": [resource_name],
        "verbs": ["update"],
    }
    cluster.call("POST", f"{rbac}/roles", {"metadata": {"name": name}, "rules": [rule]})
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name}
    subjects = [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}]
    cluster.call("POST", f"{rbac}/rolebindings", {"metadata": {"name": name}, "roleRef": role, "subjects": subjects})
    attributes = {
        "namespace": "default",
        "verb": "update",
        "group": "reattach.dev",
        "resource": "taskruns",
        "name": resource_name,
    }
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {"user": user, "resourceAttributes": attributes},
    }
    path = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
    wait_until(lambda: cluster.call("POST", path, review)["status"]["allowed"], seconds=30, what="the right is known")


class TestConfigMapsThatReattachWrites:
    """Our service accounts may write the states of TaskRuns and no other ConfigMap, whatever RBAC gives them."""

    @pytest.mark.parametrize("user", [OPERATOR, SERVER])
    def test_a_state_is_written(self, cluster: RunningControlPlane, load: Object, user: str) -> None:
        name = state_name("load", load["uid"])
        cluster.call("POST", CONFIGMAPS, a_state(load), user=user, groups=ADMIN)
        cluster.call("PATCH", f"{CONFIGMAPS}/{name}", {"data": {"a": "c"}}, user=user, groups=ADMIN)
        cluster.call("PATCH", f"{CONFIGMAPS}/{name}", {"metadata": {"finalizers": None}}, user=user, groups=ADMIN)
        cluster.call("DELETE", f"{CONFIGMAPS}/{name}", user=user, groups=ADMIN)

    @pytest.mark.parametrize(
        "metadata",
        [
            pytest.param({"labels": {}}, id="no label"),
            pytest.param({"labels": {"reattach.dev/attempt": "1"}}, id="another label"),
            pytest.param({"ownerReferences": []}, id="no owner"),
            pytest.param({"ownerReferences": [owner("other")]}, id="another TaskRun as owner"),
            pytest.param({"ownerReferences": [{**owner(), "kind": "Other"}]}, id="an owner of another kind"),
            pytest.param(
                {"ownerReferences": [{**owner(), "apiVersion": "tekton.dev/v1"}]},
                id="another project's TaskRun as owner",
            ),
            pytest.param({"ownerReferences": [{**owner(), "controller": False}]}, id="an owner that is no controller"),
            pytest.param({"name": "anything"}, id="another name"),
            pytest.param({"name": "load-00000-state"}, id="a name with another UID"),
        ],
    )
    @pytest.mark.parametrize("user", [OPERATOR, SERVER])
    def test_a_foreign_one_is_not_made(self, cluster: RunningControlPlane, user: str, metadata: Object) -> None:
        said = refused(cluster, "POST", CONFIGMAPS, a_state(owner(), **metadata), user=user, groups=ADMIN, dryRun="All")
        assert said.startswith("403:")
        assert "Reattach may write only ConfigMaps that have the label reattach.dev/taskrun" in said

    @pytest.mark.parametrize("user", [OPERATOR, SERVER])
    def test_a_foreign_one_is_not_changed_taken_over_or_deleted(self, cluster: RunningControlPlane, user: str) -> None:
        uid = f"{secrets.token_hex(4)}-0000-4000-8000-000000000000"
        take_over = {"metadata": a_state(owner(uid=uid))["metadata"]}
        name = take_over["metadata"]["name"]
        path = f"{CONFIGMAPS}/{name}"
        cluster.call("POST", CONFIGMAPS, {"metadata": {"name": name}, "data": {"a": "b"}})
        for method, body in [("PATCH", {"data": {"a": "c"}}), ("PATCH", take_over), ("DELETE", None)]:
            assert "Reattach may write only ConfigMaps that have the label" in refused(
                cluster, method, path, body, user=user, groups=ADMIN
            )
        assert cluster.call("GET", path)["data"] == {"a": "b"}

    def test_an_orphaned_state_is_let_go_of_and_nothing_else_is_done_to_it(self, cluster: RunningControlPlane) -> None:
        """`kubectl delete --cascade=orphan` removes the owner; the finalizer must not stay for ever."""
        path = f"{CONFIGMAPS}/orphan"
        orphan = {"name": "orphan", "finalizers": ["reattach.dev/state", "example.com/other"]}
        cluster.call("POST", CONFIGMAPS, {"metadata": orphan, "data": {"a": "b"}})
        let_go = {"metadata": {"finalizers": ["example.com/other"]}}
        for body in ({**let_go, "data": {"a": "c"}}, {"metadata": {"labels": {"a": "b"}}}):
            assert "Reattach may write only ConfigMaps" in refused(
                cluster, "PATCH", path, body, user=OPERATOR, groups=ADMIN
            )
        cluster.call("PATCH", path, let_go, user=OPERATOR, groups=ADMIN)
        assert cluster.call("GET", path)["metadata"]["finalizers"] == ["example.com/other"]
        cluster.call("PATCH", path, {"metadata": {"finalizers": []}})

    def test_the_state_api_with_its_own_token_is_held_to_it(
        self, cluster: RunningControlPlane, grant: Callable[..., None], load: Object
    ) -> None:
        """Not only its name in a certificate: a real token of the service account."""
        cluster.call("POST", "/api/v1/namespaces/reattach/serviceaccounts", {"metadata": {"name": "reattach-server"}})
        grant(SERVER, ["configmaps"], ["create"], group="")
        headers = {"Authorization": f"Bearer {cluster.token('reattach', 'reattach-server')}"}
        trust = ssl.create_default_context(cafile=cluster.ca_file)
        with httpx.Client(base_url=cluster.url, verify=trust, headers=headers, trust_env=False) as client:
            ours = client.post(CONFIGMAPS, json=a_state(load))
            foreign = client.post(CONFIGMAPS, json={"metadata": {"name": "by-token-too"}})
        assert ours.status_code == 201
        assert foreign.status_code == 403
        assert "Reattach may write only ConfigMaps that have the label" in foreign.json()["message"]

    def test_others_write_what_they_like(self, cluster: RunningControlPlane) -> None:
        cluster.call("POST", CONFIGMAPS, {"metadata": {"name": "anyones"}})


class TestRecordsOfOrphanedJobs:
    """The operator creates a record. Everyone who may delete ConfigMaps reads and dismisses it."""

    def test_a_record_is_created_and_changed_by_the_operator_alone(self, cluster: RunningControlPlane) -> None:
        record = an_orphan_record()
        path = f"{CONFIGMAPS}/{record['metadata']['name']}"
        assert "Reattach may write only ConfigMaps" in refused(
            cluster, "POST", CONFIGMAPS, record, user=SERVER, groups=ADMIN
        )
        cluster.call("POST", CONFIGMAPS, record, user=OPERATOR, groups=ADMIN)
        cluster.call("PATCH", path, {"data": {"record": "changed"}}, user=OPERATOR, groups=ADMIN)
        assert "Reattach may write only ConfigMaps" in refused(
            cluster, "PATCH", path, {"data": {"record": "{}"}}, user=SERVER, groups=ADMIN
        )
        assert "Reattach may write only ConfigMaps" in refused(cluster, "DELETE", path, user=OPERATOR, groups=ADMIN)

    def test_a_record_is_listed_and_deleted_by_a_tenant(
        self, cluster: RunningControlPlane, grant: Callable[..., None]
    ) -> None:
        user = f"tom-{secrets.token_hex(4)}"
        grant(user, ["configmaps"], ["create", "delete", "get", "list", "patch", "update"], group="")
        record = an_orphan_record()
        path = f"{CONFIGMAPS}/{record['metadata']['name']}"
        assert "only Reattach may set the label reattach.dev/orphans on a ConfigMap" in refused(
            cluster, "POST", CONFIGMAPS, record, user=user
        )
        cluster.call("POST", CONFIGMAPS, record, user=OPERATOR, groups=ADMIN)
        selector = f"reattach.dev/orphans={record['metadata']['labels']['reattach.dev/orphans']}"
        found = cluster.call("GET", CONFIGMAPS, user=user, labelSelector=selector)["items"]
        assert [each["data"] for each in found] == [record["data"]]
        assert "only Reattach may set the label reattach.dev/orphans" in refused(
            cluster, "PATCH", path, {"metadata": {"labels": {"reattach.dev/orphans": "other"}}}, user=user
        )
        cluster.call("DELETE", path, user=user)

    @pytest.mark.parametrize(
        "metadata",
        [
            pytest.param({"name": "any"}, id="another name"),
            pytest.param({"name": "{taskrun}-0d1f2-state"}, id="the name of a state"),
            pytest.param({"name": "{taskrun}-0d1f2a-orphans"}, id="a longer UID"),
            pytest.param({"name": "other-{taskrun}-0d1f2-orphans"}, id="the name of another TaskRun"),
            pytest.param({"labels": {}}, id="no label"),
            pytest.param({"labels": {"reattach.dev/orphans": "other"}}, id="the label of another TaskRun"),
            pytest.param({"ownerReferences": [owner()]}, id="an owner"),
        ],
    )
    def test_no_other_configmap_passes_for_a_record(self, cluster: RunningControlPlane, metadata: Object) -> None:
        record = an_orphan_record()
        taskrun = record["metadata"]["labels"]["reattach.dev/orphans"]
        record["metadata"] |= metadata
        record["metadata"]["name"] = record["metadata"]["name"].format(taskrun=taskrun)
        said = refused(cluster, "POST", CONFIGMAPS, record, user=OPERATOR, groups=ADMIN, dryRun="All")
        assert "Reattach may write only ConfigMaps" in said

    def test_a_foreign_configmap_is_not_made_a_record(self, cluster: RunningControlPlane) -> None:
        record = an_orphan_record()
        path = f"{CONFIGMAPS}/{record['metadata']['name']}"
        cluster.call("POST", CONFIGMAPS, {"metadata": {"name": record["metadata"]["name"]}, "data": {"a": "b"}})
        take_over = {"metadata": {"labels": record["metadata"]["labels"]}, "data": record["data"]}
        assert "Reattach may write only ConfigMaps" in refused(
            cluster, "PATCH", path, take_over, user=OPERATOR, groups=ADMIN
        )


class TestTaskRunsThatTheStateApiWrites:
    """Its service account may patch TaskRuns, and put its finalizer on and name the state; whatever RBAC gives it."""

    OURS = "reattach.dev/external-jobs"

    @pytest.fixture
    def path(self, cluster: RunningControlPlane) -> str:
        name = f"held-to-it-{secrets.token_hex(4)}"
        made = a_taskrun(name)
        made["metadata"] |= {"finalizers": ["example.com/theirs"], "labels": {"team": "data"}}
        cluster.call("POST", TASKRUNS, made)
        return f"{TASKRUNS}/{name}"

    def test_its_finalizer_is_put_on(self, cluster: RunningControlPlane, path: str) -> None:
        both = {"metadata": {"finalizers": ["example.com/theirs", self.OURS]}}
        assert cluster.call("PATCH", path, both, user=SERVER, groups=ADMIN)["metadata"]["finalizers"] == [
            "example.com/theirs",
            self.OURS,
        ]

    @pytest.mark.parametrize(
        "patch",
        [
            {"metadata": {"finalizers": ["reattach.dev/external-jobs"]}},
            {"metadata": {"finalizers": None}},
            {"metadata": {"finalizers": ["example.com/theirs", "example.com/another"]}},
            {"metadata": {"labels": {"team": None}}},
            {"metadata": {"labels": {"reattach.dev/restored": "true"}}},
            {"metadata": {"annotations": {"a": "b"}}},
            {"metadata": {"ownerReferences": [{**owner(), "kind": "Job", "controller": False}]}},
            {"spec": {"suspend": False}},
            {"spec": {"cancel": True}},
            {"spec": {"template": {"spec": {"hostNetwork": True}}}},
            {"spec": {"retry": {"budgets": {"application": 9}}}},
            {"spec": {"resolutions": [{"held": "StateLost", "action": "StartEmpty"}]}},
        ],
    )
    def test_nothing_else_of_it_is_changed(self, cluster: RunningControlPlane, path: str, patch: Object) -> None:
        before = cluster.call("GET", path)
        said = refused(cluster, "PATCH", path, patch, user=SERVER, groups=ADMIN)
        assert "Reattach's state API may" in said or "can't be changed" in said
        assert cluster.call("GET", path) == before

    def test_it_names_the_state_once_and_writes_no_other_status(self, cluster: RunningControlPlane, path: str) -> None:
        status = f"{path}/status"
        for forged in ({"outcome": "Succeeded"}, {"result": "1"}, {"counts": {"attempts": 7}}):
            said = refused(cluster, "PATCH", status, {"status": forged}, user=SERVER, groups=ADMIN)
            assert "may only set status.state of a TaskRun, once, and may not change any other status field" in said
        for message in ("refused", "refused again"):
            cluster.call("PATCH", status, {"status": {"state": {"message": message}}}, user=SERVER, groups=ADMIN)
        state = {"status": {"state": {"configMap": "a", "uid": "b", "message": None}}}
        cluster.call("PATCH", status, state, user=SERVER, groups=ADMIN)
        cluster.call("PATCH", status, {"status": {"result": "1"}})
        for change in (
            {"state": {"uid": "c"}},
            {"state": {"message": "m"}},
            {"state": None},
            {"result": None},
            {"result": "2"},
        ):
            said = refused(cluster, "PATCH", status, {"status": change}, user=SERVER, groups=ADMIN)
            assert "may only set status.state of a TaskRun, once, and may not change any other status field" in said
        cluster.call("PATCH", status, {"status": {"state": None}})
        cluster.call("PATCH", status, state, user=SERVER, groups=ADMIN)

    def test_it_neither_makes_nor_deletes_one(self, cluster: RunningControlPlane, path: str) -> None:
        assert "may not create or delete" in refused(cluster, "DELETE", path, user=SERVER, groups=ADMIN)
        assert "may not create or delete" in refused(
            cluster, "POST", TASKRUNS, a_taskrun("by-the-state-api"), user=SERVER, groups=ADMIN
        )

    def test_others_are_not_held_to_it(self, cluster: RunningControlPlane, path: str) -> None:
        cluster.call("PATCH", path, {"metadata": {"labels": {"by": "admin"}}}, user="admin", groups=ADMIN)
        cluster.call("PATCH", path, {"metadata": {"finalizers": None}})


class TestTaskRunsThatTheOperatorWrites:
    """Its service account may patch TaskRuns, and take its finalizer off; whatever RBAC gives it."""

    OURS = "reattach.dev/external-jobs"

    @pytest.fixture
    def path(self, cluster: RunningControlPlane) -> str:
        name = f"let-go-{secrets.token_hex(4)}"
        made = a_taskrun(name)
        made["metadata"] |= {"finalizers": ["example.com/theirs", self.OURS], "labels": {"team": "data"}}
        cluster.call("POST", TASKRUNS, made)
        return f"{TASKRUNS}/{name}"

    def test_its_finalizer_is_taken_off(self, cluster: RunningControlPlane, path: str) -> None:
        theirs = {"metadata": {"finalizers": ["example.com/theirs"]}}
        assert cluster.call("PATCH", path, theirs, user=OPERATOR, groups=ADMIN)["metadata"]["finalizers"] == [
            "example.com/theirs"
        ]
        both = {"metadata": {"finalizers": ["example.com/theirs", self.OURS]}}
        assert cluster.call("PATCH", path, both, user=OPERATOR, groups=ADMIN)["metadata"]["finalizers"] == [
            "example.com/theirs",
            self.OURS,
        ]

    @pytest.mark.parametrize(
        "patch",
        [
            {"metadata": {"finalizers": ["reattach.dev/external-jobs"]}},
            {"metadata": {"finalizers": None}},
            {"metadata": {"finalizers": ["example.com/theirs", "reattach.dev/external-jobs", "example.com/more"]}},
            {"metadata": {"finalizers": ["example.com/theirs", "reattach.dev/external-jobs", "reattach.dev/attempt"]}},
            {"metadata": {"labels": {"team": None}}},
            {"metadata": {"annotations": {"a": "b"}}},
            {"metadata": {"ownerReferences": [{**owner(), "kind": "Job", "controller": False}]}},
            {"spec": {"suspend": False}},
            {"spec": {"cancel": True}},
            {"spec": {"cleanup": {"onDelete": "Orphan"}}},
            {"spec": {"resolutions": [{"held": "StateLost", "action": "StartEmpty"}]}},
        ],
    )
    def test_nothing_else_of_it_is_changed(self, cluster: RunningControlPlane, path: str, patch: Object) -> None:
        before = cluster.call("GET", path)
        assert "Reattach's operator may" in refused(cluster, "PATCH", path, patch, user=OPERATOR, groups=ADMIN)
        assert cluster.call("GET", path) == before

    def test_its_status_is_the_operators_to_write(self, cluster: RunningControlPlane, path: str) -> None:
        status = {"status": {"counts": {"attempts": 1}, "state": {"configMap": "a", "uid": "b"}}}
        cluster.call("PATCH", f"{path}/status", status, user=OPERATOR, groups=ADMIN)
        gone = {"status": {"outcome": "Failed", "state": None}}
        assert (
            cluster.call("PATCH", f"{path}/status", gone, user=OPERATOR, groups=ADMIN)["status"]["outcome"] == "Failed"
        )

    def test_it_creates_none(self, cluster: RunningControlPlane) -> None:
        made = a_taskrun("by-the-operator")
        assert "may not create" in refused(cluster, "POST", TASKRUNS, made, user=OPERATOR, groups=ADMIN)

    @pytest.mark.parametrize(
        "outcome, ttl",
        [
            (None, {"succeededSeconds": 0, "failedSeconds": 0, "cancelledSeconds": 0}),
            ("Succeeded", {"failedSeconds": 0, "cancelledSeconds": 0}),
            ("Failed", {"succeededSeconds": 0, "cancelledSeconds": 0}),
            ("Cancelled", {"succeededSeconds": 0, "failedSeconds": 0}),
            ("Succeeded", {}),
            ("Succeeded", None),
        ],
    )
    def test_it_deletes_none_that_runs_or_has_no_ttl_for_its_outcome(
        self, cluster: RunningControlPlane, path: str, outcome: str | None, ttl: Object | None
    ) -> None:
        cluster.call("PATCH", path, {"spec": {"ttl": ttl}})
        found = cluster.call("PATCH", f"{path}/status", {"status": {"outcome": outcome}})
        said = refused(cluster, "DELETE", path, deletion_of(found), user=OPERATOR, groups=ADMIN)
        assert "may delete only a TaskRun that has ended, and only if spec.ttl is set for its outcome" in said
        cluster.call("DELETE", path)  # anybody else may

    @pytest.mark.parametrize(
        "outcome, field",
        [("Succeeded", "succeededSeconds"), ("Failed", "failedSeconds"), ("Cancelled", "cancelledSeconds")],
    )
    def test_it_deletes_an_ended_one_with_a_ttl_in_the_version_that_it_read(
        self, cluster: RunningControlPlane, path: str, outcome: str, field: str
    ) -> None:
        cluster.call("PATCH", path, {"spec": {"ttl": {field: 0}}})
        found = cluster.call("PATCH", f"{path}/status", {"status": {"outcome": outcome}})
        for missing in ("uid", "resourceVersion", "preconditions"):
            body = deletion_of(found)
            body["preconditions"].pop(missing, None)
            body.pop(missing, None)
            said = refused(cluster, "DELETE", path, body, user=OPERATOR, groups=ADMIN)
            assert "only with the preconditions uid and resourceVersion" in said
        cluster.call("DELETE", path, deletion_of(found), user=OPERATOR, groups=ADMIN)


def deletion_of(found: Object) -> Object:
    preconditions = {key: found["metadata"][key] for key in ("uid", "resourceVersion")}
    return {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": preconditions}


def test_with_watch_namespaces_the_policies_hold_there_alone(cluster: RunningControlPlane) -> None:
    """Another release may serve the others; but our own service accounts are held everywhere."""
    served, other = cluster.create_namespace("served"), cluster.create_namespace("other")
    forged = pod(labels={"reattach.dev/taskrun": "load"})
    without_key = copy.deepcopy(a_taskrun("a"))
    without_key["metadata"]["labels"] = {"kueue.x-k8s.io/multikueue-origin": "multikueue"}
    try:
        install_admission(cluster, served, watchNamespaces=[served])

        pods = f"/api/v1/namespaces/{other}/pods"
        wait_until(
            lambda: not objection(cluster, "POST", pods, forged, dryRun="All"),
            seconds=30,
            what="the policies leave the other namespace alone",
        )
        api = "/apis/reattach.dev/v1alpha1/namespaces"
        cluster.call("POST", f"{api}/{other}/taskruns", without_key, dryRun="All")
        assert "spec.submission.idempotencyKey" in refused(
            cluster, "POST", f"{api}/{served}/taskruns", without_key, dryRun="All"
        )
        assert "only Reattach's operator" in refused(
            cluster, "POST", f"/api/v1/namespaces/{served}/pods", forged, dryRun="All"
        )
        foreign = {"metadata": {"name": "a"}}
        for namespace in (served, other):
            path = f"/api/v1/namespaces/{namespace}/configmaps"
            assert "Reattach may write only" in refused(
                cluster, "POST", path, foreign, user=SERVER, groups=ADMIN, dryRun="All"
            )
    finally:
        install_admission(cluster)


def test_the_policies_are_well_typed(cluster: RunningControlPlane) -> None:
    """The API server checks the expressions against the schemas of what they match, and warns in the policy's status."""
    path = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies"

    def checked() -> list[Object]:
        found = cluster.call("GET", path)["items"]
        return found if all("typeChecking" in policy.get("status", {}) for policy in found) else []

    policies = wait_until(checked, seconds=30, what="the policies are type-checked")
    assert len(policies) == 11
    for policy in policies:
        assert not policy["status"]["typeChecking"].get("expressionWarnings"), policy["metadata"]["name"]


def test_writes_that_break_no_rule_are_skipped_by_match_conditions(cluster: RunningControlPlane) -> None:
    """The API server converts the objects three times more for a policy that it evaluates."""
    collection = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/reattach-reattach-"
    marked = pod("marked", labels={"reattach.dev/attempt": "1"})
    operator: Object = {"user": OPERATOR, "groups": ADMIN}
    server: Object = {"user": SERVER, "groups": ADMIN}
    try:
        # With this rule, a policy rejects whatever it evaluates. The API server sees the
        # policies in order, so waiting for the last one suffices.
        rules = {"spec": {"variables": None, "validations": [{"expression": "false", "message": "evaluated"}]}}
        for name in ("author", "configmaps", "operator-pods", "pods"):
            cluster.call("PATCH", f"{collection}{name}", rules)
        wait_until(lambda: "evaluated" in refused(cluster, "POST", PODS, marked), seconds=30, what="the rules act")
        controller = owner("cheap", cluster.call("POST", TASKRUNS, a_taskrun("cheap"))["metadata"]["uid"])
        attempt, state = an_attempt(controller), a_state(controller)
        path = f"{PODS}/{attempt['metadata']['name']}"
        cluster.call("POST", PODS, attempt, **operator)
        cluster.call("PATCH", f"{path}/status", {"status": {"phase": "Running"}})
        cluster.call("PATCH", path, {"spec": {"activeDeadlineSeconds": 9}}, **operator)
        cluster.call("PATCH", path, {"metadata": {"finalizers": None}}, **operator)
        path = f"{CONFIGMAPS}/{state['metadata']['name']}"
        cluster.call("POST", CONFIGMAPS, state, **server)
        cluster.call("PATCH", path, {"data": {"a": "c"}}, **server)
        cluster.call("PATCH", path, {"metadata": {"finalizers": None}}, **server)
    finally:
        install_admission(cluster)


def test_what_can_not_change_is_held_by_the_policy_alone(cluster: RunningControlPlane) -> None:
    """The schema says the same, field by field; here it does not, so that only the policy can have refused."""
    crd = yaml.safe_load(CRD.read_text())

    def without_rules(schema: Object) -> None:
        schema.pop("x-kubernetes-validations", None)
        for value in schema.values():
            if isinstance(value, dict):
                without_rules(value)

    without_rules(crd["spec"]["versions"][0]["schema"])
    first = a_taskrun("kept")
    first["spec"] |= {
        "retry": {"backoff": {"initialSeconds": 1}, "budgets": {"application": 1}},
        "completion": "Auto",
        "historyLimit": 5,
    }
    cluster.call("POST", TASKRUNS, first)

    try:
        cluster.apply(yaml.safe_dump(crd))
        wait_until(
            lambda: not objection(cluster, "POST", TASKRUNS, a_taskrun("dots.are.no.label"), dryRun="All"),
            seconds=30,
            what="the schema without rules is served",
        )
        path = f"{TASKRUNS}/kept"
        for patch, says in [
            ({"completion": "ExitCode"}, "spec.completion can't be changed"),
            ({"completion": None}, "spec.completion can't be changed"),
            ({"completion": None, "container": "task"}, "spec.container, spec.completion can't be changed"),
            ({"podRetention": "All"}, "spec.podRetention can't be changed"),
            ({"retry": {"backoff": {"initialSeconds": 2}}}, "spec.retry.backoff can't be changed"),
            ({"retry": {"backoff": None}}, "spec.retry.backoff can't be changed"),
            ({"retry": None}, "spec.retry.backoff can't be changed"),
            ({"retry": {"rules": []}}, "spec.retry.rules can't be changed"),
        ]:
            assert f"{says} after creation; create a new TaskRun" in refused(cluster, "PATCH", path, {"spec": patch}), (
                patch
            )
        for template in ({"spec": {"hostNetwork": True}}, {"metadata": {}}):
            said = refused(cluster, "PATCH", path, {"spec": {"template": template}})
            assert (
                "spec.template can't be changed unless the condition Suspended or Held of the TaskRun is True" in said
            )
        cluster.call(
            "PATCH", path, {"spec": {"retry": {"budgets": {"application": 2}}, "deadlines": {"lostSeconds": 5}}}
        )
        cluster.call("PATCH", path, {"spec": {"retry": {"budgets": None}, "deadlines": None, "suspend": False}})
    finally:
        cluster.apply(CRD.read_text())
