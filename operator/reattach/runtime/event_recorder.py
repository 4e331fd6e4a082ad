"""Events on TaskRuns: few, bounded, and never in the way of anything."""

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from reattach.api.names import API_VERSION, KIND, OPERATOR_NAME
from reattach.api.objects import ObjectMeta
from reattach.api.reasons import EventReason
from reattach.cluster import AlreadyExistsError, ClusterError, paths
from reattach.planner.plan import EmitEvent
from reattach.runtime.metrics import OperatorMetrics
from reattach.runtime.writer import NotLeadingError, Writer

NOTE_MAX = 1024
_PER_TASKRUN = 20
"""Events per TaskRun and hour; the rest is in status."""
_OF_ATTEMPTS = frozenset({EventReason.ATTEMPT_FAILED, EventReason.REATTACHED})
_PER_TASKRUN_OF_ATTEMPTS = 15
"""Of them, of what each attempt has to say anew: what a person must know, such as a hold, has room however many attempts there were."""
_WINDOW_SECONDS = 3600.0
_WAITING_MAX = 1000
_REMEMBERED_MAX = 10_000
"""TaskRuns of the last hour whose events are counted; of more of them, an Event may be sent once more, which changes nothing."""

_log = logging.getLogger(__name__)


class EventRecorder:
    """Sends Events one after the other. What doesn't fit is dropped and counted: an Event only repeats what status says.

    The name of an Event is made from what it says, so that the same one, said again after a restart, is not doubled.
    """

    def __init__(
        self, writer: Writer, instance: str, metrics: OperatorMetrics, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._writer = writer
        self._instance = instance[:128]
        self._metrics = metrics
        self._clock = clock
        self._waiting: asyncio.Queue[tuple[str, dict[str, Any]]] = asyncio.Queue(_WAITING_MAX)
        self._sent: dict[str, tuple[float, set[str]]] = {}  # by UID, the oldest windows first

    def announce(self, about: ObjectMeta, said: EmitEvent) -> None:
        """Send it some time soon, unless it was sent already or too many were. An orphan is also counted, and said in the log."""
        body = event_of(about, said, self._instance, datetime.now(UTC))
        name, names = body["metadata"]["name"], self._sent_of(about.uid)
        if name in names:
            return
        if said.reason == EventReason.ORPHANED:
            self._metrics.orphaned_jobs.inc()
            _log.warning("TaskRun %s/%s: %s", about.namespace, about.name, said.note)
        if len(names) >= (_PER_TASKRUN_OF_ATTEMPTS if said.reason in _OF_ATTEMPTS else _PER_TASKRUN):
            self._metrics.events_dropped.inc()
            return
        names.add(name)
        try:
            self._waiting.put_nowait((about.namespace, body))
        except asyncio.QueueFull:
            self._metrics.events_dropped.inc()

    async def run(self) -> None:
        """Send what waits, for ever."""
        while True:
            namespace, body = await self._waiting.get()
            try:
                await self._writer.create(paths.events(namespace), body)
            except AlreadyExistsError:
                continue
            except (ClusterError, NotLeadingError, RecursionError) as error:
                self._metrics.events_dropped.inc()
                _log.info("An event on TaskRun %s/%s was not sent: %s", namespace, body["regarding"]["name"], error)

    def _sent_of(self, uid: str) -> set[str]:
        """The names of what was sent on this TaskRun within the hour that its first Event began."""
        now = self._clock()
        while self._sent:
            oldest, (since, _) = next(iter(self._sent.items()))
            if len(self._sent) <= _REMEMBERED_MAX and now - since < _WINDOW_SECONDS:
                break
            del self._sent[oldest]
        return self._sent.setdefault(uid, (now, set()))[1]


def event_of(about: ObjectMeta, said: EmitEvent, instance: str, now: datetime) -> dict[str, Any]:
    """The events.k8s.io/v1 Event; `note` is cut to its limit of 1 KiB."""
    digest = hashlib.sha256(f"{about.uid}\n{said.reason}\n{said.note}".encode()).hexdigest()[:16]
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": f"{about.name}.{digest}", "namespace": about.namespace},
        "eventTime": now.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "reportingController": OPERATOR_NAME,
        "reportingInstance": instance,
        "action": "Reconcile",
        "reason": said.reason,
        "type": "Warning" if said.warning else "Normal",
        "note": said.note.encode()[:NOTE_MAX].decode(errors="ignore"),
        "regarding": {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "namespace": about.namespace,
            "name": about.name,
            "uid": about.uid,
        },
    }
