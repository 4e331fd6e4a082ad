"""`ExternalJob`, the return value of `submit_once`, which waits for the job and cancels it.

The result is the same object for every attempt: JSON of at most 4 KiB, decoded from the stored
text.
"""

import asyncio
import dataclasses
import logging
import threading
from collections.abc import Generator
from datetime import timedelta
from typing import Any

import msgspec

from reattach.adapters.base import Active, Cancelled, Failed, JobStatus, NotFound, Succeeded, Unknown
from reattach.api.messages import RETRY_AFTER_SECONDS_MAX, Job
from reattach.api.state import JobState
from reattach.errors import InvalidValue, JobOver
from reattach.task.job_client import JobClient, OutcomeState, Step, cut_message, outcome_call, read_call
from reattach.task.outage import OutageTimer, ReasonReporter, retry_after_of
from reattach.task.submission import AcquiredJob, JobRequest, SubmissionProcess, failed, given_up, held_text
from reattach.task.value_checks import result_text_of

logger = logging.getLogger("reattach")

NOT_FOUND_REPORTS = 2
"""Number of `NotFound` reports, without an `Active` between them, that confirm it."""
CHECK_EVERY = timedelta(minutes=10)
"""Time between two checks of a job for which no pod waits."""
PROGRESS_SECONDS = 600.0
"""Interval of log lines for an active job whose message does not change."""

Steps = Generator[float, None, Any]
"""Generator that yields seconds to wait, and returns the result of the job."""


