"""HTTP client for adapters: bounded time, and a failure shows whether the request may have left.

Two guarantees follow for submissions. A request that certainly did not leave created no job
(`NotSentError`). No request leaves late: after a freeze or a slow DNS lookup, the client does not
send a token that the external system may have forgotten by then.

The connection decides whether a request has left, not the error: whatever fails before the first
byte of the request is about to be written is a `NotSentError`. Settings of a proxy, name servers,
TLS, a refused CONNECT and credentials fail before that byte.
"""

import json
import re
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cached_property
from typing import Any, Final
from urllib.parse import quote

import httpx

from reattach.adapters.base import Rejected, Submission
from reattach.clock import monotonic

ANSWER_BYTES_MAX: Final = 4 * 1024 * 1024
NO_BODY: Final = object()
CREDENTIALS_REFUSED: Final = frozenset({401, 403, 407})
"""Statuses that reject the credentials, before the server acts on the request (RFC 9110)."""
TOO_LATE: Final = (
    "too much time has passed since the submission was allowed, so its token or name may no longer prevent a second job"
)
_SHOWN_CHARACTERS: Final = 300
_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE: Final = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f]*")
_UNCONNECTED: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol)
"""Errors by which a transport reports that it has no connection."""


class CallError(Exception):
    """There is no usable response. The external system may have acted on the request.

    `retry_after`: seconds before which the external system wants no other request.
    """

    def __init__(self, message: str = "", *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class NotSentError(CallError):
    """The request certainly did not leave, so the external system did nothing."""


class CredentialsUnreadableError(NotSentError):
    """The request did not leave, because its credentials can't be read or can't be sent."""


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

    @cached_property
    def retry_after(self) -> float | None:
        """Seconds of `Retry-After`, which may also be a date (RFC 9110); None without one."""
        headers = {name.lower(): text.strip() for name, text in self.headers.items()}
        text = headers.get("retry-after", "")
        if text.isascii() and text.isdecimal():
            return float(text)
        date = _date_of(text)
        # By the server's own clock, which may be wrong.
        now = _date_of(headers.get("date", "")) or datetime.now(UTC)
        return None if date is None else max((date - now).total_seconds(), 0.0)

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


class Departure:
    """Moment at which the first byte of one request leaves, from the trace of its connection.

    `check` is called right before that byte, and prevents it by raising an error. `has_left`: True
    from then on; None until the transport reports its first step.
    """

    def __init__(self, check: Callable[[], None]) -> None:
        self.has_left: bool | None = None
        self._check = check
        self._stream: Any = None

    def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Receive the steps of the transport (httpcore's extension `trace`)."""
        if self.has_left is None:
            self.has_left = False
        if event.endswith("connect_tcp.complete"):
            self._stream = info["return_value"]
        elif event.endswith("start_tls.complete"):
            self._stream = None
        # A proxy gets a request of its own first (CONNECT), which contains nothing of ours.
        elif event.endswith("send_request_headers.started") and info["request"].method != b"CONNECT":
            self._check()
            # A server has nothing to send before the request, except in TLS, so it has closed.
            if self._stream is not None and self._stream.get_extra_info("is_readable"):
                raise NotSentError("the server closed the connection before the request was sent")
            self.has_left = True


@dataclass(frozen=True)
class BoundedHttpClient:
    """Client for `address`.

    Each request has its own connection, because the server might close a kept one during a
    submission.

    `seconds`: the longest time from the call to the response; a request leaves within the first
    third or not at all. `headers`: called for each request, so that rotated credentials take
    effect. `tls`: None uses the system's CAs. `transport`: replaces the network in tests.
    `answer_bytes`: a longer response raises `CallError`.

    Raises:
        ValueError: the address or the proxy settings of the environment are wrong, so that no
            request could ever leave.
    """

    address: str
    seconds: float
    headers: Callable[[], Mapping[str, str]] = dict
    tls: Callable[[], ssl.SSLContext] | None = None
    trust_env: bool = True
    transport: httpx.BaseTransport | None = None
    answer_bytes: int = ANSWER_BYTES_MAX
    clock: Callable[[], float] = monotonic

    def __post_init__(self) -> None:
        """Validate the settings."""
        _check_address(self.address)
        if self.trust_env and self.transport is None:
            _check_proxies()

    def submit(
        self,
        submission: Submission,
        method: str,
        path: str,
        body: Any = NO_BODY,
        headers: Mapping[str, str] | None = None,
    ) -> HttpResponse:
        """Send the request that makes the job, if the submission may still leave. See `send`.

        Raises:
            Rejected: the request certainly did not leave. It is retriable, with `credentials` if
                they can't be read.
            CallError: there is no usable response, and the request may have left.
        """
        try:
            return self.send(method, path, body, headers, may_leave=submission.may_leave)
        except NotSentError as error:
            is_about_credentials = isinstance(error, CredentialsUnreadableError)
            raise Rejected(
                f"the job was not sent: {error}", retriable=True, credentials=is_about_credentials
            ) from error

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
            ValueError: the body is not JSON.
        """
        if method.upper() == "CONNECT":
            raise ValueError("method must not be CONNECT, which is the request for a proxy's tunnel")
        latest = self.clock() + self.seconds
        content = None if body is NO_BODY else json.dumps(body, ensure_ascii=False, allow_nan=False).encode()

        def check() -> None:
            if self.clock() > latest - self.seconds * 2 / 3:
                raise NotSentError(f"{self.address} was not connected within {self.seconds / 3:g} s")
            if not may_leave():
                raise NotSentError(TOO_LATE)

        departure = Departure(check)
        try:
            given = self._headers(headers or {}, has_body=content is not None)
            with (
                self._client() as client,
                client.stream(
                    method, self.address + path, content=content, headers=given, extensions={"trace": departure.trace}
                ) as response,
            ):
                return self._read(response, latest)
        except CallError:
            raise
        except Exception as error:
            if self._has_left(departure, error):
                raise CallError(f"{self.address} did not respond: {_why(error)}") from error
            raise NotSentError(f"{self.address} can't be reached: {_why(error)}") from error

    def _has_left(self, departure: Departure, error: Exception) -> bool:
        """Return whether the request may have left. A replaced transport may report no steps."""
        if self.transport is None or departure.has_left is not None:
            return bool(departure.has_left)
        return not isinstance(error, _UNCONNECTED)

    @cached_property
    def _system_trust(self) -> ssl.SSLContext:
        # Cached, because reading all CAs takes longer than most requests.
        return httpx.create_ssl_context(trust_env=self.trust_env)

    def _headers(self, given: Mapping[str, str], *, has_body: bool) -> dict[str, str]:
        try:
            own = dict(self.headers())
        except Exception as error:  # whatever the error is, nothing has left
            raise CredentialsUnreadableError(
                f"the credentials for {self.address} can't be read: {_why(error)}"
            ) from error
        media = {"Content-Type": "application/json"} if has_body else {}
        every = {"Accept": "application/json", "Connection": "close", **media, **own, **given}
        for name, value in every.items():
            # The error of the HTTP library would contain the value, which may be a secret.
            if not (_HEADER_NAME.fullmatch(name) and _HEADER_VALUE.fullmatch(value) and value == value.strip()):
                raise CredentialsUnreadableError(
                    f"the header {name!r} for {self.address} must be one line of printable text without spaces around it"
                )
        return every

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


def _date_of(text: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    return date if date.tzinfo is not None else date.replace(tzinfo=UTC)


def _check_address(address: str) -> None:
    """Raise ValueError unless a request to this address could leave."""
    try:
        url = httpx.URL(address)
    except httpx.InvalidURL as error:
        raise ValueError(f"the address must be a URL like https://jobs.example.com: {error}") from None
    if url.scheme not in {"http", "https"} or not url.host:
        raise ValueError(f"the address must be a URL like https://jobs.example.com, not {address.rpartition('@')[2]!r}")


def _check_proxies() -> None:
    """Raise ValueError if the environment's proxy settings prevent every request."""
    settings = "the environment's proxy settings (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY)"
    try:
        httpx.Client(verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)).close()
    except ImportError as error:
        raise ValueError(f"{settings} need a package that is not installed: {error}") from None
    except Exception as error:  # noqa: BLE001 -- its text may contain a part of a password
        raise ValueError(f"{settings} must be URLs like http://proxy:3128: {type(error).__name__}") from None


def _why(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
