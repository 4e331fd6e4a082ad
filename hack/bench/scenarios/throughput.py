"""Scenarios that create runs and wait for their ends: happy, failures, sizes, defaults."""

from collections.abc import Sequence

from bench import kinds
from bench.installation import Installation
from bench.kinds import Kind
from bench.rounds import Load, Phase, measure
from bench.scenarios.base import Parameters, Table

FAILS_EVERY = 5
"""One of five runs, which is 20 %."""
_HEAD = ("runs/min", "controller's CPU (ms/run)", "API server's CPU (ms/run)", "API calls/run", "controller (MiB)")
_PEERS = (Kind.TASKRUN, Kind.JOB)


def measure_happy(installation: Installation, parameters: Parameters) -> Table:
    """Measure runs that succeed."""
    return _compare(installation, parameters, Load(parameters.runs), "happy")


def measure_failures(installation: Installation, parameters: Parameters) -> Table:
    """Measure runs of which one in five fails once. Both kinds wait 10 s before a retry."""
    return _compare(installation, parameters, Load(parameters.runs, fails_every=FAILS_EVERY), "20 % fail once")


def measure_sizes(installation: Installation, parameters: Parameters) -> Table:
    """Measure TaskRuns in three sizes: a tenth of the runs, a half, and all."""
    sizes = [max(1, parameters.runs // 10), max(1, parameters.runs // 2), parameters.runs]
    phases = [
        measure(installation, Kind.TASKRUN, Load(size), say=parameters.say, title=f"{size} runs") for size in sizes
    ]
    first = phases[0]
    rows = [
        [f"{phase.runs:,} TaskRuns", *_cells_of(phase), *(f"{ratio:.2f}" for ratio in _growth_of(phase, first))]
        for phase in phases
    ]
    return Table(["size", *_HEAD, "controller's CPU, ratio", "API server's CPU, ratio"], rows)


def _growth_of(phase: Phase, first: Phase) -> tuple[float, float]:
    names = (controller_of(phase.kind), kinds.API_SERVER)
    operator, server = (phase.cpu[name] / first.cpu[name] if first.cpu[name] else 1.0 for name in names)
    return operator, server


def _compare(installation: Installation, parameters: Parameters, load: Load, title: str) -> Table:
    phases = [measure(installation, kind, load, say=parameters.say, title=title) for kind in _PEERS]
    return _table_of(phases)


def _table_of(phases: Sequence[Phase]) -> Table:
    base = phases[-1].runs_per_minute
    rows = [[phase.kind.label, *_cells_of(phase), f"{phase.runs_per_minute / base:.2f}"] for phase in phases]
    return Table(["kind", *_HEAD, "runs/min, ratio to Job"], rows)


def _cells_of(phase: Phase) -> list[str]:
    controller = controller_of(phase.kind)
    return [
        f"{phase.runs_per_minute:,.0f}",
        f"{phase.cpu[controller]:.1f}",
        f"{phase.cpu[kinds.API_SERVER]:.1f}",
        f"{sum(phase.calls.values()):.2f}",
        f"{phase.memory[controller]:.0f}",
    ]


def controller_of(kind: Kind) -> str:
    """Return the name of the process that controls a kind."""
    return {Kind.TASKRUN: kinds.OPERATOR, Kind.JOB: kinds.CONTROLLER_MANAGER, Kind.BARE: kinds.LOOP}[kind]
