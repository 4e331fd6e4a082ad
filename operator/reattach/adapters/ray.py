"""Ray jobs, through the Jobs REST API of the head's dashboard (`/api/jobs/`; checked with Ray 2.60, API version 4).

A request is the body of `POST /api/jobs/`: `entrypoint`, and if need be `runtime_env`, `metadata`, `entrypoint_num_cpus`, … The submission id
is ours. The handle is the submission id.

**What Ray promises.** It writes a job under its submission id only where there is none (an atomic insert in the head's key/value store, the GCS),
and never drops it: of any number of submissions with one id exactly one makes a job, as long as the GCS keeps its memory. A head that
restarts without an external store (GCS fault tolerance) has forgotten every job, and its jobs ended with it. So what this adapter declares
depends on the head: its memory reaches back to its start, which it is asked for. An intent from before that start is looked up and otherwise
left to `spec.submission.onUnknown`: the job may have run to its end before the restart. `DELETE /api/jobs/ID` makes Ray forget as well: whoever
deletes jobs that their TaskRuns have not recorded as over takes the promise away. This adapter deletes nothing.
"""

import ssl
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from email.utils import parsedate_to_datetime
from typing import Any, ClassVar, Final
from urllib.parse import quote

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
from reattach.adapters.http_client import BoundedHttpClient, HttpResponse, NotSentError

_SETTLING: Final = timedelta(seconds=60)
"""A request that the head has taken waits at most half of this for the head's agent, then the job is there."""
_MEMORY_MARGIN: Final = timedelta(seconds=5)
"""The head's clock is read to the second, and its node registers a little before the Jobs API answers."""
_MEMORY_SECONDS: Final = 6.0
_CONFLICT: Final = "already exists"
_REFUSED: Final = frozenset({400, 401, 403, 404, 405, 413, 415, 422})
"""Answers of the API itself to a request that it has not acted on; 401 and 403 with token authentication, 404 and 405 from another server."""
_HEAD_NODE: Final = "/api/v0/nodes?detail=1&filter_keys=is_head_node&filter_predicates=%3D&filter_values=true"


class RayError(Exception):
    """Ray answered something that tells nothing of the job."""


