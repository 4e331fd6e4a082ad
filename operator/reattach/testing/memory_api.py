"""A Kubernetes API in memory: the part of `reattach.cluster.Cluster` that the suite needs.

It behaves like the API server where submitting once depends on it: resourceVersions and their
conflicts, preconditions on the UID, finalizers and deletion times, the status subresource,
generations, foreground deletion, ending namespaces, and TokenReview for pod tokens.
`tests/conformance/test_memory_api.py` runs the same tests against this class and against a real API
server. Schemas, admission, RBAC, defaults, quotas and the expiry of events are not implemented, and
a namespace need not exist. Garbage and the content of namespaces are collected by
`reattach.testing.simulated_cluster`.
"""

import copy
import itertools
import json
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import msgspec
from typing_extensions import override

from reattach.api.names import PLURAL, TOKEN_AUDIENCE
from reattach.cluster import (
    AlreadyExistsError,
    BadRequestError,
    Cluster,
    ConflictError,
    ForbiddenError,
    InvalidError,
    NotFoundError,
    UnavailableError,
)
from reattach.cluster.paths import TOKEN_REVIEWS, core, namespace_of

JSON = dict[str, Any]
_STATUS = "/status"
_WITH_STATUS = {PLURAL, "pods"}
"""Resources whose status is written only through the subresource."""
_WITH_GENERATION = {PLURAL, "pods"}
_OVER = {"Succeeded", "Failed"}
_NAMESPACES = "namespaces"
FOREGROUND_DELETION = "foregroundDeletion"
"""Finalizer that the garbage collector removes after it has deleted the dependents."""


@dataclass(frozen=True)
class ObjectChange:
    """A watch event.

    kind: ADDED, MODIFIED or DELETED.
    resource: the plural name, for example `pods`.
    """

    kind: str
    resource: str
    raw: bytes


