"""Response formats of real APIs: where the job's id and state are, and what is not a job."""

import json
import re
from typing import Any

import httpx
import pytest

from reattach.adapters.base import (
    Active,
    Cancelled,
    Failed,
    JobStatus,
    Rejected,
    Submission,
    Submitted,
    Succeeded,
    Unknown,
)
from reattach.adapters.http import (
    Description,
    DescriptionError,
    HttpJobs,
    JobOutcome,
    LookupRequest,
    Names,
    States,
    StatusRequest,
    SubmitRequest,
)
from reattach.adapters.http_client import CallError

SUBMISSION = Submission("tok", {"rows": 1}, "load", 1, "ns", "nightly")
STATES = States(active=("RUNNING",), succeeded=("DONE",), failed=("ERROR",))
STATUS = StatusRequest(path="/jobs/{handle}", state="state", states=STATES, not_found_says="no such job")
IN_LOCATION = SubmitRequest(path="/jobs", handle="header:Location", handle_path="/jobs/{handle}")
WHOLE = SubmitRequest(path="/jobs", handle=".")
HTML = "<!DOCTYPE html><title>Sign in</title>"


def jobs(response: httpx.Response | Any, seen: list[httpx.Request] | None = None, **parts: Any) -> HttpJobs:
    """Return an adapter that always gets this response: a whole one, or JSON with status 200."""

    def respond(request: httpx.Request) -> httpx.Response:
        if seen is not None:
            seen.append(request)
        given = response if isinstance(response, httpx.Response) else httpx.Response(200, json=response)
        return httpx.Response(given.status_code, headers=given.headers, content=given.content)

    described = {"submit": SubmitRequest(path="/jobs", handle="id"), "status": STATUS, **parts}
    return HttpJobs(Description(address="https://api.invalid/v2", **described), transport=httpx.MockTransport(respond))


class TestHandle:
    @pytest.mark.parametrize(
        "location,handle",
        [
            ("/jobs/j-1", "j-1"),
            ("/v2/jobs/j-1/", "j-1"),
            ("https://internal:8443/batch/jobs/j-1?api-version=3#x", "j-1"),
            ("https://api.invalid/v2/jobs/a%2Fb%20c", "a/b c"),
            ("j-1", "j-1"),
        ],
    )
    def test_handle_in_location_is_the_part_at_the_handle_path(self, location: str, handle: str) -> None:
        response = httpx.Response(201, headers={"Location": location})
        assert jobs(response, submit=IN_LOCATION).submit(SUBMISSION) == Submitted(handle)

    @pytest.mark.parametrize("location", ["/queues/7", "/jobs/", "/jobs/a/b", "/xjobs/j-1", "/jobs/%FF"])
    def test_location_of_something_else_leaves_the_outcome_unknown(self, location: str) -> None:
        response = httpx.Response(201, headers={"Location": location})
        with pytest.raises(CallError, match=r"must end in /jobs/\{handle\}|must be at"):
            jobs(response, submit=IN_LOCATION).submit(SUBMISSION)

    def test_location_that_is_missing_leaves_the_outcome_unknown(self) -> None:
        with pytest.raises(CallError, match="must be at 'header:Location'"):
            jobs(httpx.Response(201), submit=IN_LOCATION).submit(SUBMISSION)

    def test_taken_name_may_be_reported_by_location_or_id(self) -> None:
        submit = SubmitRequest(
            path="/jobs",
            body={"name": "{name}"},
            handle="header:Location",
            handle_path="/jobs/{handle}",
            exists=(409,),
            existing_handle="error.id",
        )
        by_id = jobs(
            httpx.Response(409, json={"error": {"id": 17}}), submit=submit, names=Names(retention_seconds=None)
        )
        assert by_id.submit(SUBMISSION) == Submitted("17", existed=True)

    def test_url_may_be_a_header(self) -> None:
        submit = SubmitRequest(
            path="/jobs", handle="header:location", handle_path="/jobs/{handle}", url="header:Location"
        )
        url = "https://api.invalid/v2/jobs/j-1"
        assert jobs(httpx.Response(202, headers={"Location": url}), submit=submit).submit(SUBMISSION).url == url

    @pytest.mark.parametrize(
        "response,handle",
        [
            (httpx.Response(200, json="j-1"), "j-1"),
            (httpx.Response(200, json=9007199254740993), "9007199254740993"),
            (httpx.Response(200, text="job_17\n"), "job_17"),
            (httpx.Response(200, text="12e45"), "12e45"),
            (httpx.Response(200, text="007"), "007"),
            (httpx.Response(200, text='"j-1"'), "j-1"),
        ],
    )
    def test_whole_body_is_the_handle(self, response: httpx.Response, handle: str) -> None:
        assert jobs(response, submit=WHOLE).submit(SUBMISSION) == Submitted(handle)

    @pytest.mark.parametrize(
        "response",
        [
            httpx.Response(200, html=HTML),
            httpx.Response(200, text=""),
            httpx.Response(200, text="null"),
            httpx.Response(200, text="Please try again later."),
            httpx.Response(200, json={"id": "j-1"}),
            httpx.Response(200, json=True),
            httpx.Response(200, json=" "),
            httpx.Response(200, content=b"NaN", headers={"Content-Type": "application/json"}),
        ],
    )
    def test_whole_body_that_is_no_id_leaves_the_outcome_unknown(self, response: httpx.Response) -> None:
        with pytest.raises(CallError, match="must be"):
            jobs(response, submit=WHOLE).submit(SUBMISSION)

    @pytest.mark.parametrize("found", [True, False, 1.5, None, "", " ", [], {}])
    def test_value_that_is_no_id_leaves_the_outcome_unknown(self, found: Any) -> None:
        with pytest.raises(CallError, match="a text or an integer"):
            jobs({"id": found}).submit(SUBMISSION)

    def test_handle_of_a_lookup_may_be_a_resource_name(self) -> None:
        look_up = LookupRequest(
            path="/jobs?tag={token}",
            items="jobs",
            carries="tag",
            handle="name",
            handle_path="/jobs/{handle}",
            settling_seconds=1,
            retention_seconds=None,
        )
        submit = SubmitRequest(path="/jobs", handle="name", handle_path="/jobs/{handle}", body={"tag": "{token}"})
        job = {"name": "projects/p/jobs/j-1", "tag": "tok"}
        assert jobs({"jobs": [job]}, submit=submit, look_up=look_up).look_up(SUBMISSION) == Submitted(
            "j-1", existed=True
        )
        assert jobs(job, submit=submit).submit(SUBMISSION) == Submitted("j-1")

    def test_byte_order_mark_and_nan_beside_the_id_do_not_matter(self) -> None:
        response = httpx.Response(201, content=b'\xef\xbb\xbf{"id": "j-1", "progress": NaN, "note": "a\nb"}')
        assert jobs(response).submit(SUBMISSION) == Submitted("j-1")


