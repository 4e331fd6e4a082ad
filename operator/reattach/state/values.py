"""Checks of keys and JSON values. They are stricter than Python's `json`."""

import json
import math
from collections import Counter
from typing import Any, Never

from reattach.api.messages import KEY_CHARACTERS_MAX, NESTING_MAX, RESULT_BYTES_MAX, VALUE_BYTES_MAX, ProblemCode
from reattach.state.errors import RequestRejectedError


def from_json(text: bytes) -> Any:
    """Return the value of a JSON text in UTF-8 (RFC 8259).

    Reject NaN, Infinity, numbers too large for a double, and duplicate names in an object, because
    parsers disagree on these.
    """
    try:
        return json.loads(
            text.decode(), parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_without_duplicates
        )
    except RecursionError:
        raise _invalid_nesting() from None
    except ValueError as error:
        raise RequestRejectedError(ProblemCode.INVALID, f"the body must be JSON in UTF-8: {error}") from None


def to_json(value: Any) -> bytes:
    """Return the shortest JSON text of `value`, in UTF-8. Numbers keep all their digits."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        raise RequestRejectedError(
            ProblemCode.VALUE_INVALID, "strings must be valid Unicode; this one contains a lone surrogate"
        ) from None


def stored_value_of(value: Any) -> bytes:
    """Return the JSON text to store.

    Reject null, also nested (AIP-103: null means absent), nesting beyond `NESTING_MAX`, and more
    than 64 KiB.
    """
    _check_nesting(value, null_allowed=False)
    return _bounded("value", to_json(value), VALUE_BYTES_MAX)


def stored_result_of(result: Any) -> bytes:
    """Return the JSON text of a result: any value, null too, of at most 4 KiB."""
    _check_nesting(result, null_allowed=True)
    return _bounded("result", to_json(result), RESULT_BYTES_MAX)


def check_key(key: str) -> str:
    """Return `key`. Reject it unless it has 1-512 Unicode characters."""
    if not 1 <= len(key) <= KEY_CHARACTERS_MAX:
        detail = f"a key must have 1 to {KEY_CHARACTERS_MAX} characters; this one has {len(key)}"
        raise RequestRejectedError(ProblemCode.KEY_INVALID, detail)
    try:
        key.encode()
    except UnicodeEncodeError:
        raise RequestRejectedError(
            ProblemCode.KEY_INVALID, "a key must be valid Unicode; this one contains a lone surrogate"
        ) from None
    return key


def _check_nesting(value: Any, *, null_allowed: bool, depth: int = 0) -> None:
    if depth > NESTING_MAX:
        raise _invalid_nesting()
    match value:
        case None if not null_allowed:
            raise RequestRejectedError(
                ProblemCode.VALUE_INVALID, "a value must not be or contain null; delete the key instead"
            )
        case float() if not math.isfinite(value):
            raise RequestRejectedError(ProblemCode.VALUE_INVALID, f"a number must be finite, not {value}")
        case dict():
            for inner in value.values():
                _check_nesting(inner, null_allowed=null_allowed, depth=depth + 1)
        case list() | tuple():
            for inner in value:
                _check_nesting(inner, null_allowed=null_allowed, depth=depth + 1)
        case _:
            pass


def _bounded(what: str, text: bytes, most: int) -> bytes:
    if len(text) > most:
        detail = f"the {what} must have at most {most} bytes as JSON; this one has {len(text)}"
        raise RequestRejectedError(ProblemCode.VALUE_TOO_LARGE, detail)
    return text


def _invalid_nesting() -> RequestRejectedError:
    return RequestRejectedError(ProblemCode.VALUE_INVALID, f"a value must be nested at most {NESTING_MAX} levels deep")


def _refuse_constant(name: str) -> Never:
    raise RequestRejectedError(ProblemCode.VALUE_INVALID, f"a number must be finite, not {name}")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise RequestRejectedError(ProblemCode.VALUE_INVALID, f"a number must fit into a double; {text[:40]} does not")
    return number


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise RequestRejectedError(
            ProblemCode.INVALID, f"an object must contain each name once; {twice[:80]!r} is a duplicate"
        )
    return result
