"""Each kind of end on the real cluster: a job that still runs at the job server is orphaned.

All TaskRuns run at the same time. The fixture ends each of them once its job runs, and each test
waits for one end.
"""

import contextlib
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import pytest

from hang_scenarios import ALL, LOST_NODE, NODE, lost_node
from realcluster import IMAGE, RELEASE_NAMESPACE, Cluster, ClusterError, condition_of, taskrun
from waiting import wait_until

CANCEL_SECONDS = 15
"""Time for which the job of `slow` ignores its cancellation."""
NEVER = "never"

# argv: label; behavior; seconds of the job; seconds for which it ignores its cancellation.
PROGRAM = """
import os, sys, time
import httpx
import reattach
from reattach.adapters.http import CancelRequest, Description, HttpJobs, Names, States, StatusRequest, SubmitRequest

LABEL, BEHAVIOR, SECONDS, CANCEL_SECONDS = sys.argv[1:]
ADDRESS = os.environ["JOBSERVER_URL"]
REQUEST = {"seconds": float(SECONDS), "rows": 7, "label": LABEL}
REQUEST["cancel_seconds"] = None if CANCEL_SECONDS == "never" else float(CANCEL_SECONDS)
STATUS = StatusRequest(
    path="/jobs/{handle}",
    state="status",
    states=States(active=("RUNNING",), succeeded=("SUCCEEDED",), failed=("FAILED",), cancelled=("CANCELLED",)),
    result="rows_written",
    not_found_says="no job",
)
JOBS = HttpJobs(Description(
    address=ADDRESS,
    submit=SubmitRequest(path="/jobs", body={"name": "{name}"}, handle="id", exists=(409,)),
    names=Names(retention_seconds=None),
    status=STATUS,
    cancel=CancelRequest(path="/jobs/{handle}/cancel"),
    poll_seconds=0.5,
))


class Crashes(HttpJobs):
    def submit(self, submission):
        os._exit(1)  # the request never leaves


def main(task):
    if BEHAVIOR == "state":
        job = task.state.get("job_id")
        if job is None:
            job = httpx.post(f"{ADDRESS}/jobs", json=REQUEST).raise_for_status().json()["id"]
            task.state.set("job_id", job)
        time.sleep(3600)
    job = task.submit_once("load", JOBS, REQUEST)
    if BEHAVIOR == "fails":
        raise RuntimeError("on purpose")
    if BEHAVIOR == "gives-up":
        raise reattach.PermanentFailure("on purpose")
    if BEHAVIOR == "held":
        unnamed = Description(name="unnamed", address=ADDRESS, submit=SubmitRequest(path="/jobs", handle="id"), status=STATUS)
        task.submit_once("second", Crashes(unnamed), {"label": "not-submitted"})
    return {"job": job.handle, "rows": job.wait()}


def stop(cleanup):
    httpx.post(f"{ADDRESS}/jobs/{cleanup.state.get('job_id')}/cancel").raise_for_status()


if BEHAVIOR == "unregistered":
    reattach.run(main)
elif BEHAVIOR == "state":
    reattach.run(main, on_cleanup=stop)
else:
    reattach.run(main, adapters=[JOBS])
"""


@dataclass(frozen=True)
class Scenario:
    """One TaskRun. `label`: that of its job, by default its name. `seconds`: of the job."""

    behavior: str = "waits"
    seconds: float = 3600
    cancel_seconds: str = "0"
    label: str = ""
    image: str = IMAGE
    spec: dict[str, Any] = field(default_factory=dict)


