"""The Kubernetes API in memory behaves like a real one where submitting once depends on it."""

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
    ForbiddenError,
    InvalidError,
    NotFoundError,
)
from reattach.cluster.paths import TOKEN_REVIEWS, configmaps, core, namespace_of, pods, taskruns
from reattach.testing.memory_api import InMemoryCluster
from waiting import until

JSON = dict[str, Any]

ANOTHER = "00000000-0000-4000-8000-000000000000"


class ApiUnderTest:
    """The API in memory or the real one, with the calls of the tests."""

    def __init__(self, cluster: Cluster, namespace: str, control_plane: ControlPlane | None) -> None:
        self.cluster = cluster
        self.namespace = namespace
        self._control_plane = control_plane

    async def call(self, verb: str, path: str, *arguments: Any, **more: Any) -> JSON:
        found: JSON = json.loads(await getattr(self.cluster, verb)(path, *arguments, **more))
        return found

    async def taskrun(self, **metadata: Any) -> JSON:
        body = {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": {"name": "load", **metadata},
            "spec": {"template": {"spec": {"containers": [{"name": "task", "image": "task:1"}]}}},
        }
        return await self.call("create", taskruns(self.namespace), body)

    async def configmap(self, **metadata: Any) -> JSON:
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "state", **metadata}, "data": {"a": "1"}}
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
async def api(request: pytest.FixtureRequest) -> AsyncIterator[ApiUnderTest]:
    if request.param == "memory":
        in_memory = ApiUnderTest(InMemoryCluster(lambda: datetime.now(UTC)), "demo", None)
        await in_memory.cluster.create(core("namespaces", None), {"metadata": {"name": "demo"}})
        yield in_memory
        return
    control_plane: ControlPlane = request.getfixturevalue("control_plane")
    namespace = request.getfixturevalue("namespace")
    async with await Cluster.connect(str(control_plane.kubeconfig())) as cluster:
        yield ApiUnderTest(cluster, namespace, control_plane)


async def test_call_on_an_absent_object_raises_not_found(api: ApiUnderTest) -> None:
    for verb, *body in (("get",), ("replace", {"metadata": {"name": "none"}}), ("merge_patch", {}), ("delete",)):
        with pytest.raises(NotFoundError):
            await api.call(verb, configmaps(api.namespace, "none"), *body)


async def test_create_with_a_used_name_raises_already_exists(api: ApiUnderTest) -> None:
    await api.configmap()
    with pytest.raises(AlreadyExistsError):
        await api.configmap()


async def test_replace_with_an_older_version_is_a_conflict_and_changes_nothing(api: ApiUnderTest) -> None:
    first = await api.configmap()
    path = configmaps(api.namespace, "state")
    second = await api.call("replace", path, {**first, "data": {"a": "2"}})
    assert int(second["metadata"]["resourceVersion"]) > int(first["metadata"]["resourceVersion"])
    with pytest.raises(ConflictError) as caught:
        await api.call("replace", path, {**first, "data": {"a": "3"}})
    assert not isinstance(caught.value, AlreadyExistsError)
    assert (await api.call("get", path))["data"] == {"a": "2"}


async def test_write_without_a_change_keeps_the_version(api: ApiUnderTest) -> None:
    first = await api.configmap()
    again = await api.call("replace", configmaps(api.namespace, "state"), first)
    assert again["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]


async def test_replace_without_a_version_is_accepted(api: ApiUnderTest) -> None:
    await api.configmap()
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "state"}, "data": {"a": "9"}}
    assert (await api.call("replace", configmaps(api.namespace, "state"), body))["data"] == {"a": "9"}


async def test_patch_with_an_older_version_is_a_conflict_and_changes_nothing(api: ApiUnderTest) -> None:
    first = await api.taskrun()
    path = taskruns(api.namespace, "load")
    await api.call("merge_patch", path, {"metadata": {"labels": {"a": "1"}}})
    version = first["metadata"]["resourceVersion"]
    with pytest.raises(ConflictError):
        await api.call("merge_patch", path, {"metadata": {"resourceVersion": version, "labels": {"a": "2"}}})
    assert (await api.call("get", path))["metadata"]["labels"] == {"a": "1"}


