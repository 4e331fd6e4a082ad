"""Airflow's own examples of task state run byte for byte, from Airflow's wheel, without Airflow."""

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from taskpods import Pod, Pods

WHEEL = "apache-airflow-core==3.3.2"
SECONDS = 120


@pytest.fixture(scope="module")
def airflow_examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the example Dag files of the wheel."""
    folder = tmp_path_factory.mktemp("airflow")
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest"]
    subprocess.run([*download, str(folder), WHEEL], check=True, timeout=SECONDS)
    [wheel] = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.startswith("airflow/example_dags/example_task_state_store"):
                (folder / Path(name).name).write_bytes(archive.read(name))
    return folder


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


def test_airflow_example_after_a_failed_attempt_reattaches_to_its_job(pods: Pods, airflow_examples: Path) -> None:
    reference = f"{airflow_examples}/example_task_state_store.py:run_job"
    code, first = run_attempt(pods.start(1), reference)
    assert code == 1, first
    [job_id] = re.findall(r"Try 1: submitted job: (job-\w{8})", first)

    code, second = run_attempt(pods.start(2), reference)

    assert code == 0, second
    assert f"Try 2: reattaching to existing job: {job_id}" in second
    assert "submitted job" not in second
    assert f"{result_of(pods)} rows written" in second


def test_airflow_async_example_after_a_failed_attempt_resumes_from_its_checkpoint(
    pods: Pods, airflow_examples: Path
) -> None:
    reference = f"{airflow_examples}/example_task_state_store_async.py:ingest_pages"
    code, first = run_attempt(pods.start(1), reference)
    assert (code, "Staged worker loss after 8 pages" in first) == (1, True), first

    code, second = run_attempt(pods.start(2), reference)

    assert code == 0, second
    assert result_of(pods) == {"pages": 12, "rows": sum(range(1, 13)) * 100}
