"""End of a run whose external job is in a real system: the cleanup attempt cancels the job.

The SDK, the state API, planner and reconciler are the real ones. The Kubernetes API, in which the
TaskRun is, and the kubelet are simulated.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from reattach.adapters.base import Adapter, JobStatus
from reattach.api.reasons import Outcome
from reattach.api.state import JobState
from reattach.api.taskrun import AttemptPurpose
from reattach.task.context import Task
from reattach.testing.clocks import RealClock
from reattach.testing.fault_injection import FaultInjectingAdapter
from reattach.testing.simulated_cluster import SimulatedCluster, SimulatedRun
from reattach.testing.task_process import TaskProcess

MOMENTS = {"running": "watching", "handle not stored": "submit accepted"}
"""Steps of the first attempt at which the run is cancelled. At the second one, its process dies."""
END_SECONDS = 180.0
_NAME, _KEY = "nightly", "load"


@dataclass(frozen=True)
class CancelledJob:
    """The one external job of a run that was cancelled, and its status in the external system."""

    handle: str
    status: JobStatus


def cancel_run(
    adapter: Callable[[], Adapter], request: Any, moment: str, *, until: Callable[[], bool] = lambda: True
) -> CancelledJob:
    """Start a run that submits `request`, and cancel it once `until` holds.

    Return its job after the end.

    Raises `AssertionError` unless one cleanup attempt has cancelled the job of the one submission.
    """
    clock = RealClock()
    cluster = SimulatedCluster(clock)
    adapters: dict[str, FaultInjectingAdapter] = {}

    def adapter_of(process: TaskProcess) -> FaultInjectingAdapter:
        return adapters.setdefault(process.uid, FaultInjectingAdapter(adapter(), process, clock, 0.5))

    def main(process: TaskProcess, task: Task) -> Any:
        return task.submit_once(_KEY, adapter_of(process), request).wait()

    def on_step(process: TaskProcess, step: str) -> None:
        if not process.is_cleanup and step == MOMENTS[moment]:
            clock.wait(until, seconds=60, every=0.2)
            cluster.patch(_NAME, {"spec": {"cancel": True}})
            if moment == "handle not stored":
                process.kill()

    run = SimulatedRun(_NAME, main, on_step, lambda process: [adapter_of(process)])
    with cluster:
        cluster.create(_NAME)
        try:
            cluster.run_until(run, lambda: cluster.taskrun(_NAME).status.outcome is not None, seconds=END_SECONDS)
            status = cluster.taskrun(_NAME).status
        finally:
            cluster.kill_processes(run)
    assert status.outcome == Outcome.CANCELLED, status
    assert not status.orphaned, status
    assert [attempt.purpose for attempt in status.attempts] == [AttemptPurpose.RUN, AttemptPurpose.CLEANUP]
    assert status.counts.submissions == 1
    [job] = status.external_jobs
    assert (job.state, job.cancel_requested_time is not None) == (JobState.CANCELLED, True)
    assert job.handle is not None
    [submitted] = [handle for process in run.processes for handle in adapters[process.uid].handles]
    assert job.handle == submitted
    return CancelledJob(job.handle, adapter().status(job.handle))
