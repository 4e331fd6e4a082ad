"""`orphans --cancel`: the TaskRun that it creates."""

from typing import Any

import pytest

from builders import a_taskrun
from reattach.api.names import ANNOTATION_CLEANUP_OF
from reattach.api.taskrun import ExternalJobStatus
from reattach.cli.errors import CommandError
from reattach.cli.orphan_cleanup import adoptions_of, build_cleanup, cleanup_name, ended_jobs_of
from reattach.cli.orphans import OrphanRow


def a_row(key: str = "load", handle: str | None = "job-7", adapter: str | None = "http", **fields: Any) -> OrphanRow:
    about = {"namespace": "data", "taskrun": "load", "record": "load-01234-orphans", "generation": 1}
    return OrphanRow(**{**about, "key": key, "handle": handle, "adapter": adapter, **fields})


def test_cleanup_has_the_template_and_what_a_cleanup_pod_needs_and_adopts_the_jobs() -> None:
    spec = {
        "template": {"spec": {"containers": []}},
        "container": "task",
        "retry": {"budgets": {"application": 2}},
        "submission": {"idempotencyKey": "k"},
        "deadlines": {"runSeconds": 60, "lostSeconds": 5},
        "cleanup": {"onCancel": "Orphan", "command": ["cancel"], "budget": 1, "adopted": "Orphan"},
        "resolutions": [{}],
        "ttl": {"cancelledSeconds": 0},
        "suspend": True,
        "managedBy": "reattach.dev/operator",
    }
    labels = {"team": "a", "kueue.x-k8s.io/queue-name": "q"}
    adopt = adoptions_of([a_row()])
    manifest = build_cleanup(
        {"metadata": {"name": "load", "namespace": "data", "labels": labels}, "spec": spec}, adopt, "load-cleanup"
    )
    assert manifest["metadata"] == {
        "name": "load-cleanup",
        "namespace": "data",
        "labels": {"team": "a"},
        "annotations": {ANNOTATION_CLEANUP_OF: "load"},
    }
    assert manifest["spec"] == {
        "template": spec["template"],
        "container": "task",
        "managedBy": "reattach.dev/operator",
        "deadlines": {"lostSeconds": 5},
        "cancel": True,
        "cleanup": {"command": ["cancel"], "budget": 1, "onCancel": "Cancel", "adopted": "Cancel"},
        "adopt": [{"key": "load", "handle": "job-7", "adapter": "http"}],
    }


def test_each_job_is_adopted_once_under_a_key_of_its_own() -> None:
    long = "x" * 128
    rows = [
        a_row(),
        a_row(generation=2, handle="job-8"),
        a_row(),
        a_row(adapter="ray"),
        a_row("lost", None),
        a_row("old", "job-9", ""),
        a_row(long, "job-11"),
        a_row(long, "job-10"),
    ]
    found = [(one["key"], one["handle"], one["adapter"]) for one in adoptions_of(rows)]
    assert found == [
        ("load", "job-7", "http"),
        ("load #2", "job-8", "http"),
        ("load #3", "job-7", "ray"),
        (long, "job-11", "http"),
        (long[:125] + " #2", "job-10", "http"),
    ]
    assert len(adoptions_of([a_row(handle=f"job-{number}") for number in range(70)])) == 64


def test_jobs_without_a_handle_or_adapter_are_refused() -> None:
    with pytest.raises(CommandError, match="has no known handle or adapter, so no pod can cancel it"):
        adoptions_of([a_row(handle=None), a_row(adapter=None)])


@pytest.mark.parametrize(
    "name, number, created",
    [("load", 1, "load-cleanup"), ("load", 2, "load-cleanup-2"), ("a" * 39 + "-bcdefgh", 1, "a" * 39 + "-cleanup")],
)
def test_name_of_the_cleanup_fits(name: str, number: int, created: str) -> None:
    assert cleanup_name(name, number) == created
    assert len(created) <= 48


def test_only_jobs_that_have_ended_count_as_ended() -> None:
    jobs = [
        ExternalJobStatus(key=state, generation=1, state=state, handle=state, adapter="http")
        for state in ("Succeeded", "Failed", "Cancelled", "Orphaned", "Active", "Unknown", "Detached")
    ]
    ended = ended_jobs_of(a_taskrun().with_status(external_jobs=tuple(jobs)).build())
    assert ended == {("http", state): state for state in ("Succeeded", "Failed", "Cancelled")}