class InMemoryCluster(Cluster):
    """Objects by path. Each call returns a copy, as JSON."""

    def __init__(self, now: Callable[[], datetime]) -> None:
        # Does not call `Cluster.__init__`, because there is no server to connect to.
        self._now = now
        self._objects: dict[str, JSON] = {}
        self._versions = itertools.count(1000)
        self.changes: list[ObjectChange] = []
        """Changes in order, until a reader replaces this list."""
        self.on_change: Callable[[], None] = lambda: None
        self.is_down = False
        """Makes each call fail as if the API server were unavailable."""

    @override
    async def close(self) -> None:
        """Do nothing, because no connection is open."""

    # -- reading -----------------------------------------------------------------------------------

    @override
    async def get(self, path: str, *, metadata_only: bool = False, **_query: str | int | None) -> bytes:
        self._check_up()
        return _encoded(self._found(path), metadata_only=metadata_only)

    @override
    async def list(self, path: str, *, metadata_only: bool = False, **query: str | int | None) -> bytes:
        self._check_up()
        items = [
            _metadata_of(found) if metadata_only else found
            for at, found in self._objects.items()
            if _is_in(at, path) and _matches(query.get("labelSelector"), found["metadata"].get("labels") or {})
        ]
        version = str(max((int(found["metadata"]["resourceVersion"]) for found in self._objects.values()), default=0))
        return msgspec.json.encode({"metadata": {"resourceVersion": version}, "items": items})

    # -- writing -----------------------------------------------------------------------------------

    @override
    async def create(self, path: str, body: Mapping[str, Any] | bytes, **_query: str | int | None) -> bytes:
        self._check_up()
        made = json.loads(body) if isinstance(body, bytes) else copy.deepcopy(dict(body))
        if path == TOKEN_REVIEWS:
            return msgspec.json.encode(self._review(made))
        name = made["metadata"]["name"]
        if (at := f"{path}/{name}") in self._objects:
            raise AlreadyExistsError(409, "AlreadyExists", f"{_resource_of(at)} {name!r} already exists")
        made["metadata"] |= {"uid": str(uuid.uuid4()), "creationTimestamp": _text_of(self._now())}
        if _resource_of(at) != _NAMESPACES:
            self._check_namespace_accepts(at)
            made["metadata"]["namespace"] = _namespace_of(at)
        if _resource_of(at) in _WITH_GENERATION:
            made["metadata"]["generation"] = 1
        if _resource_of(at) in _WITH_STATUS:
            made["status"] = {"phase": "Pending"} if _resource_of(at) == "pods" else {}
        return self._store(at, made, "ADDED")

    @override
    async def replace(self, path: str, body: Mapping[str, Any], **_query: str | int | None) -> bytes:
        self._check_up()
        at = path.removesuffix(_STATUS)
        return self._write(at, copy.deepcopy(dict(body)), is_status=path.endswith(_STATUS))

    @override
    async def merge_patch(self, path: str, body: Mapping[str, Any], **_query: str | int | None) -> bytes:
        self._check_up()
        at = path.removesuffix(_STATUS)
        return self._write(at, merged(self._found(at), body), is_status=path.endswith(_STATUS), given=body)

    @override
    async def json_patch(self, path: str, operations: Sequence[Mapping[str, Any]], **_query: str | int | None) -> bytes:
        raise NotImplementedError(f"JSON patches are not implemented: {path} {operations}")

    @override
    async def delete(
        self,
        path: str,
        *,
        uid: str | None = None,
        resource_version: str | None = None,
        grace_period_seconds: int | None = None,
        propagation_policy: str | None = None,
    ) -> bytes:
        self._check_up()
        found = copy.deepcopy(self._found(path))
        metadata = found["metadata"]
        for what, wanted in (("uid", uid), ("resourceVersion", resource_version)):
            if wanted is not None and metadata[what] != wanted:
                message = f"Precondition failed: {what} in precondition: {wanted}, in object meta: {metadata[what]}"
                raise ConflictError(409, "Conflict", message)
        grace = _grace_of(found, grace_period_seconds) if _resource_of(path) == "pods" else 0
        before = metadata.get("finalizers") or []
        finalizers = _with_propagation(before, propagation_policy)
        if not finalizers and grace == 0 and _resource_of(path) != _NAMESPACES:
            return self._remove(path)
        if (
            "deletionTimestamp" in metadata
            and grace >= metadata.get("deletionGracePeriodSeconds", 0)
            and finalizers == before
        ):
            return msgspec.json.encode(found)
        if finalizers != before:
            metadata["finalizers"] = finalizers
        metadata["deletionTimestamp"] = _text_of(self._now() + timedelta(seconds=grace))
        metadata["deletionGracePeriodSeconds"] = grace
        if _resource_of(path) in _WITH_GENERATION:
            metadata["generation"] += 1
        return self._store(path, found, "MODIFIED")

    @override
    async def watch(
        self,
        path: str,
        *,
        resource_version: str,
        metadata_only: bool = False,
        timeout_seconds: int = 300,
        silence_seconds: float = 90,
        **query: str | int | None,
    ) -> AsyncGenerator[bytes, None]:
        raise NotImplementedError(f"read `changes` instead of watching {path}")
        yield b""  # type: ignore[unreachable] # makes this function a generator, like that of Cluster

    # -- pod tokens --------------------------------------------------------------------------------

    def token_of(self, pod: Mapping[str, Any]) -> str:
        """Return the token of a pod, which is valid as long as this pod exists."""
        metadata = pod["metadata"]
        return f"pod.{metadata['namespace']}.{metadata['name']}.{metadata['uid']}"

    def _review(self, body: Mapping[str, Any]) -> JSON:
        kind, _, rest = str(body["spec"]["token"]).partition(".")
        namespace, name, uid = [*rest.split("."), "", "", ""][:3]
        pod = self._objects.get(core("pods", namespace or "-", name or "-"))
        if kind != "pod" or pod is None or pod["metadata"]["uid"] != uid:
            return {"status": {"authenticated": False, "error": "the token is invalid"}}
        extra = {
            "authentication.kubernetes.io/pod-name": [name],
            "authentication.kubernetes.io/pod-uid": [uid],
        }
        user = {"username": f"system:serviceaccount:{namespace}:default", "extra": extra}
        return {"status": {"authenticated": True, "audiences": [TOKEN_AUDIENCE], "user": user}}

    # -- namespaces --------------------------------------------------------------------------------

    def remove_namespace(self, name: str) -> None:
        """Remove an ending namespace, as its controller does once it is empty."""
        self._remove(namespace_of(name))

    def _check_namespace_accepts(self, at: str) -> None:
        namespace, name = _namespace_of(at), at.rpartition("/")[2]
        found = self._objects.get(namespace_of(namespace))
        if found is not None and "deletionTimestamp" in found["metadata"]:
            why = f"unable to create new content in namespace {namespace} because it is being terminated"
            raise ForbiddenError(403, "Forbidden", f'{_resource_of(at)} "{name}" is forbidden: {why}')

    # -- effects of a write ------------------------------------------------------------------------

    def _check_up(self) -> None:
        if self.is_down:
            raise UnavailableError(0, "NoAnswer", "the API server can't be reached")

    def _found(self, path: str) -> JSON:
        try:
            return self._objects[path]
        except KeyError:
            raise NotFoundError(
                404, "NotFound", f"{_resource_of(path)} {path.rpartition('/')[2]!r} not found"
            ) from None

    def _write(self, at: str, new: JSON, *, is_status: bool, given: Mapping[str, Any] | None = None) -> bytes:
        """Write an object or its status.

        given: the body of a patch. Only the preconditions that it contains are checked.
        """
        old = self._found(at)
        metadata = (new if given is None else given).get("metadata") or {}
        self._check_preconditions(at, old, metadata, is_patch=given is not None)
        # Fields that only the API server writes.
        for name in ("uid", "creationTimestamp", "generation", "deletionTimestamp", "deletionGracePeriodSeconds"):
            new["metadata"].pop(name, None)
            if name in old["metadata"]:
                new["metadata"][name] = old["metadata"][name]
        new["metadata"]["resourceVersion"] = old["metadata"]["resourceVersion"]
        if is_status:
            new = {**copy.deepcopy(old), "status": new.get("status") or {}}
        elif _resource_of(at) in _WITH_STATUS:
            new["status"] = copy.deepcopy(old.get("status") or {})
        if new == old:
            return msgspec.json.encode(old)
        if "deletionTimestamp" in old["metadata"]:
            added = set(new["metadata"].get("finalizers") or ()) - set(old["metadata"].get("finalizers") or ())
            if added:
                message = f"metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers {sorted(added)}"
                raise InvalidError(422, "Invalid", message)
        if _resource_of(at) in _WITH_GENERATION and new.get("spec") != old.get("spec"):
            new["metadata"]["generation"] += 1
        if _is_gone(new):
            return self._remove(at)
        return self._store(at, new, "MODIFIED")

    def _check_preconditions(self, at: str, old: JSON, given: Mapping[str, Any], *, is_patch: bool) -> None:
        name = at.rpartition("/")[2]
        if (version := given.get("resourceVersion")) and version != old["metadata"]["resourceVersion"]:
            message = f"Operation cannot be fulfilled on {_resource_of(at)} {name!r}: the object has been modified"
            raise ConflictError(409, "Conflict", message)
        if (uid := given.get("uid")) and uid != old["metadata"]["uid"]:
            if is_patch:
                raise InvalidError(422, "Invalid", f"metadata.uid: Invalid value: {uid!r}: field is immutable")
            raise ConflictError(409, "Conflict", f"Precondition failed: UID in precondition: {uid}")
        if given.get("name", name) != name:
            raise BadRequestError(400, "BadRequest", "the name of the object does not match the name on the URL")

    def _store(self, at: str, new: JSON, kind: str) -> bytes:
        new["metadata"]["resourceVersion"] = str(next(self._versions))
        self._objects[at] = new
        raw = msgspec.json.encode(new)
        self._record_change(ObjectChange(kind, _resource_of(at), raw))
        return raw

    def _remove(self, at: str) -> bytes:
        gone = self._objects.pop(at)
        gone["metadata"]["resourceVersion"] = str(next(self._versions))
        raw = msgspec.json.encode(gone)
        self._record_change(ObjectChange("DELETED", _resource_of(at), raw))
        return raw

    def _record_change(self, change: ObjectChange) -> None:
        self.changes.append(change)
        self.on_change()


