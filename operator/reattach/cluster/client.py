"""Async client over the HTTP session of `kubernetes.aio`.

Its typed calls cost about a millisecond each; these calls cost a fifth of that.
"""

import copy
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlencode

import aiohttp
import msgspec
from kubernetes.aio import client, config

from reattach.cluster import references
from reattach.cluster.errors import ResponseTooLargeError, UnavailableError, error_of

MERGE_PATCH = "application/merge-patch+json"
JSON_PATCH = "application/json-patch+json"
METADATA_ONLY = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json"
METADATA_LIST_ONLY = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json"
LINE_BYTES_MAX = 16 * 1024 * 1024
"""Limit for an event of a watch.

An object has at most 1.5 MiB in etcd, and JSON may write a byte as six.
"""
_ERROR_FROM = 400
_RETRY_AFTER_MAX = 60.0

Query = Mapping[str, str | int | None]


class Cluster:
    """Client of one API server with at most `connections` connections.

    Each watch adds a connection.

    Paths come from `reattach.cluster.paths`. Bodies are plain JSON values. Responses are raw bytes,
    so that a caller decodes only what it needs. Every method raises only the errors of
    `reattach.cluster.errors`.
    """

    def __init__(self, configuration: client.Configuration, *, connections: int = 64, timeout: float = 30) -> None:
        configuration.connection_pool_maxsize = connections
        # Otherwise aiohttp looks up proxies and .netrc for every request, which is half of its
        # cost.
        configuration.client_session_kwargs = {"trust_env": False, **(configuration.client_session_kwargs or {})}
        self._configuration = configuration
        self._timeout = timeout
        self._api = client.ApiClient(configuration)
        # The same options as in the `request` of `kubernetes.aio`.
        options: dict[str, Any] = {
            "server_hostname": configuration.tls_server_name,
            "proxy": configuration.proxy,
            "proxy_headers": configuration.proxy_headers,
        }
        self._connection_options = {name: value for name, value in options.items() if value}
        # A watch keeps its connection for minutes. Watches use a separate pool without a limit, so
        # that they never block other calls.
        unlimited = copy.copy(configuration)
        unlimited.connection_pool_maxsize = 0
        self._watches = client.ApiClient(unlimited)

    @classmethod
    async def connect(cls, kubeconfig: str | None = None, *, connections: int = 64, timeout: float = 30) -> Self:  # noqa: ASYNC109 -- of each later call
        """Connect to the cluster of this pod or, outside of a pod, of `kubeconfig`.

        The default is KUBECONFIG, then ~/.kube/config.
        """
        configuration = client.Configuration()
        in_pod = Path("/var/run/secrets/kubernetes.io/serviceaccount/token").exists()  # noqa: ASYNC240 -- once, at start
        if kubeconfig is None and in_pod:
            config.load_incluster_config(configuration)
        else:
            await config.load_kube_config(config_file=kubeconfig, client_configuration=configuration)
        return cls(configuration, connections=connections, timeout=timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        await self._api.close()
        await self._watches.close()

    @property
    def host(self) -> str:
        """The API server's URL, without a path."""
        return str(self._configuration.host)

    async def new_session(self, **options: Any) -> aiohttp.ClientSession:
        """Return an HTTP session for a framework that makes its own calls.

        It has the TLS context and the current credentials of this client.

        The number of its connections has no limit. `options` are those of `aiohttp.ClientSession`.
        """
        token = await self._configuration.get_api_key_with_prefix("BearerToken")
        connector = aiohttp.TCPConnector(limit=0, ssl=self._api.rest_client.ssl_context)
        headers = {"Authorization": token} if token else {}
        return aiohttp.ClientSession(connector=connector, headers=headers, trust_env=False, **options)

    async def get(self, path: str, *, metadata_only: bool = False, **query: str | int | None) -> bytes:
        """Return the object at `path` (a quorum read, unless the query changes that)."""
        return await self._call("GET", path, query=query, accept=METADATA_ONLY if metadata_only else None)

    async def date(self) -> datetime | None:
        """Return the API server's time, in whole seconds, from the `Date` of a small response.

        Return None if the response has no valid `Date`.
        """
        timeout = aiohttp.ClientTimeout(total=self._timeout)
        response = await self._send("GET", "/version", timeout=timeout)
        try:
            await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise UnavailableError(0, "NoAnswer", f"GET /version: {_error_message(error)}") from error
        try:
            return parsedate_to_datetime(response.headers["Date"])
        except (KeyError, ValueError):
            return None

    async def list(
        self, path: str, *, metadata_only: bool = False, bytes_max: int | None = None, **query: str | int | None
    ) -> bytes:
        """Return one page of a collection.

        `limit`, `labelSelector`, `fieldSelector` and `continue` are query parameters. Raises
        `ResponseTooLargeError` once the page exceeds `bytes_max` bytes.
        """
        accept = METADATA_LIST_ONLY if metadata_only else None
        return await self._call("GET", path, query=query, accept=accept, bytes_max=bytes_max)

    async def list_references(
        self, path: str, *, bytes_max: int | None = None, **query: str | int | None
    ) -> references.ReferencePage:
        """Return the references of one page of a collection.

        The content of an object can't make this fail.
        """
        body = await self._call("GET", path, query=query, accept=references.ACCEPT_LIST, bytes_max=bytes_max)
        try:
            return references.decode_page(body)
        except references.ProtobufError as error:
            raise UnavailableError(0, "BadAnswer", f"GET {path}: {error}") from error

    async def get_reference(self, path: str) -> references.Reference:
        """Return the reference of the object at `path`."""
        body = await self._call("GET", path, accept=references.ACCEPT_OBJECT)
        try:
            return references.decode_object(body)
        except references.ProtobufError as error:
            raise UnavailableError(0, "BadAnswer", f"GET {path}: {error}") from error

    async def create(self, path: str, body: Mapping[str, Any] | bytes, **query: str | int | None) -> bytes:
        """POST to a collection, or to a review or subresource that accepts POST.

        `body` may be JSON text, which needs much less memory while the call waits.
        """
        return await self._call("POST", path, body=body, query=query)

    async def replace(self, path: str, body: Mapping[str, Any], **query: str | int | None) -> bytes:
        """PUT an object. A `metadata.resourceVersion` in the body makes it a compare-and-set."""
        return await self._call("PUT", path, body=body, query=query)

    async def merge_patch(self, path: str, body: Mapping[str, Any], **query: str | int | None) -> bytes:
        """Apply an RFC 7386 patch.

        A `metadata.resourceVersion` in the body makes it a compare-and-set.
        """
        return await self._call("PATCH", path, body=body, query=query, content_type=MERGE_PATCH)

    async def json_patch(self, path: str, operations: Sequence[Mapping[str, Any]], **query: str | int | None) -> bytes:
        """Apply an RFC 6902 patch. A `test` operation makes it conditional (422 if it fails)."""
        return await self._call("PATCH", path, body=list(operations), query=query, content_type=JSON_PATCH)

    async def delete(
        self,
        path: str,
        *,
        uid: str | None = None,
        resource_version: str | None = None,
        grace_period_seconds: int | None = None,
        propagation_policy: str | None = None,
    ) -> bytes:
        """DELETE with preconditions.

        With `uid`, another object of the same name is not deleted (409).
        """
        preconditions = {"uid": uid, "resourceVersion": resource_version}
        body: dict[str, Any] = {"apiVersion": "v1", "kind": "DeleteOptions"}
        if given := {name: value for name, value in preconditions.items() if value is not None}:
            body["preconditions"] = given
        if grace_period_seconds is not None:
            body["gracePeriodSeconds"] = grace_period_seconds
        if propagation_policy is not None:
            body["propagationPolicy"] = propagation_policy
        return await self._call("DELETE", path, body=body)

    async def watch(
        self,
        path: str,
        *,
        resource_version: str,
        metadata_only: bool = False,
        timeout_seconds: int = 300,
        silence_seconds: float = 90,
        **query: str | int | None,
    ) -> AsyncGenerator[bytes, None]:
        """Yield the events after `resource_version` until the server ends the stream.

        Each event is one JSON line.

        An event longer than `LINE_BYTES_MAX` is yielded as an empty line, so that the caller can
        count it. Raises `UnavailableError` after `silence_seconds` without an event or bookmark,
        and `GoneError` if the version is too old at the start. The caller handles `ERROR` events
        within the stream (`raise_error_event`).
        """
        query = {
            **query,
            "watch": 1,
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": timeout_seconds,
        }
        accept = METADATA_ONLY if metadata_only else None
        timeout = aiohttp.ClientTimeout(total=None, connect=10, sock_read=silence_seconds)
        response = await self._send("GET", path, query=query, accept=accept, timeout=timeout, api=self._watches)
        try:
            async for line in _lines(response.content.iter_any()):
                yield line
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise UnavailableError(0, "WatchBroken", f"the watch of {path} broke: {_error_message(error)}") from error
        finally:
            _abort(response)

    async def stream(
        self, path: str, *, silence_seconds: float | None = None, **query: str | int | None
    ) -> AsyncGenerator[bytes, None]:
        """Yield the content at `path` in pieces of any size, until the server ends the stream.

        Raises `UnavailableError` if the stream breaks, or after `silence_seconds` without data
        (None: no limit).
        """
        timeout = aiohttp.ClientTimeout(total=None, connect=10, sock_read=silence_seconds)
        response = await self._send("GET", path, query=query, accept="*/*", timeout=timeout)
        try:
            async for piece in response.content.iter_any():
                yield piece
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise UnavailableError(0, "StreamBroken", f"the stream of {path} broke: {_error_message(error)}") from error
        finally:
            _abort(response)

    async def _call(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        query: Query | None = None,
        accept: str | None = None,
        content_type: str = "application/json",
        bytes_max: int | None = None,
    ) -> bytes:
        timeout = aiohttp.ClientTimeout(total=self._timeout)
        response = await self._send(
            method, path, body=body, query=query, accept=accept, content_type=content_type, timeout=timeout
        )
        try:
            if bytes_max is None:
                return await response.read()
            return await _read(response, bytes_max, path)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise UnavailableError(0, "NoAnswer", f"{method} {path}: {_error_message(error)}") from error

    async def _send(
        self,
        method: str,
        path: str,
        *,
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 -- aiohttp's type, more than one number
        body: Any = None,
        query: Query | None = None,
        accept: str | None = None,
        content_type: str = "application/json",
        api: client.ApiClient | None = None,
    ) -> aiohttp.ClientResponse:
        headers = {"Accept": accept or "application/json", "Content-Type": content_type, "User-Agent": "reattach"}
        url = self._configuration.host + path
        if given := {name: value for name, value in (query or {}).items() if value is not None}:
            url += "?" + urlencode(given)
        try:
            if token := await self._configuration.get_api_key_with_prefix("BearerToken"):  # may read a file
                headers["Authorization"] = token
            response = await _session_of(api or self._api).request(
                method, url, headers=headers, data=_encode(body), timeout=timeout, **self._connection_options
            )
            if response.status < _ERROR_FROM:
                return response
            text = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError, config.ConfigException) as error:
            raise UnavailableError(0, "NoAnswer", f"{method} {path}: {_error_message(error)}") from error
        raise error_of(response.status, _status_in(text), _seconds_in(response.headers.get("Retry-After")))


