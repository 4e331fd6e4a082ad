"""Passes of the benchmark: timed rounds, a paced load, and the count of API calls."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import msgspec
import uvloop

from apicalls import call_of, request_bytes, response_bytes
from bench.client import Timeline, create_runs, observed
from bench.installation import Installation
from bench.kinds import Kind, PodEnd
from bench.measures import differences_of
from bench.usage import cpu_seconds_of, peak_megabytes, reset_peak
from reattach.cluster import Cluster

PROGRESS_SECONDS = 10.0
STALL_SECONDS = 60.0
"""A phase fails after this time without progress."""

Say = Callable[[str], None]
Observe = Callable[[Mapping[str, int]], AbstractContextManager[object]]


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


@dataclass(frozen=True)
class Load:
    """Objects to create: as fast as possible, or at a rate per second.

    The first pod of every `fails_every`-th run fails.
    """

    runs: int
    per_second: float | None = None
    fails_every: int | None = None

    def end_of(self, number: int) -> PodEnd:
        """Return how the pods of a run end."""
        fails = self.fails_every is not None and number % self.fails_every == 0
        return PodEnd.FAILS_ONCE if fails else PodEnd.SUCCEEDS


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
            measure(installation, kind, Load(runs), say=say, title=f"round {number + 1} of {rounds}")
            for kind in alternate(kinds, number)
        ]
        for number in range(rounds)
    ]


def measure_paced(
    installation: Installation, kinds: Sequence[Kind], *, runs: int, per_second: float, say: Say
) -> list[Phase]:
    """Measure every kind once at a rate at which runs do not queue."""
    title = f"{per_second:g} per second"
    return [measure(installation, kind, Load(runs, per_second), say=say, title=title) for kind in kinds]


def count_calls(installation: Installation, kinds: Sequence[Kind], *, runs: int, say: Say) -> dict[Kind, list[Call]]:
    """Count the API calls of each kind's controller, and the bytes of their bodies."""
    return {kind: _count(installation, kind, runs=runs, say=say) for kind in kinds}


def measure(
    installation: Installation,
    kind: Kind,
    load: Load,
    *,
    say: Say,
    title: str,
    observe: Observe = contextlib.nullcontext,
) -> Phase:
    """Measure one kind under one load.

    `observe` is entered with the process IDs while the load lasts.
    """
    runs = load.runs
    namespace = installation.create_namespace()
    with installation.controller_of(kind, namespace) as controller:
        installation.wait_until_idle()
        processes = {**controller, **installation.processes}
        for process_id in processes.values():
            reset_peak(process_id)
        mark = installation.control_plane.audit_mark()
        before = cpu_seconds_of(processes)
        with observe(processes):
            timeline = _run_all(installation, kind, namespace, load, say=say, title=title)
            # Wait again, because events are sent after the writes that they report.
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
        _run_all(installation, kind, namespace, Load(runs), say=say, title="counting API calls")
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


def _run_all(installation: Installation, kind: Kind, namespace: str, load: Load, *, say: Say, title: str) -> Timeline:
    """Create the runs and wait until all are complete."""
    kubeconfig = str(installation.control_plane.kubeconfig())

    async def run_all() -> Timeline:
        timeline = Timeline(load.runs)
        async with (
            await Cluster.connect(kubeconfig) as cluster,
            observed(cluster, kind, namespace, timeline),
            expecting_progress(timeline, load.runs, say=say, title=f"{kind.label}, {title}"),
        ):
            await create_runs(
                *(cluster, kind, namespace, timeline),
                runs=load.runs,
                per_second=load.per_second,
                end_of=load.end_of,
            )
            await timeline.complete.wait()
        return timeline

    timeline = uvloop.run(run_all())
    if timeline.failed:
        raise BenchError(f"{kind.label}, {title}: {len(timeline.failed)} runs failed, but all must succeed")
    failures = sum(load.end_of(number) is PodEnd.FAILS_ONCE for number in range(load.runs))
    second = sum(len(found) - 1 for found in timeline.pods.values())
    if second != failures:
        raise BenchError(f"{kind.label}, {title}: {failures} first pods fail, but there are {second} second pods")
    return timeline


@contextlib.asynccontextmanager
async def expecting_progress(
    timeline: Timeline, runs: int, *, say: Say, title: str, seconds: float = STALL_SECONDS
) -> AsyncIterator[None]:
    """Report progress within the `with` block.

    Raises:
        BenchError: nothing was observed for `seconds`.
    """
    try:
        async with asyncio.timeout(seconds) as limit:
            progress = asyncio.create_task(
                _report_progress(timeline, limit, seconds, lambda: say(f"  … {title}: {timeline.finished} of {runs}"))
            )
            try:
                yield
            finally:
                progress.cancel()
    except TimeoutError as error:
        raise BenchError(f"{title}: no progress for {seconds:g} s; check that its controller is running") from error


async def _report_progress(
    timeline: Timeline, limit: asyncio.Timeout, seconds: float, report: Callable[[], None]
) -> None:
    """Report progress periodically, and extend the time limit while there is progress."""
    loop = asyncio.get_running_loop()
    reported, seen = loop.time(), 0
    while True:
        await asyncio.sleep(1)
        if timeline.steps > seen:
            seen = timeline.steps
            limit.reschedule(loop.time() + seconds)
        if loop.time() > reported + PROGRESS_SECONDS:
            reported = loop.time()
            report()


def by_kind(rounds: Sequence[Sequence[Phase]], kinds: Sequence[Kind]) -> Mapping[Kind, list[Phase]]:
    """Return the phases of each kind, in the order of the rounds."""
    return {kind: [phase for phases in rounds for phase in phases if phase.kind is kind] for kind in kinds}
