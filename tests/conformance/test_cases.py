"""The cases of the conformance suite, with correct and with wrong adapters for the job server."""

import contextlib
import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, ClassVar

import httpx
import pytest
from typing_extensions import override

import jobservers
from conformance.jobadapter import CAPABILITIES, MODES, SECONDS, JobServerAdapter, JobServerSystem, serving
from conformance.tables import keep_outcomes
from reattach.adapters.base import (
    Cancelled,
    Capabilities,
    ClientName,
    Failed,
    JobStatus,
    Lookup,
    Rejected,
    Submission,
    SubmissionToken,
    Submitted,
    Succeeded,
)
from reattach.testing import CASES, Case, CaseResult, CountError, ExpectedResult, RealClock, Report, Suite, conformance
from reattach.testing.conformance import CaseRun


@dataclass
class Stage:
    """A job server and its suite, for all cases of one mode."""

    served: JobServerSystem
    suite: Suite
    results: list[CaseResult]


# A mode's cases share a job server, and so a worker.
@pytest.fixture(scope="module", params=[pytest.param(mode, marks=pytest.mark.xdist_group(mode)) for mode in MODES])
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
FOR_EVER = timedelta(days=365)
EXCESSIVE = {
    "a name that is not enforced": ("nothing", Capabilities(client_name=ClientName())),
    "a longer retention of names": ("forgetting-name", Capabilities(client_name=ClientName(4 * RETENTION))),
    "a token that is not enforced": ("nothing", Capabilities(token=SubmissionToken(FOR_EVER))),
    "a longer lifetime of tokens": ("expiring-token", Capabilities(token=SubmissionToken(timedelta(seconds=7200)))),
    "a shorter settling time": ("lagging-lookup", Capabilities(look_up=Lookup(settling=timedelta()))),
    "a longer retention of lookups": (
        "forgetting-lookup",
        Capabilities(
            look_up=Lookup(settling=timedelta(), retention=timedelta(seconds=4 * SECONDS["forgetting-lookup"]))
        ),
    ),
}


@pytest.mark.parametrize("excess", EXCESSIVE)
def test_suite_on_excessive_capabilities_reports_two_jobs(excess: str) -> None:
    mode, declared = EXCESSIVE[excess]
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
    assert any("made 2 jobs" in result.problem for result in report.failures), str(report)


class ReportsActiveAsFailed(JobServerAdapter):
    @override
    def status(self, handle: str) -> JobStatus:
        status = super().status(handle)
        return status if isinstance(status, Succeeded) else Failed("unknown state")


class IgnoresCancel(JobServerAdapter):
    @override
    def cancel(self, handle: str) -> None:
        pass


class OnlyReportsCancelled(JobServerAdapter):
    _cancelled: ClassVar[set[str]] = set()

    @override
    def cancel(self, handle: str) -> None:
        self._cancelled.add(handle)

    @override
    def status(self, handle: str) -> JobStatus:
        return Cancelled() if handle in self._cancelled else super().status(handle)


class SameDigestForAllRequests(JobServerAdapter):
    @override
    def digest(self, request: Any) -> str:
        return "the same"


class ReturnsChangingResults(JobServerAdapter):
    _times = itertools.count()

    @override
    def status(self, handle: str) -> JobStatus:
        status = super().status(handle)
        return Succeeded({"asked": next(self._times)}) if isinstance(status, Succeeded) else status


class ReportsErrorAsRejected(JobServerAdapter):
    @override
    def submit(self, submission: Submission) -> Submitted:
        try:
            return super().submit(submission)
        except httpx.HTTPStatusError as error:
            raise Rejected(str(error)) from error


class ReportsCutConnectionAsRejected(JobServerAdapter):
    @override
    def submit(self, submission: Submission) -> Submitted:
        try:
            return super().submit(submission)
        except httpx.TransportError as error:
            raise Rejected(str(error), retriable=True) from error


