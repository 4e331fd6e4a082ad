"""Runs that end while an external job is open.

The operator, the state API and the API server are real. The test plays the node and the task.
"""

import json
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from controlplane import ControlPlane
from operator_process import (
    CONTAINER,
    Containers,
    Kubelet,
    Operators,
    Script,
    Stage,
    condition,
    limit_pods,
    run_on,
    stage_of,
)
from reattach.api.names import (
    ANNOTATION_TEMPLATE_HASH,
    FINALIZER_ATTEMPT,
    FINALIZER_EXTERNAL_JOBS,
    LABEL_ATTEMPT,
    LABEL_ORPHANS,
    LABEL_TASKRUN,
    orphans_name,
    pod_name,
)
from reattach.cluster.paths import configmaps, events, namespace_of, pods, taskruns
from stateapi import code_of
from taskscripts import Tasks, evicted, first_then, stay
from waiting import wait_until

JSON = dict[str, Any]
SLOW = 90
"""Seconds that anything may take on a busy machine."""
PERMANENT = '{"reattach":"v1","kind":"Permanent","message":"the input is wrong"}'
ORPHANS = 'reattach_orphaned_jobs_total{reason="Cancelled"}'
CLEANUPS = 'reattach_cleanups_total{result="Succeeded"}'
NO_RETRY = {"retry": {"budgets": {"application": 0}}}


def patch(stage: Stage, name: str, **spec: Any) -> None:
    stage.control_plane.call("PATCH", taskruns(stage.namespace, name), {"spec": spec})


def delete(stage: Stage, name: str, policy: str = "Background") -> None:
    stage.control_plane.call("DELETE", taskruns(stage.namespace, name), {"propagationPolicy": policy})


def jobs_of(status: JSON) -> list[tuple[str, str | None, str]]:
    return [(job["key"], job.get("handle"), job["state"]) for job in status.get("externalJobs", [])]


def attempts_of(status: JSON) -> list[tuple[str, str, str | None]]:
    return [(each.get("purpose", "Run"), each["cause"], each.get("chargedTo")) for each in status["attempts"]]


def wait_for_job(stage: Stage, name: str) -> None:
    wait_until(
        lambda: jobs_of(stage.cluster.status(name)) == [("load", "job-1", "Active")],
        seconds=SLOW,
        what=f"{name} shows its job",
    )


def wait_until_gone(stage: Stage, name: str) -> None:
    wait_until(lambda: stage.cluster.status_if_there(name) is None, seconds=SLOW, what=f"{name} is gone")
    wait_until(lambda: not stage.cluster.pods(name), seconds=SLOW, what=f"the pods of {name} are gone")


def records(stage: Stage, name: str) -> list[JSON]:
    """Return the records of orphaned jobs that TaskRuns of this name left."""
    found = stage.control_plane.call("GET", configmaps(stage.namespace), labelSelector=f"{LABEL_ORPHANS}={name}")
    return [json.loads(each["data"]["record"]) for each in found["items"]]


def counted_records(stage: Stage) -> int:
    return len(stage.control_plane.call("GET", configmaps(stage.namespace), labelSelector=LABEL_ORPHANS)["items"])


def check_no_orphan(stage: Stage, name: str) -> None:
    assert records(stage, name) == []
    assert not any(f"/{name}: " in line and "is left running" in line for line in stage.operator.log.splitlines())


def check_left_nothing(stage: Stage, name: str) -> None:
    stage.cluster.wait_for_release(name, seconds=SLOW)
    assert FINALIZER_EXTERNAL_JOBS not in stage.cluster.taskrun(name)["metadata"].get("finalizers", [])


def test_run_that_is_cancelled_from_the_start_only_cancels_the_jobs_that_it_adopts(stage: Stage, tasks: Tasks) -> None:
    def never(_: Containers) -> None:
        raise AssertionError("the task runs")

    def finalizer_first(containers: Containers) -> None:
        assert FINALIZER_EXTERNAL_JOBS in stage.cluster.taskrun("adopts")["metadata"]["finalizers"]
        tasks.clean_up(containers)

    adopt = [{"key": "load", "handle": "job-7", "adapter": "http"}]
    stage.run("adopts", first_then(never, finalizer_first), cancel=True, adopt=adopt, cleanup={"adopted": "Cancel"})
    status = stage.cluster.wait_for_outcome("adopts", seconds=SLOW)
    assert status["outcome"] == "Cancelled"
    assert jobs_of(status) == [("load", "job-7", "Cancelled")]
    assert attempts_of(status) == [("Cleanup", "Succeeded", None)]
    check_no_orphan(stage, "adopts")
    check_left_nothing(stage, "adopts")


