"""The decision about one TaskRun: what to write and do now, or what to read or seal first.

A decision runs checks in a fixed order. Each check returns a decision, or None to continue.

    observed, defaults, now
      |
      |  _BEFORE_ENDS: is there anything to do, and is the state known?
      |    _skip_managed_elsewhere    another controller owns the TaskRun     -> empty plan
      |    _skip_finished             it has an outcome                       -> empty plan
      |    _release_deleted           it is deleted, no job may be open       -> release pods
      |    _hold_restored             a backup tool created it                -> hold
      |    _read_state                an attempt ended, or a job changed      -> ReadState
      |    _await_readable_state      the state is damaged                    -> hold
      |    _read_nodes                a node may be evidence of an end        -> ReadNodes
      |    _read_evictions            an eviction may hide behind exit code 0 -> ReadEvictions
      v
      |  _record: jobs, evidence, ended attempts, suspensions and wakes go into the status
      v
      |  _AFTER_ENDS: what follows from that status?
      |    _conclude                  the run ends                            -> teardown
      |    _stop_suspended            suspended, and an attempt may run       -> SealState, or wait
      |    _await_leftovers           a recorded attempt still runs           -> wait
      |    _watch_current             an attempt runs or is pending           -> wait, or ReadEvents
      |    _handle_state_loss         held for a lost state                   -> wait or start
      |    _check_state               the state may be lost                   -> ReadState, or hold
      |    _await_resolutions         a job needs a resolution                -> hold, or EndHolds
      |    _await_resume              suspended, and no attempt runs          -> wait
      |    _await_budget              a budget needs a grant                  -> hold
      |    _await_backoff             the pause is not over                   -> wait
      |    _reject_template           no pod can be built, or it changed      -> teardown
      |    _await_unpause             the installation is paused             -> wait
      |    _handle_pod_rejection      the API server rejected the pod         -> wait, or teardown
      |    _prepare_state             a state exists, or is to be copied     -> CopyState, or hold
      |    _protect_cleanup           a cleanup command needs our finalizer   -> ProtectTaskRun
      |    _create_pod                none of these                           -> CreatePod
      v
    Plan | Need

Order of neighbours. The pairs marked != must not be swapped; a test in `test_check_order.py` swaps
each. The other pairs exclude one another, or only the reason that is shown first would differ.

    _skip_managed_elsewhere  = _skip_finished          both do nothing
    _skip_finished           = _release_deleted        the reconciler releases pods of finished ones
    _release_deleted         = _hold_restored          a deleted TaskRun is not held as restored
    _hold_restored           = _read_state             costs one read
    _read_state              = _await_readable_state   unread and unreadable exclude one another
    _await_readable_state    = _read_nodes             costs reads of nodes
    _read_nodes              = _read_evictions         costs reads of events
    _read_evictions          != _record                an evicted attempt would have succeeded
    _record                  != _conclude              the outcome would precede the last end
    _conclude                != _stop_suspended        the cleanup of a cancelled run would be late
    _stop_suspended          != _await_leftovers       a suspended attempt would run until they end
    _await_leftovers         = _watch_current          every plan deletes leftovers
    _watch_current           != _handle_state_loss     the state would be dropped under an attempt
    _handle_state_loss       != _check_state           the lost state would be held again
    _check_state             = _await_resolutions      a lost state has no jobs
    _await_resolutions       != _await_resume          a suspended run would not show its hold
    _await_resume            != _await_budget          a suspended run would ask for a budget
    _await_budget            = _await_backoff          the hold is shown later
    _await_backoff           = _reject_template        the run ends earlier
    _reject_template         = _await_unpause          the run ends later
    _await_unpause           = _handle_pod_rejection   the pause is shown first
    _handle_pod_rejection    = _prepare_state          the state is copied earlier
    _prepare_state           = _protect_cleanup        both precede the first pod
    _protect_cleanup         != _create_pod            a deletion would not wait for the cleanup
"""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

import msgspec

