"""The operator dies anywhere in the life of a TaskRun, is started again, and the end is the same.

For every n, it is killed (SIGKILL) before its n-th write reaches the API server, and in another life after the API server answered that write
and before the operator heard of it. First comes a life without a death: it tells how many writes there are, and what the end must be.
"""

import datetime as dt
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from controlplane import ControlPlane
from lives import JobServer, Life, Story, TaskProcess, World, check_deaths, normalised, points_of, write_ca
from operating import CONTAINER, Kubelet, Operators, fail, kubelet_of, succeed
from proxy import Point, Proxy, proxy_to
from stateapi import Servers

AT_ONCE = 3
"""Lives side by side; more only make each slower on two cores."""
SLACK = dt.timedelta(seconds=5)
"""How much later than planned a pod may come, on a busy machine; less than the wait and a new start together."""
PROGRAM = ("-m", "reattach.controller")
BROKEN = str(Path(__file__).parent / "broken_operator.py")


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
    """REATTACH_BREAK=NAME breaks the operator as `broken_operator.py` says, to see these tests fail."""
    program = (BROKEN,) if os.environ.get("REATTACH_BREAK") else PROGRAM
    operators = Operators(control_plane, tmp_path)
    yield World(control_plane, operators, kubelet, proxy, program)
    operators.stop()


def test_a_life_of_three_retries_ends_the_same_wherever_the_operator_dies(world: World) -> None:
    backoff = {"initialSeconds": 4, "factorPercent": 100, "jitterPercent": 0}
    spec = {"retry": {"budgets": {"application": 3}, "backoff": backoff}}
    story = Story(spec, lambda attempt: fail(attempt) if attempt < 4 else succeed)
    peaceful = check_all_deaths(world, story)
    assert [attempt["cause"] for attempt in peaceful.status["attempts"]] == [*["Application"] * 3, "Succeeded"]
    assert len(peaceful.pods) == 4
    assert len(peaceful.writes) >= 12


def test_a_reattaching_life_submits_once_wherever_the_operator_dies(
    control_plane: ControlPlane, kubelet: Kubelet, proxy: Proxy, world: World, tmp_path: Path
) -> None:
    servers, jobserver = Servers(control_plane, tmp_path / "state-api"), JobServer(tmp_path)
    try:
        server = servers.start()
        world.operators.ca_file = tmp_path / "ca.crt"
        world.operators.state_api_url = server.url
        write_ca(server, world.operators.ca_file)
        tasks = tmp_path / "tasks"
        tasks.mkdir()
        task = TaskProcess(tasks, jobserver.url)
        spec = {
            "template": {"spec": {"containers": [CONTAINER]}},
            "retry": {"budgets": {"application": 2}, "backoff": {"initialSeconds": 4, "jitterPercent": 0}},
        }
        story = Story(spec, lambda _: task.script, jobserver.submissions)
        peaceful = check_all_deaths(world, story)
        assert [attempt["cause"] for attempt in peaceful.status["attempts"]] == ["Application", "Succeeded"]
        assert peaceful.status["result"] == '{"rows_written":4211}'
        assert peaceful.submissions == 1
    finally:
        jobserver.stop()
        servers.stop()


def check_all_deaths(world: World, story: Story) -> Life:
    """Live it once in peace, then once with each death; compare. The answer is the peaceful life."""
    peaceful = world.live(story, None)
    assert peaceful.starts == 1, "the operator ended by itself"
    check_waits(peaceful)
    wrong: list[str] = []
    lives: list[Life] = []

    def compare(point: Point) -> None:
        try:
            life = world.live(story, point)
            lives.append(life)
            life.check_death()
            assert life.starts == (2 if life.has_killed else 1), f"it was started {life.starts} times"
            assert normalised(life.status) == normalised(peaceful.status)
            assert life.pods == peaceful.pods
            assert life.submissions == peaceful.submissions
            check_waits(life)
        except AssertionError as error:
            wrong.append(f"died {point}: {error}")

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(compare, points_of(peaceful)))
    assert not wrong, "\n".join(wrong)
    check_deaths(lives)
    return peaceful


def check_waits(life: Life) -> None:
    """Each wait was recorded once and kept: no pod came before its time, nor later than its time and the operator's absence explain."""
    assert not [wait for wait, times in Counter(life.waits).items() if times > 1], f"recorded twice: {life.waits}"
    assert len(life.waits) == len(life.created) - 1, f"waits {life.waits}, pods made at {life.created}"
    for wait, created in zip(life.waits, life.created[1:], strict=True):
        planned = dt.datetime.fromisoformat(wait)
        assert created >= planned, f"the pod came at {created}, before its time {planned}"
        was_away_until = life.led_again or planned
        assert created <= max(planned, was_away_until) + SLACK, (
            f"the pod came at {created}, long after its time {planned}"
        )
