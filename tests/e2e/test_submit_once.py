"""What comes of submitting once on the real cluster, beside the deaths that `test_death_at_each_step.py` goes through.

A person answers a hold; the run is ended while its job goes on; the state API is away; a node is lost, and its pods are not. All lives begin at
once, side by side. `make test` lives the sample, `make test-all` (REATTACH_ALL=1) all.
"""

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from hang_scenarios import (
    ALL,
    LOST_NODE,
    NAMES,
    NOTHING,
    HangScenario,
    Processes,
    force,
    log_on,
    lost_node,
    start_scenarios,
)
from realcluster import RELEASE_NAMESPACE, Cluster, condition_of
from reattach.task.submission import STALE_SECONDS
from waiting import wait_until

# Nobody can know.
HELD = {
    "held-adopt": HangScenario(NOTHING, "after-submit"),
    "held-resubmit": HangScenario(NOTHING, "before-submit"),
    "held-fail": HangScenario(NOTHING, "after-submit"),
}
SAMPLE = {
    **HELD,
    "away-before-intent": HangScenario(NAMES, "before-intent"),
    "cancelled": HangScenario(NAMES, "after-handle", seconds=3600),
}
SCENARIOS = SAMPLE | (
    {
        "away-before-handle": HangScenario(NAMES, "after-submit"),
        "deleted": HangScenario(NAMES, "after-handle", seconds=3600),
        "deleted-unknown": HangScenario(NAMES, "after-submit", seconds=3600),
        "zombie-submits": HangScenario(NAMES, "before-submit", LOST_NODE),
        "zombie-reports": HangScenario(NOTHING, "after-submit", LOST_NODE),
    }
    if ALL
    else {}
)
beyond_the_sample = pytest.mark.skipif(not ALL, reason="REATTACH_ALL=1 lives it")


@pytest.fixture(scope="module")
def namespace(release: Cluster, namespace: str) -> Iterator[str]:
    """All lives, each at the step where its first attempt stalls; the pods of those about which nobody can know are dead already."""
    try:
        pods = start_scenarios(release, SCENARIOS, namespace)
        release.evict(pods["held-adopt"], namespace)
        force(release, (pods["held-resubmit"], pods["held-fail"]), namespace)
        yield namespace
    finally:
        release.let_go_of_held(namespace)


def wait_logged(release: Cluster, pod: str, namespace: str, text: str) -> None:
    wait_until(lambda: text in release.log(pod, namespace), seconds=60, what=f"{pod} logs {text!r}", every=1)


def status_of(release: Cluster, name: str, namespace: str) -> dict[str, Any]:
    status: dict[str, Any] = (release.get("taskrun", name, namespace) or {}).get("status", {})
    return status


def wait_held(release: Cluster, name: str, namespace: str) -> dict[str, Any]:
    """The condition Held, once a person is needed."""

    def held() -> dict[str, Any] | None:
        condition = condition_of(release.get("taskrun", name, namespace), "Held")
        return condition if condition.get("status") == "True" else None

    return wait_until(held, seconds=120, what=f"{name} is held", every=0.5) or {}


def wait_job(release: Cluster, name: str, namespace: str, state: str = "Active") -> dict[str, Any]:
    """The external job in `status.externalJobs`, once it is shown with this state."""

    def shown() -> dict[str, Any] | None:
        jobs = status_of(release, name, namespace).get("externalJobs", [])
        return next((job for job in jobs if job["state"] == state), None)

    return wait_until(shown, seconds=60, what=f"status.externalJobs of {name} shows it {state}", every=0.5) or {}


def notes_of(release: Cluster, name: str, namespace: str, reason: str) -> list[str]:
    """What the events of a TaskRun say, also of one that is gone."""
    events = release.items("events.events.k8s.io", namespace)
    return [event["note"] for event in events if (event["regarding"]["name"], event["reason"]) == (name, reason)]


