"""`wake` by users with rights on the real API server."""

from collections.abc import Callable

from cli_session import CliUser
from controlplane import ControlPlane
from reattach.api.names import ANNOTATION_WAKE
from stateapi import Task

TIME = "2026-03-01T12:00:00Z"
WAITED = {"number": 1, "podUID": "u", "startTime": TIME, "finishTime": TIME, "end": "Reported", "cause": "Waiting"}
SHOWN = {"type": "Succeeded", "status": "Unknown", "reason": "Waiting", "message": "", "lastTransitionTime": TIME}


def test_wake_sets_a_new_value_of_the_annotation_each_time(
    control_plane: ControlPlane, editor: CliUser, viewer: CliUser, task: Task, write_status: Callable[..., None]
) -> None:
    refused = editor("wake", "load")
    assert (refused.code, refused.out) == (1, "")
    assert refused.err == "error: load does not wait without a pod, so it can't be woken: it has no STATUS yet.\n"

    write_status(attempts=[WAITED], counts={"attempts": 1, "waiting": 1}, conditions=[SHOWN])
    values = set[str]()
    for _ in range(2):
        result = editor("wake", "load")
        assert (result.code, result.err) == (0, "")
        assert result.out == "taskrun/load will check its external job now.\nAttempt 2 starts, and reattaches.\n"
        values.add(control_plane.call("GET", task.path)["metadata"]["annotations"][ANNOTATION_WAKE])
    assert len(values) == 2

    result = viewer("wake", "load")
    assert result.code == 1
    assert "lacks the right to patch" in result.err
