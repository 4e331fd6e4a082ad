"""Scenarios of the state API: runs that use it, and its own throughput."""

import asyncio
import contextlib
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass

from apicalls import call_of
from bench import kinds
from bench.installation import STATE_API_USER, Installation
from bench.kinds import Kind, PodEnd
from bench.measures import percentile
from bench.scenarios.base import Parameters, Table, Trial, run_trial
from bench.tasks import TaskClient, task_of
from bench.usage import cpu_seconds_of
from stateapi import Server

SETS = 5
TASKS_AT_ONCE = 16
"""Tasks that run at once, because all share the cores with the servers."""
CLIENTS = 32
"""Tasks that set at once in a closed loop."""
POLL_SECONDS = 10.0
_KEY = "progress"
_VALUE = {"cursor": "2026-11-30T12:00:00Z", "rows": 123456, "file": "s3://bucket/key/part-00042.parquet"}
_PROCESSES = (kinds.OPERATOR, kinds.STATE_API, kinds.API_SERVER, kinds.ETCD)

_LOADED = (kinds.STATE_API, kinds.API_SERVER, kinds.ETCD)
_LIMITS = ("--connections", "4000", "--connections-per-address", "4000")
"""All tasks have the same address."""

Program = Callable[[TaskClient], Awaitable[None]]


async def _use_state(task: TaskClient) -> None:
    await task.open()
    for number in range(SETS):
        await task.set(f"{_KEY}-{number}", _VALUE)
    await _complete(task)


async def _use_job(task: TaskClient) -> None:
    await task.open()
    await task.submit(f"job-{task.id}")
    await _complete(task)


def measure_state(installation: Installation, parameters: Parameters) -> Table:
    """Measure runs whose tasks open their state, set five keys, and complete with a result."""
    return _measure_program(installation, parameters, "open, 5 sets, result", _use_state)


def measure_job(installation: Installation, parameters: Parameters) -> Table:
    """Measure runs whose tasks record one external job."""
    return _measure_program(installation, parameters, "open, external job, result", _use_job)


def _measure_program(installation: Installation, parameters: Parameters, label: str, program: Program) -> Table:
    row = run_trial(
        *(installation, Kind.TASKRUN, parameters.runs),
        lambda trial: _run_tasks(trial, program, parameters.runs),
        say=parameters.say,
        title=label,
    )
    head = ["task", "runs/min", "operator's calls/run", "state API's calls/run"]
    head += [f"{name}'s CPU (ms/run)" for name in _PROCESSES]
    return Table([*head, "task's call p50 (ms)", "p99 (ms)"], [[label, *row]])


async def _run_tasks(trial: Trial, program: Program, runs: int) -> list[str]:
    """Run a task for each pod that runs, and report the pod's end as the kubelet does."""
    installation = trial.installation
    started: asyncio.Queue[str] = asyncio.Queue()
    trial.timeline.on_running = lambda _, pod: started.put_nowait(pod)
    operator = installation.make_operator()
    with installation.state_api() as server:
        durations: list[float] = []

        async def run_pods() -> None:
            while True:
                pod = await started.get()
                async with task_of(trial.cluster, trial.namespace, pod, server.url, server.ca) as task:
                    await program(task)
                durations.extend(task.seconds)
                await trial.end_pods([pod])

        try:
            await asyncio.to_thread(operator.start)
            await asyncio.to_thread(installation.wait_until_idle)
            assert operator.process is not None
            own = {kinds.OPERATOR: operator.process.pid, kinds.STATE_API: server.process.pid}
            processes = {**installation.processes, **own}
            mark = installation.control_plane.audit_mark()
            before = cpu_seconds_of(processes)
            async with _workers(run_pods, TASKS_AT_ONCE):
                await trial.create(runs, PodEnd.HELD)
                await trial.complete()
            await asyncio.to_thread(installation.wait_until_idle)
            after = cpu_seconds_of(processes)
            own_calls = Counter(map(call_of, installation.calls_since(mark, trial.kind, trial.namespace)))
            server_calls = installation.control_plane.audit(mark, user=STATE_API_USER)
        finally:
            await asyncio.to_thread(operator.kill)
    cpu = [f"{(after[name] - before[name]) / runs * 1000:.1f}" for name in _PROCESSES]
    calls = [f"{sum(own_calls.values()) / runs:.2f}", f"{len(server_calls) / runs:.2f}"]
    latencies = [f"{percentile(durations, percent) * 1000:,.1f}" for percent in (50, 99)]
    return [f"{runs / trial.timeline.seconds * 60:,.0f}", *calls, *cpu, *latencies]


