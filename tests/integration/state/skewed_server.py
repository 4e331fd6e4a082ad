"""The state API with a clock that is ahead by REATTACH_TEST_SKEW seconds."""

import os
import time
from datetime import datetime, timedelta
from types import SimpleNamespace

SKEW = float(os.environ["REATTACH_TEST_SKEW"])
real_time = time.time
time.time = lambda: real_time() + SKEW

from reattach.server import application, clock_check  # noqa: E402 -- they keep a reference to the clock
from reattach.server.__main__ import main  # noqa: E402

clock_check.PAUSE_SECONDS = 0.2


application.datetime = SimpleNamespace(  # type: ignore[assignment, misc]
    now=lambda zone: datetime.now(zone) + timedelta(seconds=SKEW)
)
main()
