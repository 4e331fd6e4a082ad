"""`kubectl reattach state`: people read and change what a task stored, beside a real state API that does the same."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli_session import CliUser
from controlplane import ControlPlane, ControlPlaneError
from reattach.api.names import ANNOTATION_SUMMARY, FINALIZER_STATE
from reattach.cluster.paths import configmaps, pods
from stateapi import Server, Task

EXPORT = json.dumps(
    {
        "format": "reattach-state/v1",
        "namespace": "other",
        "taskrun": "earlier",
        "exportedAt": "2026-11-30T12:00:00Z",
        "entries": [{"key": "cursor", "value": 7}],
    }
).encode()


@pytest.fixture
def stored(control_plane: ControlPlane, server: Server, task: Task) -> Task:
    """Its first attempt stored two keys and an intent, and is over."""
    attempt = task.attempt(server)
    assert attempt.set("job_id", "job-7", retentionSeconds=0).status_code == 200
    assert attempt.set("progress", {"rows": 12345678901234567890123}).status_code == 200
    intent = {"submitter": "s1", "adapter": "http", "digest": "d"}
    assert attempt.client.post("/v1/jobs/load/intent", json=intent).status_code == 200
    end_pods(control_plane, task)
    return task


def end_pods(control_plane: ControlPlane, task: Task) -> None:
    for pod in control_plane.call("GET", pods(task.namespace))["items"]:
        path = f"{pods(task.namespace, pod['metadata']['name'])}/status"
        control_plane.call("PATCH", path, {"status": {"phase": "Failed"}})


def entry(cli_user: CliUser, key: str) -> dict[str, Any]:
    found: dict[str, Any] = cli_user("state", "get", "load", key, "-o", "json").json
    return found


def test_a_viewer_reads_values_and_keys(viewer: CliUser, stored: Task) -> None:
    assert viewer("state", "get", "load", "job_id").out == '"job-7"\n'
    assert viewer("state", "get", "load", "job_id", "--raw").out == "job-7\n"
    assert json.loads(viewer("state", "get", stored.name, "progress").out) == {"rows": 12345678901234567890123}
    lines = viewer("state", "ls", "load").out.splitlines()
    assert [line.split()[0] for line in lines] == ["KEY", "job_id", "progress"]
    assert lines[1].split()[-1] == '"job-7"'
    assert "attempt 1" in lines[1]
    assert [one["key"] for one in viewer("state", "ls", "load", "--prefix", "p", "-o", "yaml").yaml] == ["progress"]


def test_a_key_that_is_not_there_is_an_error(viewer: CliUser, stored: Task) -> None:
    result = viewer("state", "get", stored.name, "job")
    assert (result.code, result.out) == (1, "")
    assert result.err == "error: Nothing is stored under 'job'; kubectl reattach state ls load lists the keys.\n"


def test_key_that_a_user_stored_is_read_by_the_next_attempt_with_its_writer(
    editor: CliUser, server: Server, stored: Task
) -> None:
    result = editor("state", "set", "load", "job_id", '"job-9"')
    assert (result.code, result.err) == (0, "")
    assert result.out == "job_id stored in the state of load, version 3.\n"
    second = stored.attempt(server, 2)
    read = second.get("job_id").json()
    assert (read["value"], read["version"], read["expiresAt"]) == ("job-9", 3, None)
    assert (read["attempt"], read["podUID"]) == (0, f"cli:{editor.user}")
    assert second.set("after", 1).json()["version"] == 4


def test_jobs_and_epoch_stay_as_they_are(editor: CliUser, stored: Task) -> None:
    before = stored.configmap()
    assert editor("state", "set", "load", "new", "[1]").code == 0
    assert editor("state", "rm", "load", "progress").code == 0
    after = stored.configmap()
    changed = {
        name for name in {*before["data"], *after["data"]} if before["data"].get(name) != after["data"].get(name)
    }
    assert changed == {"key.new", "key.progress", "lastVersion"}
    for part in ("labels", "finalizers", "ownerReferences"):
        assert after["metadata"][part] == before["metadata"][part]
    summaries = [json.loads(found["metadata"]["annotations"][ANNOTATION_SUMMARY]) for found in (before, after)]
    assert summaries[0].pop("nextExpiry") < summaries[1].pop("nextExpiry"), (
        "the key that would have expired first is gone"
    )
    assert summaries[0] == summaries[1]


def test_conditions_are_checked(editor: CliUser, stored: Task) -> None:
    result = editor("state", "set", stored.name, "job_id", "1", "--if-version", "9")
    assert (result.code, result.err) == (1, "error: 'job_id' must have version 9; it has version 1.\n")
    assert "must be absent" in editor("state", "set", "load", "job_id", "1", "--if-absent").err
    assert editor("state", "set", "load", "job_id", "1", "--if-version", "1").code == 0
    assert editor("state", "set", "load", "fresh", "1", "--if-absent", "--retention", "2d").code == 0


def test_a_negative_number_is_a_value(editor: CliUser, stored: Task) -> None:
    for text in ("-5", "-1.5"):
        result = editor("state", "set", "load", "offset", text)
        assert result.code == 0, result.err
        assert editor("state", "get", "load", "offset", "--raw").out == f"{text}\n"
    assert editor("state", "set", "load", "offset", "--", "-7").code == 0


def test_bad_values_are_refused_with_the_reason(editor: CliUser, stored: Task) -> None:
    assert "is not JSON; to store it as a string, use --string" in editor("state", "set", stored.name, "k", "job-7").err
    assert editor("state", "set", "load", "k", "job-7", "--string").code == 0
    assert entry(editor, "k")["value"] == "job-7"
    assert editor("state", "set", "load", "k", "null").code == 1
    assert "at most 65536 bytes" in editor("state", "set", "load", "k", "-", stdin=b'"' + b"x" * 70000 + b'"').err
    assert editor("state", "set", "load", "", "1").code == 1
    assert editor("state", "set", "load", "k", "1", "--retention", "soon").code == 2


def test_keys_are_removed_all_or_none(editor: CliUser, stored: Task) -> None:
    assert editor("state", "rm", "load", "job_id", "absent").code == 1
    assert entry(editor, "job_id")["value"] == "job-7"
    assert editor("state", "rm", "load", "job_id", "absent", "--ignore-not-found").out == (
        f"1 key removed in the state of {stored.name}.\n"
    )
    assert (
        editor("state", "rm", "load", "absent", "--ignore-not-found").out == "nothing changed in the state of load.\n"
    )


def test_an_export_goes_into_another_state(
    control_plane: ControlPlane, editor: CliUser, server: Server, stored: Task, tmp_path: Path
) -> None:
    exported = editor("state", "export", stored.name)
    file = tmp_path / "state.json"
    file.write_text(exported.out)
    other = Task.create(control_plane, stored.namespace, "again")
    other.attempt(server).set("left", 1)
    end_pods(control_plane, other)
    assert editor("state", "import", "again", str(file)).out == "2 keys stored in the state of again.\n"
    assert [one["key"] for one in editor("state", "ls", "again", "-o", "json").json] == ["job_id", "left", "progress"]
    assert editor("state", "import", "again", "-", "--replace", stdin=file.read_bytes()).code == 0
    values = {one["key"]: one["value"] for one in editor("state", "ls", "again", "-o", "json").json}
    assert values == {"job_id": "job-7", "progress": {"rows": 12345678901234567890123}}
    assert "is not an export" in editor("state", "import", "again", "-", stdin=b"{}").err


def test_while_an_attempt_runs_nothing_is_changed_unless_forced(editor: CliUser, server: Server, stored: Task) -> None:
    second = stored.attempt(server, 2)
    result = editor("state", "set", "load", "job_id", '"job-9"')
    assert result.code == 1
    assert result.err.startswith("error: Attempt 2 of load is running, and may already have read the key;")
    assert editor("state", "set", "load", "job_id", '"job-9"', "--force").code == 0
    assert second.get("job_id").json()["value"] == "job-9"


def test_key_that_changed_since_the_read_is_not_overwritten(
    editor: CliUser, server: Server, stored: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look and the write an attempt opens the state and stores: the person is told that it runs, and nothing is lost."""
    from reattach.cluster import Cluster

    original, raced = Cluster.replace, []

    async def late(self: Cluster, path: str, body: Any, **query: Any) -> bytes:
        if not raced:
            raced.append(path)
            assert stored.attempt(server, 2).set("job_id", "job-8").status_code == 200
        return await original(self, path, body, **query)

    monkeypatch.setattr(Cluster, "replace", late)
    result = editor("state", "set", "load", "job_id", '"job-9"')
    assert (result.code, raced) == (1, [raced[0]])
    assert "Attempt 2 of load is running" in result.err
    assert entry(editor, "job_id")["value"] == "job-8"


