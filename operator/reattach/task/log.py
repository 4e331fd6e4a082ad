"""Log output of the SDK on stderr, for tasks that configure no logging of their own."""

import logging

LOG_FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"
"""Format of a line, which the operator recognizes in the last lines of a failed task's log."""
logger = logging.getLogger("reattach")
"""Logger of the SDK. Decisions and progress are INFO; a WARNING needs the attention of a user."""


def configure() -> None:
    """Print the SDK's records from INFO on.

    Do nothing if the task configured logging, or set a level or a handler for the SDK's logger.
    """
    if logging.getLogger().handlers or logger.handlers or logger.level != logging.NOTSET:
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(LOG_FORMAT))
    # Like Python's handler of last resort, it prints nothing once the root logger has a handler.
    handler.addFilter(lambda _: not logging.getLogger().handlers)
    logger.addHandler(handler)
    # Python does not apply the root's level to a record that propagates to the root's handlers.
    logger.addFilter(_passes_root_level)
    logger.setLevel(logging.INFO)


def _passes_root_level(record: logging.LogRecord) -> bool:
    """Return whether the record has the root's level, if the task configured logging after us.

    If the task has since set a level for the SDK's logger, only that level counts.
    """
    root = logging.getLogger()
    return not root.handlers or logger.level != logging.INFO or record.levelno >= root.level
