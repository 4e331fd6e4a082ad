"""Pods that do not start, or that can't resolve names, on the real cluster.

All TaskRuns of the module are created at once, because each waits for the kubelet or the scheduler.
"""

import json
from typing import Any

import pytest

from realcluster import IMAGE, Cluster, condition_of, taskrun
from waiting import wait_until

SECONDS = 240


def container(name: str, program: str, **fields: Any) -> dict[str, Any]:
    return {
        "name": name,
        "image": IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python", "-uc", program],
        **fields,
    }


def with_init(name: str, init: dict[str, Any], **spec: Any) -> str:
    """Return a TaskRun whose task does nothing, and has one init container."""
    return taskrun(name, container("task", "pass"), {"initContainers": [init]}, **spec)


def with_volume(name: str, **source: Any) -> str:
    """Return a TaskRun whose task does nothing, and mounts one volume."""
    mounts = [{"name": "data", "mountPath": "/data"}]
    return taskrun(name, container("task", "pass", volumeMounts=mounts), {"volumes": [{"name": "data", **source}]})


def with_pod(name: str, **pod: Any) -> str:
    """Return a TaskRun whose task stores a value in the state, from such a pod."""
    return taskrun(name, container("task", STORE), pod, retry={"budgets": {"application": 0}})


STORE = """
import reattach

def main(task):
    task.state.set("row", 17)
    return task.state.get("row")

reattach.run(main, patience=60)
"""
SLEEP = "import time; time.sleep(3600)"
FAIL_ONCE = """
import os, sys, time

if os.environ["REATTACH_ATTEMPT"] == "1":
    sys.exit("row 17 is bad")
time.sleep(3600)
"""
NEVER_READY = {"exec": {"command": ["false"]}, "periodSeconds": 1, "failureThreshold": 3600}

PENDING = {
    "init-image": [r"The image of container fetch can't be pulled"],
    "no-secret": ["FailedMount", 'secret "absent-secret" not found'],
    "no-config": ["FailedMount", 'configmap "absent-config" not found'],
    "no-claim": ['persistentvolumeclaim "absent-claim" not found'],
    "sidecar-not-ready": ["Sidecar proxy runs, but its startup probe has not succeeded"],
    "sidecar-crashes": ["Sidecar proxy ended before it was ready", "exit code 1", "no route to the control plane"],
}
"""The texts that the message of the condition has while the pod does not start, by TaskRun."""


def sidecar(program: str) -> dict[str, Any]:
    return container("proxy", program, restartPolicy="Always", startupProbe=NEVER_READY)


@pytest.fixture(scope="module")
def created(release: Cluster, namespace: str) -> Cluster:
    """Create all TaskRuns of the module."""
    dns = release.get("service", "kube-dns", "kube-system")
    assert dns is not None
    absent_image = container("fetch", "pass", image="localhost/absent:1", imagePullPolicy="Never")
    once = {"budgets": {"application": 0}}
    manifests = [
        with_init("init-fails", container("fetch", "import sys; sys.exit('no credentials: 403')"), retry=once),
        with_init("init-image", absent_image),
        with_volume("no-secret", secret={"secretName": "absent-secret"}),
        with_volume("no-config", configMap={"name": "absent-config"}),
        with_volume("no-claim", persistentVolumeClaim={"claimName": "absent-claim"}),
        with_init("sidecar-not-ready", sidecar(SLEEP)),
        with_init("sidecar-crashes", sidecar("import sys; sys.exit('no route to the control plane')")),
        with_pod("host-network", hostNetwork=True),
        with_pod("no-search", dnsPolicy="None", dnsConfig={"nameservers": [dns["spec"]["clusterIP"]]}),
        taskrun(
            "fails-once",
            container("task", FAIL_ONCE),
            retry={"budgets": {"application": 1}, "backoff": {"initialSeconds": 1}},
        ),
    ]
    items = [json.loads(manifest) for manifest in manifests]
    release.apply(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}), namespace)
    return release


@pytest.mark.parametrize("name", PENDING)
def test_condition_names_why_a_pod_does_not_start(created: Cluster, namespace: str, name: str) -> None:
    seen = dict[str, Any]()

    def is_shown() -> bool:
        seen.update(condition_of(created.get("taskrun", name, namespace)))
        return all(text in seen.get("message", "") for text in PENDING[name])

    try:
        wait_until(is_shown, seconds=SECONDS, what=f"the condition of {name} has {PENDING[name]}", every=0.5)
    except AssertionError as error:
        raise AssertionError(f"{error}; it is {seen}") from None
    assert (seen["status"], seen["reason"]) == ("Unknown", "Pending")


def test_attempt_whose_init_container_fails_has_its_last_log_line(created: Cluster, namespace: str) -> None:
    [attempt] = created.finished("init-fails", namespace)["status"]["attempts"]
    assert "no credentials: 403" in attempt["message"]
    assert (attempt["cause"], attempt["exitCode"]) == ("Application", 1)


@pytest.mark.parametrize("name", ["host-network", "no-search"])
def test_task_whose_pod_can_not_resolve_the_state_api_reaches_it(created: Cluster, namespace: str, name: str) -> None:
    status = created.finished(name, namespace)["status"]
    assert (status["outcome"], status.get("result"), len(status["attempts"])) == ("Succeeded", "17", 1)


def test_start_of_the_second_attempt_is_an_event(created: Cluster, namespace: str) -> None:
    def started() -> list[str]:
        return [
            event["note"]
            for event in created.items("events.events.k8s.io", namespace)
            if (event["regarding"]["name"], event["reason"]) == ("fails-once", "AttemptStarted")
        ]

    [note] = wait_until(started, seconds=SECONDS, what="an attempt of fails-once has an event", every=0.5)
    assert note.startswith("Attempt 2 runs in pod fails-once-")
