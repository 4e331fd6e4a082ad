"""Submitting once, by the SDK and the real state API: killed, frozen and cut off at each step."""

import os
import signal
import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

import reattach
from conformance import jobadapter
from controlplane import ControlPlane
from fakesystem import NAME, REQUEST, RESULT, TOKEN, LostError, System, fails
from reattach.adapter import Active, Capabilities, Failed, Lookup, Rejected, Succeeded
from reattach.api.names import FINALIZER_EXTERNAL_JOBS
from reattach.api.state import SealPurpose
from reattach.task.client import Timing
from reattach.task.connection import StateApiConnection, StateApiRequest, UnreachableError
from reattach.testing.clocks import RealClock
from stateapi import Server
from stateapi import Task as Run
from taskpods import Pod, Pods, port_of
from tcp_relay import Relay
from waiting import read_until, wait_until

LOOK_UP = Lookup(settling=timedelta(seconds=1), retention=timedelta(hours=1))
ABLE = {
    "name": Capabilities(NAME),
    "token": Capabilities(token=TOKEN),
    "look-up": Capabilities(look_up=LOOK_UP),
    "nothing": Capabilities(),
}
RESOLUTION = {"held": "SubmissionUnknown", "key": "load", "generation": 1}
STEPS = [
    *("before-intent", "after-intent", "before-submit", "after-submit", "after-handle"),
    *("watching", "before-outcome", "after-outcome"),
]


class DiedError(BaseException):
    """As far as the process goes; nothing on the way out of it calls anybody."""


@pytest.fixture
def system() -> System:
    system = System()
    system.poll_seconds = 0.05
    system.request_seconds = 0.1  # a look-up waits for requests that may be on their way
    return system


def an_attempt(pod: Pod, system: System, dies_at: str = "") -> Any:
    """A whole one, or one that dies at a step."""

    def on_step(step: str) -> None:
        if step == dies_at:
            raise DiedError

    def main(task: reattach.Task) -> Any:
        return task.submit_once("load", system, REQUEST).wait()

    return pod.context(timing=Timing(on_step=on_step)).run(main)


@pytest.mark.parametrize("can", ["name", "look-up", "nothing"])
@pytest.mark.parametrize("step", STEPS)
def test_wherever_an_attempt_dies_there_is_one_job_or_a_person_is_asked(
    pods: Pods, system: System, step: str, can: str
) -> None:
    system.can = ABLE[can]
    first, second = pods.start(1), pods.start(2)
    with pytest.raises(DiedError):
        an_attempt(first, system, step)
    pods.end(first)

    unknown = can == "nothing" and step in {"after-intent", "before-submit", "after-submit"}
    if unknown:
        with pytest.raises(reattach.Held):
            an_attempt(second, system)
        assert second.message().kind == "Held"
        assert len(system.jobs) <= 1
    else:
        assert an_attempt(second, system) == RESULT
        assert len(system.jobs) == 1
        [job] = pods.run.view().jobs
        assert (job.state, job.handle) == ("Succeeded", "job-1")


@pytest.mark.parametrize("can", ["name", "nothing"])
def test_job_whose_handle_cant_be_stored_is_held_and_can_be_adopted(pods: Pods, system: System, can: str) -> None:
    system.can = ABLE[can]
    long = "x" * 5000
    system.name_of = lambda _: long
    first, second, third = pods.start(1), pods.start(2), pods.start(3)
    for attempt in (first, second):  # the second one has no resolution
        with pytest.raises(reattach.Held, match="5000 bytes that begin with"):
            an_attempt(attempt, system)
        assert attempt.message().kind == "Held"
        pods.end(attempt)
    [job] = pods.run.view().jobs
    assert (job.held, job.holds, job.handle) == (True, 1, None)
    assert "SHA-256" in job.message
    pods.run.patch(spec={"resolutions": [RESOLUTION | {"action": "Adopt", "handle": "short"}]})
    system.jobs["short"] = system.submissions[0]
    assert an_attempt(third, system) == RESULT
    [job] = pods.run.view().jobs
    assert (len(system.submissions), job.handle, job.state) == (1, "short", "Succeeded")


def test_the_taskrun_can_not_go_without_somebody_saying_what_becomes_of_its_job(pods: Pods, system: System) -> None:
    finalizers: list[list[str]] = []
    system.before_submit = [lambda: finalizers.append(pods.run.finalizers())]
    an_attempt(pods.start(), system)
    assert FINALIZER_EXTERNAL_JOBS in finalizers[0]


