"""Model of a cluster for random histories of one TaskRun, with an operator that may crash anywhere.

The model has pods, their nodes and the state. `choices` draws each event, so that a test can
replay and shrink a history. The model checks the rules that must always hold whenever a pod is
created, a status is written, or a finalizer is removed.
"""

import itertools
import json
import random
from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, assert_never

import msgspec

from builders import NAME, SETTINGS, STATE_UID, APod, a_pod, a_taskrun, at
from reattach.api.names import (
    ANNOTATION_STOP_TIME,
    ANNOTATION_WAKE,
    FINALIZER_ATTEMPT,
    FINALIZER_EXTERNAL_JOBS,
    state_name,
)
from reattach.api.objects import Pod
from reattach.api.orphans import OrphanRecord
from reattach.api.reasons import OWN_FAILURES, Budget, Cause, ConditionType, EventReason, Reason
from reattach.api.state import (
    Completion,
    Epoch,
    JobReference,
    JobState,
    JobSummary,
    ReportedEnd,
    Seal,
    SealPurpose,
    StateView,
    Summary,
)
from reattach.api.taskrun import Attempt, AttemptPurpose, Resolution, StateReference, TaskRun, TaskRunStatus
from reattach.planner.budgets import amount, exhausted
from reattach.planner.cleanup import FOREGROUND_DELETION
from reattach.planner.conditions import last_attempt
from reattach.planner.decide import decide
from reattach.planner.external_jobs import describe_job
from reattach.planner.plan import (
    AbsentState,
    Action,
    CreatePod,
    Decision,
    DeletePod,
    EmitEvent,
    EndHolds,
    NodeFacts,
    Observed,
    Plan,
    PodEvent,
    PodEvents,
    PodRejection,
    PodRejectionKind,
    ProtectTaskRun,
    ReadEvents,
    ReadNodes,
    ReadState,
    ReleasePod,
    ReleaseState,
    ReleaseTaskRun,
    SealState,
    StopPod,
)
from reattach.planner.podstatus import stop_time_of, terminated_of
from reattach.planner.retention import is_kept

HELD = '{"reattach":"v1","kind":"Held","message":"outcome unknown"}'
NOT_READY = '{"reattach":"v1","kind":"RetryLater","retryAfterSeconds":5,"notReady":true}'
JobId = tuple[str, int]
GRACE = timedelta(seconds=30)
"""Grace period of each pod."""
STOP_SECONDS = timedelta(seconds=60)
"""Time in which the kubelet must end a stopped pod after its grace period."""
PASSES_MAX = 10
"""Number of reconciliations without an event, after which no action may be left."""


OPEN = {JobState.INTENDED, JobState.ACTIVE, JobState.UNKNOWN, JobState.NOT_FOUND}


class OperatorCrashedError(Exception):
    """The operator crashed between two effects."""


class FixedChoices(random.Random):
    """Choices under which pods have no gates, and a process never holds its submission."""

    def random(self) -> float:
        return 0.99


@dataclass
class SimulatedPod:
    """The true state of a pod, observed or not."""

    apod: APod
    number: int
    version: int
    runs: bool = False
    """Set while the container's process runs, also on a lost node."""
    node_lost: bool = False
    """Set while the pod's node, which has no other pods, reports nothing."""
    intending: str | None = None
    """Key of an intent that the state API has allowed and not stored yet."""
    submitting: JobId | None = None
    """Job whose intent is stored, so that the process may submit at any later time."""
    submitted: JobId | None = None
    """Job whose handle is not stored yet."""
    purpose: AttemptPurpose = AttemptPurpose.RUN

    @property
    def node(self) -> str:
        return f"node-{self.number}"

    @property
    def view(self) -> Pod:
        return self.apod.with_metadata(resourceVersion=str(self.version)).build()

    @property
    def is_deleted(self) -> bool:
        return "deletionTimestamp" in self.apod.metadata

    @property
    def is_stopped(self) -> bool:
        return ANNOTATION_STOP_TIME in self.apod.metadata["annotations"]

    @property
    def is_over(self) -> bool:
        return self.apod.status.get("phase") in {"Succeeded", "Failed"} or (
            self.is_deleted and not self.apod.spec.get("nodeName")
        )


