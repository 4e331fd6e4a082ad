"""The end of a run: who requested it, what a cleanup does with the jobs, what is left. Pure.

The rules are the planner's: this module only describes what they decide.
"""

from collections.abc import Sequence

from reattach.api.names import FINALIZER_EXTERNAL_JOBS
from reattach.api.reasons import ConditionType, Outcome
from reattach.api.state import Epoch, JobOrigin, JobState, JobSummary, Summary
from reattach.api.taskrun import Attempt, AttemptPurpose, ExternalJobStatus
from reattach.api.text import one_line
from reattach.cli.snapshot import Snapshot, job_name
from reattach.cli.text import ago, clock, duration, listed
from reattach.planner import cleanup, external_jobs
from reattach.planner.conditions import find_condition, last_attempt
from reattach.planner.context import DecisionContext
from reattach.planner.outcome import FinalOutcome, final_outcome
from reattach.planner.plan import AbsentState, Observed, PodDefaults

_WITHOUT_POD_DEFAULTS = PodDefaults(url="", ca="")
"""Nothing is created here, so the values for new pods do not matter."""


def context_of(snapshot: Snapshot) -> DecisionContext:
    """Return what the operator would decide from, as far as it was read.

    If the state can't be read, assume that the task registered a way to clean up.
    """
    summary = None
    if snapshot.is_state_unknown:
        attempt = max(1, snapshot.taskrun.status.counts.attempts)
        summary = Summary(epoch=Epoch(attempt=attempt, pod_uid="", can_cleanup=True), jobs=snapshot.jobs)
    state = None if summary else snapshot.state or AbsentState()
    observed = Observed(taskrun=snapshot.taskrun, pods=snapshot.pods, summary=summary, state=state)
    return DecisionContext.from_observed(observed, _WITHOUT_POD_DEFAULTS, snapshot.now)


def outcome_of(snapshot: Snapshot) -> FinalOutcome | None:
    """Return how the run ends now; None if it continues, or has ended."""
    return None if snapshot.taskrun.status.outcome is not None else final_outcome(context_of(snapshot))


def name_of(outcome: str, reason: str) -> str:
    """Return the outcome, and the reason if it adds something."""
    return outcome if outcome == reason else f"{outcome} ({reason})"


# -- who requested the end -------------------------------------------------------------------------


def describe_request(snapshot: Snapshot) -> tuple[str, ...]:
    """Return who or what ended the run, and when, as far as the API server has it."""
    taskrun, ending = snapshot.taskrun, snapshot.taskrun.status.ending
    sentences = []
    if taskrun.spec.cancel:
        writer = snapshot.cancelled_by
        by = f" by {one_line(writer.manager)}" if writer is not None else ""
        when = f", whose last write was {ago(writer.time, snapshot.now)}" if writer is not None and writer.time else ""
        sentences.append(f"Cancellation: spec.cancel was set{by}{when}. The audit log has the name of the user.")
    if (deleted := taskrun.metadata.deletion_timestamp) is not None:
        sentences.append(f"Deletion: requested {ago(deleted, snapshot.now)}. The audit log has the name of the user.")
    if ending is not None:
        when = f"{ago(ending.time, snapshot.now)}, at {clock(ending.time)}"
        how = "is deleted" if ending.outcome is None else f"ends as {name_of(ending.outcome, ending.reason)}"
        is_shown = snapshot.progress is not None and snapshot.progress.message == ending.message
        why = "" if is_shown else f" {one_line(ending.message)}"
        sentences.append(f"Ending: decided {when}: the run {how}.{why}")
    return tuple(sentences)


# -- what was cancelled, and what was left ---------------------------------------------------------


def describe_cancellations(snapshot: Snapshot) -> tuple[str, ...]:
    """Return for each job when its cancellation was requested, by which attempt, and its end."""
    jobs = [job for job in snapshot.jobs if job.cancel_requested_time is not None]
    return tuple(f"{job_name(job, snapshot.jobs)}: {_describe_cancellation(snapshot, job)}." for job in jobs)


def _describe_cancellation(snapshot: Snapshot, job: JobSummary) -> str:
    assert job.cancel_requested_time is not None
    submission = snapshot.submission_of(job)
    attempt = submission.cancel_requested_by_attempt if submission else None
    by = f" by attempt {attempt}" if attempt is not None else ""
    text = f"its cancellation was requested {ago(job.cancel_requested_time, snapshot.now)}{by}"
    if not job.is_open:
        ended = submission.ended_time if submission else None
        return f"{text}; it ended as {job.state}" + (f" {ago(ended, snapshot.now)}" if ended else "")
    is_left = any(external_jobs.job_id(left) == external_jobs.job_id(job) for left in _orphaned(snapshot))
    return f"{text}; its end is not known" if is_left else f"{text}; it has not ended yet"


def describe_left(snapshot: Snapshot) -> tuple[str, ...]:
    """Return the jobs that the end of the run left running, and why."""
    if snapshot.orphans:
        return tuple(
            f"{one_line(one.key)}{_generation_of(one.generation)}: {one_line(one.handle or 'a job without a known handle')} "
            f"was left running. {one_line(one.why)}"
            for one in snapshot.orphans
        )
    shown = find_condition(snapshot.taskrun.status.conditions, ConditionType.ORPHANED)
    return (one_line(shown.message),) if shown is not None and shown.status == "True" else ()


