"""Controller of one kind.

Reflectors fill stores, whose changes enqueue keys, which workers reconcile.
"""

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any

from reattach.cluster import Cluster
from reattach.runtime.metrics import OperatorMetrics
from reattach.runtime.reflector import Reflector, ReflectorStore
from reattach.runtime.unreadable import UnreadableObjects
from reattach.runtime.workers import Workers
from reattach.runtime.workqueue import Key, WorkQueue

Start = Callable[[str, Callable[[], Awaitable[None]]], None]
"""Starts a loop under a name, such as `runtime.supervision.keep_running` in a task."""

_SHARE_OF_NAMESPACE = 1 / 4
"""Share of the workers that one namespace may occupy at once."""


class Controller:
    """Work queue of one kind, with the reflectors of the kinds that it reads, and its workers.

    Call `watch` for each kind, then `start_reflectors`, then `start_workers`. The stores must call
    `queue.add` on each change.
    """

    def __init__(
        self,
        kind: str,
        cluster: Cluster,
        metrics: OperatorMetrics,
        unreadable: UnreadableObjects,
        namespaces: Sequence[str],
        *,
        workers: int,
    ) -> None:
        self._kind = kind
        self._cluster = cluster
        self._metrics = metrics
        self._unreadable = unreadable
        self._namespaces: Sequence[str | None] = namespaces or [None]
        self._workers = workers
        self.queue = WorkQueue(per_namespace=max(1, int(workers * _SHARE_OF_NAMESPACE)))
        self.reflectors: list[Reflector[Any]] = []

    def watch(
        self, path_of: Callable[[str | None], str], shape: type[Any], store: ReflectorStore[Any], **selectors: Any
    ) -> None:
        """Add a reflector for each namespace. `selectors` are arguments of `Reflector`."""
        for namespace in self._namespaces:
            path = path_of(namespace)
            reflector: Reflector[Any] = Reflector(
                self._cluster, path, shape, store, self._unreadable, namespace=namespace, **selectors
            )
            self.reflectors.append(reflector)

    @property
    def watched_paths(self) -> frozenset[str]:
        """Paths of the watched collections."""
        return frozenset(reflector.path for reflector in self.reflectors)

    def watch_age(self, path: str) -> float:
        """Return the age of the oldest watch of this path; several may have different selectors."""
        return max(reflector.age() for reflector in self.reflectors if reflector.path == path)

    async def start_reflectors(self, start: Start) -> None:
        """Start the reflectors. Return once each has stored its first list."""
        for reflector in self.reflectors:
            start("reflector", reflector.run)
        for reflector in self.reflectors:
            await reflector.synced.wait()

    def start_workers(self, start: Start, reconcile: Callable[[Key], Awaitable[datetime | None]]) -> None:
        """Start the workers, and the loop that enqueues keys when their time has come."""
        workers = Workers(self._kind, self.queue, reconcile, self._metrics)
        for _ in range(self._workers):
            start("worker", workers.run)
        start("delays", self.queue.run_delays)
