"""A task that submits one job and writes to its state for as long as the job runs.

Each acknowledged write touches the file `beat`. The first attempt dies once its `intent` is stored,
its `request` was accepted, or at the first `status`, as STEP says. Only the public API is used,
because the SDK may be of an earlier version. An SDK that has `on_cleanup` registers a handler, so
that the state of its run has a field of format 2.
"""

import inspect
import itertools
import os
import signal
import time
from pathlib import Path

import httpx

import reattach
from reattach.adapter import Active, Adapter, Capabilities, ClientName, JobStatus, Submission, Submitted, Succeeded

BEAT = Path(os.environ["REATTACH_DIRECTORY"], "beat")


def die_at(step: str) -> None:
    if step == os.environ["STEP"] and os.environ["REATTACH_ATTEMPT"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)


class Jobs(Adapter):
    """The job server, which accepts each name once."""

    name = "jobs"
    poll_seconds = 0.5
    capabilities = Capabilities(client_name=ClientName())

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url, trust_env=False, timeout=10)

    def submit(self, submission: Submission) -> Submitted:
        die_at("intent")
        answer = self._client.post("/jobs", json={**submission.request, "name": submission.name})
        die_at("request")
        if answer.status_code == 409:
            return Submitted(answer.json()["id"], existed=True)
        return Submitted(answer.raise_for_status().json()["id"])

    def status(self, handle: str) -> JobStatus:
        die_at("status")
        job = self._client.get(f"/jobs/{handle}").raise_for_status().json()
        return Succeeded({"rows": job["rows_written"]}) if job["status"] == "SUCCEEDED" else Active()

    def cancel(self, handle: str) -> None:
        self._client.post(f"/jobs/{handle}/cancel")


def main(task: reattach.Task) -> object:
    jobs = Jobs(os.environ["JOBSERVER_URL"])
    request = {"seconds": int(os.environ["SECONDS"]), "rows": 4211, "label": task.name}
    job = task.submit_once("load", jobs, request)
    for number in itertools.count():
        task.state.set("beat", number)
        BEAT.touch()
        if isinstance(jobs.status(job.handle), Succeeded):
            break
        time.sleep(2)
    return job.wait()


def clean_up(_task: object) -> None:
    raise AssertionError("every run succeeds, and a success is never cleaned up")


if __name__ == "__main__":
    has_cleanup = "on_cleanup" in inspect.signature(reattach.run).parameters
    reattach.run(main, **({"on_cleanup": clean_up} if has_cleanup else {}))
