"""Reads of states: how many are concurrent, and in which order namespaces get their responses."""

import asyncio

from reattach.cluster.paths import configmaps
from reattach.server.config import Rate
from reattach.server.rate_limit import RateLimit
from reattach.server.reads import READS_PER_NAMESPACE_MAX, FairReads
from reattach.server.write_budget import MeteredClient


class Client:
    """Responds to reads once `responds` is set, and counts those in progress."""

    def __init__(self, *, responds: bool = True) -> None:
        self.responds = asyncio.Event()
        self.running = 0
        if responds:
            self.responds.set()

    async def get(self, path: str) -> bytes:
        self.running += 1
        await self.responds.wait()
        self.running -= 1
        return path.encode()


async def order_of(clients: list[MeteredClient], namespaces: str) -> str:
    """Read one state for each letter at once, and return the order in which the reads returned."""
    order: list[str] = []

    async def read(number: int, namespace: str) -> None:
        await clients[number % len(clients)].get(configmaps(namespace, "load-state"))
        order.append(namespace)

    await asyncio.gather(*(read(number, namespace) for number, namespace in enumerate(namespaces)))
    return "".join(order)


def clients_of(reads: FairReads, client: Client | None = None) -> list[MeteredClient]:
    limit, client = RateLimit(Rate(1, 1)), client or Client()
    return [MeteredClient(client, limit, reads, least=least) for least in (1, 2)]  # type: ignore[arg-type]


async def test_reads_of_one_namespace_take_turns_with_those_of_others() -> None:
    assert await order_of(clients_of(FairReads()), "aaaaaaaabbc") == "abcabaaaaaa"


async def test_no_two_reads_return_in_one_iteration_of_the_event_loop() -> None:
    clients, iterations, returned_in = clients_of(FairReads()), 0, []

    async def count() -> None:
        nonlocal iterations
        while True:
            iterations += 1
            await asyncio.sleep(0)

    async def read() -> None:
        await clients[0].get(configmaps("a", "load-state"))
        returned_in.append(iterations)

    counting = asyncio.create_task(count())
    await asyncio.gather(*(read() for _ in range(10)))
    counting.cancel()
    assert len(set(returned_in)) == 10


async def test_cancelled_reads_do_not_hold_up_later_ones() -> None:
    clients = clients_of(FairReads())
    reads = [asyncio.ensure_future(order_of(clients, "a")) for _ in range(3)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    for read in reads[:2]:
        read.cancel()
    assert await reads[2] == "a"
    assert await asyncio.wait_for(order_of(clients, "b"), 5) == "b"


async def test_namespace_whose_reads_take_long_leaves_some_to_others() -> None:
    client = Client(responds=False)
    clients = clients_of(FairReads(), client)
    reads = asyncio.ensure_future(order_of(clients, "a" * 100))
    await asyncio.sleep(0.01)
    assert client.running == READS_PER_NAMESPACE_MAX
    other = asyncio.ensure_future(order_of(clients, "b"))
    await asyncio.sleep(0.01)
    assert client.running == READS_PER_NAMESPACE_MAX + 1
    client.responds.set()
    assert (await reads, await other) == ("a" * 100, "b")
