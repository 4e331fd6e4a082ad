"""Suspension: pods are stopped, external jobs continue, and no budget is charged.

    record the suspension, and for each running attempt that it is being stopped
        -> seal the state -> delete the pods -> record their ends (Stopped) -> wait

Each step returns what remains to be done for it. After each write the steps run again from the
first, in this process or the next. An attempt whose stop is recorded is stopped even if the TaskRun
is resumed meanwhile, because the seal may already keep it from continuing. The number of the next
attempt is above the seal, so it opens the state and reattaches.
"""

from datetime import timedelta

import msgspec

from reattach.api.reasons import SENTENCES, Reason
from reattach.api.state import SealPurpose, StateView
from reattach.api.taskrun import Suspension, TaskRunStatus
from reattach.planner import attempts, conditions, external_jobs, holds, outcome, podstatus, textformat
from reattach.planner.context import AttemptView, DecisionContext, delete_pods
from reattach.planner.plan import Decision, DeletePod, EmitEvent, Plan, ReadState, SealState


def is_requested(context: DecisionContext) -> bool:
    """Return whether the run is suspended. A run that ends is not, whatever its spec says."""
    return context.spec.suspend and outcome.requested_outcome(context) is None


def with_suspension(context: DecisionContext) -> DecisionContext:
    """Return the context with the start or the end of a suspension in the status to write."""
    suspension = context.status.suspension or Suspension()
    if not is_requested(context):
        return context if suspension.start_time is None else _resume(context)
    message = _describe(context)
    if suspension.start_time is None:
        suspension = msgspec.structs.replace(suspension, start_time=context.now.replace(microsecond=0))
        status = msgspec.structs.replace(context.status, suspension=suspension, next_attempt_time=None)
        context = context.with_status(status, EmitEvent(Reason.SUSPENDED.value, message))
    context = context.with_status(conditions.with_suspended(context.status, message, context.now))
    return _with_stops(context)


def without_suspension(context: DecisionContext) -> TaskRunStatus:
    """Return the status with the end of the suspension, if there is one.

    A suspension counts neither towards the deadline of the run nor towards that of a wait.
    """
    suspension, waits_since = context.status.suspension, context.status.not_ready_start_time
    if suspension is None or suspension.start_time is None:
        return context.status
    if waits_since is not None:
        waits_since += timedelta(seconds=context.suspended_seconds - suspension.total_seconds)
    status = msgspec.structs.replace(
        context.status,
        suspension=Suspension(total_seconds=context.suspended_seconds),
        not_ready_start_time=waits_since,
    )
    return conditions.without_suspended(status, context.now)


def stop_step(context: DecisionContext) -> Decision | None:
    """Return the next step towards a run without pods; None if nothing is left to stop."""
    is_suspended, stopping = is_requested(context), _stopping(context)
    if not is_suspended and not stopping:
        return None
    shown = _show(context)
    if _is_unrecorded(context):
        return shown.plan(again=context.now, held=True)
    if (need := _seal(context)) is not None:
        return need
    if not stopping and not context.running_leftovers:
        return None
    return shown.plan(*delete_stopping_pods(context), held=True)


def delete_stopping_pods(context: DecisionContext) -> tuple[DeletePod, ...]:
    """Return the deletion of each pod whose stop is in status and that is not being deleted yet."""
    return delete_pods(tuple(view.pod for view in _stopping(context) if view.pod is not None))


def await_resume(context: DecisionContext) -> Plan | None:
    """Wait until the TaskRun is resumed, once no pod runs.

    A suspended run does not ask for a budget, but keeps a hold that did.
    """
    if not is_requested(context):
        return None
    if conditions.is_held(context.status, Reason.BUDGET_EXHAUSTED) and holds.is_held_by_budget(
        context.spec, context.status
    ):
        return context.plan(held=True)
    return _show_suspended(context).plan()


