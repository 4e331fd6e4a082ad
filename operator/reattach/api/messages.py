"""Messages of the state API (`/v1/...`), for server and SDK.

Authentication: `Authorization: Bearer <pod token>`. Every call except `open` sends its session in
`Reattach-Session`. A call with a change should send `Reattach-Request-Id` (1-64 characters, unique
per change). A repeated id returns the first response and changes nothing. `open` needs no id,
because it is idempotent for a session. Sessions and request ids consist of letters, digits, `-`,
`_` and `.`. Errors are `application/problem+json` (RFC 9457) with a stable `code`.

The size of a value is its shortest JSON text in UTF-8. The size of the state is all its records as
stored, with their writers.

    POST   /v1/open             OpenRequest      200 OpenResponse
    GET    /v1/state            ?prefix=&limit=&offset=   200 EntryList, without a limit all of them
    POST   /v1/state            BatchRequest     200 BatchResponse
    DELETE /v1/state            (clear)          200 BatchResult
    GET    /v1/state/{key}                       200 Entry
    PUT    /v1/state/{key}      SetRequest       200 SetResponse
    DELETE /v1/state/{key}      ?ifVersion=      200 BatchResult, also if the key is absent
    POST   /v1/complete         CompleteRequest  204; 409 completed for another result
    POST   /v1/end              EndRequest       204; 409 ended for another end
    GET    /v1/jobs                              200 JobList, all generations, by intent
    GET    /v1/jobs/{key}       ?generation=     200 Job, without a generation the newest
    POST   /v1/jobs/{key}/intent   IntentRequest    200 IntentResponse
    PUT    /v1/jobs/{key}/handle   HandleRequest    204; 409 handle-differs
    PUT    /v1/jobs/{key}/outcome  OutcomeRequest   204; 409 job-over
    POST   /v1/jobs/{key}/cancellation  CancellationRequest  200 CancellationResponse; 409 job-kept

An external job has four steps: store the intent, submit to the external system with the job's
`token`, record the handle, and record the outcome. Submit only if the response to the intent is
`Submit`. A fenced session may only call `handle`, for an intent of its own process. A repeated
`complete`, `end`, `handle` or `outcome` with the same content returns 204.

A key goes into the path percent-encoded (`a/b` or `a%2Fb`). Values may contain integers of any
size: use a JSON library that preserves them. Once an attempt has recorded its completion or its
end, its state is final: changes return `completed` or `ended`, and reads still work.
"""

from datetime import datetime
from enum import IntEnum, StrEnum
from typing import Annotated, Any, Literal

import msgspec

from reattach.api.objects import Shape
from reattach.api.state import JobOrigin, JobReference, JobState
from reattach.api.taskrun import AttemptPurpose

VALUE_BYTES_MAX = 64 * 1024
STATE_BYTES_MAX = 512 * 1024
KEY_CHARACTERS_MAX = 512
NESTING_MAX = 100
RESULT_BYTES_MAX = 4 * 1024
SESSION_CHARACTERS_MAX = 64
REQUEST_ID_CHARACTERS_MAX = 64
BATCH_OPERATIONS_MAX = 100
DEFAULT_RETENTION_SECONDS = 30 * 24 * 3600
JOBS_MAX = 64
"""Generations count each."""
JOB_KEY_CHARACTERS_MAX = 128
ADAPTER_CHARACTERS_MAX = 63
DIGEST_CHARACTERS_MAX = 128
HANDLE_BYTES_MAX = 1024
URL_BYTES_MAX = 1024
JOB_MESSAGE_BYTES_MAX = 512
"""A longer message is cut, not refused."""
END_MESSAGE_BYTES_MAX = 4 * 1024
"""The middle of a longer message is cut, as in the termination message file."""
RETRY_AFTER_SECONDS_MAX = 365 * 24 * 3600
"""Longest delay that a task or a rule may request."""


