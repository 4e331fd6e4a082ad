"""A cluster for TaskRuns in one process and on one clock.

The Kubernetes API is in memory. The kubelet, the garbage collector and the controller of namespaces
are simulated. The state API (over loopback HTTP), the planner, the reconciler and the SDK in each
pod are the real ones.
"""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import msgspec

from reattach.adapters.base import Adapter
from reattach.api.names import API_VERSION, KIND, LABEL_TASKRUN
from reattach.api.objects import Pod
from reattach.api.state import JobSummary
from reattach.api.taskrun import TaskRun
from reattach.cluster import ConflictError, NotFoundError
from reattach.cluster.paths import configmaps, core, namespace_of, pods, taskruns
from reattach.server.application import InFlight, build_application
from reattach.server.config import Rate, ServerConfig
from reattach.server.metrics import ServerMetrics
from reattach.state import summary_of
from reattach.task.cleanup import CleanupTask
from reattach.task.context import Task
from reattach.testing.clocks import Clock, Turn, VirtualClock
from reattach.testing.inprocess_operator import InProcessOperator
from reattach.testing.loopback_server import LoopbackServer
from reattach.testing.memory_api import FOREGROUND_DELETION, InMemoryCluster
from reattach.testing.task_process import TaskProcess

JSON = dict[str, Any]
NAMESPACE = "simulated"
CONTAINER = {"name": "task", "image": "task:1"}
_NO_LIMIT = Rate(1e6, 10**6)
_SETTLE_SECONDS_MAX = 600.0
"""Longest time between two passes of operator and kubelet. A write starts a pass at once."""


@dataclass
class SimulatedNode:
    """Node and kubelet of one pod. The kubelet of a lost node reports nothing."""

    process: TaskProcess
    is_lost: bool = False
    reported: bool = False
    report_at: float | None = None
    """Time at which the kubelet reports that the process has ended."""


@dataclass
class SimulatedRun:
    """One TaskRun with its processes.

    `main(process, task)` is the task. `on_step(process, step)` is called at each step of a process.
    adapters: returns the adapters that a process registers for its cleanup.
    on_cleanup: handler that it registers, called as `on_cleanup(process, cleanup)`.
    """

    name: str
    main: Callable[[TaskProcess, Task], Any]
    on_step: Callable[[TaskProcess, str], None] = lambda _process, _step: None
    adapters: Callable[[TaskProcess], Iterable[Adapter]] = lambda _process: ()
    on_cleanup: Callable[[TaskProcess, CleanupTask], Any] | None = None
    nodes: dict[str, SimulatedNode] = field(default_factory=dict)
    """Nodes by the UID of the pod, in the order of their start."""

    @property
    def processes(self) -> list[TaskProcess]:
        return [node.process for node in self.nodes.values()]