def wait_announced(release: Cluster, name: str, namespace: str, reason: str, text: str) -> None:
    def said() -> bool:
        return any(text in note for note in notes_of(release, name, namespace, reason))

    wait_until(said, seconds=90, what=f"an event {reason} of {name} says {text}", every=0.5)


# -- nobody can know -------------------------------------------------------------------------------


def test_what_is_held_is_seen_wherever_people_look(release: Cluster, namespace: str) -> None:
    for name in HELD:
        condition = wait_held(release, name, namespace)
        assert condition["reason"] == "SubmissionUnknown"
        assert "load" in condition["message"]
        assert "SubmissionUnknown" in release.kubectl("get", "trun", name, namespace=namespace)
        assert [attempt["cause"] for attempt in status_of(release, name, namespace)["attempts"]] == [
            "Disruption",
            "Held",
        ]
        assert len(release.pods_of(name, namespace)) <= 2
        assert f"kubectl reattach resolve {name}" in release.reattach("explain", name, namespace=namespace)
        wait_announced(release, name, namespace, "SubmissionUnknown", "load")

    def counted() -> bool:
        return release.metric('reattach_held_taskruns{reason="SubmissionUnknown"}') >= len(HELD)

    wait_until(counted, seconds=30, what="the operator's metric counts them", every=0.5)
    assert release.metric('reattach_job_decisions_total{decision="held"}', "server") >= len(HELD)


def test_a_person_names_the_job_and_it_is_taken_over(release: Cluster, namespace: str) -> None:
    wait_held(release, "held-adopt", namespace)
    (job,) = release.jobs(namespace, label="held-adopt")

    release.reattach("resolve", "held-adopt", "--adopt", job, namespace=namespace)
    status = release.finished("held-adopt", namespace)["status"]

    assert status["outcome"] == "Succeeded"
    assert json.loads(status["result"]) == {"rows": 7, "attempt": 3}
    assert status["counts"]["duplicatesAverted"] == 1
    assert condition_of({"status": status}, "Held")["status"] == "False"
    assert release.submissions(namespace)["held-adopt"] == 1


def test_a_person_says_that_there_is_none_and_it_is_submitted(release: Cluster, namespace: str) -> None:
    wait_held(release, "held-resubmit", namespace)
    assert release.jobs(namespace, label="held-resubmit") == []

    release.reattach("resolve", "held-resubmit", "--resubmit", namespace=namespace)
    status = release.finished("held-resubmit", namespace)["status"]

    assert status["outcome"] == "Succeeded"
    assert status["counts"]["submissions"] == release.submissions(namespace)["held-resubmit"] == 1


def test_a_person_says_that_it_fails(release: Cluster, namespace: str) -> None:
    wait_held(release, "held-fail", namespace)

    release.reattach("resolve", "held-fail", "--fail", namespace=namespace)
    status = release.finished("held-fail", namespace)["status"]

    assert status["outcome"] == "Failed"
    assert condition_of({"status": status})["reason"] == "FailedByResolution"
    assert len(status["attempts"]) == 2
    assert release.submissions(namespace)["held-fail"] == 1


# -- the run is ended while a job goes on ----------------------------------------------------------


def test_cancelling_names_the_job_that_is_left(release: Cluster, namespace: str) -> None:
    handle = wait_job(release, "cancelled", namespace)["handle"]

    release.kubectl("patch", "trun", "cancelled", "--type=merge", '-p={"spec":{"cancel":true}}', namespace=namespace)
    over = release.finished("cancelled", namespace)

    assert over["status"]["outcome"] == "Cancelled"
    assert [(job["handle"], job["state"]) for job in over["status"]["externalJobs"]] == [(handle, "Orphaned")]
    assert handle in condition_of(over, "Orphaned")["message"]
    assert "reattach.dev/external-jobs" not in over["metadata"].get("finalizers", [])
    wait_announced(release, "cancelled", namespace, "Orphaned", handle)
    assert release.job(handle, namespace)["status"] == "RUNNING"