class TaskExitCode(IntEnum):
    """Exit codes of the SDK for an attempt that can't use its state any more."""

    FENCED = 79
    CLOSING = 80
    STATE_LOST = 81
    REFUSED = 82
    UNAVAILABLE = 83
    PROTOCOL_ERROR = 84
    HELD = 85
    CLEANUP_ONLY = 86
    POD_RELEASED = 87


class ProblemCode(StrEnum):
    """The stable codes of errors. HTTP status in the comment."""

    UNAUTHENTICATED = "unauthenticated"  # 401: no token, or TokenReview refuses it
    NOT_A_TASK_POD = "not-a-task-pod"  # 403: the token is good, but not of a pod that Reattach made
    INVALID = "invalid"  # 400: the request is malformed; `detail` says what must hold
    VALUE_INVALID = "value-invalid"  # 422: null, NaN or Infinity, also nested
    VALUE_TOO_LARGE = "value-too-large"  # 413
    STATE_FULL = "state-full"  # 413: all keys together
    KEY_INVALID = "key-invalid"  # 422: empty or too long, or of a new job and not printable
    NOT_FOUND = "not-found"  # 404: this key is absent
    EXISTS = "exists"  # 412: create-only, and the key is there
    VERSION_MISMATCH = "version-mismatch"  # 412: if-version, and the version is another
    NOT_OPEN = "not-open"  # 409: no session of this pod has opened the state
    FENCED = "fenced"  # 409: a later attempt or session took over
    CLOSING = "closing"  # 409: the run is being ended or suspended
    COMPLETED = "completed"  # 409: this attempt already recorded its completion
    ENDED = "ended"  # 409: this attempt already reported how it ends
    STATE_LOST = "state-lost"  # 409: the state was deleted by force
    CONFLICT = "conflict"  # 503: too many writers at once, with Retry-After
    REQUEST_TOO_LARGE = "request-too-large"  # 413: the whole body, by its route
    RATE_LIMITED = "rate-limited"  # 429, with Retry-After; also for too many large bodies at once
    FORMAT_UNKNOWN = "format-unknown"  # 503: written by a newer version
    UNAVAILABLE = "unavailable"  # 503: the Kubernetes API can't be reached, or the replica's clock is wrong
    METHOD_NOT_ALLOWED = "method-not-allowed"  # 405
    ROUTE_UNKNOWN = "route-unknown"  # 404: no such route
    DIGEST_CHANGED = "digest-changed"  # 409: another request under the key of a job that is open or succeeded
    JOB_NOT_FOUND = "job-not-found"  # 404: no intent was ever stored under this key and generation
    JOB_OPEN = "job-open"  # 409: a new generation is wanted, and the newest is still open
    JOB_OVER = "job-over"  # 409: the job has ended otherwise
    JOBS_OPEN = "jobs-open"  # 409: `complete` while an external job is open and not detached
    JOB_KEPT = "job-kept"  # 409: the job must not be cancelled, because this run did not submit it
    CLEANUP_ONLY = "cleanup-only"  # 409: an attempt that cleans up only reads, and records what it finds and cancels
    GROUNDS_REFUSED = "grounds-refused"  # 409: `again`, and what the state API knows speaks against it
    HANDLE_DIFFERS = "handle-differs"  # 409: another handle is recorded; this one is stored as a stray
    NOT_IMPLEMENTED = "not-implemented"  # 501
    INTERNAL = "internal"  # 500: a bug; whether a change was made is not known


class Problem(Shape, frozen=True):
    """The body of every error."""

    type: str
    title: str
    status: int
    code: str
    detail: str


class OpenRequest(Shape, frozen=True):
    """`POST /v1/open`.

    `session` is chosen by the client (a UUID); attempt and purpose follow from the pod.
    `can_cleanup`, `cleanup_handler`: see `api.state.Epoch`.
    """

    session: str
    can_cleanup: bool = False
    cleanup_handler: bool = False


