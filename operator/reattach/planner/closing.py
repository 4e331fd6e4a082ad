"""The end of a TaskRun, last things last: seal, end the pods, read the state, name what is left running, let go, say the outcome.

Each step looks whether it is done, and gives what is to be done for it if it isn't; so the same ladder is climbed again after each write,
by this process or the next.
"""

from collections.abc import Callable

import msgspec

from reattach.api.names import FINALIZER_EXTERNAL_JOBS
from reattach.api.objects import Pod
from reattach.api.reasons import SENTENCES, End, News, Outcome, Reason
from reattach.api.state import JobState, JobSummary, SealPurpose, StateView
from reattach.api.taskrun import ExternalJob
from reattach.planner import holds, jobs, wording
from reattach.planner import status as statuses
from reattach.planner.conclusions import Ending
from reattach.planner.look import Look, release_of_state
from reattach.planner.plan import Announce, DeletePod, Plan, ReadState, ReleaseTaskRun, Seal

Step = Callable[[Look, Ending], Plan | None]


def close(look: Look, ending: Ending) -> Plan:
    """What is to be done next, so that the TaskRun ends like that."""
    for step in _STEPS:
        if (plan := step(look, ending)) is not None:
            return plan
    return _end(look, ending)


def stops(look: Look) -> tuple[DeletePod, ...]:
    """Ask the pods to go in which something may run and that nobody has asked yet, of whichever attempt."""
    return tuple(
        DeletePod(name=pod.metadata.name, uid=pod.metadata.uid)
        for pod in _live(look)
        if pod.metadata.deletion_timestamp is None
    )


def _read(look: Look, _ending: Ending) -> Plan | None:
    return Plan(actions=(ReadState(),)) if look.observed.state is None else None


def _seal(look: Look, _ending: Ending) -> Plan | None:
    """Not without need: a state that never was can't hold an intent.

    Who opens one after it was read, writes to the TaskRun's status before it may store an intent, and that refuses our own next write.
    """
    read = look.observed.state
    if not isinstance(read, StateView) or look.state_lost or not _may_be_used(look, read):
        return None
    return Plan(actions=(Seal(look.next_number - 1, SealPurpose.END),))


def _may_be_used(look: Look, state: StateView) -> bool:
    """Whether an attempt that isn't fenced may be alive, as far as anybody knows, and store an intent."""
    if state.seal is not None and state.seal.purpose is SealPurpose.END:
        return False
    opened = state.epoch.attempt if state.epoch else 1
    has_completed = state.completion is not None and state.completion.attempt == opened
    known = {one.number: one.entry for one in look.attempts}
    numbers = range(opened + 1 if has_completed else opened, look.next_number)
    return any((entry := known.get(number)) is None or entry.end != End.REPORTED for number in numbers)


def _stop(look: Look, ending: Ending) -> Plan | None:
    if not _live(look):
        return None
    what = SENTENCES[Reason.ENDING] if look.current is None else f"{ending.message} Its pod is being stopped."
    status = statuses.with_progress(look.status, Reason.ENDING, what, look.now)
    status = msgspec.structs.replace(status, next_attempt_time=None)
    return look.with_status(status).plan(*_stops_of_unrecorded(look))


def _hold_unresolved(look: Look, _ending: Ending) -> Plan | None:
    """An intent of which nobody knows what became of it keeps the TaskRun, unless somebody took the finalizer off by hand."""
    if FINALIZER_EXTERNAL_JOBS not in look.about.finalizers:
        return None
    left = {jobs.id_of(job) for job in look.status.external_jobs if not jobs.is_open(job)}
    waiting = tuple(
        job
        for job in look.jobs
        if job.is_open
        and job.handle is None
        and jobs.id_of(job) not in left
        and holds.answer_at_end(look.spec, job) is None
    )
    return holds.hold(look, Reason.SUBMISSION_UNKNOWN, holds.question_about(look, waiting)) if waiting else None


