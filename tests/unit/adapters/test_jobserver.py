"""The job server of the examples is what tests measure against: each mode does what it says, and it counts."""

import math
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from jobservers import LocalJobServer, Time, jobserver, serving
from waiting import wait_until


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def server(request: pytest.FixtureRequest, time: Time) -> Iterator[LocalJobServer]:
    with serving(request.param, seconds=60, clock=time) as server:
        yield server


@pytest.fixture
def http(server: LocalJobServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, trust_env=False, timeout=20) as client:
        yield client


def submit(http: httpx.Client, *, key: str | None = None, **body: object) -> httpx.Response:
    return http.post("/jobs", json=body, headers={} if key is None else {"Idempotency-Key": key})


def found(http: httpx.Client, tag: str) -> list[str]:
    return [job["id"] for job in http.get("/jobs", params={"tag": tag}).raise_for_status().json()["jobs"]]


def cancel(http: httpx.Client, submitted: httpx.Response) -> dict[str, Any]:
    return dict(http.post(f"/jobs/{submitted.json()['id']}/cancel").raise_for_status().json())


only = pytest.mark.parametrize


@only("server", ["nothing"], indirect=True)
def test_nothing_makes_a_job_of_every_post_and_finds_none(http: httpx.Client, server: LocalJobServer) -> None:
    answers = [submit(http, key="a", name="a", tag="a") for _ in range(2)]
    assert [answer.status_code for answer in answers] == [201, 201]
    assert http.get("/jobs", params={"tag": "a"}).status_code == 405
    assert server.jobs.counts()["by_token"] == {"a": {"asked": 2, "made": 2}}
    assert server.duplicates == {"a": 2}


@only("server", ["name"], indirect=True)
def test_name_answers_a_second_job_of_the_name_with_the_id_of_the_first(
    http: httpx.Client, server: LocalJobServer
) -> None:
    first = submit(http, name="a").json()["id"]
    second = submit(http, name="a")
    assert (second.status_code, second.json()["id"]) == (409, first)
    assert server.jobs.counts()["by_token"] == {"a": {"asked": 2, "made": 1}}
    assert submit(http, name="b").status_code == 201


@only("server", ["forgetting-name"], indirect=True)
def test_forgetting_name_frees_the_name_of_a_job_that_ended_long_ago(
    http: httpx.Client, time: Time, server: LocalJobServer
) -> None:
    job = submit(http, name="a", seconds=10).json()["id"]
    time.pass_by(69)
    assert submit(http, name="a").status_code == 409
    time.pass_by(2)
    assert http.get(f"/jobs/{job}").status_code == 404
    assert submit(http, name="a").status_code == 201
    assert server.duplicates == {"a": 2}


@only("server", ["token"], indirect=True)
def test_token_answers_a_repeated_key_with_the_same_job_for_ever(http: httpx.Client, time: Time) -> None:
    first = submit(http, key="a", rows=1)
    time.pass_by(1e9)
    again = submit(http, key="a", rows=1)
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json()["id"] == again.json()["id"]
    assert submit(http, key="a", rows=2).status_code == 422


@only("server", ["expiring-token"], indirect=True)
def test_expiring_token_takes_an_old_key_for_a_new_one(http: httpx.Client, time: Time, server: LocalJobServer) -> None:
    submit(http, key="a")
    time.pass_by(59)
    assert submit(http, key="a").status_code == 200
    time.pass_by(2)
    assert submit(http, key="a").status_code == 201
    assert server.duplicates == {"a": 2}


@only("server", ["lookup"], indirect=True)
def test_lookup_finds_a_job_by_its_tag_at_once(http: httpx.Client) -> None:
    assert found(http, "a") == []
    job = submit(http, tag="a").json()["id"]
    assert found(http, "a") == [job]


@only("server", ["lagging-lookup"], indirect=True)
def test_lagging_lookup_shows_a_job_late_but_knows_its_id_at_once(http: httpx.Client, time: Time) -> None:
    job = submit(http, tag="a").json()["id"]
    time.pass_by(59)
    assert found(http, "a") == []
    assert http.get(f"/jobs/{job}").is_success
    time.pass_by(2)
    assert found(http, "a") == [job]


@only("server", ["forgetting-lookup"], indirect=True)
def test_forgetting_lookup_knows_nothing_of_a_job_that_ended_long_ago(
    http: httpx.Client, time: Time, server: LocalJobServer
) -> None:
    job = submit(http, tag="a", seconds=10).json()["id"]
    time.pass_by(69)
    assert found(http, "a") == [job]
    time.pass_by(2)
    assert found(http, "a") == []
    assert http.get(f"/jobs/{job}").status_code == 404
    assert server.made == 1


@only("server", ["while-open"], indirect=True)
def test_while_open_makes_a_second_job_of_the_name_and_the_key_of_an_ended_one(
    http: httpx.Client, time: Time, server: LocalJobServer
) -> None:
    job = submit(http, name="a", key="a", tag="a", seconds=10).json()["id"]
    time.pass_by(9)
    assert found(http, "a") == [job]
    assert submit(http, name="a", tag="a", seconds=10).json()["id"] == job
    assert submit(http, key="a", tag="a", seconds=10).json()["id"] == job
    time.pass_by(2)
    assert found(http, "a") == []
    assert http.get(f"/jobs/{job}").json()["status"] == "SUCCEEDED"
    assert submit(http, name="a", key="a", tag="a", seconds=10).status_code == 201
    assert server.duplicates == {"a": 2}


