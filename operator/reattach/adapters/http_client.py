"""One request to another system: over within a known time, and of a failed one it is known whether it may have left.

Two things follow for whoever submits by it. A request that surely did not leave made no job (`NotSentError`). And none leaves late: a process that
was frozen, or waited long for a name server, does not send when the token that the request carries may have been forgotten over there.
"""

import json
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

import httpx

from reattach.clock import monotonic

ANSWER_BYTES_MAX: Final = 4 * 1024 * 1024
NO_BODY: Final = object()
TOO_LATE: Final = (
    "too much time has passed since it was allowed, and what keeps it from making a second job may no longer hold"
)
_SHOWN_CHARACTERS: Final = 300


class CallError(Exception):
    """There is no usable answer. What was asked for may have been done."""


class NotSentError(CallError):
    """The request surely did not leave: nothing was done."""


@dataclass(frozen=True)
class HttpResponse:
    """What came back, whatever it says."""

    status: int
    text: str
    headers: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def body(self) -> Any:
        """The JSON; None where there is none."""
        try:
            return json.loads(self.text, parse_constant=_refuse)
        except (ValueError, RecursionError):
            return None

    @property
    def is_success(self) -> bool:
        return 200 <= self.status < 300

    def __str__(self) -> str:
        text = " ".join(self.text.split())
        return f"{self.status} {text}"[:_SHOWN_CHARACTERS].rstrip()


@dataclass(frozen=True)
class BoundedHttpClient:
    """Sends requests to `address`, each on a connection of its own: one that was kept might be closed just when a job is submitted.

    `seconds`: the longest that one may take, from the call to the answer; it leaves within the first third or not at all. `headers`: asked for
    each request anew, so that rotated credentials count. `tls`: None trusts whom the system trusts. `transport`: instead of the network, in
    tests. `answer_bytes`: a longer answer is none.
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
        """The answer. `path` is appended to the address; `body`: what is sent as JSON; `may_leave`: of the submission that this is.

        Raises:
            NotSentError: see there.
            CallError: see there.
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
            raise CallError(f"{self.address} did not answer: {_why(error)}") from error

    @cached_property
    def _system_trust(self) -> ssl.SSLContext:
        # Reading all CAs takes longer than most requests.
        return httpx.create_ssl_context(trust_env=self.trust_env)

    def _headers(self, given: Mapping[str, str], *, has_body: bool) -> dict[str, str]:
        try:
            own = dict(self.headers())
        except Exception as error:  # whatever it is, nothing has left
            raise NotSentError(f"the credentials for {self.address} can't be read: {_why(error)}") from error
        media = {"Content-Type": "application/json"} if has_body else {}
        return {"Accept": "application/json", "Connection": "close", **media, **own, **given}

    def _client(self) -> httpx.Client:
        try:
            verify = self._system_trust if self.tls is None else self.tls()
        except Exception as error:  # whatever it is, nothing has left
            raise NotSentError(f"the CA for {self.address} can't be read: {_why(error)}") from error
        # Connecting and writing one sixth each, and one half until the answer comes.
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
                raise CallError(f"{self.address} answered {response.status_code} without end")
        text = b"".join(parts).decode(errors="replace")
        return HttpResponse(response.status_code, text, response.headers)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _why(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
