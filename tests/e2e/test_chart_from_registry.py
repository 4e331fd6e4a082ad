"""The commands of README.md, from an empty registry to two ended TaskRuns.

Only addresses are replaced: that of the registry, and that of the job system in `load.py`.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

import registry
from controlplane import HELM
from realcluster import NODES, RELEASE_NAMESPACE, REPOSITORY, Cluster, ClusterError, condition_of
from registry import Registry
from waiting import wait_until

README = (REPOSITORY / "README.md").read_text()
INSTALL = (REPOSITORY / "docs/install.md").read_text()
REGISTRY = "registry.example.com"
JOBS = "https://jobs.example.com/api"
VERSION = yaml.safe_load((REPOSITORY / "charts/reattach/Chart.yaml").read_text())["version"]

# The job system of load.py: it refuses a second job of the same name. A job runs until the test
# ends it.
JOB_SYSTEM = """
import http.server, json, pathlib

class Handler(http.server.BaseHTTPRequestHandler):
    jobs = {}
    status = "QUEUED"

    def reply(self, code, body):
        text = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        known = self.jobs.get(body["name"])
        job = self.jobs.setdefault(body["name"], f"job-{len(self.jobs) + 1}")
        self.reply(409 if known else 201, {"id": job})

    def do_GET(self):
        last = self.path.rpartition("/")[2]
        if last == "end":
            Handler.status = "DONE"
        if last in self.jobs.values():
            self.reply(200, {"status": self.status, "rows_written": 4211})
        elif last in ("end", "jobs"):
            self.reply(200, self.jobs)
        else:
            self.reply(404, {"message": "no job"})

http.server.ThreadingHTTPServer(("", 8000), Handler).serve_forever()
"""


def commands(page: str, heading: str) -> list[str]:
    """Return the indented blocks of code of a section, in order."""
    section = page.split(f"\n## {heading}\n")[1].split("\n## ", maxsplit=1)[0]
    return [
        re.sub(r"^ {4}", "", block, flags=re.MULTILINE)
        for block in re.findall(r"(?:^ {4}.*\n)+", section, re.MULTILINE)
    ]


def fenced(page: str, language: str) -> str:
    """Return the first block of code in this language."""
    (first, *_) = re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)
    return str(first)


@dataclass(frozen=True)
class Shell:
    """A shell in the checkout, whose kubectl works in a namespace of its own."""

    registry: Registry
    namespace: str
    environment: dict[str, str]

    def run(self, block: str, folder: Path = REPOSITORY) -> str:
        """Run a block of commands until one fails.

        Raises:
            ClusterError: One failed.
        """
        # The output of a failed command shows when each began.
        head = f"PS4='+ ${{SECONDS}}s '\nREGISTRY={self.registry.address}\n"
        script = head + block.replace(REGISTRY, self.registry.address)
        done = subprocess.run(
            ["timeout", "300", "bash", "-euxo", "pipefail", "-c", script],
            cwd=folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise ClusterError(f"status {done.returncode} of:\n{block}\n{done.stdout}\n{done.stderr}")
        return done.stdout


def environment_of(cluster: Cluster, registry: Registry, namespace: str, folder: Path) -> dict[str, str]:
    """Return the environment of a user: programs on the PATH, and a context with the namespace."""
    programs = folder / "bin"
    programs.mkdir()
    # The build gets the arguments of hack/image, because this machine may reach no image registry.
    # The label makes another image of it. If the kubelet has pulled an image from a registry, it
    # rejects the same image under a name that it can't pull, such as that of the other tests.
    program = shutil.which("docker")
    arguments = '--build-arg BASE="$REATTACH_BASE" --build-arg PIP_NO_INDEX=1 --label test=registry'
    (programs / "docker").write_text(
        f'#!/bin/sh\n[ "$1" != build ] || {{ shift; set -- build {arguments} "$@"; }}\nexec {program} "$@"\n'
    )
    (programs / "docker").chmod(0o755)
    kubeconfig = folder / "kubeconfig"
    shutil.copy(cluster.kind.kubeconfig_path, kubeconfig)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HELM_")}
    environment = {
        **inherited,
        "PATH": os.pathsep.join([str(programs), str(HELM.parent), os.environ["PATH"]]),
        "KUBECONFIG": str(kubeconfig),
        "SSL_CERT_FILE": str(registry.authority),  # read by helm
    }
    command = ["kubectl", "config", "set-context", "--current", "--namespace", namespace]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    return environment


@pytest.fixture(scope="module")
def shell(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """A cluster without Reattach, an empty registry, and a shell. In the end, the other tests' release is back."""
    folder = tmp_path_factory.mktemp("registry")
    settings = folder / "settings"
    settings.mkdir()
    namespace = cluster.create_namespace("registry")
    with registry.running(settings, os.environ["REATTACH_BASE"], NODES) as running:
        shell = Shell(running, namespace, environment_of(cluster, running, namespace, folder))
        try:
            shell.run("helm uninstall reattach --namespace reattach --ignore-not-found --wait --timeout 4m")
            yield shell
        finally:
            cluster.delete_namespace(namespace)
            cluster.install()
            pushed = registry.docker("image", "list", "--quiet", f"{running.address}/*").split()
            names = registry.docker(
                "image", "list", "--format={{.Repository}}:{{.Tag}}", f"{running.address}/*"
            ).split()
            if pushed:
                registry.docker("image", "rm", *names)


