"""Crash points of the operator in several histories of a TaskRun; see `tests/crash_points.py`."""

import datetime as dt
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from controlplane import REPOSITORY, ControlPlane
from crash_points import crash_at_each_write
from operator_process import CONTAINER, Containers, Kubelet, Operators, fail, kubelet_of, succeed
from proxy import Proxy, proxy_to
from run_histories import NAME, HistoryRunner, JobServer, RunHistory, Scenario, TaskSubprocess, normalised, write_ca
from stateapi import Servers

JSON = dict[str, Any]

SLACK = dt.timedelta(seconds=10)
"""Delay allowed for a pod after its planned time or the operator's restart."""
LONG_WAIT = 12
"""Seconds, more than the slack, so that a wait that starts again after a restart is noticed."""
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
def runner(control_plane: ControlPlane, kubelet: Kubelet, proxy: Proxy, tmp_path: Path) -> Iterator[HistoryRunner]:
    """Runner of histories; REATTACH_BREAK=NAME makes it run `broken_operator.py`."""
    program = (BROKEN,) if os.environ.get("REATTACH_BREAK") else PROGRAM
    operators = Operators(control_plane, tmp_path)
    yield HistoryRunner(control_plane, operators, kubelet, proxy, program)
    operators.stop()


@dataclass
class Outside:
    """A runner with the real state API and the external system that tasks submit to."""

    runner: HistoryRunner
    directory: Path
    _started: list[JobServer] = field(default_factory=list)

    def jobserver(self, mode: str) -> JobServer:
        self._started.append(JobServer(self.directory, mode))
        return self._started[-1]

    def stop(self) -> None:
        for jobserver in self._started:
            jobserver.stop()


@pytest.fixture
def outside(control_plane: ControlPlane, runner: HistoryRunner, tmp_path: Path) -> Iterator[Outside]:
    servers, outside = Servers(control_plane, tmp_path / "state-api"), Outside(runner, tmp_path / "tasks")
    try:
        server = servers.start()
        runner.operators.ca_file = tmp_path / "ca.crt"
        runner.operators.state_api_url = server.url
        write_ca(server, runner.operators.ca_file)
        yield outside
    finally:
        outside.stop()
        servers.stop()


def test_run_with_three_retries_ends_the_same_after_a_crash_at_any_write(runner: HistoryRunner) -> None:
    backoff = {"initialSeconds": 1, "factorPercent": 100, "jitterPercent": 0}
    spec = {"retry": {"budgets": {"application": 3}, "backoff": backoff}}
    scenario = Scenario(spec, lambda attempt: {3: ask_for_a_long_wait, 4: succeed}.get(attempt, fail(attempt)))
    expected = crash_at_each_write(runner, scenario, check)
    assert [attempt["cause"] for attempt in expected.status["attempts"]] == [*["Application"] * 3, "Succeeded"]
    assert len(expected.pods) == 4
    assert len(expected.writes) >= 12


def test_reattaching_run_submits_once_after_a_crash_at_any_write(outside: Outside) -> None:
    jobserver = outside.jobserver("nothing")
    task = TaskSubprocess(outside.directory, jobserver.url)
    expected = crash_at_each_write(
        outside.runner, Scenario(RETRIED, lambda _: task.script, jobserver.submissions), check
    )
    assert [attempt["cause"] for attempt in expected.status["attempts"]] == ["Application", "Succeeded"]
    assert expected.status["result"] == '{"rows_written":4211}'
    assert expected.submissions == 1


def test_run_with_submit_once_has_one_job_after_a_crash_at_any_write(outside: Outside) -> None:
    """As in examples/10-submit-once.yaml, the first attempt dies before it stores the handle."""
    jobserver = outside.jobserver("name")

    def environment_of(attempt: int) -> dict[str, str]:
        fault = "accepted SIGKILL" if attempt == 1 else ""
        path = f"{REPOSITORY / 'operator'}:{REPOSITORY / 'tests'}"
        return {"FAULT": fault, "MODE": "name", "SECONDS": "0", "PYTHONPATH": path}

    task = TaskSubprocess(outside.directory, jobserver.url, (str(SUBMIT_ONCE),), environment_of)
    scenario = Scenario(RETRIED, lambda _: task.script, lambda namespace: jobserver.submissions(f"{namespace}/{NAME}"))
    expected = crash_at_each_write(outside.runner, scenario, check)
    status = expected.status
    assert [(attempt["cause"], attempt["exitCode"]) for attempt in status["attempts"]] == [
        ("Application", 137),
        ("Succeeded", 0),
    ]
    assert [(job["state"], "handle" in job) for job in status["externalJobs"]] == [("Succeeded", True)]
    assert (status["counts"]["submissions"], status["counts"]["duplicatesAverted"]) == (1, 1)
    assert status["result"] == '{"rows_written":4211}'
    assert expected.submissions == 1


def ask_for_a_long_wait(containers: Containers) -> None:
    """Fail and request a retry no sooner than after `LONG_WAIT`."""
    containers.run()
    containers.end(3, f'{{"reattach":"v1","kind":"RetryLater","message":"later","retryAfterSeconds":{LONG_WAIT}}}')


def check(history: RunHistory, expected: RunHistory) -> None:
    """All is as it was in the expected history."""
    assert normalised(history.status) == normalised(expected.status)
    assert history.pods == expected.pods
    assert history.submissions == expected.submissions
    check_waits(history)


def check_waits(history: RunHistory) -> None:
    """Check that each wait was recorded once and kept.

    No pod may be created before its planned time, nor later than its time and the crash explain.
    """
    assert not [wait for wait, times in Counter(history.waits).items() if times > 1], f"recorded twice: {history.waits}"
    assert len(history.waits) == len(history.created) - 1, f"waits {history.waits}, pods made at {history.created}"
    for wait, created in zip(history.waits, history.created[1:], strict=True):
        planned = dt.datetime.fromisoformat(wait)
        assert created >= planned, f"the pod was created at {created}, before its planned time {planned}"
        was_away_until = history.restarted_at or planned
        assert created <= max(planned, was_away_until) + SLACK, (
            f"the pod was created at {created}, long after its planned time {planned}"
        )
