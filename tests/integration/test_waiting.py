"""Runs that wait for external jobs without a pod, on the real API server."""

import datetime as dt
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from apicalls import call_of
from controlplane import ControlPlane
from crash_points import crash_at, crash_at_each_write
from operator_process import Containers, Kubelet, Operators, Script, Stage, condition
from proxy import Point, Proxy, When
from reattach.api.names import ANNOTATION_WAKE
from reattach.cluster.paths import events, taskruns
from run_histories import HistoryRunner, RunHistory, Scenario
from taskscripts import Tasks
from waiting import wait_until

JSON = dict[str, Any]
IS_WHOLE = bool(os.environ.get("REATTACH_ALL"))
RUNS = 500 if IS_WHOLE else 50
SLOW = 900 if IS_WHOLE else 120
RELEASED_CODE = 87
FAR = 3600
"""Seconds until the next check, so that only a wake starts one."""
NO_BUDGETS = {"budgets": {"application": 0, "disruption": 0, "neverStarted": 0, "notReady": 0}}
ONCE = ("create pods", "delete pods", "patch pods")
"""Calls of the operator that a check costs once, however slow the machine is."""
STATUS_WRITES_MAX = 5
"""For a check: the wake, pending and running if it is slow, the reattachment, the end."""
READS_MAX = 6


def wait_for_job(tasks: Tasks, job_ended: threading.Event, every: int, *, registers: bool = False) -> Script:
    """Submit the job or reattach to it, check it once, and wait without a pod until it ends."""

    def script(containers: Containers) -> None:
        containers.run()
        process = tasks.process(containers)
        assert process.open(canCleanup=registers).status_code == 200
        intent = process.intend().json()
        if intent["decision"] == "Submit":
            assert process.handle("job-1").status_code == 204
        if job_ended.is_set():
            assert process.outcome("Succeeded").status_code == 204
            assert process.complete(result={"rows": 3}).status_code == 204
            containers.end(0)
            return
        about = {"job": {"key": "load", "generation": 1}, "retryAfterSeconds": every}
        response = process.end("Waiting", message="waits for job-1", **about)
        assert response.status_code == 204, response.text
        containers.end(RELEASED_CODE)

    return script


def wake(stage: Stage, name: str) -> None:
    now = dt.datetime.now(dt.UTC).isoformat()
    patch = {"metadata": {"annotations": {ANNOTATION_WAKE: now}}}
    stage.control_plane.call("PATCH", taskruns(stage.namespace, name), patch)


def waits(stage: Stage, name: str, *, checks: int = 1) -> bool:
    status = stage.cluster.status_if_there(name) or {}
    shown = condition(status, "Succeeded").get("reason")
    return shown == "Waiting" and status["counts"]["waiting"] == checks


def wait_until_waiting(stage: Stage, name: str, *, checks: int = 1) -> JSON:
    wait_until(lambda: waits(stage, name, checks=checks), seconds=SLOW, what=f"{name} waits after {checks} checks")
    wait_until(lambda: not stage.cluster.pods(name), seconds=SLOW, what=f"{name} has no pod")
    return stage.cluster.status(name)


def checks_of(stage: Stage) -> Counter[int]:
    """Return how many TaskRuns wait after how many checks."""
    found = stage.control_plane.call("GET", taskruns(stage.namespace))["items"]
    shown = [one.get("status", {}) for one in found]
    return Counter(
        one["counts"].get("waiting", 0) for one in shown if condition(one, "Succeeded").get("reason") == "Waiting"
    )


@pytest.fixture
def crowd(stage: Stage) -> Iterator[list[str]]:
    names = [f"crowd-{number}" for number in range(RUNS)]
    yield names
    for name in names:
        stage.control_plane.call("DELETE", taskruns(stage.namespace, name))


