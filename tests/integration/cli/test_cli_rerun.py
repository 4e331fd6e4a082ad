"""`rerun` by users with rights on the real API server."""

import json
from typing import Any

import pytest

from cli_session import CliUser
from controlplane import ControlPlane
from reattach.api.names import orphans_name
from reattach.cluster.paths import configmaps, taskruns
from stateapi import Task

TIME = "2026-03-01T12:00:00Z"
OVER = {"type": "Succeeded", "status": "False", "reason": "Cancelled", "message": "", "lastTransitionTime": TIME}
JOB = {"key": "load", "generation": 1, "handle": "job-7", "state": "Orphaned"}


@pytest.fixture
def ended(control_plane: ControlPlane, namespace: str) -> Task:
    task = Task.create(control_plane, namespace, submission={"idempotencyKey": "k"}, cancel=True)
    task.patch(metadata={"labels": {"team": "a", "app.kubernetes.io/managed-by": "Helm"}})
    end(task)
    return task


def end(task: Task, *jobs: dict[str, Any]) -> None:
    status = {"outcome": "Cancelled", "conditions": [OVER], "externalJobs": list(jobs), "orphaned": bool(jobs)}
    task.control_plane.call("PATCH", taskruns(task.namespace, task.name, "status"), {"status": status})


def record(task: Task, *jobs: dict[str, Any]) -> None:
    """Store what the operator stores for jobs that were left running."""
    left = [{"key": job["key"], "generation": 1, "handle": job["handle"], "adapter": "http", "why": ""} for job in jobs]
    about = {"taskrun": task.name, "uid": task.uid, "reason": "Cancelled", "time": TIME, "formatVersion": 1}
    metadata = {"name": orphans_name(task.name, task.uid), "labels": {"reattach.dev/orphans": task.name}}
    data = {"record": json.dumps({**about, "jobs": left})}
    task.control_plane.call("POST", configmaps(task.namespace), {"metadata": metadata, "data": data})


def names(task: Task) -> list[str]:
    return sorted(one["metadata"]["name"] for one in task.control_plane.call("GET", taskruns(task.namespace))["items"])


def stored(task: Task, name: str) -> dict[str, Any]:
    found: dict[str, Any] = task.control_plane.call("GET", taskruns(task.namespace, name))
    return found


def test_rerun_creates_the_next_number_and_a_dry_run_creates_nothing(editor: CliUser, ended: Task) -> None:
    result = editor("rerun", "load", "--dry-run")
    assert (result.code, result.err, result.out) == (0, "", "taskrun/load-2 would be created (dry run).\n")
    planned = editor("rerun", "load", "--dry-run", "-o", "yaml").yaml
    assert names(ended) == ["load"]
    result = editor("rerun", "load")
    assert (result.code, result.err, result.out) == (0, "", "taskrun/load-2 was created.\n")
    created = stored(ended, "load-2")
    assert created["spec"] == planned["spec"] == {"template": stored(ended, "load")["spec"]["template"]}
    assert created["metadata"]["labels"] == planned["metadata"]["labels"] == {"team": "a"}
    again = editor("rerun", "load")
    assert (again.code, again.out) == (1, "")
    assert again.err.startswith("error: taskrun/load-2 exists already; nothing was created. Run kubectl reattach rerun")
    end(Task(ended.control_plane, ended.namespace, "load-2", created["metadata"]["uid"]))
    assert editor("rerun", "load-2", "-o", "json").json["metadata"]["name"] == "load-3"
    assert editor("rerun", "load", "--name", "mine", "--keep-state").code == 0
    assert stored(ended, "mine")["spec"]["stateFrom"] == "load"
    assert names(ended) == ["load", "load-2", "load-3", "mine"]


def test_rerun_of_several_users_at_once_creates_one(editor: CliUser, ended: Task) -> None:
    commands = [editor.in_background("rerun", "load") for _ in range(4)]
    results = [command.wait() for command in commands]
    assert sorted(result.code for result in results) == [0, 1, 1, 1]
    assert names(ended) == ["load", "load-2"]


def test_rerun_beside_an_orphaned_job_is_refused_until_it_is_dismissed(editor: CliUser, ended: Task) -> None:
    end(ended, JOB)
    record(ended, JOB)
    for flags in ([], ["--dry-run"], ["--keep-state"], ["--name", "mine"]):
        result = editor("rerun", "load", *flags)
        assert (result.code, result.out) == (1, "")
        assert result.err.startswith("error: External job job-7 (load) of load may run; nothing was created.\n")
        assert f"kubectl reattach rerun load -n {ended.namespace} --adopt\n" in result.err
    assert names(ended) == ["load"]
    assert editor("orphans", "load", "--dismiss", "--yes").code == 0
    result = editor("rerun", "load")
    assert result.code == 0
    assert "Warning: External job job-7 (load) was left running by the earlier run." in result.out
    assert names(ended) == ["load", "load-2"]


def test_rerun_beside_a_job_that_an_earlier_run_of_the_name_left_is_refused(editor: CliUser, ended: Task) -> None:
    record(ended, JOB)
    ended.control_plane.call("DELETE", ended.path)
    end(Task.create(ended.control_plane, ended.namespace))
    assert "External job job-7 (load) of load may run" in editor("rerun", "load").err
    assert names(ended) == ["load"]


def test_rerun_beside_a_job_that_a_deleted_run_of_the_new_name_left_is_refused(editor: CliUser, ended: Task) -> None:
    again = Task(ended.control_plane, ended.namespace, "load-2", "0123456789")
    record(again, JOB)
    result = editor("rerun", "load")
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith(
        "error: External job job-7 (load) of an earlier TaskRun load-2 may run; nothing was created.\n"
    )
    assert names(ended) == ["load"]
    assert editor("orphans", "load-2", "--dismiss", "--yes").code == 0
    assert editor("rerun", "load").code == 0


def test_rerun_adopts_the_orphaned_job(editor: CliUser, ended: Task) -> None:
    assert "left no external job running" in editor("rerun", "load", "--adopt").err
    end(ended, JOB)
    record(ended, JOB)
    result = editor("rerun", "load", "--adopt")
    assert result.code == 0, result.err
    assert "The new run reattaches to job-7 (load) where it would submit.\n" in result.out
    [adopted] = stored(ended, "load-2")["spec"]["adopt"]
    assert (adopted["key"], adopted["handle"]) == ("load", "job-7")


def test_rerun_of_an_unfinished_or_absent_run_is_refused(editor: CliUser, task: Task) -> None:
    result = editor("rerun", "load")
    assert result.code == 1
    assert result.err.startswith("error: load is unfinished, so its external jobs may run; nothing was created.")
    assert editor("rerun", "absent").err.startswith("error: There is no TaskRun 'absent'")
    assert names(task) == ["load"]


def test_viewer_gets_the_missing_right(viewer: CliUser, ended: Task) -> None:
    result = viewer("rerun", "load")
    assert result.code == 1
    assert f"{viewer.user} lacks the right to create taskruns.reattach.dev" in result.err
    assert names(ended) == ["load"]
