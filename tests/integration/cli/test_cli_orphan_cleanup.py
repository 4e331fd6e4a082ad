"""Jobs of the job server that a run left: cancelled by a TaskRun, and never doubled by a rerun.

The operator, the state API, the API server and the job server are real. The test plays the node.
"""

import os
import random
import time
from collections.abc import Iterator

import httpx
import pytest

from cli_session import CliUser, grant
from controlplane import ControlPlane
from jobservers import LocalJobServer, serving
from operator_process import Containers, Script, Stage
from reattach.api.names import LABEL_ORPHANS, LABEL_PURPOSE
from reattach.cluster.paths import configmaps, taskruns
from taskscripts import Tasks
from waiting import wait_until

SLOW = 120
RACES = 100 if os.environ.get("REATTACH_ALL") else 10
ORPHAN = {"cleanup": {"onCancel": "Orphan"}}


@pytest.fixture(scope="module")
def user(control_plane: ControlPlane, stage: Stage) -> CliUser:
    return grant(control_plane, stage.namespace, "edit")


@pytest.fixture
def jobs() -> Iterator[LocalJobServer]:
    with serving("name") as server:
        yield server


def state_of(jobs: LocalJobServer, handle: str) -> str:
    status: str = httpx.get(f"{jobs.url}/jobs/{handle}").raise_for_status().json()["status"]
    return status


class JobTask:
    """A task that runs one job of the job server, and cancels it in a cleanup pod.

    alive: handles of other jobs of the test that ran while it submitted.
    """

    def __init__(self, tasks: Tasks, jobs: LocalJobServer, seconds: float = 600, *, cancels: bool = True) -> None:
        self.tasks, self.jobs, self.seconds, self.cancels = tasks, jobs, seconds, cancels
        self.handles: list[str] = []
        self.alive: list[str] = []

    def __call__(self, _: int) -> Script:
        return self.play

    def play(self, containers: Containers) -> None:
        is_cleanup = containers.pod["metadata"]["labels"].get(LABEL_PURPOSE) == "Cleanup"
        (self.clean_up if is_cleanup else self.run)(containers)

    def run(self, containers: Containers) -> None:
        containers.run()
        process = self.tasks.process(containers)
        assert process.open(canCleanup=True).status_code == 200
        intent = process.intend().json()
        handle = intent["job"].get("handle")
        if intent["decision"] == "Submit":
            self.alive += [handle for handle in self.handles if state_of(self.jobs, handle) == "RUNNING"]
            body = {"name": intent["job"]["token"], "seconds": self.seconds, "rows": 1}
            handle = httpx.post(f"{self.jobs.url}/jobs", json=body).raise_for_status().json()["id"]
            self.handles.append(handle)
        if process.handle(handle).status_code != 204:
            return
        while (state := state_of(self.jobs, handle)) == "RUNNING":
            if containers.is_terminating():
                return
            time.sleep(0.02)
        if process.outcome(state.capitalize()).status_code == 204 and process.complete().status_code == 204:
            containers.end(0)

    def clean_up(self, containers: Containers) -> None:
        containers.run()
        process = self.tasks.process(containers)
        assert process.open(canCleanup=True).status_code == 200
        for job in process.jobs().json()["items"] if self.cancels else []:
            assert process.cancellation(job["key"]).status_code == 200
            httpx.post(f"{self.jobs.url}/jobs/{job['handle']}/cancel").raise_for_status()
            wait_until(lambda job=job: state_of(self.jobs, job["handle"]) != "RUNNING", seconds=SLOW, what="it ends")
            state = state_of(self.jobs, job["handle"]).capitalize()
            assert process.outcome(state, job["key"]).status_code == 204
        containers.end(0)


def leave_job(stage: Stage, user: CliUser, name: str, task: JobTask, **spec: object) -> str:
    """Run the task, and cancel the run once its job runs. Return the handle of the job."""
    for each in (name, f"{name}-2", f"{name}-cleanup", f"{name}-cleanup-2"):
        stage.play(each, task)
    stage.run(name, task, **{**ORPHAN, **spec})
    wait_until(
        lambda: any(job.get("handle") for job in stage.cluster.status(name).get("externalJobs", [])),
        seconds=SLOW,
        what=f"{name} has its job",
    )
    assert user("cancel", name).code == 0
    assert stage.cluster.wait_for_outcome(name, seconds=SLOW)["orphaned"]
    return task.handles[0]


def records(stage: Stage, name: str) -> int:
    found = stage.control_plane.call("GET", configmaps(stage.namespace), labelSelector=f"{LABEL_ORPHANS}={name}")
    return len(found["items"])


def test_orphans_cancel_ends_the_job_and_dismisses_its_record(
    stage: Stage, tasks: Tasks, user: CliUser, jobs: LocalJobServer
) -> None:
    task = JobTask(tasks, jobs)
    handle = leave_job(stage, user, "etl", task)
    assert f"External job {handle} (load) of etl may run" in user("rerun", "etl").err
    result = user("orphans", "etl", "--cancel")
    assert result.code == 0, result.err
    assert result.out.splitlines()[0] == f"{handle} (load) ended as Cancelled."
    assert "taskrun/etl-cleanup was created." in result.err
    assert state_of(jobs, handle) == "CANCELLED"
    assert (jobs.made, records(stage, "etl"), records(stage, "etl-cleanup")) == (1, 0, 0)
    status = stage.cluster.status("etl-cleanup")
    assert (status["outcome"], status.get("orphaned", False)) == ("Cancelled", False)
    assert [attempt["purpose"] for attempt in status["attempts"]] == ["Cleanup"]
    assert "has no record of orphaned jobs" in user("orphans", "etl", "--cancel").err


