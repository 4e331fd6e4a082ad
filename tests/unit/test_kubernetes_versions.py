"""Agreement of the modules, the chart and the pages about the supported versions of Kubernetes."""

import re
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).parents[2]
MINORS = REPOSITORY / "hack/cluster/minors"


def versions_of_the_modules() -> dict[str, str]:
    """Return the patch version per minor version that the modules build: `1.34` to `v1.34.4`."""
    modules = [*MINORS.glob("1.*/go.mod"), REPOSITORY / "hack/cluster/kube/go.mod"]
    found = (re.search(r"^\tk8s\.io/kubernetes (v(1\.\d+)\.\d+)$", path.read_text(), re.MULTILINE) for path in modules)
    return {match[2]: match[1] for match in found if match}


def rows_of_the_page() -> dict[str, list[str]]:
    """Return the other cells of each row of the table of Kubernetes versions, by minor version."""
    section = (
        (REPOSITORY / "docs/compatibility.md").read_text().partition("## Kubernetes versions")[2].partition("\n## ")[0]
    )
    rows = re.findall(r"^\| (1\.\d+) \| (.*) \|$", section, re.MULTILINE)
    return {minor: cells.split(" | ") for minor, cells in rows}


def test_each_minor_folder_builds_the_version_of_its_name_with_staging_modules_of_that_version() -> None:
    for folder in MINORS.glob("1.*"):
        text = (folder / "go.mod").read_text()
        version = versions_of_the_modules()[folder.name].removeprefix("v1.")
        replaced = dict(re.findall(r"^\tk8s\.io/[\w-]+ => (k8s\.io/[\w-]+) v0\.(\S+)$", text, re.MULTILINE))
        assert len(replaced) > 20
        assert set(replaced.values()) == {version}, folder.name
        assert (folder / "main.go").read_text() == (MINORS / "main.go").read_text()


def test_tested_minors_are_consecutive_and_include_the_one_of_the_local_cluster() -> None:
    minors = sorted(int(minor.removeprefix("1.")) for minor in versions_of_the_modules())
    assert minors == list(range(minors[0], minors[0] + 4))
    pinned = re.search(r"^kubernetes=(v(1\.\d+)\.\d+)", (REPOSITORY / "hack/versions").read_text(), re.MULTILINE)
    assert pinned
    assert versions_of_the_modules()[pinned[2]] == pinned[1]


def test_compatibility_page_lists_each_tested_version_with_its_command() -> None:
    rows = {minor: cells[:2] for minor, cells in rows_of_the_page().items()}
    assert rows == {
        minor: [version, f"`make integration KUBERNETES={minor}`"]
        for minor, version in versions_of_the_modules().items()
    }
    assert all(len(cells) == 3 for cells in rows_of_the_page().values())


def test_chart_and_install_page_require_the_oldest_tested_minor() -> None:
    oldest = min(versions_of_the_modules(), key=lambda minor: int(minor.removeprefix("1.")))
    chart = yaml.safe_load((REPOSITORY / "charts/reattach/Chart.yaml").read_text())
    assert chart["kubeVersion"] == f">={oldest}.0-0"
    assert f"Kubernetes {oldest} or newer" in (REPOSITORY / "docs/install.md").read_text()
