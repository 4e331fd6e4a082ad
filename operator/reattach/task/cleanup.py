"""A cleanup attempt: it cancels the external jobs of a TaskRun that ends, and submits none.

`next_step` decides what to do next for one job: pure. `JobCleanup` carries that out until the job
has ended, or until this process can do no more for it. `clean_up` does so for all open jobs at
once. A process may die at any step: the next cleanup attempt reads the jobs again and continues.
"""

import asyncio
import inspect
import logging
import queue
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Literal, TypeAlias

import msgspec

from reattach.adapters.base import Adapter, Capabilities
from reattach.api.messages import CancellationResponse, Job, Unresolved
from reattach.api.state import OPEN_JOB_STATES, JobState
from reattach.errors import HandleDiffers, InvalidValue, JobFailed, JobOver, PermanentFailure
from reattach.task.client import JobKeptError
from reattach.task.external_job import ExternalJob
from reattach.task.job_client import JobClient, Step, cancellation_call, outcome_call
from reattach.task.jobs import Jobs
from reattach.task.outage import OutageTimer, retry_after_of
from reattach.task.resolution import (
    AbsenceEvidence,
    AbsenceProven,
    LookUpStep,
    TimeBounds,
    absence_step,
    why_unknown,
)
from reattach.task.settings import TaskSettings
from reattach.task.state import State
from reattach.task.submission import WAIT_SECONDS_MAX, AcquiredJob, JobRequest, ServerClock, look_up

logger = logging.getLogger("reattach")

FinalState = Literal["Succeeded", "Failed", "Cancelled"]

ASK_AGAIN_SECONDS = 5.0
"""Interval of checks whether an attempt that has not ended reported the handle of its job."""
CANCEL_AGAIN_SECONDS = 60.0
"""Seconds after which a job that is still active is cancelled again.

Some systems accept the cancellation of a job that is just starting, and forget it.
"""


class CleanupStage(StrEnum):
    """Stages of a cleanup for `Timing.on_step`, besides those of `job_client.Step`."""

    BEFORE_CANCELLATION = "before-cancellation"
    AFTER_CANCELLATION = "after-cancellation"
    BEFORE_HANDLER = "before-handler"
    AFTER_HANDLER = "after-handler"


# -- decisions ----


@dataclass(frozen=True)
class JobEnded:
    """The job has ended."""


@dataclass(frozen=True)
class LeaveOpen:
    """Leave the job, which may be running, because this process can do no more for it."""

    why: str


@dataclass(frozen=True)
class RequestCancellation:
    """Store that the job is about to be cancelled, after `delay` seconds.

    For a job without a handle, this returns which attempts may have submitted it.
    """

    delay: float = 0.0


@dataclass(frozen=True)
class CancelAndWatch:
    """Cancel the job in the external system, and watch it until it ends."""


@dataclass(frozen=True)
class RecordNeverSubmitted:
    """Record that the job was never submitted."""


CleanupStep: TypeAlias = JobEnded | LeaveOpen | RequestCancellation | CancelAndWatch | LookUpStep | RecordNeverSubmitted


@dataclass(frozen=True)
class CleanupInput:
    """Everything that the next step for one job depends on.

    job: as the state API returned it last.
    is_registered: the task registered the job's adapter.
    kept: why the job must not be cancelled; empty if it may be.
    is_requested: the state API has stored the cancellation, or returned what follows.
    unresolved, may_resolve: see `CancellationResponse`.
    quiet_since: when the state API first reported that no attempt may resolve the submission any
        more, by its clock. If `unresolved.all_ended`, no process can submit after it.
    request: the longest that a submission may take.
    absence: the last lookup without a job.
    """

    job: Job
    is_registered: bool
    capabilities: Capabilities
    request: timedelta
    now: TimeBounds | None = None
    kept: str = ""
    is_requested: bool = False
    unresolved: Unresolved | None = None
    may_resolve: bool = False
    quiet_since: datetime | None = None
    absence: AbsenceEvidence | None = None


