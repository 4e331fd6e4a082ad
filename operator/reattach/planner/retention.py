"""Pods of ended attempts: which are kept for their logs, and how those that still run are stopped.

The policy and the name of the task's container are annotations of the pod. So the decision is the
same after the TaskRun has left the cache. A pod without them is kept.
"""

from datetime import datetime, timedelta

from reattach.api.names import ANNOTATION_CONTAINER, ANNOTATION_POD_RETENTION
from reattach.api.objects import Pod
from reattach.api.taskrun import TaskRunSpec
from reattach.planner import podstatus
from reattach.planner.plan import DeletePod, StopPod

_DELETE_AFTER = timedelta(seconds=60)
"""Time after the grace period in which the kubelet must have ended a stopped pod."""


def annotations_of(spec: TaskRunSpec, container: str) -> dict[str, str]:
    """Return the annotations of a new pod that `is_kept` reads: none if all pods are kept."""
    if spec.pod_retention == "All":
        return {}
    return {ANNOTATION_POD_RETENTION: spec.pod_retention, ANNOTATION_CONTAINER: container}


def is_kept(pod: Pod) -> bool:
    """Return whether the pod is kept after its attempt's end is recorded."""
    policy = pod.metadata.annotations.get(ANNOTATION_POD_RETENTION)
    if policy == "Failed":
        return not podstatus.exited_zero(pod, pod.metadata.annotations.get(ANNOTATION_CONTAINER, ""))
    return policy != "None"


def stop_of(pod: Pod, container: str, now: datetime, *, is_late: bool) -> StopPod | DeletePod | None:
    """Return how to stop what still runs in the pod of a recorded attempt; None: nothing to do now.

    A deleted pod is gone with its log once it has ended. So a pod that is kept gets a deadline
    instead, and is deleted only if the kubelet does not enforce that. `is_late`: nothing waits
    for the pod, so it must be deleted at once.
    """
    metadata = pod.metadata
    if podstatus.is_terminal(pod) or metadata.deletion_timestamp is not None:
        return None
    has_ended = podstatus.terminated_of(pod, container) is not None
    if is_late or not has_ended or not is_kept(pod):
        return DeletePod(metadata.name, metadata.uid)
    if (due := delete_at(pod)) is None:
        return StopPod(metadata.name, metadata.uid, now)
    return DeletePod(metadata.name, metadata.uid) if due <= now else None


def delete_at(pod: Pod) -> datetime | None:
    """Return when a stopped pod is deleted if it is not over; None if it was not stopped."""
    stopped = podstatus.stop_time_of(pod)
    return None if stopped is None else stopped + podstatus.grace_of(pod) + _DELETE_AFTER
