"""Loops of the operator's process."""

import asyncio
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from reattach.cluster import UnavailableError
from reattach.pki.certificates import Bundle
from reattach.planner.plan import PodDefaults
from reattach.process import operator as process
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


async def test_start_with_pods_that_lack_the_bundle_does_not_wait_until_they_have_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class StartedError(Exception):
        pass

    async def ensure(*_: Any) -> Bundle:
        return Bundle(pem="PEM", check_again_at=datetime.now(UTC))

    async def distribute(*_: Any) -> int:
        await asyncio.Event().wait()
        return 0

    async def start_reflectors(_: Any) -> None:
        raise StartedError

    class Starting(Operator):
        def __init__(self) -> None:
            self._options = cast(
                "Any",
                SimpleNamespace(
                    certificates=object(), state_api_url="u", state_api_service="", watch_namespaces=(), paused=False
                ),
            )
            self._settings = PodDefaults(url="u", ca="")
            self._cluster = self._writer = self._metrics = cast("Any", None)
            self._controller = cast("Any", SimpleNamespace(start_reflectors=start_reflectors))

    monkeypatch.setattr(process, "ensure", ensure)
    monkeypatch.setattr(process, "distribute", distribute)
    parts = SimpleNamespace(create_task=lambda loop, **_: loop.close())
    operator = Starting()
    with pytest.raises(StartedError):
        await asyncio.wait_for(operator._start_leading(cast("Any", parts)), 5)
    assert operator._settings.ca == "PEM"


async def test_address_of_the_state_api_is_that_of_its_service_and_stays_while_the_service_is_unreadable(
    caplog: pytest.LogCaptureFixture,
) -> None:
    responses: list[bytes | Exception] = [
        b'{"spec": {"clusterIP": "10.96.0.7"}}',
        UnavailableError(503, "ServiceUnavailable", "starting"),
        b"{",
        b'{"spec": {"clusterIP": "None"}}',
    ]
    read: list[str] = []

    async def get(path: str) -> bytes:
        read.append(path)
        if isinstance(response := responses.pop(0), Exception):
            raise response
        return response

    options = SimpleNamespace(state_api_service="reattach-server", lease=SimpleNamespace(namespace="reattach"))
    operator = cast(
        "Operator",
        SimpleNamespace(
            _options=options, _cluster=SimpleNamespace(get=get), _settings=PodDefaults(url="https://s", ca="PEM")
        ),
    )
    addresses = []
    for _ in range(4):
        await Operator._read_address(operator)
        addresses.append(operator._settings.address)
    assert addresses == ["10.96.0.7", "10.96.0.7", "10.96.0.7", ""]
    assert set(read) == {"/api/v1/namespaces/reattach/services/reattach-server"}
    assert len(caplog.records) == 2
    assert operator._settings.ca == "PEM"
