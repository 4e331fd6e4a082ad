"""Cleanup: the attempts that cancel external jobs after the run has begun to end.

    an obstacle (policy, no way to clean up, budget, deadline ...)  -> None: no further attempt
    a cleanup attempt runs                                          -> wait
    nothing to do, or only after the pods of run attempts ended     -> None
    foreground deletion, pause, backoff, rejected pod               -> wait
    none of these                                                   -> CreatePod

The obstacles are also the reasons that the record of orphaned jobs gives.
"""

from collections.abc import Callable
from datetime import datetime

import msgspec

from reattach.api.names import FINALIZER_EXTERNAL_JOBS
from reattach.api.objects import Pod
from reattach.api.reasons import SENTENCES, Budget, Cause, Outcome, Reason
from reattach.api.state import JobSummary
from reattach.api.taskrun import Adoption, Attempt, AttemptPurpose, ExternalJobStatus, adoptions_at_end
from reattach.planner import attempts, conditions, holds, podstatus, rejections, textformat
from reattach.planner.budgets import amount
from reattach.planner.context import AttemptView, DecisionContext
from reattach.planner.outcome import FinalOutcome
from reattach.planner.plan import EmitEvent, Plan, PodRejectionKind, ProtectTaskRun
from reattach.planner.pods import InvalidTemplateError, has_template_changed, pod_creation

FOREGROUND_DELETION = "foregroundDeletion"
"""Finalizer of a deletion that first deletes all dependents, so also each cleanup pod."""
STATE_LOST = "The state that listed it is lost or unreadable."
_CANCEL = "Cancel"
_STARTED = (Budget.APPLICATION, Budget.DISRUPTION, Budget.NOT_READY)
"""Budgets to which only ends of attempts that may have started are charged."""


def cleanup_step(context: DecisionContext, final: FinalOutcome) -> Plan | None:
    """Return the next step of the cleanup; None if it has nothing to do now, or never again."""
    ending, current = context.status.ending, context.current_cleanup
    if ending is None or final.outcome is Outcome.SUCCEEDED:
        return None
    if current is not None and current.pod is not None:
        return _watch(context, current, current.pod)
    if not is_due(context, final):
        return None
    waits = (wait(context) for wait in _WAITS)
    return next((plan for plan in waits if plan is not None), None) or _create(context, ending.cleanup_deadline)


def is_due(context: DecisionContext, final: FinalOutcome) -> bool:
    """Return whether a cleanup attempt has work now."""
    return obstacle(context, final) is None and _has_work(context)


def must_run(context: DecisionContext) -> bool:
    """Return whether a cleanup attempt runs even if no external job is open."""
    if context.spec.cleanup.command:
        status = context.status
        charged = sum(amount(status.counts.charged, one) for one in _STARTED) > 0
        # A suspension stops an attempt, and charges nothing.
        folded = any(one.cause != Cause.NEVER_STARTED for one in status.folded_attempts)
        runs = (view for view in context.attempts if view.purpose is AttemptPurpose.RUN)
        return context.has_state or charged or folded or any(_may_have_started(view) for view in runs)
    return _has_registered(context) and context.epoch is not None and context.epoch.cleanup_handler


def adoptions(context: DecisionContext) -> tuple[Adoption, ...]:
    """Return the jobs that the first cleanup attempt adopts, if no attempt has opened the state."""
    spec = context.spec
    if context.epoch is not None or context.state_lost:
        return ()
    return adoptions_at_end(spec.adopt, cancel=spec.cancel, adopted=spec.cleanup.adopted)


def is_kept(context: DecisionContext, job: JobSummary) -> bool:
    """Return whether the job is left running because another run submitted it, or may have."""
    has_key = context.spec.submission.idempotency_key is not None
    is_kept = job.is_of_another_run or (has_key and job.may_be_of_another_run)
    return is_kept and context.spec.cleanup.adopted != _CANCEL


def describe_orphaned(
    context: DecisionContext, final: FinalOutcome, job: ExternalJobStatus, known: JobSummary | None
) -> str:
    """Return why an open job was not cancelled, as one sentence.

    `known`: the job in the state; None if another state listed it.
    """
    if job.cancel_requested_time is not None:
        since = textformat.format_time(job.cancel_requested_time)
        return f"Its cancellation was requested at {since}, and its end is not known."
    if known is None and all((one.key, 1) != (job.key, job.generation) for one in adoptions(context)):
        return STATE_LOST
    if known is not None and is_kept(context, known) and known.is_of_another_run:
        return "This TaskRun did not submit it, and spec.cleanup.adopted is not Cancel."
    if known is not None and is_kept(context, known):
        return "Another TaskRun with the same idempotencyKey may have submitted it, and spec.cleanup.adopted is not Cancel."
    return obstacle(context, final) or "No cleanup attempt was started for it."


# What keeps the cleanup from starting another attempt?


def obstacle(context: DecisionContext, final: FinalOutcome) -> str | None:
    """Return why no further cleanup attempt may start, as one sentence; None if one may."""
    return next((why for check in _OBSTACLES if (why := check(context, final)) is not None), None)


