"""Commands of `kubectl reattach`: flags in, lines and an exit code out.

The other modules do the work.
"""

import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NoReturn

import click

from reattach.api.names import API_VERSION
from reattach.cli import completion
from reattach.cli.errors import CommandError, ExitCode
from reattach.cli.flags import (
    DURATION,
    PROGRAM,
    TIME,
    Commands,
    TaskRunName,
    call,
    check_names_or_selector,
    leave,
    list_output_option,
    name_argument,
    names_argument,
    output_option,
    required_names_argument,
    say,
    selector_option,
    show,
    styler,
)
from reattach.cli.state_commands import state
from reattach.cli.text import Cell, clock, count, table

if TYPE_CHECKING:
    from reattach.cli.resolve import ResolveRequest


def _print_version(context: click.Context, _: click.Parameter, is_given: bool) -> None:
    if is_given and not context.resilient_parsing:
        show(None, None, [_version_line()])
        context.exit(ExitCode.OK)


@click.group(cls=Commands, name=PROGRAM)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the version of this program.",
)
def cli(**_: Any) -> None:
    """List TaskRuns, show what a TaskRun did and why, and resolve, suspend or cancel it.

    Exit codes: 0 done, 1 not done (stderr says why), 2 wrong usage; wait has more.
    """


@cli.command("list")
@click.option("-A", "--all-namespaces", is_flag=True, help="List the TaskRuns of all namespaces.")
@selector_option
@click.option("--held", is_flag=True, help="List only TaskRuns that wait for a resolution.")
@click.option("--orphaned", is_flag=True, help="List only TaskRuns that left external jobs running.")
@list_output_option
def list_taskruns(
    *, all_namespaces: bool, selector: str | None, held: bool, orphaned: bool, output: str | None
) -> None:
    """List TaskRuns: status, attempts, the newest external job, and age."""
    from reattach.cli.pages import ObjectSelection
    from reattach.cli.run_list import ORPHANED, UNFINISHED, print_list

    fields = [*([UNFINISHED] if held else []), *([ORPHANED] if orphaned else [])]
    selection = ObjectSelection(all_namespaces=all_namespaces, labels=selector, fields=",".join(fields) or None)
    call(lambda connection: print_list(connection, selection, datetime.now(UTC), output, held=held))


@cli.command()
@name_argument
@output_option
def explain(name: str, output: str | None) -> None:
    """Show a run: attempts, what was decided and why, what happens next, and what you can do."""
    from reattach.cli.explain import format_report
    from reattach.cli.queries import read_snapshot
    from reattach.cli.report import build_report

    snapshot = call(lambda connection: read_snapshot(connection, name))
    report = build_report(snapshot)
    show(report, output, format_report(report, snapshot.now, styler()))


