"""Removal of expired keys from the states of finished runs.

No key expires while its run is unfinished.
"""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import aclosing
from datetime import datetime

import msgspec

from reattach.api.names import FINALIZER_STATE, LABEL_TASKRUN
from reattach.api.objects import PartialObject
from reattach.cluster import Cluster, ClusterError, Reference, paths
from reattach.runtime.pager import list_pages
from reattach.runtime.unreadable import UnreadableObjects, reference_of
from reattach.runtime.writer import NotLeadingError
from reattach.state import RequestRejectedError, RunReference, Store, summary_of

_log = logging.getLogger(__name__)


class KeyExpiry:
    """Finds the states with expired keys by their summaries, and removes the keys.

    The summaries come from a list of metadata, one page at a time, because no store keeps the
    states of finished runs. The removal is a compare-and-set.
    """

    def __init__(
        self, cluster: Cluster, namespaces: Sequence[str], store: Store, unreadable: UnreadableObjects
    ) -> None:
        self._cluster = cluster
        self._namespaces: Sequence[str | None] = namespaces or [None]
        self._store = store
        self._unreadable = unreadable

    async def sweep(self, now: datetime) -> None:
        """Remove the keys that have expired by `now`, from one state after the other.

        The next sweep retries what failed.
        """
        for namespace in self._namespaces:
            try:
                await self._sweep_namespace(namespace, now)
            except ClusterError as error:
                where = "all namespaces" if namespace is None else f"namespace {namespace}"
                _log.warning("The states of %s can't be listed: %s", where, error)

    async def _sweep_namespace(self, namespace: str | None, now: datetime) -> None:
        decode = msgspec.json.Decoder(PartialObject).decode

        def report(reference: Reference, error: Exception) -> None:
            self._unreadable.report("configmaps", reference, error)

        path = paths.configmaps(namespace)
        pages = list_pages(self._cluster, path, decode, report, metadata_only=True, labelSelector=LABEL_TASKRUN)
        async with aclosing(pages):
            async for page in pages:
                for state in page.items:
                    await asyncio.sleep(0)  # lets other tasks run, because there may be many states
                    await self._try_sweep_one(state, now)

    async def _try_sweep_one(self, state: PartialObject, now: datetime) -> None:
        metadata = state.metadata
        try:
            await self._sweep_one(state, now)
        except (ClusterError, NotLeadingError, RequestRejectedError) as error:
            _log.warning("Can't remove expired keys of %s/%s yet: %s", metadata.namespace, metadata.name, error)
        except Exception as error:  # noqa: BLE001 -- users may change a state, and one must not stop the others
            self._unreadable.report("configmaps", reference_of(metadata), error)

    async def _sweep_one(self, state: PartialObject, now: datetime) -> None:
        if not is_due(state, now):
            return
        metadata = state.metadata
        run = RunReference(metadata.namespace, metadata.labels[LABEL_TASKRUN], metadata.taskrun_uid or "")
        removed = await self._store.sweep(run, now)
        _log.info("Removed %s expired keys of TaskRun %s/%s.", removed, run.namespace, run.name)


def is_due(state: PartialObject, now: datetime) -> bool:
    """Return whether a key has expired and the run is over, so that our finalizer is gone."""
    if FINALIZER_STATE in state.metadata.finalizers:
        return False
    summary = summary_of(state.metadata.annotations)
    return summary is not None and summary.next_expiry is not None and summary.next_expiry <= now
