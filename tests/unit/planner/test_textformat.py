"""Texts that are cut to the size that a status can hold."""

import pytest

from reattach.planner.textformat import BYTES_MAX, last_line_first, tail

TRACEBACK = """Traceback (most recent call last):
  File "<frozen runpy>", line 198, in _run_module_as_main
  File "/program/load.py", line 32, in <module>
    from airflow.sdk import DAG
ImportError: cannot import name 'DAG' from 'airflow.sdk' (unknown location)
"""


def test_last_line_first_puts_the_error_of_a_traceback_first() -> None:
    text = last_line_first(TRACEBACK)
    assert text.startswith(
        "ImportError: cannot import name 'DAG' from 'airflow.sdk' (unknown location) (after: Traceback"
    )
    assert text.endswith('File "/program/load.py", line 32, in <module> from airflow.sdk import DAG)')


@pytest.mark.parametrize(
    "text, expected",
    [
        ("no such table", "no such table"),
        ("  \n", ""),
        ("ValueError:\n  no rows", "ValueError: no rows"),
        ("  a\n  b", "b (after: a)"),
        ("one\n\ntwo\n", "two (after: one)"),
    ],
)
def test_last_line_first_keeps_indented_lines_with_their_start(text: str, expected: str) -> None:
    assert last_line_first(text) == expected


def test_last_line_first_cuts_the_lines_before_at_their_start() -> None:
    text = last_line_first("first\n" + "x" * 5000 + "\nmiddle\nlast")
    assert text.startswith("last (after: …xxx")
    assert text.endswith("xxx middle)")
    assert len(text.encode()) < BYTES_MAX


def test_tail_of_a_long_text_starts_with_an_ellipsis_and_fits() -> None:
    assert tail("é" * 2000, 101) == "…" + "é" * 49
