"""One look at a TaskRun: what was observed, put in the order in which decisions ask for it."""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from reattach.api.names import FINALIZER_ATTEMPT, state_name
from reattach.api.objects import ObjectMeta, Pod
from reattach.api.reasons import EventReason
from reattach.api.state import Epoch, JobSummary, SealPurpose, StateView
from reattach.api.taskrun import Attempt, TaskRunSpec, TaskRunStatus
from reattach.planner import conditions as statuses
from reattach.planner import podstatus
from reattach.planner.plan import AbsentState, Action, DeletePod, EmitEvent, Observed, Plan, ReleasePod, ReleaseState
from reattach.planner.pods import task_container

WINDING_DOWN = timedelta(seconds=60)
"""How long the kubelet may take to end a pod whose containers have ended; there may be sidecars that it has to stop."""


@dataclass(frozen=True, slots=True)
class AttemptView:
    """One attempt, from all that tells of it. `recorded`: its end is in status, be it that the list has dropped it since."""

    number: int
    pod: Pod | None
    entry: Attempt | None
    recorded: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionContext:
    """What was observed, and what status will say. Steps give a new look or, at last, a plan."""

    observed: Observed
    now: datetime
    status: TaskRunStatus
    announced: tuple[EmitEvent, ...] = ()

    @property
    def about(self) -> ObjectMeta:
        return self.observed.taskrun.metadata

    @property
    def spec(self) -> TaskRunSpec:
        return self.observed.taskrun.spec

    @property
    def container(self) -> str:
        return task_container(self.observed.taskrun)

    @property
    def epoch(self) -> Epoch | None:
        """The attempt that opened the state last, as far as is known."""
        if isinstance(self.observed.state, StateView):
            return self.observed.state.epoch
        return self.observed.summary.epoch if self.observed.summary else None

    @property
    def is_sealed(self) -> bool:
        """Whether the end of the run was begun and no attempt can open the state any more: that is never taken back."""
        read, summary = self.observed.state, self.observed.summary
        seal = read.seal if isinstance(read, StateView) else summary.seal if summary else None
        return seal is not None and seal.purpose is SealPurpose.END and not self.state_lost

    @property
    def attempts(self) -> tuple[AttemptView, ...]:
        """All attempts that anything tells of, in order."""
        pods = {podstatus.attempt_number(pod, self.about): pod for pod in self.observed.pods}
        entries = {entry.number: entry for entry in self.status.attempts}
        numbers = {number for number in pods if number is not None} | entries.keys()
        if self.epoch is not None:
            numbers.add(self.epoch.attempt)
        return tuple(self._known(number, pods.get(number), entries.get(number)) for number in sorted(numbers))

    def _known(self, number: int, pod: Pod | None, entry: Attempt | None) -> AttemptView:
        # Only ended attempts leave the list, and none is passed over when the count goes up.
        recorded = entry.finish_time is not None if entry else number <= self.status.counts.attempts
        return AttemptView(number, pod, entry, recorded)

    @property
    def next_number(self) -> int:
        """A number that no attempt ever had."""
        return max(self.status.counts.attempts, *(known.number for known in self.attempts), 0) + 1

    @property
    def current(self) -> AttemptView | None:
        """The attempt that has not ended."""
        return next((known for known in reversed(self.attempts) if not known.recorded), None)

    @property
    def has_state(self) -> bool:
        """Whether a state was ever seen."""
        seen = self.status.state is not None or self.observed.summary is not None
        return seen or isinstance(self.observed.state, StateView)

    @property
    def state_lost(self) -> bool:
        """Whether the state was read, and is not the one that status names."""
        named, read = self.status.state, self.observed.state
        if named is None or not named.uid:
            return False
        return isinstance(read, AbsentState) or (isinstance(read, StateView) and read.uid != named.uid)

    @property
    def jobs(self) -> tuple[JobSummary, ...]:
        """The external jobs as the state has them; as the summary has them where the state was not read."""
        read, summary = self.observed.state, self.observed.summary
        if read is None:
            return summary.jobs if summary else ()
        return read.jobs if isinstance(read, StateView) and not self.state_lost else ()

    def is_done_with(self, pod: Pod) -> bool:
        """Whether nothing of the pod can run any more, or that is presumed."""
        lost = podstatus.lost_at(pod, self.spec.deadlines.lost_seconds)
        return podstatus.is_over(pod) or (lost is not None and lost <= self.now)

    def ends_at(self, pod: Pod) -> datetime | None:
        """When the pod's attempt counts as ended, if nothing else is reported until then; None if its task's container still has to end.

        The container's end is the attempt's end, but a pod that is about to be over by itself is given the time, so that nothing has to
        be deleted and one write says it all.
        """
        if self.is_done_with(pod):
            return self.now
        ended = podstatus.terminated_of(pod, self.container)
        if ended is None or pod.metadata.deletion_timestamp is not None:
            return podstatus.lost_at(pod, self.spec.deadlines.lost_seconds)
        if ended.finished_at is None or podstatus.others_go_on(pod, self.container):
            return self.now
        return ended.finished_at + WINDING_DOWN

    @property
    def leftovers(self) -> tuple[Pod, ...]:
        """The pods of attempts that have ended in which something still runs."""
        return tuple(one.pod for one in self.attempts if one.recorded and one.pod and not self.is_done_with(one.pod))

    @property
    def next_loss(self) -> datetime | None:
        """The next time at which a pod counts as lost, if its node says nothing until then."""
        waiting = [pod for pod in self.observed.pods if not self.is_done_with(pod)]
        times = [podstatus.lost_at(pod, self.spec.deadlines.lost_seconds) for pod in waiting]
        return min((time for time in times if time is not None), default=None)

    def ended_with(self, status: TaskRunStatus, announced: EmitEvent) -> "DecisionContext":
        """Nothing comes after that, so how the last attempt failed and when the next one would start is not worth telling."""
        others = [said for said in self.announced if said.reason != EventReason.ATTEMPT_FAILED]
        return replace(self, status=status, announced=(*others, announced))

    def with_status(self, status: TaskRunStatus, *announced: EmitEvent) -> "DecisionContext":
        return replace(self, status=status, announced=(*self.announced, *announced))

    def plan(self, *actions: Action, again: datetime | None = None, held: bool = False) -> Plan:
        """What to do: write the status if it has news, say what these are, tidy up, then `actions`.

        Saying comes first: it waits for nobody, and after the last of the actions there may be no TaskRun left to tell it from.
        """
        status = self.status
        if not held and not statuses.is_held_for_good(status):
            status = statuses.without_hold(status, self.now)
        to_write = statuses.to_write(self.observed.taskrun.status, status, self.about.generation, self.now)
        tidying: tuple[Action, ...] = (*self._releases(), *self._deletes())
        times = [time for time in (again, self.next_loss) if time is not None]
        return Plan(to_write, (*self.announced, *tidying, *actions), min(times, default=None))

    def releases_of_all(self) -> tuple[ReleasePod, ...]:
        """Let go of every pod that is over, of whichever attempt."""
        return tuple(ReleasePod(pod) for pod in self.observed.pods if _is_kept(pod) and self.is_done_with(pod))

    def _releases(self) -> tuple[ReleasePod, ...]:
        pods = [known.pod for known in self.attempts if known.recorded and known.pod]
        return tuple(ReleasePod(pod) for pod in pods if _is_kept(pod) and self.is_done_with(pod))

    def _deletes(self) -> tuple[DeletePod, ...]:
        pods = [pod.metadata for pod in self.leftovers if pod.metadata.deletion_timestamp is None]
        return tuple(DeletePod(name=pod.name, uid=pod.uid) for pod in pods)


def release_of_state(look: DecisionContext) -> tuple[ReleaseState, ...]:
    """Let go of the state, if there was ever one."""
    return (ReleaseState(state_name(look.about.name, look.about.uid)),) if look.has_state else ()


def _is_kept(pod: Pod) -> bool:
    return FINALIZER_ATTEMPT in pod.metadata.finalizers
