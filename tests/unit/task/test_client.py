"""A call is asked until it is answered, patience is over, or the answer is final."""

import asyncio
import contextlib
import gc
import json
import logging
import weakref
from typing import Any
from uuid import UUID

import httpx
import pytest

import reattach
from fakepod import CA, Pod, a_problem
from reattach.api.names import HEADER_REQUEST_ID, HEADER_SESSION
from reattach.task.client import DELAY_SECONDS_MAX, UNAUTHENTICATED_SECONDS
from reattach.task.connection import StateApiConnection, StateApiRequest

LOST = httpx.ReadError("connection reset")
REFUSED = httpx.ConnectError("connection refused")
TIMED_OUT = httpx.ReadTimeout("timed out")
# Not of the state API: its problems have a content type of their own.
NOT_OURS = httpx.Response(404, json=json.loads(a_problem(404, "not-found").content))
PROXY_404 = httpx.Response(404, text="default backend - 404")
UNAVAILABLE = a_problem(503, "unavailable")


def request_ids(pod: Pod) -> list[str | None]:
    return [request.headers.get(HEADER_REQUEST_ID) for request in pod.api.requests]


class TestAskingAgain:
    @pytest.mark.parametrize(
        "failure", [LOST, REFUSED, TIMED_OUT, UNAVAILABLE, a_problem(500, "unavailable"), PROXY_404]
    )
    def test_a_lost_answer_is_asked_for_again_with_the_same_request_id(self, pod: Pod, failure: Any) -> None:
        pod.api.script = [failure, failure]

        assert pod.state().set("color", "green") == 1

        assert len(pod.api.requests) == 3
        assert len({*request_ids(pod)}) == 1
        assert len({request.content for request in pod.api.requests}) == 1

    def test_each_change_has_an_id_of_its_own(self, pod: Pod) -> None:
        state = pod.state()
        state.set("a", 1)
        state.set("a", 1)
        state.delete("a")
        state.clear()

        ids = request_ids(pod)
        assert len({*ids}) == 4
        assert all(UUID(one) for one in ids)

    def test_a_read_needs_no_request_id(self, pod: Pod) -> None:
        pod.state().get("color")
        assert request_ids(pod) == [None]

    def test_every_call_carries_session_and_token(self, pod: Pod) -> None:
        pod.state().get("color")
        headers = pod.api.requests[0].headers
        assert headers[HEADER_SESSION] == "session-1"
        assert headers["Authorization"] == "Bearer token-1"

    async def test_async_calls_are_asked_again_the_same_way(self, pod: Pod) -> None:
        pod.api.script = [LOST, UNAVAILABLE]

        assert await pod.state().aset("color", "green") == 1

        assert len({*request_ids(pod)}) == 1
        assert len(pod.time.waited) == 2

    def test_an_answer_that_can_not_be_read_is_no_answer(self, pod: Pod) -> None:
        pod.api.script = [
            httpx.Response(200, text="<html>Welcome to nginx"),
            httpx.Response(200, json={"results": "no"}),
        ]
        assert pod.state().set("color", "green") == 1

    @pytest.mark.parametrize(
        "answer", [NOT_OURS, PROXY_404, httpx.Response(404, json={"code": "not-found"}), httpx.Response(302)]
    )
    def test_only_the_state_api_can_say_that_a_key_is_absent(self, pod: Pod, answer: Any) -> None:
        pod.api.values = {"job_id": "job-7"}
        pod.api.script = [answer, answer]
        assert pod.state().get("job_id", "none yet") == "job-7"