GONE_IMAGE = "localhost/reattach:gone"
KEEPS = {"cleanup": {"onDelete": "Cancel"}, "submission": {"idempotencyKey": "shared"}}
SCENARIOS = {
    "cancelled": Scenario(),
    "deleted": Scenario(),
    "foreground": Scenario(),
    "deadline": Scenario(),
    "fails": Scenario("fails"),
    "gives-up": Scenario("gives-up"),
    "resolved": Scenario("held", spec={"retry": {"budgets": {"application": 1}, "backoff": {"initialSeconds": 1}}}),
    "state": Scenario("state"),
    "unregistered": Scenario("unregistered"),
    "slow": Scenario(cancel_seconds=str(CANCEL_SECONDS)),
    "ignored": Scenario(cancel_seconds=NEVER, spec={"cleanup": {"deadlineSeconds": 60}}),
    "no-image": Scenario(image=GONE_IMAGE, spec={"cleanup": {"deadlineSeconds": 20}}),
    "shared-a": Scenario(label="shared", spec=KEEPS),
    "shared-b": Scenario(label="shared", spec=KEEPS),
}
ELSEWHERE = {
    "no-quota": Scenario(spec={"cleanup": {"deadlineSeconds": 20}}),
    "gated": Scenario(spec={"cleanup": {"deadlineSeconds": 20}}),
    "no-namespace": Scenario(),
}
"""Each in a namespace of its own: it is full, its pods are gated, or it is deleted."""
APPLIED = Scenario(seconds=40, spec={"submission": {"idempotencyKey": "applied"}})
"""Started when the others end, so that its job still runs when it is deleted."""
LOST = Scenario(spec={"cleanup": {"deadlineSeconds": 20}, "deadlines": {"lostSeconds": 1}})
"""Its pods run only on the node that is lost."""
ORPHANED = {"unregistered", "ignored", "no-image", "no-quota", "gated", "no-namespace"}
"""TaskRuns that leave their jobs running."""


ON_LOST_NODE = {
    "nodeSelector": {"kubernetes.io/hostname": LOST_NODE},
    "tolerations": [{"key": "node-role.kubernetes.io/control-plane", "operator": "Exists"}],
}
GATES = """
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingAdmissionPolicy
metadata: {{name: {name}}}
spec:
  failurePolicy: Fail
  reinvocationPolicy: Never
  matchConstraints:
    namespaceSelector: {{matchLabels: {{kubernetes.io/metadata.name: {name}}}}}
    resourceRules:
    - {{apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [pods]}}
  mutations:
  - patchType: ApplyConfiguration
    applyConfiguration:
      expression: 'Object{{spec: Object.spec{{schedulingGates: [Object.spec.schedulingGates{{name: "example.com/gate"}}]}}}}'
---
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingAdmissionPolicyBinding
metadata: {{name: {name}}}
spec: {{policyName: {name}}}
"""
"""Policy that gates each new pod of the namespace whose name it has."""


def manifest_of(name: str, namespace: str) -> str:
    scenario = (SCENARIOS | ELSEWHERE | {"applied": APPLIED, "lost": LOST})[name]
    arguments = [scenario.label or name, scenario.behavior, str(scenario.seconds), scenario.cancel_seconds]
    container = {
        "name": "task",
        "image": scenario.image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python", "-u", "-c", PROGRAM, *arguments],
        "env": [{"name": "JOBSERVER_URL", "value": f"http://jobserver.{namespace}:8000"}],
    }
    return taskrun(name, container, ON_LOST_NODE if name == "lost" else {}, **scenario.spec)


def images_on_node(*command: str) -> None:
    subprocess.run(["docker", "exec", NODE, "ctr", "--namespace", "k8s.io", "images", *command], check=True)


@pytest.fixture(scope="module")
def places(release: Cluster, namespace: str) -> Iterator[dict[str, str]]:
    """Return the namespace of each TaskRun. The job server is in that of `cancelled`."""
    own = {name: release.create_namespace("endings") for name in ELSEWHERE}
    try:
        yield dict.fromkeys(SCENARIOS, namespace) | own
    finally:
        for found in (namespace, *own.values()):
            with contextlib.suppress(ClusterError):  # a TaskRun that ends meanwhile
                release.let_go_of_held(found)
        release.kubectl(
            "delete", "mutatingadmissionpolicybinding,mutatingadmissionpolicy", own["gated"], "--ignore-not-found"
        )
        for name in ("no-quota", "gated"):
            release.delete_namespace(own[name])


