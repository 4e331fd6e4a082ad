"""One replica of the state API for a module, and a TaskRun of its own for each test."""

from collections.abc import Iterator

import pytest

from controlplane import ControlPlane
from stateapi import Server, Servers, Task


@pytest.fixture(scope="module")
def servers(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    starter = Servers(control_plane, tmp_path_factory.mktemp("state-api"))
    yield starter
    starter.stop()


@pytest.fixture(scope="module")
def server(servers: Servers) -> Server:
    return servers.start()


@pytest.fixture
def task(control_plane: ControlPlane, namespace: str) -> Task:
    return Task.create(control_plane, namespace)
