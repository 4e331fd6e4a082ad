"""Rights of a cleanup session, and the record of a cancellation."""

from datetime import timedelta
from typing import Any

import msgspec
import pytest

from job_states import KEY, Run, at, code_of, session_of
from reattach.api.messages import CancellationRequest, ProblemCode
from reattach.api.state import JobOrigin, JobState, SealPurpose
from reattach.api.taskrun import AttemptPurpose
from reattach.state.admission import check_may_open, check_needs_cleanup
from reattach.state.adoption import adopt_at_end
from reattach.state.cancellation import request_cancellation
from reattach.state.codec import DurableState, from_data, to_data, view_of
from reattach.state.job_record import ended_between
from reattach.state.operations import Clear, Session, change, check_current, complete, list_records, open_state, seal
from reattach.state.owner import Owner

RUN, CLEANUP = AttemptPurpose.RUN, AttemptPurpose.CLEANUP
END, SUSPEND = SealPurpose.END, SealPurpose.SUSPEND
ENDING = {
    "reason": "Cancelled",
    "message": "m",
    "time": "2026-11-30T12:00:00Z",
    "cleanupDeadline": "2026-11-30T12:15:00Z",
}


def cleanup_of(attempt: int, session: str = "s") -> Session:
    return session_of(attempt, session, CLEANUP)


def sealed(*sessions: Session) -> DurableState:
    """Return a sealed state that the sessions opened one after the other."""
    state = DurableState()
    for session in sessions:
        state = seal(state, session.attempt, END) if session.cleans_up else state
        state, _ = open_state(state, session, at(0))
    return seal(state, 1, END)


class TestOpen:
    @pytest.mark.parametrize(
        "state, session, code",
        [
            (DurableState(), cleanup_of(1), ProblemCode.CLOSING),
            (open_state(DurableState(), session_of(1), at(0))[0], cleanup_of(2), ProblemCode.CLOSING),
            (seal(DurableState(), 1, SUSPEND), cleanup_of(2), ProblemCode.CLOSING),
            (seal(DurableState(), 1, END), cleanup_of(2), None),
            (sealed(session_of(1)), cleanup_of(2), None),
            (sealed(session_of(1), cleanup_of(2)), cleanup_of(2), None),
            (sealed(session_of(1), cleanup_of(2)), cleanup_of(2, "another"), None),
            (sealed(session_of(1), cleanup_of(2)), cleanup_of(3), None),
            (sealed(session_of(1), cleanup_of(2)), session_of(1), ProblemCode.FENCED),
            (sealed(session_of(1), cleanup_of(2)), session_of(2), ProblemCode.FENCED),
            (sealed(session_of(1), cleanup_of(2)), session_of(3), ProblemCode.CLOSING),
            (sealed(session_of(1)), cleanup_of(1), ProblemCode.FENCED),
            (sealed(session_of(1), cleanup_of(3)), cleanup_of(2), ProblemCode.FENCED),
        ],
    )
    def test_state_opens_for_a_cleanup_session_after_the_seal_of_the_end_only(
        self, state: DurableState, session: Session, code: ProblemCode | None
    ) -> None:
        assert code_of(open_state, state, session, at(1)) is code

    def test_cleanup_session_keeps_what_the_run_registered(self) -> None:
        state, _ = open_state(DurableState(), session_of(1), at(0), can_cleanup=True, cleanup_handler=True)
        state = seal(state, 1, END)
        for number in (2, 3):
            state, _ = open_state(state, cleanup_of(number), at(number))
            assert state.epoch is not None
            assert (state.epoch.can_cleanup, state.epoch.cleanup_handler) == (True, True)
        alone, _ = open_state(
            seal(DurableState(), 0, END), cleanup_of(1), at(0), can_cleanup=True, cleanup_handler=True
        )
        assert alone.epoch is not None
        assert (alone.epoch.can_cleanup, alone.epoch.cleanup_handler) == (False, False)

    def test_operator_sees_the_purpose_and_a_state_without_a_cleanup_stays_in_format_1(self) -> None:
        def view(state: DurableState) -> Any:
            body = {"metadata": {"name": "n", "uid": "u", "resourceVersion": "1"}, "data": to_data(state)}
            return view_of(msgspec.json.encode(body)).epoch

        run, _ = open_state(DurableState(), session_of(1), at(0), can_cleanup=True)
        assert to_data(run)["formatVersion"] == "1"
        assert (view(run).purpose, view(run).can_cleanup, view(run).cleanup_handler) == (RUN, True, False)
        data = to_data(sealed(session_of(1), cleanup_of(2)))
        assert (data["formatVersion"], data["optional"]) == ("2", '["epoch.purpose"]')
        assert view(from_data(data)).purpose is CLEANUP


