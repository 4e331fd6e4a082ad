"""The operator dies anywhere in the life of a TaskRun, is started again, and the end is the same: `tests/crash_points.py` says how."""

import datetime as dt
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from controlplane import REPOSITORY, ControlPlane
from crash_points import die_everywhere
from operator_process import CONTAINER, Containers, Kubelet, Operators, fail, kubelet_of, succeed
from proxy import Proxy, proxy_to
from run_histories import NAME, JobServer, Life, Story, TaskProcess, World, normalised, write_ca
from stateapi import Servers

JSON = dict[str, Any]

SLACK = dt.timedelta(seconds=10)
"""How much later than planned, or than the operator is back, a pod may come on a busy machine."""
LONG_WAIT = 12
"""Seconds: more than the slack, so that a wait that a new operator begins anew is seen to be too long."""
PROGRAM = ("-m", "reattach.process")
BROKEN = str(Path(__file__).parent / "broken_operator.py")
SUBMIT_ONCE = Path(__file__).parent / "submit_once_task.py"
RETRIED: JSON = {
    "template": {"spec": {"containers": [CONTAINER]}},
    "retry": {"budgets": {"application": 2}, "backoff": {"initialSeconds": 2, "jitterPercent": 0}},
}


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


@dataclass
class Outside:
    """A world with the real state API, and what tasks submit to."""

    world: World
    directory: Path
    _started: list[JobServer] = field(default_factory=list)

    def jobserver(self, mode: str) -> JobServer:
        self._started.append(JobServer(self.directory, mode))
        return self._started[-1]

    def stop(self) -> None:
        for jobserver in self._started:
            jobserver.stop()


@pytest.fixture
def outside(control_plane: ControlPlane, world: World, tmp_path: Path) -> Iterator[Outside]:
    servers, outside = Servers(control_plane, tmp_path / "state-api"), Outside(world, tmp_path / "tasks")
    try:
        server = servers.start()
        world.operators.ca_file = tmp_path / "ca.crt"
        world.operators.state_api_url = server.url
        write_ca(server, world.operators.ca_file)
        yield outside
    finally:
        outside.stop()
        servers.stop()


def test_a_life_of_three_retries_ends_the_same_wherever_the_operator_dies(world: World) -> None:
    backoff = {"initialSeconds": 1, "factorPercent": 100, "jitterPercent": 0}
    spec = {"retry": {"budgets": {"application": 3}, "backoff": backoff}}
    story = Story(spec, lambda attempt: {3: ask_for_a_long_wait, 4: succeed}.get(attempt, fail(attempt)))
    peaceful = die_everywhere(world, story, check)
    assert [attempt["cause"] for attempt in peaceful.status["attempts"]] == [*["Application"] * 3, "Succeeded"]
    assert len(peaceful.pods) == 4
    assert len(peaceful.writes) >= 12


def test_a_reattaching_life_submits_once_wherever_the_operator_dies(outside: Outside) -> None:
    jobserver = outside.jobserver("nothing")
    task = TaskProcess(outside.directory, jobserver.url)
    peaceful = die_everywhere(outside.world, Story(RETRIED, lambda _: task.script, jobserver.submissions), check)
    assert [attempt["cause"] for attempt in peaceful.status["attempts"]] == ["Application", "Succeeded"]
    assert peaceful.status["result"] == '{"rows_written":4211}'
    assert peaceful.submissions == 1


def test_a_life_that_submits_once_has_one_job_wherever_the_operator_dies(outside: Outside) -> None:
    """As examples/10-submit-once.yaml: the first attempt dies when its job is made and its handle stored nowhere."""
    jobserver = outside.jobserver("name")

    def environment_of(attempt: int) -> dict[str, str]:
        blow = "accepted SIGKILL" if attempt == 1 else ""
        path = f"{REPOSITORY / 'operator'}:{REPOSITORY / 'tests'}"
        return {"BLOW": blow, "MODE": "name", "SECONDS": "0", "PYTHONPATH": path}

    task = TaskProcess(outside.directory, jobserver.url, (str(SUBMIT_ONCE),), environment_of)
    story = Story(RETRIED, lambda _: task.script, lambda namespace: jobserver.submissions(f"{namespace}/{NAME}"))
    peaceful = die_everywhere(outside.world, story, check)
    status = peaceful.status
    assert [(attempt["cause"], attempt["exitCode"]) for attempt in status["attempts"]] == [
        ("Application", 137),
        ("Succeeded", 0),
    ]
    assert [(job["state"], "handle" in job) for job in status["externalJobs"]] == [("Succeeded", True)]
    assert (status["counts"]["submissions"], status["counts"]["duplicatesAverted"]) == (1, 1)
    assert status["result"] == '{"rows_written":4211}'
    assert peaceful.submissions == 1


def ask_for_a_long_wait(containers: Containers) -> None:
    """Fail, and be tried again no sooner than after `LONG_WAIT`."""
    containers.run()
    containers.end(3, f'{{"reattach":"v1","kind":"RetryLater","message":"later","retryAfterSeconds":{LONG_WAIT}}}')


def check(life: Life, peaceful: Life) -> None:
    """All is as it was in the peaceful life."""
    assert normalised(life.status) == normalised(peaceful.status)
    assert life.pods == peaceful.pods
    assert life.submissions == peaceful.submissions
    check_waits(life)


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
