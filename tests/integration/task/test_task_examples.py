"""The programs in examples/, run as they are in processes of their own against the real state API and the job server.

What the operator does between attempts is played here; the end-to-end tests run the same files with the real one.
"""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from ports import free_port
from reattach.api.names import MOUNT_PATH
from reattach.api.state import JobState, SealPurpose
from reattach.api.taskrun import AttemptPurpose
from taskpods import Pod, Pods
from waiting import read_until, wait_until

EXAMPLES = Path(__file__).parents[3] / "examples"
SECONDS = 90


@dataclass
class JobServer:
    """The job server as a process that may be restarted; its jobs stay."""

    directory: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        program = [sys.executable, str(EXAMPLES / "jobserver" / "jobserver.py"), "--host", "127.0.0.1"]
        program += ["--port", str(self.port), "--database", str(self.directory / "jobs.sqlite")]
        self.process = subprocess.Popen(program, stdout=subprocess.DEVNULL)
        wait_until(self._is_ready, seconds=30, what="the job server is ready")

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def stats(self) -> dict[str, Any]:
        return dict(httpx.get(f"{self.url}/stats", trust_env=False).json())

    def running(self) -> int:
        running: int = httpx.get(f"{self.url}/running", trust_env=False).json()["running"]
        return running

    def _is_ready(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{self.url}/healthz", trust_env=False).is_success
        return False


@pytest.fixture
def jobserver(tmp_path: Path) -> Iterator[JobServer]:
    server = JobServer(tmp_path, free_port())
    server.start()
    yield server
    server.kill()


@dataclass(frozen=True)
class Example:
    """What an example says about its task's container."""

    command: list[str]
    files: dict[str, str]

    @classmethod
    def load(cls, name: str, *, cleanup: bool = False) -> "Example":
        """Read an example. `cleanup`: with the command of its cleanup attempts."""
        documents = [*yaml.safe_load_all((EXAMPLES / f"{name}.yaml").read_text())]
        [taskrun] = [document for document in documents if document["kind"] == "TaskRun"]
        files = [document["data"] for document in documents if document["kind"] == "ConfigMap"]
        container = taskrun["spec"]["template"]["spec"]["containers"][0]
        command = taskrun["spec"]["cleanup"]["command"] if cleanup else container["command"]
        return cls(command, files[0] if files else {})

    def start(self, pod: Pod, jobserver: JobServer | None = None) -> subprocess.Popen[str]:
        for name, text in self.files.items():
            (pod.directory / name).write_text(text.replace(MOUNT_PATH, str(pod.directory)))
        python, *arguments = [argument.replace("/program/", "") for argument in self.command]
        assert python == "python"
        return pod.start(*arguments, **({} if jobserver is None else {"JOBSERVER_URL": jobserver.url}))


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    with process:
        try:
            output, _ = process.communicate(timeout=SECONDS)
        finally:
            process.kill()  # nothing to do where the claim holds
        return process.returncode, output


def result_of(pods: Pods) -> Any:
    """What the state API recorded."""
    return json.loads(json.loads(pods.run.configmap()["data"]["completion"])["result"])


@pytest.mark.parametrize("name,rows", [("02-task-state", 4211), ("05-aip103", 812)])
def test_the_retry_reattaches_to_the_job_that_the_first_attempt_submitted(
    pods: Pods, jobserver: JobServer, name: str, rows: int
) -> None:
    example = Example.load(name)
    first = pods.start(1)
    code, output = ended(example.start(first, jobserver))
    assert code == 1, output
    assert first.message().kind == "Failed"
    [job_id] = {word for word in first.message().message.replace(".", " ").split() if word.startswith("job-")}

    code, output = ended(example.start(pods.start(2), jobserver))

    assert code == 0, output
    assert f"reattached to {job_id}" in output or f"reattaching to existing job {job_id}" in output
    assert jobserver.stats()["submissions"] == 1
    assert (result_of(pods)["rows_written"] if name == "02-task-state" else result_of(pods)) == rows


@pytest.mark.parametrize("name", ["02-task-state", "05-aip103"])
def test_a_cleanup_attempt_cancels_the_job_whose_id_is_in_the_state(
    pods: Pods, jobserver: JobServer, name: str
) -> None:
    example = Example.load(name)
    first = pods.start(1)
    assert ended(example.start(first, jobserver))[0] == 1
    pods.end(first)
    pods.run.seal(1, SealPurpose.END)
    assert jobserver.running() == 1

    code, output = ended(example.start(pods.start(2, AttemptPurpose.CLEANUP), jobserver))

    assert code == 0, output
    assert "has ended as CANCELLED" in output
    assert jobserver.stats()["submissions"] == 1
    assert jobserver.running() == 0


def test_a_task_that_is_killed_while_it_polls_and_a_job_server_that_restarts_change_nothing(
    pods: Pods, jobserver: JobServer
) -> None:
    example = Example.load("02-task-state")
    assert ended(example.start(pods.start(1), jobserver))[0] == 1

    polling = example.start(pods.start(2), jobserver)
    read_until(polling, polling.stdout, "reattached to job-")
    polling.kill()
    ended(polling)
    jobserver.kill()
    jobserver.start()

    code, output = ended(example.start(pods.start(3), jobserver))
    assert code == 0, output
    assert jobserver.stats() == {"submissions": 1, "by_label": {"task-state": 1}}
    assert result_of(pods) == {"rows_written": 4211}


def test_another_language_needs_no_more_than_https_and_json(pods: Pods) -> None:
    example = Example.load("06-any-language")
    code, output = ended(example.start(pods.start(1)))
    assert code == 1
    assert "stores a color and fails on purpose" in output
    code, output = ended(example.start(pods.start(2)))
    assert code == 0, output
    assert result_of(pods) == {"color": "green"}


def test_what_the_other_examples_say_to_the_operator(pods: Pods) -> None:
    code, _ = ended(Example.load("07-exit-code").start(pods.start(1)))
    assert code == 0
    assert "completion" not in pods.run.configmap()["data"]

    later = pods.start(2)
    # It asks for the delay in attempt 1 alone.
    assert ended(later.start(*Example.load("08-retry-later").command[1:], REATTACH_ATTEMPT="1"))[0] == 1
    assert (later.message().kind, later.message().retry_after_seconds) == ("RetryLater", 5)

    permanent = pods.start(3)
    assert ended(permanent.start(*Example.load("09-permanent-failure").command[1:]))[0] == 1
    assert permanent.message().kind == "Permanent"
    assert permanent.message().message == "table sales.orders_2024 does not exist"

    assert ended(pods.start(4).start(*Example.load("08-retry-later").command[1:]))[0] == 0
    assert result_of(pods) == "done"


def test_cleanup_command_in_another_language_cancels_the_job(pods: Pods, jobserver: JobServer) -> None:
    code, output = ended(Example.load("14-cleanup-command").start(pods.start(1), jobserver))
    assert code == 1, output
    assert jobserver.running() == 1

    pods.run.seal(1, SealPurpose.END)
    pod = pods.start(2, AttemptPurpose.CLEANUP)
    code, output = ended(Example.load("14-cleanup-command", cleanup=True).start(pod, jobserver))

    assert code == 0, output
    [job] = pods.run.view().jobs
    assert (job.state, job.cancel_requested_time is not None) == (JobState.CANCELLED, True)
    assert (jobserver.running(), jobserver.stats()["submissions"]) == (0, 1)
