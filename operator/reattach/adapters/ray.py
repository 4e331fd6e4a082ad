"""Ray jobs, through the Jobs REST API of the head's dashboard.

The API is `/api/jobs/`, checked with Ray 2.60 and API version 4.

A request is the body of `POST /api/jobs/`: `entrypoint`, and optionally `runtime_env`, `metadata`,
`entrypoint_num_cpus`, … Reattach chooses the submission id, and the handle is the submission id.

**Ray's guarantees.** Ray stores a job under its submission id only if the id is free, and keeps the
id forever: an atomic insert in the head's key/value store, the GCS. So of any number of
submissions with one id, exactly one creates a job, as long as the GCS keeps its data. A head that
restarts without an external store (GCS fault tolerance) has lost every job, and its jobs have ended
with it. The declared capabilities therefore depend on the head: its memory reaches back to its
start, which the adapter reads from the head. An intent from before that start is looked up; if the
lookup finds nothing, `spec.submission.onUnknown` decides, because the job may have finished before
the restart.

`DELETE /api/jobs/ID` also makes Ray forget a job. Deleting jobs that are not yet recorded as
terminal breaks the guarantee. This adapter deletes nothing.
"""

import ssl
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from email.utils import parsedate_to_datetime
from typing import Any, ClassVar, Final

import httpx

from reattach.adapters.base import (
    MARGIN,
    Active,
    Adapter,
    Cancelled,
    Capabilities,
    ClientName,
    Failed,
    JobStatus,
    Lookup,
    NotFound,
    Rejected,
    Submission,
    Submitted,
    Succeeded,
    Unknown,
)
from reattach.adapters.http_client import CREDENTIALS_REFUSED, BoundedHttpClient, CallError, HttpResponse, path_segment

_SETTLING: Final = timedelta(seconds=60)
"""An accepted request waits at most half of this for the head's agent; then the job exists."""
_MEMORY_MARGIN: Final = timedelta(seconds=5)
"""Margin of the head's memory, for the resolution of its clock and the time until it responds."""
_MEMORY_SECONDS: Final = 6.0
_CONFLICT: Final = "already exists"
_REFUSED: Final = frozenset({400, 404, 405, 413, 415, 422})
"""Statuses with which the API rejects a request without acting on it.

404 and 405 come from another server. 401 and 403 come from token authentication.
"""
_HEAD_NODE: Final = "/api/v0/nodes?detail=1&filter_keys=is_head_node&filter_predicates=%3D&filter_values=true"


class RayError(CallError):
    """Ray's response does not describe the job."""


