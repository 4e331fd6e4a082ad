"""Suspend and resume on the real API server: one submission, no charge, whenever it crashes."""

import os
import random
import threading
import time
from typing import Any

import pytest

from apicalls import call_of
from controlplane import ControlPlane, ControlPlaneError
from crash_points import crash_at_each_write
from operator_process import Cluster, Containers, Kubelet, Operators, Script, Stage, condition
from proxy import Proxy
from reattach.cluster.paths import configmaps, taskruns
from run_histories import NAME, HistoryRunner, RunHistory, Scenario, normalised
from taskscripts import Tasks
from waiting import wait_until

JSON = dict[str, Any]
SLOW = 60
IS_WHOLE = bool(os.environ.get("REATTACH_ALL"))
ONE_IN = 1 if IS_WHOLE else 100
"""Share of the crash points. Each kind of write is one in any case, before and after it."""
FLIPPED_RUNS = 20 if IS_WHOLE else 4
NOTHING_LEFT = {"budgets": {"application": 0, "disruption": 0, "neverStarted": 0}}


def suspend(control_plane: ControlPlane, namespace: str, name: str, *, suspended: bool) -> None:
    control_plane.call("PATCH", taskruns(namespace, name), {"spec": {"suspend": suspended}})


def is_at_rest(status: JSON) -> bool:
    """Return whether the TaskRun is suspended and the end of each of its attempts is recorded."""
    is_suspended = condition(status, "Suspended").get("status") == "True"
    return is_suspended and all("finishTime" in attempt for attempt in status.get("attempts", ()))


def causes_of(status: JSON) -> list[tuple[str | None, str | None]]:
    return [(attempt.get("cause"), attempt.get("chargedTo")) for attempt in status["attempts"]]


def test_suspended_and_resumed_run_ends_the_same_after_a_crash_at_any_write(
    control_plane: ControlPlane, operators: Operators, kubelet: Kubelet, proxy: Proxy, tasks: Tasks
) -> None:
    def resume_at_rest(namespace: str) -> None:
        cluster = Cluster(control_plane, namespace)
        wait_until(lambda: is_at_rest(cluster.status_if_there(NAME) or {}), seconds=120, what="the run is suspended")
        suspend(control_plane, namespace, NAME, suspended=False)

    def be_suspended(containers: Containers) -> None:
        suspend(control_plane, containers.namespace, NAME, suspended=True)
        threading.Thread(target=resume_at_rest, args=(containers.namespace,), daemon=True).start()

    first = tasks.submit_and(be_suspended)
    scenario = Scenario({"retry": NOTHING_LEFT}, lambda attempt: first if attempt == 1 else tasks.finish)
    runner = HistoryRunner(control_plane, operators, kubelet, proxy)
    crash_at_each_write(runner, scenario, check_reattached, at_each_event=False, one_in=ONE_IN)


def check_reattached(history: RunHistory, expected: RunHistory) -> None:
    """Check the end of a run that was suspended once while its job ran."""
    status = history.status
    assert status["outcome"] == "Succeeded"
    assert causes_of(status) == [("Stopped", None), ("Succeeded", None)]
    assert (status["attempts"][0]["reason"], status["attempts"][0]["end"]) == ("Suspended", "Reported")
    assert [(job["key"], job["handle"], job["state"]) for job in status["externalJobs"]] == [
        ("load", "job-1", "Succeeded")
    ]
    assert (status["counts"]["submissions"], status["counts"]["reattachments"]) == (1, 1)
    assert set(status["counts"]["charged"].values()) == {0}
    assert "startTime" not in status["suspension"]
    assert history.waits == []
    assert normalised(status) == normalised(expected.status)


def test_taskrun_that_is_created_suspended_costs_one_write_and_runs_once_it_is_resumed(
    control_plane: ControlPlane, stage: Stage, tasks: Tasks
) -> None:
    mark = control_plane.audit_mark()
    stage.run("early", lambda _: tasks.finish, suspend=True)
    stage.cluster.wait_for_reason("early", "Suspended")
    time.sleep(1)  # for anything that should not happen
    assert stage.cluster.pods("early") == []
    assert (
        control_plane.call("GET", configmaps(stage.namespace), labelSelector="reattach.dev/taskrun=early")["items"]
        == []
    )
    calls = [call_of(event) for event in control_plane.audit(mark, namespace=stage.namespace)]
    assert [call for call in calls if call.startswith(("create pods", "patch", "delete"))] == ["patch taskruns/status"]

    suspend(control_plane, stage.namespace, "early", suspended=False)
    status = stage.cluster.wait_for_outcome("early", seconds=SLOW)
    assert (status["outcome"], causes_of(status)) == ("Succeeded", [("Succeeded", None)])
    assert condition(status, "Suspended")["status"] == "False"


