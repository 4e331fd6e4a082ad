"""Runs the external job of one of Airflow's durable operators by Reattach's protocol.

    LOAD = reattach.airflow.operator(RedshiftDataOperator(task_id="load", sql=…))

    def main(task):
        return task.submit_once("load", LOAD, {}).wait()

    reattach.run(main, adapters=[LOAD])

Such an operator inherits from Airflow's `ResumableJobMixin`. Airflow stores the id of its job after
the submission, so a crash between the two makes a second job. Here the intent is stored first. The
adapter calls only the operator's hooks `submit_job`, `get_job_status`, `is_job_active`,
`is_job_succeeded`, `get_job_result` and `on_kill`; `execute` and `poll_until_complete` are not
called. This module imports nothing of Airflow.

**Guarantees.** A mixin has no hook for a name, a token or a lookup. So a run is held if it is
unknown whether its job was submitted. The exceptions are Databricks' operators, whose
`idempotency_token` makes a repeated submission return the first run.
"""

import copy
import json
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, ClassVar, Final

from reattach.adapters.base import (
    Active,
    Adapter,
    Cancelled,
    Capabilities,
    Failed,
    JobStatus,
    NotFound,
    Rejected,
    Submission,
    SubmissionToken,
    Submitted,
    Succeeded,
    Unknown,
)
from reattach.adapters.http_client import CREDENTIALS_REFUSED, TOO_LATE
from reattach.api.messages import ADAPTER_CHARACTERS_MAX

__all__ = ["Cancel", "OperatorAdapter", "operator"]

Cancel = Callable[[Any, Any], None]
"""Requests the end of a job: called with a copy of the operator, and the id of the job."""

_HOOKS: Final = ("submit_job", "get_job_status", "is_job_active", "is_job_succeeded", "get_job_result")
_TARGETS: Final = frozenset({"job_name", "location", "project_id", "region_name", "verify"})
"""Template fields that determine where a job is looked for, as do those that end in `conn_id`."""
_CANCELLED: Final = ("CANCEL", "KILLED", "STOPPED", "ABORT")
_FAILED: Final = ("FAIL", "ERROR", "DEAD", "TIMEOUT", "TIMEDOUT", "TIMED_OUT", "EXPIRED", "SKIPPED")
_UNCONNECTED: Final = frozenset(
    {"NewConnectionError", "NameResolutionError", "ConnectTimeoutError", "EndpointConnectionError"}
)
"""Errors of urllib3 and botocore by which no request has left."""
_UNCERTAIN: Final = frozenset(
    {"BrokenPipeError", "ChunkedEncodingError", "ConnectionClosedError", "ConnectionResetError", "ProtocolError"}
    | {"ReadTimeout", "ReadTimeoutError", "RemoteDisconnected"}
)
"""Errors after which a request may have arrived."""
_RETRIABLE: Final = frozenset({408, 425, 429})
_ABSENT: Final = (
    (404, r"Session '.*not found"),  # Livy
    (400, r"Run .* does not exist"),  # Databricks, with INVALID_PARAMETER_VALUE
    (400, r"ResourceNotFoundException"),  # Redshift Data
)
"""Status and text by which a service reports that it has no such job."""


class _Kind:
    """Behaviour of one kind of operator beyond the hooks of the mixin.

    capabilities: what its external system guarantees for the token that `carry` sets.
    """

    capabilities: ClassVar[Capabilities] = Capabilities()

    def bound(self, copied: Any, seconds: float) -> None:
        """Limit the time of each request, and make the operator's client repeat none."""

    def carry(self, copied: Any, token: str) -> None:
        """Make the job carry the token."""

    def select(self, copied: Any, external_id: Any) -> None:
        """Make `on_kill` of the operator cancel this job."""


