"""Everything that a TaskRun with external jobs lives in, in one process: a Kubernetes API in memory, the real state API over loopback HTTP,
the real planner and reconciler of the operator, a kubelet, and the real SDK in each pod. All on one clock.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import msgspec

from reattach.api.names import API_VERSION, KIND, LABEL_TASKRUN
from reattach.api.objects import Pod
from reattach.api.state import JobSummary
from reattach.api.taskrun import TaskRun
from reattach.cluster import ConflictError, NotFoundError
from reattach.cluster.paths import configmaps, pods, taskruns
from reattach.server.application import InFlight, build_application
from reattach.server.config import Rate, ServerConfig
from reattach.server.metrics import ServerMetrics
from reattach.state import summary_of
from reattach.task.context import Task
from reattach.testing.clocks import Clock, Turn, VirtualClock
from reattach.testing.inprocess_operator import InProcessOperator
from reattach.testing.loopback_server import LoopbackServer
from reattach.testing.memory_api import InMemoryCluster
from reattach.testing.task_process import TaskProcess

JSON = dict[str, Any]
NAMESPACE = "lives"
CONTAINER = {"name": "task", "image": "task:1"}
_NO_LIMIT = Rate(1e6, 10**6)
_LONGEST_LOOK = 600.0
"""Seconds. Whatever is written wakes the operator and the kubelet."""


@dataclass
class SimulatedNode:
    """What the kubelet of one pod does. `is_lost`: it can't be reached, so it reports nothing."""

    process: TaskProcess
    is_lost: bool = False
    reported: bool = False
    report_at: float | None = None
    """When it reports the end of a process that has ended."""


@dataclass
class SimulatedRun:
    """One TaskRun, and what its pods do. `main(process, task)` is the task; `on_step` is asked at each step of each process."""

    name: str
    main: Callable[[TaskProcess, Task], Any]
    on_step: Callable[[TaskProcess, str], None] = lambda _process, _step: None
    nodes: dict[str, SimulatedNode] = field(default_factory=dict)
    """By the pod's UID, in the order in which they began."""

    @property
    def processes(self) -> list[TaskProcess]:
        return [node.process for node in self.nodes.values()]


