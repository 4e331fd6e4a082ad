"""`wait(release_pod=True)`: the attempt ends, unless the job has."""

import json
import logging
import threading
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import httpx
import pytest

import reattach
from fakepod import Pod, a_problem
from fakesystem import REQUEST, RESULT, System, fails
from reattach.adapter import Active, Failed, NotFound, Succeeded, Unknown
from reattach.task import termination

END = "/v1/end"
OUTCOME = "/v1/jobs/load/outcome"
EVERY = timedelta(minutes=5)
WAITS = {
    "kind": "Waiting",
    "message": "Waits without a pod for external job 'load' (job-1).",
    "retryAfterSeconds": 300,
    "job": {"key": "load", "generation": 1},
}


@pytest.fixture(autouse=True)
def _ends_soon(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(termination, "END_SECONDS", 0.01)
    yield
    for thread in threading.enumerate():
        if isinstance(thread, threading.Timer):
            thread.join(5)


@pytest.fixture
def system() -> System:
    return System(statuses=[Active("half of it"), Active(), Succeeded(RESULT)])


def release(task: reattach.Task, system: System) -> Any:
    return task.submit_once("load", system, REQUEST).wait(release_pod=True, every=EVERY)


def attempt(pod: Pod, system: System) -> Any:
    """Run one attempt; `PodReleased` has the exit code of the process."""
    return pod.context().run(lambda task: release(task, system))


async def arun(pod: Pod, main: Callable[[reattach.Task], Awaitable[None]]) -> None:
    async with pod.context() as task:
        await main(task)


def outcomes(pod: Pod) -> list[Any]:
    return [body["state"] for body in pod.api.bodies(OUTCOME)]


def test_each_attempt_polls_once_until_the_job_has_ended(pod: Pod, system: System) -> None:
    for _ in range(2):
        with pytest.raises(reattach.PodReleased) as released:
            attempt(pod, system)
        assert released.value.code == 87
        pod.api.jobs.next_attempt()
    assert attempt(pod, system) == RESULT
    assert (len(system.submissions), system.asked) == (1, ["job-1"] * 3)
    assert pod.api.bodies(END) == [WAITS, WAITS]
    assert pod.time.waited == [], "no attempt waits"


def test_process_ends_even_if_the_task_catches_the_exit(pod: Pod, system: System) -> None:
    def main(task: reattach.Task) -> None:
        try:
            release(task, system)
        except reattach.PodReleased:
            task.state.set("k", 1)

    with pytest.raises(reattach.PodReleased):
        pod.context().run(main)
    assert pod.api.completed == []


def test_message_for_an_older_operator_is_that_of_an_outage(pod: Pod, system: System) -> None:
    with pytest.raises(reattach.PodReleased):
        attempt(pod, system)
    assert json.loads(pod.settings.termination_log.read_text())["kind"] == "Unavailable"


async def test_async_twin_ends_the_attempt_too(pod: Pod, system: System) -> None:
    async def main(task: reattach.Task) -> None:
        job = await task.asubmit_once("load", system, REQUEST)
        await job.await_(release_pod=True, every=EVERY)

    with pytest.raises(reattach.PodReleased):
        await arun(pod, main)
    assert pod.api.bodies(END) == [WAITS]


def test_job_that_failed_raises_and_no_attempt_waits(pod: Pod, system: System) -> None:
    system.statuses = [Failed("no memory")]
    with pytest.raises(reattach.JobFailed, match="no memory"):
        attempt(pod, system)
    assert pod.api.bodies(END) == []


@pytest.mark.parametrize("status", [Unknown("503"), fails])
def test_outage_of_the_external_system_is_shown_and_does_not_keep_the_pod(
    pod: Pod, system: System, status: Any
) -> None:
    if isinstance(status, Unknown):
        system.statuses = [status, Active(), Succeeded(RESULT)]
    else:
        system.before_status = [status(RuntimeError("503"))]
    with pytest.raises(reattach.PodReleased):
        attempt(pod, system)
    assert outcomes(pod) == ["Unknown"]
    assert pod.time.waited == []
    pod.api.jobs.next_attempt()
    with pytest.raises(reattach.PodReleased):
        attempt(pod, system)
    assert outcomes(pod) == ["Unknown", "Active"], "the next check shows that the outage is over"


def test_job_that_is_not_found_is_watched_until_that_is_confirmed(pod: Pod, system: System) -> None:
    system.statuses = [NotFound()]
    with pytest.raises(reattach.Held):
        attempt(pod, system)
    assert pod.api.bodies(END) == []
    assert len(system.asked) >= 2


@pytest.mark.parametrize(
    "response",
    [
        a_problem(501, "not-implemented"),
        a_problem(404, "route-unknown"),
        httpx.Response(503),
        httpx.ConnectError("refused"),
    ],
)
def test_pod_is_kept_while_the_state_api_can_not_record_the_end(
    pod: Pod, system: System, response: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)

    def refuse() -> None:
        pod.api.down = response

    def recover() -> None:
        pod.api.down = None

    system.before_status = [refuse]
    pod.time.at(8, recover)
    with pytest.raises(reattach.PodReleased):
        attempt(pod, system)
    assert "The pod is kept, because the state API can't record that it waits" in caplog.text
    assert (len(system.submissions), pod.api.bodies(END)[-1]) == (1, WAITS)


def test_pod_is_kept_and_the_result_returned_if_the_state_api_never_knows_the_kind(pod: Pod, system: System) -> None:
    original = pod.api._respond
    pod.api._respond = lambda request: (  # type: ignore[method-assign]
        a_problem(501, "not-implemented") if request.url.path == END else original(request)
    )
    assert attempt(pod, system) == RESULT
    assert len(pod.api.bodies(END)) == 2


def test_fenced_attempt_does_not_wait(pod: Pod, system: System) -> None:
    original = pod.api._respond
    pod.api._respond = lambda request: (  # type: ignore[method-assign]
        a_problem(409, "fenced") if request.url.path == END else original(request)
    )
    with pytest.raises(reattach.Fenced):
        attempt(pod, system)


@pytest.mark.parametrize(
    "every", [timedelta(), timedelta(seconds=-1), timedelta(milliseconds=999), timedelta(days=366)]
)
def test_interval_out_of_bounds_is_refused_before_anything_is_polled(
    pod: Pod, system: System, every: timedelta
) -> None:
    with pytest.raises(ValueError, match="every must be at least a second and at most a year"), pod.context() as task:
        task.submit_once("load", system, REQUEST).wait(release_pod=True, every=every)
    assert system.asked == []
