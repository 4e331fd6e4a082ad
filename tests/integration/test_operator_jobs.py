"""Runs with external jobs: the real operator, the real state API and the real API server; tasks and the node are played."""

import threading
from pathlib import Path
from typing import Any

import pytest

from controlplane import ControlPlane, ControlPlaneError
from operator_process import Cluster, Kubelet, Operators, Stage, condition, run_on
from reattach.api.names import FINALIZER_EXTERNAL_JOBS, FINALIZER_STATE
from reattach.cluster.paths import configmaps, events, taskruns
from taskscripts import Tasks, evicted, stay
from waiting import wait_until

JSON = dict[str, Any]
FAST = {"initialSeconds": 1, "jitterPercent": 0}
SLOW = 90
"""Seconds that anything may take on a busy machine."""


def jobs_of(status: JSON) -> list[tuple[str, str | None, str]]:
    return [(job["key"], job.get("handle"), job["state"]) for job in status.get("externalJobs", [])]


def told(stage: Stage, name: str) -> dict[str, str]:
    """The events about a TaskRun: reason and note."""
    found = stage.control_plane.call("GET", events(stage.namespace))["items"]
    return {event["reason"]: event["note"] for event in found if event["regarding"]["name"] == name}


def patch(stage: Stage, name: str, **spec: Any) -> None:
    stage.control_plane.call("PATCH", taskruns(stage.namespace, name), {"spec": spec})


def answer(stage: Stage, name: str, held: str, action: str, **more: Any) -> None:
    """Append to `spec.resolutions`, as a person does."""
    given = stage.cluster.taskrun(name)["spec"].get("resolutions", [])
    about = {"key": "load", "generation": 1} if held == "SubmissionUnknown" else {}
    patch(stage, name, resolutions=[*given, {"held": held, "action": action, **about, **more}])


def wait_for_jobs(stage: Stage, name: str, *expected: tuple[str, str | None, str]) -> None:
    wait_until(
        lambda: jobs_of(stage.cluster.status(name)) == list(expected), seconds=SLOW, what=f"{name} shows {expected}"
    )


def wait_for_hold(stage: Stage, name: str, reason: str) -> JSON:
    def held() -> bool:
        found = condition(stage.cluster.status(name), "Held")
        return (found.get("status"), found.get("reason")) == ("True", reason)

    wait_until(held, seconds=SLOW, what=f"{name} is held by {reason}")
    return condition(stage.cluster.status(name), "Held")


def is_gone(stage: Stage, name: str) -> bool:
    try:
        stage.cluster.taskrun(name)
    except ControlPlaneError as error:
        return str(error).startswith("404")
    return False


def check_left_nothing(stage: Stage, name: str) -> None:
    """No finalizer of ours is anywhere any more."""
    stage.cluster.wait_for_release(name, seconds=SLOW)
    status = stage.cluster.status(name)
    assert FINALIZER_EXTERNAL_JOBS not in stage.cluster.taskrun(name)["metadata"].get("finalizers", [])
    path = configmaps(stage.namespace, status["state"]["configMap"])
    wait_until(
        lambda: FINALIZER_STATE not in stage.control_plane.call("GET", path)["metadata"].get("finalizers", []),
        seconds=SLOW,
        what="the state is let go",
    )


# -- what people see -------------------------------------------------------------------------------


def test_a_job_is_shown_while_it_runs_and_the_next_attempt_reattaches(stage: Stage, tasks: Tasks) -> None:
    first = tasks.submit_and(evicted)
    stage.run("shown", lambda attempt: first if attempt == 1 else tasks.finish, retry={"backoff": FAST})
    status = stage.cluster.wait_for_outcome("shown", seconds=SLOW)
    assert status["outcome"] == "Succeeded"
    assert jobs_of(status) == [("load", "job-1", "Succeeded")]
    counts = status["counts"]
    assert (counts["submissions"], counts["reattachments"], counts["charged"]["application"]) == (1, 1, 0)
    assert tasks.intents["shown", 2]["decision"] == "Reattach"
    wait_until(lambda: {"Submitted", "Reattached"} <= told(stage, "shown").keys(), seconds=SLOW, what="it is told")
    assert "job-1" in told(stage, "shown")["Submitted"]
    check_left_nothing(stage, "shown")


# -- cancel and delete -----------------------------------------------------------------------------


