"""A private Kubernetes control plane for tests: the real etcd, kube-apiserver and kube-controller-manager, without nodes.

Nothing runs pods here: a test plays the kubelet by writing a pod's status. Everything else is real: admission, RBAC, CEL,
TokenRequest and TokenReview, garbage collection, conflicts, watches, the audit log.

The fixtures are in `conftest.py`:

* `control_plane` is shared by the whole run (by all xdist workers too), with the TaskRun CRD applied. Use a namespace of your
  own (fixture `namespace`), and leave alone what belongs to the whole cluster.
* `private_control_plane` belongs to one test module: restart it, apply admission policies, delete the CRD, as you like.

The binary is the one that the local cluster is made of; `make control-plane` builds it. With `REATTACH_KUBERNETES=1.34`, API
server, controller manager and kubectl have that minor version instead, with the same etcd.
"""

import base64
import contextlib
import datetime as dt
import fcntl
import ipaddress
import json
import os
import re
import secrets
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ports import free_port
from waiting import wait_until

REPOSITORY = Path(__file__).parent.parent
CACHE = Path(os.environ.get("REATTACH_CACHE") or Path.home() / ".cache/reattach-cluster")
STORAGE = CACHE / "node/kube"
LOCAL_MINOR = re.findall(r"^kubernetes=v(1\.\d+)\.", (REPOSITORY / "hack/versions").read_text(), re.MULTILINE)[0]
MINOR = os.environ.get("REATTACH_KUBERNETES") or LOCAL_MINOR
KUBE = STORAGE if MINOR == LOCAL_MINOR else CACHE / "minors" / MINOR / "kube"
HELM = CACHE / "bin/helm"
CRD = REPOSITORY / "crds/taskruns.yaml"
CHART = REPOSITORY / "charts/reattach"

# Garbage collection, the service account of a new namespace, aggregated roles, and the end of a namespace. Nothing that
# makes or deletes pods.
CONTROLLERS = (
    "clusterrole-aggregation-controller",
    "garbage-collector-controller",
    "namespace-controller",
    "root-ca-certificate-publisher-controller",
    "serviceaccount-controller",
    "validatingadmissionpolicy-status-controller",
)

AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived", "ResponseStarted"],
    "rules": [
        {"level": "None", "users": ["system:apiserver", "system:kube-controller-manager"]},
        {"level": "None", "nonResourceURLs": ["/healthz*", "/livez*", "/readyz*"]},
        # Tests look on as admin, many times a second; nobody asks what they saw, but for the marks in the log.
        {"level": "Metadata", "users": ["admin"], "nonResourceURLs": ["/version"]},
        {"level": "None", "users": ["admin"], "verbs": ["get", "list"]},
        {
            "level": "Metadata",  # tokens are not for logs
            "resources": [
                {"group": "", "resources": ["secrets", "serviceaccounts/token"]},
                {"group": "authentication.k8s.io"},
            ],
        },
        {"level": "Request", "verbs": ["create", "update", "patch", "delete"]},
        {"level": "Metadata"},
    ],
}


@dataclass(frozen=True)
class Setup:
    """How a control plane is set up. `flags` holds more flags of a component, or other values of those that the tests set."""

    audit_policy: Mapping[str, Any] = field(default_factory=lambda: AUDIT_POLICY)
    controllers: tuple[str, ...] = CONTROLLERS
    flags: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


class ControlPlaneError(Exception):
    """The control plane can't do what was asked; the message says why, with the end of a component's log where there is one."""


@dataclass
class _Process:
    """One component: how to start it, and the process while it runs."""

    name: str
    arguments: list[str]
    directory: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        # The kernel ends a component when the test process dies, even by kill -9.
        bond = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*bond, str(STORAGE if self.name == "etcd" else KUBE), self.name, *self.arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
            )

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def must_run(self) -> None:
        if self.process is None or self.process.poll() is not None:
            raise ControlPlaneError(f"{self.name} ended:\n{self.log_end()}")

    def log_end(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])

    @property
    def log(self) -> Path:
        return self.directory / f"{self.name}.log"


