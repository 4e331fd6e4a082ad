"""The local kind cluster, seen through kubectl; tests ask for it by the fixtures `cluster` and `release`.

Each module works in a namespace of its own (the fixture `namespace`), and waits for conditions with a bound. When it fails, what
the cluster knows about that namespace, and what the operator and the state API logged, is added to the report.
"""

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytest_kind import KindCluster

from waiting import wait_until

REPOSITORY = Path(__file__).parent.parent
RELEASE_NAMESPACE = "reattach"
IMAGE = "localhost/reattach:dev"
NODES = ("reattach-worker", "reattach-control-plane")
JOBS_OF = """
import json, sqlite3, sys
found = sqlite3.connect("/data/jobs.sqlite").execute("SELECT id FROM jobs WHERE label = ? ORDER BY submitted", sys.argv[1:])
print(json.dumps([job for job, in found]))
"""


class ClusterError(Exception):
    """kubectl or helm failed; the message is what it said."""


class Cluster:
    """What tests do with a cluster."""

    def __init__(self, kind: KindCluster) -> None:
        self.kind = kind

    def kubectl(
        self, *arguments: str, namespace: str | None = None, stdin: str | None = None, seconds: float = 120
    ) -> str:
        """What kubectl prints.

        Raises:
            ClusterError: it failed, or took longer than so many seconds.
        """
        place = ["--namespace", namespace] if namespace else []
        return _run(
            str(self.kind.kubectl_path),
            "--kubeconfig",
            str(self.kind.kubeconfig_path),
            *place,
            *arguments,
            stdin=stdin,
            seconds=seconds,
        )

    def reattach(self, *arguments: str, namespace: str) -> str:
        """What `kubectl reattach` prints, found by kubectl as people's own is: on the PATH.

        Raises:
            ClusterError: it failed, or took longer than a minute.
        """
        places = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, "PATH": places, "KUBECONFIG": str(self.kind.kubeconfig_path)}
        command = (str(self.kind.kubectl_path), "reattach", *arguments, "--namespace", namespace)
        return _run(*command, seconds=60, environment=environment)

    def get(self, kind: str, name: str, namespace: str) -> dict[str, Any] | None:
        """The object, or None where there is none."""
        text = self.kubectl("get", kind, name, "--output", "json", "--ignore-not-found", namespace=namespace)
        return json.loads(text) if text.strip() else None

    def items(self, kind: str, namespace: str, selector: str = "") -> list[dict[str, Any]]:
        """The objects of a kind in a namespace, by name."""
        text = self.kubectl("get", kind, "--selector", selector, "--output", "json", namespace=namespace)
        found: list[dict[str, Any]] = json.loads(text)["items"]
        return found

    def apply(self, what: str | Path, namespace: str) -> None:
        """`kubectl apply` of a file, of a folder with a kustomization, or of YAML text."""
        if isinstance(what, str):
            self.kubectl("apply", "-f", "-", namespace=namespace, stdin=what)
        else:
            self.kubectl("apply", "-k" if what.is_dir() else "-f", str(what), namespace=namespace)

    def finished(self, name: str, namespace: str, *, seconds: float = 120) -> dict[str, Any]:
        """The TaskRun, once it has an outcome."""

        def with_outcome() -> dict[str, Any] | None:
            taskrun = self.get("taskrun", name, namespace)
            return taskrun if taskrun and taskrun.get("status", {}).get("outcome") else None

        try:
            return wait_until(with_outcome, seconds=seconds, what=f"TaskRun {name} has an outcome", every=0.5)
        except AssertionError as error:
            taskrun = self.get("taskrun", name, namespace) or {}
            raise AssertionError(f"{error}\nIts status: {json.dumps(taskrun.get('status'), indent=2)}") from None

    def pods_of(self, taskrun: str, namespace: str) -> list[dict[str, Any]]:
        """The pods of a TaskRun, by attempt."""
        pods = self.items("pods", namespace, f"reattach.dev/taskrun={taskrun}")
        return sorted(pods, key=lambda pod: int(pod["metadata"]["labels"]["reattach.dev/attempt"]))

    def log(self, pod: str, namespace: str, container: str = "task") -> str:
        """What a container wrote."""
        return self.kubectl("logs", pod, "--container", container, namespace=namespace)

    def start_jobserver(self, namespace: str, mode: str | None = None) -> None:
        """The outside system of the examples, until it answers by its Service: on a node that comes a little after it is ready.

        `mode` replaces the mode of the example.
        """
        self.apply(REPOSITORY / "examples/jobserver", namespace)
        if mode is not None:
            command = {"op": "replace", "path": "/spec/template/spec/containers/0/command/5", "value": mode}
            patch = ("--type=json", "--patch", json.dumps([command]))
            self.kubectl("patch", "deployment/jobserver", *patch, namespace=namespace)
        self.kubectl("rollout", "status", "deployment/jobserver", "--timeout=90s", namespace=namespace)
        ask = "import urllib.request; urllib.request.urlopen('http://jobserver:8000/healthz', timeout=5)"

        def answers() -> bool:
            try:
                self.kubectl("exec", "deployment/jobserver", "--", "python", "-c", ask, namespace=namespace)
            except ClusterError:
                return False
            return True

        wait_until(answers, seconds=60, what="the job server answers by its Service", every=0.5)

    def ask_jobserver(self, question: str, namespace: str) -> dict[str, Any]:
        """What the job server in this namespace answers to a GET of this path."""
        path = f"/api/v1/namespaces/{namespace}/services/jobserver:http/proxy/{question}"
        answer: dict[str, Any] = json.loads(self.kubectl("get", "--raw", path))
        return answer

    def submissions(self, namespace: str) -> dict[str, int]:
        """How many jobs the job server in this namespace was asked to run, by label."""
        by_label: dict[str, int] = self.ask_jobserver("stats", namespace)["by_label"]
        return by_label

    def jobs(self, namespace: str, label: str) -> list[str]:
        """The ids of the jobs that the job server in this namespace made for a label, oldest first.

        From its database: its log is that of its last container alone, and it promises nobody that jobs can be found.
        """
        command = ("exec", "deployment/jobserver", "--", "python", "-c", JOBS_OF, label)
        found: list[str] = json.loads(self.kubectl(*command, namespace=namespace))
        return found

    def job(self, handle: str, namespace: str) -> dict[str, Any]:
        """How a job stands at the job server in this namespace."""
        return self.ask_jobserver(f"jobs/{handle}", namespace)

    def metric(self, name: str, component: str = "operator") -> float:
        """The sum of a metric, named with its labels as it is printed, over the pods of a component that run."""
        pods = self.items("pods", RELEASE_NAMESPACE, f"app.kubernetes.io/component={component}")
        running = [pod["metadata"]["name"] for pod in pods if pod["status"]["phase"] == "Running"]
        paths = [f"/api/v1/namespaces/{RELEASE_NAMESPACE}/pods/{pod}:8080/proxy/metrics" for pod in running]
        lines = [line for path in paths for line in self.kubectl("get", "--raw", path).splitlines()]
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.rpartition(" ")[0] == name)

    def evict(self, pod: str, namespace: str) -> None:
        """Ask for the pod's end as `kubectl drain` does."""
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": namespace}}
        path = f"/api/v1/namespaces/{namespace}/pods/{pod}/eviction"
        self.kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(eviction))

    def kill(self, component: str) -> None:
        """SIGKILL for the processes of `operator` or `server`, wherever they run; the kubelet starts their containers anew."""
        command = ("pkill", "-9", "-f", f"bin/reattach-{component}")
        nodes = [subprocess.run(["docker", "exec", node, *command], check=False).returncode for node in NODES]
        assert 0 in nodes, f"no {component} was found to be killed"

    def renew(self, component: str) -> None:
        """New pods for `operator` or `server`, and wait until they are ready."""
        deployment = f"deployment/reattach-{component}"
        self.kubectl("rollout", "restart", deployment, namespace=RELEASE_NAMESPACE)
        self.kubectl("rollout", "status", deployment, "--timeout=120s", namespace=RELEASE_NAMESPACE, seconds=150)

    def scale_state_api(self, replicas: int) -> None:
        """Until so many replicas are ready, or none is left."""
        self.kubectl("scale", "deployment/reattach-server", f"--replicas={replicas}", namespace=RELEASE_NAMESPACE)
        if replicas:
            self.kubectl("rollout", "status", "deployment/reattach-server", namespace=RELEASE_NAMESPACE)
            return

        def gone() -> bool:
            return not self.items("pods", RELEASE_NAMESPACE, "app.kubernetes.io/component=server")

        wait_until(gone, seconds=90, what="no replica of the state API is left", every=0.5)

    def create_namespace(self, prefix: str = "e2e") -> str:
        """A namespace with a name of its own."""
        name = f"{prefix}-{secrets.token_hex(3)}"
        self.kubectl("create", "namespace", name)
        return name

    def let_go_of_held(self, namespace: str) -> None:
        """Release what a test that failed, or was not chosen, left unanswered: it would rightly keep the namespace for ever."""
        for found in self.items("taskruns", namespace):
            if "outcome" not in found.get("status", {}):
                try:
                    self.reattach("release", found["metadata"]["name"], "--yes", "--force", namespace=namespace)
                except ClusterError as error:
                    if "nothing keeps them" not in str(error):  # it has ended since
                        raise

    def delete_namespace(self, name: str, *, seconds: float = 120) -> None:
        """End a namespace and wait until nothing of it is left: a finalizer that stays fails the test."""
        self.kubectl("delete", "namespace", name, "--wait=false")
        wait_until(lambda: not self.exists(name), seconds=seconds, what=f"namespace {name} is gone", every=0.5)

    def exists(self, name: str) -> bool:
        return bool(self.kubectl("get", "namespace", name, "--ignore-not-found", "--output", "name").strip())

    def install(self, *arguments: str) -> None:
        """Install or upgrade the chart with the built image by helm; arguments go to helm.

        Raises:
            ClusterError: helm failed, or the Deployments don't get ready.
        """
        _run(str(REPOSITORY / "hack/install"), *arguments, seconds=240)

    def describe(self, namespace: str) -> dict[str, str]:
        """What is known about a namespace and about Reattach itself, for the report of a failed test: text by title."""
        questions = {
            f"TaskRuns in {namespace}": ("get", "taskruns", "--output", "yaml", "--namespace", namespace),
            f"pods in {namespace}": ("get", "pods", "--output", "wide", "--namespace", namespace),
            f"events in {namespace}": ("get", "events", "--sort-by", ".lastTimestamp", "--namespace", namespace),
            **{
                f"log of {deployment}": (
                    "logs",
                    f"deployment/{deployment}",
                    "--all-pods",
                    "--tail=60",
                    "--namespace",
                    RELEASE_NAMESPACE,
                )
                for deployment in ("reattach-operator", "reattach-server")
            },
        }
        answers = {}
        for title, question in questions.items():
            try:
                answers[title] = self.kubectl(*question, seconds=20)
            except ClusterError as error:
                answers[title] = str(error)
        return answers


