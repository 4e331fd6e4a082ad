"""TaskRuns, or other objects, of a namespace or of the cluster, page by page."""

from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from reattach.api.objects import Shape
from reattach.cli.connection import ClusterConnection
from reattach.cli.errors import CommandError
from reattach.cluster import BadRequestError, GoneError, NotFoundError, ResponseTooLargeError, paths
from reattach.cluster.nesting import cut_deep_values

PAGE = 100
"""The API server builds a whole page before it sends a byte of it."""
_PAGE_BYTES_MAX = 16 * 1024 * 1024
"""Larger than the largest object, because the API server stores 1.5 MiB, and JSON may write a
byte as six.
"""
_FACTOR = 10
"""Factor by which a page shrinks when it is too large."""

T = TypeVar("T")


class _Continuation(Shape, frozen=True):
    continue_: str = msgspec.field(default="", name="continue")


class _ObjectPage(Shape, frozen=True):
    metadata: _Continuation = _Continuation()
    items: tuple[msgspec.Raw, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class ObjectSelection:
    """Objects that a command is for. The selectors have the syntax of the Kubernetes API.

    `path_of`: returns the path of the objects of a namespace; of all namespaces for None.
    """

    path_of: Callable[[str | None], str] = paths.taskruns
    all_namespaces: bool = False
    labels: str | None = None
    fields: str | None = None


async def read_pages(
    connection: ClusterConnection, selection: ObjectSelection, decode: Callable[[bytes], T]
) -> AsyncGenerator[list[T], None]:
    """Yield the selected objects, in the order of namespace and name.

    At most one page is in memory. Raises `CommandError` if the cluster has no TaskRuns or does not
    know a field selector, and `ClusterError`.
    """
    path = selection.path_of(None if selection.all_namespaces else connection.namespace)
    query: dict[str, Any] = {"labelSelector": selection.labels, "fieldSelector": selection.fields}
    limit = PAGE
    while True:
        try:
            body = await connection.cluster.list(path, bytes_max=_PAGE_BYTES_MAX, limit=limit, **query)
        except ResponseTooLargeError:
            if limit == 1:
                raise
            limit = max(1, limit // _FACTOR)
            continue
        except NotFoundError:
            raise CommandError(
                "This cluster has no TaskRuns; install Reattach's chart, or use another --context."
            ) from None
        except GoneError:
            raise CommandError(
                "The list expired while it was read, because that took too long; repeat the command."
            ) from None
        except BadRequestError as error:
            if "field label not supported" not in error.message:
                raise
            raise CommandError(
                f"This cluster's TaskRuns can't be selected by {selection.fields}; upgrade the CRD of Reattach's chart."
            ) from None
        page = _decode_page(body)
        yield [decode(item) for item in page.items or ()]
        query["continue"] = page.metadata.continue_ or None
        if query["continue"] is None:
            return


def _decode_page(body: bytes) -> _ObjectPage:
    try:
        return msgspec.json.decode(body, type=_ObjectPage)
    except RecursionError:
        return msgspec.json.decode(cut_deep_values(body), type=_ObjectPage)
