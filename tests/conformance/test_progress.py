"""Output of `conformance()` while it runs: how long it takes, and its progress."""

import logging
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from typing_extensions import override

from conformance.jobadapter import CAPABILITIES, JobServerAdapter, serving
from reattach.adapters.base import Capabilities, Failed, JobStatus, Lookup
from reattach.testing import CASES, ENDING_CASES, REAL_TIMING, RealClock, VirtualClock, conformance
from reattach.testing.progress import describe_start, estimated_seconds

PROGRAM = """
import sys
from conformance.jobadapter import serving
from reattach.testing import CASES, conformance

with serving("lookup") as served:
    cases = [case for case in CASES if case.name in {"digest changed", "response lost", "node dies"}]
    print(conformance(
        served.adapter, lambda: served.server.made, request={"seconds": 60}, other_request={"seconds": 61},
        cases=cases, clock=served.clock,
    ).failures)
"""


def test_stderr_has_one_line_for_each_case_and_no_log_of_killed_tasks() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=Path(__file__).parents[1],
        env={"PYTHONPATH": "."},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    lines = ran.stderr.splitlines()
    assert [line.partition(": ")[0] for line in lines] == ["1/3 response lost", "2/3 node dies", "3/3 digest changed"]
    assert lines[0].startswith("1/3 response lost: one job (")
    assert ran.stdout.splitlines()[-1] == "()"


class ReportsActiveAsFailed(JobServerAdapter):
    @override
    def status(self, handle: str) -> JobStatus:
        return Failed("unknown state")


def test_case_with_a_problem_is_shown_with_the_log_of_its_tasks(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "reattach")
    shown: list[str] = []
    with serving("name") as served:
        report = conformance(
            lambda: ReportsActiveAsFailed(served.client, CAPABILITIES["name"]),
            lambda: served.server.made,
            request={"seconds": 60},
            other_request={"seconds": 61},
            cases=CASES[:1],
            clock=served.clock,
            show=shown.append,
        )
    assert report.failures
    assert shown[0].startswith("1/1 undisturbed: PROBLEM: ")
    assert any("External job 'load'" in line for line in shown[1:])


@pytest.mark.parametrize("request_seconds,settling,minutes", [(5, 1, 8), (30, 20, 27)])
def test_estimate_follows_from_what_the_adapter_declares(request_seconds: float, settling: int, minutes: int) -> None:
    declared = Capabilities(look_up=Lookup(settling=timedelta(seconds=settling)))
    cases = len(CASES) + len(ENDING_CASES)
    assert f"about {minutes} min" in describe_start(declared, request_seconds, cases)
    assert estimated_seconds(Capabilities(), request_seconds, len(CASES)) == 360
    assert estimated_seconds(Capabilities(), request_seconds, 1) == pytest.approx(360 / len(CASES))


def test_start_is_described_in_real_time_and_not_on_a_virtual_clock() -> None:
    for clock in (RealClock(), VirtualClock()):
        shown: list[str] = []
        with serving("name") as served:
            conformance(
                served.adapter,
                lambda: served.server.made,
                request={"seconds": 60},
                other_request={"seconds": 61},
                cases=(),
                clock=clock,
                timing=REAL_TIMING,
                show=shown.append,
            )
        assert [line.partition(",")[0] for line in shown] == (["0 cases"] if isinstance(clock, RealClock) else [])
