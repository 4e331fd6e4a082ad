"""The one decision: what to do about a TaskRun now. A ladder of questions in the order in which a reader would ask them.

Each step looks and gives a plan, or None if the question is not for it. First come the TaskRuns that nothing is to be done for, then the
ends of attempts are put into the status that is going to be written, and what is left is asked of that status.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

import msgspec

from reattach.api.names import ANNOTATION_TEMPLATE_HASH, FINALIZER_EXTERNAL_JOBS, OPERATOR_NAME
from reattach.api.objects import Pod
from reattach.api.reasons import SENTENCES, Cause, Outcome, Reason
from reattach.api.state import StateView
from reattach.api.taskrun import Attempt, TaskRunStatus
from reattach.planner import attempts, external_jobs, holds, outcome, podstatus, teardown, textformat
from reattach.planner import conditions as statuses
from reattach.planner.context import AttemptView, DecisionContext, release_of_state
from reattach.planner.outcome import FinalOutcome
from reattach.planner.plan import (
    CreatePod,
    DeletePod,
    EmitEvent,
    Observed,
    Plan,
    PodDefaults,
    PodRejectionKind,
    ReadState,
    UnreadableState,
)
from reattach.planner.pods import build_pod, template_hash

RESTORED_LABEL = "velero.io/restore-name"
"""On objects that a backup tool has made again."""
SHOW_RUNNING_AFTER = timedelta(seconds=2)
"""A task that is done sooner is not shown as running: one write less."""
SHOW_PENDING_AFTER = timedelta(seconds=10)
"""A pod that starts sooner is not shown as pending, unless there is something to tell."""
READ_AGAIN_AFTER = timedelta(seconds=30)
_STARTS_EMPTY = "The next attempt starts with an empty state, as a person decided."

Step = Callable[[DecisionContext], Plan | None]


def decide(observed: Observed, settings: PodDefaults, now: datetime) -> Plan:
    """What to write to status, what to do, and when to look again. `now` is aware; the same input gives the same plan."""
    look = DecisionContext(observed=observed, now=now, status=observed.taskrun.status)
    for step in _BEFORE_ENDS:
        if (plan := step(look)) is not None:
            return plan
    look = attempts.record(_with_jobs(look))
    for step in _AFTER_ENDS:
        if (plan := step(look)) is not None:
            return plan
    return _create(look, settings)


# -- is there anything to do? ----------------------------------------------------------------------


def _leave_to_others(look: DecisionContext) -> Plan | None:
    return Plan() if look.spec.managed_by != OPERATOR_NAME else None


def _let_go_of_finished(look: DecisionContext) -> Plan | None:
    if look.status.outcome is None:
        return None
    return Plan(actions=(*look.releases_of_all(), *release_of_state(look)))


def _let_go_of_deleted(look: DecisionContext) -> Plan | None:
    if look.about.deletion_timestamp is None or FINALIZER_EXTERNAL_JOBS in look.about.finalizers:
        return None
    return Plan(actions=look.releases_of_all(), look_again_at=look.next_loss)


def _hold_restored(look: DecisionContext) -> Plan | None:
    untouched = look.status == TaskRunStatus() or statuses.is_held(look.status, Reason.RESTORED)
    if RESTORED_LABEL not in look.about.labels or not untouched or outcome.wanted(look) is not None:
        return None
    way_out = f"Delete it, or remove its label {RESTORED_LABEL} to run it from the start."
    return holds.hold(look, Reason.RESTORED, f"{SENTENCES[Reason.RESTORED]} {way_out}")


# -- what is known of the attempts that ended, and of their jobs? ----------------------------------


def _read_state(look: DecisionContext) -> Plan | None:
    """For the end of an attempt, and when the summary has news of external jobs: it may be older than what status says."""
    if look.observed.state is not None:
        return None
    summary = look.observed.summary
    has_news = (
        summary is not None
        and not statuses.is_held_for_good(look.status)
        and external_jobs.has_news(look.status, summary)
    )
    return Plan(actions=(ReadState(),)) if attempts.unrecorded(look) or has_news else None


def _wait_for_readable_state(look: DecisionContext) -> Plan | None:
    if not isinstance(look.observed.state, UnreadableState) or look.observed.namespace_ends:
        return None
    message = f"{SENTENCES[Reason.STATE_UNREADABLE]} {look.observed.state.message}"
    plan = holds.hold(look, Reason.STATE_UNREADABLE, message, again=look.now + READ_AGAIN_AFTER)
    # Nobody can seal it, nor use it; whoever wants the end of the run need not pay for its pod meanwhile.
    return plan if outcome.wanted(look) is None else replace(plan, actions=(*plan.actions, *teardown.stops(look)))


def _with_jobs(look: DecisionContext) -> DecisionContext:
    """The look after the external jobs are put into status, as they were read."""
    read = look.observed.state
    if not isinstance(read, StateView) or look.state_lost:
        return look
    return look.with_status(external_jobs.with_jobs(look.status, read), *external_jobs.news_of(look.status, read))


# -- what follows from the ends? -------------------------------------------------------------------


def _wait_for_leftovers(look: DecisionContext) -> Plan | None:
    if not look.leftovers:
        return None
    if any(statuses.is_held(look.status, reason) for reason in (Reason.STATE_LOST, Reason.SUBMISSION_UNKNOWN)):
        return look.plan(held=True)
    return look.with_status(
        statuses.with_progress(look.status, Reason.ENDING, SENTENCES[Reason.ENDING], look.now)
    ).plan()


def _conclude(look: DecisionContext) -> Plan | None:
    ending = outcome.ending_of(look)
    return None if ending is None else teardown.close(look, ending)


def _watch_current(look: DecisionContext) -> Plan | None:
    current = look.current
    if current is None or current.pod is None:
        return None
    pod = current.pod
    if (ends_at := look.ends_at(pod)) is not None:
        return look.plan(again=ends_at)
    if running := podstatus.running_of(pod, look.container):
        return _watch_running(look, current, pod, running.started_at)
    if statuses.shows(look.status, Reason.RUNNING) and current.entry is not None:
        return look.plan()
    return _watch_gated(look, current, pod) if podstatus.is_gated(pod) else _watch_pending(look, current, pod)


def _watch_running(look: DecisionContext, current: AttemptView, pod: Pod, since: datetime | None) -> Plan:
    if statuses.shows(look.status, Reason.RUNNING) and current.entry is not None:
        return look.plan()
    show_at = (since or look.now - SHOW_RUNNING_AFTER) + SHOW_RUNNING_AFTER
    if look.now < show_at:
        return look.plan(again=show_at)
    return _show(look, Reason.RUNNING, f"Attempt {current.number} is running.", _entry(look, current, pod)).plan()


def _watch_gated(look: DecisionContext, current: AttemptView, pod: Pod) -> Plan:
    reason = Reason.WAITING_FOR_GATES
    if statuses.shows(look.status, reason) and current.entry is not None:
        return look.plan()
    gates = ", ".join(gate.name for gate in pod.spec.scheduling_gates)
    entry = msgspec.structs.replace(_entry(look, current, pod), start_time=None)
    return _show(look, reason, f"{SENTENCES[reason]} Gates: {gates}.", entry).plan()


def _watch_pending(look: DecisionContext, current: AttemptView, pod: Pod) -> Plan:
    entry = _entry(look, current, pod)
    since = podstatus.pending_since(pod, entry.start_time, look.now)
    deadline = None if since is None else since + timedelta(seconds=look.spec.deadlines.pending_seconds)
    trouble = podstatus.trouble_of(pod, look.container)
    if deadline is not None and deadline <= look.now:
        return _give_up_pending(look, pod, entry, trouble)
    what = trouble.what if trouble else SENTENCES[Reason.PENDING]
    shown = statuses.progress_of(look.status)
    if (
        current.entry == entry
        and shown is not None
        and shown.reason == Reason.PENDING
        and shown.message.startswith(what)
    ):
        return look.plan(again=deadline)
    show_at = (pod.metadata.creation_timestamp or look.now) + SHOW_PENDING_AFTER
    if trouble is None and current.entry is None and show_at > look.now and not _is_stuck(look.status):
        return look.plan(again=min(deadline or show_at, show_at))
    return _show(look, Reason.PENDING, trouble.message if trouble else what, entry).plan(again=deadline)


def _give_up_pending(look: DecisionContext, pod: Pod, entry: Attempt, trouble: podstatus.PodProblem | None) -> Plan:
    # Said before it is done: once the pod is deleted, nothing in it tells why it did not start.
    seconds = look.spec.deadlines.pending_seconds
    message = f"The pod was pending for longer than spec.deadlines.pendingSeconds ({seconds} s)."
    why = textformat.start_of(f"{message} {trouble.message}" if trouble else message)
    entry = msgspec.structs.replace(entry, reason=trouble.reason if trouble else "PendingTooLong", message=why)
    return _show(look, Reason.PENDING, why, entry).plan(DeletePod(name=pod.metadata.name, uid=pod.metadata.uid))


# -- may the next attempt start? -------------------------------------------------------------------


def _heed_loss(look: DecisionContext) -> Plan | None:
    """A lost state stays lost until a person says to go on without it; what it knew to be open is nobody's then."""
    if not statuses.is_held_for_good(look.status):
        return None
    if holds.answer_to_loss(look.spec, look.status) != holds.START_EMPTY:
        return look.plan()
    look = teardown.with_orphans(look, None)
    counts = msgspec.structs.replace(look.status.counts, state_losses=look.status.counts.state_losses + 1)
    status = msgspec.structs.replace(look.status, counts=counts, state=None)
    status = statuses.with_progress(statuses.without_hold(status, look.now), Reason.PENDING, _STARTS_EMPTY, look.now)
    return look.with_status(status).plan()


