"""Tables, times and colours of the output. Pure."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from reattach.api.text import printable

_RESET = "\x1b[0m"
_CODES = {
    "bold": "\x1b[1m",
    "dim": "\x1b[2m",
    "red": "\x1b[31m",
    "green": "\x1b[32m",
    "yellow": "\x1b[33m",
    "cyan": "\x1b[36m",
}
_SEQUENCES = frozenset({*_CODES.values(), _RESET})
_SPLIT = re.compile(f"({'|'.join(re.escape(code) for code in sorted(_SEQUENCES))})")
NOTHING = "-"
_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1, "ms": 0.001}
_SECONDS = re.compile(r"[0-9]+(?:[.][0-9]+)?")
_PART = re.compile(r"([0-9]+(?:[.][0-9]+)?)(ms|[dhms])")
_PARTS = re.compile(f"(?:{_PART.pattern})+")
_DURATION_MAX = timedelta(days=36500)  # as the state API; sums of times beyond that leave the calendar


@dataclass(frozen=True)
class Styler:
    """Escape text and add colours to it; if off, only escape it."""

    on: bool = False

    def __call__(self, colour: str, text: str) -> str:
        text = printable(text)
        return f"{_CODES[colour]}{text}{_RESET}" if self.on and text else text


PLAIN = Styler()


def is_coloured(*, terminal: bool, no_color: str | None, term: str | None) -> bool:
    """Return whether to use colours: on a capable terminal, without NO_COLOR (no-color.org)."""
    return terminal and not no_color and term != "dumb"


@dataclass(frozen=True)
class Cell:
    """One field of a table, and its colour."""

    text: str
    colour: str | None = None


def table(
    rows: Sequence[Sequence[str | Cell]], style: Styler = PLAIN, *, indent: str = "", widths: Sequence[int] = ()
) -> list[str]:
    """Return rows with aligned columns; the last column may have any length.

    `widths`: the least widths of the columns, such as those of earlier rows.
    """
    cells = [[_printable_cell(field) for field in row] for row in rows]
    widths = column_widths(rows, widths)
    lines = []
    for row in cells:
        shown = []
        for cell, width in zip(row, widths, strict=True):
            painted = style(cell.colour, cell.text) if cell.colour else cell.text
            shown.append(painted + " " * (width - width_of(cell.text)))
        lines.append(indent + "   ".join(shown).rstrip())
    return lines


def column_widths(rows: Sequence[Sequence[str | Cell]], least: Sequence[int] = ()) -> list[int]:
    """Return the widths of the columns of a table."""
    found = [list(least)] if least else []
    found += [[width_of(_printable_cell(field).text) for field in row] for row in rows]
    return [max(column) for column in zip(*found, strict=True)]


def _printable_cell(field: str | Cell) -> Cell:
    return Cell(printable(field.text), field.colour) if isinstance(field, Cell) else Cell(printable(field))


def width_of(text: str) -> int:
    """Return how many columns of a terminal the text takes."""
    return sum(_columns(character) for character in text)


def _columns(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in {"W", "F"} else 1


def escape_line(line: str, style: Styler) -> str:
    """Return the line as the terminal gets it: escaped, except for the colours of the style."""
    return "".join(part if style.on and part in _SEQUENCES else printable(part) for part in _SPLIT.split(line))


def duration(span: timedelta) -> str:
    """Format a time span as kubectl formats ages, with the two largest units."""
    seconds = max(0, int(span.total_seconds()))
    if seconds < 120:
        return f"{seconds}s"
    if seconds < 600:
        return f"{seconds // 60}m{seconds % 60}s".replace("m0s", "m")
    if seconds < 2 * 3600:
        return f"{seconds // 60}m"
    if seconds < 8 * 3600:
        return f"{seconds // 3600}h{seconds % 3600 // 60}m".replace("h0m", "h")
    if seconds < 48 * 3600:
        return f"{seconds // 3600}h"
    if seconds < 8 * 24 * 3600:
        return f"{seconds // 86400}d{seconds % 86400 // 3600}h".replace("d0h", "d")
    return f"{seconds // 86400}d"


def ago(time: datetime, now: datetime) -> str:
    """Return how long ago a time was."""
    return f"{duration(now - time)} ago"


def clock(time: datetime) -> str:
    """Format a time as Kubernetes does."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def count(number: int, singular: str, plural: str | None = None) -> str:
    """Return a count with its noun: `1 job`, `2 jobs`."""
    return f"{number} {singular if number == 1 else plural or singular + 's'}"


def listed(names: Sequence[str], last: str = "and") -> str:
    """Join names: `a`, `a and b`, `a, b and c`."""
    return f" {last} ".join(one for one in (", ".join(names[:-1]), *names[-1:]) if one)


def parse_duration(text: str) -> timedelta:
    """Parse `90`, `90s`, `5m`, `1h30m`, `7d`. Raises ValueError."""
    if _SECONDS.fullmatch(text):
        seconds = float(text)
    elif _PARTS.fullmatch(text):
        seconds = sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))
    else:
        raise ValueError(f"{text!r} must be a duration such as 90s, 5m, 1h30m or 7d")
    if seconds > _DURATION_MAX.total_seconds():
        raise ValueError(f"{text!r} must be at most {_DURATION_MAX.days}d")
    return timedelta(seconds=seconds)