def test_many_runs_wait_without_pods_and_a_check_costs_the_operator_few_calls(
    stage: Stage, tasks: Tasks, crowd: list[str]
) -> None:
    job_ended = threading.Event()
    for name in crowd:
        stage.run(name, lambda _: wait_for_job(tasks, job_ended, FAR), retry=NO_BUDGETS)
    wait_until(lambda: checks_of(stage) == {1: RUNS}, seconds=SLOW, what=f"{RUNS} runs wait")
    wait_until(lambda: not stage.cluster.pods(), seconds=SLOW, what="no pod is left")

    mark = stage.control_plane.audit_mark()
    time.sleep(2)  # for anything that should not happen
    assert writes_since(stage, mark) == {}

    woken = crowd[:10]
    for name in woken:
        wake(stage, name)
    wait_until(lambda: checks_of(stage) == {1: RUNS - 10, 2: 10}, seconds=SLOW, what="10 runs check again")
    wait_until(lambda: not stage.cluster.pods(), seconds=SLOW, what="no pod is left")
    calls = operator_calls_since(stage, mark)
    assert {call: calls.pop(call) for call in ONCE} == dict.fromkeys(ONCE, 10)
    assert 20 <= calls.pop("patch taskruns/status") <= 10 * STATUS_WRITES_MAX
    calls.pop("patch taskruns/status (409)", None)
    assert calls.pop("get taskruns", 0) + calls.pop("get configmaps") <= 10 * READS_MAX
    assert calls == {}

    job_ended.set()
    for name in crowd:
        wake(stage, name)
    for name in crowd:
        status = stage.cluster.wait_for_outcome(name, seconds=SLOW)
        assert status["outcome"] == "Succeeded", status
        assert status["result"] == '{"rows":3}'
        counts = status["counts"]
        assert (counts["submissions"], set(counts["charged"].values())) == (1, {0})
        assert {one["cause"] for one in status["attempts"][:-1]} == {"Waiting"}


def operator_calls_since(stage: Stage, mark: int) -> dict[str, int]:
    """Count the calls of the operator without events, watches and periodic reads of TaskRuns."""
    found = stage.control_plane.audit(mark, namespace=stage.namespace)
    calls = Counter(call_of(one) for one in found if is_operator(stage, one))
    return {call: count for call, count in calls.items() if not call.startswith(("list", "watch", "create events"))}


def writes_since(stage: Stage, mark: int) -> dict[str, int]:
    calls = operator_calls_since(stage, mark)
    return {call: count for call, count in calls.items() if not call.startswith("get")}


def is_operator(stage: Stage, event: JSON) -> bool:
    return str(event["user"]["username"]) == stage.operator.user


def test_result_is_known_within_the_interval_after_the_end_of_the_job(stage: Stage, tasks: Tasks) -> None:
    job_ended = threading.Event()
    stage.run("interval", lambda _: wait_for_job(tasks, job_ended, 2), retry=NO_BUDGETS)
    wait_until(
        lambda: stage.cluster.status("interval").get("counts", {}).get("waiting", 0) >= 2,
        seconds=SLOW,
        what="it checks again by itself",
    )
    ended = dt.datetime.now(dt.UTC)
    job_ended.set()
    status = stage.cluster.wait_for_outcome("interval", seconds=SLOW)
    last = status["attempts"][-1]
    # The next attempt began within the interval; its pod was created as soon as it was due.
    began = dt.datetime.fromisoformat(last["startTime"])
    assert (last["cause"], began - ended < dt.timedelta(seconds=2 + 10)) == ("Succeeded", True)
    assert (status["result"], status["counts"]["submissions"]) == ('{"rows":3}', 1)


def test_condition_names_the_job_and_no_failure_is_reported(stage: Stage, tasks: Tasks) -> None:
    stage.run("named", lambda _: wait_for_job(tasks, threading.Event(), FAR), retry=NO_BUDGETS)
    status = wait_until_waiting(stage, "named")
    message = condition(status, "Succeeded")["message"]
    assert "load (handle job-1) since " in message
    assert message.endswith(f"The next check is at {status['nextAttemptTime']}.")
    wake(stage, "named")
    wait_until_waiting(stage, "named", checks=2)
    found = stage.control_plane.call("GET", events(stage.namespace))["items"]
    assert {one["reason"] for one in found if one["regarding"]["name"] == "named"} <= {"Submitted"}


def test_waiting_run_that_is_cancelled_or_deleted_cancels_its_job(stage: Stage, tasks: Tasks) -> None:
    cancelled = list[str]()

    def script(attempt: int) -> Script:
        if attempt == 1:
            return wait_for_job(tasks, threading.Event(), FAR, registers=True)
        return lambda containers: cancelled.extend(tasks.clean_up(containers))

    for name in ("stopped", "removed"):
        stage.run(name, script, retry=NO_BUDGETS)
        wait_until_waiting(stage, name)
    stage.control_plane.call("PATCH", taskruns(stage.namespace, "stopped"), {"spec": {"cancel": True}})
    status = stage.cluster.wait_for_outcome("stopped", seconds=SLOW)
    assert (status["outcome"], status["externalJobs"][0]["state"]) == ("Cancelled", "Cancelled")
    stage.control_plane.call("DELETE", taskruns(stage.namespace, "removed"))
    wait_until(lambda: stage.cluster.status_if_there("removed") is None, seconds=SLOW, what="it is deleted")
    assert cancelled == ["job-1", "job-1"]


