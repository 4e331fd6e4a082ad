"""Handlers of the state API: each maps an HTTP request to an operation on the state."""

import hashlib
import logging
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar
from urllib.parse import unquote_to_bytes

import msgspec
from aiohttp import web

from reattach.api.messages import (
    REQUEST_ID_CHARACTERS_MAX,
    SESSION_CHARACTERS_MAX,
    BatchRequest,
    BatchResponse,
    BatchResult,
    CancellationRequest,
    CancellationResponse,
    CompleteRequest,
    EndRequest,
    Entry,
    EntryList,
    HandleRequest,
    IntentRequest,
    IntentResponse,
    JobList,
    JobOwner,
    OpenRequest,
    OpenResponse,
    Operation,
    OutcomeRequest,
    ProblemCode,
    SetRequest,
    SetResponse,
)
from reattach.api.names import HEADER_REQUEST_ID, HEADER_SESSION
from reattach.server.authentication import PodIdentity
from reattach.server.bodies import BodyReader
from reattach.server.config import Rate
from reattach.server.rate_limit import RateLimit
from reattach.state import DurableState, RequestRejectedError, Store
from reattach.state.cancellation import CancellationResult, request_cancellation
from reattach.state.codec import StateEntry
from reattach.state.intents import IntentResult, intend
from reattach.state.job_operations import JobEvent, RecordResult, get_job, list_jobs, record_handle, record_outcome
from reattach.state.job_record import JobRecord, ended_between, to_job
from reattach.state.operations import (
    Clear,
    Delete,
    OperationRequest,
    Session,
    Set,
    Step,
    change,
    complete,
    find_response,
    get,
    idempotent,
    list_records,
    parse_operation,
    parse_operations,
    with_response,
)
from reattach.state.owner import Owner
from reattach.state.reported_end import parse_end, record_end
from reattach.state.values import check_key, from_json, stored_result_of

CALLER = web.RequestKey("caller", PodIdentity)
audit = logging.getLogger("reattach.server.audit")

_KEY_PATH = "/v1/state/{key:[\\s\\S]*}"
_JOB_PATH = "/v1/jobs/{key:[\\s\\S]*}"
_ID = re.compile(r"[-._A-Za-z0-9]+")
_NUMBER = re.compile(r"[0-9]{1,18}")

UNCHANGED_LINES_RATE = Rate(4096, 256 * 1024)
"""Bytes of audit lines of one namespace about calls that changed nothing, except for handles."""
UNCHANGED_HANDLES_RATE = Rate(512, 16 * 1024)
"""Bytes of audit lines of one TaskRun about handles that were stored before or can't be stored.

Other tasks of the namespace can't use it up, because such a line may be the only trace of a job.
"""
LINE_CHARACTERS = 256
"""Length of an audit line without the description of the change, roughly."""
BATCH_CHARACTERS_MAX = 4096
"""Length of the audit lines of one batch after which the rest is only counted.

A batch may set one long key 100 times, and store only the last value.
"""

Message = TypeVar("Message", bound=msgspec.Struct)
Parsed = TypeVar("Parsed")


