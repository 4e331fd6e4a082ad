"""The state API's certificates on a real API server, with the rights that the chart gives to the operator."""

import asyncio
import base64
import contextlib
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from controlplane import ControlPlane, ControlPlaneError, helm_template
from operator_process import Operator
from ports import free_port
from reattach.api.names import ANNOTATION_CA
from reattach.cluster import Cluster, ForbiddenError, paths
from reattach.pki.ca import certificates_in, is_issued_by
from reattach.pki.certificates import CertificateSettings, distribute, ensure
from reattach.pki.rotation import ANNOTATION_ROTATE
from waiting import wait_until

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
def kubeconfig(control_plane: ControlPlane, namespace: str) -> str:
    """Kubeconfig of the operator's service account, with the rights of the chart for this namespace."""
    rendered = helm_template(
        "operator-rbac.yaml", "serviceaccounts.yaml", values={"watchNamespaces": [namespace]}, namespace=namespace
    )
    for found in yaml.safe_load_all(rendered):
        found["metadata"].setdefault("namespace", namespace)
        control_plane.apply(yaml.safe_dump(found))
    return str(control_plane.service_account_kubeconfig(namespace, "reattach-operator"))


@pytest.fixture
async def operator(kubeconfig: str) -> AsyncIterator[Cluster]:
    """The API server as the operator's service account sees it, installed for this namespace."""
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


# -- a pod that resists ----------------------------------------------------------------------------

OVERLAP, CHECK = 3, 1
"""Seconds; instead of five minutes each."""


@pytest.fixture
def process(control_plane: ControlPlane, namespace: str, kubeconfig: str, tmp_path: Path) -> Iterator[Operator]:
    """The operator's process, which creates the certificates."""
    port = free_port()
    flags = {
        "--kubeconfig": kubeconfig,
        "--namespace": namespace,
        "--watch-namespaces": namespace,
        "--state-api-url": f"https://reattach-server.{namespace}.svc",
        "--tls-secret": "reattach-server-tls",
        "--ca-overlap-seconds": OVERLAP,
        "--certificate-check-seconds": CHECK,
        "--identity": "pod-1",
        "--metrics-host": "127.0.0.1",
        "--metrics-port": port,
    }
    given = [str(part) for flag in flags.items() for part in flag]
    command = [sys.executable, "-m", "reattach.process", "run", "--serve-metrics", *given]
    operator = Operator("", "pod-1", f"http://127.0.0.1:{port}", command, tmp_path / "log").start()
    yield operator
    operator.kill()


@contextlib.contextmanager
def remove_annotation_in_a_loop(control_plane: ControlPlane, namespace: str, pod: str) -> Iterator[list[float]]:
    """Remove the CA's annotation from the pod within the block, as a user with `edit`. Yield the time of each write."""
    rbac = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/rolebindings"
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "edit"}
    subject = {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "mallory"}
    control_plane.call("POST", rbac, {"metadata": {"name": "mallory"}, "roleRef": role, "subjects": [subject]})
    removals: list[float] = []
    stop = threading.Event()

    def remove() -> None:
        body = {"metadata": {"annotations": {ANNOTATION_CA: None}}}
        while not stop.wait(0.02):
            with contextlib.suppress(ControlPlaneError):  # the role binding takes effect a moment later
                control_plane.call("PATCH", pod, body, user="mallory", groups=("system:authenticated",))
                removals.append(time.monotonic())

    thread = threading.Thread(target=remove)
    thread.start()
    try:
        yield removals
    finally:
        stop.set()
        thread.join()


def test_rotation_that_a_pod_resists_is_finished_in_time_with_few_writes(
    control_plane: ControlPlane, namespace: str, process: Operator
) -> None:
    def issued_by_new_ca() -> bool:
        (authority,) = certificates_in(secret(control_plane, namespace, "reattach-ca", "tls.crt"))
        (serving,) = certificates_in(secret(control_plane, namespace, "reattach-server-tls", "tls.crt"))
        return authority != before and is_issued_by(serving, authority)

    pod = add_pod(control_plane, namespace, "nightly-1")
    (before,) = certificates_in(secret(control_plane, namespace, "reattach-ca", "tls.crt"))
    with remove_annotation_in_a_loop(control_plane, namespace, pod) as removals:
        wait_until(lambda: removals, seconds=60, what="the user removes the annotation")
        mark, start = control_plane.audit_mark(), time.monotonic()
        path = f"/api/v1/namespaces/{namespace}/secrets/reattach-ca"
        control_plane.call("PATCH", path, {"metadata": {"annotations": {ANNOTATION_ROTATE: "now"}}})
        wait_until(issued_by_new_ca, seconds=60, what="the new CA issued the serving certificate", every=0.1)
        seconds = time.monotonic() - start
    assert seconds <= CHECK + 3 * OVERLAP + 2 * CHECK
    user = f"system:serviceaccount:{namespace}:reattach-operator"
    writes = [event for event in control_plane.audit(mark, user=user) if event["requestURI"].startswith(pod)]
    # At most two writes for each step of a check; a check has at most two steps.
    assert 0 < len(writes) <= 4 * (seconds / CHECK + 1)


def test_annotation_that_a_user_removed_is_put_back_at_the_next_check(
    control_plane: ControlPlane, namespace: str, process: Operator
) -> None:
    bundle = secret(control_plane, namespace, "reattach-server-tls", "ca.crt").decode()
    pod = add_pod(control_plane, namespace, "nightly-1")

    def has_bundle() -> bool:
        annotations = control_plane.call("GET", pod)["metadata"].get("annotations", {})
        return bool(annotations.get(ANNOTATION_CA) == bundle)

    for _ in range(2):
        wait_until(has_bundle, seconds=60, what="the pod has the bundle")
        control_plane.call("PATCH", pod, {"metadata": {"annotations": {ANNOTATION_CA: None}}})
    wait_until(has_bundle, seconds=60, what="the pod has the bundle again")
