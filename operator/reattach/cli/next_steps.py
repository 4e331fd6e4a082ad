"""Sentences about what happens next, and the commands that you can run. Pure."""

from collections.abc import Sequence
from datetime import timedelta

from reattach.api.names import ANNOTATION_CLEANUP_OF, FINALIZER_EXTERNAL_JOBS, OPERATOR_NAME, pod_name
from reattach.api.reasons import SENTENCES, Budget, ConditionType, Reason
from reattach.api.state import JobState, JobSummary
from reattach.api.taskrun import AttemptPurpose, TaskRun
from reattach.api.text import one_line, shell_command
from reattach.cli.endings import context_of, describe_cleanup, job_list, name_of, outcome_of
from reattach.cli.hold_options import (
    OpenHold,
    ResolutionOption,
    allowed_ends,
    describe_consequence,
    find_effective_hold,
    is_ending,
    options_for,
)
from reattach.cli.snapshot import Snapshot
from reattach.cli.text import ago, clock, count, duration, listed
from reattach.planner.budgets import amount
from reattach.planner.cleanup import running_run_pods
from reattach.planner.conditions import find_condition, last_ended_attempt
from reattach.planner.decide import READ_AGAIN_AFTER
from reattach.planner.holds import is_held_by_budget
from reattach.planner.outcome import FinalOutcome, natural_outcome, requested_outcome

_WAIT_BEFORE_WORRY = timedelta(seconds=30)


# -- what comes next -------------------------------------------------------------------------------


def describe_next_steps(snapshot: Snapshot, holds: Sequence[OpenHold]) -> tuple[str, ...]:
    """Return sentences about what happens next if you do nothing."""
    taskrun, status = snapshot.taskrun, snapshot.taskrun.status
    if status.outcome is not None:
        return _after_the_end(snapshot)
    if taskrun.spec.managed_by != OPERATOR_NAME:
        return (f"Nothing by Reattach's operator: spec.managedBy is {taskrun.spec.managed_by}.",)
    if unresolved_holds := [hold for hold in holds if hold.answer is None]:
        names = listed([hold.name for hold in unresolved_holds])
        return (f"Nothing, until you resolve {names}.", *_while_held(snapshot), *_until_resumed(snapshot))
    if holds:
        resolved = (
            f"The resolution of {hold.name} is {hold.answer.action}. {_after_resolution(taskrun, hold, hold.answer.action)}"
            for hold in holds
            if hold.answer is not None
        )
        return (*resolved, *_until_resumed(snapshot))
    if (condition := find_effective_hold(taskrun)) is not None:
        if condition.reason == Reason.STATE_UNREADABLE:
            return _while_unreadable(snapshot)
        if condition.reason == Reason.STATE_SOURCE_UNAVAILABLE:
            return _while_source_is_unavailable(snapshot)
        return ("Nothing, until you run one of the commands below.",)
    final = outcome_of(snapshot)
    if final is not None and (is_ending(taskrun) or _was_requested(snapshot)):
        return _while_ending(snapshot, final)
    return describe_suspension(snapshot) if taskrun.spec.suspend else _while_unfinished(snapshot)


def _after_resolution(taskrun: TaskRun, hold: OpenHold, action: str) -> str:
    handle = hold.answer.handle if hold.answer and hold.answer.handle else "HANDLE"
    return describe_consequence(taskrun, hold, action, handle)


def _while_held(snapshot: Snapshot) -> tuple[str, ...]:
    goes_on = {JobState.ACTIVE, JobState.UNKNOWN}
    if not (alive := [job for job in snapshot.open_jobs if job.handle is not None and job.state in goes_on]):
        return ("No pod runs until then.",)
    return (f"No pod runs until then; {job_list(alive)} continues in the external system.",)


def _while_unreadable(snapshot: Snapshot) -> tuple[str, ...]:
    every = duration(READ_AGAIN_AFTER)
    if is_ending(snapshot.taskrun):
        return (
            f"The operator stops the pod, and reads the state again every {every}. It ends the TaskRun once it can read the state.",
        )
    return (
        f"The operator reads the state again every {every}. The TaskRun continues once the operator can read the state.",
    )


def _while_source_is_unavailable(snapshot: Snapshot) -> tuple[str, ...]:
    source, every = snapshot.taskrun.spec.state_from, duration(READ_AGAIN_AFTER)
    return (
        f"The operator looks at TaskRun {source} again every {every}. Attempt 1 starts once its state has been copied.",
    )


def _was_requested(snapshot: Snapshot) -> bool:
    """Return whether the deadline of the run has passed, or a resolution fails it."""
    return requested_outcome(context_of(snapshot)) is not None


