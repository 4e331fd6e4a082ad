"""Why an attempt ended: a ladder of questions in order; the first that is answered gives the cause."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

import msgspec

from reattach.api.messages import TerminationMessage
from reattach.api.objects import ContainerTerminated, Pod
from reattach.api.reasons import Cause, End
from reattach.api.state import JobOrigin, StateView
from reattach.planner import podstatus, textformat

_OWN_LIMIT = re.compile(
    r"exceed.*(ephemeral local storage|local ephemeral storage)|(ephemeral local storage|emptydir).*exceeds",
    re.IGNORECASE,
)
"""What the kubelet says when it evicts a pod for its own limits, not for the node's sake."""
_DEADLINE = "DeadlineExceeded"


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedAttempt:
    """An attempt that has ended, with all that tells why.

    `pod` None: the pod is gone although it carried our finalizer. `presumed`: its node did not report the end in time. `expected`: why we
    ended it ourselves before it started, as (reason, message). `shown_running`: status said before that its container runs.
    `stopped`: why the run itself is being ended, as (reason, message).
    """

    number: int
    pod_uid: str
    pod: Pod | None
    container: str
    completion: str
    state: StateView | None = None
    state_lost: bool = False
    presumed: bool = False
    expected: tuple[str, str] | None = None
    shown_running: bool = False
    stopped: tuple[str, str] | None = None

    @property
    def failed_init(self) -> tuple[str, ContainerTerminated] | None:
        """The init container that kept the task's from starting, and how it ended."""
        if self.pod is None or podstatus.has_run(self.pod, self.container):
            return None
        return podstatus.failed_init_of(self.pod)

    @property
    def terminated(self) -> ContainerTerminated | None:
        """How the task's container ended, or the init container that kept it from starting."""
        if self.failed_init is not None:
            return self.failed_init[1]
        return podstatus.terminated_of(self.pod, self.container) if self.pod is not None else None

    @property
    def exit_code(self) -> int | None:
        if self.terminated is not None:
            return None if self.terminated.reason in podstatus.LOST_TRACK else self.terminated.exit_code
        return 0 if self.pod is not None and self.pod.status.phase == "Succeeded" else None

    @property
    def opened_state(self) -> bool:
        return self.state is not None and self.state.epoch is not None and self.state.epoch.attempt >= self.number

    @property
    def recorded_completion(self) -> bool:
        record = self.state.completion if self.state is not None else None
        return record is not None and (record.attempt, record.pod_uid) == (self.number, self.pod_uid)

    @property
    def said(self) -> TerminationMessage | None:
        """What the task said by its termination message. Anything but exactly one such object is the log's tail, not for us."""
        if self.terminated is None or self.failed_init is not None:
            return None
        try:
            return msgspec.json.decode(self.terminated.message, type=TerminationMessage)
        except (msgspec.DecodeError, RecursionError):
            return None


@dataclass(frozen=True, slots=True)
class Classification:
    """Why it ended, in one word, in Kubernetes' word and in a sentence. `retry_after_seconds`: what the task asked for."""

    cause: Cause
    reason: str
    message: str
    retry_after_seconds: int | None = None


def cause_of(ended: EndedAttempt) -> Classification:
    """The first answer on the ladder."""
    return next(verdict for question in _LADDER if (verdict := question(ended)) is not None)


def how_known(ended: EndedAttempt) -> End:
    """Whether the end was reported by those who must know. Only then is it sure that nothing of the attempt runs any more."""
    pod = ended.pod
    if pod is None:
        return End.PRESUMED
    if podstatus.terminated_of(pod, ended.container) is not None or not pod.spec.node_name:
        return End.REPORTED
    target = podstatus.disruption_target_of(pod)
    collected = target is not None and target.reason == "DeletionByPodGC"
    still_runs = podstatus.running_of(pod, ended.container) is not None
    return End.PRESUMED if ended.presumed or collected or still_runs else End.REPORTED


