"""`orphans`, and the end of a run in `explain`, by users with rights on the real API server."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from cli_session import CliUser
from controlplane import ControlPlane
from reattach.api.names import orphans_name
from reattach.cluster.paths import configmaps
from stateapi import Server, Task

TIME = "2026-03-01T12:00:00Z"


def condition(kind: str, reason: str, status: str, message: str = "") -> dict[str, Any]:
    return {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": TIME}


def a_job(key: str = "load", **fields: Any) -> dict[str, Any]:
    return {"key": key, "generation": 1, "handle": "job-7", "why": "spec.cleanup.onCancel is Orphan.", **fields}


@pytest.fixture
def leave(control_plane: ControlPlane, namespace: str) -> Callable[..., str]:
    """Create the record that the operator stores for jobs that were left running."""

    def create(taskrun: str, *jobs: dict[str, Any], uid: str = "0123456789", record: str | None = None) -> str:
        about = {"taskrun": taskrun, "uid": uid, "reason": "Cancelled", "time": TIME, "formatVersion": 1}
        text = json.dumps({**about, "jobs": jobs}) if record is None else record
        name = orphans_name(taskrun, uid)
        metadata = {"name": name, "labels": {"reattach.dev/orphans": taskrun}}
        control_plane.call("POST", configmaps(namespace), {"metadata": metadata, "data": {"record": text}})
        return name

    return create


def records(control_plane: ControlPlane, namespace: str) -> list[str]:
    found = control_plane.call("GET", configmaps(namespace), labelSelector="reattach.dev/orphans")["items"]
    return sorted(one["metadata"]["name"] for one in found)


class TestOrphans:
    def test_viewer_lists_the_jobs_of_all_records_over_several_pages(
        self, viewer: CliUser, leave: Callable[..., str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        leave("b-etl", a_job(), a_job("train", handle="job-8", cancelRequestedTime=TIME))
        leave("a-nightly", a_job())
        leave("c-broken", record="no JSON")
        monkeypatch.setattr("reattach.cli.pages.PAGE", 1)
        result = viewer("orphans")
        assert (result.code, result.err) == (0, "")
        rows = [line.split()[:3] for line in result.out.splitlines()[1:]]
        assert rows == [
            ["a-nightly", "load", "job-7"],
            ["b-etl", "load", "job-7"],
            ["b-etl", "train", "job-8"],
            ["c-broken", "-", "-"],
        ]
        assert viewer("orphans", "-o", "json").json == viewer("orphans", "-o", "yaml").yaml
        two = viewer("orphans", "b-etl", "a-nightly", "-o", "json").json
        assert [one["taskrun"] for one in two] == ["a-nightly", "b-etl", "b-etl"]

    def test_page_of_records_above_the_limit_in_bytes_is_read_in_smaller_pages(
        self, viewer: CliUser, leave: Callable[..., str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for number in range(4):
            leave(f"large-{number}", a_job(), record="[" * 100_000)
        monkeypatch.setattr("reattach.cli.pages._PAGE_BYTES_MAX", 250_000)
        assert len(viewer("orphans").out.splitlines()) == 5

    def test_editor_dismisses_only_the_named_records_and_only_with_yes(
        self, control_plane: ControlPlane, editor: CliUser, namespace: str, leave: Callable[..., str]
    ) -> None:
        # Two TaskRuns of one name left jobs, one after the other.
        first, second = leave("etl", a_job()), leave("etl", a_job("train"), uid="9876543210")
        kept = leave("nightly", a_job())
        result = editor("orphans", "etl", "--dismiss")
        assert result.code == 1
        assert result.err.startswith("Nothing was changed. To delete 2 records, and so forget 2 jobs, run:\n")
        assert records(control_plane, namespace) == sorted([first, second, kept])
        result = editor("orphans", "etl", "--dismiss", "--yes")
        assert (result.code, result.err) == (0, "")
        assert sorted(line.split()[0] for line in result.out.splitlines()) == sorted(
            [f"configmap/{first}", f"configmap/{second}", "load:", "train:"]
        )
        assert records(control_plane, namespace) == [kept]
        again = editor("orphans", "etl", "--dismiss", "--yes")
        assert again.code == 1
        assert "TaskRun etl has no record of orphaned jobs" in again.err

    @pytest.mark.parametrize("change", ["edited", "replaced", "deleted"])
    def test_record_that_changes_after_it_was_read_is_not_dismissed(
        self, editor: CliUser, leave: Callable[..., str], change: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from reattach.cli import orphans as module

        control_plane, namespace = editor.control_plane, editor.namespace
        name, before = leave("etl", a_job()), module.read_records

        async def changed(*arguments: Any) -> Any:
            found = await before(*arguments)
            path = configmaps(namespace, name)
            if change == "edited":
                control_plane.call("PATCH", path, {"data": {"note": "job-7 belongs to ann"}})
            else:
                control_plane.call("DELETE", path)
            if change == "replaced":
                leave("etl", a_job())
            return found

        monkeypatch.setattr(module, "read_records", changed)
        result = editor("orphans", "etl", "--dismiss", "--yes")
        if change == "deleted":
            assert (result.code, result.out) == (
                0,
                f"configmap/{name} is gone already, so there was nothing to dismiss.\n",
            )
        else:
            assert (result.code, result.out) == (1, "")
            assert f"configmap/{name} changed after it was read, so it was not dismissed" in result.err
            assert records(control_plane, namespace) == [name]

    def test_viewer_gets_the_missing_right_and_changes_nothing(
        self, control_plane: ControlPlane, viewer: CliUser, namespace: str, leave: Callable[..., str]
    ) -> None:
        name = leave("etl", a_job())
        result = viewer("orphans", "etl", "--dismiss", "--yes")
        assert result.code == 1
        assert f"{viewer.user} lacks the right to delete configmaps in namespace {namespace}" in result.err
        result = viewer("orphans", "-A")
        assert (result.code, result.out) == (1, "")
        assert f"{viewer.user} lacks the right to list configmaps" in result.err
        assert records(control_plane, namespace) == [name]


class TestEnding:
    def test_explain_names_the_client_that_set_cancel(
        self, editor: CliUser, viewer: CliUser, task: Task, write_status: Callable[..., None]
    ) -> None:
        write_status(conditions=[condition("Succeeded", "Running", "Unknown")])
        task.patch(spec={"cleanup": {"onCancel": "Orphan"}})  # the owner of another field
        assert editor("cancel", "load").code == 0
        report = viewer("explain", "load", "-o", "json").json
        assert report["cancelledBy"]["manager"] == "kubectl-reattach"
        assert "Cancellation: spec.cancel was set by kubectl-reattach" in viewer("explain", "load").out

    def test_explain_says_why_a_job_was_left_until_the_record_is_dismissed(
        self, editor: CliUser, task: Task, write_status: Callable[..., None], leave: Callable[..., str]
    ) -> None:
        leave("load", a_job(), uid=task.uid)
        job = {"key": "load", "generation": 1, "state": "Orphaned", "handle": "job-7"}
        named = "External jobs were left running. External job load (handle job-7): spec.cleanup.onCancel is Orphan"
        conditions = [
            condition("Succeeded", "Cancelled", "False"),
            condition("Orphaned", "JobsOrphaned", "True", named),
        ]
        write_status(outcome="Cancelled", orphaned=True, externalJobs=[job], conditions=conditions)
        out = editor("explain", "load").out
        assert "load: job-7 was left running. spec.cleanup.onCancel is Orphan.\n" in out
        assert f"kubectl reattach orphans load -n {task.namespace} --dismiss\n" in out
        assert editor("orphans", "load", "--dismiss", "--yes").code == 0
        out = editor("explain", "load").out
        assert f"  {named}\n" in out
        assert "kubectl reattach orphans" not in out
        # The operator does not change a finished TaskRun any more.
        assert task.status()["orphaned"]

    def test_cancel_says_what_happens_to_a_job_by_the_state_and_the_policy(
        self, editor: CliUser, task: Task, server: Server
    ) -> None:
        attempt = task.attempt(server, opened=False)
        assert attempt.open(canCleanup=True).status_code == 200
        assert attempt.intend().status_code == 200
        assert attempt.handle("job-7").status_code == 204
        out = editor("cancel", "load").out
        assert "A cleanup attempt cancels job-7 (load), and waits until it has ended.\n" in out
        task.patch(spec={"cleanup": {"onCancel": "Orphan"}})
        out = editor("cancel", "load").out
        assert "job-7 (load) is left running in the external system. spec.cleanup.onCancel is Orphan.\n" in out

    def test_run_that_ends_as_failed_can_not_be_cancelled(
        self, editor: CliUser, task: Task, write_status: Callable[..., None]
    ) -> None:
        ending = {
            "outcome": "Failed",
            "reason": "RunDeadlineExceeded",
            "message": "It took too long.",
            "time": TIME,
            "cleanupDeadline": TIME,
        }
        write_status(ending=ending)
        result = editor("cancel", "load")
        assert result.code == 1
        assert result.err == (
            "error: load is already ending as Failed (RunDeadlineExceeded), so it can't be cancelled.\n"
        )
        assert "cancel" not in task.control_plane.call("GET", task.path)["spec"]
        assert editor("cancel", "-l", "!absent", "--yes").err == "No TaskRun that continues matches --selector.\n"
