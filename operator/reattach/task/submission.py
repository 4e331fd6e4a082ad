"""One run of `submit_once`: from a key and a request to a job with a handle, or to the word that it is over.

    ask (the intent is stored) → submit → store the handle
        └ it may have been submitted → climb the ladder → ask again, on grounds

There is one loop, for a first submission, an answer that was lost, an attempt that died in between and a system that is down alike.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal, TypeAlias

import msgspec

from reattach.adapters.base import MARGIN, Adapter, Capabilities, Rejected, Submission, Submitted
from reattach.api.messages import Decision, Grounds, IntentRequest, IntentResponse, Job
from reattach.api.state import JobOrigin, JobState
from reattach.errors import (
    GroundsRefused,
    HandleDiffers,
    InvalidCall,
    JobFailed,
    JobOver,
    PermanentFailure,
    Unavailable,
)
from reattach.task.client import Call
from reattach.task.job_client import JobClient, Origin, OutcomeState, Step, cut_message, outcome_call, seconds_of
from reattach.task.outage import OutageBackoff
from reattach.task.resolution import (
    Absence,
    GiveUp,
    HoldRun,
    LookUpStep,
    Moment,
    ResolutionInput,
    StillHeld,
    SubmitAgain,
    next_rung,
    still_holds,
)

logger = logging.getLogger("reattach")

FRESH_SECONDS = 5.0
"""How old the state API's word may be when a submission begins. A process that was frozen longer asks again."""
STALE_MAX = 5
"""How often in a row. Where the state API takes this long for each answer, asking it for ever would get nowhere."""
STALE_SECONDS = 60.0
"""What is older than this is not acted on, however often the answer was late."""
WAIT_SECONDS_MAX = 60.0
SIBLING_SECONDS = 5.0
"""How often it is asked what became of a submission that another process of this attempt may have begun."""

Asking: TypeAlias = Call[IntentResponse]
NotFoundPolicy = Literal["Hold", "Fail", "Resubmit"]


class Abandoned(Exception):  # noqa: N818 -- says what is the case
    """Nobody waits for this submission any more."""


@dataclass(frozen=True)
class JobRequest:
    """What a task asked for: `request` under `key`, by `adapter`."""

    key: str
    adapter: Adapter
    request: Any
    detached: bool
    namespace: str
    taskrun: str
    attempt: int

    @property
    def request_time(self) -> timedelta:
        return timedelta(seconds=self.adapter.request_seconds)

    def submission_of(self, job: Job, may_leave: Callable[[], bool] = lambda: True) -> Submission:
        return Submission(
            token=job.token,
            request=self.request,
            key=job.key,
            generation=job.generation,
            namespace=self.namespace,
            taskrun=self.taskrun,
            may_leave=may_leave,
        )


@dataclass(frozen=True)
class ServerClock:
    """The state API's clock, from one answer: it was asked at `sent` and had answered at `received`, both monotonic."""

    server_time: datetime
    sent: float
    received: float

    def at(self, monotonic: float) -> Moment:
        return Moment(
            earliest=self.server_time + timedelta(seconds=monotonic - self.received),
            latest=self.server_time + timedelta(seconds=monotonic - self.sent),
        )


@dataclass(frozen=True)
class AcquiredJob:
    """A job that has a handle or is over, and what its watcher must know."""

    job: Job
    on_not_found: NotFoundPolicy
    clock: ServerClock


@dataclass(frozen=True)
class Transition:
    """What to ask next, after so many seconds."""

    asking: Asking
    after: float = 0.0


