"""Log lines of the operator and the state API, as plain text or as JSON.

A line can contain text of users and external systems. The formatters escape it, so that it neither
controls a terminal nor looks like another line.
"""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

from typing_extensions import override

from reattach.api.text import printable, printable_json

FORMATS = ("plain", "json")
_TRACEBACK_CHARACTERS_MAX = 4000


class PlainFormatter(logging.Formatter):
    """Formatter that writes one printable line, with the end of a traceback indented below it."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")

    @override
    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))

    @override
    def format(self, record: logging.LogRecord) -> str:
        # Another formatter may have stored its traceback in the record.
        record.exc_text = None
        return super().format(record)

    @override
    def formatException(self, ei: Any) -> str:
        return _indented(super().formatException(ei))

    @override
    def formatStack(self, stack_info: str) -> str:
        return _indented(stack_info)


class JsonFormatter(logging.Formatter):
    """Formatter that writes one JSON object per line."""

    @override
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)[-_TRACEBACK_CHARACTERS_MAX:]
        return printable_json(json.dumps(line, ensure_ascii=False))


def set_up_logs(style: str, level: str) -> None:
    """Log to stderr. Log only the warnings of kopf, because kopf logs a line for each event."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if style == "json" else PlainFormatter())
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    for name in ("kopf", "kopf.objects", "aiohttp", "asyncio", "kubernetes"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # kopf warns that it installs no signal handlers outside of the main thread, which is intended.
    logging.getLogger("kopf._core.reactor.running").setLevel(logging.ERROR)


def _indented(text: str) -> str:
    """Return the end of the text in printable, indented lines, so that none looks like a record."""
    end = "\n".join(printable(line) for line in text.splitlines())[-_TRACEBACK_CHARACTERS_MAX:]
    return "\n".join(f"    {line}" for line in end.split("\n"))
