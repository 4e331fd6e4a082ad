"""All objects of a collection, page by page, by their metadata alone."""

import json
from collections.abc import AsyncIterator
from typing import Any

from reattach.cluster import Cluster

_PAGE = 500


async def metadata_of_all(
    cluster: Cluster, path: str, *, label_selector: str | None = None, field_selector: str | None = None
) -> AsyncIterator[dict[str, Any]]:
    """The metadata of each object, as the API server has it. Raises `ClusterError`."""
    query: dict[str, str | None] = {"labelSelector": label_selector, "fieldSelector": field_selector}
    while True:
        page = json.loads(await cluster.list(path, metadata_only=True, limit=_PAGE, **query))
        for item in page.get("items") or ():  # null where there are none
            yield item["metadata"]
        query["continue"] = page["metadata"].get("continue")
        if not query["continue"]:
            return
