"""The programs `kubectl-reattach` and `kubectl_complete-reattach`."""

import io
import os
import sys
from typing import NoReturn

import click

from reattach.cli import completion
from reattach.cli.commands import cli
from reattach.cli.errors import CommandError, ExitCode
from reattach.cli.flags import PROGRAM, say


def run(arguments: list[str]) -> int:
    """Run the command in the arguments. Return the exit code."""
    try:
        result = cli.main(arguments, prog_name=PROGRAM, standalone_mode=False)
    except CommandError as error:
        say(f"error: {error}")
        for line in error.lines:
            say(line)
        return error.exit_code
    except click.ClickException as error:
        usage = io.StringIO()
        error.show(usage)
        for line in usage.getvalue().splitlines():
            say(line)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return ExitCode.INTERRUPTED
    except SystemExit:
        # click raises it with 1 when the reader of stdout closed it; 1 means "not done" here. No
        # command raises it.
        return ExitCode.PIPE_CLOSED
    return result if isinstance(result, int) else ExitCode.OK


def main() -> NoReturn:
    """Run `kubectl-reattach`."""
    if instruction := os.environ.get(completion.VARIABLE):
        sys.exit(completion.complete_for_shell(cli, instruction))
    sys.exit(run(sys.argv[1:]))


def complete() -> NoReturn:
    """Run `kubectl_complete-reattach`, by which kubectl completes `kubectl reattach`."""
    click.echo(completion.for_kubectl(cli, sys.argv[1:]))
    sys.exit(0)