class OpenResponse(Shape, frozen=True, omit_defaults=False):
    """The identity of the pod. `first`: no earlier attempt opened the state.

    `purpose`: an older state API omits it, and serves only attempts that run the task.
    """

    namespace: str
    taskrun: str
    taskrun_uid: str = msgspec.field(name="taskrunUID")
    attempt: int
    first: bool
    server_time: datetime
    purpose: AttemptPurpose = AttemptPurpose.RUN


class Entry(Shape, frozen=True, omit_defaults=False):
    """One key with its value and who wrote it. `expires_at` None means never."""

    key: str
    value: Any
    version: int
    attempt: int
    pod_uid: str = msgspec.field(name="podUID")
    updated_at: datetime
    expires_at: datetime | None


class EntryList(Shape, frozen=True, omit_defaults=False):
    """`GET /v1/state?prefix=&limit=&offset=`: keys in order.

    `total` counts all keys with the prefix.
    """

    items: tuple[Entry, ...]
    total: int


class SetRequest(Shape, frozen=True, forbid_unknown_fields=True):
    """`PUT /v1/state/{key}`. At most one of `if_absent` and `if_version`.

    `retention_seconds`: absent means the default, 0 or null means never expires. Expiry never takes
    effect while the TaskRun is unfinished.
    """

    value: Any
    if_absent: bool = False
    if_version: int | None = None
    retention_seconds: int | msgspec.UnsetType | None = msgspec.UNSET


class SetResponse(Shape, frozen=True, omit_defaults=False):
    """The version that the key has now, and when it expires (None: never)."""

    version: int
    expires_at: datetime | None


class Operation(Shape, frozen=True, forbid_unknown_fields=True):
    """One step of `POST /v1/state`.

    `set` takes the fields of `SetRequest`, `delete` takes key and `if_version`, `clear` nothing.
    """

    op: Literal["set", "delete", "clear"]
    key: str | None = None
    value: Any | msgspec.UnsetType = msgspec.UNSET
    if_absent: bool = False
    if_version: int | None = None
    retention_seconds: int | msgspec.UnsetType | None = msgspec.UNSET


class BatchRequest(Shape, frozen=True, forbid_unknown_fields=True):
    """`POST /v1/state`: all of it happens, or nothing does."""

    operations: tuple[Operation, ...]


class BatchResult(Shape, frozen=True, omit_defaults=False):
    """The result of one operation.

    `version`: the new version after a `set`. `deleted`: the number of keys that a `delete` or
    `clear` removed.
    """

    version: int | None = None
    deleted: int = 0


class BatchResponse(Shape, frozen=True, omit_defaults=False):
    """One result per operation, in order."""

    results: tuple[BatchResult, ...]


class CompleteRequest(Shape, frozen=True, forbid_unknown_fields=True):
    """`POST /v1/complete`: the task is done.

    `result` is any JSON value of at most 4 KiB, or absent.
    """

    result: Any | msgspec.UnsetType = msgspec.UNSET


class EndKind(StrEnum):
    """The end of an attempt, as its task reports it."""

    PERMANENT = "Permanent"
    """A retry can't succeed: the run fails."""
    RETRY_LATER = "RetryLater"
    """The attempt failed, and the next one may succeed after `retryAfterSeconds`."""
    NOT_READY = "NotReady"
    """Nothing failed: something that the task needs does not exist yet."""
    WAITING = "Waiting"
    """Nothing failed: an external job runs, and the next attempt checks it."""


class EndRequest(Shape, frozen=True, forbid_unknown_fields=True):
    """`POST /v1/end`: this attempt ends without a completion, and why.

    Send it right before the process ends. It replaces the termination message, so that neither the
    path nor the size of that file matters. `retry_after_seconds`: delay of the next attempt, at
    most a year; null for the pause of `spec.retry.backoff`. It must be null for `Permanent`, and at
    least 1 for `Waiting`. `job`: the open job with a handle that the task waits for; only for
    `Waiting`, which requires it.
    """

    kind: EndKind
    message: str = ""
    retry_after_seconds: int | None = None
    job: JobReference | None = None


