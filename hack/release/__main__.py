"""One step of `hack/package`: `python -m release --source DIR --output DIR STEP [FILE]`."""

import argparse
import hashlib
import os
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from release.chart import chart_layout, metadata_of, stable_chart
from release.image import image_layout
from release.plugin import PROGRAM, archive_name, freeze, krew_manifest, platform_name

_MATERIALS = {"image": "requirements-image.lock", "kubectl-reattach": "requirements-cli.lock"}


class Release:
    """Steps for one version, which write into the output directory."""

    def __init__(self, source: Path, output: Path, time: int) -> None:
        self._source, self._output, self._time = source, output, time
        self._created = datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self._version: str = tomllib.loads((source / "pyproject.toml").read_text())["project"]["version"]

    def chart(self, packed: Path) -> None:
        """Write the chart, as an archive and as an OCI image layout."""
        chart = stable_chart(packed.read_bytes(), self._time)
        metadata = metadata_of(chart)
        for name in ("version", "appVersion"):
            if metadata[name] != self._version:
                raise SystemExit(
                    f"Chart.yaml has the {name} {metadata[name]}, but pyproject.toml {self._version}; they must be equal"
                )
        self._write(f"reattach-{self._version}.tgz", chart)
        self._write(f"reattach-chart-{self._version}.oci.tar", chart_layout(chart, self._created))

    def plugin(self) -> None:
        """Write the archive of `kubectl-reattach` for this platform."""
        (wheel,) = self._output.glob("reattach-*.whl")
        archive = freeze(
            wheel.resolve(), self._source.parent.resolve() / "plugin", self._source / "LICENSE", self._time
        )
        self._write(archive_name(self._version, platform_name()), archive)

    def image(self, saved: Path) -> None:
        """Write the image of `docker save` as an OCI image layout."""
        revision = subprocess.run(
            ["git", "rev-parse", "HEAD"], check=True, capture_output=True, text=True
        ).stdout.strip()
        platform, layout = image_layout(
            saved, version=self._version, revision=revision, created=self._created, time=self._time
        )
        self._write(f"reattach-image-{self._version}-{platform}.oci.tar", layout)

    def materials(self) -> None:
        """Write the bills of materials."""
        for name, lock in _MATERIALS.items():
            command = [sys.executable, "-W", "ignore", "-m", "cyclonedx_py", "requirements", str(self._source / lock)]
            command += ["--pyproject", str(self._source / "pyproject.toml"), "--mc-type", "application"]
            command += ["--output-reproducible", "--output-format", "JSON"]
            command += ["-o", str(self._output / f"reattach-{name}-{self._version}.cdx.json")]
            subprocess.run(command, check=True)

    def manifest(self) -> None:
        """Write the krew manifest of all archives of the plugin in the output directory."""
        prefix, suffix = f"{PROGRAM}-{self._version}-", ".tar.gz"
        checksums = {
            path.name.removeprefix(prefix).removesuffix(suffix): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in self._output.glob(f"{prefix}*{suffix}")
        }
        self._write("reattach.yaml", krew_manifest(self._version, checksums).encode())

    def _write(self, name: str, content: bytes) -> None:
        (self._output / name).write_bytes(content)


def main(arguments: Sequence[str]) -> None:
    """Run one step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, required=True, help="exported commit")
    parser.add_argument("--output", type=Path, required=True)
    steps = parser.add_subparsers(dest="step", required=True)
    for name in ("plugin", "materials", "manifest"):
        steps.add_parser(name)
    steps.add_parser("chart").add_argument("file", type=Path, help="output of helm package")
    steps.add_parser("image").add_argument("file", type=Path, help="output of docker save")
    options = parser.parse_args(arguments)
    release = Release(options.source, options.output, int(os.environ["SOURCE_DATE_EPOCH"]))
    if options.step == "chart":
        release.chart(options.file)
    elif options.step == "image":
        release.image(options.file)
    else:
        {"plugin": release.plugin, "materials": release.materials, "manifest": release.manifest}[options.step]()


if __name__ == "__main__":
    main(sys.argv[1:])
