"""Cache of unfinished TaskRuns.

kopf's watch tells that a TaskRun changed, by its reference alone, and so wakes the workers. The objects come from a reflector, from
the answers to own writes, and from a GET where both are too slow or the object can't be read from the watch. A list of references,
now and then, finds what the watches missed.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Sequence

import msgspec

from reattach.api.names import OPERATOR_NAME, PLURAL
from reattach.api.objects import PartialObject
from reattach.api.reasons import Reason
from reattach.api.taskrun import TaskRun
from reattach.cluster import Cluster, ForbiddenError, NotFoundError, Reference, paths
from reattach.controller.cache import Cache, is_older
from reattach.controller.listing import list_references
from reattach.controller.unreadable import UnreadableObjects, describe
from reattach.controller.workqueue import Key
from reattach.planner.status import is_held

UNFINISHED = "status.outcome="
"""The field selector: an absent field compares as empty."""
GRACE_SECONDS = 1.0
"""How long the reflector may lag behind kopf's watch before the object is read by a GET. Usually it is milliseconds."""
_YIELD_EVERY = 500

_log = logging.getLogger(__name__)


class UnreadableTaskRunError(Exception):
    """The TaskRun can't be decoded, so this operator can neither run nor end it."""

    def __init__(self, reference: Reference, why: str) -> None:
        super().__init__(f"it can't be read: {why}")
        self.reference = reference


def key_of(found: TaskRun | PartialObject) -> Key:
    """The key of a TaskRun."""
    return Key(found.metadata.namespace, found.metadata.name)


