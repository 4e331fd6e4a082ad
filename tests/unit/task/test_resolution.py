"""What is done about a job that may have been submitted: each step, each combination of what the other side can do, and the edges of time."""

import dataclasses
import itertools
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reattach.adapter import Capabilities, ClientName, Lookup, SubmissionToken
from reattach.adapters.base import LONGEST, MARGIN
from reattach.api.messages import Decision, Grounds, IntentResponse, Job, Unresolved
from reattach.api.state import JobState
from reattach.state.operations import RETENTION_SECONDS_MAX
from reattach.task.job_client import seconds_of
from reattach.task.resolution import (
    AbsenceEvidence,
    GiveUp,
    HoldRun,
    LookUpStep,
    ResolutionInput,
    ResolutionStep,
    StillHeld,
    SubmitAgain,
    TimeBounds,
    next_step,
    still_holds,
)

INTENDED = datetime(2026, 11, 23, 12, tzinfo=UTC)
REQUEST = timedelta(seconds=30)
MINUTE = timedelta(minutes=1)
SECOND = timedelta(seconds=1)
SETTLING = timedelta(minutes=2)
SETTLES = REQUEST + MARGIN + SETTLING
"""Since no one could submit any more."""

NAME = ClientName()
TOKEN = SubmissionToken(lifetime=timedelta(hours=1))
LOOK_UP = Lookup(settling=SETTLING, retention=timedelta(hours=2))
EVERY = Capabilities(NAME, TOKEN, LOOK_UP)


class TestDeclaring:
    FOR_EVER = Capabilities(ClientName(timedelta.max), SubmissionToken(timedelta.max), Lookup(SETTLING, timedelta.max))

    def test_as_long_as_can_be_leads_beyond_no_calendar(self) -> None:
        for grounds in ({Grounds.CLIENT_NAME}, {Grounds.CLIENT_NAME, Grounds.TOKEN}):
            assert next_step(
                a_situation(self.FOR_EVER, refused=grounds, looked_up_after=9 * MINUTE, token_seconds=None)
            )
        assert still_holds(Grounds.CLIENT_NAME, a_situation().job, self.FOR_EVER, REQUEST, a_situation().now)
        assert next_step(
            a_situation(Capabilities(look_up=Lookup(timedelta.max)), looked_up_after=9 * MINUTE)
        ) == LookUpStep(INTENDED + 5 * MINUTE + REQUEST + MARGIN + LONGEST)

    def test_it_is_no_longer_than_the_state_api_takes(self) -> None:
        assert self.FOR_EVER.token is not None
        assert seconds_of(self.FOR_EVER.token.lifetime) == RETENTION_SECONDS_MAX

    @pytest.mark.parametrize("declare", [ClientName, SubmissionToken, Lookup, lambda time: Lookup(SETTLING, time)])
    def test_nothing_lasts_less_than_no_time(self, declare: Any) -> None:
        declare(timedelta(0))
        with pytest.raises(ValueError, match="must not be negative"):
            declare(-SECOND)

    @pytest.mark.parametrize("declare", [ClientName, lambda time, while_open: Lookup(SETTLING, time, while_open)])
    def test_retention_of_what_is_known_only_while_the_job_is_open_is_refused(self, declare: Any) -> None:
        with pytest.raises(ValueError, match="must have either retention or while_open"):
            declare(timedelta(hours=1), while_open=True)


def a_situation(
    capabilities: Capabilities = Capabilities(),  # noqa: B008 -- frozen
    *,
    after: timedelta = 10 * MINUTE,
    all_ended: bool = True,
    quiet_after: timedelta | None = 5 * MINUTE,
    looked_up_after: timedelta | None = None,
    on_unknown: Any = "Hold",
    held: bool = False,
    token_seconds: int | None = 3600,
    refused: set[Grounds] | None = None,
    slowness: timedelta = timedelta(0),
) -> ResolutionInput:
    """So long after the intent. `slowness`: how much is not known about the time."""
    job = Job(
        key="load",
        generation=1,
        adapter="thing",
        token="t-1",
        digest="d",
        state=JobState.INTENDED,
        detached=False,
        intended_at=INTENDED,
        token_seconds=token_seconds,
        held=held,
        holds=int(held),
        message="a reason" if held else "",
    )
    quiet = INTENDED + quiet_after if all_ended and quiet_after is not None else None
    now = INTENDED + after
    absence = None
    if looked_up_after is not None:
        absence = AbsenceEvidence(INTENDED + looked_up_after, INTENDED + looked_up_after + slowness)
    return ResolutionInput(
        response=IntentResponse(
            decision=Decision.RESOLVE,
            job=job,
            unresolved=Unresolved(all_ended=all_ended, quiet_since=quiet, attempts=(1, 2)),
            on_unknown=on_unknown,
            on_not_found="Hold",
            server_time=now,
        ),
        capabilities=capabilities,
        request=REQUEST,
        now=TimeBounds(now, now + slowness),
        absence=absence,
        refused=frozenset(refused or ()),
    )


