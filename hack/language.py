"""Check names and prose against the language rule in CONTRIBUTING.md.

    .venv/bin/python hack/language.py           # everything that is not listed as unconverted
    .venv/bin/python hack/language.py PATH...   # these files and folders, listed or not

The patterns are in language.toml, beside this file. Text in backticks is code and is left out.
"""

import argparse
import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
TERMS = Path(__file__).with_name("language.toml")
PACKAGE = "operator/reattach"
TOPS = ("charts", "crds", "docs", "examples", "hack", "operator", "tests")
COPIES = ("charts/reattach/files/taskruns.yaml",)
"""Files that a test compares with the file that they are copied from."""
RUFF_RULES = ("D205", "D401", "D404", "D415", "W505")
SENTENCE_MAX = 25
"""Words in a sentence; a piece of code or a URL counts as one word."""
MASK = "¤"

_CODE = re.compile(r"``.+?``|`[^`]+`|\{\{.*?\}\}|https?://\S+|(?<=\])\([^)\s]*\)|<!--.*?-->", re.DOTALL)
_SENTENCE_END = re.compile(r"""[.!?]["')\]*_]*\s+(?=["'(\[*_]*[A-Z¤])""")
_WORD = re.compile(r"[\w¤]")
_FIRST_WORD = re.compile(r"""["'(\[*_]*([A-Za-z]+)""")
_ITEM = re.compile(r"\s*(?:[-*+]|\d+\.)\s+")
_ENTRY = re.compile(r"\s*`?[\w.]+`?:(?:\s|$)")
_PRAGMA = re.compile(r"!|\s*(?:noqa|type:|fmt:|pragma|ruff|mypy|syntax=|shellcheck)")
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|_")
_YAML_TEXT = re.compile(r'\s*(?:- )?"?(?:description|summary|message)"?:\s*(.*)')
_NO_SENTENCE = frozenset(["What", "Whatever", "Whoever", "Whose", "Who", "That", "Of", "None", "Not", "Nobody"])
_NO_SUMMARY = _NO_SENTENCE | frozenset(
    ["Whether", "How", "When", "If", "Where", "Which", "Why", "Those", "Be", "Without", "But", "And", "Or", "So"]
)
# Questions, links, headings within a paragraph, and words that a noun follows.
_IS_SENTENCE = re.compile(
    r"""(?:\[.*|\*\*.*\*\*|.*\?["')\]*_]*)$|["'(*_]*(?:None of the|Not (?:all|every|only|yet|\w+ed)|"""
    r"""That (?!(?:an?|the|it|they|this|these|one|what|which|no|is|was|has|can|would|must|means|makes|some|any)\b))\b"""
)
_NO_TEST = re.compile(r"test_(what|whatever|whoever|whose|who|that|of|none|not|nobody|or|and|but|until|then|so|also)_")


class Violation(NamedTuple):
    """One place that breaks the rule."""

    path: str
    line: int
    found: str
    write: str

    def report(self) -> str:
        """Return the line that is printed."""
        return f'{self.path}:{self.line}: found "{self.found}": write "{self.write}"'


class Term(NamedTuple):
    """Pattern of words, and what to write instead."""

    find: re.Pattern[str]
    write: str


class Terms:
    """Substitution list, searched with one regular expression."""

    def __init__(self, entries: Iterable[dict[str, str]]) -> None:
        entries = list(entries)
        self._terms = [Term(re.compile(rf"\b(?:{e['find']})\b", re.IGNORECASE), e["write"]) for e in entries]
        joined = "|".join(e["find"] for e in entries)
        self._any = re.compile(rf"\b(?:{joined})\b", re.IGNORECASE)

    @classmethod
    def load(cls, path: Path = TERMS) -> "Terms":
        """Read the list from `path`."""
        return cls(tomllib.loads(path.read_text())["term"])

    def search(self, text: str) -> Iterator[tuple[int, str, str]]:
        """Yield offset, words found and words to write, for each match."""
        for match in self._any.finditer(text):
            for find, write in self._terms:
                if found := find.match(text, match.start()):
                    yield match.start(), found[0], write
                    break


@dataclass
class Passage:
    """One paragraph, docstring, comment, message or name; each line with its number."""

    kind: str  # summary, prose, title, literal or name
    lines: list[tuple[int, str]]

    def __post_init__(self) -> None:
        parts = [text.strip() for _, text in self.lines]
        self.text = _CODE.sub(lambda code: MASK * len(code[0]), " ".join(parts))
        self._starts = [0]
        for part in parts[:-1]:
            self._starts.append(self._starts[-1] + len(part) + 1)

    def line_at(self, offset: int) -> int:
        """Return the line number of a character of `text`."""
        return self.lines[bisect_right(self._starts, offset) - 1][0]


