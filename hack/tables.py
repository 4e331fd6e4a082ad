"""Build the tables of docs/conformance.md from the result files of the tests.

`make test-all` runs `python hack/tables.py build/tables`.
"""

import json
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from reattach.task.job_client import Step
from reattach.testing import CASES

DOCUMENT = Path(__file__).parent.parent / "docs/conformance.md"
ORDER = ("http", "kubernetes", "ray", "slurm")
MODES = (
    "name",
    "forgetting-name",
    "token",
    "expiring-token",
    "lookup",
    "lagging-lookup",
    "forgetting-lookup",
    "nothing",
)
"""Modes of the random histories."""
CASE_MODES = (*MODES, "while-open")
"""Modes of the cases."""

COMBINATIONS = 300
"""Minimum number of combinations of an adapter and a case; docs/conformance.md claims it."""
HISTORIES = 1000
"""Number of random histories in each mode."""
PROCESSES, RACES, FAILURES, ENDINGS = 40, 200, 74, 720
"""Numbers of histories with real processes, of races, of failures on the cluster, and of ends."""

ENDS = (
    "cancel",
    "deletion",
    "deletion in the foreground",
    "run deadline",
    "application budget used up",
    "PermanentFailure",
    "`resolve --fail`",
    "namespace deleted",
)
ENDING_RESULTS = ("no job", "ended", "orphaned", "held")

