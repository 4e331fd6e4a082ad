"""What goes wrong around the state API: processes that come back, a state that is lost, replicas that die, an API server that is away."""

import json
import os
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from controlplane import ControlPlane, RunningControlPlane
from reattach.api.names import state_name
from reattach.api.state import SealPurpose
from reattach.cluster.paths import configmaps
from stateapi import Attempt, Server, Servers, Task, call_until_killed, code_of
from waiting import wait_until

DYING = str(Path(__file__).with_name("dying_server.py"))


def value_of(response: httpx.Response) -> Any:
    assert response.status_code == 200, response.text
    return response.json()["value"]


class TestFencing:
    def test_an_old_attempt_that_comes_back_is_fenced_on_read_and_write(self, server: Server, task: Task) -> None:
        old = task.attempt(server)
        old.set("job_id", "job-1")
        new = task.attempt(server, 2)
        assert {code_of(response) for response in [*old.every_call(), old.open()]} == {(409, "fenced")}
        assert value_of(new.get("job_id")) == "job-1"

    def test_an_old_process_of_the_same_pod_is_fenced_on_read_and_write(self, server: Server, task: Task) -> None:
        old = task.attempt(server)
        old.set("job_id", "job-1")
        new = old.another_process()
        assert new.open().status_code == 200
        assert {code_of(response) for response in [*old.every_call(), old.open()]} == {(409, "fenced")}
        assert value_of(new.get("job_id")) == "job-1"

    def test_children_write_under_the_session_that_they_inherit(self, server: Server, task: Task) -> None:
        parent = task.attempt(server)
        child = parent.on(server)
        assert child.set("k", 1).status_code == 200
        assert value_of(parent.get("k")) == 1

    def test_another_pod_under_the_same_number_is_refused(self, server: Server, task: Task) -> None:
        first = task.attempt(server)
        first.set("job_id", "job-1")
        path = f"/api/v1/namespaces/{task.namespace}/pods/{first.pod['metadata']['name']}"
        task.control_plane.call("DELETE", path, gracePeriodSeconds=0)
        again = task.attempt(server, opened=False)
        assert {code_of(response) for response in [again.open(), *again.every_call()]} == {(409, "fenced")}

    def test_a_fenced_process_is_not_told_an_old_answer(self, server: Server, task: Task) -> None:
        old = task.attempt(server)
        old.set("k", 1, request_id="r-1")
        task.attempt(server, 2)
        assert code_of(old.set("k", 1, request_id="r-1")) == (409, "fenced")


