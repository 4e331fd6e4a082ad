"""The manifests of the how-tos: the real API server accepts each of them, with strict fields."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from controlplane import REPOSITORY, ControlPlane, ControlPlaneError

NOT_SERVED = {("kustomize.toolkit.fluxcd.io/v1", "Kustomization")}
"""Kinds of products that no test runs; docs/howto/delivery.md says so."""
PLURALS = {"NetworkPolicy": "networkpolicies"}


def manifests() -> Iterator[Any]:
    for page in sorted((REPOSITORY / "docs/howto").glob("*.md")):
        for block in re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL):
            for manifest in yaml.safe_load_all(block):
                if (manifest["apiVersion"], manifest["kind"]) in NOT_SERVED:
                    continue
                yield pytest.param(manifest, id=f"{page.stem}-{manifest['kind']}")
                for key, text in manifest.get("data", {}).items():
                    if key.endswith(".yaml"):
                        yield pytest.param(yaml.safe_load(text.replace("DAY", "2026-11-22")), id=f"{page.stem}-{key}")


def try_to_create(control_plane: ControlPlane, namespace: str, manifest: dict[str, Any]) -> None:
    version, kind = manifest["apiVersion"], manifest["kind"]
    prefix = f"/apis/{version}" if "/" in version else f"/api/{version}"
    path = f"{prefix}/namespaces/{namespace}/{PLURALS.get(kind, kind.lower() + 's')}"
    control_plane.call("POST", path, manifest, dryRun="All", fieldValidation="Strict")


@pytest.mark.parametrize("manifest", list(manifests()))
def test_manifest_is_accepted(manifest: dict[str, Any], control_plane: ControlPlane, namespace: str) -> None:
    try_to_create(control_plane, namespace, manifest)


def test_manifest_with_an_unknown_field_is_refused(control_plane: ControlPlane, namespace: str) -> None:
    container = {"name": "task", "image": "task"}
    spec = {"template": {"spec": {"containers": [container]}}, "schedule": "0 3 * * *"}
    manifest = {"apiVersion": "reattach.dev/v1alpha1", "kind": "TaskRun", "metadata": {"name": "load"}, "spec": spec}
    with pytest.raises(ControlPlaneError, match="unknown field"):
        try_to_create(control_plane, namespace, manifest)
