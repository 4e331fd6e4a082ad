"""A whole Dag file, with its DAG and its decorators, runs without Airflow and becomes a TaskRun."""

import json
import os
import subprocess
import sys
import textwrap
import types
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from fakepod import Pod
from reattach import aip103
from reattach.aip103 import dagfile, manifest, pendulum_names

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
                        "command": ["python", "-u", "-m", "reattach.aip103", "dags/nightly.py:run_job", "--retries=2"],
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
    "made_for,warning",
    [("2", ""), ("1", "by spec.retry.budgets.application, which was made for retries=1. To print")],
)
def test_a_taskrun_of_other_retries_than_those_of_the_decorator_is_warned_of(
    tmp_path: Path, made_for: str, warning: str
) -> None:
    result = run(tmp_path, DAG_FILE, "dags/nightly.py:run_job", f"--retries={made_for}", REATTACH_ATTEMPT="1")
    assert warning in result.stderr
    assert ("has no effect" in result.stderr) is bool(warning)


@pytest.mark.parametrize("arguments", [["--manifest", "--image=a/b:1"], []])
def test_a_retry_policy_is_warned_of(tmp_path: Path, arguments: list[str]) -> None:
    source = DAG_FILE.replace("retries=2", "retry_policy=object()")
    result = run(tmp_path, source, *arguments, "dags/nightly.py:run_job", REATTACH_ATTEMPT="1")
    assert "retry_policy of @task has no effect: to fail the run at once, raise AirflowFailException" in result.stderr


INSIDE_A_DAG_FUNCTION = """
import pendulum
from airflow.sdk import Asset, Context, dag, task

ORDERS = Asset(name="orders", uri="s3://orders")

@dag(
    schedule=None,
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    default_args={"retry_delay": pendulum.duration(minutes=2)},
)
def nightly(rows: int = 3):
    @task(retries=4, inlets=[ORDERS])
    def run_job(context: Context):
        print(rows)

    run_job()

nightly()
"""


def test_task_inside_a_dag_function_is_found_and_dates_of_pendulum_are_read(tmp_path: Path) -> None:
    result = run(tmp_path, INSIDE_A_DAG_FUNCTION, "--manifest", "dags/nightly.py:run_job", "--image=a/b:1")
    retry = json.loads(result.stdout)["spec"]["retry"]
    assert (retry["budgets"]["application"], retry["backoff"]["initialSeconds"]) == (4, 120)


def test_dag_decorator_without_arguments_makes_its_tasks(tmp_path: Path) -> None:
    source = INSIDE_A_DAG_FUNCTION.replace("@dag(", "_ = dict(").replace("def nightly(", "@dag\ndef nightly(")
    result = run(tmp_path, source, "dags/nightly.py:run_job")
    assert "NotInPod" in result.stderr


def test_two_tasks_of_one_name_are_refused(tmp_path: Path) -> None:
    result = run(tmp_path, INSIDE_A_DAG_FUNCTION + "nightly()", "dags/nightly.py:run_job")
    assert "dags/nightly.py must define one task run_job, not 2" in result.stderr


def test_context_is_current_while_the_function_runs(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "airflow.sdk.execution_time.context"
    module = types.ModuleType(name)
    module.__dict__["set_current_context"] = dagfile.set_current_context
    monkeypatch.setitem(sys.modules, name, module)
    pod.api.values = {"job_id": "job-7"}

    def run_job() -> Any:
        return dagfile.get_current_context()["task_state_store"].get("job_id")

    assert aip103.run_in(pod.context(), run_job) == "job-7"
    with pytest.raises(RuntimeError, match="must be called by a task function"):
        dagfile.get_current_context()


class TestPendulumNames:
    def test_dates_are_those_of_the_standard_library(self) -> None:
        assert pendulum_names.at(2026, 3, 1, 4) == datetime(2026, 3, 1, 4, tzinfo=UTC)
        in_rome = pendulum_names.at(2026, 3, 1, tz=pendulum_names.timezone("Europe/Rome"))
        assert in_rome.utcoffset() == timedelta(hours=1)
        assert pendulum_names.now().tzinfo is not None
        assert pendulum_names.today("UTC").hour == 0

    def test_a_method_of_pendulum_is_refused_with_the_remedy(self) -> None:
        with pytest.raises(AttributeError, match="has no add: install pendulum in the image"):
            pendulum_names.now("UTC").add(days=1)

    def test_an_unknown_zone_is_refused_with_the_remedy(self) -> None:
        with pytest.raises(ValueError, match="install tzdata or pendulum"):
            pendulum_names.timezone("Mars/Olympus")

    def test_other_names_are_refused_with_the_remedy(self, tmp_path: Path) -> None:
        result = run(tmp_path, DAG_FILE + "from pendulum import instance", "dags/nightly.py:run_job")
        assert "no stand-in for pendulum.instance: install pendulum in the image" in result.stderr


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
    assert "dags/nightly.py must define other at the level of the module, or as a task of a Dag" in result.stderr


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
        {"retry_exponential_backoff": 20},
        {"retries": 10_001},
        {"execution_timeout": 5},
        {"execution_timeout": timedelta()},
        {"execution_timeout": timedelta(days=366)},
    ],
)
def test_a_value_that_airflow_or_a_taskrun_does_not_allow_is_refused_by_name(arguments: dict[str, Any]) -> None:
    [name] = arguments
    with pytest.raises(ValueError, match=f"{name} must be"):
        manifest.build_taskrun("a:b", arguments, "image")