class TestLoss:
    def test_a_configmap_deleted_by_hand_stays_and_goes_on_working(self, server: Server, task: Task) -> None:
        attempt = task.attempt(server)
        attempt.set("k", 1)
        task.control_plane.call("DELETE", task.configmap_path)
        assert task.configmap()["metadata"]["deletionTimestamp"]
        assert value_of(attempt.get("k")) == 1
        assert attempt.set("k", 2).status_code == 200
        assert task.attempt(server, 2).get("k").json()["value"] == 2

    def test_forced_away_it_is_lost_and_never_made_again(self, server: Server, task: Task) -> None:
        attempt = task.attempt(server)
        attempt.set("k", 1)
        task.force_away_configmap()
        next_attempt = task.attempt(server, 2, opened=False)
        responses = [*attempt.every_call(), attempt.open(), next_attempt.open(), *next_attempt.every_call()]
        assert {code_of(response) for response in responses} == {(409, "state-lost")}
        assert state_name(task.name, task.uid) not in names_of_configmaps(task)

    def test_one_put_in_its_place_by_hand_is_not_taken_for_it(
        self, servers: Servers, server: Server, task: Task
    ) -> None:
        attempt = task.attempt(server)
        attempt.set("k", 1)
        copy = task.configmap()
        for name in ("uid", "resourceVersion", "creationTimestamp"):
            del copy["metadata"][name]
        attempt.set("k", 2)
        task.force_away_configmap()
        task.control_plane.call("POST", f"/api/v1/namespaces/{task.namespace}/configmaps", copy)
        # On the replica that knows the state, on one that never saw it, and for the next attempt.
        responses = [
            attempt.get("k"),
            attempt.on(servers.start()).get("k"),
            task.attempt(server, 2, opened=False).open(),
        ]
        assert {code_of(response) for response in responses} == {(409, "state-lost")}

    def test_a_configmap_of_a_stranger_is_left_alone(self, server: Server, task: Task) -> None:
        name = state_name(task.name, task.uid)
        body = {"metadata": {"name": name}, "data": {"formatVersion": "1", "lastVersion": "0", "requests": "[]"}}
        task.control_plane.call("POST", f"/api/v1/namespaces/{task.namespace}/configmaps", body)
        assert code_of(task.attempt(server, opened=False).open()) == (503, "format-unknown")
        assert task.configmap()["data"] == body["data"]

    @pytest.mark.parametrize(
        "damage",
        [
            {"formatVersion": "3"},
            {"formatVersion": "2", "optional": '["end"]', "sael": "{}"},
            {"formatVersion": None},
            {"key.k": "{"},
            {"key.k": None, "kye.k": "{}"},
            {"lastVersion": "0"},
        ],
    )
    def test_what_cannot_be_read_is_never_called_absent(
        self, server: Server, task: Task, damage: dict[str, Any]
    ) -> None:
        attempt = task.attempt(server)
        attempt.set("k", 1)
        task.patch_configmap(data=damage)
        before = task.configmap()
        responses = [*attempt.every_call(), attempt.open(), task.attempt(server, 2, opened=False).open()]
        assert {code_of(response) for response in responses} == {(503, "format-unknown")}
        assert task.configmap() == before

    def test_fields_of_a_newer_version_are_kept_while_the_run_goes_on(self, server: Server, task: Task) -> None:
        first = task.attempt(server)
        first.intend()
        first.handle("job-1")
        job = task.configmap()["data"]["job.1.load"]
        newer = {
            "formatVersion": "2",
            "optional": '["job.cancelRequestedAt","later"]',
            "later": '{"attempt":1}',
            "job.1.load": job[:-1] + ',"cancelRequestedAt":"2026-11-30T12:00:00Z"}',
        }
        task.patch_configmap(data=newer)
        second = task.attempt(server, 2)
        assert second.intend().json()["decision"] == "Reattach"
        assert second.set("k", 1).status_code == 200
        task.seal(1, SealPurpose.SUSPEND)
        assert second.outcome("Succeeded").status_code == 204
        assert second.complete().status_code == 204
        data = task.configmap()["data"]
        assert {name: data[name] for name in ("formatVersion", "optional", "later")} == {
            name: newer[name] for name in ("formatVersion", "optional", "later")
        }
        ended = json.loads(data["job.1.load"])
        assert (ended["state"], ended["cancelRequestedAt"]) == ("Succeeded", "2026-11-30T12:00:00Z")
        assert task.view().completion is not None

    @pytest.mark.parametrize("ending", ["outcome", "deletion"])
    def test_nothing_is_opened_for_a_taskrun_that_is_over(self, server: Server, task: Task, ending: str) -> None:
        attempt = task.attempt(server, opened=False)
        path = f"/apis/reattach.dev/v1alpha1/namespaces/{task.namespace}/taskruns/load"
        if ending == "outcome":
            task.control_plane.call("PATCH", f"{path}/status", {"status": {"outcome": "Failed"}})
        else:
            task.control_plane.call("PATCH", path, {"metadata": {"finalizers": ["reattach.dev/external-jobs"]}})
            task.control_plane.call("DELETE", path)
        assert code_of(attempt.open()) == (409, "closing")
        assert state_name(task.name, task.uid) not in names_of_configmaps(task)

    def test_a_taskrun_made_again_under_its_name_has_a_state_of_its_own(self, server: Server, task: Task) -> None:
        old = task.attempt(server)
        old.set("job_id", "job-1")
        task.control_plane.call("DELETE", f"/apis/reattach.dev/v1alpha1/namespaces/{task.namespace}/taskruns/load")
        again = Task.create(task.control_plane, task.namespace)
        assert code_of(again.attempt(server).get("job_id")) == (404, "not-found")
        assert again.configmap()["metadata"]["ownerReferences"][0]["uid"] == again.uid != task.uid
        assert code_of(old.open()) in {(409, "closing"), (401, "unauthenticated")}