def kind(step: ResolutionStep) -> Any:
    return step.grounds if isinstance(step, SubmitAgain) else type(step)


# What follows while every promise still lasts: by name, token, look-up; asked for the first time, and after it was looked up and absent,
# with every earlier submitter ended and with one that may be alive.
TABLE = {
    # name, token, look-up: (ended, ended and absent, alive, alive and absent)
    (False, False, False): (HoldRun, HoldRun, HoldRun, HoldRun),
    (False, False, True): (LookUpStep, Grounds.ABSENT, LookUpStep, HoldRun),
    (False, True, False): (Grounds.TOKEN, Grounds.TOKEN, HoldRun, HoldRun),
    (False, True, True): (LookUpStep, Grounds.TOKEN, LookUpStep, HoldRun),
    (True, False, False): (Grounds.CLIENT_NAME,) * 4,
    (True, False, True): (Grounds.CLIENT_NAME,) * 4,
    (True, True, False): (Grounds.CLIENT_NAME,) * 4,
    (True, True, True): (Grounds.CLIENT_NAME,) * 4,
}


@pytest.mark.parametrize("name,token,look_up", [*itertools.product([False, True], repeat=3)])
def test_next_step_returns_the_first_step_that_holds(name: bool, token: bool, look_up: bool) -> None:
    capabilities = Capabilities(NAME if name else None, TOKEN if token else None, LOOK_UP if look_up else None)
    # Only what declares a look-up is looked up; elsewhere an absence changes nothing.
    seen = [
        kind(next_step(a_situation(capabilities, all_ended=ended, looked_up_after=absent)))
        for ended, absent in itertools.product([True, False], [None, 10 * MINUTE])
    ]
    assert tuple(seen) == TABLE[name, token, look_up]


class TestHeld:
    def test_what_waits_for_a_person_goes_on_waiting_whatever_the_other_side_can_do(self) -> None:
        assert next_step(a_situation(EVERY, held=True)) == StillHeld("a reason")

    def test_a_hold_has_a_reason_even_if_none_is_stored(self) -> None:
        held = a_situation(EVERY, held=True)
        bare = msgspec.structs.replace(held.response, job=msgspec.structs.replace(held.job, message=""))
        step = next_step(dataclasses.replace(held, response=bare))
        assert isinstance(step, StillHeld)
        assert "waits for a resolution" in step.why


class TestName:
    def test_a_name_that_is_never_forgotten_counts_for_ever(self) -> None:
        assert next_step(a_situation(Capabilities(NAME), after=timedelta(days=3650))) == SubmitAgain(
            Grounds.CLIENT_NAME
        )

    def test_it_must_be_known_there_until_the_request_has_arrived(self) -> None:
        forgets = Capabilities(ClientName(retention=timedelta(hours=1)))
        last = timedelta(hours=1) - REQUEST - MARGIN
        assert kind(next_step(a_situation(forgets, after=last - SECOND))) is Grounds.CLIENT_NAME
        assert kind(next_step(a_situation(forgets, after=last))) is HoldRun

    def test_of_what_is_not_known_about_the_time_the_worse_counts(self) -> None:
        forgets = Capabilities(ClientName(retention=timedelta(hours=1)))
        last = timedelta(hours=1) - REQUEST - MARGIN - SECOND
        assert kind(next_step(a_situation(forgets, after=last, slowness=SECOND))) is HoldRun