def _let_go(look: Look, ending: Ending) -> Plan | None:
    """Name what is left running, durably, before the finalizer goes that stands for it."""
    if FINALIZER_EXTERNAL_JOBS not in look.about.finalizers:
        return None
    named = with_orphans(look, ending.outcome)
    return Plan(actions=(ReleaseTaskRun(),)) if named is look else named.plan(ReleaseTaskRun())


def _end(look: Look, ending: Ending) -> Plan:
    """The one write that ends a TaskRun. Whoever sees it finished finds nothing left to do."""
    assert ending.outcome is not None, "one that is being deleted, and does not carry our finalizer, is left to itself"
    look = with_orphans(look, ending.outcome)
    status = statuses.without_hold(look.status, look.now)
    status = statuses.with_outcome(status, ending.outcome, ending.reason, ending.message, look.now)
    status = msgspec.structs.replace(status, result=status.result if ending.result is None else ending.result)
    said = Announce(ending.reason.value, wording.start_of(ending.message), warning=ending.outcome is Outcome.FAILED)
    return look.ended_with(status, said).plan(*release_of_state(look))


_STEPS: tuple[Step, ...] = (_read, _seal, _stop, _hold_unresolved, _let_go)


# -- pods ------------------------------------------------------------------------------------------------------------


def _live(look: Look) -> list[Pod]:
    return [known.pod for known in look.attempts if known.pod is not None and not look.is_done_with(known.pod)]


def _stops_of_unrecorded(look: Look) -> tuple[DeletePod, ...]:
    # The others are leftovers, which every plan asks to go.
    recorded = {pod.metadata.uid for pod in look.leftovers}
    return tuple(stop for stop in stops(look) if stop.uid not in recorded)


# -- external jobs ---------------------------------------------------------------------------------------------------


def with_orphans(look: Look, outcome: Outcome | None) -> Look:
    """The look after it is written what becomes of the jobs that are open; the same one if none is."""
    known = {jobs.id_of(job): job for job in look.jobs}
    before = look.status.external_jobs
    after = tuple(_at_end(look, job, known.get(jobs.id_of(job)), outcome) for job in before)
    status = msgspec.structs.replace(look.status, external_jobs=after)
    left = [job for job in after if job.state == JobState.ORPHANED]
    strays = [f"{jobs.name_of(job)}, also handle {stray}" for job in look.jobs for stray in job.strays]
    given_up = [jobs.name_of(job) for job in look.jobs if job.given_up]
    names = (
        [jobs.name_of(job) for job in left] + strays + [f"{name}, which was given up and may run" for name in given_up]
    )
    if names:
        message = f"{SENTENCES[Reason.JOBS_ORPHANED]} External job {'; '.join(names)}."
        status = statuses.with_orphans(status, message, look.now)
    if status == look.status:
        return look
    new = [jobs.name_of(job) for job in left if job not in before]
    said = [_announced(name) for name in new + strays]
    return look.with_status(status, *said, *(_announced(name, "was given up and may run") for name in given_up))


def _announced(name: str, how: str = "is left running by the end of the TaskRun") -> Announce:
    """One job that nobody watches any more."""
    note = f"External job {name} {how}; nobody watches it any more."
    return Announce(News.ORPHANED, wording.start_of(note), warning=True)


def _at_end(look: Look, job: ExternalJob, known: JobSummary | None, outcome: Outcome | None) -> ExternalJob:
    if not jobs.is_open(job):
        return job
    answer = holds.answer_at_end(look.spec, known) if known else None
    if answer is not None and answer.action == holds.FAIL:
        return msgspec.structs.replace(job, state=JobState.FAILED.value)
    if answer is not None and answer.action == holds.ADOPT:
        return msgspec.structs.replace(job, state=JobState.ORPHANED.value, handle=answer.handle)
    is_wanted = known is not None and known.detached and job.handle is not None
    left = JobState.DETACHED if is_wanted and outcome is Outcome.SUCCEEDED else JobState.ORPHANED
    return msgspec.structs.replace(job, state=left.value)
