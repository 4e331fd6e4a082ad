"""`task.state`: the TaskRun's durable keys.

Each method has an async twin with an `a` in front (`get`, `aget`), as in AIP-103: one object serves plain and async code, and moving a
line from one to the other changes two letters. All of them raise what `reattach.errors` draws; only what is particular is named here.
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

# `State.list` hides the builtin where its own methods are described.
Keys = list[str]
Entries = list[Entry]
Operations = list[Operation]


class State:
    """The keys of one TaskRun: strings of 1 to 512 characters, with JSON values of at most 64 KiB, 512 KiB in all.

    Once a call that changes something returns, the change is stored for good. Reads are never stale.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    def get(self, key: str, default: T | None = None) -> Any | T:
        """The value of `key`, or `default` if the key is absent."""
        entry = self.get_entry(key)
        return default if entry is None else entry.value

    async def aget(self, key: str, default: T | None = None) -> Any | T:
        """`get` for async code."""
        entry = await self.aget_entry(key)
        return default if entry is None else entry.value

    def get_entry(self, key: str) -> Entry | None:
        """The value with its version, who wrote it, when, and when it expires; None if the key is absent."""
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

        `retention` says how long it is kept at least: 30 days if not given, `NEVER_EXPIRE` for ever. Whatever it says, nothing expires while
        the TaskRun is unfinished. `if_absent` stores only a key that is not there; `if_version` only over that version.

        Raises:
            KeyExists: with `if_absent`, when the key is there.
            VersionMismatch: with `if_version`, when the key has another version or is absent.
            InvalidValue: None, NaN or Infinity, also inside; or not JSON.
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
        """Remove `key`; tells whether it was there. With `if_version` only that version (`VersionMismatch`)."""
        return self.apply([_delete(key, if_version)])[0].deleted > 0

    async def adelete(self, key: str, *, if_version: int | None = None) -> bool:
        """`delete` for async code."""
        return (await self.aapply([_delete(key, if_version)]))[0].deleted > 0

    def clear(self) -> int:
        """Remove all keys; tells how many there were."""
        return self.apply([Operation(op="clear")])[0].deleted

    async def aclear(self) -> int:
        """`clear` for async code."""
        return (await self.aapply([Operation(op="clear")]))[0].deleted

    def list(self, prefix: str = "") -> Keys:
        """The keys that start with `prefix`, in order."""
        return [entry.key for entry in self.entries(prefix)]

    async def alist(self, prefix: str = "") -> Keys:
        """`list` for async code."""
        return [entry.key for entry in await self.aentries(prefix)]

    def entries(self, prefix: str = "") -> Entries:
        """The keys that start with `prefix` with their values, in order. One read: what is returned was true at one moment."""
        return [*self._client.call(_entries(prefix)).items]

    async def aentries(self, prefix: str = "") -> Entries:
        """`entries` for async code."""
        return [*(await self._client.acall(_entries(prefix))).items]

    def batch(self) -> "Batch":
        """Several changes that happen all at once, or not at all:

            with task.state.batch() as batch:      # or: async with
                batch.set("job_id", job_id, retention=NEVER_EXPIRE)
                batch.delete("draft")

        They are sent when the block is left, unless by an exception.
        """
        return Batch(self)

    def apply(self, operations: Operations) -> tuple[BatchResult, ...]:
        """What `batch` sends; one result per operation, in order."""
        return self._client.call(_apply(operations)).results

    async def aapply(self, operations: Operations) -> tuple[BatchResult, ...]:
        """`apply` for async code."""
        return (await self._client.acall(_apply(operations))).results


class Batch:
    """Collects changes; see `State.batch`. `results` has one result per change once they are stored."""

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
        """As `State.set`; a condition that does not hold lets the whole batch fail."""
        self._operations.append(_set(key, value, retention=retention, if_absent=if_absent, if_version=if_version))

    def delete(self, key: str, *, if_version: int | None = None) -> None:
        """As `State.delete`."""
        self._operations.append(_delete(key, if_version))

    def clear(self) -> None:
        """As `State.clear`; what the batch sets afterwards stays."""
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
    # `.` too: a path that is `..` would be taken for the folder above.
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
        if_version=_checked(if_version),
        retention_seconds=retention_seconds_of(retention),
    )


def _delete(key: str, if_version: int | None) -> Operation:
    return Operation(op="delete", key=check_key(key), if_version=_checked(if_version))


def _checked(version: int | None) -> int | None:
    if version is not None and version < 1:
        raise InvalidCall(f"if_version must be a version that set() or get_entry() told, not {version!r}")
    return version


def _version_of(results: tuple[BatchResult, ...]) -> int:
    version = results[0].version
    assert version is not None
    return version