class TestWaiting:
    def test_waits_grow_to_their_bound_and_patience_is_kept(self, pod: Pod) -> None:
        pod.api.down = REFUSED

        with pytest.raises(reattach.Unavailable, match="connection refused"):
            pod.state().get("job_id")

        assert pod.time.waited[:4] == [0.2, 0.4, 0.8, 1.6]
        assert max(pod.time.waited) == DELAY_SECONDS_MAX
        assert sum(pod.time.waited) == pytest.approx(pod.settings.patience)

    def test_waits_differ_between_tasks(self, pod: Pod) -> None:
        chances = iter([0.0, 0.5, 1.0])
        client = pod.client()
        object.__setattr__(client.timing, "jitter", lambda: next(chances))
        pod.api.script = [LOST, LOST, LOST]
        reattach.State(client).get("job_id")
        assert pod.time.waited == [0.1, pytest.approx(0.3), 0.8]

    def test_retry_after_is_waited_for(self, pod: Pod) -> None:
        pod.api.script = [
            a_problem(429, "rate-limited", **{"Retry-After": "7"}),
            a_problem(503, "conflict", **{"Retry-After": "1"}),
        ]
        pod.state().set("color", "green")
        assert pod.time.waited == [7.0, 1.0]

    def test_a_retry_after_beyond_reason_is_cut(self, pod: Pod) -> None:
        pod.api.script = [a_problem(429, "rate-limited", **{"Retry-After": "86400"})]
        pod.state().set("color", "green")
        assert pod.time.waited == [60.0]

    def test_patience_counts_anew_for_each_call(self, pod: Pod) -> None:
        state = pod.state()
        for _ in range(3):
            pod.api.down = REFUSED
            pod.time.at(2000, lambda: setattr(pod.api, "down", None))
            state.get("job_id")

    def test_the_log_tells_of_an_absence_while_it_lasts_and_when_it_is_over(
        self, pod: Pod, caplog: pytest.LogCaptureFixture
    ) -> None:
        pod.api.down = REFUSED
        pod.time.at(150, lambda: setattr(pod.api, "down", None))

        pod.state().get("job_id")

        told = [record.getMessage() for record in caplog.records if record.name == "reattach"]
        assert len(told) == 4  # after 3 s, a minute, two minutes, and at the end
        assert "has been unavailable for 3 s" in told[0]
        assert "connection refused" in told[0]
        assert all("Retrying for at most" in one for one in told[:3])
        assert "is available again, after 15" in told[3]
        assert all(record.levelno == logging.WARNING for record in caplog.records if record.name == "reattach")

    def test_a_short_absence_is_not_worth_a_line(self, pod: Pod, caplog: pytest.LogCaptureFixture) -> None:
        pod.api.script = [REFUSED, REFUSED]
        pod.state().get("job_id")
        assert [record for record in caplog.records if record.name == "reattach"] == []


class TestFinalAnswers:
    @pytest.mark.parametrize(
        "status,code,error",
        [
            (409, "fenced", reattach.Fenced),
            (409, "closing", reattach.Closing),
            (409, "state-lost", reattach.StateLost),
            (403, "not-a-task-pod", reattach.Refused),
            (409, "not-open", reattach.Refused),
            (409, "completed", reattach.AlreadyCompleted),
            (412, "exists", reattach.KeyExists),
            (412, "version-mismatch", reattach.VersionMismatch),
            (422, "key-invalid", reattach.InvalidKey),
            (422, "value-invalid", reattach.InvalidValue),
            (413, "value-too-large", reattach.ValueTooLarge),
            (413, "state-full", reattach.StateFull),
            (400, "invalid", reattach.InvalidCall),
            (413, "request-too-large", reattach.InvalidCall),
            (404, "route-unknown", reattach.ProtocolError),
            (405, "method-not-allowed", reattach.ProtocolError),
            (501, "not-implemented", reattach.ProtocolError),
            (418, "never-heard-of", reattach.ProtocolError),
        ],
    )
    def test_each_code_has_its_exception_and_is_asked_once(self, pod: Pod, status: int, code: Any, error: Any) -> None:
        pod.api.script = [a_problem(status, code, "this must hold")]
        with pytest.raises(error, match="this must hold"):
            pod.state().set("color", "green")
        assert len(pod.api.requests) == 1

    @pytest.mark.parametrize("code", ["fenced", "closing", "state-lost", "not-open"])
    def test_a_zombie_that_catches_every_exception_is_not_told_absent(self, pod: Pod, code: Any) -> None:
        pod.api.script = [a_problem(409, code)]

        def a_careless_task() -> str:
            try:
                job_id = pod.state().get("job_id")
            except Exception:  # noqa: BLE001 -- this is what must not help
                job_id = None
            return job_id or "submits again"

        with pytest.raises(reattach.AttemptOver):
            a_careless_task()

    def test_not_knowing_is_not_swallowed_either(self, pod: Pod) -> None:
        pod.api.down = REFUSED

        def a_careless_task() -> None:
            with contextlib.suppress(Exception):
                pod.state().get("job_id")

        with pytest.raises(reattach.Unavailable):
            a_careless_task()

    def test_who_must_end_is_reported_before_the_exception_is_raised(self, pod: Pod) -> None:
        pod.api.script = [a_problem(409, "fenced")]
        with pytest.raises(reattach.Fenced) as raised:
            pod.state().get("job_id")
        assert pod.over == [raised.value]


