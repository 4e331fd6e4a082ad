"""The adapter for REST APIs against the real job server over loopback, in each of its modes."""

import dataclasses
import time as clock
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from jobservers import LocalJobServer, Time, serving
from ports import free_port
from reattach.adapters.base import (
    Active,
    Cancelled,
    Capabilities,
    ClientName,
    Failed,
    Lookup,
    NotFound,
    Rejected,
    Submission,
    SubmissionToken,
    Submitted,
    Succeeded,
    Unknown,
)
from reattach.adapters.http import (
    CancelRequest,
    Credentials,
    Description,
    DescriptionError,
    HttpJobs,
    LookupRequest,
    Names,
    States,
    StatusRequest,
    SubmitRequest,
    Token,
)
from reattach.adapters.http_client import CallError

REQUEST = {"seconds": 10, "rows": 7}
STATES = States(active=("RUNNING",), succeeded=("SUCCEEDED",), failed=("FAILED",), cancelled=("CANCELLED",))
STATUS = StatusRequest(
    path="/jobs/{handle}", state="status", states=STATES, result="rows_written", not_found_says="no job"
)
SUBMIT = SubmitRequest(path="/jobs", handle="id", url="{handle}")
TAGGED = SubmitRequest(path="/jobs", handle="id", body={"tag": "{token}"})
LOOK_UP = LookupRequest(
    path="/jobs?tag={token}", items="jobs", carries="tag", handle="id", settling_seconds=60, retention_seconds=None
)
SINGLE = LookupRequest(
    path="/jobs/{name}",
    carries="name",
    handle="id",
    settling_seconds=0,
    retention_seconds=None,
    not_found_says="no job",
)
NAMES = SubmitRequest(path="/jobs", handle="id", body={"name": "{name}"}, accepted=(201,), exists=(409,))
TOKEN = SubmitRequest(path="/jobs", handle="id", headers={"Idempotency-Key": "{token}"}, exists=(200,))


def described(server: LocalJobServer | str, **how: Any) -> HttpJobs:
    """Return an adapter for this job server."""
    address = server if isinstance(server, str) else server.url
    given = {"submit": SUBMIT, "status": STATUS, "cancel": CancelRequest(path="/jobs/{handle}/cancel"), **how}
    return HttpJobs(Description(address=address, **given))


def always_responding(status: int, text: str, **how: Any) -> HttpJobs:
    """Return an adapter that gets this response to every request."""
    submit = SubmitRequest(path="/jobs", handle="id", body={"name": "{name}", "tag": "{token}"})
    description = Description(address="https://jobs.invalid", submit=submit, status=STATUS, **how)
    return HttpJobs(description, transport=httpx.MockTransport(lambda _: httpx.Response(status, text=text)))


def submission(token: str = "a" * 8, request: Any = REQUEST) -> Submission:
    return Submission(token=token, request=request, key="load", generation=1, namespace="ns", taskrun="nightly")


