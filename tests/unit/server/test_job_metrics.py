"""Metrics of external jobs: how many ended in which way, and how long they took."""

from datetime import UTC, datetime, timedelta
from typing import Any

from reattach.adapters.kubernetes.kinds import JOB, RAY_JOB, SPARK_APPLICATION, TASKRUN
from reattach.adapters.ray import RayJobs
from reattach.adapters.slurm.adapter import Slurm
from reattach.api.state import JobState
from reattach.server.metrics import ADAPTERS, ServerMetrics
from reattach.state.job_record import JobRecord

START = datetime(2026, 11, 30, 12, tzinfo=UTC)


def ended(adapter: str = "ray", **changes: Any) -> JobRecord:
    fields = {
        "handle": "job-1",
        "state": JobState.CANCELLED,
        "recorded_at": START,
        "ended_at": START + timedelta(seconds=90),
        **changes,
    }
    return JobRecord(
        key="load",
        generation=1,
        adapter=adapter,
        token="t",
        digest="d",
        intended_at=START,
        intended_by_attempt=1,
        **fields,
    )


def lines_after(*jobs: JobRecord) -> list[str]:
    metrics = ServerMetrics()
    for job in jobs:
        metrics.count_ended_job(job)
    return [line for line in metrics.to_text().decode().splitlines() if line.startswith("reattach_external_job")]


def test_ended_jobs_and_their_seconds_are_counted_by_adapter_and_outcome() -> None:
    lines = lines_after(ended(), ended(), ended(state=JobState.FAILED))
    assert 'reattach_external_jobs_total{adapter="ray",outcome="Cancelled"} 2.0' in lines
    assert 'reattach_external_jobs_total{adapter="ray",outcome="Failed"} 1.0' in lines
    assert 'reattach_external_job_seconds_total{adapter="ray",outcome="Cancelled"} 180.0' in lines


def test_job_that_never_had_a_handle_is_not_counted() -> None:
    assert lines_after(ended(handle=None, recorded_at=None)) == []


def test_clocks_of_two_replicas_never_decrease_a_counter() -> None:
    lines = lines_after(ended(ended_at=START - timedelta(seconds=1)))
    assert 'reattach_external_job_seconds_total{adapter="ray",outcome="Cancelled"} 0.0' in lines


def test_1000_adapters_of_tasks_are_one_label() -> None:
    lines = lines_after(*(ended(f"mine-{number}") for number in range(1000)))
    assert 'reattach_external_jobs_total{adapter="other",outcome="Cancelled"} 1000.0' in lines
    assert len([line for line in lines if "_total" in line]) == 2


def test_known_adapters_are_those_of_this_package() -> None:
    kinds = {f"kubernetes-{kind.kind.lower()}" for kind in (JOB, TASKRUN, SPARK_APPLICATION, RAY_JOB)}
    assert {"http", RayJobs.name, Slurm.name, *kinds} == ADAPTERS
