"""Emulated services with the routes that the operators of Databricks and Livy use.

The real services are not involved. The tests emulate Redshift Data with moto.
"""

import contextlib
import json
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from typing_extensions import override


@dataclass
class Job:
    """A job that succeeds after `seconds`, unless it is cancelled before."""

    seconds: float
    started: float = field(default_factory=time.monotonic)
    cancelled: bool = False
    deleted: bool = False
    """Whether the service has forgotten the job. It may still run."""

    @property
    def state(self) -> str:
        if self.cancelled:
            return "cancelled"
        return "succeeded" if time.monotonic() - self.started >= self.seconds else "running"


class Service:
    """Jobs of one emulated service. Ids count from 1."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.by_token: dict[str, int] = {}
        self.lock = threading.Lock()

    def submit(self, seconds: float, token: str | None = None) -> int:
        with self.lock:
            if token is not None and token in self.by_token:
                return self.by_token[token]
            self.jobs.append(Job(seconds))
            if token is not None:
                self.by_token[token] = len(self.jobs)
            return len(self.jobs)

    def forget(self, handle: str) -> None:
        """Forget a job, as a service does with an old one."""
        self.jobs[int(handle) - 1].deleted = True

    def count(self) -> int:
        return len(self.jobs)

    def count_running(self) -> int:
        return sum(job.state == "running" for job in self.jobs)

    def databricks(self, method: str, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if (method, path) == ("POST", "/api/2.2/jobs/runs/submit"):
            seconds = float(body["notebook_task"]["base_parameters"]["seconds"])
            return 200, {"run_id": self.submit(seconds, body.get("idempotency_token"))}
        job = self.jobs[int(body["run_id"]) - 1]
        if job.deleted:
            message = f"Run {body['run_id']} does not exist."
            return 400, {"error_code": "INVALID_PARAMETER_VALUE", "message": message}
        if path == "/api/2.2/jobs/runs/cancel":
            job.cancelled = job.cancelled or job.state == "running"
            return 200, {}
        life_cycle, result = {
            "running": ("RUNNING", ""),
            "succeeded": ("TERMINATED", "SUCCESS"),
            "cancelled": ("TERMINATED", "CANCELED"),
        }[job.state]
        state = {"life_cycle_state": life_cycle, "result_state": result, "state_message": ""}
        return 200, {"run_id": body["run_id"], "state": state, "run_page_url": f"http://databricks/{body['run_id']}"}

    def livy(self, method: str, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if (method, path) == ("POST", "/batches"):
            return 201, {"id": self.submit(float(body["args"][0])), "state": "starting"}
        found = re.fullmatch(r"/batches/(\d+)(/state)?", path)
        assert found is not None, path
        job = self.jobs[int(found[1]) - 1]
        if job.deleted:
            return 404, {"msg": f"Session '{found[1]}' not found."}
        if method == "DELETE":
            job.cancelled = job.cancelled or job.state == "running"
            job.deleted = True
            return 200, {"msg": "deleted"}
        state = {"running": "running", "succeeded": "success", "cancelled": "killed"}[job.state]
        return 200, {"id": int(found[1]), "state": state, "appId": f"application_{found[1]}"}


@contextlib.contextmanager
def served(service: Service, routes: Any) -> Iterator[int]:
    """Serve the routes of a service on loopback, and yield the port."""

    class Handler(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            url = urlsplit(self.path)
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else {}
            body.update({name: values[0] for name, values in parse_qs(url.query).items()})
            status, answer = routes(self.command, url.path, body)
            text = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_DELETE = handle_any  # noqa: N815 -- http.server names them

        @override
        def log_message(self, format: str, *args: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
