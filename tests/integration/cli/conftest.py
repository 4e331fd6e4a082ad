"""A TaskRun in a namespace of the test's own, its state as the state API keeps it, and people with rights there."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cli_session import CliUser, grant
from controlplane import ControlPlane
from reattach.cluster.paths import taskruns
from stateapi import Server, Servers, Task


@pytest.fixture(scope="module")
def server(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    starter = Servers(control_plane, tmp_path_factory.mktemp("state-api"))
    try:
        yield starter.start()
    finally:
        starter.stop()


@pytest.fixture
def task(control_plane: ControlPlane, namespace: str) -> Task:
    return Task.create(control_plane, namespace)


@pytest.fixture
def editor(control_plane: ControlPlane, namespace: str) -> CliUser:
    return grant(control_plane, namespace, "edit")


@pytest.fixture
def viewer(control_plane: ControlPlane, namespace: str) -> CliUser:
    return grant(control_plane, namespace, "view")


@pytest.fixture
def write_status(control_plane: ControlPlane, task: Task) -> Callable[..., None]:
    """What the operator does."""

    def write(**status: Any) -> None:
        control_plane.call("PATCH", taskruns(task.namespace, task.name, "status"), {"status": status})

    return write