def _orphaned(snapshot: Snapshot) -> list[ExternalJobStatus]:
    return [job for job in snapshot.taskrun.status.external_jobs if job.state == JobState.ORPHANED]


def _generation_of(generation: int) -> str:
    return "" if generation == 1 else f", generation {generation}"


# -- what happens to the open jobs -----------------------------------------------------------------


def describe_cleanup(snapshot: Snapshot, final: FinalOutcome) -> tuple[str, ...]:
    """Return what happens to the jobs that may still run when the run ends with this outcome."""
    if final.outcome is Outcome.SUCCEEDED:
        return ()
    context = context_of(snapshot)
    is_possible = cleanup.obstacle(context, final) is None and not snapshot.state_lost
    unresolved = [job for job in snapshot.open_jobs if job.handle is None]
    known = [job for job in snapshot.open_jobs if job.handle is not None] + _adoptions(context)
    cancelled = [job for job in known if is_possible and not cleanup.is_kept(context, job)]
    attempt = _describe_attempt(snapshot)
    sentences = []
    command = context.spec.cleanup.command
    if cancelled and command:
        jobs = job_list(cancelled)
        sentences.append(f"{attempt} runs spec.cleanup.command, which must cancel {jobs}, and record how it ended.")
    elif cancelled:
        until = "it has ended" if len(cancelled) == 1 else "they have ended"
        sentences.append(f"{attempt} cancels {job_list(cancelled)}, and waits until {until}.")
    if unresolved and is_possible:
        sentences.append(f"{attempt} looks up whether {job_list(unresolved)} was submitted.")
    if is_possible and not (cancelled and command) and cleanup.must_run(context):
        what = "spec.cleanup.command" if command else "the cleanup handler of the task"
        sentences.append(f"{attempt} runs {what}.")
    if sentences and not command and snapshot.is_state_unknown:
        sentences.insert(0, "The state can't be read, so the following holds only if the task registered a cleanup.")
    if sentences:
        sentences.append(_describe_deadline(snapshot))
    if unresolved:
        sentences.append(_describe_unresolved(context, unresolved))
    return (*sentences, *_describe_left(snapshot, context, final, [job for job in known if job not in cancelled]))


def _adoptions(context: DecisionContext) -> list[JobSummary]:
    """Return the jobs that the first cleanup attempt adopts."""
    return [
        JobSummary(
            key=job.key,
            generation=1,
            state=JobState.ACTIVE,
            adapter=job.adapter or "",
            handle=job.handle,
            origin=JobOrigin.ADOPTED,
        )
        for job in cleanup.adoptions(context)
    ]


def job_list(jobs: Sequence[JobSummary]) -> str:
    """Return handles and keys of the jobs as a part of a sentence."""
    return listed([f"{job.handle} ({job_name(job)})" if job.handle else job_name(job) for job in jobs])


def _describe_left(
    snapshot: Snapshot, context: DecisionContext, final: FinalOutcome, jobs: Sequence[JobSummary]
) -> list[str]:
    """Return a sentence for the jobs that are left running for the same reason."""
    reasons: dict[str, list[JobSummary]] = {}
    for job in jobs:
        shown = ExternalJobStatus(
            key=job.key,
            generation=job.generation,
            state=job.state,
            cancel_requested_time=job.cancel_requested_time,
        )
        why = cleanup.describe_orphaned(context, final, shown, None if snapshot.state_lost else job)
        reasons.setdefault(why, []).append(job)
    return [
        f"{job_list(same)} {'is' if len(same) == 1 else 'are'} left running in the external system. {why}"
        for why, same in reasons.items()
    ]


def _describe_unresolved(context: DecisionContext, jobs: Sequence[JobSummary]) -> str:
    is_held = context.spec.submission.on_unknown == "Hold" and FINALIZER_EXTERNAL_JOBS in context.metadata.finalizers
    then = "the TaskRun waits for a resolution" if is_held else "it counts as left running"
    return f"If it is still unknown then whether {job_list(jobs)} was submitted, {then}."


def _describe_attempt(snapshot: Snapshot) -> str:
    """Return the cleanup attempt that runs or comes next, as the subject of a sentence."""
    status, now = snapshot.taskrun.status, snapshot.now
    current = running_cleanup(snapshot)
    if current is not None:
        return f"Cleanup attempt {current.number}"
    until = status.next_attempt_time
    if last_attempt(status.attempts, AttemptPurpose.CLEANUP) is None:
        return "A cleanup attempt"
    if until is not None and until > now:
        return f"The next cleanup attempt, which starts in {duration(until - now)}, at {clock(until)},"
    return "The next cleanup attempt"


def running_cleanup(snapshot: Snapshot) -> Attempt | None:
    """Return the cleanup attempt that has not ended."""
    last = last_attempt(snapshot.taskrun.status.attempts, AttemptPurpose.CLEANUP)
    return last if last is not None and last.finish_time is None else None


def _describe_deadline(snapshot: Snapshot) -> str:
    ending, seconds = snapshot.taskrun.status.ending, snapshot.taskrun.spec.cleanup.deadline_seconds
    left = "Jobs that are open then are left running, and kubectl reattach orphans lists them."
    if ending is None:
        return f"The cleanup may take {seconds} s (spec.cleanup.deadlineSeconds). {left}"
    deadline = ending.cleanup_deadline
    return f"The cleanup may take until {clock(deadline)} (in {duration(deadline - snapshot.now)}). {left}"
