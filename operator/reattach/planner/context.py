"""Inputs of one decision, in the form in which the checks read them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cached_property

from reattach.api.names import FINALIZER_ATTEMPT, state_name
from reattach.api.objects import ObjectMeta, Pod
from reattach.api.reasons import Cause, End, EventReason
from reattach.api.state import Epoch, JobSummary, SealPurpose, StateView
from reattach.api.taskrun import Attempt, AttemptPurpose, Suspension, TaskRunSpec, TaskRunStatus
from reattach.planner import conditions, history, podstatus, retention
from reattach.planner.plan import (
    AbsentState,
    Action,
    DeletePod,
    EmitEvent,
    Observed,
    Plan,
    PodDefaults,
    ReleasePod,
    ReleaseState,
    StopPod,
)
from reattach.planner.pods import task_container

NODE_INTERVAL = timedelta(seconds=30)
"""Pause between two reads of a Node that may be evidence of a pod's end."""
OVERDUE_AFTER = timedelta(seconds=10)
"""Time after a pod's grace period from which its Node is read, because most pods end sooner."""
EXIT_GRACE = timedelta(seconds=60)
"""Time that the kubelet gets to end a pod whose containers exited, for example to stop sidecars."""


@dataclass(frozen=True, slots=True)
class AttemptView:
    """One attempt, merged from pods, status and state.

    `recorded`: its end is in status, even if the entry was folded.
    """

    number: int
    purpose: AttemptPurpose
    pod: Pod | None
    entry: Attempt | None
    recorded: bool

    @property
    def is_presumed(self) -> bool:
        """True if its end is recorded and no evidence of it is known."""
        return self.entry is not None and self.entry.end == End.PRESUMED

    @property
    def keeps_no_pod(self) -> bool:
        """True if its entry was folded, or if it released its pod to wait for an external job."""
        return self.recorded and (self.entry is None or self.entry.cause == Cause.WAITING)


