"""Copies of a value, each with hostile text in one of its strings, found by the types of fields."""

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from enum import Enum
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec

HOSTILE = "\x1b[2J\nforged\r\x9b2J\u202e\u2066\U000e0041\x7f\u2028\t"
"""An escape sequence, line breaks, C1, bidi marks, a tag character, DEL and a line separator."""
HARMLESS = "text"
"""The same situation without hostile characters, for comparison."""


def copies(value: Any, kind: Any, text: str, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the path of each string in the value, and a copy with `text` at the end of that string.

    Absent strings and items of empty lists are added. Enumerations and literals are kept.
    """
    kind = _kind_of(value, kind)
    origin = get_origin(kind)
    if isinstance(value, Enum) or origin is Literal:
        return
    if kind is str:
        yield path, (value or "") + text
    elif kind is msgspec.Raw:
        for inner, copy in copies(msgspec.json.decode(value or b'""'), Any, text, path):
            yield inner, msgspec.Raw(msgspec.json.encode(copy))
    elif origin is tuple:
        yield from _copies_of_items(value, get_args(kind), text, path)
    elif origin in {dict, Mapping} or isinstance(value, dict):
        yield from _copies_of_map(value or {}, text, path)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            for inner, copy in copies(item, type(item), text, f"{path}[]"):
                yield inner, [*value[:number], copy, *value[number + 1 :]]
    elif isinstance(kind, type) and (issubclass(kind, msgspec.Struct) or dataclasses.is_dataclass(value)):
        whole = _sample(kind) if value is None else value
        replaced = msgspec.structs.replace if isinstance(whole, msgspec.Struct) else dataclasses.replace
        for name, hint in get_type_hints(kind, include_extras=True).items():
            for inner, copy in copies(getattr(whole, name), hint, text, f"{path}.{name}"):
                yield inner, replaced(whole, **{name: copy})


def _copies_of_items(value: tuple[Any, ...], kinds: tuple[Any, ...], text: str, path: str) -> Iterator[tuple[str, Any]]:
    items = value or (_sample(kinds[0]),)
    for number, item in enumerate(items):
        for inner, copy in copies(item, kinds[0] if kinds[-1] is ... else kinds[number], text, f"{path}[]"):
            yield inner, (*items[:number], copy, *items[number + 1 :])


def _copies_of_map(value: Mapping[str, Any], text: str, path: str) -> Iterator[tuple[str, Any]]:
    yield f"{path}{{}}", {**value, text: text}
    for name, item in value.items():
        for inner, copy in copies(item, type(item), text, f"{path}.{name}"):
            yield inner, {**value, name: copy}


def _kind_of(value: Any, kind: Any) -> Any:
    if get_origin(kind) is Annotated:
        return _kind_of(value, get_args(kind)[0])
    if get_origin(kind) in {Union, types.UnionType}:
        others = [one for one in get_args(kind) if one is not type(None)]
        fitting = [one for one in others if _is_of(value, one)]
        return _kind_of(value, (fitting or others)[0])
    return type(value) if kind is Any else kind


def _is_of(value: Any, kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    return isinstance(value, get_origin(kind) or kind)


def _sample(kind: Any) -> Any:
    """Return a small value of the type."""
    kind = _kind_of(None, kind)
    origin = get_origin(kind)
    if origin is Literal:
        return get_args(kind)[0]
    if isinstance(kind, type) and issubclass(kind, Enum):
        return next(iter(kind))
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        hints = get_type_hints(kind, include_extras=True)
        required = [field.name for field in msgspec.structs.fields(kind) if field.required]
        return kind(**{name: _sample(hints[name]) for name in required})
    samples: dict[Any, Any] = {str: "x", int: 1, bool: False, datetime: datetime(2026, 3, 1, tzinfo=UTC), tuple: ()}
    return samples.get(typing.cast("Any", origin or kind), {})
