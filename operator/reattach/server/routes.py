"""The routes of the state API: from HTTP to an operation on the state and back."""

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
    CompleteRequest,
    Entry,
    EntryList,
    HandleRequest,
    IntentRequest,
    IntentResponse,
    JobList,
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
from reattach.state import DurableState, RequestRejectedError, Store
from reattach.state.codec import StateEntry
from reattach.state.intents import IntentResult, intend
from reattach.state.job_operations import JobEvent, RecordResult, get_job, list_jobs, record_handle, record_outcome
from reattach.state.job_record import JobRecord, to_job
from reattach.state.operations import (
    Clear,
    Delete,
    OperationRequest,
    Session,
    Set,
    Step,
    change,
    complete,
    get,
    list_records,
    once,
    step_of,
    steps_of,
)
from reattach.state.owner import Owner
from reattach.state.values import check_key, from_json, stored_result_of

CALLER = web.RequestKey("caller", PodIdentity)
audit = logging.getLogger("reattach.server.audit")

_KEY_PATH = "/v1/state/{key:[\\s\\S]*}"
_JOB_PATH = "/v1/jobs/{key:[\\s\\S]*}"
_ID = re.compile(r"[-._A-Za-z0-9]+")
_NUMBER = re.compile(r"[0-9]{1,18}")

Message = TypeVar("Message", bound=msgspec.Struct)
Parsed = TypeVar("Parsed")


