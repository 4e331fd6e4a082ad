"""Teardown of a run: the steps from the decision that it ends to its outcome.

    read the state -> seal it -> stop the pods -> hold if an intent is unresolved
        -> name the open jobs, remove our finalizer -> write the outcome

Each step returns what remains to be done for it, or None. After each write the steps run again from
the first, in this process or the next. `purpose` is the purpose of the seal.

Order of neighbours. The pairs marked != must not be swapped; a test in `test_check_order.py` swaps
each.

    _read_state        = _seal_state          exclusive: a state is sealed only after it was read
    _seal_state        != _stop_pods          an attempt may store an intent until its pod is gone
    _stop_pods         != _hold_unresolved    the pods would run until a user resolves the hold
    _hold_unresolved   != _release_finalizer  the intent would be forgotten without a resolution
    _release_finalizer != _end                a finished TaskRun is not watched: its finalizer stays
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta

import msgspec

from reattach.api.names import FINALIZER_EXTERNAL_JOBS
from reattach.api.objects import Pod
from reattach.api.reasons import SENTENCES, ConditionType, End, EventReason, Outcome, Reason
from reattach.api.state import JobState, JobSummary, Seal, SealPurpose, StateView
from reattach.api.taskrun import ExternalJobStatus, TaskRunStatus
from reattach.api.text import printable
from reattach.planner import conditions, external_jobs, holds, textformat
from reattach.planner.context import DecisionContext, delete_pods, release_state
from reattach.planner.outcome import FinalOutcome
from reattach.planner.plan import Decision, DeletePod, EmitEvent, Plan, ReadState, ReleaseTaskRun, SealState

NAMESPACE_CHECK_INTERVAL = timedelta(seconds=30)


@dataclass(frozen=True, slots=True)
class Teardown:
    """End of the run, and the purpose of the seal that precedes it."""

    final: FinalOutcome
    purpose: SealPurpose = SealPurpose.END


Step = Callable[[DecisionContext, Teardown], Decision | None]


def teardown_step(context: DecisionContext, final: FinalOutcome, *, purpose: SealPurpose = SealPurpose.END) -> Decision:
    """Return the next step of a run that ends with this outcome."""
    teardown = Teardown(final, purpose)
    return next(decision for step in _STEPS if (decision := step(context, teardown)) is not None)


def delete_running_pods(context: DecisionContext) -> tuple[DeletePod, ...]:
    """Return the deletion of each pod, of any attempt, that may still run."""
    return delete_pods(_running_pods(context))


def _read_state(context: DecisionContext, _teardown: Teardown) -> Decision | None:
    return ReadState() if context.observed.state is None else None


def _seal_state(context: DecisionContext, teardown: Teardown) -> Decision | None:
    """Seal the state if an attempt may still store an intent in it.

    Skip the seal if the state does not exist. An attempt that creates it now must first write the
    TaskRun's status, so our next write fails with a conflict.
    """
    if context.state is None or not _may_be_written(context, context.state, teardown.purpose):
        return None
    return SealState(context.last_number, teardown.purpose)


def _may_be_written(context: DecisionContext, state: StateView, purpose: SealPurpose) -> bool:
    """Return whether an attempt that is not fenced may run and store an intent."""
    if state.seal is not None and _is_sealed_for(state.seal, purpose, context.last_number):
        return False
    opened = state.epoch.attempt if state.epoch else 1
    has_completed = state.completion is not None and state.completion.attempt == opened
    entries = {view.number: view.entry for view in context.attempts}
    numbers = range(opened + 1 if has_completed else opened, context.next_number)
    return any((entry := entries.get(number)) is None or entry.end != End.REPORTED for number in numbers)


def _is_sealed_for(seal: Seal, purpose: SealPurpose, last_number: int) -> bool:
    """Return whether the seal covers all attempts. One for the end covers later attempts, too."""
    return seal.purpose is SealPurpose.END or (seal.purpose is purpose and seal.through_attempt >= last_number)


def _stop_pods(context: DecisionContext, teardown: Teardown) -> Decision | None:
    if not _running_pods(context):
        return None
    is_over = context.current is None
    message = SENTENCES[Reason.ENDING] if is_over else f"{teardown.final.message} Its pod is being stopped."
    status = conditions.with_progress(context.status, Reason.ENDING, message, context.now)
    status = msgspec.structs.replace(status, next_attempt_time=None)
    # Every plan already deletes the leftovers of recorded attempts.
    leftovers = {pod.metadata.uid for pod in context.running_leftovers}
    deletes = (delete for delete in delete_running_pods(context) if delete.uid not in leftovers)
    return context.with_status(status).plan(*deletes)


def _hold_unresolved(context: DecisionContext, _teardown: Teardown) -> Decision | None:
    """Hold the TaskRun while an intent without a handle has no resolution.

    Do not hold it if the finalizer was removed by hand, if `onUnknown` is not Hold, or if the
    namespace is being deleted. The intent is then named like every open job.
    """
    cannot_wait = context.spec.submission.on_unknown != "Hold" or context.observed.namespace_ends
    if FINALIZER_EXTERNAL_JOBS not in context.metadata.finalizers or cannot_wait:
        return None
    unresolved = (job for job in context.jobs if job.is_open and job.handle is None)
    waiting = tuple(job for job in unresolved if holds.resolution_at_end(context.spec, job) is None)
    if not waiting:
        return None
    # No event reports that the namespace is being deleted, too. It matters only to a deleted
    # TaskRun.
    is_deleted = context.metadata.deletion_timestamp is not None
    again = context.now + NAMESPACE_CHECK_INTERVAL if is_deleted else None
    return holds.hold(context, Reason.SUBMISSION_UNKNOWN, holds.describe_unresolved(context, waiting), again=again)


def _release_finalizer(context: DecisionContext, teardown: Teardown) -> Decision | None:
    """Record the orphaned jobs in status and emit events before removing the finalizer.

    Repeat the events on every try: once the TaskRun is deleted they could not be sent again.
    """
    if FINALIZER_EXTERNAL_JOBS not in context.metadata.finalizers:
        return None
    named = with_orphans(context, teardown.final.outcome)
    events = tuple(_orphaned_event(one) for one in _orphans(named))
    if named is context and not events:
        return Plan(actions=(ReleaseTaskRun(),))
    return replace(named, events=(*context.events, *events)).plan(ReleaseTaskRun())


def _end(context: DecisionContext, teardown: Teardown) -> Decision:
    """Write the outcome. The write is the last one, so a finished TaskRun needs nothing more."""
    final = teardown.final
    assert final.outcome is not None, "a TaskRun that is being deleted without our finalizer has no teardown"
    context = with_orphans(context, final.outcome)
    status = conditions.without_hold(context.status, context.now)
    status = conditions.with_outcome(status, final.outcome, final.reason, final.message, context.now)
    status = msgspec.structs.replace(status, result=status.result if final.result is None else final.result)
    is_failure = final.outcome is Outcome.FAILED
    event = EmitEvent(final.reason.value, textformat.head(final.message), warning=is_failure)
    return context.with_final_status(status, event).plan(*release_state(context))


_STEPS: tuple[Step, ...] = (_read_state, _seal_state, _stop_pods, _hold_unresolved, _release_finalizer, _end)


def _running_pods(context: DecisionContext) -> tuple[Pod, ...]:
    pods = (view.pod for view in context.attempts if view.pod is not None)
    return tuple(pod for pod in pods if not context.is_pod_over(pod))


# External jobs


@dataclass(frozen=True, slots=True)
class _Orphan:
    """External job, or stray handle of one, that may run after the end of the TaskRun.

    `given_up`: the policy `onUnknown: Fail` closed it although it may run.
    """

    name: str
    given_up: bool = False

    @property
    def listed(self) -> str:
        """Its part of the condition's message."""
        return f"{self.name}, which was given up and may run" if self.given_up else self.name


