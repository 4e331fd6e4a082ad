"""Chart: `helm package` with stable bytes, and the same archive as an OCI image layout."""

import gzip
import io
import tarfile
from typing import Any

import yaml

from release.archives import Layout, compress, encode, repack

_CONFIG = "application/vnd.cncf.helm.config.v1+json"
_CONTENT = "application/vnd.cncf.helm.chart.content.v1.tar+gzip"


def stable_chart(packed: bytes, time: int) -> bytes:
    """Return the archive of `helm package` with the time of the commit on each file."""
    return compress(repack(gzip.decompress(packed), time))


def chart_layout(packed: bytes, created: str) -> bytes:
    """Return a chart as the OCI artifact that `helm push` uploads.

    Source: https://helm.sh/docs/topics/registries/
    """
    metadata = metadata_of(packed)
    layout = Layout()
    config = layout.add(encode(metadata), _CONFIG)
    content = layout.add(packed, _CONTENT)
    annotations = {
        "org.opencontainers.image.created": created,
        "org.opencontainers.image.description": metadata["description"],
        "org.opencontainers.image.title": metadata["name"],
        "org.opencontainers.image.version": metadata["version"],
    }
    return layout.archive_of(config, [content], reference=metadata["version"], annotations=annotations)


def metadata_of(packed: bytes) -> dict[str, Any]:
    """Return Chart.yaml of a packed chart."""
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        (name,) = (found for found in archive.getnames() if found.count("/") == 1 and found.endswith("/Chart.yaml"))
        content = archive.extractfile(name)
        assert content is not None
        metadata: dict[str, Any] = yaml.safe_load(content)
    return metadata
