"""Whole collections, page by page, in which no single object can spoil the rest.

A page that is too large, or that can't be decoded because of one object in it, is asked for again with a smaller limit, down to
one object. An object that can't be decoded alone is left out, and named by its reference.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Generic, NamedTuple, TypeVar

import msgspec

from reattach.api.objects import ObjectMeta, PartialObject, Shape
from reattach.cluster import AnswerTooLargeError, Cluster, GoneError, NotFoundError, Reference
from reattach.controller.unreadable import describe

_FIRST_PAGE = 10
_PAGE = 100
"""The API server builds a page as a whole before it sends a byte of it, and one object may have 9 MiB of JSON."""
_PAGE_BYTES_MAX = 16 * 1024 * 1024
"""More than the largest object: the API server stores 1.5 MiB, and JSON may write a byte as six."""
_FACTOR = 10
"""By how much a page shrinks when it can't be read, and grows when it can."""
_GONE_PAUSE_SECONDS = 1.0

_log = logging.getLogger(__name__)

T = TypeVar("T")
Unreadable = Callable[[Reference, Exception], None]


class _ListMeta(Shape, frozen=True):
    resource_version: str = ""
    continue_: str = msgspec.field(default="", name="continue")


class _Page(Shape, frozen=True):
    metadata: _ListMeta = _ListMeta()
    items: tuple[msgspec.Raw, ...] | None = None  # null, if none of them is there and only metadata was asked for


class Page(NamedTuple, Generic[T]):
    """Objects of one page; `resource_version` is that of the whole list."""

    items: list[T]
    resource_version: str


async def list_all(
    cluster: Cluster,
    path: str,
    decode: Callable[[msgspec.Raw], T],
    unreadable: Unreadable,
    *,
    metadata_only: bool = False,
    **query: str | None,
) -> tuple[list[T], str]:
    """Return a whole collection and the resourceVersion that it is of. 410 between two pages begins again.

    `decode` may raise anything; `unreadable` is called with the reference of each object that is left out. Raises `ClusterError`.
    """
    while True:
        found: list[T] = []
        version = ""
        try:
            async for page in list_pages(cluster, path, decode, unreadable, metadata_only=metadata_only, **query):
                found.extend(page.items)
                version = page.resource_version
        except GoneError:
            _log.info("The list of %s grew too old between two pages; listing again.", path)
            await asyncio.sleep(_GONE_PAUSE_SECONDS)
        else:
            return found, version


async def list_pages(
    cluster: Cluster,
    path: str,
    decode: Callable[[msgspec.Raw], T],
    unreadable: Unreadable,
    *,
    metadata_only: bool = False,
    **query: str | None,
) -> AsyncIterator[Page[T]]:
    """Yield a collection page by page, as `list_all` returns it. Raises `ClusterError`, also `GoneError` between two pages."""
    token: str | None = None
    limit = _FIRST_PAGE
    while token is None or token:
        asked = {**query, "continue": token}
        try:
            answer = await cluster.list(
                path, metadata_only=metadata_only, bytes_max=_PAGE_BYTES_MAX, limit=limit, **asked
            )
            page = msgspec.json.decode(answer, type=_Page)
            items = [decode(item) for item in page.items or ()]
        except (AnswerTooLargeError, msgspec.DecodeError, RecursionError):
            if limit > 1:
                limit = max(1, limit // _FACTOR)
                continue
            # Each of them is read by itself, because this page may be of a later version than the one that failed.
            alone = await cluster.list_references(path, bytes_max=_PAGE_BYTES_MAX, limit=1, **asked)
            items = []
            for reference in alone.items:
                try:
                    answer = await cluster.get(_path_of(path, reference), metadata_only=metadata_only)
                    items.append(decode(msgspec.Raw(answer)))
                except NotFoundError:
                    continue
                except (msgspec.DecodeError, RecursionError) as error:
                    unreadable(reference, error)
            yield Page(items, alone.resource_version)
            token = alone.continue_token
        else:
            yield Page(items, page.metadata.resource_version)
            token = page.metadata.continue_
            limit = min(_PAGE, limit * _FACTOR)


def _path_of(path: str, reference: Reference) -> str:
    """Return the path of one object of the collection at `path`."""
    prefix, _, plural = path.rpartition("/")
    if "/namespaces/" not in prefix:
        prefix += f"/namespaces/{reference.namespace}"
    return f"{prefix}/{plural}/{reference.name}"


async def list_references(cluster: Cluster, path: str, **query: str | None) -> tuple[list[Reference], str]:
    """Return the references to all objects of a collection, and the resourceVersion that the list is of. Raises `ClusterError`."""
    while True:
        try:
            return await _list_references_once(cluster, path, **query)
        except GoneError:
            _log.info("The list of %s grew too old between two pages; listing again.", path)
            await asyncio.sleep(_GONE_PAUSE_SECONDS)


async def _list_references_once(cluster: Cluster, path: str, **query: str | None) -> tuple[list[Reference], str]:
    found: list[Reference] = []
    token: str | None = None
    limit = _FIRST_PAGE
    while True:
        try:
            page = await cluster.list_references(
                path, bytes_max=_PAGE_BYTES_MAX, limit=limit, **{**query, "continue": token}
            )
        except AnswerTooLargeError:
            if limit == 1:
                raise
            limit = max(1, limit // _FACTOR)
            continue
        found.extend(page.items)
        token = page.continue_token
        limit = min(_PAGE, limit * _FACTOR)
        if not token:
            return found, page.resource_version


async def metadata_of_all(
    cluster: Cluster, path: str, *, label_selector: str | None = None, field_selector: str | None = None
) -> AsyncIterator[ObjectMeta]:
    """Yield the metadata of each object of a collection, but of those that can't be read: they are logged. Raises `ClusterError`."""

    def leave_out(reference: Reference, error: Exception) -> None:
        _log.error("%s of %s/%s can't be read: %s", path, reference.namespace, reference.name, describe(error))

    decode = msgspec.json.Decoder(PartialObject).decode
    selectors = {"labelSelector": label_selector, "fieldSelector": field_selector}
    async for page in list_pages(cluster, path, decode, leave_out, metadata_only=True, **selectors):
        for item in page.items:
            yield item.metadata
