"""The state API's part in external jobs, for unit tests of the SDK: its own pure functions decide, all around them is played here."""

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
from reattach.api.taskrun import Attempt, Resolution, SubmissionPolicy
from reattach.state import operations
from reattach.state.codec import DurableState as StoredState
from reattach.state.errors import RequestRejectedError
from reattach.state.intents import intend
from reattach.state.job_operations import get_job, list_jobs, record_handle, record_outcome
from reattach.state.job_record import JobRecord, to_job
from reattach.state.owner import Owner, OwnerSpec, OwnerStatus


class FakeJobs:
    """External jobs as the state API decides about them. `owner` is what it reads of the TaskRun; whoever opens the state is a process of
    `attempt`, and stays one.
    """

    refusals = RequestRejectedError

    def __init__(self, clock: Callable[[], datetime]) -> None:
        self.clock = clock
        self.owner = Owner(metadata=ObjectMeta(name="load", namespace="demo", uid="u-1"))
        self.attempt = 2
        self.sessions: dict[str, int] = {}
        self.state = StoredState()

    def rules(self, **submission: Any) -> None:
        """`spec.submission`."""
        self._spec(submission=SubmissionPolicy(**submission))

    def resolve(self, action: str, handle: str | None = None, key: str = "load", generation: int = 1) -> None:
        """A person's answer."""
        answer = Resolution("SubmissionUnknown", action, key, generation, handle)
        self._spec(resolutions=(*self.owner.spec.resolutions, answer))

    def next_attempt(self, *, end: str = "Reported", charged_to: str = "disruption") -> None:
        """The operator saw the end of the current attempt, and the pod of the next one asks from now on."""
        ended = Attempt(number=self.attempt, end=end, charged_to=charged_to)
        attempts = (*self.owner.status.attempts, ended)
        status: OwnerStatus = msgspec.structs.replace(self.owner.status, attempts=attempts)
        self.owner = msgspec.structs.replace(self.owner, status=status)
        self.attempt += 1

    def record(self, key: str = "load", generation: int = 1) -> JobRecord:
        return self.state.jobs[key, generation]

    def change(self, key: str = "load", generation: int = 1, **fields: Any) -> None:
        """What others did to a job meanwhile."""
        changed = msgspec.structs.replace(self.record(key, generation), **fields)
        self.state = msgspec.structs.replace(self.state, jobs={**self.state.jobs, changed.name: changed})

    def has_open(self) -> bool:
        return any(job.is_open and (job.handle is None or not job.detached) for job in self.state.jobs.values())

    def open(self, request: httpx.Request) -> None:
        self.sessions.setdefault(request.headers[HEADER_SESSION], self.attempt)
        self.state, _ = operations.open_state(self.state, self._writer(request), self.clock())

    def answer(self, request: httpx.Request, path: str) -> httpx.Response:
        if self.state.epoch is None:  # a test that has no more than a client
            self.open(request)
        try:
            with _undone(self):
                return self._answer(request, path)
        except RequestRejectedError as refused:
            status = 404 if refused.code == "job-not-found" else 409
            return a_problem(400 if refused.code == "invalid" else status, refused.code, refused.detail)

    def _answer(self, request: httpx.Request, path: str) -> httpx.Response:
        writer, parts = self._writer(request), [unquote(part) for part in path.split("/")[3:]]
        match request.method, parts:
            case "GET", []:
                items = tuple(to_job(record) for record in list_jobs(self.state, writer))
                return _answered(messages.JobList(items=items))
            case "GET", [key]:
                number = request.url.params.get("generation")
                return _answered(to_job(get_job(self.state, writer, key, int(number) if number else None)))
            case "POST", [key, "intent"]:
                asked = msgspec.json.decode(request.content, type=messages.IntentRequest)
                self.state, answer = intend(
                    self.state,
                    writer,
                    key,
                    asked,
                    owner=self.owner,
                    now=self.clock(),
                    request=operations.OperationRequest(
                        request.headers[HEADER_REQUEST_ID], hashlib.sha256(request.content).hexdigest()
                    ),
                )
                response = messages.IntentResponse(
                    decision=answer.decision,
                    job=to_job(answer.job),
                    unresolved=answer.unresolved,
                    on_unknown=self.owner.spec.submission.on_unknown,
                    on_not_found=self.owner.spec.submission.on_not_found,
                    server_time=self.clock(),
                )
                return _answered(response)
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
        attempt = self.sessions.get(session, self.attempt)
        return operations.Session(attempt, f"pod-{attempt}", session)

    def _spec(self, **changes: Any) -> None:
        spec: OwnerSpec = msgspec.structs.replace(self.owner.spec, **changes)
        self.owner = msgspec.structs.replace(self.owner, spec=spec)


def _answered(message: msgspec.Struct) -> httpx.Response:
    return httpx.Response(200, content=msgspec.json.encode(message), headers={"Content-Type": "application/json"})


@contextlib.contextmanager
def _undone(jobs: FakeJobs) -> Iterator[None]:
    """A refused call changes nothing."""
    before = jobs.state
    try:
        yield
    except RequestRejectedError:
        jobs.state = before
        raise
