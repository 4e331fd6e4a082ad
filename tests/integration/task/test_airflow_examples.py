"""Airflow's own examples of task state run byte for byte, from Airflow's wheels, without Airflow."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_runs import DagRuns, build_manifest, dag_runs, extract_examples
from controlplane import ControlPlane
from taskpods import Pod, Pods

SECONDS = 120


NEXT = "apache-airflow-core==3.4.0b2"
only_next = pytest.mark.parametrize("airflow_examples", [NEXT], indirect=True, scope="module")


@pytest.fixture(scope="module", params=["apache-airflow-core==3.3.2", NEXT])
def airflow_examples(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the example Dag files of a wheel."""
    return extract_examples(tmp_path_factory.mktemp("airflow"), request.param)


@pytest.fixture(scope="module")
def runs(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DagRuns]:
    with dag_runs(control_plane, tmp_path_factory.mktemp("dag-runs")) as runs:
        yield runs


def run_attempt(pod: Pod, reference: str) -> tuple[int, str]:
    process = pod.start("-u", "-m", "reattach.aip103", reference)
    with process:
        try:
            output, _ = process.communicate(timeout=SECONDS)
        finally:
            process.kill()
        return process.returncode, output


def result_of(pods: Pods) -> Any:
    return json.loads(json.loads(pods.run.configmap()["data"]["completion"])["result"])


def test_airflow_example_under_the_operator_reattaches_to_its_job(runs: DagRuns, airflow_examples: Path) -> None:
    manifest = build_manifest(f"{airflow_examples}/example_task_state_store.py:run_job")
    manifest["metadata"]["name"] = name = f"run-job-{len(runs.outputs)}"

    status = runs.run(manifest)

    first, second = runs.outputs[name]
    [job_id] = re.findall(r"Try 1: submitted job: (job-\w{8})", first)
    assert f"Try 2: reattaching to existing job: {job_id}" in second
    assert "submitted job" not in second
    assert "has no effect" not in first
    assert (status["outcome"], len(status["attempts"])) == ("Succeeded", 2)
    assert f"{status['result']} rows written" in second


@only_next
def test_airflow_async_example_after_a_failed_attempt_resumes_from_its_checkpoint(
    pods: Pods, airflow_examples: Path
) -> None:
    reference = f"{airflow_examples}/example_task_state_store_async.py:ingest_pages"
    code, first = run_attempt(pods.start(1), reference)
    assert (code, "Staged worker loss after 8 pages" in first) == (1, True), first

    code, second = run_attempt(pods.start(2), reference)

    assert code == 0, second
    assert result_of(pods) == {"pages": 12, "rows": sum(range(1, 13)) * 100}


@only_next
def test_airflow_example_of_asset_state_fails_with_the_remedy(pods: Pods, airflow_examples: Path) -> None:
    pod = pods.start(1)

    code, output = run_attempt(pod, f"{airflow_examples}/example_asset_state_store.py:load")

    assert code == 1
    assert "asset_state_store is not available" in output
    assert pod.message().kind == "Permanent"
