"""The table of ends in docs/concepts.md: the planner ends a run as its row says."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

from builders import SETTINGS, APod, ATaskRun, a_job, a_pod, a_state, a_taskrun, at, observed
from reattach.api.names import FINALIZER_EXTERNAL_JOBS, LABEL_PURPOSE
from reattach.api.reasons import HOLDS, ConditionType, EventReason, Reason
from reattach.api.state import Epoch, JobOrigin, JobState, JobSummary, Seal, StateView
from reattach.api.taskrun import AttemptPurpose, Cleanup, TaskRunStatus
from reattach.planner.conditions import find_condition
from reattach.planner.decide import decide
from reattach.planner.outcome import DELETED
from reattach.planner.plan import (
    CreatePod,
    Decision,
    DeletePod,
    Plan,
    PodEvents,
    PodRejection,
    PodRejectionKind,
    ReadEvents,
    ReadNodes,
    ReadState,
    ReleasePod,
    ReleaseTaskRun,
    SealState,
    StopPod,
)

REPOSITORY = Path(__file__).parents[3]
CONCEPTS = (REPOSITORY / "docs/concepts.md").read_text()
REFERENCE = (REPOSITORY / "docs/reference/taskrun.md").read_text()
FOREGROUND = "foregroundDeletion"
STEPS_MAX = 60

NO_END = {
    *HOLDS,
    Reason.PENDING,
    Reason.RUNNING,
    Reason.BACKING_OFF,
    Reason.WAITING,
    Reason.WAITING_FOR_GATES,
    Reason.QUOTA_EXCEEDED,
    Reason.POD_REFUSED,
    Reason.POD_NAME_TAKEN,
    Reason.PAUSED,
    Reason.SUSPENDED,
    Reason.RESUMED,
    Reason.ENDING,
    Reason.JOBS_ORPHANED,
    Reason.ORPHANS_UNRECORDED,
    Reason.PREDECESSOR_LEFT_JOBS,
    Reason.NOT_HELD,
}
"""Reasons of conditions that do not end a run."""
NO_EVENT = {
    Reason.SUCCEEDED,
    Reason.PENDING,
    Reason.RUNNING,
    Reason.BACKING_OFF,
    Reason.WAITING,
    Reason.WAITING_FOR_GATES,
    Reason.PAUSED,
    Reason.ENDING,
    Reason.JOBS_ORPHANED,
    Reason.ORPHANS_UNRECORDED,
    Reason.NOT_HELD,
}
"""Reasons of conditions without an event of the same reason."""


@dataclass(frozen=True)
class Row:
    """A row of the table. `field`: the field of `spec.cleanup` that decides, or None."""

    how: str
    outcome: str | None
    reasons: tuple[str, ...]
    field: str | None
    default: str


def cells_of(name: str, page: str = CONCEPTS) -> list[list[str]]:
    """Return the cells of the table between the comments with this name, without its head."""
    [table] = re.findall(rf"<!-- {name} -->\n(.*?)<!-- end of {name} -->", page, re.DOTALL)
    return [[cell.strip() for cell in line.strip("|\n ").split(" | ")] for line in table.strip().splitlines()[2:]]


def rows() -> dict[str, Row]:
    """Return the rows of the table by their first cell."""
    return {how: _row_of(how, *cells) for how, *cells in cells_of("ends")}


def _row_of(how: str, outcome: str, reasons: str, decides: str, default: str) -> Row:
    code = re.compile(r"`([^`]+)`")
    fields = re.findall(r"`cleanup\.(on\w+)`", decides)
    return Row(
        how=how,
        outcome=outcome.strip("`") if outcome.isascii() else None,  # otherwise a dash
        reasons=tuple(code.findall(reasons)),
        field=fields[0] if fields else None,
        default=default,
    )


@dataclass
class RunWithJob:
    """A run whose task can cancel its open job, from the request of its end to the end.

    `play` carries out what the planner returns, until the run has ended or is held. A cleanup
    attempt cancels all jobs with a handle. `ignored`: the external system ignores that.
    `has_handler`: the task registered `on_cleanup`.
    """

    taskrun: ATaskRun
    pods: Sequence[APod] = ()
    jobs: tuple[JobSummary, ...] = (a_job(),)
    completed_by: int | None = None
    more: dict[str, Any] = field(default_factory=dict)
    ignored: bool = False
    has_handler: bool = False
    cleanups: int = 0
    is_over: bool = False
    ending_reason: str | None = None
    state: StateView = field(init=False)

    @property
    def load(self) -> str:
        """Return how the job `load` is shown: in the state if it has ended, or in the status."""
        stored = [job for job in self.state.jobs if job.key == "load"]
        shown = [job.state for job in self.taskrun.status.external_jobs if job.key == "load"]
        return next((job.state.value for job in stored if not job.is_open), (shown or [""])[0])

    @property
    def is_held(self) -> bool:
        held = find_condition(self.taskrun.status.conditions, ConditionType.HELD)
        return held is not None and held.status == "True"

    def play(self) -> TaskRunStatus:
        opened = Epoch(attempt=1, pod_uid="pod-1", can_cleanup=True, cleanup_handler=self.has_handler)
        self.state = replace_state(a_state(1, completed_by=self.completed_by, jobs=self.jobs), epoch=opened)
        pods = {pod.number: pod for pod in self.pods}
        for step in range(STEPS_MAX):
            decision: Decision | None = None
            known = None
            nodes: dict[str, None] = {}
            events: PodEvents | None = None
            while not isinstance(decision, Plan):
                seen = observed(self.taskrun, *pods.values(), state=known, nodes=nodes, events=events, **self.more)
                decision = decide(seen, SETTINGS, at(10 + step))
                if isinstance(decision, ReadNodes):
                    nodes = {**nodes, **dict.fromkeys(decision.names)}
                if isinstance(decision, ReadEvents):
                    events = PodEvents()
                if isinstance(decision, SealState):
                    seal = Seal(through_attempt=decision.through_attempt, purpose=decision.purpose)
                    self.state = replace_state(self.state, seal=seal)
                if isinstance(decision, ReadState | SealState):
                    known = self.state
            self._carry_out(decision, pods)
            if self.is_over or self.is_held or self.taskrun.status.outcome is not None:
                return self.taskrun.status
            self._collect_garbage(pods)
        raise AssertionError(f"the run has not ended: {self.taskrun.status}")

    def _carry_out(self, plan: Plan, pods: dict[int, APod]) -> None:
        if plan.status is not None:
            self.taskrun = self.taskrun.with_status(plan.status)
            ending = plan.status.ending
            self.ending_reason = self.ending_reason if ending is None else ending.reason
        for action in plan.actions:
            match action:
                case CreatePod():
                    body = json.loads(action.body)
                    assert body["metadata"]["labels"].get(LABEL_PURPOSE) == AttemptPurpose.CLEANUP
                    assert FOREGROUND not in self.taskrun.metadata["finalizers"]
                    labels = {LABEL_PURPOSE: AttemptPurpose.CLEANUP.value}
                    pods[action.attempt] = a_pod(action.attempt).with_metadata(labels=labels).exited(0)
                    self.cleanups += 1
                    self.state = cleaned_up(self.state, action.attempt, ignored=self.ignored)
                case DeletePod():
                    number = int(action.name.rpartition("-")[2])
                    pods[number] = pods[number].deleted().exited(143)
                case StopPod():
                    number = int(action.name.rpartition("-")[2])
                    pods[number] = pods[number].with_status(phase="Failed", reason="DeadlineExceeded")
                case ReleasePod(pod=pod):
                    number = int(pod.metadata.name.rpartition("-")[2])
                    released = pods[number].released()
                    pods[number] = released
                    if "deletionTimestamp" in released.metadata:
                        del pods[number]
                case ReleaseTaskRun():
                    self.is_over = "deletionTimestamp" in self.taskrun.metadata
                    self.taskrun = self.taskrun.with_metadata(finalizers=[])
                case _:
                    pass

    def _collect_garbage(self, pods: dict[int, APod]) -> None:
        """Delete the pods of a TaskRun that is deleted in the foreground, then its finalizer."""
        if FOREGROUND not in self.taskrun.metadata.get("finalizers", ()):
            return
        for number, pod in pods.items():
            pods[number] = pod.deleted().exited(143)
        if not pods:
            self.taskrun = self.taskrun.with_finalizer()


def replace_state(state: StateView, **fields: Any) -> StateView:
    return msgspec.structs.replace(state, **fields)


def cleaned_up(state: StateView, attempt: int, *, ignored: bool) -> StateView:
    """Return the state after a cleanup attempt has requested all cancellations."""
    epoch = Epoch(attempt=attempt, pod_uid=f"pod-{attempt}", purpose=AttemptPurpose.CLEANUP, can_cleanup=True)
    ends = {} if ignored else {"state": JobState.CANCELLED}

    def cancelled(job: JobSummary) -> JobSummary:
        if not job.is_open or job.handle is None:
            return job
        return msgspec.structs.replace(job, cancel_requested_time=at(10), **ends)

    return replace_state(state, epoch=epoch, jobs=tuple(cancelled(job) for job in state.jobs))


# One run for each reason of each row.

RUNS = a_taskrun().with_state().with_finalizer().with_status(start_time=at(0))
PERMANENT = json.dumps({"reattach": "v1", "kind": "Permanent", "message": "on purpose"})
HELD_JOB = a_job(None, key="second", held=True, holds=1)
INVALID = PodRejection(PodRejectionKind.INVALID, 2, "unknown field", at(20))

Spec = dict[str, Any]


def taskrun_with(spec: Spec, *, start: ATaskRun = RUNS) -> ATaskRun:
    return start.with_spec(**spec)


def running(**spec: Any) -> Callable[[Spec], RunWithJob]:
    return lambda more: RunWithJob(taskrun_with({**spec, **more}), [a_pod().running()])


def ended(pod: APod) -> Callable[[Spec], RunWithJob]:
    return lambda more: RunWithJob(taskrun_with(more), [pod])


def failed_by_rule(more: Spec) -> RunWithJob:
    rule = {"match": {"exitCodes": {"operator": "In", "values": [3]}}, "action": "Fail"}
    retry = {"budgets": {"application": 1}, "rules": [rule]}
    return RunWithJob(taskrun_with({"retry": retry, **more}), [a_pod().exited(3)])


def deleted(more: Spec, *finalizers: str, **observed_more: Any) -> RunWithJob:
    taskrun = taskrun_with(more).being_deleted().with_metadata(finalizers=[FINALIZER_EXTERNAL_JOBS, *finalizers])
    return RunWithJob(taskrun, [a_pod().running()], more=observed_more)


def resolved_with_fail(more: Spec) -> RunWithJob:
    taskrun = taskrun_with(more).with_resolution("SubmissionUnknown", "Fail", key="second")
    taskrun = taskrun.with_failed_attempt(1, cause="Held", charged_to="disruption")
    return RunWithJob(taskrun, jobs=(a_job(), HELD_JOB))


def evicted(more: Spec, **observed_more: Any) -> RunWithJob:
    taskrun = taskrun_with(more).with_failed_attempt(1, cause="Disruption", charged_to="disruption")
    return RunWithJob(taskrun, more=observed_more)


def changed(more: Spec) -> RunWithJob:
    another = a_pod(template={"spec": {"containers": [{"name": "task", "image": "task:1", "command": ["other"]}]}})
    return RunWithJob(taskrun_with(more), [another.disrupted().exited(143)])


def without_jobs(cause: str, budget: str) -> Callable[[Spec], RunWithJob]:
    """Return a run without an open job, because a run with one is held for this budget."""

    def build(more: Spec) -> RunWithJob:
        taskrun = taskrun_with(more).with_budgets(**{budget: 0})
        return RunWithJob(taskrun.with_failed_attempt(1, cause=cause, charged_to=budget), jobs=())

    return build


def completed(more: Spec) -> RunWithJob:
    return RunWithJob(taskrun_with(more), [a_pod().exited(0)], jobs=(a_job(detached=True),), completed_by=1)


CASES: dict[str, dict[str, Callable[[Spec], RunWithJob]]] = {
    "the task completes": {"Succeeded": completed},
    "`spec.cancel: true`": {"Cancelled": running(cancel=True)},
    "`kubectl delete`": {"Deleted": deleted},
    "`kubectl delete --cascade=foreground`, as Argo CD does": {"Deleted": lambda more: deleted(more, FOREGROUND)},
    "it takes longer than `deadlines.runSeconds`": {"RunDeadlineExceeded": running(deadlines={"runSeconds": 5})},
    "a budget is used up": {
        "ApplicationFailed": ended(a_pod().exited(1)),
        "DisruptedTooOften": without_jobs("Disruption", "disruption"),
        "NeverStarted": without_jobs("NeverStarted", "neverStarted"),
    },
    "the task raises `PermanentFailure`": {"PermanentFailure": ended(a_pod().exited(1, message=PERMANENT))},
    "a rule in `retry.rules` with the action `Fail` matches": {"FailedByRule": failed_by_rule},
    "`kubectl reattach resolve NAME --fail`": {"FailedByResolution": resolved_with_fail},
    "no pod can be made from `spec.template`, or a field of it changed that can't be changed": {
        "InvalidTemplate": lambda more: evicted(more, rejection=INVALID),
        "TemplateChanged": changed,
    },
    "its namespace is deleted": {"Deleted": lambda more: deleted(more, namespace_ends=True)},
}
POLICIES = ("onCancel", "onDelete", "onFailure")
EACH = [pytest.param(how, reason, id=f"{reason}-{how}") for how, cases in CASES.items() for reason in cases]


def test_table_has_each_case_and_each_reason_that_ends_a_run() -> None:
    table = rows()
    assert table.keys() == CASES.keys()
    assert {how: set(row.reasons) for how, row in table.items()} == {how: set(cases) for how, cases in CASES.items()}
    reasons = {reason for row in table.values() for reason in row.reasons}
    assert reasons == {DELETED, *(reason.value for reason in set(Reason) - NO_END)}


def test_table_of_events_has_each_reason_once() -> None:
    listed = [reason for reasons, *_ in cells_of("events", REFERENCE) for reason in reasons.split(", ")]
    assert sorted(listed) == sorted({*EventReason, *(set(Reason) - NO_EVENT)})


@pytest.mark.parametrize("how,reason", EACH)
def test_run_ends_with_the_outcome_and_the_reason_of_its_row(how: str, reason: str) -> None:
    row, run = rows()[how], CASES[how][reason]({})
    status = run.play()
    assert status.outcome == row.outcome
    if row.outcome is not None:
        shown = find_condition(status.conditions, ConditionType.SUCCEEDED)
        assert shown is not None
        assert shown.reason == reason
    expected = None if reason == "Succeeded" or not run.jobs else reason
    assert run.ending_reason == expected


@pytest.mark.parametrize("how,reason", EACH)
def test_jobs_of_a_run_end_by_default_as_its_row_says(how: str, reason: str) -> None:
    row, run = rows()[how], CASES[how][reason]({})
    run.play()
    expected = {
        "`Cancel`": "Cancelled",
        "`Cancel`; `Orphan` with an idempotency key": "Cancelled",
        "a detached job runs on": "Detached",
        "the job is orphaned": "Orphaned",
        "the job is orphaned: only the operator's log and metric name it": "Orphaned",
    }[row.default]
    if run.jobs:
        assert (run.load, run.cleanups) == (expected, int(expected == "Cancelled"))


@pytest.mark.parametrize("how,reason", EACH)
def test_policy_of_a_row_decides_and_no_other(how: str, reason: str) -> None:
    row = rows()[how]
    for policy in POLICIES:
        run = CASES[how][reason]({"cleanup": {policy: "Orphan"}})
        run.play()
        if row.field is None or not run.jobs:
            assert run.cleanups == 0
        elif policy == row.field:
            assert (run.load, run.cleanups) == ("Orphaned", 0)
        else:
            assert (run.load, run.cleanups) == ("Cancelled", 1)


@pytest.mark.parametrize("how", [how for how in CASES if "delete`" in how or "foreground" in how])
@pytest.mark.parametrize("policy,state", [(None, "Orphaned"), ("Cancel", "Cancelled"), ("Orphan", "Orphaned")])
def test_deleted_run_with_a_key_leaves_its_job_running_unless_the_policy_is_cancel(
    how: str, policy: str | None, state: str
) -> None:
    assert "`Orphan` with an idempotency key" in rows()[how].default
    cleanup = {} if policy is None else {"cleanup": {"onDelete": policy}}
    run = CASES[how]["Deleted"]({"submission": {"idempotencyKey": "k"}, **cleanup})
    run.play()
    assert run.load == state


def test_defaults_of_cleanup_on_the_pages_are_those_of_the_operator() -> None:
    defaults = Cleanup()
    for number, unit in ((defaults.budget, "cleanup.budget"), (defaults.deadline_seconds, "cleanup.deadlineSeconds")):
        assert f"`{unit}` ({number})" in CONCEPTS
    assert f"| `budget` | {defaults.budget} |" in REFERENCE
    assert f"| `deadlineSeconds` | {defaults.deadline_seconds} |" in REFERENCE
    assert f"| `adopted` | `{defaults.adopted}` |" in REFERENCE
    assert (defaults.on_cancel, defaults.on_failure) == ("Cancel", "Cancel")
    assert "| `onCancel`, `onFailure` | `Cancel` |" in REFERENCE


# The table of jobs.


@dataclass(frozen=True)
class JobCase:
    """A run that is cancelled, and how the job is shown at its end for each policy."""

    jobs: tuple[JobSummary, ...] = ()
    cancel: str = ""
    orphan: str = ""
    ignored: bool = False
    is_held: bool = False
    adopted: str | None = None
    """State of the job with `cleanup.adopted: Cancel`."""

    def run(self, **cleanup: Any) -> RunWithJob:
        taskrun = taskrun_with({"cancel": True, "cleanup": cleanup})
        handler = not self.jobs
        return RunWithJob(taskrun, [a_pod().running()], self.jobs, ignored=self.ignored, has_handler=handler)


ADOPTED = a_job(origin=JobOrigin.ADOPTED)
IN_TASK_STATE = JobCase()
JOBS = {
    "has a handle": JobCase((a_job(),), "Cancelled", "Orphaned"),
    "has an intent and no handle": JobCase((a_job(None),), "Intended", "Intended", is_held=True),
    "existed before, or was adopted": JobCase((ADOPTED,), "Orphaned", "Orphaned", adopted="Cancelled"),
    "was submitted as detached": JobCase((a_job(detached=True),), "Cancelled", "Orphaned"),
    "ignores the cancellation": JobCase((a_job(),), "Orphaned", "Orphaned", ignored=True),
    "its id is only in [task state](#state)": IN_TASK_STATE,
    "was submitted by a function for Airflow's AIP-103, which keeps its id in task state": IN_TASK_STATE,
}


def test_table_of_jobs_has_each_case() -> None:
    assert [job for job, *_ in cells_of("jobs")] == list(JOBS)


@pytest.mark.parametrize("job", JOBS)
def test_job_is_shown_at_the_end_as_its_row_says(job: str) -> None:
    case = JOBS[job]
    cancels, orphans = next((cells for name, *cells in cells_of("jobs") if name == job))
    cancelled, orphaned = case.run(), case.run(onCancel="Orphan")
    for run, cell, shown in ((cancelled, cancels, case.cancel), (orphaned, orphans, case.orphan)):
        run.play()
        assert (run.load, run.is_held) == (shown, case.is_held)
        assert not case.is_held or "held" in cell
        assert ("`Orphaned`" in cell) == (shown == "Orphaned") or len(cell) == 1
    assert orphaned.cleanups == 0
    assert cancelled.cleanups == (0 if case.adopted else 1)


def test_job_of_another_run_is_cancelled_if_the_policy_for_adopted_jobs_says_so() -> None:
    run = JOBS["existed before, or was adopted"].run(adopted="Cancel")
    run.play()
    assert (run.load, run.cleanups) == ("Cancelled", 1)
