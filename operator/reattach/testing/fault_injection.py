"""Faults between the SDK and an adapter: lost requests and lost responses."""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

from typing_extensions import override

from reattach.adapters.base import Adapter, Capabilities, JobStatus, Submission, Submitted
from reattach.testing.clocks import Clock
from reattach.testing.task_process import TaskProcess

T = TypeVar("T")

LEAVING, ACCEPTED = "leaving", "accepted"
"""Steps of a call: before the request leaves, and after the external system has executed it.

At the second step, the process has not received the response yet.
"""


class FaultInjectingAdapter(Adapter):
    """Adapter of one process that reports two steps of each call.

    The steps of `submit` are `submit leaving` and `submit accepted`; those of `lookup`, `status`
    and `cancel` are named alike. An exception that is raised at a step is an error of the network.

    handles: handles that the external system returned, also those of lost responses.
    """

    name = ""  # set to that of the adapter

    def __init__(self, adapter: Adapter, process: TaskProcess, clock: Clock, poll_seconds: float | None = None) -> None:
        self.adapter = adapter
        self.name = adapter.name  # type: ignore[misc] # a class constant in other adapters
        self.request_seconds = adapter.request_seconds
        self.poll_seconds = adapter.poll_seconds if poll_seconds is None else poll_seconds
        self.handles: list[str] = []
        self.last_submission: Submission | None = None
        self.accepted_at: float | None = None
        self.visible_from: Callable[[], float] = lambda: 0.0
        """Returns the time from which a lookup finds the job."""
        self.on_response: Callable[[str, object], None] = lambda _operation, _response: None
        """Called with what the adapter returned or raised, before the process receives it."""
        self.in_flight = 0
        """Number of requests that have not arrived yet."""
        self._process = process
        self._clock = clock

    @property
    @override
    def capabilities(self) -> Capabilities:
        return self.adapter.capabilities

    @override
    def submit(self, submission: Submission) -> Submitted:
        self.last_submission = submission

        def send() -> Submitted:
            made = self.adapter.submit(submission)
            self.handles.append(made.handle)
            self.accepted_at = self._clock.monotonic()
            return made

        return self._call("submit", send)

    @override
    def look_up(self, submission: Submission) -> Submitted | None:
        def find() -> Submitted | None:
            found = self.adapter.look_up(submission)
            return found if self._clock.monotonic() >= self.visible_from() else None

        return self._call("lookup", find)

    @override
    def status(self, handle: str) -> JobStatus:
        return self._call("status", lambda: self.adapter.status(handle))

    @override
    def cancel(self, handle: str) -> None:
        self._call("cancel", lambda: self.adapter.cancel(handle))

    @override
    def digest(self, request: Any) -> str:
        return self.adapter.digest(request)

    def deliver_later(self, seconds: float) -> None:
        """Deliver the last submission in `seconds`, even if its process is killed meanwhile."""
        assert self.last_submission is not None
        # The request has left, so the process can't stop it any more.
        submission = dataclasses.replace(self.last_submission, may_leave=lambda: True)

        def arrive() -> None:
            try:
                self._clock.sleep(seconds)
                with contextlib.suppress(Exception):  # no process receives the response
                    self.adapter.submit(submission)
            finally:
                self.in_flight -= 1

        self.in_flight += 1

        self._clock.start(arrive, "network")

    def _call(self, operation: str, send: Callable[[], T]) -> T:
        self._process.step(f"{operation} {LEAVING}")
        try:
            result = send()
        except Exception as error:
            self.on_response(operation, error)
            raise
        self.on_response(operation, result)
        self._process.step(f"{operation} {ACCEPTED}")
        return result
