"""`resolve`: check what a TaskRun is held for, and append the answer to its spec by compare-and-set."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from reattach.api.messages import HANDLE_BYTES_MAX
from reattach.api.objects import Shape
from reattach.api.state import JobSummary
from reattach.api.taskrun import Resolution, TaskRun
from reattach.cli.connection import ClusterConnection
from reattach.cli.errors import CommandError
from reattach.cli.hold_options import (
    ANSWERS,
    FLAGS,
    RESOLUTIONS_MAX,
    OpenHold,
    command_of,
    consequence_of,
    held_condition_of,
    holds_of,
)
from reattach.cli.queries import body_of, jobs_of, to_taskrun
from reattach.cli.retry import retry_conflicts
from reattach.cli.text import listed
from reattach.cluster import paths

FIELD_MANAGER = "kubectl-reattach"


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What the person said: which answer, and to which hold if there are several."""

    action: str
    handle: str | None = None
    key: str | None = None
    generation: int | None = None


class Answered(Shape, frozen=True):
    """What was appended, as which answer (from 1), and what comes of it."""

    name: str
    namespace: str
    resolution: Resolution
    number: int
    consequence: str


async def resolve(connection: ClusterConnection, name: str, wish: Wish) -> Answered:
    """Raises `CommandError` if nothing is held, or the answer doesn't fit; `ClusterError`."""

    async def write() -> Answered:
        read = await body_of(connection, name)
        taskrun = to_taskrun(read)
        hold, resolution = answer_of(taskrun, await jobs_of(connection, taskrun), wish)
        # Send the existing resolutions back as they are, with any fields that a newer version wrote.
        given = msgspec.json.decode(read)["spec"].get("resolutions") or []
        body: dict[str, Any] = {
            "metadata": {"resourceVersion": taskrun.metadata.resource_version, "uid": taskrun.metadata.uid},
            "spec": {"resolutions": [*given, msgspec.to_builtins(resolution)]},
        }
        path = paths.taskruns(connection.namespace, name)
        written = to_taskrun(await connection.cluster.merge_patch(path, body, fieldManager=FIELD_MANAGER))
        return Answered(
            name=name,
            namespace=connection.namespace,
            resolution=resolution,
            number=len(written.spec.resolutions),
            consequence=consequence_of(taskrun, hold, wish.action, wish.handle or "HANDLE"),
        )

    return await retry_conflicts(name, write)


# -- pure ------------------------------------------------------------------------------------------


def answer_of(taskrun: TaskRun, jobs: Sequence[JobSummary], wish: Wish) -> tuple[OpenHold, Resolution]:
    """The hold that is meant, and the answer to append. Raises `CommandError` with what must hold instead."""
    name = taskrun.metadata.name
    if taskrun.status.outcome is not None:
        raise CommandError(f"{name} is over ({taskrun.status.outcome}); nothing is held.")
    hold = _chosen(taskrun, holds_of(taskrun, jobs), wish)
    if wish.action not in ANSWERS[hold.held]:
        fitting = listed([FLAGS[action] for action in ANSWERS[hold.held]], "or")
        raise CommandError(f"{name} is held for {hold.name}, which takes {fitting}.")
    if len(taskrun.spec.resolutions) >= RESOLUTIONS_MAX:
        raise CommandError(
            f"{name} has {RESOLUTIONS_MAX} answers already, and takes no more; delete it, or let it go: "
            f"kubectl reattach release {name}."
        )
    _check_handle(jobs, hold, wish)
    return hold, Resolution(
        held=hold.held, action=wish.action, key=hold.key, generation=hold.generation, handle=wish.handle
    )


def _chosen(taskrun: TaskRun, holds: Sequence[OpenHold], wish: Wish) -> OpenHold:
    name = taskrun.metadata.name
    meant = [hold for hold in holds if wish.key in {None, hold.key} and wish.generation in {None, hold.generation}]
    waiting = [hold for hold in meant if hold.answer is None]
    if len(waiting) == 1:
        return waiting[0]
    if waiting:
        commands = "\n".join(
            f"  {command_of(taskrun, hold, wish.action)}" for hold in waiting if wish.action in ANSWERS[hold.held]
        )
        raise CommandError(
            f"{name} is held for {len(waiting)} things; say which by --key and --generation:\n{commands}"
        )
    if meant:
        answer = meant[-1].answer
        given = f"{answer.action} {answer.handle or ''}".rstrip() if answer else ""
        raise CommandError(f"{name} was answered already ({given}); the operator goes on from that.")
    if holds:
        raise CommandError(f"{name} is not held for that, but for {listed([hold.name for hold in holds])}.")
    condition = held_condition_of(taskrun.status)
    if condition is not None and condition.reason not in ANSWERS:
        raise CommandError(
            f"{name} is held for {condition.reason}, which no answer resolves; kubectl reattach explain {name} tells the way out."
        )
    raise CommandError(f"{name} is not held; nothing waits for an answer.")


def _check_handle(jobs: Sequence[JobSummary], hold: OpenHold, wish: Wish) -> None:
    handle = wish.handle
    if handle is None:
        return
    if not handle.strip() or len(handle.encode()) > HANDLE_BYTES_MAX:
        raise CommandError(
            f"A handle must have 1 to {HANDLE_BYTES_MAX} bytes; it is the job's id in the external system."
        )
    for job in jobs:
        if job.handle == handle and (job.key, job.generation) != (hold.key, hold.generation):
            raise CommandError(
                f"{handle} is the handle of {job.key}, generation {job.generation}, already; a job can't be two."
            )
