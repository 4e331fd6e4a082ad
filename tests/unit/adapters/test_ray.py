"""The pure parts of the Ray adapter, on responses of a real head (2.60)."""

from datetime import timedelta
from typing import Any

import httpx
import pytest

from reattach.adapters.base import (
    Active,
    Cancelled,
    ClientName,
    Failed,
    NotFound,
    Rejected,
    Submission,
    Succeeded,
    Unknown,
)
from reattach.adapters.http_client import CallError, HttpResponse
from reattach.adapters.ray import RayError, RayJobs, body_of, memory_of, status_of, submitted_of

ID = "reattach-0b7e1f0a-5b39-5a3e-8f5c-2f8f3f1f0c11"
EXISTS = f"""Traceback (most recent call last):
  File "/ray/dashboard/modules/job/job_head.py", line 419, in submit_job
    resp = await job_agent_client.submit_job_internal(submit_request)
           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "/ray/dashboard/modules/job/job_head.py", line 134, in _raise_error
    raise RuntimeError(f"Request failed with status code {{status}}: {{error_text}}.")
RuntimeError: Request failed with status code 400: Traceback (most recent call last):
  File "/ray/dashboard/modules/job/job_agent.py", line 45, in submit_job
    submission_id = await self.get_job_manager().submit_job(
                    ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "/ray/dashboard/modules/job/job_manager.py", line 553, in submit_job
    raise ValueError(
ValueError: Job with submission_id {ID} already exists. Please use a different submission_id.
."""
UNKNOWN_FIELD = """Traceback (most recent call last):
  File "/ray/dashboard/modules/job/common.py", line 445, in validate_request_type
    return request_type(**json_data)
           ^^^^^^^^^^^^^^^^^^^^^^^^^
TypeError: JobSubmitRequest.__init__() got an unexpected keyword argument 'nope'"""
NO_AGENT = "No available agent to submit job, please try again later."
DETAILS: dict[str, Any] = {
    "type": "SUBMISSION", "job_id": None, "submission_id": ID, "driver_info": None, "status": "PENDING", "entrypoint": "sleep 8",
    "message": "Job has not started yet.", "error_type": None, "start_time": 1795468064988, "end_time": None, "metadata": None,
    "runtime_env": None, "driver_agent_http_address": None, "driver_node_id": None, "driver_exit_code": None,
}  # fmt: skip
NODE: dict[str, Any] = {
    "node_id": "7ceab676", "node_ip": "192.0.2.2", "is_head_node": True, "state": "ALIVE", "start_time_ms": 1795468063075, "end_time_ms": 0
}  # fmt: skip
STARTED = "Mon, 23 Nov 2026 21:07:43 GMT"
LATER = "Mon, 23 Nov 2026 22:07:45 GMT"


def a_response(status: int, body: Any, **headers: str) -> HttpResponse:
    response = httpx.Response(status, text=body) if isinstance(body, str) else httpx.Response(status, json=body)
    return HttpResponse(status, response.text, headers)


def a_submission(request: Any) -> Submission:
    return Submission(
        token=ID.removeprefix("reattach-"),
        request=request,
        key="load",
        generation=1,
        namespace="team",
        taskrun="nightly",
    )


def nodes(*nodes: dict[str, Any]) -> dict[str, Any]:
    return {"result": True, "msg": "", "data": {"result": {"total": len(nodes), "result": list(nodes)}}}


class TestSubmission:
    def test_a_new_job_has_the_id_that_was_asked_for(self) -> None:
        assert not submitted_of(a_response(200, {"job_id": ID, "submission_id": ID}), ID)

    def test_a_known_id_is_told_by_the_last_line_of_a_traceback(self) -> None:
        assert submitted_of(a_response(500, EXISTS), ID)

    def test_another_id_that_exists_says_nothing_of_ours(self) -> None:
        with pytest.raises(RayError, match="does not show"):
            submitted_of(a_response(500, EXISTS), "reattach-other")

    @pytest.mark.parametrize("status", [401, 403])
    def test_submit_with_refused_credentials_is_tried_again(self, status: int) -> None:
        with pytest.raises(Rejected) as caught:
            submitted_of(a_response(status, "no token"), ID)
        assert caught.value.credentials

    @pytest.mark.parametrize("status", [400, 404, 405, 413, 415, 422])
    def test_what_ray_has_not_acted_on_is_rejected_for_good(self, status: int) -> None:
        with pytest.raises(Rejected, match="unexpected keyword argument 'nope'") as rejected:
            submitted_of(a_response(status, UNKNOWN_FIELD), ID)
        assert not rejected.value.retriable

    def test_too_many_requests_are_rejected_for_now(self) -> None:
        with pytest.raises(Rejected) as rejected:
            submitted_of(a_response(429, ""), ID)
        assert rejected.value.retriable

    @pytest.mark.parametrize(
        "response", [a_response(500, NO_AGENT), a_response(502, ""), a_response(200, "<html>"), a_response(200, {})]
    )
    def test_anything_else_leaves_it_unknown(self, response: HttpResponse) -> None:
        with pytest.raises(RayError):
            submitted_of(response, ID)

    def test_the_body_carries_our_id_and_whose_job_it_is(self) -> None:
        request = {"entrypoint": "python load.py", "metadata": {"team": "data"}}
        assert body_of(a_submission(request)) == {
            "entrypoint": "python load.py",
            "submission_id": ID,
            "metadata": {"team": "data", "reattach.dev/taskrun": "team/nightly", "reattach.dev/key": "load"},
        }
        assert request == {"entrypoint": "python load.py", "metadata": {"team": "data"}}

    @pytest.mark.parametrize(
        "request_", ["true", {}, {"entrypoint": "true", "submission_id": "x"}, {"entrypoint": "true", "job_id": "x"}]
    )
    def test_a_wrong_request_is_rejected_before_it_is_sent(self, request_: Any) -> None:
        with pytest.raises(Rejected, match="a request to Ray must"):
            body_of(a_submission(request_))


