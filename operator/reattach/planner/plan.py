"""What goes into a decision and what comes out of it.

    decide(observed, settings, now) -> Plan(status, actions, look_again_at)

The controller observes, calls `decide`, writes `status` if it is not None, carries out `actions` in order, and looks again when
something changes or `look_again_at` comes. It may die between any two of these; every action can be repeated.
"""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from reattach.api.objects import Pod
from reattach.api.state import SealPurpose, StateView, Summary
from reattach.api.taskrun import TaskRun, TaskRunStatus


@dataclass(frozen=True, slots=True)
class PodDefaults:
    """What the installation fixes for every pod: where the state API is, and the PEM bundle that its certificate is checked with."""

    url: str
    ca: str


class PodRejectionKind(StrEnum):
    """Why the API server did not make a pod."""

    INVALID = "Invalid"
    """400 or 422: no pod can ever be made from this template (an unknown field, a wrong value)."""
    QUOTA = "Quota"
    """403 by a ResourceQuota: may be made later."""
    FORBIDDEN = "Forbidden"
    """403 otherwise: Pod Security, an admission policy, a terminating namespace."""
    NAME_TAKEN = "NameTaken"
    """409: an object of that name exists and is not the pod we meant."""
    ERROR = "Error"
    """An admission webhook or the API server failed; asked again."""


@dataclass(frozen=True, slots=True)
class PodRejection:
    """The API server's last answer to the creation of this TaskRun's next pod, kept until it succeeds.

    `message` is the server's sentence; `attempt` the attempt whose pod was refused; `retry_at` when to ask again.
    """

    kind: PodRejectionKind
    attempt: int
    message: str
    retry_at: datetime


@dataclass(frozen=True, slots=True)
class AbsentState:
    """The state was asked for just now, and no ConfigMap of the expected name and owner is there."""


@dataclass(frozen=True, slots=True)
class UnreadableState:
    """The ConfigMap is there, but its format is unknown or it is damaged: nothing may be concluded from it."""

    message: str


@dataclass(frozen=True, slots=True)
class Observed:
    """All that a decision rests on.

    `pods`: every pod whose controller is this TaskRun's UID, as the watch last said or as our own write answered.
    `summary`: the state's summary as the watch last said (None: no ConfigMap seen). It may be old: it only wakes, except that
    `completed_attempt`, once there, is final.
    `state`: what reading the state itself gave, in this very pass; None if it was not read. `decide` asks for it by `ReadState`.
    `namespace_ends`: whether the namespace is being deleted, so that nobody is left who could be waited for. Looked up for a TaskRun
    that is being deleted and not let go of yet.
    """

    taskrun: TaskRun
    pods: tuple[Pod, ...] = ()
    summary: Summary | None = None
    state: StateView | AbsentState | UnreadableState | None = None
    refusal: PodRejection | None = None
    namespace_ends: bool = False


@dataclass(frozen=True, slots=True)
class ReadState:
    """Read the state ConfigMap itself (a quorum read) and decide again with it. Comes alone."""


@dataclass(frozen=True, slots=True)
class SealState:
    """Seal the state, so that no attempt up to this one opens it or stores an intent; then read it and decide again. Comes alone."""

    through_attempt: int
    purpose: SealPurpose


@dataclass(frozen=True, slots=True)
class CreatePod:
    """Create the pod of `attempt`. A pod of that name with our controller UID, labels and template hash is success."""

    attempt: int
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class DeletePod:
    """Delete the pod under a precondition on its UID; absence is success."""

    name: str
    uid: str


@dataclass(frozen=True, slots=True)
class ReleasePod:
    """Take our finalizer off the pod, under a precondition on its resourceVersion; absence is success."""

    pod: Pod


@dataclass(frozen=True, slots=True)
class ReleaseState:
    """Take our finalizer off the state ConfigMap; absence is success."""

    name: str


@dataclass(frozen=True, slots=True)
class ReleaseTaskRun:
    """Take our finalizer off the TaskRun, under a precondition on its resourceVersion: no external job of it is open and not named."""


@dataclass(frozen=True, slots=True)
class EmitEvent:
    """Tell people, by an Event on the TaskRun. `warning` decides its type; `note` at most 1 KiB."""

    reason: str
    note: str
    warning: bool = False


Action = ReadState | SealState | CreatePod | DeletePod | ReleasePod | ReleaseState | ReleaseTaskRun | EmitEvent


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do. `status` is the whole new status, None if it stays as it is; it is written before any action."""

    status: TaskRunStatus | None = None
    actions: tuple[Action, ...] = ()
    look_again_at: datetime | None = None
