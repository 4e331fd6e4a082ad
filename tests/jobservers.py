"""The job server of the examples in this process, in any mode and with any clock."""

import dataclasses
import importlib.util
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from reattach.testing.loopback_server import LoopbackServer

_PROGRAM = Path(__file__).parent.parent / "examples/jobserver/jobserver.py"


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("jobserver", _PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


jobserver = _load()


class Time:
    """Clock in seconds since 1970 that a test advances."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now

    def pass_by(self, seconds: float) -> None:
        self.now += seconds


@dataclass(frozen=True)
class LocalJobServer:
    """A running job server, with its jobs and its faults."""

    url: str
    jobs: Any
    faults: Any

    def fail(self, kind: str, *on: str, **how: Any) -> None:
        """Add a fault for requests of these kinds, by default all. See `jobserver.Fault`."""
        self.faults.add(jobserver.Fault(kind, **({"on": on} if on else {}), **how))

    @property
    def made(self) -> int:
        """Return the number of jobs that were ever made."""
        made: int = self.jobs.counts()["made"]
        return made

    def running(self, now: float) -> int:
        """Return the number of jobs that run at a time, in seconds since 1970."""
        running: int = self.jobs.running(now)["running"]
        return running

    @property
    def duplicates(self) -> dict[str, int]:
        """Return the number of jobs of each token that has several."""
        by_token = self.jobs.counts()["by_token"]
        return {token: of["made"] for token, of in by_token.items() if of["made"] > 1}


@contextmanager
def serving(
    mode: str | Any, *, seconds: float = 60, cancel_seconds: float = 0, clock: Callable[[], float] = time.time
) -> Iterator[LocalJobServer]:
    """Run a job server in a mode (a name or a `jobserver.Mode`), with its jobs in memory.

    cancel_seconds: how long its jobs ignore a cancellation, `math.inf`: for ever.
    """
    if isinstance(mode, str):
        mode = dataclasses.replace(jobserver.mode_of(mode, seconds), cancel_seconds=cancel_seconds)
    application = jobserver.build_application(None, mode, clock)
    with LoopbackServer() as service:
        url = service.serve(application)
        yield LocalJobServer(url, application[jobserver.JOBS], application[jobserver.FAULTS])