from reattach.api.names import FINALIZER_EXTERNAL_JOBS, OPERATOR_NAME, state_name
from reattach.api.objects import Pod
from reattach.api.reasons import SENTENCES, Cause, ConditionType, Outcome, Reason
from reattach.api.state import StateView
from reattach.api.taskrun import Attempt, StateReference, TaskRunStatus
from reattach.planner import (
    attempts,
    conditions,
    evidence,
    external_jobs,
    holds,
    orphan_report,
    outcome,
    podstatus,
    rejections,
    suspension,
    teardown,
    textformat,
    waiting,
)
from reattach.planner.context import AttemptView, DecisionContext
from reattach.planner.outcome import FinalOutcome
from reattach.planner.plan import (
    AbsentState,
    CopyState,
    Decision,
    DeletePod,
    EmitEvent,
    EndHolds,
    Observed,
    Plan,
    PodDefaults,
    PodRejectionKind,
    ProtectTaskRun,
    ReadEvents,
    ReadEvictions,
    ReadNodes,
    ReadState,
    UnreadableState,
)
from reattach.planner.pods import InvalidTemplateError, has_template_changed, pod_creation

RESTORED_LABEL = "velero.io/restore-name"
"""Label that a backup tool sets on the objects that it restores."""
SHOW_RUNNING_AFTER = timedelta(seconds=2)
"""A task that ends sooner is not shown as running, which saves a write."""
SHOW_UNOPENED_AFTER = timedelta(seconds=60)
"""Time from which a running attempt should have opened the state, if an earlier one opened it."""
SHOW_PENDING_AFTER = timedelta(seconds=10)
"""A pod that starts sooner is not shown as pending, unless it has a problem."""
SHOW_WITHIN = timedelta(seconds=30)
"""Time after which progress is shown, even if other TaskRuns wait for the operator."""
READ_EVENTS_AFTER = timedelta(seconds=30)
"""Time from which the events of a pending pod are read, if its status shows no problem."""
READ_AGAIN_AFTER = timedelta(seconds=30)
_COPY_OPTIONS = (
    "The operator tries again every 30 seconds. To start with an empty state instead, "
    "delete this TaskRun and create it without spec.stateFrom."
)
_STARTS_EMPTY = "The next attempt starts with an empty state, as a resolution requested."

Check = Callable[[DecisionContext], Decision | None]


def decide(observed: Observed, defaults: PodDefaults, now: datetime) -> Decision:
    """Return what to write, what to do and when to decide again, or what to read or seal first.

    `now` is timezone-aware. The same input returns the same decision.
    """
    context = DecisionContext.from_observed(observed, defaults, now)
    if attempts.is_absence_provable(context):
        decision = _decide(replace(context, observed=replace(observed, state=AbsentState())))
        if not isinstance(decision, Plan) or decision.status is not None:  # A plan without a write proves nothing.
            return decision
    return _decide(context)


def _decide(context: DecisionContext) -> Decision:
    for check in _BEFORE_ENDS:
        if (decision := check(context)) is not None:
            return decision
    context = _record(context)
    for check in _AFTER_ENDS:
        if (decision := check(context)) is not None:
            return decision
    return _create_pod(context)


# Is there anything to do, and is the state known?


def _skip_managed_elsewhere(context: DecisionContext) -> Plan | None:
    return Plan() if context.spec.managed_by != OPERATOR_NAME else None


def _skip_finished(context: DecisionContext) -> Plan | None:
    # The reconciler removes the finalizers of pods and states whose TaskRun is finished or gone.
    return Plan() if context.status.outcome is not None else None


def _release_deleted(context: DecisionContext) -> Plan | None:
    if context.metadata.deletion_timestamp is None or FINALIZER_EXTERNAL_JOBS in context.metadata.finalizers:
        return None
    return Plan(actions=context.release_all_pods(), requeue_at=context.next_node_loss_at)


def _hold_restored(context: DecisionContext) -> Plan | None:
    untouched = conditions.is_untouched(context.status) or conditions.is_held(context.status, Reason.RESTORED)
    is_restored = RESTORED_LABEL in context.metadata.labels and untouched
    if not is_restored or outcome.requested_outcome(context) is not None:
        return None
    options = f"Delete the TaskRun, or remove its label {RESTORED_LABEL} to run it from the start."
    return holds.hold(context, Reason.RESTORED, f"{SENTENCES[Reason.RESTORED]} {options}")


def _read_state(context: DecisionContext) -> Decision | None:
    """Read the state if an attempt has ended, or if the summary differs from status.

    The read is needed because the summary may be older than status.
    """
    if context.observed.state is not None:
        return None
    summary = context.observed.summary
    has_changes = (
        summary is not None
        and not conditions.is_held_for_lost_state(context.status)
        and external_jobs.has_changes(context.status, summary)
    )
    return ReadState() if attempts.ended_but_unrecorded(context) or has_changes else None