def test_a_cancelled_run_seals_stops_and_names_what_it_leaves_running(stage: Stage, tasks: Tasks) -> None:
    stage.run("cancelled", lambda _: tasks.submit_and(stay))
    wait_for_jobs(stage, "cancelled", ("load", "job-1", "Active"))
    assert FINALIZER_EXTERNAL_JOBS in stage.cluster.taskrun("cancelled")["metadata"]["finalizers"]
    counter = 'reattach_orphaned_jobs_total{reason="Cancelled"}'
    orphans = stage.operator.metric(counter) or 0
    patch(stage, "cancelled", cancel=True)
    status = stage.cluster.wait_for_outcome("cancelled", seconds=SLOW)
    assert status["outcome"] == "Cancelled"
    assert [(a["cause"], a.get("chargedTo"), a["end"]) for a in status["attempts"]] == [("Stopped", None, "Reported")]
    assert jobs_of(status) == [("load", "job-1", "Orphaned")]
    assert "job-1" in condition(status, "Orphaned")["message"]
    check_left_nothing(stage, "cancelled")
    state = stage.control_plane.call("GET", configmaps(stage.namespace, status["state"]["configMap"]))
    assert '"End"' in state["data"]["seal"]
    wait_until(lambda: "Orphaned" in told(stage, "cancelled"), seconds=SLOW, what="an event names the job")
    assert "job-1" in told(stage, "cancelled")["Orphaned"]
    assert stage.operator.metric(counter) == orphans + 1
    assert "External job load (handle job-1) is left running" in stage.operator.log


def test_a_deleted_run_seals_stops_and_names_what_it_leaves_running(stage: Stage, tasks: Tasks) -> None:
    stage.run("deleted", lambda _: tasks.submit_and(stay, "job-of-the-deleted"))
    wait_for_jobs(stage, "deleted", ("load", "job-of-the-deleted", "Active"))
    stage.control_plane.call("DELETE", taskruns(stage.namespace, "deleted"))
    wait_until(lambda: is_gone(stage, "deleted"), seconds=SLOW, what="the TaskRun is gone")
    wait_until(lambda: not stage.cluster.pods("deleted"), seconds=SLOW, what="its pod is gone")
    wait_until(lambda: "Orphaned" in told(stage, "deleted"), seconds=SLOW, what="an event names the job")
    assert "job-of-the-deleted" in told(stage, "deleted")["Orphaned"]
    assert "job-of-the-deleted" in stage.operator.log


def test_a_run_without_a_state_is_cancelled_without_making_one(stage: Stage) -> None:
    stage.run("stateless", lambda _: run_on)
    stage.cluster.wait_for_reason("stateless", "Running", seconds=SLOW)
    patch(stage, "stateless", cancel=True)
    status = stage.cluster.wait_for_outcome("stateless", seconds=SLOW)
    assert (status["outcome"], status["attempts"][0]["cause"], "state" in status) == ("Cancelled", "Stopped", False)


def test_an_intent_that_nobody_can_tell_of_keeps_a_deleted_run_until_a_person_has_answered(
    stage: Stage, tasks: Tasks
) -> None:
    def intend_and_stay(containers: Any) -> None:
        containers.run()
        tasks.intended(containers)

    stage.run("unresolved", lambda _: intend_and_stay)
    wait_for_jobs(stage, "unresolved", ("load", None, "Intended"))
    stage.control_plane.call("DELETE", taskruns(stage.namespace, "unresolved"))
    assert "generation: 1" in wait_for_hold(stage, "unresolved", "SubmissionUnknown")["message"]
    assert not is_gone(stage, "unresolved")
    answer(stage, "unresolved", "SubmissionUnknown", "Adopt", handle="found-by-hand")
    wait_until(lambda: is_gone(stage, "unresolved"), seconds=SLOW, what="the TaskRun is gone")
    wait_until(lambda: "found-by-hand" in stage.operator.log, seconds=SLOW, what="the job is named")


def test_a_namespace_that_is_deleted_is_not_kept_by_an_intent_that_nobody_can_tell_of(
    control_plane: ControlPlane, kubelet: Kubelet, tasks: Tasks, tmp_path: Path
) -> None:
    def intend_and_stay(containers: Any) -> None:
        containers.run()
        tasks.intended(containers)

    operators, namespace = Operators(control_plane, tmp_path), control_plane.create_namespace("ends")
    operator = operators.start(namespaces=[namespace])
    stage = Stage(control_plane, namespace, Cluster(control_plane, namespace), operators, kubelet, operator)
    kubelet.play(namespace, stage.script_of)
    try:
        stage.run("unresolved", lambda _: intend_and_stay)
        wait_for_jobs(stage, "unresolved", ("load", None, "Intended"))
        control_plane.call("DELETE", taskruns(namespace, "unresolved"))
        wait_for_hold(stage, "unresolved", "SubmissionUnknown")
        # Nothing of the TaskRun changes by that: the operator looks now and then.
        control_plane.delete_namespace(namespace)
        wait_until(lambda: is_gone(stage, "unresolved"), seconds=SLOW, what="the TaskRun is gone", every=0.5)
        assert f"TaskRun {namespace}/unresolved: External job load (no handle known) is left running" in operator.log
    finally:
        kubelet.forget(namespace)
        operators.stop()


