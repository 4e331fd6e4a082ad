"""Input and output of a decision.

    decide(observed, defaults, now) -> Plan(status, actions, requeue_at) | Need

The reconciler observes and calls `decide`. It meets a `Need` and decides again. It carries out a
`Plan`: write `status` if it is not None, carry out `actions` in order, and reconcile again when
something changes or at `requeue_at`. It may crash between any two of these: each can be repeated.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TypeAlias

from reattach.api.objects import Pod
from reattach.api.orphans import OrphanRecord
from reattach.api.state import SealPurpose, StateView, Summary
from reattach.api.taskrun import AttemptPurpose, TaskRun, TaskRunStatus


@dataclass(frozen=True, slots=True)
class PodDefaults:
    """Values that the installation sets in every pod.

    `url`: of the state API. `ca`: the PEM bundle that verifies its certificate. `address`: IP
    address of the host in `url`, for pods that can't resolve its name; empty if it is unknown.
    """

    url: str
    ca: str
    address: str = ""


# Input


class PodRejectionKind(StrEnum):
    """Cause of a rejected pod creation."""

    INVALID = "Invalid"
    """400 or 422, also for the template alone: it can never become a pod (an unknown field)."""
    QUOTA = "Quota"
    """403 by a ResourceQuota: may succeed later."""
    FORBIDDEN = "Forbidden"
    """Admission otherwise: Pod Security, a policy, a terminating namespace.

    Also a valid template from which a LimitRange or a webhook makes an invalid pod.
    """
    NAME_TAKEN = "NameTaken"
    """409: an object of that name exists and is not the expected pod."""
    ERROR = "Error"
    """An admission webhook or the API server failed; the operator retries."""


@dataclass(frozen=True, slots=True)
class PodRejection:
    """Last rejected creation of this TaskRun's next pod, kept until a creation succeeds.

    `attempt`: the attempt whose pod was rejected. `message`: the API server's message.
    `retry_at`: the time of the next creation. `excess_pods`: how many pods less the quota needs; 0
    unless it counts also pods that have ended, and only their number exceeds it.
    """

    kind: PodRejectionKind
    attempt: int
    message: str
    retry_at: datetime
    excess_pods: int = 0


@dataclass(frozen=True, slots=True)
class AbsentState:
    """Result of a read that found no ConfigMap of the expected name and owner."""


@dataclass(frozen=True, slots=True)
class UnreadableState:
    """Result of a read that found a ConfigMap of an unknown format, or a damaged one.

    No decision may be based on the content of such a ConfigMap.
    """

    message: str


@dataclass(frozen=True, slots=True)
class PodEvent:
    """A Warning event about a pod, as printable text."""

    reason: str
    note: str


@dataclass(frozen=True, slots=True)
class PodEvents:
    """Result of a read of the Warning events about a pod.

    `newest`: None if no event is known. `again_at`: when a read may return
    another event; None if this installation can't read events.
    """

    newest: PodEvent | None = None
    again_at: datetime | None = None


_CLOCK_SKEW = timedelta(seconds=15)


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """Facts about the Node of a name: whether pods that were on it have ended for certain.

    `created`: when the Node was created; None if it does not exist, or could not be read now.
    `out_of_service`: it is not ready, and has the taint `node.kubernetes.io/out-of-service`.
    `deletion_counts`: the Node could be read, and this installation deletes a Node only after its
    machine is off.
    """

    created: datetime | None = None
    out_of_service: bool = False
    deletion_counts: bool = False

    def evidence_against(self, node: str, ended: datetime) -> str | None:
        """Return a sentence with the evidence that a pod on this Node has ended, if there is any.

        `ended`: when the pod was deleted, or its end was presumed. A Node that was created later is
        not the one on which the pod ran.
        """
        if self.created is None or self.created > ended + _CLOCK_SKEW:
            return f"Node {node} was deleted, so no container runs on it." if self.deletion_counts else None
        if not self.out_of_service:
            return None
        return f"Node {node} has the taint node.kubernetes.io/out-of-service, so no container runs on it."


@dataclass(frozen=True, slots=True)
class Observed:
    """All inputs of a decision except defaults and time.

    `pods`: every pod whose controller is this TaskRun, from the watch or from our own writes.
    `summary`: the state's summary from the watch (None: no ConfigMap seen). It may be stale, so it
    only leads to a read. Its `completed_attempt` is final once it is set.
    `state`: the result of reading the state in this pass; None if it was not read (`ReadState`).
    `namespace_ends`: the namespace is being deleted, so no user can resolve a hold any more. It is
    looked up only for a TaskRun that is being deleted and carries our finalizer.
    `paused`: the installation creates no pods.
    `predecessors`: names of the ConfigMaps with the orphaned jobs of earlier TaskRuns of this name.
    `has_record`: a record lists the external jobs that this TaskRun left running. It is looked up
    only once status names such a job.
    `copy_problem`: why the state can't be copied (`CopyState`), as a sentence about what must hold;
    None if that was not tried in this pass, or succeeded.
    `nodes`: facts about the nodes that were read (`ReadNodes`). A node without facts can't be read,
    because the installation does not allow it.
    `evictions`: message of the kubelet's event, by the UID of each pod that was looked up
    (`ReadEvictions`). It is None without an event, or without the right to read events.
    `events`: the events about the pod of the current attempt; None if they were not read in this
    pass (`ReadEvents`).
    """

    taskrun: TaskRun
    pods: tuple[Pod, ...] = ()
    summary: Summary | None = None
    state: StateView | AbsentState | UnreadableState | None = None
    rejection: PodRejection | None = None
    namespace_ends: bool = False
    paused: bool = False
    predecessors: tuple[str, ...] = ()
    has_record: bool = True
    copy_problem: str | None = None
    nodes: Mapping[str, NodeFacts | None] = field(default_factory=dict)
    evictions: Mapping[str, str | None] = field(default_factory=dict)
    events: PodEvents | None = None


# Output: needs


@dataclass(frozen=True, slots=True)
class ReadState:
    """Read the state ConfigMap itself (a quorum read) and decide again with it."""


@dataclass(frozen=True, slots=True)
class SealState:
    """Seal the state, read it, and decide again with it.

    Once the state is sealed, no attempt up to `through_attempt` opens it or stores an intent.
    """

    through_attempt: int
    purpose: SealPurpose


@dataclass(frozen=True, slots=True)
class CopyState:
    """Create the state with the keys of a finished TaskRun, read it, and decide again with it.

    A state that exists stays as it is. `source`: name of the other TaskRun.
    """

    source: str


@dataclass(frozen=True, slots=True)
class ReadNodes:
    """Read these Nodes, and decide again with the facts."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ReadEvictions:
    """Read the events about evictions of the pods with these UIDs, and decide again with them."""

    pods: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ReadEvents:
    """Read the events about a pod that takes long to start, and decide again with them."""

    pod: Pod


