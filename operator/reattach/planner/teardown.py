"""Teardown of a run: the steps from the decision that it ends to its outcome.

    read the state -> record the ending -> seal the state -> stop the pods -> cancel external jobs
        -> wait for the pods -> hold if an intent is unresolved
        -> name the open jobs, remove our finalizer -> write the outcome

Each step returns what remains to be done for it, or None. After each write the steps run again from
the first, in this process or the next. A run without anything to stop or to cancel goes from the
seal to the outcome in one write, and records no ending.

Order of neighbours. The pairs marked != must not be swapped; a test in `test_check_order.py` swaps
each.

    _read_state        = _record_ending       the second decision has the state in any case
    _record_ending     != _seal_state         a raised budget would continue a sealed run
    _seal_state        != _stop_pods          an attempt may store an intent until its pod is gone
    _stop_pods         != _clean_up           the task could go on with a job that is cancelled
    _clean_up          != _await_pods         the jobs would run until the pods have ended
    _await_pods        != _hold_unresolved    a pod may still report the handle of the intent
    _hold_unresolved   != _release_finalizer  the intent would be forgotten without a resolution
    _release_finalizer != _end                a finished TaskRun is not watched: its finalizer stays
"""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import msgspec

from reattach.api.names import FINALIZER_EXTERNAL_JOBS
from reattach.api.objects import Pod
from reattach.api.reasons import SENTENCES, End, Outcome, Reason
from reattach.api.state import SealPurpose, StateView
from reattach.api.taskrun import AttemptPurpose, Ending
from reattach.planner import cleanup, conditions, external_jobs, holds, orphan_report, suspension, textformat
from reattach.planner.context import DecisionContext, delete_pods, release_state
from reattach.planner.outcome import DELETED, FinalOutcome
from reattach.planner.plan import Decision, DeletePod, EmitEvent, Plan, ReadState, ReleaseTaskRun, SealState

NAMESPACE_CHECK_INTERVAL = timedelta(seconds=30)


Step = Callable[[DecisionContext, FinalOutcome], Decision | None]


def teardown_step(context: DecisionContext, final: FinalOutcome) -> Decision:
    """Return the next step of a run that ends with this outcome."""
    return next(decision for step in _STEPS if (decision := step(context, final)) is not None)


def delete_running_pods(context: DecisionContext) -> tuple[DeletePod, ...]:
    """Return the deletion of each pod that may still run and that no plan stops by itself."""
    return delete_pods(_without_leftovers(context, _running_pods(context)))


def _read_state(context: DecisionContext, _final: FinalOutcome) -> Decision | None:
    return ReadState() if context.observed.state is None else None


def _record_ending(context: DecisionContext, final: FinalOutcome) -> Plan | None:
    """Record the outcome and the deadline of the cleanup, before anything is stopped.

    From then on, a raised budget or an edited deadline changes nothing. Skip it for a run
    without a pod to stop and a job to cancel, because the outcome is then the next write.
    """
    if context.status.ending is not None or final.outcome is Outcome.SUCCEEDED or not _has_to_clean_up(context):
        return None
    time = context.now.replace(microsecond=0)
    ending = Ending(
        outcome=final.outcome.value if final.outcome else None,
        reason=final.reason.value if final.outcome else DELETED,
        message=textformat.head(final.message),
        time=time,
        cleanup_deadline=time + timedelta(seconds=context.spec.cleanup.deadline_seconds),
    )
    status = conditions.with_progress(context.status, Reason.ENDING, _describe_stop(context, final), context.now)
    status = msgspec.structs.replace(status, ending=ending, next_attempt_time=None)
    return context.with_status(status).plan(again=context.now)


def _has_to_clean_up(context: DecisionContext) -> bool:
    listed = any(external_jobs.is_open(job) for job in context.status.external_jobs)
    is_open = listed or any(job.is_open for job in context.jobs)
    is_open = is_open or bool(cleanup.adoptions(context))
    return bool(_running_pods(context)) or is_open or cleanup.must_run(context)


def _seal_state(context: DecisionContext, _final: FinalOutcome) -> Decision | None:
    """Seal the state if an attempt may still store an intent in it, or if an ending is recorded.

    A cleanup attempt can open only a sealed state. Skip the seal if the state does not exist. An
    attempt that creates it now must first write the TaskRun's status, so our next write fails with
    a conflict.
    """
    state = context.state
    if state is None or (state.seal is not None and state.seal.purpose is SealPurpose.END):
        return None
    if context.status.ending is None and not _may_be_written(context, state):
        return None
    return SealState(context.last_number, SealPurpose.END)


def _may_be_written(context: DecisionContext, state: StateView) -> bool:
    """Return whether an attempt that is not fenced may run and store an intent."""
    opened = state.epoch.attempt if state.epoch else 1
    has_completed = state.completion is not None and state.completion.attempt == opened
    entries = {view.number: view.entry for view in context.attempts}
    numbers = range(opened + 1 if has_completed else opened, context.next_number)
    return any((entry := entries.get(number)) is None or entry.end != End.REPORTED for number in numbers)


