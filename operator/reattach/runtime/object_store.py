"""Cache of one kind of object.

It is filled by a watch and by the responses to our own writes, whichever is newer.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Generic, Protocol, TypeVar

from reattach.api.objects import ObjectMeta
from reattach.runtime.workqueue import Key

_TOMBSTONES_MAX = 10_000
"""Objects that left the store and whose last version is known. The oldest are forgotten first."""


class HasMetadata(Protocol):
    """Object of Kubernetes."""

    @property
    def metadata(self) -> ObjectMeta: ...


T = TypeVar("T", bound=HasMetadata)


def is_older(version: str, than: str) -> bool:
    """Return whether one resourceVersion of an object, or of its list, comes before another.

    Kubernetes guarantees growing decimal numbers (KEP-5504), as API servers on etcd have always
    sent. A version that is not a number is never older, so the watch is believed, as it would be
    without this comparison.
    """
    return version.isdecimal() and than.isdecimal() and int(version) < int(than)


class ObjectStore(Generic[T]):
    """Objects by UID and by key.

    `on_change` is called with the key of each object that changed.

    The response to our own write may arrive before or after the watch event of it. So an older
    version than the known one is ignored, and so is any version of an object after its deletion.

    `evict` removes an object that needs no more work. A late event with an older version is ignored
    while the object is among the last 10,000 that were evicted. Beyond that, the late event stores
    the old version, and the object is evicted again.

    Args:
        key_of: returns the key that an object belongs to.
        on_change: called with the key of each object that changed.
        transform: returns an object without the parts that no decision needs.
    """

    def __init__(
        self,
        key_of: Callable[[T], Key],
        on_change: Callable[[Key], None],
        *,
        transform: Callable[[T], T] = lambda found: found,
    ) -> None:
        self._key_of = key_of
        self._on_change = on_change
        self._transform = transform
        self._by_key: dict[Key, dict[str, T]] = {}
        self._key_by_uid: dict[str, Key] = {}
        self._ended: dict[str, str] = {}
        self._evicted: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._key_by_uid)

    def by_key(self, key: Key) -> tuple[T, ...]:
        """Return the objects that belong to `key`."""
        return tuple(self._by_key.get(key, {}).values())

    def list(self) -> list[T]:
        """Return all objects."""
        return [found for group in self._by_key.values() for found in group.values()]

    def get(self, uid: str) -> T | None:
        """Return the object with this UID."""
        key = self._key_by_uid.get(uid)
        return None if key is None else self._by_key[key][uid]

    def has_ended(self, uid: str, version: str) -> bool:
        """Return whether the object had left the store, for any reason, at this version of it."""
        ended = self._ended.get(uid)
        return ended is not None and (not ended or ended == version or is_older(version, ended))

    def upsert(self, found: T, *, notify: bool = True) -> bool:
        """Store `found` unless a newer version is known. Return whether the store changed.

        Without `notify`, `on_change` is not called, because the caller reconciles the key itself.
        """
        metadata = found.metadata
        if self.has_ended(metadata.uid, metadata.resource_version):
            return False
        if is_older(metadata.resource_version, self._evicted.get(metadata.uid, "")):
            return False
        key = self._key_of(found)
        before = self._key_by_uid.get(metadata.uid)
        if before is not None:
            known = self._by_key[before][metadata.uid].metadata.resource_version
            if known == metadata.resource_version or is_older(metadata.resource_version, known):
                return False
        self._ended.pop(metadata.uid, None)
        self._evicted.pop(metadata.uid, None)
        if before is not None and before != key:  # its label was changed
            self._remove(metadata.uid)
            self._on_change(before)
        self._by_key.setdefault(key, {})[metadata.uid] = self._transform(found)
        self._key_by_uid[metadata.uid] = key
        if notify:
            self._on_change(key)
        return True

    def delete(self, uid: str, *, version: str = "") -> None:
        """Remove an object.

        With `version`, the object comes back with a newer version: it had only left the selector
        by then.
        """
        _remember(self._ended, uid, version)
        if (key := self._remove(uid)) is not None:
            self._on_change(key)

    def evict(self, uid: str) -> None:
        """Remove an object without a call of `on_change`.

        The same version comes back with a later event or a GET, an older version does not.
        """
        if (found := self.get(uid)) is not None:
            _remember(self._evicted, uid, found.metadata.resource_version)
            self._remove(uid)

    def absent_in(self, uids: Collection[str], version: str, namespace: str | None) -> Sequence[T]:
        """Return the known objects of `namespace` (None: of all) that a complete list lacks.

        Objects that are newer than `version` (of the list) are left out. `uids` are the UIDs of
        the objects in the list.
        """
        return [
            known
            for known in self.list()
            if known.metadata.uid not in uids
            and namespace in {None, known.metadata.namespace}
            and not is_older(version, known.metadata.resource_version)
        ]

    def _remove(self, uid: str) -> Key | None:
        """Return the key of the removed object; None: the store does not have the object."""
        key = self._key_by_uid.pop(uid, None)
        if key is not None:
            group = self._by_key[key]
            del group[uid]
            if not group:
                del self._by_key[key]
        return key


def _remember(tombstones: dict[str, str], uid: str, version: str) -> None:
    tombstones.pop(uid, None)
    tombstones[uid] = version
    while len(tombstones) > _TOMBSTONES_MAX:
        del tombstones[next(iter(tombstones))]
