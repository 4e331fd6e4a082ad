"""What `submit_once` returns: an external job to wait for, whoever submitted it and whenever.

The result is the same object on every path: JSON of at most 4 KiB, decoded from the text that is stored.
"""

import asyncio
import logging
import threading
from collections.abc import Generator
from typing import Any

import msgspec

from reattach.adapters.base import Active, Cancelled, Failed, JobStatus, NotFound, Succeeded, Unknown
from reattach.api.messages import Job
from reattach.api.state import JobState
from reattach.errors import InvalidValue, JobOver
from reattach.task.job_client import JobClient, OutcomeState, Step, cut_message, outcome_call, read_call
from reattach.task.outage import OutageBackoff
from reattach.task.submission import AcquiredJob, JobRequest, SubmissionProcess, failed, given_up, held_text
from reattach.task.value_checks import result_text_of

logger = logging.getLogger("reattach")

SHOWN_AFTER_SECONDS = 60.0
"""How long the other side can't be asked before `status.externalJobs` says so."""
NOT_FOUND_TIMES = 2
"""How often a job must not be found before that is believed."""
PROGRESS_SECONDS = 600.0
"""How often the log says that a job is active, if the other side has nothing new to say."""

Steps = Generator[float, None, Any]
"""Yields seconds to wait; returns the result."""


