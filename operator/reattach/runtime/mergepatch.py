"""Smallest merge patch (RFC 7386) between two JSON objects."""

from collections.abc import Mapping
from typing import Any


def merge_patch_of(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Return the patch from `before` to `after`: removed fields are null, lists are replaced."""
    patch: dict[str, Any] = {name: None for name in before if name not in after}
    for name, value in after.items():
        if name not in before:
            patch[name] = value
        elif isinstance(value, Mapping) and isinstance(before[name], Mapping):
            if inner := merge_patch_of(before[name], value):
                patch[name] = inner
        elif value != before[name]:
            patch[name] = value
    return patch