def _await_readable_state(context: DecisionContext) -> Plan | None:
    if not isinstance(context.observed.state, UnreadableState) or context.observed.namespace_ends:
        return None
    message = f"{SENTENCES[Reason.STATE_UNREADABLE]} {context.observed.state.message}"
    context = suspension.with_suspension(context)
    plan = holds.hold(context, Reason.STATE_UNREADABLE, message, again=context.now + READ_AGAIN_AFTER)
    # No attempt can use an unreadable state, so a run that was asked to end need not keep its pod.
    is_ending = outcome.requested_outcome(context) is not None
    deletes = teardown.delete_running_pods(context) if is_ending else suspension.delete_stopping_pods(context)
    return replace(plan, actions=(*plan.actions, *deletes))


def _read_nodes(context: DecisionContext) -> ReadNodes | None:
    names = evidence.nodes_to_read(context)
    return ReadNodes(names) if names else None


def _read_evictions(context: DecisionContext) -> ReadEvictions | None:
    pods = attempts.evictions_to_read(context)
    return ReadEvictions(pods) if pods else None


def _record(context: DecisionContext) -> DecisionContext:
    """Put predecessors, jobs, evidence, ended attempts, suspensions and wakes into the status."""
    context = evidence.with_evidence(_with_jobs(_with_predecessors(context)))
    return waiting.with_wake(suspension.with_suspension(attempts.record_ended_attempts(context)))


def _with_predecessors(context: DecisionContext) -> DecisionContext:
    """Report the jobs that earlier TaskRuns of this name left running, before the first attempt."""
    names = context.observed.predecessors
    shown = conditions.find_condition(context.status.conditions, ConditionType.PREDECESSOR_ORPHANED)
    if not names or shown is not None or context.last_number > 0:
        return context
    reason = Reason.PREDECESSOR_LEFT_JOBS
    records = textformat.head(", ".join(names), holds.NAMED_BYTES_MAX)
    command = f"kubectl reattach orphans -n {context.metadata.namespace}"
    message = f"{SENTENCES[reason]} See ConfigMap {records}, or run: {command}"
    status = conditions.with_predecessors(context.status, message, context.now)
    return context.with_status(status, EmitEvent(reason.value, textformat.head(message), warning=True))


def _with_jobs(context: DecisionContext) -> DecisionContext:
    state = context.state
    if state is None:
        return context
    status = external_jobs.with_jobs(context.status, state)
    events = external_jobs.events_since(context.status, state, context.spec.submission.idempotency_key)
    return context.with_status(status, *events)


# What follows from the recorded ends?


def _conclude(context: DecisionContext) -> Decision | None:
    final = outcome.final_outcome(context)
    return None if final is None else teardown.teardown_step(context, final)


def _stop_suspended(context: DecisionContext) -> Decision | None:
    return suspension.stop_step(context)


def _await_leftovers(context: DecisionContext) -> Plan | None:
    if not context.awaited_leftovers:
        return None
    kept = (Reason.STATE_LOST, Reason.SUBMISSION_UNKNOWN)
    if any(conditions.is_held(context.status, reason) for reason in kept):
        return context.plan(held=True)
    return context.with_status(
        conditions.with_progress(context.status, Reason.ENDING, SENTENCES[Reason.ENDING], context.now)
    ).plan()


def _watch_current(context: DecisionContext) -> Decision | None:
    current = context.current
    if current is None or current.pod is None:
        return None
    pod = current.pod
    if (end_time := context.attempt_end_time(pod)) is not None:
        return context.plan(again=end_time)
    if running := podstatus.running_of(pod, context.container):
        return _watch_running(context, current, pod, running.started_at)
    if conditions.shows(context.status, Reason.RUNNING) and current.entry is not None:
        return context.plan()
    return _watch_gated(context, current, pod) if podstatus.is_gated(pod) else _watch_pending(context, current, pod)