@dataclass
class SubmissionProcess:
    """One run, under the lock of its key. `is_abandoned` is looked at wherever nothing is under way."""

    jobs: JobClient
    wanted: JobRequest
    is_abandoned: Callable[[], bool] = lambda: False
    _refused: set[Grounds] = field(default_factory=set)
    _absence: Absence | None = None
    _doubt: OutageBackoff | None = None
    _asked: Asking | None = None
    _clock: ServerClock | None = None
    _sent: float = 0.0
    _stale: int = 0
    _is_refused_hold: bool = False
    _sibling_since: float | None = None

    def run(self, *, new_generation: bool = False) -> AcquiredJob:
        """The job.

        Raises:
            JobFailed: the other side made no job, and says that it won't.
            PermanentFailure: nobody can tell what became of it, and `onUnknown` is Fail.
            Held: the same, with Hold.
            Unavailable: nobody but another process of this attempt can tell, and it did not.
            DigestChanged, JobsOpen: see `Jobs.intent`.
        """
        following: AcquiredJob | Transition = Transition(self._asking(None, new_generation=new_generation))
        while isinstance(following, Transition):
            self.jobs.sleep(following.after, self._check)
            following = self._follow(following.asking)
        return following

    def _follow(self, asking: Asking) -> AcquiredJob | Transition:
        try:
            with self.jobs.termination.deferred():
                answer = self._ask(asking)
                if answer.decision is Decision.SUBMIT:
                    return self._submit(asking, answer)
        except GroundsRefused as refused:
            logger.warning("External job %r: %s", self.wanted.key, refused)
            return self._without(asking)
        except _RefusedError as refused:
            return self._settle_refused(asking, refused.job, refused.rejected)
        except _UntoldError as untold:
            return Transition(asking, self._doubt_about(str(untold)))
        if answer.decision is not Decision.RESOLVE:
            return self._taken(answer)
        if self._is_old() and self._stale <= STALE_MAX:
            # It took long to be answered, such as when the state API was away; the time that is told from it would be too late by as much.
            return Transition(self._asking(None))
        try:
            return self._climb(answer)
        except _UntoldError as untold:
            return Transition(self._asking(None), self._doubt_about(str(untold)))

    # -- ask ---------------------------------------------------------------------------------------

    def _asking(self, again: Grounds | None, *, new_generation: bool = False) -> Asking:
        adapter = self.wanted.adapter
        try:
            token = self._capabilities().token
        except _UntoldError:
            # It is not needed to learn what became of the job, and what is not recorded is not counted on.
            token = None
        return self.jobs.intent_call(
            self.wanted.key,
            adapter=adapter.name,
            digest=adapter.digest(self.wanted.request),
            token_seconds=None if token is None else seconds_of(token.lifetime),
            detached=self.wanted.detached,
            again=again,
            new_generation=new_generation,
        )

    def _capabilities(self) -> Capabilities:
        """What is promised now. Raises `_UntoldError`."""
        try:
            return self.wanted.adapter.capabilities
        except Exception as error:  # whatever it is, it is no promise, and no word that there is none
            raise _UntoldError(f"{type(error).__name__}: {error}") from error

    def _without(self, asking: Asking) -> Transition:
        """The same, on other grounds."""
        if (grounds := grounds_of(asking)) is not None:
            self._refused.add(grounds)
        return Transition(self._asking(None))

    def _ask(self, asking: Asking) -> IntentResponse:
        self.jobs.report_step(Step.BEFORE_INTENT)
        self._sent = self.jobs.timing.clock()
        answer = self.jobs.send_intent(asking)
        if asking is not self._asked:
            # The answer to what is asked again may be that of the first time, and so is the time in it.
            self._asked = asking
            self._clock = ServerClock(answer.server_time, self._sent, self.jobs.timing.clock())
        self.jobs.report_step(Step.AFTER_INTENT)
        return answer

    def _age(self, sent: float | None = None) -> float:
        """Seconds since the last question was sent, or the one that was sent then: so old is what its answer says."""
        return self.jobs.timing.clock() - (self._sent if sent is None else sent)

    def _is_old(self) -> bool:
        """Whether the last answer is older than fresh ones are; `_stale` counts how many in a row."""
        self._stale = self._stale + 1 if self._age() > FRESH_SECONDS else 0
        return self._stale > 0

    def _now(self) -> Moment:
        assert self._clock is not None
        return self._clock.at(self.jobs.timing.clock())

    # -- submit, and store the handle --------------------------------------------------------------

    def _submit(self, asking: Asking, answer: IntentResponse) -> AcquiredJob | Transition:
        adapter, job = self.wanted.adapter, answer.job
        if self._is_old() and (self._stale <= STALE_MAX or self._age() > STALE_SECONDS):
            return Transition(asking)
        grounds = grounds_of(asking)
        # Asked for once: the other side itself may have to say what it promises, and the last check can't wait for it.
        promised = None if grounds is None else self._capabilities()
        sent = self._sent

        def may_leave() -> bool:
            if self._age(sent) > STALE_SECONDS:
                # Also of the first submission: since it was allowed, another attempt may have submitted, and its job been forgotten.
                return False
            if grounds is None or promised is None:
                return True
            return still_holds(grounds, job, promised, self.wanted.request_time, self._now())

        if not may_leave():
            return Transition(asking if grounds is None else self._asking(None))
        self._absence = None
        with self.jobs.termination.spared():
            self.jobs.report_step(Step.BEFORE_SUBMIT)
            try:
                submitted = adapter.submit(self.wanted.submission_of(job, may_leave))
            except Rejected as rejected:
                raise _RefusedError(job, rejected) from rejected
            except Exception as error:  # noqa: BLE001 -- whatever it is, nobody knows whether there is a job now
                return Transition(self._asking(None), self._doubt_about(f"{type(error).__name__}: {error}"))
            self.jobs.report_step(Step.AFTER_SUBMIT)
            if not isinstance(submitted, Submitted):
                raise TypeError(f"{type(adapter).__name__}.submit must return Submitted, not {submitted!r:.100}")
            return self._record(answer, submitted, "Existed" if submitted.existed else "Submitted")

    def _record(self, answer: IntentResponse, submitted: Submitted, origin: Origin) -> AcquiredJob | Transition:
        job, handle = answer.job, submitted.handle
        # Said before it is stored: should that fail for good, the log still has it.
        logger.info("External job %r (generation %d): %s as %s.", job.key, job.generation, origin.lower(), handle)
        try:
            self.jobs.write(self.jobs.handle_call(job.key, job.generation, handle, submitted.url, origin))
        except (HandleDiffers, JobOver) as error:
            logger.error("External job %r: %s may run, and belongs to nobody: %s", job.key, handle, error)  # noqa: TRY400
            return Transition(self._asking(None))
        self.jobs.report_step(Step.AFTER_HANDLE)
        if self._doubt is not None:
            self._doubt.end()
        recorded = msgspec.structs.replace(
            job,
            handle=handle,
            url=submitted.url,
            state=JobState.ACTIVE,
            origin=JobOrigin(origin),
            recorded_at=self._now().latest,
        )
        return self._taken(msgspec.structs.replace(answer, job=recorded))

    def _settle_refused(self, asking: Asking, job: Job, rejected: Rejected) -> Transition:
        if rejected.retriable:
            # It surely made nothing, so the right to submit is still there: the same question has the same answer.
            return Transition(asking, self._doubt_about(str(rejected)))
        if grounds_of(asking) in {Grounds.CLIENT_NAME, Grounds.TOKEN}:
            # Of this submission. Of the one before it, it says nothing.
            logger.warning("External job %r was refused: %s", job.key, rejected)
            return self._without(asking)
        message = cut_message(str(rejected))
        try:
            self._outcome(job, "Failed", message)
        except JobOver:
            return Transition(self._asking(None))
        raise JobFailed(key=job.key, generation=job.generation, handle=None, message=message) from rejected

    def _doubt_about(self, why: str) -> float:
        """Seconds to wait before the next try."""
        if self._doubt is None:
            what = f"External job {self.wanted.key!r} can't be submitted"
            self._doubt = OutageBackoff(self.jobs.timing, what, quiet_seconds=0.0)
        return self._doubt.wait(why, WAIT_SECONDS_MAX)

    # -- it may have been submitted ----------------------------------------------------------------

    def _climb(self, answer: IntentResponse) -> AcquiredJob | Transition:
        answer, job = self._by_one_clock(answer), answer.job
        while True:
            self._check()
            rung = next_rung(
                ResolutionInput(
                    answer=answer,
                    capabilities=self._capabilities(),
                    request=self.wanted.request_time,
                    now=self._now(),
                    absence=self._absence,
                    refused=frozenset(self._refused),
                )
            )
            match rung:
                case HoldRun() | GiveUp() | SubmitAgain(Grounds.POLICY) if self._is_of_a_sibling(answer):
                    return self._wait_for_sibling()
                case SubmitAgain(grounds):
                    logger.info("External job %r may have been submitted; submitting again: %s.", job.key, grounds)
                    return Transition(self._asking(grounds))
                case LookUpStep(at):
                    self._wait_until(at)
                    if (found := self._look_up(job)) is not None:
                        return self._record(answer, found, "Found")
                case StillHeld(why):
                    raise self.jobs.held(held_text(job, why))
                case HoldRun(why):
                    if not self._try_outcome(job, "Unknown", why, hold=True):
                        return Transition(self._asking(None))
                    raise self.jobs.held(held_text(job, why))
                case GiveUp(why):
                    if not self._try_outcome(job, "Failed", why, given_up=True):
                        return Transition(self._asking(None))
                    raise given_up(job, why)

    def _by_one_clock(self, answer: IntentResponse) -> IntentResponse:
        """That the others had ended when this one opened the state is known by the clock of the replica that was asked then, and what is
        settled is judged by that of the one that answers now. So it is also counted by our own, which goes on at the same pace.
        """
        unresolved = answer.unresolved
        if unresolved is None or unresolved.quiet_since is None:
            return answer
        assert self._clock is not None
        quiet_since = max(unresolved.quiet_since, self._clock.at(self.jobs.opened_at).latest)
        return msgspec.structs.replace(answer, unresolved=msgspec.structs.replace(unresolved, quiet_since=quiet_since))

    def _is_of_a_sibling(self, answer: IntentResponse) -> bool:
        """Whether nobody may be submitting it but other processes of this very attempt."""
        unresolved = answer.unresolved
        return unresolved is not None and not unresolved.all_ended and set(unresolved.attempts) == {self.wanted.attempt}

    def _wait_for_sibling(self) -> Transition:
        """It is about to record the handle, or will never: then the next attempt knows that it has ended, as this one can't."""
        now = self.jobs.timing.clock()
        if self._sibling_since is None:
            self._sibling_since = now
            logger.info("External job %r: another process of this attempt may be submitting it.", self.wanted.key)
        if now - self._sibling_since > (self.wanted.request_time + MARGIN).total_seconds():
            raise Unavailable(
                f"external job {self.wanted.key!r} may have been submitted by another process of this attempt, which"
                f" has not said so for {now - self._sibling_since:.0f} s; the next attempt finds out"
            )
        self._absence = None
        return Transition(self._asking(None), SIBLING_SECONDS)

    def _wait_until(self, at: datetime | None) -> None:
        seconds = 0.0 if at is None else (at - self._now().earliest).total_seconds()
        if seconds > 0:
            logger.warning(
                "External job %r may have been submitted and is not found yet. Looking again in %.0f s, when it would be.",
                self.wanted.key,
                seconds,
            )
            self.jobs.sleep(seconds, self._check)

    def _look_up(self, job: Job) -> Submitted | None:
        """What the other side says, sooner or later."""
        doubt = OutageBackoff(self.jobs.timing, f"External job {job.key!r} can't be looked up")
        while True:
            began = self._now().earliest
            try:
                found = self.wanted.adapter.look_up(self.wanted.submission_of(job))
            except NotImplementedError:
                raise
            except Exception as error:  # noqa: BLE001 -- whatever it is, it is no answer
                self.jobs.sleep(doubt.wait(f"{type(error).__name__}: {error}", WAIT_SECONDS_MAX), self._check)
            else:
                doubt.end()
                self._absence = Absence(began, self._now().latest)
                return found

    def _try_outcome(
        self, job: Job, state: OutcomeState, why: str, *, hold: bool = False, given_up: bool = False
    ) -> bool:
        """False: somebody settled it meanwhile, such as the attempt before, which reported its handle after all."""
        try:
            self._outcome(job, state, why, hold=hold, given_up=given_up)
        except JobOver:
            return False
        except InvalidCall:
            if self._is_refused_hold:
                raise
            self._is_refused_hold = True
            return False
        return True

    def _outcome(
        self, job: Job, state: OutcomeState, message: str, *, hold: bool = False, given_up: bool = False
    ) -> None:
        self.jobs.report_step(Step.BEFORE_OUTCOME)
        call = outcome_call(job.key, job.generation, state, message=message, hold=hold, given_up=given_up)
        self.jobs.write(call)
        self.jobs.report_step(Step.AFTER_OUTCOME)

    # -- done --------------------------------------------------------------------------------------

    def _taken(self, answer: IntentResponse) -> AcquiredJob:
        job = answer.job
        if answer.decision is Decision.REATTACH:
            what = (job.key, job.generation, job.handle, job.state)
            logger.info("Reattached to external job %r (generation %d): %s, last known as %s.", *what)
        if job.state in {JobState.FAILED, JobState.CANCELLED} and job.handle is None:
            raise failed(job)
        assert self._clock is not None
        return AcquiredJob(job, answer.on_not_found, self._clock)

    def _check(self) -> None:
        self.jobs.termination.check()
        if self.is_abandoned():
            raise Abandoned(self.wanted.key)


