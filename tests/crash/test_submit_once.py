"""Histories with real processes: task, operator, state API, API server and job server.

The task is killed (SIGKILL) or frozen (SIGSTOP) at a step of submitting once. The node of a frozen
process is lost: its pod is deleted, and its end is presumed. Later, the process continues beside
its successor. `make test` runs a sample, and `make test-all` (REATTACH_ALL=1) 40 histories.
"""

import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from conformance.jobadapter import MODES
from conformance.tables import PROCESSES, keep
from controlplane import REPOSITORY, ControlPlane, ControlPlaneError
from operator_process import CONTAINER, Containers, Kubelet, Operators, Stage, condition, kubelet_of, stage_of
from ports import free_port
from reattach.cluster.paths import pods, taskruns
from run_histories import write_ca
from stateapi import Servers
from taskpods import environment_of
from waiting import wait_until

JSON = dict[str, Any]

SEEDS = tuple(range(1, 41)) if os.environ.get("REATTACH_ALL") else (4, 7, 8, 13, 26, 29)
STEPS = (
    "before-intent",
    "after-intent",
    "before-submit",
    "leaving",
    "accepted",
    "after-submit",
    "after-handle",
    "watching",
    "before-outcome",
    "after-outcome",
)
AMBIGUOUS_STEPS = ("after-intent", "before-submit", "leaving", "accepted", "after-submit")
"""Steps at which a fault leaves an intent without a handle."""
JOB_EXISTS_STEPS = ("accepted", "after-submit")
SECONDS = {"forgetting-name": 3600, "expiring-token": 3600, "lagging-lookup": 2, "forgetting-lookup": 3600}
LOST_SECONDS = 2
HISTORY_SECONDS = 240
TASK = Path(__file__).parent / "submit_once_task.py"


@dataclass(frozen=True)
class FaultPlan:
    """The faults of the first attempts, one each: step and kind.

    killed: the process is killed.
    dead: the process is killed with its node.
    frozen: the node is lost, and the process freezes for a while.
    """

    seed: int
    mode: str
    faults: tuple[tuple[str, str], ...]
    frozen_seconds: float

    def __str__(self) -> str:
        return f"{self.seed}-{self.mode}-" + "-".join(f"{kind}@{step}" for step, kind in self.faults)

    @property
    def may_be_held(self) -> bool:
        """Return whether a user may have to resolve a submission."""
        for step, kind in self.faults:
            if step in AMBIGUOUS_STEPS and self.mode not in {"name", "forgetting-name"}:
                if self.mode == "nothing":
                    return True
                # A lagging lookup may not find the job yet when the next attempt starts.
                is_found = step in JOB_EXISTS_STEPS and self.mode in {"lookup", "forgetting-lookup"}
                if kind != "killed" and not is_found:
                    return True
        return False

    @property
    def must_be_held(self) -> bool:
        """Return whether only a user can resolve the submission of the first attempt."""
        step, kind = self.faults[0]
        return self.mode == "nothing" and step in AMBIGUOUS_STEPS and kind != "frozen"


def plan_of(seed: int) -> FaultPlan:
    rng = random.Random(seed)
    number = rng.choice((1, 1, 1, 2))
    faults = tuple((rng.choice(STEPS), rng.choice(("killed", "killed", "dead", "frozen"))) for _ in range(number))
    return FaultPlan(seed, MODES[seed % len(MODES)], faults, rng.uniform(0.5, 6))


