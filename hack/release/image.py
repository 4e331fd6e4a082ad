"""Image: the output of `docker save` as an OCI image layout with stable bytes."""

import gzip
import hashlib
import json
import tarfile
from pathlib import Path
from typing import Any

from release.archives import Layout, compress, encode, repack

_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
_GZIP = b"\x1f\x8b"
_KEPT = ("Cmd", "Entrypoint", "Env", "ExposedPorts", "Labels", "StopSignal", "User", "Volumes", "WorkingDir")
"""Fields of a config that a container engine reads. The others describe the build."""


def image_layout(saved: Path, *, version: str, revision: str, created: str, time: int) -> tuple[str, bytes]:
    """Return the platform of a saved image, such as `linux-amd64`, and its OCI image layout.

    Raises:
        ValueError: the archive contains no image, or more than one.
    """
    layout = Layout()
    with tarfile.open(saved) as archive:
        manifests = json.loads(_read(archive, "manifest.json"))
        if len(manifests) != 1:
            raise ValueError(f"{saved} must contain one image, but contains {len(manifests)}")
        config = json.loads(_read(archive, manifests[0]["Config"]))
        contents = [_stable(_read(archive, name), time) for name in manifests[0]["Layers"]]
    layers = [layout.add(compress(content), _LAYER) for content in contents]
    labels = {
        **(config["config"].get("Labels") or {}),
        "org.opencontainers.image.created": created,
        "org.opencontainers.image.licenses": "Apache-2.0",
        "org.opencontainers.image.revision": revision,
        "org.opencontainers.image.title": "reattach",
        "org.opencontainers.image.version": version,
    }
    platform = {"os": config["os"], "architecture": config["architecture"]}
    stable: dict[str, Any] = {
        **platform,
        "created": created,
        "config": {**{name: config["config"][name] for name in _KEPT if config["config"].get(name)}, "Labels": labels},
        "rootfs": {
            "type": "layers",
            "diff_ids": [f"sha256:{hashlib.sha256(content).hexdigest()}" for content in contents],
        },
    }
    return f"{config['os']}-{config['architecture']}", layout.archive_of(
        layout.add(encode(stable), _CONFIG), layers, reference=version, annotations=labels, platform=platform
    )


def _read(archive: tarfile.TarFile, name: str) -> bytes:
    content = archive.extractfile(name)
    assert content is not None
    return content.read()


def _stable(layer: bytes, time: int) -> bytes:
    return repack(gzip.decompress(layer) if layer.startswith(_GZIP) else layer, time)