def _watch_running(context: DecisionContext, current: AttemptView, pod: Pod, since: datetime | None) -> Plan:
    start = since or context.now - SHOW_RUNNING_AFTER
    message, again = _describe_running(context, current, start)
    if conditions.shows_message(context.status, Reason.RUNNING, message) and current.entry is not None:
        return context.plan(again=again)
    show_at = start + SHOW_RUNNING_AFTER
    if context.now < show_at:
        return context.plan(again=show_at)
    started = attempts.started_events(context, current, pod)
    context = _set_progress(context, Reason.RUNNING, message, attempts.open_entry(context, current, pod))
    plan = context.with_status(context.status, *started).plan(again=again)
    return _when_idle(plan, show_at) if current.entry is None else plan


def _when_idle(plan: Plan, show_at: datetime) -> Plan:
    """Return the plan, whose write may wait while there is other work; not if it does more."""
    return plan if plan.actions else replace(plan, write_by=show_at + SHOW_WITHIN)


def _describe_running(context: DecisionContext, current: AttemptView, start: datetime) -> tuple[str, datetime | None]:
    """Return the message about a running attempt, and when it may become another one.

    A task that can't reach the state API runs without a sign of that until its patience is over.
    """
    message, opened, named = f"Attempt {current.number} is running.", context.epoch, context.status.state
    if named is not None and not named.uid and named.message:
        refused = f"Attempt {current.number} is running, but the ConfigMap of its state is refused: {named.message}"
        return refused, None
    if opened is None or opened.attempt >= current.number:
        return message, None
    if context.now < start + SHOW_UNOPENED_AFTER:
        return message, start + SHOW_UNOPENED_AFTER
    unopened = (
        f"Attempt {current.number} is running, but has not opened the state, which attempt {opened.attempt} did. "
        f"If it waits for the state API, its pod must be allowed to connect to {context.defaults.url}"
    )
    return f"{unopened}.", None


def _watch_gated(context: DecisionContext, current: AttemptView, pod: Pod) -> Plan:
    reason = Reason.WAITING_FOR_GATES
    if conditions.shows(context.status, reason) and current.entry is not None:
        return context.plan()
    gates = ", ".join(gate.name for gate in pod.spec.scheduling_gates)
    entry = msgspec.structs.replace(attempts.open_entry(context, current, pod), start_time=None)
    return _set_progress(context, reason, f"{SENTENCES[reason]} Gates: {gates}.", entry).plan()


def _watch_pending(context: DecisionContext, current: AttemptView, pod: Pod) -> Decision:
    entry = attempts.open_entry(context, current, pod)
    since = podstatus.pending_since(pod, entry.start_time, context.now)
    deadline = None if since is None else since + timedelta(seconds=context.spec.deadlines.pending_seconds)
    problem, again = podstatus.problem_of(pod, context.container), deadline
    if problem is None and since is not None and deadline is not None:
        again = min(since + READ_EVENTS_AFTER, deadline)
        if again <= context.now:
            events = context.observed.events
            if events is None:
                return ReadEvents(pod)
            problem = podstatus.delay_of(pod, events.newest)
            again = min(events.again_at or deadline, deadline)
    if deadline is not None and deadline <= context.now:
        return _give_up_pending(context, pod, entry, problem)
    summary = problem.summary if problem else SENTENCES[Reason.PENDING]
    if current.entry == entry and _is_pending_shown(context.status, summary):
        return context.plan(again=again)
    show_at = (pod.metadata.creation_timestamp or context.now) + SHOW_PENDING_AFTER
    is_fresh = problem is None and current.entry is None and show_at > context.now
    if is_fresh and not _shows_no_pod(context.status):
        return context.plan(again=min(again or show_at, show_at))
    message = problem.message if problem else summary
    plan = _set_progress(context, Reason.PENDING, message, entry).plan(again=again)
    return _when_idle(plan, show_at) if problem is None and current.entry is None else plan


def _is_pending_shown(status: TaskRunStatus, summary: str) -> bool:
    """Return whether status shows this problem already, whatever its detail.

    The detail changes with each attempt of the kubelet or the scheduler, and is not worth a write.
    """
    return conditions.shows_message(status, Reason.PENDING, summary)


def _give_up_pending(context: DecisionContext, pod: Pod, entry: Attempt, problem: podstatus.PodProblem | None) -> Plan:
    # Record the reason before the delete, because a deleted pod does not show why it never started.
    seconds = context.spec.deadlines.pending_seconds
    message = f"The pod was pending for longer than spec.deadlines.pendingSeconds ({seconds} s)."
    why = textformat.head(f"{message} {problem.message}" if problem else message)
    entry = msgspec.structs.replace(
        entry, reason=textformat.head(problem.reason) if problem else podstatus.SLOW, message=why
    )
    delete = DeletePod(name=pod.metadata.name, uid=pod.metadata.uid)
    return _set_progress(context, Reason.PENDING, why, entry).plan(delete)


