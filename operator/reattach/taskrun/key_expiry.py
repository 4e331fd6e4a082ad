"""Keys that have expired, in the states of runs that are over, are removed now and then. While a run is unfinished nothing expires."""

import asyncio
import logging
from datetime import datetime

from reattach.api.names import FINALIZER_STATE, KIND, LABEL_TASKRUN
from reattach.api.objects import PartialObject
from reattach.cluster import ClusterError
from reattach.runtime.object_store import ObjectStore
from reattach.runtime.unreadable import UnreadableObjects, reference_of
from reattach.runtime.writer import NotLeadingError
from reattach.state import RequestRejectedError, RunReference, Store, summary_of
from reattach.taskrun.executor import controller_of

_log = logging.getLogger(__name__)


class KeyExpiry:
    """Knows by the summaries which states have something that is due; those are read, and written by compare-and-set."""

    def __init__(self, states: ObjectStore[PartialObject], store: Store, unreadable: UnreadableObjects) -> None:
        self._states = states
        self._store = store
        self._unreadable = unreadable

    async def sweep(self, now: datetime) -> None:
        """All that is due by now, one after the other. What can't be swept is tried again by the next sweep."""
        for state in self._states.all():
            await asyncio.sleep(0)  # there may be many, and others have to be served
            about = state.metadata
            try:
                await self._sweep_one(state, now)
            except (ClusterError, NotLeadingError, RequestRejectedError) as error:
                _log.warning("Expired keys of %s/%s can't be removed yet: %s", about.namespace, about.name, error)
            except Exception as error:  # noqa: BLE001 -- people may change a state, and one must not stop the others
                self._unreadable.report("configmaps", reference_of(about), error)

    async def _sweep_one(self, state: PartialObject, now: datetime) -> None:
        if not is_due(state, now):
            return
        about = state.metadata
        run = RunReference(about.namespace, about.labels[LABEL_TASKRUN], controller_of(about, KIND) or "")
        removed = await self._store.sweep(run, now)
        _log.info("%s expired keys of TaskRun %s/%s were removed.", removed, run.namespace, run.name)


def is_due(state: PartialObject, now: datetime) -> bool:
    """Whether the run is over, which the absence of our finalizer tells, and one of its keys has expired."""
    if FINALIZER_STATE in state.metadata.finalizers:
        return False
    summary = summary_of(state.metadata.annotations)
    return summary is not None and summary.next_expiry is not None and summary.next_expiry <= now
