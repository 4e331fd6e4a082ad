"""HTTP client for adapters: bounded time, and a failure shows whether the request may have left.

Two guarantees follow for submissions. A request that certainly did not leave created no job
(`NotSentError`). No request leaves late: after a freeze or a slow DNS lookup, the client does not
send a token that the external system may have forgotten by then.
"""

import json
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final
from urllib.parse import quote

import httpx

from reattach.clock import monotonic

ANSWER_BYTES_MAX: Final = 4 * 1024 * 1024
NO_BODY: Final = object()
TOO_LATE: Final = (
    "too much time has passed since the submission was allowed, so its token or name may no longer prevent a second job"
)
_SHOWN_CHARACTERS: Final = 300


class CallError(Exception):
    """There is no usable response. The external system may have acted on the request."""


class NotSentError(CallError):
    """The request certainly did not leave, so the external system did nothing."""


@dataclass(frozen=True)
class HttpResponse:
    """Response with any status."""

    status: int
    text: str
    headers: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def body(self) -> Any:
        """Body as JSON; None if it is not JSON.

        Like most parsers, accept NaN, and line breaks in strings. A field that is not read may
        have them.
        """
        try:
            return json.loads(self.text, strict=False)
        except (ValueError, RecursionError):
            return None

    @property
    def is_success(self) -> bool:
        return 200 <= self.status < 300

    @property
    def is_html(self) -> bool:
        return self._media_type in {"text/html", "application/xhtml+xml"} or self.text.lstrip().startswith("<")

    @property
    def is_plain_text(self) -> bool:
        return self._media_type == "text/plain"

    @property
    def _media_type(self) -> str:
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    def __str__(self) -> str:
        text = " ".join(self.text.split())
        return f"{self.status} {text}"[:_SHOWN_CHARACTERS].rstrip()


@dataclass(frozen=True)
class BoundedHttpClient:
    """Client for `address`.

    Each request has its own connection, because the server might close a kept one during a
    submission.

    `seconds`: the longest time from the call to the response; a request leaves within the first
    third or not at all. `headers`: called for each request, so that rotated credentials take
    effect. `tls`: None uses the system's CAs. `transport`: replaces the network in tests.
    `answer_bytes`: a longer response raises `CallError`.
    """

    address: str
    seconds: float
    headers: Callable[[], Mapping[str, str]] = dict
    tls: Callable[[], ssl.SSLContext] | None = None
    trust_env: bool = True
    transport: httpx.BaseTransport | None = None
    answer_bytes: int = ANSWER_BYTES_MAX
    clock: Callable[[], float] = monotonic

    def send(
        self,
        method: str,
        path: str,
        body: Any = NO_BODY,
        headers: Mapping[str, str] | None = None,
        *,
        may_leave: Callable[[], bool] = lambda: True,
    ) -> HttpResponse:
        """Send a request and return the response.

        `path` is appended to the address. `body` is sent as JSON. `may_leave` comes from the
        submission.

        Raises:
            NotSentError: the request certainly did not leave.
            CallError: there is no usable response, and the request may have left.
        """
        latest = self.clock() + self.seconds
        departure = latest - self.seconds * 2 / 3

        def check_departure(event: str, _info: Mapping[str, Any]) -> None:
            if not event.endswith("send_request_headers.started"):
                return
            if self.clock() > departure:
                raise NotSentError(f"{self.address} was not connected within {self.seconds / 3:g} s")
            if not may_leave():
                raise NotSentError(TOO_LATE)

        try:
            content = None if body is NO_BODY else json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
            given = self._headers(headers or {}, has_body=content is not None)
            with (
                self._client() as client,
                client.stream(
                    method, self.address + path, content=content, headers=given, extensions={"trace": check_departure}
                ) as response,
            ):
                return self._read(response, latest)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol) as error:
            raise NotSentError(f"{self.address} can't be reached: {_why(error)}") from error
        except (httpx.HTTPError, httpx.StreamError, OSError) as error:
            raise CallError(f"{self.address} did not respond: {_why(error)}") from error

    @cached_property
    def _system_trust(self) -> ssl.SSLContext:
        # Cached, because reading all CAs takes longer than most requests.
        return httpx.create_ssl_context(trust_env=self.trust_env)

    def _headers(self, given: Mapping[str, str], *, has_body: bool) -> dict[str, str]:
        try:
            own = dict(self.headers())
        except Exception as error:  # whatever the error is, nothing has left
            raise NotSentError(f"the credentials for {self.address} can't be read: {_why(error)}") from error
        media = {"Content-Type": "application/json"} if has_body else {}
        return {"Accept": "application/json", "Connection": "close", **media, **own, **given}

    def _client(self) -> httpx.Client:
        try:
            verify = self._system_trust if self.tls is None else self.tls()
        except Exception as error:  # whatever the error is, nothing has left
            raise NotSentError(f"the CA for {self.address} can't be read: {_why(error)}") from error
        # One sixth each for the connection and the request, one half for the response.
        phase = self.seconds / 6
        return httpx.Client(
            timeout=httpx.Timeout(phase, read=self.seconds / 2),
            verify=verify,
            trust_env=self.trust_env,
            transport=self.transport,
        )

    def _read(self, response: httpx.Response, latest: float) -> HttpResponse:
        parts: list[bytes] = []
        size = 0
        for part in response.iter_bytes():
            parts.append(part)
            size += len(part)
            if size > self.answer_bytes or self.clock() > latest:
                raise CallError(
                    f"{self.address} sent a response ({response.status_code}) that was too long or too slow"
                )
        text = b"".join(parts).decode("utf-8-sig", errors="replace")  # without a byte order mark
        return HttpResponse(response.status_code, text, response.headers)


def path_segment(text: str) -> str:
    """Return the text as one segment of a path, so that a handle never leads to another path."""
    # Unquoted, `.` and `..` would be resolved as path segments, by the client or a proxy.
    return "%2E" * len(text) if set(text) == {"."} else quote(text, safe="")


def _why(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