def test_orphans_cancel_keeps_the_record_of_a_job_that_did_not_end_and_may_be_repeated(
    stage: Stage, tasks: Tasks, user: CliUser, jobs: LocalJobServer
) -> None:
    task = JobTask(tasks, jobs, cancels=False)
    handle = leave_job(stage, user, "stuck", task)
    result = user("orphans", "stuck", "--cancel", "-o", "json")
    assert result.code == 1
    assert [job["handle"] for job in result.json["jobs"]] == [handle]
    assert "dismissed" not in result.json
    assert (records(stage, "stuck"), records(stage, "stuck-cleanup")) == (1, 1)
    assert user("rerun", "stuck", "--cancel-first").code == 1  # creates stuck-cleanup-2
    task.cancels = True
    stage.play("stuck-cleanup-3", task)
    result = user("orphans", "stuck", "--cancel")
    assert result.code == 0, result.err
    assert "taskrun/stuck-cleanup-3 was created." in result.err
    assert (records(stage, "stuck"), records(stage, "stuck-cleanup"), records(stage, "stuck-cleanup-2")) == (0, 0, 0)
    assert jobs.made == 1


def test_rerun_cancels_the_job_first_and_then_runs_the_task_again(
    stage: Stage, tasks: Tasks, user: CliUser, jobs: LocalJobServer
) -> None:
    task = JobTask(tasks, jobs)
    handle = leave_job(stage, user, "again", task)
    task.seconds = 0.1
    result = user("rerun", "again", "--cancel-first")
    assert result.code == 0, result.err
    assert result.out == "taskrun/again-2 was created.\n"
    assert state_of(jobs, handle) == "CANCELLED"
    assert stage.cluster.wait_for_outcome("again-2", seconds=SLOW)["outcome"] == "Succeeded"
    assert (jobs.made, task.alive) == (2, [])


def test_rerun_adopts_the_job_and_submits_none(stage: Stage, tasks: Tasks, user: CliUser, jobs: LocalJobServer) -> None:
    task = JobTask(tasks, jobs, seconds=5)
    leave_job(stage, user, "taken", task)
    assert user("rerun", "taken", "--adopt").code == 0
    refused = user("orphans", "taken", "--cancel")
    assert refused.code == 1
    assert "belongs to the unfinished TaskRun taken-2 now, so it is not cancelled; nothing was created." in refused.err
    assert stage.cluster.wait_for_outcome("taken-2", seconds=SLOW)["outcome"] == "Succeeded"
    assert jobs.made == 1


def test_orphans_cancel_is_refused_without_a_template_that_can_cancel(
    stage: Stage, tasks: Tasks, user: CliUser, jobs: LocalJobServer
) -> None:
    stage.run("plain", lambda _: tasks.submit_and(lambda _: None, "job-plain"))
    wait_until(lambda: stage.cluster.status("plain").get("externalJobs"), seconds=SLOW, what="it has a job")
    assert user("cancel", "plain").code == 0
    stage.cluster.wait_for_outcome("plain", seconds=SLOW)
    refused = user("orphans", "plain", "--cancel")
    assert refused.code == 1
    assert refused.err.startswith("error: The task of plain registered no adapter and no cleanup handler")
    stage.control_plane.call("DELETE", taskruns(stage.namespace, "plain"))
    wait_until(lambda: stage.cluster.status_if_there("plain") is None, seconds=SLOW, what="it is gone")
    refused = user("orphans", "plain", "--cancel")
    assert refused.err.startswith("error: The TaskRun plain was deleted, and only its template can cancel its jobs")
    assert (refused.code, records(stage, "plain")) == (1, 1)


def test_rerun_that_races_with_the_end_of_a_job_never_runs_a_second_one_beside_it(
    stage: Stage, tasks: Tasks, user: CliUser, jobs: LocalJobServer
) -> None:
    rng = random.Random(12)
    for number in range(RACES):
        name = f"race-{number}"
        task = JobTask(tasks, jobs, seconds=rng.uniform(0.2, 1.5))
        stage.play(f"{name}-2", task)
        stage.run(name, task, **ORPHAN)
        wait_until(lambda task=task: task.handles, seconds=SLOW, what="the job runs", every=0.02)
        time.sleep(rng.uniform(0, 0.3))
        if rng.random() < 0.6:
            user("cancel", name)
        end = time.monotonic() + SLOW
        while (result := user("rerun", name)).code == 1 and "is unfinished" in result.err:
            assert time.monotonic() < end
        if result.code == 1:
            assert f"External job {task.handles[0]} (load) of {name} may run" in result.err
            assert user("orphans", name, "--dismiss", "--yes").code == 0
        else:
            assert state_of(jobs, task.handles[0]) != "RUNNING"
            wait_until(lambda task=task: len(task.handles) == 2, seconds=SLOW, what="the task runs again")
        assert task.alive == []
