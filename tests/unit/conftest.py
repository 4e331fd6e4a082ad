"""Fixtures of all unit tests."""

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """Restore the loggers after a test that starts a process, because they are global."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    levels = {
        name: logging.getLogger(name).level for name in ("kopf", "kopf.objects", "aiohttp", "asyncio", "kubernetes")
    }
    yield
    root.setLevel(level)
    root.handlers[:] = handlers
    for name, before in levels.items():
        logging.getLogger(name).setLevel(before)
