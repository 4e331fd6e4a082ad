"""Scenario of single writes: the API server's CPU time for each, with and without its rules."""

import asyncio
import contextlib
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec
import uvloop

from bench import kinds
from bench.client import CONCURRENCY
from bench.installation import STATE_API_URL, Installation
from bench.kinds import Kind, PodEnd
from bench.loop import build_status
from bench.rounds import Say
from bench.scenarios.base import WAIT_SECONDS, Parameters, Table, succeeded_status
from bench.usage import cpu_seconds
from controlplane import ControlPlaneError, RunningControlPlane
from reattach.api.objects import Pod
from reattach.api.taskrun import TaskRun
from reattach.cluster import Cluster, paths
from reattach.planner.plan import PodDefaults
from reattach.planner.pods import build_pod
from waiting import wait_until

_ROUNDS = 3
_ABSENT_NODE = "bench-absent"
"""No program plays this node, so its pods cost only the writes of this scenario."""
_BINDINGS = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings"
_DEFINITION = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/taskruns.reattach.dev"
_RULES = "x-kubernetes-validations"
_SETTLE_SECONDS = 2.0
"""Other parts of the API server learn a change of policies or of the CRD within this time."""

Write = Callable[[int], Awaitable[object]]
"""Sends one write for the run with this number."""


@dataclass(frozen=True)
class _Variant:
    title: str
    policies: bool
    rules: bool
    schema: bool


_VARIANTS = (
    _Variant("as installed", policies=True, rules=True, schema=True),
    _Variant("without policies", policies=False, rules=True, schema=True),
    _Variant("also without rules", policies=False, rules=False, schema=True),
    _Variant("also without schema", policies=False, rules=False, schema=False),
)


def measure_writes(installation: Installation, parameters: Parameters) -> Table:
    """Measure each write of a run: as installed, and without policies, CEL rules and schema."""
    measured: dict[str, dict[_Variant, list[float]]] = {}
    for number in range(_ROUNDS):
        for variant in _VARIANTS if number % 2 == 0 else reversed(_VARIANTS):
            with _changed(installation.control_plane, variant):
                costs = _measure_variant(installation, parameters.runs, parameters.say, variant.title)
            for write, milliseconds in costs.items():
                measured.setdefault(write, {}).setdefault(variant, []).append(milliseconds)
    rows = [
        [write, *(f"{statistics.median(found[each]):.2f}" for each in _VARIANTS), _spread_of(found[_VARIANTS[0]])]
        for write, found in measured.items()
    ]
    return Table(["write", *(each.title for each in _VARIANTS), "as installed, lowest-highest"], rows)


def _spread_of(values: list[float]) -> str:
    return f"{min(values):.2f}-{max(values):.2f}"


def _measure_variant(installation: Installation, runs: int, say: Say, title: str) -> dict[str, float]:
    """Return the API server's CPU time for each write, in milliseconds."""
    namespace = installation.create_namespace()
    say(f"Writes {title}, {runs} of each")
    result = uvloop.run(_send_writes(installation, namespace, runs))
    installation.clear(Kind.TASKRUN, namespace)
    installation.wait_until_idle()
    return result


async def _send_writes(installation: Installation, namespace: str, runs: int) -> dict[str, float]:
    control_plane = installation.control_plane
    async with (
        await Cluster.connect(str(control_plane.kubeconfig())) as user,
        await Cluster.connect(str(installation.kubeconfig())) as operator,
    ):
        run = _Runs(user, operator, namespace, PodDefaults(url=STATE_API_URL, ca=control_plane.ca_file.read_text()))
        writes: Mapping[str, Write] = {
            "create TaskRun": run.create_taskrun,
            "create pod": run.create_pod,
            "patch pods/status, as a kubelet": run.end_pod,
            "patch taskruns/status": run.finish,
            "patch pod (finalizer)": run.release_pod,
            "create Job, to compare": run.create_job,
        }
        server = installation.processes[kinds.API_SERVER]
        return {name: await _cost_of(write, runs, server) for name, write in writes.items()}


async def _cost_of(write: Write, runs: int, server: int) -> float:
    numbers = iter(range(runs))

    async def send() -> None:
        for number in numbers:
            await write(number)

    before = cpu_seconds(server)
    async with asyncio.TaskGroup() as group:
        for _ in range(CONCURRENCY):
            group.create_task(send())
    return 1000 * (cpu_seconds(server) - before) / runs


