"""Random histories of a TaskRun: with any events and any crash of the operator, the rules hold."""

import random
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simulation import run_history

BUDGETS = st.fixed_dictionaries(
    {
        "application": st.integers(0, 3),
        "disruption": st.integers(0, 3),
        "neverStarted": st.integers(0, 2),
        "notReady": st.integers(0, 3),
    }
)
BACKOFF = st.fixed_dictionaries(
    {"initialSeconds": st.sampled_from([0, 1, 10]), "jitterPercent": st.sampled_from([0, 20, 100])}
)
POLICY = st.sampled_from(["Cancel", "Cancel", "Orphan"])
CLEANUP = st.fixed_dictionaries(
    {
        "onCancel": POLICY,
        "onFailure": POLICY,
        "budget": st.sampled_from([0, 1, 3]),
        "deadlineSeconds": st.sampled_from([10, 900, 5000]),
    },
    optional={"onDelete": POLICY, "command": st.just(["clean", "up"])},
)
RULE = st.one_of(
    st.fixed_dictionaries(
        {
            "match": st.sampled_from(
                [{"exitCodes": {"operator": "In", "values": [1]}}, {"reasons": ["OOMKilled"]}, {"messagePattern": "."}]
            ),
            "action": st.just("Fail"),
        }
    ),
    st.fixed_dictionaries(
        {
            "match": st.sampled_from([{"exitCodes": {"operator": "NotIn", "values": [1]}}, {"reasons": ["Error"]}]),
            "action": st.just("Retry"),
        },
        optional={"delaySeconds": st.sampled_from([0, 60]), "budget": st.sampled_from(["disruption", "neverStarted"])},
    ),
    st.fixed_dictionaries({"match": st.just({"reasons": ["OOMKilled"]}), "action": st.just("Wait")}),
)
SPECS = st.fixed_dictionaries(
    {
        "retry": st.fixed_dictionaries(
            {"budgets": BUDGETS, "backoff": BACKOFF}, optional={"rules": st.lists(RULE, max_size=3)}
        ),
        "completion": st.sampled_from(["Auto", "ExitCode", "Recorded"]),
        "podReplacementPolicy": st.sampled_from(["Failed", "Failed", "TerminatingOrFailed"]),
        "podRetention": st.sampled_from(["All", "Failed", "None"]),
        "historyLimit": st.sampled_from([1, 2, 20]),
        "deadlines": st.fixed_dictionaries(
            {"pendingSeconds": st.just(100), "lostSeconds": st.sampled_from([1, 300])},
            optional={"runSeconds": st.sampled_from([50, 3000]), "notReadySeconds": st.sampled_from([1, 100])},
        ),
        "cleanup": CLEANUP,
    },
    optional={"suspend": st.just(True)},
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(SPECS, st.integers(0, 80), st.integers(0, 2**32))
def test_run_history_of_random_events_ends_and_keeps_the_rules(
    spec: dict[str, Any], events_max: int, seed: int
) -> None:
    cluster = run_history(random.Random(seed), spec, events_max=events_max)
    assert cluster.is_over
    # The number of writes is bounded by the events, and not by the number of reconciliations.
    assert cluster.status_writes <= 6 * (len(cluster.created) + 1) + 2 * cluster.events
