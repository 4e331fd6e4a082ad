"""Random histories of a TaskRun: with any events and any crash of the operator, the rules hold."""

import random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reattach.planner.plan import DeletePod
from simulation import FixedChoices, ModelCluster, ModelOperator, SimulatedPod, run_history, settle

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


def a_running_attempt(**spec: Any) -> tuple[ModelCluster, ModelOperator, SimulatedPod]:
    cluster = ModelCluster(FixedChoices(0), spec)
    operator = ModelOperator(cluster)
    operator.restart()
    settle(operator)
    [pod] = cluster.pods.values()
    cluster.start(pod)
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


def test_the_deletion_of_a_kept_pod_that_nobody_asked_to_stop_breaks_a_rule() -> None:
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