@pytest.fixture(scope="module", autouse=True)
def ended(release: Cluster, namespace: str, places: dict[str, str]) -> Iterator[None]:
    """Start all TaskRuns, and end each of them after its job began to run."""
    images_on_node("tag", "--force", IMAGE, GONE_IMAGE)
    try:
        for place in set(places.values()):
            names = [name for name, its in places.items() if its == place]
            release.apply("\n---\n".join(manifest_of(name, namespace) for name in names), place)
        for name, place in places.items():
            if name != "state":
                wait_handle(release, name, place)
        wait_until(lambda: "state" in running(release, namespace), seconds=60, what="the job of `state` runs", every=1)
        images_on_node("rm", GONE_IMAGE)
        quota = {
            "apiVersion": "v1",
            "kind": "ResourceQuota",
            "metadata": {"name": "full"},
            "spec": {"hard": {"pods": "0"}},
        }
        release.apply(json.dumps(quota), places["no-quota"])
        release.kubectl("apply", "-f", "-", stdin=GATES.format(name=places["gated"]))
        wait_until(lambda: gates_new_pods(release, places["gated"]), seconds=60, what="new pods are gated", every=1)
        for name in ("cancelled", "state", "unregistered", "slow", "ignored", "no-image", "no-quota", "gated"):
            release.reattach("cancel", name, namespace=places[name])
        patch = json.dumps({"spec": {"deadlines": {"runSeconds": 1}}})
        release.kubectl("patch", "trun", "deadline", "--type=merge", "--patch", patch, namespace=namespace)
        release.kubectl("delete", "trun", "deleted", "--wait=false", namespace=namespace)
        release.kubectl("delete", "trun", "foreground", "--cascade=foreground", "--wait=false", namespace=namespace)
        release.kubectl("delete", "namespace", places["no-namespace"], "--wait=false")
        release.apply(manifest_of("applied", namespace), namespace)
        yield
    finally:
        subprocess.run(
            ["docker", "exec", NODE, "ctr", "--namespace", "k8s.io", "images", "rm", GONE_IMAGE], check=False
        )


def gates_new_pods(release: Cluster, namespace: str) -> bool:
    """Return whether the policy is in force. It is a while after its creation."""
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "probe"},
        "spec": {"containers": [{"name": "c", "image": IMAGE}]},
    }
    command = ("create", "-f", "-", "--dry-run=server", "--output", "json")
    created = json.loads(release.kubectl(*command, namespace=namespace, stdin=json.dumps(pod)))
    return bool(created["spec"].get("schedulingGates"))


def wait_handle(release: Cluster, name: str, namespace: str) -> str:
    def shown() -> str | None:
        status = (release.get("trun", name, namespace) or {}).get("status", {})
        return next((job["handle"] for job in status.get("externalJobs", []) if job.get("handle")), None)

    return str(wait_until(shown, seconds=150, what=f"status of {name} shows the handle of its job", every=1))


def wait_gone(release: Cluster, name: str, namespace: str) -> None:
    wait_until(lambda: release.get("trun", name, namespace) is None, seconds=120, what=f"{name} is gone", every=0.5)


def running(release: Cluster, namespace: str) -> dict[str, int]:
    """Return the number of jobs that run at the job server, by label."""
    by_label: dict[str, int] = release.ask_jobserver("running", namespace)["by_label"]
    return by_label


def job_of(release: Cluster, label: str, namespace: str) -> dict[str, Any]:
    """Return the only job with this label, as the job server shows it."""
    [handle] = release.jobs(namespace, label=label)
    return release.job(handle, namespace)


def seconds_between(first: str, second: str) -> float:
    return (datetime.fromisoformat(second) - datetime.fromisoformat(first)).total_seconds()


# The first two tests look at runs that have not ended.


def test_job_that_is_being_cancelled_is_shown_as_cancelling(release: Cluster, namespace: str) -> None:
    def cancelling() -> bool:
        status = (release.get("trun", "ignored", namespace) or {}).get("status", {})
        return any(job["state"] == "Cancelling" for job in status.get("externalJobs", []))

    wait_until(cancelling, seconds=60, what="status shows that the job is being cancelled", every=0.5)


def test_deletion_and_creation_with_a_key_give_one_job_and_its_result(release: Cluster, namespace: str) -> None:
    handle = wait_handle(release, "applied", namespace)
    release.kubectl("delete", "trun", "applied", "--timeout=60s", namespace=namespace)
    assert release.job(handle, namespace)["status"] == "RUNNING"
    release.apply(manifest_of("applied", namespace), namespace)

    over = release.finished("applied", namespace)

    status = over["status"]
    assert (status["outcome"], condition_of(over, "PredecessorOrphaned")["status"]) == ("Succeeded", "True")
    assert json.loads(status["result"]) == {"job": handle, "rows": 7}
    assert release.submissions(namespace)["applied"] == 1


