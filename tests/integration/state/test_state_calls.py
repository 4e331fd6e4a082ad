"""What a task can ask of the state API, on a real API server. Names with a number are Airflow's acceptance cases."""

import json
from datetime import datetime, timedelta
from typing import Any

import pytest

from reattach.api.messages import STATE_BYTES_MAX, VALUE_BYTES_MAX
from stateapi import Server, Servers, Task, code_of

WEEK = 7 * 24 * 3600


def written(response: Any) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


class TestOpen:
    def test_the_answer_tells_the_pod_who_it_is(self, server: Server, task: Task) -> None:
        attempt = task.attempt(server, 3, opened=False)
        answer = written(attempt.open(canCleanup=True))
        assert abs(datetime.now().astimezone() - datetime.fromisoformat(answer.pop("serverTime"))) < timedelta(
            seconds=30
        )
        assert answer == {
            "namespace": task.namespace,
            "taskrun": "load",
            "taskrunUID": task.uid,
            "attempt": 3,
            "first": True,
            "purpose": "Run",
        }
        assert written(attempt.open())["first"] is True
        assert written(task.attempt(server, 4, opened=False).open())["first"] is False

    def test_the_configmap_is_owned_labelled_and_kept_by_a_finalizer(self, server: Server, task: Task) -> None:
        task.attempt(server)
        metadata = task.configmap()["metadata"]
        assert metadata["labels"] == {"reattach.dev/taskrun": "load"}
        assert metadata["finalizers"] == ["reattach.dev/state"]
        [owner] = metadata["ownerReferences"]
        assert (owner["kind"], owner["uid"], owner["controller"]) == ("TaskRun", task.uid, True)
        assert task.status()["state"] == {"configMap": metadata["name"], "uid": metadata["uid"]}

    def test_before_it_every_call_is_refused(self, server: Server, task: Task) -> None:
        attempt = task.attempt(server, opened=False)
        assert {code_of(response) for response in attempt.every_call()} == {(409, "not-open")}
        task.attempt(server, 2)
        assert {code_of(response) for response in task.attempt(server, 3, opened=False).every_call()} == {
            (409, "not-open")
        }

    def test_without_a_session_every_call_is_malformed(self, server: Server, task: Task) -> None:
        attempt = task.attempt(server)
        del attempt.client.headers["Reattach-Session"]
        assert {code_of(response) for response in attempt.every_call()} == {(400, "invalid")}

    @pytest.mark.parametrize("session", ["", "a b", "x" * 65, "é", 1, None])
    def test_a_session_is_a_short_plain_text(self, server: Server, task: Task, session: Any) -> None:
        attempt = task.attempt(server, opened=False)
        assert code_of(attempt.client.post("/v1/open", json={"session": session})) == (400, "invalid")
        assert "state" not in task.status()


