"""Every case of the conformance suite, against the job server in each of its modes; and that the suite notices who promises too much."""

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
from conformance.jobadapter import CAPABILITIES, MODES, SECONDS, JobServerAdapter, Served, serving
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
    """A job server and a suite over it, for all cases of one mode."""

    served: Served
    suite: Suite
    outcomes: list[CaseResult]


# A mode's cases share a job server, and so a worker.
@pytest.fixture(scope="module", params=[pytest.param(mode, marks=pytest.mark.xdist_group(mode)) for mode in MODES])
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


MEMORY = timedelta(seconds=SECONDS["forgetting-name"])
FOR_EVER = timedelta(days=365)
TOO_MUCH = {
    "a name that it does not keep": ("nothing", Capabilities(client_name=ClientName())),
    "a name that it keeps for longer": ("forgetting-name", Capabilities(client_name=ClientName(4 * MEMORY))),
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


class TakesActiveForFailed(JobServerAdapter):
    @override
    def status(self, handle: str) -> JobStatus:
        status = super().status(handle)
        return status if isinstance(status, Succeeded) else Failed("a state that it does not know")


class DoesNotCancel(JobServerAdapter):
    @override
    def cancel(self, handle: str) -> None:
        pass


class SaysThatItCancelled(JobServerAdapter):
    _cancelled: ClassVar[set[str]] = set()

    @override
    def cancel(self, handle: str) -> None:
        self._cancelled.add(handle)

    @override
    def status(self, handle: str) -> JobStatus:
        return Cancelled() if handle in self._cancelled else super().status(handle)


class TellsNoRequestFromAnother(JobServerAdapter):
    @override
    def digest(self, request: Any) -> str:
        return "the same"


class TellsAnotherResultEachTime(JobServerAdapter):
    _times = itertools.count()

    @override
    def status(self, handle: str) -> JobStatus:
        status = super().status(handle)
        return Succeeded({"asked": next(self._times)}) if isinstance(status, Succeeded) else status


class TakesAnErrorForARefusal(JobServerAdapter):
    @override
    def submit(self, submission: Submission) -> Submitted:
        try:
            return super().submit(submission)
        except httpx.HTTPStatusError as error:
            raise Rejected(str(error)) from error


class TakesACutConnectionForARefusal(JobServerAdapter):
    @override
    def submit(self, submission: Submission) -> Submitted:
        try:
            return super().submit(submission)
        except httpx.TransportError as error:
            raise Rejected(str(error), retriable=True) from error


class TakesNoAnswerForAbsence(JobServerAdapter):
    @override
    def look_up(self, submission: Submission) -> Submitted | None:
        with contextlib.suppress(httpx.HTTPError):
            return super().look_up(submission)
        return None


class TakesAnErrorForTheJobsEnd(JobServerAdapter):
    @override
    def status(self, handle: str) -> JobStatus:
        try:
            return super().status(handle)
        except httpx.HTTPStatusError as error:
            return Failed(str(error))


class LooksBeforeItSubmits(JobServerAdapter):
    @override
    def submit(self, submission: Submission) -> Submitted:
        return self.look_up(submission) or super().submit(submission)


class AnswersWithAnotherHandle(JobServerAdapter):
    _times = itertools.count()

    @override
    def submit(self, submission: Submission) -> Submitted:
        made = super().submit(submission)
        return replace(made, handle=f"{made.handle}?{next(self._times)}")


WRONG: dict[str, tuple[type[JobServerAdapter], str, str]] = {
    "a job that runs is called failed": (TakesActiveForFailed, "undisturbed", "made 51 jobs"),
    "nothing is cancelled, crash before": (DoesNotCancel, "before cancel", "was cancelled, and .* Succeeded"),
    "nothing is cancelled, crash meanwhile": (DoesNotCancel, "during cancel", "was cancelled, and .* Succeeded"),
    "nothing is cancelled, crash after": (DoesNotCancel, "after cancel", "was cancelled, and .* Succeeded"),
    "nothing is cancelled, and called so": (
        SaysThatItCancelled,
        "before cancel",
        "still runs: 1 run over there, 0 ran",
    ),
    "requests are not told apart": (TellsNoRequestFromAnother, "digest changed", "must end by DigestChanged"),
    "a 500 is a refusal, job not made": (TakesAnErrorForARefusal, "500, not made", "asked for once more"),
    "a 500 is a refusal, job made": (TakesAnErrorForARefusal, "500, made", "made 2 jobs"),
    "a 500 is a refusal, for ten minutes": (TakesAnErrorForARefusal, "500 on submit", "ended as failed"),
    "a cut connection is a refusal": (TakesACutConnectionForARefusal, "cut, made", "made 2 jobs"),
    "a look-up without an answer is absence": (TakesNoAnswerForAbsence, "500 on look-up", "made 2 jobs"),
    "a 500 is the job's end": (TakesAnErrorForTheJobsEnd, "500 on status", "made .* jobs"),
    "the result changes": (TellsAnotherResultEachTime, "undisturbed", "must be the same whoever asks"),
    "the result changes after a crash": (TellsAnotherResultEachTime, "outcome recorded", "must be the same"),
}


@pytest.mark.parametrize("what", WRONG)
def test_an_adapter_that_does_wrong_is_found_out_by_the_case_that_tries_it(what: str) -> None:
    adapter, name, words = WRONG[what]
    [case] = [case for case in CASES if case.name == name]
    with serving("lookup") as served:
        side = replace(served.other_side(), adapter=lambda: adapter(served.client, CAPABILITIES["lookup"]))
        with Suite(side) as suite:
            outcome = suite.play(case)
    assert re.search(words, outcome.wrong), outcome


def test_an_adapter_that_only_looks_before_it_submits_is_found_out_by_many_at_once_and_by_nothing_else() -> None:
    with serving("lookup") as served:
        can = Capabilities(client_name=ClientName())
        side = replace(served.other_side(), adapter=lambda: LooksBeforeItSubmits(served.client, can))
        with Suite(side) as suite:
            wrong = {case.name: outcome.wrong for case in CASES if (outcome := suite.play(case)).wrong}
    assert list(wrong) == ["at once"], wrong
    assert re.search(r"made \d+ jobs", wrong["at once"])


def test_a_handle_that_is_another_for_each_who_asks_is_found_out() -> None:
    [case] = [case for case in CASES if case.name == "at once"]
    with serving("name") as served:
        side = replace(
            served.other_side(), adapter=lambda: AnswersWithAnotherHandle(served.client, CAPABILITIES["name"])
        )
        with Suite(side) as suite:
            assert "at once must be told the same handle" in suite.play(case).wrong


def _known(served: Served) -> int:
    [number] = served.server.jobs._database.execute("SELECT count(*) FROM jobs WHERE NOT forgotten").fetchone()
    return int(number)


@pytest.mark.parametrize(
    "count, counted",
    [(lambda _served: 7, 0), (lambda served: 2 * served.server.made, 4), (_known, 1)],
    ids=["a constant", "requests, not jobs", "those that are still known"],
)
def test_a_count_that_is_not_of_every_job_ever_made_is_refused(count: Callable[[Served], int], counted: int) -> None:
    with serving("name") as served:
        side = replace(served.other_side(), count_jobs=lambda: count(served))
        with pytest.raises(CountError, match=f"must count every job .* it rose by {counted}"), Suite(side):
            pass


def test_a_run_that_is_held_for_another_reason_than_an_unknown_submission_is_not_right() -> None:
    """Attempts that fail while their job runs use up their budget, and the run waits for a person."""
    [case] = [case for case in CASES if case.name == "undisturbed"]

    def arrange(scene: CaseRun) -> frozenset[ExpectedResult]:
        for attempt in range(1, 60):
            scene.at(attempt, "watching", lambda process: process.kill())
        return frozenset({ExpectedResult.HELD})

    with serving("token") as served, Suite(served.other_side()) as suite:
        outcome = suite.play(replace(case, arrange=arrange))
    assert outcome.wrong == "it must end as held; it ended as failed"


def test_where_a_name_is_forgotten_a_look_up_that_remembers_for_longer_settles_it() -> None:
    can = Capabilities(client_name=ClientName(MEMORY), look_up=Lookup(settling=timedelta(), retention=4 * MEMORY))
    mode = jobservers.jobserver.Mode(unique_names=True, lag_seconds=0, forget_seconds=4 * SECONDS["forgetting-name"])
    with serving(mode) as served, Suite(served.other_side(can)) as suite:
        verdicts = {case.name: suite.check(case).verdict for case in CASES if "forgotten" in case.name}
    assert verdicts == {
        "name forgotten": ExpectedResult.ONE_JOB,
        "forgotten unseen": ExpectedResult.HELD,
        "forgotten": ExpectedResult.HELD,
    }


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
    report = Report("x", (CaseResult(first, skipped="no way"), CaseResult(second, wrong="2 jobs"), CaseResult(third)))
    assert "not tried: no way" in str(report)
    assert "**2 jobs**" in str(report)
    assert [outcome.case for outcome in report.failures] == [second]
    assert [outcome.case for outcome in report.tried] == [second, third]
