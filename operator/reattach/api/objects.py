"""The parts of Kubernetes objects that Reattach reads. Unknown JSON fields are ignored."""

from datetime import datetime
from typing import Annotated

import msgspec

from reattach.api.names import GROUP, KIND

Time = Annotated[datetime, msgspec.Meta(tz=True)]
"""A timestamp with a UTC offset. Decoding rejects one without, because they can't be compared."""
COUNT_MAX = 2**30
"""Far below the limit of int32 in the schema, so that no later increment exceeds that limit."""
Count = Annotated[int, msgspec.Meta(ge=0, le=COUNT_MAX)]
Ordinal = Annotated[int, msgspec.Meta(ge=1, le=COUNT_MAX)]


class Shape(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, kw_only=True):
    """A JSON object with camelCase field names. Absent fields have their defaults.

    Fields with default values are omitted when encoded.
    """


class OwnerReference(Shape, frozen=True):
    """The owner of an object."""

    api_version: str = msgspec.field(default="", name="apiVersion")
    kind: str = ""
    name: str = ""
    uid: str = ""
    controller: bool = False


class ObjectMeta(Shape, frozen=True):
    """The metadata that Reattach reads."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    creation_timestamp: Time | None = None
    deletion_timestamp: Time | None = None
    deletion_grace_period_seconds: int | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    finalizers: tuple[str, ...] = ()
    owner_references: tuple[OwnerReference, ...] = ()

    @property
    def taskrun_uid(self) -> str | None:
        """The UID of the controller, if it is a TaskRun of our API group, in any version.

        Other API groups have the kind TaskRun, too.
        """
        controller = next((owner for owner in self.owner_references if owner.controller), None)
        if controller is None or (controller.api_version.partition("/")[0], controller.kind) != (GROUP, KIND):
            return None
        return controller.uid


class Condition(Shape, frozen=True):
    """A `metav1.Condition`."""

    type: str
    status: str
    reason: str = ""
    message: str = ""
    last_transition_time: Time | None = None
    observed_generation: int | None = None


class PartialObject(Shape, frozen=True):
    """An object that was requested with only its metadata."""

    metadata: ObjectMeta = ObjectMeta()


class ContainerTerminated(Shape, frozen=True):
    """A container that ended. `exit_code` is 128 + n after signal n."""

    exit_code: int = 0
    signal: int = 0
    reason: str = ""
    message: str = ""
    started_at: Time | None = None
    finished_at: Time | None = None


class Waiting(Shape, frozen=True):
    """A container that has not started, and why."""

    reason: str = ""
    message: str = ""


class Running(Shape, frozen=True):
    """A container that runs."""

    started_at: Time | None = None


class ContainerState(Shape, frozen=True):
    """Exactly one of the three is set; none means waiting."""

    waiting: Waiting | None = None
    running: Running | None = None
    terminated: ContainerTerminated | None = None


class ContainerStatus(Shape, frozen=True):
    """The status of one container, from the kubelet.

    `started`: its startup probe has succeeded. `last_state`: how its last process ended, if it was
    restarted.
    """

    name: str = ""
    started: bool = False
    state: ContainerState = ContainerState()
    last_state: ContainerState = ContainerState()


class PodStatus(Shape, frozen=True):
    """The status of a pod. `observed_generation` is 0 before Kubernetes 1.34."""

    observed_generation: int = 0
    phase: str = "Pending"
    reason: str = ""
    message: str = ""
    start_time: Time | None = None
    conditions: tuple[Condition, ...] = ()
    init_container_statuses: tuple[ContainerStatus, ...] = ()
    container_statuses: tuple[ContainerStatus, ...] = ()


class Named(Shape, frozen=True):
    """An object that is read only for its name."""

    name: str = ""


class ContainerLimits(Shape, frozen=True):
    """The limits of a container that decisions need."""

    ephemeral_storage: str = msgspec.field(default="", name="ephemeral-storage")


class ContainerResources(Shape, frozen=True):
    """The resources of a container."""

    limits: ContainerLimits = ContainerLimits()


class Container(Shape, frozen=True):
    """A container of a pod."""

    name: str = ""
    resources: ContainerResources = ContainerResources()


class InitContainer(Container, frozen=True):
    """A container that starts before the others. One that restarts `Always` is a sidecar."""

    restart_policy: str = ""


class EmptyDir(Shape, frozen=True):
    """A directory that lives as long as the pod. `size_limit` is a quantity."""

    size_limit: str = ""


class Volume(Shape, frozen=True):
    """A volume of a pod."""

    empty_dir: EmptyDir | None = None


class PodSpec(Shape, frozen=True):
    """The part of a pod's spec that decisions need."""

    node_name: str = ""
    scheduling_gates: tuple[Named, ...] = ()
    init_containers: tuple[InitContainer, ...] = ()
    containers: tuple[Container, ...] = ()
    volumes: tuple[Volume, ...] = ()
    termination_grace_period_seconds: int = 30
    active_deadline_seconds: int | None = None


class Pod(Shape, frozen=True):
    """The part of a pod that decisions need."""

    metadata: ObjectMeta = ObjectMeta()
    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()
