"""What is known of the TaskRuns: nothing that says one is gone is believed before the API server was asked."""

import json
from typing import Any, cast

import pytest

from reattach.cluster import Cluster, NotFoundError, UnavailableError
from reattach.controller.metrics import Metrics
from reattach.controller.taskruns import TaskRuns
from reattach.controller.workqueue import Key

JSON = dict[str, Any]
KEY = Key("default", "load")


def made(uid: str = "u1", version: int = 5, **status: Any) -> JSON:
    return {
        "metadata": {"name": "load", "namespace": "default", "uid": uid, "resourceVersion": str(version)},
        "spec": {"template": {"spec": {"containers": [{"name": "task"}]}}},
        "status": status,
    }


class Server:
    """Answers GET and LIST with what is there."""

    def __init__(self) -> None:
        self.there: JSON | Exception | None = None
        self.gets = 0

    async def get(self, _: str) -> bytes:
        self.gets += 1
        if isinstance(self.there, Exception):
            raise self.there
        if self.there is None:
            raise NotFoundError(404, "NotFound", "not found")
        return json.dumps(self.there).encode()

    async def list(self, _: str, **__: Any) -> bytes:
        items = [] if self.there is None else [self.there]
        return json.dumps({"metadata": {"resourceVersion": "100"}, "items": items}).encode()


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def marked() -> list[Key]:
    return []


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def taskruns(server: Server, marked: list[Key], metrics: Metrics) -> TaskRuns:
    return TaskRuns(cast("Cluster", server), (), marked.append, metrics)


def uid_of(taskruns: TaskRuns) -> str | None:
    known = taskruns.known(KEY)
    return known.metadata.uid if known else None


async def test_a_deleted_event_is_a_doubt_until_the_api_server_says_the_same(
    taskruns: TaskRuns, server: Server
) -> None:
    taskruns.saw(made())
    taskruns.lost(made(version=6))
    assert taskruns.is_doubtful(KEY)
    assert taskruns.known(KEY) is None
    server.there = None
    assert await taskruns.look(KEY) is None
    assert not taskruns.is_doubtful(KEY)
    assert len(taskruns) == 0


async def test_a_deleted_event_of_one_that_is_still_there_changes_nothing(taskruns: TaskRuns, server: Server) -> None:
    taskruns.saw(made())
    taskruns.lost(made(version=6))
    server.there = made(version=7)
    assert (await taskruns.look(KEY)) is not None
    assert uid_of(taskruns) == "u1"


async def test_a_doubt_stays_when_the_api_server_can_not_be_asked(taskruns: TaskRuns, server: Server) -> None:
    taskruns.saw(made())
    taskruns.lost(made(version=6))
    server.there = UnavailableError(503, "ServiceUnavailable", "away")
    with pytest.raises(UnavailableError):
        await taskruns.look(KEY)
    assert taskruns.is_doubtful(KEY)


async def test_one_that_we_finished_needs_no_question_when_it_leaves_the_watch(
    taskruns: TaskRuns, server: Server, marked: list[Key]
) -> None:
    taskruns.saw(made())
    server.there = made(version=6, outcome="Succeeded")
    await taskruns.look(KEY)
    marked.clear()
    taskruns.lost(made(version=6))
    assert not taskruns.is_doubtful(KEY)
    assert marked == []


async def test_one_that_we_finished_does_not_come_back_by_a_late_event(taskruns: TaskRuns, server: Server) -> None:
    taskruns.saw(made())
    server.there = made(version=6, outcome="Succeeded")
    await taskruns.look(KEY)
    taskruns.saw(made(version=5))
    assert taskruns.known(KEY) is None


async def test_two_of_the_same_name_are_doubtful_until_the_api_server_says_which(
    taskruns: TaskRuns, server: Server
) -> None:
    taskruns.saw(made("u1", 5))
    taskruns.saw(made("u2", 9))
    assert taskruns.is_doubtful(KEY)
    server.there = made("u2", 9)
    await taskruns.look(KEY)
    assert uid_of(taskruns) == "u2"


async def test_a_sweep_finds_what_no_watch_told_the_end_of(taskruns: TaskRuns, server: Server) -> None:
    taskruns.saw(made())
    server.there = None
    await taskruns.sweep()
    assert taskruns.is_doubtful(KEY)


async def test_a_sweep_finds_what_no_watch_told_the_start_of(taskruns: TaskRuns, server: Server) -> None:
    server.there = made()
    await taskruns.sweep()
    assert uid_of(taskruns) == "u1"


async def test_one_that_can_not_be_read_is_said_once_and_stops_nothing(
    taskruns: TaskRuns, server: Server, metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    broken = made(attempts=[{"number": "one"}])
    for _ in range(3):
        taskruns.saw(broken)
    server.there = broken
    await taskruns.sweep()
    assert len(caplog.records) == 1
    assert "TaskRun default/load is passed over" in caplog.text
    assert "reattach_unreadable_taskruns_total 1.0" in metrics.text().decode()
