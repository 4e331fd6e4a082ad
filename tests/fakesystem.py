"""An external system in memory, whose capabilities and responses a test sets, for unit tests."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from typing_extensions import override

from reattach.adapter import (
    Active,
    Adapter,
    Capabilities,
    ClientName,
    JobStatus,
    Lookup,
    NotFound,
    Submission,
    SubmissionToken,
    Submitted,
    Succeeded,
)

REQUEST = {"entrypoint": "python load.py"}
RESULT = {"rows_written": 4211}

NAME = ClientName()
TOKEN = SubmissionToken(timedelta(hours=1))
LOOK_UP = Lookup(settling=timedelta(seconds=30), retention=timedelta(hours=2))


class LostError(Exception):
    """The request may have arrived, or not."""


@dataclass
class System(Adapter):
    """System that enforces names or tokens only if `can` declares them.

    before_submit, after_submit: functions to call before and after a job is made; `submit` raises
        their exceptions. `before_look_up`, `before_status` and `before_cancel` are alike.
    statuses: statuses to return in turn; the last one is repeated.
    hidden_for: number of lookups that do not find an existing job.
    """

    name = "thing"

    can: Capabilities = field(default_factory=Capabilities)
    before_capabilities: list[Callable[[], None]] = field(default_factory=list)
    before_submit: list[Callable[[], None]] = field(default_factory=list)
    after_submit: list[Callable[[], None]] = field(default_factory=list)
    before_look_up: list[Callable[[], None]] = field(default_factory=list)
    before_status: list[Callable[[], None]] = field(default_factory=list)
    before_cancel: list[Callable[[], None]] = field(default_factory=list)
    statuses: list[JobStatus] = field(default_factory=lambda: [Active("half of it"), Succeeded(RESULT)])
    hidden_for: int = 0
    name_of: Callable[[int], Any] = "job-{}".format
    """Returns the handle of the n-th job."""
    url: str | None = "https://thing.test"
    jobs: dict[str, Submission] = field(default_factory=dict)
    submissions: list[Submission] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    look_ups: int = 0

    @property
    @override
    def capabilities(self) -> Capabilities:
        _call_next(self.before_capabilities)
        return self.can

    @override
    def submit(self, submission: Submission) -> Submitted:
        self.submissions.append(submission)
        _call_next(self.before_submit)
        known = self._known(submission) if self.can.client_name or self.can.token else None
        if known is None:
            known = self.name_of(len(self.jobs) + 1)
            self.jobs[known] = submission
            existed = False
        else:
            existed = True
        _call_next(self.after_submit)
        return Submitted(known, url=self.url, existed=existed)

    @override
    def look_up(self, submission: Submission) -> Submitted | None:
        self.look_ups += 1
        _call_next(self.before_look_up)
        if self.hidden_for > 0:
            self.hidden_for -= 1
            return None
        known = self._known(submission)
        return None if known is None else Submitted(known, url=self.url)

    @override
    def status(self, handle: str) -> JobStatus:
        self.asked.append(handle)
        _call_next(self.before_status)
        if handle not in self.jobs:
            return NotFound(f"no {handle} here")
        return self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]

    @override
    def cancel(self, handle: str) -> None:
        self.cancelled.append(handle)
        _call_next(self.before_cancel)

    def _known(self, submission: Submission) -> str | None:
        return next((handle for handle, job in self.jobs.items() if job.token == submission.token), None)


def fails(error: BaseException) -> Callable[[], None]:
    """Return a function that raises the error."""

    def fail() -> None:
        raise error

    return fail


def _call_next(plans: list[Any]) -> None:
    if plans:
        plans.pop(0)()
