"""What comes next, and what a person can do about it. Pure."""

from collections.abc import Sequence
from datetime import timedelta

from reattach.api.names import FINALIZER_EXTERNAL_JOBS, OPERATOR_NAME, pod_name
from reattach.api.reasons import SENTENCES, Budget, Reason
from reattach.api.state import JobState, JobSummary
from reattach.api.taskrun import TaskRun
from reattach.cli.hold_options import (
    OpenHold,
    Way,
    allowance_of,
    consequence_of,
    held_condition_of,
    is_unresolved,
    ways_of,
)
from reattach.cli.snapshot import Snapshot, job_name
from reattach.cli.text import ago, clock, count, duration, listed
from reattach.planner.budgets import amount
from reattach.planner.conditions import last_end_of
from reattach.planner.holds import is_held_by_budget
from reattach.planner.outcome import conclusion_of

_WAIT_BEFORE_WORRY = timedelta(seconds=30)


# -- what comes next -------------------------------------------------------------------------------


def next_of(situation: Snapshot, holds: Sequence[OpenHold]) -> tuple[str, ...]:
    """What happens without anybody's doing; sentences."""
    taskrun, status = situation.taskrun, situation.taskrun.status
    if status.outcome is not None:
        return _after_the_end(situation)
    if taskrun.spec.managed_by != OPERATOR_NAME:
        return (f"It is managed by {taskrun.spec.managed_by}: Reattach's operator leaves it alone.",)
    if unanswered := [hold for hold in holds if hold.answer is None]:
        names = listed([hold.name for hold in unanswered])
        return (f"Nothing, until a person answers {names}.", *_while_held(situation))
    if holds:
        return tuple(
            f"{hold.name} was answered with {hold.answer.action}: {_after_answer(taskrun, hold, hold.answer.action)}"
            for hold in holds
            if hold.answer is not None
        )
    if held_condition_of(status) is not None:
        return ("Nothing, until a person has done what is said below.",)
    if taskrun.metadata.deletion_timestamp is not None or taskrun.spec.cancel:
        return _while_ending(situation)
    return _while_it_goes(situation)


def _after_answer(taskrun: TaskRun, hold: OpenHold, action: str) -> str:
    handle = hold.answer.handle if hold.answer and hold.answer.handle else "HANDLE"
    return consequence_of(taskrun, hold, action, handle)


def _while_held(situation: Snapshot) -> tuple[str, ...]:
    goes_on = {JobState.ACTIVE, JobState.UNKNOWN}
    if not (alive := [job for job in situation.open_jobs if job.handle is not None and job.state in goes_on]):
        return ("No pod runs meanwhile.",)
    return (f"No pod runs meanwhile; {_named(alive)} goes on over there.",)


def _while_ending(situation: Snapshot) -> tuple[str, ...]:
    taskrun = situation.taskrun
    deleted = taskrun.metadata.deletion_timestamp is not None
    said = []
    if alive := [pod.metadata.name for pod in situation.pods if pod.status.phase in {"Pending", "Running"}]:
        said.append(f"Its pod {listed(alive)} is being ended.")
    seal = situation.state.seal if situation.state else None
    if seal is None and situation.open_jobs:
        said.append("Its state is sealed, so that no attempt can submit any more.")
    if unresolved := [job for job in situation.open_jobs if is_unresolved(job)]:
        said.append(
            f"If nobody can tell by then whether {_named(unresolved)} was submitted, it waits for a person's answer."
        )
    if known := [job for job in situation.open_jobs if not is_unresolved(job)]:
        said.append(f"{_named(known)} is left running over there, and named in an event and in the condition Orphaned.")
    finalizers = [name for name in taskrun.metadata.finalizers if name != FINALIZER_EXTERNAL_JOBS]
    if deleted and finalizers:
        said.append(f"It also waits for {listed(finalizers)}, which is not Reattach's.")
    said.append("Then it is gone." if deleted else "Then it ends as Cancelled.")
    return tuple(said)


