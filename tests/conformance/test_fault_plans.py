"""1,000 random histories against the job server in each of its modes.

No history makes a duplicate or loses a job, and a run is held only if its submission is ambiguous.
The same histories without the protocol make duplicates.

`make test` runs a sample, other seeds in each mode. `make test-all` (REATTACH_ALL=1) runs all. A
failed history names its seed: `run_histories(mode, (seed,))`.
"""

import math
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from conformance import tables
from conformance.fault_plans import KINDS, SEEDS, STEPS, HistoryError, plan_of, run_histories, steps_of
from conformance.jobadapter import MODES
from reattach.api.messages import Grounds
from reattach.state import intents
from reattach.task import resolution, submission

ALL = bool(os.environ.get("REATTACH_ALL"))
SAMPLE = 22
"""Number of histories in each mode."""


def seeds_of(mode: str) -> tuple[int, ...]:
    """Return the seeds to run in a mode."""
    first = MODES.index(mode) * SAMPLE
    return SEEDS if ALL else SEEDS[first : first + SAMPLE]


@pytest.mark.parametrize("mode", MODES)
def test_history_makes_no_duplicate_loses_no_job_and_is_held_only_if_ambiguous(
    mode: str, record_property: Callable[[str, object], None]
) -> None:
    totals = run_histories(mode, seeds_of(mode))
    record_property(tables.HISTORIES, str(totals))
    tables.keep(tables.HISTORIES, mode, totals.to_json())
    assert (totals.duplicates, totals.lost) == ([], []), totals
    assert totals.histories == len(seeds_of(mode))
    assert totals.reached >= steps_of(mode)
    kinds, steps = {kind for kind, _ in totals.injected}, {step for _, step in totals.injected}
    if ALL:
        assert (kinds, steps) == (set(KINDS), steps_of(mode))
    else:
        assert len(kinds) >= 5, totals.injected
        assert len(steps) >= 6, totals.injected


@pytest.mark.parametrize("mode", MODES)
def test_history_without_the_protocol_makes_duplicates(
    mode: str, record_property: Callable[[str, object], None]
) -> None:
    totals = run_histories(mode, seeds_of(mode), plain=True)
    record_property(tables.PLAIN, str(totals))
    tables.keep(tables.PLAIN, mode, totals.to_json())
    assert totals.duplicates, totals


def test_run_is_held_without_guarantees_and_never_with_enforced_names() -> None:
    assert run_histories("nothing", SEEDS[:10]).held
    assert not run_histories("name", SEEDS[:10]).held


def test_process_frozen_before_its_request_does_not_send_it_after_the_token_expired() -> None:
    """In seed 477, attempt 3 freezes for longer than the rest of its token's lifetime (132 s)."""
    totals = run_histories("expiring-token", (477,))
    assert totals.injected["frozen", "submit leaving"]
    assert (totals.jobs, totals.held, totals.duplicates, totals.lost) == (1, 1, [], []), totals


NO_TIME = -resolution.MARGIN
"""Request time that cancels the margin, so that no time is added for a request."""
real_still_holds, real_step, real_next_step = resolution.still_holds, resolution._step_for_absence, resolution.next_step


def _ignore_request_time(grounds: Grounds, job: Any, capabilities: Any, _request: Any, now: Any) -> bool:
    return real_still_holds(grounds, job, capabilities, NO_TIME, now)


def _skip_settling(known: resolution.ResolutionInput, unresolved: Any) -> resolution.ResolutionStep | None:
    return real_step(replace(known, request=NO_TIME), unresolved)


def _hold_new_generations(known: resolution.ResolutionInput) -> resolution.ResolutionStep:
    return resolution.HoldRun("unneeded") if known.job.generation > 1 and not known.job.held else real_next_step(known)


DEFECTS: dict[str, tuple[str, tuple[int, ...], dict[tuple[Any, str], Any]]] = {
    "all jobs have one token": ("lookup", (1, 2), {(intents, "token_of"): lambda *_: "one"}),
    "a frozen process counts as ended": ("lookup", (40,), {(intents, "_has_ended"): lambda *_: True}),
    "late requests are ignored": ("lookup", (4,), {(resolution, "_step_for_absence"): _skip_settling}),
    "a request takes no time": (
        "expiring-token",
        (145,),
        {(resolution, "still_holds"): _ignore_request_time, (submission, "still_holds"): _ignore_request_time},
    ),
    "a grant never gets stale": ("nothing", (195,), {(submission, "STALE_SECONDS"): math.inf}),
    "a resolvable run is held": ("forgetting-lookup", (22,), {(submission, "next_step"): _hold_new_generations}),
}
"""Defects of the protocol: mode and seeds that show each, and the patch that causes it."""


@pytest.mark.parametrize("defect", DEFECTS)
def test_defect_of_the_protocol_is_detected(defect: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same histories pass without the defect."""
    mode, seeds, patches = DEFECTS[defect]
    totals = run_histories(mode, seeds)
    assert (totals.duplicates, totals.lost) == ([], [])
    for (module, name), value in patches.items():
        monkeypatch.setattr(module, name, value)
    assert _is_detected(mode, seeds)


def _is_detected(mode: str, seeds: tuple[int, ...]) -> bool:
    try:
        totals = run_histories(mode, seeds)
    except HistoryError:
        return True
    return bool(totals.duplicates or totals.lost)


def test_seed_gives_the_same_history_each_time() -> None:
    assert [plan_of(seed, "token") for seed in SEEDS] == [plan_of(seed, "token") for seed in SEEDS]
    first, second = run_histories("token", SEEDS[:6]), run_histories("token", SEEDS[:6])
    assert (str(first), first.injected) == (str(second), second.injected)


def test_seeds_give_1000_different_plans_of_24_steps() -> None:
    plans = {str(plan_of(seed, "token")).partition(", ")[2] for seed in SEEDS}
    assert (len(SEEDS), len(plans), len(STEPS)) == (1000, 1000, 24)