class Routes:
    """Handlers over one `Store`.

    The middleware puts the authenticated `CALLER` into each request. Handles, cancellations,
    outcomes, completions and ends are written by `evidence`. It is the same store with a reserve of
    bytes. `count_end` receives each job when this replica has stored its end.
    """

    def __init__(
        self,
        store: Store,
        bodies: BodyReader | None = None,
        *,
        evidence: Store | None = None,
        default_retention_seconds: int,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        count: Callable[[JobEvent], None] = lambda _: None,
        count_end: Callable[[JobRecord], None] = lambda _: None,
    ) -> None:
        self._store = store
        self._evidence = evidence or store
        self._unchanged_lines = RateLimit(UNCHANGED_LINES_RATE)
        self._unchanged_handles = RateLimit(UNCHANGED_HANDLES_RATE)
        self._bodies = bodies or BodyReader()
        self._default_retention_seconds = default_retention_seconds
        self._clock = clock
        self._count = count
        self._count_end = count_end

    def table(self) -> list[web.RouteDef]:
        """Return all routes."""
        return [
            web.post("/v1/open", self.open),
            web.get("/v1/state", self.list, allow_head=False),
            web.post("/v1/state", self.batch),
            web.delete("/v1/state", self.clear),
            web.get(_KEY_PATH, self.get, allow_head=False),
            web.put(_KEY_PATH, self.set),
            web.delete(_KEY_PATH, self.delete),
            web.post("/v1/complete", self.complete),
            web.post("/v1/end", self.end),
            web.get("/v1/jobs", self.list_jobs, allow_head=False),
            web.post(f"{_JOB_PATH}/intent", self.intend),
            web.put(f"{_JOB_PATH}/handle", self.record_handle),
            web.put(f"{_JOB_PATH}/outcome", self.record_outcome),
            web.post(f"{_JOB_PATH}/cancellation", self.request_cancellation),
            web.get(_JOB_PATH, self.get_job, allow_head=False),
        ]

    async def open(self, request: web.Request) -> web.Response:
        """Open the state for a new session."""
        query_of(request)
        caller, message = request[CALLER], message_of(await self._bodies.read(request), OpenRequest)
        session = to_session(caller, checked_id("session", message.session, SESSION_CHARACTERS_MAX))
        now = self._clock()
        first = await self._store.open(
            caller.run,
            session,
            now,
            can_cleanup=message.can_cleanup,
            cleanup_handler=message.cleanup_handler,
        )
        write_audit(caller, "open", None, f"session={session.id}{' purpose=Cleanup' if session.cleans_up else ''}")
        return to_response(
            OpenResponse(
                namespace=caller.run.namespace,
                taskrun=caller.run.name,
                taskrun_uid=caller.run.uid,
                attempt=caller.attempt,
                first=first,
                server_time=now,
                purpose=caller.purpose,
            )
        )

    async def get(self, request: web.Request) -> web.Response:
        """Return one key."""
        query_of(request)
        session, key = session_of(request), key_of(request)
        return to_response(entry_of(get(await self._store.read(request[CALLER].run), session, key)))

    async def list(self, request: web.Request) -> web.Response:
        """Return keys in order."""
        session, query = session_of(request), query_of(request, "prefix", "limit", "offset")
        limit, offset = number_of(query, "limit", least=1), number_of(query, "offset", least=0)
        state = await self._store.read(request[CALLER].run)
        records, total = list_records(state, session, prefix=query.get("prefix", ""), limit=limit, offset=offset or 0)
        return to_response(EntryList(items=tuple(entry_of(record) for record in records), total=total))

    async def set(self, request: web.Request) -> web.Response:
        """Store one key."""
        query_of(request)
        key = key_of(request)

        def step(message: SetRequest) -> Step:
            fields = msgspec.structs.asdict(message)
            return parse_operation(Operation(op="set", key=key, **fields), self._default_retention_seconds)

        def response(state: DurableState, _results: Sequence[BatchResult]) -> SetResponse:
            record = state.records[key]
            return SetResponse(version=record.version, expires_at=record.expires_at)

        parsed, operation = await self._parse(request, SetRequest, step)
        return await self._change(request, operation, [parsed], response)

    async def delete(self, request: web.Request) -> web.Response:
        """Remove one key."""
        version = number_of(query_of(request, "ifVersion"), "ifVersion", least=1)
        steps = [Delete(key_of(request), version)]
        return await self._change(request, operation_of(request), steps, lambda _, results: results[0])

    async def clear(self, request: web.Request) -> web.Response:
        """Remove all keys."""
        query_of(request)
        return await self._change(request, operation_of(request), [Clear()], lambda _, results: results[0])

    async def batch(self, request: web.Request) -> web.Response:
        """Apply several changes, all or none."""
        query_of(request)
        steps, operation = await self._parse(
            request,
            BatchRequest,
            lambda message: parse_operations(message.operations, self._default_retention_seconds),
        )
        return await self._change(request, operation, steps, lambda _, results: BatchResponse(results=tuple(results)))

    async def complete(self, request: web.Request) -> web.Response:
        """Record that the task is done."""
        query_of(request)
        caller, session = request[CALLER], session_of(request)
        result, operation = await self._parse(
            request,
            CompleteRequest,
            lambda message: None if message.result is msgspec.UNSET else stored_result_of(message.result),
        )
        now = self._clock()

        def act(state: DurableState) -> tuple[DurableState, bool]:
            after, _ = idempotent(
                state, session, operation, lambda current: (complete(current, session, result, now), b"{}")
            )
            return after, after != state

        is_changed = await self._evidence.change(caller.run, act)
        self._write_audit(caller, "complete", operation, f"bytes={len(result or b'')}", is_changed=is_changed)
        return web.Response(status=204)

    async def end(self, request: web.Request) -> web.Response:
        """Record how the attempt ends."""
        query_of(request)
        caller, session = request[CALLER], session_of(request)
        message, operation = await self._parse(request, EndRequest, parse_end)
        now = self._clock()

        def act(state: DurableState) -> tuple[DurableState, bool]:
            after, _ = idempotent(
                state, session, operation, lambda current: (record_end(current, session, message, now), b"{}")
            )
            return after, after != state

        is_changed = await self._evidence.change(caller.run, act)
        what = (
            f"kind={message.kind} retryAfterSeconds={message.retry_after_seconds} bytes={len(message.message.encode())}"
        )
        self._write_audit(caller, "end", operation, what, is_changed=is_changed)
        return web.Response(status=204)

    async def list_jobs(self, request: web.Request) -> web.Response:
        """Return all external jobs."""
        query_of(request)
        session = session_of(request)
        records = list_jobs(await self._store.read(request[CALLER].run), session)
        return to_response(JobList(items=tuple(to_job(record) for record in records)))

    async def get_job(self, request: web.Request) -> web.Response:
        """Return one external job."""
        session, key = session_of(request), key_of(request)
        generation = number_of(query_of(request, "generation"), "generation", least=1)
        record = get_job(await self._store.read(request[CALLER].run), session, key, generation)
        return to_response(to_job(record))

    async def intend(self, request: web.Request) -> web.Response:
        """Store the intent to submit an external job, or return the decision about it."""
        query_of(request)
        caller, session, key = request[CALLER], session_of(request), job_key_of(request)
        message, operation = await self._parse(request, IntentRequest, lambda message: message)
        now = self._clock()

        def act(
            state: DurableState, owner: Owner
        ) -> tuple[DurableState, tuple[IntentResult, Owner, bool, Sequence[JobRecord]]]:
            after, result = intend(state, session, key, message, owner=owner, now=now, request=operation)
            return after, (result, owner, after != state, ended_between(state.jobs, after.jobs))

        result, owner, is_changed, ended = await self._store.change_with_owner(caller.run, act)
        self._count_event(result.counted)
        self._count_ends(ended)
        what = f"decision={result.decision} {described_job(result.job)}"
        self._write_audit(caller, "intent", operation, what, is_changed=is_changed)
        rules = owner.spec.submission
        return to_response(
            IntentResponse(
                decision=result.decision,
                job=to_job(result.job),
                unresolved=result.unresolved,
                on_unknown=rules.on_unknown,
                on_not_found=rules.on_not_found,
                server_time=now,
                owner=JobOwner(
                    uid=owner.metadata.uid, kept_because=owner.why_jobs_are_kept(detached=result.job.detached)
                ),
            )
        )

    async def record_handle(self, request: web.Request) -> web.Response:
        """Record the handle of an external job."""
        query_of(request)
        caller, session, key = request[CALLER], session_of(request), job_key_of(request)
        message, operation = await self._parse(request, HandleRequest, lambda message: message)
        now = self._clock()

        def act(state: DurableState) -> tuple[DurableState, tuple[RecordResult, bool]]:
            after, recorded = record_handle(state, session, key, message, now)
            return after, (recorded, after != state)

        try:
            recorded, is_changed = await self._evidence.change(caller.run, act)
        except RequestRejectedError as refused:
            # If the state cannot hold the handle, the audit log is the only record of a job that
            # may be running.
            what = f"given={message.handle!r} key={key!r} generation={message.generation} refused={refused.code}"
            self._write_audit(caller, "handle", operation, what, is_changed=False)
            raise
        self._count_event(recorded.counted)
        what = f"given={message.handle!r} {described_job(recorded.job)}"
        self._write_audit(caller, "handle", operation, what, is_changed=is_changed)
        if recorded.refused is not None:
            raise recorded.refused
        return web.Response(status=204)

    async def record_outcome(self, request: web.Request) -> web.Response:
        """Record the status of an external job."""
        query_of(request)
        caller, session, key = request[CALLER], session_of(request), job_key_of(request)
        message, operation = await self._parse(request, OutcomeRequest, lambda message: message)
        now = self._clock()

        def act(
            state: DurableState, owner: Owner | None = None
        ) -> tuple[DurableState, tuple[RecordResult, bool, Sequence[JobRecord]] | None]:
            if find_response(state, session, operation) is not None:
                return state, None
            count = 0 if owner is None else len(owner.resolutions_for(key, message.generation))
            after, recorded = record_outcome(state, session, key, message, now, resolution_count=count)
            ended = ended_between(state.jobs, after.jobs)
            return with_response(after, operation, b"{}"), (recorded, after != state, ended)

        if message.hold:
            done = await self._evidence.change_with_owner(caller.run, act)
        else:
            done = await self._evidence.change(caller.run, act)
        if done is not None:  # a repeated request records and logs nothing
            recorded, is_changed, ended = done
            self._count_event(recorded.counted)
            self._count_ends(ended)
            self._write_audit(caller, "outcome", operation, described_job(recorded.job), is_changed=is_changed)
        return web.Response(status=204)

    async def request_cancellation(self, request: web.Request) -> web.Response:
        """Record that this attempt cancels an external job."""
        query_of(request)
        caller, session, key = request[CALLER], session_of(request), job_key_of(request)
        message, operation = await self._parse(request, CancellationRequest, lambda message: message)
        now = self._clock()

        def act(state: DurableState, owner: Owner) -> tuple[DurableState, tuple[CancellationResult, bool]]:
            after, result = request_cancellation(state, session, key, message, owner=owner, now=now)
            return after, (result, after != state)

        result, is_changed = await self._evidence.change_with_owner(caller.run, act, adds_finalizer=False)
        self._write_audit(caller, "cancellation", operation, described_job(result.job), is_changed=is_changed)
        return to_response(
            CancellationResponse(
                job=to_job(result.job),
                unresolved=result.unresolved,
                may_resolve=result.may_resolve,
                server_time=now,
            )
        )

    def _count_ends(self, ended: Sequence[JobRecord]) -> None:
        for job in ended:
            self._count_end(job)

    def _count_event(self, counted: JobEvent | None) -> None:
        if counted is not None:
            self._count(counted)

    def _write_audit(
        self, caller: PodIdentity, verb: str, operation: OperationRequest | None, what: str, *, is_changed: bool
    ) -> None:
        """Log one line. Limit the lines about calls that changed nothing."""
        limit, key = self._unchanged_lines, caller.run.namespace
        if verb == "handle":
            limit, key = self._unchanged_handles, caller.run.uid
        if is_changed or not limit.take(key, len(what)):
            write_audit(caller, verb, operation, what)

    async def _parse(
        self, request: web.Request, kind: type[Message], parse: Callable[[Message], Parsed]
    ) -> tuple[Parsed, OperationRequest | None]:
        """Return the parsed message of the body, and the request id.

        A large body is parsed off the event loop.
        """
        body = await self._bodies.read(request)
        parsed = await self._bodies.parse(body, lambda text: parse(message_of(text, kind)))
        return parsed, operation_of(request, body)

    async def _change(
        self,
        request: web.Request,
        operation: OperationRequest | None,
        steps: Sequence[Step],
        response_of: Callable[[DurableState, Sequence[BatchResult]], msgspec.Struct],
    ) -> web.Response:
        caller, session = request[CALLER], session_of(request)
        now = self._clock()

        def act(state: DurableState) -> tuple[DurableState, tuple[bytes, Sequence[BatchResult]]]:
            if (stored := find_response(state, session, operation)) is not None:
                return state, (stored, ())
            after, results = change(state, session, steps, now)
            body = msgspec.json.encode(response_of(after, results))
            return with_response(after, operation, body), (body, results)

        body, results = await self._store.change(caller.run, act)
        written = 0
        for number, (step, result) in enumerate(zip(steps, results, strict=False)):  # a repeated request has none
            if written > BATCH_CHARACTERS_MAX:
                write_audit(caller, "change", operation, f"omitted={len(results) - number}")
                break
            is_changed = isinstance(step, Set) or result.deleted != 0
            what = described(step, result)
            self._write_audit(caller, "change", operation, what, is_changed=is_changed)
            written += LINE_CHARACTERS + len(what)
        return web.Response(body=body, content_type="application/json", headers={"Cache-Control": "no-store"})


