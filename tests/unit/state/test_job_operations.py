"""What is recorded of an external job that may have been submitted: its handle, whoever knows it, and its outcome."""

from typing import Any

import msgspec
import pytest

from job_states import KEY, Decision, Grounds, JobState, ProblemCode, Run, SealPurpose, at, code_of, handled, succeeded
from reattach.api.messages import JOB_MESSAGE_BYTES_MAX
from reattach.api.state import JobOrigin
from reattach.state.errors import RequestRejectedError
from reattach.state.job_operations import STRAYS_MAX, JobEvent, get_job, list_jobs
from reattach.state.values import to_json

REPORTED = {"end": "Reported", "chargedTo": "disruption"}


def intended(**asked: Any) -> Run:
    run = Run.opened()
    assert run.intend(**asked).decision is Decision.SUBMIT
    return run


def active() -> Run:
    run = intended()
    run.handle("job-1")
    return run


class TestHandle:
    def test_it_is_recorded_with_who_when_and_how(self) -> None:
        run = intended().later(3)
        assert run.handle("job-1", url="http://x/1").counted is JobEvent.SUBMITTED
        job = run.job()
        assert (job.state, job.handle, job.url, job.origin) == (
            JobState.ACTIVE,
            "job-1",
            "http://x/1",
            JobOrigin.SUBMITTED,
        )
        assert (job.recorded_at, job.submitted_by_attempt) == (at(3), 1)
        assert run.counts() == (1, 0, 0)

    def test_the_same_again_changes_nothing(self) -> None:
        run = active()
        state = run.state
        recorded = run.later(5).handle("job-1")
        assert (recorded.refused, recorded.counted, run.state is state) == (None, None, True)
        run.outcome("Succeeded")
        assert run.handle("job-1").refused is None

    @pytest.mark.parametrize(
        "origin, repeated, kept, submissions, averted",
        [
            ("Submitted", False, JobOrigin.SUBMITTED, 1, 0),
            ("Submitted", True, JobOrigin.RESUBMITTED, 1, 0),
            ("Existed", False, JobOrigin.EXISTED, 0, 0),
            ("Existed", True, JobOrigin.EXISTED, 1, 1),
            ("Found", False, JobOrigin.FOUND, 1, 1),
            ("Found", True, JobOrigin.FOUND, 1, 1),
        ],
    )
    def test_what_it_counts_as(
        self, origin: str, repeated: bool, kept: JobOrigin, submissions: int, averted: int
    ) -> None:
        run = intended().with_attempt(1, **REPORTED).by(2)
        if repeated:
            run.intend(again=Grounds.CLIENT_NAME)
        recorded = run.handle("job-1", origin=origin)
        assert (recorded.counted, run.job().origin) == (JobEvent(kept.lower()), kept)
        assert run.counts() == (submissions, averted, averted)  # attempt 2 takes the job over
        assert run.job().submitted_by_attempt == (2 if origin == "Submitted" else 1)

    def test_job_that_the_same_attempt_submitted_and_finds_is_no_reattachment(self) -> None:
        run = intended()
        run.handle("job-1", origin="Found")
        assert run.counts() == (1, 0, 1)

    def test_another_one_is_refused_and_kept_as_a_stray(self) -> None:
        run = active()
        for _ in range(2):
            assert code_of(run.handle, "job-2") is ProblemCode.HANDLE_DIFFERS
        assert (run.job().handle, run.job().strays) == ("job-1", ("job-2",))
        assert run.counts() == (2, 0, 0)  # there are two jobs over there

    def test_so_many_strays_are_kept(self) -> None:
        run = active()
        for number in range(STRAYS_MAX + 3):
            assert code_of(run.handle, f"stray-{number}") is ProblemCode.HANDLE_DIFFERS
        assert len(run.job().strays) == STRAYS_MAX

    def test_one_for_a_job_that_is_over_is_refused_and_kept_as_a_stray(self) -> None:
        run = intended()
        run.outcome("Failed")
        for _ in range(2):
            assert code_of(run.handle, "late") is ProblemCode.JOB_OVER
        assert (run.job().state, run.job().handle, run.job().strays) == (JobState.FAILED, None, ("late",))

    def test_without_an_intent_there_is_nothing_to_record(self) -> None:
        assert code_of(Run.opened().handle) is ProblemCode.JOB_NOT_FOUND
        assert code_of(intended().handle, generation=2) is ProblemCode.JOB_NOT_FOUND

    @pytest.mark.parametrize(
        "handle, code",
        [
            ("", ProblemCode.INVALID),
            ("x" * 1025, ProblemCode.VALUE_TOO_LARGE),
            ('"' * 513, ProblemCode.VALUE_TOO_LARGE),
            ("\ud800", ProblemCode.VALUE_INVALID),
        ],
    )
    def test_one_that_cannot_be_kept_is_refused(self, handle: str, code: ProblemCode) -> None:
        assert code_of(intended().handle, handle) is code


