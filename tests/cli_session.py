"""Users of `kubectl reattach` with the rights of `edit` or `view`, and a node that serves logs."""

import contextlib
import gc
import io
import json
import secrets
import ssl
import sys
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

from controlplane import ControlPlane, ControlPlaneError, helm_template
from reattach.cli import application
from stateapi import write_certificate
from tcp_relay import Relay
from waiting import wait_until

RBAC = "/apis/rbac.authorization.k8s.io/v1"


# -- users ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CommandResult:
    """Output and exit code of a command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def yaml(self) -> Any:
        return yaml.safe_load(self.out)


def _collect_open_connections() -> None:
    """Close connections that a command left open, because it ran in this process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@dataclass
class CliUser:
    """A user of the API server, with a kubeconfig whose context has the namespace."""

    control_plane: ControlPlane
    namespace: str
    user: str

    @property
    def kubeconfig(self) -> Path:
        return self.control_plane.kubeconfig(self.user, namespace=self.namespace)

    def __call__(self, *arguments: str, stdin: bytes = b"") -> CommandResult:
        """Run `kubectl reattach …` in this process."""
        out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
        requests = io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8")
        before, sys.stdin = sys.stdin, requests
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = application.run(["--kubeconfig", str(self.kubeconfig), *arguments])
        finally:
            sys.stdin = before
            _collect_open_connections()
        return CommandResult(int(code), *(stream.buffer.getvalue().decode() for stream in (out, err)))  # type: ignore[attr-defined]

    def kubeconfig_through(self, relay: Relay, directory: Path) -> str:
        """Write a kubeconfig that reaches the API server through the relay, and return its path."""
        file = directory / f"through-{relay.port}"
        file.write_text(self.kubeconfig.read_text().replace(self.control_plane.url, relay.url))
        return str(file)

    def in_background(self, *arguments: str) -> "BackgroundCommand":
        return BackgroundCommand.of(self, arguments)


@dataclass
class BackgroundCommand:
    """A running command in a process of its own."""

    process: Any
    out: Path
    err: Path

    @classmethod
    def of(cls, cli_user: CliUser, arguments: tuple[str, ...]) -> "BackgroundCommand":
        import subprocess

        directory = cli_user.control_plane.directory / f"terminal-{secrets.token_hex(4)}"
        directory.mkdir()
        out, err = directory / "out", directory / "err"
        command = [sys.executable, "-m", "reattach.cli", "--kubeconfig", str(cli_user.kubeconfig), *arguments]
        with out.open("wb") as stdout, err.open("wb") as stderr:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr)
        return cls(process, out, err)

    def wait(self, *, seconds: float = 150) -> CommandResult:
        return CommandResult(self.process.wait(seconds), self.out.read_text(), self.err.read_text())

    def wait_for(self, text: str, *, seconds: float = 150) -> None:
        def seen() -> bool:
            assert self.process.poll() is None, self.err.read_text()
            return text in self.out.read_text() + self.err.read_text()

        wait_until(seen, seconds=seconds, what=f"the command prints {text!r}", every=0.1)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def grant(control_plane: ControlPlane, namespace: str, role: str) -> CliUser:
    """Create a user with a ClusterRole in the namespace.

    The chart of Reattach extends `edit` and `view`.
    """
    control_plane.apply(helm_template("aggregated-roles.yaml"))
    user = f"{role}-{secrets.token_hex(3)}"
    body = {
        "metadata": {"name": user},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
    }
    control_plane.call("POST", f"{RBAC}/namespaces/{namespace}/rolebindings", body)
    cli_user = CliUser(control_plane, namespace, user)
    path = f"/apis/reattach.dev/v1alpha1/namespaces/{namespace}/taskruns"

    def may() -> bool:
        with contextlib.suppress(ControlPlaneError):
            control_plane.call("GET", path, user=user)
            return True
        return False

    # The API server caches role bindings and aggregated rules for a moment.
    wait_until(may, seconds=90, what=f"{user} may list TaskRuns", every=0.1)
    return cli_user


# -- logs ------------------------------------------------------------------------------------------


