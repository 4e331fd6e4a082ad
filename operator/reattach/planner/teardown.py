"""The end of a TaskRun, last things last: seal, end the pods, read the state, name what is left running, let go, say the outcome.

Each step looks whether it is done, and gives what is to be done for it if it isn't; so the same ladder is climbed again after each write,
by this process or the next.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta

import msgspec

from reattach.api.names import FINALIZER_EXTERNAL_JOBS
from reattach.api.objects import Pod
from reattach.api.reasons import SENTENCES, ConditionType, End, EventReason, Outcome, Reason
from reattach.api.state import JobState, JobSummary, SealPurpose, StateView
from reattach.api.taskrun import ExternalJobStatus, TaskRunStatus
from reattach.planner import conditions as statuses
from reattach.planner import external_jobs, holds, textformat
from reattach.planner.context import DecisionContext, release_of_state
from reattach.planner.outcome import FinalOutcome
from reattach.planner.plan import DeletePod, EmitEvent, Plan, ReadState, ReleaseTaskRun, SealState

Step = Callable[[DecisionContext, FinalOutcome], Plan | None]

LOOK_AT_NAMESPACE_AFTER = timedelta(seconds=30)


def close(look: DecisionContext, ending: FinalOutcome) -> Plan:
    """What is to be done next, so that the TaskRun ends like that."""
    for step in _STEPS:
        if (plan := step(look, ending)) is not None:
            return plan
    return _end(look, ending)


def stops(look: DecisionContext) -> tuple[DeletePod, ...]:
    """Ask the pods to go in which something may run and that nobody has asked yet, of whichever attempt."""
    return tuple(
        DeletePod(name=pod.metadata.name, uid=pod.metadata.uid)
        for pod in _live(look)
        if pod.metadata.deletion_timestamp is None
    )


def _read(look: DecisionContext, _ending: FinalOutcome) -> Plan | None:
    return Plan(actions=(ReadState(),)) if look.observed.state is None else None


def _seal(look: DecisionContext, _ending: FinalOutcome) -> Plan | None:
    """Not without need: a state that never was can't hold an intent.

    Who opens one after it was read, writes to the TaskRun's status before it may store an intent, and that refuses our own next write.
    """
    read = look.observed.state
    if not isinstance(read, StateView) or look.state_lost or not _may_be_used(look, read):
        return None
    return Plan(actions=(SealState(look.next_number - 1, SealPurpose.END),))


def _may_be_used(look: DecisionContext, state: StateView) -> bool:
    """Whether an attempt that isn't fenced may be alive, as far as anybody knows, and store an intent."""
    if state.seal is not None and state.seal.purpose is SealPurpose.END:
        return False
    opened = state.epoch.attempt if state.epoch else 1
    has_completed = state.completion is not None and state.completion.attempt == opened
    known = {one.number: one.entry for one in look.attempts}
    numbers = range(opened + 1 if has_completed else opened, look.next_number)
    return any((entry := known.get(number)) is None or entry.end != End.REPORTED for number in numbers)


def _stop(look: DecisionContext, ending: FinalOutcome) -> Plan | None:
    if not _live(look):
        return None
    what = SENTENCES[Reason.ENDING] if look.current is None else f"{ending.message} Its pod is being stopped."
    status = statuses.with_progress(look.status, Reason.ENDING, what, look.now)
    status = msgspec.structs.replace(status, next_attempt_time=None)
    return look.with_status(status).plan(*_stops_of_unrecorded(look))


def _hold_unresolved(look: DecisionContext, _ending: FinalOutcome) -> Plan | None:
    """An intent of which nobody knows what became of it keeps the TaskRun, unless somebody took the finalizer off by hand, nobody is
    to be waited for (`onUnknown`), or nobody can answer any more (the namespace is being deleted): then it is named, as every open job.
    """
    nobody_answers = look.spec.submission.on_unknown != "Hold" or look.observed.namespace_ends
    if FINALIZER_EXTERNAL_JOBS not in look.about.finalizers or nobody_answers:
        return None
    unresolved = (job for job in look.jobs if job.is_open and job.handle is None)
    waiting = tuple(job for job in unresolved if holds.answer_at_end(look.spec, job) is None)
    if not waiting:
        return None
    # The deletion of its namespace changes nothing of a TaskRun that is being deleted already.
    again = None if look.about.deletion_timestamp is None else look.now + LOOK_AT_NAMESPACE_AFTER
    return holds.hold(look, Reason.SUBMISSION_UNKNOWN, holds.question_about(look, waiting), again=again)


def _let_go(look: DecisionContext, ending: FinalOutcome) -> Plan | None:
    """Name what is left running, durably, and tell people, before the finalizer goes that stands for it. They are told each time until it
    has gone: of one that is deleted nothing stays by which it could be made up for later.
    """
    if FINALIZER_EXTERNAL_JOBS not in look.about.finalizers:
        return None
    named = with_orphans(look, ending.outcome)
    said = [_announced(one) for one in _orphans(named)]
    if named is look and not said:
        return Plan(actions=(ReleaseTaskRun(),))
    return replace(named, announced=(*look.announced, *said)).plan(ReleaseTaskRun())


