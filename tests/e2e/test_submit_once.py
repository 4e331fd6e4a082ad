"""One external job, whatever dies and whenever: counted by the job server on the real cluster.

All lives begin at once, side by side. Attempt 1 of each stalls at a step of submitting once, until something is done to it there.
"""

import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from realcluster import RELEASE_NAMESPACE, Cluster, condition_of, taskrun
from waiting import wait_until

# argv: its name, what the other side is said to do about a repeated submission, where attempt 1 stalls, seconds that the job takes.
PROGRAM = """
import logging, os, sys, time
import reattach
from reattach.adapters.http import Cancel, Description, HttpJobs, Names, States, Status, Submit

NAME, CAN, STALLS_AT, SECONDS = sys.argv[1:]
logging.basicConfig()
logging.getLogger("reattach").setLevel(logging.INFO)

states = States(active=("RUNNING",), succeeded=("SUCCEEDED",), failed=("FAILED",), cancelled=("CANCELLED",))
unique = CAN == "refuse-names"
jobs = Description(
    address="http://jobserver:8000",
    submit=Submit(path="/jobs", body={"name": "{name}"} if unique else {}, handle="id", exists=(409,) if unique else ()),
    status=Status(
        path="/jobs/{handle}", state="status", states=states, result="rows_written", not_found_says="no job"
    ),
    cancel=Cancel(path="/jobs/{handle}/cancel"),
    names=Names(retention_seconds=None) if unique else None,
    poll_seconds=0.5,
)

def at(step):
    if step == STALLS_AT and os.environ["REATTACH_ATTEMPT"] == "1":
        print("stalls at", step, flush=True)
        while not os.path.exists("/tmp/go"):
            time.sleep(0.2)

class Stalling(HttpJobs):
    def submit(self, submission):
        at("before-submit")
        submitted = super().submit(submission)
        at("after-submit")
        return submitted

def main(task):
    at("before-intent")
    job = task.submit_once("load", Stalling(jobs), {"seconds": float(SECONDS), "rows": 7, "label": NAME})
    at("after-handle")
    return {"rows": job.wait(), "attempt": task.attempt}

reattach.run(main)
"""
NAMES, NOTHING = "refuse-names", "nothing"
LOST_NODE = "reattach-control-plane"
"""Nothing of Reattach runs there, so what is lost with its kubelet is the task's pod alone."""


@dataclass(frozen=True)
class Life:
    """What the other side can do, where attempt 1 stalls, and what is done to its pod there as soon as all lives have come so far."""

    can: str
    stalls: str
    strike: Callable[[Cluster, str, str], None] | None = None
    node: str = ""
    seconds: float = 3.0


def force(release: Cluster, pod: str, namespace: str) -> None:
    """Without any time to end in."""
    release.kubectl("delete", "pod", pod, "--grace-period=0", "--force", "--wait=false", namespace=namespace)


def evict(release: Cluster, pod: str, namespace: str) -> None:
    """As a drain does, with the two seconds that the pod has to end in."""
    release.evict(pod, namespace)


# With a name that is taken once, whoever comes next may submit again; so no life needs a person.
SETTLED = {
    "forced-before-submit": Life(NAMES, "before-submit", force),
    "forced-after-submit": Life(NAMES, "after-submit", force),
    "evicted-after-submit": Life(NAMES, "after-submit", evict),
    "evicted-after-handle": Life(NAMES, "after-handle", evict),
}
# Nobody can know.
HELD = {
    "held-adopt": Life(NOTHING, "after-submit", evict),
    "held-resubmit": Life(NOTHING, "before-submit", force),
    "held-fail": Life(NOTHING, "after-submit", force),
}
LIVES = {
    **SETTLED,
    **HELD,
    "operator-killed": Life(NAMES, "after-submit"),
    "both-killed": Life(NAMES, "after-submit"),
    "away-before-intent": Life(NAMES, "before-intent"),
    "away-before-handle": Life(NAMES, "after-submit"),
    "cancelled": Life(NAMES, "after-handle", seconds=3600),
    "deleted": Life(NAMES, "after-handle", seconds=3600),
    "deleted-unknown": Life(NAMES, "after-submit", seconds=3600),
    "zombie-submits": Life(NAMES, "before-submit", node=LOST_NODE),
    "zombie-reports": Life(NOTHING, "after-submit", node=LOST_NODE),
}


