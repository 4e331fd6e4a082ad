"""External jobs of a fake state API, decided by the real pure functions, for unit tests."""

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any
from urllib.parse import unquote

import httpx
import msgspec

from fakepod import a_problem
from reattach.api import messages
from reattach.api.names import HEADER_REQUEST_ID, HEADER_SESSION
from reattach.api.objects import ObjectMeta
from reattach.api.state import SealPurpose
from reattach.api.taskrun import Attempt, AttemptPurpose, Resolution, SubmissionPolicy
from reattach.state import operations
from reattach.state.cancellation import request_cancellation
from reattach.state.codec import DurableState as StoredState
from reattach.state.errors import RequestRejectedError
from reattach.state.intents import intend
from reattach.state.job_operations import get_job, list_jobs, record_handle, record_outcome
from reattach.state.job_record import JobRecord, to_job
from reattach.state.owner import Owner, OwnerSpec, OwnerStatus


class FakeJobs:
    """External jobs as the state API decides about them.

    owner: the fields of the TaskRun that the state API reads.
    attempt, purpose: those of each session that opens the state from now on.
    """

    refusals = RequestRejectedError

    def __init__(self, clock: Callable[[], datetime]) -> None:
        self.clock = clock
        self.owner = Owner(metadata=ObjectMeta(name="load", namespace="demo", uid="u-1"))
        self.attempt = 2
        self.purpose = AttemptPurpose.RUN
        self.sessions: dict[str, tuple[int, AttemptPurpose]] = {}
        self.state = StoredState()

    def rules(self, **submission: Any) -> None:
        """Set `spec.submission`."""
        self._change_spec(submission=SubmissionPolicy(**submission))

    def resolve(self, action: str, handle: str | None = None, key: str = "load", generation: int = 1) -> None:
        """Append a resolution, as a user does."""
        resolution = Resolution("SubmissionUnknown", action, key, generation, handle)
        self._change_spec(resolutions=(*self.owner.spec.resolutions, resolution))

    def next_attempt(self, *, end: str = "Reported", charged_to: str = "disruption") -> None:
        """Record the end of the current attempt, and start the next one."""
        cause = "Application" if charged_to == "application" else "Disruption"
        ended = Attempt(number=self.attempt, end=end, cause=cause, charged_to=charged_to)
        attempts = (*self.owner.status.attempts, ended)
        status: OwnerStatus = msgspec.structs.replace(self.owner.status, attempts=attempts)
        self.owner = msgspec.structs.replace(self.owner, status=status)
        self.attempt += 1

    def begin_cleanup(self, *, end: str | None = "Reported") -> None:
        """Seal the state, and start a cleanup attempt, as the operator does at the end of the run.

        `end`: the end of the attempt before it; None if that is not recorded yet.
        """
        self.state = operations.seal(self.state, self.attempt, SealPurpose.END)
        self.purpose = AttemptPurpose.CLEANUP
        if end is None:
            self.attempt += 1
        else:
            self.next_attempt(end=end)

    def record_end(self, number: int, end: str = "Reported") -> None:
        """Record the end of an attempt."""
        attempts = (*self.owner.status.attempts, Attempt(number=number, end=end))
        status: OwnerStatus = msgspec.structs.replace(self.owner.status, attempts=attempts)
        self.owner = msgspec.structs.replace(self.owner, status=status)

    def record(self, key: str = "load", generation: int = 1) -> JobRecord:
        return self.state.jobs[key, generation]

    def change(self, key: str = "load", generation: int = 1, **fields: Any) -> None:
        """Change a job, as another client does."""
        changed = msgspec.structs.replace(self.record(key, generation), **fields)
        self.state = msgspec.structs.replace(self.state, jobs={**self.state.jobs, changed.name: changed})

    def has_open(self) -> bool:
        return any(job.is_open and (job.handle is None or not job.detached) for job in self.state.jobs.values())

    def open(self, request: httpx.Request) -> None:
        self.sessions.setdefault(request.headers[HEADER_SESSION], (self.attempt, self.purpose))
        self.state, _ = operations.open_state(self.state, self._writer(request), self.clock())

    def respond(self, request: httpx.Request, path: str) -> httpx.Response:
        if self.state.epoch is None:  # a test with only a client does not open the state
            self.open(request)
        try:
            with _restored_if_refused(self):
                return self._dispatch(request, path)
        except RequestRejectedError as refused:
            status = 404 if refused.code == "job-not-found" else 409
            return a_problem(400 if refused.code == "invalid" else status, refused.code, refused.detail)

    def _dispatch(self, request: httpx.Request, path: str) -> httpx.Response:
        writer, parts = self._writer(request), [unquote(part) for part in path.split("/")[3:]]
        match request.method, parts:
            case "GET", []:
                items = tuple(to_job(record) for record in list_jobs(self.state, writer))
                return _json_response(messages.JobList(items=items))
            case "GET", [key]:
                number = request.url.params.get("generation")
                return _json_response(to_job(get_job(self.state, writer, key, int(number) if number else None)))
            case "POST", [key, "intent"]:
                wanted = msgspec.json.decode(request.content, type=messages.IntentRequest)
                self.state, intent = intend(
                    self.state,
                    writer,
                    key,
                    wanted,
                    owner=self.owner,
                    now=self.clock(),
                    request=operations.OperationRequest(
                        request.headers[HEADER_REQUEST_ID], hashlib.sha256(request.content).hexdigest()
                    ),
                )
                response = messages.IntentResponse(
                    decision=intent.decision,
                    job=to_job(intent.job),
                    unresolved=intent.unresolved,
                    on_unknown=self.owner.spec.submission.on_unknown,
                    on_not_found=self.owner.spec.submission.on_not_found,
                    server_time=self.clock(),
                )
                return _json_response(response)
            case "POST", [key, "cancellation"]:
                cancelling = msgspec.json.decode(request.content, type=messages.CancellationRequest)
                self.state, cancelled = request_cancellation(
                    self.state, writer, key, cancelling, owner=self.owner, now=self.clock()
                )
                return _json_response(
                    messages.CancellationResponse(
                        job=to_job(cancelled.job),
                        unresolved=cancelled.unresolved,
                        may_resolve=cancelled.may_resolve,
                        server_time=self.clock(),
                    )
                )
            case "PUT", [key, "handle"]:
                handle = msgspec.json.decode(request.content, type=messages.HandleRequest)
                self.state, recorded = record_handle(self.state, writer, key, handle, self.clock())
                if recorded.refused is not None:
                    return a_problem(409, recorded.refused.code, recorded.refused.detail)
                return httpx.Response(204)
            case "PUT", [key, "outcome"]:
                outcome = msgspec.json.decode(request.content, type=messages.OutcomeRequest)
                count = len(self.owner.resolutions_for(key, outcome.generation))
                self.state, _ = record_outcome(self.state, writer, key, outcome, self.clock(), resolution_count=count)
                return httpx.Response(204)
            case _:
                return a_problem(405, "method-not-allowed")

    def _writer(self, request: httpx.Request) -> operations.Session:
        session = request.headers[HEADER_SESSION]
        attempt, purpose = self.sessions.get(session, (self.attempt, self.purpose))
        return operations.Session(attempt, f"pod-{attempt}", session, purpose)

    def _change_spec(self, **changes: Any) -> None:
        spec: OwnerSpec = msgspec.structs.replace(self.owner.spec, **changes)
        self.owner = msgspec.structs.replace(self.owner, spec=spec)


def _json_response(message: msgspec.Struct) -> httpx.Response:
    return httpx.Response(200, content=msgspec.json.encode(message), headers={"Content-Type": "application/json"})


@contextlib.contextmanager
def _restored_if_refused(jobs: FakeJobs) -> Iterator[None]:
    """Restore the state if the call is refused."""
    before = jobs.state
    try:
        yield
    except RequestRejectedError:
        jobs.state = before
        raise
