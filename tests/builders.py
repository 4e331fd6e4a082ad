"""Builders of TaskRuns, pods and states for tests of the planner.

Each method returns a new builder. Times are seconds after `START`.
"""

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Self, TypeVar

import msgspec

from reattach.api.names import (
    ANNOTATION_CONTAINER,
    ANNOTATION_FIXED_TEMPLATE_HASH,
    ANNOTATION_POD_RETENTION,
    ANNOTATION_STOP_TIME,
    ANNOTATION_TEMPLATE_HASH,
    FINALIZER_ATTEMPT,
    FINALIZER_EXTERNAL_JOBS,
    pod_name,
    state_name,
)
from reattach.api.objects import Condition, Pod
from reattach.api.reasons import ConditionType
from reattach.api.state import (
    Completion,
    Epoch,
    JobCounts,
    JobOrigin,
    JobState,
    JobSummary,
    ReportedEnd,
    Seal,
    SealPurpose,
    StateView,
    Summary,
)
from reattach.api.taskrun import Attempt, StateReference, TaskRun, TaskRunStatus
from reattach.planner.decide import decide
from reattach.planner.plan import (
    AbsentState,
    Decision,
    Observed,
    Plan,
    PodDefaults,
    PodEvents,
    ReadEvents,
    ReadEvictions,
    ReadNodes,
    ReadState,
    SealState,
)
from reattach.planner.pods import fixed_template_hash, template_hash

START = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
SETTINGS = PodDefaults(url="https://reattach.example:8443", ca="PEM")
NAME, NAMESPACE, UID = "load", "data", "0123456789"
STATE_UID = "state-uid"
TEMPLATE: dict[str, Any] = {"spec": {"containers": [{"name": "task", "image": "task:1"}]}}


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def stamp(seconds: float) -> str:
    return at(seconds).isoformat()


# -- TaskRuns --------------------------------------------------------------------------------------

NEW_STATUS = TaskRunStatus(
    conditions=(
        Condition(
            type=ConditionType.RECONCILING,
            status="True",
            reason="Pending",
            message="The operator has not written a status yet.",
            last_transition_time=datetime(1970, 1, 1, tzinfo=UTC),
        ),
    )
)
"""Status that the API server returns before the first write. A test compares it with the schema."""


def to_taskrun(content: dict[str, Any]) -> TaskRun:
    return msgspec.json.decode(msgspec.json.encode(content), type=TaskRun)


@dataclass(frozen=True)
class ATaskRun:
    metadata: dict[str, Any]
    spec: dict[str, Any]
    status: TaskRunStatus = NEW_STATUS

    def build(self) -> TaskRun:
        taskrun = to_taskrun({"metadata": self.metadata, "spec": self.spec})
        return msgspec.structs.replace(taskrun, status=self.status)

    def with_spec(self, **fields: Any) -> Self:
        return replace(self, spec={**self.spec, **fields})

    def with_metadata(self, **fields: Any) -> Self:
        return replace(self, metadata={**self.metadata, **fields})

    def with_finalizer(self) -> Self:
        """Add the finalizer that the state API adds for the first external job."""
        return self.with_metadata(finalizers=[FINALIZER_EXTERNAL_JOBS])

    def being_deleted(self) -> Self:
        return self.with_metadata(deletionTimestamp=stamp(5))

    def with_resolution(self, held: str, action: str, **more: Any) -> Self:
        """Append a resolution, by default of generation 1 of the job `load`."""
        about = {"key": "load", "generation": 1} if held == "SubmissionUnknown" else {}
        answer = {"held": held, "action": action, **about, **more}
        return self.with_spec(resolutions=[*self.spec.get("resolutions", ()), answer])

    def with_budgets(self, **budgets: int) -> Self:
        return self.with_spec(retry={"budgets": budgets, "backoff": {"jitterPercent": 0}})

    def with_status(self, status: TaskRunStatus | None = None, **fields: Any) -> Self:
        return replace(self, status=msgspec.structs.replace(status or self.status, **fields))

    def with_attempt(self, number: int, **fields: Any) -> Self:
        """Add an attempt to the status, which is running unless `fields` end it."""
        attempt = Attempt(
            number=number, pod_name=pod_name(NAME, UID, number), pod_uid=f"pod-{number}", start_time=START, **fields
        )
        counts = msgspec.structs.replace(self.status.counts, attempts=max(number, self.status.counts.attempts))
        return self.with_status(attempts=(*self.status.attempts, attempt), counts=counts)

    def with_failed_attempt(self, number: int, cause: str = "Application", charged_to: str = "application") -> Self:
        taskrun = self.with_attempt(
            number,
            finish_time=at(number),
            end="Reported",
            cause=cause,
            charged_to=charged_to,
            reason="Error",
            exit_code=1,
        )
        charged = taskrun.status.counts.charged
        name = {"neverStarted": "never_started", "notReady": "not_ready"}.get(charged_to, charged_to)
        charged = msgspec.structs.replace(charged, **{name: (getattr(charged, name) or 0) + 1})
        return taskrun.with_status(counts=msgspec.structs.replace(taskrun.status.counts, charged=charged))

    def with_state(self) -> Self:
        return self.with_status(state=StateReference(config_map=f"{NAME}-{UID[:5]}-state", uid=STATE_UID))


