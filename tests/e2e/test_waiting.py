"""A task releases its pod while its external job runs, and gets the result once the job has ended."""

from typing import Any

from realcluster import IMAGE, Cluster, condition_of, taskrun
from waiting import wait_until

PROGRAM = """
import os
from datetime import timedelta
import reattach
from reattach.adapters.http import Description, HttpJobs, Names, States, StatusRequest, SubmitRequest

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
    poll_seconds=0.5,
))


def main(task):
    job = task.submit_once("load", JOBS, {"seconds": 25, "rows": 7, "label": "waits"})
    return {"job": job.handle, "rows": job.wait(release_pod=True, every=timedelta(hours=1))}


reattach.run(main)
"""
NO_BUDGETS = {"budgets": {"application": 0, "disruption": 0, "neverStarted": 0, "notReady": 0}}


def test_task_releases_its_pod_until_its_job_has_ended_and_submits_once(release: Cluster, namespace: str) -> None:
    container = {
        "name": "task",
        "image": IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python", "-c", PROGRAM],
        "env": [{"name": "JOBSERVER_URL", "value": "http://jobserver:8000"}],
    }
    release.apply(taskrun("waits", container, retry=NO_BUDGETS), namespace)

    def waits(checks: int) -> dict[str, Any] | None:
        found = release.get("taskrun", "waits", namespace) or {}
        is_waiting = condition_of(found, "Succeeded").get("reason") == "Waiting" if found.get("status") else False
        is_released = not release.pods_of("waits", namespace)
        return found if is_waiting and is_released and found["status"]["counts"]["waiting"] == checks else None

    found = wait_until(lambda: waits(1), seconds=180, what="the pod is released", every=0.5)
    [job] = found["status"]["externalJobs"]
    assert f"load (handle {job['handle']}) since " in condition_of(found, "Succeeded")["message"]
    assert release.submissions(namespace) == {"waits": 1}
    assert "reattach wake waits" in release.reattach("explain", "waits", namespace=namespace)

    wait_until(
        lambda: release.job(job["handle"], namespace)["status"] == "SUCCEEDED",
        seconds=120,
        what="the job has ended",
        every=1,
    )
    assert "will check its external job now" in release.reattach("wake", "waits", namespace=namespace)
    status = release.finished("waits", namespace)["status"]
    assert (status["outcome"], {one["cause"] for one in status["attempts"][:-1]}) == ("Succeeded", {"Waiting"})
    assert (set(status["counts"]["charged"].values()), status["counts"]["submissions"]) == ({0}, 1)
    assert release.submissions(namespace) == {"waits": 1}
