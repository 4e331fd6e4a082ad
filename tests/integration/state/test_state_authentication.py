"""Who may call: the pods of attempts, each for its own TaskRun. Everybody else is refused, logged, and nothing of theirs is read."""

import base64
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from controlplane import ControlPlane
from reattach.api.names import LABEL_ATTEMPT, LABEL_TASKRUN
from stateapi import Server, Servers, Task, code_of, new_session, write_certificate
from waiting import wait_until


def expired(token: str, control_plane: ControlPlane) -> str:
    """The same token as it would be in a year: signed by the same key, but past its time."""
    header, claims, _ = token.split(".")
    about = json.loads(base64.urlsafe_b64decode(claims + "=="))
    about["exp"] = about["iat"] - 600
    about["iat"] = about["nbf"] = about["iat"] - 4200
    signed = f"{header}.{encoded(json.dumps(about).encode())}"
    key = load_pem_private_key((control_plane.directory / "service-accounts.key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    r, s = utils.decode_dss_signature(key.sign(signed.encode(), ec.ECDSA(SHA256())))
    return f"{signed}.{encoded(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def delete_pod(task: Task, pod: dict[str, Any]) -> None:
    path = f"/api/v1/namespaces/{task.namespace}/pods/{pod['metadata']['name']}"
    task.control_plane.call("DELETE", path, gracePeriodSeconds=0)


def unbound(task: Task) -> str:
    return task.control_plane.token(task.namespace, audiences=["reattach.dev"])


def of_a_deleted_pod(task: Task) -> str:
    pod = task.pod()
    token = task.token(pod)
    delete_pod(task, pod)
    return token


def of_a_pod_made_again(task: Task) -> str:
    token = of_a_deleted_pod(task)
    task.pod()
    return token


def with_other_metadata(**changes: Any) -> Callable[[Task], str]:
    return lambda task: task.token(task.pod(**changes))


def owned_but_not_controlled(task: Task) -> str:
    owner = {"apiVersion": "reattach.dev/v1alpha1", "kind": "TaskRun", "name": "load", "uid": task.uid}
    return task.token(task.pod(ownerReferences=[owner]))


UNAUTHENTICATED, NOT_A_TASK_POD = (401, "unauthenticated"), (403, "not-a-task-pod")


@pytest.mark.parametrize(
    "token_of, problem",
    [
        (lambda _task: "", UNAUTHENTICATED),
        (lambda _task: "not-a-token", UNAUTHENTICATED),
        (lambda task: task.token(task.pod())[:-4] + "AAAA", UNAUTHENTICATED),
        (lambda task: task.token(task.pod(), audience="another.example"), UNAUTHENTICATED),
        (lambda task: task.control_plane.token(task.namespace, pod=task.pod()), UNAUTHENTICATED),
        (lambda task: expired(task.token(task.pod()), task.control_plane), UNAUTHENTICATED),
        (of_a_deleted_pod, UNAUTHENTICATED),
        (of_a_pod_made_again, UNAUTHENTICATED),
        (unbound, NOT_A_TASK_POD),
        (with_other_metadata(labels={}), NOT_A_TASK_POD),
        (with_other_metadata(labels={LABEL_TASKRUN: "other", LABEL_ATTEMPT: "1"}), NOT_A_TASK_POD),
        (with_other_metadata(labels={LABEL_TASKRUN: "load", LABEL_ATTEMPT: "2"}), NOT_A_TASK_POD),
        (with_other_metadata(labels={LABEL_TASKRUN: "load", LABEL_ATTEMPT: "x"}), NOT_A_TASK_POD),
        (with_other_metadata(ownerReferences=[]), NOT_A_TASK_POD),
        (with_other_metadata(name="load"), NOT_A_TASK_POD),
        (owned_but_not_controlled, NOT_A_TASK_POD),
    ],
    ids=[
        "none", "garbage", "forged", "of another audience", "of the API server's audience", "expired", "of a deleted pod",
        "of a pod that was replaced", "of no pod", "of a pod without labels", "labelled as another TaskRun",
        "labelled as another attempt", "labelled as no attempt", "without an owner", "with another name", "owned, not controlled",
    ],
)  # fmt: skip
def test_a_token_of_anything_but_an_attempt_is_refused_logged_and_nothing_is_read(
    control_plane: ControlPlane, server: Server, task: Task, token_of: Callable[[Task], str], problem: tuple[int, str]
) -> None:
    token, key = token_of(task), f"/v1/state/{task.namespace}"
    since = control_plane.audit_mark()
    with server.client(token or None, new_session()) as client:
        if problem == UNAUTHENTICATED and token:
            # The API server learns of a pod's end by a watch of its own.
            wait_until(lambda: client.get(key).status_code == 401, seconds=60, what="the token is refused")
        responses = [
            client.post("/v1/open", json={"session": new_session()}),
            client.get(key),
            client.put(key, json={"value": 1}),
            client.delete(key),
            client.post("/v1/complete", json={}),
        ]
    assert {code_of(response) for response in responses} == {problem}
    events = control_plane.audit(since, user=server.user)
    assert {event["objectRef"]["resource"] for event in events} <= {"tokenreviews", "pods"}
    assert "state" not in task.status()
    assert server.log.count(f"refused PUT {key!r} from 127.0.0.1") == 1
    assert not token or token not in server.log


def test_a_token_of_another_pod_writes_for_that_pods_taskrun_alone(server: Server, task: Task) -> None:
    mine = task.attempt(server)
    other = Task.create(task.control_plane, task.namespace, "other").attempt(server)
    thief = server.client(other.token, mine.session)
    assert code_of(thief.put("/v1/state/k", json={"value": "stolen"})) == (409, "fenced")
    assert code_of(mine.get("k")) == (404, "not-found")


def test_a_token_that_was_refused_is_not_remembered_as_refused(server: Server, task: Task) -> None:
    pod = task.pod(labels={})
    client = server.client(task.token(pod), new_session())
    assert code_of(client.get("/v1/state/k")) == NOT_A_TASK_POD
    path = f"/api/v1/namespaces/{task.namespace}/pods/{pod['metadata']['name']}"
    task.control_plane.call("PATCH", path, {"metadata": {"labels": {LABEL_TASKRUN: "load", LABEL_ATTEMPT: "1"}}})
    assert code_of(client.get("/v1/state/k")) == (409, "not-open")


def test_namespaces_that_are_not_watched_are_refused(servers: Servers, task: Task) -> None:
    namespace = task.control_plane.create_namespace()
    server = servers.start("--watch-namespaces", f"{namespace}, another")
    assert code_of(task.attempt(server, opened=False).open()) == NOT_A_TASK_POD
    watched = Task.create(task.control_plane, namespace).attempt(server)
    assert watched.set("k", 1).status_code == 200
    task.control_plane.delete_namespace(namespace)


def test_one_taskrun_that_asks_too_often_waits_and_others_do_not(servers: Servers, task: Task) -> None:
    server = servers.start("--taskrun-rate", "0.01:3")
    busy = task.attempt(server)
    other = Task.create(task.control_plane, task.namespace, "other").attempt(server)
    responses = [busy.set("k", 1) for _ in range(4)]
    assert [response.status_code for response in responses] == [200, 200, 429, 429]
    assert code_of(responses[-1]) == (429, "rate-limited")
    assert 50 <= int(responses[-1].headers["Retry-After"]) <= 100
    assert other.set("k", 1).status_code == 200


def test_one_namespace_that_asks_too_often_waits(servers: Servers, task: Task) -> None:
    server = servers.start("--namespace-rate", "0.01:3")
    one = task.attempt(server)
    other = Task.create(task.control_plane, task.namespace, "other").attempt(server)
    assert [one.set("k", 1).status_code, other.set("k", 1).status_code] == [200, 429]


def test_an_address_with_many_bad_tokens_costs_no_more_reviews(
    control_plane: ControlPlane, servers: Servers, task: Task
) -> None:
    server = servers.start("--refused-token-rate", "0.01:20")
    good = task.attempt(server)
    since = control_plane.audit_mark()
    codes = [code_of(server.client(f"bad-{number}").get("/v1/state")) for number in range(40)]
    assert (codes[0], codes[-1]) == (UNAUTHENTICATED, (429, "rate-limited"))
    reviews = [
        event
        for event in control_plane.audit(since, user=server.user)
        if event["objectRef"]["resource"] == "tokenreviews"
    ]
    assert len(reviews) == 20
    assert good.set("k", 1).status_code == 200


class TestHttp:
    @pytest.mark.parametrize(
        "method, path, problem",
        [
            ("GET", "/", (404, "route-unknown")),
            ("GET", "/v2/state", (404, "route-unknown")),
            ("GET", "/v1/open", (405, "method-not-allowed")),
            ("PATCH", "/v1/state/k", (405, "method-not-allowed")),
            ("HEAD", "/v1/state/k", None),
            ("OPTIONS", "/v1/state", (405, "method-not-allowed")),
            ("DELETE", "/v1/jobs/load/intent", (405, "method-not-allowed")),
            ("POST", "/v1/jobs/load", (405, "method-not-allowed")),
            ("GET", "/v1/jobs/load?x=1", (400, "invalid")),
            ("GET", "/v1/state/k?x=1", (400, "invalid")),
            ("DELETE", "/v1/state?ifVersion=1", (400, "invalid")),
            ("DELETE", "/v1/state/k?ifVersion=0", (400, "invalid")),
        ],
    )
    def test_what_is_no_route_is_a_problem_like_any_other(
        self, server: Server, task: Task, method: str, path: str, problem: tuple[int, str] | None
    ) -> None:
        response = task.attempt(server).client.request(method, path)
        if problem is None:
            assert response.status_code == 405
        else:
            assert code_of(response) == problem
        if response.status_code == 405:
            assert response.headers["Allow"]

    def test_answers_are_not_to_be_cached(self, server: Server, task: Task) -> None:
        attempt = task.attempt(server)
        responses = [attempt.set("k", 1), attempt.get("k"), attempt.get("absent"), attempt.list()]
        assert {response.headers["Cache-Control"] for response in responses} == {"no-store"}

    def test_it_speaks_only_tls(self, server: Server) -> None:
        with pytest.raises(httpx.TransportError):
            httpx.get(server.url.replace("https", "http") + "/v1/state", trust_env=False)

    def test_a_slow_request_ends_in_time(self, servers: Servers, task: Task) -> None:
        server = servers.start("--request-timeout", "3")
        attempt = task.attempt(server)

        over = threading.Event()

        def body() -> Iterator[bytes]:
            yield b'{"value":'
            over.wait(20)
            yield b"1}"

        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(attempt.client.put, "/v1/state/k", content=body())
            wait_until(lambda: 'problem="unavailable"' in server.metrics, seconds=60, what="the server gave up")
            over.set()
            assert code_of(answer.result()) == (503, "unavailable")
        assert code_of(attempt.get("k")) == (404, "not-found")


class TestCertificate:
    def test_it_is_replaced_without_a_restart(self, servers: Servers, task: Task) -> None:
        server = servers.start()
        attempt = task.attempt(server)
        attempt.set("k", 1)
        before = server.ca
        server.ca = write_certificate(server.log_file.parent)
        wait_until(lambda: "certificate replaced" in server.log, seconds=60, what="the certificate is read again")
        assert attempt.on(server).get("k").json()["value"] == 1
        # Who was connected stays so; who comes anew with the old CA does not trust it.
        assert attempt.get("k").json()["value"] == 1
        server.ca = before
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            attempt.on(server).get("k")
        assert server.process.poll() is None

    def test_a_pair_that_does_not_fit_is_left_until_it_does(self, servers: Servers, task: Task, tmp_path: Path) -> None:
        server = servers.start()
        attempt = task.attempt(server)
        write_certificate(tmp_path)
        directory = server.log_file.parent
        key = (directory / "tls.key").read_bytes()
        (directory / "tls.key").write_bytes((tmp_path / "tls.key").read_bytes())
        wait_until(lambda: "keeping the current one" in server.log, seconds=60, what="the pair is refused")
        assert attempt.on(server).set("k", 1).status_code == 200
        (directory / "tls.key").write_bytes(key)
        server.ca = write_certificate(directory)
        wait_until(lambda: "certificate replaced" in server.log, seconds=60, what="the next pair is taken")
        assert attempt.on(server).get("k").status_code == 200

    def test_without_a_certificate_it_does_not_start(self, servers: Servers, tmp_path: Path) -> None:
        with pytest.raises(AssertionError, match=r"reattach-server: .*No such file.*missing"):
            servers.start("--tls-cert", str(tmp_path / "missing"))


class TestWhatCanBeSeen:
    def test_every_change_is_logged_with_its_writer_and_never_its_value(self, servers: Servers, task: Task) -> None:
        server = servers.start()
        attempt = task.attempt(server)
        attempt.set("a\nb", "secret-value", request_id="r-1")
        attempt.set("a\nb", "secret-value", request_id="r-1")
        attempt.batch({"op": "set", "key": "c", "value": "secret-value"}, {"op": "delete", "key": "c"})
        attempt.clear()
        attempt.set("a", None)
        attempt.complete("r-2", result="secret-value")
        lines = [
            line.partition("reattach.server.audit: ")[2] for line in server.log.splitlines() if "server.audit" in line
        ]
        who = (
            f"namespace={task.namespace} taskrun=load uid={task.uid} attempt=1 "
            f"pod={attempt.pod['metadata']['name']} pod_uid={attempt.pod['metadata']['uid']}"
        )
        assert lines == [
            f"open {who} request=- session={attempt.session}",
            f"change {who} request=r-1 set key='a\\nb' version=1 bytes=14",
            f"change {who} request=- set key='c' version=2 bytes=14",
            f"change {who} request=- delete key='c' deleted=1",
            f"change {who} request=- clear deleted=1",
            f"complete {who} request=r-2 bytes=14",
        ]
        assert "secret-value" not in server.log
        assert attempt.token not in server.log

    def test_requests_reviews_and_conflicts_are_counted(self, servers: Servers, task: Task) -> None:
        server = servers.start()
        attempt = task.attempt(server)
        attempt.set("k", 1)
        attempt.get("absent")
        attempt.client.request("MKCOL", "/nowhere")
        lines = server.metrics.splitlines()
        for line in (
            'reattach_server_requests_total{method="POST",problem="",route="/v1/open",status="200"} 1.0',
            'reattach_server_requests_total{method="PUT",problem="",route="/v1/state/{key}",status="200"} 1.0',
            'reattach_server_requests_total{method="GET",problem="not-found",route="/v1/state/{key}",status="404"} 1.0',
            'reattach_server_requests_total{method="other",problem="route-unknown",route="unknown",status="404"} 1.0',
            'reattach_server_token_reviews_total{result="accepted"} 1.0',
            "reattach_server_conflicts_total 0.0",
        ):
            assert line in lines

    def test_it_says_when_it_is_alive_and_ready(self, servers: Servers) -> None:
        server = servers.start("--drain", "30")
        for path in ("healthz", "readyz"):
            assert httpx.get(f"{server.health_url}/{path}", trust_env=False).status_code == 200
        server.process.terminate()

        def draining() -> bool:
            return httpx.get(f"{server.health_url}/readyz", trust_env=False).status_code == 503

        wait_until(draining, seconds=60, what="it is no longer ready")
        assert httpx.get(f"{server.health_url}/healthz", trust_env=False).status_code == 200
