"""Whole lives of TaskRuns, made up: whatever happens and wherever the operator dies, the rules hold and the life ends."""

import random
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simulation import live

BUDGETS = st.fixed_dictionaries(
    {"application": st.integers(0, 3), "disruption": st.integers(0, 3), "neverStarted": st.integers(0, 2)}
)
BACKOFF = st.fixed_dictionaries(
    {"initialSeconds": st.sampled_from([0, 1, 10]), "jitterPercent": st.sampled_from([0, 20, 100])}
)
SPECS = st.fixed_dictionaries(
    {
        "retry": st.fixed_dictionaries({"budgets": BUDGETS, "backoff": BACKOFF}),
        "completion": st.sampled_from(["Auto", "ExitCode", "Recorded"]),
        "historyLimit": st.sampled_from([1, 2, 20]),
        "deadlines": st.fixed_dictionaries({"pendingSeconds": st.just(100), "lostSeconds": st.sampled_from([1, 300])}),
    }
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(SPECS, st.integers(0, 80), st.integers(0, 2**32))
def test_every_life_ends_and_keeps_the_rules(spec: dict[str, Any], chaos: int, seed: int) -> None:
    world = live(random.Random(seed), spec, chaos=chaos)
    assert world.is_over
    # Writes are paid for by what happened, not by how often was looked.
    assert world.status_writes <= 6 * (len(world.created) + 1) + 2 * world.happenings
