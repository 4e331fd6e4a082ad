"""YAML output, in which every character is printable."""

from typing import Any

import yaml

from reattach.api.text import printable


class _PrintableDumper(yaml.SafeDumper):
    """Dumper that quotes each string with a character that must be escaped."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    is_printable = all(line.isprintable() for line in text.split("\n"))
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if is_printable else '"')


_PrintableDumper.add_representer(str, _represent_text)


def to_yaml(value: Any) -> str:
    """Return the value as YAML, whose quoted strings have the same escapes as `printable`."""
    text = yaml.dump(value, Dumper=_PrintableDumper, sort_keys=False, allow_unicode=True)
    return "\n".join(printable(line) for line in text.split("\n"))