@dataclass
class _Authority:
    """The CA of the control plane: of the server's certificate and of the users'."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def new(cls) -> "_Authority":
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name("tests", ())
        certificate = (
            _builder(name, name, key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(key, hashes.SHA256())
        )
        return cls(key, certificate)

    @classmethod
    def load(cls, directory: Path) -> "_Authority":
        key = serialization.load_pem_private_key((directory / "ca.key").read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return cls(key, x509.load_pem_x509_certificate((directory / "ca.crt").read_bytes()))

    def issue(self, user: str, groups: Iterable[str] = (), *, server: bool = False) -> tuple[bytes, bytes]:
        """A certificate and its key, both as PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        usage = ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH
        builder = _builder(_name(user, groups), self.certificate.subject, key.public_key()).add_extension(
            x509.ExtendedKeyUsage([usage]), critical=False
        )
        if server:
            names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        certificate = builder.sign(self.key, hashes.SHA256())
        return certificate.public_bytes(serialization.Encoding.PEM), _pem(key)


@dataclass
class ControlPlane:
    """A control plane in `directory`, whoever started it; `RunningControlPlane` is the one that can be stopped."""

    directory: Path
    _clients: dict[str, httpx.Client] = field(default_factory=dict)
    # Threads share it; of two clients made at once, one would never be closed.
    _making: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    @property
    def url(self) -> str:
        return (self.directory / "url").read_text()

    @property
    def ca_file(self) -> Path:
        return self.directory / "ca.crt"

    # -- who calls ---------------------------------------------------------------------------------

    def kubeconfig(self, user: str = "admin", groups: Iterable[str] = (), *, namespace: str = "default") -> Path:
        """A kubeconfig with a client certificate for this user in these groups; `admin` may do everything."""
        groups = ("system:masters", *groups) if user == "admin" else tuple(groups)
        path = self.directory / f"{_file_name(user, *groups, namespace)}.kubeconfig"
        if not path.exists():
            certificate, key = _Authority.load(self.directory).issue(user, groups)
            secret = {"client-certificate-data": _base64(certificate), "client-key-data": _base64(key)}
            self._write_kubeconfig(path, secret, namespace)
        return path

    def service_account_kubeconfig(self, namespace: str, name: str, *, seconds: int = 3600) -> Path:
        """A kubeconfig with a fresh token of this service account."""
        path = self.directory / f"{_file_name('sa', namespace, name, secrets.token_hex(4))}.kubeconfig"
        self._write_kubeconfig(path, {"token": self.token(namespace, name, seconds=seconds)}, namespace)
        return path

    def token(
        self,
        namespace: str,
        service_account: str = "default",
        *,
        audiences: Iterable[str] = (),
        seconds: int = 3600,
        pod: dict[str, Any] | None = None,
    ) -> str:
        """A service-account token from TokenRequest; bound to `pod`, an object as the API server returned it, if given.

        Args:
            audiences: none means the API server's own.
            seconds: until it expires; the API server takes no less than 600.
        """
        spec: dict[str, Any] = {"audiences": list(audiences), "expirationSeconds": seconds}
        if pod is not None:
            about = pod["metadata"]
            spec["boundObjectRef"] = {"kind": "Pod", "apiVersion": "v1", "name": about["name"], "uid": about["uid"]}
        answer = self.call(
            "POST",
            f"/api/v1/namespaces/{namespace}/serviceaccounts/{service_account}/token",
            {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec},
        )
        return str(answer["status"]["token"])

    def _write_kubeconfig(self, path: Path, secret: dict[str, str], namespace: str) -> None:
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "tests",
            "clusters": [
                {
                    "name": "tests",
                    "cluster": {"server": self.url, "certificate-authority-data": _base64(self.ca_file.read_bytes())},
                }
            ],
            "users": [{"name": "tests", "user": secret}],
            "contexts": [{"name": "tests", "context": {"cluster": "tests", "user": "tests", "namespace": namespace}}],
        }
        new = path.with_name(f"{path.name}.{os.getpid()}")
        new.write_text(yaml.safe_dump(config))
        new.replace(path)  # two workers may write the same one

    # -- calls -------------------------------------------------------------------------------------

    def client(self, user: str = "admin", groups: Iterable[str] = ()) -> httpx.Client:
        """An HTTP client that is this user to the API server; paths are relative to it. Kept and closed by us."""
        groups = tuple(groups)
        name = _file_name(user, *groups)
        with self._making:
            if name not in self._clients:
                config = yaml.safe_load(self.kubeconfig(user, groups).read_text())["users"][0]["user"]
                pem = self.directory / f"{name}.{os.getpid()}.pem"
                pem.write_bytes(
                    b"".join(base64.b64decode(config[f"client-{part}-data"]) for part in ("certificate", "key"))
                )
                context = ssl.create_default_context(cafile=self.ca_file)
                context.load_cert_chain(pem)
                self._clients[name] = httpx.Client(base_url=self.url, verify=context, trust_env=False, timeout=30)
            return self._clients[name]

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        user: str = "admin",
        groups: Iterable[str] = (),
        **query: str | int,
    ) -> dict[str, Any]:
        """One request as this user; a PATCH is a merge patch.

        Raises:
            ControlPlaneError: the answer's code is 400 or more; the message is `CODE: the Status's message`.
        """
        types = {"PATCH": "application/merge-patch+json"}
        response = self.client(user, groups).request(
            method,
            path,
            params=query,
            content=None if body is None else json.dumps(body),
            headers={"Content-Type": types.get(method, "application/json")},
        )
        answer: dict[str, Any] = response.json()
        if response.is_error:
            raise ControlPlaneError(f"{response.status_code}: {answer.get('message')}")
        return answer

    def kubectl(
        self,
        *arguments: str,
        stdin: str | None = None,
        user: str = "admin",
        groups: Iterable[str] = (),
        namespace: str = "default",
    ) -> str:
        """What kubectl prints; `namespace` is that of objects which name none.

        Raises:
            ControlPlaneError: it failed; the message is what it said.
        """
        config = self.kubeconfig(user, groups, namespace=namespace)
        # HOME holds kubectl's cache of the discovery, which must not be that of another control plane on the same port.
        process = subprocess.run(
            [str(KUBE), "kubectl", *arguments],
            input=stdin or "",
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "KUBECONFIG": str(config), "HOME": str(self.directory)},
        )
        if process.returncode:
            raise ControlPlaneError(process.stderr.strip())
        return process.stdout

    # -- set up ------------------------------------------------------------------------------------

    def create_namespace(self, prefix: str = "t", labels: dict[str, str] | None = None) -> str:
        """A namespace with a name of its own, ready for pods."""
        name = f"{prefix}-{secrets.token_hex(4)}"
        self.call("POST", "/api/v1/namespaces", {"metadata": {"name": name, "labels": labels or {}}})
        # Pods are refused until it is there; the controller manager may make it first.
        path = f"/api/v1/namespaces/{name}/serviceaccounts"
        with contextlib.suppress(ControlPlaneError):
            self.call("POST", path, {"metadata": {"name": "default"}})
        self.call("GET", f"{path}/default")
        return name

    def delete_namespace(self, name: str) -> None:
        """Ask for the end of a namespace, without waiting for it."""
        self.call("DELETE", f"/api/v1/namespaces/{name}")

    def apply(
        self, manifests: str, *, user: str = "admin", groups: Iterable[str] = (), namespace: str = "default"
    ) -> str:
        """`kubectl apply --server-side` of YAML text."""
        return self.kubectl(
            *("apply", "--server-side", "--force-conflicts", "-f", "-"),
            stdin=manifests,
            user=user,
            groups=groups,
            namespace=namespace,
        )

    def apply_crd(self) -> None:
        """The TaskRun CRD of this checkout, until it is served."""
        self.apply(CRD.read_text())
        self.kubectl("wait", "--for=condition=Established", "--timeout=30s", "-f", str(CRD))

        def known() -> bool:
            with contextlib.suppress(ControlPlaneError):
                return bool(self.kubectl("explain", "trun"))
            return False

        # Established says that objects are served; the names and the schema are published a little later.
        wait_until(known, seconds=30, what="kubectl knows TaskRuns")

    def apply_chart(self, *templates: str, values: dict[str, Any] | None = None, namespace: str = "reattach") -> None:
        """Templates of the chart as helm renders them: `apply_chart("admission-*.yaml", "rbac.yaml")`."""
        with contextlib.suppress(ControlPlaneError):
            self.call("POST", "/api/v1/namespaces", {"metadata": {"name": namespace}})
        self.apply(helm_template(*templates, values=values, namespace=namespace), namespace=namespace)

    # -- the audit log -----------------------------------------------------------------------------

    def audit_mark(self) -> int:
        """Where the audit log ends now, once every answered request is in it."""
        marker = f"mark-{secrets.token_hex(8)}"
        self.client().get("/version", params={"mark": marker})
        log = self.directory / "audit.log"

        def place() -> int:
            text = log.read_bytes()
            at = text.rfind(marker.encode())
            return text.find(b"\n", at) + 1 if at >= 0 else 0

        return wait_until(place, seconds=60, what="the request is in the audit log")

    def audit(self, since: int = 0, *, user: str | None = None, namespace: str | None = None) -> list[dict[str, Any]]:
        """The requests answered since `audit_mark`, oldest first, as audit.k8s.io/v1 Events.

        Writes carry their body in `requestObject`, except for tokens and secrets. A watch is there once it has ended; what `admin` gets
        and lists is not.
        """
        end = self.audit_mark()
        with (self.directory / "audit.log").open("rb") as log:
            log.seek(since)
            events = [json.loads(line) for line in log.read(end - since).splitlines()]
        return [
            event
            for event in events
            if (user is None or event["user"]["username"] == user)
            and (namespace is None or event.get("objectRef", {}).get("namespace") == namespace)
            and not event["requestURI"].startswith("/version")  # marks, and how the state API compares clocks
        ]

    def close(self) -> None:
        """Close the HTTP clients."""
        for client in self._clients.values():
            client.close()
        self._clients.clear()


