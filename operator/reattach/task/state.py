"""`task.state`: the durable keys of the TaskRun.

Each method has an async twin with the prefix `a` (`get`, `aget`), as in AIP-103. All methods may
raise the errors of `reattach.errors`; only special ones are named here.
"""

from datetime import timedelta
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import quote

from reattach.api.messages import (
    BATCH_OPERATIONS_MAX,
    BatchRequest,
    BatchResponse,
    BatchResult,
    Entry,
    EntryList,
    Operation,
)
from reattach.errors import InvalidCall
from reattach.task.client import Call, Client, KeyAbsentError
from reattach.task.value_checks import check_key, retention_seconds_of, value_text_of

T = TypeVar("T")

# Aliases, because in the class body `list` is the method `State.list`.
Keys = list[str]
Entries = list[Entry]
Operations = list[Operation]


class State:
    """The keys of one TaskRun.

    A key has 1 to 512 characters. A value is JSON of at most 64 KiB; all keys have 512 KiB
    together. When a call that changes the state returns, the change is durable. Reads are never
    stale.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    def get(self, key: str, default: T | None = None) -> Any | T:
        """Return the value of `key`, or `default` if the key is absent."""
        entry = self.get_entry(key)
        return default if entry is None else entry.value

    async def aget(self, key: str, default: T | None = None) -> Any | T:
        """`get` for async code."""
        entry = await self.aget_entry(key)
        return default if entry is None else entry.value

    def get_entry(self, key: str) -> Entry | None:
        """Return value, version, writer, time and expiry of `key`, or None if it is absent."""
        try:
            return self._client.call(_get(key))
        except KeyAbsentError:
            return None

    async def aget_entry(self, key: str) -> Entry | None:
        """`get_entry` for async code."""
        try:
            return await self._client.acall(_get(key))
        except KeyAbsentError:
            return None

    def set(
        self,
        key: str,
        value: Any,
        *,
        retention: timedelta | None = None,
        if_absent: bool = False,
        if_version: int | None = None,
    ) -> int:
        """Store `value` under `key` and return its version.

        retention: the shortest time before the key expires, by default 30 days. No key expires
            while the TaskRun is unfinished. `NEVER_EXPIRE` keeps the key for ever.
        if_absent: store only if the key is absent.
        if_version: store only if the key has this version.

        Raises:
            KeyExists: `if_absent` is set, and the key exists.
            VersionMismatch: `if_version` is set, and the key has another version or is absent.
            InvalidValue: the value is not JSON, or contains None, NaN or Infinity.
        """
        operation = _set(key, value, retention=retention, if_absent=if_absent, if_version=if_version)
        return _version_of(self.apply([operation]))

    async def aset(
        self,
        key: str,
        value: Any,
        *,
        retention: timedelta | None = None,
        if_absent: bool = False,
        if_version: int | None = None,
    ) -> int:
        """`set` for async code."""
        operation = _set(key, value, retention=retention, if_absent=if_absent, if_version=if_version)
        return _version_of(await self.aapply([operation]))

    def delete(self, key: str, *, if_version: int | None = None) -> bool:
        """Remove `key`, and return whether it existed.

        Raises:
            VersionMismatch: `if_version` is set, and the key has another version or is absent.
        """
        return self.apply([_delete(key, if_version)])[0].deleted > 0

    async def adelete(self, key: str, *, if_version: int | None = None) -> bool:
        """`delete` for async code."""
        return (await self.aapply([_delete(key, if_version)]))[0].deleted > 0

    def clear(self) -> int:
        """Remove all keys, and return how many there were."""
        return self.apply([Operation(op="clear")])[0].deleted

    async def aclear(self) -> int:
        """`clear` for async code."""
        return (await self.aapply([Operation(op="clear")]))[0].deleted

    def list(self, prefix: str = "") -> Keys:
        """Return the keys that start with `prefix`, in order."""
        return [entry.key for entry in self.entries(prefix)]

    async def alist(self, prefix: str = "") -> Keys:
        """`list` for async code."""
        return [entry.key for entry in await self.aentries(prefix)]

    def entries(self, prefix: str = "") -> Entries:
        """Return the keys that start with `prefix`, with their values, in order.

        One read returns all of them, so they are consistent with each other.
        """
        return [*self._client.call(_entries(prefix)).items]

    async def aentries(self, prefix: str = "") -> Entries:
        """`entries` for async code."""
        return [*(await self._client.acall(_entries(prefix))).items]

    def batch(self) -> "Batch":
        """Return an atomic batch of changes.

            with task.state.batch() as batch:      # or: async with
                batch.set("job_id", job_id, retention=NEVER_EXPIRE)
                batch.delete("draft")

        The end of the block sends the changes. An exception discards them.
        """
        return Batch(self)

    def apply(self, operations: Operations) -> tuple[BatchResult, ...]:
        """Send operations as one batch, and return one result per operation, in order."""
        return self._client.call(_apply(operations)).results

    async def aapply(self, operations: Operations) -> tuple[BatchResult, ...]:
        """`apply` for async code."""
        return (await self._client.acall(_apply(operations))).results


class Batch:
    """Changes to send together; see `State.batch`.

    `results` has one result per change, in order, after the changes are stored.
    """

    def __init__(self, state: State) -> None:
        self._state = state
        self._operations: list[Operation] = []
        self.results: tuple[BatchResult, ...] = ()

    def set(
        self,
        key: str,
        value: Any,
        *,
        retention: timedelta | None = None,
        if_absent: bool = False,
        if_version: int | None = None,
    ) -> None:
        """Add a `State.set`. If its condition does not hold, the whole batch fails."""
        self._operations.append(_set(key, value, retention=retention, if_absent=if_absent, if_version=if_version))

    def delete(self, key: str, *, if_version: int | None = None) -> None:
        """Add a `State.delete`."""
        self._operations.append(_delete(key, if_version))

    def clear(self) -> None:
        """Add a `State.clear`, which does not remove keys that the batch sets after it."""
        self._operations.append(Operation(op="clear"))

    def __enter__(self) -> "Batch":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None and self._operations:
            self.results = self._state.apply(self._operations)

    async def __aenter__(self) -> "Batch":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None and self._operations:
            self.results = await self._state.aapply(self._operations)


def _get(key: str) -> Call[Entry]:
    # The dot is quoted too, because a client would resolve the path segment `..` to its parent.
    path = quote(check_key(key), safe="").replace(".", "%2E")
    return Call("GET", f"/v1/state/{path}", Entry)


def _entries(prefix: str) -> Call[EntryList]:
    return Call("GET", "/v1/state", EntryList, params=(("prefix", prefix),) if prefix else ())


def _apply(operations: list[Operation]) -> Call[BatchResponse]:
    if not 1 <= len(operations) <= BATCH_OPERATIONS_MAX:
        raise InvalidCall(f"a batch must have 1 to {BATCH_OPERATIONS_MAX} changes; this one has {len(operations)}")
    return Call("POST", "/v1/state", BatchResponse, BatchRequest(operations=tuple(operations)))


def _set(key: str, value: Any, *, retention: timedelta | None, if_absent: bool, if_version: int | None) -> Operation:
    if if_absent and if_version is not None:
        raise InvalidCall("if_absent and if_version must not be used together")
    return Operation(
        op="set",
        key=check_key(key),
        value=value_text_of(value),
        if_absent=if_absent,
        if_version=_check_version(if_version),
        retention_seconds=retention_seconds_of(retention),
    )


def _delete(key: str, if_version: int | None) -> Operation:
    return Operation(op="delete", key=check_key(key), if_version=_check_version(if_version))


def _check_version(version: int | None) -> int | None:
    if version is not None and version < 1:
        raise InvalidCall(f"if_version must be a version that set() or get_entry() returned, not {version!r}")
    return version


def _version_of(results: tuple[BatchResult, ...]) -> int:
    version = results[0].version
    assert version is not None
    return version