@cli.command()
@click.argument("name", required=False, metavar="[NAME]", type=TaskRunName(), shell_complete=completion.taskruns)
@click.option("--adopt", metavar="HANDLE", help="The job exists, and this is its id in the external system.")
@click.option("--resubmit", is_flag=True, help="The job does not exist: submit it again.")
@click.option("--start-empty", is_flag=True, help="The state is lost: continue with an empty one.")
@click.option("--continue", "go_on", is_flag=True, help="Grant the budget that is used up again.")
@click.option("--fail", is_flag=True, help="End the TaskRun as Failed.")
@click.option("--key", help="The external job to resolve, if several are held.", shell_complete=completion.held_keys)
@click.option("--generation", type=click.IntRange(1), help="The generation of that job.")
@selector_option
@click.option(
    "--held-before", type=TIME, metavar="TIME", help="With --selector: only runs that are held since before this time."
)
@click.option("-y", "--yes", is_flag=True, help="With --selector: store the resolutions, and don't only list them.")
@output_option
def resolve(
    *,
    name: str | None,
    adopt: str | None,
    resubmit: bool,
    start_empty: bool,
    go_on: bool,
    fail: bool,
    key: str | None,
    generation: int | None,
    selector: str | None,
    held_before: datetime | None,
    yes: bool,
    output: str | None,
) -> None:
    """Resolve a TaskRun that is held, so that it continues.

    A hold for SubmissionUnknown takes --adopt, --resubmit or --fail, StateLost takes --start-empty
    or --fail, and BudgetExhausted takes --continue or --fail. The resolution is appended to
    spec.resolutions.

    With --selector, the command lists the held TaskRuns of the namespace and the resolutions that
    they would get, and stores them only with --yes. Holds that begin after the start of the command
    get none.
    """
    from reattach.cli.resolve import ResolveRequest, format_resolution
    from reattach.cli.resolve import resolve as store

    check_names_or_selector([name] if name else [], selector)
    chosen = {
        "Adopt": adopt is not None,
        "Resubmit": resubmit,
        "StartEmpty": start_empty,
        "Continue": go_on,
        "Fail": fail,
    }
    actions = [action for action, is_chosen in chosen.items() if is_chosen]
    if len(actions) != 1:
        raise click.UsageError("Give exactly one of --adopt HANDLE, --resubmit, --start-empty, --continue and --fail.")
    request = ResolveRequest(action=actions[0], handle=adopt, key=key, generation=generation)
    if selector is not None:
        if adopt is not None:
            raise click.UsageError("--adopt needs NAME instead of --selector, because a handle belongs to one job.")
        _resolve_selected(selector, request, held_before, output, yes=yes)
    if name is None or yes or held_before is not None:
        raise click.UsageError("--yes and --held-before need --selector.")
    result = call(lambda connection: store(connection, name, request))
    show(result, output, [format_resolution(name, result.resolution), result.consequence])


def _resolve_selected(
    selector: str, request: "ResolveRequest", held_before: datetime | None, output: str | None, *, yes: bool
) -> NoReturn:
    from reattach.cli import bulk_resolve
    from reattach.cli.changes import change_each

    started = call(bulk_resolve.read_start)
    before = min(started, held_before or started)
    bulk = bulk_resolve.BulkRequest(selector, request, before)
    if yes and held_before is None:
        # A repeated command that begins later could resolve later holds.
        say(
            f"Resolving holds that began before {clock(before)}. To repeat the command, add --held-before {clock(before)}."
        )
    plans, errors = call(lambda connection: bulk_resolve.read_plans(connection, bulk))
    for error in errors:
        say(f"error: {error}")
    planned = [plan for plan in plans if plan.to_resolve]
    if not planned and not errors:
        say("No held TaskRun matches --selector and takes this resolution.")
    if yes:
        for line in bulk_resolve.skipped_lines(plans):
            say(line)
        code = call(
            lambda connection: change_each(
                connection,
                planned,
                lambda plan: bulk_resolve.resolve_run(connection, plan, bulk),
                bulk_resolve.format_run,
                output,
            )
        )
        leave(ExitCode.ERROR if errors else code)
    if plans or output is not None:
        rows = table(bulk_resolve.rows_of(plans, started), styler())
        show(plans, output, [*rows, *bulk_resolve.consequences_of(plans)])
    if planned:
        number = sum(len(plan.to_resolve) for plan in planned)
        say(f"Nothing was changed. To store {count(number, 'resolution')}, run:")
        say(bulk_resolve.command_of(bulk, planned[0].namespace))
    leave(ExitCode.ERROR if planned or errors else ExitCode.OK)


