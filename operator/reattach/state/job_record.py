"""One generation of one external job as stored, and the limits on its size."""

import uuid
from collections.abc import Mapping
from typing import Annotated

import msgspec

from reattach.api.messages import HANDLE_BYTES_MAX, JOBS_MAX, RESULT_BYTES_MAX, FieldDigests, Job, ProblemCode
from reattach.api.objects import Count, Ordinal, Shape, Time
from reattach.api.state import AdapterName, Handle, JobKey, JobOrigin, JobState, JobSummary, Url
from reattach.state.data_names import job_name_of
from reattach.state.errors import RequestRejectedError

JOBS_BYTES_MAX = 400 * 1024
"""Limit for all records together, including the space that open jobs may still need.

With 512 KiB of keys, the stored responses and a result, the records fit into a ConfigMap. 64 open
jobs of ordinary size need less.
"""
_HANDLE_BYTES, _END_BYTES = 200, 200
"""Bytes that a handle or an end adds to a record, without handle, URL, message and result."""
_CANCELLATION_BYTES = 120
"""Bytes that a cancellation adds to a record."""
_TOKENS = uuid.uuid5(uuid.NAMESPACE_DNS, "reattach.dev")
_OVER = {JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED}

TokenSeconds = Annotated[int, msgspec.Meta(ge=0, le=2**32)]
"""Room for the longest lifetime that the state API accepts, 100 years."""

JobName = tuple[str, int]
"""Key and generation."""


class Submitter(Shape, frozen=True, forbid_unknown_fields=True):
    """A process that was allowed to submit.

    `request_id` and `request_digest` belong to the intent request that allowed it; empty if the
    request had no id.
    """

    id: str
    attempt: Ordinal
    pod_uid: str = msgspec.field(name="podUID")
    session: str
    time: Time
    request_id: str = ""
    request_digest: str = ""


class JobRecord(Shape, frozen=True, forbid_unknown_fields=True):
    """One generation of an external job as stored. `result` is unparsed JSON text.

    `repeated`: a process was allowed to submit while an earlier submission was unresolved.
    `submitters`: the processes allowed to submit and not known to have ended when the next one was
    allowed. `session`: the last session that recorded the handle or reattached to the job.
    `given_up`: see `JobSummary`. `begun_by`: the id of the request that began this generation,
    if one did. `cancel_requested_at`: when an attempt first recorded that it cancels the job. The
    state is `Intended` exactly while the job is open and has no handle.
    """

    key: JobKey
    generation: Ordinal
    adapter: AdapterName
    token: str
    digest: str
    state: JobState
    intended_at: Time
    intended_by_attempt: Ordinal
    token_seconds: TokenSeconds | None = None
    detached: bool = False
    repeated: bool = False
    submitters: tuple[Submitter, ...] = ()
    handle: Handle | None = None
    url: Url | None = None
    origin: JobOrigin | None = None
    recorded_at: Time | None = None
    submitted_by_attempt: Ordinal | None = None
    session: str = ""
    ended_at: Time | None = None
    ended_by_attempt: Ordinal | None = None
    result: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    message: str = ""
    held: bool = False
    holds: Count = 0
    strays: tuple[str, ...] = ()
    given_up: bool = False
    begun_by: str = ""
    cancel_requested_at: Time | None = None
    cancel_requested_by_attempt: Ordinal | None = None
    field_digests: FieldDigests = msgspec.field(default_factory=dict)

    @property
    def name(self) -> JobName:
        return self.key, self.generation

    @property
    def is_over(self) -> bool:
        return self.state in _OVER

    @property
    def is_preexisting(self) -> bool:
        """True if the job existed before our first submission, so that another run submitted it."""
        return self.origin is JobOrigin.EXISTED and not self.repeated

    @property
    def is_open(self) -> bool:
        """True if the job may be running in the external system and is not detached."""
        return not self.is_over and self.state is not JobState.DETACHED


Jobs = Mapping[JobName, JobRecord]


def token_of(seed: str, key: str, generation: int) -> str:
    """Return the submission token.

    It depends only on the arguments. `seed`: see `Owner.token_seed`.
    """
    return str(uuid.uuid5(_TOKENS, "\0".join((seed, key, str(generation)))))


def in_order(jobs: Jobs) -> tuple[JobRecord, ...]:
    """Return the jobs in the order of their intents."""
    return tuple(sorted(jobs.values(), key=lambda record: (record.intended_at, record.key, record.generation)))


def newest_of(jobs: Jobs, key: str) -> JobRecord | None:
    """Return the newest generation under a key."""
    return max((record for record in jobs.values() if record.key == key), key=lambda r: r.generation, default=None)


def ended_between(before: Jobs, after: Jobs) -> tuple[JobRecord, ...]:
    """Return the jobs of `before` that are over only in `after`."""
    return tuple(after[name] for name, record in before.items() if not record.is_over and after[name].is_over)


def to_job(record: JobRecord) -> Job:
    """Return the record as a message of the state API."""
    fields = msgspec.structs.asdict(record)
    return Job(**{name: fields[name] for name in Job.__struct_fields__})


def to_summary(record: JobRecord) -> JobSummary:
    """Return the fields of a record that the operator needs."""
    return JobSummary(
        key=record.key,
        generation=record.generation,
        state=record.state,
        adapter=record.adapter,
        handle=record.handle,
        url=record.url,
        origin=record.origin,
        submitted_time=record.recorded_at,
        submitted_by_attempt=record.submitted_by_attempt,
        detached=record.detached,
        held=record.held,
        holds=record.holds,
        message=record.message,
        submitters=tuple(dict.fromkeys(one.attempt for one in record.submitters)) if record.held else (),
        strays=record.strays,
        given_up=record.given_up,
        preexisting=record.is_preexisting,
        cancel_requested_time=record.cancel_requested_at,
    )


def fits(jobs: Jobs) -> bool:
    """Return whether all records fit.

    Reserve space for the handle and result of each open job, so that these always fit.
    """
    return sum(_room_of(record) for record in jobs.values()) <= JOBS_BYTES_MAX


def check_room(jobs: Jobs) -> None:
    """Reject jobs that are too many or too large."""
    if len(jobs) > JOBS_MAX:
        detail = (
            f"a TaskRun must have at most {JOBS_MAX} external jobs, each generation counted; it has that many already"
        )
        raise RequestRejectedError(ProblemCode.STATE_FULL, detail)
    if not fits(jobs):
        detail = (
            f"all external jobs together must have at most {JOBS_BYTES_MAX} bytes, with {HANDLE_BYTES_MAX} for the handle and"
            f" {RESULT_BYTES_MAX} for the result of each that is open; with this one they have more"
        )
        raise RequestRejectedError(ProblemCode.STATE_FULL, detail)


def _room_of(record: JobRecord) -> int:
    size = len(job_name_of(record.key, record.generation)) + len(msgspec.json.encode(record))
    if record.is_over:
        return size
    size += _END_BYTES + RESULT_BYTES_MAX
    if record.cancel_requested_at is None:
        size += _CANCELLATION_BYTES
    return size if record.handle is not None else size + _HANDLE_BYTES + HANDLE_BYTES_MAX