@dataclass
class JobServer:
    """The job server of the examples as a process of its own."""

    directory: Path
    mode: str
    url: str = ""
    _process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        flags = {
            "--port": port,
            "--host": "127.0.0.1",
            "--database": self._database,
            "--mode": self.mode,
            "--seconds": SECONDS.get(self.mode, 60),
        }
        command = [sys.executable, REPOSITORY / "examples/jobserver/jobserver.py"]
        arguments = [str(part) for part in (*command, *(text for flag in flags.items() for text in flag))]
        with (self.directory / f"{self.mode}.log").open("wb") as log:
            self._process = subprocess.Popen(arguments, stdout=log, stderr=log)
        wait_until(self._is_up, seconds=60, what="the job server is up")

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def made(self, label: str) -> list[str]:
        """Return the ids of all jobs that were ever made with a label."""
        with contextlib.closing(sqlite3.connect(self._database)) as database:
            return [row[0] for row in database.execute("SELECT id FROM jobs WHERE label = ?", (label,))]

    @property
    def _database(self) -> Path:
        return self.directory / f"{self.mode}.sqlite"

    def _is_up(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{self.url}/healthz", trust_env=False).is_success
        return False


@dataclass
class Processes:
    """The real processes in the pods of one history."""

    stage: Stage
    plan: FaultPlan
    jobserver: JobServer
    directory: Path
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)
    injected: list[str] = field(default_factory=list)

    def script(self, containers: Containers) -> None:
        """Run the pod of an attempt, as its kubelet does."""
        faults = self.plan.faults
        step, kind = faults[containers.attempt - 1] if containers.attempt <= len(faults) else ("", "")
        containers.run()
        process, termination_log = self._start(containers, f"{step} {'SIGSTOP' if kind == 'frozen' else 'SIGKILL'}")
        wait_until(
            lambda: process.poll() is not None or _is_stopped(process),
            seconds=HISTORY_SECONDS,
            what="it ends",
            every=0.1,
        )
        if process.poll() is None:
            self.injected.append(f"frozen@{step}")
            self._lose_node(containers)
            time.sleep(self.plan.frozen_seconds)  # frozen beside its successor
            process.send_signal(signal.SIGCONT)
            process.wait(HISTORY_SECONDS)
        elif process.returncode == -signal.SIGKILL:
            self.injected.append(f"{kind}@{step}")
            if kind == "dead":
                self._lose_node(containers)
        code = process.returncode if process.returncode >= 0 else 128 - process.returncode
        containers.end(code, termination_log.read_text())

    def _start(self, containers: Containers, fault: str) -> tuple[subprocess.Popen[bytes], Path]:
        mount = self.directory / containers.uid
        mount.mkdir()
        given = environment_of(containers, mount)
        own = {
            "JOBSERVER_URL": self.jobserver.url,
            "MODE": self.plan.mode,
            "SECONDS": str(SECONDS.get(self.plan.mode, 0)),
            "FAULT": fault,
            "PYTHONPATH": f"{REPOSITORY / 'operator'}:{REPOSITORY / 'tests'}",
        }
        with (mount / "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, TASK], env={**os.environ, **given, **own}, stdout=log, stderr=log
            )
        self.running.append(process)
        return process, mount / "termination-log"

    def _lose_node(self, containers: Containers) -> None:
        """Delete the pod without reporting its end, and wait until the operator presumes it."""
        with contextlib.suppress(ControlPlaneError):
            containers.control_plane.call("DELETE", pods(containers.namespace, containers.name), {})

        def is_presumed() -> bool:
            attempts = self.stage.cluster.status(containers.pod["metadata"]["labels"]["reattach.dev/taskrun"]).get(
                "attempts", []
            )
            return any(each["number"] == containers.attempt and each.get("end") for each in attempts)

        wait_until(is_presumed, seconds=HISTORY_SECONDS, what="its end is presumed", every=0.2)

    @property
    def all_ended(self) -> bool:
        return all(process.poll() is not None for process in self.running)

    def end(self) -> None:
        """Kill the remaining processes."""
        for process in self.running:
            if process.poll() is None:
                process.kill()
                process.wait()


@pytest.fixture(scope="module")
def kubelet(control_plane: ControlPlane) -> Iterator[Kubelet]:
    with kubelet_of(control_plane, is_graceful=True) as kubelet:
        yield kubelet


