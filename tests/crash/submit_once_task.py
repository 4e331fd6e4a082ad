"""A task that submits once, and signals itself at the step of FAULT (`STEP SIGNAL`).

The SDK, the process and its end are real.
"""

import json
import os
import signal
import sys

import httpx

from conformance.jobadapter import JobServerAdapter, capabilities_of
from reattach.adapters.base import Submission, Submitted
from reattach.task.client import Timing
from reattach.task.context import Task, TaskContext
from reattach.task.settings import from_environment

STEP, _, SIGNAL = os.environ["FAULT"].partition(" ")


def inject(step: str) -> None:
    """Send the signal at the step, once, and not in children of this process."""
    global STEP  # noqa: PLW0603 -- the state of a program, not of a module
    if step == STEP:
        STEP = ""
        os.kill(os.getpid(), signal.Signals[SIGNAL])


class ReportingAdapter(JobServerAdapter):
    """Adapter with two further steps: before the request leaves, and after it was accepted."""

    request_seconds = 3.0
    poll_seconds = 0.3

    def submit(self, submission: Submission) -> Submitted:
        inject("leaving")
        submitted = super().submit(submission)
        inject("accepted")
        return submitted


def main(task: Task) -> object:
    client = httpx.Client(base_url=os.environ["JOBSERVER_URL"], trust_env=False, timeout=3)
    adapter = ReportingAdapter(client, capabilities_of(os.environ["MODE"], json.loads(os.environ["SECONDS"])))
    request = {"seconds": 1, "rows": 4211, "label": f"{task.namespace}/{task.name}"}
    return task.submit_once("load", adapter, request).wait()


if __name__ == "__main__":
    TaskContext(from_environment(os.environ), timing=Timing(on_step=inject)).run(main)
    sys.exit(0)
