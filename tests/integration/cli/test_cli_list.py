"""`list` and `cancel` by people with rights of their own, against the real API server."""

from collections.abc import Callable
from typing import Any

import pytest

from cli_session import CliUser
from controlplane import ControlPlane
from reattach.cluster.paths import taskruns
from stateapi import Task

TIME = "2026-03-01T12:00:00Z"


def condition(kind: str, reason: str, status: str = "Unknown") -> dict[str, Any]:
    return {"type": kind, "status": status, "reason": reason, "message": "", "lastTransitionTime": TIME}


def create(
    control_plane: ControlPlane, namespace: str, name: str, labels: dict[str, str] | None = None, **status: Any
) -> Task:
    task = Task.create(control_plane, namespace, name)
    task.patch(metadata={"labels": labels or {}})
    if status:
        control_plane.call("PATCH", taskruns(namespace, name, "status"), {"status": status})
    return task


def names(out: str) -> list[str]:
    return [line.split()[0] for line in out.splitlines()[1:]]


def spec_of(task: Task) -> dict[str, Any]:
    spec: dict[str, Any] = task.control_plane.call("GET", task.path)["spec"]
    return spec


@pytest.fixture
def runs(control_plane: ControlPlane, namespace: str) -> dict[str, Task]:
    held = [condition("Succeeded", "SubmissionUnknown"), condition("Held", "SubmissionUnknown", "True")]
    job = {"key": "load", "generation": 1, "state": "Active", "handle": "job-7"}
    running = {"conditions": [condition("Succeeded", "Running")], "counts": {"attempts": 2}, "externalJobs": [job]}
    over = {"outcome": "Succeeded", "conditions": [condition("Succeeded", "Succeeded", "True")]}
    return {
        "b-held": create(control_plane, namespace, "b-held", {"app": "etl"}, conditions=held),
        "c-over": create(control_plane, namespace, "c-over", {"app": "etl"}, **over),
        "a-running": create(control_plane, namespace, "a-running", {"app": "web"}, **running),
    }


