"""`task.jobs`: the steps of submitting once, one by one, for systems without an adapter. `task.submit_once` goes through them by itself.

    answer = task.jobs.intent("load", adapter="ftp", digest="sha256:…")    # stored before it is answered
    match answer.decision:
        case "Submit":    handle = submit(answer.job.token); task.jobs.record("load", answer.job.generation, handle)
        case "Reattach":  handle = answer.job.handle
        case "Over":      …  answer.job.state, answer.job.result
        case "Resolve":   …  it may have been submitted: look it up, or ask again with `again`
    …
    task.jobs.outcome("load", answer.job.generation, "Succeeded", result)

Nothing is to be submitted unless the answer says `Submit`. Each method has an async twin with an `a` in front.
"""

import contextlib
import json
import os
import threading
import uuid
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from enum import StrEnum
from typing import Any, Literal
from urllib.parse import quote

import msgspec

from reattach.api.messages import (
    HANDLE_BYTES_MAX,
    JOB_KEY_CHARACTERS_MAX,
    JOB_MESSAGE_BYTES_MAX,
    URL_BYTES_MAX,
    Grounds,
    HandleRequest,
    IntentRequest,
    IntentResponse,
    Job,
    JobList,
    OutcomeRequest,
)
from reattach.errors import Held, InvalidCall, InvalidKey, InvalidValue, JobOver, Unavailable
from reattach.task.client import Call, Client, KeyAbsentError, Timing
from reattach.task.termination import TerminationHandler
from reattach.task.value_checks import result_text_of

Origin = Literal["Submitted", "Existed", "Found"]
SHOW_SECONDS = 5.0
"""How long a call may take that the task can do without."""
NAP_SECONDS = 10.0
"""The longest wait in one piece."""
OutcomeState = Literal["Succeeded", "Failed", "Cancelled", "Active", "Unknown", "NotFound"]


class Step(StrEnum):
    """The steps of submitting once, as `Timing.on_step` is told them: right before, or right after, what they name."""

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