async def test_write_with_the_uid_of_another_object_is_rejected(api: ApiUnderTest) -> None:
    await api.taskrun()
    first = await api.configmap()
    with pytest.raises(InvalidError, match="field is immutable"):
        await api.call("merge_patch", taskruns(api.namespace, "load"), {"metadata": {"uid": ANOTHER}})
    changed = {**first, "metadata": {**first["metadata"], "uid": ANOTHER}}
    with pytest.raises(ConflictError, match="UID in precondition"):
        await api.call("replace", configmaps(api.namespace, "state"), changed)


async def test_merge_patch_removes_by_null_and_replaces_lists(api: ApiUnderTest) -> None:
    await api.configmap(labels={"a": "1", "b": "2"}, finalizers=["reattach.dev/state", "reattach.dev/attempt"])
    path = configmaps(api.namespace, "state")
    patch = {"metadata": {"labels": {"a": None}, "finalizers": ["reattach.dev/state"]}}
    metadata = (await api.call("merge_patch", path, patch))["metadata"]
    assert (metadata["labels"], metadata["finalizers"]) == ({"b": "2"}, ["reattach.dev/state"])
    await api.call("merge_patch", path, {"metadata": {"finalizers": None}})


async def test_status_is_written_only_by_its_subresource(api: ApiUnderTest) -> None:
    await api.taskrun()
    path = taskruns(api.namespace, "load")
    state = {"state": {"configMap": "load-state", "uid": "u"}}
    assert "state" not in (await api.call("merge_patch", path, {"status": state})).get("status", {})
    both = {"status": state, "metadata": {"labels": {"a": "1"}}}
    written = await api.call("merge_patch", f"{path}/status", both)
    assert written["status"]["state"] == state["state"]
    assert "labels" not in written["metadata"]


async def test_generation_counts_only_changes_of_the_spec(api: ApiUnderTest) -> None:
    made = await api.taskrun()
    path = taskruns(api.namespace, "load")
    metadata = (await api.call("merge_patch", path, {"metadata": {"labels": {"a": "1"}}}))["metadata"]
    assert (made["metadata"]["generation"], metadata["generation"]) == (1, 1)
    assert (await api.call("merge_patch", path, {"spec": {"cancel": True}}))["metadata"]["generation"] == 2


async def test_finalizer_keeps_a_deleted_object_and_allows_no_new_finalizer(api: ApiUnderTest) -> None:
    await api.taskrun(finalizers=["reattach.dev/state"])
    path = taskruns(api.namespace, "load")
    await api.call("delete", path)
    metadata = (await api.call("get", path))["metadata"]
    assert metadata["deletionTimestamp"]
    with pytest.raises(InvalidError, match="no new finalizers can be added"):
        await api.call(
            "merge_patch", path, {"metadata": {"finalizers": ["reattach.dev/state", FINALIZER_EXTERNAL_JOBS]}}
        )
    await api.call("merge_patch", path, {"metadata": {"finalizers": None}})
    with pytest.raises(NotFoundError):
        await api.call("get", path)


async def test_foreground_deletion_adds_a_finalizer_until_a_later_deletion_replaces_the_policy(
    api: ApiUnderTest,
) -> None:
    uid = (await api.taskrun(finalizers=["reattach.dev/state"]))["metadata"]["uid"]
    # The garbage collector removes foregroundDeletion once no dependent is left that blocks it.
    owner = {"apiVersion": API_VERSION, "kind": KIND, "name": "load", "uid": uid, "blockOwnerDeletion": True}
    await api.configmap(ownerReferences=[owner], finalizers=["reattach.dev/state"])
    path = taskruns(api.namespace, "load")
    await api.call("delete", path, propagation_policy="Foreground")
    metadata = (await api.call("get", path))["metadata"]
    assert metadata["finalizers"] == ["reattach.dev/state", "foregroundDeletion"]
    assert metadata["deletionTimestamp"]
    await api.call("delete", path)
    assert (await api.call("get", path))["metadata"]["finalizers"] == ["reattach.dev/state", "foregroundDeletion"]
    await api.call("delete", path, propagation_policy="Background")
    assert (await api.call("get", path))["metadata"]["finalizers"] == ["reattach.dev/state"]
    for remaining in (path, configmaps(api.namespace, "state")):
        await api.call("merge_patch", remaining, {"metadata": {"finalizers": None}})