class TestEvidence:
    def test_a_fenced_process_may_report_the_handle_of_its_own_intent(self) -> None:
        run = intended().by(2).by(1, opened=False)
        assert run.handle("job-1").counted is JobEvent.REPORTED
        job = run.job()
        assert (job.handle, job.origin, job.submitted_by_attempt) == ("job-1", JobOrigin.REPORTED, 1)
        assert run.counts() == (1, 0, 1)
        assert run.by(2, "again").intend().decision is Decision.REATTACH
        assert run.counts() == (1, 1, 1)

    def test_a_fenced_process_of_the_same_pod_too(self) -> None:
        run = intended().by(1, "other").by(1, opened=False)
        assert run.handle("job-1").counted is JobEvent.REPORTED

    def test_a_fenced_process_that_was_never_told_to_submit_may_not(self) -> None:
        run = intended().by(2).by(1, opened=False, process="another")
        assert code_of(run.handle) is ProblemCode.FENCED
        run = intended().by(2, process="process-2").by(3).by(2, opened=False, process="process-s-1")
        assert code_of(run.handle) is ProblemCode.FENCED  # the name of another pod's process
        assert code_of(intended().by(2).by(1, opened=False).handle, generation=2) is ProblemCode.FENCED

    def test_what_differs_from_the_handle_that_is_known_is_a_stray(self) -> None:
        run = intended().with_attempt(1, end="Presumed").by(2)
        run.intend(again=Grounds.CLIENT_NAME)
        run.handle("job-2")
        assert code_of(run.by(1, opened=False).handle, "job-1") is ProblemCode.HANDLE_DIFFERS
        assert run.job().strays == ("job-1",)

    @pytest.mark.parametrize("purpose", list(SealPurpose))
    def test_a_seal_does_not_keep_it_out(self, purpose: SealPurpose) -> None:
        run = intended().sealed(1, purpose)
        assert run.handle("job-1").counted is JobEvent.SUBMITTED

    def test_a_fenced_process_may_do_nothing_else(self) -> None:
        run = active().by(2).by(1, opened=False)
        assert code_of(run.outcome, "Succeeded") is ProblemCode.FENCED
        assert code_of(list_jobs, run.state, run.session) is ProblemCode.FENCED
        assert code_of(get_job, run.state, run.session, KEY) is ProblemCode.FENCED


