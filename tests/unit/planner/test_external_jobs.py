"""External jobs as people see them: in status, and in events."""

from typing import Any

import msgspec
import pytest

from builders import SETTINGS, a_job, a_pod, a_state, a_summary, a_taskrun, actions_of, at, observed, plan_of, status_of
from reattach.api.state import JobCounts, JobOrigin, JobState
from reattach.api.taskrun import ExternalJobStatus
from reattach.planner.decide import decide
from reattach.planner.plan import AbsentState, EmitEvent, Plan

RUNNING = a_taskrun().with_state()
SHOWN = RUNNING.with_status(status_of(plan_of(RUNNING, a_pod().running())))
"""Its first attempt runs, as status says."""


def look(*jobs: Any, before: Any = SHOWN, **more: Any) -> Plan:
    return plan_of(
        before, a_pod().running(), summary=a_summary(1, jobs=jobs, **more), state=a_state(1, jobs=jobs, **more), now=20
    )


def told(plan: Plan) -> list[tuple[str, str]]:
    return [(said.reason, said.note) for said in actions_of(plan, EmitEvent)]


def test_a_job_is_shown_as_soon_as_the_summary_tells_of_it() -> None:
    job = a_job(adapter="ray", url="https://ray.example/job-1", submitted_time=at(2.5))
    plan = look(job, counts=JobCounts(submissions=1))
    assert status_of(plan).external_jobs == (
        ExternalJobStatus(
            key="load",
            generation=1,
            state="Active",
            adapter="ray",
            handle="job-1",
            url="https://ray.example/job-1",
            submitted_time=at(2),
            submitted_by_attempt=1,
        ),
    )
    assert status_of(plan).counts.submissions == 1
    note = "External job load (handle job-1, https://ray.example/job-1) was submitted by attempt 1."
    assert told(plan) == [("Submitted", note)]


@pytest.mark.parametrize(
    "handle, short",
    [
        ("4242", None),
        ("raysubmit_8Vn1x5bCqT2kLm9z", None),
        ("reattach-b39b17ef-d17d-5418-96d3-3b2a75cf8fca", None),
        ("arn:aws:states:eu-central-1:123456789012:execution:nightly:0b6c1e2f3a4b", "arn:aws:…nightly:0b6c1e2f3a4b"),
        ("https://jobs.example.com/api/v2/namespaces/data/jobs/17", "https://…/data/jobs/17"),
    ],
)
def test_short_handle_is_set_only_for_a_long_handle(handle: str, short: str | None) -> None:
    [job] = status_of(look(a_job(handle=handle))).external_jobs
    assert job.handle == handle
    if short is None:
        assert job.short_handle is None
    else:
        start, end = short.split("…")
        assert job.short_handle is not None
        assert len(job.short_handle) == 32
        assert job.short_handle.startswith(f"{start}…")
        assert job.short_handle.endswith(end)


def test_what_is_shown_already_is_neither_written_nor_read_again() -> None:
    shown = SHOWN.with_status(status_of(look(a_job())))
    assert look(a_job(), before=shown) == Plan()


def test_an_older_summary_takes_nothing_back() -> None:
    shown = SHOWN.with_status(status_of(look(a_job(state=JobState.SUCCEEDED))))
    late = a_summary(1, jobs=(a_job(None),))
    plan = plan_of(shown, a_pod().running(), summary=late, state=a_state(1, jobs=[a_job(state=JobState.SUCCEEDED)]))
    assert plan == Plan()


def test_a_summary_that_had_no_room_for_urls_is_no_news() -> None:
    shown = SHOWN.with_status(status_of(look(a_job(url="https://ray.example/job-1"))))
    assert plan_of(shown, a_pod().running(), summary=a_summary(1, jobs=(a_job(),)), state=AbsentState()) == Plan()


@pytest.mark.parametrize(
    "origin, reason, words",
    [
        (JobOrigin.SUBMITTED, "Submitted", "was submitted by attempt 1"),
        (JobOrigin.RESUBMITTED, "Resubmitted", "was submitted again by attempt 1"),
        (JobOrigin.EXISTED, "Adopted", "already existed when it was submitted again"),
        (JobOrigin.FOUND, "Adopted", "was found"),
        (JobOrigin.REPORTED, "Adopted", "was reported"),
        (JobOrigin.ADOPTED, "Adopted", "was adopted"),
    ],
)
def test_people_are_told_how_a_handle_came_to_be_known(origin: JobOrigin, reason: str, words: str) -> None:
    intended = SHOWN.with_status(status_of(look(a_job(None))))
    assert told(look(a_job(None))) == []
    [(said, note)] = told(look(a_job(origin=origin, generation=1), before=intended))
    assert (said, words in note) == (reason, True)


