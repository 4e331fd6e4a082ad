"""Write docs/reference/cli.md, the flags of each command: `python hack/cli_reference.py`."""

from collections.abc import Iterator
from pathlib import Path

import click

from reattach.cli.commands import cli
from reattach.cli.flags import PROGRAM
from reattach.cli.target import TARGET_OPTIONS

PAGE = Path(__file__).resolve().parent.parent / "docs/reference/cli.md"
HEAD = f"""# Flags of {PROGRAM}

[The page of the plugin](../cli.md) has examples and exit codes. `make docs` writes this page from the program.

## Flags of all commands

"""


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _flags(command: click.Command, *, of_all: bool) -> list[str]:
    rows = ["| flag | meaning |", "| --- | --- |"]
    context = click.Context(command, info_name=PROGRAM)
    for option in command.params:
        record = None
        if isinstance(option, click.Option) and (option.name in TARGET_OPTIONS) == of_all:
            record = option.get_help_record(context)
        if record is not None:
            rows.append(f"| `{_cell(record[0])}` | {_cell(record[1])} |")
    return rows if len(rows) > 2 else []


def _commands(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    if isinstance(command, click.Group):
        for child, one in command.commands.items():
            yield from _commands(one, f"{name} {child}")
    elif not command.hidden:
        yield name, command


def render() -> str:
    """Return the page."""
    parts = [HEAD + "\n".join(_flags(cli, of_all=True))]
    for name, command in _commands(cli, PROGRAM):
        context = click.Context(command, info_name=name)
        usage = " ".join(command.collect_usage_pieces(context))
        heading = name.removeprefix(f"{PROGRAM} ")
        parts.append(f"## {heading}\n\n    {name} {usage}\n\n{' '.join((command.help or '').split())}")
        if rows := _flags(command, of_all=False):
            parts.append("\n".join(rows))
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(render())
