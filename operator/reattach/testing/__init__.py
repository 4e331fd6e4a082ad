"""Conformance suite for authors of adapters, and runs of a task on a laptop.

The suite runs the real SDK, the real state API and the operator's real planner in one process, with
a Kubernetes API in memory. The external system is real. Requires `pip install reattach[operator]`.
"""

from reattach.testing.cases import CASES, ENDING_CASES, Case, ExpectedResult, Fault
from reattach.testing.clocks import Clock, RealClock, VirtualClock
from reattach.testing.conformance import (
    REAL_TIMING,
    VIRTUAL_TIMING,
    CaseResult,
    CaseTiming,
    CountError,
    ExternalSystem,
    Report,
    Suite,
    conformance,
)
from reattach.testing.local_run import LocalRun, run_locally
from reattach.testing.simulated_cluster import SimulatedCluster, SimulatedRun
from reattach.testing.task_process import TaskProcess

__all__ = [
    "CASES",
    "ENDING_CASES",
    "REAL_TIMING",
    "VIRTUAL_TIMING",
    "Case",
    "CaseResult",
    "CaseTiming",
    "Clock",
    "CountError",
    "ExpectedResult",
    "ExternalSystem",
    "Fault",
    "LocalRun",
    "RealClock",
    "Report",
    "SimulatedCluster",
    "SimulatedRun",
    "Suite",
    "TaskProcess",
    "VirtualClock",
    "conformance",
    "run_locally",
]