def merged(target: Any, patch: Any) -> Any:
    """Return the result of a JSON merge patch (RFC 7386)."""
    if not isinstance(patch, Mapping):
        return copy.deepcopy(patch)
    result = copy.deepcopy(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merged(result.get(name), value)
    return result


def _is_gone(new: JSON) -> bool:
    metadata = new["metadata"]
    waits = metadata.get("deletionGracePeriodSeconds", 0) != 0
    return "deletionTimestamp" in metadata and not metadata.get("finalizers") and not waits


def _grace_of(pod: JSON, requested: int | None) -> int:
    """Return the grace period of a pod in seconds, or 0 if it has no node or is terminal."""
    if not pod["spec"].get("nodeName") or (pod.get("status") or {}).get("phase") in _OVER:
        return 0
    seconds: int = pod["spec"].get("terminationGracePeriodSeconds", 30) if requested is None else requested
    return seconds


def _with_propagation(finalizers: Sequence[str], policy: str | None) -> list[str]:
    """Return the finalizers of a deleted object. Without a policy, the earlier one applies."""
    others = [name for name in finalizers if name != FOREGROUND_DELETION]
    if policy == "Foreground" or (policy is None and FOREGROUND_DELETION in finalizers):
        return [*others, FOREGROUND_DELETION]
    return others


def _encoded(found: JSON, *, metadata_only: bool) -> bytes:
    return msgspec.json.encode(_metadata_of(found) if metadata_only else found)


def _metadata_of(found: JSON) -> JSON:
    return {"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": found["metadata"]}


def _matches(selector: str | int | None, labels: Mapping[str, str]) -> bool:
    """Return whether the labels match a selector of `name=value` and `name` (any value) parts."""
    parts = [part.partition("=") for part in str(selector).split(",")] if selector else []
    return all(name in labels and (not equals or labels[name] == value) for name, equals, value in parts)


def _is_in(at: str, collection: str) -> bool:
    """Return whether an object is in a collection of one namespace or of all namespaces."""
    if at.rpartition("/")[0] == collection:
        return True
    prefix, _, plural = collection.rpartition("/")
    return "/namespaces/" not in collection and at.startswith(f"{prefix}/namespaces/") and _resource_of(at) == plural


def _resource_of(path: str) -> str:
    return path.split("/")[-2]


def _namespace_of(path: str) -> str:
    return path.split("/")[-3]


def _text_of(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")
