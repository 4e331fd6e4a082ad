"""The state API may close a connection between two calls; a task must not notice."""

import asyncio
import contextlib
import logging
import time
from functools import partial

import httpx
import pytest

from stateapi import Servers
from taskpods import Pods, port_of
from tcp_relay import Relay
from waiting import wait_until

IDLE_SECONDS = 0.5
CALLS = 30


@pytest.fixture
def short_lived(servers: Servers, relay: Relay, pods: Pods) -> Pods:
    """Pods whose state API closes an idle connection after `IDLE_SECONDS`."""
    server = servers.start("--idle-timeout", str(IDLE_SECONDS), "--first-request-timeout", str(IDLE_SECONDS))
    relay.lead_to(port_of(server))
    pods.server = server
    return pods


def pauses() -> list[float]:
    """Return pauses around the moment at which the state API closes the connection."""
    return [IDLE_SECONDS + (number - CALLS / 2) / 1000 for number in range(CALLS)]


def test_calls_after_the_server_closed_the_connection_neither_fail_nor_change_twice(
    short_lived: Pods, relay: Relay, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), short_lived.start().context() as task:
        first = task.state.set("k", -1)
        before = relay.connections
        for number, pause in enumerate(pauses()):
            time.sleep(pause)
            assert task.state.set("k", number) == first + number + 1
        assert relay.connections > before
    assert not caplog.records


async def test_async_calls_after_the_server_closed_the_connection_neither_fail_nor_change_twice(
    short_lived: Pods, relay: Relay, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        async with short_lived.start().context() as task:
            first = await task.state.aset("k", -1)
            before = relay.connections
            for number, pause in enumerate(pauses()):
                await asyncio.sleep(pause)
                assert await task.state.aset("k", number) == first + number + 1
            assert relay.connections > before
    assert not caplog.records


def test_a_connection_that_is_evicted_for_a_new_one_is_opened_again(servers: Servers, relay: Relay, pods: Pods) -> None:
    server = servers.start("--connections-per-address", "1")
    relay.lead_to(port_of(server))
    pods.server = server
    with pods.start().context() as task:
        task.state.set("k", 0)
        for number in range(1, 4):
            with server.client() as other:
                wait_until(partial(is_served, other), seconds=60, what="the other client is served")
            assert task.state.set("k", number) > number
            assert task.state.get("k") == number


def is_served(client: httpx.Client) -> bool:
    """Return whether this client, which has no token, gets a connection."""
    with contextlib.suppress(httpx.TransportError):
        return client.get("/v1/state").status_code == 401
    return False
