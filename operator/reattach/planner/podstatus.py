"""Facts about an attempt that are read from its pod."""

import re
from dataclasses import dataclass
from datetime import datetime, timedelta

from reattach.api.names import ANNOTATION_STOP_TIME, LABEL_PURPOSE, pod_name
from reattach.api.objects import Condition, ContainerStatus, ContainerTerminated, ObjectMeta, Pod, Running
from reattach.api.taskrun import AttemptPurpose
from reattach.planner import textformat
from reattach.planner.conditions import find_condition
from reattach.planner.plan import PodEvent

_NEVER_RAN = frozenset({"StartError", "ContainerCannotRun"})
"""Reasons of a container that is reported as terminated although its process never started."""
LOST_TRACK = frozenset({"ContainerStatusUnknown", "Unknown"})
"""Reasons of a container whose end the kubelet did not observe, as after a node restart."""
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
_STARTING = frozenset({"", "ContainerCreating", "PodInitializing"})
_GATED = "SchedulingGated"
SLOW = "PendingTooLong"
"""Reason of an attempt whose pod reported no problem until its deadline."""
_TARGETS = ("DisruptionTarget", "TerminationTarget")
"""Conditions of a pod that Kubernetes or Kueue (the second one) stops."""
_COLLECTED = "DeletionByPodGC"
"""Reason of the condition DisruptionTarget that the pod garbage collector sets."""
_STOPPED_BY_KUBELET = "TerminationByKubelet"
"""Reason of the condition DisruptionTarget that the kubelet sets.

The kubelet sets the time of this condition after all containers have ended, when it sends the
status. The time does not show when the stop began.
"""
_SHUTDOWN = "Terminated"
"""Reason in the status of a pod that the kubelet stops for the shutdown of its node."""
_NODE_LOST = "NodeLost"
"""Reason that the control plane, not the kubelet, sets in the status of a pod."""
_POD_FAILED = "PodFailed"
"""Reason of the condition Ready that the kubelet sets with the phase Failed."""
_UNIX_EPOCH_YEAR = 1970
_GRACE_SECONDS_MAX = 2**31
"""The API server accepts any int64 as a grace period."""
CLOCK_SKEW = timedelta(seconds=15)
"""Clock skew allowed between machines.

A deletion counts as later than the container's exit only if it is later by more than this.
Ambiguous cases count as an eviction, because that costs one retry and not the run.
"""


@dataclass(frozen=True, slots=True)
class PodProblem:
    """Problem that keeps a pod from starting.

    `summary`: the same sentence as long as the problem lasts. `detail`: may change meanwhile.
    """

    reason: str
    summary: str
    detail: str

    @property
    def message(self) -> str:
        """Return summary and detail as one sentence."""
        return f"{self.summary}: {self.detail}" if self.detail else f"{self.summary}."


def attempt_number(pod: Pod, taskrun: ObjectMeta) -> int | None:
    """Return the attempt of the pod by its name; None if the pod is not ours.

    A name, unlike a label, can't be changed.
    """
    found = re.search(r"-([1-9][0-9]{0,8})$", pod.metadata.name, re.ASCII)
    if found is None or pod.metadata.name != pod_name(taskrun.name, taskrun.uid, int(found[1])):
        return None
    return int(found[1])


def purpose_of(pod: Pod) -> AttemptPurpose:
    """Return the purpose of the pod's attempt. Only Reattach sets this label."""
    is_cleanup = pod.metadata.labels.get(LABEL_PURPOSE) == AttemptPurpose.CLEANUP
    return AttemptPurpose.CLEANUP if is_cleanup else AttemptPurpose.RUN


def is_terminal(pod: Pod) -> bool:
    """Return whether no container runs or will run: the pod ended, or was deleted unscheduled."""
    return pod.status.phase in {"Succeeded", "Failed"} or (
        pod.metadata.deletion_timestamp is not None and not pod.spec.node_name
    )


def is_end_reported(pod: Pod, container: str) -> bool:
    """Return whether the kubelet reported that the container ended, or that it never started.

    The pod garbage collector sets the phase Failed for a node that does not respond, on which the
    container may still run.
    """
    if (terminated := terminated_of(pod, container)) is not None:
        # A kubelet that lost track of a container reports it as terminated, but it may still run.
        return terminated.reason not in LOST_TRACK
    if not is_terminal(pod) or running_of(pod, container) is not None:
        return False
    return not pod.spec.node_name or pod.status.phase == "Succeeded" or _is_failed_by_kubelet(pod)


def _is_failed_by_kubelet(pod: Pod) -> bool:
    """Return whether the kubelet set the phase Failed of a pod whose container never ran."""
    ready = find_condition(pod.status.conditions, "Ready")
    if any(target.reason == _COLLECTED for target in _targets_of(pod)):
        return False
    has_reason = pod.status.reason not in {"", _NODE_LOST}
    # After init containers that succeeded, the kubelet may still start the task's container.
    ended = (status.state.terminated for status in pod.status.init_container_statuses)
    has_failed_init = any(one is not None and one.exit_code != 0 for one in ended)
    return has_reason or has_failed_init or (ready is not None and ready.reason == _POD_FAILED)


