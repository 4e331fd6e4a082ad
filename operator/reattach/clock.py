"""Time that is counted from."""

import time


def monotonic() -> float:
    """Seconds that never go back, and that go on while the machine sleeps, where it says how long it did (Linux).

    What another system promises ends meanwhile too, so that a process must not take a night for a moment: `time.monotonic` would.
    """
    return time.clock_gettime(_CLOCK)


_CLOCK: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