@pytest.fixture(scope="module")
def stage(control_plane: ControlPlane, kubelet: Kubelet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    directory = tmp_path_factory.mktemp("submit-once")
    servers = Servers(control_plane, directory / "state-api")
    operators = Operators(control_plane, directory / "operators", ca_file=directory / "ca.crt")
    try:
        server = servers.start()
        operators.state_api_url = server.url
        write_ca(server, directory / "ca.crt")
        with stage_of(control_plane, operators, kubelet) as stage:
            yield stage
    finally:
        operators.stop()
        servers.stop()


@pytest.fixture(scope="module")
def rows() -> Iterator[list[JSON]]:
    rows: list[JSON] = []
    yield rows
    keep(PROCESSES, os.environ.get("PYTEST_XDIST_WORKER", "all"), rows)


@pytest.mark.parametrize("seed", SEEDS, ids=lambda seed: str(plan_of(seed)))
def test_killed_or_frozen_process_submits_once(stage: Stage, tmp_path: Path, seed: int, rows: list[JSON]) -> None:
    plan = plan_of(seed)
    jobserver = JobServer(tmp_path, plan.mode)
    jobserver.start()
    processes = Processes(stage, plan, jobserver, tmp_path)
    name = f"history-{seed}"
    try:
        stage.run(
            name,
            lambda _: processes.script,
            template={"spec": {"containers": [CONTAINER], "terminationGracePeriodSeconds": 1}},
            retry={"budgets": {"application": 10}, "backoff": {"initialSeconds": 1, "jitterPercent": 0}},
            deadlines={"lostSeconds": LOST_SECONDS},
        )
        held = run_to_end(stage, name, processes)
        made, status = jobserver.made(f"{stage.namespace}/{name}"), stage.cluster.status(name)
        rows.append(
            {
                "seed": seed,
                "mode": plan.mode,
                "faults": ", ".join(processes.injected),
                "attempts": len(status["attempts"]),
                "held": held,
                "jobs": len(made),
            }
        )
        assert [job["handle"] for job in status["externalJobs"]] == made, (
            "the state must have the one job that was made"
        )
        assert len(made) == 1
        assert (status["outcome"], status["result"]) == ("Succeeded", '{"rows_written":4211}')
        assert len(processes.injected) >= 1
        assert not held or plan.may_be_held, f"held, though a user is not needed after {plan}"
        assert held or not plan.must_be_held, f"not held, though only a user can resolve {plan}"
    finally:
        processes.end()
        jobserver.stop()


def run_to_end(stage: Stage, name: str, processes: Processes) -> int:
    """Wait until the TaskRun ends, resolve its holds, and return their number."""
    holds = 0

    def is_over_or_held() -> bool:
        status = stage.cluster.status(name)
        return bool(status.get("outcome")) or condition(status, "Held").get("status") == "True"

    while True:
        wait_until(is_over_or_held, seconds=HISTORY_SECONDS, what=f"{name} ends or is held", every=0.2)
        if stage.cluster.status(name).get("outcome"):
            wait_until(lambda: processes.all_ended, seconds=HISTORY_SECONDS, what="every process ends", every=0.2)
            return holds
        holds += 1
        wait_until(lambda: processes.all_ended, seconds=HISTORY_SECONDS, what="every process ends", every=0.2)
        resolve(stage, name, processes.jobserver.made(f"{stage.namespace}/{name}"))


def resolve(stage: Stage, name: str, made: list[str]) -> None:
    """Resolve a hold as a careful user does, after all processes have ended."""
    taskrun = stage.cluster.taskrun(name)
    if condition(taskrun["status"], "Held").get("status") != "True":
        return  # a process that continued has stored its handle meanwhile
    action: JSON = {"action": "Adopt", "handle": made[0]} if made else {"action": "Resubmit"}
    given = [
        *taskrun["spec"].get("resolutions", []),
        {"held": "SubmissionUnknown", "key": "load", "generation": 1, **action},
    ]
    stage.control_plane.call("PATCH", taskruns(stage.namespace, name), {"spec": {"resolutions": given}})
    wait_until(
        lambda: condition(stage.cluster.status(name), "Held").get("status") != "True",
        seconds=HISTORY_SECONDS,
        what="the hold ends",
    )


def _is_stopped(process: subprocess.Popen[bytes]) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    return False
