"""What an author of an adapter needs to find out whether it keeps its word: `conformance` and what goes with it.

It brings the real SDK, the real state API and the operator's real planner together in one process, with a Kubernetes API in memory; what
can't be made up is the other side. Needs `pip install reattach[operator]`.
"""

from reattach.testing.cases import CASES, Case, ExpectedResult, Fault
from reattach.testing.clocks import Clock, RealClock, VirtualClock
from reattach.testing.conformance import (
    MADE_UP,
    REAL,
    CaseResult,
    CaseTiming,
    CountError,
    ExternalSystem,
    Report,
    Suite,
    conformance,
)
from reattach.testing.simulated_cluster import SimulatedCluster, SimulatedRun
from reattach.testing.task_process import TaskProcess

__all__ = [
    "CASES",
    "MADE_UP",
    "REAL",
    "Case",
    "CaseResult",
    "CaseTiming",
    "Clock",
    "CountError",
    "ExpectedResult",
    "ExternalSystem",
    "Fault",
    "RealClock",
    "Report",
    "SimulatedCluster",
    "SimulatedRun",
    "Suite",
    "TaskProcess",
    "VirtualClock",
    "conformance",
]
