"""Ends that tasks report, with the real operator, state API and SDK. Only the kubelet is played.

This kubelet reports no termination message unless a test requests one, as it is with a
`terminationMessagePath` that the SDK does not write to.
"""

import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from operator_process import Containers, Script, Stage
from reattach.api.names import CA_FILE
from reattach.cluster.paths import taskruns
from stateapi import Server
from taskpods import environment_of, port_of
from taskscripts import Tasks
from tcp_relay import Relay
from waiting import wait_until

JSON = dict[str, Any]
REPOSITORY = Path(__file__).parents[2]
SLOW = 120
"""Seconds that anything may take on a busy machine."""
IMPORTS = "import asyncio, os, signal, sys, time, reattach\nfrom pathlib import Path\n"
ONE_MORE = {"budgets": {"application": 1}, "backoff": {"initialSeconds": 600, "jitterPercent": 0}}
NOTHING = ""
PERMANENT = "def main(task): raise reattach.PermanentFailure('no table')\nreattach.run(main)"
AFTER_CUT = """
from reattach.task import end_report
end_report.REPORT_SECONDS = 1.0
def cut():
    Path("opened").touch()
    while not Path("cut").exists():
        time.sleep(0.05)
"""


@dataclass
class Processes:
    """Processes of tasks in the pods of a stage."""

    directory: Path
    server: Server
    relay: Relay
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def script(
        self,
        program: str,
        *,
        message: Callable[[str], str] = lambda _: NOTHING,
        while_open: Callable[[Path], None] = lambda _: None,
    ) -> Script:
        """Run the program to its end. `message`: what arrives of the termination message."""

        def run(containers: Containers) -> None:
            containers.run()
            mount = self.directory / containers.uid
            mount.mkdir()
            given = {**environment_of(containers, mount), "REATTACH_URL": self.relay.url}
            [certificate] = self.server.ca.get_ca_certs(binary_form=True)
            (mount / CA_FILE).write_text(ssl.DER_cert_to_PEM_cert(certificate))
            with (mount / "log").open("wb") as log:
                process = subprocess.Popen(
                    [sys.executable, "-c", IMPORTS + program],
                    env={**os.environ, **given, "PYTHONPATH": str(REPOSITORY / "operator")},
                    cwd=mount,
                    stdout=log,
                    stderr=log,
                )
            self.started.append(process)
            while_open(mount)
            code = process.wait()
            text = message((mount / "termination-log").read_text())
            containers.end(code if code >= 0 else 128 - code, text)

        return run

    def stop(self) -> None:
        for process in self.started:
            process.kill()
            process.wait()


@pytest.fixture
def relay(tasks: Tasks) -> Iterator[Relay]:
    with Relay(port_of(tasks.server)) as relay:
        yield relay


@pytest.fixture
def processes(tmp_path: Path, tasks: Tasks, relay: Relay) -> Iterator[Processes]:
    processes = Processes(tmp_path, tasks.server, relay)
    yield processes
    processes.stop()


def first_ends_of(stage: Stage, scripts: dict[str, Script]) -> dict[str, JSON]:
    """Return the statuses of TaskRuns with these scripts after the end of their first attempts."""
    for name, script in scripts.items():
        stage.run(name, lambda _, script=script: script, retry=ONE_MORE)  # type: ignore[misc]

    def have_ended() -> bool:
        return all(
            any("finishTime" in attempt for attempt in stage.cluster.status(name).get("attempts", ()))
            for name in scripts
        )

    wait_until(have_ended, seconds=SLOW, what="the first attempts have ended")
    statuses = {name: stage.cluster.status(name) for name in scripts}
    for name in scripts:
        stage.control_plane.call("DELETE", taskruns(stage.namespace, name))
    assert stage.kubelet.errors == []
    return statuses


def end_of(status: JSON) -> tuple[str | None, str, str, str]:
    attempt = status["attempts"][0]
    return status.get("outcome"), attempt["cause"], attempt["reason"], attempt.get("message", "")


def test_report_arrives_whatever_becomes_of_the_termination_message(stage: Stage, processes: Processes) -> None:
    run = processes.script
    statuses = first_ends_of(
        stage,
        {
            "permanent": run(PERMANENT),
            # The kubelet divides 12 KiB between all containers.
            "cut-off": run(PERMANENT, message=lambda text: text[: len(text) // 2]),
            "log-tail": run(PERMANENT, message=lambda _: "Traceback …\nreattach.errors.PermanentFailure: no table"),
            "killed-after-it": run(
                "def main(task): raise reattach.PermanentFailure('no table')\n"
                "try: reattach.run(main)\nexcept reattach.PermanentFailure: os.kill(os.getpid(), signal.SIGKILL)"
            ),
            "in-a-group": run(
                "async def fail(): raise reattach.PermanentFailure('no table')\n"
                "async def main(task):\n async with asyncio.TaskGroup() as group: group.create_task(fail())\n"
                "reattach.run(main)"
            ),
            "exit-0": run(
                f"try:\n {PERMANENT.replace(chr(10), chr(10) + ' ')}\nexcept reattach.PermanentFailure: pass"
            ),
            "retry-later": run("def main(task): raise reattach.RetryLater(90, 'no slot')\nreattach.run(main)"),
            "not-ready": run("def main(task): raise reattach.NotReady(90, 'no input')\nreattach.run(main)"),
        },
    )
    for name in ("permanent", "cut-off", "log-tail", "killed-after-it", "in-a-group", "exit-0"):
        assert end_of(statuses[name]) == ("Failed", "Permanent", "PermanentFailure", "no table"), name
    later, not_ready = statuses["retry-later"], statuses["not-ready"]
    assert end_of(later) == (None, "Application", "RetryLater", "no slot")
    assert end_of(not_ready) == (None, "NotReady", "NotReady", "no input")
    assert not_ready["counts"]["charged"]["notReady"] == 1
    assert not_ready["counts"]["charged"]["application"] == 0


def test_message_and_then_the_exit_code_count_while_the_state_api_is_away(
    stage: Stage, processes: Processes, relay: Relay
) -> None:
    others = threading.Barrier(3)

    def cut(mount: Path) -> None:
        wait_until((mount / "opened").exists, seconds=SLOW, what="the task has opened its state")
        others.wait(SLOW)
        relay.lead_to(None)
        (mount / "cut").touch()

    permanent = f"{AFTER_CUT}def main(task): cut(); raise reattach.PermanentFailure('no table')\nreattach.run(main)"
    unavailable = f"{AFTER_CUT}def main(task): cut(); task.state.get('k')\nreattach.run(main, patience=1)"
    statuses = first_ends_of(
        stage,
        {
            "with-message": processes.script(permanent, message=str, while_open=cut),
            "without-message": processes.script(permanent, while_open=cut),
            "by-exit-code": processes.script(unavailable, while_open=cut),
        },
    )
    assert end_of(statuses["with-message"]) == ("Failed", "Permanent", "PermanentFailure", "no table")
    assert end_of(statuses["without-message"]) == (None, "Application", "Error", "")
    outcome, cause, reason, message = end_of(statuses["by-exit-code"])
    assert (outcome, cause, reason) == (None, "Disruption", "StateApiUnavailable")
    assert message == "Exit code 83: the state API was unavailable."
    assert statuses["by-exit-code"]["attempts"][0]["exitCode"] == 83
