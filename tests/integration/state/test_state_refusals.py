"""Costs of refused requests in TokenReviews and bytes of the log, and the bytes that a namespace may write."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from controlplane import ControlPlane
from peers import Peer, metric
from reattach.api.messages import KEY_CHARACTERS_MAX
from stateapi import Attempt, Server, Servers, Task, code_of
from waiting import wait_until

REFUSALS_BY_DEFAULT = ("--refused-token-rate", "1:20")
LINE_BYTES_MAX = 500
MIB = 1024 * 1024


def responses_at_once(server: Server, requests: Iterable[Callable[[httpx.Client], httpx.Response]]) -> Counter[int]:
    """Send the requests on 40 connections, and count the statuses."""
    with server.client() as client, ThreadPoolExecutor(40) as pool:
        return Counter(response.status_code for response in pool.map(lambda send: send(client), requests))


def test_200_bad_tokens_at_once_cost_20_token_reviews(
    control_plane: ControlPlane, servers: Servers, task: Task
) -> None:
    server = servers.start("--refused-token-rate", "0.01:20")
    good = task.attempt(server)
    since = control_plane.audit_mark()

    def send(number: int) -> Callable[[httpx.Client], httpx.Response]:
        return lambda client: client.get("/v1/state", headers={"Authorization": f"Bearer bad-{number}"})

    statuses = responses_at_once(server, [send(number) for number in range(200)])
    assert statuses == {401: 20, 429: 180}
    resources = [event["objectRef"]["resource"] for event in control_plane.audit(since, user=server.user)]
    assert resources == ["tokenreviews"] * 20
    assert good.set("k", 1).status_code == 200


@pytest.mark.parametrize("path", ["/v1/state/" + "k" * 3000, "/" + "n" * 3000], ids=["without a token", "no route"])
def test_500_refused_requests_write_few_bytes_to_the_log(servers: Servers, task: Task, path: str) -> None:
    server = servers.start(*REFUSALS_BY_DEFAULT)
    attempt = task.attempt(server)
    statuses = responses_at_once(server, [lambda client: client.get(path)] * 500)
    for number in range(30):
        assert attempt.set("k", number).status_code == 200
    assert statuses[429] > 400
    assert statuses.total() == 500
    lines = [line for line in server.log.splitlines() if "server.audit" not in line]
    assert max(map(len, lines)) < LINE_BYTES_MAX
    assert len(lines) < 60
    assert server.log.count(" set key='k' ") == 30, "every change is in the audit log"
    wait_until(lambda: "lines about refused requests" in server.log, seconds=60, what="the summary is written")


def test_unknown_routes_of_a_task_cost_its_rate_and_not_that_of_its_address(servers: Servers, task: Task) -> None:
    server = servers.start(*REFUSALS_BY_DEFAULT, "--taskrun-rate", "0.1:100")
    attempt = task.attempt(server)
    for number in range(30):
        response = attempt.client.get("/v2/new") if number % 2 else attempt.client.patch("/v1/state")
        assert code_of(response) == ((404, "route-unknown") if number % 2 else (405, "method-not-allowed"))
    other = Task.create(task.control_plane, task.namespace, "other").attempt(server)
    assert other.set("k", 1).status_code == 200, "a token of this address is reviewed"
    responses = [attempt.client.get("/v2/new") for _ in range(80)]
    assert "too many requests of TaskRun load" in responses[-1].json()["detail"]


def test_batch_that_sets_one_long_key_100_times_writes_few_bytes_to_the_audit_log(servers: Servers, task: Task) -> None:
    server = servers.start()
    attempt = task.attempt(server)
    steps = [{"op": "set", "key": "\U000e0001" * KEY_CHARACTERS_MAX, "value": number} for number in range(100)]
    assert attempt.batch(*steps).status_code == 200
    lines = [line for line in server.log.splitlines() if "server.audit: change" in line]
    assert sum(map(len, lines)) < 16 * 1024
    assert lines[-1].endswith("omitted=99")


def test_malformed_requests_write_few_bytes_to_the_log(servers: Servers, task: Task) -> None:
    server = servers.start(*REFUSALS_BY_DEFAULT)
    attempt = task.attempt(server)
    before = len(server.log)
    for number in range(60):
        peer = Peer.connect(server, f"127.0.0.{2 + number // 30}")
        with contextlib.suppress(OSError):
            peer.send(b"GET /v1/state HTTP/1.1\r\nHost: x\r\n" + b"\x01" * 3000 + b": x\r\n\r\n")
            assert peer.status() == 400
        peer.close()
    assert attempt.set("k", 1).status_code == 200
    assert "Traceback" not in server.log
    assert len(server.log) - before < 60 * LINE_BYTES_MAX


def test_a_bad_token_returns_no_text_of_the_api_server(servers: Servers, task: Task) -> None:
    server = servers.start()
    token = task.token(task.pod(), audience="another.example")
    response = server.client(token).get("/v1/state")
    assert code_of(response) == (401, "unauthenticated")
    assert response.json()["detail"] == "the token must be a valid pod token with audience reattach.dev"
    assert "the API server returned:" in server.log


class TestBytes:
    """The burst is 4 MiB, of which evidence has 2 MiB. A full state has some 0.6 MiB."""

    LIMIT = ("--namespace-bytes-rate", "1000:4194304")

    @staticmethod
    def fill(attempt: Attempt) -> None:
        """Write until the server refuses. The state has 500 KiB then."""
        for number in range(100):
            response = attempt.set(f"k{number % 8}", "x" * 62_000)
            if response.status_code == 429:
                assert code_of(response) == (429, "rate-limited")
                assert "bytes of state" in response.json()["detail"]
                assert int(response.headers["Retry-After"]) >= 1
                return
        pytest.fail("the server stored 100 states of up to 500 KiB")

    def test_namespace_that_rewrites_a_full_state_writes_few_bytes_and_others_go_on(
        self, control_plane: ControlPlane, servers: Servers, task: Task
    ) -> None:
        server = servers.start(*self.LIMIT)
        attempt = task.attempt(server)
        sibling = Task.create(control_plane, task.namespace, "sibling").attempt(server)
        other = Task.create(control_plane, control_plane.create_namespace("other")).attempt(server)
        self.fill(attempt)
        stored = sum(map(len, task.configmap()["data"].values()))
        assert metric(server, "reattach_server_written_bytes_total") < 2 * MIB + stored + 100_000
        assert sibling.set("k", 1).status_code == 429
        assert other.set("k", 1).status_code == 200
        assert attempt.get("k0").status_code == 200

    def test_namespace_without_bytes_left_still_records_handles_outcomes_and_the_result(
        self, servers: Servers, task: Task
    ) -> None:
        server = servers.start(*self.LIMIT)
        attempt = task.attempt(server)
        assert attempt.intend().json()["decision"] == "Submit"
        self.fill(attempt)
        assert attempt.intend("other").status_code == 429
        assert attempt.handle("job-1").status_code == 204
        assert attempt.cancellation().status_code == 200
        assert attempt.outcome("Succeeded").status_code == 204
        assert attempt.complete(result=1).status_code == 204
        assert attempt.set("k", 1).status_code == 409

    def test_large_taskruns_that_are_opened_at_once_delay_handles_by_seconds(
        self, control_plane: ControlPlane, servers: Servers, task: Task
    ) -> None:
        server = servers.start("--namespace-bytes-rate", "524288:4194304")
        attempt = task.attempt(server)
        assert attempt.intend().json()["decision"] == "Submit"
        template = {"spec": {"containers": [{"name": "task", "image": "task", "args": ["x" * 1_200_000]}]}}
        large = [
            Task.create(control_plane, task.namespace, f"large-{n}", template=template).attempt(server, opened=False)
            for n in range(16)
        ]
        with ThreadPoolExecutor(16) as pool:
            statuses = Counter(pool.map(lambda opening: opening.open().status_code, large))
        assert statuses[200] > 0
        wait_until(lambda: attempt.handle("job-1").status_code == 204, seconds=60, what="the handle is stored")
        assert attempt.outcome("Succeeded").status_code == 204

    def test_change_that_the_api_server_refuses_costs_no_bytes(self, servers: Servers, task: Task) -> None:
        server = servers.start(*self.LIMIT)
        attempt = task.attempt(server)
        assert attempt.set("k", "x" * 60_000).status_code == 200
        task.patch_configmap(immutable=True)
        for _ in range(60):
            assert attempt.set("k", "y" * 60_000).status_code == 503
