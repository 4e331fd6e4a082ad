"""What both ways to Slurm have in common: how a job is found by its name, asked for by its handle, and what is promised."""

from abc import abstractmethod
from datetime import timedelta
from typing import ClassVar, Final

from reattach.adapters.base import Adapter, Capabilities, JobStatus, Lookup, NotFound, Submission, Submitted
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
"""Several times `MessageTimeout` (10 s): how late a busy controller may take a submission whose client has gone."""


class SlurmError(Exception):
    """Slurm answered nothing that tells of the job."""


class Slurm(Adapter):
    """Jobs of one cluster.

    `accounting`: how long slurmdbd keeps jobs, at least (`PurgeJobAfter`; where it purges nothing, any time that is long enough); None: there is
    no accounting. `min_job_age`: slurm.conf's `MinJobAge`, if it is not 300 s. Without accounting a job is found no longer than that, and an
    intent that is older is left to `spec.submission.onUnknown`. `settling`: how late a submission may arrive; raise it for a controller
    that is often busy for minutes.
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
        found = first_of(name, self._queued(name=name))
        if found is None and self._accounting is not None:
            # In this order: a job that the controller has forgotten left its last message in the queue before, or has it delivered.
            waiting = self._waiting_for_accounting()
            found = first_of(name, self._accounted(name=name))
            if found is None and waiting != 0:
                raise SlurmError(
                    f"slurmctld has {waiting} messages for slurmdbd: until it has them, accounting may lack a job"
                )
        return None if found is None else Submitted(str(SlurmHandle(found.job_id, name)), existed=True)

    def status(self, handle: str) -> JobStatus:
        wanted = handle_from(handle)
        if wanted is None:
            return NotFound(f"a handle of Slurm is a job id, or id/name; {handle!r:.100} is none")
        found = of_handle(wanted, self._queued(job_id=wanted.job_id))
        if found is None and self._accounting is not None:
            waiting = self._waiting_for_accounting()
            found = of_handle(wanted, self._accounted(name=wanted.name, job_id=wanted.job_id))
            if found is None and waiting != 0:
                raise SlurmError(
                    f"slurmctld has {waiting} messages for slurmdbd: until it has them, accounting may lack a job"
                )
        return no_such_job(handle) if found is None else status_of(found)

    def cancel(self, handle: str) -> None:
        if (wanted := handle_from(handle)) is not None:
            self._end(wanted)

    @abstractmethod
    def _queued(self, *, name: str | None = None, job_id: int | None = None) -> list[SlurmJob]:
        """What the controller knows of that name or id. Raises `SlurmError`."""

    @abstractmethod
    def _accounted(self, *, name: str | None = None, job_id: int | None = None) -> list[SlurmJob]:
        """What accounting knows of that name or id; of an id without a name the newest job alone. Raises `SlurmError`."""

    @abstractmethod
    def _waiting_for_accounting(self) -> int | None:
        """How many messages the controller keeps for slurmdbd; None: it does not say. Raises `SlurmError`."""

    @abstractmethod
    def _end(self, handle: SlurmHandle) -> None:
        """Ask for the job's end, unless it is over or not the one of that name. Raises `SlurmError`."""