def check_passage(path: str, passage: Passage, terms: Terms) -> Iterator[Violation]:
    """Yield each violation in one passage."""
    for offset, found, write in terms.search(passage.text):
        yield Violation(path, passage.line_at(offset), found, write)
    if passage.kind in {"summary", "prose"}:
        yield from _check_sentences(path, passage)


def _check_sentences(path: str, passage: Passage) -> Iterator[Violation]:
    start = 0
    for end in [*(match.end() for match in _SENTENCE_END.finditer(passage.text)), len(passage.text)]:
        sentence = passage.text[start:end].strip()
        is_summary = passage.kind == "summary" and start == 0
        line = passage.line_at(start)
        start = end
        if not sentence:
            continue
        word = first[1] if (first := _FIRST_WORD.match(sentence)) else ""
        if is_summary and word in _NO_SUMMARY:
            yield Violation(path, line, f"{word} …", "a docstring that starts with an imperative or a noun phrase")
        elif word in _NO_SENTENCE and not _IS_SENTENCE.match(sentence):
            yield Violation(path, line, f"{word} …", "a sentence whose subject is a noun that the reader knows")
        # The text after a colon is often a list, so it is counted separately, except in a summary.
        longest = max([sentence] if is_summary else sentence.split(": "), key=_count_words)
        if (count := _count_words(longest)) > SENTENCE_MAX:
            opening = " ".join(longest.split()[:4]).replace(MASK, "")
            yield Violation(path, line, f"{opening} …, {count} words", f"sentences of at most {SENTENCE_MAX} words")


def _count_words(text: str) -> int:
    return sum(bool(_WORD.search(part)) for part in text.split())


# Python


