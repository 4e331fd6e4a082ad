"""The local kind cluster, seen through kubectl; tests ask for it by the fixtures `cluster` and `release`.

Each test works in a namespace of its own (the fixture `namespace`), and waits for conditions with a bound. When it fails, what
the cluster knows about that namespace, and what the operator and the state API logged, is added to the report.
"""

import json
import secrets
import subprocess
from pathlib import Path
from typing import Any

from pytest_kind import KindCluster

from waiting import wait_until

REPOSITORY = Path(__file__).parent.parent
RELEASE_NAMESPACE = "reattach"
IMAGE = "localhost/reattach:dev"


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

    def start_jobserver(self, namespace: str) -> None:
        """The outside system of the examples, until it answers by its Service: on a node that comes a little after it is ready."""
        self.apply(REPOSITORY / "examples/jobserver", namespace)
        self.kubectl("rollout", "status", "deployment/jobserver", "--timeout=90s", namespace=namespace)
        ask = "import urllib.request; urllib.request.urlopen('http://jobserver:8000/healthz', timeout=5)"

        def answers() -> bool:
            try:
                self.kubectl("exec", "deployment/jobserver", "--", "python", "-c", ask, namespace=namespace)
            except ClusterError:
                return False
            return True

        wait_until(answers, seconds=60, what="the job server answers by its Service", every=0.5)

    def submissions(self, namespace: str) -> dict[str, int]:
        """How many jobs the job server in this namespace was asked to run, by label."""
        path = f"/api/v1/namespaces/{namespace}/services/jobserver:http/proxy/stats"
        by_label: dict[str, int] = json.loads(self.kubectl("get", "--raw", path))["by_label"]
        return by_label

    def create_namespace(self, prefix: str = "e2e") -> str:
        """A namespace with a name of its own."""
        name = f"{prefix}-{secrets.token_hex(3)}"
        self.kubectl("create", "namespace", name)
        return name

    def delete_namespace(self, name: str, *, seconds: float = 120) -> None:
        """End a namespace and wait until nothing of it is left: a finalizer that stays fails the test."""
        self.kubectl("delete", "namespace", name, "--wait=false")
        wait_until(lambda: not self._exists(name), seconds=seconds, what=f"namespace {name} is gone", every=0.5)

    def _exists(self, name: str) -> bool:
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


def _run(*command: str, seconds: float, stdin: str | None = None) -> str:
    try:
        process = subprocess.run(
            command, input=stdin or "", capture_output=True, text=True, check=False, timeout=seconds
        )
    except subprocess.TimeoutExpired as error:
        raise ClusterError(f"Not within {seconds:g} s: {' '.join(command)}") from error
    if process.returncode:
        raise ClusterError(f"{' '.join(command)}: {process.stderr.strip()}")
    return process.stdout
