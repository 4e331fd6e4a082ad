"""Evidence that turns a presumed end into a reported one, and what follows."""

from typing import Any

import msgspec
import pytest

from builders import (
    SETTINGS,
    APod,
    ATaskRun,
    a_job,
    a_pod,
    a_state,
    a_taskrun,
    actions_of,
    at,
    decision_of,
    hold_of,
    last_attempt_of,
    observed,
    plan_of,
    status_of,
    teardown_plan_of,
)
from reattach.api.taskrun import Attempt, AttemptPurpose
from reattach.planner.decide import decide
from reattach.planner.plan import AbsentState, CreatePod, EndHolds, NodeFacts, ReadNodes, ReleasePod

TASKRUN = a_taskrun().with_budgets(disruption=5)
ALIVE = NodeFacts(created=at(-100))
TAINTED = NodeFacts(created=at(-100), out_of_service=True)
GONE = NodeFacts(deletion_counts=True)
REPLACED = NodeFacts(created=at(9000), deletion_counts=True)
HANGING = a_pod().running().deleted(4, 30)
LOST_AT = 4 + 30 + 300
END = {
    "finish_time": at(300),
    "end": "Presumed",
    "cause": "Disruption",
    "charged_to": "disruption",
    "reason": "NodeLost",
}
INTENDED = a_job(None, held=True, holds=1, submitters=(1,))


def presumed(taskrun: ATaskRun = TASKRUN, number: int = 1, **fields: Any) -> ATaskRun:
    """Return the TaskRun with an attempt whose end is presumed."""
    taskrun = taskrun.with_attempt(number, **{"node": "node-1", **END, **fields})
    return taskrun.with_status(counts=msgspec.structs.replace(taskrun.status.counts, last_presumed=number))


def held(**first: Any) -> ATaskRun:
    """Return the TaskRun whose second attempt was held for the presumed end of the first."""
    taskrun = presumed(TASKRUN.with_state(), **first)
    return taskrun.with_attempt(2, finish_time=at(320), end="Reported", cause="Held", reason="SubmissionUnknown")


def entry_of(taskrun: ATaskRun, *pods: APod, **seen: Any) -> Attempt:
    plan = plan_of(taskrun, *pods, **{"now": 1000, **seen})
    return (plan.status or taskrun.status).attempts[0]


@pytest.mark.parametrize(
    "facts, end",
    [
        (None, "Presumed"),
        (ALIVE, "Presumed"),
        (TAINTED, "Reported"),
        (GONE, "Reported"),
        (REPLACED, "Reported"),
        (NodeFacts(), "Presumed"),
        (NodeFacts(created=at(9000), out_of_service=True), "Presumed"),
    ],
)
def test_presumed_end_becomes_reported_by_facts_about_the_node(facts: NodeFacts | None, end: str) -> None:
    entry = entry_of(presumed(), nodes={"node-1": facts})
    assert entry.end == end
    assert entry.reported_at_attempt == (1 if end == "Reported" else None)


def test_message_names_the_evidence_also_if_it_is_long() -> None:
    entry = entry_of(presumed(message="x" * 1024), nodes={"node-1": TAINTED})
    sentence = "Node node-1 has the taint node.kubernetes.io/out-of-service, so no container runs on it."
    assert (entry.message or "").endswith(f"… {sentence}")
    assert len((entry.message or "").encode()) == 1024
    assert (
        entry_of(presumed(), nodes={"node-1": GONE}).message == "Node node-1 was deleted, so no container runs on it."
    )


@pytest.mark.parametrize(
    "pod, end",
    [
        (HANGING.exited(143, 40), "Reported"),
        (HANGING, "Presumed"),
        (HANGING.failed(""), "Presumed"),
        (HANGING.exited(143, 40, reason="ContainerStatusUnknown"), "Presumed"),
        (HANGING.exited(143, 40).with_metadata(uid="another"), "Presumed"),
    ],
)
def test_presumed_end_becomes_reported_by_the_kubelets_report(pod: APod, end: str) -> None:
    entry = entry_of(presumed(), pod)
    assert (entry.end, entry.message) == (end, "The kubelet reported its end later." if end == "Reported" else None)