# -- each kind of end, with a cleanup that cancels -------------------------------------------------


def end_after_cancel(stage: Stage, name: str) -> None:
    wait_for_job(stage, name)
    patch(stage, name, cancel=True)


def end_after_resolution(stage: Stage, name: str) -> None:
    wait_until(lambda: stage.cluster.reason(name) == "BudgetExhausted", seconds=SLOW, what="the run is held")
    patch(stage, name, resolutions=[{"held": "BudgetExhausted", "action": "Fail"}])


def end_by_itself(_: Stage, __: str) -> None:
    """Do nothing, because the run ends without a request."""


@dataclass(frozen=True)
class End:
    """An end of a run: what the task does after it submitted, and what the status then shows."""

    outcome: str
    reason: str
    cause: str = "Stopped"
    charged_to: str | None = None
    then: Script = stay
    spec: JSON = field(default_factory=dict)
    request: Callable[[Stage, str], None] = end_by_itself


ENDS = {
    "cancel": End("Cancelled", "Cancelled", request=end_after_cancel),
    "run-deadline": End("Failed", "RunDeadlineExceeded", spec={"deadlines": {"runSeconds": 4}}),
    "application-budget": End(
        "Failed", "ApplicationFailed", "Application", "application", lambda containers: containers.end(1), NO_RETRY
    ),
    "permanent-failure": End(
        "Failed", "PermanentFailure", "Permanent", then=lambda containers: containers.end(1, PERMANENT)
    ),
    "resolution": End(
        "Failed",
        "FailedByResolution",
        "Disruption",
        "disruption",
        evicted,
        {"retry": {"budgets": {"disruption": 0}}},
        end_after_resolution,
    ),
}


@pytest.mark.parametrize("name", ENDS)
def test_run_that_ends_with_an_open_job_cancels_it_first(stage: Stage, tasks: Tasks, name: str) -> None:
    end = ENDS[name]
    counted = stage.operator.metric(CLEANUPS) or 0
    stage.run(name, first_then(tasks.submit_registered_and(end.then), tasks.clean_up), **end.spec)
    end.request(stage, name)
    status = stage.cluster.wait_for_outcome(name, seconds=SLOW)
    assert (status["outcome"], condition(status, "Succeeded")["reason"]) == (end.outcome, end.reason)
    assert (status["ending"]["outcome"], status["ending"]["reason"]) == (end.outcome, end.reason)
    assert jobs_of(status) == [("load", "job-1", "Cancelled")]
    assert attempts_of(status) == [("Run", end.cause, end.charged_to), ("Cleanup", "Succeeded", None)]
    assert "cancelRequestedTime" in status["externalJobs"][0]
    assert condition(status, "Orphaned") == {}
    check_no_orphan(stage, name)
    check_left_nothing(stage, name)
    assert stage.operator.metric(CLEANUPS) == counted + 1


@pytest.mark.parametrize("policy", ["Background", "Foreground"])
def test_deleted_run_with_an_open_job_is_gone_once_the_job_is_cancelled(
    stage: Stage, tasks: Tasks, policy: str
) -> None:
    name, cancelled = f"deleted-{policy.lower()}", []

    def clean_up(containers: Containers) -> None:
        taskrun = stage.cluster.taskrun(name)
        assert "deletionTimestamp" in taskrun["metadata"]
        assert "foregroundDeletion" not in taskrun["metadata"]["finalizers"]
        tasks.clean_up(containers)
        cancelled.append(containers.name)

    stage.run(name, first_then(tasks.submit_registered_and(stay), clean_up))
    wait_for_job(stage, name)
    delete(stage, name, policy)
    wait_until_gone(stage, name)
    assert len(cancelled) == 1
    check_no_orphan(stage, name)


def test_run_in_a_namespace_that_is_deleted_names_its_job_and_starts_no_cleanup(
    control_plane: ControlPlane, kubelet: Kubelet, tasks: Tasks, tmp_path_factory: pytest.TempPathFactory
) -> None:
    operators = Operators(control_plane, tmp_path_factory.mktemp("operators"))
    with stage_of(control_plane, operators, kubelet) as stage:
        stage.run("doomed", first_then(tasks.submit_registered_and(stay), tasks.clean_up))
        wait_for_job(stage, "doomed")
        control_plane.call("DELETE", namespace_of(stage.namespace))
        # Kubernetes deletes a namespace in rounds, and the namespaces of all tests in turn.
        wait_until(
            lambda: stage.cluster.status_if_there("doomed") is None, seconds=4 * SLOW, what="the TaskRun is gone"
        )
        wait_until(lambda: "can't be stored" in stage.operator.log, seconds=SLOW, what="the log has the record")
        assert '"handle":"job-1"' in stage.operator.log
        assert "The namespace is being deleted" in stage.operator.log
        assert stage.operator.metric("reattach_unstored_orphan_records_total") == 1
    operators.stop()


