"""Write the results to docs/performance.md: `python -m bench.document build/bench/results.json`."""

import re
import sys
from pathlib import Path

import msgspec

from bench.plot import plot_of
from bench.report import report_of
from bench.results import Results
from controlplane import REPOSITORY

DOCUMENT = REPOSITORY / "docs/performance.md"
PLOT = REPOSITORY / "docs/images/performance.svg"
BEGIN, END = "<!-- results -->", "<!-- end of results -->"


def write_document(results: Results, path: Path = DOCUMENT, plot: Path = PLOT) -> None:
    """Replace the text between the markers of the document, and the plot."""
    text = path.read_text()
    if BEGIN not in text or END not in text:
        raise ValueError(f"{path} must contain the markers {BEGIN} and {END}")
    shown = f"{BEGIN}\n\n{report_of(results)}\n\n{END}"
    path.write_text(re.sub(f"{BEGIN}.*?{END}", lambda _: shown, text, flags=re.DOTALL))
    plot.write_text(plot_of(results))


if __name__ == "__main__":
    write_document(msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Results))
