"""Causes, conditions and reasons in status and events, and a sentence for each reason."""

from enum import StrEnum


class Cause(StrEnum):
    """The cause of an attempt's end."""

    SUCCEEDED = "Succeeded"
    APPLICATION = "Application"
    RESOURCE = "Resource"
    DISRUPTION = "Disruption"
    NEVER_STARTED = "NeverStarted"
    DEADLINE = "Deadline"
    NOT_READY = "NotReady"
    WAITING = "Waiting"
    PERMANENT = "Permanent"
    HELD = "Held"
    FENCED = "Fenced"
    STOPPED = "Stopped"


OWN_FAILURES = frozenset({Cause.APPLICATION, Cause.RESOURCE, Cause.DEADLINE})
"""Causes of an attempt that failed by itself. `spec.retry.rules` apply only to these."""


class Budget(StrEnum):
    """The budget that an attempt's end is charged to.

    The values are fields of `status.counts.charged`. Those of run attempts are also fields of
    `spec.retry.budgets`. Ends of cleanup attempts are charged to `CLEANUP`.
    """

    APPLICATION = "application"
    DISRUPTION = "disruption"
    NEVER_STARTED = "neverStarted"
    NOT_READY = "notReady"
    CLEANUP = "cleanup"


class End(StrEnum):
    """Evidence for an attempt's end: the kubelet reported it, or the operator presumes it."""

    REPORTED = "Reported"
    PRESUMED = "Presumed"


class Outcome(StrEnum):
    """The result of a TaskRun. It never changes once set."""

    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    CANCELLED = "Cancelled"


class ConditionType(StrEnum):
    """The conditions of a TaskRun."""

    SUCCEEDED = "Succeeded"
    SUSPENDED = "Suspended"
    HELD = "Held"
    ORPHANED = "Orphaned"
    PREDECESSOR_ORPHANED = "PredecessorOrphaned"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"
    """Reconciling and Stalled are defined by kstatus, and present only while they are True."""


class EventReason(StrEnum):
    """The reason of an Event without a condition. Events for conditions use `Reason`."""

    ATTEMPT_STARTED = "AttemptStarted"
    """A later attempt than the first runs. Attempts that check again have no Event."""
    ATTEMPT_FAILED = "AttemptFailed"
    KEPT_POD_DELETED = "KeptPodDeleted"
    """The quota had no room for the next pod, so the kept pod of an ended attempt was deleted."""
    SUBMITTED = "Submitted"
    RESUBMITTED = "Resubmitted"
    ADOPTED = "Adopted"
    """The handle of an existing external job was recorded (found, reported or adopted)."""
    REATTACHED = "Reattached"
    EXISTED = "Existed"
    """An external job existed before the first submission of this TaskRun."""
    ORPHANED = "Orphaned"
    TOO_LARGE = "TooLarge"
    """A change of the TaskRun or of its state is too large to be stored."""
    UNREADABLE = "Unreadable"
    """The TaskRun can't be decoded. No other event is emitted for it."""


class Reason(StrEnum):
    """The reason of a condition, shown under STATUS. `SENTENCES` has a sentence for each."""

    PENDING = "Pending"
    RUNNING = "Running"
    BACKING_OFF = "BackingOff"
    WAITING = "Waiting"
    WAITING_FOR_GATES = "WaitingForGates"
    QUOTA_EXCEEDED = "QuotaExceeded"
    POD_REFUSED = "PodRefused"
    POD_NAME_TAKEN = "PodNameTaken"
    PAUSED = "Paused"
    SUSPENDED = "Suspended"
    RESUMED = "Resumed"
    ENDING = "Ending"
    SUCCEEDED = "Succeeded"
    APPLICATION_FAILED = "ApplicationFailed"
    DISRUPTED_TOO_OFTEN = "DisruptedTooOften"
    NEVER_STARTED = "NeverStarted"
    PERMANENT_FAILURE = "PermanentFailure"
    FAILED_BY_RULE = "FailedByRule"
    INVALID_TEMPLATE = "InvalidTemplate"
    TEMPLATE_CHANGED = "TemplateChanged"
    STATE_LOST = "StateLost"
    STATE_UNREADABLE = "StateUnreadable"
    STATE_SOURCE_UNAVAILABLE = "StateSourceUnavailable"
    SUBMISSION_UNKNOWN = "SubmissionUnknown"
    BUDGET_EXHAUSTED = "BudgetExhausted"
    CANCELLED = "Cancelled"
    FAILED_BY_RESOLUTION = "FailedByResolution"
    RUN_DEADLINE_EXCEEDED = "RunDeadlineExceeded"
    JOBS_ORPHANED = "JobsOrphaned"
    ORPHANS_UNRECORDED = "OrphansUnrecorded"
    PREDECESSOR_LEFT_JOBS = "PredecessorLeftJobs"
    NOT_HELD = "NotHeld"
    RESTORED = "Restored"


