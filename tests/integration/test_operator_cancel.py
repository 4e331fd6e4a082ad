"""Crash points of the operator while it cancels or deletes a run whose task submitted a job.

The end is always the same: sealed, stopped, every job cancelled or named. See
`tests/crash_points.py`.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from controlplane import ControlPlane
from crash_points import crash_at_each_write
from operator_process import Containers, Kubelet, Operators
from proxy import Proxy
from reattach.api.names import LABEL_PURPOSE
from reattach.cluster.paths import taskruns
from run_histories import NAME, HistoryRunner, RunHistory, Scenario, normalised
from stateapi import Servers
from taskscripts import Tasks

JSON = dict[str, Any]
ONE_IN = 1 if os.environ.get("REATTACH_ALL") else 3
"""Share of the crash points of a run with a cleanup, which has the most writes."""


@pytest.fixture
def runner(control_plane: ControlPlane, kubelet: Kubelet, proxy: Proxy, tmp_path: Path) -> Iterator[HistoryRunner]:
    operators = Operators(control_plane, tmp_path)
    yield HistoryRunner(control_plane, operators, kubelet, proxy)
    operators.stop()


@pytest.fixture
def tasks(control_plane: ControlPlane, tmp_path: Path) -> Iterator[Tasks]:
    servers = Servers(control_plane, tmp_path / "state-api")
    try:
        yield Tasks(control_plane, servers.start())
    finally:
        servers.stop()


def test_cancelled_run_ends_the_same_after_a_crash_at_any_write(
    control_plane: ControlPlane, runner: HistoryRunner, tasks: Tasks
) -> None:
    def be_cancelled(containers: Containers) -> None:
        control_plane.call("PATCH", taskruns(containers.namespace, NAME), {"spec": {"cancel": True}})

    crash_at_each_write(
        runner, Scenario({}, lambda _: tasks.submit_and(be_cancelled)), check_cancelled, at_each_event=False
    )


def test_run_with_a_cleanup_ends_the_same_after_a_crash_at_any_write(
    control_plane: ControlPlane, runner: HistoryRunner, tasks: Tasks
) -> None:
    def be_cancelled(containers: Containers) -> None:
        control_plane.call("PATCH", taskruns(containers.namespace, NAME), {"spec": {"cancel": True}})

    def script(containers: Containers) -> None:
        is_cleanup = containers.pod["metadata"]["labels"].get(LABEL_PURPOSE) == "Cleanup"
        (tasks.clean_up if is_cleanup else tasks.submit_registered_and(be_cancelled))(containers)

    crash_at_each_write(runner, Scenario({}, lambda _: script), check_cleaned_up, at_each_event=False, one_in=ONE_IN)


def test_deleted_run_is_removed_and_its_job_logged_after_a_crash_at_any_write(
    control_plane: ControlPlane, runner: HistoryRunner, tasks: Tasks
) -> None:
    def be_deleted(containers: Containers) -> None:
        control_plane.call("DELETE", taskruns(containers.namespace, NAME))

    crash_at_each_write(
        runner, Scenario({}, lambda _: tasks.submit_and(be_deleted)), check_deleted, at_each_event=False
    )


def check_cancelled(history: RunHistory, expected: RunHistory) -> None:
    """Check the end of a cancelled run."""
    status = history.status
    assert status["outcome"] == "Cancelled"
    assert [(each["cause"], each.get("chargedTo")) for each in status["attempts"]] == [("Stopped", None)]
    assert jobs_of(status) == [("load", "job-1", "Orphaned")]
    conditions = {each["type"]: each["status"] for each in status["conditions"]}
    assert conditions == {"Succeeded": "False", "Stalled": "True", "Orphaned": "True"}
    assert is_named(history)
    assert is_recorded(history)
    assert normalised(status) == normalised(expected.status)


def check_cleaned_up(history: RunHistory, expected: RunHistory) -> None:
    """Check the end of a cancelled run whose cleanup attempt cancelled the job."""
    status = history.status
    assert status["outcome"] == "Cancelled"
    ended = [(each["number"], each.get("purpose", "Run"), each["cause"]) for each in status["attempts"]]
    assert ended == [(1, "Run", "Stopped"), (2, "Cleanup", "Succeeded")]
    assert jobs_of(status) == [("load", "job-1", "Cancelled")]
    assert "Orphaned" not in {each["type"] for each in status["conditions"]}
    assert not is_named(history)
    assert history.records == []
    assert set(history.pods) <= {"1", "2"}
    assert normalised(status) == normalised(expected.status)


def check_deleted(history: RunHistory, _: RunHistory) -> None:
    """Check that the log and the record name the job, because nothing else is left of the run."""
    assert history.status == {}
    assert is_recorded(history)
    assert is_named(history), f"the log does not name the job: {history.writes}\n{history.log[-3000:]}"


def is_named(history: RunHistory) -> bool:
    return "External job load (handle job-1) is left running" in history.log


def is_recorded(history: RunHistory) -> bool:
    return [[job["handle"] for job in record["jobs"]] for record in history.records] == [["job-1"]]


def jobs_of(status: JSON) -> list[tuple[str, str, str]]:
    return [(job["key"], job["handle"], job["state"]) for job in status["externalJobs"]]
