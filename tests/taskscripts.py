"""What a task that submits once does in its pod, call by call: scripts for `operating.Kubelet` against the real state API."""

import threading
import time
from dataclasses import dataclass, field
from typing import Any

from controlplane import ControlPlane
from operator_process import Containers, Script
from reattach.api.names import TOKEN_AUDIENCE
from stateapi import Attempt, Server, new_session

JSON = dict[str, Any]

HELD_EXIT_CODE = 85
HELD_MESSAGE = '{"reattach":"v1","kind":"Held","message":"outcome unknown"}'


@dataclass
class Tasks:
    """Makes the processes of tasks; `answers` notes what the state API answered to the intent of each (taskrun, attempt)."""

    control_plane: ControlPlane
    server: Server
    answers: dict[tuple[str, int], JSON] = field(default_factory=dict)

    def opened(self, containers: Containers) -> Attempt:
        """A process in the pod that has opened the state."""
        process = self.process(containers)
        assert process.open().status_code == 200
        return process

    def process(self, containers: Containers) -> Attempt:
        token = self.control_plane.token(containers.namespace, audiences=[TOKEN_AUDIENCE], pod=containers.pod)
        return Attempt(self.server, token, new_session(), containers.pod)

    def intended(self, containers: Containers) -> tuple[Attempt, JSON]:
        """The same after it has stored its intent, and what was answered."""
        process = self.opened(containers)
        response = process.intend()
        assert response.status_code == 200, response.text
        answer: JSON = response.json()
        taskrun = containers.pod["metadata"]["labels"]["reattach.dev/taskrun"]
        self.answers[taskrun, containers.attempt] = answer
        return process, answer

    def submit_and(self, then: Script, handle: str = "job-1") -> Script:
        """Submit a job, and go on without waiting for it."""

        def script(containers: Containers) -> None:
            containers.run()
            process, answer = self.intended(containers)
            assert answer["decision"] == "Submit"
            assert process.handle(handle).status_code == 204
            then(containers)

        return script

    def ask(self, containers: Containers) -> None:
        """Intend, find that nobody can tell whether it was submitted, and ask for a person."""
        containers.run()
        process, _ = self.intended(containers)
        assert process.outcome("Unknown", hold=True, message="the external system is unavailable").status_code == 204
        containers.end(HELD_EXIT_CODE, HELD_MESSAGE)

    def finish(self, containers: Containers) -> None:
        """Do what the state API says, see the job succeed, and complete."""
        containers.run()
        process, answer = self.intended(containers)
        if answer["decision"] == "Submit":
            assert process.handle(f"job-{containers.attempt}").status_code == 204
        assert process.outcome("Succeeded").status_code == 204
        assert process.complete(result={"rows": 3}).status_code == 204
        containers.end(0)


def wait_in(event: threading.Event) -> Script:
    """Go on running until the test says so."""

    def script(_: Containers) -> None:
        event.wait(60)

    return script


def evicted(containers: Containers) -> None:
    """Its node is drained."""
    containers.evict()


def stay(_: Containers) -> None:
    """Run on; SIGTERM ends it."""


def wait_for_termination(containers: Containers, *, seconds: float = 60) -> None:
    """Until SIGTERM; then it is within the grace period."""
    end = time.monotonic() + seconds
    while not containers.is_terminating():
        if time.monotonic() > end:
            raise AssertionError(f"{containers.name} was not asked to go within {seconds} s")
        time.sleep(0.05)