@cli.command("cancel")
@names_argument
@selector_option
@click.option("-y", "--yes", is_flag=True, help="With --selector: cancel, and don't only list.")
@output_option
def cancel_taskruns(*, names: tuple[str, ...], selector: str | None, yes: bool, output: str | None) -> None:
    """Cancel TaskRuns. The operator then stops the pod, and the run ends as Cancelled.

    With --selector, the command lists the TaskRuns that it would cancel, and cancels them only with
    --yes. A TaskRun that succeeded or failed can't be cancelled.
    """
    from reattach.cli.cancel import cancel, format_result, read_cancellable
    from reattach.cli.changes import RunTarget, change_each
    from reattach.cli.run_list import row_of, titles_of

    check_names_or_selector(names, selector)
    targets = [RunTarget(name) for name in dict.fromkeys(names)]
    if selector is not None:
        runs = call(lambda connection: read_cancellable(connection, selector))
        if not runs and output is None:
            say("No TaskRun that continues matches --selector.")
        elif runs and not yes:
            now = datetime.now(UTC)
            rows = [titles_of(), *(row_of(run, now) for run in runs)]
            show(runs, output, table(rows, styler()))
            say(f"Nothing was changed. To cancel {count(len(runs), 'TaskRun')}, repeat the command with --yes.")
            leave(ExitCode.ERROR)
        targets = [RunTarget(run.name, run.uid) for run in runs]
    leave(
        call(
            lambda connection: change_each(
                connection, targets, lambda target: cancel(connection, target), format_result, output
            )
        )
    )


@cli.command("suspend")
@required_names_argument
@output_option
def suspend_taskruns(names: tuple[str, ...], output: str | None) -> None:
    """Suspend TaskRuns. The operator deletes the pod, and external jobs continue.

    No budget is charged, and the time for spec.deadlines.runSeconds stands still. resume starts the
    next attempt, which reattaches. A TaskRun that has ended, or is ending, can't be suspended.
    """
    _set_suspended(names, output, suspended=True)


@cli.command("resume")
@required_names_argument
@output_option
def resume_taskruns(names: tuple[str, ...], output: str | None) -> None:
    """Resume suspended TaskRuns. The next attempt starts at once, and reattaches."""
    _set_suspended(names, output, suspended=False)


@cli.command()
@required_names_argument
@output_option
def wake(names: tuple[str, ...], output: str | None) -> None:
    """Let TaskRuns that wait without a pod check their external jobs now.

    The next attempt starts at once. It reattaches, returns the result if the job has ended, and
    otherwise releases its pod again. The command sets the annotation reattach.dev/wake.
    """
    from reattach.cli.changes import RunTarget, change_each
    from reattach.cli.wake import format_wake
    from reattach.cli.wake import wake as wake_one

    targets = [RunTarget(name) for name in dict.fromkeys(names)]
    now = datetime.now(UTC)
    leave(
        call(
            lambda connection: change_each(
                connection, targets, lambda target: wake_one(connection, target.name, now), format_wake, output
            )
        )
    )


def _set_suspended(names: tuple[str, ...], output: str | None, *, suspended: bool) -> NoReturn:
    from reattach.cli.changes import RunTarget, change_each
    from reattach.cli.suspend import format_suspension, set_suspended

    targets = [RunTarget(name) for name in dict.fromkeys(names)]
    leave(
        call(
            lambda connection: change_each(
                connection,
                targets,
                lambda target: set_suspended(connection, target.name, suspended=suspended),
                format_suspension,
                output,
            )
        )
    )


@cli.command()
@name_argument
@click.option("--name", "new_name", type=TaskRunName(), help="The name of the new TaskRun, if not NAME with a number.")
@click.option("--keep-state", is_flag=True, help="Start with a copy of the keys that the task stored.")
@click.option("--adopt", is_flag=True, help="Reattach to the external jobs that NAME left running.")
@click.option("--cancel-first", is_flag=True, help="Cancel these jobs first, as orphans --cancel does.")
@click.option("--dry-run", is_flag=True, help="Let the API server check the TaskRun, and create nothing.")
@output_option
def rerun(
    *,
    name: str,
    new_name: str | None,
    keep_state: bool,
    adopt: bool,
    cancel_first: bool,
    dry_run: bool,
    output: str | None,
) -> None:
    """Run the task of a TaskRun that has ended again, in a new TaskRun.

    The new TaskRun has the spec of NAME without its idempotency key, and the next number: NAME-2,
    then NAME-3. It starts with an empty state. While an external job that NAME left may run, the
    command creates nothing, unless you adopt or cancel the job, or have dismissed its record.
    With -o, it prints the TaskRun.
    """
    from reattach.cli.orphan_cleanup import cancel_left_jobs
    from reattach.cli.rerun import RerunRequest, format_rerun
    from reattach.cli.rerun import rerun as create

    if cancel_first and (adopt or dry_run):
        raise click.UsageError("--cancel-first can't be used with --adopt or --dry-run.")
    request = RerunRequest(
        source=name, name=new_name, keep_state=keep_state, adopt=adopt, cancel_first=cancel_first, dry_run=dry_run
    )
    if cancel_first:
        call(lambda connection: cancel_left_jobs(connection, name, say))
    result = call(lambda connection: create(connection, request))
    for note in result.notes if output is not None else ():
        say(note)
    show(result.taskrun, output, format_rerun(result))


