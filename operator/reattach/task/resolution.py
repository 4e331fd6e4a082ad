"""Decides the next step for a job that may have been submitted and has no handle. Pure.

No read covers the state API and the external system at one moment. Each step therefore needs
evidence that submitting again cannot create an unnoticed second job. Without such evidence,
`spec.submission.onUnknown` decides; its default is to hold the TaskRun for a resolution.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeAlias

from reattach.adapters.base import MARGIN, Capabilities, Lookup
from reattach.api.messages import Grounds, IntentResponse, Job, Unresolved


@dataclass(frozen=True)
class TimeBounds:
    """Bounds of the current time by the state API's clock, whose response took time to arrive."""

    earliest: datetime
    latest: datetime


@dataclass(frozen=True)
class AbsenceEvidence:
    """A lookup that did not find the job.

    It was sent not before `began` and returned not after `ended`.
    """

    began: datetime
    ended: datetime


@dataclass(frozen=True)
class AbsenceProven:
    """No process submitted the job before it became quiet, or the job was never accepted."""


@dataclass(frozen=True)
class SubmitAgain:
    """Submit with the same token, on these grounds."""

    grounds: Grounds


@dataclass(frozen=True)
class LookUpStep:
    """Look the job up at once.

    If `at` is set, repeat that until the job is found, or until a lookup at that time or later did
    not find it.
    """

    at: datetime | None = None


@dataclass(frozen=True)
class HoldRun:
    """Hold the TaskRun for a resolution."""

    why: str


@dataclass(frozen=True)
class StillHeld:
    """The TaskRun is held already and waits for a resolution."""

    why: str


@dataclass(frozen=True)
class GiveUp:
    """Fail the TaskRun."""

    why: str


ResolutionStep: TypeAlias = SubmitAgain | LookUpStep | HoldRun | StillHeld | GiveUp


@dataclass(frozen=True)
class ResolutionInput:
    """Everything that the next step depends on.

    response: the state API's response with the decision `Resolve`.
    request: the longest that a submission may take.
    absence: the last lookup without a job since the last submission.
    refused: grounds that the state API has refused.
    """

    response: IntentResponse
    capabilities: Capabilities
    request: timedelta
    now: TimeBounds
    absence: AbsenceEvidence | None = None
    refused: frozenset[Grounds] = frozenset()

    @property
    def job(self) -> Job:
        return self.response.job


def next_step(known: ResolutionInput) -> ResolutionStep:
    """Return the first step whose condition holds.

    The order is: hold, client name, lookup, token, absence, policy. A name, token or lookup that
    ends with the job is no ground, because the job may have ended.
    """
    if known.job.held:
        return StillHeld(known.job.message or "its outcome is unknown and it waits for a resolution")
    if _is_usable(Grounds.CLIENT_NAME, known):
        return SubmitAgain(Grounds.CLIENT_NAME)
    if known.capabilities.look_up is not None and known.absence is None:
        return LookUpStep()
    unresolved = known.response.unresolved
    if unresolved is not None and unresolved.all_ended:
        if _is_usable(Grounds.TOKEN, known):
            return SubmitAgain(Grounds.TOKEN)
        if (step := _step_for_absence(known, unresolved)) is not None:
            return step
    return _step_for_policy(known)


def still_holds(grounds: Grounds, job: Job, capabilities: Capabilities, request: timedelta, now: TimeBounds) -> bool:
    """Return whether a submission on these grounds may begin now.

    The external system must still enforce the name or the token when the request arrives.
    """
    latest = now.latest + request + MARGIN
    match grounds:
        case Grounds.CLIENT_NAME:
            name = capabilities.client_name
            if name is None or name.while_open:  # the job may have ended, and its name may be free again
                return False
            return name.retention is None or latest < job.intended_at + name.retention
        case Grounds.TOKEN:
            token = capabilities.token
            if token is None or token.while_open or job.token_seconds is None:
                return False
            # The shorter lifetime counts, because the adapter may have changed since the intent was
            # stored.
            lifetime = min(token.lifetime, timedelta(seconds=job.token_seconds))
            return latest < job.intended_at + lifetime
        case Grounds.ABSENT | Grounds.POLICY:
            return True


def _is_usable(grounds: Grounds, known: ResolutionInput) -> bool:
    if grounds in known.refused:
        return False
    return still_holds(grounds, known.job, known.capabilities, known.request, known.now)


def _step_for_absence(known: ResolutionInput, unresolved: Unresolved) -> ResolutionStep | None:
    """Return a submission if the lookup proves absence, or a lookup that will prove it.

    Return None if no lookup can prove it.
    """
    look_up, absence = known.capabilities.look_up, known.absence
    if look_up is None or absence is None or unresolved.quiet_since is None or Grounds.ABSENT in known.refused:
        return None
    step = absence_step(
        known.job, look_up, absence, quiet_since=unresolved.quiet_since, request=known.request, now=known.now
    )
    return SubmitAgain(Grounds.ABSENT) if isinstance(step, AbsenceProven) else step


def absence_step(
    job: Job, look_up: Lookup, absence: AbsenceEvidence, *, quiet_since: datetime, request: timedelta, now: TimeBounds
) -> AbsenceProven | LookUpStep | None:
    """Return whether the last lookup proves absence, or the lookup that will prove it.

    Return None if no lookup can prove it. `quiet_since`: see `Unresolved`. `request`: the longest
    that a submission may take.
    """
    # A request that its process had sent before it died may still be accepted, as late as any other
    # request.
    settled = quiet_since + request + MARGIN + look_up.settling
    proves = absence.began >= settled
    if look_up.while_open:
        # The settled lookup may find a job whose request was on its way. One that it does not find
        # may have ended.
        return None if proves else LookUpStep(settled)
    lookup_time = absence.ended if proves else max(settled, now.latest)
    if look_up.retention is not None and lookup_time + MARGIN >= job.intended_at + look_up.retention:
        return None
    return AbsenceProven() if proves else LookUpStep(settled)


def _step_for_policy(known: ResolutionInput) -> ResolutionStep:
    why = why_unknown(known.response.unresolved, known.capabilities)
    match known.response.on_unknown:
        case "Resubmit" if Grounds.POLICY not in known.refused:
            return SubmitAgain(Grounds.POLICY)
        case "Fail":
            return GiveUp(why)
        case _:
            return HoldRun(why)


def why_unknown(unresolved: Unresolved | None, capabilities: Capabilities) -> str:
    """Return why it is unknown whether the job was submitted."""
    if unresolved is not None and not unresolved.all_ended:
        attempts = ", ".join(str(attempt) for attempt in unresolved.attempts)
        return f"it may have been submitted, and attempts that may still submit it have not ended (attempt {attempts})"
    if capabilities.look_up is not None and capabilities.look_up.while_open:
        return "it may have been submitted; the lookup finds only open jobs, so the job may have ended"
    if capabilities.look_up is not None:
        return "it may have been submitted; the lookup does not find it, but its record may have expired"
    named_by = [named for named in (capabilities.client_name, capabilities.token) if named is not None]
    if named_by and all(named.while_open for named in named_by):
        return "it may have been submitted, and its name or token is free when the job has ended"
    if named_by:
        return "it may have been submitted, and the external system may no longer know its name or token"
    return "it may have been submitted, and the external system has no way to find out"
