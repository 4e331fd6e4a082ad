"""Calls of the state API for external jobs, and what every submission in this process shares.

`Jobs` is the part of it that a task sees. `SubmissionProcess` and `ExternalJob` use `JobClient`
itself.
"""

import contextlib
import hashlib
import json
import logging
import math
import os
import threading
import uuid
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from enum import StrEnum
from typing import Any, Literal, TypeVar
from urllib.parse import quote

import msgspec

from reattach.api.messages import (
    HANDLE_BYTES_MAX,
    JOB_KEY_CHARACTERS_MAX,
    JOB_MESSAGE_BYTES_MAX,
    URL_BYTES_MAX,
    CancellationRequest,
    CancellationResponse,
    EndKind,
    EndRequest,
    FieldDigests,
    Grounds,
    HandleRequest,
    IntentRequest,
    IntentResponse,
    Job,
    OutcomeRequest,
)
from reattach.api.state import JobReference
from reattach.api.text import line_within
from reattach.errors import (
    AttemptOver,
    Held,
    InvalidCall,
    InvalidKey,
    InvalidValue,
    JobOver,
    PodReleased,
    ProtocolError,
    ReattachError,
    Unavailable,
)
from reattach.task.client import Call, Client, KeyAbsentError, Timing
from reattach.task.termination import TerminationHandler
from reattach.task.value_checks import result_text_of

logger = logging.getLogger("reattach")

T = TypeVar("T")

Origin = Literal["Submitted", "Existed", "Found"]
OutcomeState = Literal["Succeeded", "Failed", "Cancelled", "Active", "Unknown", "NotFound"]

OPTIONAL_CALL_SECONDS = 5.0
"""Seconds for which the SDK retries a call that the task does not depend on."""
SHOWN_CHARACTERS = 60
"""Characters of a handle that can't be stored which a message repeats."""
SLEEP_SECONDS_MAX = 10.0
"""Longest sleep between two checks for SIGTERM."""


class Step(StrEnum):
    """Steps of `submit_once` for `Timing.on_step`, right before or right after the named call."""

    BEFORE_INTENT = "before-intent"
    AFTER_INTENT = "after-intent"
    BEFORE_SUBMIT = "before-submit"
    AFTER_SUBMIT = "after-submit"
    AFTER_HANDLE = "after-handle"
    WATCHING = "watching"
    BEFORE_OUTCOME = "before-outcome"
    AFTER_OUTCOME = "after-outcome"
    BEFORE_CANCEL = "before-cancel"
    AFTER_CANCEL = "after-cancel"


