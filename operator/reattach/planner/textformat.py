"""Text in status and events, cut to the length that a status can hold."""

from datetime import datetime

from reattach.api.taskrun import Attempt

BYTES_MAX = 1024
_ELLIPSIS = "…"
_ELLIPSIS_BYTES = len(_ELLIPSIS.encode())


def head(text: str, most: int = BYTES_MAX) -> str:
    """Return the text, or its start if it is longer than `most` bytes."""
    raw = _encoded(text)
    return text if len(raw) <= most else raw[: most - _ELLIPSIS_BYTES].decode(errors="ignore") + _ELLIPSIS


def tail(text: str) -> str:
    """Return the text, or its end if it is too long: the last lines of a log show the failure."""
    text = text.strip()
    raw = _encoded(text)
    return text if len(raw) <= BYTES_MAX else _ELLIPSIS + raw[_ELLIPSIS_BYTES - BYTES_MAX :].decode(errors="ignore")


def describe_end(attempt: Attempt) -> str:
    """Return one sentence about an attempt that has ended."""
    code = "" if attempt.exit_code is None else f", exit code {attempt.exit_code}"
    detail = f": {attempt.message}" if attempt.message else ""
    sentence = f"Attempt {attempt.number} ended by {attempt.cause} ({attempt.reason}{code}){detail}"
    return sentence if sentence.endswith((".", "!", "?", _ELLIPSIS)) else f"{sentence}."


def format_time(time: datetime) -> str:
    """Return the time in the format of Kubernetes."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")


def _encoded(text: str) -> bytes:
    return text.encode(errors="replace")
