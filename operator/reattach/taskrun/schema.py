"""Check that the CRD has every field that this operator writes or selects by."""

import logging
from collections.abc import Iterator
from typing import Any, get_args

import msgspec

from reattach.api.names import VERSION
from reattach.api.objects import Condition
from reattach.api.taskrun import TaskRunStatus
from reattach.cluster import Cluster, NotFoundError, paths
from reattach.taskrun.ttl import TTL_FIELDS

_SELECTABLE = (".status.outcome", *(f".spec.ttl.{field}" for field in TTL_FIELDS.values()))

_log = logging.getLogger(__name__)


class SchemaError(Exception):
    """CRD that is absent or older than this operator. The message names what to do."""


async def check_schema(cluster: Cluster) -> None:
    """Raise `SchemaError` if the CRD would drop a field that we write.

    A 403 raises `ForbiddenError` instead, because an API server that has just started refuses all
    clients until it has read its roles.
    """
    try:
        crd = msgspec.json.decode(await cluster.get(paths.CRD))
    except NotFoundError:
        raise SchemaError(
            "the CRD taskruns.reattach.dev is not installed; apply crds/taskruns.yaml or upgrade the chart"
        ) from None
    if missing := list(missing_from(crd)):
        raise SchemaError(
            f"the CRD taskruns.reattach.dev is older than this operator: it lacks {', '.join(missing)}; "
            "apply crds/taskruns.yaml of this version or upgrade the chart"
        )


def missing_from(crd: dict[str, Any]) -> Iterator[str]:
    """Yield the fields of our version that the CRD lacks.

    Each is a path such as `.status.attempts[].cause`. The API server silently drops fields that the
    schema lacks, so a recorded end would be lost.
    """
    version = next((v for v in crd["spec"]["versions"] if v["name"] == VERSION and v.get("served")), None)
    if version is None:
        yield f"the version {VERSION}"
        return
    if "status" not in version.get("subresources", {}):
        yield "the subresource status"
    selectable = {field["jsonPath"] for field in version.get("selectableFields", [])}
    yield from (f"the selectable field {path}" for path in _SELECTABLE if path not in selectable)
    status = version["schema"]["openAPIV3Schema"].get("properties", {}).get("status", {})
    yield from _missing_fields(TaskRunStatus, status, ".status")


def _missing_fields(kind: type[msgspec.Struct], schema: dict[str, Any], path: str) -> Iterator[str]:
    properties = schema.get("properties", {})
    for field in msgspec.structs.fields(kind):
        where = f"{path}.{field.encode_name}"
        if field.encode_name not in properties:
            yield where
        else:
            yield from _missing_below(field.type, properties[field.encode_name], where)


def _missing_below(kind: Any, schema: dict[str, Any], path: str) -> Iterator[str]:
    for inner in (kind, *get_args(kind)):
        if isinstance(inner, type) and issubclass(inner, msgspec.Struct) and inner is not Condition:
            if schema.get("type") == "array":
                yield from _missing_fields(inner, schema.get("items", {}), f"{path}[]")
            else:
                yield from _missing_fields(inner, schema, path)