@pytest.mark.parametrize(
    "submission, is_warning, words",
    [
        ({"idempotencyKey": "night"}, False, "another TaskRun with the same spec.submission.idempotencyKey"),
        ({}, True, "this TaskRun did not submit it; check whose job it is"),
    ],
)
def test_preexisting_job_is_reported_and_counted_but_not_as_an_averted_duplicate(
    submission: dict[str, str], is_warning: bool, words: str
) -> None:
    before = a_taskrun(submission=submission).with_state()
    before = before.with_status(status_of(plan_of(before, a_pod().running())))
    plan = look(a_job(origin=JobOrigin.EXISTED, preexisting=True), before=before)
    [event] = actions_of(plan, EmitEvent)
    assert (event.reason, event.warning) == ("Existed", is_warning)
    assert event.note.startswith("External job load (handle job-1) existed before this TaskRun's first submission: ")
    assert words in event.note
    counts = status_of(plan).counts
    assert (counts.preexisting_jobs, counts.submissions, counts.duplicates_averted) == (1, 0, 0)
    # A state API of an earlier version leaves the field out of the summary.
    shown = before.with_status(status_of(plan))
    older = a_summary(1, jobs=(a_job(origin=JobOrigin.EXISTED),))
    assert plan_of(shown, a_pod().running(), summary=older, state=AbsentState()) == Plan()


def test_who_submitted_is_left_out_where_nobody_knows() -> None:
    [(_, note)] = told(look(a_job(submitted_by_attempt=None, generation=2)))
    assert note == "External job load (generation 2, handle job-1) was submitted."


def test_a_reattachment_is_told_with_its_attempt() -> None:
    before = SHOWN.with_status(status_of(look(a_job(), a_job(None, key="other"))))
    plan = look(a_job(), a_job(None, key="other"), before=before, counts=JobCounts(reattachments=1))
    note = "Attempt 1 reattached to external job load (handle job-1)."
    assert told(plan) == [("Reattached", note)]
    assert status_of(plan).counts.reattachments == 1


def test_counts_never_go_back_whatever_somebody_did_to_the_state() -> None:
    before = SHOWN.with_status(status_of(look(a_job(), counts=JobCounts(submissions=3, duplicates_averted=2))))
    plan = look(a_job("job-2"), before=before, counts=JobCounts(submissions=1))
    counts = status_of(plan).counts
    assert (counts.submissions, counts.duplicates_averted) == (3, 2)


def test_the_jobs_of_a_lost_state_stay_shown_as_they_were() -> None:
    shown = SHOWN.with_status(status_of(look(a_job())))
    plan = plan_of(shown.with_budgets(application=3), a_pod().exited(1), state=a_state(1, uid="another"))
    assert [(job.handle, job.state) for job in status_of(plan).external_jobs] == [("job-1", "Active")]


def test_reason_of_a_job_without_progress_is_shown_and_removed_with_it() -> None:
    intended = a_job(None, message="It can't be submitted: 401")
    shown = status_of(look(intended))
    assert [job.message for job in shown.external_jobs] == ["It can't be submitted: 401"]
    before = SHOWN.with_status(shown)
    assert look(intended, before=before).status is None
    other = look(a_job(None, message="It can't be submitted: 503"), before=before)
    assert [job.message for job in status_of(other).external_jobs] == ["It can't be submitted: 503"]
    assert [job.message for job in status_of(look(a_job(), before=before)).external_jobs] == [None]


def test_message_of_a_job_is_one_printable_line_of_bounded_size() -> None:
    (job,) = status_of(look(a_job(state=JobState.UNKNOWN, message="\x1b[2J\n" + "é" * 1000))).external_jobs
    assert job.message is not None
    assert job.message.isprintable()
    assert len(job.message.encode()) <= 512


def test_large_summary_without_messages_leads_to_no_read() -> None:
    job = a_job(state=JobState.UNKNOWN, message="503")
    before = SHOWN.with_status(status_of(look(job)))
    without = msgspec.structs.replace(job, message="", url=None)
    seen = decide(observed(before, a_pod().running(), summary=a_summary(1, jobs=[without])), SETTINGS, at(20))
    assert isinstance(seen, Plan)