def test_reported_end_stays_as_it_is() -> None:
    taskrun = presumed()
    once = taskrun.with_status(status_of(plan_of(taskrun, now=1000, nodes={"node-1": TAINTED})))
    assert entry_of(once, nodes={"node-1": GONE}) == once.status.attempts[0]


@pytest.mark.parametrize(
    "numbers, listed, before, after",
    [([1], [1], 1, 0), ([1, 3], [1, 2, 3], 3, 0), ([3], [2, 3], 3, 1), ([3], [3], 5, 5)],
)
def test_last_presumed_never_forgets_a_dropped_attempt(
    numbers: list[int], listed: list[int], before: int, after: int
) -> None:
    taskrun = TASKRUN
    for number in listed:
        taskrun = presumed(taskrun, number) if number in numbers else taskrun.with_failed_attempt(number)
    counts = msgspec.structs.replace(taskrun.status.counts, last_presumed=before, attempts=max(before, *listed))
    plan = plan_of(taskrun.with_status(counts=counts), now=1000, nodes={"node-1": TAINTED})
    assert status_of(plan).counts.last_presumed == after


def test_last_presumed_is_the_highest_presumed_end_that_is_left() -> None:
    taskrun = presumed(presumed(presumed(), 2, node="node-2"), 3)
    plan = plan_of(taskrun, now=1000, nodes={"node-1": TAINTED, "node-2": ALIVE})
    assert ([entry.end for entry in status_of(plan).attempts], status_of(plan).counts.last_presumed) == (
        ["Reported", "Presumed", "Reported"],
        2,
    )


# -- while the end is recorded ---------------------------------------------------------------------


@pytest.mark.parametrize("facts", [TAINTED, GONE])
def test_end_on_a_dead_node_is_recorded_as_reported_without_waiting(facts: NodeFacts) -> None:
    plan = plan_of(TASKRUN, HANGING, now=44, nodes={"node-1": facts})
    attempt = last_attempt_of(plan)
    assert (attempt.end, attempt.cause, attempt.reason) == ("Reported", "Disruption", "NodeLost")
    assert (attempt.message or "").endswith("so no container runs on it.")
    assert attempt.reported_at_attempt is None
    assert [release.pod.metadata.name for release in actions_of(plan, ReleasePod)] == ["load-01234-1"]


def test_pod_that_the_garbage_collector_failed_is_presumed_unless_its_node_is_dead() -> None:
    initialized = a_pod().waiting("PodInitializing").with_init()
    for pod in (
        HANGING.failed(""),
        HANGING.failed("NodeLost"),
        a_pod().waiting("ContainerCreating").failed(""),
        initialized.with_container("prepare", init=True, terminated={"exitCode": 0}).failed(""),
    ):
        assert last_attempt_of(plan_of(TASKRUN, pod, nodes={"node-1": ALIVE})).end == "Presumed"
        assert last_attempt_of(plan_of(TASKRUN, pod, nodes={"node-1": TAINTED})).end == "Reported"


def test_pod_that_its_kubelet_failed_before_a_container_ran_is_reported() -> None:
    waiting = a_pod().waiting("PodInitializing").with_init()
    for pod in (
        waiting.with_condition("Ready", "False", "PodFailed").failed(""),
        waiting.with_container("prepare", init=True, terminated={"exitCode": 143}).failed(""),
        a_pod().scheduled().failed("OutOfcpu"),
        a_pod().scheduled().with_status(phase="Succeeded"),
    ):
        assert last_attempt_of(plan_of(TASKRUN, pod)).end == "Reported"
    assert last_attempt_of(plan_of(TASKRUN, waiting.with_condition("Ready", "False", "x").failed(""))).end == "Presumed"


def test_attempt_whose_pod_is_gone_is_reported_if_its_node_is_dead() -> None:
    running = TASKRUN.with_attempt(1, node="node-1")
    assert last_attempt_of(plan_of(running, nodes={"node-1": TAINTED})).end == "Reported"
    assert last_attempt_of(plan_of(running, nodes={"node-1": ALIVE})).end == "Presumed"
    assert last_attempt_of(plan_of(TASKRUN.with_attempt(1))).end == "Presumed"


