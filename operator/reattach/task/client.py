"""One call to the state API, asked until it is answered or patience is over.

Asking again is safe: a call that changes something carries a request id, made once per call, under which the state API remembers its
answer. So a lost answer is no reason to give up, and never one to guess.
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
"""How long the state API may be absent before the log says so."""
REMINDER_SECONDS = 60.0
UNAUTHENTICATED_SECONDS = 120.0
"""How long a 401 is put down to a token that is just being replaced: the kubelet looks after a pod's files about once a minute."""


class KeyAbsentError(Exception):
    """The key, or the external job, is absent: said by the state API itself, not concluded from any other answer."""


_ERRORS: Final[Mapping[str, type[Exception] | type[AttemptOver]]] = {
    ProblemCode.FENCED: Fenced,
    ProblemCode.CLOSING: Closing,
    ProblemCode.STATE_LOST: StateLost,
    ProblemCode.NOT_A_TASK_POD: Refused,
    ProblemCode.NOT_OPEN: Refused,
    ProblemCode.COMPLETED: AlreadyCompleted,
    ProblemCode.NOT_FOUND: KeyAbsentError,
    ProblemCode.JOB_NOT_FOUND: KeyAbsentError,
    ProblemCode.DIGEST_CHANGED: DigestChanged,
    ProblemCode.JOB_OPEN: JobsOpen,
    ProblemCode.JOBS_OPEN: JobsOpen,
    ProblemCode.JOB_OVER: JobOver,
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
    """What is asked, and the shape of the answer (None: no body is expected). `request_id`: of a change that may be asked for again
    later; without one, each asking is a change of its own.
    """

    method: str
    path: str
    answer: type[T]
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
    """Clock, sleep and chance, so that a test can have its own. `on_step` is told each step of submitting once (`jobs.Step`)."""

    clock: Callable[[], float] = monotonic
    sleep: Callable[[float], None] = time.sleep
    asleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    chance: Callable[[], float] = random.random
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
    waits: Timing = field(default_factory=Timing)

    def call(self, call: Call[T]) -> T:
        """The answer.

        Raises:
            ReattachError: the call is wrong as it is.
            AttemptOver: what is stored can't be known any more.
            KeyAbsentError: the key, or the external job, is absent.
        """
        steps = self._steps(call)
        step = next(steps)
        try:
            while True:
                if isinstance(step, StateApiRequest):
                    step = steps.send(_outcome_of(self.connection, step))
                else:
                    self.waits.sleep(step)
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
                    await self.waits.asleep(step)
                    step = next(steps)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        except AttemptOver as over:
            self.on_attempt_over(over)
            raise

    def _steps(
        self, call: Call[T]
    ) -> "Generator[StateApiRequest | float, httpx.Response | UnreachableError | None, T]":
        """Yields a request to send (the answer or the failure comes back), or seconds to wait; returns the answer."""
        request = call.to_request()
        absence = _OutageTimer(self.waits, self.patience)
        while True:
            outcome = yield request
            assert outcome is not None
            if isinstance(outcome, UnreachableError):
                yield absence.wait(str(outcome))
            elif outcome.is_success:
                try:
                    answer = _decode(outcome, call.answer)
                except msgspec.DecodeError as error:
                    yield absence.wait(f"an answer that is none of the state API's ({error})")
                else:
                    absence.end()
                    return answer
            else:
                problem = _problem_of(outcome)
                if problem is not None and problem.code == ProblemCode.UNAUTHENTICATED:
                    yield absence.wait_for_token(problem)
                elif problem is not None and _is_final(problem):
                    absence.end()
                    raise _ERRORS.get(problem.code, ProtocolError)(problem.detail or problem.title)
                else:
                    yield absence.wait(_said(outcome, problem), _retry_after_of(outcome))


class _OutageTimer:
    """How long there has been no answer, what was said about it, and how long to wait next."""

    def __init__(self, waits: Timing, patience: float) -> None:
        self._waits = waits
        self._patience = patience
        self._since = waits.clock()
        self._refused_since: float | None = None
        self._delay = DELAY_SECONDS_FIRST
        self._said_at: float | None = None

    def wait(self, why: str, retry_after: float = 0.0) -> float:
        """Seconds to wait before asking again. Raises `Unavailable` when patience is over."""
        self._refused_since = None
        return self._wait(why, retry_after)

    def wait_for_token(self, problem: Problem) -> float:
        """`wait`, for the next token. Raises `Refused` when nothing but that was answered for too long."""
        now = self._waits.clock()
        if self._refused_since is None:
            self._refused_since = now
        if now - self._refused_since >= UNAUTHENTICATED_SECONDS:
            raise Refused(problem.detail or problem.title)
        return self._wait(f"{problem.status} {problem.code}: {problem.detail}")

    def _wait(self, why: str, retry_after: float = 0.0) -> float:
        now = self._waits.clock()
        lasting = now - self._since
        if lasting >= self._patience:
            raise Unavailable(f"the state API did not answer for {lasting:.0f} s; last: {why}")
        if lasting >= QUIET_SECONDS and (self._said_at is None or now - self._said_at >= REMINDER_SECONDS):
            self._said_at = now
            logger.warning(
                "The state API has not answered for %.0f s (%s). Waiting for it, for at most %.0f s more.",
                lasting,
                why,
                self._patience - lasting,
            )
        # At least half of it, so that the longest wait stays near the bound, and at random, so that tasks do not come all at once.
        wait = self._delay * (0.5 + self._waits.chance() / 2)
        self._delay = min(self._delay * 2, DELAY_SECONDS_MAX)
        return min(max(wait, retry_after), self._patience - lasting)

    def end(self) -> None:
        """An answer came."""
        if self._said_at is not None:
            logger.warning("The state API answers again, after %.0f s.", self._waits.clock() - self._since)


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


def _decode(response: httpx.Response, answer: type[T]) -> T:
    if answer is type(None):
        return None
    return msgspec.json.decode(response.content, type=answer)


def _problem_of(response: httpx.Response) -> Problem | None:
    """The state API's own error; None if the answer is of something in between, such as a proxy."""
    if not response.headers.get("Content-Type", "").startswith("application/problem+json"):
        return None
    try:
        return msgspec.json.decode(response.content, type=Problem)
    except msgspec.DecodeError:
        return None


def _is_final(problem: Problem) -> bool:
    """Asking again would give the same answer. An error without a problem is never final: it may be of something in between."""
    return problem.status == 501 or (400 <= problem.status < 500 and problem.status != 429)


def _said(response: httpx.Response, problem: Problem | None) -> str:
    if problem is None:
        return f"{response.status_code} {response.reason_phrase}"
    return f"{problem.status} {problem.code}: {problem.detail}"


def _retry_after_of(response: httpx.Response) -> float:
    """Seconds; the form with a date is not used here."""
    text: Any = response.headers.get("Retry-After", "")
    return min(float(text), RETRY_AFTER_SECONDS_MAX) if text.isdecimal() else 0.0
