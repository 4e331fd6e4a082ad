"""Sends a call to the state API, and retries it until a response arrives or the patience is over.

A retry is safe, because a call that changes something has an idempotency key (the request id). The
state API stores its response under this key and returns it to a retry.
"""

import asyncio
import logging
import random
import time
import uuid
from collections.abc import Awaitable, Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

import httpx
import msgspec

from reattach.api.messages import Problem, ProblemCode
from reattach.clock import monotonic
from reattach.errors import (
    AlreadyCompleted,
    AlreadyEnded,
    AttemptOver,
    Closing,
    DigestChanged,
    Fenced,
    GroundsRefused,
    HandleDiffers,
    InvalidCall,
    InvalidKey,
    InvalidValue,
    JobOver,
    JobsOpen,
    KeyExists,
    ProtocolError,
    Refused,
    StateFull,
    StateLost,
    Unavailable,
    ValueTooLarge,
    VersionMismatch,
)
from reattach.task.connection import StateApiConnection, StateApiRequest, UnreachableError

logger = logging.getLogger("reattach")

T = TypeVar("T")

DELAY_SECONDS_FIRST = 0.2
DELAY_SECONDS_MAX = 10.0
RETRY_AFTER_SECONDS_MAX = 60.0
QUIET_SECONDS = 3.0
"""Seconds of an outage before it is logged."""
REMINDER_SECONDS = 60.0
"""Interval of log lines during an outage."""
UNAUTHENTICATED_SECONDS = 120.0
"""Seconds for which a 401 is retried, because the token may just be rotating.

The kubelet updates the files of a pod about once a minute.
"""


class KeyAbsentError(Exception):
    """The state API itself reported that the key or the external job is absent.

    Another 404 does not raise this error, because it may be from a proxy.
    """


class JobKeptError(Exception):
    """A cleanup attempt must not cancel the external job. The message has the reason."""


_ERRORS: Final[Mapping[str, type[Exception] | type[AttemptOver]]] = {
    ProblemCode.FENCED: Fenced,
    ProblemCode.CLOSING: Closing,
    ProblemCode.STATE_LOST: StateLost,
    ProblemCode.NOT_A_TASK_POD: Refused,
    ProblemCode.NOT_OPEN: Refused,
    ProblemCode.COMPLETED: AlreadyCompleted,
    ProblemCode.ENDED: AlreadyEnded,
    ProblemCode.NOT_FOUND: KeyAbsentError,
    ProblemCode.JOB_NOT_FOUND: KeyAbsentError,
    ProblemCode.DIGEST_CHANGED: DigestChanged,
    ProblemCode.JOB_OPEN: JobsOpen,
    ProblemCode.JOBS_OPEN: JobsOpen,
    ProblemCode.JOB_OVER: JobOver,
    ProblemCode.JOB_KEPT: JobKeptError,
    ProblemCode.CLEANUP_ONLY: InvalidCall,
    ProblemCode.HANDLE_DIFFERS: HandleDiffers,
    ProblemCode.GROUNDS_REFUSED: GroundsRefused,
    ProblemCode.EXISTS: KeyExists,
    ProblemCode.VERSION_MISMATCH: VersionMismatch,
    ProblemCode.KEY_INVALID: InvalidKey,
    ProblemCode.VALUE_INVALID: InvalidValue,
    ProblemCode.VALUE_TOO_LARGE: ValueTooLarge,
    ProblemCode.STATE_FULL: StateFull,
    ProblemCode.INVALID: InvalidCall,
    ProblemCode.REQUEST_TOO_LARGE: InvalidCall,
}


@dataclass(frozen=True)
class Call(Generic[T]):
    """A call of the state API.

    response_type: type of the body of the response; None for no body.
    request_id: idempotency key of a change that the caller may send again later. Without it, each
        `Client.call` is a change of its own.
    """

    method: str
    path: str
    response_type: type[T]
    body: msgspec.Struct | None = None
    params: tuple[tuple[str, str], ...] = ()
    request_id: str | None = None

    def to_request(self) -> StateApiRequest:
        changes = self.method != "GET"
        return StateApiRequest(
            method=self.method,
            path=self.path,
            content=None if self.body is None else msgspec.json.encode(self.body),
            params=self.params,
            request_id=(self.request_id or str(uuid.uuid4())) if changes else None,
        )


@dataclass(frozen=True)
class Timing:
    """Clock, sleep and jitter, which a test can replace.

    clock: monotonic time in seconds.
    jitter: random number of at least 0 and below 1.
    on_step: receives each step of `submit_once` (`job_client.Step`).
    """

    clock: Callable[[], float] = monotonic
    sleep: Callable[[float], None] = time.sleep
    async_sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    jitter: Callable[[], float] = random.random
    on_step: Callable[[str], None] = lambda _step: None


