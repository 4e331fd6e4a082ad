"""Tests of the how-tos and of the reference of the plugin: commands exist, Python blocks run."""

import re
import shlex
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import click
import pytest

import cli_reference
from controlplane import REPOSITORY
from reattach.cli.commands import cli
from reattach.cli.flags import PROGRAM

PAGES = sorted((REPOSITORY / "docs/howto").glob("*.md"))
OTHER_PROGRAMS = re.compile(r"kubectl (?:get|patch|annotate|label|delete) trun\b")


def python_blocks() -> Iterator[Any]:
    for page in PAGES:
        for number, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL), 1):
            yield pytest.param(code, id=f"{page.stem}-{number}")


def commands() -> Iterator[Any]:
    for page in PAGES:
        prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
        for line in re.findall(r"^    (kubectl .*)", prose, re.MULTILINE):
            yield pytest.param(line, id=f"{page.stem}: {line}")


def parse(command: click.Command, arguments: list[str]) -> None:
    """Parse the arguments of a command, and of its subcommand, without running it."""
    context = command.make_context(PROGRAM, list(arguments))
    if isinstance(command, click.Group):
        rest = [*context._protected_args, *context.args]
        _, child, rest = command.resolve_command(context, rest)
        assert child is not None
        parse(child, rest)


def test_reference_lists_the_flags_of_the_program() -> None:
    assert cli_reference.PAGE.read_text() == cli_reference.render(), "run: .venv/bin/python hack/cli_reference.py"


@pytest.mark.parametrize("code", list(python_blocks()))
def test_python_of_the_how_tos_runs(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOBS_TOKEN", "secret")
    exec(compile(code, "how-to", "exec"), {"JOBS": SimpleNamespace()})


@pytest.mark.parametrize("line", list(commands()))
def test_command_of_the_how_tos_exists(line: str) -> None:
    if line.startswith(f"{PROGRAM} "):
        parse(cli, shlex.split(line.removeprefix(PROGRAM)))
    else:
        assert OTHER_PROGRAMS.match(line), f"check the command {line!r} here"


@pytest.mark.parametrize("line", ["cancel --now etl", "rerun", "undo etl", "logs etl --since yesterday"])
def test_command_that_does_not_exist_is_found(line: str) -> None:
    with pytest.raises(click.UsageError):
        parse(cli, shlex.split(line))
