"""A whole Dag file, with its DAG and its decorators, runs without Airflow and becomes a TaskRun."""

import json
import os
import subprocess
import sys
import textwrap
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from fakepod import Pod
from reattach import aip103
from reattach.aip103 import dagfile, manifest

DAG_FILE = """
from datetime import datetime, timedelta
from airflow.sdk import DAG, task
from airflow.sdk.execution_time.context import NEVER_EXPIRE

with DAG(dag_id="nightly", schedule=None, start_date=datetime(2026, 1, 1), default_args={"retry_delay": 7}):

    @task(retries=2)
    def run_job(**context):
        print("called")

    @task
    def report(): ...

    run_job() >> report()

print("imported")
"""


def run(tmp_path: Path, source: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "dags").mkdir()
    (tmp_path / "dags" / "nightly.py").write_text(textwrap.dedent(source))
    return subprocess.run(
        [sys.executable, "-m", "reattach.aip103", *arguments],
        cwd=tmp_path,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_dag_file_is_imported_by_its_path_without_calling_its_tasks(tmp_path: Path) -> None:
    result = run(tmp_path, DAG_FILE, "dags/nightly.py:run_job")
    assert result.stdout == "imported\n"
    assert "NotInPod" in result.stderr


def test_a_decorated_task_receives_the_context(pod: Pod) -> None:
    pod.api.values = {"job_id": "job-7"}

    @dagfile.task(retries=2)  # type: ignore[untyped-decorator] # stands for Airflow's
    def run_job(**context: Any) -> Any:
        return context["task_state"].get("job_id")

    assert aip103.run_in(pod.context(), run_job) == "job-7"


def test_the_manifest_has_the_retries_of_decorator_and_default_args(tmp_path: Path) -> None:
    result = run(
        tmp_path, DAG_FILE.replace('print("imported")', ""), "--manifest", "dags/nightly.py:run_job", "--image=a/b:1"
    )
    taskrun = json.loads(result.stdout)
    assert taskrun["metadata"] == {"name": "run-job"}
    assert taskrun["spec"] == {
        "retry": {
            "budgets": {"application": 2},
            "backoff": {"initialSeconds": 7, "factorPercent": 100, "maxSeconds": 7, "jitterPercent": 0},
        },
        "template": {
            "spec": {
                "containers": [
                    {
                        "name": "task",
                        "image": "a/b:1",
                        "command": ["python", "-u", "-m", "reattach.aip103", "dags/nightly.py:run_job"],
                    }
                ]
            }
        },
    }


@pytest.mark.parametrize("attempt,warns", [("1", True), ("2", False)])
def test_the_first_attempt_warns_that_the_retries_of_the_decorator_have_no_effect(
    tmp_path: Path, attempt: str, warns: bool
) -> None:
    result = run(tmp_path, DAG_FILE, "dags/nightly.py:run_job", REATTACH_ATTEMPT=attempt)
    warning = "retries=2 of @task has no effect: a TaskRun retries by spec.retry.budgets.application"
    assert (warning in result.stderr) is warns


@pytest.mark.parametrize(
    "line,message",
    [
        (
            "from airflow.sdk import Variable",
            "no stand-in for airflow.sdk.Variable of Airflow: install apache-airflow-task-sdk",
        ),
        ("import airflow.providers.http", "no stand-in for airflow.providers of Airflow: install its provider package"),
        ("from airflow.models import Variable", "no stand-in for airflow.models of Airflow"),
        ("run_job.expand(x=[1])", "create one TaskRun for each item"),
        ("run_job.override(retries=1)", "write its arguments into @task"),
    ],
)
def test_dag_file_with_a_name_without_stand_in_is_refused_with_the_remedy(
    tmp_path: Path, line: str, message: str
) -> None:
    result = run(tmp_path, DAG_FILE + line, "dags/nightly.py:run_job")
    assert result.returncode == 1
    assert message in result.stderr


def test_an_absent_function_is_refused(tmp_path: Path) -> None:
    result = run(tmp_path, DAG_FILE, "dags/nightly.py:other")
    assert "dags/nightly.py must define other at the level of the module" in result.stderr


def test_an_absent_file_is_refused(tmp_path: Path) -> None:
    assert "absent.py must be a Python file" in run(tmp_path, "", "absent.py:run_job").stderr


@pytest.mark.parametrize(
    "arguments,backoff",
    [
        ({}, (300, 100, 300, 0)),
        ({"retry_delay": timedelta(seconds=5)}, (5, 100, 5, 0)),
        ({"retry_delay": 5, "retry_exponential_backoff": True}, (5, 200, 86400, 20)),
        ({"retry_delay": 5, "retry_exponential_backoff": 1.5, "max_retry_delay": 60}, (5, 150, 60, 20)),
        ({"retry_delay": 5, "retry_exponential_backoff": False, "max_retry_delay": 2}, (5, 100, 5, 0)),
        (
            {"retry_delay": 90, "retry_exponential_backoff": 3, "max_retry_delay": timedelta(minutes=1)},
            (60, 300, 60, 20),
        ),
    ],
)
def test_pauses_become_the_backoff(arguments: dict[str, Any], backoff: tuple[int, int, int, int]) -> None:
    retry = manifest.build_taskrun("a:b", arguments, "image")["spec"]["retry"]
    assert tuple(retry["backoff"].values()) == backoff


def test_the_execution_timeout_is_the_deadline_of_an_attempt() -> None:
    spec = manifest.build_taskrun("a:b", {"execution_timeout": timedelta(minutes=2)}, "image")["spec"]
    assert spec["deadlines"] == {"attemptSeconds": 120}


@pytest.mark.parametrize(
    "arguments",
    [
        {"retries": "two"},
        {"retries": -1},
        {"retry_delay": -1},
        {"retry_delay": "5"},
        {"retry_delay": timedelta(days=2)},
        {"retry_exponential_backoff": "2"},
        {"execution_timeout": 5},
        {"execution_timeout": timedelta()},
    ],
)
def test_a_value_that_airflow_does_not_allow_is_refused_by_name(arguments: dict[str, Any]) -> None:
    [name] = arguments
    with pytest.raises(ValueError, match=f"{name} must be"):
        manifest.build_taskrun("a:b", arguments, "image")
