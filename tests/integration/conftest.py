"""The order of the tests on a real API server, and the parts that each file of them starts once."""

from collections.abc import Iterator

import pytest

from controlplane import ControlPlane
from operator_process import Kubelet, Operators, Stage, kubelet_of, stage_of
from proxy import Proxy, proxy_to
from stateapi import Servers
from taskscripts import Tasks

LONGEST = ("test_operator_cancel.py", "test_operator.py", "test_racing_ends.py")
"""Each takes minutes; begun last, one of them would run on alone on one of the workers."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(scope="module")
def kubelet(control_plane: ControlPlane) -> Iterator[Kubelet]:
    with kubelet_of(control_plane) as kubelet:
        yield kubelet


@pytest.fixture(scope="module")
def operators(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operators]:
    operators = Operators(control_plane, tmp_path_factory.mktemp("operators"))
    yield operators
    operators.stop()


@pytest.fixture(scope="module")
def stage(control_plane: ControlPlane, operators: Operators, kubelet: Kubelet) -> Iterator[Stage]:
    """Shared by the tests that leave the operator alone; each uses names of its own."""
    with stage_of(control_plane, operators, kubelet) as stage:
        yield stage


@pytest.fixture(scope="module")
def tasks(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tasks]:
    servers = Servers(control_plane, tmp_path_factory.mktemp("state-api"))
    yield Tasks(control_plane, servers.start())
    servers.stop()


@pytest.fixture(scope="module")
def proxy(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    with proxy_to(control_plane, tmp_path_factory.mktemp("proxy")) as proxy:
        yield proxy