def python_passages(source: str) -> Iterator[Passage]:
    """Yield the names, docstrings, comments and string literals of one module."""
    lines = source.splitlines()
    tree = ast.parse(source)
    spans: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
    docstrings: set[int] = set()
    inner: set[int] = set()
    for node in _nodes(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstrings.update(
                id(child.value)
                for child in node.body
                if isinstance(child, ast.Expr)
                and isinstance(child.value, ast.Constant)
                and isinstance(child.value.value, str)
            )
            if not isinstance(node, ast.Module):
                yield Passage("name", [(node.lineno, words_of(node.name))])
        elif isinstance(node, ast.JoinedStr):
            inner.update(id(part) for part in ast.walk(node) if part is not node)
            _add_span(spans, node)
            if id(node) not in inner:
                yield from _literal(node, _text_of(node), lines)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner:
            _add_span(spans, node)
            if id(node) in docstrings:
                yield from _docstring(node)
            else:
                yield from _literal(node, node.value, lines)
    yield from comment_passages(_python_comments(lines, spans))


def _nodes(tree: ast.AST) -> Iterator[ast.AST]:
    # Parents before children, like `ast.walk`, at a third of its time.
    stack = [tree]
    while stack:
        node = stack.pop()
        yield node
        for name in node._fields:
            value = getattr(node, name, None)
            if isinstance(value, list):
                stack.extend(item for item in value if isinstance(item, ast.AST))
            elif isinstance(value, ast.AST) and not isinstance(value, ast.Name | ast.expr_context):
                stack.append(value)


def words_of(name: str) -> str:
    """Return an identifier as words."""
    return " ".join(part.lower() for part in _CAMEL.split(name) if part)


def _text_of(node: ast.JoinedStr) -> str:
    return "".join(str(part.value) if isinstance(part, ast.Constant) else f"{MASK}{MASK}" for part in node.values)


def _add_span(spans: dict[int, list[tuple[int, int, int]]], node: ast.expr) -> None:
    end_line, end_column = node.end_lineno or node.lineno, node.end_col_offset or 0
    for line in range(node.lineno, end_line + 1):
        first = node.col_offset if line == node.lineno else 0
        last = end_column if line == end_line else sys.maxsize
        spans[line].append((first, last, node.lineno))


def _docstring(node: ast.Constant) -> Iterator[Passage]:
    raw = str(node.value).split("\n")
    margin = min((len(line) - len(line.lstrip()) for line in raw[1:] if line.strip()), default=0)
    numbered = [(node.lineno + i, line if i == 0 else line[margin:]) for i, line in enumerate(raw)]
    kind = "summary"
    for paragraph in _paragraphs(numbered):
        if not all(line.startswith(("    ", ">>>")) for _, line in paragraph):
            for part in _entries(paragraph):
                yield Passage(kind, part)
                kind = "prose"


def _literal(node: ast.expr, value: str, source: list[str]) -> Iterator[Passage]:
    if " " not in value.strip():
        return  # one word is a name
    # The parts of a concatenated literal do not show in the tree, so a line is found by its text.
    text = " ".join(value.split())
    rows = [(row, source[row - 1]) for row in range(node.lineno, (node.end_lineno or node.lineno) + 1)]
    if len(rows) == 1:
        yield Passage("literal", [(node.lineno, text)])
        return
    position, parts, current = 0, [], node.lineno
    words = text.split(" ")
    row = 0
    for word in words:
        for later in range(row, len(rows)):
            column = rows[later][1].find(word, position if later == row else 0)
            if column >= 0:
                row, position, current = later, column + len(word), rows[later][0]
                break
        parts.append((current, word))
    yield Passage("literal", parts)


def _python_comments(
    lines: list[str], spans: dict[int, list[tuple[int, int, int]]]
) -> Iterator[tuple[int, int, str, bool]]:
    for number, line in enumerate(lines, 1):
        column = line.find("#")
        while column >= 0:
            at = len(line[:column].encode())
            if not any(first <= at < last for first, last, _ in spans.get(number, ())):
                yield number, column, line[column + 1 :], not line[:column].strip()
                break
            column = line.find("#", column + 1)


# Everything else


def hash_comments(source: str) -> Iterator[tuple[int, int, str, bool]]:
    """Yield line number, column and text of each comment, and whether it has a line of its own."""
    for number, line in enumerate(source.splitlines(), 1):
        if match := re.match(r"(\s*)#(.*)", line):
            yield number, len(match[1]), match[2], True
        elif match := re.match(r"""((?:[^#"']|"[^"]*"|'[^']*')*\s)#+ (.*)""", line):
            yield number, len(match[1]), match[2], False


def comment_passages(comments: Iterable[tuple[int, int, str, bool]]) -> Iterator[Passage]:
    """Yield the paragraphs of comments that stand one below the other."""
    block: list[tuple[int, str]] = []
    where = (0, 0)
    for number, column, text, is_alone in comments:
        if _PRAGMA.match(text):
            continue
        prose = re.sub(r"^(?:[#:@]+| --)", "", text)
        if not is_alone:
            yield Passage("prose", [(number, prose)])
            continue
        if block and where != (number - 1, column):
            yield from _comment_block(block)
            block = []
        block.append((number, prose))
        where = (number, column)
    yield from _comment_block(block)


def _comment_block(block: list[tuple[int, str]]) -> Iterator[Passage]:
    for paragraph in _paragraphs(block):
        if all(text.startswith("   ") for _, text in paragraph):
            continue  # a block of code
        prose = [(number, text) for number, text in paragraph if not text.startswith("     ")]
        for part in _entries(prose):
            yield Passage("prose", part)


def _paragraphs(lines: Iterable[tuple[int, str]]) -> Iterator[list[tuple[int, str]]]:
    paragraph: list[tuple[int, str]] = []
    for number, line in lines:
        if line.strip():
            paragraph.append((number, line))
        elif paragraph:
            yield paragraph
            paragraph = []
    if paragraph:
        yield paragraph


def _entries(paragraph: list[tuple[int, str]]) -> Iterator[list[tuple[int, str]]]:
    entry: list[tuple[int, str]] = []
    for number, line in paragraph:
        if entry and (_ITEM.match(line) or _ENTRY.match(line)):
            yield entry
            entry = []
        entry.append((number, _ITEM.sub("", line, count=1) if _ITEM.match(line) else line))
    if entry:
        yield entry


def markdown_passages(source: str) -> Iterator[Passage]:
    """Yield the paragraphs, items, headings and table rows of a Markdown page, without its code."""
    prose: list[tuple[int, str]] = []
    numbered: list[tuple[int, str]] = []
    fence = ""
    was_blank, in_item = True, False
    for number, line in enumerate(source.splitlines(), 1):
        mark = re.match(r"\s*(```+|~~~+)", line)
        if fence or mark:
            fence = "" if mark and fence and mark[1].startswith(fence) else fence or (mark[1] if mark else "")
            numbered.append((number, ""))
        elif line.startswith(("    ", "\t")) and was_blank and not in_item:
            numbered.append((number, ""))
            continue  # an indented block lasts until the indentation ends
        elif line.lstrip().startswith(("|", "#", "<")):
            numbered.append((number, ""))
            yield Passage("title", [(number, line.strip("#| "))])
        else:
            numbered.append((number, line))
            in_item = bool(_ITEM.match(line)) or (in_item and (not line.strip() or line.startswith(" ")))
        was_blank = not line.strip()
    for prose in _paragraphs(numbered):
        for part in _items(prose):
            yield Passage("prose", part)


def _items(paragraph: list[tuple[int, str]]) -> Iterator[list[tuple[int, str]]]:
    item: list[tuple[int, str]] = []
    for number, line in paragraph:
        mark = _ITEM.match(line)
        if item and mark:
            yield item
            item = []
        item.append((number, line[mark.end() :] if mark else line))
    if item:
        yield item


def yaml_passages(source: str) -> Iterator[Passage]:
    """Yield the comments, descriptions and messages of a YAML or JSON file or a chart template."""
    yield from comment_passages(hash_comments(source))
    lines = source.splitlines()
    for number, line in enumerate(lines, 1):
        if line.lstrip().startswith("{{") and "/*" in line:
            end = number
            while end < len(lines) and "*/" not in lines[end - 1]:
                end += 1
            block = [(n, re.sub(r"\{\{-?|-?\}\}|/\*|\*/", "", lines[n - 1])) for n in range(number, end + 1)]
            for paragraph in _paragraphs(block):
                for part in _entries(paragraph):
                    yield Passage("prose", part)
        elif match := _YAML_TEXT.match(line):
            yield from _yaml_value(lines, number, match)


def _yaml_value(lines: list[str], number: int, match: re.Match[str]) -> Iterator[Passage]:
    indent = len(lines[number - 1]) - len(lines[number - 1].lstrip(" -"))
    block = [(number, re.sub(r"^[>|][-+]?$", "", match[1]).strip("\"',"))]
    for later in range(number + 1, len(lines) + 1):
        text = lines[later - 1]
        if text.strip() and len(text) - len(text.lstrip()) <= indent:
            break
        if text.lstrip().startswith("|"):
            yield Passage("title", [(later, text.strip("| "))])
            text = ""
        block.append((later, text))
    for paragraph in _paragraphs(block):
        for part in _entries(paragraph):
            yield Passage("prose", part)


def notes_passages(source: str) -> Iterator[Passage]:
    """Yield the paragraphs that Helm prints after an installation, without the commands."""
    lines = enumerate(source.splitlines(), 1)
    for paragraph in _paragraphs((n, "" if line.startswith("    ") else line) for n, line in lines):
        yield Passage("prose", paragraph)


def script_passages(source: str) -> Iterator[Passage]:
    """Yield the comments of a shell script, Makefile, Dockerfile or TOML file."""
    yield from comment_passages(hash_comments(source))


def reader_of(path: str) -> Callable[[str], Iterator[Passage]] | None:
    """Return how to read a file, or None for a file that has no prose."""
    name, suffix = Path(path).name, Path(path).suffix
    if path in COPIES or name.endswith(".lock"):
        return None
    if name == "NOTES.txt":
        return notes_passages
    if suffix in {".yaml", ".yml", ".tpl", ".json"}:
        return yaml_passages
    if suffix in {".py", ".md"}:
        return python_passages if suffix == ".py" else markdown_passages
    if name in {"Makefile", "Dockerfile", "pyproject.toml"} or (suffix in {"", ".sh"} and path.startswith("hack/")):
        return script_passages
    return None


# Class names


def class_names(root: Path) -> dict[str, list[tuple[str, int]]]:
    """Return path and line of each definition in the package, by class name."""
    found: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for path in _walk(root, PACKAGE):
        if path.endswith(".py"):
            for number, line in enumerate((root / path).read_text().splitlines(), 1):
                if match := re.match(r"\s*class (\w+)\s*[:(\[]", line):
                    found[match[1]].append((path, number))
    return found


def check_class_names(root: Path, is_unconverted: Callable[[str], bool]) -> Iterator[Violation]:
    """Yield each definition of a class name that the package defines more than once.

    If some of the files are unconverted, only those are named. So a converted package passes while
    another package still defines one of its names.
    """
    for name, places in class_names(root).items():
        if len(places) > 1:
            culprits = [place for place in places if is_unconverted(place[0])] or places
            for path, line in culprits:
                others = ", ".join(f"{p}:{n}" for p, n in places if (p, n) != (path, line))
                yield Violation(path, line, f"class {name}", f"a class name of its own: {others} defines it too")


# The whole run


class Unconverted:
    """Paths that pyproject.toml lists as not converted yet."""

    def __init__(self, pyproject: dict[str, Any]) -> None:
        tool = pyproject["tool"]
        ignores = tool["ruff"]["lint"].get("per-file-ignores", {})
        self.entries: list[str] = [key for key, codes in ignores.items() if "D401" in codes]
        self.entries += tool.get("reattach-language", {}).get("unconverted", [])

    def entry_of(self, path: str) -> str | None:
        """Return the entry that lists `path`."""
        for entry in self.entries:
            if path == entry or (entry.endswith("/**") and path.startswith(entry[:-2])):
                return entry
        return None


def check_file(root: Path, path: str, terms: Terms) -> Iterator[Violation]:
    """Yield each violation of the word and sentence rules in one file."""
    read = reader_of(path)
    if read is None:
        return
    if path.endswith(".py"):
        stem = words_of(Path(path).stem)
        yield from check_passage(path, Passage("name", [(1, stem)]), terms)
    for passage in read((root / path).read_text()):
        yield from check_passage(path, passage, terms)
        if passage.kind == "name" and _NO_TEST.match(passage.text.replace(" ", "_")):
            line = passage.lines[0][0]
            yield Violation(path, line, passage.text, "test_<unit>_<condition>_<expected>, readable on its own")


def check_with_ruff(root: Path, paths: Sequence[str], pyproject: dict[str, Any]) -> list[Violation]:
    """Return what ruff's docstring rules report, without the list of unconverted paths."""
    if not paths:
        return []  # ruff would check the whole folder
    most = pyproject["tool"]["ruff"]["lint"]["pycodestyle"]["max-doc-length"]
    ruff = Path(sys.executable).with_name("ruff")
    command = [str(ruff), "check", "--isolated", "--no-cache", "--output-format=json", "--exit-zero"]
    command += [f"--select={','.join(RUFF_RULES)}", f"--config=lint.pycodestyle.max-doc-length={most}"]
    run = subprocess.run([*command, "--", *paths], cwd=root, check=True, capture_output=True, text=True)
    return [
        Violation(
            Path(item["filename"]).relative_to(root).as_posix(),
            item["location"]["row"],
            str(item["code"]),
            item["message"].partition(": ")[0],
        )
        for item in json.loads(run.stdout)
    ]


def _walk(root: Path, top: str) -> Iterator[str]:
    if (root / top).is_file():
        yield top
        return
    for folder, folders, names in os.walk(root / top):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")) and name != "build")
        relative = Path(folder).relative_to(root)
        yield from ((relative / name).as_posix() for name in sorted(names))


def _default_paths(root: Path) -> list[str]:
    return [*sorted(path.name for path in root.iterdir() if path.is_file()), *TOPS]


def check(root: Path, paths: Sequence[str] = ()) -> list[Violation]:
    """Return the violations in `paths`, listed as unconverted or not.

    Without paths, return those in every unlisted file, and the entries of the list that pass.
    """
    pyproject = tomllib.loads((root / "pyproject.toml").read_text())
    unconverted = Unconverted(pyproject)
    terms = Terms.load()
    tops = list(paths or _default_paths(root))
    files = [path for top in tops for path in _walk(root, top) if reader_of(path)]
    found = [violation for path in files for violation in check_file(root, path, terms)]
    wanted = set(files)
    listed = (lambda _: False) if paths else (lambda path: unconverted.entry_of(path) is not None)
    found += [violation for violation in check_class_names(root, listed) if violation.path in wanted]
    found += check_with_ruff(root, [path for path in files if path.endswith(".py")], pyproject)
    if paths:
        return sorted(found)
    failing = {entry for violation in found if (entry := unconverted.entry_of(violation.path))}
    passing = [entry for entry in unconverted.entries if entry not in failing]
    return sorted(
        [violation for violation in found if not unconverted.entry_of(violation.path)]
        + [Violation("pyproject.toml", 1, entry, "nothing: it passes, so remove it from the list") for entry in passing]
    )


def main() -> int:
    """Print each violation and return the exit code."""
    parser = argparse.ArgumentParser(
        description="Check names and prose against the language rule in CONTRIBUTING.md.",
        epilog="Call: .venv/bin/python hack/language.py [PATH...], from the top of the repository. Exits 1 on violations.",
    )
    parser.add_argument(
        "paths", nargs="*", metavar="PATH", help="files and folders to check, listed as unconverted or not"
    )
    given = [Path(path).resolve() for path in parser.parse_args().paths]
    if missing := [path for path in given if not path.exists()]:
        parser.error(f"no such file: {missing[0]}")
    found = check(ROOT, [path.relative_to(ROOT).as_posix() for path in given])
    for violation in found:
        print(violation.report())
    if found:
        print(f"{len(found)} violations. The rule and its words: CONTRIBUTING.md, section Language.", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
