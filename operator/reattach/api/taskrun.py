"""Model of a TaskRun. The schema (`crds/taskruns.yaml`) is the public API; a test compares both.

Defaults are set here and described in the schema. The schema itself sets none in the spec, so that
a stored object has only what its author wrote. The API server adds one thing to what it returns:
the condition Reconciling of a status without conditions.
"""

from enum import StrEnum
from typing import Literal

import msgspec

from reattach.api.objects import Condition, ObjectMeta, Shape, Time


class Budgets(Shape, frozen=True):
    """Number of failures per budget that are retried. With 0, the first one fails the TaskRun.

    `not_ready` never fails it: an end beyond this budget is charged to `application`.
    """

    application: int = 0
    disruption: int = 20
    never_started: int = 5
    not_ready: int = 100


class Backoff(Shape, frozen=True):
    """Pause before the n-th retry.

    It is `initial * (factor/100)^(n-1)`, at most `max`, with a jitter of ± `jitter` per cent.
    """

    initial_seconds: int = 10
    factor_percent: int = 200
    max_seconds: int = 600
    jitter_percent: int = 20


class ExitCodes(Shape, frozen=True):
    """Exit codes to match. `NotIn` matches all codes except these and 0."""

    operator: Literal["In", "NotIn"]
    values: tuple[int, ...]


class PodConditionPattern(Shape, frozen=True):
    """A condition of the pod to match."""

    type: str
    status: Literal["True", "False", "Unknown"] = "True"


class RuleMatch(Shape, frozen=True):
    """Ends of an attempt that a rule applies to. Every field that is set must match.

    `message_pattern`: a regular expression in RE2 syntax.
    """

    exit_codes: ExitCodes | None = None
    pod_conditions: tuple[PodConditionPattern, ...] = ()
    reasons: tuple[str, ...] = ()
    message_pattern: str | None = None


class RetryRule(Shape, frozen=True):
    """Handling of one kind of failure.

    `delay_seconds` belongs to the actions Retry and Wait, and `budget` to Retry.
    """

    match: RuleMatch
    action: Literal["Retry", "Fail", "Wait"]
    delay_seconds: int | None = None
    budget: Literal["application", "disruption", "neverStarted"] = "application"


class Retry(Shape, frozen=True):
    """Retry budgets and pauses, and rules for particular failures: the first match applies."""

    budgets: Budgets = Budgets()
    backoff: Backoff = Backoff()
    rules: tuple[RetryRule, ...] = ()


class Deadlines(Shape, frozen=True):
    """Limits in seconds. A limit of None is absent.

    `not_ready_seconds` counts from `status.notReadyStartTime`.
    """

    run_seconds: int | None = None
    attempt_seconds: int | None = None
    pending_seconds: int = 900
    lost_seconds: int = 300
    not_ready_seconds: int | None = None


class SubmissionPolicy(Shape, frozen=True):
    """Policy for unresolved submissions: Hold, Fail or Resubmit.

    `idempotency_key`: seed of the submission tokens, with the namespace (None: the UID).
    `on_presumed_end`: Trust counts a presumed end of a submitter as a reported one.
    """

    on_unknown: Literal["Hold", "Fail", "Resubmit"] = "Hold"
    on_not_found: Literal["Hold", "Fail", "Resubmit"] = "Hold"
    on_presumed_end: Literal["Hold", "Trust"] = "Hold"
    idempotency_key: str | None = None


class Adoption(Shape, frozen=True):
    """A running external job to adopt under this key.

    `adapter`: that of the job; None: the adapter with which the task submits the key.
    """

    key: str
    handle: str
    adapter: str | None = None


def adoptions_at_end(adopt: tuple[Adoption, ...], *, cancel: bool, adopted: str) -> tuple[Adoption, ...]:
    """Return the jobs that a cleanup attempt adopts if no attempt opened the state before it.

    This is one rule for the operator, which starts the attempt, and for the state API. The
    arguments are those fields of `spec` and `spec.cleanup`. Without a task that submits the key,
    only the entry names the adapter.
    """
    is_wanted = cancel and adopted == "Cancel"
    return tuple(job for job in adopt if job.adapter is not None) if is_wanted else ()


