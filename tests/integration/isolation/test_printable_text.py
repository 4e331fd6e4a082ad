"""Hostile text from a task to a terminal: state API, operator, condition, event, logs, and every command.

Nothing between the task and `kubectl reattach` is replaced; the test plays the task and the node.
"""

from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest

from cli_session import CliUser, grant
from controlplane import ControlPlane
from hostile_text import HOSTILE
from operator_process import Containers, Operators, Stage, condition, kubelet_of, stage_of
from reattach.cluster.paths import events
from taskscripts import HELD_EXIT_CODE, HELD_MESSAGE, Tasks
from waiting import wait_until

JSON = dict[str, Any]
NAME = "hostile"
FORGED = "2026-11-30 00:00:00,000 CRITICAL reattach: forged"
TEXT = f"{HOSTILE}\n{FORGED}"
COMMANDS = (
    ("explain", NAME),
    ("explain", NAME, "-o", "json"),
    ("explain", NAME, "-o", "yaml"),
    ("wait", NAME, "--timeout", "0s"),
    ("logs", NAME),
    ("state", "ls", NAME),
    ("state", "get", NAME, TEXT),
    ("state", "export", NAME),
    ("resolve", NAME, "--continue"),
    ("release", NAME),
)


@pytest.fixture(scope="module")
def stage(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    operators = Operators(control_plane, tmp_path_factory.mktemp("operators"))
    with kubelet_of(control_plane) as kubelet, stage_of(control_plane, operators, kubelet) as stage:
        yield stage
    operators.stop()


@pytest.fixture(scope="module")
def user(stage: Stage) -> CliUser:
    return grant(stage.control_plane, stage.namespace, "edit")


@pytest.fixture(scope="module")
def held(stage: Stage, tasks: Tasks) -> JSON:
    """Return the condition of a TaskRun that is held, and whose task sent hostile text in every field."""

    def script(containers: Containers) -> None:
        containers.run()
        process = tasks.opened(containers)
        assert process.set(TEXT, {TEXT: TEXT}).status_code == 200
        refused = process.intend(TEXT)
        assert (refused.status_code, refused.json()["code"]) == (422, "key-invalid")
        assert process.intend("watched").status_code == 200
        url = f"http://ray.example.org/{TEXT}"
        assert process.handle(TEXT, "watched", url=url).status_code == 204
        assert process.handle(f"{TEXT} stray", "watched").status_code == 409
        assert process.intend("load").status_code == 200
        assert process.outcome("Unknown", hold=True, message=TEXT).status_code == 204
        process.client.get(f"/v1/state/{quote(TEXT, safe='')}x")
        containers.end(HELD_EXIT_CODE, HELD_MESSAGE)

    def is_held() -> bool:
        found = condition(stage.cluster.status(NAME), "Held")
        return (found.get("status"), found.get("reason")) == ("True", "SubmissionUnknown")

    stage.run(NAME, lambda _: script)
    wait_until(is_held, seconds=90, what="the TaskRun is held")
    return stage.cluster.status(NAME)


def check_printable(text: str) -> None:
    lines = text.split("\n")
    assert all(line.isprintable() for line in lines), text
    assert not any(line.startswith(FORGED) for line in lines), text


def test_stored_handle_is_the_reported_one(held: JSON) -> None:
    found = {job["key"]: job.get("handle") for job in held["externalJobs"]}
    assert found == {"watched": TEXT, "load": None}


def test_stored_url_is_dropped(held: JSON) -> None:
    assert not any(job.get("url") for job in held["externalJobs"])


def test_conditions_are_printable_lines(held: JSON) -> None:
    messages = [one["message"] for one in held["conditions"]]
    assert any(r"\x1b[2J" in message for message in messages)
    assert all(message.isprintable() for message in messages)


def test_events_are_printable_lines(stage: Stage, held: JSON) -> None:
    def notes() -> list[str]:
        found = stage.control_plane.call("GET", events(stage.namespace))["items"]
        return [event["note"] for event in found if event["regarding"]["name"] == NAME]

    wait_until(lambda: any(r"\x1b[2J" in note for note in notes()), seconds=60, what="an event names the handle")
    assert all(note.isprintable() for note in notes())


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: f"{command[0]} {command[-1]:.8}")
def test_command_prints_printable_lines(user: CliUser, held: JSON, command: tuple[str, ...]) -> None:
    result = user(*command)
    assert result.out or result.err
    check_printable(result.out + result.err)


def test_log_lines_of_both_processes_are_printable(stage: Stage, tasks: Tasks, user: CliUser, held: JSON) -> None:
    result = user("resolve", NAME, "--key", "load", "--generation", "1", "--fail")
    assert result.code == 0, result.err
    status = stage.cluster.wait_for_outcome(NAME, seconds=90)
    orphaned = condition(status, "Orphaned")["message"]
    assert r"\x1b[2J" in orphaned
    assert orphaned.isprintable()
    for log in (tasks.server.log, stage.operator.log):
        assert r"\x1b[2J" in log
        check_printable(log)
