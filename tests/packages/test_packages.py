"""Packages of a release, built by `hack/package` from two clones of this commit.

`make test` builds everything once except for the image, and a second time what needs no
PyInstaller. REATTACH_ALL=1 builds everything twice, with the image, which needs a Docker engine.
"""

import email
import hashlib
import io
import json
import os
import subprocess
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from controlplane import CACHE, REPOSITORY
from release.plugin import platform_name

ALL = bool(os.environ.get("REATTACH_ALL"))
VERSION = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
PLUGIN = f"kubectl-reattach-{VERSION}-{platform_name()}.tar.gz"


def clone(directory: Path) -> Path:
    """Return a clone of this commit with the development environment of this checkout."""
    subprocess.run(["git", "clone", "--quiet", str(REPOSITORY), str(directory)], check=True)
    (directory / ".venv").symlink_to(REPOSITORY / ".venv")
    return directory


def build(directory: Path, without: str) -> Path:
    environment = {**os.environ, "REATTACH_WITHOUT": without}
    command = [str(directory / "hack/package")]
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return directory / "dist"


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(clone(tmp_path_factory.mktemp("first") / "clone"), "" if ALL else "image")


@pytest.fixture(scope="module")
def plugin(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of the unpacked plugin."""
    directory = tmp_path_factory.mktemp("plugin")
    with tarfile.open(dist / PLUGIN) as archive:
        archive.extractall(directory, filter="data")
    return directory / "kubectl-reattach"


def checksums_of(dist: Path) -> dict[str, str]:
    lines = (line.split() for line in (dist / "SHA256SUMS").read_text().splitlines())
    return {name: checksum for checksum, name in lines}


def run_plugin(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program without any environment, thus without Python on the PATH."""
    command = [str(program), *arguments]
    return subprocess.run(command, env={}, cwd="/", capture_output=True, text=True, timeout=60, check=False)


def test_two_builds_of_one_commit_have_equal_digests(dist: Path, tmp_path: Path) -> None:
    again = checksums_of(build(clone(tmp_path / "somewhere" / "else"), "" if ALL else "image plugin"))
    first = checksums_of(dist)
    expected = first if ALL else {name: first[name] for name in first if name not in {PLUGIN, "reattach.yaml"}}
    assert {name: again.get(name) for name in expected} == expected
    assert len(expected) >= 6


def test_checksums_name_each_file(dist: Path) -> None:
    assert set(checksums_of(dist)) == {path.name for path in dist.iterdir()} - {"SHA256SUMS"}
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=dist, check=True)


