"""The real operator for tests, as a process, and a puppet of the kubelet that moves pods through their lives.

The API server, the operator and the state API are real. No node is there: `Kubelet` binds each pod that the operator makes and writes the
status that a kubelet would write, as the test's script for that attempt says.
"""

import contextlib
import datetime as dt
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import httpx
import yaml

from controlplane import ControlPlane, ControlPlaneError
from ports import free_port
from reattach.api.names import API_VERSION, LABEL_ATTEMPT, LABEL_TASKRUN
from reattach.cluster.paths import core, events, pods, taskruns
from waiting import wait_until

JSON = dict[str, Any]

GROUP = "reattach-operator"
NAMESPACE = "reattach-system"
URL = "https://reattach.invalid:8443"
NODE = "puppet"
SHORT_LEASE = ("--lease-seconds", "6", "--lease-deadline-seconds", "4.5", "--lease-renew-seconds", "0.3")
"""For what is to be seen of a Lease that runs out. Much shorter, and a leader on a busy machine loses it by no fault of its own."""
QUICK_RENEWAL = ("--lease-renew-seconds", "0.2")
"""For a leader that is to notice soon what became of its Lease."""

RULES = [
    {"apiGroups": ["reattach.dev"], "resources": ["taskruns"], "verbs": ["delete", "get", "list", "patch", "watch"]},
    {"apiGroups": ["reattach.dev"], "resources": ["taskruns/status"], "verbs": ["patch"]},
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch", "create", "patch", "delete"]},
    {"apiGroups": [""], "resources": ["podtemplates"], "verbs": ["create"]},
    {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "list", "watch", "create", "patch", "update"]},
    {"apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create", "list"]},
    {"apiGroups": [""], "resources": ["namespaces", "nodes"], "verbs": ["get"]},
    {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get", "create", "update", "patch"]},
    {
        "apiGroups": ["apiextensions.k8s.io"],
        "resources": ["customresourcedefinitions"],
        "resourceNames": ["taskruns.reattach.dev"],
        "verbs": ["get"],
    },
]
"""All that the operator may do, and so all that it needs (with certificates of its own, also Secrets)."""


# -- the operator ----------------------------------------------------------------------------------


@dataclass
class Operator:
    """One replica. `identity` is the pod's UID to it: started again with the same one, it has the Lease back at once."""

    user: str
    identity: str
    health_url: str
    command: list[str]
    log_file: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def start(self, *, wait: bool = True) -> Self:
        """Start the process; with `wait`, until it leads and knows the cluster."""
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        if wait:
            wait_until(self.leads, seconds=90, what=f"the operator leads; its log is {self.log_file}")
        return self

    def is_ready(self) -> bool:
        if (code := self.exit_code()) is not None:
            raise AssertionError(f"the operator ended with {code}:\n{self.log[-4000:]}")
        return self.ready_text() == "ok\n"

    def ready_text(self) -> str:
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{self.health_url}/readyz", trust_env=False).text
        return ""

    def leads(self) -> bool:
        # A standby is ready, too. Readiness of the leader is what was read after its metric.
        return self.is_ready() and self.metric("reattach_leader") == 1 and self.is_ready()

    def metric(self, name: str) -> float | None:
        with contextlib.suppress(httpx.TransportError):
            for line in httpx.get(f"{self.health_url}/metrics", trust_env=False).text.splitlines():
                if line.startswith(f"{name} "):
                    return float(line.split()[-1])
        return None

    def exit_code(self) -> int | None:
        return None if self.process is None else self.process.poll()

    def wait_for_exit(self, *, seconds: float = 60) -> int:
        assert self.process is not None
        return self.process.wait(seconds)

    def kill(self, how: signal.Signals = signal.SIGKILL) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(how)
            self.process.wait(30)


