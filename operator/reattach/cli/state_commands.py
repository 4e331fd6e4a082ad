"""`kubectl reattach state …`: read and change what a task stored."""

import json
import re
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from typing_extensions import override

from reattach.cli import completion
from reattach.cli.errors import CommandError
from reattach.cli.flags import DURATION, Command, Commands, call, name_argument, output_option, say, show, styler
from reattach.cli.text import ago, table

if TYPE_CHECKING:
    from reattach.cli.connection import ClusterConnection


@click.group(cls=Commands)
def state(**_: Any) -> None:
    """Read and change what a task stored. Changes are compare-and-set, and record your name."""


@state.command("get")
@name_argument
@click.argument("key", shell_complete=completion.state_keys)
@click.option("-r", "--raw", is_flag=True, help="Print a string without quotes.")
@click.option("-o", "--output", type=click.Choice(["json", "yaml"]), help="Print version, writer and expiry, too.")
def state_get(name: str, key: str, raw: bool, output: str | None) -> None:
    """Print the value of a key, as JSON."""
    from reattach.cli import state_edit

    async def act(connection: "ClusterConnection") -> Any:
        _, stored = await state_edit.read(connection, name)
        if (record := stored.state.records.get(key)) is None:
            raise CommandError(f"Nothing is stored under {key!r}; kubectl reattach state ls {name} lists the keys.")
        return record

    record = call(act)
    value = json.loads(bytes(record.value))
    if raw and isinstance(value, str) and output is None:
        # As `ls` does with names: a terminal gets the escapes, a pipe the bytes.
        show(None, None, value.split("\n")) if sys.stdout.isatty() else click.echo(value)
        return
    show(state_edit.to_output(record), output, state_edit.format_value(bytes(record.value)).split("\n"))


@state.command("ls")
@name_argument
@click.option("--prefix", default="", help="List only keys with this prefix.")
@output_option
def state_ls(name: str, prefix: str, output: str | None) -> None:
    """List the keys, with their values, who wrote them and when."""
    from reattach.cli import state_edit
    from reattach.cli.explain import shown_value

    _, stored = call(lambda connection: state_edit.read(connection, name))
    records = [record for key, record in sorted(stored.state.records.items()) if key.startswith(prefix)]
    if output is not None:
        show([state_edit.to_output(record) for record in records], output, [])
        return
    if not records:
        say("No keys.")
        return
    now = datetime.now(UTC)
    rows = [
        (
            record.key,
            str(record.version),
            record.pod_uid if record.attempt == state_edit.PERSON_ATTEMPT else f"attempt {record.attempt}",
            ago(record.updated_at, now),
            "never" if record.expires_at is None else record.expires_at.date().isoformat(),
            shown_value(bytes(record.value).decode()),
        )
        for record in records
    ]
    show(None, None, table([("KEY", "VERSION", "WRITTEN BY", "WRITTEN", "EXPIRES", "VALUE"), *rows], styler()))


_FORCE = click.option(
    "--force", is_flag=True, help="Write even while an attempt runs, which may already have read the key."
)


class _TakesNumbers(Command):
    """A command whose last argument may be a negative number.

    click reads `-1` as an option, so the number is moved behind `--`.
    """

    @override
    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        numbers = [] if "--" in args else [arg for arg in args if _NEGATIVE.fullmatch(arg)]
        others = [arg for arg in args if arg not in numbers]
        return super().parse_args(ctx, [*others, "--", *numbers] if numbers else args)


_NEGATIVE = re.compile(r"-[0-9][0-9.eE+-]*")


