"""The page of the fields, against the CRD from which it is generated."""

import re

import crd_reference

PAGE = crd_reference.PAGE.read_text()


def test_fields_page_is_what_the_crd_generates() -> None:
    assert crd_reference.render() == PAGE, "run: .venv/bin/python hack/crd_reference.py"


def test_fields_page_has_default_bounds_values_and_rules_of_a_field() -> None:
    section = PAGE.split("\n## spec.retry.backoff\n")[1].split("\n## ")[0]
    assert "| `factorPercent` | integer, 100 to 1000 | 200 |" in section
    assert "| `completion` | string, one of `Auto`, `ExitCode`, `Recorded` | Auto |" in PAGE
    assert "* spec.completion can't be changed after creation; create a new TaskRun\n" in PAGE
    assert "* `handle` must match `^" in PAGE


def test_fields_page_has_a_section_for_each_link_and_one_section_for_each_anchor() -> None:
    anchors = [re.sub(r"[^a-z0-9-]", "", title.lower()) for title in re.findall(r"^## (.+)$", PAGE, re.MULTILINE)]
    assert len(anchors) == len(set(anchors)), "two sections with one anchor"
    assert set(re.findall(r"\]\(#([^)]+)\)", PAGE)) <= set(anchors)
