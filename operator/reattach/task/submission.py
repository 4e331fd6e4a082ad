"""One run of `submit_once`: from a key and a request to a job that has a handle or is over.

    IntentPending       store the intent; by the decision:
                          Submit             -> SubmitGranted
                          Resolve            -> SubmissionUnresolved
                          Reattach, Over     -> Known
                          grounds refused    -> IntentPending, on other grounds
    SubmitGranted       submit, and store the handle:
                          handle stored      -> AcquiredJob
                          rejected           -> SubmissionRejected
                          outcome unknown, handle refused, or response too late to act on
                                             -> IntentPending
                          handle can't be stored -> raises Held
    SubmissionRejected    retriable          -> IntentPending, with the same intent
                          credentials, for an hour
                                             -> raises CredentialsRefused
                          name or token used -> IntentPending, on other grounds
                          settled meanwhile  -> IntentPending
                          else               -> raises JobFailed
    SubmissionUnresolved          find the next step (`reattach.task.resolution`):
                          submit again       -> IntentPending, on grounds
                          lookup finds it    -> AcquiredJob
                          response too late to act on, handle refused, settled meanwhile,
                          or another process of this attempt may be submitting
                                             -> IntentPending
                          hold, give up      -> raises Held, PermanentFailure
    Known                                    -> AcquiredJob, or raises JobFailed

The same states serve a first submission, a lost response, an attempt that died in between, and a
system that is down. `SubmissionProcess._advance` makes all transitions. A run that cannot end in
`AcquiredJob` raises.
"""

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Literal, TypeAlias

import msgspec

from reattach.adapters.base import MARGIN, Adapter, Capabilities, Rejected, Submission, Submitted, TaskRunOwner
from reattach.api.messages import (
    FIELD_DIGESTS_MAX,
    FIELD_NAME_CHARACTERS_MAX,
    Decision,
    FieldDigests,
    Grounds,
    IntentRequest,
    IntentResponse,
    Job,
    JobOwner,
)
from reattach.api.state import JobOrigin, JobState
from reattach.errors import (
    CredentialsRefused,
    DigestChanged,
    GroundsRefused,
    HandleDiffers,
    InvalidCall,
    InvalidValue,
    JobFailed,
    JobOver,
    PermanentFailure,
    Unavailable,
)
from reattach.task.client import Call
from reattach.task.job_client import (
    JobClient,
    Origin,
    OutcomeState,
    Step,
    check_handle,
    cut_message,
    outcome_call,
    read_call,
    seconds_of,
)
from reattach.task.outage import OutageTimer, ReasonReporter, retry_after_of
from reattach.task.resolution import (
    AbsenceEvidence,
    GiveUp,
    HoldRun,
    LookUpStep,
    ResolutionInput,
    StillHeld,
    SubmitAgain,
    TimeBounds,
    next_step,
    still_holds,
)

logger = logging.getLogger("reattach")

FRESH_SECONDS = 5.0
"""Age from which a response is late.

A process that was frozen for longer sends the intent again.
"""
LATE_RESPONSES_MAX = 5
"""Late responses in a row, after which a late one is used.

A slow state API would otherwise never return a fresh one.
"""
STALE_SECONDS = 60.0
"""Age from which no submission begins, however many responses were late."""
WAIT_SECONDS_MAX = 60.0
LOOK_UP_SECONDS_FIRST = 2.0
LOOK_UP_SECONDS_MAX = 15.0
"""First and longest pause between lookups of a job that may appear at any moment."""
CREDENTIALS_SECONDS = 3600.0
"""Seconds for which refused credentials are tried again, because they may be replaced."""
_FIELD_NAME = re.compile(f"[ -~]{{1,{FIELD_NAME_CHARACTERS_MAX}}}")
SIBLING_SECONDS = 5.0
"""Interval of checks whether another process of this attempt has stored the handle."""

IntentCall: TypeAlias = Call[IntentResponse]
NotFoundPolicy = Literal["Hold", "Fail", "Resubmit"]


class Abandoned(Exception):  # noqa: N818 -- says what is the case
    """The async call that waited for this submission was cancelled."""


