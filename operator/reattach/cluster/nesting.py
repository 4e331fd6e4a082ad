"""Deeply nested JSON, cut to a depth that recursive parsers can read.

The API server accepts 10,000 levels, also in `metadata.managedFields`. On Python 3.11, parsers
raise `RecursionError` after some 1,000.
"""

import re

LEVELS = 300
"""Levels that are kept. No field that Reattach reads is nested as deeply."""

_TOKENS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[{\]}]', re.DOTALL)
_QUOTE, _OPENING = ord('"'), b"[{"


def cut_deep_values(text: bytes, levels: int = LEVELS) -> bytes:
    """Return the JSON text with null in place of each array and object below `levels` levels.

    It takes up to 0.2 s for 1.5 MiB, so call it in a thread.
    """
    kept = []
    start = depth = 0
    for token in _TOKENS.finditer(text):
        character = text[token.start()]
        if character == _QUOTE:
            continue
        if character in _OPENING:
            depth += 1
            if depth == levels + 1:
                kept.append(text[start : token.start()])
        else:
            if depth == levels + 1:
                kept.append(b"null")
                start = token.end()
            depth -= 1
    kept.append(text[start:])
    return b"".join(kept)
