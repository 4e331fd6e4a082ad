"""Leader election by a Lease, with client-go's rules.

A replica takes the Lease of another holder only after the Lease was unchanged for its whole
duration by the replica's own clock. A holder that could not renew it within the shorter deadline
stops leading. The name of the holder is the UID of the pod. So a restarted container of the same
pod has the Lease again at once, which is safe because its predecessor is dead.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec

from reattach.api.objects import ObjectMeta, Shape
from reattach.cluster import Cluster, ClusterError, ConflictError, NotFoundError, paths

_log = logging.getLogger(__name__)


class LeadershipLostError(Exception):
    """The Lease was not renewed in time, or another replica holds it. The process must end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseSettings:
    """Name, holder and times of the Lease.

    `seconds`: how long the other replicas wait after the last renewal. `deadline_seconds`: how
    long the holder leads without a renewal. It is shorter than `seconds`, so that the holder has
    stopped before another replica starts. `every_seconds`: pause between two renewals.
    """

    namespace: str
    name: str
    holder: str
    seconds: int = 15
    deadline_seconds: float = 10.0
    every_seconds: float = 2.0

    def __post_init__(self) -> None:
        if not 0 < self.every_seconds < self.deadline_seconds < self.seconds:
            raise ValueError("a Lease needs: renewal pause < renewal deadline < duration")


class _LeaseSpec(Shape, frozen=True):
    holder_identity: str = ""
    lease_duration_seconds: int = 0
    renew_time: str = ""
    acquire_time: str = ""
    lease_transitions: int = 0


class _Lease(Shape, frozen=True):
    metadata: ObjectMeta = ObjectMeta()
    spec: _LeaseSpec = _LeaseSpec()


class LeaderElector:
    """Takes and renews the Lease.

    `cluster` must have its own connections, so that no renewal waits for another call.
    """

    def __init__(self, cluster: Cluster, settings: LeaseSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._cluster = cluster
        self._settings = settings
        self._clock = clock
        self._path = paths.leases(settings.namespace, settings.name)
        self._version = ""
        self._transitions = 0
        self._acquired = ""
        self._renewed_at: float | None = None
        self._seen: tuple[str, float] = ("", 0.0)

    def leads(self) -> bool:
        """Return whether this replica may write now."""
        return self._renewed_at is not None and self._clock() - self._renewed_at < self._settings.deadline_seconds

    async def acquire(self) -> None:
        """Wait until this replica leads."""
        waiting_for = ""
        while not self.leads():
            try:
                holder = await self._try_acquire()
            except (ClusterError, msgspec.DecodeError) as error:
                holder = f"a response of the API server ({error})"
            if holder and holder != waiting_for:
                waiting_for = holder
                _log.info("Standing by: the Lease %s waits for %s.", self._settings.name, holder)
            if holder:
                await asyncio.sleep(self._settings.every_seconds)
        _log.info("Leading, as %s.", self._settings.holder)

    async def keep(self) -> None:
        """Renew the Lease while this replica leads. Raises `LeadershipLostError`."""
        while self.leads():
            # No call may outlast the deadline, because this process must end before another one
            # leads.
            await asyncio.sleep(min(self._settings.every_seconds, self._left()))
            try:
                async with asyncio.timeout(self._left()):
                    if not await self._renewed():
                        break
            except (ClusterError, TimeoutError, msgspec.DecodeError) as error:
                _log.warning("The Lease could not be renewed yet: %s", str(error) or "no response in time")
        self._renewed_at = None
        raise LeadershipLostError("the Lease was not renewed in time, or another replica holds it")

    async def release(self) -> None:
        """Release the Lease, so that another replica need not wait until it expires."""
        if not self.leads():
            return
        self._renewed_at = None
        body = {
            "metadata": {"resourceVersion": self._version},
            "spec": {"holderIdentity": "", "leaseDurationSeconds": 1},
        }
        try:
            await self._cluster.merge_patch(self._path, body)
        except ClusterError as error:
            _log.info("The Lease was not released, and expires: %s", error)

    async def _try_acquire(self) -> str:
        """Take the Lease if it is free. Return the other holder, or an empty string."""
        began = self._clock()
        try:
            lease = msgspec.json.decode(await self._cluster.get(self._path), type=_Lease)
        except NotFoundError:
            self._acquired = _now()
            await self._write(began, create=True)
            return ""
        self._version = lease.metadata.resource_version
        if lease.spec.holder_identity == self._settings.holder:
            self._acquired, self._transitions = lease.spec.acquire_time, lease.spec.lease_transitions
        elif lease.spec.holder_identity and not self._has_run_out(lease):
            return lease.spec.holder_identity
        else:
            self._acquired, self._transitions = _now(), lease.spec.lease_transitions + 1
        await self._write(began)
        return ""

    def _has_run_out(self, lease: _Lease) -> bool:
        """Return whether the Lease was unchanged for its whole duration.

        Only our own clock is used, because other clocks may be wrong.
        """
        if self._seen[0] != lease.metadata.resource_version:
            self._seen = (lease.metadata.resource_version, self._clock())
        return self._clock() - self._seen[1] > lease.spec.lease_duration_seconds

    def _left(self) -> float:
        """Return the seconds that this replica still leads without a renewal."""
        assert self._renewed_at is not None
        return max(self._renewed_at + self._settings.deadline_seconds - self._clock(), 0)

    async def _renewed(self) -> bool:
        """Renew the Lease. Return False if another replica holds it."""
        try:
            await self._write(self._clock())
        except ConflictError:
            return not await self._is_taken()
        return True

    async def _is_taken(self) -> bool:
        """Return whether another replica holds the Lease, after a conflict.

        If it is still ours, as after a renewal whose response was lost, continue with its version.
        """
        try:
            lease = msgspec.json.decode(await self._cluster.get(self._path), type=_Lease)
        except NotFoundError:
            return True
        except ClusterError:
            return False
        self._version = lease.metadata.resource_version
        return lease.spec.holder_identity != self._settings.holder

    async def _write(self, began: float, *, create: bool = False) -> None:
        """Write the Lease, and lead from `began`, which was before the request.

        Other replicas count from a later time, when they read it.
        """
        spec: dict[str, Any] = {
            "holderIdentity": self._settings.holder,
            "leaseDurationSeconds": self._settings.seconds,
            "acquireTime": self._acquired,
            "renewTime": _now(),
            "leaseTransitions": self._transitions,
        }
        metadata: dict[str, str] = {"name": self._settings.name, "namespace": self._settings.namespace}
        body = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec}
        if create:
            answer = await self._cluster.create(paths.leases(self._settings.namespace), body)
        else:
            metadata["resourceVersion"] = self._version
            answer = await self._cluster.replace(self._path, body)
        self._version = msgspec.json.decode(answer, type=_Lease).metadata.resource_version
        self._renewed_at = began


def _now() -> str:
    """Return the time in the format of `metav1.MicroTime`."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
