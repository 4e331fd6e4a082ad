"""All that was read of a TaskRun, as plain data. Pure."""

from collections.abc import Iterable
from datetime import datetime

from reattach.api.objects import Condition, Pod, Shape
from reattach.api.orphans import OrphanedJob
from reattach.api.state import JobState, JobSummary, StateView
from reattach.api.taskrun import ExternalJobStatus, TaskRun
from reattach.planner.conditions import progress_condition


class Event(Shape, frozen=True):
    """An Event of the TaskRun; Kubernetes keeps it for about an hour."""

    time: datetime | None
    type: str
    reason: str
    message: str


class JobSubmission(Shape, frozen=True):
    """Submission of one external job, as the state records it.

    `intended_time`: when the intent was stored, right before the first submission. `submitters`:
    attempt and time of each process that was allowed to submit, oldest first; empty if the job
    comes from `spec.adopt`. `cancel_requested_by_attempt` and `ended_time`: as recorded in the
    state.
    """

    key: str
    generation: int
    intended_time: datetime
    intended_by_attempt: int
    submitters: tuple[tuple[int, datetime], ...] = ()
    cancel_requested_by_attempt: int | None = None
    ended_time: datetime | None = None


class FieldWriter(Shape, frozen=True):
    """The client that set a field, from metadata.managedFields.

    `time`: its last write of any field that it set.
    """

    manager: str
    time: datetime | None = None


class Snapshot(Shape, frozen=True):
    """All that was read of a TaskRun.

    `state` None: no state exists, or `state_note` has the reason. `state_lost`: it was deleted by
    force. `cancelled_by`: the client that set `spec.cancel`. `orphans`: the jobs in the record
    that the end of the run left; empty if the record was dismissed.
    """

    taskrun: TaskRun
    now: datetime
    state: StateView | None = None
    state_note: str = ""
    state_lost: bool = False
    pods: tuple[Pod, ...] = ()
    events: tuple[Event, ...] = ()
    notes: tuple[str, ...] = ()
    """Reasons why something could not be read."""
    submissions: tuple[JobSubmission, ...] = ()
    """Empty if the state could not be read."""
    cancelled_by: FieldWriter | None = None
    orphans: tuple[OrphanedJob, ...] = ()

    @property
    def is_state_unknown(self) -> bool:
        """Return whether a state may exist that could not be read."""
        return self.state is None and bool(self.state_note) and not self.state_lost

    @property
    def jobs(self) -> tuple[JobSummary, ...]:
        """Return the jobs from the state, or from the status if the state can't be read."""
        if self.state is not None:
            return self.state.jobs
        return tuple(_summary_of(job) for job in self.taskrun.status.external_jobs)

    @property
    def open_jobs(self) -> tuple[JobSummary, ...]:
        """Return the jobs that may run in the external system."""
        return tuple(job for job in self.jobs if job.is_open)

    def submission_of(self, job: JobSummary) -> JobSubmission | None:
        """Return the submission of this job; None if the state could not be read."""
        name = (job.key, job.generation)
        return next((one for one in self.submissions if (one.key, one.generation) == name), None)

    @property
    def progress(self) -> Condition | None:
        """Return the condition Succeeded, which shows the progress."""
        return progress_condition(self.taskrun.status)


def job_name(job: JobSummary, among: Iterable[JobSummary] = ()) -> str:
    """Return the job as a part of a sentence, with its generation unless that is the only one."""
    is_only = job.generation == 1 and all(one.key != job.key or one.generation == 1 for one in among)
    return job.key if is_only else f"{job.key}, generation {job.generation}"


def _summary_of(job: ExternalJobStatus) -> JobSummary:
    try:
        state = JobState(job.state)
    except ValueError:
        state = JobState.UNKNOWN  # of a newer version
    return JobSummary(
        key=job.key,
        generation=job.generation,
        state=state,
        adapter=job.adapter,
        handle=job.handle,
        url=job.url,
        submitted_time=job.submitted_time,
        submitted_by_attempt=job.submitted_by_attempt,
        cancel_requested_time=job.cancel_requested_time,
    )
