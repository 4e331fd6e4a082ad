"""How large a body may be, and that the largest message of each route fits."""

import json
import threading
from typing import Any

import pytest

from reattach.api.messages import (
    ADAPTER_CHARACTERS_MAX,
    BATCH_OPERATIONS_MAX,
    DIGEST_CHARACTERS_MAX,
    HANDLE_BYTES_MAX,
    RESULT_BYTES_MAX,
    SESSION_CHARACTERS_MAX,
    STATE_BYTES_MAX,
    URL_BYTES_MAX,
    VALUE_BYTES_MAX,
)
from reattach.server.bodies import BODY_BYTES_MAX, MESSAGE_BYTES_MAX, BodyReader
from reattach.server.routes import Routes

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


def test_one_value_takes_less_than_450_kib() -> None:
    assert BODY_BYTES_MAX["PUT", "/v1/state/{key}"] < 450 * 1024


async def test_only_a_large_body_is_parsed_by_another_thread() -> None:
    bodies, here = BodyReader(), threading.get_ident()
    try:
        assert await bodies.parse(b"x" * 16384, lambda _: threading.get_ident()) == here
        assert await bodies.parse(b"x" * 16385, lambda _: threading.get_ident()) != here
    finally:
        bodies.close()
