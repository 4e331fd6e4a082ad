"""Whether an external job may be deleted with its TaskRun."""

from typing import Any

import msgspec
import pytest

from reattach.state.owner import Owner


def owner(**spec: Any) -> Owner:
    return msgspec.convert({"metadata": {"uid": "u1"}, "spec": spec}, Owner)


@pytest.mark.parametrize("spec", [{}, {"cleanup": {"onDelete": "Cancel"}}, {"cleanup": {"adopted": "Orphan"}}])
def test_job_of_a_run_that_cancels_its_jobs_is_not_kept(spec: dict[str, Any]) -> None:
    assert owner(**spec).why_jobs_are_kept(detached=False) == ""


@pytest.mark.parametrize(
    "spec,detached,why",
    [
        ({"submission": {"idempotencyKey": "k"}}, False, "spec.submission.idempotencyKey is set"),
        ({"submission": {"idempotencyKey": "k"}, "cleanup": {"onDelete": "Cancel"}}, False, "idempotencyKey"),
        ({"cleanup": {"onDelete": "Orphan"}}, False, "spec.cleanup.onDelete is Orphan"),
        ({"cleanup": {"onCancel": "Orphan"}}, False, "spec.cleanup.onCancel is Orphan"),
        ({"cleanup": {"onFailure": "Orphan"}}, False, "spec.cleanup.onFailure is Orphan"),
        ({}, True, "the job is detached"),
    ],
)
def test_job_that_may_outlive_its_taskrun_is_kept(spec: dict[str, Any], detached: bool, why: str) -> None:
    assert why in owner(**spec).why_jobs_are_kept(detached=detached)