@beyond_the_sample
def test_deleting_names_the_job_that_is_left(release: Cluster, namespace: str) -> None:
    handle = wait_job(release, "deleted", namespace)["handle"]

    release.kubectl("delete", "trun", "deleted", "--timeout=90s", namespace=namespace)

    wait_announced(release, "deleted", namespace, "Orphaned", handle)
    log = release.kubectl("logs", "deployment/reattach-operator", "--since=5m", namespace=RELEASE_NAMESPACE)
    assert handle in log


@beyond_the_sample
def test_deleting_waits_for_a_person_where_nobody_knows_whether_there_is_a_job(
    release: Cluster, namespace: str
) -> None:
    release.kubectl("delete", "trun", "deleted-unknown", "--wait=false", namespace=namespace)
    wait_held(release, "deleted-unknown", namespace)
    (job,) = release.jobs(namespace, label="deleted-unknown")

    release.reattach("resolve", "deleted-unknown", "--adopt", job, namespace=namespace)

    wait_until(
        lambda: release.get("trun", "deleted-unknown", namespace) is None,
        seconds=60,
        what="the TaskRun goes once a person has answered",
        every=0.5,
    )
    wait_announced(release, "deleted-unknown", namespace, "Orphaned", job)


# -- the state API is away -------------------------------------------------------------------------


def test_nothing_is_submitted_while_the_state_api_is_away(release: Cluster, namespace: str) -> None:
    away = [name for name in SCENARIOS if name.startswith("away-")]
    pods = {name: release.pods_of(name, namespace)[0]["metadata"]["name"] for name in away}
    try:
        release.scale_state_api(0)
        Processes(away).resume()
        for pod in pods.values():
            wait_logged(release, pod, namespace, "state API has been unavailable")
        assert release.jobs(namespace, label="away-before-intent") == []
        assert "outcome" not in status_of(release, "away-before-intent", namespace)
    finally:
        release.scale_state_api(2)

    for name in pods:
        status = release.finished(name, namespace)["status"]
        assert status["outcome"] == "Succeeded"
        assert len(status["attempts"]) == 1, name
        assert release.submissions(namespace)[name] == 1


# -- the node is lost, and its pods are not --------------------------------------------------------


@beyond_the_sample
def test_a_pod_that_was_given_up_with_its_node_wakes_up(release: Cluster, namespace: str) -> None:
    pods = {name: release.pods_of(name, namespace)[0] for name in ("zombie-submits", "zombie-reports")}
    assert {pod["spec"]["nodeName"] for pod in pods.values()} == {LOST_NODE}
    began = time.monotonic()
    with lost_node(release):
        # Its end is presumed. A name that is taken can be used by whoever comes next; without one, a person is asked.
        first = release.finished("zombie-submits", namespace)["status"]
        wait_held(release, "zombie-reports", namespace)
        # What it was told is so old by now that it does not submit on it, though it would only be told of the job that is there.
        time.sleep(max(0.0, began + STALE_SECONDS - time.monotonic()))
        Processes(pods, LOST_NODE).resume()
        # What it knows is what nobody else could: its report settles the hold.
        status = release.finished("zombie-reports", namespace)["status"]
        zombie = pods["zombie-submits"]["metadata"]["name"]
        wait_until(
            lambda: "Fenced" in log_on(LOST_NODE, zombie, namespace),
            seconds=60,
            what=f"{zombie} is told that it is over",
        )
        assert "too much time has passed" in log_on(LOST_NODE, zombie, namespace)

    assert first["outcome"] == status["outcome"] == "Succeeded"
    assert status["attempts"][0]["end"] == "Presumed"
    assert status["counts"]["duplicatesAverted"] == 1
    for name in pods:
        assert release.submissions(namespace)[name] == 1
    name = release.job(first["externalJobs"][0]["handle"], namespace)["name"]
    assert release.ask_jobserver("counts", namespace)["by_token"][name]["asked"] == 1
