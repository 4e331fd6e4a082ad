"""A small external system that runs jobs, for the examples and tests, in place of Spark or Slurm.

    python jobserver.py --port 8000 --database jobs.sqlite --mode lagging-lookup --seconds 5

    POST /jobs               {"seconds": 10, "rows": 4211, "label": "demo", "fails": false,
                              "payload": …, "name": "…", "tag": "…", "cancel_seconds": 0},
                             all optional; header Idempotency-Key, optional
                             201 {"id": "job-3f9a0c21", "status": "RUNNING", …};
                             the mode adds other responses
    GET  /jobs?tag=…         200 {"jobs": [{"id": …, …}]}, in modes with a lookup; 405 in the others
    GET  /jobs/{id}          200 {"id": …, "label": …,
                                  "status": "RUNNING" | "SUCCEEDED" | "FAILED" | "CANCELLED",
                                  "rows_written": 4211 (once it succeeded), "submitted_at": …,
                                  "cancel_requested_at": … (once it was),
                                  "seconds_left": … (while it runs)}
    POST /jobs/{id}/cancel   200, the same; a job that is over does not change. A job with
                             "cancel_seconds" ignores it for so long, with null for ever. Meanwhile
                             it is RUNNING, and may end by itself
    GET  /stats              200 {"submissions": 1, "by_label": {"demo": 1}}, all jobs ever made
    GET  /running            200 {"running": 1, "by_label": {"demo": 1}}, jobs that run now
    GET  /counts             200 {"asked": 2, "made": 1,
                                  "by_token": {…: {"asked": 2, "made": 1}}, "by_request": {…}}:
                             the number of submissions and of the jobs made from them. The token is
                             the name, tag or Idempotency-Key, also if the mode ignores it. The
                             request is the digest of the body without name and tag. If `made` is 2,
                             there is a duplicate
    GET  /faults             200 {"faults": [...]}, those in force
    POST /faults             {"kind": "error", "on": ["submit"], "times": 3, "seconds": 60,
                              "status": 500, "delay": 2}: see `Fault`
    DELETE /faults           204, removes all faults
    GET  /healthz            200

The clock decides when a job is over: when its seconds have passed since the submission. Jobs are
kept in SQLite, so they survive a restart of this process.

`--mode` says what the system does about a repeated submission; `--seconds` is the N of its line:

    nothing             each POST makes a job, and there is no lookup. The default, because most
                        systems are like this
    name                "name" is unique: a second job of that name gets
                        409 {"error": …, "id": "job-3f9a0c21"}
    forgetting-name     the same, until the job is forgotten with its name, N seconds after its end
    token               a repeated Idempotency-Key gets 200 with its job; with another request: 422
    expiring-token      the same, for N seconds after the first use of the key; then the key is new
    lookup              jobs are found by their tag, at once
    lagging-lookup      jobs are found by their tag, N seconds after their submission
    forgetting-lookup   jobs are found by their tag, until N seconds after their end. Then they are
                        unknown, also by their id
    while-open          "name" is unique, a repeated Idempotency-Key gets its job, and jobs are
                        found by their tag, but only while the job runs. The job stays known by its
                        id, and the same submission makes a second job

`--cancel-seconds` is the default of "cancel_seconds", with every mode: 0, or `inf` for ever.
"""

import argparse
import asyncio
import dataclasses
import hashlib
import json
import math
import secrets
import sqlite3
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler

SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY,
    label TEXT NOT NULL,
    payload TEXT NOT NULL,
    rows INTEGER NOT NULL,
    fails INTEGER NOT NULL,
    submitted REAL NOT NULL,
    ends REAL NOT NULL,
    cancel_seconds REAL NOT NULL,
    cancel_requested REAL,
    cancelled REAL,
    name TEXT,
    tag TEXT,
    forgotten INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS jobs_by_name ON jobs (name);
