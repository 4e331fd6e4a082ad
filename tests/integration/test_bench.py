"""Scenarios of `make bench` with a few runs each.

`make test` runs two of them, with pods that a thread plays. REATTACH_ALL=1 runs all of them, with
kwok, which takes two minutes to build.
"""

import contextlib
import os
import subprocess
import threading
from collections.abc import Iterator

import httpx
import pytest

from bench.installation import Installation, Settings, installed
from bench.kinds import NODE
from bench.scenarios import SCENARIOS, Parameters
from controlplane import REPOSITORY, ControlPlaneError, RunningControlPlane
from operator_process import Containers, GoneError
from reattach.cluster.paths import pods

ALL = bool(os.environ.get("REATTACH_ALL"))
SAMPLE = ("restart", "state")
NAMES = tuple(SCENARIOS) if ALL else SAMPLE
RUNS = 10 if ALL else 4
SECONDS = 5.0


@contextlib.contextmanager
def playing_pods(control_plane: RunningControlPlane) -> Iterator[int]:
    """Start each pod of the node, as kwok does. The benchmark ends the pods of the sample."""
    stopped = threading.Event()

    def play() -> None:
        while not stopped.wait(0.05):
            with contextlib.suppress(ControlPlaneError, GoneError, httpx.TransportError):
                for pod in control_plane.call("GET", pods(None), fieldSelector=f"spec.nodeName={NODE}")["items"]:
                    if "deletionTimestamp" in pod["metadata"]:
                        path = pods(pod["metadata"]["namespace"], pod["metadata"]["name"])
                        control_plane.call("DELETE", path, {"gracePeriodSeconds": 0})
                    elif pod["status"]["phase"] == "Pending":
                        Containers(control_plane, pod).run()

    thread = threading.Thread(target=play, name="nodes", daemon=True)
    thread.start()
    try:
        yield os.getpid()
    finally:
        stopped.set()
        thread.join(60)


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    if ALL:
        subprocess.run([str(REPOSITORY / "hack/bench/tools")], check=True)
    nodes = None if ALL else playing_pods
    with installed(tmp_path_factory.mktemp("bench"), Settings(), audit_level="Metadata", nodes=nodes) as installation:
        yield installation


@pytest.mark.parametrize("name", NAMES)
def test_scenario_measures_every_cell_of_its_table(installation: Installation, name: str) -> None:
    lines: list[str] = []
    table = SCENARIOS[name].measure(installation, Parameters(RUNS, SECONDS, lines.append))
    assert table.rows
    for row in table.rows:
        assert len(row) == len(table.head)
        assert not {"", "nan"} & set(row)
    if "second pods" in table.head:
        assert {row[table.head.index("second pods")] for row in table.rows} == {"0"}
