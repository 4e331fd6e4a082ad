"""Histories of a TaskRun in which the operator is killed at a chosen write, and restarted."""

import datetime as dt
import json
import os
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from controlplane import REPOSITORY, ControlPlane
from operator_process import Cluster, Containers, Kubelet, Operator, Operators, Script
from ports import free_port
from proxy import Door, Point, Proxy
from reattach.api.names import ANNOTATION_CA, CA_FILE, LABEL_ORPHANS, TOKEN_AUDIENCE, TOKEN_FILE
from reattach.cluster.paths import configmaps
from stateapi import Server
from waiting import wait_until

JSON = dict[str, Any]

HISTORY_SECONDS = 180
QUIET_SECONDS = 2
"""Seconds after the end of a run until the operator counts as done with it.

Later writes do not count.
"""
NAME = "load"


@dataclass(frozen=True)
class Scenario:
    """Spec of a TaskRun, and what its pods do.

    `submissions(namespace)` counts what the pods submitted to the external system.
    `prepare(namespace)` creates what the TaskRun needs.
    """

    spec: JSON
    script_of: Callable[[int], Script]
    submissions: Callable[[str], int] = lambda _: 0
    prepare: Callable[[str], None] = lambda _: None


@dataclass
class RunHistory:
    """Observations of one history. Times are when the API server received the request."""

    point: Point | None
    status: JSON
    """Empty if the TaskRun is gone."""
    pods: list[str]
    records: list[JSON]
    """Records of orphaned jobs."""
    submissions: int
    struck: str | None
    """The write at which the operator died."""
    starts: int
    writes: list[str]
    log: str
    """Log of all processes of the operator."""
    waits: list[str]
    """The `nextAttemptTime`s that were recorded, in order."""
    created: list[dt.datetime]
    """Creation time of each pod."""
    restarted_at: dt.datetime | None
    """Restart time of the operator after its crash."""


@dataclass
class HistoryRunner:
    """Runs scenarios on one control plane, with one kubelet and one proxy."""

    control_plane: ControlPlane
    operators: Operators
    kubelet: Kubelet
    proxy: Proxy
    program: Sequence[str] = ("-m", "reattach.process")

    def run(self, scenario: Scenario, point: Point | None) -> RunHistory:
        """Run the scenario from start to end in a new namespace, and return its history."""
        namespace = self.control_plane.create_namespace("crash")
        mark = self.control_plane.audit_mark()
        self.kubelet.play(namespace, lambda _, attempt: scenario.script_of(attempt))
        operator: Operator | None = None
        door = self.proxy.open(f"crash-{namespace}", lambda: _pid_of(operator), point)
        operator = self.operators.make(namespaces=[namespace], kubeconfig=door.kubeconfig, program=self.program)
        try:
            starts, restarted_at = self._run_to_the_end(operator, namespace, scenario, door)
            cluster = Cluster(self.control_plane, namespace)
            return RunHistory(
                point=point,
                status=cluster.status_if_there(NAME) or {},
                pods=[pod["metadata"]["name"].rpartition("-")[2] for pod in cluster.pods(NAME)],
                records=_records_in(self.control_plane, namespace),
                submissions=scenario.submissions(namespace),
                struck=door.struck,
                starts=starts,
                writes=door.writes,
                log=operator.log,
                **self._recorded(namespace, mark),
                restarted_at=restarted_at,
            )
        finally:
            operator.kill()
            self.proxy.close(door)
            self.kubelet.forget(namespace)
            self.control_plane.delete_namespace(namespace)

    def _run_to_the_end(
        self, operator: Operator, namespace: str, scenario: Scenario, door: Door
    ) -> tuple[int, dt.datetime | None]:
        """Start the operator, and restart it after a crash, until nothing is left to do.

        Return the number of starts and the time of the restart.
        """
        cluster = Cluster(self.control_plane, namespace)
        operator.start()
        starts, restarted_at = 1, None
        scenario.prepare(namespace)
        cluster.create(NAME, scenario.spec)
        end = time.monotonic() + HISTORY_SECONDS
        over_since: float | None = None
        while True:
            alive, now = operator.exit_code() is None, time.monotonic()
            if not alive:
                operator.start()
                starts, restarted_at = starts + 1, dt.datetime.now(dt.UTC)
            over_since = (over_since or now) if alive and is_over(cluster) else None
            # The last crash may happen at an event, when nothing is left to do; the restarted
            # operator must then find the run complete. The proxy reports the kill before the
            # process has ended, so the condition is the restart. If the run is over for a while
            # without a crash, it had fewer writes than the crash point.
            if over_since is not None and (starts > 1 if door.struck else door.is_over):
                break
            # Only the next iteration ends the history, so that a crash decided right now is seen by
            # then.
            door.is_over = not door.struck and over_since is not None and now - over_since > QUIET_SECONDS
            if now > end:
                shown = cluster.status_if_there(NAME)
                raise AssertionError(f"not over after {HISTORY_SECONDS} s: {shown}\n{operator.log[-3000:]}")
            time.sleep(0.1)
        return starts, restarted_at

    def _recorded(self, namespace: str, mark: int) -> JSON:
        waits: list[str] = []
        created: list[dt.datetime] = []
        for event in self.control_plane.audit(mark, namespace=namespace):
            about = event["objectRef"]
            if event["responseStatus"]["code"] >= 300:
                continue
            if event["verb"] == "patch" and about.get("subresource") == "status" and about["resource"] == "taskruns":
                wait = event["requestObject"].get("status", {}).get("nextAttemptTime")
                if wait is not None:
                    waits.append(wait)
            if event["verb"] == "create" and about["resource"] == "pods" and "subresource" not in about:
                created.append(dt.datetime.fromisoformat(event["requestReceivedTimestamp"]))
        return {"waits": waits, "created": created}


