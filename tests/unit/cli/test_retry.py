"""Reads outlast an API server that is away; writes are repeated after a conflict."""

import pytest
from kubernetes.aio import client

from reattach.cli.connection import ClusterConnection
from reattach.cli.errors import CommandError
from reattach.cli.retry import retry_conflicts, retry_unavailable
from reattach.cluster import Cluster, ForbiddenError
from reattach.cluster.errors import error_of


class Responses:
    """A read that returns these HTTP statuses, one after the other; 200 is a success."""

    def __init__(self, *statuses: int) -> None:
        self.left = list(statuses)

    async def __call__(self) -> str:
        status = self.left.pop(0)
        if status == 200:
            return "result"
        raise error_of(status, {"message": f"HTTP {status}"}, 0.001)


async def read(*statuses: int) -> tuple[str, list[str], list[int]]:
    """Return the result, the printed messages, and the statuses that were not used."""
    said: list[str] = []
    answers = Responses(*statuses)
    async with Cluster(client.Configuration(host="https://example")) as cluster:
        answer = await retry_unavailable(ClusterConnection(cluster, "data"), said.append, answers)
    return answer, said, answers.left


async def test_retry_unavailable_repeats_the_read_and_prints_one_message_while_the_api_server_is_away() -> None:
    answer, said, left = await read(503, 429, 500, 200, 200)
    assert (answer, left) == ("result", [200])
    assert said == ["https://example does not respond (HTTP 503); trying again."]


async def test_retry_unavailable_prints_nothing_if_the_first_read_succeeds() -> None:
    assert await read(200) == ("result", [], [])


async def test_retry_unavailable_raises_errors_that_a_repeated_read_cannot_change() -> None:
    with pytest.raises(ForbiddenError):
        await read(503, 403, 200)


async def test_retry_conflicts_repeats_the_write_until_it_succeeds() -> None:
    assert await retry_conflicts("nightly", Responses(409, 409, 200)) == "result"


async def test_retry_conflicts_gives_up_after_eight_conflicts() -> None:
    with pytest.raises(CommandError, match="nightly was changed by another client at each of 8 tries; try again"):
        await retry_conflicts("nightly", Responses(*[409] * 8, 200))