class _Databricks(_Kind):
    """Databricks honors a token for as long as it keeps the run, which is 60 days.

    A repeated token returns the run that exists, and an error if the run was deleted:
    https://docs.databricks.com/api/workspace/jobs/submit#idempotency_token. Runs are removed after
    60 days: https://docs.databricks.com/api/workspace/jobs/getrunoutput.
    """

    capabilities = Capabilities(token=SubmissionToken(timedelta(days=60)))

    def bound(self, copied: Any, seconds: float) -> None:
        copied.databricks_retry_limit = 1
        copied._hook.timeout_seconds = seconds  # noqa: SLF001 -- the operator has no other way

    def carry(self, copied: Any, token: str) -> None:
        if copied.idempotency_token is not None or "idempotency_token" in (copied.json or {}):
            raise Rejected("the operator must have no idempotency_token: Reattach chooses it")
        copied.idempotency_token = token

    def select(self, copied: Any, external_id: Any) -> None:
        copied.run_id = external_id


class _RedshiftData(_Kind):
    def bound(self, copied: Any, seconds: float) -> None:
        limits = {"connect_timeout": seconds, "read_timeout": seconds, "retries": {"total_max_attempts": 1}}
        config = copied.botocore_config
        if config is None or isinstance(config, Mapping):
            copied.botocore_config = {**(config or {}), **limits}
        else:
            copied.botocore_config = config.merge(type(config)(**limits))

    def select(self, copied: Any, external_id: Any) -> None:
        copied.statement_id, copied.cancel_on_kill = external_id, True


class _Livy(_Kind):
    def bound(self, copied: Any, seconds: float) -> None:
        # The hook sets check_response only if there are no other options.
        copied._extra_options = {"check_response": False, **copied._extra_options, "timeout": seconds}  # noqa: SLF001

    def select(self, copied: Any, external_id: Any) -> None:
        copied._batch_id = external_id  # noqa: SLF001


_KINDS: Final[Mapping[str, type[_Kind]]] = {
    "DatabricksRunNowOperator": _Databricks,
    "DatabricksSubmitRunOperator": _Databricks,
    "LivyOperator": _Livy,
    "RedshiftDataOperator": _RedshiftData,
}


def operator(durable: Any, *, cancel: Cancel | None = None, request_seconds: float = 60.0) -> "OperatorAdapter":
    """Return an adapter for the job of an Airflow operator that inherits from `ResumableJobMixin`.

    cancel: required for an operator that this module does not list, because `on_kill` does not take
        the id of a job. It is called with a copy of the operator and the id.
    request_seconds: the longest that `submit_job` may take.

    Raises:
        TypeError: the operator lacks a hook of the mixin.
        ValueError: it is not listed and `cancel` is missing, or a template field can't be used.
    """
    return OperatorAdapter(durable, cancel=cancel, request_seconds=request_seconds)


