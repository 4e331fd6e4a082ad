"""Content of `explain`: attempts, jobs, decisions, next steps and commands of a run. Pure."""

from collections.abc import Sequence
from datetime import datetime

from reattach.api.objects import Shape
from reattach.api.orphans import OrphanedJob
from reattach.api.reasons import Budget, ConditionType, Outcome, Reason
from reattach.api.state import JobOrigin, JobSummary
from reattach.api.taskrun import Attempt, Counts, Ending, FoldedAttempts, TaskRun, TaskRunStatus
from reattach.api.text import one_line
from reattach.cli.endings import describe_cancellations, describe_left, describe_request
from reattach.cli.hold_options import (
    OpenHold,
    ResolutionOption,
    allowed_ends,
    count_continues,
    find_effective_hold,
    find_holds,
    is_unresolved,
)
from reattach.cli.next_steps import available_options, describe_next_steps
from reattach.cli.snapshot import Event, FieldWriter, JobSubmission, Snapshot, job_name
from reattach.cli.text import ago, count, duration, listed
from reattach.planner.budgets import FAILURES, amount
from reattach.planner.conditions import find_condition
from reattach.planner.external_jobs import UNWATCHED, job_id, with_jobs

EVENTS_SHOWN = 10


class BudgetReport(Shape, frozen=True, omit_defaults=False):
    """One budget: what was charged, and what it allows.

    `granted`: how many resolutions granted it again. `used_up`: no further attempt starts. A budget
    for run attempts allows so many failures; `cleanup` allows so many attempts.
    """

    name: str
    charged: int
    allowed: int
    granted: int = 0
    used_up: bool = False


class JobReport(Shape, frozen=True):
    """One external job, and how its handle became known.

    `submitted_time`: when its submission began, if that is known. `handle_time`: when its handle
    was stored.
    """

    key: str
    generation: int
    state: str
    adapter: str = ""
    handle: str | None = None
    url: str | None = None
    submitted_time: datetime | None = None
    handle_time: datetime | None = None
    submitted_by_attempt: int | None = None
    detached: bool = False
    held: bool = False
    why: str = ""
    message: str = ""
    strays: tuple[str, ...] = ()
    cancel_requested_time: datetime | None = None


class RunReport(Shape, frozen=True):
    """Content of `explain`, also with `-o json`.

    `hidden_attempts`: how many are no longer in the list. `folded_attempts` has their causes.
    """

    name: str
    namespace: str
    uid: str
    headline: str
    reason: str = ""
    outcome: str | None = None
    message: str = ""
    since: datetime | None = None
    created: datetime | None = None
    attempts: tuple[Attempt, ...] = ()
    hidden_attempts: int = 0
    folded_attempts: tuple[FoldedAttempts, ...] = ()
    budgets: tuple[BudgetReport, ...] = ()
    external_jobs: tuple[JobReport, ...] = ()
    decisions: tuple[str, ...] = ()
    counts: Counts = Counts()
    result: str | None = None
    ending: Ending | None = None
    cancelled_by: FieldWriter | None = None
    orphans: tuple[OrphanedJob, ...] = ()
    next: tuple[str, ...] = ()
    holds: tuple[OpenHold, ...] = ()
    ways: tuple[ResolutionOption, ...] = ()
    events: tuple[Event, ...] = ()
    notes: tuple[str, ...] = ()


def build_report(snapshot: Snapshot) -> RunReport:
    """Build the report from what was read of a TaskRun."""
    taskrun, status = snapshot.taskrun, snapshot.taskrun.status
    about = taskrun.metadata
    shown = snapshot.progress
    holds = find_holds(taskrun, snapshot.jobs) if status.outcome is None else ()
    return RunReport(
        name=about.name,
        namespace=about.namespace,
        uid=about.uid,
        headline=_headline_of(snapshot, holds),
        reason=shown.reason if shown else "",
        outcome=status.outcome,
        message=shown.message if shown else "",
        since=shown.last_transition_time if shown else None,
        created=about.creation_timestamp,
        attempts=status.attempts,
        hidden_attempts=max(0, status.counts.attempts - len(status.attempts)),
        folded_attempts=status.folded_attempts,
        budgets=_budgets_of(taskrun),
        external_jobs=_jobs_of(snapshot),
        decisions=_decisions_of(snapshot),
        counts=status.counts,
        result=status.result,
        ending=status.ending,
        cancelled_by=snapshot.cancelled_by,
        orphans=snapshot.orphans,
        next=describe_next_steps(snapshot, holds),
        holds=holds,
        ways=available_options(snapshot, holds),
        events=snapshot.events[-EVENTS_SHOWN:],
        notes=((snapshot.state_note,) if snapshot.state_note else ()) + snapshot.notes,
    )