# -- jobs that no cleanup cancels ------------------------------------------------------------------


def test_cancelled_run_without_a_way_to_clean_up_leaves_a_record(stage: Stage, tasks: Tasks) -> None:
    counted = stage.operator.metric(ORPHANS) or 0
    stage.run("plain", first_then(tasks.submit_and(stay), tasks.clean_up))
    wait_for_job(stage, "plain")
    patch(stage, "plain", cancel=True)
    status = stage.cluster.wait_for_outcome("plain", seconds=SLOW)
    assert status["orphaned"] is True
    assert jobs_of(status) == [("load", "job-1", "Orphaned")]
    assert attempts_of(status) == [("Run", "Stopped", None)]
    [record] = records(stage, "plain")
    assert (record["taskrun"], record["reason"]) == ("plain", "Cancelled")
    assert record["uid"] == stage.cluster.taskrun("plain")["metadata"]["uid"]
    [job] = record["jobs"]
    assert (job["key"], job["generation"], job["handle"], job["adapter"]) == ("load", 1, "job-1", "http")
    assert "registered no adapter" in job["why"]
    assert stage.operator.metric(ORPHANS) == counted + 1
    assert stage.operator.metric("reattach_orphan_records") == counted_records(stage)
    delete(stage, "plain")
    wait_until_gone(stage, "plain")
    assert records(stage, "plain") == [record]


def test_run_whose_record_can_not_be_stored_says_so_in_its_status(stage: Stage, tasks: Tasks) -> None:
    stage.run("unstored", first_then(tasks.submit_and(stay), tasks.clean_up))
    wait_for_job(stage, "unstored")
    uid = stage.cluster.taskrun("unstored")["metadata"]["uid"]
    taken = {"metadata": {"name": orphans_name("unstored", uid)}}
    stage.control_plane.call("POST", configmaps(stage.namespace), taken)
    patch(stage, "unstored", cancel=True)
    status = stage.cluster.wait_for_outcome("unstored", seconds=SLOW)
    [orphaned] = [one for one in status["conditions"] if one["type"] == "Orphaned"]
    assert (orphaned["status"], orphaned["reason"]) == ("True", "OrphansUnrecorded")
    assert "job-1" in orphaned["message"]


def test_next_run_of_the_name_shows_the_record_until_it_is_dismissed(stage: Stage, tasks: Tasks) -> None:
    stage.run("again", first_then(tasks.submit_and(stay), tasks.clean_up))
    wait_for_job(stage, "again")
    delete(stage, "again")
    wait_until_gone(stage, "again")
    [record] = records(stage, "again")
    assert record["reason"] == "Deleted"
    stage.run("again")
    status = stage.cluster.wait_for_outcome("again", seconds=SLOW)
    shown = condition(status, "PredecessorOrphaned")
    assert (shown["status"], shown["reason"]) == ("True", "PredecessorLeftJobs")
    [path] = [
        configmaps(stage.namespace, each["metadata"]["name"])
        for each in stage.control_plane.call(
            "GET", configmaps(stage.namespace), labelSelector=f"{LABEL_ORPHANS}=again"
        )["items"]
    ]
    assert path.rpartition("/")[2] in shown["message"]

    def is_reported() -> bool:
        found = stage.control_plane.call("GET", events(stage.namespace))["items"]
        return any(each["reason"] == "PredecessorLeftJobs" and each["type"] == "Warning" for each in found)

    wait_until(is_reported, seconds=SLOW, what="an event warns about the record")
    stage.control_plane.call("DELETE", path)
    wait_until(
        lambda: stage.operator.metric("reattach_orphan_records") == counted_records(stage),
        seconds=SLOW,
        what="the operator has seen that it was dismissed",
    )
    delete(stage, "again")
    wait_until_gone(stage, "again")
    stage.run("again")
    assert condition(stage.cluster.wait_for_outcome("again", seconds=SLOW), "PredecessorOrphaned") == {}