class Routes:
    """Handlers over one `Store`. The middleware has put the authenticated `CALLER` into each request."""

    def __init__(
        self,
        store: Store,
        bodies: BodyReader | None = None,
        *,
        default_retention_seconds: int,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        count: Callable[[JobEvent], None] = lambda _: None,
    ) -> None:
        self._store = store
        self._bodies = bodies or BodyReader()
        self._default_retention_seconds = default_retention_seconds
        self._clock = clock
        self._count = count

    def table(self) -> list[web.RouteDef]:
        """All routes."""
        return [
            web.post("/v1/open", self.open),
            web.get("/v1/state", self.list, allow_head=False),
            web.post("/v1/state", self.batch),
            web.delete("/v1/state", self.clear),
            web.get(_KEY_PATH, self.get, allow_head=False),
            web.put(_KEY_PATH, self.set),
            web.delete(_KEY_PATH, self.delete),
            web.post("/v1/complete", self.complete),
            web.get("/v1/jobs", self.list_jobs, allow_head=False),
            web.post(f"{_JOB_PATH}/intent", self.intend),
            web.put(f"{_JOB_PATH}/handle", self.record_handle),
            web.put(f"{_JOB_PATH}/outcome", self.record_outcome),
            web.get(_JOB_PATH, self.get_job, allow_head=False),
        ]

    async def open(self, request: web.Request) -> web.Response:
        """Begin a session."""
        query_of(request)
        caller, message = request[CALLER], message_of(await self._bodies.read(request), OpenRequest)
        writer = writer_of(caller, checked_id("session", message.session, SESSION_CHARACTERS_MAX))
        now = self._clock()
        first = await self._store.open(caller.run, writer, now, can_cleanup=message.can_cleanup)
        write_audit(caller, "open", None, f"session={writer.session}")
        return to_response(
            OpenResponse(
                namespace=caller.run.namespace,
                taskrun=caller.run.name,
                taskrun_uid=caller.run.uid,
                attempt=caller.attempt,
                first=first,
                server_time=now,
            )
        )

    async def get(self, request: web.Request) -> web.Response:
        """One key."""
        query_of(request)
        writer, key = session_of(request), key_of(request)
        return to_response(entry_of(get(await self._store.read(request[CALLER].run), writer, key)))

    async def list(self, request: web.Request) -> web.Response:
        """Keys in order."""
        writer, query = session_of(request), query_of(request, "prefix", "limit", "offset")
        limit, offset = number_of(query, "limit", least=1), number_of(query, "offset", least=0)
        state = await self._store.read(request[CALLER].run)
        records, total = list_records(state, writer, prefix=query.get("prefix", ""), limit=limit, offset=offset or 0)
        return to_response(EntryList(items=tuple(entry_of(record) for record in records), total=total))

    async def set(self, request: web.Request) -> web.Response:
        """Store one key."""
        query_of(request)
        key = key_of(request)

        def step(message: SetRequest) -> Step:
            operation = Operation(
                op="set",
                key=key,
                value=message.value,
                if_absent=message.if_absent,
                if_version=message.if_version,
                retention_seconds=message.retention_seconds,
            )
            return step_of(operation, self._default_retention_seconds)

        def answer(state: DurableState, _results: Sequence[BatchResult]) -> SetResponse:
            record = state.records[key]
            return SetResponse(version=record.version, expires_at=record.expires_at)

        parsed, asked = await self._asked(request, SetRequest, step)
        return await self._change(request, asked, [parsed], answer)

    async def delete(self, request: web.Request) -> web.Response:
        """Remove one key."""
        version = number_of(query_of(request, "ifVersion"), "ifVersion", least=1)
        steps = [Delete(key_of(request), version)]
        return await self._change(request, request_of(request), steps, lambda _, results: results[0])

    async def clear(self, request: web.Request) -> web.Response:
        """Remove all keys."""
        query_of(request)
        return await self._change(request, request_of(request), [Clear()], lambda _, results: results[0])

    async def batch(self, request: web.Request) -> web.Response:
        """Several changes, all or none."""
        query_of(request)
        steps, asked = await self._asked(
            request,
            BatchRequest,
            lambda message: steps_of(message.operations, self._default_retention_seconds),
        )
        return await self._change(request, asked, steps, lambda _, results: BatchResponse(results=tuple(results)))

    async def complete(self, request: web.Request) -> web.Response:
        """Record that the task is done."""
        query_of(request)
        caller, writer = request[CALLER], session_of(request)
        result, asked = await self._asked(
            request,
            CompleteRequest,
            lambda message: None if message.result is msgspec.UNSET else stored_result_of(message.result),
        )
        now = self._clock()
        await self._store.change(
            caller.run,
            lambda state: once(state, writer, asked, lambda now_is: (complete(now_is, writer, result, now), b"{}")),
        )
        write_audit(caller, "complete", asked, f"bytes={len(result or b'')}")
        return web.Response(status=204)

    async def list_jobs(self, request: web.Request) -> web.Response:
        """All external jobs."""
        query_of(request)
        writer = session_of(request)
        records = list_jobs(await self._store.read(request[CALLER].run), writer)
        return to_response(JobList(items=tuple(to_job(record) for record in records)))

    async def get_job(self, request: web.Request) -> web.Response:
        """One external job."""
        writer, key = session_of(request), key_of(request)
        generation = number_of(query_of(request, "generation"), "generation", least=1)
        record = get_job(await self._store.read(request[CALLER].run), writer, key, generation)
        return to_response(to_job(record))

    async def intend(self, request: web.Request) -> web.Response:
        """Store that an external job is about to be submitted, or tell what is known of it."""
        query_of(request)
        caller, writer, key = request[CALLER], session_of(request), job_key_of(request)
        message, asked = await self._asked(request, IntentRequest, lambda message: message)
        now = self._clock()

        def act(state: DurableState, owner: Owner) -> tuple[DurableState, tuple[IntentResult, Owner]]:
            after, answer = intend(state, writer, key, message, owner=owner, now=now, request=asked)
            return after, (answer, owner)

        answer, owner = await self._store.change_with_owner(caller.run, act)
        self._note(caller, "intent", asked, answer.counted, f"decision={answer.decision} {described_job(answer.job)}")
        rules = owner.spec.submission
        return to_response(
            IntentResponse(
                decision=answer.decision,
                job=to_job(answer.job),
                unresolved=answer.unresolved,
                on_unknown=rules.on_unknown,
                on_not_found=rules.on_not_found,
                server_time=now,
            )
        )

    async def record_handle(self, request: web.Request) -> web.Response:
        """Record what the other side calls an external job."""
        query_of(request)
        caller, writer, key = request[CALLER], session_of(request), job_key_of(request)
        message, asked = await self._asked(request, HandleRequest, lambda message: message)
        now = self._clock()
        try:
            recorded = await self._store.change(
                caller.run, lambda state: record_handle(state, writer, key, message, now)
            )
        except RequestRejectedError as refused:
            # Where it can't be kept, the log is the one place that names a job that may run over there.
            what = f"given={message.handle!a} key={key!a} generation={message.generation} refused={refused.code}"
            write_audit(caller, "handle", asked, what)
            raise
        what = f"given={message.handle!a} {described_job(recorded.job)}"
        self._note(caller, "handle", asked, recorded.counted, what)
        if recorded.refused is not None:
            raise recorded.refused
        return web.Response(status=204)

    async def record_outcome(self, request: web.Request) -> web.Response:
        """Record how an external job stands."""
        query_of(request)
        caller, writer, key = request[CALLER], session_of(request), job_key_of(request)
        message, asked = await self._asked(request, OutcomeRequest, lambda message: message)
        now = self._clock()
        done: list[RecordResult] = []

        def act(state: DurableState, answers: int = 0) -> tuple[DurableState, bytes]:
            done.clear()  # of a try that lost its race
            after, recorded = record_outcome(state, writer, key, message, now, answers=answers)
            done.append(recorded)
            return after, b"{}"

        if message.hold:

            def hold(state: DurableState, owner: Owner) -> tuple[DurableState, bytes]:
                answers = len(owner.answers_for(key, message.generation))
                return once(state, writer, asked, lambda now_is: act(now_is, answers))

            await self._store.change_with_owner(caller.run, hold)
        else:
            await self._store.change(caller.run, lambda state: once(state, writer, asked, act))
        for recorded in done:  # none for an answer given again
            self._note(caller, "outcome", asked, recorded.counted, described_job(recorded.job))
        return web.Response(status=204)

    def _note(
        self, caller: PodIdentity, verb: str, asked: OperationRequest | None, counted: JobEvent | None, what: str
    ) -> None:
        if counted is not None:
            self._count(counted)
        write_audit(caller, verb, asked, what)

    async def _asked(
        self, request: web.Request, kind: type[Message], parse: Callable[[Message], Parsed]
    ) -> tuple[Parsed, OperationRequest | None]:
        """Return the parsed message of the body, and the request id. A large body is parsed off the event loop."""
        body = await self._bodies.read(request)
        parsed = await self._bodies.parse(body, lambda text: parse(message_of(text, kind)))
        return parsed, request_of(request, body)

    async def _change(
        self,
        request: web.Request,
        asked: OperationRequest | None,
        steps: Sequence[Step],
        answer_of: Callable[[DurableState, Sequence[BatchResult]], msgspec.Struct],
    ) -> web.Response:
        caller, writer = request[CALLER], session_of(request)
        now = self._clock()
        done: list[BatchResult] = []

        def act(state: DurableState) -> tuple[DurableState, bytes]:
            after, results = change(state, writer, steps, now)
            done.extend(results)
            return after, msgspec.json.encode(answer_of(after, results))

        def act_once(state: DurableState) -> tuple[DurableState, bytes]:
            done.clear()  # of a try that lost its race
            return once(state, writer, asked, act)

        answer = await self._store.change(caller.run, act_once)
        for step, result in zip(steps, done, strict=False):  # nothing is done for an answer given again
            write_audit(caller, "change", asked, described(step, result))
        return web.Response(body=answer, content_type="application/json", headers={"Cache-Control": "no-store"})


