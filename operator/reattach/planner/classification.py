"""Classification of ended attempts: checks in order, of which the first match gives the cause."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

import msgspec

from reattach.api.messages import TaskExitCode, TerminationMessage
from reattach.api.objects import ContainerTerminated, Pod, PodStatus
from reattach.api.reasons import Cause
from reattach.api.state import JobOrigin, ReportedEnd, StateView
from reattach.api.taskrun import AttemptPurpose
from reattach.planner import podstatus, textformat

_OWN_LIMIT = re.compile(
    r"exceed.*(ephemeral local storage|local ephemeral storage)|(ephemeral local storage|emptydir).*exceeds",
    re.IGNORECASE,
)
"""Message of the kubelet when it evicts a pod for the pod's own limits, not for node pressure."""
_DEADLINE = "DeadlineExceeded"
_EVICTED = "Evicted"
_COMPLETED = "Completed"
_NO_RECORD = "NoCompletionRecord"
_UNAVAILABLE = {"Unavailable": "StateApiUnavailable", "CredentialsRefused": "CredentialsRefused"}
"""Reason of a disruption, by the kind of the report."""
_ENDS_OF_THE_RUN = frozenset({Cause.SUCCEEDED, Cause.PERMANENT})
_REPORTED_BY_CODE = {
    TaskExitCode.FENCED: ("Fenced", "a later attempt or process took over the state"),
    TaskExitCode.STATE_LOST: ("Held", "the state is lost"),
    TaskExitCode.REFUSED: ("Unavailable", "the state API did not accept this pod any more"),
    TaskExitCode.UNAVAILABLE: ("Unavailable", "the state API was unavailable"),
    TaskExitCode.HELD: ("Held", "a submission waits for a resolution"),
}
"""Exit codes that stand for a termination message that is missing: its kind, and the meaning."""


@dataclass(frozen=True, slots=True)
class TaskReport:
    """Report of the task about its end.

    `kind`: that of the message (`TerminationMessage`), `NotReady` or `CredentialsRefused`.
    `meaning`: of an exit code without a message; the text is then the end of the log, if there is
    one.
    """

    kind: str
    text: str
    retry_after_seconds: int | None = None
    meaning: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedAttempt:
    """Attempt that has ended, with all facts that its classification needs.

    `pod`: None if the pod is gone although it carried our finalizer.
    `presumed`: its node did not report the end in time.
    `replaced`: the next attempt does not wait for the end of the pod, which is being deleted.
    `expected`: why the operator deleted the pod before it started, as (reason, message).
    `shown_running`: status showed its container as running.
    `stopped`: why the operator ends the attempt itself, as (reason, message).
    `suspended`: a suspension stops the attempt.
    `evicted`: message of the kubelet's event about the eviction of the pod, if one was read.
    """

    number: int
    purpose: AttemptPurpose = AttemptPurpose.RUN
    pod_uid: str
    pod: Pod | None
    container: str
    completion: str
    state: StateView | None = None
    state_lost: bool = False
    presumed: bool = False
    replaced: bool = False
    expected: tuple[str, str] | None = None
    shown_running: bool = False
    stopped: tuple[str, str] | None = None
    suspended: bool = False
    evicted: str | None = None

    @property
    def failed_init(self) -> tuple[str, ContainerTerminated] | None:
        """Return the init container that kept the task's container from starting, and its end."""
        if self.pod is None or podstatus.has_run(self.pod, self.container):
            return None
        return podstatus.failed_init_of(self.pod)

    @property
    def terminated(self) -> ContainerTerminated | None:
        """Return the end of the task's container, or of the init container before it."""
        if self.failed_init is not None:
            return self.failed_init[1]
        return podstatus.terminated_of(self.pod, self.container) if self.pod is not None else None

    @property
    def exit_code(self) -> int | None:
        """Return the exit code, if the kubelet reported it."""
        if self.terminated is not None:
            return None if self.terminated.reason in podstatus.LOST_TRACK else self.terminated.exit_code
        return 0 if self.pod is not None and self.pod.status.phase == "Succeeded" else None

    @property
    def stopped_by_kubelet(self) -> tuple[str, str]:
        """Return why the kubelet ended the pod, as (reason, message); empty if it did not."""
        status = PodStatus() if self.pod is None else self.pod.status
        if status.reason == "" and self.evicted is not None:
            return _EVICTED, self.evicted
        return status.reason, status.message

    @property
    def may_hide_eviction(self) -> bool:
        """Return whether only an event can show that the kubelet evicted the pod.

        A kubelet that evicts a pod for the pod's own limits sets no condition. If all containers
        then exit with 0, it reports the phase Succeeded, and drops the reason.
        """
        pod = self.pod
        if pod is None or pod.status.phase != "Succeeded" or pod.status.reason or not podstatus.has_storage_limit(pod):
            return False
        return _first_match(self).reason in {_COMPLETED, _NO_RECORD} and _completed(self) is None

    @property
    def opened_state(self) -> bool:
        """Return whether this attempt, or a later one, opened the state."""
        return self.state is not None and self.state.epoch is not None and self.state.epoch.attempt >= self.number

    @property
    def recorded_completion(self) -> bool:
        """Return whether the completion record is this attempt's."""
        record = self.state.completion if self.state is not None else None
        return record is not None and (record.attempt, record.pod_uid) == (self.number, self.pod_uid)

    @property
    def recorded_end(self) -> ReportedEnd | None:
        """Return the end in the state if this attempt reported it."""
        end = self.state.end if self.state is not None else None
        return end if end is not None and (end.attempt, end.pod_uid) == (self.number, self.pod_uid) else None

    @property
    def report(self) -> TaskReport | None:
        """Return the task's report: the end in the state, else `process_report`."""
        if (end := self.recorded_end) is not None:
            return TaskReport(end.kind, end.message, end.retry_after_seconds)
        return self.process_report

    @property
    def process_report(self) -> TaskReport | None:
        """Return what the process left: the termination message, else the exit code.

        Other programs use the same exit codes, so they count only if the attempt opened the state.
        """
        if self.terminated is None or self.failed_init is not None:
            return None
        text = self.terminated.message
        try:
            message = msgspec.json.decode(text, type=TerminationMessage)
        except (msgspec.DecodeError, RecursionError):
            if self.exit_code not in _REPORTED_BY_CODE or not self.opened_state:
                return None
            kind, meaning = _REPORTED_BY_CODE[TaskExitCode(self.exit_code)]
            return TaskReport(kind, text, meaning=f"Exit code {self.exit_code}: {meaning}.")
        return TaskReport(_kind_of(message), message.message, message.retry_after_seconds)


