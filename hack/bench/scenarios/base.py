"""Definition of a scenario, and the trial in which a scenario observes its runs."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

import msgspec
import uvloop

from bench.client import CONCURRENCY, Timeline, create_runs, observed
from bench.installation import Installation
from bench.kinds import Kind, PodEnd
from bench.rounds import STALL_SECONDS, BenchError, Say, expecting_progress
from reattach.cluster import Cluster, paths
from waiting import until

T = TypeVar("T")

WAIT_SECONDS = 600.0
"""Bound of each wait. A trial without progress fails much earlier."""


class Table(msgspec.Struct, frozen=True):
    """Result of a scenario: cells as they are shown. The first column names the row."""

    head: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Parameters:
    """Size of a scenario. `seconds` is the time that a scenario only observes."""

    runs: int
    seconds: float
    say: Say


@dataclass(frozen=True)
class Scenario:
    """A scenario: what is measured, its default size, and its size for the page.

    `page_runs` is 0 if the scenario takes too long for the command that measures the whole page.
    """

    name: str
    summary: str
    measure: Callable[[Installation, Parameters], Table]
    runs: int
    page_runs: int
    seconds: float = 0
    page_seconds: float = 0
    defaults: bool = False
    """Every controller keeps its default limits."""


@dataclass
class Trial:
    """Runs of one kind in a namespace of their own, which the benchmark observes."""

    installation: Installation
    kind: Kind
    namespace: str
    cluster: Cluster
    timeline: Timeline

    async def create(self, runs: int, end: PodEnd = PodEnd.SUCCEEDS, per_second: float | None = None) -> None:
        """Create the objects."""
        await create_runs(
            *(self.cluster, self.kind, self.namespace, self.timeline),
            runs=runs,
            per_second=per_second,
            end_of=lambda _: end,
        )

    async def create_held(self, runs: int) -> list[str]:
        """Create runs whose pods do not end. Return the names of the pods once all of them run."""
        await self.create(runs, PodEnd.HELD)
        await wait_for(lambda: len(self.timeline.running) == runs, "all pods run")
        return list(self.timeline.running.values())

    async def end_pods(self, names: Iterable[str]) -> None:
        """Report that pods have succeeded, as their kubelet does."""
        waiting = iter(names)

        async def end() -> None:
            for name in waiting:
                path = f"{paths.pods(self.namespace, name)}/status"
                await self.cluster.merge_patch(path, {"status": succeeded_status()})

        async with asyncio.TaskGroup() as group:
            for _ in range(CONCURRENCY):
                group.create_task(end())

    async def complete(self) -> None:
        """Wait until all runs are complete. Each must have succeeded, with one pod."""
        await self.timeline.complete.wait()
        self.check()

    def check(self) -> None:
        """Check that no run failed and none got a second pod.

        Raises:
            BenchError: a run failed or has two pods.
        """
        if self.timeline.failed:
            raise BenchError(f"{len(self.timeline.failed)} runs failed, but all must succeed")
        if twice := [run for run, found in self.timeline.pods.items() if len(found) > 1]:
            raise BenchError(f"{len(twice)} runs got a second pod, such as {twice[0]}, but each must get one")


def run_trial(
    installation: Installation,
    kind: Kind,
    runs: int,
    body: Callable[[Trial], Awaitable[T]],
    *,
    say: Say,
    title: str,
    stall_seconds: float = STALL_SECONDS,
) -> T:
    """Run the body in a new namespace, and return its result once the namespace is empty again."""
    namespace = installation.create_namespace()
    kubeconfig = str(installation.control_plane.kubeconfig())

    async def run() -> T:
        timeline = Timeline(runs)
        async with (
            await Cluster.connect(kubeconfig) as cluster,
            observed(cluster, kind, namespace, timeline),
            expecting_progress(timeline, runs, say=say, title=f"{kind.label}, {title}", seconds=stall_seconds),
        ):
            return await body(Trial(installation, kind, namespace, cluster, timeline))

    result = uvloop.run(run())
    installation.clear(kind, namespace)
    return result


async def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Wait for a condition that the timeline shows."""

    async def holds() -> bool:
        return condition()

    await until(holds, seconds=WAIT_SECONDS, what=what, every=0.01)


def succeeded_status() -> dict[str, object]:
    """Return the status of a pod whose container exited with 0."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    state = {"terminated": {"exitCode": 0, "reason": "Completed", "startedAt": now, "finishedAt": now}}
    container = {"name": "task", "image": "task", "imageID": "", "ready": False, "restartCount": 0, "state": state}
    return {"phase": "Succeeded", "containerStatuses": [container]}