@dataclass
class ModelCluster:
    """The true state of the cluster."""

    choices: random.Random
    spec: dict[str, Any]
    seconds: float = 0
    versions: "itertools.count[int]" = field(default_factory=lambda: itertools.count(100))
    taskrun: TaskRun = field(init=False)
    pods: dict[str, SimulatedPod] = field(default_factory=dict)
    state: StateView | None = None
    created: list[int] = field(default_factory=list)
    exited_zero: set[int] = field(default_factory=set)
    status_writes: int = 0
    events: int = 0
    completed: bool = False
    budgets_edited: bool = False
    failed_by_rule: bool = False
    is_gone: bool = False
    """Set once the TaskRun is deleted and has no finalizer."""
    released_by_hand: bool = False
    """Set once a user removed our finalizer from the TaskRun."""
    reads_nodes: bool = False
    """Set if the operator has the right to read nodes."""
    deletion_counts: bool = False
    """Set if a node is deleted only after its machine is off, which the operator knows."""
    nodes: dict[str, NodeFacts] = field(default_factory=dict)
    """Nodes that have changed since the start."""
    submitters: dict[JobId, set[str]] = field(default_factory=dict)
    submitting_attempts: dict[JobId, set[int]] = field(default_factory=dict)
    reported_holds: set[JobId] = field(default_factory=set)
    """Jobs that were held by a task whose end the operator has observed."""
    losses: int = 0
    is_calm: bool = False
    was_suspended: bool = False
    registers: frozenset[str] = frozenset()
    """Registrations of the task for its cleanup: adapters, a handler."""
    running: set[JobId] = field(default_factory=set)
    """Jobs that run in the external system."""
    cleanups: int = 0
    released: int = 0
    """Number of attempts that ended to wait without a pod."""
    recorded: set[int] = field(default_factory=set)
    """Attempts with an end that was written to status."""
    records: list[OrphanRecord] = field(default_factory=list)
    state_was_lost: bool = False
    must_notify: bool = False
    """Makes the operator's next observation include TaskRun and state."""

    def __post_init__(self) -> None:
        self.taskrun = self._versioned(a_taskrun(**self.spec).build())

    # -- the API server ------------------------------------------------------------------

    def write_status(self, based_on: str, status: TaskRunStatus) -> TaskRun | None:
        """Write the status, or return None if the TaskRun has changed meanwhile."""
        if self.taskrun.metadata.resource_version != based_on:
            return None
        self._check_status(self.taskrun.status, status)
        self.status_writes += 1
        self.taskrun = self._versioned(msgspec.structs.replace(self.taskrun, status=status))
        return self.taskrun

    def create_pod(self, action: CreatePod, based_on: TaskRun) -> SimulatedPod:
        name = action.name
        if name in self.pods:
            assert self.pods[name].number == action.attempt
            return self.pods[name]
        self._check_create(action)
        if action.purpose is AttemptPurpose.CLEANUP:
            self._check_create_cleanup(based_on)
        else:
            self._check_create_run(based_on)
        apod = a_pod(action.attempt).with_metadata(
            uid=f"uid-{next(self.versions)}",
            name=name,
            creationTimestamp=at(self.seconds).isoformat(),
            labels=json.loads(action.body)["metadata"]["labels"],
            annotations=json.loads(action.body)["metadata"]["annotations"],
        )
        if self.choices.random() < 0.1:
            apod = apod.gated()
        if self.choices.random() < 0.2:
            apod = apod.with_container("proxy", waiting={"reason": "ContainerCreating"})
        self.created.append(action.attempt)
        self.nodes.pop(f"node-{action.attempt}", None)
        self.pods[name] = SimulatedPod(apod, action.attempt, next(self.versions), purpose=action.purpose)
        return self.pods[name]

    def delete_pod(self, name: str, uid: str, grace: int = 30) -> None:
        pod = self.pods.get(name)
        if pod is None or pod.apod.metadata["uid"] != uid or pod.is_deleted:
            return
        if not pod.apod.spec.get("nodeName") or pod.is_over:
            grace = 0
        self.change(pod, pod.apod.deleted(self.seconds, grace))

    def stop_pod(self, action: StopPod) -> None:
        pod = self.pods.get(action.name)
        if pod is None or pod.apod.metadata["uid"] != action.uid:
            return
        assert self.is_recorded(pod.number), "a pod was stopped before the end of its attempt was recorded"
        assert not pod.runs, "the task was stopped without a deletion"
        annotations = pod.apod.metadata["annotations"] | {ANNOTATION_STOP_TIME: action.time.isoformat()}
        self.change(pod, pod.apod.with_metadata(annotations=annotations))

    def release_pod(self, seen: Pod) -> bool:
        """Under the precondition that nothing has changed since it was seen."""
        pod = self.pods.get(seen.metadata.name)
        if pod is None or pod.apod.metadata["uid"] != seen.metadata.uid:
            return True
        if not is_kept(seen) and seen.metadata.deletion_timestamp is None:
            self.delete_pod(seen.metadata.name, seen.metadata.uid)
            seen = pod.view
        if str(pod.version) != seen.metadata.resource_version:
            return False
        self._check_release(pod)
        self.change(pod, pod.apod.released())
        return True

    def change(self, pod: SimulatedPod, apod: APod) -> None:
        if apod.spec.get("nodeName"):
            apod = apod.with_spec(nodeName=pod.node)
        pod.apod, pod.version = apod, next(self.versions)
        if pod.is_deleted and pod.is_over and FINALIZER_ATTEMPT not in apod.metadata["finalizers"]:
            del self.pods[apod.metadata["name"]]

    def summary(self) -> Summary | None:
        if self.state is None:
            return None
        completed = self.state.completion.attempt if self.state.completion else None
        return Summary(
            epoch=self.state.epoch,
            completed_attempt=completed,
            seal=self.state.seal,
            jobs=self.state.jobs,
            counts=self.state.counts,
        )

    def seal(self, action: SealState) -> None:
        """Seal the state, like the store. A seal only grows."""
        state = self.existing_state
        if state is not None:
            through = max(action.through_attempt, state.seal.through_attempt if state.seal else 0)
            is_end = SealPurpose.END in {action.purpose, state.seal.purpose if state.seal else None}
            purpose = SealPurpose.END if is_end else SealPurpose.SUSPEND
            self.state = msgspec.structs.replace(state, seal=Seal(through_attempt=through, purpose=purpose))

    def end_holds(self, action: EndHolds) -> None:
        """End the holds of these jobs, like the store."""
        state = self.existing_state
        for which in action.jobs if state else ():
            live = {pod.apod.metadata["uid"] for pod in self.pods.values() if pod.runs}
            assert not live & self.submitters.get(which, set()), "a hold was ended while a submitter runs"
            if (job := self._job(which)) is not None:
                self._change_job(job, held=False)

    def read_node(self, name: str) -> NodeFacts | None:
        """Return the facts about a node, like the reader of nodes: None if it can't be read."""
        facts = self.facts_about(name)
        if not self.reads_nodes or (facts.created is None and not self.deletion_counts):
            return None
        return NodeFacts() if not self.is_calm and self.choices.random() < 0.1 else facts

    def read_events(self, now: datetime) -> PodEvents:
        """Return the events about the pod that is pending, which users can write as well."""
        if self.choices.random() < 0.2:
            return PodEvents()
        newest = PodEvent("FailedMount", 'secret "never" not found') if self.choices.random() < 0.5 else None
        return PodEvents(newest, now + timedelta(seconds=60))

    def facts_about(self, name: str) -> NodeFacts:
        return self.nodes.get(name) or NodeFacts(at(0), deletion_counts=self.deletion_counts)

    def release_taskrun(self, based_on: str) -> bool:
        """Under the precondition that nothing has changed since it was seen."""
        if self.taskrun.metadata.resource_version != based_on:
            return False
        self._check_jobs(self.taskrun.status)
        self.remove_finalizer(FINALIZER_EXTERNAL_JOBS)
        return True

    def protect_taskrun(self, based_on: str) -> None:
        metadata = self.taskrun.metadata
        if metadata.resource_version == based_on and metadata.deletion_timestamp is None:
            self._update_metadata(finalizers=(*metadata.finalizers, FINALIZER_EXTERNAL_JOBS))

    def remove_finalizer(self, name: str) -> None:
        metadata = self.taskrun.metadata
        self._update_metadata(finalizers=tuple(one for one in metadata.finalizers if one != name))
        self.is_gone = metadata.deletion_timestamp is not None and not self.taskrun.metadata.finalizers

    @property
    def existing_state(self) -> StateView | None:
        """Return the state, or None if it is not the one that status names."""
        named = self.taskrun.status.state
        return self.state if self.state is None or named is None or named.uid == self.state.uid else None

    def _update_metadata(self, **fields: Any) -> None:
        metadata = msgspec.structs.replace(self.taskrun.metadata, **fields)
        self.taskrun = self._versioned(msgspec.structs.replace(self.taskrun, metadata=metadata))

    def _versioned(self, taskrun: TaskRun) -> TaskRun:
        metadata = msgspec.structs.replace(taskrun.metadata, resource_version=str(next(self.versions)))
        return msgspec.structs.replace(taskrun, metadata=metadata)

    # -- rules that must always hold ---------------------------------------------------------------

    def is_presumed_over(self, pod: SimulatedPod) -> bool:
        deleted = pod.view.metadata.deletion_timestamp
        lost = timedelta(seconds=self.taskrun.spec.deadlines.lost_seconds)
        is_lost = deleted is not None and deleted + lost <= at(self.seconds)
        is_dead = self.reads_nodes and pod.node_lost and not pod.runs and (pod.is_deleted or pod.is_stopped)
        is_unstoppable = pod.is_stopped and stopped_at(pod) + GRACE + lost <= at(self.seconds)
        return pod.is_over or is_lost or is_dead or is_unstoppable

    def is_recorded(self, number: int) -> bool:
        status = self.taskrun.status
        listed = {attempt.number: attempt for attempt in status.attempts}
        return listed[number].finish_time is not None if number in listed else number <= status.counts.attempts

    def _is_forgotten(self, number: int) -> bool:
        """Return whether nothing names an attempt: no pod, and no state that it opened."""
        return self.state_was_lost and all(pod.number != number for pod in self.pods.values())

    def _check_create(self, action: CreatePod) -> None:
        status = self.taskrun.status
        assert status.outcome is None, "a pod was made for a finished TaskRun"
        # After a loss of the state, nothing may remember an attempt whose pod is gone, too.
        assert action.attempt not in self.created or self.losses, "a number was used twice"
        assert status.next_attempt_time is None or status.next_attempt_time <= at(self.seconds), "a wait was cut short"

    def _check_create_cleanup(self, based_on: TaskRun) -> None:
        status, cleanup = self.taskrun.status, based_on.spec.cleanup
        assert status.ending is not None, "a cleanup began before the ending was recorded"
        seal = self.existing_state.seal if self.existing_state else None
        assert self.existing_state is None or (seal and seal.purpose is SealPurpose.END), "before the seal"
        assert at(self.seconds) < status.ending.cleanup_deadline, "a cleanup began after its deadline"
        assert status.counts.charged.cleanup < cleanup.budget, "a cleanup began over its budget"
        assert FOREGROUND_DELETION not in based_on.metadata.finalizers, "a cleanup began before the pods were deleted"
        assert not any(one.cause == "Succeeded" for one in status.attempts), "after a success"
        policy = {"Cancelled": cleanup.on_cancel, "Failed": cleanup.on_failure, None: cleanup.on_delete}
        assert policy[status.ending.outcome] in {None, "Cancel"}, "a cleanup began although the policy is Orphan"
        assert cleanup.command or (self.state and self.state.epoch and self.state.epoch.can_cleanup), "without a way"
        cleanups = [pod for pod in self.pods.values() if pod.purpose is AttemptPurpose.CLEANUP]
        assert all(self.is_recorded(pod.number) for pod in cleanups), "before the last end was recorded"
        runs = [pod for pod in self.pods.values() if pod.purpose is AttemptPurpose.RUN]
        are_stopped = all(pod.is_deleted or pod.is_stopped or pod.is_over for pod in runs)
        assert are_stopped, "before the pods were stopped"
        listed = {attempt.number for attempt in status.attempts}
        numbers = {pod.number for pod in self.pods.values()}
        assert all(number in listed or self.was_recorded(number) for number in numbers), "an attempt is not listed"
        self.cleanups += 1
        assert self.cleanups <= cleanup.budget, "too many cleanup pods"

    def was_recorded(self, number: int) -> bool:
        return number in self.recorded

    def _check_create_run(self, based_on: TaskRun) -> None:
        status = self.taskrun.status
        assert status.ending is None, "a run attempt began after the ending was recorded"
        is_patient = based_on.spec.pod_replacement_policy == "Failed"
        others = [pod for pod in self.pods.values() if is_patient or not pod.is_deleted]
        assert all(self.is_presumed_over(pod) for pod in others), "two attempts run at once"
        assert all(self.is_recorded(number) or self._is_forgotten(number) for number in self.created), (
            "a pod was made before the last end was recorded"
        )
        grants = sum(one.action == "Continue" for one in based_on.spec.resolutions)
        budgets = based_on.spec.retry.budgets
        assert exhausted(status.counts, budgets, grants) is None, "a pod was made without a budget for it"
        assert not is_held(status), "a pod was made while the run is held"
        metadata = based_on.metadata
        assert not based_on.spec.cancel, "a pod was made for a cancelled TaskRun"
        assert not self.failed_by_rule, "a pod was made after a rule failed the run"
        suspension = status.suspension
        assert not based_on.spec.suspend, "a pod was made for a suspended TaskRun"
        assert suspension is None or suspension.start_time is None, "a pod was made before the resumption was recorded"
        for job in self.existing_state.jobs if self.existing_state else ():
            which = (job.key, job.generation)
            is_waiting = (
                job.held
                and which in self.reported_holds
                and len(self._resolutions_of("SubmissionUnknown", which)) < job.holds
            )
            assert not is_waiting, "a pod was made before the hold was resolved"
        assert metadata.deletion_timestamp is None, "a pod was made for a TaskRun that is being deleted"

    def _check_release(self, pod: SimulatedPod) -> None:
        metadata = self.taskrun.metadata
        is_let_go = metadata.deletion_timestamp is not None and FINALIZER_EXTERNAL_JOBS not in metadata.finalizers
        assert self.is_recorded(pod.number) or is_let_go, "a pod was released before its end was recorded"
        assert self.is_presumed_over(pod), "a running pod was released"
        assert pod.is_deleted or is_let_go or is_kept(pod.view), "a pod that is not kept was released and not deleted"

    def _check_status(self, before: TaskRunStatus, after: TaskRunStatus) -> None:
        assert before.outcome is None, "a finished TaskRun was written to"
        ended = {attempt.number: attempt for attempt in before.attempts if attempt.finish_time}
        listed = {attempt.number: attempt for attempt in after.attempts}
        for number, attempt in ended.items():
            assert is_same_end(attempt, listed.get(number, attempt)), "a recorded end was changed"
        assert before.ending is None or after.ending == before.ending, "the ending was changed"
        self._check_suspension(before, after)
        self._check_evidence(before, after)
        new = [attempt for attempt in after.attempts if attempt.finish_time and attempt.number not in ended]
        self.recorded |= {attempt.number for attempt in new}
        for attempt in new:
            if attempt.purpose is AttemptPurpose.CLEANUP:
                assert attempt.charged_to == (None if attempt.cause == "Succeeded" else "cleanup")
            elif attempt.cause == "Stopped":
                assert attempt.charged_to is None, "a stopped attempt was charged"
                assert self._is_unwanted(), "an attempt was stopped without a request"
            elif attempt.charged_to == "notReady":
                budget = self.taskrun.spec.retry.budgets.not_ready
                assert amount(before.counts.charged, Budget.NOT_READY) < budget, (
                    "more was charged to notReady than it allows"
                )
                assert after.not_ready_start_time is not None
            elif attempt.cause in OWN_FAILURES and attempt.charged_to is None:
                self.failed_by_rule = True
                actions = {rule.action for rule in self.taskrun.spec.retry.rules}
                assert "Fail" in actions, "a failure was charged to nothing without a rule"
        assert all(
            attempt.number > before.counts.attempts or attempt.number in {a.number for a in before.attempts}
            for attempt in new
        )
        for budget in Budget:
            charged = sum(attempt.charged_to == budget for attempt in new)
            assert amount(after.counts.charged, budget) == amount(before.counts.charged, budget) + charged, "wrong sum"
        self._check_waiting(before, after, new)
        presumed = [attempt.number for attempt in new if attempt.end == "Presumed"]
        still_presumed = [attempt.number for attempt in after.attempts if attempt.end == "Presumed"]
        assert after.counts.last_presumed >= max(still_presumed, default=0), "a presumed end is forgotten"
        assert after.counts.last_presumed <= max([before.counts.last_presumed, *presumed]), "an end was not presumed"
        self._check_history(before, after, new)
        self._check_readiness(after)
        if after.outcome is not None:
            self._check_outcome(after)

    def _check_waiting(self, before: TaskRunStatus, after: TaskRunStatus, new: list[Attempt]) -> None:
        """Check that a wait is charged to nothing, counted, and was reported by its task."""
        waits = [attempt for attempt in new if attempt.cause == Cause.WAITING]
        end = self.state.end if self.state is not None else None
        for attempt in waits:
            assert attempt.charged_to is None, "a wait was charged"
            assert end is not None, "a run waits without a report of its task"
            assert (end.attempt, end.pod_uid) == (attempt.number, attempt.pod_uid), "a run waits for another attempt"
        counts = [0 if one.counts.waiting is msgspec.UNSET else one.counts.waiting for one in (before, after)]
        assert counts[1] == counts[0] + len(waits) <= self.released, "a wait is not counted once"

    def _check_history(self, before: TaskRunStatus, after: TaskRunStatus, new: list[Attempt]) -> None:
        """Check that each attempt that leaves the list has ended, and is counted by its cause."""
        is_open = sum(attempt.finish_time is None for attempt in after.attempts)
        is_last = len(new) if after.outcome is not None else 0
        assert len(after.attempts) <= max(self.taskrun.spec.history_limit, 3 + is_open) + is_last
        listed = {attempt.number for attempt in after.attempts}
        left = [attempt for attempt in before.attempts if attempt.number not in listed]
        expected = Counter({one.cause: one.count for one in before.folded_attempts})
        expected.update(str(attempt.cause) for attempt in left)
        assert {one.cause: one.count for one in after.folded_attempts} == expected, "an attempt was folded wrongly"
        assert after.outcome is None or not left, "an attempt was folded in the last write"
        assert len(msgspec.json.encode(after.folded_attempts)) <= 1024, "folded attempts are too large"

    def check_unkept_pods(self) -> None:
        """Check that no pod is kept of an attempt that was folded or released its pod."""
        unkept = [pod for pod in self.pods.values() if self.keeps_no_pod(pod.number)]
        assert all(pod.is_deleted for pod in unkept), "a pod is kept that must not be kept"

    def keeps_no_pod(self, number: int) -> bool:
        entry = next((one for one in self.taskrun.status.attempts if one.number == number), None)
        is_folded = entry is None and self.is_recorded(number)
        return is_folded or (entry is not None and entry.cause == Cause.WAITING)

    def _check_evidence(self, before: TaskRunStatus, after: TaskRunStatus) -> None:
        """Check that no process runs after a reported end, and when an end is presumed."""
        known = {attempt.number for attempt in before.attempts if attempt.end == "Reported"}
        ended = {attempt.number for attempt in before.attempts if attempt.finish_time}
        pods = {pod.number: pod for pod in self.pods.values()}
        for attempt in after.attempts:
            pod = pods.get(attempt.number)
            if pod is None or pod.apod.metadata["uid"] != attempt.pod_uid:
                continue
            if attempt.end == "Reported" and attempt.number not in known:
                assert not pod.runs, "the end of a running process was reported"
            if attempt.end != "Presumed" or attempt.number in ended or self.is_presumed_over(pod):
                continue
            if attempt.purpose is AttemptPurpose.CLEANUP or "terminated" in _container(pod).get("state", {}):
                continue
            spec = self.taskrun.spec
            is_replaced = pod.is_deleted and spec.pod_replacement_policy == "TerminatingOrFailed"
            assert is_replaced, "an end was presumed too early"
            assert not spec.suspend, "the pod of a suspended run was replaced"
            assert after.ending is None, "the pod of a run that ends was replaced"

    def _check_suspension(self, before: TaskRunStatus, after: TaskRunStatus) -> None:
        """Check that a stop is recorded before it happens, and charged to nothing."""
        stops = {attempt.number for attempt in before.attempts if attempt.reason == "Suspended"}
        for attempt in after.attempts:
            if attempt.number in stops and attempt.finish_time is not None:
                assert attempt.charged_to is None, "a suspended attempt was charged"
        suspension = after.suspension
        is_suspended = suspension is not None and suspension.start_time is not None
        shown = [one.status for one in after.conditions if one.type == ConditionType.SUSPENDED]
        assert shown == ([] if suspension is None else ["True" if is_suspended else "False"])
        assert after.outcome is None or not is_suspended, "a finished TaskRun is suspended"
        total = [status.suspension.total_seconds if status.suspension else 0 for status in (before, after)]
        assert total[0] <= total[1], "the time of a suspension is forgotten"

    @staticmethod
    def _check_readiness(status: TaskRunStatus) -> None:
        """Check that the fitting one of Reconciling and Stalled is present; none after success."""
        found = [one.type for one in status.conditions if one.type in {"Reconciling", "Stalled"}]
        is_stalled = is_held(status) or status.outcome is not None
        expected = [] if status.outcome == "Succeeded" else ["Stalled" if is_stalled else "Reconciling"]
        assert found == expected, "a tool that waits for the TaskRun is misled"

    def _check_outcome(self, status: TaskRunStatus) -> None:
        runs = [pod for pod in self.pods.values() if pod.purpose is AttemptPurpose.RUN]
        assert all(self.is_presumed_over(pod) for pod in runs), "it ended while a pod runs"
        is_late = status.ending is not None and status.ending.cleanup_deadline <= at(self.seconds)
        assert is_late or all(self.is_presumed_over(pod) for pod in self.pods.values()), "while a cleanup runs"
        if status.ending is not None and status.outcome != "Succeeded":
            assert status.outcome == status.ending.outcome, "it ended in another way than it began to"
        assert all(attempt.finish_time is not None for attempt in status.attempts), "it ended while an attempt runs"
        assert FINALIZER_EXTERNAL_JOBS not in self.taskrun.metadata.finalizers, (
            "it ended before its finalizer was removed"
        )
        self._check_jobs(status)
        record = self.state.completion if self.state else None
        if status.outcome == "Cancelled":
            assert self.taskrun.spec.cancel, "cancelled unasked"
        if status.outcome == "Succeeded":
            by_exit_code = self.taskrun.spec.completion != "Recorded" and bool(self.exited_zero)
            assert self.completed or by_exit_code, "success without a positive sign"
        elif self.taskrun.spec.completion != "ExitCode" and not self.budgets_edited and record is not None:
            last = last_attempt(status.attempts)
            assert last is not None
            assert record.attempt < last.number, "a recorded completion was thrown away"

    def _check_jobs(self, status: TaskRunStatus) -> None:
        """Check that each job that is open at the end of the TaskRun is named."""
        shown = {(job.key, job.generation): job for job in status.external_jobs}
        state = self.existing_state
        jobs = state.jobs if state else ()
        for job in jobs:
            if not job.is_open:
                continue
            resolutions = self._resolutions_of("SubmissionUnknown", (job.key, job.generation))
            left = shown.get((job.key, job.generation))
            assert left is not None, "an open job is not even shown"
            # Resubmit states that the job does not exist. A handle that was stored later, without a
            # new hold, refutes that.
            is_denied = "Fail" in resolutions or ("Resubmit" in resolutions and (job.held or job.handle is None))
            assert left.state in {"Orphaned", "Detached"} or (left.state == "Failed" and is_denied), "not named"
            assert left.handle is not None or resolutions or self.released_by_hand, "an intent was forgotten"
        # A deleted TaskRun shows nothing any more, and detached jobs are meant to continue.
        detached = {(job.key, job.generation) for job in jobs if job.state == JobState.DETACHED}
        if not (self.state_was_lost or self.released_by_hand):
            for which in self.running - (detached if status.outcome is None else set()):
                assert which in shown, "a running job is not shown"
                resolutions = self._resolutions_of("SubmissionUnknown", which)
                is_denied = {"Fail", "Resubmit"} & set(resolutions)
                assert shown[which].state in {"Orphaned", "Detached"} or is_denied, "a running job is not named"
        assert status.orphaned or all(job.state != "Orphaned" for job in shown.values())
        over = {(job.key, job.generation) for job in jobs if not job.is_open}
        for which, job in shown.items():
            assert job.state not in OPEN or (status.outcome is None and which in over), "an open job was left behind"

    def _resolutions_of(self, held: str, job: JobId | None = None) -> list[str]:
        job_id = job or (None, None)
        given = self.taskrun.spec.resolutions
        return [one.action for one in given if one.held == held and (one.key, one.generation) == job_id]

    def _is_unwanted(self) -> bool:
        spec, metadata = self.taskrun.spec, self.taskrun.metadata
        return (
            spec.cancel
            or self.taskrun.status.ending is not None
            or spec.deadlines.run_seconds is not None
            or metadata.deletion_timestamp is not None
            or any(one.action == "Fail" for one in spec.resolutions)
            or self.was_suspended
        )

    # -- events ------------------------------------------------------------------------------

    def apply_random_event(self) -> None:
        """Apply an event to one pod or to the rest of the cluster."""
        self.events += 1
        # Steps of time have all sizes.
        self.seconds += self.choices.choice([0, 0.3, 1, 1, 2, 5, 20, 60, 400])
        pods = list(self.pods.values())
        draw = self.choices.random()
        if draw < 0.03 and self.state is not None and self.taskrun.status.state is not None:
            self.state, self.state_was_lost = None, True
        elif draw < 0.06:
            self._edit_budgets()
        elif draw < 0.07:
            self._edit_spec(cancel=True)
        elif draw < 0.08:
            self._delete()
        elif draw < 0.11:
            self.suspend()
        elif draw < 0.17:
            self.resolve()
        elif draw < 0.175 and FINALIZER_EXTERNAL_JOBS in self.taskrun.metadata.finalizers:
            self.released_by_hand = True
            self.remove_finalizer(FINALIZER_EXTERNAL_JOBS)
        elif draw < 0.23 and FOREGROUND_DELETION in self.taskrun.metadata.finalizers:
            self.collect_garbage()
        elif draw < 0.27 and self.give_evidence():
            pass
        elif draw < 0.3:
            self.wake()
        elif pods:
            self.apply_event_to(self.choices.choice(pods))

    def apply_concurrent_writes(self) -> None:
        """Let tasks store intents and open the state between a read and a write of the operator."""
        for pod in list(self.pods.values()):
            if not self.is_calm and pod.is_over and self.state is None and self.choices.random() < 0.3:
                self.open_state(pod)
            if not self.is_calm and pod.runs and pod.intending is not None and self.choices.random() < 0.5:
                self.act_on_jobs(pod)

    def check_late_writes(self) -> None:
        """Check that processes which run after the end store nothing."""
        for pod in list(self.pods.values()):
            for _ in range(3):
                if pod.runs:
                    self.open_state(pod)
                    self.act_on_jobs(pod)

    def apply_event_to(self, pod: SimulatedPod) -> None:
        if pod.node_lost:
            self._apply_event_on_lost_node(pod)
        elif pod.is_over:
            if self.choices.random() < 0.3:
                self.delete_pod(pod.apod.metadata["name"], pod.apod.metadata["uid"])
        elif pod.is_deleted or pod.is_stopped:
            self.stop(pod)
        elif pod.runs:
            self._apply_event_to_running(pod)
        elif "waiting" in _container(pod).get("state", {}) or not _container(pod):
            self._apply_event_to_pending(pod)
        else:
            self.end_pod(pod)

    def _apply_event_to_pending(self, pod: SimulatedPod) -> None:
        apod, name, uid = pod.apod, pod.apod.metadata["name"], pod.apod.metadata["uid"]
        match self.choices.randrange(9):
            case 0:
                self.delete_pod(name, uid)
            case 1:
                self.change(
                    pod, apod.with_spec(schedulingGates=[]).unschedulable(f"0/{self.choices.randrange(9)} nodes")
                )
            case 2:
                reason = self.choices.choice(["ErrImagePull", "ImagePullBackOff", "CreateContainerConfigError"])
                self.change(pod, apod.scheduled(self.seconds).waiting(reason, "not found"))
            case 3:
                self.change(pod, apod.scheduled(self.seconds).failed("UnexpectedAdmissionError"))
            case _:
                self.start(pod)

    def _apply_event_to_running(self, pod: SimulatedPod) -> None:
        name, uid = pod.apod.metadata["name"], pod.apod.metadata["uid"]
        if self.choices.random() < 0.6:
            self.act_on_jobs(pod)
            return
        if pod.purpose is AttemptPurpose.CLEANUP:
            self._apply_event_to_cleanup(pod)
            return
        match self.choices.randrange(18):
            case 0:
                self.delete_pod(name, uid)
            case 1:
                self.change(pod, pod.apod.disrupted(seconds=self.seconds))
                self.delete_pod(name, uid)
            case 2 | 3:
                # The worst time, because the state API has allowed the intent and not responded
                # yet.
                self.open_state(pod)
                self._allow_intent(pod, self.choices.choice("ab"))
                pod.node_lost = True
            case 4:
                self._force_delete(pod)
            case 5 | 6 | 7:
                self.open_state(pod)
            case 8:
                self.complete(pod)
            case 9:
                self.exit(pod, 137, reason="OOMKilled")
            case 10 | 11:
                self.exit(pod, 0)
            case 12 | 13 | 14 | 15:
                self.end_with_report(pod)
            case _:
                self.exit(pod, 1)

    def _apply_event_to_cleanup(self, pod: SimulatedPod) -> None:
        match self.choices.randrange(6):
            case 0:
                self.change(pod, pod.apod.disrupted(seconds=self.seconds))
                self.delete_pod(pod.apod.metadata["name"], pod.apod.metadata["uid"])
            case 1:
                pod.node_lost = True
            case 2:
                self._force_delete(pod)
            case 3:
                self.exit(pod, 1)
            case 4:
                self.exit(pod, 0)
            case _:
                self.open_state(pod)

    def _apply_event_on_lost_node(self, pod: SimulatedPod) -> None:
        """Apply an event to a pod on a lost node, where it keeps running and its deletion hangs."""
        if pod.runs and self.choices.random() < 0.5:
            self.act_on_jobs(pod)
            return
        match self.choices.randrange(8):
            case 0:
                self.complete(pod)
            case 1:
                self.recover(pod)
            case 2:
                self.take_out_of_service(pod)
            case 3:
                self.replace_node(pod)
            case 4 if not pod.is_over:
                self.change(pod, pod.apod.disrupted("DeletionByPodGC", self.seconds).with_status(phase="Failed"))
            case _ if not pod.is_deleted:
                self.change(pod, pod.apod.disrupted("DeletionByTaintManager", self.seconds))
                self.delete_pod(pod.apod.metadata["name"], pod.apod.metadata["uid"])
            case _:
                pass

    def recover(self, pod: SimulatedPod) -> None:
        """Let the node report again, maybe about a process that ended with its machine."""
        facts, pod.node_lost = self.facts_about(pod.node), False
        self.nodes[pod.node] = replace(facts, created=facts.created or at(self.seconds), out_of_service=False)
        if not pod.runs and not pod.is_over and "running" in _container(pod).get("state", {}):
            reason = self.choices.choice(["ContainerStatusUnknown", "Error"])
            self.change(pod, pod.apod.exited(137, self.seconds, reason=reason).with_status(phase="Failed"))

    def take_out_of_service(self, pod: SimulatedPod) -> None:
        """Taint the node, as a user does after the machine was switched off."""
        facts = self.facts_about(pod.node)
        if facts.created is not None:
            pod.runs = False
            self.nodes[pod.node] = replace(facts, out_of_service=True)

    def give_evidence(self) -> bool:
        """Taint the node of an attempt whose end is presumed. Return whether there is one."""
        presumed = [attempt.number for attempt in self.taskrun.status.attempts if attempt.end == "Presumed"]
        if not presumed:
            return False
        number = self.choices.choice(presumed)
        pod = next((pod for pod in self.pods.values() if pod.number == number), None)
        if pod is None:
            name = f"node-{number}"
            self.nodes[name] = replace(self.facts_about(name), out_of_service=True)
        elif pod.node_lost:
            self.take_out_of_service(pod)
        return True

    def replace_node(self, pod: SimulatedPod) -> None:
        """Delete the node, or create one of the same name."""
        facts = self.facts_about(pod.node)
        if facts.created is None:
            self.nodes[pod.node] = replace(facts, created=at(self.seconds))
            return
        pod.runs = pod.runs and not self.deletion_counts
        self.nodes[pod.node] = replace(facts, created=None, out_of_service=False)

    def start(self, pod: SimulatedPod) -> None:
        pod.runs = True
        self.change(pod, pod.apod.scheduled(self.seconds).running(self.seconds))
        if any(one["name"] == "proxy" for one in pod.apod.status["containerStatuses"]):
            self.change(pod, pod.apod.with_container("proxy", running={"startedAt": at(self.seconds).isoformat()}))

    def open_state(self, pod: SimulatedPod) -> None:
        """Open the state, like the state API, unless the attempt is fenced."""
        named = self.taskrun.status.state
        cleans_up = pod.purpose is AttemptPurpose.CLEANUP
        if self.is_over or (self.taskrun.metadata.deletion_timestamp is not None and not cleans_up):
            return
        if self.existing_state is None and named is not None:
            return
        epoch = self.state.epoch if self.state else None
        if epoch is not None and epoch.attempt >= pod.number:
            return
        seal = self.state.seal if self.state is not None else None
        if cleans_up != (seal is not None and seal.purpose is SealPurpose.END) or self._is_sealed_out(pod):
            return
        mine = Epoch(
            attempt=pod.number,
            pod_uid=pod.apod.metadata["uid"],
            purpose=pod.purpose,
            can_cleanup=epoch.can_cleanup if cleans_up and epoch else bool(self.registers),
            cleanup_handler=epoch.cleanup_handler if cleans_up and epoch else "handler" in self.registers,
        )
        if mine.cleanup_handler and not cleans_up and FINALIZER_EXTERNAL_JOBS not in self.taskrun.metadata.finalizers:
            self._update_metadata(finalizers=(*self.taskrun.metadata.finalizers, FINALIZER_EXTERNAL_JOBS))
        if self.state is None:
            self.losses += 1
            self.submitters, self.submitting_attempts, self.reported_holds = {}, {}, set()
        uid = f"{STATE_UID}-{self.losses}"
        state = self.state or StateView(uid=uid, resource_version="1")
        self.state = msgspec.structs.replace(state, epoch=mine)
        if named is None:
            name = state_name(NAME, self.taskrun.metadata.uid)
            status = msgspec.structs.replace(self.taskrun.status, state=StateReference(config_map=name, uid=uid))
            self.taskrun = self._versioned(msgspec.structs.replace(self.taskrun, status=status))

    def end_with_report(self, pod: SimulatedPod) -> None:
        if self.choices.random() < 0.7:
            self.release(pod)
        else:
            self.exit(pod, 1, message="" if self.report_end(pod) else NOT_READY)

    def report_end(self, pod: SimulatedPod) -> bool:
        """Store that the task is not ready, and return whether the state API accepts that."""
        state = self.existing_state
        if state is None or not self._is_current(pod) or self.completed or self.choices.random() < 0.5:
            return False
        end = ReportedEnd(
            attempt=pod.number,
            pod_uid=pod.apod.metadata["uid"],
            time=at(self.seconds),
            kind="NotReady",
            retry_after_seconds=5,
        )
        self.state = msgspec.structs.replace(state, end=end)
        return True

    def complete(self, pod: SimulatedPod) -> None:
        state = self.existing_state
        if state is None or not self._is_current(pod) or self.is_over or pod.purpose is AttemptPurpose.CLEANUP:
            return
        if any(job.is_open and not (job.detached and job.handle) for job in state.jobs):
            return
        self.completed = True
        done = Completion(
            attempt=pod.number, pod_uid=pod.apod.metadata["uid"], time=at(self.seconds), result=str(pod.number)
        )
        jobs = (msgspec.structs.replace(job, state=JobState.DETACHED) if job.is_open else job for job in state.jobs)
        self.state = msgspec.structs.replace(state, completion=done, jobs=tuple(jobs))

    # -- external jobs, as state API and SDK handle them -------------------------------------

    @property
    def is_over(self) -> bool:
        """Return whether the TaskRun is finished or gone."""
        return self.is_gone or self.taskrun.status.outcome is not None

    def act_on_jobs(self, pod: SimulatedPod) -> None:
        """Execute the next step of a task that submits once."""
        if pod.purpose is AttemptPurpose.CLEANUP:
            self._cancel_jobs(pod)
        elif pod.submitted is not None:
            self._record_handle(pod, pod.submitted)
            pod.submitted = None
        elif pod.submitting is not None:
            pod.submitted, pod.submitting = pod.submitting, None
            if (job := self._job(pod.submitted)) is None or job.is_open:
                self.running.add(pod.submitted)
        elif pod.intending is not None:
            key, pod.intending = pod.intending, None
            self._store_intent(pod, key)
        elif self.choices.random() < 0.6:
            self._allow_intent(pod, self.choices.choice("ab"))
        else:
            self._watch_job(pod)

    def _cancel_jobs(self, pod: SimulatedPod) -> None:
        """Execute the next step of a cleanup for one open job."""
        state = self.existing_state
        if state is None or not self._is_current(pod):
            self.open_state(pod)
            return
        open_jobs = [job for job in state.jobs if job.is_open]
        if "adapters" not in self.registers or not open_jobs:
            return
        job = self.choices.choice(open_jobs)
        which = (job.key, job.generation)
        if job.handle is None and which in self.running:
            self._change_job(job, handle=f"job-{next(self.versions)}", state=JobState.ACTIVE, held=False)
        elif job.handle is None:
            if not any(which in {one.submitting, one.submitted} for one in self.pods.values()):
                self._change_job(job, state=JobState.CANCELLED, held=False)
        elif job.cancel_requested_time is None:
            if not job.preexisting:
                self._change_job(job, cancel_requested_time=at(self.seconds))
        elif self.choices.random() < 0.5:
            self.running.discard(which)
            self._change_job(job, state=JobState.CANCELLED, held=False)

    def collect_garbage(self) -> bool:
        """Delete the pods, like the garbage collector in a foreground deletion.

        Return whether anything changed.
        """
        before = (
            len(self.pods),
            sum(pod.is_deleted for pod in self.pods.values()),
            len(self.taskrun.metadata.finalizers),
        )
        for pod in list(self.pods.values()):
            self.delete_pod(pod.apod.metadata["name"], pod.apod.metadata["uid"])
        if not self.pods:
            self.remove_finalizer(FOREGROUND_DELETION)
        after = (
            len(self.pods),
            sum(pod.is_deleted for pod in self.pods.values()),
            len(self.taskrun.metadata.finalizers),
        )
        return before != after

    def _is_current(self, pod: SimulatedPod) -> bool:
        state = self.existing_state
        if state is None or state.epoch is None or not pod.runs:
            return False
        return state.epoch.pod_uid == pod.apod.metadata["uid"]

    def _is_sealed_out(self, pod: SimulatedPod) -> bool:
        seal = self.state.seal if self.state is not None else None
        if seal is None or pod.purpose is AttemptPurpose.CLEANUP:
            return False
        return seal.purpose is SealPurpose.END or seal.through_attempt >= pod.number

    def _allow_intent(self, pod: SimulatedPod, key: str) -> None:
        """Check the TaskRun and add our finalizer."""
        metadata = self.taskrun.metadata
        if (
            not self._is_current(pod)
            or self.is_over
            or metadata.deletion_timestamp is not None
            or self.taskrun.spec.cancel
        ):
            return
        if FINALIZER_EXTERNAL_JOBS not in metadata.finalizers:
            self._update_metadata(finalizers=(*metadata.finalizers, FINALIZER_EXTERNAL_JOBS))
        pod.intending = key

    def _store_intent(self, pod: SimulatedPod, key: str) -> None:
        """Store an allowed intent, unless the state has changed meanwhile."""
        state = self.existing_state
        if state is None or not self._is_current(pod) or self._is_sealed_out(pod):
            return
        if state.completion is not None and state.completion.attempt == pod.number:
            return
        if self.released_by_hand:
            return
        assert not self.is_over, "an intent was stored after the end"
        newest = next((job for job in reversed(state.jobs) if job.key == key), None)
        if newest is None or newest.state in {JobState.FAILED, JobState.CANCELLED}:
            job = JobSummary(
                key=key,
                generation=newest.generation + 1 if newest else 1,
                state=JobState.INTENDED,
                submitted_by_attempt=pod.number,
                detached=self.choices.random() < 0.2,
            )
            self.state = msgspec.structs.replace(state, jobs=(*state.jobs, job))
            self._allow_submit(pod, job)
        elif newest.held:
            self._apply_resolution(pod, newest)
        elif newest.handle is None and self.choices.random() < (0.9 if self._is_end_presumed(newest) else 0.5):
            self._hold(pod, newest)
        elif newest.handle is None:
            self._allow_submit(pod, newest)
        else:
            counts = msgspec.structs.replace(state.counts, reattachments=state.counts.reattachments + 1)
            self.state = msgspec.structs.replace(state, counts=counts)

    def _is_end_presumed(self, job: JobSummary) -> bool:
        """Return whether the end of an attempt that may have submitted the job is presumed."""
        numbers = self.submitting_attempts.get((job.key, job.generation), set())
        return any(one.end == "Presumed" and one.number in numbers for one in self.taskrun.status.attempts)

    def _apply_resolution(self, pod: SimulatedPod, job: JobSummary) -> None:
        given = [
            one
            for one in self.taskrun.spec.resolutions
            if (one.held, one.key, one.generation) == ("SubmissionUnknown", job.key, job.generation)
        ]
        if len(given) < job.holds:
            self.exit(pod, 85, message=HELD)
            return
        match given[job.holds - 1].action:
            case "Adopt":
                self._change_job(job, held=False, state=JobState.ACTIVE, handle=given[job.holds - 1].handle)
            case "Fail":
                self._change_job(job, held=False, state=JobState.FAILED)
            case _ if job.handle is not None:
                self._change_job(job, held=False, state=JobState.FAILED)
            case _:
                self._change_job(job, held=False)
                self._allow_submit(pod, job)

    def _hold(self, pod: SimulatedPod, job: JobSummary) -> None:
        if not job.held:
            resolutions = self._resolutions_of("SubmissionUnknown", (job.key, job.generation))
            submitters = tuple(sorted(self.submitting_attempts.get((job.key, job.generation), ())))
            self._change_job(job, held=True, holds=len(resolutions) + 1, submitters=submitters)
            if not pod.node_lost and not pod.is_deleted:
                self.reported_holds.add((job.key, job.generation))
        self.exit(pod, self.choices.choice([85, 85, 1]), message=self.choices.choice([HELD, HELD, ""]))

    def _allow_submit(self, pod: SimulatedPod, job: JobSummary) -> None:
        pod.submitting = (job.key, job.generation)
        self.submitters.setdefault(pod.submitting, set()).add(pod.apod.metadata["uid"])
        self.submitting_attempts.setdefault(pod.submitting, set()).add(pod.number)

    def _record_handle(self, pod: SimulatedPod, which: JobId) -> None:
        """Store a handle, which a fenced process may also do for its own intent."""
        job = self._job(which)
        if job is None or job.handle is not None or not job.is_open:
            return
        if pod.apod.metadata["uid"] not in self.submitters.get(which, set()):
            return
        since = at(self.seconds) if self.choices.random() < 0.9 else None
        preexisting = self.choices.random() < 0.1
        self._change_job(
            job,
            handle=f"job-{next(self.versions)}",
            state=JobState.ACTIVE,
            submitted_time=since,
            held=False,
            preexisting=preexisting,
        )
        assert self.state is not None
        counts = msgspec.structs.replace(self.state.counts, submissions=self.state.counts.submissions + 1)
        self.state = msgspec.structs.replace(self.state, counts=counts)

    def _watch_job(self, pod: SimulatedPod) -> None:
        state = self.existing_state
        if state is None or not self._is_current(pod) or state.completion is not None:
            return
        watched = [job for job in state.jobs if job.is_open and job.handle is not None and not job.held]
        if not watched:
            return
        job = self.choices.choice(watched)
        new = self.choices.choice([JobState.SUCCEEDED, JobState.FAILED, JobState.UNKNOWN, JobState.NOT_FOUND])
        self._change_job(job, state=new)
        if new in {JobState.SUCCEEDED, JobState.FAILED}:
            self.running.discard((job.key, job.generation))
        if new is JobState.NOT_FOUND and (changed := self._job((job.key, job.generation))) is not None:
            self._hold(pod, changed)

    def _job(self, which: JobId) -> JobSummary | None:
        state = self.existing_state
        return next((job for job in state.jobs if (job.key, job.generation) == which), None) if state else None

    def _change_job(self, job: JobSummary, **fields: Any) -> None:
        assert self.state is not None
        which, changed = (job.key, job.generation), msgspec.structs.replace(job, **fields)
        jobs = tuple(changed if (one.key, one.generation) == which else one for one in self.state.jobs)
        self.state = msgspec.structs.replace(self.state, jobs=jobs)

    # -- the user ----------------------------------------------------------------------------

    def resolve(self) -> None:
        """Append a resolution of the hold. Without a hold, append one in advance."""
        held = next(
            (one for one in self.taskrun.status.conditions if one.type == "Held" and one.status == "True"), None
        )
        open_jobs = [job for job in self.state.jobs if job.is_open] if self.state else []
        if held and held.reason == Reason.SUBMISSION_UNKNOWN and self.choices.random() < 0.5 and self.give_evidence():
            return
        match held.reason if held else "":
            case Reason.STATE_LOST:
                self._append(Resolution(held="StateLost", action=self.choices.choice(["StartEmpty", "Fail"])))
            case Reason.BUDGET_EXHAUSTED:
                self._append(Resolution(held="BudgetExhausted", action=self.choices.choice(["Continue", "Fail"])))
            case _ if open_jobs:
                ambiguous = [job for job in open_jobs if job.held or job.handle is None] or open_jobs
                job = self.choices.choice(ambiguous)
                action = self.choices.choice(["Adopt", "Resubmit", "Fail"])
                handle = f"named-{next(self.versions)}" if action == "Adopt" else None
                fields = {"key": job.key, "generation": job.generation, "handle": handle}
                self._append(Resolution(held="SubmissionUnknown", action=action, **fields))

    def _append(self, resolution: Resolution) -> None:
        given = msgspec.to_builtins((*self.taskrun.spec.resolutions, resolution))
        self._edit_spec(resolutions=given)

    def suspend(self) -> None:
        """Suspend the TaskRun, or resume a suspended one. A user may change the mind at once."""
        for _ in range(self.choices.choice([1, 1, 1, 2, 3])):
            self.was_suspended = True
            self._edit_spec(suspend=not self.taskrun.spec.suspend)

    def end_by_user(self) -> None:
        if self.choices.random() < 0.5:
            self._edit_spec(cancel=True)
        else:
            self._delete()

    def _delete(self) -> None:
        if self.taskrun.metadata.deletion_timestamp is not None:
            return
        finalizers = self.taskrun.metadata.finalizers
        if self.choices.random() < 0.3:
            finalizers = (*finalizers, FOREGROUND_DELETION)
        self._update_metadata(deletion_timestamp=at(self.seconds), finalizers=finalizers)
        self.is_gone = not finalizers

    def exit(self, pod: SimulatedPod, code: int, reason: str | None = None, message: str = "") -> None:
        """End the process. The phase of the pod may follow later."""
        pod.runs = False
        if code == 0:
            self.exited_zero.add(pod.number)
        apod = pod.apod.exited(code, self.seconds, reason=reason, message=message)
        self.change(pod, apod.not_over() if self.choices.random() < 0.3 else apod)

    def release(self, pod: SimulatedPod) -> None:
        """End the process to wait without a pod for a job, if the state API accepts that."""
        state = self.existing_state
        if state is None or not self._is_current(pod):
            return
        if state.completion is not None and state.completion.attempt == pod.number:
            return
        watched = [job for job in state.jobs if job.is_open and job.handle is not None and not job.held]
        if not watched:
            return
        job = self.choices.choice(watched)
        end = ReportedEnd(
            attempt=pod.number,
            pod_uid=pod.apod.metadata["uid"],
            time=at(self.seconds),
            kind="Waiting",
            retry_after_seconds=self.choices.choice([1, 60, 600]),
            job=JobReference(key=job.key, generation=job.generation),
        )
        self.state = msgspec.structs.replace(state, end=end)
        self.released += 1
        self.exit(pod, 87)

    def wake(self) -> None:
        self._update_metadata(annotations={ANNOTATION_WAKE: self.choices.choice("ab")})

    def stop(self, pod: SimulatedPod) -> None:
        """End a pod that is deleted or past its deadline, like the kubelet."""
        apod = pod.apod
        if pod.runs:
            pod.runs = False
            apod = apod.exited(self.choices.choice([0, 143]), self.seconds)
        self.change(pod, apod.with_status(phase="Failed"))

    def end_pod(self, pod: SimulatedPod) -> None:
        """End the pod after its containers have ended."""
        for status in pod.apod.status.get("containerStatuses", ()):
            if "terminated" not in status["state"]:
                return
        code = _container(pod)["state"]["terminated"]["exitCode"]
        self.change(pod, pod.apod.with_status(phase="Failed" if code else "Succeeded"))

    def _force_delete(self, pod: SimulatedPod) -> None:
        """Remove all finalizers and delete the pod, as a user can do.

        A pod that no component has observed is left out, because its number is used again. If it
        has opened the state, the state fences the next pod of that number.
        """
        is_counted = pod.number <= self.taskrun.status.counts.attempts
        opened = self.state is not None and self.state.epoch is not None and self.state.epoch.attempt >= pod.number
        if is_counted or opened:
            del self.pods[pod.apod.metadata["name"]]
            self.must_notify = True

    def _edit_budgets(self) -> None:
        self.budgets_edited = True
        names = ("application", "disruption", "neverStarted", "notReady")
        budgets = {name: self.choices.randrange(4) for name in names}
        self._edit_spec(retry={**self.spec["retry"], "budgets": budgets})

    def _edit_spec(self, **fields: Any) -> None:
        self.spec = {**self.spec, **fields}
        self.taskrun = msgspec.structs.replace(self.taskrun, spec=a_taskrun(**self.spec).build().spec)
        self._update_metadata(generation=self.taskrun.metadata.generation + 1)

    def advance(self) -> bool:
        """Make nodes report and pods start and end. Return whether anything happened."""
        self.seconds += 1
        if FOREGROUND_DELETION in self.taskrun.metadata.finalizers and self.collect_garbage():
            return True
        for pod in list(self.pods.values()):
            if pod.node_lost:
                before = pod.version
                self.recover(pod)
                if pod.version != before:
                    return True
            if pod.is_over:
                continue
            if pod.is_deleted or pod.is_stopped:
                self.stop(pod)
            elif pod.runs:
                for _ in range(10 if pod.purpose is AttemptPurpose.CLEANUP else 0):
                    self._cancel_jobs(pod)
                self.exit(pod, self.choices.choice([0, 1]))
            elif "terminated" in _container(pod).get("state", {}):
                before = pod.version
                self.end_pod(pod)
                if pod.version == before:
                    continue
            elif pod.apod.spec.get("schedulingGates"):
                self.change(pod, pod.apod.with_spec(schedulingGates=[]))
            else:
                self.start(pod)
            return True
        return False