class Jobs:
    """The external jobs of one TaskRun. All methods raise what `reattach.errors` draws; only what is particular is named here."""

    def __init__(self, client: Client, ending: TerminationHandler) -> None:
        self._client = client
        self._ending = ending
        # By process: after a fork, the child is somebody else, and the parent's locks are none of its own.
        self._submitters: dict[int, str] = {}
        self._locks: dict[tuple[int, str], threading.Lock] = {}
        self.opened_at = client.waits.clock()
        """Not before the state was opened for this process, by its own clock."""

    def intent(
        self,
        key: str,
        *,
        adapter: str,
        digest: str,
        token_seconds: int | None = None,
        detached: bool = False,
        again: Grounds | None = None,
        new_generation: bool = False,
    ) -> IntentResponse:
        """Store that a job is about to be submitted under `key` (1 to 128 characters), and learn what is to be done.

        `adapter`: what kind of system it is, 1 to 63 characters. `digest`: of the request, at most 128 characters. The others as in
        `reattach.api.messages.IntentRequest`.

        Raises:
            DigestChanged: another request under the key of a job that is open or succeeded.
            JobsOpen: `new_generation`, and the newest one is open.
            GroundsRefused: `again`, and what the state API knows speaks against it.
        """
        return self._client.call(
            self.intent_call(
                key,
                adapter=adapter,
                digest=digest,
                token_seconds=token_seconds,
                detached=detached,
                again=again,
                new_generation=new_generation,
            )
        )

    async def aintent(
        self,
        key: str,
        *,
        adapter: str,
        digest: str,
        token_seconds: int | None = None,
        detached: bool = False,
        again: Grounds | None = None,
        new_generation: bool = False,
    ) -> IntentResponse:
        """`intent` for async code."""
        return await self._client.acall(
            self.intent_call(
                key,
                adapter=adapter,
                digest=digest,
                token_seconds=token_seconds,
                detached=detached,
                again=again,
                new_generation=new_generation,
            )
        )

    def record(
        self, key: str, generation: int, handle: str, *, url: str | None = None, origin: Origin = "Submitted"
    ) -> None:
        """Store the handle (1 byte to 1 KiB) that the other side gave the job. Also a fenced attempt may, for an intent of this process.

        Raises:
            HandleDiffers: another handle is recorded; this one is kept as a stray.
            JobOver: the job has ended otherwise.
        """
        self._checked(self._handle_call(key, generation, handle, url, origin))

    async def arecord(
        self, key: str, generation: int, handle: str, *, url: str | None = None, origin: Origin = "Submitted"
    ) -> None:
        """`record` for async code."""
        await self._achecked(self._handle_call(key, generation, handle, url, origin))

    def outcome(
        self,
        key: str,
        generation: int,
        state: OutcomeState,
        result: Any = None,
        *,
        message: str = "",
        hold: bool = False,
        given_up: bool = False,
    ) -> None:
        """Store how the job stands. `Succeeded` (with `result`, JSON of at most 4 KiB), `Failed` and `Cancelled` are final. `hold`, `given_up`:
        see `reattach.api.messages.OutcomeRequest`.

        Raises:
            JobOver: the job has ended otherwise.
        """
        self._checked(_outcome_call(key, generation, state, result, message, hold=hold, given_up=given_up))

    async def aoutcome(
        self,
        key: str,
        generation: int,
        state: OutcomeState,
        result: Any = None,
        *,
        message: str = "",
        hold: bool = False,
        given_up: bool = False,
    ) -> None:
        """`outcome` for async code."""
        await self._achecked(_outcome_call(key, generation, state, result, message, hold=hold, given_up=given_up))

    def get(self, key: str, generation: int | None = None) -> Job | None:
        """One job, without a generation the newest; None if no intent was ever stored."""
        try:
            return self._client.call(_get(key, generation))
        except KeyAbsentError:
            return None

    async def aget(self, key: str, generation: int | None = None) -> Job | None:
        """`get` for async code."""
        try:
            return await self._client.acall(_get(key, generation))
        except KeyAbsentError:
            return None

    def list(self) -> tuple[Job, ...]:
        """All jobs with all generations, in the order of their intents."""
        return self._client.call(Call("GET", "/v1/jobs", JobList)).items

    async def alist(self) -> tuple[Job, ...]:
        """`list` for async code."""
        return (await self._client.acall(Call("GET", "/v1/jobs", JobList))).items

    # -- for `submit_once` and what it returns -----------------------------------------------------

    @property
    def waits(self) -> Timing:
        return self._client.waits

    @property
    def ending(self) -> TerminationHandler:
        return self._ending

    def lock_of(self, key: str) -> threading.Lock:
        """One at a time may submit, or ask the adapter, under a key."""
        return self._locks.setdefault((os.getpid(), key), threading.Lock())

    def step(self, step: Step) -> None:
        """Tell `Timing.on_step`."""
        self._client.waits.on_step(step)

    def show(self, key: str, generation: int, state: OutcomeState, message: str = "") -> None:
        """`outcome` for people to see, which the task can do without."""
        with contextlib.suppress(Unavailable, JobOver):
            calm = replace(self._client, patience=SHOW_SECONDS)
            calm.call(_outcome_call(key, generation, state, None, message, hold=False))

    def pause(self, seconds: float, check: Callable[[], None] | None = None) -> None:
        """Wait, in pieces: a thread that SIGTERM does not reach learns in between that its process must end."""
        check = self._ending.check if check is None else check
        end = self.waits.clock() + seconds
        check()
        while (left := end - self.waits.clock()) > 0:
            self.waits.sleep(min(left, NAP_SECONDS))
            check()

    def ask(self, call: Call[IntentResponse]) -> IntentResponse:
        """`intent`, within which SIGTERM counts while it waits for the state API."""
        waits = self._client.waits
        calm = replace(waits, sleep=self._ending.interruptible(waits.sleep))
        return replace(self._client, waits=calm).call(call)

    def held(self, why: str) -> Held:
        """What to raise where a person must decide. The operator is told, and the process ends whoever catches it."""
        held = Held(why)
        self._client.on_over(held)
        return held

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
    ) -> Call[IntentResponse]:
        """An intent that may be asked for again: it is the same one, and the answer to it is remembered until somebody else submits."""
        request = IntentRequest(
            submitter=self._submitter(),
            adapter=adapter,
            digest=digest,
            token_seconds=token_seconds,
            detached=detached,
            again=again,
            new_generation=new_generation,
        )
        return Call("POST", f"{_path(key)}/intent", IntentResponse, request, request_id=str(uuid.uuid4()))

    def _submitter(self) -> str:
        return self._submitters.setdefault(os.getpid(), str(uuid.uuid4()))

    def _handle_call(self, key: str, generation: int, handle: str, url: str | None, origin: Origin) -> Call[None]:
        request = HandleRequest(
            generation=generation,
            submitter=self._submitter(),
            handle=check_handle(handle),
            # For people alone: not a reason to lose the handle.
            url=url if url is not None and _json_bytes(url) <= URL_BYTES_MAX else None,
            origin=origin,
        )
        return Call("PUT", f"{_path(key)}/handle", type(None), request)

    def _checked(self, call: Call[None]) -> None:
        try:
            self._client.call(call)
        except KeyAbsentError as absent:
            raise InvalidCall(str(absent)) from None

    async def _achecked(self, call: Call[None]) -> None:
        try:
            await self._client.acall(call)
        except KeyAbsentError as absent:
            raise InvalidCall(str(absent)) from None


