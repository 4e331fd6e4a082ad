"""One external job, whoever dies and whenever: at each step of submitting once each of these is killed, counted by the job server.

The other side takes a name once, so no life may need a person. `make test` lives two of these lives, `make test-all` (REATTACH_ALL=1) all: the
ten of a column side by side, each stalled at its step until all are and the blow falls.
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from conformance.tables import CRASHES, keep
from hang_scenarios import ALL, LOST_NODE, NAMES, NODE, HangScenario, Processes, force, lost_node, start_scenarios
from realcluster import Cluster
from reattach.task.job_client import Step

STEPS = tuple(Step)
CANCELLING = (Step.BEFORE_CANCEL, Step.AFTER_CANCEL)
KNOWN = (Step.AFTER_HANDLE, Step.WATCHING, Step.BEFORE_OUTCOME, *CANCELLING)
"""Whoever comes next finds the handle stored, and no outcome."""

# A node takes a minute to be given up, whatever the step: once each before and after the request, and before and after the job's end.
COLUMNS: dict[str, tuple[Step, ...]] = {
    "pod": STEPS,
    "eviction": STEPS,
    "operator": STEPS,
    "operator-and-pod": STEPS,
    "state-api": STEPS,
    "state-api-and-pod": STEPS,
    "operator-state-api-and-pod": STEPS,
    "node": (Step.AFTER_INTENT, Step.AFTER_SUBMIT, Step.WATCHING, Step.BEFORE_OUTCOME),
}
SAMPLE: dict[str, tuple[Step, ...]] = {
    "eviction": (Step.AFTER_SUBMIT,),
    "operator-and-pod": (Step.AFTER_SUBMIT,),
    "state-api-and-pod": (Step.AFTER_INTENT,),
}
ATTEMPT_LIVES = ("operator", "state-api")
"""The attempt goes on, and finds nobody at first."""
HERE = COLUMNS if ALL else SAMPLE


class Deaths:
    """The lives of each column, begun and struck once, when the first of them is asked for."""

    def __init__(self, release: Cluster, namespace: str, until_over: ExitStack) -> None:
        self._namespace = namespace
        self._release = release
        self._until_over = until_over
        self._struck: set[str] = set()

    def come(self, column: str) -> None:
        """All lives of the column stalled at their steps, and the blow has fallen."""
        if column in self._struck:
            return
        self._struck.add(column)
        node = LOST_NODE if column == "node" else NODE
        scenarios = {
            f"{column}-{step}": HangScenario(NAMES, step, node, seconds=3600 if step in CANCELLING else 3)
            for step in HERE[column]
        }
        pods = start_scenarios(self._release, scenarios, self._namespace)
        processes = Processes(scenarios, node)
        if "operator" in column:
            self._release.kill("operator")
        if "state-api" in column:
            self._release.kill("server")
        match column:
            case "eviction":
                for pod in pods.values():
                    self._release.evict(pod, self._namespace)
            case _ if column in ATTEMPT_LIVES:
                processes.resume()
            case "node":
                self._until_over.enter_context(lost_node(self._release))
                processes.kill()
            case _:
                force(self._release, pods.values(), self._namespace)


@pytest.fixture(scope="module")
def deaths(release: Cluster, namespace: str) -> Iterator[Deaths]:
    try:
        with ExitStack() as until_over:
            yield Deaths(release, namespace, until_over)
    finally:
        release.let_go_of_held(namespace)


@pytest.mark.parametrize("column, step", [(column, step) for column, steps in HERE.items() for step in steps])
def test_there_is_one_job_whoever_dies_and_whenever(
    release: Cluster, namespace: str, deaths: Deaths, column: str, step: Step
) -> None:
    deaths.come(column)
    name = f"{column}-{step}"
    dies = column not in ATTEMPT_LIVES

    status = release.finished(name, namespace, seconds=240)["status"]

    (job,) = release.jobs(namespace, label=name)
    cancelled = step in CANCELLING
    assert status["outcome"] == "Succeeded"
    assert [attempt["cause"] for attempt in status["attempts"]] == ["Disruption"] * dies + ["Succeeded"]
    assert json.loads(status["result"]) == {"rows": 0 if cancelled else 7, "attempt": 1 + dies}
    assert [(known["handle"], known["state"]) for known in status["externalJobs"]] == [
        (job, "Cancelled" if cancelled else "Succeeded")
    ]
    counts = status["counts"]
    assert counts["submissions"] == 1
    assert counts["duplicatesAverted"] == (1 if dies and step is Step.AFTER_SUBMIT else 0)
    assert counts["reattachments"] == (1 if dies and step in {Step.AFTER_SUBMIT, *KNOWN} else 0)
    keep(CRASHES, name, [{"dies": column, "step": step.value, "came of it": "one job"}])
