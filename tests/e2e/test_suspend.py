"""Suspend and resume on the real cluster: the job continues, and the next attempt reattaches."""

import json
from typing import Any

import pytest

from realcluster import IMAGE, Cluster, ClusterError, condition_of, taskrun
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


def task_container(name: str, seconds: float, program: str = PROGRAM) -> dict[str, Any]:
    return {
        "name": "task",
        "image": IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python", "-c", program, name, str(seconds)],
        "env": [{"name": "JOBSERVER_URL", "value": "http://jobserver:8000"}],
    }


def manifest(name: str, seconds: float, **spec: Any) -> str:
    return taskrun(name, task_container(name, seconds), **{"retry": NO_RETRY, **spec})


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


def test_watcher_that_is_killed_for_its_memory_gets_more_and_reattaches_to_its_job(
    release: Cluster, namespace: str
) -> None:
    needy = PROGRAM.replace('    return {"job"', '    report = b"x" * (100 << 20)\n    return {"job"')
    container = {**task_container("needy", 60, needy), "resources": {"limits": {"memory": "96Mi"}}}
    retry = {"budgets": {"application": 1}, "backoff": {"initialSeconds": 600, "jitterPercent": 0}}
    release.apply(taskrun("needy", container, retry=retry), namespace)
    path = "/spec/template/spec/containers/0/resources/limits/memory"
    more = json.dumps([{"op": "replace", "path": path, "value": "256Mi"}])

    def status() -> dict[str, Any]:
        found: dict[str, Any] = (release.get("taskrun", "needy", namespace) or {}).get("status", {})
        return found

    def repair() -> str:
        return release.kubectl("patch", "taskrun", "needy", "--type=json", "-p", more, namespace=namespace)

    wait_until(
        lambda: [one.get("cause") for one in status().get("attempts", ())] == ["Resource"],
        seconds=120,
        what="the watcher is killed",
        every=0.5,
    )
    [job] = status()["externalJobs"]
    with pytest.raises(ClusterError, match="can't be changed unless the condition Suspended or Held"):
        repair()
    release.reattach("suspend", "needy", namespace=namespace)
    wait_until(
        lambda: condition_of({"status": status()}, "Suspended").get("status") == "True",
        seconds=60,
        what="it is suspended",
        every=0.5,
    )
    repair()
    release.reattach("resume", "needy", namespace=namespace)
    final = release.finished("needy", namespace, seconds=180)["status"]
    assert (final["outcome"], final["result"]) == ("Succeeded", f'{{"job":"{job["handle"]}","rows":7}}')
    assert [one["cause"] for one in final["attempts"]] == ["Resource", "Succeeded"]
    assert len({one["templateHash"] for one in final["attempts"]}) == 2
    assert release.submissions(namespace)["needy"] == 1