@dataclass(frozen=True, kw_only=True)
class DecisionContext:
    """Everything that one decision is made from, and the status that it will write.

    `decide` builds it once. `with_status` returns a copy with a new status; the facts from pods
    and state are kept. Derived values are computed at most once for each status.
    """

    observed: Observed
    now: datetime
    status: TaskRunStatus
    defaults: PodDefaults
    container: str
    """Name of the task's container."""
    pods: Mapping[int, Pod] = field(default_factory=dict)
    events: tuple[EmitEvent, ...] = ()

    @classmethod
    def from_observed(cls, observed: Observed, defaults: PodDefaults, now: datetime) -> "DecisionContext":
        """Build the context of one decision."""
        metadata = observed.taskrun.metadata
        numbered = ((podstatus.attempt_number(pod, metadata), pod) for pod in observed.pods)
        pods = {number: pod for number, pod in numbered if number is not None}
        taskrun = observed.taskrun
        return cls(
            observed=observed,
            now=now,
            status=taskrun.status,
            defaults=defaults,
            container=task_container(taskrun),
            pods=pods,
        )

    # Facts that the status of this decision does not change

    @property
    def metadata(self) -> ObjectMeta:
        """Metadata of the TaskRun."""
        return self.observed.taskrun.metadata

    @property
    def spec(self) -> TaskRunSpec:
        """Spec of the TaskRun."""
        return self.observed.taskrun.spec

    @property
    def state(self) -> StateView | None:
        """Content of the state that was read; None if it is lost, absent, unreadable or unread."""
        read = self.observed.state
        return read if isinstance(read, StateView) and not self.state_lost else None

    @property
    def epoch(self) -> Epoch | None:
        """Last known attempt that opened the state."""
        if isinstance(self.observed.state, StateView):
            return self.observed.state.epoch
        return self.observed.summary.epoch if self.observed.summary else None

    @property
    def is_sealed_for_end(self) -> bool:
        """True if the run has begun to end, so no attempt can open the state any more.

        A seal of this purpose is never removed.
        """
        read, summary = self.observed.state, self.observed.summary
        seal = read.seal if isinstance(read, StateView) else summary.seal if summary else None
        return seal is not None and seal.purpose is SealPurpose.END and not self.state_lost

    # Values derived from the status, too

    @cached_property
    def attempts(self) -> tuple[AttemptView, ...]:
        """All attempts that pods, status or state name, in order."""
        entries = {entry.number: entry for entry in self.status.attempts}
        numbers = self.pods.keys() | entries.keys()
        if self.epoch is not None:
            numbers = numbers | {self.epoch.attempt}
        return tuple(self._view(number, entries.get(number)) for number in sorted(numbers))

    def _view(self, number: int, entry: Attempt | None) -> AttemptView:
        # Only ended attempts are folded, and the count skips no number.
        recorded = entry.finish_time is not None if entry else number <= self.status.counts.attempts
        pod = self.pods.get(number)
        return AttemptView(number, self._purpose_of(number, entry, pod), pod, entry, recorded)

    def _purpose_of(self, number: int, entry: Attempt | None, pod: Pod | None) -> AttemptPurpose:
        if entry is not None:
            return entry.purpose
        if pod is not None:
            return podstatus.purpose_of(pod)
        opened = self.epoch is not None and self.epoch.attempt == number
        return self.epoch.purpose if self.epoch is not None and opened else AttemptPurpose.RUN

    @property
    def last_number(self) -> int:
        """Highest attempt number used so far; 0 before the first attempt."""
        return max(self.status.counts.attempts, *(view.number for view in self.attempts), 0)

    @property
    def next_number(self) -> int:
        """Attempt number that was never used."""
        return self.last_number + 1

    @cached_property
    def current(self) -> AttemptView | None:
        """The newest run attempt without a recorded end."""
        return self._newest_unrecorded(AttemptPurpose.RUN)

    @cached_property
    def current_cleanup(self) -> AttemptView | None:
        """The newest cleanup attempt without a recorded end."""
        return self._newest_unrecorded(AttemptPurpose.CLEANUP)

    def _newest_unrecorded(self, purpose: AttemptPurpose) -> AttemptView | None:
        newest_first = reversed(self.attempts)
        return next((view for view in newest_first if view.purpose is purpose and not view.recorded), None)

    @property
    def is_past_cleanup_deadline(self) -> bool:
        """True if external jobs that are open are left running from now on."""
        return self.status.ending is not None and self.status.ending.cleanup_deadline <= self.now

    @property
    def run_deadline(self) -> datetime | None:
        """Time at which the run ends by `deadlines.runSeconds`; None if it has no limit.

        An unstarted run starts now. The time of the start is stored with its first status. The
        clock of the run stands still while it is suspended, so a suspended run has no limit.
        """
        seconds = self.spec.deadlines.run_seconds
        if seconds is None or self.spec.suspend:
            return None
        return (self.status.start_time or self.now) + timedelta(seconds=seconds + self.suspended_seconds)

    @property
    def suspended_seconds(self) -> int:
        """Seconds that the run was suspended, also if the end of a suspension is not stored yet."""
        suspension = self.status.suspension or Suspension()
        current = self.now - suspension.start_time if suspension.start_time is not None else timedelta()
        return suspension.total_seconds + max(int(current.total_seconds()), 0)

    @property
    def is_past_run_deadline(self) -> bool:
        """True if the run has taken longer than `deadlines.runSeconds`."""
        return self.run_deadline is not None and self.run_deadline <= self.now

    @property
    def _next_deadline(self) -> datetime | None:
        """Deadline of the cleanup once the run ends, else that of the run; None if it passed."""
        ending = self.status.ending
        deadline = self.run_deadline if ending is None else ending.cleanup_deadline
        is_over = self.status.outcome is not None or deadline is None or deadline <= self.now
        return None if is_over else deadline

    @property
    def has_state(self) -> bool:
        """True if status, watch or read showed a state."""
        named = self.status.state is not None and bool(self.status.state.uid)
        seen = named or self.observed.summary is not None
        return seen or isinstance(self.observed.state, StateView)

    @property
    def state_lost(self) -> bool:
        """True if the state was read and is not the one that status names."""
        named, read = self.status.state, self.observed.state
        if named is None or not named.uid:
            return False
        return isinstance(read, AbsentState) or (isinstance(read, StateView) and read.uid != named.uid)

    @property
    def jobs(self) -> tuple[JobSummary, ...]:
        """External jobs from the state, or from the summary if the state was not read."""
        summary = self.observed.summary
        if self.observed.state is None:
            return summary.jobs if summary else ()
        return self.state.jobs if self.state is not None else ()

    # Pods

    def is_pod_over(self, pod: Pod) -> bool:
        """Return whether the pod is terminal, or presumed to be because its node is lost."""
        lost = podstatus.lost_at(pod, self.spec.deadlines.lost_seconds)
        is_lost = lost is not None and lost <= self.now
        return podstatus.is_terminal(pod) or is_lost or self._is_on_dead_node(pod)

    def _is_on_dead_node(self, pod: Pod) -> bool:
        """Return whether the pod was deleted or stopped and can't run, because its node is dead."""
        due = podstatus.lost_at(pod, 0)
        return due is not None and self.node_evidence(pod.spec.node_name, due) is not None

    def node_evidence(self, node: str, ended: datetime) -> str | None:
        """Return the evidence that a pod on this node has ended (`NodeFacts.evidence_against`)."""
        facts = self.observed.nodes.get(node)
        return None if facts is None else facts.evidence_against(node, ended)

    def is_overdue(self, pod: Pod) -> bool:
        """Return whether the pod should have ended, so that its Node is worth a read."""
        due = _due_at(pod)
        return due is not None and due <= self.now and not podstatus.is_terminal(pod)

    def attempt_end_time(self, pod: Pod) -> datetime | None:
        """Return when the pod's attempt counts as ended if nothing else is reported before.

        The result is None while the task's container has not exited. Its exit is the end of the
        attempt. A pod whose other containers are exiting gets 60 s to finish, which saves a delete
        and a status write.
        """
        if self.is_pod_over(pod):
            return self.now
        ended = podstatus.terminated_of(pod, self.container)
        if ended is None or pod.metadata.deletion_timestamp is not None:
            return podstatus.lost_at(pod, self.spec.deadlines.lost_seconds)
        if ended.finished_at is None or podstatus.other_containers_running(pod, self.container):
            return self.now
        return ended.finished_at + EXIT_GRACE

    @cached_property
    def running_leftovers(self) -> tuple[Pod, ...]:
        """Pods of recorded attempts in which a container may still run."""
        ended = (view.pod for view in self.attempts if view.recorded and view.pod)
        return tuple(pod for pod in ended if not self.is_pod_over(pod))

    @property
    def awaited_leftovers(self) -> tuple[Pod, ...]:
        """Running leftovers that must be over before the next attempt starts."""
        return tuple(pod for pod in self.running_leftovers if not self._is_replaceable(pod))

    def is_replaced(self, view: AttemptView) -> bool:
        """Return whether the next attempt starts although the pod of this one has not ended."""
        return view.purpose is AttemptPurpose.RUN and view.pod is not None and self._is_replaceable(view.pod)

    def _is_replaceable(self, pod: Pod) -> bool:
        is_terminating = pod.metadata.deletion_timestamp is not None
        return is_terminating and self.spec.pod_replacement_policy == "TerminatingOrFailed"

    @cached_property
    def leftover_stops(self) -> tuple[StopPod | DeletePod, ...]:
        """Actions that stop the containers still running in pods of recorded attempts.

        Pods of attempts that keep none are deleted, even if nothing runs in them.
        """
        views = [view for view in self.attempts if view.recorded]
        stops = (
            retention.stop_of(view.pod, self.container, self.now, is_late=self._is_late(view))
            for view in views
            if view.pod and not view.keeps_no_pod
        )
        unkept = delete_pods(tuple(view.pod for view in views if view.pod and view.keeps_no_pod))
        return (*unkept, *(stop for stop in stops if stop is not None))

    def _is_late(self, view: AttemptView) -> bool:
        return view.purpose is AttemptPurpose.CLEANUP and self.is_past_cleanup_deadline

    @property
    def _next_deletion_at(self) -> datetime | None:
        """Next time at which a stopped pod is deleted if it is not over before."""
        times = [retention.delete_at(pod) for pod in self.running_leftovers if not pod.metadata.deletion_timestamp]
        return min((time for time in times if time is not None and time > self.now), default=None)

    @property
    def next_node_loss_at(self) -> datetime | None:
        """Next time at which a pod counts as lost if its node reports nothing before."""
        waiting = [pod for pod in self.observed.pods if not self.is_pod_over(pod)]
        times = [podstatus.lost_at(pod, self.spec.deadlines.lost_seconds) for pod in waiting]
        return min((time for time in times if time is not None), default=None)

    @property
    def _next_node_read_at(self) -> datetime | None:
        """Next time at which a Node may be evidence of an end that this decision depends on.

        The result is None if no Node can be read. A presumed end matters while a job may have been
        submitted.
        """
        awaited = [pod for pod in self.observed.pods if not self.is_pod_over(pod)]
        due = [_due_at(pod) for pod in awaited]
        times = [time for time in due if time is not None and time > self.now]
        names = {pod.spec.node_name for pod in awaited if self.is_overdue(pod)}
        if any(job.is_open and job.handle is None for job in self.jobs):
            names |= {view.entry.node for view in self.attempts if view.entry is not None and view.is_presumed}
        if any(self.observed.nodes.get(name) is not None for name in names):
            times.append(self.now + NODE_INTERVAL)
        return min(times, default=None)

    # Results

    def with_status(self, status: TaskRunStatus, *events: EmitEvent) -> "DecisionContext":
        """Return the context with a new status, and with these events added."""
        return replace(self, status=status, events=(*self.events, *events))

    def with_final_status(self, status: TaskRunStatus, *events: EmitEvent) -> "DecisionContext":
        """Return the context with the final status, and with these events added.

        Events of failed attempts are dropped, because no attempt follows.
        """
        others = [one for one in self.events if one.reason != EventReason.ATTEMPT_FAILED]
        return replace(self, status=status, events=(*others, *events))

    def plan(self, *actions: Action, again: datetime | None = None, held: bool = False) -> Plan:
        """Return the plan: write a changed status, emit events, clean up pods, then `actions`.

        Events come first: they can't fail, and the last action may delete the TaskRun.
        """
        context = self.with_status(history.with_folded(self.status, self.spec.history_limit))
        status = context.status
        if not held and not conditions.is_held_for_lost_state(status):
            status = conditions.without_hold(status, self.now)
        stored = self.observed.taskrun.status
        to_write = conditions.to_write(stored, status, self.metadata.generation, self.now)
        cleanup: tuple[Action, ...] = (*context.releases, *context.leftover_stops)
        due = (again, self.next_node_loss_at, self._next_deletion_at, self._next_node_read_at, self._next_deadline)
        times = [time for time in due if time is not None]
        return Plan(to_write, (*self.events, *cleanup, *actions), min(times, default=None))

    def release_all_pods(self) -> tuple[ReleasePod, ...]:
        """Return the release of every pod that is over, of any attempt."""
        return self._releases_of(self.observed.pods)

    @property
    def releases(self) -> tuple[ReleasePod, ...]:
        """The release of each pod that is over, and whose attempt is recorded."""
        ended = (view for view in self.attempts if view.recorded)
        return self._releases_of(tuple(view.pod for view in ended if view.pod and not _may_report(view, view.pod)))

    def _releases_of(self, pods: tuple[Pod, ...]) -> tuple[ReleasePod, ...]:
        kept = (pod for pod in pods if FINALIZER_ATTEMPT in pod.metadata.finalizers)
        return tuple(ReleasePod(pod) for pod in kept if self.is_pod_over(pod))


def _due_at(pod: Pod) -> datetime | None:
    """Return when a pod that was deleted or stopped should have ended; None for other pods."""
    end = podstatus.lost_at(pod, 0)
    return None if end is None else end + OVERDUE_AFTER


def _may_report(view: AttemptView, pod: Pod) -> bool:
    """Return whether the kubelet may still report the presumed end of the attempt.

    Without our finalizer, the pod would be gone as soon as it is reported.
    """
    return view.is_presumed and not podstatus.is_terminal(pod) and not podstatus.is_forced(pod)


def delete_pods(pods: tuple[Pod, ...]) -> tuple[DeletePod, ...]:
    """Return the deletion of each pod that is not being deleted yet."""
    live = (pod.metadata for pod in pods if pod.metadata.deletion_timestamp is None)
    return tuple(DeletePod(name=pod.name, uid=pod.uid) for pod in live)


def release_state(context: DecisionContext) -> tuple[ReleaseState, ...]:
    """Return the release of the state, if one was ever seen."""
    name = state_name(context.metadata.name, context.metadata.uid)
    return (ReleaseState(name),) if context.has_state else ()