class TestToken:
    def test_it_must_be_honoured_until_the_request_has_arrived(self) -> None:
        last = TOKEN.lifetime - REQUEST - MARGIN
        honours = Capabilities(token=TOKEN)
        assert kind(next_step(a_situation(honours, after=last - SECOND))) is Grounds.TOKEN
        assert kind(next_step(a_situation(honours, after=last))) is HoldRun
        assert kind(next_step(a_situation(honours, after=last - SECOND, slowness=SECOND))) is HoldRun

    def test_the_shorter_of_what_was_and_is_promised_counts(self) -> None:
        honours = Capabilities(token=TOKEN)
        assert kind(next_step(a_situation(honours, token_seconds=600, after=9 * MINUTE))) is Grounds.TOKEN
        assert kind(next_step(a_situation(honours, token_seconds=600, after=10 * MINUTE))) is HoldRun
        shorter = Capabilities(token=SubmissionToken(5 * MINUTE))
        assert kind(next_step(a_situation(shorter, after=4 * MINUTE))) is Grounds.TOKEN
        assert kind(next_step(a_situation(shorter, after=5 * MINUTE))) is HoldRun

    def test_what_was_submitted_without_one_is_not_known_by_one(self) -> None:
        assert kind(next_step(a_situation(Capabilities(token=TOKEN), token_seconds=None))) is HoldRun

    def test_one_that_may_still_submit_could_do_so_after_the_token_is_forgotten(self) -> None:
        assert kind(next_step(a_situation(Capabilities(token=TOKEN), all_ended=False))) is HoldRun


class TestLookUp:
    ABLE = Capabilities(look_up=LOOK_UP)

    def test_it_is_asked_even_where_absence_would_prove_nothing(self) -> None:
        assert next_step(a_situation(self.ABLE, all_ended=False)) == LookUpStep()
        assert next_step(a_situation(self.ABLE, after=timedelta(days=1))) == LookUpStep()

    def test_absence_counts_once_the_last_request_has_arrived_and_settled_since_no_one_could_submit(self) -> None:
        early = a_situation(self.ABLE, quiet_after=9 * MINUTE, looked_up_after=10 * MINUTE)
        assert next_step(early) == LookUpStep(INTENDED + 9 * MINUTE + SETTLES)
        quiet = 10 * MINUTE - SETTLES
        just_before = a_situation(self.ABLE, quiet_after=quiet, looked_up_after=10 * MINUTE - SECOND)
        assert kind(next_step(just_before)) is LookUpStep
        just = a_situation(self.ABLE, quiet_after=quiet, looked_up_after=10 * MINUTE)
        assert next_step(just) == SubmitAgain(Grounds.ABSENT)

    def test_what_is_found_at_once_may_still_be_on_its_way_when_its_process_dies(self) -> None:
        at_once = Capabilities(look_up=Lookup(settling=timedelta(0)))
        early = a_situation(at_once, quiet_after=10 * MINUTE, looked_up_after=10 * MINUTE)
        assert next_step(early) == LookUpStep(INTENDED + 10 * MINUTE + REQUEST + MARGIN)

    def test_absence_counts_only_while_a_job_of_that_age_would_be_remembered(self) -> None:
        retention = timedelta(hours=2)
        last = retention - MARGIN
        remembered = a_situation(self.ABLE, after=retention, looked_up_after=last - SECOND)
        assert next_step(remembered) == SubmitAgain(Grounds.ABSENT)
        assert kind(next_step(a_situation(self.ABLE, after=retention, looked_up_after=last))) is HoldRun
        slow = a_situation(self.ABLE, after=retention, looked_up_after=last - SECOND, slowness=SECOND)
        assert kind(next_step(slow)) is HoldRun

    def test_nobody_waits_for_an_absence_that_would_prove_nothing_by_then(self) -> None:
        forgets = Capabilities(look_up=Lookup(settling=SETTLING, retention=9 * MINUTE + SETTLES + MARGIN))
        assert kind(next_step(a_situation(forgets, quiet_after=9 * MINUTE, looked_up_after=10 * MINUTE))) is HoldRun
        keeps = Capabilities(look_up=Lookup(settling=SETTLING, retention=9 * MINUTE + SETTLES + MARGIN + SECOND))
        assert kind(next_step(a_situation(keeps, quiet_after=9 * MINUTE, looked_up_after=10 * MINUTE))) is LookUpStep

    def test_what_is_found_for_ever_is_absent_for_ever(self) -> None:
        keeps = Capabilities(look_up=Lookup(settling=timedelta(0)))
        long = timedelta(days=3650)
        assert next_step(a_situation(keeps, after=long, looked_up_after=long)) == SubmitAgain(Grounds.ABSENT)


