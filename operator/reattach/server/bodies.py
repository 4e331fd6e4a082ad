"""Limits on request bodies: their bytes, large ones at a time, and the time to arrive."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TypeVar

from aiohttp import web

from reattach.api.messages import (
    ADAPTER_CHARACTERS_MAX,
    DIGEST_CHARACTERS_MAX,
    END_MESSAGE_BYTES_MAX,
    FIELD_DIGESTS_MAX,
    FIELD_NAME_CHARACTERS_MAX,
    HANDLE_BYTES_MAX,
    RESULT_BYTES_MAX,
    SESSION_CHARACTERS_MAX,
    URL_BYTES_MAX,
    VALUE_BYTES_MAX,
    ProblemCode,
)
from reattach.server.problems import RateLimitedError
from reattach.server.slots import FairSlots
from reattach.state import RequestRejectedError

Parsed = TypeVar("Parsed")

ESCAPE_BYTES = 6
"""Most bytes of a character that is stored as one byte: `\\u0061`."""
ENVELOPE_BYTES = 4 * 1024
"""Room for the names, numbers, enumerations and white space of a message."""
BATCH_BYTES_MAX = 1024 * 1024
"""Room for a batch that fills a state."""
MESSAGE_BYTES_MAX = 16 * 1024
"""Room for a message that is cut and not refused: that of an outcome, and that of an end."""


def room_for(*text_bytes: int) -> int:
    """Return the most bytes of a message with texts of so many bytes, all of them escaped."""
    return ESCAPE_BYTES * sum(text_bytes) + ENVELOPE_BYTES


FIELD_DIGESTS_BYTES_MAX = FIELD_DIGESTS_MAX * (FIELD_NAME_CHARACTERS_MAX + 20)
"""Names of fields, each with a digest, as JSON."""
BODY_BYTES_MAX: Mapping[tuple[str, str], int] = {
    ("POST", "/v1/open"): room_for(SESSION_CHARACTERS_MAX),
    ("POST", "/v1/state"): BATCH_BYTES_MAX,
    ("PUT", "/v1/state/{key}"): room_for(VALUE_BYTES_MAX),
    ("POST", "/v1/complete"): room_for(RESULT_BYTES_MAX),
    ("POST", "/v1/end"): room_for(END_MESSAGE_BYTES_MAX) + MESSAGE_BYTES_MAX,
    ("POST", "/v1/jobs/{key}/intent"): room_for(
        SESSION_CHARACTERS_MAX, ADAPTER_CHARACTERS_MAX, DIGEST_CHARACTERS_MAX, FIELD_DIGESTS_BYTES_MAX
    ),
    ("PUT", "/v1/jobs/{key}/handle"): room_for(SESSION_CHARACTERS_MAX, HANDLE_BYTES_MAX, URL_BYTES_MAX),
    ("PUT", "/v1/jobs/{key}/outcome"): room_for(RESULT_BYTES_MAX) + MESSAGE_BYTES_MAX,
    ("POST", "/v1/jobs/{key}/cancellation"): room_for(),
}
"""The most bytes of a body, by method and route. The other routes take no body."""

SMALL_BYTES_MAX = 16 * 1024
"""Largest body that the event loop parses itself, because that takes at most 3 ms."""
LARGE_BODIES_MAX = 8
LARGE_BODIES_PER_TASKRUN_MAX = 2
LARGE_BODIES_PER_NAMESPACE_MAX = 3
BODY_SECONDS = 5.0
"""Time that a body may take to arrive."""
LARGE_BODY_WAIT_SECONDS = 8.0
"""Time that a request with a large body waits for a slot before it is refused.

It is longer than `BODY_SECONDS`, so that a slot becomes free even if slow bodies hold all of them.
"""

_LIMIT = web.RequestKey("body_bytes_max", int)


class LargeBodiesError(RateLimitedError):
    """There is no slot for another large body."""

    def __init__(self) -> None:
        super().__init__(f"too many bodies of more than {SMALL_BYTES_MAX} bytes at once")


class BodyTimeoutError(RateLimitedError):
    """A body did not arrive in time."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"the body did not arrive within {seconds:g} seconds")


