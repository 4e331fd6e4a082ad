"""Log lines, for people or as JSON."""

import json
import logging
import sys
from datetime import UTC, datetime

from typing_extensions import override

FORMATS = ("plain", "json")


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

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
    """To stderr. kopf says a line for each event that it hands us, which is for nobody: of kopf only warnings are kept."""
    handler = logging.StreamHandler(sys.stderr)
    plain = logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    handler.setFormatter(JsonFormatter() if style == "json" else plain)
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    for name in ("kopf", "kopf.objects", "aiohttp", "asyncio", "kubernetes"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # kopf warns that it installs no signal handlers outside of the main thread. That is intended.
    logging.getLogger("kopf._core.reactor.running").setLevel(logging.ERROR)