class TestModes:
    def test_submit_without_name_or_token_creates_one_job_each(self) -> None:
        with serving("nothing") as server:
            jobs = described(server)
            assert jobs.capabilities == Capabilities()
            first, second = jobs.submit(submission()), jobs.submit(submission())
            assert first.handle != second.handle
            assert (first.existed, first.url) == (False, first.handle)

    def test_submit_repeated_name_returns_existing_job(self) -> None:
        with serving("name") as server:
            jobs = described(server, submit=NAMES, names=Names(retention_seconds=None))
            assert jobs.capabilities == Capabilities(client_name=ClientName())
            first, second = jobs.submit(submission()), jobs.submit(submission())
            assert second == Submitted(first.handle, existed=True)
            assert first.existed is False
            assert server.made == 1
            assert jobs.submit(submission("b" * 8)).existed is False

    def test_submit_repeated_token_returns_existing_job(self) -> None:
        with serving("token") as server:
            jobs = described(server, submit=TOKEN, token=Token(lifetime_seconds=86400))
            assert jobs.capabilities == Capabilities(token=SubmissionToken(timedelta(days=1)))
            first, second = jobs.submit(submission()), jobs.submit(submission())
            assert second == Submitted(first.handle, existed=True)
            assert server.made == 1

    def test_submit_expired_token_creates_a_new_job(self) -> None:
        time = Time()
        with serving("expiring-token", seconds=300, clock=time) as server:
            jobs = described(server, submit=TOKEN, token=Token(lifetime_seconds=300))
            jobs.submit(submission())
            time.pass_by(299)
            assert jobs.submit(submission()).existed
            time.pass_by(2)
            assert not jobs.submit(submission()).existed
            assert jobs.capabilities.token == SubmissionToken(timedelta(seconds=300))

    def test_lookup_finds_the_job_of_the_token_and_no_other(self) -> None:
        with serving("lookup") as server:
            jobs = described(server, submit=TAGGED, look_up=LOOK_UP)
            assert jobs.look_up(submission()) is None
            handle = jobs.submit(submission()).handle
            jobs.submit(submission("b" * 8))
            assert jobs.look_up(submission()) == Submitted(handle, existed=True)

    def test_look_up_finds_the_job_after_the_settling_time(self) -> None:
        time = Time()
        with serving("lagging-lookup", seconds=60, clock=time) as server:
            jobs = described(server, submit=TAGGED, look_up=LOOK_UP)
            assert jobs.capabilities == Capabilities(look_up=Lookup(settling=timedelta(seconds=60)))
            handle = jobs.submit(submission()).handle
            assert jobs.look_up(submission()) is None
            time.pass_by(61)
            assert jobs.look_up(submission()) == Submitted(handle, existed=True)

    def test_look_up_and_status_of_forgotten_job_find_nothing(self) -> None:
        time = Time()
        with serving("forgetting-lookup", seconds=60, clock=time) as server:
            look_up = LookupRequest(**{**vars_of(LOOK_UP), "settling_seconds": 0, "retention_seconds": 60})
            jobs = described(server, submit=TAGGED, look_up=look_up)
            handle = jobs.submit(submission()).handle
            time.pass_by(30)
            assert jobs.look_up(submission()) == Submitted(handle, existed=True)
            time.pass_by(60)
            assert jobs.look_up(submission()) is None
            assert isinstance(jobs.status(handle), NotFound)


def vars_of(part: Any) -> dict[str, Any]:
    return {name: getattr(part, name) for name in part.__struct_fields__}


