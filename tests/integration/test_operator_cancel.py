"""The operator dies at each write of a cancellation or a deletion, is started again, and the end is the same: sealed, stopped, every job named.

As in `tests/crash`, for a run whose task submits a job.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from controlplane import ControlPlane
from crash_points import die_everywhere
from operator_process import Containers, Kubelet, Operators, kubelet_of
from proxy import Proxy, proxy_to
from reattach.cluster.paths import taskruns
from run_histories import NAME, Life, Story, World, normalised
from stateapi import Servers
from taskscripts import Tasks

JSON = dict[str, Any]


@pytest.fixture(scope="module")
def kubelet(control_plane: ControlPlane) -> Iterator[Kubelet]:
    with kubelet_of(control_plane) as kubelet:
        yield kubelet


@pytest.fixture(scope="module")
def proxy(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    with proxy_to(control_plane, tmp_path_factory.mktemp("proxy")) as proxy:
        yield proxy


@pytest.fixture
def world(control_plane: ControlPlane, kubelet: Kubelet, proxy: Proxy, tmp_path: Path) -> Iterator[World]:
    operators = Operators(control_plane, tmp_path)
    yield World(control_plane, operators, kubelet, proxy)
    operators.stop()


@pytest.fixture
def tasks(control_plane: ControlPlane, tmp_path: Path) -> Iterator[Tasks]:
    servers = Servers(control_plane, tmp_path / "state-api")
    try:
        yield Tasks(control_plane, servers.start())
    finally:
        servers.stop()


def test_a_cancelled_run_ends_the_same_wherever_the_operator_dies(
    control_plane: ControlPlane, world: World, tasks: Tasks
) -> None:
    def be_cancelled(containers: Containers) -> None:
        control_plane.call("PATCH", taskruns(containers.namespace, NAME), {"spec": {"cancel": True}})

    die_everywhere(world, Story({}, lambda _: tasks.submit_and(be_cancelled)), check_cancelled, at_each_event=False)


def test_a_deleted_run_goes_and_its_job_is_in_the_log_wherever_the_operator_dies(
    control_plane: ControlPlane, world: World, tasks: Tasks
) -> None:
    def be_deleted(containers: Containers) -> None:
        control_plane.call("DELETE", taskruns(containers.namespace, NAME))

    die_everywhere(world, Story({}, lambda _: tasks.submit_and(be_deleted)), check_deleted, at_each_event=False)


def check_cancelled(life: Life, peaceful: Life) -> None:
    """What must be, wherever the operator died."""
    status = life.status
    assert status["outcome"] == "Cancelled"
    assert [(each["cause"], each.get("chargedTo")) for each in status["attempts"]] == [("Stopped", None)]
    assert jobs_of(status) == [("load", "job-1", "Orphaned")]
    assert {each["type"]: each["status"] for each in status["conditions"]} == {"Succeeded": "False", "Orphaned": "True"}
    assert is_named(life)
    assert normalised(status) == normalised(peaceful.status)


def check_deleted(life: Life, _: Life) -> None:
    """Nothing is left that could tell of the job, but the log."""
    assert life.status == {}
    assert is_named(life), f"nobody named the job: {life.writes}\n{life.log[-3000:]}"


def is_named(life: Life) -> bool:
    return "External job load (handle job-1) is left running" in life.log


def jobs_of(status: JSON) -> list[tuple[str, str, str]]:
    return [(job["key"], job["handle"], job["state"]) for job in status["externalJobs"]]