def test_running_pod_on_a_tainted_node_runs_until_it_is_deleted() -> None:
    taskrun = presumed(TASKRUN)
    plan = plan_of(taskrun, a_pod(2).running(), now=1000, nodes={"node-1": TAINTED})
    assert len(status_of(plan).attempts) == 2
    assert status_of(plan).attempts[1].finish_time is None


# -- which nodes are read, and when ----------------------------------------------------------------


def test_node_is_read_only_once_its_pod_should_have_ended() -> None:
    assert plan_of(TASKRUN, HANGING, now=10).requeue_at == at(44)
    seen = observed(TASKRUN, HANGING)
    assert not isinstance(decide(seen, SETTINGS, at(43)), ReadNodes)
    assert decide(seen, SETTINGS, at(44)) == ReadNodes(("node-1",))


def test_node_is_read_once_its_pod_counts_as_lost_even_if_that_is_sooner() -> None:
    taskrun = TASKRUN.with_spec(deadlines={"lostSeconds": 1})
    seen = observed(taskrun, HANGING, state=AbsentState())
    assert not isinstance(decide(seen, SETTINGS, at(34)), ReadNodes)
    assert decide(seen, SETTINGS, at(35)) == ReadNodes(("node-1",))

    lost = held().with_spec(deadlines={"lostSeconds": 1})
    plan = plan_of(lost, HANGING, now=36, state=a_state(2, jobs=[INTENDED]), nodes={"node-1": ALIVE})
    assert plan.requeue_at == at(66)


def test_node_is_read_again_until_the_pod_counts_as_lost() -> None:
    assert plan_of(TASKRUN, HANGING, now=50, nodes={"node-1": ALIVE}).requeue_at == at(80)
    assert plan_of(TASKRUN, HANGING, now=50, nodes={"node-1": None}).requeue_at == at(LOST_AT)


@pytest.mark.parametrize("facts, again", [(ALIVE, at(1030)), (None, None)])
def test_node_of_a_presumed_end_is_read_again_while_a_job_may_have_been_submitted(
    facts: NodeFacts | None, again: Any
) -> None:
    state = a_state(2, jobs=[INTENDED])
    assert plan_of(held(), now=1000, state=state, nodes={"node-1": facts}).requeue_at == again
    known = a_state(2, jobs=[a_job()])
    running = presumed(TASKRUN.with_state())
    assert plan_of(running, a_pod(2).running(), now=1000, state=known, nodes={"node-1": facts}).requeue_at is None


# -- the finalizer of a lost pod -------------------------------------------------------------------


def test_lost_pod_keeps_its_finalizer_until_its_end_is_reported() -> None:
    def released(pod: APod, **seen: Any) -> bool:
        return bool(actions_of(plan_of(presumed(), pod, now=1000, **seen), ReleasePod))

    assert not released(HANGING)
    assert released(HANGING.exited(143, 40))
    assert released(HANGING.failed(""))
    assert released(HANGING, nodes={"node-1": TAINTED})
    assert released(a_pod().running().deleted(4, 0)), "it was deleted by force"


# -- holds -----------------------------------------------------------------------------------------


def test_hold_for_a_presumed_end_ends_once_evidence_comes() -> None:
    state, nodes = a_state(2, jobs=[INTENDED]), {"node-1": TAINTED}
    assert decision_of(held(), now=1000, state=state, nodes=nodes) == EndHolds((("load", 1),))
    free = a_state(2, jobs=[msgspec.structs.replace(INTENDED, held=False, submitters=())])
    assert len(actions_of(plan_of(held(), now=1000, state=free, nodes=nodes), CreatePod)) == 1


def test_attempt_that_is_held_after_the_evidence_stays_held() -> None:
    taskrun = held(end="Reported", reported_at_attempt=2)
    state = a_state(2, jobs=[INTENDED])
    assert isinstance(decision_of(taskrun, now=1000, state=state), EndHolds)
    again = taskrun.with_attempt(3, finish_time=at(900), end="Reported", cause="Held", reason="SubmissionUnknown")
    assert hold_of(plan_of(again, now=1000, state=a_state(3, jobs=[INTENDED]))) == ("True", "SubmissionUnknown")


