"""Who holds the Lease has stopped before another may start, whatever hangs."""

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any, cast

import msgspec
import pytest

from reattach.cluster import Cluster, ConflictError, NotFoundError
from reattach.runtime.leader_election import LeaderElector, LeadershipLostError, LeaseSettings

SETTINGS = LeaseSettings(
    namespace="reattach-system", name="reattach", holder="us", seconds=8, deadline_seconds=2, every_seconds=1.5
)


@dataclass
class Leases:
    """A Lease in memory. Of the verbs in `hanging` no call is answered; with `is_taken` the version is another at each renewal."""

    lease: dict[str, Any] = field(default_factory=dict)
    hanging: tuple[str, ...] = ()
    is_taken: bool = False

    async def get(self, path: str) -> bytes:
        await self._hang("get")
        if not self.lease:
            raise NotFoundError(404, "NotFound", path)
        return msgspec.json.encode(self.lease)

    async def create(self, _path: str, body: dict[str, Any]) -> bytes:
        self.lease = {**body, "metadata": {**body["metadata"], "resourceVersion": "1"}}
        return msgspec.json.encode(self.lease)

    async def replace(self, path: str, body: dict[str, Any]) -> bytes:
        await self._hang("replace")
        if self.is_taken:
            raise ConflictError(409, "Conflict", path)
        self.lease = body
        return msgspec.json.encode(body)

    async def _hang(self, verb: str) -> None:
        if verb in self.hanging:
            await asyncio.sleep(60)


async def leading(leases: Leases) -> LeaderElector:
    leader = LeaderElector(cast("Cluster", leases), SETTINGS)
    await leader.acquire()
    return leader


@pytest.mark.parametrize("hanging, is_taken", [("replace", False), ("get", True)])
async def test_a_renewal_that_hangs_ends_by_the_deadline_and_not_that_much_later(hanging: str, is_taken: bool) -> None:
    leases = Leases()
    leader = await leading(leases)
    leases.hanging, leases.is_taken = (hanging,), is_taken
    since = time.monotonic()
    with pytest.raises(LeadershipLostError):
        await leader.keep()
    # A try with the whole deadline for itself, begun after the pause, would end at 3.5 s.
    assert time.monotonic() - since < SETTINGS.every_seconds + SETTINGS.deadline_seconds - 0.2
    assert not leader.leads()


async def test_who_finds_another_holder_stops_at_once() -> None:
    leases = Leases()
    leader = await leading(leases)
    leases.is_taken = True
    leases.lease["spec"]["holderIdentity"] = "another"
    with pytest.raises(LeadershipLostError):
        await leader.keep()
