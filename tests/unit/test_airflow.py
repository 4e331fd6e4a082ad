"""`reattach.airflow` with an operator that has the hooks of Airflow's mixin, and without Airflow.

`tests/systems/airflow` runs it with operators of provider packages.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

import reattach.airflow
from reattach.adapters.base import (
    Active,
    Cancelled,
    Capabilities,
    Failed,
    NotFound,
    Rejected,
    Submission,
    SubmissionToken,
    Succeeded,
    Unknown,
)
from reattach.airflow import OperatorAdapter


class NewConnectionError(Exception):
    """Stand-in for the error of urllib3."""


class Durable:
    """Operator with scripted responses. A copy shares `calls` and `responses` with it."""

    template_fields = ("sql", "warehouse_conn_id")
    template_ext = (".sql",)

    def __init__(self, external_id: Any = "id-1", status: str = "RUNNING", **fields: Any) -> None:
        self.task_id = "load"
        self.sql: Any = "SELECT 1"
        self.warehouse_conn_id = "warehouse"
        self.calls: list[Any] = []
        self.responses: dict[str, Any] = {"submit": external_id, "status": status, "result": {"rows": 3}}
        self.__dict__.update(fields)

    def submit_job(self, context: Any) -> Any:
        self.calls.append(("submit", self.sql, context["run_id"], context.get("task_state_store")))
        if isinstance(self.responses["submit"], Exception):
            raise self.responses["submit"]
        return self.responses["submit"]

    def get_job_status(self, external_id: Any, context: Any) -> str:
        self.calls.append(("status", external_id))
        context["ti"].xcom_push(key="url", value="u")
        return str(self.responses["status"])

    def is_job_active(self, status: str) -> bool:
        return status == "RUNNING"

    def is_job_succeeded(self, status: str) -> bool:
        return status == "DONE"

    def get_job_result(self, _external_id: Any, _context: Any) -> Any:
        return self.responses["result"]


class RedshiftDataOperator(Durable):
    """The listed name decides how a job is cancelled and what an error proves."""

    def __init__(self, *arguments: Any, **fields: Any) -> None:
        super().__init__(*arguments, **fields)
        self.botocore_config: Any = None

    def on_kill(self) -> None:
        self.calls.append(("kill", self.__dict__["statement_id"], self.botocore_config["retries"]))


class DatabricksSubmitRunOperator(Durable):
    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)
        self.idempotency_token: str | None = fields.get("idempotency_token")
        self.json: Any = {}
        self._hook = SimpleNamespace(timeout_seconds=180)

    def submit_job(self, _context: Any) -> Any:
        self.calls.append((self.idempotency_token, self._hook.timeout_seconds))
        return 7


def adapter_of(durable: Durable) -> OperatorAdapter:
    return reattach.airflow.operator(durable, cancel=lambda copied, job: copied.calls.append(("cancel", job)))


def a_submission(request: Any, may_leave: Callable[[], bool] = lambda: True) -> Submission:
    return Submission("token", request, "load", 1, "default", "nightly", may_leave=may_leave)


def error_with(status: int) -> Exception:
    error = RuntimeError("the service refuses")
    error.__cause__ = cause = RuntimeError("HTTP")
    cause.response = SimpleNamespace(status_code=status, text="no")  # type: ignore[attr-defined]
    return error


class TestSubmit:
    def test_submit_changes_only_a_copy_and_passes_no_store(self) -> None:
        durable = Durable()
        made = adapter_of(durable).submit(a_submission({"sql": "SELECT 2"}))
        assert made.handle == "id-1"
        assert durable.calls == [("submit", "SELECT 2", "default/nightly", None)]
        assert durable.sql == "SELECT 1"

    @pytest.mark.parametrize("external_id", ["id", 42, "42", ["a", "b"], {"id": 1}])
    def test_status_receives_the_id_that_submit_returned(self, external_id: Any) -> None:
        durable = Durable(external_id)
        adapter = adapter_of(durable)
        adapter.status(adapter.submit(a_submission({})).handle)
        assert durable.calls[-1] == ("status", external_id)

    def test_submission_that_may_not_leave_is_rejected_without_a_call(self) -> None:
        durable = Durable()
        with pytest.raises(Rejected) as rejected:
            adapter_of(durable).submit(a_submission({}, lambda: False))
        assert rejected.value.retriable
        assert not durable.calls

    @pytest.mark.parametrize("request_", [None, {"database": "x"}, {"warehouse_conn_id": "x"}, {"sql": "{{ ds }}"}])
    def test_request_that_can_not_be_kept_is_rejected(self, request_: Any) -> None:
        durable = Durable()
        with pytest.raises(Rejected):
            adapter_of(durable).submit(a_submission(request_))
        assert not durable.calls

    def test_submit_without_an_id_is_no_rejection(self) -> None:
        with pytest.raises(ValueError, match="unknown whether there is a job"):
            adapter_of(Durable(None)).submit(a_submission({}))

    @pytest.mark.parametrize("status", [400, 401, 429])
    def test_refusal_is_a_rejection_only_if_the_client_repeats_no_request(self, status: int) -> None:
        with pytest.raises(RuntimeError):
            adapter_of(Durable(error_with(status))).submit(a_submission({}))
        with pytest.raises(Rejected) as rejected:
            reattach.airflow.operator(RedshiftDataOperator(error_with(status))).submit(a_submission({}))
        assert (rejected.value.credentials, rejected.value.retriable) == (status == 401, status != 400)

    @pytest.mark.parametrize("status", [408, 500, 503])
    def test_response_that_proves_nothing_is_no_rejection(self, status: int) -> None:
        with pytest.raises(RuntimeError):
            reattach.airflow.operator(RedshiftDataOperator(error_with(status))).submit(a_submission({}))

    @pytest.mark.parametrize("first", [400, NewConnectionError])
    def test_request_that_may_have_arrived_is_no_rejection_whatever_failed_before(self, first: Any) -> None:
        error = ConnectionResetError("the request had left")
        error.__context__ = error_with(first) if isinstance(first, int) else first()
        with pytest.raises(ConnectionResetError):
            reattach.airflow.operator(RedshiftDataOperator(error)).submit(a_submission({}))

    def test_request_without_a_connection_is_a_rejection(self) -> None:
        error = RuntimeError("the service is away")
        error.__context__ = NewConnectionError()
        with pytest.raises(Rejected) as rejected:
            reattach.airflow.operator(RedshiftDataOperator(error)).submit(a_submission({}))
        assert rejected.value.retriable

    def test_databricks_gets_our_token_and_a_short_timeout(self) -> None:
        durable = DatabricksSubmitRunOperator()
        adapter = reattach.airflow.operator(durable, request_seconds=6.0)
        assert adapter.submit(a_submission({})).handle == "7"
        assert durable.calls == [("token", 6.0)]
        assert isinstance(adapter.capabilities.token, SubmissionToken)
        with pytest.raises(Rejected, match="idempotency_token"):
            reattach.airflow.operator(DatabricksSubmitRunOperator(idempotency_token="mine")).submit(a_submission({}))

    def test_operator_declares_nothing_by_default(self) -> None:
        assert adapter_of(Durable()).capabilities == Capabilities()


class TestStatus:
    @pytest.mark.parametrize(
        "status,expected",
        [
            ("RUNNING", Active),
            ("DONE", Succeeded),
            ("TERMINATED:FAILED", Failed),
            ("dead", Failed),
            ("ABORTED", Cancelled),
            ("NOT_FOUND:", NotFound),
            ("WARMING_UP", Unknown),
        ],
    )
    def test_words_of_the_status_decide(self, status: str, expected: type) -> None:
        assert isinstance(adapter_of(Durable(status=status)).status("id-1"), expected)

    def test_result_is_the_operators_or_what_it_pushes(self) -> None:
        durable = Durable(status="DONE")
        assert adapter_of(durable).status("id-1") == Succeeded({"rows": 3})
        durable.responses["result"] = None
        assert adapter_of(durable).status("id-1") == Succeeded({"url": "u"})


class TestCancel:
    def test_cancel_calls_the_function_with_the_id(self) -> None:
        durable = Durable()
        adapter_of(durable).cancel("42")
        assert durable.calls[-1] == ("cancel", 42)

    def test_cancel_of_a_listed_operator_selects_the_job_and_repeats_no_request(self) -> None:
        durable = RedshiftDataOperator()
        reattach.airflow.operator(durable).cancel("id-1")
        assert durable.calls[-1] == ("kill", "id-1", {"total_max_attempts": 1})

    def test_cancel_leaves_a_job_that_is_over(self) -> None:
        durable = Durable(status="DONE")
        adapter_of(durable).cancel("id-1")
        assert durable.calls == [("status", "id-1")]


class LivyOperator(Durable):
    def __init__(self) -> None:
        super().__init__()
        self._extra_options: dict[str, Any] = {}
        self._batch_id: Any = None

    def get_job_status(self, external_id: Any, context: Any) -> str:
        if self.responses["status"] == "gone":
            error = RuntimeError("Unable to fetch batch")
            error.__cause__ = cause = RuntimeError("HTTP")
            text = self.responses["text"]
            code = self.responses.get("code", 404)
            cause.response = SimpleNamespace(status_code=code, text=text)  # type: ignore[attr-defined]
            raise error
        return super().get_job_status(external_id, context)

    def on_kill(self) -> None:
        self.responses["status"] = "gone"


class TestDeletedBatch:
    def test_batch_that_this_process_deleted_is_cancelled_and_another_one_is_not_found(self) -> None:
        durable = LivyOperator()
        durable.responses["text"] = "Session '3' not found."
        adapter = reattach.airflow.operator(durable)
        adapter.cancel("3")
        assert isinstance(adapter.status("3"), Cancelled)
        assert isinstance(reattach.airflow.operator(durable).status("3"), NotFound)

    @pytest.mark.parametrize(
        "code,text",
        [
            (400, '{"error_code":"INVALID_PARAMETER_VALUE","message":"Run 3 does not exist."}'),
            (400, '{"__type":"ResourceNotFoundException","Message":"Query does not exist."}'),
        ],
    )
    def test_a_job_that_the_service_does_not_know_is_not_found(self, code: int, text: str) -> None:
        durable = LivyOperator()
        durable.responses |= {"status": "gone", "text": text, "code": code}
        assert isinstance(reattach.airflow.operator(durable).status("3"), NotFound)

    def test_a_404_of_a_proxy_proves_nothing(self) -> None:
        durable = LivyOperator()
        durable.responses |= {"status": "gone", "text": "no such route"}
        with pytest.raises(RuntimeError):
            reattach.airflow.operator(durable).status("3")


class TestOperator:
    def test_digest_follows_the_fields_of_the_job(self) -> None:
        adapter = adapter_of(Durable())
        assert adapter.digest({}) == adapter.digest({"sql": "SELECT 1"}) != adapter.digest({"sql": "SELECT 2"})
        assert adapter.digest({}) != adapter_of(Durable(sql="SELECT 2")).digest({})

    def test_operator_without_the_hooks_is_refused(self) -> None:
        with pytest.raises(TypeError, match="submit_job"):
            reattach.airflow.operator(SimpleNamespace(task_id="x"))

    def test_unlisted_operator_needs_a_function_that_cancels(self) -> None:
        with pytest.raises(ValueError, match="pass cancel="):
            reattach.airflow.operator(Durable())

    @pytest.mark.parametrize("sql", ["{{ ds }}", "{% if x %}", ["load.sql"], {"q": "load.sql"}])
    def test_operator_with_a_template_or_a_file_is_refused(self, sql: Any) -> None:
        with pytest.raises(ValueError, match="sql must not"):
            adapter_of(Durable(sql=sql))
