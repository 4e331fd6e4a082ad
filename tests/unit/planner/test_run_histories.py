"""Random histories of a TaskRun: with any events and any crash of the operator, the rules hold."""

import random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reattach.api.taskrun import Resolution
from reattach.planner.plan import DeletePod, EndHolds, NodeFacts
from simulation import FixedChoices, ModelCluster, ModelOperator, SimulatedPod, is_held, run_history, settle

BUDGETS = st.fixed_dictionaries(
    {
        "application": st.integers(0, 3),
        "disruption": st.integers(0, 3),
        "neverStarted": st.integers(0, 2),
        "notReady": st.integers(0, 3),
    }
)
BACKOFF = st.fixed_dictionaries(
    {"initialSeconds": st.sampled_from([0, 1, 10]), "jitterPercent": st.sampled_from([0, 20, 100])}
)
POLICY = st.sampled_from(["Cancel", "Cancel", "Orphan"])
CLEANUP = st.fixed_dictionaries(
    {
        "onCancel": POLICY,
        "onFailure": POLICY,
        "budget": st.sampled_from([0, 1, 3]),
        "deadlineSeconds": st.sampled_from([10, 900, 5000]),
    },
    optional={"onDelete": POLICY, "command": st.just(["clean", "up"])},
)
RULE = st.one_of(
    st.fixed_dictionaries(
        {
            "match": st.sampled_from(
                [{"exitCodes": {"operator": "In", "values": [1]}}, {"reasons": ["OOMKilled"]}, {"messagePattern": "."}]
            ),
            "action": st.just("Fail"),
        }
    ),
    st.fixed_dictionaries(
        {
            "match": st.sampled_from([{"exitCodes": {"operator": "NotIn", "values": [1]}}, {"reasons": ["Error"]}]),
            "action": st.just("Retry"),
        },
        optional={"delaySeconds": st.sampled_from([0, 60]), "budget": st.sampled_from(["disruption", "neverStarted"])},
    ),
    st.fixed_dictionaries({"match": st.just({"reasons": ["OOMKilled"]}), "action": st.just("Wait")}),
)
SPECS = st.fixed_dictionaries(
    {
        "retry": st.fixed_dictionaries(
            {"budgets": BUDGETS, "backoff": BACKOFF}, optional={"rules": st.lists(RULE, max_size=3)}
        ),
        "completion": st.sampled_from(["Auto", "ExitCode", "Recorded"]),
        "podReplacementPolicy": st.sampled_from(["Failed", "Failed", "TerminatingOrFailed"]),
        "podRetention": st.sampled_from(["All", "Failed", "None"]),
        "historyLimit": st.sampled_from([1, 2, 20]),
        "deadlines": st.fixed_dictionaries(
            {"pendingSeconds": st.just(100), "lostSeconds": st.sampled_from([1, 300])},
            optional={"runSeconds": st.sampled_from([50, 3000]), "notReadySeconds": st.sampled_from([1, 100])},
        ),
        "cleanup": CLEANUP,
    },
    optional={"suspend": st.just(True)},
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(SPECS, st.integers(0, 80), st.integers(0, 2**32))
def test_run_history_of_random_events_ends_and_keeps_the_rules(
    spec: dict[str, Any], events_max: int, seed: int
) -> None:
    cluster = run_history(random.Random(seed), spec, events_max=events_max)
    assert cluster.is_over
    # The number of writes is bounded by the events, and not by the number of reconciliations.
    assert cluster.status_writes <= 6 * (len(cluster.created) + 1) + 2 * cluster.events


def a_started_attempt(**spec: Any) -> tuple[ModelCluster, ModelOperator, SimulatedPod]:
    """Start an attempt that status does not list yet."""
    cluster = ModelCluster(FixedChoices(0), spec)
    operator = ModelOperator(cluster)
    operator.restart()
    settle(operator)
    [pod] = cluster.pods.values()
    cluster.start(pod)
    return cluster, operator, pod


def a_running_attempt(**spec: Any) -> tuple[ModelCluster, ModelOperator, SimulatedPod]:
    cluster, operator, pod = a_started_attempt(**spec)
    cluster.seconds = 10
    observe_and_settle(operator)
    return cluster, operator, pod


def observe_and_settle(operator: ModelOperator) -> None:
    operator.observe(everything=True)
    settle(operator)


def exit_before_the_phase_follows(cluster: ModelCluster, pod: SimulatedPod) -> None:
    cluster.exit(pod, 0)
    cluster.change(pod, pod.apod.not_over())


def test_a_task_may_end_by_itself_between_the_record_of_its_stop_and_the_deletion_of_its_pod() -> None:
    cluster, operator, pod = a_running_attempt(completion="ExitCode")
    cluster.was_suspended = True
    cluster._edit_spec(suspend=True)
    operator.observe(everything=True)
    operator.reconcile()
    [entry] = cluster.taskrun.status.attempts
    assert (entry.reason, pod.is_deleted) == ("Suspended", False)
    exit_before_the_phase_follows(cluster, pod)
    observe_and_settle(operator)
    assert pod.is_deleted
    cluster.stop(pod)
    observe_and_settle(operator)
    [entry] = cluster.taskrun.status.attempts
    assert (entry.cause, entry.charged_to) == ("Stopped", None)


def test_the_deletion_of_a_kept_pod_without_a_request_to_stop_it_breaks_a_rule() -> None:
    cluster, operator, pod = a_running_attempt()
    exit_before_the_phase_follows(cluster, pod)
    operator.observe(everything=True)
    with pytest.raises(AssertionError, match="deleted and not stopped"):
        operator._act(DeletePod(pod.view.metadata.name, pod.view.metadata.uid), 0)


def test_a_deleted_taskrun_need_not_show_that_its_job_was_detached_at_the_end() -> None:
    cluster, operator, pod = a_running_attempt()
    cluster.open_state(pod)
    cluster._allow_intent(pod, "a")
    for _ in range(3):
        cluster.act_on_jobs(pod)
    observe_and_settle(operator)
    assert cluster.state is not None
    cluster._change_job(cluster.state.jobs[0], detached=True)
    cluster.complete(pod)
    cluster._delete()
    cluster.delete_pod(pod.view.metadata.name, pod.view.metadata.uid)
    cluster.stop(pod)
    observe_and_settle(operator)
    assert (cluster.is_gone, len(cluster.running)) == (True, 1)


def lose_node(cluster: ModelCluster, pod: SimulatedPod) -> None:
    """Delete the pod of a node that reports nothing, and wait until its end is presumed."""
    pod.node_lost = True
    cluster.delete_pod(pod.view.metadata.name, pod.view.metadata.uid)
    cluster.seconds += 400


def test_the_cleanup_may_begin_once_the_other_containers_of_a_stopped_pod_count_as_lost() -> None:
    cleanup = {"onFailure": "Cancel", "command": ["clean", "up"], "budget": 1}
    retry, deadlines = {"budgets": {"application": 0}}, {"lostSeconds": 1}
    cluster, operator, pod = a_running_attempt(retry=retry, deadlines=deadlines, cleanup=cleanup)
    cluster.change(pod, pod.apod.with_sidecar())
    cluster.exit(pod, 1)
    observe_and_settle(operator)
    assert (pod.is_stopped, cluster.cleanups) == (True, 0)
    cluster.seconds += 60
    observe_and_settle(operator)
    assert (pod.is_deleted, pod.is_over, cluster.cleanups) == (False, False, 1)


def test_an_attempt_may_be_forgotten_if_its_pod_and_its_state_are_gone() -> None:
    cluster, operator, pod = a_started_attempt()
    cluster.open_state(pod)
    cluster._force_delete(pod)
    cluster.state, cluster.state_was_lost = None, True
    observe_and_settle(operator)
    cluster._append(Resolution(held="StateLost", action="StartEmpty"))
    observe_and_settle(operator)
    assert cluster.created == [1, 1]


def test_evidence_reports_a_presumed_end_once_the_node_is_out_of_service() -> None:
    cluster, operator, pod = a_running_attempt()
    cluster.reads_nodes = True
    cluster.open_state(pod)
    cluster._allow_intent(pod, "a")
    cluster.act_on_jobs(pod)
    lose_node(cluster, pod)
    observe_and_settle(operator)
    assert [(one.number, one.end) for one in cluster.taskrun.status.attempts] == [(1, "Presumed")]
    assert cluster.give_evidence()
    cluster.seconds += 40
    observe_and_settle(operator)
    assert (cluster.taskrun.status.attempts[0].end, pod.runs) == ("Reported", False)


def test_the_report_of_the_end_of_a_running_process_breaks_a_rule() -> None:
    cluster, operator, pod = a_running_attempt()
    lose_node(cluster, pod)
    cluster.reads_nodes = True
    cluster.nodes[pod.node] = NodeFacts(cluster.facts_about(pod.node).created, out_of_service=True)
    operator.observe(everything=True)
    with pytest.raises(AssertionError, match="running process"):
        operator.reconcile()


def test_evidence_ends_the_hold_for_a_presumed_end_and_the_next_attempt_starts() -> None:
    cluster, operator, pod = a_running_attempt()
    cluster.reads_nodes = True
    hold_in_second_attempt(cluster, operator, pod)
    assert (is_held(cluster.taskrun.status), cluster.created) == (True, [1, 2])
    assert cluster.give_evidence()
    cluster.seconds += 100
    observe_and_settle(operator)
    assert (is_held(cluster.taskrun.status), cluster.created) == (False, [1, 2, 3])


def test_the_end_of_a_hold_while_a_submitter_runs_breaks_a_rule() -> None:
    cluster, operator, pod = a_running_attempt()
    hold_in_second_attempt(cluster, operator, pod)
    with pytest.raises(AssertionError, match="while a submitter runs"):
        cluster.end_holds(EndHolds((("a", 1),)))


def hold_in_second_attempt(cluster: ModelCluster, operator: ModelOperator, pod: SimulatedPod) -> None:
    """Lose the node of an attempt before its submission, so that the second attempt is held."""
    cluster.open_state(pod)
    cluster._allow_intent(pod, "a")
    cluster.act_on_jobs(pod)
    lose_node(cluster, pod)
    observe_and_settle(operator)
    cluster.seconds += 100
    observe_and_settle(operator)
    second = next(one for one in cluster.pods.values() if one.number == 2)
    cluster.start(second)
    cluster.open_state(second)
    assert cluster.state is not None
    cluster._hold(second, cluster.state.jobs[0])
    observe_and_settle(operator)
