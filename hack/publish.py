"""Check that a tag may be released, collect the packages of all platforms, and print the notes.

    .venv/bin/python hack/publish.py check v0.1.0 ghcr.io/OWNER/reattach
    .venv/bin/python hack/publish.py collect INTO DIST...   # DIST: a folder of `make package`
    .venv/bin/python hack/publish.py notes 0.1.0

.github/workflows/release.yml runs these commands; docs/releasing.md explains them.
"""

import argparse
import hashlib
import re
import shutil
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "docs/install.md")
KREW = "reattach.yaml"
SUMS = "SHA256SUMS"
_VERSION = re.compile(r"v(\d+\.\d+\.\d+)")
# Versions in the commands of the pages: of the image, of the chart's file, of the chart.
_COMMAND = re.compile(r"(?:reattach:|reattach-|--version )(\d+\.\d+\.\d+)")
_HEADING = re.compile(r"^## \[(?P<version>[^\]]+)\](?: - (?P<day>\d{4}-\d\d-\d\d))?.*$", re.MULTILINE)


class ReleaseError(Exception):
    """The release can't be made; the message is for the person who makes it."""


def check(root: Path, tag: str, image: str) -> None:
    """Check that a tag may be released, whose image has this repository.

    Raises:
        ReleaseError: The message has a line for each problem.
    """
    if wrong := problems(root, tag, image):
        raise ReleaseError("\n".join(wrong))


def problems(root: Path, tag: str, image: str) -> list[str]:
    """Return what prevents the release of a tag, whose image has this repository."""
    match = _VERSION.fullmatch(tag)
    if match is None:
        return [f"the tag {tag} must have the form v1.2.3"]
    version = match[1]
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"]
    chart = yaml.safe_load((root / "charts/reattach/Chart.yaml").read_text())
    found = {
        "version in pyproject.toml": {project},
        "version in charts/reattach/Chart.yaml": {str(chart["version"])},
        "appVersion in charts/reattach/Chart.yaml": {str(chart["appVersion"])},
        **{f"version in the commands of {page}": set(_COMMAND.findall((root / page).read_text())) for page in PAGES},
    }
    wrong = [
        f"the {where} must be {version}, as in the tag; found: {', '.join(sorted(values)) or 'none'}"
        for where, values in found.items()
        if values != {version}
    ]
    default = yaml.safe_load((root / "charts/reattach/values.yaml").read_text())["image"]["repository"]
    if default != image:
        wrong.append(f"image.repository in charts/reattach/values.yaml must be {image}; found: {default}")
    try:
        notes(root, version)
    except ReleaseError as error:
        wrong.append(str(error))
    return wrong


def notes(root: Path, version: str) -> str:
    """Return the section of a version in CHANGELOG.md, without its heading.

    Raises:
        ReleaseError: There is no such section, it has no date, or it is empty.
    """
    text = (root / "CHANGELOG.md").read_text()
    headings = list(_HEADING.finditer(text))
    for number, heading in enumerate(headings):
        if heading["version"] == version and heading["day"]:
            end = headings[number + 1].start() if number + 1 < len(headings) else len(text)
            if section := text[heading.end() : end].strip():
                return section
    raise ReleaseError(f"CHANGELOG.md must have a section ## [{version}] - YYYY-MM-DD with the changes")


def collect(into: Path, parts: Sequence[Path]) -> None:
    """Copy the files of all parts into one folder, with one krew manifest and all checksums.

    Raises:
        ReleaseError: Two parts have different files of one name.
    """
    into.mkdir()
    for part in parts:
        for file in sorted(part.iterdir()):
            if file.is_dir() or file.name in {KREW, SUMS}:
                continue
            copy = into / file.name
            if copy.exists() and digest_of(copy) != digest_of(file):
                raise ReleaseError(f"{file} differs from the file of that name in another part; build both again")
            shutil.copyfile(file, copy)
    manifests = [yaml.safe_load((part / KREW).read_text()) for part in parts]
    (into / KREW).write_text(yaml.safe_dump(merge_krew(manifests), sort_keys=False))
    sums = [f"{digest_of(file)}  {file.name}\n" for file in sorted(into.iterdir())]
    (into / SUMS).write_text("".join(sums))


def merge_krew(manifests: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the first krew manifest with the platforms of all.

    Raises:
        ReleaseError: They differ in something else, or name a platform twice with different files.
    """
    merged = manifests[0]
    platforms: dict[str, Any] = {}
    for manifest in manifests:
        spec = {**manifest["spec"], "platforms": None}
        if {**manifest, "spec": spec} != {**merged, "spec": {**merged["spec"], "platforms": None}}:
            raise ReleaseError(f"the parts' {KREW} differ in more than their platforms")
        for platform in manifest["spec"]["platforms"]:
            key = str(platform["selector"])
            if platforms.setdefault(key, platform) != platform:
                raise ReleaseError(f"two parts have different files for the platform {key}")
    return {**merged, "spec": {**merged["spec"], "platforms": list(platforms.values())}}


def digest_of(file: Path) -> str:
    """Return the SHA-256 digest of a file, in hexadecimal."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one of the commands."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    commands = parser.add_subparsers(dest="command", required=True)
    checked = commands.add_parser("check", help="report what prevents the release of a tag")
    checked.add_argument("tag")
    checked.add_argument("image", help="repository to which the image is pushed")
    collected = commands.add_parser("collect", help="join the packages of all platforms")
    collected.add_argument("into", type=Path)
    collected.add_argument("parts", type=Path, nargs="+")
    printed = commands.add_parser("notes", help="print the changes of a version")
    printed.add_argument("version")
    given = parser.parse_args(arguments)
    try:
        if given.command == "check":
            check(ROOT, given.tag, given.image)
        elif given.command == "collect":
            collect(given.into, given.parts)
        else:
            print(notes(ROOT, given.version))
    except ReleaseError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
