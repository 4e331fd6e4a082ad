"""What an author of an adapter needs to find out whether it keeps its word: `conformance` and what goes with it.

It brings the real SDK, the real state API and the operator's real planner together in one process, with a Kubernetes API in memory; what
can't be made up is the other side. Needs `pip install reattach[operator]`.
"""

from reattach.testing.cases import CASES, Case, Fault, Verdict
from reattach.testing.clocks import Clock, MadeUpClock, RealClock
from reattach.testing.conformance import MADE_UP, REAL, CountError, OtherSide, Outcome, Pace, Report, Suite, conformance
from reattach.testing.processes import Process
from reattach.testing.world import Run, World

__all__ = [
    "CASES",
    "MADE_UP",
    "REAL",
    "Case",
    "Clock",
    "CountError",
    "Fault",
    "MadeUpClock",
    "OtherSide",
    "Outcome",
    "Pace",
    "Process",
    "RealClock",
    "Report",
    "Run",
    "Suite",
    "Verdict",
    "World",
    "conformance",
]
