"""Waiting out an API server that is away for a while, as while it is upgraded: what waits for hours must not end by that."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from reattach.cli.connection import ClusterConnection
from reattach.cli.text import one_line
from reattach.cluster import ClusterError, TooManyRequestsError, UnavailableError

_ASK_AGAIN_SECONDS = 2.0

T = TypeVar("T")
Say = Callable[[str], None]


async def patiently(connection: ClusterConnection, say: Say, ask: Callable[[], Awaitable[T]]) -> T:
    """What `ask` answers, however long that takes. For the second look and later: what never answered may be a mistyped address."""
    told = False
    while True:
        try:
            return await ask()
        except (UnavailableError, TooManyRequestsError) as error:
            if not told:
                say(sentence_of_absence(connection, error))
                told = True
            await asyncio.sleep(error.retry_after or _ASK_AGAIN_SECONDS)


def sentence_of_absence(connection: ClusterConnection, error: ClusterError) -> str:
    """What is said once, while the API server is asked again and again."""
    return f"{connection.cluster.host} does not answer ({one_line(error.message)}); asking again."
