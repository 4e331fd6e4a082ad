"""Base of both Slurm adapters: lookup by name, status by handle, capabilities."""

from abc import abstractmethod
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import ClassVar, Final

from reattach.adapters.base import Adapter, Capabilities, JobStatus, Lookup, NotFound, Submission, Submitted
from reattach.adapters.http_client import CallError
from reattach.adapters.slurm.records import (
    SlurmHandle,
    SlurmJob,
    first_of,
    handle_from,
    no_such_job,
    of_handle,
    status_of,
)

MIN_JOB_AGE: Final = timedelta(seconds=300)
"""Slurm's default."""
SETTLING: Final = timedelta(seconds=60)
"""Longest delay until a busy controller accepts a submission whose client has gone.

Several times `MessageTimeout` (10 s).
"""


class SlurmError(CallError):
    """Slurm's response does not show the state of the job."""


class Slurm(Adapter):
    """Jobs of one cluster.

    `accounting`: how long slurmdbd keeps jobs, at least (`PurgeJobAfter`; any time that is long
    enough if slurmdbd purges no jobs); None: the cluster has no accounting. `min_job_age`:
    slurm.conf's `MinJobAge`, if it is not 300 s. Without accounting, a job is found only for this
    time, and `spec.submission.onUnknown` decides about older intents. `settling`: how late a
    submission may arrive; raise it for a controller that is often busy for minutes.
    """

    name: ClassVar[str] = "slurm"

    def __init__(
        self, *, accounting: timedelta | None, min_job_age: timedelta = MIN_JOB_AGE, settling: timedelta = SETTLING
    ) -> None:
        self._accounting = accounting
        self._look_up = Lookup(settling, min_job_age if accounting is None else max(accounting, min_job_age))

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(look_up=self._look_up)

    def look_up(self, submission: Submission) -> Submitted | None:
        name = submission.name
        found = self._find(lambda jobs: first_of(name, jobs), name=name)
        return None if found is None else Submitted(str(SlurmHandle(found.job_id, name)), existed=True)

    def status(self, handle: str) -> JobStatus:
        wanted = handle_from(handle)
        if wanted is None:
            return NotFound(f"a Slurm handle must be a job id or id/name, not {handle!r:.100}")
        found = self._find(lambda jobs: of_handle(wanted, jobs), name=wanted.name, job_id=wanted.job_id)
        return no_such_job(handle) if found is None else status_of(found)

    def cancel(self, handle: str) -> None:
        if (wanted := handle_from(handle)) is not None:
            self._end(wanted)

    def _find(
        self,
        select: Callable[[Iterable[SlurmJob]], SlurmJob | None],
        *,
        name: str | None = None,
        job_id: int | None = None,
    ) -> SlurmJob | None:
        """Return the job that `select` chooses from the controller's jobs, or else from accounting.

        The controller is queried by id if there is one, and accounting by all that is given.

        Raises:
            SlurmError: the job may exist, because accounting has not received all messages.
        """
        found = select(self._queued(name=name) if job_id is None else self._queued(job_id=job_id))
        if found is not None or self._accounting is None:
            return found
        # Read the queue length before accounting. The last message about a job that the controller
        # has forgotten is then either counted in the length or already delivered.
        waiting = self._waiting_for_accounting()
        found = select(self._accounted(name=name, job_id=job_id))
        if found is None and waiting != 0:
            raise SlurmError(
                f"accounting may lack a job, because slurmctld has {waiting} undelivered messages for slurmdbd"
            )
        return found

    @abstractmethod
    def _queued(self, *, name: str | None = None, job_id: int | None = None) -> list[SlurmJob]:
        """Return the controller's jobs of that name or id. Raises `SlurmError`."""

    @abstractmethod
    def _accounted(self, *, name: str | None = None, job_id: int | None = None) -> list[SlurmJob]:
        """Return accounting's jobs of that name or id; only the newest job of an id without a name.

        Raises `SlurmError`.
        """

    @abstractmethod
    def _waiting_for_accounting(self) -> int | None:
        """Return how many messages the controller keeps for slurmdbd, or None if not reported.

        Raises `SlurmError`.
        """

    @abstractmethod
    def _end(self, handle: SlurmHandle) -> None:
        """Cancel the job, unless it is terminal or has another name. Raises `SlurmError`."""