# -- where it stands -------------------------------------------------------------------------------


def _headline_of(snapshot: Snapshot, holds: Sequence[OpenHold]) -> str:
    taskrun, status, now = snapshot.taskrun, snapshot.taskrun.status, snapshot.now
    name, tries = taskrun.metadata.name, count(status.counts.attempts, "attempt")
    if status.outcome is not None:
        verb = {"Succeeded": "succeeded", "Failed": "failed", "Cancelled": "was cancelled"}.get(status.outcome, "ended")
        when = f" {ago(status.completion_time, now)}" if status.completion_time else ""
        took = ""
        if status.start_time and status.completion_time:
            took = f" and {duration(status.completion_time - status.start_time)}"
        return f"{name} {verb}{when}, after {tries}{took}."
    is_deleted = taskrun.metadata.deletion_timestamp is not None
    if any(hold.answer is None for hold in holds) or (find_effective_hold(taskrun) and not holds):
        how = "being deleted, and " if is_deleted else "being cancelled, and " if taskrun.spec.cancel else ""
        how = how or _ending_and(status) or ("suspended, and " if taskrun.spec.suspend else "")
        return f"{name} is {how}held: waiting for a resolution."
    if is_deleted:
        return f"{name} is being deleted."
    if holds:
        return f"{name} was held; it has a resolution, and the operator applies it."
    ending = status.ending
    if ending is not None and ending.outcome != Outcome.CANCELLED:
        return f"{name} is ending as {ending.outcome} ({ending.reason})."
    if taskrun.spec.cancel or ending is not None:
        return f"{name} is being cancelled."
    shown = snapshot.progress
    return f"{name} {_HEADLINES.get(shown.reason if shown else '', 'is unfinished')}."


def _ending_and(status: TaskRunStatus) -> str:
    return "" if status.ending is None else f"ending as {status.ending.outcome}, and "


_HEADLINES = {
    "": "has no status yet",
    Reason.PENDING: "waits for its pod to start",
    Reason.RUNNING: "is running",
    Reason.BACKING_OFF: "waits for its next attempt",
    Reason.WAITING: "waits for its external job without a pod",
    Reason.WAITING_FOR_GATES: "waits for the scheduling gates of its pod",
    Reason.QUOTA_EXCEEDED: "waits for the namespace's quota",
    Reason.POD_REFUSED: "can't create its pod",
    Reason.POD_NAME_TAKEN: "can't create its pod",
    Reason.PAUSED: "waits, because Reattach is paused",
    Reason.SUSPENDED: "is suspended",
    Reason.ENDING: "waits for the other containers of a pod to stop",
}


def _budgets_of(taskrun: TaskRun) -> tuple[BudgetReport, ...]:
    charged, limit = taskrun.status.counts.charged, taskrun.spec.cleanup.budget
    budgets = tuple(_run_budget_of(taskrun, one) for one in FAILURES)
    if waited := amount(charged, Budget.NOT_READY):
        allowed = taskrun.spec.retry.budgets.not_ready
        waits = BudgetReport(name=Budget.NOT_READY, charged=waited, allowed=allowed, used_up=waited >= allowed)
        budgets = (*budgets, waits)
    if taskrun.status.ending is None and not charged.cleanup:
        return budgets
    used_up = charged.cleanup >= limit
    return (*budgets, BudgetReport(name=Budget.CLEANUP, charged=charged.cleanup, allowed=limit, used_up=used_up))


def _run_budget_of(taskrun: TaskRun, budget: Budget) -> BudgetReport:
    charged = amount(taskrun.status.counts.charged, budget)
    allowed = allowed_ends(taskrun.spec, budget)
    return BudgetReport(
        name=budget.value,
        charged=charged,
        allowed=allowed,
        granted=0 if budget is Budget.APPLICATION else count_continues(taskrun.spec),
        used_up=charged > allowed,
    )


# -- external jobs, and what was decided about them ------------------------------------------------


def _jobs_of(snapshot: Snapshot) -> tuple[JobReport, ...]:
    # Only the status shows which jobs were left at the end of the run: the state is not written any
    # more then.
    status = snapshot.taskrun.status
    final = {job_id(job): job.state for job in status.external_jobs if job.state in UNWATCHED}
    newest = with_jobs(status, snapshot.state) if snapshot.state is not None else status
    states = {job_id(job): job.state for job in newest.external_jobs} | final
    stories = []
    for job in snapshot.jobs:
        submission = snapshot.submission_of(job)
        shown = states.get(job_id(job), job.state.value)
        stories.append(
            JobReport(
                key=job.key,
                generation=job.generation,
                state=shown,
                adapter=job.adapter,
                handle=job.handle,
                url=job.url,
                submitted_time=_submitted_time_of(job, submission),
                handle_time=job.submitted_time,
                submitted_by_attempt=job.submitted_by_attempt,
                detached=job.detached,
                held=job.held,
                why=_origin_of(job, submission),
                message=job.message,
                strays=job.strays,
                cancel_requested_time=job.cancel_requested_time,
            )
        )
    return tuple(stories)