class _Runs:
    """The writes of a successful run, one step of many runs after the other."""

    def __init__(self, user: Cluster, operator: Cluster, namespace: str, defaults: PodDefaults) -> None:
        self._user, self._operator = user, operator
        self._namespace = namespace
        self._defaults = defaults
        self._taskruns: dict[int, TaskRun] = {}
        self._pods: dict[int, Pod] = {}

    async def create_taskrun(self, number: int) -> None:
        body = Kind.TASKRUN.build_object(f"run-{number:05}")
        body["spec"]["template"]["spec"] = {**body["spec"]["template"]["spec"], "nodeName": _ABSENT_NODE}
        created = await self._user.create(paths.taskruns(self._namespace), body)
        self._taskruns[number] = msgspec.json.decode(created, type=TaskRun)

    async def create_pod(self, number: int) -> None:
        body = build_pod(self._taskruns[number], 1, self._defaults)
        created = await self._operator.create(paths.pods(self._namespace), body)
        self._pods[number] = msgspec.json.decode(created, type=Pod)

    async def end_pod(self, number: int) -> None:
        path = f"{paths.pods(self._namespace, self._pods[number].metadata.name)}/status"
        await self._user.merge_patch(path, {"status": succeeded_status()})

    async def finish(self, number: int) -> None:
        taskrun = self._taskruns[number]
        status = msgspec.to_builtins(build_status(taskrun, self._pods[number], datetime.now(UTC)))
        version = {"resourceVersion": taskrun.metadata.resource_version, "uid": taskrun.metadata.uid}
        path = paths.taskruns(self._namespace, taskrun.metadata.name, "status")
        await self._operator.merge_patch(path, {"metadata": version, "status": status})

    async def release_pod(self, number: int) -> None:
        pod = self._pods[number].metadata
        body = {"metadata": {"uid": pod.uid, "finalizers": []}}
        await self._operator.merge_patch(paths.pods(self._namespace, pod.name), body)

    async def create_job(self, number: int) -> None:
        body = Kind.JOB.build_object(f"job-{number:05}", PodEnd.HELD)
        body["spec"]["suspend"] = True  # no controller may spend CPU time on it
        await self._user.create(Kind.JOB.path(self._namespace), body)


@contextlib.contextmanager
def _changed(control_plane: RunningControlPlane, variant: _Variant) -> Iterator[None]:
    """Remove policies, rules and schema within the `with` block."""
    bindings = control_plane.call("GET", _BINDINGS)["items"]
    versions = control_plane.call("GET", _DEFINITION)["spec"]["versions"]
    try:
        if not variant.policies:
            for binding in bindings:
                control_plane.call("DELETE", f"{_BINDINGS}/{binding['metadata']['name']}")
        if not (variant.rules and variant.schema):
            _replace_versions(control_plane, _reduced(versions, variant))
        time.sleep(_SETTLE_SECONDS)
        yield
    finally:
        if not (variant.rules and variant.schema):
            _replace_versions(control_plane, versions)
        if not variant.policies:
            for binding in bindings:
                metadata = {key: binding["metadata"].get(key, {}) for key in ("name", "labels", "annotations")}
                control_plane.call("POST", _BINDINGS, {"metadata": metadata, "spec": binding["spec"]})


def _replace_versions(control_plane: RunningControlPlane, versions: Any) -> None:
    def replace() -> bool:
        definition = control_plane.call("GET", _DEFINITION)
        definition["spec"]["versions"] = versions
        try:
            control_plane.call("PUT", _DEFINITION, definition)
        except ControlPlaneError as error:
            if "409" not in str(error):
                raise
            return False
        return True

    wait_until(replace, seconds=WAIT_SECONDS, what="the CRD is replaced")


def _reduced(versions: Any, variant: _Variant) -> Any:
    reduced = _without_rules(versions)
    if not variant.schema:
        anything = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
        for version in reduced:
            version.pop("selectableFields", None)  # they must be in the schema
            version["schema"]["openAPIV3Schema"] = {
                "type": "object",
                "properties": {"spec": anything, "status": anything},
            }
    return reduced


def _without_rules(schema: Any) -> Any:
    if isinstance(schema, dict):
        return {key: _without_rules(value) for key, value in schema.items() if key != _RULES}
    if isinstance(schema, list):
        return [_without_rules(each) for each in schema]
    return schema
