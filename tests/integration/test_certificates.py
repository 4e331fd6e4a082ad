"""The state API's certificates on a real API server, with the rights that the chart gives to the operator."""

import asyncio
import base64
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
import yaml

from controlplane import ControlPlane, ControlPlaneError, helm_template
from reattach.api.names import ANNOTATION_CA
from reattach.cluster import Cluster, ForbiddenError, paths
from reattach.pki.ca import certificates_in, is_issued_by
from reattach.pki.certificates import CertificateSettings, distribute, ensure
from reattach.pki.rotation import ANNOTATION_ROTATE

NOW = datetime.now(UTC)
MINUTE = timedelta(minutes=1)


@pytest.fixture
def settings(namespace: str) -> CertificateSettings:
    return CertificateSettings(
        namespace=namespace,
        ca_secret="reattach-ca",
        tls_secret="reattach-server-tls",
        dns_names=(f"reattach-server.{namespace}.svc",),
        watch_namespaces=(namespace,),
    )


@pytest.fixture
async def operator(control_plane: ControlPlane, namespace: str) -> AsyncIterator[Cluster]:
    """The API server as the operator's service account sees it, installed for this namespace."""
    rendered = helm_template(
        "operator-rbac.yaml", "serviceaccounts.yaml", values={"watchNamespaces": [namespace]}, namespace=namespace
    )
    for found in yaml.safe_load_all(rendered):
        found["metadata"].setdefault("namespace", namespace)
        control_plane.apply(yaml.safe_dump(found))
    kubeconfig = str(control_plane.service_account_kubeconfig(namespace, "reattach-operator"))
    async with await Cluster.connect(kubeconfig) as cluster:
        yield cluster


def secret(control_plane: ControlPlane, namespace: str, name: str, key: str) -> bytes:
    found = control_plane.call("GET", f"/api/v1/namespaces/{namespace}/secrets/{name}")
    return base64.b64decode(found["data"][key])


def add_pod(control_plane: ControlPlane, namespace: str, name: str, phase: str = "Running") -> str:
    path = f"/api/v1/namespaces/{namespace}/pods"
    metadata = {"name": name, "labels": {"reattach.dev/taskrun": "nightly"}, "annotations": {ANNOTATION_CA: "old"}}
    spec = {"containers": [{"name": "task", "image": "registry.example/task:1"}]}
    control_plane.call("POST", path, {"metadata": metadata, "spec": spec})
    control_plane.call("PATCH", f"{path}/{name}/status", {"status": {"phase": phase}})
    return f"{path}/{name}"


async def test_five_operators_at_once_agree_on_one_ca(
    control_plane: ControlPlane, operator: Cluster, settings: CertificateSettings
) -> None:
    bundles = await asyncio.gather(*(ensure(operator, operator, settings, NOW) for _ in range(5)))
    assert len({bundle.pem for bundle in bundles}) == 1
    (authority,) = certificates_in(bundles[0].pem.encode())
    (serving,) = certificates_in(secret(control_plane, settings.namespace, settings.tls_secret, "tls.crt"))
    assert is_issued_by(serving, authority)


async def test_a_rotation_waits_for_live_pods_and_passes_over_those_that_are_over(
    control_plane: ControlPlane, operator: Cluster, settings: CertificateSettings
) -> None:
    await ensure(operator, operator, settings, NOW)
    namespace = settings.namespace
    live = add_pod(control_plane, namespace, "nightly-2")
    over = add_pod(control_plane, namespace, "nightly-1", "Failed")
    path = f"/api/v1/namespaces/{namespace}/secrets/{settings.ca_secret}"
    control_plane.call("PATCH", path, {"metadata": {"annotations": {ANNOTATION_ROTATE: "now"}}})
    before = secret(control_plane, namespace, settings.tls_secret, "tls.crt")

    bundle = await ensure(operator, operator, settings, NOW)
    assert len(certificates_in(bundle.pem.encode())) == 2
    assert control_plane.call("GET", live)["metadata"]["annotations"][ANNOTATION_CA] == bundle.pem
    assert control_plane.call("GET", over)["metadata"]["annotations"][ANNOTATION_CA] == "old"
    for minutes in (1, 4):
        await ensure(operator, operator, settings, NOW + minutes * MINUTE)
        assert secret(control_plane, namespace, settings.tls_secret, "tls.crt") == before
    await ensure(operator, operator, settings, NOW + 6 * MINUTE)
    assert secret(control_plane, namespace, settings.tls_secret, "tls.crt") != before


async def test_a_pod_made_anew_under_the_same_name_is_not_written_by_mistake(
    control_plane: ControlPlane, operator: Cluster, settings: CertificateSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = add_pod(control_plane, settings.namespace, "nightly-1")
    original = Cluster.merge_patch

    async def late(self: Cluster, where: str, body: dict[str, object]) -> bytes:
        control_plane.call("DELETE", path, gracePeriodSeconds=0)
        add_pod(control_plane, settings.namespace, "nightly-1")
        return await original(self, where, body)

    monkeypatch.setattr(Cluster, "merge_patch", late)
    assert await distribute(operator, operator, settings.watch_namespaces, "new") == 0
    assert control_plane.call("GET", path)["metadata"]["annotations"][ANNOTATION_CA] == "old"


async def test_the_operator_may_not_read_any_other_secret(
    control_plane: ControlPlane, operator: Cluster, settings: CertificateSettings
) -> None:
    control_plane.call("POST", f"/api/v1/namespaces/{settings.namespace}/secrets", {"metadata": {"name": "other"}})
    for refused in (
        operator.get(paths.secrets(settings.namespace, "other")),
        operator.list(paths.secrets(settings.namespace)),
        operator.delete(paths.secrets(settings.namespace, settings.ca_secret)),
    ):
        with pytest.raises(ForbiddenError):
            await refused


async def test_in_a_namespace_that_is_not_served_the_operator_may_do_nothing(
    control_plane: ControlPlane, operator: Cluster
) -> None:
    for path in (paths.pods("default"), paths.configmaps("default"), paths.taskruns("default"), paths.pods(None)):
        with pytest.raises(ForbiddenError):
            await operator.list(path)
    with pytest.raises(ControlPlaneError, match="404"):
        control_plane.call("GET", "/api/v1/namespaces/default/secrets/reattach-ca")