@pytest.mark.parametrize("policy", ["Orphan", None], ids=["Orphan", "idempotency key"])
def test_deleted_run_keeps_its_job_by_policy(stage: Stage, tasks: Tasks, policy: str | None) -> None:
    name = "kept-by-policy" if policy else "kept-by-key"
    spec = {"cleanup": {"onDelete": policy}} if policy else {"submission": {"idempotencyKey": "nightly"}}
    stage.run(name, first_then(tasks.submit_registered_and(stay), tasks.clean_up), **spec)
    wait_for_job(stage, name)
    delete(stage, name)
    wait_until_gone(stage, name)
    [record] = records(stage, name)
    assert [job["handle"] for job in record["jobs"]] == ["job-1"]
    assert "spec.cleanup.onDelete" in record["jobs"][0]["why"]


def test_cleanup_attempts_that_fail_use_up_their_budget(stage: Stage, tasks: Tasks) -> None:
    def fail(containers: Containers) -> None:
        containers.run()
        containers.end(1, "the external system is down")

    backoff = {"initialSeconds": 0, "jitterPercent": 0}
    spec = {"cleanup": {"budget": 2}, "retry": {"backoff": backoff}}
    stage.run("failing", first_then(tasks.submit_registered_and(stay), fail), **spec)
    wait_for_job(stage, "failing")
    patch(stage, "failing", cancel=True)
    status = stage.cluster.wait_for_outcome("failing", seconds=SLOW)
    assert status["outcome"] == "Cancelled"
    assert attempts_of(status) == [("Run", "Stopped", None), *[("Cleanup", "Application", "cleanup")] * 2]
    assert status["counts"]["charged"] == {"application": 0, "disruption": 0, "neverStarted": 0, "cleanup": 2}
    assert jobs_of(status) == [("load", "job-1", "Orphaned")]
    [record] = records(stage, "failing")
    assert "spec.cleanup.budget" in record["jobs"][0]["why"]


def test_cleanup_pod_that_the_quota_never_admits_leaves_the_job_to_the_deadline(stage: Stage, tasks: Tasks) -> None:
    spec = {"cleanup": {"deadlineSeconds": 15}}
    stage.run("full", first_then(tasks.submit_registered_and(stay), tasks.clean_up), **spec)
    wait_for_job(stage, "full")
    limit_pods(stage, 0)
    patch(stage, "full", cancel=True)

    def is_shown() -> bool:
        shown = condition(stage.cluster.status("full"), "Succeeded")
        return shown.get("reason") == "Ending" and "quota" in shown.get("message", "")

    wait_until(is_shown, seconds=15, what="the condition names the quota", every=0.1)
    status = stage.cluster.wait_for_outcome("full", seconds=SLOW)
    assert jobs_of(status) == [("load", "job-1", "Orphaned")]
    [record] = records(stage, "full")
    assert "spec.cleanup.deadlineSeconds" in record["jobs"][0]["why"]
    limit_pods(stage, None)


def test_cleanup_pod_that_hangs_is_deleted_at_the_deadline(stage: Stage, tasks: Tasks) -> None:
    def hang(containers: Containers) -> None:
        containers.run()
        process = tasks.opened(containers)
        assert process.cancellation().status_code == 200

    spec = {"cleanup": {"deadlineSeconds": 6}}
    stage.run("hanging", first_then(tasks.submit_registered_and(stay), hang), **spec)
    wait_for_job(stage, "hanging")
    patch(stage, "hanging", cancel=True)
    wait_until(
        lambda: jobs_of(stage.cluster.status("hanging")) == [("load", "job-1", "Cancelling")],
        seconds=SLOW,
        what="the job is being cancelled",
        every=0.1,
    )
    status = stage.cluster.wait_for_outcome("hanging", seconds=SLOW)
    assert jobs_of(status) == [("load", "job-1", "Orphaned")]
    [record] = records(stage, "hanging")
    assert "cancelRequestedTime" in record["jobs"][0]
    assert "cancellation was requested" in record["jobs"][0]["why"]
    check_left_nothing(stage, "hanging")


# -- pods ------------------------------------------------------------------------------------------