@pytest.mark.parametrize("opened, changed", [(session_of(2), cleanup_of(2)), (cleanup_of(2), session_of(2))])
def test_session_whose_pod_has_another_purpose_by_now_is_fenced(opened: Session, changed: Session) -> None:
    state = sealed(session_of(1), opened)
    calls = (
        lambda: check_current(state, changed),
        lambda: list_records(state, changed),
        lambda: change(state, changed, [Clear()], at(1)),
        lambda: complete(state, changed, None, at(1)),
    )
    assert {code_of(call) for call in calls} == {ProblemCode.FENCED}
    assert code_of(open_state, state, changed, at(1)) is ProblemCode.FENCED


ADOPTS = {
    "adopt": [{"key": KEY, "handle": "job-7", "adapter": "ray"}, {"key": "other", "handle": "job-8"}],
    "cancel": True,
    "cleanup": {"adopted": "Cancel"},
}


class TestAdoptionAtEnd:
    @staticmethod
    def opened(**spec: Any) -> DurableState:
        owner = msgspec.convert({"metadata": {"uid": "u"}, "spec": {**ADOPTS, **spec}}, Owner)
        state = adopt_at_end(seal(DurableState(), 1, END), owner, cleanup_of(1), at(0))
        return open_state(state, cleanup_of(1), at(0), can_cleanup=True)[0]

    def test_cleanup_session_adopts_the_jobs_with_an_adapter_and_may_cancel_them(self) -> None:
        state = self.opened()
        [job] = state.jobs.values()
        assert (job.name, job.adapter, job.handle) == ((KEY, 1), "ray", "job-7")
        assert (job.state, job.origin, job.submitters) == (JobState.ACTIVE, JobOrigin.ADOPTED, ())
        assert from_data(to_data(state)) == state
        owner = msgspec.convert({"metadata": {"uid": "u"}, "spec": ADOPTS}, Owner)
        request = CancellationRequest(generation=1)
        _, result = request_cancellation(state, cleanup_of(1), KEY, request, owner=owner, now=at(1))
        assert result.job.cancel_requested_at == at(1)

    def test_registration_of_the_first_cleanup_session_counts_for_the_jobs_that_it_adopts(self) -> None:
        assert self.opened().epoch is not None
        assert self.opened().epoch.can_cleanup  # type: ignore[union-attr]
        later, _ = open_state(self.opened(), cleanup_of(2), at(1))
        assert later.epoch is not None
        assert later.epoch.can_cleanup
        assert not self.opened(adopt=[]).epoch.can_cleanup  # type: ignore[union-attr]

    @pytest.mark.parametrize("spec", [{"cancel": False}, {"cleanup": {}}, {"adopt": []}])
    def test_nothing_else_is_adopted(self, spec: dict[str, Any]) -> None:
        assert self.opened(**spec).jobs == {}

    @pytest.mark.parametrize(
        "entry, code",
        [
            ({"key": KEY, "handle": "表" * 1024}, ProblemCode.VALUE_TOO_LARGE),
            ({"key": "a\nb", "handle": "job-7"}, ProblemCode.KEY_INVALID),
        ],
    )
    def test_entry_that_can_not_be_stored_is_refused(self, entry: dict[str, Any], code: ProblemCode) -> None:
        assert code_of(self.opened, adopt=[{**entry, "adapter": "ray"}]) is code

    def test_jobs_that_do_not_fit_are_refused(self) -> None:
        many = [{"key": f"load-{number}", "handle": "j", "adapter": "ray"} for number in range(65)]
        assert code_of(self.opened, adopt=many) is ProblemCode.STATE_FULL


