"""The cases of the conformance suite, with correct adapters for the job server."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta

import pytest
from typing_extensions import override

import jobservers
from conformance.jobadapter import CASE_MODES, SECONDS, JobServerAdapter, JobServerSystem, serving
from conformance.tables import keep_outcomes
from reattach.adapters.base import Capabilities, ClientName, Lookup, Submission, Submitted
from reattach.testing import CASES, Case, CaseResult, CountError, ExpectedResult, RealClock, Report, Suite
from reattach.testing.conformance import CaseRun


@dataclass
class Stage:
    """A job server and its suite, for all cases of one mode."""

    served: JobServerSystem
    suite: Suite
    results: list[CaseResult]


# A mode's cases share a job server, and so a worker.
@pytest.fixture(scope="module", params=[pytest.param(mode, marks=pytest.mark.xdist_group(mode)) for mode in CASE_MODES])
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    with serving(request.param) as served, Suite(served.external_system()) as suite:
        found = Stage(served, suite, [])
        yield found
        keep_outcomes(f"http, {request.param}", found.results)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_each_case_ends_as_one_job_or_held(stage: Stage, case: Case) -> None:
    result = stage.suite.check(case)
    stage.results.append(result)
    if result.skipped:
        pytest.skip(result.skipped)


RETENTION = timedelta(seconds=SECONDS["forgetting-name"])


def _known(served: JobServerSystem) -> int:
    [number] = served.server.jobs._database.execute("SELECT count(*) FROM jobs WHERE NOT forgotten").fetchone()
    return int(number)


@pytest.mark.parametrize(
    "count, counted",
    [(lambda _served: 7, 0), (lambda served: 2 * served.server.made, 4), (_known, 1)],
    ids=["a constant", "requests, not jobs", "jobs that are not forgotten"],
)
def test_suite_on_a_wrong_count_of_jobs_raises_count_error(
    count: Callable[[JobServerSystem], int], counted: int
) -> None:
    with serving("name") as served:
        system = replace(served.external_system(), count_jobs=lambda: count(served))
        with pytest.raises(CountError, match=f"must count every job .* the count rose by {counted}"), Suite(system):
            pass


def test_run_held_for_another_reason_than_an_unknown_submission_ends_as_failed() -> None:
    """The attempts use up their budget while the job runs, so that the run is held."""
    [case] = [case for case in CASES if case.name == "undisturbed"]

    def arrange(case_run: CaseRun) -> frozenset[ExpectedResult]:
        for attempt in range(1, 60):
            case_run.at_step(attempt, "watching", lambda process: process.kill())
        return frozenset({ExpectedResult.HELD})

    with serving("token") as served, Suite(served.external_system()) as suite:
        result = suite.run_case(replace(case, arrange=arrange))
    assert result.problem == "the case must end as held; it ended as failed"


def test_lookup_with_a_longer_retention_than_names_resolves_a_forgotten_name() -> None:
    capabilities = Capabilities(
        client_name=ClientName(RETENTION), look_up=Lookup(settling=timedelta(), retention=4 * RETENTION)
    )
    mode = jobservers.jobserver.Mode(unique_names=True, lag_seconds=0, forget_seconds=4 * SECONDS["forgetting-name"])
    with serving(mode) as served, Suite(served.external_system(capabilities)) as suite:
        outcomes = {case.name: suite.check(case).outcome for case in CASES if "forgotten" in case.name}
    assert outcomes == {
        "name forgotten": ExpectedResult.ONE_JOB,
        "forgotten unseen": ExpectedResult.HELD,
        "forgotten": ExpectedResult.HELD,
    }


def test_lookups_that_fail_for_longer_than_jobs_are_kept_end_as_held() -> None:
    [case] = [case for case in CASES if case.name == "500 on lookup"]
    capabilities = Capabilities(look_up=Lookup(settling=timedelta(), retention=timedelta(seconds=500)))
    mode = jobservers.jobserver.Mode(lag_seconds=0, forget_seconds=500)
    with serving(mode) as served, Suite(served.external_system(capabilities)) as suite:
        assert suite.check(case).outcome is ExpectedResult.HELD


@pytest.mark.parametrize("name", ["frozen after", "frozen with handle", "node dies after"])
def test_job_on_a_lost_node_is_found_however_long_a_lookup_lags(name: str) -> None:
    [case] = [case for case in CASES if case.name == name]
    capabilities = Capabilities(look_up=Lookup(settling=timedelta(seconds=300)))
    with (
        serving(jobservers.jobserver.Mode(lag_seconds=300)) as served,
        Suite(served.external_system(capabilities)) as suite,
    ):
        assert suite.check(case).outcome is ExpectedResult.ONE_JOB


class LooksUpTakenNames(JobServerAdapter):
    """Adapter that reads the job of a taken name, because the response does not have it."""

    @override
    def submit(self, submission: Submission) -> Submitted:
        made = super().submit(submission)
        found = self.look_up(submission) if made.existed else made
        assert found is not None
        return found


def test_lookups_that_fail_do_not_delay_a_submission_by_name() -> None:
    [case] = [case for case in CASES if case.name == "500 on lookup"]
    capabilities = Capabilities(client_name=ClientName(), look_up=Lookup(settling=timedelta()))
    with serving(jobservers.jobserver.Mode(unique_names=True, lag_seconds=0)) as served:
        system = replace(served.external_system(), adapter=lambda: LooksUpTakenNames(served.client, capabilities))
        with Suite(system) as suite:
            began = served.clock.monotonic()
            assert suite.check(case).outcome is ExpectedResult.ONE_JOB
            assert served.clock.monotonic() - began < 100


def test_case_found_in_time_without_any_proof_of_absence_is_skipped() -> None:
    [case] = [case for case in CASES if case.name == "found in time"]
    capabilities = Capabilities(look_up=Lookup(settling=timedelta(seconds=20), retention=timedelta(seconds=60)))
    with serving("lagging-lookup") as served, Suite(served.external_system(capabilities)) as suite:
        assert suite.check(case).skipped == "no lookup proves absence, because jobs are forgotten first"


def test_settling_time_beyond_the_patience_of_the_suite_still_ends() -> None:
    [case] = [case for case in CASES if case.name == "after intent"]
    capabilities = Capabilities(look_up=Lookup(settling=timedelta(days=31)))
    with serving("lookup") as served, Suite(served.external_system(capabilities)) as suite:
        assert suite.check(case).outcome is ExpectedResult.ONE_JOB


def test_adapter_that_declares_less_passes_and_is_held_more_often() -> None:
    with serving("token") as served, Suite(served.external_system(Capabilities())) as suite:
        results = [suite.check(case) for case in CASES]
    assert sum(result.outcome == "held" for result in results) > 10


def test_suite_with_the_real_clock_passes() -> None:
    real = RealClock()
    with serving("token", clock=real) as served, Suite(served.external_system(seconds=2)) as suite:
        for case in CASES:
            if case.name in {"undisturbed", "response lost", "frozen in submit", "watching"}:
                suite.check(case)


def test_table_shows_skipped_cases_and_problems() -> None:
    first, second, third = CASES[:3]
    report = Report("x", (CaseResult(first, skipped="no way"), CaseResult(second, problem="2 jobs"), CaseResult(third)))
    assert "not tried: no way" in str(report)
    assert "**2 jobs**" in str(report)
    assert [result.case for result in report.failures] == [second]
    assert [result.case for result in report.tried] == [second, third]
