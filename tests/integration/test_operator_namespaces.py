"""The operator serves a list of namespaces of any length."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from controlplane import ControlPlane
from operator_process import Cluster, Operator, Operators
from waiting import wait_until

COUNT = 50
"""More watches than a connection pool of usual size: one of TaskRuns, pods and ConfigMaps each per namespace."""


@pytest.fixture(scope="module")
def namespaces(control_plane: ControlPlane) -> Iterator[list[str]]:
    with ThreadPoolExecutor(4) as pool:
        names = list(pool.map(lambda _: control_plane.create_namespace("many"), range(COUNT)))
        yield names
        list(pool.map(control_plane.delete_namespace, names))


@pytest.fixture(scope="module")
def operator(operators: Operators, namespaces: list[str]) -> Operator:
    """Operator with its sweep off, so that only a watch can bring a TaskRun. Not known to be ready yet."""
    return operators.make("--sweep-seconds", "86400", namespaces=namespaces).start(wait=False)


def test_operator_with_fifty_namespaces_becomes_ready(operator: Operator) -> None:
    wait_until(operator.leads, seconds=30, what="the operator leads and knows the cluster")


@pytest.mark.parametrize("index", [0, 16, 32, COUNT - 1])
def test_operator_with_fifty_namespaces_creates_pod_for_watched_taskrun(
    control_plane: ControlPlane, namespaces: list[str], operator: Operator, index: int
) -> None:
    wait_until(operator.leads, seconds=30, what="the operator leads and knows the cluster")
    cluster = Cluster(control_plane, namespaces[index])
    cluster.create("watched")
    wait_until(lambda: cluster.pods("watched"), seconds=60, what=f"the TaskRun in namespace {index} has its pod")
