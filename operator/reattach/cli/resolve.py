"""`resolve`: check the holds of a TaskRun, and append a resolution by compare-and-set."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from reattach.api.messages import HANDLE_BYTES_MAX
from reattach.api.objects import Shape
from reattach.api.state import JobSummary
from reattach.api.taskrun import Resolution, TaskRun
from reattach.api.text import printable
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
    resolve_command,
)
from reattach.cli.queries import read_jobs, read_taskrun_json, to_taskrun
from reattach.cli.retry import retry_conflicts
from reattach.cli.text import listed
from reattach.cluster import paths

FIELD_MANAGER = "kubectl-reattach"


@dataclass(frozen=True, kw_only=True)
class ResolveRequest:
    """Resolution that you request, and the hold that it is for if there are several."""

    action: str
    handle: str | None = None
    key: str | None = None
    generation: int | None = None


class ResolveResult(Shape, frozen=True):
    """Resolution that was appended, its number (from 1), and what happens then."""

    name: str
    namespace: str
    resolution: Resolution
    number: int
    consequence: str


async def resolve(connection: ClusterConnection, name: str, request: ResolveRequest) -> ResolveResult:
    """Append the resolution.

    Raises `CommandError` if nothing is held or it does not fit, and `ClusterError`.
    """

    async def write() -> ResolveResult:
        read = await read_taskrun_json(connection, name)
        taskrun = to_taskrun(read)
        hold, resolution = build_resolution(taskrun, await read_jobs(connection, taskrun), request)
        written = await append_resolutions(connection, read, taskrun, [resolution])
        return ResolveResult(
            name=name,
            namespace=connection.namespace,
            resolution=resolution,
            number=len(written.spec.resolutions),
            consequence=describe_consequence(taskrun, hold, request.action, request.handle or "HANDLE"),
        )

    return await retry_conflicts(name, write)


async def append_resolutions(
    connection: ClusterConnection, read: bytes, taskrun: TaskRun, resolutions: Sequence[Resolution]
) -> TaskRun:
    """Append the resolutions to the TaskRun, which was read as `read`. Return what was written.

    Raises `ConflictError` if it has changed since then, and other errors of `ClusterError`.
    """
    # Send the existing resolutions back as they are, with any fields that a newer version wrote.
    given = msgspec.json.decode(read)["spec"].get("resolutions") or []
    body: dict[str, Any] = {
        "metadata": {"resourceVersion": taskrun.metadata.resource_version, "uid": taskrun.metadata.uid},
        "spec": {"resolutions": [*given, *msgspec.to_builtins(resolutions)]},
    }
    path = paths.taskruns(connection.namespace, taskrun.metadata.name)
    return to_taskrun(await connection.cluster.merge_patch(path, body, fieldManager=FIELD_MANAGER))


# -- pure ------------------------------------------------------------------------------------------


def build_resolution(
    taskrun: TaskRun, jobs: Sequence[JobSummary], request: ResolveRequest
) -> tuple[OpenHold, Resolution]:
    """Return the selected hold and the resolution to append.

    Raises `CommandError` if there is no such hold.
    """
    name = taskrun.metadata.name
    if taskrun.status.outcome is not None:
        raise CommandError(f"{name} has ended ({taskrun.status.outcome}); nothing is held.")
    hold = _select_hold(taskrun, find_holds(taskrun, jobs), request)
    if request.action not in ACTIONS[hold.held]:
        fitting = listed([FLAGS[action] for action in ACTIONS[hold.held]], "or")
        raise CommandError(
            f"{name} is held for {hold.name}, which takes {fitting}. Repeat the command with one of these flags."
        )
    if len(taskrun.spec.resolutions) >= RESOLUTIONS_MAX:
        raise CommandError(
            f"{name} has {RESOLUTIONS_MAX} resolutions, the most that spec.resolutions takes; delete it, or remove its finalizers: "
            f"kubectl reattach release {name}."
        )
    _check_handle(jobs, hold, request)
    return hold, Resolution(
        held=hold.held, action=request.action, key=hold.key, generation=hold.generation, handle=request.handle
    )


def format_resolution(name: str, resolution: Resolution) -> str:
    """Return a line about a resolution that was stored."""
    what = f"{resolution.action} {resolution.handle}" if resolution.handle else resolution.action
    about = f" of {resolution.key}" if resolution.key else ""
    return f"taskrun/{name} resolved: {what}, for {resolution.held}{about}."


def _select_hold(taskrun: TaskRun, holds: Sequence[OpenHold], request: ResolveRequest) -> OpenHold:
    name = taskrun.metadata.name
    matching = [
        hold for hold in holds if request.key in {None, hold.key} and request.generation in {None, hold.generation}
    ]
    waiting = [hold for hold in matching if hold.answer is None]
    if len(waiting) == 1:
        return waiting[0]
    if waiting:
        fitting = [hold for hold in waiting if request.action in ACTIONS[hold.held]]
        raise CommandError(
            f"{name} is held for {len(waiting)} reasons; select one with --key and --generation:",
            lines=[f"  {resolve_command(taskrun, hold, request.action)}" for hold in fitting],
        )
    if matching:
        answer = matching[-1].answer
        given = f"{answer.action} {answer.handle or ''}".rstrip() if answer else ""
        raise CommandError(f"{name} already has a resolution ({given}), which the operator applies.")
    if holds:
        raise CommandError(f"{name} is not held for that, but for {listed([hold.name for hold in holds])}.")
    condition = find_held_condition(taskrun.status)
    if condition is not None and condition.reason not in ACTIONS:
        raise CommandError(
            f"{name} is held for {condition.reason}, which resolve can't settle; kubectl reattach explain {name} shows what to do."
        )
    raise CommandError(f"{name} is not held, so it takes no resolution.")


def _check_handle(jobs: Sequence[JobSummary], hold: OpenHold, request: ResolveRequest) -> None:
    handle = request.handle
    if handle is None:
        return
    if not handle.strip() or len(handle.encode()) > HANDLE_BYTES_MAX:
        raise CommandError(
            f"A handle must have 1 to {HANDLE_BYTES_MAX} bytes; it is the job's id in the external system."
        )
    if not handle.isprintable():
        raise CommandError(f"A handle must have printable characters only: {printable(handle)}.")
    for job in jobs:
        if job.handle == handle and (job.key, job.generation) != (hold.key, hold.generation):
            raise CommandError(
                f"{handle} is the handle of {job.key}, generation {job.generation}, already; name another handle."
            )
