"""`KubernetesClient`: the calls that read and change one object."""

from collections.abc import Mapping
from typing import Any, Protocol


class KubernetesClient(Protocol):
    """Calls to the Kubernetes API on one object at a time. `Cluster` describes each of them, and the errors that it raises.

    `Cluster` implements this protocol. `reattach.runtime.writer.Writer` does too, with rate limits and only while its replica leads.
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