def describe_suspension(snapshot: Snapshot) -> tuple[str, ...]:
    """Return what happens to the pod and to the external jobs of a suspended run."""
    sentences = [f"The operator deletes its pod {pod}. No budget is charged." for pod in running_pods(snapshot)]
    if jobs := known_jobs(snapshot):
        go_on = "continues" if len(jobs) == 1 else "continue"
        sentences.append(f"{job_list(jobs)} {go_on} in the external system.")
    elif snapshot.is_state_unknown:
        sentences.append("The state can't be read. External jobs that it lists continue in the external system.")
    else:
        sentences.append("No external job runs.")
    return (*sentences, _describe_resume(snapshot.taskrun))


def known_jobs(snapshot: Snapshot) -> tuple[JobSummary, ...]:
    """Return the open jobs that have a handle."""
    return tuple(job for job in snapshot.open_jobs if job.handle is not None)


def _until_resumed(snapshot: Snapshot) -> tuple[str, ...]:
    taskrun = snapshot.taskrun
    is_suspended = taskrun.spec.suspend and not is_ending(taskrun)
    return (_describe_resume(taskrun),) if is_suspended else ()


def _describe_resume(taskrun: TaskRun) -> str:
    return f"No pod starts until you run: {_resume_command(taskrun)}"


def _resume_command(taskrun: TaskRun) -> str:
    return f"kubectl reattach resume {taskrun.metadata.name} -n {taskrun.metadata.namespace}"


def _wake_command(taskrun: TaskRun) -> str:
    return f"kubectl reattach wake {taskrun.metadata.name} -n {taskrun.metadata.namespace}"


def _while_ending(snapshot: Snapshot, final: FinalOutcome) -> tuple[str, ...]:
    taskrun = snapshot.taskrun
    sentences = []
    if alive := running_pods(snapshot):
        sentences.append(f"The operator stops its pod {listed(alive)}.")
    seal = snapshot.state.seal if snapshot.state else None
    if seal is None and snapshot.open_jobs:
        sentences.append("The operator seals its state, so no attempt can submit a job.")
    sentences += describe_cleanup(snapshot, final)
    finalizers = [name for name in taskrun.metadata.finalizers if name != FINALIZER_EXTERNAL_JOBS]
    if final.outcome is None and finalizers:
        sentences.append(f"The TaskRun also waits for the finalizer {listed(finalizers)}, which is not Reattach's.")
    start = "Then the" if sentences else "The"
    how = "is deleted" if final.outcome is None else f"ends as {name_of(final.outcome, final.reason)}"
    sentences.append(f"{start} TaskRun {how}.")
    return tuple(sentences)


def running_pods(snapshot: Snapshot) -> list[str]:
    """Return the names of the pods of run attempts that may run.

    If no pod was read, use the status.
    """
    if not snapshot.pods:
        attempts = [one for one in snapshot.taskrun.status.attempts if one.purpose is AttemptPurpose.RUN]
        return [one.pod_name for one in attempts if one.finish_time is None and one.pod_name]
    return [pod.metadata.name for pod in running_run_pods(context_of(snapshot))]


def _describe_rerun(taskrun: TaskRun) -> str:
    about = taskrun.metadata
    if (source := about.annotations.get(ANNOTATION_CLEANUP_OF)) is not None:
        return f"It only cancelled jobs that {one_line(source)} left, and ran no task."
    command = shell_command(["kubectl", "reattach", "rerun", about.name, "-n", about.namespace])
    return f"To run the task again: {command}"


def _after_the_end(snapshot: Snapshot) -> tuple[str, ...]:
    sentences = [f"Nothing: the run has ended. {_describe_rerun(snapshot.taskrun)}"]
    if detached := _jobs_in_state(snapshot, JobState.DETACHED):
        sentences.append(f"The run did not wait for {detached}, because its task detached it; it may still run.")
    if orphans := _jobs_in_state(snapshot, JobState.ORPHANED):
        sentences.append(
            f"Left running, and no longer watched: {orphans}. Cancel the jobs that you don't need in the external system."
        )
    return tuple(sentences)


def _jobs_in_state(snapshot: Snapshot, state: JobState) -> str:
    jobs = [one for one in snapshot.taskrun.status.external_jobs if one.state == state]
    return listed([f"{one.handle or 'a job without a known handle'} ({one.key})" for one in jobs])


