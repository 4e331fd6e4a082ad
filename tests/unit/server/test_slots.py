"""Turns of namespaces that wait for slots."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator

import pytest

from reattach.server.slots import FairSlots


def a_replica() -> FairSlots:
    return FairSlots(8, per_namespace=3, per_taskrun=2)


class Holders:
    """Requests that hold a slot until a test ends them."""

    def __init__(self, slots: FairSlots) -> None:
        self.slots = slots
        self.held: list[tuple[str, asyncio.Event]] = []
        self.tasks: list[asyncio.Task[None]] = []

    async def add(self, namespace: str, taskrun: str = "", *, count: int = 1) -> None:
        """Add requests, each of a TaskRun of its own unless `taskrun` names one."""
        for number in range(count):
            self.tasks.append(asyncio.create_task(self._hold(namespace, taskrun or f"{namespace}-{number}")))
        await settled()

    async def _hold(self, namespace: str, taskrun: str) -> None:
        over = asyncio.Event()
        async with self.slots.slot(namespace, taskrun):
            self.held.append((namespace, over))
            await over.wait()
            self.held.remove((namespace, over))

    async def end_oldest(self) -> None:
        self.held[0][1].set()
        await settled()

    @property
    def namespaces(self) -> Counter[str]:
        return Counter(namespace for namespace, _ in self.held)

    async def cancel(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.fixture
async def holders() -> AsyncIterator[Holders]:
    holders = Holders(a_replica())
    yield holders
    await holders.cancel()


async def test_slots_used_up_by_three_namespaces_leave_one_for_another(holders: Holders) -> None:
    for namespace in ("a", "b", "c"):
        await holders.add(namespace, count=10)
    assert holders.namespaces.total() == 7
    await holders.add("innocent")
    assert holders.namespaces["innocent"] == 1


@pytest.mark.parametrize("hostile", [4, 8, 30])
async def test_slots_with_many_namespaces_waiting_are_granted_in_turns(holders: Holders, hostile: int) -> None:
    """Each hostile namespace has more requests than it can get slots, and replaces ended ones."""
    for number in range(hostile):
        await holders.add(f"hostile-{number}", count=20)
    await holders.add("innocent")
    ended = 0
    while "innocent" not in holders.namespaces:
        await holders.add(holders.held[0][0], count=1)
        await holders.end_oldest()
        ended += 1
        assert ended <= hostile
    assert holders.namespaces.total() <= 8


async def test_slots_of_one_namespace_and_one_taskrun_are_bounded(holders: Holders) -> None:
    await holders.add("a", "load", count=5)
    assert holders.namespaces == {"a": 2}
    await holders.add("a", count=5)
    assert holders.namespaces == {"a": 3}


async def test_slots_of_cancelled_waiters_are_not_lost(holders: Holders) -> None:
    await holders.add("a", count=3)
    await holders.add("b", count=3)
    await holders.add("c", count=3)
    for task in holders.tasks[7:]:
        task.cancel()
    await holders.cancel()
    assert holders.slots._free == 8
    assert not holders.slots._of_namespace
    assert not holders.slots._of_taskrun
    assert not holders.slots._granted_at


async def test_slot_granted_in_the_moment_of_a_cancel_is_released() -> None:
    slots = FairSlots(1, per_namespace=1, per_taskrun=1)
    first = slots.slot("a", "a")
    await first.__aenter__()
    waiting = asyncio.create_task(slots.slot("b", "b").__aenter__())
    await settled()
    waiting.cancel()
    await first.__aexit__(None, None, None)
    with contextlib.suppress(asyncio.CancelledError):
        await waiting
    async with asyncio.timeout(1), slots.slot("c", "c"):
        pass
