"""Ends of attempts: which ones are not in status yet, and the entries that record them."""

from datetime import datetime, timedelta

import msgspec

from reattach.api.names import pod_name
from reattach.api.objects import Pod
from reattach.api.reasons import OWN_FAILURES, Budget, Cause, EventReason, Reason
from reattach.api.state import StateView
from reattach.api.taskrun import Attempt, AttemptPurpose, TaskRunStatus
from reattach.planner import conditions, evidence, holds, podstatus, textformat, waiting
from reattach.planner.backoff import next_attempt_time
from reattach.planner.budgets import amount, charge
from reattach.planner.classification import Classification, EndedAttempt, classify, finish_time_of
from reattach.planner.context import AttemptView, DecisionContext
from reattach.planner.outcome import DELETED, natural_outcome, requested_outcome
from reattach.planner.plan import EmitEvent
from reattach.planner.pods import template_hash_of
from reattach.planner.rules import Consequence, consequence_of

SUSPENDED = (Reason.SUSPENDED.value, "The TaskRun was suspended. Its pod was stopped.")
"""Reason and message of an attempt that a suspension stops, recorded before its pod is stopped."""
_CLEANUP_DEADLINE = ("CleanupDeadline", "The time for the cleanup was over. Its pod was stopped.")


def ended_but_unrecorded(context: DecisionContext) -> tuple[AttemptView, ...]:
    """Return the attempts that have ended, or are replaced, and whose end is not in status."""
    views = (view for view in context.attempts if not view.recorded)
    return tuple(view for view in views if _has_ended(context, view) or context.is_replaced(view))


def is_absence_provable(context: DecisionContext) -> bool:
    """Return whether the write that records an end can prove that there is no state.

    The first call of an attempt returns only once `status.state` names its state. The end of an
    attempt is recorded with the resourceVersion of a status without that name. So the write fails
    with a conflict if an attempt could store anything, and the decision is made again. This saves
    a read for each short run.

    Only if pods have reported the ends of all attempts that are recorded now, because no end is
    then left open. A cleanup attempt stores the jobs that it adopts before its first call returns.
    """
    views = ended_but_unrecorded(context)
    is_cleaning_up = context.status.ending is not None or context.metadata.deletion_timestamp is not None
    if context.observed.state is not None or context.has_state or is_cleaning_up or not views:
        return False
    return requested_outcome(context) is None and all(
        view.purpose is AttemptPurpose.RUN and view.pod is not None and podstatus.is_terminal(view.pod)
        for view in views
    )


def evictions_to_read(context: DecisionContext) -> tuple[str, ...]:
    """Return the UIDs of the pods whose end only an event of the kubelet may explain."""
    views = (view for view in ended_but_unrecorded(context) if view.pod is not None)
    ends = (_ended_attempt(context, view) for view in views)
    uids = (ended.pod_uid for ended in ends if ended.may_hide_eviction)
    return tuple(uid for uid in uids if uid not in context.observed.evictions)


def record_ended_attempts(context: DecisionContext) -> DecisionContext:
    """Return the context with the end of each ended attempt in status, and its consequences."""
    recorded: list[Attempt] = []
    repeated: set[int] = set()
    for view in ended_but_unrecorded(context):
        ended = _ended_attempt(context, view)
        classification = classify(ended)
        may_wait = _may_wait(context, finish_time_of(ended, context.now))
        consequence = consequence_of(context.spec.retry.rules, ended, classification, may_wait=may_wait)
        entry = _final_entry(context, view, ended, classification, consequence)
        status = _with_end(context, ended, consequence, entry)
        if ended.replaced and not _is_followed_by_another(context, status, entry.purpose):
            continue  # The pod may end otherwise than is presumed, and no pod waits for its end.
        if consequence.budget is Budget.NOT_READY and context.status.not_ready_start_time is not None:
            repeated.add(entry.number)
        context = context.with_status(status)
        recorded.append(entry)
    if not recorded:
        return context
    if requested_outcome(context) is not None:
        failed = [one for one in recorded if one.purpose is AttemptPurpose.CLEANUP and one.charged_to]
        return context.with_status(context.status, *(_attempt_failed_event(one, context.status) for one in failed))
    if context.state_lost and any(entry.cause == Cause.HELD for entry in recorded):
        return holds.with_hold(context, Reason.STATE_LOST, holds.describe_lost_state(context))
    if unresolved := holds.unresolved_jobs(context):
        return holds.with_hold(context, Reason.SUBMISSION_UNKNOWN, holds.describe_unresolved(context, unresolved))
    retried = [entry for entry in recorded if entry.cause != Cause.STOPPED]
    if retried and natural_outcome(context.spec, context.status) is None:
        failed = [entry for entry in retried if entry.cause != Cause.WAITING and entry.number not in repeated]
        events = (_attempt_failed_event(entry, context.status) for entry in failed)
        context = context.with_status(with_backoff(context.status, context.now), *events)
    return context


