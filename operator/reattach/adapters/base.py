"""What an adapter is: how one kind of external system submits, looks up, reports and cancels jobs.

An adapter knows its system and nothing of Reattach: no state, no retries, no protocol. `task.submit_once` does those, by what the adapter
declares. Its methods are plain functions that talk to the other side once, within `request_seconds`, and say exactly what they know:

    submit     the job's handle; `Rejected` if the other side surely made no job; anything else raised means that nobody knows
    look_up    the job that was submitted under this token, None if there surely is none, anything raised: can't be told now
    status     one of the six answers; anything raised is `Unknown`
    cancel     ask for the end; a job that is over or absent is fine
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
"""What is declared to last longer counts as this long: it is added to dates, and `timedelta.max` goes beyond the last one."""


MARGIN = timedelta(seconds=5)
"""What a request may be late by, on top of its time-out; and what the clocks of the state API's replicas may differ by, where one wrote the
intent and another one says what time it is.
"""


@dataclass(frozen=True)
class ClientName:
    """The other side refuses a second job of the name that the client chose. `retention`: how long it remembers that name, counted
    from the submission; None: for ever.
    """

    retention: timedelta | None = None

    def __post_init__(self) -> None:
        _bound(self, "retention")


@dataclass(frozen=True)
class SubmissionToken:
    """The other side answers a repeated token with the job that it made for it, for `lifetime` after the first use."""

    lifetime: timedelta

    def __post_init__(self) -> None:
        _bound(self, "lifetime")


@dataclass(frozen=True)
class Lookup:
    """Jobs can be found by what we gave them (name, tag, token). `settling`: a job that was accepted is found at the latest after this
    time. `retention`: how long a job is found after its submission, at least, also when it ended at once; None: for ever.
    """

    settling: timedelta
    retention: timedelta | None = None

    def __post_init__(self) -> None:
        _bound(self, "settling")
        _bound(self, "retention")


@dataclass(frozen=True)
class Capabilities:
    """What the other side can do; several may hold, and what is None it can't."""

    client_name: ClientName | None = None
    token: SubmissionToken | None = None
    look_up: Lookup | None = None


@dataclass(frozen=True)
class Submission:
    """What is to be submitted. The `token` (a UUID, the same for every attempt) is what the job must carry, as its name or a part of
    it, as a tag, or as the idempotency key; `request` is what the task asked for, as it gave it.

    `may_leave`: ask it right before the request leaves, the last moment at which anything can stop it. It says no where too much time has passed
    since the submission was allowed: another attempt may have submitted meanwhile, and the other side may have forgotten the token or name
    that keeps this one from making a second job. Then raise `Rejected`, retriable: it is asked anew what is to be done.
    """

    token: str
    request: Any
    key: str
    generation: int
    namespace: str
    taskrun: str
    may_leave: Callable[[], bool] = field(default=lambda: True, repr=False, compare=False)

    @property
    def name(self) -> str:
        """A name for systems that want one: a DNS label of 45 characters that begins with a letter."""
        return f"reattach-{self.token}"


@dataclass(frozen=True)
class Submitted:
    """A job over there. `handle`: its id, at most 1 KiB; `url`: where people can look at it. `existed`: the other side had it already."""

    handle: str
    url: str | None = None
    existed: bool = False


@dataclass(frozen=True)
class Active:
    """It waits or runs. `message`: how far it is, for the log."""

    message: str = ""


@dataclass(frozen=True)
class Succeeded:
    """It is over, with this result: JSON of at most 4 KiB, the same whoever asks and whenever. Any other is dropped, with an ERROR in the
    log: the job has succeeded without.
    """

    result: Any = None


@dataclass(frozen=True)
class Failed:
    """It is over, without success."""

    message: str = ""


@dataclass(frozen=True)
class Cancelled:
    """Somebody ended it."""

    message: str = ""


@dataclass(frozen=True)
class Unknown:
    """The other side can't be asked now. Nothing is concluded from it."""

    message: str = ""


@dataclass(frozen=True)
class NotFound:
    """The other side answers, and does not know the handle."""

    message: str = ""


JobStatus: TypeAlias = Active | Succeeded | Failed | Cancelled | Unknown | NotFound


class Rejected(ReattachError):  # noqa: N818 -- says what is the case
    """Raised by `Adapter.submit`: the other side surely made no job. `retriable`: the same request may be accepted later."""

    def __init__(self, message: str, *, retriable: bool = False) -> None:
        super().__init__(message)
        self.retriable = retriable


class Adapter(ABC):
    """One external system. `name`: at most 63 characters, kept with each job; `request_seconds`: the longest that `submit` may take.

    Methods may be called from any thread, one at a time for a job.
    """

    name: ClassVar[str]
    request_seconds: float = 30.0
    poll_seconds: float = 10.0

    @property
    @abstractmethod
    def capabilities(self) -> Capabilities:
        """What the other side can do. Declare no more than its documentation promises: a duplicate follows from each promise not kept. Where the
        other side must be asked for it, anything raised means that it can't be told now; what hangs on it waits.
        """

    @abstractmethod
    def submit(self, submission: Submission) -> Submitted:
        """Make the job, carrying the token. Raises `Rejected` only if there surely is no job."""

    def look_up(self, submission: Submission) -> Submitted | None:
        """The job that carries the token; None: there is none. Needed where `capabilities.look_up` is declared."""
        raise NotImplementedError(f"{type(self).__name__} declares a look-up and does not have one: {submission.token}")

    @abstractmethod
    def status(self, handle: str) -> JobStatus:
        """How the job stands now."""

    @abstractmethod
    def cancel(self, handle: str) -> None:
        """Ask for the job's end. Whether it has ended `status` tells. May be called again."""

    def digest(self, request: Any) -> str:
        """What tells one request from another. By default of its JSON text, with keys in order.

        Raises:
            TypeError: the request is no JSON, and the adapter does not override this.
        """
        text = json.dumps(request, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return hashlib.sha256(f"{self.name}\0{text}".encode()).hexdigest()


def _bound(declared: ClientName | SubmissionToken | Lookup, name: str) -> None:
    lasting: timedelta | None = getattr(declared, name)
    if lasting is None:
        return
    if lasting < timedelta(0):
        raise ValueError(f"{name} of {type(declared).__name__} must not be negative: {lasting}")
    object.__setattr__(declared, name, min(lasting, LONGEST))
