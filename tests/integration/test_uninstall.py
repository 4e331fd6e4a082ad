"""`reattach-operator release` against a real API server, with the rights that the chart gives to the Job that runs it."""

import argparse
import secrets
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from controlplane import ControlPlane, ControlPlaneError, helm_template
from reattach import uninstall
from reattach.api.names import FINALIZER_ATTEMPT, FINALIZER_EXTERNAL_JOBS, FINALIZER_STATE
from reattach.process.options import add_common_arguments, add_release_arguments, release_options_of

FOREIGN = "example.com/other"
Object = dict[str, Any]


class Site:
    """A release's namespace and a served one, with objects that carry finalizers."""

    def __init__(self, control_plane: ControlPlane, served: str) -> None:
        self.control_plane, self.served = control_plane, served
        self.own = control_plane.create_namespace("own")
        # The Job's rights and its policy, under the chart's names, in this namespace.
        templates = ("release-job.yaml", "admission-release.yaml")
        rendered = helm_template(*templates, values={"watchNamespaces": [served]}, namespace=self.own)
        self.policies: list[Object] = []
        for found in yaml.safe_load_all(rendered):
            if found["kind"] == "Job":
                self.job = found
                continue
            if found["kind"].startswith("Validating"):
                self.policies.append(found)
            else:
                found["metadata"].setdefault("namespace", self.own)
            control_plane.apply(yaml.safe_dump(found))

    def add(self, path: str, name: str, *finalizers: str, **more: Any) -> Object:
        metadata = {"name": name, "finalizers": list(finalizers), **more.pop("metadata", {})}
        return self.control_plane.call("POST", path, {"metadata": metadata, **more})

    def add_pod(self, name: str, *finalizers: str, namespace: str | None = None, **metadata: Any) -> Object:
        path = f"/api/v1/namespaces/{namespace or self.served}/pods"
        spec = {"containers": [{"name": "task", "image": "registry.example/task:1"}]}
        return self.add(path, name, *finalizers, spec=spec, metadata=metadata)

    def add_taskrun(self, name: str, *finalizers: str) -> Object:
        template = {"spec": {"containers": [{"name": "task", "image": "registry.example/task:1"}]}}
        path = f"/apis/reattach.dev/v1alpha1/namespaces/{self.served}/taskruns"
        body = {"apiVersion": "reattach.dev/v1alpha1", "kind": "TaskRun", "spec": {"template": template}}
        return self.add(path, name, *finalizers, **body)

    def add_secret(self, name: str) -> None:
        self.add(f"/api/v1/namespaces/{self.own}/secrets", name)

    def finalizers(self, path: str) -> list[str]:
        metadata = self.control_plane.call("GET", path)["metadata"]
        found: list[str] = metadata.get("finalizers", [])
        return found

    def is_gone(self, path: str) -> bool:
        try:
            self.control_plane.call("GET", path)
        except ControlPlaneError as error:
            return str(error).startswith("404")
        return False

    def delete(self, path: str) -> None:
        self.control_plane.call("DELETE", path, gracePeriodSeconds=0)

    async def run(self, **changed: Any) -> int:
        """With the arguments of the chart's Job, as its service account."""
        parser = argparse.ArgumentParser()
        parser.add_argument("command")
        add_common_arguments(parser, {})
        add_release_arguments(parser)
        arguments = parser.parse_args(self.job["spec"]["template"]["spec"]["containers"][0]["args"])
        arguments.kubeconfig = str(self.control_plane.service_account_kubeconfig(self.own, "reattach-release"))
        for name, value in changed.items():
            setattr(arguments, name, value)
        return await uninstall.run(arguments.kubeconfig, release_options_of(arguments))


@pytest.fixture
def site(control_plane: ControlPlane, namespace: str) -> Iterator[Site]:
    made = Site(control_plane, namespace)
    yield made
    control_plane.kubectl("delete", "--filename=-", stdin=yaml.safe_dump_all(made.policies))
    control_plane.delete_namespace(made.own)


async def test_all_our_finalizers_go_and_no_other(site: Site) -> None:
    site.add_taskrun("nightly", FINALIZER_EXTERNAL_JOBS, FOREIGN)
    site.add_pod("nightly-1", FINALIZER_ATTEMPT, FOREIGN, labels={"reattach.dev/taskrun": "nightly"})
    site.add(f"/api/v1/namespaces/{site.served}/configmaps", "nightly-state", FOREIGN, FINALIZER_STATE)
    assert await site.run() == 0
    for path in (
        f"/apis/reattach.dev/v1alpha1/namespaces/{site.served}/taskruns/nightly",
        f"/api/v1/namespaces/{site.served}/pods/nightly-1",
        f"/api/v1/namespaces/{site.served}/configmaps/nightly-state",
    ):
        assert site.finalizers(path) == [FOREIGN]
        site.control_plane.call("PATCH", path, {"metadata": {"finalizers": None}})


async def test_release_leaves_the_records_of_orphaned_jobs_alone(site: Site) -> None:
    path = f"/api/v1/namespaces/{site.served}/configmaps"
    labels = {"reattach.dev/orphans": "load"}
    before = site.add(path, "load-0d1f2-orphans", metadata={"labels": labels}, data={"record": "{}"})
    assert await site.run() == 0
    assert site.control_plane.call("GET", f"{path}/load-0d1f2-orphans") == before


async def test_what_waited_for_its_deletion_is_gone_afterwards(site: Site) -> None:
    site.add_pod("nightly-1", FINALIZER_ATTEMPT, labels={"reattach.dev/taskrun": "nightly"})
    site.delete(f"/api/v1/namespaces/{site.served}/pods/nightly-1")
    assert not site.is_gone(f"/api/v1/namespaces/{site.served}/pods/nightly-1")
    assert await site.run() == 0
    assert site.is_gone(f"/api/v1/namespaces/{site.served}/pods/nightly-1")