@dataclass
class RunningControlPlane(ControlPlane):
    """A control plane that this process started and stops."""

    setup: Setup = field(default_factory=Setup)
    _processes: dict[str, _Process] = field(default_factory=dict)

    def start(self, *, crd: bool = True) -> None:
        """Start everything, and wait until it is ready: some 5 seconds.

        Args:
            crd: apply the TaskRun CRD before the garbage collector looks which kinds there are, as it looks but twice a minute.
        """
        for program in (STORAGE, KUBE):
            if not program.exists():
                raise ControlPlaneError(f"{program} is missing. Build it: make control-plane KUBERNETES={MINOR}")
        self.directory.mkdir(parents=True, exist_ok=True)
        self._write_secrets()
        self._start_storage()
        self._add("kube-apiserver", self._apiserver_arguments())
        self.start_apiserver()
        if crd:
            self.apply_crd()
        self._add("kube-controller-manager", self._controller_arguments())
        self._processes["kube-controller-manager"].start()

    def stop(self) -> None:
        """End everything; nothing of it is kept in memory, the files stay in `directory`."""
        self.close()
        for process in self._processes.values():
            process.kill()

    def stop_apiserver(self) -> None:
        """End the API server alone, as a crash does (asked to end, it waits for its watches); etcd keeps what was stored."""
        self._processes["kube-apiserver"].kill()

    def start_apiserver(self) -> None:
        """Start the API server, on the same port as before, and wait until it is ready."""
        process = self._processes["kube-apiserver"]
        process.start()

        def ready() -> bool:
            process.must_run()
            with contextlib.suppress(httpx.TransportError):
                return self.client().get("/readyz").is_success
            return False

        try:
            wait_until(ready, seconds=60, what="the API server is ready", every=0.1)
        except AssertionError as error:
            raise ControlPlaneError(f"{error}\n{process.log_end()}") from error

    def restart(self) -> None:
        """Restart the API server, in some 3 seconds."""
        self.stop_apiserver()
        self.start_apiserver()

    @contextlib.contextmanager
    def without_apiserver(self) -> Iterator[None]:
        """No API server inside the `with`."""
        self.stop_apiserver()
        try:
            yield
        finally:
            self.start_apiserver()

    @contextlib.contextmanager
    def without_control_plane(self) -> Iterator[Path]:
        """Stop every component within the block. Yield the folder of etcd's data, to be copied or replaced."""
        self.close()
        for process in self._processes.values():
            process.kill()
        yield self.directory / "etcd"
        self._processes["etcd"].start()
        self._wait_for_storage()
        self.start_apiserver()
        self._processes["kube-controller-manager"].start()

        def serves_crds() -> bool:
            return self.client().get("/apis/reattach.dev/v1alpha1/taskruns").is_success

        wait_until(serves_crds, seconds=60, what="the API server serves TaskRuns", every=0.1)

    def server_certificate(self, user: str) -> tuple[bytes, bytes]:
        """A certificate of a server on this machine, and its key, both as PEM; the control plane's CA signs it."""
        return _Authority.load(self.directory).issue(user, server=True)

    def process_id(self, component: str) -> int:
        """The process ID of a running component, such as `kube-apiserver`."""
        process = self._processes[component]
        process.must_run()
        assert process.process is not None
        return process.process.pid

    def kill(self, component: str) -> None:
        """Kill a component by SIGKILL, and wait until its process has ended."""
        self._processes[component].kill()

    def start_again(self, component: str) -> None:
        """Start a killed component, without waiting until it is ready."""
        self._processes[component].start()

    @property
    def storage_url(self) -> str:
        """URL of etcd, which serves its JSON gateway without TLS."""
        return self._storage

    def _add(self, name: str, arguments: list[str]) -> None:
        # Of a flag that is given twice the last value counts.
        more = _flags(self.setup.flags.get(name, {}))
        self._processes[name] = _Process(name, [*arguments, *more], self.directory)

    def _write_secrets(self) -> None:
        authority = _Authority.new()
        certificate, key = authority.issue("kube-apiserver", server=True)
        for name, content in {
            "ca.crt": authority.certificate.public_bytes(serialization.Encoding.PEM),
            "ca.key": _pem(authority.key),
            "server.crt": certificate,
            "server.key": key,
            "service-accounts.key": _pem(ec.generate_private_key(ec.SECP256R1())),
            "audit-policy.yaml": yaml.safe_dump(dict(self.setup.audit_policy)).encode(),
            "url": f"https://127.0.0.1:{free_port()}".encode(),
        }.items():
            (self.directory / name).write_bytes(content)

    def _start_storage(self) -> None:
        client, peer = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
        self._storage = client
        arguments = {
            "data-dir": str(self.directory / "etcd"),
            "listen-client-urls": client,
            "advertise-client-urls": client,
            "listen-peer-urls": peer,
            "initial-advertise-peer-urls": peer,
            "initial-cluster": f"default={peer}",
            "unsafe-no-fsync": "true",
            "log-level": "warn",
        }
        self._add("etcd", _flags(arguments))
        self._processes["etcd"].start()
        self._wait_for_storage()

    def _wait_for_storage(self) -> None:
        def healthy() -> bool:
            self._processes["etcd"].must_run()
            with contextlib.suppress(httpx.TransportError):
                return httpx.get(f"{self._storage}/health", trust_env=False).is_success
            return False

        wait_until(healthy, seconds=30, what="etcd is healthy", every=0.1)

    def _apiserver_arguments(self) -> list[str]:
        port = self.url.rpartition(":")[2]
        return _flags(
            {
                "etcd-servers": self._storage,
                "bind-address": "127.0.0.1",
                "advertise-address": "127.0.0.1",
                "endpoint-reconciler-type": "none",
                "secure-port": port,
                "tls-cert-file": "server.crt",
                "tls-private-key-file": "server.key",
                "client-ca-file": "ca.crt",
                "service-account-issuer": "https://kubernetes.default.svc.cluster.local",
                "service-account-key-file": "service-accounts.key",
                "service-account-signing-key-file": "service-accounts.key",
                "service-cluster-ip-range": "10.96.0.0/16",
                "authorization-mode": "RBAC",
                "audit-policy-file": "audit-policy.yaml",
                "audit-log-path": "audit.log",
                # MB. Where it starts a new file, at 100 by default, what was noted of places in the old one is worth nothing.
                "audit-log-maxsize": "10000",
            }
        )

    def _controller_arguments(self) -> list[str]:
        config = str(self.kubeconfig("system:kube-controller-manager", ("system:masters",)))
        return _flags(
            {
                "kubeconfig": config,
                "controllers": ",".join(self.setup.controllers),
                "leader-elect": "false",
                # The deletion of a namespace takes some 70 requests, and tests wait for it: by default, 20 are sent in a second.
                "kube-api-qps": "1000",
                "kube-api-burst": "1000",
                "secure-port": "0",
                "root-ca-file": "ca.crt",
                "service-account-private-key-file": "service-accounts.key",
            }
        )


