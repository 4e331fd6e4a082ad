"""Table of docs/what-happens-when.md, held against recorded statuses of pods.

Each row has one file in `golden/`. `make golden` records those that a local cluster can produce.
"""

import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from builders import (
    SEALED,
    START,
    APod,
    a_job,
    a_pod,
    a_state,
    a_summary,
    a_taskrun,
    an_end,
    plan_of,
    status_of,
)
from reattach.api.state import JobReference, ReportedEnd
from reattach.api.taskrun import Attempt
from reattach.planner.plan import AbsentState

REPOSITORY = Path(__file__).parents[3]
PAGE = (REPOSITORY / "docs/what-happens-when.md").read_text()
FILES = {path.stem: json.loads(path.read_text()) for path in sorted((Path(__file__).parent / "golden").glob("*.json"))}
LATER = 3600
"""Seconds after the last time in a status, so that each deadline has passed."""
WAITS = ReportedEnd(
    attempt=1,
    pod_uid="pod-1",
    time=START,
    kind="Waiting",
    retry_after_seconds=600,
    job=JobReference(key="load", generation=1),
)
STATES: dict[str, Any] = {
    "Opened": a_state(1),
    "Completed": a_state(1, completed_by=1),
    "Held": a_state(1, jobs=[a_job(None, held=True, holds=1)]),
    "Fenced": a_state(1, pod_uid="another"),
    "Lost": AbsentState(),
    "Permanent": a_state(1, end=an_end("Permanent", "no such table")),
    "Sealed": a_state(1, seal=SEALED),
    "Suspended": a_state(1, seal=SEALED),
    "Waiting": msgspec.structs.replace(a_state(1, jobs=[a_job("job-1")]), end=WAITS),
    "WaitingForNothing": msgspec.structs.replace(a_state(1), end=WAITS),
}


def rows() -> dict[str, tuple[str, ...]]:
    """Return (cause, reason, charged to) by the first cell of each row of the page."""
    table = PAGE.partition("<!-- golden -->")[2].partition("<!-- end of golden -->")[0]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| ")]
    found = [(first, *others) for first, *others in cells if first not in {"what happens", "---"}]
    assert len({first for first, *_ in found}) == len(found), "each row is listed once"
    return {first: tuple(others) for first, *others in found}


def pod_of(content: dict[str, Any]) -> APod:
    """Return the recorded pod as the first attempt of the TaskRun of the builders."""
    pod = a_pod()
    return APod(1, {**content["metadata"], **_identity(pod)}, content["spec"], content["status"])


def _identity(pod: APod) -> dict[str, Any]:
    return {key: pod.metadata[key] for key in ("name", "namespace", "uid", "annotations", "finalizers")}


def seconds_after(content: dict[str, Any]) -> float:
    """Return a time at which each deadline of the pod has passed."""
    stamps = re.findall(r'"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ)"', json.dumps(content))
    last = max((datetime.fromisoformat(stamp) for stamp in stamps), default=START)
    return (last - START).total_seconds() + LATER


def attempt_of(golden: dict[str, Any]) -> Attempt:
    """Return the attempt as the planner records it."""
    state = STATES.get(golden.get("state", ""), AbsentState())
    taskrun = a_taskrun(**golden.get("spec", {}))
    if "state" in golden:
        taskrun = taskrun.with_state()
    if golden.get("status") == "Running":
        taskrun = taskrun.with_status(status_of(plan_of(taskrun, a_pod().running())))
    if "before" in golden:
        plan = plan_of(taskrun, pod_of(golden["before"]), now=seconds_after(golden["before"]), summary=a_summary())
        taskrun = taskrun.with_status(status_of(plan))
    pods = [] if golden["pod"] is None else [pod_of(golden["pod"])]
    evictions = {"pod-1": golden.get("event")}
    plan = plan_of(taskrun, *pods, now=seconds_after(golden), state=state, evictions=evictions)
    return status_of(plan).attempts[0]


def test_page_has_a_row_for_each_file_and_a_file_for_each_row() -> None:
    named = [golden["row"] for golden in FILES.values()]
    assert sorted(named) == sorted(rows())


@pytest.mark.parametrize("name", FILES)
def test_classification_of_a_recorded_end_is_that_of_its_row(name: str) -> None:
    golden = FILES[name]
    attempt = attempt_of(golden)
    cause, reason, charged_to = rows()[golden["row"]]
    assert (attempt.cause, attempt.reason, attempt.charged_to or "") == (cause, reason, charged_to)


@pytest.mark.parametrize("name", FILES)
def test_file_names_its_source(name: str) -> None:
    assert re.match(r"(recorded on Kubernetes v1\.\d+\.\d+$|built from )", FILES[name]["source"])
