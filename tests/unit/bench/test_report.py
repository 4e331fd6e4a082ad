"""Tables and plot of the benchmark, from invented results."""

from pathlib import Path
from xml.etree import ElementTree as ET

import msgspec
import pytest

from bench.document import BEGIN, END, write_document
from bench.kinds import Kind
from bench.plot import RIGHT, plot_of
from bench.report import report_of
from bench.results import Machine, Results, summaries_of
from bench.rounds import Call, Phase

SVG = "{http://www.w3.org/2000/svg}"
CONTROLLERS = {Kind.TASKRUN: "operator", Kind.JOB: "controller manager", Kind.BARE: "loop"}


def a_phase(kind: Kind, seconds: float) -> Phase:
    cpu = {CONTROLLERS[kind]: 5.0, "API server": 30.0, "etcd": 3.0}
    memory = {CONTROLLERS[kind]: 90.0, "API server": 600.0}
    return Phase(kind, 100, seconds, [0.01, 0.02], [0.2], cpu, memory, {"create pods": 1.0, "get pods (404)": 0.5})


def some_results(kinds: list[Kind] | None = None) -> Results:
    kinds = kinds or list(Kind)
    seconds = {Kind.TASKRUN: 4.0, Kind.JOB: 2.0, Kind.BARE: 1.5}
    rounds = [[a_phase(kind, seconds[kind] * slow) for kind in kinds] for slow in (1.0, 2.0, 1.5)]
    calls = {kind: [Call("create pods", 1.0, 2000.0, 4000.0)] for kind in kinds}
    return Results(
        command="make bench",
        date="2030-01-01",
        runs=100,
        rounds=3,
        paced_per_second=10,
        counted_runs=50,
        defaults=False,
        policies=True,
        machine=Machine("a processor", 2, 8.0, "3.13", "v1", "v2"),
        kinds=summaries_of(rounds, [a_phase(kind, 10.0) for kind in kinds], calls, kinds),
    )


def rows_of(report: str, label: str) -> list[str]:
    return [line for line in report.splitlines() if line.startswith(f"| {label} |")]


def test_report_shows_throughput_with_spread_and_ratio_of_the_same_round() -> None:
    rows = rows_of(report_of(some_results()), "TaskRun")
    assert rows[0] == "| TaskRun | 1,000 (750-1,500) |"
    assert rows[1] == "| TaskRun | 0.50 (0.50-0.50) | 1.00 (1.00-1.00) | 1.00 (1.00-1.00) | 1.00 (1.00-1.00) |"


def test_report_headline_compares_taskruns_with_jobs_if_both_were_measured() -> None:
    assert "**While Kubernetes runs one Job, Reattach runs 0.50 (0.50-0.50) TaskRuns.**" in report_of(some_results())
    assert "While Kubernetes" not in report_of(some_results([Kind.JOB, Kind.BARE]))


def test_report_has_a_row_for_every_call_and_a_total() -> None:
    rows = [row for row in rows_of(report_of(some_results()), "TaskRun") if "`" in row or "| all |" in row]
    assert rows == [
        "| TaskRun | `create pods` | 1.00 | 1.00 | 2,000 | 4,000 |",
        "| TaskRun | `get pods (404)` | 0.50 | 0.00 | 0 | 0 |",
        "| TaskRun | all | 1.50 | 1.00 | 2,000 | 4,000 |",
    ]


def test_report_shows_the_runs_that_one_core_serves_and_the_cores_for_ten_times_the_rate() -> None:
    report = report_of(some_results())
    assert "10 times the measured rate is 10,000 runs a minute. The operator then sends 167 writes a second" in report
    assert rows_of(report, "operator") == ["| operator | 5.0 | 12,000 | 0.8 |"]
    assert rows_of(report, "API server") == ["| API server | 30.0 | 2,000 | 5.0 |"]
    assert "Bounds of TaskRuns" not in report_of(some_results([Kind.JOB]))


def test_report_without_jobs_has_no_ratio() -> None:
    assert rows_of(report_of(some_results([Kind.TASKRUN])), "TaskRun")[1] == "| TaskRun | - | - | - | - |"


def test_report_tables_have_as_many_cells_in_every_row_as_in_the_head() -> None:
    widths: set[int] = set()
    for line in [*report_of(some_results()).splitlines(), ""]:
        widths = widths | {line.count("|")} if line.startswith("|") else set()
        assert len(widths) <= 1, line


@pytest.mark.parametrize("kinds", [list(Kind), [Kind.JOB], [Kind.TASKRUN, Kind.BARE]])
def test_plot_is_svg_with_every_bar_and_text_inside_the_view_box(kinds: list[Kind]) -> None:
    root = ET.fromstring(plot_of(some_results(kinds)))
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    for bar in root.iter(f"{SVG}rect"):
        assert float(bar.get("x", 0)) + float(bar.attrib["width"]) <= width
        assert float(bar.get("y", 0)) + float(bar.attrib["height"]) <= height
    labels = [text for text in root.iter(f"{SVG}text") if text.get("text-anchor") is None]
    assert all(float(text.attrib["x"]) <= RIGHT for text in labels)


def test_results_round_trip_through_json() -> None:
    results = some_results()
    assert msgspec.json.decode(msgspec.json.encode(results), type=Results) == results


def test_write_document_changes_only_the_text_between_the_markers(tmp_path: Path) -> None:
    path, plot = tmp_path / "performance.md", tmp_path / "plot.svg"
    path.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_document(some_results(), path, plot)
    text = path.read_text()
    assert text.startswith(f"before\n{BEGIN}\n")
    assert text.endswith(f"\n{END}\nafter\n")
    assert "old" not in text
    assert "1,000 (750-1,500)" in text
    assert plot.read_text() == plot_of(some_results())


def test_write_document_without_markers_raises_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "performance.md"
    path.write_text("no markers")
    with pytest.raises(ValueError, match="must contain the markers"):
        write_document(some_results(), path, tmp_path / "plot.svg")
    assert path.read_text() == "no markers"