def finish_time_of(ended: EndedAttempt, now: datetime) -> datetime:
    """When it ended: as its node says, but not after now, nor sooner after its pod was made than its container ran.

    A node's clock may be wrong; how long something took by it is right, so a clock that is behind does not shorten the back-off.
    """
    time = ended.terminated.finished_at if ended.terminated else None
    if ended.terminated is None or time is None or not podstatus.is_real(time):
        return now
    made = (ended.pod.metadata.creation_timestamp if ended.pod else None) or time
    began = ended.terminated.started_at
    ran = time - began if began is not None and podstatus.is_real(began) else timedelta()
    return min(max(time, made + max(ran, timedelta())), now)


# -- the ladder, in order --------------------------------------------------------------------------


def _completed(ended: EndedAttempt) -> Classification | None:
    if ended.completion == "ExitCode" or not ended.recorded_completion:
        return None
    return Classification(Cause.SUCCEEDED, "Completed", "The task recorded its completion.")


def _stopped(ended: EndedAttempt) -> Classification | None:
    if ended.stopped is None:
        return None
    if (
        ended.pod is not None
        and ended.terminated is not None
        and podstatus.ended_by_itself(ended.pod, ended.terminated)
    ):
        return None
    return Classification(Cause.STOPPED, *ended.stopped)


def _held(ended: EndedAttempt) -> Classification | None:
    # Without its state nobody knows what the task has done: neither its word nor its exit code may end the run or start the next pod.
    if not ended.state_lost or (ended.completion == "ExitCode" and ended.exit_code == 0):
        return None
    return Classification(Cause.HELD, "StateLost", _told(ended) or "The TaskRun's state is lost.")


def _held_by_a_job(ended: EndedAttempt) -> Classification | None:
    # Another attempt, thought dead, may have told the handle since: then the next attempt goes on from there.
    jobs = ended.state.jobs if ended.state is not None else ()
    was_held = any(job.held or (job.holds and job.origin is JobOrigin.REPORTED) for job in jobs)
    if ended.said is None or ended.said.kind != "Held" or not was_held:
        return None
    return Classification(Cause.HELD, "SubmissionUnknown", _told(ended))


def _fenced(ended: EndedAttempt) -> Classification | None:
    said, epoch = ended.said, ended.state.epoch if ended.state else None
    if said is None or said.kind != "Fenced" or epoch is None:
        return None
    overtaken = epoch.attempt > ended.number or (epoch.attempt == ended.number and epoch.pod_uid != ended.pod_uid)
    return Classification(Cause.FENCED, "Fenced", _told(ended)) if overtaken else None


def _never_started(ended: EndedAttempt) -> Classification | None:
    pod = ended.pod
    if pod is None or ended.presumed or ended.opened_state or ended.shown_running:
        return None
    if podstatus.has_run(pod, ended.container) or ended.failed_init is not None:
        return None
    if ended.expected is not None:
        return Classification(Cause.NEVER_STARTED, *ended.expected)
    if trouble := podstatus.trouble_of(pod, ended.container):
        return Classification(Cause.NEVER_STARTED, trouble.reason, trouble.message)
    if ended.terminated is not None and ended.terminated.reason not in podstatus.LOST_TRACK:
        return Classification(Cause.NEVER_STARTED, ended.terminated.reason, _told(ended))
    if pod.status.reason:
        return Classification(Cause.NEVER_STARTED, pod.status.reason, pod.status.message)
    if target := podstatus.disruption_target_of(pod):
        return Classification(Cause.NEVER_STARTED, target.reason, target.message)
    if pod.metadata.deletion_timestamp is not None:
        return Classification(Cause.NEVER_STARTED, "Deleted", "The pod was deleted before its container started.")
    return Classification(Cause.NEVER_STARTED, "NotStarted", "The pod ended before its container started.")


