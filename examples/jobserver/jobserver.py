"""A small outside system that runs jobs, for the examples and tests: what Spark, Slurm or a cloud batch service is in earnest.

    python jobserver.py --port 8000 --database jobs.sqlite

    POST /jobs               {"seconds": 10, "rows": 4211, "label": "demo", "fails": false, "payload": …}, all optional
                             201 {"id": "job-3f9a0c21", "status": "RUNNING", …}
    GET  /jobs/{id}          200 {"id": …, "label": …, "status": "RUNNING" | "SUCCEEDED" | "FAILED" | "CANCELLED",
                                  "rows_written": 4211 (once it succeeded), "submitted_at": …, "seconds_left": … (while it runs)}
    POST /jobs/{id}/cancel   200, the same; a job that is over stays as it is
    GET  /stats              200 {"submissions": 1, "by_label": {"demo": 1}}
    GET  /healthz            200

A job "runs" by the clock: it is over when its seconds have passed since it was submitted. Jobs are kept in SQLite, so they go on, and are
known, whatever happens to this process. Each POST /jobs is a new job: this server knows nothing of retries, which is the point.
"""

import argparse
import json
import secrets
import sqlite3
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aiohttp import web

SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY,
    label TEXT NOT NULL,
    payload TEXT NOT NULL,
    rows INTEGER NOT NULL,
    fails INTEGER NOT NULL,
    submitted REAL NOT NULL,
    ends REAL NOT NULL,
    cancelled REAL
)
"""


class Jobs:
    """The jobs in one SQLite file; times are seconds since 1970."""

    def __init__(self, path: Path) -> None:
        self._database = sqlite3.connect(path, isolation_level=None)
        self._database.row_factory = sqlite3.Row
        self._database.execute(SCHEMA)

    def submit(
        self,
        now: float,
        *,
        seconds: float = 10,
        rows: int = 4211,
        label: str = "",
        fails: bool = False,
        payload: Any = None,
    ) -> str:
        """Start a job; its id."""
        job_id = f"job-{secrets.token_hex(4)}"
        self._database.execute(
            "INSERT INTO jobs VALUES (?, ?, ?, ?, ?, ?, ?, NULL)",
            (job_id, label, json.dumps(payload), rows, fails, now, now + seconds),
        )
        return job_id

    def cancel(self, job_id: str, now: float) -> None:
        """Stop a job that is running; leave one that is over, or unknown."""
        self._database.execute(
            "UPDATE jobs SET cancelled = ? WHERE id = ? AND cancelled IS NULL AND ends > ?", (now, job_id, now)
        )

    def status(self, job_id: str, now: float) -> dict[str, Any] | None:
        """What is known of a job; None if it is unknown."""
        job = self._database.execute("SELECT * FROM jobs WHERE id = ?", (job_id,)).fetchone()
        if job is None:
            return None
        if job["cancelled"] is not None:
            status = "CANCELLED"
        elif now < job["ends"]:
            status = "RUNNING"
        else:
            status = "FAILED" if job["fails"] else "SUCCEEDED"
        known = {
            "id": job["id"],
            "label": job["label"],
            "payload": json.loads(job["payload"]),
            "status": status,
            "rows_written": job["rows"] if status == "SUCCEEDED" else None,
            "submitted_at": datetime.fromtimestamp(job["submitted"], UTC).isoformat(),
            "seconds_left": round(max(0.0, job["ends"] - now), 1) if status == "RUNNING" else None,
        }
        return {name: value for name, value in known.items() if value is not None}

    def stats(self) -> dict[str, Any]:
        """How many jobs were ever submitted, in all and by label."""
        by_label = dict(self._database.execute("SELECT label, count(*) FROM jobs GROUP BY label").fetchall())
        return {"submissions": sum(by_label.values()), "by_label": by_label}

    def close(self) -> None:
        self._database.close()


JOBS = web.AppKey("jobs", Jobs)
TYPES: dict[str, tuple[type, ...]] = {
    "seconds": (int, float),
    "rows": (int,),
    "label": (str,),
    "fails": (bool,),
    "payload": (object,),
}


async def post_job(request: web.Request) -> web.Response:
    jobs = request.app[JOBS]
    try:
        given = await request.json() if request.can_read_body else {}
    except json.JSONDecodeError as error:
        raise web.HTTPBadRequest(text=f"the body must be JSON: {error}\n") from error
    if not isinstance(given, dict):
        raise web.HTTPBadRequest(text="the body must be a JSON object\n")
    wrong = [name for name, value in given.items() if not isinstance(value, TYPES.get(name, ()))]
    if wrong:
        raise web.HTTPBadRequest(
            text=f"unknown, or of the wrong type: {', '.join(wrong)}; known are {', '.join(TYPES)}\n"
        )
    job_id = jobs.submit(time.time(), **given)
    print(f"submitted {job_id} (label {given.get('label', '')!r})", flush=True)
    return web.json_response(jobs.status(job_id, time.time()), status=201)


async def get_job(request: web.Request) -> web.Response:
    return _answer(request)


async def cancel_job(request: web.Request) -> web.Response:
    request.app[JOBS].cancel(request.match_info["id"], time.time())
    return _answer(request)


async def get_stats(request: web.Request) -> web.Response:
    return web.json_response(request.app[JOBS].stats())


async def get_health(_request: web.Request) -> web.Response:
    return web.Response()


def _answer(request: web.Request) -> web.Response:
    job_id = request.match_info["id"]
    status = request.app[JOBS].status(job_id, time.time())
    if status is None:
        raise web.HTTPNotFound(text=f"no job {job_id}\n")
    return web.json_response(status)


def build_application(database: Path) -> web.Application:
    """The server over one SQLite file."""
    application = web.Application()
    application[JOBS] = Jobs(database)
    application.add_routes(
        [
            web.post("/jobs", post_job),
            web.get("/jobs/{id}", get_job),
            web.post("/jobs/{id}/cancel", cancel_job),
            web.get("/stats", get_stats),
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
    given = parser.parse_args()
    web.run_app(build_application(given.database), host=given.host, port=given.port, access_log=None)


if __name__ == "__main__":
    main()
