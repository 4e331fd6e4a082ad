"""Generate the chart's README from the comments of values.yaml.

Run it after you changed values.yaml: `.venv/bin/python hack/chart_readme.py`.
"""

import json
import re
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).parent.parent / "charts/reattach"
HEAD = """# reattach

{description}

[Install](../../docs/install.md) explains the installation, the upgrade and the values worth knowing. [Runbooks](../../docs/runbooks.md) explains the
alerts. This page is generated from `values.yaml` by `hack/chart_readme.py`.

Chart {version}, application {appVersion}, Kubernetes {kubeVersion}.

    helm install reattach charts/reattach --namespace reattach --create-namespace --set image.repository=REGISTRY/reattach

| value | default | meaning |
| --- | --- | --- |
"""


def comments(text: str) -> dict[str, str]:
    """Return the comments that begin with `# --`, by the path of the value below them."""
    found: dict[str, str] = {}
    path: list[tuple[int, str]] = []
    comment = ""
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith("# -- "):
            comment = stripped.removeprefix("# -- ")
        elif stripped.startswith("# ") and comment:
            comment += " " + stripped.removeprefix("# ")
        elif match := re.match(r"( *)([A-Za-z_]+):", line):
            indent = len(match[1])
            path = [part for part in path if part[0] < indent] + [(indent, match[2])]
            if comment:
                found[".".join(name for _, name in path)] = comment
            comment = ""
    return found


def rows(values: Any, known: dict[str, str], path: str = "") -> list[str]:
    """Return one row for each value, and one for each object that has a comment."""
    if isinstance(values, dict) and (not path or (values and not is_leaf(values, path, known))):
        head = [f"| `{path}` | | {known[path]} |"] if path in known else []
        return head + [row for key, value in values.items() for row in rows(value, known, f"{path}.{key}".strip("."))]
    return [f"| `{path}` | `{json.dumps(values)}` | {known.get(path, '')} |"]


def is_leaf(values: dict[str, Any], path: str, known: dict[str, str]) -> bool:
    """Return whether an object is one value, as a limit or the resources of a container."""
    return not any(name.startswith(f"{path}.") for name in known) and "enabled" not in values and path != "image"


def readme() -> str:
    """Return the text of the README."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    text = (CHART / "values.yaml").read_text()
    return HEAD.format(**chart) + "\n".join(rows(yaml.safe_load(text), comments(text))) + "\n"


if __name__ == "__main__":
    (CHART / "README.md").write_text(readme())