class TaskRuns:
    """What is known of them. A TaskRun that is said to be gone is *doubted*: `look` asks the API server before it is believed.

    A `Store` for the reflector. `on_change` is called with the key of each TaskRun that a worker must look at.
    """

    def __init__(
        self,
        cluster: Cluster,
        namespaces: Sequence[str],
        on_change: Callable[[Key], None],
        unreadable: UnreadableObjects,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cluster = cluster
        self._namespaces: Sequence[str | None] = namespaces or [None]
        self._on_change = on_change
        self._unreadable = unreadable
        self._clock = clock
        self._cache: Cache[TaskRun] = Cache(key_of, lambda _: None)
        self._doubted: set[Key] = set()
        self._unannounced: set[str] = set()
        """UIDs of objects that the reflector has brought and of which kopf's watch has not told yet."""
        self._awaited: dict[Key, tuple[Reference, float]] = {}
        """What kopf's watch has told of and the reflector has not brought yet, and from when on a GET is worth it."""

    def __len__(self) -> int:
        return len(self._cache)

    def held(self, reason: Reason) -> int:
        """How many wait for a person, for this reason."""
        return sum(is_held(taskrun.status, reason) for taskrun in self._cache.all())

    def known(self, key: Key) -> TaskRun | None:
        """The TaskRun as last seen; None if there is none or it is doubtful which one it is."""
        found = self._cache.of(key)
        return found[0] if len(found) == 1 and key not in self._doubted else None

    def is_doubtful(self, key: Key) -> bool:
        """Whether `look` must be asked before anything is believed."""
        return key in self._doubted or len(self._cache.of(key)) > 1 or self._is_overdue(key)

    # -- what kopf's watch tells ------------------------------------------------------------------------------------

    def notice(self, reference: Reference) -> None:
        """A TaskRun was created or changed: have it looked at, now if this version is known, else when the reflector brings it."""
        key = Key(reference.namespace, reference.name)
        known = self._cache.get(reference.uid)
        if known is not None and not is_older(known.metadata.resource_version, reference.resource_version):
            self._announce(known)
        elif not self._cache.has_ended(reference.uid, reference.resource_version):
            awaited, until = self._awaited.get(key, (None, 0.0))
            if awaited is None or awaited.uid != reference.uid:
                until = self._clock() + GRACE_SECONDS
            self._awaited[key] = (reference, until)  # however often it changes, it is looked at in time

    def notice_end(self, reference: Reference) -> None:
        """A TaskRun is gone, or finished."""
        self._unreadable.forget(reference.uid)
        key = Key(reference.namespace, reference.name)
        if key in self._awaited and self._awaited[key][0].uid == reference.uid:
            del self._awaited[key]
        self.doubt(reference.uid)

    # -- what the reflector brings ----------------------------------------------------------------------------------

    def learn(self, found: TaskRun) -> None:
        """An object as it is now. The workers are woken if kopf's watch has told of it already, else when it does."""
        if self._cache.learn(found):
            self._unannounced.add(found.metadata.uid)
        if self._has_arrived(found):
            self._announce(found)

    def forget(self, uid: str, *, version: str) -> None:  # noqa: ARG002 -- the version does not matter to a question
        """An object is gone, or finished."""
        self.doubt(uid)

    def missing_from(self, uids: Collection[str], version: str, namespace: str | None) -> list[TaskRun]:
        """Return the known TaskRuns that a complete list at `version` lacks."""
        return self._cache.missing_from(uids, version, namespace)

    # -- what this process reads and writes itself ------------------------------------------------------------------

    def take_answer(self, found: TaskRun) -> None:
        """The answer to a read or write of our own. One with an outcome is known no longer."""
        self._unannounced.discard(found.metadata.uid)
        self._has_arrived(found)
        if found.status.outcome is not None:
            self._forget(found)
        elif self._cache.learn(found):
            self._on_change(key_of(found))

    async def look(self, key: Key) -> TaskRun | None:
        """Ask the API server; the answer may have an outcome. None: there is no such TaskRun.

        Raises `UnreadableTaskRunError`, and `ClusterError`.
        """
        self._doubted.discard(key)
        awaited = self._awaited.pop(key, None)
        # The answer says nothing of one that the watch brings while it is under way.
        before = self._cache.of(key)
        try:
            answer = await self._cluster.get(paths.taskruns(*key))
            found = self._decode(answer, awaited[0] if awaited else Reference(*key, uid="", resource_version=""))
        except NotFoundError:
            found = None
        except BaseException:
            self._doubted.add(key)
            raise
        for known in before:
            if found is None or known.metadata.uid != found.metadata.uid:
                self._forget(known)
        if found is not None:
            self.take_answer(found)
        return found

    async def sweep(self) -> None:
        """List the references of all: notice what the watches have missed, doubt what they should have told the end of.

        One namespace of several that refuses it, as one that was deleted does, is passed over.
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
                self.notice(reference)
                if number % _YIELD_EVERY == 0:
                    await asyncio.sleep(0)  # there may be many, and others have to be served
            uids = {reference.uid for reference in found}
            for each in self._cache.missing_from(uids, version, namespace):
                self.doubt(each.metadata.uid)

    async def run_overdue(self) -> None:
        """Have the TaskRuns looked at that the reflector does not bring in time, for ever."""
        while True:
            await asyncio.sleep(GRACE_SECONDS / 2)
            for key in [key for key in self._awaited if self._is_overdue(key)]:
                self._on_change(key)

    def announce_all(self) -> None:
        """Have everything looked at that the reflector has brought so far."""
        for found in self._cache.all():
            self._announce(found)

    def _announce(self, found: TaskRun) -> None:
        """Wake the workers, once for what the reflector brought."""
        if found.metadata.uid in self._unannounced:
            self._unannounced.discard(found.metadata.uid)
            self._on_change(key_of(found))

    def _has_arrived(self, found: TaskRun) -> bool:
        """Return whether kopf's watch has told of this version; it is awaited no longer."""
        awaited = self._awaited.get(key_of(found))
        if awaited is None or (
            awaited[0].uid == found.metadata.uid
            and is_older(found.metadata.resource_version, awaited[0].resource_version)
        ):
            return False
        del self._awaited[key_of(found)]
        return True

    def _is_overdue(self, key: Key) -> bool:
        return key in self._awaited and self._clock() >= self._awaited[key][1]

    def doubt(self, uid: str) -> None:
        """Ask before believing that it is still there, unless it isn't known any more (as when we finished it ourselves)."""
        if (known := self._cache.get(uid)) is not None:
            self._doubted.add(key_of(known))
            self._on_change(key_of(known))

    def _forget(self, known: TaskRun) -> None:
        self._unannounced.discard(known.metadata.uid)
        if self._cache.get(known.metadata.uid) is not None:
            self._on_change(key_of(known))
        self._cache.forget(known.metadata.uid)

    def _decode(self, answer: bytes, reference: Reference) -> TaskRun:
        try:
            return msgspec.json.decode(answer, type=TaskRun)
        except (msgspec.DecodeError, RecursionError) as error:
            if reference.uid:
                self._unreadable.report(PLURAL, reference, error)
            raise UnreadableTaskRunError(reference, describe(error)) from None


def is_ours(taskrun: TaskRun) -> bool:
    """Whether `spec.managedBy` names this operator."""
    return taskrun.spec.managed_by == OPERATOR_NAME
