"""Passes of the benchmark: timed rounds, a paced load, and the count of API calls."""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import msgspec
import uvloop

from apicalls import call_of, request_bytes, response_bytes
from bench.client import Timeline, create_runs, observed
from bench.installation import Installation
from bench.kinds import Kind
from bench.measures import differences_of
from bench.usage import cpu_seconds_of, peak_megabytes, reset_peak
from reattach.cluster import Cluster

PROGRESS_SECONDS = 10.0
STALL_SECONDS = 60.0
"""A phase fails after this time without progress."""

Say = Callable[[str], None]


class BenchError(Exception):
    """A phase could not be measured. The message contains the reason."""


class Phase(msgspec.Struct, frozen=True):
    """One measurement of one kind.

    `cpu` is in milliseconds per run and `memory` in MiB, by process; `calls` are per run, by call.
    """

    kind: Kind
    runs: int
    seconds: float
    create_to_pod: list[float]
    end_to_outcome: list[float]
    cpu: dict[str, float]
    memory: dict[str, float]
    calls: dict[str, float]

    @property
    def runs_per_minute(self) -> float:
        """Throughput."""
        return self.runs / self.seconds * 60


class Call(msgspec.Struct, frozen=True):
    """One kind of API call: the average count and the average bytes of the bodies per run."""

    call: str
    count: float
    request_bytes: float
    response_bytes: float


def alternate(kinds: Sequence[Kind], number: int) -> list[Kind]:
    """Return the kinds rotated by the round number, so that noise affects all kinds equally."""
    first = number % len(kinds)
    return [*kinds[first:], *kinds[:first]]


def measure_rounds(
    installation: Installation, kinds: Sequence[Kind], *, runs: int, rounds: int, say: Say
) -> list[list[Phase]]:
    """Measure every kind once in each round, and create all objects as fast as possible."""
    return [
        [
            _measure(installation, kind, runs=runs, per_second=None, say=say, title=f"round {number + 1} of {rounds}")
            for kind in alternate(kinds, number)
        ]
        for number in range(rounds)
    ]


def measure_paced(
    installation: Installation, kinds: Sequence[Kind], *, runs: int, per_second: float, say: Say
) -> list[Phase]:
    """Measure every kind once at a rate at which runs do not queue."""
    title = f"{per_second:g} per second"
    return [_measure(installation, kind, runs=runs, per_second=per_second, say=say, title=title) for kind in kinds]


def count_calls(installation: Installation, kinds: Sequence[Kind], *, runs: int, say: Say) -> dict[Kind, list[Call]]:
    """Count the API calls of each kind's controller, and the bytes of their bodies."""
    return {kind: _count(installation, kind, runs=runs, say=say) for kind in kinds}


def _measure(
    installation: Installation, kind: Kind, *, runs: int, per_second: float | None, say: Say, title: str
) -> Phase:
    namespace = installation.create_namespace()
    with installation.controller_of(kind, namespace) as controller:
        installation.wait_until_idle()
        processes = {**controller, **installation.processes}
        for process_id in processes.values():
            reset_peak(process_id)
        mark = installation.control_plane.audit_mark()
        before = cpu_seconds_of(processes)
        timeline = _run_all(installation, kind, namespace, runs=runs, per_second=per_second, say=say, title=title)
        # Wait again, because events are sent after the writes that they report and also use CPU.
        installation.wait_until_idle()
        after = cpu_seconds_of(processes)
        memory = {name: peak_megabytes(process_id) for name, process_id in processes.items()}
        calls = Counter(map(call_of, installation.calls_since(mark, kind, namespace)))
    installation.clear(kind, namespace)
    phase = Phase(
        kind=kind,
        runs=runs,
        seconds=timeline.seconds,
        create_to_pod=differences_of(timeline.sent, timeline.pod_created),
        end_to_outcome=differences_of(timeline.pod_ended, timeline.outcome),
        cpu={name: (after[name] - before[name]) / runs * 1000 for name in processes},
        memory=memory,
        calls={call: count / runs for call, count in calls.items()},
    )
    say(
        f"{kind.label}, {title}: {phase.runs_per_minute:,.0f} runs/min, {sum(phase.calls.values()):.1f} API calls per run"
    )
    return phase


def _count(installation: Installation, kind: Kind, *, runs: int, say: Say) -> list[Call]:
    namespace = installation.create_namespace()
    with installation.controller_of(kind, namespace):
        installation.wait_until_idle()
        mark = installation.control_plane.audit_mark()
        _run_all(installation, kind, namespace, runs=runs, per_second=None, say=say, title="counting API calls")
        installation.wait_until_idle()
        found = installation.calls_since(mark, kind, namespace)
    installation.clear(kind, namespace)
    counts, requests, responses = Counter[str](), Counter[str](), Counter[str]()
    for event in found:
        call = call_of(event)
        counts[call] += 1
        requests[call] += request_bytes(event)
        responses[call] += response_bytes(event)
    return [
        Call(call, count / runs, requests[call] / runs, responses[call] / runs) for call, count in counts.most_common()
    ]


def _run_all(
    installation: Installation,
    kind: Kind,
    namespace: str,
    *,
    runs: int,
    per_second: float | None,
    say: Say,
    title: str,
) -> Timeline:
    """Create the runs and wait until all are complete."""
    kubeconfig = str(installation.control_plane.kubeconfig())

    async def run_all() -> Timeline:
        timeline = Timeline(runs)
        async with (
            asyncio.timeout(STALL_SECONDS) as limit,
            await Cluster.connect(kubeconfig) as cluster,
            observed(cluster, kind, namespace, timeline),
            asyncio.TaskGroup() as group,
        ):
            progress = group.create_task(
                _report_progress(
                    timeline, limit, lambda: say(f"  … {kind.label}, {title}: {timeline.finished} of {runs}")
                )
            )
            await create_runs(cluster, kind, namespace, timeline, runs=runs, per_second=per_second)
            await timeline.complete.wait()
            progress.cancel()
        return timeline

    try:
        timeline = uvloop.run(run_all())
    except TimeoutError as error:
        raise BenchError(
            f"{kind.label}, {title}: no progress for {STALL_SECONDS:g} s; check that its controller is running"
        ) from error
    if timeline.failed:
        raise BenchError(f"{kind.label}, {title}: {len(timeline.failed)} runs failed, but all must succeed")
    return timeline


async def _report_progress(timeline: Timeline, limit: asyncio.Timeout, report: Callable[[], None]) -> None:
    """Report progress periodically, and extend the time limit while there is progress."""
    loop = asyncio.get_running_loop()
    reported, seen = loop.time(), 0
    while True:
        await asyncio.sleep(1)
        if timeline.steps > seen:
            seen = timeline.steps
            limit.reschedule(loop.time() + STALL_SECONDS)
        if loop.time() > reported + PROGRESS_SECONDS:
            reported = loop.time()
            report()


def by_kind(rounds: Sequence[Sequence[Phase]], kinds: Sequence[Kind]) -> Mapping[Kind, list[Phase]]:
    """Return the phases of each kind, in the order of the rounds."""
    return {kind: [phase for phases in rounds for phase in phases if phase.kind is kind] for kind in kinds}
