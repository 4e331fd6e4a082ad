"""Lines of a watch, put together from the pieces in which they arrive."""

from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reattach.cluster import client


async def lines_of(*pieces: bytes) -> list[bytes]:
    async def stream() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    return [line async for line in client._lines(stream())]


@given(pieces=st.lists(st.binary(max_size=8).map(lambda piece: piece.replace(b"x", b"\n")), max_size=12))
async def test_lines_do_not_depend_on_how_the_stream_is_cut(pieces: list[bytes]) -> None:
    whole = b"".join(pieces)
    assert await lines_of(*pieces) == [line + b"\n" for line in whole.split(b"\n")[:-1]]


async def test_a_line_that_is_too_long_is_empty_and_the_next_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "LINE_BYTES_MAX", 10)
    assert await lines_of(b"a" * 6, b"a" * 6, b"a" * 6 + b"\nshort\n", b"b" * 11 + b"\n", b"c" * 10 + b"\n") == [
        b"",
        b"short\n",
        b"",
        b"c" * 10 + b"\n",
    ]


async def test_a_line_that_was_cut_off_is_dropped() -> None:
    assert await lines_of(b"whole\nhal") == [b"whole\n"]
