"""`resolve --selector` against the real API server and state API: each hold gets one resolution."""

import shlex
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cli_session import BackgroundCommand, CliUser
from controlplane import ControlPlane
from proxy import Point, Proxy, When, proxy_to
from reattach.cli import bulk_resolve
from reattach.cluster.paths import taskruns
from stateapi import Server, Task

TIME = "2026-03-01T12:00:00Z"
LABELS = {"app": "etl"}
RUNS = 24
JOBS = 3
"""Runs that are held for two jobs each, beside those that are held for a lost state."""


def condition(kind: str, reason: str, status: str = "Unknown", since: str = TIME) -> dict[str, Any]:
    return {"type": kind, "status": status, "reason": reason, "message": "", "lastTransitionTime": since}


def held(reason: str, since: str = TIME) -> list[dict[str, Any]]:
    return [condition("Succeeded", reason, since=since), condition("Held", reason, "True", since)]


def write_status(task: Task, **status: Any) -> None:
    path = taskruns(task.namespace, task.name, "status")
    task.control_plane.call("PATCH", path, {"status": status})


def create(
    control_plane: ControlPlane, namespace: str, name: str, reason: str = "StateLost", since: str = TIME
) -> Task:
    task = Task.create(control_plane, namespace, name)
    task.patch(metadata={"labels": LABELS})
    write_status(task, conditions=held(reason, since))
    return task


def create_with_jobs(control_plane: ControlPlane, namespace: str, server: Server, name: str) -> Task:
    """Create a run that its task holds for two jobs."""
    task = create(control_plane, namespace, name, "SubmissionUnknown")
    attempt = task.attempt(server)
    keys = ("load", "clean")
    for key in keys:
        intent = {"submitter": f"{name}-{key}", "adapter": "http", "digest": "d"}
        response = attempt.client.post(f"/v1/jobs/{key}/intent", json=intent).json()
        assert response["decision"] == "Submit", response
    for key in keys:
        outcome = {"generation": 1, "state": "Unknown", "hold": True, "message": "no response"}
        assert attempt.client.put(f"/v1/jobs/{key}/outcome", json=outcome).status_code == 204
    return task


def resolutions(task: Task) -> list[tuple[Any, ...]]:
    spec = task.control_plane.call("GET", task.path)["spec"]
    return [(one["held"], one["action"], one.get("key")) for one in spec.get("resolutions", [])]


LOST = [("StateLost", "Fail", None)]


@pytest.fixture
def proxy(control_plane: ControlPlane, tmp_path: Path) -> Iterator[Proxy]:
    with proxy_to(control_plane, tmp_path) as running:
        yield running


def test_selected_runs_are_listed_first_and_resolved_only_with_yes(
    editor: CliUser, control_plane: ControlPlane, server: Server
) -> None:
    jobs = create_with_jobs(control_plane, editor.namespace, server, "jobs")
    lost = create(control_plane, editor.namespace, "lost")
    result = editor("resolve", "-l", "app=etl", "--resubmit")
    assert result.code == 1
    rows = [line.split("   ") for line in result.out.splitlines()]
    assert [[cell.strip() for cell in row if cell][:2] for row in rows[1:4]] == [
        ["jobs", "SubmissionUnknown of external job load, generation 1"],
        ["jobs", "SubmissionUnknown of external job clean, generation 1"],
        ["lost", "StateLost"],
    ]
    assert rows[3][-1] == "none: it takes --start-empty or --fail"
    assert rows[4][0].startswith("For example jobs: The next attempt submits the job again")
    [nothing, command] = result.err.splitlines()
    assert nothing == "Nothing was changed. To store 2 resolutions, run:"
    assert resolutions(jobs) == resolutions(lost) == []

    words = shlex.split(command)
    assert words[:3] == ["kubectl", "reattach", "resolve"]
    result = editor(*words[2:])
    assert result.code == 0, result.err
    assert result.out.splitlines() == [
        "taskrun/jobs resolved: Resubmit, for SubmissionUnknown of load.",
        "taskrun/jobs resolved: Resubmit, for SubmissionUnknown of clean.",
    ]
    assert result.err == "lost, held for StateLost, gets no resolution: it takes --start-empty or --fail.\n"
    stored = [("SubmissionUnknown", "Resubmit", "load"), ("SubmissionUnknown", "Resubmit", "clean")]
    assert resolutions(jobs) == stored
    again = editor(*words[2:])
    assert (again.code, again.out) == (0, "")
    assert again.err.splitlines()[0] == "No held TaskRun matches --selector and takes this resolution."
    assert resolutions(jobs) == stored


