"""What kopf reads of the API server: references to TaskRuns, as JSON.

kopf decodes a page or a line of a watch as a whole, and one TaskRun with deeply nested values would end it. Here the API server is
asked for protobuf instead, of which only the references are read, and kopf gets the same page or stream with nothing else in it.

An error of the API server reaches kopf as a broken connection, after which it tries again: some other answers would end kopf, and with
it the watches of all other namespaces.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
from typing_extensions import override

from reattach.api.names import API_VERSION, KIND, PLURAL
from reattach.cluster import Reference, references
from reattach.cluster.client import LINE_BYTES_MAX

_LENGTH_BYTES = 4
_OK = 200
_GONE = 410
_ERROR_FROM = 400
_KOPF_HANDLES = {401, 429}
"""kopf logs in again after 401, and waits after 429."""
_PAUSE_SECONDS = 1.0


def middleware(on_answer: Callable[[], None]) -> aiohttp.ClientMiddlewareType:
    """Return a middleware that asks for TaskRuns as protobuf metadata, and calls `on_answer` after each list and watch that succeeded."""

    async def ask_for_references(
        request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        if request.url.name != PLURAL:
            return await handler(request)
        is_watch = request.url.query.get("watch") == "true"
        request.headers["Accept"] = references.ACCEPT_OBJECT if is_watch else references.ACCEPT_LIST
        response = await handler(request)
        if response.status == _OK:
            on_answer()
        return response

    return ask_for_references


class ReferenceResponse(aiohttp.ClientResponse):
    """An answer in protobuf, read as JSON by the two ways in which kopf reads. An answer in JSON stays as it is."""

    @override
    async def start(self, connection: Any) -> "ReferenceResponse":
        await super().start(connection)
        is_list_or_watch = self.url.name == PLURAL
        if is_list_or_watch and self.url.query.get("watch"):
            self.content = _Events(self.content, is_gone=self.status == _GONE)  # type: ignore[assignment] # it has all that a StreamReader has
            self.status = _OK if self.status == _GONE else self.status
        is_needed = is_list_or_watch or self.url.path == f"/apis/{API_VERSION}"
        if self.status < _ERROR_FROM or self.status in _KOPF_HANDLES or not is_needed:
            return self
        said = f"GET {self.url.path}: the API server answered {self.status}"
        if is_list_or_watch and self.status == _GONE:
            raise aiohttp.ClientPayloadError(said)  # kopf lists again, without a pause
        raise aiohttp.ClientConnectionError(said)

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
    """The body of a watch: each frame of protobuf becomes a line of JSON. With `is_gone` its only event says that the version is too old."""

    def __init__(self, content: aiohttp.StreamReader, *, is_gone: bool) -> None:
        self._content = content
        self._is_gone = is_gone

    def __getattr__(self, name: str) -> Any:
        return getattr(self._content, name)

    async def iter_chunked(self, _size: int) -> AsyncIterator[bytes]:
        """Yield the events. A stream that ends at once, or with an error, ends after a pause, because kopf makes none."""
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
                yield _line(event.type, _object_of(event.reference))
            elif event.status["code"] == _GONE:
                await asyncio.sleep(_PAUSE_SECONDS)
                yield _line(event.type, event.status)
            else:  # kopf goes on from the last event
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


def _line(kind: str, what: dict[str, Any]) -> bytes:
    return json.dumps({"type": kind, "object": what}).encode() + b"\n"


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
