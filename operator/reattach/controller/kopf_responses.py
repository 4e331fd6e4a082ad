"""What kopf reads of the API server: references to TaskRuns, as JSON.

kopf decodes a page or a line of a watch as a whole, and one TaskRun with deeply nested values would end it. Here the API server is
asked for protobuf instead, of which only the references are read, and kopf gets the same page or stream with nothing else in it.

An error of the API server reaches kopf as a broken connection, after which it tries again: some other answers would end kopf, and with
it the watches of all other namespaces.
"""

import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
from typing_extensions import override

from reattach.api.names import API_VERSION, KIND, PLURAL
from reattach.cluster import Reference, references
from reattach.cluster.client import LINE_BYTES_MAX

_LENGTH_BYTES = 4
_ERROR_FROM = 400
_KOPF_HANDLES = {401, 410, 429}
"""It logs in again, starts again with a list, or waits."""


async def ask_for_references(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    """A middleware of aiohttp's client: list and watch TaskRuns as protobuf metadata. Other calls stay as they are."""
    if request.url.name == PLURAL:
        is_watch = request.url.query.get("watch") == "true"
        request.headers["Accept"] = references.ACCEPT_OBJECT if is_watch else references.ACCEPT_LIST
    return await handler(request)


class ReferenceResponse(aiohttp.ClientResponse):
    """An answer in protobuf, read as JSON by the two ways in which kopf reads. An answer in JSON stays as it is."""

    @override
    async def start(self, connection: Any) -> "ReferenceResponse":
        await super().start(connection)
        if self.url.name == PLURAL and self.url.query.get("watch"):
            self.content = _Events(self.content)  # type: ignore[assignment] # it has all that a StreamReader has
        if self.url.name == PLURAL and self.status >= _ERROR_FROM and self.status not in _KOPF_HANDLES:
            raise aiohttp.ClientConnectionError(f"GET {self.url.path}: the API server answered {self.status}")
        return self

    @override
    async def json(self, **_: Any) -> Any:
        body = await self.read()
        if not self.content_type.startswith(references.MEDIA_TYPE):
            return json.loads(body)
        try:
            if self.status >= _ERROR_FROM:
                return references.decode_status(body)
            page = references.decode_page(body)
        except references.ProtobufError as error:
            raise aiohttp.ClientPayloadError(f"the page can't be read: {error}") from error
        return {
            "kind": f"{KIND}List",
            "apiVersion": API_VERSION,
            "metadata": {"resourceVersion": page.resource_version, "continue": page.continue_token},
            "items": [_object_of(reference) for reference in page.items],
        }


class _Events:
    """The body of a watch: each frame of protobuf becomes a line of JSON."""

    def __init__(self, content: aiohttp.StreamReader) -> None:
        self._content = content

    def __getattr__(self, name: str) -> Any:
        return getattr(self._content, name)

    async def iter_chunked(self, _size: int) -> AsyncIterator[bytes]:
        """Yield the events."""
        while frame := await self._next_frame():
            try:
                event = references.decode_event(frame)
            except references.ProtobufError as error:
                raise aiohttp.ClientPayloadError(f"an event of the watch can't be read: {error}") from error
            what = event.status if event.type == "ERROR" else _object_of(event.reference)
            yield json.dumps({"type": event.type, "object": what}).encode() + b"\n"

    async def _next_frame(self) -> bytes:
        """Return the next frame; empty at the end of the stream."""
        try:
            length = int.from_bytes(await self._content.readexactly(_LENGTH_BYTES), "big")
            if length > LINE_BYTES_MAX:
                raise aiohttp.ClientPayloadError(f"an event of the watch has {length} bytes")
            return await self._content.readexactly(length)
        except EOFError:
            return b""


def _object_of(reference: Reference) -> dict[str, Any]:
    return {
        "kind": KIND,
        "apiVersion": API_VERSION,
        "metadata": {
            "namespace": reference.namespace,
            "name": reference.name,
            "uid": reference.uid,
            "resourceVersion": reference.resource_version,
        },
    }
