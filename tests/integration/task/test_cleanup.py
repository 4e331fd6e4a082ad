"""Cleanup attempts as processes, against the real state API and job servers."""

import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

import jobservers
from conformance.jobadapter import JobServerAdapter
from controlplane import ControlPlane
from jobservers import LocalJobServer
from reattach.adapter import Adapter, Capabilities
from reattach.api.messages import JOBS_MAX
from reattach.api.state import JobSummary, SealPurpose
from reattach.api.taskrun import AttemptPurpose
from reattach.task.client import Timing
from stateapi import Server
from stateapi import Task as Run
from taskpods import Pod, Pods
from tcp_relay import Relay
from waiting import read_until

TESTS = Path(__file__).parents[2]
SECONDS = 90
IGNORES_SECONDS = 3.0

PROGRAM = """
import os
import time
from datetime import timedelta

import httpx

import reattach
from conformance.jobadapter import JobServerAdapter
from reattach.adapter import Capabilities, Lookup
from reattach.task.client import Timing
from reattach.task.context import TaskContext
from reattach.task.settings import from_environment

class Searchable(JobServerAdapter):
    name = "searchable"
    poll_seconds = 0.2
    request_seconds = 0.1

class Plain(JobServerAdapter):
    name = "plain"
    poll_seconds = 0.2

def on_step(step):
    if step == os.environ.get("STOP_AT"):
        print("stopped at", step, flush=True)
        time.sleep(600)

def main(task):
    print("main was called", flush=True)

def on_cleanup(cleanup):
    for job in cleanup.jobs:
        print("job", job.key, job.state, job.why_open, flush=True)
    print("state", cleanup.state.get("table"), flush=True)

searchable = Searchable(httpx.Client(base_url=os.environ["SEARCHABLE"]), Capabilities(look_up=Lookup(timedelta(seconds=1))))
plain = Plain(httpx.Client(base_url=os.environ["PLAIN"]), Capabilities())
settings = from_environment(os.environ)
TaskContext(settings, adapters=[searchable, plain], on_cleanup=on_cleanup, timing=Timing(on_step=on_step)).run(main)
"""

STAGES = [
    *("before-cancellation", "after-cancellation", "before-cancel", "after-cancel", "after-handle", "watching"),
    *("before-outcome", "after-outcome", "before-handler", "after-handler"),
]
SAMPLE = ("before-outcome",)


class DiedError(BaseException):
    """The end of a process in the test process."""


class Searchable(JobServerAdapter):
    """Adapter of the name that the program registers, for the job server with a lookup."""

    name = "searchable"


class Plain(JobServerAdapter):
    """Adapter of the name that the program registers, for the job server without a lookup."""

    name = "plain"


@dataclass
class Scenario:
    """A TaskRun that begins to end, with a job of each kind."""

    pods: Pods
    searchable: LocalJobServer
    plain: LocalJobServer
    adopted: str
    attempts: int = 1

    def made(self) -> tuple[int, int]:
        """Return how many jobs were ever made on each server."""
        return self.searchable.made, self.plain.made

    def start(self, **environment: str) -> tuple[Pod, subprocess.Popen[str]]:
        """Start the next cleanup attempt."""
        self.attempts += 1
        pod = self.pods.start(self.attempts, AttemptPurpose.CLEANUP)
        process = pod.start(
            "-c",
            PROGRAM,
            PYTHONPATH=str(TESTS),
            SEARCHABLE=self.searchable.url,
            PLAIN=self.plain.url,
            **environment,
        )
        return pod, process

    def jobs(self) -> dict[str, JobSummary]:
        return {job.key: job for job in self.pods.run.view().jobs}

    def check_ended(self) -> None:
        """Check the job of each kind, in the state and in its external system."""
        jobs = self.jobs()
        assert {key: job.state.value for key, job in jobs.items()} == {
            "first": "Cancelled",
            "stubborn": "Cancelled",
            "adopted": "Active",
            "found": "Cancelled",
            "absent": "Cancelled",
            "unknown": "Intended",
        }
        cancelled = {key for key, job in jobs.items() if job.cancel_requested_time is not None}
        assert cancelled == {"first", "stubborn", "found"}
        assert jobs["found"].origin == "Found"
        assert (jobs["absent"].handle, jobs["absent"].message) == (None, "it was never submitted")
        for key, server in (("first", self.searchable), ("found", self.searchable), ("stubborn", self.plain)):
            assert status_of(server, jobs[key].handle) == "CANCELLED"
        assert status_of(self.searchable, self.adopted) == "RUNNING"
        assert self.made() == (3, 2)


def status_of(server: LocalJobServer, job_id: str | None) -> str:
    status: str = httpx.get(f"{server.url}/jobs/{job_id}", trust_env=False).json()["status"]
    return status


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    with process:
        try:
            output, _ = process.communicate(timeout=SECONDS)
        finally:
            process.kill()  # nothing to do where the claim holds
        return process.returncode, output


