"""A run that waits without a pod for an external job in a real system.

The SDK, the state API, planner and reconciler are the real ones. The Kubernetes API, in which the
TaskRun is, and the kubelet are simulated.
"""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from reattach.adapters.base import Adapter
from reattach.api.reasons import Cause, Outcome
from reattach.task.context import Task
from reattach.testing.clocks import RealClock
from reattach.testing.simulated_cluster import SimulatedCluster, SimulatedRun
from reattach.testing.task_process import TaskProcess

EVERY = timedelta(seconds=3)
END_SECONDS = 180.0
_NAME, _KEY = "nightly", "load"


def run_without_pod(adapter: Callable[[], Adapter], request: Any) -> Any:
    """Start a run that submits `request`, and releases its pod until the job has ended.

    Return the result of the job.

    Raises `AssertionError` unless each attempt before the last one ended as `Waiting`, and there
    was one submission.
    """
    cluster = SimulatedCluster(RealClock())
    results: list[Any] = []

    def main(process: TaskProcess, task: Task) -> Any:
        job = task.submit_once(_KEY, adapter(), request)
        results.append(job.wait(release_pod=True, every=EVERY))
        return results[-1]

    run = SimulatedRun(_NAME, main)
    with cluster:
        cluster.create(_NAME, {"retry": {"budgets": {"application": 0, "disruption": 0}}})
        try:
            cluster.run_until(run, lambda: cluster.taskrun(_NAME).status.outcome is not None, seconds=END_SECONDS)
            status = cluster.taskrun(_NAME).status
        finally:
            cluster.kill_processes(run)
    assert status.outcome == Outcome.SUCCEEDED, status
    causes = [attempt.cause for attempt in status.attempts]
    assert causes == [*[Cause.WAITING] * (len(causes) - 1), Cause.SUCCEEDED]
    assert status.counts.waiting
    assert status.counts.submissions == 1
    [result] = results
    return result