def test_cleanup_pod_has_no_gate_and_no_queue_and_runs_the_cleanup_command(stage: Stage, tasks: Tasks) -> None:
    container = {**CONTAINER, "command": ["run"], "args": ["all"], "resources": {"requests": {"cpu": "4"}}}
    template = {
        "metadata": {"labels": {"kueue.x-k8s.io/queue-name": "batch", "team": "data"}},
        "spec": {"schedulingGates": [{"name": "example.org/gate"}], "containers": [container]},
    }
    cleanup = {"command": ["cancel", "all"], "resources": {"requests": {"cpu": "100m"}}, "deadlineSeconds": 600}
    made: list[JSON] = []

    def clean_up(containers: Containers) -> None:
        made.append(containers.pod)
        tasks.clean_up(containers)

    stage.run("gated", first_then(tasks.submit_and(stay), clean_up), template=template, cleanup=cleanup)
    [pod] = wait_until(lambda: stage.cluster.pods("gated"), seconds=SLOW, what="the pod is there")
    assert FINALIZER_EXTERNAL_JOBS in stage.cluster.taskrun("gated")["metadata"]["finalizers"]
    stage.control_plane.call("PATCH", pods(stage.namespace, pod["metadata"]["name"]), {"spec": {"schedulingGates": []}})
    wait_for_job(stage, "gated")
    patch(stage, "gated", cancel=True)
    status = stage.cluster.wait_for_outcome("gated", seconds=SLOW)
    assert jobs_of(status) == [("load", "job-1", "Cancelled")]
    [pod] = made
    labels, spec = pod["metadata"]["labels"], pod["spec"]
    assert (labels.get("kueue.x-k8s.io/queue-name"), labels["team"]) == (None, "data")
    assert not spec.get("schedulingGates")
    assert (spec["containers"][0]["command"], spec["containers"][0].get("args")) == (["cancel", "all"], None)
    assert spec["containers"][0]["resources"] == {"requests": {"cpu": "100m"}}
    assert 500 < spec["activeDeadlineSeconds"] <= 600
    phase = {each["name"]: each.get("value") for each in spec["containers"][0]["env"]}["REATTACH_PHASE"]
    assert phase == "cleanup"


def test_deleted_run_with_a_cleanup_command_waits_for_it_although_it_has_no_job(stage: Stage, tasks: Tasks) -> None:
    ran = []

    def clean_up(containers: Containers) -> None:
        containers.run()
        ran.append(containers.name)
        containers.end(0)

    stage.run("command", first_then(run_on, clean_up), cleanup={"command": ["cancel"]})
    wait_until(lambda: stage.cluster.reason("command") == "Running", seconds=SLOW, what="the task runs")
    delete(stage, "command")
    wait_until_gone(stage, "command")
    assert len(ran) == 1
    check_no_orphan(stage, "command")


def test_run_pod_that_is_created_after_the_seal_is_no_cleanup_pod(stage: Stage, tasks: Tasks) -> None:
    """A creation that the operator sent before its crash may arrive as late as that."""
    refused: list[tuple[int, str]] = []

    def run(containers: Containers) -> None:
        if containers.attempt == 1:
            tasks.submit_registered_and(stay)(containers)
            return
        containers.run()
        refused.append(code_of(tasks.process(containers).open()))

    stage.run("late", first_then(run, tasks.clean_up))
    wait_for_job(stage, "late")
    [first] = stage.cluster.pods("late")
    limit_pods(stage, 0)
    patch(stage, "late", cancel=True)
    wait_until(
        lambda: "quota" in condition(stage.cluster.status("late"), "Succeeded").get("message", ""),
        seconds=SLOW,
        what="the cleanup pod was rejected",
    )
    stage.operator.kill(signal.SIGKILL)
    limit_pods(stage, None)
    metadata = first["metadata"]
    uid = metadata["ownerReferences"][0]["uid"]
    late = {
        "metadata": {
            "name": pod_name("late", uid, 2),
            "labels": {LABEL_TASKRUN: "late", LABEL_ATTEMPT: "2"},
            "annotations": {ANNOTATION_TEMPLATE_HASH: metadata["annotations"][ANNOTATION_TEMPLATE_HASH]},
            "finalizers": [FINALIZER_ATTEMPT],
            "ownerReferences": metadata["ownerReferences"],
        },
        "spec": {"containers": [CONTAINER]},
    }

    stage.control_plane.call("POST", pods(stage.namespace), late)
    wait_until(lambda: refused, seconds=SLOW, what="the late pod has called the state API")
    stage.operator.start()
    status = stage.cluster.wait_for_outcome("late", seconds=SLOW)
    assert refused == [(409, "closing")]
    assert [(each["number"], each.get("purpose", "Run"), each["cause"]) for each in status["attempts"]] == [
        (1, "Run", "Stopped"),
        (2, "Run", "Stopped"),
        (3, "Cleanup", "Succeeded"),
    ]
    assert jobs_of(status) == [("load", "job-1", "Cancelled")]
    check_left_nothing(stage, "late")
