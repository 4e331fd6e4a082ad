"""Keys that have expired, in the states of runs that are over, are removed now and then. While a run is unfinished nothing expires."""

import asyncio
import logging
from datetime import datetime

from reattach.api.names import FINALIZER_STATE, KIND, LABEL_TASKRUN
from reattach.api.objects import PartialObject
from reattach.cluster import ClusterError
from reattach.controller.actor import controller_of
from reattach.controller.cache import Cache
from reattach.controller.writer import NotLeadingError
from reattach.state import RefusedError, Run, Store, summary_of

_log = logging.getLogger(__name__)


class Expiry:
    """Knows by the summaries which states have something that is due; those are read, and written by compare-and-set."""

    def __init__(self, states: Cache[PartialObject], store: Store) -> None:
        self._states = states
        self._store = store

    async def sweep(self, now: datetime) -> None:
        """All that is due by now, one after the other. What can't be swept is tried again by the next sweep."""
        for state in self._states.all():
            await asyncio.sleep(0)  # there may be many, and others have to be served
            if not is_due(state, now):
                continue
            about = state.metadata
            run = Run(about.namespace, about.labels[LABEL_TASKRUN], controller_of(about, KIND) or "")
            try:
                removed = await self._store.sweep(run, now)
            except (ClusterError, NotLeadingError, RefusedError) as error:
                _log.warning("Expired keys of %s/%s can't be removed yet: %s", about.namespace, about.name, error)
            else:
                _log.info("%s expired keys of TaskRun %s/%s were removed.", removed, run.namespace, run.name)


def is_due(state: PartialObject, now: datetime) -> bool:
    """Whether the run is over, which the absence of our finalizer tells, and one of its keys has expired."""
    if FINALIZER_STATE in state.metadata.finalizers:
        return False
    summary = summary_of(state.metadata.annotations)
    return summary is not None and summary.next_expiry is not None and summary.next_expiry <= now
