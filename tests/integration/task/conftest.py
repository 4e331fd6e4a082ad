"""The SDK against the real state API on a real API server."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from controlplane import ControlPlane
from stateapi import Server, Servers
from stateapi import Task as Run
from taskpods import Pod, Pods, port_of
from tcp_relay import Relay


@pytest.fixture(scope="module")
def servers(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    starter = Servers(control_plane, tmp_path_factory.mktemp("state-api"))
    yield starter
    starter.stop()


@pytest.fixture(scope="module")
def server(servers: Servers) -> Server:
    return servers.start()


@pytest.fixture
def run(control_plane: ControlPlane, namespace: str) -> Run:
    """A TaskRun."""
    return Run.create(control_plane, namespace)


@pytest.fixture
def relay(server: Server) -> Iterator[Relay]:
    with Relay(port_of(server)) as relay:
        yield relay


@pytest.fixture
def pods(run: Run, server: Server, relay: Relay, tmp_path: Path) -> Pods:
    return Pods(run, server, relay, tmp_path)


@pytest.fixture
def pod(pods: Pods) -> Pod:
    """The pod of attempt 1."""
    return pods.start()
