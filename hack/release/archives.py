"""Reproducible tar archives and OCI image layouts."""

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

_INDEX = "application/vnd.oci.image.index.v1+json"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_REFERENCE = "org.opencontainers.image.ref.name"
_LEVEL = 6


def pack_directory(directory: Path, prefix: str, time: int) -> bytes:
    """Return a directory as a gzip-compressed tar archive, sorted, with one time and no owner."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted(directory.rglob("*")):
            name = f"{prefix}/{path.relative_to(directory)}"
            found = archive.gettarinfo(path, name)
            found.mode = 0o755 if found.isdir() or found.issym() or found.mode & 0o100 else 0o644
            found.uid = found.gid = 0
            found.uname = found.gname = ""
            found.mtime = time
            if found.isreg():
                with path.open("rb") as content:
                    archive.addfile(found, content)
            else:
                archive.addfile(found)
    return compress(buffer.getvalue())


def repack(archive: bytes, time: int) -> bytes:
    """Return an uncompressed tar archive with sorted entries, which all have the same time."""
    buffer = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(archive)) as before,
        tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as after,
    ):
        # A hard link must follow the file that it names.
        for found in sorted(before.getmembers(), key=lambda each: (each.islnk(), each.name)):
            found.mtime = time
            found.pax_headers = {name: value for name, value in found.pax_headers.items() if name not in _TIMES}
            after.addfile(found, before.extractfile(found) if found.isreg() else None)
    return buffer.getvalue()


_TIMES = frozenset({"mtime", "atime", "ctime", "LIBARCHIVE.creationtime"})


def compress(content: bytes) -> bytes:
    """Return the content compressed by gzip, without a time or a file name."""
    return gzip.compress(content, _LEVEL, mtime=0)


class Layout:
    """OCI image layout with one manifest.

    Source: https://github.com/opencontainers/image-spec/blob/v1.1.1/image-layout.md
    """

    def __init__(self) -> None:
        self._blobs: dict[str, bytes] = {}

    def add(self, content: bytes, media_type: str) -> dict[str, Any]:
        """Add a blob. Return its descriptor."""
        digest = hashlib.sha256(content).hexdigest()
        self._blobs[digest] = content
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}

    def archive_of(
        self,
        config: Mapping[str, Any],
        layers: Iterable[Mapping[str, Any]],
        *,
        reference: str,
        annotations: Mapping[str, str],
        platform: Mapping[str, str] | None = None,
    ) -> bytes:
        """Return the layout as a tar archive, with one manifest of this config and these layers."""
        manifest = {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": config,
            "layers": list(layers),
            "annotations": dict(annotations),
        }
        entry = {**self.add(encode(manifest), _MANIFEST), "annotations": {_REFERENCE: reference}}
        if platform:
            entry["platform"] = dict(platform)
        index = {"schemaVersion": 2, "mediaType": _INDEX, "manifests": [entry]}
        files = {
            "oci-layout": encode({"imageLayoutVersion": "1.0.0"}),
            "index.json": encode(index),
            **{f"blobs/sha256/{digest}": content for digest, content in self._blobs.items()},
        }
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for name, content in sorted(files.items()):
                found = tarfile.TarInfo(name)
                found.size, found.mode = len(content), 0o644
                archive.addfile(found, io.BytesIO(content))
        return buffer.getvalue()


def encode(value: Any) -> bytes:
    """Return a value as compact JSON with sorted keys."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
