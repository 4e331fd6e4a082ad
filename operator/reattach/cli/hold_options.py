"""What a TaskRun is held for, whether a person has answered already, and what may be answered. Pure.

The n-th resolution for a thing answers the n-th time that it was held, so none is used twice. How that is counted is the planner's to say.
"""

import shlex
from collections.abc import Sequence

from reattach.api.objects import Condition, Shape
from reattach.api.reasons import Budget, ConditionType, Reason
from reattach.api.state import JobState, JobSummary
from reattach.api.taskrun import Resolution, TaskRun, TaskRunSpec, TaskRunStatus
from reattach.cli.text import count
from reattach.planner import holds as planned
from reattach.planner.budgets import amount
from reattach.planner.outcome import natural_outcome

RESOLUTIONS_MAX = 64
ANSWERS: dict[str, tuple[str, ...]] = {
    Reason.SUBMISSION_UNKNOWN: ("Adopt", "Resubmit", "Fail"),
    Reason.STATE_LOST: ("StartEmpty", "Fail"),
    Reason.BUDGET_EXHAUSTED: ("Continue", "Fail"),
}
FLAGS = {
    "Adopt": "--adopt",
    "Resubmit": "--resubmit",
    "Fail": "--fail",
    "StartEmpty": "--start-empty",
    "Continue": "--continue",
}


class Way(Shape, frozen=True):
    """Something that a person can do: a command, and what comes of it."""

    command: str
    what: str


class OpenHold(Shape, frozen=True):
    """One thing that needs a person. `key` and `generation` with SubmissionUnknown alone; `answer` if it was answered already."""

    held: str
    message: str = ""
    key: str | None = None
    generation: int | None = None
    handle: str | None = None
    answer: Resolution | None = None

    @property
    def name(self) -> str:
        """As a part of a sentence."""
        if self.key is None:
            return self.held
        return f"{self.held} of external job {shlex.quote(self.key)}, generation {self.generation}"


def held_condition_of(status: TaskRunStatus) -> Condition | None:
    """The condition Held, while it is True."""
    found = (one for one in status.conditions if one.type == ConditionType.HELD and one.status == "True")
    return next(found, None)


def holds_of(taskrun: TaskRun, jobs: Sequence[JobSummary]) -> tuple[OpenHold, ...]:
    """All that needs a person, answered or not. `jobs` are those of the state itself, which counts how often each was held."""
    condition = held_condition_of(taskrun.status)
    reason = "" if condition is None else condition.reason
    holds = [hold for job in jobs if (hold := _hold_of_job(taskrun, job, reason)) is not None]
    if condition is not None and reason == Reason.STATE_LOST:
        holds.append(_hold_of_lost_state(taskrun, condition))
    if condition is not None and reason == Reason.BUDGET_EXHAUSTED:
        holds.append(_hold_of_budget(taskrun, condition))
    return tuple(holds)


def is_unresolved(job: JobSummary) -> bool:
    """Whether it was about to be submitted, and nobody knows whether it was."""
    return job.state in {JobState.INTENDED, JobState.UNKNOWN} and job.handle is None


def continues_of(spec: TaskRunSpec) -> int:
    """How often a person granted the budgets once more."""
    return sum(one.held == Reason.BUDGET_EXHAUSTED and one.action == "Continue" for one in spec.resolutions)


def allowance_of(spec: TaskRunSpec, budget: Budget) -> int:
    """How many ends a budget allows, with what was granted by Continue."""
    allowed = amount(spec.retry.budgets, budget)
    if budget is Budget.APPLICATION:
        return allowed
    return allowed + continues_of(spec) * (allowed + 1)


def _hold_of_job(taskrun: TaskRun, job: JobSummary, reason: str) -> OpenHold | None:
    # An intent that the end of the run came upon is held by the operator, without the task having asked for a person.
    found_at_end = reason == Reason.SUBMISSION_UNKNOWN and is_unresolved(job)
    if not job.held and not found_at_end:
        return None
    return OpenHold(
        held=Reason.SUBMISSION_UNKNOWN.value,
        message=job.message,
        key=job.key,
        generation=job.generation,
        handle=job.handle,
        answer=planned.resolution_at_end(taskrun.spec, job),
    )


