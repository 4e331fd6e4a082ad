"""Watches that resume after the API server closes them."""

import contextlib
from collections.abc import AsyncGenerator

import msgspec

from reattach.cluster import Cluster, UnavailableError

_SECONDS = 3600


class _Metadata(msgspec.Struct, frozen=True, rename="camel"):
    resource_version: str = ""


class _Object(msgspec.Struct, frozen=True):
    metadata: _Metadata = _Metadata()


class _Event(msgspec.Struct, frozen=True):
    type: str
    object: _Object = _Object()


async def version_of(cluster: Cluster, path: str) -> str:
    """Return the current resource version of a collection, from which a watch can start."""
    return msgspec.json.decode(await cluster.list(path, limit=1), type=_Object).metadata.resource_version


async def watch(cluster: Cluster, path: str, version: str) -> AsyncGenerator[bytes, None]:
    """Yield the events after `version`, each as one JSON line.

    A busy API server closes the watch of a slow client. The watch then resumes after the last
    event.

    Raises:
        RuntimeError: The watch missed events.
    """
    while True:
        events = cluster.watch(path, resource_version=version, timeout_seconds=_SECONDS, silence_seconds=_SECONDS)
        with contextlib.suppress(UnavailableError):
            async with contextlib.aclosing(events) as lines:
                async for line in lines:
                    event = msgspec.json.decode(line, type=_Event)
                    if event.type == "ERROR":
                        raise RuntimeError(f"the watch of {path} missed events: {line.decode()}")
                    version = event.object.metadata.resource_version
                    yield line
