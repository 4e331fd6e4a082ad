"""Checks of keys and values before they are sent.

The state API makes the same checks. Here, the traceback names the line that contains the mistake.
"""

import dataclasses
import json
import math
from datetime import timedelta
from decimal import Decimal
from typing import Any, Final

import msgspec

from reattach.api.messages import KEY_CHARACTERS_MAX, NESTING_MAX, RESULT_BYTES_MAX, VALUE_BYTES_MAX
from reattach.errors import InvalidKey, InvalidValue, ValueTooLarge

NEVER_EXPIRE: Final = timedelta.max
"""`retention` of a key that never expires. It equals Airflow's constant of this name."""


def check_key(key: str) -> str:
    """Return `key` itself. Raises `InvalidKey`."""
    if not isinstance(key, str):
        raise InvalidKey(f"a key must be a string, not {_kind(key)}")
    if not 1 <= len(key) <= KEY_CHARACTERS_MAX:
        raise InvalidKey(f"a key must have 1 to {KEY_CHARACTERS_MAX} characters; this one has {len(key)}")
    try:
        key.encode()
    except UnicodeEncodeError:
        raise InvalidKey("a key must be valid Unicode; it contains a lone surrogate") from None
    return key


def value_text_of(value: Any) -> msgspec.Raw:
    """Return the value of a key as JSON. Raises `InvalidValue`, `ValueTooLarge`."""
    _check(value, "value", is_result=False)
    return _text(value, "value", VALUE_BYTES_MAX)


def result_text_of(result: Any) -> msgspec.Raw:
    """Return a result as JSON. Raises `InvalidValue`, `ValueTooLarge`.

    Null is allowed, and a tuple becomes an array, because no program reads the tuple back.
    """
    _check(result, "result", is_result=True)
    return _text(result, "result", RESULT_BYTES_MAX)


def retention_seconds_of(retention: timedelta | None) -> int | msgspec.UnsetType | None:
    """Return `retentionSeconds` of the call, rounded up to whole seconds.

    An absent field means the default, and null means that the key never expires.

    Raises:
        InvalidValue: the retention is not a timedelta, or not positive.
    """
    match retention:
        case None:
            return msgspec.UNSET
        case timedelta() if retention == NEVER_EXPIRE:
            return None
        case timedelta() if retention > timedelta(0):
            return math.ceil(retention.total_seconds())
        case timedelta():
            raise InvalidValue(
                f"retention must be more than 0 or NEVER_EXPIRE, not {retention}. To remove a key, call delete()"
            )
    raise InvalidValue(f"retention must be a timedelta, not {_kind(retention)}")


def _check(value: Any, path: str, *, is_result: bool, depth: int = 0) -> None:
    if depth > NESTING_MAX:
        raise InvalidValue(f"a value must be nested at most {NESTING_MAX} levels deep")
    match value:
        case None:
            if not is_result:
                raise InvalidValue(
                    f"{path} must not be None, because null means absent. Delete the key, or omit the name"
                )
        case str():
            _check_unicode(value, path)
        case bool() | int():
            pass
        case float():
            if not math.isfinite(value):
                raise InvalidValue(f"{path} must be a finite number, not {value}, because JSON can't express it")
        case list() | tuple() if isinstance(value, list) or is_result:
            for index, inner in enumerate(value):
                _check(inner, f"{path}[{index}]", is_result=is_result, depth=depth + 1)
        case dict():
            for name, inner in value.items():
                _check_name(name, path)
                _check(inner, f"{path}[{name!r}]", is_result=is_result, depth=depth + 1)
        case _:
            raise InvalidValue(
                f"{path} must be JSON (str, int, float, bool, list, dict), not {_kind(value)}{_hint(value)}"
            )


def _check_name(name: Any, path: str) -> None:
    if not isinstance(name, str):
        raise InvalidValue(f"{path} must have strings as names, not {_kind(name)} ({name!r})")
    _check_unicode(name, path)


def _check_unicode(text: str, path: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidValue(f"{path} must be valid Unicode; it contains a lone surrogate") from None


def _text(value: Any, what: str, most: int) -> msgspec.Raw:
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except ValueError as error:  # for example an integer of more digits than Python converts
        raise InvalidValue(f"a {what} must be JSON: {error}") from None
    if len(text) > most:
        raise ValueTooLarge(
            f"a {what} must have at most {most} bytes as JSON; this one has {len(text)}. Store it elsewhere, and its location here"
        )
    return msgspec.Raw(text)


def _kind(value: object) -> str:
    return type(value).__name__


def _hint(value: Any) -> str:
    if hasattr(value, "isoformat"):
        return "; store value.isoformat()"
    if isinstance(value, tuple | set | frozenset):
        return "; store it as a list"
    if isinstance(value, Decimal):
        return "; store str(value), or float(value)"
    if isinstance(value, bytes | bytearray):
        return "; store it as text"
    if dataclasses.is_dataclass(value):
        return "; store dataclasses.asdict(value)"
    return ""