def _submitted_time_of(job: JobSummary, submission: JobSubmission | None) -> datetime | None:
    """Return when the submission of the job began; None if it is not known or not ours.

    `JobSummary.submitted_time` is the time when the handle was stored, which can be minutes later.
    """
    if submission is None or job.handle is None or not submission.submitters:
        return None
    if job.preexisting:
        return None
    if job.origin in {JobOrigin.RESUBMITTED, JobOrigin.REPORTED}:
        times = [time for attempt, time in submission.submitters if attempt == job.submitted_by_attempt]
        return times[-1] if times else submission.intended_time
    return submission.intended_time


def _origin_of(job: JobSummary, submission: JobSubmission | None) -> str:
    by = _attempt_name(job.submitted_by_attempt)
    first = by if submission is None else _attempt_name(submission.intended_by_attempt)
    match job.origin:
        case JobOrigin.SUBMITTED:
            return f"submitted by {by}"
        case JobOrigin.RESUBMITTED:
            return f"the result of its first submission was unknown; submitted again by {by}, which was safe"
        case JobOrigin.EXISTED if job.preexisting:
            return f"the external system already had it when {first} submitted it for the first time, so {first} did not create it"
        case JobOrigin.EXISTED:
            again = f" by attempt {submission.submitters[-1][0]}" if submission and submission.submitters else ""
            return (
                f"the result of the submission by {first} was unknown; submitted again{again}, and the external system "
                "already had it"
            )
        case JobOrigin.FOUND:
            return f"the result of the submission by {first} was unknown; a lookup found the job"
        case JobOrigin.REPORTED:
            return f"the result of its submission was unknown; {by}, which was replaced in the meantime, reported the handle"
        case JobOrigin.ADOPTED if submission is not None and not submission.submitters:
            return "spec.adopt names it"
        case JobOrigin.ADOPTED:
            return "a resolution names it (resolve --adopt)"
        case None if is_unresolved(job):
            unknown = "it is unknown whether it did" if job.held else "its handle is not recorded yet"
            return f"{first} was about to submit it; {unknown}"
        case None:
            return ""


def _attempt_name(number: int | None) -> str:
    return "an attempt" if number is None else f"attempt {number}"


def _decisions_of(snapshot: Snapshot) -> tuple[str, ...]:
    taskrun = snapshot.taskrun
    origins = [(job, _origin_of(job, snapshot.submission_of(job))) for job in snapshot.jobs]
    sentences = [f"{job_name(job, snapshot.jobs)}: {origin}." for job, origin in origins if origin]
    sentences += [
        f"{job_name(job, snapshot.jobs)}: {listed(job.strays)} {'was' if len(job.strays) == 1 else 'were'} reported for the same "
        f"submission. Check {'it' if len(job.strays) == 1 else 'them'} in the external system: no TaskRun watches "
        f"{'it' if len(job.strays) == 1 else 'them'}."
        for job in snapshot.jobs
        if job.strays
    ]
    for number, one in enumerate(taskrun.spec.resolutions, start=1):
        about = "" if one.key is None else f" of {one.key}, generation {one.generation}"
        what = f"{one.action} {one.handle}" if one.handle else one.action
        sentences.append(f"Resolution {number}, for {one.held}{about}: {what}.")
    sentences += (*describe_request(snapshot), *describe_cancellations(snapshot), *describe_left(snapshot))
    before = find_condition(taskrun.status.conditions, ConditionType.PREDECESSOR_ORPHANED)
    if before is not None and before.status == "True":
        sentences.append(one_line(before.message))
    counts = taskrun.status.counts
    if counts.submissions or counts.reattachments or counts.duplicates_averted:
        sentences.append(
            f"So far {count(counts.submissions, 'submission')}, {count(counts.reattachments, 'reattachment')}, "
            f"{count(counts.duplicates_averted, 'duplicate')} averted."
        )
    if counts.preexisting_jobs:
        existed = f"{count(counts.preexisting_jobs, 'external job')} existed before the first submission"
        sentences.append(f"{existed}: another TaskRun with the same idempotency key may have submitted it.")
    return tuple(sentences)