@state.command("set", cls=_TakesNumbers)
@name_argument
@click.argument("key", shell_complete=completion.state_keys)
@click.argument("value")
@click.option("--string", is_flag=True, help="VALUE is a string, not JSON.")
@click.option("--if-absent", is_flag=True, help="Write only if the key is absent.")
@click.option("--if-version", type=click.IntRange(1), help="Write only if the key has this version.")
@click.option(
    "--retention",
    metavar="DURATION|never",
    help="How long it is kept after the run (30d; what never expires stays so).",
)
@_FORCE
@output_option
def state_set(
    *,
    name: str,
    key: str,
    value: str,
    string: bool,
    if_absent: bool,
    if_version: int | None,
    retention: str | None,
    force: bool,
    output: str | None,
) -> None:
    """Store a value under a key. VALUE is JSON; - reads it from stdin."""
    from reattach.cli import state_edit
    from reattach.state.errors import RequestRejectedError
    from reattach.state.operations import Set
    from reattach.state.values import check_key

    if if_absent and if_version is not None:
        raise click.UsageError("--if-absent and --if-version can't be used together.")
    asked = None if retention in {None, "never"} else DURATION.convert(retention, None, None)
    text = sys.stdin.read() if value == "-" else value
    try:
        stored, checked = state_edit.parse_value(text, is_string=string), check_key(key)
    except RequestRejectedError as error:
        raise state_edit.rejection_error(error) from None

    def steps(before: Any, _: datetime) -> list[Any]:
        kept = state_edit.retention_of(before, checked, asked, never=retention == "never")
        return [Set(key=checked, text=stored, retention=kept, if_absent=if_absent, if_version=if_version)]

    after, _ = call(lambda connection: state_edit.write(connection, name, steps, force=force))
    record = after.records[checked]
    show(
        state_edit.to_output(record),
        output,
        [f"{key} stored in the state of {name}, version {record.version}."],
    )


@state.command("rm")
@name_argument
@click.argument("keys", nargs=-1, required=True, metavar="KEY...", shell_complete=completion.state_keys)
@click.option("--if-version", type=click.IntRange(1), help="Write only if the key has this version.")
@click.option("--ignore-not-found", is_flag=True, help="A key that is not there is fine.")
@_FORCE
def state_rm(name: str, keys: tuple[str, ...], if_version: int | None, ignore_not_found: bool, force: bool) -> None:
    """Remove keys; all of them, or none."""
    from reattach.cli import state_edit
    from reattach.state.operations import Delete

    if if_version is not None and len(keys) > 1:
        raise click.UsageError("--if-version takes one KEY.")

    def steps(before: Any, _: datetime) -> list[Any]:
        missing = [key for key in keys if key not in before.records]
        if missing and not ignore_not_found:
            raise CommandError(
                f"Nothing is stored under {missing[0]!r}; kubectl reattach state ls {name} lists the keys."
            )
        return [Delete(key, if_version) for key in dict.fromkeys(keys) if key not in missing]

    _, results = call(lambda connection: state_edit.write(connection, name, steps, force=force))
    show(None, None, [f"{state_edit.summarize(results)} in the state of {name}."])


@state.command("export")
@name_argument
def state_export(name: str) -> None:
    """Print all keys as JSON, for state import."""
    from reattach.cli import state_edit

    taskrun, stored = call(lambda connection: state_edit.read(connection, name))
    click.echo(state_edit.build_export(taskrun, stored.state, datetime.now(UTC)))


@state.command("import")
@name_argument
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option("--replace", is_flag=True, help="Remove all other keys.")
@_FORCE
def state_import(name: str, file: str, replace: bool, force: bool) -> None:
    """Store all keys of an export, in one write; - reads it from stdin.

    A TaskRun whose task has not opened a state yet gets one, and its next attempt reads these keys.
    """
    from reattach.cli import state_edit
    from reattach.state.errors import RequestRejectedError

    text = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()

    def steps(_: Any, now: datetime) -> Any:
        try:
            return state_edit.parse_export(text, now, replace=replace)
        except RequestRejectedError as error:
            raise state_edit.rejection_error(error) from None

    _, results = call(lambda connection: state_edit.write(connection, name, steps, force=force, creates=True))
    show(None, None, [f"{state_edit.summarize(results)} in the state of {name}."])
