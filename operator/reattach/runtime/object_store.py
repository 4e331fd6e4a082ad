"""What is known of one kind of object: from the watch, and from the answers to our own writes, whichever is newer."""

from collections.abc import Callable, Collection
from typing import Generic, Protocol, TypeVar

from reattach.api.objects import ObjectMeta
from reattach.runtime.workqueue import Key

_TOMBSTONES_MAX = 10_000


class HasMetadata(Protocol):
    """An object of Kubernetes."""

    @property
    def metadata(self) -> ObjectMeta: ...


T = TypeVar("T", bound=HasMetadata)


def is_older(version: str, than: str) -> bool:
    """Whether one resourceVersion of an object, or of the list it is in, comes before another.

    Kubernetes promises that they are decimal numbers that grow (KEP-5504), as they have been wherever etcd is behind the API
    server. What is no number is never called older: then the watch is believed, as it would be without this comparison.
    """
    return version.isdecimal() and than.isdecimal() and int(version) < int(than)


class ObjectStore(Generic[T]):
    """Objects by UID and by key. `on_change` is called with the key of whatever changed.

    An answer to our own write may come before or after the watch tells of it, so whatever is older than what is known is passed
    over, and so is any word about an object after its end.
    """

    def __init__(self, key_of: Callable[[T], Key], on_change: Callable[[Key], None]) -> None:
        self._key_of = key_of
        self._on_change = on_change
        self._by_key: dict[Key, dict[str, T]] = {}
        self._key_by_uid: dict[str, Key] = {}
        self._ended: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._key_by_uid)

    def of(self, key: Key) -> tuple[T, ...]:
        """All that belong to `key`."""
        return tuple(self._by_key.get(key, {}).values())

    def all(self) -> list[T]:
        """All."""
        return [found for group in self._by_key.values() for found in group.values()]

    def get(self, uid: str) -> T | None:
        """The object with this UID."""
        key = self._key_by_uid.get(uid)
        return None if key is None else self._by_key[key][uid]

    def has_ended(self, uid: str, version: str) -> bool:
        """Whether the object was gone, or had left the selector, at this version of it."""
        ended = self._ended.get(uid)
        return ended is not None and (not ended or ended == version or is_older(version, ended))

    def learn(self, found: T) -> bool:
        """Take `found` as what is now, unless something newer is known. Tells whether it was news."""
        metadata = found.metadata
        if self.has_ended(metadata.uid, metadata.resource_version):
            return False
        self._ended.pop(metadata.uid, None)
        key = self._key_of(found)
        before = self._key_by_uid.get(metadata.uid)
        if before is not None:
            known = self._by_key[before][metadata.uid].metadata.resource_version
            if known == metadata.resource_version or is_older(metadata.resource_version, known):
                return False
            if before != key:  # its label was changed
                self._remove(metadata.uid)
        self._by_key.setdefault(key, {})[metadata.uid] = found
        self._key_by_uid[metadata.uid] = key
        self._on_change(key)
        return True

    def forget(self, uid: str, *, version: str = "") -> None:
        """It is gone. With `version` it was gone, or had left the selector, by then, and comes back with what is newer."""
        self._ended.pop(uid, None)
        self._ended[uid] = version
        while len(self._ended) > _TOMBSTONES_MAX:
            del self._ended[next(iter(self._ended))]
        self._remove(uid)

    def missing_from(self, uids: Collection[str], version: str, namespace: str | None) -> list[T]:
        """Which known objects (of `namespace`, None: of all) a complete list at `version` lacks, though it is newer than they are.

        `uids` are those of the objects in the list.
        """
        return [
            known
            for known in self.all()
            if known.metadata.uid not in uids
            and namespace in {None, known.metadata.namespace}
            and not is_older(version, known.metadata.resource_version)
        ]

    def _remove(self, uid: str) -> None:
        key = self._key_by_uid.pop(uid, None)
        if key is None:
            return
        group = self._by_key[key]
        del group[uid]
        if not group:
            del self._by_key[key]
        self._on_change(key)
