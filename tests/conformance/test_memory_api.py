"""The stand-in for the Kubernetes API answers as a real API server does, in everything that submitting once rests on."""

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest

from controlplane import ControlPlane
from reattach.api.names import API_VERSION, FINALIZER_EXTERNAL_JOBS, KIND, TOKEN_AUDIENCE
from reattach.cluster import (
    AlreadyExistsError,
    BadRequestError,
    Cluster,
    ClusterError,
    ConflictError,
    InvalidError,
    NotFoundError,
)
from reattach.cluster.paths import TOKEN_REVIEWS, configmaps, core, pods, taskruns
from reattach.testing.memory_api import InMemoryCluster
from waiting import until

JSON = dict[str, Any]

ANOTHER = "00000000-0000-4000-8000-000000000000"


class Side:
    """One of the two, with what a test does to it. `token` gives a pod token."""

    def __init__(self, cluster: Cluster, namespace: str, control_plane: ControlPlane | None) -> None:
        self.cluster = cluster
        self.namespace = namespace
        self._control_plane = control_plane

    async def call(self, verb: str, path: str, *arguments: Any, **more: Any) -> JSON:
        found: JSON = json.loads(await getattr(self.cluster, verb)(path, *arguments, **more))
        return found

    async def taskrun(self, **about: Any) -> JSON:
        body = {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": {"name": "load", **about},
            "spec": {"template": {"spec": {"containers": [{"name": "task", "image": "task:1"}]}}},
        }
        return await self.call("create", taskruns(self.namespace), body)

    async def configmap(self, **about: Any) -> JSON:
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "state", **about}, "data": {"a": "1"}}
        return await self.call("create", configmaps(self.namespace), body)

    async def pod(self, *, bound: bool = False) -> JSON:
        spec = {"containers": [{"name": "task", "image": "task:1"}]}
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": spec}
        made = await self.call("create", pods(self.namespace), body)
        return await self._bind(made) if bound else made

    def token(self, pod: JSON) -> str:
        if isinstance(self.cluster, InMemoryCluster):
            return self.cluster.token_of(pod)
        assert self._control_plane is not None
        return self._control_plane.token(self.namespace, audiences=[TOKEN_AUDIENCE], pod=pod)

    async def review(self, token: str) -> JSON:
        spec = {"token": token, "audiences": [TOKEN_AUDIENCE]}
        review = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": spec}
        status: JSON = (await self.call("create", TOKEN_REVIEWS, review))["status"]
        return status

    async def _bind(self, pod: JSON) -> JSON:
        path = pods(self.namespace, pod["metadata"]["name"])
        if self._control_plane is None:
            return await self.call("replace", path, {**pod, "spec": {**pod["spec"], "nodeName": "puppet"}})
        target = {"apiVersion": "v1", "kind": "Node", "name": "puppet"}
        binding = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "pod"}, "target": target}
        self._control_plane.call("POST", f"{path}/binding", binding)
        return await self.call("get", path)


@pytest.fixture(params=["memory", "real"])
async def side(request: pytest.FixtureRequest) -> AsyncIterator[Side]:
    if request.param == "memory":
        yield Side(InMemoryCluster(lambda: datetime.now(UTC)), "demo", None)
        return
    control_plane: ControlPlane = request.getfixturevalue("control_plane")
    namespace = request.getfixturevalue("namespace")
    async with await Cluster.connect(str(control_plane.kubeconfig())) as cluster:
        yield Side(cluster, namespace, control_plane)


async def test_what_is_absent_is_not_found(side: Side) -> None:
    for verb, *body in (("get",), ("replace", {"metadata": {"name": "none"}}), ("merge_patch", {}), ("delete",)):
        with pytest.raises(NotFoundError):
            await side.call(verb, configmaps(side.namespace, "none"), *body)


async def test_a_name_is_given_once(side: Side) -> None:
    await side.configmap()
    with pytest.raises(AlreadyExistsError):
        await side.configmap()