def test_a_viewer_is_told_the_missing_right(viewer: CliUser, stored: Task) -> None:
    result = viewer("state", "set", stored.name, "job_id", "1")
    assert result.code == 1
    assert result.err.startswith(
        f"error: {viewer.user} lacks the right to update configmaps in namespace {stored.namespace};"
    )


def test_a_task_that_stored_nothing_has_no_state(
    editor: CliUser, task: Task, write_status: Callable[..., None]
) -> None:
    assert editor("state", "set", task.name, "k", "1").err == (
        "error: load has no state; the task's first call creates it, or before that, kubectl reattach state import.\n"
    )
    write_status(outcome="Failed")
    for command in (("set", task.name, "k", "1"), ("import", task.name, "-")):
        said = editor("state", *command, stdin=EXPORT)
        assert (said.code, said.err) == (1, "error: load has ended, and its task never opened a state.\n")


def test_import_creates_the_state_that_the_first_attempt_opens(editor: CliUser, server: Server, task: Task) -> None:
    assert editor("state", "import", "load", "-", stdin=EXPORT).out == "1 key stored in the state of load.\n"
    configmap = task.configmap()
    assert {*configmap["data"]} == {"formatVersion", "lastVersion", "requests", "counts", "key.cursor"}
    assert configmap["metadata"]["finalizers"] == [FINALIZER_STATE]
    attempt = task.attempt(server)
    read = attempt.get("cursor").json()
    assert (read["value"], read["attempt"], read["podUID"]) == (7, 0, f"cli:{editor.user}")
    assert task.status()["state"]["uid"] == configmap["metadata"]["uid"]