class SimulatedCluster:
    """Runs TaskRuns one after the other, by `run_until`.

    Use it by `with`, from the thread that created the clock.
    """

    def __init__(self, clock: Clock | None = None, *, seed: int = 0, report_seconds: float = 1.0) -> None:
        self.clock = clock or VirtualClock()
        self.cluster = InMemoryCluster(self.clock.now)
        self.server = LoopbackServer()
        self.operator = InProcessOperator(self.cluster, self.clock.now)
        self.report_seconds = report_seconds
        self._jitter = random.Random(seed).random  # noqa: S311 -- spreads delays
        self._state_api: httpx.Client
        self._turn: Turn

    def __enter__(self) -> Self:
        self.server.__enter__()
        settings = ServerConfig(
            tls_cert=Path(),
            tls_key=Path(),
            taskrun_rate=_NO_LIMIT,
            namespace_rate=_NO_LIMIT,
            namespace_bytes_rate=Rate(1e12, 10**12),
            refused_token_rate=_NO_LIMIT,
        )
        application = build_application(self.cluster, settings, ServerMetrics(), InFlight(), clock=self.clock.now)
        self._state_api = httpx.Client(base_url=self.server.serve(application), trust_env=False, timeout=60)
        self._turn = self.clock.current()
        self.cluster.on_change = self._wake
        self.create_namespace()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._state_api.close()
        self.server.__exit__(kind, error, trace)

    def _wake(self) -> None:
        self.clock.wake(self._turn)

    # -- TaskRuns ----------------------------------------------------------------------------------

    def create_namespace(self) -> None:
        """Create the namespace of all TaskRuns, at the start and after `delete_namespace`."""
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
        self.server.call(self.cluster.create(core("namespaces", None), body))

    def delete_namespace(self) -> None:
        """Delete the namespace, as a user does. It goes once it is empty."""
        self.server.call(self.cluster.delete(namespace_of(NAMESPACE)))

    def create(self, name: str, spec: JSON | None = None) -> None:
        """Create a TaskRun with one container, short backoff and large budgets, and with `spec`."""
        body = {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": {"name": name},
            "spec": {
                "template": {"spec": {"containers": [CONTAINER], "terminationGracePeriodSeconds": 1}},
                "retry": {
                    "budgets": {"application": 50, "disruption": 50},
                    "backoff": {"initialSeconds": 1, "factorPercent": 100, "jitterPercent": 0},
                },
                **(spec or {}),
            },
        }
        self.server.call(self.cluster.create(taskruns(NAMESPACE), body))

    def taskrun(self, name: str) -> TaskRun:
        """Return the TaskRun. Raises `NotFoundError`."""
        return msgspec.json.decode(self.server.call(self.cluster.get(taskruns(NAMESPACE, name))), type=TaskRun)

    def patch(self, name: str, body: JSON) -> None:
        """Patch the TaskRun, as a user does."""
        self.server.call(self.cluster.merge_patch(taskruns(NAMESPACE, name), body))

    def delete(self, name: str, *, propagation_policy: str | None = None) -> None:
        """Delete the TaskRun, as a user does."""
        path = taskruns(NAMESPACE, name)
        self.server.call(self.cluster.delete(path, propagation_policy=propagation_policy))

    def resolve(self, name: str, resolution: JSON) -> None:
        """Append a resolution to the TaskRun, as a user does."""
        given = msgspec.to_builtins(self.taskrun(name).spec.resolutions)
        self.patch(name, {"spec": {"resolutions": [*given, resolution]}})

    def state_configmap(self, name: str) -> JSON | None:
        """Return the ConfigMap with the state, or None if it does not exist."""
        found = msgspec.json.decode(
            self.server.call(self.cluster.list(configmaps(NAMESPACE), labelSelector=f"{LABEL_TASKRUN}={name}"))
        )
        return found["items"][0] if found["items"] else None

    def jobs(self, name: str) -> tuple[JobSummary, ...]:
        """Return the external jobs from the summary of the state."""
        found = self.state_configmap(name)
        summary = summary_of(found["metadata"]["annotations"]) if found else None
        return summary.jobs if summary else ()

    def run_until(self, run: SimulatedRun, until: Callable[[], bool], *, seconds: float) -> bool:
        """Run until the condition holds, at most `seconds`, and return whether it holds."""
        end = self.clock.monotonic() + seconds
        while True:
            requeue_at = self.settle(run)
            if until():
                return True
            if (left := end - self.clock.monotonic()) <= 0:
                return False
            self.clock.sleep(min(self._wait(run, requeue_at), left))

    def settle(self, run: SimulatedRun) -> datetime | None:
        """Run the operator and the simulated parts until none of them changes anything.

        Return the time of the next requeue.
        """
        requeue_at = self.server.call(self.operator.settle())
        while self._run_kubelet(run) or self._collect_garbage(run) or self._end_namespace():
            requeue_at = self.server.call(self.operator.settle())
        return requeue_at

    def kill_processes(self, run: SimulatedRun) -> None:
        """Kill the remaining processes, with frozen ones."""
        for process in run.processes:
            if not process.has_ended:
                process.kill()
        self.clock.wait(lambda: all(process.has_ended for process in run.processes), seconds=120, every=0.01)

    # -- nodes -------------------------------------------------------------------------------------

    def lose_node(self, run: SimulatedRun, process: TaskProcess) -> None:
        """Lose the node of a process. Kubernetes deletes the pod, and its end is never reported."""
        run.nodes[process.uid].is_lost = True
        self._delete(process.pod, None)

    def evict(self, process: TaskProcess) -> None:
        """Evict the pod of a process.

        Like the eviction API, add the condition `DisruptionTarget` and delete the pod.
        """
        target = {
            "type": "DisruptionTarget",
            "status": "True",
            "reason": "EvictionByEvictionAPI",
            "lastTransitionTime": _text(self.clock.now()),
        }
        self._patch_status(process.pod, {"conditions": [target]})
        self._delete(process.pod, None)

    # -- the kubelet -------------------------------------------------------------------------------

    def _run_kubelet(self, run: SimulatedRun) -> bool:
        """Run the kubelet once, and return whether it changed something."""
        done = False
        for raw in self._list(pods(NAMESPACE), f"{LABEL_TASKRUN}={run.name}"):
            node = run.nodes.get(raw["metadata"]["uid"])
            if node is None:
                done |= self._start_process(run, raw)
            elif not node.is_lost:
                done |= self._report_end(node, msgspec.convert(raw, Pod))
        return done

    def _start_process(self, run: SimulatedRun, raw: JSON) -> bool:
        if "deletionTimestamp" in raw["metadata"]:
            return False
        path = pods(NAMESPACE, raw["metadata"]["name"])
        bound = self.server.call(self.cluster.merge_patch(path, {"spec": {"nodeName": "node"}}))
        pod = msgspec.json.decode(bound)
        state = {"running": {"startedAt": _text(self.clock.now())}}
        self._patch_status(pod, {"phase": "Running", "containerStatuses": [{"name": "task", "state": state}]})
        process = TaskProcess(
            pod,
            token=self.cluster.token_of(pod),
            state_api=self._state_api,
            clock=self.clock,
            main=run.main,
            adapters=run.adapters,
            on_cleanup=run.on_cleanup,
            on_step=run.on_step,
            jitter=self._jitter,
        )
        run.nodes[process.uid] = SimulatedNode(process)
        process.on_end = self._wake
        process.start()
        return True

    def _report_end(self, node: SimulatedNode, pod: Pod) -> bool:
        process = node.process
        if pod.metadata.deletion_timestamp is not None and not process.has_ended:
            process.kill()  # without a grace period, because simulated processes have no signals
            return False
        if not process.has_ended:
            return False
        if node.report_at is None:
            node.report_at = self.clock.monotonic() + self.report_seconds * self._jitter()
        if node.report_at > self.clock.monotonic():
            return False
        if not node.reported:
            node.reported = True
            self._write_end(process, pod)
            return True
        if pod.metadata.deletion_timestamp is not None and (pod.metadata.deletion_grace_period_seconds or 0) > 0:
            self._delete(process.pod, 0)
            return True
        return False

    def _write_end(self, process: TaskProcess, pod: Pod) -> None:
        running = pod.status.container_statuses[0].state.running
        ended = {
            "exitCode": process.code,
            "reason": "Error" if process.code else "Completed",
            "message": process.message,
            "startedAt": _text(running.started_at) if running and running.started_at else None,
            "finishedAt": _text(self.clock.now()),
        }
        phase = "Failed" if process.code else "Succeeded"
        statuses = [{"name": "task", "state": {"terminated": ended}}]
        self._patch_status(process.pod, {"phase": phase, "containerStatuses": statuses})

    # -- controllers -------------------------------------------------------------------------------

    def _collect_garbage(self, run: SimulatedRun) -> bool:
        """Delete what the TaskRun owns if it is gone or deleted in the foreground.

        Remove the finalizer of a foreground deletion once no owned object blocks it. Return whether
        something changed.
        """
        path = taskruns(NAMESPACE, run.name)
        owner = self._metadata_of(path)
        finalizers = owner.get("finalizers") or []
        if owner and FOREGROUND_DELETION not in finalizers:
            return False
        done = is_blocked = False
        for collection in (pods(NAMESPACE), configmaps(NAMESPACE)):
            for found in self._list(collection, f"{LABEL_TASKRUN}={run.name}"):
                metadata = found["metadata"]
                is_blocked |= any(one.get("blockOwnerDeletion") for one in metadata.get("ownerReferences") or ())
                if "deletionTimestamp" not in metadata:
                    self._delete_at(f"{collection}/{metadata['name']}", metadata["uid"])
                    done = True
        if owner and not is_blocked:
            left = [name for name in finalizers if name != FOREGROUND_DELETION]
            self.server.call(self.cluster.merge_patch(path, {"metadata": {"finalizers": left}}))
            done = True
        return done

    def _end_namespace(self) -> bool:
        """Delete the content of an ending namespace, pods first, and then the empty namespace.

        Return whether something changed.
        """
        if "deletionTimestamp" not in self._metadata_of(namespace_of(NAMESPACE)):
            return False
        for collections in ((pods(NAMESPACE),), (configmaps(NAMESPACE), taskruns(NAMESPACE))):
            content = [(path, found["metadata"]) for path in collections for found in self._list(path)]
            fresh = [(path, metadata) for path, metadata in content if "deletionTimestamp" not in metadata]
            for path, metadata in fresh:
                self._delete_at(f"{path}/{metadata['name']}", metadata["uid"])
            if content:
                return bool(fresh)
        self.cluster.remove_namespace(NAMESPACE)
        return True

    def _list(self, path: str, selector: str | None = None) -> list[JSON]:
        items: list[JSON] = msgspec.json.decode(self.server.call(self.cluster.list(path, labelSelector=selector)))[
            "items"
        ]
        return items

    def _metadata_of(self, path: str) -> JSON:
        """Return the metadata of an object, empty if it does not exist."""
        try:
            found = self.server.call(self.cluster.get(path, metadata_only=True))
        except NotFoundError:
            return {}
        metadata: JSON = msgspec.json.decode(found)["metadata"]
        return metadata

    def _patch_status(self, pod: JSON, status: JSON) -> None:
        metadata = pod["metadata"]
        path = f"{pods(NAMESPACE, metadata['name'])}/status"
        try:
            self.server.call(self.cluster.merge_patch(path, {"status": status}))
        except NotFoundError:
            return

    def _delete(self, pod: JSON, grace: int | None) -> None:
        self._delete_at(pods(NAMESPACE, pod["metadata"]["name"]), pod["metadata"]["uid"], grace)

    def _delete_at(self, path: str, uid: str, grace: int | None = None) -> None:
        try:
            self.server.call(self.cluster.delete(path, uid=uid, grace_period_seconds=grace))
        except (NotFoundError, ConflictError):
            return

    def _wait(self, run: SimulatedRun, requeue_at: datetime | None) -> float:
        delays = [_SETTLE_SECONDS_MAX]
        if requeue_at is not None:
            delays.append((requeue_at - self.clock.now()).total_seconds())
        now = self.clock.monotonic()
        delays += [node.report_at - now for node in run.nodes.values() if node.report_at and not node.reported]
        return max(0.001, min(delays))


def _is_deleted_in_foreground(owner: JSON) -> bool:
    return FOREGROUND_DELETION in (owner["metadata"].get("finalizers") or ())


def _text(time: datetime) -> str:
    return time.isoformat(timespec="microseconds").replace("+00:00", "Z")
