"""The part of a TaskRun's state that the operator reads: summary and completion record.

Only `reattach.state` knows the full format of the ConfigMap.
"""

from enum import StrEnum
from typing import Annotated

import msgspec

from reattach.api.objects import Count, Ordinal, Shape, Time
from reattach.api.taskrun import AttemptPurpose

# Limits of the schema of `status`. A state that a user changed must not lead to a status that the
# API server rejects.
PodUid = Annotated[str, msgspec.Meta(max_length=128)]
JobKey = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
AdapterName = Annotated[str, msgspec.Meta(max_length=63)]
Handle = Annotated[str, msgspec.Meta(max_length=1024)]
Url = Annotated[str, msgspec.Meta(max_length=2048)]


class JobState(StrEnum):
    """Status of an external job. The first four states are open."""

    INTENDED = "Intended"
    """The intent is stored without a handle. The job may have been submitted."""
    ACTIVE = "Active"
    UNKNOWN = "Unknown"
    """The external system does not respond at the moment. The job may be running."""
    NOT_FOUND = "NotFound"
    """The external system does not know the handle."""
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    CANCELLED = "Cancelled"
    ORPHANED = "Orphaned"
    """Left running by the TaskRun's end. Only in `status.externalJobs`, not in the state."""
    CANCELLING = "Cancelling"
    """Active, and its cancellation was requested. Only in `status.externalJobs`."""
    DETACHED = "Detached"
    """Left running by the TaskRun's success, because the task submitted it as detached."""


OPEN_JOB_STATES = frozenset(
    {JobState.INTENDED, JobState.ACTIVE, JobState.CANCELLING, JobState.UNKNOWN, JobState.NOT_FOUND}
)
"""States of a job that may run and that no resolution has closed."""


class JobOrigin(StrEnum):
    """The source of an external job's handle."""

    SUBMITTED = "Submitted"
    """The external system created the job for this submission."""
    RESUBMITTED = "Resubmitted"
    """As `SUBMITTED`, by a repetition of an unresolved submission (`IntentRequest.again`)."""
    EXISTED = "Existed"
    """The external system responded that the name or token has a job already.

    Either an earlier submission of this run arrived, or another run has the same token.
    """
    FOUND = "Found"
    """A lookup found the job."""
    REPORTED = "Reported"
    """A fenced attempt reported the handle of its own intent."""
    ADOPTED = "Adopted"
    """The handle comes from `spec.resolutions` or `spec.adopt`."""


OWN_ORIGINS = frozenset({JobOrigin.SUBMITTED, JobOrigin.RESUBMITTED})
"""Origins that prove that this run submitted the job, even if another run has the same tokens."""


class SealPurpose(StrEnum):
    """The reason for a seal."""

    END = "End"
    SUSPEND = "Suspend"


class Seal(Shape, frozen=True):
    """No attempt up to `through_attempt` may open the state or store an intent any more.

    Later attempts may store intents only after `Suspend`.
    """

    through_attempt: Count
    purpose: SealPurpose