class TestOutcome:
    @pytest.mark.parametrize("state", ["Succeeded", "Failed", "Cancelled"])
    def test_the_end_is_final(self, state: str) -> None:
        run = active().later(9)
        run.outcome(state, message="why")
        job = run.job()
        assert (job.state, job.message, job.ended_at, job.ended_by_attempt) == (state, "why", at(9), 1)
        kept = run.state
        assert run.outcome(state, message="another").refused is None
        for other in {"Succeeded", "Failed", "Cancelled", "Active", "Unknown", "NotFound"} - {state}:
            assert code_of(run.outcome, other) is ProblemCode.JOB_OVER
        assert run.state is kept

    def test_the_result_is_kept_as_it_is_and_is_final_too(self) -> None:
        run = active()
        run.outcome("Succeeded", result={"rows": 10**30, "none": None})
        assert bytes(run.job().result) == b'{"rows":1000000000000000000000000000000,"none":null}'  # type: ignore[arg-type]
        run.outcome("Succeeded", result={"rows": 10**30, "none": None})
        assert code_of(run.outcome, "Succeeded", result=1) is ProblemCode.JOB_OVER
        assert code_of(run.outcome, "Succeeded") is ProblemCode.JOB_OVER

    def test_what_can_be_seen_of_an_open_job_changes(self) -> None:
        run = active()
        for state in ("Unknown", "NotFound", "Active"):
            run.outcome(state)
            assert run.job().state == state
        kept = run.state
        run.outcome("Active")
        assert run.state is kept

    def test_reason_of_a_job_without_progress_is_stored_and_ends_with_it(self) -> None:
        run = active()
        for message in ("status word EXPIRED is not listed", "503"):
            run.outcome("Unknown", message=message)
            assert (run.job().state, run.job().message) == (JobState.UNKNOWN, message)
        kept = run.state
        run.outcome("Unknown", message="503")
        assert run.state is kept
        run.outcome("Active")
        assert (run.job().state, run.job().message) == (JobState.ACTIVE, "")

    def test_reason_why_an_intent_has_no_handle_changes_nothing_else(self) -> None:
        run = intended()
        before = run.job()
        run.outcome("Unknown", message="It can't be submitted: 401")
        assert run.job() == msgspec.structs.replace(before, message="It can't be submitted: 401")
        run.handle("job-1")
        assert (run.job().state, run.job().message) == (JobState.ACTIVE, "")

    def test_reason_does_not_replace_that_of_a_hold(self) -> None:
        run = intended()
        run.outcome("Unknown", hold=True, message="nobody knows")
        kept = run.state
        run.outcome("Unknown", message="503")
        assert run.state is kept

    @pytest.mark.parametrize("state", ["Succeeded", "Active", "NotFound"])
    def test_without_a_handle_a_job_can_only_fail(self, state: str) -> None:
        run = intended()
        assert code_of(run.outcome, state) is ProblemCode.INVALID
        run.outcome("Failed", message="rejected")
        assert run.job().state is JobState.FAILED

    def test_a_hold_is_made_once_and_says_why(self) -> None:
        run = intended()
        recorded = run.outcome("Unknown", hold=True, message="nobody knows")
        assert recorded.counted is JobEvent.HELD
        assert (run.job().held, run.job().holds, run.job().state) == (True, 1, JobState.INTENDED)
        assert run.outcome("Unknown", hold=True).counted is None
        assert (run.job().holds, run.job().message) == (1, "nobody knows")

    def test_a_job_that_is_not_found_is_held_as_such(self) -> None:
        run = active()
        run.outcome("NotFound", hold=True)
        assert (run.job().state, run.job().held) == (JobState.NOT_FOUND, True)
        run.outcome("Active")
        assert not run.job().held

    @pytest.mark.parametrize("begin, state", [(intended, "NotFound"), (active, "Unknown"), (active, "Failed")])
    def test_a_hold_fits_what_is_not_known(self, begin: Any, state: str) -> None:
        assert code_of(begin().outcome, state, hold=True) is ProblemCode.INVALID

    @pytest.mark.parametrize("state", ["Succeeded", "Cancelled", "Active", "Unknown", "NotFound"])
    def test_only_what_failed_can_be_given_up(self, state: str) -> None:
        assert code_of(active().outcome, state, given_up=True) is ProblemCode.INVALID

    def test_only_success_has_a_result(self) -> None:
        assert code_of(active().outcome, "Failed", result=1) is ProblemCode.INVALID
        assert code_of(active().outcome, "Succeeded", result="x" * 4095) is ProblemCode.VALUE_TOO_LARGE
        assert code_of(active().outcome, "Succeeded", result=[float("nan")]) is ProblemCode.VALUE_INVALID

    @pytest.mark.parametrize("message", ["x" * 9000, '"' * 9000, "a\n" * 513, "☃" * 600, "\ud800" * 9, "\x01" * 700])
    def test_a_long_message_is_cut_and_not_refused(self, message: str) -> None:
        run = active()
        run.outcome("Failed", message=message)
        assert len(to_json(run.job().message)) - 2 <= JOB_MESSAGE_BYTES_MAX
        assert run.job().message

    def test_a_completed_attempt_changes_nothing_more(self) -> None:
        run = intended(detached=True)
        run.handle()
        run.complete()
        assert code_of(run.outcome, "Succeeded") is ProblemCode.COMPLETED

    def test_it_goes_on_in_a_sealed_run(self) -> None:
        run = active().sealed(1, SealPurpose.END)
        run.outcome("Succeeded")
        assert run.job().state is JobState.SUCCEEDED


