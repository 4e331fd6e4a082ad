"""The end of a run whose operator dies at each of its effects: the final status is always the same."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from reattach.api.names import FINALIZER_EXTERNAL_JOBS
from reattach.api.state import JobState
from reattach.api.taskrun import AttemptPurpose, TaskRunStatus
from simulation import FixedChoices, ModelCluster, ModelOperator, OperatorCrashedError, SimulatedPod, settle

STEPS_MAX = 60


class MortalOperator(ModelOperator):
    """Operator that dies once, before or after the effect with this number."""

    effects = 0
    dies_at = -1

    def _maybe_crash(self, chance: float) -> None:  # noqa: ARG002 -- the number decides
        self.effects += 1
        if self.effects == self.dies_at:
            raise OperatorCrashedError


def cancel(cluster: ModelCluster) -> None:
    cluster._edit_spec(cancel=True)


def delete(cluster: ModelCluster) -> None:
    cluster._update_metadata(deletion_timestamp=cluster.taskrun.metadata.creation_timestamp)


def fail(cluster: ModelCluster) -> None:
    [pod] = cluster.pods.values()
    cluster.exit(pod, 1)


def exceed_deadline(cluster: ModelCluster) -> None:
    cluster.seconds = 700


def cancels_jobs(cluster: ModelCluster, pod: SimulatedPod) -> None:
    """Request the cancellation, and record the end of each job."""
    cluster.open_state(pod)
    assert cluster.state is not None
    ended = (msgspec.structs.replace(job, state=JobState.CANCELLED) for job in cluster.state.jobs)
    cluster.state = msgspec.structs.replace(cluster.state, jobs=tuple(ended))
    cluster.running.clear()
    cluster.exit(pod, 0)


def fails(cluster: ModelCluster, pod: SimulatedPod) -> None:
    cluster.exit(pod, 1)


def hangs(cluster: ModelCluster, pod: SimulatedPod) -> None:
    """Run until the deadline, on a node that does not report the end."""
    pod.node_lost = True
    cluster.seconds += 2000


CleanupProgram = Callable[[ModelCluster, SimulatedPod], None]


def run(
    end: Callable[[ModelCluster], None], program: CleanupProgram, dies_at: int
) -> tuple[ModelCluster, MortalOperator]:
    """Run a TaskRun with one open job to its end."""
    spec = {
        "retry": {"budgets": {"application": 0}, "backoff": {"initialSeconds": 1, "jitterPercent": 0}},
        "deadlines": {"runSeconds": 600},
        "cleanup": {"budget": 2},
    }
    cluster = ModelCluster(FixedChoices(0), spec, registers=frozenset({"adapters"}))
    operator = MortalOperator(cluster)
    operator.restart()
    settle(operator)
    [pod] = cluster.pods.values()
    cluster.start(pod)
    cluster.open_state(pod)
    cluster._allow_intent(pod, "a")
    for _ in range(3):
        cluster.act_on_jobs(pod)
    assert [job.state for job in cluster.state.jobs] == [JobState.ACTIVE] if cluster.state else False
    cluster.seconds = 10
    operator.observe(everything=True)
    settle(operator)
    end(cluster)
    operator.effects, operator.dies_at = 0, dies_at
    for _ in range(STEPS_MAX):
        operator.observe(everything=True)
        try:
            settle(operator)
        except OperatorCrashedError:
            operator.restart()
            continue
        if cluster.is_over:
            return cluster, operator
        advance(cluster, operator, program)
    raise AssertionError(f"the run does not end: {cluster.taskrun.status}")


def advance(cluster: ModelCluster, operator: MortalOperator, program: CleanupProgram) -> None:
    for pod in cluster.pods.values():
        if pod.is_over or pod.node_lost:
            continue
        if pod.is_deleted:
            cluster.stop(pod)
        elif pod.purpose is AttemptPurpose.CLEANUP and not pod.runs:
            cluster.start(pod)
        elif pod.purpose is AttemptPurpose.CLEANUP:
            program(cluster, pod)
        else:
            continue
        return
    if operator.wakes_at is not None:
        cluster.seconds = max(cluster.seconds, operator.wakes_at)


def normalised(status: TaskRunStatus) -> Any:
    conditions = [(one.type, one.status, one.reason) for one in status.conditions]
    attempts = [(one.number, one.purpose, one.cause, one.charged_to) for one in status.attempts]
    jobs = [(job.key, job.generation, job.state) for job in status.external_jobs]
    return status.outcome, conditions, attempts, jobs, status.orphaned, status.counts.charged, status.counts.attempts


ENDS = {"cancel": cancel, "delete": delete, "fail": fail, "deadline": exceed_deadline}
PROGRAMS: dict[str, tuple[CleanupProgram, str, int]] = {
    "cancels jobs": (cancels_jobs, "Cancelled", 1),
    "fails": (fails, "Orphaned", 2),
    "hangs": (hangs, "Orphaned", 1),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("program", PROGRAMS)
def test_final_status_is_the_same_wherever_the_operator_dies(end: str, program: str) -> None:
    does, job_state, cleanups = PROGRAMS[program]
    cluster, operator = run(ENDS[end], does, dies_at=-1)
    expected, effects = normalised(cluster.taskrun.status), operator.effects
    [job] = cluster.taskrun.status.external_jobs
    # A deleted TaskRun whose jobs have ended is released without a last write.
    assert job.state == job_state or (end == "delete" and job_state == "Cancelled")
    assert (cluster.cleanups, FINALIZER_EXTERNAL_JOBS in cluster.taskrun.metadata.finalizers) == (cleanups, False)
    for number in range(1, effects + 1):
        cluster, _ = run(ENDS[end], does, dies_at=number)
        assert normalised(cluster.taskrun.status) == expected, f"died at effect {number}"
        assert cluster.cleanups == cleanups