async def test_a_replace_with_an_older_version_is_a_conflict_and_changes_nothing(side: Side) -> None:
    first = await side.configmap()
    path = configmaps(side.namespace, "state")
    second = await side.call("replace", path, {**first, "data": {"a": "2"}})
    assert int(second["metadata"]["resourceVersion"]) > int(first["metadata"]["resourceVersion"])
    with pytest.raises(ConflictError) as caught:
        await side.call("replace", path, {**first, "data": {"a": "3"}})
    assert not isinstance(caught.value, AlreadyExistsError)
    assert (await side.call("get", path))["data"] == {"a": "2"}


async def test_a_write_that_changes_nothing_keeps_the_version(side: Side) -> None:
    first = await side.configmap()
    again = await side.call("replace", configmaps(side.namespace, "state"), first)
    assert again["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]


async def test_a_replace_without_a_version_is_taken(side: Side) -> None:
    await side.configmap()
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "state"}, "data": {"a": "9"}}
    assert (await side.call("replace", configmaps(side.namespace, "state"), body))["data"] == {"a": "9"}


async def test_a_patch_with_an_older_version_is_a_conflict_and_changes_nothing(side: Side) -> None:
    first = await side.taskrun()
    path = taskruns(side.namespace, "load")
    await side.call("merge_patch", path, {"metadata": {"labels": {"a": "1"}}})
    version = first["metadata"]["resourceVersion"]
    with pytest.raises(ConflictError):
        await side.call("merge_patch", path, {"metadata": {"resourceVersion": version, "labels": {"a": "2"}}})
    assert (await side.call("get", path))["metadata"]["labels"] == {"a": "1"}


async def test_an_object_is_never_taken_for_another_of_its_name(side: Side) -> None:
    await side.taskrun()
    first = await side.configmap()
    with pytest.raises(InvalidError, match="field is immutable"):
        await side.call("merge_patch", taskruns(side.namespace, "load"), {"metadata": {"uid": ANOTHER}})
    changed = {**first, "metadata": {**first["metadata"], "uid": ANOTHER}}
    with pytest.raises(ConflictError, match="UID in precondition"):
        await side.call("replace", configmaps(side.namespace, "state"), changed)


async def test_a_merge_patch_removes_by_null_and_replaces_lists(side: Side) -> None:
    await side.configmap(labels={"a": "1", "b": "2"}, finalizers=["reattach.dev/state", "reattach.dev/attempt"])
    path = configmaps(side.namespace, "state")
    patch = {"metadata": {"labels": {"a": None}, "finalizers": ["reattach.dev/state"]}}
    about = (await side.call("merge_patch", path, patch))["metadata"]
    assert (about["labels"], about["finalizers"]) == ({"b": "2"}, ["reattach.dev/state"])
    await side.call("merge_patch", path, {"metadata": {"finalizers": None}})


async def test_status_is_written_by_its_subresource_alone(side: Side) -> None:
    await side.taskrun()
    path = taskruns(side.namespace, "load")
    state = {"state": {"configMap": "load-state", "uid": "u"}}
    assert "state" not in (await side.call("merge_patch", path, {"status": state})).get("status", {})
    both = {"status": state, "metadata": {"labels": {"a": "1"}}}
    written = await side.call("merge_patch", f"{path}/status", both)
    assert written["status"] == state
    assert "labels" not in written["metadata"]


async def test_a_generation_counts_what_was_asked_for(side: Side) -> None:
    made = await side.taskrun()
    path = taskruns(side.namespace, "load")
    about = (await side.call("merge_patch", path, {"metadata": {"labels": {"a": "1"}}}))["metadata"]
    assert (made["metadata"]["generation"], about["generation"]) == (1, 1)
    assert (await side.call("merge_patch", path, {"spec": {"cancel": True}}))["metadata"]["generation"] == 2