@dataclass
class ModelOperator:
    """Reconciles the TaskRun from a view that may be older than the cluster."""

    cluster: ModelCluster
    taskrun: TaskRun | None = None
    pods: dict[str, Pod] = field(default_factory=dict)
    summary: Summary | None = None
    rejection: PodRejection | None = None
    wakes_at: float | None = None
    emitted: list[EmitEvent] = field(default_factory=list)

    def observe(self, *, everything: bool) -> None:
        """Receive all changes or some of them. A TaskRun is never older than our last write."""
        cluster, choices = self.cluster, self.cluster.choices
        if everything or cluster.must_notify or choices.random() < 0.5 or self.taskrun is None:
            self.taskrun = cluster.taskrun
        if everything or cluster.must_notify or choices.random() < 0.5:
            self.summary = cluster.summary()
        cluster.must_notify = False
        for uid in list(self.pods):
            if all(pod.apod.metadata["uid"] != uid for pod in cluster.pods.values()) and (
                everything or choices.random() < 0.5
            ):
                del self.pods[uid]
        for pod in cluster.pods.values():
            if everything or choices.random() < 0.5:
                self._observe_pod(pod)

    def restart(self) -> None:
        self.pods, self.rejection = {}, None
        self.observe(everything=True)

    def reconcile(self, *, crash_probability: float = 0.0, rejection_probability: float = 0.0) -> Plan:
        """Reconcile once. Before each effect, the operator crashes with `crash_probability`."""
        assert self.taskrun is not None
        seen = Observed(
            taskrun=self.taskrun, pods=tuple(self.pods.values()), summary=self.summary, rejection=self.rejection
        )
        now = at(self.cluster.seconds)
        seen, decision = self._decide(seen, now)
        if isinstance(decision, ReadState):
            seen, decision = self._decide(replace(seen, state=self.cluster.state or AbsentState()), now)
            assert not isinstance(decision, ReadState), "the state is read once"
        if isinstance(decision, SealState | EndHolds):
            self._maybe_crash(crash_probability)
            if isinstance(decision, SealState):
                self.cluster.seal(decision)
            else:
                self.cluster.end_holds(decision)
            self._maybe_crash(crash_probability)
            self.cluster.apply_concurrent_writes()
            seen, decision = self._decide(replace(seen, state=self.cluster.state or AbsentState()), now)
        assert isinstance(decision, Plan), "the state is changed once, and not read again afterwards"
        plan = decision
        self.cluster.apply_concurrent_writes()
        assert plan == decide(seen, SETTINGS, now), "the same input gave another plan"
        self.wakes_at = None if plan.requeue_at is None else (plan.requeue_at - at(0)).total_seconds()
        releases = any(isinstance(action, ReleaseTaskRun) for action in plan.actions)
        if plan.status is not None:
            self._maybe_crash(crash_probability)
            written = self.cluster.write_status(self.taskrun.metadata.resource_version, plan.status)
            if written is None:
                self.taskrun = self.cluster.taskrun
                return plan
            self.taskrun = written
        else:
            reasons = [action.reason for action in plan.actions if isinstance(action, EmitEvent)]
            # The event about orphaned jobs is repeated until the TaskRun is released, because a
            # crash may have lost it.
            assert all(reason == EventReason.ORPHANED for reason in reasons), "an event was emitted without a write"
            assert not reasons or releases, "an unneeded event was emitted"
        # The worst time for a crash, because the jobs are named only in the status, which is
        # deleted next.
        crash_probability = 5 * crash_probability if releases else crash_probability
        for action in plan.actions:
            self._maybe_crash(crash_probability)
            self._act(action, rejection_probability)
        self._maybe_crash(crash_probability)
        return plan

    def _decide(self, seen: Observed, now: datetime) -> tuple[Observed, Decision]:
        """Decide, with the facts and events that the decision needs."""
        decision = decide(seen, SETTINGS, now)
        while isinstance(decision, ReadNodes | ReadEvents):
            if isinstance(decision, ReadEvents):
                assert seen.events is None, "events are read twice"
                seen = replace(seen, events=self.cluster.read_events(now))
                decision = decide(seen, SETTINGS, now)
                continue
            assert not seen.nodes.keys() & set(decision.names), "a node is read twice"
            read = {name: self.cluster.read_node(name) for name in decision.names}
            seen = replace(seen, nodes={**seen.nodes, **read})
            decision = decide(seen, SETTINGS, now)
        return seen, decision

    def _act(self, action: Action, rejection_probability: float) -> None:
        cluster = self.cluster
        match action:
            case CreatePod():
                if cluster.choices.random() < rejection_probability:
                    kind = cluster.choices.choice(
                        [PodRejectionKind.QUOTA, PodRejectionKind.FORBIDDEN, PodRejectionKind.ERROR]
                    )
                    if action.purpose is AttemptPurpose.CLEANUP and cluster.choices.random() < 0.2:
                        kind = PodRejectionKind.INVALID
                    message = f"no {cluster.choices.randrange(3)}"
                    self.rejection = PodRejection(kind, action.attempt, message, at(cluster.seconds + 2))
                    return
                assert self.taskrun is not None
                self._observe_pod(cluster.create_pod(action, self.taskrun))
                self.rejection = None
            case StopPod() | DeletePod():
                self._stop_pod(action)
            case ReleasePod():
                cluster.release_pod(action.pod)
                name, uid = action.pod.metadata.name, action.pod.metadata.uid
                if name in cluster.pods and cluster.pods[name].apod.metadata["uid"] == uid:
                    self._observe_pod(cluster.pods[name])
                else:
                    self.pods.pop(uid, None)
            case ProtectTaskRun() | ReleaseTaskRun():
                self._act_on_taskrun(action)
            case ReleaseState():
                assert cluster.taskrun.status.outcome is not None, "the state was released before the end of the run"
            case EmitEvent():
                self.emitted.append(action)
            case _:
                assert_never(action)

    def _stop_pod(self, action: StopPod | DeletePod) -> None:
        if isinstance(action, StopPod):
            self.cluster.stop_pod(action)
        else:
            self._check_delete(action)
            self.cluster.delete_pod(action.name, action.uid)
        if action.name in self.cluster.pods:
            self._observe_pod(self.cluster.pods[action.name])

    def _act_on_taskrun(self, action: ProtectTaskRun | ReleaseTaskRun) -> None:
        assert self.taskrun is not None
        if isinstance(action, ReleaseTaskRun):
            self._check_named(self.taskrun.status)
            self._check_record(self.taskrun.status, action.orphans)
            self.cluster.release_taskrun(self.taskrun.metadata.resource_version)
        else:
            self.cluster.protect_taskrun(self.taskrun.metadata.resource_version)
        self.taskrun = self.cluster.taskrun

    def _check_delete(self, action: DeletePod) -> None:
        """Check that no log is lost of an attempt that ended by itself, as far as was observed."""
        if action.uid not in self.pods:
            return  # The release of the pod deleted it.
        pod, status = self.pods[action.uid], self.cluster.taskrun.status
        is_late = status.ending is not None and status.ending.cleanup_deadline <= at(self.cluster.seconds)
        if terminated_of(pod, "task") is None or not is_kept(pod) or is_late:
            return
        number = next((one.number for one in self.cluster.pods.values() if one.apod.metadata["uid"] == action.uid), 0)
        if self.cluster.keeps_no_pod(number):
            return
        stopped = stop_time_of(pod)
        if stopped is None:
            # The run ended, or was suspended, before the end of the attempt was recorded.
            being_stopped = {entry.pod_uid for entry in status.attempts if not entry.finish_time and entry.reason}
            is_wanted = status.ending is not None or action.uid in being_stopped
            assert is_wanted, "a kept pod was deleted and not stopped"
            return
        assert at(self.cluster.seconds) >= stopped + GRACE + STOP_SECONDS, "a kept pod was deleted too early"

    def _check_named(self, status: TaskRunStatus) -> None:
        """Check that the emitted events name each orphaned job."""
        state = self.cluster.existing_state
        over = {(job.key, job.generation) for job in state.jobs if not job.is_open} if state else set()
        orphaned = [job for job in status.external_jobs if job.state == JobState.ORPHANED]
        left = [describe_job(job) for job in orphaned if (job.key, job.generation) not in over]
        notes = [one.note for one in self.emitted if one.reason == EventReason.ORPHANED]
        assert all(any(name in note for note in notes) for name in left), (
            "the TaskRun was released before its jobs were named"
        )

    def _check_record(self, status: TaskRunStatus, record: OrphanRecord | None) -> None:
        """Check that the record lists each orphaned job, with a reason."""
        state = self.cluster.existing_state
        over = {(job.key, job.generation) for job in state.jobs if not job.is_open} if state else set()
        left = {(job.key, job.generation) for job in status.external_jobs if job.state == JobState.ORPHANED}
        listed = record.jobs if record is not None else ()
        assert {(job.key, job.generation) for job in listed} >= left - over, "the record is incomplete"
        assert all(job.why.endswith((".", "…")) for job in listed), "an orphaned job without a reason"
        assert all("No cleanup attempt was started" not in job.why for job in listed), "without a real reason"

    def _observe_pod(self, pod: SimulatedPod) -> None:
        self.pods[pod.apod.metadata["uid"]] = pod.view

    def _maybe_crash(self, chance: float) -> None:
        if chance and self.cluster.choices.random() < chance:
            raise OperatorCrashedError


