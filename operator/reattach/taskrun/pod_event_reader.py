"""Reads of the Warning events about pods: at most one list per namespace and minute."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import msgspec

from reattach.api.objects import ObjectMeta, Shape, Time
from reattach.cluster import Cluster, ClusterError, ForbiddenError, paths
from reattach.planner import textformat
from reattach.planner.plan import PodEvent, PodEvents

_SHARED_FOR = timedelta(seconds=60)
_LISTED_MAX = 500
_LIST_BYTES_MAX = 8 * 1024 * 1024
_LISTS_AT_ONCE = 4
_REASON_BYTES_MAX = 128
_NOT_ABOUT_START = frozenset({"FailedScheduling", "Preempted"})
"""Reasons of the scheduler, whose newest message the pod's condition PodScheduled has."""
_LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)

_log = logging.getLogger(__name__)


class _EventSeries(Shape, frozen=True):
    last_observed_time: Time | None = None


class _RegardedPod(Shape, frozen=True):
    uid: str = ""


class _PodWarning(Shape, frozen=True):
    """An Event of events.k8s.io/v1. The kubelet writes core/v1, whose times have other names."""

    reason: str = ""
    note: str = ""
    regarding: _RegardedPod = _RegardedPod()
    event_time: Time | None = None
    deprecated_last_timestamp: Time | None = None
    series: _EventSeries | None = None

    @property
    def time(self) -> datetime:
        in_series = self.series.last_observed_time if self.series is not None else None
        return max(time or _LONG_AGO for time in (in_series, self.event_time, self.deprecated_last_timestamp))


class _EventListMeta(Shape, frozen=True):
    continue_: str = msgspec.field(default="", name="continue")


class _EventList(Shape, frozen=True):
    metadata: _EventListMeta = _EventListMeta()
    items: tuple[msgspec.Raw, ...] | None = None


@dataclass(frozen=True, slots=True)
class _Read:
    """Result of one list. `is_complete`: it has the events about every pod of the namespace."""

    newest: Mapping[str, PodEvent]
    is_complete: bool = True
    is_refused: bool = False


class PodEventReader:
    """Reads the newest Warning event about a pod.

    A list of the namespace is shared by all its pods. If the namespace has more Warning events than
    one list returns, the next list is of one pod alone.
    """

    def __init__(self, cluster: Cluster, *, clock: Callable[[], datetime]) -> None:
        self._cluster = cluster
        self._clock = clock
        self._reads: dict[str, tuple[datetime, asyncio.Task[_Read]]] = {}
        self._slots = asyncio.Semaphore(_LISTS_AT_ONCE)
        self._is_refusal_logged = False

    async def read(self, pod: ObjectMeta) -> PodEvents:
        """Return the newest Warning event about the pod, from a list of the last minute."""
        now = self._clock()
        known = self._reads.get(pod.namespace)
        if known is None or now - known[0] >= _SHARED_FOR:
            is_crowded = known is not None and known[1].done() and not known[1].result().is_complete
            uid = pod.uid if is_crowded else None
            # A crowded namespace is remembered for one more minute, others only while shared.
            self._reads = {name: read for name, read in self._reads.items() if now - read[0] < 2 * _SHARED_FOR}
            known = (now, asyncio.create_task(self._list(pod.namespace, uid)))
            self._reads[pod.namespace] = known
        # Other TaskRuns wait for the same list, so the end of this worker must not cancel it.
        found = await asyncio.shield(known[1])
        return PodEvents(found.newest.get(pod.uid), None if found.is_refused else known[0] + _SHARED_FOR)

    async def _list(self, namespace: str, uid: str | None) -> _Read:
        about = "regarding.kind=Pod" if uid is None else f"regarding.uid={uid}"
        try:
            async with self._slots:
                answer = await self._cluster.list(
                    paths.events(namespace),
                    bytes_max=_LIST_BYTES_MAX,
                    limit=_LISTED_MAX,
                    fieldSelector=f"type=Warning,{about}",
                )
            page = msgspec.json.decode(answer, type=_EventList)
        except ForbiddenError as error:
            if not self._is_refusal_logged:
                self._is_refusal_logged = True
                _log.warning("Events about pods that don't start are not shown, because they can't be read: %s", error)
            return _Read({}, is_refused=True)
        except (ClusterError, msgspec.DecodeError, RecursionError) as error:
            _log.warning("Could not list the events of namespace %s: %s", namespace, error)
            return _Read({}, is_complete=uid is not None)
        return _Read(_newest_of(page), is_complete=uid is not None or not page.metadata.continue_)


def _newest_of(page: _EventList) -> dict[str, PodEvent]:
    """Return the newest event about each pod, by its UID. Users can write events, with any text."""
    newest: dict[str, _PodWarning] = {}
    for item in page.items or ():
        try:
            event = msgspec.json.decode(item, type=_PodWarning)
        except (msgspec.DecodeError, RecursionError):
            continue
        known = newest.get(event.regarding.uid)
        if event.reason not in _NOT_ABOUT_START and (known is None or known.time <= event.time):
            newest[event.regarding.uid] = event
    return {
        uid: PodEvent(textformat.head(event.reason, _REASON_BYTES_MAX), textformat.head(event.note))
        for uid, event in newest.items()
    }