def _after_the_end(situation: Snapshot) -> tuple[str, ...]:
    status = situation.taskrun.status
    said = ["Nothing: it is over. To run it again, create another TaskRun."]
    orphans = [one for one in status.external_jobs if one.state == JobState.ORPHANED]
    if orphans:
        named = listed([f"{one.handle or 'a job without a known handle'} ({one.key})" for one in orphans])
        said.append(f"Left running, and watched by nobody: {named}. End what you don't need over there.")
    return tuple(said)


def _while_it_goes(situation: Snapshot) -> tuple[str, ...]:
    shown = situation.progress
    match shown.reason if shown else "":
        case "":
            return _before_the_first_look(situation)
        case Reason.BACKING_OFF:
            return _while_backing_off(situation)
        case Reason.ENDING if last_end_of(situation.taskrun.status) is not None:
            return _after_the_attempt(situation)
        case Reason.RUNNING | Reason.ENDING:
            return _completed(situation) or _while_running(situation)
        case Reason.PENDING:
            seconds = timedelta(seconds=situation.taskrun.spec.deadlines.pending_seconds)
            sentence = (
                f"The task starts when its container runs. If the container does not run within {duration(seconds)} "
                f"(spec.deadlines.pendingSeconds), the attempt ends as NeverStarted, and{_then(situation, Budget.NEVER_STARTED)[1:]}"
            )
            return (sentence,)
        case Reason.WAITING_FOR_GATES:
            return (
                "When whoever set the gates removes them, the pod is scheduled. Until then no clock runs and no attempt is used.",
            )
        case Reason.QUOTA_EXCEEDED | Reason.POD_REFUSED:
            return (
                "The pod is asked for again and again, until the API server accepts it. No attempt is used meanwhile.",
            )
        case Reason.POD_NAME_TAKEN:
            return ("When the other pod is deleted, the attempt begins. No attempt is used meanwhile.",)
        case reason:
            sentence = SENTENCES.get(Reason(reason), "") if reason in set(Reason) else ""
            return (sentence,) if sentence else ()


def _before_the_first_look(situation: Snapshot) -> tuple[str, ...]:
    about = situation.taskrun.metadata
    age = situation.now - about.creation_timestamp if about.creation_timestamp else timedelta()
    if situation.pods or age < _WAIT_BEFORE_WORRY:
        return ("The operator makes the first pod, and tells more once that has run for two seconds.",)
    return (
        (
            f"It was created {duration(age)} ago, and no operator has looked at it. Is Reattach's operator running, and does it serve the "
            f"namespace {about.namespace}?"
        ),
    )


def _while_backing_off(situation: Snapshot) -> tuple[str, ...]:
    status, now = situation.taskrun.status, situation.now
    number, time = status.counts.attempts + 1, status.next_attempt_time
    if time is None or time <= now:
        return (f"Attempt {number} starts now.", *_reattaches(situation))
    return (f"Attempt {number} starts in {duration(time - now)}, at {clock(time)}.", *_reattaches(situation))


def _reattaches(situation: Snapshot) -> tuple[str, ...]:
    jobs = situation.open_jobs
    if alive := [job for job in jobs if job.handle is not None]:
        return (f"It takes over {_named(alive)}, and submits nothing.",)
    if jobs:
        return (f"It finds out first whether {_named(jobs)} was submitted.",)
    return ()


def _completed(situation: Snapshot) -> tuple[str, ...]:
    completion = situation.state.completion if situation.state else None
    current = situation.taskrun.status.counts.attempts
    if completion is None or completion.attempt < current or situation.taskrun.spec.completion == "ExitCode":
        return ()
    when = ago(completion.time, situation.now)
    return (
        f"Attempt {completion.attempt} recorded its completion {when}; once its container has ended, the TaskRun has succeeded.",
    )


def _while_running(situation: Snapshot) -> tuple[str, ...]:
    return (
        f"If the task fails{_then(situation, Budget.APPLICATION)}",
        f"If its pod is lost{_then(situation, Budget.DISRUPTION)}",
    )


