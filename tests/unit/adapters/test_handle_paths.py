"""Handles with characters of paths, queries, options and shells: each request is for that handle alone."""

import json
import re
import shlex
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from urllib.parse import unquote

import httpx
import pytest

from reattach.adapter import Adapter, NotFound
from reattach.adapters.http import CancelRequest, Description, HttpJobs, States, StatusRequest, SubmitRequest
from reattach.adapters.http_client import CallError
from reattach.adapters.kubernetes import JOB, Access, KubernetesObjects
from reattach.adapters.ray import RayError, RayJobs
from reattach.adapters.slurm import SlurmCommands, SlurmError, SlurmRest

HOSTILE = [
    "../../x?y",
    "..",
    ".",
    "a/b",
    "a?b=c",
    "a#b",
    "%2e%2e%2f",
    "a\r\nX-Header: b",
    "\x1b[2J\u202e",
    "a b",
    "ä/表",
    "-x",
    "a;id",
    "$(id)",
]
STATES = States(active=("RUNNING",), succeeded=("SUCCEEDED",), failed=("FAILED",), cancelled=("CANCELLED",))


class Recorder:
    """Network that records each request and responds with 404."""

    def __init__(self) -> None:
        self.paths: list[str] = []

    def transport(self) -> httpx.MockTransport:
        def respond(request: httpx.Request) -> httpx.Response:
            self.paths.append(request.url.raw_path.decode())
            return httpx.Response(404, text="not here")

        return httpx.MockTransport(respond)


def an_http_adapter(seen: Recorder) -> Adapter:
    description = Description(
        address="http://jobs.invalid/api",
        submit=SubmitRequest(path="/jobs", handle="id"),
        status=StatusRequest(path="/jobs/{handle}/status", state="status", states=STATES, not_found_says="no job"),
        cancel=CancelRequest(path="/jobs/{handle}/cancel"),
    )
    return HttpJobs(description, transport=seen.transport())


def a_ray_adapter(seen: Recorder) -> Adapter:
    return RayJobs("http://ray.invalid:8265", durable=True, transport=seen.transport())


def use(adapter: Adapter, handle: str) -> None:
    """Query and cancel the job of the handle."""
    adapter.status(handle)
    with suppress(CallError, RayError):
        adapter.cancel(handle)


@pytest.mark.parametrize("handle", HOSTILE)
@pytest.mark.parametrize("build", [an_http_adapter, a_ray_adapter], ids=["http", "ray"])
def test_path_has_the_handle_as_one_segment(build: Callable[[Recorder], Adapter], handle: str) -> None:
    seen = Recorder()
    use(build(seen), handle)
    assert len(seen.paths) >= 2
    for path in seen.paths:
        assert re.fullmatch(r"[\w/%.~-]+", path, re.ASCII)
        _, api, jobs, segment, *rest = path.split("/")
        assert (api, jobs, unquote(segment)) == ("api", "jobs", handle)
        assert segment not in {".", ".."}
        assert rest in (["status"], ["cancel"], [], ["stop"])


@pytest.mark.parametrize("handle", [*HOSTILE, "team/../uid", "team/x?y/uid", "team/a/b/uid", "../secrets/uid"])
def test_kubernetes_sends_nothing_for_a_handle_that_is_not_namespace_name_uid(handle: str) -> None:
    seen = Recorder()
    access = Access(server="https://kubernetes.invalid", namespace="team", ca=None, token="t")
    adapter = KubernetesObjects(JOB, access=access, transport=seen.transport())
    assert isinstance(adapter.status(handle), NotFound)
    adapter.cancel(handle)
    assert seen.paths == []


@pytest.mark.parametrize("handle", [*HOSTILE, "-1", "--help", "17;id", "0", "17/", "17/a b", "\uff11\uff17"])
def test_slurm_runs_nothing_for_a_handle_that_is_not_a_job_id(handle: str, tmp_path: Path) -> None:
    seen = Recorder()
    rest = SlurmRest(
        "http://slurm.invalid", user="task", token=lambda: "t", version="v0.0.38", accounting=timedelta(days=1),
        transport=seen.transport(),
    )  # fmt: skip
    commands = SlurmCommands(accounting=None, via=(sys.executable, "-c", f"open({str(tmp_path / 'ran')!r}, 'w')"))
    for adapter in (rest, commands):
        assert isinstance(adapter.status(handle), NotFound)
        adapter.cancel(handle)
    assert seen.paths == []
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["--help", "-x", "a,b", "$(id)", "a';id", "../../x?y&user=root"])
@pytest.mark.parametrize("line", [False, True])
def test_slurm_commands_read_the_name_in_a_handle_as_the_value_of_an_option(
    name: str, line: bool, tmp_path: Path
) -> None:
    ran = tmp_path / "ran"
    record = f"import json, sys; open({str(ran)!r}, 'a').write(json.dumps(sys.argv[1:]) + chr(10))"
    adapter = SlurmCommands(accounting=None, via=(sys.executable, "-c", record), line=line)
    with pytest.raises(SlurmError):
        adapter.cancel(f"17/{name}")
    [given] = [json.loads(text) for text in ran.read_text().splitlines()]
    if line:
        [text] = given
        given = shlex.split(text)
    assert given[-3:] == ["scancel", f"--name={name}", "17"]


def test_slurm_rest_quotes_the_name_in_a_handle() -> None:
    seen = Recorder()
    rest = SlurmRest(
        "http://slurm.invalid", user="task", token=lambda: "t", version="v0.0.38", accounting=timedelta(days=1),
        transport=seen.transport(),
    )  # fmt: skip
    with pytest.raises(SlurmError):
        rest._accounted(name="a&user=root/../x?y#")
    assert [path.split("&")[0] for path in seen.paths] == [
        "/slurmdb/v0.0.38/jobs?job_name=a%26user%3Droot%2F..%2Fx%3Fy%23"
    ]
