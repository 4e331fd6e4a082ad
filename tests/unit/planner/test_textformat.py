"""Texts that are cut to the size that a status can hold."""

import logging

import pytest

from reattach.planner.textformat import BYTES_MAX, last_line_first, tail
from reattach.task.log import LOG_FORMAT

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


OPENED = "2026-11-30 00:19:47,756 INFO    reattach: Attempt 1 of user-01/submit-once opened its state."
SUBMITTED = "2026-11-30 00:19:47,900 INFO    reattach: Submitted 'load': job-1."
OUTAGE = "2026-11-30 00:19:48,000 WARNING reattach: The state API does not respond."


@pytest.mark.parametrize(
    "text, expected",
    [
        (f"{OPENED}\nattempt 1 submitted\n{SUBMITTED}\n", "attempt 1 submitted"),
        (f"first\n{OPENED}\nlast\n{SUBMITTED}\n", "last (after: first)"),
        (f"{OPENED}\n{SUBMITTED}\n", f"{SUBMITTED} (after: {OPENED})"),
        (f"{OPENED}\n{OUTAGE}\n", OUTAGE),
    ],
)
def test_last_line_first_leaves_out_the_progress_of_the_sdk_unless_it_is_all(text: str, expected: str) -> None:
    assert last_line_first(text) == expected


def test_format_of_the_sdks_log_is_recognized() -> None:
    record = logging.LogRecord("reattach", logging.INFO, "", 0, "Submitted.", (), None)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(LOG_FORMAT))
    assert last_line_first(f"failed\n{handler.format(record)}") == "failed"


def test_last_line_first_cuts_the_lines_before_at_their_start() -> None:
    text = last_line_first("first\n" + "x" * 5000 + "\nmiddle\nlast")
    assert text.startswith("last (after: …xxx")
    assert text.endswith("xxx middle)")
    assert len(text.encode()) < BYTES_MAX


def test_tail_of_a_long_text_starts_with_an_ellipsis_and_fits() -> None:
    assert tail("é" * 2000, 101) == "…" + "é" * 49