class OperatorAdapter(Adapter):
    """Adapter for the job of one operator. See `operator`.

    A request is a dict that replaces template fields of the operator, for example `{"sql": …}`. It
    can't replace a field that determines where the job is.
    """

    name = ""  # set to that of the task

    def __init__(self, wrapped: Any, *, cancel: Cancel | None, request_seconds: float) -> None:
        absent = [hook for hook in _HOOKS if not callable(getattr(wrapped, hook, None))]
        if absent:
            raise TypeError(f"{type(wrapped).__name__} must have the hooks of ResumableJobMixin; it lacks {absent}")
        known = next((_KINDS[base.__name__] for base in type(wrapped).__mro__ if base.__name__ in _KINDS), None)
        if known is None and cancel is None:
            raise ValueError(
                f"Reattach does not know how {type(wrapped).__name__} cancels a job by its id: pass cancel=,"
                " a function of a copy of the operator and the id"
            )
        name = f"airflow/{wrapped.task_id}"
        if len(name) > ADAPTER_CHARACTERS_MAX:
            raise ValueError(f"task_id must have at most {ADAPTER_CHARACTERS_MAX - len('airflow/')} characters: {name}")
        self.name = name  # type: ignore[misc] # a class constant in other adapters
        self.request_seconds = request_seconds
        self._kind = _Kind() if known is None else known()
        self._cancel = cancel
        self._cancelled: set[str] = set()
        self._operator = wrapped
        self._fields = {field: getattr(wrapped, field, None) for field in wrapped.template_fields}
        _check_fields(wrapped, self._fields)

    @property
    def capabilities(self) -> Capabilities:
        return self._kind.capabilities

    def digest(self, request: Any) -> str:
        """Return a hash of the operator's class and its template fields."""
        fields = {name: value for name, value in self._fields_of(request).items() if value is not None}
        return super().digest({"operator": type(self._operator).__name__, "fields": fields})

    def submit(self, submission: Submission) -> Submitted:
        copied = self._copy(self._fields_of(submission.request))
        self._kind.carry(copied, submission.token)
        context = _context_of(copied, run_id=f"{submission.namespace}/{submission.taskrun}")
        if not submission.may_leave():
            raise Rejected(TOO_LATE, retriable=True)
        try:
            external_id = copied.submit_job(context)
        except Exception as error:
            # The client of an operator that is not listed may have repeated the request.
            if type(self._kind) is not _Kind and (rejected := _rejection_of(error)) is not None:
                raise rejected from error
            raise
        if external_id is None:
            raise ValueError("submit_job returned no id, so it is unknown whether there is a job")
        return Submitted(_handle_of(external_id))

    def status(self, handle: str) -> JobStatus:
        copied, external_id = self._copy(self._fields), _id_of(handle)
        context = _context_of(copied)
        try:
            status = str(copied.get_job_status(external_id, context))
        except Exception as error:
            if _is_absent(error):
                # Livy cancels a batch by its deletion.
                return Cancelled(str(error)) if handle in self._cancelled else NotFound(str(error))
            raise
        if copied.is_job_active(status):
            return Active(status)
        if copied.is_job_succeeded(status):
            result = copied.get_job_result(external_id, context)
            return Succeeded(context["ti"].pushed or None if result is None else result)
        return _end_of(status)

    def cancel(self, handle: str) -> None:
        # A job that is over must not be cancelled: Livy would forget that it succeeded.
        if not isinstance(self.status(handle), Active):
            return
        copied = self._copy(self._fields)
        if self._cancel is not None:
            self._cancel(copied, _id_of(handle))
            return
        self._kind.select(copied, _id_of(handle))
        copied.on_kill()
        self._cancelled.add(handle)

    def _fields_of(self, request: Any) -> dict[str, Any]:
        """Return the template fields of the job. Raises `Rejected`."""
        if not isinstance(request, dict):
            raise Rejected("a request to an operator must be a dict of template fields; {} changes none")
        for name in request:
            if name not in self._fields or name in _TARGETS or name.endswith("conn_id"):
                raise Rejected(f"a request must contain only template fields that describe the job, not {name!r}")
        try:
            _check_fields(self._operator, request)
        except ValueError as error:
            raise Rejected(str(error)) from None
        return {**self._fields, **request}

    def _copy(self, fields: Mapping[str, Any]) -> Any:
        """Return a copy of the operator for one call, because operators keep the id of a job."""
        copied = copy.copy(self._operator)
        if hasattr(copied, "prepare_for_execution"):
            copied = copied.prepare_for_execution()
        for name, value in fields.items():
            setattr(copied, name, copy.deepcopy(value))
        self._kind.bound(copied, self.request_seconds)
        return copied


def _check_fields(wrapped: Any, fields: Mapping[str, Any]) -> None:
    for name, value in fields.items():
        for text in _texts_of(value):
            if "{{" in text or "{%" in text:
                raise ValueError(f"{name} must not be a template: a TaskRun has no Dag run to render it for")
            if text.endswith(tuple(getattr(wrapped, "template_ext", ()))):
                raise ValueError(f"{name} must not name a file ({text}): read the file, and pass what it contains")


