"""An adapter for the job server, with its capabilities in each mode of the server."""

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import httpx
from typing_extensions import override

import jobservers
from reattach.adapters.base import (
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
    SubmissionToken,
    Submitted,
    Succeeded,
)
from reattach.adapters.http import (
    CancelRequest,
    Description,
    HttpJobs,
    LookupRequest,
    Names,
    States,
    StatusRequest,
    SubmitRequest,
    Token,
)
from reattach.testing import Clock, ExternalSystem, Fault, VirtualClock

SECONDS = {"forgetting-name": 600.0, "expiring-token": 600.0, "lagging-lookup": 20.0, "forgetting-lookup": 7200.0}
"""Duration of each mode's guarantee: longer than a request, and shorter than a history."""
_FOR_EVER = timedelta(days=36500)


def capabilities_of(mode: str, seconds: float) -> Capabilities:
    """Return the capabilities of the job server in a mode, whose guarantee lasts `seconds`."""
    span = timedelta(seconds=seconds)
    return {
        "name": Capabilities(client_name=ClientName()),
        "forgetting-name": Capabilities(client_name=ClientName(span)),
        "token": Capabilities(token=SubmissionToken(_FOR_EVER)),
        "expiring-token": Capabilities(token=SubmissionToken(span)),
        "lookup": Capabilities(look_up=Lookup(settling=timedelta())),
        "lagging-lookup": Capabilities(look_up=Lookup(settling=span)),
        "forgetting-lookup": Capabilities(look_up=Lookup(settling=timedelta(), retention=span)),
        "nothing": Capabilities(),
        "while-open": Capabilities(
            ClientName(while_open=True),
            SubmissionToken(_FOR_EVER, while_open=True),
            Lookup(settling=timedelta(), while_open=True),
        ),
    }[mode]


MODES = (
    "name",
    "forgetting-name",
    "token",
    "expiring-token",
    "lookup",
    "lagging-lookup",
    "forgetting-lookup",
    "nothing",
)
"""Modes of the random histories."""
CASE_MODES = (*MODES, "while-open")
"""Modes of the cases."""
CAPABILITIES = {mode: capabilities_of(mode, SECONDS.get(mode, 0)) for mode in CASE_MODES}


class JobServerAdapter(Adapter):
    """Jobs of the job server.

    The token is sent as name, tag and idempotency key. The mode decides which of them has an
    effect.
    """

    name = "jobserver"

    def __init__(self, client: httpx.Client, capabilities: Capabilities) -> None:
        self._client = client
        self._capabilities = capabilities

    @property
    @override
    def capabilities(self) -> Capabilities:
        return self._capabilities

    @override
    def submit(self, submission: Submission) -> Submitted:
        body = {**submission.request, "name": submission.name, "tag": submission.token}
        response = self._client.post("/jobs", json=body, headers={"Idempotency-Key": submission.token})
        if response.status_code == 409:
            return Submitted(handle=response.json()["id"], existed=True)
        if 400 <= response.status_code < 500:
            raise Rejected(response.text)
        job = response.raise_for_status().json()
        return Submitted(handle=job["id"], existed=response.status_code == 200)

    @override
    def look_up(self, submission: Submission) -> Submitted | None:
        jobs = self._client.get("/jobs", params={"tag": submission.token}).raise_for_status().json()["jobs"]
        return Submitted(handle=jobs[0]["id"], existed=True) if jobs else None

    @override
    def status(self, handle: str) -> JobStatus:
        response = self._client.get(f"/jobs/{handle}")
        if response.status_code == 404:
            return NotFound(response.text)
        job = response.raise_for_status().json()
        match job["status"]:
            case "SUCCEEDED":
                return Succeeded({"rows_written": job["rows_written"]})
            case "FAILED":
                return Failed("the job server reports it")
            case "CANCELLED":
                return Cancelled()
            case _:
                return Active(f"{job['seconds_left']} s left")

    @override
    def cancel(self, handle: str) -> None:
        response = self._client.post(f"/jobs/{handle}/cancel")
        if response.status_code != 404:
            response.raise_for_status()