class ReportsErrorAsAbsent(JobServerAdapter):
    @override
    def look_up(self, submission: Submission) -> Submitted | None:
        with contextlib.suppress(httpx.HTTPError):
            return super().look_up(submission)
        return None


class ReportsErrorAsFailed(JobServerAdapter):
    @override
    def status(self, handle: str) -> JobStatus:
        try:
            return super().status(handle)
        except httpx.HTTPStatusError as error:
            return Failed(str(error))


class LooksUpBeforeSubmit(JobServerAdapter):
    @override
    def submit(self, submission: Submission) -> Submitted:
        return self.look_up(submission) or super().submit(submission)


class ReturnsChangingHandles(JobServerAdapter):
    _times = itertools.count()

    @override
    def submit(self, submission: Submission) -> Submitted:
        made = super().submit(submission)
        return replace(made, handle=f"{made.handle}?{next(self._times)}")


DEFECTS: dict[str, tuple[type[JobServerAdapter], str, str]] = {
    "a running job is reported as failed": (ReportsActiveAsFailed, "undisturbed", "made 51 jobs"),
    "cancel does nothing, crash before": (IgnoresCancel, "before cancel", "was cancelled, but .* Succeeded"),
    "cancel does nothing, crash meanwhile": (IgnoresCancel, "during cancel", "was cancelled, but .* Succeeded"),
    "cancel does nothing, crash after": (IgnoresCancel, "after cancel", "was cancelled, but .* Succeeded"),
    "cancel does nothing, and is reported": (
        OnlyReportsCancelled,
        "before cancel",
        "still runs: 1 running now, 0 before",
    ),
    "requests have the same digest": (SameDigestForAllRequests, "digest changed", "must end with DigestChanged"),
    "a 500 is reported as rejected, job not made": (ReportsErrorAsRejected, "500, not made", "submitted again"),
    "a 500 is reported as rejected, job made": (ReportsErrorAsRejected, "500, made", "made 2 jobs"),
    "a 500 is reported as rejected, for ten minutes": (ReportsErrorAsRejected, "500 on submit", "ended as failed"),
    "a cut connection is reported as rejected": (ReportsCutConnectionAsRejected, "cut, made", "made 2 jobs"),
    "an error of a lookup is reported as absence": (ReportsErrorAsAbsent, "500 on lookup", "made 2 jobs"),
    "a 500 is reported as failed": (ReportsErrorAsFailed, "500 on status", "made .* jobs"),
    "the result changes": (ReturnsChangingResults, "undisturbed", "must be the same for each attempt"),
    "the result changes after a crash": (ReturnsChangingResults, "outcome recorded", "must be the same"),
}


@pytest.mark.parametrize("what", DEFECTS)
def test_case_on_a_defect_of_the_adapter_reports_it(what: str) -> None:
    adapter, name, pattern = DEFECTS[what]
    [case] = [case for case in CASES if case.name == name]
    with serving("lookup") as served:
        system = replace(served.external_system(), adapter=lambda: adapter(served.client, CAPABILITIES["lookup"]))
        with Suite(system) as suite:
            result = suite.run_case(case)
    assert re.search(pattern, result.problem), result


def test_adapter_that_only_looks_up_before_it_submits_fails_only_the_case_at_once() -> None:
    with serving("lookup") as served:
        capabilities = Capabilities(client_name=ClientName())
        system = replace(served.external_system(), adapter=lambda: LooksUpBeforeSubmit(served.client, capabilities))
        with Suite(system) as suite:
            problem = {case.name: result.problem for case in CASES if (result := suite.run_case(case)).problem}
    assert list(problem) == ["at once"], problem
    assert re.search(r"made \d+ jobs", problem["at once"])


def test_case_at_once_on_different_handles_reports_them() -> None:
    [case] = [case for case in CASES if case.name == "at once"]
    with serving("name") as served:
        system = replace(
            served.external_system(), adapter=lambda: ReturnsChangingHandles(served.client, CAPABILITIES["name"])
        )
        with Suite(system) as suite:
            assert "concurrent submissions must all return the same handle" in suite.run_case(case).problem


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