@dataclass(frozen=True, slots=True)
class EndHolds:
    """End the holds of these jobs in the state, read the state, and decide again with it.

    Evidence has come that each process that may have submitted them has ended. `jobs`: key and
    generation.
    """

    jobs: tuple[tuple[str, int], ...]


Need: TypeAlias = ReadState | SealState | CopyState | ReadNodes | ReadEvictions | ReadEvents | EndHolds
"""Precondition of a decision. The reconciler meets it, then decides again."""


# Output: actions


@dataclass(frozen=True, slots=True)
class CreatePod:
    """Create the pod of `attempt`.

    An existing pod of that name counts as created if controller UID and template hash match.
    `quota_size`: equal for pods for which a ResourceQuota has room or not alike. `body`: JSON.
    """

    attempt: int
    name: str
    template_hash: str
    quota_size: str
    body: bytes
    purpose: AttemptPurpose = AttemptPurpose.RUN


@dataclass(frozen=True, slots=True)
class DeletePod:
    """Delete the pod with a precondition on its UID; an absent pod counts as deleted.

    `makes_room`: the pod has ended and was kept, and is deleted only so that a quota has room.
    """

    name: str
    uid: str
    makes_room: bool = False


@dataclass(frozen=True, slots=True)
class StopPod:
    """Let the kubelet end the pod now, with a precondition on its UID, and keep the pod.

    `time`: recorded on the pod. An absent pod counts as stopped.
    """

    name: str
    uid: str
    time: datetime


@dataclass(frozen=True, slots=True)
class ReleasePod:
    """Remove our finalizer from the pod; an absent pod counts as released.

    A pod that is not kept (`retention.is_kept`) is deleted before.
    """

    pod: Pod


@dataclass(frozen=True, slots=True)
class ReleaseState:
    """Remove our finalizer from the state ConfigMap; an absent one counts as released."""

    name: str


@dataclass(frozen=True, slots=True)
class ProtectTaskRun:
    """Add our finalizer to the TaskRun, so that it is still there for a cleanup when it is deleted.

    An absent TaskRun, and one that is being deleted, count as done.
    """


@dataclass(frozen=True, slots=True)
class ReleaseTaskRun:
    """Remove our finalizer from the TaskRun, with a precondition on its resourceVersion.

    The planner returns this only if each open external job is named in status. `orphans`: stored
    in a ConfigMap of its own before the finalizer is removed; None if no job is orphaned.
    """

    orphans: OrphanRecord | None = None


@dataclass(frozen=True, slots=True)
class EmitEvent:
    """Emit an Event on the TaskRun. `warning` selects its type; `note` has at most 1 KiB."""

    reason: str
    note: str
    warning: bool = False


Action: TypeAlias = (
    CreatePod | DeletePod | StopPod | ReleasePod | ReleaseState | ProtectTaskRun | ReleaseTaskRun | EmitEvent
)


@dataclass(frozen=True, slots=True)
class Plan:
    """Result of a decision.

    `status`: the complete new status, written before any action; None if it does not change.
    `requeue_at`: when to reconcile again if nothing changes before.
    `write_by`: set if `status` only shows that an attempt runs or is pending. Other work may go
    first until this time, and a run that ends meanwhile saves the write.
    """

    status: TaskRunStatus | None = None
    actions: tuple[Action, ...] = ()
    requeue_at: datetime | None = None
    write_by: datetime | None = None


Decision: TypeAlias = Plan | Need
