"""Holds: the reasons that pause a TaskRun until a resolution, and the resolutions given.

The n-th resolution for a job, or for another reason, settles its n-th hold, so none is used twice.
A job's `holds` is the number of the resolution that its newest hold waits for.
"""

import json
from datetime import datetime

from reattach.api.reasons import SENTENCES, Budget, ConditionType, End, Reason
from reattach.api.state import JobState, JobSummary
from reattach.api.taskrun import Counts, Resolution, TaskRunSpec, TaskRunStatus
from reattach.api.text import printable_json, shell_word
from reattach.planner import conditions, external_jobs, textformat
from reattach.planner.budgets import exhausted
from reattach.planner.context import DecisionContext
from reattach.planner.plan import EmitEvent, Plan

ADOPT, RESUBMIT, FAIL, START_EMPTY = "Adopt", "Resubmit", "Fail", "StartEmpty"

_OTHER_REQUEST = "An external job has another request than the task. Manual resolution required."
NAMED_BYTES_MAX = 400
"""Length of the list of jobs in a message, so that the instructions are never cut off."""


def hold(context: DecisionContext, reason: Reason, message: str, again: datetime | None = None) -> Plan:
    """Return the plan that holds the TaskRun and emits one event."""
    return with_hold(context, reason, message).plan(again=again, held=True)


def with_hold(context: DecisionContext, reason: Reason, message: str) -> DecisionContext:
    """Return the context of a held TaskRun."""
    before = conditions.find_condition(context.status.conditions, ConditionType.HELD)
    message = textformat.head(message)
    if before is not None and conditions.is_held(context.status, reason) and before.message == message:
        return context
    event = EmitEvent(reason.value, message, warning=True)
    return context.with_status(conditions.with_hold(context.status, reason, message, context.now), event)


# SubmissionUnknown: jobs that may or may not have been submitted


def resolution_for(spec: TaskRunSpec, job: JobSummary) -> Resolution | None:
    """Return the resolution of the newest hold of this job."""
    given = _resolutions_for(spec, Reason.SUBMISSION_UNKNOWN, job)
    return given[job.holds - 1] if 0 < job.holds <= len(given) else None


def resolution_at_end(spec: TaskRunSpec, job: JobSummary) -> Resolution | None:
    """Return the resolution of this job at the end of the run.

    It is the one of the newest hold, or the next one if an attempt has used that.
    """
    if not job.held and job.handle is not None:
        return None
    given = _resolutions_for(spec, Reason.SUBMISSION_UNKNOWN, job)
    number = job.holds if job.held else job.holds + 1
    return given[number - 1] if 0 < number <= len(given) else None


def is_denied_at_end(spec: TaskRunSpec, job: JobSummary) -> bool:
    """Return whether a resolution closes the job at the end of the run.

    Fail ends it, and Resubmit states that the external system has no such job. Neither denies a job
    of another request, which is known to run.
    """
    if job.handle is not None and job.state is not JobState.NOT_FOUND:
        return False
    resolution = resolution_at_end(spec, job)
    return resolution is not None and resolution.action in {FAIL, RESUBMIT}


def unresolved_jobs(context: DecisionContext) -> tuple[JobSummary, ...]:
    """Return the held jobs without a resolution; no attempt can continue with one of them."""
    return tuple(job for job in context.jobs if job.held and resolution_for(context.spec, job) is None)


def holds_ended_by_evidence(context: DecisionContext) -> tuple[tuple[str, int], ...]:
    """Return the held jobs that the next attempt resolves again, because evidence has come.

    An attempt that begins after the evidence can't be held for the presumed end, so evidence ends a
    hold once.
    """
    held = (job for job in unresolved_jobs(context) if job.handle is None)
    return tuple(external_jobs.job_id(job) for job in held if has_new_evidence(context, job))


def has_new_evidence(context: DecisionContext, job: JobSummary) -> bool:
    """Return whether each attempt that may have submitted the job has ended for certain.

    At least one of these ends was presumed when the newest attempt began.
    """
    entries = {entry.number: entry for entry in context.status.attempts}
    submitters = [entries.get(number) for number in job.submitters]
    known = [entry for entry in submitters if entry is not None and entry.end == End.REPORTED]
    since = [entry.reported_at_attempt for entry in known if entry.reported_at_attempt is not None]
    return len(known) == len(submitters) and max(since, default=0) >= context.last_number


def job_failed_by_resolution(context: DecisionContext) -> JobSummary | None:
    """Return the held job whose resolution fails the run."""
    resolved = ((job, resolution_for(context.spec, job)) for job in context.jobs)
    return next((job for job, resolution in resolved if resolution is not None and resolution.action == FAIL), None)


