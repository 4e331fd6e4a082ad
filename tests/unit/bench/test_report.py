"""Tables and plot of the benchmark, from made-up results."""

from pathlib import Path
from xml.etree import ElementTree as ET

import msgspec
import pytest

from bench.document import BEGIN, END, document
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


def test_throughput_has_the_spread_and_the_ratio_of_the_same_round() -> None:
    rows = rows_of(report_of(some_results()), "TaskRun")
    assert rows[0] == "| TaskRun | 1,000 (750-1,500) |"
    assert rows[1] == "| TaskRun | 0.50 (0.50-0.50) | 1.00 (1.00-1.00) | 1.00 (1.00-1.00) | 1.00 (1.00-1.00) |"


def test_the_headline_compares_taskruns_with_jobs() -> None:
    assert "**While Kubernetes runs one Job, Reattach runs 0.50 (0.50-0.50) TaskRuns.**" in report_of(some_results())
    assert "In the time" not in report_of(some_results([Kind.JOB, Kind.BARE]))


def test_every_call_of_rounds_or_count_has_a_row_and_they_are_summed() -> None:
    rows = [row for row in rows_of(report_of(some_results()), "TaskRun") if "`" in row or "| all |" in row]
    assert rows == [
        "| TaskRun | `create pods` | 1.00 | 1.00 | 2,000 | 4,000 |",
        "| TaskRun | `get pods (404)` | 0.50 | 0.00 | 0 | 0 |",
        "| TaskRun | all | 1.50 | 1.00 | 2,000 | 4,000 |",
    ]


def test_without_jobs_there_is_no_ratio() -> None:
    assert rows_of(report_of(some_results([Kind.TASKRUN])), "TaskRun")[1] == "| TaskRun | - | - | - | - |"


def test_the_table_rows_are_as_wide_as_their_heads() -> None:
    widths: set[int] = set()
    for line in [*report_of(some_results()).splitlines(), ""]:
        widths = widths | {line.count("|")} if line.startswith("|") else set()
        assert len(widths) <= 1, line


@pytest.mark.parametrize("kinds", [list(Kind), [Kind.JOB], [Kind.TASKRUN, Kind.BARE]])
def test_the_plot_is_svg_in_which_every_bar_and_text_is_inside(kinds: list[Kind]) -> None:
    root = ET.fromstring(plot_of(some_results(kinds)))
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    for bar in root.iter(f"{SVG}rect"):
        assert float(bar.get("x", 0)) + float(bar.attrib["width"]) <= width
        assert float(bar.get("y", 0)) + float(bar.attrib["height"]) <= height
    labels = [text for text in root.iter(f"{SVG}text") if text.get("text-anchor") is None]
    assert all(float(text.attrib["x"]) <= RIGHT for text in labels)


def test_results_survive_their_file() -> None:
    results = some_results()
    assert msgspec.json.decode(msgspec.json.encode(results), type=Results) == results


def test_only_what_is_between_the_marks_of_the_document_changes(tmp_path: Path) -> None:
    path, plot = tmp_path / "performance.md", tmp_path / "plot.svg"
    path.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    document(some_results(), path, plot)
    text = path.read_text()
    assert text.startswith(f"before\n{BEGIN}\n")
    assert text.endswith(f"\n{END}\nafter\n")
    assert "old" not in text
    assert "1,000 (750-1,500)" in text
    assert plot.read_text() == plot_of(some_results())


def test_a_document_without_marks_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "performance.md"
    path.write_text("no marks")
    with pytest.raises(ValueError, match="must have the marks"):
        document(some_results(), path, tmp_path / "plot.svg")
    assert path.read_text() == "no marks"
