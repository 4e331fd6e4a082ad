"""The definition of printable text, and its escapes for people, JSON and shells."""

import json
import re
import subprocess
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reattach.api.text import (
    PRINTABLE_PATTERN,
    is_plain_word,
    line_within,
    one_line,
    printable,
    printable_json,
    shell_command,
    shell_word,
)

REFUSED = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def test_printable_escapes_exactly_the_refused_categories_and_other_spaces() -> None:
    for number in range(sys.maxunicode + 1):
        character = chr(number)
        category = unicodedata.category(character)
        is_escaped = category in REFUSED or (category == "Zs" and character != " ")
        assert (printable(character) != character) == is_escaped, hex(number)


def test_schema_pattern_lists_the_other_categories() -> None:
    allowed = set(re.findall(r"\\p\{(\w)\}", PRINTABLE_PATTERN))
    assert allowed == {"L", "M", "N", "P", "S"}
    assert {category[0] for category in REFUSED}.isdisjoint(allowed)


@pytest.mark.parametrize(
    "text, shown",
    [
        ("a\x1b[2Jb", r"a\x1b[2Jb"),
        ("a\x9b2Jb", r"a\x9b2Jb"),
        ("a\nb\tc", r"a\nb\tc"),
        ("a\u202eb\u2066c", r"a\u202eb\u2066c"),
        ("tag \U000e0041", r"tag \U000e0041"),
        ("join \u200d", r"join \u200d"),
        ("lone \udc80", r"lone \udc80"),
        ("line \u2028", r"line \u2028"),
        ("C:\\x é 表 שלום 🚀", "C:\\x é 表 שלום 🚀"),
    ],
)
def test_printable_shows_an_escape_for_each_other_character(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert shown.isprintable()


@pytest.mark.parametrize(
    "text, line",
    [("a\n  b\x1b[2Jc\r\n", r"a b\x1b[2Jc"), ("a  b", "a  b"), ("a\xa0b", "a b"), (" a ", "a"), ("a\u2029b", "a b")],
)
def test_one_line_has_one_space_for_a_line_break(text: str, line: str) -> None:
    assert one_line(text) == line


def test_one_line_cuts_after_the_escapes() -> None:
    assert one_line("ab\x1bcdef", 6) == r"ab\x1…"


@given(st.text())
def test_one_line_of_a_line_is_the_same_line(text: str) -> None:
    line = one_line(text)
    assert line.isprintable()
    assert one_line(line) == line
    assert one_line(f"({printable(text)})") == f"({printable(text)})"


@given(st.dictionaries(st.text(), st.text()))
def test_printable_json_has_the_same_value(value: dict[str, str]) -> None:
    text = printable_json(json.dumps(value, indent=2, ensure_ascii=False))
    assert json.loads(text) == value
    assert all(line.isprintable() for line in text.split("\n"))


HOSTILE = [
    "load",
    "a b",
    "it's",
    "$(id)",
    "-x",
    "!!",
    "un\nrm -rf ~ #",
    "\x1b'; id #",
    "\x9b\\'",
    "\u202e' '",
    "\t\U000e0041`id`",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_bash_reads_a_pasted_word_as_the_text(text: str) -> None:
    word = shell_word(text)
    assert word.isprintable()
    read = subprocess.run(["bash", "-c", f"printf %s {word}"], capture_output=True, check=True)
    assert read.stdout.decode() == text


@pytest.mark.parametrize("text", HOSTILE)
def test_another_shell_reads_a_pasted_word_as_one_word(text: str) -> None:
    command = shell_command(["printf", "<%s>", text])
    read = subprocess.run(["dash", "-c", command], capture_output=True, check=True)
    assert read.stdout.count(b"<") == 1
    assert read.stderr == b""


@pytest.mark.parametrize("text", ["load", "a/b.c", "daten-ä", "2026-11-30"])
def test_plain_words_need_no_quotes(text: str) -> None:
    assert is_plain_word(text)


@pytest.mark.parametrize("text", ["", "-x", "a b", "$(id)", "a;b", "a\n", "=ls", "~", "a\u202e", "a'"])
def test_words_that_a_shell_or_program_changes_are_not_plain(text: str) -> None:
    assert not is_plain_word(text)


@pytest.mark.parametrize("text", ["x" * 2000, "é" * 600, '"\n' * 400, "\ud800", "", "\U0001d4b3" * 200, "\x01" * 700])
def test_line_within_has_the_bytes_of_its_limit_as_json(text: str) -> None:
    line = line_within(text, 512)
    assert line.isprintable()
    assert len(json.dumps(line, ensure_ascii=False).encode()) - 2 <= 512
    assert bool(line) is bool(text)
