"""Reads of Nodes, shared by all TaskRuns: each Node at most once in 2 s."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta

import msgspec

from reattach.api.objects import Condition, ObjectMeta, Shape
from reattach.cluster import Cluster, ClusterError, ForbiddenError, NotFoundError, paths
from reattach.planner.plan import NodeFacts

OUT_OF_SERVICE = "node.kubernetes.io/out-of-service"

_SHARED_FOR = timedelta(seconds=2)
"""Age up to which a read is shared.

A TaskRun reads a Node every 30 s, and when its pod ends. The pod garbage collector ends the pods of
a Node within 20 s after the taint. Facts from before the taint would make these ends presumed.
"""

_log = logging.getLogger(__name__)


class _Taint(Shape, frozen=True):
    key: str = ""


class _NodeSpec(Shape, frozen=True):
    taints: tuple[_Taint, ...] = ()


class _NodeStatus(Shape, frozen=True):
    conditions: tuple[Condition, ...] = ()


class _Node(Shape, frozen=True):
    metadata: ObjectMeta = ObjectMeta()
    spec: _NodeSpec = _NodeSpec()
    status: _NodeStatus = _NodeStatus()

    @property
    def is_ready(self) -> bool:
        return any(one.type == "Ready" and one.status == "True" for one in self.status.conditions)


class NodeReader:
    """Reads the facts about Nodes that may be evidence of a pod's end.

    `enabled`: the installation grants the right to read Nodes. `deletion_counts`: it deletes a Node
    only after its machine is off.
    """

    def __init__(
        self, cluster: Cluster, *, clock: Callable[[], datetime], enabled: bool = False, deletion_counts: bool = False
    ) -> None:
        self._cluster = cluster
        self._clock = clock
        self._enabled = enabled
        self._deletion_counts = deletion_counts
        self._reads: dict[str, tuple[datetime, asyncio.Task[NodeFacts | None]]] = {}
        self._is_refusal_logged = False

    async def read(self, names: Iterable[str]) -> Mapping[str, NodeFacts | None]:
        """Return the facts about each Node; None if this installation can't know them."""
        return {name: await self._read_shared(name) if self._enabled else None for name in names}

    async def _read_shared(self, name: str) -> NodeFacts | None:
        now = self._clock()
        self._reads = {key: read for key, read in self._reads.items() if now - read[0] < _SHARED_FOR}
        if name not in self._reads:
            self._reads[name] = (now, asyncio.create_task(self._read(name)))
        # Other TaskRuns wait for the same read, so the end of this worker must not cancel it.
        return await asyncio.shield(self._reads[name][1])

    async def _read(self, name: str) -> NodeFacts | None:
        try:
            found = msgspec.json.decode(await self._cluster.get(paths.node(name)), type=_Node)
        except NotFoundError:
            return NodeFacts(deletion_counts=True) if self._deletion_counts else None
        except ForbiddenError as error:
            if not self._is_refusal_logged:
                self._is_refusal_logged = True
                _log.warning("Nodes are no evidence that a pod has ended, because they can't be read: %s", error)
            return None
        except (ClusterError, msgspec.DecodeError) as error:
            _log.warning("Could not read node %s: %s", name, error)
            return NodeFacts()
        is_tainted = any(taint.key == OUT_OF_SERVICE for taint in found.spec.taints)
        # The pod garbage collector has the same rule: a ready node reports the ends of its pods.
        return NodeFacts(found.metadata.creation_timestamp, is_tainted and not found.is_ready, self._deletion_counts)