@dataclass
class Operators:
    """Starts replicas against one control plane, and ends what is left of them."""

    control_plane: ControlPlane
    directory: Path
    ca_file: Path | None = None
    state_api_url: str = URL
    _made: list[Operator] = field(default_factory=list)

    def make(
        self,
        *arguments: str,
        namespaces: Sequence[str],
        lease: str | None = None,
        identity: str | None = None,
        program: Sequence[str] = ("-m", "reattach.process"),
        kubeconfig: Path | None = None,
        serves_metrics: bool = True,
    ) -> Operator:
        """A replica that serves these namespaces (none: all), not yet started. `lease` is shared by those that are to be one operator.

        Started again after its death it leads at once, as a restarted container does, however long its Lease.
        """
        self._grant()
        user = f"operator-{secrets.token_hex(4)}"
        identity = identity or user
        directory = self.directory / user
        directory.mkdir(parents=True)
        ca_file = self.ca_file or directory / "ca.crt"
        if not ca_file.exists():
            ca_file.write_text("no certificate: these tasks don't call the state API\n")
        port = free_port()
        flags = {
            "--kubeconfig": kubeconfig or self.control_plane.kubeconfig(user, (GROUP,)),
            "--namespace": NAMESPACE,
            "--watch-namespaces": ",".join(namespaces),
            "--state-api-url": self.state_api_url,
            "--ca-file": ca_file,
            "--lease-name": lease or user,
            "--identity": identity,
            "--metrics-host": "127.0.0.1",
            "--metrics-port": port,
        }
        given = [str(part) for flag in flags.items() for part in flag]
        given += ["--serve-metrics"] if serves_metrics else []
        command = [sys.executable, *program, "run", *given, *arguments]
        operator = Operator(user, identity, f"http://127.0.0.1:{port}", command, directory / "log")
        self._made.append(operator)
        return operator

    def start(self, *arguments: str, namespaces: Sequence[str], **how: Any) -> Operator:
        """A replica that is ready."""
        return self.make(*arguments, namespaces=namespaces, **how).start()

    def stop(self) -> None:
        for operator in self._made:
            operator.kill()

    def _grant(self) -> None:
        rbac, name = "/apis/rbac.authorization.k8s.io/v1", f"{GROUP}-tests"
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name}
        subject = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": GROUP}
        for path, body in {
            f"{rbac}/clusterroles": {"metadata": {"name": name}, "rules": RULES},
            f"{rbac}/clusterrolebindings": {"metadata": {"name": name}, "roleRef": role, "subjects": [subject]},
            "/api/v1/namespaces": {"metadata": {"name": NAMESPACE}},
        }.items():
            with contextlib.suppress(ControlPlaneError):  # it is there
                self.control_plane.call("POST", path, body)


# -- TaskRuns --------------------------------------------------------------------------------------

CONTAINER: JSON = {"name": "task", "image": "task:1"}


@dataclass(frozen=True)
class Cluster:
    """What a test does to the objects of its namespace."""

    control_plane: ControlPlane
    namespace: str

    def create(self, name: str, spec: JSON | None = None, **more: Any) -> JSON:
        """A TaskRun; the template has one container unless `spec` says otherwise."""
        body = {
            "apiVersion": API_VERSION,
            "kind": "TaskRun",
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": {"template": {"spec": {"containers": [CONTAINER]}}, **(spec or {}), **more},
        }
        return self.control_plane.call("POST", taskruns(self.namespace), body)

    def taskrun(self, name: str) -> JSON:
        return self.control_plane.call("GET", taskruns(self.namespace, name))

    def status(self, name: str) -> JSON:
        status: JSON = self.taskrun(name).get("status", {})
        return status

    def status_if_there(self, name: str) -> JSON | None:
        """None: the TaskRun is gone."""
        try:
            return self.status(name)
        except ControlPlaneError as error:
            if not str(error).startswith("404"):
                raise
            return None

    def reason(self, name: str) -> str | None:
        """What `kubectl get trun` shows under STATUS."""
        return condition(self.status(name), "Succeeded").get("reason")

    def pods(self, taskrun: str | None = None) -> list[JSON]:
        """The pods, by attempt."""
        selector = LABEL_TASKRUN if taskrun is None else f"{LABEL_TASKRUN}={taskrun}"
        found: list[JSON] = self.control_plane.call("GET", pods(self.namespace), labelSelector=selector)["items"]
        return sorted(found, key=lambda pod: int(pod["metadata"]["labels"].get(LABEL_ATTEMPT, 0)))

    def wait_for_outcome(self, name: str, *, seconds: float = 30) -> JSON:
        def finished() -> JSON:
            status = self.status(name)
            return status if status.get("outcome") else {}

        try:
            return wait_until(finished, seconds=seconds, what=f"{name} has an outcome", every=0.1)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{yaml.safe_dump(self.status(name))}") from None

    def wait_for_reason(self, name: str, reason: str, *, seconds: float = 20) -> JSON:
        def seen() -> bool:
            return self.reason(name) == reason

        try:
            wait_until(seen, seconds=seconds, what=f"{name} shows {reason}", every=0.1)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{yaml.safe_dump(self.status(name))}") from None
        return self.status(name)

    def wait_for_release(self, name: str, *, seconds: float = 60) -> None:
        """Until no pod of it carries a finalizer."""
        wait_until(
            lambda: all(not pod["metadata"].get("finalizers") for pod in self.pods(name)),
            seconds=seconds,
            what=f"the pods of {name} are released",
        )


