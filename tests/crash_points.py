"""Crash points: kill the operator at each of its writes, restart it, and expect the same end.

A first history without a crash counts the writes and defines the expected end. Then, for every n,
the operator is killed (SIGKILL) twice, each time in a new history: before its n-th write reaches
the API server, and after the API server has executed the write but before the operator receives the
response.

The n-th write can differ between histories. The API server may reject a write, which is then
repeated. Whether the operator reports Running depends on the speed of the machine. So there are a
few more crash points than writes, and a history may lack its n-th write. In the end, every kind of
write must have been a crash point, on both sides.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from proxy import EVENTS, Point, When, kind_of
from run_histories import HistoryRunner, RunHistory, Scenario

CONCURRENT_HISTORIES = 5
"""Concurrent histories. They mostly wait, and more would slow each down on two cores."""
EXTRA_WRITES = 2
"""Crash points beyond the number of writes, so that the last write is covered."""

Check = Callable[[RunHistory, RunHistory], None]
"""Compares a history with the one without a crash; raises AssertionError if they differ."""


@dataclass(frozen=True)
class CrashResult:
    """Result of one history: the kind and side of the write at the crash, and the failure."""

    crashed_at: tuple[str, When] | None
    failure: str


def crash_at_each_write(
    runner: HistoryRunner, scenario: Scenario, check: Check, *, at_each_event: bool = True, one_in: int = 1
) -> RunHistory:
    """Run the scenario without a crash, then once for each crash point, and compare.

    Return the history without a crash. Without `at_each_event`, only one Event is a crash point.
    `one_in`: play only a share of the points, and each kind of write on both sides.
    """
    expected = runner.run(scenario, None)
    assert expected.starts == 1, f"the operator ended by itself:\n{expected.log[-3000:]}"
    check(expected, expected)
    kinds = {kind_of(write) for write in expected.writes}
    results = _run_all(runner, scenario, expected, check, _points_of(expected, at_each_event=at_each_event)[::one_in])
    # Kinds of writes that were not the n-th write of any history that was to crash there.
    missed = {(kind, when) for kind in kinds for when in When} - {result.crashed_at for result in results}
    results += _run_all(runner, scenario, expected, check, [Point(1, when, kind) for kind, when in missed])
    assert not (failure := [result.failure for result in results if result.failure]), "\n".join(failure)
    crashed_at = {result.crashed_at for result in results}
    assert all((kind, when) in crashed_at for kind in kinds for when in When), (
        f"crashed only at {crashed_at} of {kinds}"
    )
    return expected


def crash_at(runner: HistoryRunner, scenario: Scenario, check: Check, points: list[Point]) -> RunHistory:
    """Run the scenario without a crash, then once for each of these points, and compare.

    Return the history without a crash.
    """
    expected = runner.run(scenario, None)
    check(expected, expected)
    results = _run_all(runner, scenario, expected, check, points)
    assert not (failure := [result.failure for result in results if result.failure]), "\n".join(failure)
    missed = [point for point, result in zip(points, results, strict=True) if result.crashed_at is None]
    assert not missed, f"never crashed at {missed}"
    return expected


def _points_of(expected: RunHistory, *, at_each_event: bool) -> list[Point]:
    events = sum(kind_of(write) == EVENTS for write in expected.writes)
    numbers = {None: len(expected.writes) - events} | ({EVENTS: events} if at_each_event else {})
    return [
        Point(number, when, kind)
        for kind, count in numbers.items()
        for number in range(1, count + EXTRA_WRITES + 1)
        for when in When
    ]


def _run_all(
    runner: HistoryRunner, scenario: Scenario, expected: RunHistory, check: Check, points: list[Point]
) -> list[CrashResult]:
    with ThreadPoolExecutor(CONCURRENT_HISTORIES) as pool:
        return list(pool.map(lambda point: _run_one(runner, scenario, expected, check, point), points))


def _run_one(
    runner: HistoryRunner, scenario: Scenario, expected: RunHistory, check: Check, point: Point
) -> CrashResult:
    crashed_at = None
    try:
        history = runner.run(scenario, point)
        if history.struck is None:
            assert sum(map(point.counts, history.writes)) < point.number, f"the proxy did not kill: {history.writes}"
            assert history.starts == 1, f"the operator ended by itself:\n{history.log[-3000:]}"
        else:
            crashed_at = kind_of(history.struck), point.when
            assert history.starts == 2, f"it was started {history.starts} times:\n{history.log[-6000:]}"
        check(history, expected)
    except AssertionError as error:
        return CrashResult(crashed_at, f"crashed {point}: {error}")
    return CrashResult(crashed_at, "")
