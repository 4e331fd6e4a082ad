"""Pods of a real TaskRun on a real API server, as a task sees them from inside: what a kubelet would do for it is done here."""

import os
import ssl
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from operator_process import Containers
from reattach.api.messages import TerminationMessage
from reattach.api.names import (
    ANNOTATION_CA,
    CA_FILE,
    LABEL_ATTEMPT,
    LABEL_PURPOSE,
    LABEL_TASKRUN,
    PHASE_CLEANUP,
    PHASE_RUN,
    TOKEN_AUDIENCE,
    TOKEN_FILE,
)
from reattach.api.taskrun import AttemptPurpose
from reattach.task.context import TaskContext
from reattach.task.settings import TaskSettings
from stateapi import Server
from stateapi import Task as Run
from tcp_relay import Relay


@dataclass
class Pod:
    """The pod of one attempt: the files that the kubelet puts into it, and processes in its container."""

    run: Run
    number: int
    directory: Path
    url: str
    body: dict[str, Any] = field(default_factory=dict)
    purpose: AttemptPurpose = AttemptPurpose.RUN

    @property
    def environment(self) -> dict[str, str]:
        return {
            "REATTACH_URL": self.url,
            "REATTACH_NAMESPACE": self.run.namespace,
            "REATTACH_TASKRUN": self.run.name,
            "REATTACH_ATTEMPT": str(self.number),
            "REATTACH_PHASE": PHASE_CLEANUP if self.purpose is AttemptPurpose.CLEANUP else PHASE_RUN,
            "REATTACH_DIRECTORY": str(self.directory),
            "REATTACH_TERMINATION_LOG": str(self.termination_log),
        }

    @property
    def termination_log(self) -> Path:
        return self.directory / "termination-log"

    @property
    def settings(self) -> TaskSettings:
        return TaskSettings(
            url=self.url,
            namespace=self.run.namespace,
            taskrun=self.run.name,
            attempt=self.number,
            is_cleanup=self.purpose is AttemptPurpose.CLEANUP,
            directory=self.directory,
            termination_log=self.termination_log,
        )

    def trust(self, server: Server) -> None:
        """What the operator's annotation on the pod does: `ca.crt` becomes that of this server."""
        [certificate] = server.ca.get_ca_certs(binary_form=True)
        (self.directory / "ca.crt").write_text(ssl.DER_cert_to_PEM_cert(certificate))

    def rotate_token(self) -> None:
        (self.directory / "token").write_text(self.run.token(self.body))

    def context(self, **more: Any) -> TaskContext:
        """A process in the pod, in this one: `os.environ` and the process's end stay out of it."""
        return TaskContext(self.settings, **{"environment": {}, "end_process": lambda _: None, **more})

    def start(self, *command: str, **environment: str) -> subprocess.Popen[str]:
        """A process of its own."""
        return subprocess.Popen(
            [sys.executable, *command],
            env={**os.environ, **self.environment, **environment},
            cwd=self.directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def message(self) -> TerminationMessage:
        return msgspec.json.decode(self.termination_log.read_bytes(), type=TerminationMessage)


@dataclass
class Pods:
    """Makes the pods of one TaskRun. Their way to the state API leads through `relay`."""

    run: Run
    server: Server
    relay: Relay
    directory: Path

    def start(self, number: int = 1, purpose: AttemptPurpose = AttemptPurpose.RUN) -> Pod:
        directory = self.directory / f"attempt-{number}"
        directory.mkdir()
        labels = {LABEL_TASKRUN: self.run.name, LABEL_ATTEMPT: str(number)}
        if purpose is AttemptPurpose.CLEANUP:
            labels[LABEL_PURPOSE] = purpose
        pod = Pod(self.run, number, directory, self.relay.url, self.run.pod(number, labels=labels), purpose)
        pod.termination_log.touch()
        pod.trust(self.server)
        pod.rotate_token()
        return pod

    def end(self, pod: Pod, *, end: str = "Reported", charged_to: str = "disruption") -> None:
        """What the operator writes about an attempt that has ended, before it makes the next pod."""
        others = [known for known in self.run.status().get("attempts", []) if known["number"] != pod.number]
        entry = {
            "number": pod.number,
            "purpose": pod.purpose,
            "podUID": pod.body["metadata"]["uid"],
            "end": end,
            "cause": "Application" if charged_to == "application" else "Disruption",
            "chargedTo": charged_to,
        }
        body = {"status": {"attempts": [*others, entry]}}
        self.run.control_plane.call("PATCH", f"{self.run.path}/status", body)


def environment_of(containers: Containers, mount: Path) -> dict[str, str]:
    """Return the environment of a process in a pod, once the files that the kubelet mounts are in `mount`."""
    termination_log = mount / "termination-log"
    termination_log.touch()
    token = containers.control_plane.token(containers.namespace, audiences=[TOKEN_AUDIENCE], pod=containers.pod)
    (mount / TOKEN_FILE).write_text(token)
    (mount / CA_FILE).write_text(containers.pod["metadata"]["annotations"][ANNOTATION_CA])
    given = {each["name"]: each["value"] for each in containers.pod["spec"]["containers"][0]["env"]}
    return {**given, "REATTACH_DIRECTORY": str(mount), "REATTACH_TERMINATION_LOG": str(termination_log)}


def port_of(server: Server) -> int:
    port = urlsplit(server.url).port
    assert port is not None
    return port