def _then(situation: Snapshot, budget: Budget) -> str:
    """Return the rest of a sentence about an attempt that may end and be charged to this budget."""
    if left := _left(situation, budget):
        return f", the next attempt starts; {count(left, 'retry', 'retries')} left (spec.retry.budgets.{budget})."
    if budget is not Budget.APPLICATION and situation.open_jobs:
        return f", the TaskRun waits for a resolution, because spec.retry.budgets.{budget} is used up while an external job runs."
    return f", the TaskRun fails, because spec.retry.budgets.{budget} allows no more retries."


def _after_the_attempt(situation: Snapshot) -> tuple[str, ...]:
    taskrun, status, now = situation.taskrun, situation.taskrun.status, situation.now
    ended = "The attempt has ended. When the other containers of its pod have stopped, "
    if (final := conclusion_of(taskrun.spec, status)) is not None:
        return (f"{ended}the TaskRun ends as {final.outcome} ({final.reason}).",)
    if is_held_by_budget(taskrun.spec, status):
        return (f"{ended}the TaskRun waits for a resolution, because a budget is used up while an external job runs.",)
    number, time = status.counts.attempts + 1, status.next_attempt_time
    if time is None or time <= now:
        return (f"{ended}attempt {number} starts.", *_reattaches(situation))
    return (f"{ended}attempt {number} starts, but not before {clock(time)}.", *_reattaches(situation))


def _left(situation: Snapshot, budget: Budget) -> int:
    charged = amount(situation.taskrun.status.counts.charged, budget)
    return max(0, allowance_of(situation.taskrun.spec, budget) - charged)


def _named(jobs: Sequence[JobSummary]) -> str:
    return listed([f"{job.handle} ({job_name(job)})" if job.handle else job_name(job) for job in jobs])


# -- what a person can do --------------------------------------------------------------------------


def ways_out_of(situation: Snapshot, holds: Sequence[OpenHold]) -> tuple[Way, ...]:
    """What a person can do where nothing goes on by itself."""
    taskrun, status = situation.taskrun, situation.taskrun.status
    if status.outcome is not None:
        return ()
    ways = [way for hold in holds if hold.answer is None for way in ways_of(taskrun, hold)]
    shown, held = situation.progress, held_condition_of(status)
    name, namespace = taskrun.metadata.name, taskrun.metadata.namespace
    if held is not None and held.reason == Reason.RESTORED:
        ways += [
            Way(
                command=f"kubectl label trun {name} -n {namespace} velero.io/restore-name-",
                what="Run it from the start. Look first for external jobs of the original that still run.",
            ),
            Way(command=f"kubectl delete trun {name} -n {namespace}", what="Give it up."),
        ]
    if held is not None and held.reason == Reason.STATE_UNREADABLE and status.state is not None:
        ways.append(
            Way(
                command=f"kubectl get configmap {status.state.config_map} -n {namespace} -o yaml",
                what="See what is wrong; put right what was changed by hand, or upgrade Reattach. It goes on by itself then.",
            )
        )
    if shown is not None and shown.reason == Reason.POD_NAME_TAKEN:
        ways.append(
            Way(
                command=f"kubectl delete pod {_next_pod_of(taskrun)} -n {namespace}",
                what="Delete the pod that has the name, if you don't need it.",
            )
        )
    if taskrun.metadata.deletion_timestamp is not None and (
        held is not None or FINALIZER_EXTERNAL_JOBS in taskrun.metadata.finalizers
    ):
        ways.append(
            Way(
                command=f"kubectl reattach release {name} -n {namespace}",
                what="Let it go without an answer. What may still run over there is named, and left to you.",
            )
        )
    return tuple(ways)


def _next_pod_of(taskrun: TaskRun) -> str:
    return pod_name(taskrun.metadata.name, taskrun.metadata.uid, taskrun.status.counts.attempts + 1)
