"""What a pod shows of its attempt."""

import re
from dataclasses import dataclass
from datetime import datetime, timedelta

from reattach.api.names import pod_name
from reattach.api.objects import Condition, ContainerStatus, ContainerTerminated, ObjectMeta, Pod, Running

_NEVER_RAN = frozenset({"StartError", "ContainerCannotRun"})
"""Reasons of a container that is reported as terminated though its process could not be started."""
LOST_TRACK = frozenset({"ContainerStatusUnknown", "Unknown"})
"""Reasons of a container of which the kubelet only knows that it is no more, as after the node's restart."""
_IMAGE = frozenset(
    {
        "ErrImagePull",
        "ImagePullBackOff",
        "InvalidImageName",
        "ErrImageNeverPull",
        "ImageInspectError",
        "RegistryUnavailable",
        "SignatureValidationFailed",
    }
)
_CONFIG = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})
_ON_THE_WAY = frozenset({"", "ContainerCreating", "PodInitializing"})
_GATED = "SchedulingGated"
_UNIX_EPOCH_YEAR = 1970
CLOCKS_DIFFER = timedelta(seconds=15)
"""How much later than an end by its node's clock a stop by another machine's must be, to have come after it. Taking an eviction for the
task's own failure costs the run, taking a failure for an eviction costs one of many retries.
"""


@dataclass(frozen=True, slots=True)
class PodProblem:
    """Why a pod does not get to run. `what` is the same sentence as long as the trouble is; `detail` may vary."""

    reason: str
    what: str
    detail: str

    @property
    def message(self) -> str:
        return f"{self.what}: {self.detail}" if self.detail else f"{self.what}."


def attempt_number(pod: Pod, taskrun: ObjectMeta) -> int | None:
    """Which attempt the pod is, by its name, which unlike a label can't be changed; None if it is none of ours."""
    found = re.search(r"-([1-9][0-9]{0,8})$", pod.metadata.name, re.ASCII)
    if found is None or pod.metadata.name != pod_name(taskrun.name, taskrun.uid, int(found[1])):
        return None
    return int(found[1])


def is_over(pod: Pod) -> bool:
    """Whether no container of it runs any more or will: it ended, or was deleted before a node had it."""
    return pod.status.phase in {"Succeeded", "Failed"} or (
        pod.metadata.deletion_timestamp is not None and not pod.spec.node_name
    )


def lost_at(pod: Pod, lost_seconds: int) -> datetime | None:
    """When its end is presumed, if its node says nothing until then; None if nobody has asked it to go."""
    asked = pod.metadata.deletion_timestamp
    return None if asked is None else asked + timedelta(seconds=lost_seconds)


def is_gated(pod: Pod) -> bool:
    """Whether somebody still keeps it from being scheduled (Kueue, for one)."""
    return bool(pod.spec.scheduling_gates)


def status_of(pod: Pod, container: str) -> ContainerStatus | None:
    """What is reported of one container."""
    return next((status for status in pod.status.container_statuses if status.name == container), None)


def terminated_of(pod: Pod, container: str) -> ContainerTerminated | None:
    """How a container ended, if it did."""
    status = status_of(pod, container)
    return status.state.terminated if status else None


def running_of(pod: Pod, container: str) -> Running | None:
    """Since when a container runs, if it does."""
    status = status_of(pod, container)
    return status.state.running if status else None


def others_go_on(pod: Pod, container: str) -> bool:
    """Whether a container beside the task's keeps the pod alive. Sidecars among the init containers don't: the kubelet ends them."""
    return any(status.state.terminated is None for status in pod.status.container_statuses if status.name != container)


def has_run(pod: Pod, container: str) -> bool:
    """Whether the container's process is known to have run."""
    status = status_of(pod, container)
    if status is None:
        return pod.status.phase == "Succeeded"
    if status.state.running is not None:
        return True
    ended = status.state.terminated
    if ended is None or ended.reason in _NEVER_RAN:
        return False
    return ended.reason not in LOST_TRACK or is_real(ended.started_at)


def is_real(time: datetime | None) -> bool:
    """Whether a time is one: runtimes report the year 1 or 1970 for what they don't know."""
    return time is not None and time.year > _UNIX_EPOCH_YEAR