def with_backoff(status: TaskRunStatus, now: datetime) -> TaskRunStatus:
    """Return the status that shows how the last attempt ended and when the next one starts."""
    last = conditions.last_ended_attempt(status)
    if last is None:
        return status
    if last.cause == Cause.WAITING:
        return waiting.with_wait(status, now)
    return conditions.with_progress(status, Reason.BACKING_OFF, _describe_failure(last, status), now)


def open_entry(context: DecisionContext, view: AttemptView, pod: Pod) -> Attempt:
    """Return the list entry of a running attempt.

    Its clock starts at the creation of its pod, or when the last scheduling gate is gone.
    """
    created = pod.metadata.creation_timestamp
    start = created if view.entry is None else view.entry.start_time or context.now.replace(microsecond=0)
    return Attempt(
        number=view.number,
        purpose=view.purpose,
        pod_name=pod.metadata.name,
        pod_uid=pod.metadata.uid,
        node=pod.spec.node_name,
        start_time=start,
        template_hash=template_hash_of(pod),
    )


def started_events(context: DecisionContext, view: AttemptView, pod: Pod) -> tuple[EmitEvent, ...]:
    """Return the event about the start of an attempt that status does not show as running yet.

    The first attempt has none, so that a run of one attempt costs no call more. An attempt that
    checks again whether something is ready, or a job has ended, has none because it may be one of
    many.
    """
    last = conditions.last_ended_attempt(context.status)
    if view.number == 1 or conditions.shows(context.status, Reason.RUNNING) or (last and _checks_again_after(last)):
        return ()
    note = f"Attempt {view.number} runs in pod {pod.metadata.name} on node {pod.spec.node_name}."
    return (EmitEvent(EventReason.ATTEMPT_STARTED, textformat.head(note)),)


def _checks_again_after(attempt: Attempt) -> bool:
    return attempt.cause == Cause.WAITING or attempt.charged_to == Budget.NOT_READY


def is_stopped_by_suspension(view: AttemptView) -> bool:
    """Return whether status says that a suspension stops the attempt."""
    return view.entry is not None and view.entry.reason == Reason.SUSPENDED


def _has_ended(context: DecisionContext, view: AttemptView) -> bool:
    if view.purpose is AttemptPurpose.CLEANUP and context.is_past_cleanup_deadline:
        return True  # The run does not wait for its node: the jobs are named as they are.
    pod = view.pod
    end_time = context.now if pod is None else context.attempt_end_time(pod)
    return end_time is not None and end_time <= context.now


def _ended_attempt(context: DecisionContext, view: AttemptView) -> EndedAttempt:
    pod, entry = view.pod, view.entry
    state = context.observed.state
    is_last = context.current is not None and context.current.number == view.number
    reported = pod is None or podstatus.is_terminal(pod) or podstatus.terminated_of(pod, context.container) is not None
    return EndedAttempt(
        number=view.number,
        purpose=view.purpose,
        pod_uid=_pod_uid(context, view),
        pod=pod,
        container=context.container,
        completion=context.spec.completion,
        state=state if isinstance(state, StateView) else None,
        state_lost=context.state_lost,
        presumed=not reported,
        replaced=not _has_ended(context, view),
        expected=(entry.reason, entry.message or "") if entry and entry.reason else None,
        shown_running=is_last and entry is not None and conditions.shows(context.status, Reason.RUNNING),
        stopped=_stop_reason(context, view),
        suspended=is_stopped_by_suspension(view),
        evicted=context.observed.evictions.get(pod.metadata.uid) if pod is not None else None,
    )


def _stop_reason(context: DecisionContext, view: AttemptView) -> tuple[str, str] | None:
    if view.purpose is AttemptPurpose.CLEANUP:
        return _CLEANUP_DEADLINE if context.is_past_cleanup_deadline else None
    requested = requested_outcome(context)
    if requested is None:
        return SUSPENDED if is_stopped_by_suspension(view) else None
    return (requested.reason if requested.outcome else DELETED), f"{requested.message} Its pod was stopped."


def _pod_uid(context: DecisionContext, view: AttemptView) -> str:
    if view.pod is not None:
        return view.pod.metadata.uid
    if view.entry is not None and view.entry.pod_uid:
        return view.entry.pod_uid
    return context.epoch.pod_uid if context.epoch and context.epoch.attempt == view.number else ""