@pytest.fixture(scope="module")
def namespace(release: Cluster) -> Iterator[str]:
    """All lives, each at the step where its first attempt stalls; those that are struck there are struck already."""
    name = release.create_namespace("submit-once")
    try:
        release.start_jobserver(name)
        release.apply("\n---\n".join(manifest_of(life) for life in LIVES), name)
        for life, about in LIVES.items():
            pod = stalled(release, life, name)
            if about.strike is not None:
                about.strike(release, pod, name)
        yield name
    finally:
        release.let_go_of_held(name)
        release.delete_namespace(name)


def manifest_of(name: str) -> str:
    life = LIVES[name]
    container = {
        "name": "task",
        "image": "localhost/reattach:dev",
        "imagePullPolicy": "IfNotPresent",
        "command": ["python", "-u", "-c", PROGRAM, name, life.can, life.stalls, str(life.seconds)],
    }
    pod: dict[str, Any] = {}
    if life.node:
        pod["tolerations"] = [{"key": "node-role.kubernetes.io/control-plane", "operator": "Exists"}]
        # Attempt 1 there, since nothing else is as free of pods; the others wherever there is a node that answers.
        preferred = {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [life.node]}]}
        pod["affinity"] = {
            "nodeAffinity": {
                "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "preference": preferred}]
            }
        }
    return taskrun(name, container, pod, deadlines={"lostSeconds": 1})


def stalled(release: Cluster, name: str, namespace: str) -> str:
    """The name of attempt 1's pod, once it stalls."""

    def where() -> str | None:
        for pod in release.pods_of(name, namespace):
            running = any("running" in status["state"] for status in pod["status"].get("containerStatuses", []))
            own: str = pod["metadata"]["name"]
            if running and "stalls at" in release.log(own, namespace):
                return own
        return None

    return wait_until(where, seconds=240, what=f"attempt 1 of {name} stalls", every=0.5) or ""


def wait_logged(release: Cluster, pod: str, namespace: str, text: str) -> None:
    wait_until(lambda: text in release.log(pod, namespace), seconds=60, what=f"{pod} logs {text!r}", every=1)


def go_on(release: Cluster, pod: str, namespace: str) -> None:
    """Let a stalled attempt go on."""
    release.kubectl("exec", pod, "--container", "task", "--", "touch", "/tmp/go", namespace=namespace)


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

    wait_until(said, seconds=30, what=f"an event {reason} of {name} says {text}", every=0.5)


# -- the pod dies ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETTLED)
def test_a_pod_that_dies_at_any_step_leaves_one_job(release: Cluster, namespace: str, name: str) -> None:
    status = release.finished(name, namespace)["status"]

    (job,) = release.jobs(namespace, label=name)
    assert status["outcome"] == "Succeeded"
    assert [attempt["cause"] for attempt in status["attempts"]] == ["Disruption", "Succeeded"]
    assert json.loads(status["result"]) == {"rows": 7, "attempt": 2}
    assert [(known["handle"], known["state"]) for known in status["externalJobs"]] == [(job, "Succeeded")]
    counts = status["counts"]
    assert counts["duplicatesAverted"] == (1 if LIVES[name].stalls == "after-submit" else 0)
    assert counts["reattachments"] == (1 if LIVES[name].stalls == "after-handle" else 0)


# -- nobody can know ------------------------------------------------------------------------------------------------


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


# -- the run is ended while a job goes on ---------------------------------------------------------------------------


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


