"""1,000 random lives against the job server in each of its modes: none makes a job twice, none loses one, and a person is asked only where
nobody can know. The same lives without the protocol do make jobs twice.

`make test` lives some of them, others in each mode, `make test-all` (REATTACH_ALL=1) all in all. Each run shows the seeds. A life that went
wrong names its own: `live_all(mode, (seed,))`.
"""

import math
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from conformance import tables
from conformance.fault_plans import KINDS, SEEDS, STEPS, WrongError, fate_of, live_all, steps_of
from conformance.jobadapter import MODES
from reattach.api.messages import Grounds
from reattach.state import intents
from reattach.task import resolution, submission

ALL = bool(os.environ.get("REATTACH_ALL"))
SAMPLE = 22
"""Of the lives of a mode."""


def seeds_of(mode: str) -> tuple[int, ...]:
    """Which lives are lived here."""
    first = MODES.index(mode) * SAMPLE
    return SEEDS if ALL else SEEDS[first : first + SAMPLE]


@pytest.mark.parametrize("mode", MODES)
def test_no_life_makes_a_job_twice_or_loses_one_and_holds_are_right(
    mode: str, record_property: Callable[[str, object], None]
) -> None:
    row = live_all(mode, seeds_of(mode))
    record_property(tables.LIVES, str(row))
    tables.keep(tables.LIVES, mode, row.to_json())
    assert (row.duplicates, row.lost) == ([], []), row
    assert row.lives == len(seeds_of(mode))
    assert row.reached >= steps_of(mode)
    kinds, steps = {kind for kind, _ in row.struck}, {step for _, step in row.struck}
    if ALL:
        assert (kinds, steps) == (set(KINDS), steps_of(mode))
    else:
        assert len(kinds) >= 5, row.struck
        assert len(steps) >= 6, row.struck


@pytest.mark.parametrize("mode", MODES)
def test_the_same_lives_without_the_protocol_make_jobs_twice(
    mode: str, record_property: Callable[[str, object], None]
) -> None:
    row = live_all(mode, seeds_of(mode), plain=True)
    record_property(tables.PLAIN, str(row))
    tables.keep(tables.PLAIN, mode, row.to_json())
    assert row.duplicates, row


def test_a_person_is_asked_where_the_other_side_can_tell_nothing_and_never_where_it_enforces_names() -> None:
    assert live_all("nothing", SEEDS[:10]).held
    assert not live_all("name", SEEDS[:10]).held


def test_a_process_that_is_frozen_with_its_request_about_to_leave_does_not_send_what_its_token_no_longer_protects() -> (
    None
):
    """The third attempt of seed 477 is granted the token when 132 s are left of it, and is frozen for twice as long."""
    row = live_all("expiring-token", (477,))
    assert row.struck["frozen", "submit leaving"]
    assert (row.jobs, row.held, row.duplicates, row.lost) == (1, 1, [], []), row


NO_TIME = -resolution.MARGIN
"""As the longest that a request may take: so nothing is added for it."""
real_still_holds, real_step, real_next_step = resolution.still_holds, resolution._step_for_absence, resolution.next_step


def _holds_until_it_leaves(grounds: Grounds, job: Any, can: Any, _request: Any, now: Any) -> bool:
    return real_still_holds(grounds, job, can, NO_TIME, now)


def _settles_at_once(seen: resolution.ResolutionInput, unresolved: Any) -> resolution.ResolutionStep | None:
    return real_step(replace(seen, request=NO_TIME), unresolved)


def _holds_what_is_anew(seen: resolution.ResolutionInput) -> resolution.ResolutionStep:
    return resolution.HoldRun("anew") if seen.job.generation > 1 and not seen.job.held else real_next_step(seen)


HOLES: dict[str, tuple[str, tuple[int, ...], dict[tuple[Any, str], Any]]] = {
    "all jobs have one token": ("lookup", (1, 2), {(intents, "token_of"): lambda *_: "one"}),
    "a frozen process counts as dead": ("lookup", (40,), {(intents, "_has_ended"): lambda *_: True}),
    "no late request is waited for": ("lookup", (4,), {(resolution, "_step_for_absence"): _settles_at_once}),
    "a request takes no time": (
        "expiring-token",
        (145,),
        {(resolution, "still_holds"): _holds_until_it_leaves, (submission, "still_holds"): _holds_until_it_leaves},
    ),
    "a word never gets old": ("nothing", (195,), {(submission, "STALE_SECONDS"): math.inf}),
    "a person is asked needlessly": ("forgetting-lookup", (22,), {(submission, "next_step"): _holds_what_is_anew}),
}
"""What may be wrong with the protocol, and the lives that show it: mode, seeds, and what takes the place of what."""


@pytest.mark.parametrize("hole", HOLES)
def test_a_protocol_with_a_hole_is_found_out(hole: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the protocol as it is, the same lives go well."""
    mode, seeds, wrong = HOLES[hole]
    row = live_all(mode, seeds)
    assert (row.duplicates, row.lost) == ([], [])
    for (module, name), value in wrong.items():
        monkeypatch.setattr(module, name, value)
    assert _is_found_out(mode, seeds)


def _is_found_out(mode: str, seeds: tuple[int, ...]) -> bool:
    try:
        row = live_all(mode, seeds)
    except WrongError:
        return True
    return bool(row.duplicates or row.lost)


def test_a_seed_means_the_same_life_each_time() -> None:
    assert [fate_of(seed, "token") for seed in SEEDS] == [fate_of(seed, "token") for seed in SEEDS]
    first, second = live_all("token", SEEDS[:6]), live_all("token", SEEDS[:6])
    assert (str(first), first.struck) == (str(second), second.struck)


def test_there_are_1000_lives_that_differ_and_24_steps_to_be_struck_at() -> None:
    fates = {str(fate_of(seed, "token")).partition(", ")[2] for seed in SEEDS}
    assert (len(SEEDS), len(fates), len(STEPS)) == (1000, 1000, 24)