def _is_success(_context: DecisionContext, final: FinalOutcome) -> str | None:
    return "A success cancels no job." if final.outcome is Outcome.SUCCEEDED else None


def _is_unwanted(context: DecisionContext, final: FinalOutcome) -> str | None:
    cleanup = context.spec.cleanup
    outcome = context.status.ending.outcome if context.status.ending is not None else final.outcome
    if outcome == Outcome.CANCELLED:
        return None if cleanup.on_cancel == _CANCEL else "spec.cleanup.onCancel is Orphan."
    if outcome is not None:
        return None if cleanup.on_failure == _CANCEL else "spec.cleanup.onFailure is Orphan."
    if cleanup.on_delete is None and context.spec.submission.idempotency_key is not None:
        return "The next TaskRun with the same spec.submission.idempotencyKey takes it over (spec.cleanup.onDelete)."
    return None if cleanup.on_delete in {None, _CANCEL} else "spec.cleanup.onDelete is Orphan."


def _has_no_way(context: DecisionContext, _final: FinalOutcome) -> str | None:
    # An attempt that adopts jobs is the first one, so it shows what the task registers.
    if context.spec.cleanup.command or _has_registered(context) or adoptions(context):
        return None
    return "The task registered no adapter and no cleanup handler, and spec.cleanup.command is unset."


def _has_registered(context: DecisionContext) -> bool:
    return not context.state_lost and context.epoch is not None and context.epoch.can_cleanup


def _is_namespace_ending(context: DecisionContext, _final: FinalOutcome) -> str | None:
    return "The namespace is being deleted, so no cleanup pod can start." if context.observed.namespace_ends else None


def _is_done(context: DecisionContext, _final: FinalOutcome) -> str | None:
    ended = conditions.last_attempt(context.status.attempts, AttemptPurpose.CLEANUP)
    if ended is None or ended.cause != Cause.SUCCEEDED or _was_job_reported_since(context, ended):
        return None
    if any(holds.has_new_evidence(context, job) for job in context.jobs if job.is_open and job.handle is None):
        return None
    return f"Cleanup attempt {ended.number} ended without cancelling it; it may have no adapter for the job."


def _was_job_reported_since(context: DecisionContext, ended: Attempt) -> bool:
    """Return whether an attempt that was stopped late reported a job after the cleanup attempt."""
    jobs = (job for job in context.jobs if job.is_open and not is_kept(context, job))
    times = (job.submitted_time for job in jobs if job.submitted_time is not None)
    return any(ended.finish_time is not None and time > ended.finish_time for time in times)


def _is_budget_spent(context: DecisionContext, _final: FinalOutcome) -> str | None:
    budget, charged = context.spec.cleanup.budget, context.status.counts.charged.cleanup
    if charged < budget:
        return None
    ended = conditions.last_attempt(context.status.attempts, AttemptPurpose.CLEANUP)
    last = f" {textformat.describe_end(ended)}" if ended is not None and ended.finish_time is not None else ""
    return f"No cleanup attempt is left (spec.cleanup.budget is {budget}).{last}"


def _is_too_late(context: DecisionContext, _final: FinalOutcome) -> str | None:
    if not context.is_past_cleanup_deadline:
        return None
    seconds = context.spec.cleanup.deadline_seconds
    return f"The time for the cleanup was over (spec.cleanup.deadlineSeconds is {seconds})."


def _is_template_unusable(context: DecisionContext, _final: FinalOutcome) -> str | None:
    try:
        changed = has_template_changed(context.observed.taskrun, context.pods.values())
    except InvalidTemplateError as error:
        return f"No cleanup pod can be built: {error}"
    return f"{SENTENCES[Reason.TEMPLATE_CHANGED]} No cleanup pod is made from it." if changed else None


def _is_refused_for_good(context: DecisionContext, _final: FinalOutcome) -> str | None:
    rejection = rejections.rejection_of_next(context)
    if rejection is None or rejection.kind is not PodRejectionKind.INVALID:
        return None
    return f"The API server rejected the cleanup pod: {rejection.message.rstrip('.')}."


_OBSTACLES: tuple[Callable[[DecisionContext, FinalOutcome], str | None], ...] = (
    _is_success,
    _is_unwanted,
    _has_no_way,
    _is_namespace_ending,
    _is_done,
    _is_budget_spent,
    _is_too_late,
    _is_template_unusable,
    _is_refused_for_good,
)


# Is there work for a cleanup attempt?


def _has_work(context: DecisionContext) -> bool:
    """Return whether a cleanup attempt has work now.

    A job with a handle is cancelled at once. Without one, it may still be submitted as long as the
    pod of a run attempt runs. A handler or command runs only after the task itself, because it must
    see everything that the task stored. A job that a resolution denies is not looked for.
    """
    jobs = [job for job in context.jobs if job.is_open and not holds.is_denied_at_end(context.spec, job)]
    must_cancel = any(job.handle is not None and not is_kept(context, job) for job in jobs) or bool(adoptions(context))
    if running_run_pods(context):
        return must_cancel and not must_run(context)
    return must_cancel or any(job.handle is None for job in jobs) or must_run(context)