def session_of(request: web.Request) -> Session:
    """Return the session of the caller, from the token and the session header."""
    return to_session(
        request[CALLER], checked_id(HEADER_SESSION, request.headers.get(HEADER_SESSION), SESSION_CHARACTERS_MAX)
    )


def to_session(caller: PodIdentity, session_id: str) -> Session:
    """Return the caller as a `Session` of the state."""
    return Session(attempt=caller.attempt, pod_uid=caller.pod_uid, id=session_id, purpose=caller.purpose)


def operation_of(request: web.Request, body: bytes = b"") -> OperationRequest | None:
    """Return the request id with a digest of the request; None without an id."""
    if (given := request.headers.get(HEADER_REQUEST_ID)) is None:
        return None
    content = b"\0".join((request.method.encode(), request.raw_path.encode(), body))
    digest = hashlib.sha256(content).hexdigest()[:16]
    return OperationRequest(id=checked_id(HEADER_REQUEST_ID, given, REQUEST_ID_CHARACTERS_MAX), digest=digest)


def key_of(request: web.Request) -> str:
    """Return the key in the path.

    Use the raw path, so that `%2F` and `/` mean the same and nothing is decoded twice.
    """
    return decoded_key(request.rel_url.raw_path.split("/", 3)[3])


def job_key_of(request: web.Request) -> str:
    """Return the key in a path that ends with another segment.

    The key is all but the last segment, so it may contain `/`.
    """
    return decoded_key(request.rel_url.raw_path.split("/", 3)[3].rpartition("/")[0])


