"""What goes wrong on a real cluster, and what must come of it."""

import json
import time
from typing import Any

from realcluster import Cluster, condition_of, taskrun
from waiting import wait_until

# Submits one job if there is none, then counts in its state until the job has ended. Every step goes through the state API.
COUNTING = """
import os, time
import httpx, reattach

jobserver = httpx.Client(base_url=os.environ["JOBSERVER_URL"])

def main(task):
    job_id = task.state.get("job_id")
    if job_id is None:
        job = {"seconds": float(os.environ["SECONDS"]), "rows": 7, "label": task.name}
        job_id = jobserver.post("/jobs", json=job).raise_for_status().json()["id"]
        task.state.set("job_id", job_id, retention=reattach.NEVER_EXPIRE)
    print("watching", job_id, flush=True)
    ticks = task.state.get("ticks", 0)
    while (job := jobserver.get(f"/jobs/{job_id}").json())["status"] == "RUNNING":
        ticks += 1
        task.state.set("ticks", ticks)
        time.sleep(0.5)
    return {"job": job_id, "attempt": task.attempt, "ticks": ticks}

reattach.run(main)
"""


def counting(name: str, *, seconds: float, **spec: Any) -> str:
    """A TaskRun whose external job takes so many seconds."""
    container = {
        "name": "task",
        "image": "localhost/reattach:dev",
        "imagePullPolicy": "IfNotPresent",
        "command": ["python", "-u", "-c", COUNTING],
        "env": [
            {"name": "JOBSERVER_URL", "value": "http://jobserver:8000"},
            {"name": "SECONDS", "value": str(seconds)},
        ],
    }
    return taskrun(name, container, **spec)


def started(release: Cluster, name: str, namespace: str, attempt: int = 1) -> dict[str, Any]:
    """The pod of this attempt, once its task watches its job."""

    def watching() -> dict[str, Any] | None:
        for pod in release.pods_of(name, namespace):
            running = any("running" in status["state"] for status in pod["status"].get("containerStatuses", []))
            if pod["metadata"]["labels"]["reattach.dev/attempt"] == str(attempt) and running:
                return pod if "watching" in release.log(pod["metadata"]["name"], namespace) else None
        return None

    return wait_until(watching, seconds=60, what=f"attempt {attempt} watches its job", every=0.5) or {}


def test_an_image_that_does_not_exist_is_seen_in_the_condition(release: Cluster, namespace: str) -> None:
    container = {"name": "task", "image": "localhost/no-such-image:1", "imagePullPolicy": "Never"}
    release.apply(taskrun("no-image", container), namespace)

    def said() -> str:
        return str(condition_of(release.get("taskrun", "no-image", namespace)).get("message", ""))

    wait_until(lambda: "no-such-image" in said(), seconds=60, what="the condition names the image", every=0.5)
    assert condition_of(release.get("taskrun", "no-image", namespace))["reason"] == "Pending"
    assert len(release.pods_of("no-image", namespace)) == 1


def test_an_image_that_does_not_exist_ends_by_its_own_budget(release: Cluster, namespace: str) -> None:
    container = {"name": "task", "image": "localhost/no-such-image:1", "imagePullPolicy": "Never"}
    budgets = {"budgets": {"neverStarted": 1}, "backoff": {"initialSeconds": 1}}
    release.apply(taskrun("given-up", container, deadlines={"pendingSeconds": 10}, retry=budgets), namespace)

    status = release.finished("given-up", namespace)["status"]

    assert status["outcome"] == "Failed"
    assert [attempt["cause"] for attempt in status["attempts"]] == ["NeverStarted", "NeverStarted"]
    assert status["counts"]["charged"] == {"application": 0, "disruption": 0, "neverStarted": 2, "cleanup": 0}
    assert "no-such-image" in status["attempts"][0]["message"]


def test_a_task_waits_out_a_state_api_that_is_away_for_a_minute(release: Cluster, namespace: str) -> None:
    release.apply(counting("patient", seconds=40), namespace)
    pod = started(release, "patient", namespace)
    try:
        release.scale_state_api(0)
        away_since = time.monotonic()
        log = ""

        def said() -> bool:
            nonlocal log
            log = release.log(pod["metadata"]["name"], namespace)
            return "state API has been unavailable" in log

        wait_until(said, seconds=40, what="the task's log says that it waits", every=1)
        # A job of 40 s is over; without the state API the task can't know more than that, and must not end.
        wait_until(lambda: time.monotonic() - away_since > 60, seconds=90, what="the minute is over", every=1)
        waiting = release.get("taskrun", "patient", namespace)
        assert waiting is not None
        assert "outcome" not in waiting["status"]
        assert len(release.pods_of("patient", namespace)) == 1
    finally:
        release.scale_state_api(2)

    status = release.finished("patient", namespace)["status"]

    assert status["outcome"] == "Succeeded"
    assert len(status["attempts"]) == 1
    assert json.loads(status["result"])["ticks"] >= 1
    assert release.submissions(namespace)["patient"] == 1


