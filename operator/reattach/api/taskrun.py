"""The TaskRun as a model. The schema (`crds/taskruns.yaml`) is the public API; a test holds both together.

Defaults live here and in the schema's descriptions, not in the schema, so that a stored object says what its author said.
"""

from datetime import datetime
from typing import Any, Literal

import msgspec

from reattach.api.objects import Condition, ObjectMeta, Shape


class Budgets(Shape, frozen=True):
    """How many attempts may end by a cause before the TaskRun fails: 0 means the first such end is the last."""

    application: int = 0
    disruption: int = 20
    never_started: int = 5


class Backoff(Shape, frozen=True):
    """Wait before the n-th retry: `initial * (factor/100)^(n-1)`, capped at `max`, then jittered by ± `jitter` per cent."""

    initial_seconds: int = 10
    factor_percent: int = 200
    max_seconds: int = 600
    jitter_percent: int = 20


class Retry(Shape, frozen=True):
    """When and how often to try again."""

    budgets: Budgets = Budgets()
    backoff: Backoff = Backoff()


class Deadlines(Shape, frozen=True):
    """Bounds in seconds; None means no bound."""

    attempt_seconds: int | None = None
    pending_seconds: int = 900
    lost_seconds: int = 300


class SubmissionPolicy(Shape, frozen=True):
    """What to do where the protocol finds no answer: Hold, Fail or Resubmit; and what tokens are made from (None: the UID)."""

    on_unknown: Literal["Hold", "Fail", "Resubmit"] = "Hold"
    on_not_found: Literal["Hold", "Fail", "Resubmit"] = "Hold"
    idempotency_key: str | None = None


class Adoption(Shape, frozen=True):
    """An external job that already runs, to be taken over under this key."""

    key: str
    handle: str


class Resolution(Shape, frozen=True):
    """A person's answer. The n-th one for a thing that is held answers its n-th hold."""

    held: str
    action: str
    key: str | None = None
    generation: int | None = None
    handle: str | None = None


class TaskRunSpec(Shape, frozen=True):
    """What the author asked for. `template` is the pod template as written, untyped."""

    template: dict[str, Any]
    container: str | None = None
    retry: Retry = Retry()
    deadlines: Deadlines = Deadlines()
    completion: str = "Auto"
    submission: SubmissionPolicy = SubmissionPolicy()
    adopt: tuple[Adoption, ...] = ()
    resolutions: tuple[Resolution, ...] = ()
    cancel: bool = False
    managed_by: str = "reattach.dev/operator"
    history_limit: int = 20


class Attempt(Shape, frozen=True):
    """One attempt in `status.attempts`. It is open until `finish_time` is set; `cause` and what follows come with that."""

    number: int
    purpose: str = "Run"
    pod_name: str = ""
    pod_uid: str = msgspec.field(default="", name="podUID")
    node: str = ""
    start_time: datetime | None = None
    finish_time: datetime | None = None
    end: str | None = None
    cause: str | None = None
    charged_to: str | None = None
    reason: str | None = None
    exit_code: int | None = None
    message: str | None = None


class Charged(Shape, frozen=True, omit_defaults=False):
    """How many attempts were charged to each budget."""

    application: int = 0
    disruption: int = 0
    never_started: int = 0
    cleanup: int = 0


class Counts(Shape, frozen=True, omit_defaults=False):
    """Totals over the whole life, also of attempts that `historyLimit` dropped from the list.

    `state_losses`: lost states that a person answered with StartEmpty. `last_presumed`: no count, but the highest number of an attempt whose end
    was presumed, so that of all later ones that were dropped the end is known to have been reported.
    """

    attempts: int = 0
    charged: Charged = Charged()
    submissions: int = 0
    reattachments: int = 0
    duplicates_averted: int = 0
    state_losses: int = 0
    last_presumed: int = 0


class ExternalJobStatus(Shape, frozen=True):
    """One external job in `status.externalJobs`, from `api.state.JobSummary`."""

    key: str
    generation: int
    state: str
    adapter: str = ""
    handle: str | None = None
    url: str | None = None
    submitted_time: datetime | None = None
    submitted_by_attempt: int | None = None


class StateReference(Shape, frozen=True):
    """Where the state is. Set by the state API before it acknowledges the first call; from then on, absence means loss."""

    config_map: str = ""
    uid: str = ""


class TaskRunStatus(Shape, frozen=True):
    """What was observed and decided."""

    observed_generation: int | None = None
    outcome: str | None = None
    conditions: tuple[Condition, ...] = ()
    start_time: datetime | None = None
    completion_time: datetime | None = None
    next_attempt_time: datetime | None = None
    attempts: tuple[Attempt, ...] = ()
    counts: Counts = Counts()
    external_jobs: tuple[ExternalJobStatus, ...] = ()
    state: StateReference | None = None
    result: str | None = None


class TaskRun(Shape, frozen=True):
    """One logical execution of a task."""

    metadata: ObjectMeta
    spec: TaskRunSpec
    status: TaskRunStatus = TaskRunStatus()
