"""External jobs through the state API, on a real API server: what makes sure that none is submitted twice, and none left without an owner."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from controlplane import ControlPlane, ControlPlaneError
from job_states import brim
from reattach.api.messages import ProblemCode
from reattach.api.names import FINALIZER_EXTERNAL_JOBS
from reattach.api.state import JobState, Seal, SealPurpose
from reattach.cluster import Cluster
from reattach.state import DurableState, RequestRejectedError, RunReference, Store
from stateapi import Attempt, Server, Servers, Task, call_until_killed, code_of, job_path_of

DYING = str(Path(__file__).with_name("dying_server.py"))


def answer_of(response: httpx.Response) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def decision_of(response: httpx.Response) -> str:
    return str(answer_of(response)["decision"])


def replicas_of(servers: Servers, server: Server, attempt: Attempt) -> Callable[[int], Attempt]:
    """The same process, calling one of two replicas by turns."""
    replicas = (server, servers.start())
    return lambda number: attempt.on(replicas[number % 2])


def asked(call: Callable[[], httpx.Response]) -> httpx.Response:
    """Its answer, once the writers on both replicas let it through."""
    while (response := call()).status_code == 503:
        assert code_of(response) == (503, "conflict")
    return response


class TestProtocol:
    def test_intent_handle_outcome(self, server: Server, task: Task) -> None:
        attempt = task.attempt(server)
        answer = answer_of(attempt.intend(adapter="ray", digest="d-1", tokenSeconds=600))
        job = answer["job"]
        assert (answer["decision"], answer["unresolved"]) == ("Submit", None)
        assert (answer["onUnknown"], answer["onNotFound"]) == ("Hold", "Hold")
        assert (job["state"], job["generation"], job["handle"], job["adapter"]) == ("Intended", 1, None, "ray")
        assert "result" not in job
        assert attempt.handle("job-1", url="http://x/1").status_code == 204
        assert attempt.handle("job-1").status_code == 204
        job = answer_of(attempt.job())
        assert (job["state"], job["handle"], job["url"], job["origin"]) == (
            "Active",
            "job-1",
            "http://x/1",
            "Submitted",
        )
        assert attempt.outcome("Succeeded", result={"rows": 4211}).status_code == 204
        assert attempt.outcome("Succeeded", result={"rows": 4211}).status_code == 204
        assert code_of(attempt.outcome("Failed")) == (409, "job-over")
        over = answer_of(task.attempt(server, 2).intend(adapter="ray", digest="d-1"))
        assert (over["decision"], over["job"]["result"]) == ("Over", {"rows": 4211})

    def test_the_operator_sees_all_of_it_in_the_state_and_what_matters_in_the_summary(
        self, server: Server, task: Task
    ) -> None:
        attempt = task.attempt(server)
        attempt.intend()
        attempt.handle("job-1", url="http://x/1")
        view = task.view()
        (job,) = view.jobs
        assert (job.key, job.state, job.handle, job.url) == ("load", JobState.ACTIVE, "job-1", "http://x/1")
        assert view.counts.submissions == 1
        summary = task.configmap()["metadata"]["annotations"]["reattach.dev/summary"]
        assert '"handle":"job-1"' in summary

    @pytest.mark.parametrize(
        "key", ["a/b", "/", "a/intent", "intent", "a/../b", "..", "%2F", "é", "a b", "x" * 128, "☃" * 128, "load/1"]
    )
    def test_keys_with_slashes_and_other_characters_work_in_every_call(
        self, server: Server, task: Task, key: str
    ) -> None:
        attempt = task.attempt(server)
        assert answer_of(attempt.intend(key))["job"]["key"] == key
        assert attempt.handle("job-1", key).status_code == 204
        assert attempt.outcome("Failed", key).status_code == 204
        job = answer_of(attempt.job(key, generation=1))
        assert (job["key"], job["state"]) == (key, "Failed")
        assert [job["key"] for job in answer_of(attempt.jobs())["items"]] == [key]

    def test_a_slash_may_also_stand_in_the_path_as_it_is(self, server: Server, task: Task) -> None:
        attempt = task.attempt(server)
        body = {"submitter": "p", "adapter": "a", "digest": "d"}
        assert attempt.client.post("/v1/jobs/a/b/intent", json=body).json()["job"]["key"] == "a/b"
        assert answer_of(attempt.client.get("/v1/jobs/a%2Fb"))["key"] == "a/b"

    @pytest.mark.parametrize("key", ["", "x" * 129])
    def test_a_key_has_1_to_128_characters(self, server: Server, task: Task, key: str) -> None:
        attempt = task.attempt(server)
        responses = [attempt.intend(key), attempt.handle("h", key), attempt.outcome("Failed", key), attempt.job(key)]
        assert {code_of(response) for response in responses} == {(422, "key-invalid")}

    @pytest.mark.parametrize(
        "call, body, code",
        [
            ("POST intent", {}, (400, "invalid")),
            ("POST intent", {"submitter": "p", "adapter": "a", "digest": "d", "extra": 1}, (400, "invalid")),
            (
                "POST intent",
                {"submitter": "p", "adapter": "a", "digest": "d", "again": "Because"},
                (400, "invalid"),
            ),
            ("POST intent?x=1", {"submitter": "p", "adapter": "a", "digest": "d"}, (400, "invalid")),
            ("PUT handle", {"generation": 1, "submitter": "p"}, (400, "invalid")),
            (
                "PUT handle",
                {"generation": 1, "submitter": "p", "handle": "h", "origin": "Adopted"},
                (400, "invalid"),
            ),
            ("PUT outcome", {"generation": 1, "state": "Intended"}, (400, "invalid")),
            ("PUT outcome", {"generation": 1, "state": "Failed"}, (404, "job-not-found")),
            ("PUT intent", {}, (405, "method-not-allowed")),
            ("DELETE handle", None, (405, "method-not-allowed")),
        ],
    )
    def test_what_is_malformed_is_refused(
        self, server: Server, task: Task, call: str, body: Any, code: tuple[int, str]
    ) -> None:
        attempt, (method, path) = task.attempt(server), call.split(" ")
        assert code_of(attempt.client.request(method, f"{job_path_of('load')}/{path}", json=body)) == code

    def test_what_the_operator_and_a_person_said_counts_from_the_next_call_on(self, server: Server, task: Task) -> None:
        first = task.attempt(server)
        first.intend()
        second = task.attempt(server, 2)
        assert answer_of(second.intend())["unresolved"]["allEnded"] is False
        task.end_attempt(first)
        unresolved = answer_of(second.intend())["unresolved"]
        assert (unresolved["allEnded"], unresolved["attempts"]) == (True, [1])
        assert code_of(second.intend(again="Policy")) == (409, "grounds-refused")
        assert decision_of(second.intend(again="Absent")) == "Submit"

    def test_every_decision_is_counted_and_told_in_the_log_with_the_handle(
        self, servers: Servers, control_plane: ControlPlane, namespace: str
    ) -> None:
        server = servers.start()
        task = Task.create(control_plane, namespace, submission={"onUnknown": "Resubmit"})
        first = task.attempt(server)
        first.intend()
        second = task.attempt(server, 2)
        second.intend(again="Policy")
        second.handle("job-2")
        first.handle("job-1")
        second.intend("held")
        second.outcome("Unknown", "held", hold=True)
        second.outcome("Failed")
        second.intend()
        task.attempt(server, 3).intend("other")
        for decision in ("resubmitted", "held", "over"):
            assert f'reattach_job_decisions_total{{decision="{decision}"}} 1.0' in server.metrics
        lines = [line for line in server.log.splitlines() if "reattach.server.audit" in line]
        assert any("intent" in line and "decision=Submit" in line and "key='load'" in line for line in lines)
        assert any("handle" in line and "given='job-1'" in line and "handle='job-2'" in line for line in lines)
        assert any("outcome" in line and "holds=1" in line for line in lines)

    def test_each_way_in_which_a_handle_becomes_known_is_counted_as_that(
        self, servers: Servers, control_plane: ControlPlane, namespace: str
    ) -> None:
        server = servers.start()
        task = Task.create(control_plane, namespace, adopt=[{"key": "named", "handle": "job-5"}])
        first = task.attempt(server)
        for key in ("plain", "there", "seen", "late"):
            assert decision_of(first.intend(key)) == "Submit"
        for key, origin in (("plain", "Submitted"), ("there", "Existed"), ("seen", "Found")):
            assert first.handle(f"job-{key}", key, origin=origin).status_code == 204
        second = task.attempt(server, 2)
        assert first.handle("job-4", "late").status_code == 204
        for key in ("plain", "named"):
            assert decision_of(second.intend(key)) == "Reattach"
        for decision in ("submitted", "existed", "found", "reported", "reattached", "adopted"):
            assert f'reattach_job_decisions_total{{decision="{decision}"}} 1.0' in server.metrics, server.metrics


class TestOwner:
    """No job is left without a TaskRun that is kept for it."""

    def test_the_finalizer_is_there_before_the_first_intent_and_others_stay(self, server: Server, task: Task) -> None:
        task.patch(metadata={"finalizers": ["example.com/theirs"]})
        attempt = task.attempt(server)
        assert task.finalizers() == ["example.com/theirs"]
        attempt.intend()
        assert task.finalizers() == ["example.com/theirs", FINALIZER_EXTERNAL_JOBS]
        task.control_plane.call("DELETE", task.path)
        task.patch(metadata={"finalizers": [FINALIZER_EXTERNAL_JOBS]})
        assert task.control_plane.call("GET", task.path)["metadata"]["deletionTimestamp"]

    @pytest.mark.parametrize(
        "when", ["before PATCH /taskruns/load", "after PATCH /taskruns/load", "before PUT /configmaps"]
    )
    def test_killed_in_between_there_is_no_intent_without_it(
        self, servers: Servers, server: Server, task: Task, when: str
    ) -> None:
        attempt = task.attempt(server)
        dying = servers.start(program=(DYING,), DIE=when)
        call_until_killed(dying, lambda: attempt.on(dying).intend(request_id="r"))
        assert answer_of(attempt.jobs())["items"] == []
        assert task.finalizers() == ([] if when.startswith("before PATCH") else [FINALIZER_EXTERNAL_JOBS])
        assert decision_of(attempt.intend(request_id="r")) == "Submit"
        assert task.finalizers() == [FINALIZER_EXTERNAL_JOBS]

    @pytest.mark.parametrize("ending", ["deletion", "cancel", "outcome"])
    def test_a_taskrun_that_is_ending_gets_no_new_job(self, server: Server, task: Task, ending: str) -> None:
        attempt = task.attempt(server)
        match ending:
            case "deletion":
                task.patch(metadata={"finalizers": ["example.com/theirs"]})
                task.control_plane.call("DELETE", task.path)
            case "cancel":
                task.patch(spec={"cancel": True})
            case "outcome":
                task.control_plane.call("PATCH", f"{task.path}/status", {"status": {"outcome": "Failed"}})
        assert code_of(attempt.intend()) == (409, "closing")
        assert answer_of(attempt.jobs())["items"] == []
        assert FINALIZER_EXTERNAL_JOBS not in task.finalizers()

    def test_an_intent_that_races_the_deletion_is_refused_or_has_an_owner(
        self, server: Server, control_plane: ControlPlane, namespace: str
    ) -> None:
        seen = set()
        for number in range(12):
            task = Task.create(control_plane, namespace, f"load-{number}")
            task.patch(metadata={"finalizers": ["example.com/theirs"]})
            attempt = task.attempt(server)
            with ThreadPoolExecutor(2) as pool:
                intent = pool.submit(attempt.intend)
                deletion = pool.submit(control_plane.call, "DELETE", task.path)
                deletion.result()
                response = intent.result()
            has_owner = FINALIZER_EXTERNAL_JOBS in task.finalizers()
            if response.status_code == 200:
                assert has_owner
            else:
                assert code_of(response) == (409, "closing")
                assert answer_of(attempt.jobs())["items"] == []
            seen.add(response.status_code)
            task.patch(metadata={"finalizers": None})
        assert seen <= {200, 409}

    def test_a_handle_is_still_recorded_while_the_taskrun_is_being_deleted(self, server: Server, task: Task) -> None:
        attempt = task.attempt(server)
        attempt.intend()
        task.control_plane.call("DELETE", task.path)
        assert attempt.handle("job-1").status_code == 204
        assert attempt.outcome("NotFound", hold=True).status_code == 204
        assert task.view().jobs[0].handle == "job-1"


class TestOneSubmission:
    def test_of_50_intents_at_once_through_two_replicas_one_is_told_to_submit(
        self, servers: Servers, server: Server, task: Task
    ) -> None:
        attempt = task.attempt(server)
        on = replicas_of(servers, server, attempt)
        callers = [on(number) for number in range(50)]
        for number, caller in enumerate(callers):
            caller.submitter = f"process-{number}"
        with ThreadPoolExecutor(50) as pool:
            decisions = list(pool.map(lambda caller: decision_of(asked(caller.intend)), callers))
        assert sorted(set(decisions)) == ["Resolve", "Submit"]
        assert decisions.count("Submit") == 1
        assert len(task.view().jobs) == 1

    def test_what_one_replica_stored_the_other_knows(self, servers: Servers, server: Server, task: Task) -> None:
        on = replicas_of(servers, server, task.attempt(server))
        for number in range(8):
            assert decision_of(on(number).intend(f"k{number}")) == "Submit"
            assert decision_of(on(number + 1).intend(f"k{number}")) == "Resolve"
            assert on(number + 1).handle(f"job-{number}", f"k{number}").status_code == 204
            assert decision_of(on(number).intend(f"k{number}")) == "Reattach"

    def test_a_lost_answer_asked_for_again_is_told_to_submit_and_nobody_else_is(
        self, servers: Servers, server: Server, task: Task
    ) -> None:
        attempt = task.attempt(server)
        dying = servers.start(program=(DYING,), DIE="after PUT /configmaps")
        call_until_killed(dying, lambda: attempt.on(dying).intend(request_id="r-1"))
        assert decision_of(attempt.intend(request_id="r-2")) == "Resolve"
        since = task.control_plane.audit_mark()
        assert decision_of(attempt.intend(request_id="r-1")) == "Submit"
        writes = [event for event in task.control_plane.audit(since, user=server.user) if event["verb"] != "get"]
        assert writes == []
        attempt.handle("job-1")
        assert decision_of(attempt.intend(request_id="r-1")) == "Reattach"

    def test_a_lost_outcome_asked_for_again_is_held_once(self, servers: Servers, server: Server, task: Task) -> None:
        attempt = task.attempt(server)
        attempt.intend()
        dying = servers.start(program=(DYING,), DIE="after PUT /configmaps")
        call_until_killed(dying, lambda: attempt.on(dying).outcome("Unknown", hold=True, request_id="r"))
        assert attempt.outcome("Unknown", hold=True, request_id="r").status_code == 204
        assert task.view().jobs[0].holds == 1

    def test_another_request_under_the_key_is_refused(self, server: Server, task: Task) -> None:
        attempt = task.attempt(server)
        attempt.intend()
        assert code_of(attempt.intend(digest="other")) == (409, "digest-changed")
        attempt.handle("job-1")
        assert code_of(attempt.intend(adapter="other")) == (409, "digest-changed")

    def test_a_job_is_submitted_anew_as_another_generation_once_it_is_over(self, server: Server, task: Task) -> None:
        attempt = task.attempt(server)
        tokens = {answer_of(attempt.intend())["job"]["token"]}
        assert code_of(attempt.intend(newGeneration=True)) == (409, "job-open")
        attempt.handle("job-1")
        attempt.outcome("Failed", message="no disk")
        assert decision_of(attempt.intend()) == "Over"
        task.end_attempt(attempt, charged="application")
        second = task.attempt(server, 2)
        answer = answer_of(second.intend())
        assert (answer["decision"], answer["job"]["generation"]) == ("Submit", 2)
        assert answer["job"]["token"] not in tokens
        assert second.handle("job-2", generation=2).status_code == 204
        jobs = answer_of(second.jobs())["items"]
        assert [(job["generation"], job["state"], job["handle"]) for job in jobs] == [
            (1, "Failed", "job-1"),
            (2, "Active", "job-2"),
        ]
        assert answer_of(second.job())["generation"] == 2
        assert answer_of(second.job(generation=1))["message"] == "no disk"
        assert code_of(second.job(generation=3)) == (404, "job-not-found")

    def test_a_job_that_runs_already_is_adopted(
        self, server: Server, control_plane: ControlPlane, namespace: str
    ) -> None:
        task = Task.create(control_plane, namespace, adopt=[{"key": "load", "handle": "job-9"}])
        answer = answer_of(task.attempt(server).intend())
        assert (answer["decision"], answer["job"]["handle"], answer["job"]["origin"]) == (
            "Reattach",
            "job-9",
            "Adopted",
        )
        assert task.finalizers() == [FINALIZER_EXTERNAL_JOBS]

    def test_two_taskruns_with_one_idempotency_key_submit_under_one_token(
        self, server: Server, control_plane: ControlPlane, namespace: str
    ) -> None:
        tasks = [
            Task.create(control_plane, namespace, name, submission={"idempotencyKey": "night"}) for name in ("a", "b")
        ]
        assert len({answer_of(task.attempt(server).intend())["job"]["token"] for task in tasks}) == 1


class TestEvidence:
    def test_a_fenced_attempt_reports_the_handle_of_its_own_intent(self, server: Server, task: Task) -> None:
        old = task.attempt(server)
        old.intend()
        new = task.attempt(server, 2)
        assert decision_of(new.intend()) == "Resolve"
        assert old.handle("job-1").status_code == 204
        answer = answer_of(new.intend())
        assert (answer["decision"], answer["job"]["handle"], answer["job"]["origin"]) == (
            "Reattach",
            "job-1",
            "Reported",
        )
        counts = task.view().counts
        assert (counts.reattachments, counts.duplicates_averted) == (1, 1)

    def test_it_may_do_nothing_else_and_report_nothing_of_others(self, server: Server, task: Task) -> None:
        old = task.attempt(server)
        old.intend()
        new = task.attempt(server, 2)
        new.intend("other")
        refused = [old.intend(), old.job(), old.jobs(), old.outcome("Failed"), old.handle("h", "other"), old.open()]
        assert {code_of(response) for response in refused} == {(409, "fenced")}
        old.submitter = new.submitter
        assert code_of(old.handle("h", "other")) == (409, "fenced")
        assert code_of(old.handle("h")) == (409, "fenced")

    def test_a_handle_that_is_refused_is_named_in_the_log(self, server: Server, task: Task) -> None:
        attempt = task.attempt(server)
        assert code_of(attempt.handle("job-nobody-knows")) == (404, "job-not-found")
        assert "given='job-nobody-knows' key='load' generation=1 refused=job-not-found" in server.log

    def test_a_second_handle_is_a_stray_that_is_named(self, server: Server, task: Task) -> None:
        old = task.attempt(server)
        old.intend()
        new = task.attempt(server, 2)
        new.intend(again="ClientName")
        assert new.handle("job-2").status_code == 204
        assert code_of(old.handle("job-1")) == (409, "handle-differs")
        assert code_of(old.handle("job-1")) == (409, "handle-differs")
        (job,) = task.view().jobs
        assert (job.handle, job.strays) == ("job-2", ("job-1",))
        assert "handle-differs" in server.log


class TestHeld:
    def with_resolution(self, server: Server, task: Task, **answer: Any) -> tuple[Attempt, dict[str, Any]]:
        """A third attempt's intent, after the second was held and a person has answered."""
        first = task.attempt(server)
        first.intend()
        second = task.attempt(server, 2)
        assert second.outcome("Unknown", hold=True, message="nobody knows").status_code == 204
        assert answer_of(second.job())["held"] is True
        third = task.attempt(server, 3)
        waiting = answer_of(third.intend())
        assert (waiting["decision"], waiting["job"]["holds"]) == ("Resolve", 1)
        task.patch(spec={"resolutions": [{"held": "SubmissionUnknown", "key": "load", "generation": 1, **answer}]})
        return third, answer_of(third.intend())

    def test_adopt(self, server: Server, task: Task) -> None:
        _, answer = self.with_resolution(server, task, action="Adopt", handle="job-5")
        assert (answer["decision"], answer["job"]["handle"], answer["job"]["origin"]) == (
            "Reattach",
            "job-5",
            "Adopted",
        )
        assert answer["job"]["held"] is False

    def test_resubmit_and_an_answer_is_used_once(self, server: Server, task: Task) -> None:
        third, answer = self.with_resolution(server, task, action="Resubmit")
        assert (answer["decision"], answer["job"]["generation"]) == ("Submit", 1)
        third.outcome("Unknown", hold=True)
        again = answer_of(task.attempt(server, 4).intend())
        assert (again["decision"], again["job"]["holds"]) == ("Resolve", 2)

    def test_fail(self, server: Server, task: Task) -> None:
        _, answer = self.with_resolution(server, task, action="Fail")
        assert (answer["decision"], answer["job"]["state"]) == ("Over", "Failed")


