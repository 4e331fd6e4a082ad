"""1,000 random lives against the job server in each of its modes: none makes a job twice, none loses one, and a person is asked only where
nobody can know. The same lives without the protocol do make jobs twice.

`make test` lives a part of them, `make test-all` (REATTACH_ALL=1) all. A life that went wrong names its seed: `live_all(mode, (seed,))`.
"""

import os

import pytest

from conformance import tables
from conformance.fates import MODES, SEEDS, Fate, Row, fate_of, live_all, mode_of

LIVES = len(SEEDS) if os.environ.get("REATTACH_ALL") else 154
HERE = SEEDS[:LIVES]


def say(what: str, row: Row) -> None:
    """Shown by `pytest -rA`, and whenever it fails."""
    print(f"{what}\n{row}")  # noqa: T201 -- the seeds and the table are what this proves


@pytest.mark.parametrize("mode", MODES)
def test_no_life_makes_a_job_twice_or_loses_one_and_holds_are_right(mode: str) -> None:
    row = live_all(mode, HERE)
    say(f"seeds: {[seed for seed in HERE if mode_of(seed) == mode]}", row)
    tables.keep(tables.LIVES, mode, row.to_json())
    assert (row.duplicates, row.lost) == ([], [])
    assert row.lives >= len(HERE) // len(MODES)


@pytest.mark.parametrize("mode", MODES)
def test_the_same_lives_without_the_protocol_make_jobs_twice(mode: str) -> None:
    row = live_all(mode, HERE, plain=True)
    say("without the protocol", row)
    tables.keep(tables.PLAIN, mode, row.to_json())
    assert row.duplicates


def test_a_person_is_asked_where_the_other_side_can_tell_nothing_and_never_where_it_enforces_names() -> None:
    assert live_all("nothing", HERE[:70]).held
    assert not live_all("name", HERE[:70]).held


def test_a_seed_means_the_same_life_each_time() -> None:
    assert [fate_of(seed) for seed in SEEDS] == [fate_of(seed) for seed in SEEDS]
    first, second = live_all("token", HERE[:40]), live_all("token", HERE[:40])
    assert str(first) == str(second)


def test_lives_are_struck_in_every_way_and_at_every_step() -> None:
    blows = [blow for seed in SEEDS for blow in fate_of(seed).blows]
    kinds, steps = {blow.kind for blow in blows}, {blow.step for blow in blows}
    assert len(SEEDS) == len(set(SEEDS)) == 1000
    assert len(kinds) == 10
    assert len(steps) == 24
    assert isinstance(fate_of(1), Fate)
