"""Errors of commands: one sentence that says what to do, and an exit code for scripts."""

from collections.abc import Sequence
from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes; docs/cli.md has the same table."""

    OK = 0
    ERROR = 1
    """The command failed or was refused; stderr has the reason."""
    USAGE = 2
    FAILED = 3
    """`wait`: the TaskRun failed."""
    CANCELLED = 4
    """`wait`: the TaskRun was cancelled."""
    HELD = 5
    """`wait`: the TaskRun waits for a resolution."""
    TIMEOUT = 6
    """`wait`: not within --timeout."""
    DELETED = 7
    """`wait`, `logs -f`: the TaskRun was deleted."""
    INTERRUPTED = 130
    PIPE_CLOSED = 141
    """The reader of stdout closed it; the code of a program that SIGPIPE ended."""


class CommandError(Exception):
    """End the command with this sentence, lines below it, and this exit code."""

    def __init__(self, sentence: str, exit_code: ExitCode = ExitCode.ERROR, *, lines: Sequence[str] = ()) -> None:
        super().__init__(sentence)
        self.exit_code = exit_code
        self.lines = lines


class NoSuchTaskRunError(CommandError):
    """The API server has no TaskRun of that name."""
