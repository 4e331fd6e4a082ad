"""Memory of the operator after many finished runs."""

import asyncio
import gc
import json
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import msgspec

from reattach.api.names import ANNOTATION_CA, ANNOTATION_SUMMARY, FINALIZER_ATTEMPT, FINALIZER_STATE, LABEL_TASKRUN
from reattach.api.objects import PartialObject, Pod
from reattach.runtime.metrics import OperatorMetrics
from reattach.runtime.object_store import ObjectStore
from reattach.runtime.reflector import Reflector
from reattach.runtime.unreadable import UnreadableObjects
from reattach.runtime.workqueue import Key, WorkQueue
from reattach.taskrun.orphan_records import orphan_store
from reattach.taskrun.owned_stores import pod_store, state_store
from reattach.taskrun.reconciler import Reconciler, Stores

if TYPE_CHECKING:
    from reattach.cluster import Cluster

RUNS = 5000
BYTES_PER_RUN_MAX = 1024
"""Two tombstones: a UID and a resourceVersion in a dictionary for the pod, and for the state."""
JSON = dict[str, Any]


class Stream:
    """API server with an empty list and one watch that sends `events`."""

    def __init__(self, events: Iterator[JSON]) -> None:
        self._events = events
        self.quiet = asyncio.Event()

    async def list(self, _: str, **__: Any) -> bytes:
        return b'{"metadata": {"resourceVersion": "1"}, "items": []}'

    async def watch(self, _: str, **__: Any) -> AsyncIterator[bytes]:
        for number, event in enumerate(self._events):
            yield json.dumps(event).encode()
            if number % 100 == 0:
                await asyncio.sleep(0)
        self.quiet.set()
        await asyncio.Event().wait()


def metadata_of(kind: str, number: int, version: int, finalizers: list[str], annotations: dict[str, str]) -> JSON:
    return {
        "name": f"load-{number}-{kind}",
        "namespace": "team-a",
        "uid": f"00000000-0000-4000-8000-{kind:>4}{number:08}",
        "resourceVersion": str(version),
        "labels": {LABEL_TASKRUN: f"load-{number}"},
        "annotations": annotations,
        "finalizers": finalizers,
    }


def pod_events(runs: int) -> Iterator[JSON]:
    """Yield the events of pods that start, end, and are released."""
    for number in range(runs):
        steps: list[tuple[str, str, list[str]]] = [
            ("ADDED", "Pending", [FINALIZER_ATTEMPT]),
            ("MODIFIED", "Succeeded", [FINALIZER_ATTEMPT]),
            ("MODIFIED", "Succeeded", []),
        ]
        for step, (event, phase, finalizers) in enumerate(steps):
            metadata = metadata_of("pod", number, 10 * number + 10 + step, finalizers, {ANNOTATION_CA: "ca" * 350})
            yield {"type": event, "object": {"metadata": metadata, "status": {"phase": phase}}}


def state_events(runs: int) -> Iterator[JSON]:
    """Yield the events of states that are created and released."""
    for number in range(runs):
        for step, finalizers in enumerate([[FINALIZER_STATE], []]):
            summary = {ANNOTATION_SUMMARY: json.dumps({"filler": "s" * 500})}
            metadata = metadata_of("cm", number, 10 * number + 10 + step, finalizers, summary)
            yield {"type": "MODIFIED" if step else "ADDED", "object": {"metadata": metadata}}


class NoTaskRuns:
    """Store of unfinished TaskRuns in which every run has finished."""

    def get(self, _: Key) -> None:
        return None

    def is_suspect(self, _: Key) -> bool:
        return False

    async def refresh(self, _: Key) -> None:
        return None


class NoEffects:
    """Executor whose writes the stream contains already."""

    async def release_pod(self, _: Pod) -> None: ...

    async def release(self, _: PartialObject) -> None: ...

    def forget(self, _: Key) -> None: ...


def reconciler_of(pods: ObjectStore[Pod], states: ObjectStore[PartialObject]) -> Reconciler:
    unused: Any = SimpleNamespace()
    stores = Stores(taskruns=cast("Any", NoTaskRuns()), pods=pods, states=states, orphans=orphan_store())
    reconciler = Reconciler(
        cluster=unused,
        writer=unused,
        stores=stores,
        queue=WorkQueue(),
        event_recorder=unused,
        metrics=unused,
        decide=unused,
        pod_defaults=unused,
        nodes=unused,
        pod_events=unused,
    )
    reconciler._executor = cast("Any", NoEffects())
    return reconciler


async def test_stores_after_finished_runs_are_empty_and_memory_per_run_is_bounded() -> None:
    woken: set[Key] = set()
    pods, states = pod_store(woken.add), state_store(woken.add)
    reconciler = reconciler_of(pods, states)

    async def work() -> None:
        while True:
            while woken:
                await reconciler.reconcile(woken.pop())
            await asyncio.sleep(0)

    unreadable = UnreadableObjects(OperatorMetrics())
    streams = [Stream(pod_events(RUNS)), Stream(state_events(RUNS))]
    reflectors: list[Reflector[Any]] = [
        Reflector(cast("Cluster", streams[0]), "/api/v1/pods", Pod, pods, unreadable),
        Reflector(cast("Cluster", streams[1]), "/api/v1/configmaps", PartialObject, states, unreadable),
    ]
    gc.collect()
    tracemalloc.start()
    running = [asyncio.ensure_future(loop) for loop in (work(), *(reflector.run() for reflector in reflectors))]
    for stream in streams:
        await stream.quiet.wait()
    while woken:
        await asyncio.sleep(0)
        assert not running[0].done(), running[0].exception()
    gc.collect()
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    for task in running:
        task.cancel()
    assert (len(pods), len(states)) == (0, 0)
    assert grown / RUNS < BYTES_PER_RUN_MAX


def test_store_after_eviction_ignores_older_versions_only() -> None:
    woken: list[Key] = []
    pods = pod_store(woken.append)
    *before, after = [msgspec.convert(event["object"], Pod) for event in pod_events(1)]
    assert pods.upsert(after)
    pods.evict(after.metadata.uid)
    assert len(woken) == 1, "an eviction wakes no worker"
    assert not any(pods.upsert(pod) for pod in before)
    assert len(pods) == 0
    assert pods.upsert(after), "a GET brings the pod back"
