"""Parts that all commands share: flags that select a target, handling of errors, and output.

Modules that call the API server are imported when a command runs, so that completion and help start
fast.
"""

import asyncio
import json
import os
import re
import sys
from collections.abc import Callable, Coroutine, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click
import msgspec
from typing_extensions import override

from reattach.api.names import GROUP
from reattach.api.text import printable, printable_json
from reattach.cli import completion
from reattach.cli.errors import CommandError, ExitCode
from reattach.cli.target import TARGET_OPTIONS, Target, target_of
from reattach.cli.text import Cell, Styler, column_widths, escape_line, is_coloured, parse_duration, table

if TYPE_CHECKING:
    from reattach.cli.connection import ClusterConnection

PROGRAM = "kubectl reattach"
WIDE = "wide"
"""The value of `-o` for a table with whole handles, as of kubectl."""
_HELP = {"help_option_names": ["-h", "--help"]}

T = TypeVar("T")
Decorated = TypeVar("Decorated", bound=Callable[..., Any])


# -- flags that all commands have ------------------------------------------------------------------


class Duration(click.ParamType[timedelta]):
    """`90`, `90s`, `5m`, `1h30m`, `7d`."""

    name = "duration"

    @override
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        if isinstance(value, timedelta):
            return value
        try:
            return parse_duration(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


DURATION = Duration()


class Timestamp(click.ParamType[datetime]):
    """A time in RFC 3339, as the API server writes it."""

    name = "time"

    @override
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        try:
            found = datetime.fromisoformat(value)
        except ValueError:
            found = None
        if found is None or found.tzinfo is None:
            self.fail(f"{value!r} must be a time such as 2026-03-01T12:00:00Z", param, ctx)
        return found


TIME = Timestamp()


def _target_options(*, hidden: bool) -> list[click.Option]:
    """Return kubectl's own flags.

    `kubectl reattach --help` lists them, and every command takes them.
    """
    option = click.Option
    return [
        option(
            ["-n", "--namespace"],
            help="The namespace, if not that of the context.",
            shell_complete=completion.namespaces,
        ),
        option(["--context"], help="The context of the kubeconfig.", shell_complete=completion.contexts, hidden=hidden),
        option(["--kubeconfig"], type=click.Path(), help="The kubeconfig file.", hidden=hidden),
        option(["--cluster"], help="The cluster of the kubeconfig.", hidden=hidden),
        option(["--user"], help="The user of the kubeconfig.", hidden=hidden),
        option(["--as", "as_user"], metavar="USER", help="The user to impersonate.", hidden=hidden),
        option(
            ["--as-group", "as_groups"], multiple=True, metavar="GROUP", help="A group to impersonate.", hidden=hidden
        ),
        option(
            ["--request-timeout"],
            type=DURATION,
            metavar="DURATION",
            help="How long a request may take (30s).",
            hidden=hidden,
        ),
    ]


class Command(click.Command):
    """A command that takes the flags of a target; its function does not receive them."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        settings["params"] = [*settings.get("params", ()), *_target_options(hidden=True)]
        settings["context_settings"] = _HELP
        super().__init__(*arguments, **settings)

    @override
    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # While a flag's value is completed, click stops at the flag and drops the arguments before
        # it, such as NAME.
        if ctx.resilient_parsing and args and args[-1].startswith("-"):
            args = args[:-1]
        return super().parse_args(ctx, args)

    @override
    def invoke(self, ctx: click.Context) -> Any:
        ctx.obj = target_of(ctx)
        ctx.params = {name: value for name, value in ctx.params.items() if name not in TARGET_OPTIONS}
        return super().invoke(ctx)


class Commands(click.Group):
    """A group of such commands, in the order of their definition."""

    command_class = Command

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        settings["params"] = [*settings.get("params", ()), *_target_options(hidden=False)]
        settings["context_settings"] = _HELP
        super().__init__(*arguments, **settings)

    @override
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


Commands.group_class = Commands


class TaskRunName(click.ParamType[str]):
    """`NAME`, `trun/NAME`, or as `kubectl get trun -o name` has it."""

    name = "taskrun"

    @override
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        kind, _, name = str(value).rpartition("/")
        if kind not in _KINDS or not _NAME.fullmatch(name):
            self.fail(f"{value!r} must be the name of a TaskRun, or trun/NAME", param, ctx)
        return name


_NAME = re.compile(
    r"[A-Za-z0-9][-.A-Za-z0-9]*"
)  # more than the API server takes, which knows best; nothing that leads elsewhere in a URL
_KINDS = frozenset({"", "trun", "taskrun", "taskruns", f"taskrun.{GROUP}", f"taskruns.{GROUP}"})


def name_argument(function: Decorated) -> Decorated:
    """NAME, a TaskRun."""
    return click.argument("name", type=TaskRunName(), shell_complete=completion.taskruns)(function)


def names_argument(function: Decorated) -> Decorated:
    """NAME..., TaskRuns; none if the command has `--selector`."""
    return click.argument(
        "names", nargs=-1, metavar="[NAME...]", type=TaskRunName(), shell_complete=completion.taskruns
    )(function)


def required_names_argument(function: Decorated) -> Decorated:
    """NAME..., at least one TaskRun."""
    return click.argument(
        "names", nargs=-1, required=True, metavar="NAME...", type=TaskRunName(), shell_complete=completion.taskruns
    )(function)


def check_names_or_selector(names: Sequence[str], selector: str | None) -> None:
    """Raise a usage error unless the command has either names or a selector."""
    if bool(names) == (selector is not None):
        raise click.UsageError("Give either NAME or --selector.")
    if selector is not None and not selector.strip():
        raise click.UsageError("--selector must not be empty, because an empty selector matches every TaskRun.")


def selector_option(function: Decorated) -> Decorated:
    """`-l`, kubectl's label selector."""
    return click.option("-l", "--selector", metavar="SELECTOR", help="Labels, such as app=etl,tier!=test.")(function)


def output_option(function: Decorated) -> Decorated:
    """`-o json|yaml`."""
    return click.option(
        "-o", "--output", type=click.Choice(["json", "yaml"]), help="Print JSON or YAML, for programs."
    )(function)


def list_output_option(function: Decorated) -> Decorated:
    """`-o json|yaml|wide`."""
    return click.option(
        "-o",
        "--output",
        type=click.Choice(["json", "yaml", WIDE]),
        help="Print JSON or YAML, for programs, or the table with whole handles.",
    )(function)


# -- running ---------------------------------------------------------------------------------------


def call(act: "Callable[[ClusterConnection], Coroutine[Any, Any, T]]") -> T:
    """Connect as the flags select, run `act`, and turn errors into a sentence and an exit code."""
    return asyncio.run(_connected(click.get_current_context().obj, act))


async def _connected(target: Target, act: "Callable[[ClusterConnection], Coroutine[Any, Any, T]]") -> T:
    from reattach.cli.connection import connect
    from reattach.cli.error_messages import describe_error
    from reattach.cluster import ClusterError

    connection = await connect(target)
    async with connection.cluster as cluster:
        try:
            return await act(connection)
        except ClusterError as error:
            raise CommandError(describe_error(error, cluster.host)) from error


def say(text: str) -> None:
    """Print a message of one line to stderr; stdout is for the output of the command."""
    click.echo(printable(text), err=True)


def show(value: Any, output: str | None, lines: list[str]) -> None:
    """Print the output as lines, or the same as JSON or YAML.

    Commands print text that they have read only here, in `PagePrinter` and in `say`. The exceptions
    are the log of a container and a value with `--raw`.
    """
    if output is None:
        style = styler()
        click.echo("\n".join(escape_line(line, style) for line in lines), color=True)
        return
    plain = json.loads(msgspec.json.encode(value))
    if output == "json":
        click.echo(printable_json(json.dumps(plain, indent=2, ensure_ascii=False)))
    else:
        _print_yaml(plain)


class PagePrinter:
    """Print rows as they are read: a table with one heading, or one JSON or YAML list.

    Columns keep their width from page to page, and only become wider.
    """

    def __init__(self, titles: Sequence[str], output: str | None) -> None:
        self._titles = [Cell(title, "dim") for title in titles]
        self._output = output
        self._widths: list[int] = []
        self.is_empty = True

    def print_page(self, rows: Sequence[Sequence[str | Cell]], values: Sequence[Any]) -> None:
        """Print the rows of one page, or the same as JSON or YAML."""
        if not rows:
            return
        plain = None if self._output is None else json.loads(msgspec.json.encode(values))
        if plain is None:
            titled = [self._titles, *rows] if self.is_empty else rows
            self._widths = column_widths(titled, self._widths)
            show(None, None, table(titled, styler(), widths=self._widths))
        elif self._output == "json":
            inner = json.dumps(plain, indent=2, ensure_ascii=False)[1:-2]
            click.echo(("[" if self.is_empty else ",") + printable_json(inner), nl=False)
        else:
            _print_yaml(plain)
        self.is_empty = False

    def end(self) -> None:
        """Print the end of the list."""
        if self._output == "json":
            click.echo("[]" if self.is_empty else "\n]")
        elif self._output == "yaml" and self.is_empty:
            _print_yaml([])


def _print_yaml(plain: Any) -> None:
    from reattach.cli.yaml_output import to_yaml

    click.echo(to_yaml(plain), nl=False)


def styler() -> Styler:
    """Return the colours for stdout; none if it is not a terminal."""
    on = is_coloured(terminal=sys.stdout.isatty(), no_color=os.environ.get("NO_COLOR"), term=os.environ.get("TERM"))
    return Styler(on)


def leave(code: ExitCode) -> NoReturn:
    """End the command."""
    click.get_current_context().exit(code)