@only("server", ["lookup"], indirect=True)
class TestFaults:
    def test_an_error_happens_as_often_as_asked_and_makes_no_job(
        self, http: httpx.Client, server: LocalJobServer
    ) -> None:
        server.fail("error", "submit", times=2, status=503)
        assert [submit(http).status_code for _ in range(3)] == [503, 503, 201]
        assert server.made == 1

    def test_an_error_ends_with_its_time(self, http: httpx.Client, server: LocalJobServer, time: Time) -> None:
        server.fail("error", seconds=30)
        assert submit(http).status_code == 500
        time.pass_by(31)
        assert submit(http).status_code == 201

    @only("kind,made", [("lose", 1), ("down", 0)])
    def test_no_answer_comes_whether_or_not_the_job_was_made(
        self, http: httpx.Client, server: LocalJobServer, kind: str, made: int
    ) -> None:
        server.fail(kind, "submit", times=1)
        with pytest.raises(httpx.TransportError):
            submit(http)
        assert server.made == made

    def test_half_makes_the_job_and_answers_with_an_error(self, http: httpx.Client, server: LocalJobServer) -> None:
        server.fail("half", "submit", times=1, status=503)
        assert submit(http, tag="a").status_code == 503
        assert len(found(http, "a")) == 1

    def test_slow_outlasts_a_client_and_makes_the_job_later(self, server: LocalJobServer) -> None:
        server.fail("slow", "submit", times=1, delay=3)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server.url}/jobs", json={}, timeout=0.2, trust_env=False)
        wait_until(lambda: server.made == 1, seconds=60, what="the job was made, although nobody waits for it")

    def test_faults_are_asked_for_and_ended_by_http_too(self, http: httpx.Client) -> None:
        assert http.post("/faults", json={"kind": "error", "on": ["status"]}).status_code == 204
        assert http.get("/jobs/x").status_code == 500
        assert http.get("/faults").json()["faults"][0]["kind"] == "error"
        assert http.delete("/faults").status_code == 204
        assert http.get("/jobs/x").status_code == 404
        assert http.post("/faults", json={"kind": "sulk"}).status_code == 400
        assert http.post("/faults", json={"kind": "error", "on": ["lunch"]}).status_code == 400


@only("server", ["nothing"], indirect=True)
class TestCancellations:
    def test_job_without_a_delay_is_cancelled_at_once(self, http: httpx.Client) -> None:
        job = submit(http)
        assert http.get("/running").json()["running"] == 1
        assert cancel(http, job)["status"] == "CANCELLED"
        assert http.get("/running").json() == {"running": 0, "by_label": {}}

    def test_job_ignores_its_cancellation_for_its_seconds_from_the_first_request(
        self, http: httpx.Client, server: LocalJobServer, time: Time
    ) -> None:
        job = submit(http, seconds=3600, label="slow", cancel_seconds=60)
        asked = cancel(http, job)
        assert (asked["status"], "cancel_requested_at" in asked) == ("RUNNING", True)
        time.pass_by(59)
        assert cancel(http, job) == asked | {"seconds_left": 3541.0}
        assert http.get("/running").json() == {"running": 1, "by_label": {"slow": 1}}
        time.pass_by(2)
        assert http.get(f"/jobs/{job.json()['id']}").json()["status"] == "CANCELLED"
        assert server.running(time()) == 0

    def test_job_that_ends_while_it_ignores_its_cancellation_ends_by_itself(
        self, http: httpx.Client, time: Time
    ) -> None:
        job = submit(http, seconds=30, cancel_seconds=60)
        assert cancel(http, job)["status"] == "RUNNING"
        time.pass_by(61)
        assert http.get(f"/jobs/{job.json()['id']}").json()["status"] == "SUCCEEDED"

    def test_job_with_null_ignores_its_cancellation_for_ever(self, http: httpx.Client, time: Time) -> None:
        job = submit(http, seconds=1e6, cancel_seconds=None)
        assert cancel(http, job)["status"] == "RUNNING"
        time.pass_by(1e6 - 1)
        assert cancel(http, job)["status"] == "RUNNING"
        time.pass_by(2)
        assert cancel(http, job)["status"] == "SUCCEEDED"

    def test_cancellation_of_a_job_that_is_over_changes_nothing(self, http: httpx.Client, time: Time) -> None:
        job = submit(http, seconds=10, fails=True)
        time.pass_by(11)
        ended = cancel(http, job)
        assert (ended["status"], "cancel_requested_at" in ended) == ("FAILED", False)


@only("mode", jobserver.MODES)
@only("cancel_seconds,status", [(0, "CANCELLED"), (5, "RUNNING"), (math.inf, "RUNNING")])
def test_server_in_every_mode_takes_its_delay_for_jobs_that_name_none(
    mode: str, cancel_seconds: float, status: str, time: Time
) -> None:
    with (
        serving(mode, cancel_seconds=cancel_seconds, clock=time) as server,
        httpx.Client(base_url=server.url, trust_env=False) as http,
    ):
        assert cancel(http, submit(http))["status"] == status
        assert cancel(http, submit(http, cancel_seconds=0))["status"] == "CANCELLED"


def test_the_same_request_counts_as_one_whoever_asks(time: Time) -> None:
    jobs = jobserver.Jobs(None)
    for token in ("a", "b"):
        jobs.submit(jobserver.JobRequest(rows=7, tag=token), time())
    jobs.submit(jobserver.JobRequest(rows=8), time())
    assert sorted(of["made"] for of in jobs.counts()["by_request"].values()) == [1, 2]
    jobs.close()