NONE = "-"
RESULTS = ("one job", "held", "")
"""Valid results of a case; empty if the case was not run."""
Part = Mapping[str, Any]


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """Return a Markdown table."""
    lines = [[str(cell) for cell in row] for row in (head, ["---"] * len(list(head)), *rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def sort_key(name: str) -> tuple[int, int, str]:
    """Return the sort key of a column: adapters and modes in the order of the documentation."""
    system, _, mode = name.partition(", ")
    return (
        next((index for index, known in enumerate(ORDER) if system.startswith(known)), len(ORDER)),
        CASE_MODES.index(mode) if mode in CASE_MODES else len(CASE_MODES),
        name,
    )


def adapters(parts: list[Part]) -> str:
    """Return the table with a row for each case and a column for each adapter."""
    parts = sorted(parts, key=lambda part: sort_key(part["name"]))
    seen = {row[0]: row[1] for part in parts for row in part["rows"]}
    cells = {(part["name"], row[0]): row[2] or NONE for part in parts for row in part["rows"]}
    names = [part["name"] for part in parts]
    combinations = count_combinations(parts)
    # Keep the order of the suite, because several workers wrote the files.
    order = [case.name for case in CASES]
    cases = sorted(seen, key=lambda case: order.index(case) if case in order else len(order))
    rows = ([case, seen[case], *(cells.get((name, case), NONE) for name in names)] for case in cases)
    words = f"Each ended with one job or held, and none with two jobs. `{NONE}`: the case does not apply."
    return f"{combinations} combinations were tried. {words}\n\n{table(['case', 'what happens', *names], rows)}"


def histories(parts: list[Part]) -> str:
    """Return the table with a row for each mode, and the totals."""
    rows = sorted((part["rows"] for part in parts), key=lambda row: MODES.index(row["mode"]))
    return with_totals(rows)


def with_totals(rows: list[Any]) -> str:
    """Return the table of the rows, with a last row of totals."""
    total = {name: sum(row[name] for row in rows) if isinstance(rows[0][name], int) else "all" for name in rows[0]}
    return table(rows[0], [row.values() for row in (*rows, total)])


def count_combinations(parts: Iterable[Part]) -> int:
    """Return the number of combinations of an adapter and a case that were run."""
    return sum(bool(row[2]) for part in parts for row in part["rows"])


def missing_of(parts: list[Part]) -> list[str]:
    """Return the missing and wrong results, without which the document is not written."""
    parts_of = {table: [part for part in parts if part["table"] == table] for table in TABLES}
    systems = [part["name"] for part in parts_of["adapters"] if count_combinations([part])]
    missing = [f"cases on {name}" for name in ORDER if not any(system.startswith(name) for system in systems)]
    missing += [f"cases on http, {mode}" for mode in CASE_MODES if f"http, {mode}" not in systems]
    if (found := count_combinations(parts_of["adapters"])) < COMBINATIONS:
        missing.append(f"{COMBINATIONS} combinations of an adapter and a case; {found} were tried")
    for table in ("histories", "plain"):
        counts = {part["name"]: part["rows"]["histories"] for part in parts_of[table]}
        missing += [f"{table}: {HISTORIES} in mode {mode}" for mode in MODES if counts.get(mode) != HISTORIES]
    if (found := len(rows_of(parts_of["processes"]))) != PROCESSES:
        missing.append(f"{PROCESSES} histories with real processes; {found} were run")
    if (found := sum(row["races"] for row in rows_of(parts_of["races"]))) != RACES:
        missing.append(f"{RACES} races; {found} were run")
    if (found := len(rows_of(parts_of["crashes"]))) != FAILURES:
        missing.append(f"{FAILURES} failures on the cluster; {found} were run")
    if (found := len(rows_of(parts_of["endings"]))) != ENDINGS:
        missing.append(f"{ENDINGS} ends in the simulated cluster; {found} were run")
    return missing + wrong_of(parts)


def wrong_of(parts: list[Part]) -> list[str]:
    """Return the results that contradict the document."""
    wrong = [
        f"{part['name']}, {row[0]}: {row[2]} instead of one job or held"
        for part in parts
        if part["table"] == "adapters"
        for row in part["rows"]
        if row[2] not in RESULTS
    ]
    return wrong + [
        f"histories in mode {part['name']}: {part['rows'][what]} {what} instead of 0"
        for part in parts
        if part["table"] == "histories"
        for what in ("duplicates", "lost")
        if part["rows"][what] != 0
    ]


def rows_of(parts: Iterable[Part]) -> list[Any]:
    """Return the rows of all parts of a table whose parts are lists of rows."""
    return [row for part in parts for row in part["rows"]]


def processes(parts: list[Part]) -> str:
    """Return the table with a row for each history."""
    rows = sorted(rows_of(parts), key=lambda row: row["seed"])
    return table(rows[0], [row.values() for row in rows])


def races(parts: list[Part]) -> str:
    """Return the table with a row for each end and step, and the totals."""
    return with_totals(rows_of(parts))


def failures(parts: list[Part]) -> str:
    """Return the table with a row for each step and a column for each failing component."""
    cells = {(row["step"], row["dies"]): row["came of it"] for row in rows_of(parts)}
    columns = list(dict.fromkeys(dies for _, dies in sorted(cells, key=lambda cell: (len(cell[1]), cell[1]))))
    steps = [step.value for step in Step if any(step.value == known for known, _ in cells)]
    shown = ([step, *(cells.get((step, column), NONE) for column in columns)] for step in steps)
    return table(["step", *columns], shown)


def endings(parts: list[Part]) -> str:
    """Return the table with a row for each end, and the totals."""
    rows = rows_of(parts)
    ends = [end for end in ENDS if any(row["end"] == end for row in rows)]
    return with_totals([ending_row(end, [row for row in rows if row["end"] == end]) for end in ends])


def ending_row(end: str, rows: list[Any]) -> dict[str, Any]:
    """Return the row of an end: its combinations, and how many have each result."""
    counts = {result: sum(row["result"] == result for row in rows) for result in ENDING_RESULTS}
    return {"end": end, "combinations": len(rows), "jobs": sum(row["jobs"] for row in rows), **counts}


TABLES = {
    "adapters": adapters,
    "histories": histories,
    "plain": histories,
    "processes": processes,
    "races": races,
    "crashes": failures,
    "endings": endings,
}


def main(directory: Path) -> None:
    """Replace the text between the markers of each table."""
    parts: list[Part] = [json.loads(path.read_text()) for path in sorted(directory.glob("*.json"))]
    if missing := missing_of(parts):
        sys.exit(
            f"{DOCUMENT} is unchanged. {directory} must contain these results of make test-all:\n  "
            + "\n  ".join(missing)
        )
    text = DOCUMENT.read_text()
    for name, build in TABLES.items():
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        shown = f"{begin}\n\n{build([part for part in parts if part['table'] == name])}\n\n{end}"
        text = re.sub(f"{begin}.*?{end}", lambda _, shown=shown: shown, text, flags=re.DOTALL)
    DOCUMENT.write_text(text)
    print(f"Wrote the tables of {len(parts)} result files to {DOCUMENT}.")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