class TestNoJob:
    @pytest.mark.parametrize("status", [200, 201, 202])
    def test_page_is_no_job_even_if_the_client_chooses_the_id(self, status: int) -> None:
        submit = SubmitRequest(path="/jobs/{name}", method="PUT", handle="{name}")
        with pytest.raises(CallError, match="must be the API's, not a page"):
            jobs(httpx.Response(status, html=HTML), submit=submit).submit(SUBMISSION)
        with pytest.raises(CallError, match="not a page"):
            jobs(httpx.Response(status, content=HTML.encode()), submit=submit).submit(SUBMISSION)
        assert jobs(httpx.Response(status), submit=submit).submit(SUBMISSION).handle == SUBMISSION.name

    @pytest.mark.parametrize("submit", [WHOLE, IN_LOCATION, SubmitRequest(path="/jobs", handle="id")])
    @pytest.mark.parametrize("status", [302, 500, 502, 503, 504])
    def test_response_of_a_gateway_leaves_the_outcome_unknown(self, submit: SubmitRequest, status: int) -> None:
        response = httpx.Response(status, html="<h1>Bad Gateway</h1>", headers={"Location": "/jobs/j-1"})
        with pytest.raises(CallError) as caught:
            jobs(response, submit=submit).submit(SUBMISSION)
        assert not isinstance(caught.value, Rejected)

    def test_page_is_no_status(self) -> None:
        lenient = States(active=("RUNNING", "null"), succeeded=("DONE",), failed=("ERROR",))
        status = StatusRequest(path="/jobs/{handle}", state="state", states=lenient, not_found=())
        assert isinstance(jobs(httpx.Response(200, html=HTML), status=status).status("j-1"), Unknown)


