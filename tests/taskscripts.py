"""Scripts of tasks that submit once, call by call, for `Kubelet` and the real state API."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from controlplane import ControlPlane
from operator_process import Containers, Script
from reattach.api.names import LABEL_PURPOSE, TOKEN_AUDIENCE
from stateapi import Attempt, Server, new_session

JSON = dict[str, Any]

HELD_EXIT_CODE = 85
HELD_MESSAGE = '{"reattach":"v1","kind":"Held","message":"outcome unknown"}'


@dataclass
class Tasks:
    """Makes the processes of tasks.

    intents: response to the intent, by TaskRun and attempt.
    """

    control_plane: ControlPlane
    server: Server
    intents: dict[tuple[str, int], JSON] = field(default_factory=dict)

    def opened(self, containers: Containers) -> Attempt:
        """Return a process in the pod that has opened the state."""
        process = self.process(containers)
        assert process.open().status_code == 200
        return process

    def process(self, containers: Containers) -> Attempt:
        token = self.control_plane.token(containers.namespace, audiences=[TOKEN_AUDIENCE], pod=containers.pod)
        return Attempt(self.server, token, new_session(), containers.pod)

    def intended(self, containers: Containers) -> tuple[Attempt, JSON]:
        """Return a process that has stored its intent, and the response to it."""
        process = self.opened(containers)
        response = process.intend()
        assert response.status_code == 200, response.text
        intent: JSON = response.json()
        taskrun = containers.pod["metadata"]["labels"]["reattach.dev/taskrun"]
        self.intents[taskrun, containers.attempt] = intent
        return process, intent

    def submit_and(self, then: Script, handle: str = "job-1") -> Script:
        """Submit a job, and run `then` without waiting for the job."""

        def script(containers: Containers) -> None:
            containers.run()
            process, intent = self.intended(containers)
            assert intent["decision"] == "Submit"
            assert process.handle(handle).status_code == 204
            then(containers)

        return script

    def submit_registered_and(self, then: Script, handle: str = "job-1", *, handler: bool = False) -> Script:
        """Submit a job as a task that can clean up, and run `then`."""

        def script(containers: Containers) -> None:
            containers.run()
            process = self.process(containers)
            assert process.open(canCleanup=True, cleanupHandler=handler).status_code == 200
            assert process.intend().json()["decision"] == "Submit"
            assert process.handle(handle).status_code == 204
            then(containers)

        return script

    def clean_up(self, containers: Containers) -> list[str]:
        """Cancel every open job that has a handle, and exit 0. Return the handles."""
        containers.run()
        process = self.opened(containers)
        cancelled = []
        for job in process.jobs().json()["items"]:
            if job["handle"] is not None and job["state"] not in {"Succeeded", "Failed", "Cancelled"}:
                assert process.cancellation(job["key"], job["generation"]).status_code == 200
                response = process.outcome("Cancelled", job["key"], job["generation"])
                assert response.status_code == 204, response.text
                cancelled.append(job["handle"])
        containers.end(0)
        return cancelled

    def ask(self, containers: Containers) -> None:
        """Store an intent, and hold the run because it is unknown whether the job was submitted."""
        containers.run()
        process, _ = self.intended(containers)
        assert process.outcome("Unknown", hold=True, message="the external system is unavailable").status_code == 204
        containers.end(HELD_EXIT_CODE, HELD_MESSAGE)

    def finish(self, containers: Containers) -> None:
        """Follow the decision, record the job as succeeded, and complete."""
        containers.run()
        process, intent = self.intended(containers)
        if intent["decision"] == "Submit":
            assert process.handle(f"job-{containers.attempt}").status_code == 204
        assert process.outcome("Succeeded").status_code == 204
        assert process.complete(result={"rows": 3}).status_code == 204
        containers.end(0)


def first_then(run: Script, cleanup: Script) -> Callable[[int], Script]:
    """Return scripts by the purpose of a pod, and not by its number."""

    def script(containers: Containers) -> None:
        is_cleanup = containers.pod["metadata"]["labels"].get(LABEL_PURPOSE) == "Cleanup"
        (cleanup if is_cleanup else run)(containers)

    return lambda _: script


def wait_in(event: threading.Event) -> Script:
    """Run until the test sets the event."""

    def script(_: Containers) -> None:
        event.wait(60)

    return script


def evicted(containers: Containers) -> None:
    """Evict the pod."""
    containers.evict()


def stay(_: Containers) -> None:
    """Run until SIGTERM."""


def wait_for_termination(containers: Containers, *, seconds: float = 60) -> None:
    """Wait for SIGTERM, which starts the grace period."""
    end = time.monotonic() + seconds
    while not containers.is_terminating():
        if time.monotonic() > end:
            raise AssertionError(f"{containers.name} was not asked to stop within {seconds} s")
        time.sleep(0.05)