class ExternalJob:
    """One job of another system, under `key`. Made by `task.submit_once` and `task.resubmit`.

    key, generation, token: who it is. handle, url: what the other side calls it, and where to look at it.
    state: where it stands, as far as this process knows.
    """

    def __init__(self, jobs: JobClient, wanted: JobRequest, taken: AcquiredJob) -> None:
        self._jobs = jobs
        self._wanted = wanted
        self._taken = taken

    def __repr__(self) -> str:  # type: ignore[explicit-override] # typing.override is of Python 3.12
        return f"<ExternalJob {self.key!r} generation={self.generation} handle={self.handle!r} state={self.state}>"

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

    def wait(self, poll_seconds: float | None = None) -> Any:
        """Watch the job until it is over, and return its result. `poll_seconds`: how often it is asked, by default as its adapter says.

        Nothing is concluded from a system that can't be asked: it is asked again for as long as the attempt lasts.

        Raises:
            JobFailed: it failed, or was cancelled.
            PermanentFailure: it is not found, and `onNotFound` is Fail.
            Held: the same, with Hold.
        """
        steps = self._watch(poll_seconds)
        while True:
            try:
                seconds = next(steps)
            except StopIteration as end:
                return end.value
            self._jobs.sleep(seconds)

    async def await_(self, poll_seconds: float | None = None) -> Any:
        """`wait` for async code. Cancelling it leaves the job alone."""
        steps = self._watch(poll_seconds)
        while True:
            seconds, result = await asyncio.to_thread(_next, steps)
            if seconds is None:
                return result
            await self._jobs.timing.asleep(seconds)

    def status(self) -> JobStatus:
        """Ask once. What ends the job is stored; what can't be asked is `Unknown`."""
        with self._lock:
            return self._ask()

    async def astatus(self) -> JobStatus:
        """`status` for async code."""
        return await asyncio.to_thread(self.status)

    def cancel(self) -> None:
        """Ask the other side to end the job; one that is over is left alone. `wait` tells when it has ended. What the adapter raises
        is raised here.
        """
        with self._lock:
            if not self._is_over:
                self._jobs.report_step(Step.BEFORE_CANCEL)
                self._wanted.adapter.cancel(self.handle)
                self._jobs.report_step(Step.AFTER_CANCEL)

    async def acancel(self) -> None:
        """`cancel` for async code."""
        await asyncio.to_thread(self.cancel)

    # -- watching ----------------------------------------------------------------------------------

    def _watch(self, poll_seconds: float | None) -> Steps:
        poll = self._wanted.adapter.poll_seconds if poll_seconds is None else poll_seconds
        if not poll > 0:
            raise ValueError(f"poll_seconds must be more than 0, not {poll}")
        watching = _Watching(self)
        while True:
            self._jobs.termination.check()
            self._jobs.report_step(Step.WATCHING)
            with self._lock:
                status = self._ask()
                seconds = watching.look_at(status, poll)
            match status:
                case Succeeded(result):
                    return result
                case Failed() | Cancelled():
                    raise failed(self._job)
                case NotFound() if watching.is_gone:
                    self._act_on_not_found(status.message)
                    watching = _Watching(self)
                case _:
                    yield seconds

    def _ask(self) -> JobStatus:
        if not self._is_over:
            status = self._told()
            self._end(status)
            if not self._is_over:
                return status
        return self._recorded()

    def _told(self) -> JobStatus:
        adapter = self._wanted.adapter
        try:
            status = adapter.status(self.handle)
        except Exception as error:  # noqa: BLE001 -- whatever it is, it says nothing about the job
            return Unknown(f"{type(error).__name__}: {error}")
        if not isinstance(status, JobStatus):
            raise TypeError(f"{type(adapter).__name__}.status must return one of its six answers, not {status!r:.100}")
        return status

    def _end(self, status: JobStatus) -> None:
        """Store an end, before anybody acts on it."""
        match status:
            case Succeeded(result):
                self._store("Succeeded", result=self._kept(result))
            case Failed(message):
                self._store("Failed", message)
            case Cancelled(message):
                self._store("Cancelled", message)
            case _:
                pass

    def _kept(self, result: Any) -> Any:
        """The result, or None if it can't be stored: the job has succeeded all the same, and whoever asks would get the same again."""
        try:
            result_text_of(result)
        except InvalidValue as error:
            logger.error("External job %r (%s) succeeded; its result is dropped: %s", self.key, self.handle, error)  # noqa: TRY400 -- says all
            return None
        return result

    def _recorded(self) -> JobStatus:
        match self.state:
            case JobState.SUCCEEDED:
                return Succeeded(None if self._job.result is msgspec.UNSET else self._job.result)
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
        # As it will be read by whoever comes later.
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
            self._now_is(stored)
            if not self._is_over:
                raise
        else:
            self._now_is(
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

    def _act_on_not_found(self, message: str) -> None:
        why = f"the other side does not know it{': ' if message else ''}{message}"
        who = f"external job {self.key!r} (generation {self.generation}, {self.handle})"
        match self._taken.on_not_found:
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
                logger.warning("%s: %s. It is submitted anew, as spec.submission.onNotFound says.", who, why)
                with self._lock:
                    # Only shown so: should this process die now, the next one finds the same again.
                    self._store("NotFound", why)
                    if not self._is_over:
                        self._taken = SubmissionProcess(self._jobs, self._wanted).run(new_generation=True)

    def is_settled(self) -> bool:
        """Whether the job would be found by now, if it is there."""
        try:
            look_up = self._wanted.adapter.capabilities.look_up
        except Exception:  # noqa: BLE001 -- whatever it is, nobody can tell now
            return False
        recorded = self._job.recorded_at
        if look_up is None or recorded is None:
            return True
        now = self._taken.clock.at(self._jobs.timing.clock())
        return now.earliest >= recorded + look_up.settling

    def show(self, state: OutcomeState, message: str = "") -> None:
        """Let people see whether the job can be asked."""
        self._jobs.write_if_available(outcome_call(self.key, self.generation, state, message=message))
        self._now_is(msgspec.structs.replace(self._job, state=JobState(state)))

    def doubt(self) -> OutageBackoff:
        return OutageBackoff(self._jobs.timing, f"External job {self.key!r} ({self.handle}) can't be asked")

    def clock(self) -> float:
        return self._jobs.timing.clock()

    @property
    def _lock(self) -> threading.Lock:
        return self._jobs.lock_of(self.key)  # each time, because a forked child has its own

    @property
    def _job(self) -> Job:
        return self._taken.job

    @property
    def _is_over(self) -> bool:
        return self.state in {JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED}

    def _now_is(self, job: Job) -> None:
        self._taken = AcquiredJob(job, self._taken.on_not_found, self._taken.clock)


class _Watching:
    """What one watch has seen so far: what to log, what to show, and when to ask again."""

    def __init__(self, job: ExternalJob) -> None:
        self._job = job
        self._doubt: OutageBackoff | None = None
        self._is_shown = False
        self._missing = 0
        self._progress: tuple[str, float] | None = None

    @property
    def is_gone(self) -> bool:
        return self._missing >= NOT_FOUND_TIMES and self._job.is_settled()

    def look_at(self, status: JobStatus, poll: float) -> float:
        """Seconds until the next question."""
        match status:
            case Unknown(message):
                self._doubt = self._doubt or self._job.doubt()
                if self._doubt.seconds >= SHOWN_AFTER_SECONDS and not self._is_shown:
                    self._is_shown = True
                    self._job.show("Unknown", cut_message(message))
                return self._doubt.wait(message or "no reason given", poll)
            case NotFound():
                self._missing += 1
                return poll
            case Active(message):
                self._missing = 0
                self._answers()
                if self._is_shown:
                    self._is_shown = False
                    self._job.show("Active")
                self._log(message)
                return poll
            case _:
                self._answers()
                return 0.0

    def _answers(self) -> None:
        if self._doubt is not None:
            self._doubt.end()
            self._doubt = None

    def _log(self, message: str) -> None:
        now = self._job.clock()
        if self._progress is None or self._progress[0] != message or now - self._progress[1] >= PROGRESS_SECONDS:
            self._progress = (message, now)
            logger.info(
                "External job %r (%s) is active%s%s", self._job.key, self._job.handle, ": " * bool(message), message
            )


def _next(steps: Steps) -> tuple[float | None, Any]:
    """The seconds to wait, or None with the result: a thread can't raise StopIteration into a coroutine."""
    try:
        return next(steps), None
    except StopIteration as end:
        return None, end.value
