"""Reflector: lists one kind of object, watches it, and keeps a `ReflectorStore` up to date."""

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
from reattach.runtime.pager import list_pages
from reattach.runtime.unreadable import DECODE_ERRORS, UnreadableObjects

_BACKOFF_SECONDS = (0.2, 0.5, 1.0, 2.0, 5.0)
_SHORT_STREAM_SECONDS = 1.0

_log = logging.getLogger(__name__)

T = TypeVar("T", bound=HasMetadata)


class ReflectorStore(Protocol[T]):
    """Store that a reflector fills, such as `ObjectStore`."""

    def upsert(self, found: T) -> object:
        """Store `found` unless a newer version is known."""

    def delete(self, uid: str, *, version: str) -> None:
        """Remove an object that was gone, or had left the selector, at `version`."""

    def absent_in(self, uids: Collection[str], version: str, namespace: str | None) -> Sequence[T]:
        """Return the known objects that a complete list at `version` lacks."""


class _WatchEvent(Shape, frozen=True):
    type: str
    object: msgspec.Raw


class _Bookmark(Shape, frozen=True):
    metadata: ObjectMeta = ObjectMeta()


class Reflector(Generic[T]):
    """Keeps `store` up to date with the objects at `path` that match the selectors.

    After a broken stream, the watch resumes from the last resourceVersion. After 410, a new list
    is compared with the store, so that no deletion is lost. No error ends the reflector: it
    retries, with a pause that grows to five seconds. Each object is decoded alone. One that can't
    be decoded is counted and skipped.
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
        """Set once the first list is in the store, or once one namespace of several refuses the
        list.

        The other namespaces need not wait for that one. An incomplete store is harmless, because
        each pod is the record of its own attempt, and is read by name.
        """
        self._last_line_at = time.monotonic()

    @property
    def path(self) -> str:
        """Path of the watched collection."""
        return self._path

    def age(self) -> float:
        """Return the seconds since the last line of the watch, including bookmarks."""
        return time.monotonic() - self._last_line_at

    async def run(self) -> None:
        """List and watch, forever."""
        while True:
            try:
                if not self._version:
                    await self._list()
                began = time.monotonic()
                await self._watch()
                if time.monotonic() - began < _SHORT_STREAM_SECONDS:  # a server or proxy that ends each stream at once
                    await asyncio.sleep(_SHORT_STREAM_SECONDS)
            except GoneError:
                _log.info("The watch of %s fell too far behind; listing again.", self._path)
                self._version = ""
                await asyncio.sleep(_BACKOFF_SECONDS[0])
            except (ClusterError, msgspec.DecodeError) as error:
                if isinstance(error, ForbiddenError) and self._namespace is not None:
                    self.synced.set()
                await self._pause(error)

    async def _list(self) -> None:
        uids: set[str] = set()

        def skip(reference: Reference, error: Exception) -> None:
            uids.add(reference.uid)
            self._unreadable.report(self._resource, reference, error)

        version = ""
        pages = list_pages(
            self._cluster,
            self._path,
            self._decoder.decode,
            skip,
            metadata_only=self._metadata_only,
            **self._selectors,
        )
        # The store drops what it does not need, so a whole collection is never in memory.
        async with aclosing(pages):
            async for page in pages:
                version = page.resource_version
                for each in page.items:
                    uids.add(each.metadata.uid)
                    self._store.upsert(each)
        for each in self._store.absent_in(uids, version, self._namespace):
            self._store.delete(each.metadata.uid, version=version)
        self._version = version
        self._last_line_at = time.monotonic()
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
                self._last_line_at = time.monotonic()
                try:
                    event = msgspec.json.decode(line, type=_WatchEvent)
                    found = None if event.type in {"BOOKMARK", "ERROR"} else self._decoder.decode(event.object)
                except DECODE_ERRORS as error:
                    # The event does not name its object. The next event or bookmark advances the
                    # version.
                    self._unreadable.report_event(self._resource, error)
                    continue
                if found is not None:
                    self._handle_object(event.type, found)
                else:
                    self._handle_bookmark_or_error(event)

    def _handle_object(self, kind: str, found: T) -> None:
        self._version = found.metadata.resource_version
        self._failures = 0
        self._unreadable.forget(found.metadata.uid)
        if kind == "DELETED":
            # The object may have lost only its label, and get it back.
            self._store.delete(found.metadata.uid, version=found.metadata.resource_version)
        else:
            self._store.upsert(found)

    def _handle_bookmark_or_error(self, event: _WatchEvent) -> None:
        """Record the version of a bookmark, or raise the error that the event reports."""
        if event.type == "BOOKMARK":
            self._version = msgspec.json.decode(event.object, type=_Bookmark).metadata.resource_version
            self._failures = 0
        else:
            status: dict[str, Any] = msgspec.json.decode(event.object)
            raise_error_event(status)

    async def _pause(self, error: ClusterError | msgspec.DecodeError) -> None:
        seconds = _BACKOFF_SECONDS[min(self._failures, len(_BACKOFF_SECONDS) - 1)]
        # Every watch ends sometimes. Log only that it can't be resumed, or that it is forbidden.
        if self._failures == (0 if isinstance(error, ForbiddenError) else 1):
            _log.warning("Can't watch %s, retrying: %s", self._path, error)
        self._failures += 1
        if self._failures > len(_BACKOFF_SECONDS):  # the server may be unable to resume from this resourceVersion
            self._version = ""
        retry_after = error.retry_after if isinstance(error, ClusterError) else None
        await asyncio.sleep(max(seconds, retry_after or 0))