@dataclass(frozen=True, slots=True)
class Classification:
    """Cause of an attempt's end, with the reason from Kubernetes and a sentence.

    `retry_after_seconds`: the delay that the task requested.
    """

    cause: Cause
    reason: str
    message: str
    retry_after_seconds: int | None = None


def classify(ended: EndedAttempt) -> Classification:
    """Return the result of the first check that matches.

    A task may fail because its state is sealed, before its pod is deleted. So an attempt that a
    suspension stops is charged to nothing, unless its end also ends the run.
    """
    found = _first_match(ended)
    if ended.suspended and ended.stopped is not None and found.cause not in _ENDS_OF_THE_RUN:
        return Classification(Cause.STOPPED, *ended.stopped)
    return found


def _first_match(ended: EndedAttempt) -> Classification:
    return next(found for check in _CHECKS if (found := check(ended)) is not None)


def finish_time_of(ended: EndedAttempt, now: datetime) -> datetime:
    """Return when the attempt ended by its node's clock, bounded by the operator's clock.

    The end is not after now, nor sooner after the pod's creation than the container ran. A node's
    clock may be wrong but measures durations correctly, so a slow clock does not shorten the
    backoff.
    """
    time = ended.terminated.finished_at if ended.terminated else None
    if ended.terminated is None or time is None or not podstatus.is_known_time(time):
        return now
    created = (ended.pod.metadata.creation_timestamp if ended.pod else None) or time
    began = ended.terminated.started_at
    ran = time - began if began is not None and podstatus.is_known_time(began) else timedelta()
    return min(max(time, created + max(ran, timedelta())), now)


# The checks, in order


def _completed(ended: EndedAttempt) -> Classification | None:
    if ended.completion == "ExitCode" or not ended.recorded_completion:
        return None
    return Classification(Cause.SUCCEEDED, _COMPLETED, "The task recorded its completion.")


