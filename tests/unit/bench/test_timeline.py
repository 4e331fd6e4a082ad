"""Completeness of runs, from watch events."""

import json
from itertools import count
from typing import Any

from bench.client import Timeline


def event(kind: str = "MODIFIED", *, owner: str | None = None, name: str = "", uid: str = "", **status: Any) -> bytes:
    owners = [] if owner is None else [{"name": owner, "controller": True}]
    finalizers = status.pop("finalizers", [])
    metadata = {"name": name, "uid": uid, "ownerReferences": owners, "finalizers": finalizers}
    return json.dumps({"type": kind, "object": {"metadata": metadata, "status": status}}).encode()


def timeline(runs: int = 1) -> Timeline:
    clock = count(1.0)
    return Timeline(runs, lambda: next(clock))


def test_taskrun_is_complete_with_outcome_and_released_pod() -> None:
    seen = timeline()
    seen.record_create("run")
    seen.observe_pod(event("ADDED", owner="run", phase="Pending", finalizers=["f"]))
    seen.observe_pod(event(owner="run", phase="Succeeded", finalizers=["f"]))
    seen.observe_run(event(name="run", outcome="Succeeded"))
    assert not seen.complete.is_set()
    seen.observe_pod(event(owner="run", phase="Succeeded"))
    assert seen.complete.is_set()
    assert (seen.sent["run"], seen.pod_created["run"], seen.pod_ended["run"], seen.outcome["run"]) == (1, 2, 3, 4)
    assert seen.seconds == 4


def test_job_is_complete_with_condition_complete() -> None:
    seen = timeline()
    seen.record_create("run")
    seen.observe_pod(event(owner="run", phase="Succeeded"))
    seen.observe_run(event(name="run", conditions=[{"type": "SuccessCriteriaMet", "status": "True"}]))
    assert not seen.complete.is_set()
    seen.observe_run(event(name="run", conditions=[{"type": "Complete", "status": "True"}]))
    assert seen.complete.is_set()
    assert not seen.failed


def test_failed_runs_are_recorded() -> None:
    seen = timeline(2)
    seen.observe_run(event(name="a", outcome="Failed"))
    seen.observe_run(event(name="b", conditions=[{"type": "Failed", "status": "True"}]))
    assert seen.failed == {"a", "b"}


def test_later_event_does_not_change_a_recorded_time() -> None:
    seen = timeline()
    seen.observe_pod(event("ADDED", owner="run", phase="Pending"))
    seen.observe_pod(event(owner="run", phase="Running"))
    assert seen.pod_created == {"run": 1}


def test_pods_without_a_controller_and_bookmarks_are_ignored() -> None:
    seen = timeline()
    seen.observe_pod(event("ADDED", phase="Pending"))
    seen.observe_run(event("BOOKMARK"))
    assert not seen.pod_created
    assert not seen.outcome


def test_taskrun_with_two_pods_is_complete_once_the_second_pod_is_released() -> None:
    seen = timeline()
    seen.record_create("run")
    seen.observe_pod(event(owner="run", uid="1", phase="Failed"))
    seen.observe_pod(event("ADDED", owner="run", uid="2", phase="Pending", finalizers=["f"]))
    seen.observe_run(event(name="run", outcome="Succeeded"))
    assert not seen.complete.is_set()
    seen.observe_pod(event(owner="run", uid="2", phase="Succeeded"))
    assert seen.complete.is_set()
    assert seen.pods == {"run": {"1", "2"}}


def test_deleted_pod_counts_as_released() -> None:
    seen = timeline()
    seen.observe_pod(event("ADDED", owner="run", uid="1", phase="Pending", finalizers=["f"]))
    seen.observe_run(event(name="run", outcome="Succeeded"))
    assert not seen.complete.is_set()
    seen.observe_pod(event("DELETED", owner="run", uid="1", phase="Failed"))
    assert seen.complete.is_set()


def test_running_pod_is_reported_once() -> None:
    seen, reported = timeline(), []
    seen.on_running = lambda run, pod: reported.append((run, pod))
    for phase in ("Pending", "Running", "Running"):
        seen.observe_pod(event(owner="run", name="pod", phase=phase))
    assert reported == [("run", "pod")]
    assert seen.running == {"run": "pod"}
    seen.observe_pod(event(owner="run", name="pod", phase="Succeeded"))
    assert seen.running == {}