def _texts_of(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from (text for part in value.values() for text in _texts_of(part))
    elif isinstance(value, list | tuple):
        yield from (text for part in value for text in _texts_of(part))


class _TaskInstance(SimpleNamespace):
    """`context["ti"]`. It keeps what an operator pushes to XCom, which a TaskRun does not have."""

    def xcom_push(self, key: str, value: Any, **_: Any) -> None:
        self.pushed[key] = value

    def xcom_pull(self, **_: Any) -> None:
        return None


def _context_of(copied: Any, run_id: str = "") -> dict[str, Any]:
    """Return a context without `task_state_store`, because Reattach stores the id of the job."""
    instance = _TaskInstance(
        dag_id="reattach", task_id=copied.task_id, run_id=run_id, map_index=-1, try_number=1, stats_tags={}, pushed={}
    )
    return {"ti": instance, "task_instance": instance, "task": copied, "run_id": run_id, "params": {}}


def _handle_of(external_id: Any) -> str:
    """Return the id as text, from which `_id_of` restores it: Airflow's ids are any JSON."""
    if isinstance(external_id, str) and _id_of(external_id) == external_id:
        return external_id
    return json.dumps(external_id, separators=(",", ":"))


def _id_of(handle: str) -> Any:
    try:
        return json.loads(handle)
    except ValueError:
        return handle


def _end_of(status: str) -> JobStatus:
    """Return how a job ended. The mixin has no hook for it, so the words of the status decide.

    A status without such a word is unknown, because a job that runs must not count as failed.
    """
    words = status.upper().replace(" ", "_").replace("-", "_")
    if "NOT_FOUND" in words:
        return NotFound(status)
    if any(word in words for word in _CANCELLED):
        return Cancelled(status)
    if any(word in words for word in _FAILED):
        return Failed(status)
    return Unknown(f"the operator reports a status that is neither active nor a known end: {status}")


def _chain_of(error: BaseException) -> Iterator[BaseException]:
    seen: list[BaseException] = []
    todo: list[BaseException | None] = [error]
    while todo:
        one = todo.pop()
        if one is None or any(one is earlier for earlier in seen):
            continue
        seen.append(one)
        yield one
        last = getattr(one, "last_attempt", None)  # RetryError of tenacity
        todo += [one.__cause__, one.__context__, None if last is None else last.exception()]


def _response_of(error: BaseException) -> tuple[int, str] | None:
    """Return status and text of the response that an error of requests or botocore is about."""
    for one in _chain_of(error):
        response: Any = getattr(one, "response", None)
        if isinstance(response, Mapping) and "ResponseMetadata" in response:
            return int(response["ResponseMetadata"].get("HTTPStatusCode", 0)), str(one)
        if response is not None and hasattr(response, "status_code"):
            return int(response.status_code), str(response.text)
    return None


def _rejection_of(error: BaseException) -> Rejected | None:
    """Return the rejection that an error of `submit_job` proves, or None.

    The chain of an error may contain those of several requests. It proves nothing if one of them
    may have arrived.
    """
    if _is_any_of(error, _UNCERTAIN):
        return None
    if (response := _response_of(error)) is not None:
        status, text = response
        if status in CREDENTIALS_REFUSED:
            return Rejected(f"{status} {text}"[:400], credentials=True)
        if "Throttling" in text or status == 429:
            return Rejected(f"{status} {text}"[:400], retriable=True)
        if 400 <= status < 500 and status not in _RETRIABLE:
            return Rejected(f"{status} {text}"[:400])
        return None
    return Rejected(str(error)[:400], retriable=True) if _is_any_of(error, _UNCONNECTED) else None


def _is_any_of(error: BaseException, names: frozenset[str]) -> bool:
    return any(kind.__name__ in names for one in _chain_of(error) for kind in type(one).__mro__)


def _is_absent(error: BaseException) -> bool:
    """Return whether the service itself reports that it has no such job: a proxy's 404 does not."""
    response = _response_of(error)
    return response is not None and any(
        response[0] == status and re.search(pattern, response[1]) for status, pattern in _ABSENT
    )