@contextlib.asynccontextmanager
async def _workers(work: Callable[[], Awaitable[None]], count: int) -> AsyncIterator[None]:
    """Run `work` this many times at once within the `with` block. An error ends the block."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_awaited(work)) for _ in range(count)]
        yield
        for task in tasks:
            task.cancel()


async def _awaited(work: Callable[[], Awaitable[None]]) -> None:
    await work()


@dataclass(frozen=True)
class _Load:
    """Calls of tasks in some seconds, and the CPU time that they cost."""

    label: str
    seconds: float
    sets: list[float]
    """Seconds of each set."""
    gets: list[float]
    cpu: dict[str, float]
    """CPU seconds by process."""

    @property
    def sets_per_second(self) -> float:
        return len(self.sets) / self.seconds

    def cells(self) -> list[str]:
        """Return the row of the table."""
        calls = len(self.sets) + len(self.gets)
        cells = [self.label, f"{self.sets_per_second:,.0f}", f"{len(self.gets) / self.seconds:,.0f}"]
        cells += [f"{calls / self.cpu[kinds.STATE_API]:,.0f}"]
        cells += [f"{self.cpu[name] / calls * 1000:.2f}" for name in _LOADED]
        for durations in (self.sets, self.gets):
            cells += [f"{percentile(durations, percent) * 1000:,.1f}" if durations else "-" for percent in (50, 99)]
        return cells


def measure_state_api(installation: Installation, parameters: Parameters) -> Table:
    """Measure sets at full speed, at half of it beside tasks that poll, and on two replicas."""
    rows = run_trial(
        *(installation, Kind.TASKRUN, parameters.runs),
        lambda trial: _load_state_api(trial, parameters),
        say=parameters.say,
        title="state API",
        stall_seconds=parameters.seconds * 3 + 300,
    )
    head = ["load", "sets/s", "gets/s", "calls/s for each core of the state API"]
    head += [f"{name}'s CPU (ms/call)" for name in _LOADED]
    head += ["set p50 (ms)", "set p99 (ms)", "get p50 (ms)", "get p99 (ms)"]
    return Table(head, rows)


async def _load_state_api(trial: Trial, parameters: Parameters) -> list[list[str]]:
    installation, runs = trial.installation, parameters.runs
    operator = installation.make_operator()
    with installation.state_api(*_LIMITS) as first, installation.state_api(*_LIMITS) as second:
        try:
            await asyncio.to_thread(operator.start)
            pods = await trial.create_held(runs)
            loads = await _measure_loads(trial, parameters, pods, [first, second])
            await trial.end_pods(pods)
            await trial.complete()
        finally:
            await asyncio.to_thread(operator.kill)
    return [load.cells() for load in loads]


async def _measure_loads(
    trial: Trial, parameters: Parameters, pods: Sequence[str], servers: Sequence[Server]
) -> list[_Load]:
    installation, seconds = trial.installation, parameters.seconds
    async with _tasks_of(trial, pods, servers[:1]) as tasks:
        one = await _measure_load(installation, servers[:1], seconds, "one replica, full speed", tasks)
        label = f"one replica, half of it, {len(tasks):,} tasks poll"
        rate = one.sets_per_second / 2
        half = await _measure_load(installation, servers[:1], seconds, label, tasks, rate=rate)
        await _each(tasks[CLIENTS:], _complete)
    async with _tasks_of(trial, pods[:CLIENTS], servers) as tasks:
        two = await _measure_load(installation, servers, seconds, "two replicas, full speed", tasks)
        await _each(tasks, _complete)
    return [one, half, two]


@contextlib.asynccontextmanager
async def _tasks_of(trial: Trial, pods: Sequence[str], servers: Sequence[Server]) -> AsyncIterator[list[TaskClient]]:
    """Yield a task with an open state for each pod. The tasks use the replicas in turn."""
    async with contextlib.AsyncExitStack() as stack:
        tasks = [
            await stack.enter_async_context(task_of(trial.cluster, trial.namespace, pod, server.url, server.ca))
            for pod, server in zip(pods, itertools.cycle(servers), strict=False)
        ]
        await _each(tasks, _prepare)
        yield tasks


async def _prepare(task: TaskClient) -> None:
    await task.open()
    await task.set(_KEY, _VALUE)


async def _complete(task: TaskClient) -> None:
    await task.complete({"rows": 1})


async def _each(tasks: Sequence[TaskClient], call: Program) -> None:
    waiting = iter(tasks)

    async def work() -> None:
        for task in waiting:
            await call(task)

    async with asyncio.TaskGroup() as group:
        for _ in range(TASKS_AT_ONCE):
            group.create_task(work())


async def _measure_load(
    installation: Installation,
    servers: Sequence[Server],
    seconds: float,
    label: str,
    tasks: Sequence[TaskClient],
    *,
    rate: float | None = None,
) -> _Load:
    """Set as fast as possible, or at a rate while all tasks poll."""
    await asyncio.to_thread(installation.wait_until_idle)
    own = {f"{kinds.STATE_API} {number}": server.process.pid for number, server in enumerate(servers)}
    processes = {**installation.processes, **own}
    sets: list[float] = []
    gets: list[float] = []
    setters = tasks[:CLIENTS]
    before, started = cpu_seconds_of(processes), time.monotonic()
    end = started + seconds

    async def set_in_turn(task: TaskClient, number: int) -> None:
        for turn in itertools.count():
            if rate is not None:
                await asyncio.sleep(max(0.0, started + (turn * len(setters) + number) / rate - time.monotonic()))
            if time.monotonic() >= end:
                return
            begun = time.monotonic()
            await task.set(_KEY, _VALUE)
            sets.append(time.monotonic() - begun)

    async def poll(task: TaskClient, number: int) -> None:
        for turn in itertools.count():
            at = started + POLL_SECONDS * (turn + number / len(tasks))
            if at >= end:
                return
            await asyncio.sleep(max(0.0, at - time.monotonic()))
            begun = time.monotonic()
            await task.get(_KEY)
            gets.append(time.monotonic() - begun)

    async with asyncio.TaskGroup() as group:
        for number, task in enumerate(setters):
            group.create_task(set_in_turn(task, number))
        if rate is not None:
            for number, task in enumerate(tasks):
                group.create_task(poll(task, number))
    took, after = time.monotonic() - started, cpu_seconds_of(processes)
    used = {name: after[name] - before[name] for name in processes}
    used[kinds.STATE_API] = sum(used[name] for name in own)
    return _Load(label, took, sets, gets, used)
