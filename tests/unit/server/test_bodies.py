"""How large a body may be, and that the largest message of each route fits."""

import asyncio
import contextlib
import json
import threading
import time
import traceback
from types import SimpleNamespace
from typing import Any

import pytest

from reattach.api.messages import (
    ADAPTER_CHARACTERS_MAX,
    BATCH_OPERATIONS_MAX,
    DIGEST_CHARACTERS_MAX,
    END_MESSAGE_BYTES_MAX,
    HANDLE_BYTES_MAX,
    RESULT_BYTES_MAX,
    SESSION_CHARACTERS_MAX,
    STATE_BYTES_MAX,
    URL_BYTES_MAX,
    VALUE_BYTES_MAX,
    ProblemCode,
)
from reattach.server.bodies import (
    BODY_BYTES_MAX,
    BODY_SECONDS,
    LARGE_BODY_WAIT_SECONDS,
    MESSAGE_BYTES_MAX,
    BodyReader,
    LargeBodiesError,
)
from reattach.server.routes import Routes
from reattach.state import RequestRejectedError

MOST = 3153600000


def a_text(size: int) -> str:
    """Return a string of so many bytes as JSON, every character of which a client escaped."""
    return "\\u0061" * (size - 2)


LARGEST: dict[tuple[str, str], dict[str, Any]] = {
    ("POST", "/v1/open"): {"session": a_text(SESSION_CHARACTERS_MAX + 2), "canCleanup": False},
    ("PUT", "/v1/state/{key}"): {
        "value": a_text(VALUE_BYTES_MAX),
        "ifAbsent": False,
        "ifVersion": MOST,
        "retentionSeconds": MOST,
    },
    ("POST", "/v1/complete"): {"result": a_text(RESULT_BYTES_MAX)},
    ("POST", "/v1/end"): {
        "kind": "RetryLater",
        "message": a_text(END_MESSAGE_BYTES_MAX),
        "retryAfterSeconds": MOST,
    },
    ("POST", "/v1/jobs/{key}/intent"): {
        "submitter": a_text(SESSION_CHARACTERS_MAX + 2),
        "adapter": a_text(ADAPTER_CHARACTERS_MAX + 2),
        "digest": a_text(DIGEST_CHARACTERS_MAX + 2),
        "tokenSeconds": MOST,
        "detached": False,
        "again": "ClientName",
        "newGeneration": False,
    },
    ("PUT", "/v1/jobs/{key}/handle"): {
        "generation": MOST,
        "submitter": a_text(SESSION_CHARACTERS_MAX + 2),
        "handle": a_text(HANDLE_BYTES_MAX),
        "url": a_text(URL_BYTES_MAX),
        "origin": "Submitted",
    },
    ("PUT", "/v1/jobs/{key}/outcome"): {
        "generation": MOST,
        "state": "Succeeded",
        "result": a_text(RESULT_BYTES_MAX),
        "message": "x" * MESSAGE_BYTES_MAX,
        "hold": False,
        "givenUp": False,
    },
}


def test_every_route_that_reads_a_body_has_a_limit() -> None:
    table = Routes(None, default_retention_seconds=0).table()  # type: ignore[arg-type]
    with_body = {
        (route.method, route.path.replace(":[\\s\\S]*", "")) for route in table if route.method in {"PUT", "POST"}
    }
    assert with_body == set(BODY_BYTES_MAX)


@pytest.mark.parametrize("route", LARGEST, ids=" ".join)
def test_the_largest_message_of_a_route_fits_however_it_is_escaped(route: tuple[str, str]) -> None:
    sent = json.dumps(LARGEST[route], indent=8).replace("\\\\", "\\")
    assert json.loads(sent)
    assert len(sent) <= BODY_BYTES_MAX[route]


def test_a_batch_that_fills_a_state_fits() -> None:
    room_for_names = BODY_BYTES_MAX["POST", "/v1/state"] - STATE_BYTES_MAX
    assert room_for_names / BATCH_OPERATIONS_MAX > 5000


async def test_only_a_large_body_is_parsed_by_another_thread() -> None:
    bodies, here = BodyReader(), threading.get_ident()
    try:
        assert await bodies.parse(b"x" * 16384, lambda _: threading.get_ident()) == here
        assert await bodies.parse(b"x" * 16385, lambda _: threading.get_ident()) != here
    finally:
        bodies.close()


async def test_error_of_a_large_body_does_not_hold_the_parsed_values() -> None:
    bodies = BodyReader()

    def parse(body: bytes) -> None:
        try:
            int(body[:1])
        except ValueError as error:
            raise RequestRejectedError(ProblemCode.INVALID, "no number") from error

    try:
        with pytest.raises(RequestRejectedError) as refused:
            await bodies.parse(b"x" * 16385, parse)
    finally:
        bodies.close()
    raised_in = [frame.line for frame in traceback.extract_tb(refused.value.__traceback__)]
    assert "int(body[:1])" not in raised_in
    assert not [line for line in raised_in if line and "no number" in line]
    assert refused.value.__context__ is None
    assert refused.value.__cause__ is None


class LargeRequest(dict[Any, Any]):
    """A request with a large body that has not arrived."""

    method = "PUT"
    content_length = 30_000
    body_exists = True
    match_info = SimpleNamespace(route=SimpleNamespace(resource=SimpleNamespace(canonical="/v1/state/{key}")))


async def hold_large_bodies(bodies: BodyReader, namespace: str, taskrun: str, seconds: float) -> None:
    """Hold a slot of a large body for `seconds`, again and again."""
    while True:
        with contextlib.suppress(LargeBodiesError):
            async with bodies.admit(LargeRequest(), namespace, taskrun):  # type: ignore[arg-type]
                await asyncio.sleep(seconds)


@pytest.mark.parametrize("namespaces", [1, 4])
async def test_large_bodies_of_hostile_taskruns_leave_a_slot_to_another_namespace(namespaces: int) -> None:
    """The holders keep each slot for 0.5 seconds, a tenth of the time in production."""
    bodies = BodyReader()
    holders = [
        asyncio.create_task(hold_large_bodies(bodies, f"hostile-{number % namespaces}", f"run-{number // 2}", 0.5))
        for number in range(24)
    ]
    try:
        for _ in range(4):
            await asyncio.sleep(0.1)
            started = time.monotonic()
            async with bodies.admit(LargeRequest(), "other", "other"):  # type: ignore[arg-type]
                waited = time.monotonic() - started
            assert waited < (0.3 if namespaces == 1 else 2)
    finally:
        for holder in holders:
            holder.cancel()
        await asyncio.gather(*holders, return_exceptions=True)
        bodies.close()


async def test_a_request_waits_longer_for_a_slot_than_a_body_may_take_to_arrive(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All times are a tenth of those in production."""
    monkeypatch.setattr("reattach.server.bodies.LARGE_BODY_WAIT_SECONDS", LARGE_BODY_WAIT_SECONDS / 10)
    bodies = BodyReader()
    holders = [
        asyncio.create_task(hold_large_bodies(bodies, f"n-{number % 4}", f"run-{number}", BODY_SECONDS / 10))
        for number in range(8)
    ]
    try:
        await asyncio.sleep(0.05)
        async with bodies.admit(LargeRequest(), "other", "other"):  # type: ignore[arg-type]
            pass
    finally:
        for holder in holders:
            holder.cancel()
        await asyncio.gather(*holders, return_exceptions=True)
        bodies.close()
