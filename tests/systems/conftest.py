"""Real Ray and real Slurm, as `hack/systems/up` (`make systems`) prepared them; see `rayhead.py` and `slurmcluster.py`."""

import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from reattach.adapters.base import Submission
from systems.rayhead import RayHead
from systems.slurmcluster import SlurmCluster

CACHE = Path(os.environ.get("REATTACH_CACHE") or Path.home() / ".cache/reattach-cluster")


@pytest.fixture(scope="session")
def ray_head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayHead]:
    """A head with one CPU, on ports of its own."""
    program = CACHE / "ray/bin/ray"
    if not program.exists():
        pytest.fail(f"{program} must be there: make systems")
    head = RayHead(program, tmp_path_factory.mktemp("ray"))
    try:
        head.start()
        yield head
    finally:
        head.stop()


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    """A cluster of one node, with accounting, that forgets jobs after five seconds."""
    prepared = CACHE / "systems"
    if not prepared.exists():
        pytest.fail(f"{prepared} must be there: make systems")
    settings = dict(line.split("=", 1) for line in prepared.read_text().splitlines())
    cluster = SlurmCluster(settings["SLURM_IMAGE"], settings["DOCKER_HOST"])
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.remove()


@pytest.fixture
def a_submission() -> Callable[[Any], Submission]:
    """A submission of this request with a token of its own."""

    def made(request: Any) -> Submission:
        return Submission(
            token=str(uuid.uuid4()), request=request, key="load", generation=1, namespace="default", taskrun="nightly"
        )

    return made
