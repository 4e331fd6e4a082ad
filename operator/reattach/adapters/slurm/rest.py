"""Adapter for slurmrestd: HTTP with a JSON Web Token."""

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, Final
from urllib.parse import quote

import httpx

from reattach.adapters.base import Rejected, Submission, Submitted
from reattach.adapters.http_client import CREDENTIALS_REFUSED, BoundedHttpClient, CallError, HttpResponse
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

_REFUSED: Final = frozenset({400, 404, 405, 413, 415})
"""Statuses that slurmrestd returns if it did not forward the request.

For example, 404 for an API version that slurmrestd does not have, and 401 for a bad token.
"""
_RESPONSE_BYTES_MAX: Final = 128 * 1024 * 1024
"""Limit for a response with all jobs of the controller, at about 2 KB a job."""
_SEVERAL: Final = ("array", "array_inx")


class SlurmRest(Slurm):
    r"""Slurm by slurmrestd at `address`, as `user`.

    A request is the body of `POST /slurm/{version}/job/submit`:
    `{"script": "#!/bin/sh\n…", "job": {…}}`.

    `token`: called for each request; returns a token of `scontrol token` or of your identity
    provider. `version`: an API version of your slurmrestd. Checked with v0.0.38 of Slurm 22.05;
    later versions have other fields in `job`, which is sent unchanged. `headers`: for a proxy in
    front of slurmrestd. `transport`: replaces the network in tests. The other arguments are those
    of `Slurm`.
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
        self._client = BoundedHttpClient(
            address.rstrip("/"),
            self.request_seconds,
            lambda: {**(headers or {}), "X-SLURM-USER-NAME": user, "X-SLURM-USER-TOKEN": token().strip()},
            transport=transport,
            answer_bytes=_RESPONSE_BYTES_MAX,
        )

    def submit(self, submission: Submission) -> Submitted:
        body = body_of(submission.request, submission.name)
        try:
            response = self._client.submit(submission, "POST", f"/slurm/{self._version}/job/submit", body)
        except CallError as error:
            raise SlurmError(str(error)) from error
        return Submitted(str(SlurmHandle(job_id_of(response), submission.name)))

    def _queued(self, *, name: str | None = None, job_id: int | None = None) -> list[SlurmJob]:
        # slurmrestd can't filter by name, so it returns all jobs.
        jobs = self._jobs(f"/slurm/{self._version}/" + ("jobs" if job_id is None else f"job/{job_id}"), live=True)
        return [job for job in jobs if name in {None, job.name}]

    def _accounted(self, *, name: str | None = None, job_id: int | None = None) -> list[SlurmJob]:
        assert self._accounting is not None
        if name is None:
            return self._jobs(f"/slurmdb/{self._version}/job/{job_id}", live=False)
        query = f"job_name={quote(name, safe='')}&start_time=now-{int(self._accounting.total_seconds())}seconds"
        return self._jobs(f"/slurmdb/{self._version}/jobs?{query}", live=False)

    def _waiting_for_accounting(self) -> int | None:
        response = self._send("GET", f"/slurm/{self._version}/diag")
        try:
            return int(response.body["statistics"]["dbd_agent_queue_size"])
        except (KeyError, TypeError, ValueError):
            return None

    def _end(self, handle: SlurmHandle) -> None:
        if of_handle(handle, self._queued(job_id=handle.job_id)) is None:
            return
        response = self._send("DELETE", f"/slurm/{self._version}/job/{handle.job_id}")
        errors = errors_of_rest(response.body)
        if INVALID_JOB_ID not in errors and (errors or not response.is_success):
            raise SlurmError(
                f"slurmrestd did not cancel {handle}: {_shown(response)}", retry_after=response.retry_after
            )

    def _jobs(self, path: str, *, live: bool) -> list[SlurmJob]:
        response = self._send("GET", path)
        errors = errors_of_rest(response.body)
        if INVALID_JOB_ID in errors or (NOTHING_FOUND in errors and response.is_success and not live):
            return []
        if not response.is_success or errors:
            raise SlurmError(
                f"slurmrestd did not return the jobs: {_shown(response)}", retry_after=response.retry_after
            )
        try:
            return records_of_rest(response.body["jobs"], live=live)
        except (KeyError, TypeError, ValueError) as error:
            raise SlurmError(f"slurmrestd's response must be a list of jobs: {response}") from error

    def _send(self, method: str, path: str) -> HttpResponse:
        try:
            return self._client.send(method, path)
        except CallError as error:
            raise SlurmError(str(error)) from error


def body_of(request: Any, name: str) -> dict[str, Any]:
    """Return the body of the submission. Raises `Rejected`."""
    if not isinstance(request, dict) or not isinstance(request.get("job"), dict):
        raise Rejected('a request to slurmrestd must be {"script": "#!/bin/sh …", "job": {…}}')
    if request.get("jobs") or any(key in request["job"] for key in _SEVERAL):
        raise Rejected("an array or a heterogeneous job is several jobs, but submit_once submits one")
    if "name" in request["job"]:
        raise Rejected("job.name must be absent: Reattach chooses the name, because it identifies the job")
    return {**request, "job": {**request["job"], "name": name}}


def job_id_of(response: HttpResponse) -> int:
    """Return the id of the new job. Raises `Rejected`, or `SlurmError` for an unknown outcome."""
    body = response.body
    job_id = body.get("job_id") if isinstance(body, dict) else None
    # Errors next to an id are the scheduler's: the job is accepted and waits. Versions from v0.0.39
    # on return 500 in this case.
    if isinstance(job_id, int) and job_id > 0:
        return job_id
    known = {refusal_of(number) for number in errors_of_rest(body)}
    if known == {SlurmRejection.FINAL} and is_full(response.text):
        known = {SlurmRejection.FOR_NOW}
    if not known and response.status in CREDENTIALS_REFUSED:
        raise Rejected(f"Slurm refuses the credentials: {_shown(response)}", credentials=True)
    if known == {SlurmRejection.FINAL} or (not known and response.status in _REFUSED):
        raise Rejected(f"Slurm refuses the job: {_shown(response)}")
    if known == {SlurmRejection.FOR_NOW}:
        raise Rejected(
            f"Slurm refuses the job for now: {_shown(response)}", retriable=True, retry_after=response.retry_after
        )
    raise SlurmError(
        f"slurmrestd's response does not show whether it created the job: {_shown(response)}",
        retry_after=response.retry_after,
    )


def _shown(response: HttpResponse) -> str:
    return (
        f"{response.status} {shown_errors_of_rest(response.body)[:400]}"
        if errors_of_rest(response.body)
        else str(response)
    )
