"""Linters find nothing in the workflows in .github, and each finds the mistakes planted here."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from controlplane import CACHE, REPOSITORY

ACTIONLINT = CACHE / "bin/actionlint"
ZIZMOR = Path(sys.executable).with_name("zizmor")
FOLDER = REPOSITORY / ".github/workflows"
WORKFLOWS = sorted(FOLDER.glob("*.yml"))


def actionlint(*workflows: Path) -> str:
    """Return what actionlint found, without the linters that it calls where they are installed."""
    assert ACTIONLINT.exists(), "run: make control-plane"
    command = [ACTIONLINT, "-no-color", "-oneline", "-shellcheck=", "-pyflakes=", *workflows]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert done.returncode in (0, 1), done.stderr
    return done.stdout


def zizmor(*inputs: Path) -> str:
    """Return what zizmor found, as `make check` calls it."""
    command = [
        ZIZMOR,
        "--offline",
        "--quiet",
        "--persona",
        "pedantic",
        "--format",
        "plain",
        "--color",
        "never",
        *inputs,
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ZIZMOR_")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0 or done.stdout, done.stderr
    return done.stdout if done.returncode else ""


def planted(folder: Path, workflow: str, old: str, new: str) -> Path:
    """Return a copy of a workflow with one replacement, where the linters expect workflows."""
    text = (FOLDER / workflow).read_text()
    assert old in text
    copy = folder / ".github/workflows" / workflow
    copy.parent.mkdir(parents=True)
    copy.write_text(text.replace(old, new, 1))
    return copy


def test_workflows_have_no_finding_of_actionlint() -> None:
    assert actionlint(*WORKFLOWS) == ""


def test_workflows_have_no_finding_of_zizmor() -> None:
    assert zizmor(REPOSITORY / ".github") == ""


@pytest.mark.parametrize(
    "workflow, old, new, finding",
    [
        ("ci.yml", "${{ matrix.targets }}", "${{ matrix.target }}", 'property "target" is not defined'),
        ("ci.yml", "ubuntu-24.04", "ubuntu-99.04", 'label "ubuntu-99.04" is unknown'),
        ("release.yml", "needs: [check, images, pypi]", "needs: [check, image, pypi]", 'needs job "image"'),
        ("release.yml", "steps.chart.outputs", "steps.charts.outputs", 'property "charts" is not defined'),
        ("release.yml", "      packages: write", "      package: write", 'unknown permission scope "package"'),
    ],
)
def test_actionlint_finds_a_broken_workflow(tmp_path: Path, workflow: str, old: str, new: str, finding: str) -> None:
    assert finding in actionlint(planted(tmp_path, workflow, old, new))


@pytest.mark.parametrize(
    "workflow, old, new, finding",
    [
        ("ci.yml", "@3d3c42e5aac5ba805825da76410c181273ba90b1 # v7.0.1", "@v7", "unpinned-uses"),
        ("ci.yml", "persist-credentials: false", "fetch-depth: 1", "artipacked"),
        ("ci.yml", "  pull_request:", "  pull_request_target:", "dangerous-triggers"),
        ("ci.yml", "permissions: {}", "permissions: write-all", "excessive-permissions"),
        ("release.yml", '"$GITHUB_REF_NAME"', "${{ github.ref_name }}", "template-injection"),
    ],
)
def test_zizmor_finds_an_insecure_workflow(tmp_path: Path, workflow: str, old: str, new: str, finding: str) -> None:
    assert finding in zizmor(planted(tmp_path, workflow, old, new))


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_actions_are_pinned_by_commit_with_their_version(workflow: Path) -> None:
    uses = re.findall(r"uses: (.*)", workflow.read_text())

    assert uses
    assert [use for use in uses if not re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", use)] == []


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_jobs_have_a_time_limit(workflow: Path) -> None:
    jobs = yaml.safe_load(workflow.read_text())["jobs"]

    assert [name for name, job in jobs.items() if "timeout-minutes" not in job] == []


def test_make_targets_of_the_tests_exist() -> None:
    known = set(re.findall(r"^([a-z][a-z0-9-]*):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    jobs = yaml.safe_load((FOLDER / "ci.yml").read_text())["jobs"]
    named = {name for of in jobs["test"]["strategy"]["matrix"]["include"] for name in of["targets"].split()}

    assert "test" in named
    assert named <= known
