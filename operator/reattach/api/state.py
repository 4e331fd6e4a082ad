"""What the operator reads of a TaskRun's state: the summary in the ConfigMap's annotation, and the completion record.

The full format of the ConfigMap is known to `reattach.state` alone.
"""

from enum import StrEnum

import msgspec

from reattach.api.objects import Shape, Time

FORMAT_VERSION = "1"


class JobState(StrEnum):
    """Where an external job stands, as far as its TaskRun knows. Open are the first three, and `NOT_FOUND` until a person has decided."""

    INTENDED = "Intended"
    """About to be submitted; may have been. Without a handle."""
    ACTIVE = "Active"
    UNKNOWN = "Unknown"
    """The other side can't be asked for a while; nothing is concluded from it."""
    NOT_FOUND = "NotFound"
    """The other side says that it does not know the handle."""
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    CANCELLED = "Cancelled"
    ORPHANED = "Orphaned"
    """Left running by the TaskRun's end. Only in `status.externalJobs`: nobody writes the state any more then."""
    DETACHED = "Detached"
    """Left running by the TaskRun's success, as the task wanted."""


OPEN_JOB_STATES = frozenset({JobState.INTENDED, JobState.ACTIVE, JobState.UNKNOWN, JobState.NOT_FOUND})
"""States of a job that may run and that no resolution has closed."""


class JobOrigin(StrEnum):
    """How the handle of an external job came to be known."""

    SUBMITTED = "Submitted"
    """The other side made the job for this submission."""
    RESUBMITTED = "Resubmitted"
    """The same, by a submission that repeated an unresolved one (`IntentRequest.again`)."""
    EXISTED = "Existed"
    """The other side answered that the name or token has a job already."""
    FOUND = "Found"
    """It was looked up."""
    REPORTED = "Reported"
    """An attempt that was fenced meanwhile reported the handle of its own intent."""
    ADOPTED = "Adopted"
    """A person named it: `spec.resolutions` or `spec.adopt`."""


class SealPurpose(StrEnum):
    """Why the state was sealed."""

    END = "End"
    SUSPEND = "Suspend"


class Seal(Shape, frozen=True, forbid_unknown_fields=True):
    """No attempt up to `through_attempt` may open the state or store an intent any more; later ones store intents only after `Suspend`."""

    through_attempt: int
    purpose: SealPurpose


class JobSummary(Shape, frozen=True):
    """One external job as the operator and people need it: `status.externalJobs` is made from these.

    `held`: the task found no way to go on by itself and asked for a person. `holds`: the number of the resolution of this key and generation
    in `spec.resolutions` that answers it, always one more than there were when it was held, so that none is used twice; a hold that was
    settled by itself (a fenced attempt reported the handle) takes none. `message`: why it is held, or how it ended.
    `strays`: other handles that were reported for the same intent; jobs that run a second time and belong to nobody.
    `given_up`: it is `Failed` because nobody could tell what became of it and the policy is `Fail`; it may run.
    """

    key: str
    generation: int
    state: JobState
    adapter: str = ""
    handle: str | None = None
    url: str | None = None
    origin: JobOrigin | None = None
    submitted_time: Time | None = None
    submitted_by_attempt: int | None = None
    detached: bool = False
    held: bool = False
    holds: int = 0
    message: str = ""
    strays: tuple[str, ...] = ()
    given_up: bool = False

    @property
    def is_open(self) -> bool:
        """Whether something may run over there for which nobody has said that it may be forgotten."""
        return self.state in OPEN_JOB_STATES


class JobCounts(Shape, frozen=True, omit_defaults=False):
    """Totals over the TaskRun's whole life; `status.counts` shows them.

    `submissions`: jobs that the run is known to have submitted, however that became known. `reattachments`: sessions that took up a job which
    another one had submitted. `duplicates_averted`: unresolved intents that were settled without a second job (found, reported, adopted, or
    answered as existing), each of which a task that only stores the id after submitting would have submitted again.
    """

    submissions: int = 0
    reattachments: int = 0
    duplicates_averted: int = 0


class Epoch(Shape, frozen=True):
    """The attempt that opened the state last."""

    attempt: int
    pod_uid: str = msgspec.field(name="podUID")


class Completion(Shape, frozen=True, forbid_unknown_fields=True):
    """The record that the task wrote when it was done. `result` is JSON text, at most 4 KiB."""

    attempt: int
    pod_uid: str = msgspec.field(name="podUID")
    time: Time
    result: str | None = None


class Summary(Shape, frozen=True):
    """The annotation `reattach.dev/summary`: enough for the operator to know whether it must read the state.

    `next_expiry`: when the first of the keys expires that ever do.
    """

    epoch: Epoch | None = None
    completed_attempt: int | None = None
    seal: Seal | None = None
    jobs: tuple[JobSummary, ...] = ()
    counts: JobCounts = JobCounts()
    next_expiry: Time | None = None


class StateView(Shape, frozen=True):
    """The state as far as decisions need it, read from the ConfigMap itself."""

    uid: str
    resource_version: str
    epoch: Epoch | None = None
    completion: Completion | None = None
    seal: Seal | None = None
    jobs: tuple[JobSummary, ...] = ()
    counts: JobCounts = JobCounts()
