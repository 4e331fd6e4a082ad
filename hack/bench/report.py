"""Report of the results as Markdown tables."""

from collections.abc import Iterable, Sequence

from bench import kinds
from bench.measures import Spread
from bench.results import COMPARED, Latency, Results, ScenarioResult, Summary
from bench.rounds import Call

PROCESSES = (
    kinds.OPERATOR,
    kinds.LOOP,
    kinds.CONTROLLER_MANAGER,
    kinds.API_SERVER,
    kinds.ETCD,
    kinds.NODES,
    kinds.CLIENT,
)
TIMES = 10
MINUTE = 60_000.0
"""Milliseconds."""
_NONE = "-"
_CALLS = (
    "API calls of the controller per run, under load and in a pass of {} runs of each kind. The pass also counts the bytes of the bodies. "
    "Watches are not counted."
)


def report_of(results: Results) -> str:
    """Return all tables, each after a line with its unit."""
    found = results.kinds
    parts = [
        _setup_of(results),
        *_headline(found),
        "Runs per minute: median (lowest-highest round).",
        _table(("kind", "runs/min"), (_throughput_of(each) for each in found)),
        "Ratio to Jobs in the same round, per run: median (lowest-highest round).",
        _table(("kind", *COMPARED), ((each.kind.label, *_ratios_of(each)) for each in found)),
        "Latency in milliseconds: under full load, where runs queue, and under a paced load without a queue.",
        _table(
            (
                "kind",
                "load",
                *(f"create → pod {name}" for name in _names(found)),
                *(f"end → outcome {name}" for name in _names(found)),
            ),
            (row for each in found for row in _latencies_of(each, results)),
        ),
        "CPU per run in milliseconds, under load: median (lowest-highest round).",
        _table(
            ("kind", *PROCESSES), ((each.kind.label, *(_cpu_of(each, name) for name in PROCESSES)) for each in found)
        ),
        "Peak resident memory in MiB, under load: the highest of all rounds.",
        _table(
            ("kind", *PROCESSES),
            (
                (each.kind.label, *(f"{each.memory[name]:.0f}" if name in each.memory else _NONE for name in PROCESSES))
                for each in found
            ),
        ),
        _CALLS.format(results.counted_runs),
        _table(
            ("kind", "call", "calls/run under load", "calls/run", "request bytes/run", "response bytes/run"),
            (row for each in found for row in _calls_of(each)),
        ),
    ]
    return "\n\n".join([*parts, *_bounds_of(found)])


def scenario_report_of(result: ScenarioResult) -> str:
    """Return the table of a scenario, after a line with the command and the machine."""
    machine = result.machine
    about = f"{machine.processor}, {machine.cores} cores; Kubernetes {machine.kubernetes}, Python {machine.python}"
    return f"`{result.command}`, {result.date}: {about}.\n\n{_table(result.table.head, result.table.rows)}"


def _bounds_of(found: Sequence[Summary]) -> list[str]:
    """Return the table of what one core serves, and of what ten times the rate needs."""
    taskrun = next((each for each in found if each.kind is kinds.Kind.TASKRUN), None)
    if taskrun is None:
        return []
    rate = TIMES * taskrun.runs_per_minute.median
    writes = sum(count for call, count in taskrun.load_calls.items() if not call.startswith(("get ", "list ")))
    rows = [
        (name, f"{cpu:.1f}", f"{MINUTE / cpu:,.0f}" if cpu else _NONE, f"{cpu * rate / MINUTE:.1f}")
        for name in (kinds.OPERATOR, kinds.API_SERVER, kinds.ETCD)
        for cpu in (taskrun.cpu[name].median,)
    ]
    title = (
        f"Bounds of TaskRuns. {TIMES} times the measured rate is {rate:,.0f} runs a minute. The operator then sends {rate * writes / 60:,.0f} "
        "writes a second; the nodes and the clients send more."
    )
    return [
        title,
        _table(("process", "CPU (ms/run)", "runs/min for each core", f"cores for {TIMES} times the rate"), rows),
    ]


def _setup_of(results: Results) -> str:
    machine = results.machine
    limits = "default limits of the controllers" if results.defaults else "client limits raised"
    policies = "with" if results.policies else "without"
    return (
        f"`{results.command}`, {results.date}: {results.rounds} rounds of {results.runs} objects of each kind, {limits}, {policies} the "
        f"chart's admission policies. {machine.processor}, {machine.cores} cores, {machine.memory_gib:g} GiB; Kubernetes {machine.kubernetes}, "
        f"kwok {machine.kwok}, Python {machine.python}."
    )


def _headline(found: Sequence[Summary]) -> list[str]:
    """Return the summary sentence if both kinds were measured."""
    ratio = next((each.ratio for each in found if each.kind is kinds.Kind.TASKRUN), None)
    if ratio is None:
        return []
    shown = f"{ratio.median:.2f} ({ratio.low:.2f}-{ratio.high:.2f})"
    return [f"**While Kubernetes runs one Job, Reattach runs {shown} TaskRuns.**"]


def _names(found: Sequence[Summary]) -> list[str]:
    return list(found[0].latency.create_to_pod)


def _throughput_of(each: Summary) -> tuple[str, ...]:
    rate = each.runs_per_minute
    shown = f"{rate.median:,.0f} ({rate.low:,.0f}-{rate.high:,.0f})"
    return each.kind.label, shown


def _ratios_of(each: Summary) -> list[str]:
    return [_spread(each.ratios[name], 2) if name in each.ratios else _NONE for name in COMPARED]


def _latencies_of(each: Summary, results: Results) -> list[tuple[str, ...]]:
    rows = [(each.kind.label, "full", *_milliseconds(each.latency))]
    if each.paced:
        rows.append((each.kind.label, f"{results.paced_per_second:g}/s", *_milliseconds(each.paced)))
    return rows


def _milliseconds(latency: Latency) -> list[str]:
    return [
        f"{seconds * 1000:,.0f}"
        for part in (latency.create_to_pod, latency.end_to_outcome)
        for seconds in part.values()
    ]


def _cpu_of(each: Summary, name: str) -> str:
    return _spread(each.cpu[name], 1) if name in each.cpu else _NONE


def _calls_of(each: Summary) -> list[tuple[str, ...]]:
    counted = {call.call: call for call in each.calls}
    numbers: dict[str, tuple[float, ...]] = {}
    for name in dict.fromkeys((*counted, *each.load_calls)):
        call = counted.get(name, Call(name, 0, 0, 0))
        numbers[name] = (each.load_calls.get(name, 0.0), call.count, call.request_bytes, call.response_bytes)
    shown = {f"`{name}`": row for name, row in numbers.items()}
    shown["all"] = tuple(map(sum, zip(*numbers.values(), strict=True)))
    return [
        (each.kind.label, name, f"{load:.2f}", f"{count:.2f}", f"{requests:,.0f}", f"{responses:,.0f}")
        for name, (load, count, requests, responses) in shown.items()
    ]


def _spread(spread: Spread, digits: int) -> str:
    return f"{spread.median:.{digits}f} ({spread.low:.{digits}f}-{spread.high:.{digits}f})"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:" for _ in head[1:]]], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