def _end(look: DecisionContext, ending: FinalOutcome) -> Plan:
    """The one write that ends a TaskRun. Whoever sees it finished finds nothing left to do."""
    assert ending.outcome is not None, "one that is being deleted, and does not carry our finalizer, is left to itself"
    look = with_orphans(look, ending.outcome)
    status = statuses.without_hold(look.status, look.now)
    status = statuses.with_outcome(status, ending.outcome, ending.reason, ending.message, look.now)
    status = msgspec.structs.replace(status, result=status.result if ending.result is None else ending.result)
    said = EmitEvent(ending.reason.value, textformat.start_of(ending.message), warning=ending.outcome is Outcome.FAILED)
    return look.ended_with(status, said).plan(*release_of_state(look))


_STEPS: tuple[Step, ...] = (_read, _seal, _stop, _hold_unresolved, _let_go)


# -- pods ------------------------------------------------------------------------------------------------------------


def _live(look: DecisionContext) -> list[Pod]:
    return [known.pod for known in look.attempts if known.pod is not None and not look.is_done_with(known.pod)]


def _stops_of_unrecorded(look: DecisionContext) -> tuple[DeletePod, ...]:
    # The others are leftovers, which every plan asks to go.
    recorded = {pod.metadata.uid for pod in look.leftovers}
    return tuple(stop for stop in stops(look) if stop.uid not in recorded)


# -- external jobs ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Orphan:
    """An external job, or a stray handle of one, that may run after the end of the TaskRun. `given_up`: by the policy `onUnknown: Fail`."""

    name: str
    given_up: bool = False

    @property
    def listed(self) -> str:
        """Its part of the condition's message."""
        return f"{self.name}, which was given up and may run" if self.given_up else self.name


def with_orphans(look: DecisionContext, outcome: Outcome | None) -> DecisionContext:
    """The look after it is written what becomes of the jobs that are open; the same one if none is."""
    known = {external_jobs.id_of(job): job for job in look.jobs}
    after = tuple(_at_end(look, job, known.get(external_jobs.id_of(job)), outcome) for job in look.status.external_jobs)
    named = look.with_status(msgspec.structs.replace(look.status, external_jobs=after))
    new = _unreported(named)
    if not new:
        return named if named.status != look.status else look
    status = statuses.with_orphans(named.status, _message_with(named, new), look.now)
    return look.with_status(status, *(_announced(one) for one in new))


def _orphans(look: DecisionContext) -> list[_Orphan]:
    """What status says is left running, and jobs that nobody ever watched."""
    left = [_Orphan(external_jobs.name_of(job)) for job in _orphaned(look.status)]
    return left + _unwatched(look)


def _orphaned(status: TaskRunStatus) -> list[ExternalJobStatus]:
    return [job for job in status.external_jobs if job.state == JobState.ORPHANED]


def _unwatched(look: DecisionContext) -> list[_Orphan]:
    strays = [
        _Orphan(f"{external_jobs.name_of(job)}, also handle {stray}") for job in look.jobs for stray in job.strays
    ]
    return strays + [_Orphan(external_jobs.name_of(job), given_up=True) for job in look.jobs if job.given_up]


def _unreported(look: DecisionContext) -> list[_Orphan]:
    """The orphans that the stored status does not report yet.

    A job is reported if the stored status has it as Orphaned, with the same handle. Strays and jobs that were given up have no field in
    status: the message of the condition is the only record of them.
    """
    reported = {(external_jobs.id_of(job), job.handle) for job in _orphaned(look.observed.taskrun.status)}
    jobs = [job for job in _orphaned(look.status) if (external_jobs.id_of(job), job.handle) not in reported]
    message = _reported_message(look)
    unwatched = [one for one in _unwatched(look) if f" {one.listed}" not in message]
    return [_Orphan(external_jobs.name_of(job)) for job in jobs] + unwatched


def _reported_message(look: DecisionContext) -> str:
    told = statuses.condition_of(look.status, ConditionType.ORPHANED)
    return told.message if told else ""


def _message_with(look: DecisionContext, new: list[_Orphan]) -> str:
    """The message with these names added: of a state that was lost, and begun anew, the jobs are listed here alone."""
    names = "; ".join(one.listed for one in new)
    before = _reported_message(look)
    return (
        f"{before} Also external job {names}." if before else f"{SENTENCES[Reason.JOBS_ORPHANED]} External job {names}."
    )


def _announced(orphan: _Orphan) -> EmitEvent:
    """One job that nobody watches any more."""
    how = "" if orphan.given_up else " is left running by the end of the TaskRun"
    note = f"External job {orphan.listed}{how}; nobody watches it any more."
    return EmitEvent(EventReason.ORPHANED, textformat.start_of(note), warning=True)


def _at_end(
    look: DecisionContext, job: ExternalJobStatus, known: JobSummary | None, outcome: Outcome | None
) -> ExternalJobStatus:
    if not external_jobs.is_open(job):
        return job
    answer = holds.answer_at_end(look.spec, known) if known else None
    if answer is not None and answer.action in {holds.FAIL, holds.RESUBMIT}:
        # Resubmit says that there is no such job.
        return msgspec.structs.replace(job, state=JobState.FAILED.value)
    if answer is not None and answer.action == holds.ADOPT:
        return msgspec.structs.replace(job, state=JobState.ORPHANED.value, handle=answer.handle)
    is_wanted = known is not None and known.detached and job.handle is not None
    left = JobState.DETACHED if is_wanted and outcome is Outcome.SUCCEEDED else JobState.ORPHANED
    return msgspec.structs.replace(job, state=left.value)
