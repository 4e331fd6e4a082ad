"""Orphaned jobs on the real cluster: a TaskRun cancels them, and then the task runs again."""

from typing import Any

from realcluster import IMAGE, Cluster, taskrun
from waiting import wait_until

PROGRAM = """
import os, sys
import reattach
from reattach.adapters.http import CancelRequest, Description, HttpJobs, Names, States, StatusRequest, SubmitRequest

JOBS = HttpJobs(Description(
    address=os.environ["JOBSERVER_URL"],
    submit=SubmitRequest(path="/jobs", body={"name": "{name}"}, handle="id", exists=(409,)),
    names=Names(retention_seconds=None),
    status=StatusRequest(
        path="/jobs/{handle}",
        state="status",
        states=States(active=("RUNNING",), succeeded=("SUCCEEDED",), failed=("FAILED",), cancelled=("CANCELLED",)),
        result="rows_written",
        not_found_says="no job",
    ),
    cancel=CancelRequest(path="/jobs/{handle}/cancel"),
    poll_seconds=0.5,
))


def main(task):
    seconds = 600.0 if task.name == "left" else 1.0
    job = task.submit_once("load", JOBS, {"seconds": seconds, "rows": 7, "label": task.name})
    return {"job": job.handle, "rows": job.wait()}


reattach.run(main, adapters=[JOBS])
"""


def manifest(name: str, **spec: Any) -> str:
    container = {
        "name": "task",
        "image": IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python", "-c", PROGRAM],
        "env": [{"name": "JOBSERVER_URL", "value": "http://jobserver:8000"}],
    }
    return taskrun(name, container, **spec)


def test_orphaned_job_is_cancelled_by_a_taskrun_and_then_the_task_runs_again(release: Cluster, namespace: str) -> None:
    release.apply(manifest("left", cleanup={"onCancel": "Orphan"}), namespace)

    def handles() -> list[str]:
        jobs = (release.get("taskrun", "left", namespace) or {}).get("status", {}).get("externalJobs", [])
        return [job["handle"] for job in jobs if "handle" in job]

    [handle] = wait_until(handles, seconds=120, what="the job is submitted", every=0.5)
    release.reattach("cancel", "left", namespace=namespace)
    assert release.finished("left", namespace)["status"]["orphaned"]
    assert release.job(handle, namespace)["status"] == "RUNNING"

    release.reattach("rerun", "left", "--cancel-first", namespace=namespace)

    assert release.job(handle, namespace)["status"] == "CANCELLED"
    cleanup = release.finished("left-cleanup", namespace)["status"]
    assert [(job["handle"], job["state"]) for job in cleanup["externalJobs"]] == [(handle, "Cancelled")]
    assert [attempt["purpose"] for attempt in cleanup["attempts"]] == ["Cleanup"]
    left = release.kubectl("get", "configmaps", "-l", "reattach.dev/orphans", "-o", "name", namespace=namespace)
    assert left == ""
    again = release.finished("left-2", namespace)["status"]
    assert again["outcome"] == "Succeeded"
    assert release.submissions(namespace) == {"left": 1, "left-2": 1}
