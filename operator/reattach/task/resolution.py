"""What to do about an external job that may have been submitted and has no handle: pure, one rung after the other.

Nobody can look at two systems at once. So each rung asks for something that makes a second job impossible, or at least known; and where there
is no such thing, it is for the TaskRun's policy to say, which by default asks a person.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeAlias

from reattach.adapters.base import MARGIN, Capabilities
from reattach.api.messages import Grounds, IntentResponse, Job, Unresolved


@dataclass(frozen=True)
class Moment:
    """Now, by the state API's clock: not before `earliest` and not after `latest`, since its last answer took time on the way."""

    earliest: datetime
    latest: datetime


@dataclass(frozen=True)
class Absence:
    """The job was looked up and is not there: asked not before `began`, answered not after `ended`."""

    began: datetime
    ended: datetime


@dataclass(frozen=True)
class SubmitAgain:
    """Submit with the same token, on these grounds."""

    grounds: Grounds


@dataclass(frozen=True)
class LookUpStep:
    """Look it up; `at`: not before then, None: at once."""

    at: datetime | None = None


@dataclass(frozen=True)
class HoldRun:
    """Ask a person."""

    why: str


@dataclass(frozen=True)
class StillHeld:
    """A person was asked and has not answered yet."""

    why: str


@dataclass(frozen=True)
class GiveUp:
    """Fail for good."""

    why: str


Rung: TypeAlias = SubmitAgain | LookUpStep | HoldRun | StillHeld | GiveUp


@dataclass(frozen=True)
class ResolutionInput:
    """Everything that the choice depends on.

    `answer`: the state API's, with the decision `Resolve`. `request`: the longest that a submission may take. `absence`: what the last
    look-up said, None if there was none since the last submission. `refused`: grounds on which submitting was refused already.
    """

    answer: IntentResponse
    capabilities: Capabilities
    request: timedelta
    now: Moment
    absence: Absence | None = None
    refused: frozenset[Grounds] = frozenset()

    @property
    def job(self) -> Job:
        return self.answer.job


def next_rung(seen: ResolutionInput) -> Rung:
    """The first rung that holds."""
    if seen.job.held:
        return StillHeld(seen.job.message or "a person was asked what became of it, and has not answered yet")
    if _is_good(Grounds.CLIENT_NAME, seen):
        return SubmitAgain(Grounds.CLIENT_NAME)
    if seen.capabilities.look_up is not None and seen.absence is None:
        return LookUpStep()
    unresolved = seen.answer.unresolved
    if unresolved is not None and unresolved.all_ended:
        if _is_good(Grounds.TOKEN, seen):
            return SubmitAgain(Grounds.TOKEN)
        if (rung := _rung_of_absence(seen, unresolved)) is not None:
            return rung
    return _rung_of_policy(seen)


def still_holds(grounds: Grounds, job: Job, capabilities: Capabilities, request: timedelta, now: Moment) -> bool:
    """Whether a submission on these grounds may begin now: an enforced name or token must be known over there until it has arrived."""
    latest = now.latest + request + MARGIN
    match grounds:
        case Grounds.CLIENT_NAME:
            name = capabilities.client_name
            return name is not None and (name.retention is None or latest < job.intended_at + name.retention)
        case Grounds.TOKEN:
            token = capabilities.token
            if token is None or job.token_seconds is None:
                return False
            # The shorter one: what was promised may have changed with the adapter.
            lifetime = min(token.lifetime, timedelta(seconds=job.token_seconds))
            return latest < job.intended_at + lifetime
        case Grounds.ABSENT | Grounds.POLICY:
            return True


def _is_good(grounds: Grounds, seen: ResolutionInput) -> bool:
    if grounds in seen.refused:
        return False
    return still_holds(grounds, seen.job, seen.capabilities, seen.request, seen.now)


def _rung_of_absence(seen: ResolutionInput, unresolved: Unresolved) -> Rung | None:
    """Submit if absence proves that there is no job; look up again where it will; None where it can't."""
    look_up, absence = seen.capabilities.look_up, seen.absence
    if look_up is None or absence is None or unresolved.quiet_since is None or Grounds.ABSENT in seen.refused:
        return None
    # A request that was on its way when its process died may be accepted as late as any other.
    settled = unresolved.quiet_since + seen.request + MARGIN + look_up.settling
    proves = absence.began >= settled
    asked = absence.ended if proves else max(settled, seen.now.latest)
    if look_up.retention is not None and asked + MARGIN >= seen.job.intended_at + look_up.retention:
        return None
    return SubmitAgain(Grounds.ABSENT) if proves else LookUpStep(settled)


def _rung_of_policy(seen: ResolutionInput) -> Rung:
    why = _why_unknown(seen)
    match seen.answer.on_unknown:
        case "Resubmit" if Grounds.POLICY not in seen.refused:
            return SubmitAgain(Grounds.POLICY)
        case "Fail":
            return GiveUp(why)
        case _:
            return HoldRun(why)


def _why_unknown(seen: ResolutionInput) -> str:
    unresolved = seen.answer.unresolved
    if unresolved is not None and not unresolved.all_ended:
        attempts = ", ".join(str(attempt) for attempt in unresolved.attempts)
        return (
            f"it may have been submitted, and no one reported the end of those who may still do so (attempt {attempts})"
        )
    if seen.capabilities.look_up is not None:
        return "it may have been submitted; it is not found, but it may have been forgotten over there"
    if seen.capabilities.token is not None or seen.capabilities.client_name is not None:
        return "it may have been submitted, and the other side may no longer know its name or token"
    return "it may have been submitted, and the other side has no way to tell"