class TestEventLoops:
    @pytest.fixture
    def made(self, monkeypatch: pytest.MonkeyPatch) -> list[httpx.AsyncClient]:
        made: list[httpx.AsyncClient] = []

        class Client(httpx.AsyncClient):
            def __init__(self, **settings: Any) -> None:
                super().__init__(**settings)
                made.append(self)

        monkeypatch.setattr(httpx, "AsyncClient", Client)
        return made

    @pytest.fixture
    def connection(self, pod: Pod) -> StateApiConnection:
        return StateApiConnection(pod.settings, "session-1", pod.api.transport())

    ASKED = StateApiRequest("GET", "/v1/state")

    def test_each_has_one_client_however_they_take_turns(
        self, connection: StateApiConnection, made: list[httpx.AsyncClient]
    ) -> None:
        with asyncio.Runner() as one, asyncio.Runner() as other:
            for runner in (one, other) * 3:
                runner.run(connection.asend(self.ASKED))
            assert len(made) == 2

    def test_one_that_closes_leaves_the_others_what_is_theirs(
        self, connection: StateApiConnection, made: list[httpx.AsyncClient]
    ) -> None:
        with asyncio.Runner() as one, asyncio.Runner() as other:
            for runner in (one, other):
                runner.run(connection.asend(self.ASKED))
            one.run(connection.aclose())
            assert [client.is_closed for client in made] == [True, False]
            other.run(connection.asend(self.ASKED))
            other.run(connection.aclose())
        assert [client.is_closed for client in made] == [True, True]

    def test_what_a_closed_one_left_is_let_go_of(
        self, connection: StateApiConnection, made: list[httpx.AsyncClient]
    ) -> None:
        for _ in range(3):
            asyncio.run(connection.asend(self.ASKED))
        left = [weakref.ref(client) for client in made]
        made.clear()
        gc.collect()
        assert [client() is None for client in left] == [True, True, False]


class TestTokenAndCertificate:
    def test_a_new_token_is_used_from_the_next_request_on(self, pod: Pod) -> None:
        state = pod.state()
        state.get("a")
        pod.settings.token_file.write_text("token-2\n")
        state.get("a")
        assert [request.headers["Authorization"] for request in pod.api.requests] == [
            "Bearer token-1",
            "Bearer token-2",
        ]

    def test_a_refused_token_may_be_in_the_middle_of_its_replacement(self, pod: Pod) -> None:
        pod.api.down = a_problem(401, "unauthenticated")
        pod.time.at(70, lambda: setattr(pod.api, "down", None))
        pod.state().set("color", "green")
        assert pod.api.values == {"color": "green"}

    def test_a_token_that_stays_refused_ends_the_attempt(self, pod: Pod) -> None:
        pod.api.down = a_problem(401, "unauthenticated", "the pod is gone")
        with pytest.raises(reattach.Refused, match="the pod is gone"):
            pod.state().get("job_id")
        assert sum(pod.time.waited) == pytest.approx(UNAUTHENTICATED_SECONDS, abs=DELAY_SECONDS_MAX)

    def test_how_long_a_token_was_refused_counts_from_the_last_other_answer(self, pod: Pod) -> None:
        refused = a_problem(401, "unauthenticated")
        pod.api.down = refused
        pod.time.at(5, lambda: setattr(pod.api, "down", UNAVAILABLE))
        pod.time.at(2 * UNAUTHENTICATED_SECONDS, lambda: setattr(pod.api, "down", refused))
        pod.time.at(2.5 * UNAUTHENTICATED_SECONDS, lambda: setattr(pod.api, "down", None))
        pod.state().set("color", "green")
        assert pod.api.values == {"color": "green"}

    def test_files_that_vanish_for_a_moment_are_waited_for(self, pod: Pod) -> None:
        state = pod.state()
        pod.settings.token_file.unlink()
        pod.time.at(1, lambda: pod.settings.token_file.write_text("token-3"))
        state.get("a")
        assert pod.api.requests[0].headers["Authorization"] == "Bearer token-3"

    @pytest.mark.parametrize(
        "broken", ["", "no certificate", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
    )
    def test_without_a_certificate_nobody_is_trusted(self, pod: Pod, broken: str) -> None:
        pod.settings.ca_file.write_text(broken)
        pod.time.at(30, lambda: pod.settings.ca_file.write_text(CA))
        pod.state().get("a")
        assert sum(pod.time.waited) >= 30
        assert len(pod.api.requests) == 1
