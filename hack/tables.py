"""Put the tables of docs/conformance.md together from what the tests left: `python hack/tables.py build/tables` (`make test-all` does it)."""

import json
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from reattach.task.jobs import Step
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

COMBINATIONS = 300
"""Of an adapter and a case, at least: what docs/conformance.md claims."""
LIVES = 1000
"""In each mode."""
PROCESSES, RACES, DEATHS = 40, 200, 74
"""Lives with real processes, races of the end with a submission, and deaths on the cluster."""

NONE = "-"
VERDICTS = ("one job", "held", "")
"""How a case may end; empty where it was not tried."""
Part = Mapping[str, Any]


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """As Markdown."""
    lines = [[str(cell) for cell in row] for row in (head, ["---"] * len(list(head)), *rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def place_of(name: str) -> tuple[int, int, str]:
    """Adapters in the order of the documentation, http's modes in that of the job server."""
    system, _, mode = name.partition(", ")
    return (
        next((place for place, known in enumerate(ORDER) if system.startswith(known)), len(ORDER)),
        MODES.index(mode) if mode in MODES else len(MODES),
        name,
    )


def adapters(parts: list[Part]) -> str:
    """A row for each case, a column for each adapter."""
    parts = sorted(parts, key=lambda part: place_of(part["name"]))
    seen = {row[0]: row[1] for part in parts for row in part["rows"]}
    cells = {(part["name"], row[0]): row[2] or NONE for part in parts for row in part["rows"]}
    names = [part["name"] for part in parts]
    tried = tried_of(parts)
    # As the suite plays them, whichever worker did.
    order = [case.name for case in CASES]
    cases = sorted(seen, key=lambda case: order.index(case) if case in order else len(order))
    rows = ([case, seen[case], *(cells.get((name, case), NONE) for name in names)] for case in cases)
    words = f"Each ended with one job or held, and none with two jobs. `{NONE}`: the case does not apply."
    return f"{tried} combinations were tried. {words}\n\n{table(['case', 'what happens', *names], rows)}"


def lives(parts: list[Part]) -> str:
    """A row for each mode, and their sum."""
    rows = sorted((part["rows"] for part in parts), key=lambda row: MODES.index(row["mode"]))
    return with_sum(rows)


def with_sum(rows: list[Any]) -> str:
    """These rows, and one that sums up their numbers."""
    total = {name: sum(row[name] for row in rows) if isinstance(rows[0][name], int) else "all" for name in rows[0]}
    return table(rows[0], [row.values() for row in (*rows, total)])


def tried_of(parts: Iterable[Part]) -> int:
    """How many combinations of an adapter and a case were played."""
    return sum(bool(row[2]) for part in parts for row in part["rows"])


def missing_of(parts: list[Part]) -> list[str]:
    """What the tests must have left, and have not, or left and must not: the document would claim more than was shown."""
    of = {table: [part for part in parts if part["table"] == table] for table in TABLES}
    systems = [part["name"] for part in of["adapters"] if tried_of([part])]
    missing = [f"cases on {name}" for name in ORDER if not any(system.startswith(name) for system in systems)]
    missing += [f"cases on http, {mode}" for mode in MODES if f"http, {mode}" not in systems]
    if (tried := tried_of(of["adapters"])) < COMBINATIONS:
        missing.append(f"{COMBINATIONS} combinations of an adapter and a case; {tried} were tried")
    for table in ("lives", "plain"):
        lived = {part["name"]: part["rows"]["lives"] for part in of[table]}
        missing += [f"{table}: {LIVES} in mode {mode}" for mode in MODES if lived.get(mode) != LIVES]
    if (lived := len(rows_of(of["processes"]))) != PROCESSES:
        missing.append(f"{PROCESSES} lives with real processes; {lived} were lived")
    if (raced := sum(row["races"] for row in rows_of(of["races"]))) != RACES:
        missing.append(f"{RACES} races; {raced} were run")
    if (died := len(rows_of(of["deaths"]))) != DEATHS:
        missing.append(f"{DEATHS} deaths on the cluster; {died} were seen")
    return missing + wrong_of(parts)


def wrong_of(parts: list[Part]) -> list[str]:
    """What the tests left, and must not have: it is not what the document claims."""
    wrong = [
        f"{part['name']}, {row[0]}: {row[2]}, and not one job or held"
        for part in parts
        if part["table"] == "adapters"
        for row in part["rows"]
        if row[2] not in VERDICTS
    ]
    return wrong + [
        f"lives in mode {part['name']}: {part['rows'][what]} {what}, and not 0"
        for part in parts
        if part["table"] == "lives"
        for what in ("duplicates", "lost")
        if part["rows"][what] != 0
    ]


def rows_of(parts: Iterable[Part]) -> list[Any]:
    """Of all parts of a table whose parts are lists of rows."""
    return [row for part in parts for row in part["rows"]]


def processes(parts: list[Part]) -> str:
    """A row for each life."""
    rows = sorted(rows_of(parts), key=lambda row: row["seed"])
    return table(rows[0], [row.values() for row in rows])


def races(parts: list[Part]) -> str:
    """A row for each end and step, and their sum."""
    return with_sum(rows_of(parts))


def deaths(parts: list[Part]) -> str:
    """A row for each step, a column for each that dies there."""
    cells = {(row["step"], row["dies"]): row["came of it"] for row in rows_of(parts)}
    columns = list(dict.fromkeys(dies for _, dies in sorted(cells, key=lambda cell: (len(cell[1]), cell[1]))))
    steps = [step.value for step in Step if any(step.value == known for known, _ in cells)]
    shown = ([step, *(cells.get((step, column), NONE) for column in columns)] for step in steps)
    return table(["step", *columns], shown)


TABLES = {
    "adapters": adapters,
    "lives": lives,
    "plain": lives,
    "processes": processes,
    "races": races,
    "deaths": deaths,
}


def main(directory: Path) -> None:
    """Replace what is between the tables' marks."""
    parts: list[Part] = [json.loads(path.read_text()) for path in sorted(directory.glob("*.json"))]
    if missing := missing_of(parts):
        sys.exit(f"{DOCUMENT} stays as it is. In {directory} must be, from make test-all:\n  " + "\n  ".join(missing))
    text = DOCUMENT.read_text()
    for name, build in TABLES.items():
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        shown = f"{begin}\n\n{build([part for part in parts if part['table'] == name])}\n\n{end}"
        text = re.sub(f"{begin}.*?{end}", lambda _, shown=shown: shown, text, flags=re.DOTALL)
    DOCUMENT.write_text(text)
    print(f"{DOCUMENT} has the tables of {len(parts)} parts.")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
