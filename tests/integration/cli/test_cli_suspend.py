"""`suspend` and `resume` by users with rights on the real API server."""

from collections.abc import Callable
from typing import Any

import pytest

from cli_session import CliUser
from controlplane import ControlPlane
from reattach.api.taskrun import TaskRun
from stateapi import Server, Task

TIME = "2026-03-01T12:00:00Z"


def stored(task: Task) -> dict[str, Any]:
    found: dict[str, Any] = task.control_plane.call("GET", task.path)
    return found


def test_suspend_and_resume_set_the_field_and_name_the_job_and_may_be_repeated(
    editor: CliUser, task: Task, server: Server
) -> None:
    attempt = task.attempt(server)
    assert attempt.intend().status_code == 200
    assert attempt.handle("job-7").status_code == 204
    result = editor("suspend", "load")
    assert (result.code, result.err) == (0, "")
    assert result.out == (
        "taskrun/load will be suspended.\n"
        "job-7 (load) continues in the external system.\n"
        f"No pod starts until you run: kubectl reattach resume load -n {task.namespace}\n"
    )
    after = stored(task)
    assert after["spec"]["suspend"] is True
    again = editor("suspend", "load")
    assert (again.code, again.out.splitlines()[0]) == (0, "taskrun/load is already suspended.")
    assert stored(task)["metadata"]["resourceVersion"] == after["metadata"]["resourceVersion"]
    result = editor("resume", "load", "-o", "json")
    assert result.code == 0, result.err
    [found] = result.json
    assert found["message"] == "will be resumed."
    assert found["next"][0].endswith("and reattaches to job-7 (load).")
    assert stored(task)["spec"]["suspend"] is False
    again = editor("resume", "load")
    assert (again.code, again.out) == (0, "taskrun/load is not suspended.\n")


def test_run_that_is_over_is_not_changed_and_does_not_stop_the_others(
    control_plane: ControlPlane, editor: CliUser, task: Task, write_status: Callable[..., None]
) -> None:
    other = Task.create(control_plane, task.namespace, "other")
    over = {"type": "Succeeded", "status": "True", "reason": "Succeeded", "message": "", "lastTransitionTime": TIME}
    write_status(outcome="Succeeded", conditions=[over])
    result = editor("suspend", "load", "absent", "trun/other")
    assert result.code == 1
    [ended, absent] = result.err.splitlines()
    assert ended == "error: load has ended (Succeeded), so it can't be suspended."
    assert absent.startswith("error: There is no TaskRun 'absent'")
    assert "suspend" not in stored(task)["spec"]
    assert stored(other)["spec"]["suspend"] is True
    assert editor("suspend").code == 2


@pytest.mark.usefixtures("task")
def test_viewer_gets_the_missing_right(viewer: CliUser) -> None:
    result = viewer("suspend", "load")
    assert result.code == 1
    assert f"{viewer.user} lacks the right to patch taskruns.reattach.dev" in result.err


@pytest.mark.parametrize("command", ["suspend", "resume"])
def test_run_that_ends_or_is_replaced_after_the_read_is_reported(
    editor: CliUser, task: Task, write_status: Callable[..., None], command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from reattach.cli import suspend as module

    before, cases = module.read_taskrun, iter(["ends", "is replaced"])
    task.patch(spec={"suspend": command == "resume"})

    async def changed(*arguments: Any) -> TaskRun:
        taskrun: TaskRun = await before(*arguments)
        match next(cases, None):
            case "ends":
                write_status(outcome="Succeeded")
            case "is replaced":
                task.control_plane.call("DELETE", task.path)
                Task.create(task.control_plane, task.namespace, suspend=command == "resume")
        return taskrun

    monkeypatch.setattr(module, "read_taskrun", changed)
    verb = {"suspend": "suspended", "resume": "resumed"}[command]
    result = editor(command, "load")
    assert (result.code, result.out) == (1, "")
    assert result.err == f"error: load has ended (Succeeded), so it can't be {verb}.\n"
    task.control_plane.call("DELETE", task.path)
    Task.create(task.control_plane, task.namespace, suspend=command == "resume")
    result = editor(command, "load")
    assert (result.code, result.out) == (1, "")
    assert result.err == "error: load was deleted, and another TaskRun has its name now, which was not changed.\n"
    assert stored(task)["spec"]["suspend"] is (command == "resume")