def test_deleting_names_the_job_that_is_left(release: Cluster, namespace: str) -> None:
    handle = wait_job(release, "deleted", namespace)["handle"]

    release.kubectl("delete", "trun", "deleted", "--timeout=90s", namespace=namespace)

    wait_announced(release, "deleted", namespace, "Orphaned", handle)
    log = release.kubectl("logs", "deployment/reattach-operator", "--since=5m", namespace=RELEASE_NAMESPACE)
    assert handle in log


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


# -- operator and state API die -------------------------------------------------------------------------------------


def test_the_operator_dies_with_the_pod(release: Cluster, namespace: str) -> None:
    release.kill("operator")
    force(release, pod_of(release, "operator-killed", namespace), namespace)

    check_settled_once(release, "operator-killed", namespace)


def test_operator_and_state_api_die_with_the_pod(release: Cluster, namespace: str) -> None:
    release.kill("server")
    release.kill("operator")
    force(release, pod_of(release, "both-killed", namespace), namespace)

    check_settled_once(release, "both-killed", namespace)


def pod_of(release: Cluster, name: str, namespace: str) -> str:
    """Of attempt 1."""
    found: str = release.pods_of(name, namespace)[0]["metadata"]["name"]
    return found


def check_settled_once(release: Cluster, name: str, namespace: str) -> None:
    status = release.finished(name, namespace, seconds=180)["status"]
    assert status["outcome"] == "Succeeded"
    assert len(status["attempts"]) == 2
    assert status["counts"]["duplicatesAverted"] == 1
    assert release.submissions(namespace)[name] == 1


def test_nothing_is_submitted_while_the_state_api_is_away(release: Cluster, namespace: str) -> None:
    pods = {name: pod_of(release, name, namespace) for name in ("away-before-intent", "away-before-handle")}
    try:
        release.scale_state_api(0)
        for pod in pods.values():
            go_on(release, pod, namespace)
        for pod in pods.values():
            wait_logged(release, pod, namespace, "state API has not answered")
        assert release.jobs(namespace, label="away-before-intent") == []
        assert "outcome" not in status_of(release, "away-before-intent", namespace)
    finally:
        release.scale_state_api(2)

    for name in pods:
        status = release.finished(name, namespace)["status"]
        assert status["outcome"] == "Succeeded"
        assert len(status["attempts"]) == 1, name
        assert release.submissions(namespace)[name] == 1


# -- the node is lost, and its pods are not -------------------------------------------------------------------------


def test_a_pod_that_was_given_up_with_its_node_wakes_up(release: Cluster, namespace: str) -> None:
    pods = {name: release.pods_of(name, namespace)[0] for name in ("zombie-submits", "zombie-reports")}
    assert {pod["spec"]["nodeName"] for pod in pods.values()} == {LOST_NODE}
    try:
        on_node("systemctl", "stop", "kubelet")
        # Its end is presumed. A name that is taken can be used by whoever comes next; without one, a person is asked.
        assert release.finished("zombie-submits", namespace)["status"]["outcome"] == "Succeeded"
        wait_held(release, "zombie-reports", namespace)
        for name in pods:
            wake_up(name)
        # What it knows is what nobody else could: its report settles the hold.
        status = release.finished("zombie-reports", namespace)["status"]
    finally:
        on_node("systemctl", "start", "kubelet")
    wait_until(
        lambda: (
            condition_of(json.loads(release.kubectl("get", "node", LOST_NODE, "-o", "json")), "Ready")["status"]
            == "True"
        ),
        seconds=60,
        what="the node is back",
        every=0.5,
    )

    assert status["outcome"] == "Succeeded"
    assert status["attempts"][0]["end"] == "Presumed"
    assert status["counts"]["duplicatesAverted"] == 1
    for name in pods:
        assert release.submissions(namespace)[name] == 1


def on_node(*command: str) -> str:
    done = subprocess.run(["docker", "exec", LOST_NODE, *command], capture_output=True, text=True, check=True)
    return done.stdout


def wake_up(name: str) -> None:
    """Let a stalled process go on that no kubelet answers for."""
    for process in on_node("pgrep", "-f", f"reattach.run.* {name} ").split():
        on_node("touch", f"/proc/{process}/root/tmp/go")