class Resources(Shape, frozen=True):
    """Resources of a container, as in a pod."""

    limits: dict[str, int | str] | None = None
    requests: dict[str, int | str] | None = None


class Cleanup(Shape, frozen=True):
    """Handling of open external jobs at the end of the run.

    `on_delete`: None is `Cancel`, or `Orphan` with an idempotency key, because the next TaskRun
    with that key takes the job over. `adopted`: applies to jobs that this run did not submit.
    `deadline_seconds`: counts from the decision to end the run.
    """

    on_cancel: Literal["Cancel", "Orphan"] = "Cancel"
    on_delete: Literal["Cancel", "Orphan"] | None = None
    on_failure: Literal["Cancel", "Orphan"] = "Cancel"
    adopted: Literal["Cancel", "Orphan"] = "Orphan"
    command: tuple[str, ...] = ()
    resources: Resources | None = None
    budget: int = 3
    deadline_seconds: int = 900


class StateMetadata(Shape, frozen=True):
    """Labels and annotations of the state's ConfigMap, beside those of Reattach."""

    labels: dict[str, str] = msgspec.field(default_factory=dict)
    annotations: dict[str, str] = msgspec.field(default_factory=dict)


class StateTemplate(Shape, frozen=True):
    """The author's part of the state's ConfigMap. It applies when the ConfigMap is created."""

    metadata: StateMetadata = StateMetadata()


class Ttl(Shape, frozen=True):
    """Seconds from `status.completion_time` to the deletion, by outcome.

    A TaskRun is never deleted if the value is None.
    """

    succeeded_seconds: int | None = None
    failed_seconds: int | None = None
    cancelled_seconds: int | None = None


class Resolution(Shape, frozen=True):
    """A manual resolution. The n-th resolution of a held object settles its n-th hold."""

    held: str
    action: str
    key: str | None = None
    generation: int | None = None
    handle: str | None = None


class TaskRunSpec(Shape, frozen=True):
    """The spec of a TaskRun.

    `template`: JSON of the pod template as its author wrote it. As Python objects, it would need
    up to 25 times the memory.
    """

    template: msgspec.Raw
    container: str | None = None
    retry: Retry = Retry()
    deadlines: Deadlines = Deadlines()
    completion: str = "Auto"
    submission: SubmissionPolicy = SubmissionPolicy()
    cleanup: Cleanup = Cleanup()
    adopt: tuple[Adoption, ...] = ()
    resolutions: tuple[Resolution, ...] = ()
    state_from: str | None = None
    state: StateTemplate = StateTemplate()
    suspend: bool = False
    cancel: bool = False
    managed_by: str = "reattach.dev/operator"
    history_limit: int = 20
    pod_replacement_policy: Literal["Failed", "TerminatingOrFailed"] = "Failed"
    pod_retention: Literal["All", "Failed", "None"] = "All"
    ttl: Ttl = Ttl()

    def __post_init__(self) -> None:
        """Copy the template, because a decoded `Raw` keeps the whole message in memory."""
        msgspec.structs.force_setattr(self, "template", self.template.copy())


class AttemptPurpose(StrEnum):
    """Purpose of an attempt."""

    RUN = "Run"
    """Run the task."""
    CLEANUP = "Cleanup"
    """Cancel the external jobs after the run has begun to end."""


class Attempt(Shape, frozen=True):
    """One attempt in `status.attempts`.

    It is open until `finish_time` is set. `cause` and later fields are set with it.
    `reported_at_attempt`: the number of the newest attempt when the end, which had been presumed,
    became reported. Attempts with a higher number began after that.
    `template_hash`: the hash of the template from which its pod was made.
    """

    number: int
    purpose: AttemptPurpose = AttemptPurpose.RUN
    pod_name: str = ""
    pod_uid: str = msgspec.field(default="", name="podUID")
    node: str = ""
    start_time: Time | None = None
    finish_time: Time | None = None
    end: str | None = None
    cause: str | None = None
    charged_to: str | None = None
    reason: str | None = None
    exit_code: int | None = None
    message: str | None = None
    reported_at_attempt: int | None = None
    template_hash: str | None = None


