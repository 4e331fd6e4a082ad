"""`resolve --selector`: plan the resolutions of many TaskRuns, and store them.

The n-th resolution for a job or reason settles its n-th hold. A plan contains the number of each
hold, and the time since which its TaskRun is held. A resolution is stored only while both are the
same, by compare-and-set. So no later hold gets it, also if the command is killed and repeated.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from reattach.api.objects import Shape, Time
from reattach.api.state import JobSummary
from reattach.api.taskrun import Resolution, TaskRun
from reattach.api.text import shell_command
from reattach.cli.changes import for_each
from reattach.cli.connection import ClusterConnection
from reattach.cli.errors import CommandError
from reattach.cli.hold_options import (
    ACTIONS,
    FLAGS,
    RESOLUTIONS_MAX,
    OpenHold,
    describe_consequence,
    find_held_condition,
    find_holds,
)
from reattach.cli.pages import ObjectSelection, read_pages
from reattach.cli.queries import read_jobs, read_taskrun_json, to_taskrun
from reattach.cli.resolve import ResolveRequest, append_resolutions, format_resolution
from reattach.cli.retry import retry_conflicts
from reattach.cli.run_list import UNFINISHED, ListedRun, decode_run
from reattach.cli.text import NOTHING, ago, clock, listed


class HoldPlan(Shape, frozen=True):
    """One hold, and the resolution that it gets.

    `number`: the number of the resolution that settles this hold, among those for the same job or
    reason. `skipped`: the reason why the hold gets no resolution.
    """

    held: str
    action: str
    key: str | None = None
    generation: int | None = None
    number: int = 0
    skipped: str = ""


class RunPlan(Shape, frozen=True):
    """The holds of one TaskRun. `consequence`: what happens after the first resolution."""

    name: str
    namespace: str
    uid: str
    since: Time | None
    holds: tuple[HoldPlan, ...]
    consequence: str = ""

    @property
    def to_resolve(self) -> tuple[HoldPlan, ...]:
        """Return the holds that get a resolution."""
        return tuple(hold for hold in self.holds if not hold.skipped)


class RunResolution(Shape, frozen=True):
    """Resolutions that were stored for one TaskRun."""

    name: str
    namespace: str
    resolutions: tuple[Resolution, ...]


@dataclass(frozen=True)
class BulkRequest:
    """One resolution for all held TaskRuns with these labels.

    `held_before`: TaskRuns that are held since a later time get no resolution.
    """

    selector: str
    resolution: ResolveRequest
    held_before: datetime


async def read_start(connection: ClusterConnection) -> datetime:
    """Return the API server's time, in whole seconds."""
    return await connection.cluster.date() or datetime.now(UTC).replace(microsecond=0)


async def read_plans(connection: ClusterConnection, request: BulkRequest) -> tuple[list[RunPlan], list[CommandError]]:
    """Read the held TaskRuns and their jobs, and return the plans, and the errors of the others."""
    selection = ObjectSelection(labels=request.selector, fields=UNFINISHED)
    held = [run async for page in read_pages(connection, selection, decode_run) for run in page if run.held]

    async def read(run: ListedRun) -> RunPlan:
        taskrun = to_taskrun(await read_taskrun_json(connection, run.name))
        return plan_run(taskrun, await read_jobs(connection, taskrun), request)

    plans: list[RunPlan] = []
    errors: list[CommandError] = []
    async for _, result in for_each(connection, held, read):
        if isinstance(result, CommandError):
            errors.append(result)
        elif result.holds:
            plans.append(result)
    return plans, errors


async def resolve_run(connection: ClusterConnection, plan: RunPlan, request: BulkRequest) -> RunResolution:
    """Store the planned resolutions of one TaskRun, in one write. Safe to repeat.

    A hold that ended, or has a resolution, gets none. Raises `CommandError` and `ClusterError`.
    """

    async def write() -> RunResolution:
        read = await read_taskrun_json(connection, plan.name)
        taskrun = to_taskrun(read)
        now = plan_run(taskrun, await read_jobs(connection, taskrun), request)
        resolutions = tuple(_resolution_for(hold) for hold in unchanged_holds(plan, now))
        if resolutions:
            await append_resolutions(connection, read, taskrun, resolutions)
        return RunResolution(name=plan.name, namespace=plan.namespace, resolutions=resolutions)

    return await retry_conflicts(plan.name, write)


# -- pure ------------------------------------------------------------------------------------------


