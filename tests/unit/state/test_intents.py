"""What is to be done about an external job. The one rule behind all of it: never submit while somebody else may have."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from job_states import KEY, START, UID, Decision, Grounds, JobState, ProblemCode, Run, SealPurpose, at, code_of
from reattach.api.messages import Unresolved
from reattach.api.state import JobOrigin
from reattach.state.errors import RequestRejectedError
from reattach.state.job_operations import JobEvent, end_holds, with_job
from reattach.state.job_record import to_summary, token_of

REPORTED = {"end": "Reported", "cause": "Disruption", "chargedTo": "disruption"}
FIELDS = {"entrypoint": "01234567"}
PRESUMED = {"end": "Presumed", "cause": "Disruption", "chargedTo": "disruption"}
FAILED = {"end": "Reported", "cause": "Application", "chargedTo": "application"}


def intended(**asked: Any) -> Run:
    run = Run.opened()
    assert run.intend(**asked).decision is Decision.SUBMIT
    return run


def active() -> Run:
    run = intended()
    run.handle("job-1")
    return run


def died(run: Run, **ended: Any) -> Run:
    """Attempt 1 has ended, and attempt 2 asks."""
    return run.with_attempt(1, **(ended or REPORTED)).later(60).by(2)


class TestFirst:
    def test_the_first_intent_is_stored_and_says_submit(self) -> None:
        run = Run.opened()
        answer = run.intend(digest="d-1", adapter="ray", token_seconds=600, detached=True)
        assert answer.decision is Decision.SUBMIT
        assert answer.job == run.job()
        job = run.job()
        assert (job.generation, job.state, job.handle, job.origin) == (1, JobState.INTENDED, None, None)
        assert (job.adapter, job.digest, job.token_seconds, job.detached) == ("ray", "d-1", 600, True)
        assert (job.intended_at, job.submitters[0].id, job.submitters[0].attempt) == (at(0), "process-s-1", 1)
        assert run.counts() == (0, 0, 0)

    def test_the_token_is_the_same_whoever_asks_and_differs_by_key_generation_and_taskrun(self) -> None:
        tokens = [token_of(seed, key, number) for seed in (UID, "other") for key in ("a", "b") for number in (1, 2)]
        assert len(set(tokens)) == 8
        assert intended().job().token == token_of(UID, KEY, 1) == "ba22d429-967b-579a-8fe8-545ee14c9ea8"

    def test_token_with_an_idempotency_key_depends_on_the_namespace_and_not_on_the_uid(self) -> None:
        tokens = []
        for namespace in ("team-a", "team-b"):
            run = Run.opened(submission={"idempotencyKey": "night-2026-03-01"})
            run.owner["metadata"]["namespace"] = namespace
            tokens.append(run.intend().job.token)
        assert tokens == [token_of(f"{namespace}\0night-2026-03-01", KEY, 1) for namespace in ("team-a", "team-b")]
        assert tokens[0] == "acef0ec0-d9ef-5e25-97a4-92065cdad584"

    def test_stored_generation_keeps_the_token_that_an_earlier_version_gave_it(self) -> None:
        run = Run.opened(submission={"idempotencyKey": "night"})
        run.owner["metadata"]["namespace"] = "team-a"
        run.intend()
        before = token_of("night", KEY, 1)  # without the namespace
        run.state = with_job(run.state, msgspec.structs.replace(run.job(), token=before))
        died(run)
        assert run.intend().job.token == before
        assert run.intend(again=Grounds.CLIENT_NAME).job.token == before
        run.handle("job-1")
        run.outcome("Failed")
        assert run.intend(new_generation=True).job.token == token_of("team-a\0night", KEY, 2)

    def test_several_keys_do_not_share_anything(self) -> None:
        run = intended()
        assert run.intend(key="other/key").decision is Decision.SUBMIT
        assert run.intend(key="other/key").decision is Decision.RESOLVE
        assert len({record.token for record in run.state.jobs.values()}) == 2

    @pytest.mark.parametrize(
        "asked, code",
        [
            ({"submitter": ""}, ProblemCode.INVALID),
            ({"submitter": "a b"}, ProblemCode.INVALID),
            ({"submitter": "x" * 65}, ProblemCode.INVALID),
            ({"adapter": ""}, ProblemCode.INVALID),
            ({"adapter": "x" * 64}, ProblemCode.INVALID),
            ({"digest": "é"}, ProblemCode.INVALID),
            ({"digest": "x" * 129}, ProblemCode.INVALID),
            ({"token_seconds": -1}, ProblemCode.INVALID),
            ({"key": ""}, ProblemCode.KEY_INVALID),
            ({"key": "x" * 129}, ProblemCode.KEY_INVALID),
            ({"key": "\ud800"}, ProblemCode.KEY_INVALID),
        ],
    )
    def test_what_is_malformed_is_refused(self, asked: dict[str, Any], code: ProblemCode) -> None:
        assert code_of(Run.opened().intend, **asked) is code


class TestWhoMayIntend:
    @pytest.mark.parametrize(
        "change, code",
        [
            (lambda run: run.by(2).by(1, opened=False), ProblemCode.FENCED),
            (lambda run: run.by(1, "again").by(1, opened=False), ProblemCode.FENCED),
            (lambda run: run.by(2, opened=False), ProblemCode.NOT_OPEN),
            (lambda run: run.complete() or run, ProblemCode.COMPLETED),
            (lambda run: run.sealed(1, SealPurpose.END), ProblemCode.CLOSING),
            (lambda run: run.sealed(1, SealPurpose.SUSPEND), ProblemCode.CLOSING),
            (lambda run: run.owner["spec"].update(cancel=True) or run, ProblemCode.CLOSING),
            (lambda run: run.owner["status"].update(outcome="Failed") or run, ProblemCode.CLOSING),
            (
                lambda run: run.owner["metadata"].update(deletionTimestamp="2026-03-01T12:00:00Z") or run,
                ProblemCode.CLOSING,
            ),
        ],
    )
    def test_nobody_else_does(self, change: Callable[[Run], Run], code: ProblemCode) -> None:
        run = change(Run.opened())
        assert code_of(run.intend) is code
        assert not run.state.jobs

    def test_not_even_the_answer_that_was_lost_is_given_after_the_seal(self) -> None:
        run = Run.opened()
        assert run.intend(request="r").decision is Decision.SUBMIT
        assert code_of(run.sealed(1, SealPurpose.SUSPEND).intend, request="r") is ProblemCode.CLOSING

    def test_after_a_suspension_a_later_attempt_does(self) -> None:
        run = Run.opened().sealed(1, SealPurpose.SUSPEND)
        assert run.by(2).intend().decision is Decision.SUBMIT

    def test_after_an_end_sealed_before_it_opened_it_does_not(self) -> None:
        run = Run.opened().by(2).sealed(1, SealPurpose.END)
        assert code_of(run.intend) is ProblemCode.CLOSING


class TestLostAnswer:
    def test_the_same_request_is_told_to_submit_again(self) -> None:
        run = Run.opened()
        first = run.intend(request="r")
        state = run.state
        assert run.later(5).intend(request="r") == first
        assert run.state is state

    def test_another_request_is_not(self) -> None:
        run = Run.opened()
        run.intend(request="r")
        assert run.intend(request="r-2").decision is Decision.RESOLVE
        assert run.intend().decision is Decision.RESOLVE

    def test_intent_with_a_reused_request_id_is_not_granted_again(self) -> None:
        run = Run.opened()
        run.intend(request="r")
        assert run.copy().by(1, "again", process="process-s-1").intend(request="r").decision is Decision.RESOLVE
        assert code_of(run.intend, request="r", body="other") is ProblemCode.INVALID
        assert code_of(run.intend, request="r", submitter="other") is ProblemCode.INVALID

    def test_nor_once_there_is_a_handle(self) -> None:
        run = Run.opened()
        run.intend(request="r")
        run.handle()
        assert run.intend(request="r").decision is Decision.REATTACH

    def test_a_new_generation_is_made_once(self) -> None:
        run = active()
        run.outcome("Succeeded")
        for _ in range(2):
            answer = run.intend(request="r", new_generation=True)
            assert (answer.decision, answer.job.generation) == (Decision.SUBMIT, 2)
        run.outcome("Failed", generation=2)
        assert run.intend(request="r", new_generation=True).decision is Decision.OVER
        assert set(run.state.jobs) == {(KEY, 1), (KEY, 2)}

    @pytest.mark.parametrize("ended", ["Succeeded", "Failed", None])
    def test_nor_by_a_copy_of_the_request_that_comes_late_once_another_has_submitted_it(
        self, ended: str | None
    ) -> None:
        """A replica sat on it; the client asked another one, and its submission was settled by somebody else."""
        run = active()
        run.outcome("Succeeded")
        run.intend(request="r", new_generation=True, token_seconds=600)
        assert run.intend(request="r-2", again=Grounds.TOKEN, token_seconds=600).decision is Decision.SUBMIT
        if ended:
            run.handle("job-2", generation=2)
            run.outcome(ended, generation=2)
        late = run.intend(request="r", new_generation=True, token_seconds=600)
        assert late.decision is (Decision.OVER if ended else Decision.RESOLVE)
        assert set(run.state.jobs) == {(KEY, 1), (KEY, 2)}

    def test_a_repeated_submission_is_told_so_once(self) -> None:
        run = intended(token_seconds=600)
        answers = [run.intend(request="r", again=Grounds.TOKEN) for _ in range(2)]
        assert {answer.decision for answer in answers} == {Decision.SUBMIT}
        assert answers[0] == answers[1]


class TestUnresolved:
    @pytest.mark.parametrize(
        "ended, all_ended", [(REPORTED, True), (PRESUMED, False), ({"chargedTo": None}, False), (None, False)]
    )
    def test_an_earlier_submitter_has_ended_only_if_its_kubelet_said_so(
        self, ended: dict[str, Any] | None, all_ended: bool
    ) -> None:
        run = intended()
        if ended is not None:
            run.with_attempt(1, **ended)
        answer = run.later(60).by(2).intend()
        assert answer.decision is Decision.RESOLVE
        quiet_since = at(60) if all_ended else None
        assert answer.unresolved == Unresolved(all_ended=all_ended, quiet_since=quiet_since, attempts=(1,))

    @pytest.mark.parametrize(
        "counts, all_ended",
        [
            ({"attempts": 3, "lastPresumed": 0}, True),
            ({"attempts": 3, "lastPresumed": 1}, False),
            ({"attempts": 3, "lastPresumed": 3}, False),
            ({"attempts": 0}, False),  # nothing is known of it yet
        ],
    )
    def test_the_end_of_one_that_left_the_list_is_known_if_none_since_then_was_presumed(
        self, counts: dict[str, int], all_ended: bool
    ) -> None:
        run = intended().with_attempt(3, **REPORTED).later(60).by(4)
        run.owner["status"]["counts"] = counts
        answer = run.intend()
        assert answer.unresolved is not None
        assert answer.unresolved.all_ended is all_ended

    def test_the_end_of_another_pod_under_the_number_says_nothing(self) -> None:
        run = intended().with_attempt(1, **REPORTED)
        run.owner["status"]["attempts"][0]["podUID"] = "pod-x"
        answer = run.by(2).intend()
        assert answer.unresolved is not None
        assert not answer.unresolved.all_ended

    def test_whoever_asks_again_has_ended_its_own_call_just_now(self) -> None:
        answer = intended().later(30).intend()
        assert answer.unresolved == Unresolved(all_ended=True, quiet_since=at(30), attempts=(1,))

    def test_another_process_of_the_same_pod_may_still_submit(self) -> None:
        answer = intended().by(1, "other").intend()
        assert answer.unresolved == Unresolved(all_ended=False, quiet_since=None, attempts=(1,))

    def test_asking_changes_nothing(self) -> None:
        run = died(intended())
        state = run.state
        assert run.intend(request="r").decision is Decision.RESOLVE
        assert run.state is state


class TestAgain:
    @pytest.mark.parametrize(
        "again, ended, seconds, on_unknown, allowed",
        [
            (Grounds.CLIENT_NAME, PRESUMED, 9999, "Hold", True),
            (Grounds.TOKEN, REPORTED, 599, "Hold", True),
            (Grounds.TOKEN, REPORTED, 600, "Hold", False),
            (Grounds.TOKEN, PRESUMED, 1, "Hold", False),
            (Grounds.ABSENT, REPORTED, 9999, "Hold", True),
            (Grounds.ABSENT, PRESUMED, 1, "Hold", False),
            (Grounds.POLICY, PRESUMED, 1, "Resubmit", True),
            (Grounds.POLICY, REPORTED, 1, "Hold", False),
            (Grounds.POLICY, REPORTED, 1, "Fail", False),
        ],
    )
    def test_grounds_are_checked(
        self, again: Grounds, ended: dict[str, Any], seconds: int, on_unknown: str, allowed: bool
    ) -> None:
        run = intended(token_seconds=600)
        run.owner["spec"]["submission"] = {"onUnknown": on_unknown}
        run.with_attempt(1, **ended).later(seconds).by(2)
        if allowed:
            assert run.intend(again=again).decision is Decision.SUBMIT
            assert run.job().repeated
            assert run.job().intended_at == START  # the token's time runs from the first intent
        else:
            assert code_of(run.intend, again=again) is ProblemCode.GROUNDS_REFUSED
            assert not run.job().repeated

    def test_a_token_of_unknown_lifetime_is_no_ground_whatever_the_next_one_says(self) -> None:
        run = died(intended())
        assert code_of(run.intend, again=Grounds.TOKEN, token_seconds=9999) is ProblemCode.GROUNDS_REFUSED

    def test_one_that_may_be_alive_is_kept_and_one_that_ended_is_not(self) -> None:
        run = died(intended(), **PRESUMED)
        run.intend(again=Grounds.CLIENT_NAME)
        assert [told.attempt for told in run.job().submitters] == [1, 2]
        run.with_attempt(2, **REPORTED).by(3).intend(again=Grounds.CLIENT_NAME)
        assert [told.attempt for told in run.job().submitters] == [1, 3]

    def test_one_process_is_kept_once(self) -> None:
        run = intended(token_seconds=600)
        for _ in range(20):
            run.later(1).intend(again=Grounds.TOKEN)
        assert len(run.job().submitters) == 1

    def test_of_too_many_that_may_be_alive_none_is_forgotten(self) -> None:
        run = intended()
        for attempt in range(2, 17):
            run.by(attempt).intend(again=Grounds.CLIENT_NAME)
        assert code_of(run.by(17).intend, again=Grounds.CLIENT_NAME) is ProblemCode.STATE_FULL
        assert [told.attempt for told in run.job().submitters] == list(range(1, 17))


class TestSameRequest:
    @pytest.mark.parametrize("asked", [{"digest": "other"}, {"adapter": "other"}])
    @pytest.mark.parametrize("begin", [intended, active], ids=["intended", "active"])
    def test_another_request_under_the_key_of_an_open_job_is_refused(
        self, begin: Callable[[], Run], asked: dict[str, Any]
    ) -> None:
        run = begin()
        assert code_of(run.intend, **asked) is ProblemCode.DIGEST_CHANGED
        assert code_of(run.intend, again=Grounds.CLIENT_NAME, **asked) is ProblemCode.DIGEST_CHANGED

    @pytest.mark.parametrize(
        "before, after, says",
        [
            (
                {"a": "0" * 8, "b": "1" * 8},
                {"a": "0" * 8, "b": "2" * 8, "c": "3" * 8},
                ", which differs in 'b', 'c'. N",
            ),
            ({"a": "0" * 8}, {"a": "0" * 8}, "another request. N"),
            ({}, {"a": "0" * 8}, "another request. N"),
            ({f"{n:02}": "0" * 8 for n in range(16)}, {"00": "1" * 8, "x": "0" * 8}, ", which differs in '00'. N"),
        ],
    )
    def test_refusal_names_the_job_and_the_fields_that_differ(
        self, before: dict[str, str], after: dict[str, str], says: str
    ) -> None:
        run = intended(field_digests=before)
        run.handle("job-7")
        with pytest.raises(RequestRejectedError) as refused:
            run.intend(digest="other", field_digests=after)
        text = refused.value.detail
        assert text.startswith("the job 'load' (generation 1, handle 'job-7') was submitted with another request")
        assert says in text
        assert "To take it over, send the same request in each attempt" in text
        assert "another key" not in text

    def test_refusal_names_the_adapter_if_that_differs(self) -> None:
        with pytest.raises(RequestRejectedError, match="with another request, of the adapter 'http'"):
            active().intend(adapter="other")

    def test_refusal_after_success_says_what_would_submit_a_second_job(self) -> None:
        run = active()
        run.outcome("Succeeded")
        with pytest.raises(
            RequestRejectedError, match=r"has succeeded with another request.*To get its result.*Only to"
        ):
            run.intend(digest="other")

    def test_a_new_generation_may_be_another_request(self) -> None:
        run = active()
        run.outcome("Succeeded")
        assert run.intend(new_generation=True, digest="other", adapter="other").job.digest == "other"

    @pytest.mark.parametrize("begin", [intended, active], ids=["intended", "active"])
    def test_a_new_generation_is_refused_while_the_job_is_open(self, begin: Callable[[], Run]) -> None:
        assert code_of(begin().intend, new_generation=True) is ProblemCode.JOB_OPEN


class TestNotFound:
    def gone(self, on_not_found: str = "Resubmit") -> Run:
        run = active()
        run.owner["spec"]["submission"] = {"onNotFound": on_not_found}
        run.outcome("NotFound")
        return run

    def test_where_the_policy_is_resubmit_its_end_and_the_next_generation_are_one_write(self) -> None:
        run = self.gone()
        for _ in range(2):
            answer = run.intend(new_generation=True, request="r")
            assert (answer.decision, answer.job.generation) == (Decision.SUBMIT, 2)
        assert (run.job(1).state, run.job(1).ended_by_attempt) == (JobState.FAILED, 1)
        assert "onNotFound" in run.job(1).message
        assert set(run.state.jobs) == {(KEY, 1), (KEY, 2)}

    def test_who_does_not_ask_for_that_takes_it_up(self) -> None:
        assert died(self.gone()).intend().decision is Decision.REATTACH

    @pytest.mark.parametrize("on_not_found", ["Hold", "Fail"])
    def test_with_another_policy_it_must_be_over_first(self, on_not_found: str) -> None:
        assert code_of(self.gone(on_not_found).intend, new_generation=True) is ProblemCode.JOB_OPEN

    def test_intent_for_a_new_generation_of_a_held_job_is_rejected(self) -> None:
        assert code_of(self.gone().held().intend, new_generation=True) is ProblemCode.JOB_OPEN

    def test_intent_for_a_new_generation_of_a_job_found_again_is_rejected(self) -> None:
        run = self.gone()
        run.outcome("Active")
        assert code_of(run.intend, new_generation=True) is ProblemCode.JOB_OPEN


class TestReattach:
    def test_each_session_that_takes_a_job_up_is_counted_once(self) -> None:
        run = active()
        assert run.intend().decision is Decision.REATTACH
        assert run.counts() == (1, 0, 0)  # by the one that recorded it
        run = died(run)
        assert [run.intend().counted for _ in range(2)] == [JobEvent.REATTACHED, None]
        assert run.counts() == (1, 1, 0)
        run.by(2, "again").intend()
        assert run.counts() == (1, 2, 0)

    def test_grounds_to_submit_do_not_matter_once_there_is_a_handle(self) -> None:
        assert died(active()).intend(again=Grounds.CLIENT_NAME).decision is Decision.REATTACH

    def test_a_detached_job_is_taken_up_by_an_attempt_that_comes_after_the_completion(self) -> None:
        run = intended(detached=True)
        run.handle()
        run.complete()
        assert run.job().state is JobState.DETACHED
        answer = run.by(2).intend()
        assert (answer.decision, answer.job.state) == (Decision.REATTACH, JobState.ACTIVE)


class TestOver:
    def test_what_succeeded_is_over_for_every_attempt(self) -> None:
        run = active()
        run.outcome("Succeeded", result={"rows": 7})
        answer = died(run, **FAILED).intend()
        assert (answer.decision, answer.counted) == (Decision.OVER, JobEvent.OVER)
        assert bytes(answer.job.result) == b'{"rows":7}'  # type: ignore[arg-type]

    @pytest.mark.parametrize("asked", [{"digest": "other"}, {"adapter": "other"}])
    def test_intent_with_another_request_after_success_is_rejected(self, asked: dict[str, Any]) -> None:
        run = active()
        run.outcome("Succeeded", result={"rows": 7})
        assert code_of(run.intend, **asked) is ProblemCode.DIGEST_CHANGED
        assert code_of(died(run).intend, **asked) is ProblemCode.DIGEST_CHANGED

    @pytest.mark.parametrize("state", ["Failed", "Cancelled"])
    def test_what_did_not_succeed_may_be_tried_with_another_request(self, state: str) -> None:
        run = active()
        run.outcome(state)
        assert run.intend(digest="other").decision is Decision.OVER
        assert died(run, **FAILED).intend(digest="other").decision is Decision.SUBMIT

    @pytest.mark.parametrize("state", ["Failed", "Cancelled"])
    @pytest.mark.parametrize(
        "ended, decision",
        [
            (FAILED, Decision.SUBMIT),
            (REPORTED, Decision.OVER),
            ({**FAILED, "chargedTo": "disruption"}, Decision.SUBMIT),
            ({"end": "Reported", "chargedTo": None}, Decision.OVER),
            ({"end": "Reported", "cause": "NotReady", "chargedTo": "notReady"}, Decision.OVER),
            ({**FAILED, "chargedTo": "notReady"}, Decision.SUBMIT),
            (None, Decision.OVER),
        ],
        ids=[
            "charged to application",
            "disrupted",
            "to disruption by a rule",
            "to nothing",
            "not ready",
            "waits by a rule",
            "dropped from the list",
        ],
    )
    def test_each_failed_generation_costs_one_attempt(
        self, state: str, ended: dict[str, Any] | None, decision: Decision
    ) -> None:
        run = active()
        run.outcome(state, message="no disk")
        assert run.intend().decision is Decision.OVER  # by the attempt that is to fail for it
        if ended is not None:
            run.with_attempt(1, **ended)
        answer = run.by(2).intend()
        assert (answer.decision, answer.job.generation) == (decision, 2 if decision is Decision.SUBMIT else 1)

    def test_a_failure_whose_witness_was_lost_is_paid_for_by_the_next_attempt(self) -> None:
        run = active()
        run.outcome("Failed")
        run.with_attempt(1, **REPORTED).by(2)
        assert run.intend().decision is Decision.OVER
        run.with_attempt(2, **FAILED).by(3)
        assert run.intend().decision is Decision.SUBMIT

    def test_what_was_paid_before_the_failure_does_not_count(self) -> None:
        run = intended()
        run.with_attempt(1, **FAILED).by(2).handle("job-1")
        run.outcome("Failed")
        run.with_attempt(2, **REPORTED)
        assert run.by(3).intend().decision is Decision.OVER

    @pytest.mark.parametrize("begin", [intended, active], ids=["intended", "active"])
    def test_intent_after_giving_up_submits_only_with_a_new_generation(self, begin: Callable[[], Run]) -> None:
        run = begin()
        run.outcome("Failed", given_up=True)
        for attempt in (2, 3):
            run.with_attempt(attempt - 1, **FAILED).by(attempt)
            answer = run.intend()
            assert (answer.decision, answer.job.generation, answer.job.given_up) == (Decision.OVER, 1, True)
        assert run.intend(new_generation=True).decision is Decision.SUBMIT

    def test_a_new_generation_is_made_when_it_is_wanted(self) -> None:
        run = active()
        run.outcome("Failed")
        answer = run.intend(new_generation=True)
        assert (answer.decision, answer.job.generation) == (Decision.SUBMIT, 2)
        assert answer.job.token == token_of(UID, KEY, 2)
        assert run.intend().decision is Decision.RESOLVE


class TestAdopted:
    def test_a_job_that_runs_already_is_taken_over_and_not_submitted(self) -> None:
        run = Run.opened(adopt=[{"key": "other", "handle": "job-8"}, {"key": KEY, "handle": "job-9"}])
        answer = run.intend()
        assert (answer.decision, answer.counted) == (Decision.REATTACH, JobEvent.ADOPTED)
        job = run.job()
        assert (job.handle, job.origin, job.state) == ("job-9", JobOrigin.ADOPTED, JobState.ACTIVE)
        assert job.submitters == ()
        assert run.counts() == (0, 0, 0)
        run.intend()
        assert run.counts() == (0, 0, 0)
        died(run).intend()
        assert run.counts() == (0, 1, 0)

    def test_it_is_the_first_generation_alone(self) -> None:
        run = Run.opened(adopt=[{"key": KEY, "handle": "job-9"}])
        run.intend()
        run.outcome("Failed")
        assert run.intend(new_generation=True).decision is Decision.SUBMIT


LONG = "é" * 1024
"""As many characters as the schema takes, and more bytes than can be kept."""


def test_a_handle_that_can_not_be_kept_is_refused_by_the_name_of_who_gave_it() -> None:
    adopting = Run.opened(adopt=[{"key": KEY, "handle": "job-9", "adapter": "slurm"}])
    with pytest.raises(RequestRejectedError, match=r"spec\.adopt names the adapter 'slurm' for the job"):
        adopting.intend()
    adopting = Run.opened(adopt=[{"key": KEY, "handle": LONG}])
    with pytest.raises(
        RequestRejectedError, match=r"spec\.adopt must name a handle that can be stored: the handle must"
    ):
        adopting.intend()
    resolved = died(intended()).held().with_answer("Adopt", handle=LONG).by(3)
    with pytest.raises(RequestRejectedError, match=r"spec\.resolutions must name a handle"):
        resolved.intend()


class TestHeld:
    def test_it_waits_for_a_person(self) -> None:
        run = died(intended()).held()
        for attempt in (2, 3):
            answer = run.by(attempt).intend(again=Grounds.CLIENT_NAME)
            assert (answer.decision, answer.job.held, answer.job.holds) == (Decision.RESOLVE, True, 1)
        assert answer.unresolved is not None

    def test_adopt_takes_the_handle_that_a_person_named(self) -> None:
        run = died(intended()).held().with_answer("Adopt", handle="job-5").by(3)
        answer = run.intend()
        assert (answer.decision, answer.counted) == (Decision.REATTACH, JobEvent.ADOPTED)
        job = run.job()
        assert (job.handle, job.origin, job.state, job.held) == ("job-5", JobOrigin.ADOPTED, JobState.ACTIVE, False)
        assert run.counts() == (1, 1, 1)

    def test_resubmit_submits_under_the_same_token(self) -> None:
        run = died(intended(), **PRESUMED).held().with_answer("Resubmit").by(3)
        token = run.job().token
        answer = run.intend(request="r")
        assert (answer.decision, answer.job.generation, answer.job.token) == (Decision.SUBMIT, 1, token)
        assert not run.job().held
        assert run.intend(request="r").decision is Decision.SUBMIT
        assert run.intend().decision is Decision.RESOLVE

    def test_fail_ends_it(self) -> None:
        run = died(intended()).held().with_answer("Fail").by(3)
        assert [run.intend().decision for _ in range(2)] == [Decision.OVER] * 2
        assert (run.job().state, run.job().ended_by_attempt) == (JobState.FAILED, 3)

    def test_an_answer_is_used_once(self) -> None:
        run = died(intended()).held().with_answer("Resubmit").by(3)
        run.intend()
        run.held()
        assert run.job().holds == 2
        assert run.by(4).intend().decision is Decision.RESOLVE
        assert run.with_answer("Fail").intend().decision is Decision.OVER

    def test_an_answer_that_was_given_before_it_was_held_is_not_taken_for_one(self) -> None:
        """As after a lost state that a person had made to start empty."""
        run = intended().with_answer("Resubmit").with_answer("Adopt", generation=2, handle="x").held()
        assert run.by(2).intend().decision is Decision.RESOLVE
        assert run.with_answer("Fail").intend().decision is Decision.OVER

    def test_evidence_settles_it_and_the_next_hold_waits_for_the_first_answer(self) -> None:
        run = intended()
        run.by(2).held()
        run.by(1, opened=False).handle("job-1")
        assert not run.job().held
        assert run.by(3).intend().decision is Decision.REATTACH
        run.held()
        assert run.job().holds == 1
        assert run.with_answer("Fail").by(4).intend().decision is Decision.OVER

    def test_a_job_that_is_not_found_is_submitted_anew_as_the_next_generation(self) -> None:
        run = died(active()).held().with_answer("Resubmit").by(3)
        answer = run.intend(request="r")
        assert (answer.decision, answer.job.generation) == (Decision.SUBMIT, 2)
        assert (run.job(1).state, run.job(1).held, run.job(1).given_up) == (JobState.FAILED, False, False)
        assert run.intend(request="r").decision is Decision.SUBMIT
        assert run.intend().decision is Decision.RESOLVE

    def test_a_job_that_is_not_found_can_be_adopted_under_another_handle(self) -> None:
        run = died(active()).held().with_answer("Adopt", handle="job-1b").by(3)
        assert run.intend().job.handle == "job-1b"

    def test_a_stray_that_a_person_adopts_is_one_no_more(self) -> None:
        run = died(active())
        for stray in ("job-2", "job-3"):
            assert code_of(run.by(1, opened=False).handle, stray) is ProblemCode.HANDLE_DIFFERS
        run.by(2).held().with_answer("Adopt", handle="job-2").by(3)
        run.intend()
        assert (run.job().handle, run.job().strays) == ("job-2", ("job-3",))

    def test_another_request_is_rejected_until_a_resolution_settles_it(self) -> None:
        run = died(intended()).held().by(3)
        assert code_of(run.intend, digest="other") is ProblemCode.DIGEST_CHANGED
        run.with_answer("Resubmit")
        answer = run.intend(digest="other", field_digests=FIELDS)
        assert (answer.decision, answer.job.digest, answer.job.field_digests) == (Decision.SUBMIT, "other", FIELDS)

    def test_running_job_of_another_request_is_taken_over_once_a_user_names_it(self) -> None:
        run = died(active()).by(2)
        assert run.outcome("Active", hold=True, message="another request").job.state is JobState.ACTIVE
        assert code_of(run.intend, digest="other") is ProblemCode.DIGEST_CHANGED
        run.with_answer("Adopt", handle="job-1").by(3)
        answer = run.intend(digest="other")
        assert (answer.decision, answer.job.handle, answer.job.digest) == (Decision.REATTACH, "job-1", "other")
        assert (run.job().held, run.counts()[0]) == (False, 1)
        assert code_of(run.by(4).intend) is ProblemCode.DIGEST_CHANGED

    def test_running_job_of_another_request_is_replaced_once_a_user_requests_that(self) -> None:
        run = died(active()).by(2)
        run.outcome("Active", hold=True)
        run.with_answer("Resubmit").by(3)
        assert (run.intend(digest="other").job.generation, run.job(1).message) == (
            2,
            "given up; submitted again by spec.resolutions",
        )
        assert run.job(1).given_up, "it may run, so the end of the run names it"

    def test_running_job_of_another_request_may_run_although_a_user_failed_it(self) -> None:
        run = died(active()).by(2)
        run.outcome("Active", hold=True)
        assert run.with_answer("Fail").intend(digest="other").decision is Decision.OVER
        assert run.job().given_up


class TestPresumedEnd:
    def test_quiet_period_begins_with_the_response_because_the_evidence_may_have_come_since_the_open(self) -> None:
        run = intended().with_attempt(1, **PRESUMED).later(60).by(2)
        run.with_attempt(1, **REPORTED)
        answer = run.later(40).intend()
        assert answer.unresolved == Unresolved(all_ended=True, quiet_since=at(100), attempts=(1,))

    @pytest.mark.parametrize("counts", [None, {"attempts": 1, "lastPresumed": 1}], ids=["listed", "dropped"])
    @pytest.mark.parametrize("policy, all_ended", [("Hold", False), ("Trust", True)])
    def test_presumed_end_counts_only_with_the_policy_trust(
        self, policy: str, all_ended: bool, counts: dict[str, int] | None
    ) -> None:
        run = died(intended(), **PRESUMED)
        run.owner["spec"]["submission"] = {"onPresumedEnd": policy}
        if counts is not None:
            run.owner["status"] = {"counts": counts}
        answer = run.intend()
        assert answer.unresolved is not None
        assert answer.unresolved.all_ended is all_ended
        if all_ended:
            assert run.intend(again=Grounds.ABSENT).decision is Decision.SUBMIT
        else:
            assert code_of(run.intend, again=Grounds.ABSENT) is ProblemCode.GROUNDS_REFUSED

    def test_attempt_that_runs_never_counts_as_ended(self) -> None:
        run = intended().by(2)
        run.owner["spec"]["submission"] = {"onPresumedEnd": "Trust"}
        answer = run.intend()
        assert answer.unresolved is not None
        assert not answer.unresolved.all_ended

    def test_job_whose_hold_ended_is_resolved_again_and_its_next_hold_waits_for_the_same_resolution(self) -> None:
        run = died(intended(), **PRESUMED).held()
        assert (run.job().held, run.job().holds, to_summary(run.job()).submitters) == (True, 1, (1,))
        run.state = end_holds(run.state, [run.job().name, ("absent", 1)])
        assert (run.job().held, run.job().holds, run.job().message) == (False, 1, "")
        assert end_holds(run.state, [run.job().name]) is run.state
        run.with_attempt(1, **REPORTED).by(3)
        assert run.intend().decision is Decision.RESOLVE
        run.held()
        assert (run.job().held, run.job().holds) == (True, 1)
        assert run.with_answer("Resubmit").by(4).intend().decision is Decision.SUBMIT
