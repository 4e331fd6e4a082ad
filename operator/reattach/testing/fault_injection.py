"""Between the SDK and an adapter: where requests and answers get lost."""

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
"""The steps of a call of the adapter: before the request leaves, and when the other side has done what was asked, before the answer is seen."""


class FaultInjectingAdapter(Adapter):
    """The adapter as its process sees it. Each call is two steps of the process, `submit leaving` and `submit accepted` (the same for
    `look-up`, `status` and `cancel`); an exception raised there is an error of the network.

    `handles` has what the other side answered, also where the answer was lost.
    """

    name = ""  # the adapter's

    def __init__(self, adapter: Adapter, process: TaskProcess, clock: Clock, poll_seconds: float | None = None) -> None:
        self.adapter = adapter
        self.name = adapter.name  # type: ignore[misc] # an adapter's is fixed, this one's is another's
        self.request_seconds = adapter.request_seconds
        self.poll_seconds = adapter.poll_seconds if poll_seconds is None else poll_seconds
        self.handles: list[str] = []
        self.sending: Submission | None = None
        self.accepted_at: float | None = None
        self.found_from: Callable[[], float] = lambda: 0.0
        """Until then a look-up finds nothing: it lags."""
        self.on_their_way = 0
        """Requests that have not arrived yet."""
        self._process = process
        self._clock = clock

    @property
    @override
    def capabilities(self) -> Capabilities:
        return self.adapter.capabilities

    @override
    def submit(self, submission: Submission) -> Submitted:
        self.sending = submission

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
            return found if self._clock.monotonic() >= self.found_from() else None

        return self._call("look-up", find)

    @override
    def status(self, handle: str) -> JobStatus:
        return self._call("status", lambda: self.adapter.status(handle))

    @override
    def cancel(self, handle: str) -> None:
        self._call("cancel", lambda: self.adapter.cancel(handle))

    @override
    def digest(self, request: Any) -> str:
        return self.adapter.digest(request)

    def send_later(self, seconds: float) -> None:
        """What is about to be submitted arrives by itself, so many seconds from now: it was on its way when its process died."""
        assert self.sending is not None
        # It has left, so nothing can stop it any more.
        submission = dataclasses.replace(self.sending, may_leave=lambda: True)

        def arrive() -> None:
            try:
                self._clock.sleep(seconds)
                with contextlib.suppress(Exception):  # refused; nobody is there to be told
                    self.adapter.submit(submission)
            finally:
                self.on_their_way -= 1

        self.on_their_way += 1

        self._clock.start(arrive, "network")

    def _call(self, operation: str, send: Callable[[], T]) -> T:
        self._process.step(f"{operation} {LEAVING}")
        answer = send()
        self._process.step(f"{operation} {ACCEPTED}")
        return answer
