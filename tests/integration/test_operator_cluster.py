"""The real operator for the whole cluster, through what befalls a cluster."""

from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from controlplane import CRD, ControlPlaneError, RunningControlPlane
from operator_process import (
    NAMESPACE,
    RULES,
    SHORT_LEASE,
    Cluster,
    Containers,
    Kubelet,
    Operators,
    kubelet_of,
    run_on,
    succeed,
)
from reattach.cluster.paths import leases, pods
from waiting import wait_until


@pytest.fixture(scope="module")
def kubelet(private_control_plane: RunningControlPlane) -> Iterator[Kubelet]:
    with kubelet_of(private_control_plane) as kubelet:
        yield kubelet


@pytest.fixture
def operators(
    private_control_plane: RunningControlPlane, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Operators]:
    operators = Operators(private_control_plane, tmp_path_factory.mktemp("operators"))
    yield operators
    operators.stop()


def test_all_namespaces_are_served(
    private_control_plane: RunningControlPlane, kubelet: Kubelet, operators: Operators
) -> None:
    operators.start(namespaces=[])
    for _ in range(2):
        namespace = private_control_plane.create_namespace()
        kubelet.play(namespace, lambda *_: succeed)
        cluster = Cluster(private_control_plane, namespace)
        cluster.create("load")
        assert cluster.wait_for_outcome("load")["outcome"] == "Succeeded"


def test_a_namespace_that_refuses_the_operator_keeps_no_other_waiting(
    private_control_plane: RunningControlPlane, kubelet: Kubelet, operators: Operators
) -> None:
    served, refused = (private_control_plane.create_namespace() for _ in range(2))
    operators.make(namespaces=[served])  # makes the namespace of the Lease
    rbac, user = "/apis/rbac.authorization.k8s.io/v1", f"operator-of-{served}"
    subject = {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}
    # As a Role in each of watchNamespaces, of which one was deleted with its namespace.
    for where, kind in (
        (f"/namespaces/{served}/", "Role"),
        (f"/namespaces/{NAMESPACE}/", "Role"),
        ("/", "ClusterRole"),
    ):
        rules = (
            RULES if kind == "Role" else [rule for rule in RULES if "customresourcedefinitions" in rule["resources"]]
        )
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": user}
        plural = f"{kind.lower()}s"
        private_control_plane.call("POST", f"{rbac}{where}{plural}", {"metadata": {"name": user}, "rules": rules})
        binding = {"metadata": {"name": user}, "roleRef": role, "subjects": [subject]}
        private_control_plane.call("POST", f"{rbac}{where}{plural.removesuffix('s')}bindings", binding)
    kubelet.play(served, lambda *_: succeed)
    operator = operators.start(namespaces=[refused, served], kubeconfig=private_control_plane.kubeconfig(user, ()))
    cluster = Cluster(private_control_plane, served)
    cluster.create("load")
    assert cluster.wait_for_outcome("load", seconds=60)["outcome"] == "Succeeded"
    assert f"Can't watch /apis/reattach.dev/v1alpha1/namespaces/{refused}/taskruns" in operator.log


def test_an_api_server_that_restarts_is_waited_for(
    private_control_plane: RunningControlPlane, kubelet: Kubelet, operators: Operators
) -> None:
    namespace = private_control_plane.create_namespace()
    kubelet.play(namespace, lambda *_: run_on)
    # A Lease that outlives the restart; a shorter one ends the operator, and its container is started again.
    operator = operators.start("--lease-seconds", "120", namespaces=[namespace])
    cluster = Cluster(private_control_plane, namespace)
    cluster.create("load")
    cluster.wait_for_reason("load", "Running")
    with private_control_plane.without_apiserver():
        assert operator.exit_code() is None
    Containers(private_control_plane, cluster.pods("load")[0]).end(0)
    assert cluster.wait_for_outcome("load", seconds=60)["outcome"] == "Succeeded"
    cluster.wait_for_release("load")
    kubelet.play(namespace, lambda *_: succeed)
    cluster.create("next")  # kopf's watch is back as well
    assert cluster.wait_for_outcome("next", seconds=60)["outcome"] == "Succeeded"
    assert operator.exit_code() is None
    assert len(cluster.pods("load")) == 1


def test_what_happened_while_the_api_server_and_the_operator_were_away_is_found(
    private_control_plane: RunningControlPlane, kubelet: Kubelet, operators: Operators
) -> None:
    namespace = private_control_plane.create_namespace()
    kubelet.play(namespace, lambda *_: run_on)
    operator = operators.start(*SHORT_LEASE, namespaces=[namespace])
    cluster = Cluster(private_control_plane, namespace)
    cluster.create("load")
    cluster.wait_for_reason("load", "Running")
    with private_control_plane.without_apiserver():
        assert operator.wait_for_exit() == 1  # its Lease ran out
    Containers(private_control_plane, cluster.pods("load")[0]).end(0)
    private_control_plane.call("DELETE", pods(namespace, cluster.pods("load")[0]["metadata"]["name"]))
    operator.start()
    status = cluster.wait_for_outcome("load")
    assert (status["outcome"], status["counts"]["attempts"]) == ("Succeeded", 1)


def test_an_operator_that_starts_before_the_api_server_waits_for_it(
    private_control_plane: RunningControlPlane, kubelet: Kubelet, operators: Operators
) -> None:
    namespace = private_control_plane.create_namespace()
    operator = operators.make(namespaces=[namespace])
    with private_control_plane.without_apiserver():
        operator.start(wait=False)
        wait_until(lambda: "Waiting for the schema" in operator.log, seconds=60, what="it says what it waits for")
        assert operator.ready_text() == "start-up\n"
    wait_until(operator.leads, seconds=30, what="it leads")


def test_an_older_crd_is_refused_with_what_it_lacks(
    private_control_plane: RunningControlPlane, operators: Operators
) -> None:
    older: dict[str, Any] = yaml.safe_load(CRD.read_text())
    status = older["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"]
    del status["nextAttemptTime"]
    private_control_plane.apply(yaml.safe_dump(older))
    try:
        operator = operators.make(namespaces=[]).start(wait=False)
        assert operator.wait_for_exit() == 1
        assert "lacks .status.nextAttemptTime" in operator.log
        assert "upgrade the chart" in operator.log
        with pytest.raises(ControlPlaneError, match="not found"):
            private_control_plane.call("GET", leases(NAMESPACE, operator.user))
    finally:
        private_control_plane.apply_crd()
