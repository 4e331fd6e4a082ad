"""What waits for hours does not end because the API server is away for a moment."""

import pytest
from kubernetes.aio import client

from reattach.cli.connection import ClusterConnection
from reattach.cli.retry import patiently
from reattach.cluster import Cluster, ForbiddenError
from reattach.cluster.errors import error_of


class Answers:
    """An API server that answers these statuses, one after the other; 200 is an answer."""

    def __init__(self, *statuses: int) -> None:
        self.left = list(statuses)

    async def __call__(self) -> str:
        status = self.left.pop(0)
        if status == 200:
            return "answer"
        raise error_of(status, {"message": f"HTTP {status}"}, 0.001)


async def asked(*statuses: int) -> tuple[str, list[str], list[int]]:
    """The answer, what was said, and what was left unasked."""
    said: list[str] = []
    answers = Answers(*statuses)
    async with Cluster(client.Configuration(host="https://example")) as cluster:
        answer = await patiently(ClusterConnection(cluster, "data"), said.append, answers)
    return answer, said, answers.left


async def test_an_api_server_that_is_away_or_too_busy_is_asked_again_and_told_once() -> None:
    answer, said, left = await asked(503, 429, 500, 200, 200)
    assert (answer, left) == ("answer", [200])
    assert said == ["https://example does not answer (HTTP 503); asking again."]


async def test_an_answer_at_once_is_nothing_to_tell() -> None:
    assert await asked(200) == ("answer", [], [])


async def test_what_asking_again_can_not_change_is_raised() -> None:
    with pytest.raises(ForbiddenError):
        await asked(503, 403, 200)
