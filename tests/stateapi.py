"""The real state API for tests: its process, TaskRuns and pods that may call it, and a client.

The pods are objects without a kubelet: what the state API needs of them is their token, which the API server makes as it does for any.
"""

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import ssl
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from cryptography.hazmat.primitives.serialization import Encoding

from controlplane import ControlPlane, ControlPlaneError, _Authority
from ports import free_port
from reattach.api.names import (
    API_VERSION,
    HEADER_REQUEST_ID,
    HEADER_SESSION,
    KIND,
    LABEL_ATTEMPT,
    LABEL_PURPOSE,
    LABEL_TASKRUN,
    TOKEN_AUDIENCE,
    pod_name,
    state_name,
)
from reattach.api.state import SealPurpose, StateView
from reattach.cluster import Cluster
from reattach.cluster.paths import configmaps, pods, taskruns
from reattach.state import RunReference, Store, view_of
from waiting import wait_until

GROUP = "reattach-state-api"
RULES = [
    {"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"]},
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]},
    {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "create", "update"]},
    {"apiGroups": ["reattach.dev"], "resources": ["taskruns"], "verbs": ["get", "patch"]},
    {"apiGroups": ["reattach.dev"], "resources": ["taskruns/status"], "verbs": ["patch"]},
]
"""All that the state API may do, and so all that it needs."""


@dataclass
class Server:
    """One replica."""

    url: str
    health_url: str
    ca: ssl.SSLContext
    user: str
    process: subprocess.Popen[bytes]
    log_file: Path
    _clients: list[httpx.Client] = field(default_factory=list)

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    @property
    def metrics(self) -> str:
        return httpx.get(f"{self.health_url}/metrics", trust_env=False).text

    def client(self, token: str | None = None, session: str | None = None) -> httpx.Client:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        if session is not None:
            headers[HEADER_SESSION] = session
        client = httpx.Client(base_url=self.url, verify=self.ca, headers=headers, trust_env=False, timeout=30)
        self._clients.append(client)
        return client

    def kill(self) -> None:
        for client in self._clients:
            client.close()
        self.process.kill()
        self.process.wait()


@dataclass
class Servers:
    """Starts replicas against one control plane, and ends what is left of them."""

    control_plane: ControlPlane
    directory: Path
    _running: list[Server] = field(default_factory=list)

    def start(
        self,
        *arguments: str,
        program: tuple[str, ...] = ("-m", "reattach.server"),
        serves_metrics: bool = True,
        **environment: str,
    ) -> Server:
        self._grant()
        user = f"state-api-{secrets.token_hex(4)}"
        directory = self.directory / user
        directory.mkdir(parents=True)
        authority = write_certificate(directory)
        port, health_port = free_port(), free_port()
        defaults = {
            "--tls-cert": str(directory / "tls.crt"),
            "--tls-key": str(directory / "tls.key"),
            "--host": "127.0.0.1",
            "--port": str(port),
            "--health-port": str(health_port),
            "--kubeconfig": str(self.control_plane.kubeconfig(user, (GROUP,))),
            "--taskrun-rate": "2000:2000",
            "--namespace-rate": "5000:5000",
            "--namespace-bytes-rate": "1e12:1000000000000",
            "--refused-token-rate": "2000:2000",
            "--drain": "0",
            "--tls-reload": "0.1",
        }
        flags = [text for flag in defaults.items() for text in flag]
        flags += ["--serve-metrics"] if serves_metrics else []
        # The kernel ends the server when the test process dies, even by kill -9.
        bond = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
        with (directory / "log").open("wb") as log:
            process = subprocess.Popen(
                [*bond, sys.executable, *program, *flags, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
            )
        server = Server(
            url=f"https://127.0.0.1:{port}",
            health_url=f"http://127.0.0.1:{health_port}",
            ca=authority,
            user=user,
            process=process,
            log_file=directory / "log",
        )
        self._running.append(server)
        wait_until(lambda: _is_ready(server), seconds=90, what="the state API is ready")
        return server

    def stop(self) -> None:
        for server in self._running:
            server.kill()

    def _grant(self) -> None:
        rbac, name = "/apis/rbac.authorization.k8s.io/v1", f"{GROUP}-tests"
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name}
        subject = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": GROUP}
        bodies: dict[str, dict[str, Any]] = {
            "clusterroles": {"rules": RULES},
            "clusterrolebindings": {"roleRef": role, "subjects": [subject]},
        }
        for plural, body in bodies.items():
            with contextlib.suppress(ControlPlaneError):  # it is there
                self.control_plane.call("POST", f"{rbac}/{plural}", {"metadata": {"name": name}, **body})


