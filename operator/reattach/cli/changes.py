"""Changes of many TaskRuns, in which the error of one does not stop the others."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from reattach.cli.connection import ClusterConnection
from reattach.cli.error_messages import describe_error
from reattach.cli.errors import CommandError, ExitCode
from reattach.cli.flags import say, show
from reattach.cli.retry import RETRY_SECONDS
from reattach.cluster import ClusterError, TooManyRequestsError, UnavailableError

_AT_ONCE = 8
_TRIES = 4


class NamedTarget(Protocol):
    """A TaskRun that a command changes."""

    @property
    def name(self) -> str: ...


@dataclass(frozen=True)
class RunTarget:
    """A TaskRun to change. `uid` None: the one that has the name now."""

    name: str
    uid: str | None = None


Target = TypeVar("Target", bound=NamedTarget)
Result = TypeVar("Result")


async def for_each(
    connection: ClusterConnection, targets: Sequence[Target], act: Callable[[Target], Awaitable[Result]]
) -> AsyncGenerator[tuple[Target, Result | CommandError], None]:
    """Call `act` for each target, some at once, and yield the results and errors in order.

    `act` must be safe to repeat, because it is called again if the API server does not respond.
    Raises `UnavailableError` if it does not respond for a whole group of targets.
    """
    for start in range(0, len(targets), _AT_ONCE):
        group = targets[start : start + _AT_ONCE]
        results = await asyncio.gather(*(_result_of(target, act) for target in group))
        unavailable = [one for one in results if isinstance(one, UnavailableError)]
        if len(unavailable) == len(group):
            raise unavailable[0]
        for target, result in zip(group, results, strict=True):
            if isinstance(result, ClusterError):
                yield target, CommandError(f"{target.name}: {describe_error(result, connection.cluster.host)}")
            else:
                yield target, result


async def change_each(
    connection: ClusterConnection,
    targets: Sequence[Target],
    act: Callable[[Target], Awaitable[Result]],
    lines_of: Callable[[Result], list[str]],
    output: str | None,
) -> ExitCode:
    """Call `act` for each target, and print results and errors as they come.

    With JSON or YAML, the results are one list at the end. The exit code shows whether there was an
    error.
    """
    results: list[Any] = []
    code = ExitCode.OK
    async for _, result in for_each(connection, targets, act):
        if isinstance(result, CommandError):
            code = ExitCode.ERROR
            say(f"error: {result}")
        elif output is None:
            show(None, None, lines_of(result))
        else:
            results.append(result)
    if output is not None:
        show(results, output, [])
    return code


async def _result_of(
    target: Target, act: Callable[[Target], Awaitable[Result]]
) -> Result | CommandError | ClusterError:
    for pause in (*[RETRY_SECONDS] * (_TRIES - 1), None):
        try:
            return await act(target)
        except (UnavailableError, TooManyRequestsError) as error:
            if pause is None:
                return error
            await asyncio.sleep(error.retry_after or pause)
        except (CommandError, ClusterError) as error:
            return error
    raise AssertionError  # the last try returns