def _stop_pods(context: DecisionContext, final: FinalOutcome) -> Plan | None:
    """Delete the pods of run attempts, and of cleanup attempts that are not needed any more."""
    pods = _pods_to_stop(context, final)
    deletes = delete_pods(_without_leftovers(context, pods))
    # The run does not wait for late cleanup pods, but they are deleted first: nothing deletes a pod
    # of a finished TaskRun, and it could cancel a job that another run has taken over.
    is_late = context.is_past_cleanup_deadline and any(isinstance(stop, DeletePod) for stop in context.leftover_stops)
    if not deletes and not is_late:
        return None
    # The deletion of the pods wakes the operator only when they end.
    again = context.now if is_late or cleanup.is_due(context, final) else None
    return _show_stop(context, final).plan(*deletes, again=again)


def _clean_up(context: DecisionContext, final: FinalOutcome) -> Plan | None:
    return cleanup.cleanup_step(context, final)


def _await_pods(context: DecisionContext, final: FinalOutcome) -> Plan | None:
    """Wait until the stopped pods have ended or count as lost."""
    return _show_stop(context, final).plan() if _pods_to_stop(context, final) else None


def _pods_to_stop(context: DecisionContext, final: FinalOutcome) -> tuple[Pod, ...]:
    """Return the running pods that the run waits for, except for the current cleanup attempt's.

    After the deadline of the cleanup, its pods are deleted and the run does not wait for them.
    """
    is_success, is_late = final.outcome is Outcome.SUCCEEDED, context.is_past_cleanup_deadline
    views = [
        view
        for view in context.attempts
        if view.purpose is AttemptPurpose.RUN or (not is_late and (view.recorded or is_success))
    ]
    return tuple(view.pod for view in views if view.pod is not None and not context.is_pod_over(view.pod))


def _without_leftovers(context: DecisionContext, pods: tuple[Pod, ...]) -> tuple[Pod, ...]:
    # Every plan already stops the leftovers of recorded attempts.
    leftovers = {pod.metadata.uid for pod in context.running_leftovers}
    return tuple(pod for pod in pods if pod.metadata.uid not in leftovers)


def _show_stop(context: DecisionContext, final: FinalOutcome) -> DecisionContext:
    status = conditions.with_progress(context.status, Reason.ENDING, _describe_stop(context, final), context.now)
    return context.with_status(status)


def _describe_stop(context: DecisionContext, final: FinalOutcome) -> str:
    if not _running_pods(context):
        return final.message
    return SENTENCES[Reason.ENDING] if context.current is None else f"{final.message} Its pod is being stopped."


def _hold_unresolved(context: DecisionContext, _final: FinalOutcome) -> Decision | None:
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


def _release_finalizer(context: DecisionContext, final: FinalOutcome) -> Decision | None:
    """Record the orphaned jobs in status and emit events before removing the finalizer.

    Repeat the events on every try: once the TaskRun is deleted they could not be sent again.
    """
    if FINALIZER_EXTERNAL_JOBS not in context.metadata.finalizers:
        return None
    named = orphan_report.with_orphans(context, final)
    orphans = orphan_report.orphans_of(named, final)
    events = tuple(orphan_report.orphaned_event(one) for one in orphans)
    release = ReleaseTaskRun(orphan_report.record_of(named, final, orphans))
    if named is context and not events:
        return Plan(actions=(release,))
    return replace(named, events=(*context.events, *events)).plan(release)


def _end(context: DecisionContext, final: FinalOutcome) -> Decision:
    """Write the outcome. The write is the last one, so a finished TaskRun needs nothing more."""
    assert final.outcome is not None, "a TaskRun that is being deleted without our finalizer has no teardown"
    context = orphan_report.with_orphans(context, final)
    if not context.observed.has_record or not context.observed.taskrun.status.orphaned:
        # The record is written before this step, and only if our finalizer was there.
        context = context.with_status(conditions.with_unrecorded_orphans(context.status, context.now))
    status = conditions.without_hold(suspension.without_suspension(context), context.now)
    status = conditions.with_outcome(status, final.outcome, final.reason, final.message, context.now)
    status = msgspec.structs.replace(status, result=status.result if final.result is None else final.result)
    return context.with_final_status(status, *_end_events(final)).plan(*release_state(context))


def _end_events(final: FinalOutcome) -> tuple[EmitEvent, ...]:
    """Return the event about the end. A success has none, because status and metrics show it."""
    if final.outcome is Outcome.SUCCEEDED:
        return ()
    is_failure = final.outcome is Outcome.FAILED
    return (EmitEvent(final.reason.value, textformat.head(final.message), warning=is_failure),)


_STEPS: tuple[Step, ...] = (
    _read_state,
    _record_ending,
    _seal_state,
    _stop_pods,
    _clean_up,
    _await_pods,
    _hold_unresolved,
    _release_finalizer,
    _end,
)


def _running_pods(context: DecisionContext) -> tuple[Pod, ...]:
    pods = (view.pod for view in context.attempts if view.pod is not None)
    return tuple(pod for pod in pods if not context.is_pod_over(pod))
