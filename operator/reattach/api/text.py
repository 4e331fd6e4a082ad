r"""The definition of printable text, and how any other text is shown.

Text of users and external systems can move a terminal's cursor, begin a second line in a log, or
reverse the text after it. So each character that is not printable is shown as an escape such as
`\x1b` or `\u202e`.

Printable characters are letters, marks, numbers, punctuation, symbols and the space U+0020, as in
Python's `str.isprintable` and Go's `unicode.IsPrint`. Control characters (C0 and C1), separators
and all other spaces are not. Nor are format characters (bidi marks, zero-width joiners, tags), lone
surrogates, private use and unassigned code points. Letters of scripts that are written
from right to left are printable. Joiners are not, also in an emoji or a Persian word, because two
keys that differ only in a joiner look the same.
"""

import json
import re
import shlex

HANDLE_CHARACTERS = len("reattach-00000000-0000-0000-0000-000000000000")
"""Longest handle that a table shows whole: a name that Reattach gave the job."""
_SHORT_HANDLE = 32
_HANDLE_START = 8
PRINTABLE_PATTERN = r"^[\p{L}\p{M}\p{N}\p{P}\p{S} ]*$"
"""The same definition in RE2, as in the patterns of the TaskRun's schema."""

_SPACES = re.compile(r"\s+")
_PLAIN_WORD = re.compile(r"[\w./][\w@%+=:,./-]*")
_QUOTED = frozenset("'\\")


def printable(text: str) -> str:
    """Return the text with escapes for all characters that are not printable."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)


def one_line(text: str, most: int | None = None) -> str:
    """Return prose as one printable line, in which a line break is one space.

    If the line has more than `most` characters, return its start.
    """
    text = text.strip()
    if not text.isprintable():
        text = printable(_SPACES.sub(lambda found: found[0] if found[0].isprintable() else " ", text))
    return text if most is None or len(text) <= most else text[: most - 1] + "…"


def short_handle(handle: str) -> str:
    """Return a handle for a column of a table: without its middle if it is long.

    The start of an ARN or a URL names its kind, and its end differs between jobs.
    """
    if len(handle) <= HANDLE_CHARACTERS:
        return handle
    return f"{handle[:_HANDLE_START]}…{handle[_HANDLE_START + 1 - _SHORT_HANDLE :]}"


def line_within(text: str, most: int) -> str:
    """Return the start of one printable line, of at most `most` bytes as a JSON string."""
    line = one_line(text[: 4 * most], most)
    while (excess := len(json.dumps(line, ensure_ascii=False).encode()) - len('""') - most) > 0:
        line = line[: -max(1, excess // 6)]
    return line


def without_middle(text: str, most: int) -> str:
    """Return the text, of at most `most` bytes as a JSON string, and without lone surrogates.

    The middle of a longer text is cut, because its start names the error and its end the cause.
    """
    shown = whole = text.encode(errors="replace").decode()
    keep = len(whole)
    while (size := len(json.dumps(shown, ensure_ascii=False).encode()) - len('""')) > most:
        keep = min(keep - 1, keep * most // size)
        shown = f"{whole[: keep // 2]} … {whole[len(whole) - keep // 2 :]}"
    return shown


def printable_json(text: str) -> str:
    """Return the same JSON value as text, with escapes in its strings. Newlines are kept."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() or one == "\n" else json.dumps(one)[1:-1] for one in text)


def is_plain_word(text: str) -> bool:
    """Return whether a shell passes the text on as it is, and a program does not read an option."""
    return _PLAIN_WORD.fullmatch(text) is not None


def shell_word(text: str) -> str:
    """Return the text as one printable word of a command line.

    Text that is not printable becomes `$'…'` with bytes of UTF-8 in octal, as in bash, zsh and
    POSIX since 2024. No single quote is inside, so an older shell runs nothing else either.
    """
    if text.isprintable():
        return shlex.quote(text)
    return f"$'{''.join(one if one.isprintable() and one not in _QUOTED else _octal(one) for one in text)}'"


def shell_command(words: list[str]) -> str:
    """Return the words as one line to paste into a shell."""
    return " ".join(shell_word(word) for word in words)


def _octal(character: str) -> str:
    return "".join(f"\\{byte:03o}" for byte in character.encode(errors="replace"))