def _while_unfinished(snapshot: Snapshot) -> tuple[str, ...]:
    shown = snapshot.progress
    match shown.reason if shown else "":
        case "":
            return _before_first_status(snapshot)
        case Reason.BACKING_OFF:
            return _while_backing_off(snapshot)
        case Reason.WAITING:
            return (*_while_backing_off(snapshot), f"To check now: {_wake_command(snapshot.taskrun)}")
        case Reason.ENDING if last_ended_attempt(snapshot.taskrun.status) is not None:
            return _after_completion(snapshot) or _after_the_attempt(snapshot)
        case Reason.RUNNING | Reason.ENDING:
            return _after_completion(snapshot) or _while_running(snapshot)
        case Reason.PENDING:
            seconds = timedelta(seconds=snapshot.taskrun.spec.deadlines.pending_seconds)
            sentence = (
                f"The task starts when its container runs. If the container does not run within {duration(seconds)} "
                f"(spec.deadlines.pendingSeconds), the attempt ends as NeverStarted, and{_consequence(snapshot, Budget.NEVER_STARTED)[1:]}"
            )
            return (sentence,)
        case Reason.WAITING_FOR_GATES:
            return (
                "The pod is scheduled when its scheduling gates are removed. Until then no deadline runs and no attempt is used.",
            )
        case Reason.QUOTA_EXCEEDED | Reason.POD_REFUSED:
            return (
                "The operator tries to create the pod until the API server accepts it. No attempt is used until then.",
            )
        case Reason.POD_NAME_TAKEN:
            return ("The attempt starts when the other pod is deleted. No attempt is used until then.",)
        case reason:
            sentence = SENTENCES.get(Reason(reason), "") if reason in set(Reason) else ""
            return (sentence,) if sentence else ()


def _before_first_status(snapshot: Snapshot) -> tuple[str, ...]:
    about = snapshot.taskrun.metadata
    age = snapshot.now - about.creation_timestamp if about.creation_timestamp else timedelta()
    if snapshot.pods or age < _WAIT_BEFORE_WORRY:
        return ("The operator creates the first pod, and writes the status once that pod has run for two seconds.",)
    return (
        (
            f"It was created {duration(age)} ago, and no operator has written its status. Check that Reattach's operator runs "
            f"and that its watchNamespaces include {about.namespace}."
        ),
    )


def _while_backing_off(snapshot: Snapshot) -> tuple[str, ...]:
    status, now = snapshot.taskrun.status, snapshot.now
    number, time = status.counts.attempts + 1, status.next_attempt_time
    if time is None or time <= now:
        return (f"Attempt {number} starts now.", *_describe_reattachment(snapshot))
    return (f"Attempt {number} starts in {duration(time - now)}, at {clock(time)}.", *_describe_reattachment(snapshot))


def _describe_reattachment(snapshot: Snapshot) -> tuple[str, ...]:
    jobs = snapshot.open_jobs
    if alive := [job for job in jobs if job.handle is not None]:
        return (f"The attempt reattaches to {job_list(alive)}, and submits nothing.",)
    if jobs:
        return (f"The attempt first finds out whether {job_list(jobs)} was submitted.",)
    return ()


def _after_completion(snapshot: Snapshot) -> tuple[str, ...]:
    completion = snapshot.state.completion if snapshot.state else None
    current = snapshot.taskrun.status.counts.attempts
    if completion is None or completion.attempt < current or snapshot.taskrun.spec.completion == "ExitCode":
        return ()
    when = ago(completion.time, snapshot.now)
    return (
        f"Attempt {completion.attempt} recorded its completion {when}; the TaskRun succeeds when the container has ended.",
    )


def _while_running(snapshot: Snapshot) -> tuple[str, ...]:
    unmatched = " and no rule in spec.retry.rules matches" if snapshot.taskrun.spec.retry.rules else ""
    return (
        f"If the task fails{unmatched}{_consequence(snapshot, Budget.APPLICATION)}",
        f"If its pod is lost{_consequence(snapshot, Budget.DISRUPTION)}",
    )


def _consequence(snapshot: Snapshot, budget: Budget) -> str:
    """Return the rest of a sentence about an attempt that may end and be charged to this budget."""
    if left := _retries_left(snapshot, budget):
        return f", the next attempt starts; {count(left, 'retry', 'retries')} left (spec.retry.budgets.{budget})."
    if budget is not Budget.APPLICATION and snapshot.open_jobs:
        return f", the TaskRun waits for a resolution, because spec.retry.budgets.{budget} is used up while an external job runs."
    return f", the TaskRun fails, because spec.retry.budgets.{budget} allows no more retries."


def _after_the_attempt(snapshot: Snapshot) -> tuple[str, ...]:
    taskrun, status, now = snapshot.taskrun, snapshot.taskrun.status, snapshot.now
    ended = "The attempt has ended. When the other containers of its pod have stopped, "
    if (final := natural_outcome(taskrun.spec, status)) is not None:
        how = f"{final.outcome} ({final.reason})"
        return (*describe_cleanup(snapshot, final), f"{ended}the TaskRun ends as {how}.")
    if is_held_by_budget(taskrun.spec, status):
        return (f"{ended}the TaskRun waits for a resolution, because a budget is used up while an external job runs.",)
    number, time = status.counts.attempts + 1, status.next_attempt_time
    if time is None or time <= now:
        return (f"{ended}attempt {number} starts.", *_describe_reattachment(snapshot))
    return (f"{ended}attempt {number} starts, but not before {clock(time)}.", *_describe_reattachment(snapshot))