def describe_unresolved(context: DecisionContext, waiting: tuple[JobSummary, ...]) -> str:
    """Return the message of the hold for these jobs, with instructions."""
    names = textformat.head(", ".join(_describe_unresolved_job(job) for job in waiting), NAMED_BYTES_MAX)
    first = waiting[0]
    handle = shell_word(first.handle) if first.handle is not None and first.state is JobState.ACTIVE else "HANDLE"
    flags = f"--key {shell_word(first.key)} --generation {first.generation} --adopt {handle} | --resubmit | --fail"
    key = printable_json(json.dumps(first.key, ensure_ascii=False))
    fields = f"held: SubmissionUnknown, key: {key}, generation: {first.generation}"
    entry = f"{{{fields}, action: Adopt, handle: …}}, or with action Resubmit or Fail"
    how = f"{_evidence_hint(context, waiting)}{_instructions(context, flags, entry)}"
    # A job of another request is known to run. Only whether it is the right one is unknown.
    is_known = all(job.state is JobState.ACTIVE for job in waiting)
    sentence = _OTHER_REQUEST if is_known else SENTENCES[Reason.SUBMISSION_UNKNOWN]
    return f"{sentence} External job {names}.{how}"


def _evidence_hint(context: DecisionContext, waiting: tuple[JobSummary, ...]) -> str:
    """Return a sentence that names the node whose taint would end the hold.

    A run that ends may have no cleanup attempt left, so nothing is promised.
    """
    if context.status.ending is not None:
        return ""
    submitters = {number for job in waiting for number in job.submitters}
    presumed = (view.entry for view in context.attempts if view.number in submitters and view.is_presumed)
    node = next((one.node for one in presumed if one and context.observed.nodes.get(one.node) is not None), None)
    if node is None:
        return ""
    taint = f"kubectl taint node {node} node.kubernetes.io/out-of-service=nodeshutdown:NoExecute"
    return f" If node {node} is shut down, run: {taint}; then the next attempt starts."


def _describe_unresolved_job(job: JobSummary) -> str:
    is_absent = job.state is JobState.NOT_FOUND
    why = "the external system does not have it" if is_absent else "it may have been submitted"
    return f"{external_jobs.describe_job(job)}: {job.message.rstrip('.') or why}"


def _resolutions_for(spec: TaskRunSpec, held: Reason, job: JobSummary | None = None) -> tuple[Resolution, ...]:
    held_job = (None, None) if job is None else external_jobs.job_id(job)
    return tuple(one for one in spec.resolutions if one.held == held and (one.key, one.generation) == held_job)


def _instructions(context: DecisionContext, flags: str, entry: str) -> str:
    metadata = context.metadata
    command = f"kubectl reattach resolve {metadata.name} -n {metadata.namespace} {flags}"
    return f" To resolve: {command}; that appends {entry}, to spec.resolutions."


# StateLost


def describe_lost_state(context: DecisionContext) -> str:
    """Return the message of the hold for a lost state, with instructions."""
    entry = "{held: StateLost, action: StartEmpty}, or with action Fail"
    how = _instructions(context, "--start-empty | --fail", entry)
    return f"{SENTENCES[Reason.STATE_LOST]} Look for external jobs that it may have left running.{how}"


def resolution_for_loss(spec: TaskRunSpec, status: TaskRunStatus) -> str | None:
    """Return the action that resolves the current loss of the state."""
    given = _resolutions_for(spec, Reason.STATE_LOST)
    losses = status.counts.state_losses
    return given[losses].action if conditions.is_held_for_lost_state(status) and losses < len(given) else None


# BudgetExhausted


def exhausted_budget(spec: TaskRunSpec, counts: Counts) -> tuple[Budget | None, bool]:
    """Return the exhausted budget, grants included, and whether a resolution fails the run for it.

    Only `disruption` and `neverStarted` can be granted again: `application` ends are the task's.
    """
    budgets, grants = spec.retry.budgets, 0
    for resolution in _resolutions_for(spec, Reason.BUDGET_EXHAUSTED):
        spent = exhausted(counts, budgets, grants)
        if spent in {None, Budget.APPLICATION}:
            return spent, False
        if resolution.action == FAIL:
            return spent, True
        grants += 1
    return exhausted(counts, budgets, grants), False


def is_held_by_budget(spec: TaskRunSpec, status: TaskRunStatus) -> bool:
    """Return whether the next pod needs a grant while an external job continues."""
    spent, is_failed = exhausted_budget(spec, status.counts)
    is_grantable = spent in {Budget.DISRUPTION, Budget.NEVER_STARTED}
    return is_grantable and not is_failed and any(external_jobs.is_open(job) for job in status.external_jobs)


def describe_exhausted_budget(context: DecisionContext) -> str:
    """Return the message of the hold for an exhausted budget, with instructions."""
    spent, _ = exhausted_budget(context.spec, context.status.counts)
    jobs = [job for job in context.status.external_jobs if external_jobs.is_open(job)]
    running = textformat.head(", ".join(external_jobs.describe_job(job) for job in jobs), NAMED_BYTES_MAX)
    entry = "{held: BudgetExhausted, action: Continue}, which grants it once more, or with action Fail"
    how = _instructions(context, "--continue | --fail", entry)
    return f"{SENTENCES[Reason.BUDGET_EXHAUSTED]} The budget {spent} is exhausted; external job {running}.{how}"