@pytest.mark.parametrize(
    "job, first",
    [
        (INTENDED, {}),
        (INTENDED, {"end": "Reported"}),
        (a_job(None, held=True, holds=1, submitters=()), {"end": "Reported", "reported_at_attempt": 2}),
        (a_job(None, held=True, holds=1, submitters=(1, 7)), {"end": "Reported", "reported_at_attempt": 2}),
        (a_job(held=True, holds=1, submitters=(1,)), {"end": "Reported", "reported_at_attempt": 2}),
    ],
    ids=["presumed", "never presumed", "unknown submitters", "another submitter", "a job that is not found"],
)
def test_hold_without_evidence_of_each_submitters_end_stays(job: Any, first: dict[str, Any]) -> None:
    plan = plan_of(held(**first), now=1000, state=a_state(2, jobs=[job]))
    assert hold_of(plan) == ("True", "SubmissionUnknown")


def test_hold_that_has_a_resolution_waits_for_no_evidence() -> None:
    taskrun = held(end="Reported", reported_at_attempt=2).with_resolution("SubmissionUnknown", "Resubmit")
    assert len(actions_of(plan_of(taskrun, now=1000, state=a_state(2, jobs=[INTENDED])), CreatePod)) == 1


def test_message_of_the_hold_says_how_to_give_evidence_if_nodes_can_be_read() -> None:
    def message(facts: NodeFacts | None, job: Any = INTENDED) -> str:
        status = status_of(plan_of(held(), now=1000, state=a_state(2, jobs=[job]), nodes={"node-1": facts}))
        return next(one.message for one in status.conditions if one.type == "Held")

    hint = "If node node-1 is shut down, run: kubectl taint node node-1 node.kubernetes.io/out-of-service=nodeshutdown:NoExecute"
    assert hint in message(ALIVE)
    assert "taint" not in message(None)
    assert "taint" not in message(ALIVE, a_job(None, held=True, holds=1, submitters=(2,)))
    long = message(ALIVE, a_job(None, key="k" * 128, held=True, holds=1, submitters=(1,), message="m" * 512))
    assert len(long.encode()) <= 1024
    assert "--fail" in long


def ending_with(job: Any, facts: NodeFacts, *cleanups: dict[str, Any]) -> tuple[list[int], str]:
    """Return the new cleanup pods and the status of a cancelled run after cleanup attempts."""
    taskrun = presumed(a_taskrun(cancel=True).with_finalizer().with_state())
    for number, more in enumerate(cleanups, 2):
        ended = {"finish_time": at(400), "end": "Reported", "cause": "Succeeded", "purpose": AttemptPurpose.CLEANUP}
        taskrun = taskrun.with_attempt(number, **ended)
        if more:
            first = msgspec.structs.replace(taskrun.status.attempts[0], **more)
            taskrun = taskrun.with_status(attempts=(first, *taskrun.status.attempts[1:]))
    state = a_state(2, jobs=[job], can_cleanup=True, purpose=AttemptPurpose.CLEANUP)
    plan = teardown_plan_of(taskrun, state=state, nodes={"node-1": facts}, now=450)
    return [create.attempt for create in actions_of(plan, CreatePod)], str(plan.status)


def test_evidence_that_comes_after_the_cleanup_starts_one_more_cleanup_attempt() -> None:
    job = a_job(None, submitters=(1,))
    assert ending_with(job, TAINTED, {})[0] == [3]
    known = {"end": "Reported", "reported_at_attempt": 2}
    assert ending_with(job, TAINTED, known, {})[0] == []
    assert ending_with(a_job(None, submitters=(1, 2)), ALIVE, {})[0] == []


def test_hold_of_a_run_that_ends_promises_no_next_attempt() -> None:
    created, message = ending_with(a_job(None, submitters=(1,)), ALIVE, {})
    assert (created, "Manual resolution required" in message, "next attempt" in message) == ([], True, False)