def taskrun(name: str, container: dict[str, Any], pod: dict[str, Any] | None = None, **spec: Any) -> str:
    """The manifest of a TaskRun of one container that ends at once when it is told to. `pod`: more of its pod's spec."""
    pod = {"terminationGracePeriodSeconds": 2, "containers": [container], **(pod or {})}
    body = {
        "apiVersion": "reattach.dev/v1alpha1",
        "kind": "TaskRun",
        "metadata": {"name": name},
        "spec": {"template": {"spec": pod}, "retry": {"backoff": {"initialSeconds": 1}}, **spec},
    }
    return json.dumps(body)


def condition_of(found: dict[str, Any] | None, kind: str = "Succeeded") -> dict[str, Any]:
    """The condition of this type of an object as it was read, or an empty one."""
    conditions = (found or {}).get("status", {}).get("conditions", [])
    return next((condition for condition in conditions if condition["type"] == kind), {})


def _run(*command: str, seconds: float, stdin: str | None = None, environment: Mapping[str, str] | None = None) -> str:
    try:
        process = subprocess.run(
            command,
            input=stdin or "",
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds,
            env=environment,
        )
    except subprocess.TimeoutExpired as error:
        raise ClusterError(f"Not within {seconds:g} s: {' '.join(command)}") from error
    if process.returncode:
        raise ClusterError(f"{' '.join(command)}: {process.stderr.strip()}")
    return process.stdout
