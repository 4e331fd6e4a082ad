"""Holds of a TaskRun, the resolutions that they have, and the resolutions that they take. Pure.

The n-th resolution for a job or reason settles its n-th hold, so none is used twice. The planner
counts them.
"""

from collections.abc import Sequence

from reattach.api.objects import Condition, Shape
from reattach.api.reasons import Budget, ConditionType, Reason
from reattach.api.state import JobState, JobSummary
from reattach.api.taskrun import Resolution, TaskRun, TaskRunSpec, TaskRunStatus
from reattach.api.text import shell_command, shell_word
from reattach.cli.text import count
from reattach.planner import holds as planned
from reattach.planner.budgets import amount
from reattach.planner.conditions import find_condition
from reattach.planner.outcome import natural_outcome

RESOLUTIONS_MAX = 64
ACTIONS: dict[str, tuple[str, ...]] = {
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


class ResolutionOption(Shape, frozen=True):
    """A command that you can run, and what happens then."""

    command: str
    what: str


class OpenHold(Shape, frozen=True):
    """One hold.

    Only SubmissionUnknown has `key` and `generation`; `answer` is its resolution, if it has one.
    `running`: the job is known to run, and the task has another request for it.
    """

    held: str
    message: str = ""
    key: str | None = None
    generation: int | None = None
    handle: str | None = None
    running: bool = False
    answer: Resolution | None = None

    @property
    def name(self) -> str:
        """Return the hold as a part of a sentence."""
        if self.key is None:
            return self.held
        return f"{self.held} of external job {shell_word(self.key)}, generation {self.generation}"


def find_held_condition(status: TaskRunStatus) -> Condition | None:
    """Return the condition Held while it is True."""
    condition = find_condition(status.conditions, ConditionType.HELD)
    return condition if condition is not None and condition.status == "True" else None


def find_effective_hold(taskrun: TaskRun) -> Condition | None:
    """Return the condition Held while it is True, and the run can't continue or end because of it.

    If its end is requested, a run needs no resolution for a lost state, a budget or a restored
    object. The operator then ends the run, and sets the condition to False.
    """
    condition = find_held_condition(taskrun.status)
    is_over = condition is not None and is_ending(taskrun) and condition.reason in _ENDED_BY_REQUEST
    return None if is_over else condition


def is_ending(taskrun: TaskRun) -> bool:
    """Return whether the run has begun to end, or its end is requested."""
    is_requested = taskrun.spec.cancel or taskrun.metadata.deletion_timestamp is not None
    return is_requested or taskrun.status.ending is not None


_ENDED_BY_REQUEST = frozenset(
    {Reason.STATE_LOST, Reason.BUDGET_EXHAUSTED, Reason.STATE_SOURCE_UNAVAILABLE, Reason.RESTORED}
)


def find_holds(taskrun: TaskRun, jobs: Sequence[JobSummary]) -> tuple[OpenHold, ...]:
    """Return all holds, with and without a resolution.

    `jobs` come from the state, which counts their holds.
    """
    condition = find_effective_hold(taskrun)
    reason = "" if condition is None else condition.reason
    holds = [hold for job in jobs if (hold := _hold_of_job(taskrun, job, reason)) is not None]
    if condition is not None and reason == Reason.STATE_LOST:
        holds.append(_hold_of_lost_state(taskrun, condition))
    if condition is not None and reason == Reason.BUDGET_EXHAUSTED:
        holds.append(_hold_of_budget(taskrun, condition))
    return tuple(holds)


def is_unresolved(job: JobSummary) -> bool:
    """Return whether it is unknown that the job was submitted."""
    return job.state in {JobState.INTENDED, JobState.UNKNOWN} and job.handle is None


def count_continues(spec: TaskRunSpec) -> int:
    """Return how many resolutions granted the budgets again."""
    return sum(one.held == Reason.BUDGET_EXHAUSTED and one.action == "Continue" for one in spec.resolutions)


def allowed_ends(spec: TaskRunSpec, budget: Budget) -> int:
    """Return how many ends a budget allows, including what Continue granted."""
    allowed = amount(spec.retry.budgets, budget)
    if budget is Budget.APPLICATION:
        return allowed
    return allowed + count_continues(spec) * (allowed + 1)


def _hold_of_job(taskrun: TaskRun, job: JobSummary, reason: str) -> OpenHold | None:
    # At the end of a run the operator also holds an unresolved intent that the task did not hold.
    found_at_end = reason == Reason.SUBMISSION_UNKNOWN and is_unresolved(job)
    if not job.held and not found_at_end:
        return None
    return OpenHold(
        held=Reason.SUBMISSION_UNKNOWN.value,
        message=job.message,
        key=job.key,
        generation=job.generation,
        handle=job.handle,
        running=job.handle is not None and job.state is not JobState.NOT_FOUND,
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


# -- resolutions, and what happens then ------------------------------------------------------------


def options_for(taskrun: TaskRun, hold: OpenHold) -> tuple[ResolutionOption, ...]:
    """Return the commands that resolve this hold, each with what happens then."""
    return tuple(
        ResolutionOption(
            command=resolve_command(taskrun, hold, action), what=describe_consequence(taskrun, hold, action)
        )
        for action in ACTIONS[hold.held]
    )


def resolve_command(taskrun: TaskRun, hold: OpenHold, action: str) -> str:
    """Return the command for this resolution; with Adopt, you replace HANDLE."""
    words = ["kubectl", "reattach", "resolve", taskrun.metadata.name, "-n", taskrun.metadata.namespace]
    if hold.key is not None:
        words += ["--key", hold.key, "--generation", str(hold.generation)]
    words.append(FLAGS[action])
    return shell_command([*words, "HANDLE"] if action == "Adopt" else words)


def describe_consequence(taskrun: TaskRun, hold: OpenHold, action: str, handle: str = "HANDLE") -> str:
    """Return what happens after this resolution, in one or two sentences."""
    name = taskrun.metadata.name
    about_a_job = hold.held == Reason.SUBMISSION_UNKNOWN
    ending = is_ending(taskrun) or (about_a_job and natural_outcome(taskrun.spec, taskrun.status) is not None)
    match action:
        case "Adopt" if ending:
            return f"{handle} is the job that was submitted. {name} ends and lists it as left running."
        case "Adopt":
            return f"{handle} is the job that was submitted. The next attempt reattaches to it."
        case "Fail" | "Resubmit" if ending and hold.running:
            return (
                f"{name} ends. The policies in spec.cleanup decide what happens to the job {hold.handle}, which runs."
            )
        case "Resubmit" if hold.running:
            return (
                f"The next attempt submits a second job, as generation {(hold.generation or 0) + 1}, beside the job {hold.handle}, which "
                f"runs on. {name} lists that one as left running when it ends."
            )
        case "Resubmit" if ending:
            return f"The submission counts as never made. {name} ends; if the job does run, nothing tracks it."
        case "Resubmit" if hold.handle is not None:
            return (
                f"The next attempt submits a new job, as generation {(hold.generation or 0) + 1}, and the job {hold.handle} is no "
                "longer tracked. If the old job still runs, there are two."
            )
        case "Resubmit":
            return (
                "The next attempt submits the job again, with the same submission token. If the first submission did arrive, and the "
                "external system does not recognize the token, there are two jobs."
            )
        case "Fail" if ending:
            return f"The submission counts as failed. {name} ends; if the job does run, nothing tracks it."
        case "StartEmpty":
            return "The next attempt starts with an empty state. It knows no external job: a job that still runs is submitted a second time. Check the external system first."
        case "Continue":
            budgets = taskrun.spec.retry.budgets
            lost, unstarted = count(budgets.disruption + 1, "more time"), count(budgets.never_started + 1, "more time")
            return f"The budgets allow that pods are lost {lost} and don't start {unstarted}. The next attempt reattaches to the running job."
        case "Fail" if hold.running or hold.held == Reason.BUDGET_EXHAUSTED:
            return f"{name} ends as Failed, without another attempt. {_describe_failure_policy(taskrun)}"
        case _:
            return f"{name} ends as Failed, without another attempt. If a job runs, it continues and nothing tracks it."


def _describe_failure_policy(taskrun: TaskRun) -> str:
    if taskrun.spec.cleanup.on_failure == "Orphan":
        return "Its external jobs are left running, because spec.cleanup.onFailure is Orphan."
    return "A cleanup attempt cancels its external jobs, if the task registered a way to clean up."