def _session_of(api: client.ApiClient) -> aiohttp.ClientSession:
    """Return the HTTP session of `api`, with its TLS context. `ApiClient.close` closes it.

    The `request` of `kubernetes.aio` would encode each body with `json.dumps`, even a body that is
    JSON text already. `json.dumps` takes ten times as long as `msgspec`.
    """
    rest = api.rest_client
    if rest.pool_manager is None:
        rest.pool_manager = rest._create_pool_manager()  # noqa: SLF001 -- its hook for subclasses
    session: aiohttp.ClientSession = rest.pool_manager
    return session


def _encode(body: Any) -> bytes | None:
    if body is None or isinstance(body, bytes):
        return body
    try:
        return msgspec.json.encode(body)
    except UnicodeEncodeError:  # half of a surrogate pair, as in an argument that is not UTF-8
        return json.dumps(body).encode()


async def _read(response: aiohttp.ClientResponse, bytes_max: int, path: str) -> bytes:
    """Read a response of at most `bytes_max` bytes."""
    pieces, size = [], 0
    async for piece in response.content.iter_any():
        size += len(piece)
        if size > bytes_max:
            _abort(response)
            raise ResponseTooLargeError(
                0, "AnswerTooLarge", f"the response to GET {path} has more than {bytes_max} bytes"
            )
        pieces.append(piece)
    return b"".join(pieces)


