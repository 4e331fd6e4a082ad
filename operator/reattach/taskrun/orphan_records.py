"""ConfigMaps with the external jobs that ended TaskRuns left running.

The operator creates them, so that the record outlives the TaskRun. Users delete them.
"""

import logging
from typing import Any

import msgspec

from reattach.api.names import LABEL_ORPHANS, orphans_name
from reattach.api.objects import ObjectMeta, PartialObject, Shape
from reattach.api.orphans import RECORD, OrphanRecord
from reattach.cluster import (
    AlreadyExistsError,
    BadRequestError,
    ClusterError,
    ForbiddenError,
    InvalidError,
    NotFoundError,
    UnavailableError,
    paths,
)
from reattach.cluster.errors import NO_REASON, is_webhook_denial
from reattach.runtime.metrics import OperatorMetrics
from reattach.runtime.object_store import ObjectStore
from reattach.runtime.workqueue import Key
from reattach.runtime.writer import Writer

_TOO_LARGE = 413

_log = logging.getLogger(__name__)


class _StoredRecord(Shape, frozen=True):
    metadata: ObjectMeta = ObjectMeta()
    data: dict[str, str] = msgspec.field(default_factory=dict)


class OrphanRecords:
    """Writes the records, and finds those of earlier TaskRuns of a name in `store`."""

    def __init__(self, writer: Writer, store: ObjectStore[PartialObject], metrics: OperatorMetrics) -> None:
        self._writer = writer
        self._store = store
        self._metrics = metrics
        self._unstored: dict[Key, str] = {}
        """Ending TaskRuns with a counted record that can't be stored, and their UIDs."""

    def predecessors(self, metadata: ObjectMeta) -> tuple[str, ...]:
        """Return the names of the records that earlier TaskRuns of this name left."""
        own = orphans_name(metadata.name, metadata.uid)
        found = self._store.by_key(Key(metadata.namespace, metadata.name))
        return tuple(sorted(each.metadata.name for each in found if each.metadata.name != own))

    def is_shown(self, metadata: ObjectMeta) -> bool:
        """Return whether the watch shows the record of this TaskRun."""
        own, key = orphans_name(metadata.name, metadata.uid), Key(metadata.namespace, metadata.name)
        return any(each.metadata.name == own for each in self._store.by_key(key))

    async def write(self, namespace: str, record: OrphanRecord) -> None:
        """Store the record. Do nothing if it is stored already.

        If the API server rejects it for good, log the jobs as an error, because the end of the run
        must not wait for ever. Raises `ClusterError` if a retry may help.
        """
        name = orphans_name(record.taskrun, record.uid)
        try:
            await self._create_or_replace(namespace, name, record)
        except ClusterError as error:
            if not is_final(error, name):
                raise
            self._report_unstored(namespace, record, str(error))

    def forget(self, key: Key) -> None:
        """Forget a TaskRun that no record is written for any more."""
        self._unstored.pop(key, None)

    async def _create_or_replace(self, namespace: str, name: str, record: OrphanRecord) -> None:
        body = body_of(namespace, name, record)
        try:
            response = await self._writer.create(paths.configmaps(namespace), body)
        except AlreadyExistsError:
            response = await self._replace(namespace, name, record, body)
        if response:
            self._store.upsert(msgspec.json.decode(response, type=PartialObject))

    async def _replace(self, namespace: str, name: str, record: OrphanRecord, body: dict[str, Any]) -> bytes:
        """Replace a record of the same TaskRun that differs. Return the response, empty if none."""
        path = paths.configmaps(namespace, name)
        try:
            found = msgspec.json.decode(await self._writer.get(path), type=_StoredRecord)
        except NotFoundError:
            raise UnavailableError(0, "Vanished", f"ConfigMap {name} existed and was deleted meanwhile") from None
        if found.metadata.labels.get(LABEL_ORPHANS) != record.taskrun:
            self._report_unstored(namespace, record, f"another ConfigMap has the name {name}")
            return b""
        stored = record_of(found.data)
        if stored == record:
            return b""
        if stored is not None and stored.uid != record.uid:
            self._report_unstored(namespace, record, f"ConfigMap {name} is the record of another TaskRun")
            return b""
        body["metadata"]["resourceVersion"] = found.metadata.resource_version
        return await self._writer.replace(path, body)

    def _report_unstored(self, namespace: str, record: OrphanRecord, why: str) -> None:
        # This step is repeated after a conflict, and while the cache still shows the finalizer. Its
        # jobs are logged again, and counted once.
        key = Key(namespace, record.taskrun)
        if self._unstored.get(key) != record.uid:
            self._unstored[key] = record.uid
            self._metrics.unstored_orphan_records.inc()
        jobs = msgspec.json.encode(record.jobs).decode()
        text = "TaskRun %s/%s: the record of the external jobs that it leaves running can't be stored: %s. Jobs: %s"
        _log.error(text, namespace, record.taskrun, why, jobs)


def body_of(namespace: str, name: str, record: OrphanRecord) -> dict[str, Any]:
    """Return the ConfigMap. It has no owner, so that it stays when the TaskRun is deleted."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": namespace, "labels": {LABEL_ORPHANS: record.taskrun}},
        "data": {RECORD: msgspec.json.encode(record).decode()},
    }


def record_of(data: dict[str, str]) -> OrphanRecord | None:
    """Return the stored record; None if it can't be read, because users may edit it."""
    try:
        return msgspec.json.decode(data.get(RECORD, ""), type=OrphanRecord)
    except (msgspec.DecodeError, RecursionError):
        return None


def is_final(error: ClusterError, name: str) -> bool:
    """Return whether another try to store a record can't help.

    The namespace is gone or ends, a quota is full, or an admission policy or webhook denies it.
    """
    if is_webhook_denial(error) or error.message.startswith(f'configmaps "{name}" is forbidden: '):
        return True
    is_rejected = isinstance(error, BadRequestError | ForbiddenError | InvalidError | NotFoundError)
    # A response without a reason comes from a proxy, not from the API server.
    return (is_rejected or error.status == _TOO_LARGE) and error.reason != NO_REASON


def key_by_orphans_label(found: PartialObject) -> Key:
    """Return the key of the TaskRuns that have the name in the label of a record."""
    return Key(found.metadata.namespace, found.metadata.labels.get(LABEL_ORPHANS, ""))


def orphan_store() -> ObjectStore[PartialObject]:
    """Return a store of the metadata of records. No change of a record needs a reconciliation."""
    return ObjectStore(key_by_orphans_label, lambda _: None, transform=_without_annotations)


def _without_annotations(found: PartialObject) -> PartialObject:
    metadata = msgspec.structs.replace(found.metadata, annotations={}, owner_references=(), finalizers=())
    return msgspec.structs.replace(found, metadata=metadata)