class TestAirflowStore:
    def test_airflow_13_a_missing_key_is_not_found(self, server: Server, task: Task) -> None:
        assert code_of(task.attempt(server).get("job_id")) == (404, "not-found")

    @pytest.mark.parametrize(
        "value",
        ["job-7", "", 0, -(10**30), 1.5, 1e300, True, False, {"a": {"b": [1, "é\n\u2028"]}}, [], {}, [[["x"]]]],
    )
    def test_airflow_14_every_kind_of_value_makes_the_round_trip(self, server: Server, task: Task, value: Any) -> None:
        attempt = task.attempt(server)
        version = written(attempt.set("k", value))["version"]
        entry = written(attempt.get("k"))
        assert (entry["key"], entry["value"], entry["version"]) == ("k", value, version)
        assert type(entry["value"]) is type(value)
        assert (entry["attempt"], entry["podUID"]) == (1, attempt.pod["metadata"]["uid"])

    def test_airflow_15_a_second_set_overwrites(self, server: Server, task: Task) -> None:
        attempt = task.attempt(server)
        versions = [written(attempt.set("k", value))["version"] for value in ("old", "new")]
        assert versions == [1, 2]
        assert written(attempt.get("k"))["value"] == "new"

    def test_airflow_16_delete_removes_only_the_named_key_and_an_absent_one_is_fine(
        self, server: Server, task: Task
    ) -> None:
        attempt = task.attempt(server)
        for key in ("a", "b"):
            attempt.set(key, 1)
        assert written(attempt.delete("a")) == {"version": None, "deleted": 1}
        assert written(attempt.delete("a")) == {"version": None, "deleted": 0}
        assert code_of(attempt.get("a")) == (404, "not-found")
        assert written(attempt.get("b"))["value"] == 1

    def test_airflow_17_clear_removes_all_keys_and_an_empty_state_is_fine(self, server: Server, task: Task) -> None:
        attempt = task.attempt(server)
        assert written(attempt.clear())["deleted"] == 0
        for key in ("a", "b/c"):
            attempt.set(key, 1)
        assert written(attempt.clear())["deleted"] == 2
        assert written(attempt.list()) == {"items": [], "total": 0}

    def test_airflow_18_taskruns_do_not_see_each_other(self, server: Server, task: Task) -> None:
        mine = task.attempt(server)
        other = Task.create(task.control_plane, task.namespace, "other").attempt(server)
        mine.set("k", "mine")
        assert code_of(other.get("k")) == (404, "not-found")
        other.set("k", "other")
        other.clear()
        assert written(mine.get("k"))["value"] == "mine"

    def test_airflow_19_a_write_for_an_absent_taskrun_is_refused(self, server: Server, task: Task) -> None:
        orphan = task.attempt(server, opened=False)
        task.control_plane.call("DELETE", f"/apis/reattach.dev/v1alpha1/namespaces/{task.namespace}/taskruns/load")
        # Until its garbage is collected the pod may call: its token is good, but there is nothing to write to.
        assert code_of(orphan.open()) in {(409, "closing"), (401, "unauthenticated")}
        assert code_of(orphan.set("k", 1)) in {(409, "closing"), (401, "unauthenticated")}

    @pytest.mark.parametrize(
        "body, problem",
        [
            (b"", (400, "invalid")),
            (b"{}", (400, "invalid")),
            (b"[]", (400, "invalid")),
            (b'{"value": 1', (400, "invalid")),
            (b'{"value": 1, "extra": 2}', (400, "invalid")),
            (b'{"value": 1, "value": 2}', (400, "invalid")),
            (b'{"value": {"a": 1, "a": 2}}', (400, "invalid")),
            (b'{"value": "\xff"}', (400, "invalid")),
            (b'{"value": 1, "retentionSeconds": 1.5}', (400, "invalid")),
            (b'{"value": 1, "ifVersion": "1"}', (400, "invalid")),
            (b'{"value": 1, "ifAbsent": true, "ifVersion": 1}', (400, "invalid")),
            (b'{"value": null}', (422, "value-invalid")),
            (b'{"value": {"a": [null]}}', (422, "value-invalid")),
            (b'{"value": NaN}', (422, "value-invalid")),
            (b'{"value": [{"a": Infinity}]}', (422, "value-invalid")),
            (b'{"value": -Infinity}', (422, "value-invalid")),
            (b'{"value": 1e400}', (422, "value-invalid")),
            (b'{"value": "\\ud800"}', (422, "value-invalid")),
            (b'{"value": ' + b"[" * 5000 + b"]" * 5000 + b"}", (422, "value-invalid")),
        ],
    )
    def test_airflow_20_what_is_no_value_is_refused_and_changes_nothing(
        self, server: Server, task: Task, body: bytes, problem: tuple[int, str]
    ) -> None:
        attempt = task.attempt(server)
        before = task.configmap()["metadata"]["resourceVersion"]
        assert code_of(attempt.client.put("/v1/state/k", content=body)) == problem
        assert task.configmap()["metadata"]["resourceVersion"] == before

    def test_airflow_21_a_value_over_the_limit_is_refused_on_every_way(self, server: Server, task: Task) -> None:
        attempt = task.attempt(server)
        assert written(attempt.set("k", "x" * (VALUE_BYTES_MAX - 2)))["version"] == 1
        over = "x" * (VALUE_BYTES_MAX - 1)
        assert code_of(attempt.set("k", over)) == (413, "value-too-large")
        assert code_of(attempt.batch({"op": "set", "key": "k", "value": over})) == (413, "value-too-large")
        assert written(attempt.get("k"))["version"] == 1

    @pytest.mark.parametrize(
        "key",
        ["a/b", "/", "//a", "a/../b", "..", "a%2Fb", "%", "é", "a b", "a\nb", "?x=1", "#", "+", "x" * 512, "☃" * 512],
    )
    def test_airflow_22_keys_with_slashes_and_other_characters_work_in_every_verb(
        self, server: Server, task: Task, key: str
    ) -> None:
        attempt = task.attempt(server)
        assert written(attempt.set(key, 1))["version"] == 1
        assert written(attempt.get(key))["key"] == key
        assert [entry["key"] for entry in written(attempt.list(prefix=key))["items"]] == [key]
        assert written(attempt.delete(key))["deleted"] == 1
        assert written(attempt.batch({"op": "set", "key": key, "value": 2}, {"op": "delete", "key": key}))[
            "results"
        ] == [
            {"version": 2, "deleted": 0},
            {"version": None, "deleted": 1},
        ]

    def test_airflow_22_a_slash_may_also_stand_in_the_path_as_it_is(self, server: Server, task: Task) -> None:
        attempt = task.attempt(server)
        attempt.client.put("/v1/state/a/b", json={"value": 1})
        assert written(attempt.client.get("/v1/state/a%2Fb"))["key"] == "a/b"
        assert attempt.client.delete("/v1/state/a/b").json()["deleted"] == 1

    def test_airflow_23_keys_are_listed_in_pages_with_a_total_and_who_wrote_them(
        self, server: Server, task: Task
    ) -> None:
        attempt = task.attempt(server)
        for key in ("b/2", "a", "b/1"):
            attempt.set(key, key)
        page = written(attempt.list(prefix="b/", limit=1, offset=1))
        assert page["total"] == 2
        [entry] = page["items"]
        assert entry.keys() == {"key", "value", "version", "attempt", "podUID", "updatedAt", "expiresAt"}
        assert entry["key"] == "b/2"
        for query in ({"limit": 0}, {"limit": "x"}, {"offset": -1}, {"page": 1}, {"prefix": ["a", "b"]}):
            assert code_of(attempt.list(**query)) == (400, "invalid")

    @pytest.mark.parametrize(
        "retention, default, seconds",
        [
            ({}, WEEK, WEEK),
            ({}, 0, None),
            ({"retentionSeconds": None}, WEEK, None),
            ({"retentionSeconds": 0}, WEEK, None),
            ({"retentionSeconds": 60}, WEEK, 60),
        ],
    )
    def test_airflow_24_a_key_expires_when_it_was_asked_to(
        self, retained: dict[int, Server], task: Task, retention: dict[str, Any], default: int, seconds: int | None
    ) -> None:
        attempt = task.attempt(retained[default])
        answer = written(attempt.set("k", 1, **retention))
        entry = written(attempt.get("k"))
        assert entry["expiresAt"] == answer["expiresAt"]
        if seconds is None:
            assert entry["expiresAt"] is None
        else:
            lifetime = datetime.fromisoformat(entry["expiresAt"]) - datetime.fromisoformat(entry["updatedAt"])
            assert lifetime == timedelta(seconds=seconds)
        assert code_of(attempt.set("k", 1, retentionSeconds=-1)) == (400, "invalid")
        assert written(attempt.set("k", 1, retentionSeconds=0))["expiresAt"] is None

    def test_airflow_25_a_token_reaches_its_own_taskrun_alone(self, server: Server, task: Task) -> None:
        mine = task.attempt(server)
        mine.set("k", "mine")
        other = Task.create(task.control_plane, task.namespace, "other")
        stranger = other.attempt(server)
        # Whatever session it names, also mine: the TaskRun follows from the token.
        stranger.client.headers["Reattach-Session"] = mine.session
        assert {code_of(response) for response in stranger.every_call()} == {(409, "fenced")}
        assert written(mine.get("k"))["value"] == "mine"

    def test_airflow_25_without_a_token_every_verb_is_refused(self, server: Server, task: Task) -> None:
        attempt = task.attempt(server)
        del attempt.client.headers["Authorization"]
        responses = [attempt.open(), *attempt.every_call()]
        assert {code_of(response) for response in responses} == {(401, "unauthenticated")}
        assert all(response.headers["WWW-Authenticate"] == "Bearer" for response in responses)