class _RefusedError(Exception):
    """Carries a refusal out of where SIGTERM is deferred."""

    def __init__(self, job: Job, rejected: Rejected) -> None:
        super().__init__(str(rejected))
        self.job = job
        self.rejected = rejected


class _UntoldError(Exception):
    """What the other side promises can't be told now."""


def grounds_of(asking: Asking) -> Grounds | None:
    """On which grounds it asks to submit again."""
    assert isinstance(asking.body, IntentRequest)
    return asking.body.again


def failed(job: Job) -> JobFailed | PermanentFailure:
    """What to raise for a job that is over without success."""
    if job.given_up:
        return given_up(job, job.message)
    return JobFailed(
        key=job.key,
        generation=job.generation,
        handle=job.handle,
        message=job.message,
        cancelled=job.state is JobState.CANCELLED,
    )


def given_up(job: Job, why: str) -> PermanentFailure:
    """What to raise for a job of which nobody knows what became of it, where the policy is `Fail`."""
    return PermanentFailure(f"{_name_of(job)}: {why}")


def held_text(job: Job, why: str) -> str:
    """What people read, with what to do."""
    return f"{_name_of(job)}: {why}. A person must decide: kubectl reattach resolve NAME --adopt HANDLE, --resubmit or --fail"


def _name_of(job: Job) -> str:
    handle = "" if job.handle is None else f", {job.handle}"
    return f"external job {job.key!r} (generation {job.generation}{handle})"
