"""The TaskRuns that are not finished: as kopf's watch and our own writes tell, checked by a list now and then."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from reattach.api.names import OPERATOR_NAME
from reattach.api.objects import PartialObject
from reattach.api.reasons import Reason
from reattach.api.taskrun import TaskRun
from reattach.cluster import Cluster, ForbiddenError, NotFoundError, paths
from reattach.controller.cache import Cache
from reattach.controller.metrics import Metrics
from reattach.controller.reflector import list_all
from reattach.controller.workqueue import Key
from reattach.planner.status import is_held

UNFINISHED = "status.outcome="
"""The field selector: an absent field compares as empty."""

_log = logging.getLogger(__name__)


def key_of(found: TaskRun | PartialObject) -> Key:
    """The key of a TaskRun."""
    return Key(found.metadata.namespace, found.metadata.name)


class TaskRuns:
    """What is known of them. A TaskRun that is said to be gone is *doubted*: `look` asks the API server before it is believed."""

    def __init__(
        self, cluster: Cluster, namespaces: Sequence[str], on_change: Callable[[Key], None], metrics: Metrics
    ) -> None:
        self._cluster = cluster
        self._namespaces: Sequence[str | None] = namespaces or [None]
        self._on_change = on_change
        self._metrics = metrics
        self._cache: Cache[TaskRun] = Cache(key_of, on_change)
        self._doubted: set[Key] = set()
        self._unreadable: dict[str, str] = {}

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
        return key in self._doubted or len(self._cache.of(key)) > 1

    def saw(self, raw: Mapping[str, Any]) -> None:
        """The watch shows it, as a decoded JSON object."""
        try:
            self._cache.learn(msgspec.convert(raw, TaskRun))
        except msgspec.ValidationError as error:
            self._pass_over(msgspec.convert(raw, PartialObject), error)

    def lost(self, raw: Mapping[str, Any]) -> None:
        """The watch says that it is gone, or out of the selector."""
        about = msgspec.convert(raw, PartialObject)
        self._unreadable.pop(about.metadata.uid, None)
        self.doubt(key_of(about), about.metadata.uid)

    def doubt(self, key: Key, uid: str) -> None:
        """Ask before believing that it is still there, unless it isn't known any more (as when we finished it ourselves)."""
        if any(known.metadata.uid == uid for known in self._cache.of(key)):
            self._doubted.add(key)
            self._on_change(key)

    def learn(self, found: TaskRun) -> None:
        """The answer to a read or write of our own. One with an outcome is known no longer."""
        if found.status.outcome is None:
            self._cache.learn(found)
        else:
            self._cache.forget(found.metadata.uid)

    async def look(self, key: Key) -> TaskRun | None:
        """Ask the API server; the answer may have an outcome. None: there is no such TaskRun."""
        self._doubted.discard(key)
        # The answer says nothing of one that the watch brings while it is under way.
        before = self._cache.of(key)
        try:
            found = msgspec.json.decode(await self._cluster.get(paths.taskruns(*key)), type=TaskRun)
        except NotFoundError:
            found = None
        except BaseException:
            self._doubted.add(key)
            raise
        for known in before:
            if found is None or known.metadata.uid != found.metadata.uid:
                self._cache.forget(known.metadata.uid)
        if found is not None:
            self.learn(found)
        return found

    async def sweep(self) -> None:
        """List them all: learn what a watch has missed, doubt what it should have told the end of.

        One namespace of several that refuses it, as one that was deleted does, is passed over.
        """
        for namespace in self._namespaces:
            path = paths.taskruns(namespace)
            try:
                found, version = await list_all(self._cluster, path, self._decode, fieldSelector=UNFINISHED)
            except ForbiddenError as error:
                if namespace is None:
                    raise
                _log.warning("The TaskRuns of namespace %s can't be listed: %s", namespace, error)
                continue
            for each in found:
                self._cache.learn(each)
            for each in self._cache.missing_from(found, version, namespace):
                self.doubt(key_of(each), each.metadata.uid)

    def _decode(self, raw: msgspec.Raw) -> TaskRun | None:
        try:
            return msgspec.json.decode(raw, type=TaskRun)
        except msgspec.ValidationError as error:
            self._pass_over(msgspec.json.decode(raw, type=PartialObject), error)
            return None

    def _pass_over(self, about: PartialObject, error: msgspec.ValidationError) -> None:
        """The schema lets none such in: the CRD must have been changed. Said once for each, and again if it is otherwise wrong."""
        if self._unreadable.get(about.metadata.uid) != str(error):
            self._unreadable[about.metadata.uid] = str(error)
            self._metrics.unreadable.inc()
            _log.error("TaskRun %s/%s is passed over, as it can't be read: %s", *key_of(about), error)


def is_ours(taskrun: TaskRun) -> bool:
    """Whether `spec.managedBy` names this operator."""
    return taskrun.spec.managed_by == OPERATOR_NAME