# The job is cancelled.


@pytest.mark.parametrize(
    "name,outcome,reason",
    [
        ("cancelled", "Cancelled", "Cancelled"),
        ("deadline", "Failed", "RunDeadlineExceeded"),
        ("fails", "Failed", "ApplicationFailed"),
        ("gives-up", "Failed", "PermanentFailure"),
    ],
)
def test_end_of_a_taskrun_cancels_its_job(
    release: Cluster, namespace: str, name: str, outcome: str, reason: str
) -> None:
    over = release.finished(name, namespace)

    status = over["status"]
    assert (status["outcome"], condition_of(over)["reason"], status["ending"]["reason"]) == (outcome, reason, reason)
    job = job_of(release, name, namespace)
    assert job["status"] == "CANCELLED"
    [shown] = status["externalJobs"]
    assert (shown["handle"], shown["state"]) == (job["id"], "Cancelled")
    assert [attempt.get("purpose") for attempt in status["attempts"]] == [None, "Cleanup"]
    assert status["attempts"][1]["cause"] == "Succeeded"
    assert not status.get("orphaned")
    assert "reattach.dev/external-jobs" not in over["metadata"].get("finalizers", [])


@pytest.mark.parametrize("name", ["deleted", "foreground"])
def test_deletion_of_a_taskrun_cancels_its_job(release: Cluster, namespace: str, name: str) -> None:
    wait_gone(release, name, namespace)

    assert job_of(release, name, namespace)["status"] == "CANCELLED"
    assert release.pods_of(name, namespace) == []


def test_resolution_with_fail_cancels_the_other_job(release: Cluster, namespace: str) -> None:
    def held() -> bool:
        return condition_of(release.get("trun", "resolved", namespace), "Held").get("status") == "True"

    wait_until(held, seconds=120, what="`resolved` is held", every=0.5)
    release.reattach("resolve", "resolved", "--fail", namespace=namespace)
    over = release.finished("resolved", namespace)

    assert (over["status"]["outcome"], condition_of(over)["reason"]) == ("Failed", "FailedByResolution")
    assert job_of(release, "resolved", namespace)["status"] == "CANCELLED"
    assert release.submissions(namespace).get("not-submitted", 0) == 0


def test_handler_cancels_a_job_whose_id_is_only_in_task_state(release: Cluster, namespace: str) -> None:
    over = release.finished("state", namespace)

    assert over["status"]["outcome"] == "Cancelled"
    assert job_of(release, "state", namespace)["status"] == "CANCELLED"
    assert over["status"].get("externalJobs", []) == []


def test_run_is_cancelled_only_after_its_job_has_ended(release: Cluster, namespace: str) -> None:
    over = release.finished("slow", namespace)

    assert over["status"]["outcome"] == "Cancelled"
    job = job_of(release, "slow", namespace)
    assert job["status"] == "CANCELLED"
    assert over["status"]["externalJobs"][0]["state"] == "Cancelled"
    # The time in the status has whole seconds.
    assert seconds_between(job["cancel_requested_at"], over["status"]["completionTime"]) > CANCEL_SECONDS - 1


# The job runs on, and is listed.


def assert_orphaned(over: dict[str, Any], handle: str) -> str:
    """Check that the ended TaskRun lists the job, and return the message of the condition."""
    assert over["status"]["outcome"] == "Cancelled"
    assert over["status"]["orphaned"] is True
    assert [(job["handle"], job["state"]) for job in over["status"]["externalJobs"]] == [(handle, "Orphaned")]
    assert "reattach.dev/external-jobs" not in over["metadata"].get("finalizers", [])
    message: str = condition_of(over, "Orphaned")["message"]
    assert handle in message
    return message


def test_job_that_ignores_its_cancellation_is_orphaned_with_the_time_of_the_request(
    release: Cluster, namespace: str
) -> None:
    over = release.finished("ignored", namespace)

    job = job_of(release, "ignored", namespace)
    message = assert_orphaned(over, job["id"])
    assert "cancellation was requested at" in message
    requested = over["status"]["externalJobs"][0]["cancelRequestedTime"]
    assert abs(seconds_between(requested, job["cancel_requested_at"])) < 10
    assert job["status"] == "RUNNING"


