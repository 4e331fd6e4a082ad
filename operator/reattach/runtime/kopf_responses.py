"""Responses of the API server as kopf reads them: references to objects, as JSON.

kopf decodes a page or a line of a watch as a whole, so one object with deeply nested values would
end kopf. The middleware requests protobuf instead, decodes only the references, and passes kopf
the same page or stream with nothing else in it.

An error of the API server reaches kopf as a broken connection, which kopf retries. Other error
responses would end kopf, and with it the watches of all other namespaces.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, ClassVar

import aiohttp
from typing_extensions import override

from reattach.cluster import Reference, references
from reattach.cluster.client import LINE_BYTES_MAX
from reattach.runtime.resource import Resource

_LENGTH_BYTES = 4
_OK = 200
_GONE = 410
_ERROR_FROM = 400
_KOPF_HANDLES = {401, 429}
"""kopf logs in again after 401, and waits after 429."""
_PAUSE_SECONDS = 1.0


IsNeeded = Callable[[str, Reference], bool]
"""Called in kopf's thread with the type of an event and its object."""


def middleware(resource: Resource, on_response: Callable[[], None]) -> aiohttp.ClientMiddlewareType:
    """Return a middleware that requests `resource` as protobuf metadata.

    It calls `on_response` after each list and watch that succeeded.
    """

    async def request_references(
        request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        if request.url.name != resource.plural:
            return await handler(request)
        is_watch = request.url.query.get("watch") == "true"
        request.headers["Accept"] = references.ACCEPT_OBJECT if is_watch else references.ACCEPT_LIST
        response = await handler(request)
        if response.status == _OK:
            on_response()
        return response

    return request_references


def response_class_for(
    resource: Resource, is_needed: IsNeeded = lambda _type, _reference: True
) -> type[aiohttp.ClientResponse]:
    """Return the class of the responses that `middleware` requests.

    kopf does not receive the events of a watch for which `is_needed` returns False.
    """
    return type(
        "ReferenceResponse", (_ReferenceResponse,), {"resource": resource, "is_needed": staticmethod(is_needed)}
    )


class _ReferenceResponse(aiohttp.ClientResponse):
    """Response in protobuf that kopf reads as JSON, in the two ways in which kopf reads.

    A response in JSON is left as it is.
    """

    resource: ClassVar[Resource]
    is_needed: ClassVar[IsNeeded]

    @override
    async def start(self, connection: Any) -> "_ReferenceResponse":
        await super().start(connection)
        is_list_or_watch = self.url.name == self.resource.plural
        if is_list_or_watch and self.url.query.get("watch"):
            is_gone = self.status == _GONE
            self.content = _Events(self.content, self.resource, type(self).is_needed, is_gone=is_gone)  # type: ignore[assignment] # it has all methods of a StreamReader
            self.status = _OK if self.status == _GONE else self.status
        is_required = is_list_or_watch or self.url.path == f"/apis/{self.resource.api_version}"
        if self.status < _ERROR_FROM or self.status in _KOPF_HANDLES or not is_required:
            return self
        message = f"GET {self.url.path}: the API server returned {self.status}"
        if is_list_or_watch and self.status == _GONE:
            raise aiohttp.ClientPayloadError(message)  # kopf lists again, without a pause
        raise aiohttp.ClientConnectionError(message)

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
            "kind": f"{self.resource.kind}List",
            "apiVersion": self.resource.api_version,
            "metadata": {"resourceVersion": page.resource_version, "continue": page.continue_token},
            "items": [_object_of(self.resource, reference) for reference in page.items],
        }


class _Events:
    """Body of a watch: each frame of protobuf becomes a line of JSON.

    With `is_gone`, the only event is that the version is too old.
    """

    def __init__(
        self, content: aiohttp.StreamReader, resource: Resource, is_needed: IsNeeded, *, is_gone: bool
    ) -> None:
        self._content = content
        self._resource = resource
        self._is_needed = is_needed
        self._is_gone = is_gone

    def __getattr__(self, name: str) -> Any:
        return getattr(self._content, name)

    async def iter_chunked(self, _size: int) -> AsyncIterator[bytes]:
        """Yield the events.

        A stream that ends at once, or with an error, ends after a pause, because kopf makes none.
        """
        began = time.monotonic()
        try:
            async for line in self._lines():
                yield line
        except aiohttp.ClientPayloadError:
            await asyncio.sleep(_PAUSE_SECONDS)
            raise
        if time.monotonic() - began < _PAUSE_SECONDS:
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _lines(self) -> AsyncIterator[bytes]:
        if self._is_gone:
            await asyncio.sleep(_PAUSE_SECONDS)
            yield _line("ERROR", {"kind": "Status", "code": _GONE})
        while not self._is_gone and (frame := await self._next_frame()):
            try:
                event = references.decode_event(frame)
            except references.ProtobufError as error:
                raise aiohttp.ClientPayloadError(f"an event of the watch can't be read: {error}") from error
            if event.type != "ERROR":
                # Without an event, kopf resumes from an earlier version, and the server repeats it.
                if event.type == "BOOKMARK" or self._is_needed(event.type, event.reference):
                    yield _line(event.type, _object_of(self._resource, event.reference))
            elif event.status["code"] == _GONE:
                await asyncio.sleep(_PAUSE_SECONDS)
                yield _line(event.type, event.status)
            else:  # kopf resumes from the last event
                raise aiohttp.ClientPayloadError(f"the watch ended with an error: {event.status}")

    async def _next_frame(self) -> bytes:
        """Return the next frame; empty at the end of the stream."""
        try:
            length = int.from_bytes(await self._content.readexactly(_LENGTH_BYTES), "big")
            if length > LINE_BYTES_MAX:
                raise aiohttp.ClientPayloadError(f"an event of the watch has {length} bytes")
            return await self._content.readexactly(length)
        except EOFError:
            return b""


def _line(event_type: str, content: dict[str, Any]) -> bytes:
    return json.dumps({"type": event_type, "object": content}).encode() + b"\n"


def _object_of(resource: Resource, reference: Reference) -> dict[str, Any]:
    return {
        "kind": resource.kind,
        "apiVersion": resource.api_version,
        "metadata": {
            "namespace": reference.namespace,
            "name": reference.name,
            "uid": reference.uid,
            "resourceVersion": reference.resource_version,
        },
    }