class Grounds(StrEnum):
    """Grounds to submit again while an earlier submission is unresolved, in order of preference."""

    CLIENT_NAME = "ClientName"
    """The external system rejects a second job of the same name, and still remembers this name."""
    TOKEN = "Token"  # noqa: S105 -- no secret
    """The external system returns the same job for the same token, until the request has ended."""
    ABSENT = "Absent"
    """A lookup after the settling time found no job, and the external system would remember one."""
    POLICY = "Policy"
    """`spec.submission.onUnknown` is `Resubmit`."""


FIELD_DIGESTS_MAX = 16
"""Number of top-level fields of a request whose digests are stored."""
FIELD_NAME_CHARACTERS_MAX = 40
_FieldName = Annotated[str, msgspec.Meta(min_length=1, max_length=FIELD_NAME_CHARACTERS_MAX, pattern="^[ -~]+$")]
_FieldDigest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{8}$")]
FieldDigests = Annotated[dict[_FieldName, _FieldDigest], msgspec.Meta(max_length=FIELD_DIGESTS_MAX)]
"""The start of the digest of each top-level field of a request, by name."""


class IntentRequest(Shape, frozen=True, forbid_unknown_fields=True):
    """`POST /v1/jobs/{key}/intent`. A key has 1 to 128 printable characters.

    `submitter`: the process that will submit (letters, digits, `-`, `_`, `.`; a UUID per process).
    Its own earlier submissions count as ended when it sends another intent.
    `digest`: digest of the request, to detect another request under the same key.
    `field_digests`: digests of its top-level fields by name, to name those that differ then.
    `token_seconds`: how long the external system honours the token, from the first intent; null if
    it honours none, or this is unknown.
    `again`: submit although the last response was `Resolve`.
    `new_generation`: submit again after the newest generation is over. It also ends a `NotFound`
    one if `spec.submission.onNotFound` is `Resubmit`.
    """

    submitter: str
    adapter: str
    digest: str
    token_seconds: int | None = None
    detached: bool = False
    again: Grounds | None = None
    new_generation: bool = False
    field_digests: FieldDigests = msgspec.field(default_factory=dict)


class Decision(StrEnum):
    """The decision in the response to an intent."""

    SUBMIT = "Submit"
    """The intent is stored: submit with `job.token`, then record the handle."""
    RESOLVE = "Resolve"
    """The intent has no handle and may have been submitted, by `unresolved`. Resolve it first."""
    REATTACH = "Reattach"
    """The job has a handle: watch it."""
    OVER = "Over"
    """The job is over, and its outcome is recorded.

    A failed job that was not given up gets a new generation once an attempt was charged for it.
    """


class Job(Shape, frozen=True, omit_defaults=False):
    """One generation of one external job.

    `result` is JSON, absent unless it succeeded with one. `given_up`: see `OutcomeRequest`.
    """

    key: str
    generation: int
    adapter: str
    token: str
    digest: str
    state: JobState
    detached: bool
    intended_at: datetime
    token_seconds: int | None = None
    handle: str | None = None
    url: str | None = None
    origin: JobOrigin | None = None
    recorded_at: datetime | None = None
    submitted_by_attempt: int | None = None
    ended_at: datetime | None = None
    ended_by_attempt: int | None = None
    result: Any | msgspec.UnsetType = msgspec.UNSET
    message: str = ""
    held: bool = False
    holds: int = 0
    strays: tuple[str, ...] = ()
    given_up: bool = False
    cancel_requested_at: datetime | None = None
    cancel_requested_by_attempt: int | None = None


class JobList(Shape, frozen=True, omit_defaults=False):
    """`GET /v1/jobs`."""

    items: tuple[Job, ...]


class Unresolved(Shape, frozen=True, omit_defaults=False):
    """The processes that may have submitted.

    `all_ended`: each is the calling process itself, or an attempt whose end is certain (`end:
    Reported`, or any end with `spec.submission.onPresumedEnd: Trust`). Otherwise one may be frozen
    and still submit. `quiet_since`: the time from which no process can have submitted, by the state
    API's clock: that of this response. The settling time begins here. It is null unless
    `all_ended`.
    """

    all_ended: bool
    quiet_since: datetime | None
    attempts: tuple[int, ...]