class TestComplete:
    def test_an_open_job_hinders_it(self, server: Server, task: Task) -> None:
        attempt = task.attempt(server)
        attempt.intend("region/a")
        refused = attempt.complete(result=1)
        assert code_of(refused) == (409, "jobs-open")
        assert "'region/a' (generation 1, Intended)" in refused.json()["detail"]
        attempt.handle("job-1", "region/a")
        assert code_of(attempt.complete(result=1)) == (409, "jobs-open")
        attempt.outcome("Succeeded", "region/a")
        assert attempt.complete(result=1).status_code == 204

    def test_a_detached_job_runs_on(self, server: Server, task: Task) -> None:
        attempt = task.attempt(server)
        attempt.intend(detached=True)
        assert code_of(attempt.complete()) == (409, "jobs-open")  # not even submitted
        attempt.handle("job-1")
        assert attempt.complete().status_code == 204
        assert task.view().jobs[0].state is JobState.DETACHED
        assert code_of(attempt.intend("another")) == (409, "completed")


class TestSeal:
    def test_it_is_put_on_a_state_that_was_never_opened(self, server: Server, task: Task) -> None:
        task.seal(1, SealPurpose.END)
        configmap = task.configmap()
        assert task.status()["state"] == {
            "configMap": configmap["metadata"]["name"],
            "uid": configmap["metadata"]["uid"],
        }
        assert configmap["metadata"]["finalizers"] == ["reattach.dev/state"]
        for number in (1, 2):
            assert code_of(task.attempt(server, number, opened=False).open()) == (409, "closing")
        assert task.view().seal == Seal(through_attempt=1, purpose=SealPurpose.END)

    def test_the_session_that_is_open_reads_writes_and_records_but_begins_nothing(
        self, server: Server, task: Task
    ) -> None:
        attempt = task.attempt(server)
        attempt.intend()
        task.seal(1, SealPurpose.END)
        assert attempt.set("k", 1).status_code == 200
        assert attempt.get("k").json()["value"] == 1
        assert attempt.handle("job-1").status_code == 204
        assert attempt.outcome("Active").status_code == 204
        refused = [attempt.intend(), attempt.intend("other"), attempt.open(), attempt.another_process().open()]
        assert {code_of(response) for response in refused} == {(409, "closing")}

    def test_after_a_suspension_the_next_attempt_goes_on(self, server: Server, task: Task) -> None:
        first = task.attempt(server)
        first.intend()
        first.handle("job-1")
        task.seal(1, SealPurpose.SUSPEND)
        assert decision_of(task.attempt(server, 2).intend()) == "Reattach"

    def test_asked_again_it_writes_nothing_and_it_never_shrinks(self, server: Server, task: Task) -> None:
        task.attempt(server)
        task.seal(3, SealPurpose.END)
        version = task.configmap()["metadata"]["resourceVersion"]
        for through, purpose in [(3, SealPurpose.END), (2, SealPurpose.SUSPEND), (1, SealPurpose.END)]:
            task.seal(through, purpose)
        assert task.configmap()["metadata"]["resourceVersion"] == version

    def test_what_is_lost_is_not_made_anew(self, server: Server, task: Task) -> None:
        task.attempt(server)
        task.force_away_configmap()
        with pytest.raises(RequestRejectedError) as refused:
            task.seal(1, SealPurpose.END)
        assert refused.value.code is ProblemCode.STATE_LOST
        with pytest.raises(ControlPlaneError, match="404"):
            task.configmap()

    def test_a_taskrun_that_is_gone_has_nothing_to_seal(self, task: Task) -> None:
        task.control_plane.call("DELETE", task.path)
        with pytest.raises(RequestRejectedError) as refused:
            task.seal(1, SealPurpose.END)
        assert refused.value.code is ProblemCode.CLOSING

    def test_one_that_is_being_deleted_is_sealed(self, task: Task) -> None:
        task.patch(metadata={"finalizers": ["example.com/theirs"]})
        task.control_plane.call("DELETE", task.path)
        task.seal(1, SealPurpose.END)
        assert task.view().seal is not None
        assert task.status()["state"]["uid"] == task.view().uid
        task.patch(metadata={"finalizers": None})

    def test_an_intent_that_races_the_seal_is_in_the_state_or_refused(
        self, server: Server, control_plane: ControlPlane, namespace: str
    ) -> None:
        for number in range(12):
            task = Task.create(control_plane, namespace, f"load-{number}")
            attempt = task.attempt(server)
            with ThreadPoolExecutor(5) as pool:
                intents = [pool.submit(attempt.on(server).intend, f"k{key}") for key in range(4)]
                pool.submit(task.seal, 1, SealPurpose.END).result()
                # What the operator reads now is all there will ever be.
                seen = {job.key for job in task.view().jobs}
                stored = {f"k{key}" for key, intent in enumerate(intents) if intent.result().status_code == 200}
            assert stored == seen == {job.key for job in task.view().jobs}
            refused = {code_of(intent.result()) for intent in intents if intent.result().status_code != 200}
            assert refused <= {(409, "closing")}

    def test_a_first_open_that_races_the_seal_agrees_with_it_on_one_state(
        self, server: Server, control_plane: ControlPlane, namespace: str
    ) -> None:
        for number in range(8):
            task = Task.create(control_plane, namespace, f"load-{number}")
            attempt = task.attempt(server, opened=False)
            with ThreadPoolExecutor(2) as pool:
                opening = pool.submit(attempt.open)
                pool.submit(task.seal, 1, SealPurpose.END).result()
            assert task.status()["state"]["uid"] == task.configmap()["metadata"]["uid"]
            assert task.view().seal is not None
            assert (task.view().epoch is not None) is (opening.result().status_code == 200)