def test_the_result_is_the_same_object_on_every_path(pods: Pods, system: System) -> None:
    result = {"z": [1, 1.0, 1e-7, 2**70, None, True, "é✓"], "a": {"": {}}}
    system.statuses = [Active(), Succeeded(result)]
    first = pods.start(1)
    seen = []

    def main(task: reattach.Task) -> None:
        job = task.submit_once("load", system, REQUEST)
        seen.extend([job.wait(), task.submit_once("load", system, REQUEST).wait()])
        raise ValueError

    with pytest.raises(ValueError):
        first.context().run(main)
    pods.end(first)
    seen.append(pods.start(2).context().run(lambda task: task.submit_once("load", system, REQUEST).wait()))
    assert {repr(one) for one in seen} == {repr(result)}
    assert len(system.submissions) == 1


@pytest.mark.parametrize("can", ["name", "token", "look-up"])
@pytest.mark.parametrize("arrived", [True, False])
def test_a_submission_whose_answer_is_lost_makes_one_job(pod: Pod, system: System, can: str, arrived: bool) -> None:
    system.can = ABLE[can]
    plan = system.after_submit if arrived else system.before_submit
    plan.append(fails(LostError("timed out")))
    assert an_attempt(pod, system) == RESULT
    assert len(system.jobs) == 1


@pytest.mark.parametrize("mode", ["name", "token"])
def test_equal_idempotency_keys_in_two_namespaces_end_with_two_jobs_each_with_its_own_result(
    control_plane: ControlPlane, server: Server, relay: Relay, tmp_path: Path, mode: str
) -> None:
    names = [control_plane.create_namespace("tenant") for _ in range(2)]
    results = []
    try:
        with jobadapter.serving(mode, RealClock()) as external:
            for number, namespace in enumerate((names[0], names[1], names[1])):
                # The third is a new TaskRun with the key of the second, which is what keys are for.
                name = f"nightly-{number}"
                run = Run.create(control_plane, namespace, name, submission={"idempotencyKey": "nightly-2026-11-30"})
                directory = tmp_path / name
                directory.mkdir()
                request = {"seconds": 0, "rows": (666, 42, 42)[number], "label": namespace}
                adapter = external.adapter(jobadapter.CAPABILITIES[mode])
                adapter.poll_seconds = 0.05
                task = Pods(run, server, relay, directory).start().context()
                results.append(task.run(lambda task, a=adapter, r=request: task.submit_once("load", a, r).wait()))
            made = [len(external.made_of(namespace)) for namespace in names]
        assert results[:2] == [{"rows_written": 666}, {"rows_written": 42}]
        assert made == [1, 1]
    finally:
        for namespace in names:
            control_plane.delete_namespace(namespace)


