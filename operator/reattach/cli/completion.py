"""Shell completion, by kubectl's own protocol and by click's scripts for bash, zsh and fish.

Completion prints no messages and takes no longer than `_SECONDS`. If the API server does not
respond, it offers nothing.
"""

import asyncio
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem, ShellComplete, get_completion_class, shell_complete

from reattach.api.text import is_plain_word
from reattach.cli.target import target_of

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from reattach.cli.connection import ClusterConnection

VARIABLE = "_KUBECTL_REATTACH_COMPLETE"
_SECONDS = 10.0
_NO_FILES = ":4"
_FILES = ":0"


def for_kubectl(cli: click.Command, arguments: list[str]) -> str:
    """Return kubectl's format: a value a line with its help after a tab, then a directive.

    The directive 4 offers no files, 0 does.
    """
    *before, word = arguments or [""]
    items = ShellComplete(cli, {}, "kubectl reattach", VARIABLE).get_completions(before, word)
    offers = [item for item in items if item.type == "plain" and item.value]
    lines = [f"{item.value}\t{item.help}" if item.help else str(item.value) for item in offers]
    return "\n".join([*lines, _FILES if any(item.type == "file" for item in items) else _NO_FILES])


def script_of(cli: click.Command, shell: str) -> str:
    """Return the completion script of a shell for `kubectl-reattach`."""
    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"There is no completion for {shell}.")
    script = kind(cli, {}, "kubectl-reattach", VARIABLE)
    return script.source_template % script.source_vars()


def complete_for_shell(cli: click.Command, instruction: str) -> int:
    """Print what the shell script requests, and return the exit code."""
    return shell_complete(cli, {}, "kubectl-reattach", VARIABLE, instruction)


# -- what can be offered ---------------------------------------------------------------------------


def taskruns(ctx: click.Context, _param: click.Parameter, word: str) -> list[CompletionItem]:
    """Complete the TaskRuns of the namespace."""
    from reattach.cli.queries import list_taskruns

    return _matching(_query(ctx, list_taskruns), word)


def orphan_taskruns(ctx: click.Context, _param: click.Parameter, word: str) -> list[CompletionItem]:
    """Complete the TaskRuns that left external jobs running, also those that were deleted."""
    from reattach.cli.orphans import list_orphan_taskruns

    return _matching(_query(ctx, list_orphan_taskruns), word)


def namespaces(ctx: click.Context, _param: click.Parameter, word: str) -> list[CompletionItem]:
    """Complete the namespaces of the cluster."""
    from reattach.cli.queries import list_namespaces

    return _matching(_query(ctx, list_namespaces), word)


def contexts(ctx: click.Context, _param: click.Parameter, word: str) -> list[CompletionItem]:
    """Complete the contexts of the kubeconfig."""
    from reattach.cli.connection import list_contexts

    return _matching(list_contexts(target_of(ctx)), word)


def state_keys(ctx: click.Context, _param: click.Parameter, word: str) -> list[CompletionItem]:
    """Complete the keys in the state of the TaskRun NAME."""
    from reattach.cli.state_edit import read

    async def keys(connection: "ClusterConnection") -> list[str]:
        _, stored = await read(connection, ctx.params["name"])
        return sorted(stored.state.records)

    return _matching(_query(ctx, keys), word)


def held_keys(ctx: click.Context, _param: click.Parameter, word: str) -> list[CompletionItem]:
    """Complete the keys of the external jobs for which the TaskRun is held."""
    from reattach.cli.hold_options import find_holds
    from reattach.cli.queries import read_jobs, read_taskrun

    async def keys(connection: "ClusterConnection") -> list[str]:
        taskrun = await read_taskrun(connection, ctx.params["name"])
        holds = find_holds(taskrun, await read_jobs(connection, taskrun))
        return [hold.key for hold in holds if hold.key and hold.answer is None]

    return _matching(_query(ctx, keys), word)


def _matching(values: list[str], word: str) -> list[CompletionItem]:
    # A script of a shell may insert a value without quotes, so a key with `$(…)` would run.
    return [CompletionItem(value) for value in dict.fromkeys(values) if value.startswith(word) and is_plain_word(value)]


def _query(ctx: click.Context, ask: "Callable[[ClusterConnection], Coroutine[Any, Any, list[str]]]") -> list[str]:
    from reattach.cli.connection import connect
    from reattach.cli.errors import CommandError
    from reattach.cluster import ClusterError

    async def act() -> list[str]:
        async with asyncio.timeout(_SECONDS):
            connection = await connect(target_of(ctx))
            async with connection.cluster:
                return await ask(connection)

    try:
        return asyncio.run(act())
    except (CommandError, ClusterError, TimeoutError, KeyError):
        return []
