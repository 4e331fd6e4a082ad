"""Readiness of replicas whose clocks differ from the API server's."""

from pathlib import Path

import httpx
import pytest

from peers import metric
from stateapi import Servers, Task

SKEWED_SERVER = str(Path(__file__).with_name("skewed_server.py"))


@pytest.mark.parametrize("skew", [-4, 4])
def test_replica_with_a_skewed_clock_is_not_ready_and_its_peer_is(servers: Servers, skew: int) -> None:
    peer = servers.start()
    server = servers.start(program=(SKEWED_SERVER,), ready=False, REATTACH_TEST_SKEW=str(skew))
    for _ in range(3):
        response = httpx.get(f"{server.health_url}/readyz", trust_env=False)
        assert (response.status_code, response.text) == (503, "the clock differs from the API server's")
    assert httpx.get(f"{server.health_url}/healthz", trust_env=False).status_code == 200
    assert metric(server, "reattach_server_clock_difference_seconds") == pytest.approx(skew, abs=0.6)
    assert server.log.count("not ready: this replica's clock is") == 1
    assert httpx.get(f"{peer.health_url}/readyz", trust_env=False).status_code == 200
    assert abs(metric(peer, "reattach_server_clock_difference_seconds")) < 0.6


def test_replica_with_a_clock_within_the_limit_serves(servers: Servers, task: Task) -> None:
    server = servers.start("--clock-difference", "6", program=(SKEWED_SERVER,), REATTACH_TEST_SKEW="4")
    attempt = task.attempt(server)
    assert attempt.set("k", 1).status_code == 200
    assert httpx.get(f"{server.health_url}/readyz", trust_env=False).status_code == 200
