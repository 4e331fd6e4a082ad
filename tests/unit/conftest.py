"""What every unit test begins and ends with."""

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """Undo what the test of a process's start did to the root logger, which the next test would hear."""
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
