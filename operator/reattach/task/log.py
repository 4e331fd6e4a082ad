"""What the SDK has to say, for tasks that set up no logging of their own: on stderr, where `kubectl logs` shows it."""

import logging

logger = logging.getLogger("reattach")
"""Where all of the SDK logs. Decisions and progress are INFO, what a person should know of is WARNING."""


def show() -> None:
    """Show INFO and above of the SDK, unless the task has set up its own logging, or somebody chose a level or a handler for ours."""
    if logging.getLogger().handlers or logger.handlers or logger.level != logging.NOTSET:
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    # As Python's handler of last resort: it is silent once the root logger has a handler.
    handler.addFilter(lambda _: not logging.getLogger().handlers)
    logger.addHandler(handler)
    # A record that goes up to the root's handlers is not held against the root's level.
    logger.addFilter(_is_wanted)
    logger.setLevel(logging.INFO)


def _is_wanted(record: logging.LogRecord) -> bool:
    """Whether logging that was set up after ours, if any, asks for as much. A level that somebody chose for ours since then counts alone."""
    root = logging.getLogger()
    return not root.handlers or logger.level != logging.INFO or record.levelno >= root.level