def test_an_evicted_task_reattaches_and_its_own_budget_is_untouched(release: Cluster, namespace: str) -> None:
    release.apply(counting("evicted", seconds=20), namespace)
    name = started(release, "evicted", namespace)["metadata"]["name"]
    release.evict(name, namespace)

    status = release.finished("evicted", namespace)["status"]

    assert status["outcome"] == "Succeeded"
    assert [(attempt["cause"], attempt.get("chargedTo")) for attempt in status["attempts"]] == [
        ("Disruption", "disruption"),
        ("Succeeded", None),
    ]
    assert status["attempts"][0]["reason"] == "EvictionByEvictionAPI"
    assert json.loads(status["result"])["attempt"] == 2
    assert release.submissions(namespace)["evicted"] == 1


def test_the_operator_may_be_killed_while_a_task_runs_and_while_it_waits(release: Cluster, namespace: str) -> None:
    # The kubelet waits longer after each end of a container, and forgets them after ten minutes; in a new pod nothing has ended. So the
    # operator is back while the wait goes on.
    release.renew("operator")
    retry = {"budgets": {"application": 2}, "backoff": {"initialSeconds": 40, "jitterPercent": 0}}
    release.apply(counting("orphaned", seconds=60, retry=retry), namespace)
    pod = started(release, "orphaned", namespace)

    release.kill("operator")
    # Its end comes while the operator is away, and by a deletion: only the finalizer keeps it to be read.
    release.kubectl("delete", "pod", pod["metadata"]["name"], "--wait=false", namespace=namespace)

    def waits() -> str | None:
        status = (release.get("taskrun", "orphaned", namespace) or {}).get("status", {})
        return status.get("nextAttemptTime") if condition_of({"status": status}).get("reason") == "BackingOff" else None

    planned = wait_until(waits, seconds=90, what="the end is recorded and the next attempt planned", every=0.5)
    release.kill("operator")
    status = release.finished("orphaned", namespace)["status"]

    assert [attempt["cause"] for attempt in status["attempts"]] == ["Disruption", "Succeeded"]
    second = release.pods_of("orphaned", namespace)[-1]
    assert second["metadata"]["creationTimestamp"] >= planned[:19], "the wait was shortened"
    assert release.submissions(namespace)["orphaned"] == 1


def test_state_that_was_deleted_by_hand_stays_while_it_is_needed(release: Cluster, namespace: str) -> None:
    release.apply(counting("kept", seconds=25), namespace)
    started(release, "kept", namespace)
    state = (release.get("taskrun", "kept", namespace) or {})["status"]["state"]["configMap"]

    release.kubectl("delete", "configmap", state, "--wait=false", namespace=namespace)
    deleted = release.get("configmap", state, namespace)
    needed = release.get("taskrun", "kept", namespace)
    assert deleted is not None
    assert "deletionTimestamp" in deleted["metadata"]
    assert needed is not None
    assert "outcome" not in needed["status"], "the job ended before its state was deleted"

    status = release.finished("kept", namespace)["status"]

    assert status["outcome"] == "Succeeded"
    wait_until(
        lambda: release.get("configmap", state, namespace) is None,
        seconds=30,
        what="the state goes once nobody needs it",
        every=0.5,
    )


def test_state_that_was_forced_away_holds_the_run(release: Cluster, namespace: str) -> None:
    release.apply(counting("lost", seconds=60), namespace)
    started(release, "lost", namespace)
    state = (release.get("taskrun", "lost", namespace) or {})["status"]["state"]["configMap"]

    release.kubectl(
        "patch", "configmap", state, "--type=merge", '-p={"metadata":{"finalizers":[]}}', namespace=namespace
    )
    release.kubectl("delete", "configmap", state, namespace=namespace)

    def held() -> bool:
        return condition_of(release.get("taskrun", "lost", namespace), "Held").get("status") == "True"

    wait_until(held, seconds=60, what="the run is held", every=0.5)
    assert condition_of(release.get("taskrun", "lost", namespace), "Held")["reason"] == "StateLost"
    assert "StateLost" in release.kubectl("get", "trun", "lost", namespace=namespace)
    assert len(release.pods_of("lost", namespace)) == 1
    assert release.submissions(namespace)["lost"] == 1