def _wait_for_answers(look: DecisionContext) -> Plan | None:
    """No pod before a person has answered what the last one asked: it would find no way to go on either."""
    if look.observed.state is None:
        last = statuses.last_end_of(look.status)
        has_asked = last is not None and last.cause == Cause.HELD
        may_be_held = has_asked or statuses.is_held(look.status, Reason.SUBMISSION_UNKNOWN) or holds.unanswered(look)
        return Plan(actions=(ReadState(),)) if may_be_held else None
    waiting = holds.unanswered(look)
    return holds.hold(look, Reason.SUBMISSION_UNKNOWN, holds.question_about(look, waiting)) if waiting else None


def _wait_for_budget(look: DecisionContext) -> Plan | None:
    if not holds.is_held_by_budget(look.spec, look.status):
        return None
    return holds.hold(look, Reason.BUDGET_EXHAUSTED, holds.question_about_budget(look))


def _back_off(look: DecisionContext) -> Plan | None:
    until = look.status.next_attempt_time
    if until is None or until <= look.now:
        return None
    return look.with_status(attempts.backing_off(look.status, look.now)).plan(again=until)


def _check_state(look: DecisionContext) -> Plan | None:
    """Whether the state is still there; and a read of it, if the last attempt's record came after its end was recorded."""
    last, summary, read = statuses.last_end_of(look.status), look.observed.summary, look.observed.state
    unseen = summary is None and look.status.state is not None
    late = last is not None and summary is not None and summary.completed_attempt == last.number
    if read is None:
        return Plan(actions=(ReadState(),)) if unseen or (late and look.spec.completion != "ExitCode") else None
    return holds.hold(look, Reason.STATE_LOST, holds.question_about_loss(look)) if look.state_lost else None


