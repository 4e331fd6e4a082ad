"""Calls that replicas refuse while their clocks differ from the API server's."""

from pathlib import Path

import httpx
import pytest

from peers import metric
from stateapi import Servers, Task, code_of

SKEWED_SERVER = str(Path(__file__).with_name("skewed_server.py"))


@pytest.mark.parametrize("skew", [-4, 4])
def test_replica_with_a_skewed_clock_refuses_new_sessions_and_intents_and_serves_the_rest(
    servers: Servers, task: Task, skew: int
) -> None:
    attempt = task.attempt(servers.start())
    assert attempt.intend().json()["decision"] == "Submit"
    server = servers.start(program=(SKEWED_SERVER,), REATTACH_TEST_SKEW=str(skew))
    skewed = attempt.on(server)
    for response in (skewed.open(), skewed.intend(), skewed.intend("new"), skewed.open()):
        assert code_of(response) == (503, "unavailable")
        assert response.json()["detail"].startswith("the clock of this replica differs from the API server's")
        assert (response.headers["Retry-After"], response.headers["Connection"]) == ("1", "close")
    assert skewed.handle("job-1").status_code == 204
    assert skewed.outcome("Succeeded").status_code == 204
    assert skewed.job().json()["handle"] == "job-1"
    assert skewed.set("k", 1).status_code == 200
    assert skewed.get("k").json()["value"] == 1
    assert skewed.complete(result=1).status_code == 204
    assert httpx.get(f"{server.health_url}/readyz", trust_env=False).status_code == 200
    assert metric(server, "reattach_server_clock_difference_seconds") == pytest.approx(skew, abs=0.6)
    assert server.log.count("this replica's clock is") == 1


def test_new_session_reaches_a_replica_whose_clock_is_right_after_a_refusal(servers: Servers, task: Task) -> None:
    peer, server = servers.start(), servers.start(program=(SKEWED_SERVER,), REATTACH_TEST_SKEW="4")
    attempt = task.attempt(server, opened=False)
    assert attempt.open().status_code == 503
    assert attempt.on(peer).open().status_code == 200
    assert abs(metric(peer, "reattach_server_clock_difference_seconds")) < 0.6


def test_replica_with_a_clock_within_the_limit_serves(servers: Servers, task: Task) -> None:
    server = servers.start("--clock-difference", "6", program=(SKEWED_SERVER,), REATTACH_TEST_SKEW="4")
    attempt = task.attempt(server)
    assert attempt.set("k", 1).status_code == 200
    assert httpx.get(f"{server.health_url}/readyz", trust_env=False).status_code == 200
