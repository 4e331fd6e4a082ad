"""Results of the benchmark and their summary."""

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from bench.kinds import API_SERVER, CLIENT, NODES, Kind
from bench.measures import Spread, percentiles_of, ratios_of, spread_of
from bench.rounds import Call, Phase, by_kind
from bench.scenarios.base import Table

THROUGHPUT = "runs/min"
COMPARED: Mapping[str, Callable[[Phase], float]] = {
    THROUGHPUT: lambda phase: phase.runs_per_minute,
    "API server's CPU": lambda phase: phase.cpu[API_SERVER],
    "CPU without kwok and client": lambda phase: sum(
        cpu for name, cpu in phase.cpu.items() if name not in {NODES, CLIENT}
    ),
    "API calls": lambda phase: sum(phase.calls.values()),
}
"""Measures for which the ratio to Jobs is reported."""


class Machine(msgspec.Struct, frozen=True):
    """Description of the machine and the versions."""

    processor: str
    cores: int
    memory_gib: float
    python: str
    kubernetes: str
    kwok: str

    @classmethod
    def current(cls, versions: Mapping[str, str]) -> "Machine":
        """Return the description of this machine, without its host name."""
        names = [
            line.partition(":")[2] for line in _read("/proc/cpuinfo").splitlines() if line.startswith("model name")
        ]
        memory = next(int(line.split()[1]) for line in _read("/proc/meminfo").splitlines() if "MemTotal" in line)
        return cls(
            processor=names[0].strip() if names else platform.machine(),
            cores=len(os.sched_getaffinity(0)),
            memory_gib=round(memory / 2**20, 1),
            python=platform.python_version(),
            kubernetes=versions["kubernetes"],
            kwok=versions["kwok"],
        )


class Latency(msgspec.Struct, frozen=True):
    """Percentiles over all runs, in seconds."""

    create_to_pod: Mapping[str, float]
    end_to_outcome: Mapping[str, float]


class Summary(msgspec.Struct, frozen=True):
    """Summary of one kind.

    `ratios` compare with Jobs in the same round; they are empty without Jobs. `paced` is None if it
    was not measured. `load_calls` are the API calls per run in the rounds; `calls` come from the
    pass that also counts bytes. CPU is in milliseconds per run, memory in MiB.
    """

    kind: Kind
    runs_per_minute: Spread
    ratios: Mapping[str, Spread]
    latency: Latency
    paced: Latency | None
    cpu: Mapping[str, Spread]
    memory: Mapping[str, float]
    load_calls: Mapping[str, float]
    calls: list[Call]

    @property
    def ratio(self) -> Spread | None:
        """Ratio of the throughput to that of Jobs."""
        return self.ratios.get(THROUGHPUT)


class Results(msgspec.Struct, frozen=True, kw_only=True):
    """Content of results.json."""

    command: str
    date: str
    runs: int
    rounds: int
    paced_per_second: float
    counted_runs: int
    defaults: bool
    policies: bool
    machine: Machine
    kinds: list[Summary]


class ScenarioResult(msgspec.Struct, frozen=True, kw_only=True):
    """Result of one scenario, in scenarios.json."""

    name: str
    command: str
    date: str
    machine: Machine
    table: Table


def summaries_of(
    rounds: Sequence[Sequence[Phase]], paced: Sequence[Phase], calls: Mapping[Kind, list[Call]], kinds: Sequence[Kind]
) -> list[Summary]:
    """Return the summary of each kind."""
    phases = by_kind(rounds, kinds)
    paced_of = by_kind([paced], kinds)
    return [
        Summary(
            kind=kind,
            runs_per_minute=spread_of([phase.runs_per_minute for phase in phases[kind]]),
            ratios=_ratios_of(phases[kind], phases[Kind.JOB]) if Kind.JOB in phases else {},
            latency=_latency_of(phases[kind]),
            paced=_latency_of(paced_of[kind]) if paced_of[kind] else None,
            cpu={name: spread_of([phase.cpu[name] for phase in phases[kind]]) for name in phases[kind][0].cpu},
            memory={name: max(phase.memory[name] for phase in phases[kind]) for name in phases[kind][0].memory},
            load_calls=_means_of([phase.calls for phase in phases[kind]]),
            calls=calls.get(kind, []),
        )
        for kind in kinds
    ]


def _ratios_of(phases: Sequence[Phase], jobs: Sequence[Phase]) -> dict[str, Spread]:
    return {
        name: ratios_of([measure(phase) for phase in phases], [measure(phase) for phase in jobs])
        for name, measure in COMPARED.items()
    }


def _latency_of(phases: Sequence[Phase]) -> Latency:
    return Latency(
        create_to_pod=percentiles_of([seconds for phase in phases for seconds in phase.create_to_pod]),
        end_to_outcome=percentiles_of([seconds for phase in phases for seconds in phase.end_to_outcome]),
    )


def _means_of(counts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for each in counts for name in each)
    means = {name: sum(each.get(name, 0.0) for each in counts) / len(counts) for name in names}
    return dict(sorted(means.items(), key=lambda item: -item[1]))


def _read(path: str) -> str:
    return Path(path).read_text()