class TestCrashes:
    def test_killed_between_the_configmap_and_the_status_the_next_open_names_it(
        self, servers: Servers, server: Server, task: Task
    ) -> None:
        dying = servers.start(program=(DYING,), DIE="before PATCH /status")
        attempt = task.attempt(dying, opened=False)
        call_until_killed(dying, attempt.open)
        configmap = task.configmap()
        assert "state" not in task.status()
        # Not acknowledged, so not open: not for a call, whatever the session says.
        attempt = attempt.on(server)
        assert {code_of(response) for response in attempt.every_call()} == {(409, "not-open")}
        assert attempt.open().json()["first"] is True
        assert task.status()["state"]["uid"] == configmap["metadata"]["uid"]
        assert task.configmap()["metadata"]["uid"] == configmap["metadata"]["uid"]

    def test_killed_between_the_two_also_another_attempt_goes_on_with_it(
        self, servers: Servers, server: Server, task: Task
    ) -> None:
        dying = servers.start(program=(DYING,), DIE="before PATCH /status")
        call_until_killed(dying, task.attempt(dying, opened=False).open)
        second = task.attempt(server, 2)
        assert task.status()["state"]["uid"] == task.configmap()["metadata"]["uid"]
        assert second.set("k", 1).status_code == 200

    def test_killed_after_the_status_the_same_open_is_answered(
        self, servers: Servers, server: Server, task: Task
    ) -> None:
        dying = servers.start(program=(DYING,), DIE="after PATCH /status")
        attempt = task.attempt(dying, opened=False)
        call_until_killed(dying, attempt.open)
        assert attempt.on(server).open().json()["first"] is True

    def test_a_lost_answer_asked_for_again_is_written_once(self, servers: Servers, server: Server, task: Task) -> None:
        attempt = task.attempt(server)
        dying = servers.start(program=(DYING,), DIE="after PUT /configmaps")
        call_until_killed(dying, lambda: attempt.on(dying).set("k", "once", request_id="r-1", ifAbsent=True))
        since = task.control_plane.audit_mark()
        assert attempt.set("k", "once", request_id="r-1", ifAbsent=True).json()["version"] == 1
        writes = [event for event in task.control_plane.audit(since, user=server.user) if event["verb"] == "update"]
        assert writes == []

    def test_killed_before_the_write_nothing_is_stored(self, servers: Servers, server: Server, task: Task) -> None:
        attempt = task.attempt(server)
        dying = servers.start(program=(DYING,), DIE="before PUT /configmaps")
        call_until_killed(dying, lambda: attempt.on(dying).set("k", 1, request_id="r-1"))
        assert code_of(attempt.get("k")) == (404, "not-found")
        assert attempt.set("k", 1, request_id="r-1").json()["version"] == 1

    def test_asked_to_end_it_answers_what_was_asked_before(self, servers: Servers, server: Server, task: Task) -> None:
        ending = servers.start("--drain", "0.5")
        attempt = task.attempt(ending)

        def body() -> Iterator[bytes]:
            yield b'{"value":'
            os.kill(ending.process.pid, signal.SIGTERM)
            wait_until(lambda: not accepts_connections(ending), seconds=60, what="it takes no new connection")
            yield b" 1}"

        assert attempt.client.put("/v1/state/k", content=body()).status_code == 200
        assert ending.process.wait(timeout=15) == 0
        assert value_of(attempt.on(server).get("k")) == 1


class TestReplicas:
    def test_of_50_writers_on_one_key_through_two_replicas_none_loses_an_update(
        self, servers: Servers, server: Server, task: Task
    ) -> None:
        first = task.attempt(server)
        replicas = [server, servers.start()]
        first.set("counter", 0)

        def count_one(number: int) -> int:
            writer, tries = first.on(replicas[number % 2]), 0
            while True:
                tries += 1
                entry = writer.get("counter").json()
                response = writer.set("counter", entry["value"] + 1, f"r-{number}-{tries}", ifVersion=entry["version"])
                if response.status_code == 200:
                    return int(response.json()["version"])
                assert code_of(response) in {(412, "version-mismatch"), (503, "conflict")}

        with ThreadPoolExecutor(50) as pool:
            versions = list(pool.map(count_one, range(50)))
        entry = first.get("counter").json()
        assert entry["value"] == 50
        # Each version was given once, and each is one write: nothing but the writes that were acknowledged.
        assert sorted(versions) == list(range(2, 52))
        assert entry["version"] == 51

    def test_of_50_plain_writers_of_50_keys_none_is_lost(self, servers: Servers, server: Server, task: Task) -> None:
        first = task.attempt(server)
        replicas = [server, servers.start()]

        def write(number: int) -> int:
            while (response := first.on(replicas[number % 2]).set(f"k{number}", number)).status_code != 200:
                assert code_of(response) == (503, "conflict")
            return int(response.json()["version"])

        with ThreadPoolExecutor(50) as pool:
            versions = list(pool.map(write, range(50)))
        assert sorted(versions) == list(range(1, 51))
        items = first.list().json()["items"]
        assert {entry["key"]: entry["value"] for entry in items} == {f"k{number}": number for number in range(50)}
        assert [entry["version"] for entry in sorted(items, key=lambda entry: int(entry["value"]))] == versions

    def test_what_one_replica_acknowledged_the_other_reads_at_once(
        self, servers: Servers, server: Server, task: Task
    ) -> None:
        here = task.attempt(server)
        there = here.on(servers.start())
        for number in range(30):
            writer, reader = (here, there) if number % 2 else (there, here)
            writer.set("k", number)
            assert value_of(reader.get("k")) == number

    def test_of_many_first_opens_at_once_all_agree_on_one_state(
        self, servers: Servers, server: Server, task: Task
    ) -> None:
        attempt = task.attempt(server, opened=False)
        replicas = [server, servers.start()]
        with ThreadPoolExecutor(10) as pool:
            responses = list(pool.map(lambda number: attempt.on(replicas[number % 2]).open(), range(10)))
        assert [response.status_code for response in responses] == [200] * 10
        assert task.status()["state"]["uid"] == task.configmap()["metadata"]["uid"]

    def test_of_two_processes_that_open_at_once_one_is_fenced(
        self, servers: Servers, server: Server, task: Task
    ) -> None:
        one = task.attempt(server, opened=False)
        other = one.another_process().on(servers.start())
        with ThreadPoolExecutor(2) as pool:
            assert {response.status_code for response in pool.map(Attempt.open, (one, other))} == {200}
        codes = sorted(attempt.get("k").json()["code"] for attempt in (one, other))
        assert codes == ["fenced", "not-found"]


