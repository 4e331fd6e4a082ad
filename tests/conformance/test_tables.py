"""`hack/tables.py` writes docs/conformance.md only from complete and correct results."""

import importlib.util
import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from conformance.endings import End, combinations_of, expected
from conformance.jobadapter import CASE_MODES, MODES
from controlplane import REPOSITORY
from reattach.task.job_client import Step
from reattach.testing import CASES

SYSTEMS = (*(f"http, {mode}" for mode in CASE_MODES), "kubernetes, Job", "kubernetes, TaskRun", "ray", "slurm")


ENDS = ("cancel", "delete")
CRASHES = [
    *product(("pod", "eviction", "state-api", "operator", "operators", "both", "all"), Step),
    *product(("node",), list(Step)[:4]),
]


def ending_rows() -> list[dict[str, Any]]:
    combinations = [one for end in End for mode in MODES for one in combinations_of(end, mode)]
    return [{"end": one.end, "result": expected(one), "jobs": 1} for one in combinations]


def crash(who: str, step: Step) -> dict[str, str]:
    return {"dies": who, "step": step.value, "came of it": "one job"}


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("tables_program", REPOSITORY / "hack/tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    document = tmp_path / "conformance.md"
    document.write_text((REPOSITORY / "docs/conformance.md").read_text())
    monkeypatch.setattr(module, "DOCUMENT", document)
    return module


def leave(
    directory: Path, *, systems: tuple[str, ...] = SYSTEMS, cases: int = len(CASES), histories: int = 1000
) -> Path:
    """Write result files, as `make test-all` does."""
    rows = [[case.name, case.what, "one job" if number < cases else "", ""] for number, case in enumerate(CASES)]
    counts = {"histories": histories, "held": 1, "duplicates": 0, "lost": 0}
    parts: list[dict[str, Any]] = [
        *({"table": "adapters", "name": name, "rows": rows} for name in systems),
        *({"table": t, "name": m, "rows": {"mode": m, **counts}} for t in ("histories", "plain") for m in MODES),
        {"table": "processes", "name": "1", "rows": [{"seed": seed, "mode": "name"} for seed in range(30)]},
        {"table": "processes", "name": "2", "rows": [{"seed": seed, "mode": "name"} for seed in range(30, 40)]},
        {"table": "races", "name": "all", "rows": [{"end": end, "races": 100, "jobs": 7} for end in ENDS]},
        {"table": "endings", "name": "all", "rows": ending_rows()},
        *({"table": "crashes", "name": f"{who} {step}", "rows": [crash(who, step)]} for who, step in CRASHES),
    ]
    for number, part in enumerate(parts):
        (directory / f"{number}.json").write_text(json.dumps(part))
    return directory


def test_tables_of_all_systems_are_written_into_the_document(program: ModuleType, tmp_path: Path) -> None:
    program.main(leave(tmp_path))
    text = program.DOCUMENT.read_text()
    assert f"{len(SYSTEMS) * len(CASES)} combinations were tried" in text
    assert "| what happens | http, name | http, forgetting-name | http, token |" in text
    assert "| all | 8000 | 8 | 0 | 0 |" in text
    assert text.count("| name |\n") == 40
    assert "| all | 200 | 14 |" in text
    assert "| all | 720 | 720 | " in text
    assert all(f"| {end} | " in text for end in End)
    assert "| step | all | pod | both | node | eviction | operator | operators | state-api |" in text
    assert (
        text.count("| before-cancel | one job | one job | one job | - | one job | one job | one job | one job |") == 1
    )


@pytest.mark.parametrize("system", ["ray", "slurm", "kubernetes", "http, token"])
def test_system_without_results_is_named_and_the_document_is_unchanged(
    program: ModuleType, tmp_path: Path, system: str
) -> None:
    before = program.DOCUMENT.read_text()
    others = tuple(name for name in SYSTEMS if not name.startswith(system))
    with pytest.raises(SystemExit, match=f"cases on {system}"):
        program.main(leave(tmp_path, systems=others))
    assert program.DOCUMENT.read_text() == before


def change(directory: Path, table: str, change: Callable[[Any], object]) -> None:
    """Change the rows of the first part of a table."""
    paths = sorted(directory.glob("*.json"), key=lambda path: int(path.stem))
    path = next(path for path in paths if json.loads(path.read_text())["table"] == table)
    part = json.loads(path.read_text())
    change(part["rows"])
    path.write_text(json.dumps(part))


@pytest.mark.parametrize("what", ["duplicates", "lost"])
def test_histories_with_duplicate_or_lost_jobs_leave_the_document_unchanged(
    program: ModuleType, tmp_path: Path, what: str
) -> None:
    before = program.DOCUMENT.read_text()
    change(leave(tmp_path), "plain", lambda row: row.update({what: 305}))
    assert program.missing_of([json.loads(path.read_text()) for path in tmp_path.glob("[0-9]*.json")]) == []
    change(tmp_path, "histories", lambda row: row.update({what: 1}))
    with pytest.raises(SystemExit, match=f"histories in mode name: 1 {what} instead of 0"):
        program.main(tmp_path)
    assert program.DOCUMENT.read_text() == before


def test_case_with_another_result_than_one_job_or_held_leaves_the_document_unchanged(
    program: ModuleType, tmp_path: Path
) -> None:
    before = program.DOCUMENT.read_text()
    change(leave(tmp_path), "adapters", lambda rows: rows[0].__setitem__(2, "failed"))
    with pytest.raises(SystemExit, match="http, name, undisturbed: failed instead of one job or held"):
        program.main(tmp_path)
    assert program.DOCUMENT.read_text() == before


def test_too_few_combinations_and_histories_are_named(program: ModuleType, tmp_path: Path) -> None:
    tried = f"300 combinations of an adapter and a case; {len(SYSTEMS)} were tried"
    with pytest.raises(SystemExit, match=tried):
        program.main(leave(tmp_path, cases=1))
    with pytest.raises(SystemExit, match="histories: 1000 in mode expiring-token"):
        program.main(leave(tmp_path, histories=22))
    with pytest.raises(
        SystemExit,
        match=r"40 histories with real processes; 0 were run\n.*200 races; 0 were.*\n.*74 failures.*\n.*720 ends",
    ):
        program.main(tmp_path / "nothing")
