"""Results for docs/conformance.md.

Tests write them into the directory REATTACH_TABLES. `hack/tables.py` builds the tables from them.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

from reattach.testing import CaseResult

ADAPTERS, HISTORIES, PLAIN, PROCESSES, RACES, CRASHES, ENDINGS = (
    "adapters",
    "histories",
    "plain",
    "processes",
    "races",
    "crashes",
    "endings",
)
"""Names of the tables."""


def keep(table: str, name: str, rows: Any) -> None:
    """Write a part of a table as JSON, if REATTACH_TABLES is set."""
    if (path := _path_of(table, name)) is not None and rows:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"table": table, "name": name, "rows": rows}, indent=1))


def keep_outcomes(adapter: str, results: list[CaseResult]) -> None:
    """Write the results of one adapter."""
    rows = [[one.case.name, one.case.what, str(one.outcome or ""), one.skipped] for one in results]
    tried = {row[0] for row in rows}
    # Earlier results are kept, because a rerun may contain only the cases that failed.
    keep(ADAPTERS, adapter, [*(row for row in _kept(ADAPTERS, adapter) if row[0] not in tried), *rows])


def _kept(table: str, name: str) -> list[Any]:
    path = _path_of(table, name)
    found: list[Any] = json.loads(path.read_text())["rows"] if path is not None and path.exists() else []
    return found


def _path_of(table: str, name: str) -> Path | None:
    directory = os.environ.get("REATTACH_TABLES")
    file_name = re.sub(r"[^a-z0-9]+", "-", f"{table} {name}".lower())
    return None if directory is None else Path(directory) / f"{file_name}.json"