# May the next attempt start?


def _handle_state_loss(context: DecisionContext) -> Plan | None:
    """Wait for the resolution of a lost state. On StartEmpty, orphan the jobs that it knew."""
    if not conditions.is_held_for_lost_state(context.status):
        return None
    if holds.resolution_for_loss(context.spec, context.status) != holds.START_EMPTY:
        return context.plan()
    context = orphan_report.with_orphans(context, None)
    status = context.status
    counts = msgspec.structs.replace(status.counts, state_losses=status.counts.state_losses + 1)
    status = msgspec.structs.replace(status, counts=counts, state=None)
    status = conditions.without_hold(status, context.now)
    status = conditions.with_progress(status, Reason.PENDING, _STARTS_EMPTY, context.now)
    return context.with_status(status).plan()


def _check_state(context: DecisionContext) -> Decision | None:
    """Hold the TaskRun if its state is lost.

    Read the state if the watch does not show it. Also read it if its summary shows a completion
    that the last attempt recorded after its end was recorded.
    """
    last, summary = conditions.last_ended_attempt(context.status), context.observed.summary
    unseen = summary is None and context.status.state is not None and bool(context.status.state.uid)
    completed_late = last is not None and summary is not None and summary.completed_attempt == last.number
    if context.observed.state is None:
        return ReadState() if unseen or (completed_late and context.spec.completion != "ExitCode") else None
    if not context.state_lost:
        return None
    return holds.hold(context, Reason.STATE_LOST, holds.describe_lost_state(context))


def _await_resolutions(context: DecisionContext) -> Decision | None:
    """Hold the TaskRun while a job has no resolution: the next attempt would stop there, too.

    A hold for a presumed end is ended once evidence of that end comes.
    """
    if context.observed.state is None:
        return ReadState() if _may_be_held(context) else None
    if ended := holds.holds_ended_by_evidence(context):
        return EndHolds(ended)
    waiting = holds.unresolved_jobs(context)
    if not waiting:
        return None
    return holds.hold(context, Reason.SUBMISSION_UNKNOWN, holds.describe_unresolved(context, waiting))


def _may_be_held(context: DecisionContext) -> bool:
    last = conditions.last_ended_attempt(context.status)
    was_held = last is not None and last.cause == Cause.HELD
    is_held = conditions.is_held(context.status, Reason.SUBMISSION_UNKNOWN)
    return was_held or is_held or bool(holds.unresolved_jobs(context))


def _await_resume(context: DecisionContext) -> Plan | None:
    return suspension.await_resume(context)


def _await_budget(context: DecisionContext) -> Plan | None:
    if not holds.is_held_by_budget(context.spec, context.status):
        return None
    return holds.hold(context, Reason.BUDGET_EXHAUSTED, holds.describe_exhausted_budget(context))


def _await_backoff(context: DecisionContext) -> Plan | None:
    until = context.status.next_attempt_time
    if until is None or until <= context.now:
        return None
    return context.with_status(attempts.with_backoff(context.status, context.now)).plan(again=until)


def _reject_template(context: DecisionContext) -> Decision | None:
    """End the run if no pod can be built from its template, or if its template changed.

    All attempts use one template.
    """
    try:
        changed = has_template_changed(context.observed.taskrun, context.pods.values())
    except InvalidTemplateError as error:
        message = f"{SENTENCES[Reason.INVALID_TEMPLATE]} {error}"
        return teardown.teardown_step(context, FinalOutcome(Outcome.FAILED, Reason.INVALID_TEMPLATE, message))
    if not changed:
        return None
    message = f"{SENTENCES[Reason.TEMPLATE_CHANGED]} Create a new TaskRun."
    return teardown.teardown_step(context, FinalOutcome(Outcome.FAILED, Reason.TEMPLATE_CHANGED, message))


def _await_unpause(context: DecisionContext) -> Plan | None:
    if not context.observed.paused:
        return None
    status = conditions.with_progress(context.status, Reason.PAUSED, SENTENCES[Reason.PAUSED], context.now)
    return context.with_status(status).plan()