def session_of(request: web.Request) -> Session:
    """Who calls, from the token and the session header."""
    return writer_of(
        request[CALLER], checked_id(HEADER_SESSION, request.headers.get(HEADER_SESSION), SESSION_CHARACTERS_MAX)
    )


def writer_of(caller: PodIdentity, session: str) -> Session:
    """The caller as the state knows it."""
    return Session(attempt=caller.attempt, pod_uid=caller.pod_uid, session=session)


def request_of(request: web.Request, body: bytes = b"") -> OperationRequest | None:
    """The request id, if there is one, and a digest of what is asked."""
    if (given := request.headers.get(HEADER_REQUEST_ID)) is None:
        return None
    asked = b"\0".join((request.method.encode(), request.raw_path.encode(), body))
    digest = hashlib.sha256(asked).hexdigest()[:16]
    return OperationRequest(id=checked_id(HEADER_REQUEST_ID, given, REQUEST_ID_CHARACTERS_MAX), digest=digest)


def key_of(request: web.Request) -> str:
    """The key in the path, from the path as it was sent: so that `%2F` and `/` are the same and nothing is decoded twice."""
    return decoded_key(request.rel_url.raw_path.split("/", 3)[3])


def job_key_of(request: web.Request) -> str:
    """The key in a path that goes on after it: all but the last segment, so that a key may hold `/` as it is."""
    return decoded_key(request.rel_url.raw_path.split("/", 3)[3].rpartition("/")[0])