class JobSummary(Shape, frozen=True):
    """One external job in the summary, the source of `status.externalJobs`.

    `held`: the task cannot continue without a resolution. `holds`: the number of the resolution in
    `spec.resolutions`, for this key and generation, that settles the hold. It is one more than
    existed when the job was held, so that no resolution is used twice. If a fenced attempt reports
    the handle, the hold needs no resolution. `message`: the reason of the hold or of the end, or
    why the job makes no progress.
    `submitters`: of a held job, the attempts that may have submitted it.
    `strays`: other handles reported for the same intent. These are second jobs without a watcher.
    `given_up`: it is `Failed` by the policy `Fail`, because its end is unknown, or by a resolution
    that replaced it. It may be running.
    `preexisting`: it existed before the first submission of this TaskRun.
    `cancel_requested_time`: when its cancellation was first requested.
    """

    key: JobKey
    generation: Ordinal
    state: JobState
    adapter: AdapterName = ""
    handle: Handle | None = None
    url: Url | None = None
    origin: JobOrigin | None = None
    submitted_time: Time | None = None
    submitted_by_attempt: Ordinal | None = None
    detached: bool = False
    held: bool = False
    holds: Count = 0
    message: str = ""
    submitters: tuple[Ordinal, ...] = ()
    strays: tuple[str, ...] = ()
    given_up: bool = False
    preexisting: bool = False
    cancel_requested_time: Time | None = None

    @property
    def is_open(self) -> bool:
        """True if the job may be running in the external system and is not detached."""
        return self.state in OPEN_JOB_STATES

    @property
    def is_of_another_run(self) -> bool:
        """True if this run did not submit the job: it existed before, or a user named it."""
        return self.preexisting or self.origin is JobOrigin.ADOPTED

    @property
    def may_be_of_another_run(self) -> bool:
        """True if another run with the same idempotency key may have submitted the job."""
        return self.handle is not None and self.origin not in OWN_ORIGINS


class JobCounts(Shape, frozen=True, omit_defaults=False):
    """Totals over the TaskRun's whole history, shown in `status.counts`.

    `submissions`: jobs that the run is known to have submitted. `reattachments`: sessions that
    took over a job of another session, also one whose handle was not stored.
    `duplicates_averted`: unresolved intents that were resolved without a second job. A task that
    only stores the id after submitting would have submitted each of them again.
    """

    submissions: Count = 0
    reattachments: Count = 0
    duplicates_averted: Count = 0


class Epoch(Shape, frozen=True):
    """The attempt that opened the state last.

    `can_cleanup`: its process can cancel external jobs in a cleanup attempt (adapters or a handler
    are registered). `cleanup_handler`: it has a handler, which runs even if no job is open.
    """

    attempt: Ordinal
    pod_uid: PodUid = msgspec.field(name="podUID")
    purpose: AttemptPurpose = AttemptPurpose.RUN
    can_cleanup: bool = False
    cleanup_handler: bool = False


class Completion(Shape, frozen=True, forbid_unknown_fields=True):
    """The completion record of the task. `result` is JSON text, at most 4 KiB."""

    attempt: Ordinal
    pod_uid: PodUid = msgspec.field(name="podUID")
    time: Time
    result: Annotated[str, msgspec.Meta(max_length=4096)] | None = None


class JobReference(Shape, frozen=True):
    """The job of this key and generation."""

    key: JobKey
    generation: Ordinal


class ReportedEnd(Shape, frozen=True):
    """The end of an attempt as its task reported it (`POST /v1/end`).

    `job`: that the task waits for, only of the kind Waiting. A reader ignores a `kind` and fields
    that it does not know, because the entry is optional.
    """

    attempt: Ordinal
    pod_uid: PodUid = msgspec.field(name="podUID")
    time: Time
    kind: Annotated[str, msgspec.Meta(max_length=63)]
    message: Annotated[str, msgspec.Meta(max_length=4096)] = ""
    retry_after_seconds: Count | None = None
    job: JobReference | None = None


class Summary(Shape, frozen=True):
    """The annotation `reattach.dev/summary`. It shows the operator whether to read the state.

    `next_expiry`: the earliest expiry of a key.
    """

    epoch: Epoch | None = None
    completed_attempt: Ordinal | None = None
    seal: Seal | None = None
    jobs: tuple[JobSummary, ...] = ()
    counts: JobCounts = JobCounts()
    next_expiry: Time | None = None


class StateView(Shape, frozen=True):
    """The part of the state that decisions need, read from the ConfigMap itself."""

    uid: str
    resource_version: str
    epoch: Epoch | None = None
    completion: Completion | None = None
    seal: Seal | None = None
    jobs: tuple[JobSummary, ...] = ()
    counts: JobCounts = JobCounts()
    end: ReportedEnd | None = None