def next_step(known: CleanupInput) -> CleanupStep:
    """Return the first step whose condition holds."""
    if known.job.state not in OPEN_JOB_STATES:
        return JobEnded()
    if known.kept:
        return LeaveOpen(known.kept)
    if not known.is_registered:
        return LeaveOpen(f"the task registered no adapter named {known.job.adapter!r}")
    if not known.is_requested:
        return RequestCancellation()
    if known.job.handle is not None:
        return CancelAndWatch()
    return _step_without_handle(known)


def _step_without_handle(known: CleanupInput) -> CleanupStep:
    """Find the job, or prove its absence. A cleanup attempt never submits."""
    lookup, absence = known.capabilities.look_up, known.absence
    if lookup is not None and absence is None:
        return LookUpStep()
    if known.may_resolve:
        return RequestCancellation(ASK_AGAIN_SECONDS)
    if lookup is not None and absence is not None and known.quiet_since is not None and known.now is not None:
        match absence_step(
            known.job, lookup, absence, quiet_since=known.quiet_since, request=known.request, now=known.now
        ):
            case LookUpStep() as later:
                return later
            case AbsenceProven() if known.unresolved is not None and known.unresolved.all_ended:
                return RecordNeverSubmitted()
            case _:
                pass
    return LeaveOpen(why_unknown(known.unresolved, known.capabilities))


# -- registration and results ----


@dataclass(frozen=True)
class CleanupResult:
    """One external job after the cleanup.

    state: Succeeded, Failed or Cancelled if it has ended.
    why_open: why it was left as it is; empty if it has ended.
    """

    key: str
    generation: int
    adapter: str
    handle: str | None
    url: str | None
    state: JobState
    why_open: str = ""


class CleanupTask:
    """The cleanup attempt that this process runs, for `on_cleanup`.

    namespace, name: identify the TaskRun.
    attempt: number of this attempt.
    state: durable keys of the TaskRun, to read; the state API rejects changes with `InvalidCall`.
    jobs: the external jobs that were open when this attempt began.

    If your code ends a job itself, because it has no adapter, call `request_cancellation` before
    and `outcome` after that.
    """

    def __init__(
        self, settings: TaskSettings, state: State, job_client: JobClient, jobs: tuple[CleanupResult, ...]
    ) -> None:
        self.namespace = settings.namespace
        self.name = settings.taskrun
        self.attempt = settings.attempt
        self.state = state
        self.jobs = jobs
        self._job_client = job_client

    def request_cancellation(self, key: str, generation: int) -> bool:
        """Store that the job is about to be cancelled.

        Return False if it must not be cancelled, because this TaskRun did not submit it.
        """
        try:
            self._job_client.call(cancellation_call(key, generation))
        except JobKeptError:
            return False
        return True

    async def arequest_cancellation(self, key: str, generation: int) -> bool:
        """`request_cancellation` for async code."""
        return await asyncio.to_thread(self.request_cancellation, key, generation)

    def outcome(self, key: str, generation: int, state: FinalState, result: Any = None, *, message: str = "") -> None:
        """Store how the job ended. See `Jobs.outcome`.

        Raises:
            JobOver: the job has ended with another outcome.
        """
        self._job_client.write(outcome_call(key, generation, state, result, message=message))

    async def aoutcome(
        self, key: str, generation: int, state: FinalState, result: Any = None, *, message: str = ""
    ) -> None:
        """`outcome` for async code."""
        await self._job_client.awrite(outcome_call(key, generation, state, result, message=message))


CleanupHandler: TypeAlias = Callable[[CleanupTask], Any]