@dataclass(frozen=True)
class JobRequest:
    """A call of `submit_once`: `request` under `key`, by `adapter`."""

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

    def submission_of(
        self, job: Job, may_leave: Callable[[], bool] = lambda: True, owner: JobOwner | None = None
    ) -> Submission:
        return Submission(
            token=job.token,
            request=self.request,
            key=job.key,
            generation=job.generation,
            namespace=self.namespace,
            taskrun=self.taskrun,
            may_leave=may_leave,
            owner=None if owner is None else TaskRunOwner(owner.uid, owner.kept_because),
        )


@dataclass(frozen=True)
class ServerClock:
    """The state API's clock, from one call.

    sent, received: monotonic times of the call and of its response.
    """

    server_time: datetime
    sent: float
    received: float

    def at(self, monotonic: float) -> TimeBounds:
        return TimeBounds(
            earliest=self.server_time + timedelta(seconds=monotonic - self.received),
            latest=self.server_time + timedelta(seconds=monotonic - self.sent),
        )


@dataclass(frozen=True)
class AcquiredJob:
    """State at the end: the job has a handle or is over.

    on_not_found: `spec.submission.onNotFound`. In a cleanup attempt, an absent job is over.
    is_preexisting: this process learned that the job existed before the TaskRun's first submission.
    """

    job: Job
    on_not_found: NotFoundPolicy | Literal["Cancelled"]
    clock: ServerClock
    is_preexisting: bool = False


@dataclass(frozen=True)
class IntentReply:
    """A response to an intent.

    `sent` is when its call was sent, monotonic. `late` counts the late responses in a row, with
    this one.
    """

    call: IntentCall
    response: IntentResponse
    clock: ServerClock
    sent: float
    late: int


@dataclass(frozen=True)
class IntentPending:
    """State: the intent must be stored, after `delay` seconds."""

    call: IntentCall
    delay: float = 0.0


@dataclass(frozen=True)
class SubmitGranted:
    """State: the state API allows this process to submit."""

    reply: IntentReply


@dataclass(frozen=True)
class SubmissionRejected:
    """State: the external system made no job.

    A state of its own, because SIGTERM is no longer deferred while the rejection is stored.
    """

    reply: IntentReply
    rejected: Rejected


@dataclass(frozen=True)
class SubmissionUnresolved:
    """State: the job may have been submitted, and has no handle."""

    reply: IntentReply


@dataclass(frozen=True)
class Known:
    """State: the job was known before this run."""

    reply: IntentReply


SubmissionState: TypeAlias = (
    IntentPending | SubmitGranted | SubmissionRejected | SubmissionUnresolved | Known | AcquiredJob
)


