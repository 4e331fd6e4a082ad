"""A task that submits one job and writes to its state for as long as the job runs.

Each acknowledged write touches the file `beat`. The first attempt dies at the step STEP.
"""

import itertools
import os
import signal
import sys
import time
from pathlib import Path

import httpx

from reattach.adapters.base import (
    Active,
    Adapter,
    Capabilities,
    ClientName,
    JobStatus,
    Submission,
    Submitted,
    Succeeded,
)
from reattach.task.client import Timing
from reattach.task.context import Task, TaskContext
from reattach.task.settings import from_environment

BEAT = Path(os.environ["REATTACH_DIRECTORY"], "beat")


class Jobs(Adapter):
    """The job server, which accepts each name once."""

    name = "jobs"
    poll_seconds = 0.5
    capabilities = Capabilities(client_name=ClientName())

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url, trust_env=False, timeout=10)

    def submit(self, submission: Submission) -> Submitted:
        answer = self._client.post("/jobs", json={**submission.request, "name": submission.name})
        if answer.status_code == 409:
            return Submitted(answer.json()["id"], existed=True)
        return Submitted(answer.raise_for_status().json()["id"])

    def status(self, handle: str) -> JobStatus:
        job = self._client.get(f"/jobs/{handle}").raise_for_status().json()
        return Succeeded({"rows": job["rows_written"]}) if job["status"] == "SUCCEEDED" else Active()

    def cancel(self, handle: str) -> None:
        self._client.post(f"/jobs/{handle}/cancel")


def die(step: str) -> None:
    if step == os.environ["STEP"] and os.environ["REATTACH_ATTEMPT"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)


def main(task: Task) -> object:
    jobs = Jobs(os.environ["JOBSERVER_URL"])
    request = {"seconds": int(os.environ["SECONDS"]), "rows": 4211, "label": task.name}
    job = task.submit_once("load", jobs, request)
    for number in itertools.count():
        task.state.set("beat", number)
        BEAT.touch()
        if isinstance(jobs.status(job.handle), Succeeded):
            break
        time.sleep(0.5)
    return job.wait()


if __name__ == "__main__":
    TaskContext(from_environment(os.environ), waits=Timing(on_step=die)).run(main)
    sys.exit(0)
