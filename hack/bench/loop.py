"""Bare loop that sends only the indispensable writes for each TaskRun.

Its throughput is the upper limit for any TaskRun controller in Python. The loop makes no decisions,
retries nothing and reads only its watches. It creates the pod, patches the outcome, and removes the
finalizer of the pod.
"""

import argparse
import asyncio
import contextlib
import sys
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from bench.watch import version_of, watch
from reattach.api.names import FINALIZER_ATTEMPT
from reattach.api.objects import Pod
from reattach.api.reasons import Cause, End, Outcome, Reason
from reattach.api.taskrun import Attempt, TaskRun, TaskRunStatus
from reattach.cluster import Cluster, paths
from reattach.planner.conditions import to_write, with_attempt, with_outcome
from reattach.planner.plan import PodDefaults
from reattach.planner.pods import build_pod

CONCURRENCY = 32
"""Number of concurrent writes, equal to the operator's default."""
_FINISHED = frozenset({"Succeeded", "Failed"})


class _TaskRunEvent(msgspec.Struct, frozen=True):
    type: str
    object: TaskRun


class _PodEvent(msgspec.Struct, frozen=True):
    type: str
    object: Pod


class Loop:
    """Controller of one namespace that is empty at the start."""

    def __init__(self, cluster: Cluster, namespace: str, settings: PodDefaults) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._settings = settings
        self._taskruns: dict[str, TaskRun] = {}
        self._ended: set[str] = set()
        self._writes: asyncio.Queue[Callable[[], Awaitable[None]]] = asyncio.Queue()

    async def run(self) -> None:
        """Process events until cancelled."""
        watched = {paths.taskruns(self._namespace): self._on_taskrun, paths.pods(self._namespace): self._on_pod}
        versions = {path: await version_of(self._cluster, path) for path in watched}
        async with asyncio.TaskGroup() as group:
            for path, handle in watched.items():
                group.create_task(self._watch(path, versions[path], handle))
            for _ in range(CONCURRENCY):
                group.create_task(self._write())
            print("ready", flush=True)

    async def _watch(self, path: str, version: str, handle: Callable[[bytes], None]) -> None:
        async with contextlib.aclosing(watch(self._cluster, path, version)) as lines:
            async for line in lines:
                handle(line)

    async def _write(self) -> None:
        while True:
            await (await self._writes.get())()

    def _on_taskrun(self, line: bytes) -> None:
        event = msgspec.json.decode(line, type=_TaskRunEvent)
        if event.type == "ADDED":
            self._taskruns[event.object.metadata.uid] = event.object
            self._writes.put_nowait(lambda: self._start(event.object))

    def _on_pod(self, line: bytes) -> None:
        event = msgspec.json.decode(line, type=_PodEvent)
        pod = event.object
        if event.type != "MODIFIED" or pod.status.phase not in _FINISHED or pod.metadata.uid in self._ended:
            return
        self._ended.add(pod.metadata.uid)
        self._writes.put_nowait(lambda: self._finish(pod))

    async def _start(self, taskrun: TaskRun) -> None:
        await self._cluster.create(paths.pods(self._namespace), build_pod(taskrun, 1, self._settings))

    async def _finish(self, pod: Pod) -> None:
        taskrun = self._taskruns.pop(pod.metadata.owner_references[0].uid)
        metadata = taskrun.metadata
        status = msgspec.to_builtins(build_status(taskrun, pod, datetime.now(UTC)))
        version = {"resourceVersion": metadata.resource_version, "uid": metadata.uid}
        path = paths.taskruns(self._namespace, metadata.name, "status")
        await self._cluster.merge_patch(path, {"metadata": version, "status": status})
        kept = [name for name in pod.metadata.finalizers if name != FINALIZER_ATTEMPT]
        version = {"resourceVersion": pod.metadata.resource_version, "uid": pod.metadata.uid}
        path = paths.pods(self._namespace, pod.metadata.name)
        await self._cluster.merge_patch(path, {"metadata": {**version, "finalizers": kept}})


def build_status(taskrun: TaskRun, pod: Pod, now: datetime) -> TaskRunStatus:
    """Return the status that the operator writes for a run whose first attempt succeeded."""
    attempt = Attempt(
        number=1,
        pod_name=pod.metadata.name,
        pod_uid=pod.metadata.uid,
        node=pod.spec.node_name,
        start_time=pod.metadata.creation_timestamp,
        finish_time=now.replace(microsecond=0),
        end=End.REPORTED.value,
        cause=Cause.SUCCEEDED.value,
        reason="Completed",
        exit_code=0,
        message="The container exited with 0.",
    )
    status = with_attempt(taskrun.status, attempt)
    status = with_outcome(status, Outcome.SUCCEEDED, Reason.SUCCEEDED, "Attempt 1 completed the task.", now)
    written = to_write(taskrun.status, status, taskrun.metadata.generation, now)
    assert written is not None, "the status of a TaskRun without a status always changes"
    return written


async def main(arguments: argparse.Namespace) -> None:
    """Connect, and process events until the process is killed."""
    settings = PodDefaults(url=arguments.state_api_url, ca=arguments.ca)
    async with await Cluster.connect(arguments.kubeconfig) as cluster:
        await Loop(cluster, arguments.namespace, settings).run()


def parse_arguments(arguments: Sequence[str]) -> Any:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("--kubeconfig", "--namespace", "--state-api-url"):
        parser.add_argument(name, required=True)
    parser.add_argument("--ca-file", dest="ca", type=lambda path: Path(path).read_text(), required=True)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    uvloop.run(main(parse_arguments(sys.argv[1:])))
