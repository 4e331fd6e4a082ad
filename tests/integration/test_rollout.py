"""An upgrade and a rollback while TaskRuns run, with an earlier version beside this one.

Half of the tasks use the SDK of the earlier version. Only the node is played by the test.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from controlplane import REPOSITORY, ControlPlane
from earlier_version import sources
from jobservers import LocalJobServer, Time, serving
from operator_process import CONTAINER, Cluster, Containers, Operator, Operators, Script, condition, kubelet_of
from reattach.api.names import GROUP
from reattach.api.reasons import HOLDS
from reattach.cluster.paths import configmaps, taskruns
from run_histories import write_ca
from stateapi import Server, Servers
from taskpods import environment_of, port_of
from tcp_relay import Relay
from waiting import wait_until

JSON = dict[str, Any]

EARLIER = "ad57e602fa17ad507eefe1b683087ce837158c13"
"""The newest commit whose binaries read format 2 and write only format 1.

When a release begins to write a field of format 2, this becomes the release that first read it.
"""
RUNS = 50 if os.environ.get("REATTACH_ALL") else 10
LAUNCHER = str(REPOSITORY / "tests/earlier_version.py")
TASK = REPOSITORY / "tests/integration/rollout_task.py"
STEPS = ("intent", "request", "status")
LONG_LEASE = ("--lease-seconds", "120", "--lease-deadline-seconds", "90")
"""A leader on a busy machine keeps it. On SIGTERM a leader gives it back at once."""
PHASE_SECONDS = 900 if RUNS == 50 else 240
SHORT_JOB, LONG_JOB = 1_000, 1_000_000

PHASES = (
    ("earlier", "earlier"),
    ("earlier", "this"),
    ("earlier", "earlier"),
    ("this", "this"),
    ("this", "earlier"),
    ("earlier", "earlier"),
)
"""The versions of the leading operator and of the state API replica that the tasks reach."""


@dataclass
class Tasks:
    """The processes in the pods of all TaskRuns."""

    directory: Path
    earlier: Path
    jobserver: LocalJobServer
    current: dict[str, tuple[subprocess.Popen[bytes], Path]] = field(default_factory=dict)
    """The process of the newest attempt of each TaskRun, and the files of its pod."""
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def script_of(self, taskrun: str, _attempt: int) -> Script:
        def script(containers: Containers) -> None:
            containers.run()
            process, mount = self._start(taskrun, containers)
            code = process.wait()
            containers.end(code if code >= 0 else 128 - code, (mount / "termination-log").read_text())

        return script

    def _start(self, taskrun: str, containers: Containers) -> tuple[subprocess.Popen[bytes], Path]:
        number = int(taskrun.rpartition("-")[2])
        mount = self.directory / containers.uid
        mount.mkdir()
        path = str(self.earlier if number % 4 in {1, 2} else REPOSITORY / "operator")
        environment = {
            **os.environ,
            **environment_of(containers, mount),
            "JOBSERVER_URL": self.jobserver.url,
            "SECONDS": str(SHORT_JOB if number % 4 < 2 else LONG_JOB),
            "STEP": STEPS[number % len(STEPS)],
            "PYTHONPATH": path,
        }
        with (mount / "log").open("wb") as log:
            process = subprocess.Popen([sys.executable, TASK], env=environment, stdout=log, stderr=log)
        self.started.append(process)
        self.current[taskrun] = process, mount
        return process, mount

    def beat(self, taskrun: str) -> float:
        """Return when the state API last acknowledged a write of the newest attempt."""
        with contextlib.suppress(FileNotFoundError, KeyError):
            return (self.current[taskrun][1] / "beat").stat().st_mtime
        return 0

    def stop(self) -> None:
        for process in self.started:
            process.kill()
            process.wait()


@dataclass
class Installation:
    """Operators and state APIs of both versions behind one address."""

    servers: dict[str, Server]
    relay: Relay
    operators: Operators
    namespace: str
    programs: dict[str, tuple[str, ...]]
    leader: Operator | None = None
    version: str = ""

    def switch(self, operator: str, state_api: str) -> None:
        """Replace what is of another version. The requests in flight are cut off."""
        if self.relay.upstream != port_of(self.servers[state_api]):
            self.relay.lead_to(port_of(self.servers[state_api]))
        if self.version == operator:
            return
        following = self.operators.make(
            *LONG_LEASE, namespaces=[self.namespace], lease="rollout", program=self.programs[operator]
        )
        following.start(wait=False)
        if self.leader is not None:
            wait_until(following.is_ready, seconds=90, what="the next operator is ready")
            self.leader.kill(signal.SIGTERM)
        wait_until(following.leads, seconds=90, what="the next operator leads")
        self.leader, self.version = following, operator


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sources(EARLIER, tmp_path_factory.mktemp("earlier"))


@pytest.fixture
def installation(control_plane: ControlPlane, namespace: str, earlier: Path, tmp_path: Path) -> Iterator[Installation]:
    programs = {"earlier": (LAUNCHER, str(earlier), "reattach.process"), "this": ("-m", "reattach.process")}
    servers = Servers(control_plane, tmp_path / "state-api")
    operators = Operators(control_plane, tmp_path / "operators", ca_file=tmp_path / "ca.crt")
    try:
        first = servers.start(program=(LAUNCHER, str(earlier), "reattach.server"))
        certificate = [
            f"--tls-{part}={first.log_file.parent}/tls.{end}" for part, end in (("cert", "crt"), ("key", "key"))
        ]
        write_ca(first, tmp_path / "ca.crt")
        replicas = {"earlier": first, "this": servers.start(*certificate)}
        with Relay(None) as relay:
            operators.state_api_url = relay.url
            yield Installation(replicas, relay, operators, namespace, programs)
    finally:
        operators.stop()
        servers.stop()


def test_rollout_and_rollback_hold_no_run_and_submit_each_job_once(
    control_plane: ControlPlane, namespace: str, installation: Installation, earlier: Path, tmp_path: Path
) -> None:
    (tmp_path / "pods").mkdir()
    cluster = Cluster(control_plane, namespace)
    names = [f"run-{number}" for number in range(RUNS)]
    later = len(PHASES) - 1
    first = len(names) - later * max(1, RUNS // 25)
    waves = [names[:first], *(names[first + phase :: later] for phase in range(later))]
    clock = Time()
    with serving("name", clock=clock) as jobserver, kubelet_of(control_plane) as kubelet:
        tasks = Tasks(tmp_path / "pods", earlier, jobserver)
        kubelet.play(namespace, tasks.script_of)
        try:
            created: list[str] = []
            formats: list[set[str]] = []
            for number, (versions, wave) in enumerate(zip(PHASES, waves, strict=True)):
                installation.switch(*versions)
                for victim in running(cluster, created)[number % 5 :: 5]:
                    tasks.current[victim][0].kill()
                for name in wave:
                    create(cluster, name)
                created += wave
                await_beats(cluster, tasks, created)
                formats.append(formats_in(control_plane, namespace))
                if versions == ("this", "this"):
                    clock.pass_by(2 * SHORT_JOB)
                    short = [name for name in created if int(name.rpartition("-")[2]) % 4 < 2]
                    await_ends(cluster, short)
            clock.pass_by(2 * LONG_JOB)
            await_ends(cluster, names)
            made = {name: len(made_of(jobserver, name)) for name in names}
        finally:
            kubelet.forget(namespace)
            tasks.stop()
    assert (formats[0], formats[-1]) == ({"1"}, {"1", "2"}), "the earlier version serves states of both formats"
    assert made == dict.fromkeys(names, 1), "one external job each"
    for name in names:
        status = cluster.status(name)
        assert (status["outcome"], status["result"]) == ("Succeeded", '{"rows":4211}')
        assert status["counts"]["submissions"] == 1
        assert status["counts"]["attempts"] >= 2
    assert holds_in(control_plane, namespace) == []


def create(cluster: Cluster, name: str) -> None:
    cluster.create(
        name,
        template={"spec": {"containers": [CONTAINER], "terminationGracePeriodSeconds": 1}},
        retry={"budgets": {"application": 20}, "backoff": {"initialSeconds": 1, "maxSeconds": 1, "jitterPercent": 0}},
    )


def statuses(cluster: Cluster) -> dict[str, JSON]:
    items = cluster.control_plane.call("GET", taskruns(cluster.namespace))["items"]
    found = {item["metadata"]["name"]: item.get("status", {}) for item in items}
    held = {name: status for name, status in found.items() if condition(status, "Held").get("status") == "True"}
    assert not held, f"held: {held}"
    return found


def running(cluster: Cluster, names: list[str]) -> list[str]:
    """Return the TaskRuns without an outcome, after checking that no TaskRun is held."""
    found = statuses(cluster)
    return [name for name in names if "outcome" not in found[name]]


def await_beats(cluster: Cluster, tasks: Tasks, names: list[str]) -> None:
    """Wait until the state API has acknowledged a write of each running TaskRun from now on."""
    since = time.time()

    def all_beat() -> bool:
        return all(tasks.beat(name) > since for name in running(cluster, names))

    wait_until(all_beat, seconds=PHASE_SECONDS, what="every task writes to its state", every=0.3)


def await_ends(cluster: Cluster, names: list[str]) -> None:
    wait_until(lambda: not running(cluster, names), seconds=PHASE_SECONDS, what="the runs end", every=0.3)


def made_of(jobserver: LocalJobServer, label: str) -> list[str]:
    """Return the ids of the jobs that were ever made with this label."""
    rows = jobserver.jobs._database.execute("SELECT id FROM jobs WHERE label = ?", (label,))
    return [row["id"] for row in rows]


def formats_in(control_plane: ControlPlane, namespace: str) -> set[str]:
    """Return the formats of all states."""
    items = control_plane.call("GET", configmaps(namespace))["items"]
    return {item["data"]["formatVersion"] for item in items if "formatVersion" in item.get("data", {})}


def holds_in(control_plane: ControlPlane, namespace: str) -> list[str]:
    """Return the notes of the events about holds."""
    events = control_plane.call("GET", f"/apis/events.k8s.io/v1/namespaces/{namespace}/events")["items"]
    about = [event for event in events if event["regarding"]["apiVersion"].startswith(GROUP)]
    assert about, "no event of a TaskRun is there to look at"
    return [event["note"] for event in about if event["reason"] in HOLDS]