def _container(pod: SimulatedPod) -> dict[str, Any]:
    statuses = pod.apod.status.get("containerStatuses", ())
    return next((status for status in statuses if status["name"] == "task"), {})


def stopped_at(pod: SimulatedPod) -> datetime:
    return datetime.fromisoformat(pod.apod.metadata["annotations"][ANNOTATION_STOP_TIME])


def is_same_end(before: Attempt, after: Attempt) -> bool:
    """Return whether an end is as it was recorded, apart from later evidence of it."""
    if (before.end, after.end) != ("Presumed", "Reported"):
        return before == after
    evidence = {"end": before.end, "message": before.message, "reported_at_attempt": before.reported_at_attempt}
    return msgspec.structs.replace(after, **evidence) == before


def is_held(status: TaskRunStatus) -> bool:
    return any(one.type == ConditionType.HELD and one.status == "True" for one in status.conditions)


def run_history(choices: random.Random, spec: dict[str, Any], *, events_max: int) -> ModelCluster:
    """Run a history of random events with crashes and late observations.

    After at most `events_max` events, run without faults until the TaskRun ends.
    """
    registers = choices.choice([(), (), ("adapters",), ("adapters",), ("handler",), ("adapters", "handler")])
    reads_nodes, deletion_counts = choices.choice([(False, False), (True, False), (True, True)])
    cluster = ModelCluster(
        choices, spec, registers=frozenset(registers), reads_nodes=reads_nodes, deletion_counts=deletion_counts
    )
    operator = ModelOperator(cluster)
    operator.restart()
    if choices.random() < 0.6:
        begin_jobs(operator)
    ends_at = choices.randrange(2 * events_max + 1)
    for number in range(events_max):
        if number == ends_at:
            cluster.end_by_user()
        cluster.apply_random_event()
        operator.observe(everything=False)
        try:
            operator.reconcile(crash_probability=0.1, rejection_probability=0.1)
        except OperatorCrashedError:
            operator.restart()
        if cluster.is_over:
            break
    operator.restart()
    cluster.is_calm = True
    for _ in range(500):
        settle(operator)
        status = cluster.taskrun.status
        if cluster.is_over:
            cluster.check_late_writes()
            return cluster
        cluster.check_unkept_pods()
        if is_held(status):
            cluster.resolve()
        if not cluster.advance() and not is_held(status):
            # The operator of a suspended run may still wake up to read nodes.
            are_stopped = all(pod.is_over for pod in cluster.pods.values())
            if cluster.taskrun.spec.suspend and (are_stopped or operator.wakes_at is None):
                assert are_stopped, "the pod of a suspended run is not stopped"
                cluster._edit_spec(suspend=False)
                operator.observe(everything=True)
                continue
            # Without an event, the operator must have a requeue time.
            assert operator.wakes_at is not None, f"stuck: {status}"
            cluster.seconds = max(cluster.seconds, operator.wakes_at)
        operator.observe(everything=True)
    raise AssertionError("the run does not end")


def begin_jobs(operator: ModelOperator) -> None:
    """Run the first attempt until it has submitted external jobs, maybe without their handles."""
    cluster = operator.cluster
    settle(operator)
    for pod in list(cluster.pods.values()):
        cluster.start(pod)
        cluster.open_state(pod)
        for _ in range(cluster.choices.randrange(12)):
            cluster.act_on_jobs(pod)


def settle(operator: ModelOperator) -> None:
    """Reconcile until no action is left."""
    for _ in range(PASSES_MAX):
        plan = operator.reconcile()
        operator.observe(everything=True)
        if plan.status is None and not plan.actions:
            return
        if operator.cluster.is_over:
            return
    raise AssertionError("the operator does not settle")