CREATE INDEX IF NOT EXISTS jobs_by_tag ON jobs (tag);
CREATE TABLE IF NOT EXISTS keys (key TEXT PRIMARY KEY, used REAL NOT NULL, request TEXT NOT NULL, job TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS submissions (token TEXT, request TEXT NOT NULL, job TEXT);
"""


@dataclass(frozen=True)
class Mode:
    """The reaction of an external system to repeated submissions; several may apply.

    All times are in seconds, and None turns the feature off. `key_seconds`: how long an
    Idempotency-Key is honored, `math.inf`: for ever. `lag_seconds`: how long after its submission a
    job is found by its tag. `forget_seconds`: how long after its end a job and its name are
    forgotten. `while_open`: names, keys and tags are free again when their job ends.
    `cancel_seconds`: how long a job ignores its cancellation, `math.inf`: for ever.
    """

    unique_names: bool = False
    key_seconds: float | None = None
    lag_seconds: float | None = None
    forget_seconds: float = math.inf
    while_open: bool = False
    cancel_seconds: float = 0.0


def mode_of(name: str, seconds: float) -> Mode:
    """Return the mode of this name; `seconds` is the N of its line above."""
    return modes_of(seconds)[name]


def modes_of(seconds: float) -> dict[str, Mode]:
    """Return all modes by their names; see `mode_of`."""
    return {
        "nothing": Mode(),
        "name": Mode(unique_names=True),
        "forgetting-name": Mode(unique_names=True, forget_seconds=seconds),
        "token": Mode(key_seconds=math.inf),
        "expiring-token": Mode(key_seconds=seconds),
        "lookup": Mode(lag_seconds=0),
        "lagging-lookup": Mode(lag_seconds=seconds),
        "forgetting-lookup": Mode(lag_seconds=0, forget_seconds=seconds),
        "while-open": Mode(unique_names=True, key_seconds=math.inf, lag_seconds=0, while_open=True),
    }


MODES = tuple(modes_of(0))


class NameTakenError(Exception):
    """A job of this name exists; the message is its id."""


class KeyReusedError(Exception):
    """The Idempotency-Key was used with another request before."""


@dataclass(frozen=True)
class JobRequest:
    """One submission. Times are in seconds. `cancel_seconds`: -1 is the default of the mode."""

    seconds: float = 10
    rows: int = 4211
    label: str = ""
    fails: bool = False
    payload: Any = None
    name: str | None = None
    tag: str | None = None
    key: str | None = None
    cancel_seconds: float | None = -1.0

    @property
    def token(self) -> str | None:
        """Return the text that is equal for two submissions of the same job."""
        return self.key or self.name or self.tag

    @property
    def request(self) -> str:
        """Return a digest of the work, without name, tag and key."""
        work = (self.seconds, self.rows, self.label, self.fails, self.payload)
        return hashlib.sha256(json.dumps(work, sort_keys=True).encode()).hexdigest()[:16]


class Jobs:
    """The jobs in one SQLite file, or in memory (path None); times are seconds since 1970."""

    def __init__(self, path: Path | None, mode: Mode | None = None) -> None:
        # Tests read it from another thread than the server's; SQLite serializes the access.
        self._database = sqlite3.connect(path or ":memory:", isolation_level=None, check_same_thread=False)
        self._database.row_factory = sqlite3.Row
        self._database.executescript(SCHEMA)
        self._mode = mode or Mode()

    def submit(self, request: JobRequest, now: float) -> tuple[str, bool]:
        """Return the id of the job, and whether it was made for this submission.

        Raises:
            NameTakenError: names are unique, and this one is taken.
            KeyReusedError: the key belongs to another request.
        """
        job_id, made = None, False
        try:
            job_id = self._made_before(request, now)
            if job_id is None:
                job_id, made = self._make(request, now), True
        finally:
            record = (request.token, request.request, job_id if made else None)
            self._database.execute("INSERT INTO submissions VALUES (?, ?, ?)", record)
        return job_id, made

    def _made_before(self, request: JobRequest, now: float) -> str | None:
        if self._mode.unique_names and request.name is not None:
            found = self._database.execute("SELECT * FROM jobs WHERE name = ?", (request.name,)).fetchall()
            if known := [job["id"] for job in found if self._is_taken(job, now)]:
                raise NameTakenError(known[0])
        if self._mode.key_seconds is not None and request.key is not None:
            used = self._database.execute("SELECT * FROM keys WHERE key = ?", (request.key,)).fetchone()
            if used is not None and now < used["used"] + self._mode.key_seconds and self._holds(used["job"], now):
                if used["request"] != request.request:
                    raise KeyReusedError
                return str(used["job"])
        return None

    def _make(self, request: JobRequest, now: float) -> str:
        job_id = f"job-{secrets.token_hex(4)}"
        ignored = math.inf if request.cancel_seconds is None else request.cancel_seconds
        ignored = self._mode.cancel_seconds if ignored < 0 else ignored
        work = (request.label, json.dumps(request.payload), request.rows, request.fails, now, now + request.seconds)
        self._database.execute(
            "INSERT INTO jobs VALUES (?, ?, ?, ?, ?, ?, ?, ?, NULL, NULL, ?, ?, 0)",
            (job_id, *work, ignored, request.name, request.tag),
        )
        if request.key is not None:
            used = (request.key, now, request.request, job_id)
            self._database.execute("INSERT OR REPLACE INTO keys VALUES (?, ?, ?, ?)", used)
        return job_id

    @property
    def can_look_up(self) -> bool:
        return self._mode.lag_seconds is not None

    def find(self, tag: str, now: float) -> list[dict[str, Any]]:
        """Return the jobs with this tag that are already visible."""
        visible = now - (self._mode.lag_seconds or 0)
        query = "SELECT * FROM jobs WHERE tag = ? AND submitted <= ? ORDER BY submitted"
        found = self._database.execute(query, (tag, visible)).fetchall()
        return [_to_json(job, now) for job in found if self._is_taken(job, now)]

    def cancel(self, job_id: str, now: float) -> None:
        """Request the end of a running job; do nothing for a job that is over or unknown.

        The job is cancelled once it has ignored the first request for its `cancel_seconds`, unless
        it ends before.
        """
        self._database.execute(
            "UPDATE jobs SET cancel_requested = ? WHERE id = ? AND cancel_requested IS NULL AND ends > ?",
            (now, job_id, now),
        )
        self._database.execute(
            "UPDATE jobs SET cancelled = cancel_requested + cancel_seconds"
            " WHERE id = ? AND cancel_requested + cancel_seconds < ends",
            (job_id,),
        )

    def forget(self, job_id: str) -> None:
        """Forget the job, but keep the counts."""
        self._database.execute("UPDATE jobs SET forgotten = 1 WHERE id = ?", (job_id,))

    def status(self, job_id: str, now: float) -> dict[str, Any] | None:
        """Return the job; None if it is unknown."""
        job = self._database.execute("SELECT * FROM jobs WHERE id = ?", (job_id,)).fetchone()
        return None if job is None or not self._is_known(job, now) else _to_json(job, now)

    def _is_known(self, job: sqlite3.Row, now: float) -> bool:
        return bool(not job["forgotten"] and now < _end_of(job) + self._mode.forget_seconds)

    def _is_taken(self, job: sqlite3.Row, now: float) -> bool:
        """Return whether the name, the key and the tag of the job still belong to it."""
        return self._is_known(job, now) and not (self._mode.while_open and now >= _end_of(job))

    def _holds(self, job_id: str, now: float) -> bool:
        """Return whether a used key still belongs to its job, also if the job is forgotten."""
        job = self._database.execute("SELECT * FROM jobs WHERE id = ?", (job_id,)).fetchone()
        return not (self._mode.while_open and now >= _end_of(job))

    def stats(self) -> dict[str, Any]:
        """Return how many jobs were ever submitted, in all and by label."""
        by_label = dict(self._database.execute("SELECT label, count(*) FROM jobs GROUP BY label").fetchall())
        return {"submissions": sum(by_label.values()), "by_label": by_label}

    def running(self, now: float) -> dict[str, Any]:
        """Return how many jobs run, in all and by label; a forgotten job may be one."""
        query = "SELECT label, count(*) FROM jobs WHERE coalesce(cancelled, ends) > ? GROUP BY label"
        by_label = dict(self._database.execute(query, (now,)).fetchall())
        return {"running": sum(by_label.values()), "by_label": by_label}

    def counts(self) -> dict[str, Any]:
        """Return how often each job was submitted, and how many jobs were made from that."""

        def by(column: str) -> dict[str, dict[str, int]]:
            columns = f"{column}, count(*), count(job)"
            query = f"SELECT {columns} FROM submissions WHERE {column} IS NOT NULL GROUP BY {column}"  # noqa: S608 -- no input
            return {of: {"asked": submitted, "made": made} for of, submitted, made in self._database.execute(query)}

        submitted, made = self._database.execute("SELECT count(*), count(job) FROM submissions").fetchone()
        return {"asked": submitted, "made": made, "by_token": by("token"), "by_request": by("request")}

    def close(self) -> None:
        self._database.close()


def _end_of(job: sqlite3.Row) -> float:
    return float(job["ends"] if job["cancelled"] is None else job["cancelled"])


def _time_of(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat()


def _to_json(job: sqlite3.Row, now: float) -> dict[str, Any]:
    if now < _end_of(job):
        status = "RUNNING"
    elif job["cancelled"] is not None:
        status = "CANCELLED"
    else:
        status = "FAILED" if job["fails"] else "SUCCEEDED"
    known = {
        "id": job["id"],
        "label": job["label"],
        "name": job["name"],
        "tag": job["tag"],
        "payload": json.loads(job["payload"]),
        "status": status,
        "rows_written": job["rows"] if status == "SUCCEEDED" else None,
        "submitted_at": _time_of(job["submitted"]),
        "cancel_requested_at": _time_of(job["cancel_requested"]),
        "seconds_left": round(max(0.0, job["ends"] - now), 1) if status == "RUNNING" else None,
    }
    return {name: value for name, value in known.items() if value is not None}


OPERATIONS = ("submit", "look-up", "status", "cancel")
FAULT_KINDS = ("down", "error", "slow", "lose", "half")


@dataclass(frozen=True)
class Fault:
    """An injected fault of a request.

        down    the server does nothing, and cuts the connection
        error   the server does nothing, and responds with `status`
        slow    the server handles the request after `delay` seconds
        lose    the server handles the request, and cuts the connection instead of a response
        half    the server handles the request, and responds with `status`

    `on`: the affected requests, see `OPERATIONS`. `times`: how many of them, all if it is None.
    `seconds`: how long from now; if it is None, until `DELETE /faults`.
    """

    kind: str
    on: tuple[str, ...] = OPERATIONS
    times: int | None = None
    seconds: float | None = None
    status: int = 500
    delay: float = 1.0

    def __post_init__(self) -> None:
        """Reject an unknown kind or operation with a ValueError."""
        object.__setattr__(self, "on", tuple(self.on))
        if self.kind not in FAULT_KINDS or not set(self.on) <= set(OPERATIONS):
            raise ValueError(f"kind must be of {', '.join(FAULT_KINDS)}; on, of {', '.join(OPERATIONS)}")


@dataclass
class Faults:
    """Faults in force, of which the oldest one that matches a request applies to it."""

    clock: Callable[[], float] = time.time
    _planned: list[tuple[Fault, float]] = field(default_factory=list)

    def add(self, fault: Fault) -> None:
        self._planned.append((fault, math.inf if fault.seconds is None else self.clock() + fault.seconds))

    def clear(self) -> None:
        self._planned.clear()

    @property
    def in_force(self) -> list[Fault]:
        return [fault for fault, until in self._planned if self.clock() < until]

    def next_fault(self, operation: str) -> Fault | None:
        """Return the fault for this request, and count the request."""
        now = self.clock()
        self._planned = [(fault, until) for fault, until in self._planned if now < until]
        for index, (fault, until) in enumerate(self._planned):
            if operation not in fault.on:
                continue
            if fault.times is None:
                return fault
            left = dataclasses.replace(fault, times=fault.times - 1)
            self._planned[index : index + 1] = [(left, until)] if left.times else []
            return fault
        return None


JOBS = web.AppKey("jobs", Jobs)
FAULTS = web.AppKey("faults", Faults)
CLOCK: web.AppKey[Callable[[], float]] = web.AppKey("clock")
PAUSE: web.AppKey[Callable[[float], Awaitable[None]]] = web.AppKey("pause")
TYPES: dict[str, tuple[type, ...]] = {
    "seconds": (int, float),
    "rows": (int,),
    "label": (str,),
    "fails": (bool,),
    "payload": (object,),
    "name": (str,),
    "tag": (str,),
    "cancel_seconds": (int, float, type(None)),
}
OPERATION_OF = {
    ("POST", "/jobs"): "submit",
    ("GET", "/jobs"): "look-up",
    ("GET", "/jobs/{id}"): "status",
    ("POST", "/jobs/{id}/cancel"): "cancel",
}


@web.middleware
async def go_wrong(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Apply the fault that matches this request."""
    resource = request.match_info.route.resource
    operation = OPERATION_OF.get((request.method, resource.canonical if resource is not None else ""))
    fault = None if operation is None else request.app[FAULTS].next_fault(operation)
    if fault is None:
        return await handler(request)
    if fault.kind == "slow":
        await request.read()  # handle the request even if the client has closed the connection by then
        await request.app[PAUSE](fault.delay)
        return await handler(request)
    if fault.kind in {"lose", "half"}:
        await handler(request)
    if fault.kind in {"error", "half"}:
        return web.Response(status=fault.status, text="something went wrong\n")
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


async def post_job(request: web.Request) -> web.Response:
    given = await _object_of(request)
    wrong = [name for name, value in given.items() if not isinstance(value, TYPES.get(name, ()))]
    if wrong:
        raise web.HTTPBadRequest(
            text=f"unknown, or of the wrong type: {', '.join(wrong)}; known are {', '.join(TYPES)}\n"
        )
    jobs, now = request.app[JOBS], request.app[CLOCK]()
    try:
        job_id, made = jobs.submit(JobRequest(**given, key=request.headers.get("Idempotency-Key")), now)
    except NameTakenError as taken:
        existing = {"error": f"the name {given['name']!r} is taken", "id": str(taken)}
        return web.json_response(existing, status=409)
    except KeyReusedError:
        return web.json_response({"error": "the Idempotency-Key came with another request before"}, status=422)
    if made:
        print(f"submitted {job_id} (label {given.get('label', '')!r})", flush=True)
    return web.json_response(jobs.status(job_id, now) or {"id": job_id}, status=201 if made else 200)


async def find_jobs(request: web.Request) -> web.Response:
    jobs = request.app[JOBS]
    if not jobs.can_look_up:
        raise web.HTTPMethodNotAllowed("GET", ["POST"], text="jobs can't be looked up here\n")
    if "tag" not in request.query:
        raise web.HTTPBadRequest(text="say which: /jobs?tag=…\n")
    return web.json_response({"jobs": jobs.find(request.query["tag"], request.app[CLOCK]())})


async def get_job(request: web.Request) -> web.Response:
    return _respond_with_job(request)


async def cancel_job(request: web.Request) -> web.Response:
    request.app[JOBS].cancel(request.match_info["id"], request.app[CLOCK]())
    return _respond_with_job(request)


async def get_stats(request: web.Request) -> web.Response:
    return web.json_response(request.app[JOBS].stats())


async def get_running(request: web.Request) -> web.Response:
    return web.json_response(request.app[JOBS].running(request.app[CLOCK]()))


async def get_counts(request: web.Request) -> web.Response:
    return web.json_response(request.app[JOBS].counts())


async def get_faults(request: web.Request) -> web.Response:
    return web.json_response({"faults": [dataclasses.asdict(fault) for fault in request.app[FAULTS].in_force]})


async def post_fault(request: web.Request) -> web.Response:
    try:
        request.app[FAULTS].add(Fault(**await _object_of(request)))
    except (TypeError, ValueError) as error:
        raise web.HTTPBadRequest(text=f"{error}\n") from error
    return web.Response(status=204)


async def delete_faults(request: web.Request) -> web.Response:
    request.app[FAULTS].clear()
    return web.Response(status=204)


async def get_health(_request: web.Request) -> web.Response:
    return web.Response()


async def _object_of(request: web.Request) -> dict[str, Any]:
    try:
        given = await request.json() if request.can_read_body else {}
    except json.JSONDecodeError as error:
        raise web.HTTPBadRequest(text=f"the body must be JSON: {error}\n") from error
    if not isinstance(given, dict):
        raise web.HTTPBadRequest(text="the body must be a JSON object\n")
    return given


def _respond_with_job(request: web.Request) -> web.Response:
    job_id = request.match_info["id"]
    status = request.app[JOBS].status(job_id, request.app[CLOCK]())
    if status is None:
        raise web.HTTPNotFound(text=f"no job {job_id}\n")
    return web.json_response(status)


def build_application(
    database: Path | None,
    mode: Mode | None = None,
    clock: Callable[[], float] = time.time,
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> web.Application:
    """Return the server over one SQLite file, or in memory (None).

    `clock`: returns the seconds since 1970. `pause`: waits before a slow response. If you run it in
    your own process, the jobs are at `application[JOBS]` and the faults at `application[FAULTS]`.
    """
    application = web.Application(middlewares=[go_wrong])
    application[JOBS] = Jobs(database, mode)
    application[FAULTS] = Faults(clock)
    application[CLOCK] = clock
    application[PAUSE] = pause
    application.add_routes(
        [
            web.post("/jobs", post_job),
            web.get("/jobs", find_jobs),
            web.get("/jobs/{id}", get_job),
            web.post("/jobs/{id}/cancel", cancel_job),
            web.get("/stats", get_stats),
            web.get("/running", get_running),
            web.get("/counts", get_counts),
            web.get("/faults", get_faults),
            web.post("/faults", post_fault),
            web.delete("/faults", delete_faults),
            web.get("/healthz", get_health),
        ]
    )

    async def close(_application: web.Application) -> None:
        application[JOBS].close()

    application.on_cleanup.append(close)
    return application


def main() -> None:
    parser = argparse.ArgumentParser(description="Runs jobs by the clock.")
    parser.add_argument("--host", default="0.0.0.0")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--database", type=Path, default=Path("jobs.sqlite"))
    parser.add_argument("--mode", choices=MODES, default="nothing", help="what it does about repeated submissions")
    parser.add_argument("--seconds", type=float, default=60, help="how long the mode's keys, lag or memory last")
    parser.add_argument("--cancel-seconds", type=float, default=0, help="how long jobs ignore a cancellation, or inf")
    given = parser.parse_args()
    mode = dataclasses.replace(mode_of(given.mode, given.seconds), cancel_seconds=given.cancel_seconds)
    application = build_application(given.database, mode)
    web.run_app(application, host=given.host, port=given.port, access_log=None)


if __name__ == "__main__":
    main()
