"""How long is waited before the next attempt, and what is paid for an end."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import at
from reattach.api.messages import RETRY_AFTER_SECONDS_MAX
from reattach.api.reasons import Budget, Cause
from reattach.api.taskrun import AttemptPurpose, Backoff, Budgets, Counts
from reattach.api.text import one_line
from reattach.planner.backoff import next_attempt_time
from reattach.planner.budgets import FAILURES, amount, budget_of, charge, exhausted
from reattach.planner.textformat import BYTES_MAX, head, tail

EXACT = Backoff(jitter_percent=0)


def wait(backoff: Backoff, charged: int, *, uid: str = "uid", attempt: int = 1, asked: int | None = None) -> float:
    time = next_attempt_time(backoff, ended=at(0), charged=charged, uid=uid, attempt=attempt, requested_seconds=asked)
    return (time - at(0)).total_seconds()


@pytest.mark.parametrize("charged, seconds", [(1, 10), (2, 20), (3, 40), (6, 320), (7, 600), (8, 600), (10_000, 600)])
def test_each_wait_is_twice_the_one_before_up_to_a_cap(charged: int, seconds: int) -> None:
    assert wait(EXACT, charged) == seconds


def test_no_wait_stays_no_wait() -> None:
    assert wait(Backoff(initial_seconds=0), 10_000) == 0


@given(st.integers(1, 50), st.integers(0, 100), st.text(max_size=40), st.integers(1, 999))
def test_jitter_comes_after_the_cap_and_stays_in_its_bounds(charged: int, jitter: int, uid: str, attempt: int) -> None:
    exact, swung = wait(EXACT, charged), wait(Backoff(jitter_percent=jitter), charged, uid=uid, attempt=attempt)
    assert exact * (1 - jitter / 100) <= swung <= exact * (1 + jitter / 100) + 1


def test_jitter_differs_by_taskrun_and_attempt() -> None:
    backoff = Backoff(initial_seconds=600, jitter_percent=100)
    waits = {wait(backoff, 1, uid=uid, attempt=attempt) for uid in "abcdefgh" for attempt in range(8)}
    assert len(waits) > 50
    assert min(waits) < 300
    assert max(waits) > 900


@pytest.mark.parametrize("asked, seconds", [(0, 0), (7, 7), (-5, 0), (10**15, RETRY_AFTER_SECONDS_MAX)])
def test_the_delay_that_a_task_asks_for_is_taken_as_it_is_within_reason(asked: int, seconds: int) -> None:
    assert wait(Backoff(jitter_percent=50), 5, asked=asked) == seconds


def test_a_wait_ends_on_a_whole_second_not_before_its_time() -> None:
    time = next_attempt_time(EXACT, ended=at(0.25), charged=1, uid="", attempt=1)
    assert time - at(0) == timedelta(seconds=11)


@pytest.mark.parametrize("budget", FAILURES)
def test_a_budget_allows_as_many_ends_as_it_says_and_no_more(budget: Budget) -> None:
    budgets, counts = Budgets(application=2, disruption=2, never_started=2), Counts()
    for used in (1, 2):
        counts = charge(counts, budget)
        assert (amount(counts.charged, budget), exhausted(counts, budgets)) == (used, None)
    assert exhausted(charge(counts, budget), budgets) is budget


def test_an_end_that_costs_nothing_is_charged_to_nothing() -> None:
    assert charge(Counts(), None) == Counts()


def test_every_cause_and_every_budget_is_provided_for() -> None:
    assert {budget_of(cause, AttemptPurpose.RUN) for cause in Cause} == {None, Budget.NOT_READY, *FAILURES}
    assert set(FAILURES) == set(Budget) - {Budget.CLEANUP, Budget.NOT_READY}


@pytest.mark.parametrize("cause", Cause)
def test_budget_of_cleanup_attempt_is_its_own_unless_it_succeeded(cause: Cause) -> None:
    budget = budget_of(cause, AttemptPurpose.CLEANUP)
    assert budget is (None if cause is Cause.SUCCEEDED else Budget.CLEANUP)
    assert charge(Counts(), Budget.CLEANUP).charged.cleanup == 1


@given(st.text(max_size=3000))
def test_what_is_said_is_cut_to_what_fits(text: str) -> None:
    start, end, line = head(text), tail(text), one_line(text)
    assert len(start.encode()) <= BYTES_MAX
    assert len(end.encode()) <= BYTES_MAX
    assert start == line or (start.endswith("…") and line.startswith(start[:-1]))
    assert end == line or (end.startswith("…") and line.endswith(end[1:]))


def test_of_a_log_the_end_is_kept_and_of_a_sentence_the_start() -> None:
    text = "first" + "é" * 2000 + "last"
    assert head(text).startswith("firsté")
    assert tail(text).endswith("élast")