HOLDS = (
    Reason.SUBMISSION_UNKNOWN,
    Reason.STATE_LOST,
    Reason.BUDGET_EXHAUSTED,
    Reason.STATE_UNREADABLE,
    Reason.STATE_SOURCE_UNAVAILABLE,
    Reason.RESTORED,
)
"""The reasons of the condition Held while it is True."""

SENTENCES: dict[Reason, str] = {
    Reason.PENDING: "The pod of the current attempt has not started yet.",
    Reason.RUNNING: "The task is running.",
    Reason.BACKING_OFF: "The last attempt ended without success; the next one starts at status.nextAttemptTime.",
    Reason.WAITING: "No pod runs while an external job runs. The next attempt checks it at status.nextAttemptTime.",
    Reason.WAITING_FOR_GATES: "The pod waits for its scheduling gates to be removed. Its pending deadline is paused.",
    Reason.QUOTA_EXCEEDED: "The namespace's quota has no room for the pod. The operator retries, and no attempt is used.",
    Reason.POD_REFUSED: "The API server rejected the pod. The operator retries, and no attempt is used.",
    Reason.POD_NAME_TAKEN: "Another object has the name of the next pod. Delete that object.",
    Reason.PAUSED: (
        "This installation of Reattach is paused, so no attempt starts. "
        "Set the chart's value operator.paused to false to continue."
    ),
    Reason.SUSPENDED: "The TaskRun is suspended. Set spec.suspend to false to start the next attempt.",
    Reason.RESUMED: "The TaskRun is not suspended any more.",
    Reason.ENDING: "The attempt has ended. Its remaining containers are being stopped.",
    Reason.SUCCEEDED: "The task completed.",
    Reason.APPLICATION_FAILED: "The task failed more often than spec.retry.budgets.application allows.",
    Reason.DISRUPTED_TOO_OFTEN: "Pods were lost more often than spec.retry.budgets.disruption allows.",
    Reason.NEVER_STARTED: "Pods did not start more often than spec.retry.budgets.neverStarted allows.",
    Reason.PERMANENT_FAILURE: "The task reported a permanent failure, so it is not retried.",
    Reason.FAILED_BY_RULE: "A rule in spec.retry.rules failed the TaskRun.",
    Reason.INVALID_TEMPLATE: "The API server accepts no pod from spec.template.",
    Reason.TEMPLATE_CHANGED: "spec.template changed in a field that can't be changed after the first attempt.",
    Reason.STATE_LOST: "The TaskRun's state was deleted by force. Manual resolution required.",
    Reason.STATE_UNREADABLE: "The TaskRun's state was written by a newer version or changed by hand, and can't be read.",
    Reason.STATE_SOURCE_UNAVAILABLE: "The state of the TaskRun in spec.stateFrom can't be copied yet, so no attempt starts.",
    Reason.SUBMISSION_UNKNOWN: "It is unknown whether an external job runs. Manual resolution required.",
    Reason.BUDGET_EXHAUSTED: "No attempts are left while an external job runs. Manual resolution required.",
    Reason.CANCELLED: "The TaskRun was cancelled.",
    Reason.FAILED_BY_RESOLUTION: "A resolution failed the TaskRun.",
    Reason.RUN_DEADLINE_EXCEEDED: "The TaskRun took longer than spec.deadlines.runSeconds.",
    Reason.PREDECESSOR_LEFT_JOBS: "An earlier TaskRun of this name left external jobs running.",
    Reason.JOBS_ORPHANED: "External jobs were left running. Reattach no longer watches them.",
    Reason.ORPHANS_UNRECORDED: "External jobs were left running, and no record lists them. Reattach no longer watches them.",
    Reason.NOT_HELD: "The TaskRun is not held.",
    Reason.RESTORED: "The TaskRun was restored from a backup, and its external jobs may still run. Manual resolution required.",
}