# -- held ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how, decision, handle",
    [({"action": "Adopt", "handle": "job-7"}, "Reattach", "job-7"), ({"action": "Resubmit"}, "Submit", "job-2")],
    ids=["adopted", "resubmitted"],
)
def test_a_submission_that_nobody_can_tell_of_waits_for_a_person(
    stage: Stage, tasks: Tasks, how: dict[str, str], decision: str, handle: str
) -> None:
    name = f"asked-{decision.lower()}"
    stage.run(name, lambda attempt: tasks.ask if attempt == 1 else tasks.finish)
    held = wait_for_hold(stage, name, "SubmissionUnknown")
    assert "the external system is unavailable" in held["message"]
    assert len(stage.cluster.pods(name)) == 1
    text = stage.operator.metric('reattach_held_taskruns{reason="SubmissionUnknown"}')
    assert text is not None
    assert text >= 1
    answer(stage, name, "SubmissionUnknown", **how)
    status = stage.cluster.wait_for_outcome(name, seconds=SLOW)
    assert status["outcome"] == "Succeeded"
    assert [(a["cause"], a.get("chargedTo")) for a in status["attempts"]] == [
        ("Held", "disruption"),
        ("Succeeded", None),
    ]
    assert tasks.intents[name, 2]["decision"] == decision
    assert jobs_of(status) == [("load", handle, "Succeeded")]
    assert condition(status, "Held")["status"] == "False"
    check_left_nothing(stage, name)


def test_a_submission_that_nobody_can_tell_of_fails_the_run_if_a_person_says_so(stage: Stage, tasks: Tasks) -> None:
    stage.run("asked-fail", lambda _: tasks.ask)
    wait_for_hold(stage, "asked-fail", "SubmissionUnknown")
    answer(stage, "asked-fail", "SubmissionUnknown", "Fail")
    status = stage.cluster.wait_for_outcome("asked-fail", seconds=SLOW)
    assert (status["outcome"], condition(status, "Succeeded")["reason"]) == ("Failed", "FailedByResolution")
    assert jobs_of(status) == [("load", None, "Failed")]
    assert len(stage.cluster.pods("asked-fail")) == 1
    check_left_nothing(stage, "asked-fail")


SCARCE = {"budgets": {"disruption": 0}, "backoff": FAST}


def test_a_run_out_of_pods_goes_on_when_a_person_grants_more(stage: Stage, tasks: Tasks) -> None:
    first = tasks.submit_and(evicted)
    stage.run("granted", lambda attempt: first if attempt == 1 else tasks.finish, retry=SCARCE)
    assert "job-1" in wait_for_hold(stage, "granted", "BudgetExhausted")["message"]
    answer(stage, "granted", "BudgetExhausted", "Continue")
    status = stage.cluster.wait_for_outcome("granted", seconds=SLOW)
    assert (status["outcome"], jobs_of(status)) == ("Succeeded", [("load", "job-1", "Succeeded")])
    assert tasks.intents["granted", 2]["decision"] == "Reattach"


def test_a_run_out_of_pods_names_its_job_and_fails_if_a_person_says_so(stage: Stage, tasks: Tasks) -> None:
    stage.run("not-granted", lambda _: tasks.submit_and(evicted), retry=SCARCE)
    wait_for_hold(stage, "not-granted", "BudgetExhausted")
    answer(stage, "not-granted", "BudgetExhausted", "Fail")
    status = stage.cluster.wait_for_outcome("not-granted", seconds=SLOW)
    assert (status["outcome"], condition(status, "Succeeded")["reason"]) == ("Failed", "FailedByResolution")
    assert jobs_of(status) == [("load", "job-1", "Orphaned")]
    check_left_nothing(stage, "not-granted")


def test_a_run_whose_state_was_lost_starts_empty_when_a_person_says_so(stage: Stage, tasks: Tasks) -> None:
    submitted, may_end = threading.Event(), threading.Event()

    def fail_later(containers: Any) -> None:
        submitted.set()
        may_end.wait(SLOW)
        containers.end(1)

    first = tasks.submit_and(fail_later)
    retry = {"budgets": {"application": 3}, "backoff": FAST}
    stage.run("emptied", lambda attempt: first if attempt == 1 else tasks.finish, retry=retry)
    assert submitted.wait(SLOW)
    wait_for_jobs(stage, "emptied", ("load", "job-1", "Active"))
    wait_until(
        lambda: stage.cluster.status("emptied")["counts"]["submissions"] == 1, seconds=SLOW, what="it is counted"
    )
    lost = stage.cluster.status("emptied")["state"]
    path = configmaps(stage.namespace, lost["configMap"])
    stage.control_plane.call("PATCH", path, {"metadata": {"finalizers": None}})
    stage.control_plane.call("DELETE", path)
    may_end.set()
    wait_for_hold(stage, "emptied", "StateLost")
    answer(stage, "emptied", "StateLost", "StartEmpty")
    status = stage.cluster.wait_for_outcome("emptied", seconds=SLOW)
    assert (status["outcome"], status["counts"]["stateLosses"]) == ("Succeeded", 1)
    assert status["state"]["uid"] != lost["uid"]
    assert tasks.intents["emptied", 2]["decision"] == "Submit"
    assert status["counts"]["submissions"] == 2
    assert "job-1" in condition(status, "Orphaned")["message"]
    check_left_nothing(stage, "emptied")
