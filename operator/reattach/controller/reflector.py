"""A small reflector: lists a kind of object, watches it from there, and keeps a `Cache` true to it."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Generic, TypeVar

import msgspec

from reattach.api.objects import ObjectMeta, Shape
from reattach.cluster import Cluster, ClusterError, ForbiddenError, GoneError
from reattach.cluster.client import raise_error_event
from reattach.controller.cache import Cache, HasMetadata

PAGE = 500
_BACKOFF_SECONDS = (0.2, 0.5, 1.0, 2.0, 5.0)
_SHORT_STREAM_SECONDS = 1.0

_log = logging.getLogger(__name__)

T = TypeVar("T", bound=HasMetadata)


class _ListMeta(Shape, frozen=True):
    resource_version: str = ""
    continue_: str = msgspec.field(default="", name="continue")


class _Page(Shape, frozen=True):
    metadata: _ListMeta = _ListMeta()
    items: tuple[msgspec.Raw, ...] | None = None  # null, if none of them is there and only metadata was asked for


class _Event(Shape, frozen=True):
    type: str
    object: msgspec.Raw


class _Bookmark(Shape, frozen=True):
    metadata: ObjectMeta = ObjectMeta()


async def list_all(
    cluster: Cluster, path: str, decode: Callable[[msgspec.Raw], T | None], *, metadata_only: bool = False, **query: str
) -> tuple[list[T], str]:
    """A whole collection, page by page, and the resourceVersion it is of. 410 between two pages begins again.

    What `decode` answers None for is left out.
    """
    while True:
        try:
            return await _list_once(cluster, path, decode, metadata_only=metadata_only, **query)
        except GoneError:
            _log.info("The list of %s grew too old between two pages; listing again.", path)


async def _list_once(
    cluster: Cluster, path: str, decode: Callable[[msgspec.Raw], T | None], *, metadata_only: bool, **query: str
) -> tuple[list[T], str]:
    found: list[T] = []
    token = None
    while True:
        answer = await cluster.list(path, metadata_only=metadata_only, limit=PAGE, **{**query, "continue": token})
        page = msgspec.json.decode(answer, type=_Page)
        found.extend(each for item in page.items or () if (each := decode(item)) is not None)
        token = page.metadata.continue_
        if not token:
            return found, page.metadata.resource_version


class Reflector(Generic[T]):
    """Keeps `cache` true to the objects at `path` that carry `label_selector`.

    After a broken stream the watch goes on from the last resourceVersion; after 410 everything is listed again and compared with what
    is known, so that no deletion is lost. No error ends it: it tries again, with a pause that grows to five seconds.
    """

    def __init__(
        self,
        cluster: Cluster,
        path: str,
        kind: type[T],
        cache: Cache[T],
        *,
        label_selector: str,
        namespace: str | None = None,
        metadata_only: bool = False,
    ) -> None:
        self._cluster = cluster
        self._path = path
        self._decoder = msgspec.json.Decoder(kind)
        self._cache = cache
        self._label_selector = label_selector
        self._namespace = namespace
        self._metadata_only = metadata_only
        self._version = ""
        self._failures = 0
        self.synced = asyncio.Event()
        """Set once the first list is in the cache; or once one namespace of several refuses it, which the others need not wait for. What is
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
            except (ClusterError, msgspec.DecodeError) as error:
                if isinstance(error, ForbiddenError) and self._namespace is not None:
                    self.synced.set()
                await self._pause(error)

    async def _list(self) -> None:
        found, version = await list_all(
            self._cluster,
            self._path,
            self._decoder.decode,
            metadata_only=self._metadata_only,
            labelSelector=self._label_selector,
        )
        for each in found:
            self._cache.learn(each)
        for each in self._cache.missing_from(found, version, self._namespace):
            self._cache.forget(each.metadata.uid, version=version)
        self._version = version
        self._sign()
        self.synced.set()

    async def _watch(self) -> None:
        async for line in self._events():
            event = msgspec.json.decode(line, type=_Event)
            self._sign()
            match event.type:
                case "BOOKMARK":
                    self._version = msgspec.json.decode(event.object, type=_Bookmark).metadata.resource_version
                case "ERROR":
                    status: dict[str, Any] = msgspec.json.decode(event.object)
                    raise_error_event(status)
                case _:
                    found = self._decoder.decode(event.object)
                    self._take(event.type, found)
                    self._version = found.metadata.resource_version

    def _events(self) -> AsyncIterator[bytes]:
        return self._cluster.watch(
            self._path,
            resource_version=self._version,
            metadata_only=self._metadata_only,
            labelSelector=self._label_selector,
        )

    def _take(self, kind: str, found: T) -> None:
        if kind == "DELETED":
            # It may have lost its label only, and get it back.
            self._cache.forget(found.metadata.uid, version=found.metadata.resource_version)
        else:
            self._cache.learn(found)

    def _sign(self) -> None:
        self._last_sign = time.monotonic()
        self._failures = 0

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
