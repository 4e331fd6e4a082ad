"""The cases of the conformance suite with wrong adapters for the job server: each one is found."""

import contextlib
import itertools
import re
import uuid
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, ClassVar

import httpx
import pytest
from typing_extensions import override

import jobservers
from conformance.jobadapter import CAPABILITIES, SECONDS, JobServerAdapter, JobServerSystem, serving
from controlplane import REPOSITORY
from reattach.adapters.base import (
    Cancelled,
    Capabilities,
    ClientName,
    Failed,
    JobStatus,
    Lookup,
    NotFound,
    Rejected,
    Submission,
    SubmissionToken,
    Submitted,
    Succeeded,
)
from reattach.testing import CASES, CaseResult, ExpectedResult, RealClock, Suite, conformance

RETENTION = timedelta(seconds=SECONDS["forgetting-name"])
FOR_EVER = timedelta(days=365)
RETENTION = timedelta(seconds=SECONDS["forgetting-name"])
FOR_EVER = timedelta(days=365)
EXCESSIVE = {
    "a name that is not enforced": ("nothing", Capabilities(client_name=ClientName())),
    "a longer retention of names": ("forgetting-name", Capabilities(client_name=ClientName(4 * RETENTION))),
    "a token that is not enforced": ("nothing", Capabilities(token=SubmissionToken(FOR_EVER))),
    "a longer lifetime of tokens": ("expiring-token", Capabilities(token=SubmissionToken(timedelta(seconds=7200)))),
    "a name that is free when its job ends": ("while-open", Capabilities(client_name=ClientName())),
    "a token that ends with its job": ("while-open", Capabilities(token=SubmissionToken(FOR_EVER))),
    "a lookup that finds only open jobs": ("while-open", Capabilities(look_up=Lookup(settling=timedelta()))),
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


class ReportsErrorAsNotFound(JobServerAdapter):
    @override
    def status(self, handle: str) -> JobStatus:
        try:
            return super().status(handle)
        except httpx.HTTPStatusError as error:
            return NotFound(str(error))


class ReportsErrorAsRejectedForNow(JobServerAdapter):
    @override
    def submit(self, submission: Submission) -> Submitted:
        try:
            return super().submit(submission)
        except httpx.HTTPStatusError as error:
            raise Rejected(str(error), retriable=True) from error


class ReadsOnePage(JobServerAdapter):
    """Adapter that reads a page of two jobs, and finds no later one."""

    _page: ClassVar[list[str]] = []

    @override
    def submit(self, submission: Submission) -> Submitted:
        made = super().submit(submission)
        self._page.extend([made.handle] if len(self._page) < 2 else [])
        return made

    @override
    def look_up(self, submission: Submission) -> Submitted | None:
        found = super().look_up(submission)
        return found if found is not None and found.handle in self._page else None


class IgnoresTokenInLookup(JobServerAdapter):
    """Adapter that returns the first job of the list, whatever its token is."""

    _jobs: ClassVar[list[str]] = []

    @override
    def submit(self, submission: Submission) -> Submitted:
        made = super().submit(submission)
        self._jobs.append(made.handle)
        return made

    @override
    def look_up(self, submission: Submission) -> Submitted | None:
        return Submitted(self._jobs[0], existed=True)


class MakesNewTokens(JobServerAdapter):
    @override
    def submit(self, submission: Submission) -> Submitted:
        return super().submit(replace(submission, token=str(uuid.uuid4())))


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


@dataclass(frozen=True)
class Defect:
    """A wrong adapter, a case that finds it, and the problem that the case reports.

    mistake: the mistake of the list in docs/adapters.md, or an empty string.
    mode: mode of the job server, a name or a `jobserver.Mode`.
    capabilities: declared capabilities, by default those of the mode.
    outcome: result of the run, if the SDK must have acted on the wrong report.
    """

    adapter: type[JobServerAdapter]
    case: str
    problem: str
    mistake: str = ""
    mode: Any = "lookup"
    capabilities: Capabilities | None = None
    outcome: ExpectedResult | None = None


REJECTED = "`Rejected` for a response that proves nothing"
ABSENT = '"Absent" after a lookup that failed'
FAILED = "`Failed` for a state that you don't know."
LOOKUP = "A lookup in place of a name"
GUARANTEE = "A guarantee that is none"

SLOW_TO_SETTLE = Capabilities(look_up=Lookup(settling=timedelta(seconds=900)))
"""Capabilities with a settling time that is longer than the shortest outage."""

DEFECTS = {
    "a running job is reported as failed": Defect(ReportsActiveAsFailed, "undisturbed", "made 51 jobs", FAILED),
    "cancel does nothing, crash before": Defect(IgnoresCancel, "before cancel", "was cancelled, but .* Succeeded"),
    "cancel does nothing, crash meanwhile": Defect(IgnoresCancel, "during cancel", "was cancelled, but .* Succeeded"),
    "cancel does nothing, crash after": Defect(IgnoresCancel, "after cancel", "was cancelled, but .* Succeeded"),
    "cancel does nothing, and is reported": Defect(
        OnlyReportsCancelled, "before cancel", "still runs: 1 running now, 0 before"
    ),
    "requests have the same digest": Defect(SameDigestForAllRequests, "digest changed", "must end as held"),
    "a 500 is reported as rejected, job not made": Defect(
        ReportsErrorAsRejected, "500, not made", "submitted again", REJECTED
    ),
    "a 500 is reported as rejected, job made": Defect(
        ReportsErrorAsRejected, "500, made", r"submit raised Rejected\(.* made 2 jobs", REJECTED
    ),
    "a 500 is reported as rejected, for ten minutes": Defect(
        ReportsErrorAsRejected, "500 on submit", "ended as failed", REJECTED
    ),
    "a 500 is reported as rejected for now": Defect(
        ReportsErrorAsRejectedForNow, "500, made", r"submit raised Rejected\(.* made 2 jobs", REJECTED
    ),
    "a 500 is reported as rejected for now, with a token": Defect(
        ReportsErrorAsRejectedForNow, "500, made", r"submit raised Rejected\(.* made 1 job", REJECTED, "token"
    ),
    "a cut connection is reported as rejected": Defect(
        ReportsCutConnectionAsRejected, "cut, made", r"submit raised Rejected\(.* made 2 jobs", REJECTED
    ),
    "an error of a lookup is reported as absence": Defect(
        ReportsErrorAsAbsent, "500 on lookup", "look_up returned None when .* made 2 jobs", ABSENT
    ),
    "an error of a lookup is reported as absence, and settling takes long": Defect(
        ReportsErrorAsAbsent,
        "500 on lookup",
        "look_up returned None when .* made 2 jobs",
        ABSENT,
        "lookup",
        SLOW_TO_SETTLE,
    ),
    "an error of a lookup is reported as absence, and a name makes lookups needless": Defect(
        ReportsErrorAsAbsent,
        "500 on lookup",
        "look_up returned None when .* made 1 job",
        ABSENT,
        "name",
        Capabilities(client_name=ClientName(), look_up=Lookup(settling=timedelta())),
    ),
    "one page of a list is read": Defect(ReadsOnePage, "found in time", "it returned None", ABSENT),
    "the token is ignored in a lookup": Defect(IgnoresTokenInLookup, "found in time", "it returned Submitted", ABSENT),
    "the token is ignored in a lookup, and there is no job": Defect(
        IgnoresTokenInLookup, "request failed", "ended as held", ABSENT
    ),
    "the settling time is a little too short": Defect(
        JobServerAdapter,
        "found in time",
        "must find the job 15 s after its submission, .* it returned None",
        GUARANTEE,
        "lagging-lookup",
        Capabilities(look_up=Lookup(settling=timedelta(seconds=15))),
    ),
    "a 500 is reported as failed": Defect(ReportsErrorAsFailed, "500 on status", "status returned Failed", FAILED),
    "a 500 is reported as not found": Defect(ReportsErrorAsNotFound, "500 on status", "status returned NotFound"),
    "a 500 is reported as not found, and settling takes long": Defect(
        ReportsErrorAsNotFound,
        "500 on status",
        "status returned NotFound",
        capabilities=SLOW_TO_SETTLE,
        outcome=ExpectedResult.HELD,
    ),
    "a lookup takes the place of a name": Defect(
        LooksUpBeforeSubmit, "at once", r"made \d+ jobs", LOOKUP, "lookup", Capabilities(client_name=ClientName())
    ),
    "each submission has a new token": Defect(MakesNewTokens, "response lost", "made 2 jobs", GUARANTEE, "token"),
    "the result changes": Defect(ReturnsChangingResults, "undisturbed", "must be the same for each attempt"),
    "the result changes after a crash": Defect(ReturnsChangingResults, "outcome recorded", "must be the same"),
}


def run_defect(defect: Defect, served: JobServerSystem) -> CaseResult:
    """Run the case that finds a wrong adapter, in the default timing of the clock."""
    [case] = [case for case in CASES if case.name == defect.case]
    capabilities = CAPABILITIES[defect.mode] if defect.capabilities is None else defect.capabilities
    system = replace(
        served.external_system(seconds=2 if isinstance(served.clock, RealClock) else 60),
        adapter=lambda: defect.adapter(served.client, capabilities),
    )
    with Suite(system) as suite:
        return suite.run_case(case)


@pytest.mark.parametrize("what", DEFECTS)
def test_case_on_a_defect_of_the_adapter_reports_it(what: str) -> None:
    defect = DEFECTS[what]
    with serving(defect.mode) as served:
        result = run_defect(defect, served)
    assert re.search(defect.problem, result.problem), result
    assert defect.outcome in {None, result.outcome}, result


class ReportsErrorAsAbsentInTwoSeconds(ReportsErrorAsAbsent):
    request_seconds = 2.0


class SettlesTooLate(JobServerAdapter):
    request_seconds = 5.0


AT_ONCE = Capabilities(look_up=Lookup(settling=timedelta()))
LAGGING = jobservers.jobserver.Mode(lag_seconds=9)
REAL_DEFECTS = {
    "an error of a lookup is reported as absence": Defect(
        ReportsErrorAsAbsentInTwoSeconds,
        "500 on lookup",
        "look_up returned None when .* made 2 jobs",
        ABSENT,
        capabilities=AT_ONCE,
    ),
    "a lag is not declared": Defect(
        SettlesTooLate,
        "found in time",
        "must find the job 0 s after its submission",
        GUARANTEE,
        LAGGING,
        AT_ONCE,
    ),
    "a 500 is reported as rejected for now": DEFECTS["a 500 is reported as rejected for now"],
    "a 500 is reported as failed": DEFECTS["a 500 is reported as failed"],
    "a lookup takes the place of a name": DEFECTS["a lookup takes the place of a name"],
}


@pytest.mark.parametrize("what", REAL_DEFECTS)
def test_case_in_real_time_on_a_defect_of_the_adapter_reports_it(what: str) -> None:
    defect = REAL_DEFECTS[what]
    with serving(defect.mode, clock=RealClock()) as served:
        result = run_defect(defect, served)
    assert re.search(defect.problem, result.problem), result


@pytest.mark.parametrize("defects", [DEFECTS, REAL_DEFECTS], ids=["virtual time", "real time"])
def test_each_mistake_of_the_documented_list_has_a_defect_that_the_suite_finds(defects: dict[str, Defect]) -> None:
    text = (REPOSITORY / "docs/adapters.md").read_text()
    documented = re.findall(r"^\* \*\*(.*?)\*\*", text.partition("### Five mistakes")[2], re.MULTILINE)
    assert {defect.mistake for defect in defects.values()} - {""} == set(documented)


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