class TestStatus:
    def test_a_job_is_active_then_succeeds_with_its_result(self) -> None:
        time = Time()
        with serving("nothing", clock=time) as server:
            jobs = described(server)
            handle = jobs.submit(submission()).handle
            assert jobs.status(handle) == Active()
            time.pass_by(11)
            assert jobs.status(handle) == Succeeded(7)

    def test_status_result_may_be_the_whole_response(self) -> None:
        time = Time()
        with serving("nothing", clock=time) as server:
            jobs = described(server, status=StatusRequest(**{**vars_of(STATUS), "result": "."}))
            handle = jobs.submit(submission()).handle
            time.pass_by(11)
            status = jobs.status(handle)
            assert isinstance(status, Succeeded)
            assert status.result["id"] == handle

    def test_status_distinguishes_failed_and_cancelled_jobs(self) -> None:
        time = Time()
        with serving("nothing", clock=time) as server:
            jobs = described(server)
            failed = jobs.submit(submission(request={**REQUEST, "fails": True})).handle
            cancelled = jobs.submit(submission(request={"seconds": 3600})).handle
            jobs.cancel(cancelled)
            time.pass_by(11)
            assert jobs.status(failed) == Failed("the job ended as FAILED")
            assert jobs.status(cancelled) == Cancelled()

    def test_an_unknown_handle_is_not_found(self) -> None:
        with serving("nothing") as server:
            assert isinstance(described(server).status("job-1"), NotFound)

    def test_status_404_without_the_apis_text_is_unknown(self) -> None:
        assert isinstance(always_responding(404, "default backend - 404").status("job-1"), Unknown)

    def test_status_404_is_unknown_if_the_api_has_no_text_for_missing_jobs(self) -> None:
        silent = StatusRequest(path="/jobs/{handle}", state="status", states=STATES, not_found=())
        with serving("nothing") as server:
            assert isinstance(described(server, status=silent).status("job-1"), Unknown)

    @pytest.mark.parametrize("kind", ["down", "error", "half", "lose"])
    def test_status_is_unknown_if_the_system_is_unreachable(self, kind: str) -> None:
        with serving("nothing") as server:
            jobs = described(server)
            handle = jobs.submit(submission()).handle
            server.fail(kind, "status", times=1, status=503)
            assert isinstance(jobs.status(handle), Unknown)
            assert isinstance(jobs.status(handle), Active)

    def test_status_word_that_is_not_described_is_unknown(self) -> None:
        with serving("nothing") as server:
            other = States(active=("WAITING",), succeeded=("OK",), failed=("BAD",))
            jobs = described(server, status=StatusRequest(**{**vars_of(STATUS), "states": other}))
            status = jobs.status(jobs.submit(submission()).handle)
            assert isinstance(status, Unknown)
            assert "'RUNNING'" in status.message

    def test_status_handle_cannot_change_the_path(self) -> None:
        with serving("nothing") as server:
            jobs = described(server)
            for handle in ("..", "../stats", "a/cancel", "x?y", "ä b"):
                assert isinstance(jobs.status(handle), NotFound)


class TestCancel:
    def test_cancel_that_removes_the_job_reports_cancelled_even_if_the_response_is_lost(self) -> None:
        gone, lose = [False], [True]

        def respond(request: httpx.Request) -> httpx.Response:
            if request.method == "DELETE":
                gone[0] = True
                if lose.pop():
                    raise httpx.ReadError("the connection was cut")
            return httpx.Response(
                404 if gone[0] else 200, json={"error": "no job"} if gone[0] else {"status": "RUNNING"}
            )

        cancel = CancelRequest(path="/jobs/{handle}", method="DELETE")
        description = Description(address="https://jobs.invalid", submit=SUBMIT, status=STATUS, cancel=cancel)
        jobs = HttpJobs(description, transport=httpx.MockTransport(respond))
        with pytest.raises(CallError):
            jobs.cancel("job-1")
        assert isinstance(jobs.status("job-1"), Cancelled)
        lose.append(False)
        jobs.cancel("job-1")
        assert isinstance(jobs.status("job-1"), Cancelled)
        assert isinstance(jobs.status("job-2"), NotFound), "this process did not cancel it"

    def test_cancel_that_failed_does_not_make_a_later_404_cancelled(self) -> None:
        time = Time()
        with serving("forgetting-lookup", seconds=60, clock=time) as server:
            jobs = described(server)
            handle = jobs.submit(submission()).handle
            server.fail("error", "cancel", times=1)
            with pytest.raises(CallError, match="was not cancelled"):
                jobs.cancel(handle)
            time.pass_by(100)
            assert isinstance(jobs.status(handle), NotFound)

    def test_cancel_of_terminal_or_absent_job_succeeds(self) -> None:
        time = Time()
        with serving("nothing", clock=time) as server:
            jobs = described(server)
            handle = jobs.submit(submission()).handle
            time.pass_by(11)
            jobs.cancel(handle)
            jobs.cancel("job-unknown")
            assert jobs.status(handle) == Succeeded(7)

    def test_cancel_of_job_that_continues_raises(self) -> None:
        with serving("nothing") as server:
            jobs = described(server)
            handle = jobs.submit(submission()).handle
            server.fail("error", "cancel")
            with pytest.raises(Exception, match=f"{handle} was not cancelled: 500"):
                jobs.cancel(handle)

    def test_cancel_without_description_raises(self) -> None:
        with pytest.raises(Exception, match="has no `cancel`"):
            described("http://127.0.0.1:1", cancel=None).cancel("job-1")


