"""Deletion of ended TaskRuns, once `spec.ttl` for their outcome has passed.

No watch contains ended TaskRuns, so periodic lists find them. Only those that are due soon are kept
in memory.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import aclosing, suppress
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import msgspec

from reattach.api.names import PLURAL, orphans_name
from reattach.api.objects import PartialObject
from reattach.api.reasons import Outcome
from reattach.api.taskrun import TaskRun
from reattach.cluster import Cluster, ClusterError, ConflictError, GoneError, NotFoundError, Reference, paths
from reattach.cluster.errors import is_webhook_denial
from reattach.planner import conditions
from reattach.runtime.controller import Start
from reattach.runtime.metrics import OperatorMetrics
from reattach.runtime.object_store import ObjectStore
from reattach.runtime.pager import list_pages
from reattach.runtime.unreadable import UnreadableObjects
from reattach.runtime.workqueue import Key, WorkQueue
from reattach.runtime.writer import NotLeadingError, Writer
from reattach.taskrun.taskrun_store import is_ours, key_of

TTL_FIELDS = {
    Outcome.SUCCEEDED: "succeededSeconds",
    Outcome.FAILED: "failedSeconds",
    Outcome.CANCELLED: "cancelledSeconds",
}
"""Field of `spec.ttl` for each outcome. All are selectable fields."""
PENDING_MAX = 1000
"""Most TaskRuns of one namespace that are kept in memory."""
_SOON_SHARE = 1 / 2
"""Share of `PENDING_MAX` for those that are not due yet, so that they never keep out the others."""
_WORKERS = 8
_WORKERS_PER_NAMESPACE = 2
_ROOM_SECONDS = 5.0
"""Longest wait of a sweep for one namespace, whose deletions may be slow."""
_NEXT_SWEEP_SECONDS = 60.0
"""Pause before the next sweep if one left out TaskRuns that are due before the regular one."""

_log = logging.getLogger(__name__)


class _Pending(NamedTuple):
    """One version of an ended TaskRun that is deleted when its time comes."""

    uid: str
    resource_version: str
    due: datetime
    orphaned: bool


class TtlController:
    """Deletes ended TaskRuns of this operator, of `namespaces` (none: all).

    The deletion has the resourceVersion from which the time was computed as its precondition. So
    a ttl that was changed meanwhile is never ignored. After a failed deletion, the next sweep finds
    the TaskRun again.

    A TaskRun with orphaned jobs stays while the record of these jobs exists. `orphans` are these
    records.
    """

    def __init__(
        self,
        cluster: Cluster,
        writer: Writer,
        namespaces: Sequence[str],
        orphans: ObjectStore[PartialObject],
        *,
        unreadable: UnreadableObjects,
        metrics: OperatorMetrics,
        sweep_seconds: float,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._cluster = cluster
        self._writer = writer
        self._namespaces: Sequence[str | None] = namespaces or [None]
        self._orphans = orphans
        self._unreadable = unreadable
        self._metrics = metrics
        self._sweep_seconds = sweep_seconds
        self._clock = clock
        self._queue = WorkQueue(per_namespace=_WORKERS_PER_NAMESPACE, clock=lambda: clock().timestamp())
        self._pending: dict[Key, _Pending] = {}
        self._pending_of: Counter[str] = Counter()
        self._has_room = asyncio.Event()
        self._is_incomplete = asyncio.Event()
        """Set after TaskRuns were left out that are due before the next regular sweep."""
        self._failing: set[str] = set()
        """Namespaces with a logged failure since the last sweep began."""

    def __len__(self) -> int:
        return len(self._pending)

    def start(self, start: Start) -> None:
        """Start the sweeps, and the workers that delete."""
        start("ttl", self.run_sweeps)
        start("ttl delays", self._queue.run_delays)
        for _ in range(_WORKERS):
            start("ttl worker", self.run_worker)

    def on_finished(self, taskrun: TaskRun) -> None:
        """Schedule the deletion of a TaskRun that has just ended, if it is due soon."""
        if not self._schedule(taskrun):
            self._is_incomplete.set()

    # -- sweeps ------------------------------------------------------------------------------------

    async def run_sweeps(self) -> None:
        """Sweep periodically, and sooner if a sweep was incomplete."""
        pause = min(self._sweep_seconds, _NEXT_SWEEP_SECONDS)
        while True:
            self._is_incomplete.clear()
            await self.sweep()
            await asyncio.sleep(pause)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._sweep_seconds - pause):
                    await self._is_incomplete.wait()

    async def sweep(self) -> None:
        """List the ended TaskRuns with a ttl, and schedule the deletion of those that are due soon.

        A namespace with slow deletions delays the others by a few seconds. The next sweep continues
        with it.
        """
        self._failing.clear()
        slow: set[str] = set()
        for namespace in self._namespaces:
            for outcome, field in TTL_FIELDS.items():
                try:
                    await self._sweep_list(namespace, f"status.outcome={outcome},spec.ttl.{field}!=", slow)
                except GoneError:
                    self._is_incomplete.set()  # the sweep was slower than the compaction of etcd
                except ClusterError as error:
                    where = "all namespaces" if namespace is None else f"namespace {namespace}"
                    _log.warning("The ended TaskRuns of %s can't be listed: %s", where, error)

    async def _sweep_list(self, namespace: str | None, selector: str, slow: set[str]) -> None:
        def report(reference: Reference, error: Exception) -> None:
            self._unreadable.report(PLURAL, reference, error)

        decode = msgspec.json.Decoder(TaskRun).decode
        pages = list_pages(self._cluster, paths.taskruns(namespace), decode, report, fieldSelector=selector)
        async with aclosing(pages):
            async for page in pages:
                for taskrun in page.items:
                    await self._offer(taskrun, slow)
                await asyncio.sleep(0)  # lets other tasks run

    async def _offer(self, taskrun: TaskRun, slow: set[str]) -> None:
        """Schedule the deletion, and wait for room if it is due already."""
        namespace = taskrun.metadata.namespace
        if self._schedule(taskrun) or namespace in slow:
            return
        expiry = expiry_of(taskrun)
        if expiry is None or expiry > self._clock():
            self._is_incomplete.set()
            return
        try:
            async with asyncio.timeout(_ROOM_SECONDS):
                while not self._schedule(taskrun):
                    self._has_room.clear()
                    await self._has_room.wait()
        except TimeoutError:
            slow.add(namespace)

    def _schedule(self, taskrun: TaskRun) -> bool:
        """Schedule the deletion if it is due soon. Return whether there was room for it."""
        expiry, now = expiry_of(taskrun), self._clock()
        # Two intervals, because the next sweep may fail, or take long.
        if expiry is None or expiry > now + timedelta(seconds=2 * self._sweep_seconds):
            return True
        key, metadata = key_of(taskrun), taskrun.metadata
        if key not in self._pending:
            if self._pending_of[key.namespace] >= (PENDING_MAX if expiry <= now else PENDING_MAX * _SOON_SHARE):
                return False
            self._pending_of[key.namespace] += 1
        self._pending[key] = _Pending(
            uid=metadata.uid,
            resource_version=metadata.resource_version,
            due=expiry,
            orphaned=taskrun.status.orphaned,
        )
        self._queue.add_at(key, expiry.timestamp())
        return True

    # -- deletions ---------------------------------------------------------------------------------

    async def run_worker(self) -> None:
        """Delete TaskRuns whose time has come, as one worker, forever."""
        while True:
            key = await self._queue.get()
            try:
                await self._process(key)
            finally:
                self._queue.done(key)

    async def _process(self, key: Key) -> None:
        pending = self._pending.get(key)
        if pending is None or pending.due > self._clock():  # it was scheduled again for a later time
            return
        try:
            await self._delete(key, pending)
        except (ClusterError, NotLeadingError) as error:
            self._report(key, error)
        finally:
            if self._pending.get(key) is pending:  # else another version was scheduled meanwhile
                self._forget(key)

    async def _delete(self, key: Key, pending: _Pending) -> None:
        if pending.orphaned and await self._has_orphan_record(key, pending.uid):
            return
        try:
            await self._writer.delete(
                paths.taskruns(*key),
                uid=pending.uid,
                resource_version=pending.resource_version,
                propagation_policy="Background",
            )
        except NotFoundError:
            return
        except ConflictError as error:
            if is_webhook_denial(error):
                raise
            return  # it has changed, perhaps its ttl: the next sweep reads it
        _log.info("Deleted TaskRun %s/%s, because its spec.ttl has passed.", *key)

    async def _has_orphan_record(self, key: Key, uid: str) -> bool:
        name = orphans_name(key.name, uid)
        if any(record.metadata.name == name for record in self._orphans.by_key(key)):
            return True
        # The store lacks the records of a namespace whose ConfigMaps could not be listed.
        try:
            await self._cluster.get_reference(paths.configmaps(key.namespace, name))
        except NotFoundError:
            return False
        return True

    def _forget(self, key: Key) -> None:
        del self._pending[key]
        self._pending_of[key.namespace] -= 1
        if not self._pending_of[key.namespace]:
            del self._pending_of[key.namespace]
        self._has_room.set()

    def _report(self, key: Key, error: Exception) -> None:
        """Count the failure.

        Log only the first one of a namespace after each sweep, because many may fail.
        """
        self._metrics.ttl_failures.inc()
        if key.namespace not in self._failing:
            self._failing.add(key.namespace)
            text = "Can't delete TaskRun %s/%s yet, although its spec.ttl has passed; the next sweep retries: %s"
            _log.warning(text, *key, error)


def expiry_of(taskrun: TaskRun) -> datetime | None:
    """Return when to delete an ended TaskRun.

    Return None if it has no ttl, is being deleted, or has another manager. If no record lists its
    orphaned jobs, only its status does.
    """
    status, ttl = taskrun.status, taskrun.spec.ttl
    if status.completion_time is None or taskrun.metadata.deletion_timestamp is not None or not is_ours(taskrun):
        return None
    if conditions.has_unrecorded_orphans(status):
        return None
    match status.outcome:
        case Outcome.SUCCEEDED:
            seconds = ttl.succeeded_seconds
        case Outcome.FAILED:
            seconds = ttl.failed_seconds
        case Outcome.CANCELLED:
            seconds = ttl.cancelled_seconds
        case _:
            seconds = None
    try:
        return None if seconds is None else status.completion_time + timedelta(seconds=seconds)
    except OverflowError:  # after the year 9999; one such object must not end the sweep
        return None