def is_over(cluster: Cluster) -> bool:
    """Return whether the TaskRun is terminal or gone, and no pod or state has a finalizer."""
    status = cluster.status_if_there(NAME)
    if status is not None and not status.get("outcome"):
        return False
    states = cluster.control_plane.call("GET", configmaps(cluster.namespace))["items"]
    return all(not found["metadata"].get("finalizers") for found in (*cluster.pods(NAME), *states))


def _records_in(control_plane: ControlPlane, namespace: str) -> list[JSON]:
    found = control_plane.call("GET", configmaps(namespace), labelSelector=LABEL_ORPHANS)["items"]
    return [json.loads(each["data"]["record"]) for each in found]


def _pid_of(operator: Operator | None) -> int:
    assert operator is not None
    assert operator.process is not None
    return operator.process.pid


def normalised(status: JSON) -> JSON:
    """Return the part of the status that is the same in each history: no times, no UIDs."""
    attempts = [
        {
            name: value
            for name, value in attempt.items()
            if name not in {"podName", "podUID", "startTime", "finishTime", "message"}
        }
        for attempt in status["attempts"]
    ]
    conditions = [{name: found[name] for name in ("type", "status", "reason")} for found in status["conditions"]]
    fixed = {
        name: status.get(name) for name in ("outcome", "counts", "result", "observedGeneration", "nextAttemptTime")
    }
    jobs = [
        {
            name: value
            for name, value in job.items()
            if name not in {"handle", "url", "submittedTime", "cancelRequestedTime"}
        }
        | {"has handle": "handle" in job}
        for job in status.get("externalJobs", ())
    ]
    return {**fixed, "attempts": attempts, "conditions": conditions, "has state": "state" in status, "jobs": jobs}


# -- a task that is a process ----------------------------------------------------------------------

TASK = """
import os, sys, time
import httpx
import reattach

jobs = httpx.Client(base_url=os.environ["JOBSERVER_URL"], trust_env=False)

def main(task):
    job_id = task.state.get("job_id")
    if job_id is None:
        job_id = jobs.post("/jobs", json={"seconds": 1, "rows": 4211, "label": task.namespace}).raise_for_status().json()["id"]
        task.state.set("job_id", job_id, retention=reattach.NEVER_EXPIRE)
        raise ConnectionError("the first attempt crashes on purpose")
    while (job := jobs.get(f"/jobs/{job_id}").raise_for_status().json())["status"] == "RUNNING":
        time.sleep(0.1)
    return {"rows_written": job["rows_written"]}

reattach.run(main)
"""


@dataclass
class TaskSubprocess:
    """A task in a subprocess: environment and token of the pod, and the CA of its annotation.

    `program`: arguments of the interpreter. `environment_of(attempt)` adds variables.
    """

    directory: Path
    jobserver_url: str
    program: Sequence[str] = ("-c", TASK)
    environment_of: Callable[[int], dict[str, str]] = lambda _: {}

    def script(self, containers: Containers) -> None:
        """Run the container from start to exit."""
        containers.run()
        exit_code, message = self._run(containers)
        containers.end(exit_code, message)

    def _run(self, containers: Containers) -> tuple[int, str]:
        mount = self.directory / containers.uid
        mount.mkdir()
        termination_log = mount / "termination-log"
        termination_log.touch()
        token = containers.control_plane.token(containers.namespace, audiences=[TOKEN_AUDIENCE], pod=containers.pod)
        (mount / TOKEN_FILE).write_text(token)
        (mount / CA_FILE).write_text(containers.pod["metadata"]["annotations"][ANNOTATION_CA])
        given = {each["name"]: each["value"] for each in containers.pod["spec"]["containers"][0]["env"]}
        own = {
            "REATTACH_DIRECTORY": str(mount),
            "REATTACH_TERMINATION_LOG": str(termination_log),
            "JOBSERVER_URL": self.jobserver_url,
            **self.environment_of(containers.attempt),
        }
        process = subprocess.run(
            [sys.executable, *self.program],
            env={**os.environ, **given, **own},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        code = process.returncode if process.returncode >= 0 else 128 - process.returncode
        return code, termination_log.read_text() or process.stderr[-1000:]


class JobServer:
    """The external system of the examples."""

    def __init__(self, directory: Path, mode: str = "nothing") -> None:
        directory.mkdir(exist_ok=True)
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        program = REPOSITORY / "examples/jobserver/jobserver.py"
        flags = ["--port", str(port), "--database", str(directory / "jobs.sqlite"), "--mode", mode]
        self._log = (directory / "jobserver.log").open("wb")
        self._process = subprocess.Popen([sys.executable, str(program), *flags], stdout=self._log, stderr=self._log)
        wait_until(self._is_up, seconds=60, what="the job server to respond")

    def submissions(self, label: str) -> int:
        """Return the number of submitted jobs with this label."""
        found: int = httpx.get(f"{self.url}/stats", trust_env=False).json()["by_label"].get(label, 0)
        return found

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()

    def _is_up(self) -> bool:
        try:
            return httpx.get(f"{self.url}/healthz", trust_env=False).is_success
        except httpx.TransportError:
            return False


def write_ca(server: Server, path: Path) -> None:
    """Write the CA of a test state API to the file that the operator reads."""
    path.write_text("".join(ssl.DER_cert_to_PEM_cert(der) for der in server.ca.get_ca_certs(binary_form=True)))
