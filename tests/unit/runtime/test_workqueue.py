"""The work queue and the heap of delays."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from reattach.round_robin import RoundRobin
from reattach.runtime.metrics import OperatorMetrics
from reattach.runtime.workers import Workers
from reattach.runtime.workqueue import DelayingHeap, Key, WorkQueue

A, B, C = (Key("default", name) for name in "abc")


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class TestDelays:
    def test_what_is_due_comes_out_earliest_first(self) -> None:
        delays = DelayingHeap()
        for key, at in ((A, 3.0), (B, 1.0), (C, 9.0)):
            delays.set(key, at)
        assert delays.pop_due(5.0) == [B, A]
        assert delays.next_at() == 9.0

    def test_a_later_time_replaces_an_earlier_one(self) -> None:
        delays = DelayingHeap()
        delays.set(A, 1.0)
        delays.set(A, 5.0)
        assert delays.pop_due(4.0) == []
        assert delays.pop_due(5.0) == [A]

    def test_an_earlier_time_replaces_a_later_one_and_comes_once(self) -> None:
        delays = DelayingHeap()
        for at in (5.0, 1.0, 5.0, 1.0):
            delays.set(A, at)
        assert delays.pop_due(10.0) == [A]
        assert len(delays) == 0

    def test_a_dropped_key_does_not_come(self) -> None:
        delays = DelayingHeap()
        delays.set(A, 1.0)
        delays.drop(A)
        assert delays.pop_due(10.0) == []
        assert delays.next_at() is None

    @given(st.lists(st.tuples(st.sampled_from([A, B, C]), st.none() | st.integers(0, 20)), max_size=300))
    def test_it_is_a_map_with_a_sorted_view(self, steps: list[tuple[Key, int | None]]) -> None:
        delays, model = DelayingHeap(), dict[Key, float]()
        for key, at in steps:
            if at is None:
                delays.drop(key)
                model.pop(key, None)
            else:
                delays.set(key, at)
                model[key] = at
            assert delays.next_at() == (min(model.values()) if model else None)
            assert len(delays._heap) <= 2 * len(model) + 65
        assert sorted(delays.pop_due(10)) == sorted(key for key, at in model.items() if at <= 10)
        assert len(delays) == sum(at > 10 for at in model.values())


class TestRoundRobin:
    def test_groups_take_turns_in_order_of_arrival(self) -> None:
        queue = RoundRobin[str, int]()
        for group, item in (("a", 1), ("a", 2), ("a", 3), ("b", 4), ("c", 5), ("b", 6)):
            queue.put(group, item)
        assert drained(queue) == [1, 4, 5, 2, 6, 3]

    def test_removed_item_is_not_returned(self) -> None:
        queue = RoundRobin[str, int]()
        for group, item in (("a", 1), ("a", 2), ("b", 3)):
            queue.put(group, item)
        queue.remove("a", 1)
        queue.remove("b", 3)
        assert drained(queue) == [2]

    def test_suspended_group_keeps_its_items_until_it_is_resumed(self) -> None:
        queue = RoundRobin[str, int]()
        queue.put("a", 1)
        queue.suspend("a")
        queue.put("a", 2)
        assert not queue
        queue.put("b", 3)
        assert drained(queue) == [3]
        queue.resume("a")
        assert drained(queue) == [1, 2]

    @given(st.lists(st.sampled_from(["put a", "put b", "put c", "pop", "suspend a", "resume a"]), max_size=200))
    def test_no_item_is_lost_and_groups_without_items_take_no_memory(self, steps: list[str]) -> None:
        queue, model, suspended = RoundRobin[str, int](), dict[str, list[int]](), False
        for number, step in enumerate(steps):
            verb, _, group = step.partition(" ")
            if verb == "put":
                queue.put(group, number)
                model.setdefault(group, []).append(number)
            elif verb == "pop" and queue:
                item = queue.pop()
                [found] = [name for name, items in model.items() if item in items]
                assert model[found].pop(0) == item
                assert not (found == "a" and suspended)
            elif verb in {"suspend", "resume"} and suspended == (verb == "resume"):
                (queue.suspend if verb == "suspend" else queue.resume)("a")
                suspended = not suspended
            with_items = {name for name, items in model.items() if items}
            assert set(queue._turns) == with_items - ({"a"} if suspended else set())
            assert set(queue._suspended) == ({"a"} if suspended else set())


def drained(queue: RoundRobin[str, int]) -> list[int]:
    items = []
    while queue:
        items.append(queue.pop())
    return items


class TestWorkers:
    async def test_worker_without_io_lets_other_tasks_run_between_two_keys(self) -> None:
        queue, order = WorkQueue(), list[str]()
        for key in (A, B, C):
            queue.add(key)

        async def reconcile(key: Key) -> None:
            order.append(key.name)

        worker = asyncio.ensure_future(Workers("TaskRun", queue, reconcile, OperatorMetrics()).run())
        for _ in range(3):
            await asyncio.sleep(0)
            order.append("other")
        worker.cancel()
        assert order == ["a", "other", "b", "other", "c", "other"]


class TestWorkQueue:
    async def test_key_of_another_namespace_is_returned_before_a_backlog(self) -> None:
        clock = Clock()
        queue = WorkQueue(clock=clock)
        for number in range(5000):
            queue.add(Key("many", str(number)))
        clock.now += 3
        queue.add(A)
        assert [await queue.get() for _ in range(3)] == [Key("many", "0"), A, Key("many", "1")]
        clock.now += 4
        assert queue.oldest_age() == 7
        assert queue.depth == 4998

    async def test_namespace_that_occupies_its_share_of_workers_leaves_the_rest_to_others(self) -> None:
        queue = WorkQueue(per_namespace=2)
        for key in (A, B, C):
            queue.add(key)
        assert [await queue.get(), await queue.get()] == [A, B]
        idle = [asyncio.ensure_future(queue.get()) for _ in range(2)]
        await asyncio.sleep(0)
        assert not any(each.done() for each in idle)
        other = Key("other", "d")
        queue.add(other)
        async with asyncio.timeout(5):
            assert await idle[0] == other
            queue.done(A)
            assert await idle[1] == C

    async def test_worker_that_is_cancelled_as_it_is_woken_leaves_the_key_to_another(self) -> None:
        queue = WorkQueue()
        first, second = (asyncio.ensure_future(queue.get()) for _ in range(2))
        await asyncio.sleep(0)
        queue.add(A)
        first.cancel()
        async with asyncio.timeout(5):
            assert await second == A

    async def test_queue_without_keys_remembers_no_namespace(self) -> None:
        queue = WorkQueue(per_namespace=1)
        for number in range(10):
            queue.add(Key(f"namespace-{number}", "a"))
        for _ in range(10):
            queue.done(await queue.get())
        assert not queue._workers_of
        assert not queue._ready._turns
        assert not queue._ready._suspended

    async def test_a_key_marked_often_is_handed_out_once(self) -> None:
        queue = WorkQueue()
        for key in (A, B, A, A):
            queue.add(key)
        assert [await queue.get(), await queue.get()] == [A, B]
        assert queue.depth == 0

    async def test_a_key_is_never_handed_out_while_it_is_worked_on(self) -> None:
        queue = WorkQueue()
        queue.add(A)
        assert await queue.get() == A
        queue.add(A)
        queue.add(B)
        assert await queue.get() == B
        waiting = asyncio.ensure_future(queue.get())
        await asyncio.sleep(0)
        assert not waiting.done()
        queue.done(A)
        assert await waiting == A

    async def test_what_was_not_marked_again_does_not_come_again(self) -> None:
        queue = WorkQueue()
        queue.add(A)
        await queue.get()
        queue.done(A)
        assert queue.depth == 0

    async def test_a_delayed_key_comes_when_its_time_has_come(self) -> None:
        clock = Clock()
        queue = WorkQueue(clock=clock)
        queue.add_at(A, clock.now + 1000)
        delays = asyncio.ensure_future(queue.run_delays())
        await asyncio.sleep(0)
        assert queue.depth == 0
        assert queue.delayed == 1
        clock.now += 1000
        queue.add_at(B, clock.now)  # wakes it, as the clock's next look would
        assert {await queue.get(), await queue.get()} == {A, B}
        delays.cancel()

    async def test_the_age_is_that_of_the_key_that_waits_longest(self) -> None:
        clock = Clock()
        queue = WorkQueue(clock=clock)
        queue.add(A)
        clock.now += 5
        queue.add(B)
        clock.now += 2
        queue.add(A)
        assert queue.oldest_age() == 7
        await queue.get()
        assert queue.oldest_age() == 2
