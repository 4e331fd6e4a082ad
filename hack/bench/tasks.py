"""Tasks that call the state API for the pods of the benchmark, in place of containers."""

import contextlib
import ssl
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from typing import Any

import aiohttp
import msgspec

from bench.rounds import BenchError
from reattach.api.names import HEADER_REQUEST_ID, HEADER_SESSION, TOKEN_AUDIENCE
from reattach.cluster import Cluster
from reattach.cluster.paths import core

_TOKEN_SECONDS = 3600


class _Token(msgspec.Struct, frozen=True):
    token: str


class _TokenRequest(msgspec.Struct, frozen=True):
    status: _Token


class _Pod(msgspec.Struct, frozen=True):
    metadata: Mapping[str, Any]


class TaskClient:
    """Process of one task, with the token of its pod."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self.url = url
        self.id = session.headers[HEADER_SESSION]
        self.seconds: list[float] = []
        """Duration of each call."""

    async def call(self, method: str, path: str, body: Any = None, **query: str) -> bytes:
        """Send one request.

        Raises:
            BenchError: the response is no success.
        """
        data = None if body is None else msgspec.json.encode(body)
        headers = {"Content-Type": "application/json"} if data else {}
        if method != "GET":
            headers[HEADER_REQUEST_ID] = str(uuid.uuid4())
        started = time.monotonic()
        async with self._session.request(method, self.url + path, data=data, headers=headers, params=query) as answer:
            text = await answer.read()
        self.seconds.append(time.monotonic() - started)
        if not answer.ok:
            raise BenchError(f"{method} {path} of the state API must succeed, but returned {answer.status}: {text!r}")
        return text

    async def open(self) -> None:
        """Open the state."""
        await self.call("POST", "/v1/open", {"session": self.id})

    async def set(self, key: str, value: Any) -> None:
        """Store a value."""
        await self.call("PUT", f"/v1/state/{key}", {"value": value})

    async def get(self, key: str) -> None:
        """Read a value."""
        await self.call("GET", f"/v1/state/{key}")

    async def submit(self, handle: str) -> None:
        """Record an external job from its intent to its outcome."""
        intent = {"submitter": self.id, "adapter": "bench", "digest": "d"}
        await self.call("POST", "/v1/jobs/load/intent", intent)
        await self.call("PUT", "/v1/jobs/load/handle", {"generation": 1, "submitter": self.id, "handle": handle})
        await self.call("PUT", "/v1/jobs/load/outcome", {"generation": 1, "state": "Succeeded"})

    async def complete(self, result: Any) -> None:
        """Record the completion."""
        await self.call("POST", "/v1/complete", {"result": result})


@contextlib.asynccontextmanager
async def task_of(
    cluster: Cluster, namespace: str, pod: str, url: str, context: ssl.SSLContext
) -> AsyncIterator[TaskClient]:
    """Yield a task with a connection of its own, as a container has."""
    token = await token_of(cluster, namespace, pod)
    headers = {"Authorization": f"Bearer {token}", HEADER_SESSION: str(uuid.uuid4())}
    connector = aiohttp.TCPConnector(ssl=context, limit=1)
    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(connector=connector, headers=headers, timeout=timeout, trust_env=False) as session:
        yield TaskClient(session, url)


async def token_of(cluster: Cluster, namespace: str, pod: str) -> str:
    """Return a token of the pod for the state API, as the kubelet projects it."""
    found = msgspec.json.decode(await cluster.get(core("pods", namespace, pod)), type=_Pod)
    reference = {"kind": "Pod", "apiVersion": "v1", "name": pod, "uid": found.metadata["uid"]}
    spec = {"audiences": [TOKEN_AUDIENCE], "expirationSeconds": _TOKEN_SECONDS, "boundObjectRef": reference}
    path = f"{core('serviceaccounts', namespace)}/default/token"
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
    return msgspec.json.decode(await cluster.create(path, body), type=_TokenRequest).status.token