class TestAdmission:
    @pytest.mark.parametrize(
        "changes, run, cleanup",
        [
            ({}, None, None),
            ({"status": {"ending": ENDING}}, ProblemCode.CLOSING, None),
            ({"status": {"outcome": "Failed"}}, ProblemCode.CLOSING, ProblemCode.CLOSING),
            ({"metadata": {"deletionTimestamp": "2026-11-30T12:00:00Z"}}, ProblemCode.CLOSING, None),
            ({"status": {"attempts": [{"number": 2, "purpose": "Run"}]}}, None, ProblemCode.NOT_A_TASK_POD),
            ({"status": {"attempts": [{"number": 2, "purpose": "Cleanup"}]}}, ProblemCode.NOT_A_TASK_POD, None),
        ],
    )
    def test_taskrun_admits_attempts_by_their_purpose(
        self, changes: dict[str, Any], run: ProblemCode | None, cleanup: ProblemCode | None
    ) -> None:
        owner = msgspec.convert({"metadata": {"uid": "u"}, **changes}, Owner)
        assert code_of(check_may_open, owner, session_of(2)) is run
        assert code_of(check_may_open, owner, cleanup_of(2)) is cleanup

    def test_cleanup_needs_an_ending_or_a_state(self) -> None:
        owner = msgspec.convert({"metadata": {"uid": "u"}}, Owner)
        assert code_of(check_needs_cleanup, owner, None) is ProblemCode.CLOSING
        assert code_of(check_needs_cleanup, owner, DurableState()) is None
        owner = msgspec.convert({"metadata": {"uid": "u"}, "status": {"ending": ENDING}}, Owner)
        assert code_of(check_needs_cleanup, owner, None) is None

    @pytest.mark.parametrize("policy, code", [("Auto", ProblemCode.COMPLETED), ("ExitCode", None)])
    def test_completed_task_is_cleaned_up_only_if_its_completion_does_not_count(
        self, policy: str, code: ProblemCode | None
    ) -> None:
        owner = msgspec.convert({"metadata": {"uid": "u"}, "spec": {"completion": policy}}, Owner)
        run = Run.opened()
        run.complete()
        assert code_of(check_needs_cleanup, owner, run.state) is code
        # An attempt that opened the state later did not complete.
        assert code_of(check_needs_cleanup, owner, run.by(2).state) is None


def test_cleanup_session_may_read_record_what_it_found_and_cancel_only() -> None:
    run = Run.opened()
    run.intend()
    run.cleaning_up()
    before = run.state
    for refused in (
        run.intend,
        lambda: run.intend(key="new"),
        lambda: run.handle(origin="Submitted"),
        lambda: run.handle(origin="Existed"),
        lambda: run.outcome("Unknown", hold=True),
        lambda: change(run.state, run.session, [Clear()], at(0)),
        lambda: complete(run.state, run.session, None, at(0)),
    ):
        assert code_of(refused) is ProblemCode.CLEANUP_ONLY
    assert run.state == before
    assert list_records(run.state, run.session) == ((), 0)
    assert run.handle(origin="Found").job.origin is JobOrigin.FOUND
    assert run.cancel().job.cancel_requested_by_attempt == 2
    assert run.outcome("Cancelled").job.state is JobState.CANCELLED