@pytest.fixture(scope="module")
def retained(servers: Servers) -> dict[int, Server]:
    return {seconds: servers.start("--default-retention", str(seconds)) for seconds in (0, WEEK)}


class TestConditionalWrites:
    def test_create_only_and_if_version(self, server: Server, task: Task) -> None:
        attempt = task.attempt(server)
        assert written(attempt.set("k", 1, ifAbsent=True))["version"] == 1
        assert code_of(attempt.set("k", 2, ifAbsent=True)) == (412, "exists")
        assert code_of(attempt.set("k", 2, ifVersion=7)) == (412, "version-mismatch")
        assert written(attempt.set("k", 2, ifVersion=1))["version"] == 2
        assert code_of(attempt.delete("k", ifVersion=1)) == (412, "version-mismatch")
        assert written(attempt.delete("k", ifVersion=2))["deleted"] == 1
        assert code_of(attempt.set("k", 2, ifVersion=2)) == (412, "version-mismatch")
        assert written(attempt.set("k", 2))["version"] == 3

    def test_a_batch_happens_as_a_whole_or_not_at_all(self, server: Server, task: Task) -> None:
        attempt = task.attempt(server)
        attempt.set("a", 1)
        refused = attempt.batch(
            {"op": "clear"}, {"op": "set", "key": "b", "value": 1}, {"op": "delete", "key": "b", "ifVersion": 9}
        )
        assert code_of(refused) == (412, "version-mismatch")
        assert [entry["key"] for entry in written(attempt.list())["items"]] == ["a"]
        assert (
            written(attempt.batch({"op": "clear"}, {"op": "set", "key": "b", "value": 1}))["results"][1]["version"] == 2
        )
        assert [entry["key"] for entry in written(attempt.list())["items"]] == ["b"]

    @pytest.mark.parametrize(
        "operations",
        [[], [{"op": "x"}], [{"op": "set", "key": "k"}], [{"op": "clear", "key": "k"}], [{"op": "clear"}] * 101],
    )
    def test_a_malformed_batch_is_refused(self, server: Server, task: Task, operations: list[dict[str, Any]]) -> None:
        assert code_of(task.attempt(server).batch(*operations)) == (400, "invalid")


