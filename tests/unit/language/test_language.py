"""Tests of the language rule: each pattern, each rule of the checker and of ruff, and the list."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import language

DATA = tomllib.loads(Path(__file__).with_name("violations.toml").read_text())
ENTRIES: list[dict[str, str]] = tomllib.loads(language.TERMS.read_text())["term"]
PYPROJECT = """
[tool.ruff.lint.pycodestyle]
max-doc-length = 100
[tool.ruff.lint.per-file-ignores]
{ignored}
[tool.reattach-language]
unconverted = {unconverted}
"""
WRONG = '"""Whether pods run."""\n'
RIGHT = '"""Return the pods."""\n'


def write(root: Path, path: str, text: str) -> None:
    """Write a file of a repository."""
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def write_pyproject(root: Path, *, ignored: str = "", unconverted: tuple[str, ...] = ()) -> None:
    """Write the project file with its two parts of the list."""
    write(root, "pyproject.toml", PYPROJECT.format(ignored=ignored, unconverted=list(unconverted)))


@pytest.mark.parametrize("entry", ENTRIES, ids=[entry["find"] for entry in ENTRIES])
def test_term_in_wrong_sentence_is_reported_with_its_replacement(entry: dict[str, str]) -> None:
    assert list(language.Terms([entry]).search(entry["wrong"]))
    found = language.Terms(ENTRIES).search(entry["wrong"])
    assert entry["write"] in [write for _, _, write in found]


@pytest.mark.parametrize("text", [entry["right"] for entry in ENTRIES if "right" in entry])
def test_term_in_right_sentence_is_not_reported(text: str) -> None:
    assert list(language.Terms(ENTRIES).search(text)) == []


@pytest.mark.parametrize("case", DATA["case"], ids=[case["rule"] for case in DATA["case"]])
def test_checker_rule_reports_its_violation_alone(case: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path, case["path"], case["text"].lstrip("\n"))
    found = list(language.check_file(tmp_path, case["path"], language.Terms.load()))
    assert [(v.path, v.line, v.found) for v in found] == [(case["path"], case["line"], case["found"])]


@pytest.mark.parametrize("case", DATA["right"], ids=[case["rule"] for case in DATA["right"]])
def test_checker_leaves_out_what_is_no_violation(case: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path, case["path"], case["text"].lstrip("\n"))
    assert list(language.check_file(tmp_path, case["path"], language.Terms.load())) == []


def test_class_name_defined_twice_is_reported_with_both_files(tmp_path: Path) -> None:
    write(tmp_path, "operator/reattach/a/one.py", "class Pace:\n    pass\n")
    write(tmp_path, "operator/reattach/b/two.py", "\n\nclass Pace(int):\n    pass\n")
    found = [violation.report() for violation in language.check_class_names(tmp_path, lambda _: False)]
    one, two = "operator/reattach/a/one.py:1", "operator/reattach/b/two.py:3"
    assert found == [
        f'{one}: found "class Pace": write "a class name of its own: {two} defines it too"',
        f'{two}: found "class Pace": write "a class name of its own: {one} defines it too"',
    ]


def test_class_name_defined_twice_is_reported_only_in_the_unconverted_file(tmp_path: Path) -> None:
    write(tmp_path, "operator/reattach/a.py", "class Pace:\n    pass\n")
    write(tmp_path, "operator/reattach/b.py", "class Pace:\n    pass\n")
    found = language.check_class_names(tmp_path, lambda path: path.endswith("b.py"))
    assert [violation.path for violation in found] == ["operator/reattach/b.py"]


def test_package_defines_each_class_name_once() -> None:
    unconverted = language.Unconverted(tomllib.loads((language.ROOT / "pyproject.toml").read_text()))
    found = language.check_class_names(language.ROOT, lambda path: unconverted.entry_of(path) is not None)
    assert [violation.report() for violation in found if not unconverted.entry_of(violation.path)] == []


@pytest.mark.parametrize(
    "rule,snippet",
    [
        ("D205", 'def read() -> None:\n    """Read the pods\n    of a run.\n    """\n'),
        ("D401", 'def read() -> None:\n    """Reads the pods."""\n'),
        ("D404", 'def read() -> None:\n    """This reads the pods."""\n'),
        ("D415", 'def read() -> None:\n    """Read the pods"""\n'),
        ("W505", f'"""Return the pods.\n\n{"word " * 20}end.\n"""\n'),
        ("W505", f"# {'word ' * 20}end\n"),
    ],
)
def test_ruff_with_the_settings_of_the_project_reports_its_rule(rule: str, snippet: str) -> None:
    ruff = Path(sys.executable).with_name("ruff")
    command = [
        ruff,
        "check",
        "--output-format=json",
        "--no-cache",
        "--stdin-filename=operator/reattach/new/module.py",
        "-",
    ]
    run = subprocess.run(command, input=snippet, cwd=language.ROOT, capture_output=True, text=True, check=False)
    assert rule in {item["code"] for item in json.loads(run.stdout)}
    assert rule in language.RUFF_RULES


def test_check_reports_a_file_that_is_not_listed(tmp_path: Path) -> None:
    write_pyproject(tmp_path)
    write(tmp_path, "operator/reattach/a/one.py", WRONG)
    assert [(v.path, v.found) for v in language.check(tmp_path)] == [("operator/reattach/a/one.py", "Whether …")]


def test_check_passes_over_failing_files_that_are_listed(tmp_path: Path) -> None:
    write_pyproject(tmp_path, ignored='"operator/reattach/a/**" = ["D401"]', unconverted=("README.md",))
    write(tmp_path, "operator/reattach/a/one.py", WRONG)
    write(tmp_path, "README.md", "Of the pods, one runs.\n")
    assert language.check(tmp_path) == []


def test_check_with_paths_reports_listed_files(tmp_path: Path) -> None:
    write_pyproject(tmp_path, ignored='"operator/reattach/a/**" = ["D401"]')
    write(tmp_path, "operator/reattach/a/one.py", WRONG)
    assert [v.path for v in language.check(tmp_path, ["operator/reattach/a"])] == ["operator/reattach/a/one.py"]


def test_check_keeps_a_listed_file_that_only_ruff_reports(tmp_path: Path) -> None:
    write_pyproject(tmp_path, ignored='"operator/reattach/a/**" = ["D401"]')
    write(tmp_path, "operator/reattach/a/one.py", 'def read() -> None:\n    """Reads the pods."""\n')
    assert language.check(tmp_path) == []
    assert [v.found for v in language.check(tmp_path, ["operator"])] == ["D401"]


def test_check_reports_each_listed_path_that_passes(tmp_path: Path) -> None:
    write_pyproject(tmp_path, ignored='"operator/reattach/a/**" = ["D401"]', unconverted=("README.md", "gone.md"))
    write(tmp_path, "operator/reattach/a/one.py", RIGHT)
    write(tmp_path, "README.md", "The pods are listed.\n")
    found = language.check(tmp_path)
    assert {v.found for v in found} == {"operator/reattach/a/**", "README.md", "gone.md"}
    assert {v.write for v in found} == {"nothing: it passes, so remove it from the list"}


@pytest.mark.parametrize("text,code", [(WRONG, 1), (RIGHT, 0)])
def test_main_exits_1_on_violations_and_prints_them(
    text: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pyproject(tmp_path)
    write(tmp_path, "hack/tool.py", text)
    monkeypatch.setattr(language, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["language.py", str(tmp_path / "hack")])
    assert language.main() == code
    assert ('hack/tool.py:1: found "Whether …": write ' in capsys.readouterr().out) is bool(code)