async def test_object_deleted_in_the_foreground_stays_until_its_finalizer_is_removed(api: ApiUnderTest) -> None:
    await api.taskrun()
    path = taskruns(api.namespace, "load")
    await api.call("delete", path, propagation_policy="Foreground")
    await api.call("merge_patch", path, {"metadata": {"finalizers": []}})
    with pytest.raises(NotFoundError):
        await api.call("get", path)


async def test_ending_namespace_accepts_changes_and_no_new_object(api: ApiUnderTest) -> None:
    await api.taskrun()
    await api.configmap()
    await api.call("delete", namespace_of(api.namespace))
    found = await api.call("get", namespace_of(api.namespace), metadata_only=True)
    assert found["metadata"]["deletionTimestamp"]
    with pytest.raises(ForbiddenError, match="because it is being terminated"):
        await api.pod()
    await api.call("merge_patch", taskruns(api.namespace, "load"), {"spec": {"cancel": True}})
    await api.call("delete", configmaps(api.namespace, "state"))


async def test_delete_with_a_failed_precondition_is_a_conflict(api: ApiUnderTest) -> None:
    made = await api.configmap()
    path = configmaps(api.namespace, "state")
    for precondition in ({"uid": ANOTHER}, {"resource_version": "1"}):
        with pytest.raises(ConflictError):
            await api.call("delete", path, **precondition)
    await api.call("delete", path, uid=made["metadata"]["uid"])
    with pytest.raises(NotFoundError):
        await api.call("get", path)


async def test_deleted_pod_with_a_node_stays_until_its_kubelet_deletes_it(api: ApiUnderTest) -> None:
    await api.pod(bound=True)
    path = pods(api.namespace, "pod")
    metadata = (await api.call("delete", path))["metadata"]
    assert (bool(metadata["deletionTimestamp"]), metadata["deletionGracePeriodSeconds"]) == (True, 30)
    await api.call("delete", path, grace_period_seconds=0)
    with pytest.raises(NotFoundError):
        await api.call("get", path)


async def test_deleted_pod_without_a_node_is_removed_at_once(api: ApiUnderTest) -> None:
    await api.pod()
    await api.call("delete", pods(api.namespace, "pod"))
    with pytest.raises(NotFoundError):
        await api.call("get", pods(api.namespace, "pod"))


async def test_pod_token_identifies_the_pod_and_ends_with_it(api: ApiUnderTest) -> None:
    pod = await api.pod()
    token = api.token(pod)
    status = await api.review(token)
    extra = status["user"]["extra"]
    assert status["authenticated"] is True
    assert status["audiences"] == [TOKEN_AUDIENCE]
    assert status["user"]["username"].startswith(f"system:serviceaccount:{api.namespace}:")
    assert extra["authentication.kubernetes.io/pod-name"] == ["pod"]
    assert extra["authentication.kubernetes.io/pod-uid"] == [pod["metadata"]["uid"]]
    await api.call("delete", pods(api.namespace, "pod"))
    # A real API server caches its response for some seconds.
    await until(lambda: is_refused(api, token), seconds=60, what="the token ended with its pod", every=0.5)
    assert not (await api.review("not.a.token")).get("authenticated")


async def is_refused(api: ApiUnderTest, token: str) -> bool:
    return not (await api.review(token)).get("authenticated")


async def test_list_is_filtered_by_labels(api: ApiUnderTest) -> None:
    await api.configmap(labels={"team": "a"})
    path = configmaps(api.namespace)
    found = await api.call("list", path, labelSelector="team=a")
    assert [each["metadata"]["name"] for each in found["items"]] == ["state"]
    assert (await api.call("list", path, labelSelector="team=b"))["items"] == []


async def test_get_of_metadata_only_returns_no_data(api: ApiUnderTest) -> None:
    await api.configmap(annotations={"note": "x"})
    found = await api.call("get", configmaps(api.namespace, "state"), metadata_only=True)
    assert found["metadata"]["annotations"] == {"note": "x"}
    assert "data" not in found


async def test_write_with_another_name_than_the_path_is_rejected(api: ApiUnderTest) -> None:
    await api.configmap()
    with pytest.raises((BadRequestError, InvalidError)) as caught:
        await api.call("replace", configmaps(api.namespace, "state"), {"metadata": {"name": "other"}})
    assert isinstance(caught.value, ClusterError)


def test_path_of_a_pod_contains_its_namespace_and_name() -> None:
    assert core("pods", "demo", "pod") == "/api/v1/namespaces/demo/pods/pod"