def test_package_of_a_checkout_with_changes_is_refused(tmp_path: Path) -> None:
    directory = clone(tmp_path / "clone")
    (directory / "README.md").write_text("changed")
    done = subprocess.run([str(directory / "hack/package")], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "commit or stash them" in done.stderr
    assert not (directory / "dist").exists()


def test_wheel_has_the_package_its_types_and_no_tests(dist: Path) -> None:
    with zipfile.ZipFile(dist / f"reattach-{VERSION}-py3-none-any.whl") as wheel:
        names = wheel.namelist()
        metadata = email.message_from_bytes(wheel.read(f"reattach-{VERSION}.dist-info/METADATA"))
    assert {name.partition("/")[0] for name in names} == {"reattach", f"reattach-{VERSION}.dist-info"}
    assert "reattach/py.typed" in names
    assert not [name for name in names if "/tests/" in name or "__pycache__" in name]
    assert metadata["Version"] == VERSION
    assert {"operator", "cli"} <= set(metadata.get_all("Provides-Extra", []))


def test_wheel_installs_and_its_sdk_imports_without_extras(dist: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(dist / f"reattach-{VERSION}-py3-none-any.whl") as wheel:
        wheel.extractall(tmp_path)
    code = "import reattach, sys; from reattach import task; print(reattach.__file__); sys.exit('kopf' in sys.modules)"
    environment = {"PYTHONPATH": str(tmp_path)}
    python = str(REPOSITORY / ".venv/bin/python")
    done = subprocess.run([python, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(str(tmp_path))


def test_chart_is_read_by_helm_and_its_layout_has_the_same_archive(dist: Path) -> None:
    path = dist / f"reattach-{VERSION}.tgz"
    helm = [str(CACHE / "bin/helm"), "show", "chart", str(path)]
    shown = yaml.safe_load(subprocess.run(helm, check=True, capture_output=True, text=True).stdout)
    assert (shown["name"], shown["version"], shown["appVersion"]) == ("reattach", VERSION, VERSION)
    manifest, blobs = layout_of(dist / f"reattach-chart-{VERSION}.oci.tar")
    assert manifest["config"]["mediaType"] == "application/vnd.cncf.helm.config.v1+json"
    (layer,) = manifest["layers"]
    assert layer["mediaType"] == "application/vnd.cncf.helm.chart.content.v1.tar+gzip"
    assert blobs[layer["digest"]] == path.read_bytes()


@pytest.mark.skipif(not ALL, reason="the image is built with REATTACH_ALL=1")
def test_image_layout_has_every_layer_and_the_command_of_the_operator(dist: Path) -> None:
    (path,) = dist.glob("reattach-image-*.oci.tar")
    manifest, blobs = layout_of(path)
    config = json.loads(blobs[manifest["config"]["digest"]])
    assert config["config"]["User"] == "65532:65532"
    assert config["config"]["Labels"]["org.opencontainers.image.version"] == VERSION
    assert len(config["rootfs"]["diff_ids"]) == len(manifest["layers"])
    names: set[str] = set()
    for layer in manifest["layers"]:
        with tarfile.open(fileobj=io.BytesIO(blobs[layer["digest"]])) as archive:
            names.update(archive.getnames())
    assert "opt/reattach/bin/reattach-operator" in names


def layout_of(path: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return the manifest and the blobs of an OCI image layout, whose digests are checked."""
    with tarfile.open(path) as archive:
        files = {found.name: content.read() for found in archive if (content := archive.extractfile(found))}
    assert json.loads(files["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    prefix = "blobs/sha256/"
    blobs = {f"sha256:{name.removeprefix(prefix)}": files[name] for name in files if name.startswith(prefix)}
    for digest, content in blobs.items():
        assert digest == f"sha256:{hashlib.sha256(content).hexdigest()}"
    (entry,) = json.loads(files["index.json"])["manifests"]
    manifest: dict[str, Any] = json.loads(blobs[entry["digest"]])
    for descriptor in (entry, manifest["config"], *manifest["layers"]):
        assert len(blobs[descriptor["digest"]]) == descriptor["size"]
    return manifest, blobs


def test_plugin_runs_without_python(plugin: Path) -> None:
    shown = run_plugin(plugin / "kubectl-reattach", "version")
    assert shown.returncode == 0, shown.stderr
    assert VERSION in shown.stdout


def test_plugin_reads_a_kubeconfig_and_reports_an_unreachable_cluster(plugin: Path, tmp_path: Path) -> None:
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "a", "cluster": {"server": "http://127.0.0.1:1"}}],
        "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}],
        "users": [{"name": "a", "user": {"token": "a"}}],
        "current-context": "a",
    }
    path = tmp_path / "config"
    path.write_text(yaml.safe_dump(config))
    done = run_plugin(plugin / "kubectl-reattach", "list", "--kubeconfig", str(path))
    assert done.returncode != 0
    assert "127.0.0.1:1" in done.stderr
    assert "Traceback" not in done.stderr


def test_plugin_completes_by_the_name_that_kubectl_calls(plugin: Path) -> None:
    done = run_plugin(plugin / "kubectl_complete-reattach", "expl")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("explain")


def test_krew_manifest_has_the_checksum_and_program_of_each_archive(dist: Path) -> None:
    manifest = yaml.safe_load((dist / "reattach.yaml").read_text())
    assert (manifest["kind"], manifest["metadata"]["name"]) == ("Plugin", "reattach")
    assert manifest["spec"]["version"] == f"v{VERSION}"
    (found,) = manifest["spec"]["platforms"]
    assert found["uri"].endswith(f"/v{VERSION}/{PLUGIN}")
    assert found["sha256"] == hashlib.sha256((dist / PLUGIN).read_bytes()).hexdigest()
    with tarfile.open(dist / PLUGIN) as archive:
        program = archive.getmember(found["bin"])
        assert program.mode & 0o111
        assert archive.getmember("kubectl-reattach/LICENSE").isfile()


@pytest.mark.parametrize("name, package", [("image", "kopf"), ("kubectl-reattach", "click")])
def test_bill_of_materials_lists_packages_with_versions_and_hashes(dist: Path, name: str, package: str) -> None:
    materials = json.loads((dist / f"reattach-{name}-{VERSION}.cdx.json").read_text())
    assert materials["bomFormat"] == "CycloneDX"
    assert materials["metadata"]["component"]["version"] == VERSION
    found = {component["name"]: component for component in materials["components"]}
    assert found[package]["purl"].startswith(f"pkg:pypi/{package}@")
    assert any(reference.get("hashes") for reference in found[package]["externalReferences"])