DATABRICKS = StatusRequest(
    path="/runs/get?run_id={handle}",
    state="state.life_cycle_state",
    states=States(
        active=("PENDING", "RUNNING"), failed=("INTERNAL_ERROR",), cancelled=("SKIPPED",), ended=("TERMINATED",)
    ),
    outcome=JobOutcome(
        place="state.result_state", succeeded=("SUCCESS",), failed=("FAILED", "TIMEDOUT"), cancelled=("CANCELED",)
    ),
    message="state.state_message",
    result="tasks",
    not_found_says="does not exist",
)
OPERATION = StatusRequest(
    path="/operations/{handle}",
    state="done",
    states=States(active=("false", "null"), ended=("true",)),
    outcome=JobOutcome(place="error.code", succeeded=("null",), failed=("3", "13")),
    result="response",
    message="error.message",
    not_found_says="not found",
)


NO_TASKS = (
    "no result, because status.result (tasks) has no value in: "
    '200 {"state":{"life_cycle_state":"TERMINATED","result_state":"SUCCESS"}}'
)


class TestTwoFields:
    @pytest.mark.parametrize(
        "life,result,expected",
        [
            ("RUNNING", None, Active("")),
            ("RUNNING", "SUCCESS", Active("")),
            ("TERMINATED", "SUCCESS", Succeeded(None, NO_TASKS)),
            ("TERMINATED", "FAILED", Failed("the job ended as FAILED")),
            ("TERMINATED", "CANCELED", Cancelled()),
            ("INTERNAL_ERROR", None, Failed("the job ended as INTERNAL_ERROR")),
            ("SKIPPED", None, Cancelled()),
        ],
    )
    def test_state_and_outcome_are_read_from_two_fields(
        self, life: str, result: str | None, expected: JobStatus
    ) -> None:
        state = {"life_cycle_state": life, **({"result_state": result} if result else {})}
        assert jobs({"state": state}, status=DATABRICKS).status("1") == expected

    @pytest.mark.parametrize(
        "state,where",
        [
            ({"life_cycle_state": "TERMINATED"}, r"status.outcome.place \(state.result_state\) must be where"),
            ({"life_cycle_state": "TERMINATED", "result_state": "EXCLUDED"}, "status.outcome must contain 'EXCLUDED'"),
            ({"life_cycle_state": "BLOCKED", "result_state": "SUCCESS"}, "status.states must contain 'BLOCKED'"),
            ({"result_state": "SUCCESS"}, r"status.state \(state.life_cycle_state\) must be where"),
            ({"life_cycle_state": ["RUNNING"]}, r"status.state \(state.life_cycle_state\) must be where"),
            ({"life_cycle_state": "SUCCESS"}, "status.states must contain 'SUCCESS'"),
        ],
    )
    def test_word_that_is_not_listed_is_unknown_and_named(self, state: dict[str, Any], where: str) -> None:
        status = jobs({"state": state}, status=DATABRICKS).status("1")
        assert isinstance(status, Unknown)
        assert re.search(where, status.message)

    @pytest.mark.parametrize(
        "body,expected",
        [
            ({"name": "op"}, Active("")),
            ({"name": "op", "done": False}, Active("")),
            ({"done": True, "response": {"rows": 7}}, Succeeded({"rows": 7})),
            ({"done": True, "error": {"code": 13, "message": "no disk"}}, Failed("no disk")),
        ],
    )
    def test_absent_field_is_the_word_null(self, body: Any, expected: JobStatus) -> None:
        assert jobs(body, status=OPERATION).status("1") == expected

    @pytest.mark.parametrize("body", [{"done": True}, {"done": True, "response": None}])
    def test_succeeded_job_without_a_value_at_the_result_says_so(self, body: Any) -> None:
        status = jobs(body, status=OPERATION).status("1")
        text = json.dumps(body, separators=(",", ":"))
        assert status == Succeeded(None, f"no result, because status.result (response) has no value in: 200 {text}")

    @pytest.mark.parametrize("result", [0, False, "", [], {}])
    def test_result_may_be_an_empty_value(self, result: Any) -> None:
        assert jobs({"done": True, "response": result}, status=OPERATION).status("1") == Succeeded(result)

    def test_state_may_be_the_whole_text(self) -> None:
        status = StatusRequest(path="/jobs/{handle}", state=".", states=STATES, not_found=())
        assert jobs(httpx.Response(200, text="RUNNING\n"), status=status).status("1") == Active()
        assert jobs("DONE", status=status).status("1") == Succeeded()

    def test_error_code_that_is_not_listed_is_unknown(self) -> None:
        assert isinstance(jobs({"done": True, "error": {"code": 99}}, status=OPERATION).status("1"), Unknown)


