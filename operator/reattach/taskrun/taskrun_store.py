"""Cache of unfinished TaskRuns.

Events of kopf's watch contain only references, and wake the workers. The objects come from a
reflector and from the responses to own writes. If the reflector is late or can't decode an object,
a GET reads it. A periodic resync lists the references, because a watch may miss some.

Users decide how large a TaskRun is, so the cache keeps no large template. A GET reads such a
TaskRun each time it is reconciled. Only a short record of a TaskRun of another manager is kept.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Sequence

import msgspec

from reattach.api.names import ANNOTATION_WAKE, GROUP, KIND, OPERATOR_NAME, PLURAL, VERSION
from reattach.api.objects import ObjectMeta, PartialObject
from reattach.api.reasons import Reason
from reattach.api.taskrun import TaskRun, TaskRunSpec
from reattach.cluster import Cluster, ForbiddenError, NotFoundError, Reference, paths
from reattach.cluster.nesting import cut_deep_values
from reattach.planner.conditions import is_held
from reattach.runtime.object_store import ObjectStore, is_older
from reattach.runtime.pager import list_references
from reattach.runtime.resource import Resource
from reattach.runtime.unreadable import DECODE_ERRORS, UnreadableObjects, describe, reference_of
from reattach.runtime.workers import LoggedError
from reattach.runtime.workqueue import Key

TASKRUNS = Resource(group=GROUP, version=VERSION, kind=KIND, plural=PLURAL)
UNFINISHED = "status.outcome="
"""The field selector: an absent field compares as empty."""
GRACE_SECONDS = 1.0
"""Lag of the reflector behind kopf's watch after which a GET reads the object. The usual lag is
milliseconds.
"""
WAKE_CHARACTERS_KEPT = 256
"""Start of the annotation `reattach.dev/wake` that the cache keeps: the planner reads no more."""
TEMPLATE_BYTES_KEPT = 64 * 1024
_YIELD_EVERY = 500

_log = logging.getLogger(__name__)


class UnreadableTaskRunError(LoggedError):
    """TaskRun that can't be decoded, so this operator can neither run nor end it.

    The log names it already.
    """

    def __init__(self, reference: Reference, why: str) -> None:
        super().__init__(f"it can't be read: {why}")
        self.reference = reference


def key_of(found: TaskRun | PartialObject) -> Key:
    """Return the key of a TaskRun."""
    return Key(found.metadata.namespace, found.metadata.name)


class TaskRunStore:
    """Cache of unfinished TaskRuns.

    A DELETED event marks an entry *suspect*: `refresh` confirms it with a GET.

    An `ObjectStore` for the reflector. `on_change` is called with the key of each TaskRun that a
    worker must look at. `on_finished` is called with each TaskRun that leaves the cache because it
    has an outcome.
    """

    def __init__(
        self,
        cluster: Cluster,
        namespaces: Sequence[str],
        on_change: Callable[[Key], None],
        unreadable: UnreadableObjects,
        clock: Callable[[], float] = time.monotonic,
        *,
        on_finished: Callable[[TaskRun], None] = lambda _: None,
    ) -> None:
        self._cluster = cluster
        self._namespaces: Sequence[str | None] = namespaces or [None]
        self._on_change = on_change
        self._unreadable = unreadable
        self._clock = clock
        self._on_finished = on_finished
        self._cache: ObjectStore[TaskRun] = ObjectStore(key_of, lambda _: None, transform=without_unused)
        self._cutting = asyncio.Lock()
        """Held while a thread cuts deep values, because several would take turns with the loop."""
        self._suspect: dict[Key, dict[str, Reference]] = {}
        """Keys that need a GET, with the last reference, by UID, to each TaskRun of this name that
        is suspect.
        """
        self._enqueued: dict[str, str] = {}
        """The newest version, by UID, that the workers were woken for, or that a response to them
        had.
        """
        self._awaited: dict[str, tuple[Reference, float]] = {}
        """References, by UID, that kopf's watch sent and the reflector has not brought, and when a
        GET is due.
        """

    def __len__(self) -> int:
        return len(self._cache)

    def held(self, reason: Reason) -> int:
        """Return the number of TaskRuns that are held for this reason."""
        return sum(is_held(taskrun.status, reason) for taskrun in self._cache.list())

    def ending_reason(self, metadata: ObjectMeta) -> str:
        """Return the reason in `status.ending`, and `Other` if none is recorded."""
        known = self._cache.get(metadata.uid)
        return known.status.ending.reason if known is not None and known.status.ending is not None else "Other"

    def get(self, key: Key) -> TaskRun | None:
        """Return the TaskRun as last seen, or None if it is absent or must be read."""
        return None if self.is_suspect(key) else next(iter(self._cache.by_key(key)), None)

    def is_suspect(self, key: Key) -> bool:
        """Return whether the entry must be read by `refresh`."""
        found = self._cache.by_key(key)
        return key in self._suspect or len(found) > 1 or any(is_ours(each) and not each.spec.template for each in found)

    # -- from kopf's watch -------------------------------------------------------------------------

    def on_event(self, reference: Reference) -> None:
        """Enqueue a TaskRun that was created or changed.

        If the cache lacks this version, wait for the reflector first.
        """
        known = self._cache.get(reference.uid)
        if known is not None and not is_ours(known):
            return  # because `spec.managedBy` is immutable
        if known is not None and not is_older(known.metadata.resource_version, reference.resource_version):
            self._enqueue(known, reference.resource_version)
        elif not self._cache.has_ended(reference.uid, reference.resource_version):
            awaited, due = self._awaited.get(reference.uid, (reference, self._clock() + GRACE_SECONDS))
            if not is_older(reference.resource_version, awaited.resource_version):
                self._awaited[reference.uid] = (reference, due)

    def on_deleted(self, reference: Reference) -> None:
        """Suspect a TaskRun that was deleted, or finished."""
        self._unreadable.forget(reference.uid)
        self._awaited.pop(reference.uid, None)
        if self._cache.get(reference.uid) is not None:
            self.suspect(reference.uid)
        elif not self._cache.has_ended(reference.uid, reference.resource_version):
            # The response to a GET that is under way may bring it still.
            self._cache.delete(reference.uid, version=reference.resource_version)
            self._on_change(Key(reference.namespace, reference.name))

    def is_needed(self, event_type: str, reference: Reference) -> bool:
        """Return whether `on_event`, or `on_deleted` for the type DELETED, would do anything.

        kopf's thread calls this while the event loop changes the store. A False stays right: this
        version was stored and its worker woken, or the TaskRun had ended before.
        """
        uid, version = reference.uid, reference.resource_version
        try:
            known = self._cache.get(uid)
        except KeyError:  # the event loop removes it right now
            return True
        if uid in self._awaited or self._unreadable.is_known(uid):
            return True
        if event_type == "DELETED" or known is None:
            return not self._cache.has_ended(uid, version)
        return is_older(known.metadata.resource_version, version) or self._is_change(uid, version)

    # -- from the reflector ------------------------------------------------------------------------

    def upsert(self, found: TaskRun) -> None:
        """Store an object.

        Enqueue it if kopf's watch has sent an event of it before; else that event does.
        """
        uid, version = found.metadata.uid, found.metadata.resource_version
        self._cache.upsert(found)
        if (waiting := self._awaited.get(uid)) is None:
            return
        if not self._has_arrived(found):  # a newer version is awaited, and on its way
            self._awaited[uid] = (waiting[0], self._clock() + GRACE_SECONDS)
        if self._cache.get(uid) is not None:
            self._enqueue(found, version)

    def delete(self, uid: str, *, version: str) -> None:  # noqa: ARG002 -- a GET confirms it, whatever the version
        """Suspect a TaskRun that was deleted, or finished."""
        self.suspect(uid)

    def absent_in(self, uids: Collection[str], version: str, namespace: str | None) -> Sequence[TaskRun]:
        """Return the known TaskRuns that a complete list at `version` lacks."""
        return self._cache.absent_in(uids, version, namespace)

    # -- from reads and writes of this process -----------------------------------------------------

    def apply_response(self, found: TaskRun) -> None:
        """Store the response to a read or write. A TaskRun with an outcome leaves the cache."""
        key, uid, version = key_of(found), found.metadata.uid, found.metadata.resource_version
        self._has_arrived(found)
        if found.status.outcome is not None:
            self._remove(found)
            self._clear(key, uid)
            self._on_finished(found)
            return
        self._cache.upsert(found)
        if self._cache.get(uid) is not None and self._is_change(uid, version):
            self._enqueued[uid] = version
            self._on_change(key)

    async def refresh(self, key: Key) -> TaskRun | None:
        """Read the TaskRun from the API server.

        Return None if it does not exist. It may have an outcome.

        Raises `UnreadableTaskRunError`, and `ClusterError`.
        """
        before = self._cache.by_key(key)
        last = reference_of(before[-1].metadata) if before else Reference(*key, uid="", resource_version="")
        suspects = self._suspect.pop(key, {last.uid: last})
        reference = list(suspects.values())[-1]
        try:
            found = await self.decode(await self._cluster.get(paths.taskruns(*key)), reference)
        except NotFoundError:
            found = None
        except BaseException:
            self._suspect[key] = suspects | self._suspect.get(key, {})
            raise
        # The response proves nothing about a TaskRun that a watch brought meanwhile.
        for known in before:
            if found is None or known.metadata.uid != found.metadata.uid:
                self._remove(known)
        if found is not None:
            self.apply_response(found)
        return found

    async def resync(self) -> None:
        """List the references of all, and treat each as an event.

        Suspect the TaskRuns that are missing from the list.

        Skip a namespace that refuses the list, if there are several: it may have been deleted.
        """
        for namespace in self._namespaces:
            path = paths.taskruns(namespace)
            try:
                found, version = await list_references(self._cluster, path, fieldSelector=UNFINISHED)
            except ForbiddenError as error:
                if namespace is None:
                    raise
                _log.warning("The TaskRuns of namespace %s can't be listed: %s", namespace, error)
                continue
            for number, reference in enumerate(found):
                self.on_event(reference)
                if number % _YIELD_EVERY == 0:
                    await asyncio.sleep(0)  # lets other tasks run
            uids = {reference.uid for reference in found}
            for each in self._cache.absent_in(uids, version, namespace):
                self.suspect(each.metadata.uid)

    async def run_overdue(self) -> None:
        """Check for overdue TaskRuns twice in each grace period, for ever."""
        while True:
            await asyncio.sleep(GRACE_SECONDS / 2)
            self.check_overdue()

    def check_overdue(self) -> None:
        """Suspect and enqueue the TaskRuns that are overdue after the grace period."""
        now = self._clock()
        for reference in [reference for reference, due in self._awaited.values() if now >= due]:
            del self._awaited[reference.uid]
            key = Key(reference.namespace, reference.name)
            self._suspect.setdefault(key, {})[reference.uid] = reference
            self._on_change(key)

    def enqueue_all(self) -> None:
        """Enqueue everything that the reflector has brought so far."""
        for found in self._cache.list():
            self._enqueue(found, found.metadata.resource_version)

    def suspect(self, uid: str) -> None:
        """Have the TaskRun confirmed by a GET.

        Do nothing if the cache lacks it, as when this process finished it.
        """
        if (known := self._cache.get(uid)) is not None:
            self._suspect.setdefault(key_of(known), {})[uid] = reference_of(known.metadata)
            self._on_change(key_of(known))

    def _clear(self, key: Key, uid: str) -> None:
        """Suspect the TaskRun no longer."""
        suspects = self._suspect.pop(key, {})
        suspects.pop(uid, None)
        if suspects:
            self._suspect[key] = suspects

    def _enqueue(self, known: TaskRun, version: str) -> None:
        """Enqueue `known` unless the workers were woken for this or a newer version."""
        if self._is_change(known.metadata.uid, version):
            self._enqueued[known.metadata.uid] = known.metadata.resource_version
            self._on_change(key_of(known))

    def _is_change(self, uid: str, version: str) -> bool:
        enqueued = self._enqueued.get(uid)
        return enqueued is None or (enqueued != version and not is_older(version, enqueued))

    def _has_arrived(self, found: TaskRun) -> bool:
        """Return whether this version, or an older one, was awaited. It is no longer."""
        uid, version = found.metadata.uid, found.metadata.resource_version
        if uid not in self._awaited or is_older(version, self._awaited[uid][0].resource_version):
            return False
        del self._awaited[uid]
        return True

    def _remove(self, known: TaskRun) -> None:
        uid = known.metadata.uid
        self._awaited.pop(uid, None)
        self._enqueued.pop(uid, None)
        if self._cache.get(uid) is not None:
            self._on_change(key_of(known))
        self._cache.delete(uid)

    async def decode(self, response: bytes, reference: Reference) -> TaskRun:
        """Return the TaskRun in a response, whatever its depth. Raises `UnreadableTaskRunError`."""
        try:
            try:
                return msgspec.json.decode(response, type=TaskRun)
            except RecursionError:
                async with self._cutting:
                    response = await asyncio.to_thread(cut_deep_values, response)
                return msgspec.json.decode(response, type=TaskRun)
        except DECODE_ERRORS as error:
            if reference.uid:  # else its event has not arrived yet
                self._unreadable.report(PLURAL, reference, error)
            raise UnreadableTaskRunError(reference, describe(error)) from None


def without_unused(found: TaskRun) -> TaskRun:
    """Return the TaskRun without owners, a large template, and annotations that nothing reads.

    Keep only the identity of a TaskRun of another manager.
    """
    metadata, spec = found.metadata, found.spec
    if not is_ours(found):
        kept = ObjectMeta(
            name=metadata.name,
            namespace=metadata.namespace,
            uid=metadata.uid,
            resource_version=metadata.resource_version,
        )
        return TaskRun(metadata=kept, spec=TaskRunSpec(template=msgspec.Raw(), managed_by=spec.managed_by))
    if len(spec.template) > TEMPLATE_BYTES_KEPT:
        spec = msgspec.structs.replace(spec, template=msgspec.Raw())
    wake = metadata.annotations.get(ANNOTATION_WAKE)
    annotations = {} if wake is None else {ANNOTATION_WAKE: wake[:WAKE_CHARACTERS_KEPT]}
    metadata = msgspec.structs.replace(metadata, annotations=annotations, owner_references=())
    return msgspec.structs.replace(found, metadata=metadata, spec=spec)


def is_ours(taskrun: TaskRun) -> bool:
    """Return whether `spec.managedBy` names this operator."""
    return taskrun.spec.managed_by == OPERATOR_NAME