def failed_init_of(pod: Pod) -> tuple[str, ContainerTerminated] | None:
    """The init container that ended the pod by its own failure, and how."""
    sidecars = {init.name for init in pod.spec.init_containers if init.restart_policy == "Always"}
    for status in pod.status.init_container_statuses:
        ended = status.state.terminated
        if status.name in sidecars or ended is None or ended.exit_code == 0 or ended.reason in _NEVER_RAN | LOST_TRACK:
            continue
        if ended_by_itself(pod, ended):
            return status.name, ended
    return None


def ended_by_itself(pod: Pod, ended: ContainerTerminated) -> bool:
    """Whether a container ended before somebody stopped its pod. What can't be told goes to whoever stopped it.

    The end is by its node's clock, the stop by another machine's, and both are cut to seconds; so nothing is told by a few of them.
    """
    stopped: list[datetime | None] = []
    if pod.metadata.deletion_timestamp is not None and not _was_over_when_deleted(pod):
        # What is stored is the end of the grace period, so whoever asked did so at its start. When the kubelet is done, it deletes once more,
        # without grace: that overwrites the grace period, and moves its end to then if it was later.
        grace = pod.metadata.deletion_grace_period_seconds or pod.spec.termination_grace_period_seconds
        stopped.append(pod.metadata.deletion_timestamp - timedelta(seconds=grace))
    if target := disruption_target_of(pod):
        stopped.append(target.last_transition_time)
    at = ended.finished_at
    return all(at is not None and is_real(at) and time is not None and at + CLOCKS_DIFFER < time for time in stopped)


def _was_over_when_deleted(pod: Pod) -> bool:
    """Whether the kubelet's last word, that the pod is over, is of before its deletion, which makes a new generation of it."""
    return pod.status.phase in {"Succeeded", "Failed"} and 0 < pod.status.observed_generation < pod.metadata.generation


def disruption_target_of(pod: Pod) -> Condition | None:
    """The condition by which Kubernetes says that it ends the pod for reasons of its own."""
    found = condition_of(pod.status.conditions, "DisruptionTarget")
    return found if found and found.status == "True" else None


def condition_of(conditions: tuple[Condition, ...], kind: str) -> Condition | None:
    return next((condition for condition in conditions if condition.type == kind), None)


def pending_since(pod: Pod, counted_from: datetime | None, now: datetime) -> datetime | None:
    """Since when a pod that has no gates (any more) has been trying to start its container; None while the clock stands still.

    `counted_from`: when its scheduling gates were seen to be gone. An init container that runs is no waiting, so the clock starts anew
    when it has ended.
    """
    sidecars = {init.name for init in pod.spec.init_containers if init.restart_policy == "Always"}
    since = counted_from or pod.metadata.creation_timestamp or now
    for status in pod.status.init_container_statuses:
        if status.name in sidecars:
            continue
        if status.state.running is not None:
            return None
        ended = status.state.terminated
        if ended is not None and ended.finished_at is not None:
            since = max(since, ended.finished_at)
    return since


def trouble_of(pod: Pod, container: str) -> PodProblem | None:
    """What keeps the pod from starting, if it is more than that it takes time."""
    scheduled = condition_of(pod.status.conditions, "PodScheduled")
    if scheduled is not None and scheduled.status == "False" and scheduled.reason not in {"", _GATED}:
        what = "No node can take the pod" if scheduled.reason == "Unschedulable" else "The pod can't be scheduled"
        return PodProblem(scheduled.reason, what, scheduled.message)
    first = sorted(pod.status.container_statuses, key=lambda status: status.name != container)
    for status in (*pod.status.init_container_statuses, *first):
        waiting = status.state.waiting
        if waiting is not None and waiting.reason not in _ON_THE_WAY:
            return PodProblem(waiting.reason, _what_of(waiting.reason, status.name), waiting.message)
    return None


def _what_of(reason: str, container: str) -> str:
    # The same for reasons that take turns (ErrImagePull, ImagePullBackOff), so that the sentence stays.
    if reason in _IMAGE:
        return f"The image of container {container} can't be pulled"
    if reason in _CONFIG:
        return f"Container {container} can't be created"
    return f"Container {container} waits ({reason})"