def _final_entry(
    context: DecisionContext,
    view: AttemptView,
    ended: EndedAttempt,
    classification: Classification,
    consequence: Consequence,
) -> Attempt:
    created = view.pod.metadata.creation_timestamp if view.pod else None
    end, sentence = evidence.end_of(context, view)
    return Attempt(
        number=view.number,
        purpose=view.purpose,
        pod_name=pod_name(context.metadata.name, context.metadata.uid, view.number),
        pod_uid=ended.pod_uid,
        node=view.pod.spec.node_name if view.pod else view.entry.node if view.entry else "",
        start_time=(view.entry.start_time if view.entry else None) or created,
        finish_time=finish_time_of(ended, context.now).replace(microsecond=0),
        end=end.value,
        cause=consequence.cause.value,
        charged_to=consequence.budget.value if consequence.budget else None,
        reason=textformat.head(classification.reason),
        exit_code=ended.exit_code,
        message=evidence.with_sentence(consequence.message, sentence),
        template_hash=_template_hash(view),
    )


def _template_hash(view: AttemptView) -> str | None:
    if view.pod is not None and (found := template_hash_of(view.pod)) is not None:
        return found
    return view.entry.template_hash if view.entry is not None else None


def _with_end(context: DecisionContext, ended: EndedAttempt, consequence: Consequence, entry: Attempt) -> TaskRunStatus:
    budget = consequence.budget
    status = conditions.with_attempt(context.status, entry)
    waits = consequence.cause is Cause.WAITING
    counts = waiting.count(status.counts) if waits else charge(status.counts, budget)
    status = msgspec.structs.replace(status, counts=counts)
    status = _with_wait(status, consequence, finish_time_of(ended, context.now))
    if entry.cause == Cause.SUCCEEDED and ended.recorded_completion:
        assert ended.state is not None
        assert ended.state.completion is not None
        status = msgspec.structs.replace(status, result=ended.state.completion.result)
    if (budget is None and not waits) or not _is_followed_by_another(context, status, entry.purpose):
        # The end of a run attempt does not shorten the backoff of a cleanup attempt.
        until = status.next_attempt_time if status.ending is not None and budget is not Budget.CLEANUP else None
        return msgspec.structs.replace(status, next_attempt_time=until)
    again = next_attempt_time(
        context.spec.retry.backoff,
        ended=finish_time_of(ended, context.now),
        charged=amount(status.counts.charged, budget) if budget else 1,
        uid=context.metadata.uid,
        attempt=ended.number,
        requested_seconds=consequence.delay_seconds,
    )
    return msgspec.structs.replace(status, next_attempt_time=again)


def _may_wait(context: DecisionContext, ended: datetime) -> bool:
    """Return whether an attempt that ended at this time may be charged to the budget `notReady`."""
    status, seconds = context.status, context.spec.deadlines.not_ready_seconds
    since = status.not_ready_start_time
    is_late = since is not None and seconds is not None and ended >= since + timedelta(seconds=seconds)
    charged = amount(status.counts.charged, Budget.NOT_READY)
    return not is_late and charged < context.spec.retry.budgets.not_ready


def _with_wait(status: TaskRunStatus, consequence: Consequence, ended: datetime) -> TaskRunStatus:
    """Return the status with the time of the first in a row of ends that were not ready.

    A disruption does not interrupt the row, because it shows nothing about the wait.
    """
    since = status.not_ready_start_time
    if consequence.waits:
        since = since or ended.replace(microsecond=0)
    elif consequence.cause in OWN_FAILURES:
        since = None
    return msgspec.structs.replace(status, not_ready_start_time=since)


def _is_followed_by_another(context: DecisionContext, status: TaskRunStatus, purpose: AttemptPurpose) -> bool:
    """Return whether the end of an attempt leads to another attempt of its purpose."""
    if purpose is AttemptPurpose.CLEANUP:
        has_budget = status.counts.charged.cleanup < context.spec.cleanup.budget
        return has_budget and not context.is_past_cleanup_deadline
    if context.spec.suspend:
        return False
    # The status may have the first start time of the run, from which its deadline counts.
    requested = requested_outcome(context.with_status(status))
    is_ending = requested is not None or natural_outcome(context.spec, status) is not None
    return not (is_ending or holds.is_held_by_budget(context.spec, status) or holds.unresolved_jobs(context))


def _attempt_failed_event(entry: Attempt, status: TaskRunStatus) -> EmitEvent:
    return EmitEvent(EventReason.ATTEMPT_FAILED, textformat.head(_describe_failure(entry, status)), warning=True)


def _describe_failure(entry: Attempt, status: TaskRunStatus) -> str:
    again = status.next_attempt_time
    then = f" The next attempt starts at {textformat.format_time(again)}." if again else ""
    return textformat.describe_end(entry) + then
