"""Each adapter passes on `Retry-After` of a response that is no success."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest

from reattach.adapters.base import Adapter, Rejected, Submission
from reattach.adapters.http import (
    CancelRequest,
    Description,
    HttpJobs,
    LookupRequest,
    States,
    StatusRequest,
    SubmitRequest,
)
from reattach.adapters.http_client import CallError, HttpResponse
from reattach.adapters.kubernetes import TASKRUN, Access, KubernetesObjects
from reattach.adapters.ray import RayJobs
from reattach.adapters.slurm import SlurmRest
from reattach.task.outage import RETRY_AFTER_SECONDS_MAX, retry_after_of

DESCRIPTION = Description(
    address="http://jobs.invalid",
    submit=SubmitRequest(path="/jobs", handle="id", body={"tag": "{token}"}),
    status=StatusRequest(
        path="/jobs/{handle}",
        state="state",
        states=States(active=("R",), succeeded=("S",), failed=("F",)),
        not_found_says="no job",
    ),
    cancel=CancelRequest(path="/jobs/{handle}/cancel"),
    look_up=LookupRequest(
        path="/jobs?tag={token}", items="jobs", carries="tag", handle="id", settling_seconds=1, retention_seconds=None
    ),
)
ACCESS = Access(server="https://api.invalid", namespace="team", ca=None, token="t")
ADAPTERS: dict[str, tuple[Callable[[httpx.BaseTransport], Adapter], object, str]] = {
    "http": (lambda transport: HttpJobs(DESCRIPTION, transport=transport), {}, "job-1"),
    "kubernetes": (
        lambda transport: KubernetesObjects(TASKRUN, access=ACCESS, transport=transport),
        {"apiVersion": "reattach.dev/v1alpha1", "kind": "TaskRun", "spec": {}},
        "team/reattach-t-1/u1",
    ),
    "ray": (
        lambda transport: RayJobs("http://ray.invalid", durable=True, transport=transport),
        {"entrypoint": "true"},
        "reattach-t-1",
    ),
    "slurmrestd": (
        lambda transport: SlurmRest(
            "http://slurm.invalid",
            user="u",
            token=lambda: "t",
            version="v0.0.38",
            accounting=None,
            transport=transport,
        ),
        {"script": "#!/bin/sh\ntrue", "job": {}},
        "7/reattach-t-1",
    ),
}


def status_or_error(jobs: Adapter, handle: str) -> object:
    """Return the status, or the error that the SDK takes for `Unknown`."""
    try:
        return jobs.status(handle)
    except CallError as error:
        return error


def responding(name: str, status: int) -> Adapter:
    response = {"status_code": status, "headers": {"Retry-After": "7"}, "text": "busy"}
    return ADAPTERS[name][0](httpx.MockTransport(lambda _request: httpx.Response(**response)))  # type: ignore[arg-type]


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("name", ADAPTERS)
def test_every_method_passes_the_seconds_on(name: str, status: int) -> None:
    jobs, (_, request, handle) = responding(name, status), ADAPTERS[name]
    submission = Submission("t-1", request, "load", 1, "team", "nightly")
    calls: tuple[Callable[[], object], ...] = (
        lambda: jobs.submit(submission),
        lambda: jobs.look_up(submission),
        lambda: jobs.cancel(handle),
    )
    for call in calls:
        with pytest.raises((CallError, Rejected)) as caught:
            call()
        assert retry_after_of(caught.value) == 7
    assert retry_after_of(status_or_error(jobs, handle)) == 7


NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)


def date(seconds: float) -> str:
    return format_datetime(NOW + timedelta(seconds=seconds), usegmt=True)


@pytest.mark.parametrize(
    "headers,seconds",
    [
        ({}, None),
        ({"Retry-After": "120"}, 120),
        ({"retry-after": " 0 "}, 0),
        ({"Retry-After": date(90), "Date": date(0)}, 90),
        ({"Retry-After": date(-90), "Date": date(0)}, 0),
        ({"Retry-After": date(3_000_000_000), "Date": date(0)}, 3_000_000_000),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "-1"}, None),
        ({"Retry-After": "1.5"}, None),
        ({"Retry-After": "١٢"}, None),
        ({"Retry-After": "Mon, 99 Nov 2026 12:00:00 GMT"}, None),
        ({"Retry-After": ""}, None),
    ],
)
def test_header_is_read_as_seconds_or_as_a_date(headers: dict[str, str], seconds: float | None) -> None:
    assert HttpResponse(429, "", headers).retry_after == seconds


def test_date_without_the_servers_clock_counts_from_our_own() -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=3600), usegmt=True)
    found = HttpResponse(429, "", {"Retry-After": later}).retry_after
    assert found is not None
    assert 3000 < found <= 3600


@pytest.mark.parametrize(
    "seconds,expected", [(None, 0), ("7", 0), (-1, 0), (7, 7), (1e9, RETRY_AFTER_SECONDS_MAX), (float("nan"), 0)]
)
def test_attribute_of_any_error_is_bounded(seconds: object, expected: float) -> None:
    error = ValueError("busy")
    error.retry_after = seconds  # type: ignore[attr-defined] # an adapter may set it
    assert retry_after_of(error) == expected


def test_attribute_of_a_cause_counts() -> None:
    error = RuntimeError("the adapter's own")
    error.__cause__ = CallError("busy", retry_after=7)
    assert retry_after_of(error) == 7