@cli.command()
@click.argument("names", nargs=-1, metavar="[NAME...]", type=TaskRunName(), shell_complete=completion.orphan_taskruns)
@click.option("-A", "--all-namespaces", is_flag=True, help="List the jobs of all namespaces.")
@click.option("--dismiss", is_flag=True, help="Delete the records of the TaskRuns NAME. Jobs are not cancelled.")
@click.option("--cancel", is_flag=True, help="Cancel the jobs of the TaskRun NAME, and then delete its record.")
@click.option("-y", "--yes", is_flag=True, help="With --dismiss: delete the records, and don't only list them.")
@output_option
def orphans(
    *, names: tuple[str, ...], all_namespaces: bool, dismiss: bool, cancel: bool, yes: bool, output: str | None
) -> None:
    """List external jobs that ended TaskRuns left running, and why.

    The operator keeps them in a record (a ConfigMap) until you dismiss it, also if the TaskRun was
    deleted. Cancel the jobs that you don't need in the external system. Then delete the records
    with --dismiss NAME. Without --yes, that only lists what would be forgotten.

    With --cancel, the command creates the TaskRun NAME-cleanup, which cancels the jobs with the
    template of NAME, and waits for it. It deletes the records once their jobs have ended.
    """
    from reattach.cli import orphan_cleanup
    from reattach.cli import orphans as records
    from reattach.cli.changes import change_each

    now = datetime.now(UTC)
    if cancel:
        if len(names) != 1 or all_namespaces or dismiss or yes:
            raise click.UsageError("--cancel needs the name of one TaskRun, and no other flag than -o.")
        result = call(lambda connection: orphan_cleanup.cancel_orphans(connection, names[0], say))
        show(result, output, orphan_cleanup.format_cancellation(result))
        leave(ExitCode.OK if result.is_complete else ExitCode.ERROR)
    if not dismiss:
        if yes:
            raise click.UsageError("--yes needs --dismiss.")
        selection = records.selection_of(names, all_namespaces=all_namespaces)
        call(lambda connection: records.print_orphans(connection, selection, names, now, output))
        return
    if not names or all_namespaces:
        raise click.UsageError("--dismiss needs the names of TaskRuns of one namespace.")
    found = call(lambda connection: records.read_records(connection, names))
    if not yes:
        rows = [row for record in found for row in record.rows]
        titles = [Cell(title, "dim") for title in records.titles_of()]
        show(rows, output, table([titles, *(records.cells_of(row, now) for row in rows)], styler()))
        for line in records.describe_dismissal(found, names, found[0].metadata.namespace):
            say(line)
        leave(ExitCode.ERROR)
    leave(
        call(
            lambda connection: change_each(
                connection, found, lambda record: records.dismiss(connection, record), records.format_dismissal, output
            )
        )
    )


cli.add_command(state)


