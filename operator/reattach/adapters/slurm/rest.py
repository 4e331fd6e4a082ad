"""Slurm by slurmrestd: HTTP with a JSON Web Token."""

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, Final
from urllib.parse import quote

import httpx

from reattach.adapters.base import Rejected, Submission, Submitted
from reattach.adapters.http_client import BoundedHttpClient, CallError, HttpResponse, NotSentError
from reattach.adapters.slurm.adapter import MIN_JOB_AGE, SETTLING, Slurm, SlurmError
from reattach.adapters.slurm.records import (
    INVALID_JOB_ID,
    NOTHING_FOUND,
    SlurmHandle,
    SlurmJob,
    SlurmRejection,
    errors_of_rest,
    is_full,
    of_handle,
    records_of_rest,
    refusal_of,
    shown_errors_of_rest,
)

_REFUSED: Final = frozenset({400, 401, 403, 404, 405, 413, 415})
"""slurmrestd's own answers to a request that it did not pass on: 401 for the token, 404 for a version that it does not have."""
_ANSWER_BYTES_MAX: Final = 128 * 1024 * 1024
"""Of all jobs that the controller knows: about 2 KB for each."""
_SEVERAL: Final = ("array", "array_inx")


class SlurmRest(Slurm):
    r"""By slurmrestd at `address`, as `user`, with what `token` returns (`scontrol token`, or your identity provider's; read for each request).

    A request is the body of `POST /slurm/{version}/job/submit`: `{"script": "#!/bin/sh\n…", "job": {…}}`. `version`: of the API, one that your
    slurmrestd has (checked with v0.0.38 of Slurm 22.05; later ones differ in what `job` holds, which is passed on as it is).
    `headers`, `transport`: for a proxy before it, and for tests. The other arguments as in `Slurm`.
    """

    def __init__(
        self,
        address: str,
        *,
        user: str,
        token: Callable[[], str],
        version: str,
        accounting: timedelta | None,
        min_job_age: timedelta = MIN_JOB_AGE,
        settling: timedelta = SETTLING,
        headers: Mapping[str, str] | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        super().__init__(accounting=accounting, min_job_age=min_job_age, settling=settling)
        self._version = version
        self._caller = BoundedHttpClient(
            address.rstrip("/"),
            self.request_seconds,
            lambda: {**(headers or {}), "X-SLURM-USER-NAME": user, "X-SLURM-USER-TOKEN": token().strip()},
            transport=transport,
            answer_bytes=_ANSWER_BYTES_MAX,
        )

    def submit(self, submission: Submission) -> Submitted:
        body = body_of(submission.request, submission.name)
        try:
            answer = self._caller.send(
                "POST", f"/slurm/{self._version}/job/submit", body, may_leave=submission.may_leave
            )
        except NotSentError as error:
            raise Rejected(f"slurmrestd must be reachable: {error}", retriable=True) from error
        except CallError as error:
            raise SlurmError(str(error)) from error
        return Submitted(str(SlurmHandle(job_id_of(answer), submission.name)))

    def _queued(self, *, name: str | None = None, job_id: int | None = None) -> list[SlurmJob]:
        # slurmrestd can't be asked for a name: all jobs come.
        jobs = self._jobs(f"/slurm/{self._version}/" + ("jobs" if job_id is None else f"job/{job_id}"), live=True)
        return [job for job in jobs if name in {None, job.name}]

    def _accounted(self, *, name: str | None = None, job_id: int | None = None) -> list[SlurmJob]:
        assert self._accounting is not None
        if name is None:
            return self._jobs(f"/slurmdb/{self._version}/job/{job_id}", live=False)
        query = f"job_name={quote(name)}&start_time=now-{int(self._accounting.total_seconds())}seconds"
        return self._jobs(f"/slurmdb/{self._version}/jobs?{query}", live=False)

    def _waiting_for_accounting(self) -> int | None:
        answer = self._ask("GET", f"/slurm/{self._version}/diag")
        try:
            return int(answer.body["statistics"]["dbd_agent_queue_size"])
        except (KeyError, TypeError, ValueError):
            return None

    def _end(self, handle: SlurmHandle) -> None:
        if of_handle(handle, self._queued(job_id=handle.job_id)) is None:
            return
        answer = self._ask("DELETE", f"/slurm/{self._version}/job/{handle.job_id}")
        errors = errors_of_rest(answer.body)
        if INVALID_JOB_ID not in errors and (errors or not answer.is_success):
            raise SlurmError(f"slurmrestd did not cancel {handle}: {_shown(answer)}")

    def _jobs(self, path: str, *, live: bool) -> list[SlurmJob]:
        answer = self._ask("GET", path)
        errors = errors_of_rest(answer.body)
        if INVALID_JOB_ID in errors or (NOTHING_FOUND in errors and answer.is_success and not live):
            return []
        if not answer.is_success or errors:
            raise SlurmError(f"slurmrestd did not answer what was asked: {_shown(answer)}")
        try:
            return records_of_rest(answer.body["jobs"], live=live)
        except (KeyError, TypeError, ValueError) as error:
            raise SlurmError(f"slurmrestd answered something that is no list of jobs: {answer}") from error

    def _ask(self, method: str, path: str) -> HttpResponse:
        try:
            return self._caller.send(method, path)
        except CallError as error:
            raise SlurmError(str(error)) from error


def body_of(request: Any, name: str) -> dict[str, Any]:
    """What is submitted. Raises `Rejected`."""
    if not isinstance(request, dict) or not isinstance(request.get("job"), dict):
        raise Rejected('a request to slurmrestd must be {"script": "#!/bin/sh …", "job": {…}}')
    if request.get("jobs") or any(key in request["job"] for key in _SEVERAL):
        raise Rejected("an array or a heterogeneous job is several jobs; submit_once takes one")
    if "name" in request["job"]:
        raise Rejected("job.name must be absent: the name is what finds the job again, and Reattach chooses it")
    return {**request, "job": {**request["job"], "name": name}}


def job_id_of(answer: HttpResponse) -> int:
    """The id of the new job. Raises `Rejected`, or `SlurmError` where nobody knows."""
    body = answer.body
    job_id = body.get("job_id") if isinstance(body, dict) else None
    # Errors beside an id are the scheduler's: the job is accepted and waits. Versions from v0.0.39 on answer 500 then.
    if isinstance(job_id, int) and job_id > 0:
        return job_id
    known = {refusal_of(number) for number in errors_of_rest(body)}
    if known == {SlurmRejection.FINAL} and is_full(answer.text):
        known = {SlurmRejection.FOR_NOW}
    if known == {SlurmRejection.FINAL} or (not known and answer.status in _REFUSED):
        raise Rejected(f"Slurm refuses the job: {_shown(answer)}")
    if known == {SlurmRejection.FOR_NOW}:
        raise Rejected(f"Slurm refuses the job for now: {_shown(answer)}", retriable=True)
    raise SlurmError(f"slurmrestd did not say whether there is a job: {_shown(answer)}")


def _shown(answer: HttpResponse) -> str:
    return f"{answer.status} {shown_errors_of_rest(answer.body)[:400]}" if errors_of_rest(answer.body) else str(answer)