@dataclass
class SubmissionProcess:
    """One run, under the lock of its key. `is_abandoned` is checked between the steps."""

    jobs: JobClient
    wanted: JobRequest
    is_abandoned: Callable[[], bool] = lambda: False
    _last_reply: IntentReply | None = None
    _refused: set[Grounds] = field(default_factory=set)
    _absence: AbsenceEvidence | None = None
    _outage: OutageTimer | None = None
    _reporter: ReasonReporter | None = None
    _is_refused_hold: bool = False
    _sibling_since: float | None = None
    _credentials_since: float | None = None

    def run(self, *, new_generation: bool = False) -> AcquiredJob:
        """Return the job.

        Raises:
            JobFailed: the external system rejected the job for good.
            PermanentFailure: it is unknown whether the job was submitted, and `onUnknown` is Fail.
            Held: the same, and `onUnknown` is Hold; or the job's handle can't be stored.
            Unavailable: another process of this attempt may be submitting it, and stores no handle.
            CredentialsRefused: the external system refused the credentials for an hour.
            DigestChanged, JobsOpen: see `Jobs.intent`. Held: instead of DigestChanged, if the job
                is open and an earlier attempt submitted it.
        """
        state: SubmissionState = IntentPending(self._intent(None, new_generation=new_generation))
        while not isinstance(state, AcquiredJob):
            state = self._advance(state)
        return state

    def _advance(self, state: SubmissionState) -> SubmissionState:
        match state:
            case IntentPending(call, delay):
                self.jobs.sleep(delay, self._check)
                return self._send_and_submit(call)
            case SubmitGranted(reply):
                return self._submit(reply)
            case SubmissionRejected(reply, rejected):
                return self._settle_rejected(reply, rejected)
            case SubmissionUnresolved(reply):
                try:
                    return self._resolve(reply)
                except _CapabilitiesUnavailableError as error:
                    return IntentPending(self._intent(None), self._delay_after(str(error), retry_after_of(error)))
            case Known(reply):
                return self._acquire(reply, reply.response.job)
            case AcquiredJob():
                return state

    def _send_and_submit(self, call: IntentCall) -> SubmissionState:
        try:
            # SIGTERM is deferred from the intent to the handle, because a grant without a handle
            # must be resolved later.
            with self.jobs.termination.sigterm_deferred():
                state = self._send(call)
                return self._advance(state) if isinstance(state, SubmitGranted) else state
        except GroundsRefused as refused:
            logger.warning("External job %r: %s", self.wanted.key, refused)
            return self._without_grounds(call)
        except DigestChanged as changed:
            return self._hold_for_request(changed)
        except _CapabilitiesUnavailableError as error:
            return IntentPending(call, self._delay_after(str(error), retry_after_of(error)))

    # -- store the intent ----

    def _intent(self, again: Grounds | None, *, new_generation: bool = False) -> IntentCall:
        adapter = self.wanted.adapter
        try:
            token = self._capabilities().token
        except _CapabilitiesUnavailableError:
            # An intent without `tokenSeconds` still finds a job that exists. It only can't be
            # resubmitted by token.
            token = None
        return self.jobs.intent_call(
            self.wanted.key,
            adapter=adapter.name,
            digest=adapter.digest(self.wanted.request),
            token_seconds=None if token is None or token.while_open else seconds_of(token.lifetime),
            detached=self.wanted.detached,
            again=again,
            new_generation=new_generation,
            field_digests=field_digests_of(adapter, self.wanted.request),
        )

    def _capabilities(self) -> Capabilities:
        """Return the adapter's current capabilities. Raises `_CapabilitiesUnavailableError`."""
        try:
            return self.wanted.adapter.capabilities
        except Exception as error:  # no error means that the system has no capabilities
            raise _CapabilitiesUnavailableError(f"{type(error).__name__}: {error}") from error

    def _without_grounds(self, call: IntentCall) -> IntentPending:
        """Send the intent again, and do not use the grounds of `call` in this run any more."""
        if (grounds := grounds_of(call)) is not None:
            self._refused.add(grounds)
        return IntentPending(self._intent(None))

    def _hold_for_request(self, changed: DigestChanged) -> IntentPending:
        """Hold the run if the job is open and an earlier attempt submitted another request.

        The run would fail otherwise, and its cleanup would cancel the job. Raises `Held`, or
        `changed` if this process used the key for two requests or the job is over.
        """
        job = self.jobs.read(read_call(self.wanted.key))
        if job is None or job.state is JobState.SUCCEEDED or self.wanted.key in self.jobs.known_keys:
            raise changed
        state: OutcomeState = "Unknown" if job.handle is None else "Active"
        if not self._try_outcome(job, state, str(changed), hold=True):
            return IntentPending(self._intent(None))
        adopt = "HANDLE" if job.handle is None else job.handle
        raise self.jobs.held(
            f"{changed}. Manual resolution required: kubectl reattach resolve NAME --adopt {adopt} takes this job over for the"
            " request of the next attempt"
        )

    def _send(self, call: IntentCall) -> SubmitGranted | SubmissionUnresolved | Known:
        timing, last = self.jobs.timing, self._last_reply
        self.jobs.report_step(Step.BEFORE_INTENT)
        sent = timing.clock()
        response = self.jobs.send_intent(call)
        if last is not None and last.call is call:
            # The response to a repeated call may be the stored one, with the time of the first one.
            clock = last.clock
        else:
            clock = ServerClock(response.server_time, sent, timing.clock())
        self.jobs.report_step(Step.AFTER_INTENT)
        self.jobs.known_keys.add(self.wanted.key)
        is_late = timing.clock() - sent > FRESH_SECONDS
        late = (0 if last is None else last.late) + 1 if is_late else 0
        self._last_reply = reply = IntentReply(call, response, clock, sent, late)
        match response.decision:
            case Decision.SUBMIT:
                return SubmitGranted(reply)
            case Decision.RESOLVE:
                return SubmissionUnresolved(reply)
            case _:
                return Known(reply)

    def _age(self, reply: IntentReply) -> float:
        """Return the seconds since the call of this reply was sent: the age of its facts."""
        return self.jobs.timing.clock() - reply.sent

    def _now(self, reply: IntentReply) -> TimeBounds:
        return reply.clock.at(self.jobs.timing.clock())

    # -- submit, and store the handle ----

    def _submit(self, reply: IntentReply) -> SubmissionState:
        adapter, job, call = self.wanted.adapter, reply.response.job, reply.call
        if reply.late > 0 and (reply.late <= LATE_RESPONSES_MAX or self._age(reply) > STALE_SECONDS):
            return IntentPending(call)
        grounds = grounds_of(call)
        # Read once, because reading them may be a call of the external system, and the last check
        # can't wait for one.
        capabilities = None if grounds is None else self._capabilities()

        def may_leave() -> bool:
            if self._age(reply) > STALE_SECONDS:
                # This holds for the first submission too: since the grant, another attempt may have
                # submitted a job, and its record may have expired.
                return False
            if grounds is None or capabilities is None:
                return True
            return still_holds(grounds, job, capabilities, self.wanted.request_time, self._now(reply))

        if not may_leave():
            return IntentPending(call if grounds is None else self._intent(None))
        self._absence = None
        with self.jobs.termination.end_delayed():
            self.jobs.report_step(Step.BEFORE_SUBMIT)
            try:
                submitted: object = adapter.submit(self.wanted.submission_of(job, may_leave, reply.response.owner))
            except Rejected as rejected:
                return SubmissionRejected(reply, rejected)
            except Exception as error:  # noqa: BLE001 -- after any other error the job may exist
                why = f"{type(error).__name__}: {error}"
                return IntentPending(self._intent(None), self._delay_after(why, retry_after_of(error)))
            self.jobs.report_step(Step.AFTER_SUBMIT)
            if not isinstance(submitted, Submitted):
                why = f"{type(adapter).__name__}.submit must return Submitted, not {submitted!r:.100}"
                return self._hold_unrecorded(reply, submitted, why)
            return self._record(reply, submitted, "Existed" if submitted.existed else "Submitted")

    def _record(self, reply: IntentReply, submitted: Submitted, origin: Origin) -> AcquiredJob | IntentPending:
        job = reply.response.job
        try:
            handle = check_handle(submitted.handle)
        except InvalidValue as error:
            return self._hold_unrecorded(reply, submitted, str(error))
        # Logged before it is stored, so that the log has it even if storing it fails for good.
        logger.info("External job %r (generation %d): %s as %s.", job.key, job.generation, origin.lower(), handle)
        try:
            self.jobs.write(self.jobs.handle_call(job.key, job.generation, handle, submitted.url, origin))
        except (HandleDiffers, JobOver) as error:
            logger.error("External job %r: %s may run, and no TaskRun owns it: %s", job.key, handle, error)  # noqa: TRY400
            return IntentPending(self._intent(None))
        self.jobs.report_step(Step.AFTER_HANDLE)
        if self._outage is not None:
            self._outage.end()
        recorded = msgspec.structs.replace(
            job,
            handle=handle,
            url=submitted.url,
            state=JobState.ACTIVE,
            origin=JobOrigin(origin),
            recorded_at=self._now(reply).latest,
        )
        acquired = self._acquire(reply, recorded)
        return replace(acquired, is_preexisting=origin == "Existed" and grounds_of(reply.call) is None)

    def _hold_unrecorded(self, reply: IntentReply, submitted: Any, why: str) -> IntentPending:
        """Hold the run, because the job exists and its handle can't be stored.

        Without the hold, the policy or the next attempt could submit it again. Raises `Held`.
        """
        job = reply.response.job
        # Whole only here: the state and the TaskRun have room for its beginning and its hash.
        logger.error(
            "External job %r (generation %d): submitted as %r, which can't be stored.",
            job.key,
            job.generation,
            submitted,
        )
        why = (
            f"the job was submitted, but {why}. The log of attempt {self.wanted.attempt} has it whole. Adopt another id of"
            " the job, because --resubmit makes a second job"
        )
        if not self._try_outcome(job, "Unknown", why, hold=True):
            return IntentPending(self._intent(None))
        raise self.jobs.held(held_text(job, why))

    def _settle_rejected(self, reply: IntentReply, rejected: Rejected) -> IntentPending:
        job, call = reply.response.job, reply.call
        self._check_credentials(rejected)
        if rejected.retriable:
            # No job was made, so the grant is still valid: the same call has the same response.
            return IntentPending(call, self._delay_after(str(rejected), retry_after_of(rejected)))
        if grounds_of(call) in {Grounds.CLIENT_NAME, Grounds.TOKEN}:
            # The rejection is about this submission. An earlier one may have made a job.
            logger.warning("External job %r was rejected: %s", job.key, rejected)
            return self._without_grounds(call)
        message = cut_message(str(rejected))
        try:
            self._store_outcome(job, "Failed", message)
        except JobOver:
            return IntentPending(self._intent(None))
        raise JobFailed(key=job.key, generation=job.generation, handle=None, message=message) from rejected

    def _check_credentials(self, rejected: Rejected) -> None:
        """Raise `CredentialsRefused` once they were refused for `CREDENTIALS_SECONDS` in a row."""
        now = self.jobs.timing.clock()
        if not rejected.credentials:
            self._credentials_since = None
        elif self._credentials_since is None:
            self._credentials_since = now
        elif (seconds := now - self._credentials_since) >= CREDENTIALS_SECONDS:
            raise CredentialsRefused(
                f"external job {self.wanted.key!r} could not be submitted for {seconds:.0f} s, because its external system"
                f" refused the credentials: {rejected}. Replace them; the next attempt submits the same job"
            ) from rejected

    def _delay_after(self, why: str, retry_after: float = 0.0) -> float:
        """Return the seconds until the next try."""
        if self._outage is None:
            what = f"External job {self.wanted.key!r} can't be submitted"
            self._outage = OutageTimer(self.jobs.timing, what, quiet_seconds=0.0)
        self._reporter = self._reporter or ReasonReporter(self.jobs.timing, self._report_reason)
        self._reporter.observe(why)
        return self._outage.wait(why, WAIT_SECONDS_MAX, retry_after)

    def _report_reason(self, why: str) -> bool:
        """Show why the job has no handle yet, if its intent is stored."""
        job = None if self._last_reply is None else self._last_reply.response.job
        if job is None or job.state is not JobState.INTENDED:
            return False
        return self.jobs.report_reason(job.key, job.generation, f"It can't be submitted: {why}")

    # -- it may have been submitted ----

    def _resolve(self, reply: IntentReply) -> AcquiredJob | IntentPending:
        if 0 < reply.late <= LATE_RESPONSES_MAX:
            # The response took long, for example because the state API was unavailable. Times
            # computed from it would be too late by as much.
            return IntentPending(self._intent(None))
        response, job = self._with_local_quiet_period(reply), reply.response.job
        while True:
            self._check()
            step = next_step(
                ResolutionInput(
                    response=response,
                    capabilities=self._capabilities(),
                    request=self.wanted.request_time,
                    now=self._now(reply),
                    absence=self._absence,
                    refused=frozenset(self._refused),
                )
            )
            match step:
                case HoldRun() | GiveUp() | SubmitAgain(Grounds.POLICY) if self._is_of_a_sibling(response):
                    return self._wait_for_sibling()
                case SubmitAgain(grounds):
                    logger.info("External job %r may have been submitted; submitting again: %s.", job.key, grounds)
                    return IntentPending(self._intent(grounds))
                case LookUpStep(at):
                    if (found := self._look_up(reply, at)) is not None:
                        return self._record(reply, found, "Found")
                case StillHeld(why):
                    raise self.jobs.held(held_text(job, why))
                case HoldRun(why):
                    if not self._try_outcome(job, "Unknown", why, hold=True):
                        return IntentPending(self._intent(None))
                    raise self.jobs.held(held_text(job, why))
                case GiveUp(why):
                    if not self._try_outcome(job, "Failed", why, given_up=True):
                        return IntentPending(self._intent(None))
                    raise given_up(job, why)

    def _with_local_quiet_period(self, reply: IntentReply) -> IntentResponse:
        """Return the response with a `quiet_since` no earlier than this process opened the state.

        The two times of a response may come from replicas whose clocks differ. So the quiet period
        is also measured by our own monotonic clock.
        """
        response = reply.response
        unresolved = response.unresolved
        if unresolved is None or unresolved.quiet_since is None:
            return response
        quiet_since = max(unresolved.quiet_since, reply.clock.at(self.jobs.opened_at).latest)
        return msgspec.structs.replace(
            response, unresolved=msgspec.structs.replace(unresolved, quiet_since=quiet_since)
        )

    def _is_of_a_sibling(self, response: IntentResponse) -> bool:
        """Return whether only other processes of this attempt may be submitting the job."""
        unresolved = response.unresolved
        return unresolved is not None and not unresolved.all_ended and set(unresolved.attempts) == {self.wanted.attempt}

    def _wait_for_sibling(self) -> IntentPending:
        """Check again later. If the other process stores no handle in time, raise `Unavailable`.

        Only the next attempt can know that the other process has ended.
        """
        now = self.jobs.timing.clock()
        if self._sibling_since is None:
            self._sibling_since = now
            logger.info("External job %r: another process of this attempt may be submitting it.", self.wanted.key)
        if now - self._sibling_since > (self.wanted.request_time + MARGIN).total_seconds():
            raise Unavailable(
                f"external job {self.wanted.key!r} may have been submitted by another process of this attempt, which"
                f" has stored no handle for {now - self._sibling_since:.0f} s; the next attempt resolves it"
            )
        self._absence = None
        return IntentPending(self._intent(None), SIBLING_SECONDS)

    def _look_up(self, reply: IntentReply, until: datetime | None) -> Submitted | None:
        """Look the job up, and keep the evidence. See `look_up`."""
        job, seconds = reply.response.job, self._seconds_until(reply, until)
        if seconds > 0:
            logger.warning(
                "External job %r may have been submitted and is not found yet. It is looked up again until it is found, for"
                " at most %.0f s.",
                self.wanted.key,
                seconds,
            )
        found, self._absence = look_up(self.jobs, self.wanted, job, reply.clock, self._check, until=until)
        return found

    def _seconds_until(self, reply: IntentReply, until: datetime | None) -> float:
        return 0.0 if until is None else (until - self._now(reply).earliest).total_seconds()

    def _try_outcome(
        self, job: Job, state: OutcomeState, why: str, *, hold: bool = False, given_up: bool = False
    ) -> bool:
        """Store an outcome.

        Return False if the job was settled meanwhile, for example by a handle of an earlier
        attempt.
        """
        try:
            self._store_outcome(job, state, why, hold=hold, given_up=given_up)
        except JobOver:
            return False
        except InvalidCall:
            if self._is_refused_hold:
                raise
            self._is_refused_hold = True
            return False
        return True

    def _store_outcome(
        self, job: Job, state: OutcomeState, message: str, *, hold: bool = False, given_up: bool = False
    ) -> None:
        self.jobs.report_step(Step.BEFORE_OUTCOME)
        call = outcome_call(job.key, job.generation, state, message=message, hold=hold, given_up=given_up)
        self.jobs.write(call)
        self.jobs.report_step(Step.AFTER_OUTCOME)

    # -- done ----

    def _acquire(self, reply: IntentReply, job: Job) -> AcquiredJob:
        if reply.response.decision is Decision.REATTACH:
            what = (job.key, job.generation, job.handle, job.state)
            logger.info("Reattached to external job %r (generation %d): %s, last known as %s.", *what)
        if job.state in {JobState.FAILED, JobState.CANCELLED} and job.handle is None:
            raise failed(job)
        return AcquiredJob(job, reply.response.on_not_found, reply.clock)

    def _check(self) -> None:
        self.jobs.termination.check()
        if self.is_abandoned():
            raise Abandoned(self.wanted.key)