class TestCosts:
    @pytest.mark.parametrize(
        "call, cost",
        [
            (lambda attempt: attempt.get("k"), [("get", "configmaps")]),
            (lambda attempt: attempt.get("absent"), [("get", "configmaps")]),
            (lambda attempt: attempt.list(), [("get", "configmaps")]),
            (lambda attempt: attempt.set("k", 2, request_id="r"), [("get", "configmaps"), ("update", "configmaps")]),
            (lambda attempt: attempt.delete("k"), [("get", "configmaps"), ("update", "configmaps")]),
            (lambda attempt: attempt.delete("absent"), [("get", "configmaps")]),
            (lambda attempt: attempt.clear(), [("get", "configmaps"), ("update", "configmaps")]),
            (lambda attempt: attempt.complete(result=1), [("get", "configmaps"), ("update", "configmaps")]),
            (lambda attempt: attempt.set("k", None), []),
        ],
        ids=["get", "get absent", "list", "set", "delete", "delete absent", "clear", "complete", "refused"],
    )
    def test_a_call_costs_one_read_and_a_change_one_write_more(
        self, control_plane: ControlPlane, server: Server, task: Task, call: Any, cost: list[tuple[str, str]]
    ) -> None:
        attempt = task.attempt(server)
        attempt.set("k", 1)
        since = control_plane.audit_mark()
        call(attempt)
        events = control_plane.audit(since, user=server.user)
        assert [(event["verb"], event["objectRef"]["resource"]) for event in events] == cost

    def test_one_token_is_reviewed_once(self, control_plane: ControlPlane, server: Server, task: Task) -> None:
        attempt = task.attempt(server, opened=False)
        since = control_plane.audit_mark()
        attempt.open()
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda number: attempt.on(server).set("k", number), range(20)))
        events = control_plane.audit(since, user=server.user)
        calls = [
            (event["verb"], event["objectRef"]["resource"], event["objectRef"].get("subresource")) for event in events
        ]
        assert calls.count(("create", "tokenreviews", None)) == 1
        assert calls.count(("get", "pods", None)) == 1
        assert calls.count(("get", "taskruns", None)) == 1
        assert calls.count(("create", "configmaps", None)) == 1
        assert calls.count(("patch", "taskruns", "status")) == 1
        assert calls.count(("update", "configmaps", None)) == 20
        assert len(calls) == 1 + 1 + 1 + 1 + 1 + 1 + 20 + 20


class TestApiServerAway:
    def test_without_it_the_answer_is_unavailable_and_afterwards_all_is_as_before(
        self, private_control_plane: RunningControlPlane, tmp_path: Path
    ) -> None:
        servers = Servers(private_control_plane, tmp_path)
        try:
            server = servers.start()
            task = Task.create(private_control_plane, private_control_plane.create_namespace())
            attempt = task.attempt(server)
            stranger = task.attempt(server, 2, opened=False)
            attempt.set("k", 1)
            with private_control_plane.without_apiserver():
                # Who can't be checked is not refused: the client is to ask again.
                responses = [attempt.get("k"), attempt.set("k", 2, request_id="r"), stranger.open()]
                assert {code_of(response) for response in responses} == {(503, "unavailable")}
                assert all(int(response.headers["Retry-After"]) >= 1 for response in responses)
            wait_until(lambda: attempt.get("k").status_code == 200, seconds=60, what="the state is read again")
            assert value_of(attempt.get("k")) == 1
            assert attempt.set("k", 2, request_id="r").status_code == 200
        finally:
            servers.stop()


def accepts_connections(server: Server) -> bool:
    url = httpx.URL(server.url)
    try:
        socket.create_connection((url.host, url.port), timeout=1).close()
    except ConnectionRefusedError:
        return False
    return True


def names_of_configmaps(task: Task) -> set[str]:
    items = task.control_plane.call("GET", configmaps(task.namespace))["items"]
    return {item["metadata"]["name"] for item in items}
