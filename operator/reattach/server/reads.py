"""Reads of states, shared fairly between namespaces."""

import asyncio
from collections.abc import Awaitable, Callable

from reattach.round_robin import RoundRobin
from reattach.server.slots import FairSlots

READS_MAX = 16
READS_PER_NAMESPACE_MAX = 8
"""Concurrent reads. A response takes up to 1.4 MiB until it is decoded."""


class FairReads:
    """Limits concurrent reads, and returns one response in each iteration of the event loop.

    To decode a large state takes tens of milliseconds, in which the process does nothing else. With
    several in one iteration, a namespace that reads large states again and again would delay every
    request of all others. Namespaces take turns.
    """

    def __init__(self) -> None:
        self._slots = FairSlots(READS_MAX, per_namespace=READS_PER_NAMESPACE_MAX, per_taskrun=READS_PER_NAMESPACE_MAX)
        self._waiting = RoundRobin[str, asyncio.Future[None]]()
        self._is_scheduled = False

    async def read(self, get: Callable[[str], Awaitable[bytes]], namespace: str, path: str) -> bytes:
        """Return the response of `get` in a turn, which lasts until the caller awaits again."""
        async with self._slots.slot(namespace, path):
            text = await get(path)
            await self._take_turn(namespace)
        return text

    async def _take_turn(self, namespace: str) -> None:
        loop = asyncio.get_running_loop()
        turn = loop.create_future()
        self._waiting.put(namespace, turn)
        if not self._is_scheduled:
            self._is_scheduled = True
            loop.call_soon(self._grant)
        await turn

    def _grant(self) -> None:
        """Grant one turn, and come back in the iteration after it."""
        self._is_scheduled = False
        while self._waiting:
            turn = self._waiting.pop()
            if not turn.done():  # otherwise its task was cancelled
                turn.set_result(None)
                self._is_scheduled = True
                asyncio.get_running_loop().call_soon(self._grant)
                return