async def test_a_pod_that_lost_our_labels_is_let_go_too(site: Site) -> None:
    site.add_pod("nightly-1", FINALIZER_ATTEMPT)
    assert await site.run() == 0
    assert site.finalizers(f"/api/v1/namespaces/{site.served}/pods/nightly-1") == []


async def test_a_namespace_that_is_not_served_is_left_alone(site: Site) -> None:
    site.add_pod("nightly-1", FINALIZER_ATTEMPT, namespace=site.own)
    assert await site.run() == 0
    path = f"/api/v1/namespaces/{site.own}/pods/nightly-1"
    assert site.finalizers(path) == [FINALIZER_ATTEMPT]
    site.control_plane.call("PATCH", path, {"metadata": {"finalizers": None}})


async def test_more_objects_than_fit_on_a_page_are_all_let_go(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reattach.runtime.pager._FIRST_PAGE", 2)
    monkeypatch.setattr("reattach.runtime.pager._PAGE", 3)
    for number in range(8):
        site.add(f"/api/v1/namespaces/{site.served}/configmaps", f"state-{number}", FINALIZER_STATE)
    assert await site.run() == 0
    for number in range(8):
        assert site.finalizers(f"/api/v1/namespaces/{site.served}/configmaps/state-{number}") == []


async def test_the_deployments_are_deleted_and_nothing_is_let_go_while_one_of_their_pods_lives(site: Site) -> None:
    labels = {
        "app.kubernetes.io/name": "reattach",
        "app.kubernetes.io/instance": "reattach",
        "app.kubernetes.io/component": "operator",
    }
    template = {
        "metadata": {"labels": labels},
        "spec": {"containers": [{"name": "operator", "image": "registry.example/reattach:1"}]},
    }
    deployments = f"/apis/apps/v1/namespaces/{site.own}/deployments"
    spec = {"selector": {"matchLabels": labels}, "template": template}
    site.add(deployments, "reattach-operator", spec=spec)
    site.add_pod("reattach-operator-1", namespace=site.own, labels=labels)
    site.add_pod("nightly-1", FINALIZER_ATTEMPT)

    assert await site.run(timeout_seconds=1.0) == 1
    assert site.is_gone(f"{deployments}/reattach-operator")
    assert site.finalizers(f"/api/v1/namespaces/{site.served}/pods/nightly-1") == [FINALIZER_ATTEMPT]

    site.delete(f"/api/v1/namespaces/{site.own}/pods/reattach-operator-1")
    assert await site.run() == 0
    assert site.finalizers(f"/api/v1/namespaces/{site.served}/pods/nightly-1") == []


async def test_pods_that_do_not_end_are_named(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    labels = {
        "app.kubernetes.io/name": "reattach",
        "app.kubernetes.io/instance": "reattach",
        "app.kubernetes.io/component": "server",
    }
    site.add_pod("reattach-server-1", namespace=site.own, labels=labels)
    assert await site.run(timeout_seconds=0.1) == 1
    assert "no finalizer was removed, because these did not end within 0.1 s: pod reattach-server-1" in caplog.text


async def test_the_secrets_and_the_lease_go_with_it_and_others_stay(site: Site) -> None:
    for name in ("reattach-ca", "reattach-server-tls", "other"):
        site.add_secret(name)
    site.add(f"/apis/coordination.k8s.io/v1/namespaces/{site.own}/leases", "reattach-operator", spec={})
    assert await site.run() == 0
    assert site.is_gone(f"/api/v1/namespaces/{site.own}/secrets/reattach-ca")
    assert site.is_gone(f"/api/v1/namespaces/{site.own}/secrets/reattach-server-tls")
    assert site.is_gone(f"/apis/coordination.k8s.io/v1/namespaces/{site.own}/leases/reattach-operator")
    assert not site.is_gone(f"/api/v1/namespaces/{site.own}/secrets/other")


async def test_a_second_run_finds_nothing_to_do_and_succeeds(site: Site) -> None:
    site.add_pod("nightly-1", FINALIZER_ATTEMPT)
    assert await site.run() == 0
    assert await site.run() == 0


async def test_an_object_that_changes_meanwhile_is_looked_at_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is patched is exactly what was seen: a finalizer that somebody adds meanwhile stays."""
    from reattach.cluster import Cluster

    site.add_pod("nightly-1", FINALIZER_ATTEMPT)
    path = f"/api/v1/namespaces/{site.served}/pods/nightly-1"
    original, touched = Cluster.merge_patch, []

    async def late(self: Cluster, where: str, body: Any, **query: Any) -> bytes:
        if not touched:
            touched.append(where)
            site.control_plane.call("PATCH", path, {"metadata": {"finalizers": [FINALIZER_ATTEMPT, FOREIGN]}})
        return await original(self, where, body, **query)

    monkeypatch.setattr(Cluster, "merge_patch", late)
    assert await site.run() == 0
    assert touched == [path]
    assert site.finalizers(path) == [FOREIGN]
    site.control_plane.call("PATCH", path, {"metadata": {"finalizers": None}})


async def test_an_api_server_that_refuses_is_an_error_not_a_success(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    nobody = f"nobody-{secrets.token_hex(4)}"
    parser = argparse.ArgumentParser()
    add_common_arguments(parser, {})
    add_release_arguments(parser)
    kubeconfig = str(site.control_plane.kubeconfig(nobody))
    arguments = parser.parse_args([f"--kubeconfig={kubeconfig}"])
    assert await uninstall.run(arguments.kubeconfig, release_options_of(arguments)) == 1
    assert "403" in caplog.text
