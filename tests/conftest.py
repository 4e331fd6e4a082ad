"""Fixtures for all levels of tests. Fixtures of one level are in its folder."""

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

import controlplane

# No deadline, because the duration of an example depends on the load of the machine. CI runs the
# same examples each time, so that only a change of the code can fail it. Other runs draw new ones.
hypothesis.settings.register_profile(
    "reattach",
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
    derandomize=bool(os.environ.get("CI")),
)
hypothesis.settings.load_profile("reattach")


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[controlplane.ControlPlane]:
    """Yield a real API server with the CRD, shared by the whole run."""
    root = tmp_path_factory.getbasetemp()
    # Each xdist worker has a folder of its own within the run's.
    if root.name.startswith("popen-"):
        root = root.parent
    with controlplane.shared(root / "control-plane") as running:
        yield running


@pytest.fixture(scope="module")
def private_control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[controlplane.RunningControlPlane]:
    """Yield a real API server for one module, which may restart it or change all of it."""
    with controlplane.running(Path(tmp_path_factory.mktemp("control-plane"))) as running:
        yield running


@pytest.fixture
def namespace(control_plane: controlplane.ControlPlane) -> Iterator[str]:
    """Yield a namespace for one test in the shared control plane."""
    name = control_plane.create_namespace()
    yield name
    control_plane.delete_namespace(name)