class TestSubmit:
    @pytest.mark.parametrize("kind,made", [("lose", 1), ("half", 1), ("down", 0), ("error", 0)])
    def test_submit_ambiguous_response_is_never_a_rejection(self, kind: str, made: int) -> None:
        with serving("nothing") as server:
            jobs = described(server)
            server.fail(kind, "submit", times=1, status=503)
            with pytest.raises(Exception, match=r"did not respond|does not show") as caught:
                jobs.submit(submission())
            assert not isinstance(caught.value, Rejected)
            assert server.made == made

    def test_submit_slow_system_times_out(self) -> None:
        with serving("nothing") as server:
            server.fail("slow", "submit", times=1, delay=5)
            jobs = described(server, request_seconds=2)
            began = clock.monotonic()
            with pytest.raises(Exception, match="ReadTimeout"):
                jobs.submit(submission())
            assert clock.monotonic() - began < 4.9

    def test_submit_without_connection_is_rejected_for_now(self) -> None:
        with pytest.raises(Rejected, match="can't be reached") as caught:
            described(f"http://127.0.0.1:{free_port()}").submit(submission())
        assert caught.value.retriable

    def test_submit_that_may_not_leave_is_rejected_for_now(self) -> None:
        with serving("token") as server:
            jobs = described(server, submit=TOKEN, token=Token(lifetime_seconds=86400))
            with pytest.raises(Rejected, match="too much time has passed") as caught:
                jobs.submit(dataclasses.replace(submission(), may_leave=lambda: False))
            assert caught.value.retriable
            assert server.made == 0
            assert not jobs.submit(submission()).existed

    def test_submit_invalid_request_is_rejected_finally(self) -> None:
        with serving("nothing") as server, pytest.raises(Rejected, match="400 unknown, or of the wrong type") as caught:
            described(server).submit(submission(request={"sconds": 3}))
        assert not caught.value.retriable

    def test_submit_wrong_path_is_rejected_finally(self) -> None:
        with serving("nothing") as server, pytest.raises(Rejected, match="404") as caught:
            described(server, submit=SubmitRequest(path="/job", handle="id")).submit(submission())
        assert not caught.value.retriable

    @pytest.mark.parametrize("status,retriable", [(429, True), (401, True), (403, True), (407, True), (422, False)])
    def test_submit_status_that_proves_no_action_is_rejected(self, status: int, retriable: bool) -> None:
        with serving("nothing") as server:
            server.fail("error", "submit", times=1, status=status)
            with pytest.raises(Rejected) as caught:
                described(server).submit(submission())
            assert caught.value.retriable is retriable
            assert caught.value.credentials is (status in {401, 403, 407})

    def test_submit_status_that_the_description_names_is_not_about_credentials(self) -> None:
        with serving("nothing") as server:
            server.fail("error", "submit", times=1, status=403)
            with pytest.raises(Rejected, match="was refused: 403") as caught:
                described(server, submit=SubmitRequest(path="/jobs", handle="id", refused=(403,))).submit(submission())
            assert not caught.value.retriable

    @pytest.mark.parametrize("status", [302, 406, 408, 409, 410, 412, 425, 500, 502, 503, 504])
    def test_submit_other_status_leaves_the_outcome_unknown(self, status: int) -> None:
        with serving("nothing") as server:
            server.fail("half", "submit", times=1, status=status)
            with pytest.raises(Exception, match="does not show") as caught:
                described(server).submit(submission())
            assert not isinstance(caught.value, Rejected)

    def test_submit_accepted_without_id_is_not_a_rejection(self) -> None:
        with serving("nothing") as server:
            with pytest.raises(Exception, match="id must be at 'nr'") as caught:
                described(server, submit=SubmitRequest(path="/jobs", handle="nr")).submit(submission())
            assert not isinstance(caught.value, Rejected)

    @pytest.mark.parametrize("found", [{"id": "job-1", "tag": "a" * 8}, None])
    def test_submit_taken_name_without_id_is_looked_up(self, found: dict[str, str] | None) -> None:
        def respond(request: httpx.Request) -> httpx.Response:
            if request.method == "POST":
                return httpx.Response(409, text="taken")
            return httpx.Response(200, json={"jobs": [found] if found else []})

        submit = SubmitRequest(path="/jobs", handle="id", body={"name": "{name}", "tag": "{token}"}, exists=(409,))
        description = Description(
            address="https://jobs.invalid",
            submit=submit,
            status=STATUS,
            names=Names(retention_seconds=None),
            look_up=LOOK_UP,
        )
        jobs = HttpJobs(description, transport=httpx.MockTransport(respond))
        if found:
            assert jobs.submit(submission()) == Submitted("job-1", existed=True)
        else:
            with pytest.raises(CallError, match="not found yet: 409 taken"):
                jobs.submit(submission())

    def test_submit_request_that_occupies_the_tokens_place_is_rejected(self) -> None:
        with serving("nothing") as server:
            jobs = described(server, submit=TAGGED)
            with pytest.raises(Rejected, match="must leave 'tag' out"):
                jobs.submit(submission(request={"tag": "mine"}))
            with pytest.raises(Rejected, match="must be a JSON object"):
                jobs.submit(submission(request=["no", "object"]))
            assert server.made == 0

    def test_submit_does_not_modify_the_tasks_request(self) -> None:
        with serving("nothing") as server:
            request = {"payload": {"tags": ["mine"]}}
            submit = SubmitRequest(
                path="/jobs", handle="id", body={"payload.tags[]": "{token}", "payload.of": "{taskrun}"}
            )
            handle = described(server, submit=submit).submit(submission(request=request)).handle
            made = httpx.get(f"{server.url}/jobs/{handle}", trust_env=False).json()
            assert made["payload"] == {"tags": ["mine", "a" * 8], "of": "nightly"}
            assert request == {"payload": {"tags": ["mine"]}}


