"""Text in status and events: one printable line, cut to the length that a status can hold."""

import re
from datetime import datetime

from reattach.api.taskrun import Attempt
from reattach.api.text import one_line

BYTES_MAX = 1024
_OWN_PROGRESS = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (DEBUG|INFO) +reattach: ", re.ASCII)
"""Start of a line in which the SDK logs its progress (`reattach.task.log`)."""
_ELLIPSIS = "…"
_ELLIPSIS_BYTES = len(_ELLIPSIS.encode())
_CHARACTERS_PER_BYTE = 4
"""Characters that are read for each byte of a limit, because a message can have a megabyte."""
_LAST_LINE_BYTES_MAX = 600
_LINES_BEFORE_BYTES_MAX = 320
"""Both limits together leave room in a condition's message for the sentence around them."""


def head(text: str, most: int = BYTES_MAX) -> str:
    """Return the text as one printable line, or its start if it is longer than `most` bytes."""
    text = one_line(text[: _CHARACTERS_PER_BYTE * most])
    raw = text.encode()
    return text if len(raw) <= most else raw[: most - _ELLIPSIS_BYTES].decode(errors="ignore") + _ELLIPSIS


def tail(text: str, most: int = BYTES_MAX) -> str:
    """Return the text as one printable line, or its end if it is longer than `most` bytes."""
    text = one_line(text[-_CHARACTERS_PER_BYTE * most :])
    raw = text.encode()
    return text if len(raw) <= most else _ELLIPSIS + raw[_ELLIPSIS_BYTES - most :].decode(errors="ignore")


def last_line_first(text: str) -> str:
    """Return the end of a log as one line that starts with the last line of the log.

    Conditions, events and tables are cut at their end, and the last line of a traceback contains
    the error. The last line includes the indented lines below it, because messages of exceptions
    continue that way. Lines about the SDK's progress are left out, unless there are no others.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    lines = [line for line in lines if not _OWN_PROGRESS.match(line)] or lines
    if len(lines) < 2:
        return tail("\n".join(lines))
    start = max((number for number, line in enumerate(lines) if not line[0].isspace()), default=len(lines) - 1)
    last = head("\n".join(lines[start:]), _LAST_LINE_BYTES_MAX)
    before = tail("\n".join(lines[:start]), _LINES_BEFORE_BYTES_MAX)
    return f"{last} (after: {before})" if before else last


def describe_end(attempt: Attempt) -> str:
    """Return one sentence about an attempt that has ended."""
    code = "" if attempt.exit_code is None else f", exit code {attempt.exit_code}"
    detail = f": {attempt.message}" if attempt.message else ""
    sentence = f"Attempt {attempt.number} ended by {attempt.cause} ({attempt.reason}{code}){detail}"
    return sentence if sentence.endswith((".", "!", "?", _ELLIPSIS)) else f"{sentence}."


def format_time(time: datetime) -> str:
    """Return the time in the format of Kubernetes."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")