class TestList:
    def test_viewer_sees_the_runs_in_the_order_of_their_names(self, viewer: CliUser, runs: dict[str, Task]) -> None:
        result = viewer("list")
        assert (result.code, result.err) == (0, "")
        assert result.out.splitlines()[0].split() == ["NAME", "STATUS", "ATTEMPTS", "JOB", "AGE"]
        assert names(result.out) == sorted(runs)
        assert result.out.splitlines()[1].split()[:4] == ["a-running", "Running", "2", "job-7"]

    def test_list_is_complete_and_in_order_over_several_pages(
        self, viewer: CliUser, runs: dict[str, Task], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("reattach.cli.pages.PAGE", 1)
        assert names(viewer("list").out) == sorted(runs)
        assert [one["name"] for one in viewer("list", "-o", "json").json] == sorted(runs)
        assert viewer("list", "-o", "json").json == viewer("list", "-o", "yaml").yaml

    def test_page_above_the_limit_in_bytes_is_read_in_smaller_pages(
        self, viewer: CliUser, runs: dict[str, Task], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        size = len(str(viewer.control_plane.call("GET", taskruns(viewer.namespace))))
        monkeypatch.setattr("reattach.cli.pages._PAGE_BYTES_MAX", size * 2 // 3)
        assert names(viewer("list").out) == sorted(runs)

    @pytest.mark.usefixtures("runs")
    def test_list_selects_by_hold_and_by_label(self, viewer: CliUser) -> None:
        assert names(viewer("list", "--held").out) == ["b-held"]
        assert names(viewer("list", "-l", "app=etl").out) == ["b-held", "c-over"]
        result = viewer("list", "--held", "-l", "app=web")
        assert (result.code, result.err) == (0, f"No held TaskRuns found in namespace {viewer.namespace}.\n")
        assert viewer("list", "-l", "app==,").code == 1

    def test_list_of_all_namespaces_needs_the_right_for_the_cluster(
        self, control_plane: ControlPlane, viewer: CliUser, runs: dict[str, Task]
    ) -> None:
        result = viewer("list", "-A")
        assert (result.code, result.out) == (1, "")
        assert result.err.startswith(f"error: {viewer.user} lacks the right to list taskruns.reattach.dev;")
        administrator = CliUser(control_plane, viewer.namespace, "admin")
        found = [
            line.split()
            for line in administrator("list", "-A", "--as", "a", "--as-group", "system:masters").out.splitlines()
        ]
        assert found[0][:2] == ["NAMESPACE", "NAME"]
        assert [row[1] for row in found if row[0] == viewer.namespace] == sorted(runs)


class TestCancel:
    def test_editor_cancels_runs_by_name_and_may_repeat_it(self, editor: CliUser, runs: dict[str, Task]) -> None:
        result = editor("cancel", "a-running", "trun/b-held")
        assert (result.code, result.err) == (0, "")
        assert result.out.startswith("taskrun/a-running will be cancelled.\n")
        assert "\ntaskrun/b-held will be cancelled.\n" in result.out
        assert spec_of(runs["a-running"])["cancel"]
        assert spec_of(runs["b-held"])["cancel"]
        version = runs["a-running"].control_plane.call("GET", runs["a-running"].path)["metadata"]["resourceVersion"]
        again = editor("cancel", "a-running")
        assert (again.code, again.err) == (0, "")
        assert again.out.startswith("taskrun/a-running is already being cancelled.\n")
        after = runs["a-running"].control_plane.call("GET", runs["a-running"].path)["metadata"]["resourceVersion"]
        assert after == version

    def test_error_of_one_run_does_not_stop_the_others(self, editor: CliUser, runs: dict[str, Task]) -> None:
        result = editor("cancel", "c-over", "absent", "a-running")
        assert result.code == 1
        [ended, absent] = result.err.splitlines()
        assert ended == "error: c-over has already ended (Succeeded), so it can't be cancelled."
        assert absent.startswith(f"error: There is no TaskRun 'absent' in namespace {editor.namespace}")
        assert spec_of(runs["a-running"])["cancel"]
        assert "cancel" not in spec_of(runs["c-over"])

    def test_cancelled_run_is_reported_as_such(
        self, editor: CliUser, task: Task, write_status: Callable[..., None]
    ) -> None:
        write_status(outcome="Cancelled", conditions=[condition("Succeeded", "Cancelled", "False")])
        result = editor("cancel", "load", "-o", "json")
        assert result.code == 0
        [found] = result.json
        assert (found["name"], found["message"]) == ("load", "was already cancelled.")
        assert "cancel" not in spec_of(task)

    def test_run_that_is_being_deleted_is_not_changed(self, editor: CliUser, task: Task) -> None:
        task.patch(metadata={"finalizers": ["example.com/kept"]})
        task.control_plane.call("DELETE", task.path)
        result = editor("cancel", "load")
        task.patch(metadata={"finalizers": None})
        assert result.code == 0
        assert result.out.startswith("taskrun/load is being deleted, which ends it; spec.cancel was not changed.\n")

    def test_selector_lists_first_and_cancels_only_with_yes(self, editor: CliUser, runs: dict[str, Task]) -> None:
        result = editor("cancel", "-l", "app in (etl, web)")
        assert result.code == 1
        assert names(result.out) == ["a-running", "b-held"]
        assert result.err == "Nothing was changed. To cancel 2 TaskRuns, repeat the command with --yes.\n"
        assert not any("cancel" in spec_of(task) for task in runs.values())
        result = editor("cancel", "-l", "app in (etl, web)", "--yes")
        assert (result.code, result.err) == (0, "")
        assert [name for name, task in runs.items() if "cancel" in spec_of(task)] == ["b-held", "a-running"]
        again = editor("cancel", "-l", "app in (etl, web)", "--yes")
        assert (again.code, again.err) == (0, "No TaskRun that continues matches --selector.\n")

    @pytest.mark.parametrize("words", [[], ["load", "-l", "a=b"], ["-l", ""]], ids=["neither", "both", "empty"])
    def test_names_and_selector_exclude_one_another(self, editor: CliUser, task: Task, words: list[str]) -> None:
        assert editor("cancel", *words).code == 2
        assert "cancel" not in spec_of(task)

    @pytest.mark.usefixtures("task")
    def test_viewer_gets_the_missing_right(self, viewer: CliUser) -> None:
        result = viewer("cancel", "load")
        assert result.code == 1
        assert result.err.startswith(f"error: load: {viewer.user} lacks the right to patch taskruns.reattach.dev")

    def test_replaced_run_is_not_cancelled(
        self, editor: CliUser, runs: dict[str, Task], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Between the list and the change, another TaskRun, which is cancelled, takes the name."""
        from reattach.cli import cancel as module

        task, before = runs["a-running"], module.read_cancellable

        async def replaced(*arguments: Any) -> Any:
            found = await before(*arguments)
            task.control_plane.call("DELETE", task.path)
            Task.create(task.control_plane, task.namespace, task.name, cancel=True)
            return found

        monkeypatch.setattr(module, "read_cancellable", replaced)
        result = editor("cancel", "-l", "app=web", "--yes")
        assert (result.code, result.out) == (1, "")
        assert "was deleted, and another TaskRun has its name now" in result.err

    def test_run_that_is_replaced_after_the_read_is_not_cancelled(
        self, editor: CliUser, task: Task, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from reattach.cli import cancel as module

        before = module.read_taskrun

        async def replaced(*arguments: Any) -> Any:
            found = await before(*arguments)
            if found.metadata.uid == task.uid:
                task.control_plane.call("DELETE", task.path)
                Task.create(task.control_plane, task.namespace, task.name)
            return found

        monkeypatch.setattr(module, "read_taskrun", replaced)
        result = editor("cancel", "load")
        assert result.code == 1
        assert "was deleted, and another TaskRun has its name now" in result.err
        assert "cancel" not in spec_of(task)
