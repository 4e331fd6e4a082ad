"""A task that submits once and is struck on the way: BLOW is `STEP SIGNAL`, and the process sends itself that signal when it gets there.

The SDK, its process and its death are real. The one thing added is where it happens.
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

STEP, _, SIGNAL = os.environ["BLOW"].partition(" ")


def strike(step: str) -> None:
    """Once, and not in the children of this process."""
    global STEP  # noqa: PLW0603 -- a program of its own
    if step == STEP:
        STEP = ""
        os.kill(os.getpid(), signal.Signals[SIGNAL])


class Struck(JobServerAdapter):
    """The adapter, with two more places: before the request leaves, and when it was accepted."""

    request_seconds = 3.0
    poll_seconds = 0.3

    def submit(self, submission: Submission) -> Submitted:
        strike("leaving")
        submitted = super().submit(submission)
        strike("accepted")
        return submitted


def main(task: Task) -> object:
    client = httpx.Client(base_url=os.environ["JOBSERVER_URL"], trust_env=False, timeout=3)
    adapter = Struck(client, capabilities_of(os.environ["MODE"], json.loads(os.environ["SECONDS"])))
    request = {"seconds": 1, "rows": 4211, "label": f"{task.namespace}/{task.name}"}
    return task.submit_once("load", adapter, request).wait()


if __name__ == "__main__":
    TaskContext(from_environment(os.environ), timing=Timing(on_step=strike)).run(main)
    sys.exit(0)