@dataclass(frozen=True)
class Client:
    """Client of the state API.

    If a response means that this attempt must end, `on_attempt_over` is called with the error
    before it is raised.
    """

    connection: StateApiConnection
    patience: float
    on_attempt_over: Callable[[AttemptOver], None]
    timing: Timing = field(default_factory=Timing)

    def call(self, call: Call[T]) -> T:
        """Return the response.

        Raises:
            ReattachError: the state API rejected the call.
            AttemptOver: the state is unavailable to this attempt for good.
            KeyAbsentError: the key or the external job is absent.
            JobKeptError: the external job must not be cancelled.
        """
        steps = self._steps(call)
        step = next(steps)
        try:
            while True:
                if isinstance(step, StateApiRequest):
                    step = steps.send(_outcome_of(self.connection, step))
                else:
                    self.timing.sleep(step)
                    step = next(steps)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        except AttemptOver as over:
            self.on_attempt_over(over)
            raise

    async def acall(self, call: Call[T]) -> T:
        """`call` for async code."""
        steps = self._steps(call)
        step = next(steps)
        try:
            while True:
                if isinstance(step, StateApiRequest):
                    step = steps.send(await _async_outcome_of(self.connection, step))
                else:
                    await self.timing.async_sleep(step)
                    step = next(steps)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        except AttemptOver as over:
            self.on_attempt_over(over)
            raise

    def _steps(
        self, call: Call[T]
    ) -> "Generator[StateApiRequest | float, httpx.Response | UnreachableError | None, T]":
        """Yield each request to send and each number of seconds to wait, and return the response.

        The generator receives the HTTP response or the failure of a request that it yields.
        """
        request = call.to_request()
        outage = _StateApiOutage(self.timing, self.patience)
        while True:
            outcome = yield request
            assert outcome is not None
            if isinstance(outcome, UnreachableError):
                yield outage.wait(str(outcome))
            elif outcome.is_success:
                try:
                    response = _decode(outcome, call.response_type)
                except msgspec.DecodeError as error:
                    yield outage.wait(f"the response is not from the state API ({error})")
                else:
                    outage.end()
                    return response
            else:
                problem = _problem_of(outcome)
                if problem is not None and problem.code == ProblemCode.UNAUTHENTICATED:
                    yield outage.wait_for_token(problem)
                elif problem is not None and _is_final(problem):
                    outage.end()
                    raise _ERRORS.get(problem.code, ProtocolError)(problem.detail or problem.title)
                else:
                    yield outage.wait(_description_of(outcome, problem), _retry_after_of(outcome))


class _StateApiOutage:
    """One outage of the state API: its duration, its log lines and the delays between tries."""

    def __init__(self, timing: Timing, patience: float) -> None:
        self._timing = timing
        self._patience = patience
        self._since = timing.clock()
        self._unauthenticated_since: float | None = None
        self._delay = DELAY_SECONDS_FIRST
        self._logged_at: float | None = None

    def wait(self, why: str, retry_after: float = 0.0) -> float:
        """Return the seconds before the next try. Raises `Unavailable` if the patience is over."""
        self._unauthenticated_since = None
        return self._wait(why, retry_after)

    def wait_for_token(self, problem: Problem) -> float:
        """Return the seconds before the next try with the next token.

        Raises:
            Refused: every response was a 401 for `UNAUTHENTICATED_SECONDS`.
            Unavailable: the patience is over.
        """
        now = self._timing.clock()
        if self._unauthenticated_since is None:
            self._unauthenticated_since = now
        if now - self._unauthenticated_since >= UNAUTHENTICATED_SECONDS:
            raise Refused(problem.detail or problem.title)
        return self._wait(f"{problem.status} {problem.code}: {problem.detail}")

    def _wait(self, why: str, retry_after: float = 0.0) -> float:
        now = self._timing.clock()
        seconds = now - self._since
        if seconds >= self._patience:
            raise Unavailable(f"the state API was unavailable for {seconds:.0f} s; the last error was: {why}")
        if seconds >= QUIET_SECONDS and (self._logged_at is None or now - self._logged_at >= REMINDER_SECONDS):
            self._logged_at = now
            logger.warning(
                "The state API has been unavailable for %.0f s (%s). Retrying for at most %.0f s more.",
                seconds,
                why,
                self._patience - seconds,
            )
        # Jitter spreads the retries of many tasks. At least half of the delay is kept, so that the
        # longest delay stays near its bound.
        wait = self._delay * (0.5 + self._timing.jitter() / 2)
        self._delay = min(self._delay * 2, DELAY_SECONDS_MAX)
        return min(max(wait, retry_after), self._patience - seconds)

    def end(self) -> None:
        """End the outage, and log that if its start was logged."""
        if self._logged_at is not None:
            logger.warning("The state API is available again, after %.0f s.", self._timing.clock() - self._since)


def _outcome_of(connection: StateApiConnection, request: StateApiRequest) -> httpx.Response | UnreachableError:
    try:
        return connection.send(request)
    except UnreachableError as error:
        return error


async def _async_outcome_of(
    connection: StateApiConnection, request: StateApiRequest
) -> httpx.Response | UnreachableError:
    try:
        return await connection.asend(request)
    except UnreachableError as error:
        return error


def _decode(response: httpx.Response, response_type: type[T]) -> T:
    if response_type is type(None):
        return None
    return msgspec.json.decode(response.content, type=response_type)


def _problem_of(response: httpx.Response) -> Problem | None:
    """Return the state API's own error, or None if the response is from a proxy."""
    if not response.headers.get("Content-Type", "").startswith("application/problem+json"):
        return None
    try:
        return msgspec.json.decode(response.content, type=Problem)
    except msgspec.DecodeError:
        return None


def _is_final(problem: Problem) -> bool:
    """Return whether a retry would get the same response.

    An error without a problem document is never final, because it may be from a proxy.
    """
    return problem.status == 501 or (400 <= problem.status < 500 and problem.status != 429)


def _description_of(response: httpx.Response, problem: Problem | None) -> str:
    if problem is None:
        return f"{response.status_code} {response.reason_phrase}"
    return f"{problem.status} {problem.code}: {problem.detail}"


def _retry_after_of(response: httpx.Response) -> float:
    """Return the seconds of `Retry-After`. The state API never sends the form with a date."""
    text: Any = response.headers.get("Retry-After", "")
    return min(float(text), RETRY_AFTER_SECONDS_MAX) if text.isdecimal() else 0.0