def test_pending_pod_of_a_suspended_taskrun_is_deleted_and_charged_to_nothing(
    control_plane: ControlPlane, stage: Stage, tasks: Tasks
) -> None:
    def wait_for_image(containers: Containers) -> None:
        containers.wait(reason="ImagePullBackOff", message="not found")

    stage.run("pending", lambda attempt: wait_for_image if attempt == 1 else tasks.finish, retry=NOTHING_LEFT)
    stage.cluster.wait_for_reason("pending", "Pending")
    suspend(control_plane, stage.namespace, "pending", suspended=True)
    wait_until(lambda: is_at_rest(stage.cluster.status("pending")), seconds=SLOW, what="the pod is stopped")
    assert causes_of(stage.cluster.status("pending")) == [("Stopped", None)]
    suspend(control_plane, stage.namespace, "pending", suspended=False)
    status = stage.cluster.wait_for_outcome("pending", seconds=SLOW)
    assert (status["outcome"], causes_of(status)) == ("Succeeded", [("Stopped", None), ("Succeeded", None)])


def test_template_repaired_during_a_suspension_makes_the_next_pod_which_reattaches(
    control_plane: ControlPlane, stage: Stage, tasks: Tasks
) -> None:
    images: list[str] = []
    path = taskruns(stage.namespace, "repaired")

    def finish(containers: Containers) -> None:
        images.extend(container["image"] for container in containers.pod["spec"]["containers"])
        tasks.finish(containers)

    def repair(**more: Any) -> None:
        container = control_plane.call("GET", path)["spec"]["template"]["spec"]["containers"][0] | {"image": "task:2"}
        control_plane.call("PATCH", path, {"spec": {"template": {"spec": {"containers": [container]}}, **more}})

    first = tasks.submit_and(lambda _: None)
    stage.run("repaired", lambda attempt: first if attempt == 1 else finish, retry=NOTHING_LEFT)
    wait_until(lambda: stage.cluster.status("repaired").get("externalJobs"), seconds=SLOW, what="the job is shown")
    with pytest.raises(ControlPlaneError, match="can't be changed unless the condition Suspended or Held"):
        repair()
    suspend(control_plane, stage.namespace, "repaired", suspended=True)
    wait_until(lambda: is_at_rest(stage.cluster.status("repaired")), seconds=SLOW, what="the pod is stopped")
    repair(suspend=False)
    status = stage.cluster.wait_for_outcome("repaired", seconds=SLOW)
    assert (status["outcome"], causes_of(status)) == ("Succeeded", [("Stopped", None), ("Succeeded", None)])
    assert (images, status["counts"]["submissions"]) == (["task:2"], 1)
    before, after = (attempt["templateHash"] for attempt in status["attempts"])
    assert before != after


def test_run_that_is_suspended_and_resumed_in_any_order_submits_once_and_is_never_charged(
    control_plane: ControlPlane, stage: Stage, tasks: Tasks
) -> None:
    """Each run is suspended and resumed at random times, also within milliseconds."""
    names = [f"flipped-{number}" for number in range(FLIPPED_RUNS)]
    decisions: dict[str, list[str]] = {name: [] for name in names}
    may_finish = {name: threading.Event() for name in names}
    for name in names:
        script = _flipped_script(tasks, decisions[name], may_finish[name])
        stage.run(name, lambda _, script=script: script, retry=NOTHING_LEFT)
    for name in names:
        wait_until(
            lambda name=name: stage.cluster.status(name).get("externalJobs"), seconds=SLOW, what="the job is shown"
        )

    def flip(name: str) -> None:
        choices = random.Random(name)
        for number in range(8):
            suspend(control_plane, stage.namespace, name, suspended=number % 2 == 0)
            time.sleep(choices.choice([0, 0.002, 0.02, 0.2, 0.5]))
        may_finish[name].set()

    flips = [threading.Thread(target=flip, args=(name,)) for name in names]
    for thread in flips:
        thread.start()
    for thread in flips:
        thread.join()
    for name in names:
        status = stage.cluster.wait_for_outcome(name, seconds=SLOW)
        assert (status["outcome"], status["counts"]["submissions"]) == ("Succeeded", 1), status
        assert set(status["counts"]["charged"].values()) == {0}, status
        assert decisions[name].count("Submit") == 1
        assert causes_of(status)[-1] == ("Succeeded", None)
        assert {cause for cause, _ in causes_of(status)[:-1]} <= {"Stopped"}


def _flipped_script(tasks: Tasks, decisions: list[str], may_finish: threading.Event) -> Script:
    """Return a task that submits once, exits 80 if the state is sealed, and ends when it may."""

    def script(containers: Containers) -> None:
        containers.run()
        process = tasks.process(containers)
        if process.open().status_code == 409 or (intent := process.intend()).status_code == 409:
            containers.end(80)
            return
        decisions.append(intent.json()["decision"])
        if decisions[-1] == "Submit":
            assert process.handle("job-1").status_code == 204
        while not may_finish.wait(0.05):
            if containers.is_terminating():
                return
        if process.outcome("Succeeded").status_code == 204 and process.complete().status_code == 204:
            containers.end(0)

    return script
