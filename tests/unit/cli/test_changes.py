"""Changes of many TaskRuns: retries, errors, and an API server that does not respond."""

import asyncio
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest

from reattach.cli import changes
from reattach.cli.connection import ClusterConnection
from reattach.cli.errors import CommandError
from reattach.cluster import ForbiddenError, TooManyRequestsError, UnavailableError
from reattach.testing.memory_api import InMemoryCluster


@dataclass(frozen=True)
class Named:
    name: str


class HostedCluster(InMemoryCluster):
    host = "https://cluster.example"


TARGETS = [Named(f"run-{number:02}") for number in range(20)]
AWAY = UnavailableError(0, "NoAnswer", "no connection")


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "RETRY_SECONDS", 0.0)


def changed(errors: dict[str, list[Exception]]) -> tuple[list[tuple[str, Any]], Counter[str]]:
    """Change the targets, of which each raises its errors first. Return results and calls."""
    calls: Counter[str] = Counter()
    connection = ClusterConnection(HostedCluster(lambda: datetime.now(UTC)), "data")

    async def act(target: Named) -> str:
        calls[target.name] += 1
        left = errors.get(target.name, [])
        if calls[target.name] <= len(left):
            raise left[calls[target.name] - 1]
        return f"changed {target.name}"

    async def collect() -> list[tuple[str, Any]]:
        return [(target.name, result) async for target, result in changes.for_each(connection, TARGETS, act)]

    return asyncio.run(collect()), calls


def test_results_are_in_the_order_of_the_targets() -> None:
    results, calls = changed({})
    assert results == [(target.name, f"changed {target.name}") for target in TARGETS]
    assert set(calls.values()) == {1}


@pytest.mark.parametrize("error", [AWAY, TooManyRequestsError(429, "TooManyRequests", "busy", retry_after=0.001)])
def test_change_without_a_response_is_repeated(error: Exception) -> None:
    results, calls = changed({"run-03": [error] * 3})
    assert results[3] == ("run-03", "changed run-03")
    assert calls["run-03"] == 4


def test_error_of_one_target_is_its_result() -> None:
    denied = ForbiddenError(403, "Forbidden", "denied by a policy")
    results, calls = changed({"run-03": [denied], "run-04": [CommandError("It ended.")], "run-05": [AWAY] * 9})
    found = {name: str(result) for name, result in results if isinstance(result, CommandError)}
    assert found == {
        "run-03": "run-03: The API server denies the request: denied by a policy.",
        "run-04": "It ended.",
        "run-05": "run-05: https://cluster.example can't be reached or did not respond in time (no connection); "
        "check --context and your network.",
    }
    assert len(results) == len(TARGETS)
    assert (calls["run-03"], calls["run-04"], calls["run-05"]) == (1, 1, 4)


def test_absent_api_server_stops_the_changes() -> None:
    with pytest.raises(UnavailableError):
        changed({target.name: [AWAY] * 9 for target in TARGETS})