def _stopped(ended: EndedAttempt) -> Classification | None:
    if ended.stopped is None:
        return None
    if (
        ended.pod is not None
        and ended.terminated is not None
        and podstatus.exited_before_deletion(ended.pod, ended.terminated)
    ):
        return None
    return Classification(Cause.STOPPED, *ended.stopped)


def _state_lost(ended: EndedAttempt) -> Classification | None:
    # Without its state, neither message nor exit code shows what the task has done. They must not
    # end the run or start the next pod.
    if ended.purpose is AttemptPurpose.CLEANUP:
        return None
    if not ended.state_lost or (ended.completion == "ExitCode" and ended.exit_code == 0):
        return None
    return Classification(Cause.HELD, "StateLost", _task_message(ended) or "The TaskRun's state is lost.")


def _on_hold(ended: EndedAttempt) -> Classification | None:
    # An attempt that was presumed dead may have reported the handle since. The next attempt uses
    # it.
    jobs = ended.state.jobs if ended.state is not None else ()
    was_held = any(job.held or (job.holds and job.origin is JobOrigin.REPORTED) for job in jobs)
    report = ended.process_report
    if report is None or report.kind != "Held" or not was_held:
        return None
    return Classification(Cause.HELD, "SubmissionUnknown", _text_of(report))


def _fenced(ended: EndedAttempt) -> Classification | None:
    report, epoch = ended.process_report, ended.state.epoch if ended.state else None
    if report is None or report.kind != "Fenced" or epoch is None:
        return None
    overtaken = epoch.attempt > ended.number or (epoch.attempt == ended.number and epoch.pod_uid != ended.pod_uid)
    return Classification(Cause.FENCED, "Fenced", _text_of(report)) if overtaken else None


def _never_started(ended: EndedAttempt) -> Classification | None:
    pod = ended.pod
    is_lost = ended.presumed and not ended.replaced
    if pod is None or is_lost or ended.opened_state or ended.shown_running or _is_own_limit(ended):
        return None  # A pod that exceeded its limits has run, even if the kubelet lost track of it.
    if podstatus.has_run(pod, ended.container) or ended.failed_init is not None:
        return None
    if ended.expected is not None:
        return Classification(Cause.NEVER_STARTED, *ended.expected)
    if problem := podstatus.problem_of(pod, ended.container):
        return Classification(Cause.NEVER_STARTED, problem.reason, problem.message)
    if ended.terminated is not None and ended.terminated.reason not in podstatus.LOST_TRACK:
        return Classification(Cause.NEVER_STARTED, ended.terminated.reason, _task_message(ended))
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
        return Classification(Cause.DISRUPTION, "PodGone", "The pod is gone and its end was not observed.")
    target, deleted = podstatus.disruption_target_of(pod), pod.metadata.deletion_timestamp is not None
    if (target or deleted) and not (end and podstatus.exited_before_deletion(pod, end)):
        if target:
            return Classification(Cause.DISRUPTION, target.reason, target.message)
        if ended.presumed and not ended.replaced:
            return Classification(
                Cause.DISRUPTION, "NodeLost", f"Node {pod.spec.node_name} did not report the end of the pod."
            )
        return Classification(Cause.DISRUPTION, "Deleted", "The pod was deleted before its container ended.")
    reason, message = ended.stopped_by_kubelet
    if not target and reason not in {"", _DEADLINE} and not _is_own_limit(ended):
        return Classification(Cause.DISRUPTION, reason, message)
    if reason == "" and ended.exit_code is None:
        return Classification(
            Cause.DISRUPTION,
            "EndUnknown",
            "The kubelet did not report how the container ended, for example after a node restart.",
        )
    return None


def _reported_unavailable(ended: EndedAttempt) -> Classification | None:
    # This can't be verified and need not be, because the budget that it is charged to is bounded.
    if ended.report is None or ended.report.kind not in _UNAVAILABLE or ended.exit_code == 0:
        return None
    return Classification(Cause.DISRUPTION, _UNAVAILABLE[ended.report.kind], _task_message(ended))


def _reported_permanent(ended: EndedAttempt) -> Classification | None:
    if ended.report is None or ended.report.kind != "Permanent":
        return None
    return Classification(Cause.PERMANENT, "PermanentFailure", _task_message(ended))