def _hold_of_lost_state(taskrun: TaskRun, condition: Condition) -> OpenHold:
    given = [one for one in taskrun.spec.resolutions if one.held == Reason.STATE_LOST]
    number = taskrun.status.counts.state_losses
    answer = given[number] if len(given) > number else None
    return OpenHold(held=Reason.STATE_LOST.value, message=condition.message, answer=answer)


def _hold_of_budget(taskrun: TaskRun, condition: Condition) -> OpenHold:
    given = [one for one in taskrun.spec.resolutions if one.held == Reason.BUDGET_EXHAUSTED]
    spent, is_failed = planned.exhausted_budget(taskrun.spec, taskrun.status.counts)
    is_answered = is_failed or spent not in {Budget.DISRUPTION, Budget.NEVER_STARTED}
    answer = given[-1] if given and is_answered else None
    return OpenHold(held=Reason.BUDGET_EXHAUSTED.value, message=condition.message, answer=answer)


# -- what may be answered, and what comes of it ---------------------------------------------------------------------


def ways_of(taskrun: TaskRun, hold: OpenHold) -> tuple[Way, ...]:
    """The commands that answer, each with what comes of it."""
    return tuple(
        Way(command=command_of(taskrun, hold, action), what=consequence_of(taskrun, hold, action))
        for action in ANSWERS[hold.held]
    )


def command_of(taskrun: TaskRun, hold: OpenHold, action: str) -> str:
    """The command that gives this answer; with Adopt, HANDLE is for the person to fill in."""
    words = ["kubectl", "reattach", "resolve", taskrun.metadata.name, "-n", taskrun.metadata.namespace]
    if hold.key is not None:
        words += ["--key", hold.key, "--generation", str(hold.generation)]
    words.append(FLAGS[action])
    return shlex.join([*words, "HANDLE"] if action == "Adopt" else words)


def consequence_of(taskrun: TaskRun, hold: OpenHold, action: str, handle: str = "HANDLE") -> str:
    """What happens after this answer, in one or two sentences."""
    name = taskrun.metadata.name
    is_wanted = taskrun.spec.cancel or taskrun.metadata.deletion_timestamp is not None
    about_a_job = hold.held == Reason.SUBMISSION_UNKNOWN
    ending = is_wanted or (about_a_job and natural_outcome(taskrun.spec, taskrun.status) is not None)
    match action:
        case "Adopt" if ending:
            return f"{handle} is the job that was submitted. {name} ends, and names it as left running."
        case "Adopt":
            return f"{handle} is the job that was submitted. The next attempt takes it over and watches it."
        case "Resubmit" if ending:
            return f"The submission is taken as never made. {name} ends; a job that runs all the same is nobody's."
        case "Resubmit" if hold.handle is not None:
            return (
                f"The job {hold.handle} is given up, and the next attempt submits a new one, as generation "
                f"{(hold.generation or 0) + 1}. If the old one runs after all, there are two."
            )
        case "Resubmit":
            return (
                "The next attempt submits it again, under the same submission token. If the first submission arrived after all, and the "
                "other side does not know the token again, there are two jobs."
            )
        case "Fail" if ending:
            return f"The submission is taken as failed. {name} ends; a job that runs all the same is nobody's."
        case "StartEmpty":
            return "The next attempt begins with an empty state. It knows of no external job: one that still runs is submitted a second time."
        case "Continue":
            budgets = taskrun.spec.retry.budgets
            lost, unstarted = count(budgets.disruption + 1, "more time"), count(budgets.never_started + 1, "more time")
            return f"Pods may be lost {lost}, and not start {unstarted}. The next attempt takes over the job that runs."
        case _:
            return f"{name} ends as Failed, and no further attempt is made. A job that runs goes on, and nobody watches it."
