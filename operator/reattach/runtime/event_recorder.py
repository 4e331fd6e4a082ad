"""Events on the objects of one kind, limited in number, so that they never delay other writes."""

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from typing import Any, NamedTuple, Protocol

import msgspec

from reattach.api.objects import ObjectMeta
from reattach.api.text import one_line
from reattach.cluster import AlreadyExistsError, ClusterError, paths
from reattach.round_robin import RoundRobin
from reattach.runtime.metrics import OperatorMetrics
from reattach.runtime.resource import Resource
from reattach.runtime.writer import NotLeadingError, Writer

NOTE_MAX = 1024
_PER_OBJECT = 20
"""Events per object and hour. The status of the object has the rest."""
_PER_OBJECT_OF_FREQUENT = 15
"""Share of `_PER_OBJECT` for frequent reasons, so that they never crowd out the others."""
_PER_OBJECT_WITH_URGENT = 30
"""Limit for urgent reasons, so that the others never crowd them out."""
_WINDOW_SECONDS = 3600.0
_WAITING_MAX = 500
"""Events of one namespace that wait to be sent, up to 1 MB."""
_WAITING_MAX_WITH_URGENT = 600
"""Limit for urgent reasons, so that the others never crowd them out."""
_SENDERS = 4
"""Namespaces to which Events are sent at once, so that a slow webhook delays only its own."""
_REMEMBERED_MAX = 10_000
"""Objects whose Events of the last hour are counted. With more objects, an Event may be sent
twice, which changes nothing.
"""

_log = logging.getLogger(__name__)


class EventContent(Protocol):
    """Content of an Event. `warning` decides its type."""

    @property
    def reason(self) -> str: ...
    @property
    def note(self) -> str: ...
    @property
    def warning(self) -> bool: ...


OnNewEvent = Callable[[ObjectMeta, EventContent], None]


class _WaitingEvent(NamedTuple):
    """An Event that waits to be sent. `body`: JSON. `regarding`: name of the object."""

    namespace: str
    regarding: str
    body: bytes


class EventRecorder:
    """Sends the Events of each namespace one after the other. Namespaces take turns.

    An Event over a limit is dropped and counted, because status has the same information. Limits
    are higher for urgent reasons, so that Events with other reasons leave room for them.

    The name of an Event is a digest of its content, so that a repetition after a restart creates
    no second Event.

    Args:
        resource: kind of the objects.
        controller: `reportingController` of each Event.
        instance: `reportingInstance` of each Event.
        frequent: reasons that one object may emit again and again; they share a smaller limit.
        urgent: reasons that require an action of a user; they share a higher limit.
        on_new: called with each Event that was not emitted before, also if it is then dropped.
    """

    def __init__(
        self,
        writer: Writer,
        resource: Resource,
        metrics: OperatorMetrics,
        *,
        controller: str,
        instance: str,
        frequent: Collection[str] = (),
        urgent: Collection[str] = (),
        on_new: OnNewEvent = lambda _, __: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._writer = writer
        self._resource = resource
        self._metrics = metrics
        self._controller = controller
        self._instance = instance[:128]
        self._frequent = frequent
        self._urgent = urgent
        self._on_new = on_new
        self._clock = clock
        self._waiting = RoundRobin[str, _WaitingEvent]()
        self._added = asyncio.Event()
        self._sent: dict[str, tuple[float, set[str]]] = {}  # by UID, the oldest windows first

    def emit(self, metadata: ObjectMeta, event: EventContent) -> None:
        """Queue an Event on the object, unless it was queued before or is over the limit."""
        body = self.body_of(metadata, event, datetime.now(UTC))
        name, names = body["metadata"]["name"], self._sent_on(metadata.uid)
        if name in names:
            return
        self._on_new(metadata, event)
        if len(names) >= self._limit_per_object(event.reason):
            self._metrics.events_dropped.inc()
            return
        names.add(name)
        waiting_max = _WAITING_MAX_WITH_URGENT if event.reason in self._urgent else _WAITING_MAX
        if self._waiting.count(metadata.namespace) >= waiting_max:
            self._metrics.events_dropped.inc()
            return
        waiting = _WaitingEvent(metadata.namespace, metadata.name, msgspec.json.encode(body))
        self._waiting.put(metadata.namespace, waiting)
        self._added.set()

    async def run(self) -> None:
        """Send the queued Events, forever."""
        async with asyncio.TaskGroup() as senders:
            for _ in range(_SENDERS):
                senders.create_task(self._send_waiting())

    async def _send_waiting(self) -> None:
        while True:
            while self._waiting:
                event = self._waiting.pop()
                self._waiting.suspend(event.namespace)
                try:
                    await self._send(event)
                finally:
                    self._waiting.resume(event.namespace)
            self._added.clear()
            await self._added.wait()

    async def _send(self, event: _WaitingEvent) -> None:
        try:
            await self._writer.create(paths.events(event.namespace), event.body)
        except AlreadyExistsError:
            return
        except (ClusterError, NotLeadingError, RecursionError) as error:
            self._metrics.events_dropped.inc()
            kind = self._resource.kind
            _log.info("Dropped an event on %s %s/%s: %s", kind, event.namespace, event.regarding, error)

    def body_of(self, metadata: ObjectMeta, event: EventContent, now: datetime) -> dict[str, Any]:
        """Return the body of the events.k8s.io/v1 Event. `note` is one line of at most 1 KiB."""
        digest = hashlib.sha256(f"{metadata.uid}\n{event.reason}\n{event.note}".encode()).hexdigest()[:16]
        return {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": f"{metadata.name}.{digest}", "namespace": metadata.namespace},
            "eventTime": now.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "reportingController": self._controller,
            "reportingInstance": self._instance,
            "action": "Reconcile",
            "reason": event.reason,
            "type": "Warning" if event.warning else "Normal",
            "note": one_line(event.note).encode()[:NOTE_MAX].decode(errors="ignore"),
            "regarding": {
                "apiVersion": self._resource.api_version,
                "kind": self._resource.kind,
                "namespace": metadata.namespace,
                "name": metadata.name,
                "uid": metadata.uid,
            },
        }

    def _limit_per_object(self, reason: str) -> int:
        if reason in self._urgent:
            return _PER_OBJECT_WITH_URGENT
        return _PER_OBJECT_OF_FREQUENT if reason in self._frequent else _PER_OBJECT

    def _sent_on(self, uid: str) -> set[str]:
        """Return the names of the Events on this object in the hour since its first Event."""
        now = self._clock()
        while self._sent:
            oldest, (since, _) = next(iter(self._sent.items()))
            if len(self._sent) <= _REMEMBERED_MAX and now - since < _WINDOW_SECONDS:
                break
            del self._sent[oldest]
        return self._sent.setdefault(uid, (now, set()))[1]
