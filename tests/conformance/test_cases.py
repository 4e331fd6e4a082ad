"""Every case of the conformance suite, against the job server in each of its modes; and that the suite notices who promises too much."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import pytest

from conformance.jobadapter import CAPABILITIES, MODES, SECONDS, Served, serving
from conformance.tables import keep_outcomes
from reattach.task.adapter import Capabilities, ClientName, Lookup, SubmissionToken
from reattach.testing import CASES, Case, Outcome, RealClock, Report, Suite, conformance


@dataclass
class Stage:
    """A job server and a suite over it, for all cases of one mode."""

    served: Served
    suite: Suite
    outcomes: list[Outcome]


@pytest.fixture(scope="module", params=MODES)
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    with serving(request.param) as served, Suite(served.other_side()) as suite:
        found = Stage(served, suite, [])
        yield found
        keep_outcomes(f"http, {request.param}", found.outcomes)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_each_case_ends_as_one_job_or_held(stage: Stage, case: Case) -> None:
    outcome = stage.suite.check(case)
    stage.outcomes.append(outcome)
    if outcome.skipped:
        pytest.skip(outcome.skipped)


FOR_EVER = timedelta(days=365)
TOO_MUCH = {
    "a name that it does not keep": ("nothing", Capabilities(client_name=ClientName())),
    "a token that it does not know": ("nothing", Capabilities(token=SubmissionToken(FOR_EVER))),
    "a token that lives longer": ("expiring-token", Capabilities(token=SubmissionToken(timedelta(seconds=7200)))),
    "a look-up that lags": ("lagging-lookup", Capabilities(look_up=Lookup(settling=timedelta()))),
    "a look-up that forgets": (
        "forgetting-lookup",
        Capabilities(
            look_up=Lookup(settling=timedelta(), retention=timedelta(seconds=4 * SECONDS["forgetting-lookup"]))
        ),
    ),
}


@pytest.mark.parametrize("promise", TOO_MUCH)
def test_an_adapter_that_declares_too_much_is_found_out(promise: str) -> None:
    mode, declared = TOO_MUCH[promise]
    with serving(mode) as served:
        report = conformance(
            lambda: served.adapter(declared),
            lambda: served.server.made,
            request={"seconds": 60},
            other_request={"seconds": 61},
            forget=served.server.jobs.forget,
            clock=served.clock,
        )
    assert report.failures, str(report)
    assert any("made 2 jobs" in outcome.wrong for outcome in report.failures), str(report)


def test_an_adapter_that_declares_less_is_right_and_only_held_more_often() -> None:
    with serving("token") as served, Suite(served.other_side(Capabilities())) as suite:
        outcomes = [suite.check(case) for case in CASES]
    assert sum(outcome.verdict == "held" for outcome in outcomes) > 10


def test_the_suite_goes_by_the_real_clock_too() -> None:
    real = RealClock()
    with serving("token", clock=real) as served, Suite(served.other_side(seconds=2)) as suite:
        for case in CASES:
            if case.name in {"undisturbed", "answer lost", "frozen in submit", "watching"}:
                suite.check(case)


def test_the_table_tells_what_was_not_tried_and_what_is_wrong() -> None:
    first, second, third = CASES[:3]
    report = Report("x", (Outcome(first, skipped="no way"), Outcome(second, wrong="2 jobs"), Outcome(third)))
    assert "not tried: no way" in str(report)
    assert "**2 jobs**" in str(report)
    assert [outcome.case for outcome in report.failures] == [second]
    assert [outcome.case for outcome in report.tried] == [second, third]


def test_every_mode_of_the_job_server_is_played() -> None:
    assert set(CAPABILITIES) == set(MODES)
    assert len(MODES) * len(CASES) >= 250
