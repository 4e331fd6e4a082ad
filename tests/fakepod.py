"""A task's pod for unit tests: its files, a fake state API, and a fake clock."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import httpx

from reattach.task.client import Client, Timing
from reattach.task.connection import StateApiConnection
from reattach.task.context import TaskContext
from reattach.task.settings import TaskSettings
from reattach.task.state import State

if TYPE_CHECKING:
    from fakejobs import FakeJobs
    from reattach.errors import AttemptOver

# A certificate that is not used, and whose key was discarded.
CA = """-----BEGIN CERTIFICATE-----
MIIBCzCBs6ADAgECAgEBMAoGCCqGSM49BAMCMA8xDTALBgNVBAMMBHRlc3QwIBcN
MjYwMTAxMDAwMDAwWhgPMjA1NjAxMDEwMDAwMDBaMA8xDTALBgNVBAMMBHRlc3Qw
WTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAATp/JYwevDuPE2L0SZgcVXz4nsQEyAs
gPOrTlkrmIeotGTW8mUHh/vY0upfZ35Snv288Kow6bHOGmJLIB8a1IdCMAoGCCqG
SM49BAMCA0cAMEQCIBfy5Y99lUG0F2yVBQv1tf8C1URKcU1y6YEKueM3HQ2MAiBo
wvDtR4tKN2HEPO6zcp9YJRFkSwbafnM3TOHVNlaLNA==
-----END CERTIFICATE-----
"""

ScriptedResponse = httpx.Response | Exception
NOW = "2026-11-23T12:00:00Z"


def a_problem(status: int, code: str, detail: str = "the detail", **headers: str) -> httpx.Response:
    """Return an error response of the state API."""
    body = {
        "type": f"https://reattach.dev/problems/{code}",
        "title": code,
        "status": status,
        "code": code,
        "detail": detail,
    }
    return httpx.Response(
        status, content=json.dumps(body), headers={"Content-Type": "application/problem+json", **headers}
    )


class FakeTime:
    """Time that passes only by sleeping. `at` calls a function after some seconds."""

    def __init__(self) -> None:
        self.now = self.start = 1000.0
        self.waited: list[float] = []
        self.steps: list[str] = []
        self.on_step: dict[str, Callable[[], None]] = {}
        """Functions to call at the next occurrence of a step of submitting once."""
        self._plans: list[tuple[float, Callable[[], None]]] = []

    def at(self, seconds: float, action: Callable[[], None]) -> None:
        self._plans.append((self.now + seconds, action))

    def sleep(self, seconds: float) -> None:
        self.waited.append(seconds)
        self.now += seconds
        for plan in [plan for plan in self._plans if plan[0] <= self.now]:
            self._plans.remove(plan)
            plan[1]()

    async def async_sleep(self, seconds: float) -> None:
        self.sleep(seconds)
        await asyncio.sleep(0)

    def timing(self) -> Timing:
        return Timing(
            clock=lambda: self.now,
            sleep=self.sleep,
            async_sleep=self.async_sleep,
            jitter=lambda: 1.0,
            on_step=self.step,
        )

    def step(self, name: str) -> None:
        self.steps.append(name)
        self.on_step.pop(name, lambda: None)()

    def server_time(self) -> datetime:
        """Return the time of the state API, whose clock is three hours ahead."""
        return datetime.fromisoformat(NOW) + timedelta(hours=3, seconds=self.now - self.start)


class FakeStateApi:
    """State API with its values in a dict. Keeps every request.

    script: responses of the next requests, in place of those from the dict.
    down: response or error of every request without a scripted one.
    purpose: that of the pod.
    lost: number of next requests that are executed, but whose responses are lost.
    """

    def __init__(self, clock: Callable[[], datetime] = lambda: datetime.fromisoformat(NOW)) -> None:
        self._clock = clock
        self._opened: list[httpx.Request] = []
        self.requests: list[httpx.Request] = []
        self.script: list[ScriptedResponse | None] = []
        self.down: ScriptedResponse | None = None
        self.lost = 0
        self.purpose = "Run"
        self.values: dict[str, Any] = {}
        self.versions: dict[str, int] = {}
        self.completed: list[Any] = []
        self.on_end: Callable[[], object] = lambda: None
        """Function to call when the end of the attempt is reported."""
        self.version = 0

    @cached_property
    def jobs(self) -> "FakeJobs":
        """External jobs, imported on first use, because the SDK does not have their packages."""
        from fakejobs import FakeJobs

        jobs = FakeJobs(self._clock)
        for request in self._opened:
            jobs.open(request)
        return jobs

    def transport(self) -> httpx.MockTransport:
        return httpx.MockTransport(self)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        scripted = self.script.pop(0) if self.script else self.down
        if isinstance(scripted, Exception):
            raise scripted
        response = scripted or self._respond(request)
        if self.lost > 0:
            self.lost -= 1
            raise httpx.ReadError("connection reset")
        # httpx binds a response to its request, and a scripted one may serve several requests.
        return httpx.Response(response.status_code, headers=response.headers, content=response.content)

    def paths(self) -> list[str]:
        return [f"{request.method} {request.url.path}" for request in self.requests]

    def bodies(self, path: str) -> list[Any]:
        return [json.loads(request.content) for request in self.requests if request.url.path == path]

    def _respond(self, request: httpx.Request) -> httpx.Response:
        path = request.url.raw_path.decode().partition("?")[0]
        match request.method, path:
            case "POST", "/v1/open":
                self._opened.append(request)
                if "jobs" in self.__dict__:
                    try:
                        self.jobs.open(request)
                    except self.jobs.refusals as refused:
                        return a_problem(409, refused.code, refused.detail)
                opened = {"namespace": "demo", "taskrun": "load", "taskrunUID": "u-1", "attempt": 2, "first": False}
                return httpx.Response(200, json={**opened, "serverTime": NOW, "purpose": self.purpose})
            case _, _ if path.startswith("/v1/jobs"):
                return self.jobs.respond(request, path)
            case "POST", "/v1/complete" if "jobs" in self.__dict__ and self.jobs.has_open():
                return a_problem(409, "jobs-open", "every external job must be over or detached")
            case "POST", "/v1/complete":
                self.completed.append(json.loads(request.content).get("result"))
                return httpx.Response(204)
            case "POST", "/v1/end":
                self.on_end()
                return httpx.Response(204)
            case "POST", "/v1/state":
                return httpx.Response(200, json={"results": self._apply(json.loads(request.content)["operations"])})
            case "GET", "/v1/state":
                prefix = request.url.params.get("prefix", "")
                items = [self._entry(key) for key in sorted(self.values) if key.startswith(prefix)]
                return httpx.Response(200, json={"items": items, "total": len(items)})
            case "GET", _ if (key := unquote(path.removeprefix("/v1/state/"))) in self.values:
                return httpx.Response(200, json=self._entry(key))
            case "GET", _:
                return a_problem(404, "not-found")
            case _:
                return a_problem(405, "method-not-allowed")

    def _apply(self, operations: list[dict[str, Any]]) -> list[dict[str, Any]]:
        results: list[dict[str, Any]] = []
        for operation in operations:
            if operation["op"] == "set":
                self.version += 1
                self.values[operation["key"]] = operation["value"]
                self.versions[operation["key"]] = self.version
                results.append({"version": self.version, "deleted": 0})
            else:
                doomed = [operation["key"]] if operation["op"] == "delete" else list(self.values)
                deleted = sum(self.values.pop(key, None) is not None for key in doomed)
                results.append({"version": None, "deleted": deleted})
        return results

    def _entry(self, key: str) -> dict[str, Any]:
        return {
            "key": key,
            "value": self.values[key],
            "version": self.versions.get(key, 1),
            "attempt": 1,
            "podUID": "p-1",
            "updatedAt": NOW,
            "expiresAt": None,
        }


class Pod:
    """A task's container with all files and variables that the SDK uses.

    ended: exit codes with which the SDK would have ended the process.
    """

    def __init__(self, directory: Path) -> None:
        (directory / "token").write_text("token-1\n")
        (directory / "ca.crt").write_text(CA)
        self.termination_log = directory / "termination-log"
        self.termination_log.touch()
        self.settings = TaskSettings(
            url="https://state.test",
            namespace="demo",
            taskrun="load",
            attempt=2,
            directory=directory,
            termination_log=self.termination_log,
        )
        self.time = FakeTime()
        self.api = FakeStateApi(self.time.server_time)
        self.environment: dict[str, str] = {}
        self.ended: list[int] = []
        self.over: list[AttemptOver] = []

    def begin_cleanup(self, **end: str | None) -> None:
        """End the run, and become the pod of a cleanup attempt."""
        self.api.jobs.begin_cleanup(**end)
        self.api.purpose = "Cleanup"
        self.settings = replace(self.settings, is_cleanup=True)

    def context(self, settings: TaskSettings | None = None, **registered: Any) -> TaskContext:
        return TaskContext(
            settings or self._settings_now(),
            **registered,
            transport=self.api.transport(),
            timing=self.time.timing(),
            environment=self.environment,
            end_process=self.ended.append,
        )

    def _settings_now(self) -> TaskSettings:
        """Return the settings of the current attempt, if `jobs` counts attempts."""
        return replace(self.settings, attempt=self.api.jobs.attempt) if "jobs" in self.api.__dict__ else self.settings

    def client(self) -> Client:
        connection = StateApiConnection(self.settings, "session-1", self.api.transport())
        return Client(connection, self.settings.patience, self.over.append, self.time.timing())

    def state(self) -> State:
        return State(self.client())

    def message(self) -> dict[str, Any]:
        return json.loads(self.termination_log.read_bytes())  # type: ignore[no-any-return]