def test_import_creates_no_state_that_no_attempt_would_read(
    control_plane: ControlPlane, editor: CliUser, namespace: str
) -> None:
    copying = Task.create(control_plane, namespace, "copying", stateFrom="earlier")
    said = editor("state", "import", "copying", "-", stdin=EXPORT)
    assert said.code == 1
    assert said.err.startswith(
        "error: copying gets a copy of the state of earlier before its first attempt (spec.stateFrom); import a file after"
    )
    cancelled = Task.create(control_plane, namespace, "cancelled", cancel=True)
    assert "is being ended" in editor("state", "import", "cancelled", "-", stdin=EXPORT).err
    for one in (copying, cancelled):
        with pytest.raises(ControlPlaneError, match="404"):
            one.configmap()


def test_import_beside_an_attempt_that_has_not_opened_its_state_is_refused_unless_forced(
    editor: CliUser, server: Server, task: Task
) -> None:
    attempt = task.attempt(server, opened=False)
    assert "Attempt 1 of load is running" in editor("state", "import", "load", "-", stdin=EXPORT).err
    assert editor("state", "import", "load", "-", "--force", stdin=EXPORT).code == 0
    assert attempt.open().status_code == 200
    assert attempt.get("cursor").json()["value"] == 7


def test_import_that_an_attempt_overtakes_changes_nothing(
    editor: CliUser, server: Server, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the read and the creation an attempt opens the state."""
    from reattach.cluster import Cluster

    original, raced = Cluster.create, []

    async def late(self: Cluster, path: str, body: Any, **query: Any) -> bytes:
        if path == configmaps(task.namespace) and not raced:
            raced.append(path)
            assert task.attempt(server).set("cursor", 8).status_code == 200
        return await original(self, path, body, **query)

    monkeypatch.setattr(Cluster, "create", late)
    said = editor("state", "import", "load", "-", stdin=EXPORT)
    assert (said.code, len(raced)) == (1, 1)
    assert "Attempt 1 of load is running" in said.err
    assert entry(editor, "cursor")["value"] == 8


def test_file_that_is_no_export_creates_no_state(editor: CliUser, task: Task) -> None:
    assert "is not an export" in editor("state", "import", "load", "-", stdin=b"{}").err
    with pytest.raises(ControlPlaneError, match="404"):
        task.configmap()


def test_a_viewer_who_imports_is_told_the_missing_right(viewer: CliUser, task: Task) -> None:
    said = viewer("state", "import", task.name, "-", stdin=EXPORT)
    assert said.err.startswith(
        f"error: {viewer.user} lacks the right to create configmaps in namespace {task.namespace};"
    )


def test_a_state_that_was_deleted_by_force_is_not_made_anew(editor: CliUser, stored: Task) -> None:
    stored.force_away_configmap()
    result = editor("state", "set", "load", "k", "1")
    assert result.err == (
        "error: The state of load was deleted by force. kubectl reattach explain load shows what to do.\n"
    )


def test_a_state_of_another_format_is_left_alone(editor: CliUser, stored: Task) -> None:
    stored.patch_configmap(data={"formatVersion": "9"})
    result = editor("state", "set", "load", "k", "1")
    assert (result.code, result.err) == (
        1,
        "error: The state of load can't be read: a newer version of Reattach wrote the state, with formatVersion 9; upgrade this one.\n",
    )