def check_handle(handle: Any) -> str:
    """`handle` itself. Raises `InvalidValue`."""
    if not isinstance(handle, str) or not handle or _json_bytes(handle) > HANDLE_BYTES_MAX:
        raise InvalidValue(f"a handle must be a string of 1 to {HANDLE_BYTES_MAX} bytes as JSON, not {handle!r:.100}")
    return handle


def cut_message(message: str) -> str:
    """As much of a message as the state API keeps, so that it reads the same to whoever watched the job and to whoever finds it ended."""
    message = message.encode(errors="replace").decode()[:JOB_MESSAGE_BYTES_MAX]
    while (excess := _json_bytes(message) - JOB_MESSAGE_BYTES_MAX) > 0:
        message = message[: -max(1, excess // 6)]
    return message


def _json_bytes(text: str) -> int:
    return len(json.dumps(text, ensure_ascii=False).encode(errors="replace")) - 2


def seconds_of(lifetime: timedelta | None) -> int | None:
    """Whole seconds, for the state API."""
    return None if lifetime is None else int(lifetime.total_seconds())


def _outcome_call(
    key: str, generation: int, state: OutcomeState, result: Any, message: str, *, hold: bool, given_up: bool = False
) -> Call[None]:
    request = OutcomeRequest(
        generation=generation,
        state=state,
        result=msgspec.UNSET if result is None else result_text_of(result),
        message=cut_message(message),
        hold=hold,
        given_up=given_up,
    )
    return Call("PUT", f"{_path(key)}/outcome", type(None), request)


def _get(key: str, generation: int | None) -> Call[Job]:
    params: tuple[tuple[str, str], ...] = ()
    if generation is not None:
        params = (("generation", str(generation)),)
    return Call("GET", _path(key), Job, params=params)


def _path(key: Any) -> str:
    if not isinstance(key, str) or not 1 <= len(key) <= JOB_KEY_CHARACTERS_MAX:
        raise InvalidKey(f"the key of an external job must be a string of 1 to {JOB_KEY_CHARACTERS_MAX} characters")
    try:
        # `.` too: a path that is `..` would be taken for the folder above.
        return f"/v1/jobs/{quote(key, safe='').replace('.', '%2E')}"
    except UnicodeEncodeError:
        raise InvalidKey("a key must be Unicode; a surrogate stands alone in it") from None
