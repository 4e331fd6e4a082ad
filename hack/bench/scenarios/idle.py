"""Scenarios of objects that need no work: runs whose pods run for hours, and finished runs."""

import asyncio
import base64
import time
from collections import Counter
from datetime import UTC, datetime
from typing import Any

import httpx
import msgspec

from bench import kinds
from bench.client import CONCURRENCY
from bench.installation import Installation
from bench.kinds import Kind
from bench.loop import build_status
from bench.scenarios.base import WAIT_SECONDS, Parameters, Table, Trial, run_trial, succeeded_status
from bench.usage import cpu_seconds_of, peak_megabytes, reset_peak
from operator_process import Operator
from reattach.api.objects import Pod
from reattach.api.taskrun import TaskRun
from reattach.cluster import paths
from waiting import wait_until

_STALL_SECONDS = 3600.0
"""Limit of a trial in which nothing happens on purpose."""
_QUIET_SECONDS = 4.0
"""The operator shows that a pod runs after two seconds."""
_SAMPLE = 20
"""Finished runs whose bytes in etcd are read."""
_READS = frozenset({"get", "list"})


def measure_live(installation: Installation, parameters: Parameters) -> Table:
    """Observe live runs for some time in which nothing happens, and restart the operator."""
    row = run_trial(
        *(installation, Kind.TASKRUN, parameters.runs),
        lambda trial: _observe_live(trial, parameters),
        say=parameters.say,
        title="live and idle",
        stall_seconds=_STALL_SECONDS,
    )
    head = ["live runs", "seconds", "writes", "reads", "operator (% of a core)", "state API (% of a core)"]
    return Table([*head, "operator (MiB)", "state API (MiB)", "restart to ready (s)", "restarted (MiB)"], [row])


async def _observe_live(trial: Trial, parameters: Parameters) -> list[str]:
    installation, runs = trial.installation, parameters.runs
    operator = installation.make_operator()
    with installation.state_api() as server:
        try:
            await asyncio.to_thread(operator.start)
            names = await trial.create_held(runs)
            await asyncio.to_thread(_wait_until_quiet, installation)
            processes = {kinds.OPERATOR: _process_id(operator), kinds.STATE_API: server.process.pid}
            for number in processes.values():
                reset_peak(number)
            mark = installation.control_plane.audit_mark()
            before, started = cpu_seconds_of(processes), time.monotonic()
            await asyncio.sleep(parameters.seconds)
            seconds, after = time.monotonic() - started, cpu_seconds_of(processes)
            calls = Counter(event["verb"] in _READS for event in installation.calls_since(mark, trial.kind, None))
            shares = [100 * (after[name] - before[name]) / seconds for name in processes]
            memory = [peak_megabytes(number) for number in processes.values()]
            await asyncio.to_thread(operator.kill)
            started = time.monotonic()
            await asyncio.to_thread(operator.start)
            restart, restarted = time.monotonic() - started, peak_megabytes(_process_id(operator))
            await trial.end_pods(names)
            await trial.complete()
        finally:
            await asyncio.to_thread(operator.kill)
    cells = [f"{runs:,}", f"{seconds:.0f}", str(calls[False]), str(calls[True]), *(f"{share:.2f}" for share in shares)]
    return [*cells, *(f"{each:.0f}" for each in memory), f"{restart:.1f}", f"{restarted:.0f}"]


def _wait_until_quiet(installation: Installation) -> None:
    """Wait until the operator sends no request for some seconds, because all runs are shown."""

    def is_quiet() -> bool:
        mark = installation.control_plane.audit_mark()
        time.sleep(_QUIET_SECONDS)
        return not installation.calls_since(mark, Kind.TASKRUN, None)

    installation.wait_until_idle()
    wait_until(is_quiet, seconds=WAIT_SECONDS, what="the operator sends no request")


def measure_finished(installation: Installation, parameters: Parameters) -> Table:
    """Start the operator beside no finished runs, and beside many."""
    sample = min(_SAMPLE, parameters.runs)
    size = run_trial(
        *(installation, Kind.TASKRUN, sample),
        lambda trial: _bytes_of_runs(trial, sample),
        say=parameters.say,
        title="bytes in etcd",
    )
    empty = _start_of(installation)

    async def fill(trial: Trial) -> tuple[float, float, float]:
        await _create_finished(trial, parameters.runs)
        await asyncio.to_thread(installation.wait_until_idle)
        return await asyncio.to_thread(_start_of, installation)

    full = run_trial(
        *(installation, Kind.TASKRUN, parameters.runs),
        fill,
        say=parameters.say,
        title="finished runs",
        stall_seconds=_STALL_SECONDS,
    )
    head = ["finished runs", "operator's start (s)", "operator (MiB)", "API server (MiB)", "etcd, bytes for each run"]
    return Table(
        head,
        [
            [f"{runs:,}", f"{start:.1f}", f"{memory:.0f}", f"{server:.0f}", f"{size:,.0f}" if runs else "-"]
            for runs, (start, memory, server) in ((0, empty), (parameters.runs, full))
        ],
    )


def _start_of(installation: Installation) -> tuple[float, float, float]:
    """Return the seconds until the operator leads, its MiB, and the MiB of the API server."""
    operator = installation.make_operator()
    server = installation.processes[kinds.API_SERVER]
    reset_peak(server)
    try:
        started = time.monotonic()
        operator.start()
        return time.monotonic() - started, peak_megabytes(_process_id(operator)), peak_megabytes(server)
    finally:
        operator.kill()


async def _bytes_of_runs(trial: Trial, runs: int) -> float:
    """Return the bytes that etcd keeps for the TaskRun of a finished run, with its key."""
    operator = trial.installation.make_operator()
    try:
        await asyncio.to_thread(operator.start)
        await trial.create(runs)
        await trial.complete()
    finally:
        await asyncio.to_thread(operator.kill)
    prefix = f"/registry/reattach.dev/taskruns/{trial.namespace}/"
    body = {"key": _base64(prefix), "range_end": _base64(prefix[:-1] + "0"), "limit": runs}
    async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
        url = f"{trial.installation.control_plane.storage_url}/v3/kv/range"
        stored: list[dict[str, str]] = (await client.post(url, json=body)).raise_for_status().json()["kvs"]
    return sum(len(base64.b64decode(one["key"])) + len(base64.b64decode(one["value"])) for one in stored) / len(stored)


async def _create_finished(trial: Trial, runs: int) -> None:
    """Create finished TaskRuns without pods, by the two writes of a client with all rights."""
    numbers = iter(range(runs))
    path = paths.taskruns(trial.namespace)

    async def create() -> None:
        for number in numbers:
            name = f"run-{number:05}"
            created = await trial.cluster.create(path, trial.kind.build_object(name))
            status = _finished_status(msgspec.json.decode(created, type=TaskRun))
            await trial.cluster.merge_patch(paths.taskruns(trial.namespace, name, "status"), {"status": status})

    async with asyncio.TaskGroup() as group:
        for _ in range(CONCURRENCY):
            group.create_task(create())


def _finished_status(taskrun: TaskRun) -> Any:
    now = datetime.now(UTC)
    metadata = {"name": f"{taskrun.metadata.name}-1", "uid": taskrun.metadata.uid, "creationTimestamp": now.isoformat()}
    pod = msgspec.convert({"metadata": metadata, "status": succeeded_status()}, Pod)
    return msgspec.to_builtins(build_status(taskrun, pod, now))


def _process_id(operator: Operator) -> int:
    assert operator.process is not None
    return operator.process.pid


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