@cli.command()
@name_argument
@click.option("-f", "--follow", is_flag=True, help="Follow the log, across attempts, until the TaskRun has ended.")
@click.option("--attempt", type=click.IntRange(1), help="Print only this attempt.")
@click.option("-c", "--container", help="The container, if not the task's.")
@click.option("--tail", type=click.IntRange(0), help="Print only the last lines of each attempt.")
@click.option(
    "--since", type=DURATION, metavar="DURATION", help="Print only lines newer than this, such as 5m; 0: all."
)
@click.option("--timestamps", is_flag=True, help="Print the time of each line.")
def logs(
    *,
    name: str,
    follow: bool,
    attempt: int | None,
    container: str | None,
    tail: int | None,
    since: timedelta | None,
    timestamps: bool,
) -> None:
    """Print the logs of all attempts, in order. Headings and messages go to stderr."""
    from reattach.cli.attempt_log import LogOptions
    from reattach.cli.logs_and_wait import show_logs

    options = LogOptions(
        follow=follow, attempt=attempt, container=container, tail=tail, since=since, timestamps=timestamps
    )
    leave(call(lambda connection: show_logs(connection, name, options, say)))


@cli.command()
@name_argument
@click.option(
    "--for",
    "goal",
    type=click.Choice(["Succeeded", "outcome"]),
    default="Succeeded",
    help="What to wait for.",
    show_default=True,
)
@click.option("--timeout", type=DURATION, metavar="DURATION", help="How long to wait; without it, there is no limit.")
@output_option
def wait(name: str, goal: str, timeout: timedelta | None, output: str | None) -> None:
    """Wait until a TaskRun has ended.

    Exit codes: 0 it succeeded, 3 it failed, 4 it was cancelled, 5 it is held, 6 not within
    --timeout, 7 it was deleted. With --for outcome, 0 means that it ended, and a hold does not end
    the command. Codes 1 and 2 are as for all commands.
    """
    from reattach.cli.logs_and_wait import WaitTarget, wait_for

    result = call(lambda connection: wait_for(connection, name, WaitTarget(goal), timeout, say))
    if output is not None:
        status = None if result.taskrun is None else result.taskrun.status
        about = {"name": name, "exitCode": int(result.exit_code), "message": result.sentence, "status": status}
        show(about, output, [])
    elif result.exit_code is ExitCode.OK:
        show(None, None, [result.sentence])
    else:
        say(result.sentence)
    leave(result.exit_code)


@cli.command()
@name_argument
@click.option("-y", "--yes", is_flag=True, help="Don't ask for confirmation.")
@click.option("--force", is_flag=True, help="Also release a TaskRun that is neither ending nor held.")
@output_option
def release(name: str, yes: bool, force: bool, output: str | None) -> None:
    """Remove Reattach's finalizers from a TaskRun that can't end, and list jobs that may still run.

    Use it if the operator is gone, or if you can't find out what happened to a job. External jobs
    are not cancelled.
    """
    from reattach.cli.release import carry_out, format_plan, prepare

    prepared = call(lambda connection: prepare(connection, name, force=force))
    lines = format_plan(prepared.plan)
    if not yes:
        for line in lines:
            say(line)
        if not sys.stdin.isatty():
            raise CommandError(
                "No finalizer was removed, because there is no terminal to confirm on; repeat with --yes."
            )
        if not click.confirm("Remove the finalizers?", err=True):
            raise CommandError("No finalizer was removed.")
    call(lambda connection: carry_out(connection, prepared))
    show(prepared.plan, output, [*(lines if yes else []), f"{name} was released."])


@cli.command()
@output_option
def version(output: str | None) -> None:
    """Print the version of this program."""
    show({"version": _version(), "apiVersion": API_VERSION}, output, [_version_line()])


def _version() -> str:
    from importlib.metadata import version as version_of

    return version_of("reattach")


def _version_line() -> str:
    return f"{PROGRAM} {_version()} ({API_VERSION})"


@cli.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion_script(shell: str) -> None:
    """Print the completion script of a shell for the program kubectl-reattach.

    `kubectl reattach` itself needs none: kubectl's own completion runs kubectl_complete-reattach,
    which is installed beside it.
    """
    click.echo(completion.script_of(cli, shell), nl=False)
