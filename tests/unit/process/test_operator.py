"""Loops of the operator's process."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from reattach.cluster import UnavailableError
from reattach.process.operator import Operator


@pytest.mark.parametrize(
    "error",
    [msgspec.DecodeError("JSON is malformed"), UnavailableError(503, "ServiceUnavailable", "starting")],
    ids=["no-json", "unavailable"],
)
async def test_resync_loop_after_failed_list_removes_expired_keys_and_lists_again(error: Exception) -> None:
    """`keep_running` would restart the loop, but only after a pause, and without the removal of expired keys."""
    lists, sweeps = 0, 0
    enough = asyncio.Event()

    async def resync() -> None:
        nonlocal lists
        lists += 1
        raise error

    async def sweep(_: Any) -> None:
        nonlocal sweeps
        sweeps += 1
        if sweeps == 2:
            enough.set()

    operator = SimpleNamespace(
        _options=SimpleNamespace(sweep_seconds=0.001),
        _taskruns=SimpleNamespace(resync=resync),
        _expiry=SimpleNamespace(sweep=sweep),
    )
    loop = asyncio.ensure_future(Operator._resync_loop(cast("Operator", operator)))
    waiting = asyncio.ensure_future(enough.wait())
    await asyncio.wait([loop, waiting], return_when=asyncio.FIRST_COMPLETED, timeout=10)
    assert not loop.done()
    assert (lists, sweeps) == (2, 2)
    loop.cancel()
