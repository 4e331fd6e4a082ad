"""What docs/conformance.md shows: tests leave it in the directory REATTACH_TABLES, and `hack/tables.py` puts it together."""

import json
import os
import re
from pathlib import Path
from typing import Any

from reattach.testing import CaseResult

ADAPTERS, LIVES, PLAIN, PROCESSES, RACES, DEATHS = "adapters", "lives", "plain", "processes", "races", "deaths"
"""The tables."""


def keep(table: str, name: str, rows: Any) -> None:
    """Leave a part of a table, JSON, if somebody asked for it."""
    if (path := _path_of(table, name)) is not None and rows:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"table": table, "name": name, "rows": rows}, indent=1))


def keep_outcomes(adapter: str, outcomes: list[CaseResult]) -> None:
    """How each case went with one adapter."""
    rows = [[one.case.name, one.case.what, str(one.verdict or ""), one.skipped] for one in outcomes]
    tried = {row[0] for row in rows}
    # Where only what failed is tried again, the rest stays.
    keep(ADAPTERS, adapter, [*(row for row in _kept(ADAPTERS, adapter) if row[0] not in tried), *rows])


def _kept(table: str, name: str) -> list[Any]:
    path = _path_of(table, name)
    found: list[Any] = json.loads(path.read_text())["rows"] if path is not None and path.exists() else []
    return found


def _path_of(table: str, name: str) -> Path | None:
    directory = os.environ.get("REATTACH_TABLES")
    file_name = re.sub(r"[^a-z0-9]+", "-", f"{table} {name}".lower())
    return None if directory is None else Path(directory) / f"{file_name}.json"