class JobOwner(Shape, frozen=True, omit_defaults=False):
    """The TaskRun as the owner of an object that its task creates as a job.

    `kept_because`: why the job must outlive the TaskRun, so that the object must have no owner;
    empty if the object may be deleted with the TaskRun.
    """

    uid: str
    kept_because: str


class IntentResponse(Shape, frozen=True, omit_defaults=False):
    """The decision, and the policies of `spec.submission`: Hold, Fail or Resubmit.

    `owner`: an older state API omits it.
    """

    decision: Decision
    job: Job
    unresolved: Unresolved | None
    on_unknown: Literal["Hold", "Fail", "Resubmit"]
    on_not_found: Literal["Hold", "Fail", "Resubmit"]
    server_time: datetime
    owner: JobOwner | None = None


class CancellationRequest(Shape, frozen=True, forbid_unknown_fields=True):
    """`POST /v1/jobs/{key}/cancellation`: this attempt is about to cancel the job.

    Sent before the request to the external system. A repetition keeps the first time. For a job
    without a handle, it records nothing and returns what is known about its submitters.
    """

    generation: int


class CancellationResponse(Shape, frozen=True, omit_defaults=False):
    """The job, and for a job without a handle its unresolved submission.

    `may_resolve`: an attempt that may have submitted the job has not ended yet, so its handle may
    still be reported: call again. `unresolved.quiet_since` is the time of this response, because an
    attempt may have ended after the cleanup attempt began. Keep that of the first response with
    `all_ended`.
    """

    job: Job
    unresolved: Unresolved | None
    may_resolve: bool
    server_time: datetime


class HandleRequest(Shape, frozen=True, forbid_unknown_fields=True):
    """`PUT /v1/jobs/{key}/handle`. `submitter` as in the intent.

    `origin`: Submitted (the external system created a new job), Existed or Found. The state API
    derives the other origins. `url`: a page about the job, http or https. Any other URL is dropped,
    so that the handle is stored.
    """

    generation: int
    submitter: str
    handle: str
    url: str | None = None
    origin: Literal["Submitted", "Existed", "Found"] = "Submitted"


class OutcomeRequest(Shape, frozen=True, forbid_unknown_fields=True):
    """`PUT /v1/jobs/{key}/outcome`.

    `Succeeded` (with `result`, JSON of at most 4 KiB), `Failed`, `Cancelled`: final. `Active`,
    `Unknown`: shows users whether the external system responds. The job needs a handle. `hold`:
    manual resolution required. Use `Unknown` for an intent without a handle. For a job with one,
    use `NotFound`, or `Active` if the task has another request. `given_up`, with `Failed`: the end
    is unknown, and the policy is `Fail`. The job may be running, so no attempt submits it again
    without `new_generation`.
    """

    generation: int
    state: Literal["Succeeded", "Failed", "Cancelled", "Active", "Unknown", "NotFound"]
    result: Any | msgspec.UnsetType = msgspec.UNSET
    message: str = ""
    hold: bool = False
    given_up: bool = False


class TerminationMessage(Shape, frozen=True):
    """The message that the SDK writes to the container's termination message file.

    `kind`: `Failed` (an ordinary error), `Permanent` (no retry), `RetryLater` (with
    `retry_after_seconds`), `Unavailable` (the state API is unavailable, or rejected the call),
    `Fenced`, `Held`. An operator that does not know the kind treats the message as the end of a
    log. `not_ready`: the kind is `RetryLater`, and nothing failed. `credentials_refused`: the kind
    is `Unavailable`, because an external system refused the credentials of a submission.
    """

    reattach: Literal["v1"]
    kind: Literal["Failed", "Permanent", "RetryLater", "Unavailable", "Fenced", "Held"]
    message: str = ""
    retry_after_seconds: int | None = None
    not_ready: bool = False
    credentials_refused: bool = False
