"""Pods of ended attempts: kept with their logs, or deleted, whenever the operator dies.

The operator, API server and etcd are real; the test plays the node, with the kubelet's deadline.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from controlplane import ControlPlane
from crash_points import crash_at, crash_at_each_write
from operator_process import (
    CONTAINER,
    Containers,
    Kubelet,
    Operators,
    Script,
    Stage,
    fail,
    run_on,
    succeed,
)
from proxy import Point, Proxy, When
from reattach.api.names import FINALIZER_ATTEMPT
from reattach.cluster.paths import pods
from run_histories import HistoryRunner, RunHistory, Scenario, normalised
from waiting import wait_until

JSON = dict[str, Any]
ONE_IN = 1 if os.environ.get("REATTACH_ALL") else 100
"""Share of the crash points. Each kind of write is one in any case."""
WITH_SIDECAR = {"spec": {"containers": [CONTAINER, {"name": "shipper", "image": "shipper:1"}]}}
RETRY = {"budgets": {"application": 1}, "backoff": {"initialSeconds": 1, "jitterPercent": 0}}


@pytest.fixture
def runner(control_plane: ControlPlane, kubelet: Kubelet, proxy: Proxy, tmp_path: Path) -> Iterator[HistoryRunner]:
    operators = Operators(control_plane, tmp_path)
    yield HistoryRunner(control_plane, operators, kubelet, proxy)
    operators.stop()


def fail_first(attempt: int) -> Script:
    """Exit with 7 in the first attempt, then with 0. The log shipper never ends by itself."""

    def script(containers: Containers) -> None:
        containers.run()
        containers.end(7 if attempt == 1 else 0, "out of rows", others_run=True)

    return script


def test_operator_failed_attempt_with_a_sidecar_keeps_its_pod_and_its_recorded_end(stage: Stage) -> None:
    stage.run("kept", fail_first, template=WITH_SIDECAR, retry=RETRY)
    status = stage.cluster.wait_for_outcome("kept", seconds=60)
    stage.cluster.wait_for_release("kept")

    ends = [(one["cause"], one["exitCode"], one["end"], one["message"]) for one in status["attempts"]]
    assert ends == [
        ("Application", 7, "Reported", "out of rows"),
        ("Succeeded", 0, "Reported", "The container exited with 0."),
    ]
    first, second = stage.cluster.pods("kept")
    for pod in (first, second):
        assert "deletionTimestamp" not in pod["metadata"]
        assert (pod["spec"]["activeDeadlineSeconds"], pod["status"]["reason"]) == (1, "DeadlineExceeded")
    ended = {one["name"]: one["state"]["terminated"]["exitCode"] for one in first["status"]["containerStatuses"]}
    assert ended == {"task": 7, "shipper": 143}


def test_operator_retention_none_deletes_each_pod_and_failed_only_successful_ones(stage: Stage) -> None:
    for policy, kept in {"none": [], "failed": ["1"], "all": ["1", "2"]}.items():
        stage.run(policy, fail_first, retry=RETRY, podRetention=policy.capitalize())
        assert stage.cluster.wait_for_outcome(policy, seconds=60)["outcome"] == "Succeeded"

        def attempts(name: str = policy) -> list[str]:
            return [pod["metadata"]["labels"]["reattach.dev/attempt"] for pod in stage.cluster.pods(name)]

        wait_until(lambda expected=kept: attempts() == expected, seconds=30, what=f"{policy} keeps {kept}")  # type: ignore[misc]
        stage.cluster.wait_for_release(policy)


def test_operator_terminating_pod_is_replaced_before_its_end_if_the_policy_says_so(stage: Stage) -> None:
    def script(attempt: int) -> Script:
        return run_on if attempt == 1 else succeed

    stage.run("replaced", script, podReplacementPolicy="TerminatingOrFailed", retry=RETRY)
    stage.cluster.wait_for_reason("replaced", "Running")
    stage.kubelet.is_paused = True
    try:
        (pod,) = stage.cluster.pods("replaced")
        stage.control_plane.call("DELETE", pods(stage.namespace, pod["metadata"]["name"]))
        wait_until(lambda: len(stage.cluster.pods("replaced")) == 2, seconds=30, what="the next pod is created")
        first = stage.cluster.status("replaced")["attempts"][0]
        assert (first["cause"], first["reason"], first["end"]) == ("Disruption", "Deleted", "Presumed")
        assert stage.cluster.pods("replaced")[0]["metadata"]["finalizers"] == [FINALIZER_ATTEMPT]
    finally:
        stage.kubelet.is_paused = False
    status = stage.cluster.wait_for_outcome("replaced")
    ends = [(one["cause"], one["end"]) for one in status["attempts"]]
    assert ends == [("Disruption", "Reported"), ("Succeeded", "Reported")]
    stage.cluster.wait_for_release("replaced")
    assert len(stage.cluster.pods("replaced")) == 1


def test_operator_crash_at_any_write_keeps_and_deletes_the_same_pods(runner: HistoryRunner) -> None:
    def check(history: RunHistory, expected: RunHistory) -> None:
        assert history.pods == ["1"]
        assert normalised(history.status) == normalised(expected.status)
        ends = [(one["cause"], one.get("exitCode")) for one in history.status["attempts"]]
        assert ends == [("Application", 7), ("Succeeded", 0)]

    spec = {"template": WITH_SIDECAR, "retry": RETRY, "podRetention": "Failed"}
    crash_at_each_write(runner, Scenario(spec, fail_first), check, at_each_event=False, one_in=ONE_IN)


def test_operator_crash_at_any_write_folds_each_attempt_once_and_deletes_its_pod(runner: HistoryRunner) -> None:
    message = '{"reattach":"v1","kind":"RetryLater","message":"no input","retryAfterSeconds":0,"notReady":true}'

    def check(history: RunHistory, _expected: RunHistory) -> None:
        status = history.status
        listed, folded = [one["number"] for one in status["attempts"]], status["foldedAttempts"]
        # The last write folds nothing, so it may list one attempt more.
        assert listed in ([5, 6], [4, 5, 6])
        assert folded == [{"cause": "NotReady", "firstNumber": 1, "lastNumber": listed[0] - 1, "count": listed[0] - 1}]
        assert history.pods == [str(number) for number in listed]
        assert (status["counts"]["attempts"], status["counts"]["charged"]["notReady"]) == (6, 5)

    scenario = Scenario({"historyLimit": 2}, lambda attempt: fail(1, message) if attempt < 6 else succeed)
    if os.environ.get("REATTACH_ALL"):
        crash_at_each_write(runner, scenario, check)
    else:
        crash_at(runner, scenario, check, [Point(2, when, "DELETE pods") for when in When])