@contextlib.contextmanager
def running(directory: Path, *, crd: bool = True, setup: Setup | None = None) -> Iterator[RunningControlPlane]:
    """A control plane for as long as the `with` lasts."""
    control_plane = RunningControlPlane(directory, setup=setup or Setup())
    try:
        control_plane.start(crd=crd)
        yield control_plane
    finally:
        control_plane.stop()


@contextlib.contextmanager
def shared(directory: Path) -> Iterator[ControlPlane]:
    """One control plane for all the processes that name the same directory, at the same time.

    The first to come starts it; every process holds a lock while it uses it, and the one that started it stops it once it gets
    the lock alone. A process that dies gives its lock back, so nobody waits for it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "starting").open("w") as starting, (directory / "using").open("w") as using:
        fcntl.flock(starting, fcntl.LOCK_EX)
        started = directory / "started"
        if started.exists():
            fcntl.flock(using, fcntl.LOCK_SH)
            fcntl.flock(starting, fcntl.LOCK_UN)
            control_plane = ControlPlane(directory / started.read_text())
            try:
                yield control_plane
            finally:
                control_plane.close()
            return
        name = secrets.token_hex(4)
        with running(directory / name) as owned:
            started.write_text(name)
            fcntl.flock(using, fcntl.LOCK_SH)
            fcntl.flock(starting, fcntl.LOCK_UN)
            try:
                yield owned
            finally:
                # The order forbids that someone joins between the last look and the end.
                fcntl.flock(using, fcntl.LOCK_UN)
                fcntl.flock(starting, fcntl.LOCK_EX)
                started.unlink()
                fcntl.flock(starting, fcntl.LOCK_UN)
                fcntl.flock(using, fcntl.LOCK_EX)


def helm_template(*templates: str, values: dict[str, Any] | None = None, namespace: str = "reattach") -> str:
    """The chart as helm renders it for release `reattach`; only these templates (shell patterns) if any are named.

    Raises:
        ControlPlaneError: helm is missing or refuses; the message is what it said.
    """
    if not HELM.exists():
        raise ControlPlaneError(f"{HELM} is missing. Build it: make control-plane")
    only: list[str] = []
    for pattern in templates:
        found = sorted((CHART / "templates").glob(pattern))
        if not found:
            raise ControlPlaneError(f"No template of the chart matches {pattern}")
        only += [f"--show-only={path.relative_to(CHART)}" for path in found]
    process = subprocess.run(
        [str(HELM), "template", "reattach", str(CHART), "--namespace", namespace, "--values", "-", *only],
        input=yaml.safe_dump(values or {}),
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode:
        raise ControlPlaneError(process.stderr.strip())
    return process.stdout


def _flags(values: Mapping[str, str]) -> list[str]:
    return [f"--{name}={value}" for name, value in values.items()]


def _file_name(*words: str) -> str:
    return "_".join(words).replace(":", ".").replace("/", ".")


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )


def _name(user: str, groups: Iterable[str]) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, user),
            *(x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups),
        ]
    )


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(minutes=5))
        .not_valid_after(now + dt.timedelta(days=1))
    )