def look_up(
    jobs: JobClient,
    wanted: JobRequest,
    job: Job,
    clock: ServerClock,
    check: Callable[[], None] | None = None,
    *,
    until: datetime | None = None,
) -> tuple[Submitted | None, AbsenceEvidence]:
    """Look a job up until the external system responds. The evidence counts if there is no job.

    `until`: repeat the lookup every few seconds until one that is sent at that time or later does
    not find the job. The earlier ones prove nothing, but may find it.
    """
    pause = LOOK_UP_SECONDS_FIRST
    outage = OutageTimer(jobs.timing, f"External job {job.key!r} can't be looked up")

    reporter = ReasonReporter(jobs.timing, lambda why: jobs.report_reason(job.key, job.generation, why))
    while True:
        began = clock.at(jobs.timing.clock()).earliest
        try:
            found = wanted.adapter.look_up(wanted.submission_of(job))
        except NotImplementedError:
            raise
        except Exception as error:  # noqa: BLE001 -- no other error is evidence of absence
            why = f"{type(error).__name__}: {error}"
            reporter.observe(f"It can't be looked up: {why}")
            jobs.sleep(outage.wait(why, WAIT_SECONDS_MAX, retry_after_of(error)), check)
            continue
        outage.end()
        if not isinstance(found, Submitted | None):
            raise TypeError(
                f"{type(wanted.adapter).__name__}.look_up must return Submitted or None, not {found!r:.100}"
            )
        now = clock.at(jobs.timing.clock())
        if found is not None or until is None or began >= until:
            return found, AbsenceEvidence(began, now.latest)
        reporter.observe(
            f"It may have been submitted, and is not found. Lookups go on until {until:%Y-%m-%dT%H:%M:%SZ}."
        )
        left = max((until - now.earliest).total_seconds(), 0.001)
        # Jitter spreads the lookups of many tasks after an outage that all of them noticed.
        jobs.sleep(min(left, pause * (0.5 + jobs.timing.jitter() / 2)), check)
        pause = min(pause * 2, LOOK_UP_SECONDS_MAX)
        outage = OutageTimer(jobs.timing, f"External job {job.key!r} can't be looked up")


