"""How a command ends when it can't do what was asked: one sentence that says what to do, and an exit code for scripts."""

from enum import IntEnum


class ExitCode(IntEnum):
    """What a command's end means; docs/cli.md has the same table."""

    OK = 0
    ERROR = 1
    """It could not be done, or was refused; stderr says why."""
    USAGE = 2
    FAILED = 3
    """`wait`: the TaskRun failed."""
    CANCELLED = 4
    """`wait`: the TaskRun was cancelled."""
    HELD = 5
    """`wait`: the TaskRun waits for a person."""
    TIMEOUT = 6
    """`wait`: not within --timeout."""
    DELETED = 7
    """`wait`, `logs -f`: the TaskRun was deleted meanwhile."""
    INTERRUPTED = 130
    PIPE_CLOSED = 141
    """Whoever read stdout went away; as of a program that SIGPIPE ends."""


class CommandError(Exception):
    """The command ends with this sentence and this exit code."""

    def __init__(self, sentence: str, exit_code: ExitCode = ExitCode.ERROR) -> None:
        super().__init__(sentence)
        self.exit_code = exit_code


class NoSuchTaskRunError(CommandError):
    """The API server says that there is no TaskRun of that name."""