def plan_run(taskrun: TaskRun, jobs: Sequence[JobSummary], request: BulkRequest) -> RunPlan:
    """Return which holds of a TaskRun get the requested resolution."""
    wanted, condition = request.resolution, find_held_condition(taskrun.status)
    since = condition.last_transition_time if condition else None
    holds: list[HoldPlan] = []
    consequence = ""
    if condition is not None and taskrun.status.outcome is None:
        if condition.reason not in ACTIONS:
            skipped = "no resolution settles it; kubectl reattach explain shows what to do"
            holds.append(HoldPlan(held=condition.reason, action=wanted.action, skipped=skipped))
        for hold in find_holds(taskrun, jobs):
            if wanted.key not in {None, hold.key} or wanted.generation not in {None, hold.generation}:
                continue
            room = RESOLUTIONS_MAX - len(taskrun.spec.resolutions) - sum(not one.skipped for one in holds)
            skipped = _reason_to_skip(hold, wanted.action, since, request.held_before, room)
            holds.append(
                HoldPlan(
                    held=hold.held,
                    action=wanted.action,
                    key=hold.key,
                    generation=hold.generation,
                    number=_next_number(taskrun, hold),
                    skipped=skipped,
                )
            )
            if not skipped and not consequence:
                consequence = describe_consequence(taskrun, hold, wanted.action)
    about = taskrun.metadata
    return RunPlan(
        name=about.name,
        namespace=about.namespace,
        uid=about.uid,
        since=since,
        holds=tuple(holds),
        consequence=consequence,
    )


def unchanged_holds(plan: RunPlan, now: RunPlan) -> tuple[HoldPlan, ...]:
    """Return the planned holds that still wait for the same resolution of the same hold."""
    if (plan.uid, plan.since) != (now.uid, now.since):
        return ()
    return tuple(hold for hold in now.to_resolve if hold in plan.to_resolve)


def rows_of(plans: Sequence[RunPlan], now: datetime) -> list[tuple[str, ...]]:
    """Return the plans as rows of a table."""
    rows: list[tuple[str, ...]] = [("NAME", "HELD FOR", "SINCE", "RESOLUTION")]
    for plan in plans:
        since = ago(plan.since, now) if plan.since else NOTHING
        rows += [
            (plan.name, _name_of(hold), since, f"none: {hold.skipped}" if hold.skipped else hold.action)
            for hold in plan.holds
        ]
    return rows


def consequences_of(plans: Sequence[RunPlan]) -> list[str]:
    """Return what happens then, for the first TaskRun of each kind of hold."""
    found: dict[str, str] = {}
    for plan in plans:
        for hold in plan.to_resolve[:1]:
            found.setdefault(hold.held, f"For example {plan.name}: {plan.consequence}")
    return list(found.values())


def skipped_lines(plans: Sequence[RunPlan]) -> list[str]:
    """Return a line for each hold that gets no resolution."""
    return [
        f"{plan.name}, held for {_name_of(hold)}, gets no resolution: {hold.skipped}."
        for plan in plans
        for hold in plan.holds
        if hold.skipped
    ]


def command_of(request: BulkRequest, namespace: str) -> str:
    """Return the command that stores the resolutions. You can repeat it."""
    wanted = request.resolution
    words = ["kubectl", "reattach", "resolve", "-n", namespace, "-l", request.selector, FLAGS[wanted.action]]
    words += ["--key", wanted.key] if wanted.key is not None else []
    words += ["--generation", str(wanted.generation)] if wanted.generation is not None else []
    return shell_command([*words, "--held-before", clock(request.held_before), "--yes"])


def format_run(result: RunResolution) -> list[str]:
    """Return the result for one TaskRun as lines of text."""
    if not result.resolutions:
        return [f"taskrun/{result.name} is no longer held as listed, so it got no resolution."]
    return [format_resolution(result.name, one) for one in result.resolutions]


def _reason_to_skip(hold: OpenHold, action: str, since: datetime | None, held_before: datetime, room: int) -> str:
    if hold.answer is not None:
        return f"it already has a resolution ({hold.answer.action})"
    if action not in ACTIONS[hold.held]:
        return f"it takes {listed([FLAGS[one] for one in ACTIONS[hold.held]], 'or')}"
    if since is None or since > held_before:
        return f"it began after {clock(held_before)}"
    return "" if room > 0 else f"spec.resolutions has {RESOLUTIONS_MAX} entries, the most that it takes"


def _next_number(taskrun: TaskRun, hold: OpenHold) -> int:
    held = (hold.held, hold.key, hold.generation)
    return 1 + sum((one.held, one.key, one.generation) == held for one in taskrun.spec.resolutions)


def _resolution_for(hold: HoldPlan) -> Resolution:
    return Resolution(held=hold.held, action=hold.action, key=hold.key, generation=hold.generation)


def _name_of(hold: HoldPlan) -> str:
    return OpenHold(held=hold.held, key=hold.key, generation=hold.generation).name
