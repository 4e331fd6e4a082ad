"""Cleanup attempts open a state only once the run ends, and may only cancel jobs and record."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from controlplane import ControlPlane
from reattach.api.names import FINALIZER_EXTERNAL_JOBS, LABEL_PURPOSE
from reattach.api.state import JobState, Seal, SealPurpose
from reattach.api.taskrun import AttemptPurpose
from reattach.cluster.paths import pods
from stateapi import Attempt, Server, Servers, Task, call_until_killed, code_of

DYING = str(Path(__file__).with_name("dying_server.py"))
END, SUSPEND = SealPurpose.END, SealPurpose.SUSPEND
CLOSING, FENCED = (409, "closing"), (409, "fenced")
CLEANUP_ONLY, NOT_A_TASK_POD = (409, "cleanup-only"), (403, "not-a-task-pod")


def content_of(response: httpx.Response) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    content: dict[str, Any] = response.json()
    return content


def cleanup(task: Task, server: Server, number: int = 2, *, opened: bool = True) -> Attempt:
    """Return the process in a cleanup pod."""
    return task.attempt(server, number, opened=opened, purpose="Cleanup")


def run_with_job(task: Task, server: Server, key: str = "load", **intent: Any) -> Attempt:
    """Return an attempt that runs the task and has submitted a job."""
    attempt = task.attempt(server)
    attempt.intend(key, **intent)
    assert attempt.handle("job-1", key).status_code == 204
    return attempt


def relabel(task: Task, attempt: Attempt, purpose: str | None) -> None:
    path = pods(task.namespace, attempt.pod["metadata"]["name"])
    task.control_plane.call("PATCH", path, {"metadata": {"labels": {LABEL_PURPOSE: purpose}}})


class TestSession:
    def test_cleanup_session_reads_cancels_and_records_the_end_and_the_operator_sees_it(
        self, servers: Servers, task: Task
    ) -> None:
        server = servers.start()
        run_with_job(task, server, adapter="ray").set("job_id", "job-1")
        task.seal(1, END)
        attempt = cleanup(task, server, opened=False)
        opened = content_of(attempt.open(canCleanup=False))
        assert (opened["purpose"], opened["attempt"], opened["first"]) == ("Cleanup", 2, False)
        assert attempt.get("job_id").json()["value"] == "job-1"
        job = content_of(attempt.cancellation())["job"]
        assert (job["state"], job["cancelRequestedByAttempt"]) == ("Active", 2)
        (shown,) = task.view().jobs
        assert (shown.state, shown.cancel_requested_time is not None) == (JobState.ACTIVE, True)
        assert "cancelRequestedTime" in task.configmap()["metadata"]["annotations"]["reattach.dev/summary"]
        assert attempt.outcome("Cancelled").status_code == 204
        view = task.view()
        assert view.jobs[0].state is JobState.CANCELLED
        assert view.epoch is not None
        assert (view.epoch.attempt, view.epoch.purpose) == (2, AttemptPurpose.CLEANUP)
        assert 'reattach_external_jobs_total{adapter="ray",outcome="Cancelled"} 1.0' in server.metrics
        assert 'reattach_external_job_seconds_total{adapter="ray",outcome="Cancelled"}' in server.metrics
        lines = [line for line in server.log.splitlines() if "audit: cancellation" in line]
        assert len(lines) == 1
        assert "attempt=2" in lines[0]
        assert "handle='job-1'" in lines[0]

    def test_cleanup_session_can_neither_submit_nor_change_anything_else(self, server: Server, task: Task) -> None:
        run_with_job(task, server)
        task.seal(1, END)
        attempt = cleanup(task, server)
        before = task.configmap()
        refused = [
            attempt.intend(),
            attempt.intend("other"),
            attempt.handle("job-2", origin="Submitted"),
            attempt.handle("job-2", origin="Existed"),
            attempt.outcome("NotFound", hold=True),
            attempt.set("k", 1),
            attempt.delete("k"),
            attempt.clear(),
            attempt.batch({"op": "set", "key": "k", "value": 1}),
            attempt.complete(),
        ]
        assert {code_of(response) for response in refused} == {CLEANUP_ONLY}
        assert task.configmap() == before

    def test_cleanup_session_keeps_what_the_run_registered_for_the_next_cleanup_attempt(
        self, server: Server, task: Task
    ) -> None:
        attempt = task.attempt(server, opened=False)
        assert attempt.open(canCleanup=True, cleanupHandler=True).status_code == 200
        task.seal(1, END)
        for number in (2, 3):
            assert cleanup(task, server, number, opened=False).open().status_code == 200
            epoch = task.view().epoch
            assert epoch is not None
            assert (epoch.attempt, epoch.can_cleanup, epoch.cleanup_handler) == (number, True, True)

    def test_cleanup_session_fences_the_run_whose_late_handle_is_still_stored(self, server: Server, task: Task) -> None:
        run = task.attempt(server)
        run.intend()
        task.seal(1, END)
        attempt = cleanup(task, server)
        assert code_of(run.set("k", 1)) == FENCED
        assert code_of(run.cancellation()) == FENCED
        assert run.handle("job-1").status_code == 204
        job = content_of(attempt.cancellation())["job"]
        assert (job["handle"], job["origin"], job["cancelRequestedByAttempt"]) == ("job-1", "Reported", 2)

    def test_task_that_cancels_its_job_may_say_so(self, server: Server, task: Task) -> None:
        run = run_with_job(task, server)
        assert content_of(run.cancellation())["job"]["cancelRequestedByAttempt"] == 1
        task.seal(1, END)
        assert run.outcome("Cancelled").status_code == 204


class TestOpening:
    @pytest.mark.parametrize("purpose", [None, SUSPEND])
    def test_cleanup_pod_before_the_end_is_refused(
        self, server: Server, task: Task, purpose: SealPurpose | None
    ) -> None:
        run = run_with_job(task, server)
        if purpose is not None:
            task.seal(1, purpose)
        assert code_of(cleanup(task, server, opened=False).open()) == CLOSING
        assert run.set("k", 1).status_code == 200

    def test_cleanup_pod_of_a_taskrun_that_is_being_deleted_opens_the_state(self, server: Server, task: Task) -> None:
        run_with_job(task, server)
        task.control_plane.call("DELETE", task.path)
        task.seal(1, END)
        attempt = cleanup(task, server)
        assert attempt.cancellation().status_code == 200
        assert attempt.outcome("Succeeded").status_code == 204

    def test_cleanup_pod_of_a_taskrun_with_an_outcome_is_refused(self, server: Server, task: Task) -> None:
        run_with_job(task, server)
        task.seal(1, END)
        task.control_plane.call("PATCH", f"{task.path}/status", {"status": {"outcome": "Cancelled"}})
        assert code_of(cleanup(task, server, opened=False).open()) == CLOSING

    def test_run_pod_that_was_created_late_neither_opens_the_state_nor_counts_as_a_cleanup_pod(
        self, server: Server, task: Task
    ) -> None:
        run_with_job(task, server)
        task.begin_ending()
        task.seal(1, END)
        late = task.attempt(server, 2, opened=False)
        assert code_of(late.open()) == CLOSING
        assert code_of(late.cancellation()) == (409, "not-open")
        attempt = cleanup(task, server, 3)
        assert attempt.cancellation().status_code == 200
        assert code_of(late.open()) == CLOSING
        assert code_of(late.intend()) == FENCED

    def test_cleanup_pod_without_a_state_creates_one_that_is_sealed(self, server: Server, task: Task) -> None:
        attempt = cleanup(task, server, opened=False)
        assert code_of(attempt.open()) == CLOSING
        assert "state" not in task.status()
        task.begin_ending()
        late = task.attempt(server, opened=False)
        assert code_of(late.open()) == CLOSING
        assert attempt.open().status_code == 200
        view = task.view()
        assert view.seal == Seal(through_attempt=2, purpose=END)
        assert task.status()["state"]["uid"] == view.uid
        assert code_of(late.open()) == CLOSING
        assert code_of(task.attempt(server, 3, opened=False).open()) == CLOSING

    def test_cleanup_pod_of_a_run_that_was_cancelled_from_the_start_adopts_its_jobs_once(
        self, control_plane: ControlPlane, namespace: str, server: Server
    ) -> None:
        adopt = [{"key": "load", "handle": "job-7", "adapter": "http"}]
        task = Task.create(control_plane, namespace, "adopts", cancel=True, adopt=adopt, cleanup={"adopted": "Cancel"})
        task.begin_ending()
        first = cleanup(task, server, 1, opened=False)
        for _ in range(2):  # the response may be lost
            assert first.open(canCleanup=True).status_code == 200
        [job] = content_of(first.jobs())["items"]
        assert (job["key"], job["handle"], job["adapter"], job["origin"]) == ("load", "job-7", "http", "Adopted")
        assert first.cancellation().status_code == 200
        second = cleanup(task, server, 2, opened=False)
        assert second.open().status_code == 200
        [again] = content_of(second.jobs())["items"]
        assert again["cancelRequestedAt"] is not None
        assert second.outcome("Cancelled").status_code == 204
        view = task.view()
        assert (view.seal and view.seal.purpose, view.epoch and view.epoch.can_cleanup) == (END, True)
        assert [one.state for one in view.jobs] == [JobState.CANCELLED]

    def test_task_that_completed_before_the_cleanup_began_is_not_cleaned_up(self, server: Server, task: Task) -> None:
        run = run_with_job(task, server)
        run.outcome("Succeeded")
        task.seal(1, END)
        assert run.complete().status_code == 204
        assert code_of(cleanup(task, server, opened=False).open()) == (409, "completed")

    def test_completion_that_does_not_count_is_cleaned_up(
        self, server: Server, control_plane: ControlPlane, namespace: str
    ) -> None:
        task = Task.create(control_plane, namespace, completion="ExitCode")
        assert task.attempt(server).complete().status_code == 204
        task.seal(1, END)
        assert cleanup(task, server, opened=False).open().status_code == 200

    @pytest.mark.parametrize("value", ["Other", "cleanup", ""])
    def test_pod_with_an_unknown_purpose_is_refused(self, server: Server, task: Task, value: str) -> None:
        attempt = task.attempt(server, opened=False)
        relabel(task, attempt, value)
        task.begin_ending()
        assert code_of(attempt.open()) == NOT_A_TASK_POD


class TestChangedLabel:
    """Policies let only the operator set the label. Each change of a label is refused anyway."""

    @pytest.mark.parametrize("before, after", [("", "Cleanup"), ("Cleanup", None)])
    def test_session_of_a_pod_whose_label_was_changed_is_fenced_by_every_replica_that_sees_it(
        self, servers: Servers, server: Server, task: Task, before: str, after: str | None
    ) -> None:
        if before:
            task.begin_ending()
        attempt = task.attempt(server, purpose=before)
        task.seal(1, END)
        relabel(task, attempt, after)
        fresh = attempt.on(servers.start())
        assert code_of(fresh.open()) == (FENCED if after else CLOSING)
        assert {code_of(response) for response in fresh.every_call()} == {FENCED}
        # A replica that accepted the token in the last minute still knows the former purpose.
        expected = CLEANUP_ONLY if before else (409, "closing")
        assert code_of(attempt.intend("new")) == expected

    def test_pod_with_another_purpose_than_in_status_is_refused(self, server: Server, task: Task) -> None:
        attempt = task.attempt(server, opened=False, purpose="Cleanup")
        task.end_attempt(attempt)
        task.begin_ending()
        assert code_of(attempt.open()) == NOT_A_TASK_POD
        assert "state" not in task.status()


class TestCancellation:
    def test_repeated_cancellation_keeps_the_first_time_and_writes_nothing(self, server: Server, task: Task) -> None:
        run_with_job(task, server)
        task.seal(1, END)
        first = content_of(cleanup(task, server).cancellation(request_id="r"))["job"]
        before = task.configmap()["metadata"]["resourceVersion"]
        attempt = cleanup(task, server, 3)
        opened = task.configmap()["metadata"]["resourceVersion"]
        assert opened != before
        again = content_of(attempt.cancellation())["job"]
        assert again == first
        assert task.configmap()["metadata"]["resourceVersion"] == opened

    @pytest.mark.parametrize("when", ["before PUT /configmaps", "after PUT /configmaps"])
    def test_cancellation_after_a_replica_died_is_stored_once(
        self, servers: Servers, server: Server, task: Task, when: str
    ) -> None:
        run_with_job(task, server)
        task.seal(1, END)
        attempt = cleanup(task, server)
        dying = servers.start(program=(DYING,), DIE=when)
        call_until_killed(dying, lambda: attempt.on(dying).cancellation(request_id="r"))
        stored = task.view().jobs[0].cancel_requested_time
        assert (stored is None) == when.startswith("before")
        content_of(attempt.cancellation(request_id="r"))
        after = task.view().jobs[0].cancel_requested_time
        assert after is not None
        assert stored in {None, after}

    def test_cancellation_while_the_operator_ends_the_run_adds_no_finalizer(self, server: Server, task: Task) -> None:
        run_with_job(task, server)
        task.seal(1, END)
        attempt = cleanup(task, server)
        task.patch(metadata={"finalizers": None})
        assert attempt.cancellation().status_code == 200
        assert attempt.outcome("Active").status_code == 204
        assert task.finalizers() == []
        task.control_plane.call("PATCH", f"{task.path}/status", {"status": {"outcome": "Cancelled"}})
        assert code_of(attempt.cancellation()) == CLOSING

    @pytest.mark.parametrize("adopted, kept", [("Orphan", True), ("Cancel", False)])
    def test_job_that_the_run_did_not_submit_is_kept_unless_the_policy_is_cancel(
        self, server: Server, control_plane: ControlPlane, namespace: str, adopted: str, *, kept: bool
    ) -> None:
        adopt = [{"key": "named", "handle": "job-5"}]
        task = Task.create(control_plane, namespace, adopt=adopt, cleanup={"adopted": adopted})
        run = task.attempt(server)
        run.intend("named")
        run.intend("existed")
        run.handle("job-6", "existed", origin="Existed")
        assert content_of(run.cancellation("named"))["job"]["cancelRequestedByAttempt"] == 1
        task.seal(1, END)
        attempt = cleanup(task, server)
        for key in ("named", "existed"):
            response = attempt.cancellation(key)
            assert code_of(response) == (409, "job-kept") if kept else response.status_code == 200

    def test_job_that_is_over_is_returned_as_it_is(self, server: Server, task: Task) -> None:
        run_with_job(task, server).outcome("Succeeded", result=1)
        task.seal(1, END)
        content = content_of(cleanup(task, server).cancellation())
        assert (content["job"]["state"], content["job"]["cancelRequestedAt"]) == ("Succeeded", None)
        assert (content["unresolved"], content["mayResolve"]) == (None, False)

    @pytest.mark.parametrize("end, all_ended", [("Reported", True), ("Presumed", False)])
    def test_intent_without_a_handle_shows_its_submitters_until_it_is_settled(
        self, server: Server, task: Task, end: str, *, all_ended: bool
    ) -> None:
        run = task.attempt(server)
        run.intend()
        task.seal(1, END)
        attempt = cleanup(task, server)
        before = task.configmap()
        content = content_of(attempt.cancellation())
        assert (content["mayResolve"], content["unresolved"]["allEnded"]) == (True, False)
        assert (content["unresolved"]["quietSince"], content["unresolved"]["attempts"]) == (None, [1])
        task.end_attempt(run, end=end)
        content = content_of(attempt.cancellation())
        assert (content["mayResolve"], content["unresolved"]["allEnded"]) == (False, all_ended)
        # A submitter may have ended after the cleanup attempt opened the state.
        assert content["unresolved"]["quietSince"] == (content["serverTime"] if all_ended else None)
        assert task.configmap() == before
        assert attempt.outcome("Cancelled", message="it was never submitted").status_code == 204
        assert task.view().jobs[0].state is JobState.CANCELLED

    def test_job_that_a_lookup_found_is_recorded_and_cancelled(self, server: Server, task: Task) -> None:
        task.attempt(server).intend()
        task.seal(1, END)
        attempt = cleanup(task, server)
        assert attempt.handle("job-1", origin="Found").status_code == 204
        assert content_of(attempt.cancellation())["job"]["origin"] == "Found"

    @pytest.mark.parametrize(
        "method, body, code",
        [
            ("POST", {}, (400, "invalid")),
            ("POST", {"generation": 1, "extra": 1}, (400, "invalid")),
            ("POST", {"generation": 2}, (404, "job-not-found")),
            ("POST", {"generation": 1, "x": "y" * 4096}, (413, "request-too-large")),
            ("PUT", {"generation": 1}, (405, "method-not-allowed")),
        ],
    )
    def test_malformed_cancellation_is_refused(
        self, server: Server, task: Task, method: str, body: Any, code: tuple[int, str]
    ) -> None:
        run_with_job(task, server)
        task.seal(1, END)
        attempt = cleanup(task, server)
        assert code_of(attempt.client.request(method, "/v1/jobs/load/cancellation", json=body)) == code


class TestHandler:
    def test_open_with_a_cleanup_handler_adds_the_finalizer_and_without_one_does_not(
        self, server: Server, control_plane: ControlPlane, namespace: str
    ) -> None:
        for number, (handler, finalizers) in enumerate(((False, []), (True, [FINALIZER_EXTERNAL_JOBS]))):
            task = Task.create(control_plane, namespace, f"load-{number}")
            task.patch(metadata={"finalizers": ["example.com/theirs"]})
            attempt = task.attempt(server, opened=False)
            for _ in range(2):
                assert attempt.open(canCleanup=True, cleanupHandler=handler).status_code == 200
            assert task.finalizers() == ["example.com/theirs", *finalizers]
            task.patch(metadata={"finalizers": None})
        assert "reattach_server_conflicts_total 0.0" in server.metrics

    @pytest.mark.parametrize(
        "when", ["before PATCH /taskruns/load", "after PATCH /taskruns/load", "before POST /configmaps"]
    )
    def test_state_that_knows_a_handler_is_never_stored_without_the_finalizer(
        self, servers: Servers, server: Server, task: Task, when: str
    ) -> None:
        attempt = task.attempt(server, opened=False)
        dying = servers.start(program=(DYING,), DIE=when)
        call_until_killed(dying, lambda: attempt.on(dying).open(cleanupHandler=True))
        assert "state" not in task.status()
        assert task.finalizers() == ([] if when.startswith("before PATCH") else [FINALIZER_EXTERNAL_JOBS])
        assert attempt.open(cleanupHandler=True).status_code == 200
        assert task.finalizers() == [FINALIZER_EXTERNAL_JOBS]

    def test_run_that_is_cancelled_but_not_ending_may_open(self, server: Server, task: Task) -> None:
        """The operator decides about the cancel; it may have to wait for the state."""
        task.patch(spec={"cancel": True})
        attempt = task.attempt(server)
        assert code_of(attempt.intend()) == CLOSING
