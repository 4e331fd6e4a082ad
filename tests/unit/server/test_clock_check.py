"""Decision whether the clock of a replica differs from the API server's."""

import random
from datetime import UTC, datetime

import pytest

from reattach.cluster import UnavailableError
from reattach.server.clock_check import PROOFS_MIN, SAMPLES_MAX, ClockCheck, ClockMonitor, ClockSample


def a_sample(difference: float, at: float, *, to: float = 0.01, back: float = 0.01) -> ClockSample:
    """Return the sample of a request that arrives at the API server at `at` by its clock."""
    return ClockSample.of(at + difference - to, at + difference + back, float(int(at)))


@pytest.mark.parametrize("difference", [-30.0, -2.5, 0.0, 1.9, 2.5, 30.0])
@pytest.mark.parametrize("latency", [(0.0, 0.0), (8.0, 0.0), (0.0, 8.0)])
def test_sample_bounds_always_contain_the_difference(difference: float, latency: tuple[float, float]) -> None:
    for step in range(100):
        sample = a_sample(difference, 1000 + step / 33, to=latency[0], back=latency[1])
        assert sample.least - 1e-6 <= difference <= sample.most + 1e-6


@pytest.mark.parametrize("difference", [-1.99, -1.0, 0.0, 1.0, 1.99])
def test_clock_within_the_limit_is_accepted_whatever_the_latency(difference: float) -> None:
    chance = random.Random(1)
    check = ClockCheck(2)
    for step in range(1000):
        latency = chance.choice([0.001, 0.5, 5.0])
        check.add(a_sample(difference, 1000 + step * 5.1, to=latency * chance.random(), back=latency * chance.random()))
        assert not check.is_skewed


@pytest.mark.parametrize("difference", [-60.0, -3.1, 3.1, 60.0])
def test_clock_far_off_is_refused_after_three_samples(difference: float) -> None:
    check = ClockCheck(2)
    decisions = []
    for step in range(PROOFS_MIN):
        check.add(a_sample(difference, 1000 + step * 5.3))
        decisions.append(check.is_skewed)
    assert decisions == [False, False, True]
    assert check.difference == pytest.approx(difference, abs=0.6)


@pytest.mark.parametrize("difference", [-2.6, 2.6])
def test_clock_a_little_off_is_refused_in_a_minute_and_stays_so(difference: float) -> None:
    chance = random.Random(7)
    check = ClockCheck(2)
    decisions = []
    for step in range(60):
        check.add(a_sample(difference, 1000 + step * 5 + chance.random()))
        decisions.append(check.is_skewed)
    assert True in decisions[:SAMPLES_MAX]
    assert all(decisions[decisions.index(True) :])


def test_one_wrong_sample_is_no_evidence() -> None:
    check = ClockCheck(2)
    for step in range(30):
        check.add(a_sample(600.0 if step == 9 else 0.0, 1000 + step * 5.3))
        assert not check.is_skewed


def test_clock_that_was_set_right_is_accepted_at_once() -> None:
    check = ClockCheck(2)
    for step in range(5):
        check.add(a_sample(10.0, 1000 + step * 5.3))
    assert check.is_skewed
    check.add(a_sample(0.0, 1030))
    assert not check.is_skewed


def test_api_servers_that_differ_from_each_other_are_no_evidence() -> None:
    check = ClockCheck(2)
    for step in range(30):
        check.add(a_sample(5.0 if step % 2 else 0.0, 1000 + step * 5.3))
        assert not check.is_skewed


def test_limit_of_zero_accepts_any_clock() -> None:
    check = ClockCheck(0)
    for step in range(30):
        check.add(a_sample(600.0, 1000 + step))
    assert not check.is_skewed


async def test_monitor_logs_each_change_once_and_keeps_its_decision_without_responses(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    now, skew, available = 1000.2, 7.0, True

    async def date() -> datetime | None:
        if not available:
            raise UnavailableError(0, "NoAnswer", "down")
        return datetime.fromtimestamp(int(now), UTC)

    monitor = ClockMonitor(date, 2, clock=lambda: now + skew)
    for _ in range(10):
        await monitor.sample()
        now += 5.3
    available = False
    for _ in range(20):
        await monitor.sample()
    assert monitor.check.is_skewed
    available, skew = True, 0.0
    for _ in range(3):
        await monitor.sample()
    assert [record.levelname for record in caplog.records] == ["ERROR", "INFO"]
    assert "this replica's clock is +7." in caplog.messages[0]
    assert not monitor.check.is_skewed