class ExternalJob:
    """One job of an external system. Made by `task.submit_once` and `task.resubmit`.

    key, generation, token: identify the job in Reattach.
    handle, url: identify the job in the external system.
    state: the last state that this process read or stored.
    """

    def __init__(self, jobs: JobClient, wanted: JobRequest, acquired: AcquiredJob) -> None:
        self._jobs = jobs
        self._wanted = wanted
        self._acquired = acquired
        self._was_active = False

    def __repr__(self) -> str:  # type: ignore[explicit-override] # typing.override exists since Python 3.12
        return f"<ExternalJob {self.key!r} generation={self.generation} handle={self.handle!r} state={self.state}>"

    @property
    def job(self) -> Job:
        """Return the job as this process read or stored it last."""
        return self._job

    @property
    def key(self) -> str:
        return self._job.key

    @property
    def generation(self) -> int:
        return self._job.generation

    @property
    def token(self) -> str:
        return self._job.token

    @property
    def handle(self) -> str:
        return self._job.handle or ""

    @property
    def url(self) -> str | None:
        return self._job.url

    @property
    def state(self) -> JobState:
        return self._job.state

    def wait(
        self, poll_seconds: float | None = None, *, release_pod: bool = False, every: timedelta = CHECK_EVERY
    ) -> Any:
        """Watch the job until it ends, and return its result.

        While the external system is unavailable, the SDK polls it for as long as the attempt lasts.

        poll_seconds: interval of polls, by default the adapter's.
        release_pod: do not keep a pod for the wait. If the job has not ended, the attempt ends with
            the cause Waiting, which is charged to nothing. The next attempt starts after `every`,
            reattaches, and calls `wait` again.
        every: at least a second, and at most a year.

        Raises:
            JobFailed: the job failed or was cancelled.
            PermanentFailure: the job is not found, and `onNotFound` is Fail.
            Held: the job is not found, and `onNotFound` is Hold.
            PodReleased: the attempt ended to wait without a pod. Do not catch it.
        """
        steps = self.watch(poll_seconds, every if release_pod else None)
        while True:
            try:
                seconds = next(steps)
            except StopIteration as end:
                return end.value
            self._jobs.sleep(seconds)

    async def await_(
        self, poll_seconds: float | None = None, *, release_pod: bool = False, every: timedelta = CHECK_EVERY
    ) -> Any:
        """`wait` for async code. Cancelling it does not cancel the job."""
        steps = self.watch(poll_seconds, every if release_pod else None)
        while True:
            seconds, result = await asyncio.to_thread(_next, steps)
            if seconds is None:
                return result
            await self._jobs.timing.async_sleep(seconds)

    def status(self) -> JobStatus:
        """Read the status once, and store a final one. Return `Unknown` if it can't be read."""
        with self._lock:
            return self._poll()

    async def astatus(self) -> JobStatus:
        """`status` for async code."""
        return await asyncio.to_thread(self.status)

    def cancel(self) -> None:
        """Request that the external system cancels the job, unless the job is over.

        `wait` returns when the job has ended. Errors of the adapter are raised. While the job runs,
        `status.externalJobs` shows it as Cancelling.
        """
        with self._lock:
            if not self._is_over:
                self._jobs.report_cancellation(self.key, self.generation)
        self.send_cancel()

    def send_cancel(self) -> None:
        """`cancel` without a report to the state API."""
        with self._lock:
            if not self._is_over:
                self._jobs.report_step(Step.BEFORE_CANCEL)
                self._wanted.adapter.cancel(self.handle)
                self._jobs.report_step(Step.AFTER_CANCEL)

    async def acancel(self) -> None:
        """`cancel` for async code."""
        await asyncio.to_thread(self.cancel)

    # -- watching ----------------------------------------------------------------------------------

    def watch(self, poll_seconds: float | None = None, check_every: timedelta | None = None) -> Steps:
        """Return the steps of `wait`, which sleeps between them.

        check_every: end the attempt after a check if the job has not ended; None: keep the pod.
        """
        if check_every is not None:
            _check_interval(check_every)
        poll = self._wanted.adapter.poll_seconds if poll_seconds is None else poll_seconds
        if not poll > 0:
            raise ValueError(f"poll_seconds must be more than 0, not {poll}")
        progress = _WatchProgress(self)
        while True:
            self._jobs.termination.check()
            self._jobs.report_step(Step.WATCHING)
            with self._lock:
                status = self._poll()
                seconds = progress.observe(status, poll)
            match status:
                case Succeeded(result):
                    return result
                case Cancelled() if self._acquired.is_preexisting and not self._was_active:
                    # The run that submitted it ended, and this run never saw it active.
                    with self._lock:
                        self._submit_next_generation("it was cancelled before this TaskRun first saw it")
                    progress = _WatchProgress(self)
                case Failed() | Cancelled():
                    raise failed(self._job)
                case NotFound() if progress.is_confirmed_gone:
                    self._apply_not_found_policy(status.message)
                    progress = _WatchProgress(self)
                case Active() | Unknown() if check_every is not None:
                    with self._lock:
                        self._release_pod(status, check_every)
                    yield seconds
                case _:
                    yield seconds

    def _release_pod(self, status: Active | Unknown, every: timedelta) -> None:
        """End the attempt. If the state API can't record that, return, and the pod is kept.

        A job that is not found is watched until that is confirmed, so that `onNotFound` applies.
        """
        state: OutcomeState = "Unknown" if isinstance(status, Unknown) else "Active"
        if self.state != state:
            self.report_state(state, cut_message(status.message))
        self._jobs.release_pod(self.key, self.generation, self.handle, every)

    def _poll(self) -> JobStatus:
        if not self._is_over:
            status = self._read_status()
            self._was_active = self._was_active or isinstance(status, Active)
            self._store_final(status)
            if not self._is_over:
                return status
        return self._stored_status()

    def _read_status(self) -> JobStatus:
        adapter = self._wanted.adapter
        try:
            status = adapter.status(self.handle)
        except Exception as error:  # noqa: BLE001 -- no error is evidence of the job's state
            return Unknown(f"{type(error).__name__}: {error}", retry_after_of(error) or None)
        if not isinstance(status, JobStatus):
            raise TypeError(
                f"{type(adapter).__name__}.status must return one of the six kinds of JobStatus, not {status!r:.100}"
            )
        return status

    def _store_final(self, status: JobStatus) -> None:
        """Store a final status before the task acts on it."""
        match status:
            case Succeeded(result, message):
                if message:
                    logger.warning("External job %r (%s) succeeded: %s", self.key, self.handle, message)
                storable, why = self._storable_result(result)
                self._store("Succeeded", why or message, result=storable)
            case Failed(message):
                self._store("Failed", message)
            case Cancelled(message):
                self._store("Cancelled", message)
            case _:
                pass

    def _storable_result(self, result: Any) -> tuple[Any, str]:
        """Return the result, or None and the reason why it can't be stored.

        The job has succeeded nevertheless, and another poll would return the same result.
        """
        try:
            result_text_of(result)
        except InvalidValue as error:
            logger.error("External job %r (%s) succeeded; its result is dropped: %s", self.key, self.handle, error)  # noqa: TRY400 -- the message is complete
            return None, f"its result is dropped: {error}"
        return result, ""

    def _stored_status(self) -> JobStatus:
        match self.state:
            case JobState.SUCCEEDED:
                return Succeeded(None if self._job.result is msgspec.UNSET else self._job.result, self._job.message)
            case JobState.CANCELLED:
                return Cancelled(self._job.message)
            case _:
                return Failed(self._job.message)

    def _store(
        self,
        state: OutcomeState,
        message: str = "",
        *,
        result: Any = None,
        hold: bool = False,
        given_up: bool = False,
    ) -> None:
        # Decoded from the stored text, so that later attempts return an equal result.
        decoded = None if result is None else msgspec.json.decode(result_text_of(result))
        message = cut_message(message)
        self._jobs.report_step(Step.BEFORE_OUTCOME)
        try:
            self._jobs.write(
                outcome_call(self.key, self.generation, state, result, message=message, hold=hold, given_up=given_up)
            )
        except JobOver:
            stored = self._jobs.read(read_call(self.key, self.generation))
            if stored is None:
                raise
            self._set_job(stored)
            if not self._is_over:
                raise
        else:
            self._set_job(
                msgspec.structs.replace(
                    self._job,
                    state=JobState(state),
                    result=msgspec.UNSET if decoded is None else decoded,
                    message=message,
                    held=hold,
                    given_up=given_up,
                )
            )
        self._jobs.report_step(Step.AFTER_OUTCOME)

    def _apply_not_found_policy(self, message: str) -> None:
        why = f"the external system does not know it{': ' if message else ''}{message}"
        match self._acquired.on_not_found:
            case "Hold":
                with self._lock:
                    self._store("NotFound", why, hold=True)
                if not self._is_over:
                    raise self._jobs.held(held_text(self._job, why))
            case "Fail":
                with self._lock:
                    self._store("Failed", why, given_up=True)
                if self.state is JobState.FAILED:
                    raise given_up(self._job, why)
            case "Resubmit":
                with self._lock:
                    # For the status only: if this process dies here, the next one finds the job
                    # missing again.
                    self._store("NotFound", why)
                    if not self._is_over:
                        self._submit_next_generation(why, ", because spec.submission.onNotFound is Resubmit")
            case "Cancelled":
                with self._lock:
                    self._store("Cancelled", why)

    def _submit_next_generation(self, why: str, because: str = "") -> None:
        who = f"External job {self.key!r} (generation {self.generation}, {self.handle})"
        logger.warning("%s: %s. Submitting it again%s.", who, why, because)
        self._acquired = SubmissionProcess(self._jobs, self._wanted).run(new_generation=True)
        self._was_active = False

    def is_settled(self) -> bool:
        """Return whether a lookup would find the job by now, if it exists."""
        try:
            look_up = self._wanted.adapter.capabilities.look_up
        except Exception:  # noqa: BLE001 -- without capabilities, the settling time is unknown
            return False
        recorded = self._job.recorded_at
        if look_up is None or recorded is None:
            return True
        now = self._acquired.clock.at(self._jobs.timing.clock())
        return now.earliest >= recorded + look_up.settling

    def report_state(self, state: OutcomeState, message: str = "") -> bool:
        """Store a state that is not final, to show it in `status.externalJobs`.

        Return whether it is stored.
        """
        call = outcome_call(self.key, self.generation, state, message=cut_message(message))
        is_stored = self._jobs.write_if_available(call)
        self._set_job(msgspec.structs.replace(self._job, state=JobState(state)))
        return is_stored

    def new_reporter(self) -> ReasonReporter:
        return ReasonReporter(self._jobs.timing, lambda why: self.report_state("Unknown", why))

    def new_outage(self) -> OutageTimer:
        return OutageTimer(self._jobs.timing, f"External job {self.key!r} ({self.handle}) can't be polled")

    def clock(self) -> float:
        return self._jobs.timing.clock()

    @property
    def _lock(self) -> threading.Lock:
        return self._jobs.lock_of(self.key)  # read each time, because a forked child has its own

    @property
    def _job(self) -> Job:
        return self._acquired.job

    @property
    def _is_over(self) -> bool:
        return self.state in {JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED}

    def _set_job(self, job: Job) -> None:
        self._acquired = dataclasses.replace(self._acquired, job=job)