class TestDamage:
    @pytest.mark.parametrize("damage", [{"job.1.load": None}, {"job.1.load": "{}"}, {"counts": None}, {"seal": "{"}])
    def test_a_job_that_cannot_be_read_is_never_called_absent(
        self, server: Server, task: Task, damage: dict[str, Any]
    ) -> None:
        attempt = task.attempt(server)
        attempt.intend()
        task.patch_configmap(data=damage)
        responses = [*attempt.every_call(), attempt.open(), task.attempt(server, 2, opened=False).open()]
        assert {code_of(response) for response in responses} == {(503, "format-unknown")}

    def test_delete_and_clear_do_not_reach_jobs(self, server: Server, task: Task) -> None:
        attempt = task.attempt(server)
        attempt.intend()
        attempt.clear()
        attempt.delete("load")
        assert decision_of(attempt.intend()) == "Resolve"

    def test_a_lost_state_is_told_so(self, server: Server, task: Task) -> None:
        attempt = task.attempt(server)
        attempt.intend()
        task.force_away_configmap()
        assert code_of(attempt.intend()) == (409, "state-lost")


# It is a megabyte, which takes milliseconds to send; ordinary states are a thousandth of that.
@pytest.mark.filterwarnings("ignore:Sending a large body directly:ResourceWarning")
@pytest.mark.parametrize("key_characters", [0, 240], ids=["short keys", "long keys"])
def test_a_state_filled_to_the_brim_is_stored_and_read(server: Server, task: Task, key_characters: int) -> None:
    attempt = task.attempt(server)
    full = brim(key_characters=key_characters)
    run = RunReference(namespace=task.namespace, name=task.name, uid=task.uid)

    async def fill_and_read() -> DurableState:
        async with await Cluster.connect(str(task.control_plane.kubeconfig())) as cluster:
            store = Store(cluster)
            await store.change(run, lambda _: (full, None))
            # Once more, by another writer: each has its own list of all fields in the object's metadata.
            store = Store(cluster, field_manager="reattach.dev/operator")
            counts = msgspec.structs.replace(full.counts, reattachments=10**6)
            await store.change(run, lambda state: (msgspec.structs.replace(state, counts=counts), None))
            return await store.read(run)

    state = asyncio.run(fill_and_read())
    assert (state.jobs, state.records, state.requests) == (full.jobs, full.records, full.requests)
    assert len(task.view().jobs) == len(full.jobs)
    assert code_of(attempt.get("k")) == (409, "fenced")


