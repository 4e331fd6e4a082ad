"""The messages of the state API (`/v1/...`), the same for server and SDK.

Authentication: `Authorization: Bearer <pod token>`. Every call but `open` names its session in `Reattach-Session`. A call that
changes something should carry `Reattach-Request-Id` (1-64 characters, unique per change): the same id asked again is answered with the
first answer and changes nothing. `open` needs none: the same session asked again is the same answer. Sessions and request ids are made
of letters, digits, `-`, `_` and `.`. Errors are `application/problem+json` (RFC 9457) with a stable `code`.

Bytes of a value count as its shortest JSON text in UTF-8; bytes of the state count all records as they are stored, with who wrote them.

    POST   /v1/open             OpenRequest      200 OpenResponse
    GET    /v1/state            ?prefix=&limit=&offset=   200 EntryList, without a limit all of them
    POST   /v1/state            BatchRequest     200 BatchResponse
    DELETE /v1/state            (clear)          200 BatchResult
    GET    /v1/state/{key}                       200 Entry
    PUT    /v1/state/{key}      SetRequest       200 SetResponse
    DELETE /v1/state/{key}      ?ifVersion=      200 BatchResult, also when the key was absent (deleted: 0)
    POST   /v1/complete         CompleteRequest  204; again with the same result: 204, with another: 409 completed
    *      /v1/jobs/...                          501 not-implemented

A key goes into the path percent-encoded (`a/b` or `a%2Fb`). Values may hold integers of any size: use a JSON library that keeps them.
Once an attempt recorded its completion, its state is final: changes are answered `completed`, reads go on.
"""

from datetime import datetime
from enum import StrEnum
from typing import Any, Literal

import msgspec

from reattach.api.objects import Shape

VALUE_BYTES_MAX = 64 * 1024
STATE_BYTES_MAX = 512 * 1024
KEY_CHARACTERS_MAX = 512
NESTING_MAX = 100
RESULT_BYTES_MAX = 4 * 1024
SESSION_CHARACTERS_MAX = 64
REQUEST_ID_CHARACTERS_MAX = 64
BATCH_OPERATIONS_MAX = 100
DEFAULT_RETENTION_SECONDS = 30 * 24 * 3600


class ProblemCode(StrEnum):
    """The stable codes of errors. HTTP status in the comment."""

    UNAUTHENTICATED = "unauthenticated"  # 401: no token, or TokenReview refuses it
    NOT_A_TASK_POD = "not-a-task-pod"  # 403: the token is good, but not of a pod that Reattach made
    INVALID = "invalid"  # 400: the request is malformed; `detail` says what must hold
    VALUE_INVALID = "value-invalid"  # 422: null, NaN or Infinity, also nested
    VALUE_TOO_LARGE = "value-too-large"  # 413
    STATE_FULL = "state-full"  # 413: all keys together
    KEY_INVALID = "key-invalid"  # 422: empty or too long
    NOT_FOUND = "not-found"  # 404: this key is absent
    EXISTS = "exists"  # 412: create-only, and the key is there
    VERSION_MISMATCH = "version-mismatch"  # 412: if-version, and the version is another
    NOT_OPEN = "not-open"  # 409: no session of this pod has opened the state
    FENCED = "fenced"  # 409: a later attempt or session took over
    CLOSING = "closing"  # 409: the run is being ended or suspended
    COMPLETED = "completed"  # 409: this attempt already recorded its completion
    STATE_LOST = "state-lost"  # 409: the state was deleted by force
    CONFLICT = "conflict"  # 503: too many writers at once, with Retry-After
    REQUEST_TOO_LARGE = "request-too-large"  # 413: the whole body, 1 MiB
    RATE_LIMITED = "rate-limited"  # 429, with Retry-After
    FORMAT_UNKNOWN = "format-unknown"  # 503: written by a newer version
    UNAVAILABLE = "unavailable"  # 503: the Kubernetes API can't be reached
    METHOD_NOT_ALLOWED = "method-not-allowed"  # 405
    ROUTE_UNKNOWN = "route-unknown"  # 404: no such route
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
    """`POST /v1/open`. `session` is chosen by the client (a UUID); the attempt follows from the pod."""

    session: str
    can_cleanup: bool = False


class OpenResponse(Shape, frozen=True, omit_defaults=False):
    """Who the pod is. `first` tells that no attempt before this one opened the state."""

    namespace: str
    taskrun: str
    taskrun_uid: str = msgspec.field(name="taskrunUID")
    attempt: int
    first: bool
    server_time: datetime


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
    """`GET /v1/state?prefix=&limit=&offset=`: keys in order; `total` counts all that match the prefix."""

    items: tuple[Entry, ...]
    total: int


class SetRequest(Shape, frozen=True, forbid_unknown_fields=True):
    """`PUT /v1/state/{key}`. At most one of `if_absent` and `if_version`.

    `retention_seconds`: absent means the default, 0 or null means never expires. Expiry never takes effect while the TaskRun is unfinished.
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
    """One step of `POST /v1/state`: `set` takes what `SetRequest` takes, `delete` takes key and `if_version`, `clear` nothing."""

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
    """What one operation did: the version a `set` gave (None for others) and how many keys a `delete` or `clear` removed."""

    version: int | None = None
    deleted: int = 0


class BatchResponse(Shape, frozen=True, omit_defaults=False):
    """One result per operation, in order."""

    results: tuple[BatchResult, ...]


class CompleteRequest(Shape, frozen=True, forbid_unknown_fields=True):
    """`POST /v1/complete`: the task is done. `result` is any JSON value of at most 4 KiB, or absent."""

    result: Any | msgspec.UnsetType = msgspec.UNSET


class TerminationMessage(Shape, frozen=True):
    """What the SDK writes to the container's termination message file, so that the operator knows more than the exit code.

    `kind`: `Failed` (an ordinary error), `Permanent` (never try again), `RetryLater` (with `retry_after_seconds`), `Fenced`, `Held`.
    """

    reattach: Literal["v1"]
    kind: Literal["Failed", "Permanent", "RetryLater", "Fenced", "Held"]
    message: str = ""
    retry_after_seconds: int | None = None