class TestLookUp:
    def test_look_up_jobs_without_the_token_are_not_absence(self) -> None:
        with serving("lookup") as server:
            jobs = described(
                server,
                submit=SubmitRequest(path="/jobs", handle="id", body={"tag": "all", "label": "{token}"}),
                look_up=LookupRequest(
                    **{**vars_of(LOOK_UP), "path": "/jobs?tag=all&label={token}", "carries": "label"}
                ),
            )
            jobs.submit(submission("b" * 8))
            with pytest.raises(Exception, match="must select the jobs that carry the token"):
                jobs.look_up(submission())
            handle = jobs.submit(submission()).handle
            assert jobs.look_up(submission()) == Submitted(handle, existed=True)

    @pytest.mark.parametrize("kind", ["down", "error", "lose"])
    def test_look_up_without_response_is_not_absence(self, kind: str) -> None:
        with serving("lookup") as server:
            jobs = described(server, submit=TAGGED, look_up=LOOK_UP)
            server.fail(kind, "look-up", times=1)
            with pytest.raises(Exception, match=r"did not respond|lookup failed"):
                jobs.look_up(submission())

    def test_look_up_list_at_another_place_is_not_absence(self) -> None:
        with serving("lookup") as server:
            jobs = described(server, submit=TAGGED, look_up=LookupRequest(**{**vars_of(LOOK_UP), "items": "data"}))
            with pytest.raises(Exception, match="must be where the list of jobs is"):
                jobs.look_up(submission())

    def test_look_up_may_return_one_job_instead_of_a_list(self) -> None:
        with serving("name") as server:
            submit = SubmitRequest(path="/jobs", handle="id", body={"name": "{name}"})
            assert described(server, submit=submit, look_up=SINGLE).look_up(submission()) is None

    def test_look_up_first_of_several_pages_is_not_absence(self) -> None:
        paged = LookupRequest(**{**vars_of(LOOK_UP), "next_page": "next"})
        with pytest.raises(CallError, match="fit on one page"):
            always_responding(200, '{"jobs": [], "next": "x"}', look_up=paged).look_up(submission())
        ours = '{"jobs": [{"id": "job-1", "tag": "aaaaaaaa"}], "next": "x"}'
        assert always_responding(200, ours, look_up=paged).look_up(submission()) == Submitted("job-1", existed=True)
        assert always_responding(200, '{"jobs": [], "next": ""}', look_up=paged).look_up(submission()) is None

    def test_look_up_omitted_list_is_empty_only_with_items_omitted(self) -> None:
        omitting = LookupRequest(**{**vars_of(LOOK_UP), "items_omitted": True})
        assert always_responding(200, "{}", look_up=omitting).look_up(submission()) is None
        for text, look_up in {"{}": LOOK_UP, "<html>": omitting, "[]": omitting}.items():
            with pytest.raises(CallError, match="must be where the list of jobs is"):
                always_responding(200, text, look_up=look_up).look_up(submission())

    @pytest.mark.parametrize("look_up", [SINGLE, LOOK_UP], ids=["one job", "a list"])
    def test_look_up_404_of_a_proxy_is_not_absence(self, look_up: LookupRequest) -> None:
        with pytest.raises(CallError, match="404 default backend"):
            always_responding(404, "default backend - 404", look_up=look_up).look_up(submission())

    def test_look_up_404_of_the_api_is_absence(self) -> None:
        assert always_responding(404, "no job of this name", look_up=SINGLE).look_up(submission()) is None

    def test_look_up_text_of_absence_with_another_status_is_not_absence(self) -> None:
        with pytest.raises(CallError, match="the lookup failed: 502"):
            always_responding(502, "no job server answers", look_up=SINGLE).look_up(submission())


