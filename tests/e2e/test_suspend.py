"""Suspend and resume on the real cluster: the job continues, and the next attempt reattaches."""

from typing import Any

from realcluster import IMAGE, Cluster, condition_of, taskrun
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
    job = task.submit_once("load", JOBS, {"seconds": float(sys.argv[2]), "rows": 7, "label": sys.argv[1]})
    return {"job": job.handle, "rows": job.wait()}


reattach.run(main)
"""
NO_RETRY = {"budgets": {"application": 0, "disruption": 0, "neverStarted": 0}}


def manifest(name: str, seconds: float, **spec: Any) -> str:
    container = {
        "name": "task",
        "image": IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python", "-c", PROGRAM, name, str(seconds)],
        "env": [{"name": "JOBSERVER_URL", "value": "http://jobserver:8000"}],
    }
    return taskrun(name, container, **{"retry": NO_RETRY, **spec})


def test_suspended_run_keeps_its_job_and_reattaches_when_it_is_resumed(release: Cluster, namespace: str) -> None:
    release.apply(manifest("early", 1, suspend=True), namespace)
    release.apply(manifest("suspended", 25), namespace)

    def status_of(name: str) -> dict[str, Any]:
        status: dict[str, Any] = (release.get("taskrun", name, namespace) or {}).get("status", {})
        return status

    def has_stopped() -> bool:
        status = status_of("suspended")
        return bool(status.get("attempts")) and all("finishTime" in attempt for attempt in status["attempts"])

    wait_until(lambda: status_of("suspended").get("externalJobs"), seconds=90, what="the job is submitted", every=0.5)
    [job] = status_of("suspended")["externalJobs"]
    said = release.reattach("suspend", "suspended", namespace=namespace)
    assert f"{job['handle']} (load) continues" in said
    wait_until(has_stopped, seconds=90, what="the pod is stopped", every=0.5)
    suspended = condition_of(release.get("taskrun", "suspended", namespace), "Suspended")
    assert (suspended["status"], suspended["reason"]) == ("True", "Suspended")
    assert job["handle"] in suspended["message"]
    assert "reattach resume suspended" in release.reattach("explain", "suspended", namespace=namespace)
    assert release.job(job["handle"], namespace)["status"] == "RUNNING"

    early = status_of("early")
    assert condition_of({"status": early}, "Suspended")["status"] == "True"
    assert (release.pods_of("early", namespace), "state" in early, "attempts" in early) == ([], False, False)

    release.reattach("resume", "suspended", namespace=namespace)
    release.reattach("resume", "early", namespace=namespace)
    status = release.finished("suspended", namespace)["status"]
    assert (status["outcome"], [one["cause"] for one in status["attempts"]]) == ("Succeeded", ["Stopped", "Succeeded"])
    assert [one["handle"] for one in status["externalJobs"]] == [job["handle"]]
    assert set(status["counts"]["charged"].values()) == {0}
    assert (status["counts"]["submissions"], status["counts"]["reattachments"]) == (1, 1)
    early = release.finished("early", namespace)["status"]
    assert (early["outcome"], [one["cause"] for one in early["attempts"]]) == ("Succeeded", ["Succeeded"])
    assert release.submissions(namespace) == {"early": 1, "suspended": 1}
