"""Texts for people, cut to what a status can hold."""

from datetime import datetime

from reattach.api.taskrun import Attempt

BYTES_MAX = 1024
_ELLIPSIS = "…"
_ELLIPSIS_BYTES = len(_ELLIPSIS.encode())
_LAST_LINE_BYTES_MAX = 600
_LINES_BEFORE_BYTES_MAX = 200
"""Both limits together leave room in a condition's message for the sentence around them."""


def start_of(text: str, most: int = BYTES_MAX) -> str:
    """The text, or as much of its start as fits into `most` bytes."""
    raw = _encoded(text)
    return text if len(raw) <= most else raw[: most - _ELLIPSIS_BYTES].decode(errors="ignore") + _ELLIPSIS


def end_of(text: str, most: int = BYTES_MAX) -> str:
    """Return the text, or as much of its end as fits into `most` bytes."""
    text = text.strip()
    raw = _encoded(text)
    return text if len(raw) <= most else _ELLIPSIS + raw[_ELLIPSIS_BYTES - most :].decode(errors="ignore")


def last_line_first(text: str) -> str:
    """Return the end of a log as one line that starts with the last line of the log.

    Conditions, events and tables are cut at their end, and the last line of a traceback contains
    the error. The last line includes the indented lines below it, because messages of exceptions
    continue that way.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) < 2:
        return end_of(text)
    start = max((number for number, line in enumerate(lines) if not line[0].isspace()), default=len(lines) - 1)
    last = start_of(_on_one_line(lines[start:]), _LAST_LINE_BYTES_MAX)
    before = end_of(_on_one_line(lines[:start]), _LINES_BEFORE_BYTES_MAX)
    return f"{last} (after: {before})" if before else last


def how_it_ended(attempt: Attempt) -> str:
    """One sentence about an attempt that has ended."""
    code = "" if attempt.exit_code is None else f", exit code {attempt.exit_code}"
    said = f": {attempt.message}" if attempt.message else ""
    sentence = f"Attempt {attempt.number} ended by {attempt.cause} ({attempt.reason}{code}){said}"
    return sentence if sentence.endswith((".", "!", "?", _ELLIPSIS)) else f"{sentence}."


def clock_of(time: datetime) -> str:
    """A time as Kubernetes writes it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")


def _on_one_line(lines: list[str]) -> str:
    return " ".join(" ".join(lines).split())


def _encoded(text: str) -> bytes:
    return text.encode(errors="replace")