def decoded_key(encoded: str) -> str:
    """Return the key that a path contains percent-encoded."""
    try:
        return check_key(unquote_to_bytes(encoded).decode())
    except UnicodeDecodeError:
        raise RequestRejectedError(ProblemCode.KEY_INVALID, "a key in the path must be percent-encoded UTF-8") from None


def query_of(request: web.Request, *allowed: str) -> dict[str, str]:
    """Return the query. Each parameter may occur at most once."""
    query = dict(request.query)
    if set(query) - set(allowed) or len(query) != len(request.query):
        names = ", ".join(allowed) if allowed else "no parameters"
        raise RequestRejectedError(ProblemCode.INVALID, f"the query of this route takes {names}, each at most once")
    return query


def number_of(query: dict[str, str], name: str, *, least: int) -> int | None:
    """Return a whole number from the query, or None if it is absent."""
    if (text := query.get(name)) is None:
        return None
    if not _NUMBER.fullmatch(text) or int(text) < least:
        raise RequestRejectedError(ProblemCode.INVALID, f"{name} must be a whole number of at least {least}")
    return int(text)


def checked_id(what: str, text: str | None, longest: int) -> str:
    """Return a session or request id after checking it."""
    if text is None or not _ID.fullmatch(text) or len(text) > longest:
        raise RequestRejectedError(
            ProblemCode.INVALID, f"{what} must have 1 to {longest} letters, digits, '-', '_' or '.'"
        )
    return text


