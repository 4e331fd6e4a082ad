"""Scenarios of the benchmark: their objects, their size, and their place on the page."""

import re
from pathlib import Path
from unittest.mock import Mock

import pytest

from bench.client import Timeline
from bench.document import DOCUMENT, scenario_markers, write_scenario
from bench.kinds import LABEL_END, Kind, PodEnd
from bench.results import Machine, ScenarioResult
from bench.rounds import BenchError, Load
from bench.scenarios import SCENARIOS, Scenario, Table
from bench.scenarios.base import Trial

RESULT = ScenarioResult(
    name="happy",
    command="make bench",
    date="2030-01-01",
    machine=Machine("a processor", 2, 8.0, "3.13", "v1", "v2"),
    table=Table(["kind", "runs"], [["TaskRun", "5"]]),
)


def test_page_has_one_place_and_the_full_command_for_each_scenario() -> None:
    text = DOCUMENT.read_text()
    assert set(re.findall(r"<!-- scenario (\S+) -->", text)) == set(SCENARIOS)
    for name in SCENARIOS:
        begin, end = scenario_markers(name)
        assert text.count(begin) == text.count(end) == 1
        assert text.index(begin) < text.index(end)
        assert f"--scenario {name}" in text


def test_write_scenario_changes_only_its_own_place(tmp_path: Path) -> None:
    path = tmp_path / "performance.md"
    places = {
        name: "\n".join([scenario_markers(name)[0], "old", scenario_markers(name)[1]]) for name in ("happy", "state")
    }
    path.write_text("\n".join(places.values()))
    write_scenario(RESULT, path)
    text = path.read_text()
    assert places["state"] in text
    assert places["happy"] not in text
    assert "| TaskRun | 5 |" in text
    assert "`make bench`, 2030-01-01: a processor, 2 cores" in text


def test_write_scenario_without_its_place_raises_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "performance.md"
    path.write_text("no markers")
    with pytest.raises(ValueError, match="must contain the markers"):
        write_scenario(RESULT, path)
    assert path.read_text() == "no markers"


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=list(SCENARIOS))
def test_scenario_is_smaller_on_the_page_than_by_default(scenario: Scenario) -> None:
    assert 0 <= scenario.page_runs <= scenario.runs
    assert 0 <= scenario.page_seconds <= scenario.seconds


def test_load_fails_the_first_pod_of_every_fifth_run() -> None:
    ends = [Load(10, fails_every=5).end_of(number) for number in range(10)]
    assert ends.count(PodEnd.FAILS_ONCE) == 2
    assert {Load(10).end_of(number) for number in range(10)} == {PodEnd.SUCCEEDS}


def a_trial(**pods: set[str]) -> Trial:
    timeline = Timeline(len(pods))
    timeline.pods = pods
    return Trial(Mock(), Kind.TASKRUN, "bench", Mock(), timeline)


def test_trial_rejects_a_run_with_a_second_pod() -> None:
    a_trial(one={"uid-1"}, two={"uid-2"}).check()
    with pytest.raises(BenchError, match="1 runs got a second pod, such as two"):
        a_trial(one={"uid-1"}, two={"uid-2", "uid-3"}).check()


def test_trial_rejects_a_failed_run() -> None:
    trial = a_trial(one={"uid-1"})
    trial.timeline.failed.add("one")
    with pytest.raises(BenchError, match="1 runs failed"):
        trial.check()


@pytest.mark.parametrize("kind", [Kind.TASKRUN, Kind.JOB])
def test_object_that_fails_once_has_the_label_and_one_retry(kind: Kind) -> None:
    spec = kind.build_object("run", PodEnd.FAILS_ONCE)["spec"]
    assert spec["template"]["metadata"]["labels"] == {LABEL_END: "fails-once"}
    retries = spec["backoffLimitPerIndex"] if kind is Kind.JOB else spec["retry"]["budgets"]["application"]
    assert retries == 1
    assert "metadata" not in kind.build_object("run")["spec"]["template"]