class TestCosts:
    READ = (("get", "taskruns"), ("get", "configmaps"))
    WRITE = (("update", "configmaps"),)

    @pytest.mark.parametrize(
        "call, cost",
        [
            (lambda attempt: attempt.intend("new"), [*READ, *WRITE]),
            (lambda attempt: attempt.intend("intended"), READ),
            (lambda attempt: attempt.intend("active"), READ),
            (lambda attempt: attempt.intend("over"), READ),
            (lambda attempt: attempt.handle("h", "intended"), [("get", "configmaps"), *WRITE]),
            (lambda attempt: attempt.handle("job", "active"), [("get", "configmaps")]),
            (lambda attempt: attempt.outcome("Succeeded", "active"), [("get", "configmaps"), *WRITE]),
            (lambda attempt: attempt.outcome("Active", "active"), [("get", "configmaps")]),
            (lambda attempt: attempt.outcome("Unknown", "intended", hold=True), [*READ, *WRITE]),
            (lambda attempt: attempt.job("active"), [("get", "configmaps")]),
            (lambda attempt: attempt.jobs(), [("get", "configmaps")]),
            (lambda attempt: attempt.set("k", 1, request_id="r"), [("get", "configmaps"), *WRITE]),
        ],
        ids=[
            "intent",
            "intent again",
            "intent of what runs",
            "intent of what is over",
            "handle",
            "handle again",
            "outcome",
            "outcome that is known",
            "hold",
            "get",
            "list",
            "set",
        ],
    )
    def test_an_intent_costs_two_reads_and_one_write_and_everything_else_no_more_than_before(
        self, control_plane: ControlPlane, server: Server, task: Task, call: Any, cost: list[tuple[str, str]]
    ) -> None:
        attempt = task.attempt(server)
        for key in ("intended", "active", "over"):
            attempt.intend(key)
        attempt.handle("job", "active")
        attempt.outcome("Failed", "over")
        since = control_plane.audit_mark()
        assert call(attempt).status_code < 300
        events = control_plane.audit(since, user=server.user)
        assert [(event["verb"], event["objectRef"]["resource"]) for event in events] == list(cost)

    def test_the_first_one_costs_one_patch_of_the_taskrun_more(
        self, control_plane: ControlPlane, server: Server, task: Task
    ) -> None:
        attempt = task.attempt(server)
        since = control_plane.audit_mark()
        attempt.intend()
        events = control_plane.audit(since, user=server.user)
        assert [(event["verb"], event["objectRef"]["resource"]) for event in events] == [
            *self.READ,
            ("patch", "taskruns"),
            *self.WRITE,
        ]
