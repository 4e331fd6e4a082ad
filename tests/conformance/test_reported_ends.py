"""Ends that tasks report, in the simulated cluster, where a process dies around its report."""

import pytest

import reattach
from reattach.testing.clocks import VirtualClock
from reattach.testing.simulated_cluster import SimulatedCluster, SimulatedRun
from reattach.testing.task_process import TaskProcess

NAME = "load"


def no_table(_process: TaskProcess, _task: reattach.Task) -> None:
    raise reattach.PermanentFailure("no table")


@pytest.mark.parametrize(
    "step, attempts", [("never", 1), ("after POST /v1/end", 1), ("before POST /v1/end", 2), ("frozen", 1)]
)
def test_process_that_dies_around_its_report_fails_the_run_once_the_report_is_stored(step: str, attempts: int) -> None:
    def on_step(process: TaskProcess, now_at: str) -> None:
        if process.attempt == 1 and now_at == step:
            process.kill()
        if step == "frozen" and now_at == "after POST /v1/end":
            process.freeze(100)

    run = SimulatedRun(NAME, no_table, on_step)
    with SimulatedCluster(VirtualClock()) as cluster:
        cluster.create(NAME)
        assert cluster.run_until(run, lambda: cluster.taskrun(NAME).status.outcome is not None, seconds=1000)
        status = cluster.taskrun(NAME).status
    last = status.attempts[-1]
    assert (status.outcome, last.reason, last.message) == ("Failed", "PermanentFailure", "no table")
    assert len(run.processes) == attempts
    assert [one.cause for one in status.attempts[:-1]] == ["Application"] * (attempts - 1)
