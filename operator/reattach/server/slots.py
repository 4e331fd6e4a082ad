"""Slots for large bodies, shared fairly between namespaces."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass


@dataclass(eq=False)
class _Waiter:
    namespace: str
    taskrun_uid: str
    granted: asyncio.Future[None]


class FairSlots:
    """A number of slots, of which a TaskRun and a namespace may hold only a part.

    A free slot goes to the waiting namespace that holds the fewest, then to the one that got a slot
    least recently. The last free slot goes only to a namespace that holds none. So namespaces that
    use all they can get neither starve another one nor let it wait for long.
    """

    def __init__(self, total: int, *, per_namespace: int, per_taskrun: int) -> None:
        self._free = total
        self._per_namespace = per_namespace
        self._per_taskrun = per_taskrun
        self._of_namespace: Counter[str] = Counter()
        self._of_taskrun: Counter[str] = Counter()
        self._waiters: list[_Waiter] = []  # in the order of their arrival
        self._grants = 0
        self._granted_at: dict[str, int] = {}  # of the namespaces that hold a slot or wait

    @asynccontextmanager
    async def slot(self, namespace: str, taskrun_uid: str) -> AsyncIterator[None]:
        """Wait for a slot, and hold it until the block ends."""
        waiter = _Waiter(namespace, taskrun_uid, asyncio.get_running_loop().create_future())
        self._waiters.append(waiter)
        self._grant()
        try:
            await waiter.granted
            yield
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
            else:
                self._release(waiter)
            self._grant()
            self._forget(namespace)

    def _grant(self) -> None:
        while candidates := [waiter for waiter in self._waiters if self._may_hold_another(waiter)]:
            waiter = min(candidates, key=self._precedence)
            self._waiters.remove(waiter)
            self._free -= 1
            self._of_namespace[waiter.namespace] += 1
            self._of_taskrun[waiter.taskrun_uid] += 1
            self._grants += 1
            self._granted_at[waiter.namespace] = self._grants
            if not waiter.granted.done():  # otherwise it is cancelled, and about to release the slot
                waiter.granted.set_result(None)

    def _may_hold_another(self, waiter: _Waiter) -> bool:
        held = self._of_namespace[waiter.namespace]
        return (
            self._free > (1 if held else 0)
            and held < self._per_namespace
            and self._of_taskrun[waiter.taskrun_uid] < self._per_taskrun
        )

    def _precedence(self, waiter: _Waiter) -> tuple[int, int]:
        return self._of_namespace[waiter.namespace], self._granted_at.get(waiter.namespace, 0)

    def _release(self, waiter: _Waiter) -> None:
        self._free += 1
        for held, key in ((self._of_namespace, waiter.namespace), (self._of_taskrun, waiter.taskrun_uid)):
            held[key] -= 1
            if held[key] == 0:
                del held[key]

    def _forget(self, namespace: str) -> None:
        if namespace not in self._of_namespace and all(waiter.namespace != namespace for waiter in self._waiters):
            self._granted_at.pop(namespace, None)
