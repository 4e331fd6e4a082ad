"""Deeply nested JSON, cut to a depth that recursive parsers can read."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reattach.cluster.nesting import LEVELS, cut_deep_values

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=20,
)


def without_deep_values(value: Any, levels: int) -> Any:
    """Return the value as `cut_deep_values` should, by recursion."""
    if not isinstance(value, dict | list):
        return value
    if levels == 0:
        return None
    if isinstance(value, dict):
        return {name: without_deep_values(inner, levels - 1) for name, inner in value.items()}
    return [without_deep_values(inner, levels - 1) for inner in value]


@given(value=VALUES, levels=st.integers(0, 4))
def test_cut_deep_values_keeps_the_levels_above(value: Any, levels: int) -> None:
    assert json.loads(cut_deep_values(json.dumps(value).encode(), levels)) == without_deep_values(value, levels)


@pytest.mark.parametrize("text", [r'"[{\"["', r'"\\"', '"}"', r'{"a\"[":"{"}'])
def test_cut_deep_values_ignores_brackets_in_strings(text: str) -> None:
    assert cut_deep_values(text.encode(), 1) == text.encode()


def test_cut_deep_values_of_ten_thousand_levels_can_be_decoded() -> None:
    text = b'{"a":' + b"[" * 10_000 + b"]" * 10_000 + b',"b":1}'
    assert msgspec.json.decode(cut_deep_values(text))["b"] == 1
    assert cut_deep_values(text).count(b"[") == LEVELS - 1
