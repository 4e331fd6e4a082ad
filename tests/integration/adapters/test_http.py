"""The adapter for REST APIs, and the worked example of docs/adapters.md, under the conformance suite against the real job server."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from jobservers import LocalJobServer, jobserver, serving
from reattach.adapter import Adapter
from reattach.adapters.http import (
    CancelRequest,
    Description,
    HttpJobs,
    LookupRequest,
    Names,
    States,
    StatusRequest,
    SubmitRequest,
    Token,
)
from reattach.testing import CASES, ExpectedResult, ExternalSystem, Suite, VirtualClock

DOCUMENT = Path(__file__).parents[3] / "docs/adapters.md"
LAG, MEMORY, LIFETIME = 20.0, 7200.0, 600.0

STATUS = StatusRequest(
    path="/jobs/{handle}",
    state="status",
    states=States(active=("RUNNING",), succeeded=("SUCCEEDED",), failed=("FAILED",), cancelled=("CANCELLED",)),
    result="rows_written",
    not_found_says="no job",
)


def tagged(settling: float, retention: float | None) -> dict[str, Any]:
    look_up = LookupRequest(
        path="/jobs?tag={token}",
        items="jobs",
        carries="tag",
        handle="id",
        settling_seconds=settling,
        retention_seconds=retention,
    )
    return {"submit": SubmitRequest(path="/jobs", handle="id", body={"tag": "{token}"}), "look_up": look_up}


def keyed(seconds: float) -> dict[str, Any]:
    submit = SubmitRequest(path="/jobs", handle="id", headers={"Idempotency-Key": "{token}"}, exists=(200,))
    return {"submit": submit, "token": Token(lifetime_seconds=seconds)}


# Those in which an adapter must tell "surely not" from "nobody knows"; the suite's own tests play all others.
_TELLING = (
    "undisturbed",
    "request left",
    "response lost",
    "after cancel",
    "request failed",
    "response failed",
    "too slow",
    "down for submit",
    "down for status",
    "token expired",
    "lookup lags",
    "forgotten unseen",
)
TELLING = [case for case in CASES if case.name in _TELLING]

# For each mode of the job server, its N, and what a description of it says.
MODES: dict[str, tuple[float, dict[str, Any]]] = {
    "nothing": (0, {"submit": SubmitRequest(path="/jobs", handle="id", body={"tag": "{token}"})}),
    "name": (
        0,
        {
            "submit": SubmitRequest(path="/jobs", handle="id", body={"name": "{name}"}, exists=(409,)),
            "names": Names(retention_seconds=None),
        },
    ),
    "forgetting-name": (
        MEMORY,
        {
            "submit": SubmitRequest(path="/jobs", handle="id", body={"name": "{name}"}, exists=(409,)),
            "names": Names(retention_seconds=MEMORY),
        },
    ),
    "token": (0, keyed(3e9)),
    "expiring-token": (LIFETIME, keyed(LIFETIME)),
    "lookup": (0, tagged(0, None)),
    "lagging-lookup": (LAG, tagged(LAG, None)),
    "forgetting-lookup": (MEMORY, tagged(0, MEMORY)),
}


def described(mode: str, address: str) -> HttpJobs:
    return HttpJobs(
        Description(
            address=address, status=STATUS, cancel=CancelRequest(path="/jobs/{handle}/cancel"), **MODES[mode][1]
        )
    )


def worked_example() -> str:
    [text] = re.findall(r"```python\n(# worked example\n.*?)```", DOCUMENT.read_text(), re.DOTALL)
    return str(text)


def documented(address: str) -> Adapter:
    """The adapter of the document, as it is there."""
    names: dict[str, Any] = {}
    exec(compile(worked_example(), str(DOCUMENT), "exec"), names)
    adapter: Adapter = names["JobServer"](address)
    return adapter


@contextmanager
def suite(mode: Any, make: Any, seconds: float = 0) -> Iterator[tuple[Suite, LocalJobServer]]:
    clock = VirtualClock()
    with serving(mode, seconds=seconds, clock=lambda: clock.now().timestamp()) as server:
        other = ExternalSystem(
            adapter=lambda: make(server.url),
            count_jobs=lambda: server.made,
            request={"seconds": 60, "rows": 4211},
            other_request={"seconds": 60, "rows": 1},
            lasting_request={"seconds": 3600},
            forget=server.jobs.forget,
            clock=clock,
        )
        with Suite(other) as playing:
            yield playing, server


@pytest.mark.parametrize("mode", MODES)
def test_a_described_system_keeps_its_word_where_answers_are_lost_late_or_wrong(mode: str) -> None:
    with suite(mode, lambda address: described(mode, address), MODES[mode][0]) as (playing, _):
        outcomes = {case.name: playing.check(case).outcome for case in TELLING}
    # None of a case that this mode leaves nothing to try for.
    assert outcomes["undisturbed"] is ExpectedResult.ONE_JOB
    assert outcomes["response lost"] is (ExpectedResult.HELD if mode == "nothing" else ExpectedResult.ONE_JOB)


def test_the_worked_example_keeps_its_word() -> None:
    mode = jobserver.Mode(lag_seconds=LAG, forget_seconds=MEMORY)
    with suite(mode, documented) as (playing, _):
        for case in TELLING:
            playing.check(case)


def test_the_described_system_of_the_document_is_accepted(tmp_path: Path) -> None:
    [text] = re.findall(
        r"```python\n(from reattach.adapters.http import CancelRequest.*?)```", DOCUMENT.read_text(), re.DOTALL
    )
    (tmp_path / "token").write_text("secret")
    names: dict[str, Any] = {}
    exec(text.replace("/var/run/secrets/batch/token", str(tmp_path / "token")), names)
    assert names["batch"].capabilities.look_up is not None


def test_the_worked_example_is_short() -> None:
    assert len(worked_example().splitlines()) <= 60


def test_a_description_that_promises_too_much_is_found_out() -> None:
    """A token that lives shorter than was said is seen by the jobs that were made."""

    def boasting(address: str) -> HttpJobs:
        return HttpJobs(Description(address=address, status=STATUS, **keyed(2e6)))

    [case] = [case for case in CASES if case.name == "response lost"]
    with suite("expiring-token", boasting, 1) as (playing, server):
        result = playing.run_case(case)
        assert "does not have the capabilities that the adapter declares" in result.problem
        assert server.duplicates
