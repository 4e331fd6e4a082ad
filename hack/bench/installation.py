"""System under test: control plane, kwok, the chart's objects, and the controllers as processes."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from bench import kinds
from bench.kinds import NODE, Kind
from bench.usage import cpu_seconds_of
from controlplane import CACHE, CONTROLLERS, ControlPlaneError, RunningControlPlane, Setup, running
from operator_process import Operator, Operators
from reattach.cluster.paths import core, events, pods
from stateapi import Server, Servers
from waiting import read_until, wait_until

KWOK = CACHE / "bin/kwok"
STAGES = Path(__file__).parent / "stages.yaml"
RELEASE = "reattach"
"""Name and namespace of the chart's release."""
STATE_API_USER = f"system:serviceaccount:{RELEASE}:reattach-server"
OPERATOR_USER = f"system:serviceaccount:{RELEASE}:reattach-operator"
MANAGER_USER = "system:kube-controller-manager"
STATE_API_URL = "https://reattach-server.reattach.svc:8443"
UNLIMITED = "100000"
"""Requests per second if the limits are raised."""
IDLE_SHARE = 0.1
"""Share of one core that all components together may use before a round starts."""
WAIT_SECONDS = 300.0

Nodes = Callable[[RunningControlPlane], AbstractContextManager[int]]
"""Program that plays the nodes, as a context manager that yields its process ID."""


def audit_policy_of(level: str) -> dict[str, Any]:
    """Return an audit policy that logs the requests of the controllers at this level.

    `Metadata` logs no bodies and is cheap. `RequestResponse` logs bodies and slows the API server
    down, so it is not used while times are measured.
    """
    return {
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived", "ResponseStarted"],
        "rules": [
            {"level": "Metadata", "users": ["admin"], "nonResourceURLs": ["/version"]},
            {"level": "None", "verbs": ["watch"]},
            {"level": "None", "resources": [{"group": "coordination.k8s.io"}]},
            {"level": level, "users": [OPERATOR_USER, MANAGER_USER, STATE_API_USER]},
            {"level": "None"},
        ],
    }


@dataclass(frozen=True)
class Settings:
    """Options of the command line.

    `defaults`: every controller keeps its default request limits.
    """

    defaults: bool = False
    policies: bool = True


@dataclass
class Installation:
    """Control plane with the components that all kinds share."""

    control_plane: RunningControlPlane
    settings: Settings
    operators: Operators
    servers: Servers
    nodes: int
    """Process ID of the program that plays the nodes."""

    @property
    def processes(self) -> dict[str, int]:
        """Process IDs of the components that run for every kind."""
        process_id = self.control_plane.process_id
        return {
            kinds.API_SERVER: process_id("kube-apiserver"),
            kinds.ETCD: process_id("etcd"),
            kinds.CONTROLLER_MANAGER: process_id("kube-controller-manager"),
            kinds.NODES: self.nodes,
            kinds.CLIENT: os.getpid(),
        }

    @contextlib.contextmanager
    def controller_of(self, kind: Kind, namespace: str) -> Iterator[Mapping[str, int]]:
        """Run the controller of a kind within the `with` block; yield its process ID by name.

        The Job controller yields nothing, because it is part of the controller manager, which
        always runs.
        """
        if kind is Kind.TASKRUN:
            with self._operator() as process_id:
                yield {kinds.OPERATOR: process_id}
        elif kind is Kind.BARE:
            with self._loop(namespace) as process_id:
                yield {kinds.LOOP: process_id}
        else:
            yield {}

    def make_operator(self, identity: str = "bench", kubeconfig: Path | None = None) -> Operator:
        """Return a replica of the operator that is not started. All replicas share one Lease."""
        limits = () if self.settings.defaults else ("--writes-per-second", UNLIMITED)
        return self.operators.make(
            *("--namespace", RELEASE, "--log-level", "warning", *limits),
            namespaces=(),
            lease="reattach-operator",
            identity=identity,
            kubeconfig=kubeconfig or self.kubeconfig(),
        )

    @contextlib.contextmanager
    def state_api(self, *arguments: str) -> Iterator[Server]:
        """Run a replica of the state API, which accepts any rate, within the `with` block."""
        server = self.servers.start("--kubeconfig", str(self.kubeconfig("reattach-server")), *arguments)
        try:
            yield server
        finally:
            server.kill()

    @contextlib.contextmanager
    def _operator(self) -> Iterator[int]:
        operator = self.make_operator()
        try:
            operator.start()
            assert operator.process is not None
            yield operator.process.pid
        finally:
            operator.kill(signal.SIGTERM)

    @contextlib.contextmanager
    def _loop(self, namespace: str) -> Iterator[int]:
        flags = ["--kubeconfig", self.kubeconfig(), "--namespace", namespace, "--state-api-url", STATE_API_URL]
        flags += ["--ca-file", self.control_plane.ca_file]
        command = [*_die_with_parent(), sys.executable, "-m", "bench.loop", *map(str, flags)]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        try:
            read_until(process, process.stdout, "ready")
            yield process.pid
        finally:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()

    def kubeconfig(self, service_account: str = "reattach-operator") -> Path:
        """Return a kubeconfig of a service account, which the admission policies trust."""
        return self.control_plane.service_account_kubeconfig(RELEASE, service_account, seconds=4 * 3600)

    def create_namespace(self) -> str:
        """Create a namespace for one phase; wait until the controller manager has filled it."""
        name = self.control_plane.create_namespace("bench")

        def is_complete() -> bool:
            with contextlib.suppress(ControlPlaneError):
                return bool(self.control_plane.call("GET", core("configmaps", name, "kube-root-ca.crt")))
            return False

        wait_until(is_complete, seconds=WAIT_SECONDS, what="the namespace has its CA")
        return name

    def calls_since(self, mark: int, kind: Kind, namespace: str | None) -> list[dict[str, Any]]:
        """Return the audit events of a kind's controller that concern a namespace (None: all)."""
        user = MANAGER_USER if kind is Kind.JOB else OPERATOR_USER
        return self.control_plane.audit(mark, user=user, namespace=namespace)

    def clear(self, kind: Kind, namespace: str) -> None:
        """Delete all objects of a phase, and wait until they are gone."""
        collections = [pods(namespace), kind.path(namespace), events(namespace)]

        def is_empty() -> bool:
            left = False
            for path in collections:
                if self.control_plane.call("GET", path, limit=1)["items"]:
                    left = True
                    # A long deletion may time out; the next call continues it.
                    with contextlib.suppress(httpx.TimeoutException):
                        self.control_plane.call("DELETE", path, gracePeriodSeconds=0, propagationPolicy="Background")
            return not left

        wait_until(is_empty, seconds=WAIT_SECONDS, what=f"{namespace} is empty", every=0.5)
        self.control_plane.delete_namespace(namespace)

    def wait_until_idle(self) -> None:
        """Wait until the components are idle. Continue after 20 s if they do not become idle."""
        shared = {name: number for name, number in self.processes.items() if name != kinds.CLIENT}
        with contextlib.suppress(AssertionError):
            wait_until(lambda: _cpu_share_of(shared) < IDLE_SHARE, seconds=20, what="the control plane is idle")