@dataclass
class Task:
    """A TaskRun, and what is known of it in the cluster."""

    control_plane: ControlPlane
    namespace: str
    name: str
    uid: str

    @classmethod
    def create(cls, control_plane: ControlPlane, namespace: str, name: str = "load", **spec: Any) -> "Task":
        body = {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": {"name": name},
            "spec": {"template": {"spec": {"containers": [{"name": "task", "image": "task"}]}}, **spec},
        }
        created = control_plane.call("POST", taskruns(namespace), body)
        return cls(control_plane, namespace, name, created["metadata"]["uid"])

    def pod(self, attempt: int = 1, **changes: Any) -> dict[str, Any]:
        """The pod of an attempt as the operator makes it; `changes` replace parts of its metadata."""
        owner = {"apiVersion": API_VERSION, "kind": KIND, "name": self.name, "uid": self.uid, "controller": True}
        metadata = {
            "name": pod_name(self.name, self.uid, attempt),
            "labels": {LABEL_TASKRUN: self.name, LABEL_ATTEMPT: str(attempt)},
            "ownerReferences": [owner],
            **changes,
        }
        spec = {"containers": [{"name": "task", "image": "task"}]}
        return self.control_plane.call("POST", pods(self.namespace), {"metadata": metadata, "spec": spec})

    def token(self, pod: dict[str, Any], audience: str = TOKEN_AUDIENCE) -> str:
        return self.control_plane.token(self.namespace, audiences=[audience], pod=pod)

    def attempt(self, server: Server, number: int = 1, *, opened: bool = True, purpose: str = "") -> "Attempt":
        """The pod of this attempt and a process in it. A pod without a purpose has no label for it."""
        labels = {LABEL_TASKRUN: self.name, LABEL_ATTEMPT: str(number)}
        pod = self.pod(number, labels=labels | ({LABEL_PURPOSE: purpose} if purpose else {}))
        attempt = Attempt(server, self.token(pod), new_session(), pod)
        if opened:
            assert attempt.open().status_code == 200
        return attempt

    @property
    def configmap_path(self) -> str:
        return configmaps(self.namespace, state_name(self.name, self.uid))

    def configmap(self) -> dict[str, Any]:
        return self.control_plane.call("GET", self.configmap_path)

    @property
    def path(self) -> str:
        return taskruns(self.namespace, self.name)

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = self.control_plane.call("GET", self.path).get("status", {})
        return status

    def finalizers(self) -> list[str]:
        finalizers: list[str] = self.control_plane.call("GET", self.path)["metadata"].get("finalizers", [])
        return finalizers

    def patch(self, **body: Any) -> None:
        """As a person does."""
        self.control_plane.call("PATCH", self.path, body)

    def end_attempt(
        self, attempt: "Attempt", number: int = 1, *, end: str = "Reported", charged: str = "disruption"
    ) -> None:
        """What the operator writes about an attempt that has ended."""
        others = [known for known in self.status().get("attempts", []) if known["number"] != number]
        uid = attempt.pod["metadata"]["uid"]
        cause = {"application": "Application", "disruption": "Disruption"}[charged]
        entry = {"number": number, "purpose": "Run", "podUID": uid, "end": end, "cause": cause, "chargedTo": charged}
        self.control_plane.call("PATCH", f"{self.path}/status", {"status": {"attempts": [*others, entry]}})

    def begin_ending(self) -> None:
        """What the operator writes when it has decided to end the run."""
        ending = {
            "outcome": "Cancelled",
            "reason": "Cancelled",
            "message": "The TaskRun was cancelled.",
            "time": "2026-11-30T12:00:00Z",
            "cleanupDeadline": "2026-11-30T12:15:00Z",
        }
        self.control_plane.call("PATCH", f"{self.path}/status", {"status": {"ending": ending}})

    def seal(self, through: int, purpose: SealPurpose) -> None:
        """As the operator does."""

        async def sealed() -> None:
            async with await Cluster.connect(str(self.control_plane.kubeconfig())) as cluster:
                run = RunReference(namespace=self.namespace, name=self.name, uid=self.uid)
                await Store(cluster, field_manager="reattach.dev/operator").seal(run, through, purpose)

        asyncio.run(sealed())

    def view(self) -> StateView:
        """The state as the operator sees it."""
        return view_of(json.dumps(self.configmap()).encode())

    def patch_configmap(self, **body: Any) -> None:
        self.control_plane.call("PATCH", self.configmap_path, body)

    def force_away_configmap(self) -> None:
        """Delete the state as a person does who also removes its finalizer."""
        self.patch_configmap(metadata={"finalizers": None})
        self.control_plane.call("DELETE", self.configmap_path)


