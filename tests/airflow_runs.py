"""Dag files of Airflow in TaskRuns of a real operator.

The API server, the operator and the state API are real. No node exists: the task's container is a
process of an interpreter that the test chooses, with the command that the pod has.
"""

import contextlib
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from controlplane import REPOSITORY, ControlPlane
from operator_process import Containers, Operators, Stage, kubelet_of, stage_of
from reattach.cluster.paths import taskruns
from run_histories import write_ca
from stateapi import Servers
from taskpods import environment_of

JSON = dict[str, Any]
SECONDS = 240
EXAMPLES = re.compile(r"airflow/example_dags/example_\w+_state_store\w*\.py")


def download_wheels(folder: Path, *wheels: str) -> list[Path]:
    """Download these versions of packages, without their dependencies."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest"]
    subprocess.run([*command, str(folder), *wheels], check=True, timeout=SECONDS)
    return sorted(folder.glob("*.whl"))


def extract_examples(folder: Path, wheel: str) -> Path:
    """Return the folder with Airflow's examples of stored state, from a wheel."""
    folder.mkdir(exist_ok=True)
    [downloaded] = download_wheels(folder, wheel)
    with zipfile.ZipFile(downloaded) as archive:
        for name in archive.namelist():
            if EXAMPLES.fullmatch(name):
                (folder / Path(name).name).write_bytes(archive.read(name))
    return folder


def extract_packages(folder: Path, *wheels: str) -> Path:
    """Return the folder into which these packages are extracted, to be imported from there."""
    folder.mkdir()
    for downloaded in download_wheels(folder, *wheels):
        with zipfile.ZipFile(downloaded) as archive:
            archive.extractall(folder)
    return folder


def build_manifest(reference: str, python: str = sys.executable) -> JSON:
    """Return the TaskRun that `--manifest` prints."""
    command = [python, "-m", "reattach.aip103", "--manifest", reference, "--image=example.org/dags:1"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "operator")}
    printed = subprocess.run(command, check=True, capture_output=True, text=True, timeout=SECONDS, env=environment)
    manifest: JSON = json.loads(printed.stdout)
    return manifest


def apply_manifest(control_plane: ControlPlane, namespace: str, manifest: JSON) -> JSON:
    """Create the object after a dry run by the API server, and return what is stored."""
    control_plane.call("POST", taskruns(namespace), manifest, dryRun="All", fieldValidation="Strict")
    return control_plane.call("POST", taskruns(namespace), manifest, fieldValidation="Strict")


@dataclass
class DagRuns:
    """TaskRuns whose pods are processes.

    outputs: output of each attempt of a TaskRun, in order.
    """

    stage: Stage
    directory: Path
    python: str = sys.executable
    environment: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, list[str]] = field(default_factory=dict)
    running: list[subprocess.Popen[str]] = field(default_factory=list)

    def run(self, manifest: JSON, files: dict[str, str] | None = None, **environment: str) -> JSON:
        """Create the TaskRun, and return its status when it has an outcome.

        files: text of files in the folder in which the task runs, by name.
        """
        name = manifest["metadata"]["name"]
        given = {**self.environment, **environment}
        self.stage.play(name, lambda _attempt: lambda containers: self._play(name, containers, files or {}, given))
        apply_manifest(self.stage.control_plane, self.stage.namespace, manifest)
        status = self.stage.cluster.wait_for_outcome(name, seconds=SECONDS)
        assert self.stage.kubelet.errors == []
        return status

    def _play(self, name: str, containers: Containers, files: dict[str, str], environment: dict[str, str]) -> None:
        containers.run()
        mount = self.directory / containers.uid
        mount.mkdir()
        for file, text in files.items():
            (mount / file).write_text(text)
        python, *arguments = containers.pod["spec"]["containers"][0]["command"]
        assert python == "python"
        given = {**environment_of(containers, mount), "PYTHONPATH": str(REPOSITORY / "operator"), **environment}
        process = subprocess.Popen(
            [self.python, *arguments],
            env={**os.environ, **given},
            cwd=mount,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.running.append(process)
        output, _ = process.communicate()
        self.outputs.setdefault(name, []).append(output)
        code = process.returncode
        containers.end(code if code >= 0 else 128 - code, (mount / "termination-log").read_text())

    def stop(self) -> None:
        """Kill the remaining processes."""
        for process in self.running:
            process.kill()
            process.wait()


@contextlib.contextmanager
def dag_runs(control_plane: ControlPlane, directory: Path, **how: Any) -> Iterator[DagRuns]:
    """Yield a namespace with a real operator and a real state API."""
    servers = Servers(control_plane, directory / "state-api")
    operators = Operators(control_plane, directory / "operators", ca_file=directory / "ca.crt")
    with contextlib.ExitStack() as stack:
        stack.callback(servers.stop)
        stack.callback(operators.stop)
        server = servers.start()
        operators.state_api_url = server.url
        write_ca(server, directory / "ca.crt")
        kubelet = stack.enter_context(kubelet_of(control_plane, is_graceful=True))
        stage = stack.enter_context(stage_of(control_plane, operators, kubelet))
        runs = DagRuns(stage, directory / "pods", **how)
        runs.directory.mkdir()
        stack.callback(runs.stop)
        yield runs
