"""The monotonic clock of the SDK."""

import time


def monotonic() -> float:
    """Return seconds that never go back and, on Linux, include the time of a suspended machine.

    Retention periods of external systems expire meanwhile, but `time.monotonic` does not count
    that time.
    """
    return time.clock_gettime(_CLOCK)


_CLOCK: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