@pytest.fixture
def scenario(
    control_plane: ControlPlane, namespace: str, server: Server, relay: Relay, tmp_path: Path
) -> Iterator[Scenario]:
    with (
        jobservers.serving("lookup") as searchable,
        jobservers.serving("nothing") as plain,
        httpx.Client(base_url=searchable.url) as searchable_client,
        httpx.Client(base_url=plain.url) as plain_client,
    ):
        job = {"seconds": 300, "label": "earlier"}
        adopted = httpx.post(f"{searchable.url}/jobs", json=job, trust_env=False).json()["id"]
        run = Run.create(control_plane, namespace, adopt=[{"key": "adopted", "handle": adopted}])
        pods = Pods(run, server, relay, tmp_path)
        first = pods.start(1)
        adapters = (Searchable(searchable_client, Capabilities()), Plain(plain_client, Capabilities()))
        for key, adapter, dies_at, more in (
            ("first", adapters[0], "after-handle", {}),
            ("stubborn", adapters[1], "after-handle", {"cancel_seconds": IGNORES_SECONDS}),
            ("found", adapters[0], "after-submit", {}),
            ("absent", adapters[0], "before-submit", {}),
            ("unknown", adapters[1], "after-submit", {}),
            ("adopted", adapters[0], "", {}),
        ):
            submit(first, key, adapter, {"seconds": 300, "label": key, **more}, dies_at)
        pods.end(first)
        run.seal(1, SealPurpose.END)
        yield Scenario(pods, searchable, plain, adopted)


def submit(pod: Pod, key: str, adapter: Adapter, request: dict[str, Any], dies_at: str) -> None:
    """Run a process that submits a job and dies at a step, or afterwards."""

    def main(task: Any) -> None:
        if not task.state.list():
            task.state.set("table", "orders")
        task.submit_once(key, adapter, request)
        raise DiedError

    def on_step(step: str) -> None:
        if step == dies_at:
            raise DiedError

    with pytest.raises(DiedError):
        pod.context(timing=Timing(on_step=on_step)).run(main)


def test_a_cleanup_attempt_ends_each_job_in_its_way(scenario: Scenario) -> None:
    _, process = scenario.start()
    code, output = ended(process)
    assert code == 0, output
    scenario.check_ended()
    assert "main was called" not in output
    assert "job first Cancelled" in output
    assert "job adopted Active the job 'adopted' must not be cancelled" in output
    assert "job unknown Intended it may have been submitted, and the external system has no way to find out" in output
    assert "state orders" in output


@pytest.mark.parametrize("stage", STAGES if os.environ.get("REATTACH_ALL") else SAMPLE)
def test_a_cleanup_attempt_that_is_killed_is_continued_by_the_next(scenario: Scenario, stage: str) -> None:
    pod, process = scenario.start(STOP_AT=stage)
    read_until(process, process.stdout, f"stopped at {stage}")
    process.kill()
    ended(process)
    scenario.pods.end(pod)

    _, process = scenario.start()
    code, output = ended(process)

    assert code == 0, output
    scenario.check_ended()
    assert "main was called" not in output


def test_sigterm_ends_a_cleanup_attempt_at_once_and_the_next_continues(scenario: Scenario) -> None:
    pod, process = scenario.start(STOP_AT="after-cancel")  # a call of an adapter hangs
    read_until(process, process.stdout, "stopped at after-cancel")
    process.send_signal(signal.SIGTERM)
    with process:
        assert process.wait(timeout=10) == 128 + signal.SIGTERM
    scenario.pods.end(pod)

    _, process = scenario.start()
    code, output = ended(process)

    assert code == 0, output
    scenario.check_ended()


@pytest.mark.parametrize(
    "body",
    [
        "with reattach.task() as task:\n    print('the body ran')",
        "reattach.run(lambda task: print('the body ran'))",
        "try:\n    with reattach.task() as task:\n        print('the body ran')\nexcept Exception:\n    pass",
    ],
)
def test_a_program_that_registered_nothing_does_not_run_in_a_cleanup_attempt(
    pods: Pods, body: str, tmp_path: Path
) -> None:
    pods.end(pods.start(1))
    pod = pods.start(2, AttemptPurpose.CLEANUP)
    code, output = ended(pod.start("-c", f"import reattach\n{body}\n"))
    assert code == 86, output
    assert "the body ran" not in output
    assert "pass `adapters` or `on_cleanup`" in pod.message().message


def test_a_task_that_cancels_its_job_reports_that(pods: Pods, tmp_path: Path) -> None:
    with jobservers.serving("nothing") as plain, httpx.Client(base_url=plain.url) as client:
        adapter = Plain(client, Capabilities())

        def main(task: Any) -> None:
            job = task.submit_once("load", adapter, {"seconds": 300})
            job.cancel()
            raise DiedError

        with pytest.raises(DiedError):
            pods.start(1).context().run(main)
        [job] = pods.run.view().jobs
        assert (job.state, job.cancel_requested_time is None) == ("Active", False)


def test_a_cleanup_attempt_ends_as_many_jobs_as_a_taskrun_may_have(pods: Pods, relay: Relay) -> None:
    with jobservers.serving("nothing") as plain, httpx.Client(base_url=plain.url) as client:
        adapter = Plain(client, Capabilities())
        adapter.poll_seconds = 0.2
        first = pods.start(1)

        def main(task: Any) -> None:
            for number in range(JOBS_MAX):
                task.submit_once(f"job-{number}", adapter, {"seconds": 300, "label": "many"})
            raise DiedError

        with pytest.raises(DiedError):
            first.context().run(main)
        pods.end(first)
        pods.run.seal(1, SealPurpose.END)

        before = relay.connections
        with pytest.raises(SystemExit) as end:
            pods.start(2, AttemptPurpose.CLEANUP).context(adapters=[adapter]).run(main)

        assert end.value.code == 0
        assert relay.connections - before < JOBS_MAX / 4
        assert {job.state.value for job in pods.run.view().jobs} == {"Cancelled"}
        assert plain.made == JOBS_MAX