def a_taskrun(**spec: Any) -> ATaskRun:
    """Return a new TaskRun whose backoff has no jitter."""
    metadata = {"name": NAME, "namespace": NAMESPACE, "uid": UID, "generation": 1, "creationTimestamp": stamp(0)}
    defaults = {"template": TEMPLATE, "retry": {"backoff": {"jitterPercent": 0}}}
    return ATaskRun(metadata, {**defaults, **spec})


# -- pods ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class APod:
    """A new pod. Each verb applies an event to it."""

    number: int
    metadata: dict[str, Any]
    spec: dict[str, Any]
    status: dict[str, Any] = field(default_factory=dict)

    def build(self) -> Pod:
        return msgspec.convert({"metadata": self.metadata, "spec": self.spec, "status": self.status}, Pod)

    def with_metadata(self, **fields: Any) -> Self:
        return replace(self, metadata={**self.metadata, **fields})

    def with_spec(self, **fields: Any) -> Self:
        return replace(self, spec={**self.spec, **fields})

    def with_status(self, **fields: Any) -> Self:
        return replace(self, status={**self.status, **fields})

    def with_condition(
        self, kind: str, status: str, reason: str = "", message: str = "", seconds: float | None = 0
    ) -> Self:
        since = None if seconds is None else stamp(seconds)
        condition = {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": since}
        others = [one for one in self.status.get("conditions", ()) if one["type"] != kind]
        return self.with_status(conditions=[*others, condition])

    def with_container(self, name: str, *, init: bool = False, **state: Any) -> Self:
        place = "initContainerStatuses" if init else "containerStatuses"
        others = [one for one in self.status.get(place, ()) if one["name"] != name]
        return self.with_status(**{place: [*others, {"name": name, "state": state}]})

    # Events of the pod.

    def gated(self) -> Self:
        gated = self.with_spec(schedulingGates=[{"name": "kueue.x-k8s.io/admission"}])
        return gated.with_condition("PodScheduled", "False", "SchedulingGated", "Scheduling is blocked")

    def unschedulable(self, message: str = "0/3 nodes are available: 3 Insufficient cpu.") -> Self:
        return self.with_condition("PodScheduled", "False", "Unschedulable", message)

    def scheduled(self, seconds: float = 0) -> Self:
        return self.with_spec(nodeName="node-1", schedulingGates=[]).with_condition(
            "PodScheduled", "True", seconds=seconds
        )

    def waiting(self, reason: str, message: str = "", *, container: str = "task", init: bool = False) -> Self:
        return self.scheduled().with_container(container, init=init, waiting={"reason": reason, "message": message})

    def running(self, seconds: float | None = 1) -> Self:
        since = {} if seconds is None else {"startedAt": stamp(seconds)}
        return self.scheduled().with_container("task", running=since).with_status(phase="Running")

    def with_sidecar(self) -> Self:
        return self.with_container("proxy", running={"startedAt": stamp(1)})

    def exited(
        self, code: int, seconds: float = 5, *, reason: str | None = None, message: str = "", container: str = "task"
    ) -> Self:
        """End a container. The pod is terminal if no other container runs."""
        how = {
            "exitCode": code,
            "reason": ("Completed" if code == 0 else "Error") if reason is None else reason,
            "message": message,
            "startedAt": stamp(1),
            "finishedAt": stamp(seconds),
        }
        pod = self.scheduled().with_container(container, terminated=how)
        if any("terminated" not in one["state"] for one in pod.status["containerStatuses"]):
            return pod.with_status(phase="Running")
        return pod.with_status(phase="Failed" if code else "Succeeded")

    def not_over(self) -> Self:
        """Return the pod before its phase follows its ended containers."""
        return self.with_status(phase="Running")

    def with_init(self, name: str = "prepare", restart_policy: str = "") -> Self:
        inits = [*self.spec.get("initContainers", ()), {"name": name, "restartPolicy": restart_policy}]
        return self.with_spec(initContainers=inits)

    def deleted(self, seconds: float = 4, grace: int = 30) -> Self:
        return self.with_metadata(deletionTimestamp=stamp(seconds + grace), deletionGracePeriodSeconds=grace)

    def disrupted(self, reason: str = "EvictionByEvictionAPI", seconds: float | None = 4) -> Self:
        return self.with_condition("DisruptionTarget", "True", reason, f"because of {reason}", seconds)

    def failed(self, reason: str, message: str = "") -> Self:
        return self.with_status(phase="Failed", reason=reason, message=message)

    def stopped(self, seconds: float) -> Self:
        """Stop the other containers of an ended attempt, whose log is kept."""
        return self.with_annotation(ANNOTATION_STOP_TIME, stamp(seconds))

    def retained(self, policy: str) -> Self:
        return self.with_annotation(ANNOTATION_POD_RETENTION, policy).with_annotation(ANNOTATION_CONTAINER, "task")

    def with_annotation(self, name: str, value: str) -> Self:
        return self.with_metadata(annotations={**self.metadata["annotations"], name: value})

    def released(self) -> Self:
        return self.with_metadata(finalizers=[])


def a_pod(number: int = 1, *, template: dict[str, Any] | None = None) -> APod:
    """Return the new pod of an attempt, without a node."""
    metadata = {
        "name": pod_name(NAME, UID, number),
        "namespace": NAMESPACE,
        "uid": f"pod-{number}",
        "resourceVersion": "7",
        "creationTimestamp": stamp(0),
        "annotations": {
            ANNOTATION_TEMPLATE_HASH: template_hash(template or TEMPLATE),
            ANNOTATION_FIXED_TEMPLATE_HASH: fixed_template_hash(template or TEMPLATE),
        },
        "finalizers": [FINALIZER_ATTEMPT],
    }
    return APod(number, metadata, {"containers": [{"name": "task"}]})


# -- states ----------------------------------------------------------------------------------------


def a_state(
    opened_by: int | None = 1, completed_by: int | None = None, result: str | None = None, **more: Any
) -> StateView:
    """Return a state that an attempt opened, and that another or the same completed."""
    uid = more.get("pod_uid", f"pod-{opened_by}")
    cleanup = {name: more[name] for name in ("purpose", "can_cleanup", "cleanup_handler") if name in more}
    epoch = None if opened_by is None else Epoch(attempt=opened_by, pod_uid=uid, **cleanup)
    completion = None
    if completed_by is not None:
        completion = Completion(
            attempt=completed_by, pod_uid=more.get("pod_uid", f"pod-{completed_by}"), time=at(3), result=result
        )
    return StateView(
        uid=more.get("uid", STATE_UID),
        resource_version="1",
        epoch=epoch,
        completion=completion,
        seal=more.get("seal"),
        jobs=tuple(more.get("jobs", ())),
        counts=more.get("counts", JobCounts()),
        end=more.get("end"),
    )


def an_end(kind: str, message: str = "", seconds: int | None = None, *, attempt: int = 1, **more: Any) -> ReportedEnd:
    """Return the end that an attempt reported to the state API."""
    uid = more.get("pod_uid", f"pod-{attempt}")
    return ReportedEnd(
        attempt=attempt, pod_uid=uid, time=at(5), kind=kind, message=message, retry_after_seconds=seconds
    )


def a_summary(opened_by: int | None = 1, completed_by: int | None = None, **more: Any) -> Summary:
    epoch = None if opened_by is None else Epoch(attempt=opened_by, pod_uid=f"pod-{opened_by}")
    return Summary(epoch=epoch, completed_attempt=completed_by, **more)


def a_job(handle: str | None = "job-1", *, key: str = "load", generation: int = 1, **more: Any) -> JobSummary:
    """Return an external job of attempt 1, whose submission is ambiguous without a handle."""
    state = JobState.INTENDED if handle is None else JobState.ACTIVE
    known = (
        {} if handle is None else {"origin": JobOrigin.SUBMITTED, "submitted_time": at(2), "submitted_by_attempt": 1}
    )
    return JobSummary(key=key, generation=generation, handle=handle, **{"state": state, **known, **more})


SEALED = Seal(through_attempt=9, purpose=SealPurpose.END)


# -- decisions -------------------------------------------------------------------------------------


def observed(taskrun: ATaskRun | TaskRun, *pods: APod, **more: Any) -> Observed:
    built = taskrun.build() if isinstance(taskrun, ATaskRun) else taskrun
    return Observed(taskrun=built, pods=tuple(pod.build() for pod in pods), **more)


def decision_of(taskrun: ATaskRun | TaskRun, *pods: APod, now: float = 10, **more: Any) -> Decision:
    """Return the decision `now` seconds after `START`.

    If the decision needs a read, it gets `state`, by default an absent one. It gets `nodes` and
    `events`, by default unreadable ones. It gets `evictions`, by default none.
    """
    evictions = more.pop("evictions", {})
    state, events = more.pop("state", AbsentState()), more.pop("events", PodEvents())
    nodes = more.pop("nodes", {})
    seen, is_read = observed(taskrun, *pods, **more), False
    if isinstance(state, StateView) and state.epoch is not None and seen.taskrun.status.state is None:
        # The first call of an attempt returns only once status names the state.
        named = StateReference(config_map=state_name(NAME, UID), uid=state.uid)
        status = msgspec.structs.replace(seen.taskrun.status, state=named)
        seen = replace(seen, taskrun=msgspec.structs.replace(seen.taskrun, status=status))
    while True:
        decision = decide(seen, SETTINGS, at(now))
        if isinstance(decision, ReadState) and not is_read:
            seen, is_read = replace(seen, state=state), True
        elif isinstance(decision, ReadEvents):
            assert seen.events is None, "events are read twice"
            seen = replace(seen, events=events)
        elif isinstance(decision, ReadNodes):
            assert not seen.nodes.keys() & set(decision.names), "a node is read twice"
            seen = replace(seen, nodes={**seen.nodes, **{name: nodes.get(name) for name in decision.names}})
        elif isinstance(decision, ReadEvictions):
            assert not seen.evictions.keys() & set(decision.pods), "an eviction is read twice"
            seen = replace(seen, evictions={**seen.evictions, **{pod: evictions.get(pod) for pod in decision.pods}})
        else:
            return decision


def plan_of(taskrun: ATaskRun | TaskRun, *pods: APod, now: float = 10, **more: Any) -> Plan:
    """Return the plan of `decision_of`."""
    decision = decision_of(taskrun, *pods, now=now, **more)
    assert isinstance(decision, Plan), decision
    return decision


def status_of(plan: Plan) -> TaskRunStatus:
    assert plan.status is not None, "nothing is written"
    return plan.status


def progress_of(plan: Plan | TaskRunStatus) -> tuple[str, str]:
    """Return reason and message of the written condition Succeeded."""
    return condition_of(plan, ConditionType.SUCCEEDED)


def hold_of(plan: Plan | TaskRunStatus) -> tuple[str, str]:
    """Return status and reason of the written condition Held."""
    status = plan if isinstance(plan, TaskRunStatus) else status_of(plan)
    held = next(one for one in status.conditions if one.type == ConditionType.HELD)
    return held.status, held.reason


def condition_of(plan: Plan | TaskRunStatus, kind: ConditionType) -> tuple[str, str]:
    status = plan if isinstance(plan, TaskRunStatus) else status_of(plan)
    found = next(one for one in status.conditions if one.type == kind)
    return found.reason, found.message


def last_attempt_of(plan: Plan) -> Attempt:
    return status_of(plan).attempts[-1]


A = TypeVar("A")


def actions_of(plan: Plan, kind: type[A]) -> list[A]:
    return [action for action in plan.actions if isinstance(action, kind)]


def teardown_plan_of(taskrun: ATaskRun, *pods: APod, **more: Any) -> Plan:
    """Return the plan of `decision_of` once the ending is recorded and the state is sealed."""
    recorded: TaskRunStatus | None = None
    while True:
        decision = decision_of(taskrun, *pods, **more)
        if isinstance(decision, SealState):
            more["state"] = msgspec.structs.replace(more["state"], seal=SEALED)
            continue
        assert isinstance(decision, Plan), decision
        status = decision.status
        if status is None or status.ending == taskrun.status.ending:
            return replace(decision, status=status or recorded)
        taskrun, recorded = taskrun.with_status(status), status