class JobClient:
    """The external jobs of one TaskRun, for this process.

    `opened_at` is a monotonic time that is not before this process opened the state.
    """

    def __init__(self, client: Client, termination: TerminationHandler) -> None:
        self._client = client
        self.termination = termination
        # By process: a forked child is another submitter, and a lock that its parent held is copied
        # as held.
        self._submitters: dict[int, str] = {}
        self._locks: dict[tuple[int, str], threading.Lock] = {}
        self.known_keys: set[str] = set()
        """Keys for which this process received a decision."""
        self.opened_at = client.timing.clock()

    @property
    def timing(self) -> Timing:
        return self._client.timing

    # -- calls ----

    def intent_call(
        self,
        key: str,
        *,
        adapter: str,
        digest: str,
        token_seconds: int | None,
        detached: bool,
        again: Grounds | None,
        new_generation: bool,
        field_digests: FieldDigests | None = None,
    ) -> Call[IntentResponse]:
        """Return a call that stores an intent, and that can be sent again.

        The state API returns its stored response to a repeated call, until another submitter stores
        an intent.
        """
        request = IntentRequest(
            submitter=self._submitter(),
            adapter=adapter,
            digest=digest,
            token_seconds=token_seconds,
            detached=detached,
            again=again,
            new_generation=new_generation,
            field_digests=field_digests or {},
        )
        return Call("POST", f"{_path_of(key)}/intent", IntentResponse, request, request_id=str(uuid.uuid4()))

    def handle_call(self, key: str, generation: int, handle: str, url: str | None, origin: Origin) -> Call[None]:
        """Return a call that stores a handle, without a URL that can't be stored or even sent."""
        request = HandleRequest(
            generation=generation,
            submitter=self._submitter(),
            handle=check_handle(handle),
            url=url if _is_storable_url(url) else None,
            origin=origin,
        )
        return Call("PUT", f"{_path_of(key)}/handle", type(None), request)

    def call(self, call: Call[T]) -> T:
        """Send a call. See `Client.call`."""
        return self._client.call(call)

    async def acall(self, call: Call[T]) -> T:
        """`call` for async code."""
        return await self._client.acall(call)

    def send_intent(self, call: Call[IntentResponse]) -> IntentResponse:
        """Store an intent while SIGTERM is deferred.

        During an outage of the state API, SIGTERM raises `Terminated` at once.
        """
        timing = self.timing
        interruptible = replace(timing, sleep=self.termination.interruptible(timing.sleep))
        client = replace(self._client, timing=interruptible)
        try:
            return client.call(call)
        except InvalidCall:
            # An older state API refuses the field. A refused request is not stored, so its id is
            # free.
            request = call.body
            if not isinstance(request, IntentRequest) or not request.field_digests:
                raise
            return client.call(replace(call, body=msgspec.structs.replace(request, field_digests={})))

    def read(self, call: Call[Job]) -> Job | None:
        """Return the job, or None if no intent was ever stored."""
        try:
            return self._client.call(call)
        except KeyAbsentError:
            return None

    async def aread(self, call: Call[Job]) -> Job | None:
        """`read` for async code."""
        try:
            return await self._client.acall(call)
        except KeyAbsentError:
            return None

    def write(self, call: Call[None]) -> None:
        """Store a handle or an outcome. Raises `InvalidCall` if there is no such job."""
        try:
            self._client.call(call)
        except KeyAbsentError as absent:
            raise InvalidCall(str(absent)) from None

    async def awrite(self, call: Call[None]) -> None:
        """`write` for async code."""
        try:
            await self._client.acall(call)
        except KeyAbsentError as absent:
            raise InvalidCall(str(absent)) from None

    def write_if_available(self, call: Call[None]) -> bool:
        """Store a state that only informs users, unless the state API is unavailable."""
        try:
            replace(self._client, patience=OPTIONAL_CALL_SECONDS).call(call)
        except (Unavailable, JobOver):
            return False
        return True

    def report_reason(self, key: str, generation: int, why: str) -> bool:
        """Store why a job has no handle yet, to show that to users. Return whether it is stored.

        An unavailable state API, and an older one that refuses the call, are no errors.
        """
        call = outcome_call(key, generation, "Unknown", message=cut_message(why))
        try:
            replace(self._client, patience=OPTIONAL_CALL_SECONDS).call(call)
        except (Unavailable, JobOver, InvalidCall):
            return False
        return True

    def report_cancellation(self, key: str, generation: int) -> None:
        """Store that the task cancels the job, to show that to users.

        An unavailable state API, and an older one that does not know the call, are no errors.
        """

        def on_attempt_over(over: AttemptOver) -> None:
            if not isinstance(over, ProtocolError):
                self._client.on_attempt_over(over)

        client = replace(self._client, patience=OPTIONAL_CALL_SECONDS, on_attempt_over=on_attempt_over)
        with contextlib.suppress(Unavailable, ProtocolError, ReattachError):
            client.call(cancellation_call(key, generation))

    def release_pod(self, key: str, generation: int, handle: str, every: timedelta) -> None:
        """Record that the attempt ends to wait for the job without a pod, and raise `PodReleased`.

        Return if the state API is unavailable, or an older one that does not know the call, or if
        the job has ended. The caller then keeps the pod, and tries again after its next check.
        """

        def on_attempt_over(over: AttemptOver) -> None:
            if not isinstance(over, ProtocolError):
                self._client.on_attempt_over(over)

        client = replace(self._client, patience=OPTIONAL_CALL_SECONDS, on_attempt_over=on_attempt_over)
        try:
            client.call(waiting_call(key, generation, handle, every))
        except (Unavailable, ProtocolError) as error:
            logger.warning("The pod is kept, because the state API can't record that it waits: %s", error)
            return
        except JobOver:
            return
        released = PodReleased(f"external job {key!r} ({handle}) runs; the next attempt checks it after {every}")
        self._client.on_attempt_over(released)
        raise released

    # -- the process ----

    def lock_of(self, key: str) -> threading.Lock:
        """Return the lock that a thread holds while it submits or calls the adapter for a key."""
        return self._locks.setdefault((os.getpid(), key), threading.Lock())

    def report_step(self, step: str) -> None:
        """Call `Timing.on_step`."""
        self.timing.on_step(step)

    def sleep(self, seconds: float, check: Callable[[], None] | None = None) -> None:
        """Sleep in pieces, and call `check` after each: SIGTERM interrupts only the main thread."""
        check = self.termination.check if check is None else check
        end = self.timing.clock() + seconds
        check()
        while (left := end - self.timing.clock()) > 0:
            self.timing.sleep(min(left, SLEEP_SECONDS_MAX))
            check()

    def held(self, why: str) -> Held:
        """Return the error to raise for a job that needs a resolution.

        This also writes the termination message, and the process ends even if the task catches the
        error.
        """
        held = Held(why)
        self._client.on_attempt_over(held)
        return held

    def _submitter(self) -> str:
        return self._submitters.setdefault(os.getpid(), str(uuid.uuid4()))


