"""Pods of ended attempts on the real cluster: the kubelet ends the rest, and logs are kept."""

from typing import Any

import yaml

from realcluster import IMAGE, Cluster, taskrun
from waiting import wait_until

TASK = "import sys, time; time.sleep(1); print('row 17 is bad', flush=True); sys.exit(3)"
SHIPPER = """
import signal, sys, time

def flush(*_):
    print('flushed', flush=True)
    sys.exit(0)

signal.signal(signal.SIGTERM, flush)
while True:
    time.sleep(1)
"""


def with_log_shipper(name: str, **spec: object) -> str:
    """Return the manifest of a TaskRun whose task fails beside a container that never ends."""
    containers = [
        {"name": name, "image": IMAGE, "imagePullPolicy": "IfNotPresent", "command": ["python", "-c", program]}
        for name, program in (("task", TASK), ("shipper", SHIPPER))
    ]
    body = {
        "apiVersion": "reattach.dev/v1alpha1",
        "kind": "TaskRun",
        "metadata": {"name": name},
        "spec": {"template": {"spec": {"terminationGracePeriodSeconds": 5, "containers": containers}}, **spec},
    }
    return yaml.safe_dump(body)


def test_failed_attempt_with_a_log_shipper_keeps_both_logs_and_its_end(release: Cluster, namespace: str) -> None:
    retry = {"budgets": {"application": 1}, "backoff": {"initialSeconds": 1}}
    release.apply(with_log_shipper("shipped", retry=retry), namespace)
    release.apply(with_log_shipper("forgotten", podRetention="None"), namespace)

    status = release.finished("shipped", namespace)["status"]
    assert [(one["cause"], one["exitCode"], one["end"]) for one in status["attempts"]] == [
        ("Application", 3, "Reported")
    ] * 2
    for pod in release.pods_of("shipped", namespace):
        assert pod["status"]["reason"] == "DeadlineExceeded"
        name = pod["metadata"]["name"]
        assert release.log(name, namespace) == "row 17 is bad\n"
        assert release.log(name, namespace, "shipper") == "flushed\n"
    assert "row 17 is bad" in release.reattach("logs", "shipped", namespace=namespace)

    assert release.finished("forgotten", namespace)["status"]["attempts"][0]["exitCode"] == 3
    wait_until(lambda: not release.pods_of("forgotten", namespace), seconds=60, what="no pod is kept", every=0.5)


STUBBORN = """
import os, signal, time

if os.environ["REATTACH_ATTEMPT"] == "1":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(3600)
"""


def test_pod_that_takes_long_to_stop_is_replaced_at_once_and_its_end_is_reported_later(
    release: Cluster, namespace: str
) -> None:
    container = {
        "name": "task",
        "image": IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python", "-c", STUBBORN],
    }
    release.apply(
        taskrun(
            "stubborn",
            container,
            {"terminationGracePeriodSeconds": 25},
            podReplacementPolicy="TerminatingOrFailed",
            retry={"backoff": {"initialSeconds": 1}},
        ),
        namespace,
    )

    def first() -> dict[str, Any] | None:
        running = [pod for pod in release.pods_of("stubborn", namespace) if pod["status"]["phase"] == "Running"]
        return running[0] if running else None

    name = wait_until(first, seconds=60, what="attempt 1 runs", every=0.5)["metadata"]["name"]
    release.kubectl("delete", "pod", name, "--wait=false", namespace=namespace)
    wait_until(lambda: len(release.pods_of("stubborn", namespace)) == 2, seconds=60, what="both pods exist", every=0.2)

    status = release.finished("stubborn", namespace)["status"]
    ends = [(one["cause"], one["reason"], one["end"]) for one in status["attempts"]]
    assert ends == [("Disruption", "Deleted", "Reported"), ("Succeeded", "Completed", "Reported")]

    def left() -> list[str]:
        return [pod["metadata"]["name"] for pod in release.pods_of("stubborn", namespace)]

    # The finalizer is removed after the end is recorded.
    wait_until(lambda: len(left()) == 1, seconds=60, what="the deleted pod is gone", every=0.2)
    assert left() != [name]


GREEDY = """
import os, signal, sys, time

signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
if os.environ["REATTACH_ATTEMPT"] == "1":
    open("/tmp/data", "wb").write(b"x" * 40_000_000)
    time.sleep(3600)
"""


def test_attempt_that_the_kubelet_evicts_for_its_own_limit_fails_although_it_exits_with_0(
    release: Cluster, namespace: str
) -> None:
    container = {
        "name": "task",
        "image": IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python", "-c", GREEDY],
        "resources": {"limits": {"ephemeral-storage": "10Mi"}},
    }
    retry = {"budgets": {"application": 1}, "backoff": {"initialSeconds": 1}}
    release.apply(taskrun("greedy", container, retry=retry), namespace)
    status = release.finished("greedy", namespace, seconds=240)["status"]
    ends = [(one["cause"], one["reason"], one["exitCode"]) for one in status["attempts"]]
    assert ends == [("Resource", "Evicted", 0), ("Succeeded", "Completed", 0)]
    assert status["attempts"][0]["message"].startswith("Pod ephemeral local storage usage exceeds")
