"""Each adapter calls `may_leave` right before the submission leaves."""

import dataclasses
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from reattach.adapters.base import Adapter, Rejected, Submission
from reattach.adapters.http import Description, HttpJobs, Names, States, StatusRequest, SubmitRequest
from reattach.adapters.kubernetes import TASKRUN, Access, KubernetesObjects
from reattach.adapters.ray import RayJobs
from reattach.adapters.slurm import SlurmCommands, SlurmRest

NAMED = SubmitRequest(path="/jobs", handle="id", body={"name": "{name}"}, exists=(409,))
STATES = States(active=("R",), succeeded=("S",), failed=("F",))
STATUS = StatusRequest(path="/jobs/{handle}", state="status", states=STATES, not_found_says="no job")
ADAPTERS: dict[str, tuple[Callable[[str], Adapter], object]] = {
    "http": (
        lambda url: HttpJobs(Description(address=url, submit=NAMED, status=STATUS, names=Names(retention_seconds=60))),
        {},
    ),
    "kubernetes": (
        lambda url: KubernetesObjects(TASKRUN, access=Access(server=url, namespace="team", ca=None, token="t")),
        {"apiVersion": "reattach.dev/v1alpha1", "kind": "TaskRun", "spec": {}},
    ),
    "ray": (lambda url: RayJobs(url, durable=True), {"entrypoint": "true"}),
    "slurmrestd": (
        lambda url: SlurmRest(url, user="u", token=lambda: "t", version="v0.0.38", accounting=None),
        {"script": "#!/bin/sh\ntrue", "job": {}},
    ),
}


@pytest.fixture
def server() -> Iterator[socket.socket]:
    """Socket that accepts connections and sends no response."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(5)
        yield server


def too_late(request: object) -> Submission:
    return Submission("t-1", request, "load", 1, "team", "nightly", may_leave=lambda: False)


@pytest.mark.parametrize("name", ADAPTERS)
def test_submit_that_may_not_leave_sends_nothing(server: socket.socket, name: str) -> None:
    build, request = ADAPTERS[name]
    with pytest.raises(Rejected, match="too much time has passed") as caught:
        build(f"http://127.0.0.1:{server.getsockname()[1]}").submit(too_late(request))
    assert caught.value.retriable
    connection, _ = server.accept()
    with connection:
        assert connection.recv(1024) == b""


def test_submit_that_may_not_leave_does_not_run_sbatch(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    jobs = SlurmCommands(accounting=None, via=(sys.executable, "-c", f"open({str(ran)!r}, 'w'); print(17)"))
    submission = too_late({"script": "#!/bin/sh\ntrue"})
    with pytest.raises(Rejected, match="too much time has passed") as caught:
        jobs.submit(submission)
    assert caught.value.retriable
    assert not ran.exists()
    jobs.submit(dataclasses.replace(submission, may_leave=lambda: True))
    assert ran.exists()
