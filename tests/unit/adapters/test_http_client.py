"""A request is over within a known time, leaves early or not at all, and a failed one says whether it may have left."""

import itertools
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import httpx
import pytest

from reattach.adapters.http_client import ANSWER_BYTES_MAX, BoundedHttpClient, CallError, HttpResponse, NotSentError

Serve = Callable[[socket.socket], None]


@contextmanager
def listening(serve: Serve) -> Iterator[tuple[str, list[bytes]]]:
    """A server of a few lines; the address, and what it received."""
    received: list[bytes] = []

    def accept() -> None:
        with suppress(OSError):
            while True:
                connection, _ = server.accept()
                with connection, suppress(OSError):
                    received.append(request_from(connection))
                    serve(connection)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", received
        server.shutdown(socket.SHUT_RDWR)
    thread.join()


def request_from(connection: socket.socket) -> bytes:
    """Headers and body; empty if none came."""
    with connection.makefile("rb") as stream:
        head = b"".join(iter(stream.readline, b"\r\n" if stream.peek(1) else b""))
        length = re.search(rb"Content-Length: (\d+)", head)
        return head + (stream.read(int(length[1])) if length else b"")


def answer_ok(connection: socket.socket) -> None:
    connection.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"id": 1}')


def test_an_answer_is_what_was_answered() -> None:
    with listening(answer_ok) as (address, received):
        answer = BoundedHttpClient(address, 20).send("POST", "/jobs", {"ä": 1}, {"X-Token": "t"})
        assert (answer.status, answer.body) == (200, {"id": 1})
    [request] = received
    assert request.startswith(b"POST /jobs HTTP/1.1\r\n")
    assert b"Connection: close" in request
    assert b"X-Token: t" in request
    assert '{"ä": 1}'.encode() in request


def test_a_request_that_is_late_to_leave_does_not_leave() -> None:
    # The process was frozen, or a name server slow: by its clock a third of the time is over once it is connected.
    ticks = itertools.count(step=11.0)
    late = pytest.raises(NotSentError, match="not connected within 10 s")
    with listening(answer_ok) as (address, received), late:
        BoundedHttpClient(address, 30, clock=lambda: next(ticks)).send("POST", "/jobs", {})
    assert received in ([], [b""])


def test_a_submission_that_may_not_leave_any_more_does_not_leave() -> None:
    asked: list[int] = []

    def may_leave() -> bool:
        asked.append(len(received))
        return False

    with listening(answer_ok) as (address, received), pytest.raises(NotSentError, match="too much time has passed"):
        BoundedHttpClient(address, 30).send("POST", "/jobs", {}, may_leave=may_leave)
    assert asked
    assert received in ([], [b""])


def test_what_was_never_connected_was_not_sent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
    with pytest.raises(NotSentError):
        BoundedHttpClient(address, 20).send("GET", "/")


def test_whatever_keeps_the_credentials_from_being_read_nothing_was_sent() -> None:
    def headers() -> dict[str, str]:
        raise RuntimeError("the identity provider is away")

    with pytest.raises(NotSentError, match=r"credentials .* can't be read: RuntimeError: the identity provider"):
        BoundedHttpClient("http://127.0.0.1:9", 20, headers).send("POST", "/jobs", {})
    with pytest.raises(NotSentError, match=r"CA .* can't be read: RuntimeError"):
        BoundedHttpClient("http://127.0.0.1:9", 20, tls=headers).send("POST", "/jobs", {})  # type: ignore[arg-type] # it raises


def test_a_connection_that_breaks_after_the_request_tells_nothing() -> None:
    with listening(lambda _connection: None) as (address, received):
        with pytest.raises(CallError) as caught:
            BoundedHttpClient(address, 20).send("POST", "/jobs", {})
        assert not isinstance(caught.value, NotSentError)
    assert len(received) == 1


def test_an_answer_without_end_is_given_up() -> None:
    def pour(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            connection.sendall(b"x" * 65536)

    with listening(pour) as (address, _), pytest.raises(CallError, match=r"\(200\) that was too long"):
        BoundedHttpClient(address, 600).send("GET", "/")


def test_an_answer_that_trickles_is_given_up() -> None:
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 6
        return now

    def trickle() -> Iterator[bytes]:
        yield from (b"x" for _ in range(100))

    transport = httpx.MockTransport(lambda _request: httpx.Response(200, content=trickle()))
    with pytest.raises(CallError, match="too long or too slow"):
        BoundedHttpClient("http://jobs.invalid", 30, transport=transport, clock=clock).send("GET", "/")
    assert now < 100


def test_a_request_that_is_no_json_is_the_callers_mistake() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        BoundedHttpClient("http://127.0.0.1:1", 20).send("POST", "/", {"x": float("nan")})


@pytest.mark.parametrize("text", ["", "<html>", "{", '{"a": 1,}', "[" * 100_000])
def test_a_body_that_is_no_json_is_none(text: str) -> None:
    assert HttpResponse(200, text).body is None


@pytest.mark.parametrize(
    "text", ['{"id": "j", "eta": NaN}', '{"id": "j", "eta": -Infinity}', '{"id": "j", "log": "a\n\tb"}']
)
def test_body_with_lax_json_in_another_field_is_read(text: str) -> None:
    assert HttpResponse(200, text).body["id"] == "j"


def test_response_with_a_byte_order_mark_is_read() -> None:
    content = b'\xef\xbb\xbf{"id": "j"}'
    client = BoundedHttpClient(
        "https://a.invalid", 5, transport=httpx.MockTransport(lambda _: httpx.Response(200, content=content))
    )
    response = client.send("GET", "/")
    assert (response.body, response.text[0]) == ({"id": "j"}, "{")


def test_an_answer_shows_in_one_short_line() -> None:
    shown = str(HttpResponse(500, "a\n\n  b" + "c" * ANSWER_BYTES_MAX))
    assert shown.startswith("500 a bc")
    assert len(shown) == 300
