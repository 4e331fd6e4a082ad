"""Fixtures for every level of tests; what only one level needs is in its own folder."""

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

import controlplane

# How long an example takes says how busy the machine is, nothing about the code. CI tries the same examples each time, so that it judges the
# change at hand; elsewhere each run tries others.
hypothesis.settings.register_profile(
    "reattach",
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
    derandomize=bool(os.environ.get("CI")),
)
hypothesis.settings.load_profile("reattach")


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[controlplane.ControlPlane]:
    """A real API server, with the CRD applied, shared by the whole run."""
    root = tmp_path_factory.getbasetemp()
    # Each xdist worker has a folder of its own within the run's.
    if root.name.startswith("popen-"):
        root = root.parent
    with controlplane.shared(root / "control-plane") as running:
        yield running


@pytest.fixture(scope="module")
def private_control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[controlplane.RunningControlPlane]:
    """A real API server for one module, which may restart it or change what belongs to the whole cluster."""
    with controlplane.running(Path(tmp_path_factory.mktemp("control-plane"))) as running:
        yield running


@pytest.fixture
def namespace(control_plane: controlplane.ControlPlane) -> Iterator[str]:
    """A namespace of the test's own in the shared control plane."""
    name = control_plane.create_namespace()
    yield name
    control_plane.delete_namespace(name)
