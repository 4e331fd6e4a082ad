"""The suite's cases in which the run ends before its job, for right and for wrong adapters."""

from typing import Any

import pytest
from typing_extensions import override

from conformance.jobadapter import CAPABILITIES, CASE_MODES, JobServerAdapter, serving
from reattach.adapters.base import Cancelled, JobStatus, Submission, Submitted
from reattach.testing import CASES, ENDING_CASES, CaseResult, ExpectedResult, conformance


def results_of(mode: str, adapter: type[JobServerAdapter] = JobServerAdapter) -> dict[str, CaseResult]:
    with serving(mode) as served:
        report = conformance(
            lambda: adapter(served.client, CAPABILITIES[mode]),
            lambda: served.server.made,
            request={"seconds": 60},
            other_request={"seconds": 61},
            lasting_request={"seconds": 30 * 24 * 3600},
            count_running=served.running,
            clock=served.clock,
            cases=ENDING_CASES,
            show=lambda _: None,
        )
        assert served.running() == 0 or report.failures
        return {result.case.name: result for result in report.results}


@pytest.mark.parametrize("mode", CASE_MODES)
def test_adapter_that_declares_what_holds_passes_each_case(mode: str) -> None:
    results = results_of(mode)
    assert not [result.problem for result in results.values() if result.problem]
    unseen = ExpectedResult.HELD if CAPABILITIES[mode].look_up is None else ExpectedResult.ONE_JOB
    assert [result.outcome for result in results.values()] == [ExpectedResult.ONE_JOB, unseen, ExpectedResult.ONE_JOB]
    assert {result.jobs for result in results.values()} == {1}


class IgnoresCancel(JobServerAdapter):
    @override
    def cancel(self, handle: str) -> None:
        return None


class NeedsTheRequest(JobServerAdapter):
    """Finds a job only with its request, which a cleanup attempt does not have."""

    @override
    def look_up(self, submission: Submission) -> Submitted | None:
        return super().look_up(submission) if submission.request["seconds"] else None


class ReportsCancelledAtOnce(JobServerAdapter):
    """Takes the request to cancel for the end of the job, and sends none."""

    _cancelled: Any = frozenset()

    @override
    def cancel(self, handle: str) -> None:
        self._cancelled |= {handle}

    @override
    def status(self, handle: str) -> JobStatus:
        return Cancelled() if handle in self._cancelled else super().status(handle)


@pytest.mark.parametrize(
    "adapter,case,problem",
    [
        (IgnoresCancel, "run cancelled", "is Orphaned, not Cancelled|is Active, not Cancelled"),
        (NeedsTheRequest, "run cancelled unseen", "must end as one job"),
        (ReportsCancelledAtOnce, "run cancelled", "the external system reports Active"),
    ],
)
def test_adapter_that_ends_no_job_is_found(adapter: type[JobServerAdapter], case: str, problem: str) -> None:
    found = results_of("lookup", adapter)[case].problem
    assert any(part in found for part in problem.split("|")), found


def test_names_of_all_cases_differ() -> None:
    names = [case.name for case in (*CASES, *ENDING_CASES)]
    assert len(names) == len(set(names))
