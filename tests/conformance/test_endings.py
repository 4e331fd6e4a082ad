"""Each end of a TaskRun, at each moment of a submission, against each mode of the job server.

After the end, each job that runs at the job server is named as orphaned, or the run was held for
its intent. `make test` runs a third of the combinations and crashes, others in each mode. `make
test-all` (REATTACH_ALL=1) runs all. The error names the combination.
"""

import os
from typing import Any

import msgspec
import pytest

from conformance import tables
from conformance.endings import (
    Cancelling,
    Combination,
    End,
    EndingError,
    Moment,
    Result,
    combinations_of,
    expected,
    run_endings,
    run_with_crashes,
)
from conformance.jobadapter import MODES
from reattach.api.state import JobState
from reattach.planner import cleanup, orphan_report, teardown
from reattach.state import intents
from reattach.state.owner import Owner
from reattach.task import cleanup as task_cleanup
from reattach.task.job_client import outcome_call
from reattach.task.resolution import AbsenceProven

ALL = bool(os.environ.get("REATTACH_ALL"))
PARTS = 3
"""`make test` runs one of so many parts."""


def chosen(end: End, mode: str) -> list[Combination]:
    """Return the combinations to run."""
    combinations = combinations_of(end, mode)
    first = (list(End).index(end) + MODES.index(mode)) % PARTS
    return combinations if ALL else combinations[first::PARTS]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("end", End)
def test_job_that_runs_after_the_end_of_its_run_is_named(end: End, mode: str) -> None:
    observed = run_endings(end, mode, chosen(end, mode))
    tables.keep(tables.ENDINGS, f"{end.name} {mode}", [one.to_json() for one in observed])
    results = {one.combination: one.result for one in observed}
    assert results == {one: expected(one) for one in results}


def test_run_whose_lookup_finds_only_open_jobs_is_held_if_the_job_is_not_found() -> None:
    combinations = combinations_of(End.CANCEL, "while-open")
    observed = run_endings(End.CANCEL, "while-open", combinations)
    results = {one.combination: one.result for one in observed}
    assert results == {one: expected(one) for one in results}
    assert results[Combination(End.CANCEL, "while-open", Moment.INTENT_STORED)] is Result.HELD
    assert results[Combination(End.CANCEL, "while-open", Moment.IN_FLIGHT)] is Result.ENDED


def test_sample_has_each_moment_of_each_end_and_each_mode() -> None:
    sampled = [one for end in End for mode in MODES for one in chosen(end, mode)]
    for end in End:
        moments = {one.moment for one in combinations_of(end, MODES[0])}
        assert {one.moment for one in sampled if one.end is end} == moments
        assert {one.mode for one in sampled if one.end is end} == set(MODES)
        assert {one.cancelling for one in sampled if one.end is end} == set(Cancelling)
    assert sum(len(combinations_of(end, mode)) for end in End for mode in MODES) == 720


@pytest.mark.parametrize(
    "combination",
    [
        Combination(End.CANCEL, "name", Moment.RUNNING),
        Combination(End.DELETION, "name", Moment.RUNNING),
        Combination(End.BUDGET, "lookup", Moment.IN_FLIGHT),
        Combination(End.CANCEL, "lookup", Moment.INTENT_STORED),
    ],
    ids=lambda one: f"{one.end.name}-{one.moment.name}",
)
def test_cleanup_that_crashes_at_any_step_is_continued_by_the_next_attempt(combination: Combination) -> None:
    """Once the outcome of the job is stored, no further attempt is needed."""
    steps, observed = run_with_crashes(combination, every=1 if ALL else PARTS)
    # The outcomes before the last one only say why a lookup takes long.
    stored = max(
        index for index, step in enumerate(steps) if step.startswith("after PUT") and step.endswith("/outcome")
    )
    assert {one.result for one in observed.values()} == {expected(combination)}
    attempts = {index: one.attempts for index, one in observed.items()}
    assert attempts == {index: 3 if index < stored else 2 for index in observed}
    assert {"before-cancellation", "after-cancellation", "before-outcome", "after-outcome"} <= set(steps)
    assert "cancel leaving" in steps or combination.moment is Moment.INTENT_STORED


def _cancel_without_watching(work: Any) -> None:
    work._adapter.cancel(work._job.handle)
    work._jobs.write(outcome_call(work._job.key, work._job.generation, "Cancelled", message=""))
    work._job = msgspec.structs.replace(work._job, state=JobState.CANCELLED)


LATE = Combination(End.CANCEL, "name", Moment.RUNNING, Cancelling.LATE)
NEVER = Combination(End.DELETION, "name", Moment.RUNNING, Cancelling.NEVER)
DEFECTS: dict[str, tuple[Combination, dict[tuple[Any, str], Any]]] = {
    "no cleanup attempt starts": (LATE, {(cleanup, "cleanup_step"): lambda *_: None}),
    "a cancelled job is not watched": (
        LATE,
        {(task_cleanup.JobCleanup, "_cancel_and_watch"): _cancel_without_watching},
    ),
    "an open job is not named": (NEVER, {(orphan_report, "_at_end"): lambda _context, job, *_: job}),
    "a deleted run leaves no record": (NEVER, {(orphan_report, "record_of"): lambda *_: None}),
    "an intent without a handle is forgotten": (
        Combination(End.DEADLINE, "token", Moment.IN_FLIGHT),
        {(teardown, "_STEPS"): tuple(step for step in teardown._STEPS if step is not teardown._hold_unresolved)},
    ),
    "a lookup proves absence at once": (
        Combination(End.CANCEL, "lagging-lookup", Moment.IN_FLIGHT),
        {(task_cleanup, "absence_step"): lambda *_, **__: AbsenceProven()},
    ),
    "a cleanup starts during a foreground deletion": (
        Combination(End.FOREGROUND, "name", Moment.RUNNING),
        {(cleanup, "FOREGROUND_DELETION"): ""},
    ),
    "the state API ignores the seal and the end of the run": (
        Combination(End.CANCEL, "name", Moment.FROZEN_BEFORE_INTENT),
        {(intents, "check_not_sealed"): lambda *_: None, (Owner, "is_ending"): False},
    ),
}
"""Defects: a combination that shows each, and the patches that cause it."""


@pytest.mark.parametrize("defect", DEFECTS)
def test_defect_of_the_end_is_detected(defect: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same combination passes without the defect."""
    combination, patches = DEFECTS[defect]
    assert is_correct(combination)
    for (module, name), value in patches.items():
        monkeypatch.setattr(module, name, value)
    assert not is_correct(combination)


def is_correct(combination: Combination) -> bool:
    try:
        [observed] = run_endings(combination.end, combination.mode, [combination])
    except EndingError:
        return False
    return observed.result is expected(combination)
