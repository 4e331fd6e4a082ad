"""Lives with real processes: the task is killed (SIGKILL) or frozen (SIGSTOP) on its way to having submitted, the real operator and the real
state API go on from there, on a real API server, and the job server counts.

A frozen process is on a node that can't be reached: its pod is deleted and nobody reports its end, so that is presumed; later it goes on
where it was, beside its successor. `make test` lives a few of these lives, `make test-all` (REATTACH_ALL=1) 40.
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
from reattach.api.names import ANNOTATION_CA, CA_FILE, TOKEN_AUDIENCE, TOKEN_FILE
from reattach.cluster.paths import pods, taskruns
from run_histories import write_ca
from stateapi import Servers
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
DOUBTFUL = ("after-intent", "before-submit", "leaving", "accepted", "after-submit")
"""Who is struck here leaves an intent without a handle."""
MADE = ("accepted", "after-submit")
SECONDS = {"forgetting-name": 3600, "expiring-token": 3600, "lagging-lookup": 2, "forgetting-lookup": 3600}
LOST_SECONDS = 2
HISTORY_SECONDS = 240
TASK = Path(__file__).parent / "submit_once_task.py"


@dataclass(frozen=True)
class Fate:
    """What strikes the first attempts, one each: where, and how (`killed`; `dead`: with its node; `frozen`: with its node, for a while)."""

    seed: int
    mode: str
    blows: tuple[tuple[str, str], ...]
    frozen_seconds: float

    def __str__(self) -> str:
        return f"{self.seed}-{self.mode}-" + "-".join(f"{how}@{step}" for step, how in self.blows)

    @property
    def may_be_held(self) -> bool:
        """Whether DESIGN §5 leaves something to a person."""
        for step, how in self.blows:
            if step in DOUBTFUL and self.mode not in {"name", "forgetting-name"}:
                if self.mode == "nothing":
                    return True
                # A look-up that lags may find nothing yet when the next attempt comes.
                is_found = step in MADE and self.mode in {"lookup", "forgetting-lookup"}
                if how != "killed" and not is_found:
                    return True
        return False

    @property
    def must_be_held(self) -> bool:
        """Whether nothing but a person can help: the first blow leaves a doubt that nobody ever clears up."""
        step, how = self.blows[0]
        return self.mode == "nothing" and step in DOUBTFUL and how != "frozen"


def fate_of(seed: int) -> Fate:
    chance = random.Random(seed)
    number = chance.choice((1, 1, 1, 2))
    blows = tuple((chance.choice(STEPS), chance.choice(("killed", "killed", "dead", "frozen"))) for _ in range(number))
    return Fate(seed, MODES[seed % len(MODES)], blows, chance.uniform(0.5, 6))


@dataclass
class JobServer:
    """The example's outside system as a process of its own."""

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
        wait_until(self._is_up, seconds=60, what="the job server answers")

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def made(self, label: str) -> list[str]:
        """The ids of the jobs that were ever made with this label."""
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
    """What runs in the pods of one life: a real process each."""

    stage: Stage
    fate: Fate
    jobserver: JobServer
    directory: Path
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)
    struck: list[str] = field(default_factory=list)

    def script(self, containers: Containers) -> None:
        """A pod's life, as its kubelet sees it."""
        blows = self.fate.blows
        step, how = blows[containers.attempt - 1] if containers.attempt <= len(blows) else ("", "")
        containers.run()
        process, termination_log = self._start(containers, f"{step} {'SIGSTOP' if how == 'frozen' else 'SIGKILL'}")
        wait_until(
            lambda: process.poll() is not None or _is_stopped(process),
            seconds=HISTORY_SECONDS,
            what="it ends",
            every=0.1,
        )
        if process.poll() is None:
            self.struck.append(f"frozen@{step}")
            self._lose_node(containers)
            time.sleep(self.fate.frozen_seconds)  # how long it is frozen, beside a successor that does what it does
            process.send_signal(signal.SIGCONT)
            process.wait(HISTORY_SECONDS)
        elif process.returncode == -signal.SIGKILL:
            self.struck.append(f"{how}@{step}")
            if how == "dead":
                self._lose_node(containers)
        code = process.returncode if process.returncode >= 0 else 128 - process.returncode
        containers.end(code, termination_log.read_text())

    def _start(self, containers: Containers, blow: str) -> tuple[subprocess.Popen[bytes], Path]:
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
            "JOBSERVER_URL": self.jobserver.url,
            "MODE": self.fate.mode,
            "SECONDS": str(SECONDS.get(self.fate.mode, 0)),
            "BLOW": blow,
            "PYTHONPATH": f"{REPOSITORY / 'operator'}:{REPOSITORY / 'tests'}",
        }
        with (mount / "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, TASK], env={**os.environ, **given, **own}, stdout=log, stderr=log
            )
        self.running.append(process)
        return process, termination_log

    def _lose_node(self, containers: Containers) -> None:
        """Kubernetes deletes the pod, nobody reports its end, and in time the operator presumes it."""
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
        """Whatever happened."""
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