def test_every_answer_of_the_state_api_may_be_lost(pod: Pod, system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    send = StateApiConnection.send
    losing = threading.Event()

    def sent(connection: StateApiConnection, request: StateApiRequest) -> httpx.Response:
        response = send(connection, request)
        if losing.is_set():
            losing.clear()
            raise UnreachableError("lost")
        losing.set()
        return response

    monkeypatch.setattr(StateApiConnection, "send", sent)
    losing.set()
    assert an_attempt(pod, system) == RESULT
    assert len(system.submissions) == 1


def test_a_retriable_refusal_keeps_the_right_to_submit(pods: Pods, system: System) -> None:
    system.before_submit = [fails(Rejected("quota", retriable=True))] * 3
    now = [0.0]
    timing = Timing(clock=lambda: now[0], sleep=lambda seconds: now.__setitem__(0, now[0] + seconds))
    context = pods.start().context(timing=timing)
    assert context.run(lambda task: task.submit_once("load", system, REQUEST).wait()) == RESULT
    assert len(system.submissions) == 4


def test_a_failed_job_costs_one_attempt_and_is_then_submitted_anew(pods: Pods, system: System) -> None:
    system.statuses = [Failed("out of memory")]
    first, second, third = (pods.start(number) for number in (1, 2, 3))
    for pod, charged_to in ((first, "disruption"), (second, "application")):
        with pytest.raises(reattach.JobFailed, match="out of memory"):
            an_attempt(pod, system)
        pods.end(pod, charged_to=charged_to)
    assert len(system.submissions) == 1
    system.statuses = [Succeeded(RESULT)]
    assert an_attempt(third, system) == RESULT
    assert [submission.generation for submission in system.submissions] == [1, 2]


class TestHeld:
    @staticmethod
    def hold(pods: Pods, system: System) -> None:
        """An attempt submitted and died, the next one asked for a person."""
        first, second = pods.start(1), pods.start(2)
        with pytest.raises(DiedError):
            an_attempt(first, system, "after-submit")
        pods.end(first)
        with pytest.raises(reattach.Held):
            an_attempt(second, system)
        pods.end(second)

    @pytest.mark.parametrize("action,jobs", [("Adopt", 1), ("Resubmit", 2), ("Fail", 1)])
    def test_a_person_decides(self, pods: Pods, system: System, action: str, jobs: int) -> None:
        self.hold(pods, system)
        answer = {"held": "SubmissionUnknown", "key": "load", "generation": 1, "action": action}
        if action == "Adopt":
            answer["handle"] = "job-1"
        pods.run.patch(spec={"resolutions": [answer]})
        third = pods.start(3)
        if action == "Fail":
            with pytest.raises(reattach.JobFailed, match=r"failed by spec\.resolutions"):
                an_attempt(third, system)
        else:
            assert an_attempt(third, system) == RESULT
        assert len(system.jobs) == jobs

    def test_until_then_each_attempt_is_told_the_same(self, pods: Pods, system: System) -> None:
        self.hold(pods, system)
        with pytest.raises(reattach.Held):
            an_attempt(pods.start(3), system)
        [job] = pods.run.view().jobs
        assert (job.held, job.holds) == (True, 1)


def test_a_run_that_is_being_ended_submits_nothing_more_and_still_learns_what_was_submitted(
    pods: Pods, system: System
) -> None:
    pod = pods.start()
    system.after_submit = [lambda: pods.run.seal(1, SealPurpose.END)]

    def main(task: reattach.Task) -> None:
        assert task.submit_once("load", system, REQUEST).handle == "job-1"
        task.submit_once("more", system, REQUEST)

    with pytest.raises(reattach.Closing):
        pod.context().run(main)
    assert [job.handle for job in pods.run.view().jobs] == ["job-1"]
    assert len(system.jobs) == 1


def test_while_the_state_api_is_away_nothing_is_submitted_and_then_it_goes_on(
    pod: Pod, system: System, relay: Relay, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    with pod.context() as task:
        relay.lead_to(None)
        before = relay.connections
        results: list[Any] = []
        thread = threading.Thread(target=lambda: results.append(task.submit_once("load", system, REQUEST).wait()))
        thread.start()
        wait_until(lambda: "has been unavailable for" in caplog.text, seconds=60, what="the log says so")
        assert relay.connections > before
        assert system.submissions == []
        relay.lead_to(port_of(server))
        thread.join(60)
        assert results == [RESULT]
    assert len(system.submissions) == 1


PROGRAM = """
import os, pathlib, sys, time
import reattach
from reattach.adapter import *

class Folder(Adapter):
    '''A job is a file; its name is the token, so a second one of that name is refused.'''
    name = "folder"
    poll_seconds = 0.1
    capabilities = Capabilities(ClientName())

    def submit(self, submission):
        print("submitting", flush=True)
        input()
        try:
            os.close(os.open(FOLDER / submission.token, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return Submitted(submission.token, existed=True)
        with open(FOLDER / "made", "a") as made:
            made.write(submission.token + chr(10))
        return Submitted(submission.token)

    def status(self, handle):
        return Succeeded(handle) if (FOLDER / handle).exists() else NotFound()

    def cancel(self, handle):
        raise SystemExit("nobody asked for that")

FOLDER = pathlib.Path(sys.argv[1])
reattach.run(lambda task: task.submit_once("load", Folder(), {}).wait())
"""


class TestProcesses:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        folder = tmp_path / "jobs"
        folder.mkdir()
        return folder

    def start(self, pod: Pod, folder: Path) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(folder)],
            env={**os.environ, **pod.environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        read_until(process, process.stdout, "submitting")
        return process

    @staticmethod
    def go_on(process: subprocess.Popen[str]) -> tuple[int, str]:
        with process:
            try:
                output, _ = process.communicate("\n", timeout=90)
            finally:
                process.kill()
            return process.returncode, output

    def test_one_that_is_killed_while_it_submits(self, pods: Pods, folder: Path) -> None:
        first = pods.start(1)
        process = self.start(first, folder)
        process.kill()
        process.communicate()
        pods.end(first)
        code, output = self.go_on(self.start(pods.start(2), folder))
        assert code == 0, output
        assert len((folder / "made").read_text().split()) == 1

    def test_one_that_is_frozen_while_it_submits_and_wakes_up_when_it_was_replaced(
        self, pods: Pods, folder: Path
    ) -> None:
        first = pods.start(1)
        zombie = self.start(first, folder)
        zombie.send_signal(signal.SIGSTOP)
        pods.end(first, end="Presumed")
        code, output = self.go_on(self.start(pods.start(2), folder))
        assert code == 0, output

        zombie.send_signal(signal.SIGCONT)
        code, output = self.go_on(zombie)
        assert code == 79, output
        assert first.message().kind == "Fenced"
        assert len((folder / "made").read_text().split()) == 1

    def test_one_that_is_evicted_while_it_submits_finishes_that(self, pods: Pods, folder: Path) -> None:
        first = pods.start(1)
        process = self.start(first, folder)
        process.send_signal(signal.SIGTERM)
        code, output = self.go_on(process)
        assert code == 143, output
        [job] = pods.run.view().jobs
        assert (job.state, job.handle is not None) == ("Active", True)
        assert len((folder / "made").read_text().split()) == 1
