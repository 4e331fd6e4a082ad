"""The TaskRun that a state belongs to: the fields that the state API reads."""

from reattach.api.objects import ObjectMeta, Shape
from reattach.api.reasons import End
from reattach.api.taskrun import (
    Adoption,
    Attempt,
    Counts,
    Ending,
    Resolution,
    StateReference,
    StateTemplate,
    SubmissionPolicy,
)


class OwnerCleanup(Shape, frozen=True):
    """The policies of `spec.cleanup` that affect external jobs."""

    adopted: str = "Orphan"
    on_cancel: str = "Cancel"
    on_delete: str | None = None
    on_failure: str = "Cancel"


class OwnerSpec(Shape, frozen=True):
    """The fields of spec that affect the state and its external jobs."""

    completion: str = "Auto"
    submission: SubmissionPolicy = SubmissionPolicy()
    cleanup: OwnerCleanup = OwnerCleanup()
    adopt: tuple[Adoption, ...] = ()
    resolutions: tuple[Resolution, ...] = ()
    cancel: bool = False
    state: StateTemplate = StateTemplate()


class OwnerStatus(Shape, frozen=True):
    """The attempts as the operator recorded them, and the reference to the state."""

    outcome: str | None = None
    ending: Ending | None = None
    attempts: tuple[Attempt, ...] = ()
    counts: Counts = Counts()
    state: StateReference | None = None


class Owner(Shape, frozen=True):
    """A TaskRun with only the fields that the state API needs."""

    metadata: ObjectMeta
    spec: OwnerSpec = OwnerSpec()
    status: OwnerStatus = OwnerStatus()

    @property
    def state_uid(self) -> str | None:
        """The UID of the ConfigMap that `status.state` names."""
        return self.status.state.uid if self.status.state and self.status.state.uid else None

    @property
    def token_seed(self) -> str:
        """The seed of the submission tokens: the idempotency key within its namespace, or the UID.

        Namespaces and UIDs do not contain NUL, so no other namespace can have the same seed.
        """
        key = self.spec.submission.idempotency_key
        return f"{self.metadata.namespace}\0{key}" if key else self.metadata.uid

    @property
    def is_being_deleted(self) -> bool:
        """True if the TaskRun is being deleted. The API server refuses new finalizers on it."""
        return self.metadata.deletion_timestamp is not None

    @property
    def is_over(self) -> bool:
        """True if the operator no longer reconciles the TaskRun and removes no new finalizer."""
        return self.status.outcome is not None or self.is_being_deleted

    @property
    def is_ending(self) -> bool:
        """True if no attempt of the TaskRun may begin anything new."""
        return self.is_over or self.spec.cancel or self.status.ending is not None

    def why_jobs_are_kept(self, *, detached: bool) -> str:
        """Return why an external job must outlive the TaskRun, or an empty text.

        detached: the job was submitted as detached.
        """
        if self.spec.submission.idempotency_key:
            return "spec.submission.idempotencyKey is set, so another TaskRun may take the job over"
        if detached:
            return "the job is detached, so it runs on when the task has completed"
        policies = self.spec.cleanup
        fields = {"onDelete": policies.on_delete, "onCancel": policies.on_cancel, "onFailure": policies.on_failure}
        orphaning = next((name for name, policy in fields.items() if policy == "Orphan"), None)
        return f"spec.cleanup.{orphaning} is Orphan, so the job may run on when the run ends" if orphaning else ""

    def attempt(self, number: int) -> Attempt | None:
        """Return the entry of an attempt, or None if it was folded or is not recorded yet."""
        return next((attempt for attempt in self.status.attempts if attempt.number == number), None)

    def has_certain_end(self, number: int, pod_uid: str) -> bool:
        """Return whether no process of this attempt's pod runs, by evidence or by policy.

        `spec.submission.onPresumedEnd: Trust` counts a presumed end as a certain one.
        """
        if self.spec.submission.on_presumed_end == "Trust" and self.has_recorded_end(number):
            return True
        attempt = self.attempt(number)
        if attempt is not None:
            return attempt.end == End.REPORTED and attempt.pod_uid in {"", pod_uid}
        # Only ended attempts are folded.
        return self.status.counts.last_presumed < number <= self.status.counts.attempts

    def has_recorded_end(self, number: int) -> bool:
        """Return whether the operator recorded the end of this attempt, reported or presumed."""
        attempt = self.attempt(number)
        # Only ended attempts are folded.
        return attempt.end is not None if attempt is not None else number <= self.status.counts.attempts

    def resolutions_for(self, key: str, generation: int) -> tuple[Resolution, ...]:
        """Return the resolutions for one external job, in the order of `spec.resolutions`."""
        wanted = ("SubmissionUnknown", key, generation)
        return tuple(found for found in self.spec.resolutions if (found.held, found.key, found.generation) == wanted)
