"""What is wrong is said before a round trip."""

import enum
import json
import math
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import reattach
from reattach.state.errors import RequestRejectedError
from reattach.state.values import from_json, stored_value_of
from reattach.task.value_checks import check_key, result_text_of, retention_seconds_of, value_text_of


def nested(levels: int) -> Any:
    return [nested(levels - 1)] if levels else 1


ENDLESS: list[Any] = []
ENDLESS.append(ENDLESS)

TEXT = st.text(max_size=20)
ANYTHING = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXT, inner, max_size=3)),
    max_leaves=8,
)


@pytest.mark.parametrize(
    "value", ["", "x", 0, -1, 2**80, 1.5, -0.0, True, False, [], {}, [1, {"a": [False]}], {"": 0}, "é✓\U0001f600\x00"]
)
def test_json_goes_through_as_it_is(value: Any) -> None:
    assert json.loads(bytes(value_text_of(value))) == value


@pytest.mark.parametrize(
    "value,where",
    [
        (None, "value must not be None"),
        ([1, None], r"value\[1\] must not be None"),
        ({"a": {"b": [None]}}, r"value\['a'\]\['b'\]\[0\] must not be None"),
        (math.nan, "value must be a finite number, not nan"),
        ({"rate": math.inf}, r"value\['rate'\] must be a finite number, not inf"),
        ([[-math.inf]], r"value\[0\]\[0\] must be a finite number"),
        (datetime(2026, 1, 1, tzinfo=UTC), r"not datetime; store value.isoformat\(\)"),
        ((1, 2), "not tuple; store it as a list"),
        ({1, 2}, "not set; store it as a list"),
        (b"bytes", "not bytes; store it as text"),
        (Decimal("1.5"), r"not Decimal; store str\(value\), or float\(value\)"),
        (object(), "not object"),
        ({1: "a"}, "strings as names, not int"),
        ({"a": {None: 1}}, r"value\['a'\] must have strings as names, not NoneType"),
        ("\ud800", "Unicode"),
        ({"\ud800": 1}, "Unicode"),
        (nested(101), "at most 100 levels"),
        (ENDLESS, "at most 100 levels"),
        pytest.param(10**5000, "digits", id="a number of 5000 digits"),
    ],
)
def test_what_is_no_json_is_refused_with_the_place_where_it_is(value: Any, where: str) -> None:
    with pytest.raises(reattach.InvalidValue, match=where):
        value_text_of(value)


def test_an_invalid_value_is_a_value_error_as_in_airflow() -> None:
    with pytest.raises(ValueError, match="None"):
        value_text_of(None)


def test_64_kib_is_the_largest_value_and_bytes_count() -> None:
    value_text_of("x" * (64 * 1024 - 2))
    with pytest.raises(reattach.ValueTooLarge, match="at most 65536 bytes as JSON; this one has 65537"):
        value_text_of("x" * (64 * 1024 - 1))
    with pytest.raises(reattach.ValueTooLarge):
        value_text_of("é" * (32 * 1024))


def test_a_result_may_hold_null_and_has_at_most_4_kib() -> None:
    assert bytes(result_text_of({"a": None})) == b'{"a":null}'
    assert bytes(result_text_of({"a": (1, (2,))})) == b'{"a":[1,[2]]}'
    result_text_of("x" * 4094)
    with pytest.raises(reattach.ValueTooLarge):
        result_text_of("x" * 4095)


def test_strings_and_numbers_of_other_classes_are_stored_as_what_they_are() -> None:
    class Color(enum.StrEnum):
        GREEN = "green"

    assert bytes(value_text_of([Color.GREEN, enum.IntEnum("Level", ["LOW"]).LOW])) == b'["green",1]'


@settings(deadline=None)  # the machine may be busy
@given(value=ANYTHING)
def test_what_passes_here_is_what_the_state_api_stores(value: Any) -> None:
    try:
        text = bytes(value_text_of(value))
    except reattach.InvalidValue:
        if not any(map(math.isnan, floats_in(value))):
            with pytest.raises((RequestRejectedError, UnicodeEncodeError)):
                stored_value_of(value)
    else:
        assert stored_value_of(from_json(text)) == text


def floats_in(value: Any) -> list[float]:
    match value:
        case float():
            return [value]
        case list():
            return [one for inner in value for one in floats_in(inner)]
        case dict():
            return floats_in([*value.values()])
    return []


@pytest.mark.parametrize("key", ["a", "x" * 512, "a/b", "..", ".", "ключ", "with space", "%2F"])
def test_keys_of_1_to_512_characters_are_fine(key: str) -> None:
    assert check_key(key) == key


@pytest.mark.parametrize(
    "key,why",
    [("", "1 to 512"), ("x" * 513, "this one has 513"), (7, "not int"), (None, "not NoneType"), ("\ud800", "Unicode")],
)
def test_other_keys_are_refused(key: str, why: str) -> None:
    with pytest.raises(reattach.InvalidKey, match=why):
        check_key(key)


def test_fractions_of_a_second_are_kept_at_least() -> None:
    assert retention_seconds_of(timedelta(days=7)) == 7 * 86400
    assert retention_seconds_of(timedelta(milliseconds=1)) == 1


def test_never_is_known_by_its_value_so_that_airflows_own_works() -> None:
    assert retention_seconds_of(timedelta.max) is None
    assert (
        retention_seconds_of(timedelta(days=999999999, hours=23, minutes=59, seconds=59, microseconds=999999)) is None
    )


@pytest.mark.parametrize("retention", [timedelta(0), timedelta(days=-1), 30, "30d"])
def test_other_retentions_are_refused(retention: Any) -> None:
    with pytest.raises(reattach.InvalidValue, match="retention must be"):
        retention_seconds_of(retention)