@pytest.mark.parametrize("seed", SEEDS, ids=lambda seed: str(fate_of(seed)))
def test_a_killed_or_frozen_process_submits_once(stage: Stage, tmp_path: Path, seed: int, rows: list[JSON]) -> None:
    fate = fate_of(seed)
    jobserver = JobServer(tmp_path, fate.mode)
    jobserver.start()
    processes = Processes(stage, fate, jobserver, tmp_path)
    name = f"life-{seed}"
    try:
        stage.run(
            name,
            lambda _: processes.script,
            template={"spec": {"containers": [CONTAINER], "terminationGracePeriodSeconds": 1}},
            retry={"budgets": {"application": 10}, "backoff": {"initialSeconds": 1, "jitterPercent": 0}},
            deadlines={"lostSeconds": LOST_SECONDS},
        )
        held = live(stage, name, processes)
        made, status = jobserver.made(f"{stage.namespace}/{name}"), stage.cluster.status(name)
        rows.append(
            {
                "seed": seed,
                "mode": fate.mode,
                "struck": ", ".join(processes.struck),
                "attempts": len(status["attempts"]),
                "held": held,
                "jobs": len(made),
            }
        )
        assert [job["handle"] for job in status["externalJobs"]] == made, "one job, and that is the one that is known"
        assert len(made) == 1
        assert (status["outcome"], status["result"]) == ("Succeeded", '{"rows_written":4211}')
        assert len(processes.struck) >= 1
        assert not held or fate.may_be_held, f"held, though {fate} leaves nothing to a person"
        assert held or not fate.must_be_held, f"not held, though only a person can tell after {fate}"
    finally:
        processes.end()
        jobserver.stop()


def live(stage: Stage, name: str, processes: Processes) -> int:
    """Until it is over; how often a person was asked."""
    asked = 0

    def is_over_or_held() -> bool:
        status = stage.cluster.status(name)
        return bool(status.get("outcome")) or condition(status, "Held").get("status") == "True"

    while True:
        wait_until(is_over_or_held, seconds=HISTORY_SECONDS, what=f"{name} ends or is held", every=0.2)
        if stage.cluster.status(name).get("outcome"):
            wait_until(lambda: processes.all_ended, seconds=HISTORY_SECONDS, what="every process ends", every=0.2)
            return asked
        asked += 1
        wait_until(lambda: processes.all_ended, seconds=HISTORY_SECONDS, what="every process ends", every=0.2)
        answer(stage, name, processes.jobserver.made(f"{stage.namespace}/{name}"))


def answer(stage: Stage, name: str, made: list[str]) -> None:
    """As a careful person does: nothing of it runs any more, so what the job server knows is all there is."""
    taskrun = stage.cluster.taskrun(name)
    if condition(taskrun["status"], "Held").get("status") != "True":
        return  # a process that went on has told its handle meanwhile
    action: JSON = {"action": "Adopt", "handle": made[0]} if made else {"action": "Resubmit"}
    given = [
        *taskrun["spec"].get("resolutions", []),
        {"held": "SubmissionUnknown", "key": "load", "generation": 1, **action},
    ]
    stage.control_plane.call("PATCH", taskruns(stage.namespace, name), {"spec": {"resolutions": given}})
    wait_until(
        lambda: condition(stage.cluster.status(name), "Held").get("status") != "True",
        seconds=HISTORY_SECONDS,
        what="it goes on",
    )


def _is_stopped(process: subprocess.Popen[bytes]) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    return False