def _resume(context: DecisionContext) -> DecisionContext:
    is_shown = conditions.shows(context.status, Reason.SUSPENDED)
    context = context.with_status(without_suspension(context))
    if outcome.requested_outcome(context) is not None:
        return context
    message = SENTENCES[Reason.RESUMED]
    status = conditions.with_progress(context.status, Reason.PENDING, message, context.now)
    return context.with_status(status if is_shown else context.status, EmitEvent(Reason.RESUMED.value, message))


def _with_stops(context: DecisionContext) -> DecisionContext:
    """Record why each running attempt ends, before anything stops it.

    An attempt that ends by itself or that was deleted before is recorded by what happened to it.
    """
    ended = {view.number for view in attempts.ended_but_unrecorded(context)}
    reason, message = attempts.SUSPENDED
    for view in context.attempts:
        pod = view.pod
        if pod is None or view.recorded or view.number in ended or pod.metadata.deletion_timestamp is not None:
            continue
        if attempts.is_stopped_by_suspension(view) or podstatus.terminated_of(pod, context.container) is not None:
            continue
        entry = view.entry or attempts.open_entry(context, view, pod)
        entry = msgspec.structs.replace(entry, reason=reason, message=message)
        status = conditions.with_attempt(context.status, entry)
        context = context.with_status(status)
    return context


def _stopping(context: DecisionContext) -> tuple[AttemptView, ...]:
    """Return the attempts that are being stopped and whose end is not in status."""
    return tuple(view for view in context.attempts if not view.recorded and attempts.is_stopped_by_suspension(view))


def _is_unrecorded(context: DecisionContext) -> bool:
    """Return whether the start of the suspension, or the stop of an attempt, is not stored yet."""
    stored = context.observed.taskrun.status
    start = stored.suspension.start_time if stored.suspension is not None else None
    stops = {entry.number for entry in stored.attempts if entry.reason == Reason.SUSPENDED}
    is_stored = start is not None or not is_requested(context)
    return not is_stored or any(view.number not in stops for view in _stopping(context))


def _seal(context: DecisionContext) -> ReadState | SealState | None:
    """Seal the state against all attempts so far, also those that only count as ended.

    Skip the seal if the state does not exist. An attempt that creates it now is stopped like one
    of an evicted pod, and the state is sealed once status names it.
    """
    read, summary = context.observed.state, context.observed.summary
    seal = read.seal if isinstance(read, StateView) else summary.seal if summary is not None else None
    is_sealed = seal is not None and (seal.purpose is SealPurpose.END or seal.through_attempt >= context.last_number)
    if is_sealed or not context.has_state or context.last_number == 0:
        return None
    if read is None:
        return ReadState()
    return SealState(context.last_number, SealPurpose.SUSPEND) if context.state is not None else None


# Reasons and messages in status


def _show(context: DecisionContext) -> DecisionContext:
    if conditions.held_condition(context.status) is not None:
        return context
    if is_requested(context):
        return _show_suspended(context)
    numbers = ", ".join(str(view.number) for view in _stopping(context))
    message = f"{SENTENCES[Reason.RESUMED]} The next attempt starts once the pod of attempt {numbers} has ended."
    return context.with_status(conditions.with_progress(context.status, Reason.PENDING, message, context.now))


def _show_suspended(context: DecisionContext) -> DecisionContext:
    status = conditions.with_progress(context.status, Reason.SUSPENDED, _describe(context), context.now)
    return context.with_status(status)


def _describe(context: DecisionContext) -> str:
    jobs = [job for job in context.status.external_jobs if external_jobs.is_open(job)]
    if not jobs:
        return f"{SENTENCES[Reason.SUSPENDED]} No external job runs."
    names = textformat.head(", ".join(external_jobs.describe_age(job) for job in jobs), holds.NAMED_BYTES_MAX)
    return f"{SENTENCES[Reason.SUSPENDED]} External jobs that continue: {names}."