def _cpu_share_of(processes: Mapping[str, int]) -> float:
    before, started = sum(cpu_seconds_of(processes).values()), time.monotonic()
    time.sleep(0.5)
    return (sum(cpu_seconds_of(processes).values()) - before) / (time.monotonic() - started)


@contextlib.contextmanager
def installed(
    directory: Path, settings: Settings, *, audit_level: str, nodes: Nodes | None = None
) -> Iterator[Installation]:
    """Run all components within the `with` block. `nodes` replaces kwok."""
    with running(directory, setup=_setup_of(settings, audit_policy_of(audit_level))) as control_plane:
        templates = ["serviceaccounts.yaml", "operator-rbac.yaml", "server-rbac.yaml", "flowschema.yaml"]
        templates += ["admission-*.yaml"] if settings.policies else []
        control_plane.apply_chart(*templates)
        if settings.policies:
            _wait_for_policies(control_plane)
        control_plane.call("POST", "/api/v1/nodes", {"metadata": {"name": NODE}})
        operators = Operators(
            control_plane, directory / "operators", ca_file=control_plane.ca_file, state_api_url=STATE_API_URL
        )
        servers = Servers(control_plane, directory / "state-api")
        with (nodes or _kwok)(control_plane) as process_id:
            try:
                yield Installation(control_plane, settings, operators, servers, process_id)
            finally:
                operators.stop()
                servers.stop()


def _setup_of(settings: Settings, audit_policy: Mapping[str, Any]) -> Setup:
    limits = {} if settings.defaults else {"kube-api-qps": UNLIMITED, "kube-api-burst": UNLIMITED}
    return Setup(
        audit_policy=audit_policy,
        controllers=(*CONTROLLERS, "job-controller"),
        flags={
            "kube-controller-manager": limits,
            "kube-apiserver": {"delete-collection-workers": "8"},
            "etcd": {"quota-backend-bytes": str(8 * 2**30)},
        },
    )


def _wait_for_policies(control_plane: RunningControlPlane) -> None:
    metadata = {"name": "probe", "labels": {"reattach.dev/probe": ""}}
    body = {"metadata": metadata, "spec": {"containers": [{"name": "probe", "image": "probe"}]}}

    def are_active() -> bool:
        try:
            control_plane.call("POST", pods("default"), body, dryRun="All")
        except ControlPlaneError as error:
            return "only Reattach's operator" in str(error)
        return False

    wait_until(are_active, seconds=WAIT_SECONDS, what="the admission policies are active", every=0.2)


@contextlib.contextmanager
def _kwok(control_plane: RunningControlPlane) -> Iterator[int]:
    if not KWOK.exists():
        raise ControlPlaneError(f"{KWOK} is missing. Build it: hack/bench/tools")
    flags = {
        "kubeconfig": control_plane.kubeconfig("kwok", ("system:masters",)),
        "config": STAGES,
        "manage-all-nodes": "true",
        "node-lease-duration-seconds": 0,
    }
    command = [*_die_with_parent(), str(KWOK), *(f"--{name}={value}" for name, value in flags.items())]
    with (control_plane.directory / "kwok.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=control_plane.directory,
            env={**os.environ, "HOME": str(control_plane.directory)},
        )

    def is_ready() -> bool:
        if process.poll() is not None:
            raise ControlPlaneError(f"kwok terminated:\n{(control_plane.directory / 'kwok.log').read_text()[-2000:]}")
        status = control_plane.call("GET", f"/api/v1/nodes/{NODE}").get("status", {})
        return any(found["type"] == "Ready" and found["status"] == "True" for found in status.get("conditions", ()))

    try:
        wait_until(is_ready, seconds=WAIT_SECONDS, what="kwok keeps the node ready", every=0.2)
        yield process.pid
    finally:
        process.kill()
        process.wait()


def _die_with_parent() -> Sequence[str]:
    """Return a command prefix that ends the process with the benchmark, even after kill -9."""
    return ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
