"""`kubectl-reattach` with its own Python, and the manifest by which krew installs it."""

import platform
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from release.archives import pack_directory

PROGRAM = "kubectl-reattach"
COMPLETION = "kubectl_complete-reattach"
_MACHINES = {"x86_64": "amd64", "AMD64": "amd64", "aarch64": "arm64", "arm64": "arm64"}
_HOMEPAGE = "https://github.com/reattach/reattach"


def platform_name() -> str:
    """Return this platform by the names of Go, such as `linux-amd64`."""
    return f"{platform.system().lower()}-{_MACHINES[platform.machine()]}"


def freeze(wheel: Path, work: Path, license_file: Path, time: int) -> bytes:
    """Return the archive of both programs, which need no Python on the user's machine."""
    shutil.rmtree(work, ignore_errors=True)
    # The plugin reads its version from the metadata of the wheel.
    with zipfile.ZipFile(wheel) as content:
        content.extractall(work / "site")
    command = [sys.executable, "-m", "PyInstaller", "--noconfirm", "--log-level=INFO"]
    command += [
        f"--distpath={work / 'dist'}",
        f"--workpath={work / 'build'}",
        str(Path(__file__).with_name("plugin.spec")),
    ]
    subprocess.run([*command, "--", str(work / "site")], check=True)
    frozen = work / "dist" / PROGRAM
    (frozen / COMPLETION).symlink_to(PROGRAM)
    shutil.copy(license_file, frozen)
    return pack_directory(frozen, PROGRAM, time)


def krew_manifest(version: str, checksums: Mapping[str, str]) -> str:
    """Return the krew manifest of the archives, given as SHA-256 by platform (`linux-amd64`).

    Source: https://krew.sigs.k8s.io/docs/developer-guide/plugin-manifest/
    """
    platforms: list[dict[str, Any]] = []
    for name, checksum in sorted(checksums.items()):
        system, _, architecture = name.partition("-")
        platforms.append(
            {
                "selector": {"matchLabels": {"os": system, "arch": architecture}},
                "uri": f"{_HOMEPAGE}/releases/download/v{version}/{archive_name(version, name)}",
                "sha256": checksum,
                "bin": f"{PROGRAM}/{PROGRAM}",
            }
        )
    manifest = {
        "apiVersion": "krew.googlecontainertools.github.com/v1alpha2",
        "kind": "Plugin",
        "metadata": {"name": "reattach"},
        "spec": {
            "version": f"v{version}",
            "homepage": _HOMEPAGE,
            "shortDescription": "Explain, cancel and resolve TaskRuns",
            "description": "Shows why a TaskRun of Reattach retries, waits or is held, and which external job it has.\n"
            "Cancels, reruns and suspends runs, and resolves submissions whose result is unknown.\n",
            "platforms": platforms,
        },
    }
    return yaml.safe_dump(manifest, sort_keys=False)


def archive_name(version: str, platform: str) -> str:
    """Return the file name of an archive of the plugin."""
    return f"{PROGRAM}-{version}-{platform}.tar.gz"