def decoded_key(encoded: str) -> str:
    """A key as it is sent in a path."""
    try:
        return check_key(unquote_to_bytes(encoded).decode())
    except UnicodeDecodeError:
        raise RequestRejectedError(ProblemCode.KEY_INVALID, "a key in the path must be percent-encoded UTF-8") from None


def query_of(request: web.Request, *allowed: str) -> dict[str, str]:
    """The query, each parameter at most once."""
    query = dict(request.query)
    if set(query) - set(allowed) or len(query) != len(request.query):
        names = ", ".join(allowed) if allowed else "no parameters"
        raise RequestRejectedError(ProblemCode.INVALID, f"the query of this route takes {names}, each at most once")
    return query


def number_of(query: dict[str, str], name: str, *, least: int) -> int | None:
    """A whole number in the query."""
    if (text := query.get(name)) is None:
        return None
    if not _NUMBER.fullmatch(text) or int(text) < least:
        raise RequestRejectedError(ProblemCode.INVALID, f"{name} must be a whole number of at least {least}")
    return int(text)


def checked_id(what: str, text: str | None, longest: int) -> str:
    """A session or request id."""
    if text is None or not _ID.fullmatch(text) or len(text) > longest:
        raise RequestRejectedError(
            ProblemCode.INVALID, f"{what} must have 1 to {longest} letters, digits, '-', '_' or '.'"
        )
    return text


def message_of(body: bytes, kind: type[Message]) -> Message:
    """The body as a message."""
    try:
        return msgspec.convert(from_json(body), kind)
    except msgspec.ValidationError as error:
        raise RequestRejectedError(ProblemCode.INVALID, f"the body must be a {kind.__name__}: {error}") from None


def entry_of(record: StateEntry) -> Entry:
    """A record as it is sent."""
    return Entry(**msgspec.structs.asdict(record))


def to_response(message: Any) -> web.Response:
    """A message as an HTTP answer."""
    body = msgspec.json.encode(message)
    return web.Response(body=body, content_type="application/json", headers={"Cache-Control": "no-store"})


def described(step: Step, result: BatchResult) -> str:
    """A step and what it did, for the audit log: never the value."""
    match step:
        case Set():
            return f"set key={step.key!a} version={result.version} bytes={len(step.text)}"
        case Delete():
            return f"delete key={step.key!a} deleted={result.deleted}"
        case Clear():
            return f"clear deleted={result.deleted}"


def described_job(job: JobRecord) -> str:
    """An external job, for the audit log: its handle too, so that the log alone tells where a job runs."""
    held = f" holds={job.holds}" if job.held else ""
    return (
        f"key={job.key!a} generation={job.generation} adapter={job.adapter!a} state={job.state} token={job.token}"
        f" handle={job.handle!a} strays={len(job.strays)}{held}"
    )


def write_audit(caller: PodIdentity, verb: str, asked: OperationRequest | None, what: str) -> None:
    """One line for one change: who wrote what."""
    audit.info(
        "%s namespace=%s taskrun=%s uid=%s attempt=%d pod=%s pod_uid=%s request=%s %s",
        verb,
        caller.run.namespace,
        caller.run.name,
        caller.run.uid,
        caller.attempt,
        caller.pod_name,
        caller.pod_uid,
        asked.id if asked else "-",
        what,
    )
