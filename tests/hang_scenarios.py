"""TaskRuns on the real cluster whose first attempt hangs at a step of submitting once."""

import json
import os
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from realcluster import IMAGE, Cluster, condition_of, taskrun
from waiting import wait_until

ALL = bool(os.environ.get("REATTACH_ALL"))
"""Set to run all scenarios. Otherwise, `make test` runs a sample."""
NAMES, NOTHING, TOKEN = "refuse-names", "nothing", "token"
NODE = "reattach-worker"
"""Node of the pods, unless a scenario names another one."""
LOST_NODE = "reattach-control-plane"
"""Node without pods of Reattach, so that the loss of its kubelet affects only the task's pod."""

# argv: name of the TaskRun; mode of the external system; step at which attempt 1 hangs; seconds of
# the job. The SDK is the real one. The program hangs at the step, and cancels the job if the step
# is one of cancelling.
PROGRAM = """
import os, sys, time
import reattach
from reattach.adapters.http import CancelRequest, Description, HttpJobs, Names, States, StatusRequest, SubmitRequest, Token
from reattach.task.client import Timing
from reattach.task.context import TaskContext
from reattach.task.settings import from_environment

NAME, CAN, STALLS_AT, SECONDS = sys.argv[1:]

states = States(active=("RUNNING",), succeeded=("SUCCEEDED",), failed=("FAILED",), cancelled=("CANCELLED",))
unique = CAN == "refuse-names"
token = CAN == "token"
jobs = Description(
    address="http://jobserver:8000",
    submit=SubmitRequest(
        path="/jobs",
        headers={"Idempotency-Key": "{token}"} if token else {},
        body={"name": "{name}"} if unique else {},
        handle="id",
        exists=(409,) if unique else (),
    ),
    status=StatusRequest(
        path="/jobs/{handle}", state="status", states=states, result="rows_written", not_found_says="no job"
    ),
    cancel=CancelRequest(path="/jobs/{handle}/cancel"),
    names=Names(retention_seconds=None) if unique else None,
    token=Token(lifetime_seconds=86400) if token else None,
    poll_seconds=0.5,
)

def at(step):
    if step == STALLS_AT and os.environ["REATTACH_ATTEMPT"] == "1":
        print("stalls at", step, flush=True)
        while not os.path.exists("/tmp/go"):
            time.sleep(0.2)

def main(task):
    job = task.submit_once("load", HttpJobs(jobs), {"seconds": float(SECONDS), "rows": 7, "label": NAME})
    if STALLS_AT.endswith("-cancel"):
        job.cancel()
    try:
        rows = job.wait()
    except reattach.JobFailed as failed:
        if not failed.cancelled:
            raise
        rows = 0
    return {"rows": rows, "attempt": task.attempt}

TaskContext(from_environment(os.environ), timing=Timing(on_step=at)).run(main)
"""


@dataclass(frozen=True)
class HangScenario:
    """One TaskRun: mode of the external system, step of the hang, node, and seconds of the job.

    `lost_seconds`: `spec.deadlines.lostSeconds`.
    """

    mode: str
    stalls_at: str
    node: str = NODE
    seconds: float = 3.0
    lost_seconds: int = 1


def start_scenarios(release: Cluster, scenarios: Mapping[str, HangScenario], namespace: str) -> dict[str, str]:
    """Create the TaskRuns, and return the names of their pods after each hangs."""
    release.apply("\n---\n".join(manifest_of(name, scenario) for name, scenario in scenarios.items()), namespace)

    def all_stalled() -> dict[str, str] | None:
        found = _stalled_pods(release, namespace)
        return found if found.keys() >= scenarios.keys() else None

    pods = wait_until(all_stalled, seconds=240, what=f"attempt 1 of each stalls: {', '.join(scenarios)}", every=1) or {}
    return {name: pods[name] for name in scenarios}