def test_suspended_waiting_run_ignores_a_wake_and_checks_once_it_is_resumed(stage: Stage, tasks: Tasks) -> None:
    job_ended = threading.Event()
    stage.run("suspended", lambda _: wait_for_job(tasks, job_ended, FAR), retry=NO_BUDGETS)
    wait_until_waiting(stage, "suspended")
    path = taskruns(stage.namespace, "suspended")
    stage.control_plane.call("PATCH", path, {"spec": {"suspend": True}})
    stage.cluster.wait_for_reason("suspended", "Suspended", seconds=SLOW)
    wake(stage, "suspended")
    wait_until(lambda: "lastHandledWake" in stage.cluster.status("suspended"), seconds=SLOW, what="the wake is handled")
    assert stage.cluster.pods("suspended") == []
    job_ended.set()
    stage.control_plane.call("PATCH", path, {"spec": {"suspend": False}})
    status = stage.cluster.wait_for_outcome("suspended", seconds=SLOW)
    assert (status["outcome"], status["counts"]["waiting"]) == ("Succeeded", 1)


def test_pod_that_is_evicted_while_its_attempt_waits_is_a_disruption(stage: Stage, tasks: Tasks) -> None:
    job_ended = threading.Event()

    def evicted(containers: Containers) -> None:
        containers.run()
        process, _ = tasks.intended(containers)
        assert process.handle("job-1").status_code == 204
        about = {"job": {"key": "load", "generation": 1}, "retryAfterSeconds": FAR}
        assert process.end("Waiting", **about).status_code == 204
        job_ended.set()
        containers.evict()

    script = wait_for_job(tasks, job_ended, FAR)
    stage.run("evicted", lambda attempt: evicted if attempt == 1 else script, retry={"backoff": {"initialSeconds": 1}})
    status = stage.cluster.wait_for_outcome("evicted", seconds=SLOW)
    assert [one["cause"] for one in status["attempts"]] == ["Disruption", "Succeeded"]
    assert (status["counts"]["submissions"], "waiting" in status["counts"]) == (1, False)


def test_job_that_is_forgotten_between_two_checks_is_held(stage: Stage, tasks: Tasks) -> None:
    def forgotten(containers: Containers) -> None:
        containers.run()
        process, intent = tasks.intended(containers)
        assert intent["decision"] == "Reattach"
        assert process.outcome("NotFound", hold=True, message="unknown handle").status_code == 204
        containers.end(85, '{"reattach":"v1","kind":"Held","message":"unknown handle"}')

    first = wait_for_job(tasks, threading.Event(), 1)
    stage.run("forgotten", lambda attempt: first if attempt == 1 else forgotten)
    wait_until(
        lambda: condition(stage.cluster.status("forgotten"), "Held").get("reason") == "SubmissionUnknown",
        seconds=SLOW,
        what="it is held",
    )
    assert [one["cause"] for one in stage.cluster.status("forgotten")["attempts"]] == ["Waiting", "Held"]


def test_operator_crash_at_any_write_of_a_waiting_run_loses_no_check_and_doubles_none(
    control_plane: ControlPlane, tasks: Tasks, kubelet: Kubelet, proxy: Proxy, tmp_path: Path
) -> None:
    def script(attempt: int) -> Script:
        ended = threading.Event()
        if attempt == 3:
            ended.set()
        return wait_for_job(tasks, ended, 1)

    def check(history: RunHistory, _expected: RunHistory) -> None:
        status = history.status
        assert [one["cause"] for one in status["attempts"]] == ["Waiting", "Waiting", "Succeeded"]
        counts = status["counts"]
        assert (counts["waiting"], counts["submissions"], set(counts["charged"].values())) == (2, 1, {0})
        assert history.pods == ["3"]

    operators = Operators(control_plane, tmp_path)
    runner, scenario = HistoryRunner(control_plane, operators, kubelet, proxy), Scenario({"retry": NO_BUDGETS}, script)
    try:
        if IS_WHOLE:
            crash_at_each_write(runner, scenario, check)
        else:
            points = [Point(2, When.AFTER, "PATCH taskruns/status"), Point(1, When.BEFORE, "DELETE pods")]
            crash_at(runner, scenario, check, points)
    finally:
        operators.stop()
