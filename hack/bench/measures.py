"""Statistics of the benchmark: percentiles, spreads over rounds, ratios."""

import math
import statistics
from collections.abc import Mapping, Sequence

import msgspec

PERCENTILES = (50, 95, 99)


class Spread(msgspec.Struct, frozen=True):
    """Median, lowest and highest value over the rounds."""

    median: float
    low: float
    high: float


def spread_of(values: Sequence[float]) -> Spread:
    """Return the spread of at least one value."""
    return Spread(statistics.median(values), min(values), max(values))


def ratios_of(values: Sequence[float], base: Sequence[float]) -> Spread:
    """Return the spread of the ratios of two kinds.

    Both values of a ratio come from the same round.

    Noise that slows down a whole round affects both kinds, so it cancels out.
    """
    return spread_of([value / reference for value, reference in zip(values, base, strict=True)])


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the percentile of the values by nearest rank, or NaN without values."""
    if not values:
        return math.nan
    rank = math.ceil(percent / 100 * len(values))
    return sorted(values)[max(rank, 1) - 1]


def percentiles_of(values: Sequence[float]) -> Mapping[str, float]:
    """Return the reported percentiles by name, such as `p50`."""
    return {f"p{percent}": percentile(values, percent) for percent in PERCENTILES}


def differences_of(before: Mapping[str, float], after: Mapping[str, float]) -> list[float]:
    """Return `after - before` for every name that has both times, at least 0.

    A difference can be negative because the times of a run may come from two watches, whose events
    are not ordered.
    """
    return [max(0.0, after[name] - before[name]) for name in before.keys() & after.keys()]