class _CapabilitiesUnavailableError(Exception):
    """The adapter's capabilities can't be read now."""


def field_digests_of(adapter: Adapter, request: Any) -> FieldDigests:
    """Return digests of the top-level fields of a request, as far as they can be stored.

    An adapter with a digest of its own may ignore some fields, so none are named.
    """
    if type(adapter).digest is not Adapter.digest or not isinstance(request, dict):
        return {}
    names = sorted(name for name in request if isinstance(name, str) and _FIELD_NAME.fullmatch(name))
    return {name: adapter.digest(request[name])[:8] for name in names[:FIELD_DIGESTS_MAX]}


def grounds_of(call: IntentCall) -> Grounds | None:
    """Return the grounds on which a call requests to submit again."""
    assert isinstance(call.body, IntentRequest)
    return call.body.again


def failed(job: Job) -> JobFailed | PermanentFailure:
    """Return the error to raise for a job that is over without success."""
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
    """Return the error to raise for a job whose outcome is unknown, if the policy is `Fail`."""
    return PermanentFailure(f"{_name_of(job)}: {why}")


def held_text(job: Job, why: str) -> str:
    """Return the message of a hold, with the command that resolves it."""
    return f"{_name_of(job)}: {why}. Manual resolution required: kubectl reattach resolve NAME --adopt HANDLE, --resubmit or --fail"


def _name_of(job: Job) -> str:
    handle = "" if job.handle is None else f", {job.handle}"
    return f"external job {job.key!r} (generation {job.generation}{handle})"
