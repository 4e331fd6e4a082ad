"""The real operator against a real API server; the node is played by `operating.Kubelet`."""

import datetime as dt
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from apicalls import call_of
from controlplane import ControlPlane
from operator_process import (
    CONTAINER,
    NAMESPACE,
    QUICK_RENEWAL,
    SHORT_LEASE,
    Cluster,
    Containers,
    Kubelet,
    Operators,
    Stage,
    condition,
    fail,
    limit_pods,
    run_on,
    stage_of,
    succeed,
)
from reattach.api.names import FINALIZER_ATTEMPT, LABEL_TASKRUN, pod_name
from reattach.cluster.paths import core, events, leases, pods, taskruns
from stateapi import Attempt, Servers, new_session
from waiting import wait_until

JSON = dict[str, Any]

FAST = {"initialSeconds": 1, "jitterPercent": 0}


@pytest.fixture
def own_stage(control_plane: ControlPlane, operators: Operators, kubelet: Kubelet) -> Iterator[Stage]:
    """For a test that stops its operator."""
    with stage_of(control_plane, operators, kubelet) as stage:
        yield stage


@pytest.fixture
def leased_stage(control_plane: ControlPlane, operators: Operators, kubelet: Kubelet) -> Iterator[Stage]:
    """For a test of who leads."""
    with stage_of(control_plane, operators, kubelet, *QUICK_RENEWAL) as stage:
        yield stage


@pytest.fixture
def expiring_stage(control_plane: ControlPlane, operators: Operators, kubelet: Kubelet) -> Iterator[Stage]:
    """For a test that waits for the end of a Lease."""
    with stage_of(control_plane, operators, kubelet, *SHORT_LEASE) as stage:
        yield stage


