"""Write results to docs/performance.md: `python -m bench.document build/bench/results.json`.

`build/bench/scenarios.json` has the results of scenarios.
"""

import re
import sys
from pathlib import Path

import msgspec

from bench.plot import plot_of
from bench.report import report_of, scenario_report_of
from bench.results import Results, ScenarioResult
from controlplane import REPOSITORY

DOCUMENT = REPOSITORY / "docs/performance.md"
PLOT = REPOSITORY / "docs/images/performance.svg"
BEGIN, END = "<!-- results -->", "<!-- end of results -->"


def write_document(results: Results, path: Path = DOCUMENT, plot: Path = PLOT) -> None:
    """Replace the text between the markers of the document, and the plot."""
    replace_between(path, BEGIN, END, report_of(results))
    plot.write_text(plot_of(results))


def write_scenario(result: ScenarioResult, path: Path = DOCUMENT) -> None:
    """Replace the text between the markers of the scenario."""
    replace_between(path, *scenario_markers(result.name), scenario_report_of(result))


def scenario_markers(name: str) -> tuple[str, str]:
    """Return the markers around the results of a scenario."""
    return f"<!-- scenario {name} -->", f"<!-- end of scenario {name} -->"


def replace_between(path: Path, begin: str, end: str, content: str) -> None:
    """Replace the text between two markers of a document.

    Raises:
        ValueError: a marker is missing.
    """
    text = path.read_text()
    if begin not in text or end not in text:
        raise ValueError(f"{path} must contain the markers {begin} and {end}")
    shown = f"{begin}\n\n{content}\n\n{end}"
    path.write_text(re.sub(f"{begin}.*?{end}", lambda _: shown, text, flags=re.DOTALL))


if __name__ == "__main__":
    found = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Results | list[ScenarioResult])
    if isinstance(found, Results):
        write_document(found)
    else:
        for each in found:
            write_scenario(each)
