"""Reads of the kubelets' events about evictions: how many lists, and which events count."""

import asyncio
import json
from typing import Any

from reattach.cluster import ForbiddenError, UnavailableError
from reattach.taskrun.eviction_reader import EvictionReader


class FakeEvents:
    """An API server whose lists of events take until `release`."""

    def __init__(self, *events: dict[str, Any]) -> None:
        self.events = events
        self.queries: list[dict[str, Any]] = []
        self.error: Exception | None = None
        self.proceed = asyncio.Event()

    async def list(self, path: str, **query: Any) -> bytes:
        self.queries.append({"path": path, **query})
        await self.proceed.wait()
        if self.error is not None:
            raise self.error
        return json.dumps({"metadata": {"resourceVersion": "1"}, "items": self.events}).encode()


def an_event(uid: str, note: str = "too large", controller: str = "kubelet") -> dict[str, Any]:
    return {"regarding": {"uid": uid}, "note": note, "reportingController": controller}


async def test_reader_returns_the_notes_of_kubelets_alone() -> None:
    cluster = FakeEvents(an_event("a"), an_event("b", controller="karpenter"))
    cluster.proceed.set()
    found = await EvictionReader(cluster).read("data", ("a", "b", "c"))  # type: ignore[arg-type] -- it only lists
    assert found == {"a": "too large", "b": None, "c": None}
    (query,) = cluster.queries
    assert query["path"] == "/apis/events.k8s.io/v1/namespaces/data/events"
    assert query["fieldSelector"] == "reason=Evicted,regarding.kind=Pod"


async def test_reader_lists_a_namespace_once_for_all_that_wait() -> None:
    cluster = FakeEvents(an_event("a"))
    reader = EvictionReader(cluster)  # type: ignore[arg-type] -- it only lists

    async def read(count: int, namespace: str = "data") -> list[asyncio.Task[Any]]:
        tasks = [asyncio.create_task(reader.read(namespace, ("a",))) for _ in range(count)]
        for _ in range(5):
            await asyncio.sleep(0)
        return tasks

    first = await read(1)
    waiting = await read(50)
    other = await read(50, "other")
    assert [query["path"].split("/")[5] for query in cluster.queries] == ["data", "other"]
    cluster.proceed.set()
    found = await asyncio.gather(*first, *waiting, *other)
    assert len(cluster.queries) == 3, "one more list serves all that came while the first one ran"
    assert found == [{"a": "too large"}] * 101
    assert (len(reader._locks), reader._waiting) == (0, {})


async def test_reader_lists_few_namespaces_at_once_because_pages_may_be_large() -> None:
    cluster = FakeEvents(an_event("a"))
    reader = EvictionReader(cluster)  # type: ignore[arg-type] -- it only lists
    tasks = [asyncio.create_task(reader.read(f"n{number}", ("a",))) for number in range(9)]
    for _ in range(5):
        await asyncio.sleep(0)
    assert len(cluster.queries) == 4
    cluster.proceed.set()
    assert await asyncio.gather(*tasks) == [{"a": "too large"}] * 9


async def test_reader_without_the_right_knows_no_eviction_and_says_so_once(caplog: Any) -> None:
    cluster = FakeEvents()
    cluster.proceed.set()
    cluster.error = ForbiddenError(403, "Forbidden", "events is forbidden")
    reader = EvictionReader(cluster)  # type: ignore[arg-type] -- it only lists
    assert [await reader.read("data", ("a",)) for _ in range(2)] == [{"a": None}] * 2
    assert [record.message for record in caplog.records] == [
        f"An eviction that ends with exit code 0 counts as a success: {cluster.error}"
    ]


async def test_reader_passes_an_outage_on_and_reads_again() -> None:
    cluster = FakeEvents(an_event("a"))
    cluster.proceed.set()
    cluster.error = UnavailableError(503, "Unavailable", "no")
    reader = EvictionReader(cluster)  # type: ignore[arg-type] -- it only lists
    errors = await asyncio.gather(*(reader.read("data", ("a",)) for _ in range(2)), return_exceptions=True)
    assert all(isinstance(error, UnavailableError) for error in errors)
    cluster.error = None
    assert await reader.read("data", ("a",)) == {"a": "too large"}
