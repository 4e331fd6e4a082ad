"""Retries of the CLI: reads while the API server is away, and writes after a conflict."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from reattach.api.text import one_line
from reattach.cli.connection import ClusterConnection
from reattach.cli.errors import CommandError
from reattach.cluster import ClusterError, ConflictError, TooManyRequestsError, UnavailableError

RETRY_SECONDS = 2.0
_CONFLICTS_MAX = 8

T = TypeVar("T")
Say = Callable[[str], None]


async def retry_unavailable(connection: ClusterConnection, say: Say, read: Callable[[], Awaitable[T]]) -> T:
    """Return the result of `read`, which is repeated while the API server is away.

    `say` prints one message. A command that waits for hours must outlast an upgrade of the API
    server. Use this for the second read and later: an address that never responded may be mistyped.
    """
    said = False
    while True:
        try:
            return await read()
        except (UnavailableError, TooManyRequestsError) as error:
            if not said:
                say(unavailable_sentence(connection, error))
                said = True
            await asyncio.sleep(error.retry_after or RETRY_SECONDS)


async def retry_conflicts(subject: str, write: Callable[[], Awaitable[T]]) -> T:
    """Return the result of `write`, which reads and then writes by compare-and-set.

    A conflict repeats it. Raises `CommandError` if other clients change `subject` each time.
    """
    for _ in range(_CONFLICTS_MAX):
        try:
            return await write()
        except ConflictError:
            continue
    raise CommandError(f"{subject} was changed by another client at each of {_CONFLICTS_MAX} tries; try again.")


def unavailable_sentence(connection: ClusterConnection, error: ClusterError) -> str:
    """Return the message that is printed once while reads from the API server are repeated."""
    return f"{connection.cluster.host} does not respond ({one_line(error.message)}); trying again."