class TestLimits:
    @pytest.mark.parametrize("key", ["", "x" * 513, "☃" * 513])
    def test_a_key_has_1_to_512_characters(self, server: Server, task: Task, key: str) -> None:
        attempt = task.attempt(server)
        responses = [attempt.get(key), attempt.set(key, 1), attempt.delete(key)]
        responses.append(attempt.batch({"op": "set", "key": key, "value": 1}))
        assert {code_of(response) for response in responses} == {(422, "key-invalid")}

    def test_a_key_that_is_no_utf8_is_refused(self, server: Server, task: Task) -> None:
        assert code_of(task.attempt(server).client.get("/v1/state/%FF")) == (422, "key-invalid")

    def test_a_full_state_says_so_and_keeps_what_it_has(self, server: Server, task: Task) -> None:
        attempt = task.attempt(server)
        value = "x" * 60_000
        fits = STATE_BYTES_MAX // 60_200
        for number in range(fits):
            assert written(attempt.set(f"k{number}", value))["version"] == number + 1
        assert code_of(attempt.set("more", value)) == (413, "state-full")
        assert written(attempt.list(limit=1))["total"] == fits
        attempt.delete("k0")
        assert written(attempt.set("more", value))["version"] == fits + 1

    def test_a_state_of_a_single_large_batch_is_stored(self, server: Server, task: Task) -> None:
        attempt = task.attempt(server)
        operations = [{"op": "set", "key": f"k{number}", "value": "\u20ac" * 1700} for number in range(99)]
        assert len(written(attempt.batch(*operations, request_id="r"))["results"]) == 99
        assert written(attempt.list())["total"] == 99

    def test_a_body_over_1_mib_is_refused(self, server: Server, task: Task) -> None:
        attempt = task.attempt(server)
        body = b'{"value": "' + b"x" * 1024 * 1024 + b'"}'
        assert code_of(attempt.client.put("/v1/state/k", content=body)) == (413, "request-too-large")


