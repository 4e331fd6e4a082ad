"""Lines about refused requests: how many, how long, and what the summary counts."""

import logging

import pytest
from aiohttp.http_exceptions import BadStatusLine

from reattach.logs import PlainFormatter
from reattach.server.config import Rate
from reattach.server.peer_log import (
    REASON_CHARACTERS_MAX,
    REQUEST_CHARACTERS_MAX,
    TOTAL_RATE,
    MalformedRequests,
    PeerLog,
    shortened,
)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def peers(clock: Clock, caplog: pytest.LogCaptureFixture) -> PeerLog:
    caplog.set_level(logging.WARNING)
    return PeerLog(Rate(1, 5), clock=clock)


def test_peer_log_cuts_both_texts_and_escapes_them(peers: PeerLog, caplog: pytest.LogCaptureFixture) -> None:
    peers.refused("10.0.0.1", "GET /\n\x1b" + "a" * 9000, "\u202e" + "b" * 9000)
    (line,) = caplog.messages
    assert line.startswith("refused GET /\\n\\x1baa")
    assert "from 10.0.0.1: \\u202ebb" in line
    assert line.count("a" * 60) == 1
    assert len(line) < REQUEST_CHARACTERS_MAX + REASON_CHARACTERS_MAX + 40
    assert REQUEST_CHARACTERS_MAX + REASON_CHARACTERS_MAX == 200


def test_peer_log_omits_lines_beyond_the_rate_of_a_peer_and_counts_them(
    peers: PeerLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(1000):
        peers.refused("10.0.0.1", "GET /", "no token")
    peers.refused("10.0.0.2", "GET /", "no token")
    assert len(caplog.messages) == 6
    peers.write_summary()
    assert caplog.messages[6:] == ["omitted 995 lines about refused requests, 995 from 10.0.0.1"]
    peers.write_summary()
    clock.now += 2
    for _ in range(10):
        peers.refused("10.0.0.1", "GET /", "no token")
    assert len(caplog.messages) == 9


def test_peer_log_bounds_the_lines_of_all_peers_together(peers: PeerLog, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(5000):
        peers.refused(f"peer-{number}", "GET /", "no token")
    assert len(caplog.messages) == TOTAL_RATE.burst
    peers.write_summary()
    assert caplog.messages[-1].startswith(f"omitted {5000 - TOTAL_RATE.burst} lines")
    assert len(caplog.messages) == TOTAL_RATE.burst + 1


def test_peer_log_bounds_tracebacks(peers: PeerLog, caplog: pytest.LogCaptureFixture) -> None:
    try:
        int("x" * 10) + len("y" * 10)
    except ValueError as error:
        error.add_note("z" * 9000)
        for _ in range(100):
            peers.failed("team/pod", "GET /", error)
    assert len(caplog.messages) == 5
    assert all(len(PlainFormatter().format(record)) < 4300 for record in caplog.records)


def test_malformed_requests_are_logged_in_one_line_and_other_records_pass(
    peers: PeerLog, caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger("reattach.test.http")
    logger.addFilter(MalformedRequests(peers))
    error = BadStatusLine("\0" * 9000)
    for _ in range(100):
        logger.error("Error handling request from %s", "10.0.0.1", exc_info=error)
    assert len(caplog.messages) == 5
    assert all(
        len(line) < 300 and line.startswith("refused a malformed request from 10.0.0.1") for line in caplog.messages
    )
    logger.error("another")
    assert caplog.messages[-1] == "another"


@pytest.mark.parametrize(
    "text, expected", [("abc", "abc"), ("it's", "it's"), ("abcdefg", "abcde"), ("\n\n\n", "\\n\\n\\")]
)
def test_shortened_returns_printable_characters(text: str, expected: str) -> None:
    assert shortened(text, 5) == expected