@pytest.mark.parametrize("when", When, ids=lambda one: one.value)
def test_killed_and_repeated_command_resolves_each_hold_once(
    editor: CliUser, control_plane: ControlPlane, server: Server, proxy: Proxy, when: When
) -> None:
    """Kill the command at a write in the middle, and repeat it until it has nothing to do."""
    namespace = editor.namespace
    runs = [create(control_plane, namespace, f"lost-{number:02}") for number in range(RUNS)]
    runs += [create_with_jobs(control_plane, namespace, server, f"jobs-{number}") for number in range(JOBS)]
    words = ["resolve", "-n", namespace, "-l", "app=etl", "--fail", "--yes"]
    processes: list[BackgroundCommand] = []
    point = Point((RUNS + JOBS) // 2, when)
    door = proxy.open(editor.user, lambda: processes[0].process.pid, point)
    processes.append(editor.in_background(*words, "--kubeconfig", str(door.kubeconfig)))
    killed = processes[0].wait()
    assert killed.code == -9, killed.err
    assert "To repeat the command, add --held-before" in killed.err
    done = sum(bool(resolutions(run)) for run in runs)
    assert 0 < done < len(runs)

    since = killed.err.split("--held-before ")[1].split()[0].rstrip(".")
    later = (datetime.now(UTC) + timedelta(seconds=5)).strftime("%Y-%m-%dT%H:%M:%SZ")
    held_later = create(control_plane, namespace, "later", since=later)
    again = editor(*words, "--held-before", since)
    proxy.close(door)
    assert again.code == 0, again.err
    for run in runs[:RUNS]:
        assert resolutions(run) == LOST, run.name
    for run in runs[RUNS:]:
        keys = [("SubmissionUnknown", "Fail", "load"), ("SubmissionUnknown", "Fail", "clean")]
        assert resolutions(run) == keys, run.name
    assert resolutions(held_later) == []
    assert f"later, held for StateLost, gets no resolution: it began after {since}." in again.err


def test_repeated_command_does_not_resolve_the_next_hold(editor: CliUser, control_plane: ControlPlane) -> None:
    run = create(control_plane, editor.namespace, "lost")
    words = ["resolve", "-l", "app=etl", "--start-empty", "--yes"]
    first = editor(*words)
    assert first.code == 0
    since = first.err.split("--held-before ")[1].split()[0].rstrip(".")
    # The operator applies the resolution, and holds the run again two seconds later.
    later = (datetime.now(UTC) + timedelta(seconds=2)).strftime("%Y-%m-%dT%H:%M:%SZ")
    write_status(run, counts={"stateLosses": 1}, conditions=held("StateLost", later))
    assert editor(*words, "--held-before", since).code == 0
    assert resolutions(run) == [("StateLost", "StartEmpty", None)]
    listed = editor("resolve", "-l", "app=etl", "--start-empty", "--held-before", since)
    assert (listed.code, f"none: it began after {since}" in listed.out) == (0, True)


def test_write_after_a_conflict_checks_the_hold_again(
    editor: CliUser, control_plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other clients change each run between the read and the write; one of them resolves it."""
    runs = [create(control_plane, editor.namespace, f"lost-{number}") for number in range(3)]
    before, reads = bulk_resolve.append_resolutions, list[str]()

    async def changed(connection: Any, read: bytes, taskrun: Any, resolutions: Any) -> Any:
        name = taskrun.metadata.name
        reads.append(name)
        if reads.count(name) == 1:
            task = runs[int(name[-1])]
            if name == "lost-2":
                task.patch(spec={"resolutions": [{"held": "StateLost", "action": "StartEmpty"}]})
            else:
                task.patch(metadata={"annotations": {"changed": "yes"}})
        return await before(connection, read, taskrun, resolutions)

    monkeypatch.setattr(bulk_resolve, "append_resolutions", changed)
    result = editor("resolve", "-l", "app=etl", "--fail", "--yes")
    assert result.code == 0, result.err
    assert sorted(reads) == ["lost-0", "lost-0", "lost-1", "lost-1", "lost-2"]
    assert [resolutions(run) for run in runs] == [LOST, LOST, [("StateLost", "StartEmpty", None)]]
    assert result.out.splitlines()[2] == "taskrun/lost-2 is no longer held as listed, so it got no resolution."


def test_error_of_one_run_does_not_stop_the_others(
    editor: CliUser, control_plane: ControlPlane, server: Server
) -> None:
    damaged = create_with_jobs(control_plane, editor.namespace, server, "damaged")
    control_plane.call("PATCH", damaged.configmap_path, {"data": {"jobs": "no JSON"}})
    run = create(control_plane, editor.namespace, "lost")
    result = editor("resolve", "-l", "app=etl", "--fail", "--yes", "-o", "json")
    assert result.code == 1
    assert "error: The state of damaged can't be read" in result.err
    assert [one["name"] for one in result.json] == ["lost"]
    assert (resolutions(run), resolutions(damaged)) == (LOST, [])


def test_viewer_gets_the_plan_and_the_missing_right(viewer: CliUser, control_plane: ControlPlane) -> None:
    run = create(control_plane, viewer.namespace, "lost")
    assert "To store 1 resolution, run:" in viewer("resolve", "-l", "app=etl", "--fail").err
    result = viewer("resolve", "-l", "app=etl", "--fail", "--yes")
    assert result.code == 1
    assert f"error: lost: {viewer.user} lacks the right to patch taskruns.reattach.dev" in result.err
    assert resolutions(run) == []


def test_runs_without_the_labels_or_a_hold_are_left_alone(editor: CliUser, control_plane: ControlPlane) -> None:
    other = create(control_plane, editor.namespace, "other")
    other.patch(metadata={"labels": {"app": "web"}})
    Task.create(control_plane, editor.namespace, "continues").patch(metadata={"labels": LABELS})
    result = editor("resolve", "-l", "app=etl", "--fail")
    assert (result.code, result.err) == (0, "No held TaskRun matches --selector and takes this resolution.\n")
    result = editor("resolve", "-l", "app=etl", "--fail", "--yes", "-o", "json")
    assert (result.code, result.json) == (0, [])
    assert resolutions(other) == []
