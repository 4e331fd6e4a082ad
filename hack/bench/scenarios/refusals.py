"""Scenarios in which the API server refuses requests: a full quota, and 429."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator

from apicalls import call_of
from bench import kinds
from bench.installation import Installation
from bench.kinds import Kind
from bench.measures import differences_of, percentile
from bench.rounds import BenchError
from bench.scenarios.base import Parameters, Table, Trial, run_trial, wait_for
from bench.scenarios.throughput import controller_of
from bench.throttle import ThrottlingProxy, throttling_proxy
from bench.usage import cpu_seconds_of
from controlplane import ControlPlaneError
from reattach.cluster.paths import core, pods
from waiting import wait_until

_QUOTA = "full"
_REJECTED = "create pods (403)"
_MARGIN_SECONDS = 10.0
"""Time before and after the API server throttles, in which runs are created too."""


def measure_quota(installation: Installation, parameters: Parameters) -> Table:
    """Create runs in a namespace without room for a pod, observe them, and make room."""
    rows = [
        run_trial(
            *(installation, kind, parameters.runs),
            lambda trial: _wait_for_room(trial, parameters),
            say=parameters.say,
            title="quota full",
            stall_seconds=parameters.seconds + 300,
        )
        for kind in (Kind.TASKRUN, Kind.JOB)
    ]
    head = [
        "kind",
        "runs",
        "seconds observed",
        "rejected pods (per run and minute)",
        "other calls (per run and minute)",
    ]
    head += ["controller (% of a core)", "API server (% of a core)", "room to all complete (s)"]
    return Table(head, rows)


async def _wait_for_room(trial: Trial, parameters: Parameters) -> list[str]:
    installation, runs = trial.installation, parameters.runs
    await asyncio.to_thread(_fill_quota, trial)
    async with _controller_of(trial) as processes:
        await trial.create(runs)
        await asyncio.to_thread(installation.wait_until_idle)
        mark = installation.control_plane.audit_mark()
        before, started = cpu_seconds_of(processes), time.monotonic()
        await asyncio.sleep(parameters.seconds)
        seconds, after = time.monotonic() - started, cpu_seconds_of(processes)
        found = Counter(map(call_of, installation.calls_since(mark, trial.kind, trial.namespace)))
        quotas = core("resourcequotas", trial.namespace)
        await asyncio.to_thread(installation.control_plane.call, "DELETE", f"{quotas}/{_QUOTA}")
        started = time.monotonic()
        await trial.complete()
        room = time.monotonic() - started
    if not found[_REJECTED] and found["create pods"]:
        raise BenchError("the quota must reject every pod while it is full")
    rejected, others = found[_REJECTED], sum(found.values()) - found[_REJECTED]
    per_minute = [count / runs / seconds * 60 for count in (rejected, others)]
    shares = [100 * (after[name] - before[name]) / seconds for name in processes]
    cells = [trial.kind.label, f"{runs:,}", f"{seconds:.0f}", *(f"{each:.3f}" for each in per_minute)]
    return [*cells, *(f"{share:.1f}" for share in shares), f"{room:.1f}"]


@contextlib.asynccontextmanager
async def _controller_of(trial: Trial) -> AsyncIterator[dict[str, int]]:
    """Yield the process IDs of the controller and the API server, in this order."""
    controller = trial.installation.controller_of(trial.kind, trial.namespace)
    own = await asyncio.to_thread(controller.__enter__)
    try:
        processes = {**trial.installation.processes, **own}
        yield {name: processes[name] for name in (controller_of(trial.kind), kinds.API_SERVER)}
    finally:
        await asyncio.to_thread(controller.__exit__, None, None, None)


def _fill_quota(trial: Trial) -> None:
    """Allow no pod. The status of the quota is written here, because no quota controller runs."""
    call, path, hard = trial.installation.control_plane.call, core("resourcequotas", trial.namespace), {"pods": "0"}
    call("POST", path, {"metadata": {"name": _QUOTA}, "spec": {"hard": hard}})
    call("PATCH", f"{path}/{_QUOTA}/status", {"status": {"hard": hard, "used": {"pods": "0"}}})
    probe = {"metadata": {"name": "probe"}, "spec": {"containers": [{"name": "probe", "image": "probe"}]}}

    def is_in_force() -> bool:
        try:
            call("POST", pods(trial.namespace), probe, dryRun="All")
        except ControlPlaneError as error:
            return "exceeded quota" in str(error)
        return False

    wait_until(is_in_force, seconds=60, what="the API server applies the quota")


def measure_throttling(installation: Installation, parameters: Parameters) -> Table:
    """Create TaskRuns at a constant rate while the API server returns 429 for some time."""
    with throttling_proxy(installation) as proxy:
        row = run_trial(
            *(installation, Kind.TASKRUN, parameters.runs),
            lambda trial: _throttle(trial, proxy, parameters),
            say=parameters.say,
            title="429",
            stall_seconds=parameters.seconds + 120,
        )
    head = ["runs", "created per second", "429 for (s)", "requests refused", "refused per second"]
    head += ["end of 429 to all caught up (s)", "later runs: create → pod p99 (ms)", "second pods"]
    return Table(head, [row])


async def _throttle(trial: Trial, proxy: ThrottlingProxy, parameters: Parameters) -> list[str]:
    installation, timeline, runs = trial.installation, trial.timeline, parameters.runs
    per_second = runs / (parameters.seconds + 2 * _MARGIN_SECONDS)
    kubeconfig = proxy.write_kubeconfig(installation.kubeconfig(), installation.control_plane.directory / "throttled")
    operator = installation.make_operator(kubeconfig=kubeconfig)
    try:
        await asyncio.to_thread(operator.start)
        created = asyncio.create_task(trial.create(runs, per_second=per_second))
        await asyncio.sleep(_MARGIN_SECONDS)
        proxy.is_throttling = True
        await asyncio.sleep(parameters.seconds)
        proxy.is_throttling = False
        over, waiting = time.monotonic(), set(timeline.sent) - set(timeline.outcome)
        await wait_for(lambda: waiting <= timeline.outcome.keys(), "the delayed runs have outcomes")
        caught_up = max((timeline.outcome[name] for name in waiting), default=over)
        await created
        await trial.complete()
    finally:
        await asyncio.to_thread(operator.kill)
    if not proxy.responses[429]:
        raise BenchError("the operator must send requests while the API server returns 429")
    later = {name: sent for name, sent in timeline.sent.items() if sent > caught_up}
    delay = percentile(differences_of(later, timeline.pod_created), 99)
    refused, second = proxy.responses[429], sum(len(found) - 1 for found in timeline.pods.values())
    cells = [f"{runs:,}", f"{per_second:.1f}", f"{parameters.seconds:g}", f"{refused:,}"]
    cells += [f"{refused / parameters.seconds:.1f}", f"{caught_up - over:.1f}"]
    return [*cells, f"{delay * 1000:,.0f}" if later else "-", str(second)]