def test_commands_of_the_readme_lead_from_an_empty_registry_to_succeeded(
    shell: Shell, cluster: Cluster, tmp_path: Path
) -> None:
    install, example = commands(README, "Install it from your own registry")
    assert shell.registry.tags("reattach") == []

    # Push image and chart, and install them.
    shell.run(install)
    assert shell.registry.tags("reattach") == shell.registry.tags("charts/reattach") == [VERSION]
    released = f"{shell.registry.address}/reattach:{VERSION}"
    assert images_in(cluster, RELEASE_NAMESPACE, "app.kubernetes.io/name=reattach") == {released}

    # The TaskRun and load.py of README.md, in an image by the Dockerfile of docs/install.md. Its
    # first pod is evicted.
    start_job_system(shell, cluster)
    (tmp_path / "load.py").write_text(fenced(README, "python").replace(JOBS, "http://jobs/api"))
    (tmp_path / "nightly-load.yaml").write_text(fenced(README, "yaml").replace(REGISTRY, shell.registry.address))
    (dockerfile,) = (block for block in commands(INSTALL, "The first TaskRuns") if block.startswith("FROM "))
    (tmp_path / "Dockerfile").write_text(dockerfile.replace(REGISTRY, shell.registry.address))
    shell.run("docker build --tag $REGISTRY/nightly-load:1.4 . && docker push $REGISTRY/nightly-load:1.4", tmp_path)
    shell.run("kubectl apply -f nightly-load.yaml", tmp_path)
    evict_first_pod(shell, cluster, "nightly-load")

    # The example, meanwhile.
    shell.run(example)
    assert cluster.submissions(shell.namespace) == {"submit-once": 1}
    submit_once = cluster.finished("submit-once", shell.namespace)["status"]
    assert (submit_once["outcome"], len(submit_once["attempts"])) == ("Succeeded", 2)

    loads = f"{shell.registry.address}/nightly-load:1.4"
    assert images_in(cluster, shell.namespace) == {released, loads}

    job_system(shell, cluster, "end")
    nightly = cluster.finished("nightly-load", shell.namespace)
    assert condition_of(nightly)["status"] == "True"
    assert [attempt["cause"] for attempt in nightly["status"]["attempts"]] == ["Disruption", "Succeeded"]
    assert json.loads(nightly["status"]["result"]) == {"rows_written": 4211}
    assert len(job_system(shell, cluster, "jobs")) == 1


def images_in(cluster: Cluster, namespace: str, selector: str = "") -> set[str]:
    pods = cluster.items("pods", namespace, selector)
    return {container["image"] for pod in pods for container in pod["spec"]["containers"]}


def start_job_system(shell: Shell, cluster: Cluster) -> None:
    image = f"{shell.registry.address}/reattach:{VERSION}"
    container = {"name": "jobs", "image": image, "command": ["python", "-c", JOB_SYSTEM]}
    labels = {"app": "jobs"}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "jobs", "labels": labels},
        "spec": {"containers": [container], "terminationGracePeriodSeconds": 0},
    }
    ports = [{"port": 80, "targetPort": 8000}]
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "jobs"},
        "spec": {"selector": labels, "ports": ports},
    }
    cluster.apply(yaml.safe_dump_all([pod, service]), shell.namespace)


def job_system(shell: Shell, cluster: Cluster, path: str) -> dict[str, str]:
    """Return the jobs of the job system by name. The path `end` lets them end."""
    raw = f"/api/v1/namespaces/{shell.namespace}/services/jobs:80/proxy/{path}"
    found: dict[str, str] = json.loads(cluster.kubectl("get", "--raw", raw))
    return found


def evict_first_pod(shell: Shell, cluster: Cluster, taskrun: str) -> None:
    """Wait until the first attempt has submitted its job, and evict its pod."""

    def handle() -> str:
        found = cluster.get("taskrun", taskrun, shell.namespace) or {}
        jobs = found.get("status", {}).get("externalJobs", [])
        return jobs[0].get("handle", "") if jobs else ""

    wait_until(handle, seconds=60, what=f"{taskrun} has a job", every=0.3)
    (pod,) = cluster.pods_of(taskrun, shell.namespace)
    cluster.evict(pod["metadata"]["name"], shell.namespace)