def message_of(body: bytes, kind: type[Message]) -> Message:
    """Return the body as a message."""
    try:
        return msgspec.convert(from_json(body), kind)
    except msgspec.ValidationError as error:
        raise RequestRejectedError(ProblemCode.INVALID, f"the body must be a {kind.__name__}: {error}") from None


def entry_of(record: StateEntry) -> Entry:
    """Return a stored key as an `Entry` of the response."""
    return Entry(**msgspec.structs.asdict(record))


def to_response(message: Any) -> web.Response:
    """Return a message as an HTTP response."""
    body = msgspec.json.encode(message)
    return web.Response(body=body, content_type="application/json", headers={"Cache-Control": "no-store"})


def described(step: Step, result: BatchResult) -> str:
    """Describe a step and its effect for the audit log, without the value."""
    match step:
        case Set():
            return f"set key={step.key!r} version={result.version} bytes={len(step.text)}"
        case Delete():
            return f"delete key={step.key!r} deleted={result.deleted}"
        case Clear():
            return f"clear deleted={result.deleted}"


def described_job(job: JobRecord) -> str:
    """Describe an external job for the audit log.

    The line has the handle, so that the log alone shows where a job runs.
    """
    held = f" holds={job.holds}" if job.held else ""
    cancelled = f" cancelRequestedByAttempt={job.cancel_requested_by_attempt}" if job.cancel_requested_at else ""
    return (
        f"key={job.key!r} generation={job.generation} adapter={job.adapter!r} state={job.state} token={job.token}"
        f" handle={job.handle!r} strays={len(job.strays)}{held}{cancelled}"
    )


def write_audit(caller: PodIdentity, verb: str, operation: OperationRequest | None, what: str) -> None:
    """Log one line for one change, with its author."""
    audit.info(
        "%s namespace=%s taskrun=%s uid=%s attempt=%d pod=%s pod_uid=%s request=%s %s",
        verb,
        caller.run.namespace,
        caller.run.name,
        caller.run.uid,
        caller.attempt,
        caller.pod_name,
        caller.pod_uid,
        operation.id if operation else "-",
        what,
    )
