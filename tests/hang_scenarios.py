"""Lives on the real cluster whose first attempt stalls at a step of submitting once, until something is done to it there."""

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
"""Whether every life is lived, or the bounded sample of `make test`."""
NAMES, NOTHING = "refuse-names", "nothing"
NODE = "reattach-worker"
"""Where pods run, unless a life says otherwise."""
LOST_NODE = "reattach-control-plane"
"""Nothing of Reattach runs there, so what is lost with its kubelet is the task's pod alone."""

# argv: its name, what the other side is said to do about a repeated submission, where attempt 1 stalls, seconds that the job takes. The SDK is
# the real one; what is added is where it stalls, and that it cancels the job where that is the step.
PROGRAM = """
import os, sys, time
import reattach
from reattach.adapters.http import CancelRequest, Description, HttpJobs, Names, States, StatusRequest, SubmitRequest
from reattach.task.client import Timing
from reattach.task.context import TaskContext
from reattach.task.settings import from_environment

NAME, CAN, STALLS_AT, SECONDS = sys.argv[1:]

states = States(active=("RUNNING",), succeeded=("SUCCEEDED",), failed=("FAILED",), cancelled=("CANCELLED",))
unique = CAN == "refuse-names"
jobs = Description(
    address="http://jobserver:8000",
    submit=SubmitRequest(path="/jobs", body={"name": "{name}"} if unique else {}, handle="id", exists=(409,) if unique else ()),
    status=StatusRequest(
        path="/jobs/{handle}", state="status", states=states, result="rows_written", not_found_says="no job"
    ),
    cancel=CancelRequest(path="/jobs/{handle}/cancel"),
    names=Names(retention_seconds=None) if unique else None,
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
class Life:
    """What the other side can do, where attempt 1 stalls, on which node it runs, and how long its job takes."""

    can: str
    stalls: str
    node: str = NODE
    seconds: float = 3.0


def begin(release: Cluster, lives: Mapping[str, Life], namespace: str) -> dict[str, str]:
    """Start lives side by side; the names of their pods, once each stalls."""
    release.apply("\n---\n".join(manifest_of(name, life) for name, life in lives.items()), namespace)

    def stalled() -> dict[str, str] | None:
        found = _stalled(release, namespace)
        return found if found.keys() >= lives.keys() else None

    pods = wait_until(stalled, seconds=240, what=f"attempt 1 of each stalls: {', '.join(lives)}", every=1) or {}
    return {name: pods[name] for name in lives}


def manifest_of(name: str, life: Life) -> str:
    container = {
        "name": "task",
        "image": IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python", "-u", "-c", PROGRAM, name, life.can, life.stalls, str(life.seconds)],
    }
    pod: dict[str, Any] = {}
    if life.node != NODE:
        pod["tolerations"] = [{"key": "node-role.kubernetes.io/control-plane", "operator": "Exists"}]
        # Attempt 1 there, since nothing else is as free of pods; the others wherever there is a node that answers.
        preferred = {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [life.node]}]}
        pod["affinity"] = {
            "nodeAffinity": {
                "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "preference": preferred}]
            }
        }
    return taskrun(name, container, pod, deadlines={"lostSeconds": 1})


def _stalled(release: Cluster, namespace: str) -> dict[str, str]:
    """The pods that say so in their logs, by TaskRun. One that does not run yet has no log, which is no failure."""
    every = ("--prefix", "--tail=-1", "--max-log-requests=200", "--ignore-errors")
    log = release.kubectl("logs", "--selector", "reattach.dev/attempt=1", *every, namespace=namespace)
    pods = re.findall(r"^\[pod/(\S+)/task\] stalls at", log, re.MULTILINE)
    return {pod.rsplit("-", 2)[0]: pod for pod in pods}


def force(release: Cluster, pods: Iterable[str], namespace: str) -> None:
    """End pods without any time to end in."""
    release.kubectl("delete", "pod", *pods, "--grace-period=0", "--force", "--wait=false", namespace=namespace)


@contextmanager
def lost_node(release: Cluster) -> Iterator[None]:
    """Nobody answers for `LOST_NODE` meanwhile, while its containers go on. In the end it is back."""
    try:
        _on(LOST_NODE, "systemctl", "stop", "kubelet")
        yield
    finally:
        _on(LOST_NODE, "systemctl", "start", "kubelet")
        wait_until(lambda: _is_ready(release), seconds=90, what=f"{LOST_NODE} is back", every=0.5)


def _is_ready(release: Cluster) -> bool:
    node = json.loads(release.kubectl("get", "node", LOST_NODE, "--output", "json"))
    return bool(condition_of(node, "Ready")["status"] == "True")


class Processes:
    """Those of the tasks of these TaskRuns on a node, without asking Kubernetes: it may not answer for them."""

    def __init__(self, names: Iterable[str], node: str = NODE) -> None:
        self._node = node
        self._found = _on(node, "pgrep", "-f", f"stalls at.* ({'|'.join(names)}) ").split()

    def go_on(self) -> None:
        """All at once: none stalls any longer."""
        _on(self._node, "touch", *(f"/proc/{process}/root/tmp/go" for process in self._found))

    def kill(self) -> None:
        _on(self._node, "kill", "-9", *self._found)


def log_on(node: str, pod: str, namespace: str) -> str:
    """The log of a pod's task, from the node itself."""
    return _on(node, "sh", "-c", f"cat /var/log/pods/{namespace}_{pod}_*/task/*.log")


def _on(node: str, *command: str) -> str:
    done = subprocess.run(["docker", "exec", node, *command], capture_output=True, text=True, check=True)
    return done.stdout