def manifest_of(name: str, scenario: HangScenario) -> str:
    container = {
        "name": "task",
        "image": IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python", "-u", "-c", PROGRAM, name, scenario.mode, scenario.stalls_at, str(scenario.seconds)],
    }
    pod: dict[str, Any] = {}
    if scenario.node != NODE:
        pod["tolerations"] = [{"key": "node-role.kubernetes.io/control-plane", "operator": "Exists"}]
        # Attempt 1 is scheduled there, because the node has the fewest pods. Later attempts run on
        # any ready node.
        preferred = {
            "matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [scenario.node]}]
        }
        pod["affinity"] = {
            "nodeAffinity": {
                "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "preference": preferred}]
            }
        }
    return taskrun(name, container, pod, deadlines={"lostSeconds": scenario.lost_seconds})


def _stalled_pods(release: Cluster, namespace: str) -> dict[str, str]:
    """Return the pods whose logs show the hang, by TaskRun. Pods without a log yet are left out."""
    every = ("--prefix", "--tail=-1", "--max-log-requests=200", "--ignore-errors")
    log = release.kubectl("logs", "--selector", "reattach.dev/attempt=1", *every, namespace=namespace)
    pods = re.findall(r"^\[pod/(\S+)/task\] stalls at", log, re.MULTILINE)
    return {pod.rsplit("-", 2)[0]: pod for pod in pods}


def force(release: Cluster, pods: Iterable[str], namespace: str) -> None:
    """Delete pods without a grace period."""
    release.kubectl("delete", "pod", *pods, "--grace-period=0", "--force", "--wait=false", namespace=namespace)


@contextmanager
def lost_node(release: Cluster) -> Iterator[None]:
    """Stop the kubelet of `LOST_NODE` during the block. Its containers keep running."""
    try:
        _run_on(LOST_NODE, "systemctl", "stop", "kubelet")
        yield
    finally:
        _run_on(LOST_NODE, "systemctl", "start", "kubelet")
        wait_until(lambda: is_ready(release), seconds=90, what=f"{LOST_NODE} is ready again", every=0.5)


@contextmanager
def out_of_service(release: Cluster) -> Iterator[None]:
    """Set the taint `node.kubernetes.io/out-of-service` on `LOST_NODE` during the block."""
    taint = "node.kubernetes.io/out-of-service"
    try:
        release.kubectl("taint", "node", LOST_NODE, f"{taint}=nodeshutdown:NoExecute")
        yield
    finally:
        release.kubectl("taint", "node", LOST_NODE, f"{taint}-")


def is_ready(release: Cluster) -> bool:
    """Return whether `LOST_NODE` is ready."""
    node = json.loads(release.kubectl("get", "node", LOST_NODE, "--output", "json"))
    return bool(condition_of(node, "Ready")["status"] == "True")


class Processes:
    """Processes of these TaskRuns on a node, found without its kubelet."""

    def __init__(self, names: Iterable[str], node: str = NODE) -> None:
        self._node = node
        self._found = _run_on(node, "pgrep", "-f", f"stalls at.* ({'|'.join(names)}) ").split()

    def resume(self) -> None:
        """End the hang of all processes at once."""
        _run_on(self._node, "touch", *(f"/proc/{process}/root/tmp/go" for process in self._found))

    def kill(self) -> None:
        _run_on(self._node, "kill", "-9", *self._found)

    def freeze(self) -> None:
        """Stop all processes with SIGSTOP."""
        _run_on(self._node, "kill", "-STOP", *self._found)

    def wake(self) -> None:
        """End the hang of all processes, and continue them with SIGCONT."""
        self.resume()
        _run_on(self._node, "kill", "-CONT", *self._found)


def log_on(node: str, pod: str, namespace: str) -> str:
    """Return the log of a pod's task from the file on the node."""
    return _run_on(node, "sh", "-c", f"cat /var/log/pods/{namespace}_{pod}_*/task/*.log")


def _run_on(node: str, *command: str) -> str:
    done = subprocess.run(["docker", "exec", node, *command], capture_output=True, text=True, check=True)
    return done.stdout
