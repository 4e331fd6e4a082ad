"""The recipes of docs/reference/http-adapter.md: each response is read as the page shows."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from reattach.adapters import base, http
from reattach.adapters.base import Submission
from reattach.adapters.http import Description, HttpJobs, States, StatusRequest, SubmitRequest
from reattach.adapters.http_client import CallError

PAGE = Path(__file__).parents[3] / "docs/reference/http-adapter.md"
SUBMISSION = Submission("tok", {"rows": 1}, "load", 1, "ns", "nightly")
BLOCK = re.compile(r"```(http|python)\n(.*?)```|^(Submission|Status): `([^\n]*)`$", re.DOTALL | re.MULTILINE)


class Recipe(NamedTuple):
    """A response, the description that reads it, and what the call must return."""

    title: str
    response: str
    parts: str
    call: str
    expected: str


def recipes() -> Iterator[Recipe]:
    for section in PAGE.read_text().partition("\n## Recipes\n")[2].split("\n### ")[1:]:
        title, _, body = section.partition("\n")
        response = parts = ""
        for language, code, call, expected in BLOCK.findall(body):
            if language == "http":
                response = code
            elif language == "python":
                parts = code
            else:
                yield Recipe(title, response, parts, call, expected)


RECIPES = list(recipes())


def response_of(text: str) -> httpx.Response:
    head, _, body = text.partition("\n\n")
    status, *lines = head.strip().splitlines()
    headers = dict(line.split(": ", 1) for line in lines)
    return httpx.Response(int(status.split()[1]), headers=headers, content=body.encode())


def adapter_of(recipe: Recipe) -> HttpJobs:
    names = {**vars(http), **vars(base)}
    parts: dict[str, Any] = {
        "submit": SubmitRequest(path="/jobs", handle="id"),
        "status": StatusRequest(
            path="/jobs/{handle}",
            state="state",
            states=States(active=("A",), succeeded=("B",), failed=("C",)),
            not_found=(),
        ),
        **eval(f"dict({recipe.parts})", names),
    }
    response = response_of(recipe.response)
    return HttpJobs(
        Description(address="https://a.invalid", **parts), transport=httpx.MockTransport(lambda _: response)
    )


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: f"{recipe.title}: {recipe.expected[:40]}")
def test_recipe_reads_its_response_as_documented(recipe: Recipe) -> None:
    adapter = adapter_of(recipe)
    calls: dict[str, Callable[[], object]] = {
        "Submission": lambda: adapter.submit(SUBMISSION),
        "Status": lambda: adapter.status("17"),
    }
    if recipe.expected == "CallError":
        with pytest.raises(CallError):
            calls[recipe.call]()
    else:
        assert calls[recipe.call]() == eval(recipe.expected, vars(base).copy())


def test_every_recipe_with_a_response_states_what_it_means() -> None:
    text = PAGE.read_text()
    assert len(RECIPES) == text.count("```http\n") == 11


def test_every_part_on_the_page_is_a_valid_description() -> None:
    names = {**vars(http), **vars(base)}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 11
    for block in blocks:
        eval(f"dict({block})", names)