def with_orphans(context: DecisionContext, outcome: Outcome | None) -> DecisionContext:
    """Return the context with the final state of each open job; the same one if no job is open."""
    known = {external_jobs.job_id(job): job for job in context.jobs}
    jobs = context.status.external_jobs
    after = tuple(_at_end(context, job, known.get(external_jobs.job_id(job)), outcome) for job in jobs)
    named = context.with_status(msgspec.structs.replace(context.status, external_jobs=after))
    new = _unreported_orphans(named)
    if not new:
        return named if named.status != context.status else context
    status = conditions.with_orphaned(named.status, _message_with(named, new), context.now)
    return context.with_status(status, *(_orphaned_event(one) for one in new))


def _orphans(context: DecisionContext) -> list[_Orphan]:
    """Return the jobs that status lists as orphaned, and those that no attempt ever watched."""
    listed = [_Orphan(external_jobs.describe_job(job)) for job in _orphaned_jobs(context.status)]
    return listed + _unwatched(context)


def _orphaned_jobs(status: TaskRunStatus) -> list[ExternalJobStatus]:
    return [job for job in status.external_jobs if job.state == JobState.ORPHANED]


def _unwatched(context: DecisionContext) -> list[_Orphan]:
    named = [(job, external_jobs.describe_job(job)) for job in context.jobs]
    strays = [_Orphan(f"{name}, also handle {printable(stray)}") for job, name in named for stray in job.strays]
    return strays + [_Orphan(name, given_up=True) for job, name in named if job.given_up]