def is_forced(pod: Pod) -> bool:
    """Return whether the pod was deleted without a grace period, so no report is awaited."""
    return pod.metadata.deletion_timestamp is not None and not pod.metadata.deletion_grace_period_seconds


def lost_at(pod: Pod, lost_seconds: int) -> datetime | None:
    """Return when the pod's end is presumed if its node reports nothing.

    The time counts from the end of the grace period. The result is None if the pod was neither
    deleted nor stopped.
    """
    stopped = stop_time_of(pod)
    ends = (pod.metadata.deletion_timestamp, None if stopped is None else stopped + grace_of(pod))
    end = min((time for time in ends if time is not None), default=None)
    return None if end is None else end + timedelta(seconds=lost_seconds)


def stop_time_of(pod: Pod) -> datetime | None:
    """Return when the operator stopped the other containers of an ended attempt; None: not yet."""
    try:
        time = datetime.fromisoformat(pod.metadata.annotations.get(ANNOTATION_STOP_TIME, ""))
    except ValueError:
        return None
    return time if time.tzinfo is not None else None


def grace_of(pod: Pod) -> timedelta:
    """Return the time that the containers get to end."""
    return _grace(pod.spec.termination_grace_period_seconds)


def _grace(seconds: int) -> timedelta:
    """Return a grace period, cut to a length that can be added to any time of this century."""
    return timedelta(seconds=min(seconds, _GRACE_SECONDS_MAX))


def is_gated(pod: Pod) -> bool:
    """Return whether scheduling gates keep the pod from being scheduled, for example Kueue's."""
    return bool(pod.spec.scheduling_gates)


def status_of(pod: Pod, container: str) -> ContainerStatus | None:
    """Return the status of one container."""
    return next((status for status in pod.status.container_statuses if status.name == container), None)


def terminated_of(pod: Pod, container: str) -> ContainerTerminated | None:
    """Return how a container ended; None if it did not."""
    status = status_of(pod, container)
    return status.state.terminated if status else None


def running_of(pod: Pod, container: str) -> Running | None:
    """Return the running state of a container; None if it does not run."""
    status = status_of(pod, container)
    return status.state.running if status else None


def other_containers_running(pod: Pod, container: str) -> bool:
    """Return whether a container other than the task's keeps the pod running.

    Sidecars among the init containers do not: the kubelet ends them.
    """
    return any(status.state.terminated is None for status in pod.status.container_statuses if status.name != container)


def exited_zero(pod: Pod, container: str) -> bool:
    """Return whether the kubelet reported that the container exited with 0."""
    ended = terminated_of(pod, container)
    if ended is None:
        return pod.status.phase == "Succeeded"
    return ended.exit_code == 0 and ended.reason not in LOST_TRACK


def has_run(pod: Pod, container: str) -> bool:
    """Return whether the container's process is known to have run."""
    status = status_of(pod, container)
    if status is None:
        return pod.status.phase == "Succeeded"
    if status.state.running is not None:
        return True
    ended = status.state.terminated
    if ended is None or ended.reason in _NEVER_RAN:
        return False
    return ended.reason not in LOST_TRACK or is_known_time(ended.started_at)


def is_known_time(time: datetime | None) -> bool:
    """Return whether the time is known: runtimes report the year 1 or 1970 for unknown times."""
    return time is not None and time.year > _UNIX_EPOCH_YEAR


def failed_init_of(pod: Pod) -> tuple[str, ContainerTerminated] | None:
    """Return the init container whose failure ended the pod, and how it ended."""
    sidecars = _sidecars_of(pod)
    for status in pod.status.init_container_statuses:
        ended = status.state.terminated
        if status.name in sidecars or ended is None or ended.exit_code == 0 or ended.reason in _NEVER_RAN | LOST_TRACK:
            continue
        if exited_before_deletion(pod, ended):
            return status.name, ended
    return None


def exited_before_deletion(pod: Pod, ended: ContainerTerminated) -> bool:
    """Return whether the container exited before its pod was deleted or disrupted.

    Ambiguous cases count as deleted first: the two timestamps come from different clocks and have
    one-second resolution.
    """
    stopped: list[datetime | None] = []
    if pod.metadata.deletion_timestamp is not None and not _was_terminal_when_deleted(pod):
        # The stored time is the end of the grace period; the deletion was requested at its start.
        # At the end the kubelet deletes the pod again without grace. This overwrites the grace
        # period, and moves its end to that time if that is earlier.
        grace = pod.metadata.deletion_grace_period_seconds or pod.spec.termination_grace_period_seconds
        stopped.append(pod.metadata.deletion_timestamp - _grace(grace))
    for target in _targets_of(pod):
        if target.reason != _STOPPED_BY_KUBELET:
            stopped.append(target.last_transition_time)
        elif not _had_succeeded_at_shutdown(pod):
            return False
    at = ended.finished_at
    return all(at is not None and is_known_time(at) and time is not None and at + CLOCK_SKEW < time for time in stopped)