def condition(status: JSON, kind: str) -> JSON:
    """The condition of this type; empty if there is none."""
    return next((found for found in status.get("conditions", []) if found["type"] == kind), {})


# -- the kubelet -----------------------------------------------------------------------------------

Script = Callable[["Containers"], object]
"""What happens in the pod of one attempt, on a thread of its own. Without an end of its own, the pod runs on."""


class GoneError(Exception):
    """The pod is no longer there: nothing happens in it any more."""


@dataclass
class Containers:
    """A pod that has a node, as its script moves it. After SIGTERM (its deletion) `is_terminating` is true."""

    control_plane: ControlPlane
    pod: JSON

    @property
    def namespace(self) -> str:
        return str(self.pod["metadata"]["namespace"])

    @property
    def name(self) -> str:
        return str(self.pod["metadata"]["name"])

    @property
    def uid(self) -> str:
        return str(self.pod["metadata"]["uid"])

    @property
    def attempt(self) -> int:
        return int(self.pod["metadata"]["labels"][LABEL_ATTEMPT])

    def run(self) -> None:
        """All containers run."""
        self._write("Running", [self._running(name) for name in self._names()])

    def wait(self, *, reason: str, message: str = "") -> None:
        """No container can start."""
        waiting = {"waiting": {"reason": reason, "message": message}}
        self._write("Pending", [self._status(name, waiting) for name in self._names()])

    def end(
        self, exit_code: int = 0, message: str = "", *, reason: str | None = None, others_run: bool = False
    ) -> None:
        """The task's container ends, and with it the pod, unless another container runs on."""
        first, *others = self._names()
        ended = {
            "exitCode": exit_code,
            "reason": reason or ("Error" if exit_code else "Completed"),
            "message": message,
            "startedAt": _now(),
            "finishedAt": _now(),
        }
        statuses = [self._status(first, {"terminated": ended})]
        if others_run and others:
            statuses += [self._running(name) for name in others]
            self._write("Running", statuses)
        else:
            over = {**ended, "exitCode": 0, "reason": "Completed", "message": ""}
            statuses += [self._status(name, {"terminated": over}) for name in others]
            self._write("Failed" if exit_code else "Succeeded", statuses)

    def fail_by_deadline(self) -> None:
        """End what still runs, as the kubelet does after `activeDeadlineSeconds`."""
        ended = {"exitCode": 143, "reason": "Error", "startedAt": _now(), "finishedAt": _now()}
        pod = self.read()
        statuses = [
            self._status(one["name"], {"terminated": one["state"].get("terminated", ended)})
            for one in pod["status"]["containerStatuses"]
        ]
        self._write("Failed", statuses, reason="DeadlineExceeded", startTime=pod["status"]["startTime"])

    def evict_for_own_limit(self, note: str, *, controller: str = "kubelet") -> None:
        """Emit the event of an eviction for the pod's own limits. Then exit with 0, of which the status shows no more."""
        self.emit_eviction(note, controller=controller)
        self.end(0)

    def emit_eviction(self, note: str, *, controller: str = "kubelet") -> None:
        """Emit an event of the reason Evicted."""
        about = {"apiVersion": "v1", "kind": "Pod", "namespace": self.namespace, "name": self.name, "uid": self.uid}
        event = {
            "metadata": {"generateName": f"{self.name}-"},
            "regarding": about,
            "reason": "Evicted",
            "note": note,
            "type": "Warning",
            "action": "Evict",
            "eventTime": f"{_now().removesuffix('Z')}.000000Z",
            "reportingController": controller,
            "reportingInstance": NODE,
        }
        self.control_plane.call("POST", events(self.namespace), event)

    def evict(self) -> None:
        """As the eviction API: the condition DisruptionTarget, the deletion, and the end by SIGTERM."""
        target = {
            "type": "DisruptionTarget",
            "status": "True",
            "reason": "EvictionByEvictionAPI",
            "message": "evicted",
            "lastTransitionTime": _now(),
        }
        self._patch({"conditions": [target]})
        with contextlib.suppress(ControlPlaneError):
            self.control_plane.call("DELETE", pods(self.namespace, self.name), {"gracePeriodSeconds": 30})
        self.end(143)

    def is_terminating(self) -> bool:
        return "deletionTimestamp" in self.read()["metadata"]

    def read(self) -> JSON:
        try:
            pod = self.control_plane.call("GET", pods(self.namespace, self.name))
        except ControlPlaneError as error:
            raise GoneError(self.name) from error
        if pod["metadata"]["uid"] != self.uid:
            raise GoneError(self.name)
        return pod

    def _names(self) -> list[str]:
        return [container["name"] for container in self.pod["spec"]["containers"]]

    def _running(self, name: str) -> JSON:
        return self._status(name, {"running": {"startedAt": _now()}})

    @staticmethod
    def _status(name: str, state: JSON) -> JSON:
        is_running = "running" in state
        return {
            "name": name,
            "state": state,
            "image": "task:1",
            "imageID": "",
            "ready": is_running,
            "started": is_running,
            "restartCount": 0,
        }

    def _write(self, phase: str, statuses: list[JSON], **more: Any) -> None:
        # By the generation it tells, as a kubelet does (from 1.34), whether it knew of the pod's deletion.
        seen = self.read()["metadata"]["generation"]
        status = {"phase": phase, "containerStatuses": statuses, "startTime": _now(), "observedGeneration": seen}
        self._patch({**status, **more})

    def _patch(self, status: JSON) -> None:
        body = {"metadata": {"uid": self.uid}, "status": status}
        try:
            self.control_plane.call("PATCH", f"{pods(self.namespace, self.name)}/status", body)
        except ControlPlaneError as error:
            if str(error).startswith(("404", "409")):
                raise GoneError(self.name) from error
            raise