def _retries_left(snapshot: Snapshot, budget: Budget) -> int:
    charged = amount(snapshot.taskrun.status.counts.charged, budget)
    return max(0, allowed_ends(snapshot.taskrun.spec, budget) - charged)


# -- what you can do -------------------------------------------------------------------------------


def available_options(snapshot: Snapshot, holds: Sequence[OpenHold]) -> tuple[ResolutionOption, ...]:
    """Return the commands for a TaskRun that does not continue by itself."""
    taskrun, status = snapshot.taskrun, snapshot.taskrun.status
    orphans = _orphan_options(snapshot)
    if status.outcome is not None:
        return orphans
    options = [option for hold in holds if hold.answer is None for option in options_for(taskrun, hold)]
    if taskrun.spec.suspend and not is_ending(taskrun):
        options.append(ResolutionOption(command=_resume_command(taskrun), what="Start the next attempt."))
    shown, held = snapshot.progress, find_effective_hold(taskrun)
    name, namespace = taskrun.metadata.name, taskrun.metadata.namespace
    if held is not None and held.reason == Reason.RESTORED:
        options += [
            ResolutionOption(
                command=f"kubectl label trun {name} -n {namespace} velero.io/restore-name-",
                what="Run the task from the start. First check for external jobs of the original that still run.",
            ),
            ResolutionOption(command=f"kubectl delete trun {name} -n {namespace}", what="Delete the TaskRun."),
        ]
    if held is not None and held.reason == Reason.STATE_SOURCE_UNAVAILABLE:
        options += [
            ResolutionOption(
                command=f"kubectl get trun {taskrun.spec.state_from} -n {namespace}",
                what="Look at the TaskRun whose state will be copied. It must be over.",
            ),
            ResolutionOption(
                command=f"kubectl delete trun {name} -n {namespace}",
                what="Delete the TaskRun, for example to create it without spec.stateFrom, which starts it with an empty state.",
            ),
        ]
    if held is not None and held.reason == Reason.STATE_UNREADABLE and status.state is not None:
        options.append(
            ResolutionOption(
                command=f"kubectl get configmap {status.state.config_map} -n {namespace} -o yaml",
                what="Find the cause: undo changes made by hand, or upgrade Reattach. The TaskRun then continues by itself.",
            )
        )
    if shown is not None and shown.reason == Reason.POD_NAME_TAKEN:
        options.append(
            ResolutionOption(
                command=f"kubectl delete pod {_next_pod_of(taskrun)} -n {namespace}",
                what="Delete the pod with that name, if you don't need it.",
            )
        )
    if taskrun.metadata.deletion_timestamp is not None and (
        held is not None or FINALIZER_EXTERNAL_JOBS in taskrun.metadata.finalizers
    ):
        options.append(
            ResolutionOption(
                command=f"kubectl reattach release {name} -n {namespace}",
                what="Remove Reattach's finalizers without a resolution. The command lists the jobs that may still run; you must check them.",
            )
        )
    return (*options, *orphans)


def _orphan_options(snapshot: Snapshot) -> tuple[ResolutionOption, ...]:
    """Return the commands for jobs that this or an earlier TaskRun of the name left running."""
    taskrun = snapshot.taskrun
    predecessor = find_condition(taskrun.status.conditions, ConditionType.PREDECESSOR_ORPHANED)
    if not snapshot.orphans and predecessor is None:
        return ()
    name, namespace = taskrun.metadata.name, taskrun.metadata.namespace
    whose = "this TaskRun, or an earlier one of its name," if predecessor is not None else "this TaskRun"
    command = f"kubectl reattach orphans {name} -n {namespace}"
    what = f"List the external jobs that {whose} left running. Cancel those that you don't need in the external system."
    dismissal = "Forget these jobs, after you have cancelled them or decided to keep them."
    cancellation = ResolutionOption(
        command=f"{command} --cancel",
        what="Cancel these jobs with the template of this TaskRun, and forget those that have ended.",
    )
    return (
        ResolutionOption(command=command, what=what),
        *([cancellation] if taskrun.status.outcome is not None else []),
        ResolutionOption(command=f"{command} --dismiss", what=dismissal),
    )


def _next_pod_of(taskrun: TaskRun) -> str:
    return pod_name(taskrun.metadata.name, taskrun.metadata.uid, taskrun.status.counts.attempts + 1)