def outcome_call(
    key: str,
    generation: int,
    state: OutcomeState,
    result: Any = None,
    *,
    message: str = "",
    hold: bool = False,
    given_up: bool = False,
) -> Call[None]:
    """Return a call that stores the state of a job. See `Jobs.outcome`."""
    request = OutcomeRequest(
        generation=generation,
        state=state,
        result=msgspec.UNSET if result is None else result_text_of(result),
        message=cut_message(message),
        hold=hold,
        given_up=given_up,
    )
    return Call("PUT", f"{_path_of(key)}/outcome", type(None), request)


def cancellation_call(key: str, generation: int) -> Call[CancellationResponse]:
    """Return a call that stores that this attempt is about to cancel a job."""
    request = CancellationRequest(generation=generation)
    return Call("POST", f"{_path_of(key)}/cancellation", CancellationResponse, request)


def waiting_call(key: str, generation: int, handle: str, every: timedelta) -> Call[None]:
    """Return a call that ends the attempt to wait for a job. It is the same after each check."""
    request = EndRequest(
        kind=EndKind.WAITING,
        message=f"Waits without a pod for external job {key!r} ({handle}).",
        retry_after_seconds=math.ceil(every.total_seconds()),
        job=JobReference(key=key, generation=generation),
    )
    return Call("POST", "/v1/end", type(None), request)


def read_call(key: str, generation: int | None = None) -> Call[Job]:
    """Return a call that reads a job, by default its newest generation."""
    params: tuple[tuple[str, str], ...] = ()
    if generation is not None:
        params = (("generation", str(generation)),)
    return Call("GET", _path_of(key), Job, params=params)


def check_handle(handle: Any) -> str:
    """Return the handle, an integer as text, because many systems have numbers for ids.

    Raises `InvalidValue`, whose message identifies any handle.
    """
    if isinstance(handle, int) and not isinstance(handle, bool):
        handle = str(handle)
    if isinstance(handle, str) and _is_unicode(handle) and 1 <= _json_bytes(handle) <= HANDLE_BYTES_MAX:
        return handle
    what = f"{handle!r:.100}"
    if isinstance(handle, str) and len(handle) > SHOWN_CHARACTERS:
        digest = hashlib.sha256(handle.encode(errors="surrogatepass")).hexdigest()
        what = f"{_json_bytes(handle)} bytes that begin with {handle!r:.{SHOWN_CHARACTERS}} (SHA-256 {digest})"
    raise InvalidValue(f"a handle must be a string of 1 to {HANDLE_BYTES_MAX} bytes as JSON, not {what}")


def cut_message(message: str) -> str:
    """Return a message as the state API stores it.

    The attempt that watched the job and a later one that reads it then show the same text.
    """
    return line_within(message, JOB_MESSAGE_BYTES_MAX)


def seconds_of(lifetime: timedelta | None) -> int | None:
    """Return a lifetime in whole seconds, as the state API takes it."""
    return None if lifetime is None else int(lifetime.total_seconds())


def _is_storable_url(url: Any) -> bool:
    return isinstance(url, str) and url != "" and url.isprintable() and _json_bytes(url) <= URL_BYTES_MAX


def _is_unicode(text: str) -> bool:
    """Return whether the text has no lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _json_bytes(text: str) -> int:
    return len(json.dumps(text, ensure_ascii=False).encode(errors="replace")) - 2


def _path_of(key: Any) -> str:
    if not isinstance(key, str) or not 1 <= len(key) <= JOB_KEY_CHARACTERS_MAX:
        raise InvalidKey(f"the key of an external job must be a string of 1 to {JOB_KEY_CHARACTERS_MAX} characters")
    try:
        # The dot is quoted too, because a client would resolve the path segment `..` to its parent.
        return f"/v1/jobs/{quote(key, safe='').replace('.', '%2E')}"
    except UnicodeEncodeError:
        raise InvalidKey("a key must be valid Unicode; it contains a lone surrogate") from None
