"""Reads of the kubelets' events about evictions, shared by the TaskRuns of a namespace."""

import asyncio
import logging
from collections.abc import Iterable, Mapping
from contextlib import aclosing
from weakref import WeakValueDictionary

import msgspec

from reattach.api.objects import Shape
from reattach.cluster import Cluster, ForbiddenError, Reference, paths
from reattach.runtime.pager import list_pages

_PAGES_MAX = 20
"""Pages of one list. A namespace whose users create more such events hides only its own."""
_LISTS_AT_ONCE = 4
"""Lists of different namespaces. A page may have 16 MiB, because users decide how large events are.
"""
_NOTE_MAX = 1024
"""Characters of a note that are kept. The API server allows as many."""

_KUBELET = "kubelet"
"""Controller of the events that count, because autoscalers emit events of the same reason."""

_log = logging.getLogger(__name__)


class _Regarding(Shape, frozen=True):
    uid: str = ""


class _Event(Shape, frozen=True):
    reporting_controller: str = ""
    regarding: _Regarding = _Regarding()
    note: str = ""


class EvictionReader:
    """Reads why kubelets evicted pods.

    A namespace has at most one list at a time. It serves all readers that came before it began, so
    the cost does not grow with their number.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._waiting: dict[str, asyncio.Task[Mapping[str, str]]] = {}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._slots = asyncio.Semaphore(_LISTS_AT_ONCE)
        self._is_refusal_logged = False

    async def read(self, namespace: str, pods: Iterable[str]) -> Mapping[str, str | None]:
        """Return the message about the eviction of each pod; None if none is known.

        `pods`: UIDs. Raises `ClusterError`.
        """
        if namespace not in self._waiting:
            self._waiting[namespace] = asyncio.create_task(self._list_next(namespace))
        # Other TaskRuns wait for the same list, so the end of this worker must not cancel it.
        found = await asyncio.shield(self._waiting[namespace])
        return {pod: found.get(pod) for pod in pods}

    async def _list_next(self, namespace: str) -> Mapping[str, str]:
        lock = self._locks.setdefault(namespace, asyncio.Lock())
        async with lock, self._slots:
            del self._waiting[namespace]  # Later readers need a list that begins later.
            try:
                return await self._list(namespace)
            except ForbiddenError as error:
                if not self._is_refusal_logged:
                    self._is_refusal_logged = True
                    _log.warning("An eviction that ends with exit code 0 counts as a success: %s", error)
                return {}

    async def _list(self, namespace: str) -> Mapping[str, str]:
        found: dict[str, str] = {}
        selector = "reason=Evicted,regarding.kind=Pod"
        pages = list_pages(self._cluster, paths.events(namespace), _decode, _skip, fieldSelector=selector)
        count = 0
        async with aclosing(pages):
            async for page in pages:
                ours = (event for event in page.items if event.reporting_controller == _KUBELET)
                found |= {event.regarding.uid: event.note[:_NOTE_MAX] for event in ours}
                count += 1
                if count == _PAGES_MAX:
                    break
        return found


def _decode(event: msgspec.Raw) -> _Event:
    return msgspec.json.decode(event, type=_Event)


def _skip(reference: Reference, error: Exception) -> None:
    _log.warning("Event %s/%s can't be read: %s", reference.namespace, reference.name, error)