class Attempt:
    """A process in the pod of an attempt, with its session."""

    def __init__(self, server: Server, token: str, session: str, pod: dict[str, Any]) -> None:
        self.server, self.token, self.session, self.pod = server, token, session, pod
        self.submitter = session
        self.client = server.client(token, session)

    def on(self, server: Server) -> "Attempt":
        """The same process, calling another replica."""
        return Attempt(server, self.token, self.session, self.pod)

    def another_process(self) -> "Attempt":
        """One more process in the same pod, with a session of its own."""
        return Attempt(self.server, self.token, new_session(), self.pod)

    def open(self, **more: Any) -> httpx.Response:
        return self.client.post("/v1/open", json={"session": self.session, **more})

    def get(self, key: str) -> httpx.Response:
        return self.client.get(path_of(key))

    def set(self, key: str, value: Any, request_id: str | None = None, **more: Any) -> httpx.Response:
        return self.client.put(path_of(key), json={"value": value, **more}, headers=id_header(request_id))

    def delete(self, key: str, request_id: str | None = None, **query: Any) -> httpx.Response:
        return self.client.delete(path_of(key), params=query, headers=id_header(request_id))

    def clear(self) -> httpx.Response:
        return self.client.delete("/v1/state")

    def list(self, **query: Any) -> httpx.Response:
        return self.client.get("/v1/state", params=query)

    def batch(self, *operations: dict[str, Any], request_id: str | None = None) -> httpx.Response:
        return self.client.post("/v1/state", json={"operations": operations}, headers=id_header(request_id))

    def complete(self, request_id: str | None = None, **body: Any) -> httpx.Response:
        return self.client.post("/v1/complete", json=body, headers=id_header(request_id))

    def end(self, kind: str, request_id: str | None = None, **more: Any) -> httpx.Response:
        return self.client.post("/v1/end", json={"kind": kind, **more}, headers=id_header(request_id))

    def intend(self, key: str = "load", request_id: str | None = None, **more: Any) -> httpx.Response:
        body = {"submitter": self.submitter, "adapter": "http", "digest": "d", **more}
        return self.client.post(job_path_of(key, "intent"), json=body, headers=id_header(request_id))

    def handle(
        self, handle: str, key: str = "load", generation: int = 1, request_id: str | None = None, **more: Any
    ) -> httpx.Response:
        body = {"generation": generation, "submitter": self.submitter, "handle": handle, **more}
        return self.client.put(job_path_of(key, "handle"), json=body, headers=id_header(request_id))

    def outcome(
        self, state: str, key: str = "load", generation: int = 1, request_id: str | None = None, **more: Any
    ) -> httpx.Response:
        body = {"generation": generation, "state": state, **more}
        return self.client.put(job_path_of(key, "outcome"), json=body, headers=id_header(request_id))

    def cancellation(self, key: str = "load", generation: int = 1, request_id: str | None = None) -> httpx.Response:
        body = {"generation": generation}
        return self.client.post(job_path_of(key, "cancellation"), json=body, headers=id_header(request_id))

    def job(self, key: str = "load", **query: Any) -> httpx.Response:
        return self.client.get(job_path_of(key), params=query)

    def jobs(self) -> httpx.Response:
        return self.client.get("/v1/jobs")

    def every_call(self) -> Iterator[httpx.Response]:
        """One of each, but `open`."""
        yield self.intend("never")
        yield self.handle("job-1", "never")
        yield self.outcome("Failed", "never")
        yield self.cancellation("never")
        yield self.job("never")
        yield self.jobs()
        yield self.get("job_id")
        yield self.list()
        yield self.set("job_id", 1)
        yield self.delete("job_id")
        yield self.batch({"op": "set", "key": "job_id", "value": 1})
        yield self.clear()
        yield self.complete()
        yield self.end("Permanent")


def code_of(response: httpx.Response) -> tuple[int, str]:
    """Status and code of a problem, once it is seen to be one."""
    assert response.headers["Content-Type"] == "application/problem+json"
    problem = response.json()
    assert problem["status"] == response.status_code
    assert problem["type"] == f"urn:reattach:problem:{problem['code']}"
    assert problem["title"]
    assert problem["detail"]
    return response.status_code, problem["code"]


def path_of(key: str) -> str:
    """A key in the path, every byte that may be is percent-encoded."""
    return f"/v1/state/{encoded(key)}"


def job_path_of(key: str, *after: str) -> str:
    """The same for an external job."""
    return "/".join(("/v1/jobs", encoded(key), *after))


def encoded(key: str) -> str:
    return "".join(chr(byte) if chr(byte).isalnum() and byte < 128 else f"%{byte:02X}" for byte in key.encode())


def id_header(request_id: str | None) -> dict[str, str]:
    return {} if request_id is None else {HEADER_REQUEST_ID: request_id}


def new_session() -> str:
    return str(uuid.uuid4())


def write_certificate(directory: Path) -> ssl.SSLContext:
    """A certificate for the server, of a new CA; the context trusts that CA alone."""
    authority = _Authority.new()
    certificate, key = authority.issue("state-api", server=True)
    for name, content in {"tls.key": key, "tls.crt": certificate}.items():
        new = directory / f"{name}.new"
        new.write_bytes(content)
        new.replace(directory / name)
    return ssl.create_default_context(cadata=authority.certificate.public_bytes(Encoding.PEM).decode())


def call_until_killed(server: Server, call: Callable[[], object]) -> None:
    """Repeat the call until it has ended the server, because a stalled machine may cut a connection before the server works on the call."""

    def is_dead() -> bool:
        with contextlib.suppress(httpx.TransportError):
            call()
        return server.process.poll() is not None

    wait_until(is_dead, seconds=90, what="the call kills the server")


def _is_ready(server: Server) -> bool:
    assert server.process.poll() is None, server.log
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{server.health_url}/readyz", trust_env=False).is_success
    return False
