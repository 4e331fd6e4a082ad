"""Bytes that a namespace may write, and when they are given back."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from reattach.api.messages import DEFAULT_RETENTION_SECONDS
from reattach.cluster import ClusterError, ConflictError, ForbiddenError, TooManyRequestsError, UnavailableError
from reattach.cluster.paths import configmaps, taskruns
from reattach.server.authentication import PodIdentity
from reattach.server.config import Rate
from reattach.server.problems import RateLimitedError
from reattach.server.rate_limit import RateLimit
from reattach.server.reads import FairReads
from reattach.server.routes import Routes
from reattach.server.write_budget import BURST_BYTES_MIN, DEBT_BYTES_MAX, METADATA_BYTES, RESERVE_BYTES, MeteredClient
from reattach.state import RunReference

MIB = 1024 * 1024


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Client:
    """A client whose writes succeed, except if a test sets `error`. They wait for `writes_end`."""

    def __init__(self) -> None:
        self.error: ClusterError | None = None
        self.writes = 0
        self.patched = b""
        self.writes_end = asyncio.Event()
        self.writes_end.set()

    async def replace(self, _path: str, _body: Mapping[str, Any], **_query: str) -> bytes:
        await self.writes_end.wait()
        if self.error:
            raise self.error
        self.writes += 1
        return b""

    create = replace

    async def merge_patch(self, path: str, body: Mapping[str, Any], **query: str) -> bytes:
        await self.replace(path, body, **query)
        return self.patched


class Namespaces:
    """One limit of 1 MiB/s with a burst of 8 MiB, and the two clients of a replica."""

    def __init__(self) -> None:
        self.clock, self.client = Clock(), Client()
        limit = RateLimit(Rate(MIB, 8 * MIB), debt_max=DEBT_BYTES_MAX, clock=self.clock)
        self.written = 0
        reads = FairReads()
        self.changes = MeteredClient(self.client, limit, reads, least=RESERVE_BYTES, on_write=self._count)  # type: ignore[arg-type]
        self.evidence = MeteredClient(self.client, limit, reads, least=1, on_write=self._count)  # type: ignore[arg-type]

    def _count(self, size: int) -> None:
        self.written += size

    async def write(self, size: int, namespace: str = "team", *, is_evidence: bool = False) -> None:
        body = {"metadata": {"annotations": {}}, "data": {"k": "x" * (size - METADATA_BYTES - 1)}}
        client = self.evidence if is_evidence else self.changes
        await client.replace(configmaps(namespace, "load-state"), body)

    async def write_all(self, size: int) -> int:
        """Write until the limit rejects a write, and return the number of writes."""
        before = self.client.writes
        with pytest.raises(RateLimitedError, match="namespace team may write only so many bytes of state"):
            await self._write_forever(size)
        return self.client.writes - before

    async def _write_forever(self, size: int, *, is_evidence: bool = False) -> None:
        while True:
            await self.write(size, is_evidence=is_evidence)


@pytest.fixture
def namespaces() -> Namespaces:
    return Namespaces()


async def test_write_budget_bounds_the_bytes_of_a_namespace_over_time(namespaces: Namespaces) -> None:
    for _ in range(100):
        await namespaces.write_all(600_000)
        namespaces.clock.now += 0.1
    assert 6 * MIB + 9.9 * MIB - 600_000 < namespaces.written < 6 * MIB + 9.9 * MIB + 600_000


async def test_write_budget_of_one_namespace_leaves_the_others_alone(namespaces: Namespaces) -> None:
    await namespaces.write_all(MIB)
    await namespaces.write(MIB, "other")


async def test_write_budget_makes_small_states_cheap(namespaces: Namespaces) -> None:
    assert await namespaces.write_all(2048) == 6 * MIB // 2048 + 1


async def test_write_budget_counts_characters_of_several_bytes_as_such(namespaces: Namespaces) -> None:
    body = {"metadata": {"annotations": {"a": "é"}}, "data": {"k": "\N{GRINNING FACE}" * 1000}}
    await namespaces.changes.create(configmaps("team"), body)
    assert namespaces.written == METADATA_BYTES + 3 + 4001


async def test_write_budget_used_up_by_changes_has_room_for_evidence(namespaces: Namespaces) -> None:
    await namespaces.write_all(1_200_000)
    for _ in range(10):
        await namespaces.write(50_000, is_evidence=True)
    with pytest.raises(RateLimitedError):
        await namespaces._write_forever(50_000, is_evidence=True)
    namespaces.clock.now += 0.1
    await namespaces.write(50_000, is_evidence=True)


async def test_write_budget_in_debt_for_a_large_state_returns_the_time_until_it_is_paid(namespaces: Namespaces) -> None:
    await namespaces.write_all(MIB)
    with pytest.raises(RateLimitedError) as refused:
        await namespaces.write(2048)
    namespaces.clock.now += refused.value.wait
    await namespaces.write(MIB)


@pytest.mark.parametrize(
    "error", [ConflictError(409, "Conflict", ""), ForbiddenError(403, "", ""), TooManyRequestsError(429, "", "")]
)
async def test_write_budget_gives_back_what_was_not_written(namespaces: Namespaces, error: ClusterError) -> None:
    namespaces.client.error = error
    for _ in range(50):
        with pytest.raises(type(error)):
            await namespaces.write(MIB)
    assert namespaces.written == 0


async def test_write_budget_charges_a_write_that_may_have_been_carried_out(namespaces: Namespaces) -> None:
    namespaces.client.error = UnavailableError(0, "NoAnswer", "timeout")
    for _ in range(7):
        with pytest.raises(UnavailableError):
            await namespaces.write(MIB)
    with pytest.raises(RateLimitedError):
        await namespaces.write(MIB)


async def test_write_budget_charges_the_size_of_a_patched_taskrun_afterwards(namespaces: Namespaces) -> None:
    namespaces.client.patched = b"x" * MIB
    for _ in range(7):
        await namespaces.changes.merge_patch(taskruns("team", "load"), {})
    assert namespaces.written == 7 * MIB
    for write in (namespaces.write(2048), namespaces.changes.merge_patch(taskruns("team", "load"), {})):
        with pytest.raises(RateLimitedError) as refused:
            await write
        assert refused.value.wait == pytest.approx(1)
    assert namespaces.written == 7 * MIB


async def test_write_budget_after_200_large_taskruns_at_once_has_room_for_evidence_in_seconds(
    namespaces: Namespaces,
) -> None:
    namespaces.client.patched = b"x" * 1_400_000
    namespaces.client.writes_end = asyncio.Event()
    patches = [
        asyncio.create_task(namespaces.changes.merge_patch(taskruns("team", f"load-{n}"), {})) for n in range(200)
    ]
    await asyncio.sleep(0)
    namespaces.client.writes_end.set()
    await asyncio.gather(*patches)
    with pytest.raises(RateLimitedError) as refused:
        await namespaces.write(2048, is_evidence=True)
    assert refused.value.wait < 3
    namespaces.clock.now += refused.value.wait
    await namespaces.write(2048, is_evidence=True)


def test_burst_is_larger_than_the_reserve() -> None:
    assert BURST_BYTES_MIN >= 2 * RESERVE_BYTES


def test_routes_log_calls_without_a_change_only_up_to_a_limit(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    routes = Routes(None, default_retention_seconds=DEFAULT_RETENTION_SECONDS)  # type: ignore[arg-type]
    run = RunReference(namespace="team", name="load", uid="0c2b7")
    caller = PodIdentity(run=run, attempt=1, pod_name="load-0c2b7-1", pod_uid="pod-uid")
    for _ in range(1000):
        routes._write_audit(caller, "intent", None, "x" * 4096, is_changed=False)
    assert 64 <= len(caplog.messages) < 70
    caplog.clear()
    other = replace(caller, run=replace(run, name="other", uid="77a1f"))
    for caller_of_handles in (caller, other):
        for _ in range(1000):
            routes._write_audit(caller_of_handles, "handle", None, "x" * 4096, is_changed=False)
        assert 4 <= len(caplog.messages) < 10, "a refused handle is logged, whatever other calls and tasks log"
        caplog.clear()
    for _ in range(1000):
        routes._write_audit(caller, "handle", None, "x" * 4096, is_changed=True)
    assert len(caplog.messages) == 1000
