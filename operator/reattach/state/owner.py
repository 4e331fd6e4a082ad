"""The TaskRun that a state belongs to, as far as the state API looks at it."""

from reattach.api.objects import ObjectMeta, Shape
from reattach.api.reasons import End
from reattach.api.taskrun import Adoption, Attempt, Counts, Resolution, StateReference, SubmissionPolicy


class OwnerSpec(Shape, frozen=True):
    """What its author and those who run it decided about external jobs."""

    submission: SubmissionPolicy = SubmissionPolicy()
    adopt: tuple[Adoption, ...] = ()
    resolutions: tuple[Resolution, ...] = ()
    cancel: bool = False


class OwnerStatus(Shape, frozen=True):
    """What the operator knows of its attempts, and where its state is."""

    outcome: str | None = None
    attempts: tuple[Attempt, ...] = ()
    counts: Counts = Counts()
    state: StateReference | None = None


class Owner(Shape, frozen=True):
    """A TaskRun. All that is not needed here is left out."""

    metadata: ObjectMeta
    spec: OwnerSpec = OwnerSpec()
    status: OwnerStatus = OwnerStatus()

    @property
    def state_uid(self) -> str | None:
        """The UID of the ConfigMap that was announced as its state."""
        return self.status.state.uid if self.status.state and self.status.state.uid else None

    @property
    def is_being_deleted(self) -> bool:
        """Whether it goes once its finalizers are gone; no new ones are put on it."""
        return self.metadata.deletion_timestamp is not None

    @property
    def is_over(self) -> bool:
        """Whether nobody looks at it any more, so that a finalizer put on it now would never go."""
        return self.status.outcome is not None or self.is_being_deleted

    @property
    def is_ending(self) -> bool:
        """Whether no attempt of it may begin anything new."""
        return self.status.outcome is not None or self.is_being_deleted or self.spec.cancel

    def attempt(self, number: int) -> Attempt | None:
        """What is listed of an attempt; None if `historyLimit` dropped it, or nothing is known yet."""
        return next((attempt for attempt in self.status.attempts if attempt.number == number), None)

    def has_reported_end(self, number: int, pod_uid: str) -> bool:
        """Whether the kubelet reported that the container of this pod, of this attempt, had ended."""
        attempt = self.attempt(number)
        if attempt is not None:
            return attempt.end == End.REPORTED and attempt.pod_uid in {"", pod_uid}
        # Only what has ended leaves the list.
        return self.status.counts.last_presumed < number <= self.status.counts.attempts

    def resolutions_for(self, key: str, generation: int) -> tuple[Resolution, ...]:
        """A person's answers about one external job, in the order in which they were given."""
        wanted = ("SubmissionUnknown", key, generation)
        return tuple(
            answer for answer in self.spec.resolutions if (answer.held, answer.key, answer.generation) == wanted
        )