async def _lines(pieces: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """Yield the lines of a stream, each with its line end.

    A line over `LINE_BYTES_MAX` becomes empty.

    An incomplete last line is dropped.
    """
    held: list[bytes] = []
    size = 0
    async for piece in pieces:
        *ended, rest = piece.split(b"\n")
        for end in ended:
            size += len(end)
            yield b"" if size > LINE_BYTES_MAX else b"".join((*held, end, b"\n"))
            held, size = [], 0
        size += len(rest)
        if size > LINE_BYTES_MAX:
            held = []
        elif rest:
            held.append(rest)


def _error_message(error: Exception) -> str:
    """Return the message of an error, or its class name, because a timeout has no message."""
    return str(error) or type(error).__name__


def _abort(response: aiohttp.ClientResponse) -> None:
    """Abort the connection, because a TLS shutdown could delay the process exit."""
    if response.connection is not None and response.connection.transport is not None:
        response.connection.transport.abort()
    response.close()


def _status_in(text: bytes) -> dict[str, Any]:
    """Return the `Status` object in a response. A proxy may have sent anything else."""
    try:
        status = json.loads(text) if text.startswith(b"{") else references.decode_status(text)
    except (ValueError, RecursionError):
        return {"message": text[:500].decode(errors="replace")}
    return status if isinstance(status, dict) else {}


def _seconds_in(retry_after: str | None) -> float | None:
    """Return the seconds in a `Retry-After`, limited because webhooks and proxies set it, too."""
    try:
        return min(max(0.0, float(retry_after)), _RETRY_AFTER_MAX) if retry_after else None
    except ValueError:
        return None


def raise_error_event(status: Mapping[str, Any]) -> None:
    """Raise the error in an `ERROR` event of a watch. After `GoneError`, list again."""
    raise error_of(int(status.get("code") or 500), dict(status), None)