class TestComplete:
    @pytest.mark.parametrize("state", ["Succeeded", "Failed", "Cancelled"])
    def test_jobs_that_are_over_do_not_hinder_it(self, state: str) -> None:
        run = active()
        run.outcome(state)
        run.complete()

    @pytest.mark.parametrize("state", ["Active", "Unknown", "NotFound"])
    def test_an_open_job_does(self, state: str) -> None:
        run = active()
        run.outcome(state)
        assert code_of(run.complete) is ProblemCode.JOBS_OPEN
        assert run.state.completion is None

    def test_an_intent_does_also_a_detached_one(self) -> None:
        assert code_of(intended().complete) is ProblemCode.JOBS_OPEN
        assert code_of(intended(detached=True).complete) is ProblemCode.JOBS_OPEN

    def test_a_detached_job_is_let_go_of(self) -> None:
        run = intended(detached=True)
        run.handle()
        run.outcome("Unknown")
        run.complete()
        assert run.job().state is JobState.DETACHED
        run.complete()


class TestReading:
    def test_jobs_are_listed_in_the_order_of_their_intents(self) -> None:
        run = Run.opened()
        for key in ("b", "a", "c"):
            run.later(1).intend(key=key)
        assert [record.key for record in list_jobs(run.state, run.session)] == ["b", "a", "c"]

    def test_one_is_read_by_key_and_generation_the_newest_by_default(self) -> None:
        run = active()
        run.outcome("Succeeded")
        run.intend(new_generation=True)
        assert get_job(run.state, run.session, KEY).generation == 2
        assert get_job(run.state, run.session, KEY, 1).handle == "job-1"
        for key, generation in ((KEY, 3), ("other", None), ("other", 1)):
            assert code_of(get_job, run.state, run.session, key, generation) is ProblemCode.JOB_NOT_FOUND


HOSTILE = "a\x1b[2J\nb\x9b\u202e\U000e0041"


class TestPrintableText:
    """Text of tasks and external systems: keys of new jobs are printable, and handles are never refused."""

    @pytest.mark.parametrize("character", ["\x1b", "\n", "\x9b", "\u202e", "\u2066", "\u200d", "\U000e0041", "\u2028"])
    def test_new_job_with_a_key_that_is_not_printable_is_rejected(self, character: str) -> None:
        run = Run.opened()
        with pytest.raises(RequestRejectedError, match="printable characters only") as caught:
            run.intend(key=f"load{character}")
        assert caught.value.code is ProblemCode.KEY_INVALID
        assert caught.value.detail.isprintable()
        assert not run.state.jobs

    def test_stored_job_keeps_a_key_that_is_not_printable(self) -> None:
        run = intended()
        record = msgspec.structs.replace(run.job(), key=HOSTILE)
        run.state = msgspec.structs.replace(run.state, jobs={record.name: record})
        assert run.intend(key=HOSTILE).job.key == HOSTILE
        known = handled(run.state, run, record, "job-1")
        assert known.jobs[record.name].handle == "job-1"
        assert succeeded(known, run, record, "r").jobs[record.name].state is JobState.SUCCEEDED

    def test_handle_is_stored_with_all_its_characters(self) -> None:
        run = intended()
        assert run.handle(HOSTILE).job.handle == HOSTILE
        run.handle(f"{HOSTILE}2")
        assert run.job().strays == (f"{HOSTILE}2",)

    @pytest.mark.parametrize(
        "url",
        [
            "javascript:alert(1)",
            "ftp://x/1",
            "file:///etc/passwd",
            "/jobs/1",
            "http://",
            "http://[x",
            f"http://x/{HOSTILE}",
            "http://x/\ud800",
            "http://x/" + "y" * 1016,
        ],
    )
    def test_url_that_is_no_web_page_or_too_long_is_dropped_and_its_handle_stored(self, url: str) -> None:
        run = intended()
        assert run.handle("job-1", url=url).job.url is None
        assert run.job().handle == "job-1"

    @pytest.mark.parametrize("url", ["http://x/1", "https://ray.example.org:8265/#/jobs/a%2Fb?x=ä"])
    def test_url_of_a_web_page_is_stored(self, url: str) -> None:
        assert intended().handle("job-1", url=url).job.url == url

    def test_message_is_stored_as_one_printable_line(self) -> None:
        run = active()
        run.outcome("Failed", message=HOSTILE)
        assert run.job().message == r"a\x1b[2J b\x9b\u202e\U000e0041"