class _WatchProgress:
    """History of one watch, which decides what to log and to report, and when to poll again."""

    def __init__(self, job: ExternalJob) -> None:
        self._job = job
        self._outage: OutageTimer | None = None
        self._reporter: ReasonReporter | None = None
        self._not_found = 0
        self._last_log: tuple[str, float] | None = None

    @property
    def is_confirmed_gone(self) -> bool:
        return self._not_found >= NOT_FOUND_REPORTS and self._job.is_settled()

    def observe(self, status: JobStatus, poll: float) -> float:
        """Record a status, and return the seconds until the next poll."""
        match status:
            case Unknown(message):
                self._outage = self._outage or self._job.new_outage()
                self._reporter = self._reporter or self._job.new_reporter()
                self._reporter.observe(message)
                return self._outage.wait(message or "no reason given", poll, retry_after_of(status))
            case NotFound():
                self._not_found += 1
                return poll
            case Active(message):
                self._not_found = 0
                self._end_outage()
                self._reporter = None
                if self._job.state is JobState.UNKNOWN:
                    self._job.report_state("Active")
                self._log(message)
                return poll
            case _:
                self._end_outage()
                return 0.0

    def _end_outage(self) -> None:
        if self._outage is not None:
            self._outage.end()
            self._outage = None

    def _log(self, message: str) -> None:
        now = self._job.clock()
        if self._last_log is None or self._last_log[0] != message or now - self._last_log[1] >= PROGRESS_SECONDS:
            self._last_log = (message, now)
            logger.info(
                "External job %r (%s) is active%s%s", self._job.key, self._job.handle, ": " * bool(message), message
            )


def _check_interval(every: timedelta) -> None:
    if not timedelta(seconds=1) <= every <= timedelta(seconds=RETRY_AFTER_SECONDS_MAX):
        raise ValueError(f"every must be at least a second and at most a year, not {every!r}")


def _next(steps: Steps) -> tuple[float | None, Any]:
    """Return the seconds to wait, or None and the result.

    A thread can't raise StopIteration into a coroutine.
    """
    try:
        return next(steps), None
    except StopIteration as end:
        return None, end.value