class BodyReader:
    """Reads and parses request bodies within the limits of this module."""

    def __init__(self, *, seconds: float = BODY_SECONDS) -> None:
        self._seconds = seconds
        self._large = FairSlots(
            LARGE_BODIES_MAX,
            per_namespace=LARGE_BODIES_PER_NAMESPACE_MAX,
            per_taskrun=LARGE_BODIES_PER_TASKRUN_MAX,
        )
        # One thread, because the parsed values of one body may take 25 times its size.
        self._parser = ThreadPoolExecutor(max_workers=1, thread_name_prefix="body-parser")

    def close(self) -> None:
        """End the parsing thread after its last body."""
        self._parser.shutdown(wait=False)

    @asynccontextmanager
    async def admit(self, request: web.Request, namespace: str, taskrun_uid: str) -> AsyncIterator[None]:
        """Refuse a body by its declared length. Hold the slot of a large body until the block ends.

        Raises `RequestRejectedError`: `request-too-large`, or `rate-limited` if there is no slot
        within `LARGE_BODY_WAIT_SECONDS`.
        """
        resource = request.match_info.route.resource
        limit = BODY_BYTES_MAX.get((request.method, resource.canonical if resource else ""), 0)
        request[_LIMIT] = limit
        length = request.content_length
        if request.body_exists and (limit == 0 or (length is not None and length > limit)):
            raise _too_large(limit)
        async with AsyncExitStack() as slots:
            # The length of a chunked body isn't known beforehand.
            if request.body_exists and (length is None or length > SMALL_BYTES_MAX):
                await self._acquire_slots(slots, namespace, taskrun_uid)
            yield

    async def read(self, request: web.Request) -> bytes:
        """Return the body.

        Raises `RequestRejectedError` as soon as the body is too large, or if it arrives too late.
        """
        limit, body = request[_LIMIT], bytearray()
        try:
            async with asyncio.timeout(self._seconds):
                while chunk := await request.content.readany():
                    body += chunk
                    if len(body) > limit:
                        raise _too_large(limit)
        except TimeoutError:
            raise BodyTimeoutError(self._seconds) from None
        except (ConnectionError, web.RequestPayloadError) as error:
            raise RequestRejectedError(ProblemCode.INVALID, f"the body must be sent whole: {error}") from None
        return bytes(body)

    async def parse(self, body: bytes, parse: Callable[[bytes], Parsed]) -> Parsed:
        """Return what `parse` makes of the body. A large body is parsed by another thread."""
        if len(body) <= SMALL_BYTES_MAX:
            return parse(body)
        parsed = await asyncio.get_running_loop().run_in_executor(self._parser, _parsed_or_error, parse, body)
        if isinstance(parsed, RequestRejectedError):
            raise parsed
        return parsed

    async def _acquire_slots(self, slots: AsyncExitStack, namespace: str, taskrun_uid: str) -> None:
        try:
            async with asyncio.timeout(LARGE_BODY_WAIT_SECONDS):
                await slots.enter_async_context(self._large.slot(namespace, taskrun_uid))
        except TimeoutError:
            raise LargeBodiesError from None


def _parsed_or_error(parse: Callable[[bytes], Parsed], body: bytes) -> Parsed | RequestRejectedError:
    """Return what `parse` returns, or its error without the frames that hold the parsed values."""
    try:
        return parse(body)
    except RequestRejectedError as error:
        error.__context__ = error.__cause__ = None
        return error.with_traceback(None)


def has_short_rest(request: web.Request) -> bool:
    """Return whether the unread rest of the body is short enough to discard it.

    aiohttp discards the rest and keeps the connection, so that the client saves a TLS handshake.
    """
    if request.content.is_eof():
        return True
    length = request.content_length
    return length is not None and length - request.content.total_bytes <= SMALL_BYTES_MAX


def _too_large(limit: int) -> RequestRejectedError:
    detail = f"the body must have at most {limit} bytes" if limit else "this route takes no body"
    return RequestRejectedError(ProblemCode.REQUEST_TOO_LARGE, detail)
