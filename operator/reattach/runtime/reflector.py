"""A small reflector: lists a kind of object, watches it from there, and keeps an `ReflectorStore` true to it."""

import asyncio
import logging
import time
from collections.abc import Collection, Sequence
from contextlib import aclosing
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from reattach.api.objects import ObjectMeta, Shape
from reattach.cluster import Cluster, ClusterError, ForbiddenError, GoneError, Reference
from reattach.cluster.client import raise_error_event
from reattach.runtime.object_store import HasMetadata
from reattach.runtime.pager import list_all
from reattach.runtime.unreadable import DECODE_ERRORS, UnreadableObjects

_BACKOFF_SECONDS = (0.2, 0.5, 1.0, 2.0, 5.0)
_SHORT_STREAM_SECONDS = 1.0

_log = logging.getLogger(__name__)

T = TypeVar("T", bound=HasMetadata)


class ReflectorStore(Protocol[T]):
    """Where the objects go. `Cache` is one."""

    def upsert(self, found: T) -> object:
        """Take `found` as what is now, unless something newer is known."""

    def delete(self, uid: str, *, version: str) -> None:
        """The object was gone, or had left the selector, by `version`."""

    def absent_in(self, uids: Collection[str], version: str, namespace: str | None) -> Sequence[T]:
        """Return the known objects that a complete list at `version` lacks."""


class _WatchEvent(Shape, frozen=True):
    type: str
    object: msgspec.Raw


class _Bookmark(Shape, frozen=True):
    metadata: ObjectMeta = ObjectMeta()


class Reflector(Generic[T]):
    """Keeps `store` true to the objects at `path` that match the selectors.

    After a broken stream the watch goes on from the last resourceVersion; after 410 everything is listed again and compared with what
    is known, so that no deletion is lost. No error ends it: it tries again, with a pause that grows to five seconds. Each object is
    decoded alone: one that can't be read is counted, and changes nothing else.
    """

    def __init__(
        self,
        cluster: Cluster,
        path: str,
        kind: type[T],
        store: ReflectorStore[T],
        unreadable: UnreadableObjects,
        *,
        label_selector: str | None = None,
        field_selector: str | None = None,
        namespace: str | None = None,
        metadata_only: bool = False,
    ) -> None:
        self._cluster = cluster
        self._path = path
        self._resource = path.rpartition("/")[2]
        self._decoder = msgspec.json.Decoder(kind)
        self._store = store
        self._unreadable = unreadable
        self._selectors: dict[str, Any] = {"labelSelector": label_selector, "fieldSelector": field_selector}
        self._namespace = namespace
        self._metadata_only = metadata_only
        self._version = ""
        self._failures = 0
        self.synced = asyncio.Event()
        """Set once the first list is in the store; or once one namespace of several refuses it, which the others need not wait for. What is
        not known of it does no harm: each pod is the record of its own attempt, and asked for by name.
        """
        self._last_sign = time.monotonic()

    @property
    def path(self) -> str:
        """What is watched."""
        return self._path

    def age(self) -> float:
        """Seconds since the API server last told anything, if only a bookmark."""
        return time.monotonic() - self._last_sign

    async def run(self) -> None:
        """List and watch, for ever."""
        while True:
            try:
                if not self._version:
                    await self._list()
                began = time.monotonic()
                await self._watch()
                if time.monotonic() - began < _SHORT_STREAM_SECONDS:  # a server or proxy that ends each stream at once
                    await asyncio.sleep(_SHORT_STREAM_SECONDS)
            except GoneError:
                _log.info("The watch of %s was away for too long; listing again.", self._path)
                self._version = ""
                await asyncio.sleep(_BACKOFF_SECONDS[0])
            except (ClusterError, msgspec.DecodeError) as error:
                if isinstance(error, ForbiddenError) and self._namespace is not None:
                    self.synced.set()
                await self._pause(error)

    async def _list(self) -> None:
        uids: set[str] = set()

        def leave_out(reference: Reference, error: Exception) -> None:
            uids.add(reference.uid)
            self._unreadable.report(self._resource, reference, error)

        found, version = await list_all(
            self._cluster,
            self._path,
            self._decoder.decode,
            leave_out,
            metadata_only=self._metadata_only,
            **self._selectors,
        )
        for each in found:
            uids.add(each.metadata.uid)
            self._store.upsert(each)
        for each in self._store.absent_in(uids, version, self._namespace):
            self._store.delete(each.metadata.uid, version=version)
        self._version = version
        self._last_sign = time.monotonic()
        self._failures = 0
        self.synced.set()

    async def _watch(self) -> None:
        stream = self._cluster.watch(
            self._path,
            resource_version=self._version,
            metadata_only=self._metadata_only,
            **self._selectors,
        )
        async with aclosing(stream) as lines:
            async for line in lines:
                self._last_sign = time.monotonic()
                try:
                    event = msgspec.json.decode(line, type=_WatchEvent)
                    found = None if event.type in {"BOOKMARK", "ERROR"} else self._decoder.decode(event.object)
                except DECODE_ERRORS as error:
                    # Which object it is can't be told from this; the next event or bookmark moves the version on.
                    self._unreadable.report_event(self._resource, error)
                    continue
                if found is not None:
                    self._take(event.type, found)
                else:
                    self._take_sign(event)

    def _take(self, kind: str, found: T) -> None:
        self._version = found.metadata.resource_version
        self._failures = 0
        self._unreadable.forget(found.metadata.uid)
        if kind == "DELETED":
            # It may have lost its label only, and get it back.
            self._store.delete(found.metadata.uid, version=found.metadata.resource_version)
        else:
            self._store.upsert(found)

    def _take_sign(self, event: _WatchEvent) -> None:
        """Note where the watch is, or raise the error that it reports."""
        if event.type == "BOOKMARK":
            self._version = msgspec.json.decode(event.object, type=_Bookmark).metadata.resource_version
            self._failures = 0
        else:
            status: dict[str, Any] = msgspec.json.decode(event.object)
            raise_error_event(status)

    async def _pause(self, error: ClusterError | msgspec.DecodeError) -> None:
        seconds = _BACKOFF_SECONDS[min(self._failures, len(_BACKOFF_SECONDS) - 1)]
        # Every watch ends now and then; that it can't be had again is what is worth a line, and that it may not be had.
        if self._failures == (0 if isinstance(error, ForbiddenError) else 1):
            _log.warning("Can't watch %s, trying again: %s", self._path, error)
        self._failures += 1
        if self._failures > len(
            _BACKOFF_SECONDS
        ):  # perhaps it is this resourceVersion that the server can't go on from
            self._version = ""
        retry_after = error.retry_after if isinstance(error, ClusterError) else None
        await asyncio.sleep(max(seconds, retry_after or 0))