def _refuse_changed_template(look: DecisionContext) -> Plan | None:
    """A run must not go on from another template than the one it began with, and since nobody may put the old one back, it ends."""
    now = template_hash(look.spec.template)
    pods = [known.pod for known in look.attempts if known.pod is not None]
    if all(pod.metadata.annotations.get(ANNOTATION_TEMPLATE_HASH) in {None, now} for pod in pods):
        return None
    message = f"{SENTENCES[Reason.TEMPLATE_CHANGED]} Make a new TaskRun."
    return teardown.close(look, FinalOutcome(Outcome.FAILED, Reason.TEMPLATE_CHANGED, message))


def _heed_refusal(look: DecisionContext) -> Plan | None:
    refusal = look.observed.refusal
    if refusal is None or refusal.attempt != look.next_number:
        return None
    reason = _REFUSED[refusal.kind]
    message = f"{SENTENCES[reason]} {refusal.message}"
    if refusal.kind is PodRejectionKind.INVALID:
        return teardown.close(look, FinalOutcome(Outcome.FAILED, reason, message))
    if refusal.retry_at <= look.now:
        return None
    if _is_shown(look.status, reason, message, refusal.kind):
        return look.plan(again=refusal.retry_at)
    status = statuses.with_progress(look.status, reason, message, look.now)
    said = EmitEvent(reason.value, textformat.start_of(message), warning=True)
    return look.with_status(status, said).plan(again=refusal.retry_at)


