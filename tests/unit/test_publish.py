"""The checks before a release, and the folder that is published."""

from pathlib import Path
from typing import Any

import pytest
import yaml

import publish

IMAGE = "ghcr.io/example/reattach"
CHANGELOG = """# Changelog

## [Unreleased]

## [1.2.3] - 2026-12-01

### Added

- A thing.

## [1.2.2] - 2026-11-01 [YANKED]

- Another thing.
"""
FILES = (
    "pyproject.toml",
    "charts/reattach/Chart.yaml",
    "charts/reattach/values.yaml",
    *publish.PAGES,
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a copy of this repository's files as they must be for the release of 1.2.3."""
    version = publish.tomllib.loads((publish.ROOT / "pyproject.toml").read_text())["project"]["version"]
    for name in FILES:
        copy = tmp_path / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        text = (publish.ROOT / name).read_text().replace(version, "1.2.3")
        copy.write_text(text.replace("repository: localhost/reattach", f"repository: {IMAGE}"))
    (tmp_path / "CHANGELOG.md").write_text(CHANGELOG)
    return tmp_path


def test_release_without_problems_is_accepted(root: Path) -> None:
    assert publish.problems(root, "v1.2.3", IMAGE) == []


def test_versions_of_this_repository_agree() -> None:
    version = publish.tomllib.loads((publish.ROOT / "pyproject.toml").read_text())["project"]["version"]

    found = publish.problems(publish.ROOT, f"v{version}", IMAGE)

    assert [problem for problem in found if "as in the tag" in problem] == []


def test_install_page_repeats_the_commands_of_the_readme() -> None:
    readme, install = ((publish.ROOT / page).read_text() for page in publish.PAGES)
    section = readme.split("\n## Install it from your own registry\n")[1].split("\n## ", maxsplit=1)[0]
    commands = [line for line in section.splitlines() if line.startswith("    ") and "REGISTRY=" not in line]

    assert len(commands) >= 6
    assert [line for line in commands if line not in install.splitlines()] == []


@pytest.mark.parametrize("tag", ["1.2.3", "v1.2", "v1.2.3-rc.1", "release"])
def test_tag_of_another_form_is_rejected(root: Path, tag: str) -> None:
    assert publish.problems(root, tag, IMAGE) == [f"the tag {tag} must have the form v1.2.3"]


@pytest.mark.parametrize(
    "name, old, new, problem",
    [
        ("pyproject.toml", 'version = "1.2.3"', 'version = "1.2.2"', "version in pyproject.toml"),
        ("charts/reattach/Chart.yaml", "\nversion: 1.2.3", "\nversion: 1.2.2", "version in charts/reattach/Chart.yaml"),
        ("charts/reattach/Chart.yaml", "appVersion: 1.2.3", "appVersion: 1.2.2", "appVersion in charts"),
        ("README.md", "reattach-1.2.3.tgz", "reattach-1.2.2.tgz", "commands of README.md"),
        ("docs/install.md", "--version 1.2.3", "--version 1.2.2", "commands of docs/install.md"),
        ("charts/reattach/values.yaml", f"repository: {IMAGE}", "repository: localhost/reattach", "image.repository"),
        ("CHANGELOG.md", "[1.2.3] - 2026-12-01", "[1.2.3]", "YYYY-MM-DD"),
        ("CHANGELOG.md", "[1.2.3]", "[1.2.4]", "CHANGELOG.md must have a section"),
    ],
)
def test_difference_from_the_tag_is_reported(root: Path, name: str, old: str, new: str, problem: str) -> None:
    text = (root / name).read_text()
    assert old in text
    (root / name).write_text(text.replace(old, new))

    (found,) = publish.problems(root, "v1.2.3", IMAGE)

    assert problem in found


def test_notes_are_one_section_of_the_changelog(root: Path) -> None:
    assert publish.notes(root, "1.2.3") == "### Added\n\n- A thing."


def part(folder: Path, platform: str, **files: str) -> Path:
    """Return a folder as `make package` makes it on one platform."""
    system, architecture = platform.split("-")
    folder = folder / platform
    folder.mkdir()
    archive = f"kubectl-reattach-1.2.3-{platform}.tar.gz"
    selector = {"matchLabels": {"os": system, "arch": architecture}}
    spec = {"version": "v1.2.3", "platforms": [{"selector": selector, "uri": archive}]}
    everything = {
        archive: platform,
        "reattach-1.2.3.tgz": "chart",
        "SHA256SUMS": "those of this part",
        "reattach.yaml": yaml.safe_dump({"kind": "Plugin", "spec": spec}),
        **files,
    }
    for name, text in everything.items():
        (folder / name).write_text(text)
    (folder / "chart").mkdir()
    return folder


def test_collected_folder_has_all_files_and_one_manifest(tmp_path: Path) -> None:
    parts = [part(tmp_path, platform) for platform in ("linux-amd64", "darwin-arm64")]

    publish.collect(tmp_path / "release", parts)

    archives = [f"kubectl-reattach-1.2.3-{platform}.tar.gz" for platform in ("darwin-arm64", "linux-amd64")]
    files = sorted(path.name for path in (tmp_path / "release").iterdir())
    assert files == ["SHA256SUMS", *archives, "reattach-1.2.3.tgz", "reattach.yaml"]
    manifest: dict[str, Any] = yaml.safe_load((tmp_path / "release/reattach.yaml").read_text())
    assert sorted(platform["uri"] for platform in manifest["spec"]["platforms"]) == archives
    sums = dict(line.split()[::-1] for line in (tmp_path / "release/SHA256SUMS").read_text().splitlines())
    assert sums == {name: publish.digest_of(tmp_path / "release" / name) for name in files if name != "SHA256SUMS"}


def test_parts_that_were_built_differently_are_rejected(tmp_path: Path) -> None:
    parts = [part(tmp_path, "linux-amd64"), part(tmp_path, "darwin-arm64", **{"reattach-1.2.3.tgz": "other"})]

    with pytest.raises(publish.ReleaseError, match=r"reattach-1\.2\.3\.tgz differs"):
        publish.collect(tmp_path / "release", parts)


def test_manifests_of_two_versions_are_rejected(tmp_path: Path) -> None:
    parts = [part(tmp_path, "linux-amd64"), part(tmp_path, "darwin-arm64")]
    manifest = parts[1] / "reattach.yaml"
    manifest.write_text(manifest.read_text().replace("v1.2.3", "v1.2.2"))

    with pytest.raises(publish.ReleaseError, match="differ in more than their platforms"):
        publish.collect(tmp_path / "release", parts)


def test_command_reports_the_problems_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert publish.main(["check", "v99.0.0", IMAGE]) == 1
    assert "version in pyproject.toml must be 99.0.0" in capsys.readouterr().err
