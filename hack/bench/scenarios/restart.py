"""Scenarios in which the controller is killed while runs are in flight."""

import asyncio
import time

from bench.installation import Installation
from bench.kinds import Kind
from bench.rounds import BenchError
from bench.scenarios.base import WAIT_SECONDS, Parameters, Table, Trial, run_trial, wait_for
from operator_process import Operator
from waiting import wait_until

_HEAD = ["kind", "runs in flight", "ready (s)", "first outcome (s)", "all complete (s)", "second pods"]
_MANAGER = "kube-controller-manager"


def measure_restart(installation: Installation, parameters: Parameters) -> Table:
    """Kill the controller by SIGKILL, end all pods, and start the controller again.

    Times count from the start.
    """
    runs, say = parameters.runs, parameters.say
    rows = [
        run_trial(
            installation, Kind.TASKRUN, runs, lambda trial: _restart_operator(trial, runs), say=say, title="restart"
        ),
        run_trial(installation, Kind.JOB, runs, lambda trial: _restart_manager(trial, runs), say=say, title="restart"),
    ]
    return Table(_HEAD, rows)


def measure_failover(installation: Installation, parameters: Parameters) -> Table:
    """Kill the leader by SIGKILL while a standby runs. All pods end meanwhile.

    Times count from the kill.
    """
    runs = parameters.runs
    row = run_trial(
        *(installation, Kind.TASKRUN, runs),
        lambda trial: _fail_over(trial, runs),
        say=parameters.say,
        title="failover",
    )
    return Table(_HEAD, [row])


async def _restart_operator(trial: Trial, runs: int) -> list[str]:
    operator = trial.installation.make_operator()
    try:
        await asyncio.to_thread(operator.start)
        names = await trial.create_held(runs)
        await asyncio.to_thread(operator.kill)
        await trial.end_pods(names)
        _check_absence(trial)
        started = time.monotonic()
        operator.start(wait=False)
        ready = await _time_of_lead(operator)
        await trial.complete()
    finally:
        await asyncio.to_thread(operator.kill)
    return _row_of(trial, runs, started, f"{ready - started:.1f}")


async def _restart_manager(trial: Trial, runs: int) -> list[str]:
    control_plane = trial.installation.control_plane
    names = await trial.create_held(runs)
    control_plane.kill(_MANAGER)
    try:
        await trial.end_pods(names)
        _check_absence(trial)
    finally:
        started = time.monotonic()
        control_plane.start_again(_MANAGER)
    await trial.complete()
    return _row_of(trial, runs, started, "-")


async def _fail_over(trial: Trial, runs: int) -> list[str]:
    leader, standby = (trial.installation.make_operator(identity) for identity in ("bench-1", "bench-2"))
    try:
        await asyncio.to_thread(leader.start)
        standby.start(wait=False)
        names = await trial.create_held(runs)
        await wait_for(standby.is_ready, "the standby is ready")
        killed = time.monotonic()
        await asyncio.to_thread(leader.kill)
        ended = asyncio.create_task(trial.end_pods(names))
        leads = await _time_of_lead(standby)
        await ended
        await trial.complete()
    finally:
        for operator in (leader, standby):
            await asyncio.to_thread(operator.kill)
    return _row_of(trial, runs, killed, f"{leads - killed:.1f}")


async def _time_of_lead(operator: Operator) -> float:
    def wait() -> float:
        wait_until(operator.leads, seconds=WAIT_SECONDS, what="the operator leads")
        return time.monotonic()

    return await asyncio.to_thread(wait)


def _check_absence(trial: Trial) -> None:
    """Check that no run has an outcome while its controller is absent."""
    if trial.timeline.outcome:
        raise BenchError("the controller must be absent while the pods end, but a run has an outcome")


def _row_of(trial: Trial, runs: int, started: float, ready: str) -> list[str]:
    timeline = trial.timeline
    last = max(*timeline.outcome.values(), *timeline.released.values())
    second = sum(len(found) - 1 for found in timeline.pods.values())
    first = min(timeline.outcome.values())
    return [trial.kind.label, f"{runs:,}", ready, f"{first - started:.1f}", f"{last - started:.1f}", str(second)]
