"""Log lines with text of users: one printable line, with an indented traceback below it."""

import io
import json
import logging

import pytest

from reattach.logs import JsonFormatter, PlainFormatter, set_up_logs

HOSTILE = "raysubmit_7\n2026-11-30 00:00:00,000 CRITICAL reattach: forged \x1b[2J\x9b\u202e\u2028"


def record_of(*, fails: bool = False) -> logging.LogRecord:
    failure = ValueError(HOSTILE)
    error = (ValueError, failure, None) if fails else None
    return logging.LogRecord("reattach", logging.WARNING, "f.py", 1, "handle %s", (HOSTILE,), error)


def test_plain_line_of_hostile_text_is_one_printable_line() -> None:
    line = PlainFormatter().format(record_of())
    assert line.isprintable()
    assert r"raysubmit_7\n2026-11-30" in line


def test_plain_traceback_can_not_begin_a_line() -> None:
    first, *rest = PlainFormatter().format(record_of(fails=True)).split("\n")
    assert first.isprintable()
    assert all(line.startswith("    ") and line.isprintable() for line in rest)
    assert any("CRITICAL reattach: forged" in line for line in rest)


def test_json_line_of_hostile_text_has_its_value_and_is_printable() -> None:
    line = JsonFormatter().format(record_of(fails=True))
    assert line.isprintable()
    assert json.loads(line)["message"] == f"handle {HOSTILE}"


@pytest.mark.parametrize("style", ["plain", "json"])
def test_set_up_logs_uses_these_formatters(style: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", io.StringIO())
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    try:
        set_up_logs(style, "info")
        [handler] = root.handlers
        assert isinstance(handler.formatter, JsonFormatter if style == "json" else PlainFormatter)
    finally:
        root.handlers[:] = before
        root.setLevel(level)


def test_long_traceback_loses_its_start() -> None:
    record = record_of(fails=True)
    record.exc_info = (ValueError, ValueError("x" * 9000 + "the end"), None)
    for formatter in (PlainFormatter(), JsonFormatter()):
        line = formatter.format(record)
        assert len(line) < 5000
        assert "the end" in line
