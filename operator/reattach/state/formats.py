"""Versions of the format in which a state is stored. They are rules for the ConfigMap's data.

Format 2 is format 1 and an entry `optional`. It lists the entries (`end`) and fields
(`job.cancelRequestedAt`) that format 1 lacks and that a reader may ignore. A reader that does not
know one of them writes it back unchanged. A field that a reader must understand needs format 3.

docs/decisions/005-formats-and-upgrades.md has the reasons and every field.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from functools import lru_cache
from typing import Annotated, Any, Final

import msgspec

from reattach.state.data_names import JOB_NAMES, KEY_NAMES
from reattach.state.errors import UnreadableError

VERSION: Final = "formatVersion"
OPTIONAL: Final = "optional"
NEWEST_FORMAT: Final = 2
_NUMBER = re.compile("[1-9][0-9]*")
"""Python converts at most 4300 digits, and users may change the ConfigMap."""
_OptionalNames = Annotated[frozenset[str], msgspec.Meta(max_length=64)]
"""Users may change the ConfigMap, so the list is bounded: each entry is compared with it."""

FORMAT_1: Final[Mapping[str, Collection[str]]] = {
    VERSION: (),
    "lastVersion": (),
    "requests": (),
    "epoch": ("attempt", "podUID", "session", "time", "firstAttempt", "canCleanup", "fencedSessions"),
    "completion": ("attempt", "podUID", "time", "result"),
    "seal": ("throughAttempt", "purpose"),
    "counts": ("jobs", "submissions", "reattachments", "duplicatesAverted"),
    "key": ("key", "value", "version", "attempt", "podUID", "updatedAt", "expiresAt"),
    "job": (
        *("key", "generation", "adapter", "token", "digest", "state", "intendedAt", "intendedByAttempt"),
        *("tokenSeconds", "detached", "repeated", "submitters", "handle", "url", "origin", "recordedAt"),
        *("submittedByAttempt", "session", "endedAt", "endedByAttempt", "result", "message", "held", "holds"),
        *("strays", "givenUp", "begunBy"),
    ),
}
"""The entries of format 1 and their fields. This never changes."""

_CHANGED_IN_PLACE = ("counts", "seal", "job")
"""The other entries are replaced as a whole, so unknown fields of the old entry end with it."""


def optional_of(data: Mapping[str, str]) -> frozenset[str]:
    """Return the entries and fields in the data that a reader may ignore.

    Raises `UnreadableError` if this version does not read the format.
    """
    version = data.get(VERSION, "")
    if _NUMBER.fullmatch(version) and (len(version) > 1 or int(version) > NEWEST_FORMAT):
        raise UnreadableError(
            f"a newer version of Reattach wrote the state, with formatVersion {version[:20]}; upgrade this one"
        )
    if version not in {"1", "2"}:
        raise UnreadableError(f"the state must have formatVersion 1 or 2; it has {version[:20]!r}")
    if OPTIONAL not in data:
        return frozenset()
    try:
        names = msgspec.json.decode(data[OPTIONAL], type=_OptionalNames)
    except (msgspec.DecodeError, RecursionError) as error:
        raise UnreadableError(f"{OPTIONAL!r} in the state is damaged: {error}") from None
    if version == "1":
        raise UnreadableError(f"a state of format 1 must not have {OPTIONAL!r}")
    return names


def known_part(name: str, text: str, kind: Any, optional: frozenset[str]) -> str | bytes:
    """Return an entry (JSON) without the fields that `kind` lacks and that a reader may ignore.

    Raises `msgspec.DecodeError`.
    """
    ignored = _ignored_fields(_kind_of(name), kind, optional)
    if not ignored:
        return text
    fields = _fields_of(text)
    if ignored.isdisjoint(fields):
        return text
    return msgspec.json.encode({field: value for field, value in fields.items() if field not in ignored})


@lru_cache(maxsize=64)
def _ignored_fields(entry: str, kind: Any, optional: frozenset[str]) -> frozenset[str]:
    """Return the fields of an entry that `kind` lacks and that a reader may ignore.

    Cached, because a state has thousands of entries.
    """
    if not FORMAT_1.get(entry):
        return frozenset()
    known = {field.encode_name for field in msgspec.structs.fields(kind)}
    found = {name.removeprefix(f"{entry}.") for name in optional if name.startswith(f"{entry}.")}
    return frozenset(found - known)


def with_format(entries: Mapping[str, str]) -> dict[str, str]:
    """Return the data in the lowest format that can express the entries."""
    plain = {name: text for name, text in entries.items() if name not in {VERSION, OPTIONAL}}
    optional = sorted({addition for name, text in plain.items() for addition in _additions(name, text)})
    if not optional:
        return {VERSION: "1", **plain}
    return {VERSION: "2", OPTIONAL: msgspec.json.encode(optional).decode(), **plain}


def with_unknown(
    before: Mapping[str, str], known_before: Mapping[str, str], after: Mapping[str, str]
) -> dict[str, str]:
    """Return the data `after` a change with what this version does not know of the data `before`.

    `known_before` is the data before the change, as this version writes it.
    """
    optional = optional_of(before)
    result = {name: text for name, text in before.items() if name in optional and name not in known_before}
    result.update(after)
    for name in before.keys() & known_before.keys() & after.keys():
        if after[name] == known_before[name]:
            result[name] = before[name]
        elif (kind := _kind_of(name)) in _CHANGED_IN_PLACE:
            known = _fields_of(known_before[name])
            unknown = {
                field: value
                for field, value in _fields_of(before[name]).items()
                if field not in known and f"{kind}.{field}" in optional
            }
            result[name] = msgspec.json.encode({**unknown, **_fields_of(after[name])}).decode()
    return with_format(result)


def _additions(name: str, text: str) -> Iterator[str]:
    kind = _kind_of(name)
    if kind not in FORMAT_1:
        yield name
    elif fields := FORMAT_1[kind]:
        yield from (f"{kind}.{field}" for field in _fields_of(text) if field not in fields)


def _kind_of(name: str) -> str:
    if name.startswith(KEY_NAMES):
        return "key"
    return "job" if name.startswith(JOB_NAMES) else name


def _fields_of(text: str) -> dict[str, msgspec.Raw]:
    return msgspec.json.decode(text, type=dict[str, msgspec.Raw])