def _disrupted(ended: EndedAttempt) -> Classification | None:
    pod, end = ended.pod, ended.terminated
    if pod is None:
        return Classification(Cause.DISRUPTION, "PodGone", "The pod is gone, and nobody saw how it ended.")
    target, deleted = podstatus.disruption_target_of(pod), pod.metadata.deletion_timestamp is not None
    if (target or deleted) and not (end and podstatus.ended_by_itself(pod, end)):
        if target:
            return Classification(Cause.DISRUPTION, target.reason, target.message)
        if ended.presumed:
            return Classification(
                Cause.DISRUPTION, "NodeLost", f"Node {pod.spec.node_name} did not report the end of the pod."
            )
        return Classification(Cause.DISRUPTION, "Deleted", "The pod was deleted before its container ended.")
    if not target and pod.status.reason not in {"", _DEADLINE} and not _is_own_limit(pod):
        return Classification(Cause.DISRUPTION, pod.status.reason, pod.status.message)
    if pod.status.reason == "" and ended.exit_code is None:
        return Classification(
            Cause.DISRUPTION, "EndUnknown", "Nobody saw how the container ended, as after a restart of its node."
        )
    return None


def _said_unavailable(ended: EndedAttempt) -> Classification | None:
    # Nobody can check it, and nobody need: it is charged to a budget that is as bounded as any other.
    if ended.said is None or ended.said.kind != "Unavailable" or ended.exit_code == 0:
        return None
    return Classification(Cause.DISRUPTION, "StateApiUnavailable", _told(ended))


def _said_permanent(ended: EndedAttempt) -> Classification | None:
    if ended.said is None or ended.said.kind != "Permanent":
        return None
    return Classification(Cause.PERMANENT, "PermanentFailure", _told(ended))


def _said_retry_later(ended: EndedAttempt) -> Classification | None:
    if ended.said is None or ended.said.kind != "RetryLater":
        return None
    return Classification(Cause.APPLICATION, "RetryLater", _told(ended), ended.said.retry_after_seconds)


def _out_of_resources(ended: EndedAttempt) -> Classification | None:
    if ended.terminated is not None and ended.terminated.reason == "OOMKilled":
        return Classification(Cause.RESOURCE, "OOMKilled", "The container used more memory than its limit.")
    if ended.pod is not None and _is_own_limit(ended.pod):
        return Classification(Cause.RESOURCE, ended.pod.status.reason, ended.pod.status.message)
    return None


def _past_deadline(ended: EndedAttempt) -> Classification | None:
    if ended.pod is None or ended.pod.status.reason != _DEADLINE:
        return None
    return Classification(Cause.DEADLINE, _DEADLINE, "The attempt ran longer than spec.deadlines.attemptSeconds.")


def _exited_well(ended: EndedAttempt) -> Classification | None:
    if ended.exit_code != 0:
        return None
    if ended.completion == "Recorded" or (ended.completion == "Auto" and ended.opened_state):
        message = "The container exited with 0, but the task recorded no completion."
        return Classification(Cause.APPLICATION, "NoCompletionRecord", message)
    return Classification(Cause.SUCCEEDED, "Completed", "The container exited with 0.")


def _failed(ended: EndedAttempt) -> Classification:
    end = ended.terminated
    return Classification(Cause.APPLICATION, end.reason if end and end.reason else "Error", _told(ended))


_LADDER: tuple[Callable[[EndedAttempt], Classification | None], ...] = (
    _completed,
    _stopped,
    _held,
    _held_by_a_job,
    _fenced,
    _never_started,
    _disrupted,
    _said_unavailable,
    _said_permanent,
    _said_retry_later,
    _out_of_resources,
    _past_deadline,
    _exited_well,
    _failed,
)


def _told(ended: EndedAttempt) -> str:
    """Return the task's own message about its end, else the end of its log, with the last line first."""
    if ended.said is not None:
        return textformat.start_of(ended.said.message)
    text = textformat.last_line_first(ended.terminated.message) if ended.terminated else ""
    return text if ended.failed_init is None else f"Init container {ended.failed_init[0]} failed. {text}".rstrip()


def _is_own_limit(pod: Pod) -> bool:
    return pod.status.reason == "Evicted" and _OWN_LIMIT.search(pod.status.message) is not None