class TestCancellation:
    def test_first_cancellation_is_recorded_and_later_ones_change_nothing(self) -> None:
        run = Run.opened()
        run.intend()
        run.handle()
        first = run.cleaning_up().later(5).cancel().job
        assert (first.cancel_requested_at, first.cancel_requested_by_attempt) == (at(5), 2)
        before = run.state
        assert run.later(5).cancel().job == first
        assert run.state is before or run.state == before
        assert run.cleaning_up(3).cancel().job == first

    @pytest.mark.parametrize("state", ["Succeeded", "Failed", "Cancelled"])
    def test_job_that_is_over_stays_as_it_is(self, state: str) -> None:
        run = Run.opened()
        run.intend()
        run.handle()
        over = run.outcome(state).job
        assert run.cleaning_up().cancel().job == over

    @pytest.mark.parametrize(
        "adopted, origin, repeated, code",
        [
            ("Orphan", JobOrigin.EXISTED, False, ProblemCode.JOB_KEPT),
            ("Orphan", JobOrigin.ADOPTED, False, ProblemCode.JOB_KEPT),
            ("Orphan", JobOrigin.EXISTED, True, None),
            ("Orphan", JobOrigin.FOUND, False, None),
            ("Orphan", JobOrigin.REPORTED, False, None),
            ("Cancel", JobOrigin.EXISTED, False, None),
            ("Cancel", JobOrigin.ADOPTED, False, None),
        ],
    )
    def test_job_of_another_run_is_kept_from_a_cleanup_session_but_not_from_the_task(
        self, adopted: str, origin: JobOrigin, *, repeated: bool, code: ProblemCode | None
    ) -> None:
        run = Run.opened(cleanup={"adopted": adopted})
        run.intend()
        job = msgspec.structs.replace(run.handle().job, origin=origin, repeated=repeated)
        run.state = msgspec.structs.replace(run.state, jobs={job.name: job})
        assert code_of(run.copy().cancel) is None
        assert code_of(run.cleaning_up().cancel) is code

    @pytest.mark.parametrize(
        "adopted, origin, code",
        [
            ("Orphan", JobOrigin.SUBMITTED, None),
            ("Orphan", JobOrigin.RESUBMITTED, None),
            ("Orphan", JobOrigin.EXISTED, ProblemCode.JOB_KEPT),
            ("Orphan", JobOrigin.FOUND, ProblemCode.JOB_KEPT),
            ("Orphan", JobOrigin.REPORTED, ProblemCode.JOB_KEPT),
            ("Cancel", JobOrigin.FOUND, None),
        ],
    )
    def test_with_an_idempotency_key_only_a_job_that_this_run_surely_submitted_is_cancelled(
        self, adopted: str, origin: JobOrigin, code: ProblemCode | None
    ) -> None:
        """Another run with the key has the same tokens, so a lookup may find its job."""
        run = Run.opened(cleanup={"adopted": adopted}, submission={"idempotencyKey": "nightly"})
        run.intend()
        assert code_of(run.copy().cleaning_up().cancel) is None, "without a handle, nothing is cancelled"
        job = msgspec.structs.replace(run.handle().job, origin=origin, repeated=True)
        run.state = msgspec.structs.replace(run.state, jobs={job.name: job})
        assert code_of(run.cleaning_up().cancel) is code

    def test_job_that_the_task_left_running_on_purpose_is_kept(self) -> None:
        run = Run.opened(completion="ExitCode", cleanup={"adopted": "Cancel"})
        run.intend(detached=True)
        run.handle()
        run.complete()
        assert code_of(run.cleaning_up().cancel) is ProblemCode.JOB_KEPT

    @pytest.mark.parametrize("end, all_ended", [("Reported", True), ("Presumed", False)])
    def test_intent_without_a_handle_is_not_changed_and_shows_its_submitters(
        self, end: str, *, all_ended: bool
    ) -> None:
        run = Run.opened()
        run.intend()
        before = run.cleaning_up().state
        result = run.later(1).cancel()
        assert result.unresolved is not None
        assert (result.may_resolve, result.unresolved.all_ended, result.unresolved.quiet_since) == (True, False, None)
        run.with_attempt(1, end=end)
        result = run.later(1).cancel()
        assert result.unresolved is not None
        assert (result.may_resolve, result.unresolved.all_ended) == (False, all_ended)
        assert result.unresolved.quiet_since == (at(2) if all_ended else None)
        assert run.state == before

    def test_submitter_that_left_the_list_of_attempts_has_ended(self) -> None:
        run = Run.opened()
        run.intend()
        run.cleaning_up()
        run.owner["status"] = {"counts": {"attempts": 2}}
        result = run.cancel()
        assert (result.may_resolve, result.unresolved and result.unresolved.all_ended) == (False, True)
        run.owner["status"] = {"counts": {"attempts": 2, "lastPresumed": 1}}
        result = run.cancel()
        assert (result.may_resolve, result.unresolved and result.unresolved.all_ended) == (False, False)

    def test_fenced_and_completed_sessions_are_refused(self) -> None:
        run = Run.opened()
        run.intend()
        run.handle()
        fenced = run.session
        run.cleaning_up()
        run.session = fenced
        assert code_of(run.cancel) is ProblemCode.FENCED
        completed = Run.opened()
        completed.intend(detached=True)
        completed.handle()
        completed.complete()
        assert code_of(completed.cancel) is ProblemCode.COMPLETED

    def test_cleanup_session_that_outlives_its_run_cancels_nothing_more(self) -> None:
        run = Run.opened()
        run.intend()
        run.handle()
        run.cleaning_up()
        run.owner["status"] = {"outcome": "Cancelled"}
        assert code_of(run.cancel) is ProblemCode.CLOSING

    def test_absent_job_is_refused(self) -> None:
        assert code_of(Run.opened().cancel) is ProblemCode.JOB_NOT_FOUND


def test_jobs_that_ended_between_two_states_are_those_to_count() -> None:
    run = Run.opened(submission={"onNotFound": "Resubmit"})
    run.intend()
    run.handle()
    before = run.state
    run.later(60).outcome("Failed")
    (ended,) = ended_between(before.jobs, run.state.jobs)
    assert (ended.key, ended.state) == (KEY, JobState.FAILED)
    assert ended.recorded_at is not None
    assert ended.ended_at is not None
    assert ended.ended_at - ended.recorded_at == timedelta(seconds=60)
    assert ended_between(run.state.jobs, run.state.jobs) == ()
