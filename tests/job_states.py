"""States with external jobs, for tests of what is decided about them. Times are seconds after `START`."""

import hashlib
import json
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Self

import msgspec

from reattach.api.messages import (
    BATCH_OPERATIONS_MAX,
    JOBS_MAX,
    CancellationRequest,
    Decision,
    EndKind,
    EndRequest,
    Grounds,
    HandleRequest,
    IntentRequest,
    OutcomeRequest,
    ProblemCode,
)
from reattach.api.state import JobCounts, JobState, SealPurpose
from reattach.api.taskrun import AttemptPurpose
from reattach.state.cancellation import CancellationResult, request_cancellation
from reattach.state.codec import DurableState, from_data, to_data
from reattach.state.errors import RequestRejectedError
from reattach.state.intents import IntentResult, intend
from reattach.state.job_operations import STRAYS_MAX, RecordResult, record_handle, record_outcome
from reattach.state.job_record import JobRecord
from reattach.state.operations import (
    FENCED_SESSIONS_REMEMBERED,
    REQUESTS_REMEMBERED,
    Delete,
    OperationRequest,
    Session,
    Set,
    change,
    complete,
    idempotent,
    open_state,
    seal,
)
from reattach.state.owner import Owner
from reattach.state.reported_end import parse_end, record_end

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
UID = "0c2b7d7e-1111-2222-3333-444444444444"
KEY = "load"
LARGEST_KEY = "\U0001d4b3" * 125
"""Each character of it is 4 bytes as JSON, and no printable one has more."""


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def session_of(attempt: int, session: str = "s", purpose: AttemptPurpose = AttemptPurpose.RUN) -> Session:
    return Session(attempt=attempt, pod_uid=f"pod-{attempt}", id=f"{session}-{attempt}", purpose=purpose)


@dataclass
class Run:
    """A TaskRun and its state. `by` says who calls from now on; every change goes through the ConfigMap's format."""

    state: DurableState = field(default_factory=DurableState)
    owner: dict[str, Any] = field(default_factory=lambda: {"metadata": {"uid": UID}, "spec": {}, "status": {}})
    session: Session = field(default_factory=lambda: session_of(1))
    submitter: str = "process-1"
    now: float = 0
    asked: int = 0

    @classmethod
    def opened(cls, **spec: Any) -> Self:
        run = cls()
        run.owner["spec"] = spec
        return run.by(1)

    def by(self, attempt: int, session: str = "s", *, process: str | None = None, opened: bool = True) -> Self:
        """Another process: of the attempt, in a session, that opens the state."""
        self.session = session_of(attempt, session)
        self.submitter = process or f"process-{session}-{attempt}"
        if opened:
            self._save(open_state(self.state, self.session, at(self.now))[0])
        return self

    def cleaning_up(self, attempt: int = 2) -> Self:
        """The process of a cleanup attempt, which opens the state after its seal."""
        self.sealed(attempt - 1, SealPurpose.END)
        self.session = session_of(attempt, "cleanup", AttemptPurpose.CLEANUP)
        self.submitter = f"process-cleanup-{attempt}"
        self._save(open_state(self.state, self.session, at(self.now))[0])
        return self

    def later(self, seconds: float) -> Self:
        self.now += seconds
        return self

    def with_attempt(self, number: int, **ended: Any) -> Self:
        """What the operator knows of an attempt: `end`, `chargedTo`."""
        attempts = [known for known in self.owner["status"].get("attempts", []) if known["number"] != number]
        entry = {"number": number, "podUID": f"pod-{number}", **ended}
        self.owner["status"]["attempts"] = [*attempts, entry]
        return self

    def with_answer(self, action: str, generation: int = 1, **more: Any) -> Self:
        """A person's resolution."""
        answer = {"held": "SubmissionUnknown", "key": KEY, "generation": generation, "action": action, **more}
        self.owner["spec"].setdefault("resolutions", []).append(answer)
        return self

    def sealed(self, through: int, purpose: SealPurpose) -> Self:
        self._save(seal(self.state, through, purpose))
        return self

    def intend(self, *, key: str = KEY, request: str | None = None, body: str = "", **asked: Any) -> IntentResult:
        fields = {"submitter": self.submitter, "adapter": "http", "digest": "d", **asked}
        digest = hashlib.sha256(f"{body}{sorted(asked.items())}".encode()).hexdigest()[:16]
        given = None if request is None else OperationRequest(id=request, digest=digest)
        owner = msgspec.convert(self.owner, Owner)
        state, answer = intend(
            self.state, self.session, key, IntentRequest(**fields), owner=owner, now=at(self.now), request=given
        )
        self._save(state)
        return answer

    def handle(self, handle: str = "job-1", *, generation: int = 1, **asked: Any) -> RecordResult:
        request = HandleRequest(generation=generation, submitter=self.submitter, handle=handle, **asked)
        state, recorded = record_handle(self.state, self.session, KEY, request, at(self.now))
        self._save(state)
        return recorded

    def outcome(self, state: str, *, generation: int = 1, **asked: Any) -> RecordResult:
        request = OutcomeRequest(generation=generation, state=state, **asked)  # type: ignore[arg-type]
        resolution_count = len(msgspec.convert(self.owner, Owner).resolutions_for(KEY, generation))
        after, recorded = record_outcome(
            self.state, self.session, KEY, request, at(self.now), resolution_count=resolution_count
        )
        self._save(after)
        return recorded

    def cancel(self, *, generation: int = 1) -> CancellationResult:
        request, owner = CancellationRequest(generation=generation), msgspec.convert(self.owner, Owner)
        after, result = request_cancellation(self.state, self.session, KEY, request, owner=owner, now=at(self.now))
        self._save(after)
        return result

    def held(self, generation: int = 1) -> Self:
        record = self.state.jobs[KEY, generation]
        state = "Unknown" if record.handle is None else "NotFound"
        assert self.outcome(state, generation=generation, hold=True).job.held
        return self

    def complete(self) -> None:
        self._save(complete(self.state, self.session, None, at(self.now)))

    def job(self, generation: int = 1) -> JobRecord:
        return self.state.jobs[KEY, generation]

    def counts(self) -> tuple[int, int, int]:
        counts: JobCounts = self.state.counts
        return counts.submissions, counts.reattachments, counts.duplicates_averted

    def copy(self) -> "Run":
        return replace(self, owner=msgspec.json.decode(msgspec.json.encode(self.owner)))

    def _save(self, state: DurableState) -> None:
        assert from_data(to_data(state)) == state
        self.state = state