class TestComplete:
    def test_the_record_is_stored_and_announced(self, server: Server, task: Task) -> None:
        attempt = task.attempt(server)
        assert attempt.complete(result={"rows_written": 4211}).status_code == 204
        configmap = task.configmap()
        assert '"completedAttempt":1' in configmap["metadata"]["annotations"]["reattach.dev/summary"]
        assert r'"result":"{\"rows_written\":4211}"' in configmap["data"]["completion"]

    def test_it_is_final(self, server: Server, task: Task) -> None:
        attempt = task.attempt(server)
        attempt.set("k", 1)
        assert attempt.complete(result=1).status_code == 204
        assert attempt.complete(result=1).status_code == 204
        assert code_of(attempt.complete(result=2)) == (409, "completed")
        assert code_of(attempt.set("k", 2)) == (409, "completed")
        assert code_of(attempt.another_process().open()) == (409, "completed")
        assert written(attempt.get("k"))["value"] == 1

    def test_a_result_has_at_most_4_kib_and_no_nan(self, server: Server, task: Task) -> None:
        attempt = task.attempt(server)
        assert code_of(attempt.complete(result="x" * 4095)) == (413, "value-too-large")
        assert code_of(attempt.client.post("/v1/complete", content=b'{"result": [NaN]}')) == (422, "value-invalid")
        assert attempt.complete(result={"nothing": None}).status_code == 204