def _was_terminal_when_deleted(pod: Pod) -> bool:
    """Return whether the kubelet reported the terminal phase before the pod was deleted.

    The deletion increments `metadata.generation`.
    """
    return pod.status.phase in {"Succeeded", "Failed"} and 0 < pod.status.observed_generation < pod.metadata.generation


def exited_before_deadline(pod: Pod, ended: ContainerTerminated) -> bool:
    """Return whether the container exited before its pod's `activeDeadlineSeconds` had passed.

    Both times come from the clock of the node.
    """
    start, seconds = pod.status.start_time, pod.spec.active_deadline_seconds
    if start is None or seconds is None or ended.finished_at is None or not is_known_time(ended.finished_at):
        return False
    return ended.finished_at < start + timedelta(seconds=seconds)


def _had_succeeded_at_shutdown(pod: Pod) -> bool:
    """Return whether all containers had exited with 0 before the shutdown of the node stopped them.

    The kubelet sets the phase Failed with its reason when it begins to stop a pod, unless the pod
    has succeeded. If the containers then exit with 0, it drops that reason with the phase.
    """
    return pod.status.phase == "Succeeded" and pod.status.reason == _SHUTDOWN


def has_storage_limit(pod: Pod) -> bool:
    """Return whether the kubelet evicts the pod if it stores more than its own limits allow."""
    limits = (one.resources.limits.ephemeral_storage for one in (*pod.spec.init_containers, *pod.spec.containers))
    sizes = (volume.empty_dir.size_limit for volume in pod.spec.volumes if volume.empty_dir is not None)
    return any(limits) or any(sizes)


def disruption_target_of(pod: Pod) -> Condition | None:
    """Return the condition that Kubernetes or Kueue sets when it stops the pod."""
    return next(iter(_targets_of(pod)), None)


def _targets_of(pod: Pod) -> tuple[Condition, ...]:
    found = (find_condition(pod.status.conditions, kind) for kind in _TARGETS)
    return tuple(one for one in found if one is not None and one.status == "True")


def pending_since(pod: Pod, counted_from: datetime | None, now: datetime) -> datetime | None:
    """Return when a pod without scheduling gates began to wait for its container.

    The result is None while an init container runs, because its end restarts the clock.
    `counted_from`: when the scheduling gates were seen to be gone.
    """
    sidecars = _sidecars_of(pod)
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


def problem_of(pod: Pod, container: str) -> PodProblem | None:
    """Return the problem that keeps the pod from starting; None if it only takes time."""
    scheduled = find_condition(pod.status.conditions, "PodScheduled")
    if scheduled is not None and scheduled.status == "False" and scheduled.reason not in {"", _GATED}:
        summary = "No node can take the pod" if scheduled.reason == "Unschedulable" else "The pod can't be scheduled"
        return PodProblem(scheduled.reason, summary, scheduled.message)
    first = sorted(pod.status.container_statuses, key=lambda status: status.name != container)
    sidecars = frozenset() if is_terminal(pod) else _sidecars_of(pod)
    for status in (*pod.status.init_container_statuses, *first):
        if status.name in sidecars and (problem := _crash_of(status)) is not None:
            return problem
        waiting = status.state.waiting
        if waiting is not None and waiting.reason not in _STARTING:
            return PodProblem(waiting.reason, _describe(waiting.reason, status.name), waiting.message)
    return None


def _sidecars_of(pod: Pod) -> frozenset[str]:
    return frozenset(init.name for init in pod.spec.init_containers if init.restart_policy == "Always")


def _crash_of(sidecar: ContainerStatus) -> PodProblem | None:
    """Return the end of a sidecar that has not become ready; None if it never ended.

    The kubelet restarts the sidecar again and again, so its current state changes all the time.
    """
    ended = sidecar.state.terminated or sidecar.last_state.terminated
    if sidecar.started or ended is None:
        return None
    summary = f"Sidecar {sidecar.name} ended before it was ready, and is restarted"
    line = textformat.last_line_first(ended.message)
    return PodProblem("SidecarCrashed", summary, f"exit code {ended.exit_code}{f', {line}' if line else ''}")


def delay_of(pod: Pod, event: PodEvent | None) -> PodProblem | None:
    """Return the reason why a pod without a reported problem takes long; None if nothing shows it.

    `event`: the newest warning about the pod. Any user who may create Events can write one, so it
    is only shown: its reason never becomes the reason of an attempt's end.
    """
    note = event.note if event is not None else ""
    sidecars = _sidecars_of(pod)
    for status in pod.status.init_container_statuses:
        if status.name in sidecars and status.state.running is not None and not status.started:
            return PodProblem(SLOW, f"Sidecar {status.name} runs, but its startup probe has not succeeded", note)
    return None if event is None else PodProblem(SLOW, f"The pod has not started ({event.reason})", note)


def _describe(reason: str, container: str) -> str:
    # The same for alternating reasons (ErrImagePull, ImagePullBackOff), so that the summary is
    # stable.
    if reason in _IMAGE:
        return f"The image of container {container} can't be pulled"
    if reason in _CONFIG:
        return f"Container {container} can't be created"
    return f"Container {container} waits ({reason})"
