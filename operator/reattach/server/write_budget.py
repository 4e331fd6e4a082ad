"""Limit on the bytes that each namespace writes to etcd.

Every change rewrites the whole ConfigMap, and etcd keeps each version until the next compaction.
So a limit on requests alone does not bound what a namespace costs etcd.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from reattach.cluster import ClusterError, KubernetesClient, UnavailableError
from reattach.server.problems import RateLimitedError
from reattach.server.rate_limit import RateLimit
from reattach.server.reads import FairReads

RESERVE_BYTES = 2 * 1024 * 1024
"""Part of the burst that only evidence may use: the handles and outcomes of jobs, and completions.

It is more than the largest state, so a change that uses the rest of the burst leaves some of it.
"""
DEBT_BYTES_MAX = RESERVE_BYTES
"""Bytes that a namespace may owe. Evidence waits until they are paid.

Only TaskRuns that are patched at the same time could cost more, because each is charged after its
patch.
"""
BURST_BYTES_MIN = 2 * RESERVE_BYTES
METADATA_BYTES = 1024
"""Metadata of a ConfigMap without its annotations, roughly."""


class MeteredClient:
    """Client that charges the size of each write to its namespace.

    A write is admitted while the namespace has at least `least` bytes left. The size may exceed
    them, and later writes wait for the difference. So large states are not starved by small ones.

    Reads are shared fairly (`FairReads`), because the caller decodes a response at once.

    Raises `RateLimitedError` before the write, and the errors of `client`.
    """

    def __init__(
        self,
        client: KubernetesClient,
        limit: RateLimit,
        reads: FairReads,
        *,
        least: float,
        on_write: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._client = client
        self._limit = limit
        self._reads = reads
        self._least = least
        self._on_write = on_write

    async def get(self, path: str) -> bytes:
        """Return the object at `path`."""
        return await self._reads.read(self._client.get, _namespace_in(path), path)

    async def create(self, path: str, body: Mapping[str, Any], **query: str) -> bytes:
        """POST a ConfigMap."""
        with self._charged(path, _size_of(body)):
            return await self._client.create(path, body, **query)

    async def replace(self, path: str, body: Mapping[str, Any], **query: str) -> bytes:
        """PUT a ConfigMap."""
        with self._charged(path, _size_of(body)):
            return await self._client.replace(path, body, **query)

    async def merge_patch(self, path: str, body: Mapping[str, Any], **query: str) -> bytes:
        """PATCH a TaskRun, and charge its size afterwards, because only the response shows it.

        A TaskRun is patched once for its state, and once each time that it gets the finalizer.
        """
        self._take(path, 0)
        patched = await self._client.merge_patch(path, body, **query)
        self._limit.take(_namespace_in(path), len(patched), least=float("-inf"))
        self._on_write(len(patched))
        return patched

    async def delete(self, path: str, *, uid: str) -> bytes:
        """DELETE the object at `path` if it has this UID."""
        return await self._client.delete(path, uid=uid)

    @contextmanager
    def _charged(self, path: str, size: int) -> Iterator[None]:
        self._take(path, size)
        try:
            yield
        except UnavailableError:
            raise  # the write may have been carried out
        except ClusterError:
            self._limit.give_back(_namespace_in(path), size)
            raise
        self._on_write(size)

    def _take(self, path: str, size: int) -> None:
        namespace = _namespace_in(path)
        if wait := self._limit.take(namespace, size, least=self._least):
            raise RateLimitedError(f"namespace {namespace} may write only so many bytes of state", wait)


def _namespace_in(path: str) -> str:
    return path.partition("/namespaces/")[2].partition("/")[0]


def _size_of(configmap: Mapping[str, Any]) -> int:
    texts = {**configmap["metadata"]["annotations"], **configmap["data"]}
    return METADATA_BYTES + sum(len(name) + len(text.encode()) for name, text in texts.items())