def time_of(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(text)


def finalizers_of(pod: JSON) -> list[str]:
    found: list[str] = pod["metadata"].get("finalizers", [])
    return found


# -- what it leaves alone --------------------------------------------------------------------------


def test_no_annotation_finalizer_or_label_is_put_on_the_taskrun(stage: Stage) -> None:
    before = stage.run("untouched")["metadata"]
    stage.cluster.wait_for_outcome("untouched")
    after = stage.cluster.taskrun("untouched")["metadata"]
    unimportant = {"resourceVersion", "managedFields"}
    assert {k: v for k, v in after.items() if k not in unimportant} == {
        k: v for k, v in before.items() if k not in unimportant
    }


def test_events_tell_of_retries_and_are_few(stage: Stage) -> None:
    stage.run(
        "eventful",
        lambda attempt: fail() if attempt < 3 else succeed,
        retry={"budgets": {"application": 5}, "backoff": FAST},
    )
    stage.cluster.wait_for_outcome("eventful")

    def told() -> list[JSON]:
        found = stage.control_plane.call("GET", events(stage.namespace))["items"]
        return [event for event in found if event["regarding"]["name"] == "eventful"]

    wait_until(lambda: len(told()) >= 2, seconds=60, what="two attempts failed, each told by an event")
    assert len(told()) <= 6
    assert all(event["regarding"]["kind"] == "TaskRun" for event in told())


# -- retries ---------------------------------------------------------------------------------------


def test_failed_attempts_are_retried_after_their_back_off(stage: Stage) -> None:
    stage.run(
        "retried",
        lambda attempt: fail(7) if attempt < 3 else succeed,
        retry={"budgets": {"application": 2}, "backoff": FAST},
    )
    status = stage.cluster.wait_for_outcome("retried")
    assert status["outcome"] == "Succeeded"
    assert [attempt["cause"] for attempt in status["attempts"]] == ["Application", "Application", "Succeeded"]
    assert [attempt.get("exitCode") for attempt in status["attempts"]] == [7, 7, 0]
    assert status["counts"]["attempts"] == 3
    assert status["counts"]["charged"]["application"] == 2
    assert "nextAttemptTime" not in status
    made = [time_of(pod["metadata"]["creationTimestamp"]) for pod in stage.cluster.pods("retried")]
    ended = [time_of(attempt["finishTime"]) for attempt in status["attempts"]]
    # The API server's times are whole seconds, cut off.
    assert made[1] - ended[0] > dt.timedelta(seconds=0)
    assert made[2] - ended[1] > dt.timedelta(seconds=1)


def test_when_the_budget_is_spent_the_run_fails(stage: Stage) -> None:
    stage.run("spent", lambda _: fail(2), retry={"budgets": {"application": 1}, "backoff": FAST})
    status = stage.cluster.wait_for_outcome("spent")
    assert status["outcome"] == "Failed"
    assert condition(status, "Succeeded")["status"] == "False"
    assert condition(status, "Succeeded")["reason"] == "ApplicationFailed"
    assert len(stage.cluster.pods("spent")) == 2
    stage.cluster.wait_for_release("spent")


def test_first_rule_that_matches_decides_how_a_failure_is_retried_and_which_one_fails_the_run(stage: Stage) -> None:
    scripts = {1: fail(3, "429: Too Many Requests"), 2: fail(137, reason="OOMKilled"), 3: fail(42)}
    rules = [
        {
            "match": {"messagePattern": "(?i)too many requests"},
            "action": "Retry",
            "delaySeconds": 2,
            "budget": "disruption",
        },
        {"match": {"reasons": ["OOMKilled"]}, "action": "Retry"},
        {"match": {"exitCodes": {"operator": "NotIn", "values": [1]}}, "action": "Fail"},
    ]
    stage.run("ruled", scripts.__getitem__, retry={"budgets": {"application": 9}, "backoff": FAST, "rules": rules})
    status = stage.cluster.wait_for_outcome("ruled")
    assert (status["outcome"], condition(status, "Succeeded")["reason"]) == ("Failed", "FailedByRule")
    attempts = status["attempts"]
    assert [(one["cause"], one.get("chargedTo")) for one in attempts] == [
        ("Application", "disruption"),
        ("Resource", "application"),
        ("Application", None),
    ]
    assert attempts[0]["message"] == "429: Too Many Requests (spec.retry.rules[0] applied: Retry)"
    assert "spec.retry.rules[2] applied: Fail" in condition(status, "Succeeded")["message"]
    created = [time_of(pod["metadata"]["creationTimestamp"]) for pod in stage.cluster.pods("ruled")]
    # The API server's times are whole seconds, cut off.
    assert created[1] - time_of(attempts[0]["finishTime"]) > dt.timedelta(seconds=1)


def test_task_that_waits_for_its_input_is_retried_although_its_budget_for_failures_is_0(stage: Stage) -> None:
    message = '{"reattach":"v1","kind":"RetryLater","message":"no input","retryAfterSeconds":1,"notReady":true}'
    stage.run("waits", lambda attempt: fail(1, message) if attempt < 3 else succeed)
    status = stage.cluster.wait_for_outcome("waits")
    assert status["outcome"] == "Succeeded"
    assert [(one["cause"], one.get("chargedTo")) for one in status["attempts"]] == [
        ("NotReady", "notReady"),
        ("NotReady", "notReady"),
        ("Succeeded", None),
    ]
    charged = status["counts"]["charged"]
    assert (charged["notReady"], charged["application"]) == (2, 0)
    assert status["notReadyStartTime"] == status["attempts"][0]["finishTime"]


def test_an_evicted_pod_costs_the_application_budget_nothing(stage: Stage) -> None:
    def evicted(containers: Containers) -> None:
        containers.run()
        containers.evict()

    stage.run("evicted", lambda attempt: evicted if attempt == 1 else succeed, retry={"backoff": FAST})
    status = stage.cluster.wait_for_outcome("evicted")
    assert status["outcome"] == "Succeeded"
    assert [attempt["cause"] for attempt in status["attempts"]] == ["Disruption", "Succeeded"]
    assert status["counts"]["charged"]["disruption"] == 1


def test_a_pod_deleted_by_hand_is_a_disruption_and_its_successor_comes(stage: Stage) -> None:
    stage.run("deleted", lambda attempt: run_on if attempt == 1 else succeed, retry={"backoff": FAST})
    stage.cluster.wait_for_reason("deleted", "Running")
    stage.control_plane.call("DELETE", pods(stage.namespace, stage.cluster.pods("deleted")[0]["metadata"]["name"]))
    status = stage.cluster.wait_for_outcome("deleted")
    assert status["outcome"] == "Succeeded"
    assert [attempt["cause"] for attempt in status["attempts"]] == ["Disruption", "Succeeded"]
    wait_until(lambda: len(stage.cluster.pods("deleted")) == 1, seconds=60, what="the deleted pod is gone")


def test_a_sidecar_that_never_ends_does_not_keep_the_attempt_alive(stage: Stage) -> None:
    def leave_the_sidecar(containers: Containers) -> None:
        containers.run()
        containers.end(0, others_run=True)

    containers = [CONTAINER, {"name": "sidecar", "image": "proxy:1"}]
    stage.run("sidecar", lambda _: leave_the_sidecar, template={"spec": {"containers": containers}})
    status = stage.cluster.wait_for_outcome("sidecar")
    assert status["outcome"] == "Succeeded"
    assert status["attempts"][0]["cause"] == "Succeeded"


# -- pods that can't be made -----------------------------------------------------------------------


def test_a_pod_name_taken_by_a_stranger_is_said_and_never_adopted(own_stage: Stage) -> None:
    stage = own_stage
    # The name holds the UID, so it can be taken only once that is known, and before the operator makes the pod.
    stage.operator.kill()
    name = pod_name("taken", stage.run("taken")["metadata"]["uid"], 1)
    stranger = {"metadata": {"name": name}, "spec": {"containers": [{"name": "other", "image": "other:1"}]}}
    stage.control_plane.call("POST", pods(stage.namespace), stranger)
    stage.operator.start()
    stage.cluster.wait_for_reason("taken", "PodNameTaken")
    found = stage.control_plane.call("GET", pods(stage.namespace, name))
    assert "ownerReferences" not in found["metadata"]
    assert "finalizers" not in found["metadata"]
    stage.control_plane.call("DELETE", pods(stage.namespace, name), {"gracePeriodSeconds": 0})
    assert stage.cluster.wait_for_outcome("taken")["outcome"] == "Succeeded"


def test_an_exceeded_quota_is_waited_out_without_using_an_attempt(stage: Stage) -> None:
    limit_pods(stage, 0)
    stage.run("quota")
    status = stage.cluster.wait_for_reason("quota", "QuotaExceeded")
    assert "exceeded quota" in condition(status, "Succeeded")["message"]
    limit_pods(stage, None)
    status = stage.cluster.wait_for_outcome("quota")
    assert status["outcome"] == "Succeeded"
    assert status["counts"]["attempts"] == 1


def test_paused_operator_records_ends_and_starts_no_attempt_until_it_continues(own_stage: Stage) -> None:
    may_end = threading.Event()

    def end_when_allowed(containers: Containers) -> None:
        containers.run()
        assert may_end.wait(120)
        containers.end(1)

    own_stage.run(
        "running",
        lambda attempt: end_when_allowed if attempt == 1 else succeed,
        retry={"budgets": {"application": 2}, "backoff": FAST},
    )
    own_stage.cluster.wait_for_reason("running", "Running")
    own_stage.operator.kill(signal.SIGTERM)

    command = own_stage.operator.command
    own_stage.operator.command = [*command, "--paused"]
    own_stage.operator.start()
    own_stage.run("waiting")
    status = own_stage.cluster.wait_for_reason("waiting", "Paused")
    assert "operator.paused" in condition(status, "Succeeded")["message"]
    may_end.set()
    status = own_stage.cluster.wait_for_reason("running", "Paused")
    assert [attempt["cause"] for attempt in status["attempts"]] == ["Application"]
    own_stage.cluster.wait_for_release("running")
    assert [len(own_stage.cluster.pods(name)) for name in ("running", "waiting")] == [1, 0]
    assert own_stage.operator.metric("reattach_paused") == 1
    own_stage.operator.kill(signal.SIGTERM)

    own_stage.operator.command = command
    own_stage.operator.start()
    for name in ("running", "waiting"):
        assert own_stage.cluster.wait_for_outcome(name)["outcome"] == "Succeeded"


# -- deleted, lost and found -----------------------------------------------------------------------


def test_a_deleted_taskrun_leaves_nothing_behind(stage: Stage) -> None:
    stage.run("dropped", lambda _: run_on)
    stage.cluster.wait_for_reason("dropped", "Running")
    stage.control_plane.call("DELETE", taskruns(stage.namespace, "dropped"))
    wait_until(lambda: stage.cluster.pods("dropped") == [], seconds=30, what="its pod is gone")


def test_deleted_and_made_again_under_the_same_name_while_the_pod_terminates(own_stage: Stage) -> None:
    may_end = threading.Event()

    def linger(containers: Containers) -> None:
        containers.run()
        may_end.wait(60)

    cluster, call = own_stage.cluster, own_stage.control_plane.call
    first = own_stage.run("again", lambda _: linger)["metadata"]["uid"]
    cluster.wait_for_reason("again", "Running")
    own_stage.kubelet.forget(own_stage.namespace)
    call("DELETE", taskruns(own_stage.namespace, "again"))
    wait_until(
        lambda: "deletionTimestamp" in cluster.pods("again")[0]["metadata"], seconds=30, what="its pod terminates"
    )
    second = own_stage.run("again", lambda _: succeed)["metadata"]["uid"]
    wait_until(lambda: len(cluster.pods("again")) == 2, seconds=60, what="the second TaskRun has a pod of its own")
    owners = {pod["metadata"]["ownerReferences"][0]["uid"] for pod in cluster.pods("again")}
    assert owners == {first, second}
    own_stage.kubelet.play(own_stage.namespace, own_stage.script_of)
    may_end.set()
    status = cluster.wait_for_outcome("again")
    assert status["outcome"] == "Succeeded"
    assert status["counts"]["attempts"] == 1
    wait_until(
        lambda: [pod["metadata"]["ownerReferences"][0]["uid"] for pod in cluster.pods("again")] == [second],
        seconds=30,
        what="the first TaskRun's pod is gone",
    )


def test_an_end_that_came_while_the_operator_was_away_is_not_lost_though_the_pod_was_deleted(own_stage: Stage) -> None:
    may_end = threading.Event()

    def end_later(containers: Containers) -> None:
        containers.run()
        may_end.wait(60)
        containers.end(3, "the disk is full")

    cluster = own_stage.cluster
    own_stage.run(
        "away",
        lambda attempt: end_later if attempt == 1 else succeed,
        retry={"budgets": {"application": 1}, "backoff": FAST},
    )
    cluster.wait_for_reason("away", "Running")
    own_stage.operator.kill()
    may_end.set()
    wait_until(lambda: cluster.pods("away")[0]["status"]["phase"] == "Failed", seconds=60, what="the task ended")
    # The times of Kubernetes are whole seconds; within the same one, nobody could tell what came first.
    second = dt.datetime.now(dt.UTC).second
    wait_until(lambda: dt.datetime.now(dt.UTC).second != second, seconds=2, what="the next second")
    own_stage.control_plane.call("DELETE", pods(own_stage.namespace, cluster.pods("away")[0]["metadata"]["name"]))
    own_stage.operator.start()
    status = cluster.wait_for_outcome("away")
    assert status["outcome"] == "Succeeded"
    first = status["attempts"][0]
    assert (first["exitCode"], first["end"], first["cause"]) == (3, "Reported", "Application")
    assert "the disk is full" in first["message"]


def test_a_pod_that_lost_its_label_is_found_again_not_replaced(stage: Stage) -> None:
    may_end = threading.Event()

    def end_later(containers: Containers) -> None:
        containers.run()
        may_end.wait(60)
        containers.end(0)

    stage.run("unlabelled", lambda _: end_later)
    stage.cluster.wait_for_reason("unlabelled", "Running")
    path = pods(stage.namespace, stage.cluster.pods("unlabelled")[0]["metadata"]["name"])
    stage.control_plane.call("PATCH", path, {"metadata": {"labels": {LABEL_TASKRUN: None}}})
    wait_until(lambda: len(stage.cluster.pods("unlabelled")) == 1, seconds=60, what="the label is put back")
    may_end.set()
    status = stage.cluster.wait_for_outcome("unlabelled")
    assert status["counts"]["attempts"] == 1
    assert status["attempts"][0]["cause"] == "Succeeded"


def test_a_taskrun_of_another_manager_is_left_alone(stage: Stage) -> None:
    stage.run("others", managedBy="example.com/other")
    stage.run("ours")
    stage.cluster.wait_for_outcome("ours")
    assert stage.cluster.pods("others") == []
    assert set(stage.cluster.status("others")) == {"conditions"}, "the schema's default is all there is"


def test_what_is_in_a_namespace_that_is_not_served_is_left_alone(stage: Stage, namespace: str) -> None:
    Cluster(stage.control_plane, namespace).create("elsewhere")
    stage.run("here")
    stage.cluster.wait_for_outcome("here")
    assert Cluster(stage.control_plane, namespace).pods() == []


def test_a_state_that_is_forced_away_holds_the_run(stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> None:
    servers = Servers(stage.control_plane, tmp_path_factory.mktemp("state-api"))
    try:
        server = servers.start()
        opened, may_end = threading.Event(), threading.Event()

        def open_and_fail(containers: Containers) -> None:
            containers.run()
            token = stage.control_plane.token(stage.namespace, audiences=["reattach.dev"], pod=containers.pod)
            attempt = Attempt(server, token, new_session(), containers.pod)
            assert attempt.open().status_code == 200
            assert attempt.set("job_id", "job-1").status_code == 200
            opened.set()
            may_end.wait(60)
            containers.end(1)

        stage.run("held", lambda _: open_and_fail, retry={"budgets": {"application": 3}, "backoff": FAST})
        assert opened.wait(20)
        state = stage.cluster.status("held")["state"]
        path = core("configmaps", stage.namespace, state["configMap"])
        stage.control_plane.call("PATCH", path, {"metadata": {"finalizers": None}})
        stage.control_plane.call("DELETE", path)
        may_end.set()
        wait_until(
            lambda: condition(stage.cluster.status("held"), "Held").get("status") == "True",
            seconds=20,
            what="it is held",
        )
        status = stage.cluster.status("held")
        assert condition(status, "Held")["reason"] == "StateLost"
        assert "outcome" not in status
        assert status["state"] == state
        assert len(stage.cluster.pods("held")) == 1
    finally:
        servers.stop()


def test_the_finalizer_of_a_state_goes_with_the_end_of_its_run(
    stage: Stage, tmp_path_factory: pytest.TempPathFactory
) -> None:
    servers = Servers(stage.control_plane, tmp_path_factory.mktemp("state-api"))
    try:
        server = servers.start()

        def open_and_complete(containers: Containers) -> None:
            containers.run()
            token = stage.control_plane.token(stage.namespace, audiences=["reattach.dev"], pod=containers.pod)
            attempt = Attempt(server, token, new_session(), containers.pod)
            assert attempt.open().status_code == 200
            assert attempt.complete(result={"rows_written": 4211}).is_success
            containers.end(0)

        stage.run("stateful", lambda _: open_and_complete)
        status = stage.cluster.wait_for_outcome("stateful")
        assert status["outcome"] == "Succeeded"
        assert "4211" in status["result"]
        path = core("configmaps", stage.namespace, status["state"]["configMap"])
        wait_until(
            lambda: not stage.control_plane.call("GET", path)["metadata"].get("finalizers"),
            seconds=10,
            what="the state's finalizer is gone",
        )
    finally:
        servers.stop()


# -- one leads -------------------------------------------------------------------------------------


def test_of_two_operators_one_leads_and_the_other_takes_over(expiring_stage: Stage) -> None:
    lease = expiring_stage.operator.user
    other = expiring_stage.operators.make(*SHORT_LEASE, namespaces=[expiring_stage.namespace], lease=lease).start(
        wait=False
    )
    wait_until(other.is_ready, seconds=90, what="the second operator stands by")
    assert expiring_stage.operator.metric("reattach_leader") == 1
    assert other.metric("reattach_leader") == 0
    expiring_stage.run("first")
    expiring_stage.cluster.wait_for_outcome("first")
    assert other.metric("reattach_reconciles_total") == 0
    expiring_stage.operator.kill()
    wait_until(other.leads, seconds=40, what="the second operator leads")
    expiring_stage.run("second")
    expiring_stage.cluster.wait_for_outcome("second")
    other.kill()


def test_leader_that_was_frozen_until_another_leads_writes_nothing_when_it_wakes(expiring_stage: Stage) -> None:
    frozen, cluster = expiring_stage.operator, expiring_stage.cluster
    other = expiring_stage.operators.make(*SHORT_LEASE, namespaces=[expiring_stage.namespace], lease=frozen.user).start(
        wait=False
    )
    wait_until(other.is_ready, seconds=90, what="the second operator stands by")
    backoff = {"initialSeconds": 3, "jitterPercent": 0}
    retry = {"budgets": {"application": 1}, "backoff": backoff}
    expiring_stage.run("retried", lambda attempt: fail(1) if attempt == 1 else run_on, retry=retry)
    cluster.wait_for_reason("retried", "BackingOff")
    assert frozen.process is not None
    frozen.process.send_signal(signal.SIGSTOP)
    wait_until(other.leads, seconds=60, what="the second operator leads")
    names = ["retried", *(f"new-{number}" for number in range(20))]
    for name in names[1:]:
        expiring_stage.run(name, lambda _: run_on)
    for name in names:
        cluster.wait_for_reason(name, "Running", seconds=60)

    mark = expiring_stage.control_plane.audit_mark()
    frozen.process.send_signal(signal.SIGCONT)
    assert frozen.wait_for_exit() == 1
    found = expiring_stage.control_plane.audit(mark, user=frozen.user)
    writes = {call_of(event) for event in found if event["verb"] not in {"get", "list", "watch"}}
    # It may have sent one renewal, which the API server rejected.
    assert [write for write in writes if not write.startswith("update leases (")] == []
    assert [len(cluster.pods(name)) for name in names] == [2] + [1] * 20
    other.kill()


def test_sigterm_gives_the_lease_up_and_ends_well(leased_stage: Stage) -> None:
    leased_stage.operator.kill(signal.SIGTERM)
    assert leased_stage.operator.exit_code() == 0
    lease = leased_stage.control_plane.call("GET", leases(NAMESPACE, leased_stage.operator.user))
    assert not lease["spec"].get("holderIdentity")


def test_a_leader_whose_lease_is_taken_ends_at_once(leased_stage: Stage) -> None:
    path = leases(NAMESPACE, leased_stage.operator.user)
    leased_stage.control_plane.call("PATCH", path, {"spec": {"holderIdentity": "somebody-else"}})
    assert leased_stage.operator.wait_for_exit() == 1
    assert "the Lease" in leased_stage.operator.log


def test_a_restarted_container_of_the_same_pod_has_the_lease_back_at_once(leased_stage: Stage) -> None:
    leased_stage.operator.kill()
    lease = leased_stage.control_plane.call("GET", leases(NAMESPACE, leased_stage.operator.user))
    # As if the Lease were held for long: whoever waits for its end will not lead within the bound of this test.
    leased_stage.control_plane.call(
        "PATCH", leases(NAMESPACE, leased_stage.operator.user), {"spec": {"leaseDurationSeconds": 3600}}
    )
    assert lease["spec"]["holderIdentity"] == leased_stage.operator.identity
    leased_stage.operator.start()


def test_released_pods_keep_the_finalizers_of_others(stage: Stage) -> None:
    def with_a_finalizer(containers: Containers) -> None:
        containers.run()
        path = pods(containers.namespace, containers.name)
        mine = [FINALIZER_ATTEMPT, "example.com/mine"]
        containers.control_plane.call("PATCH", path, {"metadata": {"finalizers": mine}})
        containers.end(0)

    stage.run("shared", lambda _: with_a_finalizer)
    stage.cluster.wait_for_outcome("shared")
    wait_until(
        lambda: finalizers_of(stage.cluster.pods("shared")[0]) == ["example.com/mine"], seconds=10, what="ours is gone"
    )
    path = pods(stage.namespace, stage.cluster.pods("shared")[0]["metadata"]["name"])
    stage.control_plane.call("PATCH", path, {"metadata": {"finalizers": None}})