def _reported_retry_later(ended: EndedAttempt) -> Classification | None:
    report = ended.report
    if report is None or report.kind not in {"RetryLater", "NotReady"}:
        return None
    cause = Cause.NOT_READY if report.kind == "NotReady" else Cause.APPLICATION
    return Classification(cause, report.kind, _text_of(report), report.retry_after_seconds)


def _reported_waiting(ended: EndedAttempt) -> Classification | None:
    if ended.report is None or ended.report.kind != "Waiting":
        return None
    wanted = ended.recorded_end.job if ended.recorded_end is not None else None
    jobs = ended.state.jobs if ended.state is not None else ()
    job = next((job for job in jobs if wanted and (job.key, job.generation) == (wanted.key, wanted.generation)), None)
    if job is None or not job.is_open or job.handle is None:
        message = "The task ended to wait for an external job, and no such job runs."
        return Classification(Cause.APPLICATION, "NoOpenJob", message)
    return Classification(Cause.WAITING, "Waiting", _text_of(ended.report), ended.report.retry_after_seconds)


def _out_of_resources(ended: EndedAttempt) -> Classification | None:
    if ended.terminated is not None and ended.terminated.reason == "OOMKilled":
        name = "The container" if ended.failed_init is None else f"Init container {ended.failed_init[0]}"
        return Classification(Cause.RESOURCE, "OOMKilled", f"{name} used more memory than its limit.")
    if _is_own_limit(ended):
        return Classification(Cause.RESOURCE, *ended.stopped_by_kubelet)
    return None


def _past_deadline(ended: EndedAttempt) -> Classification | None:
    if ended.pod is None or ended.pod.status.reason != _DEADLINE:
        return None
    if ended.terminated is not None and podstatus.exited_before_deadline(ended.pod, ended.terminated):
        return None
    if ended.purpose is AttemptPurpose.CLEANUP:
        return Classification(Cause.DEADLINE, _DEADLINE, "The pod ran until the deadline of the cleanup.")
    return Classification(Cause.DEADLINE, _DEADLINE, "The attempt ran longer than spec.deadlines.attemptSeconds.")


def _exited_zero(ended: EndedAttempt) -> Classification | None:
    if ended.exit_code != 0:
        return None
    if ended.purpose is AttemptPurpose.CLEANUP:
        return Classification(Cause.SUCCEEDED, _COMPLETED, "The container exited with 0.")
    if ended.completion == "Recorded" or (ended.completion == "Auto" and ended.opened_state):
        message = "The container exited with 0, but the task recorded no completion."
        return Classification(Cause.APPLICATION, _NO_RECORD, message)
    return Classification(Cause.SUCCEEDED, _COMPLETED, "The container exited with 0.")


def _failed(ended: EndedAttempt) -> Classification:
    end = ended.terminated
    return Classification(Cause.APPLICATION, end.reason if end and end.reason else "Error", _task_message(ended))


_CHECKS: tuple[Callable[[EndedAttempt], Classification | None], ...] = (
    _completed,
    _stopped,
    _state_lost,
    _on_hold,
    _fenced,
    _never_started,
    _disrupted,
    _reported_unavailable,
    _reported_permanent,
    _reported_retry_later,
    _reported_waiting,
    _out_of_resources,
    _past_deadline,
    _exited_zero,
    _failed,
)


def _task_message(ended: EndedAttempt) -> str:
    """Return the task's message about its end, or the end of its log, last line first."""
    if ended.report is not None:
        return _text_of(ended.report)
    text = textformat.last_line_first(ended.terminated.message) if ended.terminated else ""
    return text if ended.failed_init is None else f"Init container {ended.failed_init[0]} failed. {text}".rstrip()


def _text_of(report: TaskReport) -> str:
    if report.meaning:
        return textformat.last_line_first(report.text) or report.meaning
    return textformat.head(report.text)


def _is_own_limit(ended: EndedAttempt) -> bool:
    reason, message = ended.stopped_by_kubelet
    return reason == _EVICTED and _OWN_LIMIT.search(message) is not None


def _kind_of(message: TerminationMessage) -> str:
    """Return the kind of the report that an older operator reads as a more general kind."""
    if message.kind == "RetryLater" and message.not_ready:
        return "NotReady"
    return "CredentialsRefused" if message.kind == "Unavailable" and message.credentials_refused else message.kind