@dataclass(frozen=True)
class CleanupRegistration:
    """Registration of a task for its cleanup: adapters by name, and a handler."""

    adapters: Mapping[str, Adapter] = field(default_factory=dict)
    on_cleanup: CleanupHandler | None = None

    def __bool__(self) -> bool:
        return bool(self.adapters) or self.on_cleanup is not None

    @classmethod
    def of(cls, adapters: Iterable[Adapter], on_cleanup: CleanupHandler | None) -> "CleanupRegistration":
        """Return the registration.

        Raises:
            TypeError: an element is no adapter, or `on_cleanup` can't be called with one argument.
            ValueError: two adapters have one name.
        """
        by_name: dict[str, Adapter] = {}
        for adapter in _listed(adapters):
            if not isinstance(adapter, Adapter):
                raise TypeError(f"adapters must be instances of reattach.adapter.Adapter, not {adapter!r:.100}")
            name = getattr(adapter, "name", None)
            if not isinstance(name, str) or not name:
                raise TypeError(f"an adapter must have a name: {type(adapter).__name__}.name must be a string")
            if name in by_name:
                raise ValueError(
                    f"adapters must have different names, because a job is cancelled by the adapter of its name, and two"
                    f" have the name {name!r}. Give one of them another name"
                )
            by_name[name] = adapter
        if on_cleanup is not None:
            _check_handler(on_cleanup)
        return cls(by_name, on_cleanup)


def _listed(adapters: Any) -> list[Any]:
    if isinstance(adapters, Adapter) or not isinstance(adapters, Iterable):
        raise TypeError(f"adapters must be a list of adapters, not {adapters!r:.100}")
    return list(adapters)


def _check_handler(on_cleanup: Any) -> None:
    if not callable(on_cleanup):
        raise TypeError(f"on_cleanup must be a function with one argument, not {on_cleanup!r:.100}")
    try:
        signature = inspect.signature(on_cleanup)
    except (TypeError, ValueError):  # some functions that are written in C have none
        return
    try:
        signature.bind(None)
    except TypeError as error:
        raise TypeError(f"on_cleanup must be a function with one argument: {error}") from None


# -- effects ----


def clean_up(
    client: JobClient, settings: TaskSettings, adapters: Mapping[str, Adapter]
) -> tuple[tuple[CleanupResult, ...], list[Exception]]:
    """End the external jobs, all at once, so that no job waits for another.

    Return the jobs that were open, and the errors that ended the work on single jobs.

    Raises:
        AttemptOver: this attempt must end.
    """
    open_jobs = [job for job in Jobs(client).list() if job.state in OPEN_JOB_STATES]
    logger.info(
        "Cleanup attempt %d of %s/%s: %d external jobs may be running.",
        *(settings.attempt, settings.namespace, settings.taskrun, len(open_jobs)),
    )
    ended: queue.SimpleQueue[tuple[int, CleanupResult | BaseException]] = queue.SimpleQueue()

    def end(index: int, work: JobCleanup) -> None:
        try:
            ended.put((index, work.run()))
        except BaseException as error:  # noqa: BLE001 -- the main thread decides about it
            ended.put((index, error))

    works = [JobCleanup(client, settings, job, adapters.get(job.adapter)) for job in open_jobs]
    for index, work in enumerate(works):
        # A daemon, because SIGTERM must end the process also while an adapter's call hangs. The
        # state has at most `JOBS_MAX` jobs.
        threading.Thread(target=end, args=(index, work), daemon=True, name=f"cleanup-{index}").start()
    results: dict[int, CleanupResult] = {}
    errors: list[Exception] = []
    while len(results) < len(works):
        client.termination.check()
        try:
            index, result = ended.get(timeout=1)
        except queue.Empty:
            continue
        if isinstance(result, Exception):
            errors.append(result)
            why = f"{type(result).__name__}: {result}"
            logger.error("%s can't be cleaned up: %s", works[index].name, why)
            result = works[index].result(why)
        elif isinstance(result, BaseException):
            raise result
        results[index] = result
    left = sum(bool(result.why_open) for result in results.values())
    logger.info("%d external jobs have ended, %d are left as they are.", len(results) - left, left)
    return tuple(results[index] for index in range(len(works))), errors