def _handle_pod_rejection(context: DecisionContext) -> Decision | None:
    rejection = rejections.rejection_of_next(context)
    if rejection is None:
        return None
    reason, message = rejections.reason_of(rejection), rejections.describe(rejection)
    if rejection.kind is PodRejectionKind.INVALID:
        return teardown.teardown_step(context, FinalOutcome(Outcome.FAILED, reason, message))
    if makes_room := rejections.actions_for_room(context, rejection):
        return context.plan(*makes_room, again=rejection.retry_at)
    if rejection.retry_at <= context.now:
        return None
    if rejections.is_shown(context, reason, "", rejection):
        return context.plan(again=rejection.retry_at)
    status = conditions.with_progress(context.status, reason, message, context.now)
    event = EmitEvent(reason.value, textformat.head(message), warning=True)
    return context.with_status(status, event).plan(again=rejection.retry_at)


def _prepare_state(context: DecisionContext) -> Decision | None:
    """Name a state that exists in status, after copying that of `spec.stateFrom`.

    From then on, an absent state is lost, never empty. A state exists before the first attempt if
    it was copied, or if a user imported it. The copy is made once: a lost one is resolved like any
    other state.
    """
    observed, status, source = context.observed, context.status, context.spec.state_from
    is_to_copy = source is not None and context.last_number == 0 and status.counts.state_losses == 0
    is_named = status.state is not None and bool(status.state.uid)
    if is_named or (observed.summary is None and not is_to_copy):
        return None
    if observed.state is None:
        return ReadState()
    if isinstance(observed.state, StateView):
        return _name_state(context, observed.state)
    if source is None or not is_to_copy:
        return None
    if observed.copy_problem is None:
        return CopyState(source)
    reason = Reason.STATE_SOURCE_UNAVAILABLE
    message = f"{SENTENCES[reason]} {observed.copy_problem} {_COPY_OPTIONS}"
    return holds.hold(context, reason, message, again=context.now + READ_AGAIN_AFTER)


def _name_state(context: DecisionContext, state: StateView) -> Plan:
    metadata = context.metadata
    named = StateReference(config_map=state_name(metadata.name, metadata.uid), uid=state.uid)
    status = conditions.with_progress(context.status, Reason.PENDING, SENTENCES[Reason.PENDING], context.now)
    return context.with_status(msgspec.structs.replace(status, state=named)).plan(again=context.now)


def _protect_cleanup(context: DecisionContext) -> Plan | None:
    """Add our finalizer before the first pod if a command must run at the end.

    Without the finalizer, a deleted TaskRun would be gone before its cleanup. An SDK's handler is
    known only when the task opens its state; the state API then adds the finalizer.
    """
    is_protected = FINALIZER_EXTERNAL_JOBS in context.metadata.finalizers
    if is_protected or not context.spec.cleanup.command or context.last_number > 0:
        return None
    return context.plan(ProtectTaskRun())


def _create_pod(context: DecisionContext) -> Plan:
    return context.plan(pod_creation(context.observed.taskrun, context.next_number, context.defaults))


_BEFORE_ENDS: tuple[Check, ...] = (
    _skip_managed_elsewhere,
    _skip_finished,
    _release_deleted,
    _hold_restored,
    _read_state,
    _await_readable_state,
    _read_nodes,
    _read_evictions,
)
_AFTER_ENDS: tuple[Check, ...] = (
    _conclude,
    _stop_suspended,
    _await_leftovers,
    _watch_current,
    _handle_state_loss,
    _check_state,
    _await_resolutions,
    _await_resume,
    _await_budget,
    _await_backoff,
    _reject_template,
    _await_unpause,
    _handle_pod_rejection,
    _prepare_state,
    _protect_cleanup,
)


# Helpers of the checks


def _set_progress(context: DecisionContext, reason: Reason, message: str, entry: Attempt) -> DecisionContext:
    status = conditions.with_attempt(context.status, entry)
    status = conditions.with_progress(status, reason, message, context.now)
    return context.with_status(msgspec.structs.replace(status, next_attempt_time=None))


def _shows_no_pod(status: TaskRunStatus) -> bool:
    """Return whether status shows why no pod was created, which is outdated once it exists."""
    reasons = (Reason.QUOTA_EXCEEDED, Reason.POD_REFUSED, Reason.POD_NAME_TAKEN, Reason.PAUSED)
    return any(conditions.shows(status, reason) for reason in reasons)