class TestWhileOpen:
    """The job may have ended, so that its name and token are free and a lookup does not find it."""

    FREED_NAME = ClientName(while_open=True)
    FREED_TOKEN = SubmissionToken(timedelta.max, while_open=True)
    OPEN_JOBS = Lookup(SETTLING, while_open=True)

    @pytest.mark.parametrize(
        "capabilities",
        [
            Capabilities(FREED_NAME),
            Capabilities(token=FREED_TOKEN),
            Capabilities(look_up=OPEN_JOBS),
            Capabilities(FREED_NAME, FREED_TOKEN, OPEN_JOBS),
        ],
    )
    @pytest.mark.parametrize("all_ended", [True, False])
    @pytest.mark.parametrize("after", [10 * MINUTE, timedelta(days=365)])
    def test_absent_job_is_held(self, capabilities: Capabilities, all_ended: bool, after: timedelta) -> None:
        step = next_step(a_situation(capabilities, all_ended=all_ended, after=after, looked_up_after=after))
        assert isinstance(step, HoldRun)

    def test_lookup_is_repeated_once_after_the_settling_time_because_it_may_find_the_job(self) -> None:
        capabilities = Capabilities(self.FREED_NAME, look_up=self.OPEN_JOBS)
        assert next_step(a_situation(capabilities)) == LookUpStep()
        early = a_situation(capabilities, quiet_after=9 * MINUTE, looked_up_after=10 * MINUTE)
        assert next_step(early) == LookUpStep(INTENDED + 9 * MINUTE + SETTLES)
        settled = a_situation(capabilities, quiet_after=9 * MINUTE, looked_up_after=9 * MINUTE + SETTLES)
        assert isinstance(next_step(settled), HoldRun)

    def test_lookup_that_includes_ended_jobs_proves_absence_beside_a_freed_name(self) -> None:
        capabilities = Capabilities(self.FREED_NAME, self.FREED_TOKEN, LOOK_UP)
        assert next_step(a_situation(capabilities, looked_up_after=10 * MINUTE)) == SubmitAgain(Grounds.ABSENT)

    def test_kept_name_counts_beside_a_lookup_of_open_jobs(self) -> None:
        assert next_step(a_situation(Capabilities(NAME, look_up=self.OPEN_JOBS))) == SubmitAgain(Grounds.CLIENT_NAME)

    def test_freed_name_and_token_do_not_hold_before_a_submission(self) -> None:
        freed = Capabilities(self.FREED_NAME, self.FREED_TOKEN)
        now = TimeBounds(INTENDED, INTENDED)
        assert not still_holds(Grounds.CLIENT_NAME, a_situation().job, freed, REQUEST, now)
        assert not still_holds(Grounds.TOKEN, a_situation().job, freed, REQUEST, now)

    @pytest.mark.parametrize(
        "capabilities,why",
        [
            (Capabilities(FREED_NAME, look_up=OPEN_JOBS), "the lookup finds only open jobs"),
            (Capabilities(FREED_NAME), "its name or token is free when the job has ended"),
            (Capabilities(token=FREED_TOKEN), "its name or token is free when the job has ended"),
            (Capabilities(ClientName(timedelta(0)), FREED_TOKEN), "may no longer know its name or token"),
        ],
    )
    def test_hold_says_that_the_job_may_have_ended(self, capabilities: Capabilities, why: str) -> None:
        step = next_step(a_situation(capabilities, looked_up_after=10 * MINUTE))
        assert isinstance(step, HoldRun)
        assert why in step.why


class TestPolicy:
    def test_it_decides_where_nothing_else_does(self) -> None:
        assert isinstance(next_step(a_situation(on_unknown="Hold")), HoldRun)
        assert isinstance(next_step(a_situation(on_unknown="Fail")), GiveUp)
        assert next_step(a_situation(on_unknown="Resubmit")) == SubmitAgain(Grounds.POLICY)

    def test_it_comes_last(self) -> None:
        for all_ended in (True, False):
            assert kind(next_step(a_situation(EVERY, all_ended=all_ended, on_unknown="Resubmit"))) is not Grounds.POLICY

    @pytest.mark.parametrize(
        "situation,why",
        [
            (a_situation(all_ended=False), "may still submit it have not ended (attempt 1, 2)"),
            (a_situation(Capabilities(look_up=LOOK_UP), after=timedelta(days=1), looked_up_after=timedelta(days=1)), "expired"),
            (a_situation(Capabilities(token=TOKEN), after=timedelta(days=1)), "no longer know its name or token"),
            (a_situation(), "no way to find out"),
        ],
    )  # fmt: skip
    def test_a_person_is_told_why(self, situation: ResolutionInput, why: str) -> None:
        step = next_step(situation)
        assert isinstance(step, HoldRun)
        assert why in step.why


