"""`Retry-After` of a response."""

import pytest

from reattach.cluster.client import _seconds_in


@pytest.mark.parametrize(
    "header, seconds",
    [
        (None, None),
        ("", None),
        ("Wed, 21 Oct 2026 07:28:00 GMT", None),
        ("-1", 0.0),
        ("nan", 0.0),
        ("5", 5.0),
        ("inf", 60.0),
        ("2147483647", 60.0),
    ],
)
def test_retry_after_is_finite_and_at_most_a_minute(header: str | None, seconds: float | None) -> None:
    assert _seconds_in(header) == seconds
