"""What a TaskRun is held for, and what people answered. The n-th answer to a thing answers its n-th hold, so none is used twice.

A job's `holds` is the number of the answer that its newest hold waits for.
"""

import shlex
from datetime import datetime

from reattach.api.reasons import SENTENCES, Budget, ConditionType, Outcome, Reason
from reattach.api.state import JobState, JobSummary
from reattach.api.taskrun import Counts, Resolution, TaskRunSpec, TaskRunStatus
from reattach.planner import conditions as statuses
from reattach.planner import external_jobs, textformat
from reattach.planner.budgets import exhausted
from reattach.planner.context import DecisionContext
from reattach.planner.plan import EmitEvent, Plan

ADOPT, RESUBMIT, FAIL, START_EMPTY = "Adopt", "Resubmit", "Fail", "StartEmpty"

NAMED_BYTES_MAX = 400
"""Of what is held, so that how to answer it is never cut off."""


def hold(look: DecisionContext, reason: Reason, message: str, again: datetime | None = None) -> Plan:
    """Wait for a person, and say so once."""
    return with_hold(look, reason, message).plan(again=again, held=True)


def with_hold(look: DecisionContext, reason: Reason, message: str) -> DecisionContext:
    """The look after it is written that the TaskRun waits for a person."""
    before, message = statuses.condition_of(look.status, ConditionType.HELD), textformat.start_of(message)
    if before is not None and statuses.is_held(look.status, reason) and before.message == message:
        return look
    said = EmitEvent(reason.value, message, warning=True)
    return look.with_status(statuses.with_hold(look.status, reason, message, look.now), said)


# -- jobs whose submission nobody can tell of ------------------------------------------------------------------------


def answer_to(spec: TaskRunSpec, job: JobSummary) -> Resolution | None:
    """What a person answered to the newest hold of this job."""
    given = _answers(spec, Reason.SUBMISSION_UNKNOWN, job)
    return given[job.holds - 1] if 0 < job.holds <= len(given) else None


def answer_at_end(spec: TaskRunSpec, job: JobSummary) -> Resolution | None:
    """What a person answered to what the end of the run asks about this job: its newest hold, or one more if that was used."""
    if not job.held and job.handle is not None:
        return None
    given = _answers(spec, Reason.SUBMISSION_UNKNOWN, job)
    number = job.holds if job.held else job.holds + 1
    return given[number - 1] if 0 < number <= len(given) else None


def unanswered(look: DecisionContext) -> tuple[JobSummary, ...]:
    """The jobs that no attempt can go on with before a person has answered."""
    return tuple(job for job in look.jobs if job.held and answer_to(look.spec, job) is None)


def failed(look: DecisionContext) -> JobSummary | None:
    """The job of which a person said that the run fails with it, when it was held."""
    answers = ((job, answer_to(look.spec, job)) for job in look.jobs)
    return next((job for job, answer in answers if answer is not None and answer.action == FAIL), None)


def question_about(look: DecisionContext, waiting: tuple[JobSummary, ...]) -> str:
    """What people are asked about these jobs."""
    names = textformat.start_of(", ".join(_described(job) for job in waiting), NAMED_BYTES_MAX)
    first = waiting[0]
    flags = f"--key {shlex.quote(first.key)} --generation {first.generation} --adopt HANDLE | --resubmit | --fail"
    about = f"held: SubmissionUnknown, key: {first.key}, generation: {first.generation}"
    answer = f"{{{about}, action: Adopt, handle: …}}, or with action Resubmit or Fail"
    return f"{SENTENCES[Reason.SUBMISSION_UNKNOWN]} External job {names}.{_how_to_answer(look, flags, answer)}"


def _described(job: JobSummary) -> str:
    why = "the other side does not know it" if job.state is JobState.NOT_FOUND else "it may have been submitted"
    return f"{external_jobs.name_of(job)}: {job.message.rstrip('.') or why}"


def _answers(spec: TaskRunSpec, held: Reason, job: JobSummary | None = None) -> tuple[Resolution, ...]:
    about = (None, None) if job is None else external_jobs.id_of(job)
    return tuple(one for one in spec.resolutions if one.held == held and (one.key, one.generation) == about)


def _how_to_answer(look: DecisionContext, flags: str, answer: str) -> str:
    command = f"kubectl reattach resolve {look.about.name} -n {look.about.namespace} {flags}"
    return f" To answer: {command}; that appends {answer}, to spec.resolutions."


# -- a state that is lost --------------------------------------------------------------------------------------------


def question_about_loss(look: DecisionContext) -> str:
    """What people are asked when the state is lost."""
    answer = "{held: StateLost, action: StartEmpty}, or with action Fail"
    how = _how_to_answer(look, "--start-empty | --fail", answer)
    return f"{SENTENCES[Reason.STATE_LOST]} Look for external jobs that it may have left running.{how}"


def answer_to_loss(spec: TaskRunSpec, status: TaskRunStatus) -> str | None:
    """What a person answered to the loss that the TaskRun is held for."""
    given = _answers(spec, Reason.STATE_LOST)
    losses = status.counts.state_losses
    return given[losses].action if statuses.is_held_for_good(status) and losses < len(given) else None


# -- budgets ---------------------------------------------------------------------------------------------------------


def spent_budget(spec: TaskRunSpec, counts: Counts) -> tuple[Budget | None, bool]:
    """The budget that is used up in spite of what people granted, and whether they said that the run fails of it.

    Only `disruption` and `neverStarted` can be granted once more: the others say something about the task.
    """
    budgets, grants = spec.retry.budgets, 0
    for answer in _answers(spec, Reason.BUDGET_EXHAUSTED):
        spent = exhausted(counts, budgets, grants)
        if spent in {None, Budget.APPLICATION}:
            return spent, False
        if answer.action == FAIL:
            return spent, True
        grants += 1
    return exhausted(counts, budgets, grants), False


def is_held_by_budget(spec: TaskRunSpec, status: TaskRunStatus) -> bool:
    """Whether no pod may be made until a person grants more, while an external job goes on."""
    spent, is_failed = spent_budget(spec, status.counts)
    is_grantable = spent in {Budget.DISRUPTION, Budget.NEVER_STARTED}
    return is_grantable and not is_failed and any(external_jobs.is_open(job) for job in status.external_jobs)


def question_about_budget(look: DecisionContext) -> str:
    """What people are asked when a budget is used up."""
    spent, _ = spent_budget(look.spec, look.status.counts)
    running = ", ".join(external_jobs.name_of(job) for job in look.status.external_jobs if external_jobs.is_open(job))
    what = f"The budget {spent} is used up; external job {textformat.start_of(running, NAMED_BYTES_MAX)}."
    answer = "{held: BudgetExhausted, action: Continue}, which grants it once more, or with action Fail"
    return f"{SENTENCES[Reason.BUDGET_EXHAUSTED]} {what}{_how_to_answer(look, '--continue | --fail', answer)}"


def by_resolution(what: str) -> tuple[Outcome, Reason, str]:
    """How a TaskRun ends of which a person said that it fails."""
    reason = Reason.FAILED_BY_RESOLUTION
    return Outcome.FAILED, reason, f"{SENTENCES[reason]} It was held for {what}."