class TestAddedFields:
    def test_nested_object_of_templates_is_merged_into_the_request(self) -> None:
        seen: list[httpx.Request] = []
        submit = SubmitRequest(
            path="/jobs",
            handle="id",
            body={
                "labels": {"example.com/token": "{token}", "team": {"run": "{taskrun}"}},
                "tags": ["reattach", "{token}"],
                "spec.name": "{name}",
            },
        )
        request = {"labels": {"team": {"cost": "7"}}, "tags": ["mine"]}
        jobs({"id": "j-1"}, seen, submit=submit).submit(Submission("tok", request, "load", 1, "ns", "nightly"))
        assert json.loads(seen[0].content) == {
            "labels": {"example.com/token": "tok", "team": {"cost": "7", "run": "nightly"}},
            "tags": ["mine", "reattach", "tok"],
            "spec": {"name": "reattach-tok"},
        }

    def test_token_in_a_nested_object_counts_as_carried(self) -> None:
        submit = SubmitRequest(path="/jobs", handle="id", body={"labels": {"run": "{token}"}}, exists=(409,))
        jobs({}, submit=submit, names=Names(retention_seconds=None))

    @pytest.mark.parametrize(
        "body,message",
        [
            ({"labels": {"run": 3}}, r"submit.body\['labels'\]\['run'\] must be a template.*, not 3"),
            ({"labels": {"run": "{tok}"}}, r"\{tok\} is not a placeholder"),
            ({"labels": {}}, r"submit.body\['labels'\] must be a template"),
            ({"labels": {7: "{token}"}}, "names must be texts, not 7"),
            ({"tags": [["{token}"]]}, r"submit.body\['tags'\]\[0\] must be a template, not"),
            ({"tags[]": {"a": "{token}"}}, r"submit.body\['tags\[\]'\] must be a template, not"),
            ({"a": None}, r"submit.body\['a'\] must be a template"),
        ],
    )
    def test_value_that_is_no_template_is_refused_with_its_place(self, body: Any, message: str) -> None:
        with pytest.raises(DescriptionError, match=message):
            SubmitRequest(path="/jobs", handle="id", body=body)


class TestNamesInErrors:
    def test_error_of_a_python_description_names_the_python_field(self) -> None:
        with pytest.raises(DescriptionError, match=r"status\.not_found_says must be") as caught:
            StatusRequest(path="/jobs/{handle}", state="s", states=STATES)
        assert "notFound" not in str(caught.value)
        with pytest.raises(DescriptionError, match=r"look_up\.handle_path must begin with /"):
            LookupRequest(path="/j/{token}", carries="t", handle="h", handle_path="x", settling_seconds=1, items="i")

    def test_error_of_a_mapping_names_the_mapping_field(self) -> None:
        mapping = {
            "address": "https://api.invalid",
            "submit": {"path": "/jobs", "handle": "header:Location"},
            "status": {"path": "/jobs/{handle}", "state": "s", "states": {}, "notFoundSays": "x"},
        }
        with pytest.raises(DescriptionError, match=r"submit.handlePath must be like /jobs/\{handle\}"):
            Description.from_mapping(mapping)

    @pytest.mark.parametrize(
        "part,fields,message",
        [
            (States, {"active": "RUNNING", "succeeded": ("A",), "failed": ("B",)}, "status.states.active: Expected `array`"),
            (SubmitRequest, {"path": "/jobs", "handle": 5}, "submit.handle: Expected `str`, got `int`"),
            (SubmitRequest, {"path": "/jobs", "handle": "id", "exists": 409}, "submit.exists: Expected `array`"),
            (LookupRequest, {"path": "/j/{token}", "carries": "t", "handle": "h", "settling_seconds": "1"},
             "look_up.settling_seconds: Expected `float`"),
            (Description, {"address": "https://a.invalid", "submit": {"path": "/jobs"}, "status": STATUS},
             "submit: Expected `SubmitRequest`|submit: "),
        ],
    )  # fmt: skip
    def test_value_of_a_wrong_type_names_its_python_field(self, part: Any, fields: Any, message: str) -> None:
        with pytest.raises(DescriptionError, match=message):
            part(**fields)

    @pytest.mark.parametrize("words", [{"ended": ("null",)}, {"succeeded": ("null",), "failed": ("B",)}])
    def test_absent_state_is_never_an_end(self, words: Any) -> None:
        with pytest.raises(DescriptionError, match="must not be an end"):
            States(active=("A",), **words)

    def test_outcome_needs_the_words_after_which_it_counts(self) -> None:
        outcome = JobOutcome(place="o", succeeded=("A",), failed=("B",))
        with pytest.raises(DescriptionError, match="must be set together"):
            StatusRequest(path="/jobs/{handle}", state="s", states=STATES, outcome=outcome, not_found=())
