"""The operator dies at each write of a cancellation, is started again, and the end is the same: sealed, stopped, every job named.

As in `tests/crash`, for a run whose task submits a job and is then cancelled.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from controlplane import ControlPlane
from lives import NAME, Life, Story, World, check_deaths, normalised, points_of
from operating import Containers, Kubelet, Operators, kubelet_of
from proxy import Point, Proxy, proxy_to
from reattach.cluster.paths import taskruns
from stateapi import Servers
from taskscripts import Tasks

JSON = dict[str, Any]
AT_ONCE = 3


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


def test_a_cancelled_run_ends_the_same_wherever_the_operator_dies(
    control_plane: ControlPlane, world: World, tmp_path: Path
) -> None:
    servers = Servers(control_plane, tmp_path / "state-api")
    try:
        tasks = Tasks(control_plane, servers.start())

        def be_cancelled(containers: Containers) -> None:
            path = taskruns(containers.namespace, NAME)
            control_plane.call("PATCH", path, {"spec": {"cancel": True}})

        story = Story({}, lambda _: tasks.submit_and(be_cancelled))
        peaceful = world.live(story, None)
        check(peaceful)
        wrong: list[str] = []
        lives: list[Life] = []

        def compare(point: Point) -> None:
            try:
                life = world.live(story, point)
                lives.append(life)
                life.check_death()
                check(life)
                assert ended(life.status) == ended(peaceful.status)
            except AssertionError as error:
                wrong.append(f"died {point}: {error}")

        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(compare, points_of(peaceful)))
        assert not wrong, "\n".join(wrong)
        check_deaths(lives)
    finally:
        servers.stop()


def check(life: Life) -> None:
    """What must be, wherever the operator died."""
    status = life.status
    assert status["outcome"] == "Cancelled"
    assert [(each["cause"], each.get("chargedTo")) for each in status["attempts"]] == [("Stopped", None)]
    assert jobs_of(status) == [("load", "job-1", "Orphaned")]
    assert {each["type"]: each["status"] for each in status["conditions"]} == {"Succeeded": "False", "Orphaned": "True"}


def ended(status: JSON) -> JSON:
    """What must be the same. How it is known that a pod ended that nobody watched for a while may differ by its node's name."""
    return {**normalised(status), "jobs": jobs_of(status)}


def jobs_of(status: JSON) -> list[tuple[str, str, str]]:
    return [(job["key"], job["handle"], job["state"]) for job in status["externalJobs"]]
