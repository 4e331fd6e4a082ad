"""The loops of the process: a failed one is started again, and nothing else ends."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from reattach.runtime.metrics import OperatorMetrics
from reattach.runtime.supervision import keep_running, shortened


async def run_until_cancelled(work: Coroutine[Any, Any, None]) -> None:
    async with asyncio.timeout(20):
        await asyncio.wait([asyncio.ensure_future(work)])


def current_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None
    return task


async def test_a_loop_that_ends_is_started_again_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    metrics, runs = OperatorMetrics(), 0

    async def loop() -> None:
        nonlocal runs
        runs += 1
        if runs == 1:
            raise RuntimeError("a bug")
        if runs == 3:  # something that it awaits was cancelled, not the loop
            raise asyncio.CancelledError
        if runs == 4:
            current_task().cancel()
            await asyncio.sleep(0)

    await run_until_cancelled(keep_running("sweep", loop, metrics, first_pause_seconds=0.001))
    assert runs == 4
    assert 'reattach_restarted_loops_total{loop="sweep"} 3.0' in metrics.text().decode()
    assert [record.getMessage() for record in caplog.records] == [
        "sweep ended, and restarts in 0.001 s: RuntimeError: a bug",
        "sweep ended, and restarts in 0.002 s: it returned",
        "sweep ended, and restarts in 0.004 s: CancelledError:",
    ]


async def test_the_pause_is_short_again_after_a_long_run(caplog: pytest.LogCaptureFixture) -> None:
    runs, now = 0, 0.0

    async def loop() -> None:
        nonlocal runs, now
        runs += 1
        now += 100 if runs == 3 else 0
        if runs == 4:
            current_task().cancel()
            await asyncio.sleep(0)

    await run_until_cancelled(
        keep_running("sweep", loop, OperatorMetrics(), first_pause_seconds=0.001, clock=lambda: now)
    )
    assert [record.getMessage().split(" s:")[0].rpartition(" ")[2] for record in caplog.records] == [
        "0.001",
        "0.002",
        "0.001",
    ]


async def test_a_loop_that_is_cancelled_is_not_started_again() -> None:
    async def loop() -> None:
        await asyncio.Event().wait()

    running = asyncio.ensure_future(keep_running("sweep", loop, OperatorMetrics()))
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


def test_the_traceback_of_a_recursion_has_few_frames() -> None:
    def recurse() -> None:
        recurse()

    with pytest.raises(RecursionError) as caught:
        recurse()
    error, frames = shortened(caught.value), 0
    traceback = error.__traceback__
    while traceback is not None:
        frames, traceback = frames + 1, traceback.tb_next
    assert frames == 20
