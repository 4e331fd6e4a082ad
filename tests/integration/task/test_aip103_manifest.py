"""The API server accepts the TaskRuns that `python -m reattach.aip103 --manifest` prints."""

from datetime import timedelta
from typing import Any

import pytest

from airflow_runs import apply_manifest, build_manifest
from controlplane import ControlPlane
from reattach.aip103.manifest import build_taskrun

DAG_FILE = """
from datetime import timedelta
import pendulum
from airflow.sdk import dag, task

@dag(schedule=None, default_args={"retries": 5, "retry_delay": pendulum.duration(seconds=30)})
def nightly():
    @task(retry_exponential_backoff=True, max_retry_delay=timedelta(minutes=10), execution_timeout=timedelta(hours=2))
    def run_job(**context): ...

    run_job()

nightly()
"""


def test_printed_taskrun_is_accepted_with_the_budgets_and_backoff_of_the_decorator(
    control_plane: ControlPlane, namespace: str, tmp_path: Any
) -> None:
    (tmp_path / "nightly.py").write_text(DAG_FILE)

    stored = apply_manifest(control_plane, namespace, build_manifest(f"{tmp_path}/nightly.py:run_job"))

    assert stored["spec"]["retry"] == {
        "budgets": {"application": 5},
        "backoff": {"initialSeconds": 30, "factorPercent": 200, "maxSeconds": 600, "jitterPercent": 20},
    }
    assert stored["spec"]["deadlines"] == {"attemptSeconds": 7200}


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"retries": 10_000, "retry_delay": 0, "execution_timeout": timedelta(microseconds=1)},
        {"retry_delay": timedelta(days=1), "execution_timeout": timedelta(days=365)},
        {"retry_exponential_backoff": 0.5, "max_retry_delay": 0},
        {"retry_exponential_backoff": 10, "retry_delay": 900, "max_retry_delay": 60},
    ],
    ids=str,
)
def test_taskrun_with_extreme_arguments_is_accepted(
    control_plane: ControlPlane, namespace: str, arguments: dict[str, Any]
) -> None:
    manifest = build_taskrun("nightly:run_job", arguments, "example.org/dags:1")
    assert apply_manifest(control_plane, namespace, manifest)["spec"]["retry"] == manifest["spec"]["retry"]


@pytest.mark.parametrize("function", ["_", "_Load_Sales_", "x" * 70, "load" + "_a" * 30, "größe"])
def test_taskrun_of_any_function_has_an_accepted_name(
    control_plane: ControlPlane, namespace: str, function: str
) -> None:
    apply_manifest(control_plane, namespace, build_taskrun(f"nightly:{function}", {}, "example.org/dags:1"))
