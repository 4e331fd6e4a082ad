"""Log lines, as plain text or as JSON."""

import json
import logging
import sys
from datetime import UTC, datetime

from typing_extensions import override

FORMATS = ("plain", "json")


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
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def set_up_logs(style: str, level: str) -> None:
    """Log to stderr. Log only the warnings of kopf, because kopf logs a line for each event."""
    handler = logging.StreamHandler(sys.stderr)
    plain = logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    handler.setFormatter(JsonFormatter() if style == "json" else plain)
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    for name in ("kopf", "kopf.objects", "aiohttp", "asyncio", "kubernetes"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # kopf warns that it installs no signal handlers outside of the main thread, which is intended.
    logging.getLogger("kopf._core.reactor.running").setLevel(logging.ERROR)
