"""Lists of whole collections, page by page, in which one object can't break the rest.

A page that is too large is requested again with a smaller limit. If a page can't be decoded
because of one object, each of its objects is read with a GET. Values that are nested too deeply are
cut. An object that still can't be decoded is skipped and reported by its reference.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from typing import Generic, NamedTuple, TypeVar

import msgspec

from reattach.api.objects import ObjectMeta, PartialObject, Shape
from reattach.cluster import Cluster, GoneError, NotFoundError, Reference, ResponseTooLargeError
from reattach.cluster.nesting import cut_deep_values
from reattach.runtime.unreadable import DECODE_ERRORS, describe

_FIRST_PAGE = 10
_PAGE = 100
"""The API server builds a whole page before it sends a byte of it, and one object may have 9 MiB
of JSON.
"""
_PAGE_BYTES_MAX = 16 * 1024 * 1024
"""Larger than the largest object: the API server stores 1.5 MiB, and JSON may encode a byte as
six.
"""
_FACTOR = 10
"""Factor by which a page shrinks when it is too large, and grows otherwise."""
_GETS_AT_ONCE = 16
_GONE_PAUSE_SECONDS = 1.0

_log = logging.getLogger(__name__)

T = TypeVar("T")
Unreadable = Callable[[Reference, Exception], None]


class _ListMeta(Shape, frozen=True):
    resource_version: str = ""
    continue_: str = msgspec.field(default="", name="continue")


class _Page(Shape, frozen=True):
    metadata: _ListMeta = _ListMeta()
    items: tuple[msgspec.Raw, ...] | None = None  # null in an empty list of metadata


class Page(NamedTuple, Generic[T]):
    """Objects of one page, with the `resource_version` of the whole list."""

    items: list[T]
    resource_version: str


async def list_pages(
    cluster: Cluster,
    path: str,
    decode: Callable[[msgspec.Raw], T],
    unreadable: Unreadable,
    *,
    metadata_only: bool = False,
    **query: str | None,
) -> AsyncGenerator[Page[T], None]:
    """Yield a collection page by page.

    `decode` may raise `DECODE_ERRORS`. `unreadable` is called with the reference of each skipped
    object. Raises `ClusterError`, also `GoneError` between two pages.
    """
    token: str | None = None
    limit = _FIRST_PAGE
    while token is None or token:
        parameters = {**query, "continue": token, "limit": limit}
        try:
            answer = await cluster.list(path, metadata_only=metadata_only, bytes_max=_PAGE_BYTES_MAX, **parameters)
            page = msgspec.json.decode(answer, type=_Page)
            yield Page([decode(item) for item in page.items or ()], page.metadata.resource_version)
            token = page.metadata.continue_
            if len(answer) * _FACTOR < _PAGE_BYTES_MAX:  # else the next page would be too large
                limit = min(_PAGE, limit * _FACTOR)
        except ResponseTooLargeError:
            if limit == 1:
                raise
            limit = max(1, limit // _FACTOR)
        except DECODE_ERRORS:
            # One object breaks the decoding of its whole page. Read each object alone.
            references = await cluster.list_references(path, bytes_max=_PAGE_BYTES_MAX, **parameters)
            items: list[T] = []
            for some in _in_groups(references.items, _GETS_AT_ONCE):
                reads = (_read(cluster, path, each, decode, metadata_only=metadata_only) for each in some)
                for reference, found in zip(some, await asyncio.gather(*reads), strict=True):
                    if isinstance(found, Exception):
                        unreadable(reference, found)
                    elif found is not None:
                        items.append(found)
            yield Page(items, references.resource_version)
            token = references.continue_token


async def _read(
    cluster: Cluster, path: str, reference: Reference, decode: Callable[[msgspec.Raw], T], *, metadata_only: bool
) -> T | Exception | None:
    """Return one object of the collection, the error of its decoding, or None if it is gone."""
    try:
        found = await cluster.get(_path_of(path, reference), metadata_only=metadata_only)
        try:
            return decode(msgspec.Raw(found))
        except RecursionError:
            return decode(msgspec.Raw(await asyncio.to_thread(cut_deep_values, found)))
    except NotFoundError:
        return None
    except DECODE_ERRORS as error:
        return error


def _path_of(path: str, reference: Reference) -> str:
    """Return the path of one object of the collection at `path`."""
    prefix, _, plural = path.rpartition("/")
    if "/namespaces/" not in prefix:
        prefix += f"/namespaces/{reference.namespace}"
    return f"{prefix}/{plural}/{reference.name}"


async def list_references(cluster: Cluster, path: str, **query: str | None) -> tuple[list[Reference], str]:
    """Return the references to all objects of a collection, and the resourceVersion of the list.

    Start again after 410 between two pages. Raises `ClusterError`.
    """
    while True:
        try:
            return await _list_references_once(cluster, path, **query)
        except GoneError:
            _log.info("The list of %s expired between two pages; listing again.", path)
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
        except ResponseTooLargeError:
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
    """Yield the metadata of each object of a collection.

    Log and skip the objects that can't be decoded. Raises `ClusterError`.
    """

    def skip(reference: Reference, error: Exception) -> None:
        _log.error("%s of %s/%s can't be read: %s", path, reference.namespace, reference.name, describe(error))

    decode = msgspec.json.Decoder(PartialObject).decode
    selectors = {"labelSelector": label_selector, "fieldSelector": field_selector}
    async for page in list_pages(cluster, path, decode, skip, metadata_only=True, **selectors):
        for item in page.items:
            yield item.metadata


def _in_groups(items: Sequence[Reference], size: int) -> Iterator[Sequence[Reference]]:
    """Yield the items in groups of at most `size`."""
    return (items[start : start + size] for start in range(0, len(items), size))
