"""Definition of an adapter: it submits, looks up, reports and cancels jobs of one system.

An adapter knows its system and nothing of Reattach: no state, no retries, no protocol.
`task.submit_once` does these, based on what the adapter declares. Each method sends one request to
the external system within `request_seconds`, and reports exactly what the response proves:

    submit     the job's handle; raises `Rejected` only if the system certainly created no job;
               any other exception means that the outcome is unknown
    look_up    the job that was submitted under this token, or None if there certainly is none;
               any exception means that the answer is unknown for now
    status     one of the six `JobStatus` values; any exception counts as `Unknown`
    cancel     request the end of the job; a terminal or absent job is no error
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, ClassVar, TypeAlias

from reattach.errors import ReattachError

LONGEST = timedelta(days=100 * 365)
"""Upper bound of declared durations, because adding `timedelta.max` to a date overflows."""


MARGIN = timedelta(seconds=5)
"""Lateness of a request that is allowed beyond its timeout.

Also the largest difference between the clocks of two state API replicas, because one may store the
intent and another report the current time.
"""


@dataclass(frozen=True)
class ClientName:
    """The external system rejects a second job with the same client-chosen name.

    `retention`: how long the system remembers the name, counted from the submission; None: forever.
    `while_open`: the name is free again when its job ends. It then does not prevent a second job,
    because the first one may have ended.
    """

    retention: timedelta | None = None
    while_open: bool = False

    def __post_init__(self) -> None:
        _bound(self, "retention")
        _check_while_open(self)


@dataclass(frozen=True)
class SubmissionToken:
    """The external system returns the first job when a token is repeated.

    `lifetime`: how long it does so after the first use of the token. `while_open`: it does so only
    until the job ends, and a repeated token then makes a second job.
    """

    lifetime: timedelta
    while_open: bool = False

    def __post_init__(self) -> None:
        _bound(self, "lifetime")


@dataclass(frozen=True)
class Lookup:
    """Jobs can be found by what the submission gave them (name, tag, token).

    `settling`: an accepted job is found after this time at the latest. `retention`: how long a job
    is found after its submission, at least, even if it ended at once; None: forever. `while_open`:
    only open jobs are found. A job that is not found may then have ended.
    """

    settling: timedelta
    retention: timedelta | None = None
    while_open: bool = False

    def __post_init__(self) -> None:
        _bound(self, "settling")
        _bound(self, "retention")
        _check_while_open(self)


@dataclass(frozen=True)
class Capabilities:
    """Guarantees of the external system. Several may hold; None means that the system lacks it."""

    client_name: ClientName | None = None
    token: SubmissionToken | None = None
    look_up: Lookup | None = None


@dataclass(frozen=True)
class TaskRunOwner:
    """The TaskRun as the owner of an object that is the job.

    `kept_because`: why the job must outlive the TaskRun; empty if Kubernetes may delete the object
    with it.
    """

    uid: str
    kept_because: str = ""


@dataclass(frozen=True)
class Submission:
    """A job to submit.

    The job must carry `token`, a UUID that is the same for every attempt: as its name or part of
    it, as a tag, or as its idempotency key. `request` is the task's request, unchanged.

    Call `may_leave` right before the request leaves, which is the last moment to stop it. It
    returns False if too much time has passed since the submission was allowed. Another attempt may
    then have submitted, and the system may have forgotten the token or name that prevents a second
    job. Raise `Rejected(retriable=True)` in this case; the SDK then requests a new decision from
    the state API.

    `owner`: None if the state API does not report it.
    """

    token: str
    request: Any
    key: str
    generation: int
    namespace: str
    taskrun: str
    may_leave: Callable[[], bool] = field(default=lambda: True, repr=False, compare=False)
    owner: TaskRunOwner | None = None

    @property
    def name(self) -> str:
        """Name of the job: a DNS label of 45 characters that begins with a letter."""
        return f"reattach-{self.token}"


@dataclass(frozen=True)
class Submitted:
    """A job in the external system.

    `handle`: its id, a string of at most 1 KiB; an integer is stored as text. If it can't be
    stored, the run is held, because the job exists. `url`: an http or https page about the job.
    `existed`: the job existed before this submission.
    """

    handle: str
    url: str | None = None
    existed: bool = False


@dataclass(frozen=True)
class Active:
    """The job waits or runs. `message`: its progress, for the log."""

    message: str = ""


@dataclass(frozen=True)
class Succeeded:
    """The job succeeded with this result: JSON of at most 4 KiB, the same for every call.

    The SDK drops any other result and logs an ERROR, because the job has succeeded anyway.
    `message`: shown with the job, for example why there is no result.
    """

    result: Any = None
    message: str = ""


@dataclass(frozen=True)
class Failed:
    """The job failed."""

    message: str = ""


@dataclass(frozen=True)
class Cancelled:
    """The job was cancelled."""

    message: str = ""


@dataclass(frozen=True)
class Unknown:
    """The status is unknown for now, because the external system is unreachable.

    Nothing follows from it. `retry_after`: seconds before which the external system wants no other
    request.
    """

    message: str = ""
    retry_after: float | None = None


@dataclass(frozen=True)
class NotFound:
    """The external system responds and does not know the handle."""

    message: str = ""


JobStatus: TypeAlias = Active | Succeeded | Failed | Cancelled | Unknown | NotFound


class Rejected(ReattachError):  # noqa: N818 -- a fact about the request, as in the words of its users
    """Raised by `Adapter.submit`: the external system certainly created no job.

    `retriable`: the same request may be accepted later. `credentials`: it is rejected because of
    the credentials, which may be replaced while the task waits. The SDK submits again for an hour,
    and then ends the attempt. `retry_after`: seconds before which the external system wants no
    other request.
    """

    def __init__(
        self, message: str, *, retriable: bool = False, credentials: bool = False, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.retriable = retriable or credentials
        self.credentials = credentials
        self.retry_after = retry_after


class Adapter(ABC):
    """One external system.

    `name`: at most 63 characters, stored with each job. `request_seconds`: the longest that
    `submit` may take. Methods may be called from any thread, one at a time for each job.
    """

    name: ClassVar[str]
    request_seconds: float = 30.0
    poll_seconds: float = 10.0

    @property
    @abstractmethod
    def capabilities(self) -> Capabilities:
        """Guarantees of the external system.

        Declare no more than its documentation promises, because each broken promise can duplicate a
        job. If they must be read from the system, any exception means that they are unknown for
        now; the steps that need them wait.
        """

    @abstractmethod
    def submit(self, submission: Submission) -> Submitted:
        """Create the job with the token. Raises `Rejected` only if there certainly is no job."""

    def look_up(self, submission: Submission) -> Submitted | None:
        """Return the job that carries the token, or None.

        Required if `capabilities.look_up` is declared. In a cleanup attempt, `submission.request`
        is None, because only its digest is stored.
        """
        raise NotImplementedError(
            f"{type(self).__name__} declares look_up and does not implement it: {submission.token}"
        )

    @abstractmethod
    def status(self, handle: str) -> JobStatus:
        """Return the current status of the job."""

    @abstractmethod
    def cancel(self, handle: str) -> None:
        """Request the end of the job. `status` reports whether it ended. May be called again."""

    def digest(self, request: Any) -> str:
        """Return what distinguishes requests: by default a hash of the JSON text with sorted keys.

        Raises:
            TypeError: the request is not JSON, and the adapter does not override this method.
        """
        text = json.dumps(request, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return hashlib.sha256(f"{self.name}\0{text}".encode()).hexdigest()


def _check_while_open(declared: ClientName | Lookup) -> None:
    if declared.while_open and declared.retention is not None:
        raise ValueError(
            f"{type(declared).__name__} must have either retention or while_open: what is known only while the job is open"
            " may be forgotten at once"
        )


def _bound(declared: ClientName | SubmissionToken | Lookup, name: str) -> None:
    lasting: timedelta | None = getattr(declared, name)
    if lasting is None:
        return
    if lasting < timedelta(0):
        raise ValueError(f"{name} of {type(declared).__name__} must not be negative: {lasting}")
    object.__setattr__(declared, name, min(lasting, LONGEST))
