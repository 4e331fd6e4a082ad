"""Client of the benchmark. It creates objects, and observes when their pods and outcomes appear."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec

from bench.kinds import Kind, PodEnd
from bench.watch import version_of, watch
from reattach.cluster import Cluster, paths

CONCURRENCY = 16
"""Number of concurrent create requests."""
_FINISHED_PHASES = frozenset({"Succeeded", "Failed"})
_FINISHED_CONDITIONS = frozenset({"Complete", "Failed"})


class _Owner(msgspec.Struct, frozen=True):
    name: str
    controller: bool = False


class _Metadata(msgspec.Struct, frozen=True, rename="camel"):
    name: str = ""
    uid: str = ""
    finalizers: tuple[str, ...] = ()
    owner_references: tuple[_Owner, ...] = ()


class _Condition(msgspec.Struct, frozen=True):
    type: str
    status: str


class _Status(msgspec.Struct, frozen=True):
    phase: str = ""
    outcome: str = ""
    conditions: tuple[_Condition, ...] = ()


class _Object(msgspec.Struct, frozen=True):
    metadata: _Metadata = _Metadata()
    status: _Status = _Status()


class _Event(msgspec.Struct, frozen=True):
    type: str
    object: _Object


class Timeline:
    """Times at which the client observed each step of each run.

    The keys are the names of the runs, the values seconds of one monotonic clock.

    `pod_created` and `pod_ended` are about the first pod of a run, `pods` has all of them.

    A run is complete when it has an outcome and its pods have no finalizer, because its controller
    has nothing left to do then.
    """

    def __init__(self, runs: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._runs = runs
        self._clock = clock
        self.sent: dict[str, float] = {}
        self.pod_created: dict[str, float] = {}
        self.pod_ended: dict[str, float] = {}
        self.released: dict[str, float] = {}
        """Time at which the last pod lost its finalizer. Absent while a pod has one."""
        self.outcome: dict[str, float] = {}
        self.pods: dict[str, set[str]] = {}
        """UIDs of the pods."""
        self.running: dict[str, str] = {}
        """Name of the pod that runs now."""
        self._held: dict[str, set[str]] = {}
        self.failed: set[str] = set()
        self.complete = asyncio.Event()
        self.on_running: Callable[[str, str], None] = _ignore
        """Called with the names of a run and of its pod once the pod runs."""

    @property
    def finished(self) -> int:
        """Number of complete runs."""
        return len(self.released.keys() & self.outcome.keys())

    @property
    def steps(self) -> int:
        """Number of observed steps of all runs."""
        found = (self.sent, self.pod_created, self.pod_ended, self.released, self.outcome)
        return sum(map(len, found)) + sum(map(len, self.pods.values()))

    @property
    def seconds(self) -> float:
        """Time from the first create request to the last complete run."""
        return max(*self.released.values(), *self.outcome.values()) - min(self.sent.values())

    def record_create(self, name: str) -> None:
        """Record that the create request of a run is about to be sent."""
        self.sent[name] = self._clock()

    def observe_pod(self, line: bytes) -> None:
        """Process an event of the pod watch."""
        now, event = self._clock(), _decode(line)
        owner = next((owner.name for owner in event.object.metadata.owner_references if owner.controller), None)
        if owner is None or event.type not in {"ADDED", "MODIFIED", "DELETED"}:
            return
        metadata, phase = event.object.metadata, event.object.status.phase
        self.pod_created.setdefault(owner, now)
        self.pods.setdefault(owner, set()).add(metadata.uid)
        held = self._held.setdefault(owner, set())
        if phase == "Running" and event.type != "DELETED":
            if self.running.get(owner) != metadata.name:
                self.running[owner] = metadata.name
                self.on_running(owner, metadata.name)
        else:
            self.running.pop(owner, None)
        if event.type != "DELETED" and (metadata.finalizers or phase not in _FINISHED_PHASES):
            held.add(metadata.uid)
            self.released.pop(owner, None)
        else:
            held.discard(metadata.uid)
        if phase in _FINISHED_PHASES:
            self.pod_ended.setdefault(owner, now)
        if not held:
            self.released.setdefault(owner, now)
            self._check()

    def observe_run(self, line: bytes) -> None:
        """Process an event of the TaskRun or Job watch."""
        now, event = self._clock(), _decode(line)
        status, name = event.object.status, event.object.metadata.name
        ended = {found.type for found in status.conditions if found.status == "True"} & _FINISHED_CONDITIONS
        if event.type == "BOOKMARK" or not (status.outcome or ended):
            return
        if status.outcome not in {"", "Succeeded"} or "Failed" in ended:
            self.failed.add(name)
        self.outcome.setdefault(name, now)
        self._check()

    def _check(self) -> None:
        if len(self.outcome) == self._runs and self.finished == self._runs:
            self.complete.set()


def _ignore(run: str, pod: str) -> None:
    """Do nothing about a pod that runs."""


def _decode(line: bytes) -> _Event:
    return msgspec.json.decode(line, type=_Event)


@contextlib.asynccontextmanager
async def observed(cluster: Cluster, kind: Kind, namespace: str, timeline: Timeline) -> AsyncIterator[None]:
    """Watch the pods and runs of an empty namespace within the `with` block."""
    async with asyncio.TaskGroup() as group:
        watches = [
            group.create_task(_observe(cluster, path, await version_of(cluster, path), process_event))
            for path, process_event in {
                paths.pods(namespace): timeline.observe_pod,
                kind.path(namespace): timeline.observe_run,
            }.items()
        ]
        yield
        for watch in watches:
            watch.cancel()


async def _observe(cluster: Cluster, path: str, version: str, process_event: Callable[[bytes], None]) -> None:
    async with contextlib.aclosing(watch(cluster, path, version)) as lines:
        async for line in lines:
            process_event(line)


async def create_runs(
    cluster: Cluster,
    kind: Kind,
    namespace: str,
    timeline: Timeline,
    *,
    runs: int,
    per_second: float | None,
    end_of: Callable[[int], PodEnd] = lambda _: PodEnd.SUCCEEDS,
) -> None:
    """Create the objects with `CONCURRENCY` concurrent requests.

    As fast as possible, or at the given rate per second. `end_of` returns how the pods of a run
    end, from the number of the run.
    """
    path = kind.path(namespace)
    started = time.monotonic()
    numbers = iter(range(runs))

    async def create() -> None:
        for number in numbers:
            if per_second is not None:
                await asyncio.sleep(max(0.0, started + number / per_second - time.monotonic()))
            name = f"run-{number:05}"
            body: dict[str, Any] = kind.build_object(name, end_of(number))
            timeline.record_create(name)
            await cluster.create(path, body)

    async with asyncio.TaskGroup() as group:
        for _ in range(CONCURRENCY):
            group.create_task(create())