class TestRefusedGrounds:
    def test_what_was_refused_is_not_asked_for_again(self) -> None:
        refused: set[Grounds] = set()
        seen = []
        while isinstance(
            step := next_step(a_situation(EVERY, looked_up_after=10 * MINUTE, on_unknown="Resubmit", refused=refused)),
            SubmitAgain,
        ):
            seen.append(step.grounds)
            refused.add(step.grounds)
        assert seen == [*Grounds]
        assert isinstance(step, HoldRun)


class TestStillHolding:
    def test_grounds_that_time_can_take_away_are_looked_at_again_before_each_submission(self) -> None:
        job = a_situation().job
        short = Capabilities(ClientName(timedelta(hours=1)), TOKEN)

        def holds(grounds: Grounds, after: timedelta) -> bool:
            return still_holds(grounds, job, short, REQUEST, TimeBounds(INTENDED + after, INTENDED + after))

        for grounds in (Grounds.CLIENT_NAME, Grounds.TOKEN):
            assert holds(grounds, MINUTE)
            assert not holds(grounds, timedelta(hours=1))
        for grounds in (Grounds.ABSENT, Grounds.POLICY):
            assert holds(grounds, timedelta(days=365))


spans = st.integers(0, 4 * 3600).map(lambda seconds: timedelta(seconds=seconds))
all_capabilities = st.builds(
    Capabilities,
    st.none() | st.builds(ClientName, st.none() | spans) | st.just(ClientName(while_open=True)),
    st.none() | st.builds(SubmissionToken, spans, st.booleans()),
    st.none()
    | st.builds(Lookup, spans, st.none() | spans)
    | st.builds(lambda settling: Lookup(settling, while_open=True), spans),
)
situations = st.builds(
    a_situation,
    all_capabilities,
    after=spans,
    all_ended=st.booleans(),
    quiet_after=spans,
    looked_up_after=st.none() | spans,
    on_unknown=st.sampled_from(["Hold", "Fail"]),
    token_seconds=st.none() | st.integers(0, 7200),
    slowness=st.integers(0, 30).map(lambda seconds: timedelta(seconds=seconds)),
    refused=st.sets(st.sampled_from([*Grounds])),
)


class TestProperties:
    @given(situations)
    def test_submitting_again_always_has_something_that_makes_a_second_job_impossible(
        self, seen: ResolutionInput
    ) -> None:
        step = next_step(seen)
        if not isinstance(step, SubmitAgain):
            return
        able, unresolved = seen.capabilities, seen.response.unresolved
        assert unresolved is not None
        arrived = seen.now.latest + REQUEST
        if step.grounds is Grounds.CLIENT_NAME:
            assert able.client_name is not None
            assert not able.client_name.while_open
            assert able.client_name.retention is None or arrived < INTENDED + able.client_name.retention
            return
        assert unresolved.all_ended
        if step.grounds is Grounds.TOKEN:
            assert able.token is not None
            assert not able.token.while_open
            assert arrived < INTENDED + able.token.lifetime
        else:
            assert step.grounds is Grounds.ABSENT
            assert able.look_up is not None
            assert not able.look_up.while_open
            assert seen.absence is not None
            assert unresolved.quiet_since is not None
            assert seen.absence.began >= unresolved.quiet_since + REQUEST + MARGIN + able.look_up.settling
            assert able.look_up.retention is None or seen.absence.ended < INTENDED + able.look_up.retention

    @given(situations)
    def test_time_only_ever_leads_down_the_ladder(self, seen: ResolutionInput) -> None:
        """Whoever asks later, with the same answers, is never told to submit on better grounds."""
        order = [*Grounds]
        later = dataclasses.replace(seen, now=TimeBounds(seen.now.earliest + MINUTE, seen.now.latest + MINUTE))
        first, second = next_step(seen), next_step(later)
        if isinstance(second, SubmitAgain):
            assert isinstance(first, SubmitAgain)
            assert order.index(first.grounds) <= order.index(second.grounds)

    @given(situations)
    def test_looking_up_leads_somewhere(self, seen: ResolutionInput) -> None:
        """Once it was looked up when it was said to be looked up, it is never looked up again."""
        for _ in range(3):
            step = next_step(seen)
            if not isinstance(step, LookUpStep):
                return
            at = max(seen.now.earliest, step.at or seen.now.earliest)
            slowness = seen.now.latest - seen.now.earliest
            seen = dataclasses.replace(
                seen, now=TimeBounds(at, at + slowness), absence=AbsenceEvidence(at, at + slowness)
            )
        pytest.fail("it is looked up for ever")