class TestStatus:
    @pytest.mark.parametrize(
        "changes, expected",
        [
            ({}, Active("Job has not started yet.")),
            ({"status": "RUNNING", "message": "Job is currently running."}, Active("Job is currently running.")),
            ({"status": "SUCCEEDED", "message": "Job finished successfully."}, Succeeded({"submissionId": ID})),
            ({"status": "STOPPED", "message": "Job was intentionally stopped."}, Cancelled("Job was intentionally stopped.")),
            (
                {"status": "FAILED", "error_type": "JOB_ENTRYPOINT_COMMAND_ERROR", "message": "Job entrypoint command failed"},
                Failed("JOB_ENTRYPOINT_COMMAND_ERROR: Job entrypoint command failed"),
            ),
            ({"status": "FAILED", "message": "Failed to start\nTraceback\nValueError: no\n"}, Failed("Failed to start … ValueError: no")),
            ({"status": "FAILED", "message": None}, Failed("")),
        ],
    )  # fmt: skip
    def test_each_status_means_one_answer(self, changes: dict[str, Any], expected: object) -> None:
        assert status_of(a_response(200, {**DETAILS, **changes})) == expected

    def test_a_status_that_nobody_knows_is_unknown(self) -> None:
        assert isinstance(status_of(a_response(200, {**DETAILS, "status": "PAUSED"})), Unknown)

    def test_only_rays_own_404_means_that_there_is_no_job(self) -> None:
        assert isinstance(status_of(a_response(404, f"Job {ID} does not exist")), NotFound)
        assert isinstance(status_of(a_response(404, "404 page not found")), Unknown)

    @pytest.mark.parametrize("response", [a_response(500, "Traceback"), a_response(200, "<html>"), a_response(401, "")])
    def test_anything_else_is_unknown(self, response: HttpResponse) -> None:
        assert isinstance(status_of(response), Unknown)


class TestMemory:
    def test_a_head_remembers_since_it_started(self) -> None:
        # 1795468063.075 is 21:07:43.075; five seconds are the margin.
        assert memory_of(a_response(200, nodes(NODE), date=LATER)) == timedelta(seconds=3601.925 - 5)

    def test_of_several_heads_the_last_one_counts(self) -> None:
        before = {**NODE, "state": "DEAD", "start_time_ms": 1}
        worker = {**NODE, "is_head_node": False, "start_time_ms": NODE["start_time_ms"] + 60_000}
        assert memory_of(a_response(200, nodes(before, NODE, worker), date=LATER)) == timedelta(seconds=3601.925 - 5)

    @pytest.mark.parametrize(
        "response",
        [
            a_response(200, nodes(NODE), date=STARTED),
            a_response(200, nodes(NODE)),
            a_response(200, nodes(), date=LATER),
            a_response(200, nodes(NODE), date="soon"),
            a_response(200, nodes({**NODE, "start_time_ms": None}), date=LATER),
            a_response(404, "404: Not Found", date=LATER),
            a_response(200, {"data": None}, date=LATER),
        ],
    )
    def test_where_it_does_not_say_nothing_is_promised(self, response: HttpResponse) -> None:
        assert memory_of(response) == timedelta(0)

    @pytest.mark.parametrize("status", [401, 429, 500, 502, 503])
    def test_an_error_is_no_word_about_it(self, status: int) -> None:
        with pytest.raises(RayError, match=f"start time of its head: {status}"):
            memory_of(a_response(status, "Traceback", date=LATER))

    def test_of_a_head_out_of_reach_nobody_can_tell(self) -> None:
        def refuse(request: httpx.Request) -> httpx.Response:
            raise httpx.ConnectError("refused", request=request)

        jobs = RayJobs("http://ray.invalid:8265", transport=httpx.MockTransport(refuse))
        with pytest.raises(CallError):
            _ = jobs.capabilities
        with pytest.raises(CallError):
            jobs.status(ID)

    def test_an_external_store_promises_for_ever_and_is_not_asked(self) -> None:
        assert RayJobs("http://ray.invalid:8265", durable=True).capabilities.client_name == ClientName(None)


class TestCancel:
    @staticmethod
    def jobs(stopped: Any, status: str) -> RayJobs:
        def respond(request: httpx.Request) -> httpx.Response:
            if request.method == "POST":
                return httpx.Response(200, json={"stopped": stopped})
            return httpx.Response(200, json={**DETAILS, "status": status})

        return RayJobs("http://ray.invalid:8265", transport=httpx.MockTransport(respond))

    def test_a_job_that_ray_does_not_have_needs_no_cancelling_and_a_404_of_a_proxy_cancels_nothing(self) -> None:
        def answered(text: str) -> RayJobs:
            transport = httpx.MockTransport(lambda _: httpx.Response(404, text=text))
            return RayJobs("http://ray.invalid:8265", transport=transport)

        answered(f"Job {ID} does not exist").cancel(ID)
        with pytest.raises(RayError, match="404 default backend"):
            answered("default backend - 404").cancel(ID)

    def test_a_job_that_could_not_be_stopped_and_goes_on_is_said(self) -> None:
        with pytest.raises(RayError, match="ask again"):
            self.jobs(stopped=False, status="PENDING").cancel(ID)

    @pytest.mark.parametrize("stopped, status", [(True, "RUNNING"), (False, "SUCCEEDED"), (False, "STOPPED")])
    def test_what_is_stopping_or_over_is_fine(self, stopped: bool, status: str) -> None:
        self.jobs(stopped, status).cancel(ID)
