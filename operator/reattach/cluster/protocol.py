"""The protocol of a client that reads and changes single objects."""

from collections.abc import Mapping
from typing import Any, Protocol


class KubernetesClient(Protocol):
    """Calls to the Kubernetes API on single objects.

    `Cluster` implements this protocol and documents the errors. `reattach.runtime.writer.Writer`
    implements it with a rate limit, and only while its replica leads.
    """

    async def get(self, path: str) -> bytes:
        """Return the object at `path`."""
        ...

    async def create(self, path: str, body: Mapping[str, Any], **query: str) -> bytes:
        """POST `body` to the collection at `path`, and return the new object."""
        ...

    async def replace(self, path: str, body: Mapping[str, Any], **query: str) -> bytes:
        """PUT `body` at `path`, and return the new object."""
        ...

    async def merge_patch(self, path: str, body: Mapping[str, Any], **query: str) -> bytes:
        """PATCH the object at `path` (RFC 7386), and return the new object."""
        ...

    async def delete(self, path: str, *, uid: str) -> bytes:
        """DELETE the object at `path` if it has this UID."""
        ...
