"""The state API with a parser that takes 6 seconds for a body of more than 50,000 bytes."""

import time
from typing import Any

from reattach.server import routes
from reattach.server.__main__ import main

from_json = routes.from_json


def slow_from_json(text: bytes) -> Any:
    if len(text) > 50_000:
        time.sleep(6)
    return from_json(text)


routes.from_json = slow_from_json
main()