def _unreported_orphans(context: DecisionContext) -> list[_Orphan]:
    """Return the orphans that the stored status does not report yet.

    A job is reported if the stored status lists it as Orphaned with the same handle. Strays and
    jobs that were given up have no field in status: the condition's message is their only record.
    """
    stored = _orphaned_jobs(context.observed.taskrun.status)
    reported = {(external_jobs.job_id(job), job.handle) for job in stored}
    jobs = [job for job in _orphaned_jobs(context.status) if (external_jobs.job_id(job), job.handle) not in reported]
    message = _reported_message(context)
    unwatched = [one for one in _unwatched(context) if f" {one.listed}" not in message]
    return [_Orphan(external_jobs.describe_job(job)) for job in jobs] + unwatched


def _reported_message(context: DecisionContext) -> str:
    condition = conditions.find_condition(context.status.conditions, ConditionType.ORPHANED)
    return condition.message if condition else ""


def _message_with(context: DecisionContext, new: list[_Orphan]) -> str:
    """Return the message with these names added.

    The old names are kept, because jobs of a lost state may be named in this message only.
    """
    names = "; ".join(one.listed for one in new)
    before = _reported_message(context)
    return (
        f"{before} Also external job {names}." if before else f"{SENTENCES[Reason.JOBS_ORPHANED]} External job {names}."
    )


def _orphaned_event(orphan: _Orphan) -> EmitEvent:
    how = "" if orphan.given_up else " is left running by the end of the TaskRun"
    note = f"External job {orphan.listed}{how}; Reattach no longer watches it."
    return EmitEvent(EventReason.ORPHANED, textformat.head(note), warning=True)


def _at_end(
    context: DecisionContext, job: ExternalJobStatus, known: JobSummary | None, outcome: Outcome | None
) -> ExternalJobStatus:
    if not external_jobs.is_open(job):
        return job
    resolution = holds.resolution_at_end(context.spec, known) if known else None
    if resolution is not None and resolution.action in {holds.FAIL, holds.RESUBMIT}:
        # Resubmit states that the external system has no such job.
        return msgspec.structs.replace(job, state=JobState.FAILED.value)
    if resolution is not None and resolution.action == holds.ADOPT:
        return msgspec.structs.replace(job, state=JobState.ORPHANED.value, handle=resolution.handle)
    is_wanted = known is not None and known.detached and job.handle is not None
    left = JobState.DETACHED if is_wanted and outcome is Outcome.SUCCEEDED else JobState.ORPHANED
    return msgspec.structs.replace(job, state=left.value)
