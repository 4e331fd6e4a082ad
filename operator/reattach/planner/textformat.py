"""Texts for people, cut to what a status can hold."""

from datetime import datetime

from reattach.api.taskrun import Attempt

BYTES_MAX = 1024
_ELLIPSIS = "…"
_ELLIPSIS_BYTES = len(_ELLIPSIS.encode())


def start_of(text: str, most: int = BYTES_MAX) -> str:
    """The text, or as much of its start as fits into `most` bytes."""
    raw = _encoded(text)
    return text if len(raw) <= most else raw[: most - _ELLIPSIS_BYTES].decode(errors="ignore") + _ELLIPSIS


def end_of(text: str) -> str:
    """The text, or as much of its end as fits: the last lines of a log tell what went wrong."""
    text = text.strip()
    raw = _encoded(text)
    return text if len(raw) <= BYTES_MAX else _ELLIPSIS + raw[_ELLIPSIS_BYTES - BYTES_MAX :].decode(errors="ignore")


def how_it_ended(attempt: Attempt) -> str:
    """One sentence about an attempt that has ended."""
    code = "" if attempt.exit_code is None else f", exit code {attempt.exit_code}"
    said = f": {attempt.message}" if attempt.message else ""
    sentence = f"Attempt {attempt.number} ended by {attempt.cause} ({attempt.reason}{code}){said}"
    return sentence if sentence.endswith((".", "!", "?", _ELLIPSIS)) else f"{sentence}."


def clock_of(time: datetime) -> str:
    """A time as Kubernetes writes it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")


def _encoded(text: str) -> bytes:
    return text.encode(errors="replace")
