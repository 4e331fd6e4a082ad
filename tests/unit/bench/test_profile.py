"""Scenario `profile`: samples of py-spy become a table of parts."""

import os
import threading
import time

import pytest

from bench.scenarios.profile import KOPF, MAIN, part_of, samples_of, table_of
from bench.usage import cpu_seconds, cpu_seconds_by_thread

_MAIN = "<module> (reattach/process/__main__.py:9);Runner.run (asyncio/runners.py:118)"
_KOPF = "Thread.run (threading.py:982);watch.<locals>.run_in_thread (reattach/runtime/kopf_watch.py:199)"
STACKS = [
    f"{_MAIN};Workers.run (reattach/runtime/workers.py:5);decide (reattach/planner/decide.py:7) 30",
    f"{_MAIN};ClientSession._request (aiohttp/client.py:7) 10",
    f"{_KOPF};Runner.run (asyncio/runners.py:118);worker (kopf/_core/reactor/queueing.py:7);dumps (json/__init__.py:9) 4",
    f"{_KOPF};Runner.run (asyncio/runners.py:118);worker (kopf/_core/reactor/queueing.py:7) 16",
    "",
]


@pytest.mark.parametrize(
    "frame, part",
    [
        ("decide (reattach/planner/decide.py:7)", "reattach: planner"),
        ("<module> (reattach/process/__main__.py:9)", "reattach: other"),
        ("watch.<locals>.<genexpr> (kopf/_cogs/clients/watching.py:7)", "kopf"),
        ("_run_code (<frozen runpy>:88)", "other"),
        ("no frame", "other"),
    ],
)
def test_part_of_frame_is_that_of_its_file(frame: str, part: str) -> None:
    assert part_of(frame) == part


def test_samples_are_divided_among_threads_and_parts() -> None:
    samples = samples_of(STACKS)
    assert samples.threads == {MAIN: 40, KOPF: 20}
    assert samples.own[MAIN, "reattach: planner"] == 30
    assert samples.own[KOPF, "kopf"] == 16
    assert samples.total[KOPF, "kopf"] == 20


def test_table_divides_the_cpu_time_of_each_thread_among_its_parts() -> None:
    table = table_of(samples_of(STACKS), {MAIN: 3.0, KOPF: 1.0})
    assert table.rows == [
        ["operator", "all", "4.00", "", "100%"],
        ["main thread", "all", "3.00", "", "75%"],
        ["main thread", "reattach: planner", "2.25", "2.25", "56%"],
        ["main thread", "aiohttp", "0.75", "0.75", "19%"],
        ["kopf's thread", "all", "1.00", "", "25%"],
        ["kopf's thread", "kopf", "0.80", "1.00", "20%"],
        ["kopf's thread", "json", "0.20", "0.20", "5%"],
    ]


def test_cpu_time_is_measured_by_thread() -> None:
    stop = threading.Event()
    thread = threading.Thread(target=lambda: [None for _ in iter(stop.is_set, True)])
    thread.start()
    try:
        end = time.monotonic() + 30
        while time.monotonic() < end:
            assert thread.native_id is not None
            found = cpu_seconds_by_thread(os.getpid())
            if found[thread.native_id] > 0.05:
                break
        assert 0.05 < found[thread.native_id] <= cpu_seconds(os.getpid())
        assert os.getpid() in found
    finally:
        stop.set()
        thread.join()
