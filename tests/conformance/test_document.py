"""The code in the documentation for authors of adapters runs, and accepts the worked example."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import jobservers
from conformance.jobadapter import JobServerSystem, serving
from controlplane import REPOSITORY
from reattach.testing import CASES, ENDING_CASES

CONFORMANCE, ADAPTERS = REPOSITORY / "docs/conformance.md", REPOSITORY / "docs/adapters.md"
MODE = jobservers.jobserver.Mode(lag_seconds=20, forget_seconds=7200)
"""Mode with the capabilities that the worked example declares."""


def snippet(document: Path, beginning: str) -> str:
    [text] = re.findall(rf"```python\n({re.escape(beginning)}.*?)```", document.read_text(), re.DOTALL)
    return str(text)


WORKED_EXAMPLE = snippet(ADAPTERS, "# worked example")


def names_of(served: JobServerSystem) -> dict[str, Any]:
    """Return the names that the snippets use without defining them."""
    names: dict[str, Any] = {
        "address": served.server.url,
        "count_jobs": lambda: served.server.made,
        "delete_job": served.server.jobs.forget,
        "break_down": served.fail,
        "count_running": served.running,
    }
    exec(WORKED_EXAMPLE, names)
    names["MyAdapter"] = names["JobServer"]
    return names


@pytest.mark.parametrize("document", [CONFORMANCE, ADAPTERS], ids=lambda path: path.name)
def test_documented_call_runs_all_cases_and_prints_no_problem(
    document: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = snippet(document, "from reattach.testing import conformance\n")
    with serving(MODE) as served:
        # The documented call uses the real clock. This test replaces it with a virtual one.
        monkeypatch.setattr(sys.modules["reattach.testing.conformance"], "RealClock", lambda: served.clock)
        exec(text, names_of(served))
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(table) == 2 + len(CASES) + len(ENDING_CASES)
    assert not [line for line in table if "**" in line]
    assert sum("not tried" in line for line in table) == (3 if document == CONFORMANCE else 11)


def test_documented_test_module_passes_in_real_time(tmp_path: Path) -> None:
    given = (
        "import httpx\n\ndef count_jobs():\n    return httpx.get(f'{address}/counts', trust_env=False).json()['made']\n"
    )
    with jobservers.serving(MODE) as server:
        module = tmp_path / "test_own.py"
        parts = [
            f"address = {server.url!r}",
            given,
            WORKED_EXAMPLE,
            "MyAdapter = JobServer",
            snippet(CONFORMANCE, "import pytest\n"),
        ]
        module.write_text("\n".join(parts))
        ran = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-k", "undisturbed or watching and not frozen", module],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    assert "2 passed" in ran.stdout, ran.stdout + ran.stderr