def code_of(call: Any, *arguments: Any, **more: Any) -> ProblemCode | None:
    """How the call is refused."""
    try:
        answer = call(*arguments, **more)
    except RequestRejectedError as refused:
        return refused.code
    return answer.refused.code if isinstance(answer, RecordResult) and answer.refused else None


def handled(state: DurableState, run: Run, record: JobRecord, handle: str, **more: str) -> DurableState:
    asked = HandleRequest(generation=1, submitter=record.submitters[0].id, handle=handle, **more)  # type: ignore[arg-type]
    return record_handle(state, run.session, record.key, asked, record.intended_at)[0]


def cancelled(state: DurableState, run: Run, record: JobRecord) -> DurableState:
    request, owner = CancellationRequest(generation=1), msgspec.convert(run.owner, Owner)
    return request_cancellation(state, run.session, record.key, request, owner=owner, now=record.intended_at)[0]


def succeeded(state: DurableState, run: Run, record: JobRecord, result: str, message: str = "") -> DurableState:
    asked = OutcomeRequest(generation=1, state="Succeeded", result=result, message=message)
    return record_outcome(state, run.session, record.key, asked, record.intended_at)[0]


def brim(*, key_characters: int = 0) -> DurableState:
    """As much of everything as the state API takes, in records that are costly. Keys are at least so long."""
    session = Session(attempt=99_999, pod_uid="p" * 36, id="s" * 64)
    run = Run.opened()
    now = run.state.epoch.time  # type: ignore[union-attr]
    state = DurableState()
    for number in range(FENCED_SESSIONS_REMEMBERED + 1):
        state, _ = open_state(state, Session(session.attempt, session.pod_uid, f"{number:064d}"), now)
    # The end that an earlier attempt reported stays in the state.
    earlier = Session(session.attempt - 1, session.pod_uid, "e")
    largest = parse_end(EndRequest(kind=EndKind.RETRY_LATER, message='"' * 9000, retry_after_seconds=2**24))
    opened, _ = open_state(DurableState(), earlier, now)
    state = msgspec.structs.replace(state, end=record_end(opened, earlier, largest, now).end)
    state, _ = open_state(state, session, now)
    # Jobs until there is no room for the smallest, each as large as it gets.
    run.state, run.session = state, session
    for key in [f"{number:02}{LARGEST_KEY}" for number in range(JOBS_MAX)] + [
        f"k{number}" for number in range(JOBS_MAX)
    ]:
        if code_of(run.intend, key=key, submitter="p" * 64, digest='"' * 128, adapter='"' * 63) is None:
            record = run.state.jobs[key, 1]
            run.state = handled(run.state, run, record, '"' * 512, url='"' * 512)
            run.state = cancelled(run.state, run, record)
            run.state = succeeded(run.state, run, record, '"' * 2047, message='"' * 256)
            for stray in range(STRAYS_MAX):
                run.state = handled(run.state, run, record, f"{stray}" + '"' * 511)
    state = run.sealed(99_999, SealPurpose.END).state
    # Keys until there is no room for the smallest value.
    number = 0
    for size in (60_000, 10_000, 1_000, 100, 1):
        while True:
            try:
                state, _ = change(
                    state, session, [Set(f"{number}".ljust(key_characters, "k"), b'"' + b"x" * size + b'"', None)], now
                )
            except RequestRejectedError:
                break
            number += 1
    # Remembered answers, and the completion.
    steps = [Delete(f"absent-{number}") for number in range(BATCH_OPERATIONS_MAX)]
    for number in range(REQUESTS_REMEMBERED):

        def act(now_is: DurableState) -> tuple[DurableState, bytes]:
            after, results = change(now_is, session, steps, now)
            return after, msgspec.json.encode(results)

        state, _ = idempotent(state, session, OperationRequest(f"{number:064d}", "0" * 16), act)
    run.state = state
    run.complete()
    completion = run.state.completion
    assert completion is not None
    result = json.dumps('"' * 2047)
    return msgspec.structs.replace(run.state, completion=msgspec.structs.replace(completion, result=result))


__all__ = ["Decision", "Grounds", "JobState", "ProblemCode", "Run", "SealPurpose", "at", "brim", "code_of"]
