"""The tables that are kept in docs/conformance.md: tests leave them in the directory REATTACH_TABLES, `hack/conformance` puts them together."""

import os
import re
from pathlib import Path

from reattach.testing import Report


def keep(title: str, table: object) -> None:
    """Leave a table (whose text is Markdown), if somebody asked for them."""
    directory = os.environ.get("REATTACH_TABLES")
    if directory is None or (isinstance(table, Report) and not table.outcomes):
        return
    path = Path(directory)
    path.mkdir(parents=True, exist_ok=True)
    (path / f"{re.sub(r'[^a-z0-9]+', '-', title.lower())}.md").write_text(f"{title}\n{table}\n")