class RayJobs(Adapter):
    """Jobs of one Ray cluster.

    `address`: the dashboard, for example `http://raycluster-head-svc:8265`. `headers`: called for
    each request, for example for the `Authorization` of Ray's token authentication. `durable`: the
    GCS has an external store (KubeRay: `gcsFaultToleranceOptions`), so a new head knows the jobs of
    the old one. `tls`: for your own CA. `transport`: replaces the network in tests.
    """

    name: ClassVar[str] = "ray"

    def __init__(
        self,
        address: str,
        *,
        headers: Callable[[], Mapping[str, str]] = dict,
        durable: bool = False,
        tls: Callable[[], ssl.SSLContext] | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._address = address.rstrip("/")
        self._durable = durable
        self._caller = BoundedHttpClient(self._address, self.request_seconds, headers, tls, transport=transport)
        # Short timeout: the head's memory is needed right before a submission, while the value is
        # fresh.
        self._quick = replace(self._caller, seconds=_MEMORY_SECONDS)

    @property
    def capabilities(self) -> Capabilities:
        """Ask the head how far its memory reaches back.

        Raises `CallError` or `RayError` if it does not respond.
        """
        if self._durable:
            return Capabilities(client_name=ClientName(), look_up=Lookup(_SETTLING))
        memory = memory_of(self._quick.send("GET", _HEAD_NODE))
        # The name must be safe until the request arrives; by then the memory has grown by the same
        # time.
        growth = timedelta(seconds=self.request_seconds) + MARGIN if memory else timedelta(0)
        return Capabilities(client_name=ClientName(memory + growth), look_up=Lookup(_SETTLING, memory))

    def submit(self, submission: Submission) -> Submitted:
        answer = self._caller.submit(submission, "POST", "/api/jobs/", body_of(submission))
        existed = submitted_of(answer, submission.name)
        return Submitted(submission.name, self._url(submission.name), existed=existed)

    def look_up(self, submission: Submission) -> Submitted | None:
        match status_of(self._caller.send("GET", _path(submission.name))):
            case NotFound():
                return None
            case Unknown(message, retry_after):
                raise RayError(message, retry_after=retry_after)
            case _:
                return Submitted(submission.name, self._url(submission.name), existed=True)

    def status(self, handle: str) -> JobStatus:
        return status_of(self._caller.send("GET", _path(handle)))

    def cancel(self, handle: str) -> None:
        answer = self._caller.send("POST", f"{_path(handle)}/stop")
        if is_absent(answer):
            return
        if answer.status != 200 or not isinstance(answer.body, dict):
            raise RayError(f"Ray did not stop {handle}: {_shown(answer)}", retry_after=answer.retry_after)
        # Ray also returns `stopped: false` for a job that waits for its supervisor, and starts it
        # later.
        if not answer.body.get("stopped") and isinstance(self.status(handle), Active):
            raise RayError(f"Ray can't stop {handle} yet, since its supervisor has not started; ask again")

    def _url(self, handle: str) -> str:
        return f"{self._address}/#/jobs/{path_segment(handle)}"


def _path(handle: str) -> str:
    return f"/api/jobs/{path_segment(handle)}"


def body_of(submission: Submission) -> dict[str, Any]:
    """Return the body of `POST /api/jobs/`. Raises `Rejected`."""
    request = submission.request
    if not isinstance(request, dict) or not isinstance(request.get("entrypoint"), str):
        raise Rejected("a request to Ray must be a dict with `entrypoint`, a command line")
    if "submission_id" in request or "job_id" in request:
        raise Rejected(
            "a request to Ray must not have a submission_id: Reattach chooses it, because it identifies the job"
        )
    # Shows people which TaskRun owns the job. Ray accepts only strings as metadata.
    metadata = {
        "reattach.dev/taskrun": f"{submission.namespace}/{submission.taskrun}",
        "reattach.dev/key": submission.key,
        **(request.get("metadata") or {}),
    }
    return {**request, "metadata": metadata, "submission_id": submission.name}


def submitted_of(answer: HttpResponse, submission_id: str) -> bool:
    """Return whether the job existed before this submission.

    For a known id, Ray returns 500 and a nested traceback that ends in a sentence.

    Raises:
        Rejected: there certainly is no job.
        RayError: the outcome is unknown.
    """
    if answer.status == 200 and isinstance(answer.body, dict) and answer.body.get("submission_id") == submission_id:
        return False
    if answer.status >= 400 and submission_id in answer.text and _CONFLICT in answer.text:
        return True
    if answer.status in CREDENTIALS_REFUSED:
        raise Rejected(f"Ray refuses the credentials: {_shown(answer)}", credentials=True)
    if answer.status in _REFUSED:
        raise Rejected(f"Ray refuses the job: {_shown(answer)}")
    if answer.status == 429:
        raise Rejected(f"Ray refuses the job for now: {_shown(answer)}", retriable=True, retry_after=answer.retry_after)
    raise RayError(
        f"Ray's response does not show whether it created the job: {_shown(answer)}", retry_after=answer.retry_after
    )


def status_of(answer: HttpResponse) -> JobStatus:
    """Return the status from `GET /api/jobs/ID`.

    A success has the result `{"submissionId": …}`, because Ray keeps no other.
    """
    body = answer.body
    if is_absent(answer):
        return NotFound(_shown(answer))
    if answer.status != 200 or not isinstance(body, dict):
        return Unknown(_shown(answer), answer.retry_after)
    message = _ends_of(body.get("message") or "")
    match body.get("status"):
        case "PENDING" | "RUNNING":
            return Active(message)
        case "SUCCEEDED":
            return Succeeded({"submissionId": body.get("submission_id") or body.get("job_id")})
        case "FAILED":
            return Failed(": ".join(part for part in (body.get("error_type"), message) if part))
        case "STOPPED":
            return Cancelled(message)
        case unknown:
            return Unknown(f"Ray reports a status that this adapter does not know: {unknown!r}")


def is_absent(answer: HttpResponse) -> bool:
    """Return whether Ray itself reports that the job does not exist.

    Another server at this address, or a proxy, may also return 404; only Ray sends this sentence.
    """
    return answer.status == 404 and "does not exist" in answer.text


def memory_of(answer: HttpResponse) -> timedelta:
    """Return how far the head's memory of jobs reaches back, by its node's start and clock.

    0 if the response does not say, also for a 404, which an older Ray returns. Raises `RayError` if
    the head can't respond now.
    """
    if not answer.is_success and answer.status != 404:
        raise RayError(f"Ray did not return the start time of its head: {_shown(answer)}")
    try:
        nodes = answer.body["data"]["result"]["result"]
        started = max(node["start_time_ms"] for node in nodes if node["is_head_node"])
        now = parsedate_to_datetime(answer.headers["date"]).timestamp()
        memory = timedelta(seconds=now - started / 1000)
    except (TypeError, KeyError, ValueError):
        return timedelta(0)
    return max(memory - _MEMORY_MARGIN, timedelta(0))


def _shown(answer: HttpResponse) -> str:
    return f"{answer.status} {_last_line(answer.text)}"[:400]


def _last_line(text: str) -> str:
    """Return the last line, because it names the error of a traceback."""
    return _lines(text)[-1][:400]


def _ends_of(text: str) -> str:
    """Return the first and the last line of a job's message: what happened, and why."""
    lines = _lines(text)
    return lines[0][:400] if len(lines) == 1 else f"{lines[0][:250]} … {lines[-1][:250]}"


def _lines(text: str) -> list[str]:
    """Return at least one line, without blank lines and lone dots."""
    return [line.strip() for line in text.splitlines() if line.strip(" .")] or [""]