class JobCleanup:
    """The cleanup of one external job."""

    def __init__(self, jobs: JobClient, settings: TaskSettings, job: Job, adapter: Adapter | None) -> None:
        self._jobs = jobs
        self._settings = settings
        self._job = job
        self._adapter = adapter
        self._clock: ServerClock | None = None
        self._kept = ""
        self._response: CancellationResponse | None = None
        self._quiet_since: datetime | None = None
        self._all_ended = False
        self._absence: AbsenceEvidence | None = None

    @property
    def name(self) -> str:
        handle = "" if self._job.handle is None else f", {self._job.handle}"
        return f"External job {self._job.key!r} (generation {self._job.generation}{handle})"

    def result(self, why_open: str = "") -> CleanupResult:
        job = self._job
        return CleanupResult(job.key, job.generation, job.adapter, job.handle, job.url, job.state, why_open)

    def run(self) -> CleanupResult:
        """Work on the job until it has ended, or until this process can do no more for it."""
        while True:
            match next_step(self._known()):
                case JobEnded():
                    text = f": {self._job.message}" if self._job.message else ""
                    logger.info("%s has ended as %s%s", self.name, self._job.state, text)
                    return self.result()
                case LeaveOpen(why):
                    logger.warning("%s is left as it is: %s.", self.name, why)
                    return self.result(why)
                case RequestCancellation(delay):
                    self._jobs.sleep(delay)
                    self._request_cancellation()
                case LookUpStep(at):
                    self._look_up(at)
                case RecordNeverSubmitted():
                    self._record_never_submitted()
                case CancelAndWatch():
                    self._cancel_and_watch()

    def _known(self) -> CleanupInput:
        response = self._response
        return CleanupInput(
            job=self._job,
            is_registered=self._adapter is not None,
            capabilities=self._capabilities(),
            request=timedelta() if self._adapter is None else self._wanted.request_time,
            now=None if self._clock is None else self._clock.at(self._jobs.timing.clock()),
            kept=self._kept,
            is_requested=response is not None,
            unresolved=None if response is None else response.unresolved,
            may_resolve=response is not None and response.may_resolve,
            quiet_since=self._quiet_since,
            absence=self._absence,
        )

    @property
    def _wanted(self) -> JobRequest:
        job, settings = self._job, self._settings
        assert self._adapter is not None
        return JobRequest(
            job.key, self._adapter, None, job.detached, settings.namespace, settings.taskrun, settings.attempt
        )

    def _capabilities(self) -> Capabilities:
        """Return the capabilities, which only the steps for a job without a handle need."""
        if self._adapter is None or self._response is None or self._job.handle is not None:
            return Capabilities()
        outage = OutageTimer(self._jobs.timing, f"{self.name}: the adapter's capabilities can't be read")
        while True:
            try:
                return self._adapter.capabilities
            except Exception as error:  # noqa: BLE001 -- no error means that the system has no capabilities
                self._jobs.sleep(outage.wait(f"{type(error).__name__}: {error}", WAIT_SECONDS_MAX))

    # -- steps ----

    def _request_cancellation(self) -> None:
        is_first = self._clock is None
        self._jobs.report_step(CleanupStage.BEFORE_CANCELLATION)
        sent = self._jobs.timing.clock()
        try:
            response = self._jobs.call(cancellation_call(self._job.key, self._job.generation))
        except JobKeptError as kept:
            self._kept = str(kept)
            return
        self._clock = ServerClock(response.server_time, sent, self._jobs.timing.clock())
        self._response, self._job = response, response.job
        self._note_quiet_since(response)
        self._jobs.report_step(CleanupStage.AFTER_CANCELLATION)
        if is_first and response.job.handle is None and response.job.state in OPEN_JOB_STATES:
            logger.info("%s may have been submitted, and has no handle.", self.name)

    def _note_quiet_since(self, response: CancellationResponse) -> None:
        """Note when this process learned that the submitters have ended.

        Unlike other attempts, this one may have opened the state while earlier ones still ran.
        """
        unresolved = response.unresolved
        if unresolved is None or self._clock is None or response.may_resolve:
            return
        if self._quiet_since is None or (unresolved.all_ended and not self._all_ended):
            self._quiet_since = self._clock.at(self._jobs.timing.clock()).latest
        self._all_ended = unresolved.all_ended

    def _look_up(self, at: datetime | None) -> None:
        assert self._clock is not None
        now = self._clock.at(self._jobs.timing.clock())
        if at is not None and (seconds := (at - now.earliest).total_seconds()) > 0:
            logger.info("%s is not found yet. It is looked up again, for at most %.0f s.", self.name, seconds)
        found, self._absence = look_up(self._jobs, self._wanted, self._job, self._clock, until=at)
        if found is None:
            if at is not None:
                self._response = None  # meanwhile a handle, or the end of an attempt, may have been reported
            return
        logger.info("%s: found as %s.", self.name, found.handle)
        try:
            call = self._jobs.handle_call(self._job.key, self._job.generation, found.handle, found.url, "Found")
        except InvalidValue:
            # The job can't be watched, so it is left. Only this process knows its handle.
            logger.error("%s: found as %r, which can't be stored.", self.name, found.handle)  # noqa: TRY400
            if found.handle and isinstance(found.handle, str):
                self._wanted.adapter.cancel(found.handle)
            raise
        try:
            self._jobs.write(call)
        except (HandleDiffers, JobOver) as error:
            logger.error("%s: %s may run, and no TaskRun owns it: %s", self.name, found.handle, error)  # noqa: TRY400
        self._response = None
        self._jobs.report_step(Step.AFTER_HANDLE)

    def _record_never_submitted(self) -> None:
        self._jobs.report_step(Step.BEFORE_OUTCOME)
        message = "it was never submitted"
        try:
            self._jobs.write(outcome_call(self._job.key, self._job.generation, "Cancelled", message=message))
        except JobOver:
            self._response = None
        else:
            self._job = msgspec.structs.replace(self._job, state=JobState.CANCELLED, message=message)
        self._jobs.report_step(Step.AFTER_OUTCOME)

    def _cancel_and_watch(self) -> None:
        """Cancel the job until it has ended, while it is watched: also a failed cancel may work."""
        assert self._clock is not None
        timing = self._jobs.timing
        external = ExternalJob(self._jobs, self._wanted, AcquiredJob(self._job, "Cancelled", self._clock))
        outage = OutageTimer(timing, f"{self.name} can't be cancelled", quiet_seconds=0.0)
        steps, cancel_at, is_repeated = external.watch(), timing.clock(), False
        try:
            while True:
                if timing.clock() >= cancel_at:
                    if is_repeated and not self._may_cancel_again():
                        return
                    is_repeated = True
                    cancel_at = timing.clock() + self._send_cancel(external, outage)
                seconds = next(steps)
                self._jobs.sleep(min(seconds, max(cancel_at - timing.clock(), 0.0)))
        except (StopIteration, JobFailed, PermanentFailure):
            self._job = external.job

    def _may_cancel_again(self) -> bool:
        """Return whether the state API still allows it.

        Meanwhile the run may have got its outcome, and the next run may have taken the job over.
        """
        self._request_cancellation()
        return not self._kept and self._job.state in OPEN_JOB_STATES

    def _send_cancel(self, external: ExternalJob, outage: OutageTimer) -> float:
        """Cancel the job, and return the seconds until that is repeated if it does not end."""
        try:
            external.send_cancel()
        except Exception as error:  # noqa: BLE001 -- no error is evidence that the job ends by itself
            return outage.wait(f"{type(error).__name__}: {error}", WAIT_SECONDS_MAX, retry_after_of(error))
        outage.end()
        logger.info("%s: cancellation requested. Waiting until it has ended.", self.name)
        return CANCEL_AGAIN_SECONDS