def _is_shown(status: TaskRunStatus, reason: Reason, message: str, kind: PodRejectionKind) -> bool:
    """Whether status says it already, or so nearly that it isn't worth a write: quotas and failures say something else each time."""
    shown = statuses.progress_of(status)
    if shown is None or shown.reason != reason:
        return False
    same = re.sub(r"\d+", "", shown.message) == re.sub(r"\d+", "", textformat.start_of(message))
    return same or kind is not PodRejectionKind.FORBIDDEN


def _create(look: DecisionContext, settings: PodDefaults) -> Plan:
    number = look.next_number
    return look.plan(CreatePod(attempt=number, body=build_pod(look.observed.taskrun, number, settings)))


_BEFORE_ENDS: tuple[Step, ...] = (
    _leave_to_others,
    _let_go_of_finished,
    _let_go_of_deleted,
    _hold_restored,
    _read_state,
    _wait_for_readable_state,
)
_AFTER_ENDS: tuple[Step, ...] = (
    _conclude,
    _wait_for_leftovers,
    _watch_current,
    _heed_loss,
    _check_state,
    _wait_for_answers,
    _wait_for_budget,
    _back_off,
    _refuse_changed_template,
    _heed_refusal,
)
_REFUSED = {
    PodRejectionKind.INVALID: Reason.INVALID_TEMPLATE,
    PodRejectionKind.QUOTA: Reason.QUOTA_EXCEEDED,
    PodRejectionKind.FORBIDDEN: Reason.POD_REFUSED,
    PodRejectionKind.NAME_TAKEN: Reason.POD_NAME_TAKEN,
    PodRejectionKind.ERROR: Reason.POD_REFUSED,
}


# -- what steps have in common ---------------------------------------------------------------------


def _show(look: DecisionContext, reason: Reason, message: str, entry: Attempt) -> DecisionContext:
    status = statuses.with_attempt(look.status, entry, look.spec.history_limit)
    status = statuses.with_progress(status, reason, message, look.now)
    return look.with_status(msgspec.structs.replace(status, next_attempt_time=None))


def _entry(look: DecisionContext, known: AttemptView, pod: Pod) -> Attempt:
    """The attempt as it is listed while it runs. Its clock starts when its pod is made, or when the last gate is seen to be gone."""
    made = pod.metadata.creation_timestamp
    start = made if known.entry is None else known.entry.start_time or look.now.replace(microsecond=0)
    return Attempt(
        number=known.number,
        pod_name=pod.metadata.name,
        pod_uid=pod.metadata.uid,
        node=pod.spec.node_name,
        start_time=start,
    )


def _is_stuck(status: TaskRunStatus) -> bool:
    """Whether status says that no pod can be made, which it must not go on saying once there is one."""
    return any(
        statuses.shows(status, one) for one in (Reason.QUOTA_EXCEEDED, Reason.POD_REFUSED, Reason.POD_NAME_TAKEN)
    )
