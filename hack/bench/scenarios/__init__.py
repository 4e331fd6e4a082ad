"""Scenarios of the benchmark: one table each, by `make bench BENCH_ARGS="--scenario NAME"`."""

from collections.abc import Mapping

from bench.scenarios.base import Parameters, Scenario, Table
from bench.scenarios.burst import measure_burst
from bench.scenarios.idle import measure_finished, measure_live
from bench.scenarios.profile import measure_profile
from bench.scenarios.refusals import measure_quota, measure_throttling
from bench.scenarios.restart import measure_failover, measure_restart
from bench.scenarios.state import measure_job, measure_state, measure_state_api
from bench.scenarios.throughput import measure_failures, measure_happy, measure_sizes
from bench.scenarios.writes import measure_writes

__all__ = ["SCENARIOS", "Parameters", "Scenario", "Table"]

_ALL = (
    Scenario("happy", "all runs succeed", measure_happy, 5000, 0),
    Scenario("failures", "20 % of the runs fail once", measure_failures, 5000, 300),
    Scenario("state", "tasks open their state, set 5 keys, and complete with a result", measure_state, 2000, 150),
    Scenario("job", "tasks record one external job", measure_job, 2000, 150),
    Scenario("burst", "a burst in one namespace, beside a few runs in another one", measure_burst, 5000, 500),
    Scenario("restart", "the controller is killed with runs in flight", measure_restart, 5000, 300),
    Scenario("failover", "the leader is killed, and a standby takes over", measure_failover, 5000, 300),
    Scenario("quota", "a full quota, and then room", measure_quota, 5000, 300, 60, 15),
    Scenario("throttling", "the API server returns 429", measure_throttling, 500, 300, 30, 20),
    Scenario("live", "live runs, while nothing happens", measure_live, 10_000, 500, 600, 20),
    Scenario("finished", "many finished runs when the operator starts", measure_finished, 50_000, 1000),
    Scenario("sizes", "a tenth, a half and all of the runs", measure_sizes, 10_000, 0),
    Scenario(
        "state-api", "sets at full speed, at half of it, and on two replicas", measure_state_api, 1000, 150, 20, 8
    ),
    Scenario("profile", "where the operator's CPU time goes", measure_profile, 2000, 0),
    Scenario("writes", "the API server's CPU time for each write", measure_writes, 1000, 0),
    Scenario(
        "defaults",
        "every controller keeps its default limits",
        measure_happy,
        2000,
        150,
        defaults=True,
    ),
)
SCENARIOS: Mapping[str, Scenario] = {scenario.name: scenario for scenario in _ALL}