class RayJobs(Adapter):
    """The jobs of one Ray cluster.

    `address`: of the dashboard, `http://raycluster-head-svc:8265`. `headers`: for each request asked anew, for example for the `Authorization`
    of Ray's token authentication. `durable`: the GCS has an external store (KubeRay: `gcsFaultToleranceOptions`), so that a new head knows
    the old one's jobs. `tls`: for a CA of your own. `transport`: instead of the network, in tests.
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
        # A word on the head's memory is of use while it is fresh, right before a submission.
        self._quick = replace(self._caller, seconds=_MEMORY_SECONDS)

    @property
    def capabilities(self) -> Capabilities:
        """Asks the head since when it remembers. Raises `CallError` or `RayError` where it does not answer."""
        if self._durable:
            return Capabilities(client_name=ClientName(), look_up=Lookup(_SETTLING))
        memory = memory_of(self._quick.send("GET", _HEAD_NODE))
        # Whoever submits must be sure of the name until the request has arrived; by then the memory has grown as much.
        growth = timedelta(seconds=self.request_seconds) + MARGIN if memory else timedelta(0)
        return Capabilities(client_name=ClientName(memory + growth), look_up=Lookup(_SETTLING, memory))

    def submit(self, submission: Submission) -> Submitted:
        body = body_of(submission)
        try:
            answer = self._caller.send("POST", "/api/jobs/", body, may_leave=submission.may_leave)
        except NotSentError as error:
            raise Rejected(f"Ray's dashboard must be reachable: {error}", retriable=True) from error
        existed = submitted_of(answer, submission.name)
        return Submitted(submission.name, self._url(submission.name), existed=existed)

    def look_up(self, submission: Submission) -> Submitted | None:
        match status_of(self._caller.send("GET", _path(submission.name))):
            case NotFound():
                return None
            case Unknown(message):
                raise RayError(message)
            case _:
                return Submitted(submission.name, self._url(submission.name), existed=True)

    def status(self, handle: str) -> JobStatus:
        return status_of(self._caller.send("GET", _path(handle)))

    def cancel(self, handle: str) -> None:
        answer = self._caller.send("POST", f"{_path(handle)}/stop")
        if is_absent(answer):
            return
        if answer.status != 200 or not isinstance(answer.body, dict):
            raise RayError(f"Ray did not stop {handle}: {_shown(answer)}")
        # `stopped: false` is also the answer for a job that waits for its supervisor: it would start later.
        if not answer.body.get("stopped") and isinstance(self.status(handle), Active):
            raise RayError(f"Ray can't stop {handle} yet, since its supervisor has not started; ask again")

    def _url(self, handle: str) -> str:
        return f"{self._address}/#/jobs/{quote(handle, safe='')}"


def _path(handle: str) -> str:
    return f"/api/jobs/{quote(handle, safe='')}"


def body_of(submission: Submission) -> dict[str, Any]:
    """The body of `POST /api/jobs/`. Raises `Rejected`."""
    request = submission.request
    if not isinstance(request, dict) or not isinstance(request.get("entrypoint"), str):
        raise Rejected("a request to Ray must be a dict with `entrypoint`, a command line")
    if "submission_id" in request or "job_id" in request:
        raise Rejected(
            "a request to Ray must have no submission_id: it is what finds the job again, and Reattach chooses it"
        )
    # For people: whose job it is. Ray takes metadata of strings alone.
    metadata = {
        "reattach.dev/taskrun": f"{submission.namespace}/{submission.taskrun}",
        "reattach.dev/key": submission.key,
        **(request.get("metadata") or {}),
    }
    return {**request, "metadata": metadata, "submission_id": submission.name}


def submitted_of(answer: HttpResponse, submission_id: str) -> bool:
    """Whether the job existed before this submission.

    Ray answers a known id with 500 and a traceback inside a traceback, which ends in a sentence. Raises `Rejected`, or `RayError` where it can't
    be known.
    """
    if answer.status == 200 and isinstance(answer.body, dict) and answer.body.get("submission_id") == submission_id:
        return False
    if answer.status >= 400 and submission_id in answer.text and _CONFLICT in answer.text:
        return True
    if answer.status in _REFUSED:
        raise Rejected(f"Ray refuses the job: {_shown(answer)}")
    if answer.status == 429:
        raise Rejected(f"Ray refuses the job for now: {_shown(answer)}", retriable=True)
    raise RayError(f"Ray's answer does not tell whether it made the job: {_shown(answer)}")


def status_of(answer: HttpResponse) -> JobStatus:
    """What `GET /api/jobs/ID` says. The result of a job that succeeded is `{"submissionId": …}`: Ray keeps no other."""
    body = answer.body
    if is_absent(answer):
        return NotFound(_shown(answer))
    if answer.status != 200 or not isinstance(body, dict):
        return Unknown(_shown(answer))
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
    """Whether Ray says that it has no such job. Another server at this address, or a proxy before it, may answer 404 as well; the sentence is Ray's."""
    return answer.status == 404 and "does not exist" in answer.text


def memory_of(answer: HttpResponse) -> timedelta:
    """For how long the head has remembered jobs: since its node started, by its own clock. 0 where it does not say.

    Raises `RayError`: it can't be told now. 404 is the answer of a Ray that knows no such question.
    """
    if not answer.is_success and answer.status != 404:
        raise RayError(f"Ray does not say since when it remembers: {_shown(answer)}")
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
    """Of a traceback, its last line says what is wrong."""
    return _lines(text)[-1][:400]


def _ends_of(text: str) -> str:
    """Of a job's message, the first line says what happened; traceback or logs follow, and end in why."""
    lines = _lines(text)
    return lines[0][:400] if len(lines) == 1 else f"{lines[0][:250]} … {lines[-1][:250]}"


def _lines(text: str) -> list[str]:
    """At least one; without those that are blank or a dot."""
    return [line.strip() for line in text.splitlines() if line.strip(" .")] or [""]