class TestCredentials:
    def test_credentials_file_is_read_for_each_request(self, tmp_path: Path) -> None:
        seen: list[str] = []

        def respond(request: httpx.Request) -> httpx.Response:
            seen.append(request.headers["x-api-key"])
            return httpx.Response(200, json={"status": "RUNNING"})

        file = tmp_path / "token"
        file.write_text("first\n")
        credentials = Credentials(file=str(file), header="X-Api-Key", template="key {secret}")
        description = Description(address="https://jobs.invalid", submit=SUBMIT, status=STATUS, credentials=credentials)
        jobs = HttpJobs(description, transport=httpx.MockTransport(respond))
        jobs.status("a")
        file.write_text("second")
        jobs.status("a")
        assert seen == ["key first", "key second"]

        file.unlink()
        assert isinstance(jobs.status("a"), Unknown)
        with pytest.raises(Rejected, match=r"credentials .* can't be read") as caught:
            jobs.submit(submission())
        assert caught.value.retriable

    def test_credentials_missing_fails_at_construction(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("JOBS_TOKEN", raising=False)
        with pytest.raises(DescriptionError, match="the variable JOBS_TOKEN must hold a secret"):
            described("https://jobs.invalid", credentials=Credentials(env="JOBS_TOKEN"))
        with pytest.raises(DescriptionError, match="No such file"):
            described("https://jobs.invalid", credentials=Credentials(file="/nowhere"))
        with pytest.raises(DescriptionError, match="No such file"):
            described("https://jobs.invalid", ca_file="/nowhere")

    def test_credentials_secret_of_two_lines_is_refused_and_not_shown(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("JOBS_TOKEN", "geheim\r\nX-Other: 1")
        with pytest.raises(DescriptionError) as caught:
            described("https://jobs.invalid", credentials=Credentials(env="JOBS_TOKEN"))
        assert "geheim" not in str(caught.value)
