"""Adapter for a REST API with a description."""

import os
import ssl
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import httpx
import msgspec

from reattach.adapters.base import (
    LONGEST,
    Active,
    Adapter,
    Cancelled,
    Capabilities,
    ClientName,
    JobStatus,
    Lookup,
    NotFound,
    Submission,
    SubmissionToken,
    Submitted,
    Unknown,
)
from reattach.adapters.http.description import Credentials, Description, DescriptionError
from reattach.adapters.http.mapping import (
    cancel_body_of,
    found_of,
    handle_path_of,
    is_taken_by_an_unnamed_job,
    look_up_path_of,
    request_of,
    status_of,
    submitted_of,
)
from reattach.adapters.http_client import NO_BODY, BoundedHttpClient, CallError, HttpResponse


class HttpJobs(Adapter):
    """Jobs of one REST API.

    A request is the body of the submission, any JSON; None sends no body. Proxies come from the
    environment (`HTTPS_PROXY`, `NO_PROXY`). `transport`: replaces the network in tests.

    Raises:
        DescriptionError: the credentials or the CA that the description names can't be read.
    """

    name: ClassVar[str] = "http"

    def __init__(self, description: Description, *, transport: httpx.BaseTransport | None = None) -> None:
        self._description = description
        self.name = description.name  # type: ignore[misc] # each description is its own system
        self.request_seconds = description.request_seconds
        self.poll_seconds = description.poll_seconds
        headers = _headers_of(description, os.environ)
        tls = None if description.ca_file is None else _trust(description.ca_file)
        try:
            headers()
            if tls is not None:
                tls()
        except (OSError, ValueError) as error:
            raise DescriptionError(
                f"the credentials and the CA for {description.address} must be readable: {error}"
            ) from error
        self._cancelled: set[str] = set()
        """Handles this process cancelled; a 404 for them means cancelled, not unknown."""
        self._client = BoundedHttpClient(
            description.address, description.request_seconds, headers, tls, transport=transport
        )

    @property
    def capabilities(self) -> Capabilities:
        names, token, look_up = self._description.names, self._description.token, self._description.look_up
        return Capabilities(
            client_name=None if names is None else ClientName(_time_of(names.retention_seconds), names.while_open),
            token=None
            if token is None
            else SubmissionToken(_time_of(token.lifetime_seconds) or LONGEST, token.while_open),
            look_up=None
            if look_up is None
            else Lookup(
                timedelta(seconds=look_up.settling_seconds), _time_of(look_up.retention_seconds), look_up.while_open
            ),
        )

    def submit(self, submission: Submission) -> Submitted:
        submit = self._description.submit
        request = request_of(submit, submission)
        response = self._client.submit(submission, request.method, request.path, request.body, request.headers)
        if self._description.look_up is not None and is_taken_by_an_unnamed_job(submit, response):
            found = self.look_up(submission)
            if found is None:
                raise CallError(f"the name or token has a job that is not found yet: {response}")
            return found
        return submitted_of(submit, response, submission)

    def look_up(self, submission: Submission) -> Submitted | None:
        look_up = self._description.look_up
        if look_up is None:
            return super().look_up(submission)
        response = self._client.send("GET", look_up_path_of(look_up, submission))
        return found_of(look_up, response, submission, self._description.submit)

    def status(self, handle: str) -> JobStatus:
        request = self._description.status
        try:
            status = status_of(request, self._send(request.method, request.path, handle))
        except CallError as error:
            return Unknown(str(error), error.retry_after)
        if isinstance(status, NotFound) and handle in self._cancelled:
            return Cancelled("the job was cancelled and no longer exists")
        return status

    def cancel(self, handle: str) -> None:
        """Cancel the job. Raises `CallError` if it is still active or its status is unknown."""
        cancel = self._description.cancel
        if cancel is None:
            raise CallError("this job can't be cancelled, because its description has no `cancel`")
        # Recorded before the request, because its response may be lost after the job was removed.
        self._cancelled.add(handle)
        response = self._send(cancel.method, cancel.path, handle, cancel_body_of(cancel))
        if response.is_success:
            return
        status = self.status(handle)
        if not isinstance(status, Cancelled):
            self._cancelled.discard(handle)
        if isinstance(status, Active | Unknown):
            raise CallError(
                f"{handle} was not cancelled: {response}; its status is {status}", retry_after=response.retry_after
            )

    def _send(self, method: str, path: str, handle: str, body: Any = NO_BODY) -> HttpResponse:
        return self._client.send(method, handle_path_of(path, handle), body)


def _headers_of(description: Description, environment: Mapping[str, str]) -> Callable[[], Mapping[str, str]]:
    def headers() -> Mapping[str, str]:
        credentials = description.credentials
        if credentials is None:
            return description.headers
        secret = _secret_of(credentials, environment)
        return {**description.headers, credentials.header: credentials.template.format(secret=secret)}

    return headers


def _secret_of(credentials: Credentials, environment: Mapping[str, str]) -> str:
    """Read the secret. Raises OSError; the message does not contain the secret."""
    if credentials.env is not None:
        secret, source = environment.get(credentials.env, ""), f"the variable {credentials.env}"
    else:
        assert credentials.file is not None
        secret, source = Path(credentials.file).read_text(), credentials.file
    secret = secret.strip()
    if not secret or not secret.isascii() or not secret.isprintable():
        raise OSError(f"{source} must hold a secret of one line of printable ASCII")
    return secret


def _trust(ca_file: str) -> Callable[[], ssl.SSLContext]:
    def trust() -> ssl.SSLContext:
        return ssl.create_default_context(cafile=ca_file)

    return trust


def _time_of(seconds: float | msgspec.UnsetType | None) -> timedelta | None:
    return None if seconds is None or seconds is msgspec.UNSET else timedelta(seconds=seconds)