@dataclass
class Log:
    """Log of a container.

    lines: seconds and text of each line.
    breaks: incremented to cut the connections of followers.
    refusal: status and text of the kubelet's error response, if it returns one.
    """

    lines: list[tuple[float, str]] = field(default_factory=list)
    is_over: bool = False
    breaks: int = 0
    refusal: tuple[int, str] | None = None


@dataclass
class Node:
    """A node whose kubelet serves only logs, to which the API server forwards `pods/log`."""

    control_plane: ControlPlane
    name: str
    logs: dict[str, Log] = field(default_factory=dict)
    requests: list[dict[str, str]] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)
    _server: ThreadingHTTPServer | None = None

    def write(self, pod: str, *texts: str, is_over: bool = False) -> None:
        with self.changed:
            log = self.logs.setdefault(pod, Log())
            log.lines += [(float(number), text) for number, text in enumerate(texts, start=len(log.lines) + 1)]
            log.is_over = log.is_over or is_over
            self.changed.notify_all()

    def cut_off(self, pod: str) -> None:
        """Cut the connection of each follower, within a line."""
        with self.changed:
            self.logs[pod].breaks += 1
            self.changed.notify_all()

    def refuse(self, pod: str, status: int, text: str) -> None:
        """Cut the connections of followers, and return this error to later requests."""
        with self.changed:
            log = self.logs.setdefault(pod, Log())
            log.refusal = (status, text)
            log.breaks += 1
            self.changed.notify_all()

    def start(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        write_certificate(directory)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(directory / "tls.crt", directory / "tls.key")
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(self))
        self._server.daemon_threads = True
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        threading.Thread(target=self._server.serve_forever, name=self.name, daemon=True).start()
        self.control_plane.call("POST", "/api/v1/nodes", {"metadata": {"name": self.name}})
        status = {
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": self._server.server_address[1]}},
        }
        self.control_plane.call("PATCH", f"/api/v1/nodes/{self.name}/status", {"status": status})

    def stop(self) -> None:
        for log in self.logs.values():
            log.is_over = True
        with self.changed:
            self.changed.notify_all()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
        self.control_plane.call("DELETE", f"/api/v1/nodes/{self.name}")


@contextlib.contextmanager
def node_of(control_plane: ControlPlane, directory: Path) -> Iterator[Node]:
    """Run a node during the block."""
    node = Node(control_plane, f"logs-{secrets.token_hex(4)}")
    node.start(directory)
    try:
        yield node
    finally:
        node.stop()


def stamp_of(seconds: float) -> str:
    return f"2026-03-01T12:00:{seconds:012.9f}Z"


def _handler_of(node: Node) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(url.query).items()}
            [_, _namespace, pod, container] = url.path.strip("/").split("/")
            with node.changed:
                node.requests.append({"pod": pod, "container": container, **query})
                log = node.logs.setdefault(pod, Log())
            if log.refusal is not None:
                self._refuse(*log.refusal)
                return
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            with contextlib.suppress(OSError):
                if self._send(log, query):
                    self.wfile.write(b"0\r\n\r\n")
            self.close_connection = True

        def _refuse(self, status: int, text: str) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def _send(self, log: Log, query: dict[str, str]) -> bool:
            """Send the log, and return whether it was sent completely."""
            since, breaks = query.get("sinceTime", ""), log.breaks
            sent = max(0, len(log.lines) - int(query["tailLines"])) if "tailLines" in query else 0
            while True:
                with node.changed:
                    if sent >= len(log.lines) and not log.is_over and log.breaks == breaks and query.get("follow"):
                        node.changed.wait(0.2)
                    lines, is_over, is_broken = log.lines[sent:], log.is_over, log.breaks != breaks
                for seconds, text in lines:
                    stamp = stamp_of(seconds)
                    if not since or stamp >= since.replace("Z", ""):
                        self._chunk(f"{stamp} {text}\n".encode())
                sent += len(lines)
                if is_broken:
                    self._chunk(stamp_of(99)[:12].encode())
                    return False
                if is_over or not query.get("follow"):
                    return True

        def _chunk(self, data: bytes) -> None:
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            self.wfile.flush()

        def log_message(self, *_: Any) -> None:
            """Log no requests."""

    return Handler
