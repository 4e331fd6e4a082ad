"""Statistics of the benchmark."""

import math

import pytest

from bench.kinds import Kind
from bench.measures import Spread, differences_of, percentile, percentiles_of, ratios_of, spread_of
from bench.rounds import alternate


@pytest.mark.parametrize("percent, expected", [(50, 50), (95, 95), (99, 99), (100, 100), (0, 1)])
def test_percentile_of_one_to_hundred_is_the_percent(percent: int, expected: int) -> None:
    assert percentile([float(value) for value in range(100, 0, -1)], percent) == expected


def test_percentile_of_one_value_is_that_value() -> None:
    assert percentiles_of([3.0]) == {"p50": 3.0, "p95": 3.0, "p99": 3.0}


def test_percentile_without_values_is_nan() -> None:
    assert math.isnan(percentile([], 50))


def test_spread_has_median_lowest_and_highest() -> None:
    assert spread_of([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0)


def test_ratios_compare_values_of_the_same_round() -> None:
    # Both kinds ran at half the speed in the second round.
    assert ratios_of([60.0, 30.0], [100.0, 50.0]) == Spread(0.6, 0.6, 0.6)


def test_ratios_of_unequal_numbers_of_rounds_raise_value_error() -> None:
    with pytest.raises(ValueError, match="zip"):
        ratios_of([1.0], [1.0, 2.0])


def test_differences_omit_runs_without_both_times_and_are_not_negative() -> None:
    assert sorted(differences_of({"a": 1.0, "b": 2.0, "c": 3.0}, {"a": 1.5, "b": 1.9})) == [0.0, 0.5]


def test_alternate_puts_each_kind_first_in_one_of_three_rounds() -> None:
    orders = [alternate(list(Kind), number) for number in range(3)]
    assert {order[0] for order in orders} == set(Kind)
    assert all(set(order) == set(Kind) for order in orders)