async def test_a_finalizer_keeps_what_is_deleted_and_takes_no_other_in(side: Side) -> None:
    await side.taskrun(finalizers=["reattach.dev/state"])
    path = taskruns(side.namespace, "load")
    await side.call("delete", path)
    about = (await side.call("get", path))["metadata"]
    assert about["deletionTimestamp"]
    with pytest.raises(InvalidError, match="no new finalizers can be added"):
        await side.call(
            "merge_patch", path, {"metadata": {"finalizers": ["reattach.dev/state", FINALIZER_EXTERNAL_JOBS]}}
        )
    await side.call("merge_patch", path, {"metadata": {"finalizers": None}})
    with pytest.raises(NotFoundError):
        await side.call("get", path)


async def test_a_delete_heeds_its_preconditions(side: Side) -> None:
    made = await side.configmap()
    path = configmaps(side.namespace, "state")
    for precondition in ({"uid": ANOTHER}, {"resource_version": "1"}):
        with pytest.raises(ConflictError):
            await side.call("delete", path, **precondition)
    await side.call("delete", path, uid=made["metadata"]["uid"])
    with pytest.raises(NotFoundError):
        await side.call("get", path)


async def test_a_pod_with_a_node_stays_until_its_kubelet_lets_go(side: Side) -> None:
    await side.pod(bound=True)
    path = pods(side.namespace, "pod")
    about = (await side.call("delete", path))["metadata"]
    assert (bool(about["deletionTimestamp"]), about["deletionGracePeriodSeconds"]) == (True, 30)
    await side.call("delete", path, grace_period_seconds=0)
    with pytest.raises(NotFoundError):
        await side.call("get", path)


async def test_a_pod_without_a_node_goes_at_once(side: Side) -> None:
    await side.pod()
    await side.call("delete", pods(side.namespace, "pod"))
    with pytest.raises(NotFoundError):
        await side.call("get", pods(side.namespace, "pod"))


async def test_a_pod_token_tells_the_pod_and_ends_with_it(side: Side) -> None:
    pod = await side.pod()
    token = side.token(pod)
    status = await side.review(token)
    extra = status["user"]["extra"]
    assert status["authenticated"] is True
    assert status["audiences"] == [TOKEN_AUDIENCE]
    assert status["user"]["username"].startswith(f"system:serviceaccount:{side.namespace}:")
    assert extra["authentication.kubernetes.io/pod-name"] == ["pod"]
    assert extra["authentication.kubernetes.io/pod-uid"] == [pod["metadata"]["uid"]]
    await side.call("delete", pods(side.namespace, "pod"))
    # A real API server remembers for some seconds what it answered.
    await until(lambda: is_refused(side, token), seconds=60, what="the token ended with its pod", every=0.5)
    assert not (await side.review("made.up.token")).get("authenticated")


async def is_refused(side: Side, token: str) -> bool:
    return not (await side.review(token)).get("authenticated")


async def test_a_list_is_cut_by_its_labels(side: Side) -> None:
    await side.configmap(labels={"team": "a"})
    path = configmaps(side.namespace)
    found = await side.call("list", path, labelSelector="team=a")
    assert [each["metadata"]["name"] for each in found["items"]] == ["state"]
    assert (await side.call("list", path, labelSelector="team=b"))["items"] == []


async def test_metadata_alone_can_be_read(side: Side) -> None:
    await side.configmap(annotations={"note": "x"})
    found = await side.call("get", configmaps(side.namespace, "state"), metadata_only=True)
    assert found["metadata"]["annotations"] == {"note": "x"}
    assert "data" not in found


async def test_a_name_in_the_body_must_be_that_of_the_path(side: Side) -> None:
    await side.configmap()
    with pytest.raises((BadRequestError, InvalidError)) as caught:
        await side.call("replace", configmaps(side.namespace, "state"), {"metadata": {"name": "other"}})
    assert isinstance(caught.value, ClusterError)


def test_where_things_are_is_what_the_memory_reads_from_a_path() -> None:
    assert core("pods", "demo", "pod") == "/api/v1/namespaces/demo/pods/pod"