class SimulatedCluster:
    """Use it by `with`, from the thread that made the clock. TaskRuns live in it one after the other, by `live`."""

    def __init__(self, clock: Clock | None = None, *, seed: int = 0, report_seconds: float = 1.0) -> None:
        self.clock = clock or VirtualClock()
        self.cluster = InMemoryCluster(self.clock.now)
        self.service = LoopbackServer()
        self.operator = InProcessOperator(self.cluster, self.clock.now)
        self.report_seconds = report_seconds
        self._chance = random.Random(seed).random  # noqa: S311 -- spreads waits
        self._state_api: httpx.Client
        self._here: Turn

    def __enter__(self) -> Self:
        self.service.__enter__()
        settings = ServerConfig(
            tls_cert=Path(),
            tls_key=Path(),
            taskrun_rate=_NO_LIMIT,
            namespace_rate=_NO_LIMIT,
            namespace_bytes_rate=Rate(1e12, 10**12),
            refused_token_rate=_NO_LIMIT,
        )
        application = build_application(self.cluster, settings, ServerMetrics(), InFlight(), clock=self.clock.now)
        self._state_api = httpx.Client(base_url=self.service.serve(application), trust_env=False, timeout=60)
        self._here = self.clock.current()
        self.cluster.on_change = self._wake
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._state_api.close()
        self.service.__exit__(kind, error, trace)

    def _wake(self) -> None:
        self.clock.wake(self._here)

    # -- TaskRuns ----------------------------------------------------------------------------------

    def create(self, name: str, spec: JSON | None = None) -> None:
        """A TaskRun; `spec` is added to a template of one container, retries that come soon, and budgets that last."""
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
        self.service.call(self.cluster.create(taskruns(NAMESPACE), body))

    def taskrun(self, name: str) -> TaskRun:
        """As it is now. Raises `NotFoundError`."""
        return msgspec.json.decode(self.service.call(self.cluster.get(taskruns(NAMESPACE, name))), type=TaskRun)

    def patch(self, name: str, body: JSON) -> None:
        """What a person does by kubectl."""
        self.service.call(self.cluster.merge_patch(taskruns(NAMESPACE, name), body))

    def delete(self, name: str) -> None:
        """By kubectl, too."""
        self.service.call(self.cluster.delete(taskruns(NAMESPACE, name)))

    def resolve(self, name: str, resolution: JSON) -> None:
        """A person's answer to what is held."""
        spec = msgspec.to_builtins(self.taskrun(name).spec)
        self.patch(name, {"spec": {"resolutions": [*spec.get("resolutions", ()), resolution]}})

    def state_of(self, name: str) -> JSON | None:
        """The ConfigMap with its state; None: there is none."""
        found = msgspec.json.decode(
            self.service.call(self.cluster.list(configmaps(NAMESPACE), labelSelector=f"{LABEL_TASKRUN}={name}"))
        )
        return found["items"][0] if found["items"] else None

    def jobs(self, name: str) -> tuple[JobSummary, ...]:
        """Its external jobs, as its state's summary has them."""
        found = self.state_of(name)
        summary = summary_of(found["metadata"]["annotations"]) if found else None
        return summary.jobs if summary else ()

    def live(self, run: SimulatedRun, until: Callable[[], bool], *, seconds: float) -> bool:
        """Let time pass until something is so, for at most so many seconds; whether it is."""
        end = self.clock.monotonic() + seconds
        while True:
            again = self.look(run)
            if until():
                return True
            if (left := end - self.clock.monotonic()) <= 0:
                return False
            self.clock.sleep(min(self._wait(run, again), left))

    def look(self, run: SimulatedRun) -> datetime | None:
        """The operator and the kubelet do what there is to do now; when the operator will look again by itself."""
        again = self.service.call(self.operator.settle())
        while self._keep(run):
            again = self.service.call(self.operator.settle())
        return again

    def end(self, run: SimulatedRun) -> None:
        """Kill what is left, frozen or not."""
        for process in run.processes:
            if not process.has_ended:
                process.kill()
        self.clock.wait(lambda: all(process.has_ended for process in run.processes), seconds=120, every=0.01)

    # -- nodes -------------------------------------------------------------------------------------

    def lose_node(self, run: SimulatedRun, process: TaskProcess) -> None:
        """The process's node can't be reached any more: Kubernetes deletes the pod, and nobody reports its end."""
        run.nodes[process.uid].is_lost = True
        self._delete(process.pod, None)

    def find_node(self, run: SimulatedRun, process: TaskProcess) -> None:
        """The node is back. Its kubelet ends what runs in a deleted pod, and reports it."""
        run.nodes[process.uid].is_lost = False

    def evict(self, process: TaskProcess) -> None:
        """As the eviction API does it: the pod says that it is disrupted, and is deleted."""
        target = {
            "type": "DisruptionTarget",
            "status": "True",
            "reason": "EvictionByEvictionAPI",
            "lastTransitionTime": _text(self.clock.now()),
        }
        self._patch_status(process.pod, {"conditions": [target]})
        self._delete(process.pod, None)

    # -- the kubelet -------------------------------------------------------------------------------

    def _keep(self, run: SimulatedRun) -> bool:
        """Whether there was something to do."""
        found = self.service.call(self.cluster.list(pods(NAMESPACE), labelSelector=f"{LABEL_TASKRUN}={run.name}"))
        done = False
        for raw in msgspec.json.decode(found)["items"]:
            node = run.nodes.get(raw["metadata"]["uid"])
            if node is None:
                done |= self._begin(run, raw)
            elif not node.is_lost:
                done |= self._report(node, msgspec.convert(raw, Pod))
        return done

    def _begin(self, run: SimulatedRun, raw: JSON) -> bool:
        if "deletionTimestamp" in raw["metadata"]:
            return False
        path = pods(NAMESPACE, raw["metadata"]["name"])
        bound = self.service.call(self.cluster.merge_patch(path, {"spec": {"nodeName": "node"}}))
        pod = msgspec.json.decode(bound)
        state = {"running": {"startedAt": _text(self.clock.now())}}
        self._patch_status(pod, {"phase": "Running", "containerStatuses": [{"name": "task", "state": state}]})
        process = TaskProcess(
            pod,
            token=self.cluster.token_of(pod),
            state_api=self._state_api,
            clock=self.clock,
            main=run.main,
            on_step=run.on_step,
            chance=self._chance,
        )
        run.nodes[process.uid] = SimulatedNode(process)
        process.on_end = self._wake
        process.start()
        return True

    def _report(self, node: SimulatedNode, pod: Pod) -> bool:
        process = node.process
        if pod.metadata.deletion_timestamp is not None and not process.has_ended:
            process.kill()  # its grace period is none: nothing here handles SIGTERM
            return False
        if not process.has_ended:
            return False
        if node.report_at is None:
            node.report_at = self.clock.monotonic() + self.report_seconds * self._chance()
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

    def _patch_status(self, pod: JSON, status: JSON) -> None:
        about = pod["metadata"]
        path = f"{pods(NAMESPACE, about['name'])}/status"
        try:
            self.service.call(self.cluster.merge_patch(path, {"status": status}))
        except NotFoundError:
            return

    def _delete(self, pod: JSON, grace: int | None) -> None:
        about = pod["metadata"]
        path = pods(NAMESPACE, about["name"])
        try:
            self.service.call(self.cluster.delete(path, uid=about["uid"], grace_period_seconds=grace))
        except (NotFoundError, ConflictError):
            return

    def _wait(self, run: SimulatedRun, again: datetime | None) -> float:
        waits = [_LONGEST_LOOK]
        if again is not None:
            waits.append((again - self.clock.now()).total_seconds())
        now = self.clock.monotonic()
        waits += [node.report_at - now for node in run.nodes.values() if node.report_at and not node.reported]
        return max(0.001, min(waits))


def _text(time: datetime) -> str:
    return time.isoformat(timespec="microseconds").replace("+00:00", "Z")
