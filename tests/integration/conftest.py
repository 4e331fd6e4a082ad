"""The order of the tests on a real API server."""

import pytest

LONGEST = ("test_operator_cancel.py", "test_operator.py", "test_racing_ends.py")
"""Each takes minutes; begun last, one of them would run on alone on one of the workers."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))
