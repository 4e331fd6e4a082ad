"""`explain`, `resolve`, `release` and `wait` by people with rights of their own, against the real API server and state API."""

import secrets
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from cli_session import CliUser
from controlplane import ControlPlane
from reattach.api.names import FINALIZER_ATTEMPT, FINALIZER_EXTERNAL_JOBS, FINALIZER_STATE
from reattach.cli.errors import CommandError
from reattach.cluster.paths import pods, taskruns
from stateapi import Attempt, Server, Task
from tcp_relay import Relay
from waiting import wait_until

WriteStatus = Callable[..., None]
TIME = "2026-03-01T12:00:00Z"


def condition(
    kind: str, reason: str, status: str = "Unknown", message: str = "Reported by the operator."
) -> dict[str, Any]:
    return {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": TIME}


def held(reason: str = "SubmissionUnknown") -> list[dict[str, Any]]:
    return [condition("Succeeded", reason), condition("Held", reason, "True")]


def ended(outcome: str, reason: str) -> dict[str, Any]:
    return {
        "outcome": outcome,
        "conditions": [condition("Succeeded", reason, "True" if outcome == "Succeeded" else "False")],
    }


def intend(attempt: Attempt, key: str = "load") -> str:
    """Store an intent; the answer is the submitter."""
    submitter = str(uuid.uuid4())
    body = {"submitter": submitter, "adapter": "http", "digest": "d"}
    answer = attempt.client.post(f"/v1/jobs/{key}/intent", json=body)
    assert answer.json()["decision"] == "Submit", answer.text
    return submitter


def record(attempt: Attempt, submitter: str, handle: str, key: str = "load") -> None:
    body = {"generation": 1, "submitter": submitter, "handle": handle}
    assert attempt.client.put(f"/v1/jobs/{key}/handle", json=body).status_code == 204


def hold(attempt: Attempt, key: str = "load") -> None:
    body = {"generation": 1, "state": "Unknown", "hold": True, "message": "nobody can tell"}
    answer = attempt.client.put(f"/v1/jobs/{key}/outcome", json=body)
    assert answer.status_code == 204, answer.text


def fail(attempt: Attempt, key: str = "load", **fields: Any) -> None:
    body = {"generation": 1, "state": "Failed", "message": "It did not work.", **fields}
    answer = attempt.client.put(f"/v1/jobs/{key}/outcome", json=body)
    assert answer.status_code == 204, answer.text


def give_up(attempt: Attempt) -> None:
    fail(attempt, givenUp=True)


@pytest.fixture
def held_task(server: Server, task: Task, write_status: WriteStatus) -> Task:
    """Its task asked for a person, and the operator has said so."""
    attempt = task.attempt(server)
    intend(attempt)
    hold(attempt)
    write_status(conditions=held(), counts={"attempts": 1})
    return task


def resolutions(task: Task) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = task.control_plane.call("GET", taskruns(task.namespace, task.name))["spec"].get(
        "resolutions", []
    )
    return found


class TestExplain:
    def test_viewer_sees_the_whole_report(self, viewer: CliUser, held_task: Task) -> None:
        result = viewer("explain", "load")
        assert result.code == 0, result.err
        assert result.out.startswith("load is held: waiting for a resolution.\n")
        assert (
            f"kubectl reattach resolve load -n {held_task.namespace} --key load --generation 1 --adopt HANDLE"
            in result.out
        )
        assert "nobody can tell" in result.out
        assert "\x1b" not in result.out
        assert "could not be read" not in result.out

    def test_output_option_prints_json_or_yaml(self, viewer: CliUser, held_task: Task) -> None:
        as_json, as_yaml = viewer("explain", "load", "-o", "json").json, viewer("explain", "load", "-o", "yaml").yaml
        assert as_json == as_yaml
        assert as_json["reason"] == "SubmissionUnknown"
        assert as_json["holds"] == [
            {"held": "SubmissionUnknown", "key": "load", "generation": 1, "message": "nobody can tell"}
        ]
        assert as_json["externalJobs"][0]["state"] == "Intended"
        assert held_task.uid == as_json["uid"]

    def test_parts_without_read_permission_are_listed(self, control_plane: ControlPlane, held_task: Task) -> None:
        user = f"only-taskruns-{secrets.token_hex(3)}"
        rbac = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{held_task.namespace}"
        rule = {"apiGroups": ["reattach.dev"], "resources": ["taskruns"], "verbs": ["get", "list"]}
        subject = {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": user}
        control_plane.call("POST", f"{rbac}/roles", {"metadata": {"name": user}, "rules": [rule]})
        control_plane.call(
            "POST", f"{rbac}/rolebindings", {"metadata": {"name": user}, "roleRef": role, "subjects": [subject]}
        )
        cli_user = CliUser(control_plane, held_task.namespace, user)
        result = cli_user("explain", "load")
        assert result.code == 0
        assert f"The state: {user} lacks the right to get configmaps in namespace {held_task.namespace}" in result.out
        assert f"The pods: {user} lacks the right to list pods" in result.out
        assert f"The events: {user} lacks the right to list events" in result.out

    def test_unknown_name_is_refused_with_similar_names(self, viewer: CliUser, task: Task) -> None:
        result = viewer("explain", "laod")
        assert (result.code, result.out) == (1, "")
        assert result.err == f"error: There is no TaskRun 'laod' in namespace {task.namespace}. Did you mean load?\n"

    def test_user_without_rights_gets_the_missing_right(self, control_plane: ControlPlane, task: Task) -> None:
        result = CliUser(control_plane, task.namespace, "nobody")("explain", "load")
        assert result.code == 1
        assert result.err == (
            f"error: nobody lacks the right to get taskruns.reattach.dev in namespace {task.namespace}; "
            'the ClusterRole "view" has it; ask the administrator of the namespace.\n'
        )

    def test_run_with_a_lost_state_has_its_commands(
        self, viewer: CliUser, server: Server, task: Task, write_status: WriteStatus
    ) -> None:
        task.attempt(server)
        task.force_away_configmap()
        write_status(conditions=held("StateLost"))
        result = viewer("explain", "load")
        assert "--start-empty" in result.out
        assert "The state of load was deleted by force." in result.out


class TestResolve:
    @pytest.mark.parametrize(
        "flags, action, says",
        [
            (["--adopt", "job-7"], {"action": "Adopt", "handle": "job-7"}, "job-7 is the job that was submitted."),
            (["--resubmit"], {"action": "Resubmit"}, "The next attempt submits the job again"),
            (["--fail"], {"action": "Fail"}, "load ends as Failed"),
        ],
        ids=["adopt", "resubmit", "fail"],
    )
    def test_each_resolution_is_stored_and_its_consequence_printed(
        self, editor: CliUser, held_task: Task, flags: list[str], action: dict[str, str], says: str
    ) -> None:
        result = editor("resolve", "load", *flags)
        assert result.code == 0, result.err
        assert resolutions(held_task) == [{"held": "SubmissionUnknown", "key": "load", "generation": 1, **action}]
        assert says in result.out

    def test_second_resolution_of_a_hold_is_refused(self, editor: CliUser, held_task: Task) -> None:
        assert editor("resolve", "load", "--resubmit").code == 0
        result = editor("resolve", "load", "--fail")
        assert (result.code, result.err) == (
            1,
            "error: load already has a resolution (Resubmit), which the operator applies.\n",
        )
        assert len(resolutions(held_task)) == 1

    def test_state_api_applies_the_resolution(self, editor: CliUser, server: Server, held_task: Task) -> None:
        """From the command to what the next attempt is told."""
        assert editor("resolve", "load", "--adopt", "job-7", "-o", "json").json["number"] == 1
        second = held_task.attempt(server, 2)
        body = {"submitter": "s2", "adapter": "http", "digest": "d"}
        answer = second.client.post("/v1/jobs/load/intent", json=body).json()
        assert (answer["decision"], answer["job"]["handle"]) == ("Reattach", "job-7")

    def test_lost_state_can_be_resolved(
        self, editor: CliUser, server: Server, task: Task, write_status: WriteStatus
    ) -> None:
        task.attempt(server)
        task.force_away_configmap()
        write_status(conditions=held("StateLost"))
        assert editor("resolve", "load", "--start-empty").code == 0
        assert resolutions(task) == [{"held": "StateLost", "action": "StartEmpty"}]

    def test_exhausted_budget_can_be_resolved(
        self, editor: CliUser, server: Server, task: Task, write_status: WriteStatus
    ) -> None:
        attempt = task.attempt(server)
        record(attempt, intend(attempt), "job-7")
        charged = {"application": 0, "disruption": 21, "neverStarted": 0, "cleanup": 0}
        write_status(conditions=held("BudgetExhausted"), counts={"attempts": 21, "charged": charged})
        assert editor("resolve", "load", "--continue").code == 0
        assert resolutions(task) == [{"held": "BudgetExhausted", "action": "Continue"}]

    def test_resolve_without_a_hold_is_refused(self, editor: CliUser, task: Task) -> None:
        result = editor("resolve", "load", "--resubmit")
        assert (result.code, result.err) == (1, "error: load is not held, so it takes no resolution.\n")
        assert resolutions(task) == []

    def test_a_viewer_is_told_the_missing_right(self, viewer: CliUser, held_task: Task) -> None:
        result = viewer("resolve", "load", "--resubmit")
        assert result.code == 1
        assert result.err.startswith(f"error: {viewer.user} lacks the right to patch taskruns.reattach.dev")
        assert resolutions(held_task) == []

    def test_resolve_needs_exactly_one_action(self, editor: CliUser, held_task: Task) -> None:
        for flags in ([], ["--fail", "--resubmit"]):
            result = editor("resolve", "load", *flags)
            assert result.code == 2
            assert "Give exactly one of" in result.err
        assert resolutions(held_task) == []

    def test_resolve_that_conflicts_checks_the_hold_again(
        self, editor: CliUser, held_task: Task, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Between the look and the write another person answers: one answer is stored, and the second one hears of it."""
        from reattach.cluster import Cluster

        original, raced = Cluster.merge_patch, []

        async def late(self: Cluster, path: str, body: Any, **query: Any) -> bytes:
            if not raced:
                raced.append(path)
                answer = {"held": "SubmissionUnknown", "key": "load", "generation": 1, "action": "Fail"}
                held_task.control_plane.call("PATCH", path, {"spec": {"resolutions": [answer]}})
            return await original(self, path, body, **query)

        monkeypatch.setattr(Cluster, "merge_patch", late)
        result = editor("resolve", "load", "--resubmit")
        assert (result.code, result.err) == (
            1,
            "error: load already has a resolution (Fail), which the operator applies.\n",
        )
        assert [one["action"] for one in resolutions(held_task)] == ["Fail"]


class TestRelease:
    @pytest.fixture
    def stuck(self, control_plane: ControlPlane, server: Server, task: Task) -> Task:
        """Deleted, with a job that runs, and nobody who takes the finalizers off."""
        attempt = task.attempt(server)
        record(attempt, intend(attempt), "job-7")
        pod = pods(task.namespace, attempt.pod["metadata"]["name"])
        control_plane.call("PATCH", pod, {"metadata": {"finalizers": [FINALIZER_ATTEMPT, "example.com/other"]}})
        control_plane.call("DELETE", taskruns(task.namespace, task.name))
        return task

    def test_release_removes_our_finalizers_and_lists_every_job(
        self, editor: CliUser, control_plane: ControlPlane, stuck: Task
    ) -> None:
        result = editor("release", "load", "--yes")
        assert result.code == 0, result.err
        assert "load, generation 1: job-7 (Active)" in result.out
        assert result.out.endswith("load was released.\n")
        assert editor("explain", "load").err.startswith("error: There is no TaskRun 'load'")
        [pod] = control_plane.call("GET", pods(stuck.namespace))["items"]
        assert pod["metadata"]["finalizers"] == ["example.com/other"]
        control_plane.call("PATCH", pods(stuck.namespace, pod["metadata"]["name"]), {"metadata": {"finalizers": None}})

    def test_a_job_that_was_given_up_is_named(self, editor: CliUser, server: Server, task: Task) -> None:
        """It has failed by `onUnknown: Fail`, and may run."""
        attempt = task.attempt(server)
        intend(attempt)
        give_up(attempt)
        record(attempt, intend(attempt, "other"), "job-7", "other")
        fail(attempt, "other")
        task.control_plane.call("DELETE", taskruns(task.namespace, task.name))
        result = editor("release", "load", "--yes")
        assert result.code == 0, result.err
        assert result.out.splitlines()[1:] == [
            "External jobs that may still run, and that nothing tracks then:",
            "  load, generation 1: handle not known (GivenUp)",
            "load was released.",
        ]

    @pytest.mark.parametrize(
        "policy, named", [({"onNotFound": "Fail"}, ["Failed, or given up"]), ({}, [])], ids=["may be", "can't be"]
    )
    def test_without_the_state_every_job_that_may_have_been_given_up_is_named(
        self, editor: CliUser, server: Server, policy: dict[str, str], named: list[str]
    ) -> None:
        control_plane, namespace = editor.control_plane, editor.namespace
        task = Task.create(control_plane, namespace, "given", submission=policy)
        attempt = task.attempt(server)
        intend(attempt)
        task.force_away_configmap()
        jobs = [
            {"key": "load", "generation": 1, "state": "Failed"},
            {"key": "x", "generation": 1, "state": "Succeeded"},
        ]
        control_plane.call("PATCH", taskruns(namespace, "given", "status"), {"status": {"externalJobs": jobs}})
        control_plane.call("DELETE", taskruns(namespace, "given"))
        result = editor("release", "given", "--yes", "-o", "json").json
        assert [job["state"] for job in result["jobs"]] == named
        assert result["notes"] == ["The state of given was deleted by force."]

    def test_release_lists_the_jobs_of_a_lost_state_beside_those_of_the_new_one(
        self, editor: CliUser, server: Server, task: Task, write_status: WriteStatus
    ) -> None:
        attempt = task.attempt(server)
        record(attempt, intend(attempt), "job-7")
        write_status(externalJobs=[{"key": "old", "generation": 1, "state": "Orphaned", "handle": "job-1"}])
        task.control_plane.call("DELETE", taskruns(task.namespace, task.name))
        result = editor("release", "load", "--yes", "-o", "json").json
        assert [(job["handle"], job["state"]) for job in result["jobs"]] == [("job-7", "Active"), ("job-1", "Orphaned")]

    def test_release_without_a_terminal_needs_yes(self, editor: CliUser, stuck: Task) -> None:
        result = editor("release", "load")
        assert result.code == 1
        assert "job-7" in result.err
        assert result.err.endswith(
            "error: No finalizer was removed, because there is no terminal to confirm on; repeat with --yes.\n"
        )
        finalizers = stuck.control_plane.call("GET", taskruns(stuck.namespace, "load"))["metadata"]["finalizers"]
        assert finalizers == [FINALIZER_EXTERNAL_JOBS]
        assert editor("release", "load", "--yes").code == 0

    def test_release_of_a_running_taskrun_needs_force(self, editor: CliUser, server: Server, task: Task) -> None:
        attempt = task.attempt(server)
        record(attempt, intend(attempt), "job-7")
        result = editor("release", "load", "--yes")
        assert result.code == 1
        assert "neither being deleted nor cancelled nor held" in result.err
        assert editor("release", "load", "--yes", "--force", "-o", "json").json["jobs"] == [
            {"key": "load", "generation": 1, "state": "Active", "handle": "job-7"}
        ]
        assert task.configmap()["metadata"].get("finalizers", []) == []

    def test_release_of_a_taskrun_that_can_not_be_decoded_is_refused(
        self, editor: CliUser, server: Server, task: Task, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        attempt = task.attempt(server)
        record(attempt, intend(attempt), "job-7")

        def refuse(_: bytes) -> None:
            raise CommandError("This version can't read the TaskRun.")

        monkeypatch.setattr("reattach.cli.queries.to_taskrun", refuse)
        result = editor("release", "load", "--yes")
        assert (result.code, result.err) == (1, "error: This version can't read the TaskRun.\n")
        assert task.configmap()["metadata"]["finalizers"] == [FINALIZER_STATE]

    def test_release_of_a_deleted_taskrun_releases_its_pods_and_state(
        self, editor: CliUser, control_plane: ControlPlane, server: Server, task: Task
    ) -> None:
        attempt = task.attempt(server)
        record(attempt, intend(attempt), "job-7")
        path = taskruns(task.namespace, task.name)
        control_plane.call("PATCH", path, {"metadata": {"finalizers": None}})
        control_plane.call("DELETE", path, {"propagationPolicy": "Orphan"})
        wait_until(
            lambda: "There is no TaskRun" in editor("explain", "load").err, seconds=120, what="the TaskRun is gone"
        )
        assert task.configmap()["metadata"]["finalizers"] == [FINALIZER_STATE]
        result = editor("release", "load", "--yes")
        assert result.code == 0, result.err
        assert "job-7" in result.out
        assert task.configmap()["metadata"].get("finalizers", []) == []

    def test_release_without_finalizers_is_refused(self, editor: CliUser, task: Task) -> None:
        task.control_plane.call("PATCH", taskruns(task.namespace, "load"), {"spec": {"cancel": True}})
        result = editor("release", "load", "--yes")
        assert (result.code, result.err) == (
            1,
            "error: load, its pods and its state have no finalizer of Reattach, so nothing keeps them.\n",
        )


class TestWait:
    @pytest.mark.parametrize("outcome, code", [("Succeeded", 0), ("Failed", 3), ("Cancelled", 4)])
    def test_wait_exits_with_a_code_for_each_outcome(
        self, viewer: CliUser, write_status: WriteStatus, outcome: str, code: int
    ) -> None:
        waiting = viewer.in_background("wait", "load", "--timeout", "120s")
        also = viewer.in_background("wait", "load", "--timeout", "120s", "--for", "outcome")
        write_status(**ended(outcome, "TestReason"))
        result = waiting.wait()
        assert result.code == code, result.err
        assert f"load ended as {outcome} (TestReason): Reported by the operator." in result.out + result.err
        assert also.wait().code == 0

    def test_wait_ends_when_the_run_is_held(self, viewer: CliUser, task: Task, write_status: WriteStatus) -> None:
        through = viewer.in_background("wait", task.name, "--for", "outcome", "--timeout", "120s")
        write_status(conditions=held("StateLost"))
        result = viewer("wait", task.name)
        assert result.code == 5
        assert result.err == "load is held for StateLost; kubectl reattach explain load shows how to resolve it.\n"
        through.wait_for("load is held for StateLost")
        write_status(**ended("Failed", "FailedByResolution"))
        assert through.wait().code == 0

    def test_wait_exits_with_6_at_the_timeout(self, viewer: CliUser, task: Task) -> None:
        result = viewer("wait", task.name, "--timeout", "0.2", "-o", "json")
        assert (result.code, result.json["exitCode"]) == (6, 6)

    def test_wait_with_timeout_0_reads_the_taskrun_once(self, viewer: CliUser, write_status: WriteStatus) -> None:
        assert viewer("wait", "load", "--timeout", "0").code == 6
        write_status(**ended("Failed", "TestReason"))
        assert viewer("wait", "load", "--timeout", "0").code == 3

    def test_wait_outlasts_an_api_server_that_is_away(
        self, viewer: CliUser, write_status: WriteStatus, tmp_path: Path
    ) -> None:
        port = urlsplit(viewer.control_plane.url).port
        with Relay(port) as relay:
            write_status(conditions=held("StateLost"))
            flags = [
                "--for",
                "outcome",
                "--timeout",
                "120s",
                "--kubeconfig",
                viewer.kubeconfig_through(relay, tmp_path),
            ]
            waiting = viewer.in_background("wait", "load", *flags)
            waiting.wait_for("load is held for StateLost")
            relay.lead_to(None)
            waiting.wait_for(f"{relay.url} does not respond")
            requests = relay.connections
            wait_until(lambda: relay.connections > requests, seconds=60, what="it is asked again")
            relay.lead_to(port)
            write_status(**ended("Failed", "FailedByResolution"))
            result = waiting.wait()
        assert result.code == 0, result.err
        assert result.err.count("trying again") == 1

    def test_wait_fails_if_the_first_read_fails(self, viewer: CliUser, tmp_path: Path) -> None:
        with Relay(None) as relay:
            result = viewer("wait", "load", "--kubeconfig", viewer.kubeconfig_through(relay, tmp_path))
        assert result.code == 1
        assert "can't be reached" in result.err

    def test_wait_exits_with_7_if_the_run_is_deleted(self, viewer: CliUser, task: Task) -> None:
        waiting = viewer.in_background("wait", task.name, "--timeout", "120s")
        task.control_plane.call("DELETE", taskruns(task.namespace, task.name))
        assert waiting.wait().code in {1, 7}  # 1: deleted before the first look

    def test_wait_polls_without_the_right_to_watch(
        self, control_plane: ControlPlane, task: Task, write_status: WriteStatus
    ) -> None:
        user = f"no-watch-{secrets.token_hex(3)}"
        rbac = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{task.namespace}"
        rule = {"apiGroups": ["reattach.dev"], "resources": ["taskruns"], "verbs": ["get"]}
        subject = {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": user}
        control_plane.call("POST", f"{rbac}/roles", {"metadata": {"name": user}, "rules": [rule]})
        control_plane.call(
            "POST", f"{rbac}/rolebindings", {"metadata": {"name": user}, "roleRef": role, "subjects": [subject]}
        )
        waiting = CliUser(control_plane, task.namespace, user).in_background("wait", task.name, "--timeout", "120s")
        write_status(**ended("Succeeded", "Succeeded"))
        assert waiting.wait().code == 0

    def test_a_name_that_is_not_there_is_an_error(self, viewer: CliUser, task: Task) -> None:
        assert viewer("wait", f"{task.name}x").code == 1