def description_of(mode: str, address: str) -> Description:
    """Return the description of the job server with the capabilities of its mode."""
    plain = SubmitRequest(path="/jobs", handle="id", body={"tag": "{token}"})
    keyed = SubmitRequest(path="/jobs", handle="id", headers={"Idempotency-Key": "{token}"}, exists=(200,))
    named = SubmitRequest(path="/jobs", handle="id", body={"name": "{name}"}, exists=(409,))
    whole = SubmitRequest(
        path="/jobs",
        handle="id",
        body={"name": "{name}", "tag": "{token}"},
        headers={"Idempotency-Key": "{token}"},
        exists=(200, 409),
    )
    can = CAPABILITIES[mode]
    submit = whole if can.token and can.client_name else keyed if can.token else named if can.client_name else plain
    look_up = can.look_up and LookupRequest(
        path="/jobs?tag={token}",
        items="jobs",
        carries="tag",
        handle="id",
        settling_seconds=can.look_up.settling.total_seconds(),
        **_retention_of(can.look_up),
    )
    return Description(
        address=address,
        submit=submit,
        names=can.client_name and Names(**_retention_of(can.client_name)),
        token=can.token
        and (
            Token(while_open=True)
            if can.token.while_open
            else Token(lifetime_seconds=can.token.lifetime.total_seconds())
        ),
        look_up=look_up,
        status=StatusRequest(
            path="/jobs/{handle}",
            state="status",
            states=States(active=("RUNNING",), succeeded=("SUCCEEDED",), failed=("FAILED",), cancelled=("CANCELLED",)),
            result=".",
            not_found_says="no job",
        ),
        cancel=CancelRequest(path="/jobs/{handle}/cancel"),
    )


def _retention_of(declared: ClientName | Lookup) -> dict[str, Any]:
    if declared.while_open:
        return {"while_open": True}
    return {"retention_seconds": None if declared.retention is None else declared.retention.total_seconds()}


@dataclass
class JobServerSystem:
    """A job server of one mode, with its clock and the functions that the suite calls."""

    server: jobservers.LocalJobServer
    client: httpx.Client
    clock: Clock
    mode: str

    def adapter(self, capabilities: Capabilities | None = None) -> Adapter:
        """Return the `http` adapter for the mode, or an adapter with these capabilities."""
        if capabilities is None:
            return self._http
        return JobServerAdapter(self.client, capabilities)

    @functools.cached_property
    def _http(self) -> HttpJobs:
        # One adapter for all pods, because loading its CAs takes longer than most histories.
        return HttpJobs(description_of(self.mode, self.server.url))

    def made_of(self, label: str) -> list[str]:
        """Return the ids of all jobs with a label that were ever made, in order."""
        rows = self.server.jobs._database.execute("SELECT id FROM jobs WHERE label = ? ORDER BY submitted", (label,))
        return [row["id"] for row in rows]

    def running(self) -> int:
        """Return the number of jobs that run now."""
        return self.server.running(self.clock.now().timestamp())

    def fail(self, fault: Fault | None) -> None:
        """Put a fault in force, in place of an earlier one."""
        self.server.faults.clear()
        if fault is not None:
            self.server.fail(fault.how, fault.on, times=1 if fault.once else None)

    def external_system(self, capabilities: Capabilities | None = None, *, seconds: float = 60) -> ExternalSystem:
        """Return the system for the suite.

        capabilities: declared capabilities, by default those of the mode.
        seconds: duration of the jobs.
        """
        return ExternalSystem(
            adapter=lambda: self.adapter(capabilities),
            count_jobs=lambda: self.server.made,
            request={"seconds": seconds, "rows": 4211},
            other_request={"seconds": seconds, "rows": 1},
            lasting_request={"seconds": 3600},
            forget=self.server.jobs.forget,
            fail=self.fail,
            count_running=self.running,
            clock=self.clock,
        )


@contextlib.contextmanager
def serving(mode: str | Any, clock: Clock | None = None) -> Iterator[JobServerSystem]:
    """Run a job server in a mode, by default on a virtual clock."""
    clock = clock or VirtualClock()
    with (
        jobservers.serving(mode, seconds=SECONDS.get(mode, 0), clock=lambda: clock.now().timestamp()) as server,
        httpx.Client(base_url=server.url, trust_env=False, timeout=30) as client,
    ):
        yield JobServerSystem(server, client, clock, mode)