class TestEnd:
    def test_end_of_the_attempt_is_stored_with_its_pod(self, server: Server, task: Task) -> None:
        attempt = task.attempt(server)
        assert attempt.end("RetryLater", message="no slot", retryAfterSeconds=90).status_code == 204
        data = task.configmap()["data"]
        end = json.loads(data["end"])
        assert (end["attempt"], end["podUID"]) == (1, attempt.pod["metadata"]["uid"])
        assert (end["kind"], end["message"], end["retryAfterSeconds"]) == ("RetryLater", "no slot", 90)
        assert (data["formatVersion"], data["optional"]) == ("2", '["end"]')

    def test_end_is_final_and_a_repetition_writes_nothing(self, server: Server, task: Task) -> None:
        attempt = task.attempt(server)
        attempt.set("k", 1)
        attempt.intend("before")
        assert attempt.end("Permanent", "r-1", message="no table").status_code == 204
        version = task.configmap()["metadata"]["resourceVersion"]
        assert attempt.end("Permanent", "r-1", message="no table").status_code == 204
        assert attempt.end("Permanent", message="no table").status_code == 204
        assert code_of(attempt.end("NotReady", "r-1")) == (400, "invalid")
        for response in (
            attempt.end("NotReady"),
            attempt.end("Permanent", message="no view"),
            attempt.complete(result=1),
            attempt.set("k", 2),
            attempt.clear(),
            attempt.intend(),
            attempt.outcome("Failed", "before"),
            attempt.open(),
            attempt.another_process().open(),
        ):
            assert code_of(response) == (409, "ended")
        assert task.configmap()["metadata"]["resourceVersion"] == version
        assert written(attempt.get("k"))["value"] == 1

    def test_handle_of_an_attempt_that_ended_is_still_recorded(self, server: Server, task: Task) -> None:
        attempt = task.attempt(server)
        attempt.intend()
        attempt.end("RetryLater")
        assert attempt.handle("job-7").status_code == 204
        assert written(task.attempt(server, 2).job())["handle"] == "job-7"

    def test_completion_or_a_later_attempt_wins_over_an_end(self, server: Server, task: Task) -> None:
        first = task.attempt(server)
        first.complete(result=1)
        assert code_of(first.end("Permanent")) == (409, "completed")
        second = task.attempt(server, 2)
        assert code_of(first.end("Permanent")) == (409, "fenced")
        assert second.end("NotReady").status_code == 204
        assert task.attempt(server, 3).set("k", 1).status_code == 200

    @pytest.mark.parametrize(
        "body, status, code",
        [
            ({}, 400, "invalid"),
            ({"kind": "Failed"}, 400, "invalid"),
            ({"kind": "Permanent", "reason": "x"}, 400, "invalid"),
            ({"kind": "Permanent", "retryAfterSeconds": 1}, 400, "invalid"),
            ({"kind": "RetryLater", "retryAfterSeconds": -1}, 400, "invalid"),
            ({"kind": "RetryLater", "retryAfterSeconds": 1.5}, 400, "invalid"),
            ({"kind": "NotReady", "message": "x" * 50_000}, 413, "request-too-large"),
            ({"kind": "Waiting", "retryAfterSeconds": 60}, 400, "invalid"),
            ({"kind": "NotReady", "job": {"key": "load", "generation": 1}}, 400, "invalid"),
            ({"kind": "Waiting", "job": {"key": "load", "generation": 1}}, 400, "invalid"),
            (
                {"kind": "Waiting", "retryAfterSeconds": 60, "job": {"key": "load", "generation": 1}},
                404,
                "job-not-found",
            ),
            ({"kind": "Waiting", "retryAfterSeconds": 60, "job": {"key": "", "generation": 1}}, 400, "invalid"),
        ],
    )
    def test_malformed_end_changes_nothing(
        self, server: Server, task: Task, body: dict[str, Any], status: int, code: str
    ) -> None:
        attempt = task.attempt(server)
        assert code_of(attempt.client.post("/v1/end", json=body)) == (status, code)
        assert attempt.set("k", 1).status_code == 200

    def test_long_message_is_cut_and_not_refused(self, server: Server, task: Task) -> None:
        attempt = task.attempt(server)
        assert attempt.end("Permanent", message=f"Error: {'x' * 9000} no table").status_code == 204
        message = json.loads(task.configmap()["data"]["end"])["message"]
        assert (len(message.encode()) <= 4096, message[:7], message[-9:]) == (True, "Error: ", " no table")


class TestRepeats:
    def test_the_same_request_is_written_once(self, server: Server, task: Task) -> None:
        attempt = task.attempt(server)
        first = written(attempt.set("k", 1, request_id="r-1"))
        attempt.set("k", 2)
        version = task.configmap()["metadata"]["resourceVersion"]
        assert written(attempt.set("k", 1, request_id="r-1")) == first
        assert task.configmap()["metadata"]["resourceVersion"] == version
        assert written(attempt.get("k"))["value"] == 2

    def test_an_id_stands_for_one_request(self, server: Server, task: Task) -> None:
        attempt = task.attempt(server)
        attempt.set("k", 1, request_id="r-1")
        assert code_of(attempt.set("k", 2, request_id="r-1")) == (400, "invalid")
        assert code_of(attempt.delete("k", request_id="r-1")) == (400, "invalid")
        assert code_of(attempt.set("k", 2, request_id="a b")) == (400, "invalid")
        assert written(attempt.get("k"))["value"] == 1

    def test_a_repeated_delete_does_not_hit_what_was_written_since(self, server: Server, task: Task) -> None:
        attempt = task.attempt(server)
        assert written(attempt.delete("k", request_id="r-1"))["deleted"] == 0
        attempt.set("k", 1)
        assert written(attempt.delete("k", request_id="r-1"))["deleted"] == 0
        assert written(attempt.get("k"))["value"] == 1

    def test_a_repeated_completion_is_answered_alike(self, server: Server, task: Task) -> None:
        attempt = task.attempt(server)
        assert attempt.complete("r-1", result=1).status_code == 204
        assert attempt.complete("r-1", result=1).status_code == 204
