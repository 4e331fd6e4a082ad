"""References of docs/security.md to the tests that show its claims."""

import re
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def test_tests_that_the_security_page_names_exist() -> None:
    text = (REPOSITORY / "docs/security.md").read_text()
    references = re.findall(r"`(tests/[\w/.]+)(?:::(\w+))?`", text)
    assert len(references) >= 10
    for path, name in references:
        found = REPOSITORY / path
        assert found.exists(), path
        if name:
            assert re.search(rf"\b(def|class) {name}\b", found.read_text()), f"{path}::{name}"