def running_run_pods(context: DecisionContext) -> tuple[Pod, ...]:
    """Return the pods of run attempts that may still run."""
    views = (view for view in context.attempts if view.purpose is AttemptPurpose.RUN)
    return tuple(view.pod for view in views if view.pod is not None and not context.is_pod_over(view.pod))


def _may_have_started(view: AttemptView) -> bool:
    return view.entry is None or view.entry.cause != Cause.NEVER_STARTED


# Waiting for a cleanup attempt, or to start one


def _watch(context: DecisionContext, current: AttemptView, pod: Pod) -> Plan:
    """Wait for the end of the attempt, and show why its pod does not start."""
    entry = attempts.open_entry(context, current, pod)
    problem = None if podstatus.running_of(pod, context.container) else podstatus.problem_of(pod, context.container)
    again = context.attempt_end_time(pod)
    summary = _describe_pod(context, current, pod, problem)
    # The detail of a problem changes with each try of the kubelet, and is not worth a write.
    start = f"{summary}." if problem is None else summary
    if current.entry == entry and conditions.shows_message(context.status, Reason.ENDING, start):
        return context.plan(again=again)
    message = f"{summary}: {problem.detail}" if problem is not None and problem.detail else f"{summary}."
    status = conditions.with_attempt(context.status, entry)
    status = msgspec.structs.replace(status, next_attempt_time=None)
    return _show(context.with_status(status), message).plan(again=again)


def _describe_pod(
    context: DecisionContext, current: AttemptView, pod: Pod, problem: podstatus.PodProblem | None
) -> str:
    attempt = f"Cleanup attempt {current.number}"
    if problem is not None:
        return f"{attempt} can't start. {textformat.head(problem.summary)}"
    if podstatus.is_gated(pod):
        return f"{attempt} waits for the scheduling gates of its pod"
    count = sum(job.is_open for job in context.jobs)
    return f"{attempt} was started. Open external jobs: {count}"


def _await_foreground(context: DecisionContext) -> Plan | None:
    if FOREGROUND_DELETION not in context.metadata.finalizers:
        return None
    message = "The cleanup starts once the foreground deletion has deleted the pods of the TaskRun."
    return _show(context, message).plan()


def _await_unpause(context: DecisionContext) -> Plan | None:
    if not context.observed.paused:
        return None
    return _show(context, f"No cleanup pod can be created. {SENTENCES[Reason.PAUSED]}").plan()


def _await_backoff(context: DecisionContext) -> Plan | None:
    again = context.status.next_attempt_time
    last = conditions.last_attempt(context.status.attempts, AttemptPurpose.CLEANUP)
    if again is None or again <= context.now or last is None:
        return None
    message = f"{textformat.describe_end(last)} The next cleanup attempt starts at {textformat.format_time(again)}."
    return _show(context, message).plan(again=again)


def _await_admission(context: DecisionContext) -> Plan | None:
    rejection = rejections.rejection_of_next(context)
    if rejection is None:
        return None
    if makes_room := rejections.actions_for_room(context, rejection):
        return context.plan(*makes_room, again=rejection.retry_at)
    if rejection.retry_at <= context.now:
        return None
    before = "No cleanup pod can be created. "
    if not rejections.is_shown(context, Reason.ENDING, before, rejection):
        message = textformat.head(before + rejections.describe(rejection))
        event = EmitEvent(rejections.reason_of(rejection).value, message, warning=True)
        context = _show(context, message)
        context = context.with_status(context.status, event)
    return context.plan(again=rejection.retry_at)


def _protect_adoptions(context: DecisionContext) -> Plan | None:
    """Add our finalizer before the first attempt that adopts jobs, so that a deletion waits.

    The state API adds it before a task submits, and a cleanup attempt submits nothing.
    """
    is_protected = FINALIZER_EXTERNAL_JOBS in context.metadata.finalizers
    if is_protected or context.last_number > 0 or not adoptions(context):
        return None
    return context.plan(ProtectTaskRun())


_WAITS: tuple[Callable[[DecisionContext], Plan | None], ...] = (
    _await_foreground,
    _await_unpause,
    _await_backoff,
    _await_admission,
    _protect_adoptions,
)


def _create(context: DecisionContext, deadline: datetime) -> Plan:
    """Create the pod of the next attempt.

    First list the run attempts that still run: an attempt below the newest number that is not
    listed counts as ended.
    """
    status = context.status
    for view in context.attempts:
        if view.pod is not None and view.entry is None and not view.recorded:
            entry = attempts.open_entry(context, view, view.pod)
            status = conditions.with_attempt(status, entry)
    seconds = max(1, int((deadline - context.now).total_seconds()))
    taskrun, number = context.observed.taskrun, context.next_number
    creation = pod_creation(taskrun, number, context.defaults, cleanup_seconds=seconds)
    return context.with_status(status).plan(creation)


def _show(context: DecisionContext, message: str) -> DecisionContext:
    return context.with_status(conditions.with_progress(context.status, Reason.ENDING, message, context.now))