@pytest.mark.parametrize("name", ["no-quota", "no-image", "gated"])
def test_cleanup_that_can_not_start_ends_at_its_deadline(
    release: Cluster, namespace: str, places: dict[str, str], name: str
) -> None:
    over = release.finished(name, places[name])

    status = over["status"]
    assert_orphaned(over, job_of(release, name, namespace)["id"])
    assert 0 <= seconds_between(status["ending"]["cleanupDeadline"], status["completionTime"]) < 15
    pods = release.pods_of(name, places[name])
    assert [pod for pod in pods if pod["metadata"].get("finalizers")] == []
    assert all(pod["status"]["phase"] in {"Succeeded", "Failed"} for pod in pods)


def test_task_that_registered_nothing_gets_no_cleanup_attempt(release: Cluster, namespace: str) -> None:
    over = release.finished("unregistered", namespace)

    assert_orphaned(over, job_of(release, "unregistered", namespace)["id"])
    assert [attempt.get("purpose") for attempt in over["status"]["attempts"]] == [None]


def test_deleted_namespace_goes_away_and_the_log_names_the_job(
    release: Cluster, namespace: str, places: dict[str, str]
) -> None:
    wait_until(lambda: not release.exists(places["no-namespace"]), seconds=120, what="the namespace is gone", every=0.5)

    job = job_of(release, "no-namespace", namespace)
    assert job["status"] == "RUNNING"
    log = release.kubectl("logs", "deployment/reattach-operator", "--since=10m", namespace=RELEASE_NAMESPACE)
    assert job["id"] in log


# The job of another run.


def test_deletion_of_the_second_run_with_a_key_keeps_the_job_of_the_first(release: Cluster, namespace: str) -> None:
    counts = {
        name: (release.get("trun", name, namespace) or {})["status"]["counts"] for name in ("shared-a", "shared-b")
    }
    [second] = [name for name, of in counts.items() if of.get("preexistingJobs", 0) == 1]
    [first] = set(counts) - {second}

    release.kubectl("delete", "trun", second, "--timeout=90s", namespace=namespace)
    assert job_of(release, "shared", namespace)["status"] == "RUNNING"
    assert "outcome" not in (release.get("trun", first, namespace) or {})["status"]

    release.kubectl("delete", "trun", first, "--timeout=90s", namespace=namespace)
    assert job_of(release, "shared", namespace)["status"] == "CANCELLED"


# All of them.


def test_no_job_runs_that_no_taskrun_lists_as_orphaned(
    release: Cluster, namespace: str, places: dict[str, str]
) -> None:
    for name, place in places.items():
        if release.get("trun", name, place) is not None:
            release.finished(name, place)

    assert set(running(release, namespace)) == ORPHANED
    listed = [
        found["metadata"]["name"]
        for place in {namespace, places["no-quota"], places["gated"]}
        for found in json.loads(
            release.kubectl(
                "get", "trun", "--field-selector", "status.orphaned=true", "--output", "json", namespace=place
            )
        )["items"]
    ]
    assert set(listed) == ORPHANED - {"no-namespace"}


@pytest.mark.skipif(not ALL, reason="REATTACH_ALL=1 runs it")
def test_cleanup_on_a_lost_node_ends_at_its_deadline(release: Cluster, namespace: str) -> None:
    release.apply(manifest_of("lost", namespace), namespace)
    handle = wait_handle(release, "lost", namespace)
    with lost_node(release):
        release.reattach("cancel", "lost", namespace=namespace)
        over = release.finished("lost", namespace)
        pods = release.pods_of("lost", namespace)

    assert_orphaned(over, handle)
    # The second cleanup pod, if Kubernetes has evicted the first one, finds no node.
    first, *others = over["status"]["attempts"]
    assert ("purpose" in first, {attempt["purpose"] for attempt in others}) == (False, {"Cleanup"})
    assert {attempt["end"] for attempt in (first, *others)} == {"Presumed"}
    assert [pod for pod in pods if pod["metadata"].get("finalizers")] == []
    assert 0 <= seconds_between(over["status"]["ending"]["cleanupDeadline"], over["status"]["completionTime"]) < 15
