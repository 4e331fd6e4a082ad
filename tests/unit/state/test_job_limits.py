"""How much room external jobs have; and that a state filled to the brim with everything fits into a ConfigMap."""

import json
from typing import Any

import pytest

from job_states import (
    LARGEST_KEY,
    Decision,
    Grounds,
    JobState,
    ProblemCode,
    Run,
    brim,
    cancelled,
    code_of,
    handled,
    succeeded,
)
from reattach.api.messages import FIELD_DIGESTS_MAX, HANDLE_BYTES_MAX, JOBS_MAX, RESULT_BYTES_MAX, STATE_BYTES_MAX
from reattach.state.codec import DurableState, summary_annotation_of, to_data
from reattach.state.job_record import JOBS_BYTES_MAX, fits
from reattach.state.operations import Session, open_state, size_of

CONFIGMAP_BYTES_MAX = 1024 * 1024
"""Kubernetes' bound on the values of a ConfigMap together."""
ANNOTATIONS_BYTES_MAX = 256 * 1024
ID = "7c9e6679-7425-40de-944b-e07fc1f90ae7"


def an_ordinary_intent(run: Run, number: int, **more: Any) -> Decision:
    return run.intend(
        key=f"region/part-{number:04}", request=ID, digest="0" * 64, adapter="kubernetes", submitter=ID, **more
    ).decision


def ordinary(pod_uid: str = ID) -> Run:
    run = Run.opened()
    run.session = Session(attempt=1, pod_uid=pod_uid, id=ID)
    run.state, _ = open_state(DurableState(), run.session, run.state.epoch.time)  # type: ignore[union-attr]
    return run


class TestNumber:
    def test_64_ordinary_jobs_may_be_open_at_once_and_no_more(self) -> None:
        run = ordinary()
        assert {an_ordinary_intent(run, number) for number in range(JOBS_MAX)} == {Decision.SUBMIT}
        assert code_of(an_ordinary_intent, run, JOBS_MAX) is ProblemCode.STATE_FULL
        assert len(run.state.jobs) == JOBS_MAX

    def test_digests_of_fields_give_way_to_a_job(self) -> None:
        run = ordinary()
        digests = {f"a-long-name-of-a-field-{number}": "0" * 8 for number in range(FIELD_DIGESTS_MAX)}
        for number in range(JOBS_MAX):
            assert an_ordinary_intent(run, number, field_digests=digests) is Decision.SUBMIT
            assert number > 40 or all(job.field_digests for job in run.state.jobs.values())

    def test_generations_count_each(self) -> None:
        run = Run.opened()
        for number in range(1, JOBS_MAX + 1):
            assert run.intend(new_generation=number > 1).job.generation == number
            run.outcome("Failed", generation=number)
        assert code_of(run.intend, new_generation=True) is ProblemCode.STATE_FULL

    def test_a_full_state_still_tells_what_to_do_about_the_jobs_it_has(self) -> None:
        run = ordinary()
        for number in range(JOBS_MAX):
            an_ordinary_intent(run, number)
        first = next(iter(run.state.jobs.values()))
        assert run.intend(key=first.key, digest="0" * 64, adapter="kubernetes").decision is Decision.RESOLVE


class TestRoom:
    """What was let in must never be refused later: a handle that can't be recorded is a job that is lost."""

    def test_every_handle_and_result_of_jobs_that_were_let_in_has_room(self) -> None:
        run, number = ordinary(), 0
        while code_of(run.intend, key=f"{number:02}{LARGEST_KEY}", request=ID, submitter=ID) is None:
            number += 1
        assert 40 < number < JOBS_MAX
        state = run.state
        records = list(state.jobs.values())
        for record in records:
            state = handled(state, run, record, "h" * HANDLE_BYTES_MAX, url="http://" + "u" * 1017)
        assert fits(state.jobs)
        for record in records:
            state = cancelled(state, run, record)
        assert fits(state.jobs)
        for record in records:
            state = succeeded(state, run, record, "r" * (RESULT_BYTES_MAX - 2), message="m" * 512)
        assert fits(state.jobs)
        for record in state.jobs.values():
            assert record.handle == "h" * HANDLE_BYTES_MAX
            assert record.state is JobState.SUCCEEDED
            assert record.cancel_requested_at is not None
            assert len(bytes(record.result)) == RESULT_BYTES_MAX  # type: ignore[arg-type]

    def test_what_only_people_read_gives_way(self) -> None:
        run, number = ordinary(), 0
        while code_of(run.intend, key=f"{number:02}{LARGEST_KEY}", request=ID, submitter=ID) is None:
            number += 1
        state = run.state
        for record in run.state.jobs.values():
            state = handled(state, run, record, "h" * HANDLE_BYTES_MAX, url="http://" + "u" * 1017)
        kept = {record.url is None for record in state.jobs.values()}
        assert kept == {True, False}

    def test_a_job_that_is_over_takes_what_it_needs_and_no_more(self) -> None:
        run, number = ordinary(), 0
        while code_of(run.intend, key=f"{number:02}{LARGEST_KEY}", request=ID, submitter=ID) is None:
            number += 1
        for record in list(run.state.jobs.values())[:2]:
            run.state = succeeded(handled(run.state, run, record, "h"), run, record, "r")
        assert code_of(run.intend, key=f"{number:02}{LARGEST_KEY}", request=ID, submitter=ID) is None

    def test_to_be_told_to_submit_again_takes_room_too(self) -> None:
        run, number = ordinary(), 0
        while code_of(run.intend, key=f"{number:02}{LARGEST_KEY}", request=ID, submitter=ID) is None:
            number += 1
        assert code_of(run.intend, key=f"00{LARGEST_KEY}", again=Grounds.CLIENT_NAME, submitter="x" * 64) in {
            None,
            ProblemCode.STATE_FULL,
        }
        assert fits(run.state.jobs)


@pytest.fixture(scope="module")
def full() -> DurableState:
    return brim()


def test_a_state_filled_to_the_brim_fits_into_a_configmap(full: DurableState) -> None:
    data = to_data(full)
    jobs = {name: text for name, text in data.items() if name.startswith("job")}
    assert STATE_BYTES_MAX - 300 < size_of(full.records) <= STATE_BYTES_MAX
    assert (
        JOBS_BYTES_MAX - 16_000 < sum(len(name) + len(text.encode()) for name, text in jobs.items()) <= JOBS_BYTES_MAX
    )
    assert sum(len(name) + len(text.encode()) for name, text in data.items()) <= CONFIGMAP_BYTES_MAX


def test_its_summary_fits_into_the_annotations_and_names_every_job(full: DurableState) -> None:
    text = summary_annotation_of(full)
    assert len(text.encode()) < ANNOTATIONS_BYTES_MAX - 10_000
    handles = [job["handle"] for job in json.loads(text)["jobs"]]
    assert len(handles) == len(full.jobs)
    assert all(handles)
