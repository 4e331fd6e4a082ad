"""Airflow's task SDK and durable operators, in the environment that `hack/systems/up` prepared."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from airflow_runs import DagRuns, build_manifest, dag_runs, extract_examples, extract_packages
from controlplane import ControlPlane
from jobservers import serving
from systems.conformance import ALL
from systems.conftest import CACHE

REPOSITORY = Path(__file__).parents[2]
PYTHON = CACHE / "airflow/bin/python"
NEXT = ("3.4.0b2", "1.4.0b2")
"""Versions of Airflow and its task SDK after the installed ones. They import the dependencies of these."""


@pytest.fixture(scope="module")
def python() -> Path:
    """Interpreter of the environment with Airflow."""
    if not PYTHON.exists():
        pytest.fail(f"{PYTHON} must exist: make systems")
    return PYTHON


@pytest.fixture(scope="module")
def runs(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory, python: Path) -> Iterator[DagRuns]:
    """TaskRuns whose tasks import Airflow itself."""
    directory = tmp_path_factory.mktemp("dag-runs")
    environment = {"AIRFLOW_HOME": str(directory)}
    with dag_runs(control_plane, directory, python=str(python), environment=environment) as runs:
        yield runs


def run_python(python: Path, tmp_path: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "PYTEST", "COV"))
    }
    paths = os.pathsep.join(str(REPOSITORY / name) for name in ("operator", "tests"))
    return subprocess.run(
        [python, *arguments],
        cwd=REPOSITORY,
        env=environment | {"PYTHONPATH": paths, "AIRFLOW_HOME": str(tmp_path)} | more,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def find_example(folder: Path, version: str) -> str:
    examples = extract_examples(folder / "examples", f"apache-airflow-core=={version}")
    return f"{examples}/example_task_state_store.py:run_job"


def check_reattached(runs: DagRuns, name: str, status: dict[str, Any]) -> None:
    first, second = runs.outputs[name]
    [job_id] = re.findall(r"Try 1: submitted job: (job-\w{8})", first)
    assert f"Try 2: reattaching to existing job: {job_id}" in second
    assert "submitted job" not in second
    assert (status["outcome"], len(status["attempts"])) == ("Succeeded", 2)
    assert f"{status['result']} rows written" in second


def test_airflow_example_with_airflow_reattaches_to_its_job(runs: DagRuns, python: Path, tmp_path: Path) -> None:
    version = run_python(python, tmp_path, "-c", "import airflow; print(airflow.__version__)").stdout.split()[-1]

    status = runs.run(build_manifest(find_example(tmp_path, version), str(python)))

    check_reattached(runs, "run-job", status)


@pytest.mark.skipif(not ALL, reason="REATTACH_ALL=1 runs it")
def test_airflow_example_with_the_next_airflow_reattaches_to_its_job(
    runs: DagRuns, python: Path, tmp_path: Path
) -> None:
    core, sdk = NEXT
    packages = extract_packages(tmp_path / "next", f"apache-airflow-core=={core}", f"apache-airflow-task-sdk=={sdk}")
    paths = {"PYTHONPATH": os.pathsep.join([str(REPOSITORY / "operator"), str(packages)])}
    shown = run_python(python, tmp_path, "-c", "import airflow.sdk; print(airflow.sdk.__version__)", **paths)
    assert shown.stdout.split()[-1] == sdk
    manifest = build_manifest(find_example(tmp_path, core))
    manifest["metadata"]["name"] = "run-job-next"

    status = runs.run(manifest, **paths)

    check_reattached(runs, "run-job-next", status)


def test_dag_file_of_the_older_shape_with_airflow_submits_once(runs: DagRuns) -> None:
    documents = [*yaml.safe_load_all((REPOSITORY / "examples/05-aip103.yaml").read_text())]
    files = documents[0]["data"]
    with serving("nothing") as jobserver:
        status = runs.run(documents[1], files, JOBSERVER_URL=jobserver.url)

        assert jobserver.made == 1
    first, second = runs.outputs["aip103"]
    [job_id] = re.findall(r"Try 1: submitted job (\S+)", first)
    assert f"Try 2: reattaching to existing job {job_id}" in second
    assert (status["outcome"], len(status["attempts"]), status["result"]) == ("Succeeded", 2, "812")


def test_task_inside_a_dag_function_is_found_with_airflow(python: Path, tmp_path: Path) -> None:
    (tmp_path / "nightly.py").write_text(
        "import pendulum\n"
        "from airflow.sdk import dag, task\n"
        "@dag(schedule=None, start_date=pendulum.datetime(2026, 1, 1))\n"
        "def nightly():\n"
        "    @task(retries=3)\n"
        "    def run_job(**context): ...\n"
        "    run_job()\n"
        "made = nightly()\n"
    )
    reference = f"{tmp_path}/nightly.py:run_job"
    ended = run_python(python, tmp_path, "-m", "reattach.aip103", reference, REATTACH_ATTEMPT="1")
    assert "retries=3 of @task has no effect" in ended.stdout
    assert "NotInPod" in ended.stdout


@pytest.mark.parametrize("name", ["databricks", "livy", "redshift"])
def test_durable_operator_submits_once(python: Path, tmp_path: Path, name: str) -> None:
    # Airflow warns of its own use of its own names.
    options = ["-q", "-o", "filterwarnings=", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'run'}", "-k", name]
    ended = run_python(python, tmp_path, "-m", "pytest", *options, "tests/systems/airflow/durable_operators.py")
    sys.stdout.write(ended.stdout)
    assert ended.returncode == 0, ended.stdout[-5000:]