class FoldedAttempts(Shape, frozen=True):
    """Attempts of one cause that left `status.attempts`.

    Attempts with other causes, and listed ones, may have numbers between the first and the last.
    """

    cause: str
    first_number: int
    last_number: int
    count: int


class Charged(Shape, frozen=True, omit_defaults=False):
    """Number of attempts charged to each budget.

    `not_ready` is absent until an attempt is charged to it, so that other runs write no more.
    """

    application: int = 0
    disruption: int = 0
    never_started: int = 0
    not_ready: int | msgspec.UnsetType = msgspec.UNSET
    cleanup: int = 0


class Counts(Shape, frozen=True, omit_defaults=False):
    """Totals over the whole history, including those of folded attempts.

    `state_losses`: lost states that were resolved with StartEmpty. `last_presumed`: the highest
    number of an attempt whose end was presumed. The ends of all later folded attempts were
    reported. `preexisting_jobs`: external jobs that existed before the first submission.
    `waiting`: attempts that ended while they waited for an external job. It is absent until then,
    so that other runs write no more.
    """

    attempts: int = 0
    charged: Charged = Charged()
    submissions: int = 0
    reattachments: int = 0
    duplicates_averted: int = 0
    preexisting_jobs: int = 0
    state_losses: int = 0
    last_presumed: int = 0
    waiting: int | msgspec.UnsetType = msgspec.UNSET


class ExternalJobStatus(Shape, frozen=True):
    """One external job in `status.externalJobs`, from `api.state.JobSummary`."""

    key: str
    generation: int
    state: str
    adapter: str = ""
    handle: str | None = None
    short_handle: str | None = None
    url: str | None = None
    submitted_time: Time | None = None
    submitted_by_attempt: int | None = None
    cancel_requested_time: Time | None = None
    message: str | None = None


class Ending(Shape, frozen=True):
    """The decision to end the run, recorded before its pods are stopped. It never changes.

    `outcome`: None if the TaskRun is being deleted. `cleanup_deadline`: jobs that are open then are
    orphaned.
    """

    reason: str
    message: str
    time: Time
    cleanup_deadline: Time
    outcome: str | None = None


class Suspension(Shape, frozen=True):
    """The current suspension, and how long all earlier ones took.

    `start_time`: None while the TaskRun is not suspended.
    """

    start_time: Time | None = None
    total_seconds: int = 0


class StateReference(Shape, frozen=True):
    """Reference to the state.

    The state API sets it before it responds to the first call. The operator sets it before the next
    attempt if a state exists already, by `spec.stateFrom` or `kubectl reattach state import`.

    From then on, an absent ConfigMap means a lost state. `message`: why the ConfigMap could not be
    created, while `uid` is empty.
    """

    config_map: str = ""
    uid: str = ""
    message: str = ""


class TaskRunStatus(Shape, frozen=True):
    """The status of a TaskRun.

    `last_handled_wake`: the newest value of the annotation `reattach.dev/wake` that started an
    attempt.
    """

    observed_generation: int | None = None
    outcome: str | None = None
    conditions: tuple[Condition, ...] = ()
    start_time: Time | None = None
    completion_time: Time | None = None
    next_attempt_time: Time | None = None
    suspension: Suspension | None = None
    not_ready_start_time: Time | None = None
    last_handled_wake: str | None = None
    ending: Ending | None = None
    orphaned: bool = False
    attempts: tuple[Attempt, ...] = ()
    folded_attempts: tuple[FoldedAttempts, ...] = ()
    counts: Counts = Counts()
    external_jobs: tuple[ExternalJobStatus, ...] = ()
    state: StateReference | None = None
    result: str | None = None


class TaskRun(Shape, frozen=True):
    """One logical execution of a task."""

    metadata: ObjectMeta
    spec: TaskRunSpec
    status: TaskRunStatus = TaskRunStatus()