def _now() -> str:
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def is_past_deadline(pod: JSON) -> bool:
    """Whether a kubelet ends the pod because of `activeDeadlineSeconds`."""
    seconds, started = pod["spec"].get("activeDeadlineSeconds"), pod["status"].get("startTime")
    if pod["status"].get("phase") != "Running" or seconds is None or started is None:
        return False
    return dt.datetime.fromisoformat(started) + dt.timedelta(seconds=seconds) <= dt.datetime.now(dt.UTC)


def succeed(containers: Containers) -> None:
    """Run, and exit 0."""
    containers.run()
    containers.end(0)


def fail(exit_code: int = 1, message: str = "", *, reason: str | None = None) -> Script:
    """Run, and exit with this code."""

    def script(containers: Containers) -> None:
        containers.run()
        containers.end(exit_code, message, reason=reason)

    return script


def run_on(containers: Containers) -> None:
    """Run, without an end; SIGTERM ends it."""
    containers.run()


@dataclass
class Kubelet:
    """Plays every node of the control plane, for the namespaces that are given scripts.

    `scripts[namespace](taskrun, attempt)` gives the script of a pod. A pod that is deleted ends by SIGTERM (143) if its script hasn't
    ended it, and is then taken out of the API server, as far as finalizers let it go. With `is_graceful` the script may come to its
    own end first, as within a grace period: what is reported as ended is dead.
    """

    control_plane: ControlPlane
    is_graceful: bool = False
    scripts: dict[str, Callable[[str, int], Script]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    _threads: dict[str, threading.Thread] = field(default_factory=dict)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None
    is_paused: bool = False

    def play(self, namespace: str, script_of: Callable[[str, int], Script]) -> None:
        self.scripts[namespace] = script_of

    def forget(self, namespace: str) -> None:
        self.scripts.pop(namespace, None)

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="kubelet", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join(30)
        for thread in self._threads.values():
            thread.join(30)

    def _run(self) -> None:
        while not self._stop.wait(0.05):
            if self.is_paused:
                continue
            # The API server may be away; that is what some tests are about.
            with contextlib.suppress(ControlPlaneError, httpx.TransportError):
                listed = self.control_plane.call("GET", pods(None), labelSelector=LABEL_TASKRUN, resourceVersion="0")
                for pod in listed["items"]:
                    self._sync(pod)

    def _sync(self, pod: JSON) -> None:
        about = pod["metadata"]
        script_of = self.scripts.get(about["namespace"])
        if script_of is None:
            return
        if "deletionTimestamp" in about:
            thread = self._threads.get(about["uid"])
            if not (self.is_graceful and thread is not None and thread.is_alive()):
                self._terminate(pod)
        elif is_past_deadline(pod):
            with contextlib.suppress(GoneError):
                Containers(self.control_plane, pod).fail_by_deadline()
        elif pod["spec"].get("schedulingGates"):
            return
        elif about["uid"] not in self._threads and pod["status"].get("phase") == "Pending":
            script = script_of(about["labels"][LABEL_TASKRUN], int(about["labels"][LABEL_ATTEMPT]))
            thread = threading.Thread(target=self._play, args=(pod, script), name=about["name"], daemon=True)
            self._threads[about["uid"]] = thread
            thread.start()

    def _play(self, pod: JSON, script: Script) -> None:
        containers = Containers(self.control_plane, pod)
        try:
            self._bind(pod)
            script(containers)
        except (GoneError, httpx.TransportError):
            return
        except Exception as error:  # noqa: BLE001 -- said by the test that reads `errors`
            self.errors.append(f"{containers.namespace}/{containers.name}: {type(error).__name__}: {error}")

    def _bind(self, pod: JSON) -> None:
        if pod["spec"].get("nodeName"):
            return
        about = pod["metadata"]
        body = {
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": about["name"], "uid": about["uid"]},
            "target": {"apiVersion": "v1", "kind": "Node", "name": NODE},
        }
        try:
            self.control_plane.call("POST", f"{pods(about['namespace'], about['name'])}/binding", body)
        except ControlPlaneError as error:
            raise GoneError(about["name"]) from error

    def _terminate(self, pod: JSON) -> None:
        """What a kubelet does with a deleted pod: end it, report that, and let it go."""
        about = pod["metadata"]
        with contextlib.suppress(GoneError, ControlPlaneError):
            if pod["spec"].get("nodeName") and pod["status"].get("phase") not in {"Succeeded", "Failed"}:
                Containers(self.control_plane, pod).end(143)
            if about.get("deletionGracePeriodSeconds", 0) != 0:
                body = {"gracePeriodSeconds": 0, "preconditions": {"uid": about["uid"]}}
                self.control_plane.call("DELETE", pods(about["namespace"], about["name"]), body)


@contextlib.contextmanager
def kubelet_of(control_plane: ControlPlane, *, is_graceful: bool = False) -> Iterator[Kubelet]:
    """A kubelet that plays inside the `with`; a script that failed fails the test."""
    kubelet = Kubelet(control_plane, is_graceful=is_graceful)
    kubelet.start()
    try:
        yield kubelet
    finally:
        kubelet.stop()
    assert not kubelet.errors, "\n".join(kubelet.errors)


# -- a stage ---------------------------------------------------------------------------------------


def all_succeed(_: int) -> Script:
    """Each attempt succeeds."""
    return succeed


@dataclass
class Stage:
    """A namespace that an operator serves and in which the test says what each pod does."""

    control_plane: ControlPlane
    namespace: str
    cluster: Cluster
    operators: Operators
    kubelet: Kubelet
    operator: Operator
    _scripts: dict[str, Callable[[int], Script]] = field(default_factory=dict)

    def script_of(self, taskrun: str, attempt: int) -> Script:
        return self._scripts.get(taskrun, all_succeed)(attempt)

    def run(self, name: str, script_of: Callable[[int], Script] = all_succeed, **spec: Any) -> JSON:
        """A TaskRun whose attempts do what the script says."""
        self.play(name, script_of)
        return self.cluster.create(name, spec)

    def play(self, name: str, script_of: Callable[[int], Script]) -> None:
        """Set the script of a TaskRun that something else creates."""
        self._scripts[name] = script_of


def limit_pods(stage: Stage, count: int | None) -> None:
    """Allow so many pods in the namespace; None: any number.

    The status of the quota is written here, because no quota controller runs.
    """
    path = core("resourcequotas", stage.namespace)
    if count is None:
        stage.control_plane.call("DELETE", f"{path}/few")
    else:
        hard = {"pods": str(count)}
        stage.control_plane.call("POST", path, {"metadata": {"name": "few"}, "spec": {"hard": hard}})
        stage.control_plane.call("PATCH", f"{path}/few/status", {"status": {"hard": hard, "used": {"pods": "0"}}})
    probe = {"metadata": {"name": "probe"}, "spec": {"containers": [{"name": "probe", "image": "probe:1"}]}}

    def is_in_force() -> bool:
        try:
            stage.control_plane.call("POST", pods(stage.namespace), probe, dryRun="All")
        except ControlPlaneError as error:
            return (count is not None) == ("exceeded quota" in str(error))
        return count is None

    wait_until(is_in_force, seconds=60, what="the API server holds to the quota")


@contextlib.contextmanager
def stage_of(control_plane: ControlPlane, operators: Operators, kubelet: Kubelet, *arguments: str) -> Iterator[Stage]:
    """A stage inside the `with`."""
    namespace = control_plane.create_namespace("operator")
    operator = operators.start(*arguments, namespaces=[namespace])
    stage = Stage(control_plane, namespace, Cluster(control_plane, namespace), operators, kubelet, operator)
    kubelet.play(namespace, stage.script_of)
    yield stage
    control_plane.delete_namespace(namespace)
    operator.kill()
